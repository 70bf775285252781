//! Memory for generated code: one memfd, mapped once writable and once executable, never both through one mapping. It is
//! filled part by part. When all parts are full, the one filled longest ago is emptied and filled anew.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Bytes of code after which the writable mapping is trimmed.
const TRIM: usize = 4 << 20;
/// Most parts, and least bytes of one: each piece of code must find a part that it fits into.
const PARTS: usize = 16;
const PART_LEAST: usize = 256 << 10;
/// Room below which the next part should be free: more than pieces of code take.
const SHORT: usize = PART_LEAST / 2;
/// Bytes that both mappings get pages for at once, before code is laid there: a page fault for each page of each mapping costs
/// a third more, and the code that is written next is always to be run.
const AHEAD: usize = 128 << 10;
/// Bytes of a page of the host.
const HOST_PAGE: usize = 4096;

/// The code memory. Offsets count from its start; generated code runs at `address(offset)`. In each part code that runs
/// often is laid from the start on, what is seldom reached from the end down: so the host's caches hold more of the former.
pub struct Arena {
    rw: *mut u8,
    rx: *mut u8,
    len: usize,
    /// Where the parts begin; what lies before stays.
    first: usize,
    part_len: usize,
    parts: usize,
    /// Number of the part being filled. Numbers count on; a part's place is its number modulo `parts`.
    filling: u64,
    /// Number of the oldest part that is not empty.
    oldest: u64,
    /// Where the free room of the part being filled begins and ends.
    free: Range<usize>,
    /// What of it the writable mapping may hold pages of.
    mapped: Range<usize>,
    /// What of it has not been given pages ahead.
    bare: Range<usize>,
    /// Bytes in use, by place of the part.
    used: Vec<usize>,
}

/// How far the part being filled is, to go back to.
pub struct Mark(Range<usize>);

// SAFETY: the mappings belong to this structure alone and live as long as it; access is through `&mut self` for writes.
unsafe impl Send for Arena {}

