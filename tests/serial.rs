//! Serial ports through the real program and a guest of a few instructions that sends back what it receives: no byte is
//! lost either way, however slow the host's or the guest's end is.
#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The machine shares two cores with other tests.
const LONG: Duration = Duration::from_secs(60);

const PROGRAM: &str = env!("CARGO_BIN_EXE_brolga");

/// Echoes COM1 to itself, to the debug console and, after byte 4 (Ctrl-D), ends by `isa-debug-exit`. 16-bit code.
#[rustfmt::skip]
const ECHO: &[u8] = &[
    0xba, 0xfd, 0x03, // wait: mov dx, 0x3fd   line status
    0xec,             //       in al, dx
    0xa8, 0x01,       //       test al, 1      data ready
    0x74, 0xf8,       //       jz wait
    0xba, 0xf8, 0x03, //       mov dx, 0x3f8
    0xec,             //       in al, dx
    0x88, 0xc3,       //       mov bl, al
    0xba, 0xfd, 0x03, // full: mov dx, 0x3fd
    0xec,             //       in al, dx
    0xa8, 0x20,       //       test al, 0x20   transmitter empty
    0x74, 0xf8,       //       jz full
    0xba, 0xf8, 0x03, //       mov dx, 0x3f8
    0x88, 0xd8,       //       mov al, bl
    0xee,             //       out dx, al
    0xe6, 0xe9,       //       out 0xe9, al
    0x80, 0xfb, 0x04, //       cmp bl, 4
    0x75, 0xdd,       //       jne wait
    0xe6, 0xf4,       //       out 0xf4, al
    0xeb, 0xfe,       //       jmp $
];

struct Guest {
    child: Child,
    image: PathBuf,
}

impl Guest {
    fn start(name: &str, args: &[&str]) -> Self {
        let image = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("echo-{name}-{}", std::process::id()));
        std::fs::write(&image, ECHO).unwrap();
        let child = Command::new(PROGRAM)
            .args(["-m", "16", "-accel", "interp", "-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-device"])
            .arg(format!("loader,file={},addr=0x1000,cpu-num=0", image.display()))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        Self { child, image }
    }

    fn type_in(&mut self, bytes: Vec<u8>) -> std::thread::JoinHandle<()> {
        let mut stdin = self.child.stdin.take().unwrap();
        std::thread::spawn(move || stdin.write_all(&bytes).unwrap())
    }

    fn status(&mut self) -> i32 {
        self.child.wait().unwrap().code().expect("an exit status")
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.image);
    }
}

/// Text without the bytes that mean something to the guest or the escapes.
fn text(length: usize) -> Vec<u8> {
    (0..length).map(|i| 32 + (i * 7 % 95) as u8).collect()
}

#[test]
fn nothing_is_lost_to_a_slow_reader() {
    let mut guest = Guest::start("slow", &["-display", "none", "-serial", "stdio"]);
    let mut sent = text(200_000);
    sent.push(4);
    let typing = guest.type_in(sent.clone());
    // The pipe fills up long before anyone reads.
    std::thread::sleep(Duration::from_millis(500));
    let mut got = Vec::new();
    guest.child.stdout.take().unwrap().read_to_end(&mut got).unwrap();
    typing.join().unwrap();
    assert!(got == sent, "{} of {} bytes came back", got.len(), sent.len());
    assert_eq!(guest.status(), (4 << 1) | 1);
}

#[test]
fn the_shared_terminal_takes_only_its_escapes() {
    let mut guest = Guest::start("mux", &["-nographic"]);
    let (mut stdin, mut stdout) = (guest.child.stdin.take().unwrap(), guest.child.stdout.take().unwrap());
    stdin.write_all(b"one").unwrap();
    let mut echo = [0; 3];
    stdout.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"one");
    // The guest is quiet from here to "two", so that the monitor's output is in one piece.
    stdin.write_all(b"\x01cinfo status\r\x01ctwo\x01a\x03\x04").unwrap();
    let mut got = String::new();
    stdout.read_to_string(&mut got).unwrap();
    assert!(got.ends_with("VM status: running\r\n(brolga) two\x01\x03\x04"), "{got:?}");
    assert_eq!(guest.status(), 9);
}

