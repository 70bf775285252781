//! Copies disks into one: pieces of data are read on several threads and written in order.

use super::buffer::Buffer;
use super::progress::Progress;
use super::rate::Rate;
use super::warn;
use crate::block::qcow2::Qcow2;
use crate::block::{BlockBackend, Content, Extent};
use anyhow::{Result, anyhow};
use crossbeam_channel::{Receiver, Sender};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

/// Bytes read at once.
pub const PIECE: u64 = 2 << 20;

/// A part of a disk that is copied.
pub struct Source {
    /// The disk.
    pub disk: Arc<dyn BlockBackend>,
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

/// A copy to be made.
pub struct Copy<'a> {
    /// What is copied, one after the other.
    pub sources: &'a [Source],
    /// Where to.
    pub target: &'a dyn BlockBackend,
    /// Runs of zeroes of that many bytes are not written; 0: everything is.
    pub sparse: u64,
    /// The target reads as zeroes all over.
    pub target_is_zero: bool,
    /// The target lies on what the sources lie on: what a source does not store itself is there.
    pub over_backing: bool,
    /// Every cluster is written compressed to this image, which is the target.
    pub compressed: Option<&'a Qcow2>,
    /// Threads.
    pub threads: usize,
    /// Write in the order of the disk.
    pub ordered: bool,
    /// Write no faster.
    pub rate: Option<Rate>,
    /// Have the host copy, as far as both lie in its files in one piece.
    pub offload: bool,
    /// Go on where a source cannot be read.
    pub salvage: Option<Salvage>,
}

/// `--salvage`: what cannot be read becomes zeroes.
#[derive(Debug, Clone, Copy)]
pub struct Salvage {
    /// Do not tell.
    pub quiet: bool,
}

impl Salvage {
    fn tell(self, e: impl std::fmt::Display) {
        if !self.quiet {
            warn(&e.to_string());
        }
    }

    /// Reads as much as can be read, sector by sector where it must.
    fn read(self, disk: &dyn BlockBackend, at: u64, buffer: &mut [u8]) {
        let Err(e) = disk.read(at, buffer) else { return };
        if buffer.len() <= SECTOR {
            self.tell(format_args!("{e}; zeroes stand there now"));
            buffer.fill(0);
            return;
        }
        // Halves, down to the sectors that are lost.
        let middle = (buffer.len() / 2).next_multiple_of(SECTOR).min(buffer.len() - 1);
        let (first, second) = buffer.split_at_mut(middle);
        self.read(disk, at, first);
        self.read(disk, at + middle as u64, second);
    }
}

/// Bytes that are given up together when a read fails.
const SECTOR: usize = 512;
/// Bytes that count as data where it cannot be found out what is there.
const UNKNOWN: u64 = 64 << 10;

/// One piece of work.
struct Piece {
    /// Place in the order.
    number: u64,
    source: usize,
    /// Where it is read.
    from: u64,
    /// Where it is written.
    to: u64,
    len: u64,
    /// It reads as zeroes, so there is nothing to read.
    zero: bool,
}

/// Whose turn to write it is.
#[derive(Default)]
struct Turn {
    next: Mutex<u64>,
    moved: Condvar,
}

impl Turn {
    /// Waits until all pieces before `number` are written; false if that will not be.
    fn wait(&self, number: u64, failed: &AtomicBool) -> bool {
        let mut next = self.next.lock().unwrap_or_else(|e| e.into_inner());
        while *next != number {
            if failed.load(Ordering::Acquire) {
                return false;
            }
            next = self.moved.wait(next).unwrap_or_else(|e| e.into_inner());
        }
        true
    }

    fn pass(&self) {
        *self.next.lock().unwrap_or_else(|e| e.into_inner()) += 1;
        self.moved.notify_all();
    }

    /// Wakes all who wait after a failure.
    fn release(&self) {
        let _next = self.next.lock().unwrap_or_else(|e| e.into_inner());
        self.moved.notify_all();
    }
}

