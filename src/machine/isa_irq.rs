//! How the sixteen ISA interrupts reach both kinds of interrupt controller, and how the HPET takes two of them over.

use brolga_devices::bus::Device;
use brolga_devices::services::{IrqLine, IrqSink};
use brolga_devices::state::{Inspector, StateError, StateValue, from_state, to_state};
use brolga_devices::wire::{Wire, locked};
use std::sync::{Arc, Mutex};

/// ISA interrupt of the 8254.
pub const TIMER: u32 = 0;
/// ISA interrupt of the real-time clock.
pub const RTC: u32 = 8;
/// The slave 8259's place on the master: no device has it.
const CASCADE: u32 = 2;
/// I/O APIC input of the 8254, as the MADT's override says.
const TIMER_GSI: u32 = 2;

/// Fan-out of ISA interrupts: to the 8259 pair, and to the I/O APIC.
pub struct IsaInterrupts {
    pic: Arc<dyn IrqSink>,
    ioapic: Arc<dyn IrqSink>,
}

impl IsaInterrupts {
    /// Connects both controllers.
    pub fn new(pic: Arc<dyn IrqSink>, ioapic: Arc<dyn IrqSink>) -> Arc<Self> {
        Arc::new(Self { pic, ioapic })
    }
}

impl IrqSink for IsaInterrupts {
    fn set_irq(&self, pin: u32, level: bool) {
        if pin == CASCADE {
            return;
        }
        self.pic.set_irq(pin, level);
        self.ioapic.set_irq(if pin == TIMER { TIMER_GSI } else { pin }, level);
    }
}

/// Cuts 8254 and real-time clock off their interrupts while the HPET replaces them (HPET specification 2.3.5).
pub struct LegacyReplacement {
    inputs: Mutex<[bool; 3]>,
    timer: Wire,
    rtc: Wire,
}

/// Input of [`LegacyReplacement`]: the 8254.
pub const FROM_TIMER: u32 = 0;
/// Input of [`LegacyReplacement`]: the real-time clock.
pub const FROM_RTC: u32 = 1;
/// Input of [`LegacyReplacement`]: the HPET replaces both.
pub const REPLACED: u32 = 2;

impl LegacyReplacement {
    /// Sits before `isa`.
    pub fn new(isa: &Arc<IsaInterrupts>) -> Arc<Self> {
        let wire = |pin| Wire::new(IrqLine::new(isa.clone(), pin));
        Arc::new(Self { inputs: Mutex::new([false; 3]), timer: wire(TIMER), rtc: wire(RTC) })
    }

    /// The wire to input `pin`.
    pub fn line(self: &Arc<Self>, pin: u32) -> IrqLine {
        IrqLine::new(self.clone(), pin)
    }
}

impl IrqSink for LegacyReplacement {
    fn set_irq(&self, pin: u32, level: bool) {
        {
            let mut inputs = locked(&self.inputs);
            if let Some(input) = inputs.get_mut(pin as usize) {
                *input = level;
            }
            let [timer, rtc, replaced] = *inputs;
            self.timer.want(timer && !replaced);
            self.rtc.want(rtc && !replaced);
        }
        self.timer.flush();
        self.rtc.flush();
    }
}

/// Its inputs are part of a saved machine: the devices behind them take their own levels over without telling of them.
impl Device for LegacyReplacement {
    fn name(&self) -> &'static str {
        "hpet-legacy-replacement"
    }

    /// It follows its inputs.
    fn reset(&self) {}

    fn save(&self) -> StateValue {
        to_state(&*locked(&self.inputs))
    }

    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        let restored: [bool; 3] = from_state(self.name(), state)?;
        let mut inputs = locked(&self.inputs);
        *inputs = restored;
        let [timer, rtc, replaced] = restored;
        self.timer.adopt(timer && !replaced);
        self.rtc.adopt(rtc && !replaced);
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        let [timer, rtc, replaced] = *locked(&self.inputs);
        out.field("timer", timer);
        out.field("rtc", rtc);
        out.field("replaced", replaced);
    }
}

/// Several devices on one interrupt: it is asserted while one of them asserts it.
pub struct SharedInterrupt {
    /// One bit for each device.
    inputs: Mutex<u32>,
    output: Wire,
}

impl SharedInterrupt {
    /// Drives `output`.
    pub fn new(output: IrqLine) -> Arc<Self> {
        Arc::new(Self { inputs: Mutex::new(0), output: Wire::new(output) })
    }

    /// The wire for device `index` (0 to 31).
    pub fn line(self: &Arc<Self>, index: u32) -> IrqLine {
        IrqLine::new(self.clone(), index)
    }
}

