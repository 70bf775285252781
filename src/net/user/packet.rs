//! Packets on the guest's wire: reading them with every length checked, and making them. Numbers and layouts follow
//! RFC 791 (IPv4), 8200 (IPv6), 768 (UDP) and 1071 (checksums).

use brolga_devices::offload;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A hardware address.
pub type Mac = [u8; 6];

/// All stations.
pub const BROADCAST: Mac = [0xff; 6];
/// Length of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Largest IP packet on this link.
pub const MTU: usize = 1500;

/// Ethernet types.
pub mod ethertype {
    /// RFC 826.
    pub const ARP: u16 = 0x0806;
    /// RFC 894.
    pub const IPV4: u16 = 0x0800;
    /// RFC 2464.
    pub const IPV6: u16 = 0x86dd;
}

/// IP protocol numbers.
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
}

/// A big-endian 16-bit number at `at`.
pub fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

/// A big-endian 32-bit number at `at`.
pub fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// An Ethernet frame.
pub struct Frame<'a> {
    /// Sender.
    pub from: Mac,
    /// What the payload is.
    pub ethertype: u16,
    /// What follows the header.
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Takes a frame apart; `None` if it is too short.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (from, rest) = bytes.get(size_of::<Mac>()..)?.split_first_chunk()?;
        let (ethertype, payload) = rest.split_first_chunk()?;
        Some(Self { from: *from, ethertype: u16::from_be_bytes(*ethertype), payload })
    }
}

/// Where a fragment belongs (RFC 791 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification.
    pub id: u16,
    /// Byte offset.
    pub offset: usize,
    /// More fragments follow.
    pub more: bool,
}

/// An IP packet.
pub struct Ip<'a> {
    /// Sender.
    pub src: IpAddr,
    /// Receiver.
    pub dst: IpAddr,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// It is only a part.
    pub fragment: Option<Fragment>,
    /// What the protocol carries.
    pub payload: &'a [u8],
    /// The packet without what lies behind its end.
    pub whole: &'a [u8],
}

impl<'a> Ip<'a> {
    /// Takes a packet of either version apart; `None` if it is not in order.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => Self::parse_v4(bytes),
            6 => Self::parse_v6(bytes),
            _ => None,
        }
    }

    fn parse_v4(bytes: &'a [u8]) -> Option<Self> {
        let header_len = usize::from(bytes.first()? & 0xf) * 4;
        let header = bytes.get(..header_len).filter(|h| h.len() >= 20 && checksum(&[h]) == 0)?;
        let whole = bytes.get(..be16(header, 2)?.into())?;
        let flags = be16(header, 6)?;
        let fragment =
            Fragment { id: be16(header, 4)?, offset: usize::from(flags & 0x1fff) * 8, more: flags & 0x2000 != 0 };
        Some(Self {
            src: Ipv4Addr::from(be32(header, 12)?).into(),
            dst: Ipv4Addr::from(be32(header, 16)?).into(),
            protocol: *header.get(9)?,
            ttl: *header.get(8)?,
            fragment: (fragment.more || fragment.offset != 0).then_some(fragment),
            payload: whole.get(header_len..)?,
            whole,
        })
    }

    /// Extension headers other than hop-by-hop options are not followed: nothing on this link needs them.
    fn parse_v6(bytes: &'a [u8]) -> Option<Self> {
        let whole = bytes.get(..40usize.checked_add(be16(bytes, 4)?.into())?)?;
        let (mut protocol, mut payload) = (*whole.get(6)?, whole.get(40..)?);
        if protocol == 0 {
            let options = usize::from(*payload.get(1)?) * 8 + 8;
            protocol = *payload.first()?;
            payload = payload.get(options..)?;
        }
        let address = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(whole.get(at..at + 16)?).ok()?));
        Some(Self {
            src: address(8)?.into(),
            dst: address(24)?.into(),
            protocol,
            ttl: *whole.get(7)?,
            fragment: None,
            payload,
            whole,
        })
    }
}

/// A UDP datagram.
pub struct Udp<'a> {
    /// Sender's port.
    pub src: u16,
    /// Receiver's port.
    pub dst: u16,
    /// Data.
    pub payload: &'a [u8],
}

