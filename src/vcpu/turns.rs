//! Counted execution (`-icount`): processors run one at a time, and guest time follows what they execute.
//!
//! The one that has the turn runs until a timer is due, its slice is over or it halts; then the next one that has something
//! to do gets the turn, in the order of their numbers. All of this depends on instruction counts alone, so that what happens
//! without outside influence happens again in the next run. Timers fire on the thread of the processor that has the turn,
//! between two instructions. While all are halted, that thread puts time forward to the next deadline: at once, or when
//! the host's time has come that far.

use crate::cli::config::IcountConfig;
use crate::clock::{GuestClock, host_monotonic_ns};
use crate::io_thread::IoHandle;
use brolga_devices::services::Clock;
use brolga_jit::Counter;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// Instructions that a processor runs while others wait for their turn.
const SLICE: u64 = 1 << 17;
/// The longest wait for a deadline after which a processor that waits for a store looks at memory again.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Guest time between two looks at how far it is from the host's, where it is to follow it.
const ADJUST_EVERY: u64 = 100_000_000;
/// How far `shift=auto` lets guest time drift before an instruction takes longer or shorter; QEMU has the same.
const WOBBLE: i64 = 100_000_000;
/// The most that an instruction takes with `shift=auto`, and what it takes at first, as powers of two.
const MOST_SHIFT: u8 = 10;
const FIRST_SHIFT: u8 = 3;
/// How far guest time may be ahead of the host's with `align=on`.
const AHEAD: i64 = 3_000_000;
/// The longest that a guest that is ahead waits at a time: others may want something of it.
const LONGEST_WAIT: u64 = 10_000_000;
/// Steps in which a guest that is late with `align=on` is told of, and how often.
const LATE: i64 = 1_000_000_000;
const TOLD: u32 = 100;

/// A processor as those see it that give turns. All methods may be called on the thread that has the turn.
pub(super) trait Member: Send + Sync {
    /// Its thread can take a turn.
    fn is_able(&self) -> bool;
    /// It has something to execute, or may have. `moment` changes whenever memory may have.
    fn wants(&self, moment: u64) -> bool;
    /// It is halted until memory changes.
    fn waits_for_store(&self) -> bool;
    /// Makes its thread look whose turn it is.
    fn call(&self);
}

/// What to do while all processors are halted.
pub(super) enum Idle {
    /// Look around again: time was put forward.
    Again,
    /// Wait until [`Turns::was_stirred`], at most so long.
    Wait(Option<Duration>),
}

/// Guest time against the host's since the machine went on.
struct Pace {
    /// The host's time and the guest's, then.
    start: Option<(u64, u64)>,
    /// Guest time of the last look.
    looked: u64,
    /// How far guest time was ahead at the last look.
    last: i64,
    /// The latest that the user was told of, and how often that was.
    told: (i64, u32),
}

/// Who has the turn, and what time it is.
pub struct Turns {
    config: IcountConfig,
    clock: Arc<GuestClock>,
    counter: Arc<Counter>,
    io: IoHandle,
    /// The number of who has the turn. Changed by its thread, or by another if that one is not able.
    holder: AtomicUsize,
    /// The instruction count at which the turn ends.
    until: AtomicU64,
    /// Changes when processors ran or timers fired.
    moment: AtomicU64,
    /// Something may have changed that who waits for deadlines should know.
    stirred: AtomicBool,
    /// Who has the turn waits.
    waits: AtomicBool,
    /// By number. No other lock is taken while it is held.
    members: Mutex<Vec<Option<Weak<dyn Member>>>>,
    pace: Mutex<Pace>,
}

impl Turns {
    /// A clock for counted execution.
    pub fn clock(config: &IcountConfig, rtc: crate::cli::config::RtcConfig) -> GuestClock {
        let shift = config.shift.unwrap_or(FIRST_SHIFT);
        GuestClock::by_instructions(rtc, Arc::default(), shift)
    }

