//! A bus of ports as drivers use it.

use super::super::bench::{Bench, DATA, REGISTERS, Surroundings, fuzz};
use super::*;
use crate::bus::Device;
use crate::fakes::moves_to;
use crate::services::CharBackend;
use std::sync::atomic::{AtomicBool, AtomicUsize};

/// A host's end that takes as much as the test says.
#[derive(Default)]
struct Host {
    got: Mutex<Vec<u8>>,
    room: AtomicUsize,
    away: AtomicBool,
    size: Mutex<Option<(u16, u16)>>,
    ready: AtomicUsize,
}

impl CharBackend for Host {
    fn write(&self, bytes: &[u8]) {
        if !self.away.load(Ordering::SeqCst) {
            let room = self.room.load(Ordering::SeqCst);
            assert!(bytes.len() <= room, "more than there was room for");
            self.room.store(room - bytes.len(), Ordering::SeqCst);
            locked(&self.got).extend_from_slice(bytes);
        }
    }
    fn input_ready(&self) {
        self.ready.fetch_add(1, Ordering::SeqCst);
    }
    fn room(&self) -> usize {
        self.room.load(Ordering::SeqCst)
    }
    fn connected(&self) -> bool {
        !self.away.load(Ordering::SeqCst)
    }
    fn size(&self) -> Option<(u16, u16)> {
        *locked(&self.size)
    }
}

/// The console with number 0, and port 2.
struct Hosts(Arc<Host>, Arc<Host>);

impl Hosts {
    fn new() -> Self {
        let host = || Arc::new(Host { room: AtomicUsize::new(1 << 20), ..Host::default() });
        Self(host(), host())
    }

    fn make(&self, s: &Surroundings) -> (Arc<VirtioSerial>, Parts) {
        let port = |id, console, name: &str, backend: &Arc<Host>| PortSpec {
            id,
            console,
            name: name.to_owned(),
            backend: backend.clone(),
        };
        let specs = vec![port(0, true, "", &self.0), port(2, false, "org.test", &self.1)];
        VirtioSerial::new(specs, 3, s.memory.clone(), &s.work)
    }

    fn bench(&self, features: u64) -> (Arc<VirtioSerial>, Bench) {
        let mut device = None;
        let b = Bench::new(features, |s| {
            let (serial, parts) = self.make(s);
            device = Some(serial);
            parts
        });
        (device.unwrap(), b)
    }
}

/// Queues of port 2.
const IN: usize = 6;
const OUT: usize = 7;
/// Where buffers for control messages are.
const MESSAGES: u64 = DATA + 0x8000;

impl Bench {
    fn say(&mut self, id: u32, event: u16, value: u16) {
        let bytes = [&id.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes()].concat();
        self.s.memory.write(DATA, &bytes);
        self.queues[CONTROL_OUT].add(&[(DATA, 8, false)]);
        self.kick(CONTROL_OUT as u64);
        assert_eq!(self.queues[CONTROL_OUT].used().len(), 1);
    }

    /// Gives up to eight buffers for messages; what comes: number, event, value, and what follows.
    fn heard(&mut self) -> Vec<(u32, u16, u16, Vec<u8>)> {
        let mut out = Vec::new();
        loop {
            self.queues[CONTROL_IN].add(&[(MESSAGES, 64, true)]);
            self.kick(CONTROL_IN as u64);
            let Some((_, len)) = self.queues[CONTROL_IN].used().pop() else { break };
            let bytes = self.bytes(MESSAGES, len as usize);
            let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
            out.push((word(0).into(), word(4), word(6), bytes[8..].to_vec()));
        }
        out
    }

    /// The driver takes all ports, and opens port 2.
    fn ready(&mut self) {
        self.say(0, 0, 1);
        self.say(0, 3, 1);
        self.say(2, 3, 1);
        self.say(2, 6, 1);
    }
}

