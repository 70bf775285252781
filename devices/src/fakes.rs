//! Stand-ins for the services, for tests of device models: time that moves when told, and recorders.

use crate::bus::{Device, RegisterBlock};
use crate::services::{
    CharBackend, Clock, CpuSignals, DeviceMemory, Disk, DiskBuffer, DiskClient, DiskDone, DiskError, DiskRequest, Dma,
    Doorbell, IrqLine, IrqSink, MsiSink, NetBackend, NetFrontend, PowerEvent, PowerSink, ShadowMode, ShadowRam, Timer,
    TimerService, TimerTarget, Unfinished, WorkService, WorkTarget,
};
use crate::wire::locked;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// Guest clock and timer service in one: time stands still until [`FakeTime::advance_to`].
pub struct FakeTime {
    now: AtomicU64,
    /// Wall clock at guest time 0, in nanoseconds since the epoch.
    epoch_ns: AtomicU64,
    timers: Mutex<Vec<Weak<Entry>>>,
}

struct Entry {
    target: Weak<dyn TimerTarget>,
    tag: u32,
    deadline: Mutex<Option<u64>>,
}

struct FakeTimer(Arc<Entry>);

impl Timer for FakeTimer {
    fn arm(&self, deadline_ns: u64) {
        *locked(&self.0.deadline) = Some(deadline_ns);
    }
    fn disarm(&self) {
        *locked(&self.0.deadline) = None;
    }
}

impl FakeTime {
    /// Guest time 0; wall clock 2024-02-28 23:59:58 UTC, just before a leap day.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            now: AtomicU64::new(0),
            epoch_ns: AtomicU64::new(1_709_164_798_000_000_000),
            timers: Mutex::new(Vec::new()),
        })
    }

    /// Moves time to `ns`, firing each timer at its own deadline on the way.
    pub fn advance_to(&self, ns: u64) {
        while let Some((at, entry)) = self.next_due(ns) {
            self.now.fetch_max(at, Ordering::SeqCst);
            *locked(&entry.deadline) = None;
            if let Some(target) = entry.target.upgrade() {
                target.timer_fired(entry.tag, self.now_ns());
            }
        }
        self.now.fetch_max(ns, Ordering::SeqCst);
    }

    /// Moves time on by `ns`, see [`FakeTime::advance_to`].
    pub fn advance(&self, ns: u64) {
        self.advance_to(self.now_ns() + ns);
    }

    /// Moves time to `ns` at once and only then fires what is due: a host that was late.
    pub fn stall_until(&self, ns: u64) {
        self.now.fetch_max(ns, Ordering::SeqCst);
        self.advance_to(ns);
    }

    /// The earliest deadline armed.
    pub fn next_deadline(&self) -> Option<u64> {
        self.next_due(u64::MAX).map(|(at, _)| at)
    }

    fn next_due(&self, until: u64) -> Option<(u64, Arc<Entry>)> {
        let timers = locked(&self.timers);
        let due = timers.iter().filter_map(Weak::upgrade).filter_map(|e| {
            let at = (*locked(&e.deadline))?;
            (at <= until).then_some((at, e))
        });
        due.min_by_key(|(at, _)| *at)
    }
}

impl Clock for FakeTime {
    fn now_ns(&self) -> u64 {
        self.now.load(Ordering::SeqCst)
    }
    fn wall_clock(&self) -> (i64, u32) {
        let ns = self.epoch_ns.load(Ordering::SeqCst) + self.now_ns();
        ((ns / 1_000_000_000) as i64, (ns % 1_000_000_000) as u32)
    }
}

impl TimerService for FakeTime {
    fn create(&self, target: Weak<dyn TimerTarget>, tag: u32) -> Box<dyn Timer> {
        let entry = Arc::new(Entry { target, tag, deadline: Mutex::new(None) });
        locked(&self.timers).push(Arc::downgrade(&entry));
        Box::new(FakeTimer(entry))
    }
}

/// Interrupt pins that remember every change.
#[derive(Default)]
pub struct FakeIrq {
    log: Mutex<Vec<(u32, bool)>>,
    levels: Mutex<BTreeMap<u32, bool>>,
}

impl FakeIrq {
    /// All pins low, nothing recorded.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// A wire to `pin`.
    pub fn line(self: &Arc<Self>, pin: u32) -> IrqLine {
        IrqLine::new(self.clone(), pin)
    }

    /// The level of `pin`.
    pub fn level(&self, pin: u32) -> bool {
        locked(&self.levels).get(&pin).copied().unwrap_or(false)
    }

