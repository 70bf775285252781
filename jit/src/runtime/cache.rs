//! Translated blocks of one vCPU: found by linear address (jump cache), by physical address (map), dropped by page.

use crate::cpu::Cpu;
use crate::fault::Fault;
use crate::ir::Block;
use crate::lift::{self, LiftError};
use crate::mmu::code_map::granules;
use crate::mmu::ram::PAGE_SIZE;
use crate::passes;
use crate::state::{JUMP_ENTRIES, jump_slot, mode, reg};
use std::collections::HashMap;
use std::sync::Arc;

/// Most bytes a block is lifted from at a time.
const FETCH_BYTES: u64 = 512;
/// Entries of the cache of pages fetched from.
const FETCH_ENTRIES: usize = 1024;

/// What identifies a translation: everything lift depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Key {
    /// Guest-physical address of the first byte.
    pub gpa: u64,
    /// RIP of the first instruction.
    pub rip: u64,
    /// CS base (0 in 64-bit mode).
    pub cs_base: u64,
    /// Mode word; bit 31 marks a one-instruction block.
    pub mode: u32,
}

/// Mark in [`Key::mode`] of blocks of one instruction.
pub const SINGLE: u32 = 1 << 31;

/// Where a translated block comes from.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    /// Its key.
    pub key: Key,
    /// Bytes of guest code.
    len: u64,
    /// Guest-physical address of the second page's start, for an instruction that crosses.
    second_page: Option<u64>,
}

impl Node {
    /// Guest-physical pieces (address, length) it was lifted from.
    fn pieces(&self) -> [(u64, u64); 2] {
        let first = self.len.min(PAGE_SIZE - (self.key.gpa & (PAGE_SIZE - 1)));
        match self.second_page {
            Some(page) => [(self.key.gpa, first), (page, (self.len - first).max(1))],
            None => [(self.key.gpa, first); 2],
        }
    }

    fn overlaps(&self, gpa: u64, len: u64) -> bool {
        self.pieces().iter().any(|(start, n)| *start < gpa.saturating_add(len) && gpa < start + n)
    }

    /// The one or two pages it lies on.
    fn pages(&self) -> impl Iterator<Item = u64> {
        std::iter::once(self.key.gpa & !(PAGE_SIZE - 1)).chain(self.second_page)
    }
}

/// A place for a block.
#[derive(Default)]
struct Slot {
    /// `None`: free.
    node: Option<Node>,
    /// The IR; out while the interpreter runs it.
    block: Option<Arc<Block>>,
    /// Tells this block from others that had the slot; 0: free.
    serial: u64,
    /// Interpreted runs; once there is code and it is checked: runs of the code.
    runs: u32,
    /// How often its baseline code asked to be compiled better.
    asked: u32,
    /// Its region is being compiled, or could not be.
    requested: bool,
    /// The code that starts with it.
    code: Option<u32>,
    /// Its baseline code, which `code` is while there is no better.
    baseline: Option<u32>,
    /// All regions it is part of.
    regions: Vec<u32>,
}

#[derive(Clone, Copy)]
struct FoundBlock {
    rip: u64,
    cs_base: u64,
    /// Generation and mode word.
    check: u64,
    slot: u32,
}

const NOT_FOUND: FoundBlock = FoundBlock { rip: 0, cs_base: 0, check: 0, slot: 0 };

#[derive(Clone, Copy)]
struct FetchEntry {
    page: u64,
    gpa: u64,
    /// Generation and MMU index.
    check: u64,
}

const NOT_FETCHED: FetchEntry = FetchEntry { page: 0, gpa: 0, check: 0 };

/// Index in the jump table of a block.
fn found_index(rip: u64, word: u32) -> usize {
    jump_slot(rip) ^ (word & SINGLE != 0) as usize
}

/// The blocks.
pub struct BlockCache {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_key: HashMap<Key, u32>,
    by_page: HashMap<u64, Vec<u32>>,
    jump: Box<[FoundBlock]>,
    fetch: Box<[FetchEntry]>,
    running: Option<u32>,
    stale: bool,
    serial: u64,
    dead_regions: Vec<u32>,
    /// RIPs of blocks just dropped.
    dead_rips: Vec<u64>,
    /// Times that translated code was dropped.
    invalidations: u64,
}

