//! 16550A serial port (National Semiconductor PC16550D datasheet): the chip as a state machine, [`Uart16550`], and
//! the ISA card around it, [`IsaSerial`].
//!
//! What the guest transmits leaves at once; no baud rate is imitated. The receiver's FIFO fills as fast as the back
//! end delivers, and the character timeout is counted from the programmed rate. OUT2 does not gate the interrupt:
//! small kernels rely on that, and those who set OUT2 see no difference.

use crate::bus::{Device, RegisterBlock, Registers};
use crate::services::{CharBackend, CharFrontend, Clock, IrqLine, Line, Parity, TimerService, TimerTarget};
use crate::state::{Inspector, StateError, StateValue, from_state, to_state};
use crate::wire::{TimerSlot, Wire, locked};
use crate::{trace, trace_event};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, Weak};

/// Depth of each FIFO in bytes (datasheet 8.4).
const FIFO_DEPTH: usize = 16;
/// Input clock divided by 16: the rate in baud at divisor 1.
const BAUD_BASE: u64 = 115_200;

/// Interrupt enable register (datasheet 8.6).
mod ier {
    pub const RECEIVED: u8 = 1;
    pub const TRANSMIT_EMPTY: u8 = 2;
    pub const LINE_STATUS: u8 = 4;
    pub const MODEM_STATUS: u8 = 8;
}

/// Interrupt identification register (datasheet 8.5).
mod iir {
    pub const NONE: u8 = 1;
    pub const MODEM_STATUS: u8 = 0x0;
    pub const TRANSMIT_EMPTY: u8 = 0x2;
    pub const RECEIVED: u8 = 0x4;
    pub const LINE_STATUS: u8 = 0x6;
    pub const TIMEOUT: u8 = 0xc;
    pub const FIFOS_ON: u8 = 0xc0;
}

/// FIFO control register (datasheet 8.4).
mod fcr {
    pub const ENABLE: u8 = 1;
    pub const CLEAR_RECEIVER: u8 = 2;
    pub const STORED: u8 = 0xc9;
}

/// Line control register (datasheet 8.1).
mod lcr {
    pub const DLAB: u8 = 0x80;
}

/// Line status register (datasheet 8.3).
mod lsr {
    pub const DATA_READY: u8 = 1;
    pub const OVERRUN: u8 = 2;
    pub const BREAK: u8 = 0x10;
    pub const THR_EMPTY: u8 = 0x20;
    pub const TRANSMITTER_EMPTY: u8 = 0x40;
    pub const FIFO_ERROR: u8 = 0x80;
    /// What raises the line status interrupt, and what reading clears.
    pub const ERRORS: u8 = 0x1e;
}

/// Modem control register (datasheet 8.7).
mod mcr {
    pub const LOOPBACK: u8 = 0x10;
    pub const MASK: u8 = 0x1f;
}

/// Modem status register (datasheet 8.8).
mod msr {
    /// The inputs with a back end attached: carrier, data set ready, clear to send.
    pub const CONNECTED: u8 = 0xb0;
    pub const RI: u8 = 0x40;
}

/// A received character and the error bits that belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Received {
    byte: u8,
    errors: u8,
}

/// What the world around the chip must do after an access.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// A character left the transmitter.
    pub transmit: Option<u8>,
    /// The receiver was drained: more input is welcome.
    pub input_ready: bool,
    /// The line was set up: a divisor or a format was chosen.
    pub line: Option<Line>,
}

/// The 16550A itself: registers and FIFOs, without time, interrupt line or back end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uart16550 {
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    /// Error bits only; the others follow from the FIFO.
    lsr_errors: u8,
    /// Deltas (low half) and lines (high half).
    msr: u8,
    scratch: u8,
    divisor: u16,
    /// What an empty receiver reads as: the last character.
    last_received: u8,
    fifo: VecDeque<Received>,
    /// The transmitter-empty interrupt is due (datasheet 8.5: reading IIR or writing THR takes it back).
    thre_due: bool,
    /// Characters have waited below the trigger level for four character times.
    timed_out: bool,
}

