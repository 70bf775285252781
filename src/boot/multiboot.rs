//! Multiboot 1 kernels (Multiboot Specification 0.6.96): header in the first 8 KiB, loaded as ELF or by the addresses
//! in the header, started in 32-bit protected mode with EBX pointing to the boot information.

use super::elf::Elf;
use super::placement::Placement;
use super::zero_page::e820_type;
use super::{Guest, entry, refuse};
use anyhow::{Context, Result};
use brolga_jit::Registers;
use std::ops::Range;

/// The header lies within this many bytes (3.1).
const SEARCH: usize = 8192;
const HEADER_MAGIC: u32 = 0x1BAD_B002;
/// What EAX holds at the start (3.2).
const BOOT_MAGIC: u32 = 0x2BAD_B002;

// Header flags (3.1.2). Bits 0 to 15 are demands: what is not known must be refused.
const WANTS_VIDEO: u32 = 1 << 2;
const KNOWN_DEMANDS: u32 = 0x7;
const ADDRESSES_VALID: u32 = 1 << 16;

// Flags of the boot information (3.3).
const INFO_MEMORY: u32 = 1;
const INFO_BOOT_DEVICE: u32 = 1 << 1;
const INFO_CMDLINE: u32 = 1 << 2;
const INFO_MODULES: u32 = 1 << 3;
const INFO_MEMORY_MAP: u32 = 1 << 6;
const INFO_LOADER_NAME: u32 = 1 << 9;

/// Where the boot information goes, with strings, modules list and memory map behind it.
const INFO: u64 = 0x9000;
const INFO_SIZE: u64 = 120;
/// First hard disk, no partition.
const BOOT_DEVICE: u32 = 0x8000_FFFF;
const PAGE: u64 = 4096;

/// The header of a multiboot kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Where it lies in the file.
    offset: u64,
    flags: u32,
    /// header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr.
    addresses: [u32; 5],
}

impl Header {
    /// Finds the header in the start of a file.
    pub fn find(file: &[u8]) -> Option<Self> {
        let file = &file[..file.len().min(SEARCH)];
        let word = |at: usize| file.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
        (0..file.len()).step_by(4).find_map(|at| {
            let (magic, flags, checksum) = (word(at)?, word(at + 4)?, word(at + 8)?);
            if magic != HEADER_MAGIC || magic.wrapping_add(flags).wrapping_add(checksum) != 0 {
                return None;
            }
            let address = |i: usize| word(at + 12 + 4 * i).unwrap_or(0);
            Some(Self { offset: at as u64, flags, addresses: std::array::from_fn(address) })
        })
    }
}

/// Length of the file's start that [`Header::find`] wants to see.
pub const PROBE: usize = SEARCH;

/// Loads the kernel and its modules. The result is the boot processor's state.
pub fn load(guest: &Guest, header: Header, placement: &mut Placement) -> Result<Registers> {
    let unknown = header.flags & 0xFFFF & !KNOWN_DEMANDS;
    if unknown != 0 {
        refuse!(guest.kernel, "its multiboot header demands features {unknown:#x}, which multiboot 1 does not have");
    }
    if header.flags & WANTS_VIDEO != 0 {
        tracing::warn!("{}: its multiboot header asks for a video mode; there is none to set", guest.kernel.named());
    }
    let eip = if header.flags & ADDRESSES_VALID != 0 {
        load_by_addresses(guest, header, placement)?
    } else {
        load_elf(guest, placement)?
    };
    let modules = place_modules(guest, placement)?;
    let info = information(guest, &modules);
    placement.put("the multiboot information", INFO, &info)?;
    let mut registers = entry::protected(placement, eip)?;
    registers.gpr[entry::gpr::RAX] = BOOT_MAGIC.into();
    registers.gpr[entry::gpr::RBX] = INFO;
    Ok(registers)
}

/// The "a.out kludge" (3.1.3).
fn load_by_addresses(guest: &Guest, header: Header, placement: &mut Placement) -> Result<u32> {
    let [header_addr, load_addr, load_end, bss_end, entry] = header.addresses.map(u64::from);
    let kernel = guest.kernel;
    let file_size = kernel.size()?;
    let before = header_addr.checked_sub(load_addr);
    let Some(offset) = before.and_then(|before| header.offset.checked_sub(before)) else {
        refuse!(kernel, "its multiboot header gives addresses that lie before the file's start");
    };
    let in_file = file_size - offset;
    // Zero: everything to the end of the file (load_end_addr), no bss (bss_end_addr).
    let size = if load_end == 0 { Some(in_file) } else { load_end.checked_sub(load_addr) };
    let Some(size) = size.filter(|&s| s <= in_file) else {
        refuse!(kernel, "its multiboot header gives a load_end_addr that lies outside of the file");
    };
    let total = if bss_end == 0 { size } else { bss_end.saturating_sub(load_addr).max(size) };
    placement.put_file(kernel, offset, size, total, load_addr)?;
    Ok(entry as u32)
}

