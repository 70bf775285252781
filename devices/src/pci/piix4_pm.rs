//! PIIX4 power management function (Intel 82371AB datasheet, order 290562, chapter 7), function 01.3: puts the ACPI
//! PM registers of [`AcpiPm`] on the bus where the guest wants them.

use super::PciFunction;
use super::bar::Window;
use super::config::{ConfigSpace, Identity, reg};
use crate::acpi_pm::{AcpiPm, PM_BLOCK_LEN};
use crate::bus::{Bus, Device, Space};
use crate::state::{Inspector, StateError, StateValue};
use crate::wire::locked;
use std::sync::{Arc, Mutex};

/// Base of the PM registers, 64 ports (datasheet 7.1.10).
const PM_BASE: u8 = 0x40;
/// Device activity B; bit 25 lets the SMI command port raise SMIs (datasheet 7.1.16).
const DEVICE_ACTIVITY_B: u8 = 0x58;
const APMC_EN: u32 = 1 << 25;
/// Miscellaneous power management; bit 0 enables the PM registers (datasheet 7.1.24).
const PM_MISC: u8 = 0x80;
const PM_IO_ENABLE: u32 = 1;

/// The power management function.
///
/// Locks: `config` is a leaf; the bus and [`AcpiPm`] are called after it is dropped.
pub struct Piix4Pm {
    pm: Arc<AcpiPm>,
    window: Window,
    /// The processors have system management mode.
    smm: bool,
    config: Mutex<ConfigSpace>,
}

fn power_on(smm: bool) -> ConfigSpace {
    let subsystem = (0x1af4, 0x1100);
    let identity = Identity { vendor: 0x8086, device: 0x7113, class: 0x06_8000, revision: 3, subsystem };
    let mut config = ConfigSpace::new(identity);
    config.set(reg::STATUS, 2, 0x0280);
    config.allow(reg::COMMAND, 2, 0x0001);
    config.set(reg::INTERRUPT_PIN, 1, 1);
    for (at, size, value, writable) in [
        (PM_BASE, 4, 1, 0xffc0),
        (0x44, 4, 0, u32::MAX),
        (0x48, 4, 0, u32::MAX),
        (0x4c, 4, 0, u32::MAX),
        (0x50, 4, 0, u32::MAX),
        (0x54, 4, 0, u32::MAX),
        (DEVICE_ACTIVITY_B, 4, 0, u32::MAX),
        (0x5c, 4, 0, u32::MAX),
        (0x60, 4, 0, u32::MAX),
        (0x64, 4, 0, u32::MAX),
        (0x68, 4, 0, u32::MAX),
        (0x6c, 4, 0, u32::MAX),
        (0x70, 4, 0, u32::MAX),
        (0x74, 4, 0, u32::MAX),
        (0x78, 4, 0, u32::MAX),
        (0x7c, 4, 0, u32::MAX),
        (PM_MISC, 1, 0, PM_IO_ENABLE),
        (0x90, 4, 1, 0xfff0),
        (0xd2, 4, 0, 0xffff_ff0f),
    ] {
        config.set(at, size, value);
        config.allow(at, size, writable);
    }
    if !smm {
        // Firmware that finds this set takes system management mode for set up, and leaves it alone.
        config.set(DEVICE_ACTIVITY_B, 4, APMC_EN);
    }
    config
}

fn pm_base(config: &ConfigSpace) -> Option<u64> {
    let base = u64::from(config.read(PM_BASE, 4) & 0xffc0);
    (config.read(PM_MISC, 1) & PM_IO_ENABLE != 0 && base != 0).then_some(base)
}

impl Piix4Pm {
    /// The function that moves the registers of `pm` on `bus`. They are nowhere until enabled: firmware, or the program
    /// in its place, writes PMBASE (0x40) and PMREGMISC (0x80).
    /// `smm`: the processors have system management mode; without it the command port raises no SMI.
    pub fn new(bus: &Arc<Bus>, pm: Arc<AcpiPm>, smm: bool) -> Arc<Self> {
        let window = Window::new(bus, Space::Port, PM_BLOCK_LEN.into(), "acpi-pm", pm.pm_ports());
        Arc::new(Self { pm, window, smm, config: Mutex::new(power_on(smm)) })
    }

    /// Where the PM registers are now.
    pub fn base(&self) -> Option<u64> {
        self.window.base()
    }

