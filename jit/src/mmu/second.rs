//! The second-level TLB: what page walks found, in place of another walk when the first level ([`super::tlb`]) has lost it.
//!
//! Generated code does not look here, so it can do what the first level cannot: an entry covers a page of any size, carries
//! the address space that it belongs to (its generation in `runtime/contexts.rs`), so that a switch of
//! address spaces and a return lose nothing that the architecture lets stay (SDM 3A 4.10.2, 4.10.3), and the table grows
//! with what a guest uses. Beside it are the page tables that the last walks led to, so that another page of theirs costs one
//! look (SDM 3A 4.10.3). Rights are those at one MMU index; whatever changes them (CR0, CR4, EFER) flushes all.

use super::tlb::{MMU_INDEXES, Mapping};
use super::walk::{Access, PAGE_SHIFTS, Table};

/// Entries at first, and at most: 1.5 MiB.
const FEWEST: usize = 1 << 9;
const MOST: usize = 1 << 16;
/// Page tables kept.
const TABLES: usize = 64;
/// What a page table maps, as a shift.
const TABLE_SHIFT: u32 = 21;

/// Flags in [`Entry::gpa`].
const READ: u64 = 1;
const WRITE: u64 = 2;
/// Below this bit of [`Entry::tag`] lies the MMU index, from it on the kind.
const KIND: u32 = 2;
/// Kinds of entries are what is looked for separately: sizes (indexes of [`PAGE_SHIFTS`]) of pages of an address space, then of
/// global ones.
const KINDS: usize = 2 * PAGE_SHIFTS.len();

/// One translation.
#[derive(Clone, Copy, Default)]
struct Entry {
    /// Linear page address, MMU index, kind.
    tag: u64,
    /// Guest-physical page address, [`READ`], [`WRITE`].
    gpa: u64,
    /// Of the address space, or of all global pages; 0: no entry.
    generation: u32,
}

/// A page table, of the linear addresses `number << TABLE_SHIFT`.
#[derive(Clone, Copy)]
struct KeptTable {
    number: u64,
    generation: u32,
    table: Table,
}

/// Tables of one vCPU.
pub struct SecondTlb {
    entries: Box<[Entry]>,
    /// Generation of global pages.
    global: u32,
    /// Kinds that were entered since the last flush, of either half of the linear addresses: mostly, users' are of one.
    kinds: [u8; 2],
    /// Valid entries that gave way to others since the table last grew.
    displaced: usize,
    tables: [Option<KeptTable>; TABLES],
    /// There may be some.
    any_tables: bool,
}

impl Default for SecondTlb {
    fn default() -> Self {
        Self {
            entries: table(FEWEST),
            global: 1,
            kinds: [0; 2],
            displaced: 0,
            tables: [None; TABLES],
            any_tables: false,
        }
    }
}

fn table(len: usize) -> Box<[Entry]> {
    vec![Entry::default(); len].into_boxed_slice()
}

/// Tag of the page of a kind with `linear`.
fn tag(index: usize, linear: u64, kind: usize) -> u64 {
    let shift = PAGE_SHIFTS[kind % PAGE_SHIFTS.len()];
    linear >> shift << shift | (index % MMU_INDEXES) as u64 | (kind as u64) << KIND
}

fn is_global(kind: usize) -> bool {
    kind >= PAGE_SHIFTS.len()
}

fn half(linear: u64) -> usize {
    (linear >> 63) as usize
}

impl SecondTlb {
    /// What a walk for this access found, if it holds still in the address space of `generation`. Who has switched address
    /// lines off applies them.
    pub fn find(&self, index: usize, linear: u64, access: Access, generation: u32) -> Option<Mapping> {
        let right = match access {
            Access::Read => READ,
            Access::Write => WRITE,
            Access::Fetch => return None,
        };
        for kind in self.kinds(linear) {
            let (tag, generation) = (tag(index, linear, kind), self.generation(kind, generation));
            if let Some(entry) = self.at(tag, generation).filter(|entry| entry.gpa & right != 0) {
                return Some(mapping(linear, kind, entry));
            }
        }
        None
    }

