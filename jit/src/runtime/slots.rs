//! Where blocks are kept, found by what identifies them.

use crate::ir::Block;
use crate::mmu::ram::PAGE_SIZE;
use crate::state::mode;
use std::ops::{Index, IndexMut};
use std::sync::Arc;

/// What identifies a translation: everything lift depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Key {
    /// Guest-physical address of the first byte.
    pub gpa: u64,
    /// RIP of the first instruction; of relative code its offset in the page, except where code must be told apart that
    /// leads close to addresses that are not canonical.
    pub rip: u64,
    /// CS base (0 in 64-bit mode).
    pub cs_base: u64,
    /// Mode word, with [`mode::RELATIVE`]; bit 31 marks a one-instruction block.
    pub mode: u32,
}

impl Key {
    /// The key of relative code at linear address `rip`, with a mode word of flat code.
    pub fn relative(gpa: u64, rip: u64, word: u32) -> Self {
        // Direct branches reach 2 GiB to either side, data relative to RIP a little further.
        const REACH: u64 = 1 << 32;
        let canonical = |a: u64| (a as i64) << 16 >> 16 == a as i64;
        let anywhere = match word & mode::CS64 {
            0 => rip < u64::from(u32::MAX) & !(PAGE_SIZE - 1),
            _ => canonical(rip.wrapping_add(REACH)) && canonical(rip.wrapping_sub(REACH)),
        };
        let rip = if anywhere { rip & (PAGE_SIZE - 1) } else { rip };
        Self { gpa, rip, cs_base: 0, mode: word | mode::RELATIVE }
    }

    /// Is of relative code.
    pub fn is_relative(&self) -> bool {
        self.mode & mode::RELATIVE != 0
    }

    /// Linear address of the first byte, of relative code an offset.
    pub fn linear(&self) -> u64 {
        if self.mode & mode::CS64 != 0 { self.rip } else { self.cs_base.wrapping_add(self.rip) & 0xffff_ffff }
    }
}

/// Mark in [`Key::mode`] of blocks of one instruction.
pub const SINGLE: u32 = 1 << 31;

/// A number or none, in four bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Number(u32);

impl Number {
    /// None.
    pub const NONE: Self = Self(u32::MAX);

    /// The number `n`, which is below 2^32 - 1.
    pub fn of(n: u32) -> Self {
        Self(n)
    }

    /// The number, if there is one.
    #[inline]
    pub fn get(self) -> Option<u32> {
        (self.0 != u32::MAX).then_some(self.0)
    }
}

impl Default for Number {
    fn default() -> Self {
        Self::NONE
    }
}

/// A place for a block. There are hundreds of thousands: what a look-up touches comes first, and nothing is wasted.
#[derive(Default)]
#[repr(C)]
pub struct Slot {
    /// The block's key.
    pub key: Key,
    /// Next slot with the same hash; of free slots: next free one.
    next: Number,
    /// The code that starts with it.
    pub code: Number,
    /// Its baseline code, which `code` is while there is no better. It goes with the block.
    pub baseline: Number,
    /// The block that the interpreter ran behind it the last time.
    pub then: Number,
    /// The IR; out while the interpreter runs it, and let go when it is not worth its room.
    pub block: Option<Arc<Block>>,
    /// Tells this block from others that had the slot; 0: free.
    pub serial: u64,
    /// Guest-physical address of the second page's start, for an instruction that crosses; else all ones.
    second_page: u64,
    /// Interpreted runs; once there is code and it is checked: runs of the code.
    pub runs: u32,
    /// How often its baseline code asked to be compiled better.
    pub asked: u32,
    /// All regions it is part of, beside its baseline code.
    pub regions: Vec<u32>,
    /// Bytes of guest code.
    pub len: u16,
    /// Its region is being compiled, or could not be.
    pub requested: bool,
    /// It was found at several pages.
    pub moved: bool,
    /// What its accesses have in common crosses a page too often to be checked at once.
    pub narrow: bool,
    /// Regions that start with it keep to its page.
    pub keeps_to_page: bool,
    /// Instructions in it.
    pub insns: u8,
    /// Linear page that it was found at last.
    pub page: u64,
}

