//! Pieces of guest memory in a row, as requests have them.

use crate::services::{Dma, GuestRange};

/// Bytes in all.
pub(crate) fn total(ranges: &[GuestRange]) -> u64 {
    ranges.iter().fold(0u64, |sum, range| sum.saturating_add(range.len))
}

/// What follows the first `len` bytes.
pub(crate) fn after(ranges: &[GuestRange], len: u64) -> Vec<GuestRange> {
    let mut skip = len;
    let mut rest = Vec::new();
    for range in ranges {
        let now = range.len.min(skip);
        skip -= now;
        if now < range.len {
            rest.push(GuestRange { gpa: range.gpa.wrapping_add(now), len: range.len - now });
        }
    }
    rest
}

/// The first `len` bytes.
pub(crate) fn first(ranges: &[GuestRange], len: u64) -> Vec<GuestRange> {
    let mut left = len;
    let mut out = Vec::new();
    for range in ranges {
        let now = range.len.min(left);
        left -= now;
        if now != 0 {
            out.push(GuestRange { gpa: range.gpa, len: now });
        }
    }
    out
}

/// The first `len` bytes themselves; fewer if there are fewer.
pub(crate) fn load(dma: &dyn Dma, ranges: &[GuestRange], len: u64) -> Vec<u8> {
    let mut out = vec![0; total(ranges).min(len) as usize];
    let mut rest = out.as_mut_slice();
    for range in first(ranges, len) {
        let (now, later) = rest.split_at_mut((range.len as usize).min(rest.len()));
        dma.read(range.gpa, now);
        rest = later;
    }
    out
}

/// Puts `bytes` at the front; how many found room.
pub(crate) fn store(dma: &dyn Dma, ranges: &[GuestRange], bytes: &[u8]) -> u64 {
    let mut rest = bytes;
    for range in ranges {
        let (now, later) = rest.split_at(usize::try_from(range.len).unwrap_or(usize::MAX).min(rest.len()));
        dma.write(range.gpa, now);
        rest = later;
    }
    (bytes.len() - rest.len()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::FakeMemory;

    #[test]
    fn pieces_are_cut_where_asked() {
        let range = |gpa, len| GuestRange { gpa, len };
        let ranges = [range(0, 4), range(100, 0), range(10, 6)];
        assert_eq!(after(&ranges, 5), [range(11, 5)]);
        assert_eq!(first(&ranges, 5), [range(0, 4), range(10, 1)]);
        assert!(after(&ranges, 99).is_empty() && first(&ranges, 0).is_empty());
        let memory = FakeMemory::new(32);
        assert_eq!(store(&*memory, &ranges, b"abcdefghijkl"), 10);
        assert_eq!(load(&*memory, &ranges, 7), b"abcdefg");
        assert_eq!(load(&*memory, &after(&ranges, 4), 99), b"efghij");
        assert_eq!(total(&[range(0, u64::MAX), range(0, 1)]), u64::MAX);
    }
}
