//! Which 64-byte granules of guest RAM hold translated code. Shared by all vCPUs and by DMA.

use super::ram::{PAGE_SIZE, Ram};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Pages whose maps are made together, when code is first found on one of them: a large guest costs nothing until it
/// runs code all over.
const CHUNK: usize = 512;

/// A 64-bit granule map per RAM page.
pub struct CodeMap {
    /// Indexed by page number of the memory file over [`CHUNK`].
    chunks: Box<[OnceLock<Box<[AtomicU64; CHUNK]>>]>,
}

/// Bits of the granules that `len` bytes at `offset` in a page touch (clipped to the page).
pub fn granules(offset: u64, len: u64) -> u64 {
    let first = (offset & (PAGE_SIZE - 1)) >> 6;
    let last = ((offset & (PAGE_SIZE - 1)) + len.max(1) - 1).min(PAGE_SIZE - 1) >> 6;
    (u64::MAX << first) & (u64::MAX >> (63 - last))
}

impl CodeMap {
    /// An empty map for all of `ram`.
    pub fn new(ram: &Ram) -> Self {
        let pages = (ram.size() / PAGE_SIZE) as usize;
        Self { chunks: (0..pages.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect() }
    }

    /// Chunk of the page of `gpa`, and the page's place in it.
    fn place(&self, ram: &Ram, gpa: u64) -> Option<(&OnceLock<Box<[AtomicU64; CHUNK]>>, usize)> {
        let r = ram.region_of(gpa)?;
        let page = ((r.offset + (gpa - r.gpa)) / PAGE_SIZE) as usize;
        Some((self.chunks.get(page / CHUNK)?, page % CHUNK))
    }

    /// Map of the page of `gpa`, unless there never was code near it.
    fn page(&self, ram: &Ram, gpa: u64) -> Option<&AtomicU64> {
        let (chunk, n) = self.place(ram, gpa)?;
        chunk.get()?.get(n)
    }

    /// Granules with code on the page of `gpa`; 0 outside RAM.
    pub fn get(&self, ram: &Ram, gpa: u64) -> u64 {
        self.page(ram, gpa).map_or(0, |p| p.load(Ordering::Acquire))
    }

    /// Marks code; returns what was marked on the page before.
    pub fn mark(&self, ram: &Ram, gpa: u64, bits: u64) -> u64 {
        let Some((chunk, n)) = self.place(ram, gpa) else { return 0 };
        chunk.get_or_init(|| Box::new([const { AtomicU64::new(0) }; CHUNK]))[n].fetch_or(bits, Ordering::AcqRel)
    }

    /// Replaces the marks of a page.
    pub fn set(&self, ram: &Ram, gpa: u64, bits: u64) {
        if let Some(p) = self.page(ram, gpa) {
            p.store(bits, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::granules;

    #[test]
    fn granules_cover_the_bytes() {
        assert_eq!(granules(0, 1), 1);
        assert_eq!(granules(63, 2), 3);
        assert_eq!(granules(4032, 64), 1 << 63);
        assert_eq!(granules(4000, 4096), 3 << 62);
        assert_eq!(granules(0, 4096), u64::MAX);
    }
}
