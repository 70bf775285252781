//! Registers (chapter 4 of the manual), and what reading and writing them does.

use super::wires::Wires;
use super::{Chip, Script, State};

/// Offsets.
pub(super) mod reg {
    pub const SCNTL1: u8 = 0x01;
    pub const SCNTL2: u8 = 0x02;
    pub const SCNTL3: u8 = 0x03;
    pub const SCID: u8 = 0x04;
    pub const SXFER: u8 = 0x05;
    pub const SDID: u8 = 0x06;
    pub const GPREG: u8 = 0x07;
    pub const SFBR: u8 = 0x08;
    pub const SSID: u8 = 0x0a;
    pub const SBCL: u8 = 0x0b;
    pub const DSTAT: u8 = 0x0c;
    pub const SSTAT0: u8 = 0x0d;
    pub const SSTAT1: u8 = 0x0e;
    pub const SSTAT2: u8 = 0x0f;
    pub const DSA: u8 = 0x10;
    pub const ISTAT0: u8 = 0x14;
    pub const ISTAT1: u8 = 0x15;
    pub const CTEST2: u8 = 0x1a;
    pub const CTEST3: u8 = 0x1b;
    pub const TEMP: u8 = 0x1c;
    pub const DBC: u8 = 0x24;
    pub const DCMD: u8 = 0x27;
    pub const DNAD: u8 = 0x28;
    pub const DSP: u8 = 0x2c;
    pub const DSPS: u8 = 0x30;
    pub const DMODE: u8 = 0x38;
    pub const DIEN: u8 = 0x39;
    pub const DCNTL: u8 = 0x3b;
    pub const SIEN0: u8 = 0x40;
    pub const SIEN1: u8 = 0x41;
    pub const SIST0: u8 = 0x42;
    pub const SIST1: u8 = 0x43;
    pub const MACNTL: u8 = 0x46;
    pub const GPCNTL: u8 = 0x47;
    pub const STIME1: u8 = 0x49;
    pub const RESPID: u8 = 0x4a;
    pub const STEST0: u8 = 0x4c;
    pub const SIDL: u8 = 0x50;
    pub const STEST4: u8 = 0x52;
    pub const CCNTL0: u8 = 0x56;
    pub const CCNTL1: u8 = 0x57;
    pub const SBDL: u8 = 0x58;
    pub const SCRATCH_C: u8 = 0x60;
    pub const MMRS: u8 = 0xa0;
    pub const PMJAD1: u8 = 0xc0;
    pub const PMJAD2: u8 = 0xc4;
    pub const RBC: u8 = 0xc8;
    pub const UA: u8 = 0xcc;
    pub const ESA: u8 = 0xd0;
    pub const IA: u8 = 0xd4;
    pub const SBC: u8 = 0xd8;
    pub const CSBC: u8 = 0xdc;
}

/// Bits of registers.
pub(super) mod bit {
    /// SCNTL1.
    pub const BUS_RESET: u8 = 1 << 3;
    pub const CONNECTED: u8 = 1 << 4;
    /// SCNTL2: a byte is left over, of data in and out; written ones clear them.
    pub const RESIDUES: u8 = 1 << 0 | 1 << 3;
    /// ISTAT0.
    pub const DIP: u8 = 1 << 0;
    pub const SIP: u8 = 1 << 1;
    pub const ON_THE_FLY: u8 = 1 << 2;
    pub const CON: u8 = 1 << 3;
    pub const SEMAPHORE: u8 = 1 << 4;
    pub const SIGNAL: u8 = 1 << 5;
    pub const RESET: u8 = 1 << 6;
    pub const ABORT: u8 = 1 << 7;
    /// DSTAT.
    pub const ILLEGAL: u8 = 1 << 0;
    pub const SCRIPT_INTERRUPT: u8 = 1 << 2;
    pub const SINGLE_STEP: u8 = 1 << 3;
    pub const ABORTED: u8 = 1 << 4;
    pub const FIFO_EMPTY: u8 = 1 << 7;
    /// CTEST2: the signal was there; the registers are in memory and in I/O space; no request.
    pub const SIGNALLED: u8 = 1 << 6;
    pub const BOTH_SPACES: u8 = 3 << 4;
    pub const ACKNOWLEDGED: u8 = 1 << 0;
    /// DMODE.
    pub const MANUAL_START: u8 = 1 << 0;
    /// DCNTL.
    pub const START: u8 = 1 << 2;
    pub const STEP: u8 = 1 << 4;
    pub const FLUSH: u8 = 1 << 6;
    /// SIST0.
    pub const RST: u8 = 1 << 1;
    pub const UNEXPECTED: u8 = 1 << 2;
    pub const MISMATCH: u8 = 1 << 7;
    /// What does not stop a script unless it interrupts: selected, reselected, function complete.
    pub const HARMLESS_0: u8 = 7 << 4;
    /// SIST1: general purpose timer, handshake timer, nobody answered.
    pub const HANDSHAKE: u8 = 1 << 0;
    pub const GENERAL: u8 = 1 << 1;
    pub const NOBODY: u8 = 1 << 2;
    /// CCNTL0: scripts handle other phases than they expect, by direction, those without data too.
    pub const JUMP_ON_MISMATCH: u8 = 1 << 7;
    pub const JUMP_BY_DIRECTION: u8 = 1 << 6;
    pub const JUMP_WITHOUT_DATA: u8 = 1 << 5;
    /// CCNTL1: direct moves have upper address bits; table entries have; and those are the bits themselves.
    pub const DIRECT_64: u8 = 1 << 0;
    pub const TABLE_64: u8 = 1 << 1;
    pub const TABLE_40: u8 = 1 << 2;
}

