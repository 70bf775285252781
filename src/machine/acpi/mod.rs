//! ACPI tables for guests that are started without firmware (ACPI specification 6.5).
//!
//! The tables describe what [`AcpiConfig`] says is there; nothing is patched by the guest's firmware. Fixed addresses
//! of a PC (ports of ISA devices, the local APIC page) are named here once and follow PIIX4.

mod dsdt;
mod hotplug;
pub mod loader;
mod processors;
#[cfg(test)]
mod tests;

use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink, Checksum};
use std::ops::Range;

/// Who made the tables, as the guest shows it.
const OEM_ID: [u8; 6] = *b"BROLGA";
const OEM_TABLE_ID: [u8; 8] = *b"BROLGAPC";
const OEM_REVISION: u32 = 1;

/// Length of a table header (5.2.6).
const HEADER: u32 = 36;
/// Length of the root pointer (5.2.5.3).
const RSDP_LENGTH: usize = 36;
/// Pointers in the root pointer.
const RSDP_RSDT: usize = 16;
const RSDP_XSDT: usize = 24;
/// Pointers in the FADT, by offset and size: FACS and DSDT, and the wide forms of both (5.2.9).
const FADT_POINTERS: [(usize, u8); 4] = [(36, 4), (40, 4), (132, 8), (140, 8)];
/// The FACS is aligned so (5.2.10); the others take it for simplicity.
const ALIGNMENT: usize = 64;

/// Local APIC page of all CPUs.
const LOCAL_APIC: u32 = 0xFEE0_0000;
/// I/O APIC.
const IO_APIC: u32 = 0xFEC0_0000;
/// HPET.
const HPET: u32 = 0xFED0_0000;

/// The interrupt of ACPI events (SCI), level-triggered.
const SCI: u8 = 9;
/// Port that hands the machine over to ACPI and back, and the two commands.
const SMI_COMMAND: u16 = 0xB2;
const ACPI_ENABLE: u8 = 0xF1;
const ACPI_DISABLE: u8 = 0xF0;
/// Power management ports: PM1 event (4 bytes), PM1 control (2), timer (4), by their offsets.
const PM_LENGTH: u8 = 0x40;
const PM1_CONTROL: u16 = 4;
const PM_TIMER: u16 = 8;
/// General-purpose events, status and enable.
const GPE0: u16 = 0xAFE0;
const GPE0_LENGTH: u8 = 4;
/// Reset control register and what resets everything.
const RESET_PORT: u16 = 0xCF9;
const RESET_VALUE: u8 = 0x0F;
/// CMOS byte of the century.
const RTC_CENTURY: u8 = 0x32;

/// What the tables describe.
#[derive(Clone, Debug)]
pub struct AcpiConfig {
    /// APIC IDs of the CPUs, in order of their indices; of those that may come too.
    pub apic_ids: Vec<u32>,
    /// How many of them are there.
    pub present_cpus: usize,
    /// The ID register of the I/O APIC.
    pub ioapic_id: u8,
    /// The low half of the HPET's capability register, if there is one.
    pub hpet: Option<u32>,
    /// Which of COM1 to COM4 there are.
    pub serials: [bool; 4],
    /// First power management port, where firmware puts it.
    pub pm_base: u16,
    /// There is a floppy controller.
    pub floppy: bool,
    /// The port through which the guest reports a crash, if there is one.
    pub panic_port: Option<u16>,
    /// There is a VGA adapter.
    pub vga: bool,
    /// Addresses below 4 GiB that PCI devices may use.
    pub pci_window: Range<u32>,
    /// Addresses above 4 GiB that PCI devices may use.
    pub pci_window_64: Option<Range<u64>>,
    /// I/O APIC inputs of the PCI interrupt lines A to D of slot 1; later slots are rotated by one line each.
    pub pci_interrupts: [u8; 4],
    /// Slots of PCI bus 0 whose devices stay for ever.
    pub fixed_slots: Vec<u8>,
    /// Value of the sleep type field that powers off (S5).
    pub power_off_type: u8,
    /// The PM timer has 32 bits instead of 24.
    pub pm_timer_32_bits: bool,
    /// Tables of the user's, whole.
    pub more: Vec<Vec<u8>>,
}

