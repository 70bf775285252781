//! ICMP echo: the virtual addresses answer themselves, others are asked through a socket of the host's.

use super::outbox::Outbox;
use super::packet::{self, Ip, protocol};
use crate::net::poller::{Owner, Poller};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::collections::HashMap;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};

/// ICMP message types (RFC 792, RFC 4443).
const ECHO: u8 = 8;
const ECHO_REPLY: u8 = 0;
const ECHO_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
/// Pings at a time; the oldest goes first.
const PINGS: usize = 32;
/// How long an answer may take.
const PATIENCE_NS: u64 = 10_000_000_000;

struct Ping {
    guest: IpAddr,
    far: IpAddr,
    /// The guest's identifier; the host's socket has its own.
    id: [u8; 2],
    socket: Socket,
    started: u64,
}

/// Pings of the guest's to the outside: one socket for each pair of addresses and identifier.
#[derive(Default)]
pub struct Pings {
    pings: HashMap<u64, Ping>,
    next_id: u64,
    refused: bool,
}

impl Pings {
    /// Nobody waits for answers any more. What the poller still tells of finds nothing.
    pub fn restart(&mut self) {
        self.pings.clear();
    }
}

/// Whether `ip` is an echo request in order.
pub fn is_echo(ip: &Ip) -> bool {
    match ip.dst {
        IpAddr::V4(_) => {
            ip.protocol == protocol::ICMP
                && ip.payload.len() >= 8
                && ip.payload.first() == Some(&ECHO)
                && packet::checksum(&[ip.payload]) == 0
        }
        IpAddr::V6(_) => {
            ip.protocol == protocol::ICMPV6
                && ip.payload.len() >= 8
                && ip.payload.first() == Some(&ECHO_V6)
                && packet::transport_checksum(ip.src, ip.dst, ip.protocol, ip.payload) == 0
        }
    }
}

/// Answers an echo request in the name of the address that it went to.
pub fn answer(ip: &Ip, outbox: &mut Outbox) {
    reply(ip.dst, ip.src, ip.payload, outbox);
}

/// Sends `message`, an echo request or reply, as a reply.
fn reply(from: IpAddr, to: IpAddr, message: &[u8], outbox: &mut Outbox) {
    let mut message = message.to_vec();
    let Some(start) = message.first_chunk_mut::<4>() else { return };
    *start = [if from.is_ipv4() { ECHO_REPLY } else { ECHO_REPLY_V6 }, 0, 0, 0];
    match from {
        IpAddr::V4(_) => {
            let sum = packet::checksum(&[&message]);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            outbox.packet(&packet::ip(from, to, protocol::ICMP, 64, &message));
        }
        IpAddr::V6(_) => outbox.packet(&packet::icmpv6(from, to, &message)),
    }
}

impl Pings {
    /// Passes an echo request on to the host's network.
    pub fn send(&mut self, ip: &Ip, now_ns: u64, poller: &Poller) {
        let Some(id) = ip.payload.get(4..6).and_then(|id| <[u8; 2]>::try_from(id).ok()) else { return };
        let same = |ping: &&mut Ping| ping.guest == ip.src && ping.far == ip.dst && ping.id == id;
        if let Some(ping) = self.pings.values_mut().find(same) {
            ping.started = now_ns;
            // A lost ping is what a guest expects of a network.
            let _ = ping.socket.send(ip.payload);
            return;
        }
        if self.pings.len() >= PINGS {
            let oldest = self.pings.iter().min_by_key(|(_, ping)| ping.started).map(|(id, _)| *id);
            oldest.into_iter().for_each(|id| drop(self.pings.remove(&id)));
        }
        match open(ip.dst, self.next_id, poller) {
            Ok(socket) => {
                let _ = socket.send(ip.payload);
                let ping = Ping { guest: ip.src, far: ip.dst, id, socket, started: now_ns };
                self.pings.insert(self.next_id, ping);
                self.next_id += 1;
            }
            Err(error) if !self.refused => {
                self.refused = true;
                tracing::warn!(
                    "-netdev user: pings to the outside get no answer, as the host lets this process send none ({error}); \
                     sysctl net.ipv4.ping_group_range=\"0 2147483647\" allows it"
                );
            }
            Err(_) => {}
        }
    }

    /// An answer has come.
    pub fn readable(&mut self, id: u64, outbox: &mut Outbox) {
        let Some(ping) = self.pings.get_mut(&id) else { return };
        let mut buffer = [0; 0x1_0000];
        while let Ok(len) = ping.socket.read(&mut buffer) {
            let Some(message) = buffer.get_mut(..len).filter(|m| m.len() >= 8) else { continue };
            let expected = if ping.far.is_ipv4() { ECHO_REPLY } else { ECHO_REPLY_V6 };
            if message.first() == Some(&expected) {
                message[4..6].copy_from_slice(&ping.id);
                reply(ping.far, ping.guest, message, outbox);
            }
        }
    }

    /// Forgets pings that nobody answers.
    pub fn expire(&mut self, now_ns: u64) {
        self.pings.retain(|_, ping| now_ns.saturating_sub(ping.started) < PATIENCE_NS);
    }

    /// When [`Pings::expire`] has something to do.
    pub fn deadline(&self) -> Option<u64> {
        self.pings.values().map(|ping| ping.started + PATIENCE_NS).min()
    }
}

/// A socket for pings to `far`: Linux gives one to unprivileged processes whose group it allows.
fn open(far: IpAddr, id: u64, poller: &Poller) -> io::Result<Socket> {
    let (domain, protocol) = match far {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::from(SocketAddr::new(far, 0)))?;
    poller.add(&socket, Owner::Ping(id))?;
    Ok(socket)
}