impl<'a> Udp<'a> {
    /// Takes the datagram in `ip` apart; `None` if it is not in order or its checksum is wrong.
    pub fn parse(ip: &Ip<'a>) -> Option<Self> {
        let len = usize::from(be16(ip.payload, 4)?);
        let datagram = ip.payload.get(..len).filter(|d| d.len() >= 8)?;
        let absent = be16(datagram, 6)? == 0 && ip.src.is_ipv4();
        if !absent && transport_checksum(ip.src, ip.dst, protocol::UDP, datagram) != 0 {
            return None;
        }
        Some(Self { src: be16(datagram, 0)?, dst: be16(datagram, 2)?, payload: datagram.get(8..)? })
    }
}

/// What of a TCP segment decides where it belongs.
#[derive(Clone, Copy, Debug)]
pub struct TcpStart {
    /// Sender's port.
    pub src: u16,
    /// Receiver's port.
    pub dst: u16,
    /// SYN without ACK and RST: the first segment of a connection.
    pub opens: bool,
    /// In a segment with SYN: the longest segments that its sender takes.
    pub longest: Option<u16>,
}

impl TcpStart {
    /// Reads the start of the segment in `ip`.
    pub fn parse(ip: &Ip) -> Option<Self> {
        const SYN: u8 = 2;
        let flags = *ip.payload.get(13)?;
        let longest = (flags & SYN != 0).then(|| longest_segment(ip.payload)).flatten();
        Some(Self { src: be16(ip.payload, 0)?, dst: be16(ip.payload, 2)?, opens: flags & 0x16 == 0x02, longest })
    }
}

/// The option of a TCP header that says how long segments may be (RFC 9293 3.2).
fn longest_segment(header: &[u8]) -> Option<u16> {
    let len = usize::from(header.get(12)? >> 4) * 4;
    let mut options = header.get(20..len)?;
    loop {
        match options {
            [0, ..] | [] => return None,
            [1, rest @ ..] => options = rest,
            [2, 4, a, b, ..] => return Some(u16::from_be_bytes([*a, *b])),
            [_, len, ..] => options = options.get(usize::from(*len).max(2)..)?,
            [_] => return None,
        }
    }
}

/// The internet checksum over consecutive parts, of which only the last may have an odd length.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    !offload::folded(parts.iter().map(|part| offload::partial_sum(part)).sum())
}

/// The checksum of UDP, TCP and ICMPv6, with their pseudo header; 0 over a message that has the right one in it.
pub fn transport_checksum(src: IpAddr, dst: IpAddr, protocol: u8, message: &[u8]) -> u16 {
    let len = (message.len() as u32).to_be_bytes();
    let rest = [len[0], len[1], len[2], len[3], 0, 0, 0, protocol];
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => checksum(&[&src.octets(), &dst.octets(), &rest, message]),
        (IpAddr::V6(src), IpAddr::V6(dst)) => checksum(&[&src.octets(), &dst.octets(), &rest, message]),
        // Callers take both from one packet.
        _ => 0,
    }
}

/// The sum over the pseudo header of a message of `len` bytes: what stands in the place of a checksum that is open.
pub fn pseudo_sum(src: IpAddr, dst: IpAddr, protocol: u8, len: usize) -> u16 {
    let len = (len as u32).to_be_bytes();
    let rest = [len[0], len[1], len[2], len[3], 0, 0, 0, protocol];
    !match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => checksum(&[&src.octets(), &dst.octets(), &rest]),
        (IpAddr::V6(src), IpAddr::V6(dst)) => checksum(&[&src.octets(), &dst.octets(), &rest]),
        // Callers take both from one packet.
        _ => 0,
    }
}

/// Writes an Ethernet header into the room for it at the start of `frame`.
pub fn put_header(frame: &mut [u8], to: Mac, from: Mac, ethertype: u16) {
    if let Some(header) = frame.first_chunk_mut::<ETHERNET>() {
        header[..6].copy_from_slice(&to);
        header[6..12].copy_from_slice(&from);
        header[12..].copy_from_slice(&ethertype.to_be_bytes());
    }
}