/// The tables, ready to be stored.
#[derive(Clone, Debug)]
pub struct AcpiTables {
    /// Where the root pointer lies.
    pub rsdp_gpa: u64,
    /// Where `blob` goes.
    pub base_gpa: u64,
    /// All tables.
    pub blob: Vec<u8>,
    /// Where pointers lie in `blob`, and their sizes: the root pointer's two, then those of tables.
    pointers: Vec<(usize, u8)>,
    /// Tables with pointers: where they lie in `blob`.
    pointing: Vec<Range<usize>>,
}

/// Why there are no tables.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AcpiError {
    /// The tables' 32-bit pointers do not reach them.
    #[error("ACPI tables at {0:#x} end above 4 GiB")]
    TooHigh(u64),
    /// The base is not aligned for the FACS.
    #[error("ACPI tables at {0:#x} are not aligned to 64 bytes")]
    Unaligned(u64),
}

/// Tables at fixed addresses, growing.
struct Blob {
    base: u64,
    bytes: Vec<u8>,
    pointers: Vec<(usize, u8)>,
    pointing: Vec<Range<usize>>,
}

impl Blob {
    /// Adds a table; returns where it lies.
    fn add(&mut self, table: &dyn Aml) -> u64 {
        let length = self.bytes.len().next_multiple_of(ALIGNMENT);
        self.bytes.resize(length, 0);
        table.to_aml_bytes(&mut self.bytes);
        self.base + length as u64
    }

    /// Adds a table with pointers at these offsets, of these sizes; fields that are zero are none.
    fn add_pointing(&mut self, table: &dyn Aml, fields: impl Iterator<Item = (usize, u8)>) -> u64 {
        let address = self.add(table);
        let start = (address - self.base) as usize;
        self.pointing.push(start..self.bytes.len());
        let bytes = &self.bytes;
        let set = |at: usize, size: u8| bytes[at..at + usize::from(size)].iter().any(|byte| *byte != 0);
        self.pointers.extend(fields.map(|(at, size)| (start + at, size)).filter(|(at, size)| set(*at, *size)));
        address
    }
}

/// Builds the tables for `base_gpa`, which must be a multiple of 64. The root pointer comes first: for guests to find
/// it, the base lies in 0xE0000..0x100000.
pub fn build(config: &AcpiConfig, base_gpa: u64) -> Result<AcpiTables, AcpiError> {
    if !base_gpa.is_multiple_of(ALIGNMENT as u64) {
        return Err(AcpiError::Unaligned(base_gpa));
    }
    let narrow = |address: u64| u32::try_from(address).map_err(|_| AcpiError::TooHigh(base_gpa));
    let pointers = vec![(RSDP_RSDT, 4), (RSDP_XSDT, 8)];
    let mut blob = Blob { base: base_gpa, bytes: vec![0; RSDP_LENGTH], pointers, pointing: Vec::new() };
    let facs = narrow(blob.add(&FACS::new()))?;
    let dsdt = narrow(blob.add(&dsdt::build(config)))?;
    let fadt = blob.add_pointing(&fadt(config, facs, dsdt), FADT_POINTERS.into_iter());
    let mut tables = vec![fadt, blob.add(&madt(config))];
    if let Some(block_id) = config.hpet {
        tables.push(blob.add(&hpet(block_id)));
    }
    tables.extend(config.more.iter().map(|bytes| blob.add(&Ready(bytes))));
    let mut rsdt = table(*b"RSDT", 1);
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for &address in &tables {
        rsdt.append_slice(&narrow(address)?.to_le_bytes());
        xsdt.add_entry(address);
    }
    let entries = |size: u8| (0..tables.len()).map(move |i| (HEADER as usize + i * usize::from(size), size));
    let rsdt = narrow(blob.add_pointing(&rsdt, entries(4)))?;
    let xsdt = narrow(blob.add_pointing(&xsdt, entries(8)))?;
    narrow(base_gpa + blob.bytes.len() as u64)?;
    blob.bytes[..RSDP_LENGTH].copy_from_slice(&rsdp(rsdt, xsdt));
    let Blob { base: _, bytes, pointers, pointing } = blob;
    Ok(AcpiTables { rsdp_gpa: base_gpa, base_gpa, blob: bytes, pointers, pointing })
}

