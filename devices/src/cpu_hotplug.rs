//! Processors that come and go while the guest runs, as QEMU's PC tells ACPI of them: a block of ports by which the guest picks a
//! processor, looks whether it is there, came or is to go, and gives it back (docs/specs/acpi_cpu_hotplug.rst of QEMU, the
//! modern interface). General purpose event 2 has the guest look at it.

use crate::acpi_pm::AcpiPm;
use crate::bus::{AccessSizes, Device, RegisterBlock};
use crate::guest_error;
use crate::state::{Inspector, StateError, StateValue, from_state, to_state};
use crate::wire::{Hook, locked};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex};

/// Where a PC has the block.
pub const BASE: u16 = 0xaf00;
/// Bytes of the block.
pub const LEN: u32 = 12;
/// The general purpose event that something happened.
pub const GPE: u8 = 2;

/// Registers.
mod reg {
    /// Written: the processor that the others are about.
    pub const SELECT: u64 = 0;
    /// Read: its state; written: what the guest has done.
    pub const STATUS: u64 = 4;
    /// Written: what [`DATA`] means.
    pub const COMMAND: u64 = 5;
    /// Data of commands.
    pub const DATA: u64 = 8;
}

/// Bits of the status.
mod status {
    pub const PRESENT: u8 = 1 << 0;
    pub const CAME: u8 = 1 << 1;
    pub const GOES: u8 = 1 << 2;
    /// Written: the guest gives it back.
    pub const EJECT: u8 = 1 << 3;
}

/// Commands.
mod command {
    /// Go to the next processor with something new; data is its number.
    pub const NEXT: u8 = 0;
    /// Data is the event of a report to come (ACPI 6.3.5), or its status.
    pub const OST_EVENT: u8 = 1;
    pub const OST_STATUS: u8 = 2;
    /// Data is the APIC ID.
    pub const APIC_ID: u8 = 3;
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Slot {
    present: bool,
    came: bool,
    goes: bool,
    /// It was asked for, whether the guest has read so or not.
    wanted: bool,
    ost_event: u32,
    ost_status: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Regs {
    slots: Vec<Slot>,
    selected: u32,
    command: u8,
}

/// What the guest says of a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// It has let go of the processor.
    Ejected(u32),
    /// What became of an event: the processor, the event, and a status (ACPI 6.3.5.1).
    Report(u32, u32, u32),
}

/// The block. Locks: `regs` is a leaf.
pub struct CpuHotplug {
    pm: Arc<AcpiPm>,
    apic_ids: Vec<u32>,
    /// Who hears what the guest says.
    pub said: Hook<Word>,
    regs: Mutex<Regs>,
}

impl CpuHotplug {
    /// A block for processors with these APIC IDs, the first `present` of which are there. Its events are told through `pm`.
    pub fn new(pm: Arc<AcpiPm>, apic_ids: Vec<u32>, present: usize) -> Arc<Self> {
        let slot = |index| Slot { present: index < present, ..Slot::default() };
        let slots = (0..apic_ids.len()).map(slot).collect();
        let regs = Regs { slots, selected: 0, command: command::NEXT };
        Arc::new(Self { pm, apic_ids, said: Hook::default(), regs: Mutex::new(regs) })
    }

    fn change(&self, cpu: u32, change: impl FnOnce(&mut Slot)) {
        if let Some(slot) = locked(&self.regs).slots.get_mut(cpu as usize) {
            change(slot);
        }
    }

    /// Tells the guest that processor `cpu` is there.
    pub fn added(&self, cpu: u32) {
        self.change(cpu, |slot| *slot = Slot { present: true, came: true, ..Slot::default() });
        self.pm.raise_gpe(GPE);
    }

    /// Asks the guest for processor `cpu`.
    pub fn ask(&self, cpu: u32) {
        self.change(cpu, |slot| (slot.goes, slot.wanted) = (slot.present, slot.present));
        self.pm.raise_gpe(GPE);
    }

    /// Processors that were asked for and are still there. They count as given back from now on: a reset does that.
    pub fn take_wanted(&self) -> Vec<u32> {
        let mut regs = locked(&self.regs);
        let slots = (0..).zip(&mut regs.slots).filter(|(_, slot)| slot.wanted);
        slots.map(|(cpu, slot)| (cpu, *slot = Slot::default()).0).collect()
    }

