//! The I/O APIC: 24 inputs, one redirection entry each (Intel 82093AA datasheet; version 0x20 with its EOI register as
//! in the ICH datasheets, section "I/O (x) APIC").

use crate::bus::{AccessSizes, Device, RegisterBlock};
use crate::lapic::{EoiSink, Message, MessageSink};
use crate::services::IrqSink;
use crate::state::{Inspector, StateError, StateValue, from_state, to_state};
use crate::wire::{RaiseCounts, locked};
use crate::{trace, trace_event};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, MutexGuard};

const NAME: &str = "ioapic";

/// Number of inputs.
pub const PINS: usize = 24;

/// Offsets in the register window.
mod window {
    pub const SELECT: u64 = 0x00;
    pub const DATA: u64 = 0x10;
    pub const EOI: u64 = 0x40;
}

/// Indirect registers, 82093AA 3.2.
mod reg {
    pub const ID: u8 = 0x00;
    pub const VERSION: u8 = 0x01;
    pub const ARBITRATION: u8 = 0x02;
    pub const REDIRECTION: u8 = 0x10;
}

/// Version 0x20 (has the EOI register), highest redirection entry in bits 23:16.
const VERSION: u32 = 0x20 | (PINS as u32 - 1) << 16;

/// Bits of a redirection entry.
mod entry {
    pub const REMOTE_IRR: u64 = 1 << 14;
    pub const LEVEL: u64 = 1 << 15;
    pub const MASKED: u64 = 1 << 16;
    /// All but the read-only delivery status and remote IRR.
    pub const WRITABLE: u64 = 0xFF00_0000_0001_AFFF;
}

/// The volatile state. It is saved as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Volatile {
    id: u8,
    select: u8,
    entries: [u64; PINS],
    /// Levels of the inputs.
    lines: u32,
}

impl Volatile {
    /// After power-on: all entries masked.
    fn power_on() -> Self {
        Self { id: 0, select: 0, entries: [entry::MASKED; PINS], lines: 0 }
    }

    fn line(&self, pin: usize) -> bool {
        self.lines >> pin & 1 != 0
    }

    /// The message of level-triggered `pin`, if one is due: asserted, unmasked and not in service. Marks it in service.
    fn take_level(&mut self, pin: usize) -> Option<Message> {
        let line = self.line(pin);
        let entry = self.entries.get_mut(pin)?;
        if *entry & (entry::LEVEL | entry::MASKED | entry::REMOTE_IRR) != entry::LEVEL || !line {
            return None;
        }
        let message = Message::from_redirection(*entry)?;
        if message.mode.carries_vector() {
            *entry |= entry::REMOTE_IRR;
        }
        Some(message)
    }

    /// The message that a change of `pin` to `level` makes. Edges on masked inputs are lost (82093AA 3.4.2).
    fn set_line(&mut self, pin: usize, level: bool) -> Option<Message> {
        let rising = level && !self.line(pin);
        self.lines = self.lines & !(1 << pin) | u32::from(level) << pin;
        let entry = *self.entries.get(pin)?;
        if entry & entry::LEVEL != 0 {
            // Only messages with a vector are held back by remote IRR; the others go out once a rise.
            return self.take_level(pin).filter(|message| rising || message.mode.carries_vector());
        }
        (rising && entry & entry::MASKED == 0).then(|| Message::from_redirection(entry)).flatten()
    }

    /// Ends `vector` on the level-triggered pins that sent it; what of them is still asserted is due again.
    fn end(&mut self, vector: u8) -> Vec<(usize, Message)> {
        let mut again = Vec::new();
        for pin in 0..PINS {
            let Some(entry) = self.entries.get_mut(pin) else { continue };
            if *entry as u8 == vector && *entry & entry::REMOTE_IRR != 0 {
                *entry &= !entry::REMOTE_IRR;
                again.extend(self.take_level(pin).map(|message| (pin, message)));
            }
        }
        again
    }

    fn read_register(&self) -> u32 {
        match self.select {
            reg::ID | reg::ARBITRATION => u32::from(self.id) << 24,
            reg::VERSION => VERSION,
            _ => match self.selected_entry() {
                Some((pin, high)) => (self.entries[pin] >> if high { 32 } else { 0 }) as u32,
                None => 0,
            },
        }
    }