#[test]
fn files_are_complete_at_the_end() {
    let log = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("debugcon-{}", std::process::id()));
    std::fs::write(&log, "old").unwrap();
    let target = format!("file:{}", log.display());
    let mut guest = Guest::start("file", &["-display", "none", "-serial", "stdio", "-debugcon", &target]);
    let mut sent = text(5_000);
    sent.push(4);
    guest.type_in(sent.clone()).join().unwrap();
    assert_eq!(guest.status(), 9);
    assert!(std::fs::read(&log).unwrap() == sent);
    std::fs::remove_file(&log).unwrap();
}

/// A directory of a test's own, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("serial-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("UTF-8").to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The guest of [`ECHO`] with its port at `serial`.
fn port(name: &str, serial: &[&str]) -> Guest {
    Guest::start(name, &[&["-display", "none", "-nodefaults"], serial].concat())
}

#[test]
fn datagrams_go_both_ways() {
    let there = UdpSocket::bind("127.0.0.1:0").unwrap();
    there.set_read_timeout(Some(LONG)).unwrap();
    let here = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let target = format!("udp:127.0.0.1:{}@127.0.0.1:{here}", there.local_addr().unwrap().port());
    let mut guest = port("udp", &["-serial", &target]);
    // Datagrams are lost until the program is there: the first one that comes back shows that it is.
    there.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let since = Instant::now();
    let mut buf = [0; 2000];
    loop {
        there.send_to(b"?", ("127.0.0.1", here)).unwrap();
        if there.recv(&mut buf).is_ok() {
            break;
        }
        assert!(since.elapsed() < LONG, "nothing comes back");
    }
    there.set_read_timeout(Some(LONG)).unwrap();
    there.send_to(b"hello, guest\x04", ("127.0.0.1", here)).unwrap();
    let mut got = Vec::new();
    while !got.ends_with(b"hello, guest\x04") {
        let n = there.recv(&mut buf).expect("the echo");
        got.extend_from_slice(&buf[..n]);
    }
    assert_eq!(guest.status(), 9);
}

