//! The program with a halted guest, and a client that speaks QMP over a Unix socket.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The machine shares two cores with other tests.
pub const LONG: Duration = Duration::from_secs(60);

/// A directory of a test's own, removed at its end.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("qmp-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).expect("a directory");
        Self(dir)
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("UTF-8").to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The running program.
pub struct Machine {
    child: Child,
    pub scratch: Scratch,
}

impl Machine {
    /// A guest that halts at once, with a QMP socket. `args` may say `-S`.
    pub fn start(name: &str, args: &[&str]) -> Self {
        // cli; hlt; jmp back to hlt.
        let loader =
            ["-device", "loader,data=0xfdebf4fa,data-len=4,addr=0x1000", "-device", "loader,addr=0x1000,cpu-num=0"];
        Self::start_plain(name, &[&loader, args].concat())
    }

    /// A guest that `args` say all about.
    pub fn start_plain(name: &str, args: &[&str]) -> Self {
        let scratch = Scratch::new(name);
        let child = Command::new(env!("CARGO_BIN_EXE_brolga"))
            .args(["-m", "16", "-display", "none", "-nodefaults"])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", scratch.path("qmp"))])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("it starts");
        Self { child, scratch }
    }

    /// A client that has settled its capabilities.
    pub fn client(&self) -> Client {
        let mut client = self.new_client();
        assert_eq!(client.run("qmp_capabilities", json!({})), Ok(json!({})));
        client
    }

    /// A client that has seen the greeting.
    pub fn new_client(&self) -> Client {
        let mut client = Client::connect(&self.scratch.path("qmp"));
        client.greeting = client.message();
        client
    }

    /// Its number among the host's processes.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, by itself.
    pub fn ends(mut self) -> ExitStatus {
        let start = Instant::now();
        while start.elapsed() < LONG {
            if let Some(status) = self.child.try_wait().expect("our own child") {
                return status;
            }
            sleep(Duration::from_millis(5));
        }
        panic!("it does not end");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Connects as soon as there is somebody.
pub fn connect(path: &str) -> UnixStream {
    let start = Instant::now();
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => {
                stream.set_read_timeout(Some(LONG)).expect("a socket");
                return stream;
            }
            Err(e) => assert!(start.elapsed() < LONG, "{path}: {e}"),
        }
        sleep(Duration::from_millis(5));
    }
}

/// A QMP client.
pub struct Client {
    reader: BufReader<UnixStream>,
    pub stream: UnixStream,
    pub greeting: Value,
    /// Events that came while an answer was waited for.
    pub events: Vec<Value>,
}

impl Client {
    pub fn connect(path: &str) -> Self {
        let stream = connect(path);
        let reader = BufReader::new(stream.try_clone().expect("a socket"));
        Self { reader, stream, greeting: Value::Null, events: Vec::new() }
    }

    pub fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).expect("the program listens");
    }

    /// The next message; `None` at the end.
    pub fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        let got = self.reader.read_line(&mut line).expect("a message in time");
        (got != 0).then(|| {
            assert!(line.ends_with("\r\n"), "{line:?}");
            serde_json::from_str(&line).expect("JSON")
        })
    }

    pub fn message(&mut self) -> Value {
        self.next().expect("a message, not the end")
    }

    /// The next answer; events that come before it are kept.
    pub fn answer(&mut self) -> Value {
        loop {
            let message = self.message();
            if message.get("event").is_none() {
                return message;
            }
            self.events.push(message);
        }
    }

    /// Runs a command: what it returned, or class and description of the error.
    pub fn run(&mut self, command: &str, arguments: Value) -> Result<Value, (String, String)> {
        self.send(&format!("{}\n", json!({ "execute": command, "arguments": arguments, "id": command })));
        let answer = self.answer();
        assert_eq!(answer["id"], command);
        match answer.get("return") {
            Some(value) => Ok(value.clone()),
            None => Err(error(&answer)),
        }
    }

    /// A command of the monitor for people.
    pub fn hmp(&mut self, line: &str) -> String {
        let answer = self.run("human-monitor-command", json!({ "command-line": line })).expect("it is always answered");
        answer.as_str().expect("text").replace('\r', "")
    }

    /// Waits for the event `name`: its data.
    pub fn event(&mut self, name: &str) -> Value {
        if let Some(at) = self.events.iter().position(|event| event["event"] == name) {
            return self.events.remove(at)["data"].take();
        }
        loop {
            let mut message = self.message();
            assert!(message.get("event").is_some(), "{name} is waited for: {message}");
            assert!(message["timestamp"]["seconds"].as_u64().is_some_and(|s| s > 1_600_000_000), "{message}");
            assert!(message["timestamp"]["microseconds"].as_u64().is_some_and(|us| us < 1_000_000), "{message}");
            if message["event"] == name {
                return message["data"].take();
            }
            self.events.push(message);
        }
    }
}

/// Class and description of an error.
pub fn error(answer: &Value) -> (String, String) {
    let text = |key: &str| answer["error"][key].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();
    (text("class"), text("desc"))
}
