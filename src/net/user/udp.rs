//! UDP: each port of the guest's that sends gets a host socket, which answers come back to.

use super::outbox::Outbox;
use super::packet;
use crate::net::poller::{Owner, Poller};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

/// Most ports of the guest's at a time; the one silent for longest goes first.
const PORTS: usize = 512;
/// Peers of one port that may answer.
const PEERS: usize = 256;
/// A port that is silent for so long is forgotten (RFC 4787 asks for 2 minutes at least).
const SILENCE_NS: u64 = 240_000_000_000;
/// Datagrams taken from one socket in a row.
const BURST: usize = 64;

struct Port {
    guest: SocketAddr,
    socket: UdpSocket,
    /// Host addresses that were sent to, and how the guest knows them.
    peers: HashMap<SocketAddr, SocketAddr>,
    used_at: u64,
}

/// The guest's ports.
pub struct UdpPorts {
    ports: HashMap<u64, Port>,
    /// By the guest's end, and whether the other end is IPv6.
    by_guest: HashMap<(SocketAddr, bool), u64>,
    next_id: u64,
    /// Identification of fragmented datagrams.
    fragment_id: u16,
    buffer: Vec<u8>,
}

impl UdpPorts {
    /// None yet.
    pub fn new() -> Self {
        Self { ports: HashMap::new(), by_guest: HashMap::new(), next_id: 0, fragment_id: 0, buffer: vec![0; 0x1_0000] }
    }

    /// Closes all ports. What the poller still tells of them finds nothing.
    pub fn restart(&mut self) {
        *self = Self { next_id: self.next_id, ..Self::new() };
    }

    /// Number of ports in use.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.ports.len()
    }

    /// The guest's ends.
    pub fn list(&self) -> Vec<(SocketAddr, i32)> {
        self.ports.values().map(|port| (port.guest, port.socket.as_raw_fd())).collect()
    }

    /// Sends a datagram of the guest's to `to`, which it knows as `known_as`.
    pub fn send(
        &mut self,
        guest: SocketAddr,
        known_as: SocketAddr,
        to: SocketAddr,
        data: &[u8],
        now_ns: u64,
        poller: &Poller,
    ) -> io::Result<()> {
        let key = (guest, to.is_ipv6());
        let id = match self.by_guest.get(&key) {
            Some(id) => *id,
            None => self.open(key, now_ns, poller)?,
        };
        let Some(port) = self.ports.get_mut(&id) else { return Ok(()) };
        port.used_at = now_ns;
        if port.peers.len() >= PEERS && !port.peers.contains_key(&to) {
            port.peers.clear();
        }
        port.peers.insert(to, known_as);
        port.socket.send_to(data, to).map(|_| ())
    }

    fn open(&mut self, key: (SocketAddr, bool), now_ns: u64, poller: &Poller) -> io::Result<u64> {
        if self.ports.len() >= PORTS {
            let oldest = self.ports.iter().min_by_key(|(_, port)| port.used_at).map(|(id, _)| *id);
            oldest.into_iter().for_each(|id| self.close(id));
        }
        let any: IpAddr = if key.1 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_nonblocking(true)?;
        let id = self.next_id;
        poller.add(&socket, Owner::Udp(id))?;
        self.next_id += 1;
        self.ports.insert(id, Port { guest: key.0, socket, peers: HashMap::new(), used_at: now_ns });
        self.by_guest.insert(key, id);
        Ok(id)
    }

    fn close(&mut self, id: u64) {
        self.ports.remove(&id);
        self.by_guest.retain(|_, other| *other != id);
    }

    /// A port's socket has datagrams. `true`: there are more.
    pub fn readable(&mut self, id: u64, now_ns: u64, outbox: &mut Outbox) -> bool {
        let Some(port) = self.ports.get_mut(&id) else { return false };
        for _ in 0..BURST {
            match port.socket.recv_from(&mut self.buffer) {
                Ok((len, from)) => {
                    // Only who was spoken to may answer.
                    let Some(known_as) = port.peers.get(&from) else { continue };
                    port.used_at = now_ns;
                    self.fragment_id = self.fragment_id.wrapping_add(1);
                    let data = self.buffer.get(..len).unwrap_or_default();
                    outbox.packets(packet::udp(*known_as, port.guest, self.fragment_id, data));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                // An earlier datagram was refused; others may be waiting.
                Err(_) => {}
            }
        }
        true
    }

    /// Forgets ports that are silent.
    pub fn expire(&mut self, now_ns: u64) {
        let silent = |port: &Port| now_ns.saturating_sub(port.used_at) >= SILENCE_NS;
        let over: Vec<u64> = self.ports.iter().filter(|(_, port)| silent(port)).map(|(id, _)| *id).collect();
        over.into_iter().for_each(|id| self.close(id));
    }

    /// When [`UdpPorts::expire`] has something to do.
    pub fn deadline(&self) -> Option<u64> {
        self.ports.values().map(|port| port.used_at + SILENCE_NS).min()
    }
}
