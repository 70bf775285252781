//! `-profile` on a program that counts down for ever: its functions by name, in the monitor and in the file.

use super::{PATIENCE, assemble};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The emulator, which a test that failed leaves not running.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Types a line into the monitor: what it shows up to its next prompt.
fn say(monitor: &mut UnixStream, line: &str) -> String {
    monitor.write_all(format!("{line}\r").as_bytes()).expect("a monitor");
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\n(brolga) ") {
        monitor.read_exact(&mut byte).expect("its prompt");
        text.push(byte[0]);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// A file of a test's own.
fn of(test: &str, name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("profile-{test}-{name}-{}", std::process::id()))
}

/// Starts a program with a profile, which `keys` say more of, and a monitor.
fn start(test: &str, program: &str, keys: &str) -> (Running, UnixStream) {
    let (socket, file) = (of(test, "monitor"), of(test, "stacks"));
    let running = Running(
        Command::new(env!("CARGO_BIN_EXE_brolga"))
            .args(["-m", "64", "-display", "none", "-serial", "none", "-smp", "2", "-kernel"])
            .arg(assemble(program))
            .args(["-monitor", &format!("unix:{},server=on,wait=off", socket.display())])
            .args(["-profile", &format!("{},hz=500{keys}", file.display())])
            .stdin(Stdio::null())
            .spawn()
            .expect("the emulator starts"),
    );
    let start = Instant::now();
    let monitor = loop {
        match UnixStream::connect(&socket) {
            Ok(stream) => break stream,
            Err(e) => assert!(start.elapsed() < PATIENCE, "{e}"),
        }
        sleep(Duration::from_millis(5));
    };
    monitor.set_read_timeout(Some(PATIENCE)).expect("a socket");
    (running, monitor)
}

/// What `info jit` shows once it is `enough`.
fn shown(monitor: &mut UnixStream, enough: impl Fn(&str) -> bool) -> String {
    let start = Instant::now();
    loop {
        let text = say(monitor, "info jit");
        if enough(&text) {
            return text;
        }
        assert!(start.elapsed() < PATIENCE, "{text}");
        sleep(Duration::from_millis(20));
    }
}

/// Ends it: the stacks.
fn stacks(test: &str, mut running: Running, mut monitor: UnixStream) -> String {
    monitor.write_all(b"quit\r").expect("a monitor");
    assert!(running.0.wait().expect("our own child").success());
    let file = of(test, "stacks");
    let stacks = std::fs::read_to_string(&file).expect("the file");
    std::fs::remove_file(&file).expect("our own file");
    stacks
}

#[test]
fn a_guests_time_by_its_functions() {
    let (running, mut monitor) = start("functions", "profiled", "");
    // The second processor waits.
    let text = shown(&mut monitor, |text| {
        let known = text.lines().filter(|line| line.ends_with("heavy") || line.ends_with("light")).count();
        known == 2 && text.contains("[halted]")
    });
    for row in ["exits for interrupts and requests", "entries into compiled code", "Hottest guest code ("] {
        assert!(text.contains(row), "{row}: {text}");
    }
    let stacks = stacks("functions", running, monitor);
    for line in stacks.lines() {
        let (stack, count) = line.rsplit_once(' ').expect("a stack and a count");
        assert!(stack.starts_with("cpu0;kernel;") || stack == "cpu1;[halted]", "{line}");
        assert!(count.parse::<u64>().is_ok_and(|count| count > 0), "{line}");
    }
    for name in ["heavy", "light"] {
        assert!(stacks.lines().any(|line| line.starts_with(&format!("cpu0;kernel;{name} "))), "{stacks}");
    }
}

/// A program is known by its code, and its functions by its file's symbols.
#[test]
fn a_programs_time_by_its_functions() {
    assemble("userland");
    let keys = format!(",program={}", super::program_with_symbols("userland").display());
    let (running, mut monitor) = start("programs", "userland", &keys);
    let text = shown(&mut monitor, |text| text.contains("%  busy\n") || text.contains("%  busy\r"));
    assert!(text.contains("Programs") && text.contains("%  userland.elf64"), "{text}");
    let stacks = stacks("programs", running, monitor);
    assert!(stacks.lines().any(|line| line.starts_with("cpu0;user;userland.elf64;busy ")), "{stacks}");
    assert!(!stacks.contains("[user 0x"), "{stacks}");
}
