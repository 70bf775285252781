//! Moving a request's bytes between guest memory and a device's buffers.

use super::queue::Chain;
use crate::services::{Dma, GuestRange};

/// Bytes of all ranges.
fn total(ranges: &[GuestRange]) -> u64 {
    ranges.iter().fold(0, |sum, range| sum.saturating_add(range.len))
}

impl Chain {
    /// Bytes that the driver gives.
    pub fn given(&self) -> u64 {
        total(&self.readable)
    }

    /// Bytes that the device may write.
    pub fn room(&self) -> u64 {
        total(&self.writable)
    }

    /// What the driver gives, but no more than `limit` bytes, from byte `skip` on.
    pub fn gather(&self, dma: &dyn Dma, skip: u64, limit: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut skip = skip;
        for range in &self.readable {
            let passed = skip.min(range.len);
            skip -= passed;
            let len = (range.len - passed).min((limit - bytes.len()) as u64) as usize;
            if len > 0 {
                let start = bytes.len();
                bytes.resize(start + len, 0);
                dma.read(range.gpa.wrapping_add(passed), bytes.get_mut(start..).unwrap_or_default());
            }
        }
        bytes
    }

    /// Writes as much of `bytes` as there is room for; how much that was.
    pub fn scatter(&self, dma: &dyn Dma, bytes: &[u8]) -> u32 {
        let mut rest = bytes;
        for range in &self.writable {
            let (now, later) = rest.split_at(rest.len().min(usize::try_from(range.len).unwrap_or(usize::MAX)));
            if !now.is_empty() {
                dma.write(range.gpa, now);
            }
            rest = later;
        }
        u32::try_from(bytes.len() - rest.len()).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::FakeMemory;

    #[test]
    fn pieces_join_and_part() {
        let memory = FakeMemory::new(0x1000);
        memory.write(0x10, b"hello");
        memory.write(0x80, b" world");
        let range = |gpa, len| GuestRange { gpa, len };
        let chain = Chain {
            head: 0,
            readable: vec![range(0x10, 5), range(0x80, 6)],
            writable: vec![range(0x100, 2), range(0x200, 0), range(0x300, 8)],
        };
        assert_eq!((chain.given(), chain.room()), (11, 10));
        assert_eq!(chain.gather(&*memory, 0, 100), b"hello world");
        assert_eq!(chain.gather(&*memory, 3, 4), b"lo w");
        assert_eq!(chain.gather(&*memory, 6, 100), b"world");
        assert!(chain.gather(&*memory, 99, 100).is_empty());
        assert_eq!(chain.scatter(&*memory, b"abcde"), 5);
        assert_eq!(chain.scatter(&*memory, b"0123456789xyz"), 10);
        let mut got = [0; 2];
        memory.read(0x100, &mut got);
        assert_eq!(&got, b"01");
    }
}
