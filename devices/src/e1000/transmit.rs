//! From descriptors to frames (manual section 3.3 and 3.5): gathers buffers into packets, cuts large ones into segments,
//! fills in checksums and VLAN tags. It touches nothing but what it is given.

use crate::offload::{self, Headers};
use serde::{Deserialize, Serialize};

/// Longest packet gathered. The largest that drivers send has 64 KiB and its headers.
const LONGEST: usize = 0x2_0000;
/// Shortest frame, without its checksum.
const SHORTEST: usize = 60;

/// Command bits (3.3.3.1, 3.3.7.1): byte 11 of a descriptor.
mod command {
    pub const EOP: u8 = 1 << 0;
    /// Legacy descriptors: insert a checksum. Others: cut into segments (TSE).
    pub const IC_OR_TSE: u8 = 1 << 2;
    pub const RS: u8 = 1 << 3;
    pub const DEXT: u8 = 1 << 5;
    pub const VLE: u8 = 1 << 6;
}

/// Context command bits (3.3.6.1).
const TCP: u8 = 1 << 0;
const IPV4: u8 = 1 << 1;
/// Packet options of data descriptors (3.3.7.3).
const INSERT_IP_SUM: u8 = 1 << 0;
const INSERT_TRANSPORT_SUM: u8 = 1 << 1;

/// Where a checksum goes and what it covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Sum {
    start: u8,
    place: u8,
    /// Last byte covered; 0: the packet's last.
    last: u16,
}

/// A context descriptor (3.3.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Context {
    ip: Sum,
    transport: Sum,
    command: u8,
    header: u8,
    mss: u16,
}

/// What the first descriptor of a packet says about all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Options {
    segment: bool,
    ip_sum: bool,
    transport_sum: bool,
    legacy_sum: Option<(u8, u8)>,
    vlan: Option<u16>,
}

/// How the card is set up for sending.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// VLAN tags are inserted (CTRL.VME) with this type (VET).
    pub vlan_type: Option<u16>,
    /// Short frames are filled up (TCTL.PSP).
    pub pad: bool,
    /// TCP packets up to this length need not be cut.
    pub longest: usize,
}

/// What one descriptor came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// The guest wants to know when it is done.
    pub report: bool,
    /// A large packet was cut.
    pub segmented: bool,
}

/// The state between descriptors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transmitter {
    checksum_context: Context,
    segment_context: Context,
    packet: Vec<u8>,
    options: Option<Options>,
    /// The packet is longer than any may be: it is dropped at its end.
    overlong: bool,
}

fn le16(bytes: &[u8; 16], at: usize) -> u16 {
    u16::from(bytes[at & 15]) | u16::from(bytes[(at + 1) & 15]) << 8
}

impl Transmitter {
    /// Takes in a descriptor; `read` reads guest memory. Finished frames are added to `frames`.
    pub fn descriptor(
        &mut self,
        bytes: &[u8; 16],
        setup: Setup,
        read: impl FnOnce(u64, &mut [u8]),
        frames: &mut Vec<Vec<u8>>,
    ) -> Done {
        let cmd = bytes[11];
        let report = cmd & command::RS != 0;
        let extended = cmd & command::DEXT != 0;
        match bytes[10] >> 4 {
            0 if extended => {
                self.context(bytes);
                return Done { report, segmented: false };
            }
            1 => {}
            _ if !extended => {}
            // Other types do not exist.
            _ => return Done { report, segmented: false },
        }
        self.options.get_or_insert_with(|| options(bytes, extended));
        let len = match extended {
            true => usize::from(le16(bytes, 8)) | usize::from(bytes[10] & 0xf) << 16,
            false => le16(bytes, 8).into(),
        };
        let have = self.packet.len();
        if self.overlong || have + len > LONGEST {
            self.overlong = true;
        } else {
            self.packet.resize(have + len, 0);
            let address =
                u64::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7]]);
            read(address, &mut self.packet[have..]);
        }
        if cmd & command::EOP == 0 {
            return Done { report, segmented: false };
        }
        // A tag may come with the last descriptor only.
        let mut options = self.options.take().unwrap_or_default();
        if cmd & command::VLE != 0 {
            options.vlan = Some(le16(bytes, 14));
        }
        let segmented = !self.overlong && self.finish(options, setup, frames);
        self.packet.clear();
        self.overlong = false;
        Done { report, segmented }
    }

    fn context(&mut self, bytes: &[u8; 16]) {
        let context = Context {
            ip: Sum { start: bytes[0], place: bytes[1], last: le16(bytes, 2) },
            transport: Sum { start: bytes[4], place: bytes[5], last: le16(bytes, 6) },
            command: bytes[11],
            header: bytes[13],
            mss: le16(bytes, 14),
        };
        match context.command & command::IC_OR_TSE != 0 {
            true => self.segment_context = context,
            false => self.checksum_context = context,
        }
    }

    /// Makes frames of the packet gathered; `true` if it was cut.
    fn finish(&self, options: Options, setup: Setup, frames: &mut Vec<Vec<u8>>) -> bool {
        let tag = options.vlan.and_then(|tag| Some((setup.vlan_type?, tag)));
        let mut send = |mut frame: Vec<u8>| {
            if let Some((kind, tag)) = tag.filter(|_| frame.len() >= 12) {
                let [a, b] = kind.to_be_bytes();
                let [c, d] = tag.to_be_bytes();
                drop(frame.splice(12..12, [a, b, c, d]));
            }
            if setup.pad && frame.len() < SHORTEST {
                frame.resize(SHORTEST, 0);
            }
            // Less is no frame.
            if frame.len() >= 14 {
                frames.push(frame);
            }
        };
        if !options.segment {
            let mut frame = self.packet.clone();
            if let Some((start, place)) = options.legacy_sum {
                put_sum(&mut frame, Sum { start, place, last: 0 });
            }
            self.checksum_context.put_sums(&mut frame, options);
            send(frame);
            return false;
        }
        let context = &self.segment_context;
        let headers = context.headers();
        // A back end that takes it whole saves the cutting, and the guest cannot tell.
        let whole = headers.tcp && self.packet.len() <= setup.longest;
        let mss = if whole { self.packet.len() } else { context.mss.into() };
        offload::segment(&self.packet, headers, mss, |mut frame| {
            // The driver's sum over the pseudo header leaves the length out, as each segment has its own (3.5.7).
            let len = frame.len().saturating_sub(headers.transport);
            offload::add_to_sum(&mut frame, headers.sum, len as u32);
            context.put_sums(&mut frame, options);
            send(frame);
        })
    }
}