    /// Turns of the processors whose instructions `clock` follows; `None` if it follows none.
    pub fn new(config: IcountConfig, clock: Arc<GuestClock>, io: IoHandle) -> Option<Arc<Self>> {
        let counter = clock.counter()?.clone();
        let turns = Arc::new(Self {
            config,
            clock,
            counter,
            io: io.clone(),
            holder: AtomicUsize::new(0),
            until: AtomicU64::new(SLICE),
            moment: AtomicU64::new(1),
            stirred: AtomicBool::new(false),
            waits: AtomicBool::new(false),
            members: Mutex::default(),
            pace: Mutex::new(Pace { start: None, looked: 0, last: 0, told: (0, 0) }),
        });
        let weak = Arc::downgrade(&turns);
        io.when_armed_sooner(move || weak.upgrade().into_iter().for_each(|turns| turns.stir()));
        Some(turns)
    }

    /// Enters a processor.
    pub(super) fn join(&self, index: u32, member: Weak<dyn Member>) {
        let mut members = self.members();
        let places = members.len().max(index as usize + 1);
        members.resize(places, None);
        members[index as usize] = Some(member);
    }

    fn members(&self) -> MutexGuard<'_, Vec<Option<Weak<dyn Member>>>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is this processor's turn.
    pub(super) fn is_turn_of(&self, index: u32) -> bool {
        self.holder.load(Ordering::SeqCst) == index as usize
    }

    /// Memory is now as it was whenever this was the same.
    pub(super) fn moment(&self) -> u64 {
        self.moment.load(Ordering::SeqCst)
    }

    /// The processor that has the turn is about to run: sets how far.
    pub(super) fn begin(&self) {
        self.fire();
        let count = self.counter.count();
        self.io.limit_instructions(count.saturating_add(1), self.until.load(Ordering::Relaxed).max(count + 1));
    }

    /// It came to the limit.
    pub(super) fn came_to_limit(&self, index: u32) {
        self.moment.fetch_add(1, Ordering::SeqCst);
        let fired = self.fire();
        self.keep_pace();
        // Before the slice's end and with no timer due, it is a processor that waits for another one (PAUSE).
        if !fired || self.counter.count() >= self.until.load(Ordering::Relaxed) {
            self.pass(index, true);
        }
    }

    fn fire(&self) -> bool {
        let fired = self.io.fire_due();
        if fired {
            self.moment.fetch_add(1, Ordering::SeqCst);
        }
        fired
    }

    /// Gives the turn of processor `from` to the next that wants it, itself the last, if `again`. Whether there is one.
    pub(super) fn pass(&self, from: u32, again: bool) -> bool {
        let moment = self.moment();
        self.give(from, again, |member| member.is_able() && member.wants(moment))
    }

    /// Processor `from` takes no turns for now: somebody else has it, if anybody can.
    pub(super) fn give_up(&self, from: u32) {
        if self.is_turn_of(from) && !self.pass(from, false) {
            self.give(from, false, |member| member.is_able());
        }
    }

    fn give(&self, from: u32, again: bool, fits: impl Fn(&dyn Member) -> bool) -> bool {
        let members: Vec<_> = self.members().clone();
        let from = from as usize;
        for n in (from + 1..members.len()).chain(0..from).chain(again.then_some(from)) {
            let Some(member) = members.get(n).and_then(Option::as_ref).and_then(Weak::upgrade) else { continue };
            if fits(&*member) {
                self.until.store(self.counter.count().saturating_add(SLICE), Ordering::Relaxed);
                self.holder.store(n, Ordering::SeqCst);
                if n != from {
                    member.call();
                }
                return true;
            }
        }
        false
    }

    /// A processor can take turns again: it has one if who had the last cannot go on.
    pub(super) fn offer(&self, index: u32) {
        let holder = self.holder.load(Ordering::SeqCst);
        let member = self.members().get(holder).and_then(Option::as_ref).and_then(Weak::upgrade);
        if holder != index as usize && !member.is_some_and(|member| member.is_able()) {
            let taken = self.holder.compare_exchange(holder, index as usize, Ordering::SeqCst, Ordering::SeqCst);
            if taken.is_ok() {
                self.until.store(self.counter.count().saturating_add(SLICE), Ordering::Relaxed);
            }
        }
    }

    /// Something changed that a processor may wait for.
    pub(super) fn stir(&self) {
        self.stirred.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if self.waits.load(Ordering::SeqCst) {
            let holder = self.holder.load(Ordering::SeqCst);
            let member = self.members().get(holder).and_then(Option::as_ref).and_then(Weak::upgrade);
            member.into_iter().for_each(|member| member.call());
        }
    }