#[test]
fn fifos_go_both_ways() {
    let scratch = Scratch::new("pipe");
    for end in ["p.in", "p.out"] {
        nix::unistd::mkfifo(scratch.0.join(end).as_path(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    }
    let mut guest = port("pipe", &["-serial", &format!("pipe:{}", scratch.path("p"))]);
    // Opened for both, neither open waits for the other side.
    let both = |end: &str| std::fs::File::options().read(true).write(true).open(scratch.path(end)).unwrap();
    let (mut input, mut output) = (both("p.in"), both("p.out"));
    input.write_all(b"through a pipe\x04").unwrap();
    let mut got = [0; 15];
    output.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"through a pipe\x04");
    assert_eq!(guest.status(), 9);
}

#[test]
fn a_file_is_typed_and_all_is_logged() {
    let scratch = Scratch::new("files");
    std::fs::write(scratch.path("in"), b"from a file\x04").unwrap();
    std::fs::write(scratch.path("log"), b"before ").unwrap();
    let chardev = format!(
        "file,id=c,path={},input-path={},logfile={},logappend=on",
        scratch.path("out"),
        scratch.path("in"),
        scratch.path("log")
    );
    let mut guest = port("files", &["-chardev", &chardev, "-serial", "chardev:c"]);
    assert_eq!(guest.status(), 9);
    assert_eq!(std::fs::read(scratch.path("out")).unwrap(), b"from a file\x04");
    assert_eq!(std::fs::read(scratch.path("log")).unwrap(), b"before from a file\x04");
}

#[test]
fn a_web_client_types() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut guest = port("web", &["-serial", &format!("websocket:{free},server=on,wait=off")]);
    let since = Instant::now();
    let stream = loop {
        match TcpStream::connect(free) {
            Ok(stream) => break stream,
            Err(e) => assert!(since.elapsed() < LONG, "{e}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    stream.set_read_timeout(Some(LONG)).unwrap();
    let mut request = tungstenite::client::IntoClientRequest::into_client_request(format!("ws://{free}/")).unwrap();
    request.headers_mut().insert("Sec-WebSocket-Protocol", tungstenite::http::HeaderValue::from_static("binary"));
    let (mut client, response) = tungstenite::client(request, stream).expect("it speaks WebSocket");
    assert_eq!(response.headers()["Sec-WebSocket-Protocol"], "binary");
    client.send(tungstenite::Message::binary(b"in frames\x04".to_vec())).unwrap();
    let mut got = Vec::new();
    while got != b"in frames\x04" {
        match client.read().expect("the echo") {
            tungstenite::Message::Binary(bytes) => got.extend_from_slice(&bytes),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(guest.status(), 9);
}

#[test]
fn sockets_that_somebody_else_has_opened() {
    // As libvirt does it: the listening socket is there before the program is.
    let scratch = Scratch::new("fd");
    let listener = UnixListener::bind(scratch.path("s")).unwrap();
    let inherited = rustix::io::dup(&listener).unwrap();
    let number = inherited.as_raw_fd();
    let chardev = format!("socket,id=c,fd={number},server=on,wait=off");
    let mut guest = port("fd", &["-chardev", &chardev, "-serial", "chardev:c"]);
    drop((listener, inherited));
    let mut client = UnixStream::connect(scratch.path("s")).unwrap();
    client.set_read_timeout(Some(LONG)).unwrap();
    client.write_all(b"passed on\x04").unwrap();
    let mut got = [0; 10];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"passed on\x04");
    assert_eq!(guest.status(), 9);
}

#[test]
fn memory_keeps_what_was_written() {
    let scratch = Scratch::new("ring");
    let qmp = format!("unix:{},server=on,wait=off", scratch.path("qmp"));
    std::fs::write(scratch.path("in"), text(100)).unwrap();
    let typed = format!("file,id=typed,path=/dev/null,input-path={}", scratch.path("in"));
    let options = ["-chardev", &typed, "-serial", "chardev:typed", "-chardev", "ringbuf,id=ring,size=64", "-qmp", &qmp];
    let _guest = port("ring", &[&options[..], &["-debugcon", "chardev:ring"]].concat());
    let since = Instant::now();
    let stream = loop {
        match UnixStream::connect(scratch.path("qmp")) {
            Ok(stream) => break stream,
            Err(e) => assert!(since.elapsed() < LONG, "{e}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    stream.set_read_timeout(Some(LONG)).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    lines.next().expect("a greeting").unwrap();
    let mut run = |command: &str, arguments: serde_json::Value| -> serde_json::Value {
        let message = serde_json::json!({ "execute": command, "arguments": arguments });
        (&stream).write_all(format!("{message}\n").as_bytes()).unwrap();
        serde_json::from_str(&lines.next().expect("an answer").unwrap()).unwrap()
    };
    run("qmp_capabilities", serde_json::json!({}));
    let read = |size: u64, format: &str| serde_json::json!({ "device": "ring", "size": size, "format": format });
    // The last 64 of the 100 bytes, once the guest has written them all.
    let expected = String::from_utf8(text(100)[36..].to_vec()).unwrap();
    let mut got = String::new();
    while !got.ends_with(&expected) {
        got += run("ringbuf-read", read(1000, "utf8"))["return"].as_str().expect("text");
        assert!(since.elapsed() < LONG, "{got:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    let write = serde_json::json!({ "device": "ring", "data": "AAECeA==", "format": "base64" });
    assert_eq!(run("ringbuf-write", write)["return"], serde_json::json!({}));
    assert_eq!(run("ringbuf-read", read(3, "base64"))["return"], "AAEC");
    let people = |line: &str| serde_json::json!({ "command-line": line });
    run("human-monitor-command", people("ringbuf_write ring \"a\\\\b\""));
    assert_eq!(run("human-monitor-command", people("ringbuf_read ring 9"))["return"], "xa\\\\b\r\n");
    let refused = |answer: serde_json::Value| answer["error"]["desc"].as_str().expect("an error").to_owned();
    assert_eq!(refused(run("ringbuf-read", serde_json::json!({ "device": "no", "size": 1 }))), "Device 'no' not found");
    let other = serde_json::json!({ "device": "typed", "size": 1 });
    assert_eq!(refused(run("ringbuf-read", other)), "typed is not a ringbuf device");
    assert_eq!(refused(run("ringbuf-read", read(0, "utf8"))), "size must be greater than zero");
    let bad = serde_json::json!({ "device": "ring", "data": "?", "format": "base64" });
    assert_eq!(refused(run("ringbuf-write", bad)), "Base64 data is not valid");
}
