use super::*;

const GIB: u64 = 1 << 30;
const BASE: u64 = 0xF_0000;

fn facts() -> SmbiosFacts {
    SmbiosFacts {
        manufacturer: "Maker".into(),
        product: "Board".into(),
        version: "pc-1".into(),
        uuid: None,
        processor: "qemu64".into(),
        processor_id: 0x0789_ABCD_0000_0663,
        processor_mhz: 1000,
        sockets: 1,
        cores: 1,
        threads: 1,
        ram: std::iter::once(0..GIB).collect(),
    }
}

/// A structure as a guest reads it.
#[derive(Debug)]
struct Seen {
    kind: u8,
    bytes: Vec<u8>,
    strings: Vec<String>,
}

impl Seen {
    /// The string that the byte at `offset` refers to.
    fn text(&self, offset: usize) -> &str {
        match self.bytes[offset] {
            0 => "",
            number => &self.strings[usize::from(number) - 1],
        }
    }

    fn word(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.bytes[offset..offset + 2].try_into().unwrap())
    }

    fn dword(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.bytes[offset..offset + 4].try_into().unwrap())
    }

    fn qword(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.bytes[offset..offset + 8].try_into().unwrap())
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// Reads the tables through both entry points, checks that they agree, and takes the structures apart.
fn read(tables: &SmbiosTables) -> Vec<Seen> {
    let blob = &tables.blob;
    let (wide, narrow) = (&blob[..24], &blob[32..63]);
    assert_eq!((&wide[..5], wide[6], wide[7], sum(wide)), (b"_SM3_".as_slice(), 24, 3, 0));
    assert_eq!((&narrow[..4], narrow[5], sum(narrow)), (b"_SM_".as_slice(), 31, 0));
    assert_eq!((&narrow[16..21], sum(&narrow[16..])), (b"_DMI_".as_slice(), 0));
    let length = u32::from_le_bytes(wide[12..16].try_into().unwrap());
    let address = u64::from_le_bytes(wide[16..24].try_into().unwrap());
    assert_eq!(u32::from(u16::from_le_bytes([narrow[22], narrow[23]])), length);
    assert_eq!(u64::from(u32::from_le_bytes(narrow[24..28].try_into().unwrap())), address);
    let table = &blob[(address - tables.base_gpa) as usize..][..length as usize];
    let (structures, largest) = parse(table);
    assert_eq!(usize::from(u16::from_le_bytes([narrow[28], narrow[29]])), structures.len());
    assert_eq!(usize::from(u16::from_le_bytes([narrow[8], narrow[9]])), largest);
    assert_eq!(structures.last().unwrap().kind, 127);
    structures
}

fn parse(table: &[u8]) -> (Vec<Seen>, usize) {
    let (mut at, mut seen, mut largest) = (0, Vec::new(), 0);
    while at < table.len() {
        let length = usize::from(table[at + 1]);
        let bytes = table[at..at + length].to_vec();
        let strings_at = at + length;
        let end = strings_at + table[strings_at..].windows(2).position(|pair| pair == [0, 0]).unwrap();
        let strings = table[strings_at..end].split(|byte| *byte == 0).filter(|text| !text.is_empty());
        let strings = strings.map(|text| String::from_utf8(text.to_vec()).unwrap()).collect();
        seen.push(Seen { kind: table[at], bytes, strings });
        largest = largest.max(end + 2 - at);
        at = end + 2;
    }
    (seen, largest)
}

fn only(structures: &[Seen], kind: u8) -> &Seen {
    let mut found = structures.iter().filter(|structure| structure.kind == kind);
    let first = found.next().unwrap();
    assert!(found.next().is_none(), "one structure of type {kind}");
    first
}

#[test]
fn defaults() {
    let all = read(&build(&SmbiosConfig::default(), &facts(), BASE).unwrap());
    let kinds: Vec<u8> = all.iter().map(|structure| structure.kind).collect();
    assert_eq!(kinds, [0, 1, 3, 4, 16, 17, 19, 32, 127]);
    let lengths: Vec<usize> = all.iter().map(|structure| structure.bytes.len()).collect();
    assert_eq!(lengths, [0x18, 0x1B, 0x16, 0x30, 0x17, 0x28, 0x1F, 0x0B, 4]);
    let mut handles: Vec<u16> = all.iter().map(|structure| structure.word(2)).collect();
    handles.dedup();
    assert_eq!(handles.len(), all.len());
    let system = only(&all, 1);
    assert_eq!([4, 5, 6, 7].map(|at| system.text(at)), ["Maker", "Board", "pc-1", ""]);
    assert_eq!(system.bytes[8..24], [0; 16], "no UUID");
    let processor = only(&all, 4);
    assert_eq!((processor.text(4), processor.text(0x10)), ("CPU 0", "qemu64"));
    assert_eq!((processor.qword(8), processor.word(0x14)), (0x0789_ABCD_0000_0663, 1000));
}

