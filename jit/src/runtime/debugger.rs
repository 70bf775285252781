//! A debugger's breakpoints, watchpoints and single steps. Code without a breakpoint on its way stays compiled: a block with
//! one inside ends before it, one that starts with one is only interpreted, and control comes here before it. Single steps
//! run instructions alone in the interpreter. So do accesses to pages with a watchpoint, and no others: such pages are kept
//! out of the TLB, so that generated code leaves at them, before the instruction; that one is then run alone.

use crate::cpu::Cpu;
use crate::fault::Fault;
use crate::mmu::ram::PAGE_SIZE;
use crate::mmu::tlb;
use crate::state::mode;
use crate::vcpu::Exit;
use rustc_hash::FxHashSet;

/// Most pages that one watchpoint may reach over.
const MOST_PAGES: u64 = 16;

/// Accesses that a watchpoint stops at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchKind {
    /// Stores.
    Write,
    /// Loads.
    Read,
    /// Both.
    Access,
}

/// Linear addresses to watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watchpoint {
    /// First address.
    pub address: u64,
    /// Bytes.
    pub len: u64,
    /// Which accesses count.
    pub kind: WatchKind,
}

/// Why [`Exit::Debug`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebugStop {
    /// An instruction was executed, as was asked for.
    Step,
    /// The next instruction has a breakpoint; its linear address.
    Breakpoint(u64),
    /// The last instruction accessed what is watched.
    Watchpoint(Watchpoint),
}

/// What a debugger wants of a processor.
#[derive(Default)]
pub struct Debugger {
    /// There is anything to look at.
    on: bool,
    step: bool,
    breakpoints: FxHashSet<u64>,
    watchpoints: Vec<Watchpoint>,
    /// Linear addresses of the pages that they are on.
    pages: Vec<u64>,
    /// Compiled code is checked: it is not run where something is watched.
    checked: bool,
    /// The current instruction runs alone for the sake of watchpoints.
    alone_now: bool,
    /// A watched page is in the TLB.
    entered: bool,
    /// The breakpoint that it stopped at: the instruction is not stopped at again before it has run.
    passed: Option<u64>,
    /// What the current instruction accessed.
    hit: Option<Watchpoint>,
    stop: Option<DebugStop>,
}

impl Debugger {
    /// There is anything to look at before each block.
    #[inline]
    pub fn on(&self) -> bool {
        self.on
    }

    /// Instructions are run alone.
    pub fn alone(&self) -> bool {
        self.step || self.checked && !self.watchpoints.is_empty()
    }

    /// There are watchpoints.
    #[inline]
    pub fn watching(&self) -> bool {
        !self.pages.is_empty()
    }

    /// The current instruction runs alone for the sake of watchpoints.
    #[inline]
    pub fn runs_alone(&self) -> bool {
        self.alone_now
    }

    /// Some of the bytes lie on a page with a watchpoint.
    #[inline]
    pub fn watches_page(&self, linear: u64, bytes: u64) -> bool {
        let last = linear.wrapping_add(bytes.max(1) - 1);
        self.pages.iter().any(|page| linear | (PAGE_SIZE - 1) >= *page && last & !(PAGE_SIZE - 1) <= *page)
    }

    /// The page of `linear` was entered in the TLB.
    #[inline]
    pub fn note_entry(&mut self, linear: u64) {
        self.entered |= self.watching() && self.watches_page(linear, 1);
    }

    /// A watched page is in the TLB, where generated code would find it.
    #[inline]
    pub fn entered(&self) -> bool {
        self.entered
    }

    /// One instruction is to be executed, without interrupts.
    pub fn stepping(&self) -> bool {
        self.step
    }

    /// There are breakpoints.
    pub fn breaks(&self) -> bool {
        self.on && !self.breakpoints.is_empty()
    }

    /// There is a breakpoint at this linear address.
    pub fn breaks_at(&self, linear: u64) -> bool {
        self.on && self.breakpoints.contains(&linear)
    }

    /// Bytes from `linear` to the first breakpoint behind it.
    pub fn room(&self, linear: u64, most: u64) -> u64 {
        if !self.on {
            return most;
        }
        let distances = self.breakpoints.iter().map(|b| b.wrapping_sub(linear)).filter(|d| *d != 0);
        distances.min().map_or(most, |d| d.min(most))
    }

    fn settle(&mut self) {
        self.on = self.alone() || self.watching() || !self.breakpoints.is_empty();
    }
}

