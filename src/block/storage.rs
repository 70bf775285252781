//! The host file under an image.

use super::direct::Direct;
use super::{BlockError, CacheMode, Result, Transfer};
use crate::descriptors::{self, Access};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::stat::{SFlag, fstat};
use nix::sys::uio::{preadv, pwritev};
use nix::unistd::{Whence, lseek};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A growing array of bytes that survives: a host file, or what tests put in its place.
pub trait Storage: Send + Sync {
    /// For messages: the path.
    fn name(&self) -> &str;
    /// Bytes up to the end.
    fn len(&self) -> u64;
    /// Whether there are no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Reads; bytes beyond the end are zeroes.
    fn readv(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<()>;
    /// Writes, growing the file where needed.
    fn writev(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()>;
    /// Makes everything written before durable.
    fn flush(&self) -> Result<()>;
    /// Cuts or extends; what is added is zero.
    fn set_len(&self, len: u64) -> Result<()>;
    /// Makes a range zero, without storing it if `punch` and the host can. Grows the file if needed.
    fn zero(&self, offset: u64, len: u64, punch: bool) -> Result<()>;
    /// Gives space back if the host can; the range then reads as zeroes or as before.
    fn punch(&self, offset: u64, len: u64) -> Result<()>;
    /// Reserves host space for a range, without changing what is read there.
    fn allocate(&self, offset: u64, len: u64) -> Result<()>;
    /// Whether there is data at `offset`, and where that state ends (at most at the end of the file).
    fn data_at(&self, offset: u64) -> Result<(bool, u64)>;

    /// Bytes of the host's disk that the file takes.
    fn allocated(&self) -> Result<u64> {
        Ok(self.len())
    }

    /// What [`BlockBackend::transfer`](super::BlockBackend::transfer) is for a range of this file.
    fn transfer(self: Arc<Self>, _write: bool, _offset: u64, _len: u64) -> Option<Transfer> {
        None
    }

    /// Reads one buffer.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.readv(offset, &mut [IoSliceMut::new(buf)])
    }
    /// Writes one buffer.
    fn write(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.writev(offset, &[IoSlice::new(buf)])
    }
}

/// A file or block device of the host.
#[derive(Debug)]
pub struct HostFile {
    file: File,
    name: String,
    path: PathBuf,
    device: bool,
    /// End of the file as far as we wrote it; the file belongs to us alone while it is open.
    len: AtomicU64,
    /// Whether something was written since the last flush.
    dirty: AtomicBool,
    /// Held while flushing: a second flush must not return before the first one that covers it.
    /// The host's error if a flush failed: it forgets which pages it could not write, so that no
    /// later flush can say that they are there.
    flushing: Mutex<Option<Errno>>,
    /// Opened with `O_DIRECT`.
    direct: Option<Direct>,
    /// `cache=unsafe`.
    no_flush: bool,
}

/// Parts of one `preadv`: the limit of Linux (IOV_MAX).
const MAX_PARTS: usize = 1024;
/// Zeroes written at once where the host cannot make them itself.
const ZEROES: usize = 1 << 16;

impl HostFile {
    /// Opens an existing file or block device.
    pub fn open(path: &Path, write: bool) -> Result<HostFile> {
        HostFile::open_with(path, write, CacheMode::default())
    }

    /// Opens an existing file or block device, and uses the host's cache as `cache` says.
    /// Whether each write is flushed at once is not decided here but by the drive.
    pub fn open_with(path: &Path, write: bool, cache: CacheMode) -> Result<HostFile> {
        let name = path.to_string_lossy();
        let flags = if cache.direct { libc::O_DIRECT } else { 0 };
        let access = if write { Access::Both } else { Access::Read };
        let file = descriptors::open(path, access, flags)
            .unwrap_or_else(|| File::options().read(true).write(write).custom_flags(flags).open(path));
        let file = file.map_err(|e| match e.raw_os_error() {
            Some(libc::EINVAL) if cache.direct => BlockError::Unsupported {
                name: name.to_string(),
                what: "the host's file system cannot do without its cache; use cache=writeback".to_string(),
            },
            _ => failed(&name, "cannot open", e),
        })?;
        let mut file = HostFile::new(path, file)?;
        file.direct = cache.direct.then(|| Direct::probe(&file.file, file.len()));
        file.no_flush = cache.no_flush;
        Ok(file)
    }

