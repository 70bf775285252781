//! Frames in a stream of bytes: each after its length, four bytes with the highest first, as QEMU writes them.

use std::collections::VecDeque;

/// Longest frame. What claims to be longer is not this protocol.
pub const LONGEST: usize = 4096 + 65536;
/// Bytes that wait to be sent; frames beyond are lost.
const OUTGOING: usize = 1 << 20;
const HEADER: usize = 4;

/// The stream is not one of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Garbage;

/// What has come in, cut into frames.
#[derive(Default)]
pub struct Incoming {
    bytes: Vec<u8>,
    /// Where the next frame's header is.
    at: usize,
}

impl Incoming {
    /// Adds bytes as they came.
    pub fn add(&mut self, bytes: &[u8]) {
        if self.at > 0 {
            self.bytes.drain(..self.at);
            self.at = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame, which stays the next until [`Incoming::taken`].
    pub fn next(&self) -> Result<Option<&[u8]>, Garbage> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let Some((header, rest)) = rest.split_first_chunk::<HEADER>() else { return Ok(None) };
        let len = u32::from_be_bytes(*header) as usize;
        if len > LONGEST {
            return Err(Garbage);
        }
        Ok(rest.get(..len))
    }

    /// Passes over the next frame.
    pub fn taken(&mut self) {
        if let Ok(Some(frame)) = self.next() {
            self.at += HEADER + frame.len();
        }
    }
}

/// What is to go out.
#[derive(Default)]
pub struct Outgoing {
    bytes: VecDeque<u8>,
}

impl Outgoing {
    /// Adds a frame; it is lost if too much waits.
    pub fn add(&mut self, frame: &[u8]) {
        if self.bytes.len() + HEADER + frame.len() > OUTGOING || frame.len() > LONGEST {
            return;
        }
        self.bytes.extend((frame.len() as u32).to_be_bytes());
        self.bytes.extend(frame);
    }

    /// The first bytes that wait.
    pub fn front(&self) -> &[u8] {
        self.bytes.as_slices().0
    }

    /// `count` bytes went out.
    pub fn sent(&mut self, count: usize) {
        self.bytes.drain(..count.min(self.bytes.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_cut() {
        let frames: Vec<Vec<u8>> = [0usize, 1, 60, 1514, 65536].map(|len| vec![len as u8; len]).into();
        let mut out = Outgoing::default();
        frames.iter().for_each(|frame| out.add(frame));
        let mut stream = Vec::new();
        while !out.front().is_empty() {
            let piece = out.front().len().min(777);
            stream.extend_from_slice(&out.front()[..piece]);
            out.sent(piece);
        }
        for step in [1, 3, 1000, 70_000] {
            let (mut incoming, mut got) = (Incoming::default(), Vec::new());
            for piece in stream.chunks(step) {
                incoming.add(piece);
                while let Some(frame) = incoming.next().unwrap() {
                    got.push(frame.to_vec());
                    incoming.taken();
                }
            }
            assert!(got == frames, "{step}");
        }
    }

    #[test]
    fn garbage_and_floods() {
        let mut incoming = Incoming::default();
        incoming.add(b"GET / HTTP/1.1\r\n");
        assert_eq!(incoming.next(), Err(Garbage));
        let mut out = Outgoing::default();
        (0..10_000).for_each(|_| out.add(&[0; 1514]));
        assert!(out.bytes.len() <= OUTGOING);
    }
}
