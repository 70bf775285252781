//! Threads of virtual processors: they run the engine, sleep while their processor is halted, and stop on demand.

mod bed;
mod nap;
mod turns;

/// What [`bed`] is made of; `tools/loom` has something else in its place.
mod sync {
    pub use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, atomic};
}

use anyhow::{Context, Result};
use bed::Bed;
use brolga_jit::{Exit, SavedVcpu, Unfit, Vcpu, VcpuHandle, request};
use nap::Nap;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, mpsc};
use std::thread::JoinHandle;
pub use turns::Turns;
use turns::{Idle, Member};

/// The request word of a processor, as [`VcpuHandle`] has it.
pub trait Requests: Clone + Send + Sync + 'static {
    /// Sets bits of [`request`].
    fn raise(&self, bits: u32);
    /// Takes bits back.
    fn clear(&self, bits: u32);
    /// The bits that are set.
    fn pending(&self) -> u32;
}

/// What a processor thread needs of a processor; tests use a fake.
pub trait Processor: 'static {
    /// Its request word.
    type Requests: Requests;
    /// The request word, shared with the processor.
    fn requests(&self) -> Self::Requests;
    /// Runs guest code until the program has something to do.
    fn run(&mut self) -> Exit;
    /// Takes a start-up message.
    fn start_up(&mut self, vector: u8);
    /// The request bits that end a halt now.
    fn wake_mask(&self) -> u32;
    /// The halt may end by a store, of which no request tells.
    fn waits_for_store(&self) -> bool;
    /// That store was made.
    fn store_seen(&self) -> bool;
    /// A host core is free for a halted processor that waits actively for a moment.
    fn has_room(&self) -> bool;
}

impl Requests for VcpuHandle {
    fn raise(&self, bits: u32) {
        VcpuHandle::raise(self, bits);
    }
    fn clear(&self, bits: u32) {
        VcpuHandle::clear(self, bits);
    }
    fn pending(&self) -> u32 {
        VcpuHandle::pending(self)
    }
}

impl Processor for Vcpu {
    type Requests = VcpuHandle;
    fn requests(&self) -> VcpuHandle {
        self.handle()
    }
    fn run(&mut self) -> Exit {
        Vcpu::run(self)
    }
    fn start_up(&mut self, vector: u8) {
        Vcpu::start_up(self, vector);
    }
    fn wake_mask(&self) -> u32 {
        Vcpu::wake_mask(self)
    }
    fn waits_for_store(&self) -> bool {
        Vcpu::waits_for_store(self)
    }
    fn store_seen(&self) -> bool {
        Vcpu::store_seen(self)
    }
    fn has_room(&self) -> bool {
        Vcpu::has_room(self)
    }
}

/// What a processor thread tells the machine. Called on that thread; must not wait for it.
pub trait VcpuEvents: Send + Sync {
    /// The processor is in shutdown; the thread holds until the machine resets it. `dump` says where and why.
    fn triple_fault(&self, cpu: u32, dump: String);
    /// Compiled code and interpreter did not agree; the thread holds. `report` says on what.
    fn diverged(&self, cpu: u32, report: String);
    /// The debugger's condition was met; the thread holds.
    fn debug_stop(&self, cpu: u32);
    /// The thread ended by a panic, which was reported.
    fn died(&self, cpu: u32);
}

type Task<P> = Box<dyn FnOnce(&mut P) + Send>;

/// What the thread is told to do. Every change is followed by [`request::EXIT`], so the thread comes to see it.
struct Gate<P> {
    /// Do not run guest code.
    hold: bool,
    /// End the thread.
    quit: bool,
    /// To be run with the processor stopped.
    tasks: VecDeque<Task<P>>,
    /// The processor waits for a start-up message.
    waiting: bool,
    /// The start-up message that came.
    start_up: Option<u8>,
    /// The thread is in [`VcpuThread::next`] and runs no guest code because it is held, or has ended.
    parked: bool,
}

/// A processor's thread as others see it. Guest code runs only after the first [`VcpuThread::release`].
pub struct VcpuThread<P: Processor = Vcpu> {
    index: u32,
    requests: P::Requests,
    /// Where the thread looks and sleeps.
    bed: Bed<Gate<P>>,
    /// Tells others that `parked` changed.
    parked: Condvar,
    /// Processors run one at a time.
    turns: Option<Arc<Turns>>,
    halt: Halt,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A halt as those see it that give turns.
#[derive(Default)]
struct Halt {
    /// The requests that end it; 0: there is none.
    until: AtomicU32,
    /// So does a change of memory.
    or_store: AtomicBool,
    /// [`Turns::moment`] of the last look at memory.
    looked: AtomicU64,
}

/// A processor with what waits for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedThread {
    processor: SavedVcpu,
    /// It waits for a start-up message.
    waiting: bool,
    /// The start-up message that came.
    start_up: Option<u8>,
    /// What others want from it.
    requests: u32,
}

