//! Configuration mechanism #1 (ports 0xcf8 to 0xcff) with the reset control register 0xcf9 in between
//! (PCI 3.0 3.2.2.3.2; 82371SB datasheet 2.5.4.1).

use super::{DevFn, PciBus};
use crate::bus::{AccessSizes, Device, RegisterBlock};
use crate::services::{PowerEvent, PowerSink};
use crate::state::{Inspector, StateError, StateValue, from_state, to_state};
use crate::wire::locked;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex};

/// Bit 31 of the address register: data accesses become configuration cycles.
const ENABLE: u32 = 1 << 31;
/// Bits of the address register that exist: enable, bus, device, function, register.
const ADDRESS_MASK: u32 = 0x80ff_fffc;
/// Reset control: bit 2 resets on its rising edge, bit 1 chooses a hard reset.
const RESET_CPU: u8 = 1 << 2;
const HARD_RESET: u8 = 1 << 1;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Regs {
    address: u32,
    reset_control: u8,
}

/// The eight ports from 0xcf8.
///
/// Locks: `regs` is a leaf; functions and power sink are called after it is dropped.
pub struct ConfigMechanism {
    pci: Arc<PciBus>,
    power: Arc<dyn PowerSink>,
    regs: Mutex<Regs>,
}

impl ConfigMechanism {
    /// The mechanism for `pci` as bus 0.
    pub fn new(pci: Arc<PciBus>, power: Arc<dyn PowerSink>) -> Arc<Self> {
        Arc::new(Self { pci, power, regs: Mutex::new(Regs::default()) })
    }

    /// The bus, function and register that a data access at `offset` (4 to 7) addresses. Those on other buses than 0 are
    /// what the specification calls type 1, and bridges pass them on.
    fn target(&self, offset: u64) -> Option<(Arc<PciBus>, DevFn, u8)> {
        let address = locked(&self.regs).address;
        let [register, place, bus, _] = address.to_le_bytes();
        if address & ENABLE == 0 {
            return None;
        }
        let bus = if bus == 0 { self.pci.clone() } else { self.pci.behind(bus)? };
        Some((bus, DevFn(place), register | (offset & 3) as u8))
    }

    fn write_reset_control(&self, value: u8) {
        let mut regs = locked(&self.regs);
        let rises = value & !regs.reset_control & RESET_CPU != 0;
        regs.reset_control = value & (HARD_RESET | RESET_CPU);
        drop(regs);
        if rises {
            self.power.request(PowerEvent::Reset);
        }
    }
}

impl RegisterBlock for ConfigMechanism {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let ones = u64::from(u32::MAX >> (32 - 8 * u32::from(size.clamp(1, 4))));
        match (offset, size) {
            (4.., _) => self.target(offset).map_or(ones, |(bus, place, r)| bus.config_read(place, r, size).into()),
            // The address register answers to 32-bit accesses only.
            (0, 4) => locked(&self.regs).address.into(),
            (1, 1) => locked(&self.regs).reset_control.into(),
            _ => ones,
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        match (offset, size) {
            (4.., _) => {
                if let Some((bus, place, register)) = self.target(offset) {
                    bus.config_write(place, register, size, value as u32);
                }
            }
            (0, 4) => locked(&self.regs).address = value as u32 & ADDRESS_MASK,
            (1, 1) => self.write_reset_control(value as u8),
            _ => {}
        }
    }

    fn sizes(&self) -> AccessSizes {
        AccessSizes::UP_TO_DWORD
    }
}

impl Device for ConfigMechanism {
    fn name(&self) -> &'static str {
        "pci-config"
    }

    fn reset(&self) {
        let Self { pci: _, power: _, regs } = self;
        *locked(regs) = Regs::default();
    }

    fn save(&self) -> StateValue {
        let Self { pci: _, power: _, regs } = self;
        to_state(&*locked(regs))
    }

    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        let Self { pci: _, power: _, regs } = self;
        *locked(regs) = from_state(self.name(), state)?;
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        let Regs { address, reset_control } = *locked(&self.regs);
        out.field("address", format_args!("{address:#010x}"));
        out.field("reset_control", format_args!("{reset_control:#04x}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::{FakePower, FakeTime, fuzz, moves_to};
    use crate::pci::i440fx::I440fx;

    fn mechanism() -> (Arc<ConfigMechanism>, Arc<FakePower>) {
        let (pci, power) = (PciBus::new(), Arc::new(FakePower::default()));
        pci.insert(DevFn::new(0, 0), I440fx::new(std::sync::Arc::new(crate::fakes::FakeShadow::default()))).unwrap();
        (ConfigMechanism::new(pci, power.clone()), power)
    }

    #[test]
    fn linux_finds_mechanism_1_and_the_host_bridge() {
        let (m, _) = mechanism();
        m.write(3, 1, 0x01);
        m.write(0, 4, 0x8000_0000);
        assert_eq!(m.read(0, 4), 0x8000_0000);
        assert_eq!(m.read(4, 4), 0x1237_8086);
        assert_eq!(m.read(6, 2), 0x1237);
        m.write(0, 4, 0x8000_0008);
        assert_eq!(m.read(7, 1), 0x06, "base class: bridge");
        m.write(0, 4, 0x8000_ff00);
        assert_eq!(m.read(4, 2), 0xffff, "nobody there");
        m.write(0, 4, 0x8001_0000);
        assert_eq!(m.read(4, 4), 0xffff_ffff, "no such bus");
        m.write(0, 4, 0x0000_0000);
        assert_eq!(m.read(4, 4), 0xffff_ffff, "not enabled");
    }

    #[test]
    fn writes_reach_the_function() {
        let (m, _) = mechanism();
        m.write(0, 4, 0x8000_0058);
        m.write(5, 1, 0x30);
        assert_eq!(m.read(4, 4), 0x0000_3000);
    }

    #[test]
    fn reset_control_acts_on_the_rising_edge() {
        let (m, power) = mechanism();
        m.write(1, 1, 0x02);
        assert!(power.events().is_empty());
        m.write(1, 1, 0x06);
        m.write(1, 1, 0x06);
        assert_eq!(power.events(), [PowerEvent::Reset]);
        assert_eq!(m.read(1, 1), 0x06);
        assert_eq!(m.read(0, 4), 0, "a byte at 0xcf9 is not the address register");
    }

    #[test]
    fn reset_equals_new_state_moves_and_random_accesses() {
        let (m, _) = mechanism();
        m.write(0, 4, 0x8000_1234);
        m.write(1, 1, 2);
        moves_to(&*m, &*mechanism().0);
        m.reset();
        assert_eq!(m.save(), mechanism().0.save());
        fuzz(&*m, &[(&*m, 8)], &FakeTime::new(), 9);
    }
}