const _: () = assert!(size_of::<Slot>() <= 120);

impl Slot {
    /// A block that just came to be; [`Slots::insert`] gives it a serial number.
    pub fn new(key: Key, page: u64, len: u16, second_page: Option<u64>, block: Arc<Block>) -> Self {
        let insns = u8::try_from(block.count).unwrap_or(u8::MAX);
        Self {
            key,
            page,
            len,
            insns,
            second_page: second_page.unwrap_or(u64::MAX),
            block: Some(block),
            ..Self::default()
        }
    }

    /// RIP that it was found at last.
    pub fn rip(&self) -> u64 {
        if self.key.is_relative() { self.page | self.key.rip & (PAGE_SIZE - 1) } else { self.key.rip }
    }

    /// Guest-physical address of the second page's start, for an instruction that crosses.
    pub fn second_page(&self) -> Option<u64> {
        (self.second_page != u64::MAX).then_some(self.second_page)
    }

    /// Guest-physical pieces (address, length) it was lifted from.
    pub fn pieces(&self) -> [(u64, u64); 2] {
        let len = self.len as u64;
        let first = len.min(PAGE_SIZE - (self.key.gpa & (PAGE_SIZE - 1)));
        match self.second_page() {
            Some(page) => [(self.key.gpa, first), (page, (len - first).max(1))],
            None => [(self.key.gpa, first); 2],
        }
    }

    /// It was lifted from some of the `len` bytes at `gpa`.
    pub fn overlaps(&self, gpa: u64, len: u64) -> bool {
        self.pieces().iter().any(|(start, n)| *start < gpa.saturating_add(len) && gpa < start + n)
    }

    /// The one or two pages it lies on.
    pub fn pages(&self) -> impl Iterator<Item = u64> + use<> {
        std::iter::once(self.key.gpa & !(PAGE_SIZE - 1)).chain(self.second_page())
    }
}

/// All slots, chained by the hash of their keys.
#[derive(Default)]
pub struct Slots {
    slots: Vec<Slot>,
    /// First slot of each hash; a power of two of them.
    heads: Vec<Number>,
    free: Number,
    len: usize,
    serial: u64,
}

impl Slots {
    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.len
    }

    /// A slot, free or not.
    #[inline]
    pub fn get(&self, slot: u32) -> Option<&Slot> {
        self.slots.get(slot as usize)
    }

    /// A slot, free or not.
    #[inline]
    pub fn get_mut(&mut self, slot: u32) -> Option<&mut Slot> {
        self.slots.get_mut(slot as usize)
    }

    /// All slots, free or not.
    pub fn all(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter()
    }

    /// All slots, free or not.
    pub fn all_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.slots.iter_mut()
    }

    fn hash(&self, key: &Key) -> usize {
        let mixed = key.gpa ^ key.rip.rotate_left(24) ^ key.cs_base.rotate_left(44) ^ (key.mode as u64) << 32;
        let shift = 64 - self.heads.len().trailing_zeros();
        (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> shift) as usize
    }

    /// The slot with a key.
    pub fn find(&self, key: &Key) -> Option<u32> {
        if self.heads.is_empty() {
            return None;
        }
        let mut at = self.heads[self.hash(key)];
        while let Some(n) = at.get() {
            let s = &self.slots[n as usize];
            if s.key == *key {
                return Some(n);
            }
            at = s.next;
        }
        None
    }

    /// Enters a block with a key that is not there yet.
    pub fn insert(&mut self, mut slot: Slot) -> u32 {
        if self.len >= self.heads.len() {
            self.grow();
        }
        let n = match self.free.get() {
            Some(n) => {
                self.free = self.slots[n as usize].next;
                n
            }
            None => {
                self.slots.push(Slot::default());
                self.slots.len() as u32 - 1
            }
        };
        self.serial += 1;
        self.len += 1;
        slot.serial = self.serial;
        let head = self.hash(&slot.key);
        slot.next = std::mem::replace(&mut self.heads[head], Number::of(n));
        self.slots[n as usize] = slot;
        n
    }

    fn grow(&mut self) {
        let len = (self.heads.len() * 2).max(1024);
        self.heads = vec![Number::NONE; len];
        for n in 0..self.slots.len() {
            if self.slots[n].serial != 0 {
                let head = self.hash(&self.slots[n].key);
                self.slots[n].next = std::mem::replace(&mut self.heads[head], Number::of(n as u32));
            }
        }
    }

    /// Takes a block out. Its slot is free then, or with `release` false once it is released.
    pub fn remove(&mut self, slot: u32, release: bool) -> Slot {
        let was = std::mem::take(&mut self.slots[slot as usize]);
        self.len -= 1;
        let head = self.hash(&was.key);
        if self.heads[head] == Number::of(slot) {
            self.heads[head] = was.next;
        } else {
            let mut at = self.heads[head];
            while let Some(n) = at.get() {
                at = self.slots[n as usize].next;
                if at == Number::of(slot) {
                    self.slots[n as usize].next = was.next;
                    break;
                }
            }
        }
        if release {
            self.release(slot);
        }
        was
    }

    /// Makes the slot of a removed block free.
    pub fn release(&mut self, slot: u32) {
        self.slots[slot as usize].next = std::mem::replace(&mut self.free, Number::of(slot));
    }
}

