//! Frames on their way to the guest, and which station has which address.

use super::packet::{self, BROADCAST, ETHERNET, Ip, Mac, ethertype, protocol};
use brolga_devices::offload::{self, Headers};
use brolga_devices::services::{Takes, Unfinished};
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};

/// Frames that wait for the guest; more are dropped, as a full switch does. TCP stops earlier and loses nothing.
const LIMIT: usize = 1024;
/// Bytes that wait for the guest before TCP has to stop.
const BYTES: usize = 2 << 20;
/// Place of the checksum in a TCP header, and in one of UDP, with that one's length.
const TCP_SUM: usize = 16;
const UDP_SUM: usize = 6;
const UDP_HEADER: usize = 8;
/// Datagrams that go to the guest in one frame, at most, and bytes of that frame: what guests' kernels take.
const DATAGRAMS: usize = 64;
const LONGEST: usize = 65_535;
/// Stations whose addresses are remembered: there is one guest, but it can claim any number of addresses.
const STATIONS: usize = 256;

/// A frame for the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// The frame.
    pub bytes: Vec<u8>,
    /// What is left to do about it.
    pub rest: Unfinished,
}

impl Outgoing {
    /// Whether a card that takes so much can have it as it is.
    fn suits(&self, takes: Takes) -> bool {
        match (self.rest.sum, self.rest.segment) {
            (None, _) => true,
            (Some(_), 0) => takes.sums,
            (Some(_), _) if self.rest.udp => takes.datagrams(self.is_v4()),
            (Some(_), _) if self.is_v4() => takes.large_v4,
            (Some(_), _) => takes.large_v6,
        }
    }

    fn is_v4(&self) -> bool {
        packet::be16(&self.bytes, ETHERNET - 2) == Some(ethertype::IPV4)
    }

    /// Does what is left to do: each of the frames it comes to goes to `each`.
    fn finish(mut self, mut each: impl FnMut(Vec<u8>)) {
        let Some(transport) = self.rest.sum.map(usize::from) else { return each(self.bytes) };
        let sum = transport + if self.rest.udp { UDP_SUM } else { TCP_SUM };
        if self.rest.segment == 0 {
            let end = self.bytes.len();
            offload::put_sum(&mut self.bytes, transport, end, sum);
            return each(self.bytes);
        }
        let len = match self.rest.udp {
            true => UDP_HEADER,
            false => usize::from(self.bytes.get(transport + 12).copied().unwrap_or(0) >> 4) * 4,
        };
        let (len, tcp) = (transport + len, !self.rest.udp);
        let headers = Headers { ip: ETHERNET, ipv4: self.is_v4(), transport, tcp, sum, len };
        offload::segment_open(&self.bytes, headers, self.rest.segment.into(), each);
    }
}

/// A UDP datagram in a frame of its own, as it is seen by who puts several into one.
struct Datagram<'a> {
    /// All headers but lengths, sums and the packet's number: those that belong together have the same.
    alike: [&'a [u8]; 3],
    v4: bool,
    /// Where the UDP header starts.
    transport: usize,
    payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// `None`: the frame is none, or a fragment, or has options or no checksum.
    fn of(frame: &'a Outgoing) -> Option<Self> {
        let bytes = frame.bytes.as_slice();
        let v4 = frame.is_v4();
        let (version, transport) = if v4 { (0x45, ETHERNET + 20) } else { (0x60, ETHERNET + 40) };
        let (next, addresses) = if v4 { (ETHERNET + 9, ETHERNET + 12) } else { (ETHERNET + 6, ETHERNET + 7) };
        let whole = !v4 || packet::be16(bytes, ETHERNET + 6)? & 0x3fff == 0;
        let first = *bytes.get(ETHERNET)?;
        let right = if v4 { first == version } else { first & 0xf0 == version };
        let sum = packet::be16(bytes, transport + UDP_SUM)?;
        let payload = bytes.get(transport + UDP_HEADER..)?;
        let len = usize::from(packet::be16(bytes, transport + 4)?);
        let sound = frame.rest.sum.is_none() && whole && right && sum != 0 && len == UDP_HEADER + payload.len();
        if !sound || *bytes.get(next)? != protocol::UDP || payload.is_empty() {
            return None;
        }
        let traffic = if v4 { ETHERNET + 2 } else { ETHERNET + 4 };
        let alike = [bytes.get(..traffic)?, bytes.get(addresses..transport)?, bytes.get(transport..transport + 4)?];
        Some(Self { alike, v4, transport, payload })
    }
}

