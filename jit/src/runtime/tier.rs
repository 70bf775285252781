//! Promotion: which blocks are hot, what regions they form, what becomes of finished code.

mod evict;
mod form;
mod larger;
mod order;
mod trace;

use super::compile::{CompileService, Done, Job, compile_one, log_text, replies};
use super::compiled::Asked;
use super::perf_map::{Maker, PerfMap};
use super::place::{CodeMemory, CodePage, Placed, PlacedLink, Unplaced};
use super::sampler::Sampler;
use crate::baseline;
use crate::cpu::Cpu;
use crate::ir::Block;
use crate::lower::Compiler;
#[cfg(test)]
use crate::lower::Region;
use crate::mmu::ram::PAGE_SIZE;
use crate::state::HEAT_ENTRIES;
use crossbeam_channel::{Receiver, Sender};
use form::Formed;
use rustc_hash::FxHashMap;
use std::collections::BinaryHeap;
use std::sync::Arc;

/// Interpreted runs after which a block gets baseline code.
const WARM: u32 = 2;
/// The same in `sync` mode, where tests want code early.
const WARM_SYNC: u32 = 2;
/// Samples after which a block is compiled better: what the compilation of a region costs is some milliseconds, too.
const SAMPLES: u32 = 2;
/// Runs of baseline code after which it asks for better, in `sync` mode.
const HOT_SYNC: i32 = 8;
/// Most blocks in a region (cranelift.md: more cost too much to compile).
const REGION_BLOCKS: usize = 20;
/// Regions at the compilers at a time.
const IN_FLIGHT: usize = 4;
/// Most IR operations in a region.
const REGION_OPS: usize = 1200;
// What is reached from a block is a word of bits ([`crate::lower`]).
const _: () = assert!(REGION_BLOCKS <= 64);

/// Who runs a block the first time.
#[cfg(any(test, feature = "testing"))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum First {
    /// The interpreter; other code comes later.
    Interpreter,
    /// Baseline code, and never anything better.
    Baseline,
    /// Cranelift's code.
    Cranelift,
    /// The interpreter, the second time baseline code, and from the fourth on Cranelift's, of whole regions.
    EachInTurn,
}

/// A compiled region.
struct Compiled {
    /// Slots of the blocks it was made from.
    slots: Box<[u32]>,
    /// For each, what its RIPs count from, apart from what those of the head do; none: nothing.
    bases: Box<[u64]>,
    entry: u64,
    /// Where forward links of baseline code lead.
    forward_entry: u64,
    /// Page of its head.
    page: CodePage,
    /// Its pages, the head's first; none: that one alone.
    pages: Box<[CodePage]>,
    /// It is entered on one page: its head does not go on to a second.
    one_page: bool,
    /// Host addresses of what it knows of its pages.
    looks: Box<[u64]>,
    /// Times that it met another page than it was made from.
    strayed: u32,
    /// The baseline code that leads here, with the bytes that this took from it.
    over: Option<(u32, [u8; 8])>,
    /// The region that this baseline code leads to.
    under: Option<u32>,
    /// Number of the part of the code memory that it lies in.
    part: u64,
    first_link: u32,
    links: Box<[PlacedLink]>,
    /// Links that lead here.
    incoming: Vec<u32>,
}

/// A region being compiled: its blocks with their serial numbers.
struct Pending {
    slots: Vec<(u32, u64)>,
    /// See [`Compiled::bases`].
    bases: Box<[u64]>,
    /// See [`Compiled::pages`].
    pages: Box<[CodePage]>,
    /// It is not hot here yet, and not to be compiled for this processor alone.
    if_known: bool,
}

/// A vCPU's share of the compiling tier.
pub struct Tier {
    service: Option<Arc<CompileService>>,
    /// Where the code is.
    memory: Option<CodeMemory>,
    sync: Option<Box<Compiler>>,
    emitter: baseline::Emitter,
    /// Room for the blocks that baseline code is made of, as one.
    trace: Block,
    /// Interpreted runs after which a block gets baseline code; `None`: it never does, and `hot` counts interpreted runs.
    warm: Option<u32>,
    /// Runs of baseline code after which it asks for better.
    hot: i32,
    /// Code does not count its runs: the sampler tells what is hot.
    sampled: bool,
    /// How many regions others had compiled when this processor looked last.
    learned: u64,
    next_job: u64,
    pending: FxHashMap<u64, Pending>,
    /// Hot blocks that wait for a compiler: (how often they asked, slot, serial number).
    proposals: BinaryHeap<(u32, u32, u64)>,
    replies: (Sender<Done>, Receiver<Done>),
    regions: Vec<Option<Compiled>>,
    /// Numbers of regions that are free.
    free: Vec<u32>,
    /// Region that each link number belongs to.
    link_owner: FxHashMap<u32, u32>,
    /// Region that what is known of a page belongs to, by its host address.
    page_owner: FxHashMap<u64, u32>,
    /// The link that code last left through, to be joined with what is found.
    open_link: Option<u32>,
    perf_map: Option<PerfMap>,
    /// Counters for `info jit`.
    pub stats: TierStats,
}

