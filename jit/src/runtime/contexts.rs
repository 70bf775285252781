//! Which translations of code addresses still hold.
//!
//! What is found by linear address (blocks, generated code, pages of fetches) is noted with a generation and counts while
//! that generation is the current one of its privilege. User code has a generation for each PCID (SDM 3A 4.10.1), so that
//! a return to an address space whose translations were not invalidated finds what it left. Supervisor code keeps its own
//! as long as it runs from global pages, which a write of CR3 leaves alone.
//!
//! The second-level TLB (`mmu/second.rs`) keeps data translations by the same generations of address spaces. With several
//! processors nothing is kept over a switch: see `Cpu::switch_address_space`.

use crate::mmu::tlb::Mapping;
use crate::mmu::walk::PAGE_SHIFTS;
use crate::state::mode;

/// Address spaces beside the current one that are remembered; Linux uses six PCIDs a processor.
const KEPT: usize = 8;
/// Bits of the filter of pages fetched from.
const FILTER_BITS: usize = 1 << 15;

/// The generations.
pub struct Contexts {
    last: u32,
    supervisor: u32,
    user: u32,
    /// Supervisor code was fetched from pages that are not global.
    supervisor_local: bool,
    /// PCIDs left, with their user generations; 0: none.
    kept: [(u16, u32); KEPT],
    next_kept: usize,
    /// Pages fetched from since all was forgotten.
    filter: Box<[u64]>,
    /// Page sizes (indexes of [`PAGE_SHIFTS`]) among them.
    sizes: u8,
}

impl Default for Contexts {
    fn default() -> Self {
        Self {
            last: 2,
            supervisor: 1,
            user: 2,
            supervisor_local: false,
            kept: [(0, 0); KEPT],
            next_kept: 0,
            filter: vec![0; FILTER_BITS / 64].into_boxed_slice(),
            sizes: 0,
        }
    }
}

impl Contexts {
    /// The generation for code at the privilege in a mode word.
    #[inline]
    pub fn generation(&self, mode_word: u32) -> u32 {
        if mode_word & mode::CPL == mode::CPL { self.user } else { self.supervisor }
    }

    /// The generation of the current address space: its translations that are not global hold as long.
    #[inline]
    pub fn address_space(&self) -> u32 {
        self.user
    }

    /// A generation never used; 0 when they are used up.
    fn fresh(&mut self) -> u32 {
        self.last = self.last.wrapping_add(1);
        self.last
    }

    /// Nothing holds any more. `false`: generations start anew, and what is noted with old ones must be thrown away.
    #[must_use]
    pub fn forget_all(&mut self) -> bool {
        // Two are needed here, and those that were handed out when they ran out count for nothing.
        if self.last >= u32::MAX - 2 {
            *self = Self::default();
            return false;
        }
        self.supervisor = self.fresh();
        self.user = self.fresh();
        self.supervisor_local = false;
        self.kept = [(0, 0); KEPT];
        self.filter.fill(0);
        self.sizes = 0;
        true
    }

    /// Translations of the current address space that are not global are gone.
    #[must_use]
    pub fn forget_local(&mut self) -> bool {
        self.change(0)
    }

    /// CR3 is written: from PCID `old` to `new`, whose translations stay if `keep`.
    #[must_use]
    pub fn switch(&mut self, old: u16, new: u16, keep: bool) -> bool {
        if old == new && keep {
            return true;
        }
        if old != new {
            self.keep(old);
        }
        let found = self.kept.iter_mut().find(|k| k.0 == new && k.1 != 0).map(std::mem::take);
        self.change(found.filter(|_| keep).map_or(0, |k| k.1))
    }

    /// Goes on with user generation `user`, or with a new one (0).
    fn change(&mut self, user: u32) -> bool {
        if self.last >= u32::MAX - 2 {
            return self.forget_all();
        }
        self.user = if user == 0 { self.fresh() } else { user };
        if std::mem::take(&mut self.supervisor_local) {
            self.supervisor = self.fresh();
        }
        true
    }

    /// Remembers the user generation of a PCID that is left.
    fn keep(&mut self, pcid: u16) {
        let kept = (pcid, self.user);
        match self.kept.iter_mut().find(|k| k.0 == pcid || k.1 == 0) {
            Some(place) => *place = kept,
            None => {
                self.kept[self.next_kept % KEPT] = kept;
                self.next_kept += 1;
            }
        }
    }

    /// Translations of a PCID that is not the current one are gone.
    pub fn forget_pcid(&mut self, pcid: u16) {
        self.kept.iter_mut().filter(|k| k.0 == pcid).for_each(|k| *k = (0, 0));
    }

    /// Translations of all PCIDs but the current one are gone.
    pub fn forget_others(&mut self) {
        self.kept = [(0, 0); KEPT];
    }

