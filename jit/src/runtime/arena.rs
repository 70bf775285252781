//! Memory for generated code: one memfd, mapped once writable and once executable, never both through one mapping.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Bytes of code after which the writable mapping is trimmed.
const TRIM: usize = 4 << 20;

/// The code memory. Offsets count from its start; generated code runs at `address(offset)`. Code that runs often is laid
/// from the start on, what is seldom reached from the end down: so the host's caches hold more of the former.
pub struct Arena {
    rw: *mut u8,
    rx: *mut u8,
    len: usize,
    /// Where the free room begins and ends.
    free: Range<usize>,
    /// Up to here, and from there on, the writable mapping holds no pages.
    trimmed: Range<usize>,
}

/// How far the memory is filled, to go back to.
#[derive(Clone)]
pub struct Mark(Range<usize>);

// SAFETY: the mappings belong to this structure alone and live as long as it; access is through `&mut self` for writes.
unsafe impl Send for Arena {}

impl Arena {
    /// Reserves `len` bytes (host memory is used only as it is written).
    pub fn new(len: usize) -> io::Result<Self> {
        // SAFETY: plain system call with a valid C string; the result is checked.
        let fd = unsafe { libc::memfd_create(c"brolga-code".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just made and is owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: resizes our own file.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), len as libc::off_t) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let map = |protection| {
            // SAFETY: maps our own file at an address of the kernel's choice; the result is checked.
            let p = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, fd.as_raw_fd(), 0) };
            if p == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(p.cast::<u8>()) }
        };
        let rw = map(libc::PROT_READ | libc::PROT_WRITE)?;
        let rx = map(libc::PROT_READ | libc::PROT_EXEC)?;
        Ok(Self { rw, rx, len, free: 0..len, trimmed: 0..len })
    }

    /// Bytes left.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// How far it is filled now.
    pub fn mark(&self) -> Mark {
        Mark(self.free.clone())
    }

    /// Takes `len` bytes for code that runs often, 16-byte aligned; `None` when full.
    pub fn alloc(&mut self, len: usize) -> Option<usize> {
        let at = self.free.start.next_multiple_of(16);
        let end = at.checked_add(len).filter(|end| *end <= self.free.end)?;
        self.free.start = end;
        let full = at / TRIM * TRIM;
        if full > self.trimmed.start {
            self.trim(0..full);
            self.trimmed.start = full;
        }
        Some(at)
    }

    /// Takes `len` bytes for code that is seldom reached; `None` when full.
    pub fn alloc_cold(&mut self, len: usize) -> Option<usize> {
        let at = self.free.end.checked_sub(len).filter(|at| *at >= self.free.start)?;
        let full = self.free.end.next_multiple_of(TRIM);
        self.free.end = at;
        if full < self.trimmed.end {
            self.trim(full..self.len);
            self.trimmed.end = full;
        }
        Some(at)
    }

    /// Takes a range of whole pages out of the writable mapping, which only patches touch from now on: else code would
    /// count twice in the memory that the process holds.
    fn trim(&mut self, range: Range<usize>) {
        // SAFETY: a shared mapping of our own file, of which this is a part: its pages stay, only this mapping's hold on
        // them goes. Nobody holds a reference into it.
        unsafe { libc::madvise(self.rw.add(range.start).cast(), range.len(), libc::MADV_DONTNEED) };
    }

    /// Gives everything since `mark` back. Nothing there may be run any more.
    pub fn rewind(&mut self, Mark(mark): Mark) {
        self.free = mark;
        self.trimmed.start = self.trimmed.start.min(self.free.start / TRIM * TRIM);
        self.trimmed.end = self.trimmed.end.max(self.free.end.next_multiple_of(TRIM)).min(self.len);
    }

    /// Address that the byte at `offset` executes at.
    pub fn address(&self, offset: usize) -> u64 {
        self.rx as u64 + offset as u64
    }

    /// Offset of the byte that executes at `address`.
    pub fn offset(&self, address: u64) -> usize {
        address.wrapping_sub(self.rx as u64) as usize
    }

    /// Writes bytes.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.len, "write beyond the code arena");
        // SAFETY: the range was checked; the writable mapping is ours.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.rw.add(offset), bytes.len()) };
    }

    /// Replaces eight bytes at once: a jump that other code may be about to execute. `offset` need not be aligned; the
    /// store is a single instruction.
    pub fn patch8(&mut self, offset: usize, bytes: [u8; 8]) {
        assert!(offset + 8 <= self.len, "patch beyond the code arena");
        // SAFETY: the range was checked; the writable mapping is ours.
        unsafe { self.rw.add(offset).cast::<u64>().write_unaligned(u64::from_le_bytes(bytes)) };
    }

    /// Reads bytes back.
    pub fn read<const N: usize>(&self, offset: usize) -> [u8; N] {
        assert!(offset + N <= self.len, "read beyond the code arena");
        let mut out = [0; N];
        // SAFETY: the range was checked.
        unsafe { std::ptr::copy_nonoverlapping(self.rw.add(offset), out.as_mut_ptr(), N) };
        out
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: both mappings were made in `new` with this length; nothing runs there any more, since vCPUs hold the
        // arena alive through an `Arc`.
        unsafe {
            libc::munmap(self.rw.cast(), self.len);
            libc::munmap(self.rx.cast(), self.len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_are_filled_until_they_meet_and_given_back() {
        let mut arena = Arena::new(1 << 20).expect("memory");
        let mark = arena.mark();
        let (mut last, mut first) = (0, 1 << 20);
        while let (Some(hot), Some(cold)) = (arena.alloc(1000), arena.alloc_cold(500)) {
            assert!(hot % 16 == 0 && hot >= last && cold + 500 <= first && hot + 1000 <= cold);
            arena.write(hot, &[0x90; 1000]);
            arena.write(cold, &[0xcc; 500]);
            (last, first) = (hot + 1000, cold);
        }
        assert!(arena.room() < 1516);
        assert_eq!((arena.read::<2>(last - 2), arena.read::<2>(first)), ([0x90; 2], [0xcc; 2]));
        arena.rewind(mark);
        assert_eq!((arena.room(), arena.alloc(16), arena.alloc_cold(16)), (1 << 20, Some(0), Some((1 << 20) - 16)));
    }

    #[test]
    fn code_stays_when_the_writable_mapping_lets_go_of_it() {
        let mut arena = Arena::new(16 << 20).expect("memory");
        let (low, high) = (arena.alloc(64).expect("room"), arena.alloc_cold(64).expect("room"));
        arena.write(low, &[1; 64]);
        arena.write(high, &[2; 64]);
        for len in [5 << 20, 64] {
            assert!(arena.alloc(len).is_some() && arena.alloc_cold(len).is_some());
        }
        assert_eq!((arena.trimmed.start, arena.trimmed.end), (4 << 20, 12 << 20));
        assert_eq!((arena.read::<4>(low), arena.read::<4>(high)), ([1; 4], [2; 4]));
    }
}