/// The way to the guest.
pub struct Outbox {
    /// Our own station.
    mac: Mac,
    /// From which address unknown stations are asked for.
    host: Ipv4Addr,
    stations: HashMap<IpAddr, Mac>,
    /// The station that spoke last.
    last: Mac,
    frames: VecDeque<Outgoing>,
    /// Bytes in them.
    bytes: usize,
}

impl Outbox {
    /// Nothing to send; `host` is our address.
    pub fn new(host: Ipv4Addr) -> Self {
        let [a, b, c, d] = host.octets();
        Self {
            mac: [0x52, 0x55, a, b, c, d],
            host,
            stations: HashMap::new(),
            last: BROADCAST,
            frames: VecDeque::new(),
            bytes: 0,
        }
    }

    /// Our station.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// Station `mac` has `address`.
    pub fn learn(&mut self, address: IpAddr, mac: Mac) {
        if mac[0] & 1 != 0 || address.is_unspecified() || address.is_multicast() {
            return;
        }
        self.last = mac;
        if self.stations.len() >= STATIONS && !self.stations.contains_key(&address) {
            self.stations.clear();
        }
        self.stations.insert(address, mac);
    }

    /// Whether TCP may add another frame.
    pub fn has_room(&self) -> bool {
        self.frames.len() < LIMIT / 2 && self.bytes < BYTES
    }

    /// Sends a frame as it is.
    pub fn frame(&mut self, frame: Vec<u8>) {
        self.add(Outgoing { bytes: frame, rest: Unfinished::default() });
    }

    fn add(&mut self, frame: Outgoing) {
        if self.frames.len() < LIMIT {
            self.bytes += frame.bytes.len();
            self.frames.push_back(frame);
        }
    }

    /// Sends a TCP segment whose checksum is not filled in, or several of `segment` bytes of data each in one; `frame`
    /// has room for the Ethernet header before it.
    pub fn tcp(&mut self, mut frame: Vec<u8>, segment: u16) {
        let Some(dst) = frame.get(ETHERNET..).and_then(destination) else { return };
        let Some(mac) = self.station(dst) else { return };
        let header_len = match dst {
            IpAddr::V4(_) => usize::from(frame.get(ETHERNET).copied().unwrap_or(0) & 0xf) * 4,
            IpAddr::V6(_) => 40,
        };
        let Some(ip) = frame.get(ETHERNET..).and_then(Ip::parse) else { return };
        let sum = packet::pseudo_sum(ip.src, ip.dst, protocol::TCP, ip.payload.len());
        let kind = if dst.is_ipv4() { ethertype::IPV4 } else { ethertype::IPV6 };
        packet::put_header(&mut frame, mac, self.mac, kind);
        let transport = ETHERNET + header_len;
        offload::put(&mut frame, transport + TCP_SUM, &sum.to_be_bytes());
        self.add(Outgoing { bytes: frame, rest: Unfinished { sum: Some(transport as u16), segment, udp: false } });
    }

    /// Sends an IP packet to `to`.
    pub fn packet_to(&mut self, to: Mac, packet: &[u8]) {
        let kind = match packet.first().map(|b| b >> 4) {
            Some(4) => ethertype::IPV4,
            Some(6) => ethertype::IPV6,
            _ => return,
        };
        let frame = packet::frame(to, self.mac, kind, packet);
        self.frame(frame);
    }

    /// Sends an IP packet to whoever has its receiver's address.
    pub fn packet(&mut self, packet: &[u8]) {
        let station = destination(packet).and_then(|dst| self.station(dst));
        station.into_iter().for_each(|mac| self.packet_to(mac, packet));
    }

    /// The station that has `address`; `None`: it was asked for.
    fn station(&mut self, address: IpAddr) -> Option<Mac> {
        match (self.stations.get(&address), address) {
            (Some(mac), _) => Some(*mac),
            (None, IpAddr::V4(address)) if !address.is_broadcast() => {
                // Whoever sent the packet repeats it, and by then the station has answered.
                self.ask(address);
                None
            }
            _ => Some(self.last),
        }
    }