    /// Who has the turn begins or ends to wait.
    pub(super) fn set_waits(&self, waits: bool) {
        self.waits.store(waits, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// [`Turns::stir`] was called since [`Turns::look`].
    pub(super) fn was_stirred(&self) -> bool {
        self.stirred.load(Ordering::SeqCst)
    }

    /// Who has the turn looks around.
    pub(super) fn look(&self) {
        self.stirred.store(false, Ordering::SeqCst);
    }

    /// All are halted, since the host's time and the guest's were `since`: puts time forward if that is due.
    pub(super) fn idle(&self, since: &mut Option<(u64, u64)>) -> Idle {
        let stores = self.members().iter().flatten().filter_map(Weak::upgrade).any(|m| m.waits_for_store());
        let look_again = stores.then_some(LOOK_AGAIN);
        if stores {
            self.moment.fetch_add(1, Ordering::SeqCst);
        }
        let deadline = self.io.next_deadline();
        if self.config.sleep {
            let (host, now) = (host_monotonic_ns(), self.clock.now_ns());
            let (host_then, guest_then) = *since.get_or_insert((host, now));
            let reached = guest_then.saturating_add(host.saturating_sub(host_then));
            let Some(deadline) = deadline else {
                self.clock.put_forward(reached);
                return Idle::Wait(look_again);
            };
            self.clock.put_forward(reached.min(deadline));
            if reached < deadline {
                let left = Duration::from_nanos(deadline - reached);
                return Idle::Wait(Some(look_again.map_or(left, |again| again.min(left))));
            }
        } else {
            let Some(deadline) = deadline else { return Idle::Wait(look_again) };
            self.clock.put_forward(deadline);
        }
        self.fire();
        self.keep_pace();
        Idle::Again
    }

    /// The machine stood still: the host's time went on meanwhile.
    pub(super) fn start_pace(&self) {
        self.pace().start = None;
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compares guest time with the host's where that matters, and lets the guest wait or changes what an instruction takes.
    fn keep_pace(&self) {
        if self.config.shift.is_some() && !self.config.align {
            return;
        }
        let (host, guest) = (host_monotonic_ns(), self.clock.now_ns());
        let mut pace = self.pace();
        let (host_then, guest_then) = *pace.start.get_or_insert((host, guest));
        let ahead = (guest.wrapping_sub(guest_then) as i64).saturating_sub(host.wrapping_sub(host_then) as i64);
        if self.config.shift.is_none() && guest.wrapping_sub(pace.looked) >= ADJUST_EVERY {
            let shift = adjusted(self.clock.shift(), ahead, pace.last);
            (pace.looked, pace.last) = (guest, ahead);
            self.clock.set_shift(shift);
        }
        if !self.config.align {
            return;
        }
        if -ahead >= pace.told.0 + LATE && pace.told.1 < TOLD {
            pace.told = (-ahead, pace.told.1 + 1);
            tracing::warn!("-icount align=on: the guest is {:.1} s late", -ahead as f64 / 1e9);
        }
        drop(pace);
        if ahead > AHEAD {
            std::thread::sleep(Duration::from_nanos((ahead as u64).min(LONGEST_WAIT)));
        }
    }
}

/// What an instruction takes from now on, as a power of two, where guest time is `ahead` of the host's and was `last` ahead
/// before: less if it drifts ahead, more if it drifts behind.
fn adjusted(shift: u8, ahead: i64, last: i64) -> u8 {
    if ahead > 0 && last.saturating_add(WOBBLE) < ahead.saturating_mul(2) {
        shift.saturating_sub(1)
    } else if ahead < 0 && last.saturating_sub(WOBBLE) > ahead.saturating_mul(2) {
        (shift + 1).min(MOST_SHIFT)
    } else {
        shift
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_instruction_takes_follows_the_drift() {
        let ms = 1_000_000;
        assert_eq!(adjusted(3, 40 * ms, 0), 3, "within what it may wobble");
        assert_eq!(adjusted(3, 60 * ms, 0), 2);
        assert_eq!(adjusted(3, 60 * ms, 60 * ms), 3, "it was put right already");
        assert_eq!(adjusted(3, -60 * ms, 0), 4);
        assert_eq!((adjusted(0, 900 * ms, 0), adjusted(10, -900 * ms, 0)), (0, 10));
    }
}
