//! Page tables as the monitor shows them: `info mem` and `info tlb` (SDM 3A chapter 4).

use brolga_jit::Registers;
use std::fmt::Write;

/// Most lines shown: a guest's tables may name more pages than anybody reads.
const MOST: usize = 200_000;
/// Most table entries looked at: tables may point at themselves.
const MOST_ENTRIES: usize = 32 << 20;

const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;

const P: u64 = 1;
const RW: u64 = 1 << 1;
const US: u64 = 1 << 2;
const PS: u64 = 1 << 7;
const NX: u64 = 1 << 63;
/// Address bits of an entry of 8 bytes.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Reads guest-physical memory; `false` if there is none.
pub type Reader<'a> = dyn Fn(u64, &mut [u8]) -> bool + 'a;

/// The tables of one processor.
pub struct Tables<'a> {
    /// Its registers.
    pub registers: &'a Registers,
    /// What they point into.
    pub read: &'a Reader<'a>,
}

/// A page that is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Page {
    linear: u64,
    size: u64,
    gpa: u64,
    /// The last entry's flags.
    entry: u64,
    /// `RW` and `US` of all entries on the way.
    rights: u64,
}

/// Shape of the tables: levels, bytes of an entry, address bits that a level indexes.
struct Shape {
    levels: u32,
    entry: u64,
    bits: u32,
}

/// Where a walk is.
#[derive(Clone, Copy)]
struct At {
    table: u64,
    level: u32,
    linear: u64,
    rights: u64,
}

impl Tables<'_> {
    fn shape(&self) -> Option<Shape> {
        let r = self.registers;
        if r.cr0 & CR0_PG == 0 {
            return None;
        }
        Some(match (r.efer & EFER_LMA != 0, r.cr4 & CR4_PAE != 0) {
            (true, _) => Shape { levels: if r.cr4 & CR4_LA57 != 0 { 5 } else { 4 }, entry: 8, bits: 9 },
            (false, true) => Shape { levels: 3, entry: 8, bits: 9 },
            (false, false) => Shape { levels: 2, entry: 4, bits: 10 },
        })
    }

    /// Calls `found` with each page in ascending order until it says `false`; `None` without paging.
    fn walk(&self, found: &mut dyn FnMut(Page) -> bool) -> Option<()> {
        let shape = self.shape()?;
        let mut looked = 0;
        let root = match (shape.entry, shape.levels) {
            (4, _) => self.registers.cr3 & 0xffff_f000,
            // 4.4.1: the table of four pointers is aligned to 32 bytes.
            (_, 3) => self.registers.cr3 & 0xffff_ffe0,
            _ => self.registers.cr3 & ADDRESS,
        };
        let at = At { table: root, level: shape.levels, linear: 0, rights: RW | US };
        self.table(&shape, at, &mut looked, found);
        Some(())
    }

    fn table(&self, shape: &Shape, at: At, looked: &mut usize, found: &mut dyn FnMut(Page) -> bool) -> bool {
        let shift = 12 + shape.bits * (at.level - 1);
        let pointers = shape.levels == 3 && at.level == 3;
        let count: u64 = if pointers { 4 } else { 1 << shape.bits };
        let mut bytes = vec![0; (count * shape.entry) as usize];
        if !(self.read)(at.table, &mut bytes) {
            return true;
        }
        for (index, raw) in (0u64..).zip(bytes.chunks_exact(shape.entry as usize)) {
            *looked += 1;
            if *looked > MOST_ENTRIES {
                return false;
            }
            let entry = raw.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
            if entry & P == 0 {
                continue;
            }
            let mut linear = at.linear | index << shift;
            if shape.levels > 3 && at.level == shape.levels && index >= count / 2 {
                // Addresses are canonical.
                linear |= u64::MAX << (shift + shape.bits);
            }
            // Pointers have no rights of their own.
            let rights = if pointers { at.rights } else { at.rights & entry };
            let large = match (shape.entry, at.level) {
                (_, 1) => true,
                (4, 2) => entry & PS != 0 && self.registers.cr4 & CR4_PSE != 0,
                (8, 2) => entry & PS != 0,
                (8, 3) => entry & PS != 0 && shape.levels > 3,
                _ => false,
            };
            let goes_on = if large {
                let size = 1u64 << shift;
                found(Page { linear, size, gpa: base(shape, at.level, entry) & !(size - 1), entry, rights })
            } else {
                let table = if shape.entry == 4 { entry & 0xffff_f000 } else { entry & ADDRESS };
                self.table(shape, At { table, level: at.level - 1, linear, rights }, looked, found)
            };
            if !goes_on {
                return false;
            }
        }
        true
    }
}

/// Address of a page; bits 20:13 of a large one of 32-bit paging are its bits 39:32 (4.3).
fn base(shape: &Shape, level: u32, entry: u64) -> u64 {
    match (shape.entry, level) {
        (4, 2) => entry & 0xffc0_0000 | (entry >> 13 & 0xff) << 32,
        (4, _) => entry & 0xffff_f000,
        _ => entry & ADDRESS,
    }
}

