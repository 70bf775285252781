//! What a region is made from, as bytes: equal bytes mean equal regions, since each field can be read back.

use crate::ir::{Block, Inst};
use crate::lower::Region;
use crate::runtime::place::CodePage;
use crate::runtime::slots::Key;
use rustc_hash::FxHasher;
use std::hash::Hasher;

/// The blocks of a region, for a processor that has another region with the same head.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Them, the head first, in the region's order.
    pub parts: Box<[Part]>,
    /// Its pages, the head's first: as RIPs have it, guest-physical.
    pub pages: Box<[(u64, u64)]>,
}

/// A block of a [`Shape`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// RIP as [`Block::rip`] has it.
    pub rip: u64,
    /// Hash of the block.
    pub print: u64,
    /// Checks each access alone.
    pub narrow: bool,
}

impl Shape {
    /// The region has all that `other` has.
    pub fn covers(&self, other: &Shape) -> bool {
        self.parts.first() == other.parts.first()
            && other.parts.iter().all(|part| self.parts.contains(part))
            && other.pages.iter().all(|page| self.pages.contains(page))
    }
}

/// Hash of a block whose RIPs count from `by` bytes before the page that they are given for.
pub fn print_of(block: &Block, by: u64) -> u64 {
    let mut bytes = Vec::new();
    match by {
        0 => put_block(&mut bytes, block),
        by => put_block(&mut bytes, &block.counted_from(by)),
    }
    hash(&bytes)
}

/// A hash that tells where to look for what was found under a key.
pub fn hash_of_key(key: &Key) -> u64 {
    let Key { gpa, rip, cs_base, mode } = *key;
    let mut hasher = FxHasher::default();
    [gpa, rip, cs_base, mode.into()].into_iter().for_each(|n| hasher.write_u64(n));
    hasher.finish()
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write(bytes);
    hasher.finish()
}

/// A region's content, and its shape where it lies on `places`.
pub fn of_region(region: &Region, places: &[CodePage]) -> (Vec<u8>, Shape) {
    let Region { blocks, inner_jumps, narrow, pages } = region;
    let mut bytes = Vec::with_capacity(blocks.iter().map(|b| 16 + 12 * b.insts.len()).sum());
    bytes.push(u8::from(*inner_jumps));
    put(&mut bytes, u64::from(*narrow));
    put(&mut bytes, pages.len() as u64);
    pages.iter().for_each(|page| put(&mut bytes, *page));
    put(&mut bytes, blocks.len() as u64);
    let mut parts = Vec::with_capacity(blocks.len());
    for (n, block) in blocks.iter().enumerate() {
        let start = bytes.len();
        put_block(&mut bytes, block);
        parts.push(Part { rip: block.rip, print: hash(&bytes[start..]), narrow: narrow >> n & 1 != 0 });
    }
    let pages = pages.iter().zip(places).map(|(at, page)| (*at, page.gpa)).collect();
    (bytes, Shape { parts: parts.into(), pages })
}

fn put_block(bytes: &mut Vec<u8>, block: &Block) {
    let Block { rip, mode, len, count, insts } = block;
    for n in [*rip, (*mode).into(), (*len).into(), (*count).into(), insts.len() as u64] {
        put(bytes, n);
    }
    insts.iter().for_each(|inst| put_inst(bytes, inst));
}

fn put_inst(bytes: &mut Vec<u8>, inst: &Inst) {
    let Inst { op, ty, d, a, b, c, off, len, imm } = *inst;
    put(bytes, op as u64);
    bytes.push(ty as u8);
    // The numbers that stand for no value are the highest.
    [d, a, b, c].into_iter().for_each(|n| put(bytes, n.wrapping_add(2).into()));
    put(bytes, off.into());
    bytes.push(len);
    put(bytes, (imm << 1 ^ imm >> 63) as u64);
}

/// Appends a number, seven bits a byte.
fn put(bytes: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        bytes.push(n as u8 | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Op, Ty};
    use std::collections::HashSet;
    use std::sync::Arc;

    fn inst() -> Inst {
        Inst { op: Op::Add, ty: Ty::I32, d: 1, a: 2, b: 3, c: 0xffff, off: 4, len: 5, imm: 6 }
    }

    fn region(change: impl FnOnce(&mut Block), last: Inst) -> Region {
        let mut block = Block { rip: 0x1000, mode: 5, len: 9, count: 2, insts: vec![inst(), last] };
        change(&mut block);
        Region::on_a_page(vec![Arc::new(block)], true, 0)
    }

    #[test]
    fn each_field_counts() {
        let i = inst();
        let mut regions: Vec<Region> = [
            i,
            Inst { op: Op::Sub, ..i },
            Inst { ty: Ty::I64, ..i },
            Inst { d: 0x100, ..i },
            Inst { a: 0xfffe, ..i },
            Inst { b: 0xffff, ..i },
            Inst { c: 0, ..i },
            Inst { off: 3, ..i },
            Inst { len: 0, ..i },
            Inst { imm: -6, ..i },
            Inst { imm: i64::MIN, ..i },
            Inst { imm: i64::MAX, ..i },
        ]
        .into_iter()
        .map(|last| region(|_| (), last))
        .collect();
        regions.push(region(|b| b.rip += 0x1000, i));
        regions.push(region(|b| b.mode |= 1 << 20, i));
        regions.push(region(|b| b.len -= 1, i));
        regions.push(region(|b| b.count += 1, i));
        regions.push(region(|b| b.insts.truncate(1), i));
        regions.push(Region { inner_jumps: false, ..region(|_| (), i) });
        regions.push(Region { narrow: 1, ..region(|_| (), i) });
        regions.push(Region {
            blocks: [region(|_| (), i).blocks, region(|_| (), i).blocks].concat(),
            ..region(|_| (), i)
        });
        let contents: HashSet<Vec<u8>> = regions.iter().map(|r| of_region(r, &[]).0).collect();
        assert_eq!(contents.len(), regions.len());
        assert_eq!(of_region(&region(|_| (), i), &[]), of_region(&region(|_| (), i), &[]));
        let print = |r: &Region| print_of(&r.blocks[0], 0);
        assert_eq!(print(&regions[0]), of_region(&regions[0], &[]).1.parts[0].print);
        assert_ne!(print(&regions[0]), print(&regions[1]));
    }

    #[test]
    fn a_shape_covers_one_with_fewer_blocks_and_the_same_head() {
        let part = |rip| Part { rip, print: rip * 3, narrow: false };
        let shape = |parts: &[u64]| Shape { parts: parts.iter().map(|rip| part(*rip)).collect(), pages: [].into() };
        assert!(shape(&[5, 1, 9]).covers(&shape(&[5, 9])));
        assert!(!shape(&[5, 1]).covers(&shape(&[5, 1, 9])));
        assert!(!shape(&[5, 1, 9]).covers(&shape(&[9, 5])), "another head");
        let other = Shape { parts: [part(5), Part { narrow: true, ..part(9) }].into(), pages: [].into() };
        assert!(!shape(&[5, 1, 9]).covers(&other) && !other.covers(&shape(&[5, 9])));
    }
}
