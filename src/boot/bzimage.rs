//! Linux kernels in bzImage form, unpacked here and started themselves, or started at the 64-bit or 32-bit entry point of
//! the first stage, which unpacks them
//! (Documentation/arch/x86/boot.rst of the Linux kernel, "32-bit" and "64-bit boot protocol").

use super::image::Image;
use super::placement::Placement;
use super::unpacked::{Choice, Unpacked};
use super::zero_page::{SetupHeader, ZeroPage, field, rng_seed_node};
use super::{Guest, entry, initrd_start, refuse};
use crate::entropy::Randomness;
use anyhow::{Context, Result, bail};
use brolga_jit::Registers;

/// Where the boot parameters go.
const ZERO_PAGE: u64 = 0x1_0000;
/// Where the `setup_data` list goes.
const SETUP_DATA: u64 = 0x1_1000;
/// Where the command line goes, and how long it may be with its zero.
const CMDLINE: u64 = 0x2_0000;
const CMDLINE_ROOM: u64 = 0x1_0000;
/// Where the protected-mode code goes.
const LOAD: u64 = 0x10_0000;
/// The 64-bit entry point, counted from the load address.
const ENTRY_64: u64 = 0x200;
/// Loader number for "undefined" (boot.rst, `type_of_loader`).
const LOADER_UNDEFINED: u8 = 0xFF;
/// `vid_mode`: normal text mode.
const VID_MODE_NORMAL: u16 = 0xFFFF;
/// Oldest protocol with a command line pointer (Linux 2.4).
const OLDEST_PROTOCOL: u16 = 0x202;
const SEED_LEN: usize = 32;

/// Loads the kernel; `head` is the start of its file. The result is the boot processor's state.
pub fn load(guest: &Guest, head: &[u8], placement: &mut Placement) -> Result<Registers> {
    let header = SetupHeader::find(head).context("a file that is no bzImage")?;
    check(guest, header)?;
    let mut page = ZeroPage::new(head);
    let kernel = guest.kernel;
    // Signed images have more behind the code than the header counts: all of it is loaded, as boot loaders do.
    let code_size = kernel.size()?.saturating_sub(header.setup_size());
    if code_size < header.code_size().saturating_sub(16) || code_size == 0 {
        refuse!(kernel, "the file is cut short: its header says {} bytes of code", header.code_size());
    }
    let needs_until = header.needs_until(LOAD).max(LOAD + code_size);
    if needs_until > guest.layout.extended().end {
        refuse!(kernel, "it needs {} MiB of memory to start; give more with -m", needs_until.div_ceil(1 << 20));
    }
    page.set_u32(field::CODE32_START, LOAD as u32);
    page.set_u8(field::TYPE_OF_LOADER, LOADER_UNDEFINED);
    page.set_u16(field::VID_MODE, VID_MODE_NORMAL);
    page.set_memory_map(&guest.layout.memory_map());
    page.set_u64(field::ACPI_RSDP_ADDR, guest.rsdp.unwrap_or(0));
    place_command_line(guest, header, &mut page, placement)?;
    if let Some(initrd) = guest.initrd {
        place_initrd(guest, header, initrd, needs_until, &mut page, placement)?;
    }
    let random = Randomness::new(guest.seed, 0);
    if header.version() >= 0x209 {
        let mut seed = [0; SEED_LEN];
        random.fill(&mut seed).context("the host has no random seed for the guest yet")?;
        placement.put("the random seed for the kernel", SETUP_DATA, &rng_seed_node(&seed))?;
        page.set_u64(field::SETUP_DATA, SETUP_DATA);
    }
    let unpacked = if guest.unpack && header.is_64_bit() { Unpacked::take_out(kernel, header) } else { None };
    let mut registers = match unpacked {
        Some(unpacked) => start_unpacked(guest, unpacked, &random, &mut page, placement)?,
        None => {
            placement.put_file(kernel, header.setup_size(), code_size, code_size, LOAD)?;
            match header.is_64_bit() {
                true => entry::long(placement, LOAD + ENTRY_64)?,
                false => entry::protected(placement, LOAD as u32)?,
            }
        }
    };
    placement.put("the kernel's boot parameters", ZERO_PAGE, page.bytes())?;
    registers.gpr[entry::gpr::RSI] = ZERO_PAGE;
    Ok(registers)
}

/// Puts the kernel that was inside of the bzImage into memory.
fn start_unpacked(
    guest: &Guest,
    kernel: Unpacked,
    random: &Randomness,
    page: &mut ZeroPage,
    placement: &mut Placement,
) -> Result<Registers> {
    let extended = guest.layout.extended();
    let free_until = placement.start_within(&extended);
    let choice = Choice { append: guest.append, free_until, anywhere: !guest.more_follows, random };
    let started = kernel.start(guest.kernel, &choice, placement)?;
    if started.randomised {
        page.set_randomised();
    }
    entry::long(placement, started.entry)
}

fn check(guest: &Guest, header: SetupHeader) -> Result<()> {
    let (kernel, version) = (guest.kernel, header.version());
    if version < OLDEST_PROTOCOL {
        let (major, minor) = (version >> 8, version & 0xFF);
        refuse!(kernel, "boot protocol {major}.{minor:02} is too old; use a kernel of Linux 2.4 or newer (2.02)");
    }
    if !header.loaded_high() {
        refuse!(kernel, "a zImage is not supported; build the kernel as a bzImage");
    }
    if header.is_64_bit() && !guest.long_mode {
        refuse!(kernel, "a 64-bit kernel, but the processor of -cpu is 32-bit; choose another -cpu or a 32-bit kernel");
    }
    Ok(())
}

fn place_command_line(
    guest: &Guest,
    header: SetupHeader,
    page: &mut ZeroPage,
    placement: &mut Placement,
) -> Result<()> {
    let limit = header.cmdline_size().min(CMDLINE_ROOM - 1);
    let length = guest.append.len() as u64;
    if length > limit {
        bail!("-append: the command line has {length} bytes, this kernel takes {limit} at most; shorten it");
    }
    placement.put("the kernel's command line", CMDLINE, &guest.command_line())?;
    page.set_u32(field::CMD_LINE_PTR, CMDLINE as u32);
    Ok(())
}

fn place_initrd(
    guest: &Guest,
    header: SetupHeader,
    initrd: &Image,
    kernel_end: u64,
    page: &mut ZeroPage,
    placement: &mut Placement,
) -> Result<()> {
    let size = initrd.size()?;
    let low_end = guest.layout.extended().end.min(header.initrd_addr_max() + 1);
    let low = initrd_start(size, kernel_end..low_end);
    let high = if header.takes_initrd_above_4g() { initrd_start(size, guest.layout.above_4g()) } else { None };
    let Some(start) = low.or(high) else {
        return Err(guest.initrd_too_large(initrd, size));
    };
    placement.put_file(initrd, 0, size, size, start)?;
    page.set_initrd(start, size);
    Ok(())
}
