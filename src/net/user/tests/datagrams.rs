//! Everything but TCP.

use super::super::packet::{self, Ip, Udp};
use super::guest::{ADDRESS, MAC, World, address, config, via_gateway};
use crate::cli::config::network::{HostForward, UserNetConfig};
use brolga_devices::services::Takes;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::{dhcpv4, icmp, udp};
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;

const HOUR_NS: u64 = 3_600_000_000_000;

fn socket(world: &mut World, port: u16) -> SocketHandle {
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 32], vec![0; 65536]);
    let mut socket = udp::Socket::new(buffer(), buffer());
    socket.bind(port).unwrap();
    world.sockets.add(socket)
}

fn send(world: &mut World, handle: SocketHandle, to: SocketAddr, data: &[u8]) {
    let socket = world.sockets.get_mut::<udp::Socket>(handle);
    socket.send_slice(data, (address(to.ip()), to.port())).unwrap();
}

/// The next datagram, and from where it came.
fn receive(world: &mut World, handle: SocketHandle) -> (Vec<u8>, SocketAddr) {
    let mut got = None;
    world.until("a datagram", |world| {
        let socket = world.sockets.get_mut::<udp::Socket>(handle);
        got = socket.recv().ok().map(|(data, from)| {
            let from = from.endpoint;
            (data.to_vec(), SocketAddr::new(from.addr.into(), from.port))
        });
        got.is_some()
    });
    got.unwrap()
}

/// A server on the host that answers each datagram by `answer`.
fn server(at: &str, answer: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind(at).unwrap();
    let bound = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 65536];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&answer(&buffer[..len]), from);
        }
    });
    bound
}

#[test]
fn a_guest_gets_a_lease_and_keeps_it_for_a_month() {
    let mut world = World::bare(config(), None);
    let handle = world.sockets.add(dhcpv4::Socket::new());
    let mut lease = None;
    world.until("a lease", |world| {
        if let Some(dhcpv4::Event::Configured(config)) = world.sockets.get_mut::<dhcpv4::Socket>(handle).poll() {
            lease = Some((config.address, config.router, config.dns_servers.to_vec()));
            world.interface.update_ip_addrs(|addresses| {
                addresses.push(smoltcp::wire::IpCidr::Ipv4(config.address)).unwrap();
            });
        }
        lease.is_some()
    });
    let (address, router, dns) = lease.unwrap();
    assert_eq!((address.address(), address.prefix_len()), (ADDRESS, 24));
    assert_eq!(router, Some(Ipv4Addr::new(10, 0, 2, 2)));
    assert_eq!(dns, [Ipv4Addr::new(10, 0, 2, 3)]);
    // It renews at half time; without answers it would give the address up.
    for _ in 0..30 * 24 {
        world.now += HOUR_NS;
        (0..20).for_each(|_| world.step());
        let event = world.sockets.get_mut::<dhcpv4::Socket>(handle).poll();
        assert!(!matches!(event, Some(dhcpv4::Event::Deconfigured)), "lost at hour {}", world.now / HOUR_NS);
    }
}

#[test]
fn datagrams_find_their_way_back() {
    for at in ["127.0.0.1:0", "[::1]:0"] {
        let server = via_gateway(server(at, |data| data.iter().rev().copied().collect()));
        let mut world = World::new(config());
        let (a, b) = (socket(&mut world, 5000), socket(&mut world, 5001));
        send(&mut world, a, server, b"from a");
        send(&mut world, b, server, b"from b");
        assert_eq!(receive(&mut world, b), (b"b morf".to_vec(), server));
        assert_eq!(receive(&mut world, a), (b"a morf".to_vec(), server));
        assert_eq!(world.stack.counts().1, 2);
        world.now += 300_000_000_000;
        world.step();
        assert_eq!(world.stack.counts().1, 0, "silent ports are forgotten");
    }
}

#[test]
fn long_datagrams_are_fragmented_both_ways() {
    let server = via_gateway(server("127.0.0.1:0", <[u8]>::to_vec));
    let mut world = World::new(config());
    // The guest must be known by its address before.
    let probe = socket(&mut world, 5002);
    send(&mut world, probe, server, b"x");
    receive(&mut world, probe);
    let data: Vec<u8> = (0..9000u32).map(|i| (i >> 3) as u8).collect();
    let guest = SocketAddr::new(ADDRESS.into(), 5003);
    for packet in packet::udp(guest, server, 77, &data).iter().rev() {
        let frame = packet::frame([0x52, 0x55, 10, 0, 2, 2], MAC, packet::ethertype::IPV4, packet);
        world.stack.guest_frame(&frame, world.now);
    }
    let mut parts = super::super::reassembly::Reassembly::default();
    let start = std::time::Instant::now();
    let back = loop {
        world.stack.serve(world.now);
        let whole =
            std::iter::from_fn(|| world.stack.pop(Takes::default()).map(|frame| frame.bytes)).find_map(|frame| {
                let ip = Ip::parse(frame.get(14..)?)?;
                assert!(frame.len() <= 1514);
                parts.add(&ip).map(|payload| packet::ip(ip.src, ip.dst, ip.protocol, 64, &payload))
            });
        if let Some(packet) = whole {
            break Udp::parse(&Ip::parse(&packet).unwrap()).unwrap().payload.to_vec();
        }
        assert!(start.elapsed().as_secs() < 30, "no answer");
        thread::sleep(std::time::Duration::from_millis(1));
    };
    assert!(back == data);
}

#[test]
fn names_are_asked_for_at_the_hosts_server() {
    let upstream = server("127.0.0.1:0", |query| [query, b" answered"].concat());
    let mut world = World::with_dns(config(), Some(upstream));
    let handle = socket(&mut world, 5004);
    let dns = SocketAddr::new(Ipv4Addr::new(10, 0, 2, 3).into(), 53);
    send(&mut world, handle, dns, b"query");
    assert_eq!(receive(&mut world, handle), (b"query answered".to_vec(), dns));
}

