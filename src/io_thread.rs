//! The event loop: timers of device models, file descriptors of back ends, and work posted from other threads.
//!
//! One timerfd carries the earliest deadline, so that arming a timer from a vCPU thread costs a system call at most and
//! no thread switch; an eventfd is the doorbell for posted work. Nothing polls: an idle guest leaves the thread asleep.

use crate::clock::GuestClock;
use brolga_devices::services::{Clock, Doorbell, Timer, TimerService, TimerTarget, WorkService, WorkTarget};
use crossbeam_channel::{Receiver, Sender, unbounded};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::thread::JoinHandle;

/// Timers that may fire in one round before posted work and descriptors get their turn.
const FIRES_PER_ROUND: usize = 64;

type Task = Box<dyn FnOnce() + Send>;

/// A file descriptor that the event loop watches. All methods are called on the I/O thread.
pub trait FdWatcher: Send + Sync {
    /// The descriptor.
    fn fd(&self) -> BorrowedFd<'_>;
    /// What to wait for now (`POLLIN`, `POLLOUT`); empty: nothing, not even a hang-up. Asked anew in each round; when
    /// the answer changes otherwise, call [`IoHandle::wake`].
    fn interest(&self) -> PollFlags;
    /// `events` happened (hang-up and error included). `false` ends the watch.
    fn ready(&self, events: PollFlags) -> bool;
}

/// The I/O thread; dropping it ends the thread after what is posted has run.
pub struct IoThread {
    handle: IoHandle,
    thread: Option<JoinHandle<()>>,
}

impl IoThread {
    /// Starts the thread. Timers follow `clock`.
    pub fn spawn(clock: Arc<GuestClock>) -> io::Result<Self> {
        let (sender, tasks) = unbounded();
        let shared = Arc::new(Shared {
            clock,
            doorbell: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            rung: AtomicBool::new(false),
            alarm: TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?,
            timers: Mutex::default(),
            tasks: sender,
            watchers: Mutex::default(),
            stopping: AtomicBool::new(false),
            armed_sooner: OnceLock::new(),
        });
        let in_thread = shared.clone();
        let thread = std::thread::Builder::new().name("io".into()).spawn(move || in_thread.run(&tasks))?;
        Ok(Self { handle: IoHandle(shared), thread: Some(thread) })
    }

    /// What others use of it.
    pub fn handle(&self) -> IoHandle {
        self.handle.clone()
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        self.handle.0.stopping.store(true, Ordering::SeqCst);
        self.handle.wake();
        // The last owner may be a task on the thread itself: it cannot wait for itself.
        if let Some(thread) = self.thread.take().filter(|t| t.thread().id() != std::thread::current().id()) {
            // A panic there was reported when it happened.
            let _ = thread.join();
        }
    }
}

/// Access to the I/O thread from anywhere. Cheap to clone.
#[derive(Clone)]
pub struct IoHandle(Arc<Shared>);

impl IoHandle {
    /// Runs `task` on the I/O thread, soon, after what was posted before.
    pub fn post(&self, task: impl FnOnce() + Send + 'static) {
        // Fails only when the thread has ended, and then nobody needs the task.
        let _ = self.0.tasks.send(Box::new(task));
        self.0.ring();
    }

    /// Watches a descriptor until [`FdWatcher::ready`] says otherwise.
    pub fn watch(&self, watcher: Arc<dyn FdWatcher>) {
        lock(&self.0.watchers).push(watcher);
        self.wake();
    }

    /// Ends a watch; one more call may be under way.
    pub fn unwatch(&self, watcher: &Arc<dyn FdWatcher>) {
        lock(&self.0.watchers).retain(|other| !Arc::ptr_eq(other, watcher));
        self.wake();
    }

    /// Makes the loop ask all watchers for their interest anew.
    pub fn wake(&self) {
        self.0.ring();
    }
}

/// Timers where guest time follows instructions: the thread of the processor that runs makes them fire.
impl IoHandle {
    /// Makes all timers fire that are due by now; whether there were any.
    pub fn fire_due(&self) -> bool {
        self.0.fire_due()
    }

    /// The earliest deadline.
    pub fn next_deadline(&self) -> Option<u64> {
        lock(&self.0.timers).armed.first().map(|&(deadline, _)| deadline)
    }

