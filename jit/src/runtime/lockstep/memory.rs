//! What a block writes to guest memory: pages are kept as they were before the first store to them.
//!
//! While a vCPU is checked, no entry of its TLB lets stores through until the first one came to
//! [`crate::mmu::access`], for the interpreter as for generated code. So every page that is written shows up here, a page
//! that generated code writes by mistake too.

use crate::mmu::ram::{PAGE_SIZE, Ram};
use crate::mmu::tlb::Tlb;

const PAGE: usize = PAGE_SIZE as usize;
/// Compared at once.
const CHUNK: usize = 64;
/// Pages that the interpreter may write in one block (long string instructions) and still be undone.
const MOST_PAGES: usize = 64;
/// Stores may go on to this many TLB entries before they are closed whether or not a check begins.
const MOST_OPEN: usize = 4096;

/// A page that was written.
struct Page {
    gpa: u64,
    before: Box<[u8; PAGE]>,
    /// As the interpreter left it.
    after: Box<[u8; PAGE]>,
}

/// A byte that is not what the interpreter left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryDifference {
    /// Guest-physical address.
    pub gpa: u64,
    /// Before the block.
    pub before: u8,
    /// From the interpreter.
    pub expected: u8,
    /// From generated code.
    pub found: u8,
}

/// The pages of the block under check, and the TLB entries that concern them.
#[derive(Default)]
pub struct Writes {
    /// The first `used` are of this block; the rest are spare.
    pages: Vec<Page>,
    used: usize,
    /// TLB entries (MMU index, linear address) that let stores through.
    open: Vec<(usize, u64)>,
    /// TLB entries entered during this block.
    filled: Vec<(usize, u64)>,
}

impl Writes {
    /// A block begins: no page is written yet, and all stores will be seen.
    pub fn begin(&mut self, tlb: &mut Tlb) {
        self.used = 0;
        self.filled.clear();
        self.close(tlb);
    }

    /// Sends the first store to each page here again.
    pub fn close(&mut self, tlb: &mut Tlb) {
        for (index, linear) in self.open.drain(..) {
            tlb.protect(index, linear);
        }
    }

    /// The entry of `linear` lets stores through from now on.
    pub fn opened(&mut self, tlb: &mut Tlb, index: usize, linear: u64) {
        if self.open.len() >= MOST_OPEN {
            self.close(tlb);
        }
        tlb.unprotect(index, linear);
        self.open.push((index, linear));
    }

    /// The entry of `linear` was made.
    pub fn filled(&mut self, index: usize, linear: u64) {
        self.filled.push((index, linear));
    }

    /// The page at `gpa` is about to be written for the first time or again. `false`: too many to undo.
    pub fn keep(&mut self, ram: &Ram, gpa: u64) -> bool {
        let gpa = gpa & !(PAGE_SIZE - 1);
        if self.pages.iter().take(self.used).any(|p| p.gpa == gpa) {
            return true;
        }
        if self.pages.len() == self.used {
            self.pages.push(Page { gpa, before: Box::new([0; PAGE]), after: Box::new([0; PAGE]) });
        }
        if let Some(page) = self.pages.get_mut(self.used) {
            page.gpa = gpa;
            ram.read(gpa, &mut page.before[..]);
            // What generated code alone writes should be as before.
            page.after.copy_from_slice(&page.before[..]);
            self.used += 1;
        }
        self.used <= MOST_PAGES
    }

    /// The interpreter is done: keeps what it wrote and puts the old bytes back. Only bytes that differ are written, for
    /// a device may write others of the same page.
    pub fn undo_interpreter(&mut self, ram: &Ram, tlb: &mut Tlb) {
        for page in self.pages.iter_mut().take(self.used) {
            ram.read(page.gpa, &mut page.after[..]);
            restore(ram, page.gpa, &page.before, &page.after);
        }
        self.forget_fills(tlb);
        self.close(tlb);
    }

    /// Puts the old bytes back after generated code ran.
    pub fn undo_compiled(&mut self, ram: &Ram, tlb: &mut Tlb) {
        let mut now = [0; PAGE];
        for page in self.pages.iter().take(self.used) {
            ram.read(page.gpa, &mut now);
            restore(ram, page.gpa, &page.before, &now);
        }
        self.forget_fills(tlb);
        self.close(tlb);
    }

    /// A page walk may have set accessed and dirty bits in what was just undone: entries that rely on them go.
    fn forget_fills(&mut self, tlb: &mut Tlb) {
        if self.used > 0 {
            for (index, linear) in self.filled.drain(..) {
                tlb.drop_entry(index, linear);
            }
        }
    }

    /// Bytes that are not as the interpreter left them.
    pub fn differences(&self, ram: &Ram) -> Vec<MemoryDifference> {
        let mut out = Vec::new();
        let mut now = [0; PAGE];
        for page in self.pages.iter().take(self.used) {
            ram.read(page.gpa, &mut now);
            if now == *page.after {
                continue;
            }
            let bytes = page.before.iter().zip(page.after.iter()).zip(now.iter());
            for (offset, ((before, expected), found)) in (0..).zip(bytes) {
                if expected != found {
                    let gpa = page.gpa + offset;
                    out.push(MemoryDifference { gpa, before: *before, expected: *expected, found: *found });
                }
            }
        }
        out
    }
}

/// Writes those bytes of `old` that differ from `now`, which is what is there.
fn restore(ram: &Ram, gpa: u64, old: &[u8; PAGE], now: &[u8; PAGE]) {
    for (n, (o, c)) in old.chunks(CHUNK).zip(now.chunks(CHUNK)).enumerate() {
        if o == c {
            continue;
        }
        for (m, (o, c)) in o.iter().zip(c).enumerate() {
            if o != c {
                ram.write(gpa + (n * CHUNK + m) as u64, &[*o], false);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mmu::ram::RamRegion;

    #[test]
    fn stores_are_undone_and_compared() {
        let region = RamRegion { gpa: 0x4000, size: 0x3000, offset: 0, rom: false };
        let ram = Ram::new(0x3000, vec![region]).expect("three pages");
        let mut tlb = Tlb::new();
        let mut w = Writes::default();
        ram.write(0x4ffe, &[1, 2, 3, 4], false);
        w.begin(&mut tlb);
        assert!(w.keep(&ram, 0x4fff) && w.keep(&ram, 0x5000) && w.keep(&ram, 0x5123));
        ram.write(0x4fff, &[7, 8], false);
        w.undo_interpreter(&ram, &mut tlb);
        let mut b = [0; 4];
        ram.read(0x4ffe, &mut b);
        assert_eq!(b, [1, 2, 3, 4]);
        // The second run writes one of the two bytes, another value, and a page that is not its.
        assert!(w.keep(&ram, 0x6000));
        ram.write(0x4fff, &[7, 9], false);
        ram.write(0x6010, &[5], false);
        let d = |gpa, before, expected, found| MemoryDifference { gpa, before, expected, found };
        assert_eq!(w.differences(&ram), [d(0x5000, 3, 8, 9), d(0x6010, 0, 0, 5)]);
        w.undo_compiled(&ram, &mut tlb);
        ram.read(0x4ffe, &mut b);
        assert_eq!(b, [1, 2, 3, 4]);
        ram.read(0x6010, &mut b[..1]);
        assert_eq!(b[0], 0);
    }
}
