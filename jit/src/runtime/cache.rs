//! Translated blocks of one vCPU: found by linear address (jump cache), by physical address (map), dropped by page.

pub use super::slots::{Key, SINGLE};
use super::slots::{Number, Slot, Slots};
use crate::cpu::Cpu;
use crate::fault::Fault;
use crate::ir::{Block, Inst};
use crate::lift::{self, LiftError};
use crate::mmu::code_map::granules;
use crate::mmu::ram::PAGE_SIZE;
use crate::names;
use crate::passes;
use crate::state::{FetchEntry, GENERATION, JUMP_ENTRIES, fetch_slot, jump_slot, mode, reg};
use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use std::sync::Arc;

/// Most bytes a block is lifted from.
const FETCH_BYTES: u64 = 512;
/// Those, and what an instruction that crosses has on the next page.
const FETCH_ROOM: usize = FETCH_BYTES as usize + 16;
/// Most blocks held; then the oldest go, and what still runs comes back.
const BLOCKS_KEPT: usize = 1 << 20;
/// At least so many are.
const BLOCKS_LEAST: usize = 1 << 14;
/// Bytes of code memory for which one is: a block has rather more code than this, if it has any.
const BYTES_PER_BLOCK: usize = 128;
/// Bytes that are tried first, which most blocks fit in; for a single instruction.
const FETCH_FIRST: usize = 96;
const FETCH_ONE: usize = 16;
/// Most bytes of an instruction.
const LONGEST: usize = 15;
/// Blocks that keep their IR: what runs once or twice is in no hurry to be lifted again, and the rest has code.
const IR_KEPT: usize = 1 << 15;

#[derive(Clone, Copy)]
struct FoundBlock {
    rip: u64,
    cs_base: u64,
    /// Generation and mode word.
    check: u64,
    slot: u32,
}

const NOT_FOUND: FoundBlock = FoundBlock { rip: 0, cs_base: 0, check: 0, slot: 0 };

/// Index in the jump table of a block.
fn found_index(rip: u64, word: u32) -> usize {
    jump_slot(rip) ^ (word & SINGLE != 0) as usize
}

/// The blocks.
pub struct BlockCache {
    slots: Slots,
    by_page: FxHashMap<u64, Vec<u32>>,
    /// Blocks with IR, with their serial numbers, in the order in which they got it.
    with_ir: VecDeque<(u32, u64)>,
    /// The bytes that were lifted last.
    fetched: Box<[u8]>,
    /// Room for IR in the making.
    scratch: Vec<Inst>,
    jump: Box<[FoundBlock]>,
    running: Option<u32>,
    /// The block that the interpreter ran last, if no code ran since.
    last: Number,
    stale: bool,
    dead_regions: Vec<u32>,
    /// RIPs of blocks just dropped.
    dead_rips: Vec<u64>,
    /// Code was dropped that may be found at any number of addresses.
    dead_anywhere: bool,
    /// All flat code is relative, at each privilege: for tests.
    #[cfg(any(test, feature = "testing"))]
    pub relative_everywhere: bool,
    /// Times that translated code was dropped.
    invalidations: u64,
    /// Most blocks held.
    most: usize,
}

impl BlockCache {
    /// An empty cache.
    pub fn new() -> Self {
        Self {
            slots: Slots::default(),
            by_page: FxHashMap::default(),
            with_ir: VecDeque::new(),
            fetched: vec![0; FETCH_ROOM].into(),
            scratch: Vec::new(),
            jump: vec![NOT_FOUND; JUMP_ENTRIES].into_boxed_slice(),
            running: None,
            last: Number::NONE,
            stale: false,
            dead_regions: Vec::new(),
            dead_rips: Vec::new(),
            dead_anywhere: false,
            #[cfg(any(test, feature = "testing"))]
            relative_everywhere: false,
            invalidations: 0,
            most: BLOCKS_KEPT,
        }
    }

    /// Forgets what was found by linear address.
    pub fn forget_addresses(&mut self) {
        self.jump.fill(NOT_FOUND);
    }

    /// Holds at most so many blocks.
    #[cfg(test)]
    pub fn hold(&mut self, most: usize) {
        self.most = most;
    }

