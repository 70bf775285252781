//! Looks at the machine's parts for monitors: PCI functions, interrupts, keys.

use super::cards::Card;
use super::inventory::Entry;
use super::{Machine, Request};
use crate::cli::config::Made;
use crate::monitor::{PciInfo, PciRegion};
use brolga_devices::i8042::Key;
use brolga_devices::pci::bar::{BarKind, Region};
use brolga_devices::pci::{Bridge, DevFn, PciBus};
use brolga_devices::virtio::balloon::VirtioBalloon;
use brolga_devices::virtio::serial::VirtioSerial;
use serde_json::json;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a PCI header (PCI 3.0 6.1).
const HEADER: u8 = 64;
/// Registers of a local APIC (SDM 3A table 11-1).
mod apic {
    pub const TPR: u64 = 0x80;
    pub const PPR: u64 = 0xa0;
    pub const LDR: u64 = 0xd0;
    pub const DFR: u64 = 0xe0;
    pub const SPURIOUS: u64 = 0xf0;
    pub const ISR: u64 = 0x100;
    pub const IRR: u64 = 0x200;
    pub const ERROR: u64 = 0x280;
    pub const ICR: u64 = 0x300;
    pub const ICR_HIGH: u64 = 0x310;
    pub const TIMER: u64 = 0x320;
    pub const THERMAL: u64 = 0x330;
    pub const COUNTER: u64 = 0x340;
    pub const LINT0: u64 = 0x350;
    pub const LINT1: u64 = 0x360;
    pub const ERROR_ENTRY: u64 = 0x370;
    pub const INITIAL: u64 = 0x380;
    pub const CURRENT: u64 = 0x390;
    pub const DIVIDE: u64 = 0x3e0;
}

fn region(region: Region) -> PciRegion {
    let (prefetch, wide) = match region.kind {
        BarKind::Io | BarKind::Rom => (false, false),
        BarKind::Memory32 { prefetchable } => (prefetchable, false),
        BarKind::Memory64 { prefetchable } => (prefetchable, true),
    };
    let Region { index, kind, size, address } = region;
    PciRegion { bar: index, io: kind == BarKind::Io, size, address, prefetch, wide }
}

impl Machine {
    /// All functions, with what they decode.
    pub(super) fn pci_functions(&self) -> Vec<PciInfo> {
        let mut all = Vec::new();
        self.functions_on(&self.pc.pci, 0, &mut all);
        all
    }

    /// Those of a bus and of the buses behind it.
    fn functions_on(&self, bus: &PciBus, number: u8, all: &mut Vec<PciInfo>) {
        for (place, function) in bus.functions() {
            all.push(PciInfo {
                bus: number,
                slot: place.device(),
                function: place.function(),
                id: self.device_at(place.device(), place.function()).filter(|_| number == 0),
                config: (0..HEADER).map(|at| function.config_read(at, 1) as u8).collect(),
                regions: function.regions().into_iter().map(region).collect(),
            });
            if let Some(Bridge { secondary, bus, .. }) = function.bridge().filter(|bridge| bridge.secondary != 0) {
                self.functions_on(&bus, secondary, all);
            }
        }
    }

    /// The id of the device on bus 0 that is at a place.
    fn device_at(&self, slot: u8, function: u8) -> Option<String> {
        let inventory = self.inventory();
        let there = |entry: &&Entry| {
            entry.seat.as_ref().is_some_and(|seat| seat.bus == 0 && seat.place == DevFn::new(slot, function))
        };
        inventory.entries.iter().find(there)?.spec.id.clone()
    }

    /// Has devices' own news told as events.
    pub(super) fn connect_events(&self, cards: &[Arc<Card>]) {
        let events = self.events.clone();
        // Where the tree of objects has it: after the processors, in the board's order.
        let at = self.pc.bus.devices().iter().position(|(name, _)| name == "rtc").unwrap_or(0);
        let path = format!("/machine/unattached/device[{}]", self.vcpus.len() + at);
        self.pc.rtc.set.set(move |offset| events.emit("RTC_CHANGE", json!({ "offset": offset, "qom-path": path })));
        self.watch_cards(cards);
        self.hear_of_processors();
        let (balloon, buses) = {
            let inventory = self.inventory();
            (inventory.balloon.clone(), inventory.serial_buses.clone())
        };
        balloon.iter().for_each(|balloon| self.watch_balloon(balloon));
        buses.iter().for_each(|(number, bus)| self.watch_serial_bus(*number, bus));
        if let Some(hotplug) = &self.pc.hotplug {
            let (pci, requests) = (self.pc.pci.clone(), self.requests.clone());
            hotplug.ejected.set(move |slot| {
                // The guest sees at once that it is gone; the rest is done by the control loop.
                (0..8).for_each(|function| drop(pci.remove(DevFn::new(slot, function))));
                let _ = requests.send(Request::Ejected(slot));
            });
        }
    }