    /// Pin and half of the redirection entry that the select register points to.
    fn selected_entry(&self) -> Option<(usize, bool)> {
        let index = self.select.checked_sub(reg::REDIRECTION)?;
        let pin = usize::from(index >> 1);
        (pin < PINS).then_some((pin, index & 1 != 0))
    }

    fn write_register(&mut self, value: u32) -> Option<(usize, Message)> {
        if self.select == reg::ID {
            self.id = (value >> 24) as u8 & 0xF;
        }
        let (pin, high) = self.selected_entry()?;
        let entry = &mut self.entries[pin];
        let value = u64::from(value);
        let merged = if high { *entry & 0xFFFF_FFFF | value << 32 } else { *entry >> 32 << 32 | value };
        *entry = merged & entry::WRITABLE | *entry & entry::REMOTE_IRR;
        if *entry & entry::LEVEL == 0 {
            // Guests end a level interrupt on parts without EOI register by a turn to edge and back.
            *entry &= !entry::REMOTE_IRR;
        }
        self.take_level(pin).map(|message| (pin, message))
    }
}

/// An I/O APIC. One lock, not held while messages are delivered.
pub struct IoApic {
    apics: Arc<dyn MessageSink>,
    state: Mutex<Volatile>,
    raised: RaiseCounts<PINS>,
}

impl IoApic {
    /// An I/O APIC that sends its messages to `apics`. Connect it as the [`EoiSink`] of the local APICs too.
    pub fn new(apics: Arc<dyn MessageSink>) -> Arc<Self> {
        Arc::new(Self { apics, state: Mutex::new(Volatile::power_on()), raised: RaiseCounts::default() })
    }

    /// The registers in the lines that `info pic` has in QEMU.
    pub fn show(&self) -> String {
        let Volatile { id, select, entries, lines } = self.lock().clone();
        let mut text = format!("ioapic0: ver={:#04x} id={id:#04x} sel={select:#04x}\n", VERSION & 0xFF);
        for (pin, entry) in entries.iter().enumerate() {
            text += &show_entry(pin, *entry);
        }
        let list = |bits: u32| {
            let pins: Vec<String> = (0..PINS).filter(|pin| bits >> pin & 1 != 0).map(|pin| pin.to_string()).collect();
            if pins.is_empty() { "(none)".to_owned() } else { pins.join(" ") }
        };
        let remote = entries.iter().enumerate().filter(|(_, entry)| *entry & entry::REMOTE_IRR != 0);
        let remote = remote.fold(0, |bits, (pin, _)| bits | 1 << pin);
        text + &format!("  IRR      {}\n  Remote IRR {}\n", list(lines), list(remote))
    }

    /// How often each input rose since the machine started.
    pub fn raised(&self) -> [u64; PINS] {
        self.raised.counts()
    }

    fn lock(&self) -> MutexGuard<'_, Volatile> {
        locked(&self.state)
    }

    /// Delivers a message of `pin`. What no CPU takes is not in service: the pin tries again at its next change.
    fn send(&self, pin: usize, message: Message) {
        if !self.apics.deliver(message) && message.level_triggered {
            let mut state = self.lock();
            if let Some(entry) = state.entries.get_mut(pin) {
                *entry &= !entry::REMOTE_IRR;
            }
        }
    }
}

/// A redirection entry (82093AA 3.2.4).
fn show_entry(pin: usize, entry: u64) -> String {
    const MODES: [&str; 8] = ["fixed", "lowest", "SMI", "...", "NMI", "INIT", "...", "ExtINT"];
    let logical = entry >> 11 & 1 != 0;
    let destination = entry >> 56 & if logical { 0xFF } else { 0xF };
    let bit = |at: u32, on: &'static str, off: &'static str| if entry >> at & 1 != 0 { on } else { off };
    let mode = MODES.get((entry >> 8 & 7) as usize).copied().unwrap_or_default();
    format!(
        "  pin {pin:<2} {entry:#018x} dest={destination:x} vec={:<3} {} {:5} {:6} {mode:6} {}\n",
        entry & 0xFF,
        bit(13, "active-lo", "active-hi"),
        bit(15, "level", "edge"),
        bit(16, "masked", ""),
        if logical { "logical" } else { "physical" }
    )
}

