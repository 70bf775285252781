//! TCP in both directions.

use super::guest::{ADDRESS, Random, World, config, via_gateway};
use crate::cli::config::network::{ForwardTarget, GuestForward, HostForward, UserNetConfig};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

const MIB: usize = 1 << 20;

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed);
    (0..len.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).take(len).collect()
}

/// A server on this host that sends everything back, connection by connection.
fn echo_server(address: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind(address).unwrap();
    let bound = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut from = stream.try_clone().unwrap();
                let _ = std::io::copy(&mut from, &mut &stream);
                let _ = stream.shutdown(Shutdown::Write);
            });
        }
    });
    bound
}

fn localhost() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// Sends `data` on a guest's connection and reads as much back.
fn echo(world: &mut World, handle: SocketHandle, data: &[u8]) -> Vec<u8> {
    let (mut sent, mut back) = (0, Vec::new());
    world.until("the echo", |world| {
        let socket = world.tcp(handle);
        if socket.can_send() && sent < data.len() {
            sent += socket.send_slice(&data[sent..]).unwrap();
        }
        while socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), back.extend_from_slice(bytes))).unwrap();
        }
        back.len() >= data.len()
    });
    back
}

#[test]
fn mebibytes_both_ways_arrive_as_they_were_sent() {
    for server in [localhost(), (Ipv6Addr::LOCALHOST, 0).into()] {
        let server = via_gateway(echo_server(server));
        let mut world = World::new(config());
        let handle = world.call(server, 40_000);
        let data = pattern(1, 4 * MIB);
        assert!(echo(&mut world, handle, &data) == data, "through {server}");
        world.tcp(handle).close();
        world.until("the end", |world| matches!(world.state(handle), tcp::State::TimeWait | tcp::State::Closed));
        world.until("nothing left", |world| world.stack.counts() == (0, 0));
    }
}

#[test]
fn loss_repetition_reordering_and_flipped_bits_change_nothing() {
    let server = via_gateway(echo_server(localhost()));
    let mut world = World::new(config());
    world.trouble = 40;
    let handle = world.call(server, 40_001);
    let data = pattern(2, MIB / 2);
    assert!(echo(&mut world, handle, &data) == data);
}

#[test]
fn each_end_closes_its_direction() {
    let listener = TcpListener::bind(localhost()).unwrap();
    let mut world = World::new(config());
    let handle = world.call(via_gateway(listener.local_addr().unwrap()), 40_002);
    world.until("the connection", |world| world.tcp(handle).may_send());
    let (mut host, _) = listener.accept().unwrap();
    world.tcp(handle).send_slice(b"question").unwrap();
    world.tcp(handle).close();
    let reader = thread::spawn(move || {
        let mut question = String::new();
        host.read_to_string(&mut question).unwrap();
        host.write_all(b"answer").unwrap();
        question
    });
    let mut answer = Vec::new();
    world.until("the answer", |world| {
        let socket = world.tcp(handle);
        while socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), answer.extend_from_slice(bytes))).unwrap();
        }
        !socket.may_recv()
    });
    assert_eq!(answer, b"answer");
    assert_eq!(reader.join().unwrap(), "question");
}

#[test]
fn a_refused_connection_is_refused() {
    let free = TcpListener::bind(localhost()).unwrap().local_addr().unwrap();
    let mut world = World::new(config());
    let handle = world.call(via_gateway(free), 40_003);
    world.until("the refusal", |world| world.state(handle) == tcp::State::Closed);
    assert!(world.now < 900_000_000, "by a reset, not by giving up");
    assert_eq!(world.stack.counts().0, 0);
}

