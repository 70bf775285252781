//! Kernels as plain ELF files with the PVH entry note (Xen's public/arch-x86/hvm/start_info.h and the note
//! XEN_ELFNOTE_PHYS32_ENTRY): 32-bit protected mode, EBX points to a start-of-day structure.

use super::elf::Elf;
use super::placement::Placement;
use super::zero_page::e820_type;
use super::{Guest, entry, initrd_start, refuse};
use anyhow::Result;
use brolga_jit::Registers;

/// XEN_ELFNOTE_PHYS32_ENTRY.
const PHYS32_ENTRY: u32 = 18;
/// XEN_HVM_START_MAGIC_VALUE: "xEn3" with the 0x80 bit of the "E" set.
const START_MAGIC: u32 = 0x336E_C578;
/// Version with a memory map.
const START_VERSION: u32 = 1;
/// Where the start-of-day structure goes, with module list and memory map behind it.
const START_INFO: u64 = 0x9000;
const START_INFO_SIZE: u64 = 56;
const MODULE_SIZE: u64 = 32;
/// Where the command line goes, and its room.
const CMDLINE: u64 = 0x2_0000;
const CMDLINE_ROOM: u64 = 0x1_0000;

/// The physical address of the PVH entry point, if the file has one.
pub fn entry_point(guest: &Guest, elf: &Elf) -> Result<Option<u32>> {
    let note = elf.note(guest.kernel, b"Xen", PHYS32_ENTRY)?;
    // The descriptor is 4 bytes in 32-bit files and 8 in 64-bit files, of which the low ones count.
    Ok(note.and_then(|d| d.first_chunk::<4>().map(|b| u32::from_le_bytes(*b))))
}

/// Loads the kernel. The result is the boot processor's state.
pub fn load(guest: &Guest, elf: &Elf, eip: u32, placement: &mut Placement) -> Result<Registers> {
    elf.load(guest.kernel, placement)?;
    let extended = guest.layout.extended();
    let mut module = None;
    if let Some(initrd) = guest.initrd {
        let size = initrd.size()?;
        let Some(start) = initrd_start(size, placement.end_within(&extended)..extended.end) else {
            return Err(guest.initrd_too_large(initrd, size));
        };
        placement.put_file(initrd, 0, size, size, start)?;
        module = Some((start, size));
    }
    let command_line = guest.command_line();
    if command_line.len() as u64 > CMDLINE_ROOM {
        anyhow::bail!("-append: the command line has more than {} bytes; shorten it", CMDLINE_ROOM - 1);
    }
    if elf.segments.iter().all(|s| u64::from(eip).wrapping_sub(s.paddr) >= s.memory_size) {
        refuse!(guest.kernel, "its PVH note names an entry point outside of its segments; the file is damaged");
    }
    placement.put("the kernel's command line", CMDLINE, &command_line)?;
    placement.put("the kernel's start information", START_INFO, &start_info(guest, module))?;
    let mut registers = entry::protected(placement, eip)?;
    registers.gpr[entry::gpr::RBX] = START_INFO;
    Ok(registers)
}

/// `hvm_start_info` followed by the module list and the memory map.
fn start_info(guest: &Guest, module: Option<(u64, u64)>) -> Vec<u8> {
    let map = guest.layout.memory_map();
    let modules = START_INFO + START_INFO_SIZE;
    let memory_map = modules + MODULE_SIZE;
    let mut out = Vec::new();
    let word = |out: &mut Vec<u8>, n: u32| out.extend(n.to_le_bytes());
    let long = |out: &mut Vec<u8>, n: u64| out.extend(n.to_le_bytes());
    word(&mut out, START_MAGIC);
    word(&mut out, START_VERSION);
    word(&mut out, 0); // flags: not the initial domain
    word(&mut out, module.is_some().into());
    long(&mut out, if module.is_some() { modules } else { 0 });
    long(&mut out, CMDLINE);
    long(&mut out, guest.rsdp.unwrap_or(0));
    long(&mut out, memory_map);
    word(&mut out, map.len() as u32);
    word(&mut out, 0);
    let (start, size) = module.unwrap_or((0, 0));
    for n in [start, size, 0, 0] {
        long(&mut out, n);
    }
    for range in map {
        long(&mut out, range.start);
        long(&mut out, range.size);
        word(&mut out, e820_type(range.kind));
        word(&mut out, 0);
    }
    out
}
