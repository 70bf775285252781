//! Real gdb on a bare-metal program that runs until the debugger lets it go.

use super::{FINISHED, assemble, program_with_symbols};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a session may take; gdb itself needs a second to start.
const PATIENCE: Duration = Duration::from_secs(120);

/// The emulator with a debugger's socket.
struct Debuggee {
    child: Option<Child>,
    socket: PathBuf,
}

impl Drop for Debuggee {
    /// A test that failed leaves nothing running.
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().expect("our own child");
            child.wait().expect("our own child");
        }
    }
}

impl Debuggee {
    /// Starts it; `name` tells tests apart.
    fn start(name: &str, accelerator: &str, args: &[&str]) -> Self {
        let image = assemble("debuggee");
        let socket = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("gdb-{name}"));
        let _ = std::fs::remove_file(&socket);
        let child = Command::new(env!("CARGO_BIN_EXE_brolga"))
            .args(["-m", "64", "-display", "none", "-serial", "none", "-monitor", "none", "-no-reboot"])
            .args(["-debugcon", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
            .args(["-accel", accelerator, "-gdb", &format!("unix:{}", socket.display()), "-kernel"])
            .arg(image)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the emulator starts");
        let start = Instant::now();
        while !socket.exists() {
            assert!(start.elapsed() < PATIENCE, "no socket");
            sleep(Duration::from_millis(5));
        }
        Self { child: Some(child), socket }
    }

    /// Runs gdb with commands, which it ends with; what it printed.
    fn gdb(&self, commands: &[&str]) -> String {
        let mut gdb = Command::new("timeout");
        gdb.args([&PATIENCE.as_secs().to_string(), "gdb", "-batch", "-nx", "-ex", "set pagination off", "-ex"]);
        gdb.arg(format!("target remote {}", self.socket.display()));
        gdb.args(commands.iter().flat_map(|c| ["-ex", c]));
        let output = gdb.arg(program_with_symbols("debuggee")).output().expect("gdb: run tools/setup");
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    /// Waits for the end.
    fn end(mut self) -> Output {
        let child = self.child.take().expect("it was not waited for");
        child.wait_with_output().expect("the emulator's output")
    }
}

/// `text` has the parts, one after the other.
#[track_caller]
fn has(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let Some(at) = rest.find(part) else { panic!("'{part}' is missing behind the others in:\n{text}") };
        rest = &rest[at + part.len()..];
    }
}

/// Lets the program end and looks that it did.
#[track_caller]
fn let_go(debuggee: Debuggee) {
    let text = debuggee.gdb(&["set var *(int*)&enough = 1", "continue"]);
    has(&text, &["Remote connection closed"]);
    let output = debuggee.end();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(FINISHED), b"enough\n".as_slice()));
}

#[test]
fn breakpoints_steps_and_registers() {
    for (name, accelerator) in [("breaks-interp", "interp"), ("breaks-jit", "jit"), ("breaks-sync", "jit,sync=on")] {
        let debuggee = Debuggee::start(name, accelerator, &["-S"]);
        let text = debuggee.gdb(&[
            "info registers rip cr0",
            "break work",
            "continue",
            "continue 30",
            "p (long)counter",
            "stepi",
            "stepi",
            "x/i $pc",
            "p $rax",
            "set $rax = 0x123456",
            "stepi",
            "p/x (long)counter",
            "hbreak loops",
            "delete 1",
            "continue",
            "p $efer",
            "p $xmm0.v2_int64[0]",
            "info registers cs",
        ]);
        has(
            &text,
            &[
                "<_start>",
                "[ ET PE ]",
                "Breakpoint 1, 0x",
                "$1 = 30",
                "mov    %rax,",
                "$2 = 31",
                "$3 = 0x123456",
                "Breakpoint 2, 0x",
                "$4 = [ NXE LMA LME SCE ]",
                "$5 = 1193046",
                "0x18",
            ],
        );
        let_go(debuggee);
    }
}

#[test]
fn a_step_over_rep_is_one_round() {
    let debuggee = Debuggee::start("rep", "jit", &["-S"]);
    let text = debuggee.gdb(&[
        "break fill",
        "continue",
        "x/i $pc",
        "p $ecx",
        "stepi",
        "p $ecx",
        "p $pc == (long)&fill",
        "nexti",
        "nexti",
        "nexti",
        "p $ecx",
        "x/i $pc",
    ]);
    has(&text, &["rep stos", "$1 = 4", "$2 = 3", "$3 = 1", "$4 = 0", "ret"]);
    let_go(debuggee);
}

