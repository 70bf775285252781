//! Copies of a disk that are made while the guest writes to it.

use brolga::block::drive::Watcher;
use brolga::block::{BlockBackend, BlockError, Content, Result};
use brolga_devices::wire::locked;
use std::sync::{Arc, Mutex};

/// Bytes copied at once.
pub const CHUNK: u64 = 1 << 16;

/// Chunks of a disk, each in or out.
struct Chunks {
    words: Vec<u64>,
    count: u64,
    /// How many are in.
    inside: u64,
}

impl Chunks {
    fn new(len: u64) -> Self {
        let count = len.div_ceil(CHUNK);
        Self { words: vec![0; count.div_ceil(64) as usize], count, inside: 0 }
    }

    fn set(&mut self, chunk: u64, inside: bool) -> bool {
        let Some(word) = self.words.get_mut((chunk / 64) as usize).filter(|_| chunk < self.count) else { return false };
        let (bit, before) = (1 << (chunk % 64), *word);
        *word = if inside { before | bit } else { before & !bit };
        let changed = *word != before;
        match (changed, inside) {
            (true, true) => self.inside += 1,
            (true, false) => self.inside -= 1,
            _ => {}
        }
        changed
    }

    fn has(&self, chunk: u64) -> bool {
        self.words.get((chunk / 64) as usize).is_some_and(|word| word >> (chunk % 64) & 1 != 0)
    }

    /// The first one from `from` on that is in, or else from the beginning.
    fn next(&self, from: u64) -> Option<u64> {
        let find = |range: std::ops::Range<u64>| {
            let mut at = range.start;
            while at < range.end {
                let word = self.words.get((at / 64) as usize).copied().unwrap_or(0) >> (at % 64);
                if word != 0 {
                    let found = at + u64::from(word.trailing_zeros());
                    return (found < range.end).then_some(found);
                }
                at = (at / 64 + 1) * 64;
            }
            None
        };
        find(from.min(self.count)..self.count).or_else(|| find(0..from.min(self.count)))
    }
}

/// The chunks that some of `len` bytes from `offset` on lie in.
fn chunks_of(offset: u64, len: u64) -> std::ops::Range<u64> {
    offset / CHUNK..offset.saturating_add(len).div_ceil(CHUNK)
}

/// Copies one chunk; bytes.
fn copy(source: &dyn BlockBackend, target: &dyn BlockBackend, chunk: u64) -> Result<u64> {
    let offset = chunk * CHUNK;
    let len = CHUNK.min(source.len().saturating_sub(offset));
    if len == 0 {
        return Ok(0);
    }
    let extent = source.map(offset, len)?;
    if extent.len >= len && extent.content != Content::Data {
        target.write_zeroes(offset, len, true)?;
        return Ok(len);
    }
    let mut bytes = vec![0; len as usize];
    source.read(offset, &mut bytes)?;
    match bytes.iter().any(|byte| *byte != 0) {
        true => target.write(offset, &bytes)?,
        false => target.write_zeroes(offset, len, true)?,
    }
    Ok(len)
}

/// A copy of what a disk is at a moment: what is about to change is copied before.
pub struct Backup {
    source: Arc<dyn BlockBackend>,
    target: Arc<dyn BlockBackend>,
    /// What is to be copied yet. Held while a chunk is copied: it is copied once, and nobody changes it meanwhile.
    left: Mutex<Chunks>,
    failed: Mutex<Option<BlockError>>,
}

impl Backup {
    /// A backup of the chunks that `wanted` says.
    pub fn new(
        source: Arc<dyn BlockBackend>,
        target: Arc<dyn BlockBackend>,
        wanted: &dyn Fn(u64) -> bool,
    ) -> Arc<Self> {
        let mut left = Chunks::new(source.len());
        for chunk in (0..left.count).filter(|chunk| wanted(*chunk)) {
            left.set(chunk, true);
        }
        Arc::new(Self { source, target, left: Mutex::new(left), failed: Mutex::default() })
    }

