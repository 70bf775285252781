//! Split virtqueues (section 2.7): descriptor table, available ring, used ring.

use crate::guest_error;
use crate::services::{Dma, GuestRange};
use crate::wire::locked;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock, Weak};

/// Bytes of a descriptor.
const DESCRIPTOR: u64 = 16;
/// Flags of a descriptor.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Flag of the available ring: no interrupts wanted.
const NO_INTERRUPT: u16 = 1;
/// Flag of the used ring: no notifications wanted.
const NO_NOTIFY: u16 = 1;
/// Alignment of the used ring of a legacy queue.
const LEGACY_ALIGNMENT: u64 = 4096;

/// A request: pieces that the device reads, then pieces that it writes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// First descriptor, by which the driver knows the request.
    pub head: u16,
    /// What the driver gives.
    pub readable: Vec<GuestRange>,
    /// Room for the answer.
    pub writable: Vec<GuestRange>,
}

/// The ring contradicts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// What a transport knows and sets of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueState {
    /// Entries, a power of two; 0: not set up.
    pub size: u16,
    /// In use.
    pub ready: bool,
    /// Where the descriptors are.
    pub descriptors: u64,
    /// Where the available ring is.
    pub available: u64,
    /// Where the used ring is.
    pub used: u64,
    /// Next entry of the available ring.
    next_available: u16,
    /// Next entry of the used ring.
    next_used: u16,
    /// Where `next_used` was when the driver was told last.
    told: u16,
    /// Nothing was told since the queue began.
    first: bool,
}

/// One queue.
pub struct Queue {
    max: u16,
    state: QueueState,
}

/// Who interrupts the driver.
pub trait QueueEvents: Send + Sync {
    /// Queue `index` has used entries that the driver wants to hear of.
    fn used(&self, index: usize);
    /// The device cannot go on until it is reset.
    fn broken(&self);
    /// The configuration space of the device has changed.
    fn config_changed(&self) {}
}

/// A device's queues. Locks: one queue at a time; guest memory is accessed with it held.
pub struct Queues {
    dma: Arc<dyn Dma>,
    queues: Vec<Mutex<Queue>>,
    features: AtomicU64,
    broken: AtomicBool,
    events: OnceLock<Weak<dyn QueueEvents>>,
}

impl Queue {
    /// Size the driver finds.
    pub fn max(&self) -> u16 {
        self.max
    }

    /// What is set.
    pub fn state(&self) -> QueueState {
        self.state
    }

    /// Changes what the transport sets, as long as the queue is not in use.
    pub fn set_up(&mut self, change: impl FnOnce(&mut QueueState)) {
        if self.state.ready {
            guest_error!("virtio: a queue in use was set up");
            return;
        }
        let mut new = self.state;
        change(&mut new);
        if new.size.is_power_of_two() && new.size <= self.max {
            self.state = new;
        } else {
            guest_error!("virtio: {} is no size for a queue", new.size);
        }
    }

    /// The legacy way: everything in pages from `page` on. 0 takes the queue out of use.
    pub fn set_page(&mut self, page: u32) {
        let size = u64::from(self.max);
        let descriptors = u64::from(page) * LEGACY_ALIGNMENT;
        let available = descriptors + DESCRIPTOR * size;
        let used = (available + 6 + 2 * size).next_multiple_of(LEGACY_ALIGNMENT);
        let ready = page != 0;
        self.state = QueueState { size: self.max, ready, descriptors, available, used, first: true, ..self.state };
        if !ready {
            self.state = fresh(self.max);
        }
    }

    /// The page of a legacy queue.
    pub fn page(&self) -> u32 {
        if self.state.ready { (self.state.descriptors / LEGACY_ALIGNMENT) as u32 } else { 0 }
    }
}

fn fresh(max: u16) -> QueueState {
    QueueState { size: max, first: true, ..QueueState::default() }
}

fn word(dma: &dyn Dma, gpa: u64) -> u16 {
    let mut bytes = [0; 2];
    dma.read(gpa, &mut bytes);
    u16::from_le_bytes(bytes)
}

struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

fn descriptor(dma: &dyn Dma, table: u64, index: u16) -> Descriptor {
    let mut bytes = [0; DESCRIPTOR as usize];
    dma.read(table.wrapping_add(u64::from(index) * DESCRIPTOR), &mut bytes);
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
    Descriptor {
        address: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        len: u32::from_le_bytes([i, j, k, l]),
        flags: u16::from_le_bytes([m, n]),
        next: u16::from_le_bytes([o, p]),
    }
}

