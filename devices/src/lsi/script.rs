//! The SCRIPTS processor (chapter 5 of the manual): instructions of two or three words from memory, from the chip's own
//! RAM too.

use super::registers::{Effect, bit, reg};
use super::wires::Phase;
use super::{Chip, Move, Script, State};
use crate::guest_error;
use crate::services::Dma;

/// Most bytes of a message or command that are looked at; the rest is thrown away.
const LONGEST_MESSAGE: u32 = 256;
/// Bytes that a memory move moves at a time, and that one instruction's worth of time is enough for.
const PIECE: u32 = 4096;

/// What an instruction comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    /// The next one follows.
    Next,
    /// It waits for something on the bus.
    Wait,
    /// The script has stopped.
    Stop,
}

/// A signed number of 24 bits.
fn signed_24(value: u32) -> u32 {
    ((value << 8) as i32 >> 8) as u32
}

/// A phase by its number on the lines.
fn phase_of(word: u32) -> u8 {
    (word >> 24 & 7) as u8
}

/// A run of the processor, with the chip's lock held.
pub(super) struct Run<'a> {
    pub state: &'a mut State,
    pub dma: &'a dyn Dma,
    pub chip: &'a Chip,
    /// Where the chip's registers and RAM are in memory.
    pub registers_at: Option<u64>,
    pub ram_at: Option<u64>,
    /// What scripts did that is done later.
    pub effect: Effect,
    /// Instructions still allowed; long ones count more.
    pub budget: u32,
}