/// Requests that come from outside of a processor and are told once.
const TOLD_ONCE: u32 = request::NMI | request::INIT | request::SMI;

impl VcpuThread {
    /// The state of the held processor; `None` if its thread has ended.
    pub fn save(&self) -> Option<SavedThread> {
        let processor = self.with(|vcpu| vcpu.save())?;
        let gate = self.gate();
        let (waiting, start_up, requests) = (gate.waiting, gate.start_up, self.requests.pending() & TOLD_ONCE);
        Some(SavedThread { processor, waiting, start_up, requests })
    }

    /// Whether [`VcpuThread::load`] would take a state.
    pub fn fits(&self, saved: &SavedThread) -> Result<(), Unfit> {
        let processor = saved.processor.clone();
        // A thread that has ended takes anything.
        self.with(move |vcpu| vcpu.fits(&processor)).unwrap_or(Ok(()))
    }

    /// Puts the held processor into a state, which goes on when it is released.
    pub fn load(&self, saved: &SavedThread) -> Result<(), Unfit> {
        let SavedThread { processor, waiting, start_up, requests } = saved.clone();
        self.with(move |vcpu| vcpu.restore(&processor)).unwrap_or(Ok(()))?;
        {
            let mut gate = self.gate();
            (gate.waiting, gate.start_up) = (waiting, start_up);
        }
        self.requests.clear(TOLD_ONCE & !requests);
        self.raise(requests & TOLD_ONCE);
        Ok(())
    }
}

/// Bytes of a vCPU thread's stack: a processor, with the tables that generated code reads, is more than a megabyte and
/// made there before it goes to the heap.
const STACK: usize = 16 << 20;

impl<P: Processor> VcpuThread<P> {
    /// Starts the thread of processor `index`; `make` makes the processor there. The thread is held. With `turns` it runs
    /// guest code when it is its turn.
    pub fn spawn(
        index: u32,
        events: Arc<dyn VcpuEvents>,
        turns: Option<Arc<Turns>>,
        make: impl FnOnce() -> Result<P> + Send + 'static,
    ) -> Result<Arc<Self>> {
        let (tell, told) = mpsc::sync_channel::<Result<Arc<Self>>>(1);
        let builder = std::thread::Builder::new().name(format!("vcpu{index}")).stack_size(STACK);
        let thread = builder.spawn(move || {
            let mut processor = match make() {
                Ok(processor) => processor,
                Err(error) => return drop(tell.send(Err(error))),
            };
            let this = Arc::new(Self::new(index, processor.requests(), turns));
            if let Some(turns) = &this.turns {
                let this: Arc<dyn Member> = this.clone();
                turns.join(index, Arc::downgrade(&this));
            }
            let _report = ReportPanic { index, events: events.clone() };
            let _ended = MarkEnded(this.clone());
            if tell.send(Ok(this.clone())).is_ok() {
                drop(tell);
                this.run(&mut processor, &*events);
            }
        })?;
        let this = told.recv().context("the processor's thread ended at its start")??;
        *this.thread.lock().unwrap_or_else(|e| e.into_inner()) = Some(thread);
        Ok(this)
    }

    fn new(index: u32, requests: P::Requests, turns: Option<Arc<Turns>>) -> Self {
        let gate = Gate {
            hold: true,
            quit: false,
            tasks: VecDeque::new(),
            waiting: index != 0,
            start_up: None,
            parked: false,
        };
        Self {
            index,
            requests,
            bed: Bed::new(gate),
            parked: Condvar::new(),
            turns,
            halt: Halt::default(),
            thread: Mutex::new(None),
        }
    }

    /// Sets request bits and wakes the processor if it is halted.
    pub fn raise(&self, bits: u32) {
        self.requests.raise(bits);
        self.bed.written();
        self.stir();
    }

    /// Who waits for something to execute is to look around.
    fn stir(&self) {
        self.turns.as_ref().inspect(|turns| turns.stir());
    }