impl QueueState {
    /// Follows a chain. It has at most as many descriptors as the queue has entries (2.7.5.3.1 for tables).
    fn follow(&self, dma: &dyn Dma, head: u16, indirect_taken: bool) -> Result<Chain, Broken> {
        let mut chain = Chain { head, ..Chain::default() };
        let (mut table, mut entries, mut index, mut indirect) = (self.descriptors, self.size, head, false);
        for _ in 0..=self.size {
            if index >= entries {
                return Err(Broken);
            }
            let d = descriptor(dma, table, index);
            if d.flags & INDIRECT != 0 {
                let count = d.len / DESCRIPTOR as u32;
                let sound =
                    indirect_taken && !indirect && d.flags & NEXT == 0 && d.len.is_multiple_of(DESCRIPTOR as u32);
                if !sound || count == 0 || count > self.size.into() {
                    return Err(Broken);
                }
                (table, entries, index, indirect) = (d.address, count as u16, 0, true);
                continue;
            }
            let range = GuestRange { gpa: d.address, len: d.len.into() };
            match d.flags & WRITE {
                0 if !chain.writable.is_empty() => return Err(Broken),
                0 => chain.readable.push(range),
                _ => chain.writable.push(range),
            }
            if d.flags & NEXT == 0 {
                return Ok(chain);
            }
            index = d.next;
        }
        Err(Broken)
    }

    /// The next request.
    fn pop(&mut self, dma: &dyn Dma, features: u64) -> Result<Option<Chain>, Broken> {
        let event = features & super::feature::EVENT_IDX != 0;
        let mut index = word(dma, self.available.wrapping_add(2));
        if index == self.next_available {
            // Say from where on to be told, and look again: the driver may have added one meanwhile.
            if event {
                let at = self.used.wrapping_add(4 + 8 * u64::from(self.size));
                dma.write(at, &self.next_available.to_le_bytes());
                fence(Ordering::SeqCst);
                index = word(dma, self.available.wrapping_add(2));
            }
            if index == self.next_available {
                return Ok(None);
            }
        }
        if index.wrapping_sub(self.next_available) > self.size {
            return Err(Broken);
        }
        fence(Ordering::Acquire);
        let slot = self.next_available & (self.size.max(1) - 1);
        let head = word(dma, self.available.wrapping_add(4 + 2 * u64::from(slot)));
        self.next_available = self.next_available.wrapping_add(1);
        self.follow(dma, head, features & super::feature::INDIRECT != 0).map(Some)
    }

    /// Gives requests back, each with the bytes written for it; the driver sees all of them at once. `true`: it wants
    /// to be told.
    fn push(&mut self, dma: &dyn Dma, features: u64, done: &[(u16, u32)]) -> bool {
        for (head, len) in done {
            let slot = self.next_used & (self.size.max(1) - 1);
            let entry = [u32::from(*head).to_le_bytes(), len.to_le_bytes()].concat();
            dma.write(self.used.wrapping_add(4 + 8 * u64::from(slot)), &entry);
            self.next_used = self.next_used.wrapping_add(1);
        }
        fence(Ordering::SeqCst);
        dma.write(self.used.wrapping_add(2), &self.next_used.to_le_bytes());
        fence(Ordering::SeqCst);
        if features & super::feature::EVENT_IDX == 0 {
            return word(dma, self.available) & NO_INTERRUPT == 0;
        }
        // As 2.7.7.2: the wanted index was passed since the last time.
        let wanted = word(dma, self.available.wrapping_add(4 + 2 * u64::from(self.size)));
        let (new, old) = (self.next_used, self.told);
        let tell = std::mem::take(&mut self.first) || new.wrapping_sub(wanted).wrapping_sub(1) < new.wrapping_sub(old);
        self.told = new;
        tell
    }
}

impl Queues {
    /// `count` queues of at most `max` entries, a power of two.
    pub fn new(dma: Arc<dyn Dma>, count: usize, max: u16) -> Arc<Self> {
        let queue = || Mutex::new(Queue { max, state: fresh(max) });
        Arc::new(Self {
            dma,
            queues: (0..count).map(|_| queue()).collect(),
            features: AtomicU64::new(0),
            broken: AtomicBool::new(false),
            events: OnceLock::new(),
        })
    }

    /// Connects the transport; the first one stays.
    pub fn connect(&self, events: Weak<dyn QueueEvents>) {
        // A second transport would be a mistake of the machine's.
        let _ = self.events.set(events);
    }

    /// Guest memory.
    pub fn dma(&self) -> &Arc<dyn Dma> {
        &self.dma
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.queues.len()
    }

