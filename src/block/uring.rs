//! io_uring: transfers that the kernel carries out while we do something else.
//!
//! The only module of this program with unsafe code, since the kernel uses memory after the call that
//! told it so has returned. The rule that makes it sound: a [`Flight`] owns the memory, holds the borrow
//! of its pieces, the list of them and the file, and is not touched until the kernel has told that it is done with
//! it. A ring that goes waits for all of them; if the kernel cannot even be waited for, they are leaked.
//!
//! A ring has at most [`MOST`] flights: about 40 KiB shared with the kernel, and nothing that grows.
#![allow(unsafe_code)]

use super::Transfer;
use super::queue::RequestMemory;
use io_uring::types::Fd;
use io_uring::{IoUring, Probe, opcode};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::OnceLock;

/// Transfers under way at once.
const MOST: u32 = 256;
/// Pieces of one transfer: the limit of Linux (IOV_MAX).
const MAX_PARTS: usize = 1024;

/// Whether this kernel has io_uring and lets us use it.
pub(super) fn available() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| Ring::new(2).is_ok())
}

/// The pieces of memory that the kernel was given.
enum Pieces {
    Fill(Vec<IoSliceMut<'static>>),
    Take(Vec<IoSlice<'static>>),
}

/// A transfer that the kernel has.
struct Flight {
    tag: u64,
    /// From a box, and borrowed by `pieces` until it is one again.
    memory: *mut dyn RequestMemory,
    pieces: Pieces,
    len: u64,
    transfer: Transfer,
}

// SAFETY: the pointer is that of a box, whose content may go to other threads (`RequestMemory: Send`),
// and nobody else has it.
unsafe impl Send for Flight {}

impl Flight {
    /// Lends memory. Gives it back if the kernel would not take it so.
    fn new(tag: u64, memory: Box<dyn RequestMemory>, transfer: Transfer) -> Result<Flight, Box<dyn RequestMemory>> {
        let memory = Box::into_raw(memory);
        // SAFETY: it was a box a moment ago, so it is valid and ours alone; it is so until `end` makes a box of it
        // again, before which the borrow ends with `pieces`. Nobody uses the pointer meanwhile.
        let lent: &'static mut dyn RequestMemory = unsafe { &mut *memory };
        let pieces = match transfer.write {
            true => Pieces::Take(lent.parts()),
            false => Pieces::Fill(lent.parts_mut()),
        };
        let place = |bytes: &[u8]| (bytes.as_ptr().addr(), bytes.len());
        let all: Vec<(usize, usize)> = match &pieces {
            Pieces::Take(parts) => parts.iter().map(|p| place(p)).collect(),
            Pieces::Fill(parts) => parts.iter().map(|p| place(p)).collect(),
        };
        let len = all.iter().map(|&(_, len)| len as u64).sum();
        // One call moves less than 2 GiB.
        let good = !all.is_empty() && all.len() <= MAX_PARTS && len < 1 << 31 && transfer.takes(all.into_iter());
        let flight = Flight { tag, memory, pieces, len, transfer };
        if good { Ok(flight) } else { Err(flight.end().0) }
    }

    fn entry(&self, index: u32) -> io_uring::squeue::Entry {
        let fd = Fd(self.transfer.file.as_fd().as_raw_fd());
        // Slices for vectored calls have the layout of `iovec` (std::io::IoSlice, "Unix").
        let entry = match &self.pieces {
            Pieces::Fill(parts) => {
                opcode::Readv::new(fd, parts.as_ptr().cast(), parts.len() as u32).offset(self.transfer.offset).build()
            }
            Pieces::Take(parts) => {
                opcode::Writev::new(fd, parts.as_ptr().cast(), parts.len() as u32).offset(self.transfer.offset).build()
            }
        };
        entry.user_data(u64::from(index))
    }

    /// The memory and the transfer back. The kernel has not got it, or not any more.
    fn end(self) -> (Box<dyn RequestMemory>, Transfer) {
        let Flight { memory, pieces, transfer, .. } = self;
        drop(pieces);
        // SAFETY: `new` made it from a box, and this takes the only copy of it; the borrow has just ended.
        (unsafe { Box::from_raw(memory) }, transfer)
    }
}

/// A transfer that has ended.
pub(super) struct Landed {
    pub(super) tag: u64,
    pub(super) memory: Box<dyn RequestMemory>,
    pub(super) transfer: Transfer,
    /// Bytes in its memory.
    pub(super) len: u64,
    /// Whether all of them were moved.
    pub(super) whole: bool,
}

/// Queues shared with the kernel.
pub(super) struct Ring {
    /// `None` only while it goes.
    ring: Option<IoUring>,
    flights: Vec<Option<Flight>>,
    free: Vec<u32>,
    /// Given to the ring, and not yet to the kernel.
    new: usize,
}

impl Ring {
    /// A ring for so many transfers, at most [`MOST`].
    pub(super) fn new(entries: u32) -> io::Result<Ring> {
        let ring = IoUring::builder().dontfork().build(entries.clamp(1, MOST))?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let known = [opcode::Readv::CODE, opcode::Writev::CODE].into_iter().all(|code| probe.is_supported(code));
        // Without the first the kernel may lose completions; the second came with Linux 5.11, and the bell can be silenced
        // since 5.8.
        if !known || !ring.params().is_feature_nodrop() || !ring.params().is_feature_ext_arg() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let most = ring.params().sq_entries();
        let flights = (0..most).map(|_| None).collect();
        Ok(Ring { ring: Some(ring), flights, free: (0..most).rev().collect(), new: 0 })
    }

    /// As many as there can be.
    pub(super) fn largest() -> io::Result<Ring> {
        Ring::new(MOST)
    }

    fn ring(&mut self) -> io::Result<&mut IoUring> {
        self.ring.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Has the kernel ring a bell for completions that nobody is collecting.
    pub(super) fn ring_bell(&mut self, bell: BorrowedFd<'_>) -> io::Result<()> {
        self.ring()?.submitter().register_eventfd(bell.as_raw_fd())
    }

    /// Transfers that have not been collected.
    pub(super) fn under_way(&self) -> usize {
        self.flights.len() - self.free.len()
    }

    /// Takes a transfer; [`collect`](Self::collect) gives it to the kernel. Gives the memory back if it cannot.
    pub(super) fn push(
        &mut self,
        tag: u64,
        memory: Box<dyn RequestMemory>,
        transfer: Transfer,
    ) -> Result<(), Box<dyn RequestMemory>> {
        let (Some(ring), Some(index)) = (self.ring.as_mut(), self.free.pop()) else { return Err(memory) };
        let flight = match Flight::new(tag, memory, transfer) {
            Ok(flight) => flight,
            Err(memory) => {
                self.free.push(index);
                return Err(memory);
            }
        };
        let entry = flight.entry(index);
        // SAFETY: the file, the pieces and the list of them are `flight`'s, which stays in `flights` until the kernel has told
        // of the end of this entry (`take`), or for ever (`drop`). The list is a vector, so it does not move with `flight`.
        let pushed = unsafe { ring.submission().push(&entry) };
        if pushed.is_err() {
            self.free.push(index);
            return Err(flight.end().0);
        }
        self.new += 1;
        if let Some(place) = self.flights.get_mut(index as usize) {
            *place = Some(flight);
        }
        Ok(())
    }

    /// Gives the kernel what is new, and collects what has ended. The bell stays silent for that.
    pub(super) fn collect(&mut self) -> Vec<Landed> {
        let Some(ring) = self.ring.as_mut() else { return Vec::new() };
        if self.new > 0 {
            ring.completion().disable_eventfd();
            match ring.submit() {
                Ok(given) => self.new -= given.min(self.new),
                // It stays in the queue: whoever comes next tries again.
                Err(e) => tracing::debug!("io_uring: {e}"),
            }
        }
        let mut landed = self.take();
        if let Some(ring) = self.ring.as_mut() {
            ring.completion().enable_eventfd();
        }
        // Between the two something may have ended without the bell.
        landed.extend(self.take());
        landed
    }

    /// Whether the kernel did not take everything.
    pub(super) fn is_stuck(&self) -> bool {
        self.new > 0
    }

    fn take(&mut self) -> Vec<Landed> {
        let Some(ring) = self.ring.as_mut() else { return Vec::new() };
        let ended: Vec<(u64, i32)> = ring.completion().map(|entry| (entry.user_data(), entry.result())).collect();
        let mut landed = Vec::with_capacity(ended.len());
        for (index, result) in ended {
            let Some(flight) = self.flights.get_mut(index as usize).and_then(Option::take) else { continue };
            self.free.push(index as u32);
            let (tag, len) = (flight.tag, flight.len);
            let (memory, transfer) = flight.end();
            landed.push(Landed { tag, memory, transfer, len, whole: u64::try_from(result).is_ok_and(|n| n == len) });
        }
        landed
    }
}

impl Drop for Ring {
    /// Waits until the kernel has nothing of ours any more.
    fn drop(&mut self) {
        while self.under_way() > 0 {
            let waited = self.ring().and_then(|ring| ring.submit_and_wait(1));
            if let Err(e) = waited
                && e.kind() != io::ErrorKind::Interrupted
            {
                // The kernel may still use the memory: it must stay, and so must the queues.
                tracing::error!("io_uring: {e}");
                std::mem::forget((self.ring.take(), std::mem::take(&mut self.flights)));
                return;
            }
            self.take();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::scratch::Scratch;
    use crate::block::{CacheMode, HostFile, Storage};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Memory that notes when it goes.
    struct Noted(Vec<u8>, Arc<AtomicUsize>);

    impl RequestMemory for Noted {
        fn parts(&self) -> Vec<IoSlice<'_>> {
            let (a, b) = self.0.split_at(self.0.len() / 2);
            vec![IoSlice::new(a), IoSlice::new(b)]
        }
        fn parts_mut(&mut self) -> Vec<IoSliceMut<'_>> {
            let middle = self.0.len() / 2;
            let (a, b) = self.0.split_at_mut(middle);
            vec![IoSliceMut::new(a), IoSliceMut::new(b)]
        }
    }

    impl Drop for Noted {
        fn drop(&mut self) {
            self.1.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn file(dir: &Scratch, direct: bool) -> Arc<HostFile> {
        let path = dir.path("file");
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        let cache = CacheMode { direct, ..CacheMode::default() };
        Arc::new(HostFile::open_with(&path, true, cache).unwrap())
    }

    fn all(ring: &mut Ring) -> Vec<Landed> {
        let mut landed = ring.collect();
        while ring.under_way() > 0 {
            ring.ring().unwrap().submit_and_wait(1).unwrap();
            landed.extend(ring.collect());
        }
        landed.sort_by_key(|l| l.tag);
        landed
    }

    #[test]
    fn bytes_go_both_ways() {
        if !available() {
            return eprintln!("not tested: no io_uring here");
        }
        let (dir, gone) = (Scratch::new(), Arc::new(AtomicUsize::new(0)));
        let (file, mut ring) = (file(&dir, false), Ring::new(8).unwrap());
        let memory = |len| Box::new(Noted(vec![9; len], gone.clone()));
        let place = |write, offset, len| file.clone().transfer(write, offset, len).unwrap();
        assert!(ring.push(1, memory(3000), place(true, 5000, 3000)).is_ok());
        assert!(ring.push(2, memory(100), place(false, (1 << 20) - 50, 100)).is_ok());
        let landed = all(&mut ring);
        assert_eq!(
            landed.iter().map(|l| (l.tag, l.len, l.whole)).collect::<Vec<_>>(),
            [(1, 3000, true), (2, 100, false)]
        );
        assert_eq!(gone.load(Ordering::SeqCst), 0);
        drop(landed);
        assert_eq!(gone.load(Ordering::SeqCst), 2);
        assert!(ring.push(3, memory(8000), place(false, 4000, 8000)).is_ok());
        let landed = all(&mut ring);
        let got: Vec<u8> = landed[0].memory.parts().iter().flat_map(|p| p.to_vec()).collect();
        assert!(got[..1000] == [7; 1000] && got[1000..4000] == [9; 3000] && got[4000..] == [7; 4000]);
        // More than it holds comes back.
        let more: Vec<bool> = (0..20).map(|i| ring.push(i, memory(10), place(false, i, 10)).is_ok()).collect();
        assert_eq!(more.iter().filter(|&&taken| taken).count(), 8);
        assert_eq!(all(&mut ring).len(), 8);
    }

    #[test]
    fn memory_stays_while_the_kernel_has_it() {
        if !available() {
            return eprintln!("not tested: no io_uring here");
        }
        let (dir, gone) = (Scratch::new(), Arc::new(AtomicUsize::new(0)));
        for direct in [false, true] {
            let file = file(&dir, direct);
            for round in 0..20 {
                let mut ring = Ring::largest().unwrap();
                gone.store(0, Ordering::SeqCst);
                let mut pushed = 0;
                for tag in 0..64 {
                    let transfer = file.clone().transfer(round % 2 == 0, tag * 4096, 8192).unwrap();
                    // Vectors of bytes are seldom aligned: with O_DIRECT most come back at once.
                    pushed +=
                        usize::from(ring.push(tag, Box::new(Noted(vec![1; 8192], gone.clone())), transfer).is_ok());
                }
                assert_eq!((gone.load(Ordering::SeqCst), ring.under_way()), (64 - pushed, pushed));
                assert!(direct || pushed == 64);
                ring.ring().unwrap().submit().unwrap();
                drop(ring);
                assert_eq!(gone.load(Ordering::SeqCst), 64, "all ended, and none was leaked");
            }
        }
    }

    #[test]
    fn what_is_not_aligned_comes_back() {
        if !available() {
            return eprintln!("not tested: no io_uring here");
        }
        let (dir, gone) = (Scratch::new(), Arc::new(AtomicUsize::new(0)));
        let (file, mut ring) = (file(&dir, true), Ring::new(8).unwrap());
        assert!(file.clone().transfer(false, 100, 4096).is_none());
        let transfer = file.clone().transfer(true, 4096, 4097).unwrap();
        assert!(ring.push(1, Box::new(Noted(vec![0; 4097], gone)), transfer).is_err());
        assert_eq!(ring.under_way(), 0);
        file.write(3, &[1]).unwrap();
    }
}
