//! What a command needs of the disk, step by step.

use super::{Answer, Sense};
use crate::ranges;
use crate::services::{DiskBuffer, DiskDone, DiskError, DiskRequest, Dma, GuestRange};
use serde::{Deserialize, Serialize};

/// Bytes that go through a buffer of ours at once.
const CHUNK: u64 = 1 << 20;

/// A step. Offsets and lengths are in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Step {
    /// To the driver.
    Read { offset: u64, len: u64 },
    /// From the driver.
    Write { offset: u64, len: u64 },
    /// Read, and thrown away.
    Verify { offset: u64, len: u64 },
    /// Read, and compared with what the driver gave from `at` on.
    Compare { offset: u64, len: u64, at: u64 },
    /// Needed no longer.
    Discard { offset: u64, len: u64 },
    /// Zeros.
    Zero { offset: u64, len: u64, unmap: bool },
    /// The same block over and over.
    Fill { offset: u64, len: u64, block: Vec<u8> },
    /// Durable.
    Flush,
}

/// What follows the end of a request.
pub(crate) enum Next {
    /// More of the same step.
    Again,
    /// The next step.
    Over,
    /// The command fails.
    Failed(Sense),
}

/// The steps of a command, with blocks of `block` bytes; `None` for one that needs no disk.
pub(crate) fn of(answer: &Answer, block: u64) -> Option<Vec<Step>> {
    let bytes = |first: &u64, count: &u64| (first.saturating_mul(block), count.saturating_mul(block));
    Some(match answer {
        Answer::Done | Answer::Data(_) | Answer::Parameters(_) | Answer::Check(_) => return None,
        Answer::Read { first, count } => {
            let (offset, len) = bytes(first, count);
            vec![Step::Read { offset, len }]
        }
        Answer::Write { first, count, durable, verify } => {
            let (offset, len) = bytes(first, count);
            let mut steps = vec![Step::Write { offset, len }];
            steps.extend((*durable || *verify).then_some(Step::Flush));
            steps.extend(verify.then_some(Step::Verify { offset, len }));
            steps
        }
        Answer::Verify { first, count } => {
            let (offset, len) = bytes(first, count);
            vec![Step::Verify { offset, len }]
        }
        Answer::Compare { first, count } => {
            let (offset, len) = bytes(first, count);
            vec![Step::Compare { offset, len, at: 0 }]
        }
        Answer::Discard(stretches) => stretches
            .iter()
            .map(|(first, count)| {
                let (offset, len) = bytes(first, count);
                Step::Discard { offset, len }
            })
            .collect(),
        Answer::Zero { first, count, unmap } => {
            let (offset, len) = bytes(first, count);
            vec![Step::Zero { offset, len, unmap: *unmap }]
        }
        Answer::Fill { first, count, block } => {
            let (offset, len) = bytes(first, count);
            vec![Step::Fill { offset, len, block: block.clone() }]
        }
        Answer::Flush => vec![Step::Flush],
    })
}

/// Bytes that a command moves: to the driver, and from it.
pub(crate) fn moves(steps: &[Step]) -> (u64, u64) {
    steps.iter().fold((0, 0), |(to, from), step| match step {
        Step::Read { len, .. } => (to + len, from),
        Step::Write { len, .. } | Step::Compare { len, .. } => (to, from + len),
        _ => (to, from),
    })
}

