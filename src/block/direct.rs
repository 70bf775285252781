//! Files opened with `O_DIRECT`: the host takes whole blocks at aligned addresses only.

use super::running::{Pass, Running};
use super::vectors::{gather_into, scatter};
use super::{BlockError, HostFile, Result, Storage, total, total_mut};
use nix::sys::uio::pread;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;

/// Largest block that is looked for, and alignment of our own buffers.
const PAGE: usize = 4096;
/// Bytes that pass through a bounce buffer at once.
const BOUNCE: u64 = 1 << 20;

/// What an open file demands.
#[derive(Debug)]
pub(super) struct Direct {
    /// Of offsets, lengths and addresses: a power of two, 512 to 4096.
    align: u64,
    /// Writes that read the blocks at their edges first exclude all others.
    edges: Arc<Running>,
}

/// Bytes at an aligned address.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Aligned {
        let bytes = vec![0; len + PAGE];
        let start = bytes.as_ptr().align_offset(PAGE).min(PAGE);
        Aligned { bytes, start, len }
    }

    fn get(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }

    fn get_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

impl Direct {
    /// Finds the block size by reading, as no call of all kernels tells it. An empty file
    /// tells nothing: a page suits everywhere.
    pub(super) fn probe(file: &File, len: u64) -> Direct {
        let mut buffer = Aligned::new(2 * PAGE);
        let fits = |align: &usize| {
            let part = &mut buffer.get_mut()[*align..2 * *align];
            *align as u64 <= len / 2 && pread(file, part, *align as i64).is_ok_and(|n| n == *align)
        };
        let align = [512, 1024, 2048].into_iter().find(fits).unwrap_or(PAGE) as u64;
        Direct { align, edges: Arc::default() }
    }

    fn whole(&self, offset: u64, mut parts: impl Iterator<Item = (usize, usize)>) -> bool {
        let align = self.align as usize;
        offset.is_multiple_of(self.align) && parts.all(|(at, len)| at % align == 0 && len % align == 0)
    }