    /// Sends several packets, see [`Outbox::packet`].
    pub fn packets(&mut self, packets: Vec<Vec<u8>>) {
        packets.iter().for_each(|packet| self.packet(packet));
    }

    /// An ARP request for `address` (RFC 826).
    fn ask(&mut self, address: Ipv4Addr) {
        let request = arp(1, (self.mac, self.host), ([0; 6], address));
        let frame = packet::frame(BROADCAST, self.mac, ethertype::ARP, &request);
        self.frame(frame);
    }

    /// The next frame for the guest, with no more left to do than its card takes.
    pub fn pop(&mut self, takes: Takes) -> Option<Outgoing> {
        let next = self.frames.pop_front()?;
        self.bytes = self.bytes.saturating_sub(next.bytes.len());
        if next.suits(takes) {
            return Some(self.with_those_alike(next, takes));
        }
        let mut parts = Vec::new();
        next.finish(|bytes| parts.push(Outgoing { bytes, rest: Unfinished::default() }));
        let mut parts = parts.into_iter();
        let first = parts.next();
        parts.rev().for_each(|part| self.push_back(part));
        first.or_else(|| self.pop(takes))
    }

    /// A datagram together with those right behind it that differ in their data only, if the card takes them so.
    fn with_those_alike(&mut self, first: Outgoing, takes: Takes) -> Outgoing {
        let Some(model) = Datagram::of(&first).filter(|datagram| takes.datagrams(datagram.v4)) else { return first };
        let size = model.payload.len();
        let (mut count, mut len, mut data) = (1, first.bytes.len(), Vec::new());
        for frame in self.frames.iter().take(DATAGRAMS - 1) {
            let Some(next) = Datagram::of(frame).filter(|next| next.alike == model.alike) else { break };
            len += next.payload.len();
            if next.payload.len() > size || len > LONGEST {
                break;
            }
            data.extend_from_slice(next.payload);
            count += 1;
            // A shorter one ends the row.
            if next.payload.len() < size {
                break;
            }
        }
        if count == 1 {
            return first;
        }
        let (v4, transport) = (model.v4, model.transport);
        for frame in self.frames.drain(..count - 1) {
            self.bytes = self.bytes.saturating_sub(frame.bytes.len());
        }
        let mut bytes = first.bytes;
        bytes.extend(data);
        let (of_ip, of_udp) = (bytes.len() - ETHERNET, bytes.len() - transport);
        if v4 {
            offload::put(&mut bytes, ETHERNET + 2, &(of_ip as u16).to_be_bytes());
            offload::put(&mut bytes, ETHERNET + 10, &[0, 0]);
            offload::put_sum(&mut bytes, ETHERNET, transport, ETHERNET + 10);
        } else {
            offload::put(&mut bytes, ETHERNET + 4, &(of_udp as u16).to_be_bytes());
        }
        offload::put(&mut bytes, transport + 4, &(of_udp as u16).to_be_bytes());
        let ip = bytes.get(ETHERNET..).and_then(Ip::parse);
        let sum = ip.map_or(0, |ip| packet::pseudo_sum(ip.src, ip.dst, protocol::UDP, of_udp));
        offload::put(&mut bytes, transport + UDP_SUM, &sum.to_be_bytes());
        Outgoing { bytes, rest: Unfinished { sum: Some(transport as u16), segment: size as u16, udp: true } }
    }

    /// Puts a frame back that the guest could not take.
    pub fn push_back(&mut self, frame: Outgoing) {
        self.bytes += frame.bytes.len();
        self.frames.push_front(frame);
    }
}

/// The receiver's address, without looking at the rest.
fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(Ipv4Addr::from(packet::be32(packet, 16)?).into()),
        6 => Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(24..40)?).ok()?)),
        _ => None,
    }
}

/// An ARP packet (RFC 826) for IPv4 over Ethernet.
pub fn arp(operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut bytes = vec![0, 1, 8, 0, 6, 4];
    bytes.extend_from_slice(&operation.to_be_bytes());
    for (mac, address) in [sender, target] {
        bytes.extend_from_slice(&mac);
        bytes.extend_from_slice(&address.octets());
    }
    bytes
}

