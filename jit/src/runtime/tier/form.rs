//! Which blocks become a region.

use super::{REGION_BLOCKS, REGION_OPS, order};
use crate::cpu::Cpu;
use crate::ir::Block;
use crate::lower::Region;
use crate::mmu::ram::PAGE_SIZE;
use crate::runtime::cache::Key;
use crate::runtime::place::CodePage;
use crate::state::{fetch_slot, mode};
use std::sync::Arc;

/// Most pages of a region.
const PAGES: usize = 4;
/// Bits of an address within its page.
const OFFSET: u64 = PAGE_SIZE - 1;

/// A region with where it is.
pub struct Formed {
    /// What is to be compiled.
    pub region: Region,
    /// Its pages.
    pub pages: Box<[CodePage]>,
    /// The slots of its blocks with their serial numbers.
    pub slots: Vec<(u32, u64)>,
    /// For each, what its RIPs count from more than the head's.
    pub bases: Box<[u64]>,
}

/// Where the blocks of a region are looked for. RIPs of a region of relative code count from its head's page.
pub(super) struct Plan {
    head: Key,
    /// What RIPs of the region count from in keys.
    key_base: u64,
    /// What they count from where the head was found last.
    run_base: u64,
    /// It may go beyond its head's page.
    spreads: bool,
    /// Pages, the head's first: address as RIPs have it, guest-physical address.
    pages: Vec<(u64, u64)>,
}

impl Plan {
    /// The page that RIPs of a block on page `n` count from.
    pub fn shift(&self, n: usize) -> u64 {
        if self.head.is_relative() { self.pages.get(n).map_or(0, |page| page.0) } else { 0 }
    }

    /// Number of the page of a RIP, if it is one of them.
    pub fn page_of(&self, rip: u64) -> Option<usize> {
        let linear = |rip: u64| Key { rip: self.key_base.wrapping_add(rip), ..self.head }.linear() & !OFFSET;
        if linear(rip) == self.head.linear() & !OFFSET {
            return Some(0);
        }
        self.pages.iter().skip(1).position(|page| page.0 == rip & !OFFSET).map(|n| n + 1)
    }

    /// Takes a page in: its number. `None`: there are enough, or it is another one already.
    pub fn add(&mut self, rip: u64, gpa: u64) -> Option<usize> {
        if let Some(n) = self.page_of(rip) {
            return (self.pages[n].1 == gpa).then_some(n);
        }
        if !self.spreads || self.pages.len() >= PAGES {
            return None;
        }
        self.pages.push((rip & !OFFSET, gpa));
        Some(self.pages.len() - 1)
    }

    /// Key of the block at a RIP on page `n`.
    pub fn key(&self, rip: u64, n: usize) -> Option<Key> {
        let head = self.head;
        let key_rip = self.key_base.wrapping_add(rip);
        if n == 0 {
            let gpa = head.gpa & !OFFSET | key_rip.wrapping_add(head.gpa).wrapping_sub(head.rip) & OFFSET;
            return Some(Key { gpa, rip: key_rip, ..head });
        }
        let gpa = self.pages.get(n)?.1 | rip & OFFSET;
        if !head.is_relative() {
            return Some(Key { gpa, rip, ..head });
        }
        let key = Key::relative(gpa, self.linear(rip), head.mode & !mode::RELATIVE);
        (key.rip < PAGE_SIZE).then_some(key)
    }

    /// Where a RIP of the region is when it runs where its head was found last.
    pub fn linear(&self, rip: u64) -> u64 {
        self.run_base.wrapping_add(rip)
    }

    /// The region of these blocks, the head first, which check each access alone if `narrow`. Its slots are `slots`.
    pub fn region(
        &self,
        head_page: CodePage,
        (blocks, narrow): (Vec<Arc<Block>>, u32),
        inner_jumps: bool,
        slots: Vec<(u32, u64)>,
    ) -> Formed {
        let relative = self.head.is_relative();
        let page = |(n, (at, gpa)): (usize, &(u64, u64))| match (n, relative) {
            (0, _) => head_page,
            (_, true) => CodePage { linear: CodePage::RELATIVE, gpa: *gpa },
            (_, false) => CodePage { linear: *at, gpa: *gpa },
        };
        let pages = self.pages.iter().enumerate().map(page).collect();
        let bases = match relative {
            true => blocks.iter().map(|block| block.rip & !OFFSET).collect(),
            false => Box::default(),
        };
        let region = Region { blocks, inner_jumps, narrow, pages: self.pages.iter().map(|page| page.0).collect() };
        Formed { region, pages, slots, bases }
    }
}

