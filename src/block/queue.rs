//! Requests that run off the caller's thread: submitted here, carried out by a few threads, and
//! collected when the bell rings.
//!
//! A device on the I/O thread submits what the guest asks for, watches [`Queue::as_fd`] for input
//! and then takes [`Queue::completed`]. Requests have no order among each other, as on a disk with
//! a queue of commands: a flush covers the writes that were collected before it was submitted.
//!
//! Requests that are one read or write of a host file ([`Transfer`](super::Transfer)) go to the kernel by io_uring, from
//! the thread that submits them: what the host's cache has is there at once. All others, and those that did not go
//! as they should, are for a few threads: a qcow2 request may be several reads and writes that follow from each other.

use super::flights::{Flights, Landing};
use super::{Aio, BlockBackend, BlockError, Result};
use brolga_jit::mmu::ram_buffer::RamBuffer;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Where the bytes of a request are: guest RAM, or a buffer. What [`parts`](Self::parts) gives
/// goes to the host as it is, so that nothing is copied on the way.
pub trait RequestMemory: Send {
    /// The pieces, for a write request.
    fn parts(&self) -> Vec<IoSlice<'_>>;
    /// The pieces, for a read request.
    fn parts_mut(&mut self) -> Vec<IoSliceMut<'_>>;
    /// Bytes in all pieces.
    fn len(&self) -> u64 {
        super::total(&self.parts())
    }
    /// Whether there is no byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl RequestMemory for Vec<u8> {
    fn parts(&self) -> Vec<IoSlice<'_>> {
        vec![IoSlice::new(self)]
    }

    fn parts_mut(&mut self) -> Vec<IoSliceMut<'_>> {
        vec![IoSliceMut::new(self)]
    }
}

impl RequestMemory for RamBuffer {
    fn parts(&self) -> Vec<IoSlice<'_>> {
        self.slices()
    }

    fn parts_mut(&mut self) -> Vec<IoSliceMut<'_>> {
        self.slices_mut()
    }

    fn len(&self) -> u64 {
        RamBuffer::len(self)
    }
}

/// Bytes of neighbouring requests that are carried out together at most.
const MERGED: u64 = 256 << 10;

/// What is to be done.
pub enum Operation {
    /// Read into memory.
    Read(Box<dyn RequestMemory>),
    /// Write from memory; with `fua` it is durable when it has completed.
    Write {
        /// The bytes.
        memory: Box<dyn RequestMemory>,
        /// Force unit access.
        fua: bool,
    },
    /// Make durable what was written before.
    Flush,
    /// The bytes are no longer needed.
    Discard {
        /// How many.
        len: u64,
    },
    /// The bytes are to be zero.
    WriteZeroes {
        /// How many.
        len: u64,
        /// Their space may be given back.
        unmap: bool,
    },
}

impl Operation {
    /// Whether `werror=` decides what becomes of a failure, and not `rerror=`.
    pub fn is_write(&self) -> bool {
        !matches!(self, Operation::Read(_))
    }

    /// Bytes of a request that may be carried out with its neighbours.
    fn mergeable(&self) -> Option<u64> {
        match self {
            Operation::Read(memory) | Operation::Write { memory, fua: false } => Some(memory.len()),
            _ => None,
        }
    }
}

/// One request of a device.
pub struct Request {
    /// The device's own number for it.
    pub tag: u64,
    /// First byte on the disk; no matter for a flush.
    pub offset: u64,
    /// What is to be done.
    pub operation: Operation,
}

/// A request that was carried out. It comes back whole, so that it can be submitted again after
/// an error that stopped the machine.
pub struct Completed {
    /// As it was submitted; memory of a read is filled.
    pub request: Request,
    /// How it went.
    pub result: Result<()>,
}

/// Requests of one drive.
pub struct Queue {
    shared: Arc<Shared>,
    /// Collects what the kernel ends later.
    collector: Option<JoinHandle<()>>,
}

