//! Which RAM holds translated code: per processor the 64-byte granules, for all of them together the pages.
//!
//! A processor marks what it translates, then looks at the bytes once more; whoever writes to a page with code looks at
//! the marks after it has written. So either the one sees the new bytes or the other sees the mark.

use super::ram::{PAGE_SIZE, Ram};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

/// Pages whose entries are made together, when code is first found on one of them: a large guest costs nothing until it
/// runs code all over.
const CHUNK: usize = 512;

/// An entry for each page of the memory file.
struct PageMap<T> {
    /// Indexed by page number over [`CHUNK`].
    chunks: Box<[OnceLock<Box<[T]>>]>,
}

impl<T: Default> PageMap<T> {
    fn new(ram: &Ram) -> Self {
        let pages = (ram.size() / PAGE_SIZE) as usize;
        Self { chunks: (0..pages.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect() }
    }

    /// Chunk of the page of `gpa`, and the page's place in it; `None` outside RAM.
    fn place(&self, ram: &Ram, gpa: u64) -> Option<(&OnceLock<Box<[T]>>, usize)> {
        let r = ram.region_of(gpa)?;
        let page = ((r.offset + (gpa - r.gpa)) / PAGE_SIZE) as usize;
        Some((self.chunks.get(page / CHUNK)?, page % CHUNK))
    }

    /// Entry of the page of `gpa`, unless there never was code near it.
    fn get(&self, ram: &Ram, gpa: u64) -> Option<&T> {
        let (chunk, n) = self.place(ram, gpa)?;
        chunk.get()?.get(n)
    }

    /// Entry of the page of `gpa`, made now if need be.
    fn make(&self, ram: &Ram, gpa: u64) -> Option<&T> {
        let (chunk, n) = self.place(ram, gpa)?;
        chunk.get_or_init(|| (0..CHUNK).map(|_| T::default()).collect()).get(n)
    }
}

/// Bits of the granules that `len` bytes at `offset` in a page touch (clipped to the page).
pub fn granules(offset: u64, len: u64) -> u64 {
    let first = (offset & (PAGE_SIZE - 1)) >> 6;
    let last = ((offset & (PAGE_SIZE - 1)) + len.max(1) - 1).min(PAGE_SIZE - 1) >> 6;
    (u64::MAX << first) & (u64::MAX >> (63 - last))
}

/// How many processors have code of each page.
pub struct CodeMap {
    /// Their number, with [`TOLD`].
    holders: PageMap<AtomicU16>,
}

/// Since there is code on the page all processors have been told to look at their stores to it. While there is, none of
/// them forgets that, and who comes to have code there as well need not tell them again.
const TOLD: u16 = 1 << 15;

impl CodeMap {
    /// An empty map for all of `ram`.
    pub fn new(ram: &Ram) -> Self {
        Self { holders: PageMap::new(ram) }
    }

    /// Processors with code of the page of `gpa`; 0 outside RAM.
    pub fn holders(&self, ram: &Ram, gpa: u64) -> u16 {
        self.holders.get(ram, gpa).map_or(0, |n| n.load(Ordering::SeqCst) & !TOLD)
    }

    /// All processors have been told of the code on the page of `gpa`, of which the caller has some.
    pub fn set_told(&self, ram: &Ram, gpa: u64) {
        if let Some(holders) = self.holders.get(ram, gpa) {
            holders.fetch_or(TOLD, Ordering::SeqCst);
        }
    }

    /// Whether any processor has code of the page of `gpa`.
    pub fn has_code(&self, ram: &Ram, gpa: u64) -> bool {
        self.holders(ram, gpa) != 0
    }
}

/// The granules with code that one processor translated. Only that processor changes them.
pub struct CodeMarks {
    granules: PageMap<AtomicU64>,
}

impl CodeMarks {
    /// No marks in all of `ram`.
    pub fn new(ram: &Ram) -> Self {
        Self { granules: PageMap::new(ram) }
    }

    /// Granules with code on the page of `gpa`.
    pub fn get(&self, ram: &Ram, gpa: u64) -> u64 {
        self.granules.get(ram, gpa).map_or(0, |p| p.load(Ordering::SeqCst))
    }

    /// Marks code. If this processor had none on the page before, `map` counts one holder more; then the result is whether
    /// all processors know already that there is code.
    pub fn mark(&self, ram: &Ram, map: &CodeMap, gpa: u64, bits: u64) -> Option<bool> {
        let (page, holders) = (self.granules.make(ram, gpa)?, map.holders.make(ram, gpa)?);
        let first = page.fetch_or(bits, Ordering::SeqCst) == 0 && bits != 0;
        first.then(|| holders.fetch_add(1, Ordering::SeqCst) & TOLD != 0)
    }

    /// Replaces the marks of a page by fewer. When none are left, `map` counts one holder less.
    pub fn keep(&self, ram: &Ram, map: &CodeMap, gpa: u64, bits: u64) {
        let (Some(page), Some(holders)) = (self.granules.get(ram, gpa), map.holders.get(ram, gpa)) else { return };
        let before = page.fetch_and(bits, Ordering::SeqCst);
        if before != 0 && before & bits == 0 {
            let one_less = |n: u16| if n & !TOLD == 1 { 0 } else { n - 1 };
            // The closure always has a result.
            let _ = holders.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| Some(one_less(n)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mmu::ram::RamRegion;

    #[test]
    fn granules_cover_the_bytes() {
        assert_eq!(granules(0, 1), 1);
        assert_eq!(granules(63, 2), 3);
        assert_eq!(granules(4032, 64), 1 << 63);
        assert_eq!(granules(4000, 4096), 3 << 62);
        assert_eq!(granules(0, 4096), u64::MAX);
    }

    #[test]
    fn pages_are_held_by_processors_not_by_blocks() {
        let region = RamRegion { gpa: 0, size: 8192, offset: 0, rom: false };
        let ram = Ram::new(8192, vec![region]).expect("two pages");
        let map = CodeMap::new(&ram);
        let (one, two) = (CodeMarks::new(&ram), CodeMarks::new(&ram));
        assert_eq!(one.mark(&ram, &map, 0x1000, 1), Some(false));
        assert_eq!(one.mark(&ram, &map, 0x1040, 2), None);
        assert_eq!(two.mark(&ram, &map, 0x1000, 1), Some(false), "nobody has been told yet");
        map.set_told(&ram, 0x1000);
        two.keep(&ram, &map, 0x1000, 0);
        assert_eq!((map.holders(&ram, 0x1000), two.mark(&ram, &map, 0x1000, 1)), (1, Some(true)));
        assert_eq!((map.holders(&ram, 0x1fff), map.holders(&ram, 0)), (2, 0));
        one.keep(&ram, &map, 0x1000, 2);
        assert_eq!((one.get(&ram, 0x1000), two.get(&ram, 0x1000), map.holders(&ram, 0x1000)), (2, 1, 2));
        one.keep(&ram, &map, 0x1000, 0);
        one.keep(&ram, &map, 0x1000, 0);
        assert_eq!(map.holders(&ram, 0x1000), 1);
        two.keep(&ram, &map, 0x1000, 0);
        assert!(!map.has_code(&ram, 0x1000));
        assert_eq!(two.mark(&ram, &map, 0x1000, 1), Some(false), "that there is code again is to be told again");
        assert_eq!(one.mark(&ram, &map, 0x10_0000, 1), None, "no memory there");
    }
}