impl BlockCache {
    /// An empty cache.
    pub fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::new(),
            by_page: HashMap::new(),
            jump: vec![NOT_FOUND; JUMP_ENTRIES].into_boxed_slice(),
            fetch: vec![NOT_FETCHED; FETCH_ENTRIES].into_boxed_slice(),
            running: None,
            stale: false,
            serial: 0,
            dead_regions: Vec::new(),
            dead_rips: Vec::new(),
            invalidations: 0,
        }
    }

    /// Forgets what was found by linear address.
    pub fn forget_addresses(&mut self) {
        self.jump.fill(NOT_FOUND);
        self.fetch.fill(NOT_FETCHED);
    }

    /// How often translated code was dropped because its bytes were written.
    pub fn invalidations(&self) -> u64 {
        self.invalidations
    }

    /// The block being interpreted was overwritten.
    #[inline(always)]
    pub fn running_is_stale(&self) -> bool {
        self.stale
    }

    /// Takes a block out to run it; [`BlockCache::put_back`] returns it.
    pub fn take(&mut self, slot: u32) -> Option<Arc<Block>> {
        let block = self.slots.get_mut(slot as usize)?.block.take();
        self.running = Some(slot);
        self.stale = false;
        block
    }

    /// Returns a block that was taken, unless it was dropped meanwhile.
    pub fn put_back(&mut self, slot: u32, block: Arc<Block>) {
        if self.stale {
            self.free.push(slot);
        } else if let Some(s) = self.slots.get_mut(slot as usize) {
            s.block = Some(block);
        }
        self.running = None;
        self.stale = false;
    }

    fn insert(&mut self, node: Node, block: Block) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() as u32 - 1
        });
        self.by_key.insert(node.key, slot);
        for page in node.pages() {
            self.by_page.entry(page).or_default().push(slot);
        }
        self.serial += 1;
        let serial = self.serial;
        self.slots[slot as usize] = Slot { node: Some(node), block: Some(Arc::new(block)), serial, ..Slot::default() };
        slot
    }

    fn slot(&self, slot: u32) -> Option<&Slot> {
        self.slots.get(slot as usize)
    }

    /// Counts an interpreted run; the number, or `None` if the block is never compiled.
    pub fn count_run(&mut self, slot: u32) -> Option<u32> {
        let s = self.slots.get_mut(slot as usize)?;
        s.runs = s.runs.saturating_add(1);
        s.node.is_some_and(|n| n.key.mode & SINGLE == 0).then_some(s.runs)
    }

    /// The block's baseline code asks to be compiled better: how often it has, unless that is under way.
    pub fn count_request(&mut self, slot: u32) -> Option<u32> {
        let s = self.slots.get_mut(slot as usize)?;
        s.asked = s.asked.saturating_add(1);
        (!s.requested && s.node.is_some()).then_some(s.asked)
    }

    /// Whether the block still waits for its code to be asked for.
    pub fn waits(&self, slot: u32, serial: u64) -> bool {
        self.slot(slot).is_some_and(|s| s.serial == serial && !s.requested && s.code == s.baseline)
    }

    /// Counts a run of the block's code: how many there were before.
    pub fn count_code_run(&mut self, slot: u32) -> u32 {
        let Some(s) = self.slots.get_mut(slot as usize) else { return 0 };
        let before = s.runs;
        s.runs = before.wrapping_add(1);
        before
    }

    /// Notes whether the block's region was asked for.
    pub fn set_requested(&mut self, slot: u32, requested: bool) {
        if let Some(s) = self.slots.get_mut(slot as usize) {
            s.requested = requested;
        }
    }

    /// Key of the block in a slot.
    pub fn key(&self, slot: u32) -> Option<Key> {
        self.slot(slot)?.node.map(|n| n.key)
    }

    /// Serial number of the block in a slot; 0 if there is none.
    pub fn serial(&self, slot: u32) -> u64 {
        self.slot(slot).map_or(0, |s| s.serial)
    }

    /// The block in a slot.
    pub fn block(&self, slot: u32) -> Option<&Arc<Block>> {
        self.slot(slot)?.block.as_ref()
    }

    /// Slot of the block with this key.
    pub fn slot_of(&self, key: &Key) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    /// The block does not cross into a second page.
    pub fn within_page(&self, slot: u32) -> bool {
        self.slot(slot).and_then(|s| s.node).is_some_and(|n| n.second_page.is_none())
    }

    /// The region that starts with the block in a slot.
    #[inline]
    pub fn code(&self, slot: u32) -> Option<u32> {
        self.slot(slot)?.code
    }

    /// Enters the region that starts with a block.
    pub fn set_code(&mut self, slot: u32, region: u32) {
        if let Some(s) = self.slots.get_mut(slot as usize) {
            s.code = Some(region);
            s.runs = 0;
        }
    }

    /// Enters the baseline code of a block.
    pub fn set_baseline(&mut self, slot: u32, region: u32) {
        self.set_code(slot, region);
        if let Some(s) = self.slots.get_mut(slot as usize) {
            s.baseline = Some(region);
        }
    }

    /// The baseline code of a block.
    pub fn baseline(&self, slot: u32) -> Option<u32> {
        self.slot(slot)?.baseline
    }

    /// The block is part of a region: when it goes, the region goes.
    pub fn add_region(&mut self, slot: u32, region: u32) {
        if let Some(s) = self.slots.get_mut(slot as usize) {
            s.regions.push(region);
        }
    }

    /// A region was thrown away.
    pub fn region_gone(&mut self, slot: u32, region: u32) {
        if let Some(s) = self.slots.get_mut(slot as usize) {
            s.regions.retain(|r| *r != region);
            if s.baseline == Some(region) {
                s.baseline = None;
            }
            if s.code == Some(region) {
                s.code = s.baseline;
                s.requested = false;
            }
        }
    }

    /// All regions were thrown away.
    pub fn forget_code(&mut self) {
        for s in &mut self.slots {
            s.regions.clear();
            s.code = None;
            s.baseline = None;
            s.requested = false;
        }
    }

    /// Number of blocks held.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Drops blocks of `page` that overlap the range; returns the granules of those that stay.
    fn drop_overlapping(&mut self, page: u64, gpa: u64, len: u64) -> u64 {
        let Some(list) = self.by_page.remove(&page) else { return 0 };
        let mut left = 0;
        let mut keep = Vec::with_capacity(list.len());
        for slot in list {
            let Some(node) = self.slots[slot as usize].node else { continue };
            if node.overlaps(gpa, len) {
                self.drop_node(slot, &node, page);
                continue;
            }
            for (start, n) in node.pieces() {
                if start & !(PAGE_SIZE - 1) == page {
                    left |= granules(start, n);
                }
            }
            keep.push(slot);
        }
        if !keep.is_empty() {
            self.by_page.insert(page, keep);
        }
        left
    }

    /// Drops a block whose entry in the list of `page` is gone already.
    fn drop_node(&mut self, slot: u32, node: &Node, page: u64) {
        self.by_key.remove(&node.key);
        let found = &mut self.jump[found_index(node.key.rip, node.key.mode)];
        if found.slot == slot {
            *found = NOT_FOUND;
        }
        self.dead_rips.push(node.key.rip);
        for other in node.pages().filter(|p| *p != page) {
            if let Some(l) = self.by_page.get_mut(&other) {
                l.retain(|i| *i != slot);
            }
        }
        let slot_was = std::mem::take(&mut self.slots[slot as usize]);
        self.dead_regions.extend(slot_was.regions);
        if self.running == Some(slot) {
            self.stale = true;
        } else {
            self.free.push(slot);
        }
    }
}