    /// Everything delivered so far.
    pub fn history(&self) -> Vec<(u32, bool)> {
        locked(&self.log).clone()
    }

    /// Rising edges of `pin` so far.
    pub fn rises(&self, pin: u32) -> usize {
        let mut level = false;
        let log = locked(&self.log);
        let changes = log.iter().filter(|(p, _)| *p == pin);
        changes.filter(|(_, l)| std::mem::replace(&mut level, *l) != *l && *l).count()
    }

    /// Forgets the history.
    pub fn clear(&self) {
        locked(&self.log).clear();
    }
}

impl IrqSink for FakeIrq {
    fn set_irq(&self, pin: u32, level: bool) {
        locked(&self.log).push((pin, level));
        locked(&self.levels).insert(pin, level);
    }
}

/// Remembers messages.
#[derive(Default)]
pub struct FakeMsi(pub Mutex<Vec<(u64, u32)>>);

impl MsiSink for FakeMsi {
    fn send_msi(&self, address: u64, data: u32) {
        locked(&self.0).push((address, data));
    }
}

/// Guest memory from address 0; beyond it there is nothing.
pub struct FakeMemory(Mutex<Vec<u8>>);

impl FakeMemory {
    /// `len` bytes of zeros.
    pub fn new(len: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(vec![0; len])))
    }
}

impl Dma for FakeMemory {
    fn read(&self, gpa: u64, buf: &mut [u8]) {
        buf.fill(0xff);
        let memory = locked(&self.0);
        let there = memory.get(gpa.min(memory.len() as u64) as usize..).unwrap_or(&[]);
        buf.iter_mut().zip(there).for_each(|(to, from)| *to = *from);
    }
    fn write(&self, gpa: u64, buf: &[u8]) {
        let mut memory = locked(&self.0);
        let start = gpa.min(memory.len() as u64) as usize;
        memory.iter_mut().skip(start).zip(buf).for_each(|(to, from)| *to = *from);
    }
}

/// A device's memory, and where it is.
pub struct FakeDeviceMemory {
    bytes: Mutex<Vec<u8>>,
    /// Where it was put.
    pub places: Mutex<Vec<Option<u64>>>,
}

impl FakeDeviceMemory {
    /// `len` bytes of zeros.
    pub fn new(len: usize) -> Arc<Self> {
        Arc::new(Self { bytes: Mutex::new(vec![0; len]), places: Mutex::default() })
    }
}

impl DeviceMemory for FakeDeviceMemory {
    fn read(&self, offset: u64, buf: &mut [u8]) {
        buf.fill(0xff);
        buf.iter_mut().zip(locked(&self.bytes).iter().skip(offset as usize)).for_each(|(to, from)| *to = *from);
    }
    fn write(&self, offset: u64, bytes: &[u8]) {
        locked(&self.bytes).iter_mut().skip(offset as usize).zip(bytes).for_each(|(to, from)| *to = *from);
    }
    fn clear(&self, len: u64) {
        locked(&self.bytes).iter_mut().take(len as usize).for_each(|byte| *byte = 0);
    }
    fn place(&self, gpa: Option<u64>) {
        locked(&self.places).push(gpa);
    }
}

/// Remembers what shadow RAM was told: segment, reads RAM, writes RAM.
#[derive(Default)]
pub struct FakeShadow(pub Mutex<Vec<(usize, bool, bool)>>);

impl ShadowRam for FakeShadow {
    fn set_mode(&self, segment: usize, mode: ShadowMode) {
        locked(&self.0).push((segment, mode.read_ram, mode.write_ram));
    }
}

type Submitted = (DiskRequest, u64, Weak<dyn DiskClient>);

/// A disk in memory whose requests wait until [`FakeDisk::run`].
pub struct FakeDisk {
    /// Its bytes.
    pub bytes: Mutex<Vec<u8>>,
    memory: Arc<dyn Dma>,
    waiting: Mutex<Vec<Submitted>>,
    /// Requests fail with this.
    pub failure: Mutex<Option<DiskError>>,
    /// Everything that was submitted.
    pub log: Mutex<Vec<DiskRequest>>,
}

impl FakeDisk {
    /// A disk of `sectors` sectors, each filled with its number.
    pub fn new(sectors: usize, memory: Arc<dyn Dma>) -> Arc<Self> {
        let bytes = (0..sectors).flat_map(|n| [n as u8; 512]).collect();
        Arc::new(Self {
            bytes: Mutex::new(bytes),
            memory,
            waiting: Mutex::default(),
            failure: Mutex::default(),
            log: Mutex::default(),
        })
    }