#[test]
fn watchpoints() {
    let debuggee = Debuggee::start("watch", "jit", &["-S"]);
    let text = debuggee.gdb(&[
        "break work",
        "continue",
        "continue 40",
        "delete",
        "watch *(long*)&counter",
        "continue",
        "x/i $pc",
        "delete",
        "rwatch *(int*)&enough",
        "continue",
        "delete",
        "awatch *(char*)&shown",
        "continue",
        "p $ecx",
    ]);
    has(
        &text,
        &[
            "Hardware watchpoint",
            "Old value = 40",
            "New value = 41",
            "movq   %rax,%xmm0",
            "Hardware read watchpoint",
            "Value = 0",
            "Hardware access (read/write) watchpoint",
            "$1 = 3",
        ],
    );
    let_go(debuggee);
}

#[test]
fn memory_threads_and_the_monitor() {
    let debuggee = Debuggee::start("look", "jit", &["-S", "-smp", "2"]);
    let text = debuggee.gdb(&[
        "break work",
        "continue",
        "x/4xb &work",
        "set var *(long*)&shown = 0x1122334455667788",
        "x/8xb &shown",
        "info threads",
        "thread 2",
        "p $rip",
        "monitor info status",
        "monitor xp /1xg 0x208000",
        "monitor info cpus",
        "thread 1",
        "x/1xb 0xffffffff00000000",
        "maintenance packet qqemu.sstepbits",
        "maintenance packet Qqemu.PhyMemMode:1",
        "maintenance packet qqemu.PhyMemMode",
    ]);
    has(
        &text,
        &[
            "0x48\t0x8b\t0x04\t0x25",
            "0x88\t0x77\t0x66\t0x55\t0x44\t0x33\t0x22\t0x11",
            "CPU#0",
            "CPU#1",
            "0xfff0",
            "ENABLE=1,NOIRQ=2,NOTIMER=4",
            "received: \"OK\"",
            "received: \"1\"",
        ],
    );
    // These come by standard error.
    has(&text, &["paused (debug)", "0000000000208000: 0x", "CPU #1: thread_id="]);
    has(&text, &["Cannot access memory at address 0xffffffff00000000"]);
    let_go(debuggee);
}

#[test]
fn detached_it_runs_on_and_takes_the_next_client() {
    let debuggee = Debuggee::start("detach", "jit", &[]);
    let text = debuggee.gdb(&["p (long)counter > 0", "break work", "continue", "detach"]);
    has(&text, &["$1 = 1", "Breakpoint 1,", "detached"]);
    sleep(Duration::from_millis(300));
    let count = |text: &str| -> Option<u64> { text.split("= ").nth(1)?.lines().next()?.parse().ok() };
    let first = count(&debuggee.gdb(&["p (long)counter"])).expect("a count");
    let second = count(&debuggee.gdb(&["p (long)counter"])).expect("a count");
    assert!(second > first + 1000, "it ran on without its breakpoint: {first}, {second}");
    let_go(debuggee);
}

/// A packet of the remote protocol.
fn packet(text: &str) -> Vec<u8> {
    let sum = text.bytes().fold(0u8, |sum, b| sum.wrapping_add(b));
    format!("${text}#{sum:02x}").into_bytes()
}

/// Reads up to the end of the next packet: its text.
fn reply(stream: &mut UnixStream) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"#") {
        stream.read_exact(&mut byte).expect("an answer");
        text.push(byte[0]);
    }
    stream.read_exact(&mut [0; 2]).expect("a sum");
    stream.write_all(b"+").expect("a connection");
    let text = String::from_utf8_lossy(&text).into_owned();
    text[text.find('$').map_or(0, |at| at + 1)..text.len() - 1].to_owned()
}

#[test]
fn a_hundred_interrupts_at_any_moment_and_garbage() {
    let debuggee = Debuggee::start("interrupts", "jit", &["-smp", "2"]);
    let mut stream = UnixStream::connect(&debuggee.socket).expect("a server");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    for round in 0..100u64 {
        stream.write_all(&packet("vCont;c")).expect("a connection");
        sleep(Duration::from_micros(round * 37 % 3000));
        stream.write_all(b"\x03").expect("a connection");
        let stop = reply(&mut stream);
        assert!(stop.starts_with("T02"), "{round}: {stop}");
    }
    // A client that talks nonsense, and one that vanishes while the guest runs.
    stream.write_all(b"$$##zz+-\x03$vCont;xyzzy#00$m;;,#ff").expect("a connection");
    drop(stream);
    let mut stream = UnixStream::connect(&debuggee.socket).expect("a server");
    stream.write_all(&packet("vCont;c")).expect("a connection");
    drop(stream);
    let_go(debuggee);
}