#[test]
fn what_the_user_says_wins() {
    let uuid = std::array::from_fn(|index| index as u8);
    let text = |text: &str| Some(text.to_string());
    let mut config = SmbiosConfig::default();
    config.system.manufacturer = text("Acme");
    config.system.product = text("Anvil");
    config.system.version = text("2");
    config.system.serial = text("S1");
    config.system.uuid = Some(uuid);
    config.system.sku = text("K");
    config.system.family = text("F");
    config.bios.vendor = text("V");
    config.bios.release = Some((4, 7));
    config.bios.uefi = Some(true);
    config.board.serial = text("B1");
    config.chassis.asset = text("A1");
    config.oem_strings = vec!["one".into(), "two words".into()];
    let all = read(&build(&config, &SmbiosFacts { uuid: Some([9; 16]), ..facts() }, BASE).unwrap());
    let system = only(&all, 1);
    assert_eq!([4, 5, 6, 7, 0x19, 0x1A].map(|at| system.text(at)), ["Acme", "Anvil", "2", "S1", "K", "F"]);
    assert_eq!(system.bytes[8..24], [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15]);
    let bios = only(&all, 0);
    assert_eq!((bios.text(4), bios.bytes[0x13], &bios.bytes[0x14..]), ("V", 0x1C, [4, 7, 0xFF, 0xFF].as_slice()));
    let board = only(&all, 2);
    assert_eq!((board.text(4), board.text(7), board.word(0x0B)), ("Maker", "B1", only(&all, 3).word(2)));
    assert_eq!(only(&all, 3).text(8), "A1");
    let oem = only(&all, 11);
    assert_eq!((oem.bytes[4], oem.strings.as_slice()), (2, ["one".to_string(), "two words".into()].as_slice()));
}

#[test]
fn uuid_of_the_machine_is_second_choice() {
    let all = read(&build(&SmbiosConfig::default(), &SmbiosFacts { uuid: Some([9; 16]), ..facts() }, BASE).unwrap());
    assert_eq!(only(&all, 1).bytes[8..24], [9; 16]);
}

#[test]
fn processors() {
    let many = SmbiosFacts { sockets: 2, cores: 300, threads: 600, ..facts() };
    let all = read(&build(&SmbiosConfig::default(), &many, BASE).unwrap());
    let processors: Vec<&Seen> = all.iter().filter(|structure| structure.kind == 4).collect();
    assert_eq!(processors.len(), 2);
    assert_eq!((processors[1].text(4), &processors[1].bytes[0x23..0x26]), ("CPU 1", [0xFF; 3].as_slice()));
    assert_eq!([0x26, 0x2A, 0x2C, 0x2E].map(|at| processors[1].word(at)), [0x1C, 300, 300, 600]);
}

#[test]
fn large_memory() {
    let large = SmbiosFacts { ram: vec![0..3 * GIB, 4 * GIB..(1 << 42) + GIB], ..facts() };
    let all = read(&build(&SmbiosConfig::default(), &large, BASE).unwrap());
    let array = only(&all, 16);
    assert_eq!((array.dword(7), array.word(0x0D), array.qword(0x0F)), (0x8000_0000, 256, 1 << 42));
    let ranges: Vec<&Seen> = all.iter().filter(|structure| structure.kind == 19).collect();
    assert_eq!((ranges[0].dword(4), ranges[0].dword(8)), (0, 3 * (1 << 20) - 1));
    assert_eq!(
        (ranges[1].dword(4), ranges[1].qword(0x0F), ranges[1].qword(0x17)),
        (u32::MAX, 4 * GIB, (1 << 42) + GIB - 1)
    );
    let modules: Vec<&Seen> = all.iter().filter(|structure| structure.kind == 17).collect();
    assert_eq!((modules.len(), modules[0].word(0x0C), modules[255].text(0x10)), (256, 16384, "DIMM 255"));
}

#[test]
fn odd_memory() {
    let odd = SmbiosFacts { ram: std::iter::once(0..GIB + 4096).collect(), ..facts() };
    let all = read(&build(&SmbiosConfig::default(), &odd, BASE).unwrap());
    assert_eq!(only(&all, 17).word(0x0C), 1024, "too fine for the field");
    let small = SmbiosFacts { ram: std::iter::once(0..(1 << 20) + 4096).collect(), ..facts() };
    let all = read(&build(&SmbiosConfig::default(), &small, BASE).unwrap());
    assert_eq!(only(&all, 17).word(0x0C), 0x8000 | 1028, "in KiB");
}

#[test]
fn strings_cannot_break_the_table() {
    let config = SmbiosConfig { oem_strings: vec![String::new(), "a\0b".into(), "é".into()], ..Default::default() };
    let all = read(&build(&config, &facts(), BASE).unwrap());
    assert_eq!(only(&all, 11).strings, [" ", "a", "é"]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let many = SmbiosConfig { oem_strings: vec!["x".into(); 256], ..Default::default() };
    assert_eq!(build(&many, &facts(), BASE).unwrap_err(), SmbiosError::TooManyStrings(256));
    let long = SmbiosConfig { oem_strings: vec!["x".repeat(0x1_0000)], ..Default::default() };
    assert!(matches!(build(&long, &facts(), BASE).unwrap_err(), SmbiosError::TooLarge(_, 0x1_0000)));
    for base in [0xE_0000, 0xF_0008, 0x10_0000] {
        assert_eq!(build(&many, &facts(), base).unwrap_err(), SmbiosError::Misplaced(base));
    }
}
