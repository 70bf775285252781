//! The x87 registers: stack view, status and tags, FXSAVE and FSAVE images.

use crate::state::X87;

/// Bits of the status word (SDM 1, 8.1.3).
pub mod sw {
    /// Invalid operation.
    pub const IE: u16 = 1;
    /// Denormal operand.
    pub const DE: u16 = 2;
    /// Division by zero.
    pub const ZE: u16 = 4;
    /// Overflow.
    pub const OE: u16 = 8;
    /// Underflow.
    pub const UE: u16 = 16;
    /// Precision.
    pub const PE: u16 = 32;
    /// The six exceptions.
    pub const EXCEPTIONS: u16 = 0x3f;
    /// Stack fault.
    pub const SF: u16 = 0x40;
    /// Summary: an unmasked exception is pending; and busy, its twin.
    pub const ES_B: u16 = 0x8080;
    /// C0.
    pub const C0: u16 = 0x100;
    /// C1.
    pub const C1: u16 = 0x200;
    /// C2.
    pub const C2: u16 = 0x400;
    /// C3.
    pub const C3: u16 = 0x4000;
    /// All condition codes.
    pub const CONDITIONS: u16 = C0 | C1 | C2 | C3;
    /// TOP.
    pub const TOP: u16 = 0x3800;
}

/// Control word after FINIT.
pub const FCW_INIT: u16 = 0x37f;
/// The default NaN: what masked invalid operations give.
pub const INDEFINITE: u128 = 0xffff_c000_0000_0000_0000;
/// Value bits of a register.
const VALUE: u128 = (1 << 80) - 1;

impl X87 {
    /// Bits of the control word that can be set.
    pub const FCW_DEFINED: u16 = 0x1f3f;
    /// The bit of the control word that always reads as 1.
    pub const FCW_FIXED: u16 = 0x40;

    /// Number of the register on top of the stack.
    pub fn top(&self) -> usize {
        (self.fsw >> 11) as usize & 7
    }

    /// Sets TOP.
    pub fn set_top(&mut self, top: usize) {
        self.fsw = self.fsw & !sw::TOP | (top as u16 & 7) << 11;
    }

    fn physical(&self, i: usize) -> usize {
        (self.top() + i) & 7
    }

    /// ST(i) holds nothing.
    pub fn is_empty(&self, i: usize) -> bool {
        self.tags >> self.physical(i) & 1 == 0
    }

    /// ST(i).
    pub fn st(&self, i: usize) -> u128 {
        self.regs[self.physical(i)] & VALUE
    }

    /// Sets ST(i), which then holds something.
    pub fn set_st(&mut self, i: usize, v: u128) {
        let n = self.physical(i);
        self.regs[n] = v & VALUE;
        self.tags |= 1 << n;
    }

    /// Marks ST(i) empty.
    pub fn free(&mut self, i: usize) {
        self.tags &= !(1 << self.physical(i));
    }

    /// Drops ST(0).
    pub fn pop(&mut self) {
        self.free(0);
        self.set_top(self.top() + 1);
    }

    /// Pushes a value; the register it takes is free.
    pub fn push(&mut self, v: u128) {
        self.set_top(self.top() + 7);
        self.set_st(0, v);
    }

    /// Sets the control word.
    pub fn set_fcw(&mut self, v: u16) {
        self.fcw = v & Self::FCW_DEFINED | Self::FCW_FIXED;
        self.update_summary();
    }

    /// ES and B follow from flags and masks.
    pub fn update_summary(&mut self) {
        self.fsw &= !sw::ES_B;
        if self.fsw & !self.fcw & sw::EXCEPTIONS != 0 {
            self.fsw |= sw::ES_B;
        }
    }

    /// FNINIT; the registers keep their contents, empty.
    pub fn finit(&mut self) {
        self.fcw = FCW_INIT;
        self.fsw = 0;
        self.tags = 0;
        self.fop = 0;
        self.fip = 0;
        self.fdp = 0;
        self.fcs = 0;
        self.fds = 0;
    }