    /// Holds as many blocks as are of use with `bytes` of code memory.
    pub fn hold_for(&mut self, bytes: usize) {
        self.most = (bytes / BYTES_PER_BLOCK).clamp(BLOCKS_LEAST, BLOCKS_KEPT);
    }

    /// Drops a quarter of the blocks: first those without code, the oldest first. The pages that they lay on, with the
    /// granules of what stays there.
    fn drop_oldest(&mut self) -> Vec<(u64, u64)> {
        debug_assert_eq!(self.running, None, "a block is out");
        let rank = |s: &Slot| (s.code.get().is_some(), s.serial);
        let mut ranks: Vec<_> = self.slots.all().filter(|s| s.serial != 0).map(rank).collect();
        if ranks.is_empty() {
            return Vec::new();
        }
        let quarter = ranks.len() / 4;
        let last = *ranks.select_nth_unstable(quarter).1;
        let pages: Vec<u64> = self.by_page.keys().copied().collect();
        pages.into_iter().map(|page| (page, self.drop_from(page, |s| rank(s) <= last))).collect()
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
    fn take(&mut self, slot: u32) -> Option<Arc<Block>> {
        let block = self.slots.get_mut(slot)?.block.take();
        let before = std::mem::replace(&mut self.last, Number::of(slot));
        if let Some(s) = before.get().and_then(|before| self.slots.get_mut(before)) {
            s.then = Number::of(slot);
        }
        self.running = Some(slot);
        self.stale = false;
        block
    }

    /// Code runs: what the interpreter runs next does not come behind what it ran last.
    pub fn code_runs(&mut self) {
        self.last = Number::NONE;
    }

    /// The block that the interpreter ran behind the one in `slot` the last time, if it lies within a page, has no code, and its
    /// IR is at hand.
    pub fn bare_successor(&self, slot: u32) -> Option<(u32, Key, Arc<Block>)> {
        let next = self.slots.get(slot)?.then.get()?;
        let s = self.slots.get(next).filter(|s| s.code == Number::NONE && s.second_page().is_none())?;
        Some((next, s.key, s.block.clone()?))
    }

    /// Returns a block that was taken, unless it was dropped meanwhile.
    pub fn put_back(&mut self, slot: u32, block: Arc<Block>) {
        if self.stale {
            self.slots.release(slot);
        } else if let Some(s) = self.slots.get_mut(slot) {
            s.block = Some(block);
        }
        self.running = None;
        self.stale = false;
    }

    fn insert(&mut self, key: Key, page: u64, len: u16, second_page: Option<u64>, block: Arc<Block>) -> u32 {
        let slot = self.slots.insert(Slot::new(key, page, len, second_page, block));
        for page in self.slots[slot].pages() {
            self.by_page.entry(page).or_default().push(slot);
        }
        self.note_ir(slot);
        slot
    }

    /// A block got its IR. There is room for that of so many; the one that got it first loses it.
    fn note_ir(&mut self, slot: u32) {
        if self.with_ir.len() >= IR_KEPT
            && let Some((old, serial)) = self.with_ir.pop_front()
        {
            self.drop_ir(old, serial);
        }
        self.with_ir.push_back((slot, self.serial(slot)));
    }

    fn drop_ir(&mut self, slot: u32, serial: u64) {
        if let Some(s) = self.slots.get_mut(slot).filter(|s| s.serial == serial) {
            s.block = None;
        }
    }

    /// The block has code: its IR is made again when it is needed.
    pub fn forget_ir(&mut self, slot: u32) {
        if let Some(s) = self.slots.get_mut(slot) {
            s.block = None;
        }
    }

    /// Counts an interpreted run; the number, or `None` if the block is never compiled.
    pub fn count_run(&mut self, slot: u32) -> Option<u32> {
        let s = self.slots.get_mut(slot)?;
        s.runs = s.runs.saturating_add(1);
        (s.serial != 0 && s.key.mode & SINGLE == 0).then_some(s.runs)
    }

    /// The block's baseline code asks to be compiled better: how often it has, unless that is under way.
    pub fn count_request(&mut self, slot: u32) -> Option<u32> {
        let s = self.slots.get_mut(slot)?;
        s.asked = s.asked.saturating_add(1);
        (!s.requested && s.serial != 0).then_some(s.asked)
    }

    /// Whether the block still waits for its code to be asked for.
    pub fn waits(&self, slot: u32, serial: u64) -> bool {
        self.slots.get(slot).is_some_and(|s| s.serial == serial && !s.requested && s.code == s.baseline)
    }

    /// Counts a run of the block's code: how many there were before.
    pub fn count_code_run(&mut self, slot: u32) -> u32 {
        let Some(s) = self.slots.get_mut(slot) else { return 0 };
        let before = s.runs;
        s.runs = before.wrapping_add(1);
        before
    }

    /// Notes whether the block's region was asked for.
    pub fn set_requested(&mut self, slot: u32, requested: bool) {
        if let Some(s) = self.slots.get_mut(slot) {
            s.requested = requested;
        }
    }

    /// Key of the block in a slot.
    pub fn key(&self, slot: u32) -> Option<Key> {
        self.slots.get(slot).filter(|s| s.serial != 0).map(|s| s.key)
    }

    /// RIP that the block in a slot was found at last; 0 if there is none.
    pub fn rip(&self, slot: u32) -> u64 {
        self.slots.get(slot).map_or(0, Slot::rip)
    }

    /// Serial number of the block in a slot; 0 if there is none.
    pub fn serial(&self, slot: u32) -> u64 {
        self.slots.get(slot).map_or(0, |s| s.serial)
    }

    /// Slot of the block with this key.
    pub fn slot_of(&self, key: &Key) -> Option<u32> {
        self.slots.find(key)
    }

    /// The block in a slot was found at `rip`.
    pub fn note_found(&mut self, slot: u32, rip: u64) {
        if let Some(s) = self.slots.get_mut(slot)
            && s.rip() != rip
        {
            s.moved = true;
            s.page = rip & !(PAGE_SIZE - 1);
        }
    }

    /// Where the block in a slot can be found by linear address is to be forgotten: its RIP, if it was found at one only.
    pub fn only_rip(&mut self, slot: u32) -> Option<u64> {
        let s = self.slots.get(slot).filter(|s| s.serial != 0)?;
        self.dead_anywhere |= s.moved;
        (!s.moved).then(|| s.rip())
    }

    /// Number of instructions of the block in a slot.
    pub fn insns(&self, slot: u32) -> u64 {
        self.slots.get(slot).map_or(0, |s| s.insns.into())
    }

    /// Guest-physical address of the second page that the block in a slot crosses into, if it does.
    pub fn second_page(&self, slot: u32) -> Option<u64> {
        self.slots.get(slot).filter(|s| s.serial != 0)?.second_page()
    }

    /// Regions that start with the block are to keep to its page: the next one is not always the same.
    pub fn keep_to_page(&mut self, slot: u32) {
        if let Some(s) = self.slots.get_mut(slot) {
            s.keeps_to_page = true;
        }
    }

    /// See [`BlockCache::keep_to_page`].
    pub fn keeps_to_page(&self, slot: u32) -> bool {
        self.slots.get(slot).is_some_and(|s| s.keeps_to_page)
    }

    /// The block does not cross into a second page.
    pub fn within_page(&self, slot: u32) -> bool {
        self.slots.get(slot).is_some_and(|s| s.serial != 0 && s.second_page().is_none())
    }

    /// The region that starts with the block in a slot.
    #[inline]
    pub fn code(&self, slot: u32) -> Option<u32> {
        self.slots.get(slot)?.code.get()
    }

    /// Enters the region that starts with a block.
    pub fn set_code(&mut self, slot: u32, region: u32) {
        if let Some(s) = self.slots.get_mut(slot) {
            s.code = Number::of(region);
            s.runs = 0;
        }
    }

    /// Enters the baseline code of a block. It goes when the block goes.
    pub fn set_baseline(&mut self, slot: u32, region: u32) {
        self.set_code(slot, region);
        if let Some(s) = self.slots.get_mut(slot) {
            s.baseline = Number::of(region);
        }
    }

    /// The baseline code of a block.
    pub fn baseline(&self, slot: u32) -> Option<u32> {
        self.slots.get(slot)?.baseline.get()
    }

    /// The block is part of a region: when it goes, the region goes.
    pub fn add_region(&mut self, slot: u32, region: u32) {
        if let Some(s) = self.slots.get_mut(slot) {
            s.regions.push(region);
        }
    }

    /// The block has no better code than baseline code.
    pub fn lacks_better(&self, slot: u32) -> bool {
        self.slots.get(slot).is_some_and(|s| s.code == s.baseline)
    }

    /// A region was thrown away, to make room. Its head ran often enough to have code again after fewer runs: after those
    /// that are left when `runs` count as made.
    pub fn region_evicted(&mut self, slot: u32, region: u32, runs: u32) {
        self.region_gone(slot, region);
        if let Some(s) = self.slots.get_mut(slot).filter(|s| s.code == Number::NONE) {
            s.runs = runs;
        }
    }

    /// A region was thrown away.
    pub fn region_gone(&mut self, slot: u32, region: u32) {
        let Some(s) = self.slots.get_mut(slot) else { return };
        s.regions.retain(|r| *r != region);
        if s.baseline.get() == Some(region) {
            s.baseline = Number::NONE;
        }
        if s.code.get() == Some(region) {
            s.code = s.baseline;
            s.requested = false;
        }
    }

    /// In regions, the blocks with the byte at guest-physical `gpa` are to check each access alone: the regions they are in.
    pub fn narrow(&mut self, gpa: u64) -> Vec<u32> {
        let mut regions = Vec::new();
        for slot in self.by_page.get(&(gpa & !(PAGE_SIZE - 1))).into_iter().flatten() {
            let s = &mut self.slots[*slot];
            if !s.narrow && s.overlaps(gpa, 1) {
                s.narrow = true;
                regions.extend(&s.regions);
            }
        }
        regions.sort_unstable();
        regions.dedup();
        regions
    }

    /// See [`BlockCache::narrow`].
    pub fn set_narrow(&mut self, slot: u32) {
        if let Some(s) = self.slots.get_mut(slot) {
            s.narrow = true;
        }
    }

    /// See [`BlockCache::narrow`].
    pub fn is_narrow(&self, slot: u32) -> bool {
        self.slots.get(slot).is_some_and(|s| s.narrow)
    }

    /// Number of blocks held.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Drops blocks of `page`; returns the granules of those that stay.
    fn drop_from(&mut self, page: u64, goes: impl Fn(&Slot) -> bool) -> u64 {
        let Some(mut list) = self.by_page.remove(&page) else { return 0 };
        let mut left = 0;
        list.retain(|slot| {
            let s = &self.slots[*slot];
            if goes(s) {
                self.drop_block(*slot, page);
                return false;
            }
            for (start, n) in s.pieces() {
                if start & !(PAGE_SIZE - 1) == page {
                    left |= granules(start, n);
                }
            }
            true
        });
        if !list.is_empty() {
            self.by_page.insert(page, list);
        }
        left
    }

    /// Where the blocks start (guest-physical) that hold one of the linear addresses.
    pub fn places_over(&mut self, addresses: &[u64]) -> Vec<u64> {
        let held = |s: &Slot| {
            let start = s.key.linear();
            // While there are breakpoints relative code is not looked for.
            s.serial != 0 && !s.key.is_relative() && addresses.iter().any(|a| a.wrapping_sub(start) < u64::from(s.len))
        };
        self.slots.all_mut().filter(|s| held(s)).map(|s| s.key.gpa).collect()
    }

    /// Drops a block whose entry in the list of `page` is gone already.
    fn drop_block(&mut self, slot: u32, page: u64) {
        let running = self.running == Some(slot);
        let was = self.slots.remove(slot, !running);
        self.stale |= running;
        let found = &mut self.jump[found_index(was.rip(), was.key.mode)];
        if found.slot == slot {
            *found = NOT_FOUND;
        }
        self.dead_rips.push(was.rip());
        self.dead_anywhere |= was.moved;
        for other in was.pages().filter(|p| *p != page) {
            if let Some(l) = self.by_page.get_mut(&other) {
                l.retain(|i| *i != slot);
            }
        }
        self.dead_regions.extend(was.baseline.get());
        self.dead_regions.extend(was.regions);
    }
}

impl Cpu {
    /// The block at RIP, lifted now if need be. `single`: of one instruction.
    #[inline]
    pub fn find_block(&mut self, single: bool) -> Result<u32, Fault> {
        let s = &mut self.state;
        s.code_base = s.rip & !(PAGE_SIZE - 1);
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
        let key =
            if self.is_relative(word) { Key::relative(gpa, rip, word) } else { Key { gpa, rip, cs_base, mode: word } };
        let at = found_index(rip, word);
        // What was found under other translations is often what these lead to as well.
        let e = self.blocks.jump[at];
        let known = e.rip == rip && self.blocks.key(e.slot) == Some(key);
        let slot = match if known { Some(e.slot) } else { self.blocks.slot_of(&key) } {
            Some(slot) => {
                self.blocks.note_found(slot, rip);
                self.revalidate(slot, key, linear)?
            }
            None => {
                if self.blocks.len() >= self.blocks.most {
                    self.drop_oldest_blocks();
                }
                self.lift_node(key, linear)?
            }
        };
        let check = self.state.jump_check | (word & SINGLE) as u64;
        self.blocks.jump[at] = FoundBlock { rip, cs_base, check, slot };
        Ok(slot)
    }