#[test]
fn the_gateway_answers_pings() {
    let mut world = World::new(config());
    let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 8], vec![0; 4096]);
    let mut socket = icmp::Socket::new(buffer(), buffer());
    socket.bind(icmp::Endpoint::Ident(0x1234)).unwrap();
    let request = Icmpv4Repr::EchoRequest { ident: 0x1234, seq_no: 7, data: b"are you there" };
    let space = socket.send(request.buffer_len(), address(Ipv4Addr::new(10, 0, 2, 2).into())).unwrap();
    request.emit(&mut Icmpv4Packet::new_unchecked(space), &Default::default());
    let handle = world.sockets.add(socket);
    world.until("an answer", |world| world.sockets.get::<icmp::Socket>(handle).can_recv());
    let (data, from) = world.sockets.get_mut::<icmp::Socket>(handle).recv().unwrap();
    assert_eq!(from.to_string(), "10.0.2.2");
    let reply = Icmpv4Packet::new_checked(data).unwrap();
    assert_eq!((reply.echo_ident(), reply.echo_seq_no(), reply.data()), (0x1234, 7, &b"are you there"[..]));
}

#[test]
fn files_come_by_tftp_and_none_from_outside_the_folder() {
    let folder = std::env::temp_dir().join(format!("brolga-tftp-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("sub")).unwrap();
    let data: Vec<u8> = (0..512 * 5u32).map(|i| (i / 3) as u8).collect();
    std::fs::write(folder.join("sub/boot"), &data).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", folder.join("link")).unwrap();
    let mut world = World::new(UserNetConfig { tftp: Some(folder.clone()), ..config() });
    let handle = socket(&mut world, 5005);
    let host: SocketAddr = "10.0.2.2:69".parse().unwrap();
    send(&mut world, handle, host, b"\0\x01/sub/boot\0octet\0");
    let (mut got, mut block) = (Vec::new(), 0u16);
    loop {
        let (packet, _) = receive(&mut world, handle);
        block += 1;
        assert_eq!(packet[..4], [0, 3, 0, block as u8]);
        got.extend_from_slice(&packet[4..]);
        send(&mut world, handle, host, &[0, 4, 0, block as u8]);
        if packet.len() < 4 + 512 {
            break;
        }
    }
    assert!(got == data);
    send(&mut world, handle, host, b"\0\x01sub/boot\0octet\0tsize\x000\0blksize\x001400\0");
    assert_eq!(receive(&mut world, handle).0, b"\0\x06tsize\x002560\0blksize\x001400\0");
    send(&mut world, handle, host, &[0, 4, 0, 0]);
    assert_eq!(receive(&mut world, handle).0.len(), 4 + 1400);
    for name in ["../../etc/passwd", "link", "sub", "none", "/etc/passwd", ""] {
        send(&mut world, handle, host, format!("\0\x01{name}\0octet\0").as_bytes());
        assert_eq!(receive(&mut world, handle).0[..4], [0, 5, 0, 1], "{name}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_forwarded_udp_port_leads_to_the_guest_and_back() {
    let host: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let forwards = vec![HostForward { udp: true, host, guest: None, guest_port: 6000 }];
    let mut world = World::new(UserNetConfig { forwards, ..config() });
    let handle = socket(&mut world, 6000);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.send_to(b"hello", world.ports[0].host).unwrap();
    // The first datagram makes the network ask for the guest's station; datagrams may get lost.
    let mut got = None;
    world.until("the datagram", |world| {
        client.send_to(b"hello", world.ports[0].host).unwrap();
        got = world.sockets.get_mut::<udp::Socket>(handle).recv().ok().map(|(d, from)| (d.to_vec(), from.endpoint));
        got.is_some()
    });
    let (data, from) = got.unwrap();
    assert_eq!(data, b"hello");
    let from = SocketAddr::new(from.addr.into(), from.port);
    assert_eq!(from, SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 2, 2)), client.local_addr().unwrap().port()));
    send(&mut world, handle, from, b"and back");
    (0..3).for_each(|_| world.step());
    let mut buffer = [0; 32];
    client.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    let (len, from) = client.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..len], from), (&b"and back"[..], world.ports[0].host));
}

#[test]
fn ipv6_guests_find_router_prefix_and_neighbours() {
    let mut world = World::new(config());
    let link_local: IpAddr = "fe80::5054:ff:fe12:3456".parse().unwrap();
    let all_routers: IpAddr = "ff02::2".parse().unwrap();
    let solicit = packet::icmpv6(link_local, all_routers, &[133, 0, 0, 0, 0, 0, 0, 0]);
    let frame = packet::frame([0x33, 0x33, 0, 0, 0, 2], MAC, packet::ethertype::IPV6, &solicit);
    world.stack.guest_frame(&frame, 0);
    let frame = world.stack.pop(Takes::default()).expect("an advertisement").bytes;
    assert_eq!(frame[..6], [0x33, 0x33, 0, 0, 0, 1]);
    let ip = Ip::parse(&frame[14..]).unwrap();
    assert_eq!((ip.src, ip.ttl), ("fe80::2".parse().unwrap(), 255));
    assert_eq!(packet::transport_checksum(ip.src, ip.dst, ip.protocol, ip.payload), 0);
    assert_eq!(ip.payload[0], 134);
    assert_eq!(ip.payload[24..28], [3, 4, 64, 0xc0], "the prefix option");
    assert_eq!(ip.payload[40..48], [0xfe, 0xc0, 0, 0, 0, 0, 0, 0]);
}