impl Copy<'_> {
    /// Copies, telling `progress` every byte.
    pub fn run(&self, progress: &Progress) -> Result<()> {
        let threads = self.threads.max(1);
        let (give, take) = crossbeam_channel::bounded(threads);
        let (turn, failed) = (Turn::default(), AtomicBool::new(false));
        let error = Mutex::new(None);
        let fail = |e: anyhow::Error| {
            error.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(e);
            failed.store(true, Ordering::Release);
            turn.release();
        };
        std::thread::scope(|scope| {
            for _ in 0..threads {
                let take = take.clone();
                scope.spawn(|| self.work(take, &turn, &failed, progress).unwrap_or_else(&fail));
            }
            // The last receiver must go with the threads, or a failed copy would wait here for ever.
            drop(take);
            self.plan(&give, progress).unwrap_or_else(&fail);
            drop(give);
        });
        match error.into_inner().unwrap_or_else(|e| e.into_inner()) {
            Some(e) => Err(e),
            None => Ok(()),
        }
    }

    /// Hands out the pieces that have to be written.
    fn plan(&self, give: &Sender<Piece>, progress: &Progress) -> Result<()> {
        let unit = self.compressed.map_or(1, |image| image.info().cluster_size);
        let (mut number, mut base) = (0, 0);
        for (source, part) in self.sources.iter().enumerate() {
            let mut done = 0;
            while done < part.len {
                let extent = self.extent(part, done)?;
                let told = done + extent.len;
                let absent = extent.content != Content::Data;
                let skip = match self.over_backing {
                    true => extent.depth > 0,
                    false => absent && self.target_is_zero && self.sparse > 0,
                };
                // Compressed clusters are written whole, whatever of them is data.
                let whole = if told == part.len { told } else { told - told % unit };
                if skip && whole > done {
                    progress.add(whole - done);
                    done = whole;
                    continue;
                }
                let end = told.next_multiple_of(unit).min(part.len);
                let zero = absent && end == told;
                // Zeroes that are told and not written need no buffer, but short pieces show progress.
                let step = if zero && self.sparse > 0 { 64 * PIECE } else { PIECE };
                while done < end {
                    let len = step.min(end - done);
                    let piece = Piece { number, source, from: part.start + done, to: base + done, len, zero };
                    if give.send(piece).is_err() {
                        // All threads failed and told why.
                        return Ok(());
                    }
                    (number, done) = (number + 1, done + len);
                }
            }
            base += part.len;
        }
        Ok(())
    }

    /// What stands at `done` of a part.
    fn extent(&self, part: &Source, done: u64) -> Result<Extent> {
        let (offset, len) = (part.start + done, part.len - done);
        match (part.disk.map(offset, len), self.salvage) {
            (Ok(extent), _) => Ok(extent),
            (Err(e), None) => Err(e.into()),
            (Err(_), Some(_)) => Ok(Extent {
                offset,
                len: len.min(UNKNOWN),
                content: Content::Data,
                depth: 0,
                host_offset: None,
                compressed: false,
                sparse: false,
            }),
        }
    }

    /// One thread.
    fn work(&self, take: Receiver<Piece>, turn: &Turn, failed: &AtomicBool, progress: &Progress) -> Result<()> {
        let mut buffer = Buffer::default();
        for piece in take {
            if failed.load(Ordering::Acquire) {
                break;
            }
            let whole_zero = piece.zero && self.sparse > 0;
            if self.offload && !piece.zero {
                if self.ordered && !turn.wait(piece.number, failed) {
                    break;
                }
                if self.hand_over(&piece)? {
                    turn.pass();
                    progress.add(piece.len);
                    continue;
                }
            }
            if !whole_zero {
                let bytes = buffer.get(piece.len as usize);
                let source = self.sources.get(piece.source).ok_or_else(|| anyhow!("no such source"))?;
                match self.salvage {
                    _ if piece.zero => bytes.fill(0),
                    Some(salvage) => salvage.read(&*source.disk, piece.from, bytes),
                    None => source.disk.read(piece.from, bytes)?,
                }
            }
            let buffer = buffer.bytes();
            let runs = if whole_zero { vec![(piece.len, true)] } else { self.runs(piece.to, buffer) };
            if self.ordered && !turn.wait(piece.number, failed) {
                break;
            }
            self.write(&piece, &runs, buffer)?;
            turn.pass();
            progress.add(piece.len);
        }
        Ok(())
    }

    /// Lengths of runs that are zero and that are not, as far as zeroes are looked for.
    fn runs(&self, at: u64, bytes: &[u8]) -> Vec<(u64, bool)> {
        if self.sparse == 0 {
            return vec![(bytes.len() as u64, false)];
        }
        // Compressed clusters are written whole.
        let sparse = self.compressed.map_or(self.sparse, |image| image.info().cluster_size.max(self.sparse));
        let mut runs: Vec<(u64, bool)> = Vec::new();
        let mut rest = bytes;
        let mut place = at;
        while !rest.is_empty() {
            // Blocks lie at multiples of their size on the target.
            let len = (sparse - place % sparse).min(rest.len() as u64);
            let (block, tail) = rest.split_at(len as usize);
            let zero = is_zero(block);
            match runs.last_mut() {
                Some(run) if run.1 == zero => run.0 += len,
                _ => runs.push((len, zero)),
            }
            (rest, place) = (tail, place + len);
        }
        runs
    }

    fn write(&self, piece: &Piece, runs: &[(u64, bool)], buffer: &[u8]) -> Result<()> {
        let mut done = 0;
        for &(len, zero) in runs {
            let to = piece.to + done;
            if !zero {
                if let Some(rate) = &self.rate {
                    rate.wait(len);
                }
                let bytes = buffer.get(done as usize..(done + len) as usize).unwrap_or_default();
                self.store(to, bytes)?;
            } else if !self.target_is_zero || self.over_backing {
                self.target.write_zeroes(to, len, true)?;
            }
            done += len;
        }
        Ok(())
    }
}

impl Copy<'_> {
    /// Copies a piece without reading it. False if it has to be read.
    fn hand_over(&self, piece: &Piece) -> Result<bool> {
        let source = self.sources.get(piece.source).ok_or_else(|| anyhow!("no such source"))?;
        let Some(from) = source.disk.transfer(false, piece.from, piece.len) else { return Ok(false) };
        let Some(to) = self.target.transfer(true, piece.to, piece.len) else { return Ok(false) };
        if let Some(rate) = &self.rate {
            rate.wait(piece.len);
        }
        Ok(from.copy_to(to, piece.len))
    }

    fn store(&self, to: u64, bytes: &[u8]) -> Result<()> {
        let Some(image) = self.compressed else { return Ok(self.target.write(to, bytes)?) };
        let cluster = image.info().cluster_size;
        for (place, part) in (to..).step_by(cluster as usize).zip(bytes.chunks(cluster as usize)) {
            image.write_compressed(place, part)?;
        }
        Ok(())
    }
}

/// Whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // Compared by `memcmp`, which is many times faster than a loop over bytes.
    const ZEROES: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROES.len()).all(|chunk| Some(chunk) == ZEROES.get(..chunk.len()))
}
