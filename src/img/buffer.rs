//! Memory at a page's beginning: the host copies to it faster, and past its cache only there.

/// Bytes of a page.
const PAGE: usize = 4096;

/// Bytes that begin at a page. They keep what was in them when the length changes.
#[derive(Debug, Default)]
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// The first `len` bytes; new memory is zero.
    pub fn get(&mut self, len: usize) -> &mut [u8] {
        if self.bytes.len() < len.saturating_add(PAGE) {
            self.bytes = vec![0; len.saturating_add(PAGE)];
            self.start = self.bytes.as_ptr().align_offset(PAGE).min(PAGE);
        }
        self.len = len;
        self.bytes.get_mut(self.start..self.start + len).unwrap_or_default()
    }

    /// What was asked for last.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(self.start..self.start + self.len).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_begin_at_pages() {
        let mut buffer = Buffer::default();
        assert!(buffer.bytes().is_empty());
        for len in [1, 5000, 100, 1 << 20] {
            let bytes = buffer.get(len);
            assert!(bytes.as_ptr().align_offset(PAGE) == 0 && bytes.len() == len);
            bytes.fill(7);
            assert_eq!(buffer.bytes(), vec![7; len]);
        }
    }
}