/// Counters of the compiling tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierStats {
    /// Blocks that got baseline code.
    pub baseline: u64,
    /// Blocks that came into the baseline code of others, as parts of traces.
    pub traced: u64,
    /// Regions compiled and entered in the cache.
    pub compiled: u64,
    /// Regions thrown away because their guest code changed.
    pub dropped: u64,
    /// Times generated code was entered from the dispatcher.
    pub entries: u64,
    /// Single instructions that generated code left to the interpreter.
    pub interpreted: u64,
    /// Times generated code was left because what comes next was not known there.
    pub lookups: u64,
    /// The same through a jump that leads nowhere yet.
    pub links: u64,
    /// The same for an interrupt or another request.
    pub requests: u64,
    /// The same to look whether a region's next page is mapped as it was.
    pub pages: u64,
    /// The same by an exception.
    pub faults: u64,
    /// The same to have hot code compiled better.
    pub heated: u64,
    /// Blocks the interpreter ran.
    pub blocks: u64,
    /// Regions made again because what they check at once crossed pages too often.
    pub narrowed: u64,
    /// Times that code was thrown away to make room, that placed longest ago.
    pub evictions: u64,
    /// Pieces of code thrown away so.
    pub evicted: u64,
    /// Bytes of code memory made free so.
    pub evicted_bytes: u64,
    /// Blocks dropped because there were too many.
    pub aged: u64,
    /// Of the regions entered, those that another processor had had compiled.
    pub reused: u64,
}

impl Default for Tier {
    fn default() -> Self {
        Self {
            service: None,
            memory: None,
            sync: None,
            emitter: baseline::Emitter::default(),
            trace: Block::default(),
            warm: Some(WARM),
            hot: HOT_SYNC,
            sampled: false,
            learned: 0,
            next_job: 0,
            pending: FxHashMap::default(),
            proposals: BinaryHeap::new(),
            replies: replies(),
            regions: Vec::new(),
            free: Vec::new(),
            link_owner: FxHashMap::default(),
            page_owner: FxHashMap::default(),
            open_link: None,
            perf_map: None,
            stats: TierStats::default(),
        }
    }
}

impl Tier {
    /// Takes over the engine's compilers and room for code. `sync`: a compiler of its own, used at once.
    pub fn configure(&mut self, service: Arc<CompileService>, memory: CodeMemory, sync: Option<Compiler>) {
        if sync.is_some() {
            (self.warm, self.hot) = (Some(WARM_SYNC), HOT_SYNC);
        }
        self.sync = sync.map(Box::new);
        self.service = Some(service);
        self.memory = Some(memory);
    }

    /// Writes where code is placed from now on.
    pub fn write_map(&mut self, map: Option<PerfMap>) {
        self.perf_map = map;
    }

    /// Compiles regions late enough that they have the shape that they have without `sync`. The lockstep checker decides
    /// when baseline code has been looked at enough.
    pub fn wait_until_checked(&mut self) {
        self.hot = i32::MAX;
    }

    /// Chooses who runs blocks first.
    #[cfg(any(test, feature = "testing"))]
    pub fn set_first(&mut self, first: First) {
        self.sampled = false;
        (self.warm, self.hot) = match first {
            First::Interpreter => (Some(WARM_SYNC), HOT_SYNC),
            First::Baseline => (Some(1), i32::MAX),
            First::Cranelift => (None, 1),
            First::EachInTurn => (Some(2), 2),
        };
    }

    /// Baseline code counts no runs, as where a sampler tells what is hot.
    #[cfg(test)]
    pub fn count_no_runs(&mut self) {
        self.sampled = true;
    }

    /// Compiles with `service` from now on, or not at all.
    #[cfg(any(test, feature = "testing"))]
    pub fn set_enabled(&mut self, service: Option<Arc<CompileService>>) {
        self.service = service;
    }

