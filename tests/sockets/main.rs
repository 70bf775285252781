//! Consoles and monitors on sockets and pseudo-terminals, through the real program. Mostly the guest does not run (`-S`).
#![forbid(unsafe_code)]

mod addresses;
mod hostile;
mod terminals;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The machine shares two cores with other tests.
const LONG: Duration = Duration::from_secs(60);

/// The program with a halted guest.
struct Machine(Child);

impl Machine {
    fn start(args: &[&str]) -> Self {
        let loader = ["-device", "loader,data=0xf4,data-len=1,addr=0x1000", "-device", "loader,addr=0x1000,cpu-num=0"];
        Self::running(&[&["-S"], &loader[..], args].concat())
    }

    /// With a guest of its own.
    fn running(args: &[&str]) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_brolga"))
            .args(["-m", "16", "-display", "none"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("it starts");
        Self(child)
    }

    /// It ends by itself, with status 0.
    fn ends(mut self) {
        let start = Instant::now();
        while start.elapsed() < LONG {
            if let Some(status) = self.0.try_wait().expect("our own child") {
                assert!(status.success(), "{status}");
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("it does not end");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn path(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_file(&path);
    path
}

/// Connects as soon as there is somebody.
fn connect(path: &Path) -> UnixStream {
    let start = Instant::now();
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => {
                stream.set_read_timeout(Some(LONG)).unwrap();
                return stream;
            }
            Err(e) => assert!(start.elapsed() < LONG, "{e}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Reads until `end` comes: all that came.
fn read_until(stream: &mut (impl Read + AsFd), end: &str) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(end.as_bytes()) {
        let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut fds, PollTimeout::from(60_000u16)).expect("a descriptor");
        assert_ne!(ready, 0, "nothing more after {}", String::from_utf8_lossy(&text));
        assert_eq!(stream.read(&mut byte).expect("more"), 1, "closed after {}", String::from_utf8_lossy(&text));
        text.push(byte[0]);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// A port that is free.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn a_monitor_greets_each_client() {
    let socket = path("monitor");
    let machine = Machine::start(&["-monitor", &format!("unix:{},server,nowait", socket.display())]);
    for _ in 0..3 {
        let mut client = connect(&socket);
        assert!(read_until(&mut client, "(brolga) ").contains("monitor - type 'help'"));
        client.write_all(b"info status\r").unwrap();
        assert!(read_until(&mut client, "(brolga) ").contains("paused (prelaunch)"));
    }
    let mut client = connect(&socket);
    client.write_all(b"quit\n").unwrap();
    machine.ends();
}

#[test]
fn a_telnet_monitor_negotiates() {
    let port = free_port();
    let machine = Machine::start(&["-monitor", &format!("telnet:127.0.0.1:{port},server,nowait")]);
    let start = Instant::now();
    let mut client = loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(client) => break client,
            Err(e) => assert!(start.elapsed() < LONG, "{e}"),
        }
    };
    client.set_read_timeout(Some(LONG)).unwrap();
    let mut greeting = [0; 12];
    client.read_exact(&mut greeting).unwrap();
    assert_eq!(greeting[..3], [255, 251, 1], "IAC WILL ECHO");
    read_until(&mut client, "(brolga) ");
    // IAC DO ECHO, then a line as telnet ends it.
    client.write_all(b"\xff\xfd\x01info name\r\0").unwrap();
    assert!(read_until(&mut client, "(brolga) ").starts_with("info name"));
    client.write_all(b"quit\r\0").unwrap();
    machine.ends();
}

#[test]
fn a_server_waits_if_it_is_told_to() {
    let socket = path("waiting");
    let other = path("other");
    let machine = Machine::start(&[
        "-serial",
        &format!("unix:{},server=on", socket.display()),
        "-monitor",
        &format!("unix:{},server=on,wait=off", other.display()),
    ]);
    std::thread::sleep(Duration::from_millis(200));
    assert!(!other.exists(), "nothing else is made before somebody has connected");
    let _console = connect(&socket);
    let mut monitor = connect(&other);
    read_until(&mut monitor, "(brolga) ");
    monitor.write_all(b"info chardev\rquit\r").unwrap();
    let mut rest = String::new();
    monitor.read_to_string(&mut rest).unwrap();
    assert!(rest.contains(&format!("serial0: filename=unix:{},server=on", socket.display())), "{rest}");
    machine.ends();
}

#[test]
fn a_client_connects_to_a_listener() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let machine = Machine::start(&["-monitor", &format!("tcp:127.0.0.1:{port}")]);
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::from(60_000u16)), Ok(1), "nobody connects");
    let (mut peer, _) = listener.accept().unwrap();
    peer.set_read_timeout(Some(LONG)).unwrap();
    read_until(&mut peer, "(brolga) ");
    peer.write_all(b"quit\n").unwrap();
    machine.ends();
}

#[test]
fn a_pseudo_terminal_is_named_and_used() {
    let mut machine = Machine::start(&["-monitor", "pty"]);
    let mut line = String::new();
    BufReader::new(machine.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let name = line.strip_prefix("char device redirected to ").and_then(|l| l.split(' ').next()).expect("its name");
    for _ in 0..2 {
        // Whether the last client's leaving was noticed or not: there is a monitor.
        let mut terminal = std::fs::File::options().read(true).write(true).open(name).unwrap();
        terminal.write_all(b"info version\r").unwrap();
        read_until(&mut terminal, "info version");
        read_until(&mut terminal, "(brolga) ");
    }
    let mut terminal = std::fs::File::options().read(true).write(true).open(name).unwrap();
    terminal.write_all(b"quit\r").unwrap();
    machine.ends();
}

#[test]
fn what_cannot_be_opened_is_told() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let fails = |target: &str| {
        let out = Command::new(env!("CARGO_BIN_EXE_brolga"))
            .args(["-S", "-m", "16", "-display", "none", "-serial", target])
            .args(["-device", "loader,data=0xf4,data-len=1,addr=0x1000"])
            .args(["-device", "loader,addr=0x1000,cpu-num=0"])
            .output()
            .unwrap();
        assert_eq!(out.status.code(), Some(1));
        String::from_utf8_lossy(&out.stderr).into_owned()
    };
    let text = fails(&format!("tcp:127.0.0.1:{port},server=on,wait=off"));
    assert_eq!(text.lines().count(), 1, "{text}");
    let this = format!("by process {} (", std::process::id());
    assert!(text.contains(&this), "{text}");
    let text = fails("unix:/nonexistent/x,server=on,wait=off");
    assert!(text.contains("choose another address") && text.lines().count() == 1, "{text}");
}
