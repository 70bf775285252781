//! ELF executables: headers, loading of segments, and the note that Xen's PVH protocol puts into kernels.

use super::image::Image;
use super::placement::Placement;
use super::refuse;
use anyhow::Result;

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
/// Bytes of notes that are looked at.
const NOTES_MAX: u64 = 1 << 20;
/// Program headers that are looked at (the count is a 16-bit field).
const HEADER_SIZE: usize = 64;

/// A segment to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Physical address.
    pub paddr: u64,
    /// Virtual address.
    pub vaddr: u64,
    /// Offset in the file.
    pub offset: u64,
    /// Bytes in the file.
    pub file_size: u64,
    /// Bytes in memory; what the file does not give is zero.
    pub memory_size: u64,
}

/// The headers of an executable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elf {
    /// ELFCLASS64.
    pub wide: bool,
    /// Entry point as the file says it: a virtual address.
    pub entry: u64,
    /// Loadable segments that are not empty.
    pub segments: Vec<Segment>,
    /// Offset, size and alignment of the notes.
    notes: Vec<(u64, u64, u64)>,
}

/// Reads little-endian fields whose offsets and widths depend on the class.
struct Fields<'a> {
    bytes: &'a [u8],
    wide: bool,
}

impl Fields<'_> {
    fn number(&self, at: usize, len: usize) -> u64 {
        let field = self.bytes.get(at..at + len).unwrap_or(&[]);
        field.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b))
    }

    /// A field at `at32` in the 32-bit form and at `at64` in the 64-bit form, as wide as an address.
    fn address(&self, at32: usize, at64: usize) -> u64 {
        if self.wide { self.number(at64, 8) } else { self.number(at32, 4) }
    }
}

impl Elf {
    /// The headers of `image`; `None` if it is no ELF file. An ELF file for another processor is refused.
    pub fn read(image: &Image) -> Result<Option<Self>> {
        let mut head = [0; HEADER_SIZE];
        let there = image.size()?.min(HEADER_SIZE as u64) as usize;
        image.read_at(0, &mut head[..there])?;
        if head[..4] != *b"\x7FELF" {
            return Ok(None);
        }
        let wide = match (head[4], head[5]) {
            (1, 1) => false,
            (2, 1) => true,
            _ => refuse!(image, "an ELF file for another processor; give one built for x86"),
        };
        let fields = Fields { bytes: &head, wide };
        if ![EM_386, EM_X86_64].contains(&(fields.number(18, 2) as u16)) {
            refuse!(image, "an ELF file for another processor; give one built for x86");
        }
        let (table, size, count) = match wide {
            false => (fields.number(28, 4), fields.number(42, 2), fields.number(44, 2)),
            true => (fields.number(32, 8), fields.number(54, 2), fields.number(56, 2)),
        };
        let least = if wide { 56 } else { 32 };
        if count == 0 || size < least {
            refuse!(image, "an ELF file without program headers; link it as an executable");
        }
        let mut elf = Self { wide, entry: fields.address(24, 24), segments: Vec::new(), notes: Vec::new() };
        elf.read_program_headers(image, table, size, count)?;
        Ok(Some(elf))
    }

    fn read_program_headers(&mut self, image: &Image, table: u64, size: u64, count: u64) -> Result<()> {
        let mut bytes = vec![0; (size * count) as usize];
        if table.checked_add(bytes.len() as u64).is_none_or(|end| end > u64::MAX / 2) {
            refuse!(image, "a damaged ELF file: its program headers lie outside of it");
        }
        image.read_at(table, &mut bytes)?;
        for header in bytes.chunks_exact(size as usize) {
            let f = Fields { bytes: header, wide: self.wide };
            let segment = Segment {
                offset: f.address(4, 8),
                vaddr: f.address(8, 16),
                paddr: f.address(12, 24),
                file_size: f.address(16, 32),
                memory_size: f.address(20, 40),
            };
            match f.number(0, 4) as u32 {
                PT_LOAD if segment.memory_size != 0 => {
                    let ends = [segment.offset, segment.paddr].map(|start| start.checked_add(segment.memory_size));
                    if segment.file_size > segment.memory_size || ends.iter().any(Option::is_none) {
                        refuse!(image, "a damaged ELF file: a segment's sizes make no sense");
                    }
                    self.segments.push(segment);
                }
                PT_NOTE => self.notes.push((segment.offset, segment.file_size, f.address(28, 48))),
                _ => {}
            }
        }
        Ok(())
    }

    /// Loads all segments at their physical addresses.
    pub fn load(&self, image: &Image, placement: &mut Placement) -> Result<()> {
        for s in &self.segments {
            placement.put_file(image, s.offset, s.file_size, s.memory_size, s.paddr)?;
        }
        Ok(())
    }

    /// The entry point as a physical address: moved along with the segment that holds it.
    pub fn physical_entry(&self) -> u64 {
        let holder = self.segments.iter().find(|s| self.entry.wrapping_sub(s.vaddr) < s.memory_size);
        holder.map_or(self.entry, |s| self.entry - s.vaddr + s.paddr)
    }

    /// The descriptor of the note of `name` and `kind`.
    pub fn note(&self, image: &Image, name: &[u8], kind: u32) -> Result<Option<Vec<u8>>> {
        for &(offset, size, align) in &self.notes {
            let mut bytes = vec![0; size.min(NOTES_MAX) as usize];
            image.read_at(offset, &mut bytes)?;
            if let Some(found) = find_note(&bytes, if align == 8 { 8 } else { 4 }, name, kind) {
                return Ok(Some(found.to_vec()));
            }
        }
        Ok(None)
    }
}

/// Walks notes: name size, descriptor size, type, then name and descriptor, each padded to `align`.
fn find_note<'a>(mut bytes: &'a [u8], align: usize, name: &[u8], kind: u32) -> Option<&'a [u8]> {
    while bytes.len() >= 12 {
        let word = |i: usize| bytes[i * 4..i * 4 + 4].iter().rev().fold(0usize, |n, &b| n << 8 | usize::from(b));
        let (name_size, size) = (word(0), word(1));
        let descriptor = (12 + name_size).next_multiple_of(align);
        let end = descriptor.checked_add(size)?;
        if word(2) == kind as usize
            && bytes.get(12..12 + name_size).is_some_and(|n| n.strip_suffix(b"\0") == Some(name))
        {
            return bytes.get(descriptor..end);
        }
        bytes = bytes.get(end.next_multiple_of(align)..).unwrap_or(&[]);
    }
    None
}