#[test]
fn ports_present_themselves() {
    let hosts = Hosts::new();
    *locked(&hosts.0.size) = Some((100, 40));
    hosts.1.away.store(true, Ordering::SeqCst);
    let (device, mut b) = hosts.bench(feature::MULTIPORT);
    assert_eq!((b.config(0, 4), b.config(4, 4)), (40 << 16 | 100, 3));
    b.say(0, 0, 1);
    b.say(9, 3, 1);
    // No buffer stays unused: the last `heard` left one.
    assert_eq!(b.heard(), [(0, 1, 1, vec![]), (2, 1, 1, vec![])]);
    b.say(0, 3, 1);
    let first = b.queues[CONTROL_IN].used().len();
    assert_eq!(first, 1, "in the buffer that was left");
    assert_eq!(b.heard(), [(0, 6, 1, vec![]), (0, 5, 0, vec![100, 0, 40, 0])]);
    b.say(2, 3, 1);
    // And not that it is open: nobody is at the other end.
    assert_eq!(b.heard(), [(2, 7, 1, b"org.test\0".to_vec())]);
    hosts.1.away.store(false, Ordering::SeqCst);
    device.frontends()[1].host_changed();
    b.s.work.run();
    assert_eq!(b.bytes(MESSAGES, 8), [2, 0, 0, 0, 6, 0, 1, 0]);
    *locked(&hosts.0.size) = Some((80, 25));
    device.frontends()[0].host_changed();
    b.s.work.run();
    assert_eq!(b.heard(), [(0, 5, 0, vec![80, 0, 25, 0])]);
}

#[test]
fn output_waits_for_a_host_that_is_slow() {
    let hosts = Hosts::new();
    let (device, mut b) = hosts.bench(feature::MULTIPORT);
    b.ready();
    let bytes: Vec<u8> = (0..=255).collect();
    b.s.memory.write(DATA, &bytes);
    hosts.1.room.store(100, Ordering::SeqCst);
    b.queues[OUT].add(&[(DATA, 150, false), (DATA + 150, 50, false)]);
    b.queues[OUT].add(&[(DATA + 200, 56, false)]);
    b.kick(OUT as u64);
    assert_eq!(locked(&hosts.1.got).len(), 100);
    assert_eq!(b.queues[OUT].used(), []);
    // The other port goes on meanwhile.
    b.queues[1].add(&[(DATA, 3, false)]);
    b.kick(1);
    assert_eq!(*locked(&hosts.0.got), [0, 1, 2]);
    // What has begun moves to another device and goes on there.
    let other_hosts = Hosts::new();
    let other = Bench::bare(|s| other_hosts.make(s).1);
    other.s.memory.write(DATA, &bytes);
    moves_to(&*b.device, &*other.device);
    hosts.1.room.store(1000, Ordering::SeqCst);
    device.frontends()[1].output_ready();
    b.s.work.run();
    assert_eq!(*locked(&hosts.1.got), bytes);
    assert_eq!(b.queues[OUT].used().len(), 2);
    other.s.work.run();
    assert_eq!(*locked(&other_hosts.1.got), bytes[100..200]);
}

#[test]
fn output_to_nobody_and_output_that_a_reset_forgot_is_dropped() {
    let hosts = Hosts::new();
    let (device, mut b) = hosts.bench(feature::MULTIPORT);
    b.ready();
    hosts.1.room.store(0, Ordering::SeqCst);
    b.queues[OUT].add(&[(DATA, 150, false)]);
    b.kick(OUT as u64);
    assert_eq!(b.queues[OUT].used(), []);
    hosts.1.away.store(true, Ordering::SeqCst);
    device.frontends()[1].host_changed();
    b.s.work.run();
    assert_eq!(b.queues[OUT].used(), [(0, 0)]);
    hosts.1.away.store(false, Ordering::SeqCst);
    b.queues[OUT].add(&[(DATA, 150, false)]);
    b.kick(OUT as u64);
    b.device.reset();
    hosts.1.room.store(1000, Ordering::SeqCst);
    device.frontends()[1].output_ready();
    b.s.work.run();
    assert!(locked(&hosts.1.got).is_empty());
}