    /// Code was left through link `number`.
    pub fn left_through(&mut self, number: u32) {
        self.open_link = Some(number);
    }

    /// Host address of region `index`.
    pub fn entry(&self, index: u32) -> Option<u64> {
        self.regions.get(index as usize)?.as_ref().map(|r| r.entry)
    }

    /// Entries of a region that a link of region `owner` may lead to. One on another page, which it may be with the RIP's page the same where
    /// the code segment's base is no multiple of a page, or whose head goes into a second page, is entered through the jump
    /// cache or the dispatcher only: both hold for one state of the mappings.
    fn joinable(&self, owner: u32, link: &PlacedLink, target: u32) -> Option<(u64, u64)> {
        let from = self.regions.get(owner as usize)?.as_ref()?;
        let page = from.pages.get(usize::from(link.page)).unwrap_or(&from.page);
        let r = self.regions.get(target as usize)?.as_ref()?;
        (r.one_page && r.page == *page).then_some((r.entry, r.forward_entry))
    }

    /// The region to which what is known of a page at host address `at` belongs met another page: it, if it has so often.
    pub(super) fn strayed(&mut self, at: u64, often: u32) -> Option<u32> {
        let index = *self.page_owner.get(&at)?;
        let r = self.regions.get_mut(index as usize)?.as_mut()?;
        r.strayed += 1;
        (r.strayed >= often).then_some(index)
    }

    /// Where the code is.
    pub(super) fn memory(&self) -> Option<CodeMemory> {
        self.memory.clone()
    }

    /// Slots of the blocks of region `index`.
    pub fn slots(&self, index: u32) -> &[u32] {
        self.regions.get(index as usize).and_then(Option::as_ref).map_or(&[], |r| &r.slots)
    }

    /// For each of them, what its RIPs count from more than the head's; none: nothing more.
    pub fn bases(&self, index: u32) -> &[u64] {
        self.regions.get(index as usize).and_then(Option::as_ref).map_or(&[], |r| &r.bases)
    }

    /// Joins the link that was left through, if any, with region `target`.
    fn join_open(&mut self, target: u32, rip: u64) {
        let Some(number) = self.open_link.take() else { return };
        let (Some(owner), Some(memory)) = (self.link_owner.get(&number).copied(), self.memory.clone()) else {
            return;
        };
        let Some(link) = self.link(owner, number) else { return };
        let is_relative = |r: &Compiled| r.page.linear == CodePage::RELATIVE;
        let relative = self.regions.get(owner as usize).and_then(Option::as_ref).is_some_and(is_relative);
        if (link.rip ^ rip) & if relative { PAGE_SIZE - 1 } else { u64::MAX } != 0 {
            return;
        }
        let Some(entries) = self.joinable(owner, &link, target) else {
            return memory.lock().route_through_cache(&link);
        };
        memory.lock().join(&link, entries);
        self.note_joined(owner, number, target);
    }

    /// Link `number` of region `owner` leads to `target` now.
    fn note_joined(&mut self, owner: u32, number: u32, target: u32) {
        if let Some(Some(r)) = self.regions.get_mut(target as usize) {
            r.incoming.push(number);
        }
        if let Some(Some(r)) = self.regions.get_mut(owner as usize)
            && let Some(link) = r.links.get_mut(number.wrapping_sub(r.first_link) as usize)
        {
            link.joined = Some(target);
        }
    }

    /// Points the links that lead to the baseline code `below` at region `index`, which is better code of the same: those
    /// that pass its entry by would never come there.
    fn move_links(&mut self, below: u32, index: u32, memory: &CodeMemory) {
        let Some(Some(r)) = self.regions.get_mut(below as usize) else { return };
        let incoming = std::mem::take(&mut r.incoming);
        for number in incoming {
            let Some(owner) = self.link_owner.get(&number).copied() else { continue };
            let Some(link) = self.link(owner, number) else { continue };
            match self.joinable(owner, &link, index) {
                Some(entries) => {
                    memory.lock().join(&link, entries);
                    self.note_joined(owner, number, index);
                }
                None => memory.lock().unjoin(&link),
            }
        }
    }

    fn link(&self, owner: u32, number: u32) -> Option<PlacedLink> {
        let r = self.regions.get(owner as usize)?.as_ref()?;
        r.links.get(number.wrapping_sub(r.first_link) as usize).copied()
    }

