//! `-kernel` together with firmware: the kernel is handed over through fw_cfg. UEFI asks for it itself; a PC BIOS runs a
//! boot ROM, made here, that fetches it by fw_cfg's DMA and starts it at its real-mode entry, so that the kernel asks
//! the BIOS for its memory map (Linux kernel, Documentation/arch/x86/boot.rst, "Real-mode kernel header").

use super::image::Image;
use super::zero_page::{SetupHeader, field};
use super::{Guest, initrd_start, refuse};
use anyhow::{Context, Result};
use brolga_devices::fw_cfg::{Items, item};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// The boot ROM's name among firmware's files: a BIOS runs all in this folder.
const ROM_FILE: &str = "genroms/linux.rom";
/// The same in the boot order.
pub const BOOT_PATH: &str = "/rom@genroms/linux.rom";
/// Where the real-mode part goes, its stack and heap above it, and the command line.
const SETUP: u64 = 0x1_0000;
const STACK_TOP: u16 = 0xE000;
const CMDLINE: u64 = 0x2_0000;
const CMDLINE_ROOM: u64 = 0x1_0000;
/// Where the protected-mode code goes.
const LOAD: u64 = 0x10_0000;
/// What a BIOS takes for itself at the end of low memory, at most.
const BIOS_ROOM: u64 = 1 << 20;
/// `loadflags`: there is a heap, up to `heap_end_ptr`.
const CAN_USE_HEAP: u8 = 0x80;
/// Offset of `heap_end_ptr` in the header, and what is left above the heap.
const HEAP_END_PTR: usize = 0x224;
const ABOVE_HEAP: u16 = 0x200;
/// Loader number for "undefined", `vid_mode` of normal text.
const LOADER_UNDEFINED: u8 = 0xFF;
const VID_MODE_NORMAL: u16 = 0xFFFF;