    /// Creates a file that no directory names any more, for what is gone with the process.
    pub fn create_unnamed(directory: &Path) -> Result<HostFile> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = directory.join(format!("brolga-{}-{number:x}.tmp", std::process::id()));
            let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path);
            match file {
                Ok(file) => {
                    let removed = std::fs::remove_file(&path);
                    removed.map_err(|e| failed(&path.to_string_lossy(), "cannot remove", e))?;
                    return HostFile::new(&path, file);
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(failed(&directory.to_string_lossy(), "cannot create a temporary file", e)),
            }
        }
    }

    /// Creates a file, or empties the one that is there.
    pub fn create(path: &Path) -> Result<HostFile> {
        let handed =
            descriptors::open(path, Access::Both, 0).map(|file| file.and_then(|file| file.set_len(0).map(|()| file)));
        let file =
            handed.unwrap_or_else(|| File::options().read(true).write(true).create(true).truncate(true).open(path));
        HostFile::new(path, file.map_err(|e| failed(&path.to_string_lossy(), "cannot create", e))?)
    }

    fn new(path: &Path, mut file: File) -> Result<HostFile> {
        let name = path.to_string_lossy().into_owned();
        let status = fstat(&file).map_err(|e| failed(&name, "cannot open", e.into()))?;
        let kind = SFlag::from_bits_truncate(status.st_mode & SFlag::S_IFMT.bits());
        let device = kind == SFlag::S_IFBLK;
        if !device && kind != SFlag::S_IFREG {
            let what = "not a file or block device, so no disk image".to_string();
            return Err(BlockError::Unsupported { name, what });
        }
        // st_size is 0 for block devices; seeking tells their size.
        let len = file.seek(SeekFrom::End(0)).map_err(|e| failed(&name, "cannot find the end", e))?;
        Ok(HostFile {
            file,
            name,
            path: path.into(),
            device,
            len: len.into(),
            dirty: false.into(),
            flushing: Mutex::new(None),
            direct: None,
            no_flush: false,
        })
    }

    /// Keeps other programs out, QEMU among them, until the file is closed: those that write, and
    /// with `write` those that read too.
    pub fn lock(&self, write: bool) -> Result<()> {
        super::lock::lock(&self.file, &self.name, write)
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the host's cache is left out (`O_DIRECT`).
    pub fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// Leaves flushes out from now on: for files that are gone with the process.
    pub(super) fn never_flush(&mut self) {
        self.no_flush = true;
    }

    /// Whether this is a block device, whose size is fixed.
    pub fn is_device(&self) -> bool {
        self.device
    }

    fn fail(&self, action: &str, offset: u64, len: u64, e: impl Into<io::Error>) -> BlockError {
        failed(&self.name, &format!("cannot {action} {len} bytes at {offset}"), e.into())
    }

    /// Something was written that ends here.
    pub(super) fn grown(&self, end: u64) {
        self.len.fetch_max(end, Ordering::AcqRel);
        self.dirty.store(true, Ordering::Release);
    }

    /// `fallocate` where the host has it; false where it has not.
    fn try_fallocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> Result<bool> {
        let (Ok(start), Ok(size)) = (i64::try_from(offset), i64::try_from(len)) else {
            return Err(self.fail("reserve", offset, len, Errno::EFBIG));
        };
        loop {
            match fallocate(&self.file, flags, start, size) {
                Ok(()) => return Ok(true),
                Err(Errno::EINTR) => {}
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENODEV | Errno::EINVAL) => return Ok(false),
                Err(e) => return Err(self.fail("reserve", offset, len, e)),
            }
        }
    }

    /// Reads; an `O_DIRECT` file takes this only of whole blocks.
    pub(super) fn read_plain(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<()> {
        let len = super::total_mut(bufs);
        let mut done = 0;
        while done < len {
            let mut rest = super::slice_mut(bufs, done, len - done);
            rest.truncate(MAX_PARTS);
            let at =
                i64::try_from(offset.saturating_add(done)).map_err(|_| self.fail("read", offset, len, Errno::EFBIG))?;
            match preadv(&self.file, &mut rest, at) {
                Ok(0) => {
                    super::vectors::fill_zero(&mut super::slice_mut(bufs, done, len - done));
                    return Ok(());
                }
                Ok(n) => {
                    done += n as u64;
                    // The end of a file that is no whole block: the rest could not be asked for.
                    if self.direct.is_some() && offset + done >= self.len() {
                        super::vectors::fill_zero(&mut super::slice_mut(bufs, done, len - done));
                        return Ok(());
                    }
                }
                Err(Errno::EINTR) => {}
                Err(e) => return Err(self.fail("read", offset, len, e)),
            }
        }
        Ok(())
    }

    /// Writes; an `O_DIRECT` file takes this only of whole blocks.
    pub(super) fn write_plain(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()> {
        let len = super::total(bufs);
        let mut done = 0;
        while done < len {
            let mut rest = super::slices(bufs, done, len - done);
            rest.truncate(MAX_PARTS);
            let at = i64::try_from(offset.saturating_add(done))
                .map_err(|_| self.fail("write", offset, len, Errno::EFBIG))?;
            match pwritev(&self.file, &rest, at) {
                Ok(0) => return Err(self.fail("write", offset, len, Errno::ENOSPC)),
                Ok(n) => {
                    done += n as u64;
                    self.grown(offset + done);
                }
                Err(Errno::EINTR) => {}
                Err(e) => return Err(self.fail("write", offset, len, e)),
            }
        }
        Ok(())
    }

    /// Cuts the file to `len` bytes, with `direct` locked.
    pub(super) fn cut_to(&self, len: u64) -> Result<()> {
        self.file.set_len(len).map_err(|e| failed(&self.name, &format!("cannot change the size to {len}"), e))?;
        self.len.store(len, Ordering::Release);
        self.dirty.store(true, Ordering::Release);
        Ok(())
    }
}

fn failed(name: &str, action: &str, source: io::Error) -> BlockError {
    BlockError::Io { name: name.to_string(), action: action.to_string(), source }
}

impl AsFd for HostFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Storage for HostFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    fn readv(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<()> {
        match &self.direct {
            Some(direct) if !direct.takes_read(offset, bufs) => self.read_bounced(direct, offset, bufs),
            _ => self.read_plain(offset, bufs),
        }
    }

    fn writev(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()> {
        let Some(direct) = &self.direct else { return self.write_plain(offset, bufs) };
        if direct.takes_write(offset, bufs) {
            let _shared = direct.shared();
            return self.write_plain(offset, bufs);
        }
        self.write_bounced(direct, offset, bufs)
    }

    fn flush(&self) -> Result<()> {
        let mut failed_before = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(errno) = *failed_before {
            return Err(failed(&self.name, "cannot flush, as an earlier flush failed", errno.into()));
        }
        if self.no_flush || !self.dirty.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        self.file.sync_data().map_err(|e| {
            if e.kind() == io::ErrorKind::Interrupted || self.direct.is_some() {
                self.dirty.store(true, Ordering::Release);
            } else {
                *failed_before = Some(e.raw_os_error().map_or(Errno::EIO, Errno::from_raw));
            }
            failed(&self.name, "cannot flush", e)
        })
    }

    fn set_len(&self, len: u64) -> Result<()> {
        if self.device {
            return if len <= self.len() { Ok(()) } else { Err(self.fail("grow to", 0, len, Errno::ENOSPC)) };
        }
        let _shared = self.direct.as_ref().map(Direct::shared);
        self.cut_to(len)
    }

    fn zero(&self, offset: u64, len: u64, punch: bool) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let end = offset.checked_add(len).ok_or_else(|| self.fail("zero", offset, len, Errno::EFBIG))?;
        if !self.device && end > self.len() {
            let old = self.len();
            self.set_len(end)?;
            // What is added is zero already, and sparse.
            if offset >= old && punch {
                return Ok(());
            }
        }
        self.dirty.store(true, Ordering::Release);
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        if punch && self.try_fallocate(hole, offset, len)? {
            return Ok(());
        }
        if self.try_fallocate(FallocateFlags::FALLOC_FL_ZERO_RANGE, offset, len)? {
            return Ok(());
        }
        let zeroes = [0; ZEROES];
        let mut done = 0;
        while done < len {
            let size = (len - done).min(ZEROES as u64);
            self.write(offset + done, &zeroes[..size as usize])?;
            done += size;
        }
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        self.dirty.store(true, Ordering::Release);
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        self.try_fallocate(hole, offset, len).map(|_| ())
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        if len == 0 || self.device {
            return Ok(());
        }
        if !self.try_fallocate(FallocateFlags::empty(), offset, len)? {
            let what = "the host's file system cannot reserve space; use preallocation=full or off".to_string();
            return Err(BlockError::Unsupported { name: self.name.clone(), what });
        }
        self.grown(offset.saturating_add(len));
        Ok(())
    }

    fn allocated(&self) -> Result<u64> {
        let status = fstat(&self.file).map_err(|e| failed(&self.name, "cannot look at", e.into()))?;
        // st_blocks counts sectors, whatever the blocks of the file system are (stat(2)).
        Ok(if self.device { self.len() } else { (status.st_blocks as u64).saturating_mul(512) })
    }

    fn transfer(self: Arc<Self>, write: bool, offset: u64, len: u64) -> Option<Transfer> {
        i64::try_from(offset.checked_add(len)?).ok()?;
        let (mut align, mut passes) = (1, Vec::new());
        if let Some(direct) = &self.direct {
            align = direct.align();
            if write {
                passes.push(direct.try_shared()?);
            }
        }
        offset.is_multiple_of(align).then(|| Transfer { file: self, offset, align, write, passes })
    }

    fn data_at(&self, offset: u64) -> Result<(bool, u64)> {
        let end = self.len();
        let at = i64::try_from(offset).map_err(|_| self.fail("look at", offset, 0, Errno::EFBIG))?;
        match lseek(&self.file, at, Whence::SeekData) {
            Ok(data) if data as u64 > offset => Ok((false, (data as u64).min(end))),
            Ok(_) => match lseek(&self.file, at, Whence::SeekHole) {
                Ok(hole) if hole as u64 > offset => Ok((true, (hole as u64).min(end))),
                _ => Ok((true, end)),
            },
            // No data up to the end.
            Err(Errno::ENXIO) => Ok((false, end)),
            // The file system or device cannot tell: everything counts as data.
            Err(_) => Ok((true, end)),
        }
    }
}
