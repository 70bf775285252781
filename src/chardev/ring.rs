//! A host end in memory (`ringbuf`): what the device writes is kept, the last bytes of it, until a monitor takes it out.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// The last bytes written.
pub struct Ring {
    size: usize,
    bytes: Mutex<VecDeque<u8>>,
}

impl Ring {
    /// One that keeps `size` bytes.
    pub fn new(size: usize) -> Self {
        Self { size, bytes: Mutex::default() }
    }

    /// Adds `bytes`; the eldest make way.
    pub fn write(&self, bytes: &[u8]) {
        let last = bytes.get(bytes.len().saturating_sub(self.size)..).unwrap_or_default();
        let mut kept = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let over = (kept.len() + last.len()).saturating_sub(self.size);
        kept.drain(..over);
        kept.extend(last);
    }

    /// Takes out up to `most` bytes, the eldest first.
    pub fn read(&self, most: usize) -> Vec<u8> {
        let mut kept = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let n = most.min(kept.len());
        kept.drain(..n).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bytes_are_kept_and_the_eldest_come_first() {
        let ring = Ring::new(8);
        assert_eq!(ring.read(10), b"");
        ring.write(b"abcdef");
        assert_eq!(ring.read(2), b"ab");
        ring.write(b"ghijk");
        assert_eq!(ring.read(100), b"defghijk");
        ring.write(b"0123456789");
        ring.write(b"");
        assert_eq!(ring.read(3), b"234");
        assert_eq!(ring.read(100), b"56789");
    }
}
