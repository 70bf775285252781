//! Devices that come and go while the machine runs. What is built at the start is built here by the same functions.
//!
//! The guest hears of PCI devices by ACPI ([`brolga_devices::pci::hotplug`]), and gives one back when it is done with it;
//! units of a SCSI host and ports of a serial bus come and go by their bus's own means.

use super::inventory::{Entry, Inventory};
use super::peripherals::{Peripherals, plug_port};
use super::scsi::Host;
use super::seats::Seat;
use super::storage::{Drives, Slots};
use super::{Machine, nics};
use crate::cli;
use crate::cli::config::{DriveSpec, Made};
use crate::monitor::{Class, DeviceInfo, Fault, LiveProperty, ObjectInfo, Plugging};
use brolga_devices::services::Clock;
use serde_json::{Value, json};
use std::sync::{MutexGuard, PoisonError};

/// How long the guest is given at least to take notice of what it was asked for, in nanoseconds of its time.
const PATIENCE: u64 = 1_000_000;

/// What was built for a device.
#[derive(Default)]
struct Built {
    cards: nics::Plugged,
    drives: Drives,
    peripherals: Peripherals,
}

impl Machine {
    /// The devices that users gave.
    pub(super) fn inventory(&self) -> MutexGuard<'_, Inventory> {
        self.inventory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has `build` build something on the board.
    fn on_board<R>(&self, build: impl FnOnce(&Slots<'_>) -> R) -> R {
        let pc = &self.pc;
        self.parts.with(&self.config, |s| {
            let (bus, pci, piix3, apics, bridges) = (&pc.bus, &pc.pci, &pc.piix3, &pc.apics, &pc.bridges[..]);
            build(&Slots { s, bus, pci, piix3, apics, bridges })
        })
    }

    /// Builds what `made` names and puts it in its place.
    fn build_one(
        &self,
        inventory: &Inventory,
        next: &cli::Devices,
        made: Made,
        built: &mut Built,
    ) -> anyhow::Result<()> {
        let Built { cards, drives, peripherals } = built;
        let missing = || anyhow::anyhow!("internal error: {made:?} is not described");
        self.on_board(|slots| match made {
            Made::Nic(at) => cards.plug(slots, at, next.network.nics.get(at).ok_or_else(missing)?),
            Made::Disk(at) => drives.virtio_disk(slots, at, next.drive(at).ok_or_else(missing)?),
            Made::ScsiHost(at) => {
                let spec = next.drives.scsi_hosts.get(at).ok_or_else(missing)?;
                drives.scsi_host(slots, at, spec, &[])
            }
            Made::ScsiUnit(at) => {
                let spec = next.drive(at).ok_or_else(missing)?;
                let host = next.host_of(at).and_then(|number| inventory.host(number)).ok_or_else(missing)?;
                drives.scsi_unit(slots, &host, spec)
            }
            Made::SerialPort { bus, number } => {
                let device = inventory.serial_bus(bus).ok_or_else(missing)?;
                let ports = next.peripherals.wanted.serial_buses.get(bus).map(|bus| &bus.ports[..]).unwrap_or_default();
                let port = ports.iter().find(|port| port.number == number).ok_or_else(missing)?;
                plug_port(slots.s, &device, port);
                Ok(())
            }
            _ => peripherals.plug(slots, &next.peripherals.wanted, made),
        })
    }

    /// Whether what `made` names may come now, and on which bus it does.
    fn may_come(&self, inventory: &Inventory, next: &cli::Devices, made: Made) -> Result<(), Fault> {
        let no = |bus: &str| Err(Fault::new(format!("Bus '{bus}' does not support hotplugging")));
        match made {
            Made::Board => {
                let model = next.given.last().map_or("", |spec| spec.model);
                Err(Fault::new(format!("Device '{model}' does not support hotplugging")))
            }
            Made::SerialPort { bus, .. } if inventory.serial_bus(bus).is_some() => Ok(()),
            Made::SerialPort { .. } => no("virtio-serial"),
            Made::ScsiUnit(at) => match next.host_of(at).and_then(|number| inventory.host(number)).as_deref() {
                Some(Host::Virtio(_)) => Ok(()),
                _ => no("scsi"),
            },
            _ if self.pc.hotplug.is_none() => no("pci.0"),
            _ if next.pci_bus(made) != 0 => no(&next.pci_bus_name(made)),
            _ => Ok(()),
        }
    }

    /// Takes note of what was built, and tells the guest.
    fn settle(&self, inventory: &mut Inventory, next: cli::Devices, mut built: Built) {
        let Some(spec) = next.given.last().cloned() else { return };
        let made = spec.made;
        inventory.collected = next;
        inventory.enter(spec, true);
        inventory.seat(&built.cards, &mut built.drives, &mut built.peripherals);
        inventory.changed = true;
        let nics = &inventory.collected.network.nics;
        let cards = self.cards.add(&built.cards, |at| nics.get(at).cloned());
        self.watch_cards(&cards);
        for plugged in built.drives.plugged.drain(..) {
            self.media.add(plugged, &inventory.collected.given);
        }
        match made {
            Made::Balloon => inventory.balloon.iter().for_each(|balloon| self.watch_balloon(balloon)),
            Made::SerialBus(at) => inventory.serial_bus(at).iter().for_each(|bus| self.watch_serial_bus(at, bus)),
            _ => {}
        }
        let paths = built.cards.boot_paths.into_iter().chain(built.drives.boot_paths);
        self.pc.change_boot_paths(|all| all.extend(paths));
        let seat = inventory.entries.last().and_then(|entry| entry.seat.as_ref());
        if let (Some(hotplug), Some(seat)) = (&self.pc.hotplug, seat) {
            hotplug.added(seat.place.device());
        }
    }

    /// The guest has let go of the device in `slot` of PCI bus 0, which it does not see any more.
    pub(super) fn finish_removal(&self, slot: u8) {
        let mut inventory = self.inventory();
        while let Some(at) = inventory.in_slot(slot) {
            self.remove(&mut inventory, at);
        }
        while let Some(seat) = inventory.take_loose(slot) {
            self.take_off_board(&seat);
            let drive = match seat.made {
                Made::Disk(at) => inventory.collected.drive(at).cloned(),
                _ => None,
            };
            inventory.collected.forget(seat.made);
            drive.iter().for_each(|drive| self.close_drive(drive));
        }
    }

    /// Takes a device out of its slot. Its interrupt goes down, its ranges vanish, its queues are left alone.
    fn take_off_board(&self, seat: &Seat) {
        let device = self.pc.bus.remove_device(&seat.name);
        device.iter().for_each(|device| device.reset());
        self.pc.pci.remove(seat.place);
        if let Made::Nic(at) = seat.made {
            self.cards.remove(at);
        }
    }

    /// Nobody has this drive any more.
    fn close_drive(&self, drive: &DriveSpec) {
        if let Some(index) = drive.boot_index {
            self.pc.change_boot_paths(|all| all.retain(|(other, _)| *other != index));
        }
        if let Err(error) = self.media.remove(drive) {
            eprintln!("{}: {error}", self.program);
        }
    }

    /// A reset takes what the guest was asked for and did not give.
    pub(super) fn reset_takes_devices(&self) {
        for slot in self.pc.hotplug.iter().flat_map(|hotplug| hotplug.take_wanted()) {
            self.finish_removal(slot);
        }
        for number in self.pc.cpu_hotplug.iter().flat_map(|hotplug| hotplug.take_wanted()) {
            self.remove_processor(number);
        }
        let mut inventory = self.inventory();
        if std::mem::take(&mut inventory.changed) {
            drop(inventory);
            self.tell_firmware();
        }
    }

    /// Takes a device away, with all that is at it.
    fn remove(&self, inventory: &mut Inventory, at: usize) {
        for entry in self.dismantle(inventory, at) {
            let Entry { spec, .. } = &entry;
            let path = entry.path();
            let virtio = matches!(spec.made, Made::Nic(_) | Made::Disk(_) | Made::ScsiHost(_) | Made::Rng(_))
                && spec.model.starts_with("virtio");
            if virtio {
                self.events.emit("DEVICE_DELETED", json!({ "path": format!("{path}/virtio-backend") }));
            }
            self.tell_deleted(&entry);
        }
    }

    /// A device is gone.
    pub(super) fn tell_deleted(&self, entry: &Entry) {
        self.events.emit("DEVICE_DELETED", self.named(entry));
    }

    /// Takes a device off the board and out of all lists; what went, itself the last.
    fn dismantle(&self, inventory: &mut Inventory, at: usize) -> Vec<Entry> {
        let drives: Vec<_> = {
            let made = inventory.entries.get(at).map(|entry| entry.spec.made);
            let goes = |entry: &Entry| match (entry.spec.made, made) {
                (Made::ScsiUnit(drive), Some(Made::ScsiHost(host))) => inventory.collected.drives.is_at(drive, host),
                (mine, made) => Some(mine) == made,
            };
            let gone = inventory.entries.iter().filter(|entry| goes(entry));
            gone.filter_map(|entry| match entry.spec.made {
                Made::Disk(at) | Made::ScsiUnit(at) => inventory.collected.drive(at).cloned(),
                _ => None,
            })
            .collect()
        };
        let cards = inventory.collected.network.nics.clone();
        let gone = inventory.forget(at);
        let chars = &inventory.collected.chars;
        self.parts.chardevs.release_unused(|id| chars.is_used(id));
        for entry in &gone {
            entry.seat.iter().for_each(|seat| self.take_off_board(seat));
            if let Made::Nic(at) = entry.spec.made
                && let Some(index) = cards.get(at).and_then(|card| card.boot_index)
            {
                self.pc.change_boot_paths(|all| all.retain(|(other, _)| *other != index));
            }
        }
        drives.iter().for_each(|drive| self.close_drive(drive));
        gone
    }

    /// Takes a unit of a SCSI host, which the driver hears of and cannot refuse.
    fn take_unit(&self, inventory: &mut Inventory, at: usize, drive: usize) {
        let host = inventory.collected.host_of(drive).and_then(|number| inventory.host(number));
        if let (Some(Host::Virtio(host)), Some(place)) = (host.as_deref(), inventory.collected.scsi_place(drive)) {
            host.unplug(place);
        }
        self.remove(inventory, at);
    }
}

impl Plugging for Machine {
    fn device_add(&self, value: &str) -> Result<(), Fault> {
        if cli::is_processor(value.split(',').next().unwrap_or_default()) {
            let spec = cli::processor_later(&self.config, &self.inventory().collected, value);
            return self.ask_for_processor(spec.map_err(|error| reason(value, &error))?);
        }
        let mut inventory = self.inventory();
        let mut next = inventory.collected.clone();
        let made = next.add_later(value).map_err(|error| reason(value, &error))?;
        self.may_come(&inventory, &next, made)?;
        let mut built = Built::default();
        self.build_one(&inventory, &next, made, &mut built).map_err(|error| reason(value, &error))?;
        self.settle(&mut inventory, next, built);
        Ok(())
    }

