//! Ports of the host that lead into the guest (`hostfwd`), and who holds a port that is not free.

use super::outbox::Outbox;
use super::packet;
use super::tcp::TcpFlows;
use crate::cli::config::network::HostForward;
use crate::net::holder::holder;
use crate::net::poller::{Owner, Poller};
use anyhow::{Context, Result, anyhow};
use socket2::{Domain, SockAddr, Socket, Type};
use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

/// Connections and datagrams taken from one port in a row.
const BURST: usize = 64;
/// Callers of UDP ports that are remembered.
const CALLERS: usize = 1024;
const BACKLOG: i32 = 128;

enum Listener {
    Tcp(Socket),
    Udp(UdpSocket),
}

struct Forward {
    listener: Listener,
    bound: SocketAddr,
    guest: SocketAddr,
}

/// The forwarded ports.
#[derive(Default)]
pub struct Forwards {
    forwards: HashMap<u64, Forward>,
    next_id: u64,
    /// Callers by the guest's end and the address by which the guest knows them.
    callers: HashMap<(SocketAddr, SocketAddr), (u64, SocketAddr)>,
    buffer: Vec<u8>,
}

/// How the guest sees a caller: callers on the host itself as `host`.
fn seen_as(caller: SocketAddr, host: IpAddr) -> SocketAddr {
    match caller.ip() {
        ip if ip.is_loopback() || ip.is_ipv4() != host.is_ipv4() => SocketAddr::new(host, caller.port()),
        _ => caller,
    }
}

impl Forwards {
    /// No ports.
    pub fn new() -> Self {
        Self { buffer: vec![0; 0x1_0000], ..Self::default() }
    }

    /// Opens a port. The result is where it is.
    pub fn add(&mut self, forward: &HostForward, guest: SocketAddr, poller: &Poller) -> Result<SocketAddr> {
        let what = describe(forward, guest);
        let id = self.next_id;
        let (listener, bound) = open(forward).map_err(|error| match error.kind() {
            ErrorKind::AddrInUse => anyhow!("{what}: port {} is taken{}", forward.host.port(), remedy(forward)),
            ErrorKind::PermissionDenied => {
                anyhow!("{what}: ports below 1024 are for privileged processes; choose a higher one")
            }
            ErrorKind::AddrNotAvailable => anyhow!("{what}: the host has no address {}", forward.host.ip()),
            _ => anyhow!("{what}: {error}"),
        })?;
        match &listener {
            Listener::Tcp(socket) => poller.add(socket, Owner::Forward(id)),
            Listener::Udp(socket) => poller.add(socket, Owner::Forward(id)),
        }
        .context(what)?;
        self.next_id += 1;
        self.forwards.insert(id, Forward { listener, bound, guest });
        Ok(bound)
    }

    /// Closes a port; `false`: there is none. Connections through it go on.
    pub fn remove(&mut self, udp: bool, host: SocketAddr) -> bool {
        let same = |f: &Forward| f.bound == host && matches!(f.listener, Listener::Udp(_)) == udp;
        let before = self.forwards.len();
        self.forwards.retain(|_, forward| !same(forward));
        self.forwards.len() != before
    }

    /// The ports: whether UDP, the descriptor, where on the host, where in the guest.
    pub fn list(&self) -> Vec<(bool, i32, SocketAddr, SocketAddr)> {
        let row = |f: &Forward| match &f.listener {
            Listener::Tcp(socket) => (false, socket.as_raw_fd(), f.bound, f.guest),
            Listener::Udp(socket) => (true, socket.as_raw_fd(), f.bound, f.guest),
        };
        self.forwards.values().map(row).collect()
    }

    /// Somebody called. `host` gives the address that stands for the host, by version. `true`: there are more.
    pub fn called(
        &mut self,
        id: u64,
        host: impl Fn(IpAddr) -> IpAddr,
        flows: &mut TcpFlows,
        poller: &Poller,
        outbox: &mut Outbox,
    ) -> bool {
        let Some(forward) = self.forwards.get(&id) else { return false };
        let (guest, ours) = (forward.guest, host(forward.guest.ip()));
        for _ in 0..BURST {
            match &forward.listener {
                Listener::Tcp(listener) => match listener.accept() {
                    Ok((socket, caller)) => {
                        let ready = socket.set_nonblocking(true).and_then(|()| socket.set_tcp_nodelay(true));
                        let caller = caller.as_socket().filter(|_| ready.is_ok());
                        if let Some(caller) = caller {
                            flows.accepted(socket, guest, seen_as(caller, ours), poller);
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                    // The caller has gone again, or the host has no descriptors left for it.
                    Err(_) => return false,
                },
                Listener::Udp(socket) => match socket.recv_from(&mut self.buffer) {
                    Ok((len, caller)) => {
                        let known_as = seen_as(caller, ours);
                        if self.callers.len() >= CALLERS {
                            self.callers.clear();
                        }
                        self.callers.insert((guest, known_as), (id, caller));
                        let data = self.buffer.get(..len).unwrap_or_default();
                        outbox.packets(packet::udp(known_as, guest, 0, data));
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                    Err(_) => {}
                },
            }
        }
        true
    }

    /// Sends a datagram of the guest's to a caller; `false` if none is known by that address.
    pub fn answer(&self, guest: SocketAddr, known_as: SocketAddr, data: &[u8]) -> bool {
        let Some((id, caller)) = self.callers.get(&(guest, known_as)) else { return false };
        let Some(Forward { listener: Listener::Udp(socket), .. }) = self.forwards.get(id) else { return false };
        // A datagram may get lost.
        let _ = socket.send_to(data, caller);
        true
    }
}

fn open(forward: &HostForward) -> std::io::Result<(Listener, SocketAddr)> {
    if forward.udp {
        let socket = UdpSocket::bind(forward.host)?;
        socket.set_nonblocking(true)?;
        let bound = socket.local_addr()?;
        return Ok((Listener::Udp(socket), bound));
    }
    let socket = Socket::new(Domain::for_address(forward.host), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(forward.host))?;
    socket.listen(BACKLOG)?;
    let bound = socket.local_addr()?.as_socket().unwrap_or(forward.host);
    Ok((Listener::Tcp(socket), bound))
}

fn describe(forward: &HostForward, guest: SocketAddr) -> String {
    let kind = if forward.udp { "udp" } else { "tcp" };
    format!("hostfwd={kind}:{}-{}", colons(forward.host), colons(guest))
}

/// An end as the option has it.
fn colons(end: SocketAddr) -> String {
    match end.ip() {
        ip if ip.is_unspecified() => format!(":{}", end.port()),
        IpAddr::V4(ip) => format!("{ip}:{}", end.port()),
        IpAddr::V6(ip) => format!("[{ip}]:{}", end.port()),
    }
}

/// Who holds the port, and what to do.
fn remedy(forward: &HostForward) -> String {
    let port = forward.host.port();
    let advice = "choose another, or 0 for a free one";
    match holder(forward.udp, port) {
        Some((pid, command)) => format!(" by process {pid} ({command}); end that, or {advice}"),
        None => format!("; {advice}"),
    }
}