    /// Carries out all that was submitted, and what is submitted meanwhile.
    pub fn run(&self) {
        loop {
            let waiting = std::mem::take(&mut *locked(&self.waiting));
            if waiting.is_empty() {
                return;
            }
            for (request, token, client) in waiting {
                let failure = *locked(&self.failure);
                let (result, bytes) = match failure {
                    Some(error) => (Err(error), Vec::new()),
                    None => self.carry_out(request),
                };
                if let Some(client) = client.upgrade() {
                    client.disk_done(DiskDone { token, result, bytes });
                }
            }
        }
    }

    fn carry_out(&self, request: DiskRequest) -> (Result<(), DiskError>, Vec<u8>) {
        let mut disk = locked(&self.bytes);
        let size = disk.len() as u64;
        let at = |offset: u64, len: u64| match offset.checked_add(len) {
            Some(end) if end <= size => Ok(offset as usize..end as usize),
            _ => Err(DiskError::OutOfRange),
        };
        let mut bytes = Vec::new();
        let result = match request {
            DiskRequest::Read { offset, buffer } => at(offset, buffer.len()).map(|range| {
                let mut data = &disk[range];
                match buffer {
                    DiskBuffer::Own(_) => bytes = data.to_vec(),
                    DiskBuffer::Guest(ranges) => ranges.iter().for_each(|r| {
                        let (now, rest) = data.split_at(r.len as usize);
                        self.memory.write(r.gpa, now);
                        data = rest;
                    }),
                }
            }),
            DiskRequest::Write { offset, buffer } => at(offset, buffer.len()).map(|range| {
                let mut data = Vec::new();
                match buffer {
                    DiskBuffer::Own(own) => data = own,
                    DiskBuffer::Guest(ranges) => ranges.iter().for_each(|r| {
                        let mut piece = vec![0; r.len as usize];
                        self.memory.read(r.gpa, &mut piece);
                        data.extend(piece);
                    }),
                }
                disk[range].copy_from_slice(&data);
            }),
            DiskRequest::Flush => Ok(()),
            DiskRequest::Discard { offset, len } | DiskRequest::WriteZeroes { offset, len, .. } => {
                at(offset, len).map(|range| disk[range].fill(0))
            }
        };
        (result, bytes)
    }
}

impl Disk for FakeDisk {
    fn len(&self) -> u64 {
        locked(&self.bytes).len() as u64
    }
    fn read_only(&self) -> bool {
        false
    }
    fn write_cache(&self) -> bool {
        true
    }
    fn submit(&self, request: DiskRequest, token: u64, client: Weak<dyn DiskClient>) {
        locked(&self.log).push(request.clone());
        locked(&self.waiting).push((request, token, client));
    }
}

type Rung = Arc<Mutex<Vec<(Weak<dyn WorkTarget>, u32)>>>;

/// Doorbells that are answered when told.
#[derive(Default)]
pub struct FakeWork(Rung);

struct FakeDoorbell(Rung, Weak<dyn WorkTarget>, u32);

impl Doorbell for FakeDoorbell {
    fn ring(&self) {
        locked(&self.0).push((self.1.clone(), self.2));
    }
}

impl WorkService for FakeWork {
    fn doorbell(&self, target: Weak<dyn WorkTarget>, tag: u32) -> Box<dyn Doorbell> {
        Box::new(FakeDoorbell(self.0.clone(), target, tag))
    }
}

impl FakeWork {
    /// Does the work that was asked for.
    pub fn run(&self) {
        let rung = std::mem::take(&mut *locked(&self.0));
        for (target, tag) in rung {
            target.upgrade().into_iter().for_each(|target| target.work(tag));
        }
    }
}

/// The host's end of a cable: keeps what is sent and counts what it is told.
#[derive(Default)]
pub struct FakeNet {
    /// Frames sent.
    pub frames: Mutex<Vec<Vec<u8>>>,
    /// How often sending was over.
    pub batches: Mutex<usize>,
    /// How often the card said that it has room.
    pub ready: Mutex<usize>,
    card: Mutex<Option<Weak<dyn NetFrontend>>>,
}

impl FakeNet {
    /// Gives the card a frame; whether it took it.
    pub fn deliver(&self, frame: &[u8]) -> bool {
        let card = locked(&self.card).clone().and_then(|card| card.upgrade());
        card.expect("a card").receive(frame, Unfinished::default())
    }

    /// The card at the other end.
    pub fn card(&self) -> Arc<dyn NetFrontend> {
        locked(&self.card).clone().and_then(|card| card.upgrade()).expect("a card")
    }
}

