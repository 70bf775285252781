//! A Debian kernel on the network: a lease, data both ways with a server on the host, and a forwarded port.

use crate::harness::{Boot, COMMAND, Guest};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Bytes moved in each direction.
const LENGTH: usize = 3_000_001;
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes that never repeat in step with a buffer's size.
fn data() -> Vec<u8> {
    let mut x = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 32) as u8
    };
    (0..LENGTH).map(|_| next()).collect()
}

/// A server on the loopback that gives one caller [`data`] over HTTP.
fn web_server() -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let port = listener.local_addr().expect("its address").port();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a caller");
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("a request");
            request.push(byte[0]);
        }
        assert!(request.starts_with(b"GET /file "), "{}", String::from_utf8_lossy(&request));
        let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&data())).expect("a caller who listens");
    });
    (port, server)
}

/// A server on the loopback that keeps what one caller sends.
fn sink() -> (u16, JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let port = listener.local_addr().expect("its address").port();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a caller");
        let mut got = Vec::new();
        stream.read_to_end(&mut got).expect("an orderly end");
        got
    });
    (port, server)
}

/// Fetches a page from a port of the host's.
fn get(port: u16, path: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("the forwarded port");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").expect("a server that listens");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    let body = answer.windows(4).position(|w| w == b"\r\n\r\n").expect("a head");
    assert!(answer.starts_with(b"HTTP/1.") && answer[..body].windows(5).any(|w| w == b" 200 "), "not found");
    answer.split_off(body + 4)
}

/// Boots a guest with a card of `model`, whose driver is `module`.
fn guest(model: &str, module: &str) -> Guest {
    let netdev = "user,id=n0,hostname=guest,hostfwd=tcp:127.0.0.1:0-:80";
    let card = format!("{model},netdev=n0,mac=52:54:00:aa:bb:cc");
    let options = ["-no-reboot", "-netdev", netdev, "-device", &card];
    let mut guest = Boot::new("debian").initramfs("drivers-amd64").append("quiet").options(&options).to_shell();
    guest.run(&format!("modprobe {module}"));
    assert_eq!(guest.run("cat /sys/class/net/eth0/address"), "52:54:00:aa:bb:cc");
    let lease = guest.run("udhcpc -i eth0 -n -q -t 10 2>/dev/null");
    assert!(lease.contains("lease: 10.0.2.15/24 router 10.0.2.2 dns 10.0.2.3 hostname guest for 86400 s"), "{lease}");
    guest
}

/// Pings, downloads, uploads, and is called.
fn talks(guest: &mut Guest) {
    guest.run("ping -c 3 -W 5 10.0.2.2");
    let (port, server) = web_server();
    guest.run_within(&format!("wget -q -O /tmp/file http://10.0.2.2:{port}/file"), PATIENCE);
    server.join().expect("the server's part");
    let (port, sink) = sink();
    guest.run_within(&format!("nc -w 10 10.0.2.2 {port} </tmp/file"), PATIENCE);
    assert!(sink.join().expect("the sink's part") == data(), "what came back is not what was sent");
    let forwarded = guest.error_line("n0: hostfwd=tcp:127.0.0.1:", COMMAND);
    let port = forwarded.split('-').next().and_then(|port| port.parse().ok()).expect("a port");
    guest.run("httpd -p 80 -h /tmp");
    assert!(get(port, "/file") == data(), "what the guest serves is not what it got");
    // Nobody listens there: the refusal comes at once and not by running out of patience.
    guest.run("! nc -w 20 10.0.2.2 1 </dev/null");
}

#[test]
fn virtio_net_leases_fetches_and_serves() {
    let mut guest = guest("virtio-net-pci", "virtio_pci && modprobe virtio_net");
    assert_eq!(guest.run("readlink /sys/class/net/eth0/device/driver").rsplit('/').next(), Some("virtio_net"));
    talks(&mut guest);
    guest.run("rmmod virtio_net && modprobe virtio_net");
    guest.run("udhcpc -i eth0 -n -q -t 10 2>/dev/null");
    guest.run("ping -c 1 -W 5 10.0.2.2");
    guest.run("grep -q virtio /proc/interrupts");
}

#[test]
fn e1000_leases_fetches_and_serves() {
    let mut guest = guest("e1000", "e1000");
    talks(&mut guest);
    // The driver gives up its rings and starts anew.
    guest.run("rmmod e1000 && modprobe e1000");
    guest.run("udhcpc -i eth0 -n -q -t 10 2>/dev/null");
    guest.run("ping -c 1 -W 5 10.0.2.2");
    let seen = guest.run("cat /proc/net/dev | grep eth0; cat /sys/class/net/eth0/statistics/rx_errors");
    assert!(seen.ends_with('0'), "{seen}");
    guest.send("\x01c");
    guest.expect(") ", COMMAND);
    guest.send("info usernet\r");
    guest.expect("DHCP lease 10.0.2.15 52:54:00:aa:bb:cc", COMMAND);
    guest.send("quit\r");
    guest.ends_with(0);
}
