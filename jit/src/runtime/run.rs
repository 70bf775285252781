//! The loop that runs a vCPU: requests, then a block, then what the block led to.

use super::exec::Leave;
use crate::cpu::Cpu;
use crate::fault::Fault;
use crate::mmu::ram::PAGE_SIZE;
use crate::state::{flag, mode, shadow};
use crate::vcpu::{Exit, request};
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Cpu {
    /// Runs until there is something for the program to do.
    pub fn run_loop(&mut self) -> Exit {
        self.load_mxcsr();
        self.shared.crowd.enter();
        self.requests.running.store(true, Ordering::SeqCst);
        self.sampler.as_ref().inspect(|s| s.runs());
        let exit = loop {
            // A request that was withdrawn leaves attention behind, for which generated code would leave for ever.
            let attention = self.requests.attention.load(Ordering::Relaxed) != 0;
            let wanted = attention || self.requested() != 0 || self.state.halted || self.shutdown.is_some();
            if wanted && let Some(exit) = self.service() {
                break exit;
            }
            if let Some(counter) = &self.shared.counter {
                counter.looked();
                if counter.reached() {
                    break Exit::Counted;
                }
            }
            if self.debugger.on() {
                match self.run_debugged() {
                    Some(exit) => break exit,
                    None => continue,
                }
            }
            if let Err(fault) = self.run_once() {
                self.raise(fault);
            }
        };
        self.shared.crowd.leave();
        self.requests.running.store(false, Ordering::SeqCst);
        self.leave_mxcsr();
        exit
    }

    /// Delivers an exception, or waits as if halted before the instruction; a triple fault leaves the reason in `shutdown`.
    #[cold]
    pub(super) fn raise(&mut self, fault: Fault) {
        if fault == Fault::FROZEN {
            self.state.halted = true;
            return;
        }
        if let Err(reason) = self.deliver_fault(fault) {
            self.shutdown = Some(reason.to_string());
        }
    }

    /// Runs one region or block, or one instruction where the mode asks for it.
    pub(super) fn run_once(&mut self) -> Result<(), Fault> {
        if self.state.mode & (mode::TF | mode::STEP) != 0 {
            return self.run_step();
        }
        if self.state.shadow != 0 {
            return self.run_single();
        }
        let slot = self.find_block(false)?;
        if self.shared.counter.as_ref().is_some_and(|c| !c.admits(self.blocks.insns(slot))) {
            return self.run_single();
        }
        if let Some(region) = self.blocks.code(slot).or_else(|| self.count_run(slot)) {
            return if self.lockstep.is_some() {
                self.run_in_lockstep(slot, region)
            } else {
                self.run_code(slot, region)
            };
        }
        self.run_slot(slot)
    }

    /// Interprets one instruction, then what single-stepping and breakpoints ask for.
    fn run_step(&mut self) -> Result<(), Fault> {
        self.check_code_breakpoints()?;
        let trap_armed = self.state.rflags & flag::TF != 0;
        self.run_single()?;
        self.post_step(trap_armed && self.state.shadow & shadow::MOV_SS == 0)
    }

    /// Interprets one instruction, stepped or not.
    pub(super) fn run_alone(&mut self) -> Result<(), Fault> {
        if self.state.mode & (mode::TF | mode::STEP) != 0 { self.run_step() } else { self.run_single() }
    }

    /// Interprets one instruction.
    fn run_single(&mut self) -> Result<(), Fault> {
        let slot = self.find_block(true)?;
        // A shadow covers one instruction; that one may cast a new one.
        self.state.shadow = 0;
        self.run_slot(slot)
    }

    fn run_slot(&mut self, slot: u32) -> Result<(), Fault> {
        let Some(block) = self.take_block(slot) else { return Ok(()) };
        self.log_entry(Arc::as_ptr(&block).addr() as u64);
        let result = self.run_block(&block);
        self.blocks.put_back(slot, block);
        result
    }

    /// Runs generated code of the block in `slot`.
    pub(super) fn run_code(&mut self, slot: u32, region: u32) -> Result<(), Fault> {
        let Some(entry) = self.tier.entry(region) else { return Ok(()) };
        self.log_entry(entry);
        // Checked code comes back after each block: nothing leads from one to the next. So it is with `-d nochain`.
        if self.lockstep.is_none() && !tracing::enabled!(target: "nochain", tracing::Level::TRACE) {
            self.join_open_link(region);
            let s = &mut self.state;
            if s.mode & mode::FLAT != 0 {
                let page = self.blocks.within_page(slot).then(|| self.blocks.key(slot)).flatten();
                s.note_jump(entry, page.map(|key| key.gpa & !(PAGE_SIZE - 1)));
            }
        }
        self.state.code_stale = 0;
        self.blocks.code_runs();
        self.tier.stats.entries += 1;
        match self.enter(entry) {
            Leave::Lookup => {
                self.tier.stats.lookups += 1;
                Ok(())
            }
            Leave::Request => {
                self.tier.stats.requests += 1;
                Ok(())
            }
            Leave::Fault => {
                self.tier.stats.faults += 1;
                Err(self.pending_fault.take().unwrap_or(Fault::UD))
            }
            Leave::Link => {
                self.tier.stats.links += 1;
                self.tier.left_through(self.state.exit_link);
                Ok(())
            }
            Leave::Page => {
                self.tier.stats.pages += 1;
                self.look_up_page();
                Ok(())
            }
            Leave::Hot => {
                self.tier.stats.heated += 1;
                let slot = self.find_block(false)?;
                self.is_hot(slot);
                Ok(())
            }
            Leave::Entry => {
                self.tier.stats.requests += 1;
                if self.requests.sample.swap(false, Ordering::SeqCst) {
                    self.requests.sampled.store(true, Ordering::Relaxed);
                    self.tier.stats.heated += 1;
                    let slot = self.find_block(false)?;
                    self.propose(slot);
                    self.learn();
                }
                Ok(())
            }
            Leave::Interpret => {
                self.tier.stats.interpreted += 1;
                if std::mem::take(&mut self.crossings.just_now) {
                    self.note_crossing();
                }
                // A limit that was lowered meanwhile comes first.
                if self.is_cut() { Ok(()) } else { self.run_single() }
            }
        }
    }

    /// Acts on requests and on HLT; `Some`: leave the loop. What is delivered may let the next request in at once: a
    /// trap gate leaves IF set, and an interrupt comes before the handler's first instruction.
    #[cold]
    fn service(&mut self) -> Option<Exit> {
        loop {
            self.requests.attention.store(0, Ordering::SeqCst);
            // What no baseline code noticed is no sample of it.
            self.requests.sample.store(false, Ordering::SeqCst);
            if let Some(report) = self.lockstep.as_mut().and_then(|l| l.take_report()) {
                return Some(Exit::Diverged(report));
            }
            if let Some(reason) = &self.shutdown {
                return Some(Exit::TripleFault(reason.clone()));
            }
            let pending = self.requested();
            if pending & request::EXIT != 0 {
                self.handle().clear(request::EXIT);
                return Some(Exit::Requested);
            }
            if pending & request::ENGINE != 0 {
                self.handle().clear(request::ENGINE);
                self.install_finished();
                self.read_mail();
            }
            if pending & request::INIT != 0 {
                self.handle().clear(request::INIT);
                self.reset();
                return Some(Exit::WaitForStartUp);
            }
            if !self.deliver_next(pending) {
                if self.state.halted && self.wait_is_over() {
                    self.state.halted = false;
                }
                if self.state.halted {
                    return Some(Exit::Halted);
                }
                self.mwait = None;
                return None;
            }
        }
    }

    /// Delivers the NMI or interrupt that is due, if one is.
    fn deliver_next(&mut self, pending: u32) -> bool {
        // A step of the debugger's goes to the next instruction, not into a handler.
        if self.debugger.stepping() && !self.state.halted {
            return false;
        }
        if pending & request::NMI != 0 && self.nmi_possible() {
            self.handle().clear(request::NMI);
            self.state.halted = false;
            self.accept(|cpu| cpu.deliver_nmi());
            return true;
        }
        if pending & request::INTERRUPT != 0 && self.interruptible() {
            // Cleared before the question, not after: what the controller raises meanwhile must not be lost. There may be
            // more behind an interrupt, of which the controller tells nothing new: ask again after it.
            self.handle().clear(request::INTERRUPT);
            if let Some(vector) = self.board.acknowledge_interrupt(self.index) {
                self.handle().raise(request::INTERRUPT);
                tracing::trace!(target: "int", "Servicing hardware INT={:#04x}", vector);
                self.state.halted = false;
                self.accept(|cpu| cpu.deliver_interrupt(vector));
                return true;
            }
        }
        false
    }

    fn accept<E: ToString>(&mut self, deliver: impl FnOnce(&mut Self) -> Result<(), E>) {
        if let Err(reason) = deliver(self) {
            self.shutdown = Some(reason.to_string());
        }
    }
}