impl Run<'_> {
    /// Runs until the script stops or waits, or the budget is used up.
    pub fn run(&mut self) {
        while self.budget > 0 {
            self.budget -= 1;
            let flow = match self.state.script {
                Script::Stopped => return,
                Script::Running => self.instruction(self.state.word(reg::DSP)),
                Script::Waiting(at) => {
                    self.state.script = Script::Running;
                    self.instruction(at)
                }
                Script::Moving(step) => {
                    self.state.script = Script::Running;
                    self.moving(step)
                }
            };
            if flow == Flow::Wait || flow == Flow::Stop {
                return;
            }
            if self.state.byte(reg::DCNTL) & bit::STEP != 0 && self.state.script == Script::Running {
                self.state.dma_interrupt(bit::SINGLE_STEP);
            }
        }
    }

    /// Where an access by the chip itself ends: its RAM, its registers, or memory.
    fn own(&self, window: Option<u64>, len: u64, address: u64) -> Option<u64> {
        window.and_then(|base| address.checked_sub(base)).filter(|at| *at < len)
    }

    fn load(&mut self, address: u64, buf: &mut [u8]) {
        if let Some(at) = self.own(self.ram_at, self.state.ram.len() as u64, address) {
            buf.fill(0xff);
            buf.iter_mut().zip(self.state.ram.iter().skip(at as usize)).for_each(|(to, from)| *to = *from);
        } else if let Some(at) = self.own(self.registers_at, self.chip.memory_len(), address) {
            (0u64..).zip(buf).for_each(|(i, to)| *to = self.state.read(at.wrapping_add(i) as u8));
        } else {
            self.dma.read(address, buf);
        }
    }

    fn store(&mut self, address: u64, bytes: &[u8]) {
        if let Some(at) = self.own(self.ram_at, self.state.ram.len() as u64, address) {
            self.state.ram.iter_mut().skip(at as usize).zip(bytes).for_each(|(to, from)| *to = *from);
        } else if let Some(at) = self.own(self.registers_at, self.chip.memory_len(), address) {
            (0u64..).zip(bytes).for_each(|(i, byte)| self.write(at.wrapping_add(i) as u8, *byte));
        } else {
            self.dma.write(address, bytes);
        }
    }

    fn write(&mut self, at: u8, value: u8) {
        let effect = self.state.write(at, value, self.chip);
        self.effect.timer = effect.timer.or(self.effect.timer);
    }

    fn load_word(&mut self, address: u32) -> u32 {
        let mut bytes = [0; 4];
        self.load(address.into(), &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// The next word of the script.
    fn fetch(&mut self) -> u32 {
        let at = self.state.word(reg::DSP);
        self.state.set_word(reg::DSP, at.wrapping_add(4));
        self.load_word(at)
    }

    fn jump(&mut self, to: u32) -> Flow {
        self.state.set_word(reg::DSP, to);
        Flow::Next
    }

    fn stop(&mut self, cause: u8) -> Flow {
        self.state.dma_interrupt(cause);
        Flow::Stop
    }

    /// Stays at the instruction at `at` until something changes on the bus.
    fn wait(&mut self, at: u32) -> Flow {
        self.state.script = Script::Waiting(at);
        Flow::Wait
    }

    /// The instruction at `at`.
    fn instruction(&mut self, at: u32) -> Flow {
        self.state.set_word(reg::DSP, at);
        let word = self.fetch();
        // Nobody means a move of nothing to data out. Drivers that fill gaps with zeros rely on chips that go on.
        if word == 0 {
            return Flow::Next;
        }
        let second = self.fetch();
        self.state.set_word(reg::DBC, word);
        self.state.set_word(reg::DSPS, second);
        match (word >> 30, word >> 27 & 7) {
            (0, _) => self.block_move(at, word, second),
            (1, operation @ 0..=4) => self.input_output(at, operation, word, second),
            (1, operation) => self.register_move(operation, word),
            (2, operation) => self.transfer_control(at, operation, word, second),
            (_, operation) if operation & 4 == 0 => self.memory_move(word, second),
            _ => self.load_and_store(word, second),
        }
    }

    /// Block moves (5.3): direct, by a pointer, or by an entry of the table at DSA with count and address.
    fn block_move(&mut self, at: u32, word: u32, second: u32) -> Flow {
        let (mut count, mut address, mut upper, mut entry) = (word & 0xff_ffff, u64::from(second), word >> 24, 0);
        let wide = self.state.byte(reg::CCNTL1);
        if word & 1 << 29 != 0 {
            address = self.load_word(second).into();
        } else if word & 1 << 28 != 0 {
            entry = self.state.word(reg::DSA).wrapping_add(signed_24(second));
            let first = self.load_word(entry);
            (count, upper) = (first & 0xff_ffff, first >> 24);
            address = self.load_word(entry.wrapping_add(4)).into();
            if wide & bit::TABLE_64 != 0 {
                let high = if wide & bit::TABLE_40 != 0 { upper } else { self.upper_half(upper) };
                address |= u64::from(high) << 32;
            }
        } else if wide & bit::DIRECT_64 != 0 {
            address |= u64::from(self.fetch()) << 32;
        }
        self.state.set_word(reg::DBC, word & 0xff00_0000 | count);
        self.state.set_word(reg::IA, at);
        self.state.set_word(reg::ESA, entry);
        if count == 0 {
            guest_error!("lsi: a move of no bytes");
            return self.stop(bit::ILLEGAL);
        }
        self.moving(Move { phase: phase_of(word), upper: upper as u8, address, left: count, begun: false })
    }

    /// The register that an entry names for the upper half of its address (4.4, CCNTL1).
    fn upper_half(&self, name: u32) -> u32 {
        let name = (name & 0x1f) as u8;
        match name {
            0..=0x0f => self.state.word(reg::SCRATCH_C + 4 * name),
            0x10..=0x15 => self.state.word(reg::MMRS + 4 * (name - 0x10)),
            _ => 0,
        }
    }

    /// Goes on with a block move as far as the target does.
    fn moving(&mut self, mut m: Move) -> Flow {
        while m.left != 0 {
            if self.state.unanswered {
                return self.nobody();
            }
            self.state.wires.settle();
            if m.phase == Phase::Command as u8 && self.state.wires.takes_command() {
                self.piece(&mut m, Phase::Command);
                continue;
            }
            let Some((phase, ready)) = self.state.wires.phase() else {
                self.state.scsi_interrupt(bit::UNEXPECTED, 0);
                return Flow::Stop;
            };
            if !ready {
                self.note(&m);
                self.state.script = Script::Moving(m);
                return Flow::Wait;
            }
            if phase as u8 != m.phase {
                return self.mismatch(&m);
            }
            self.piece(&mut m, phase);
        }
        self.note(&m);
        Flow::Next
    }

    /// Registers show how far a move has come.
    fn note(&mut self, m: &Move) {
        let state = &mut *self.state;
        let command = state.byte(reg::DCMD);
        state.set_word(reg::DBC, u32::from(command) << 24 | m.left);
        state.set_word(reg::DNAD, m.address as u32);
        state.set_word(reg::RBC, u32::from(m.upper) << 24 | m.left);
        state.set_word(reg::UA, m.address as u32);
    }

    /// The target wants another phase than the script. By then it has come as far as `m` (2.2.19, 5.3).
    fn mismatch(&mut self, m: &Move) -> Flow {
        self.note(m);
        let control = self.state.byte(reg::CCNTL0);
        let data = m.phase <= Phase::DataIn as u8;
        if control & bit::JUMP_ON_MISMATCH == 0 || !(data || control & bit::JUMP_WITHOUT_DATA != 0) {
            self.state.scsi_interrupt(bit::MISMATCH, 0);
            return Flow::Stop;
        }
        // Without the choice by direction it is whether a byte is left over, and none is.
        let second = control & bit::JUMP_BY_DIRECTION != 0 && m.phase & 1 != 0;
        self.jump(self.state.word(if second { reg::PMJAD2 } else { reg::PMJAD1 }))
    }

    /// Moves what can be moved at once in `phase`, at least one byte.
    fn piece(&mut self, m: &mut Move, phase: Phase) {
        let inbound = match phase {
            Phase::DataIn => self.state.wires.data_in(m.left as usize),
            Phase::Status => vec![self.state.wires.status_in()],
            Phase::MessageIn => self.state.wires.message_in(m.left as usize),
            Phase::DataOut => {
                let mut bytes = vec![0; (m.left as usize).min(self.state.wires.room())];
                self.load(m.address, &mut bytes);
                self.state.wires.data_out(&bytes);
                return self.moved(m, bytes.len().max(1));
            }
            Phase::Command | Phase::MessageOut => {
                let mut bytes = vec![0; m.left.min(LONGEST_MESSAGE) as usize];
                self.load(m.address, &mut bytes);
                match phase {
                    Phase::Command => self.state.wires.command(&bytes),
                    _ => self.state.wires.message_out(&bytes),
                }
                return self.moved(m, m.left as usize);
            }
        };
        self.store(m.address, &inbound);
        if let (Some(first), Some(last)) = (inbound.first(), inbound.last()) {
            if !m.begun {
                self.state.set_byte(reg::SFBR, *first);
            }
            self.state.set_byte(reg::SIDL, *last);
        }
        self.moved(m, inbound.len().max(1));
    }

    fn moved(&mut self, m: &mut Move, count: usize) {
        let count = (count as u32).min(m.left);
        m.begun = true;
        m.left -= count;
        m.address = m.address.wrapping_add(count.into());
        self.budget = self.budget.saturating_sub(count / PIECE);
        self.state.set_word(reg::SBC, self.state.word(reg::SBC).wrapping_add(count) & 0xff_ffff);
        self.state.set_word(reg::CSBC, self.state.word(reg::CSBC).wrapping_add(count));
    }

    /// The selection before this instruction got no answer.
    fn nobody(&mut self) -> Flow {
        self.state.unanswered = false;
        self.state.scsi_interrupt(0, bit::NOBODY);
        Flow::Stop
    }

    /// I/O instructions (5.4).
    fn input_output(&mut self, at: u32, operation: u32, word: u32, second: u32) -> Flow {
        let relative = word & 1 << 26 != 0;
        let other = if relative { self.state.word(reg::DSP).wrapping_add(signed_24(second)) } else { second };
        match operation {
            0 => self.select(word, other),
            1 => {
                self.state.wires.settle();
                if self.state.wires.connected() { self.wait(at) } else { Flow::Next }
            }
            2 => self.wait_reselect(at, other),
            _ => {
                let set = operation == 3;
                if word & 1 << 10 != 0 {
                    self.state.carry = set;
                }
                if word & 1 << 3 != 0 {
                    self.state.wires.traffic.attention = set && self.state.wires.connected();
                }
                if word & 1 << 6 != 0 && !set {
                    self.state.wires.release();
                }
                Flow::Next
            }
        }
    }

    /// Has a target that wants the bus back take it.
    fn reselected(&mut self) -> bool {
        let Some(target) = self.state.wires.reselect() else { return false };
        self.state.set_byte(reg::SSID, 0x80 | target);
        self.state.reselected = true;
        true
    }

    /// SELECT; who is reselected before it gets to that goes to `other`.
    fn select(&mut self, word: u32, other: u32) -> Flow {
        let mut target = (word >> 16 & 0xf) as u8;
        if word & 1 << 25 != 0 {
            let entry = self.state.word(reg::DSA).wrapping_add(signed_24(word));
            let [_, period, id, control] = self.load_word(entry).to_le_bytes();
            self.state.set_byte(reg::SXFER, period);
            self.state.set_byte(reg::SCNTL3, control);
            target = id & 0xf;
        }
        self.state.wires.settle();
        if self.state.wires.connected() && self.state.reselected || self.reselected() {
            return self.jump(other);
        }
        // An initiator that begins anew in the middle of a command does not come back to that.
        self.state.wires.abandon();
        self.state.set_byte(reg::SDID, target);
        self.state.unanswered = !self.state.wires.select(target, word & 1 << 24 != 0);
        Flow::Next
    }

    /// WAIT RESELECT, which the host's signal ends too.
    fn wait_reselect(&mut self, at: u32, other: u32) -> Flow {
        self.state.wires.settle();
        if std::mem::take(&mut self.state.reselected) && self.state.wires.connected() || self.reselected() {
            self.state.reselected = false;
            return Flow::Next;
        }
        if self.state.byte(reg::ISTAT0) & bit::SIGNAL != 0 {
            return self.jump(other);
        }
        self.wait(at)
    }

    /// Moves from register to register, by way of SFBR (5.5).
    fn register_move(&mut self, operation: u32, word: u32) -> Flow {
        let at = (word >> 16 & 0x7f | word & 0x80) as u8;
        let operator = word >> 24 & 7;
        let by_sfbr = word & 1 << 23 != 0 && operation == 7;
        let data = if by_sfbr { self.state.byte(reg::SFBR) } else { (word >> 8) as u8 };
        let old = match operation {
            5 => self.state.byte(reg::SFBR),
            _ if operator == 0 && operation == 7 => 0,
            _ => self.state.read(at),
        };
        let carry = u8::from(self.state.carry);
        let (new, carry) = match operator {
            // Without an operator, data go to the register, or the register to SFBR.
            0 if operation == 6 => (old, None),
            0 => (data, None),
            1 => (old << 1 | carry, Some(old & 0x80 != 0)),
            2 => (old | data, None),
            3 => (old ^ data, None),
            4 => (old & data, None),
            5 => (old >> 1 | carry << 7, Some(old & 1 != 0)),
            _ => {
                let carry = if operator == 7 { carry } else { 0 };
                let sum = u16::from(old) + u16::from(data) + u16::from(carry);
                (sum as u8, Some(sum > 0xff))
            }
        };
        self.state.carry = carry.unwrap_or(self.state.carry);
        match operation {
            6 => self.state.set_byte(reg::SFBR, new),
            _ => self.write(at, new),
        }
        if self.state.script == Script::Stopped { Flow::Stop } else { Flow::Next }
    }

    /// Jumps, calls, returns and interrupts (5.6), under conditions.
    fn transfer_control(&mut self, at: u32, operation: u32, word: u32, second: u32) -> Flow {
        let has = |n: u32| word & 1 << n != 0;
        let (if_true, on_data, on_phase, on_carry) = (has(19), has(18), has(17), has(21));
        if on_phase {
            if self.state.unanswered {
                return self.nobody();
            }
            self.state.wires.settle();
            let ready = self.state.wires.phase().is_some_and(|(_, ready)| ready);
            if has(16) && !ready {
                return self.wait(at);
            }
        }
        let phase = self.state.read(reg::SSTAT1);
        let care = !(word >> 8) as u8;
        let holds = (!on_carry || self.state.carry)
            && (!on_phase || phase == phase_of(word))
            && (!on_data || (self.state.byte(reg::SFBR) ^ word as u8) & care == 0);
        let compares = on_data || on_phase || on_carry;
        if holds != if_true || !(compares || if_true) {
            return Flow::Next;
        }
        let after = self.state.word(reg::DSP);
        let to = if has(23) { after.wrapping_add(signed_24(second)) } else { second };
        match operation {
            0 => self.jump(to),
            1 => {
                self.state.set_word(reg::TEMP, after);
                self.jump(to)
            }
            2 => self.jump(self.state.word(reg::TEMP)),
            3 if has(20) => {
                self.state.set_byte(reg::ISTAT0, self.state.byte(reg::ISTAT0) | bit::ON_THE_FLY);
                Flow::Next
            }
            3 => self.stop(bit::SCRIPT_INTERRUPT),
            _ => self.stop(bit::ILLEGAL),
        }
    }

    /// Memory moves (5.7), with a third word.
    fn memory_move(&mut self, word: u32, from: u32) -> Flow {
        let to = self.fetch();
        let mut left = word & 0xff_ffff;
        let (mut from, mut to) = (from, to);
        let mut piece = [0; PIECE as usize];
        while left != 0 {
            let now = left.min(PIECE);
            let piece = piece.get_mut(..now as usize).unwrap_or(&mut []);
            self.load(from.into(), piece);
            self.store(to.into(), piece);
            (from, to, left) = (from.wrapping_add(now), to.wrapping_add(now), left - now);
            self.budget = self.budget.saturating_sub(1);
        }
        Flow::Next
    }

    /// Loads and stores of up to four registers (5.8).
    fn load_and_store(&mut self, word: u32, second: u32) -> Flow {
        let relative = word & 1 << 28 != 0;
        let address = if relative { self.state.word(reg::DSA).wrapping_add(signed_24(second)) } else { second };
        let (at, count) = ((word >> 16) as u8, (word & 7).min(4) as usize);
        let mut bytes = [0; 4];
        let bytes = bytes.get_mut(..count).unwrap_or(&mut []);
        if word & 1 << 24 != 0 {
            self.load(address.into(), bytes);
            (0u8..).zip(bytes.iter()).for_each(|(i, byte)| self.write(at.wrapping_add(i), *byte));
        } else {
            (0u8..).zip(bytes.iter_mut()).for_each(|(i, byte)| *byte = self.state.read(at.wrapping_add(i)));
            self.store(address.into(), bytes);
        }
        if self.state.script == Script::Stopped { Flow::Stop } else { Flow::Next }
    }
}
