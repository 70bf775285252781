//! Guest memory and registers in the form that makedumpfile writes and crash reads (its source calls it "kdump-compressed"):
//! a header, a second one, notes as in an ELF core file, two bitmaps of the pages that there are, a descriptor for each page, and
//! the pages, packed by zlib where that makes them smaller. The version is 6, the block a page.
//!
//! Written straight the file needs a place for each part; makedumpfile's flattened form has parts in any order, each with
//! the offset where it belongs, and can go through a pipe.

use super::host::MonitorHost;
use flate2::Compression;
use flate2::write::ZlibEncoder;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;

const BLOCK: u64 = 4096;
/// Pages read at once.
const CHUNK: u64 = 256;
const HEADER: usize = 464;
const SECOND: usize = 104;
const VERSION: u32 = 6;
/// Where fields of the header are, after the names of the system: what packs pages, and what follows.
const MACHINE: usize = 12 + 4 * 65;
const STATUS: usize = 424;
/// Pages are packed by zlib.
const ZLIB: u32 = 1;
/// Where fields of the second header are.
const DUMP_LEVEL: usize = 8;
const NOTES: usize = 48;
const PAGES_64: usize = 96;
/// Bytes of a page's descriptor.
const DESCRIPTOR: u64 = 24;

/// How a file is written.
pub enum Form {
    /// Each part at its place.
    Straight(File),
    /// Each part with its place.
    Flattened(BufWriter<File>),
}

impl Form {
    /// Of a file that is empty.
    pub fn new(file: File, straight: bool) -> io::Result<Self> {
        if straight {
            return Ok(Self::Straight(file));
        }
        let mut out = BufWriter::new(file);
        let mut header = b"makedumpfile\0\0\0\0".to_vec();
        // Type and version.
        header.extend([1u64, 1].map(u64::to_be_bytes).concat());
        header.resize(BLOCK as usize, 0);
        out.write_all(&header)?;
        Ok(Self::Flattened(out))
    }

    fn put(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Straight(file) => file.write_all_at(bytes, at),
            Self::Flattened(out) => {
                out.write_all(&[at, bytes.len() as u64].map(u64::to_be_bytes).concat())?;
                out.write_all(bytes)
            }
        }
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Self::Straight(file) => file.sync_data().or_else(|e| match e.raw_os_error() {
                // Not a file that can be synced.
                Some(libc::EINVAL) => Ok(()),
                _ => Err(e),
            }),
            Self::Flattened(mut out) => {
                out.write_all(&[0xff; 16])?;
                out.flush()
            }
        }
    }
}

/// Where the parts are.
struct Plan {
    processors: u32,
    /// Page numbers are below that.
    end: u64,
    /// Blocks of the second header and the notes, and of both bitmaps.
    second: u64,
    bitmaps: u64,
}

impl Plan {
    fn new(processors: u32, pieces: &[Range<u64>], notes: usize) -> Self {
        let end = pieces.last().map_or(0, |piece| piece.end.div_ceil(BLOCK));
        let second = (SECOND + notes).div_ceil(BLOCK as usize) as u64;
        Self { processors, end, second, bitmaps: 2 * end.div_ceil(8 * BLOCK) }
    }

    fn descriptors(&self) -> u64 {
        (1 + self.second + self.bitmaps) * BLOCK
    }

    fn header(&self) -> Vec<u8> {
        let mut header = b"KDUMP   ".to_vec();
        header.extend(VERSION.to_le_bytes());
        header.resize(HEADER, 0);
        set(&mut header, MACHINE, b"x86_64");
        let pages = u32::try_from(self.end).unwrap_or(u32::MAX);
        let fields = [ZLIB, BLOCK as u32, self.second as u32, self.bitmaps as u32, pages, 0, 0, 0, 0, self.processors];
        set(&mut header, STATUS, &fields.map(u32::to_le_bytes).concat());
        header
    }

    fn second_header(&self, notes: usize) -> Vec<u8> {
        let mut header = vec![0; SECOND];
        // All pages but those that are zero.
        set(&mut header, DUMP_LEVEL, &1u32.to_le_bytes());
        set(&mut header, NOTES, &[BLOCK + SECOND as u64, notes as u64].map(u64::to_le_bytes).concat());
        set(&mut header, PAGES_64, &self.end.to_le_bytes());
        header
    }

