//! Memory that is sent while the guest writes to it.
//!
//! Nothing watches the guest's stores: what was sent of each page is remembered by a hash of 128 bits, and the next pass sends
//! the pages whose hash is another one. So no way of writing memory can be missed (processors, devices, the host's own
//! transfers), nothing is paid for while no machine moves, and a pass costs as much as reading the memory that is in use.
//! A page of zeroes has no hash.

use super::memory::{PAGE, RUN, data, save_run};
use super::stream::{StreamError, Writer};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use xxhash_rust::xxh3::xxh3_128_with_seed;

/// The hash of a page that is all zeroes, and of one that was not sent yet: a destination begins with zeroes.
const ZERO: u128 = 0;

/// What a pass came to, for those who look at it meanwhile.
#[derive(Debug, Default)]
pub struct Pass {
    /// Bytes of memory that are to be looked at yet.
    pub remaining: AtomicU64,
    /// Pages that were sent, of all passes.
    pub sent: AtomicU64,
    /// Pages that were found to be zero, of the first pass.
    pub zero: AtomicU64,
}

/// The memory of a machine that moves.
pub struct MemoryCopy {
    /// By page.
    hashes: Vec<u128>,
    /// A guest cannot know it.
    seed: u64,
    buffer: Vec<u8>,
    first: bool,
}

impl MemoryCopy {
    /// Of so many bytes, nothing was sent yet.
    pub fn new(size: u64, seed: u64) -> Self {
        let pages = size.div_ceil(PAGE as u64) as usize;
        Self { hashes: vec![ZERO; pages], seed, buffer: vec![0; RUN as usize], first: true }
    }

    /// Sends what changed since the last pass; how many pages that were.
    pub fn pass<W: Write>(&mut self, file: &File, out: &mut Writer<W>, told: &Pass) -> Result<u64, StreamError> {
        let size = (self.hashes.len() * PAGE) as u64;
        let (mut at, mut sent) = (0, 0);
        while at < size {
            told.remaining.store(size - at, Ordering::Relaxed);
            let (start, end) = data(file, at, size)?.unwrap_or((size, size));
            sent += self.emptied(at, start, out, told)?;
            at = start;
            while at < end {
                let len = (end - at).min(RUN);
                sent += self.chunk(file, at, len as usize, out, told)?;
                at += len;
                told.remaining.store(size - at, Ordering::Relaxed);
            }
        }
        self.first = false;
        told.remaining.store(0, Ordering::Relaxed);
        Ok(sent)
    }

    /// The host holds nothing from `at` to `end`: pages that held something are zero now.
    fn emptied<W: Write>(&mut self, at: u64, end: u64, out: &mut Writer<W>, told: &Pass) -> Result<u64, StreamError> {
        if self.first {
            told.zero.fetch_add((end - at) / PAGE as u64, Ordering::Relaxed);
            return Ok(0);
        }
        let (mut sent, zeroes) = (0, [0; PAGE]);
        for page in at / PAGE as u64..end / PAGE as u64 {
            let Some(hash) = self.hashes.get_mut(page as usize).filter(|hash| **hash != ZERO) else { continue };
            *hash = ZERO;
            save_run(page * PAGE as u64, &zeroes, Some((0, PAGE)), out)?;
            sent += 1;
        }
        told.sent.fetch_add(sent, Ordering::Relaxed);
        Ok(sent)
    }

    /// Looks at `len` bytes at `at`, at most a run's.
    fn chunk<W: Write>(
        &mut self,
        file: &File,
        at: u64,
        len: usize,
        out: &mut Writer<W>,
        told: &Pass,
    ) -> Result<u64, StreamError> {
        let Self { hashes, seed, buffer, first } = self;
        let Some(bytes) = buffer.get_mut(..len) else { return Ok(0) };
        file.read_exact_at(bytes, at)?;
        let (mut run, mut sent, mut zero) = (None, 0, 0);
        let known = hashes.iter_mut().skip((at / PAGE as u64) as usize);
        for (index, (page, known)) in bytes.chunks(PAGE).zip(known).enumerate() {
            let hash = if is_zero(page) { ZERO } else { xxh3_128_with_seed(page, *seed).max(1) };
            zero += u64::from(hash == ZERO);
            let (start, end) = (index * PAGE, index * PAGE + page.len());
            match (std::mem::replace(known, hash) != hash, &mut run) {
                (true, Some((_, until))) => *until = end,
                (true, None) => run = Some((start, end)),
                (false, _) => save_run(at, bytes, run.take(), out)?,
            }
            sent += u64::from(run.is_some());
        }
        save_run(at, bytes, run, out)?;
        told.sent.fetch_add(sent, Ordering::Relaxed);
        if *first {
            told.zero.fetch_add(zero, Ordering::Relaxed);
        }
        Ok(sent)
    }
}

fn is_zero(page: &[u8]) -> bool {
    page.iter().all(|byte| *byte == 0)
}
