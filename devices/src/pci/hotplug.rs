//! Slots whose devices come and go while the guest runs, as QEMU's PC tells ACPI of them: a block of ports that says which slots
//! of a bus have got a device or are to give one back, and takes the guest's word that it has let go of one
//! (docs/specs/acpi_pci_hotplug.rst of QEMU). General purpose event 1 has the guest look at it.

use crate::acpi_pm::AcpiPm;
use crate::bus::{AccessSizes, Device, RegisterBlock};
use crate::guest_error;
use crate::state::{Inspector, StateError, StateValue, from_state, to_state};
use crate::wire::{Hook, locked};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex};

/// Where a PC has the block.
pub const BASE: u16 = 0xae00;
/// Bytes of the block.
pub const LEN: u32 = 0x18;
/// The general purpose event that something happened.
pub const GPE: u8 = 1;

/// Registers, 32 bits each.
mod reg {
    /// Slots that got a device; reading forgets it.
    pub const UP: u64 = 0x00;
    /// Slots that are to give their device back; reading forgets it.
    pub const DOWN: u64 = 0x04;
    /// Written: slots whose device the guest has let go of.
    pub const EJECT: u64 = 0x08;
    /// Slots whose device can be taken.
    pub const REMOVABLE: u64 = 0x0c;
    /// Number of the bus that the others are about.
    pub const SELECT: u64 = 0x10;
    /// Number of an interface by the firmware's count: there are none.
    pub const INDEX: u64 = 0x14;
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Regs {
    up: u32,
    down: u32,
    /// Slots that were asked for their device, whether the guest has read so or not.
    wanted: u32,
    selected: u32,
}

/// The block, for bus 0. Locks: `regs` is a leaf.
pub struct PciHotplug {
    pm: Arc<AcpiPm>,
    /// Slots whose devices belong to the board and stay.
    fixed: u32,
    /// Who hears that the guest has let go of a slot's device.
    pub ejected: Hook<u8>,
    regs: Mutex<Regs>,
}

fn bit(slot: u8) -> u32 {
    1u32.checked_shl(slot.into()).unwrap_or(0)
}

impl PciHotplug {
    /// The block with its events told through `pm`. Devices in the slots `fixed` stay for ever.
    pub fn new(pm: Arc<AcpiPm>, fixed: &[u8]) -> Arc<Self> {
        let fixed = fixed.iter().fold(0, |bits, slot| bits | bit(*slot));
        Arc::new(Self { pm, fixed, ejected: Hook::default(), regs: Mutex::default() })
    }

    /// Whether the device in `slot` can be taken.
    pub fn removable(&self, slot: u8) -> bool {
        bit(slot) & !self.fixed != 0
    }

    /// Tells the guest that there is a device in `slot`.
    pub fn added(&self, slot: u8) {
        {
            let mut regs = locked(&self.regs);
            regs.up |= bit(slot);
            regs.down &= !bit(slot);
            regs.wanted &= !bit(slot);
        }
        self.pm.raise_gpe(GPE);
    }

    /// Asks the guest for the device in `slot`.
    pub fn ask(&self, slot: u8) {
        {
            let mut regs = locked(&self.regs);
            regs.down |= bit(slot);
            regs.wanted |= bit(slot);
        }
        self.pm.raise_gpe(GPE);
    }

    /// Slots that were asked for their device and still have it. They count as given back from now on: a reset does that.
    pub fn take_wanted(&self) -> Vec<u8> {
        let wanted = std::mem::take(&mut locked(&self.regs).wanted);
        (0..32).filter(|slot| wanted & bit(*slot) != 0).collect()
    }

    fn eject(&self, slots: u32) {
        // One at a time: the guest writes the slot that it is done with.
        for slot in (0..32).filter(|slot| slots & bit(*slot) != 0) {
            if !self.removable(slot) {
                guest_error!("ACPI: the guest lets go of PCI slot {slot}, which stays");
                continue;
            }
            locked(&self.regs).wanted &= !bit(slot);
            self.ejected.call(slot);
        }
    }
}

impl RegisterBlock for PciHotplug {
    fn read(&self, offset: u64, _size: u8) -> u64 {
        let mut regs = locked(&self.regs);
        // Only bus 0 has slots of the kind.
        let here = regs.selected == 0;
        match offset & !3 {
            reg::UP if here => std::mem::take(&mut regs.up).into(),
            reg::DOWN if here => std::mem::take(&mut regs.down).into(),
            reg::REMOVABLE if here => (!self.fixed).into(),
            reg::SELECT => regs.selected.into(),
            _ => 0,
        }
    }

    fn write(&self, offset: u64, _size: u8, value: u64) {
        let value = value as u32;
        match offset & !3 {
            reg::SELECT => locked(&self.regs).selected = value,
            reg::EJECT if locked(&self.regs).selected == 0 => self.eject(value),
            reg::INDEX => {}
            other => guest_error!("write of {value:#x} to ACPI PCI hot-plug register {other:#x}"),
        }
    }