    /// Whether the processor is halted, or waits to be started.
    pub fn sleeps(&self) -> bool {
        self.bed.somebody_sleeps() || self.gate().waiting
    }

    /// Takes request bits back.
    pub fn clear(&self, bits: u32) {
        self.requests.clear(bits);
    }

    /// An INIT message: the processor resets and, unless it is the first one, waits for a start-up message.
    pub fn init(&self) {
        self.gate().start_up = None;
        self.raise(request::INIT);
    }

    /// A start-up message; ignored if the processor does not wait for one (SDM 3A 9.4.4).
    pub fn start_up(&self, vector: u8) {
        let mut gate = self.gate();
        if gate.waiting || self.requests.pending() & request::INIT != 0 {
            gate.start_up = Some(vector);
            drop(gate);
            self.bed.changed();
            self.stir();
        }
    }

    /// Asks the thread to run no more guest code; does not wait for that.
    pub fn hold(&self) {
        self.gate().hold = true;
        self.raise(request::EXIT);
        self.bed.changed();
    }

    /// Waits until the thread runs no guest code; it must have been told to [`VcpuThread::hold`].
    pub fn wait_held(&self) {
        let mut gate = self.gate();
        while !gate.parked {
            gate = self.parked.wait(gate).unwrap_or_else(|e| e.into_inner());
        }
    }

    /// Lets the thread run guest code (again).
    pub fn release(&self) {
        self.gate().hold = false;
        self.bed.changed();
        self.stir();
    }

