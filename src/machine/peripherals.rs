//! Devices besides disks and network cards: entropy, balloon, crash reports, watchdog.

use super::pc::Console;
use super::storage::Slots;
use crate::cli::config::peripherals::{BalloonSpec, Place, RngSpec, SerialBusSpec, VgaSpec};
use crate::cli::config::sharing::ShareSpec;
use crate::share;
use anyhow::{Context, Result, anyhow};
use brolga_devices::bus::Device;
use brolga_devices::i6300esb::I6300Esb;
use brolga_devices::pci::bar::Rom;
use brolga_devices::pci::{DevFn, PciFunction};
use brolga_devices::pvpanic::{PanicFunction, PanicPort};
use brolga_devices::services::MsiSink;
use brolga_devices::vga::Vga;
use brolga_devices::virtio::Parts;
use brolga_devices::virtio::balloon::{self, BalloonConfig, VirtioBalloon};
use brolga_devices::virtio::ninep::Virtio9p;
use brolga_devices::virtio::pci::VirtioPci;
use brolga_devices::virtio::rng::{Rate, VirtioRng};
use brolga_devices::virtio::serial::{PortSpec, VirtioSerial};
use std::sync::Arc;

/// Where a PC has its graphics card.
const VGA: DevFn = DevFn::new(2, 0);
/// INTA#.
const PIN: u8 = 1;

/// What is plugged in and of use to the rest of the machine.
#[derive(Default)]
pub struct Peripherals {
    /// The memory balloon.
    pub balloon: Option<Arc<VirtioBalloon>>,
    /// Buses of serial ports, in the configuration's order.
    pub serial_buses: Vec<(usize, Arc<VirtioSerial>)>,
}

/// Plugs devices in, one after the other.
struct Builder<'a> {
    slots: &'a Slots<'a>,
    /// Those that name their place; otherwise the others.
    placed: bool,
    plugged: &'a mut Peripherals,
}

impl Peripherals {
    /// Plugs in the devices that name their place, or the others: those that do come before all other cards.
    pub fn plug_in(&mut self, slots: &Slots, placed: bool) -> Result<()> {
        let wanted = &slots.s.config.peripherals;
        let mut b = Builder { slots, placed, plugged: self };
        if let Some(spec) = wanted.vga.as_ref().filter(|_| placed) {
            b.vga(spec).context("-vga std")?;
        }
        for (index, spec) in wanted.rngs.iter().enumerate() {
            b.at(spec.place, &spec.what, |b, place| b.rng(index, spec, place))?;
        }
        if let Some(spec) = &wanted.balloon {
            b.at(spec.place, &spec.what, |b, place| b.balloon(spec, place))?;
        }
        for (index, spec) in wanted.serial_buses.iter().enumerate() {
            b.at(spec.place, &spec.what, |b, place| b.serial_bus(index, spec, place))?;
        }
        for (index, spec) in wanted.shares.iter().enumerate() {
            b.at(spec.place, &spec.what, |b, place| b.share(index, spec, place))?;
        }
        for (index, spec) in wanted.panic_functions.iter().enumerate() {
            b.at(spec.place, &spec.what, |b, place| {
                let function = PanicFunction::new(b.slots.bus, b.slots.s.power.clone())?;
                b.insert(place, format!("pvpanic-pci.{index}"), function)
            })?;
        }
        if let Some(spec) = &wanted.watchdog {
            b.at(spec.place, &spec.what, |b, place| {
                let s = b.slots.s;
                let watchdog = I6300Esb::new(b.slots.bus, s.clock.clone(), s.timers, s.power.clone())?;
                b.insert(place, "i6300esb".to_owned(), watchdog)
            })?;
        }
        if let Some(port) = wanted.panic_port.filter(|_| placed) {
            let device = PanicPort::new(slots.s.power.clone());
            slots
                .bus
                .register_pio(port, 1, "pvpanic", device.clone())
                .with_context(|| format!("-device pvpanic: ioport={port:#x} is not free; choose another"))?;
            slots.bus.add_device("pvpanic", device);
        }
        Ok(())
    }
}

