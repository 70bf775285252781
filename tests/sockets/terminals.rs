//! Pseudo-terminals and terminals of the host's, with the programs that people have there.

use super::{LONG, Machine, connect, path, read_until};
use nix::pty::openpty;
use nix::sys::termios::{BaudRate, ControlFlags, cfgetospeed, tcgetattr};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A monitor at a pseudo-terminal that `link` leads to.
fn with_link(link: &Path) -> Machine {
    let chardev = format!("pty,id=m,path={}", link.display());
    let machine = Machine::start(&["-chardev", &chardev, "-mon", "m"]);
    let start = Instant::now();
    while !link.exists() {
        assert!(start.elapsed() < LONG, "no link");
        sleep(Duration::from_millis(5));
    }
    machine
}

#[test]
fn a_link_leads_to_the_terminal_as_long_as_it_is_there() {
    let link = path("terminal-link");
    let machine = with_link(&link);
    let second = Command::new(env!("CARGO_BIN_EXE_brolga"))
        .args(["-S", "-m", "16", "-chardev", &format!("pty,id=m,path={}", link.display())])
        .args(["-device", "loader,data=0xf4,data-len=1,addr=0x1000", "-device", "loader,addr=0x1000,cpu-num=0"])
        .output()
        .expect("the program");
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(text.contains("cannot be made: file exists; choose another path") && text.lines().count() == 1, "{text}");
    let mut terminal = File::options().read(true).write(true).open(&link).expect("a terminal");
    terminal.write_all(b"info status\r").expect("a terminal");
    read_until(&mut terminal, "paused (prelaunch)");
    terminal.write_all(b"quit\r").expect("a terminal");
    machine.ends();
    assert!(link.symlink_metadata().is_err(), "it goes with the machine");
}

/// screen(1) in the background.
struct Screen {
    child: Child,
    folder: PathBuf,
}

impl Screen {
    fn start(terminal: &Path) -> Self {
        // The names of its sockets are short.
        let folder = std::env::temp_dir().join(format!("brolga-screen-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).expect("our own folder");
        let child = Self::command(&folder)
            .args(["-c", "/dev/null", "-D", "-m", "-S", "guest"])
            .arg(terminal)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("screen: run tools/setup");
        Self { child, folder }
    }

    fn command(folder: &Path) -> Command {
        let mut command = Command::new("screen");
        command.env("SCREENDIR", folder).env("TERM", "vt100");
        command
    }

    /// Has it carry a command out; `false`: it is not ready.
    fn tell(&self, words: &[&str]) -> bool {
        let told = Self::command(&self.folder).args(["-S", "guest", "-p", "0", "-X"]).args(words).output();
        told.expect("screen").status.success()
    }

    /// Waits until it shows `text`.
    fn shows(&self, text: &str) {
        let (start, file) = (Instant::now(), self.folder.join("shown"));
        loop {
            self.tell(&["hardcopy", file.to_str().expect("UTF-8")]);
            let shown = std::fs::read(&file).unwrap_or_default();
            if String::from_utf8_lossy(&shown).contains(text) {
                return;
            }
            assert!(start.elapsed() < LONG, "no '{text}' in '{}'", String::from_utf8_lossy(&shown));
            sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // It may have ended with the terminal.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn screen_at_a_pseudo_terminal() {
    let link = path("screen-link");
    let machine = with_link(&link);
    let screen = Screen::start(&link);
    let start = Instant::now();
    while !screen.tell(&["stuff", "info status^M"]) {
        assert!(start.elapsed() < LONG, "screen does not start");
        sleep(Duration::from_millis(50));
    }
    screen.shows("VM status: paused (prelaunch)");
    screen.tell(&["stuff", "info nmae^H^H^Hame^M"]);
    screen.shows("(brolga) info name");
    screen.tell(&["stuff", "quit^M"]);
    machine.ends();
}

/// The guest sets 9600 baud and two stop bits, and the host's terminal has them then.
#[test]
fn the_guest_sets_the_line() {
    let pty = openpty(None, None).expect("a pseudo-terminal");
    let name = nix::unistd::ttyname(&pty.slave).expect("its name");
    let code = path("line-code");
    let program: &[u8] = &[
        0xba, 0xfb, 0x03, 0xb0, 0x83, 0xee, // LCR: DLAB
        0xba, 0xf8, 0x03, 0xb0, 0x0c, 0xee, // divisor 12
        0x42, 0xb0, 0x00, 0xee, // its high byte
        0xba, 0xfb, 0x03, 0xb0, 0x07, 0xee, // 8 data bits, 2 stop bits
        0xf4, 0xeb, 0xfd,
    ];
    std::fs::write(&code, program).expect("a file");
    let watch = path("line-watch");
    let machine = Machine::running(&[
        "-device",
        &format!("loader,file={},addr=0x1000", code.display()),
        "-device",
        "loader,addr=0x1000,cpu-num=0",
        "-serial",
        name.to_str().expect("UTF-8"),
        "-monitor",
        &format!("unix:{},server=on,wait=off", watch.display()),
    ]);
    let start = Instant::now();
    loop {
        let settings = tcgetattr(&pty.slave).expect("a terminal");
        if cfgetospeed(&settings) == BaudRate::B9600 && settings.control_flags.contains(ControlFlags::CSTOPB) {
            break;
        }
        assert!(start.elapsed() < LONG, "{settings:?}");
        sleep(Duration::from_millis(5));
    }
    let mut monitor = connect(&watch);
    monitor.write_all(b"quit\r").expect("a monitor");
    machine.ends();
}
