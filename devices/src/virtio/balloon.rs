//! Memory balloon (section 5.5): the guest gives memory back to the host when it is asked to, reports what it does not use,
//! and tells how much of it there is.

use super::queue::{Chain, Queues};
use super::{Parts, VirtioDevice};
use crate::services::{
    Clock, Dma, Doorbell, GuestRange, MemoryReturn, TimerService, TimerTarget, WorkService, WorkTarget,
};
use crate::state::{Inspector, StateError, StateValue, from_state, to_state};
use crate::wire::{Hook, TimerSlot, locked};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

const QUEUE_SIZE: u16 = 128;
/// The queues (1 is the one through which pages come back); the last one is there if pages are reported.
const INFLATE: usize = 0;
const STATISTICS: usize = 2;
const REPORTING: usize = 3;
/// Pages are counted in units of this, whatever the guest's are.
const PAGE: u64 = 4096;
/// Most bytes of page numbers taken from one request.
const MOST_NUMBERS: usize = 1 << 20;
/// Requests taken from a queue before others on the I/O thread have their turn.
const REQUESTS_AT_ONCE: usize = 32;
/// Fields of the configuration space that the driver writes (5.5.4).
const ACTUAL: usize = 4;
const POISON: usize = 12;
/// Bytes of a statistic: tag and value; and how many kinds the guest may tell of.
const STATISTIC: usize = 10;
const MOST_STATISTICS: usize = 64;
const NS_PER_SECOND: u64 = 1_000_000_000;

/// Feature bits (5.5.3).
mod feature {
    pub const STATS_VQ: u64 = 1 << 1;
    pub const DEFLATE_ON_OOM: u64 = 1 << 2;
    pub const PAGE_POISON: u64 = 1 << 4;
    pub const REPORTING: u64 = 1 << 5;
}

/// Names of statistics by tag (5.5.6.3).
const NAMES: [&str; 10] = [
    "swap_in",
    "swap_out",
    "major_faults",
    "minor_faults",
    "free_memory",
    "total_memory",
    "available_memory",
    "disk_caches",
    "hugetlb_allocations",
    "hugetlb_failures",
];

/// What the device can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonConfig {
    /// The guest may take pages out of the balloon when it runs out of memory.
    pub deflate_on_oom: bool,
    /// The guest reports pages that it does not use.
    pub reporting: bool,
    /// How often the guest is asked for statistics, in seconds of its time; 0: never.
    pub polling_s: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    features: u64,
    /// Pages that are to be in the balloon.
    target: u32,
    /// Pages that are, as the driver says.
    actual: u32,
    /// What the guest fills pages with that it does not use.
    poison: u32,
    /// The buffer in which the driver gives statistics, to be returned when they are wanted.
    buffer: Option<Chain>,
    statistics: BTreeMap<u16, u64>,
    /// When the driver is asked again, in nanoseconds of guest time.
    poll_at: Option<u64>,
}

/// The device. Locks: `state` before those of the queues; memory is given back, and timer and doorbell are used, without it.
pub struct VirtioBalloon {
    config: BalloonConfig,
    /// Bytes of guest RAM.
    ram: u64,
    memory: Arc<dyn MemoryReturn>,
    queues: Arc<Queues>,
    clock: Arc<dyn Clock>,
    doorbell: Box<dyn Doorbell>,
    timer: TimerSlot,
    /// Queues to be looked at, by bit.
    kicked: AtomicU64,
    /// How often the guest is asked for statistics, in seconds of its time; 0: never.
    polling_s: AtomicU32,
    /// When the guest told them last, in seconds since 1970; 0: never.
    told_at: AtomicU64,
    /// Who hears how many bytes the guest has when that changes.
    pub changed: Hook<u64>,
    state: Mutex<State>,
}

/// What a balloon is connected to.
pub struct Surroundings<'a> {
    /// Bytes of guest RAM.
    pub ram: u64,
    /// Guest memory.
    pub dma: Arc<dyn Dma>,
    /// Who takes memory back.
    pub memory: Arc<dyn MemoryReturn>,
    /// Guest time.
    pub clock: Arc<dyn Clock>,
    /// Timers.
    pub timers: &'a dyn TimerService,
    /// Doorbells.
    pub work: &'a dyn WorkService,
}

