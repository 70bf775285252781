//! Guest RAM: one memfd with linear offsets, and the map from guest-physical addresses to it.

use memmap2::MmapRaw;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::FromRawFd;
use std::sync::atomic::{AtomicU64, Ordering};

/// Guest-physical addresses that a chipset can make read-only while the guest runs: the shadow RAM of a PC.
pub const SHADOW: Range<u64> = 0xC_0000..0x10_0000;

/// Granule of mappings: 4 KiB.
pub const PAGE_SIZE: u64 = 4096;

/// Where one piece of guest RAM or ROM lies.
#[derive(Clone, Copy, Debug)]
pub struct RamRegion {
    /// First guest-physical address, page aligned.
    pub gpa: u64,
    /// Bytes, a multiple of the page size.
    pub size: u64,
    /// Offset in the memory file, page aligned.
    pub offset: u64,
    /// Guest stores do not change it: they go to the board.
    pub rom: bool,
}

/// Why RAM could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// The host refused the memory.
    #[error("cannot reserve {size} bytes of guest memory: {source}")]
    Host {
        /// Bytes wanted.
        size: u64,
        /// The host's reason.
        source: io::Error,
    },
    /// Regions overlap, are not page aligned or exceed the file.
    #[error("guest memory layout is invalid: {0}")]
    Layout(&'static str),
}

/// All RAM and ROM of a machine. Shared by vCPUs and DMA; guest memory has no owner, so accesses are raw and racy as
/// on hardware.
pub struct Ram {
    map: MmapRaw,
    file: File,
    regions: Vec<RamRegion>,
    size: u64,
    /// One bit for each page of [`SHADOW`]: stores go to the board for now.
    read_only: AtomicU64,
    /// A device's memory, which moves.
    window: Option<Window>,
}

/// Memory of a device (a frame buffer) that the guest finds at a changing address, or not at all.
struct Window {
    /// Its place in the memory file, and its bytes.
    offset: u64,
    size: u64,
    /// Where it is for the guest; [`NOWHERE`] if it is not.
    gpa: AtomicU64,
}

/// No address that is page aligned.
const NOWHERE: u64 = u64::MAX;

impl Window {
    /// The region that it is for now.
    fn region(&self) -> Option<RamRegion> {
        let gpa = self.gpa.load(Ordering::SeqCst);
        (gpa != NOWHERE).then_some(RamRegion { gpa, size: self.size, offset: self.offset, rom: false })
    }
}

impl Ram {
    /// Makes a memory file of `size` bytes, mapped as `regions` say (ascending `gpa`).
    pub fn new(size: u64, regions: Vec<RamRegion>) -> Result<Self, RamError> {
        let host = |source| RamError::Host { size, source };
        // SAFETY: plain system call with a valid C string; the result is checked.
        let fd = unsafe { libc::memfd_create(c"brolga-ram".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
        if fd < 0 {
            return Err(host(io::Error::last_os_error()));
        }
        // SAFETY: `fd` was just made and is owned by nobody else.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(size).map_err(host)?;
        // SAFETY: sealing only restricts later resizes of our own file.
        unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW) };
        Self::in_file(file, size, regions)
    }

    /// The same in a file that others may map too. It grows to `size` bytes; nobody may cut it while it is used.
    pub fn in_file(file: File, size: u64, regions: Vec<RamRegion>) -> Result<Self, RamError> {
        let mut end = 0;
        for r in &regions {
            if (r.gpa | r.size | r.offset) % PAGE_SIZE != 0 || r.size == 0 {
                return Err(RamError::Layout("region not page aligned"));
            }
            if r.gpa < end || r.offset.checked_add(r.size).is_none_or(|e| e > size) {
                return Err(RamError::Layout("regions overlap or exceed the memory file"));
            }
            end = r.gpa.checked_add(r.size).ok_or(RamError::Layout("region wraps"))?;
        }
        let host = |source| RamError::Host { size, source };
        if file.metadata().map_err(host)?.len() < size {
            file.set_len(size).map_err(host)?;
        }
        let map = MmapRaw::map_raw(&file).map_err(host)?;
        Ok(Self { map, file, regions, size, read_only: AtomicU64::new(0), window: None })
    }

