//! The loaders against images made here, through the command line's options.

use super::*;
use crate::cli;
use brolga_jit::mmu::ram::Ram;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

const MIB: u64 = 1 << 20;

/// A file that is gone at the end of the test.
struct TempFile(PathBuf);

impl TempFile {
    fn new(bytes: &[u8]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("brolga-boot-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, bytes).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A guest that was loaded.
struct Loaded {
    ram: Ram,
    starts: Vec<(u32, Registers)>,
}

impl Loaded {
    fn bytes(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        assert!(self.ram.read(gpa, &mut buf), "{gpa:#x} is not in memory");
        buf
    }

    fn number(&self, gpa: u64, len: usize) -> u64 {
        self.bytes(gpa, len).iter().rev().fold(0, |n, &b| n << 8 | u64::from(b))
    }

    fn text(&self, gpa: u64) -> String {
        let text = self.bytes(gpa, 64);
        String::from_utf8(text.split(|&b| b == 0).next().unwrap().to_vec()).unwrap()
    }

    fn start(&self) -> &Registers {
        assert_eq!((self.starts.len(), self.starts[0].0), (1, 0));
        &self.starts[0].1
    }
}

fn config(args: &[&str]) -> Config {
    let words: Vec<String> = args.iter().map(|&a| a.to_owned()).collect();
    match cli::parse(cli::identify(Some("brolga")), &words) {
        Ok(cli::Request::Run(config)) => *config,
        _ => panic!("not a machine: {words:?}"),
    }
}

/// Loads with memory of `low` and `high` bytes.
fn load_into(args: &[&str], low: u64, high: u64, long_mode: bool) -> Result<Loaded> {
    let boot = Boot::open(&config(args))?;
    let layout = Layout { low, high, rom: boot.rom_size()? };
    let ram = Ram::new(layout.file_size(), layout.regions()).unwrap();
    let mut placement = Placement::new(&ram);
    let starts = boot.load(Facts { layout, rsdp: Some(0xE_0000), long_mode }, &mut placement)?;
    Ok(Loaded { ram, starts })
}

fn load(args: &[&str]) -> Result<Loaded> {
    load_into(args, 64 * MIB, 0, true)
}

#[track_caller]
fn refused(result: Result<Loaded>, words: &[&str]) {
    let Err(error) = result else { panic!("was not refused") };
    let line = format!("{error:#}");
    assert!(!line.contains('\n'), "{line}");
    for word in words {
        assert!(line.contains(word), "no '{word}' in: {line}");
    }
}

/// A bzImage of protocol `version` with `code` behind one sector of set-up code.
fn bzimage(version: u16, xloadflags: u16, code: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 1024];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1F1, &[1]);
    put(0x1F4, &(code.len() as u32 / 16).to_le_bytes());
    put(0x1FE, &[0x55, 0xAA, 0xEB, 0x66]);
    put(0x202, b"HdrS");
    put(0x206, &version.to_le_bytes());
    put(0x211, &[1]);
    put(0x22C, &0x7FFF_FFFFu32.to_le_bytes());
    put(0x236, &xloadflags.to_le_bytes());
    put(0x238, &40u32.to_le_bytes());
    put(0x258, &(2 * MIB).to_le_bytes());
    put(0x260, &(MIB as u32).to_le_bytes());
    file.extend(code);
    file
}

const ZERO_PAGE: u64 = 0x1_0000;

#[test]
fn a_64_bit_kernel_starts_in_long_mode_with_its_parameters() {
    let kernel = TempFile::new(&bzimage(0x20F, 3, &[0x90; 160]));
    let initrd = TempFile::new(&[7; 5000]);
    let args = ["-kernel", kernel.path(), "-initrd", initrd.path(), "-append", "console=ttyS0 quiet"];
    let guest = load(&args).unwrap();
    let r = guest.start();
    assert_eq!((r.rip, r.gpr[6]), (0x10_0200, ZERO_PAGE));
    assert_eq!(r.efer & 0x500, 0x500);
    assert_eq!(guest.bytes(0x10_0000, 160), [0x90; 160]);
    assert_eq!(guest.number(ZERO_PAGE + 0x202, 4), u64::from(u32::from_le_bytes(*b"HdrS")));
    assert_eq!(guest.number(ZERO_PAGE + 0x210, 1), 0xFF, "type_of_loader");
    assert_eq!(guest.number(ZERO_PAGE + 0x70, 8), 0xE_0000, "acpi_rsdp_addr");
    assert_eq!(guest.text(guest.number(ZERO_PAGE + 0x228, 4)), "console=ttyS0 quiet");
    let initrd_start = guest.number(ZERO_PAGE + 0x218, 4);
    assert_eq!(initrd_start, 64 * MIB - 8192, "page aligned, at the end of memory");
    assert_eq!(guest.number(ZERO_PAGE + 0x21C, 4), 5000);
    assert_eq!(guest.bytes(initrd_start, 5000), [7; 5000]);
    let node = guest.number(ZERO_PAGE + 0x250, 8);
    assert_eq!((guest.number(node, 8), guest.number(node + 8, 4), guest.number(node + 12, 4)), (0, 9, 32));
    assert_ne!(guest.bytes(node + 16, 32), [0; 32]);
    let entries = guest.number(ZERO_PAGE + 0x1E8, 1);
    let last = ZERO_PAGE + 0x2D0 + 20 * (entries - 1);
    assert_eq!((guest.number(last, 8), guest.number(last + 8, 8), guest.number(last + 16, 4)), (MIB, 63 * MIB, 1));
}

#[test]
fn a_32_bit_kernel_starts_in_protected_mode() {
    let kernel = TempFile::new(&bzimage(0x20F, 0, &[0x90; 160]));
    for long_mode in [false, true] {
        let guest = load_into(&["-kernel", kernel.path()], 16 * MIB, 0, long_mode).unwrap();
        let r = guest.start();
        assert_eq!((r.rip, r.gpr[6], r.efer), (0x10_0000, ZERO_PAGE, 0));
        assert_eq!((r.segments[1].selector, r.segments[3].selector), (0x10, 0x18));
    }
}

#[test]
fn a_large_initrd_goes_above_4_gib_where_the_kernel_allows() {
    let initrd = TempFile::new(&vec![3; 5 * MIB as usize]);
    for (flags, above) in [(3, true), (1, false)] {
        let kernel = TempFile::new(&bzimage(0x20F, flags, &[0x90; 160]));
        let guest = load_into(&["-kernel", kernel.path(), "-initrd", initrd.path()], 4 * MIB, 8 * MIB, true);
        if above {
            let guest = guest.unwrap();
            let low = guest.number(ZERO_PAGE + 0x218, 4);
            let start = guest.number(ZERO_PAGE + 0xC0, 4) << 32 | low;
            assert_eq!(start, (4 << 30) + 3 * MIB);
            assert_eq!(guest.bytes(start + 5 * MIB - 1, 1), [3]);
        } else {
            refused(guest, &["-initrd", "5 MiB", "-m"]);
        }
    }
}

#[test]
fn an_initrd_stays_below_the_kernels_limit() {
    let mut image = bzimage(0x20F, 0, &[0x90; 160]);
    image[0x22C..0x230].copy_from_slice(&(8 * MIB as u32 - 1).to_le_bytes());
    let (kernel, initrd) = (TempFile::new(&image), TempFile::new(&[1; 4096]));
    let guest = load(&["-kernel", kernel.path(), "-initrd", initrd.path()]).unwrap();
    assert_eq!(guest.number(ZERO_PAGE + 0x218, 4), 8 * MIB - 4096);
}

#[test]
fn bad_kernels_and_command_lines_are_refused_in_one_line() {
    let refuse = |bytes: &[u8], words: &[&str]| {
        let file = TempFile::new(bytes);
        refused(load(&["-kernel", file.path()]), &[&["-kernel", file.path()], words].concat());
    };
    refuse(b"just text\n", &["not a kernel", "bzImage"]);
    refuse(&[0], &["not a kernel"]);
    refuse(&bzimage(0x201, 0, &[0; 16]), &["2.01", "too old"]);
    let mut zimage = bzimage(0x20F, 0, &[0; 16]);
    zimage[0x211] = 0;
    refuse(&zimage, &["zImage"]);
    refuse(&bzimage(0x20F, 0, &[0; 4096])[..1500], &["cut short"]);
    let good = TempFile::new(&bzimage(0x20F, 1, &[0; 16]));
    refused(load(&["-kernel", good.path(), "-append", &"x".repeat(41)]), &["-append", "41", "40"]);
    assert!(load(&["-kernel", good.path(), "-append", &"x".repeat(40)]).is_ok());
    refused(load_into(&["-kernel", good.path()], 2 * MIB, 0, true), &["-m", "3 MiB"]);
    refused(load_into(&["-kernel", good.path()], 64 * MIB, 0, false), &["64-bit", "-cpu"]);
}

/// An ELF executable with one segment at `paddr`, `code` in it, and notes.
fn elf(wide: bool, entry: u64, vaddr: u64, paddr: u64, code: &[u8], notes: &[u8]) -> Vec<u8> {
    let address = |n: u64| n.to_le_bytes()[..if wide { 8 } else { 4 }].to_vec();
    let (header, program_header): (u16, u16) = if wide { (64, 56) } else { (52, 32) };
    let code_at = u64::from(header) + 2 * u64::from(program_header);
    let notes_at = code_at + code.len() as u64;
    let mut f = vec![0x7F, b'E', b'L', b'F', if wide { 2 } else { 1 }, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    f.extend([2, 0, if wide { 62 } else { 3 }, 0, 1, 0, 0, 0]);
    f.extend([address(entry), address(header.into()), address(0), vec![0; 4]].concat());
    f.extend([header, program_header, 2, 0, 0, 0].iter().flat_map(|n| n.to_le_bytes()));
    let mut segment = |kind: u32, at: u64, vaddr: u64, paddr: u64, size: u64, memory: u64| {
        f.extend(kind.to_le_bytes());
        if wide {
            f.extend(7u32.to_le_bytes());
        }
        f.extend([at, vaddr, paddr, size, memory].into_iter().flat_map(address));
        if !wide {
            f.extend(7u32.to_le_bytes());
        }
        f.extend(address(4));
    };
    segment(1, code_at, vaddr, paddr, code.len() as u64, code.len() as u64 + 32);
    segment(4, notes_at, 0, 0, notes.len() as u64, 0);
    f.extend(code);
    f.extend(notes);
    f
}

/// Where Linux maps its kernel, and where the kernel inside of [`packed`] was linked to lie in memory.
const KERNEL_MAP: u64 = 0xFFFF_FFFF_8000_0000;
const LINKED: u64 = 2 * MIB;
/// Addresses in that kernel: 64 bits, 32 bits, and 32 bits of a difference that shrinks.
const WIDE: u64 = 0x100;
const NARROW: u64 = 0x200;
const INVERSE: u64 = 0x300;

/// A kernel as it is inside of a bzImage, with `tables` of relocations behind it.
fn vmlinux(tables: &[&[u64]]) -> Vec<u8> {
    let mut code = vec![0x90; 0x1000];
    let mut put = |at: u64, bytes: &[u8]| code[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    put(WIDE, &(KERNEL_MAP + LINKED).to_le_bytes());
    put(NARROW, &((KERNEL_MAP + LINKED) as u32).to_le_bytes());
    put(INVERSE, &5u32.to_le_bytes());
    let mut file = elf(true, LINKED + 0x10, KERNEL_MAP + LINKED, LINKED, &code, &[]);
    for table in tables {
        file.extend([0; 4]);
        file.extend(table.iter().flat_map(|place| ((KERNEL_MAP + LINKED + place) as u32).to_le_bytes()));
    }
    file
}

/// A bzImage with `kernel` in it, packed by gzip.
fn packed(kernel: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(vec![0xCC; 0x400], flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, kernel).unwrap();
    let mut code = gzip.finish().unwrap();
    let length = code.len() as u32 - 0x400;
    code.resize(code.len().next_multiple_of(16), 0);
    let mut file = bzimage(0x20F, 3, &code);
    for (at, value) in [(0x230, 0x1_0000), (0x248, 0x400), (0x24C, length)] {
        file[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
    }
    file
}

impl Loaded {
    /// The kernel started by itself: where it lies, how far its addresses were moved, and whether it is told so.
    fn unpacked(&self) -> (u64, u64, bool) {
        let r = self.start();
        assert_eq!((r.gpr[6], r.efer & 0x500), (ZERO_PAGE, 0x500));
        let at = r.rip - 0x10;
        assert_eq!(self.bytes(at, 0x100), [0x90; 0x100]);
        assert_eq!(self.bytes(at + 0x1000, 32), [0; 32], "memory behind the file's part");
        assert_eq!(self.number(MIB, 8), 0, "the first stage is not loaded");
        let moved = self.number(at + WIDE, 8) - KERNEL_MAP - LINKED;
        assert_eq!(self.number(at + NARROW, 4) as u32, (KERNEL_MAP + LINKED + moved) as u32);
        (at, moved, self.number(ZERO_PAGE + 0x211, 1) & 2 != 0)
    }
}

#[test]
fn a_packed_kernel_is_started_itself_at_random_addresses() {
    let initrd = TempFile::new(&[7; 5000]);
    for (shrinks, tables) in
        [(true, [&[WIDE][..], &[INVERSE], &[NARROW]].as_slice()), (false, [&[WIDE][..], &[NARROW]].as_slice())]
    {
        let kernel = TempFile::new(&packed(&vmlinux(tables)));
        let mut seen = [std::collections::HashSet::new(), std::collections::HashSet::new()];
        for seed in 0..40 {
            let seed = seed.to_string();
            let args = ["-kernel", kernel.path(), "-initrd", initrd.path(), "-seed", &seed];
            let guest = load(&args).unwrap();
            let (at, moved, told) = guest.unpacked();
            assert!(told && at % 0x1_0000 == 0 && at >= LINKED && at + MIB <= 64 * MIB - 8192, "{at:#x}");
            assert!(moved % 0x1_0000 == 0 && LINKED + moved + MIB <= 1 << 30, "{moved:#x}");
            let shrunk = if shrinks { 5u32.wrapping_sub(moved as u32) } else { 5 };
            assert_eq!(guest.number(at + INVERSE, 4) as u32, shrunk);
            seen[0].insert(at);
            seen[1].insert(moved);
            assert_eq!(load(&args).unwrap().unpacked(), (at, moved, told), "the same seed");
        }
        assert!(seen.iter().all(|values| values.len() > 30), "{seen:x?}");
    }
}

#[test]
fn a_packed_kernel_stays_where_it_is_told_to() {
    let movable = packed(&vmlinux(&[&[WIDE], &[NARROW]]));
    let (movable, fixed) = (TempFile::new(&movable), TempFile::new(&packed(&vmlinux(&[]))));
    let load = |kernel: &TempFile, more: &[&str]| {
        let guest = load(&[&["-kernel", kernel.path(), "-seed", "3"], more].concat()).unwrap();
        guest.unpacked()
    };
    assert_eq!(load(&fixed, &[]), (LINKED, 0, false));
    assert_eq!(load(&movable, &["-append", "quiet nokaslr debug"]), (LINKED, 0, false));
    let (at, moved, told) = load(&movable, &["-append", "notnokaslr"]);
    assert!(at != LINKED && moved != 0 && told);
    // Where memory is used for other things, only the virtual address is by chance.
    let data = ["-device", "loader,addr=0x3000000,data=1,data-len=4"];
    for more in [&data[..], &["-append", "mem=40M"], &["-append", "memmap=1M$32M"], &["-append", "hugepages=3"]] {
        assert_eq!(load(&movable, more), (LINKED, moved, true), "{more:?}");
    }
}

#[test]
fn a_kernel_in_a_form_that_is_not_known_unpacks_itself() {
    let good = packed(&vmlinux(&[&[WIDE], &[NARROW]]));
    let first_stage = |file: &[u8], more: &[&str]| {
        let kernel = TempFile::new(file);
        let guest = load(&[&["-kernel", kernel.path()], more].concat()).unwrap();
        assert_eq!((guest.start().rip, guest.number(MIB, 1)), (0x10_0200, 0xCC));
        assert_eq!(guest.number(ZERO_PAGE + 0x211, 1) & 2, 0);
    };
    first_stage(&good, &["-machine", "pc,unpack-kernel=off"]);
    let with = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    let payload = 1024 + 0x400;
    first_stage(&with(0x206, &0x20Eu16.to_le_bytes()), &[]);
    first_stage(&with(payload, b"BZh9"), &[]);
    first_stage(&with(payload + 30, &[0xFF; 8]), &[]);
    for (at, value) in [(0x248, 0x7FFF_FFFF), (0x24C, 0x7FFF_FFFF), (0x24C, 7), (0x230, 0), (0x230, 0x40_0000)] {
        first_stage(&with(at, &u32::to_le_bytes(value)), &[]);
    }
    // Relocations of places that the kernel does not have, of one table, of four, and of half a word.
    for tables in [&[&[0x0FFC_u64][..], &[]][..], &[&[], &[0x0FFD]], &[&[WIDE]], &[&[WIDE], &[], &[], &[]]] {
        first_stage(&packed(&vmlinux(tables)), &[]);
    }
    first_stage(&packed(&[vmlinux(&[]), vec![0; 2]].concat()), &[]);
    // Kernels of 32 bits, that lie or start elsewhere, that are cut short, or that are none.
    let code = [0x90; 0x1000];
    first_stage(&packed(&elf(false, LINKED, LINKED, LINKED, &code, &[])), &[]);
    first_stage(&packed(&elf(true, LINKED, 0, MIB, &code, &[])), &[]);
    first_stage(&packed(&elf(true, LINKED, 0, 3 * MIB - 16, &code, &[])), &[]);
    first_stage(&packed(&elf(true, LINKED + 0x1000, 0, LINKED, &code, &[])), &[]);
    first_stage(&packed(&vmlinux(&[])[..0x800]), &[]);
    first_stage(&packed(b"no kernel at all"), &[]);
}

/// A note as in ELF files, aligned to 4.
fn note(name: &[u8], kind: u32, descriptor: &[u8]) -> Vec<u8> {
    let mut n: Vec<u8> =
        [name.len() as u32, descriptor.len() as u32, kind].iter().flat_map(|n| n.to_le_bytes()).collect();
    n.extend(name);
    n.resize(n.len().next_multiple_of(4), 0);
    n.extend(descriptor);
    n.resize(n.len().next_multiple_of(4), 0);
    n
}

#[test]
fn a_pvh_kernel_gets_its_start_information() {
    let entry = (4 * MIB + 4).to_le_bytes();
    let notes = [note(b"GNU\0", 18, &[0; 5]), note(b"Xen\0", 17, &[1; 8]), note(b"Xen\0", 18, &entry)].concat();
    let kernel = TempFile::new(&elf(true, !0xFFF, !0xFFF, 4 * MIB, &[0x90; 100], &notes));
    let initrd = TempFile::new(&[9; 10]);
    let args = ["-kernel", kernel.path(), "-initrd", initrd.path(), "-append", "pvh"];
    let guest = load(&args).unwrap();
    let r = guest.start();
    assert_eq!((r.rip, r.cr0 & 0x8000_0001), (4 * MIB + 4, 1));
    assert_eq!(guest.bytes(4 * MIB, 132), [[0x90; 100].to_vec(), vec![0; 32]].concat());
    let info = r.gpr[3];
    assert_eq!((guest.number(info, 4), guest.number(info + 4, 4)), (0x336E_C578, 1));
    assert_eq!(guest.number(info + 12, 4), 1, "one module");
    let module = guest.number(info + 16, 8);
    assert_eq!((guest.number(module, 8), guest.number(module + 8, 8)), (64 * MIB - 4096, 10));
    assert_eq!(guest.text(guest.number(info + 24, 8)), "pvh");
    assert_eq!(guest.number(info + 32, 8), 0xE_0000, "rsdp");
    let (map, entries) = (guest.number(info + 40, 8), guest.number(info + 48, 4));
    let last = map + 24 * (entries - 1);
    assert_eq!((guest.number(last, 8), guest.number(last + 8, 8), guest.number(last + 16, 4)), (MIB, 63 * MIB, 1));
}

#[test]
fn elf_files_that_cannot_be_started_are_refused() {
    let refuse = |bytes: &[u8], words: &[&str]| {
        let file = TempFile::new(bytes);
        refused(load(&["-kernel", file.path()]), words);
    };
    let plain = elf(true, 0, 0, 4 * MIB, &[0; 16], &[]);
    refuse(&plain, &["PVH", "-device loader"]);
    let mut foreign = plain.clone();
    foreign[18] = 183;
    refuse(&foreign, &["another processor"]);
    refuse(&plain[..100], &["cannot read"]);
    let pvh = note(b"Xen\0", 18, &[0, 0, 0x10, 0]);
    refuse(&elf(true, 0, 0, 63 * MIB + 0xF_FFF0, &[0; 64], &pvh), &["-m"]);
    refuse(&elf(true, 0, 0, 2 * MIB, &[0; 64], &pvh), &["PVH", "outside"]);
    let mut wrapped = plain;
    wrapped[64 + 40..64 + 48].fill(0xFF);
    refuse(&wrapped, &["damaged"]);
}

/// A multiboot header with `flags` and addresses.
fn multiboot_header(flags: u32, addresses: &[u32]) -> Vec<u8> {
    let sum = 0u32.wrapping_sub(0x1BAD_B002).wrapping_sub(flags);
    [&[0x1BAD_B002, flags, sum], addresses].concat().iter().flat_map(|n| n.to_le_bytes()).collect()
}

#[test]
fn a_multiboot_elf_kernel_gets_modules_and_memory_map() {
    let kernel = TempFile::new(&elf(false, 0x8020_0010, 0x8020_0000, 2 * MIB, &multiboot_header(3, &[]), &[]));
    let (one, two) = (TempFile::new(&[1; 5]), TempFile::new(&[2; 4097]));
    let modules = format!("{} with args,{}", one.path(), two.path());
    let args = ["-kernel", kernel.path(), "-append", "a b", "-initrd", &modules];
    let guest = load_into(&args, 16 * MIB, 0, true).unwrap();
    let r = guest.start();
    assert_eq!((r.rip, r.gpr[0]), (2 * MIB + 0x10, 0x2BAD_B002));
    let info = r.gpr[3];
    let word = |i: u64| guest.number(info + 4 * i, 4);
    assert_eq!(word(0) & 0x4F, 0x4F);
    assert_eq!((word(1), word(2)), (639, 15 * 1024));
    assert_eq!(guest.text(word(4)), format!("{} a b", kernel.path()));
    assert_eq!(word(5), 2);
    let module = |i: u64, field: u64| guest.number(word(6) + 16 * i + 4 * field, 4);
    assert_eq!((module(0, 0), module(0, 1)), (2 * MIB + 4096, 2 * MIB + 4096 + 5));
    assert_eq!((module(1, 0), module(1, 1)), (2 * MIB + 8192, 2 * MIB + 8192 + 4097));
    assert_eq!(guest.text(module(0, 2)), modules.split(',').next().unwrap());
    assert_eq!(guest.bytes(module(1, 0), 4097), [2; 4097]);
    let (map, length) = (word(12), word(11));
    assert_eq!(guest.number(map, 4), 20);
    let last = map + length - 24;
    assert_eq!((guest.number(last + 4, 8), guest.number(last + 12, 8)), (MIB, 15 * MIB));
}

#[test]
fn a_multiboot_kernel_may_give_its_addresses_itself() {
    // 16 bytes before the header belong to the image; the header says it lies at 1 MiB + 16.
    let base = MIB as u32;
    let header = |addresses: [u32; 5]| [vec![0xAA; 16], multiboot_header(1 << 16, &addresses), vec![0xCC; 20]].concat();
    let image = header([base + 16, base, base + 60, base + 100, base + 48]);
    let kernel = TempFile::new(&image);
    let guest = load(&["-kernel", kernel.path()]).unwrap();
    assert_eq!(guest.start().rip, MIB + 48);
    assert_eq!(guest.bytes(MIB, 60), image[..60]);
    assert_eq!(guest.bytes(MIB + 60, 40), [0; 40]);
    let early = TempFile::new(&header([base + 64, base, 0, 0, base]));
    refused(load(&["-kernel", early.path()]), &["before the file's start"]);
    let long = TempFile::new(&header([base + 16, base, base + 4096, 0, base]));
    refused(load(&["-kernel", long.path()]), &["load_end_addr"]);
}

#[test]
fn multiboot_demands_that_do_not_exist_are_refused() {
    let kernel = TempFile::new(&multiboot_header(0x8000, &[]));
    refused(load(&["-kernel", kernel.path()]), &["0x8000"]);
    let wide = TempFile::new(&elf(true, 0, 0, 2 * MIB, &multiboot_header(0, &[]), &[]));
    refused(load(&["-kernel", wide.path()]), &["objcopy"]);
}

#[test]
fn the_loader_device_loads_and_starts() {
    let raw = TempFile::new(&[0xF4; 3]);
    let start = |addr: &str| {
        let guest = load(&["-device", &format!("loader,file={},addr={addr},cpu-num=0", raw.path())]).unwrap();
        let r = guest.start().clone();
        assert_eq!(guest.bytes(r.segments[1].base + r.rip, 3), [0xF4; 3]);
        r.cr0 & 1
    };
    assert_eq!(start("0x7c00"), 0, "real mode below 1 MiB");
    assert_eq!(start("0x100000"), 1, "protected mode above");
    for wide in [false, true] {
        let file = TempFile::new(&elf(wide, 0x40_0008, 0x40_0000, 0x30_0000, &[1; 64], &[]));
        let args = format!("loader,file={},cpu-num=0", file.path());
        let data = "loader,addr=0x5000,data=0x11223344,data-len=4";
        let guest = load(&["-device", &args, "-device", data]).unwrap();
        assert_eq!(guest.start().rip, 0x30_0008);
        assert_eq!(guest.start().efer != 0, wide);
        assert_eq!(guest.bytes(0x5000, 4), [0x44, 0x33, 0x22, 0x11]);
        refused(load(&["-device", &args, "-device", "loader,addr=0x300004,data=1,data-len=1"]), &["overlaps"]);
    }
}

#[test]
fn firmware_lies_below_4_gib_and_starts_at_the_reset_vector() {
    let mut image = vec![0; 128 << 10];
    image[(128 << 10) - 16..][..3].copy_from_slice(b"jmp");
    let bios = TempFile::new(&image);
    let guest = load(&["-bios", bios.path()]).unwrap();
    assert!(guest.starts.is_empty());
    assert_eq!(guest.bytes(0xFFFF_FFF0, 3), b"jmp");
    let open = |size: usize| Image::open("-bios", &TempFile::new(&vec![0; size]).0).and_then(|i| firmware::size(&i));
    assert_eq!(open(64 << 10).unwrap(), 64 << 10);
    assert!(open(5000).unwrap_err().to_string().contains("64 KiB"));
    assert!(open(17 << 20).unwrap_err().to_string().contains("16 MiB"));
}

/// Whether a kernel is handed over to firmware, or the error line.
fn handed_over(kernel: &[u8]) -> Result<bool, String> {
    let (bios, kernel) = (TempFile::new(&[0; 64 << 10]), TempFile::new(kernel));
    let args = ["-bios", bios.path(), "-kernel", kernel.path(), "-append", "quiet"];
    let boot = Boot::open(&config(&args)).map_err(|e| format!("{e:#}"))?;
    assert!(!boot.has_kernel(), "firmware starts it");
    let layout = Layout { low: 64 * MIB, high: 0, rom: boot.rom_size().unwrap() };
    let facts = Facts { layout, rsdp: None, long_mode: true };
    boot.hand_over(facts, &mut Items::new()).map_err(|e| format!("{e:#}"))
}

#[test]
fn firmware_is_handed_bzimages_only() {
    assert_eq!(handed_over(&bzimage(0x20F, 3, &[0x90; 160])), Ok(true));
    assert!(handed_over(&bzimage(0x20F, 3, &[])).unwrap_err().contains("without firmware"));
    assert!(handed_over(&multiboot_header(0, &[])).unwrap_err().contains("bzImages only"));
}