fn load_elf(guest: &Guest, placement: &mut Placement) -> Result<u32> {
    let kernel = guest.kernel;
    let Some(elf) = Elf::read(kernel)? else {
        refuse!(kernel, "a multiboot kernel that is no ELF file must give its addresses (header flag 16)");
    };
    if elf.wide {
        refuse!(kernel, "a 64-bit ELF file, but multiboot 1 starts 32-bit code; convert it: objcopy -O elf32-i386");
    }
    elf.load(kernel, placement)?;
    u32::try_from(elf.physical_entry()).ok().with_context(|| format!("{}: entry point above 4 GiB", kernel.named()))
}

/// A loaded module and its string.
struct Module {
    range: Range<u64>,
    string: Vec<u8>,
}

/// Places the modules page-aligned behind the kernel.
fn place_modules(guest: &Guest, placement: &mut Placement) -> Result<Vec<Module>> {
    let extended = guest.layout.extended();
    let mut modules = Vec::new();
    for module in guest.modules {
        let size = module.image.size()?;
        let start = placement.end_within(&extended).next_multiple_of(PAGE);
        if extended.end.saturating_sub(start) < size {
            return Err(guest.initrd_too_large(&module.image, size));
        }
        placement.put_file(&module.image, 0, size, size, start)?;
        modules.push(Module { range: start..start + size, string: module.string.clone().into_bytes() });
    }
    Ok(modules)
}

/// The boot information (3.3) with all it points to behind it, for address [`INFO`].
fn information(guest: &Guest, modules: &[Module]) -> Vec<u8> {
    let mut tail = Tail { bytes: Vec::new() };
    let mut command_line = guest.kernel.path().to_string_lossy().into_owned();
    if !guest.append.is_empty() {
        command_line = format!("{command_line} {}", guest.append);
    }
    let command_line = tail.string(command_line.as_bytes());
    let loader_name = tail.string(b"brolga");
    let mut list = Vec::new();
    for module in modules {
        let string = tail.string(&module.string);
        list.extend([module.range.start as u32, module.range.end as u32, string, 0]);
    }
    let module_list = tail.words(&list);
    let map = guest.layout.memory_map();
    let memory_map = tail.words(&[]);
    for range in &map {
        let [start, size] = [range.start, range.size].map(|n| [n as u32, (n >> 32) as u32]);
        // `size` (the first word) does not count itself.
        tail.words(&[20, start[0], start[1], size[0], size[1], e820_type(range.kind)]);
    }
    let kib = |bytes: u64| (bytes / 1024) as u32;
    let lower = map.first().map_or(0, |r| r.size);
    let extended = guest.layout.extended();
    let flags = INFO_MEMORY | INFO_BOOT_DEVICE | INFO_CMDLINE | INFO_MODULES | INFO_MEMORY_MAP | INFO_LOADER_NAME;
    let mut words = [0u32; INFO_SIZE as usize / 4];
    words[..7].copy_from_slice(&[
        flags,
        kib(lower),
        kib(extended.end - extended.start),
        BOOT_DEVICE,
        command_line,
        modules.len() as u32,
        module_list,
    ]);
    words[11] = 24 * map.len() as u32;
    words[12] = memory_map;
    words[16] = loader_name;
    let mut out: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    out.extend(tail.bytes);
    out
}

/// What the boot information points to.
struct Tail {
    bytes: Vec<u8>,
}

impl Tail {
    fn here(&self) -> u32 {
        (INFO + INFO_SIZE) as u32 + self.bytes.len() as u32
    }

    fn string(&mut self, string: &[u8]) -> u32 {
        let at = self.here();
        self.bytes.extend(string);
        self.bytes.push(0);
        at
    }

    fn words(&mut self, words: &[u32]) -> u32 {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        let at = self.here();
        self.bytes.extend(words.iter().flat_map(|w| w.to_le_bytes()));
        at
    }
}