impl VirtioBalloon {
    /// An empty balloon, with its parts for a transport.
    pub fn new(config: BalloonConfig, surroundings: Surroundings) -> (Arc<Self>, Parts) {
        let Surroundings { ram, dma, memory, clock, timers, work } = surroundings;
        let queues = Queues::new(dma, if config.reporting { 4 } else { 3 }, QUEUE_SIZE);
        let device = Arc::new_cyclic(|this: &Weak<Self>| Self {
            config,
            ram,
            memory,
            queues: queues.clone(),
            clock,
            doorbell: work.doorbell(this.clone(), 0),
            timer: TimerSlot::new(timers.create(this.clone(), 0)),
            kicked: AtomicU64::new(0),
            polling_s: AtomicU32::new(config.polling_s),
            told_at: AtomicU64::new(0),
            changed: Hook::default(),
            state: Mutex::default(),
        });
        let parts = Parts { device: device.clone(), queues };
        (device, parts)
    }

    /// Asks the guest to make do with `bytes` of memory.
    pub fn set_target(&self, bytes: u64) {
        let pages = self.ram.saturating_sub(bytes) / PAGE;
        locked(&self.state).target = u32::try_from(pages).unwrap_or(u32::MAX);
        self.queues.config_changed();
    }

    /// Bytes that the guest has now.
    pub fn actual(&self) -> u64 {
        self.ram.saturating_sub(u64::from(locked(&self.state).actual) * PAGE)
    }

    /// What the guest told last, by name.
    pub fn statistics(&self) -> Vec<(&'static str, u64)> {
        let state = locked(&self.state);
        let named = |(tag, value): (&u16, &u64)| Some((*NAMES.get(usize::from(*tag))?, *value));
        state.statistics.iter().filter_map(named).collect()
    }

    /// Statistics by their tags (5.5.6.3), and when the guest told them, in seconds since 1970; 0: never.
    pub fn told(&self) -> (BTreeMap<u16, u64>, u64) {
        (locked(&self.state).statistics.clone(), self.told_at.load(Ordering::SeqCst))
    }

    /// How often the guest is asked for statistics, in seconds of its time; 0: never.
    pub fn polling(&self) -> u32 {
        self.polling_s.load(Ordering::SeqCst)
    }

    /// Changes that; the next time counts from now.
    pub fn set_polling(&self, seconds: u32) {
        self.polling_s.store(seconds, Ordering::SeqCst);
        {
            let mut state = locked(&self.state);
            state.poll_at = None;
            self.timer.want(None);
            // Without a buffer the driver is answering at the moment, and its answer sets the time.
            if state.buffer.is_some() {
                self.schedule(&mut state);
            }
        }
        self.timer.flush();
    }

    fn serve(&self) {
        let kicked = self.kicked.swap(0, Ordering::SeqCst);
        for index in (0..self.queues.count()).filter(|index| kicked >> index & 1 != 0) {
            if index == STATISTICS {
                self.take_statistics();
            } else if !self.serve_queue(index) {
                self.notify(index);
            }
        }
    }

    /// Takes what is in a queue. `false`: there may be more, and others are to have their turn.
    fn serve_queue(&self, index: usize) -> bool {
        for _ in 0..REQUESTS_AT_ONCE {
            let Some(chain) = self.queues.pop(index) else { return true };
            match index {
                INFLATE => self.inflate(&chain),
                REPORTING => self.report(&chain),
                // Pages come back by being used.
                _ => {}
            }
            self.queues.push(index, chain.head, 0);
        }
        false
    }