    /// Runs `f` on the thread between guest instructions, held or not, and waits for what it returns. `None` if the
    /// thread has ended. Must not be called on the thread itself.
    pub fn with<R: Send + 'static>(&self, f: impl FnOnce(&mut P) -> R + Send + 'static) -> Option<R> {
        let (sender, receiver) = mpsc::sync_channel(1);
        {
            let mut gate = self.gate();
            if gate.quit {
                return None;
            }
            gate.tasks.push_back(Box::new(move |p| {
                // Fails only if the caller is gone.
                let _ = sender.send(f(p));
            }));
        }
        self.raise(request::EXIT);
        self.bed.changed();
        receiver.recv().ok()
    }

    /// Puts the held processor where the machine starts it: `f` sets its state. It runs when released if `runs` says
    /// so, else it waits for a start-up message.
    pub fn restart(&self, runs: bool, f: impl FnOnce(&mut P) + Send + 'static) {
        {
            let mut gate = self.gate();
            gate.waiting = !runs;
            gate.start_up = None;
        }
        self.requests.clear(request::NMI | request::INIT | request::SMI);
        self.with(f);
    }

    /// Ends the thread and waits for that.
    pub fn quit(&self) {
        self.gate().quit = true;
        self.raise(request::EXIT);
        self.bed.changed();
        let thread = self.thread.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(thread) = thread {
            // A panic was reported when it happened.
            let _ = thread.join();
        }
    }

    fn gate(&self) -> MutexGuard<'_, Gate<P>> {
        self.bed.lock()
    }

    fn run(&self, processor: &mut P, events: &dyn VcpuEvents) {
        let mut nap = Nap::default();
        while self.next(processor) {
            if let Some(turns) = &self.turns {
                self.halt.until.store(0, Ordering::SeqCst);
                turns.begin();
            }
            match processor.run() {
                Exit::Halted => match &self.turns {
                    Some(turns) => self.idle(processor, turns),
                    None => self.sleep(processor, &mut nap),
                },
                Exit::Counted => self.turns.iter().for_each(|turns| turns.came_to_limit(self.index)),
                Exit::Requested => {}
                Exit::WaitForStartUp => {
                    self.turns.iter().for_each(|turns| turns.give_up(self.index));
                    self.gate().waiting = true;
                }
                Exit::TripleFault(dump) => {
                    self.gate().hold = true;
                    events.triple_fault(self.index, dump);
                }
                Exit::Diverged(report) => {
                    self.gate().hold = true;
                    events.diverged(self.index, report);
                }
                Exit::Debug => {
                    self.gate().hold = true;
                    events.debug_stop(self.index);
                }
            }
        }
    }

    /// Does what the gate says until guest code is to run (`true`) or the thread is to end.
    fn next(&self, processor: &mut P) -> bool {
        let mut gate = self.gate();
        // Before the gate is looked at: its changes come before the request.
        self.requests.clear(request::EXIT);
        loop {
            if let Some(turns) = &self.turns {
                drop(gate);
                self.take_part(turns);
                gate = self.gate();
            }
            if gate.quit {
                return false;
            }
            if let Some(task) = gate.tasks.pop_front() {
                drop(gate);
                task(processor);
                // It may be another processor now.
                self.halt.until.store(0, Ordering::SeqCst);
                gate = self.gate();
            } else if gate.hold {
                gate.parked = true;
                self.parked.notify_all();
                gate = self.bed.wait(gate);
                gate.parked = false;
            } else if let (true, Some(vector)) = (gate.waiting, gate.start_up) {
                gate.waiting = false;
                gate.start_up = None;
                // An INIT that came while waiting has nothing left to do.
                self.requests.clear(request::INIT);
                processor.start_up(vector);
            } else if gate.waiting || self.turns.as_ref().is_some_and(|turns| !turns.is_turn_of(self.index)) {
                gate = self.bed.wait(gate);
            } else {
                return true;
            }
        }
    }

    /// Between two looks at the gate: whoever cannot run leaves its turn to others, and who can has that of one who cannot.
    fn take_part(&self, turns: &Turns) {
        if !self.is_able() {
            turns.start_pace();
            turns.give_up(self.index);
        } else if !turns.is_turn_of(self.index) {
            turns.offer(self.index);
        }
    }

    /// The processor halted, and it is its turn: another one has it, or all wait for time to pass.
    fn idle(&self, processor: &P, turns: &Turns) {
        let mask = processor.wake_mask();
        self.halt.or_store.store(processor.waits_for_store(), Ordering::SeqCst);
        self.halt.looked.store(turns.moment(), Ordering::SeqCst);
        self.halt.until.store(mask, Ordering::SeqCst);
        let due = || self.requests.pending() & mask != 0 || processor.store_seen();
        let wanted = |gate: &Gate<P>| gate.quit || gate.hold || !gate.tasks.is_empty();
        let mut since = None;
        loop {
            turns.look();
            if due() || wanted(&self.gate()) || turns.pass(self.index, false) {
                return;
            }
            if let Idle::Wait(time) = turns.idle(&mut since) {
                turns.set_waits(true);
                // Once in that time.
                let waited = std::cell::Cell::new(false);
                let ready = |gate: &Gate<P>| waited.get() || due() || turns.was_stirred() || wanted(gate);
                self.bed.sleep(ready, || {
                    waited.set(time.is_some());
                    time
                });
                turns.set_waits(false);
            }
        }
    }

    /// Waits until the halted processor has a request that ends the halt: actively first if that has paid lately, then
    /// asleep. Everything else that is wanted of the thread comes with [`request::EXIT`], which ends every halt.
    fn sleep(&self, processor: &P, nap: &mut Nap) {
        let mask = processor.wake_mask();
        let due = || self.requests.pending() & mask != 0 || processor.store_seen();
        nap.begin();
        if !nap.watch(due, || processor.has_room()) {
            let ready = |gate: &Gate<P>| due() || gate.quit || gate.hold || !gate.tasks.is_empty();
            self.bed.sleep(ready, || processor.waits_for_store().then(|| nap.doze()));
        }
        nap.end();
    }
}

impl<P: Processor> Member for VcpuThread<P> {
    fn is_able(&self) -> bool {
        let gate = self.gate();
        !gate.quit && !gate.hold && (!gate.waiting || gate.start_up.is_some())
    }

    fn wants(&self, moment: u64) -> bool {
        let until = self.halt.until.load(Ordering::SeqCst);
        until == 0
            || self.requests.pending() & until != 0
            || self.waits_for_store() && self.halt.looked.load(Ordering::SeqCst) != moment
    }

    fn waits_for_store(&self) -> bool {
        self.halt.until.load(Ordering::SeqCst) != 0 && self.halt.or_store.load(Ordering::SeqCst)
    }

    fn call(&self) {
        // Whoever has the lock has looked already, and is to be asleep when it is called.
        drop(self.gate());
        self.bed.changed();
    }
}

/// Tells the machine when the thread unwinds.
struct ReportPanic {
    index: u32,
    events: Arc<dyn VcpuEvents>,
}

impl Drop for ReportPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.events.died(self.index);
        }
    }
}

/// However the thread ends, nobody waits for it in vain.
struct MarkEnded<P: Processor>(Arc<VcpuThread<P>>);

