//! Which host vector register holds which vector value within a block.

use super::asm::Reg;
use crate::ir::VVal;

/// No value, no register.
const NONE: u8 = 0xff;
/// Values of the IR.
const VALUES: usize = VVal::END as usize;
/// Host registers.
const REGISTERS: u8 = 16;

/// The registers. Guest registers are in the state as well; a temporary may be in its register only. Calls overwrite all.
pub struct VectorRegs {
    /// Value in each host register.
    holds: [u8; REGISTERS as usize],
    /// Register of each value.
    of: [u8; VALUES],
    /// Registers that the operation at hand uses.
    locked: u16,
    /// Where the search for a victim goes on.
    next: u8,
}

impl VectorRegs {
    pub fn new() -> Self {
        Self { holds: [NONE; REGISTERS as usize], of: [NONE; VALUES], locked: 0, next: 0 }
    }

    /// A new operation begins: no register is in use.
    pub fn unlock(&mut self) {
        self.locked = 0;
    }

    /// The register that holds value `n`, kept until the operation's end.
    pub fn find(&mut self, n: u16) -> Option<Reg> {
        let r = self.of[n as usize % VALUES];
        if r == NONE {
            return None;
        }
        self.locked |= 1 << r;
        Some(Reg(r))
    }

    /// A register for a new value, and the temporary to be stored from it first.
    pub fn take(&mut self) -> (Reg, Option<u16>) {
        let free = (0..REGISTERS).find(|r| self.holds[*r as usize] == NONE && self.locked >> r & 1 == 0);
        if let Some(r) = free {
            self.locked |= 1 << r;
            return (Reg(r), None);
        }
        loop {
            self.next = (self.next + 1) % REGISTERS;
            // An operation uses four registers at most.
            if self.locked >> self.next & 1 == 0 {
                let n = self.holds[self.next as usize] as u16;
                self.drop_reg(self.next);
                self.locked |= 1 << self.next;
                return (Reg(self.next), is_temporary(n).then_some(n));
            }
        }
    }

    /// `r` holds value `n` from now on.
    pub fn bind(&mut self, n: u16, r: Reg) {
        self.forget(n);
        self.drop_reg(r.0);
        self.holds[r.0 as usize] = n as u8;
        self.of[n as usize % VALUES] = r.0;
    }

    /// Value `n` is no longer in a register, or no longer needed.
    pub fn forget(&mut self, n: u16) {
        let r = self.of[n as usize % VALUES];
        if r != NONE {
            self.drop_reg(r);
        }
    }

    /// All temporaries are over.
    pub fn forget_temporaries(&mut self) {
        for r in 0..REGISTERS {
            if is_temporary(self.holds[r as usize].into()) {
                self.drop_reg(r);
            }
        }
    }

    /// Some register holds a value.
    pub fn any(&self) -> bool {
        self.holds.iter().any(|n| *n != NONE)
    }

    /// A call overwrites the registers: temporaries to be stored before it.
    pub fn called(&mut self) -> impl Iterator<Item = (u16, Reg)> + use<> {
        let holds = std::mem::replace(&mut self.holds, [NONE; REGISTERS as usize]);
        self.of = [NONE; VALUES];
        (0..REGISTERS).map(move |r| (holds[r as usize].into(), Reg(r))).filter(|(n, _)| is_temporary(*n))
    }

    fn drop_reg(&mut self, r: u8) {
        let n = self.holds[r as usize];
        if n != NONE {
            self.of[n as usize % VALUES] = NONE;
        }
        self.holds[r as usize] = NONE;
    }
}

/// Not a guest register, which would be in the state.
fn is_temporary(n: u16) -> bool {
    n != u16::from(NONE) && n >= VVal::TEMP0
}