impl Cpu {
    /// The block at RIP, lifted now if need be. `single`: of one instruction.
    #[inline]
    pub fn find_block(&mut self, single: bool) -> Result<u32, Fault> {
        let s = &self.state;
        let cs_base = if s.long64() { 0 } else { s.segs[reg::CS].base };
        let word = s.mode | if single { SINGLE } else { 0 };
        let check = s.jump_check | (word & SINGLE) as u64;
        let e = &self.blocks.jump[found_index(s.rip, word)];
        if e.rip == s.rip && e.check == check && e.cs_base == cs_base {
            return Ok(e.slot);
        }
        self.find_block_slow(word, cs_base)
    }

    fn find_block_slow(&mut self, word: u32, cs_base: u64) -> Result<u32, Fault> {
        let rip = self.state.rip;
        if !self.state.long64() && rip > self.state.segs[reg::CS].limit as u64 {
            return Err(Fault::GP0);
        }
        let linear = self.state.linear_rip();
        let gpa = self.fetch_address(linear)?;
        let key = Key { gpa, rip, cs_base, mode: word };
        let at = found_index(rip, word);
        // What was found under other translations is often what these lead to as well.
        let e = self.blocks.jump[at];
        let known = e.rip == rip && self.blocks.key(e.slot) == Some(key);
        let slot = match if known { Some(e.slot) } else { self.blocks.slot_of(&key) } {
            Some(slot) => self.revalidate(slot, key, linear)?,
            None => self.lift_node(key, linear)?,
        };
        let check = self.state.jump_check | (word & SINGLE) as u64;
        self.blocks.jump[at] = FoundBlock { rip, cs_base, check, slot };
        Ok(slot)
    }