    /// Processors stop at the instruction at which the earliest timer is due, at `most` at the latest, but not before they
    /// come to `least`.
    pub fn limit_instructions(&self, least: u64, most: u64) {
        let Some(counter) = self.0.clock.counter() else { return };
        // Under the lock, or a timer that is armed meanwhile would be overlooked.
        let timers = lock(&self.0.timers);
        let due = timers.armed.first().map_or(u64::MAX, |&(deadline, _)| self.0.clock.count_at(deadline));
        counter.set_limit(due.min(most).max(least));
    }

    /// Calls `tell` from now on when a timer is armed whose deadline is the earliest.
    pub fn when_armed_sooner(&self, tell: impl Fn() + Send + Sync + 'static) {
        // Called once, where the machine is built.
        let _ = self.0.armed_sooner.set(Box::new(tell));
    }
}

impl IoHandle {
    /// The guest clock was paused or resumed: deadlines move.
    pub fn clock_changed(&self) {
        self.0.program(&mut lock(&self.0.timers));
    }
}

impl TimerService for IoHandle {
    fn create(&self, target: Weak<dyn TimerTarget>, tag: u32) -> Box<dyn Timer> {
        let mut timers = lock(&self.0.timers);
        let id = timers.next_id;
        timers.next_id += 1;
        timers.entries.insert(id, Entry { target, tag, deadline: None });
        Box::new(GuestTimer { shared: self.0.clone(), id })
    }
}

impl WorkService for IoHandle {
    fn doorbell(&self, target: Weak<dyn WorkTarget>, tag: u32) -> Box<dyn Doorbell> {
        let button = Button { target, tag, rung: AtomicBool::new(false) };
        Box::new(PostedDoorbell { io: self.clone(), button: Arc::new(button) })
    }
}

struct Button {
    target: Weak<dyn WorkTarget>,
    tag: u32,
    /// The call is posted and has not begun.
    rung: AtomicBool,
}

struct PostedDoorbell {
    io: IoHandle,
    button: Arc<Button>,
}

impl Doorbell for PostedDoorbell {
    fn ring(&self) {
        if !self.button.rung.swap(true, Ordering::SeqCst) {
            let button = self.button.clone();
            self.io.post(move || {
                // Before the call: what is asked for from now on is a call more.
                button.rung.store(false, Ordering::SeqCst);
                if let Some(target) = button.target.upgrade() {
                    target.work(button.tag);
                }
            });
        }
    }
}

struct GuestTimer {
    shared: Arc<Shared>,
    id: u64,
}

impl Timer for GuestTimer {
    fn arm(&self, deadline_ns: u64) {
        let mut timers = lock(&self.shared.timers);
        timers.set(self.id, Some(deadline_ns));
        if let Some(counter) = self.shared.clock.counter() {
            counter.lower_limit(self.shared.clock.count_at(deadline_ns));
            let first = timers.armed.first() == Some(&(deadline_ns, self.id));
            drop(timers);
            if let Some(tell) = self.shared.armed_sooner.get().filter(|_| first) {
                tell();
            }
            return;
        }
        if timers.programmed.is_none_or(|p| deadline_ns < p) {
            self.shared.program(&mut timers);
        }
    }

    fn disarm(&self) {
        // An alarm set for it stays: the loop then finds nothing due and programs the next one.
        lock(&self.shared.timers).set(self.id, None);
    }
}

impl Drop for GuestTimer {
    fn drop(&mut self) {
        let mut timers = lock(&self.shared.timers);
        timers.set(self.id, None);
        timers.entries.remove(&self.id);
    }
}

struct Entry {
    target: Weak<dyn TimerTarget>,
    tag: u32,
    /// Guest time.
    deadline: Option<u64>,
}

/// All timers, and the armed ones by deadline.
#[derive(Default)]
struct TimerQueue {
    next_id: u64,
    entries: HashMap<u64, Entry>,
    armed: BTreeSet<(u64, u64)>,
    /// Guest time for which the alarm is set.
    programmed: Option<u64>,
}

impl TimerQueue {
    fn set(&mut self, id: u64, deadline: Option<u64>) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if let Some(old) = std::mem::replace(&mut entry.deadline, deadline) {
            self.armed.remove(&(old, id));
        }
        if let Some(new) = deadline {
            self.armed.insert((new, id));
        }
    }

    /// Takes out the earliest timer if it is due at `now`.
    fn pop_due(&mut self, now: u64) -> Option<(Weak<dyn TimerTarget>, u32)> {
        let &(deadline, id) = self.armed.first()?;
        if deadline > now {
            return None;
        }
        self.set(id, None);
        self.entries.get(&id).map(|e| (e.target.clone(), e.tag))
    }
}

