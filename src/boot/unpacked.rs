//! Linux kernels that are taken out of their bzImage here and started at the entry point of the ELF file inside, so
//! that the guest need not unpack itself: what the kernel's own first stage (arch/x86/boot/compressed) does is done
//! on the host, its address space randomisation too. It is the entry that 64-bit boot loaders use for kernels that
//! are not packed (arch/x86/kernel/head_64.S of Linux, `startup_64`).
//!
//! Whatever is not as expected here leaves it to the kernel's first stage, which knows better.

use super::elf::{Elf, Segment};
use super::image::Image;
use super::kernel_cache;
use super::payload::Payload;
use super::placement::Placement;
use super::zero_page::SetupHeader;
use crate::entropy::Randomness;
use anyhow::{Context, Result};

/// Where Linux's 64-bit kernel maps its image (Documentation/arch/x86/x86_64/mm.rst), and how much room there is for
/// it if it can be moved.
const KERNEL_MAP: u64 = 0xFFFF_FFFF_8000_0000;
const IMAGE_ROOM: u64 = 1 << 30;
/// A section without bytes in the file.
const SHT_NOBITS: u64 = 8;
/// The boot protocol of Linux 5.5. Older kernels chose their addresses in other ways.
const KNOWN_SINCE: u16 = 0x20F;
/// What is mapped one to one when the kernel starts.
const MAPPED: u64 = 1 << 32;

/// A kernel out of its bzImage.
pub struct Unpacked {
    image: Vec<u8>,
    elf: Elf,
    relocations: Relocations,
    /// Where the kernel was linked to lie, and what its place must be a multiple of.
    preferred: u64,
    alignment: u64,
    /// Memory that it needs from its place on.
    needs: u64,
}

/// Where a kernel was put.
struct Place {
    /// Its first byte.
    physical: u64,
    /// How far it was moved from the virtual address that it was linked for.
    moved: u64,
}

/// A kernel that was put into memory.
pub struct Started {
    /// The physical address of its entry point.
    pub entry: u64,
    /// Its virtual addresses were chosen at random.
    pub randomised: bool,
}

/// Where a kernel may go.
pub struct Choice<'a> {
    /// The command line, which may forbid.
    pub append: &'a str,
    /// Where memory ends that nobody else uses.
    pub free_until: u64,
    /// Its physical place may be chosen at random, too.
    pub anywhere: bool,
    /// Where chance comes from.
    pub random: &'a Randomness,
}

impl Unpacked {
    /// The kernel inside of a bzImage with a 64-bit entry point (its header has all fields then); `None` if it is not
    /// in the form that is known here.
    pub fn take_out(image: &Image, header: SetupHeader) -> Option<Self> {
        let ((preferred, needs), alignment) = (header.preferred(), header.alignment());
        let until = preferred.checked_add(needs).filter(|&until| until <= MAPPED)?;
        if header.version() < KNOWN_SINCE || !alignment.is_power_of_two() || preferred % alignment != 0 {
            return None;
        }
        let payload = Payload::find(image, header, needs)?;
        let bytes = kernel_cache::unpack(&payload).inspect_err(|error| tracing::debug!("kernel: {error}")).ok()?;
        let inside = image.inside(bytes);
        let elf = Elf::read(&inside).ok()??;
        let image = inside.into_bytes()?;
        let there = |s: &Segment| {
            s.paddr >= preferred && s.paddr + s.memory_size <= until && s.offset + s.file_size <= image.len() as u64
        };
        let entered = elf.segments.iter().any(|s| elf.entry.wrapping_sub(s.paddr) < s.file_size);
        if !elf.wide || !entered || !elf.segments.iter().all(there) {
            return None;
        }
        let relocations = Relocations::find(&image, &elf.segments)?;
        Some(Self { image, elf, relocations, preferred, alignment, needs })
    }

    /// Chooses a place, moves the kernel there, and puts it into memory; `named` is the file it was in.
    pub fn start(mut self, named: &Image, choice: &Choice, placement: &mut Placement) -> Result<Started> {
        let randomised = !self.relocations.is_empty() && may_move(choice.append);
        let place = match randomised {
            true => self.choose(choice)?,
            false => Place { physical: self.preferred, moved: 0 },
        };
        self.relocations.apply(&mut self.image, &self.elf.segments, place.moved);
        let shift = place.physical - self.preferred;
        for segment in &mut self.elf.segments {
            segment.paddr += shift;
        }
        self.elf.load(&named.inside(self.image), placement)?;
        Ok(Started { entry: self.elf.entry + shift, randomised })
    }