/// A table that is there already.
struct Ready<'a>(&'a [u8]);

impl Aml for Ready<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(self.0);
    }
}

/// An empty table.
fn table(signature: [u8; 4], revision: u8) -> Sdt {
    Sdt::new(signature, HEADER, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION)
}

/// The root pointer (5.2.5.3), with the 32-bit table for old guests.
fn rsdp(rsdt: u32, xsdt: u32) -> [u8; RSDP_LENGTH] {
    let mut out = [0; RSDP_LENGTH];
    out[..8].copy_from_slice(b"RSD PTR ");
    out[9..15].copy_from_slice(&OEM_ID);
    out[15] = 2;
    out[16..20].copy_from_slice(&rsdt.to_le_bytes());
    out[20..24].copy_from_slice(&(RSDP_LENGTH as u32).to_le_bytes());
    out[24..32].copy_from_slice(&u64::from(xsdt).to_le_bytes());
    let sum = |bytes: &[u8]| {
        let mut sum = Checksum::default();
        sum.append(bytes);
        sum.value()
    };
    out[8] = sum(&out[..20]);
    out[32] = sum(&out);
    out
}

/// Boot architecture flags of the FADT (5.2.9.3).
mod boot_flags {
    pub const LEGACY_DEVICES: u16 = 1 << 0;
    pub const KEYBOARD_CONTROLLER: u16 = 1 << 1;
    pub const NO_VGA: u16 = 1 << 2;
}

/// The fixed description table (5.2.9). The power button is a fixed one (its flag stays clear), there is no sleep
/// button.
fn fadt(config: &AcpiConfig, facs: u32, dsdt: u32) -> acpi_tables::fadt::FADT {
    let port =
        |address: u16, bits: u8, size: AccessSize| GAS::new(AddressSpace::SystemIo, bits, 0, size, address.into());
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::RtcS4)
        .flag(Flags::ResetRegSup)
        .gpe_info(GPE0.into(), 0, GPE0_LENGTH, 0, 0)
        .firmware_ctrl_32(facs);
    if config.pm_timer_32_bits {
        fadt = fadt.flag(Flags::TmrValExt);
    }
    fadt.dsdt = dsdt.into();
    fadt.x_dsdt = u64::from(dsdt).into();
    fadt.sci_int = u16::from(SCI).into();
    fadt.smi_cmd = u32::from(SMI_COMMAND).into();
    fadt.acpi_enable = ACPI_ENABLE;
    fadt.acpi_disable = ACPI_DISABLE;
    let (event, control) = (config.pm_base, config.pm_base.wrapping_add(PM1_CONTROL));
    let timer = config.pm_base.wrapping_add(PM_TIMER);
    fadt.pm1a_evt_blk = u32::from(event).into();
    fadt.pm1_evt_len = 4;
    fadt.x_pm1a_evt_blk = port(event, 32, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = u32::from(control).into();
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_cnt_blk = port(control, 16, AccessSize::WordAccess);
    fadt.pm_tmr_blk = u32::from(timer).into();
    fadt.pm_tmr_len = 4;
    fadt.x_pm_tmr_blk = port(timer, 32, AccessSize::DwordAccess);
    fadt.x_gpe0_blk = port(GPE0, GPE0_LENGTH * 8, AccessSize::ByteAccess);
    // Above 100 and 1000 microseconds: there is no C2 or C3 state.
    fadt.p_lvl2_lat = 0xFFF.into();
    fadt.p_lvl3_lat = 0xFFF.into();
    fadt.century = RTC_CENTURY;
    let vga = if config.vga { 0 } else { boot_flags::NO_VGA };
    fadt.iapc_boot_arch = (boot_flags::LEGACY_DEVICES | boot_flags::KEYBOARD_CONTROLLER | vga).into();
    fadt.reset_reg = port(RESET_PORT, 8, AccessSize::ByteAccess);
    fadt.reset_value = RESET_VALUE;
    fadt.finalize()
}