/// Lock order: none of these locks is held while another is taken or while calling out.
struct Shared {
    clock: Arc<GuestClock>,
    doorbell: EventFd,
    /// The doorbell was rung and the loop has not yet looked: ringing again is not needed.
    rung: AtomicBool,
    alarm: TimerFd,
    timers: Mutex<TimerQueue>,
    tasks: Sender<Task>,
    watchers: Mutex<Vec<Arc<dyn FdWatcher>>>,
    stopping: AtomicBool,
    /// Told of earlier deadlines where guest time follows instructions.
    armed_sooner: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// A panic while one of these locks is held leaves plain data behind that is still consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Shared {
    fn ring(&self) {
        if !self.rung.swap(true, Ordering::SeqCst) {
            // Cannot fail: the counter is 0 or 1.
            let _ = self.doorbell.write(1);
        }
    }

    /// Sets the alarm for the earliest deadline.
    fn program(&self, timers: &mut TimerQueue) {
        let earliest = timers.armed.first().map(|&(deadline, _)| deadline);
        let host = earliest.and_then(|deadline| self.clock.host_deadline(deadline));
        timers.programmed = host.and(earliest);
        let result = match host {
            // Zero would take the alarm back.
            Some(ns) => self.alarm.set(
                Expiration::OneShot(TimeSpec::new((ns / 1_000_000_000) as i64, (ns.max(1) % 1_000_000_000) as i64)),
                TimerSetTimeFlags::TFD_TIMER_ABSTIME,
            ),
            None => self.alarm.unset(),
        };
        result.expect("a timerfd of our own takes any time");
    }

    fn run(&self, tasks: &Receiver<Task>) {
        loop {
            self.wait();
            if self.clock.counter().is_none() {
                self.fire_due();
            }
            // What these post comes after timers and descriptors have had their turn.
            let run_posted = || (0..tasks.len()).filter_map(|_| tasks.try_recv().ok()).for_each(|task| task());
            run_posted();
            if self.stopping.load(Ordering::SeqCst) {
                // What was posted before the end was asked for.
                run_posted();
                // They may own timers, which own us.
                let watchers = std::mem::take(&mut *lock(&self.watchers));
                drop(watchers);
                return;
            }
        }
    }

