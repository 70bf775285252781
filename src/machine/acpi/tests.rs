use super::*;
use std::collections::BTreeMap;

pub fn config() -> AcpiConfig {
    AcpiConfig {
        apic_ids: vec![0, 1, 4, 5],
        present_cpus: 4,
        ioapic_id: 0,
        hpet: Some(0x8086_A201),
        serials: [true, false, false, false],
        pm_base: 0x600,
        floppy: true,
        panic_port: Some(0x505),
        vga: false,
        pci_window: 0xC000_0000..0xFEC0_0000,
        pci_window_64: Some(0x1_8000_0000..0x2_0000_0000),
        pci_interrupts: [10, 10, 11, 11],
        fixed_slots: vec![0, 1, 2],
        power_off_type: 0,
        pm_timer_32_bits: false,
        more: Vec::new(),
    }
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// The table at `address`, with its checksum checked.
fn table_at(tables: &AcpiTables, address: u64) -> &[u8] {
    let bytes = &tables.blob[(address - tables.base_gpa) as usize..];
    let table = &bytes[..u32_at(bytes, 4) as usize];
    assert_eq!(sum(table), 0, "checksum of {:?}", std::str::from_utf8(&table[..4]));
    assert_eq!(&table[10..16], b"BROLGA");
    table
}

/// All tables by signature, found as a guest finds them.
fn walk(tables: &AcpiTables) -> BTreeMap<String, Vec<u8>> {
    let rsdp = &tables.blob[(tables.rsdp_gpa - tables.base_gpa) as usize..][..36];
    assert_eq!((&rsdp[..8], rsdp[15]), (b"RSD PTR ".as_slice(), 2));
    assert_eq!((sum(&rsdp[..20]), sum(rsdp)), (0, 0));
    let rsdt = table_at(tables, u32_at(rsdp, 16).into());
    let xsdt = table_at(tables, u64_at(rsdp, 24));
    assert_eq!((&rsdt[..4], &xsdt[..4]), (b"RSDT".as_slice(), b"XSDT".as_slice()));
    let narrow: Vec<u64> = rsdt[36..].chunks(4).map(|entry| u32_at(entry, 0).into()).collect();
    let wide: Vec<u64> = xsdt[36..].chunks(8).map(|entry| u64_at(entry, 0)).collect();
    assert_eq!(narrow, wide);
    let mut found = BTreeMap::new();
    for address in wide {
        let table = table_at(tables, address);
        found.insert(String::from_utf8(table[..4].to_vec()).unwrap(), table.to_vec());
    }
    let dsdt = table_at(tables, u64_at(&found["FACP"], 140));
    found.insert("DSDT".into(), dsdt.to_vec());
    found
}

/// The MADT's structures: type and contents after type and length.
fn structures(madt: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let (mut at, mut all) = (44, Vec::new());
    while at < madt.len() {
        let length = usize::from(madt[at + 1]);
        all.push((madt[at], madt[at + 2..at + length].to_vec()));
        at += length;
    }
    all
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn a_guest_finds_all_tables() {
    let tables = build(&config(), 0xE_0000).unwrap();
    assert_eq!(tables.rsdp_gpa, 0xE_0000);
    assert!(tables.blob.len() < 0x1_0000, "room is left for SMBIOS");
    let names: Vec<String> = walk(&tables).into_keys().collect();
    assert_eq!(names, ["APIC", "DSDT", "FACP", "HPET"]);
    let without = build(&AcpiConfig { hpet: None, ..config() }, 0xE_0000).unwrap();
    assert!(!walk(&without).contains_key("HPET"));
}

#[test]
fn bases_that_do_not_work() {
    assert_eq!(build(&config(), 0xE_0010).unwrap_err(), AcpiError::Unaligned(0xE_0010));
    assert_eq!(build(&config(), 0xFFFF_FFC0).unwrap_err(), AcpiError::TooHigh(0xFFFF_FFC0));
    assert_eq!(build(&config(), 1 << 32).unwrap_err(), AcpiError::TooHigh(1 << 32));
}

#[test]
fn fixed_hardware() {
    let tables = build(&config(), 0xE_0000).unwrap();
    let fadt = &walk(&tables)["FACP"];
    assert_eq!(fadt.len(), 276);
    let facs = u64::from(u32_at(fadt, 36));
    assert_eq!(facs % 64, 0);
    assert_eq!(&tables.blob[(facs - 0xE_0000) as usize..][..4], b"FACS");
    assert_eq!(u32_at(fadt, 40), u64_at(fadt, 140) as u32, "both pointers to the DSDT");
    assert_eq!(fadt[46], 9);
    assert_eq!((u32_at(fadt, 48), fadt[52], fadt[53]), (0xB2, 0xF1, 0xF0));
    assert_eq!([56, 64, 76, 80].map(|at| u32_at(fadt, at)), [0x600, 0x604, 0x608, 0xAFE0]);
    assert_eq!((fadt[88], fadt[89], fadt[91], fadt[92]), (4, 2, 4, 4));
    assert_eq!(fadt[108], 0x32);
    assert_eq!(u16::from_le_bytes([fadt[109], fadt[110]]), 0b111, "no VGA");
    assert_eq!(u32_at(fadt, 112), 1 << 0 | 1 << 2 | 1 << 5 | 1 << 7 | 1 << 10);
    assert_eq!((&fadt[116..120], u64_at(fadt, 120), fadt[128]), ([1, 8, 0, 1].as_slice(), 0xCF9, 0x0F));
    assert_eq!([152, 176, 212, 224].map(|at| u64_at(fadt, at)), [0x600, 0x604, 0x608, 0xAFE0], "wide addresses");
    let wide = AcpiConfig { pm_timer_32_bits: true, vga: true, ..config() };
    let fadt = &walk(&build(&wide, 0xE_0000).unwrap())["FACP"];
    assert_eq!((u32_at(fadt, 112) >> 8 & 1, fadt[109]), (1, 0b011));
}

#[test]
fn interrupt_controllers() {
    let tables = build(&config(), 0xE_0000).unwrap();
    let madt = &walk(&tables)["APIC"];
    assert_eq!((u32_at(madt, 36), u32_at(madt, 40)), (0xFEE0_0000, 1));
    let all = structures(madt);
    let cpus: Vec<_> = all.iter().filter(|(kind, _)| *kind == 0).map(|(_, s)| (s[0], s[1], s[2])).collect();
    assert_eq!(cpus, [(0, 0, 1), (1, 1, 1), (2, 4, 1), (3, 5, 1)]);
    let ioapic = &all.iter().find(|(kind, _)| *kind == 1).unwrap().1;
    assert_eq!((ioapic[0], u32_at(ioapic, 2), u32_at(ioapic, 6)), (0, 0xFEC0_0000, 0));
    let overrides: Vec<_> = all.iter().filter(|(kind, _)| *kind == 2).map(|(_, s)| (s[1], s[2], s[6])).collect();
    assert_eq!(overrides, [(0, 2, 0), (5, 5, 13), (9, 9, 13), (10, 10, 13), (11, 11, 13)]);
    assert_eq!(all.last().unwrap(), &(4, vec![0xFF, 0, 0, 1]));
}

#[test]
fn large_apic_ids_take_the_long_form() {
    let many = AcpiConfig { apic_ids: vec![0, 255, 300], ..config() };
    let all = structures(&walk(&build(&many, 0xE_0000).unwrap())["APIC"]);
    let wide: Vec<_> = all.iter().filter(|(kind, _)| *kind == 9).map(|(_, s)| (u32_at(s, 2), u32_at(s, 10))).collect();
    assert_eq!(wide, [(255, 1), (300, 2)]);
    assert_eq!(all.last().unwrap(), &(0x0A, vec![0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 1, 0, 0, 0]));
}

#[test]
fn hpet_table() {
    let tables = build(&config(), 0xE_0000).unwrap();
    let hpet = &walk(&tables)["HPET"];
    assert_eq!((hpet.len(), u32_at(hpet, 36), hpet[40], u64_at(hpet, 44)), (56, 0x8086_A201, 0, 0xFED0_0000));
}

#[test]
fn dsdt_names_what_is_there_and_nothing_else() {
    let dsdt = walk(&build(&config(), 0xE_0000).unwrap()).remove("DSDT").unwrap();
    for name in ["_S5_", "PCI0", "_PRT", "ISA_", "RTC_", "KBD_", "MOU_", "COM1", "HPET", "C003", "RES_"] {
        assert!(contains(&dsdt, name.as_bytes()), "{name}");
    }
    for name in ["COM2", "COM3", "COM4", "C004"] {
        assert!(!contains(&dsdt, name.as_bytes()), "{name}");
    }
    let bare = AcpiConfig { hpet: None, serials: [false, true, false, false], ..config() };
    let dsdt = walk(&build(&bare, 0xE_0000).unwrap()).remove("DSDT").unwrap();
    assert!(contains(&dsdt, b"COM2") && !contains(&dsdt, b"COM1") && !contains(&dsdt, b"HPET"));
}

#[test]
fn pci_pins_rotate_from_slot_to_slot() {
    let distinct = AcpiConfig { pci_interrupts: [20, 21, 22, 23], ..config() };
    let dsdt = walk(&build(&distinct, 0xE_0000).unwrap()).remove("DSDT").unwrap();
    // Package (4) { 0x0001FFFF, 0, 0, 20 }: slot 1 has line A at pin A; slot 2 has line B there.
    assert!(contains(&dsdt, &[0x04, 0x0C, 0xFF, 0xFF, 1, 0, 0x00, 0x00, 0x0A, 20]));
    assert!(contains(&dsdt, &[0x04, 0x0C, 0xFF, 0xFF, 2, 0, 0x00, 0x00, 0x0A, 21]));
    assert!(contains(&dsdt, &[0x04, 0x0C, 0xFF, 0xFF, 1, 0, 0x0A, 3, 0x00, 0x0A, 23]));
}

/// Intel's compiler takes our tables apart and the DSDT goes together again without complaint. `tools/setup`
/// installs `iasl`.
#[test]
fn iasl_accepts_the_tables() {
    use std::process::Command;
    let directory = std::env::temp_dir().join(format!("brolga-acpi-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    for (name, table) in walk(&build(&config(), 0xE_0000).unwrap()) {
        let file = directory.join(format!("{name}.dat"));
        std::fs::write(&file, table).unwrap();
        let run = |arguments: &[&str], file: &std::path::Path| {
            let output = Command::new("iasl").args(arguments).arg(file).output();
            let output = output.unwrap_or_else(|e| panic!("iasl: {e}; tools/setup installs it (acpica-tools)"));
            let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{name}: {text}");
            text
        };
        let text = run(&["-d"], &file);
        assert!(!text.contains("Invalid") && !text.contains("incorrect checksum"), "{name}: {text}");
        if name == "DSDT" {
            let text = run(&[], &file.with_extension("dsl"));
            assert!(text.contains(" 0 Errors, 0 Warnings"), "{text}");
        }
    }
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn tables_of_the_users_are_listed_too() {
    let mut given = table(*b"TEST", 1);
    given.append_slice(b"something");
    let mut bytes = Vec::new();
    given.to_aml_bytes(&mut bytes);
    let more = AcpiConfig { more: vec![bytes.clone()], ..config() };
    assert_eq!(walk(&build(&more, 0xE_0000).unwrap()).get("TEST"), Some(&bytes));
}
