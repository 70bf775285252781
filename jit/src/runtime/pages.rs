//! Regions over several pages. Where a region goes on to a page that it is not sure of, it looks whether translations are
//! those under which that page was the expected one ([`PageCheck`]). If they are not, it leaves, and the page is looked up.

use super::place::CodeSpace;
use crate::cpu::Cpu;
use std::mem::offset_of;

/// Times that a region may meet another page than the one it was made from.
const STRAYED: u32 = 16;

/// What a placed region knows of a page, in code memory: generated code compares the first two with the state.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PageCheck {
    /// [`crate::state::CpuState::jump_check`] under which the page was as expected.
    pub check: u64,
    /// In relative code, the [`crate::state::CpuState::code_base`] for which it was.
    pub base: u64,
    /// Guest-physical address of the page that the region was made from.
    pub gpa: u64,
    /// Linear address of the page. In relative code an offset from the head's page, with bit 0 set.
    pub at: u64,
}

/// Bytes of it.
pub const PAGE_CHECK: usize = size_of::<PageCheck>();

impl PageCheck {
    /// Mark in [`PageCheck::at`] of relative code.
    const RELATIVE: u64 = 1;

    /// That of a page that has not been looked up. Nothing has the check and the base that it has.
    pub fn new(at: u64, gpa: u64, relative: bool) -> Self {
        Self { check: u64::MAX, base: u64::MAX, gpa, at: at | if relative { Self::RELATIVE } else { 0 } }
    }

    /// Linear address of the page for the region that runs at `base`.
    fn linear(&self, base: u64) -> u64 {
        match self.at & Self::RELATIVE {
            0 => self.at,
            _ => base.wrapping_add(self.at & !Self::RELATIVE),
        }
    }

    /// As it lies in memory.
    pub fn bytes(&self) -> [u8; PAGE_CHECK] {
        let words = [self.check, self.base, self.gpa, self.at].map(u64::to_le_bytes);
        std::array::from_fn(|n| words[n / 8][n % 8])
    }

    fn of_bytes(bytes: [u8; PAGE_CHECK]) -> Self {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| bytes[at + n]));
        Self {
            check: word(offset_of!(Self, check)),
            base: word(offset_of!(Self, base)),
            gpa: word(offset_of!(Self, gpa)),
            at: word(offset_of!(Self, at)),
        }
    }
}

impl CodeSpace {
    /// What is known of a page at host address `at`.
    fn page_check(&self, at: u64) -> PageCheck {
        PageCheck::of_bytes(self.bytes_at(at))
    }
}

impl Cpu {
    /// A region left because it goes on to a page that may be another one by now. If it is not, it does not leave there
    /// again until translations change.
    pub(super) fn look_up_page(&mut self) {
        let (at, base) = (self.state.exit_page, self.state.code_base);
        let Some(memory) = self.tier.memory() else { return };
        let mut known = memory.lock().page_check(at);
        // A fault comes when the instruction there is looked for.
        let Ok(gpa) = self.fetch_address(known.linear(base)) else { return };
        if gpa == known.gpa {
            (known.check, known.base) = (self.state.jump_check, base);
            return memory.lock().put_bytes_at(at, &known.bytes());
        }
        let Some(region) = self.tier.strayed(at, STRAYED) else { return };
        if let Some(head) = self.tier.slots(region).first().copied() {
            self.blocks.keep_to_page(head);
        }
        self.drop_regions(vec![region]);
    }
}
