//! Requests that run off the caller's thread: submitted here, carried out by a few threads, and
//! collected when the bell rings.
//!
//! A device on the I/O thread submits what the guest asks for, watches [`Queue::as_fd`] for input
//! and then takes [`Queue::completed`]. Requests have no order among each other, as on a disk with
//! a queue of commands: a flush covers the writes that were collected before it was submitted.
//!
//! Threads rather than io_uring: its only maintained binding needs `unsafe` for each request, and a
//! qcow2 request is several reads and writes that follow from each other.

use super::{BlockBackend, BlockError, Result};
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
}

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
    threads: Mutex<Vec<JoinHandle<()>>>,
    most_threads: usize,
}

struct Shared {
    backend: Arc<dyn BlockBackend>,
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
    /// Threads that look for work.
    idle: usize,
    done: Vec<Completed>,
    closing: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What each thread does.
    fn serve(&self) {
        let mut state = self.state();
        loop {
            while let Some(mut request) = state.waiting.pop_front() {
                state.running += 1;
                drop(state);
                let result = self.carry_out(&mut request);
                state = self.state();
                state.running -= 1;
                // Who collects takes all: one ring is enough for those that were not yet taken.
                let ring = state.done.is_empty();
                state.done.push(Completed { request, result });
                if ring && let Err(e) = self.bell.write(1) {
                    tracing::error!("completed disk requests cannot be told of: {e}");
                }
                if state.running == 0 && state.waiting.is_empty() {
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

    fn carry_out(&self, request: &mut Request) -> Result<()> {
        // A bug in a driver must not leave the guest waiting for ever.
        catch_unwind(AssertUnwindSafe(|| run(&*self.backend, request))).unwrap_or_else(|_| {
            Err(BlockError::Invalid { what: "a disk request failed inside Brolga; this is a bug".to_string() })
        })
    }
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
    pub fn new(backend: Arc<dyn BlockBackend>, most_threads: usize) -> io::Result<Queue> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let (state, work, quiet) = (Mutex::default(), Condvar::new(), Condvar::new());
        let shared = Arc::new(Shared { backend, state, work, quiet, bell });
        Ok(Queue { shared, threads: Mutex::default(), most_threads: most_threads.max(1) })
    }

    /// The disk that the requests go to.
    pub fn backend(&self) -> &Arc<dyn BlockBackend> {
        &self.shared.backend
    }

    /// Submits one request. Never blocks for long.
    pub fn submit(&self, request: Request) {
        self.submit_all([request]);
    }

    /// Submits several requests at once, which is cheaper.
    pub fn submit_all(&self, requests: impl IntoIterator<Item = Request>) {
        let (idle, waiting) = {
            let mut state = self.shared.state();
            state.waiting.extend(requests);
            (state.idle, state.waiting.len())
        };
        for _ in 0..waiting.min(idle) {
            self.shared.work.notify_one();
        }
        if waiting > idle {
            self.start(waiting - idle);
        }
    }

    /// Starts up to `wanted` threads more. Without any the caller does the work itself.
    fn start(&self, wanted: usize) {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..wanted.min(self.most_threads.saturating_sub(threads.len())) {
            let shared = self.shared.clone();
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
            let mut state = self.shared.state();
            let Some(mut request) = state.waiting.pop_front() else { return };
            drop(state);
            let result = self.shared.carry_out(&mut request);
            self.shared.state().done.push(Completed { request, result });
            if let Err(e) = self.shared.bell.write(1) {
                tracing::error!("completed disk requests cannot be told of: {e}");
            }
        }
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
        state.waiting.len() + state.running + state.done.len()
    }

    /// Waits until everything submitted was carried out: before a pause, reset or snapshot.
    pub fn drain(&self) {
        let busy = |state: &mut State| state.running > 0 || !state.waiting.is_empty();
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
        self.shared.state().closing = true;
        self.shared.work.notify_all();
        let threads = self.threads.get_mut().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
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
        let queue = Queue::new(disk.clone(), 8).unwrap();
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
        let queue = Queue::new(disk.clone(), 2).unwrap();
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
    fn guest_memory_is_read_and_filled_in_place() {
        let region = RamRegion { gpa: 0x10000, size: 0x2000, offset: 0, rom: false };
        let ram = Arc::new(Ram::new(0x2000, vec![region]).unwrap());
        let disk = slow(0);
        let queue = Queue::new(disk.clone(), 1).unwrap();
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
        let queue = Queue::new(full, 1).unwrap();
        queue.submit(write(7, 3, vec![1, 2], false));
        let failed = collect(&queue, 1).remove(&7).unwrap();
        assert!(failed.result.unwrap_err().is_no_space() && failed.request.operation.is_write());
        let disk = slow(0);
        let queue = Queue::new(disk.clone(), 1).unwrap();
        queue.submit(failed.request);
        assert!(collect(&queue, 1)[&7].result.is_ok());
        assert_eq!(disk.bytes.lock().unwrap()[2..6], [0, 1, 2, 0]);
    }

    #[test]
    fn a_bug_in_a_driver_is_an_error_and_no_hang() {
        let queue = Queue::new(slow(0), 1).unwrap();
        queue.submit(Request { tag: 1, offset: 0, operation: Operation::Discard { len: 1 } });
        queue.submit(write(2, 0, vec![1], false));
        let all = collect(&queue, 2);
        assert!(all[&1].result.is_err() && all[&2].result.is_ok());
    }

    #[test]
    fn what_was_submitted_is_done_when_the_queue_goes() {
        let disk = slow(5);
        let queue = Queue::new(disk.clone(), 2).unwrap();
        queue.submit_all((0..10).map(|i| write(i, i, vec![1], false)));
        drop(queue);
        assert_eq!(disk.bytes.lock().unwrap()[..11], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]);
    }
}