    /// Looks at or sets up queue `index`, if there is one.
    pub fn with<R>(&self, index: usize, f: impl FnOnce(&mut Queue) -> R) -> Option<R> {
        Some(f(&mut locked(self.queues.get(index)?)))
    }

    /// Takes queue `index` into use.
    pub fn enable(&self, index: usize) {
        self.with(index, |queue| queue.state.ready |= queue.state.size != 0);
    }

    /// The driver took these features.
    pub fn set_features(&self, features: u64) {
        self.features.store(features, Ordering::SeqCst);
    }

    /// The features that the driver took.
    pub fn features(&self) -> u64 {
        self.features.load(Ordering::SeqCst)
    }

    /// All queues as after power-on.
    pub fn reset(&self) {
        self.features.store(0, Ordering::SeqCst);
        self.broken.store(false, Ordering::SeqCst);
        self.queues.iter().for_each(|queue| {
            let mut queue = locked(queue);
            queue.state = fresh(queue.max);
        });
    }

    /// The next request of queue `index`.
    pub fn pop(&self, index: usize) -> Option<Chain> {
        if self.broken.load(Ordering::SeqCst) {
            return None;
        }
        let features = self.features();
        let dma = &*self.dma;
        let popped = self.with(index, |queue| match queue.state.ready {
            true => queue.state.pop(dma, features),
            false => Ok(None),
        })?;
        popped.unwrap_or_else(|Broken| {
            self.stop();
            None
        })
    }

    /// Gives a request back to queue `index`, with `len` bytes written.
    pub fn push(&self, index: usize, head: u16, len: u32) {
        self.push_all(index, &[(head, len)]);
    }

    /// Gives several requests back at once, see [`Queues::push`].
    pub fn push_all(&self, index: usize, done: &[(u16, u32)]) {
        let features = self.features();
        let dma = &*self.dma;
        let tell = self.with(index, |queue| queue.state.ready && queue.state.push(dma, features, done));
        if tell == Some(true)
            && let Some(events) = self.events.get().and_then(Weak::upgrade)
        {
            events.used(index);
        }
    }

    /// Tells the driver not to notify (a hint), or to notify again.
    pub fn want_notifications(&self, index: usize, wanted: bool) {
        if self.features() & super::feature::EVENT_IDX != 0 {
            return;
        }
        let dma = &*self.dma;
        self.with(index, |queue| {
            if queue.state.ready {
                dma.write(queue.state.used, &(if wanted { 0 } else { NO_NOTIFY }).to_le_bytes());
            }
        });
        fence(Ordering::SeqCst);
    }

    /// A ring or a request contradicts itself: nothing more is taken until the next reset.
    pub fn stop(&self) {
        guest_error!("virtio: a queue contradicts itself; the device stops until it is reset");
        self.broken.store(true, Ordering::SeqCst);
        if let Some(events) = self.events.get().and_then(Weak::upgrade) {
            events.broken();
        }
    }

    /// The device has changed its configuration space: the driver is told. Call it without the device's locks.
    pub fn config_changed(&self) {
        if let Some(events) = self.events.get().and_then(Weak::upgrade) {
            events.config_changed();
        }
    }

    /// States of all queues, and the features.
    pub fn save(&self) -> (u64, Vec<QueueState>) {
        (self.features(), self.queues.iter().map(|queue| locked(queue).state).collect())
    }

    /// Whether `states` could have come from these queues.
    pub fn fits(&self, states: &[QueueState]) -> bool {
        let sound = |(queue, state): (&Mutex<Queue>, &QueueState)| {
            state.size.is_power_of_two() && state.size <= locked(queue).max
        };
        states.len() == self.queues.len() && self.queues.iter().zip(states).all(sound)
    }

    /// Takes over states that fit.
    pub fn restore(&self, features: u64, states: &[QueueState]) {
        self.set_features(features);
        self.broken.store(false, Ordering::SeqCst);
        self.queues.iter().zip(states).for_each(|(queue, state)| locked(queue).state = *state);
    }
}

#[cfg(test)]
mod tests {
    use super::super::feature;
    use super::*;
    use crate::fakes::{FakeMemory, Random};
    use crate::virtio::blk::tests::Driver;

    fn queues(features: u64) -> (Arc<FakeMemory>, Arc<Queues>, Driver) {
        let memory = FakeMemory::new(0x1_0000);
        let queues = Queues::new(memory.clone(), 1, 8);
        queues.set_features(features);
        let driver = Driver::new(memory.clone(), 0x1000, 8);
        queues.with(0, |queue| {
            queue.set_up(|state| {
                (state.size, state.descriptors, state.available, state.used) = (8, 0x1000, 0x2000, 0x3000);
            });
        });
        queues.enable(0);
        (memory, queues, driver)
    }