    /// Throws a region away: nothing leads to it any more. Returns the slots it had.
    fn kill(&mut self, index: u32) -> Box<[u32]> {
        let Some(r) = self.regions.get_mut(index as usize).and_then(Option::take) else { return Box::default() };
        if let Some(memory) = self.memory.clone() {
            let mut space = memory.lock();
            for number in &r.incoming {
                let owner = self.link_owner.get(number).copied();
                // The region may be running now: its ways back to itself are to lead out, too.
                let own = r.links.get(number.wrapping_sub(r.first_link) as usize).copied();
                let link = if owner == Some(index) { own } else { owner.and_then(|o| self.link(o, *number)) };
                if let Some(link) = link {
                    space.unjoin(&link);
                }
            }
            if let Some((below, bytes)) = r.over
                && let Some(Some(baseline)) = self.regions.get_mut(below as usize)
            {
                space.restore(baseline.entry, bytes);
                baseline.under = None;
            }
        }
        if let Some(Some(above)) = r.under.and_then(|above| self.regions.get_mut(above as usize)) {
            above.over = None;
        }
        for (n, link) in r.links.iter().enumerate() {
            let number = r.first_link.wrapping_add(n as u32);
            self.link_owner.remove(&number);
            if let Some(Some(t)) = link.joined.and_then(|t| self.regions.get_mut(t as usize)) {
                t.incoming.retain(|i| *i != number);
            }
        }
        for at in &r.looks {
            self.page_owner.remove(at);
        }
        self.free.push(index);
        r.slots
    }

    /// Enters placed code of the blocks in `slots`: the linear page of the first, and whether it stays there.
    fn enter(&mut self, done: Placed, slots: &[u32], (page, one_page): (CodePage, bool)) -> u32 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.regions.push(None);
            self.regions.len() as u32 - 1
        });
        for n in 0..done.links.len() as u32 {
            self.link_owner.insert(done.first_link.wrapping_add(n), index);
        }
        for at in &done.looks {
            self.page_owner.insert(*at, index);
        }
        self.regions[index as usize] = Some(Compiled {
            slots: slots.into(),
            bases: Box::default(),
            entry: done.entry,
            forward_entry: done.forward_entry,
            page,
            one_page,
            pages: Box::default(),
            looks: done.looks,
            strayed: 0,
            over: None,
            under: None,
            part: done.part,
            first_link: done.first_link,
            links: done.links,
            incoming: Vec::new(),
        });
        index
    }
}

impl Cpu {
    /// Counts a run of the block in `slot`: its code, if it is time for some.
    #[inline]
    pub(super) fn count_run(&mut self, slot: u32) -> Option<u32> {
        self.tier.stats.blocks += 1;
        let link = self.tier.open_link.take();
        self.tier.service.as_ref()?;
        if self.debugger.breaks_at(self.state.linear_rip()) {
            return None;
        }
        let runs = self.blocks.count_run(slot)?;
        let code = match self.tier.warm {
            Some(warm) if runs < warm => return None,
            Some(_) => self.compile_baseline(slot)?,
            None => {
                self.propose(slot);
                self.blocks.code(slot)?
            }
        };
        self.tier.open_link = link;
        Some(code)
    }

    /// Gives the block in `slot` baseline code.
    #[cold]
    fn compile_baseline(&mut self, slot: u32) -> Option<u32> {
        let heat = slot as usize % HEAT_ENTRIES;
        let block = self.ir(slot)?;
        self.make_room();
        let page = self.place_of(slot);
        let mut trace = std::mem::take(&mut self.tier.trace);
        let slots = self.trace(slot, &block, &mut trace);
        let block = if slots.len() > 1 { &trace } else { &*block };
        let code = self.tier.emitter.compile(block, (!self.tier.sampled).then_some(heat));
        let placed = self.tier.memory.as_ref()?.lock().place_block(code)?;
        let rip = self.state.rip;
        tracing::trace!(target: "out_asm", pc = rip, "{}", log_text(&code.bytes, placed.entry, rip));
        self.state.heat[heat] = self.tier.hot;
        self.tier.stats.baseline += 1;
        self.tell_placed(Maker::Baseline, &placed, slot);
        self.tier.trace = trace;
        let index = self.tier.enter(placed, &slots, page);
        self.blocks.set_baseline(slot, index);
        slots[1..].iter().for_each(|slot| self.blocks.add_region(*slot, index));
        self.tier.stats.traced += slots.len() as u64 - 1;
        if self.is_known(slot) {
            self.tier.proposals.push((0, slot, self.blocks.serial(slot)));
            self.feed_compilers();
        }
        if self.lockstep.is_none() {
            slots.iter().for_each(|slot| self.blocks.forget_ir(*slot));
        }
        Some(index)
    }