struct Shared {
    backend: Arc<dyn BlockBackend>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    most_threads: usize,
    /// What the kernel has.
    flights: Option<Flights>,
    state: Mutex<State>,
    /// There is work, or the end.
    work: Condvar,
    /// Nothing waits or runs.
    quiet: Condvar,
    bell: EventFd,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Request>,
    running: usize,
    /// Requests that the kernel has, or is given.
    flying: usize,
    /// Threads that look for work.
    idle: usize,
    done: Vec<Completed>,
    closing: bool,
}

impl State {
    /// Adds what was carried out, and says whether the bell is to be rung: who collects takes all, so one ring is
    /// enough for those that were not yet taken.
    fn finish(&mut self, completed: impl IntoIterator<Item = Completed>) -> bool {
        let silent = self.done.is_empty();
        self.done.extend(completed);
        silent && !self.done.is_empty()
    }

    /// The request that waits longest, with those behind it that go on where it ends: its share, if so many threads
    /// do the work.
    fn next(&mut self, threads: usize) -> Option<Vec<Request>> {
        let share = self.waiting.len().div_ceil(threads);
        let mut requests = vec![self.waiting.pop_front()?];
        let mut all = 0;
        while let (Some(last), Some(next)) = (requests.last(), self.waiting.front()) {
            let len = last.operation.mergeable().unwrap_or(MERGED);
            all += len;
            let follows = last.offset.checked_add(len) == Some(next.offset);
            let alike = last.operation.is_write() == next.operation.is_write();
            let more = next.operation.mergeable().is_some_and(|len| all + len <= MERGED);
            if !(follows && alike && more && requests.len() < share) {
                break;
            }
            requests.extend(self.waiting.pop_front());
        }
        Some(requests)
    }

