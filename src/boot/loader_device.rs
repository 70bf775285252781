//! `-device loader`: files and values put into memory, and processors started at chosen addresses.
//!
//! Where QEMU only sets the program counter, which on a PC leaves the processor in real mode with the code segment of
//! the reset vector, a processor started here gets the mode that the code can be meant for: real mode below 1 MiB,
//! 32-bit protected mode above and for 32-bit ELF files, 64-bit mode for 64-bit ELF files.

use super::elf::Elf;
use super::image::Image;
use super::placement::Placement;
use super::{entry, refuse};
use crate::cli::config::Loader;
use anyhow::{Result, bail};
use brolga_jit::Registers;

/// First address that real mode cannot reach by segment and offset below 64 KiB.
const REAL_MODE_END: u64 = 0x10_0000;

/// A loader with its file open.
pub enum OpenLoader {
    /// A file.
    File {
        /// The file.
        image: Image,
        /// Address for a raw file.
        addr: Option<u64>,
        /// Processor to start.
        cpu: Option<u32>,
        /// The headers, if it is to be loaded as ELF.
        elf: Option<Elf>,
    },
    /// Bytes.
    Data {
        /// The bytes.
        bytes: Vec<u8>,
        /// Their address.
        addr: u64,
    },
    /// A start address.
    ProgramCounter {
        /// The address.
        addr: u64,
        /// The processor.
        cpu: u32,
    },
}

impl OpenLoader {
    /// Opens the file and looks what it is.
    pub fn open(loader: &Loader) -> Result<Self> {
        Ok(match loader {
            Loader::File { path, addr, cpu, force_raw } => {
                let image = Image::open("-device loader,file=", path)?;
                let elf = if *force_raw { None } else { Elf::read(&image)? };
                if elf.is_none() && addr.is_none() {
                    refuse!(image, "a raw file needs an address; add addr=ADDRESS");
                }
                Self::File { image, addr: *addr, cpu: *cpu, elf }
            }
            Loader::Data { bytes, addr } => Self::Data { bytes: bytes.clone(), addr: *addr },
            Loader::ProgramCounter { addr, cpu } => Self::ProgramCounter { addr: *addr, cpu: *cpu },
        })
    }

    /// It starts processor 0, so nothing else needs to.
    pub fn starts_first_cpu(&self) -> bool {
        matches!(self, Self::File { cpu: Some(0), .. } | Self::ProgramCounter { cpu: 0, .. })
    }

    /// Loads; the result is the processor to start and its state.
    pub fn load(&self, long_mode: bool, placement: &mut Placement) -> Result<Option<(u32, Registers)>> {
        match self {
            Self::Data { bytes, addr } => {
                placement.put("-device loader,data=", *addr, bytes)?;
                Ok(None)
            }
            Self::ProgramCounter { addr, cpu } => Ok(Some((*cpu, start_raw(*addr, placement)?))),
            Self::File { image, cpu, elf: Some(elf), .. } => {
                elf.load(image, placement)?;
                let Some(cpu) = cpu else { return Ok(None) };
                let entry = elf.physical_entry();
                if elf.wide && !long_mode {
                    refuse!(image, "a 64-bit ELF file, but the processor of -cpu is 32-bit; choose another -cpu");
                }
                let registers = if elf.wide { entry::long(placement, entry)? } else { protected(entry, placement)? };
                Ok(Some((*cpu, registers)))
            }
            Self::File { image, addr, cpu, elf: None } => {
                let (size, addr) = (image.size()?, addr.unwrap_or(0));
                placement.put_file(image, 0, size, size, addr)?;
                cpu.map(|cpu| Ok((cpu, start_raw(addr, placement)?))).transpose()
            }
        }
    }
}

fn start_raw(addr: u64, placement: &mut Placement) -> Result<Registers> {
    if addr < REAL_MODE_END { Ok(entry::real(addr as u32)) } else { protected(addr, placement) }
}

fn protected(addr: u64, placement: &mut Placement) -> Result<Registers> {
    match u32::try_from(addr) {
        Ok(eip) => entry::protected(placement, eip),
        Err(_) => bail!("-device loader: 32-bit code cannot start at {addr:#x}; choose an address below 4 GiB"),
    }
}