    /// Code of this mode is shared by all addresses that its page is mapped at: that of programs, which are loaded elsewhere
    /// each time they are started. Breakpoints have an address.
    fn is_relative(&self, word: u32) -> bool {
        const WANTED: u32 = mode::FLAT | mode::CPL;
        #[cfg(any(test, feature = "testing"))]
        let wanted = if self.blocks.relative_everywhere { mode::FLAT } else { WANTED };
        #[cfg(not(any(test, feature = "testing")))]
        let wanted = WANTED;
        word & (wanted | mode::VM86) == wanted && word & (mode::CS64 | mode::CS32) != 0 && !self.debugger.breaks()
    }

    /// A block with an instruction that crosses into a second page is valid while that page is the same.
    fn revalidate(&mut self, slot: u32, key: Key, linear: u64) -> Result<u32, Fault> {
        let Some(second) = self.blocks.slots[slot].second_page() else {
            return Ok(slot);
        };
        if self.fetch_address(next_page(linear))? == second {
            return Ok(slot);
        }
        self.invalidate_code(key.gpa, 1);
        self.lift_node(key, linear)
    }

    /// Guest-physical address of a fetch, through a small cache.
    pub(super) fn fetch_address(&mut self, linear: u64) -> Result<u64, Fault> {
        let page = linear & !(PAGE_SIZE - 1);
        let check = self.state.jump_check & GENERATION;
        let slot = fetch_slot(linear);
        let e = &self.state.fetches[slot];
        if e.page == page && e.check == check {
            return Ok(e.gpa | linear & (PAGE_SIZE - 1));
        }
        let gpa = self.translate_fetch(linear)?.gpa;
        self.state.fetches[slot] = FetchEntry::new(page, gpa, check);
        Ok(gpa | linear & (PAGE_SIZE - 1))
    }

