//! Ports and consoles of a virtio-serial bus, as a Debian kernel's driver shows them.

use crate::harness::{BOOT, Boot, COMMAND, Guest, INIT, PROMPT, Scratch, program};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes moved in each direction: more than fits into all queues on the way.
const LENGTH: usize = 12_000_011;

/// A path for a socket that no other test has.
fn socket(name: &str) -> Scratch {
    Scratch::new(&format!("ports-{name}"))
}

fn connect(path: &Path) -> UnixStream {
    let deadline = Instant::now() + COMMAND;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => {
                stream.set_read_timeout(Some(COMMAND)).expect("a timeout");
                return stream;
            }
            Err(error) => assert!(Instant::now() < deadline, "{}: {error}", path.display()),
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn data() -> Vec<u8> {
    let mut x = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 24) as u8
    };
    (0..LENGTH).map(|_| next()).collect()
}

/// Reads until `text` comes.
fn hear(stream: &mut impl Read, text: &str) -> String {
    let mut got = Vec::new();
    while !String::from_utf8_lossy(&got).contains(text) {
        let mut piece = [0; 4096];
        match stream.read(&mut piece) {
            Ok(n) if n > 0 => got.extend_from_slice(&piece[..n]),
            end => panic!("no {text:?} came ({end:?}), but {}", String::from_utf8_lossy(&got)),
        }
    }
    String::from_utf8_lossy(&got).into_owned()
}

fn boot(options: &[&str]) -> Guest {
    let options: Vec<&str> = ["-no-reboot"].iter().chain(options).copied().collect();
    let mut guest = Boot::new("debian").initramfs("peripherals-amd64").append("quiet").options(&options).to_shell();
    guest.run("modprobe virtio_pci && modprobe virtio_console");
    guest
}

#[test]
fn ports_carry_bytes_and_wait_for_those_who_are_slow() {
    let (one, two) = (socket("one"), socket("two"));
    let chardev = |id: &str, path: &Path| format!("socket,id={id},path={},server=on,wait=off", path.display());
    let mut guest = boot(&[
        "-device",
        "virtio-serial,id=vs",
        "-chardev",
        &chardev("a", &one),
        "-chardev",
        &chardev("b", &two),
        "-device",
        "virtserialport,bus=vs.0,chardev=a,name=org.brolga.one",
        "-device",
        "virtserialport,bus=vs.0,chardev=b,name=org.brolga.two,nr=5",
    ]);
    assert_eq!(
        guest.run("cat /sys/class/virtio-ports/vport0p1/name /sys/class/virtio-ports/vport0p5/name | tr '\\n' ' '"),
        "org.brolga.one org.brolga.two "
    );
    let (mut first, mut second) = (connect(&one), connect(&two));
    // The guest writes and nobody reads: it waits, and everything else goes on.
    guest.run(&format!("head -c {LENGTH} /dev/urandom >/tmp/out"));
    guest.run("(cat /tmp/out >/dev/vport0p1; echo sent >/tmp/sent) & true");
    guest.run("sleep 2; test ! -e /tmp/sent");
    guest.run("echo hello from port five >/dev/vport0p5");
    hear(&mut second, "hello from port five\n");
    let mut got = vec![0; LENGTH];
    first.read_exact(&mut got).expect("all bytes");
    guest.run("wait; cat /tmp/sent");
    let out = socket("out");
    fs::write(&out, &got).expect("a file");
    let sum = Command::new("md5sum").arg(&*out).output().expect("md5sum").stdout;
    let sum = String::from_utf8_lossy(&sum).split_whitespace().next().expect("a sum").to_owned();
    assert!(guest.run("md5sum /tmp/out").starts_with(&sum), "what came is not what was sent");
    // The other way: the guest does not read yet.
    let mut writer = first.try_clone().expect("a second end");
    let sent = thread::spawn(move || writer.write_all(&data()));
    guest.run("sleep 1");
    guest.run_within(&format!("dd if=/dev/vport0p1 of=/tmp/in bs=1M count={LENGTH} iflag=fullblock,count_bytes 2>/dev/null || head -c {LENGTH} </dev/vport0p1 >/tmp/in"), COMMAND);
    sent.join().expect("the writer").expect("all bytes written");
    let file = socket("in");
    fs::write(&file, data()).expect("a file");
    let sum = Command::new("md5sum").arg(&*file).output().expect("md5sum").stdout;
    let sum = String::from_utf8_lossy(&sum).split_whitespace().next().expect("a sum").to_owned();
    assert!(guest.run("md5sum /tmp/in").starts_with(&sum), "what the guest got is not what was sent");
    // Who hangs up is missed at once, and may come back.
    drop((first, second));
    guest.run("sleep 1; timeout 10 sh -c 'echo into the void >/dev/vport0p5' || true");
    let mut second = connect(&two);
    guest.run("sleep 1; echo again >/dev/vport0p5");
    hear(&mut second, "again\n");
}