/// Adds the kernel and what belongs to it to firmware's items; `head` is the start of its file.
pub fn provide(guest: &Guest, head: &[u8], items: &mut Items) -> Result<()> {
    let header = SetupHeader::find(head).context("a file that is no bzImage")?;
    let setup_size = header.setup_size();
    let code = all(guest.kernel, setup_size)?;
    if header.version() < 0x202 || !header.loaded_high() || code.is_empty() || setup_size > u64::from(STACK_TOP) / 2 {
        refuse!(
            guest.kernel,
            "firmware starts bzImages of Linux 2.4 or newer only; start it without firmware, or use another kernel"
        );
    }
    let mut setup = vec![0; setup_size as usize];
    guest.kernel.read_at(0, &mut setup)?;
    let command_line = guest.command_line();
    let limit = header.cmdline_size().min(CMDLINE_ROOM - 1);
    if command_line.len() as u64 > limit + 1 {
        anyhow::bail!("-append: this kernel takes {limit} bytes of command line at most; shorten it");
    }
    let initrd = guest.initrd.map(|image| place_initrd(guest, header, image, code.len() as u64)).transpose()?;
    let (initrd_at, initrd) = initrd.unwrap_or_default();
    let mut put = |at: usize, bytes: &[u8]| setup[at..at + bytes.len()].copy_from_slice(bytes);
    put(field::TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
    put(field::LOADFLAGS, &[head[field::LOADFLAGS] | CAN_USE_HEAP]);
    put(HEAP_END_PTR, &(STACK_TOP - ABOVE_HEAP).to_le_bytes());
    put(field::VID_MODE, &VID_MODE_NORMAL.to_le_bytes());
    put(field::CMD_LINE_PTR, &(CMDLINE as u32).to_le_bytes());
    put(field::RAMDISK_IMAGE, &(initrd_at as u32).to_le_bytes());
    put(field::RAMDISK_SIZE, &(initrd.len() as u32).to_le_bytes());
    let mut parts =
        vec![(item::SETUP, SETUP, setup), (item::CMDLINE, CMDLINE, command_line), (item::KERNEL, LOAD, code)];
    if !initrd.is_empty() {
        parts.push((item::INITRD, initrd_at, initrd));
    }
    let loads: Vec<_> =
        parts.iter().map(|(part, at, bytes)| Load { item: part.data, len: bytes.len() as u32, at: *at }).collect();
    items.add_file(ROM_FILE, rom(&loads)?)?;
    for (part, at, bytes) in parts {
        items.set(part.address, &(at as u32).to_le_bytes());
        items.set(part.size, &(bytes.len() as u32).to_le_bytes());
        items.set(part.data, &bytes);
    }
    Ok(())
}

/// A file from `offset` on.
fn all(image: &Image, offset: u64) -> Result<Vec<u8>> {
    let size = image.size()?.saturating_sub(offset);
    if u32::try_from(size).is_err() {
        refuse!(image, "{size} bytes are too many to hand over to firmware; start without it");
    }
    let mut bytes = vec![0; size as usize];
    image.read_at(offset, &mut bytes)?;
    Ok(bytes)
}

/// Where the initrd goes, and what it is.
fn place_initrd(guest: &Guest, header: SetupHeader, image: &Image, code_size: u64) -> Result<(u64, Vec<u8>)> {
    let bytes = all(image, 0)?;
    let size = bytes.len() as u64;
    let kernel_end = header.needs_until(LOAD).max(LOAD + code_size);
    let end = guest.layout.extended().end.saturating_sub(BIOS_ROOM).min(header.initrd_addr_max() + 1);
    let start = initrd_start(size, kernel_end..end).ok_or_else(|| guest.initrd_too_large(image, size))?;
    Ok((start, bytes))
}

/// Something that the boot ROM fetches.
struct Load {
    item: u16,
    len: u32,
    at: u64,
}

impl Load {
    /// The request as fw_cfg's DMA reads it, all of it big-endian: select the item and read.
    fn request(&self) -> [u8; 16] {
        const SELECT_AND_READ: u32 = 1 << 3 | 1 << 1;
        let mut out = [0; 16];
        out[..4].copy_from_slice(&(u32::from(self.item) << 16 | SELECT_AND_READ).to_be_bytes());
        out[4..8].copy_from_slice(&self.len.to_be_bytes());
        out[8..].copy_from_slice(&self.at.to_be_bytes());
        out
    }
}

/// Offsets in the ROM: its entry at start-up, the pointer to its Plug and Play header, that, its name, the requests.
const AT_INIT: usize = 3;
const AT_HEADER: usize = 0x1A;
const HEADER: usize = 0x20;
const NAME: usize = 0x40;
const REQUESTS: usize = 0x60;
/// ROMs have multiples of this.
const ROM_UNIT: usize = 512;
/// Memory below 1 MiB that nobody uses at boot: where boot sectors go.
const SCRATCH: u32 = 0x7C00;
/// fw_cfg's DMA address register: its high half, its low half, which starts.
const DMA_HIGH: u32 = 0x514;
const DMA_LOW: u32 = 0x518;
/// The error bit of the request's first, big-endian, word.
const DMA_ERROR: u32 = 1 << 24;

/// A boot ROM with a bootstrap entry vector (Plug and Play BIOS Specification 1.0A, 3.2): it fetches `loads` and starts the
/// kernel.
fn rom(loads: &[Load]) -> Result<Vec<u8>> {
    let entry = REQUESTS + 16 * loads.len();
    let mut a = CodeAssembler::new(16)?;
    bootstrap(&mut a, loads.len() as u32)?;
    let code = a.assemble(entry as u64)?;
    let mut rom = vec![0; (entry + code.len() + 1).next_multiple_of(ROM_UNIT)];
    let mut put = |at: usize, bytes: &[u8]| rom[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[0x55, 0xAA]);
    // At start-up there is nothing to do: RETF.
    put(AT_INIT, &[0xCB]);
    put(AT_HEADER, &(HEADER as u16).to_le_bytes());
    // Revision 1, of 2 * 16 bytes.
    put(HEADER, b"$PnP\x01\x02");
    put(HEADER + 16, &(NAME as u16).to_le_bytes());
    put(HEADER + 26, &(entry as u16).to_le_bytes());
    put(NAME, b"Linux of -kernel\0");
    for (n, load) in loads.iter().enumerate() {
        put(REQUESTS + 16 * n, &load.request());
    }
    put(entry, &code);
    rom[2] = (rom.len() / ROM_UNIT) as u8;
    rom[HEADER + 9] = checksum(&rom[HEADER..NAME]);
    let last = rom.len() - 1;
    rom[last] = checksum(&rom);
    Ok(rom)
}

/// What makes the sum of `bytes` zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, b| sum.wrapping_sub(*b))
}

