//! The loop that runs a vCPU: requests, then a block, then what the block led to.

use crate::cpu::Cpu;
use crate::fault::Fault;
use crate::state::{flag, mode, shadow};
use crate::vcpu::{Exit, request};

impl Cpu {
    /// Runs until there is something for the program to do.
    pub fn run_loop(&mut self) -> Exit {
        self.load_mxcsr();
        let exit = loop {
            if self.requested() != 0 || self.state.halted || self.shutdown.is_some() {
                if let Some(exit) = self.service() {
                    break exit;
                }
            }
            if let Err(fault) = self.run_once() {
                self.raise(fault);
            }
        };
        self.leave_mxcsr();
        exit
    }

    /// Delivers an exception; a triple fault leaves the reason in `shutdown`.
    #[cold]
    fn raise(&mut self, fault: Fault) {
        tracing::trace!(
            target: "int",
            "v={:02x} e={:04x} cpl={} rip={:#x} cr2={:#x}",
            fault.vector, fault.error.unwrap_or(0), self.state.cpl(), self.state.rip, fault.address
        );
        if let Err(reason) = self.deliver_fault(fault) {
            self.shutdown = Some(reason.to_string());
        }
    }

    /// Runs one block, or one instruction where the mode asks for it.
    fn run_once(&mut self) -> Result<(), Fault> {
        let shadow_before = self.state.shadow;
        let stepping = self.state.mode & (mode::TF | mode::STEP) != 0;
        let single = stepping || shadow_before != 0;
        if stepping {
            self.check_code_breakpoints()?;
        }
        let slot = self.find_block(single)?;
        let Some(block) = self.blocks.take(slot) else { return Ok(()) };
        // The shadow covers one instruction; that one may cast a new one.
        self.state.shadow = 0;
        let trap_armed = self.state.rflags & flag::TF != 0;
        let result = self.run_block(&block);
        self.blocks.put_back(slot, block);
        result?;
        if stepping {
            self.post_step(trap_armed && self.state.shadow & shadow::MOV_SS == 0)?;
        }
        Ok(())
    }

    /// Acts on requests and on HLT; `Some`: leave the loop.
    #[cold]
    fn service(&mut self) -> Option<Exit> {
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
            for (gpa, len) in self.mailbox.take_written() {
                self.invalidate_code(gpa, len);
            }
        }
        if pending & request::INIT != 0 {
            self.handle().clear(request::INIT);
            self.reset();
            return Some(Exit::WaitForStartUp);
        }
        if pending & request::NMI != 0 && !self.state.nmi_blocked && self.state.shadow & shadow::MOV_SS == 0 {
            self.handle().clear(request::NMI);
            self.state.halted = false;
            self.accept(|cpu| cpu.deliver_nmi());
            return None;
        }
        if pending & request::INTERRUPT != 0 && self.state.rflags & flag::IF != 0 && self.state.shadow == 0 {
            match self.board.acknowledge_interrupt(self.index) {
                Some(vector) => {
                    tracing::trace!(target: "int", "interrupt {:02x} at {:#x}", vector, self.state.rip);
                    self.state.halted = false;
                    self.accept(|cpu| cpu.deliver_interrupt(vector));
                    return None;
                }
                // The request went away meanwhile; the controller sets it anew when it has one.
                None => self.handle().clear(request::INTERRUPT),
            }
        }
        self.state.halted.then_some(Exit::Halted)
    }

    fn accept<E: ToString>(&mut self, deliver: impl FnOnce(&mut Self) -> Result<(), E>) {
        if let Err(reason) = deliver(self) {
            self.shutdown = Some(reason.to_string());
        }
    }
}