/// The options in the first descriptor of a packet.
fn options(bytes: &[u8; 16], extended: bool) -> Options {
    let cmd = bytes[11];
    let vlan = (cmd & command::VLE != 0).then(|| le16(bytes, 14));
    if extended {
        let popts = bytes[13];
        Options {
            segment: cmd & command::IC_OR_TSE != 0,
            ip_sum: popts & INSERT_IP_SUM != 0,
            transport_sum: popts & INSERT_TRANSPORT_SUM != 0,
            legacy_sum: None,
            vlan,
        }
    } else {
        let legacy_sum = (cmd & command::IC_OR_TSE != 0).then_some((bytes[13], bytes[10]));
        Options { legacy_sum, vlan, ..Options::default() }
    }
}

impl Context {
    fn put_sums(&self, frame: &mut [u8], options: Options) {
        if options.ip_sum {
            put_sum(frame, self.ip);
        }
        if options.transport_sum {
            put_sum(frame, self.transport);
        }
    }

    /// What it says about a large packet's headers.
    fn headers(&self) -> Headers {
        Headers {
            ip: self.ip.start.into(),
            ipv4: self.command & IPV4 != 0,
            transport: self.transport.start.into(),
            tcp: self.command & TCP != 0,
            sum: self.transport.place.into(),
            len: self.header.into(),
        }
    }
}

