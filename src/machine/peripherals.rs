//! Devices besides disks and network cards: entropy, balloon, crash reports, watchdog.

use super::pc::{Console, Surroundings};
use super::seats::Seat;
use super::storage::Slots;
use crate::cli::config::Made;
use crate::cli::config::peripherals::{
    BalloonSpec, Peripherals as Wanted, Place, RngSpec, SerialBusSpec, SerialPortSpec, VgaSpec,
};
use crate::cli::config::sharing::ShareSpec;
use crate::share;
use anyhow::{Context, Result, anyhow};
use brolga_devices::bus::Device;
use brolga_devices::i6300esb::I6300Esb;
use brolga_devices::pci::bar::Rom;
use brolga_devices::pci::{DevFn, PciFunction};
use brolga_devices::pvpanic::{PanicFunction, PanicPort};
use brolga_devices::services::{CharFrontend, MsiSink};
use brolga_devices::vga::Vga;
use brolga_devices::virtio::Parts;
use brolga_devices::virtio::balloon::{self, BalloonConfig, VirtioBalloon};
use brolga_devices::virtio::ninep::Virtio9p;
use brolga_devices::virtio::pci::VirtioPci;
use brolga_devices::virtio::rng::{Rate, VirtioRng};
use brolga_devices::virtio::serial::{PortSpec, VirtioSerial};
use std::sync::{Arc, Weak};

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
    /// The graphics card.
    pub vga: Option<Arc<Vga>>,
    /// Where devices are.
    pub seats: Vec<Seat>,
}

/// What a device is, and where it goes.
type Sought = (Made, DevFn);

/// Plugs devices in, one after the other.
struct Builder<'a> {
    slots: &'a Slots<'a>,
    plugged: &'a mut Peripherals,
}

/// All devices of `wanted` that have a place on the PCI bus, with the one that they ask for, and what asked for them.
fn all(wanted: &Wanted) -> Vec<(Made, Option<Place>, &str)> {
    let mut all = Vec::new();
    all.extend(wanted.rngs.iter().enumerate().map(|(at, spec)| (Made::Rng(at), spec.place, &*spec.what)));
    all.extend(wanted.balloon.iter().map(|spec| (Made::Balloon, spec.place, &*spec.what)));
    all.extend(wanted.serial_buses.iter().enumerate().map(|(at, spec)| (Made::SerialBus(at), spec.place, &*spec.what)));
    all.extend(wanted.shares.iter().enumerate().map(|(at, spec)| (Made::Share(at), spec.place, &*spec.what)));
    let panics = wanted.panic_functions.iter().enumerate();
    all.extend(panics.map(|(at, spec)| (Made::PanicFunction(at), spec.place, &*spec.what)));
    all.extend(wanted.watchdog.iter().map(|spec| (Made::Watchdog, spec.place, &*spec.what)));
    all
}