    /// Whether the host takes this read as it is.
    pub(super) fn takes_read(&self, offset: u64, bufs: &[IoSliceMut<'_>]) -> bool {
        self.whole(offset, bufs.iter().map(|b| (b.as_ptr().addr(), b.len())))
    }

    /// Whether the host takes this write as it is.
    pub(super) fn takes_write(&self, offset: u64, bufs: &[IoSlice<'_>]) -> bool {
        self.whole(offset, bufs.iter().map(|b| (b.as_ptr().addr(), b.len())))
    }

    /// Held during writes of whole blocks and changes of the length.
    pub(super) fn shared(&self) -> Pass {
        self.edges.enter()
    }

    /// The same, unless that had to wait.
    pub(super) fn try_shared(&self) -> Option<Pass> {
        self.edges.try_enter()
    }

    /// What offsets, lengths and addresses are multiples of.
    pub(super) fn align(&self) -> u64 {
        self.align
    }

    /// The blocks that a range touches.
    fn blocks(&self, offset: u64, len: u64) -> Option<(u64, u64)> {
        let start = offset - offset % self.align;
        let end = offset.checked_add(len)?.checked_next_multiple_of(self.align)?;
        Some((start, end))
    }
}

fn too_far(file: &HostFile, offset: u64) -> BlockError {
    BlockError::Invalid { what: format!("{}: no file reaches to {offset}", file.name()) }
}

impl HostFile {
    /// Reads through an aligned buffer.
    pub(super) fn read_bounced(&self, direct: &Direct, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<()> {
        let len = total_mut(bufs);
        let mut done = 0;
        while done < len {
            let step = (len - done).min(BOUNCE);
            let at = offset + done;
            let (start, end) = direct.blocks(at, step).ok_or_else(|| too_far(self, offset))?;
            let mut buffer = Aligned::new((end - start) as usize);
            self.read_plain(start, &mut [IoSliceMut::new(buffer.get_mut())])?;
            let within = (at - start) as usize;
            scatter(&mut super::slice_mut(bufs, done, step), &buffer.get()[within..within + step as usize]);
            done += step;
        }
        Ok(())
    }

    /// Writes through an aligned buffer. Blocks that are written in part are read first; the file
    /// does not get longer than the write makes it.
    pub(super) fn write_bounced(&self, direct: &Direct, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()> {
        let len = total(bufs);
        let mut done = 0;
        while done < len {
            let step = (len - done).min(BOUNCE);
            let at = offset + done;
            let (start, end) = direct.blocks(at, step).ok_or_else(|| too_far(self, offset))?;
            let mut buffer = Aligned::new((end - start) as usize);
            let (shared, exclusive);
            if (start, end) == (at, at + step) {
                shared = direct.shared();
                gather_into(buffer.get_mut(), &super::slices(bufs, done, step));
                self.write_plain(start, &[IoSlice::new(buffer.get())])?;
                drop(shared);
            } else {
                exclusive = direct.edges.exclude();
                self.write_edges(direct, (start, end), at, &super::slices(bufs, done, step), &mut buffer)?;
                drop(exclusive);
            }
            done += step;
        }
        Ok(())
    }

    fn write_edges(
        &self,
        direct: &Direct,
        (start, end): (u64, u64),
        at: u64,
        parts: &[IoSlice<'_>],
        buffer: &mut Aligned,
    ) -> Result<()> {
        let (align, before) = (direct.align as usize, self.len());
        let step = total(parts);
        if start < at {
            self.read_plain(start, &mut [IoSliceMut::new(&mut buffer.get_mut()[..align])])?;
        }
        if end > at + step && (end - start > direct.align || start == at) {
            let last = (end - start) as usize - align;
            self.read_plain(end - direct.align, &mut [IoSliceMut::new(&mut buffer.get_mut()[last..])])?;
        }
        gather_into(&mut buffer.get_mut()[(at - start) as usize..], parts);
        self.write_plain(start, &[IoSlice::new(buffer.get())])?;
        let wanted = before.max(at + step);
        if end > wanted && !self.is_device() { self.cut_to(wanted) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use crate::block::scratch::{Dice, Scratch};
    use crate::block::{CacheMode, HostFile, Storage};
    use std::io::{IoSlice, IoSliceMut};

    #[test]
    fn any_request_gets_through() {
        let dir = Scratch::new();
        let path = dir.path("direct");
        let mut model = vec![0u8; 100_000];
        std::fs::write(&path, &model).unwrap();
        let direct = CacheMode::from_name("none").unwrap();
        let file = match HostFile::open_with(&path, true, direct) {
            Ok(file) => file,
            Err(e) => return eprintln!("not tested: {e}"),
        };
        assert!(file.is_direct());
        let mut dice = Dice::new(7);
        for round in 0..300u64 {
            let align = [1, 512, 4096][dice.below(3) as usize];
            let offset = dice.below(110_000) / align * align;
            let len = (1 + dice.below(9000)).next_multiple_of(align) as usize;
            let (value, split) = (round as u8, dice.below(len as u64) as usize);
            let data = vec![value; len];
            file.writev(offset, &[IoSlice::new(&data[..split]), IoSlice::new(&data[split..])]).unwrap();
            let end = offset as usize + len;
            model.resize(model.len().max(end), 0);
            model[offset as usize..end].fill(value);
            assert_eq!(file.len(), model.len() as u64);
            let at = dice.below(120_000);
            let mut got = vec![9; 5000];
            let (first, second) = got.split_at_mut(dice.below(5000) as usize);
            file.readv(at, &mut [IoSliceMut::new(first), IoSliceMut::new(second)]).unwrap();
            let there = model.get(at as usize..).unwrap_or_default();
            let there = &there[..there.len().min(5000)];
            assert!(got[..there.len()] == *there && got[there.len()..].iter().all(|&b| b == 0), "round {round}");
        }
        file.flush().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), model.len() as u64);
        assert!(std::fs::read(&path).unwrap() == model);
    }

    #[test]
    fn neighbours_in_one_block_do_not_lose_writes() {
        let dir = Scratch::new();
        let path = dir.path("direct");
        std::fs::write(&path, vec![0; 8192]).unwrap();
        let Ok(file) = HostFile::open_with(&path, true, CacheMode::from_name("directsync").unwrap()) else {
            return eprintln!("not tested: no O_DIRECT here");
        };
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let file = &file;
                scope.spawn(move || {
                    for byte in 0..100 {
                        file.write(thread + 4 * byte, &[thread as u8 + 1]).unwrap();
                    }
                });
            }
        });
        let bytes = std::fs::read(&path).unwrap();
        assert!((0..400).all(|i| bytes[i] == (i % 4) as u8 + 1));
    }
}
