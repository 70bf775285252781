//! The i440FX PC: which devices it has, at which addresses, with which interrupts. No other place knows.

use super::isa_irq::{self, FROM_RTC, FROM_TIMER, IsaInterrupts, LegacyReplacement, REPLACED, SharedInterrupt};
use super::signals::CpuLink;
use crate::cli::config::{CharId, Config};
use crate::clock::GuestClock;
use anyhow::Result;
use brolga_devices::bus::{Bus, Device};
use brolga_devices::hpet::{self, Hpet, HpetWiring};
use brolga_devices::ioapic::IoApic;
use brolga_devices::lapic::{ApicCpu, ApicFeatures, EoiSink, LocalApics, PIN_INTR};
use brolga_devices::pic::Pic;
use brolga_devices::pit::Pit;
use brolga_devices::services::{CharBackend, CharFrontend, IrqLine, PowerSink, TimerService};
use brolga_devices::uart::IsaSerial;
use std::sync::{Arc, Weak};

/// I/O APIC registers.
pub const IOAPIC_BASE: u64 = 0xFEC0_0000;
const IOAPIC_LEN: u64 = 0x1000;
/// Inputs of the I/O APIC.
const IOAPIC_PINS: u32 = 24;
/// HPET registers.
pub const HPET_BASE: u64 = 0xFED0_0000;
/// Comparators of the HPET.
const HPET_TIMERS: usize = 3;
/// I/O APIC inputs that HPET timers may use: 2 (nobody's in this mode), and 16 to 23, which no device has.
const HPET_ROUTES: u32 = 0xFF_0004;
/// First port of COM1 to COM4.
const SERIAL_PORTS: [u16; 4] = [0x3F8, 0x2F8, 0x3E8, 0x2E8];

/// A device's end of a host character device.
pub struct Console {
    /// Where the device writes.
    pub backend: Arc<dyn CharBackend>,
    /// Makes a device the receiver of input.
    pub connect: Box<dyn FnOnce(Weak<dyn CharFrontend>)>,
}

/// What the board is built from and connected to.
pub struct Surroundings<'a> {
    /// What was asked for.
    pub config: &'a Config,
    /// Guest time.
    pub clock: Arc<GuestClock>,
    /// Timers.
    pub timers: &'a dyn TimerService,
    /// Who acts on resets and power-off.
    pub power: Arc<dyn PowerSink>,
    /// The processors.
    pub links: &'a [Arc<CpuLink>],
    /// Host ends of character devices.
    pub console: &'a dyn Fn(CharId) -> Console,
}

/// The board, as the rest of the machine uses it.
pub struct Pc {
    /// All devices and their addresses.
    pub bus: Arc<Bus>,
    /// Local APICs: each processor reaches its own, so they are not on the bus's map.
    pub apics: Arc<LocalApics>,
    /// The 8259 pair.
    pub pic: Arc<Pic>,
    /// The I/O APIC.
    pub ioapic: Arc<IoApic>,
}

/// Adds devices to the bus one after the other.
struct Builder<'a> {
    s: &'a Surroundings<'a>,
    bus: Arc<Bus>,
    isa: Arc<IsaInterrupts>,
}

impl Pc {
    /// Builds the board.
    pub fn build(s: &Surroundings) -> Result<Self> {
        let bus = Arc::new(Bus::new());
        let cpus = s.links.iter().enumerate().map(|(i, link)| ApicCpu { apic_id: i as u32, signals: link.clone() });
        let apics = LocalApics::new(ApicFeatures::default(), cpus.collect(), s.clock.clone(), s.timers);
        let ioapic = IoApic::new(apics.clone());
        let eoi: Arc<dyn EoiSink> = ioapic.clone();
        apics.connect_eoi(Arc::downgrade(&eoi));
        let pic = Pic::new(IrqLine::new(apics.clone(), PIN_INTR));
        let isa = IsaInterrupts::new(pic.clone(), ioapic.clone());
        let b = Builder { s, bus, isa };
        b.interrupt_controllers(&apics, &ioapic, &pic)?;
        b.timers(&apics, &ioapic)?;
        b.serial_ports()?;
        Ok(Self { bus: b.bus, apics, pic, ioapic })
    }
}

impl Builder<'_> {
    fn interrupt_controllers(&self, apics: &Arc<LocalApics>, ioapic: &Arc<IoApic>, pic: &Arc<Pic>) -> Result<()> {
        let bus = &self.bus;
        bus.register_pio(0x20, 2, "pic", pic.master_ports())?;
        bus.register_pio(0xA0, 2, "pic", pic.slave_ports())?;
        bus.register_pio(0x4D0, 2, "elcr", pic.elcr_ports())?;
        bus.add_device("pic", pic.clone());
        bus.register_mmio(IOAPIC_BASE, IOAPIC_LEN, "ioapic", ioapic.clone())?;
        bus.add_device("ioapic", ioapic.clone());
        bus.add_device("apic", apics.clone());
        Ok(())
    }

    fn timers(&self, apics: &Arc<LocalApics>, ioapic: &Arc<IoApic>) -> Result<()> {
        let (bus, s) = (&self.bus, self.s);
        let legacy = LegacyReplacement::new(&self.isa);
        let pit = Pit::new(legacy.line(FROM_TIMER), s.clock.clone(), s.timers);
        bus.register_pio(0x40, 4, "pit", pit.ports())?;
        bus.register_pio(0x61, 1, "speaker", pit.speaker_port())?;
        bus.add_device("pit", pit);
        if s.config.machine.hpet {
            let wiring = HpetWiring {
                routes: (0..IOAPIC_PINS).map(|pin| IrqLine::new(ioapic.clone(), pin)).collect(),
                route_mask: HPET_ROUTES,
                legacy_timer: self.isa_line(isa_irq::TIMER),
                legacy_rtc: self.isa_line(isa_irq::RTC),
                legacy_mode: legacy.line(REPLACED),
                msi: apics.clone(),
            };
            let hpet = Hpet::new(HPET_TIMERS, wiring, s.clock.clone(), s.timers);
            bus.register_mmio(HPET_BASE, hpet::WINDOW, "hpet", hpet.clone())?;
            bus.add_device("hpet", hpet);
        }
        Ok(())
    }

    fn serial_ports(&self) -> Result<()> {
        let (bus, s) = (&self.bus, self.s);
        // COM1 and COM3 have one interrupt, COM2 and COM4 the other.
        let shared = [4, 3].map(|irq| SharedInterrupt::new(self.isa_line(irq)));
        for (i, id) in s.config.serials.iter().enumerate() {
            let Some(id) = id else { continue };
            let Console { backend, connect } = (s.console)(*id);
            let port = IsaSerial::new(shared[i % 2].line(i as u32), backend, s.clock.clone(), s.timers);
            bus.register_pio(SERIAL_PORTS[i], 8, &format!("serial{i}"), port.ports())?;
            bus.add_device(format!("serial{i}"), port.clone());
            let frontend: Arc<dyn CharFrontend> = port;
            connect(Arc::downgrade(&frontend));
        }
        Ok(())
    }

    fn isa_line(&self, irq: u32) -> IrqLine {
        IrqLine::new(self.isa.clone(), irq)
    }
}