/// Fills in an internet checksum; nothing happens if its place is outside.
fn put_sum(frame: &mut [u8], sum: Sum) {
    let end = match usize::from(sum.last) {
        0 => frame.len(),
        last => last + 1,
    };
    offload::put_sum(frame, sum.start.into(), end, sum.place.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETUP: Setup = Setup { vlan_type: None, pad: false, longest: 1518 };

    fn data(len: u32, cmd: u8, popts: u8) -> [u8; 16] {
        let mut d = [0; 16];
        d[8..12].copy_from_slice(&(len | 1 << 20 | u32::from(cmd | command::DEXT) << 24).to_le_bytes());
        d[13] = popts;
        d
    }

    /// Sends `packet` in one descriptor.
    fn send(t: &mut Transmitter, d: [u8; 16], packet: &[u8], setup: Setup) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        t.descriptor(&d, setup, |_, to| to.copy_from_slice(packet), &mut frames);
        frames
    }

    /// Ethernet, IPv4 and TCP headers with `len` bytes of data, its sums as a driver leaves them for segmentation.
    fn tcp_packet(len: usize) -> Vec<u8> {
        let mut p = vec![0x11; 14];
        p.extend([0x45, 0, 0, 0, 0, 9, 0x40, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]);
        p.extend([0, 80, 1, 0, 0xff, 0xff, 0xff, 0x00, 0, 0, 0, 0, 0x50, 0x19, 0, 0, 0, 0, 0, 0]);
        let pseudo = offload::internet_checksum(&[10, 0, 2, 15, 10, 0, 2, 2, 0, 6]);
        p[50..52].copy_from_slice(&(!pseudo).to_be_bytes());
        p.extend((0..len).map(|i| i as u8));
        p
    }

    #[test]
    fn large_packets_become_segments_with_right_headers() {
        let mut t = Transmitter::default();
        let mut c = [14, 24, 33, 0, 34, 50, 0, 0, 0, 0, 0, 0, 0, 54, 0, 0];
        c[8..12]
            .copy_from_slice(&(5000 | u32::from(TCP | IPV4 | command::IC_OR_TSE | command::DEXT) << 24).to_le_bytes());
        c[14..16].copy_from_slice(&1460u16.to_le_bytes());
        t.descriptor(&c, SETUP, |_, _| panic!("a context has no data"), &mut Vec::new());
        let packet = tcp_packet(5000);
        let d = data(packet.len() as u32, command::EOP | command::IC_OR_TSE, 3);
        let frames = send(&mut t, d, &packet, SETUP);
        assert_eq!(frames.iter().map(Vec::len).collect::<Vec<_>>(), [1514, 1514, 1514, 54 + 620]);
        let mut gathered = Vec::new();
        for (i, frame) in frames.iter().enumerate() {
            let ip = &frame[14..34];
            assert_eq!(offload::internet_checksum(ip), 0, "IP sum of {i}");
            assert_eq!(u16::from_be_bytes([ip[2], ip[3]]) as usize, frame.len() - 14);
            assert_eq!(ip[5] as usize, 9 + i, "identification");
            let tcp = &frame[34..];
            let seq = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
            assert_eq!(seq, 0xffff_ff00u32.wrapping_add(1460 * i as u32));
            assert_eq!(tcp[13], if i == 3 { 0x19 } else { 0x10 });
            let mut pseudo = vec![10, 0, 2, 15, 10, 0, 2, 2, 0, 6];
            pseudo.extend((tcp.len() as u16).to_be_bytes());
            pseudo.extend(tcp);
            assert_eq!(offload::internet_checksum(&pseudo), 0, "TCP sum of {i}");
            gathered.extend_from_slice(&tcp[20..]);
        }
        assert!(gathered == packet[54..]);
        let whole = send(&mut t, d, &packet, Setup { longest: 65549, ..SETUP });
        assert_eq!(whole.iter().map(Vec::len).collect::<Vec<_>>(), [packet.len()]);
        assert_eq!(offload::internet_checksum(&whole[0][14..34]), 0);
        assert_eq!((&whole[0][16..18], whole[0][47]), (&5040u16.to_be_bytes()[..], 0x19));
    }

    #[test]
    fn legacy_descriptors_gather_and_sum() {
        let mut t = Transmitter::default();
        let mut frames = Vec::new();
        let mut d = [0u8; 16];
        (d[8], d[10], d[11], d[13]) = (20, 16, command::IC_OR_TSE, 10);
        t.descriptor(&d, SETUP, |_, to| to.fill(3), &mut frames);
        assert!(frames.is_empty());
        (d[8], d[11]) = (5, command::EOP | command::RS);
        let done = t.descriptor(&d, SETUP, |_, to| to.fill(4), &mut frames);
        assert!(done.report && frames.len() == 1 && frames[0].len() == 25);
        let mut plain = [vec![3u8; 20], vec![4; 5]].concat();
        let sum = offload::internet_checksum(&plain[10..]);
        plain[16..18].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(frames[0], plain);
    }

    #[test]
    fn tags_are_inserted_and_short_frames_filled() {
        let mut t = Transmitter::default();
        let mut d = data(20, command::EOP | command::VLE, 0);
        d[14..16].copy_from_slice(&0x0123u16.to_le_bytes());
        let setup = Setup { vlan_type: Some(0x8100), pad: true, longest: 1518 };
        let frames = send(&mut t, d, &[9; 20], setup);
        assert_eq!(frames[0][12..18], [0x81, 0x00, 0x01, 0x23, 9, 9]);
        assert_eq!(frames[0].len(), 60);
        assert_eq!(send(&mut t, d, &[9; 20], SETUP)[0].len(), 20, "without VME");
    }

    #[test]
    fn packets_without_end_stay_bounded() {
        let mut t = Transmitter::default();
        let mut frames = Vec::new();
        for _ in 0..100 {
            t.descriptor(&data(0xf_ffff, 0, 0), SETUP, |_, to| to.fill(0), &mut frames);
            t.descriptor(&data(0xffff, 0, 0), SETUP, |_, to| to.fill(0), &mut frames);
        }
        assert!(t.packet.len() <= LONGEST);
        t.descriptor(&data(100, command::EOP, 0), SETUP, |_, to| to.fill(0), &mut frames);
        assert!(frames.is_empty(), "dropped");
        t.descriptor(&data(100, command::EOP, 0), SETUP, |_, to| to.fill(0), &mut frames);
        assert_eq!(frames.len(), 1, "the next one is sent");
    }
}