    fn device_del(&self, name: &str) -> Result<(), Fault> {
        let mut inventory = self.inventory();
        let at = inventory.entries.iter().position(|entry| entry.is(name));
        let at = at.ok_or_else(|| Fault::of(Class::DeviceNotFound, format!("Device '{name}' not found")))?;
        let now = self.clock.now_ns();
        let Some(entry) = inventory.entries.get_mut(at) else { return Ok(()) };
        if entry.asked.is_some_and(|asked| now < asked.saturating_add(PATIENCE)) {
            return Err(Fault::new(format!("Device {name} is already in the process of unplug")));
        }
        match (entry.spec.made, &entry.seat) {
            (Made::ScsiUnit(drive), _) => self.take_unit(&mut inventory, at, drive),
            (Made::SerialPort { bus, number }, _) => {
                // The driver hears of it and cannot refuse.
                if let Some(bus) = inventory.serial_bus(bus) {
                    bus.unplug(number);
                }
                self.remove(&mut inventory, at);
            }
            (Made::Processor(number), _) => {
                entry.asked = Some(now);
                self.pc.cpu_hotplug.iter().for_each(|hotplug| hotplug.ask(number));
            }
            (_, Some(seat)) => {
                let hotplug = self.pc.hotplug.as_ref().filter(|_| seat.bus == 0);
                match hotplug.filter(|hotplug| hotplug.removable(seat.place.device())) {
                    Some(hotplug) => {
                        let slot = seat.place.device();
                        entry.asked = Some(now);
                        hotplug.ask(slot);
                    }
                    None => return Err(Fault::new(format!("Bus '{}' does not support hotplugging", bus_of(entry)))),
                }
            }
            _ => {
                let model = entry.spec.model;
                return Err(Fault::new(format!("Device '{model}' does not support hotplugging")));
            }
        }
        Ok(())
    }