    fn lift_node(&mut self, key: Key, linear: u64) -> Result<u32, Fault> {
        let rip = self.state.rip;
        let (block, second_page) = self.lift(&key, rip, |cpu| cpu.fetch_address(next_page(linear)))?;
        Ok(self.enter_block(key, (rip, linear), block, second_page))
    }

    /// Lifts the block with `key` at `rip` in flat code, which has not been run, if it lies within a page and is what is
    /// `expected`.
    pub(super) fn lift_ahead(&mut self, key: Key, rip: u64, expected: impl FnOnce(&Block) -> bool) -> Option<u32> {
        if self.blocks.len() >= self.blocks.most {
            return None;
        }
        let (block, second_page) = self.lift(&key, rip, |_| Err(Fault::GP0)).ok()?;
        (second_page.is_none() && expected(&block)).then(|| self.enter_block(key, (rip, rip), block, None))
    }

    /// Enters the block that was just lifted at a RIP and linear address.
    fn enter_block(&mut self, key: Key, (rip, linear): (u64, u64), block: Block, second_page: Option<u64>) -> u32 {
        tracing::trace!(
            target: "in_asm",
            pc = linear,
            "----------------\nIN: {}\n{}\n",
            names::of(linear),
            lift::disassemble(&block, &self.blocks.fetched, linear)
        );
        let page = rip & !(PAGE_SIZE - 1);
        let slot = self.blocks.insert(key, page, block.len.max(1), second_page, Arc::new(block));
        for (gpa, len) in self.blocks.slots[slot].pieces() {
            self.mark_code(gpa, len);
        }
        self.look_again(slot);
        slot
    }

