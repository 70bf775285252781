//! Memory for generated code: one memfd, mapped once writable and once executable, never both through one mapping.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Bytes of code after which the writable mapping is trimmed.
const TRIM: usize = 4 << 20;

/// The code memory. Offsets count from its start; generated code runs at `address(offset)`.
pub struct Arena {
    rw: *mut u8,
    rx: *mut u8,
    len: usize,
    used: usize,
    /// Up to here the writable mapping holds no pages.
    trimmed: usize,
}

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
        Ok(Self { rw, rx, len, used: 0, trimmed: 0 })
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Bytes in all.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Takes `len` bytes, 16-byte aligned; `None` when full.
    pub fn alloc(&mut self, len: usize) -> Option<usize> {
        let at = self.used.next_multiple_of(16);
        let end = at.checked_add(len)?;
        if end > self.len {
            return None;
        }
        self.used = end;
        if at / TRIM > self.trimmed / TRIM {
            self.trim(at / TRIM * TRIM);
        }
        Some(at)
    }

    /// Takes what lies before `end` out of the writable mapping, which only patches touch from now on: else code would
    /// count twice in the memory that the process holds.
    fn trim(&mut self, end: usize) {
        // SAFETY: a shared mapping of our own file: its pages stay, only this mapping's hold on them goes. Nobody holds
        // a reference into it.
        unsafe { libc::madvise(self.rw.cast(), end, libc::MADV_DONTNEED) };
        self.trimmed = end;
    }

    /// Gives everything from `mark` on back. Nothing there may be run any more.
    pub fn rewind(&mut self, mark: usize) {
        self.used = mark.min(self.used);
        self.trimmed = self.trimmed.min(self.used / TRIM * TRIM);
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