/// `info tlb`: each page with its address and flags.
pub fn pages(tables: &Tables<'_>) -> String {
    const FLAGS: [(u64, char); 9] = [
        (NX, 'X'),
        (1 << 8, 'G'),
        (PS, 'P'),
        (1 << 6, 'D'),
        (1 << 5, 'A'),
        (1 << 4, 'C'),
        (1 << 3, 'T'),
        (US, 'U'),
        (RW, 'W'),
    ];
    let mut text = String::new();
    let mut lines = 0;
    let walked = tables.walk(&mut |page| {
        if lines == MOST {
            let _ = writeln!(text, "... and more");
            return false;
        }
        lines += 1;
        // Bit 7 of a small page's entry is PAT, not PS.
        let entry = if page.size == 4096 { page.entry & !PS } else { page.entry };
        let flags: String = FLAGS.iter().map(|(bit, c)| if entry & bit != 0 { *c } else { '-' }).collect();
        let _ = writeln!(text, "{:016x}: {:016x} {flags}", page.linear, page.gpa);
        true
    });
    if walked.is_none() { "PG disabled\n".to_owned() } else { text }
}

/// `info mem`: ranges of equal rights.
pub fn areas(tables: &Tables<'_>) -> String {
    let width = if tables.registers.efer & EFER_LMA != 0 { 16 } else { 8 };
    let mut text = String::new();
    let mut lines = 0;
    let mut area: Option<(u64, u64, u64)> = None;
    let show = |text: &mut String, (start, end, rights): (u64, u64, u64)| {
        let letter = |bit, c| if rights & bit != 0 { c } else { '-' };
        let _ = writeln!(
            text,
            "{start:0width$x}-{end:0width$x} {:0width$x} {}r{}",
            end.wrapping_sub(start),
            letter(US, 'u'),
            letter(RW, 'w')
        );
    };
    let walked = tables.walk(&mut |page| {
        let end = page.linear.wrapping_add(page.size);
        match &mut area {
            Some((_, last, rights)) if *last == page.linear && *rights == page.rights => *last = end,
            _ => {
                if let Some(done) = area.replace((page.linear, end, page.rights)) {
                    lines += 1;
                    show(&mut text, done);
                }
            }
        }
        lines < MOST
    });
    if let Some(last) = area {
        show(&mut text, last);
    }
    if walked.is_none() { "PG disabled\n".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// Memory by 8-byte words; what is not there reads as 0.
    struct Memory(HashMap<u64, u64>);

    impl Memory {
        fn show(&self, registers: &Registers, show: fn(&Tables<'_>) -> String) -> String {
            let read = |gpa: u64, buf: &mut [u8]| {
                for (i, byte) in buf.iter_mut().enumerate() {
                    let at = gpa + i as u64;
                    let word = self.0.get(&(at & !7)).copied().unwrap_or(0);
                    *byte = (word >> (8 * (at & 7))) as u8;
                }
                true
            };
            show(&Tables { registers, read: &read })
        }
    }

    fn long_mode() -> Registers {
        Registers { cr0: CR0_PG, cr4: CR4_PAE, efer: EFER_LMA, cr3: 0x1000, ..Registers::default() }
    }

    #[test]
    fn four_levels_with_large_pages() {
        let words = [
            (0x1000, 0x2000 | 7),
            (0x1000 + 511 * 8, 0x3000 | 3),
            (0x2000, 0x4000 | 7),
            (0x4000, 0x20_0000 | PS | 7),
            (0x4008, 0x5000 | 7),
            (0x5000, 0x7000 | 5 | NX),
            (0x5008, 0x8000 | 7),
            (0x3000 + 511 * 8, 0x4000_0000 | PS | 3),
        ];
        let memory = Memory(words.into());
        let tlb = memory.show(&long_mode(), pages);
        let lines: Vec<&str> = tlb.lines().collect();
        assert_eq!(lines[0], "0000000000000000: 0000000000200000 --P----UW");
        assert_eq!(lines[1], "0000000000200000: 0000000000007000 X------U-");
        assert_eq!(lines[3], "ffffffffc0000000: 0000000040000000 --P-----W");
        let mem = memory.show(&long_mode(), areas);
        let expected = [
            "0000000000000000-0000000000200000 0000000000200000 urw",
            "0000000000200000-0000000000201000 0000000000001000 ur-",
            "0000000000201000-0000000000202000 0000000000001000 urw",
            "ffffffffc0000000-0000000000000000 0000000040000000 -rw",
        ];
        assert_eq!(mem.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn without_paging_and_in_32_bits() {
        let memory = Memory([(0x1000, 0x2003 | 0x40_0083 << 32), (0x2000, 0x5067)].into());
        assert_eq!(memory.show(&Registers::default(), pages), "PG disabled\n");
        assert_eq!(memory.show(&Registers::default(), areas), "PG disabled\n");
        let registers = Registers { cr0: CR0_PG, cr4: CR4_PSE, cr3: 0x1000, ..Registers::default() };
        let tlb = memory.show(&registers, pages);
        assert_eq!(tlb, "0000000000000000: 0000000000005000 ---DA--UW\n0000000000400000: 0000000000400000 --P-----W\n");
        assert_eq!(memory.show(&registers, areas), "00000000-00001000 00001000 -rw\n00400000-00800000 00400000 -rw\n");
    }

    #[test]
    fn tables_that_point_at_themselves_come_to_an_end() {
        let words: HashMap<u64, u64> = (0..512).map(|i| (0x1000 + 8 * i, 0x1000 | 7)).collect();
        let memory = Memory(words);
        assert!(memory.show(&long_mode(), pages).ends_with("... and more\n"));
    }
}
