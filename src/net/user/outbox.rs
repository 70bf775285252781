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
/// Place of the checksum in a TCP header.
const TCP_SUM: usize = 16;
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
        let sum = transport + TCP_SUM;
        if self.rest.segment == 0 {
            let end = self.bytes.len();
            offload::put_sum(&mut self.bytes, transport, end, sum);
            return each(self.bytes);
        }
        let len = transport + usize::from(self.bytes.get(transport + 12).copied().unwrap_or(0) >> 4) * 4;
        let headers = Headers { ip: ETHERNET, ipv4: self.is_v4(), transport, tcp: true, sum, len };
        offload::segment_open(&self.bytes, headers, self.rest.segment.into(), each);
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
        self.add(Outgoing { bytes: frame, rest: Unfinished { sum: Some(transport as u16), segment } });
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
            return Some(next);
        }
        let mut parts = Vec::new();
        next.finish(|bytes| parts.push(Outgoing { bytes, rest: Unfinished::default() }));
        let mut parts = parts.into_iter();
        let first = parts.next();
        parts.rev().for_each(|part| self.push_back(part));
        first.or_else(|| self.pop(takes))
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
