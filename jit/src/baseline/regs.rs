//! Which host register holds which integer value within a block.

use super::asm::Reg;
use super::share::OPEN;
use crate::state::VALS;

/// No value, no register.
const NONE: u8 = 0xff;
/// Registers that values are kept in: first those that calls preserve.
const POOL: [u8; 10] = [3, 12, 13, 14, 15, 8, 9, 10, 11, 6];
/// Those of them that calls overwrite.
const VOLATILE: u16 = 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 6;

/// Values beside the guest's: host bases of shared checks, which are kept as long as there is room.
pub const BASES: usize = VALS;

/// The registers. Guest registers are in the state as well where somebody may look; a temporary may be in its register only.
pub struct Regs {
    /// Value in each host register.
    holds: [u8; 16],
    /// Register of each value.
    of: [u8; VALS + OPEN],
    /// Registers whose value is not in the state.
    dirty: u16,
    /// Registers that the operation at hand uses.
    locked: u16,
    /// Where the search for a victim goes on.
    next: usize,
}

impl Regs {
    pub fn new() -> Self {
        Self { holds: [NONE; 16], of: [NONE; VALS + OPEN], dirty: 0, locked: 0, next: 0 }
    }

    /// A new operation begins: no register is in use.
    pub fn unlock(&mut self) {
        self.locked = 0;
    }

    /// The register that holds value `n`, kept until the operation's end.
    pub fn find(&mut self, n: usize) -> Option<Reg> {
        let r = self.of[n];
        if r == NONE {
            return None;
        }
        self.locked |= 1 << r;
        Some(Reg(r))
    }

    /// A register for a new value, and the value to be stored from it first.
    pub fn take(&mut self) -> (Reg, Option<usize>) {
        if let Some(r) = POOL.iter().find(|r| self.holds[**r as usize] == NONE && self.locked >> **r & 1 == 0) {
            self.locked |= 1 << r;
            return (Reg(*r), None);
        }
        loop {
            self.next = (self.next + 1) % POOL.len();
            let r = POOL[self.next];
            // An operation uses four registers at most.
            if self.locked >> r & 1 == 0 {
                let n = self.holds[r as usize] as usize;
                let spill = (self.dirty >> r & 1 != 0).then_some(n);
                self.drop_reg(r);
                self.locked |= 1 << r;
                return (Reg(r), spill);
            }
        }
    }

    /// `r` holds value `n` from now on.
    pub fn bind(&mut self, n: usize, r: Reg, dirty: bool) {
        self.forget(n);
        self.drop_reg(r.0);
        self.holds[r.0 as usize] = n as u8;
        self.of[n] = r.0;
        if dirty {
            self.dirty |= 1 << r.0;
        }
    }

    /// Value `n` is no longer in a register, or no longer needed.
    pub fn forget(&mut self, n: usize) {
        let r = self.of[n];
        if r != NONE {
            self.drop_reg(r);
        }
    }

    /// All temporaries are over.
    pub fn forget_temporaries(&mut self) {
        for r in POOL {
            let n = self.holds[r as usize];
            if n != NONE && (16..BASES).contains(&n.into()) {
                self.drop_reg(r);
            }
        }
    }

    fn drop_reg(&mut self, r: u8) {
        let n = self.holds[r as usize];
        if n != NONE {
            self.of[n as usize] = NONE;
        }
        self.holds[r as usize] = NONE;
        self.dirty &= !(1 << r);
    }

    /// Takes note that all dirty values were stored, and returns them.
    pub fn clean(&mut self) -> impl Iterator<Item = (usize, Reg)> + use<> {
        let dirty = std::mem::take(&mut self.dirty);
        let holds = self.holds;
        (0..16u8).filter(move |r| dirty >> r & 1 != 0).map(move |r| (holds[r as usize] as usize, Reg(r)))
    }

    /// A call overwrites its registers.
    pub fn called(&mut self) {
        for r in POOL {
            if VOLATILE >> r & 1 != 0 {
                self.drop_reg(r);
            }
        }
    }
}