    /// Enters what a walk found.
    pub fn enter(&mut self, index: usize, linear: u64, m: &Mapping, generation: u32) {
        let Some(size) = PAGE_SHIFTS.iter().position(|shift| u64::MAX << shift == m.page_mask) else { return };
        let kind = if m.global { PAGE_SHIFTS.len() + size } else { size };
        self.kinds[half(linear)] |= 1 << kind;
        let rights = if m.read { READ } else { 0 } | if m.write { WRITE } else { 0 };
        let entry = Entry {
            tag: tag(index, linear, kind),
            gpa: m.gpa & m.page_mask | rights,
            generation: self.generation(kind, generation),
        };
        let n = self.slot(entry.tag, entry.generation);
        let old = std::mem::replace(&mut self.entries[n], entry);
        if old.tag != entry.tag && self.holds(&old, generation) {
            self.displaced += 1;
            if self.displaced > self.entries.len() / 2 && self.entries.len() < MOST {
                self.grow(generation);
            }
        }
    }

    /// Drops all.
    pub fn flush_all(&mut self) {
        self.kinds = [0; 2];
        self.global = self.global.wrapping_add(1);
        if self.global == 0 {
            self.clear();
        }
        // What belongs to address spaces goes with their generations.
    }

    /// Drops all, where generations begin anew.
    pub fn clear(&mut self) {
        self.entries.fill(Entry::default());
        self.drop_tables();
        (self.global, self.kinds, self.displaced) = (1, [0; 2], 0);
    }

    /// The page table that a walk for `linear` may begin at.
    pub fn table(&self, linear: u64, generation: u32) -> Option<Table> {
        let number = linear >> TABLE_SHIFT;
        let kept = self.tables[table_slot(number)].filter(|t| t.number == number && t.generation == generation);
        kept.map(|t| t.table)
    }

    /// Enters the page table that a walk for `linear` led to.
    pub fn enter_table(&mut self, linear: u64, table: Table, generation: u32) {
        let number = linear >> TABLE_SHIFT;
        self.any_tables = true;
        self.tables[table_slot(number)] = Some(KeptTable { number, generation, table });
    }

    fn drop_tables(&mut self) {
        if std::mem::take(&mut self.any_tables) {
            self.tables = [None; TABLES];
        }
    }

    /// Drops the translations of the page of `linear`, of whatever size, in the address space of `generation` and global ones;
    /// and all page tables (SDM 3A 4.10.4.1).
    pub fn flush_page(&mut self, linear: u64, generation: u32) {
        self.drop_tables();
        for kind in self.kinds(linear) {
            let generation = self.generation(kind, generation);
            for tag in (0..MMU_INDEXES).map(|index| tag(index, linear, kind)) {
                if self.at(tag, generation).is_some() {
                    self.entries[self.slot(tag, generation)] = Entry::default();
                }
            }
        }
    }

    /// Kinds that there may be entries of for `linear`.
    fn kinds(&self, linear: u64) -> impl Iterator<Item = usize> + use<> {
        let kinds = self.kinds[half(linear)];
        (0..KINDS).filter(move |kind| kinds >> kind & 1 != 0)
    }

    /// Generation of entries of a kind, in the address space of `generation`.
    fn generation(&self, kind: usize, generation: u32) -> u32 {
        if is_global(kind) { self.global } else { generation }
    }

    /// The entry with this tag.
    #[inline]
    fn at(&self, tag: u64, generation: u32) -> Option<&Entry> {
        let entry = &self.entries[self.slot(tag, generation)];
        ((entry.tag, entry.generation) == (tag, generation)).then_some(entry)
    }

    /// Whether an entry may be found again by the current address space.
    fn holds(&self, entry: &Entry, generation: u32) -> bool {
        let kind = (entry.tag >> KIND) as usize % KINDS;
        entry.generation != 0 && entry.generation == self.generation(kind, generation)
    }

    #[inline]
    fn slot(&self, tag: u64, generation: u32) -> usize {
        let mixed = (tag ^ u64::from(generation).rotate_right(24)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 32) as usize & (self.entries.len() - 1)
    }

    /// Four times the entries, with those that hold.
    fn grow(&mut self, generation: u32) {
        let larger = table((self.entries.len() * 4).min(MOST));
        let old = std::mem::replace(&mut self.entries, larger);
        self.displaced = 0;
        for entry in old.iter().filter(|e| e.generation != 0) {
            let n = self.slot(entry.tag, entry.generation);
            if !self.holds(&self.entries[n], generation) {
                self.entries[n] = *entry;
            }
        }
    }
}

fn table_slot(number: u64) -> usize {
    (number ^ number >> 6 ^ number >> 18) as usize % TABLES
}

