//! Addresses that are taken, looked for, or chosen: who holds them is said by whatever option wants them.

use super::{LONG, Machine, connect, path, read_until};
use std::io::Write;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixListener;
use std::process::Command;

/// What the program says when it cannot be started like this.
fn refused(args: &[&str]) -> String {
    let out = Command::new("timeout")
        .args(["60", env!("CARGO_BIN_EXE_brolga"), "-S", "-m", "16", "-display", "none"])
        .args(["-device", "loader,data=0xf4,data-len=1,addr=0x1000", "-device", "loader,addr=0x1000,cpu-num=0"])
        .args(args)
        .output()
        .expect("timeout(1)");
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!((out.status.code(), text.lines().count()), (Some(1), 1), "{text}");
    text
}

#[test]
fn every_option_names_the_holder() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("a port").port();
    let socket = path("taken");
    let _unix = UnixListener::bind(&socket).expect("a path");
    let whom = format!("address already in use by process {} (", std::process::id());
    for address in [format!("tcp:127.0.0.1:{port}"), format!("unix:{}", socket.display())] {
        let server = format!("{address},server=on,wait=off");
        for option in ["-gdb", "-monitor", "-qmp", "-serial", "-debugcon"] {
            let said = refused(&[option, &server]);
            assert!(said.contains(&format!("{option} {address}: {whom}")), "{said}");
        }
        let keys = match address.strip_prefix("unix:") {
            Some(path) => format!("path={path}"),
            None => format!("host=127.0.0.1,port={port}"),
        };
        let said = refused(&["-chardev", &format!("socket,id=c,{keys},server=on,wait=off")]);
        assert!(said.contains(&format!("-chardev {address}: {whom}")), "{said}");
    }
    let datagrams = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let port = datagrams.local_addr().expect("a port").port();
    let said = refused(&["-serial", &format!("udp::9@127.0.0.1:{port}")]);
    assert!(said.contains(&whom), "{said}");
}

#[test]
fn a_free_port_is_looked_for() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("a port").port();
    let last = port.saturating_add(50);
    let watch = path("to-watch");
    let machine = Machine::start(&[
        "-serial",
        &format!("tcp:127.0.0.1:{port},to={last},server=on,wait=off"),
        "-monitor",
        &format!("unix:{},server=on,wait=off", watch.display()),
    ]);
    let mut monitor = connect(&watch);
    read_until(&mut monitor, "(brolga) ");
    monitor.write_all(b"info chardev\r").expect("a monitor");
    let shown = read_until(&mut monitor, "(brolga) ");
    let found =
        shown.split("serial0: filename=disconnected:tcp:127.0.0.1:").nth(1).and_then(|rest| rest.split(',').next());
    let found: u16 = found.and_then(|port| port.parse().ok()).unwrap_or_else(|| panic!("no port: {shown}"));
    assert!(found > port && found <= last, "{found}");
    let client = TcpStream::connect(("127.0.0.1", found)).expect("it listens there");
    client.set_read_timeout(Some(LONG)).expect("a socket");
    monitor.write_all(b"quit\r").expect("a monitor");
    machine.ends();
}

/// Sockets that are in no file system: both forms of the name, for a monitor and for a serial port that connects.
#[test]
fn names_without_a_file() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixStream};
    let name = format!("brolga-test-{}", std::process::id());
    let far = UnixListener::bind_addr(&SocketAddr::from_abstract_name(format!("{name}-far")).unwrap()).expect("a name");
    let _machine = Machine::start(&[
        "-chardev",
        &format!("socket,id=m,path={name},abstract=on,tight=off,server=on,wait=off"),
        "-mon",
        "chardev=m",
        "-serial",
        &format!("unix:{name}-far,abstract=on"),
    ]);
    far.accept().expect("it connects");
    // Without tight the name is as long as names can be.
    let long = format!("{name:\0<107}");
    let start = std::time::Instant::now();
    let mut monitor = loop {
        match UnixStream::connect_addr(&SocketAddr::from_abstract_name(&long).unwrap()) {
            Ok(stream) => break stream,
            Err(e) => assert!(start.elapsed() < LONG, "{e}"),
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    monitor.set_read_timeout(Some(LONG)).expect("a socket");
    monitor.write_all(b"info chardev\n").expect("it listens");
    read_until(&mut monitor, &format!("unix:{name},abstract,server=on"));
    read_until(&mut monitor, &format!("unix:{name}-far,abstract,tight"));
}
