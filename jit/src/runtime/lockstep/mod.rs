//! Lockstep (`-accel jit,check=on`): generated code is held against the interpreter while a guest runs.
//!
//! Compiled code returns to the dispatcher at the end of each block: blocks are compiled alone ([`Check::Blocks`]). With
//! `check=regions` it returns at the end of each region, compiled as without checks ([`Check::Regions`]). Links and the jump
//! cache are not used. Of each piece of code the first [`CHECK_ALL`] executions are checked, then one in [`CHECK_SAMPLE`]:
//!
//! 1. the interpreter runs the block, or blocks until it leaves the region; its state and the pages it wrote are kept;
//! 2. state and memory are put back as they were, and the generated code runs. What it leaves to the interpreter (an
//!    instruction that faults or goes where no TLB entry leads) is finished by the interpreter;
//! 3. registers, flags, faults and all memory that either of them wrote must be the same. They are tried again if not, for
//!    a device may have written memory in between; what differs each time is reported, and the processor stops.
//!
//! What cannot be repeated counts once, from the interpreter: use of the board (devices, APIC, time), random numbers,
//! changes of address translation or of translated code, stores to very many pages, very long loops. [`WatchedBoard`] and
//! [`Cpu::mappings_changed`] tell.
//!
//! A device that writes by DMA to the very bytes that a block writes while it is checked may lose its write.

mod memory;
mod snapshot;
#[cfg(test)]
mod tests;
mod watched;

use super::cache::next_page;
use super::exec::Leave;
use crate::board::Board;
use crate::cpu::Cpu;
use crate::fault::Fault;
use crate::ir::{Block, Op};
use crate::lift;
use crate::mmu::ram::PAGE_SIZE;
use memory::{MemoryDifference, Writes};
use snapshot::Snapshot;
use std::collections::HashSet;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use watched::{Used, WatchedBoard};

/// So many executions of each block's code are all checked.
const CHECK_ALL: u32 = 64;
/// After those, one in so many is.
const CHECK_SAMPLE: u32 = 1024;
/// How often a block that differs is run again before it is reported.
const REPEATS: u32 = 3;
/// Most blocks of a region that are run in one check.
const MOST_BLOCKS: u32 = 4096;
/// How often generated code may leave at its start for another thread's request and be tried again.
const MOST_REQUESTS: u32 = 8;
/// Most memory differences shown in a report.
const MOST_SHOWN: usize = 64;

/// Who runs the block under check.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Phase {
    /// No block is under check.
    #[default]
    Off,
    Interpreter,
    Compiled,
}

/// What was compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckStats {
    /// Blocks whose code was compared at least once.
    pub blocks: u64,
    /// Executions compared.
    pub compared: u64,
    /// Of these: those that ended in a fault.
    pub faults: u64,
    /// Of these: those of which the interpreter had to finish an instruction.
    pub finished: u64,
    /// Executions not compared because they cannot be repeated.
    pub once: u64,
    /// Executions that were the same when repeated only.
    pub repeated: u64,
    /// Differences found.
    pub differences: u64,
}

/// The checker of one vCPU.
pub struct Lockstep {
    /// Regions are compiled as without checks, not block by block.
    regions: bool,
    phase: Phase,
    writes: Writes,
    /// The board, as seen from this vCPU, was used.
    used: Used,
    /// Something happened that cannot be repeated.
    once: bool,
    checked: HashSet<u64>,
    stats: CheckStats,
    report: Option<String>,
}

/// How one run of a block ended.
struct Outcome {
    result: Result<(), Fault>,
    state: Box<Snapshot>,
    /// Board or mappings were touched.
    once: bool,
    /// The blocks that the interpreter ran.
    ran: Vec<usize>,
}

/// A block of a [`Subject`].
struct Part {
    slot: u32,
    block: Arc<Block>,
    /// What its RIPs count from.
    base: u64,
}

impl Part {
    fn rip(&self) -> u64 {
        self.base.wrapping_add(self.block.rip)
    }
}

/// Where code goes on to another of its blocks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stays {
    /// From each block to the next one, if that is where it leads: a trace.
    InOrder,
    /// Wherever a jump leads.
    Anywhere,
}

/// The block, trace or region under check.
struct Subject {
    /// Its blocks, the head first.
    blocks: Vec<Part>,
    /// Which jumps between the blocks stay inside.
    stays: Stays,
    /// Host address of its code.
    entry: u64,
    /// Before it runs.
    start: Box<Snapshot>,
}

