//! Entropy device (section 5.4): fills the driver's buffers with random bytes from the host.

use super::queue::{Chain, Queues};
use super::{Parts, VirtioDevice};
use crate::services::{
    Clock, Dma, Doorbell, Entropy, EntropyClient, TimerService, TimerTarget, WorkService, WorkTarget,
};
use crate::state::{Inspector, StateError, StateValue, from_state, to_state};
use crate::wire::{TimerSlot, locked};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, Weak};

const QUEUE_SIZE: u16 = 64;
/// Most bytes asked of the host at once.
const AT_ONCE: u64 = 4096;
const NS_PER_MS: u64 = 1_000_000;

/// How fast the guest may take bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Bytes for each period.
    pub bytes: u64,
    /// Length of a period in milliseconds of guest time, at least 1.
    pub period_ms: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// A request that waits for bytes.
    pending: Option<Chain>,
    /// Bytes taken in this period.
    taken: u64,
    /// When this period ends, in nanoseconds of guest time.
    period_end: Option<u64>,
}

/// What is not saved.
#[derive(Default)]
struct Asked {
    /// The host owes bytes: nothing more is asked for before they come.
    host: bool,
}

/// The device. Locks: `state` before those of the queues; `asked` is a leaf. Source, timer and doorbell are used without.
pub struct VirtioRng {
    source: Arc<dyn Entropy>,
    rate: Option<Rate>,
    queues: Arc<Queues>,
    clock: Arc<dyn Clock>,
    doorbell: Box<dyn Doorbell>,
    timer: TimerSlot,
    this: Weak<VirtioRng>,
    asked: Mutex<Asked>,
    state: Mutex<State>,
}

impl VirtioRng {
    /// A device that takes its bytes from `source`, not faster than `rate`.
    pub fn parts(
        source: Arc<dyn Entropy>,
        rate: Option<Rate>,
        dma: Arc<dyn Dma>,
        clock: Arc<dyn Clock>,
        timers: &dyn TimerService,
        work: &dyn WorkService,
    ) -> Parts {
        let queues = Queues::new(dma, 1, QUEUE_SIZE);
        let device = Arc::new_cyclic(|this: &Weak<Self>| Self {
            source,
            rate,
            queues: queues.clone(),
            clock,
            doorbell: work.doorbell(this.clone(), 0),
            timer: TimerSlot::new(timers.create(this.clone(), 0)),
            this: this.clone(),
            asked: Mutex::default(),
            state: Mutex::default(),
        });
        Parts { device, queues }
    }

    /// How many bytes may be taken now. None: the period's are used up, and the timer is set to its end.
    fn allowance(&self, state: &mut State) -> Option<u64> {
        let Some(rate) = self.rate else { return Some(u64::MAX) };
        let now = self.clock.now_ns();
        if state.period_end.is_none_or(|end| now >= end) {
            let period = u64::from(rate.period_ms.max(1)) * NS_PER_MS;
            (state.taken, state.period_end) = (0, Some(now.saturating_add(period)));
        }
        let left = rate.bytes.saturating_sub(state.taken);
        if left == 0 {
            self.timer.want(state.period_end);
        }
        (left > 0).then_some(left)
    }

    /// Asks the host for bytes for the next request, unless it owes some already.
    fn serve(&self) {
        if std::mem::replace(&mut locked(&self.asked).host, true) {
            return;
        }
        let want = self.next();
        self.timer.flush();
        match want {
            Some(len) => self.source.request(len, self.this.clone()),
            None => locked(&self.asked).host = false,
        }
    }

    /// The bytes that the next request wants now.
    fn next(&self) -> Option<usize> {
        loop {
            let mut state = locked(&self.state);
            if state.pending.is_none() {
                state.pending = self.queues.pop(0);
            }
            let chain = state.pending.as_ref()?;
            let (head, room) = (chain.head, chain.room());
            if room > 0 {
                return self.allowance(&mut state).map(|left| room.min(left).min(AT_ONCE) as usize);
            }
            state.pending = None;
            drop(state);
            self.queues.push(0, head, 0);
        }
    }
}

impl EntropyClient for VirtioRng {
    fn entropy(&self, bytes: &[u8]) {
        let done = {
            let mut state = locked(&self.state);
            // A reset may have forgotten the request.
            state.pending.take().map(|chain| {
                let len = chain.scatter(&**self.queues.dma(), bytes);
                state.taken = state.taken.saturating_add(len.into());
                (chain.head, len)
            })
        };
        if let Some((head, len)) = done {
            self.queues.push(0, head, len);
        }
        locked(&self.asked).host = false;
        self.serve();
    }
}

impl WorkTarget for VirtioRng {
    fn work(&self, _tag: u32) {
        self.serve();
    }
}

impl TimerTarget for VirtioRng {
    fn timer_fired(&self, _tag: u32, _now_ns: u64) {
        self.serve();
    }
}