    /// Has the control loop hear what the guest says of processors.
    pub(super) fn hear_of_processors(&self) {
        if let Some(hotplug) = &self.pc.cpu_hotplug {
            let requests = self.requests.clone();
            // Fails only when the machine is ending.
            hotplug.said.set(move |word| drop(requests.send(Request::Processor(word))));
        }
    }

    /// Has the balloon's changes told as events.
    pub(super) fn watch_balloon(&self, balloon: &VirtioBalloon) {
        let events = self.events.clone();
        balloon.changed.set(move |actual| events.emit("BALLOON_CHANGE", json!({ "actual": actual })));
    }

    /// Has it told as events when programs in the guest open and close a bus's ports.
    pub(super) fn watch_serial_bus(&self, number: usize, bus: &VirtioSerial) {
        let (machine, events) = (self.this.get().cloned().unwrap_or_default(), self.events.clone());
        bus.opened.set(move |(port, open)| {
            let Some(machine) = machine.upgrade() else { return };
            let id = {
                let inventory = machine.inventory();
                let made = Made::SerialPort { bus: number, number: port };
                inventory.entries.iter().find(|entry| entry.spec.made == made).and_then(|entry| entry.spec.id.clone())
            };
            if let Some(id) = id {
                events.emit("VSERPORT_CHANGE", json!({ "id": id, "open": open }));
            }
        });
    }

    /// How often interrupt lines were raised.
    pub(super) fn interrupts(&self) -> String {
        let mut text = String::new();
        let mut controller = |name: &str, counts: &[u64]| {
            let _ = writeln!(text, "IRQ statistics for {name}:");
            for (pin, count) in counts.iter().enumerate().filter(|(_, count)| **count != 0) {
                let _ = writeln!(text, "{pin:2}: {count}");
            }
        };
        controller("ioapic", &self.pc.ioapic.raised());
        controller("isa-i8259", &self.pc.pic.raised());
        text
    }

    /// Presses keys, and lets them go after `hold`.
    pub(super) fn press_keys(&self, keys: Vec<u16>, hold: Duration) {
        keys.iter().for_each(|key| self.pc.i8042.key(Key(*key), true));
        let i8042 = Arc::downgrade(&self.pc.i8042);
        let release = move || {
            std::thread::sleep(hold);
            let Some(i8042) = i8042.upgrade() else { return };
            keys.iter().rev().for_each(|key| i8042.key(Key(*key), false));
        };
        if let Err(error) = std::thread::Builder::new().name("keys".into()).spawn(release) {
            tracing::warn!("keys stay pressed: {error}");
        }
    }