    /// The same memory, of whose file `size` bytes from `offset` on, which no region has, are a device's: the guest finds
    /// them where [`Engine::place_window`](crate::Engine::place_window) says.
    pub fn with_window(mut self, offset: u64, size: u64) -> Result<Self, RamError> {
        let end = offset.checked_add(size).filter(|end| *end <= self.size);
        let end = end.ok_or(RamError::Layout("window exceeds the memory file"))?;
        if !(offset | size).is_multiple_of(PAGE_SIZE) || size == 0 {
            return Err(RamError::Layout("window not page aligned"));
        }
        if self.regions.iter().any(|r| r.offset < end && offset < r.offset + r.size) {
            return Err(RamError::Layout("window shares memory with a region"));
        }
        self.window = Some(Window { offset, size, gpa: AtomicU64::new(NOWHERE) });
        Ok(self)
    }

    /// Where the device's memory is for the guest, if it is anywhere.
    pub fn window(&self) -> Option<RamRegion> {
        self.window.as_ref()?.region()
    }

    /// Moves the device's memory. It goes nowhere where the guest has RAM already, or where no page begins. Use
    /// `Engine::place_window` once there are vCPUs.
    pub(crate) fn place_window(&self, gpa: Option<u64>) {
        let Some(window) = &self.window else { return };
        let fits = |gpa: &u64| {
            let end = gpa.checked_add(window.size);
            gpa.is_multiple_of(PAGE_SIZE)
                && end.is_some_and(|end| self.regions.iter().all(|r| r.gpa >= end || r.gpa + r.size <= *gpa))
        };
        window.gpa.store(gpa.filter(fits).unwrap_or(NOWHERE), Ordering::SeqCst);
    }

    /// Part of the device's memory by its offset there, wherever the guest finds it: host address and bytes that follow.
    fn in_window(&self, offset: u64) -> Option<(*mut u8, u64)> {
        let window = self.window.as_ref()?;
        let left = window.size.checked_sub(offset).filter(|left| *left != 0)?;
        // SAFETY: the offset was checked against the mapping's size in `with_window`.
        Some((unsafe { self.base().add((window.offset + offset) as usize) }, left))
    }

    /// Reads the device's memory; what is beyond its end reads as 0xFF.
    pub fn read_window(&self, offset: u64, buf: &mut [u8]) {
        let (host, count) = self.in_window(offset).map_or((None, 0), |(p, left)| (Some(p), left.min(buf.len() as u64)));
        let (now, beyond) = buf.split_at_mut(count as usize);
        beyond.fill(0xff);
        if let Some(host) = host {
            // SAFETY: `in_window` gave at least `count` bytes of the mapping; guest memory may change meanwhile, bytes
            // are copied without assumptions about their value.
            unsafe { std::ptr::copy_nonoverlapping(host, now.as_mut_ptr(), now.len()) }
        }
    }

    /// Writes the device's memory; nothing is beyond its end. Whoever does it while vCPUs run must tell the engine as for
    /// [`Ram::write`].
    pub fn write_window(&self, offset: u64, bytes: &[u8]) {
        if let Some((host, left)) = self.in_window(offset) {
            // SAFETY: as in `read_window`.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), host, bytes.len().min(left as usize)) }
        }
    }

    /// Makes the pages of `range`, within [`SHADOW`], read-only or writable. Use `Engine::set_read_only` once there are
    /// vCPUs.
    pub(crate) fn set_read_only(&self, range: Range<u64>, read_only: bool) {
        let pages = range.step_by(PAGE_SIZE as usize).filter_map(shadow_bit).fold(0, |bits, bit| bits | bit);
        match read_only {
            true => self.read_only.fetch_or(pages, Ordering::SeqCst),
            false => self.read_only.fetch_and(!pages, Ordering::SeqCst),
        };
    }