    /// Sleeps until something happens and serves the descriptors that are ready.
    fn wait(&self) {
        let watchers: Vec<_> = lock(&self.watchers).clone();
        let watched: Vec<_> = watchers.iter().map(|w| (w, w.interest())).filter(|(_, i)| !i.is_empty()).collect();
        let mut fds = Vec::with_capacity(2 + watched.len());
        fds.push(PollFd::new(self.doorbell.as_fd(), PollFlags::POLLIN));
        fds.push(PollFd::new(self.alarm.as_fd(), PollFlags::POLLIN));
        fds.extend(watched.iter().map(|(w, interest)| PollFd::new(w.fd(), *interest)));
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => return,
            other => other.expect("poll takes a few descriptors"),
        };
        if fds[0].any().unwrap_or(false) {
            let _ = self.doorbell.read();
            // Before the tasks are taken: whoever posts from now on rings again.
            self.rung.store(false, Ordering::SeqCst);
        }
        if fds[1].any().unwrap_or(false) {
            // Fails with EAGAIN if the alarm was moved meanwhile.
            let _ = self.alarm.wait();
        }
        for (i, (watcher, _)) in watched.iter().enumerate() {
            let events = fds[2 + i].revents().unwrap_or(PollFlags::empty());
            if !events.is_empty() && !watcher.ready(events) {
                lock(&self.watchers).retain(|w| !Arc::ptr_eq(w, watcher));
            }
        }
    }

    fn fire_due(&self) -> bool {
        let mut any = false;
        let now = self.clock.now_ns();
        for _ in 0..FIRES_PER_ROUND {
            let due = lock(&self.timers).pop_due(now);
            let Some((target, tag)) = due else { break };
            any = true;
            if let Some(target) = target.upgrade() {
                target.timer_fired(tag, now);
            }
        }
        if self.clock.counter().is_some() {
            return any;
        }
        let mut timers = lock(&self.timers);
        if timers.armed.first().map(|&(deadline, _)| deadline) != timers.programmed || timers.programmed <= Some(now) {
            self.program(&mut timers);
        }
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::config::RtcConfig;
    use std::os::fd::OwnedFd;
    use std::time::{Duration, Instant};

    /// Reports each firing with its tag and guest time.
    struct Probe(Sender<(u32, u64)>);

    impl TimerTarget for Probe {
        fn timer_fired(&self, tag: u32, now_ns: u64) {
            self.0.send((tag, now_ns)).unwrap();
        }
    }

    const SOON: Duration = Duration::from_secs(20);
    const MS: u64 = 1_000_000;

    type Firings = Receiver<(u32, u64)>;

    fn setup() -> (Arc<GuestClock>, IoThread, Arc<dyn TimerTarget>, Firings) {
        let clock = Arc::new(GuestClock::new(RtcConfig::default()));
        let io = IoThread::spawn(clock.clone()).unwrap();
        let (sender, fired) = unbounded();
        (clock, io, Arc::new(Probe(sender)), fired)
    }

    #[test]
    fn timers_fire_in_order_not_early_and_once() {
        let (clock, io, target, fired) = setup();
        clock.resume();
        let timers: Vec<_> = (0..3).map(|tag| io.handle().create(Arc::downgrade(&target), tag)).collect();
        let start = clock.now_ns();
        timers[2].arm(start + 30 * MS);
        timers[0].arm(start + 5 * MS);
        timers[1].arm(start + 10 * MS);
        for (tag, due) in [(0, 5), (1, 10), (2, 30)] {
            let (got, at) = fired.recv_timeout(SOON).unwrap();
            assert_eq!(got, tag);
            assert!(at >= start + due * MS, "{tag} fired {} ns early", start + due * MS - at);
        }
        assert!(fired.recv_timeout(Duration::from_millis(50)).is_err());
        timers[0].arm(0);
        assert_eq!(fired.recv_timeout(SOON).unwrap().0, 0, "a deadline in the past is due at once");
    }

    #[test]
    fn rearming_replaces_disarming_and_dropping_cancel() {
        let (clock, io, target, fired) = setup();
        clock.resume();
        let timer = |tag| io.handle().create(Arc::downgrade(&target), tag);
        let (moved, taken_back, dropped) = (timer(0), timer(1), timer(2));
        let now = clock.now_ns();
        moved.arm(now + 10 * MS);
        taken_back.arm(now + 10 * MS);
        dropped.arm(now + 10 * MS);
        moved.arm(now + 60 * MS);
        taken_back.disarm();
        drop(dropped);
        let (tag, at) = fired.recv_timeout(SOON).unwrap();
        assert!(tag == 0 && at >= now + 60 * MS, "{tag} at {at}");
        assert!(fired.recv_timeout(Duration::from_millis(50)).is_err());
    }

    #[test]
    fn deadlines_move_with_a_paused_clock() {
        let (clock, io, target, fired) = setup();
        let timer = io.handle().create(Arc::downgrade(&target), 7);
        timer.arm(20 * MS);
        assert!(fired.recv_timeout(Duration::from_millis(60)).is_err(), "the clock stands");
        clock.resume();
        io.handle().clock_changed();
        clock.pause();
        io.handle().clock_changed();
        assert!(fired.recv_timeout(Duration::from_millis(60)).is_err(), "the clock stands again");
        clock.resume();
        io.handle().clock_changed();
        let (tag, at) = fired.recv_timeout(SOON).unwrap();
        assert!(tag == 7 && at >= 20 * MS);
    }

    #[test]
    fn a_typical_firing_is_precise() {
        let (clock, io, target, fired) = setup();
        clock.resume();
        let timer = io.handle().create(Arc::downgrade(&target), 0);
        let mut late: Vec<u64> = (0..40)
            .map(|_| {
                let due = clock.now_ns() + 2 * MS;
                timer.arm(due);
                fired.recv_timeout(SOON).unwrap().1 - due
            })
            .collect();
        late.sort_unstable();
        // The machine that runs the tests may be loaded: the quickest quarter shows what the loop can do.
        assert!(late[10] < 500_000, "a quarter came later than 0.5 ms: {late:?}");
    }

    #[test]
    fn a_target_that_is_gone_is_not_called_and_a_self_rearming_one_does_not_starve_tasks() {
        struct Again(Mutex<Option<Box<dyn Timer>>>);
        impl TimerTarget for Again {
            fn timer_fired(&self, _tag: u32, _now_ns: u64) {
                self.0.lock().unwrap().as_ref().unwrap().arm(0);
            }
        }
        let (clock, io, target, fired) = setup();
        clock.resume();
        let orphan = io.handle().create(Arc::downgrade(&target), 0);
        drop(target);
        orphan.arm(0);
        let again = Arc::new(Again(Mutex::new(None)));
        let as_target: Arc<dyn TimerTarget> = again.clone();
        *again.0.lock().unwrap() = Some(io.handle().create(Arc::downgrade(&as_target), 0));
        again.timer_fired(0, 0);
        let (sender, done) = unbounded();
        io.handle().post(move || sender.send(()).unwrap());
        done.recv_timeout(SOON).expect("posted work runs beside a timer that is always due");
        assert!(fired.try_recv().is_err());
        *again.0.lock().unwrap() = Some(io.handle().create(Weak::<Probe>::new(), 0));
    }

    #[test]
    fn posted_work_runs_in_order_and_before_the_end() {
        let (_clock, io, _target, _fired) = setup();
        let (sender, done) = unbounded();
        for i in 0..1000 {
            let sender = sender.clone();
            io.handle().post(move || sender.send(i).unwrap());
        }
        drop(io);
        assert!(done.try_iter().eq(0..1000));
    }

    #[test]
    fn a_doorbell_rung_often_is_one_call_and_none_is_lost() {
        struct Work(Mutex<u32>, Sender<u32>);
        impl WorkTarget for Work {
            fn work(&self, tag: u32) {
                let wanted = *lock(&self.0);
                self.1.send(tag + wanted).unwrap();
            }
        }
        let (_clock, io, _target, _fired) = setup();
        let (sender, calls) = unbounded();
        let work = Arc::new(Work(Mutex::new(0), sender));
        let target: Arc<dyn WorkTarget> = work.clone();
        let bell = io.handle().doorbell(Arc::downgrade(&target), 1000);
        let (hold, held) = unbounded::<()>();
        io.handle().post(move || held.recv().unwrap());
        (0..50).for_each(|_| bell.ring());
        hold.send(()).unwrap();
        assert_eq!(calls.recv_timeout(SOON), Ok(1000));
        for i in 1..=200 {
            *lock(&work.0) = i;
            bell.ring();
            while calls.recv_timeout(SOON).unwrap() != 1000 + i {}
        }
        drop(io);
        assert!(calls.try_recv().is_err());
    }

    #[test]
    fn a_doorbell_that_rings_itself_starves_nobody() {
        struct Busy(Mutex<Option<Box<dyn Doorbell>>>);
        impl WorkTarget for Busy {
            fn work(&self, _tag: u32) {
                lock(&self.0).iter().for_each(|bell| bell.ring());
            }
        }
        let (clock, io, target, fired) = setup();
        clock.resume();
        let busy = Arc::new(Busy(Mutex::new(None)));
        let as_target: Arc<dyn WorkTarget> = busy.clone();
        *lock(&busy.0) = Some(io.handle().doorbell(Arc::downgrade(&as_target), 0));
        busy.work(0);
        let timer = io.handle().create(Arc::downgrade(&target), 3);
        timer.arm(clock.now_ns() + 20 * MS);
        assert_eq!(fired.recv_timeout(SOON).unwrap().0, 3);
        drop(io);
        *lock(&busy.0) = None;
    }

    #[test]
    fn watched_descriptors_are_served_until_they_say_no() {
        struct Pipe(OwnedFd, Sender<u8>);
        impl FdWatcher for Pipe {
            fn fd(&self) -> BorrowedFd<'_> {
                self.0.as_fd()
            }
            fn interest(&self) -> PollFlags {
                PollFlags::POLLIN
            }
            fn ready(&self, _events: PollFlags) -> bool {
                let mut byte = [0];
                match nix::unistd::read(&self.0, &mut byte) {
                    Ok(1) => self.1.send(byte[0]).is_ok(),
                    _ => false,
                }
            }
        }
        let (_clock, io, _target, _fired) = setup();
        let (reader, writer) = std::io::pipe().unwrap();
        let (sender, bytes) = unbounded();
        io.handle().watch(Arc::new(Pipe(reader.into(), sender)));
        io::Write::write_all(&mut &writer, b"ab").unwrap();
        assert_eq!(bytes.recv_timeout(SOON), Ok(b'a'));
        assert_eq!(bytes.recv_timeout(SOON), Ok(b'b'));
        drop(writer);
        let start = Instant::now();
        while !lock(&io.handle().0.watchers).is_empty() {
            assert!(start.elapsed() < SOON, "the watch goes on after end of file");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