impl Peripherals {
    /// Plugs in the devices that name their place, or the others: those that do come before all other cards.
    pub fn plug_in(&mut self, slots: &Slots, placed: bool) -> Result<()> {
        let wanted = &slots.s.config.peripherals;
        if let Some(spec) = wanted.vga.as_ref().filter(|_| placed) {
            Builder { slots, plugged: self }.vga(spec).context("-vga std")?;
        }
        for (made, ..) in all(wanted).into_iter().filter(|(_, place, _)| place.is_some() == placed) {
            self.plug(slots, wanted, made)?;
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

    /// Plugs in one device of `wanted`.
    pub fn plug(&mut self, slots: &Slots, wanted: &Wanted, made: Made) -> Result<()> {
        let Some((_, place, what)) = all(wanted).into_iter().find(|(other, ..)| *other == made) else { return Ok(()) };
        let place = match place {
            Some((device, function)) => DevFn::new(device, function),
            None => {
                let free = slots.pci.free_device();
                DevFn::new(free.ok_or_else(|| anyhow!("{what}: all PCI slots are taken; leave a device out"))?, 0)
            }
        };
        let seated = Builder { slots, plugged: self }.one(wanted, made, place).with_context(|| what.to_owned())?;
        self.seats.extend(seated);
        Ok(())
    }
}

/// A port with its host end, and what has it get input once it is in its place.
fn serial_port(s: &Surroundings, port: &SerialPortSpec) -> (PortSpec, Connect) {
    let Console { backend, connect } = (s.console)(port.chardev);
    (PortSpec { id: port.number, console: port.console, name: port.name.clone(), backend }, connect)
}

/// Makes a device the receiver of input.
type Connect = Box<dyn FnOnce(Weak<dyn CharFrontend>)>;

/// Plugs a port in at a bus that is there.
pub fn plug_port(s: &Surroundings, bus: &VirtioSerial, port: &SerialPortSpec) {
    let (port, connect) = serial_port(s, port);
    connect(Arc::downgrade(&bus.plug(port)));
}

impl Builder<'_> {
    fn one(&mut self, wanted: &Wanted, made: Made, place: DevFn) -> Result<Option<Seat>> {
        let (slots, s) = (self.slots, self.slots.s);
        let place = (made, place);
        let built = match made {
            Made::Rng(at) => wanted.rngs.get(at).map(|spec| self.rng(at, spec, place)),
            Made::Balloon => wanted.balloon.as_ref().map(|spec| self.balloon(spec, place)),
            Made::SerialBus(at) => wanted.serial_buses.get(at).map(|spec| self.serial_bus(at, spec, place)),
            Made::Share(at) => wanted.shares.get(at).map(|spec| self.share(at, spec, place)),
            Made::PanicFunction(at) => {
                let function = PanicFunction::new(slots.bus, s.power.clone())?;
                Some(self.insert(place, format!("pvpanic-pci.{at}"), function))
            }
            Made::Watchdog => {
                let watchdog = I6300Esb::new(slots.bus, s.clock.clone(), s.timers, s.power.clone())?;
                Some(self.insert(place, "i6300esb".to_owned(), watchdog))
            }
            _ => None,
        };
        built.transpose()
    }

    fn insert<D: Device + PciFunction + 'static>(
        &self,
        (made, place): Sought,
        name: String,
        device: Arc<D>,
    ) -> Result<Seat> {
        Ok(Seat { made, bus: 0, place, name }.take(self.slots.bus, self.slots.pci, device)?)
    }

    fn virtio(&self, place: Sought, name: String, parts: Parts) -> Result<Seat> {
        let Slots { bus, piix3, apics, .. } = self.slots;
        let messages = Arc::clone(apics) as Arc<dyn MsiSink>;
        self.insert(place, name, VirtioPci::new(bus, parts, piix3.intx(place.1.device(), PIN), messages)?)
    }

    fn vga(&mut self, spec: &VgaSpec) -> Result<()> {
        let rom = match &spec.rom {
            Some(path) => {
                let image = std::fs::read(path).with_context(|| format!("{}: cannot be read", path.display()))?;
                let rom = Rom::new(&image);
                Some(rom.with_context(|| format!("{}: this is no ROM; use another with -L", path.display()))?)
            }
            None => None,
        };
        let card = Vga::new(self.slots.bus, rom, self.slots.s.video.clone())?;
        self.plugged.vga = Some(card.clone());
        self.insert((Made::Board, VGA), "vga".to_owned(), card)?;
        Ok(())
    }

    fn rng(&mut self, index: usize, spec: &RngSpec, place: Sought) -> Result<Seat> {
        let s = self.slots.s;
        let source = (s.entropy)(&spec.source)?;
        let rate = spec.max_bytes.map(|bytes| Rate { bytes, period_ms: spec.period_ms });
        let parts = VirtioRng::parts(source, rate, s.memory.clone(), s.clock.clone(), s.timers, s.work);
        self.virtio(place, format!("virtio-rng.{index}"), parts)
    }

    fn serial_bus(&mut self, index: usize, spec: &SerialBusSpec, place: Sought) -> Result<Seat> {
        let s = self.slots.s;
        let (mut ports, mut connections) = (Vec::new(), Vec::new());
        for port in &spec.ports {
            let (port, connect) = serial_port(s, port);
            ports.push(port);
            connections.push(connect);
        }
        let (device, parts) = VirtioSerial::new(ports, spec.max_ports, s.memory.clone(), s.work);
        let seat = self.virtio(place, format!("virtio-serial.{index}"), parts)?;
        self.plugged.serial_buses.push((index, device.clone()));
        for (connect, frontend) in connections.into_iter().zip(device.frontends()) {
            connect(Arc::downgrade(&frontend));
        }
        Ok(seat)
    }

    fn share(&mut self, index: usize, spec: &ShareSpec, place: Sought) -> Result<Seat> {
        let s = self.slots.s;
        let parts = Virtio9p::parts(&spec.tag, share::MOST, share::open(spec)?, s.memory.clone(), s.work);
        self.virtio(place, format!("virtio-9p.{index}"), parts)
    }

    fn balloon(&mut self, spec: &BalloonSpec, place: Sought) -> Result<Seat> {
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
