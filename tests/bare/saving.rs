//! A machine that is saved while its program runs, goes on, is brought back, and goes on in another process.

use super::{FINISHED, assemble, expected};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);

/// A folder that is gone at the end of its test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("saving-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("UTF-8").to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The program in a machine with a disk, and a QMP client.
struct Machine {
    child: Child,
    output: BufReader<ChildStdout>,
    client: BufReader<UnixStream>,
}

impl Machine {
    fn start(folder: &Folder, image: &Path, accelerator: &str, more: &[&str]) -> Self {
        let socket = folder.path("qmp");
        let mut child = Command::new(env!("CARGO_BIN_EXE_brolga"))
            .args(["-m", "64", "-display", "none", "-serial", "none", "-monitor", "none", "-no-reboot", "-net", "none"])
            .args(["-debugcon", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
            .args(["-drive", &format!("file={},format=qcow2", folder.path("disk"))])
            .args(["-qmp", &format!("unix:{socket},server=on,wait=off")])
            .args(["-cpu", "max", "-accel", accelerator, "-kernel"])
            .arg(image)
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the emulator starts");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "{socket}: {error}"),
            }
            thread::sleep(Duration::from_millis(5));
        };
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut this = Self { child, output, client: BufReader::new(stream) };
        this.answer("QMP");
        this.send("{\"execute\": \"qmp_capabilities\"}");
        this.answer("return");
        this
    }

    fn send(&mut self, message: &str) {
        self.client.get_mut().write_all(message.as_bytes()).expect("it listens");
    }

    /// The next message with a member of that name.
    fn answer(&mut self, member: &str) -> String {
        let mut line = String::new();
        while !line.contains(&format!("\"{member}\"")) {
            line.clear();
            assert_ne!(self.client.read_line(&mut line).expect("a message in time"), 0, "it has ended");
        }
        line
    }

    /// A line of the monitor's; it has nothing to say about it.
    #[track_caller]
    fn human(&mut self, line: &str) {
        let message =
            format!("{{\"execute\": \"human-monitor-command\", \"arguments\": {{\"command-line\": \"{line}\"}}}}");
        self.send(&message);
        let answer = self.answer("return");
        assert!(answer.contains("\"return\": \"\"") || answer.contains("\"return\":\"\""), "{line}: {answer}");
    }

    /// The next line of the program's.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("its output");
        line
    }

    /// What else the program says, once it has finished.
    fn rest(&mut self) -> String {
        let mut text = String::new();
        self.output.read_to_string(&mut text).expect("its output");
        assert_eq!(self.child.wait().expect("our own child").code(), Some(FINISHED), "{text}");
        text
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn all_of_a_processor_and_its_timers_are_kept() {
    let (image, expected) = (assemble("saved"), expected("saved"));
    for accelerator in ["interp", "jit"] {
        let folder = Folder::new(accelerator);
        let disk = folder.path("disk");
        let mut make = Command::new(env!("CARGO_BIN_EXE_brolga-img"));
        let made = make.args(["create", "-q", "-f", "qcow2", &disk, "1M"]);
        assert!(made.stdout(Stdio::null()).status().expect("brolga-img").success());
        let mut machine = Machine::start(&folder, &image, accelerator, &[]);
        let begins = machine.line();
        for round in 0..4 {
            machine.human(&format!("savevm s{round}"));
        }
        // Each goes on for a moment; the last one to its end.
        for round in [0, 3, 1, 2] {
            machine.human(&format!("loadvm s{round}"));
        }
        assert_eq!(begins + &machine.rest(), expected, "{accelerator}");
        drop(machine);
        let mut machine = Machine::start(&folder, &image, accelerator, &["-loadvm", "s1"]);
        assert_eq!(machine.line(), "whole\n", "in another process, {accelerator}");
        assert_eq!(machine.rest(), "");
    }
}