/// ISA interrupts that arrive as active-high levels: the SCI and those PCI lines go to (5.2.12.5).
fn level_interrupts(config: &AcpiConfig) -> Vec<u8> {
    let mut all = vec![SCI, 5, 10, 11];
    all.extend(config.pci_interrupts.iter().filter(|&&pin| pin < 16));
    all.sort_unstable();
    all.dedup();
    all
}

/// The multiple APIC description table (5.2.12).
fn madt(config: &AcpiConfig) -> Sdt {
    let mut madt = table(*b"APIC", 4);
    madt.append_slice(&LOCAL_APIC.to_le_bytes());
    madt.append_slice(&1u32.to_le_bytes()); // there is a pair of 8259s too
    let mut wide = false;
    for (uid, &apic_id) in config.apic_ids.iter().enumerate() {
        let structure = local_apic(uid as u32, apic_id, uid < config.present_cpus);
        wide |= structure.first() == Some(&X2APIC);
        madt.append_slice(&structure);
    }
    append(&mut madt, &IoApic::new(config.ioapic_id, IO_APIC, 0));
    append_override(&mut madt, 0, 2, 0); // the 8254 as the bus specifies it, on input 2
    for interrupt in level_interrupts(config) {
        append_override(&mut madt, interrupt, interrupt.into(), 0b1101); // active high, level
    }
    // LINT1 of all CPUs is NMI (5.2.12.7, 5.2.12.13).
    madt.append_slice(&[4, 6, 0xFF, 0, 0, 1]);
    if wide {
        madt.append_slice(&[0x0A, 12, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 1, 0, 0, 0]);
    }
    madt
}

fn append(table: &mut Sdt, structure: &dyn Aml) {
    let mut bytes = Vec::new();
    structure.to_aml_bytes(&mut bytes);
    table.append_slice(&bytes);
}

/// Type of the structure for IDs that the short one cannot hold.
const X2APIC: u8 = 9;

/// Processor local APIC (5.2.12.2), or x2APIC (5.2.12.12) for IDs that the former cannot hold. A processor that is not
/// `present` may come.
fn local_apic(uid: u32, apic_id: u32, present: bool) -> Vec<u8> {
    let status = || if present { EnabledStatus::Enabled } else { EnabledStatus::DisabledOnlineCapable };
    let mut bytes = Vec::new();
    match (u8::try_from(uid), u8::try_from(apic_id)) {
        (Ok(uid @ ..=254), Ok(apic_id @ ..=254)) => {
            ProcessorLocalApic::new(uid, apic_id, status()).to_aml_bytes(&mut bytes);
        }
        _ => {
            bytes.extend([X2APIC, 16, 0, 0]);
            [apic_id, status() as u32, uid].iter().for_each(|word| bytes.extend(word.to_le_bytes()));
        }
    }
    bytes
}

/// Interrupt source override (5.2.12.5): ISA interrupt `source` arrives at I/O APIC input `input`.
fn append_override(madt: &mut Sdt, source: u8, input: u32, flags: u16) {
    madt.append_slice(&[2, 10, 0, source]);
    madt.append_slice(&input.to_le_bytes());
    madt.append_slice(&flags.to_le_bytes());
}

/// The HPET table (IA-PC HPET specification 3.2.4).
fn hpet(block_id: u32) -> Sdt {
    let mut hpet = table(*b"HPET", 1);
    hpet.append_slice(&block_id.to_le_bytes());
    append(&mut hpet, &GAS::new(AddressSpace::SystemMemory, 64, 0, AccessSize::Undefined, HPET.into()));
    // Sequence number 0; the shortest periodic interval that loses no tick, in counts; no page protection.
    hpet.append_slice(&[0]);
    hpet.append_slice(&100u16.to_le_bytes());
    hpet.append_slice(&[0]);
    hpet
}