impl NetBackend for FakeNet {
    fn connect(&self, card: Weak<dyn NetFrontend>) {
        *locked(&self.card) = Some(card);
    }
    fn send(&self, frame: &[u8]) {
        locked(&self.frames).push(frame.to_vec());
    }
    fn sent(&self) {
        *locked(&self.batches) += 1;
    }
    fn receive_ready(&self) {
        *locked(&self.ready) += 1;
    }
}

/// Remembers power events.
#[derive(Default)]
pub struct FakePower(pub Mutex<Vec<PowerEvent>>);

impl PowerSink for FakePower {
    fn request(&self, event: PowerEvent) {
        locked(&self.0).push(event);
    }
}

impl FakePower {
    /// Events so far.
    pub fn events(&self) -> Vec<PowerEvent> {
        locked(&self.0).clone()
    }
}

/// Remembers output and counts calls of `input_ready`.
#[derive(Default)]
pub struct FakeChar {
    /// What the guest wrote.
    pub output: Mutex<Vec<u8>>,
    /// How often the device said that it can take input.
    pub ready: AtomicU64,
}

impl CharBackend for FakeChar {
    fn write(&self, bytes: &[u8]) {
        locked(&self.output).extend_from_slice(bytes);
    }
    fn input_ready(&self) {
        self.ready.fetch_add(1, Ordering::SeqCst);
    }
}

/// What a local APIC told its processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// `set_interrupt_pending`.
    Pending(bool),
    /// `nmi`.
    Nmi,
    /// `smi`.
    Smi,
    /// `init`.
    Init,
    /// `start_up`.
    StartUp(u8),
}

/// Remembers what a local APIC told its processor.
#[derive(Default)]
pub struct FakeCpu(pub Mutex<Vec<Signal>>);

impl CpuSignals for FakeCpu {
    fn set_interrupt_pending(&self, pending: bool) {
        locked(&self.0).push(Signal::Pending(pending));
    }
    fn nmi(&self) {
        locked(&self.0).push(Signal::Nmi);
    }
    fn smi(&self) {
        locked(&self.0).push(Signal::Smi);
    }
    fn init(&self) {
        locked(&self.0).push(Signal::Init);
    }
    fn start_up(&self, vector: u8) {
        locked(&self.0).push(Signal::StartUp(vector));
    }
}

/// A small pseudo-random generator (xorshift64*), seeded so that a failing run can be repeated.
pub struct Random(u64);

impl Random {
    /// A generator for `seed`, which must not be 0.
    pub fn new(seed: u64) -> Self {
        Self(seed.max(1))
    }

    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Reads and writes at random offsets, in every size a block implements, moving time and passing timers in between.
/// The test is that nothing panics, and that at the end the state survives a save and restore.
pub fn fuzz(device: &dyn Device, blocks: &[(&dyn RegisterBlock, u64)], time: &FakeTime, seed: u64) {
    let mut random = Random::new(seed);
    for _ in 0..20_000 {
        let (block, len) = blocks[random.below(blocks.len() as u64) as usize];
        let sizes = block.sizes();
        let choices: Vec<u8> = [1u8, 2, 4, 8].into_iter().filter(|s| *s >= sizes.min && *s <= sizes.max).collect();
        let size = choices[random.below(choices.len() as u64) as usize];
        let offset = random.below(len) & !(u64::from(size) - 1);
        if random.below(3) == 0 {
            block.read(offset, size);
        } else {
            let mask = if size == 8 { u64::MAX } else { (1 << (size * 8)) - 1 };
            block.write(offset, size, random.next() & mask);
        }
        if random.below(8) == 0 {
            let shift = random.below(30);
            time.stall_until(time.now_ns() + (random.next() & 0xff) * (1 << shift));
        }
    }
    same_after_restore(device);
}

/// A saved state taken back gives the same saved state, and nonsense is refused without harm.
pub fn same_after_restore(device: &dyn Device) {
    let saved = device.save();
    device.restore(&saved).expect("a device takes its own state");
    assert_eq!(device.save(), saved, "save, restore, save");
    device.restore(&serde_json::json!({ "nonsense": [1, 2] })).expect_err("nonsense is refused");
    assert_eq!(device.save(), saved, "a refused state changes nothing");
}

/// What `used` saves restores into `fresh`, and both then save the same.
pub fn moves_to(used: &dyn Device, fresh: &dyn Device) {
    let saved = used.save();
    fresh.restore(&saved).expect("a device takes the state of its like");
    assert_eq!(fresh.save(), saved);
}
