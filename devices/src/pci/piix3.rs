//! PIIX3 ISA bridge (Intel 82371SB datasheet, order 290550), function 01.0: routes the PCI interrupts to ISA IRQs.

use super::PciFunction;
use super::config::{ConfigSpace, Identity, reg};
use crate::bus::Device;
use crate::services::{IrqLine, IrqSink};
use crate::state::{Inspector, StateError, StateValue, from_state, to_state};
use crate::wire::{Wire, locked};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex};

/// PIRQRC\[A:D\], interrupt route control (datasheet 2.3.10).
const PIRQ_ROUTE: u8 = 0x60;
/// Bit 7 of a route: not routed.
const ROUTE_OFF: u8 = 0x80;
/// ISA IRQs that a PIRQ can be routed to: 3 to 7, 9 to 12, 14 and 15.
const ROUTABLE: u16 = 0b1101_1110_1111_1000;

struct State {
    config: ConfigSpace,
    /// For each PIRQ the devices (bit by slot) that assert it.
    asserted: [u32; 4],
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    config: StateValue,
    asserted: [u32; 4],
}

fn power_on() -> ConfigSpace {
    let subsystem = (0x1af4, 0x1100);
    let identity = Identity { vendor: 0x8086, device: 0x7000, class: 0x06_0100, revision: 0, subsystem };
    let mut config = ConfigSpace::new(identity);
    // I/O, memory and mastering are always on (datasheet 2.3.3); bit 3 enables special cycles.
    config.set(reg::COMMAND, 2, 0x0007);
    config.allow(reg::COMMAND, 2, 0x0008);
    config.set(reg::STATUS, 2, 0x0200);
    // More functions follow in this slot.
    config.set(reg::HEADER_TYPE, 1, 0x80);
    config.allow(reg::INTERRUPT_LINE, 1, 0);
    // IORT, XBCS, route control, TOM, MSTAT: power-on values and writable bits of the datasheet.
    for (at, size, value, writable) in [
        (0x4c, 1, 0x4d, 0x7f),
        (0x4e, 2, 0x0003, 0x01ff),
        (PIRQ_ROUTE, 4, 0x8080_8080, 0x8f8f_8f8f),
        (0x69, 1, 0x02, 0xfe),
        (0x6a, 2, 0x0000, 0x8095),
        (0x70, 2, 0x8080, 0xcfcf),
        (0x76, 2, 0x0c0c, 0x8f8f),
        (0x78, 2, 0x0002, 0xfff3),
        (0x82, 1, 0x00, 0x0f),
        (0xa0, 1, 0x08, 0x1f),
        (0xa2, 2, 0x0000, 0x00ff),
        (0xa4, 4, 0x0000_0000, 0x2000_ffff),
        (0xa8, 1, 0x0f, 0xff),
        (0xaa, 2, 0x0000, 0x00ff),
        (0xac, 1, 0x00, 0xff),
        (0xae, 1, 0x00, 0xff),
    ] {
        config.set(at, size, value);
        config.allow(at, size, writable);
    }
    config
}

impl State {
    fn power_on() -> Self {
        Self { config: power_on(), asserted: [0; 4] }
    }

    /// The ISA IRQ that a PIRQ is routed to.
    fn route(&self, pirq: u8) -> Option<u8> {
        let route = self.config.read(PIRQ_ROUTE + pirq, 1) as u8;
        let irq = route & 0x0f;
        (route & ROUTE_OFF == 0 && ROUTABLE >> irq & 1 != 0).then_some(irq)
    }

    /// The ISA IRQs that the PIRQs assert, as a bit map.
    fn isa_levels(&self) -> u16 {
        let active = (0u8..4).zip(self.asserted).filter(|(_, devices)| *devices != 0);
        active.filter_map(|(pirq, _)| self.route(pirq)).fold(0, |levels, irq| levels | 1 << irq)
    }
}

/// The ISA bridge. As an [`IrqSink`] it takes INTA# to INTD# of all slots, see [`Piix3::intx`].
///
/// Locks: `state` is a leaf; ISA interrupts are driven after it is dropped.
pub struct Piix3 {
    isa: Vec<Wire>,
    state: Mutex<State>,
}

impl Piix3 {
    /// A bridge that drives the 16 inputs of `isa` (ISA IRQ numbers).
    pub fn new(isa: &Arc<dyn IrqSink>) -> Arc<Self> {
        let isa = (0..16).map(|irq| Wire::new(IrqLine::new(isa.clone(), irq))).collect();
        Arc::new(Self { isa, state: Mutex::new(State::power_on()) })
    }

    /// The wire for interrupt pin `pin` (1 is INTA#, as in configuration space) of device `device`.
    pub fn intx(self: &Arc<Self>, device: u8, pin: u8) -> IrqLine {
        IrqLine::new(self.clone(), u32::from(device & 0x1f) * 4 + u32::from(pin.wrapping_sub(1) & 3))
    }

    /// The ISA IRQ that interrupt pin `pin` of device `device` leads to now, for the interrupt line register.
    pub fn routed_irq(&self, device: u8, pin: u8) -> Option<u8> {
        locked(&self.state).route(pirq_of(device, pin.wrapping_sub(1)))
    }