    /// Notes that there is code of `len` bytes at `gpa`, within a page. From now on stores to it are looked at.
    fn mark_code(&mut self, gpa: u64, len: u64) {
        let (shared, page) = (self.shared.clone(), gpa & !(PAGE_SIZE - 1));
        let Some(told) = self.mailbox.marks.mark(&shared.ram, &shared.code_map, gpa, granules(gpa, len)) else {
            return;
        };
        // What others have told of the page may be in the mail still.
        self.state.tlb.protect_code_page(page);
        if !told {
            shared.protect_elsewhere(page, &self.mailbox);
            shared.code_map.set_told(&shared.ram, page);
        }
    }

    /// Of the code on `page` only that in the granules `left` is left.
    fn keep_marks(&self, page: u64, left: u64) {
        self.mailbox.marks.keep(&self.shared.ram, &self.shared.code_map, page, left);
    }

    /// Reads what other threads left. Stores to a page that another processor has code of meanwhile were not looked at so
    /// far: they may have changed any of it.
    pub(super) fn read_mail(&mut self) {
        let mail = self.mailbox.take();
        for page in mail.protect {
            if self.state.tlb.protect_code_page(page) {
                self.shared.code_written(page, PAGE_SIZE, None);
            }
        }
        if mail.flush {
            self.flush_tlb_all();
        }
        for (gpa, len) in mail.written {
            self.invalidate_code(gpa, len);
        }
    }