    fn write_status(&self, value: u8) {
        let ejected = {
            let mut regs = locked(&self.regs);
            let selected = regs.selected;
            let Some(slot) = regs.slots.get_mut(selected as usize) else { return };
            if value & status::CAME != 0 {
                slot.came = false;
            }
            if value & status::GOES != 0 {
                slot.goes = false;
            }
            // The first processor is the one that starts the machine.
            let ejects = value & status::EJECT != 0 && slot.present && selected != 0;
            if ejects {
                *slot = Slot::default();
            }
            ejects.then_some(selected)
        };
        if let Some(cpu) = ejected {
            self.said.call(Word::Ejected(cpu));
        } else if value & status::EJECT != 0 {
            guest_error!("ACPI: the guest gives back a processor that is not there, or the first one");
        }
    }

    fn write_command(&self, value: u8) {
        let mut regs = locked(&self.regs);
        regs.command = value;
        if value != command::NEXT {
            return;
        }
        let count = regs.slots.len();
        let from = regs.selected as usize;
        let news = |at: &usize| regs.slots.get(*at).is_some_and(|slot| slot.came || slot.goes);
        if let Some(at) = (0..count).map(|step| (from.wrapping_add(step)) % count).find(news) {
            regs.selected = at as u32;
        }
    }

    fn write_data(&self, value: u32) {
        let report = {
            let mut regs = locked(&self.regs);
            let (selected, command) = (regs.selected, regs.command);
            let Some(slot) = regs.slots.get_mut(selected as usize) else { return };
            match command {
                command::OST_EVENT => {
                    slot.ost_event = value;
                    None
                }
                command::OST_STATUS => {
                    slot.ost_status = value;
                    Some(Word::Report(selected, slot.ost_event, value))
                }
                _ => None,
            }
        };
        report.into_iter().for_each(|report| self.said.call(report));
    }
}

/// The part of a register of 32 bits that is read.
fn part(register: u32, offset: u64, size: u8) -> u64 {
    let mask = if size >= 4 { u64::from(u32::MAX) } else { (1 << (8 * size)) - 1 };
    u64::from(register) >> (8 * (offset & 3)) & mask
}

impl RegisterBlock for CpuHotplug {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let regs = locked(&self.regs);
        let slot = regs.slots.get(regs.selected as usize).copied().unwrap_or_default();
        match offset & !3 {
            reg::STATUS => {
                let bits = [(slot.present, status::PRESENT), (slot.came, status::CAME), (slot.goes, status::GOES)];
                let value = bits.iter().filter(|(set, _)| *set).fold(0, |all, (_, bit)| all | bit);
                part(value.into(), offset, size)
            }
            reg::DATA => {
                let value = match regs.command {
                    command::NEXT => regs.selected,
                    command::APIC_ID => self.apic_ids.get(regs.selected as usize).copied().unwrap_or(0),
                    _ => 0,
                };
                part(value, offset, size)
            }
            // The upper half of data, which no command has.
            _ => 0,
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        match (offset, size) {
            (reg::SELECT, 4) => locked(&self.regs).selected = value as u32,
            (reg::STATUS, 1) => self.write_status(value as u8),
            (reg::COMMAND, 1) => self.write_command(value as u8),
            (reg::DATA, 4) => self.write_data(value as u32),
            _ => guest_error!("{size}-byte write of {value:#x} to ACPI CPU hot-plug register {offset:#x}"),
        }
    }

    fn sizes(&self) -> AccessSizes {
        AccessSizes::UP_TO_DWORD
    }
}

impl Device for CpuHotplug {
    fn name(&self) -> &'static str {
        "acpi-cpu-hotplug"
    }

    fn reset(&self) {
        let Self { pm: _, apic_ids: _, said: _, regs } = self;
        let mut regs = locked(regs);
        (regs.selected, regs.command) = (0, command::NEXT);
        for slot in &mut regs.slots {
            // Whoever resets the machine takes those that are wanted (`take_wanted`).
            *slot = Slot { present: slot.present, wanted: slot.wanted, ..Slot::default() };
        }
    }

