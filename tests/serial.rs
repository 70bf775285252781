//! Serial ports through the real program and a guest of a few instructions that sends back what it receives: no byte is
//! lost either way, however slow the host's or the guest's end is.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

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