#[test]
fn input_waits_for_buffers_and_for_somebody_who_reads() {
    let hosts = Hosts::new();
    let (device, mut b) = hosts.bench(feature::MULTIPORT);
    let port = device.frontends()[1].clone();
    b.queues[IN].add(&[(DATA + 0x100, 4, true), (DATA + 0x200, 4, true)]);
    b.say(0, 0, 1);
    b.say(2, 3, 1);
    assert_eq!(port.can_receive(), 0, "not open");
    let before = hosts.1.ready.load(Ordering::SeqCst);
    b.say(2, 6, 1);
    assert_eq!(hosts.1.ready.load(Ordering::SeqCst), before + 1);
    assert_eq!(port.can_receive(), 8);
    port.receive(b"abcdef");
    assert_eq!(b.queues[IN].used(), [(0, 6)]);
    assert_eq!((b.bytes(DATA + 0x100, 4), b.bytes(DATA + 0x200, 2)), (b"abcd".to_vec(), b"ef".to_vec()));
    assert_eq!(port.can_receive(), 0, "no buffer");
    b.queues[IN].add(&[(DATA, 1, false)]);
    b.queues[IN].add(&[(DATA + 0x100, 4, true)]);
    b.kick(IN as u64);
    assert_eq!(hosts.1.ready.load(Ordering::SeqCst), before + 2, "there are some again");
    assert_eq!(port.can_receive(), 4);
    b.say(2, 6, 0);
    assert_eq!(port.can_receive(), 0);
    b.device.reset();
    port.receive(b"late");
    assert_eq!(b.bytes(DATA + 0x100, 4), b"abcd");
}

#[test]
fn a_driver_without_control_messages_has_the_first_console() {
    let hosts = Hosts::new();
    let (device, mut b) = hosts.bench(feature::SIZE);
    b.s.memory.write(DATA, b"hello");
    b.queues[1].add(&[(DATA, 5, false)]);
    b.kick(1);
    assert_eq!(*locked(&hosts.0.got), b"hello");
    b.queues[0].add(&[(DATA, 5, true)]);
    assert_eq!(device.frontends()[0].can_receive(), 5);
    *locked(&hosts.0.size) = Some((132, 43));
    b.irq.clear();
    device.frontends()[0].host_changed();
    assert_eq!(b.config(0, 2), 132);
    assert!(b.irq.level(11), "the size is in the configuration space");
    b.bus.mmio_write(REGISTERS + 0x2008, 4, u64::from(b'!'));
    assert_eq!(locked(&hosts.0.got).last(), Some(&b'!'));
}

#[test]
fn random_accesses_and_rings() {
    let hosts = Hosts::new();
    let end = Mutex::new(None);
    let make = |s: &Surroundings| {
        let (device, parts) = hosts.make(s);
        *locked(&end) = Some(device.frontends());
        parts
    };
    fuzz(47, make, |random| {
        hosts.1.room.store(random.below(2000) as usize, Ordering::SeqCst);
        hosts.0.room.store(1 << 30, Ordering::SeqCst);
        hosts.1.away.store(random.below(4) == 0, Ordering::SeqCst);
        for end in locked(&end).iter().flatten() {
            end.host_changed();
            end.output_ready();
            let room = end.can_receive();
            if room > 0 {
                end.receive(&vec![7; room.min(500)]);
            }
        }
    });
}

#[test]
fn ports_come_and_go() {
    let hosts = Hosts::new();
    let (device, mut b) = hosts.bench(feature::MULTIPORT);
    b.ready();
    b.heard();
    let spec = || PortSpec { id: 1, console: false, name: "org.late".to_owned(), backend: hosts.1.clone() };
    for _ in 0..2 {
        let end = device.plug(spec());
        // In the buffer that `heard` left.
        assert_eq!(b.queues[CONTROL_IN].used().len(), 1);
        b.say(1, 3, 1);
        b.say(1, 6, 1);
        assert_eq!(b.heard(), [(1, 7, 1, b"org.late\0".to_vec()), (1, 6, 1, vec![])]);
        b.queues[4].add(&[(DATA + 0x4000, 16, true)]);
        assert_eq!(end.can_receive(), 16);
        assert!(device.unplug(1) && !device.unplug(1));
        assert_eq!(b.queues[CONTROL_IN].used().len(), 1, "the driver hears that it is gone");
        assert_eq!(end.can_receive(), 0, "and its end takes nothing");
        end.receive(b"late");
        // What the driver still says of it goes nowhere.
        b.say(1, 6, 1);
        assert_eq!(b.heard(), []);
    }
    b.queues[IN].add(&[(DATA + 0x4000, 8, true)]);
    assert_eq!(device.frontends()[1].can_receive(), 8, "others go on");
}
