//! What the network does with each frame of the guest's, and with what happens on the host.

use super::OpenPort;
use super::dhcp::{self, Dhcp};
use super::forward::Forwards;
use super::ipv6;
use super::outbox::{self, Outbox, Outgoing};
use super::packet::{self, Frame, Ip, Udp, ethertype, protocol};
use super::ping::{self, Pings};
use super::reassembly::Reassembly;
use super::resolver::{self, Resolver};
use super::tcp::TcpFlows;
use super::tftp::Tftp;
use super::udp::UdpPorts;
use crate::cli::config::network::{ForwardTarget, HostForward, UserNetConfig};
use crate::net::poller::{Owner, Poller};
use anyhow::Result;
use brolga_devices::services::Takes;
use std::fmt::Write;
use std::hash::{BuildHasher, RandomState};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// Rounds of host events taken before the guest's side gets its turn.
const ROUNDS: usize = 16;
const BOOTP_PORT: u16 = 67;
const TFTP_PORT: u16 = 69;

/// The network's state.
pub struct Stack {
    config: UserNetConfig,
    poller: Arc<Poller>,
    outbox: Outbox,
    tcp: TcpFlows,
    udp: UdpPorts,
    pings: Pings,
    dhcp: Dhcp,
    tftp: Option<Tftp>,
    forwards: Forwards,
    resolver: Resolver,
    reassembly: Reassembly,
    /// Sockets that have more than was taken in one go.
    unfinished: Vec<Owner>,
}

/// Where a packet of the guest's goes.
enum Route {
    /// To one of the network's own addresses.
    Here,
    /// To this address of the host's world.
    Out(SocketAddr),
    /// Nowhere.
    Lost,
}

/// Whether the network answers for an IPv4 address.
fn answers_for(config: &UserNetConfig, address: Ipv4Addr) -> bool {
    let forwarded = config.guest_forwards.iter().any(|f| f.guest.ip() == IpAddr::V4(address));
    address == config.host || address == config.dns || forwarded
}

impl Stack {
    /// Makes the network, with its forwarded ports open. Its host sockets are waited for in `poller`.
    pub fn new(config: UserNetConfig, poller: Arc<Poller>, resolver: Resolver) -> Result<(Self, Vec<OpenPort>)> {
        let mut this = Self {
            outbox: Outbox::new(config.host),
            // Differs from run to run, and the guest cannot compute it.
            tcp: TcpFlows::new(RandomState::new().hash_one(config.host)),
            udp: UdpPorts::new(),
            pings: Pings::default(),
            dhcp: Dhcp::new(),
            tftp: config.tftp.as_deref().map(Tftp::new),
            forwards: Forwards::new(),
            resolver,
            reassembly: Reassembly::default(),
            unfinished: Vec::new(),
            poller,
            config,
        };
        let forwards = std::mem::take(&mut this.config.forwards);
        let ports = forwards.iter().map(|forward| this.add_forward(forward)).collect::<Result<_>>()?;
        Ok((this, ports))
    }

    /// Nothing of what the guest has done so far counts, but for its addresses.
    pub fn restart(&mut self) {
        self.outbox = Outbox::new(self.config.host);
        self.tcp.restart();
        self.udp.restart();
        self.pings.restart();
        self.tftp = self.config.tftp.as_deref().map(Tftp::new);
        self.resolver = Resolver::of_host();
        self.reassembly = Reassembly::default();
        self.unfinished.clear();
    }

    /// Opens a forwarded port.
    pub fn add_forward(&mut self, forward: &HostForward) -> Result<OpenPort> {
        let guest = SocketAddr::new(forward.guest.unwrap_or(self.config.dhcp_start.into()), forward.guest_port);
        let host = self.forwards.add(forward, guest, &self.poller)?;
        Ok(OpenPort { udp: forward.udp, host, guest, chosen: forward.host.port() == 0 })
    }

    /// Closes a forwarded port; `false`: there is none.
    pub fn remove_forward(&mut self, udp: bool, host: SocketAddr) -> bool {
        self.forwards.remove(udp, host)
    }

    /// The next frame for the guest, with no more left to do than its card takes.
    pub fn pop(&mut self, takes: Takes) -> Option<Outgoing> {
        self.outbox.pop(takes)
    }

    /// Takes a frame back that the guest has no room for.
    pub fn push_back(&mut self, frame: Outgoing) {
        self.outbox.push_back(frame);
    }

    /// Whether more may be sent to the guest than waits for it now.
    pub fn has_room(&self) -> bool {
        self.outbox.has_room()
    }