    /// One bitmap: a bit for each page.
    fn bitmap(&self, pieces: &[Range<u64>]) -> Vec<u8> {
        let mut bits = vec![0u8; (self.bitmaps / 2 * BLOCK) as usize];
        for page in pieces.iter().flat_map(|piece| piece.start / BLOCK..piece.end.div_ceil(BLOCK)) {
            if let Some(byte) = bits.get_mut((page / 8) as usize) {
                *byte |= 1 << (page % 8);
            }
        }
        bits
    }
}

fn set(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

/// Pages as they are written, one after the other.
struct Pages {
    out: Form,
    /// Where the next descriptor goes, and the next page.
    descriptor: u64,
    data: u64,
    /// The descriptor of the page of zeroes, which is there once.
    zero: Option<[u8; DESCRIPTOR as usize]>,
}

fn descriptor(at: u64, len: usize, packed: bool) -> [u8; DESCRIPTOR as usize] {
    let mut bytes = [0; DESCRIPTOR as usize];
    set(&mut bytes, 0, &at.to_le_bytes());
    set(&mut bytes, 8, &(len as u32).to_le_bytes());
    set(&mut bytes, 12, &(if packed { ZLIB } else { 0 }).to_le_bytes());
    bytes
}

impl Pages {
    /// Writes a page, if it is not there already; its descriptor.
    fn page(&mut self, page: &[u8]) -> io::Result<[u8; DESCRIPTOR as usize]> {
        let is_zero = page.iter().all(|byte| *byte == 0);
        if let Some(zero) = self.zero.filter(|_| is_zero) {
            return Ok(zero);
        }
        let mut packer = ZlibEncoder::new(Vec::new(), Compression::fast());
        packer.write_all(page)?;
        let packed = packer.finish()?;
        let smaller = packed.len() < page.len();
        let bytes = if smaller { &packed } else { page };
        self.out.put(self.data, bytes)?;
        let entry = descriptor(self.data, bytes.len(), smaller);
        self.data += bytes.len() as u64;
        if is_zero {
            self.zero = Some(entry);
        }
        Ok(entry)
    }

    /// Writes pages that follow each other.
    fn pages(&mut self, bytes: &[u8]) -> io::Result<()> {
        let entries = bytes.chunks(BLOCK as usize).map(|page| self.page(page)).collect::<io::Result<Vec<_>>>()?;
        self.out.put(self.descriptor, entries.as_flattened())?;
        self.descriptor += DESCRIPTOR * entries.len() as u64;
        Ok(())
    }
}

/// Writes all of it; how many bytes of memory.
pub fn write(host: &dyn MonitorHost, out: Form, pieces: &[Range<u64>], notes: &[u8]) -> io::Result<u64> {
    let plan = Plan::new(host.cpus(), pieces, notes.len());
    let mut out = out;
    out.put(0, &plan.header())?;
    out.put(BLOCK, &plan.second_header(notes.len()))?;
    out.put(BLOCK + SECOND as u64, notes)?;
    let bitmap = plan.bitmap(pieces);
    out.put((1 + plan.second) * BLOCK, &bitmap)?;
    out.put((1 + plan.second) * BLOCK + bitmap.len() as u64, &bitmap)?;
    let count: u64 = pieces.iter().map(|piece| piece.end.div_ceil(BLOCK) - piece.start / BLOCK).sum();
    let start = plan.descriptors();
    let mut pages = Pages { out, descriptor: start, data: start + count * DESCRIPTOR, zero: None };
    for piece in pieces {
        let mut at = piece.start;
        while at < piece.end {
            let mut bytes = vec![0; (CHUNK * BLOCK).min(piece.end - at) as usize];
            host.read_physical(at, &mut bytes);
            pages.pages(&bytes)?;
            at += bytes.len() as u64;
        }
    }
    pages.out.finish()?;
    Ok(count * BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_each_other() {
        let pieces = [0..0xa_0000, 0x10_0000..0x800_0000];
        let plan = Plan::new(2, &pieces, 5000);
        assert_eq!((plan.end, plan.second, plan.bitmaps), (0x8000, 2, 2));
        assert_eq!(plan.descriptors(), 5 * BLOCK);
        let bits = plan.bitmap(&pieces);
        assert_eq!(bits.len() as u64, BLOCK);
        assert_eq!(
            (bits[0], bits[0x9f / 8], bits[0xa0 / 8], bits[0x100 / 8], bits[0x7fff / 8]),
            (255, 255, 0, 255, 255)
        );
        assert_eq!((plan.header().len(), plan.second_header(5000).len()), (HEADER, SECOND));
    }
}