impl Subject {
    /// Where to go on in the subject after block `n`, if RIP is in it.
    fn after(&self, n: usize, rip: u64) -> Option<usize> {
        let last = self.blocks.get(n)?.block.insts.last()?;
        if !matches!(last.op, Op::Jmp | Op::Br) {
            return None;
        }
        match self.stays {
            Stays::InOrder => self.blocks.get(n + 1).filter(|part| part.rip() == rip).map(|_| n + 1),
            Stays::Anywhere => self.blocks.iter().position(|part| part.rip() == rip),
        }
    }

    /// The block and operation at which the guest instruction at `rip` starts.
    fn instruction(&self, rip: u64) -> Option<(usize, usize)> {
        // The first instruction of a block may have no operations.
        if let Some(n) = self.blocks.iter().position(|part| part.rip() == rip) {
            return Some((n, 0));
        }
        self.blocks.iter().enumerate().find_map(|(n, part)| {
            let b = &part.block;
            let at = b.insts.iter().position(|i| b.wrap(part.rip().wrapping_add(i.off as u64)) == rip)?;
            Some((n, at))
        })
    }
}

impl Lockstep {
    /// A checker of regions or of blocks alone, and the board that its vCPU must use.
    pub fn watch(board: Arc<dyn Board>, regions: bool) -> (Self, Arc<dyn Board>) {
        let used = Used::default();
        let board = Arc::new(WatchedBoard::new(board, used.clone()));
        let this = Self {
            regions,
            phase: Phase::Off,
            writes: Writes::default(),
            used,
            once: false,
            checked: HashSet::new(),
            stats: CheckStats::default(),
            report: None,
        };
        (this, board)
    }

    /// What was compared so far.
    pub fn stats(&self) -> CheckStats {
        CheckStats { blocks: self.checked.len() as u64, ..self.stats }
    }

    /// Code is compiled block by block.
    pub fn by_block(&self) -> bool {
        !self.regions
    }

    /// The difference found, once.
    pub fn take_report(&mut self) -> Option<String> {
        self.report.take()
    }

    fn begin(&mut self, phase: Phase) {
        self.phase = phase;
        self.once = false;
        self.used.take();
    }

    /// The run is over; whether it cannot be repeated.
    fn end(&mut self) -> bool {
        self.phase = Phase::Off;
        self.used.take() | self.once
    }
}

impl Cpu {
    /// Something happens that cannot be undone and repeated.
    pub(crate) fn note_once(&mut self) {
        if let Some(l) = &mut self.lockstep {
            l.once = true;
        }
    }

    /// Stores to the page of `linear`, RAM at `gpa`, are about to go through; with `code` on it, each of them comes here.
    pub(crate) fn note_store_page(&mut self, index: usize, linear: u64, gpa: u64, code: bool) {
        let Some(l) = &mut self.lockstep else { return };
        if !code {
            l.writes.opened(&mut self.state.tlb, index, linear);
        }
        if l.phase != Phase::Off && !l.writes.keep(&self.shared.ram, gpa) && l.phase == Phase::Interpreter {
            l.once = true;
        }
    }

    /// A TLB entry was made.
    pub(crate) fn note_fill(&mut self, index: usize, linear: u64) {
        if let Some(l) = &mut self.lockstep
            && l.phase != Phase::Off
        {
            l.writes.filled(index, linear);
        }
    }

    /// Runs the block in `slot`, which has code, and checks the code if it is its turn.
    pub(super) fn run_in_lockstep(&mut self, slot: u32, region: u32) -> Result<(), Fault> {
        let before = self.blocks.count_code_run(slot);
        if before == CHECK_ALL && self.blocks.baseline(slot) == Some(region) {
            self.propose(slot);
            // To make room for better code this may be thrown away.
            return Ok(());
        }
        if before >= CHECK_ALL && !before.is_multiple_of(CHECK_SAMPLE) {
            return self.run_code(slot, region);
        }
        let (slots, bases) = (self.tier.slots(region).to_vec(), self.tier.bases(region).to_vec());
        let part = |(slot, base): (u32, u64)| {
            let block = self.ir(slot)?;
            let base = block.base(&self.state).wrapping_add(base);
            Some(Part { slot, block, base })
        };
        let blocks: Vec<_> =
            slots.into_iter().zip(bases.into_iter().chain(std::iter::repeat(0))).filter_map(part).collect();
        let Some(entry) = self.tier.entry(region) else { return Ok(()) };
        self.tier.stats.entries += 1;
        // Baseline code leaves even for its own start, and so does what is compiled block by block.
        let whole = self.blocks.baseline(slot) != Some(region) && self.lockstep.as_ref().is_some_and(|l| l.regions);
        let stays = if whole { Stays::Anywhere } else { Stays::InOrder };
        let start = Snapshot::take(self);
        self.check(&Subject { blocks, stays, entry, start })
    }

