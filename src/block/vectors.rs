//! Parts of scattered buffers.

use std::io::{IoSlice, IoSliceMut};

/// The bytes in all of `bufs`.
pub fn total(bufs: &[IoSlice<'_>]) -> u64 {
    bufs.iter().map(|b| b.len() as u64).sum()
}

/// The bytes in all of `bufs`.
pub fn total_mut(bufs: &[IoSliceMut<'_>]) -> u64 {
    bufs.iter().map(|b| b.len() as u64).sum()
}

/// `len` bytes of `bufs`, `start` bytes from their beginning; less if there are less.
pub fn slices<'a>(bufs: &'a [IoSlice<'_>], start: u64, len: u64) -> Vec<IoSlice<'a>> {
    let (mut skip, mut left) = (start, len);
    let mut part = Vec::new();
    for buf in bufs {
        let size = buf.len() as u64;
        if left == 0 {
            break;
        }
        if skip >= size {
            skip -= size;
            continue;
        }
        let take = left.min(size - skip);
        part.push(IoSlice::new(&buf[skip as usize..(skip + take) as usize]));
        (skip, left) = (0, left - take);
    }
    part
}

/// `len` bytes of `bufs`, `start` bytes from their beginning; less if there are less.
pub fn slice_mut<'a>(bufs: &'a mut [IoSliceMut<'_>], start: u64, len: u64) -> Vec<IoSliceMut<'a>> {
    let (mut skip, mut left) = (start, len);
    let mut part = Vec::new();
    for buf in bufs {
        let size = buf.len() as u64;
        if left == 0 {
            break;
        }
        if skip >= size {
            skip -= size;
            continue;
        }
        let take = left.min(size - skip);
        part.push(IoSliceMut::new(&mut buf[skip as usize..(skip + take) as usize]));
        (skip, left) = (0, left - take);
    }
    part
}

/// Zeroes in all of `bufs`.
pub(crate) fn fill_zero(bufs: &mut [IoSliceMut<'_>]) {
    for buf in bufs {
        buf.fill(0);
    }
}

/// Copies `from` over the beginning of `bufs`.
pub(crate) fn scatter(bufs: &mut [IoSliceMut<'_>], mut from: &[u8]) {
    for buf in bufs {
        let len = buf.len().min(from.len());
        let (head, tail) = from.split_at(len);
        buf[..len].copy_from_slice(head);
        from = tail;
    }
}

/// Copies all of `bufs` to the beginning of `to`.
pub(crate) fn gather_into(to: &mut [u8], bufs: &[IoSlice<'_>]) {
    let mut rest = to;
    for buf in bufs {
        let len = buf.len().min(rest.len());
        let (head, tail) = rest.split_at_mut(len);
        head.copy_from_slice(&buf[..len]);
        rest = tail;
    }
}

/// Whether all bytes are zero.
pub(crate) fn all_zero(bufs: &[IoSlice<'_>]) -> bool {
    // Blocks without a branch inside, so that the compiler takes many bytes at once.
    let zero = |bytes: &[u8]| bytes.chunks(256).all(|block| block.iter().fold(0, |all, b| all | b) == 0);
    bufs.iter().all(|buf| zero(buf))
}

/// All bytes of `bufs` in one.
#[cfg(test)]
pub(crate) fn gather(bufs: &[IoSlice<'_>]) -> Vec<u8> {
    let mut all = Vec::with_capacity(total(bufs) as usize);
    for buf in bufs {
        all.extend_from_slice(buf);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cross_buffers() {
        let bufs = [IoSlice::new(b"abc"), IoSlice::new(b""), IoSlice::new(b"defg")];
        assert_eq!(gather(&slices(&bufs, 2, 3)), b"cde");
        assert_eq!(gather(&slices(&bufs, 3, 100)), b"defg");
        assert_eq!(total(&slices(&bufs, 7, 1)), 0);
        let (mut a, mut b) = ([0; 3], [0; 4]);
        let mut bufs = [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b)];
        scatter(&mut slice_mut(&mut bufs, 1, 4), b"wxyz");
        assert_eq!((a, b), ([0, b'w', b'x'], [b'y', b'z', 0, 0]));
    }
}