    /// The request has numbers of pages that the guest does without.
    fn inflate(&self, chain: &Chain) {
        let bytes = chain.gather(&**self.queues.dma(), 0, MOST_NUMBERS);
        let number = |chunk: &[u8]| chunk.try_into().map(u32::from_le_bytes).ok();
        let mut pages: Vec<u32> = bytes.chunks_exact(4).filter_map(number).collect();
        pages.sort_unstable();
        pages.dedup();
        let mut ranges: Vec<GuestRange> = Vec::new();
        for gpa in pages.into_iter().map(|page| u64::from(page) * PAGE) {
            match ranges.last_mut() {
                Some(last) if last.gpa + last.len == gpa => last.len += PAGE,
                _ => ranges.push(GuestRange { gpa, len: PAGE }),
            }
        }
        self.memory.give_back(&ranges);
    }

    /// The request names memory that is not used at the moment. It must keep what it is filled with, if the guest looks.
    fn report(&self, chain: &Chain) {
        let kept = {
            let state = locked(&self.state);
            state.features & feature::PAGE_POISON != 0 && state.poison != 0
        };
        if !kept {
            self.memory.give_back(&chain.writable);
        }
    }

    /// Reads statistics, and keeps the buffer until they are wanted anew.
    fn take_statistics(&self) {
        {
            let mut state = locked(&self.state);
            let Some(chain) = self.queues.pop(STATISTICS) else { return };
            let bytes = chain.gather(&**self.queues.dma(), 0, STATISTIC * MOST_STATISTICS);
            for statistic in bytes.chunks_exact(STATISTIC) {
                if let &[a, b, c, d, e, f, g, h, i, j] = statistic {
                    let tag = u16::from_le_bytes([a, b]);
                    if state.statistics.len() < MOST_STATISTICS || state.statistics.contains_key(&tag) {
                        state.statistics.insert(tag, u64::from_le_bytes([c, d, e, f, g, h, i, j]));
                    }
                }
            }
            // A driver has one buffer in the queue; one more takes its place.
            if let Some(old) = state.buffer.replace(chain) {
                self.queues.push(STATISTICS, old.head, 0);
            }
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
            self.told_at.store(now, Ordering::SeqCst);
            self.schedule(&mut state);
        }
        self.timer.flush();
    }

    /// Sets the time of the next poll.
    fn schedule(&self, state: &mut State) {
        let polling = self.polling();
        if polling != 0 {
            let wait = u64::from(polling) * NS_PER_SECOND;
            state.poll_at = Some(self.clock.now_ns().saturating_add(wait));
            self.timer.want(state.poll_at);
        }
    }
}

impl TimerTarget for VirtioBalloon {
    fn timer_fired(&self, _tag: u32, _now_ns: u64) {
        let buffer = {
            let mut state = locked(&self.state);
            state.poll_at = None;
            state.buffer.take()
        };
        // Without one the driver has not answered the last time: its answer starts the clock again.
        if let Some(buffer) = buffer {
            self.queues.push(STATISTICS, buffer.head, 0);
        }
    }
}

impl WorkTarget for VirtioBalloon {
    fn work(&self, _tag: u32) {
        self.serve();
    }
}

