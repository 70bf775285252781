//! A file in memory that records what is done to it, and can lose what was not flushed.

use crate::block::scratch::Dice;
use crate::block::vectors::gather;
use crate::block::{BlockError, Result, Storage};
use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// One change of the file.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Write(u64, Vec<u8>),
    SetLen(u64),
    /// At least so long.
    Grow(u64),
    Zero(u64, u64),
    /// Made durable what was done in this part of the file by so many steps.
    Flush(usize, Range<u64>),
}

impl Step {
    /// Where the file is changed.
    fn place(&self) -> u64 {
        match self {
            Step::Write(offset, _) | Step::Zero(offset, _) => *offset,
            Step::SetLen(_) | Step::Grow(_) | Step::Flush(..) => 0,
        }
    }
}

#[derive(Default)]
struct Content {
    bytes: Vec<u8>,
    steps: Vec<Step>,
    /// Writes that still succeed; none: all.
    budget: Option<u64>,
    /// How long a read takes to begin: room for races.
    delay: Duration,
    /// How long a flush takes.
    flush_delay: Duration,
    /// Flushes fail.
    flush_fails: bool,
}

/// No file of the tests is larger; hostile images ask for exabytes.
const LARGEST: u64 = 256 << 20;

/// The file.
#[derive(Default)]
pub(super) struct Memory(Mutex<Content>);

