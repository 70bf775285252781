//! Intel 440FX host bridge (82441FX datasheet, order 290549), configuration space of function 00.0.

use super::PciFunction;
use super::config::{ConfigSpace, Identity, command, reg};
use crate::bus::Device;
use crate::services::{ShadowMode, ShadowRam};
use crate::state::{Inspector, StateError, StateValue};
use crate::wire::locked;
use std::sync::{Arc, Mutex};

/// Programmable attribute map, seven registers (datasheet 3.2.17): who answers from 0xc0000 to 0xfffff.
const PAM: u8 = 0x59;
/// System management RAM control (datasheet 3.2.23).
const SMRAM: u8 = 0x72;
const SMRAM_LOCKED: u32 = 1 << 4;
const SMRAM_OPEN: u8 = 1 << 6;

/// Pieces of memory that the attribute map knows.
const SEGMENTS: usize = 13;

/// The host bridge.
///
/// Locks: `applied` is taken before `config`, which is a leaf; the shadow RAM is told with `applied` held, so that it
/// hears of changes in their order.
pub struct I440fx {
    config: Mutex<ConfigSpace>,
    shadow: Arc<dyn ShadowRam>,
    /// What the shadow RAM was told last.
    applied: Mutex<[ShadowMode; SEGMENTS]>,
}

fn power_on() -> ConfigSpace {
    let subsystem = (0x1af4, 0x1100);
    let identity = Identity { vendor: 0x8086, device: 0x1237, class: 0x06_0000, revision: 2, subsystem };
    let mut config = ConfigSpace::new(identity);
    // Memory decode and bus mastering are always on (datasheet 3.2.3).
    config.set(reg::COMMAND, 2, (command::MEMORY | command::BUS_MASTER).into());
    config.allow(reg::COMMAND, 2, 0x0100);
    config.set(reg::STATUS, 2, 0x0280);
    // The interrupt line register does not exist here.
    config.allow(reg::INTERRUPT_LINE, 1, 0);
    config.allow(PAM, 1, 0x30);
    (1..7).for_each(|i| config.allow(PAM + i, 1, 0x33));
    config.set(SMRAM, 1, 0x02);
    config.allow(SMRAM, 1, 0x78);
    config
}

/// The attributes by segment: the first register's high half is for the last segment.
fn modes(pam: [u8; 7]) -> [ShadowMode; SEGMENTS] {
    let mode = |bits: u8| ShadowMode { read_ram: bits & 1 != 0, write_ram: bits & 2 != 0 };
    let [last, others @ ..] = pam;
    let mut modes = [mode(last >> 4); SEGMENTS];
    let halves = others.into_iter().flat_map(|register| [register & 0xf, register >> 4]);
    modes.iter_mut().zip(halves).for_each(|(m, bits)| *m = mode(bits));
    modes
}

impl I440fx {
    /// The bridge after power-on: PAM sends everything to ROM and PCI, which is what `shadow` begins with.
    pub fn new(shadow: Arc<dyn ShadowRam>) -> Arc<Self> {
        Arc::new(Self { config: Mutex::new(power_on()), shadow, applied: Mutex::default() })
    }

    /// Tells the shadow RAM what changed.
    fn apply(&self) {
        let mut applied = locked(&self.applied);
        let wanted = modes(self.pam());
        for (segment, (old, new)) in applied.iter_mut().zip(wanted).enumerate() {
            if *old != new {
                *old = new;
                self.shadow.set_mode(segment, new);
            }
        }
    }

    /// The PAM registers: low half of each byte for the lower range (none in the first), bit 0 reads RAM, bit 1
    /// writes RAM.
    pub fn pam(&self) -> [u8; 7] {
        let config = locked(&self.config);
        let mut registers = [0; 7];
        (PAM..).zip(&mut registers).for_each(|(at, register)| *register = config.read(at, 1) as u8);
        registers
    }

    /// The SMRAM control register.
    pub fn smram(&self) -> u8 {
        locked(&self.config).read(SMRAM, 1) as u8
    }
}

impl PciFunction for I440fx {
    fn config_read(&self, offset: u8, size: u8) -> u32 {
        locked(&self.config).read(offset, size)
    }