impl Cpu {
    /// Sets all breakpoints: linear addresses.
    pub fn set_breakpoints(&mut self, breakpoints: &[u64]) {
        let new: FxHashSet<u64> = breakpoints.iter().copied().collect();
        let added: Vec<u64> = new.difference(&self.debugger.breakpoints).copied().collect();
        let before = self.debugger.breaks();
        self.debugger.breakpoints = new;
        self.debugger.settle();
        if self.debugger.breaks() != before {
            // Other code is looked for from now on.
            self.code_gone();
        }
        if !added.is_empty() {
            for gpa in self.blocks.places_over(&added) {
                self.invalidate_code(gpa, 1);
            }
        }
    }

    /// Sets all watchpoints.
    pub fn set_watchpoints(&mut self, watchpoints: &[Watchpoint]) {
        let mut pages = Vec::new();
        for w in watchpoints {
            let last = w.address.saturating_add(w.len.max(1) - 1) & !(PAGE_SIZE - 1);
            let first = w.address & !(PAGE_SIZE - 1);
            // What is larger is looked at as far as that.
            pages.extend((0..MOST_PAGES).map(|n| first.saturating_add(n * PAGE_SIZE)).take_while(|page| *page <= last));
        }
        pages.sort_unstable();
        pages.dedup();
        self.debugger.checked = self.lockstep.is_some();
        self.debugger.watchpoints = watchpoints.to_vec();
        self.debugger.pages = pages;
        self.debugger.settle();
        self.update_mode();
        self.state.tlb.flush_all();
    }

    /// Has generated code miss the pages that are watched.
    #[cold]
    pub(crate) fn drop_watched(&mut self) {
        self.debugger.entered = false;
        for page in &self.debugger.pages {
            (0..tlb::MMU_INDEXES).for_each(|index| self.state.tlb.drop_entry(index, *page));
        }
    }

    /// The current instruction runs alone: nothing is done ahead of it, and of a repeated one a round at a time.
    pub(crate) fn runs_alone(&self) -> bool {
        self.state.mode & (mode::TF | mode::STEP) != 0 || self.debugger.runs_alone()
    }

    /// Runs the instruction that accesses a watched page.
    fn run_watched(&mut self) -> Result<(), Fault> {
        self.debugger.alone_now = true;
        let result = self.run_alone();
        self.debugger.alone_now = false;
        result
    }

    /// Has the next run end after one instruction, without taking interrupts before it; or not.
    pub fn set_single_step(&mut self, on: bool) {
        self.debugger.step = on;
        self.debugger.settle();
        self.update_mode();
    }

    /// Why the last [`Exit::Debug`] came.
    pub fn take_debug_stop(&mut self) -> Option<DebugStop> {
        self.debugger.stop.take()
    }

    /// The last stop is not told to anybody: a breakpoint stops again.
    pub fn forget_debug_stop(&mut self) {
        (self.debugger.stop, self.debugger.passed) = (None, None);
    }

    /// Notes a data access under [`crate::state::mode::STEP`].
    pub(crate) fn note_watched(&mut self, linear: u64, bytes: u64, write: bool) {
        let last = linear.wrapping_add(bytes.max(1) - 1);
        let hit = self.debugger.watchpoints.iter().find(|w| {
            let wanted = match w.kind {
                WatchKind::Write => write,
                WatchKind::Read => !write,
                WatchKind::Access => true,
            };
            wanted && linear <= w.address.wrapping_add(w.len.max(1) - 1) && w.address <= last
        });
        self.debugger.hit = hit.copied().or(self.debugger.hit);
    }

    /// Runs one block or instruction under a debugger's eyes; `Some`: it is to stop here.
    #[cold]
    pub(super) fn run_debugged(&mut self) -> Option<Exit> {
        let at = self.state.linear_rip();
        if self.debugger.breaks_at(at) && self.debugger.passed.take() != Some(at) {
            self.debugger.passed = Some(at);
            return self.stop_debugged(DebugStop::Breakpoint(at));
        }
        self.debugger.passed = None;
        if self.debugger.entered {
            self.drop_watched();
        }
        let mut result = self.run_once();
        if result == Err(Fault::WATCHED) {
            result = self.run_watched();
        }
        if let Err(fault) = result {
            self.raise(fault);
        }
        if let Some(hit) = self.debugger.hit.take() {
            return self.stop_debugged(DebugStop::Watchpoint(hit));
        }
        if self.debugger.step {
            return self.stop_debugged(DebugStop::Step);
        }
        None
    }

    fn stop_debugged(&mut self, why: DebugStop) -> Option<Exit> {
        self.debugger.stop = Some(why);
        Some(Exit::Debug)
    }
}