    /// As the kernel's first stage does it (arch/x86/boot/compressed/kaslr.c): a physical and a virtual place, each by
    /// chance among the aligned ones.
    fn choose(&self, choice: &Choice) -> Result<Place> {
        let steps = |room: u64| room.saturating_sub(self.preferred + self.needs) / self.alignment + 1;
        let mut chance = [[0; 8]; 2];
        for word in &mut chance {
            choice.random.fill(word).context("the host has no random address for the guest's kernel yet")?;
        }
        let [physical, moved] = chance.map(u64::from_le_bytes);
        let free = if choice.anywhere && memory_is_as_told(choice.append) { choice.free_until.min(MAPPED) } else { 0 };
        Ok(Place {
            physical: self.preferred + physical % steps(free) * self.alignment,
            moved: moved % steps(IMAGE_ROOM) * self.alignment,
        })
    }
}

/// The kernel may lie at random addresses.
fn may_move(append: &str) -> bool {
    !append.split_ascii_whitespace().any(|word| word == "nokaslr")
}

/// The command line does not change what memory the kernel may use.
fn memory_is_as_told(append: &str) -> bool {
    let changes = ["mem=", "memmap=", "hugepages="];
    !append.split_ascii_whitespace().any(|word| changes.iter().any(|change| word.starts_with(change)))
}

/// The places that hold addresses, each named by its own virtual address: what stands behind the ELF file as signed
/// 32-bit words (arch/x86/tools/relocs.c of Linux): a zero and 64-bit places, a zero and places of 32-bit values that
/// shrink (of kernels before 6.15), a zero and 32-bit places.
struct Relocations {
    wide: Vec<u64>,
    inverse: Vec<u64>,
    narrow: Vec<u64>,
}

impl Relocations {
    /// The relocations of an image; all empty if it has none, `None` if what is there is something else.
    fn find(image: &[u8], segments: &[Segment]) -> Option<Self> {
        let behind = image.get(end_of_elf(image, segments)? as usize..)?;
        let mut lists: Vec<Vec<u64>> = Vec::new();
        let (words, []) = behind.as_chunks() else { return None };
        for word in words {
            match i32::from_le_bytes(*word) {
                0 => lists.push(Vec::new()),
                place => lists.last_mut()?.push((i64::from(place) as u64).checked_sub(KERNEL_MAP)?),
            }
        }
        let found = match lists.len() {
            0 => Self { wide: Vec::new(), inverse: Vec::new(), narrow: Vec::new() },
            2 => {
                let [wide, narrow] = lists.try_into().ok()?;
                Self { wide, inverse: Vec::new(), narrow }
            }
            _ => {
                let [wide, inverse, narrow] = lists.try_into().ok()?;
                Self { wide, inverse, narrow }
            }
        };
        let inside = |places: &[u64], len| places.iter().all(|&place| offset(segments, place, len).is_some());
        (inside(&found.wide, 8) && inside(&found.inverse, 4) && inside(&found.narrow, 4)).then_some(found)
    }

    fn is_empty(&self) -> bool {
        self.wide.is_empty() && self.narrow.is_empty()
    }

    /// Makes the image one that was linked `by` bytes further up.
    fn apply(&self, image: &mut [u8], segments: &[Segment], by: u64) {
        for &place in &self.wide {
            add(image, offset(segments, place, 8), |word| u64::from_le_bytes(word).wrapping_add(by).to_le_bytes());
        }
        for (places, by) in [(&self.inverse, (by as u32).wrapping_neg()), (&self.narrow, by as u32)] {
            for &place in places {
                add(image, offset(segments, place, 4), |word| u32::from_le_bytes(word).wrapping_add(by).to_le_bytes());
            }
        }
    }
}

/// Where a 64-bit ELF file ends: behind all segments, sections and the table of these.
fn end_of_elf(image: &[u8], segments: &[Segment]) -> Option<u64> {
    let number = |at: u64, len: u64| {
        let bytes = image.get(at as usize..)?.get(..len as usize)?;
        Some(bytes.iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b)))
    };
    let (table, size, count) = (number(40, 8)?, number(58, 2)?, number(60, 2)?);
    let mut end = table.checked_add(size * count)?;
    for n in 0..count {
        let section = table.checked_add(n * size)?;
        if number(section.checked_add(4)?, 4)? != SHT_NOBITS {
            end = end.max(number(section + 24, 8)?.checked_add(number(section + 32, 8)?)?);
        }
    }
    segments.iter().map(|s| s.offset + s.file_size).chain([end]).max()
}

/// Changes the bytes at an offset of the image; [`Relocations::find`] has seen that they are there.
fn add<const N: usize>(image: &mut [u8], at: Option<usize>, change: impl Fn([u8; N]) -> [u8; N]) {
    if let Some(word) = at.and_then(|at| image.get_mut(at..)).and_then(|rest| rest.first_chunk_mut()) {
        *word = change(*word);
    }
}

/// Where the image has `len` bytes that are linked to lie at a physical address.
fn offset(segments: &[Segment], paddr: u64, len: u64) -> Option<usize> {
    let holds = |s: &&Segment| paddr >= s.paddr && paddr + len <= s.paddr + s.file_size;
    segments.iter().find(holds).map(|s| (s.offset + (paddr - s.paddr)) as usize)
}
