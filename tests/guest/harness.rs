//! Starts a guest, talks over its console, waits for what it should say, and cleans up after itself.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// How long a kernel may take to its shell, on a loaded machine.
pub const BOOT: Duration = Duration::from_secs(240);
/// How long an ordinary command may take in the guest.
pub const COMMAND: Duration = Duration::from_secs(60);
/// How long the process may take to end once it should.
pub const END: Duration = Duration::from_secs(60);
/// The prompt of the guest's shell.
pub const PROMPT: &str = "/ # ";
/// What `/init` prints first.
pub const INIT: &str = "brolga: init reached";

/// The emulator under test.
pub fn program() -> PathBuf {
    std::env::var_os("BROLGA_TEST_PROGRAM").map_or_else(|| env!("CARGO_BIN_EXE_brolga").into(), PathBuf::from)
}

/// A file that `tools/setup` puts under `.cache/`.
pub fn cached(path: &str) -> PathBuf {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache").join(path);
    assert!(file.exists(), "{} is missing: run tools/setup", file.display());
    file
}

/// A path in the temporary folder that no other test has. The file there goes with it.
pub struct Scratch(PathBuf);

impl Scratch {
    /// One with a name that no other in this test has.
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("brolga-{name}-{}", std::process::id()));
        // Left behind by a run with the same number that was killed.
        let _ = fs::remove_file(&path);
        Self(path)
    }
}

impl std::ops::Deref for Scratch {
    type Target = Path;
    fn deref(&self) -> &Path {
        &self.0
    }
}

impl AsRef<Path> for Scratch {
    fn as_ref(&self) -> &Path {
        self
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What was never made need not go.
        let _ = fs::remove_file(&self.0);
    }
}

/// The bzImage of a kernel by its name in `tools/guest.py list`.
pub fn kernel(name: &str) -> PathBuf {
    cached(&format!("kernels/{name}/vmlinuz"))
}

/// What `uname -r` says in a kernel of that name.
pub fn kernel_version(name: &str) -> String {
    let version = fs::read_to_string(cached(&format!("kernels/{name}/version"))).expect("a readable version file");
    version.trim().to_owned()
}

/// A command line for a Linux guest on the serial console.
pub struct Boot {
    kernel: PathBuf,
    initramfs: PathBuf,
    append: String,
    memory: String,
    console: Vec<String>,
    more: Vec<String>,
}

impl Boot {
    /// A kernel by name, with the 64-bit BusyBox, 256 MiB, and a process that ends when the guest reboots or panics.
    pub fn new(name: &str) -> Self {
        Self {
            kernel: kernel(name),
            initramfs: cached("initramfs/busybox-amd64.cpio.gz"),
            append: "console=ttyS0 panic=-1".to_owned(),
            memory: "256M".to_owned(),
            console: vec!["-nographic".to_owned()],
            more: vec!["-no-reboot".to_owned()],
        }
    }

    /// Another initramfs, by its name in `tools/guest.py list`.
    pub fn initramfs(self, name: &str) -> Self {
        self.image(&format!("initramfs/{name}.cpio.gz"))
    }

    /// An initramfs by its path under `.cache/`.
    pub fn image(mut self, path: &str) -> Self {
        self.initramfs = cached(path);
        self
    }

    /// More words for the kernel's command line.
    pub fn append(mut self, words: &str) -> Self {
        self.append = format!("{} {words}", self.append);
        self
    }

    /// Another size of memory, as `-m` takes it.
    pub fn memory(mut self, size: &str) -> Self {
        size.clone_into(&mut self.memory);
        self
    }

