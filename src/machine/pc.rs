//! The i440FX PC: which devices it has, at which addresses, with which interrupts. No other place knows.

use super::acpi::AcpiConfig;
use super::bridges::{self, Bridged};
use super::dma::GuestMemory;
use super::isa_irq::{self, FROM_RTC, FROM_TIMER, IsaInterrupts, LegacyReplacement, REPLACED, SharedInterrupt};
use super::layout::Layout;
use super::nics;
use super::peripherals::Peripherals;
use super::shadow::{self, Shadow};
use super::signals::{CpuLink, SmiLine};
use super::storage::{self, Drives, IDE_CHANNELS, IDE_FUNCTION, Slots};
use super::video::VideoMemory;
use super::{bars, floppy, parts};
use crate::cli::config::peripherals::EntropySource;
use crate::cli::config::{Attachment, CharId, Config, DriveSpec};
use crate::clock::GuestClock;
use anyhow::{Context, Result};
use brolga_devices::a20::A20;
use brolga_devices::acpi_pm::{AcpiPm, AcpiPmConfig, GPE_BLOCK_LEN, SleepTypes};
use brolga_devices::bus::Bus;
use brolga_devices::cpu_hotplug::{self, CpuHotplug};
use brolga_devices::debug_ports::{DebugConsole, DebugExit, Port92, PostPort};
use brolga_devices::fpu_error::FpuError;
use brolga_devices::fw_cfg::{self, FwCfg};
use brolga_devices::hpet::{self, Hpet, HpetWiring};
use brolga_devices::i8042::I8042;
use brolga_devices::ioapic::IoApic;
use brolga_devices::isa_dma::{self, IsaDma};
use brolga_devices::lapic::{ApicCpu, ApicFeatures, EoiSink, LocalApics, PIN_INTR};
use brolga_devices::pci::hotplug::{self, PciHotplug};
use brolga_devices::pci::i440fx::I440fx;
use brolga_devices::pci::mechanism::ConfigMechanism;
use brolga_devices::pci::piix3::Piix3;
use brolga_devices::pci::piix4_pm::Piix4Pm;
use brolga_devices::pci::{DevFn, PciBus};
use brolga_devices::pic::Pic;
use brolga_devices::pit::Pit;
use brolga_devices::rtc::{Rtc, cmos};
use brolga_devices::services::{
    CharBackend, CharFrontend, Disk, Entropy, IrqLine, IrqSink, NetBackend, PowerSink, TimerService, WorkService,
};
use brolga_devices::uart::IsaSerial;
use brolga_jit::cpuid::{CpuModel, Dynamic, Feature};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, Weak};

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

/// PCI functions of the chipset.
const HOST_BRIDGE: DevFn = DevFn::new(0, 0);
const ISA_BRIDGE: DevFn = DevFn::new(1, 0);
const PM_FUNCTION: DevFn = DevFn::new(1, 3);
/// Attributes of memory from 0xC0000 to 0xFFFFF (82441FX datasheet 3.2.17).
const PAM: Range<u8> = 0x59..0x60;
/// Routes of PCI interrupt lines A to D (82371SB datasheet, PIRQRCA to PIRQRCD).
const PIRQ_ROUTES: u8 = 0x60;
/// Base of the power management ports, and their enable bit (82371AB datasheet 7.1.10, 7.1.24).
const PMBASE: u8 = 0x40;
const PMREGMISC: u8 = 0x80;
/// What firmware is told.
const FW_CFG: u16 = 0x510;
/// Edge or level of ISA interrupts.
const ELCR: u16 = 0x4D0;
/// The engine has no system management mode.
const SMM: bool = false;
/// Timing registers of both, where firmware turns them on (82371SB datasheet 2.6.8).
const IDE_TIMING: u8 = 0x40;
/// Mode and mask of the second DMA controller's first channel.
const DMA_MODE: u16 = 0xD6;
const DMA_MASK: u16 = 0xD4;
/// Power management ports, as the ACPI tables have them.
const PM_BASE: u16 = 0x600;
/// General purpose events.
const GPE_BASE: u16 = 0xAFE0;
/// ISA interrupts of the keyboard controller.
const KEYBOARD: u32 = 1;
const MOUSE: u32 = 12;
/// ISA interrupt of x87 errors.
const FPU_ERROR: u32 = 13;
/// ISA interrupt of ACPI events.
const SCI: u32 = 9;
/// Sleep type that powers off.
const S5_TYPE: u8 = 0;
const PM_TIMER_32_BIT: bool = false;
/// Memory addresses of PCI devices: from the end of the largest low RAM to the I/O APIC.
const PCI_WINDOW: Range<u32> = 0xC000_0000..0xFEC0_0000;
/// Ports of PCI devices.
const PCI_PORTS: Range<u32> = 0xC000..0x1_0000;
/// Where PCI interrupt lines A to D go.
const PCI_INTERRUPTS: [u8; 4] = [10, 10, 11, 11];

