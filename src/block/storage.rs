//! The host file under an image.

use super::{BlockError, Result};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::stat::{SFlag, fstat};
use nix::sys::uio::{preadv, pwritev};
use nix::unistd::{Whence, lseek};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

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
    flushing: Mutex<()>,
}

/// Parts of one `preadv`: the limit of Linux (IOV_MAX).
const MAX_PARTS: usize = 1024;
/// Zeroes written at once where the host cannot make them itself.
const ZEROES: usize = 1 << 16;

impl HostFile {
    /// Opens an existing file or block device.
    pub fn open(path: &Path, write: bool) -> Result<HostFile> {
        let file = File::options().read(true).write(write).open(path);
        HostFile::new(path, file.map_err(|e| failed(&path.to_string_lossy(), "cannot open", e))?)
    }

    /// Creates a file, or empties the one that is there.
    pub fn create(path: &Path) -> Result<HostFile> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path);
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
            flushing: Mutex::new(()),
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

    /// Whether this is a block device, whose size is fixed.
    pub fn is_device(&self) -> bool {
        self.device
    }

    fn fail(&self, action: &str, offset: u64, len: u64, e: impl Into<io::Error>) -> BlockError {
        failed(&self.name, &format!("cannot {action} {len} bytes at {offset}"), e.into())
    }

    fn grown(&self, end: u64) {
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
}

fn failed(name: &str, action: &str, source: io::Error) -> BlockError {
    BlockError::Io { name: name.to_string(), action: action.to_string(), source }
}

impl Storage for HostFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    fn readv(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<()> {
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
                Ok(n) => done += n as u64,
                Err(Errno::EINTR) => {}
                Err(e) => return Err(self.fail("read", offset, len, e)),
            }
        }
        Ok(())
    }

    fn writev(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()> {
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

    fn flush(&self) -> Result<()> {
        let _flushing = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.dirty.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        self.file.sync_data().map_err(|e| {
            // What was not stored must not count as stored next time.
            self.dirty.store(true, Ordering::Release);
            failed(&self.name, "cannot flush", e)
        })
    }

    fn set_len(&self, len: u64) -> Result<()> {
        if self.device {
            return if len <= self.len() { Ok(()) } else { Err(self.fail("grow to", 0, len, Errno::ENOSPC)) };
        }
        self.file.set_len(len).map_err(|e| failed(&self.name, &format!("cannot change the size to {len}"), e))?;
        self.len.store(len, Ordering::Release);
        self.dirty.store(true, Ordering::Release);
        Ok(())
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
            self.file
                .write_all_at(&zeroes[..size as usize], offset + done)
                .map_err(|e| self.fail("zero", offset, len, e))?;
            done += size;
        }
        self.grown(end);
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
