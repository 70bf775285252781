//! Pair of Intel 8259A interrupt controllers as PIIX3 has them (8259A datasheet, order 231468; PIIX3 datasheet 3.7).
//!
//! Deviations from the datasheet, all as other PC implementations have them: the edge latch keeps a request whose
//! input fell again before the acknowledge, and ICW1's LTIM bit is ignored because ELCR decides per input (PIIX3 4.2.4).

use crate::bus::{Device, RegisterBlock, Registers};
use crate::services::{IrqLine, IrqSink};
use crate::state::{Inspector, StateError, StateValue, from_state, to_state};
use crate::wire::{RaiseCounts, Wire, locked};
use crate::{trace, trace_event};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex};

/// The master's input that the slave's output feeds.
const CASCADE: u8 = 2;
/// ELCR bits that can be set: IRQ 0, 1, 2, 8 and 13 are always edge-triggered (PIIX3 4.2.4).
const ELCR_MASK: [u8; 2] = [0xf8, 0xde];

/// Initialisation command word expected next at the odd port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Expect {
    /// Initialised: the odd port is the mask register.
    Ocw1,
    Icw2,
    Icw3,
    Icw4,
}

/// One 8259A.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Chip {
    /// Interrupt request register.
    irr: u8,
    /// Interrupt mask register.
    imr: u8,
    /// In-service register.
    isr: u8,
    /// Levels of the inputs.
    lines: u8,
    /// Edge/level control: 1 is level-triggered.
    elcr: u8,
    /// Vector of input 0 (ICW2).
    vector_base: u8,
    /// Input of highest priority.
    highest: u8,
    expect: Expect,
    /// ICW1 said that ICW4 follows.
    icw4_follows: bool,
    /// ICW1 said that there is no cascade.
    single: bool,
    /// ICW3: inputs with slaves, or the slave's own number.
    icw3: u8,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_fully_nested: bool,
    special_mask: bool,
    /// The even port reads ISR instead of IRR.
    read_isr: bool,
    /// The next read is a poll.
    poll: bool,
}

impl Chip {
    fn power_on() -> Self {
        Self {
            irr: 0,
            imr: 0,
            isr: 0,
            lines: 0,
            elcr: 0,
            vector_base: 0,
            highest: 0,
            expect: Expect::Ocw1,
            icw4_follows: false,
            single: false,
            icw3: 0,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_fully_nested: false,
            special_mask: false,
            read_isr: false,
            poll: false,
        }
    }

    fn set_input(&mut self, input: u8, level: bool) {
        let bit = 1 << (input & 7);
        if self.elcr & bit != 0 {
            self.irr = if level { self.irr | bit } else { self.irr & !bit };
        } else if level && self.lines & bit == 0 {
            self.irr |= bit;
        }
        self.lines = if level { self.lines | bit } else { self.lines & !bit };
    }

    /// Rank of the most urgent of `inputs` (0 is the most urgent), or 8.
    fn rank(&self, inputs: u8) -> u32 {
        let turned = inputs.rotate_right(u32::from(self.highest & 7));
        turned.trailing_zeros()
    }

    fn input_of_rank(&self, rank: u32) -> u8 {
        (rank as u8).wrapping_add(self.highest) & 7
    }

    /// The input that would be acknowledged now.
    fn pending(&self, is_master: bool) -> Option<u8> {
        if self.expect != Expect::Ocw1 {
            return None;
        }
        let rank = self.rank(self.irr & !self.imr);
        let mut in_service = self.isr;
        if self.special_mask {
            in_service &= !self.imr;
        }
        // Special fully nested mode: the slave in service does not lock itself out (datasheet, "Special Fully Nested Mode").
        if self.special_fully_nested && is_master {
            in_service &= !(1 << CASCADE);
        }
        (rank < self.rank(in_service)).then(|| self.input_of_rank(rank))
    }

    /// Acknowledge of `input`: it goes from requested to in service.
    fn take(&mut self, input: u8) {
        let bit = 1 << (input & 7);
        if self.elcr & bit == 0 {
            self.irr &= !bit;
        }
        if !self.auto_eoi {
            self.isr |= bit;
        } else if self.rotate_on_auto_eoi {
            self.highest = input.wrapping_add(1) & 7;
        }
    }

