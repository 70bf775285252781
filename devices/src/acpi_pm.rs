//! ACPI fixed hardware as the PIIX4 power management function has it (82371AB datasheet 7.2; ACPI specification 4.8):
//! PM1 event and control registers, PM timer, general purpose events, and the SMI command ports.

use crate::bus::{AccessSizes, Device, RegisterBlock, Registers};
use crate::services::{Clock, IrqLine, PowerEvent, PowerSink, TimerService, TimerTarget};
use crate::state::{Inspector, StateError, StateValue, from_state, to_state};
use crate::wire::{TimerSlot, Wire, locked};
use crate::{guest_error, unimp};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, Weak};

/// PM timer clock in Hz (ACPI 4.8.2.1).
pub const PM_TIMER_HZ: u64 = 3_579_545;
/// What is written to the SMI command port to switch ACPI mode on (`ACPI_ENABLE` in the FADT).
pub const ACPI_ENABLE: u8 = 0xf1;
/// What is written to the SMI command port to switch ACPI mode off (`ACPI_DISABLE` in the FADT).
pub const ACPI_DISABLE: u8 = 0xf0;
/// Bytes of the PM register block; PIIX4 decodes 64.
pub const PM_BLOCK_LEN: u32 = 64;
/// Bytes of the GPE0 block: two of status, two of enable.
pub const GPE_BLOCK_LEN: u32 = 4;

/// PM1 status and enable bits (ACPI 4.8.3.1).
mod pm1 {
    pub const TIMER: u16 = 1 << 0;
    pub const GLOBAL: u16 = 1 << 5;
    pub const POWER_BUTTON: u16 = 1 << 8;
    pub const SLEEP_BUTTON: u16 = 1 << 9;
    pub const RTC: u16 = 1 << 10;
    pub const WAKE: u16 = 1 << 15;
    /// Status bits that can be written clear; the bus master bit 4 too.
    pub const STATUS: u16 = TIMER | 1 << 4 | GLOBAL | POWER_BUTTON | SLEEP_BUTTON | RTC | WAKE;
    pub const ENABLE: u16 = TIMER | GLOBAL | POWER_BUTTON | SLEEP_BUTTON | RTC;
}

/// PM1 control bits (ACPI 4.8.3.2).
mod control {
    pub const SCI_EN: u16 = 1 << 0;
    pub const GLOBAL_RELEASE: u16 = 1 << 2;
    pub const SLEEP_TYPE_SHIFT: u16 = 10;
    pub const SLEEP_ENABLE: u16 = 1 << 13;
    /// What keeps its value: SCI_EN, BM_RLD, SLP_TYP.
    pub const STORED: u16 = SCI_EN | 1 << 1 | 7 << SLEEP_TYPE_SHIFT;
}

/// The sleep types that the machine's ACPI tables declare (`\_S3`, `\_S4`, `\_S5`): values of SLP_TYP, 0 to 7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SleepTypes {
    /// Soft off.
    pub s5: u8,
    /// Hibernation, which for the hardware is soft off.
    pub s4: Option<u8>,
    /// Suspend to RAM.
    pub s3: Option<u8>,
}

/// Fixed properties of the block.
#[derive(Clone, Copy, Debug)]
pub struct AcpiPmConfig {
    /// Values of SLP_TYP.
    pub sleep_types: SleepTypes,
    /// The PM timer has 32 bits instead of 24 (FADT flag TMR_VAL_EXT).
    pub timer_32_bit: bool,
    /// ACPI mode is on after reset: for machines without firmware, whose FADT names no SMI command port.
    pub sci_enabled_at_reset: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Regs {
    pm1_status: u16,
    pm1_enable: u16,
    pm1_control: u16,
    gpe_status: u16,
    gpe_enable: u16,
    /// PM timer ticks at which the timer's top bit changes next, counted since the machine started.
    next_carry: u64,
    /// Ports 0xb2 and 0xb3 as last written.
    smi_command: u8,
    smi_data: u8,
    /// A write to the command port raises an SMI (PIIX4 DEVACTB bit 25).
    smi_on_command: bool,
}

impl Regs {
    fn power_on(config: &AcpiPmConfig, next_carry: u64) -> Self {
        Self {
            pm1_status: 0,
            pm1_enable: 0,
            pm1_control: if config.sci_enabled_at_reset { control::SCI_EN } else { 0 },
            gpe_status: 0,
            gpe_enable: 0,
            next_carry,
            smi_command: 0,
            smi_data: 0,
            smi_on_command: false,
        }
    }

