//! The console: escape keys, the monitor behind them, other places for the serial line, the host's terminal.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use nix::unistd::Pid;

use crate::harness::{BOOT, Boot, COMMAND, Guest, INIT, PROMPT, program};

/// The first words of a Linux kernel.
const FIRST_LINE: &str = "Linux version";

/// The monitor's prompt: it bears the program's own name.
fn monitor_prompt() -> &'static str {
    if program().ends_with("qemu-system-x86_64") { "(qemu) " } else { "(brolga) " }
}

#[test]
fn ctrl_a_x_quits() {
    let mut guest = Boot::new("debian").start();
    guest.expect(FIRST_LINE, BOOT);
    guest.send("\x01x");
    guest.ends_with(0);
}

#[test]
fn ctrl_a_h_lists_the_keys() {
    let mut guest = Boot::new("debian").start();
    guest.expect(FIRST_LINE, BOOT);
    guest.send("\x01h");
    for key in ["C-a h", "C-a x", "C-a b", "C-a c", "C-a C-a"] {
        guest.expect(key, COMMAND);
    }
    guest.send("\x01x");
    guest.ends_with(0);
}

#[test]
fn ctrl_a_c_toggles_the_monitor() {
    let mut guest =
        Boot::new("debian").append("quiet").console(&["-display", "none", "-serial", "mon:stdio"]).to_shell();
    guest.send("\x01c");
    guest.expect(monitor_prompt(), COMMAND);
    guest.send("info status\r");
    guest.expect("VM status: running", COMMAND);
    guest.expect(monitor_prompt(), COMMAND);
    guest.send("stop\rinfo status\r");
    guest.expect("VM status: paused", COMMAND);
    guest.send("cont\r");
    guest.send("\x01c");
    // The guest takes input again, and none of the monitor's lines reached its shell.
    let shown = guest.run("echo back in the guest");
    assert_eq!(shown, "back in the guest");
    assert!(!guest.transcript().contains("not found"), "monitor input reached the guest:\n{}", guest.transcript());
    guest.send("\x01c");
    guest.expect(monitor_prompt(), COMMAND);
    guest.send("quit\r");
    guest.ends_with(0);
}

#[test]
fn ctrl_a_twice_types_one() {
    let mut guest = Boot::new("debian").append("quiet").to_shell();
    guest.send("echo '<rea''dy>'; od -An -tx1 | tr -d ' \\n'; echo\r");
    guest.expect("<ready>", COMMAND);
    // Canonical mode hands over the line as it is typed; Ctrl-D ends it.
    guest.send("\x01\x01\r\x04");
    guest.expect("010a\r\n", COMMAND);
    guest.expect(PROMPT, COMMAND);
    guest.send("poweroff\r");
    guest.ends_with(0);
}

#[test]
fn a_serial_line_may_go_to_a_file() {
    let file = std::env::temp_dir().join(format!("brolga-serial-{}", std::process::id()));
    let serial = format!("file:{}", file.display());
    let mut guest = Boot::new("debian")
        .append("quiet brolga.run=/bin/uname brolga.args=-r")
        .console(&["-display", "none", "-monitor", "none", "-serial", &serial])
        .start();
    let status = guest.wait(BOOT);
    let written = fs::read_to_string(&file).expect("the serial line's file");
    fs::remove_file(&file).expect("a file that can be removed");
    assert!(status.success(), "ended with {status}: {written}");
    assert!(written.contains(INIT) && written.contains("run ended with status 0"), "{written}");
    assert_eq!(guest.transcript(), "", "the console says what the file should have");
}

#[test]
fn long_input_loses_nothing() {
    let mut guest = Boot::new("debian").append("quiet").to_shell();
    // Many times the UART's FIFO, typed at once, in lines that canonical mode can hold.
    let lines: String = (0..100).map(|n| format!("line {n} {}\r", "x".repeat(60))).collect();
    guest.send("stty -echo; echo '<rea''dy>'; sha256sum; stty echo\r");
    guest.expect("<ready>", COMMAND);
    guest.send(&lines);
    guest.send("\x04");
    // The guest's terminal makes \n of \r.
    let expected = host_sha256(&lines.replace('\r', "\n"));
    guest.expect(&expected, COMMAND);
    guest.expect(PROMPT, COMMAND);
    guest.send("poweroff\r");
    guest.ends_with(0);
}