    /// A frame from the guest. What it leads to happens at the next [`Stack::serve`].
    pub fn guest_frame(&mut self, bytes: &[u8], now_ns: u64) {
        let Some(frame) = Frame::parse(bytes) else { return };
        match frame.ethertype {
            ethertype::ARP if self.config.ipv4 => {
                let config = &self.config;
                outbox::arp_received(&mut self.outbox, frame.payload, |address| answers_for(config, address));
            }
            ethertype::IPV4 if self.config.ipv4 => self.packet(&frame, now_ns),
            ethertype::IPV6 if self.config.ipv6 => self.packet(&frame, now_ns),
            _ => {}
        }
    }

    fn packet(&mut self, frame: &Frame, now_ns: u64) {
        let Some(ip) = Ip::parse(frame.payload) else { return };
        if (ip.src.is_ipv4()) != (frame.ethertype == ethertype::IPV4) || self.is_own(ip.src) {
            return;
        }
        outbox::learn_sender(&mut self.outbox, &ip, frame.from);
        match ip.fragment {
            None => self.whole_packet(&ip, frame, now_ns),
            Some(_) => {
                let Some(payload) = self.reassembly.add(&ip) else { return };
                let whole = packet::ip(ip.src, ip.dst, ip.protocol, ip.ttl, &payload);
                if let Some(ip) = Ip::parse(&whole) {
                    self.whole_packet(&ip, frame, now_ns);
                }
            }
        }
    }

    fn whole_packet(&mut self, ip: &Ip, frame: &Frame, now_ns: u64) {
        match ip.protocol {
            protocol::TCP => self.tcp_segment(ip, now_ns),
            protocol::UDP => self.datagram(ip, now_ns),
            _ if ping::is_echo(ip) => match self.route(SocketAddr::new(ip.dst, 0), now_ns) {
                _ if self.is_own(ip.dst) => ping::answer(ip, &mut self.outbox),
                Route::Out(_) if !self.config.restrict => self.pings.send(ip, now_ns, &self.poller),
                _ => {}
            },
            protocol::ICMPV6 => ipv6::received(&self.config, ip, frame.from, &mut self.outbox),
            _ => {}
        }
    }