impl IrqSink for IoApic {
    fn set_irq(&self, pin: u32, level: bool) {
        let pin = pin as usize;
        if pin >= PINS {
            return;
        }
        self.raised.note(pin as u32, level);
        trace_event!(trace::IOAPIC_IRQ, "pin {pin} level {}", u8::from(level));
        let message = self.lock().set_line(pin, level);
        if let Some(message) = message {
            self.send(pin, message);
        }
    }
}

impl EoiSink for IoApic {
    fn end_of_interrupt(&self, vector: u8) {
        let again = self.lock().end(vector);
        for (pin, message) in again {
            self.send(pin, message);
        }
    }
}

impl RegisterBlock for IoApic {
    fn read(&self, offset: u64, _size: u8) -> u64 {
        let state = self.lock();
        match offset & 0xFF {
            window::SELECT => state.select.into(),
            window::DATA => state.read_register().into(),
            _ => 0,
        }
    }

    fn write(&self, offset: u64, _size: u8, value: u64) {
        match offset & 0xFF {
            window::SELECT => self.lock().select = value as u8,
            window::DATA => {
                let message = self.lock().write_register(value as u32);
                if let Some((pin, message)) = message {
                    self.send(pin, message);
                }
            }
            window::EOI => self.end_of_interrupt(value as u8),
            _ => {}
        }
    }

    fn sizes(&self) -> AccessSizes {
        AccessSizes::DWORD
    }
}