    fn write_even(&mut self, value: u8) {
        if value & 0x10 != 0 {
            self.icw1(value);
        } else if value & 0x08 != 0 {
            self.ocw3(value);
        } else {
            self.ocw2(value);
        }
    }

    fn icw1(&mut self, value: u8) {
        // The edge detectors are cleared; level requests are still there (datasheet, "Initialization Command Words").
        let Self { lines, elcr, .. } = *self;
        *self = Self {
            irr: lines & elcr,
            lines,
            elcr,
            expect: Expect::Icw2,
            icw4_follows: value & 0x01 != 0,
            single: value & 0x02 != 0,
            ..Self::power_on()
        };
    }

    fn ocw2(&mut self, value: u8) {
        let level = value & 7;
        let rotate = value & 0x80 != 0;
        match (value >> 5) & 3 {
            // EOI bit clear, SL clear: rotation in automatic EOI mode on or off.
            0 => self.rotate_on_auto_eoi = rotate,
            // Non-specific EOI: the most urgent input in service.
            1 => {
                let rank = self.rank(if self.special_mask { self.isr & !self.imr } else { self.isr });
                if rank < 8 {
                    let input = self.input_of_rank(rank);
                    self.isr &= !(1 << input);
                    if rotate {
                        self.highest = input.wrapping_add(1) & 7;
                    }
                }
            }
            // Set priority; with R clear no operation.
            2 => {
                if rotate {
                    self.highest = level.wrapping_add(1) & 7;
                }
            }
            // Specific EOI.
            _ => {
                self.isr &= !(1 << level);
                if rotate {
                    self.highest = level.wrapping_add(1) & 7;
                }
            }
        }
    }

    fn ocw3(&mut self, value: u8) {
        self.poll = value & 0x04 != 0;
        if value & 0x02 != 0 {
            self.read_isr = value & 0x01 != 0;
        }
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
    }

    fn write_odd(&mut self, value: u8) {
        match self.expect {
            Expect::Ocw1 => self.imr = value,
            Expect::Icw2 => {
                self.vector_base = value & 0xf8;
                self.expect = match (self.single, self.icw4_follows) {
                    (false, _) => Expect::Icw3,
                    (true, true) => Expect::Icw4,
                    (true, false) => Expect::Ocw1,
                };
            }
            Expect::Icw3 => {
                self.icw3 = value;
                self.expect = if self.icw4_follows { Expect::Icw4 } else { Expect::Ocw1 };
            }
            Expect::Icw4 => {
                self.special_fully_nested = value & 0x10 != 0;
                self.auto_eoi = value & 0x02 != 0;
                self.expect = Expect::Ocw1;
            }
        }
    }

    fn inspect(&self, name: &str, out: &mut Inspector) {
        let Self {
            irr,
            imr,
            isr,
            lines,
            elcr,
            vector_base,
            highest,
            expect,
            icw4_follows: _,
            single,
            icw3,
            auto_eoi,
            rotate_on_auto_eoi,
            special_fully_nested,
            special_mask,
            read_isr,
            poll,
        } = *self;
        out.group(name, |out| {
            let registers = [("irr", irr), ("imr", imr), ("isr", isr), ("lines", lines), ("elcr", elcr)];
            let more = [("vector_base", vector_base), ("highest", highest), ("icw3", icw3)];
            for (key, value) in registers.into_iter().chain(more) {
                out.field(key, format_args!("{value:#04x}"));
            }
            out.field("expect", format_args!("{expect:?}"));
            let modes = [
                ("single", single),
                ("auto_eoi", auto_eoi),
                ("rotate_on_auto_eoi", rotate_on_auto_eoi),
                ("special_fully_nested", special_fully_nested),
                ("special_mask", special_mask),
                ("read_isr", read_isr),
                ("poll", poll),
            ];
            for (key, value) in modes {
                out.field(key, value);
            }
        });
    }
}

/// Master and slave: `[master, slave]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pair {
    chips: [Chip; 2],
}

impl Pair {
    fn power_on() -> Self {
        Self { chips: [Chip::power_on(); 2] }
    }