impl Default for Uart16550 {
    fn default() -> Self {
        Self::new()
    }
}

impl Uart16550 {
    /// The chip after master reset (datasheet table 2), with a modem that is ready.
    pub fn new() -> Self {
        Self {
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            lsr_errors: 0,
            msr: msr::CONNECTED,
            scratch: 0,
            // 9600 baud: the datasheet leaves it undefined, and 0 would be no rate.
            divisor: 12,
            last_received: 0,
            fifo: VecDeque::new(),
            thre_due: false,
            timed_out: false,
        }
    }

    fn fifos_on(&self) -> bool {
        self.fcr & fcr::ENABLE != 0
    }

    fn loopback(&self) -> bool {
        self.mcr & mcr::LOOPBACK != 0
    }

    fn depth(&self) -> usize {
        if self.fifos_on() { FIFO_DEPTH } else { 1 }
    }

    fn trigger_level(&self) -> usize {
        match (self.fifos_on(), self.fcr >> 6) {
            (false, _) | (true, 0) => 1,
            (true, 1) => 4,
            (true, 2) => 8,
            (true, _) => 14,
        }
    }

    /// How many characters the receiver can take from outside. In loopback it is cut off from the line; the back end
    /// keeps its input until the line is there again.
    pub fn room(&self) -> usize {
        if self.loopback() { 0 } else { self.depth().saturating_sub(self.fifo.len()) }
    }

    /// A character arrives at the receiver, with its error bits (parity, framing, break).
    fn arrive(&mut self, byte: u8, errors: u8) {
        if self.fifo.len() >= self.depth() {
            // Datasheet 8.3 bit 1: with FIFOs the arriving character is lost, without them the old one is.
            self.lsr_errors |= lsr::OVERRUN;
            if self.fifos_on() {
                return;
            }
            self.fifo.clear();
        }
        self.fifo.push_back(Received { byte, errors });
        if self.fifo.len() == 1 {
            self.lsr_errors |= errors;
        }
        self.timed_out = false;
    }