    /// The registers of a local APIC, in QEMU's lines.
    pub(super) fn show_local_apic(&self, cpu: u32) -> Option<String> {
        if cpu as usize >= self.vcpus.len() {
            return None;
        }
        let read = |at: u64| self.pc.apics.mmio_read(cpu, at, 4) as u32;
        let mut text = format!("dumping local APIC state for CPU {cpu} \n\n");
        let entries = [
            ("LVT0", apic::LINT0),
            ("LVT1", apic::LINT1),
            ("LVTPC", apic::COUNTER),
            ("LVTERR", apic::ERROR_ENTRY),
            ("LVTTHMR", apic::THERMAL),
            ("LVTT", apic::TIMER),
        ];
        for (name, at) in entries {
            let _ = writeln!(text, "{name}\t {}", local_vector(read(at), at == apic::TIMER));
        }
        let divider = read(apic::DIVIDE);
        let shift = ((divider & 3 | divider >> 1 & 4) + 1) & 7;
        let (initial, current) = (read(apic::INITIAL), read(apic::CURRENT));
        let _ = writeln!(
            text,
            "Timer\t DCR=0x{divider:x} (divide by {}) initial_count = {initial} current_count = {current}",
            1 << shift
        );
        let spurious = read(apic::SPURIOUS);
        let on = |bit: u32| if spurious >> bit & 1 != 0 { "on" } else { "off" };
        let enabled = if spurious >> 8 & 1 != 0 { "enabled" } else { "disabled" };
        let _ =
            writeln!(text, "SPIV\t {spurious:#010x} APIC {enabled}, focus={}, spurious vec {}", on(9), spurious & 0xff);
        let (command, destination) = (read(apic::ICR), read(apic::ICR_HIGH));
        let _ = writeln!(text, "ICR\t {command:#010x} {}", interrupt_command(command));
        let _ = writeln!(text, "ICR2\t {destination:#010x}{}", interrupt_target(command, destination));
        let _ = writeln!(text, "ESR\t {:#010x}", read(apic::ERROR));
        for (name, at) in [("ISR", apic::ISR), ("IRR", apic::IRR)] {
            let bits = (0..8u64).flat_map(|i| {
                let word = read(at + 16 * i);
                (0..32u64).filter(move |bit| word >> bit & 1 != 0).map(move |bit| 32 * i + bit)
            });
            let vectors: Vec<String> = bits.map(|vector| vector.to_string()).collect();
            let _ = writeln!(text, "{name}\t {}", if vectors.is_empty() { "(none)".into() } else { vectors.join(" ") });
        }
        let [_, task, format, logical, priority] =
            [0, read(apic::TPR), read(apic::DFR) >> 28, read(apic::LDR) >> 24, read(apic::PPR)];
        let _ = writeln!(text, "\nAPR 0x00 TPR {task:#04x} DFR {format:#04x} LDR {logical:#04x} PPR {priority:#04x}");
        Some(text)
    }
}

/// The low half of an interrupt command (SDM 3A figure 11-12).
fn interrupt_command(command: u32) -> String {
    let bit = |at: u32, on: &'static str, off: &'static str| if command >> at & 1 != 0 { on } else { off };
    let whom = ["no-shorthand", "self", "all-self", "all"][(command >> 18 & 3) as usize];
    format!("{} {} {} {whom}", bit(11, "logical", "physical"), bit(15, "level", "edge"), bit(14, "assert", "de-assert"))
}

/// Whom it is for, if it says so.
fn interrupt_target(command: u32, high: u32) -> String {
    match (command >> 18 & 3, command >> 11 & 1) {
        (0, 0) => format!(" cpu {} (APIC ID)", high >> 24),
        (0, _) => format!(" mask {:08b} (APIC ID)", high >> 24),
        _ => String::new(),
    }
}

/// An entry of the local vector table (SDM 3A figure 11-8).
fn local_vector(entry: u32, timer: bool) -> String {
    const MODES: [&str; 8] = ["Fixed", "...", "SMI", "...", "NMI", "INIT", "...", "ExtINT"];
    const TIMERS: [&str; 4] = ["one-shot", "periodic", "tsc-deadline", ""];
    let bit = |at: u32, on: &'static str, off: &'static str| if entry >> at & 1 != 0 { on } else { off };
    let mode = MODES[(entry >> 8 & 7) as usize];
    let timing = if timer { TIMERS[(entry >> 17 & 3) as usize] } else { "" };
    let vector = if mode == "Fixed" { format!(" (vec {})", entry & 0xff) } else { String::new() };
    format!(
        "{entry:#010x} {:9} {:5} {:6} {:7} {timing:12} {mode:6}{vector}",
        bit(13, "active-lo", "active-hi"),
        bit(15, "level", "edge"),
        bit(16, "masked", ""),
        bit(12, "pending", "")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vector_table_entries_are_named() {
        let text = local_vector(0x1_0000, false);
        assert!(text.starts_with("0x00010000 active-hi edge  masked "), "{text}");
        assert!(text.ends_with("Fixed  (vec 0)"), "{text}");
        assert!(local_vector(0x2_00ef, true).contains("periodic"));
        assert!(local_vector(0x8700, false).contains("level") && local_vector(0x8700, false).contains("ExtINT"));
    }
}