    /// Lets the slave's output reach the master; the result is the pair's output.
    fn settle(&mut self) -> bool {
        let [master, slave] = &mut self.chips;
        master.set_input(CASCADE, slave.pending(false).is_some());
        master.pending(true).is_some()
    }

    /// Acknowledge at the slave; a request that went away counts as input 7 and is not put in service
    /// (datasheet, "Edge and Level Triggered Modes").
    fn take_slave(&mut self) -> u8 {
        let [master, slave] = &mut self.chips;
        let input = slave.pending(false);
        if let Some(input) = input {
            slave.take(input);
        }
        // The slave's output falls with each acknowledge, so that what it still has to say makes a new edge.
        master.set_input(CASCADE, false);
        slave.vector_base | input.unwrap_or(7)
    }

    fn acknowledge(&mut self) -> u8 {
        let [master, _] = &mut self.chips;
        let Some(input) = master.pending(true) else {
            return master.vector_base | 7;
        };
        let own = master.vector_base | input;
        let cascaded = input == CASCADE && !master.single;
        master.take(input);
        if cascaded { self.take_slave() } else { own }
    }

    /// Reads the even port, or the odd one, of a chip.
    fn read(&mut self, index: usize, odd: bool) -> u8 {
        let is_master = index == 0;
        let Some(chip) = self.chips.get_mut(index) else { return 0xff };
        if chip.poll {
            chip.poll = false;
            // A poll acts as an acknowledge (datasheet, "Poll Command").
            let input = chip.pending(is_master);
            if let Some(input) = input {
                chip.take(input);
            }
            if !is_master {
                self.chips[0].set_input(CASCADE, false);
            }
            return input.map_or(0, |i| 0x80 | i);
        }
        match (odd, chip.read_isr) {
            (true, _) => chip.imr,
            (false, true) => chip.isr,
            (false, false) => chip.irr,
        }
    }
}

/// The pair of 8259As of a PC, inputs 0 to 15.
///
/// Locks: `state` is a leaf; the output is driven after it is dropped.
pub struct Pic {
    output: Wire,
    state: Mutex<Pair>,
    raised: RaiseCounts<16>,
}

impl Pic {
    /// A pair whose INT output is `output` (LINT0 of the boot processor's local APIC, or the processor's INTR).
    pub fn new(output: IrqLine) -> Arc<Self> {
        Arc::new(Self {
            output: Wire::new(output),
            state: Mutex::new(Pair::power_on()),
            raised: RaiseCounts::default(),
        })
    }

    fn with<R>(&self, change: impl FnOnce(&mut Pair) -> R) -> R {
        let mut state = locked(&self.state);
        let result = change(&mut state);
        let level = state.settle();
        self.output.want(level);
        drop(state);
        result
    }

    /// The interrupt acknowledge cycle: the vector to deliver. Without a request it is that of input 7, the
    /// spurious interrupt.
    pub fn acknowledge(&self) -> u8 {
        let vector = self.with(Pair::acknowledge);
        // INT falls with the acknowledge even if another request follows.
        self.output.flush_with_edge();
        vector
    }

    /// The registers in the lines that `info pic` has in QEMU.
    pub fn show(&self) -> String {
        let chips = locked(&self.state).chips;
        let line = |(number, chip): (usize, &Chip)| {
            let Chip { irr, imr, isr, highest, vector_base, read_isr, elcr, special_fully_nested, .. } = *chip;
            format!(
                "pic{number}: irr={irr:02x} imr={imr:02x} isr={isr:02x} hprio={highest} irq_base={vector_base:02x} \
                 rr_sel={} elcr={elcr:02x} fnm={}\n",
                u8::from(read_isr),
                u8::from(special_fully_nested)
            )
        };
        chips.iter().enumerate().rev().map(line).collect()
    }

    /// How often each input rose since the machine started.
    pub fn raised(&self) -> [u64; 16] {
        self.raised.counts()
    }

    /// Whether the pair asks for an interrupt.
    pub fn output(&self) -> bool {
        self.output.level()
    }

    /// Ports 0x20/0x21 (two bytes).
    pub fn master_ports(self: &Arc<Self>) -> Registers {
        Arc::new(ChipPorts { pic: self.clone(), index: 0 })
    }