impl Arena {
    /// Reserves `len` bytes (host memory is used only as it is written), the first `fixed` of them outside of all parts.
    pub fn new(len: usize, fixed: usize) -> io::Result<Self> {
        let first = fixed.next_multiple_of(HOST_PAGE);
        let parts = (len.saturating_sub(first) / PART_LEAST).min(PARTS);
        if parts < 2 {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let part_len = (len - first) / parts / HOST_PAGE * HOST_PAGE;
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
        let place = first..first + part_len;
        let (free, mapped, bare, used) = (place.clone(), place.clone(), place, vec![0; parts]);
        Ok(Self { rw, rx, len, first, part_len, parts, filling: 0, oldest: 0, free, mapped, bare, used })
    }

    /// Bytes of all of it.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Number of the part being filled.
    pub fn filling(&self) -> u64 {
        self.filling
    }

    /// Whether what was placed in part number `part` is still there.
    pub fn holds(&self, part: u64) -> bool {
        (self.oldest..=self.filling).contains(&part)
    }

    /// The part to empty, if there may not be room for the next piece of code.
    pub fn to_empty(&self) -> Option<u64> {
        let full = self.free.len() < SHORT.min(self.part_len / 2) && !self.next_is_free();
        full.then_some(self.oldest)
    }

    /// Makes part number `part` free, if it is the oldest: the bytes that were in use. Nothing there may be run any more.
    pub fn empty(&mut self, part: u64) -> usize {
        if part != self.oldest || part == self.filling {
            return 0;
        }
        self.oldest += 1;
        let place = self.place(part);
        std::mem::take(&mut self.used[place])
    }

    fn place(&self, part: u64) -> usize {
        (part % self.parts as u64) as usize
    }

    fn next_is_free(&self) -> bool {
        self.filling + 1 - self.oldest < self.parts as u64
    }

    /// Whether a piece of code of `len` bytes fits into an empty part.
    pub fn can_hold(&self, len: usize) -> bool {
        len + 16 <= self.part_len
    }

    /// Sees to it that a piece of code of `len` bytes, in any number of allocations of which one is aligned, finds room in
    /// the part being filled: which is the next one if need be. `false`: there is none.
    pub fn reserve(&mut self, len: usize) -> bool {
        if len + 16 <= self.free.len() {
            return true;
        }
        if !self.can_hold(len) || !self.next_is_free() {
            return false;
        }
        let place = self.place(self.filling);
        self.used[place] = self.part_len - self.free.len();
        self.trim(self.mapped.clone());
        self.filling += 1;
        let start = self.first + self.place(self.filling) * self.part_len;
        self.free = start..start + self.part_len;
        self.mapped = self.free.clone();
        self.bare = self.free.clone();
        true
    }

    /// How far the part being filled is.
    pub fn mark(&self) -> Mark {
        Mark(self.free.clone())
    }

    /// Takes `len` bytes for code that runs often, 16-byte aligned; `None` when the part is full.
    pub fn alloc(&mut self, len: usize) -> Option<usize> {
        let at = self.free.start.next_multiple_of(16);
        let end = at.checked_add(len).filter(|end| *end <= self.free.end)?;
        self.free.start = end;
        if end > self.bare.start {
            let to = (end + AHEAD).next_multiple_of(HOST_PAGE).min(self.bare.end);
            self.give_pages(self.bare.start..to);
            self.bare.start = to;
        }
        let full = at / HOST_PAGE * HOST_PAGE;
        if full.saturating_sub(self.mapped.start) >= TRIM {
            self.trim(self.mapped.start..full);
            self.mapped.start = full;
        }
        Some(at)
    }

    /// Takes `len` bytes for code that is seldom reached; `None` when the part is full.
    pub fn alloc_cold(&mut self, len: usize) -> Option<usize> {
        let at = self.free.end.checked_sub(len).filter(|at| *at >= self.free.start)?;
        let full = self.free.end.next_multiple_of(HOST_PAGE);
        self.free.end = at;
        if at < self.bare.end {
            let from = (at.saturating_sub(AHEAD) / HOST_PAGE * HOST_PAGE).max(self.bare.start);
            self.give_pages(from..self.bare.end);
            self.bare.end = from;
        }
        if self.mapped.end.saturating_sub(full) >= TRIM {
            self.trim(full..self.mapped.end);
            self.mapped.end = full;
        }
        Some(at)
    }

    /// Has both mappings hold pages for a range of whole pages. Where the host cannot do that, they come one by one.
    fn give_pages(&self, range: Range<usize>) {
        // SAFETY: both are mappings of our own file, of which this is a part; only page tables change. What the calls return does
        // not matter.
        unsafe {
            libc::madvise(self.rw.add(range.start).cast(), range.len(), libc::MADV_POPULATE_WRITE);
            libc::madvise(self.rx.add(range.start).cast(), range.len(), libc::MADV_POPULATE_READ);
        }
    }

    /// Takes a range of whole pages out of the writable mapping, which only patches touch from now on: else code would
    /// count twice in the memory that the process holds.
    fn trim(&mut self, range: Range<usize>) {
        // SAFETY: a shared mapping of our own file, of which this is a part: its pages stay, only this mapping's hold on
        // them goes. Nobody holds a reference into it.
        unsafe { libc::madvise(self.rw.add(range.start).cast(), range.len(), libc::MADV_DONTNEED) };
    }

    /// Gives everything since `mark`, which is of the part being filled, back. Nothing there may be run any more.
    pub fn rewind(&mut self, Mark(mark): Mark) {
        self.mapped.start = self.mapped.start.min(mark.start / HOST_PAGE * HOST_PAGE);
        self.mapped.end = self.mapped.end.max(mark.end.next_multiple_of(HOST_PAGE));
        self.free = mark;
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

    const LEN: usize = 1 << 20;

    #[test]
    fn both_ends_of_a_part_are_filled_until_they_meet_and_given_back() {
        let mut arena = Arena::new(LEN, 100).expect("memory");
        let (mark, mut last, mut first) = (arena.mark(), HOST_PAGE, HOST_PAGE + arena.part_len);
        while let (Some(hot), Some(cold)) = (arena.alloc(1000), arena.alloc_cold(500)) {
            assert!(hot % 16 == 0 && hot >= last && cold + 500 <= first && hot + 1000 <= cold);
            arena.write(hot, &[0x90; 1000]);
            arena.write(cold, &[0xcc; 500]);
            (last, first) = (hot + 1000, cold);
        }
        assert!(arena.free.len() < 1516);
        assert_eq!((arena.read::<2>(last - 2), arena.read::<2>(first)), ([0x90; 2], [0xcc; 2]));
        arena.rewind(mark);
        let end = HOST_PAGE + arena.part_len;
        assert_eq!((arena.alloc(16), arena.alloc_cold(16)), (Some(HOST_PAGE), Some(end - 16)));
    }

    /// Pages of the executable mapping that the host holds for this process, of the first `pages` from `at` on.
    fn pages_held(arena: &Arena, at: usize, pages: u64) -> u64 {
        use std::os::unix::fs::FileExt;
        let map = std::fs::File::open("/proc/self/pagemap").expect("the map of pages");
        let held = |n: u64| {
            let mut entry = [0; 8];
            map.read_exact_at(&mut entry, (arena.address(at) / HOST_PAGE as u64 + n) * 8).expect("an entry");
            u64::from_le_bytes(entry) >> 63
        };
        (0..pages).map(held).sum()
    }

    #[test]
    fn pages_come_ahead_of_code() {
        let mut arena = Arena::new(16 << 20, 100).expect("memory");
        let (hot, cold) = (arena.alloc(16).expect("room"), arena.alloc_cold(16).expect("room"));
        let pages = (AHEAD / HOST_PAGE) as u64;
        assert!(pages_held(&arena, hot, pages) >= pages - 1);
        assert!(pages_held(&arena, cold - AHEAD, pages) >= pages - 1);
        assert!(pages_held(&arena, hot + AHEAD + HOST_PAGE, 64) < 64, "and no more");
        // A part that is smaller than what would be given.
        let mut arena = Arena::new(2 * PART_LEAST + HOST_PAGE, 100).expect("memory");
        while arena.alloc(1000).is_some() && arena.alloc_cold(1000).is_some() {}
        assert!(arena.bare.is_empty());
    }

    #[test]
    fn parts_are_emptied_in_the_order_in_which_they_were_filled() {
        let mut arena = Arena::new(LEN, 100).expect("memory");
        assert_eq!((arena.parts, arena.to_empty()), (3, None));
        let mut places = Vec::new();
        for part in 0..20 {
            // A piece that nearly fills a part.
            let len = arena.part_len - 1000;
            if part >= 3 {
                assert_eq!(arena.to_empty(), Some(part - 3));
                assert!(!arena.reserve(len), "all parts are full");
                assert_eq!(arena.empty(part - 2), 0, "not the oldest");
                assert!(arena.holds(part - 3));
                assert_eq!(arena.empty(part - 3), len);
                assert!(!arena.holds(part - 3) && arena.holds(part - 2));
            }
            assert!(arena.reserve(len) && arena.reserve(len));
            assert_eq!((arena.filling(), arena.holds(part), arena.holds(part + 1)), (part, true, false));
            places.push(arena.alloc(len).expect("what was reserved"));
        }
        assert!(places.iter().zip(&places[3..]).all(|(a, b)| a == b) && places[0] != places[1]);
        assert!(!arena.reserve(arena.part_len), "no part is that large");
    }

    #[test]
    fn the_part_being_filled_is_not_emptied() {
        let mut arena = Arena::new(LEN, 100).expect("memory");
        assert_eq!(arena.empty(0), 0);
        assert!(arena.holds(0));
        assert!(Arena::new(PART_LEAST, 100).is_err(), "not even two parts");
    }

    #[test]
    fn code_stays_when_the_writable_mapping_lets_go_of_it() {
        let mut arena = Arena::new(16 * (12 << 20), 100).expect("memory");
        let (low, high) = (arena.alloc(64).expect("room"), arena.alloc_cold(64).expect("room"));
        arena.write(low, &[1; 64]);
        arena.write(high, &[2; 64]);
        for len in [5 << 20, 64] {
            assert!(arena.alloc(len).is_some() && arena.alloc_cold(len).is_some());
        }
        assert!(arena.mapped.start > low + TRIM && arena.mapped.end < high - TRIM);
        assert!(arena.reserve(4 << 20), "in the next part");
        assert_eq!((arena.read::<4>(low), arena.read::<4>(high)), ([1; 4], [2; 4]));
    }
}
