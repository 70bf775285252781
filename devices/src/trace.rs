//! Trace events: what devices do, told by name when somebody wants to know (`-trace`, `trace-event`).
//!
//! Two kinds: [`Event`]s that a module declares and tells of itself, and accesses to registers, which the bus tells of every
//! range by its name (`NAME_read`, `NAME_write`). An event that is off costs one relaxed load.

use crate::wire::locked;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// An event that a module tells of.
pub struct Event {
    name: &'static str,
    about: &'static str,
    on: AtomicBool,
}

impl Event {
    /// One that is off.
    pub const fn new(name: &'static str, about: &'static str) -> Self {
        Self { name, about, on: AtomicBool::new(false) }
    }

    /// Whether somebody wants to know.
    #[inline]
    pub fn on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What it tells.
    pub fn about(&self) -> &'static str {
        self.about
    }

    /// Tells it. Use [`trace_event!`](crate::trace_event), which asks first.
    #[cold]
    pub fn tell(&self, text: fmt::Arguments<'_>) {
        tell(self.name, text);
    }
}

/// Tells an event, with text as of `format!`, if it is on.
#[macro_export]
macro_rules! trace_event {
    ($event:expr, $($arg:tt)*) => {
        if $event.on() {
            $event.tell(format_args!($($arg)*));
        }
    };
}

macro_rules! events {
    ($($id:ident $name:literal $about:literal;)*) => {
        $(#[doc = $about] pub static $id: Event = Event::new($name, $about);)*
        /// The events of this crate.
        static OWN: &[&Event] = &[$(&$id),*];
    };
}

events! {
    PCI_READ "pci_cfg_read" "a PCI function's configuration is read: place, offset, value";
    PCI_WRITE "pci_cfg_write" "a PCI function's configuration is written: place, offset, value";
    PIC_IRQ "pic_set_irq" "an input of the interrupt controllers gets a level";
    IOAPIC_IRQ "ioapic_set_irq" "an input of the I/O APIC gets a level";
    APIC_READ "apic_mem_readl" "a register of a local APIC is read";
    APIC_WRITE "apic_mem_writel" "a register of a local APIC is written";
    APIC_ACCEPT "apic_deliver_irq" "a local APIC gets a message: mode, vector, trigger";
    MSI "msi_notify" "a message-signalled interrupt is sent: address and data";
    VIRTIO_KICK "virtio_queue_notify" "a virtio driver tells of new buffers in a queue";
    VIRTIO_IRQ "virtio_notify" "a virtio device interrupts for a queue, or for its configuration";
    E1000_SEND "e1000_transmit" "an e1000 card has sent what was in its ring";
    E1000_RECEIVE "e1000_receive" "a frame comes to an e1000 card";
    RTL8139_SEND "rtl8139_transmit" "an rtl8139 card has sent what was there";
    RTL8139_RECEIVE "rtl8139_receive" "a frame comes to an rtl8139 card";
    IDE_COMMAND "ide_exec_cmd" "a command is written to an IDE channel";
    FDC_COMMAND "fdc_exec_cmd" "the floppy controller carries a command out";
    SCSI_COMMAND "scsi_req_parsed" "a SCSI unit or CD drive carries a command out";
    KEY "ps2_keyboard_event" "a key of the keyboard is pressed or let go";
    MOUSE "ps2_mouse_event" "the mouse moves, or its buttons change";
    SERIAL_RECEIVE "serial_receive" "bytes come to a serial port";
}

/// The accesses to one range's registers.
pub struct Accesses {
    read: String,
    write: String,
    read_on: AtomicBool,
    write_on: AtomicBool,
}

/// Some range's accesses are told.
static ANY: AtomicBool = AtomicBool::new(false);

/// Whether the accesses of some range are told: what is looked at first.
#[inline]
pub fn any_accesses() -> bool {
    ANY.load(Ordering::Relaxed)
}

impl Accesses {
    /// Tells of an access, if that of this range are wanted.
    #[cold]
    pub fn tell(&self, write: bool, address: u64, size: u8, value: u64) {
        let (on, name) = if write { (&self.write_on, &self.write) } else { (&self.read_on, &self.read) };
        if on.load(Ordering::Relaxed) {
            tell(name, format_args!("addr {address:#x} value {value:#x} size {size}"));
        }
    }

    fn both(&self) -> [(&str, &AtomicBool); 2] {
        [(&self.read, &self.read_on), (&self.write, &self.write_on)]
    }
}

#[derive(Default)]
struct Registry {
    /// Events of other crates.
    others: Vec<&'static [&'static Event]>,
    accesses: BTreeMap<String, Arc<Accesses>>,
    /// What was switched, in order: ranges that come later heed it.
    switched: Vec<(String, bool)>,
}

static REGISTRY: Mutex<Registry> =
    Mutex::new(Registry { others: Vec::new(), accesses: BTreeMap::new(), switched: Vec::new() });
