//! What one TLB check covers: the accesses of generated code that lie close together are checked at once, for all bytes
//! from the first to the last. These lie on one page nearly always. Where they do not, baseline code checks each access
//! alone, and a region leaves the instruction to the interpreter, as any that crosses a page.
//!
//! Writes are not served by a check for reading, nor is one widened to write: a page must not become dirty before it is
//! written. An access within a page that is checked for writing may be read.

/// Most bytes from the first to the last: the more, the more often they cross a page.
const MOST: i64 = 256;

/// Offsets from some address, and what is checked there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// The first byte.
    pub first: i64,
    /// The last byte; of aligned accesses, the first byte of the last one.
    pub last: i64,
    /// Bytes of each aligned access, or of the first one.
    pub bytes: i64,
    /// For writing.
    pub write: bool,
    /// Each access is aligned to its size, a power of two.
    pub aligned: bool,
}

impl Span {
    /// A single access of `bytes` bytes.
    pub fn of(first: i64, bytes: i64, write: bool, aligned: bool) -> Self {
        Self { first, last: if aligned { first } else { first.wrapping_add(bytes - 1) }, bytes, write, aligned }
    }

    /// The span with a single `access` too, if one check can be for both. `fixed`: only if it covers that already.
    pub fn with(self, access: Self, fixed: bool) -> Option<Self> {
        if access.write && !self.write || access.aligned && !self.aligned {
            return None;
        }
        let near = |offset: i64| i64::from(i32::MIN) <= offset && offset <= i64::from(i32::MAX) - MOST;
        if !near(self.first) || !near(access.first) {
            return None;
        }
        let end = access.first + access.bytes;
        let (first, last) = if self.aligned {
            if access.aligned && ((access.first - self.first) % self.bytes != 0 || access.bytes != self.bytes) {
                return None;
            }
            // Whole steps, so that all are aligned if one is.
            let steps = |distance: i64| (distance + self.bytes - 1).div_euclid(self.bytes).max(0) * self.bytes;
            (self.first - steps(self.first - access.first), self.last + steps(end - self.bytes - self.last))
        } else {
            (self.first.min(access.first), self.last.max(end - 1))
        };
        let with = Self { first, last, ..self };
        (with == self || !fixed && last - first <= MOST).then_some(with)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(first: i64, bytes: i64) -> Span {
        Span::of(first, bytes, false, false)
    }

    #[test]
    fn a_span_covers_all_bytes_of_both() {
        let span = read(8, 4).with(read(16, 8), false).expect("near");
        assert_eq!((span.first, span.last), (8, 23));
        let span = span.with(read(-1, 1), false).expect("near");
        assert_eq!((span.first, span.last), (-1, 23));
        assert_eq!(span.with(read(0, 8), true), Some(span));
        assert_eq!(span.with(read(20, 8), true), None);
        assert_eq!(span.with(read(250, 8), false), None);
        assert_eq!(read(0, 8).with(read(i64::MAX - 3, 8), false), None);
    }

    #[test]
    fn writing_serves_reading_but_not_the_other_way() {
        let write = Span::of(0, 8, true, false);
        assert_eq!(read(0, 8).with(write, false), None);
        assert_eq!(write.with(read(8, 8), false), Some(Span { last: 15, ..write }));
    }

    #[test]
    fn aligned_accesses_go_in_whole_steps() {
        let aligned = |first, bytes| Span::of(first, bytes, false, true);
        let span = aligned(16, 16).with(aligned(48, 16), false).expect("near");
        assert_eq!((span.first, span.last), (16, 48));
        // What need not be aligned may lie anywhere.
        let span = span.with(read(4, 4), false).expect("near");
        assert_eq!((span.first, span.last), (0, 48));
        let span = span.with(read(60, 8), false).expect("near");
        assert_eq!((span.first, span.last), (0, 64));
        assert_eq!(span.with(aligned(8, 16), false), None);
        assert_eq!(span.with(aligned(32, 32), false), None);
        assert_eq!(read(0, 16).with(aligned(0, 16), false), None);
    }
}
