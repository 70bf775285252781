//! Compiled regions for all processors of an engine: each is compiled once, and placed in the code memory of whoever has
//! the same code. What a region is compiled from is compared exactly; a hash only tells where to look.
//!
//! Processors form regions from the blocks that they have run, so the regions of two with the same head often differ in
//! what one of them has not come to yet. Who asks for a region is told of the [`Shape`] of one with the same head that has
//! all that it asks for: if its memory holds the same code, it asks for that one.
//!
//! Only compile threads take the store's lock. What processors want to know, [`Heads`] tells them: whether a region starts
//! somewhere, and which were finished since they looked last.

mod content;

use super::place::{CodePage, Ready, Unplaced};
use super::slots::Key;
use crate::lower::Region;
pub use content::{Shape, print_of};
use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Shapes kept for one head; the oldest goes first.
const SHAPES: usize = 4;
/// Entries of [`Heads`].
const HEADS: usize = 1 << 16;
/// Heads that were finished last, which processors are told of.
const NEWS: usize = 1 << 10;

/// What a compilation led to.
pub type Outcome = Result<Arc<Ready>, Unplaced>;

/// What a processor asks for.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Where its head is.
    pub head: Key,
    /// A larger region with the same head is welcome.
    pub or_larger: bool,
    /// Only if it need not be compiled.
    pub if_known: bool,
}

/// Counters of the store, for `info jit`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Regions compiled.
    pub compiled: u64,
    /// The time that this took, in nanoseconds.
    pub compile_ns: u64,
    /// Times that a region was there already, or was being compiled.
    pub reused: u64,
    /// Times that another region with the same head was proposed.
    pub proposed: u64,
    /// Regions held.
    pub held: u64,
    /// Bytes that they take.
    pub bytes: u64,
    /// Regions let go to keep within bounds.
    pub evicted: u64,
}

/// What the store says to a question.
pub enum Answer<W> {
    /// There it is.
    Known(W, Outcome),
    /// Somebody is at it; [`Store::finish`] returns who waits.
    Waits,
    /// There is a larger region with this head.
    Larger(W, Arc<Shape>),
    /// It is not known, and is not to be compiled.
    Unknown(W),
    /// To be compiled now by who asked.
    Compile(W, Content),
}

/// What a region is made from.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Content(Arc<[u8]>);

impl Content {
    /// That of a region, and its blocks where it lies on `places`.
    pub fn of(region: &Region, places: &[CodePage]) -> (Self, Shape) {
        let (bytes, shape) = content::of_region(region, places);
        (Self(bytes.into()), shape)
    }
}

enum State<W> {
    /// It is being compiled. These wait.
    InWork(Vec<W>),
    Finished(Outcome),
}

struct Entry<W> {
    state: State<W>,
    /// Where it is, and what it looks like there.
    heads: Vec<(Key, Arc<Shape>)>,
}

struct Held<W> {
    entries: FxHashMap<Content, Entry<W>>,
    by_head: FxHashMap<Key, Vec<Arc<Shape>>>,
    /// What is finished, in the order in which it was, with its size.
    order: VecDeque<(Content, usize)>,
    stats: StoreStats,
}

/// The store. `W` is who waits for what another is compiling.
pub struct Store<W> {
    held: Mutex<Held<W>>,
    most: usize,
    /// The heads of all regions.
    pub heads: Heads,
}