    fn check(&mut self, subject: &Subject) -> Result<(), Fault> {
        let (mut tries, mut requests) = (0, 0);
        loop {
            let expected = self.run_reference(subject);
            if expected.once {
                self.count(|s| s.once += 1);
                return expected.result;
            }
            self.rewind(subject, Writes::undo_interpreter);
            let found = self.run_compiled(subject, requests == MOST_REQUESTS);
            let Some(found) = found else {
                requests += 1;
                self.rewind(subject, Writes::undo_compiled);
                continue;
            };
            let memory = match &self.lockstep {
                Some(l) => l.writes.differences(&self.shared.ram),
                None => Vec::new(),
            };
            if memory.is_empty() && expected.result == found.result && expected.state == found.state && !found.once {
                self.same(subject, &expected, tries);
                return found.result;
            }
            if tries == REPEATS {
                let text = self.report(subject, &expected, &found, &memory);
                self.diverge(text);
                return Ok(());
            }
            tries += 1;
            self.rewind(subject, Writes::undo_compiled);
        }
    }

    /// Counts an execution that came out the same after `tries` that did not.
    fn same(&mut self, subject: &Subject, expected: &Outcome, tries: u32) {
        for n in &expected.ran {
            let serial = subject.blocks.get(*n).map_or(0, |part| self.blocks.serial(part.slot));
            if let Some(l) = &mut self.lockstep {
                l.checked.insert(serial);
            }
        }
        self.count(|s| {
            s.compared += 1;
            s.faults += expected.result.is_err() as u64;
            s.repeated += (tries > 0) as u64;
        });
    }

    fn count(&mut self, f: impl FnOnce(&mut CheckStats)) {
        if let Some(l) = &mut self.lockstep {
            f(&mut l.stats);
        }
    }

    /// Puts state and memory back as they were before the block.
    fn rewind(&mut self, subject: &Subject, undo: fn(&mut Writes, &crate::mmu::ram::Ram, &mut crate::mmu::tlb::Tlb)) {
        subject.start.restore(self);
        if let Some(l) = &mut self.lockstep {
            undo(&mut l.writes, &self.shared.ram, &mut self.state.tlb);
        }
    }

    /// The interpreter's run.
    fn run_reference(&mut self, subject: &Subject) -> Outcome {
        if let Some(l) = &mut self.lockstep {
            l.writes.begin(&mut self.state.tlb);
            l.begin(Phase::Interpreter);
        }
        let mut ran = Vec::new();
        // As in `run_compiled`: CLI and POPF look at it.
        let wanted = self.requests.attention.swap(0, Ordering::SeqCst);
        let result = self.interpret(subject, (0, 0), &mut ran);
        if wanted != 0 {
            self.requests.attention.store(wanted, Ordering::SeqCst);
        }
        self.outcome(result, ran)
    }

    /// The run of the generated code, finished by the interpreter where it left too early: for an instruction, or (STI asks
    /// for that) at a jump back. `None`: it left at its start for another thread; with `finish_all` that counts too.
    fn run_compiled(&mut self, subject: &Subject, finish_all: bool) -> Option<Outcome> {
        if let Some(l) = &mut self.lockstep {
            l.begin(Phase::Compiled);
        }
        self.state.code_stale = 0;
        let rip = self.state.rip;
        self.state.code_base = rip & !(PAGE_SIZE - 1);
        // Generated code leaves at once while a request is pending; the run loop sees it after the block.
        let wanted = self.requests.attention.swap(0, Ordering::SeqCst);
        let result = match self.enter(subject.entry) {
            Leave::Lookup | Leave::Link => Some(Ok(())),
            Leave::Fault => Some(Err(self.pending_fault.take().unwrap_or(Fault::UD))),
            Leave::Request if self.state.rip == rip && !finish_all => None,
            Leave::Interpret | Leave::Request | Leave::Hot | Leave::Entry => Some(self.finish(subject)),
            Leave::Page => {
                self.look_up_page();
                Some(self.finish(subject))
            }
        };
        if wanted != 0 {
            self.requests.attention.store(wanted, Ordering::SeqCst);
        }
        Some(self.outcome(result?, Vec::new()))
    }

