//! The differentiated description table: what the guest cannot find out by itself, in AML.

use super::{AcpiConfig, GPE0, GPE0_LENGTH, HPET, PM_LENGTH, SMI_COMMAND, hotplug, processors, table};
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Memory32Fixed, Name, Package, PackageBuilder,
    ResourceTemplate, Scope, ZERO,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

/// Address of a PCI function as `_ADR` gives it: the ISA bridge of PIIX.
const ISA_BRIDGE: u32 = 0x0001_0000;
/// PCI slots of bus 0.
const SLOTS: u32 = 32;
/// Ports and interrupts of COM1 to COM4.
const SERIALS: [(u16, u8); 4] = [(0x3F8, 4), (0x2F8, 3), (0x3E8, 4), (0x2E8, 3)];

/// By this drivers know the port for crash reports.
const PANIC_DEVICE: &str = "QEMU0001";
/// By this they know the device with files for firmware, and its ports.
const FIRMWARE_FILES: &str = "QEMU0002";
const FW_CFG: u16 = 0x510;
const FW_CFG_LENGTH: u8 = 12;

/// Ports that tell of PCI devices that come and go.
const PCI_HOTPLUG: u16 = brolga_devices::pci::hotplug::BASE;
const PCI_HOTPLUG_LENGTH: u8 = brolga_devices::pci::hotplug::LEN as u8;

/// Ports that tell of processors that come and go.
const CPU_HOTPLUG: u16 = brolga_devices::cpu_hotplug::BASE;
const CPU_HOTPLUG_LENGTH: u8 = brolga_devices::cpu_hotplug::LEN as u8;

/// AML that is already encoded.
pub(super) struct Encoded(Vec<u8>);

impl Encoded {
    /// These bytes.
    pub(super) fn ready(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// These objects, one after the other.
    pub(super) fn of(objects: &[&dyn Aml]) -> Self {
        let mut bytes = Vec::new();
        objects.iter().for_each(|object| object.to_aml_bytes(&mut bytes));
        Self(bytes)
    }
}

impl Aml for Encoded {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// Small IRQ descriptor without flags: an edge-triggered ISA interrupt (ACPI 6.4.2.1).
struct IsaInterrupt(u8);

impl Aml for IsaInterrupt {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x22);
        sink.word(1u16.checked_shl(self.0.into()).unwrap_or(0));
    }
}

/// DMA descriptor: a channel that moves bytes (ACPI 6.4.2.2).
struct IsaChannel(u8);

impl Aml for IsaChannel {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x2A);
        sink.byte(1u8.checked_shl(self.0.into()).unwrap_or(0));
        sink.byte(0);
    }
}

/// `length` ports from `first`.
fn ports(first: u16, length: u8) -> IO {
    IO::new(first, first, 1, length)
}

/// The table.
pub(super) fn build(config: &AcpiConfig) -> Sdt {
    let mut aml = Vec::new();
    Name::new("\\_S5_".into(), &Package::new(vec![&config.power_off_type, &config.power_off_type, &ZERO, &ZERO]))
        .to_aml_bytes(&mut aml);
    let mut devices = vec![processors::objects(config), host_bridge(config), board_resources(config)];
    if config.hpet.is_some() {
        devices.push(hpet());
    }
    Scope::new("\\_SB_".into(), devices.iter().map(|device| device as &dyn Aml).collect()).to_aml_bytes(&mut aml);
    hotplug::events(config).to_aml_bytes(&mut aml);
    processors::events(config).to_aml_bytes(&mut aml);
    let mut dsdt = table(*b"DSDT", 2);
    dsdt.append_slice(&aml);
    dsdt
}

/// The PCI host bridge and what is behind it.
fn host_bridge(config: &AcpiConfig) -> Encoded {
    let children = Encoded::of(&[
        &Name::new("_HID".into(), &EISAName::new("PNP0A03")),
        &Name::new("_UID".into(), &ZERO),
        &Name::new("_CRS".into(), &host_bridge_windows(config)),
        &Name::new("_PRT".into(), &interrupt_routing(config)),
        &isa_bridge(config),
        &hotplug::bus(config),
    ]);
    Encoded::of(&[&Device::new("PCI0".into(), vec![&children])])
}