    fn netdev_add(&self, value: &str) -> Result<(), Fault> {
        self.open_netdev(value)
    }

    fn netdev_del(&self, id: &str) -> Result<(), Fault> {
        self.close_netdev(id)
    }

    fn chardev_add(&self, value: &str) -> Result<Option<String>, Fault> {
        self.open_chardev(value)
    }

    fn chardev_change(&self, id: &str, value: &str) -> Result<Option<String>, Fault> {
        self.swap_chardev(id, value)
    }

    fn chardev_remove(&self, id: &str) -> Result<(), Fault> {
        self.close_chardev(id)
    }

    fn chardev_break(&self, id: &str) -> Result<(), Fault> {
        let chardev = self.inventory().collected.chars.known(id);
        let chardev = chardev.ok_or_else(|| Fault::new(format!("Chardev '{id}' not found")))?;
        self.parts.chardevs.send_break(chardev);
        Ok(())
    }

    fn object_add(&self, value: &str) -> Result<(), Fault> {
        self.make_object(value)
    }

    fn object_del(&self, id: &str) -> Result<(), Fault> {
        match self.inventory().collected.peripherals.objects.remove(id) {
            true => Ok(()),
            false => Err(Fault::new(format!("object '{id}' not found"))),
        }
    }

    fn object_list(&self) -> Vec<ObjectInfo> {
        self.inventory().collected.peripherals.objects.all()
    }