    /// Another processor or a device may have written to the bytes of the block in `slot` after it was lifted and before
    /// it was marked: then it goes before the next block begins.
    fn look_again(&mut self, slot: u32) {
        let s = &self.blocks.slots[slot];
        let [(first, n), (second, _)] = s.pieces();
        let (len, n) = (s.len as usize, n as usize);
        let mut now = [0; FETCH_ROOM];
        self.shared.ram.read(first, &mut now[..n]);
        self.shared.ram.read(second, &mut now[n..len]);
        if now[..len] != self.blocks.fetched[..len] {
            self.mailbox.post_written(first, n as u64);
        }
    }

    /// Lifts the block with `key` at `rip`: its IR, and the page that `second` gives if its instruction goes on there.
    fn lift(
        &mut self,
        key: &Key,
        rip: u64,
        second: impl FnOnce(&mut Self) -> Result<u64, Fault>,
    ) -> Result<(Block, Option<u64>), Fault> {
        let mut buf = std::mem::take(&mut self.blocks.fetched);
        let lifted = self.lift_from(&mut buf, key, rip, second);
        self.blocks.fetched = buf;
        lifted
    }

    /// The same, through `buf`, which is left with the bytes.
    fn lift_from(
        &mut self,
        buf: &mut [u8],
        key: &Key,
        rip: u64,
        second: impl FnOnce(&mut Self) -> Result<u64, Fault>,
    ) -> Result<(Block, Option<u64>), Fault> {
        let in_page = PAGE_SIZE - (key.gpa & (PAGE_SIZE - 1));
        // SDM 3A 5.3: a fetch beyond the limit of CS is #GP; the block ends at the limit.
        let limit_left = if key.mode & mode::CS64 != 0 {
            u64::MAX
        } else {
            (self.state.segs[reg::CS].limit as u64).saturating_sub(key.rip) + 1
        };
        // A block ends before a breakpoint; its last instruction may reach over one that is set amid it.
        let stop = rip.wrapping_add(self.debugger.room(key.linear(), u64::from(u32::MAX)));
        let max = if key.mode & (SINGLE | mode::TF | mode::STEP) != 0 { 1 } else { lift::MAX_INSNS };
        let word = key.mode & !SINGLE;
        let most = in_page.min(FETCH_BYTES).min(limit_left) as usize;
        let first = if max == 1 { FETCH_ONE } else { FETCH_FIRST };
        let mut taken = 0;
        for take in [most.min(first), most] {
            self.shared.ram.read(key.gpa + taken as u64, &mut buf[taken..take]);
            taken = take;
            let scratch = std::mem::take(&mut self.blocks.scratch);
            match lift::lift_into(scratch, &buf[..take], (rip, stop), word, &self.model, max) {
                // It ended where the bytes ended, and there are more.
                Ok(block) if take < most && block.len as usize + LONGEST > take && block.count < max => {
                    self.blocks.scratch = block.insts;
                }
                Ok(block) => return Ok((self.finish_lift(block, rip), None)),
                Err(LiftError::NeedMoreBytes) => break,
            }
        }
        let more = (16.min(limit_left - taken as u64)) as usize;
        if more == 0 {
            return Err(Fault::GP0);
        }
        let next = second(self)?;
        self.shared.ram.read(next, &mut buf[taken..taken + more]);
        let block = lift::lift_block(&buf[..taken + more], rip, word, &self.model, 1).map_err(|_| Fault::GP0)?;
        Ok((self.finish_lift(block, rip), Some(next)))
    }