impl Memory {
    pub(super) fn with(bytes: Vec<u8>) -> Memory {
        Memory(Mutex::new(Content { bytes, ..Content::default() }))
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many steps were recorded so far.
    pub(super) fn steps(&self) -> usize {
        self.content().steps.len()
    }

    pub(super) fn recorded(&self) -> Vec<Step> {
        self.content().steps.clone()
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.content().bytes.clone()
    }

    /// Lets `writes` more writes succeed and no other, as a full host disk does.
    pub(super) fn fail_after(&self, writes: Option<u64>) {
        self.content().budget = writes;
    }

    /// Lets every read wait before it looks at the bytes.
    pub(super) fn delay_reads(&self, delay: Duration) {
        self.content().delay = delay;
    }

    /// Lets every flush take so long.
    pub(super) fn delay_flushes(&self, delay: Duration) {
        self.content().flush_delay = delay;
    }

    /// Lets flushes fail with an error of the medium.
    pub(super) fn fail_flushes(&self, fail: bool) {
        self.content().flush_fails = fail;
    }

    /// Whether a change up to `end` is possible.
    fn pay(&self, end: u64) -> Result<()> {
        let full = || BlockError::Io {
            name: "memory".to_string(),
            action: "cannot write".to_string(),
            source: io::Error::from(io::ErrorKind::StorageFull),
        };
        if end > LARGEST {
            return Err(full());
        }
        match &mut self.content().budget {
            Some(0) => Err(full()),
            Some(n) => {
                *n -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn flush_part(&self, part: Range<u64>) -> Result<()> {
        let (there, delay) = {
            let content = self.content();
            if content.flush_fails {
                let source = io::Error::from_raw_os_error(libc::EIO);
                return Err(BlockError::Io { name: "memory".into(), action: "cannot flush".into(), source });
            }
            (content.steps.len(), content.flush_delay)
        };
        if !delay.is_zero() {
            std::thread::sleep(delay);
        }
        self.change(Step::Flush(there, part));
        Ok(())
    }

    fn change(&self, step: Step) {
        let mut content = self.content();
        apply(&mut content.bytes, &step);
        content.steps.push(step);
    }
}

fn apply(bytes: &mut Vec<u8>, step: &Step) {
    match step {
        Step::Write(offset, data) => {
            let (start, end) = (*offset as usize, *offset as usize + data.len());
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[start..end].copy_from_slice(data);
        }
        Step::SetLen(len) => bytes.resize(*len as usize, 0),
        Step::Grow(len) => bytes.resize(bytes.len().max(*len as usize), 0),
        Step::Zero(offset, len) => {
            let end = bytes.len().min(offset.saturating_add(*len) as usize);
            let start = end.min(*offset as usize);
            bytes[start..end].fill(0);
        }
        Step::Flush(..) => {}
    }
}

/// The file after a power cut that let `steps` begin: everything up to the last flush is there; of
/// what follows, any part, in any order, and a write may be torn between sectors.
pub(super) fn after_cut(steps: &[Step], dice: &mut Dice) -> Vec<u8> {
    let flushes: Vec<_> =
        steps.iter().filter_map(|s| if let Step::Flush(n, part) = s { Some((n, part)) } else { None }).collect();
    let safe =
        |(index, step): (usize, &Step)| flushes.iter().any(|(n, part)| index < **n && part.contains(&step.place()));
    let mut bytes = Vec::new();
    let mut left: Vec<&Step> = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        if safe((index, step)) {
            apply(&mut bytes, step);
        } else {
            left.push(step);
        }
    }
    let everything = dice.below(4) == 0;
    while !left.is_empty() {
        let near = (left.len() as u64).min(8);
        let step = left.remove(if everything { 0 } else { dice.below(near) as usize });
        match (step, if everything { 0 } else { dice.below(4) }) {
            (_, 1) => {}
            (Step::Write(offset, data), 2) if data.len() > 512 => {
                let cut = dice.below(data.len() as u64 / 512) as usize * 512;
                let part = if dice.below(2) == 0 { 0..cut } else { cut..data.len() };
                apply(&mut bytes, &Step::Write(offset + part.start as u64, data[part].to_vec()));
            }
            (step, _) => apply(&mut bytes, step),
        }
    }
    bytes
}

impl Storage for Memory {
    fn name(&self) -> &str {
        "memory"
    }

    fn len(&self) -> u64 {
        self.content().bytes.len() as u64
    }

    fn readv(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<()> {
        let delay = self.content().delay;
        if !delay.is_zero() {
            std::thread::sleep(delay);
        }
        let content = self.content();
        let mut at = offset.min(LARGEST) as usize;
        for buf in bufs {
            let there = content.bytes.get(at.min(content.bytes.len())..).unwrap_or_default();
            let len = there.len().min(buf.len());
            buf[..len].copy_from_slice(&there[..len]);
            buf[len..].fill(0);
            at += buf.len();
        }
        Ok(())
    }

    fn writev(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()> {
        self.pay(offset.saturating_add(crate::block::total(bufs)))?;
        self.change(Step::Write(offset, gather(bufs)));
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.flush_part(0..u64::MAX)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.pay(len)?;
        self.change(Step::SetLen(len));
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64, _punch: bool) -> Result<()> {
        self.pay(offset.saturating_add(len))?;
        self.change(Step::Write(offset, vec![0; len as usize]));
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> Result<()> {
        self.change(Step::Zero(offset, len));
        Ok(())
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        self.pay(offset.saturating_add(len))?;
        self.change(Step::Grow(offset + len));
        Ok(())
    }

    fn data_at(&self, _offset: u64) -> Result<(bool, u64)> {
        Ok((true, self.len()))
    }
}

/// A part of a recorded file that is a file of its own, so that two files have one record.
pub(super) struct Part {
    memory: Arc<Memory>,
    part: Range<u64>,
    len: AtomicU64,
}

impl Part {
    pub(super) fn new(memory: &Arc<Memory>, part: Range<u64>, len: u64) -> Part {
        Part { memory: memory.clone(), part, len: len.into() }
    }

    fn grown(&self, end: u64) {
        assert!(end <= self.part.end - self.part.start, "the test's file is too small");
        self.len.fetch_max(end, Ordering::SeqCst);
    }
}

impl Storage for Part {
    fn name(&self) -> &str {
        "part"
    }

    fn len(&self) -> u64 {
        self.len.load(Ordering::SeqCst)
    }

    fn readv(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<()> {
        self.memory.readv(self.part.start + offset, bufs)
    }

    fn writev(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()> {
        self.memory.writev(self.part.start + offset, bufs)?;
        self.grown(offset + crate::block::total(bufs));
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.memory.flush_part(self.part.clone())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.memory.punch(self.part.start + len, self.part.end - self.part.start - len)?;
        self.len.store(len, Ordering::SeqCst);
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64, punch: bool) -> Result<()> {
        self.memory.zero(self.part.start + offset, len, punch)?;
        self.grown(offset + len);
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> Result<()> {
        self.memory.punch(self.part.start + offset, len)
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        self.grown(offset + len);
        Ok(())
    }

    fn data_at(&self, _offset: u64) -> Result<(bool, u64)> {
        Ok((true, self.len()))
    }
}
