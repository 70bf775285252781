//! Guests that send nonsense, and a great deal of it.

use super::super::packet;
use super::guest::{ADDRESS, MAC, Random, World, config};
use brolga_devices::services::Takes;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

const GATEWAY_MAC: [u8; 6] = [0x52, 0x55, 10, 0, 2, 2];

fn in_frame(packet: &[u8]) -> Vec<u8> {
    packet::frame(GATEWAY_MAC, MAC, packet::ethertype::IPV4, packet)
}

/// A segment that opens a connection.
fn syn(src: SocketAddr, dst: SocketAddr) -> Vec<u8> {
    let mut segment = vec![0; 20];
    segment[..2].copy_from_slice(&src.port().to_be_bytes());
    segment[2..4].copy_from_slice(&dst.port().to_be_bytes());
    segment[12..16].copy_from_slice(&[0x50, 0x02, 0xff, 0xff]);
    let sum = packet::transport_checksum(src.ip(), dst.ip(), packet::protocol::TCP, &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    packet::ip(src.ip(), dst.ip(), packet::protocol::TCP, 64, &segment)
}

/// Frames of every kind that the network understands, to be changed at random.
fn seeds() -> Vec<Vec<u8>> {
    let addr = |text: &str| text.parse::<SocketAddr>().unwrap();
    let (guest, guest6) = (addr("10.0.2.15:1000"), addr("[fec0::15]:1000"));
    let v6 = |packet: &[u8]| packet::frame(GATEWAY_MAC, MAC, packet::ethertype::IPV6, packet);
    let mut dhcp = vec![0; 236];
    dhcp[..3].copy_from_slice(&[1, 1, 6]);
    dhcp.extend_from_slice(&[99, 130, 83, 99, 53, 1, 1, 55, 3, 1, 3, 6, 255]);
    let ping = [8, 0, 0xf7, 0xff, 0, 0, 0, 0];
    let mut frames = vec![
        in_frame(&syn(guest, addr("10.0.2.2:1"))),
        v6(&syn(guest6, addr("[fec0::2]:1"))),
        in_frame(&packet::udp(addr("0.0.0.0:68"), addr("255.255.255.255:67"), 0, &dhcp)[0]),
        in_frame(&packet::udp(guest, addr("10.0.2.2:69"), 0, b"\0\x01x\0octet\0")[0]),
        in_frame(&packet::udp(guest, addr("10.0.2.3:53"), 0, b"query")[0]),
        in_frame(&packet::ip(guest.ip(), "10.0.2.2".parse().unwrap(), 1, 64, &ping)),
        v6(&packet::icmpv6(guest6.ip(), "fec0::2".parse().unwrap(), &[135, 0, 0, 0, 0, 0, 0, 0, 0xfe, 0xc0])),
        v6(&packet::icmpv6(guest6.ip(), "ff02::2".parse().unwrap(), &[133, 0, 0, 0, 0, 0, 0, 0])),
        packet::frame(
            [0xff; 6],
            MAC,
            packet::ethertype::ARP,
            &super::super::outbox::arp(1, (MAC, ADDRESS), ([0; 6], Ipv4Addr::new(10, 0, 2, 2))),
        ),
    ];
    frames.extend(packet::udp(guest, addr("10.0.2.2:9"), 3, &[7; 4000]).iter().map(|packet| in_frame(packet)));
    frames
}

#[test]
fn changed_cut_and_random_frames_do_no_harm() {
    let mut world = World::with_dns(config(), Some("127.0.0.1:9".parse().unwrap()));
    let seeds = seeds();
    let mut random = Random(0x0bad_5eed_0bad_5eed);
    for i in 0..60_000 {
        let mut frame = seeds[random.below(seeds.len())].clone();
        for _ in 0..random.below(4) {
            let at = random.below(frame.len());
            frame[at] = random.next() as u8;
        }
        if random.below(8) == 0 {
            frame.truncate(random.below(frame.len() + 1));
        }
        // Loopback at most: nothing of this is to leave the host.
        if frame.get(30) == Some(&10) || frame.len() < 34 || frame.get(12..14) != Some(&[8, 0]) {
            world.now += random.below(1_000_000) as u64;
            world.stack.guest_frame(&frame, world.now);
        }
        if i % 50 == 0 {
            world.stack.serve(world.now);
            let waiting = std::iter::from_fn(|| world.stack.pop(Takes::default())).count();
            assert!(waiting <= 1024, "{waiting} frames");
        }
        let (tcp, udp) = world.stack.counts();
        assert!(tcp <= 4096 && udp <= 512, "{tcp} {udp}");
    }
}

#[test]
fn a_flood_of_connections_is_bounded_and_leaves_the_network_usable() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 2, 2)), listener.local_addr().unwrap().port());
    let mut world = World::new(config());
    for port in 1..=20_000u16 {
        let from = SocketAddr::new(Ipv4Addr::new(10, 0, 2, 77).into(), port);
        world.stack.guest_frame(&in_frame(&syn(from, server)), world.now);
        if port % 100 == 0 {
            world.stack.serve(world.now);
            while world.stack.pop(Takes::default()).is_some() {}
        }
    }
    let most = world.stack.counts().0;
    assert!((16..=4096).contains(&most), "{most}");
    // Half-open connections time out; then others get their turn.
    drop(listener);
    for _ in 0..80 {
        world.now += 10_000_000_000;
        world.stack.serve(world.now);
        while world.stack.pop(Takes::default()).is_some() {}
    }
    assert_eq!(world.stack.counts().0, 0);
}

#[test]
fn a_flood_of_ports_is_bounded() {
    let sink = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = SocketAddr::new(Ipv4Addr::new(10, 0, 2, 2).into(), sink.local_addr().unwrap().port());
    let mut world = World::new(config());
    for port in 1..=3000u16 {
        world.now += 1000;
        let from = SocketAddr::new(ADDRESS.into(), port);
        world.stack.guest_frame(&in_frame(&packet::udp(from, to, 0, b"x")[0]), world.now);
    }
    assert_eq!(world.stack.counts().1, 512);
}
