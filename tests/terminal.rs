//! The terminal and the monitor through the real program, on a pseudo-terminal: raw while the guest has it, as before on
//! every way out. The guest does not run (`-S`), so these tests need no kernel.
#![forbid(unsafe_code)]

use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, OutputFlags, SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_brolga");
/// A machine without a kernel.
const MACHINE: [&str; 7] =
    ["-S", "-m", "16", "-device", "loader,data=0xf4,data-len=1,addr=0x1000", "-device", "loader,addr=0x1000,cpu-num=0"];
/// The machine shares two cores with other tests.
const LONG: Duration = Duration::from_secs(60);

/// The program on a terminal of its own.
struct Session {
    child: Child,
    keyboard: File,
    terminal: OwnedFd,
    before: Termios,
    screen: Receiver<Vec<u8>>,
    shown: String,
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < deadline, "waited too long: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Session {
    /// Starts it; `controlling` makes the pseudo-terminal the one that Ctrl-C works on.
    fn start(name: &str, args: &[&str], controlling: bool) -> Self {
        let pty = openpty(None, None).expect("a pseudo-terminal");
        let before = tcgetattr(&pty.slave).unwrap();
        assert!(before.local_flags.contains(LocalFlags::ICANON | LocalFlags::ECHO));
        // Whoever runs the tests in the background has SIGINT and SIGQUIT ignored, which children inherit.
        let mut command = Command::new("env");
        command.arg("--default-signal");
        if controlling {
            command.args(["setsid", "--ctty", PROGRAM]);
        } else {
            command.args(["bash", "-c", r#"exec -a "$0" "$@""#, name, PROGRAM]);
        }
        let end = || Stdio::from(pty.slave.try_clone().unwrap());
        let child =
            command.args(MACHINE).args(args).stdin(end()).stdout(end()).stderr(end()).spawn().expect("it starts");
        let keyboard = File::from(pty.master);
        let mut reader = keyboard.try_clone().unwrap();
        let (sender, screen) = channel();
        std::thread::spawn(move || {
            let mut buf = [0; 4096];
            while let Ok(n @ 1..) = reader.read(&mut buf) {
                if sender.send(buf[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { child, keyboard, terminal: pty.slave, before, screen, shown: String::new() }
    }

    fn attributes(&self) -> Termios {
        tcgetattr(&self.terminal).unwrap()
    }

    fn wait_raw(&mut self) {
        wait_until("raw mode", || {
            assert!(
                self.child.try_wait().unwrap().is_none(),
                "ended: {:?}",
                self.screen.try_iter().collect::<Vec<_>>()
            );
            !self.attributes().local_flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO)
        });
    }

    fn assert_restored(&self) {
        // Bits that only the kernel sets (pending input to print again) are not ours.
        let mut now = self.attributes();
        now.local_flags.set(LocalFlags::PENDIN, self.before.local_flags.contains(LocalFlags::PENDIN));
        assert_eq!(now, self.before);
    }

    fn type_in(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).unwrap();
    }

    /// Waits for `text` on the screen and forgets what came up to it.
    fn expect(&mut self, text: &str) {
        let deadline = Instant::now() + LONG;
        loop {
            if let Some(at) = self.shown.find(text) {
                self.shown.drain(..at + text.len());
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.screen.recv_timeout(left) {
                // The terminal adds carriage returns of its own.
                Ok(bytes) => self.shown += &String::from_utf8_lossy(&bytes).replace('\r', ""),
                Err(_) => panic!("no {text:?} on the screen: {:?}", self.shown),
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    fn end(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the end of the process", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn monitor_on_a_shared_terminal() {
    let mut s = Session::start("brolga", &["-serial", "mon:stdio", "-name", "box"], false);
    s.wait_raw();
    assert!(s.attributes().output_flags.contains(OutputFlags::OPOST), "messages end in a bare newline");
    assert!(!s.attributes().local_flags.contains(LocalFlags::ISIG), "Ctrl-C is the guest's");
    s.type_in("\x01h");
    s.expect("C-a x    end the emulator\n");
    s.type_in("\x01c");
    s.expect("(brolga) ");
    s.type_in("info status\r");
    s.expect("info status\nVM status: paused (prelaunch)\n(brolga) ");
    s.type_in("info nmae\x7f\x7f\x7fame\r");
    s.expect("\nbox\n(brolga) ");
    s.type_in("xp/1xb 0x1000\r");
    s.expect("0000000000001000: 0xf4\n(brolga) ");
    s.type_in("info jit\r");
    s.expect("CPU #0\n");
    s.expect("(brolga) ");
    s.type_in("\x01x");
    s.expect("terminated");
    assert_eq!(s.end().code(), Some(0));
    s.assert_restored();
}

#[test]
fn quit_in_the_monitor_under_qemus_name() {
    let mut s = Session::start("qemu-system-x86_64", &["-monitor", "stdio", "-display", "none"], false);
    s.expect("(qemu) ");
    s.wait_raw();
    s.type_in("quit\n");
    assert_eq!(s.end().code(), Some(0));
    s.assert_restored();
}

#[test]
fn signals_end_it_in_order() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        let mut s = Session::start("brolga", &["-nographic"], false);
        s.wait_raw();
        s.signal(signal);
        s.expect(&format!("brolga: terminating on signal {} from pid {}", signal as i32, std::process::id()));
        assert_eq!(s.end().code(), Some(0), "{signal}");
        s.assert_restored();
    }
}

#[test]
fn control_c_ends_it_on_a_plain_serial_port_only() {
    let mut plain = Session::start("", &["-serial", "stdio"], true);
    plain.wait_raw();
    assert!(plain.attributes().local_flags.contains(LocalFlags::ISIG));
    plain.type_in("\x03");
    plain.expect("terminating on signal 2");
    assert_eq!(plain.end().code(), Some(0));
    plain.assert_restored();

    let mut shared = Session::start("", &["-nographic"], true);
    shared.wait_raw();
    shared.type_in("\x03\x1a\x1c\x01c");
    shared.expect("(brolga) ");
    shared.type_in("quit\r");
    assert_eq!(shared.end().code(), Some(0));
    shared.assert_restored();
}

#[test]
fn stopping_lends_the_terminal() {
    let mut s = Session::start("", &["-serial", "stdio", "-monitor", "none"], true);
    s.wait_raw();
    s.type_in("\x1a");
    let stat = format!("/proc/{}/stat", s.child.id());
    wait_until("the stop", || {
        let text = std::fs::read_to_string(&stat).unwrap();
        text.rsplit(')').next().unwrap().trim_start().starts_with('T')
    });
    s.assert_restored();
    s.signal(Signal::SIGCONT);
    s.wait_raw();
    s.signal(Signal::SIGTERM);
    assert_eq!(s.end().code(), Some(0));
    s.assert_restored();
}

#[test]
fn settings_found_are_the_settings_left() {
    let mut s = Session::start("brolga", &["-nographic"], false);
    s.wait_raw();
    s.type_in("\x01x");
    assert_eq!(s.end().code(), Some(0));
    s.assert_restored();
    // A terminal with unusual settings keeps them.
    let pty = openpty(None, None).unwrap();
    let mut odd = tcgetattr(&pty.slave).unwrap();
    odd.local_flags.remove(LocalFlags::ECHO);
    odd.output_flags.remove(OutputFlags::ONLCR);
    tcsetattr(&pty.slave, SetArg::TCSANOW, &odd).unwrap();
    let end = || Stdio::from(pty.slave.try_clone().unwrap());
    let mut child = Command::new(PROGRAM)
        .args(MACHINE)
        .arg("-nographic")
        .stdin(end())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("raw mode", || !tcgetattr(&pty.slave).unwrap().local_flags.contains(LocalFlags::ICANON));
    File::from(pty.master.try_clone().unwrap()).write_all(b"\x01x").unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(tcgetattr(&pty.slave).unwrap(), odd);
}

#[test]
fn without_a_terminal() {
    let run = |args: &[&str], input: &[u8]| {
        let mut child = Command::new(PROGRAM)
            .args(MACHINE)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child
    };
    let out = run(&["-monitor", "stdio", "-display", "none"], b"info status\nquit\n").wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(0));
    assert!(out.stderr.is_empty());
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(text.contains("VM status: paused (prelaunch)\r\n(brolga) quit\r\n"), "{text}");
    // End of input ends nothing.
    let mut child = run(&["-nographic"], b"");
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "end of input is not the end");
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn ignored_signals_stay_ignored() {
    // As `nohup` does it.
    let mut child = Command::new("sh")
        .args(["-c", r#"trap "" HUP; exec "$@""#, "sh", PROGRAM])
        .args(MACHINE)
        .args(["-display", "none", "-monitor", "stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut greeting = [0; 6];
    stdout.read_exact(&mut greeting).unwrap();
    let pid = Pid::from_raw(child.id() as i32);
    kill(pid, Signal::SIGHUP).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert!(child.try_wait().unwrap().is_none(), "nohup must work");
    child.stdin.take().unwrap().write_all(b"quit\n").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// Python's pexpect, as many who automate guests have it.
#[test]
fn pexpect_at_a_shared_terminal() {
    let of = |path: &str| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let python = of(".cache/python/bin/python3");
    assert!(python.exists(), "{} is missing: run tools/setup", python.display());
    let mut command = Command::new("timeout");
    command.arg("120").arg(python).arg(of("tests/terminal.py")).arg(PROGRAM).args(MACHINE);
    let output = command.output().expect("timeout(1)");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.ends_with("monitor, guest, monitor, end\n"), "{text}");
}