    /// Input from the line.
    pub fn receive(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.arrive(*byte, 0));
    }

    /// A break on the line: arrives as a zero character with the break bit (datasheet 8.3 bit 4).
    pub fn receive_break(&mut self) {
        if !self.loopback() {
            self.arrive(0, lsr::BREAK);
        }
    }

    /// Whether characters wait that no interrupt has announced: the character timeout is then running.
    pub fn timeout_running(&self) -> bool {
        self.fifos_on() && !self.fifo.is_empty() && !self.timed_out && self.ier & ier::RECEIVED != 0
    }

    /// Four character times passed with [`Uart16550::timeout_running`].
    pub fn time_out(&mut self) {
        self.timed_out = self.timeout_running();
    }

    /// Four character times in nanoseconds, by line control and divisor (datasheet 8.4).
    pub fn timeout_ns(&self) -> u64 {
        let data = 5 + u64::from(self.lcr & 3);
        let stop = 1 + u64::from(self.lcr >> 2 & 1);
        let parity = u64::from(self.lcr >> 3 & 1);
        let bits = 4 * (1 + data + parity + stop);
        bits * 1_000_000_000 * u64::from(self.divisor.max(1)) / BAUD_BASE
    }

    /// How characters go over the line (datasheet 8.1, 8.2). A divisor of 0 counts as 1.
    fn line(&self) -> Line {
        let parity = match self.lcr >> 3 & 3 {
            1 => Parity::Odd,
            3 => Parity::Even,
            _ => Parity::None,
        };
        let baud = BAUD_BASE as u32 / u32::from(self.divisor.max(1));
        Line { baud, bits: 5 + (self.lcr & 3), stop: 1 + (self.lcr >> 2 & 1), parity }
    }

    /// The pending interrupt of highest priority as IIR names it (datasheet table 4).
    fn interrupt(&self) -> u8 {
        let enabled = |bit| self.ier & bit != 0;
        if enabled(ier::LINE_STATUS) && self.lsr_errors & lsr::ERRORS != 0 {
            iir::LINE_STATUS
        } else if enabled(ier::RECEIVED) && self.fifo.len() >= self.trigger_level() {
            iir::RECEIVED
        } else if enabled(ier::RECEIVED) && self.timed_out && !self.fifo.is_empty() {
            iir::TIMEOUT
        } else if enabled(ier::TRANSMIT_EMPTY) && self.thre_due {
            iir::TRANSMIT_EMPTY
        } else if enabled(ier::MODEM_STATUS) && self.msr & 0x0f != 0 {
            iir::MODEM_STATUS
        } else {
            iir::NONE
        }
    }

    /// The level of the interrupt output.
    pub fn interrupt_output(&self) -> bool {
        self.interrupt() != iir::NONE
    }

    fn line_status(&self) -> u8 {
        let ready = if self.fifo.is_empty() { 0 } else { lsr::DATA_READY };
        let in_fifo = self.fifos_on() && self.fifo.iter().any(|c| c.errors != 0);
        let fifo_error = if in_fifo { lsr::FIFO_ERROR } else { 0 };
        ready | self.lsr_errors | fifo_error | lsr::THR_EMPTY | lsr::TRANSMITTER_EMPTY
    }

    /// Reads register `offset` (0 to 7).
    pub fn read(&mut self, offset: u64) -> (u8, Effects) {
        let mut effects = Effects::default();
        let dlab = self.lcr & lcr::DLAB != 0;
        let value = match offset & 7 {
            0 if dlab => self.divisor as u8,
            0 => self.read_receiver(&mut effects),
            1 if dlab => (self.divisor >> 8) as u8,
            1 => self.ier,
            2 => {
                let id = self.interrupt();
                if id == iir::TRANSMIT_EMPTY {
                    self.thre_due = false;
                }
                id | if self.fifos_on() { iir::FIFOS_ON } else { 0 }
            }
            3 => self.lcr,
            4 => self.mcr,
            5 => {
                let value = self.line_status();
                self.lsr_errors = 0;
                if let Some(first) = self.fifo.front_mut() {
                    first.errors = 0;
                }
                value
            }
            6 => {
                let value = self.msr;
                self.msr &= 0xf0;
                value
            }
            _ => self.scratch,
        };
        (value, effects)
    }

    fn read_receiver(&mut self, effects: &mut Effects) -> u8 {
        let Some(first) = self.fifo.pop_front() else { return self.last_received };
        self.last_received = first.byte;
        self.timed_out = false;
        if let Some(next) = self.fifo.front() {
            self.lsr_errors |= next.errors;
        }
        effects.input_ready = self.fifo.is_empty() && !self.loopback();
        first.byte
    }

    /// Writes register `offset` (0 to 7).
    pub fn write(&mut self, offset: u64, value: u8) -> Effects {
        let mut effects = Effects::default();
        let dlab = self.lcr & lcr::DLAB != 0;
        match offset & 7 {
            0 if dlab => self.divisor = self.divisor & 0xff00 | u16::from(value),
            0 => {
                if self.loopback() {
                    self.arrive(value, 0);
                } else {
                    effects.transmit = Some(value);
                }
                // The character has left already: the holding register is empty again.
                self.thre_due = true;
            }
            1 if dlab => self.divisor = self.divisor & 0x00ff | u16::from(value) << 8,
            1 => {
                let risen = value & !self.ier;
                // Enabling the interrupt while the register is empty raises it at once; Linux's 8250 driver tests that.
                if risen & ier::TRANSMIT_EMPTY != 0 {
                    self.thre_due = true;
                }
                self.ier = value & 0x0f;
            }
            2 => effects.input_ready = self.write_fcr(value),
            3 => {
                self.lcr = value;
                effects.line = (value & lcr::DLAB == 0).then(|| self.line());
            }
            4 => effects.input_ready = self.write_mcr(value),
            // LSR and MSR are for reading (datasheet 8.3, 8.8).
            5 | 6 => {}
            _ => self.scratch = value,
        }
        effects
    }

    /// The result says whether the receiver was emptied.
    fn write_fcr(&mut self, value: u8) -> bool {
        let toggled = (value ^ self.fcr) & fcr::ENABLE != 0;
        // Datasheet 8.4: switching between the modes clears both FIFOs; the other bits count only with bit 0 set.
        let enable = value & fcr::ENABLE != 0;
        let cleared = toggled || (enable && value & fcr::CLEAR_RECEIVER != 0);
        self.fcr = if enable { value & fcr::STORED } else { 0 };
        if cleared {
            self.fifo.clear();
            self.timed_out = false;
            self.lsr_errors &= lsr::OVERRUN;
        }
        cleared && !self.loopback()
    }

    /// The result says whether the receiver is back on the line.
    fn write_mcr(&mut self, value: u8) -> bool {
        let was_loopback = self.loopback();
        self.mcr = value & mcr::MASK;
        let lines = if self.loopback() {
            // Datasheet 8.7: RTS, DTR, OUT1 and OUT2 come back as CTS, DSR, RI and DCD.
            let m = self.mcr;
            (m & 0x02) << 3 | (m & 0x01) << 5 | (m & 0x04) << 4 | (m & 0x08) << 4
        } else {
            msr::CONNECTED
        };
        let changed = (self.msr ^ lines) & 0xf0;
        let mut deltas = changed >> 4;
        // The ring indicator's delta tells of its trailing edge only (datasheet 8.8 bit 2).
        if changed & msr::RI != 0 && lines & msr::RI != 0 {
            deltas &= !(msr::RI >> 4);
        }
        self.msr = lines | self.msr & 0x0f | deltas;
        was_loopback && !self.loopback()
    }

    fn is_sane(&self) -> bool {
        self.fifo.len() <= FIFO_DEPTH
    }

    fn inspect(&self, out: &mut Inspector) {
        let Self {
            ier,
            fcr,
            lcr,
            mcr,
            lsr_errors: _,
            msr,
            scratch,
            divisor,
            last_received: _,
            fifo,
            thre_due,
            timed_out,
        } = self;
        let registers = [("ier", ier), ("fcr", fcr), ("lcr", lcr), ("mcr", mcr), ("msr", msr), ("scr", scratch)];
        for (key, value) in registers {
            out.field(key, format_args!("{value:#04x}"));
        }
        out.field("lsr", format_args!("{:#04x}", self.line_status()));
        out.field("iir", format_args!("{:#04x}", self.interrupt()));
        out.field("divisor", divisor);
        out.field("received", fifo.len());
        out.field("thre_due", thre_due);
        out.field("timed_out", timed_out);
    }
}