impl<P: Processor> Drop for MarkEnded<P> {
    fn drop(&mut self) {
        let mut gate = self.0.gate();
        gate.quit = true;
        gate.parked = true;
        // Dropping the tasks drops what their callers wait on.
        let tasks = std::mem::take(&mut gate.tasks);
        drop(gate);
        drop(tasks);
        self.0.parked.notify_all();
        self.0.turns.iter().for_each(|turns| turns.give_up(self.0.index));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
    use std::time::{Duration, Instant};

    #[derive(Clone, Default)]
    struct Word(Arc<AtomicU32>);

    impl Requests for Word {
        fn raise(&self, bits: u32) {
            self.0.fetch_or(bits, Ordering::SeqCst);
        }
        fn clear(&self, bits: u32) {
            self.0.fetch_and(!bits, Ordering::SeqCst);
        }
        fn pending(&self) -> u32 {
            self.0.load(Ordering::SeqCst)
        }
    }

    #[derive(Default)]
    struct Seen {
        interrupts: AtomicU64,
        runs: AtomicU64,
        vector: AtomicU32,
        waits_for_store: AtomicBool,
        stored: AtomicBool,
        events: Mutex<Vec<String>>,
    }

    impl VcpuEvents for Seen {
        fn triple_fault(&self, cpu: u32, dump: String) {
            self.events.lock().unwrap().push(format!("triple {cpu} {dump}"));
        }
        fn diverged(&self, cpu: u32, report: String) {
            self.events.lock().unwrap().push(format!("diverged {cpu} {report}"));
        }
        fn debug_stop(&self, cpu: u32) {
            self.events.lock().unwrap().push(format!("debug {cpu}"));
        }
        fn died(&self, cpu: u32) {
            self.events.lock().unwrap().push(format!("died {cpu}"));
        }
    }

    /// Takes interrupts if enabled, else halts; leaves as told by `exits`.
    struct Fake {
        word: Word,
        seen: Arc<Seen>,
        interrupts_on: bool,
        exits: Vec<Exit>,
    }

    impl Processor for Fake {
        type Requests = Word;
        fn requests(&self) -> Word {
            self.word.clone()
        }
        fn run(&mut self) -> Exit {
            self.seen.runs.fetch_add(1, Ordering::SeqCst);
            if let Some(exit) = self.exits.pop() {
                return exit;
            }
            let pending = self.word.pending();
            if pending & request::EXIT != 0 {
                return Exit::Requested;
            }
            if pending & request::INIT != 0 {
                self.word.clear(request::INIT);
                return Exit::WaitForStartUp;
            }
            if pending & request::INTERRUPT != 0 && self.interrupts_on {
                self.word.clear(request::INTERRUPT);
                self.seen.interrupts.fetch_add(1, Ordering::SeqCst);
            }
            Exit::Halted
        }
        fn start_up(&mut self, vector: u8) {
            self.seen.vector.store(vector.into(), Ordering::SeqCst);
        }
        fn wake_mask(&self) -> u32 {
            if self.interrupts_on { !0 } else { !request::INTERRUPT }
        }
        fn waits_for_store(&self) -> bool {
            self.seen.waits_for_store.load(Ordering::SeqCst)
        }
        fn store_seen(&self) -> bool {
            self.seen.stored.load(Ordering::SeqCst)
        }
        fn has_room(&self) -> bool {
            true
        }
    }

    fn spawn(index: u32, interrupts_on: bool, exits: Vec<Exit>) -> (Arc<Seen>, Arc<VcpuThread<Fake>>) {
        let seen = Arc::new(Seen::default());
        let in_thread = seen.clone();
        let make = move || Ok(Fake { word: Word::default(), seen: in_thread, interrupts_on, exits });
        let thread = VcpuThread::spawn(index, seen.clone(), None, make).unwrap();
        (seen, thread)
    }

    fn eventually(what: &str, f: impl Fn() -> bool) {
        let start = Instant::now();
        while !f() {
            assert!(start.elapsed() < Duration::from_secs(20), "never: {what}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn no_wake_up_is_lost_however_halting_and_raising_interleave() {
        let (seen, thread) = spawn(0, true, vec![]);
        thread.release();
        for n in 1..=20_000 {
            // Spread over the moments of going to sleep.
            for _ in 0..n % 97 {
                std::hint::spin_loop();
            }
            thread.raise(request::INTERRUPT);
            eventually("interrupt taken", || seen.interrupts.load(Ordering::SeqCst) == n);
        }
        thread.quit();
    }

    #[test]
    fn a_halted_processor_sleeps_and_a_deaf_one_too() {
        for interrupts_on in [true, false] {
            let (seen, thread) = spawn(0, interrupts_on, vec![]);
            thread.release();
            if !interrupts_on {
                thread.raise(request::INTERRUPT);
            }
            std::thread::sleep(Duration::from_millis(200));
            let runs = seen.runs.load(Ordering::SeqCst);
            assert!((1..5).contains(&runs), "{runs} runs in 0.2 s");
            thread.quit();
            assert!(thread.with(|_| ()).is_none(), "an ended thread takes no tasks");
        }
    }

    #[test]
    fn a_store_ends_the_wait_for_it() {
        let (seen, thread) = spawn(0, true, vec![]);
        seen.waits_for_store.store(true, Ordering::SeqCst);
        thread.release();
        for _ in 0..20 {
            seen.stored.store(false, Ordering::SeqCst);
            assert_eq!(thread.with(|_| ()), Some(()), "the thread has seen that, and goes to sleep");
            let before = seen.runs.load(Ordering::SeqCst);
            seen.stored.store(true, Ordering::SeqCst);
            eventually("the processor runs, called by nobody", || seen.runs.load(Ordering::SeqCst) > before);
        }
        thread.quit();
    }

    #[test]
    fn holding_and_releasing_stop_and_start_it() {
        let (seen, thread) = spawn(0, true, vec![]);
        thread.wait_held();
        thread.raise(request::INTERRUPT);
        assert_eq!(thread.with(|p| p.word.pending() & request::INTERRUPT), Some(request::INTERRUPT));
        assert_eq!(seen.runs.load(Ordering::SeqCst), 0, "held from the start");
        for n in 1..200 {
            thread.raise(request::INTERRUPT);
            thread.release();
            eventually("interrupt taken", || seen.interrupts.load(Ordering::SeqCst) >= n);
            assert_eq!(thread.with(|_| 5), Some(5), "tasks run on a processor that runs or sleeps");
            thread.hold();
            thread.wait_held();
            let before = seen.runs.load(Ordering::SeqCst);
            thread.raise(request::NMI);
            assert_eq!(thread.with(|p| p.word.clear(request::NMI)), Some(()));
            assert_eq!(seen.runs.load(Ordering::SeqCst), before);
        }
        thread.quit();
    }

    #[test]
    fn secondary_processors_wait_for_their_start_up_message() {
        let (seen, thread) = spawn(1, true, vec![]);
        thread.release();
        thread.init();
        thread.start_up(0x9a);
        eventually("started", || seen.vector.load(Ordering::SeqCst) == 0x9a && seen.runs.load(Ordering::SeqCst) > 0);
        thread.start_up(0x11);
        assert_eq!(thread.with(|_| ()), Some(()));
        assert_eq!(seen.vector.load(Ordering::SeqCst), 0x9a, "a running processor ignores it");
        thread.init();
        thread.start_up(0x22);
        eventually("started again", || seen.vector.load(Ordering::SeqCst) == 0x22);
        thread.quit();
    }

    #[test]
    fn shutdown_and_breakpoints_hold_the_thread_until_restarted() {
        let exits = vec![Exit::TripleFault("why".into()), Exit::Diverged("rax".into()), Exit::Debug];
        let (seen, thread) = spawn(0, true, exits);
        for (n, text) in ["debug 0", "diverged 0 rax", "triple 0 why"].into_iter().enumerate() {
            thread.release();
            thread.wait_held_after(&seen, n + 1);
            assert_eq!(seen.events.lock().unwrap()[n], text);
        }
        let runs = seen.runs.load(Ordering::SeqCst);
        assert_eq!(runs, 3);
        thread.restart(true, |p| p.interrupts_on = false);
        thread.release();
        eventually("runs again", || seen.runs.load(Ordering::SeqCst) > runs);
        assert_eq!(thread.with(|p| p.interrupts_on), Some(false));
        thread.quit();
    }

    impl VcpuThread<Fake> {
        fn wait_held_after(&self, seen: &Seen, events: usize) {
            eventually("event", || seen.events.lock().unwrap().len() == events);
            self.wait_held();
        }
    }

    #[test]
    fn a_panic_is_told_and_leaves_nobody_waiting() {
        let (seen, thread) = spawn(0, true, vec![]);
        assert_eq!(thread.with(|_| panic!("expected by the test")), None::<()>);
        thread.wait_held();
        thread.quit();
        assert_eq!(*seen.events.lock().unwrap(), ["died 0"]);
    }
}