#[test]
fn a_reset_of_either_end_reaches_the_other() {
    let listener = TcpListener::bind(localhost()).unwrap();
    let mut world = World::new(config());
    let handle = world.call(via_gateway(listener.local_addr().unwrap()), 40_004);
    world.until("the connection", |world| world.tcp(handle).may_send());
    let (mut host, _) = listener.accept().unwrap();
    world.tcp(handle).abort();
    world.until("the end", |world| world.stack.counts().0 == 0);
    assert_eq!(host.read(&mut [0; 8]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);

    let handle = world.call(via_gateway(listener.local_addr().unwrap()), 40_005);
    world.until("the connection", |world| world.tcp(handle).may_send());
    let (host, _) = listener.accept().unwrap();
    socket2::Socket::from(host).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    world.until("the reset", |world| world.state(handle) == tcp::State::Closed);
}

#[test]
fn thousands_of_connections_come_and_go() {
    let server = via_gateway(echo_server(localhost()));
    let mut world = World::new(config());
    for round in 0..60u16 {
        let handles: Vec<_> = (0..50).map(|i| world.call(server, 20_000 + round * 50 + i)).collect();
        for (i, handle) in handles.iter().enumerate() {
            world.until("a connection", |world| world.tcp(*handle).may_send());
            let data = [round as u8, i as u8, 0x55];
            assert_eq!(echo(&mut world, *handle, &data), data);
            world.tcp(*handle).close();
        }
        world.until("the ends", |world| world.stack.counts().0 == 0);
        handles.into_iter().for_each(|handle| drop(world.sockets.remove(handle)));
    }
}

fn forwarded(udp: bool) -> (UserNetConfig, HostForward) {
    let forward = HostForward { udp, host: localhost(), guest: None, guest_port: 7777 };
    (UserNetConfig { forwards: vec![forward], ..config() }, forward)
}

#[test]
fn a_forwarded_port_leads_to_the_guest() {
    let (config, _) = forwarded(false);
    let mut world = World::new(config);
    let port = world.ports[0];
    assert!(port.chosen && port.host.port() != 0 && port.guest == SocketAddr::new(ADDRESS.into(), 7777));
    let buffer = || tcp::SocketBuffer::new(vec![0; 65535]);
    let mut socket = tcp::Socket::new(buffer(), buffer());
    socket.listen(7777).unwrap();
    let handle = world.sockets.add(socket);
    let data = pattern(3, MIB);
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect(port.host).unwrap();
        let mut back = vec![0; MIB];
        let mut writer = stream.try_clone().unwrap();
        let data = pattern(3, MIB);
        let sender = thread::spawn(move || writer.write_all(&data).unwrap());
        stream.read_exact(&mut back).unwrap();
        sender.join().unwrap();
        back
    });
    // The guest sends back what it gets.
    world.until("the client's end", |world| {
        let socket = world.tcp(handle);
        while socket.can_recv() && socket.can_send() {
            let mut piece = vec![0; (socket.send_capacity() - socket.send_queue()).min(16_384)];
            let len = socket.recv_slice(&mut piece).unwrap();
            assert_eq!(socket.send_slice(&piece[..len]).unwrap(), len);
        }
        client.is_finished()
    });
    assert!(client.join().unwrap() == data);
    let far = world.tcp(handle).remote_endpoint();
    assert!(far.is_none_or(|far| far.addr.to_string() == "10.0.2.2"), "{far:?}");
}

#[test]
fn a_caller_that_gives_up_is_forgotten_before_the_guest_answers() {
    // Without an address this guest answers nobody.
    let mut world = World::bare(forwarded(false).0, None);
    let stream = TcpStream::connect(world.ports[0].host).unwrap();
    world.until("the call", |world| world.stack.counts().0 == 1);
    socket2::Socket::from(stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    world.until("its end", |world| world.stack.counts().0 == 0);
    assert!(world.now < 100_000_000_000, "by the reset, not by waiting");
}

#[test]
fn a_taken_port_names_its_holder() {
    let holder = TcpListener::bind(localhost()).unwrap();
    let (mut config, _) = forwarded(false);
    config.forwards[0].host = holder.local_addr().unwrap();
    let poller = std::sync::Arc::new(crate::net::poller::Poller::new().unwrap());
    let resolver = super::super::resolver::Resolver::of_host();
    let Err(error) = super::super::stack::Stack::new(config, poller, resolver) else { panic!("the port is taken") };
    let (text, pid) = (error.to_string(), std::process::id());
    let port = holder.local_addr().unwrap().port();
    assert!(
        text.starts_with(&format!(
            "hostfwd=tcp:127.0.0.1:{port}-10.0.2.15:7777: port {port} is taken by process {pid} ("
        )),
        "{text}"
    );
}

#[test]
fn restrict_leaves_only_what_is_forwarded() {
    let server = echo_server(localhost());
    let guest = SocketAddr::new(Ipv4Addr::new(10, 0, 2, 100).into(), 80);
    let guest_forwards = vec![GuestForward { guest, target: ForwardTarget::Tcp(server) }];
    let mut world = World::new(UserNetConfig { restrict: true, guest_forwards, ..config() });
    let (closed, open) = (world.call(via_gateway(server), 40_006), world.call(guest, 40_007));
    assert_eq!(echo(&mut world, open, b"allowed"), b"allowed");
    (0..500).for_each(|_| world.step());
    assert_eq!(world.state(closed), tcp::State::SynSent, "no answer at all");
    assert_eq!(world.stack.counts().0, 1);
}

#[test]
fn a_program_answers_a_forwarded_address() {
    let guest = SocketAddr::new(Ipv4Addr::new(10, 0, 2, 101).into(), 9);
    let guest_forwards = vec![GuestForward { guest, target: ForwardTarget::Command("cat -u".into()) }];
    let mut world = World::new(UserNetConfig { guest_forwards, ..config() });
    let handle = world.call(guest, 40_008);
    let data = pattern(4, 100_000);
    assert!(echo(&mut world, handle, &data) == data);
    world.tcp(handle).close();
    world.until("cat's end", |world| world.stack.counts().0 == 0);
}