    /// Whether stores to the page of `gpa` go to the board for now.
    fn is_read_only(&self, gpa: u64) -> bool {
        shadow_bit(gpa).is_some_and(|bit| self.read_only.load(Ordering::Relaxed) & bit != 0)
    }

    /// The memory file (for vhost-user peers and loaders that map it themselves).
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The regions, ascending.
    pub fn regions(&self) -> &[RamRegion] {
        &self.regions
    }

    /// Size of the memory file in bytes: exclusive bound of offsets.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The region that holds `gpa`.
    #[inline]
    pub fn region_of(&self, gpa: u64) -> Option<RamRegion> {
        // Nearly all accesses of page walks and loaders are to one of the first regions; the list is short.
        let i = self.regions.partition_point(|r| r.gpa <= gpa);
        let fixed = i.checked_sub(1).and_then(|i| self.regions.get(i)).filter(|r| gpa - r.gpa < r.size);
        fixed.copied().or_else(|| self.window().filter(|r| gpa.checked_sub(r.gpa).is_some_and(|at| at < r.size)))
    }

    /// Host address of the start of the mapping; offsets of regions count from it.
    pub(crate) fn base(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }

    /// Host address of the byte at `gpa`, with the count of bytes that follow in its region, and whether it is ROM.
    pub(crate) fn host(&self, gpa: u64) -> Option<(*mut u8, u64, bool)> {
        let r = self.region_of(gpa)?;
        let at = gpa - r.gpa;
        // A stretch has one answer: within the shadow RAM it ends with its page.
        let left = match SHADOW.contains(&gpa) {
            true => (PAGE_SIZE - gpa % PAGE_SIZE).min(r.size - at),
            false => r.size - at,
        };
        let rom = r.rom || self.is_read_only(gpa);
        // SAFETY: the offset was checked against the mapping's size in `new`.
        Some((unsafe { self.base().add((r.offset + at) as usize) }, left, rom))
    }

    /// Where the byte at `gpa` is in this process, for those who look at it from outside. It stays there.
    pub fn host_address(&self, gpa: u64) -> Option<u64> {
        self.host(gpa).map(|(host, ..)| host as u64)
    }

    /// Reads guest-physical memory; bytes that are not RAM or ROM read as 0xFF. `true` if all were.
    pub fn read(&self, gpa: u64, buf: &mut [u8]) -> bool {
        self.pieces(gpa, buf.len(), |host, at, n| match host {
            // SAFETY: `pieces` gives valid ranges of the mapping and of `buf`; guest memory may change meanwhile,
            // bytes are copied without assumptions about their value.
            Some((p, _)) => unsafe { std::ptr::copy_nonoverlapping(p, buf.as_mut_ptr().add(at), n) },
            None => buf[at..at + n].fill(0xff),
        })
    }

    /// Writes guest-physical memory, ROM included if `rom` says so; the rest is left alone. `true` if all was written.
    /// Whoever writes while vCPUs run must tell the engine (`Engine::memory_written`), or stale translations stay.
    pub fn write(&self, gpa: u64, buf: &[u8], rom: bool) -> bool {
        let mut all = true;
        self.pieces(gpa, buf.len(), |host, at, n| match host {
            Some((p, is_rom)) if rom || !is_rom => {
                // SAFETY: as in `read`.
                unsafe { std::ptr::copy_nonoverlapping(buf.as_ptr().add(at), p, n) }
            }
            _ => all = false,
        }) && all
    }

    /// Calls `f(host pointer and ROM flag, offset in the buffer, length)` for each contiguous piece.
    fn pieces(&self, gpa: u64, len: usize, mut f: impl FnMut(Option<(*mut u8, bool)>, usize, usize)) -> bool {
        let (mut at, mut all) = (0, true);
        while at < len {
            let here = gpa.wrapping_add(at as u64);
            let (host, n) = match self.host(here) {
                Some((p, left, rom)) => (Some((p, rom)), left.min((len - at) as u64) as usize),
                None => {
                    all = false;
                    (None, ((PAGE_SIZE - here % PAGE_SIZE) as usize).min(len - at))
                }
            };
            f(host, at, n);
            at += n;
        }
        all
    }
}

