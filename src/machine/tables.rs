//! The tables that firmware would leave in memory, for kernels that are started without it.

use super::acpi::{self, AcpiConfig};
use super::layout::Layout;
use super::smbios::{self, SmbiosFacts};
use crate::boot::Placement;
use crate::cli::config::Config;
use anyhow::Result;
use brolga_jit::board::TSC_HZ;
use brolga_jit::cpuid::Dynamic;

/// Where the ACPI tables lie, and where the SMBIOS tables do: guests look for their entry points from there on.
const ACPI_BASE: u64 = 0xE_0000;
const SMBIOS_BASE: u64 = 0xF_0000;
/// What the machine calls itself.
const PRODUCT: &str = "Standard PC (i440FX + PIIX, 1996)";
const VERSION: &str = "pc-i440fx";

/// Tables at their places.
pub struct SystemTables {
    tables: Vec<(&'static str, u64, Vec<u8>)>,
    /// Where the ACPI root pointer lies.
    pub rsdp: Option<u64>,
}

impl SystemTables {
    /// No tables: firmware makes its own.
    pub fn none() -> Self {
        Self { tables: Vec::new(), rsdp: None }
    }

    /// The tables for the machine of `config`, with the devices that `acpi` describes.
    pub fn build(config: &Config, layout: &Layout, acpi: &AcpiConfig) -> Result<Self> {
        let mut this = Self::none();
        if config.machine.acpi {
            let tables = acpi::build(acpi, ACPI_BASE)?;
            this.rsdp = Some(tables.rsdp_gpa);
            this.tables.push(("the ACPI tables", tables.base_gpa, tables.blob));
        }
        let tables = smbios::build(&config.smbios, &smbios_facts(config, layout), SMBIOS_BASE)?;
        this.tables.push(("the SMBIOS tables", tables.base_gpa, tables.blob));
        Ok(this)
    }

    /// Puts them into memory.
    pub fn place(&self, placement: &mut Placement) -> Result<()> {
        self.tables.iter().try_for_each(|(what, gpa, bytes)| placement.put(what, *gpa, bytes))
    }
}

pub(super) fn smbios_facts(config: &Config, layout: &Layout) -> SmbiosFacts {
    let low = 0..layout.low;
    let high = layout.above_4g();
    // As CPUID leaf 1 shows it while the local APIC is on, which it is after reset.
    let t = config.topology;
    let dynamic = Dynamic { topology: t, apic_enabled: true, ..Dynamic::default() };
    let [.., feature_flags] = config.cpu.cpuid(1, 0, &dynamic);
    SmbiosFacts {
        manufacturer: if config.identity.qemu { "QEMU" } else { "Brolga" }.into(),
        product: PRODUCT.into(),
        version: VERSION.into(),
        uuid: config.uuid,
        processor: config.cpu.name.clone(),
        processor_id: u64::from(config.cpu.signature()) | u64::from(feature_flags) << 32,
        processor_mhz: (TSC_HZ / 1_000_000) as u16,
        // There are 255 processors at most.
        sockets: t.sockets as u16,
        cores: (t.dies * t.cores) as u16,
        threads: t.per_package() as u16,
        ram: [low, high].into_iter().filter(|r| !r.is_empty()).collect(),
    }
}