    /// Whether an address is one of the network's own.
    fn is_own(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => answers_for(&self.config, v4),
            IpAddr::V6(v6) => ipv6::ours(&self.config, v6),
        }
    }

    /// Where an address and port of the guest's leads.
    fn route(&mut self, to: SocketAddr, now_ns: u64) -> Route {
        let (host, dns, loopback, local): (IpAddr, IpAddr, IpAddr, bool) = match to.ip() {
            IpAddr::V4(v4) => {
                let mask = dhcp::mask(&self.config);
                let local = u32::from(v4) & mask == u32::from(self.config.net) & mask || v4.is_broadcast();
                (self.config.host.into(), self.config.dns.into(), Ipv4Addr::LOCALHOST.into(), local)
            }
            IpAddr::V6(v6) => {
                let [a, b, c, d, ..] = v6.segments();
                let [p, q, r, s, ..] = self.config.net6.segments();
                let local = [a, b, c, d] == [p, q, r, s] || a & 0xffc0 == 0xfe80 || v6.to_ipv4_mapped().is_some();
                (self.config.host6.into(), self.config.dns6.into(), Ipv6Addr::LOCALHOST.into(), local)
            }
        };
        let address = to.ip();
        match address {
            _ if address == dns && to.port() == resolver::PORT => match self.resolver.server(now_ns) {
                Some(server) => Route::Out(server),
                None => Route::Lost,
            },
            _ if address == host => Route::Out(SocketAddr::new(loopback, to.port())),
            _ if self.is_own(address) => Route::Here,
            _ if local || address.is_loopback() || address.is_multicast() || address.is_unspecified() => Route::Lost,
            _ => Route::Out(to),
        }
    }

    fn tcp_segment(&mut self, ip: &Ip, now_ns: u64) {
        // Asked only for the first segment of a connection.
        let Some(start) = packet::TcpStart::parse(ip) else { return };
        let far = SocketAddr::new(ip.dst, start.dst);
        let forwarded = self.config.guest_forwards.iter().find(|f| f.guest == far).map(|f| f.target.clone());
        let target = match forwarded {
            _ if !start.opens => None,
            Some(target) => Some(target),
            None if self.config.restrict => None,
            None => match self.route(far, now_ns) {
                Route::Out(address) => Some(ForwardTarget::Tcp(address)),
                Route::Here | Route::Lost => None,
            },
        };
        self.tcp.segment(ip, now_ns, &self.poller, &mut self.outbox, target);
    }

    fn datagram(&mut self, ip: &Ip, now_ns: u64) {
        let Some(udp) = Udp::parse(ip) else { return };
        let (guest, to) = (SocketAddr::new(ip.src, udp.src), SocketAddr::new(ip.dst, udp.dst));
        let to_host = to.ip() == IpAddr::V4(self.config.host) || to.ip() == IpAddr::V6(self.config.host6);
        if to.port() == BOOTP_PORT && (to_host || to.ip() == IpAddr::V4(Ipv4Addr::BROADCAST)) {
            if let Some((mac, packet)) = self.dhcp.received(&self.config, udp.payload, now_ns) {
                self.outbox.packet_to(mac, &packet);
            }
            return;
        }
        if let Some(tftp) = self.tftp.as_mut().filter(|_| to_host && to.port() == TFTP_PORT) {
            return tftp.received(guest, to, udp.payload, now_ns, &mut self.outbox);
        }
        if guest.port() == 0 || self.forwards.answer(guest, to, udp.payload) || self.config.restrict {
            return;
        }
        let Route::Out(address) = self.route(to, now_ns) else { return };
        match self.udp.send(guest, to, address, udp.payload, now_ns, &self.poller) {
            Err(error) if matches!(error.kind(), ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable) => {
                let from = if ip.dst.is_ipv4() { self.config.host.into() } else { self.config.host6.into() };
                self.outbox.packet(&packet::unreachable(from, ip, 0, 0));
            }
            // Anything else is a datagram lost on the way.
            _ => {}
        }
    }

    /// Moves everything as far as it goes.
    pub fn serve(&mut self, now_ns: u64) {
        for owner in std::mem::take(&mut self.unfinished) {
            self.readable(owner, now_ns);
        }
        for _ in 0..ROUNDS {
            let (happenings, more) = self.poller.take();
            for what in happenings {
                match what.owner {
                    Owner::Tcp(id) => self.tcp.happened(id, what, now_ns, &mut self.outbox),
                    owner if what.readable => self.readable(owner, now_ns),
                    _ => {}
                }
            }
            if !more {
                break;
            }
        }
        self.tcp.serve(now_ns, &mut self.outbox);
        self.udp.expire(now_ns);
        self.pings.expire(now_ns);
    }

    fn readable(&mut self, owner: Owner, now_ns: u64) {
        let Self { config, poller, outbox, tcp, udp, pings, forwards, .. } = self;
        let host = |guest: IpAddr| if guest.is_ipv4() { config.host.into() } else { config.host6.into() };
        let more = match owner {
            Owner::Tcp(_) => false,
            Owner::Udp(id) => udp.readable(id, now_ns, outbox),
            Owner::Forward(id) => forwards.called(id, host, tcp, poller, outbox),
            Owner::Ping(id) => {
                pings.readable(id, outbox);
                false
            }
        };
        if more {
            self.unfinished.push(owner);
        }
    }

    /// When [`Stack::serve`] has to be called next although nothing happens.
    pub fn deadline(&mut self, now_ns: u64) -> Option<u64> {
        let unfinished = (!self.unfinished.is_empty()).then_some(now_ns);
        let all = [unfinished, self.tcp.deadline(now_ns, &self.outbox), self.udp.deadline(), self.pings.deadline()];
        all.into_iter().flatten().min()
    }

    /// The network for people: forwarded ports, leases, connections.
    pub fn describe(&self, now_ns: u64) -> String {
        let mut text = "  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\n".to_owned();
        let mut row = |what: String, fd: i32, [from, to]: [SocketAddr; 2], queued: [usize; 2]| {
            let shown = |address: SocketAddr| match address.ip() {
                ip if ip.is_unspecified() => "*".to_owned(),
                ip => ip.to_string(),
            };
            let (source, target, [received, sent]) = (shown(from), shown(to), queued);
            let (port, to_port) = (from.port(), to.port());
            let _ = writeln!(
                text,
                "{what:<19} {fd:3} {source:>15} {port:5} {target:>15} {to_port:5} {received:5} {sent:5}"
            );
        };
        for (udp, fd, host, guest) in self.forwards.list() {
            row(format!("  {}[HOST_FORWARD]", if udp { "UDP" } else { "TCP" }), fd, [host, guest], [0, 0]);
        }
        for flow in self.tcp.list() {
            row(format!("  TCP[{}]", flow.state), flow.fd, [flow.guest, flow.far], [flow.received, flow.sent]);
        }
        for (guest, fd) in self.udp.list() {
            row("  UDP[OPEN]".to_owned(), fd, [guest, SocketAddr::from(([0, 0, 0, 0], 0))], [0, 0]);
        }
        for (address, [a, b, c, d, e, f]) in self.dhcp.leased(&self.config, now_ns) {
            let _ = writeln!(text, "  DHCP lease {address} {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
        }
        text
    }

    /// Connections and UDP ports, for tests of their limits.
    #[cfg(test)]
    pub fn counts(&self) -> (usize, usize) {
        (self.tcp.len(), self.udp.len())
    }
}