/// What is to be done after a write, without the lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Effect {
    /// The script runs now.
    pub run: bool,
    /// The general purpose timer starts with this setting; 0 stops it.
    pub timer: Option<u8>,
}

/// The registers after a reset.
pub(super) fn power_on() -> Vec<u8> {
    let mut regs = vec![0; 256];
    let values =
        [(0x00, 0xc0), (reg::SCID, 7), (reg::MACNTL, 0x50), (reg::GPCNTL, 0x0f), (reg::RESPID, 0x80), (0x3a, 0xff)];
    for (at, value) in values {
        regs[usize::from(at)] = value;
    }
    regs
}

impl State {
    /// A register as it is stored.
    pub(super) fn byte(&self, at: u8) -> u8 {
        self.regs.get(usize::from(at)).copied().unwrap_or(0)
    }

    pub(super) fn set_byte(&mut self, at: u8, value: u8) {
        if let Some(byte) = self.regs.get_mut(usize::from(at)) {
            *byte = value;
        }
    }

    /// Four registers as they are stored.
    pub(super) fn word(&self, at: u8) -> u32 {
        u32::from_le_bytes([0, 1, 2, 3].map(|i| self.byte(at.wrapping_add(i))))
    }

    pub(super) fn set_word(&mut self, at: u8, value: u32) {
        (0..4).zip(value.to_le_bytes()).for_each(|(i, byte)| self.set_byte(at.wrapping_add(i), byte));
    }

    /// INTA#.
    pub(super) fn interrupt(&self) -> bool {
        let raised = |status, enable| self.byte(status) & self.byte(enable) != 0;
        self.byte(reg::ISTAT0) & bit::ON_THE_FLY != 0
            || raised(reg::DSTAT, reg::DIEN)
            || raised(reg::SIST0, reg::SIEN0)
            || raised(reg::SIST1, reg::SIEN1)
    }

    /// A DMA interrupt, which stops the script.
    pub(super) fn dma_interrupt(&mut self, cause: u8) {
        self.set_byte(reg::DSTAT, self.byte(reg::DSTAT) | cause);
        self.script = Script::Stopped;
    }

    /// A SCSI interrupt, which stops the script unless it is a mere notice that is masked (2.2.16.3).
    pub(super) fn scsi_interrupt(&mut self, cause_0: u8, cause_1: u8) {
        self.set_byte(reg::SIST0, self.byte(reg::SIST0) | cause_0);
        self.set_byte(reg::SIST1, self.byte(reg::SIST1) | cause_1);
        let stops_0 = self.byte(reg::SIEN0) | !bit::HARMLESS_0;
        let stops_1 = self.byte(reg::SIEN1) | !(bit::GENERAL | bit::HANDSHAKE);
        if cause_0 & stops_0 | cause_1 & stops_1 != 0 {
            self.script = Script::Stopped;
        }
    }

    fn istat0(&self) -> u8 {
        let mut value = self.byte(reg::ISTAT0) & !(bit::DIP | bit::SIP | bit::CON);
        value |= if self.byte(reg::DSTAT) != 0 { bit::DIP } else { 0 };
        value |= if self.byte(reg::SIST0) | self.byte(reg::SIST1) != 0 { bit::SIP } else { 0 };
        value | if self.wires.connected() { bit::CON } else { 0 }
    }

    /// Reads and clears.
    fn take(&mut self, at: u8) -> u8 {
        let value = self.byte(at);
        self.set_byte(at, 0);
        value
    }

