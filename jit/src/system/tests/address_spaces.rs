//! Code at addresses whose translation changes: after INVLPG, INVPCID and writes of CR3, with and without PCIDs.

use super::Guest;
use crate::state::{cr4, reg};
use crate::system::testing::place::*;

/// Page tables of a second address space.
const OTHER: u64 = 0x8_0000;
/// Bit of CR3 that keeps a PCID's translations.
const KEEP: u64 = 1 << 63;
/// Where user code halts: HLT is not for users, so it runs into #GP's handler.
const GP: u8 = 13;

/// A guest whose code is called at one page only; two pages with different code.
struct Spaces {
    g: Guest,
    user: bool,
}

impl Spaces {
    /// `user`: the code runs at CPL 3. Address space `OTHER` starts as a copy of the first.
    fn new(user: bool, pcids: bool) -> Self {
        let mut g = Guest::long();
        for at in (0..0x5000).step_by(8) {
            let entry = g.read64(PAGING + at);
            // Tables lead to tables of the same space.
            let moved = if at < 0x3000 && entry & 1 != 0 { entry - PAGING + OTHER } else { entry };
            g.write64(OTHER + at, moved);
        }
        if pcids {
            g.cpu.write_cr4(g.cpu.state.cr4 | cr4::PCIDE).expect("PCIDs can be turned on");
        }
        let mut spaces = Self { g: if user { g.user() } else { g }, user };
        for n in 0..3u8 {
            // MOV AL, n; HLT
            spaces.g.bytes(DATA + 0x1000 * u64::from(n), &[0xb0, n, 0xf4]);
        }
        spaces
    }

    /// Maps the page of code to page `n` of answers in the address space with tables at `tables`.
    fn map(&mut self, tables: u64, n: u64) {
        let at = if self.user { USER_CODE } else { CODE };
        self.g.write64(tables + 0x3000 + 8 * (at >> 12), (DATA + 0x1000 * n) | 7);
    }

    /// Runs the code, often enough that it is compiled: its answer.
    fn answer(&mut self) -> u64 {
        let at = if self.user { USER_CODE } else { CODE };
        let (segments, stack, flags) = (self.g.cpu.state.segs, self.g.cpu.gpr(reg::RSP), self.g.cpu.rflags());
        let mut answers = std::collections::BTreeSet::new();
        for _ in 0..4 {
            self.g.cpu.state.rip = at;
            self.g.cpu.set_gpr(reg::RAX, 0xff);
            if self.user {
                assert_eq!(self.g.run_to_handler(), GP);
            } else {
                self.g.run();
            }
            answers.insert(self.g.cpu.gpr(reg::RAX));
            self.g.cpu.state.segs = segments;
            self.g.cpu.set_gpr(reg::RSP, stack);
            self.g.cpu.set_rflags(flags);
        }
        assert_eq!(answers.len(), 1, "{answers:?}");
        answers.into_iter().next().unwrap_or(u64::MAX)
    }

    fn cr3(&mut self, value: u64) {
        self.g.cpu.write_cr3(value).expect("a good CR3");
    }
}

#[test]
fn invlpg_and_cr3_show_the_new_page() {
    for user in [false, true] {
        let mut s = Spaces::new(user, false);
        s.map(PAGING, 1);
        assert_eq!(s.answer(), 1);
        s.map(PAGING, 2);
        s.g.cpu.flush_tlb_page(if user { USER_CODE } else { CODE } + 0x123);
        assert_eq!(s.answer(), 2);
        s.map(PAGING, 1);
        s.cr3(PAGING);
        assert_eq!(s.answer(), 1);
        s.map(OTHER, 2);
        s.cr3(OTHER);
        assert_eq!(s.answer(), 2);
        s.cr3(PAGING);
        assert_eq!(s.answer(), 1);
    }
}

#[test]
fn global_pages_stay_until_all_is_flushed() {
    let mut s = Spaces::new(false, false);
    s.g.cpu.write_cr4(s.g.cpu.state.cr4 | cr4::PGE).expect("global pages");
    let entry = PAGING + 0x3000 + 8 * (CODE >> 12);
    s.g.write64(entry, (DATA + 0x1000) | 7 | 1 << 8);
    assert_eq!(s.answer(), 1);
    s.g.write64(entry, (DATA + 0x2000) | 7 | 1 << 8);
    s.cr3(PAGING);
    assert_eq!(s.answer(), 1, "still in the TLB");
    s.g.cpu.write_cr4(s.g.cpu.state.cr4 & !cr4::PGE).expect("no global pages");
    assert_eq!(s.answer(), 2);
}

#[test]
fn pcids_keep_what_was_not_invalidated() {
    for user in [false, true] {
        let mut s = Spaces::new(user, true);
        s.map(PAGING, 1);
        s.map(OTHER, 2);
        assert_eq!(s.answer(), 1);
        s.cr3(OTHER | 5);
        assert_eq!(s.answer(), 2);
        s.cr3(PAGING | KEEP);
        assert_eq!(s.answer(), 1);
        // A load without the bit drops what the PCID had.
        s.map(OTHER, 0);
        s.cr3(OTHER | 5);
        assert_eq!(s.answer(), 0);
        // So does each kind of INVPCID that names it.
        for (kind, address) in [(0, if user { USER_CODE } else { CODE }), (1, 0), (2, 0), (3, 0)] {
            s.cr3(PAGING | KEEP);
            assert_eq!(s.answer(), 1);
            let new = 1 + kind % 2;
            s.map(OTHER, new);
            s.g.cpu.invalidate_pcid(kind, 5 | u128::from(address) << 64).expect("a good descriptor");
            s.cr3(OTHER | 5 | KEEP);
            assert_eq!(s.answer(), new, "INVPCID type {kind}");
        }
        // And INVLPG for the current one.
        s.map(OTHER, 0);
        s.g.cpu.flush_tlb_page(if user { USER_CODE } else { CODE });
        assert_eq!(s.answer(), 0);
    }
}

#[test]
fn a_kept_address_space_is_as_it_was_left() {
    let mut s = Spaces::new(true, true);
    s.map(PAGING, 1);
    s.map(OTHER, 2);
    assert_eq!(s.answer(), 1);
    s.cr3(OTHER | 5);
    assert_eq!(s.answer(), 2);
    // Without invalidation the old translation may be used; code written through it is seen all the same.
    s.cr3(PAGING | KEEP);
    s.g.bytes(DATA + 0x2001, &[7]);
    s.g.cpu.invalidate_code(DATA + 0x2001, 1);
    s.cr3(OTHER | 5 | KEEP);
    assert_eq!(s.answer(), 7);
}