#[test]
fn a_console_has_the_kernels_messages_and_a_shell() {
    let path = socket("console");
    let chardev = format!("socket,id=c,path={},server=on,wait=off", path.display());
    let options =
        ["-no-reboot", "-chardev", &chardev, "-device", "virtio-serial-pci", "-device", "virtconsole,chardev=c"];
    let guest = Boot::new("debian").initramfs("peripherals-amd64").append("console=hvc0");
    let mut guest = guest.options(&options).to_shell();
    let mut console = connect(&path);
    guest.run("modprobe virtio_pci && modprobe virtio_console");
    guest.run("dmesg -n 8; echo message for the console >/dev/kmsg");
    hear(&mut console, "message for the console");
    guest.run("setsid sh -c 'exec sh -i </dev/hvc0 >/dev/hvc0 2>&1' & true");
    hear(&mut console, "# ");
    console.write_all(b"echo $((6 * 7)) is the answer\n").expect("a console that takes input");
    hear(&mut console, "42 is the answer");
}

#[test]
fn a_console_on_the_users_terminal_knows_its_size() {
    let path = socket("serial");
    let serial = format!("unix:{},server=on,wait=off", path.display());
    let console = ["-display", "none", "-serial", &serial, "-chardev", "stdio,id=c"];
    let words = Boot::new("debian").initramfs("peripherals-amd64").append("quiet").console(&console);
    let words =
        words.options(&["-no-reboot", "-device", "virtio-serial", "-device", "virtconsole,chardev=c"]).arguments();
    let size = |columns, rows| rustix::termios::Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = nix::pty::openpty(None, None).expect("a pseudo-terminal");
    rustix::termios::tcsetwinsize(&pty.master, size(101, 37)).expect("a size");
    let end = || Stdio::from(pty.slave.try_clone().expect("another descriptor"));
    let child = Command::new(program()).args(&words).stdin(end()).stdout(end()).spawn().expect("the emulator");
    let id = child.id();
    let stream = connect(&path);
    stream.set_read_timeout(None).expect("no timeout");
    let mut guest = Guest::attached(child, stream.try_clone().expect("the other end"), stream);
    // Somebody has to read what the console shows.
    let mut shown = File::from(pty.master.try_clone().expect("another descriptor") as OwnedFd);
    thread::spawn(move || std::io::copy(&mut shown, &mut std::io::sink()));
    guest.expect(INIT, BOOT);
    guest.expect(PROMPT, COMMAND);
    guest.run("modprobe virtio_pci && modprobe virtio_console");
    let deadline = Instant::now() + COMMAND;
    while guest.run("stty size </dev/hvc0") != "37 101" {
        assert!(Instant::now() < deadline, "the size is {}", guest.run("stty size </dev/hvc0"));
    }
    rustix::termios::tcsetwinsize(&pty.master, size(80, 24)).expect("a size");
    let id = nix::unistd::Pid::from_raw(i32::try_from(id).expect("a process"));
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGWINCH).expect("a signal");
    let deadline = Instant::now() + COMMAND;
    while guest.run("stty size </dev/hvc0") != "24 80" {
        assert!(Instant::now() < deadline, "the size is {}", guest.run("stty size </dev/hvc0"));
    }
}