/// Volatile state of the card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Card {
    chip: Uart16550,
    /// When the character timeout strikes, in guest nanoseconds.
    timeout_at: Option<u64>,
}

/// A serial port on the ISA bus: eight ports and an interrupt.
///
/// Locks: `card` is a leaf; interrupt, timer and back end are called after it is dropped.
pub struct IsaSerial {
    irq: Wire,
    timer: TimerSlot,
    clock: Arc<dyn Clock>,
    backend: Arc<dyn CharBackend>,
    card: Mutex<Card>,
}

impl IsaSerial {
    /// A serial port with interrupt `irq` that talks to `backend`. Attach the result to the back end as its
    /// [`CharFrontend`], and to the bus at eight ports (0x3f8 for the first).
    pub fn new(
        irq: IrqLine,
        backend: Arc<dyn CharBackend>,
        clock: Arc<dyn Clock>,
        timers: &dyn TimerService,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| Self {
            irq: Wire::new(irq),
            timer: TimerSlot::new(timers.create(this.clone(), 0)),
            clock,
            backend,
            card: Mutex::new(Card { chip: Uart16550::new(), timeout_at: None }),
        })
    }

    /// The eight registers.
    pub fn ports(self: &Arc<Self>) -> Registers {
        self.clone()
    }

    /// Changes the chip, then brings interrupt and timer in line with it. `restart`: the timeout counts from now.
    fn with<R>(&self, restart: bool, change: impl FnOnce(&mut Uart16550) -> R) -> R {
        let mut card = locked(&self.card);
        let Card { chip, timeout_at } = &mut *card;
        let result = change(chip);
        *timeout_at = match *timeout_at {
            _ if !chip.timeout_running() => None,
            Some(at) if !restart => Some(at),
            _ => Some(self.clock.now_ns().saturating_add(chip.timeout_ns())),
        };
        self.irq.want(chip.interrupt_output());
        self.timer.want(*timeout_at);
        drop(card);
        self.irq.flush();
        self.timer.flush();
        result
    }

    fn carry_out(&self, effects: Effects) {
        let Effects { transmit, input_ready, line } = effects;
        if let Some(line) = line {
            self.backend.set_line(line);
        }
        if let Some(byte) = transmit {
            self.backend.write(&[byte]);
        }
        if input_ready {
            self.backend.input_ready();
        }
    }
}

