//! Exceptions and interrupts as events: which one is delivered, double faults, shutdown (SDM 3A 6.15).

use super::interrupt::{Event, Origin};
use crate::cpu::Cpu;
use crate::fault::{Fault, vector};

/// The processor gave up: a fault while a double fault was delivered (SDM 3A 6.15, "Interrupt 8").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shutdown {
    /// Reason, RIP and registers, several lines.
    pub text: String,
}

impl std::fmt::Display for Shutdown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// Classes of SDM 3A table 6-5.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    Page,
    Double,
}

fn class(v: u8) -> Class {
    match v {
        vector::DE | vector::TS | vector::NP | vector::SS | vector::GP => Class::Contributory,
        vector::PF => Class::Page,
        vector::DF => Class::Double,
        _ => Class::Benign,
    }
}

/// What to deliver when `second` came up while `first` was being delivered; `None` is shutdown.
fn combine(first: Fault, second: Fault) -> Option<Fault> {
    let double = Fault::with_code(vector::DF, 0);
    match (class(first.vector), class(second.vector)) {
        (Class::Double, Class::Contributory | Class::Page) => None,
        (Class::Contributory, Class::Contributory) => Some(double),
        (Class::Page, Class::Contributory | Class::Page) => Some(double),
        _ => Some(second),
    }
}

impl Cpu {
    /// Delivers exception `f` of the instruction at `state.rip`. Faults push that RIP with RF set.
    pub fn deliver_fault(&mut self, f: Fault) -> Result<(), Shutdown> {
        let mut fault = f;
        self.drop_traps();
        self.log_exception(None, fault.vector);
        loop {
            self.state.halted = false;
            self.note_address(&fault);
            // SDM 3A 6.8.3: RF is set in the image of every fault but the one an instruction breakpoint raises.
            let set_rf = fault.vector != vector::DB;
            let event = Event {
                vector: fault.vector,
                error: fault.error,
                origin: Origin::Exception,
                rip: self.state.rip,
                set_rf,
            };
            let Err(second) = self.deliver_event(&event) else { return Ok(()) };
            // CR2 tells of the last page fault even where it became a double fault.
            self.note_address(&second);
            self.log_exception((class(fault.vector) != Class::Benign).then_some(fault.vector), second.vector);
            match combine(fault, second) {
                Some(next) => fault = next,
                None => return Err(self.shut_down(second)),
            }
        }
    }

    fn note_address(&mut self, f: &Fault) {
        if f.vector == vector::PF {
            self.state.cr2 = f.address;
        }
    }

    /// Delivers external interrupt `vector`. The caller checked that interrupts are enabled and not held off.
    pub fn deliver_interrupt(&mut self, vector: u8) -> Result<(), Shutdown> {
        self.deliver_external(vector)
    }

    /// Delivers a non-maskable interrupt; further ones are blocked until IRET (SDM 3A 6.7.1).
    pub fn deliver_nmi(&mut self) -> Result<(), Shutdown> {
        self.state.nmi_blocked = true;
        self.deliver_external(vector::NMI)
    }

    fn deliver_external(&mut self, vector: u8) -> Result<(), Shutdown> {
        self.state.halted = false;
        let event = Event { vector, error: None, origin: Origin::External, rip: self.state.rip, set_rf: false };
        match self.deliver_event(&event) {
            Ok(()) => Ok(()),
            Err(f) => self.deliver_fault(f),
        }
    }

    fn shut_down(&self, last: Fault) -> Shutdown {
        tracing::trace!(target: "cpu_reset", "Triple fault");
        let reason = format!(
            "triple fault: exception {:#04x}{} while a double fault was delivered, at RIP {:#x}",
            last.vector,
            last.error.map_or(String::new(), |e| format!(" (error code {e:#x}, address {:#x})", last.address)),
            self.state.rip
        );
        let text = format!("{reason}\n{}", self.dump());
        Shutdown { text }
    }
}