    /// Runs the passes over a block just lifted and gives its IR the room it needs and no more.
    fn finish_lift(&mut self, mut block: Block, rip: u64) -> Block {
        debug_assert_eq!(crate::ir::verify::check(&block), Ok(()));
        tracing::trace!(target: "op", pc = rip, "OP:\n{}\n", crate::ir::text::print(&block));
        passes::run(&mut block);
        tracing::trace!(target: "op_opt", pc = rip, "OP after optimization:\n{}\n", crate::ir::text::print(&block));
        let exact = block.insts.as_slice().into();
        self.blocks.scratch = std::mem::replace(&mut block.insts, exact);
        block
    }

    /// Takes a block out to run it; [`BlockCache::put_back`] returns it. `None`: look again what is at RIP.
    pub fn take_block(&mut self, slot: u32) -> Option<Arc<Block>> {
        if self.blocks.slots.get(slot)?.block.is_none() {
            self.ir(slot)?;
        }
        self.blocks.take(slot)
    }

    /// The IR of the block in a slot, lifted again if it was let go. `None`: there is no block, or its bytes are others by
    /// now; then it is dropped.
    pub fn ir(&mut self, slot: u32) -> Option<Arc<Block>> {
        let s = self.blocks.slots.get(slot).filter(|s| s.serial != 0)?;
        if let Some(block) = &s.block {
            return Some(block.clone());
        }
        let (key, rip, len, page) = (s.key, s.rip(), s.len, s.second_page());
        let lifted = self.lift(&key, rip, |_| page.ok_or(Fault::GP0));
        match lifted {
            Ok((block, second)) if block.len.max(1) == len && second == page => {
                let block = Arc::new(block);
                self.blocks.slots[slot].block = Some(block.clone());
                self.blocks.note_ir(slot);
                Some(block)
            }
            _ => {
                self.invalidate_code(key.gpa, len as u64);
                None
            }
        }
    }

    /// There are too many blocks: the oldest go, with their code. None may be running.
    fn drop_oldest_blocks(&mut self) {
        let before = self.blocks.len();
        for (page, left) in self.blocks.drop_oldest() {
            self.keep_marks(page, left);
        }
        self.tier.stats.aged += (before - self.blocks.len()) as u64;
        self.forget_dropped();
    }

    /// Drops translated code that overlaps `len` bytes at guest-physical `gpa`.
    pub fn invalidate_code(&mut self, gpa: u64, len: u64) {
        let first = gpa & !(PAGE_SIZE - 1);
        let last = gpa.saturating_add(len.max(1) - 1) & !(PAGE_SIZE - 1);
        for page in (first..=last).step_by(PAGE_SIZE as usize) {
            let left = self.blocks.drop_from(page, |s| s.overlaps(gpa, len));
            self.keep_marks(page, left);
        }
        self.blocks.invalidations += 1;
        self.forget_dropped();
        self.note_once();
        self.state.code_stale = 1;
    }

    /// Makes blocks just dropped unknown to all that knows of them.
    fn forget_dropped(&mut self) {
        let dead = std::mem::take(&mut self.blocks.dead_regions);
        self.drop_regions(dead);
        while let Some(rip) = self.blocks.dead_rips.pop() {
            self.state.forget_jump(rip);
        }
        if std::mem::take(&mut self.blocks.dead_anywhere) {
            self.code_gone();
        }
    }
}

/// Start of the page after `linear`'s.
pub(super) fn next_page(linear: u64) -> u64 {
    (linear & !(PAGE_SIZE - 1)).wrapping_add(PAGE_SIZE)
}