impl Device for IoApic {
    fn name(&self) -> &'static str {
        NAME
    }

    /// The lines keep their levels: they are driven from outside.
    fn reset(&self) {
        let mut state = self.lock();
        let lines = state.lines;
        *state = Volatile { lines, ..Volatile::power_on() };
    }

    fn save(&self) -> StateValue {
        to_state(&*self.lock())
    }

    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        let Volatile { id, select, mut entries, lines } = from_state(NAME, state)?;
        for entry in &mut entries {
            *entry &= entry::WRITABLE | entry::REMOTE_IRR;
        }
        *self.lock() = Volatile { id: id & 0xF, select, entries, lines: lines & ((1 << PINS) - 1) };
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        let Volatile { id, select, entries, lines } = self.lock().clone();
        out.field("id", id);
        out.field("select", format_args!("{select:#04x}"));
        out.field("lines", format_args!("{lines:#08x}"));
        for (pin, entry) in entries.iter().enumerate() {
            out.field(&format!("pin {pin}"), format_args!("{entry:#018x}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Local APICs that take everything, or nothing.
    struct Sink {
        taken: Mutex<Vec<Message>>,
        accepts: bool,
    }

    impl MessageSink for Sink {
        fn deliver(&self, message: Message) -> bool {
            self.taken.lock().unwrap().push(message);
            self.accepts
        }
    }

    fn make(accepts: bool) -> (Arc<Sink>, Arc<IoApic>) {
        let sink = Arc::new(Sink { taken: Mutex::default(), accepts });
        let ioapic = IoApic::new(sink.clone());
        (sink, ioapic)
    }

    fn write(ioapic: &IoApic, register: u8, value: u32) {
        ioapic.write(window::SELECT, 4, register.into());
        ioapic.write(window::DATA, 4, value.into());
    }

    fn read(ioapic: &IoApic, register: u8) -> u32 {
        ioapic.write(window::SELECT, 4, register.into());
        ioapic.read(window::DATA, 4) as u32
    }

    fn vectors(sink: &Sink) -> Vec<u8> {
        std::mem::take(&mut *sink.taken.lock().unwrap()).iter().map(|m| m.vector).collect()
    }

    #[test]
    fn identification() {
        let (_, ioapic) = make(true);
        assert_eq!(read(&ioapic, reg::VERSION), 0x0017_0020);
        write(&ioapic, reg::ID, 0xFF00_0000);
        assert_eq!(read(&ioapic, reg::ID), 0x0F00_0000);
        assert_eq!(read(&ioapic, 0x10 + 46), entry::MASKED as u32);
        assert_eq!(read(&ioapic, 0x10 + 48), 0, "no pin 24");
    }

    #[test]
    fn edge_fires_once_an_edge_and_not_while_masked() {
        let (sink, ioapic) = make(true);
        ioapic.set_irq(4, true);
        write(&ioapic, 0x18, 0x34);
        assert_eq!(vectors(&sink), [0u8; 0], "the edge came while masked");
        ioapic.set_irq(4, true);
        assert_eq!(vectors(&sink), [0u8; 0]);
        ioapic.set_irq(4, false);
        ioapic.set_irq(4, true);
        assert_eq!(vectors(&sink), [0x34]);
        ioapic.set_irq(PINS as u32, true);
        assert_eq!(vectors(&sink), [0u8; 0]);
    }

    #[test]
    fn level_repeats_until_the_line_falls() {
        let (sink, ioapic) = make(true);
        ioapic.set_irq(11, true);
        write(&ioapic, 0x27, 0x0300_0000);
        write(&ioapic, 0x26, 0x8041);
        assert_eq!(vectors(&sink), [0x41], "unmasking an asserted level fires");
        assert_eq!(read(&ioapic, 0x26), 0xC041, "remote IRR");
        ioapic.set_irq(11, true);
        assert_eq!(vectors(&sink), [0u8; 0]);
        ioapic.end_of_interrupt(0x42);
        assert_eq!(vectors(&sink), [0u8; 0]);
        ioapic.end_of_interrupt(0x41);
        assert_eq!(vectors(&sink), [0x41]);
        ioapic.set_irq(11, false);
        ioapic.write(window::EOI, 4, 0x41);
        assert_eq!((vectors(&sink), read(&ioapic, 0x26)), (Vec::<u8>::new(), 0x8041));
    }

    #[test]
    fn turn_to_edge_ends_a_level_interrupt() {
        let (sink, ioapic) = make(true);
        write(&ioapic, 0x26, 0x8041);
        ioapic.set_irq(11, true);
        write(&ioapic, 0x26, 0x1_0041);
        assert_eq!(read(&ioapic, 0x26), 0x1_0041);
        write(&ioapic, 0x26, 0x8041);
        assert_eq!(vectors(&sink), [0x41, 0x41]);
    }

    #[test]
    fn refused_message_is_not_in_service() {
        let (sink, ioapic) = make(false);
        write(&ioapic, 0x26, 0x8041);
        ioapic.set_irq(11, true);
        assert_eq!((vectors(&sink), read(&ioapic, 0x26)), (vec![0x41], 0x8041));
    }

    #[test]
    fn save_restore_reset() {
        let (_, ioapic) = make(true);
        let fresh = ioapic.save();
        write(&ioapic, 0x26, 0x8041);
        ioapic.set_irq(11, true);
        let saved = ioapic.save();
        let (_, other) = make(true);
        other.restore(&saved).unwrap();
        assert_eq!(other.save(), saved);
        other.set_irq(11, false);
        other.reset();
        other.write(window::SELECT, 4, 0);
        assert_eq!(other.save(), fresh);
        assert!(other.restore(&StateValue::Null).is_err());
        let mut out = Inspector::new();
        ioapic.inspect(&mut out);
        assert!(out.lines().iter().any(|line| line.starts_with("pin 11 = ") && line.ends_with("c041")));
    }

    #[test]
    fn people_see_qemus_lines() {
        assert_eq!(
            show_entry(3, entry::MASKED),
            "  pin 3  0x0000000000010000 dest=0 vec=0   active-hi edge  masked fixed  physical\n"
        );
        assert!(show_entry(10, 0x0300_0000_0000_8931).contains("dest=3 vec=49  active-hi level        lowest logical"));
    }

    #[test]
    fn random_accesses_do_no_harm() {
        let (_, ioapic) = make(true);
        let mut seed = 0x9E37_79B9_7F4A_7C15u64;
        for _ in 0..20_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let value = seed >> 16;
            match seed >> 61 {
                0 => ioapic.set_irq((value & 31) as u32, value & 32 != 0),
                1 => ioapic.end_of_interrupt(value as u8),
                2 => drop(ioapic.read(value & 0xFFF, 4)),
                3 | 4 => ioapic.write(window::SELECT, 4, value),
                5 => ioapic.write(value & 0xFFC, 4, value >> 12),
                _ => ioapic.write(window::DATA, 4, value),
            }
        }
        let saved = ioapic.save();
        ioapic.restore(&saved).unwrap();
        assert_eq!(ioapic.save(), saved);
    }
}