    fn is_quiet(&self) -> bool {
        self.running == 0 && self.flying == 0 && self.waiting.is_empty()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What each thread does.
    fn serve(&self) {
        let mut state = self.state();
        loop {
            while let Some(requests) = state.next(self.most_threads) {
                let taken = requests.len();
                state.running += taken;
                drop(state);
                let completed = self.carry_out_all(requests);
                state = self.state();
                state.running -= taken;
                if state.finish(completed) {
                    self.ring();
                }
                if state.is_quiet() {
                    self.quiet.notify_all();
                }
            }
            if state.closing {
                return;
            }
            state.idle += 1;
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    fn ring(&self) {
        if let Err(e) = self.bell.write(1) {
            tracing::error!("completed disk requests cannot be told of: {e}");
        }
    }

    /// What the kernel has ended: told of, or for the threads where it did not go as it should.
    fn landed(self: &Arc<Self>, landed: Vec<Landing>) {
        if landed.is_empty() {
            return;
        }
        let mut state = self.state();
        state.flying -= landed.len();
        let (mut whole, mut again) = (Vec::with_capacity(landed.len()), Vec::new());
        for landing in landed {
            match landing {
                Landing::Done(request) => whole.push(Completed { request, result: Ok(()) }),
                Landing::Again(request) => again.push(request),
            }
        }
        if state.finish(whole) {
            self.ring();
        }
        if again.is_empty() && state.is_quiet() {
            self.quiet.notify_all();
        }
        self.wait_for_threads(state, again);
    }

    /// Collects what the kernel ends while nobody submits.
    fn collect_flights(self: &Arc<Self>, flights: &Flights) {
        while flights.wait() {
            self.landed(flights.collect());
        }
    }

    fn wait_for_threads(self: &Arc<Self>, mut state: MutexGuard<'_, State>, requests: Vec<Request>) {
        if requests.is_empty() {
            return;
        }
        state.waiting.extend(requests);
        let (idle, waiting) = (state.idle, state.waiting.len());
        drop(state);
        for _ in 0..waiting.min(idle) {
            self.work.notify_one();
        }
        if waiting > idle {
            self.start(waiting - idle);
        }
    }

    /// Starts up to `wanted` threads more. Without any the caller does the work itself.
    fn start(self: &Arc<Self>, wanted: usize) {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..wanted.min(self.most_threads.saturating_sub(threads.len())) {
            let shared = self.clone();
            match std::thread::Builder::new().name("disk".into()).spawn(move || shared.serve()) {
                Ok(thread) => threads.push(thread),
                Err(e) if threads.is_empty() => {
                    tracing::warn!("no thread for disk requests: {e}");
                    self.work_here();
                    return;
                }
                Err(_) => return,
            }
        }
    }

    fn work_here(&self) {
        loop {
            let mut state = self.state();
            let Some(mut request) = state.waiting.pop_front() else { return };
            drop(state);
            let result = self.carry_out(&mut request);
            self.state().finish([Completed { request, result }]);
            self.ring();
        }
    }

    /// Carries out requests of which each goes on where the one before ends, in one if that works.
    fn carry_out_all(&self, mut requests: Vec<Request>) -> Vec<Completed> {
        if requests.len() > 1
            && catch_unwind(AssertUnwindSafe(|| run_merged(&*self.backend, &mut requests))).is_ok_and(|r| r.is_ok())
        {
            return requests.into_iter().map(|request| Completed { request, result: Ok(()) }).collect();
        }
        // One by one, so that each gets its own error.
        let single = |mut request| {
            let result = self.carry_out(&mut request);
            Completed { request, result }
        };
        requests.into_iter().map(single).collect()
    }

    fn carry_out(&self, request: &mut Request) -> Result<()> {
        // A bug in a driver must not leave the guest waiting for ever.
        catch_unwind(AssertUnwindSafe(|| run(&*self.backend, request))).unwrap_or_else(|_| {
            Err(BlockError::Invalid { what: "a disk request failed inside Brolga; this is a bug".to_string() })
        })
    }
}

fn run_merged(backend: &dyn BlockBackend, requests: &mut [Request]) -> Result<()> {
    let Some(first) = requests.first() else { return Ok(()) };
    let offset = first.offset;
    if first.operation.is_write() {
        let memory = requests.iter().filter_map(|r| match &r.operation {
            Operation::Write { memory, .. } => Some(memory.parts()),
            _ => None,
        });
        return backend.writev(offset, &memory.flatten().collect::<Vec<_>>());
    }
    let memory = requests.iter_mut().filter_map(|r| match &mut r.operation {
        Operation::Read(memory) => Some(memory.parts_mut()),
        _ => None,
    });
    backend.readv(offset, &mut memory.flatten().collect::<Vec<_>>())
}

fn run(backend: &dyn BlockBackend, request: &mut Request) -> Result<()> {
    let offset = request.offset;
    match &mut request.operation {
        Operation::Read(memory) => backend.readv(offset, &mut memory.parts_mut()),
        Operation::Write { memory, fua } => {
            backend.writev(offset, &memory.parts())?;
            if *fua { backend.flush() } else { Ok(()) }
        }
        Operation::Flush => backend.flush(),
        Operation::Discard { len } => backend.discard(offset, *len),
        Operation::WriteZeroes { len, unmap } => backend.write_zeroes(offset, *len, *unmap),
    }
}

impl Queue {
    /// A queue for `backend` with at most `most_threads` threads, started as they are needed.
    pub fn new(backend: Arc<dyn BlockBackend>, most_threads: usize, aio: Aio) -> io::Result<Queue> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let (state, work, quiet) = (Mutex::default(), Condvar::new(), Condvar::new());
        let (threads, most_threads) = (Mutex::default(), most_threads.max(1));
        let flights = Flights::new(aio);
        let shared = Arc::new(Shared { backend, threads, most_threads, flights, state, work, quiet, bell });
        let mut collector = None;
        if shared.flights.is_some() {
            let shared = shared.clone();
            let collect = move || shared.flights.as_ref().map_or((), |flights| shared.collect_flights(flights));
            collector = Some(std::thread::Builder::new().name("disk ring".into()).spawn(collect)?);
        }
        Ok(Queue { shared, collector })
    }

    /// The disk that the requests go to.
    pub fn backend(&self) -> &Arc<dyn BlockBackend> {
        &self.shared.backend
    }

    /// Whether requests can reach the host by io_uring.
    pub fn has_ring(&self) -> bool {
        self.shared.flights.is_some()
    }

    /// Submits one request. Never blocks for long.
    pub fn submit(&self, request: Request) {
        self.submit_all([request]);
    }

    /// Submits several requests at once, which is cheaper.
    pub fn submit_all(&self, requests: impl IntoIterator<Item = Request>) {
        let requests: Vec<Request> = requests.into_iter().collect();
        if let Some(flights) = &self.shared.flights {
            // Before the kernel has them: they may land at once.
            self.shared.state().flying += requests.len();
            let (landed, left) = flights.launch(&*self.shared.backend, requests);
            self.shared.landed(landed);
            let mut state = self.shared.state();
            state.flying -= left.len();
            return self.shared.wait_for_threads(state, left);
        }
        self.shared.wait_for_threads(self.shared.state(), requests);
    }

    /// Takes what was carried out since the last call, and silences the bell.
    pub fn completed(&self) -> Vec<Completed> {
        let mut state = self.shared.state();
        // Fails only if it does not ring.
        let _ = self.shared.bell.read();
        std::mem::take(&mut state.done)
    }

    /// Requests that were submitted and not yet taken from [`completed`](Self::completed).
    pub fn outstanding(&self) -> usize {
        let state = self.shared.state();
        state.waiting.len() + state.running + state.flying + state.done.len()
    }

    /// Waits until everything submitted was carried out: before a pause, reset or snapshot.
    pub fn drain(&self) {
        let busy = |state: &mut State| !state.is_quiet();
        drop(self.shared.quiet.wait_while(self.shared.state(), busy));
    }
}

impl AsFd for Queue {
    /// Readable while there is something in [`completed`](Queue::completed).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.bell.as_fd()
    }
}

impl Drop for Queue {
    /// Carries out what was submitted, and ends the threads.
    fn drop(&mut self) {
        if let (Some(collector), Some(flights)) = (self.collector.take(), &self.shared.flights) {
            self.drain();
            flights.close();
            let _ = collector.join();
        }
        self.shared.state().closing = true;
        self.shared.work.notify_all();
        let threads = std::mem::take(&mut *self.shared.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A panic there was reported when it happened.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{Content, Extent, Preallocation};
    use brolga_jit::mmu::ram::{Ram, RamRegion};
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::collections::HashMap;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    /// A disk whose every request takes some time, and that notes what it saw.
    #[derive(Default)]
    struct Slow {
        bytes: Mutex<Vec<u8>>,
        delay: Duration,
        now: AtomicUsize,
        most: AtomicUsize,
        flushes: AtomicUsize,
        seen: Mutex<Vec<usize>>,
        fail: bool,
    }

    impl Slow {
        fn busy<T>(&self, work: impl FnOnce() -> T) -> T {
            let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
            std::thread::sleep(self.delay);
            let result = work();
            self.now.fetch_sub(1, Ordering::SeqCst);
            result
        }
    }

    impl BlockBackend for Slow {
        fn len(&self) -> u64 {
            self.bytes.lock().unwrap().len() as u64
        }
        fn read_only(&self) -> bool {
            false
        }
        fn readv(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<()> {
            let bytes = self.bytes.lock().unwrap().clone();
            crate::block::check_range(offset, crate::block::total_mut(bufs), bytes.len() as u64)?;
            self.busy(|| crate::block::vectors::scatter(bufs, &bytes[offset as usize..]));
            Ok(())
        }
        fn writev(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()> {
            if self.fail {
                let source = io::Error::from_raw_os_error(libc::ENOSPC);
                return Err(BlockError::Io { name: "slow".into(), action: "cannot write".into(), source });
            }
            self.seen.lock().unwrap().push(bufs[0].as_ptr().addr());
            self.busy(|| {
                let all = crate::block::vectors::gather(bufs);
                self.bytes.lock().unwrap()[offset as usize..][..all.len()].copy_from_slice(&all);
            });
            Ok(())
        }
        fn flush(&self) -> Result<()> {
            self.flushes.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
        fn discard(&self, _: u64, _: u64) -> Result<()> {
            panic!("a bug")
        }
        fn write_zeroes(&self, offset: u64, len: u64, _: bool) -> Result<()> {
            self.bytes.lock().unwrap()[offset as usize..(offset + len) as usize].fill(0);
            Ok(())
        }
        fn map(&self, offset: u64, len: u64) -> Result<Extent> {
            let content = Content::Data;
            Ok(Extent { offset, len, content, depth: 0, host_offset: None, compressed: false, sparse: false })
        }
        fn resize(&self, _: u64, _: Preallocation) -> Result<()> {
            Ok(())
        }
    }

    fn slow(delay: u64) -> Arc<Slow> {
        Arc::new(Slow { bytes: vec![0; 4096].into(), delay: Duration::from_millis(delay), ..Slow::default() })
    }

    fn rings(queue: &Queue, wait: u16) -> bool {
        let mut fds = [PollFd::new(queue.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(wait)).unwrap() == 1
    }

    fn collect(queue: &Queue, count: usize) -> HashMap<u64, Completed> {
        let mut all = HashMap::new();
        while all.len() < count {
            assert!(rings(queue, 5000), "the bell rings while something is done");
            all.extend(queue.completed().into_iter().map(|c| (c.request.tag, c)));
        }
        assert!(!rings(queue, 0));
        all
    }

    fn write(tag: u64, offset: u64, bytes: Vec<u8>, fua: bool) -> Request {
        Request { tag, offset, operation: Operation::Write { memory: Box::new(bytes), fua } }
    }

    #[test]
    fn requests_run_in_parallel_and_all_come_back() {
        let disk = slow(20);
        let queue = Queue::new(disk.clone(), 8, Aio::Threads).unwrap();
        let begin = Instant::now();
        queue.submit_all((0..16).map(|i| write(i, i * 10, vec![i as u8 + 1; 10], false)));
        assert_eq!(collect(&queue, 16).len(), 16);
        assert!(begin.elapsed() < Duration::from_millis(16 * 20));
        let most = disk.most.load(Ordering::SeqCst);
        assert!((2..=8).contains(&most), "{most}");
        queue.submit(Request { tag: 99, offset: 155, operation: Operation::Read(Box::new(vec![9; 10])) });
        let mut all = collect(&queue, 1);
        let Some(Completed { request: Request { operation: Operation::Read(memory), .. }, result: Ok(()) }) =
            all.remove(&99)
        else {
            panic!("a read comes back")
        };
        assert_eq!(&*memory.parts()[0], [16, 16, 16, 16, 16, 0, 0, 0, 0, 0]);
        assert_eq!(queue.outstanding(), 0);
    }

    #[test]
    fn memory_is_not_copied_and_fua_flushes() {
        let disk = slow(0);
        let queue = Queue::new(disk.clone(), 2, Aio::Threads).unwrap();
        let bytes = vec![5; 100];
        let at = bytes.as_ptr().addr();
        queue.submit(write(1, 0, bytes, true));
        queue.submit(Request { tag: 2, offset: 0, operation: Operation::WriteZeroes { len: 0, unmap: true } });
        collect(&queue, 2);
        assert_eq!(*disk.seen.lock().unwrap(), [at]);
        assert_eq!(disk.flushes.load(Ordering::SeqCst), 1);
        queue.submit(Request { tag: 3, offset: 0, operation: Operation::Flush });
        queue.drain();
        assert_eq!(disk.flushes.load(Ordering::SeqCst), 2);
        assert_eq!(collect(&queue, 1).len(), 1, "drained requests are still told of");
    }

    #[test]
    fn neighbours_go_together_and_errors_stay_apart() {
        let disk = slow(20);
        let queue = Queue::new(disk.clone(), 1, Aio::Threads).unwrap();
        // The first keeps the thread busy; the others wait, and meet.
        queue.submit(write(0, 4000, vec![9], false));
        std::thread::sleep(Duration::from_millis(5));
        let apart = [(1, 0, 10), (2, 10, 20), (3, 30, 5), (4, 36, 5), (5, 41, 5)];
        queue.submit_all(apart.map(|(tag, offset, len)| write(tag, offset, vec![tag as u8; len], false)));
        let all = collect(&queue, 6);
        assert!(all.values().all(|c| c.result.is_ok()));
        assert_eq!(disk.seen.lock().unwrap().len(), 3, "one alone, three, and two");
        let bytes = disk.bytes.lock().unwrap()[..46].to_vec();
        assert_eq!(bytes, [vec![1; 10], vec![2; 20], vec![3; 5], vec![0], vec![4; 5], vec![5; 5]].concat());
        let read = |tag, offset, len| Request { tag, offset, operation: Operation::Read(Box::new(vec![0u8; len])) };
        queue.submit(write(0, 4000, vec![9], false));
        std::thread::sleep(Duration::from_millis(5));
        let size = disk.len();
        queue.submit_all([read(1, 0, 15), read(2, 15, 20), read(3, 35, (size - 35) as usize), read(4, size, 1)]);
        let all = collect(&queue, 5);
        assert!(all[&1].result.is_ok() && all[&2].result.is_ok() && all[&3].result.is_ok());
        assert!(all[&4].result.is_err(), "only the one behind the end");
        let Operation::Read(memory) = &all[&2].request.operation else { panic!("comes back whole") };
        assert_eq!(memory.parts()[0][..], [vec![2; 15], vec![3; 5]].concat()[..]);
    }

    /// Files of all kinds by the ring: what is written is there, whatever way each request took.
    #[test]
    fn files_are_read_and_written_by_the_ring() {
        use crate::block::qcow2::{CreateOptions, create};
        use crate::block::scratch::{Dice, Scratch};
        use crate::block::{CacheMode, OpenOptions, create_raw, open};
        const SIZE: u64 = (2 << 20) + 512;
        let (dir, mut dice) = (Scratch::new(), Dice::new(11));
        create_raw(&dir.path("a.raw"), SIZE, Preallocation::Off).unwrap();
        let backing = |cluster_size| CreateOptions { size: SIZE, cluster_size, ..CreateOptions::default() };
        create(&dir.path("a.qcow2"), &backing(4096)).unwrap();
        create(&dir.path("b.qcow2"), &backing(65536)).unwrap();
        for (name, cache, aio) in [
            ("a.raw", "writeback", Aio::Uring),
            ("a.raw", "none", Aio::Native),
            ("a.qcow2", "writeback", Aio::Uring),
            ("b.qcow2", "none", Aio::Uring),
            ("b.qcow2", "writeback", Aio::Best),
        ] {
            let options = OpenOptions { cache: CacheMode::from_name(cache).unwrap(), ..OpenOptions::default() };
            let Ok(image) = open(&dir.path(name), &options) else { continue };
            let queue = Queue::new(image.backend(), 3, aio).unwrap();
            assert_eq!(queue.has_ring(), crate::block::uring::available());
            let mut model = vec![0; SIZE as usize];
            image.backend().read(0, &mut model).unwrap();
            for round in 0..60u64 {
                // Requests of one round do not touch each other.
                let mut requests = Vec::new();
                let mut at = dice.below(3000) & !511;
                while at < SIZE {
                    let len = (512 + (dice.below(90_000) & !511)).min(SIZE - at);
                    let place = at as usize..(at + len) as usize;
                    let operation = match dice.below(8) {
                        0..=2 => Operation::Read(Box::new(vec![0xee; len as usize])),
                        3..=5 => {
                            model[place].fill(round as u8);
                            Operation::Write { memory: Box::new(vec![round as u8; len as usize]), fua: round % 9 == 0 }
                        }
                        6 => {
                            model[place].fill(0);
                            Operation::WriteZeroes { len, unmap: round % 2 == 0 }
                        }
                        _ => Operation::Flush,
                    };
                    requests.push(Request { tag: requests.len() as u64, offset: at, operation });
                    at += len + (dice.below(40_000) & !511);
                }
                let count = requests.len();
                queue.submit_all(requests);
                for completed in collect(&queue, count).into_values() {
                    completed.result.unwrap();
                    if let Operation::Read(memory) = &completed.request.operation {
                        let at = completed.request.offset as usize;
                        let got = &memory.parts()[0];
                        assert!(**got == model[at..at + got.len()], "{name} {cache} round {round} at {at}");
                    }
                }
            }
            assert_eq!(queue.outstanding(), 0);
            // Beyond the end, and where nothing may be written: told as threads tell it.
            queue.submit(Request { tag: 1, offset: SIZE, operation: Operation::Read(Box::new(vec![0u8; 1])) });
            assert!(matches!(collect(&queue, 1)[&1].result, Err(BlockError::OutOfRange { .. })));
            queue.submit_all((0..50).map(|i| write(i, i * 4096, vec![7; 4096], false)));
            drop(queue);
            model[..50 * 4096].fill(7);
            let mut found = vec![0; SIZE as usize];
            image.backend().read(0, &mut found).unwrap();
            assert!(found == model, "{name} {cache}: the queue carried all out before it went");
        }
        let file = crate::block::HostFile::open(&dir.path("a.raw"), false).unwrap();
        let disk = Arc::new(crate::block::Raw::new(Arc::new(file), false));
        let queue = Queue::new(disk, 1, Aio::Uring).unwrap();
        queue.submit(write(3, 0, vec![1; 512], false));
        let error = collect(&queue, 1).remove(&3).unwrap().result.unwrap_err();
        assert_eq!(error.os_error(), Some(libc::EBADF), "{error}");
    }

    #[test]
    fn guest_memory_is_read_and_filled_in_place() {
        let region = RamRegion { gpa: 0x10000, size: 0x2000, offset: 0, rom: false };
        let ram = Arc::new(Ram::new(0x2000, vec![region]).unwrap());
        let disk = slow(0);
        let queue = Queue::new(disk.clone(), 1, Aio::Threads).unwrap();
        let buffer = |fill| {
            let ranges = [(0x11000, 3), (0x10000, 2)];
            Box::new(RamBuffer::new(ram.clone(), &ranges, fill).unwrap())
        };
        ram.write(0x11000, b"abc", false);
        ram.write(0x10000, b"de", false);
        queue.submit(Request { tag: 1, offset: 9, operation: Operation::Write { memory: buffer(false), fua: false } });
        collect(&queue, 1);
        assert_eq!(disk.bytes.lock().unwrap()[8..15], *b"\0abcde\0");
        queue.submit(Request { tag: 2, offset: 11, operation: Operation::Read(buffer(true)) });
        collect(&queue, 1);
        let mut found = [0; 4];
        ram.read(0x11000, &mut found);
        assert_eq!(found, *b"cde\0");
    }

    #[test]
    fn failed_requests_come_back_to_be_made_again() {
        let full = Arc::new(Slow { bytes: vec![0; 10].into(), fail: true, ..Slow::default() });
        let queue = Queue::new(full, 1, Aio::Threads).unwrap();
        queue.submit(write(7, 3, vec![1, 2], false));
        let failed = collect(&queue, 1).remove(&7).unwrap();
        assert!(failed.result.unwrap_err().is_no_space() && failed.request.operation.is_write());
        let disk = slow(0);
        let queue = Queue::new(disk.clone(), 1, Aio::Threads).unwrap();
        queue.submit(failed.request);
        assert!(collect(&queue, 1)[&7].result.is_ok());
        assert_eq!(disk.bytes.lock().unwrap()[2..6], [0, 1, 2, 0]);
    }

    #[test]
    fn a_bug_in_a_driver_is_an_error_and_no_hang() {
        let queue = Queue::new(slow(0), 1, Aio::Threads).unwrap();
        queue.submit(Request { tag: 1, offset: 0, operation: Operation::Discard { len: 1 } });
        queue.submit(write(2, 0, vec![1], false));
        let all = collect(&queue, 2);
        assert!(all[&1].result.is_err() && all[&2].result.is_ok());
    }

    #[test]
    fn what_was_submitted_is_done_when_the_queue_goes() {
        let disk = slow(5);
        let queue = Queue::new(disk.clone(), 2, Aio::Threads).unwrap();
        queue.submit_all((0..10).map(|i| write(i, i, vec![1], false)));
        drop(queue);
        assert_eq!(disk.bytes.lock().unwrap()[..11], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]);
    }
}