/// What the host bridge passes on, and the configuration ports that it decodes itself.
fn host_bridge_windows(config: &AcpiConfig) -> Encoded {
    let not_cacheable = AddressSpaceCacheable::NotCacheable;
    let buses = AddressSpace::<u16>::new_bus_number(0, 0xFF);
    let configuration = ports(0xCF8, 8);
    let low_ports = AddressSpace::<u16>::new_io(0, 0x0CF7, None);
    let high_ports = AddressSpace::<u16>::new_io(0x0D00, 0xFFFF, None);
    let vga = AddressSpace::<u32>::new_memory(not_cacheable, true, 0xA_0000, 0xB_FFFF, None);
    let window = (!config.pci_window.is_empty()).then(|| {
        let (first, last) = (config.pci_window.start, config.pci_window.end - 1);
        AddressSpace::<u32>::new_memory(not_cacheable, true, first, last, None)
    });
    let window_64 = config
        .pci_window_64
        .as_ref()
        .filter(|window| !window.is_empty())
        .map(|window| AddressSpace::<u64>::new_memory(not_cacheable, true, window.start, window.end - 1, None));
    let mut resources: Vec<&dyn Aml> = vec![&buses, &configuration, &low_ports, &high_ports, &vga];
    resources.extend(window.as_ref().map(|window| window as &dyn Aml));
    resources.extend(window_64.as_ref().map(|window| window as &dyn Aml));
    Encoded::of(&[&ResourceTemplate::new(resources)])
}

/// `_PRT` (ACPI 6.2.13): which input each slot's pins A to D reach. Lines are rotated by one from slot to slot, and
/// slot 1 has line A at its pin A, as on PIIX boards.
fn interrupt_routing(config: &AcpiConfig) -> Encoded {
    let mut routing = PackageBuilder::new();
    for slot in 0..SLOTS {
        for pin in 0..4u32 {
            let line = (slot + 3 + pin) % 4;
            let input = config.pci_interrupts[line as usize];
            routing.add_element(&Package::new(vec![&(slot << 16 | 0xFFFF), &pin, &ZERO, &input]));
        }
    }
    Encoded::of(&[&routing])
}

/// The ISA bridge with the devices behind it.
fn isa_bridge(config: &AcpiConfig) -> Encoded {
    let mut children = vec![
        Encoded::of(&[&Name::new("_ADR".into(), &ISA_BRIDGE)]),
        isa_device("RTC_", "PNP0B00", 0, &[&ports(0x70, 2), &IsaInterrupt(8)]),
        isa_device("KBD_", "PNP0303", 0, &[&ports(0x60, 1), &ports(0x64, 1), &IsaInterrupt(1)]),
        isa_device("MOU_", "PNP0F13", 0, &[&IsaInterrupt(12)]),
    ];
    if config.floppy {
        let resources: [&dyn Aml; 4] = [&ports(0x3F0, 6), &ports(0x3F7, 1), &IsaInterrupt(6), &IsaChannel(2)];
        children.push(isa_device("FDC0", "PNP0700", 0, &resources));
    }
    for (index, (&(base, interrupt), &present)) in SERIALS.iter().zip(&config.serials).enumerate() {
        if present {
            let (name, uid) = (format!("COM{}", index + 1), index as u8 + 1);
            children.push(isa_device(&name, "PNP0501", uid, &[&ports(base, 8), &IsaInterrupt(interrupt)]));
        }
    }
    if let Some(port) = config.panic_port {
        children.push(isa_object("PEVT", &PANIC_DEVICE, 0, &[&ports(port, 1)]));
    }
    children.push(isa_object("FWCF", &FIRMWARE_FILES, 0, &[&ports(FW_CFG, FW_CFG_LENGTH)]));
    let children = children.iter().map(|child| child as &dyn Aml).collect();
    Encoded::of(&[&Device::new("ISA_".into(), children)])
}

fn isa_device(name: &str, id: &str, uid: u8, resources: &[&dyn Aml]) -> Encoded {
    isa_object(name, &EISAName::new(id), uid, resources)
}

fn isa_object(name: &str, id: &dyn Aml, uid: u8, resources: &[&dyn Aml]) -> Encoded {
    let children = Encoded::of(&[
        &Name::new("_HID".into(), id),
        &Name::new("_UID".into(), &uid),
        &Name::new("_STA".into(), &0x0Fu8),
        &Name::new("_CRS".into(), &ResourceTemplate::new(resources.to_vec())),
    ]);
    Encoded::of(&[&Device::new(name.into(), vec![&children])])
}

/// Ports of the board that no other device claims. (The reset port is within the host bridge's.)
fn board_resources(config: &AcpiConfig) -> Encoded {
    isa_device(
        "RES_",
        "PNP0C02",
        0,
        &[
            &ports(config.pm_base, PM_LENGTH),
            &ports(GPE0, GPE0_LENGTH),
            &ports(PCI_HOTPLUG, PCI_HOTPLUG_LENGTH),
            &ports(CPU_HOTPLUG, CPU_HOTPLUG_LENGTH),
            &ports(SMI_COMMAND, 2),
            &ports(0x92, 1),
            &ports(0x4D0, 2),
        ],
    )
}

fn hpet() -> Encoded {
    isa_device("HPET", "PNP0103", 0, &[&Memory32Fixed::new(false, HPET, 0x400)])
}