impl Index<u32> for Slots {
    type Output = Slot;
    fn index(&self, slot: u32) -> &Slot {
        &self.slots[slot as usize]
    }
}

impl IndexMut<u32> for Slots {
    fn index_mut(&mut self, slot: u32) -> &mut Slot {
        &mut self.slots[slot as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block() -> Arc<Block> {
        Arc::new(Block { rip: 0, mode: 0, len: 1, count: 1, insts: Vec::new() })
    }

    fn key(n: u64) -> Key {
        Key { gpa: n * 8, rip: n * 8 + 0xffff_8000_0000_0000, cs_base: 0, mode: 5 }
    }

    #[test]
    fn blocks_are_found_until_they_are_removed() {
        let mut s = Slots::default();
        let slots: Vec<u32> = (0..5000).map(|n| s.insert(Slot::new(key(n), 0, 8, None, block()))).collect();
        assert_eq!(s.len(), 5000);
        for (n, slot) in slots.iter().enumerate() {
            assert_eq!(s.find(&key(n as u64)), Some(*slot));
        }
        assert_eq!(s.find(&Key { mode: 4, ..key(3) }), None);
        for n in (0..5000).step_by(2) {
            assert_eq!(s.remove(slots[n], true).key, key(n as u64));
        }
        for (n, slot) in slots.iter().enumerate() {
            assert_eq!(s.find(&key(n as u64)), (n % 2 == 1).then_some(*slot));
        }
        let serials: Vec<u64> = slots.iter().map(|n| s[*n].serial).collect();
        for n in 0..2500 {
            let slot = s.insert(Slot::new(key(n * 2), 0, 8, None, block()));
            assert!((slot as usize) < 5000, "free slots come first");
            assert!(!serials.contains(&s[slot].serial));
        }
        assert_eq!(s.len(), 5000);
        assert_eq!(s.all().count(), 5000);
        let slot = s.insert(Slot::new(key(5001), 0, 8, None, block()));
        assert_eq!(s[slot].serial, 7501);
    }

    #[test]
    fn a_slot_not_released_is_not_given_out() {
        let mut s = Slots::default();
        let slot = s.insert(Slot::new(key(1), 0, 8, None, block()));
        s.remove(slot, false);
        assert_ne!(s.insert(Slot::new(key(2), 0, 8, None, block())), slot);
        s.release(slot);
        assert_eq!(s.insert(Slot::new(key(3), 0, 8, None, block())), slot);
    }

    #[test]
    fn an_instruction_across_pages_lies_on_both() {
        let s = Slot::new(Key { gpa: 0x1ffe, ..key(0) }, 0, 5, Some(0x7000), block());
        assert_eq!(s.pieces(), [(0x1ffe, 2), (0x7000, 3)]);
        assert_eq!(s.pages().collect::<Vec<_>>(), [0x1000, 0x7000]);
        assert!(s.overlaps(0x7002, 1) && !s.overlaps(0x7003, 1) && !s.overlaps(0x2000, 16));
    }
}