    /// Another way to the console than `-nographic`.
    pub fn console(mut self, words: &[&str]) -> Self {
        self.console = words.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Options in place of `-no-reboot`.
    pub fn options(mut self, words: &[&str]) -> Self {
        self.more = words.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// The whole command line after the program's name.
    pub fn arguments(&self) -> Vec<String> {
        let text = |path: &Path| path.to_str().expect("a cache path in UTF-8").to_owned();
        let fixed = ["-m", &self.memory, "-kernel", &text(&self.kernel), "-initrd", &text(&self.initramfs)];
        let mut words: Vec<String> = fixed.iter().map(|&word| word.to_owned()).collect();
        words.extend(["-append".to_owned(), self.append.clone()]);
        words.extend(self.console.iter().cloned());
        words.extend(self.more.iter().cloned());
        words
    }

    /// Start the process; its console is a pair of pipes.
    pub fn start(&self) -> Guest {
        Guest::start(&self.arguments())
    }

    /// Start, and wait for the shell's prompt.
    pub fn to_shell(&self) -> Guest {
        let mut guest = self.start();
        guest.expect(INIT, BOOT);
        guest.expect(PROMPT, COMMAND);
        guest
    }
}

/// What a reader thread has gathered from one of the process's outputs.
#[derive(Default)]
struct Output {
    /// Without terminal escapes: firmware moves the cursor wherever its timer interrupts a line.
    text: Vec<u8>,
    closed: bool,
}

type Shared = Arc<(Mutex<Output>, Condvar)>;

/// Gather everything that `source` gives, until it ends.
fn gather(mut source: impl Read + Send + 'static) -> Shared {
    let shared = Shared::default();
    let theirs = Arc::clone(&shared);
    thread::spawn(move || {
        let mut chunk = [0; 4096];
        let mut escapes = Escapes::Outside;
        loop {
            // A pty whose other side has closed answers with an error instead of an end of file.
            let got = source.read(&mut chunk).unwrap_or(0);
            let (output, changed) = &*theirs;
            let mut output = output.lock().expect("the output's lock");
            for &byte in &chunk[..got] {
                if escapes.passes(byte) {
                    output.text.push(byte);
                }
            }
            output.closed = got == 0;
            changed.notify_all();
            if got == 0 {
                return;
            }
        }
    });
    shared
}

/// A running emulator. Dropping it kills the process.
pub struct Guest {
    child: Child,
    input: Option<Box<dyn Write>>,
    console: Shared,
    errors: Option<Shared>,
    /// How much of the console `expect` has passed.
    seen: usize,
}

impl Guest {
    /// Start the emulator with these arguments, its standard streams being pipes.
    pub fn start(arguments: &[String]) -> Self {
        let mut child = Command::new(program())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", program().display()));
        let input: ChildStdin = child.stdin.take().expect("a piped stdin");
        let console = gather(child.stdout.take().expect("a piped stdout"));
        let errors = gather(child.stderr.take().expect("a piped stderr"));
        Self { child, input: Some(Box::new(input)), console, errors: Some(errors), seen: 0 }
    }

    /// A process that somebody else started, with the two ends of its console.
    pub fn attached(child: Child, input: impl Write + 'static, output: impl Read + Send + 'static) -> Self {
        Self { child, input: Some(Box::new(input)), console: gather(output), errors: None, seen: 0 }
    }

    /// Wait until the console shows `text` after what was expected before; returns what came in between.
    #[track_caller]
    pub fn expect(&mut self, text: &str, within: Duration) -> String {
        let deadline = Instant::now() + within;
        let shared = Arc::clone(&self.console);
        let (output, changed) = &*shared;
        let mut output = output.lock().expect("the output's lock");
        loop {
            if let Some(at) = find(&output.text[self.seen..], text.as_bytes()) {
                let before = plain(&output.text[self.seen..self.seen + at]);
                self.seen += at + text.len();
                return before;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if output.closed || left.is_zero() {
                let why = if output.closed { "the process closed its console" } else { "time is up" };
                drop(output);
                panic!("{why} while waiting {within:?} for {text:?}\n{}", self.last_words());
            }
            output = changed.wait_timeout(output, left).expect("the output's lock").0;
        }
    }

    /// Type bytes on the console.
    #[track_caller]
    pub fn send(&mut self, bytes: &str) {
        let input = self.input.as_mut().expect("an open console");
        if let Err(error) = input.write_all(bytes.as_bytes()).and_then(|()| input.flush()) {
            panic!("cannot type {bytes:?}: {error}\n{}", self.last_words());
        }
    }

    /// Run a shell command in the guest and return what it printed; it must succeed.
    #[track_caller]
    pub fn run(&mut self, command: &str) -> String {
        self.run_within(command, COMMAND)
    }

    /// `run` for a command that takes longer than most.
    #[track_caller]
    pub fn run_within(&mut self, command: &str, within: Duration) -> String {
        // The marks are typed in two pieces, so that the echo of the typing is not taken for them.
        self.send(&format!("echo '<be''gin>'; {command}; echo \"<en\"\"d $?>\"\r"));
        self.expect("<begin>", within);
        let printed = self.expect("<end ", within);
        let status = self.expect(">", COMMAND);
        assert_eq!(status, "0", "`{command}` failed in the guest: {printed}\n{}", self.last_words());
        self.expect(PROMPT, COMMAND);
        printed.trim_matches(['\r', '\n']).to_owned()
    }

    /// Wait for the process to end by itself.
    #[track_caller]
    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait().expect("a process that can be waited for") {
                return status;
            }
            if Instant::now() > deadline {
                panic!("the process still runs after {within:?}\n{}", self.last_words());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// The process must end by itself with this status.
    #[track_caller]
    pub fn ends_with(&mut self, status: i32) {
        let ended = self.wait(END);
        assert_eq!(ended.code(), Some(status), "ended with {ended}\n{}", self.last_words());
    }

    /// Kill the process, and return all that its console has shown until then.
    #[track_caller]
    pub fn kill(&mut self) -> String {
        self.child.kill().expect("a process that can be killed");
        self.child.wait().expect("a process that can be waited for");
        let (output, changed) = &*self.console;
        let mut output = output.lock().expect("the output's lock");
        while !output.closed {
            output = changed.wait(output).expect("the output's lock");
        }
        plain(&output.text)
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// CPU time that the process has used in all its threads, user and system.
    pub fn cpu_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.id())).expect("the process's stat file");
        // proc(5): utime and stime are fields 14 and 15; the name in field 2 may contain spaces.
        let after_name = stat.rsplit_once(')').expect("a name in parentheses").1;
        let ticks: u64 =
            after_name.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().expect("a number")).sum();
        let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
        Duration::from_secs_f64(ticks as f64 / per_second as f64)
    }

    /// Everything that the console has shown.
    pub fn transcript(&self) -> String {
        plain(&self.console.0.lock().expect("the output's lock").text)
    }

    /// Wait until the error output has a line that begins with `start`; returns the rest of that line.
    #[track_caller]
    pub fn error_line(&self, start: &str, within: Duration) -> String {
        let deadline = Instant::now() + within;
        let shared = self.errors.as_ref().expect("a piped stderr");
        loop {
            let text = plain(&shared.0.lock().expect("the output's lock").text);
            // The last line may be cut yet.
            let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
            if let Some(rest) = whole.lines().find_map(|line| line.strip_prefix(start)) {
                return rest.to_owned();
            }
            assert!(Instant::now() < deadline, "no line begins with {start:?}\n{}", self.last_words());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// The end of the console and of the error output, for a failure's message.
    fn last_words(&self) -> String {
        let tail = |shared: &Shared| {
            let text = plain(&shared.0.lock().expect("the output's lock").text);
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(40)..].join("\n")
        };
        let errors = self.errors.as_ref().map(tail).unwrap_or_default();
        format!("--- console ---\n{}\n--- stderr ---\n{errors}\n---", tail(&self.console))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended already; then both calls say so and there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where `needle` begins in `hay`.
fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    hay.windows(needle.len()).position(|window| window == needle)
}

/// Where a stream of bytes is, as to terminal escapes (ECMA-48 5.4: `ESC [`, parameters, a final byte; else `ESC` and one).
#[derive(Clone, Copy)]
enum Escapes {
    Outside,
    Begun,
    Parameters,
}

impl Escapes {
    /// Whether the next byte of the stream is text.
    fn passes(&mut self, byte: u8) -> bool {
        let (next, passes) = match (*self, byte) {
            (_, 0x1b) => (Self::Begun, false),
            (Self::Outside, _) => (Self::Outside, true),
            (Self::Begun, b'[') => (Self::Parameters, false),
            (Self::Begun, _) | (Self::Parameters, 0x40..=0x7e) => (Self::Outside, false),
            (Self::Parameters, _) => (Self::Parameters, false),
        };
        *self = next;
        passes
    }
}

/// The text without carriage returns.
fn plain(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace('\r', "")
}