    /// Code is fetched from `linear` through `m`, at supervisor privilege or not.
    pub fn note_fetch(&mut self, linear: u64, m: &Mapping, supervisor: bool) {
        self.supervisor_local |= supervisor && !m.global;
        let shift = m.page_mask.trailing_zeros();
        // A size unknown to `may_hold` counts as the smallest: there is none.
        let size = PAGE_SHIFTS.iter().position(|s| *s == shift).unwrap_or(0);
        self.sizes |= 1 << size;
        let bit = filter_bit(linear, PAGE_SHIFTS[size]);
        self.filter[bit / 64] |= 1 << (bit % 64);
    }

    /// Code may have been fetched from the page of `linear`.
    pub fn fetched_from(&self, linear: u64) -> bool {
        PAGE_SHIFTS.iter().enumerate().any(|(n, shift)| {
            let bit = filter_bit(linear, *shift);
            self.sizes >> n & 1 != 0 && self.filter[bit / 64] >> (bit % 64) & 1 != 0
        })
    }
}

/// Bit of the filter for the page of `1 << shift` bytes with `linear`.
fn filter_bit(linear: u64, shift: u32) -> usize {
    let mixed = ((linear >> shift) ^ u64::from(shift) << 58).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> (64 - FILTER_BITS.trailing_zeros())) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: u32 = mode::CPL;
    const KERNEL: u32 = 0;

    fn mapping(global: bool, page_mask: u64) -> Mapping {
        Mapping { gpa: 0, read: true, write: true, global, page_mask }
    }

    #[test]
    fn global_supervisor_code_outlives_address_spaces() {
        let mut c = Contexts::default();
        c.note_fetch(0xffff_8000_0000_0000, &mapping(true, !0xfff), true);
        let (kernel, user) = (c.generation(KERNEL), c.generation(USER));
        assert!(c.forget_local());
        assert_eq!(c.generation(KERNEL), kernel);
        assert_ne!(c.generation(USER), user);
        c.note_fetch(0xffff_8000_0000_0000, &mapping(false, !0xfff), true);
        assert!(c.forget_local());
        assert_ne!(c.generation(KERNEL), kernel);
        let kernel = c.generation(KERNEL);
        assert!(c.forget_local());
        assert_eq!(c.generation(KERNEL), kernel, "nothing local was fetched since");
    }

    #[test]
    fn a_kept_address_space_is_found_again() {
        let mut c = Contexts::default();
        let one = c.generation(USER);
        assert!(c.switch(1, 2, true));
        let two = c.generation(USER);
        assert_ne!(one, two);
        assert!(c.switch(2, 1, true));
        assert_eq!(c.generation(USER), one);
        assert!(c.switch(1, 2, false));
        assert_ne!(c.generation(USER), two, "its translations were not to be kept");
        assert!(c.switch(2, 2, true));
        let two = c.generation(USER);
        c.forget_pcid(1);
        assert!(c.switch(2, 1, true));
        assert_ne!(c.generation(USER), one);
        c.forget_others();
        assert!(c.switch(1, 2, true));
        assert_ne!(c.generation(USER), two);
    }

    #[test]
    fn more_address_spaces_than_are_kept() {
        let mut c = Contexts::default();
        let mut generations = std::collections::HashSet::from([c.generation(USER)]);
        for pcid in 1..100 {
            assert!(c.switch(pcid - 1, pcid, true));
            assert!(generations.insert(c.generation(USER)));
        }
        assert!(c.switch(99, 0, true));
        assert!(generations.insert(c.generation(USER)), "forgotten long ago");
    }

    #[test]
    fn the_filter_knows_pages_of_all_sizes() {
        let mut c = Contexts::default();
        assert!(!c.fetched_from(0x1234));
        c.note_fetch(0x1234, &mapping(false, !0xfff), false);
        c.note_fetch(0x4020_0000, &mapping(true, !0x1f_ffff), true);
        assert!(c.fetched_from(0x1fff) && !c.fetched_from(0x2000));
        assert!(c.fetched_from(0x403f_ffff) && !c.fetched_from(0x4040_0000));
        assert!(c.forget_all());
        assert!(!c.fetched_from(0x1234) && !c.fetched_from(0x4020_0000));
    }

    #[test]
    fn generations_run_out() {
        let mut c = Contexts { last: u32::MAX - 3, ..Contexts::default() };
        assert!(c.switch(0, 1, true));
        assert!(!c.switch(1, 2, true), "old ones must be thrown away");
        assert!(c.switch(2, 1, true));
        let mut c = Contexts { last: u32::MAX - 2, ..Contexts::default() };
        assert!(!c.forget_all());
        assert!(c.forget_all());
    }
}