impl VirtioDevice for VirtioBalloon {
    fn name(&self) -> &'static str {
        "virtio-balloon-pci"
    }

    fn device_type(&self) -> u16 {
        5
    }

    fn pci_class(&self) -> u32 {
        0x00_ff00
    }

    fn features(&self) -> u64 {
        let choice = |on, bit| if on { bit } else { 0 };
        feature::STATS_VQ
            | feature::PAGE_POISON
            | choice(self.config.deflate_on_oom, feature::DEFLATE_ON_OOM)
            | choice(self.config.reporting, feature::REPORTING)
    }

    fn config(&self) -> Vec<u8> {
        let State { target, actual, poison, .. } = *locked(&self.state);
        // Between them is the command of a hinting that the host begins; there is none.
        [target, actual, 0, poison].iter().flat_map(|field| field.to_le_bytes()).collect()
    }

    fn config_write(&self, offset: usize, bytes: &[u8]) {
        let mut fields = self.config();
        fields.iter_mut().skip(offset).zip(bytes).for_each(|(to, from)| *to = *from);
        let field = |at: usize| fields.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
        let before = {
            let mut state = locked(&self.state);
            let before = state.actual;
            (state.actual, state.poison) = (field(ACTUAL), field(POISON));
            before
        };
        if before != field(ACTUAL) {
            self.changed.call(self.actual());
        }
    }

    fn start(&self, features: u64) {
        locked(&self.state).features = features;
    }

    fn notify(&self, index: usize) {
        self.kicked.fetch_or(1u64.checked_shl(index as u32).unwrap_or(0), Ordering::SeqCst);
        self.doorbell.ring();
    }

    fn reset(&self) {
        self.kicked.store(0, Ordering::SeqCst);
        {
            let mut state = locked(&self.state);
            // What the host wants stays; a guest that begins anew has all its memory.
            *state = State { target: state.target, ..State::default() };
            self.timer.want(None);
        }
        self.timer.flush();
    }

    fn busy(&self) -> bool {
        false
    }

    fn save(&self) -> StateValue {
        to_state(&*locked(&self.state))
    }

    fn restore(&self, state: &StateValue, check: bool) -> Result<(), StateError> {
        let new: State = from_state(self.name(), state)?;
        if new.statistics.len() > MOST_STATISTICS {
            return Err(StateError::Malformed { device: self.name(), reason: "too many statistics".into() });
        }
        if check {
            return Ok(());
        }
        {
            let mut state = locked(&self.state);
            *state = new;
            self.timer.want(state.poll_at);
        }
        self.timer.flush();
        // What was notified and not served when the state was saved.
        (0..self.queues.count()).for_each(|index| self.notify(index));
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        let state = locked(&self.state).clone();
        out.field("target_pages", state.target);
        out.field("actual_pages", state.actual);
        out.field("deflate_on_oom", self.config.deflate_on_oom);
        out.field("free_page_reporting", self.config.reporting);
        out.group("statistics", |out| {
            for (tag, value) in &state.statistics {
                out.field(NAMES.get(usize::from(*tag)).unwrap_or(&"other"), value);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::bench::{Bench, DATA, REGISTERS, fuzz};
    use super::*;
    use crate::bus::Device;
    use crate::fakes::moves_to;

    #[derive(Default)]
    struct Returned(Mutex<Vec<(u64, u64)>>);

    impl MemoryReturn for Returned {
        fn give_back(&self, ranges: &[GuestRange]) {
            locked(&self.0).extend(ranges.iter().map(|range| (range.gpa, range.len)));
        }
    }

    const ALL: BalloonConfig = BalloonConfig { deflate_on_oom: true, reporting: true, polling_s: 2 };
    const RAM: u64 = 64 << 20;

    fn make(s: &super::super::bench::Surroundings, returned: &Arc<Returned>) -> (Arc<VirtioBalloon>, Parts) {
        let surroundings = Surroundings {
            ram: RAM,
            dma: s.memory.clone(),
            memory: returned.clone(),
            clock: s.time.clone(),
            timers: &*s.time,
            work: &s.work,
        };
        VirtioBalloon::new(ALL, surroundings)
    }

    fn bench(features: u64) -> (Arc<Returned>, Arc<VirtioBalloon>, Bench) {
        let returned = Arc::new(Returned::default());
        let mut device = None;
        let b = Bench::new(features, |s| {
            let (balloon, parts) = make(s, &returned);
            device = Some(balloon);
            parts
        });
        (returned, device.unwrap(), b)
    }

    #[test]
    fn pages_go_back_in_runs() {
        let (returned, balloon, mut b) = bench(0);
        b.irq.clear();
        balloon.set_target(48 << 20);
        assert!(b.irq.level(11), "the configuration has changed");
        assert_eq!(b.config(0, 4), 4096);
        let pages: Vec<u8> = [7u32, 5, 6, 9, 6].iter().flat_map(|page| page.to_le_bytes()).collect();
        b.s.memory.write(DATA, &pages);
        b.queues[INFLATE].add(&[(DATA, 20, false)]);
        b.kick(0);
        assert_eq!(*locked(&returned.0), [(0x5000, 0x3000), (0x9000, 0x1000)]);
        assert_eq!(b.queues[INFLATE].used(), [(0, 0)]);
        b.bus.mmio_write(REGISTERS + 0x2004, 4, 4);
        assert_eq!(balloon.actual(), RAM - 4 * PAGE);
        b.queues[1].add(&[(DATA, 20, false)]);
        b.kick(1);
        assert_eq!(b.queues[1].used(), [(0, 0)]);
        assert_eq!(locked(&returned.0).len(), 2);
        b.device.reset();
        assert_eq!(balloon.actual(), RAM);
        balloon.set_target(u64::MAX);
    }

    #[test]
    fn reports_go_back_unless_pages_must_keep_their_filling() {
        let (returned, _, mut b) = bench(feature::REPORTING | feature::PAGE_POISON);
        b.queues[REPORTING].add(&[(0x20_0000, 0x20_0000, true), (0x80_0000, 0x1000, true)]);
        b.kick(3);
        assert_eq!(*locked(&returned.0), [(0x20_0000, 0x20_0000), (0x80_0000, 0x1000)]);
        assert_eq!(b.queues[REPORTING].used(), [(0, 0)]);
        b.bus.mmio_write(REGISTERS + 0x200c, 4, 0xaa);
        b.queues[REPORTING].add(&[(0x20_0000, 0x20_0000, true)]);
        b.kick(3);
        assert_eq!(locked(&returned.0).len(), 2);
    }

    #[test]
    fn statistics_are_asked_for_in_guest_time() {
        let (_, balloon, mut b) = bench(feature::STATS_VQ);
        let entry = |tag: u16, value: u64| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
        b.s.memory.write(DATA, &[entry(4, 1000), entry(5, 2000), entry(77, 1)].concat());
        b.queues[STATISTICS].add(&[(DATA, 30, false)]);
        b.kick(2);
        assert_eq!(balloon.statistics(), [("free_memory", 1000), ("total_memory", 2000)]);
        assert_eq!(b.queues[STATISTICS].used(), [], "kept until wanted");
        b.s.time.advance(2 * NS_PER_SECOND);
        assert_eq!(b.queues[STATISTICS].used(), [(0, 0)]);
        b.s.time.advance(20 * NS_PER_SECOND);
        assert_eq!(b.queues[STATISTICS].used(), [], "the driver has not answered");
        assert!(balloon.told().1 > 1_600_000_000 && balloon.told().0.contains_key(&77));
        // The host wants them seldomer, then not at all, then often.
        let ask = |b: &mut Bench| {
            b.queues[STATISTICS].add(&[(DATA, 30, false)]);
            b.kick(2);
        };
        ask(&mut b);
        balloon.set_polling(5);
        b.s.time.advance(4 * NS_PER_SECOND);
        assert_eq!(b.queues[STATISTICS].used(), []);
        b.s.time.advance(NS_PER_SECOND);
        assert_eq!(b.queues[STATISTICS].used().len(), 1);
        ask(&mut b);
        balloon.set_polling(0);
        b.s.time.advance(100 * NS_PER_SECOND);
        assert_eq!(b.queues[STATISTICS].used(), []);
        balloon.set_polling(1);
        b.s.time.advance(NS_PER_SECOND);
        assert_eq!((balloon.polling(), b.queues[STATISTICS].used().len()), (1, 1));
    }

    #[test]
    fn state_moves() {
        let (returned, balloon, mut b) = bench(feature::STATS_VQ);
        balloon.set_target(1 << 20);
        b.queues[STATISTICS].add(&[(DATA, 30, false)]);
        b.kick(2);
        let other = Bench::bare(|s| make(s, &returned).1);
        moves_to(&*b.device, &*other.device);
        assert_eq!(other.config(0, 4), 63 * 256);
    }

    #[test]
    fn random_accesses_and_rings() {
        let returned = Arc::new(Returned::default());
        fuzz(43, |s| make(s, &returned).1, |_| ());
    }
}
