//! Memory in a stream: runs of pages that are not zero.
//!
//! Payload of a section: offset in the memory file (64 bits), bytes (64 bits), the bytes, packed.

use super::stream::{Reader, Section, StreamError, Writer, pack, unpack};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;

const MEMORY: [u8; 4] = *b"memo";
pub(super) const PAGE: usize = 4096;
/// Bytes of a run, at most.
pub(super) const RUN: u64 = 1 << 20;

/// Writes what is not zero of the first `size` bytes of a memory file.
pub fn save_memory<W: Write>(file: &File, size: u64, out: &mut Writer<W>) -> Result<(), StreamError> {
    let mut buffer = vec![0; RUN as usize];
    let mut at = 0;
    while let Some((start, end)) = data(file, at, size)? {
        at = start;
        while at < end {
            let len = (end - at).min(RUN);
            let Some(bytes) = buffer.get_mut(..len as usize) else { break };
            file.read_exact_at(bytes, at)?;
            save_runs(at, bytes, out)?;
            at += len;
        }
    }
    Ok(())
}

/// The next stretch from `at` on that the host holds anything for.
pub(super) fn data(file: &File, at: u64, size: u64) -> Result<Option<(u64, u64)>, StreamError> {
    let host = |errno: Errno| StreamError::Host(errno.into());
    if at >= size {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        // Only holes from here on.
        Err(Errno::NXIO) => return Ok(None),
        Err(errno) => return Err(host(errno)),
    };
    let end = seek(file, SeekFrom::Hole(start)).map_err(host)?;
    Ok((start < size).then_some((start, end.min(size))))
}

/// Writes the pages among `bytes`, which begin at `at`, that are not zero.
fn save_runs<W: Write>(at: u64, bytes: &[u8], out: &mut Writer<W>) -> Result<(), StreamError> {
    let mut run: Option<(usize, usize)> = None;
    for (index, page) in bytes.chunks(PAGE).enumerate() {
        let start = index * PAGE;
        let end = start + page.len();
        match (page.iter().any(|byte| *byte != 0), &mut run) {
            (true, Some((_, until))) => *until = end,
            (true, None) => run = Some((start, end)),
            (false, _) => save_run(at, bytes, run.take(), out)?,
        }
    }
    save_run(at, bytes, run, out)
}

/// Writes the part of `bytes`, which begin at `at`, that `run` says, if it says any.
pub(super) fn save_run<W: Write>(
    at: u64,
    bytes: &[u8],
    run: Option<(usize, usize)>,
    out: &mut Writer<W>,
) -> Result<(), StreamError> {
    let Some((start, bytes)) = run.and_then(|(start, end)| Some((start, bytes.get(start..end)?))) else {
        return Ok(());
    };
    let mut payload = (at + start as u64).to_le_bytes().to_vec();
    payload.extend((bytes.len() as u64).to_le_bytes());
    payload.extend(pack(bytes)?);
    out.section(MEMORY, &payload)
}

/// The run in a section's payload: its offset, and its bytes.
fn run(payload: &[u8], size: u64) -> Result<(u64, Vec<u8>), StreamError> {
    let wrong = |why| StreamError::malformed(MEMORY, why);
    let (offset, rest) = payload.split_first_chunk().ok_or_else(|| wrong("it has no address"))?;
    let (len, packed) = rest.split_first_chunk().ok_or_else(|| wrong("it has no length"))?;
    let (offset, len) = (u64::from_le_bytes(*offset), u64::from_le_bytes(*len));
    if len > RUN || offset.checked_add(len).is_none_or(|end| end > size) {
        return Err(wrong("it lies outside of memory"));
    }
    let bytes = unpack(MEMORY, packed)?;
    match bytes.len() as u64 == len {
        true => Ok((offset, bytes)),
        false => Err(wrong("its length is wrong")),
    }
}

/// Calls `f` with each run, by its offset, to the end of the stream.
pub(super) fn each<R: Read>(
    reader: &mut Reader<R>,
    size: u64,
    mut f: impl FnMut(u64, &[u8]) -> Result<(), StreamError>,
) -> Result<(), StreamError> {
    while let Some((kind, payload)) = reader.next()? {
        if kind != MEMORY {
            return Err(StreamError::malformed(kind, "only memory should be there"));
        }
        let (offset, bytes) = run(&payload, size)?;
        f(offset, &bytes)?;
    }
    Ok(())
}

/// Fills the first `size` bytes of a memory file from the runs that come next, in the order in which they come; the section
/// behind them.
pub(super) fn receive<R: Read>(reader: &mut Reader<R>, file: &File, size: u64) -> Result<Section, StreamError> {
    clear(file, size)?;
    while let Some((kind, payload)) = reader.next()? {
        if kind != MEMORY {
            return Ok((kind, payload));
        }
        let (offset, bytes) = run(&payload, size)?;
        file.write_all_at(&bytes, offset)?;
    }
    Err(StreamError::Truncated)
}

/// Fills the first `size` bytes of a memory file from a stream, which was read before.
pub fn load_memory(input: impl Read, file: &File, size: u64) -> Result<(), StreamError> {
    let mut reader = Reader::new(input)?;
    for kind in [super::MACHINE, super::CLOCK, super::PROCESSORS, super::DEVICES] {
        reader.expect(kind)?;
    }
    clear(file, size)?;
    each(&mut reader, size, |offset, bytes| Ok(file.write_all_at(bytes, offset)?))
}

/// Makes all zero.
fn clear(file: &File, size: u64) -> Result<(), StreamError> {
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    if fallocate(file, hole, 0, size).is_ok() {
        return Ok(());
    }
    // A file system that has no holes.
    let zeroes = vec![0; RUN as usize];
    let mut at = 0;
    while at < size {
        let len = (size - at).min(RUN);
        file.write_all_at(zeroes.get(..len as usize).unwrap_or(&zeroes), at)?;
        at += len;
    }
    Ok(())
}
