//! What firmware is told about the machine, through the fw_cfg device.

use super::acpi::AcpiConfig;
use super::acpi::loader;
use super::layout::Layout;
use super::{smbios, tables};
use crate::boot::{Boot, Facts, KERNEL_BOOT_PATH};
use crate::cli::config::Config;
use anyhow::{Context, Result};
use brolga_devices::fw_cfg::{Items, item};

/// First port of the serial port on which firmware shows its text screen.
const CONSOLE_PORT: u64 = 0x3F8;
/// Sleep states by ACPI number as SeaBIOS reads them: bit 7 there is one, low bits its sleep type. S3 and S4 are not.
const SLEEP_STATES: [u8; 6] = [0x80, 0, 0, 0x01, 0x02, 0x80];
/// E820 type of RAM.
const E820_RAM: u32 = 1;

/// Everything for the machine of `config`, whose devices `acpi` describes.
/// `boot_paths`: devices with a place in the boot order. A kernel to start comes before all of them.
pub fn items(
    config: &Config,
    boot: &Boot,
    facts: Facts,
    acpi: &AcpiConfig,
    boot_paths: &[(u32, String)],
) -> Result<Items> {
    let (mut items, layout) = (Items::new(), &facts.layout);
    // Firmware has room for APIC IDs below the second number, and waits for as many processors as the first says.
    let (cpus, ids) = (acpi.present_cpus, acpi.apic_ids.iter().max().map_or(1, |id| id + 1));
    let word = |n: u32| u16::try_from(n).unwrap_or(u16::MAX).to_le_bytes();
    items.set(item::UUID, &config.uuid.unwrap_or_default());
    items.set(item::RAM_SIZE, &(layout.low + layout.high).to_le_bytes());
    items.set(item::NOGRAPHIC, &u16::from(config.nographic).to_le_bytes());
    items.set(item::PROCESSORS, &word(cpus as u32));
    items.set(item::MAX_PROCESSORS, &word(ids));
    // No nodes, and no processor is on one.
    items.set(item::NUMA, &vec![0; 8 + 8 * ids as usize]);
    items.set(item::IRQ0_OVERRIDE, &1u32.to_le_bytes());
    items.add_file("etc/e820", e820(layout))?;
    items.add_file("etc/system-states", SLEEP_STATES.to_vec())?;
    if config.nographic && config.serials[0].is_some() {
        items.add_file("etc/sercon-port", CONSOLE_PORT.to_le_bytes().to_vec())?;
    }
    if let Some(port) = config.peripherals.panic_port {
        items.add_file("etc/pvpanic-port", port.to_le_bytes().to_vec())?;
    }
    let kernel = boot.hand_over(facts, &mut items)?.then(|| KERNEL_BOOT_PATH.to_owned());
    boot_order(config, kernel, boot_paths, &mut items)?;
    boot_roms(config, &mut items)?;
    if config.machine.acpi {
        let loader::Files { rsdp, tables, commands } = loader::files(acpi)?;
        items.add_file(loader::RSDP_FILE, rsdp)?;
        items.add_file(loader::TABLES_FILE, tables)?;
        items.add_file(loader::COMMANDS_FILE, commands)?;
    }
    for file in &config.firmware_files {
        items.add_file(&file.name, file.bytes.clone()).with_context(|| file.what.clone())?;
    }
    let (anchor, table) = smbios::for_firmware(&config.smbios, &tables::smbios_facts(config, layout))?;
    items.add_file("etc/smbios/smbios-anchor", anchor)?;
    items.add_file("etc/smbios/smbios-tables", table)?;
    Ok(items)
}

/// RAM as firmware's memory map begins: it takes its own places out of it.
fn e820(layout: &Layout) -> Vec<u8> {
    let mut out = Vec::new();
    for range in [0..layout.low, layout.above_4g()].into_iter().filter(|r| !r.is_empty()) {
        out.extend(range.start.to_le_bytes());
        out.extend((range.end - range.start).to_le_bytes());
        out.extend(E820_RAM.to_le_bytes());
    }
    out
}

