//! From descriptors of C+ mode to frames (datasheet 7.1): gathers buffers into packets, cuts large ones into segments,
//! fills in checksums and VLAN tags. It touches nothing but what it is given.

use crate::offload::{self, Headers, be16};
use serde::{Deserialize, Serialize};

/// Longest packet gathered. The largest that drivers send has 64 KiB and its headers.
const LONGEST: usize = 0x2_0000;
/// Shortest frame, without its checksum.
pub const SHORTEST: usize = 60;

/// The first word of a descriptor.
pub mod command {
    pub const OWN: u32 = 1 << 31;
    pub const END: u32 = 1 << 30;
    pub const FIRST: u32 = 1 << 29;
    pub const LAST: u32 = 1 << 28;
    /// To be cut into segments, of as many bytes of data as bits 16 to 26 say.
    pub const LARGE: u32 = 1 << 27;
    pub const IP_SUM: u32 = 1 << 18;
    pub const UDP_SUM: u32 = 1 << 17;
    pub const TCP_SUM: u32 = 1 << 16;
    /// What the chip writes back in their place: underrun, errors, collisions. There are none.
    pub const REPORT: u32 = 0x02ff_0000;
    pub const LEN: u32 = 0xffff;
}

/// The second word: a tag is to be inserted; it is below, its bytes swapped.
const TAG: u32 = 1 << 17;
const SEGMENT_SHIFT: u32 = 16;
const SEGMENT: u32 = 0x7ff;

/// The state between descriptors of a ring.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transmitter {
    packet: Vec<u8>,
    /// The words of the packet's first descriptor.
    words: Option<(u32, u32)>,
    /// The packet is longer than any may be: it is dropped at its end.
    overlong: bool,
}

impl Transmitter {
    /// Takes in a descriptor's words; `read` reads its buffer. Finished frames are added to `frames`; `longest`: TCP
    /// packets up to this length need not be cut.
    pub fn descriptor(
        &mut self,
        words: (u32, u32),
        longest: usize,
        read: impl FnOnce(&mut [u8]),
        frames: &mut Vec<Vec<u8>>,
    ) {
        let (first, second) = words;
        if first & command::FIRST != 0 {
            // Nobody ended the one before.
            *self = Self::default();
        }
        self.words.get_or_insert((first, second));
        let (have, len) = (self.packet.len(), (first & command::LEN) as usize);
        if self.overlong || have + len > LONGEST {
            self.overlong = true;
        } else {
            self.packet.resize(have + len, 0);
            read(&mut self.packet[have..]);
        }
        if first & command::LAST != 0 {
            let Self { packet, words, overlong } = std::mem::take(self);
            if !overlong {
                finish(packet, words.unwrap_or_default(), longest, frames);
            }
        }
    }
}

/// Makes frames of a packet.
fn finish(mut packet: Vec<u8>, (first, second): (u32, u32), longest: usize, frames: &mut Vec<Vec<u8>>) {
    let tag = (second & TAG != 0).then_some((second as u16).to_le_bytes());
    let mut send = |mut frame: Vec<u8>| {
        if let Some([a, b]) = tag.filter(|_| frame.len() >= 12) {
            drop(frame.splice(12..12, [0x81, 0x00, a, b]));
        }
        // Less is no frame.
        if frame.len() >= 14 {
            frame.resize(frame.len().max(SHORTEST), 0);
            frames.push(frame);
        }
    };
    if first & command::LARGE == 0 {
        let transport = first & (command::TCP_SUM | command::UDP_SUM) != 0;
        offload::fill_sums(&mut packet, first & command::IP_SUM != 0, transport);
        return send(packet);
    }
    let Some(headers) = headers(&packet) else { return };
    // A back end that takes it whole saves the cutting, and the guest cannot tell.
    let segment = match packet.len() <= longest {
        true => packet.len(),
        false => (first >> SEGMENT_SHIFT & SEGMENT) as usize,
    };
    offload::segment(&packet, headers, segment, |mut frame| {
        offload::fill_sums(&mut frame, true, true);
        send(frame);
    });
}

/// Where the headers of a TCP packet over IPv4 are.
fn headers(packet: &[u8]) -> Option<Headers> {
    const ETHERNET: usize = 14;
    const TCP: u8 = 6;
    let ip = packet.get(ETHERNET..).filter(|_| be16(packet, 12) == Some(0x0800))?;
    let transport = ETHERNET + usize::from(ip.first()? & 0xf) * 4;
    let data = usize::from(packet.get(transport + 12)? >> 4) * 4;
    let tcp = ip.get(9) == Some(&TCP) && transport >= ETHERNET + 20 && data >= 20;
    let sum = transport + 16;
    tcp.then_some(Headers { ip: ETHERNET, ipv4: true, transport, tcp: true, sum, len: transport + data })
}