impl Builder<'_> {
    /// Finds the place of the device that `what` asked for, and has it `add`ed there, if its turn is now.
    fn at(&mut self, place: Option<Place>, what: &str, add: impl FnOnce(&mut Self, DevFn) -> Result<()>) -> Result<()> {
        if place.is_some() != self.placed {
            return Ok(());
        }
        let place = match place {
            Some((device, function)) => DevFn::new(device, function),
            None => {
                let free = self.slots.pci.free_device();
                DevFn::new(free.ok_or_else(|| anyhow!("{what}: all PCI slots are taken; leave a device out"))?, 0)
            }
        };
        add(self, place).with_context(|| what.to_owned())
    }

    fn insert<D: Device + PciFunction + 'static>(&self, place: DevFn, name: String, device: Arc<D>) -> Result<()> {
        self.slots.pci.insert(place, device.clone())?;
        self.slots.bus.add_device(name, device);
        Ok(())
    }

    fn virtio(&self, place: DevFn, name: String, parts: Parts) -> Result<()> {
        let Slots { bus, piix3, apics, .. } = self.slots;
        let messages = Arc::clone(apics) as Arc<dyn MsiSink>;
        self.insert(place, name, VirtioPci::new(bus, parts, piix3.intx(place.device(), PIN), messages)?)
    }

    fn vga(&self, spec: &VgaSpec) -> Result<()> {
        let rom = match &spec.rom {
            Some(path) => {
                let image = std::fs::read(path).with_context(|| format!("{}: cannot be read", path.display()))?;
                let rom = Rom::new(&image);
                Some(rom.with_context(|| format!("{}: this is no ROM; use another with -L", path.display()))?)
            }
            None => None,
        };
        self.insert(VGA, "vga".to_owned(), Vga::new(self.slots.bus, rom, self.slots.s.video.clone())?)
    }

    fn rng(&mut self, index: usize, spec: &RngSpec, place: DevFn) -> Result<()> {
        let s = self.slots.s;
        let source = (s.entropy)(&spec.source)?;
        let rate = spec.max_bytes.map(|bytes| Rate { bytes, period_ms: spec.period_ms });
        let parts = VirtioRng::parts(source, rate, s.memory.clone(), s.clock.clone(), s.timers, s.work);
        self.virtio(place, format!("virtio-rng.{index}"), parts)
    }

    fn serial_bus(&mut self, index: usize, spec: &SerialBusSpec, place: DevFn) -> Result<()> {
        let s = self.slots.s;
        let (mut ports, mut connections) = (Vec::new(), Vec::new());
        for port in &spec.ports {
            let Console { backend, connect } = (s.console)(port.chardev);
            ports.push(PortSpec { id: port.number, console: port.console, name: port.name.clone(), backend });
            connections.push(connect);
        }
        let (device, parts) = VirtioSerial::new(ports, spec.max_ports, s.memory.clone(), s.work);
        self.virtio(place, format!("virtio-serial.{index}"), parts)?;
        self.plugged.serial_buses.push((index, device.clone()));
        for (connect, frontend) in connections.into_iter().zip(device.frontends()) {
            connect(Arc::downgrade(&frontend));
        }
        Ok(())
    }

    fn share(&mut self, index: usize, spec: &ShareSpec, place: DevFn) -> Result<()> {
        let s = self.slots.s;
        let parts = Virtio9p::parts(&spec.tag, share::MOST, share::open(spec)?, s.memory.clone(), s.work);
        self.virtio(place, format!("virtio-9p.{index}"), parts)
    }

    fn balloon(&mut self, spec: &BalloonSpec, place: DevFn) -> Result<()> {
        let s = self.slots.s;
        let BalloonSpec { deflate_on_oom, reporting, polling_s, .. } = *spec;
        let surroundings = balloon::Surroundings {
            ram: s.config.ram,
            dma: s.memory.clone(),
            memory: s.memory.clone(),
            clock: s.clock.clone(),
            timers: s.timers,
            work: s.work,
        };
        let (device, parts) = VirtioBalloon::new(BalloonConfig { deflate_on_oom, reporting, polling_s }, surroundings);
        self.plugged.balloon = Some(device);
        self.virtio(place, "virtio-balloon".to_owned(), parts)
    }
}
