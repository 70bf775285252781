//! Pieces of guest RAM that a host call reads or fills in place: disk and network requests without
//! a copy.

use super::ram::Ram;
use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;

/// A list of ranges of guest RAM, in the order in which their bytes follow each other in a request.
///
/// The guest may change the bytes at any time, also while the host reads or fills them: use them
/// for system calls and for copying bytes, and never rely on reading the same value twice. After the
/// host filled a buffer, tell the engine of its ranges (`Engine::memory_written`).
pub struct RamBuffer {
    ram: Arc<Ram>,
    /// Offset from the start of the mapping, and length, of pieces that lie within it.
    parts: Vec<(usize, usize)>,
}

impl RamBuffer {
    /// The buffer made of `ranges` (guest-physical address and bytes). None if some byte is not RAM, or, if the host
    /// is to `fill` it, if some byte is ROM or is in it twice: such requests must be copied.
    pub fn new(ram: Arc<Ram>, ranges: &[(u64, u64)], fill: bool) -> Option<RamBuffer> {
        let mut parts: Vec<(usize, usize)> = Vec::with_capacity(ranges.len());
        for &(gpa, len) in ranges {
            let (mut at, end) = (gpa, gpa.checked_add(len)?);
            while at < end {
                let region = ram.region_of(at).filter(|r| !(fill && r.rom))?;
                let within = at - region.gpa;
                let here = (region.size - within).min(end - at);
                parts.push(((region.offset + within) as usize, here as usize));
                at += here;
            }
        }
        if fill {
            let mut sorted = parts.clone();
            sorted.sort_unstable();
            if sorted.windows(2).any(|pair| pair[0].0 + pair[0].1 > pair[1].0) {
                return None;
            }
        }
        Some(RamBuffer { ram, parts })
    }

    /// Bytes in all pieces.
    pub fn len(&self) -> u64 {
        self.parts.iter().map(|&(_, len)| len as u64).sum()
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The pieces, for the host to read from.
    pub fn slices(&self) -> Vec<IoSlice<'_>> {
        let slice = |&(offset, len): &(usize, usize)| {
            // SAFETY: `new` took the range from a region, which lies within the mapping; `ram` keeps it mapped. That
            // the guest writes there meanwhile is what the type's documentation says; no code of ours does.
            IoSlice::new(unsafe { std::slice::from_raw_parts(self.ram.base().add(offset), len) })
        };
        self.parts.iter().map(slice).collect()
    }

    /// The pieces, for the host to fill. Only of a buffer that was made to be filled.
    pub fn slices_mut(&mut self) -> Vec<IoSliceMut<'_>> {
        let slice = |&(offset, len): &(usize, usize)| {
            // SAFETY: as in `slices`; the pieces do not overlap, which `new` saw to for buffers to be filled.
            IoSliceMut::new(unsafe { std::slice::from_raw_parts_mut(self.ram.base().add(offset), len) })
        };
        self.parts.iter().map(slice).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::ram::RamRegion;
    use super::*;

    fn ram() -> Arc<Ram> {
        let region = |gpa, offset, rom| RamRegion { gpa, size: 4096, offset, rom };
        let regions = vec![region(0, 8192, false), region(4096, 0, false), region(8192, 4096, true)];
        Arc::new(Ram::new(3 * 4096, regions).unwrap())
    }

    #[test]
    fn pieces_follow_the_regions() {
        let ram = ram();
        ram.write(4090, b"abcdefghijkl", false);
        let buffer = RamBuffer::new(ram.clone(), &[(4098, 4), (4094, 3)], false).unwrap();
        let bytes: Vec<u8> = buffer.slices().iter().flat_map(|s| s.to_vec()).collect();
        assert_eq!(bytes, b"ijklefg");
        let mut buffer = RamBuffer::new(ram.clone(), &[(4094, 4)], true).unwrap();
        assert_eq!((buffer.len(), buffer.slices_mut().len()), (4, 2));
        for (slice, value) in buffer.slices_mut().iter_mut().zip(1..) {
            slice.fill(value);
        }
        let mut found = [0; 6];
        ram.read(4093, &mut found);
        assert_eq!(found, [b'd', 1, 1, 2, 2, b'i']);
    }

    #[test]
    fn what_is_not_ram_is_refused() {
        let ram = ram();
        let make = |ranges: &[(u64, u64)], fill| RamBuffer::new(ram.clone(), ranges, fill);
        assert!(make(&[(8190, 4)], false).is_some(), "ROM can be read");
        assert!(make(&[(8190, 4)], true).is_none(), "but not filled");
        assert!(make(&[(12288, 1)], false).is_none());
        assert!(make(&[(u64::MAX, 2)], false).is_none());
        assert!(make(&[(0, 100), (99, 100)], true).is_none(), "one byte twice");
        assert!(make(&[(0, 100), (99, 100)], false).is_some());
        assert!(make(&[(100, 100), (0, 100)], true).is_some_and(|b| b.len() == 200));
        assert!(make(&[], true).is_some_and(|b| b.is_empty()));
    }
}