/// The code: each request is copied to memory, for the ROM is read-only by now, and carried out.
fn bootstrap(a: &mut CodeAssembler, loads: u32) -> Result<(), IcedError> {
    let (mut next, mut wait, mut failed) = (a.create_label(), a.create_label(), a.create_label());
    a.cld()?;
    a.push(cs)?;
    a.pop(ds)?;
    a.xor(ax, ax)?;
    a.mov(es, ax)?;
    a.mov(si, REQUESTS as u32)?;
    a.mov(bp, loads)?;
    a.set_label(&mut next)?;
    a.mov(di, SCRATCH)?;
    a.mov(cx, 8)?;
    a.rep().movsw()?;
    a.xor(eax, eax)?;
    a.mov(dx, DMA_HIGH)?;
    a.out(dx, eax)?;
    a.mov(eax, SCRATCH.swap_bytes())?;
    a.mov(dx, DMA_LOW)?;
    a.out(dx, eax)?;
    a.set_label(&mut wait)?;
    a.mov(bx, SCRATCH)?;
    a.mov(eax, dword_ptr(bx).es())?;
    a.test(eax, DMA_ERROR)?;
    a.jnz(failed)?;
    a.test(eax, eax)?;
    a.jnz(wait)?;
    a.dec(bp)?;
    a.jnz(next)?;
    start_kernel(a)?;
    // INT 18h: on to the next boot device.
    a.set_label(&mut failed)?;
    a.int(0x18)
}

/// boot.rst, "Running the kernel".
fn start_kernel(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.cli()?;
    a.mov(ax, (SETUP >> 4) as u32)?;
    for segment in [ds, es, fs, gs, ss] {
        a.mov(segment, ax)?;
    }
    a.mov(sp, u32::from(STACK_TOP))?;
    // JMP FAR behind the boot sector.
    let [low, high] = ((SETUP >> 4) as u16 + 0x20).to_le_bytes();
    a.db(&[0xEA, 0, 0, low, high])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rom_is_one_that_a_bios_takes() {
        let loads = [Load { item: 0x17, len: 0x3E00, at: SETUP }, Load { item: 0x11, len: 8 << 20, at: LOAD }];
        let rom = rom(&loads).unwrap();
        assert_eq!((rom[0], rom[1], usize::from(rom[2]) * 512), (0x55, 0xAA, rom.len()));
        assert_eq!(checksum(&rom), 0);
        assert_eq!((&rom[0x20..0x24], checksum(&rom[0x20..0x40])), (&b"$PnP"[..], 0));
        let entry = usize::from(u16::from_le_bytes([rom[0x3A], rom[0x3B]]));
        assert_eq!(entry, REQUESTS + 32);
        assert_eq!(rom[entry], 0xFC, "CLD");
        assert_eq!(rom[REQUESTS..REQUESTS + 16], [0, 0x17, 0, 0x0A, 0, 0, 0x3E, 0, 0, 0, 0, 0, 0, 1, 0, 0]);
    }
}
