//! The header before each packet (5.1.6): what is left to do about its checksum and its length.

use super::feature;
use crate::offload::{self, Headers, be16};
use crate::services::Unfinished;

/// Bytes of the header: with the number of buffers, and as legacy drivers have it without merging.
pub const LONG: usize = 12;
const SHORT: usize = 10;

/// Flags.
mod flag {
    /// The checksum is to be filled in from `csum_start` on.
    pub const NEEDS_CSUM: u8 = 1;
    /// The checksum was found right.
    pub const DATA_VALID: u8 = 2;
}

/// Kinds of large packets.
const TCP_V4: u8 = 1;
const TCP_V6: u8 = 4;
const UDP: u8 = 5;
/// Beside the kind: with congestion marks, which need nothing here.
const ECN: u8 = 0x80;

/// Length of the header under these features.
pub fn len(features: u64) -> usize {
    if features & (feature::MRG_RXBUF | super::super::feature::VERSION_1) != 0 { LONG } else { SHORT }
}

/// A header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    flags: u8,
    kind: u8,
    header_len: u16,
    segment: u16,
    sum_start: u16,
    sum_offset: u16,
    /// Buffers that a received frame took.
    buffers: u16,
}

impl Header {
    /// The header of a received frame; `right`: its sums are.
    pub fn received(right: bool, buffers: u16) -> Self {
        let flags = if right { flag::DATA_VALID } else { 0 };
        Self { flags, buffers, ..Self::default() }
    }

    /// The header of a received frame on which work is left to the driver.
    pub fn unfinished(frame: &[u8], rest: Unfinished, buffers: u16) -> Self {
        // Where the checksum is in a header of UDP or TCP, and the header's length.
        let start = rest.sum.unwrap_or(0);
        let (sum_offset, offset) = match rest.udp {
            true => (6, 8),
            false => (16, frame.get(usize::from(start) + 12).map_or(0, |byte| u16::from(byte >> 4) * 4)),
        };
        let kind = match be16(frame, 12) {
            _ if rest.segment == 0 => 0,
            _ if rest.udp => UDP,
            Some(0x86dd) => TCP_V6,
            _ => TCP_V4,
        };
        Self {
            flags: flag::NEEDS_CSUM,
            kind,
            header_len: if kind == 0 { 0 } else { start.saturating_add(offset) },
            segment: rest.segment,
            sum_start: start,
            sum_offset,
            buffers,
        }
    }

    /// The header of `len` bytes, and the packet behind it.
    pub fn read(bytes: &[u8], len: usize) -> Option<(Self, &[u8])> {
        let (header, packet) = bytes.split_at_checked(len)?;
        let word = |at: usize| header.get(at..at + 2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        let this = Self {
            flags: *header.first()?,
            kind: *header.get(1)?,
            header_len: word(2)?,
            segment: word(4)?,
            sum_start: word(6)?,
            sum_offset: word(8)?,
            buffers: 0,
        };
        Some((this, packet))
    }

    /// The bytes for the driver.
    pub fn write(&self) -> [u8; LONG] {
        let mut bytes = [0; LONG];
        (bytes[0], bytes[1]) = (self.flags, self.kind);
        let words = [self.header_len, self.segment, self.sum_start, self.sum_offset, self.buffers];
        for (to, word) in bytes[2..].chunks_exact_mut(2).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Makes frames of a packet: its checksum filled in, cut if it is large and `longest` does not allow it whole.
    pub fn frames(&self, packet: &[u8], longest: usize, frames: &mut Vec<Vec<u8>>) {
        if packet.len() < 14 {
            return;
        }
        let place = usize::from(self.sum_start) + usize::from(self.sum_offset);
        let sums = self.flags & flag::NEEDS_CSUM != 0;
        let finish = |frame: &mut Vec<u8>| {
            if sums {
                let end = frame.len();
                offload::put_sum(frame, self.sum_start.into(), end, place);
            }
        };
        let Some(headers) = self.large(packet) else {
            let mut frame = packet.to_vec();
            finish(&mut frame);
            return frames.push(frame);
        };
        let whole = headers.tcp && packet.len() <= longest;
        let mss = if whole { packet.len() } else { self.segment.into() };
        // The driver's sum over the pseudo header has the whole length in it.
        offload::segment_open(packet, headers, mss, |frame| frames.push(frame));
    }

    /// Where the headers of a large packet are; `None`: it is not large, or not what it says.
    fn large(&self, packet: &[u8]) -> Option<Headers> {
        let kind = self.kind & !ECN;
        if !matches!(kind, TCP_V4 | TCP_V6 | UDP) || self.flags & flag::NEEDS_CSUM == 0 || self.segment == 0 {
            return None;
        }
        let ip = network_start(packet);
        let version = packet.get(ip)? >> 4;
        let transport = usize::from(self.sum_start);
        let tcp = kind != UDP;
        // The length in `header_len` is a hint (5.1.6.2): the packet's own counts.
        let len = match tcp {
            true => transport + usize::from(packet.get(transport.checked_add(12)?)? >> 4) * 4,
            false => transport + 8,
        };
        let fits = matches!((kind, version), (TCP_V4 | UDP, 4) | (TCP_V6 | UDP, 6));
        let sum = transport + usize::from(self.sum_offset);
        (fits && transport > ip && len <= packet.len()).then_some(Headers {
            ip,
            ipv4: version == 4,
            transport,
            tcp,
            sum,
            len,
        })
    }
}

/// Where the network header starts: behind a VLAN tag, if there is one.
fn network_start(packet: &[u8]) -> usize {
    if be16(packet, 12) == Some(0x8100) { 18 } else { 14 }
}

/// A number that both directions of a connection have in common.
pub fn connection_hash(packet: &[u8]) -> usize {
    let ip = network_start(packet);
    let range = |from: usize, len: usize| packet.get(from..from + len).unwrap_or_default();
    let (addresses, transport) = match packet.get(ip).map(|b| b >> 4) {
        Some(4) => (range(ip + 12, 8), ip + usize::from(packet.get(ip).copied().unwrap_or(0) & 0xf) * 4),
        Some(6) => (range(ip + 8, 32), ip + 40),
        _ => (&[][..], packet.len()),
    };
    // Sums do not care which end comes first.
    let ports = range(transport, 4);
    let words = addresses.chunks_exact(2).chain(ports.chunks_exact(2));
    let sum = words.fold(0usize, |sum, word| sum + usize::from(u16::from_be_bytes([word[0], word[1]])));
    sum ^ sum >> 8
}
