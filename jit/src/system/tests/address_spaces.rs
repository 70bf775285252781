//! Code and data at addresses whose translation changes: after INVLPG, INVPCID and writes of CR3, with and without PCIDs.

use super::Guest;
use crate::ir::Ty;
use crate::state::{cr4, reg};
use crate::mmu::tlb::{SUPERVISOR, entries};
use crate::system::testing::place::*;

/// Page tables of a second address space.
const OTHER: u64 = 0x8_0000;
/// Bit of CR3 that keeps a PCID's translations.
const KEEP: u64 = 1 << 63;
/// Physical pages each of which holds its number.
const NUMBERS: u64 = 0x20_0000;
/// A data page whose translation changes.
const PAGE: u64 = 0x30_0000;
/// So far apart lie pages that the first-level TLB has one place for.
const APART: u64 = entries(SUPERVISOR) as u64 * 0x1000;
/// Flags of a page table entry: present, writable, for users, accessed, dirty, global.
const USED: u64 = 0x67;
const GLOBAL: u64 = 1 << 8;

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
        for n in 0..16 {
            g.write64(NUMBERS + 0x1000 * n, n);
        }
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

    /// Maps the data page at `at` to page `n` of numbers, in the address space with tables at `tables`.
    fn map_data(&mut self, tables: u64, at: u64, n: u64, flags: u64) {
        self.g.write64(tables + 0x3000 + 8 * (at >> 12), (NUMBERS + 0x1000 * n) | flags);
    }

    /// What the processor reads at `at`.
    fn read(&mut self, at: u64) -> u64 {
        self.g.cpu.load(Ty::I64, at).expect("it is mapped")
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

/// What a translation was is seen by what the page tables say meanwhile.
#[test]
fn data_pages_stay_over_address_spaces_until_they_are_invalidated() {
    let mut s = Spaces::new(false, true);
    s.map_data(PAGING, PAGE, 1, USED);
    s.map_data(OTHER, PAGE, 2, USED);
    assert_eq!(s.read(PAGE), 1);
    s.cr3(OTHER | 5);
    assert_eq!(s.read(PAGE), 2);
    s.map_data(PAGING, PAGE, 3, USED);
    s.cr3(PAGING | KEEP);
    assert_eq!(s.read(PAGE), 1, "it was not invalidated");
    s.g.cpu.flush_tlb_page(PAGE + 0x123);
    assert_eq!(s.read(PAGE), 3);
    s.map_data(OTHER, PAGE, 4, USED);
    s.cr3(OTHER | 5 | KEEP);
    assert_eq!(s.read(PAGE), 2, "INVLPG is for the current PCID");
    for kind in 0..4 {
        let n = 5 + kind;
        s.cr3(PAGING | KEEP);
        s.read(PAGE);
        s.map_data(OTHER, PAGE, n, USED);
        s.g.cpu.invalidate_pcid(kind, 5 | u128::from(PAGE) << 64).expect("a good descriptor");
        s.cr3(OTHER | 5 | KEEP);
        assert_eq!(s.read(PAGE), n, "INVPCID type {kind}");
    }
    s.map_data(OTHER, PAGE, 9, USED);
    s.cr3(OTHER | 5);
    assert_eq!(s.read(PAGE), 9);
    // Without PCIDs a write of CR3 drops all but global pages.
    s.cr3(PAGING);
    s.g.cpu.write_cr4(s.g.cpu.state.cr4 & !cr4::PCIDE | cr4::PGE).expect("no PCIDs");
    s.map_data(PAGING, PAGE, 1, USED);
    s.map_data(PAGING, PAGE + 0x1000, 1, USED | GLOBAL);
    assert_eq!((s.read(PAGE), s.read(PAGE + 0x1000)), (1, 1));
    s.map_data(PAGING, PAGE, 2, USED);
    s.map_data(PAGING, PAGE + 0x1000, 2, USED | GLOBAL);
    s.cr3(PAGING);
    assert_eq!((s.read(PAGE), s.read(PAGE + 0x1000)), (2, 1));
    s.g.cpu.flush_tlb_page(PAGE + 0x1000);
    assert_eq!(s.read(PAGE + 0x1000), 2);
}

/// More than has to go: guests are not always right about what another processor has changed.
#[test]
fn with_another_processor_a_switch_leaves_nothing() {
    for user in [false, true] {
        let mut s = Spaces::new(user, true);
        s.g.cpu.shared.join(s.g.cpu.handle());
        s.map(PAGING, 1);
        s.map_data(PAGING, PAGE, 1, USED);
        s.cr3(PAGING);
        assert_eq!((s.answer(), s.read(PAGE)), (1, 1));
        s.map(PAGING, 2);
        s.map_data(PAGING, PAGE, 2, USED);
        assert_eq!((s.answer(), s.read(PAGE)), (1, 1), "nothing was switched");
        s.cr3(OTHER | 5);
        s.cr3(PAGING | KEEP);
        assert_eq!((s.answer(), s.read(PAGE)), (2, 2));
    }
}

/// The page lost its place in the first level; rights and marks are as the page tables have them.
#[test]
fn data_pages_are_found_again_with_their_rights() {
    let mut s = Spaces::new(false, false);
    let rival = PAGE + APART;
    // It lies beyond the tables that are there.
    let table = NUMBERS + 0x1_0000;
    assert_eq!((rival >> 30, rival >> 21), (0, 9));
    s.g.write64(PAGING + 0x2000 + 8 * 9, table | USED);
    s.g.write64(table + 8 * (rival >> 12 & 511), (NUMBERS + 0x7000) | USED);
    s.map_data(PAGING, PAGE, 1, USED & !0x40);
    assert_eq!((s.read(PAGE), s.read(rival)), (1, 7));
    // Found without a walk, which would see the other page.
    s.map_data(PAGING, PAGE, 2, USED & !0x40);
    assert_eq!((s.read(PAGE), s.read(rival)), (1, 7));
    // A store is the first that makes it dirty: that needs a walk.
    s.g.cpu.store(Ty::I64, PAGE, 0x55).expect("it can be written");
    assert_eq!(s.g.read64(NUMBERS + 0x2000), 0x55);
    let entry = s.g.read64(PAGING + 0x3000 + 8 * (PAGE >> 12));
    assert_eq!(entry & 0x40, 0x40, "dirty");
    assert_eq!((s.read(rival), s.read(PAGE)), (7, 0x55));
    // Read-only after an invalidation: the store faults.
    s.map_data(PAGING, PAGE, 2, USED & !2);
    s.g.cpu.flush_tlb_page(PAGE);
    assert_eq!((s.read(PAGE), s.read(rival)), (0x55, 7));
    s.g.cpu.write_cr0(s.g.cpu.state.cr0 | crate::state::cr0::WP).expect("write protection");
    assert!(s.g.cpu.store(Ty::I64, PAGE, 1).is_err());
}

#[test]
fn any_address_of_a_large_page_invalidates_it() {
    let mut s = Spaces::new(false, true);
    let large = 0x4000_0000;
    // The second gigabyte: a directory of one page of 2 MiB.
    let directory = NUMBERS + 0x1_0000;
    for tables in [PAGING, OTHER] {
        s.g.write64(tables + 0x1008, directory | USED);
    }
    s.g.write64(directory, NUMBERS | USED | 0x80);
    s.g.write64(3 * 0x1000, 0x99);
    assert_eq!((s.read(large + 0x1000), s.read(large + 0x3000)), (1, 3));
    s.g.write64(directory, USED | 0x80);
    s.cr3(OTHER | 5);
    s.cr3(PAGING | KEEP);
    assert_eq!((s.read(large + 0x3000), s.read(large + 0x2000)), (3, 2), "one entry for all of it");
    s.g.cpu.flush_tlb_page(large + 0x1f_f000);
    assert_eq!(s.read(large + 0x3000), 0x99);
}

/// A store through a translation that comes back from the second level finds code that came to its page meanwhile.
#[test]
fn code_is_seen_through_a_kept_translation() {
    let mut s = Spaces::new(false, true);
    s.map(OTHER, 2);
    s.map_data(PAGING, PAGE, 0, USED);
    s.g.write64(PAGING + 0x3000 + 8 * (PAGE >> 12), (DATA + 0x2000) | USED);
    s.g.cpu.store(Ty::I8, PAGE + 0x800, 0).expect("it can be written");
    s.cr3(OTHER | 5);
    assert_eq!(s.answer(), 2);
    s.cr3(PAGING | KEEP);
    s.g.cpu.store(Ty::I8, PAGE + 1, 6).expect("it can be written");
    s.cr3(OTHER | 5 | KEEP);
    assert_eq!(s.answer(), 6);
}

#[test]
fn page_tables_are_remembered_until_any_page_is_invalidated() {
    let mut s = Spaces::new(false, false);
    let (entry, at) = (PAGING + 0x2000 + 8 * 9, 9 << 21);
    let (one, two) = (NUMBERS + 0x1_0000, NUMBERS + 0x1_1000);
    for n in 0..8 {
        s.g.write64(one + 8 * n, (NUMBERS + 0x1000 * n) | USED);
        s.g.write64(two + 8 * n, (NUMBERS + 0x1000 * (n + 8)) | USED);
    }
    s.g.write64(entry, one | USED);
    assert_eq!(s.read(at), 0);
    s.g.write64(entry, two | USED);
    assert_eq!(s.read(at + 0x1000), 1, "by the table that was");
    s.g.cpu.flush_tlb_page(PAGE);
    assert_eq!((s.read(at), s.read(at + 0x2000)), (0, 10));
    s.cr3(PAGING);
    assert_eq!((s.read(at), s.read(at + 0x2000)), (8, 10));
    // Rights that are given need no invalidation.
    s.g.write64(entry, two | USED & !2);
    s.cr3(PAGING);
    s.g.cpu.write_cr0(s.g.cpu.state.cr0 | crate::state::cr0::WP).expect("write protection");
    assert_eq!(s.read(at + 0x3000), 11);
    assert!(s.g.cpu.store(Ty::I64, at + 0x4000, 1).is_err());
    s.g.write64(entry, two | USED);
    s.g.cpu.store(Ty::I64, at + 0x5000, 77).expect("it can be written now");
    assert_eq!(s.g.read64(NUMBERS + 0xd000), 77);
    // A page that was not there is looked for anew.
    s.g.write64(two + 8 * 9, 0);
    assert!(s.g.cpu.load(Ty::I64, at + 0x9000).is_err());
    s.g.write64(two + 8 * 9, (NUMBERS + 0x6000) | USED);
    assert_eq!(s.read(at + 0x9000), 6);
}