    /// A block with an instruction that crosses into a second page is valid while that page is the same.
    fn revalidate(&mut self, slot: u32, key: Key, linear: u64) -> Result<u32, Fault> {
        let Some(second) = self.blocks.slots[slot as usize].node.and_then(|n| n.second_page) else {
            return Ok(slot);
        };
        if self.fetch_address(next_page(linear))? == second {
            return Ok(slot);
        }
        self.invalidate_code(key.gpa, 1);
        self.lift_node(key, linear)
    }

    /// Guest-physical address of a fetch, through a small cache.
    fn fetch_address(&mut self, linear: u64) -> Result<u64, Fault> {
        let page = linear & !(PAGE_SIZE - 1);
        let check = self.state.jump_check & (!0xffff_ffff | mode::MMU as u64);
        let slot = (linear >> 12) as usize & (FETCH_ENTRIES - 1);
        let e = &self.blocks.fetch[slot];
        if e.page == page && e.check == check {
            return Ok(e.gpa | linear & (PAGE_SIZE - 1));
        }
        let gpa = self.translate_fetch(linear)?.gpa;
        self.blocks.fetch[slot] = FetchEntry { page, gpa, check };
        Ok(gpa | linear & (PAGE_SIZE - 1))
    }

    fn lift_node(&mut self, key: Key, linear: u64) -> Result<u32, Fault> {
        let in_page = PAGE_SIZE - (key.gpa & (PAGE_SIZE - 1));
        // SDM 3A 5.3: a fetch beyond the limit of CS is #GP; the block ends at the limit.
        let limit_left = if self.state.long64() {
            u64::MAX
        } else {
            (self.state.segs[reg::CS].limit as u64 - key.rip).saturating_add(1)
        };
        let max = if key.mode & (SINGLE | mode::TF | mode::STEP) != 0 { 1 } else { lift::MAX_INSNS };
        let mut buf = [0; FETCH_BYTES as usize + 16];
        let take = in_page.min(FETCH_BYTES).min(limit_left) as usize;
        self.shared.ram.read(key.gpa, &mut buf[..take]);
        let model = self.model.clone();
        let word = key.mode & !SINGLE;
        let mut second_page = None;
        let block = match lift::lift_block(&buf[..take], key.rip, word, &model, max) {
            Ok(block) => block,
            Err(LiftError::NeedMoreBytes) => {
                let more = (16.min(limit_left - take as u64)) as usize;
                if more == 0 {
                    return Err(Fault::GP0);
                }
                let next = self.fetch_address(next_page(linear))?;
                second_page = Some(next);
                self.shared.ram.read(next, &mut buf[take..take + more]);
                lift::lift_block(&buf[..take + more], key.rip, word, &model, 1).map_err(|_| Fault::GP0)?
            }
        };
        Ok(self.enter_node(key, block, second_page))
    }

    fn enter_node(&mut self, key: Key, mut block: Block, second_page: Option<u64>) -> u32 {
        tracing::trace!(target: "in_asm", pc = key.rip, "{}", lift::disassemble(&block, self.shared.ram.as_ref(), key.gpa));
        debug_assert_eq!(crate::ir::verify::check(&block), Ok(()));
        tracing::trace!(target: "op", pc = key.rip, "{}", crate::ir::text::print(&block));
        passes::run(&mut block);
        tracing::trace!(target: "op_opt", pc = key.rip, "{}", crate::ir::text::print(&block));
        let node = Node { key, len: block.len.max(1) as u64, second_page };
        for (gpa, len) in node.pieces() {
            let before = self.shared.code_map.mark(&self.shared.ram, gpa, granules(gpa, len));
            if before == 0 {
                self.state.tlb.protect_code_page(gpa & !(PAGE_SIZE - 1));
            }
        }
        self.blocks.insert(node, block)
    }

    /// Drops translated code that overlaps `len` bytes at guest-physical `gpa`.
    pub fn invalidate_code(&mut self, gpa: u64, len: u64) {
        let first = gpa & !(PAGE_SIZE - 1);
        let last = gpa.saturating_add(len.max(1) - 1) & !(PAGE_SIZE - 1);
        for page in (first..=last).step_by(PAGE_SIZE as usize) {
            let left = self.blocks.drop_overlapping(page, gpa, len);
            self.shared.code_map.set(&self.shared.ram, page, left);
        }
        self.blocks.invalidations += 1;
        let dead = std::mem::take(&mut self.blocks.dead_regions);
        self.drop_regions(dead);
        while let Some(rip) = self.blocks.dead_rips.pop() {
            self.state.forget_jump(rip);
        }
        self.note_once();
        self.state.code_stale = 1;
    }
}

/// Start of the page after `linear`'s.
fn next_page(linear: u64) -> u64 {
    (linear & !(PAGE_SIZE - 1)).wrapping_add(PAGE_SIZE)
}