    /// Ports 0xa0/0xa1 (two bytes).
    pub fn slave_ports(self: &Arc<Self>) -> Registers {
        Arc::new(ChipPorts { pic: self.clone(), index: 1 })
    }

    /// ELCR, ports 0x4d0/0x4d1 (two bytes).
    pub fn elcr_ports(self: &Arc<Self>) -> Registers {
        Arc::new(ElcrPorts(self.clone()))
    }
}

impl IrqSink for Pic {
    fn set_irq(&self, pin: u32, level: bool) {
        let input = (pin & 7) as u8;
        self.raised.note(pin, level);
        trace_event!(trace::PIC_IRQ, "irq {pin} level {}", u8::from(level));
        match pin {
            // The cascade input has no pin outside.
            2 | 16.. => return,
            0..8 => self.with(|pair| pair.chips[0].set_input(input, level)),
            8..16 => self.with(|pair| pair.chips[1].set_input(input, level)),
        }
        self.output.flush();
    }
}

struct ChipPorts {
    pic: Arc<Pic>,
    index: usize,
}

impl RegisterBlock for ChipPorts {
    fn read(&self, offset: u64, _size: u8) -> u64 {
        let value = self.pic.with(|pair| pair.read(self.index, offset & 1 != 0));
        self.pic.output.flush();
        value.into()
    }

    fn write(&self, offset: u64, _size: u8, value: u64) {
        self.pic.with(|pair| {
            if let Some(chip) = pair.chips.get_mut(self.index) {
                if offset & 1 == 0 { chip.write_even(value as u8) } else { chip.write_odd(value as u8) }
            }
        });
        self.pic.output.flush();
    }
}

struct ElcrPorts(Arc<Pic>);

impl RegisterBlock for ElcrPorts {
    fn read(&self, offset: u64, _size: u8) -> u64 {
        let state = locked(&self.0.state);
        state.chips.get(offset as usize).map_or(0xff, |chip| chip.elcr.into())
    }

    fn write(&self, offset: u64, _size: u8, value: u64) {
        self.0.with(|pair| {
            let index = (offset & 1) as usize;
            let chip = &mut pair.chips[index];
            chip.elcr = value as u8 & ELCR_MASK[index];
            // An input that became level-triggered requests as long as it is high.
            chip.irr = chip.irr & !chip.elcr | chip.lines & chip.elcr;
        });
        self.0.output.flush();
    }
}

