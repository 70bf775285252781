//! Frames on their way to the guest, and which station has which address.

use super::packet::{self, BROADCAST, Ip, Mac, ethertype};
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};

/// Frames that wait for the guest; more are dropped, as a full switch does. TCP stops earlier and loses nothing.
const LIMIT: usize = 1024;
/// Stations whose addresses are remembered: there is one guest, but it can claim any number of addresses.
const STATIONS: usize = 256;

/// The way to the guest.
pub struct Outbox {
    /// Our own station.
    mac: Mac,
    /// From which address unknown stations are asked for.
    host: Ipv4Addr,
    stations: HashMap<IpAddr, Mac>,
    /// The station that spoke last.
    last: Mac,
    frames: VecDeque<Vec<u8>>,
}

impl Outbox {
    /// Nothing to send; `host` is our address.
    pub fn new(host: Ipv4Addr) -> Self {
        let [a, b, c, d] = host.octets();
        Self { mac: [0x52, 0x55, a, b, c, d], host, stations: HashMap::new(), last: BROADCAST, frames: VecDeque::new() }
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
        self.frames.len() < LIMIT / 2
    }

    /// Sends a frame as it is.
    pub fn frame(&mut self, frame: Vec<u8>) {
        if self.frames.len() < LIMIT {
            self.frames.push_back(frame);
        }
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
        let Some(dst) = destination(packet) else { return };
        match (self.stations.get(&dst).copied(), dst) {
            (Some(mac), _) => self.packet_to(mac, packet),
            (None, IpAddr::V4(dst)) if !dst.is_broadcast() => {
                // Whoever sent the packet repeats it, and by then the station has answered.
                self.ask(dst);
            }
            _ => self.packet_to(self.last, packet),
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

    /// The next frame for the guest.
    pub fn pop(&mut self) -> Option<Vec<u8>> {
        self.frames.pop_front()
    }

    /// Puts a frame back that the guest could not take.
    pub fn push_back(&mut self, frame: Vec<u8>) {
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