impl Cpu {
    /// Where to look for the blocks of a region that starts with the block in `slot`.
    pub(super) fn plan(&self, slot: u32, head: Key) -> Plan {
        let key_base = if head.is_relative() { head.rip & !OFFSET } else { 0 };
        let run_base = if head.is_relative() { self.blocks.rip(slot) & !OFFSET } else { 0 };
        let flat = head.mode & (mode::CS64 | mode::FLAT) == mode::CS64 | mode::FLAT;
        let spreads = flat && key_base == 0 && self.blocks.within_page(slot) && !self.blocks.keeps_to_page(slot);
        let pages = vec![(head.rip.wrapping_sub(key_base) & !OFFSET, head.gpa & !OFFSET)];
        Plan { head, key_base, run_base, spreads, pages }
    }

    /// The region at `head`: what is reachable by direct jumps and has been run; what is called only on the same page.
    /// `None`: the head is gone.
    pub(super) fn form_region(&mut self, head: u32, key: Key) -> Option<Formed> {
        let mut plan = self.plan(head, key);
        let mut chosen = vec![(head, 0)];
        let mut ops = if self.blocks.within_page(head) { 0 } else { REGION_OPS };
        let mut next = 0;
        let alone = self.compiles_blocks();
        let most = if alone { 1 } else { REGION_BLOCKS };
        while next < chosen.len() && chosen.len() < most && ops < REGION_OPS {
            let (slot, page) = chosen[next];
            let Some(block) = self.ir(slot) else { break };
            ops += block.insts.len();
            for target in order::targets(&block).into_iter().flatten() {
                let rip = plan.shift(page).wrapping_add(target);
                let Some((slot, to)) = self.block_of_region(&mut plan, rip, page, block.ends_with_call()) else {
                    continue;
                };
                if !chosen.iter().any(|(s, _)| *s == slot) && chosen.len() < most {
                    chosen.push((slot, to));
                }
            }
            next += 1;
        }
        let found = chosen.into_iter().filter_map(|(s, page)| Some((s, self.ir_of_region(&plan, s, page)?)));
        let found = found.collect::<Vec<_>>();
        let (mut blocks, mut live) = (Vec::with_capacity(found.len()), Vec::with_capacity(found.len()));
        let mut narrow = 0;
        for (s, block) in order::reverse_postorder(found, |(_, block)| block) {
            narrow |= u32::from(self.blocks.is_narrow(s)) << blocks.len();
            blocks.push(block);
            live.push((s, self.blocks.serial(s)));
        }
        (live.first()?.0 == head).then(|| plan.region(self.place_of(head).0, (blocks, narrow), !alone, live))
    }

    /// The block at a RIP of a region that is reached from its page `from`, with the number of its page.
    fn block_of_region(&self, plan: &mut Plan, rip: u64, from: usize, called: bool) -> Option<(u32, usize)> {
        let known = plan.page_of(rip);
        if called && known != Some(from) {
            return None;
        }
        let page = match known {
            Some(page) => page,
            None => plan.add(rip, self.page_seen(plan.linear(rip))?)?,
        };
        let key = plan.key(rip, page)?;
        if self.debugger.breaks_at(key.linear()) {
            return None;
        }
        let slot = self.blocks.slot_of(&key)?;
        self.fits(plan, slot, rip).then_some((slot, page))
    }

    /// A block at a RIP lies within a page, or goes on to a page that the region may have.
    pub(super) fn fits(&self, plan: &mut Plan, slot: u32, rip: u64) -> bool {
        match self.blocks.second_page(slot) {
            Some(second) => plan.spreads && plan.add(rip.wrapping_add(PAGE_SIZE), second).is_some(),
            None => self.blocks.within_page(slot),
        }
    }

    /// The IR of a block on page `n` of a region, with its RIPs.
    pub(super) fn ir_of_region(&mut self, plan: &Plan, slot: u32, n: usize) -> Option<Arc<Block>> {
        let block = self.ir(slot)?;
        match plan.shift(n) {
            0 => Some(block),
            by => Some(Arc::new(block.counted_from(by))),
        }
    }

    /// Guest-physical address of a page that code was fetched from of late; the region looks whether it still is that one.
    fn page_seen(&self, linear: u64) -> Option<u64> {
        let e = &self.state.fetches[fetch_slot(linear)];
        (e.page == linear & !OFFSET).then_some(e.gpa)
    }
}
