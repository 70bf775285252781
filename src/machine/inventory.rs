//! The devices that users gave to a machine, where they are, and what is on their way to come or go.

use super::nics;
use super::peripherals::Peripherals;
use super::scsi::Host;
use super::seats::Seat;
use super::storage::Drives;
use crate::cli::Devices;
use crate::cli::config::{Config, DeviceSpec, Made};
use brolga_devices::virtio::balloon::VirtioBalloon;
use brolga_devices::virtio::serial::VirtioSerial;
use std::sync::Arc;

/// A device that a user gave.
pub struct Entry {
    /// How it was given.
    pub spec: DeviceSpec,
    /// Its number among those without an id.
    pub number: Option<usize>,
    /// The PCI slot that it sits in, if it does in one.
    pub seat: Option<Seat>,
    /// It came while the machine was there.
    pub late: bool,
    /// When the guest was asked for it, in nanoseconds of guest time.
    pub asked: Option<u64>,
}

impl Entry {
    /// Its place in the tree of objects.
    pub fn path(&self) -> String {
        match (&self.spec.id, self.number) {
            (Some(id), _) => format!("/machine/peripheral/{id}"),
            (None, number) => format!("/machine/peripheral-anon/device[{}]", number.unwrap_or(0)),
        }
    }

    /// Whether users call it `name`: by its id, or by its place in the tree.
    pub fn is(&self, name: &str) -> bool {
        self.spec.id.as_deref() == Some(name) || self.path() == name
    }
}

/// All of them.
pub struct Inventory {
    /// What more of them may refer to.
    pub collected: Devices,
    /// The devices.
    pub entries: Vec<Entry>,
    /// SCSI hosts by their numbers.
    pub hosts: Vec<(usize, Arc<Host>)>,
    /// Buses of serial ports by their numbers.
    pub serial_buses: Vec<(usize, Arc<VirtioSerial>)>,
    /// The memory balloon.
    pub balloon: Option<Arc<VirtioBalloon>>,
    /// Where devices sit that no option of their own brought: `-drive if=virtio`, the usual network card.
    loose: Vec<Seat>,
    /// Devices without an id so far.
    nameless: usize,
    /// Something came or went since firmware was last told.
    pub changed: bool,
}

impl Inventory {
    /// The devices of `config`.
    pub fn new(config: &Config) -> Self {
        let (entries, hosts, serial_buses, loose) = Default::default();
        let collected = (*config.collected).clone();
        let mut this =
            Self { collected, entries, hosts, serial_buses, balloon: None, loose, nameless: 0, changed: false };
        config.devices.iter().for_each(|spec| this.enter(spec.clone(), false));
        this
    }

    /// One more device.
    pub fn enter(&mut self, spec: DeviceSpec, late: bool) {
        let number = spec.id.is_none().then_some(self.nameless);
        self.nameless += usize::from(number.is_some());
        self.entries.push(Entry { spec, number, seat: None, late, asked: None });
    }

    /// Takes note of what was plugged in.
    pub fn seat(&mut self, cards: &nics::Plugged, drives: &mut Drives, peripherals: &mut Peripherals) {
        for seat in cards.seats.iter().chain(&drives.seats).chain(&peripherals.seats) {
            match self.entries.iter_mut().find(|entry| entry.spec.made == seat.made) {
                Some(entry) => entry.seat = Some(seat.clone()),
                None => self.loose.push(seat.clone()),
            }
        }
        self.hosts.append(&mut drives.hosts);
        self.serial_buses.append(&mut peripherals.serial_buses);
        self.balloon = peripherals.balloon.take().or(self.balloon.take());
    }

    /// The SCSI host with this number.
    pub fn host(&self, number: usize) -> Option<Arc<Host>> {
        self.hosts.iter().find(|(other, _)| *other == number).map(|(_, host)| host.clone())
    }

    /// The bus of serial ports with this number.
    pub fn serial_bus(&self, number: usize) -> Option<Arc<VirtioSerial>> {
        self.serial_buses.iter().find(|(other, _)| *other == number).map(|(_, bus)| bus.clone())
    }

    /// The device in a slot of PCI bus 0.
    pub fn in_slot(&self, slot: u8) -> Option<usize> {
        let there = |entry: &Entry| entry.seat.as_ref().is_some_and(|s| s.bus == 0 && s.place.device() == slot);
        self.entries.iter().position(there)
    }

    /// Takes out the seat of a device in a slot of PCI bus 0 that no option of its own brought.
    pub fn take_loose(&mut self, slot: u8) -> Option<Seat> {
        let at = self.loose.iter().position(|seat| seat.bus == 0 && seat.place.device() == slot)?;
        Some(self.loose.remove(at))
    }

    /// Forgets a device, and all that is at it; the devices that were forgotten, itself the last.
    pub fn forget(&mut self, at: usize) -> Vec<Entry> {
        let mut gone = Vec::new();
        let Some(made) = self.entries.get(at).map(|entry| entry.spec.made) else { return gone };
        let mut index = 0;
        while let Some(entry) = self.entries.get(index) {
            let at_it = match (entry.spec.made, made) {
                (Made::ScsiUnit(drive), Made::ScsiHost(host)) => self.collected.drives.is_at(drive, host),
                (Made::SerialPort { bus, .. }, Made::SerialBus(other)) => bus == other,
                _ => false,
            };
            if at_it {
                gone.push(self.entries.remove(index));
            } else {
                index += 1;
            }
        }
        if let Some(at) = self.entries.iter().position(|entry| entry.spec.made == made) {
            gone.push(self.entries.remove(at));
        }
        gone.iter().for_each(|entry| self.collected.forget(entry.spec.made));
        match made {
            Made::ScsiHost(number) => self.hosts.retain(|(other, _)| *other != number),
            Made::SerialBus(number) => self.serial_buses.retain(|(other, _)| *other != number),
            Made::Balloon => self.balloon = None,
            _ => {}
        }
        self.changed = true;
        gone
    }
}