    fn apply(&self) {
        self.window.sync(|| pm_base(&locked(&self.config)));
        let smi = locked(&self.config).read(DEVICE_ACTIVITY_B, 4) & APMC_EN != 0;
        self.pm.set_smi_on_command(smi && self.smm);
    }
}

impl PciFunction for Piix4Pm {
    fn config_read(&self, offset: u8, size: u8) -> u32 {
        locked(&self.config).read(offset, size)
    }

    fn config_write(&self, offset: u8, size: u8, value: u32) {
        locked(&self.config).write(offset, size, value);
        self.apply();
    }
}

impl Device for Piix4Pm {
    fn name(&self) -> &'static str {
        "PIIX4_PM"
    }

    fn reset(&self) {
        let Self { pm: _, window: _, smm: _, config } = self;
        *locked(config) = power_on(self.smm);
        self.apply();
    }

    fn save(&self) -> StateValue {
        let Self { pm: _, window: _, smm: _, config } = self;
        locked(config).save()
    }

    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        let Self { pm: _, window: _, smm: _, config } = self;
        let mut new = power_on(self.smm);
        new.restore(self.name(), state)?;
        *locked(config) = new;
        self.apply();
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        let Self { pm: _, window, smm: _, config } = self;
        out.field("base", window.base().map_or("none".to_owned(), |base| format!("{base:#06x}")));
        out.field("pm_misc", format_args!("{:#04x}", locked(config).read(PM_MISC, 1)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acpi_pm::{AcpiPmConfig, SleepTypes};
    use crate::fakes::{FakeIrq, FakePower, FakeTime, Random, moves_to, same_after_restore};
    use crate::pci::mechanism::ConfigMechanism;
    use crate::pci::{DevFn, PciBus};
    use crate::services::PowerEvent;

    fn bench() -> (Arc<Bus>, Arc<Piix4Pm>, Arc<FakePower>) {
        let (bus, time, irq, power) =
            (Arc::new(Bus::new()), FakeTime::new(), FakeIrq::new(), Arc::new(FakePower::default()));
        let sleep_types = SleepTypes { s5: 0, s4: None, s3: None };
        let config = AcpiPmConfig { sleep_types, timer_32_bit: false, sci_enabled_at_reset: false };
        let pm = AcpiPm::new(config, irq.line(9), irq.line(100), time.clone(), &*time, power.clone());
        (bus.clone(), Piix4Pm::new(&bus, pm, true), power)
    }

    #[test]
    fn registers_appear_where_firmware_puts_them() {
        let (bus, pm, power) = bench();
        assert!(bus.ranges().is_empty());
        pm.config_write(0x40, 4, 0x0601);
        assert_eq!(pm.base(), None);
        pm.config_write(0x80, 1, 1);
        assert_eq!(pm.base(), Some(0x600));
        bus.pio_write(0x604, 2, 0x2000);
        assert_eq!(power.events(), [PowerEvent::PowerOff]);
        pm.config_write(0x40, 4, 0xb000);
        assert_eq!(pm.base(), Some(0xb000));
        pm.reset();
        assert!(bus.ranges().is_empty());
        assert_eq!(pm.save(), bench().1.save());
    }

    #[test]
    fn the_map_changes_from_within_an_access_to_it() {
        let (bus, pm, power) = bench();
        let pci = PciBus::new();
        pci.insert(DevFn::new(1, 3), pm).unwrap();
        bus.register_pio(0xcf8, 8, "pci-config", ConfigMechanism::new(pci, power)).unwrap();
        bus.pio_write(0xcf8, 4, 0x8000_0b40);
        bus.pio_write(0xcfc, 4, 0x0601);
        bus.pio_write(0xcf8, 4, 0x8000_0b80);
        bus.pio_write(0xcfc, 1, 1);
        assert_eq!(bus.pio_read(0x608, 4), 0, "the timer, at time 0");
        bus.pio_write(0xcfc, 1, 0);
        assert_eq!(bus.pio_read(0x608, 4), u32::MAX);
    }

    #[test]
    fn state_moves_with_its_window_and_random_accesses() {
        let (_, pm, _) = bench();
        pm.config_write(0x40, 4, 0x0600);
        pm.config_write(0x80, 1, 1);
        let (bus, other, _) = bench();
        moves_to(&*pm, &*other);
        assert_eq!(bus.ranges().len(), 1);
        let mut random = Random::new(12);
        for _ in 0..5000 {
            pm.config_write(random.next() as u8 & 0xfc, 4, random.next() as u32);
        }
        same_after_restore(&*pm);
    }
}