    /// Tells the perf map of code that starts with the block in `slot`.
    fn tell_placed(&self, maker: Maker, placed: &Placed, slot: u32) {
        if let Some(map) = &self.tier.perf_map {
            map.tell(maker, placed.entry, placed.len, self.blocks.rip(slot));
        }
    }

    /// The baseline code of the block in `slot` has run often enough to be compiled better.
    #[cold]
    pub(super) fn is_hot(&mut self, slot: u32) {
        self.state.heat[slot as usize % HEAT_ENTRIES] = self.tier.hot;
        self.propose(slot);
    }

    /// Leaves it to `sampler` which code is hot, if there is one.
    pub fn use_sampler(&mut self, sampler: Option<Arc<Sampler>>) {
        self.tier.sampled = sampler.is_some();
        sampler.as_ref().inspect(|s| s.watch(self.handle()));
        self.sampler = sampler;
    }

    /// Proposes the region of the block at RIP to the compilers.
    pub(super) fn propose(&mut self, slot: u32) {
        self.blocks.note_found(slot, self.state.rip);
        self.propose_again(slot);
    }

    /// The same, wherever RIP is.
    pub(super) fn propose_again(&mut self, slot: u32) {
        let Some(asked) = self.blocks.count_request(slot) else { return };
        if self.tier.sampled && asked < SAMPLES && !self.is_known(slot) {
            return;
        }
        self.tier.proposals.push((asked, slot, self.blocks.serial(slot)));
        self.feed_compilers();
    }

    /// Hands the hottest proposals to the compilers, a few at a time: what waits longer is known better.
    fn feed_compilers(&mut self) {
        while self.tier.pending.len() < IN_FLIGHT {
            let Some((asked, slot, serial)) = self.tier.proposals.pop() else { return };
            if self.blocks.waits(slot, serial) {
                self.submit(slot, self.tier.sampled && asked < SAMPLES);
            }
        }
    }

    /// Proposes the block in `slot` as the head of a region. `if_known`: only if another processor has it.
    fn submit(&mut self, slot: u32, if_known: bool) {
        let Some(key) = self.blocks.key(slot) else { return };
        let Some(formed) = self.form_region(slot, key) else { return };
        let share = self.shared.several() && !self.compiles_blocks();
        if if_known && !share {
            return;
        }
        let asked = share.then_some(Asked { head: key, or_larger: true, if_known });
        self.hand_over(slot, formed, asked);
    }

    /// Regions are of one block, from which nothing leads to others.
    fn compiles_blocks(&self) -> bool {
        self.lockstep.as_ref().is_some_and(|l| l.by_block())
            || tracing::enabled!(target: "nochain", tracing::Level::TRACE)
    }

    /// Hands a region to the compilers.
    fn hand_over(&mut self, head: u32, formed: Formed, asked: Option<Asked>) {
        let Formed { region, pages, slots, bases } = formed;
        let id = self.tier.next_job;
        self.tier.next_job += 1;
        self.blocks.set_requested(head, true);
        self.tier
            .pending
            .insert(id, Pending { slots, bases, pages: pages.clone(), if_known: asked.is_some_and(|a| a.if_known) });
        let Some(memory) = self.tier.memory.clone() else { return };
        if let Some(compiler) = &mut self.tier.sync {
            let placed = compile_one(compiler, &region, &pages, &memory);
            return self.install(Done { id, placed, reused: false });
        }
        let reply = self.tier.replies.0.clone();
        let job = Job { id, region, pages, asked, reply, memory, handle: self.handle() };
        if !self.tier.service.as_ref().is_some_and(|s| s.submit(job)) {
            // The queue is full (other processors'): it is proposed again when it has run as often once more.
            self.tier.pending.remove(&id);
            self.blocks.set_requested(head, false);
        }
    }

    /// Page of the block in `slot`, and whether all of it lies there.
    fn place_of(&self, slot: u32) -> (CodePage, bool) {
        let key = self.blocks.key(slot).unwrap_or_default();
        let linear = if key.is_relative() { CodePage::RELATIVE } else { key.linear() & !(PAGE_SIZE - 1) };
        let page = CodePage { linear, gpa: key.gpa & !(PAGE_SIZE - 1) };
        (page, self.blocks.within_page(slot))
    }