    fn sci(&self) -> bool {
        let event = self.pm1_status & self.pm1_enable & pm1::ENABLE != 0 || self.gpe_status & self.gpe_enable != 0;
        event && self.pm1_control & control::SCI_EN != 0
    }

    /// Notes a change of the timer's top bit that has happened by `ticks`.
    fn catch_up(&mut self, ticks: u64, half: u64) {
        if ticks >= self.next_carry {
            self.pm1_status |= pm1::TIMER;
            self.next_carry = carry_after(ticks, half);
        }
    }
}

/// The next multiple of `half` after `ticks`: where the timer's top bit changes.
fn carry_after(ticks: u64, half: u64) -> u64 {
    ticks - ticks % half + half
}

fn ticks_at(ns: u64) -> u64 {
    (u128::from(ns) * u128::from(PM_TIMER_HZ) / 1_000_000_000) as u64
}

fn ns_of(ticks: u64) -> u64 {
    u64::try_from((u128::from(ticks) * 1_000_000_000).div_ceil(u128::from(PM_TIMER_HZ))).unwrap_or(u64::MAX - 1)
}

/// What follows from an access, to be done without the lock.
enum Then {
    Nothing,
    Power(PowerEvent),
    Smi,
}

/// The fixed hardware.
///
/// Locks: `regs` is a leaf; SCI, SMI, timer and power sink are called after it is dropped.
pub struct AcpiPm {
    config: AcpiPmConfig,
    sci: Wire,
    smi: IrqLine,
    timer: TimerSlot,
    clock: Arc<dyn Clock>,
    power: Arc<dyn PowerSink>,
    regs: Mutex<Regs>,
}

impl AcpiPm {
    /// The block with its system control interrupt `sci` (ISA IRQ 9, level-triggered) and `smi` to the processors.
    pub fn new(
        config: AcpiPmConfig,
        sci: IrqLine,
        smi: IrqLine,
        clock: Arc<dyn Clock>,
        timers: &dyn TimerService,
        power: Arc<dyn PowerSink>,
    ) -> Arc<Self> {
        let regs = Regs::power_on(&config, carry_after(ticks_at(clock.now_ns()), half_period(&config)));
        Arc::new_cyclic(|this: &Weak<Self>| Self {
            config,
            sci: Wire::new(sci),
            smi,
            timer: TimerSlot::new(timers.create(this.clone(), 0)),
            clock,
            power,
            regs: Mutex::new(regs),
        })
    }

    /// The PM block ([`PM_BLOCK_LEN`] ports, 0x600 on a PC): PM1 events at 0, PM1 control at 4, PM timer at 8.
    pub fn pm_ports(self: &Arc<Self>) -> Registers {
        Arc::new(PmPorts(self.clone()))
    }

    /// The GPE0 block ([`GPE_BLOCK_LEN`] ports, 0xafe0 on a PC).
    pub fn gpe_ports(self: &Arc<Self>) -> Registers {
        Arc::new(GpePorts(self.clone()))
    }

    /// The SMI command and data ports (0xb2 and 0xb3).
    pub fn smi_ports(self: &Arc<Self>) -> Registers {
        Arc::new(SmiPorts(self.clone()))
    }

    /// The user presses the power button (`system_powerdown`).
    pub fn press_power_button(&self) {
        self.with(|regs, _| regs.pm1_status |= pm1::POWER_BUTTON);
    }

    /// The machine wakes from suspend.
    pub fn wake(&self) {
        self.with(|regs, _| regs.pm1_status |= pm1::WAKE);
    }

    /// General purpose event `bit` (0 to 15) happened.
    pub fn raise_gpe(&self, bit: u8) {
        self.with(|regs, _| regs.gpe_status |= 1u16.checked_shl(bit.into()).unwrap_or(0));
    }

    /// Whether a write to the SMI command port raises an SMI (PIIX4 configuration register DEVACTB, bit 25).
    pub fn set_smi_on_command(&self, enabled: bool) {
        self.with(|regs, _| regs.smi_on_command = enabled);
    }

    fn with<R>(&self, change: impl FnOnce(&mut Regs, u64) -> R) -> R {
        let ticks = ticks_at(self.clock.now_ns());
        let half = half_period(&self.config);
        let mut regs = locked(&self.regs);
        regs.catch_up(ticks, half);
        let result = change(&mut regs, ticks);
        self.sci.want(regs.sci());
        self.timer.want(self.deadline(&regs));
        drop(regs);
        self.sci.flush();
        self.timer.flush();
        result
    }

