//! A guest for tests: smoltcp on an Ethernet card whose cable loses, repeats and swaps frames when told.

use super::super::resolver::Resolver;
use super::super::stack::Stack;
use crate::cli::config::network::UserNetConfig;
use crate::net::poller::Poller;
use brolga_devices::services::Takes;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, Ipv4Address};
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

pub const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
pub const ADDRESS6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0x15);
const MS: u64 = 1_000_000;

/// xorshift64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 11) as usize % bound
    }
}

/// The guest's card.
#[derive(Default)]
pub struct Cable {
    pub received: VecDeque<Vec<u8>>,
    pub sent: VecDeque<Vec<u8>>,
}

pub struct Received(Vec<u8>);

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

pub struct Sent<'a>(&'a mut VecDeque<Vec<u8>>);

impl phy::TxToken for Sent<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl phy::Device for Cable {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sent<'a>;

    fn receive(&mut self, _timestamp: Instant) -> Option<(Received, Sent<'_>)> {
        Some((Received(self.received.pop_front()?), Sent(&mut self.sent)))
    }

    fn transmit(&mut self, _timestamp: Instant) -> Option<Sent<'_>> {
        (self.sent.len() < 64).then_some(Sent(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

/// A guest, its network, and the time of both.
pub struct World {
    pub stack: Stack,
    pub interface: Interface,
    pub sockets: SocketSet<'static>,
    pub cable: Cable,
    pub now: u64,
    /// One frame in so many is lost, and one repeated or swapped with the next; 0: none.
    pub trouble: usize,
    pub random: Random,
    /// What the network opened.
    pub ports: Vec<super::super::OpenPort>,
}

pub fn config() -> UserNetConfig {
    UserNetConfig::default()
}

impl World {
    /// A guest without an address.
    pub fn bare(config: UserNetConfig, dns: Option<SocketAddr>) -> Self {
        let poller = Arc::new(Poller::new().unwrap());
        let resolver = dns.map_or_else(Resolver::of_host, Resolver::Fixed);
        let (stack, ports) = Stack::new(config, poller, resolver).unwrap();
        let mut cable = Cable::default();
        let mac = HardwareAddress::Ethernet(EthernetAddress(MAC));
        let interface = Interface::new(Config::new(mac), &mut cable, Instant::ZERO);
        let sockets = SocketSet::new(Vec::new());
        Self { stack, interface, sockets, cable, now: 0, trouble: 0, random: Random(0x1234_5678_9abc_def1), ports }
    }

    /// A guest with the usual addresses.
    pub fn new(config: UserNetConfig) -> Self {
        Self::with_dns(config, None)
    }

    /// A guest with the usual addresses, and a name server of the host's.
    pub fn with_dns(config: UserNetConfig, dns: Option<SocketAddr>) -> Self {
        let mut this = Self::bare(config, dns);
        this.interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(IpAddress::Ipv4(ADDRESS), 24)).unwrap();
            addresses.push(IpCidr::new(IpAddress::Ipv6(ADDRESS6), 64)).unwrap();
        });
        this.interface.routes_mut().add_default_ipv4_route(Ipv4Address::new(10, 0, 2, 2)).unwrap();
        this
    }

    /// Frames move once in each direction, and time goes on by a millisecond.
    pub fn step(&mut self) {
        self.now += MS;
        let at = Instant::from_micros((self.now / 1000) as i64);
        self.interface.poll(at, &mut self.cable, &mut self.sockets);
        let mut frames: VecDeque<_> = self.cable.sent.drain(..).collect();
        self.disturb(&mut frames);
        frames.iter().for_each(|frame| self.stack.guest_frame(frame, self.now));
        self.stack.serve(self.now);
        let mut frames: VecDeque<_> =
            std::iter::from_fn(|| self.stack.pop(Takes::default()).map(|frame| frame.bytes)).collect();
        self.disturb(&mut frames);
        self.cable.received.extend(frames);
    }

    fn disturb(&mut self, frames: &mut VecDeque<Vec<u8>>) {
        if self.trouble == 0 {
            return;
        }
        let mut i = 0;
        while i < frames.len() {
            if self.random.below(self.trouble) == 0 {
                match self.random.below(4) {
                    0 => drop(frames.remove(i)),
                    1 => frames.insert(i, frames[i].clone()),
                    2 if i + 1 < frames.len() => frames.swap(i, i + 1),
                    _ => {
                        let at = self.random.below(frames[i].len());
                        frames[i][at] ^= 1 << self.random.below(8);
                    }
                }
            }
            i += 1;
        }
    }

    /// Steps until `done` says so. Host sockets need real time, so a step that is not the last is followed by a nap.
    #[track_caller]
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let start = std::time::Instant::now();
        for round in 0.. {
            if done(self) {
                return;
            }
            self.step();
            if round % 16 == 15 {
                std::thread::sleep(std::time::Duration::from_micros(200));
            }
            assert!(start.elapsed().as_secs() < 60, "{what} did not happen");
        }
    }

    /// Calls `far` from `port`.
    pub fn call(&mut self, far: SocketAddr, port: u16) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 65535]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.connect(self.interface.context(), (address(far.ip()), far.port()), port).unwrap();
        self.sockets.add(socket)
    }

    pub fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub fn state(&self, handle: SocketHandle) -> tcp::State {
        self.sockets.get::<tcp::Socket>(handle).state()
    }
}

pub fn address(address: IpAddr) -> IpAddress {
    match address {
        IpAddr::V4(v4) => IpAddress::Ipv4(v4),
        IpAddr::V6(v6) => IpAddress::Ipv6(v6),
    }
}

/// The gateway's address with the port of a server on the host's loopback.
pub fn via_gateway(server: SocketAddr) -> SocketAddr {
    let gateway: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::new(10, 0, 2, 2).into(),
        SocketAddr::V6(_) => Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 2).into(),
    };
    SocketAddr::new(gateway, server.port())
}