/// Boot ROMs that are not on their cards (`rombar=0`): firmware runs all in this folder.
fn boot_roms(config: &Config, items: &mut Items) -> Result<()> {
    let mut paths: Vec<_> = config.nics.iter().filter(|nic| !nic.rom_bar).filter_map(|nic| nic.rom.as_ref()).collect();
    paths.sort();
    paths.dedup();
    for path in paths.into_iter().filter(|_| config.boot.bios.is_some()) {
        let name = path.file_name().map_or_else(Default::default, |name| name.to_string_lossy());
        let image = std::fs::read(path).with_context(|| format!("romfile={}: cannot be read", path.display()))?;
        items.add_file(&format!("genroms/{name}"), image)?;
    }
    Ok(())
}

/// What `-boot` says; the order by kinds of devices is in CMOS.
fn boot_order(config: &Config, first: Option<String>, paths: &[(u32, String)], items: &mut Items) -> Result<()> {
    let order = &config.boot.order;
    items.set(item::BOOT_MENU, &u16::from(order.menu).to_le_bytes());
    if let Some(path) = &order.splash {
        let shown = path.display();
        let picture = std::fs::read(path).with_context(|| format!("-boot splash={shown}: cannot be read"))?;
        let name = picture_name(&picture);
        let name = name.with_context(|| format!("-boot splash={shown}: this is neither a JPEG nor a BMP file"))?;
        items.add_file(name, picture)?;
    }
    if let Some(wait) = order.menu_wait {
        items.add_file("etc/boot-menu-wait", wait.to_le_bytes().to_vec())?;
    }
    // All ones: never.
    let retry = order.retry_wait.map_or(u32::MAX, u32::from);
    items.add_file("etc/boot-fail-wait", retry.to_le_bytes().to_vec())?;
    items.add_file("bootorder", order_file(first, paths, order.strict))?;
    Ok(())
}

/// By which name firmware looks for a picture of this kind.
fn picture_name(picture: &[u8]) -> Option<&'static str> {
    match picture {
        [0xff, 0xd8, ..] => Some("bootsplash.jpg"),
        [b'B', b'M', ..] => Some("bootsplash.bmp"),
        _ => None,
    }
}

/// The file that firmware reads: one path a line, the first to be tried first; nothing else is tried after `HALT`.
fn order_file(first: Option<String>, paths: &[(u32, String)], strict: bool) -> Vec<u8> {
    let mut paths: Vec<_> = paths.iter().collect();
    paths.sort_by_key(|(index, _)| *index);
    let mut lines: Vec<&str> =
        first.iter().chain(paths.into_iter().map(|(_, path)| path)).map(String::as_str).collect();
    if strict {
        lines.push("HALT");
    }
    let mut out = lines.join("\n").into_bytes();
    if !out.is_empty() {
        out.push(0);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_order_follows_the_indexes() {
        let paths = [(5, "/b".to_owned()), (0, "/a".to_owned())];
        assert_eq!(order_file(None, &paths, true), b"/a\n/b\nHALT\0");
        assert_eq!(order_file(Some("/k".into()), &paths[..1], false), b"/k\n/b\0");
        assert!(order_file(None, &[], false).is_empty());
    }

    #[test]
    fn pictures_are_known_by_their_first_bytes() {
        let names = [&b"\xff\xd8\xff"[..], b"BM6", b"GIF", b""].map(picture_name);
        assert_eq!(names, [Some("bootsplash.jpg"), Some("bootsplash.bmp"), None, None]);
    }

    #[test]
    fn memory_has_one_entry_below_and_one_above_the_hole() {
        let bytes = e820(&Layout::new(4 << 30, 0).unwrap());
        assert_eq!(bytes.len(), 40);
        assert_eq!(bytes[8..16], (3u64 << 30).to_le_bytes());
        assert_eq!(bytes[20..28], (4u64 << 30).to_le_bytes());
        assert_eq!((bytes[16], bytes[36]), (1, 1));
        assert_eq!(e820(&Layout::new(1 << 20, 0).unwrap()).len(), 20);
    }
}