    /// Enters finished code in the cache.
    pub(super) fn install_finished(&mut self) {
        while let Ok(done) = self.tier.replies.1.try_recv() {
            self.install(done);
        }
        self.feed_compilers();
    }

    fn install(&mut self, done: Done) {
        let Some(pending) = self.tier.pending.remove(&done.id) else { return };
        let live = pending.slots.iter().all(|(s, serial)| self.blocks.serial(*s) == *serial && *serial != 0);
        self.make_room();
        let slots: Vec<u32> = pending.slots.iter().map(|(s, _)| *s).collect();
        let Some(head) = slots.first().copied() else { return };
        let gone = |part| !self.tier.memory.as_ref().is_some_and(|m| m.lock().holds(part));
        let again = !live
            || match &done.placed {
                Ok(placed) => gone(placed.part),
                Err(why) => *why != Unplaced::Refused,
            };
        if again && pending.slots.first().is_some_and(|(s, serial)| self.blocks.serial(*s) == *serial) {
            // Its guest code changed while it was compiled, or there was no room. It may be hot again soon.
            self.blocks.set_requested(head, false);
            if let Err(Unplaced::Larger(shape)) = &done.placed {
                return self.submit_larger(head, shape, pending.if_known);
            }
        }
        let Some(placed) = done.placed.ok().filter(|_| !again && self.blocks.lacks_better(head)) else { return };
        self.tell_placed(Maker::Cranelift, &placed, head);
        let index = self.tier.enter(placed, &slots, self.place_of(head));
        if let Some(Some(r)) = self.tier.regions.get_mut(index as usize) {
            (r.bases, r.pages) = (pending.bases, pending.pages);
        }
        self.tier.stats.compiled += 1;
        self.tier.stats.reused += u64::from(done.reused);
        self.put_over_baseline(head, index);
        self.blocks.set_code(head, index);
        for s in slots {
            self.blocks.add_region(s, index);
        }
    }

    /// Makes all that leads to the baseline code of a block lead to region `index`, which starts with it.
    fn put_over_baseline(&mut self, head: u32, index: u32) {
        let Some(below) = self.blocks.baseline(head) else { return };
        let (Some(memory), Some(from), Some(to)) =
            (self.tier.memory.clone(), self.tier.entry(below), self.tier.entry(index))
        else {
            return;
        };
        self.tier.move_links(below, index, &memory);
        let bytes = memory.lock().redirect(from, to);
        if let Some(Some(r)) = self.tier.regions.get_mut(below as usize) {
            r.under = Some(index);
        }
        if let Some(Some(r)) = self.tier.regions.get_mut(index as usize) {
            r.over = Some((below, bytes));
        }
    }

    /// Code made from `block` in place of the code of the block in `slot`: a compiler's mistake.
    #[cfg(test)]
    pub(super) fn replace_code(&mut self, slot: u32, block: crate::ir::Block) {
        let memory = self.tier.memory.clone().expect("a compiling tier");
        let compiler = self.tier.sync.as_mut().expect("a compiler at hand");
        let region = Region::on_a_page(vec![Arc::new(block)], false, 0);
        let placed = compile_one(compiler, &region, &[CodePage::NOWHERE], &memory).expect("code for the block");
        let index = self.tier.enter(placed, &[slot], (CodePage::NOWHERE, false));
        self.blocks.set_code(slot, index);
        self.blocks.add_region(slot, index);
    }

    /// Throws away all blocks and all code.
    #[cfg(any(test, feature = "testing"))]
    pub fn drop_all_code(&mut self) {
        for n in 0..self.tier.regions.len() as u32 {
            self.tier.kill(n);
        }
        self.tier.pending.clear();
        self.tier.proposals.clear();
        self.tier.open_link = None;
        self.blocks = super::cache::BlockCache::new();
        self.code_gone();
    }

    /// Throws away regions whose blocks were dropped.
    pub(super) fn drop_regions(&mut self, regions: Vec<u32>) {
        for index in regions {
            let slots = self.tier.kill(index);
            self.tier.stats.dropped += u64::from(!slots.is_empty());
            for slot in slots {
                self.blocks.region_gone(slot, index);
                if let Some(rip) = self.blocks.only_rip(slot) {
                    self.state.forget_jump(rip);
                }
            }
        }
    }

    /// Joins the way that was left through with the region about to be entered.
    pub(super) fn join_open_link(&mut self, region: u32) {
        let rip = self.state.rip;
        self.tier.join_open(region, rip);
    }
}