impl VirtioDevice for VirtioRng {
    fn name(&self) -> &'static str {
        "virtio-rng-pci"
    }

    fn device_type(&self) -> u16 {
        4
    }

    fn pci_class(&self) -> u32 {
        0x00_ff00
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn config_write(&self, _offset: usize, _bytes: &[u8]) {}

    fn start(&self, _features: u64) {}

    fn notify(&self, _index: usize) {
        self.doorbell.ring();
    }

    fn reset(&self) {
        locked(&self.state).pending = None;
    }

    fn busy(&self) -> bool {
        // Memory is written under the lock that `reset` takes.
        false
    }

    fn save(&self) -> StateValue {
        to_state(&*locked(&self.state))
    }

    fn restore(&self, state: &StateValue, check: bool) -> Result<(), StateError> {
        let new: State = from_state(self.name(), state)?;
        if !check {
            *locked(&self.state) = new;
            self.doorbell.ring();
        }
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        if let Some(Rate { bytes, period_ms }) = self.rate {
            out.field("rate", format_args!("{bytes} bytes in {period_ms} ms"));
        }
        out.field("waiting", locked(&self.state).pending.is_some());
    }
}

#[cfg(test)]
mod tests {
    use super::super::bench::{Bench, DATA, Surroundings, fuzz};
    use super::*;
    use crate::bus::Device;
    use crate::fakes::moves_to;

    /// Gives ascending bytes, at most five at once, when told.
    #[derive(Default)]
    struct Source(Mutex<(u8, Vec<Request>)>);

    type Request = (usize, Weak<dyn EntropyClient>);

    impl Entropy for Source {
        fn request(&self, len: usize, client: Weak<dyn EntropyClient>) {
            assert!(len > 0);
            locked(&self.0).1.push((len, client));
        }
    }

    impl Source {
        fn run(&self) -> bool {
            let Some((len, client)) = locked(&self.0).1.pop() else { return false };
            let bytes: Vec<u8> = (0..len.min(5))
                .map(|_| {
                    let mut state = locked(&self.0);
                    state.0 = state.0.wrapping_add(1);
                    state.0
                })
                .collect();
            client.upgrade().into_iter().for_each(|client| client.entropy(&bytes));
            true
        }
    }

    fn parts(source: &Arc<Source>, rate: Option<Rate>, s: &Surroundings) -> Parts {
        VirtioRng::parts(source.clone(), rate, s.memory.clone(), s.time.clone(), &*s.time, &s.work)
    }

    fn bench(rate: Option<Rate>) -> (Arc<Source>, Bench) {
        let source = Arc::new(Source::default());
        let b = Bench::new(0, |s| parts(&source, rate, s));
        (source, b)
    }

    #[test]
    fn requests_are_filled_in_order() {
        let (source, mut b) = bench(None);
        b.queues[0].add(&[(DATA, 3, true)]);
        b.queues[0].add(&[(DATA + 8, 8, true), (DATA + 16, 8, true)]);
        b.kick(0);
        assert!(source.run() && source.run() && !source.run());
        assert_eq!(b.queues[0].used(), [(0, 3), (1, 5)]);
        assert_eq!(b.bytes(DATA, 13), [1, 2, 3, 0, 0, 0, 0, 0, 4, 5, 6, 7, 8]);
        assert!(b.irq.level(11));
        // Nothing to fill, and a buffer that cannot be.
        b.queues[0].add(&[(DATA, 8, false)]);
        b.kick(0);
        assert!(!source.run());
        assert_eq!(b.queues[0].used(), [(3, 0)]);
    }

    #[test]
    fn the_rate_is_kept() {
        let (source, mut b) = bench(Some(Rate { bytes: 4, period_ms: 10 }));
        for _ in 0..3 {
            b.queues[0].add(&[(DATA, 3, true)]);
        }
        b.kick(0);
        while source.run() {}
        assert_eq!(b.queues[0].used(), [(0, 3), (1, 1)]);
        b.s.time.advance(9_999_999);
        assert!(!source.run());
        b.s.time.advance(1);
        assert!(source.run());
        assert_eq!(b.queues[0].used(), [(2, 3)]);
    }

    #[test]
    fn what_a_reset_forgot_goes_nowhere() {
        let (source, mut b) = bench(None);
        b.queues[0].add(&[(DATA, 4, true)]);
        b.kick(0);
        b.device.reset();
        assert!(source.run());
        assert_eq!(b.bytes(DATA, 4), [0; 4]);
        assert_eq!(b.queues[0].used(), []);
    }

    #[test]
    fn state_moves_with_a_request_that_waits() {
        let (_, mut b) = bench(None);
        b.queues[0].add(&[(DATA, 4, true)]);
        b.kick(0);
        let source = Arc::new(Source::default());
        let other = Bench::bare(|s| parts(&source, None, s));
        moves_to(&*b.device, &*other.device);
        other.s.work.run();
        assert!(source.run());
        assert_eq!(other.bytes(DATA, 4), [1, 2, 3, 4]);
    }

    #[test]
    fn random_accesses_and_rings() {
        let source = Arc::new(Source::default());
        let rate = Some(Rate { bytes: 5000, period_ms: 100 });
        fuzz(41, |s| parts(&source, rate, s), |_| _ = source.run());
    }
}