    fn save(&self) -> StateValue {
        let Self { pm: _, apic_ids: _, said: _, regs } = self;
        to_state(&*locked(regs))
    }

    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        let Self { pm: _, apic_ids, said: _, regs } = self;
        let new: Regs = from_state(self.name(), state)?;
        if new.slots.len() != apic_ids.len() {
            let reason = format!("{} processors saved, room for {}", new.slots.len(), apic_ids.len());
            return Err(StateError::Malformed { device: self.name(), reason });
        }
        *locked(regs) = new;
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        let Regs { slots, selected, command } = locked(&self.regs).clone();
        out.field("selected", selected);
        out.field("command", command);
        for (cpu, Slot { present, came, goes, wanted, ost_event, ost_status }) in slots.iter().enumerate() {
            out.group(&format!("cpu {cpu}"), |out| {
                for (key, value) in [("present", present), ("came", came), ("goes", goes), ("wanted", wanted)] {
                    out.field(key, value);
                }
                out.field("ost", format_args!("{ost_event:#x} {ost_status:#x}"));
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acpi_pm::{AcpiPmConfig, SleepTypes};
    use crate::fakes::{FakeIrq, FakePower, FakeTime, Random};
    use std::sync::Weak;

    fn rig() -> (Arc<FakeIrq>, Arc<CpuHotplug>, Arc<Mutex<Vec<Word>>>) {
        let (irq, time) = (FakeIrq::new(), FakeTime::new());
        let config = AcpiPmConfig {
            sleep_types: SleepTypes { s5: 0, s4: None, s3: None },
            timer_32_bit: false,
            sci_enabled_at_reset: true,
        };
        let power = Arc::new(FakePower::default());
        let pm = AcpiPm::new(config, irq.line(9), irq.line(0), time.clone(), &*time, power);
        pm.gpe_ports().write(2, 2, 1 << GPE);
        let (block, said) = (CpuHotplug::new(pm, vec![0, 1, 4], 1), Arc::new(Mutex::new(Vec::new())));
        let heard: Weak<_> = Arc::downgrade(&said);
        block.said.set(move |word| heard.upgrade().iter().for_each(|heard| locked(heard).push(word)));
        (irq, block, said)
    }

    #[test]
    fn a_processor_comes_and_goes() {
        let (irq, block, said) = rig();
        let status_of = |cpu: u64| {
            block.write(0, 4, cpu);
            block.read(4, 1)
        };
        assert_eq!([0, 1, 2, 9].map(status_of), [1, 0, 0, 0]);
        block.added(2);
        assert!(irq.level(9), "the guest is interrupted");
        block.write(0, 4, 0);
        block.write(5, 1, 0);
        assert_eq!((block.read(8, 4), block.read(4, 1)), (2, 3), "the one that came");
        block.write(5, 1, 3);
        assert_eq!(block.read(8, 4), 4, "its APIC ID");
        block.write(4, 1, 2);
        assert_eq!(block.read(4, 1), 1);
        block.ask(2);
        block.write(5, 1, 0);
        assert_eq!((block.read(8, 4), block.read(4, 1)), (2, 5));
        block.write(4, 1, 4);
        block.write(5, 1, 1);
        block.write(8, 4, 3);
        block.write(5, 1, 2);
        block.write(8, 4, 0x80);
        block.write(4, 1, 8);
        assert_eq!(*locked(&said), [Word::Report(2, 3, 0x80), Word::Ejected(2)]);
        assert_eq!(block.read(4, 1), 0);
        assert!(block.take_wanted().is_empty());
    }

    #[test]
    fn the_first_processor_stays_and_a_reset_takes_what_was_asked_for() {
        let (_, block, said) = rig();
        block.write(4, 1, 8);
        block.write(0, 4, 7);
        block.write(4, 1, 8);
        assert!(locked(&said).is_empty());
        block.added(1);
        block.ask(1);
        block.added(2);
        block.reset();
        block.write(0, 4, 2);
        assert_eq!(block.read(4, 1), 1, "it is no news any more");
        assert_eq!(block.take_wanted(), [1]);
        block.write(0, 4, 1);
        assert_eq!(block.read(4, 1), 0);
    }

    #[test]
    fn states_are_complete_and_no_access_is_too_odd() {
        let (_, block, _) = rig();
        let mut random = Random::new(7);
        for _ in 0..10_000 {
            let size = [1, 2, 4][random.below(3) as usize];
            let at = random.below(12) & !(u64::from(size) - 1);
            block.write(at, size, random.below(1 << 9));
            block.read(at, size);
            match random.below(16) {
                0 => block.added(random.below(5) as u32),
                1 => block.ask(random.below(5) as u32),
                _ => {}
            }
        }
        let state = block.save();
        let (_, other, _) = rig();
        other.restore(&state).unwrap();
        assert_eq!(other.save(), state);
        let none = serde_json::json!({"slots": [], "selected": 0, "command": 0});
        assert!(other.restore(&none).is_err());
    }
}