    #[test]
    fn chains_direct_and_indirect() {
        let (memory, queues, mut driver) = queues(feature::INDIRECT);
        let range = |gpa, len| GuestRange { gpa, len };
        assert_eq!(queues.pop(0), None);
        let head = driver.add(&[(0x4000, 16, false), (0x5000, 512, true), (0x6000, 1, true)]);
        let chain = queues.pop(0).unwrap();
        assert_eq!(chain.readable, [range(0x4000, 16)]);
        assert_eq!((chain.head, chain.writable.as_slice()), (head, &[range(0x5000, 512), range(0x6000, 1)][..]));
        let table: Vec<u8> = [(0x4000u64, 16u32, 1u16, 1u16), (0x6000, 1, 2, 0)]
            .iter()
            .flat_map(|(a, l, f, n)| {
                [&a.to_le_bytes()[..], &l.to_le_bytes(), &f.to_le_bytes(), &n.to_le_bytes()].concat()
            })
            .collect();
        memory.write(0x7000, &table);
        driver.add_indirect(0x7000, 32);
        let chain = queues.pop(0).unwrap();
        assert_eq!((chain.readable.len(), chain.writable.len()), (1, 1));
        queues.push(0, chain.head, 1);
        assert_eq!(driver.used(), [(u32::from(chain.head), 1)]);
    }

    #[test]
    fn contradictions_stop_the_device() {
        for case in 0..6 {
            let (memory, queues, mut driver) = queues(feature::INDIRECT);
            match case {
                // A loop; an entry that does not exist; too many new entries.
                0 => driver.add_raw(&[(0x4000, 16, 1, 0)]),
                1 => driver.available(99),
                2 => memory.write(0x2002, &9u16.to_le_bytes()),
                // Reading after writing; a table of odd length; a table in a table.
                3 => driver.add_raw(&[(0x4000, 16, 3, 1), (0x5000, 16, 0, 0)]),
                4 => driver.add_indirect(0x7000, 17),
                _ => {
                    memory.write(0x7008, &[16, 0, 0, 0, 4, 0]);
                    driver.add_indirect(0x7000, 16);
                }
            }
            assert_eq!(queues.pop(0), None, "{case}");
            driver.add(&[(0x4000, 16, false)]);
            assert_eq!(queues.pop(0), None, "{case}: it stays so");
            queues.reset();
            assert_eq!(queues.pop(0), None, "{case}: not set up");
        }
    }

    #[test]
    fn event_indexes_limit_interrupts() {
        struct Count(Mutex<u32>);
        impl QueueEvents for Count {
            fn used(&self, _index: usize) {
                *locked(&self.0) += 1;
            }
            fn broken(&self) {}
        }
        let count = Arc::new(Count(Mutex::new(0)));
        let (memory, queues, mut driver) = queues(feature::EVENT_IDX);
        let events: Arc<dyn QueueEvents> = count.clone();
        queues.connect(Arc::downgrade(&events));
        // Interrupt after the third.
        memory.write(0x2000 + 4 + 16, &2u16.to_le_bytes());
        (0..5).for_each(|_| _ = driver.add(&[(0x4000, 16, false)]));
        let heads: Vec<u16> = std::iter::from_fn(|| queues.pop(0)).map(|c| c.head).collect();
        assert_eq!(heads.len(), 5);
        assert_eq!(word(&*memory, 0x3000 + 4 + 64), 5, "tell us from the sixth on");
        heads.into_iter().for_each(|head| queues.push(0, head, 0));
        assert_eq!(*locked(&count.0), 2, "the first ever, and the third");
    }

    #[test]
    fn random_rings() {
        let mut random = Random::new(31);
        for _ in 0..300 {
            let (memory, queues, _) = queues(random.next());
            let mut page = vec![0; 0x100];
            for base in [0x1000u64, 0x2000, 0x3000, 0x7000] {
                // Small numbers make sense more often.
                page.iter_mut().for_each(|b| *b = if random.below(3) == 0 { random.next() as u8 & 7 } else { 0 });
                memory.write(base, &page);
            }
            for _ in 0..20 {
                if let Some(chain) = queues.pop(0) {
                    assert!(chain.readable.len() + chain.writable.len() <= 9);
                    queues.push(0, chain.head, random.next() as u32);
                }
            }
        }
    }
}