    /// A register read by the host or by a script.
    pub(super) fn read(&mut self, at: u8) -> u8 {
        let bus_reset = self.byte(reg::SCNTL1) & bit::BUS_RESET != 0;
        match at {
            reg::SCNTL1 => self.byte(at) & !bit::CONNECTED | if self.wires.connected() { bit::CONNECTED } else { 0 },
            // Nothing pulls the pins low.
            reg::GPREG => 0x7f,
            reg::SBCL => lines(&self.wires),
            reg::DSTAT => self.take(at) | bit::FIFO_EMPTY,
            reg::SSTAT0 => u8::from(bus_reset) << 1,
            reg::SSTAT1 => self.wires.phase().map_or(self.byte(at), |(phase, _)| phase as u8) & 7,
            // The last transfer is over.
            reg::SSTAT2 => 0x02,
            reg::ISTAT0 => self.istat0(),
            reg::ISTAT1 => u8::from(self.script != Script::Stopped),
            reg::CTEST2 => {
                let signalled = self.byte(reg::ISTAT0) & bit::SIGNAL != 0;
                self.set_byte(reg::ISTAT0, self.byte(reg::ISTAT0) & !bit::SIGNAL);
                bit::BOTH_SPACES | bit::ACKNOWLEDGED | if signalled { bit::SIGNALLED } else { 0 }
            }
            reg::CTEST3 => self.byte(at) & 0x0b,
            reg::DCNTL => self.byte(at) & !(bit::START | bit::FLUSH),
            reg::SIST0 | reg::SIST1 => self.take(at),
            reg::STEST0 => self.byte(reg::SCID) << 4,
            // A differential bus of the LVD kind, and the clock's multiplier is steady.
            reg::STEST4 => 0xe0,
            reg::SBDL | 0x59 => 0,
            _ => self.byte(at),
        }
    }

    /// A register written by the host or by a script.
    pub(super) fn write(&mut self, at: u8, value: u8, chip: &Chip) -> Effect {
        let mut effect = Effect::default();
        match at {
            reg::SSID
            | reg::SBCL
            | reg::DSTAT
            | reg::SSTAT0
            | reg::SSTAT1
            | reg::SSTAT2
            | reg::ISTAT1
            | reg::CTEST2
            | reg::SIST0
            | reg::SIST1
            | reg::STEST0
            | reg::SIDL
            | 0x51
            | reg::STEST4
            | reg::SBDL
            | 0x59
            | reg::CSBC..=0xdf => {}
            reg::SCNTL1 => {
                let begins = value & !self.byte(at) & bit::BUS_RESET != 0;
                self.set_byte(at, value & !bit::CONNECTED);
                if begins {
                    self.wires.reset();
                    (self.reselected, self.unanswered) = (false, false);
                    self.scsi_interrupt(bit::RST, 0);
                }
            }
            // No byte is ever left over.
            reg::SCNTL2 => self.set_byte(at, value & !bit::RESIDUES),
            reg::ISTAT0 => effect.run = self.write_istat(value, chip),
            reg::DSP..=0x2f => {
                self.set_byte(at, value);
                effect.run = at == 0x2f && self.byte(reg::DMODE) & bit::MANUAL_START == 0 && self.start();
            }
            reg::DCNTL => {
                self.set_byte(at, value & !(bit::START | bit::FLUSH));
                effect.run = value & bit::START != 0 && self.start();
            }
            reg::STIME1 => {
                self.set_byte(at, value);
                effect.timer = Some(value & 15);
            }
            _ => self.set_byte(at, value),
        }
        effect
    }

    /// The script begins, or goes on, at DSP.
    fn start(&mut self) -> bool {
        self.script = Script::Running;
        true
    }

    /// Whether the script runs now.
    fn write_istat(&mut self, value: u8, chip: &Chip) -> bool {
        if value & bit::RESET != 0 {
            self.reset_chip(chip);
            return false;
        }
        let kept = bit::SIGNAL | bit::SEMAPHORE;
        let on_the_fly = self.byte(reg::ISTAT0) & bit::ON_THE_FLY & !value;
        self.set_byte(reg::ISTAT0, on_the_fly | value & kept);
        if value & bit::ABORT != 0 {
            self.dma_interrupt(bit::ABORTED);
        }
        // Who waits to be reselected looks again.
        value & bit::SIGNAL != 0 && matches!(self.script, Script::Waiting(_))
    }
}

/// SBCL: the bus's control lines.
fn lines(wires: &Wires) -> u8 {
    let Some((phase, ready)) = wires.phase() else { return 0 };
    let line = |on, bit: u8| if on { 1 << bit } else { 0 };
    line(ready && !wires.held(), 7) | line(wires.held(), 6) | 1 << 5 | line(wires.traffic.attention, 3) | phase as u8
}