    fn with(&self, change: impl FnOnce(&mut State)) {
        let mut state = locked(&self.state);
        change(&mut state);
        let levels = state.isa_levels();
        (0u16..).zip(&self.isa).for_each(|(irq, wire)| wire.want(levels >> irq & 1 != 0));
        drop(state);
        self.isa.iter().for_each(Wire::flush);
    }
}

/// The board's wiring: INTx# of slot n is PIRQ (n + x - 1) mod 4, with x counted from 0.
fn pirq_of(device: u8, intx: u8) -> u8 {
    device.wrapping_add(intx).wrapping_sub(1) & 3
}

impl IrqSink for Piix3 {
    fn set_irq(&self, pin: u32, level: bool) {
        let (device, intx) = ((pin >> 2 & 0x1f) as u8, (pin & 3) as u8);
        self.with(|state| {
            let devices = &mut state.asserted[usize::from(pirq_of(device, intx))];
            *devices = if level { *devices | 1 << device } else { *devices & !(1 << device) };
        });
    }
}

impl PciFunction for Piix3 {
    fn config_read(&self, offset: u8, size: u8) -> u32 {
        locked(&self.state).config.read(offset, size)
    }

    fn config_write(&self, offset: u8, size: u8, value: u32) {
        self.with(|state| state.config.write(offset, size, value));
    }
}

impl Device for Piix3 {
    fn name(&self) -> &'static str {
        "PIIX3"
    }

    fn reset(&self) {
        let Self { isa: _, state: _ } = self;
        self.with(|state| *state = State::power_on());
    }

    fn save(&self) -> StateValue {
        let State { config, asserted } = &*locked(&self.state);
        to_state(&Saved { config: config.save(), asserted: *asserted })
    }

    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        let Self { isa, state: live } = self;
        let Saved { config, asserted } = from_state(self.name(), state)?;
        let mut new = State { config: power_on(), asserted };
        new.config.restore(self.name(), &config)?;
        let levels = new.isa_levels();
        let mut live = locked(live);
        (0u16..).zip(isa).for_each(|(irq, wire)| wire.adopt(levels >> irq & 1 != 0));
        *live = new;
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        let state = locked(&self.state);
        let State { config: _, asserted } = &*state;
        for (pirq, devices) in (0u8..4).zip(asserted) {
            let route = state.route(pirq).map_or("none".to_owned(), |irq| irq.to_string());
            let name = format!("pirq_{}", char::from(b'a' + pirq));
            out.field(&name, format_args!("irq {route}, asserted by slots {devices:#010x}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::{FakeIrq, Random, moves_to, same_after_restore};

    fn bridge() -> (Arc<Piix3>, Arc<FakeIrq>) {
        let irq = FakeIrq::new();
        let sink: Arc<dyn IrqSink> = irq.clone();
        (Piix3::new(&sink), irq)
    }

    #[test]
    fn routes_and_shares() {
        let (piix, irq) = bridge();
        let (a, b) = (piix.intx(2, 1), piix.intx(6, 1));
        a.set(true);
        assert!(irq.history().is_empty(), "not routed after reset");
        piix.config_write(0x60, 4, 0x0b0b_0a0a);
        assert_eq!(piix.routed_irq(2, 1), Some(10), "slot 2 INTA# is PIRQB");
        assert!(irq.level(10));
        b.set(true);
        a.set(false);
        assert!(irq.level(10), "the other device still asserts it");
        b.set(false);
        assert!(!irq.level(10));
        piix.intx(2, 2).set(true);
        assert!(irq.level(11), "INTB# is the next PIRQ");
        piix.config_write(0x62, 1, 0x05);
        assert!(irq.level(5) && !irq.level(11), "moved while asserted");
        piix.config_write(0x62, 1, 0x08);
        assert!(!irq.level(5), "IRQ 8 cannot be chosen");
    }

    #[test]
    fn identity_and_multifunction() {
        let (piix, _) = bridge();
        assert_eq!(piix.config_read(0, 4), 0x7000_8086);
        assert_eq!(piix.config_read(0x0c, 4) >> 16 & 0xff, 0x80);
        assert_eq!(piix.config_read(0x60, 4), 0x8080_8080);
    }

    #[test]
    fn reset_equals_new_state_moves_and_random_accesses() {
        let (piix, irq) = bridge();
        piix.config_write(0x60, 4, 0x0b0b_0a0a);
        piix.intx(3, 1).set(true);
        let (other, other_irq) = bridge();
        moves_to(&*piix, &*other);
        assert!(other_irq.history().is_empty(), "a restored level is no edge");
        other.intx(3, 1).set(false);
        assert_eq!(other_irq.history(), [(11, false)]);
        let mut random = Random::new(11);
        for _ in 0..5000 {
            piix.config_write(random.next() as u8 & 0xfc, 4, random.next() as u32);
            piix.set_irq(random.next() as u32, random.below(2) == 0);
        }
        same_after_restore(&*piix);
        piix.reset();
        assert_eq!(piix.save(), bridge().0.save());
        assert!((0..16).all(|n| !irq.level(n)));
    }
}