static SINK: OnceLock<fn(&str, fmt::Arguments<'_>)> = OnceLock::new();

fn tell(name: &str, text: fmt::Arguments<'_>) {
    if let Some(sink) = SINK.get() {
        sink(name, text);
    }
}

/// Has events told to `sink`, by name and text. The first call counts.
pub fn tell_to(sink: fn(&str, fmt::Arguments<'_>)) {
    let _ = SINK.set(sink);
}

/// Adds events of another crate.
pub fn add(events: &'static [&'static Event]) {
    let others = &mut locked(&REGISTRY).others;
    if !others.iter().any(|known| std::ptr::eq(*known, events)) {
        others.push(events);
    }
}

/// The accesses to the ranges called `name`.
pub fn accesses(name: &str) -> Arc<Accesses> {
    let mut registry = locked(&REGISTRY);
    if let Some(known) = registry.accesses.get(name) {
        return known.clone();
    }
    let word: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let (read, write) = (format!("{word}_read"), format!("{word}_write"));
    let made = Arc::new(Accesses { read, write, read_on: AtomicBool::new(false), write_on: AtomicBool::new(false) });
    for (pattern, on) in &registry.switched {
        for (name, switch) in made.both() {
            if matches(pattern, name) {
                switch.store(*on, Ordering::Relaxed);
            }
        }
    }
    registry.accesses.insert(name.to_owned(), made.clone());
    registry.settle();
    made
}

impl Registry {
    fn events(&self) -> impl Iterator<Item = &'static Event> {
        OWN.iter().chain(self.others.iter().copied().flatten()).copied()
    }

    fn switches(&self) -> impl Iterator<Item = (&str, &AtomicBool)> {
        self.events().map(|event| (event.name, &event.on)).chain(self.accesses.values().flat_map(|range| range.both()))
    }

    fn settle(&self) {
        let on = self.accesses.values().flat_map(|range| range.both()).any(|(_, on)| on.load(Ordering::Relaxed));
        ANY.store(on, Ordering::Relaxed);
    }
}

/// Switches the events whose names match `pattern` (`*` and `?` stand for anything), and ranges' that come later; how many
/// there were.
pub fn switch(pattern: &str, on: bool) -> usize {
    let mut registry = locked(&REGISTRY);
    registry.switched.retain(|(other, _)| other != pattern);
    registry.switched.push((pattern.to_owned(), on));
    let mut count = 0;
    for (_, switch) in registry.switches().filter(|(name, _)| matches(pattern, name)) {
        switch.store(on, Ordering::Relaxed);
        count += 1;
    }
    registry.settle();
    count
}

/// Names and states of the events that match `pattern`.
pub fn states(pattern: &str) -> Vec<(String, bool)> {
    let registry = locked(&REGISTRY);
    let wanted = registry.switches().filter(|(name, _)| matches(pattern, name));
    let mut states: Vec<_> = wanted.map(|(name, on)| (name.to_owned(), on.load(Ordering::Relaxed))).collect();
    states.sort();
    // Two ranges whose names differ in what a word cannot have.
    states.dedup_by(|a, b| a.0 == b.0);
    states
}

/// Names of the declared events, with what they tell.
pub fn declared() -> Vec<(&'static str, &'static str)> {
    locked(&REGISTRY).events().map(|event| (event.name, event.about)).collect()
}

/// Whether `name` is what `pattern` says.
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    // Where to go on if what follows the last star does not fit.
    let mut retry: Option<(usize, usize)> = None;
    while let Some(&c) = name.get(n) {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p, n));
                p += 1;
            }
            Some(&want) if want == b'?' || want == c => (p, n) = (p + 1, n + 1),
            _ => match retry {
                Some((star, at)) => {
                    retry = Some((star, at + 1));
                    (p, n) = (star + 1, at + 1);
                }
                None => return false,
            },
        }
    }
    pattern.get(p..).unwrap_or_default().iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::{Bus, RegisterBlock};

    static TOLD: Mutex<Vec<String>> = Mutex::new(Vec::new());

    struct Zero;

    impl RegisterBlock for Zero {
        fn read(&self, _offset: u64, _size: u8) -> u64 {
            0x5a
        }
        fn write(&self, _offset: u64, _size: u8, _value: u64) {}
    }

    #[test]
    fn patterns() {
        for (pattern, name, fits) in [
            ("pci_*", "pci_cfg_read", true),
            ("*", "", true),
            ("*_read", "pci_cfg_read", true),
            ("*_read", "pci_cfg_reads", false),
            ("a*b*c", "aXbXbc", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("abc", "abcd", false),
            ("", "", true),
            ("**", "x", true),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn accesses_and_events_are_told_when_they_are_on() {
        tell_to(|name, text| locked(&TOLD).push(format!("{name} {text}")));
        let told = || -> Vec<String> {
            locked(&TOLD).drain(..).filter(|line| line.contains("probe_of_trace") || line.contains("key 999")).collect()
        };
        let bus = Bus::new();
        // Switched before the range is there, as from the command line.
        assert_eq!(switch("probe_of_trace_w*", true), 0);
        bus.register_pio(0x50, 4, "probe-of-trace", Arc::new(Zero)).unwrap();
        bus.pio_write(0x51, 1, 7);
        bus.pio_read(0x51, 1);
        assert_eq!(told(), ["probe_of_trace_write addr 0x51 value 0x7 size 1"]);
        assert_eq!(switch("probe_of_trace_*", true), 2);
        assert_eq!(states("probe_of_trace_?e*"), [("probe_of_trace_read".to_owned(), true)]);
        bus.pio_read(0x50, 2);
        assert_eq!(told(), ["probe_of_trace_read addr 0x50 value 0x5a5a size 2"]);
        assert_eq!(switch("probe_of_trace_*", false), 2);
        bus.pio_write(0x51, 1, 7);
        assert!(told().is_empty());
        assert_eq!(switch("ps2_keyboard_event", true), 1);
        trace_event!(KEY, "key 999");
        assert_eq!(switch("ps2_keyboard_event", false), 1);
        trace_event!(KEY, "key 999");
        assert_eq!(told(), ["ps2_keyboard_event key 999"]);
        assert!(declared().iter().any(|(name, about)| *name == "pci_cfg_read" && !about.is_empty()));
    }
}