/// A device's end of a host character device.
pub struct Console {
    /// Where the device writes.
    pub backend: Arc<dyn CharBackend>,
    /// Makes a device the receiver of input.
    pub connect: Box<dyn FnOnce(Weak<dyn CharFrontend>)>,
}

/// Opens the image of a drive, if it has one.
pub type OpenDisk<'a> = dyn Fn(&DriveSpec) -> Result<Option<Arc<dyn Disk>>> + 'a;

/// Opens a source of random bytes.
pub type OpenEntropy<'a> = dyn Fn(&EntropySource) -> Result<Arc<dyn Entropy>> + 'a;

/// What the board is built from and connected to.
pub struct Surroundings<'a> {
    /// What was asked for.
    pub config: &'a Config,
    /// Where memory lies.
    pub layout: Layout,
    /// What bus masters reach.
    pub memory: Arc<GuestMemory>,
    /// RAM before ROM.
    pub shadow: Arc<Shadow>,
    /// The graphics card's memory.
    pub video: Arc<VideoMemory>,
    /// Guest time.
    pub clock: Arc<GuestClock>,
    /// Timers.
    pub timers: &'a dyn TimerService,
    /// Doorbells to the I/O thread.
    pub work: &'a dyn WorkService,
    /// Host ends of network cards, by their numbers.
    pub netdev: &'a dyn Fn(usize) -> Option<Arc<dyn NetBackend>>,
    /// Who acts on resets and power-off.
    pub power: Arc<dyn PowerSink>,
    /// The processors.
    pub links: &'a [Arc<CpuLink>],
    /// Opens the image of a drive.
    pub disk: &'a OpenDisk<'a>,
    /// Opens a source of random bytes.
    pub entropy: &'a OpenEntropy<'a>,
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
    /// Where x87 errors go while CR0.NE is clear.
    pub fpu_error: Arc<FpuError>,
    /// The A20 gate, which the engine applies.
    pub a20: Arc<A20>,
    /// The I/O APIC.
    pub ioapic: Arc<IoApic>,
    /// What ACPI tables say about all this.
    pub acpi: AcpiConfig,
    /// What firmware is told.
    pub fw_cfg: Arc<FwCfg>,
    /// Devices with a place in the boot order, and what firmware calls them.
    boot_paths: Mutex<Vec<(u32, String)>>,
    /// Network cards.
    pub cards: nics::Plugged,
    /// The drives in their places.
    pub drives: Drives,
    /// Other devices.
    pub peripherals: Peripherals,
    /// Bridges, in the configuration's order.
    pub bridges: Vec<Bridged>,
    /// Tells the guest of devices that come and go. Without ACPI they stay.
    pub hotplug: Option<Arc<PciHotplug>>,
    /// Tells the guest of processors that come and go, where some may.
    pub cpu_hotplug: Option<Arc<CpuHotplug>>,
    /// The keyboard and mouse controller.
    pub i8042: Arc<I8042>,
    /// PCI functions by their places.
    pub pci: Arc<PciBus>,
    /// The clock.
    pub rtc: Arc<Rtc>,
    /// Power management.
    pub pm: Arc<AcpiPm>,
    /// The ISA bridge, where PCI interrupts go.
    pub piix3: Arc<Piix3>,
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
        let topology = s.config.topology;
        let cpus = (0..).zip(s.links).map(|(i, link)| ApicCpu { apic_id: topology.apic_id(i), signals: link.clone() });
        let apics = LocalApics::new(apic_features(&s.config.cpu), cpus.collect(), s.clock.clone(), s.timers);
        let ioapic = IoApic::new(apics.clone());
        let eoi: Arc<dyn EoiSink> = ioapic.clone();
        apics.connect_eoi(Arc::downgrade(&eoi));
        let pic = Pic::new(IrqLine::new(apics.clone(), PIN_INTR));
        let isa = IsaInterrupts::new(pic.clone(), ioapic.clone());
        let b = Builder { s, bus, isa };
        b.interrupt_controllers(&apics, &ioapic, &pic)?;
        let rtc = b.timers(&apics, &ioapic)?;
        b.serial_ports()?;
        let pm = b.power_management()?;
        let (pci, piix3) = b.pci(&pm)?;
        let isa = [IDE_CHANNELS[0].2, IDE_CHANNELS[1].2].map(|irq| b.isa_line(irq));
        let slots = Slots { s, bus: &b.bus, pci: &pci, piix3: &piix3, apics: &apics, bridges: &[] };
        let bridges = bridges::plug_in(&slots)?;
        let slots = Slots { bridges: &bridges, ..slots };
        let mut peripherals = Peripherals::default();
        peripherals.plug_in(&slots, true)?;
        let cards = nics::plug_in(&slots)?;
        let mut drives = storage::plug_in(&slots, isa)?;
        let dma = b.isa_dma()?;
        floppy::plug_in(s, &b.bus, (&dma, b.isa_line(floppy::IRQ)), &rtc, &mut drives)?;
        peripherals.plug_in(&slots, false)?;
        let seats = cards.seats.iter().chain(&drives.seats).chain(&peripherals.seats).filter(|seat| seat.bus == 0);
        let taken = pci.functions().into_iter().map(|(place, _)| place.device());
        let fixed_slots = parts::fixed_slots(taken, seats.map(|seat| seat.place.device()));
        let hotplug = b.hotplug(&pm, &fixed_slots)?;
        let cpu_hotplug = b.cpu_hotplug(&pm)?;
        let boot_paths = cards.boot_paths.iter().chain(&drives.boot_paths).cloned().collect();
        let (a20, i8042) = b.keyboard()?;
        let fpu_error = b.fpu_error()?;
        b.debug_ports()?;
        let fw_cfg = b.fw_cfg()?;
        let acpi = b.acpi_config(fixed_slots);
        Ok(Self {
            bus: b.bus,
            apics,
            pic,
            fpu_error,
            a20,
            ioapic,
            acpi,
            fw_cfg,
            boot_paths: Mutex::new(boot_paths),
            cards,
            drives,
            peripherals,
            bridges,
            hotplug,
            cpu_hotplug,
            i8042,
            pci,
            rtc,
            pm,
            piix3,
        })
    }

    /// Devices with a place in the boot order, and what firmware calls them.
    pub fn boot_paths(&self) -> Vec<(u32, String)> {
        self.boot_paths.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One more device has a place in the boot order, or has it no longer.
    pub fn change_boot_paths(&self, change: impl FnOnce(&mut Vec<(u32, String)>)) {
        change(&mut self.boot_paths.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Makes all memory below 1 MiB RAM, as firmware does before it looks for more.
    pub fn open_shadow_ram(&self) {
        for register in PAM {
            self.pci.config_write(HOST_BRIDGE, register, 1, 0x33);
        }
    }

    /// Says in CMOS what firmware tries in which order: letters as in `-boot`.
    pub fn set_boot_order(&self, order: &str) {
        let code = |letter: u8| match letter {
            b'a' | b'b' => 1,
            b'c' => 2,
            b'd' => 3,
            _ => 4,
        };
        let mut codes = order.bytes().map(code).chain([0; 3]);
        let [first, second, third] = [(); 3].map(|()| codes.next().unwrap_or(0));
        self.rtc.set_cmos(cmos::BOOT_ORDER, second << 4 | first);
        self.rtc.set_cmos(cmos::BOOT_ORDER_THIRD, third << 4);
    }

    /// Sets the board up as firmware does before it starts a kernel: what the ACPI tables say becomes true.
    pub fn set_up_as_firmware(&self) {
        self.pci.config_write(PM_FUNCTION, PMBASE, 4, PM_BASE.into());
        self.pci.config_write(PM_FUNCTION, PMREGMISC, 1, 1);
        for (register, irq) in (PIRQ_ROUTES..).zip(PCI_INTERRUPTS) {
            self.pci.config_write(ISA_BRIDGE, register, 1, irq.into());
        }
        let level = PCI_INTERRUPTS.iter().fold(1 << SCI, |bits, irq| bits | 1u32 << irq);
        self.bus.pio_write(ELCR, 2, level);
        self.pci.config_write(IDE_FUNCTION, IDE_TIMING, 4, 0x8000_8000);
        // The second DMA controller passes the first one's requests on.
        self.bus.pio_write(DMA_MODE, 1, 0xC0);
        self.bus.pio_write(DMA_MASK, 1, 0);
        bars::assign(&self.pci, PCI_WINDOW, PCI_PORTS, |device, pin| self.piix3.routed_irq(device, pin));
    }

    /// First power management port, as firmware has placed it; `None` where it has not.
    pub fn pm_base(&self) -> Option<u16> {
        let base = self.pci.config_read(PM_FUNCTION, PMBASE, 4) as u16 & 0xFFC0;
        (base != 0 && self.pci.config_read(PM_FUNCTION, PMREGMISC, 1) & 1 != 0).then_some(base)
    }

    /// The user presses the power button.
    pub fn press_power_button(&self) {
        self.pm.press_power_button();
    }
}

/// APIC IDs of all processors, those that may come too.
fn apic_ids(config: &Config) -> Vec<u32> {
    (0..config.topology.processors()).map(|n| config.topology.apic_id(n)).collect()
}

/// What CPUID says about the local APICs.
fn apic_features(cpu: &CpuModel) -> ApicFeatures {
    let [sizes, ..] = cpu.cpuid(0x8000_0008, 0, &Dynamic::default());
    ApicFeatures { x2apic: cpu.has(Feature::X2APIC), physical_bits: sizes & 0xFF }
}

impl Builder<'_> {
    fn interrupt_controllers(&self, apics: &Arc<LocalApics>, ioapic: &Arc<IoApic>, pic: &Arc<Pic>) -> Result<()> {
        let bus = &self.bus;
        bus.register_pio(0x20, 2, "pic", pic.master_ports())?;
        bus.register_pio(0xA0, 2, "pic", pic.slave_ports())?;
        bus.register_pio(ELCR, 2, "elcr", pic.elcr_ports())?;
        bus.add_device("pic", pic.clone());
        bus.register_mmio(IOAPIC_BASE, IOAPIC_LEN, "ioapic", ioapic.clone())?;
        bus.add_device("ioapic", ioapic.clone());
        bus.add_device("apic", apics.clone());
        Ok(())
    }

    fn timers(&self, apics: &Arc<LocalApics>, ioapic: &Arc<IoApic>) -> Result<Arc<Rtc>> {
        let (bus, s) = (&self.bus, self.s);
        let legacy = LegacyReplacement::new(&self.isa);
        bus.add_device("hpet-legacy", legacy.clone());
        let pit = Pit::new(legacy.line(FROM_TIMER), s.clock.clone(), s.timers);
        bus.register_pio(0x40, 4, "pit", pit.ports())?;
        bus.register_pio(0x61, 1, "speaker", pit.speaker_port())?;
        bus.add_device("pit", pit);
        let rtc = Rtc::new(legacy.line(FROM_RTC), s.clock.clone(), s.timers);
        rtc.set_memory_size(s.layout.low, s.layout.high);
        rtc.set_cmos(cmos::PROCESSORS, (s.config.processors - 1) as u8);
        bus.register_pio(0x70, 2, "rtc", rtc.ports())?;
        bus.add_device("rtc", rtc.clone());
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
        Ok(rtc)
    }

    fn serial_ports(&self) -> Result<()> {
        let (bus, s) = (&self.bus, self.s);
        // COM1 and COM3 have one interrupt, COM2 and COM4 the other.
        let shared = [4, 3].map(|irq| (irq, SharedInterrupt::new(self.isa_line(irq))));
        shared.iter().for_each(|(irq, shared)| bus.add_device(format!("isa-irq{irq}"), shared.clone()));
        for (i, id) in s.config.serials.iter().enumerate() {
            let Some(id) = id else { continue };
            let Console { backend, connect } = (s.console)(*id);
            let port = IsaSerial::new(shared[i % 2].1.line(i as u32), backend, s.clock.clone(), s.timers);
            bus.register_pio(SERIAL_PORTS[i], 8, &format!("serial{i}"), port.ports())?;
            bus.add_device(format!("serial{i}"), port.clone());
            let frontend: Arc<dyn CharFrontend> = port;
            connect(Arc::downgrade(&frontend));
        }
        Ok(())
    }

    fn power_management(&self) -> Result<Arc<AcpiPm>> {
        let (bus, s) = (&self.bus, self.s);
        let config = AcpiPmConfig {
            sleep_types: SleepTypes { s5: S5_TYPE, s4: None, s3: None },
            timer_32_bit: PM_TIMER_32_BIT,
            sci_enabled_at_reset: false,
        };
        let smi = IrqLine::new(Arc::new(SmiLine(s.links.to_vec())), 0);
        let pm = AcpiPm::new(config, self.isa_line(SCI), smi, s.clock.clone(), s.timers, s.power.clone());
        bus.register_pio(GPE_BASE, GPE_BLOCK_LEN, "acpi-gpe", pm.gpe_ports())?;
        bus.register_pio(0xB2, 2, "smi-command", pm.smi_ports())?;
        bus.add_device("acpi-pm", pm.clone());
        Ok(pm)
    }

    /// The ports by which the guest hears of devices that come and go.
    fn hotplug(&self, pm: &Arc<AcpiPm>, fixed: &[u8]) -> Result<Option<Arc<PciHotplug>>> {
        if !self.s.config.machine.acpi {
            return Ok(None);
        }
        let block = PciHotplug::new(pm.clone(), fixed);
        self.bus.register_pio(hotplug::BASE, hotplug::LEN, "acpi-pci-hotplug", block.clone())?;
        self.bus.add_device("acpi-pci-hotplug", block.clone());
        Ok(Some(block))
    }

    /// The same for processors.
    fn cpu_hotplug(&self, pm: &Arc<AcpiPm>) -> Result<Option<Arc<CpuHotplug>>> {
        let config = self.s.config;
        if !config.machine.acpi || config.processors == config.topology.processors() {
            return Ok(None);
        }
        let block = CpuHotplug::new(pm.clone(), apic_ids(config), config.processors as usize);
        self.bus.register_pio(cpu_hotplug::BASE, cpu_hotplug::LEN, "acpi-cpu-hotplug", block.clone())?;
        self.bus.add_device("acpi-cpu-hotplug", block.clone());
        Ok(Some(block))
    }

    /// The PCI bus with the chipset's functions.
    fn pci(&self, pm: &Arc<AcpiPm>) -> Result<(Arc<PciBus>, Arc<Piix3>)> {
        let bus = &self.bus;
        let isa: Arc<dyn IrqSink> = self.isa.clone();
        let shadow = &self.s.shadow;
        bus.register_mmio(shadow::BASE, shadow::LEN, "shadow-ram", shadow.clone())?;
        bus.add_device("shadow-ram", shadow.clone());
        let (pci, host, piix3, piix4) =
            (PciBus::new(), I440fx::new(shadow.clone()), Piix3::new(&isa), Piix4Pm::new(bus, pm.clone(), SMM));
        pci.insert(HOST_BRIDGE, host.clone())?;
        pci.insert(ISA_BRIDGE, piix3.clone())?;
        pci.insert(PM_FUNCTION, piix4.clone())?;
        let mechanism = ConfigMechanism::new(pci.clone(), self.s.power.clone());
        bus.register_pio(0xCF8, 8, "pci-config", mechanism.clone())?;
        bus.add_device("pci-config", mechanism);
        bus.add_device("i440fx", host);
        bus.add_device("piix3", piix3.clone());
        bus.add_device("piix4-pm", piix4);
        Ok((pci, piix3))
    }

    /// Keyboard controller and port 0x92, which both reset the machine and move the A20 gate.
    fn keyboard(&self) -> Result<(Arc<A20>, Arc<I8042>)> {
        let (bus, s) = (&self.bus, self.s);
        let a20 = A20::new();
        let port92 = Port92::new(a20.clone(), s.power.clone());
        bus.register_pio(0x92, 1, "port92", port92.clone())?;
        bus.add_device("port92", port92);
        let i8042 = I8042::new(self.isa_line(KEYBOARD), self.isa_line(MOUSE), a20.clone(), s.power.clone());
        bus.register_pio(0x60, 1, "i8042", i8042.data_port())?;
        bus.register_pio(0x64, 1, "i8042", i8042.command_port())?;
        bus.add_device("i8042", i8042.clone());
        Ok((a20, i8042))
    }

    /// The ISA DMA controllers and their page registers.
    fn isa_dma(&self) -> Result<Arc<IsaDma>> {
        let (bus, dma) = (&self.bus, IsaDma::new(self.s.memory.clone()));
        bus.register_pio(0x00, isa_dma::FIRST_PORTS as u32, "dma", dma.first_ports())?;
        bus.register_pio(0x81, isa_dma::PAGE_PORTS as u32, "dma-page", dma.page_ports())?;
        bus.register_pio(0xC0, isa_dma::SECOND_PORTS as u32, "dma", dma.second_ports())?;
        bus.add_device("isa-dma", dma.clone());
        Ok(dma)
    }

    fn fpu_error(&self) -> Result<Arc<FpuError>> {
        let fpu_error = FpuError::new(self.isa_line(FPU_ERROR));
        self.bus.register_pio(0xF0, 1, "fpu-error", fpu_error.clone())?;
        self.bus.add_device("fpu-error", fpu_error.clone());
        Ok(fpu_error)
    }

    fn debug_ports(&self) -> Result<()> {
        let (bus, s) = (&self.bus, self.s);
        let post = PostPort::new();
        bus.register_pio(0x80, 1, "post-port", post.clone())?;
        bus.add_device("post-port", post);
        for (i, console) in s.config.debug_consoles.iter().enumerate() {
            let device = DebugConsole::new((s.console)(console.chardev).backend, console.readback);
            let name = format!("debugcon{i}");
            bus.register_pio(console.iobase, 1, &name, device.clone())
                .with_context(|| format!("-debugcon: iobase={:#x} is not free; choose another", console.iobase))?;
            bus.add_device(name, device);
        }
        for (i, exit) in s.config.debug_exits.iter().enumerate() {
            let device = DebugExit::new(s.power.clone());
            let name = format!("debug-exit{i}");
            bus.register_pio(exit.iobase, exit.iosize.into(), &name, device.clone()).with_context(|| {
                format!("-device isa-debug-exit: iobase={:#x} is not free; choose another", exit.iobase)
            })?;
            bus.add_device(name, device);
        }
        Ok(())
    }

    fn fw_cfg(&self) -> Result<Arc<FwCfg>> {
        let fw_cfg = FwCfg::new(self.s.memory.clone());
        self.bus.register_pio(FW_CFG, fw_cfg::PORTS, "fw_cfg", fw_cfg.clone())?;
        self.bus.add_device("fw_cfg", fw_cfg.clone());
        Ok(fw_cfg)
    }

    fn acpi_config(&self, fixed_slots: Vec<u8>) -> AcpiConfig {
        let config = self.s.config;
        AcpiConfig {
            apic_ids: apic_ids(config),
            present_cpus: config.processors as usize,
            ioapic_id: 0,
            // The guest finds the same value in the register.
            hpet: config.machine.hpet.then(|| self.bus.mmio_read(HPET_BASE, 4) as u32),
            serials: config.serials.map(|s| s.is_some()),
            pm_base: PM_BASE,
            floppy: config.drives.iter().any(|d| matches!(d.attachment, Some(Attachment::Floppy { .. }))),
            panic_port: config.peripherals.panic_port,
            vga: config.peripherals.vga.is_some(),
            pci_window: PCI_WINDOW,
            pci_window_64: None,
            pci_interrupts: PCI_INTERRUPTS,
            fixed_slots,
            power_off_type: S5_TYPE,
            pm_timer_32_bits: PM_TIMER_32_BIT,
            more: config.acpi_tables.clone(),
        }
    }

    fn isa_line(&self, irq: u32) -> IrqLine {
        IrqLine::new(self.isa.clone(), irq)
    }
}
