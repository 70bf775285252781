//! The requests of a drive that the kernel has by io_uring.

use super::queue::{Operation, Request};
use super::uring::{self, Ring};
use super::{Aio, BlockBackend};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A request that the kernel is done with.
pub(super) enum Landing {
    /// All of it was moved.
    Done(Request),
    /// Something is odd: the end of the file, a full disk, or a broken one. Whoever carries it out again
    /// finds out, and tells.
    Again(Request),
}

/// Bytes of the largest read that goes to the ring if nothing is said, of files past the host's cache: for those it is
/// up to twice as fast as handing the read to a thread. What the cache has the kernel copies at once, on the thread
/// that asks, where several threads are faster; and writes wait for a thread of the kernel's in any case (`cargo bench
/// --bench queue`).
const QUICK: u64 = 16 << 10;

/// A ring, and who is told when something lands.
pub(super) struct Flights {
    /// Only reads past the host's cache, and of so many bytes at most.
    quick: Option<u64>,
    ring: Mutex<InUse>,
    bell: EventFd,
    closing: AtomicBool,
}

struct InUse {
    ring: Ring,
    /// Offsets on the disk, by number of the flight.
    offsets: HashMap<u64, (u64, u64)>,
    next: u64,
}

impl InUse {
    fn collect(&mut self) -> Vec<Landing> {
        let landing = |landed: uring::Landed| {
            let (tag, offset) = self.offsets.remove(&landed.tag).unwrap_or_default();
            let operation = match landed.transfer.write {
                true => Operation::Write { memory: landed.memory, fua: false },
                false => Operation::Read(landed.memory),
            };
            let request = Request { tag, offset, operation };
            if !landed.whole {
                return Landing::Again(request);
            }
            landed.transfer.done(landed.len);
            Landing::Done(request)
        };
        self.ring.collect().into_iter().map(landing).collect()
    }

    /// Gives a request to the ring, or back.
    fn launch(&mut self, disk: &dyn BlockBackend, request: Request, quick: Option<u64>) -> Result<(), Request> {
        let Request { tag, offset, operation } = request;
        let (write, len) = match &operation {
            Operation::Read(memory) => (false, memory.len()),
            Operation::Write { memory, fua: false } => (true, memory.len()),
            _ => return Err(Request { tag, offset, operation }),
        };
        let wanted = len > 0 && quick.is_none_or(|most| !write && len <= most);
        let Some(transfer) = (if wanted { disk.transfer(write, offset, len) } else { None }) else {
            return Err(Request { tag, offset, operation });
        };
        if quick.is_some() && transfer.align == 1 {
            return Err(Request { tag, offset, operation });
        }
        let (Operation::Read(memory) | Operation::Write { memory, .. }) = operation else {
            return Err(Request { tag, offset, operation });
        };
        let number = self.next;
        self.next = number.wrapping_add(1);
        self.ring.push(number, memory, transfer).map_err(|memory| {
            let operation = if write { Operation::Write { memory, fua: false } } else { Operation::Read(memory) };
            Request { tag, offset, operation }
        })?;
        self.offsets.insert(number, (tag, offset));
        Ok(())
    }
}

impl Flights {
    /// A ring where `aio` wants one and the kernel has it.
    pub(super) fn new(aio: Aio) -> Option<Flights> {
        if aio == Aio::Threads {
            return None;
        }
        let made = || -> std::io::Result<Flights> {
            let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
            let mut ring = Ring::largest()?;
            ring.ring_bell(bell.as_fd())?;
            let ring = Mutex::new(InUse { ring, offsets: HashMap::new(), next: 0 });
            let quick = (aio == Aio::Best).then_some(QUICK);
            Ok(Flights { quick, ring, bell, closing: false.into() })
        };
        made().map_err(|e| tracing::debug!("no io_uring, so threads alone: {e}")).ok()
    }

    fn in_use(&self) -> MutexGuard<'_, InUse> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the kernel what it can do. What it has done already, and what is not for it.
    pub(super) fn launch(&self, disk: &dyn BlockBackend, requests: Vec<Request>) -> (Vec<Landing>, Vec<Request>) {
        let mut ring = self.in_use();
        let all = requests.len();
        let left: Vec<Request> = requests.into_iter().filter_map(|r| ring.launch(disk, r, self.quick).err()).collect();
        let landed = if left.len() < all { ring.collect() } else { Vec::new() };
        if ring.ring.is_stuck() {
            // Who waits has to try again, and does not know yet.
            self.wake();
        }
        (landed, left)
    }

    /// What has landed.
    pub(super) fn collect(&self) -> Vec<Landing> {
        self.in_use().collect()
    }

    /// Waits until something lands. False when there is nothing more to wait for.
    pub(super) fn wait(&self) -> bool {
        /// Milliseconds until what the kernel did not take is given to it again.
        const AGAIN: u16 = 10;
        let stuck = self.in_use().ring.is_stuck();
        let timeout = if stuck { PollTimeout::from(AGAIN) } else { PollTimeout::NONE };
        match poll(&mut [PollFd::new(self.bell.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => {
                tracing::error!("io_uring: {e}");
                return false;
            }
        }
        // Fails only if it does not ring.
        let _ = self.bell.read();
        !self.closing.load(Ordering::Acquire)
    }

    /// Ends [`wait`](Self::wait). Nothing may be under way.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        if let Err(e) = self.bell.write(1) {
            tracing::error!("io_uring: {e}");
        }
    }
}