/// What sha256sum says on the host.
fn host_sha256(text: &str) -> String {
    use std::io::Write;
    let mut child =
        Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("sha256sum of coreutils");
    child.stdin.take().expect("a piped stdin").write_all(text.as_bytes()).expect("a pipe to sha256sum");
    let output = child.wait_with_output().expect("sha256sum's answer");
    String::from_utf8_lossy(&output.stdout).split_whitespace().next().expect("a digest").to_owned()
}

/// An emulator whose three standard streams are a terminal.
struct OnTerminal {
    guest: Guest,
    terminal: OwnedFd,
    before: Termios,
}

impl OnTerminal {
    fn start(boot: &Boot) -> Self {
        let pty = nix::pty::openpty(None, None).expect("a pseudo-terminal");
        let before = tcgetattr(pty.slave.as_fd()).expect("the terminal's mode");
        let stream = || Stdio::from(pty.slave.try_clone().expect("another descriptor"));
        // Whoever runs the tests in the background has SIGINT and SIGQUIT ignored, which children inherit.
        let child = Command::new("env")
            .arg("--default-signal")
            .arg(program())
            .args(boot.arguments())
            .stdin(stream())
            .stdout(stream())
            .stderr(stream())
            .spawn()
            .expect("the emulator");
        let master = File::from(pty.master);
        let guest = Guest::attached(child, master.try_clone().expect("another descriptor"), master);
        Self { guest, terminal: pty.slave, before }
    }

    fn mode(&self) -> Termios {
        tcgetattr(self.terminal.as_fd()).expect("the terminal's mode")
    }

    #[track_caller]
    fn is_raw(&self) {
        let flags = self.mode().local_flags;
        let cooked = LocalFlags::ICANON | LocalFlags::ECHO;
        assert!(!flags.intersects(cooked), "the terminal is not raw while the guest runs: {flags:?}");
    }

    #[track_caller]
    fn is_restored(&self) {
        assert!(self.mode() == self.before, "the terminal is left as {:?}, it was {:?}", self.mode(), self.before);
    }
}

#[test]
fn the_terminal_is_raw_for_the_guest_and_restored_after_ctrl_a_x() {
    let mut on = OnTerminal::start(&Boot::new("debian"));
    on.guest.expect(FIRST_LINE, BOOT);
    on.is_raw();
    on.guest.send("\x01x");
    on.guest.ends_with(0);
    on.is_restored();
}

#[test]
fn the_terminal_is_restored_after_poweroff() {
    let mut on = OnTerminal::start(&Boot::new("debian").append("quiet brolga.run=/bin/true"));
    on.guest.expect(INIT, BOOT);
    on.is_raw();
    on.guest.ends_with(0);
    on.is_restored();
}

#[test]
fn the_terminal_is_restored_after_a_signal() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let mut on = OnTerminal::start(&Boot::new("debian"));
        on.guest.expect(FIRST_LINE, BOOT);
        on.is_raw();
        kill(Pid::from_raw(on.guest.id().cast_signed()), signal).expect("a signal to our own child");
        on.guest.wait(Duration::from_secs(20));
        on.is_restored();
    }
}

#[test]
fn ctrl_c_goes_to_the_guest() {
    let mut on = OnTerminal::start(&Boot::new("debian").append("quiet"));
    on.guest.expect(INIT, BOOT);
    on.guest.expect(PROMPT, COMMAND);
    on.guest.send("sleep 1000\r");
    on.guest.expect("sleep 1000", COMMAND);
    std::thread::sleep(Duration::from_secs(1));
    on.guest.send("\x03");
    on.guest.expect(PROMPT, COMMAND);
    on.guest.send("poweroff\r");
    on.guest.ends_with(0);
    on.is_restored();
}