/// The translation of the page of 4 KiB with `linear`.
fn mapping(linear: u64, kind: usize, entry: &Entry) -> Mapping {
    let page_mask = u64::MAX << PAGE_SHIFTS[kind % PAGE_SHIFTS.len()];
    Mapping {
        gpa: entry.gpa & !0xfff | linear & !page_mask & !0xfff,
        read: entry.gpa & READ != 0,
        write: entry.gpa & WRITE != 0,
        global: is_global(kind),
        page_mask,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mmu::tlb::{SUPERVISOR, USER};

    const HERE: u32 = 7;
    const THERE: u32 = 8;

    fn page(gpa: u64) -> Mapping {
        Mapping { gpa, read: true, write: true, global: false, page_mask: !0xfff }
    }

    fn gpa(tlb: &SecondTlb, linear: u64, generation: u32) -> Option<u64> {
        tlb.find(USER, linear, Access::Read, generation).map(|m| m.gpa)
    }

    #[test]
    fn pages_belong_to_their_address_space_and_index() {
        let mut tlb = SecondTlb::default();
        tlb.enter(USER, 0x7123, &page(0x1000), HERE);
        assert_eq!((gpa(&tlb, 0x7fff, HERE), gpa(&tlb, 0x7000, THERE)), (Some(0x1000), None));
        assert!(tlb.find(SUPERVISOR, 0x7000, Access::Read, HERE).is_none());
        assert!(tlb.find(USER, 0x7000, Access::Fetch, HERE).is_none());
        tlb.enter(USER, 0x8000, &Mapping { global: true, ..page(0x2000) }, HERE);
        assert_eq!(gpa(&tlb, 0x8000, THERE), Some(0x2000));
        assert!(tlb.find(USER, 0x8000, Access::Write, THERE).is_some_and(|m| m.global));
        tlb.enter(USER, 0x9000, &Mapping { write: false, ..page(0x3000) }, HERE);
        assert_eq!(gpa(&tlb, 0x9000, HERE), Some(0x3000));
        assert!(tlb.find(USER, 0x9000, Access::Write, HERE).is_none());
        tlb.flush_all();
        assert_eq!(gpa(&tlb, 0x8000, THERE), None);
    }

    #[test]
    fn large_pages_are_one_entry() {
        let mut tlb = SecondTlb::default();
        for (n, mask) in [!0x1f_ffffu64, !0x3f_ffff, !0x3fff_ffff].into_iter().enumerate() {
            let at = (n as u64 + 1) << 32;
            let global = n == 1;
            tlb.enter(USER, at | 0x5678, &Mapping { page_mask: mask, global, ..page(at << 1 | 0x5000) }, HERE);
            let last = at | !mask & !0xfff;
            assert_eq!(gpa(&tlb, last, HERE), Some(at << 1 | !mask & !0xfff));
            assert_eq!(gpa(&tlb, last + 0x1000, HERE), None);
            tlb.flush_page(at | 0x3000, THERE);
            assert_eq!(gpa(&tlb, at, HERE).is_some(), !global, "global pages are everybody's");
            tlb.flush_page(at | 0x3000, HERE);
            assert_eq!(gpa(&tlb, at, HERE), None);
        }
    }

    #[test]
    fn it_grows_with_what_is_used() {
        let mut tlb = SecondTlb::default();
        let pages = 20_000u64;
        for _ in 0..4 {
            for n in 0..pages {
                if gpa(&tlb, n << 12, HERE).is_none() {
                    tlb.enter(USER, n << 12, &page(n << 12), HERE);
                }
            }
        }
        assert!(tlb.entries.len() >= 16_384, "{}", tlb.entries.len());
        let found = (0..pages).filter(|n| gpa(&tlb, n << 12, HERE) == Some(n << 12)).count();
        assert!(found > 13_000, "{found}");
        // What others left does not make it grow.
        let mut tlb = SecondTlb::default();
        (0..pages).for_each(|n| tlb.enter(USER, (n % 64) << 12, &page(0), n as u32 + 1));
        assert_eq!(tlb.entries.len(), FEWEST);
    }

    #[test]
    fn generations_that_begin_anew_find_nothing() {
        let mut tlb = SecondTlb::default();
        tlb.enter(USER, 0x7000, &page(0x1000), HERE);
        tlb.clear();
        assert_eq!(gpa(&tlb, 0x7000, HERE), None);
        tlb.global = u32::MAX;
        tlb.enter(USER, 0x8000, &Mapping { global: true, ..page(0x2000) }, HERE);
        tlb.flush_all();
        assert_eq!((gpa(&tlb, 0x8000, HERE), tlb.global), (None, 1));
    }
}