impl RegisterBlock for IsaSerial {
    fn read(&self, offset: u64, _size: u8) -> u64 {
        let (value, effects) = self.with(offset == 0, |chip| chip.read(offset));
        self.carry_out(effects);
        value.into()
    }

    fn write(&self, offset: u64, _size: u8, value: u64) {
        let effects = self.with(false, |chip| chip.write(offset, value as u8));
        self.carry_out(effects);
    }
}

impl CharFrontend for IsaSerial {
    fn can_receive(&self) -> usize {
        locked(&self.card).chip.room()
    }

    fn receive(&self, bytes: &[u8]) {
        trace_event!(trace::SERIAL_RECEIVE, "{bytes:02x?}");
        self.with(true, |chip| chip.receive(bytes));
    }

    fn receive_break(&self) {
        self.with(true, Uart16550::receive_break);
    }
}

impl TimerTarget for IsaSerial {
    fn timer_fired(&self, _tag: u32, now_ns: u64) {
        self.timer.fired();
        let due = locked(&self.card).timeout_at.is_some_and(|at| at <= now_ns);
        self.with(false, |chip| {
            if due {
                chip.time_out();
            }
        });
    }
}

impl Device for IsaSerial {
    fn name(&self) -> &'static str {
        "isa-serial"
    }

    fn reset(&self) {
        let Self { irq: _, timer: _, clock: _, backend, card: _ } = self;
        self.with(false, |chip| *chip = Uart16550::new());
        backend.input_ready();
    }

    fn save(&self) -> StateValue {
        to_state(&*locked(&self.card))
    }

    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        let Self { irq, timer, clock: _, backend, card: live } = self;
        let card: Card = from_state(self.name(), state)?;
        if !card.chip.is_sane() {
            return Err(StateError::Malformed {
                device: self.name(),
                reason: "more than 16 characters received".into(),
            });
        }
        let mut live = locked(live);
        irq.adopt(card.chip.interrupt_output());
        timer.want(card.timeout_at);
        *live = card;
        drop(live);
        timer.flush();
        backend.input_ready();
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        let Card { chip, timeout_at } = &*locked(&self.card);
        chip.inspect(out);
        out.field("timeout_at_ns", timeout_at.map_or("never".to_owned(), |at| at.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::{FakeChar, FakeIrq, FakeTime, fuzz, moves_to};
    use std::sync::atomic::Ordering;

    struct Bench {
        time: Arc<FakeTime>,
        irq: Arc<FakeIrq>,
        host: Arc<FakeChar>,
        uart: Arc<IsaSerial>,
    }

    impl Bench {
        fn new() -> Self {
            let (time, irq, host) = (FakeTime::new(), FakeIrq::new(), Arc::new(FakeChar::default()));
            let uart = IsaSerial::new(irq.line(4), host.clone(), time.clone(), &*time);
            Self { time, irq, host, uart }
        }
        fn get(&self, offset: u64) -> u64 {
            self.uart.read(offset, 1)
        }
        fn put(&self, offset: u64, value: u64) {
            self.uart.write(offset, 1, value);
        }
        fn raised(&self) -> bool {
            self.irq.level(4)
        }
    }

    #[test]
    fn transmits_at_once() {
        let b = Bench::new();
        b.put(0, b'a'.into());
        b.put(0, b'b'.into());
        assert_eq!(*locked(&b.host.output), b"ab");
        assert_eq!(b.get(5), 0x60);
    }

    #[test]
    fn transmitter_empty_interrupt_as_linux_probes_it() {
        let b = Bench::new();
        // serial8250_do_startup: enabling twice must show it twice.
        for _ in 0..2 {
            b.put(1, 2);
            assert!(b.raised());
            assert_eq!(b.get(2), 0x02);
            assert!(!b.raised(), "reading IIR takes it back");
            assert_eq!(b.get(2), 0x01);
            b.put(1, 0);
        }
        b.put(1, 2);
        b.get(2);
        b.put(1, 2);
        assert!(!b.raised(), "no rise of the enable bit, no interrupt");
        b.put(0, 1);
        assert!(b.raised(), "the character left, the register is empty anew");
        b.put(1, 0);
        assert!(!b.raised());
    }

    #[test]
    fn receives_with_trigger_level_and_timeout() {
        let b = Bench::new();
        b.put(2, 0x81);
        b.put(1, 1);
        assert_eq!(b.uart.can_receive(), 16);
        b.uart.receive(b"1234567");
        assert!(!b.raised());
        assert_eq!(b.get(5) & 1, 1);
        b.uart.receive(b"8");
        assert_eq!(b.get(2), 0xc4);
        assert_eq!(b.get(0), u64::from(b'1'));
        assert_eq!(b.get(2), 0xc1);
        // 9600 baud, 5N1 after reset: 4 * 7 bits.
        b.time.advance(4 * 7 * 1_000_000_000 / 9600 - 1000);
        assert!(!b.raised());
        b.time.advance(2000);
        assert_eq!(b.get(2), 0xcc);
        let rest: Vec<u64> = (0..7).map(|_| b.get(0)).collect();
        assert_eq!(rest, b"2345678".map(u64::from));
        assert_eq!(b.get(2), 0xc1);
        assert!(!b.raised());
        assert_eq!(b.host.ready.load(Ordering::SeqCst), 2, "after FCR, and when the FIFO was drained");
    }

    #[test]
    fn without_fifos_one_character_and_overrun() {
        let b = Bench::new();
        b.put(1, 5);
        assert_eq!(b.uart.can_receive(), 1);
        b.uart.receive(b"x");
        assert_eq!(b.uart.can_receive(), 0);
        assert_eq!(b.get(2), 4);
        b.uart.receive(b"y");
        assert_eq!(b.get(2), 6, "line status comes first");
        assert_eq!(b.get(5), 0x63);
        assert_eq!(b.get(5), 0x61, "reading clears the error");
        assert_eq!(b.get(0), u64::from(b'y'));
    }

    #[test]
    fn fifo_overrun_keeps_what_came_first() {
        let b = Bench::new();
        b.put(2, 1);
        b.uart.receive(b"0123456789abcdefX");
        assert_eq!(b.get(5) & 2, 2);
        let got: Vec<u64> = (0..16).map(|_| b.get(0)).collect();
        assert_eq!(got, b"0123456789abcdef".map(u64::from));
        assert_eq!(b.get(5) & 1, 0);
    }

    #[test]
    fn break_shows_when_its_character_is_first() {
        let b = Bench::new();
        b.put(2, 1);
        b.put(1, 4);
        b.uart.receive(b"a");
        b.uart.receive_break();
        assert_eq!(b.get(5), 0xe1, "an error is in the FIFO, but not at its front");
        assert!(!b.raised());
        b.get(0);
        assert!(b.raised());
        assert_eq!(b.get(5), 0xf1);
        assert_eq!(b.get(5), 0x61);
        assert_eq!(b.get(0), 0);
    }

    #[test]
    fn loopback_connects_outputs_to_inputs() {
        let b = Bench::new();
        b.put(4, 0x1a);
        assert_eq!(b.get(6) & 0xf0, 0x90, "Linux's autoconfiguration looks for this");
        b.put(0, 0x5a);
        assert!(locked(&b.host.output).is_empty());
        assert_eq!(b.get(0), 0x5a);
        assert_eq!(b.uart.can_receive(), 0);
        b.put(4, 0x0b);
        assert_eq!(b.uart.can_receive(), 1);
        assert_eq!(b.host.ready.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn modem_status_deltas() {
        let b = Bench::new();
        assert_eq!(b.get(6), 0xb0);
        b.put(1, 8);
        b.put(4, 0x14);
        assert_eq!(b.get(2), 0);
        assert_eq!(b.get(6), 0x4b, "CTS, DSR, DCD fell; the rise of RI is no delta");
        assert_eq!(b.get(2), 1);
        b.put(4, 0x10);
        assert_eq!(b.get(6), 0x04);
        assert_eq!(b.get(6), 0x00);
    }

    #[test]
    fn divisor_scratch_and_fifo_switch() {
        let b = Bench::new();
        b.put(3, 0x83);
        b.put(0, 0x34);
        b.put(1, 0x12);
        assert_eq!((b.get(0), b.get(1)), (0x34, 0x12));
        b.put(3, 0x03);
        b.put(1, 0xff);
        assert_eq!((b.get(1), b.get(3)), (0x0f, 0x03));
        let chip = Uart16550 { divisor: 12, ..Uart16550::new() }.write(3, 0x1e);
        assert_eq!(chip.line, Some(Line { baud: 9600, bits: 7, stop: 2, parity: Parity::Even }));
        b.put(7, 0xa5);
        assert_eq!(b.get(7), 0xa5);
        b.uart.receive(b"q");
        b.put(2, 0x01);
        assert_eq!(b.get(5) & 1, 0, "switching FIFOs on clears them");
        b.get(2);
        b.put(2, 0xc0);
        assert_eq!(b.get(2) & 0xc0, 0, "without bit 0 the FIFOs are off");
    }

    #[test]
    fn reset_equals_new_and_state_moves() {
        let b = Bench::new();
        b.put(2, 0xc1);
        b.put(1, 7);
        b.put(4, 3);
        b.uart.receive(b"hello");
        let other = Bench::new();
        moves_to(&*b.uart, &*other.uart);
        other.time.advance(1_000_000_000);
        assert_eq!(other.get(2), 0xcc, "the timeout goes on in the other one");
        b.uart.reset();
        assert_eq!(b.uart.save(), Bench::new().uart.save());
        assert!(!b.raised());
        assert_eq!(b.time.next_deadline(), None);
    }

    #[test]
    fn random_accesses() {
        let b = Bench::new();
        fuzz(&*b.uart, &[(&*b.uart, 8)], &b.time, 2);
        let mut state = b.uart.save();
        state["chip"]["fifo"] = serde_json::json!(vec![serde_json::json!({ "byte": 1, "errors": 0 }); 17]);
        b.uart.restore(&state).expect_err("no FIFO is that deep");
    }
}