/// An Ethernet frame.
pub fn frame(to: Mac, from: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(ETHERNET + payload.len());
    bytes.extend_from_slice(&to);
    bytes.extend_from_slice(&from);
    bytes.extend_from_slice(&ethertype.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// An IP packet around `payload`, which must fit into 64 KiB with its header. Empty if the addresses are of two versions.
pub fn ip(src: IpAddr, dst: IpAddr, protocol: u8, ttl: u8, payload: &[u8]) -> Vec<u8> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            ipv4_part(src, dst, protocol, ttl, Fragment { id: 0, offset: 0, more: false }, payload)
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut bytes = Vec::with_capacity(40 + payload.len());
            bytes.extend_from_slice(&[0x60, 0, 0, 0]);
            bytes.extend_from_slice(&(payload.len() as u16).to_be_bytes());
            bytes.extend_from_slice(&[protocol, ttl]);
            bytes.extend_from_slice(&src.octets());
            bytes.extend_from_slice(&dst.octets());
            bytes.extend_from_slice(payload);
            bytes
        }
        _ => Vec::new(),
    }
}

fn ipv4_part(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, ttl: u8, part: Fragment, payload: &[u8]) -> Vec<u8> {
    let mut header = [0u8; 20];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&((20 + payload.len()) as u16).to_be_bytes());
    header[4..6].copy_from_slice(&part.id.to_be_bytes());
    let flags = (part.offset / 8) as u16 | u16::from(part.more) << 13;
    header[6..8].copy_from_slice(&flags.to_be_bytes());
    header[8] = ttl;
    header[9] = protocol;
    header[12..16].copy_from_slice(&src.octets());
    header[16..20].copy_from_slice(&dst.octets());
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [&header[..], payload].concat()
}

/// The packets that carry a UDP datagram: one, or fragments of at most [`MTU`] bytes, told apart by `id`. IPv6 datagrams
/// that do not fit are dropped, as a router does.
pub fn udp(src: SocketAddr, dst: SocketAddr, id: u16, payload: &[u8]) -> Vec<Vec<u8>> {
    let Ok(len) = u16::try_from(8 + payload.len()) else { return Vec::new() };
    let mut datagram = Vec::with_capacity(len.into());
    datagram.extend_from_slice(&src.port().to_be_bytes());
    datagram.extend_from_slice(&dst.port().to_be_bytes());
    datagram.extend_from_slice(&len.to_be_bytes());
    datagram.extend_from_slice(&[0, 0]);
    datagram.extend_from_slice(payload);
    let sum = match transport_checksum(src.ip(), dst.ip(), protocol::UDP, &datagram) {
        // 0 would say that there is none (RFC 768).
        0 => 0xffff,
        sum => sum,
    };
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    match (src.ip(), dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) if datagram.len() > MTU - 20 => {
            let step = (MTU - 20) / 8 * 8;
            let last = (datagram.len() - 1) / step * step;
            let parts = datagram.chunks(step).enumerate();
            let part = |(i, chunk): (usize, &[u8])| {
                let place = Fragment { id, offset: i * step, more: i * step != last };
                ipv4_part(src, dst, protocol::UDP, 64, place, chunk)
            };
            parts.map(part).collect()
        }
        (src, dst) if datagram.len() <= MTU - 20 => vec![ip(src, dst, protocol::UDP, 64, &datagram)],
        _ => Vec::new(),
    }
}

/// "Destination unreachable" with `code` (RFC 792, RFC 4443) about `about`, from `src`.
pub fn unreachable(src: IpAddr, about: &Ip, code_v4: u8, code_v6: u8) -> Vec<u8> {
    let quoted = &about.whole[..about.whole.len().min(548)];
    match src {
        IpAddr::V4(_) => {
            let mut message = [&[3, code_v4, 0, 0, 0, 0, 0, 0], quoted].concat();
            let sum = checksum(&[&message]);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            ip(src, about.src, protocol::ICMP, 64, &message)
        }
        IpAddr::V6(_) => icmpv6(src, about.src, &[&[1, code_v6, 0, 0, 0, 0, 0, 0], quoted].concat()),
    }
}