    /// The initial state of XRSTOR: FNINIT's with registers 0.
    pub fn initialise(&mut self) {
        self.finit();
        self.regs = [0; 8];
    }

    /// Is in the initial state.
    pub fn is_initial(&self) -> bool {
        let Self { regs, fcw, fsw, tags, fop, fip, fdp, fcs, fds } = self;
        *fcw == FCW_INIT
            && (*fsw, *tags, *fop, *fcs, *fds) == (0, 0, 0, 0, 0)
            && (*fip, *fdp) == (0, 0)
            && regs.iter().all(|r| *r & VALUE == 0)
    }

    /// The x87 part of an FXSAVE image: bytes 0 to 23 and 32 to 159 (SDM 1, 10.5.1).
    pub fn image(&self, wide: bool) -> ([u8; 24], [u8; 128]) {
        let mut head = [0; 24];
        head[..2].copy_from_slice(&self.fcw.to_le_bytes());
        head[2..4].copy_from_slice(&self.fsw.to_le_bytes());
        head[4] = self.tags;
        head[6..8].copy_from_slice(&self.fop.to_le_bytes());
        if wide {
            head[8..16].copy_from_slice(&self.fip.to_le_bytes());
            head[16..24].copy_from_slice(&self.fdp.to_le_bytes());
        } else {
            head[8..12].copy_from_slice(&(self.fip as u32).to_le_bytes());
            head[12..14].copy_from_slice(&self.fcs.to_le_bytes());
            head[16..20].copy_from_slice(&(self.fdp as u32).to_le_bytes());
            head[20..22].copy_from_slice(&self.fds.to_le_bytes());
        }
        let mut registers = [0; 128];
        for i in 0..8 {
            registers[16 * i..16 * i + 16].copy_from_slice(&self.st(i).to_le_bytes());
        }
        (head, registers)
    }

    /// Loads the x87 part of an FXSAVE image.
    pub fn load_image(&mut self, image: &[u8], wide: bool) {
        let field = |at: usize, bytes: usize| -> u64 {
            image.get(at..at + bytes).map_or(0, |b| b.iter().rev().fold(0, |v, x| v << 8 | *x as u64))
        };
        self.fsw = field(2, 2) as u16;
        self.tags = field(4, 1) as u8;
        self.fop = field(6, 2) as u16 & 0x7ff;
        let (fip, fdp) = if wide { (field(8, 8), field(16, 8)) } else { (field(8, 4), field(16, 4)) };
        // Silicon keeps as many bits of FIP as linear addresses can have (measured).
        (self.fip, self.fdp) = (((fip << 7) as i64 >> 7) as u64, fdp);
        // FCS and FDS read as 0 on processors that deprecate them (CPUID.7:EBX bit 13).
        (self.fcs, self.fds) = (0, 0);
        for i in 0..8 {
            let n = self.physical(i);
            self.regs[n] = field(32 + 16 * i, 8) as u128 | (field(40 + 16 * i, 2) as u128) << 64;
        }
        self.set_fcw(field(0, 2) as u16);
    }

    /// The full tag word, two bits a register (SDM 1, 8.1.7): 0 valid, 1 zero, 2 special, 3 empty.
    pub fn tag_word(&self) -> u16 {
        (0..8).rev().fold(0, |w, n| w << 2 | self.tag(n))
    }

    fn tag(&self, n: usize) -> u16 {
        if self.tags >> n & 1 == 0 {
            return 3;
        }
        let v = self.regs[n];
        let (exponent, mantissa) = ((v >> 64) as u16 & 0x7fff, v as u64);
        match exponent {
            0 if mantissa == 0 => 1,
            0 | 0x7fff => 2,
            _ if mantissa >> 63 == 0 => 2,
            _ => 0,
        }
    }

    /// Takes a full tag word over: only empty or not counts, the rest follows from the contents.
    pub fn set_tag_word(&mut self, w: u16) {
        self.tags = (0..8).filter(|n| w >> (2 * n) & 3 != 3).fold(0, |t, n| t | 1 << n);
    }
}
