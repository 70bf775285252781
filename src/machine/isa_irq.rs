//! How the sixteen ISA interrupts reach both kinds of interrupt controller, and how the HPET takes two of them over.

use brolga_devices::services::{IrqLine, IrqSink};
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