    /// The host needs to look at the timer only if its carry would interrupt.
    fn deadline(&self, regs: &Regs) -> Option<u64> {
        let quiet = regs.pm1_enable & pm1::TIMER == 0 || regs.pm1_status & pm1::TIMER != 0;
        (!quiet).then(|| ns_of(regs.next_carry))
    }

    fn carry_out(&self, then: Then) {
        match then {
            Then::Nothing => {}
            Then::Power(event) => self.power.request(event),
            Then::Smi => self.smi.pulse(),
        }
    }

    fn write_control(&self, regs: &mut Regs, value: u16) -> Then {
        if value & control::GLOBAL_RELEASE != 0 {
            unimp!("ACPI global lock release: no firmware waits for it");
        }
        regs.pm1_control = value & control::STORED;
        if value & control::SLEEP_ENABLE == 0 {
            return Then::Nothing;
        }
        let sleep_type = (value >> control::SLEEP_TYPE_SHIFT & 7) as u8;
        let SleepTypes { s5, s4, s3 } = self.config.sleep_types;
        if sleep_type == s5 || s4 == Some(sleep_type) {
            Then::Power(PowerEvent::PowerOff)
        } else if s3 == Some(sleep_type) {
            Then::Power(PowerEvent::Suspend)
        } else {
            guest_error!("ACPI sleep type {sleep_type} is none that the tables declare");
            Then::Nothing
        }
    }

    /// Writes the 16-bit register at `offset`, of which `mask` was addressed.
    fn write_pm(&self, regs: &mut Regs, ticks: u64, offset: u64, value: u16, mask: u16) -> Then {
        match offset {
            0 => {
                regs.pm1_status &= !(value & mask & pm1::STATUS);
                regs.next_carry = carry_after(ticks, half_period(&self.config));
            }
            2 => regs.pm1_enable = (regs.pm1_enable & !mask | value & mask) & pm1::ENABLE,
            4 => return self.write_control(regs, regs.pm1_control & !mask | value & mask),
            8 | 10 => guest_error!("write to the ACPI PM timer, which cannot be written"),
            _ => unimp!("write of {value:#x} to ACPI PM register {offset:#x}"),
        }
        Then::Nothing
    }
}

/// Ticks between two changes of the timer's top bit.
fn half_period(config: &AcpiPmConfig) -> u64 {
    if config.timer_32_bit { 1 << 31 } else { 1 << 23 }
}

/// Splits what is at byte `offset` out of the 32-bit register there.
fn part(register: u32, offset: u64, size: u8) -> u64 {
    let shifted = u64::from(register) >> (8 * (offset & 3));
    if size >= 4 { shifted } else { shifted & ((1 << (8 * size)) - 1) }
}

/// An access as writes to 16-bit registers: `(register offset, value, mask)`.
fn halves(offset: u64, size: u8, value: u64) -> impl Iterator<Item = (u64, u16, u16)> {
    let first = offset & !1;
    let shift = 8 * (offset & 1);
    let mask: u64 = if size >= 4 { 0xffff_ffff } else { (1 << (8 * size)) - 1 };
    let (value, mask) = (value << shift, mask << shift);
    (0..2).map(move |i| (first + 2 * i, (value >> (16 * i)) as u16, (mask >> (16 * i)) as u16)).filter(|w| w.2 != 0)
}

struct PmPorts(Arc<AcpiPm>);

impl RegisterBlock for PmPorts {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let pm = &self.0;
        if offset & !3 == 8 {
            // Clock sources read this often; it depends on nothing but time.
            let mask = if pm.config.timer_32_bit { u32::MAX } else { 0x00ff_ffff };
            return part(ticks_at(pm.clock.now_ns()) as u32 & mask, offset, size);
        }
        let register = pm.with(|regs, _| match offset & !3 {
            0 => u32::from(regs.pm1_enable) << 16 | u32::from(regs.pm1_status),
            4 => regs.pm1_control.into(),
            _ => 0,
        });
        part(register, offset, size)
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        for (register, value, mask) in halves(offset, size, value) {
            let then = self.0.with(|regs, ticks| self.0.write_pm(regs, ticks, register, value, mask));
            self.0.carry_out(then);
        }
    }

    fn sizes(&self) -> AccessSizes {
        AccessSizes::UP_TO_DWORD
    }
}

struct GpePorts(Arc<AcpiPm>);

impl RegisterBlock for GpePorts {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let register = self.0.with(|regs, _| u32::from(regs.gpe_enable) << 16 | u32::from(regs.gpe_status));
        part(register, offset, size)
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        for (register, value, mask) in halves(offset, size, value) {
            self.0.with(|regs, _| match register {
                0 => regs.gpe_status &= !(value & mask),
                _ => regs.gpe_enable = regs.gpe_enable & !mask | value & mask,
            });
        }
    }

    fn sizes(&self) -> AccessSizes {
        AccessSizes::UP_TO_DWORD
    }
}

