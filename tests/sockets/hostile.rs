//! Clients that vanish, come in crowds, stop half-way, never read or never end a line, on every kind of socket: each is let
//! down alone, the guest counts on, and the next one is served.

use super::{LONG, connect, path, read_until};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Bytes of a line that does not end.
const HUGE: usize = 8 << 20;

/// 16-bit code that counts, and sends back what comes by the serial port.
const PROGRAM: &[u8] = &[
    0x66, 0xff, 0x06, 0x00, 0x20, // incl 0x2000
    0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf3, // back to it until LSR says that something has come
    0xb2, 0xf8, 0xec, 0xee, 0xeb, 0xed, // in, out, back to it
];

/// A guest that counts and echoes, with a socket of each kind.
struct Counting {
    child: Child,
    sockets: [PathBuf; 5],
}

/// Their order.
const KINDS: [&str; 4] = ["monitor", "qmp", "gdb", "serial"];
const MONITOR: usize = 0;
const QMP: usize = 1;
const GDB: usize = 2;
const SERIAL: usize = 3;
/// The monitor of those who look after the guest.
const WATCH: usize = 4;

impl Counting {
    fn start(name: &str) -> Self {
        let sockets = ["monitor", "qmp", "gdb", "serial", "watch"].map(|kind| path(&format!("{name}-{kind}")));
        let at = |n: usize| format!("unix:{},server=on,wait=off", sockets[n].display());
        let code = path(&format!("{name}-code"));
        std::fs::write(&code, PROGRAM).expect("a file");
        let child = Command::new(env!("CARGO_BIN_EXE_brolga"))
            .args(["-m", "16", "-display", "none", "-nodefaults"])
            .args(["-device", &format!("loader,file={},addr=0x1000", code.display())])
            .args(["-device", "loader,addr=0x1000,cpu-num=0"])
            .args([
                "-monitor",
                &at(MONITOR),
                "-qmp",
                &at(QMP),
                "-gdb",
                &at(GDB),
                "-serial",
                &at(SERIAL),
                "-monitor",
                &at(WATCH),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let this = Self { child, sockets };
        this.counts();
        this
    }

    fn connect(&self, kind: usize) -> UnixStream {
        connect(&self.sockets[kind])
    }

    /// What the machine's keeper is answered.
    fn ask(&self, command: &str) -> String {
        let mut client = self.connect(WATCH);
        read_until(&mut client, "(brolga) ");
        client.write_all(format!("{command}\r").as_bytes()).expect("a monitor");
        read_until(&mut client, "(brolga) ")
    }

    fn count(&self) -> u64 {
        let shown = self.ask("xp /1wu 0x2000");
        let number = shown.split("2000: ").nth(1).and_then(|rest| rest.split_whitespace().next());
        number.and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no number: {shown}"))
    }

    /// The guest runs, if need be after it is told to.
    fn counts(&self) {
        // Whoever comes as a debugger stops it.
        self.ask("cont");
        let (before, start) = (self.count(), Instant::now());
        while self.count() == before {
            assert!(start.elapsed() < LONG, "the guest stands still");
        }
    }

    /// Somebody else is served at each socket.
    fn serves(&self) {
        let mut client = self.connect(MONITOR);
        client.write_all(b"info name\rinfo status\r").expect("a monitor");
        read_until(&mut client, "VM status: ");
        let mut client = self.connect(QMP);
        read_until(&mut client, "}}}}");
        client.write_all(b"{\"execute\": \"qmp_capabilities\"}{\"execute\": \"query-status\"}").expect("a monitor");
        read_until(&mut client, "\"status\":\"");
        let mut client = self.connect(GDB);
        client.write_all(b"$?#3f").expect("a debugger's socket");
        read_until(&mut client, "$T05");
        drop(client);
        self.counts();
        let mut client = self.connect(SERIAL);
        client.write_all(b"echo").expect("a console");
        read_until(&mut client, "echo");
        drop(client);
        self.counts();
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Half of what a client of each kind would say.
const HALVES: [&[u8]; 4] = [b"info sta", b"{\"execute\": \"query-st", b"$qSupported:multi", b"roo"];

#[test]
fn clients_that_vanish() {
    let machine = Counting::start("vanish");
    for round in 0..20 {
        for (kind, half) in HALVES.iter().enumerate() {
            let mut client = machine.connect(kind);
            // It may have been let down already.
            let _ = client.write_all(&half[..half.len() * (round % 4) / 3]);
        }
    }
    machine.serves();
}

#[test]
fn ten_clients_at_once() {
    let machine = Counting::start("ten");
    for (kind, name) in KINDS.iter().enumerate() {
        let mut clients: Vec<UnixStream> = (0..10).map(|_| machine.connect(kind)).collect();
        clients.iter_mut().for_each(|client| client.write_all(HALVES[kind]).expect(name));
        if kind == QMP {
            clients.iter_mut().for_each(|client| drop(read_until(client, "}}}}")));
        }
    }
    machine.serves();
}

#[test]
fn lines_that_do_not_end() {
    let machine = Counting::start("huge");
    for kind in 0..KINDS.len() {
        let mut client = machine.connect(kind);
        client.set_write_timeout(Some(Duration::from_millis(200))).expect("a socket");
        let piece = vec![if kind == QMP { b'"' } else { b'$' }; 1 << 16];
        let mut sent = 0;
        // Who does not read its echo is held up, and the guest with it; others are let down.
        while sent < HUGE
            && let Ok(n) = client.write(&piece)
        {
            sent += n;
        }
    }
    machine.serves();
}

#[test]
fn connections_that_are_half_open() {
    let machine = Counting::start("half");
    let mut kept = Vec::new();
    for (kind, half) in HALVES.iter().enumerate() {
        let mut client = machine.connect(kind);
        client.write_all(half).expect("a socket");
        client.shutdown(Shutdown::Write).expect("a socket");
        // Who has no more to say is not waited for. The debugger's server stops the guest when it takes a client in, so what
        // lets it go on comes after that.
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).expect("it is closed");
        machine.counts();
        kept.push(client);
    }
    // Those who ask and never read.
    for (kind, question) in [(MONITOR, "help\r"), (QMP, "{\"execute\": \"query-qmp-schema\"}")] {
        let mut client = machine.connect(kind);
        client.set_write_timeout(Some(Duration::from_millis(200))).expect("a socket");
        if kind == QMP {
            client.write_all(b"{\"execute\": \"qmp_capabilities\"}").expect("a monitor");
        }
        for _ in 0..2000 {
            if client.write_all(question.as_bytes()).is_err() {
                break;
            }
        }
        machine.counts();
    }
    machine.serves();
}
