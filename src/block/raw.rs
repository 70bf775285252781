//! Raw images: the file is the disk.

use super::{
    BlockBackend, BlockError, Content, Extent, HostFile, Preallocation, Result, Storage, Transfer, check_range,
};
use std::io::{IoSlice, IoSliceMut};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A raw image. Sparse files tell their holes.
pub struct Raw {
    file: Arc<dyn Storage>,
    size: AtomicU64,
    read_only: bool,
}

impl Raw {
    /// The disk that `file` is.
    pub fn new(file: Arc<dyn Storage>, read_only: bool) -> Raw {
        Raw { size: file.len().into(), file, read_only }
    }

    /// The host file.
    pub fn file(&self) -> &Arc<dyn Storage> {
        &self.file
    }

    fn writable(&self) -> Result<()> {
        match self.read_only {
            true => Err(BlockError::ReadOnly { name: self.file.name().to_string() }),
            false => Ok(()),
        }
    }
}

impl BlockBackend for Raw {
    fn len(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn readv(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<()> {
        check_range(offset, super::total_mut(bufs), self.len())?;
        self.file.readv(offset, bufs)
    }

    fn writev(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()> {
        self.writable()?;
        check_range(offset, super::total(bufs), self.len())?;
        self.file.writev(offset, bufs)
    }

    fn flush(&self) -> Result<()> {
        self.file.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.writable()?;
        check_range(offset, len, self.len())?;
        self.file.punch(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.writable()?;
        check_range(offset, len, self.len())?;
        self.file.zero(offset, len, unmap)
    }

    fn map(&self, offset: u64, len: u64) -> Result<Extent> {
        check_range(offset, len, self.len())?;
        let (data, end) = self.file.data_at(offset)?;
        Ok(Extent {
            offset,
            len: end.saturating_sub(offset).clamp(1, len.max(1)),
            content: if data { Content::Data } else { Content::Zero },
            depth: 0,
            host_offset: Some(offset),
            compressed: false,
            sparse: false,
        })
    }

    fn transfer(&self, write: bool, offset: u64, len: u64) -> Option<Transfer> {
        check_range(offset, len, self.len()).ok().filter(|()| !(write && self.read_only))?;
        self.file.clone().transfer(write, offset, len)
    }

    fn resize(&self, len: u64, preallocation: Preallocation) -> Result<()> {
        self.writable()?;
        let old = self.len();
        check_mode(preallocation)?;
        self.file.set_len(len)?;
        if len > old {
            reserve(&*self.file, old, len, preallocation)?;
        }
        self.size.store(len, Ordering::Release);
        Ok(())
    }
}

fn check_mode(preallocation: Preallocation) -> Result<()> {
    match preallocation {
        Preallocation::Metadata => Err(BlockError::Invalid {
            what: "preallocation=metadata: raw images have no metadata; there are off, falloc and full".to_string(),
        }),
        Preallocation::Off | Preallocation::Falloc | Preallocation::Full => Ok(()),
    }
}

fn reserve(file: &dyn Storage, from: u64, to: u64, preallocation: Preallocation) -> Result<()> {
    match preallocation {
        Preallocation::Off | Preallocation::Metadata => Ok(()),
        Preallocation::Falloc => file.allocate(from, to - from),
        Preallocation::Full => {
            let zeroes = vec![0; 1 << 20];
            let mut at = from;
            while at < to {
                let size = (to - at).min(zeroes.len() as u64);
                file.write(at, &zeroes[..size as usize])?;
                at += size;
            }
            Ok(())
        }
    }
}

/// Creates a raw image of `size` bytes.
pub fn create(path: &Path, size: u64, preallocation: Preallocation) -> Result<()> {
    check_mode(preallocation)?;
    let file = HostFile::create(path)?;
    file.set_len(size)?;
    reserve(&file, 0, size, preallocation)?;
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::scratch::Scratch;

    #[test]
    fn holes_are_seen_and_made() {
        let dir = Scratch::new();
        let path = dir.path("holes.raw");
        create(&path, 8 << 20, Preallocation::Off).unwrap();
        let disk = Raw::new(Arc::new(HostFile::open(&path, true).unwrap()), false);
        assert_eq!(disk.map(0, 8 << 20).unwrap().content, Content::Zero);
        disk.write(4 << 20, &[7; 1 << 20]).unwrap();
        let extent = disk.map(0, 8 << 20).unwrap();
        assert_eq!((extent.len, extent.content), (4 << 20, Content::Zero));
        let extent = disk.map(4 << 20, 4 << 20).unwrap();
        assert_eq!((extent.len, extent.content, extent.host_offset), (1 << 20, Content::Data, Some(4 << 20)));
        disk.write_zeroes(4 << 20, 1 << 20, true).unwrap();
        assert_eq!(disk.map(4 << 20, 4 << 20).unwrap().content, Content::Zero);
        let mut buf = [1; 512];
        disk.read(4 << 20, &mut buf).unwrap();
        assert_eq!(buf, [0; 512]);
    }

    #[test]
    fn ends_and_leave_are_kept() {
        let dir = Scratch::new();
        let path = dir.path("ends.raw");
        create(&path, 1000, Preallocation::Full).unwrap();
        let disk = Raw::new(Arc::new(HostFile::open(&path, true).unwrap()), false);
        assert!(matches!(disk.write(999, &[1, 2]), Err(BlockError::OutOfRange { .. })));
        assert!(matches!(disk.read(u64::MAX, &mut [0; 2]), Err(BlockError::OutOfRange { .. })));
        disk.write(999, &[9]).unwrap();
        assert!(disk.resize(4000, Preallocation::Metadata).is_err());
        assert_eq!((disk.len(), disk.file().len()), (1000, 1000), "refused before anything changed");
        disk.resize(2000, Preallocation::Falloc).unwrap();
        let mut buf = [1; 3];
        disk.read(998, &mut buf).unwrap();
        assert_eq!(buf, [0, 9, 0]);
        let disk = Raw::new(Arc::new(HostFile::open(&path, false).unwrap()), true);
        assert!(matches!(disk.write(0, &[1]), Err(BlockError::ReadOnly { .. })));
    }
}