struct SmiPorts(Arc<AcpiPm>);

impl RegisterBlock for SmiPorts {
    fn read(&self, offset: u64, _size: u8) -> u64 {
        let regs = locked(&self.0.regs);
        if offset == 0 { regs.smi_command.into() } else { regs.smi_data.into() }
    }

    fn write(&self, offset: u64, _size: u8, value: u64) {
        let value = value as u8;
        let then = self.0.with(|regs, _| {
            if offset != 0 {
                regs.smi_data = value;
                return Then::Nothing;
            }
            regs.smi_command = value;
            match value {
                ACPI_ENABLE => regs.pm1_control |= control::SCI_EN,
                ACPI_DISABLE => regs.pm1_control &= !control::SCI_EN,
                _ => {}
            }
            if regs.smi_on_command { Then::Smi } else { Then::Nothing }
        });
        self.0.carry_out(then);
    }
}

impl TimerTarget for AcpiPm {
    fn timer_fired(&self, _tag: u32, _now_ns: u64) {
        self.timer.fired();
        self.with(|_, _| ());
    }
}

impl Device for AcpiPm {
    fn name(&self) -> &'static str {
        "acpi-pm"
    }

    fn reset(&self) {
        self.with(|regs, ticks| *regs = Regs::power_on(&self.config, carry_after(ticks, half_period(&self.config))));
    }

    /// The state as of now: what the timer did since the guest looked last is in it.
    fn save(&self) -> StateValue {
        self.with(|regs, _| to_state(&*regs))
    }

    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        let Self { config: _, sci, smi: _, timer, clock: _, power: _, regs } = self;
        let new: Regs = from_state(self.name(), state)?;
        let mut regs = locked(regs);
        *regs = new;
        sci.adopt(new.sci());
        timer.want(self.deadline(&new));
        drop(regs);
        timer.flush();
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        let Regs {
            pm1_status,
            pm1_enable,
            pm1_control,
            gpe_status,
            gpe_enable,
            next_carry,
            smi_command,
            smi_data,
            smi_on_command,
        } = *locked(&self.regs);
        for (key, value) in [
            ("pm1_status", pm1_status),
            ("pm1_enable", pm1_enable),
            ("pm1_control", pm1_control),
            ("gpe_status", gpe_status),
            ("gpe_enable", gpe_enable),
        ] {
            out.field(key, format_args!("{value:#06x}"));
        }
        out.field("next_carry_ns", ns_of(next_carry));
        out.field("smi_command", format_args!("{smi_command:#04x}"));
        out.field("smi_data", format_args!("{smi_data:#04x}"));
        out.field("smi_on_command", smi_on_command);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::{FakeIrq, FakePower, FakeTime, fuzz, moves_to};

    struct Bench {
        time: Arc<FakeTime>,
        irq: Arc<FakeIrq>,
        power: Arc<FakePower>,
        pm: Arc<AcpiPm>,
        ports: Registers,
        gpe: Registers,
        smi: Registers,
    }

    const SCI: u32 = 9;
    const SMI: u32 = 100;

    fn bench(timer_32_bit: bool) -> Bench {
        let (time, irq, power) = (FakeTime::new(), FakeIrq::new(), Arc::new(FakePower::default()));
        let sleep_types = SleepTypes { s5: 0, s4: Some(2), s3: Some(1) };
        let config = AcpiPmConfig { sleep_types, timer_32_bit, sci_enabled_at_reset: false };
        let pm = AcpiPm::new(config, irq.line(SCI), irq.line(SMI), time.clone(), &*time, power.clone());
        Bench { ports: pm.pm_ports(), gpe: pm.gpe_ports(), smi: pm.smi_ports(), time, irq, power, pm }
    }

    #[test]
    fn the_timer_counts_exactly() {
        let b = bench(false);
        b.time.advance_to(1_000_000_000);
        assert_eq!(b.ports.read(8, 4), PM_TIMER_HZ);
        assert_eq!(b.ports.read(9, 1), PM_TIMER_HZ >> 8 & 0xff);
        b.time.advance_to(5_000_000_000);
        assert_eq!(b.ports.read(8, 4), (5 * PM_TIMER_HZ) & 0xff_ffff);
        let wide = bench(true);
        wide.time.advance_to(5_000_000_000);
        assert_eq!(wide.ports.read(8, 4), 5 * PM_TIMER_HZ);
    }

    #[test]
    fn a_carry_of_the_timer_interrupts() {
        let b = bench(false);
        b.smi.write(0, 1, ACPI_ENABLE.into());
        assert_eq!(b.ports.read(4, 2), 1);
        b.ports.write(2, 2, 1);
        let carry = ns_of(1 << 23);
        b.time.advance_to(carry - 1);
        assert!(!b.irq.level(SCI));
        b.time.advance_to(carry);
        assert!(b.irq.level(SCI));
        assert_eq!(b.ports.read(0, 2), 1);
        b.ports.write(0, 2, 1);
        assert!(!b.irq.level(SCI));
        b.time.advance_to(ns_of(1 << 24));
        assert_eq!(b.irq.rises(SCI), 2);
    }

    #[test]
    fn no_host_timer_while_nobody_asks() {
        let b = bench(false);
        assert_eq!(b.time.next_deadline(), None);
        b.time.advance_to(10_000_000_000);
        assert_eq!(b.ports.read(0, 2), 1, "the status bit is there all the same");
    }

    #[test]
    fn power_button_needs_enable_and_acpi_mode() {
        let b = bench(false);
        b.ports.write(2, 2, 0x100);
        b.pm.press_power_button();
        assert!(!b.irq.level(SCI));
        b.smi.write(0, 1, ACPI_ENABLE.into());
        assert!(b.irq.level(SCI));
        assert_eq!(b.ports.read(0, 4), 0x0100_0100);
        b.ports.write(1, 1, 1);
        assert_eq!(b.ports.read(0, 2), 0);
        assert!(!b.irq.level(SCI));
        b.smi.write(0, 1, ACPI_DISABLE.into());
        assert_eq!(b.ports.read(4, 2), 0);
    }

    #[test]
    fn sleep_types() {
        let b = bench(false);
        b.ports.write(4, 2, 0x2001);
        b.ports.write(4, 2, 0x2401);
        b.ports.write(4, 2, 0x2801);
        b.ports.write(4, 2, 0x3c01);
        b.ports.write(4, 2, 0x0001);
        let off = PowerEvent::PowerOff;
        assert_eq!(b.power.events(), [off, PowerEvent::Suspend, off]);
        assert_eq!(b.ports.read(4, 2), 1, "SLP_EN reads as 0");
        b.pm.wake();
        assert_eq!(b.ports.read(0, 2), 0x8000);
    }

    #[test]
    fn a_byte_write_can_sleep() {
        let b = bench(false);
        b.ports.write(5, 1, 0x20);
        assert_eq!(b.power.events(), [PowerEvent::PowerOff]);
    }

    #[test]
    fn general_purpose_events() {
        let b = bench(false);
        b.ports.write(4, 2, 1);
        b.gpe.write(2, 2, 0x0002);
        b.pm.raise_gpe(2);
        assert!(!b.irq.level(SCI));
        b.pm.raise_gpe(1);
        assert!(b.irq.level(SCI));
        assert_eq!(b.gpe.read(0, 4), 0x0002_0006);
        b.gpe.write(0, 1, 2);
        assert!(!b.irq.level(SCI));
        b.pm.raise_gpe(200);
        assert_eq!(b.gpe.read(0, 2), 4);
    }

    #[test]
    fn smi_only_when_enabled() {
        let b = bench(false);
        b.smi.write(1, 1, 0x77);
        b.smi.write(0, 1, 0x12);
        assert_eq!((b.smi.read(0, 1), b.smi.read(1, 1)), (0x12, 0x77));
        assert_eq!(b.irq.rises(SMI), 0);
        b.pm.set_smi_on_command(true);
        b.smi.write(0, 1, 0x12);
        assert_eq!(b.irq.rises(SMI), 1);
    }

    #[test]
    fn reset_equals_new_and_state_moves() {
        let b = bench(false);
        b.smi.write(0, 1, ACPI_ENABLE.into());
        b.ports.write(2, 2, 1);
        b.gpe.write(2, 2, 0xffff);
        let other = bench(false);
        moves_to(&*b.pm, &*other.pm);
        other.time.advance_to(ns_of(1 << 23));
        assert!(other.irq.level(SCI));
        b.pm.reset();
        assert_eq!(b.pm.save(), bench(false).pm.save());
        assert_eq!(b.time.next_deadline(), None);
    }

    #[test]
    fn random_accesses() {
        let b = bench(false);
        fuzz(&*b.pm, &[(&*b.ports, 64), (&*b.gpe, 4), (&*b.smi, 2)], &b.time, 6);
    }
}