    fn config_write(&self, offset: u8, size: u8, value: u32) {
        let mut config = locked(&self.config);
        config.write(offset, size, value);
        let smram = config.read(SMRAM, 1);
        if smram & SMRAM_LOCKED != 0 {
            // D_LCK closes the memory and can only be undone by a reset (datasheet 3.2.23).
            config.set(SMRAM, 1, smram & !u32::from(SMRAM_OPEN));
            config.allow(SMRAM, 1, 0);
        }
        drop(config);
        self.apply();
    }
}

impl Device for I440fx {
    fn name(&self) -> &'static str {
        "i440FX"
    }

    fn reset(&self) {
        let Self { config, shadow: _, applied: _ } = self;
        *locked(config) = power_on();
        self.apply();
    }

    fn save(&self) -> StateValue {
        let Self { config, shadow: _, applied: _ } = self;
        locked(config).save()
    }

    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        // The shadow RAM restores its own contents and modes.
        let Self { config, shadow: _, applied } = self;
        let mut new = power_on();
        new.restore(self.name(), state)?;
        if new.read(SMRAM, 1) & SMRAM_LOCKED != 0 {
            new.allow(SMRAM, 1, 0);
        }
        let mut applied = locked(applied);
        *locked(config) = new;
        *applied = modes(self.pam());
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        out.field("pam", format_args!("{:02x?}", self.pam()));
        out.field("smram", format_args!("{:#04x}", self.smram()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::{FakeShadow, Random, moves_to, same_after_restore};

    fn bridge() -> (Arc<I440fx>, Arc<FakeShadow>) {
        let shadow = Arc::new(FakeShadow::default());
        (I440fx::new(shadow.clone()), shadow)
    }

    #[test]
    fn the_shadow_hears_of_changes() {
        let (bridge, shadow) = bridge();
        let take = || std::mem::take(&mut *locked(&shadow.0));
        bridge.config_write(0x59, 1, 0x30);
        assert_eq!(take(), [(12, true, true)]);
        bridge.config_write(0x5a, 2, 0x2013);
        assert_eq!(take(), [(0, true, true), (1, true, false), (3, false, true)]);
        bridge.config_write(0x5a, 1, 0x13);
        assert_eq!(take(), []);
        let (other, silent) = self::bridge();
        moves_to(&*bridge, &*other);
        assert!(locked(&silent.0).is_empty());
        other.config_write(0x59, 1, 0x10);
        assert_eq!(*locked(&silent.0), [(12, true, false)]);
        bridge.reset();
        assert_eq!(take(), [(0, false, false), (1, false, false), (3, false, false), (12, false, false)]);
    }

    #[test]
    fn pam_is_stored() {
        let bridge = bridge().0;
        assert_eq!(bridge.pam(), [0; 7]);
        bridge.config_write(0x58, 4, 0xffff_ffff);
        bridge.config_write(0x5c, 4, 0x1122_3300);
        assert_eq!(bridge.pam(), [0x30, 0x33, 0x33, 0x00, 0x33, 0x22, 0x11]);
        assert_eq!(bridge.config_read(4, 2), 6);
        bridge.config_write(4, 2, 0);
        assert_eq!(bridge.config_read(4, 2), 6);
    }

    #[test]
    fn smram_locks_until_reset() {
        let bridge = bridge().0;
        bridge.config_write(0x72, 1, 0x48);
        assert_eq!(bridge.smram(), 0x4a);
        bridge.config_write(0x72, 1, 0x58);
        assert_eq!(bridge.smram(), 0x1a);
        bridge.config_write(0x72, 1, 0x48);
        assert_eq!(bridge.smram(), 0x1a);
        let other = self::bridge().0;
        moves_to(&*bridge, &*other);
        other.config_write(0x72, 1, 0x48);
        assert_eq!(other.smram(), 0x1a, "locked over there too");
        bridge.reset();
        assert_eq!(bridge.save(), self::bridge().0.save());
        bridge.config_write(0x72, 1, 0x48);
        assert_eq!(bridge.smram(), 0x4a);
    }

    #[test]
    fn random_accesses() {
        let (bridge, mut random) = (bridge().0, Random::new(10));
        for _ in 0..5000 {
            bridge.config_write(random.next() as u8 & 0xfc, 4, random.next() as u32);
        }
        same_after_restore(&*bridge);
    }
}