    fn outcome(&mut self, result: Result<(), Fault>, ran: Vec<usize>) -> Outcome {
        let once = self.lockstep.as_mut().is_some_and(|l| l.end());
        Outcome { result, state: Snapshot::take(self), once, ran }
    }

    /// Interprets what the generated code left, from RIP to the end of the block or region. From elsewhere than the start of
    /// one of its instructions nothing runs, which shows as a difference.
    fn finish(&mut self, subject: &Subject) -> Result<(), Fault> {
        self.count(|s| s.finished += 1);
        match subject.instruction(self.state.rip) {
            Some(from) => self.interpret(subject, from, &mut Vec::new()),
            None => Ok(()),
        }
    }

    /// Interprets from an operation of a block to the end of the subject; notes the blocks that ran.
    fn interpret(&mut self, subject: &Subject, from: (usize, usize), ran: &mut Vec<usize>) -> Result<(), Fault> {
        let (mut n, mut at) = from;
        for _ in 0..MOST_BLOCKS {
            let Some(part) = subject.blocks.get(n).filter(|part| self.is_there(part)) else { return Ok(()) };
            let slot = part.slot;
            let Some(block) = self.take_block(slot) else { return Ok(()) };
            self.state.code_base = self.state.rip & !(PAGE_SIZE - 1);
            if ran.len() < subject.blocks.len() {
                ran.push(n);
            }
            let result = self.run_from(&block, at);
            self.blocks.put_back(slot, block);
            result?;
            let next = subject.after(n, self.state.rip);
            match next.filter(|_| self.lockstep.as_ref().is_some_and(|l| !l.once)) {
                Some(next) => (n, at) = (next, 0),
                None => return Ok(()),
            }
        }
        self.note_once();
        Ok(())
    }

    /// The block that RIP is in is still this one: its pages are mapped as they were.
    fn is_there(&mut self, part: &Part) -> bool {
        let linear = self.state.linear_rip() & !(PAGE_SIZE - 1);
        let page = self.blocks.key(part.slot).map(|key| key.gpa & !(PAGE_SIZE - 1));
        let second = self.blocks.second_page(part.slot);
        page.is_some_and(|page| self.fetch_address(linear) == Ok(page))
            && second.is_none_or(|second| self.fetch_address(next_page(linear)) == Ok(second))
    }

    /// Stops the processor for good: it is in shutdown until reset.
    fn diverge(&mut self, text: String) {
        if let Some(l) = &mut self.lockstep {
            l.stats.differences += 1;
            l.report = Some(text);
        }
        self.shutdown = Some("compiled code differs from the interpreter".into());
    }

    #[cold]
    fn report(&self, subject: &Subject, expected: &Outcome, found: &Outcome, memory: &[MemoryDifference]) -> String {
        let mut out = String::from("compiled code differs from the interpreter\n");
        // Writing to a string cannot fail.
        for part in &subject.blocks {
            let (block, address) = (&part.block, part.rip());
            let gpa = self.blocks.key(part.slot).map_or(0, |k| k.gpa);
            let _ = writeln!(out, "guest code at {address:#x} (guest-physical {gpa:#x}):");
            let mut bytes = vec![0; block.len as usize];
            self.shared.ram.read(gpa, &mut bytes);
            let _ = writeln!(out, "{}", lift::disassemble(block, &bytes, address));
            let _ = writeln!(out, "{}", crate::ir::text::print(block));
        }
        let _ = writeln!(out, "blocks run: {:?}", expected.ran);
        let _ = writeln!(out, "before: {}", subject.start.registers());
        let _ = writeln!(out, "interpreter | compiled code:");
        if expected.result != found.result {
            let _ = writeln!(out, "  result: {:x?} | {:x?}", expected.result, found.result);
        }
        if found.once {
            let _ = writeln!(out, "  devices, time or mappings: not used | used");
        }
        for (name, a, b) in expected.state.differences(&found.state) {
            let _ = writeln!(out, "  {name}: {a} | {b}");
        }
        for d in memory.iter().take(MOST_SHOWN) {
            let (gpa, e, f, b) = (d.gpa, d.expected, d.found, d.before);
            let _ = writeln!(out, "  memory at {gpa:#x}: {e:02x} | {f:02x} (before: {b:02x})");
        }
        if memory.len() > MOST_SHOWN {
            let _ = writeln!(out, "  and {} more bytes of memory", memory.len() - MOST_SHOWN);
        }
        out
    }
}