impl IrqSink for SharedInterrupt {
    fn set_irq(&self, pin: u32, level: bool) {
        {
            let mut inputs = locked(&self.inputs);
            let bit = 1u32.checked_shl(pin).unwrap_or(0);
            *inputs = if level { *inputs | bit } else { *inputs & !bit };
            self.output.want(*inputs != 0);
        }
        self.output.flush();
    }
}

/// See [`LegacyReplacement`].
impl Device for SharedInterrupt {
    fn name(&self) -> &'static str {
        "shared-interrupt"
    }

    /// It follows its inputs.
    fn reset(&self) {}

    fn save(&self) -> StateValue {
        to_state(&*locked(&self.inputs))
    }

    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        let restored: u32 = from_state(self.name(), state)?;
        let mut inputs = locked(&self.inputs);
        *inputs = restored;
        self.output.adopt(restored != 0);
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        out.field("inputs", format_args!("{:#x}", *locked(&self.inputs)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Log(Mutex<Vec<(u32, bool)>>);

    impl IrqSink for Log {
        fn set_irq(&self, pin: u32, level: bool) {
            locked(&self.0).push((pin, level));
        }
    }

    impl Log {
        fn take(&self) -> Vec<(u32, bool)> {
            std::mem::take(&mut *locked(&self.0))
        }
    }

    #[test]
    fn isa_interrupts_reach_both_controllers() {
        let (pic, ioapic) = (Arc::new(Log::default()), Arc::new(Log::default()));
        let isa = IsaInterrupts::new(pic.clone(), ioapic.clone());
        for pin in [0, 2, 4] {
            isa.set_irq(pin, true);
        }
        assert_eq!(pic.take(), [(0, true), (4, true)]);
        assert_eq!(ioapic.take(), [(2, true), (4, true)], "the timer is at input 2, the cascade nowhere");
    }

    #[test]
    fn replaced_sources_are_cut_off_and_come_back_at_their_level() {
        let pic = Arc::new(Log::default());
        let isa = IsaInterrupts::new(pic.clone(), Arc::new(Log::default()));
        let gate = LegacyReplacement::new(&isa);
        let (timer, rtc, replaced) = (gate.line(FROM_TIMER), gate.line(FROM_RTC), gate.line(REPLACED));
        timer.set(true);
        assert_eq!(pic.take(), [(0, true)]);
        replaced.set(true);
        assert_eq!(pic.take(), [(0, false)]);
        timer.pulse();
        rtc.set(true);
        assert_eq!(pic.take(), []);
        replaced.set(false);
        assert_eq!(pic.take(), [(8, true)]);
    }

    #[test]
    fn a_shared_interrupt_goes_back_to_a_saved_level_and_tells_of_the_next_edge() {
        let log = Arc::new(Log::default());
        let shared = SharedInterrupt::new(IrqLine::new(log.clone(), 4));
        let line = shared.line(0);
        let low = shared.save();
        line.set(true);
        let high = shared.save();
        log.take();
        shared.restore(&low).unwrap();
        assert_eq!(log.take(), [], "the controllers take their own view over");
        line.set(true);
        assert_eq!(log.take(), [(4, true)]);
        line.set(false);
        log.take();
        shared.restore(&high).unwrap();
        line.set(false);
        assert_eq!(log.take(), [(4, false)]);
        assert!(shared.restore(&serde_json::json!("x")).is_err());
    }

    #[test]
    fn what_the_hpet_replaces_goes_back_to_a_saved_state() {
        let pic = Arc::new(Log::default());
        let isa = IsaInterrupts::new(pic.clone(), Arc::new(Log::default()));
        let gate = LegacyReplacement::new(&isa);
        let (timer, replaced) = (gate.line(FROM_TIMER), gate.line(REPLACED));
        timer.set(true);
        let before = gate.save();
        replaced.set(true);
        let after = gate.save();
        pic.take();
        gate.restore(&before).unwrap();
        timer.set(false);
        assert_eq!(pic.take(), [(0, false)]);
        gate.restore(&after).unwrap();
        timer.set(true);
        assert_eq!(pic.take(), [], "replaced");
        replaced.set(false);
        assert_eq!(pic.take(), [(0, true)]);
    }

    #[test]
    fn a_shared_interrupt_stays_until_nobody_asserts_it() {
        let log = Arc::new(Log::default());
        let shared = SharedInterrupt::new(IrqLine::new(log.clone(), 4));
        let (a, b) = (shared.line(0), shared.line(2));
        a.set(true);
        b.set(true);
        a.set(false);
        assert_eq!(log.take(), [(4, true)]);
        b.set(false);
        assert_eq!(log.take(), [(4, false)]);
    }
}