    fn drive_add(&self, value: &str) -> Result<(), Fault> {
        self.open_drive(value)
    }

    fn drive_del(&self, id: &str) -> Result<(), Fault> {
        self.close_unused(id)
    }

    fn node_add(&self, value: &str) -> Result<(), Fault> {
        self.open_node(value)
    }

    fn node_del(&self, name: &str) -> Result<(), Fault> {
        self.close_node(name)
    }

    fn resize(&self, name: &str, bytes: u64) -> Option<Result<(), String>> {
        self.media.image(name).map(|disk| self.disks.resize(&disk, bytes))
    }

    fn live_properties(&self, path: &str) -> Vec<LiveProperty> {
        self.live(path)
    }

    fn set_property(&self, path: &str, name: &str, value: &Value) -> Result<(), Fault> {
        self.set_live(path, name, value)
    }

    fn processor_path(&self, number: u32) -> Option<String> {
        let made = Made::Processor(number);
        self.inventory().entries.iter().find(|entry| entry.spec.made == made).map(Entry::path)
    }

    fn device_list(&self) -> Vec<DeviceInfo> {
        let info = |entry: &Entry| DeviceInfo {
            path: entry.path(),
            model: entry.spec.model,
            keys: entry.spec.keys.clone(),
            late: entry.late,
            movable: entry.seat.is_some()
                || matches!(entry.spec.made, Made::ScsiUnit(_) | Made::SerialPort { .. } | Made::Processor(_)),
        };
        self.inventory().entries.iter().map(info).collect()
    }
}

/// The bus that a device is on.
fn bus_of(entry: &Entry) -> String {
    entry.spec.keys.iter().find(|(key, _)| key == "bus").map_or_else(|| "pci.0".to_owned(), |(_, bus)| bus.clone())
}

/// Why not, without the option's name and value, which the user has just typed.
fn reason(value: &str, error: &anyhow::Error) -> Fault {
    let text = format!("{error:#}");
    let text = text.strip_prefix(&format!("-device {value}: ")).unwrap_or(&text);
    Fault::new(text)
}