/// Takes in an ARP packet; an answer to it if it asks for an address for which `ours` speaks.
pub fn arp_received(outbox: &mut Outbox, bytes: &[u8], ours: impl Fn(Ipv4Addr) -> bool) {
    if bytes.get(..6) != Some(&[0, 1, 8, 0, 6, 4]) {
        return;
    }
    let mac = |at: usize| bytes.get(at..at + 6).and_then(|m| Mac::try_from(m).ok());
    let address = |at: usize| packet::be32(bytes, at).map(Ipv4Addr::from);
    let (Some(operation), Some(from), Some(sender), Some(wanted)) =
        (packet::be16(bytes, 6), mac(8), address(14), address(24))
    else {
        return;
    };
    if ours(sender) {
        // A guest that claims the gateway's address would only cut itself off.
        return;
    }
    outbox.learn(sender.into(), from);
    if operation == 1 && ours(wanted) {
        let reply = arp(2, (outbox.mac, wanted), (from, sender));
        let frame = packet::frame(from, outbox.mac, ethertype::ARP, &reply);
        outbox.frame(frame);
    }
}

/// Remembers who sent `ip`.
pub fn learn_sender(outbox: &mut Outbox, ip: &Ip, from: Mac) {
    outbox.learn(ip.src, from);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    const GUEST: Mac = [2, 0, 0, 0, 0, 1];

    /// Datagrams of these lengths, from and to the same ports but for that of the last number.
    fn outbox(version: &str, lens: &[(usize, u16)]) -> (Outbox, Vec<Vec<u8>>) {
        let mut outbox = Outbox::new(Ipv4Addr::new(10, 0, 2, 2));
        let end = |host: &str, port: u16| SocketAddr::new(host.parse().unwrap(), port);
        let (from, to) = if version == "4" { ("10.0.2.2", "10.0.2.15") } else { ("fec0::2", "fec0::15") };
        outbox.learn(to.parse().unwrap(), GUEST);
        for (n, (len, port)) in lens.iter().enumerate() {
            outbox.packets(packet::udp(end(from, 53), end(to, *port), n as u16, &vec![n as u8 + 1; *len]));
        }
        let frames = outbox.frames.iter().map(|frame| frame.bytes.clone()).collect();
        (outbox, frames)
    }

    #[test]
    fn datagrams_of_a_kind_go_together() {
        let all = Takes { sums: true, datagrams_v4: true, datagrams_v6: true, ..Takes::default() };
        for (version, transport) in [("4", 34u16), ("6", 54)] {
            let (mut way, single) = outbox(version, &[(300, 7), (300, 7), (120, 7), (300, 7), (300, 8), (301, 8)]);
            let first = way.pop(all).unwrap();
            assert_eq!(first.rest, Unfinished { sum: Some(transport), segment: 300, udp: true }, "{version}");
            assert_eq!(first.bytes.len(), usize::from(transport) + 8 + 720);
            // What a card cannot take so comes apart again, as it was but for the packets' numbers.
            way.push_back(first);
            let apart: Vec<_> = (0..3).map(|_| way.pop(Takes::default()).unwrap().bytes).collect();
            for (frame, before) in apart.iter().zip(&single) {
                assert_eq!(frame[transport.into()..], before[transport.into()..]);
                let right = (version == "4").then_some(true);
                assert_eq!(offload::check_sums(frame), offload::SumCheck { ip: right, transport: right });
            }
            // Another port, and a longer one, begin anew.
            for frame in &single[3..] {
                let next = way.pop(all).unwrap();
                assert_eq!((&next.bytes, next.rest), (frame, Unfinished::default()));
            }
            assert!(way.pop(all).is_none() && way.bytes == 0);
        }
        // No more than guests take, and none for those that take none.
        let (mut way, _) = outbox("4", &[(1400, 7); 100]);
        let sizes: Vec<_> = std::iter::from_fn(|| way.pop(all)).map(|frame| frame.bytes.len() - 42).collect();
        assert_eq!(sizes, [46 * 1400, 46 * 1400, 8 * 1400]);
        let (mut way, single) = outbox("4", &[(10, 7); 200]);
        assert_eq!(way.pop(all).unwrap().bytes.len(), 42 + 640);
        assert_eq!(way.pop(Takes { datagrams_v6: true, ..Takes::default() }).unwrap().bytes, single[64]);
    }
}