/// The bit for the page of `gpa` in [`Ram::read_only`].
fn shadow_bit(gpa: u64) -> Option<u64> {
    let page = gpa.checked_sub(SHADOW.start)? / PAGE_SIZE;
    1u64.checked_shl(page.try_into().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shadow_pages_turn_read_only_and_back() {
        let ram = Ram::new(1 << 20, vec![RamRegion { gpa: 0, size: 1 << 20, offset: 0, rom: false }]).unwrap();
        ram.set_read_only(0xC_4000..0xC_8000, true);
        assert!(ram.write(0xC_3FFF, &[1], false) && ram.write(0xC_8000, &[1], false));
        assert!(!ram.write(0xC_3FFF, &[2, 3], false), "the second byte is on a read-only page");
        assert!(ram.write(0xC_7FFF, &[9, 9], true));
        let mut b = [0; 2];
        assert!(ram.read(0xC_3FFF, &mut b));
        assert_eq!(b, [2, 0]);
        ram.set_read_only(SHADOW, true);
        assert!(!ram.write(0xF_FFFF, &[1], false) && ram.write(0xB_FFFF, &[1], false));
        ram.set_read_only(SHADOW, false);
        assert!(ram.write(0xC_3FFF, &[2, 3], false));
    }

    #[test]
    fn a_devices_memory_moves() {
        let region = RamRegion { gpa: 0, size: 8192, offset: 0, rom: false };
        let ram = || Ram::new(4 * 4096, vec![region]).unwrap();
        assert!(ram().with_window(4096, 8192).is_err(), "a region has it");
        assert!(ram().with_window(8192, 12288).is_err() && ram().with_window(8192, 100).is_err());
        let ram = ram().with_window(8192, 8192).unwrap();
        let byte = |gpa| {
            let mut b = [0];
            ram.read(gpa, &mut b).then_some(b[0])
        };
        ram.write_window(8190, &[1, 2, 3]);
        ram.write_window(8192, &[9]);
        assert_eq!((byte(8190), byte(0x1_0000 + 8190), ram.window().is_some()), (Some(0), None, false));
        ram.place_window(Some(0x1_0000));
        assert_eq!((byte(0x1_0000 + 8190), byte(0x1_0000 + 8192)), (Some(1), None));
        assert!(ram.write(0x1_0000, &[7], false));
        ram.place_window(Some(0x2_0000));
        assert_eq!((byte(0x1_0000), byte(0x2_0000)), (None, Some(7)));
        let mut b = [0; 4];
        ram.read_window(8190, &mut b);
        assert_eq!(b, [1, 2, 0xff, 0xff]);
        for nowhere in [None, Some(4096), Some(0x2_0001), Some(u64::MAX - 4095)] {
            ram.place_window(nowhere);
            assert!(ram.window().is_none(), "{nowhere:x?}");
        }
        assert_eq!(byte(4096), Some(0));
    }

    #[test]
    fn reads_and_writes_across_regions_and_holes() {
        let region = |gpa, offset, rom| RamRegion { gpa, size: 4096, offset, rom };
        let ram = Ram::new(3 * 4096, vec![region(0, 0, false), region(4096, 4096, true), region(12288, 8192, false)])
            .unwrap();
        assert!(!ram.write(4094, &[1, 2, 3, 4], false));
        let mut b = [9; 4];
        assert!(ram.read(4094, &mut b));
        assert_eq!(b, [1, 2, 0, 0]);
        assert!(ram.write(4094, &[1, 2, 3, 4], true));
        assert!(ram.read(4094, &mut b));
        assert_eq!(b, [1, 2, 3, 4]);
        assert!(!ram.read(8190, &mut b));
        assert_eq!(b, [0, 0, 0xff, 0xff]);
        assert!(ram.host(8192).is_none());
        assert!(Ram::new(4096, vec![region(0, 4096, false)]).is_err());
    }
}