    /// Bytes that are to be copied yet.
    pub fn left(&self) -> u64 {
        locked(&self.left).inside * CHUNK
    }

    /// Copies one chunk more; its bytes. `None`: there are none.
    pub fn step(&self) -> Result<Option<u64>> {
        let mut left = locked(&self.left);
        if let Some(error) = locked(&self.failed).take() {
            return Err(error);
        }
        let Some(chunk) = left.next(0) else { return Ok(None) };
        copy(&*self.source, &*self.target, chunk)?;
        left.set(chunk, false);
        Ok(Some(CHUNK))
    }
}

impl Watcher for Backup {
    fn before(&self, offset: u64, len: u64) {
        for chunk in chunks_of(offset, len) {
            let mut left = locked(&self.left);
            if left.has(chunk) {
                // The guest goes on; the backup is worth nothing then, and its job says so.
                if let Err(error) = copy(&*self.source, &*self.target, chunk) {
                    locked(&self.failed).get_or_insert(error);
                }
                left.set(chunk, false);
            }
        }
    }

    fn after(&self, _offset: u64, _len: u64) {}
}

/// A copy that follows the disk.
pub struct Mirror {
    source: Arc<dyn BlockBackend>,
    target: Arc<dyn BlockBackend>,
    /// What differs.
    dirty: Mutex<(Chunks, u64)>,
}

impl Mirror {
    /// A mirror that has the chunks that `wanted` says to copy first.
    pub fn new(
        source: Arc<dyn BlockBackend>,
        target: Arc<dyn BlockBackend>,
        wanted: &dyn Fn(u64) -> bool,
    ) -> Arc<Self> {
        let mut dirty = Chunks::new(source.len());
        for chunk in (0..dirty.count).filter(|chunk| wanted(*chunk)) {
            dirty.set(chunk, true);
        }
        Arc::new(Self { source, target, dirty: Mutex::new((dirty, 0)) })
    }

    /// Bytes that differ.
    pub fn left(&self) -> u64 {
        locked(&self.dirty).0.inside * CHUNK
    }

    /// Copies one chunk more; its bytes. `None`: there is none.
    pub fn step(&self) -> Result<Option<u64>> {
        let chunk = {
            let (dirty, from) = &mut *locked(&self.dirty);
            let Some(chunk) = dirty.next(*from) else { return Ok(None) };
            // Before it is read: what changes meanwhile is copied again.
            dirty.set(chunk, false);
            *from = chunk + 1;
            chunk
        };
        match copy(&*self.source, &*self.target, chunk) {
            Ok(_) => Ok(Some(CHUNK)),
            Err(error) => {
                locked(&self.dirty).0.set(chunk, true);
                Err(error)
            }
        }
    }
}

impl Watcher for Mirror {
    fn before(&self, _offset: u64, _len: u64) {}

    fn after(&self, offset: u64, len: u64) {
        let dirty = &mut locked(&self.dirty).0;
        for chunk in chunks_of(offset, len) {
            dirty.set(chunk, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_counted_and_found() {
        let mut chunks = Chunks::new(CHUNK * 200 + 1);
        assert_eq!((chunks.count, chunks.next(0)), (201, None));
        for chunk in [3, 64, 200, 3] {
            chunks.set(chunk, true);
        }
        assert!(!chunks.set(201, true));
        assert_eq!((chunks.inside, chunks.next(0), chunks.next(4), chunks.next(65)), (3, Some(3), Some(64), Some(200)));
        chunks.set(200, false);
        assert_eq!((chunks.next(65), chunks.has(3), chunks.has(4)), (Some(3), true, false));
        assert_eq!(chunks_of(CHUNK - 1, 2), 0..2);
        assert_eq!(chunks_of(CHUNK, 0), 1..1);
    }
}