/// An ICMPv6 packet around `message`, whose checksum is filled in.
pub fn icmpv6(src: IpAddr, dst: IpAddr, message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    let sum = transport_checksum(src, dst, protocol::ICMPV6, &message);
    if let Some(field) = message.get_mut(2..4) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
    // 255 proves to the receiver that no router passed it on (RFC 4861 7.1).
    ip(src, dst, protocol::ICMPV6, 255, &message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn checksums_of_the_rfc() {
        // RFC 1071 section 3: the sum of these words is 0xddf2.
        assert_eq!(checksum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
        assert_eq!(checksum(&[&[0x12, 0x34, 0x56]]), !(0x1234 + 0x5600));
        assert_eq!(checksum(&[&[0xff; 65000]]), 0);
    }

    #[test]
    fn datagrams_read_as_they_were_made() {
        for (src, dst) in [("10.0.2.2:53", "10.0.2.15:4000"), ("[fec0::2]:53", "[fec0::15]:4000")] {
            let [packet] = &udp(addr(src), addr(dst), 7, b"odd")[..] else { panic!("one packet") };
            let ip = Ip::parse(packet).unwrap();
            assert_eq!((ip.src, ip.dst, ip.protocol), (addr(src).ip(), addr(dst).ip(), protocol::UDP));
            let udp = Udp::parse(&ip).unwrap();
            assert_eq!((udp.src, udp.dst, udp.payload), (53, 4000, &b"odd"[..]));
            let mut bad = packet.clone();
            *bad.last_mut().unwrap() ^= 1;
            assert!(Udp::parse(&Ip::parse(&bad).unwrap()).is_none(), "a wrong checksum");
        }
    }

    #[test]
    fn long_datagrams_come_in_fragments() {
        let payload: Vec<u8> = (0..4000u32).map(|i| i as u8).collect();
        let packets = udp(addr("10.0.2.2:1"), addr("10.0.2.15:2"), 9, &payload);
        assert_eq!(packets.len(), 3);
        let mut whole = Vec::new();
        for (i, packet) in packets.iter().enumerate() {
            assert!(packet.len() <= MTU);
            let ip = Ip::parse(packet).unwrap();
            assert_eq!(ip.fragment, Some(Fragment { id: 9, offset: whole.len(), more: i < 2 }));
            whole.extend_from_slice(ip.payload);
        }
        assert_eq!(&whole[8..], payload);
        let exact = vec![0; 2 * 1480 - 8];
        let packets = udp(addr("10.0.2.2:1"), addr("10.0.2.15:2"), 9, &exact);
        let more: Vec<_> = packets.iter().map(|p| Ip::parse(p).unwrap().fragment.unwrap().more).collect();
        assert_eq!(more, [true, false]);
    }

    #[test]
    fn the_longest_segment_is_found_among_options() {
        let header = |options: &[u8]| {
            let mut header = [0; 20];
            header[12] = ((20 + options.len()) as u8 / 4) << 4;
            [&header[..], options].concat()
        };
        assert_eq!(longest_segment(&header(&[1, 1, 4, 2, 2, 4, 5, 0xb4])), Some(1460));
        assert_eq!(longest_segment(&header(&[3, 0, 2, 4, 5, 0xb4, 0, 0])), Some(1460), "a length that cannot be");
        for none in [&[][..], &[0, 2, 4, 5], &[1, 1, 1, 9], &[3, 200, 2, 4]] {
            assert_eq!(longest_segment(&header(none)), None);
        }
    }

    #[test]
    fn truncated_packets_are_refused() {
        let packet = &udp(addr("10.0.2.2:1"), addr("10.0.2.15:2"), 0, b"0123456789")[0];
        let short = (0..packet.len()).filter(|len| Ip::parse(&packet[..*len]).is_some()).count();
        assert_eq!(short, 0);
        let packet = &udp(addr("[fec0::2]:1"), addr("[fec0::15]:2"), 0, b"0123456789")[0];
        assert!((0..packet.len()).all(|len| Ip::parse(&packet[..len]).is_none()));
    }
}