#[cfg(test)]
mod tests {
    use super::*;
    use command::{FIRST, IP_SUM, LARGE, LAST, OWN, TCP_SUM};

    fn send(t: &mut Transmitter, flags: u32, second: u32, packet: &[u8], longest: usize) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let words = (OWN | flags | packet.len() as u32, second);
        t.descriptor(words, longest, |to| to.copy_from_slice(packet), &mut frames);
        frames
    }

    fn tcp_packet(len: usize) -> Vec<u8> {
        let mut p = vec![0x11; 12];
        p.extend([8, 0, 0x45, 0, 0, 0, 0, 9, 0x40, 0, 64, 6, 0xaa, 0xbb, 10, 0, 2, 15, 10, 0, 2, 2]);
        p.extend([0, 80, 1, 0, 0xff, 0xff, 0xff, 0x00, 0, 0, 0, 0, 0x50, 0x19, 0, 0, 0xcc, 0xdd, 0, 0]);
        p.extend((0..len).map(|i| i as u8));
        let total = (p.len() - 14) as u16;
        p[16..18].copy_from_slice(&total.to_be_bytes());
        p
    }

    fn right(frame: &[u8]) -> bool {
        offload::check_sums(frame) == offload::SumCheck { ip: Some(true), transport: Some(true) }
    }

    #[test]
    fn large_packets_become_segments_with_right_headers() {
        let mut t = Transmitter::default();
        let packet = tcp_packet(5000);
        let flags = FIRST | LAST | LARGE | 1460 << 16;
        let frames = send(&mut t, flags, 0, &packet, 1518);
        assert_eq!(frames.iter().map(Vec::len).collect::<Vec<_>>(), [1514, 1514, 1514, 54 + 620]);
        let mut gathered = Vec::new();
        for (i, frame) in frames.iter().enumerate() {
            assert!(right(frame), "sums of {i}");
            assert_eq!(frame[19] as usize, 9 + i, "identification");
            let seq = u32::from_be_bytes([frame[38], frame[39], frame[40], frame[41]]);
            assert_eq!(seq, 0xffff_ff00u32.wrapping_add(1460 * i as u32));
            assert_eq!(frame[47], if i == 3 { 0x19 } else { 0x10 });
            gathered.extend_from_slice(&frame[54..]);
        }
        assert!(gathered == packet[54..]);
        let whole = send(&mut t, flags, 0, &packet, 65549);
        assert!(whole.len() == 1 && whole[0].len() == packet.len() && right(&whole[0]));
        assert!(send(&mut t, FIRST | LAST | LARGE, 0, &packet, 1518).is_empty(), "segments of no bytes");
        assert!(send(&mut t, flags, 0, &[0x22; 100], 1518).is_empty(), "no TCP");
    }

    #[test]
    fn buffers_are_gathered_and_summed() {
        let mut t = Transmitter::default();
        let packet = tcp_packet(30);
        assert!(send(&mut t, FIRST | IP_SUM | TCP_SUM, 0, &packet[..20], 1518).is_empty());
        let frames = send(&mut t, LAST | IP_SUM | TCP_SUM, 0, &packet[20..], 1518);
        assert!(frames.len() == 1 && right(&frames[0]));
        assert_eq!(frames[0][54..84], packet[54..]);
        let plain = send(&mut t, FIRST | LAST, 0, &packet, 1518);
        assert_eq!(plain[0], packet, "sums only where asked for");
        // A first one in the middle of a packet begins anew.
        send(&mut t, FIRST, 0, &packet[..20], 1518);
        assert_eq!(send(&mut t, FIRST | LAST, 0, &packet, 1518)[0], packet);
    }

    #[test]
    fn tags_are_inserted_and_short_frames_filled() {
        let mut t = Transmitter::default();
        let frames = send(&mut t, FIRST | LAST, TAG | 0x2301, &[9; 20], 1518);
        assert_eq!(frames[0][12..18], [0x81, 0x00, 0x01, 0x23, 9, 9]);
        assert_eq!(frames[0].len(), 60);
        assert!(send(&mut t, FIRST | LAST, 0, &[9; 13], 1518).is_empty());
    }

    #[test]
    fn packets_without_end_stay_bounded() {
        let mut t = Transmitter::default();
        for _ in 0..100 {
            assert!(send(&mut t, 0, 0, &[1; 0xffff], 1518).is_empty());
        }
        assert!(t.packet.len() <= LONGEST);
        assert!(send(&mut t, LAST, 0, &[1; 100], 1518).is_empty(), "dropped");
        assert_eq!(send(&mut t, LAST, 0, &[1; 100], 1518).len(), 1, "the next one is sent");
    }
}