    fn sizes(&self) -> AccessSizes {
        AccessSizes::DWORD
    }
}

impl Device for PciHotplug {
    fn name(&self) -> &'static str {
        "acpi-pci-hotplug"
    }

    fn reset(&self) {
        let Self { pm: _, fixed: _, ejected: _, regs } = self;
        let mut regs = locked(regs);
        // Whoever resets the machine takes those (`take_wanted`).
        *regs = Regs { wanted: regs.wanted, ..Regs::default() };
    }

    fn save(&self) -> StateValue {
        let Self { pm: _, fixed: _, ejected: _, regs } = self;
        to_state(&*locked(regs))
    }

    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        let Self { pm: _, fixed: _, ejected: _, regs } = self;
        let new = from_state(self.name(), state)?;
        *locked(regs) = new;
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        let Regs { up, down, wanted, selected } = *locked(&self.regs);
        for (key, value) in [("up", up), ("down", down), ("wanted", wanted), ("selected", selected)] {
            out.field(key, format_args!("{value:#010x}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acpi_pm::{AcpiPmConfig, SleepTypes};
    use crate::fakes::{FakeIrq, FakePower, FakeTime};
    use std::sync::Weak;

    struct Rig {
        irq: Arc<FakeIrq>,
        pm: Arc<AcpiPm>,
        block: Arc<PciHotplug>,
        ejected: Arc<Mutex<Vec<u8>>>,
    }

    fn rig() -> Rig {
        let (irq, time) = (FakeIrq::new(), FakeTime::new());
        let config = AcpiPmConfig {
            sleep_types: SleepTypes { s5: 0, s4: None, s3: None },
            timer_32_bit: false,
            sci_enabled_at_reset: true,
        };
        let pm = AcpiPm::new(config, irq.line(9), irq.line(0), time.clone(), &*time, Arc::new(FakePower::default()));
        // The guest wants to hear of the event.
        pm.gpe_ports().write(2, 2, 1 << GPE);
        let (block, ejected) = (PciHotplug::new(pm.clone(), &[0, 1]), Arc::new(Mutex::new(Vec::new())));
        let heard: Weak<_> = Arc::downgrade(&ejected);
        block.ejected.set(move |slot| heard.upgrade().iter().for_each(|heard| locked(heard).push(slot)));
        Rig { irq, pm, block, ejected }
    }

    #[test]
    fn a_device_comes_and_goes() {
        let Rig { irq, pm, block, ejected } = rig();
        assert_eq!([0, 4].map(|at| block.read(at, 4)), [0, 0]);
        block.added(5);
        assert!(irq.level(9), "the guest is interrupted");
        assert_eq!(pm.gpe_ports().read(0, 2), 1 << GPE);
        pm.gpe_ports().write(0, 2, 1 << GPE);
        assert!(!irq.level(9));
        assert_eq!([block.read(0, 4), block.read(0, 4)], [1 << 5, 0], "told once");
        block.ask(5);
        assert!(irq.level(9));
        assert_eq!([block.read(4, 4), block.read(4, 4)], [1 << 5, 0]);
        block.write(8, 4, 1 << 5);
        assert_eq!(*locked(&ejected), [5]);
        assert!(block.take_wanted().is_empty());
    }

    #[test]
    fn what_belongs_to_the_board_stays() {
        let Rig { block, ejected, .. } = rig();
        assert_eq!(block.read(0xc, 4), 0xffff_fffc);
        assert!(!block.removable(1) && block.removable(2) && !block.removable(40));
        block.write(8, 4, 3);
        assert!(locked(&ejected).is_empty());
        // Another bus has nothing.
        block.added(3);
        block.write(0x10, 4, 7);
        block.write(8, 4, 1 << 3);
        assert_eq!((block.read(0, 4), block.read(0x10, 4)), (0, 7));
        assert!(locked(&ejected).is_empty());
    }

    #[test]
    fn a_reset_gives_back_what_was_asked_for() {
        let Rig { block, .. } = rig();
        block.ask(4);
        block.added(6);
        block.reset();
        assert_eq!([0, 4].map(|at| block.read(at, 4)), [0, 0]);
        assert_eq!(block.take_wanted(), [4]);
        assert!(block.take_wanted().is_empty());
    }

    #[test]
    fn states_are_complete() {
        let Rig { block, .. } = rig();
        block.ask(4);
        block.added(6);
        block.write(0x10, 4, 2);
        let state = block.save();
        let other = rig().block;
        other.restore(&state).unwrap();
        assert_eq!(other.save(), state);
        assert!(other.restore(&serde_json::json!({ "up": 1 })).is_err());
    }

    #[test]
    fn no_access_is_too_odd() {
        let Rig { block, .. } = rig();
        let mut seed = 1u64;
        for _ in 0..10_000 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let (at, value) = ((seed >> 40) & 0x1f, seed >> 16);
            block.write(at, 4, value);
            block.read(at, 4);
            match value & 7 {
                0 => block.ask((seed >> 50) as u8),
                1 => block.added((seed >> 50) as u8),
                _ => {}
            }
        }
        block.write(0x10, 4, 0);
        assert_eq!(block.read(0xc, 4), 0xffff_fffc);
    }
}