impl<W> Store<W> {
    /// One that holds at most so many bytes.
    pub fn new(most: usize) -> Self {
        let held = Held {
            entries: FxHashMap::default(),
            by_head: FxHashMap::default(),
            order: VecDeque::new(),
            stats: StoreStats::default(),
        };
        Self { held: Mutex::new(held), most, heads: Heads::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Held<W>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for the region with this content for `who`.
    pub fn ask(&self, (content, shape): (Content, Shape), asked: &Asked, who: W) -> Answer<W> {
        let mut held = self.lock();
        let held = &mut *held;
        if let Some(entry) = held.entries.get_mut(&content) {
            held.stats.reused += 1;
            if !entry.heads.iter().any(|(head, other)| *head == asked.head && **other == shape) {
                let shape = Arc::new(shape);
                entry.heads.push((asked.head, shape.clone()));
                add_shape(&mut held.by_head, asked.head, &shape);
                self.heads.add(&asked.head);
            }
            return match &mut entry.state {
                State::InWork(waiting) => {
                    waiting.push(who);
                    Answer::Waits
                }
                State::Finished(outcome) => Answer::Known(who, outcome.clone()),
            };
        }
        let known = held.by_head.get(&asked.head).into_iter().flatten();
        if asked.or_larger
            && let Some(larger) = known.into_iter().find(|s| s.covers(&shape))
        {
            held.stats.proposed += 1;
            return Answer::Larger(who, larger.clone());
        }
        if asked.if_known {
            return Answer::Unknown(who);
        }
        let shape = Arc::new(shape);
        add_shape(&mut held.by_head, asked.head, &shape);
        self.heads.add(&asked.head);
        let entry = Entry { state: State::InWork(Vec::new()), heads: vec![(asked.head, shape)] };
        held.entries.insert(content.clone(), entry);
        Answer::Compile(who, content)
    }

    /// A region was compiled, which took so long: who waits for it.
    pub fn finish(&self, content: &Content, outcome: &Outcome, took: Duration) -> Vec<W> {
        let mut held = self.lock();
        let held = &mut *held;
        held.stats.compiled += 1;
        held.stats.compile_ns += took.as_nanos() as u64;
        let Some(entry) = held.entries.get_mut(content) else { return Vec::new() };
        let before = std::mem::replace(&mut entry.state, State::Finished(outcome.clone()));
        let size = content.0.len()
            + entry
                .heads
                .iter()
                .map(|(_, shape)| size_of_val(&shape.parts[..]) + size_of_val(&shape.pages[..]))
                .sum::<usize>()
            + outcome.as_ref().map_or(0, |ready| ready.size())
            + size_of::<Entry<W>>();
        held.order.push_back((content.clone(), size));
        held.stats.bytes += size as u64;
        if outcome.is_ok() {
            entry.heads.iter().for_each(|(head, _)| self.heads.tell(*head));
        }
        while held.stats.bytes > self.most as u64 && held.order.len() > 1 {
            self.let_go_of_oldest(held);
        }
        held.stats.held = held.order.len() as u64;
        match before {
            State::InWork(waiting) => waiting,
            State::Finished(_) => Vec::new(),
        }
    }

    fn let_go_of_oldest(&self, held: &mut Held<W>) {
        let Some((content, size)) = held.order.pop_front() else { return };
        held.stats.bytes -= size as u64;
        held.stats.evicted += 1;
        let Some(entry) = held.entries.remove(&content) else { return };
        for (head, shape) in &entry.heads {
            let Some(shapes) = held.by_head.get_mut(head) else { continue };
            shapes.retain(|s| !Arc::ptr_eq(s, shape));
            if shapes.is_empty() {
                held.by_head.remove(head);
                self.heads.remove(head);
            }
        }
    }

    /// Counters.
    pub fn statistics(&self) -> StoreStats {
        self.lock().stats
    }
}

fn add_shape(by_head: &mut FxHashMap<Key, Vec<Arc<Shape>>>, head: Key, shape: &Arc<Shape>) {
    let shapes = by_head.entry(head).or_default();
    if shapes.len() >= SHAPES {
        shapes.remove(0);
    }
    shapes.push(shape.clone());
}

/// Where regions of the store start: what processors look at before they ask, without a lock. It may forget some and take
/// others for known; who asks then is told.
pub struct Heads {
    marks: Box<[AtomicU32]>,
    /// Those of what was compiled last.
    news: Mutex<VecDeque<Key>>,
    /// How many there were in all.
    told: AtomicU64,
}

impl Default for Heads {
    fn default() -> Self {
        let marks = (0..HEADS).map(|_| AtomicU32::new(0)).collect();
        Self { marks, news: Mutex::default(), told: AtomicU64::new(0) }
    }
}

impl Heads {
    /// The entry of a key, and what it holds if the key is there.
    fn place(&self, key: &Key) -> (&AtomicU32, u32) {
        let hash = content::hash_of_key(key);
        (&self.marks[(hash >> 32) as usize % HEADS], hash as u32 | 1)
    }

    /// There is, it seems, a region with this head.
    pub fn has(&self, key: &Key) -> bool {
        let (place, mark) = self.place(key);
        place.load(Ordering::Relaxed) == mark
    }

    /// Heads of regions that were compiled since `seen` of them were, which becomes how many there are; of many the last.
    pub fn since(&self, seen: &mut u64) -> Vec<Key> {
        if self.told.load(Ordering::Acquire) == *seen {
            return Vec::new();
        }
        let news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(seen, self.told.load(Ordering::Acquire));
        let unseen = seen.wrapping_sub(before).min(news.len() as u64) as usize;
        news.range(news.len() - unseen..).copied().collect()
    }

    fn tell(&self, key: Key) {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        if news.len() >= NEWS {
            news.pop_front();
        }
        news.push_back(key);
        self.told.fetch_add(1, Ordering::Release);
    }

    fn add(&self, key: &Key) {
        let (place, mark) = self.place(key);
        place.store(mark, Ordering::Relaxed);
    }

    fn remove(&self, key: &Key) {
        let (place, mark) = self.place(key);
        // Another one may have the entry.
        let _ = place.compare_exchange(mark, 0, Ordering::Relaxed, Ordering::Relaxed);
    }
}

#[cfg(test)]
pub mod tests;