impl Step {
    /// The disk's part of it, with the driver's room and data.
    pub fn request(&self, room: &[GuestRange], data: &[GuestRange]) -> DiskRequest {
        let own = |len: u64| DiskBuffer::Own(vec![0; len.min(CHUNK) as usize]);
        match self {
            Step::Read { offset, len } => {
                DiskRequest::Read { offset: *offset, buffer: DiskBuffer::Guest(ranges::first(room, *len)) }
            }
            Step::Write { offset, len } => {
                DiskRequest::Write { offset: *offset, buffer: DiskBuffer::Guest(ranges::first(data, *len)) }
            }
            Step::Verify { offset, len } | Step::Compare { offset, len, .. } => {
                DiskRequest::Read { offset: *offset, buffer: own(*len) }
            }
            Step::Discard { offset, len } => DiskRequest::Discard { offset: *offset, len: *len },
            Step::Zero { offset, len, unmap } => DiskRequest::WriteZeroes { offset: *offset, len: *len, unmap: *unmap },
            Step::Fill { offset, len, block } => {
                let bytes = block.iter().copied().cycle().take((*len).min(CHUNK) as usize).collect();
                DiskRequest::Write { offset: *offset, buffer: DiskBuffer::Own(bytes) }
            }
            Step::Flush => DiskRequest::Flush,
        }
    }

    /// The disk has done its part; `data` is what the driver gave.
    pub fn done(&mut self, done: DiskDone, data: &[GuestRange], dma: &dyn Dma) -> Next {
        if let Err(error) = done.result {
            return Next::Failed(self.sense(error));
        }
        match self {
            Step::Verify { offset, len } | Step::Fill { offset, len, .. } => advance(offset, len, CHUNK),
            Step::Compare { offset, len, at } => {
                let now = (*len).min(CHUNK);
                if done.bytes != ranges::load(dma, &ranges::after(data, *at), now) {
                    return Next::Failed(Sense::DIFFERENT);
                }
                *at += now;
                advance(offset, len, CHUNK)
            }
            _ => Next::Over,
        }
    }

    /// Bytes that it needs of the host before the disk can do its next part of up to `most` bytes.
    pub fn needs(&self, most: u64) -> u64 {
        match self {
            Step::Write { len, .. } | Step::Compare { len, .. } => (*len).min(most),
            _ => 0,
        }
    }

    /// The disk's next part of it for a carrier that has the data itself: `given` by the host, or up to `most` bytes for
    /// it.
    pub fn buffered_request(&self, given: &[u8], most: u64) -> DiskRequest {
        let buffer = |len: u64| DiskBuffer::Own(vec![0; len as usize]);
        match self {
            Step::Read { offset, len } => DiskRequest::Read { offset: *offset, buffer: buffer((*len).min(most)) },
            Step::Compare { offset, .. } => DiskRequest::Read { offset: *offset, buffer: buffer(given.len() as u64) },
            Step::Write { offset, .. } => {
                DiskRequest::Write { offset: *offset, buffer: DiskBuffer::Own(given.to_vec()) }
            }
            _ => self.request(&[], &[]),
        }
    }

    /// The disk has done its part for such a carrier; what it read is in `done` still.
    pub fn buffered_done(&mut self, done: &DiskDone, given: &[u8], most: u64) -> Next {
        if let Err(error) = done.result {
            return Next::Failed(self.sense(error));
        }
        match self {
            Step::Read { offset, len } => advance(offset, len, most),
            Step::Write { offset, len } => advance(offset, len, given.len() as u64),
            Step::Compare { .. } if done.bytes != given => Next::Failed(Sense::DIFFERENT),
            Step::Compare { offset, len, .. } => advance(offset, len, given.len() as u64),
            Step::Verify { offset, len } | Step::Fill { offset, len, .. } => advance(offset, len, CHUNK),
            _ => Next::Over,
        }
    }

    fn sense(&self, error: DiskError) -> Sense {
        match (error, self) {
            (DiskError::ReadOnly, _) => Sense::PROTECTED,
            (DiskError::OutOfRange, _) => Sense::BEYOND_END,
            (DiskError::Host, Step::Read { .. } | Step::Verify { .. } | Step::Compare { .. }) => Sense::UNREADABLE,
            (DiskError::Host, _) => Sense::UNWRITABLE,
        }
    }
}

/// A chunk of up to `most` bytes is done.
fn advance(offset: &mut u64, len: &mut u64, most: u64) -> Next {
    let now = (*len).min(most);
    (*offset, *len) = (*offset + now, *len - now);
    if *len == 0 { Next::Over } else { Next::Again }
}