impl Device for Pic {
    fn name(&self) -> &'static str {
        "isa-i8259"
    }

    fn reset(&self) {
        let Self { output, state, raised: _ } = self;
        let mut state = locked(state);
        *state = Pair::power_on();
        output.want(false);
        drop(state);
        output.flush();
    }

    fn save(&self) -> StateValue {
        let Self { output: _, state, raised: _ } = self;
        to_state(&*locked(state))
    }

    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        let Self { output, state: live, raised: _ } = self;
        let mut pair: Pair = from_state(self.name(), state)?;
        pair.chips.iter_mut().for_each(|chip| {
            chip.highest &= 7;
            chip.vector_base &= 0xf8;
        });
        let mut live = locked(live);
        *live = pair;
        let level = pair.chips[0].pending(true).is_some();
        output.adopt(level);
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        let Pair { chips: [master, slave] } = *locked(&self.state);
        master.inspect("master", out);
        slave.inspect("slave", out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::{FakeIrq, FakeTime, fuzz, moves_to};

    struct Bench {
        pic: Arc<Pic>,
        irq: Arc<FakeIrq>,
        ports: [Registers; 2],
    }

    impl Bench {
        /// As a PC's firmware or Linux sets it up: vectors 0x30 and 0x38, all unmasked.
        fn new(icw4: u64) -> Self {
            let irq = FakeIrq::new();
            let pic = Pic::new(irq.line(0));
            let bench = Self { ports: [pic.master_ports(), pic.slave_ports()], pic, irq };
            for (chip, vector, icw3) in [(0, 0x30, 4), (1, 0x38, 2)] {
                bench.out(chip, 0, 0x11);
                bench.out(chip, 1, vector);
                bench.out(chip, 1, icw3);
                bench.out(chip, 1, icw4);
                bench.out(chip, 1, 0);
            }
            bench
        }
        fn out(&self, chip: usize, offset: u64, value: u64) {
            self.ports[chip].write(offset, 1, value);
        }
        fn isr(&self, chip: usize) -> u64 {
            self.out(chip, 0, 0x0b);
            self.ports[chip].read(0, 1)
        }
        fn irr(&self, chip: usize) -> u64 {
            self.out(chip, 0, 0x0a);
            self.ports[chip].read(0, 1)
        }
        fn pulse(&self, pin: u32) {
            self.pic.set_irq(pin, true);
            self.pic.set_irq(pin, false);
        }
    }

    #[test]
    fn edge_interrupt_and_eoi() {
        let b = Bench::new(1);
        b.pic.set_irq(4, true);
        assert!(b.irq.level(0));
        assert_eq!(b.irr(0), 0x10);
        assert_eq!(b.pic.acknowledge(), 0x34);
        assert!(!b.irq.level(0));
        assert_eq!((b.irr(0), b.isr(0)), (0, 0x10));
        b.pic.set_irq(4, false);
        b.pic.set_irq(4, true);
        assert!(!b.irq.level(0), "in service: not again before EOI");
        b.out(0, 0, 0x20);
        assert!(b.irq.level(0));
    }

    #[test]
    fn priorities_nest() {
        let b = Bench::new(1);
        b.pulse(5);
        assert_eq!(b.pic.acknowledge(), 0x35);
        b.pulse(6);
        assert!(!b.pic.output(), "lower than what is in service");
        b.pulse(1);
        assert!(b.pic.output());
        assert_eq!(b.pic.acknowledge(), 0x31);
        b.out(0, 0, 0x20);
        assert_eq!(b.isr(0), 0x20, "the most urgent one ended");
        b.out(0, 0, 0x65);
        assert_eq!(b.isr(0), 0);
        assert_eq!(b.pic.acknowledge(), 0x36);
    }

    #[test]
    fn cascade_takes_the_slaves_vector() {
        let b = Bench::new(1);
        b.pulse(12);
        assert_eq!(b.pic.acknowledge(), 0x3c);
        assert_eq!((b.isr(0), b.isr(1)), (4, 0x10));
        b.pulse(8);
        assert!(!b.pic.output(), "fully nested: the slave waits for the master's EOI");
        b.out(0, 0, 0x20);
        assert_eq!(b.pic.acknowledge(), 0x38);
        b.out(1, 0, 0x20);
        b.out(1, 0, 0x20);
        b.out(0, 0, 0x20);
        assert_eq!((b.isr(0), b.isr(1)), (0, 0));
        assert!(!b.pic.output());
    }

    #[test]
    fn special_fully_nested_mode_lets_the_slave_interrupt_itself() {
        let b = Bench::new(0x11);
        b.pulse(12);
        assert_eq!(b.pic.acknowledge(), 0x3c);
        b.pulse(8);
        assert_eq!(b.pic.acknowledge(), 0x38);
    }

    #[test]
    fn spurious_interrupts_are_not_in_service() {
        let b = Bench::new(1);
        b.pulse(3);
        b.out(0, 1, 0x08);
        assert_eq!(b.pic.acknowledge(), 0x37);
        assert_eq!(b.isr(0), 0);
        b.pulse(9);
        b.out(1, 1, 0x02);
        assert_eq!(b.pic.acknowledge(), 0x3f);
        assert_eq!((b.isr(0), b.isr(1)), (4, 0), "the master cannot know");
    }

    #[test]
    fn level_triggered_inputs_follow_elcr() {
        let b = Bench::new(1);
        let elcr = b.pic.elcr_ports();
        elcr.write(0, 1, 0xff);
        elcr.write(1, 1, 0xff);
        assert_eq!((elcr.read(0, 1), elcr.read(1, 1)), (0xf8, 0xde));
        b.pic.set_irq(10, true);
        assert_eq!(b.pic.acknowledge(), 0x3a);
        b.out(1, 0, 0x20);
        b.out(0, 0, 0x20);
        assert!(b.pic.output(), "still high: asks again");
        b.pic.set_irq(10, false);
        assert_eq!(b.irr(1), 0);
    }

    #[test]
    fn automatic_eoi_and_rotation() {
        let b = Bench::new(3);
        b.out(0, 0, 0x80);
        b.pulse(3);
        b.pulse(4);
        assert_eq!(b.pic.acknowledge(), 0x33);
        assert_eq!(b.isr(0), 0);
        b.pulse(3);
        assert_eq!(b.pic.acknowledge(), 0x34, "after 3 was served it is the least urgent");
        assert_eq!(b.pic.acknowledge(), 0x33);
        // Two requests at the slave: its output must make two edges.
        b.pulse(10);
        b.pulse(11);
        assert_eq!(b.pic.acknowledge(), 0x3a);
        assert_eq!(b.pic.acknowledge(), 0x3b);
        assert!(!b.pic.output());
    }

    #[test]
    fn rotate_on_eoi_and_set_priority() {
        let b = Bench::new(1);
        b.pulse(1);
        b.pic.acknowledge();
        b.out(0, 0, 0xa0);
        b.pulse(1);
        b.pulse(7);
        assert_eq!(b.pic.acknowledge(), 0x37);
        b.out(0, 0, 0x20);
        b.out(0, 0, 0xc0 | 7);
        b.pulse(0);
        assert_eq!(b.pic.acknowledge(), 0x30, "priority set to the default again");
        b.out(0, 0, 0xe0);
        assert_eq!(b.pic.acknowledge(), 0x31);
    }

    #[test]
    fn special_mask_mode_admits_lower_priorities() {
        let b = Bench::new(1);
        b.pulse(1);
        b.pic.acknowledge();
        b.pulse(5);
        b.out(0, 1, 0x02);
        assert!(!b.pic.output());
        b.out(0, 0, 0x68);
        assert!(b.pic.output());
        assert_eq!(b.pic.acknowledge(), 0x35);
        b.out(0, 0, 0x48);
        assert_eq!(b.isr(0), 0x22);
    }

    #[test]
    fn poll_acknowledges() {
        let b = Bench::new(1);
        b.out(0, 0, 0x0c);
        assert_eq!(b.ports[0].read(0, 1), 0);
        b.pulse(6);
        b.out(0, 0, 0x0c);
        assert_eq!(b.ports[0].read(0, 1), 0x86);
        assert_eq!(b.isr(0), 0x40);
    }

    #[test]
    fn initialisation_clears_masks_and_edges() {
        let b = Bench::new(1);
        b.out(0, 1, 0xff);
        assert_eq!(b.ports[0].read(1, 1), 0xff);
        b.pic.set_irq(3, true);
        b.out(0, 0, 0x13);
        b.out(0, 1, 0x47);
        b.out(0, 1, 0x01);
        assert_eq!(b.ports[0].read(1, 1), 0);
        assert!(!b.pic.output(), "the edge is forgotten");
        b.pic.set_irq(3, false);
        b.pulse(3);
        assert_eq!(b.pic.acknowledge(), 0x43, "single: no ICW3, the vector's low bits are the input");
    }

    #[test]
    fn another_request_makes_a_new_edge_at_the_output() {
        let b = Bench::new(3);
        b.pulse(3);
        b.pulse(4);
        b.irq.clear();
        b.pic.acknowledge();
        assert_eq!(b.irq.history(), [(0, false), (0, true)]);
    }

    #[test]
    fn reset_equals_new_and_state_moves() {
        let b = Bench::new(3);
        b.pic.elcr_ports().write(1, 1, 0x0c);
        b.pic.set_irq(11, true);
        b.pulse(1);
        b.pic.acknowledge();
        moves_to(&*b.pic, &*Pic::new(IrqLine::unconnected()));
        b.pic.reset();
        assert_eq!(b.pic.save(), Pic::new(IrqLine::unconnected()).save());
        assert!(!b.irq.level(0));
    }

    #[test]
    fn random_accesses() {
        let b = Bench::new(1);
        let elcr = b.pic.elcr_ports();
        fuzz(&*b.pic, &[(&*b.ports[0], 2), (&*b.ports[1], 2), (&*elcr, 2)], &FakeTime::new(), 1);
    }
}
