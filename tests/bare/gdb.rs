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
    /// What it runs, by whose symbols gdb goes.
    program: &'static str,
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
        Self::of("debuggee", name, accelerator, args)
    }

    /// The same with another program.
    fn of(program: &'static str, name: &str, accelerator: &str, args: &[&str]) -> Self {
        let image = assemble(program);
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
        Self { child: Some(child), socket, program }
    }

    /// Runs gdb with commands, which it ends with; what it printed.
    fn gdb(&self, commands: &[&str]) -> String {
        let mut gdb = Command::new("timeout");
        gdb.args([&PATIENCE.as_secs().to_string(), "gdb", "-batch", "-nx", "-ex", "set pagination off", "-ex"]);
        gdb.arg(format!("target remote {}", self.socket.display()));
        gdb.args(commands.iter().flat_map(|c| ["-ex", c]));
        let output = gdb.arg(program_with_symbols(self.program)).output().expect("gdb: run tools/setup");
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

/// Each of these reads has an effect on the device: a second one would be seen.
#[test]
fn a_watched_instruction_reads_its_device_once() {
    for (name, accelerator) in [("once-interp", "interp"), ("once-jit", "jit"), ("once-sync", "jit,sync=on")] {
        let card = ["-S", "-nic", "none", "-device", "e1000,addr=5"];
        let debuggee = Debuggee::of("watched", name, accelerator, &card);
        let text = debuggee.gdb(&[
            "break again",
            "continue",
            "continue 300",
            "p *(int*)&bad",
            "delete",
            "watch *(int*)&seen",
            "continue",
            "continue",
            "p $pc == (long)&copied",
            "delete",
            "watch *(int*)&slot",
            "continue",
            "p $pc == (long)&pushed",
            "delete",
            "watch *(int*)&letters",
            "continue",
            "continue",
            "p $ecx",
            "continue",
            "continue",
            "p *(int*)&bad",
            "delete",
            // Of two on a page, the one that is touched: QEMU's letters are compared before `enough` is.
            "rwatch *(int*)&letters",
            "rwatch *(int*)&enough",
            "continue",
            "continue",
        ]);
        let (cleared, set) = ("Old value = 4\nNew value = 0\n", "Old value = 0\nNew value = 4\n");
        has(&text, &["$1 = 0\n", "watchpoint 2: ", cleared, set, "$2 = 1\n"]);
        has(&text, &["watchpoint 3: ", set, "$3 = 1\n"]);
        has(&text, &["watchpoint 4: ", "New value = 81\n", "New value = 17745\n", "$4 = 2\n"]);
        has(&text, &["New value = 5064017\n", "Old value = 5064017\nNew value = 1431127377\n", "$5 = 0\n"]);
        has(&text, &["Hardware read watchpoint 5: *(int*)&letters\n\nValue = 1431127377\n"]);
        has(&text, &["Hardware read watchpoint 6: *(int*)&enough\n\nValue = 0\n"]);
        let_go(debuggee);
    }
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
fn a_thousand_interrupts_at_any_moment_and_garbage() {
    let debuggee = Debuggee::start("interrupts", "jit", &["-smp", "2"]);
    let mut stream = UnixStream::connect(&debuggee.socket).expect("a server");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    for round in 0..1000u64 {
        stream.write_all(&packet("vCont;c")).expect("a connection");
        sleep(Duration::from_micros(round * 37 % 1000));
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

#[test]
fn steps_land_where_silicon_lands() {
    for (name, accelerator) in [("steps-interp", "interp"), ("steps-jit", "jit,sync=on")] {
        let debuggee = Debuggee::of("stepping", name, accelerator, &["-S"]);
        let text = debuggee.gdb(&[
            // 32-bit code, from the kernel's entry.
            "p $pc == (long)&_start",
            "stepi",
            "stepi",
            "stepi",
            "p $eax",
            "break *at_rep",
            "continue",
            "stepi",
            "p $pc == (long)&at_rep",
            "p $ecx",
            "stepi",
            "stepi",
            "p $pc == (long)&after_rep",
            "delete",
            // A fault leads to its gate, and the handler back behind the instruction.
            "break *at_ud",
            "continue",
            "stepi",
            "p $pc == (long)&at_ud",
            "p $pc >= (long)&_start",
            "break *on_ud",
            "continue",
            "stepi",
            "stepi",
            "stepi",
            "p (long)$pc - (long)&at_ud",
            "delete",
            "break *at_iret",
            "continue",
            "stepi",
            "p $pc == (long)&after_iret",
            "break *at_syscall",
            "continue",
            "stepi",
            "p $pc == (long)&entry",
            "p $rcx - (long)&at_syscall",
            "delete",
            // HLT is done when the processor stands still behind it. What wakes it goes on from there.
            "break *at_hlt",
            "set var *(int*)&halts = 1",
            "continue",
            "stepi",
            "p $pc == (long)&after_hlt",
            "monitor nmi",
            "delete",
            "break *tick",
            "continue",
            "p *(int*)&halts",
        ]);
        has(
            &text,
            &[
                "$1 = 1",
                "$2 = 1568",
                "$3 = 1",
                "$4 = 2",
                "$5 = 1",
                "$6 = 0",
                "$7 = 1",
                "$8 = 2",
                "$9 = 1",
                "$10 = 1",
                "$11 = 2",
                "$12 = 1",
                "$13 = 0",
            ],
        );
        let_go(debuggee);
    }
}

#[test]
fn breakpoints_in_code_that_is_rewritten() {
    for (name, accelerator) in
        [("rewritten-interp", "interp"), ("rewritten-jit", "jit"), ("rewritten-sync", "jit,sync=on")]
    {
        let debuggee = Debuggee::of("stepping", name, accelerator, &["-S"]);
        let mut commands = vec!["break *tick", "continue", "continue 200", "delete", "break *at_spot"];
        // Each time with the instruction that this round has written.
        for _ in 0..20 {
            commands.extend([
                "continue",
                "p *(char*)((long)&at_spot + 1) == (char)*(long*)&rounds",
                "stepi",
                "p $bl == *(char*)&rounds",
            ]);
        }
        commands.push("p *(long*)&rounds");
        let text = debuggee.gdb(&commands);
        for n in 1..=40 {
            has(&text, &[&format!("${n} = 1\n")]);
        }
        has(&text, &["$41 = 220\n"]);
        let_go(debuggee);
    }
}

#[test]
fn two_processors_one_of_them_locked() {
    let debuggee = Debuggee::of("stepping", "locked", "jit", &["-S", "-smp", "2"]);
    // The other one runs 16-bit code: wait until it has begun, then look at it.
    let text = debuggee.gdb(&[
        "break *tick if *(int*)0x9000 > 100",
        "continue",
        "delete",
        "set scheduler-locking on",
        "thread 2",
        "p $cs",
        "p $cr0 & 1",
        "set $first = *(long*)&rounds",
        "set $count = *(int*)0x9000",
        "stepi 30",
        "p *(int*)0x9000 - $count",
        "p *(long*)&rounds - $first",
        "p $rip < 16",
        "set $count = *(int*)0x9000",
        "thread 1",
        "break *tick",
        "continue",
        "continue 9",
        "p *(long*)&rounds - $first",
        "p *(int*)0x9000 - $count",
        "set scheduler-locking off",
        "continue 200",
        "p *(int*)0x9000 > $count",
        "delete",
        // A breakpoint in 16-bit code is at its linear address.
        "hbreak *0x8009",
        "thread 2",
        "continue",
        "p (long)$rip",
        "info threads",
    ]);
    has(
        &text,
        &["$1 = 2048", "$2 = ", "$3 = 10", "$4 = 0", "$5 = 1", "$6 = 10", "$7 = 0", "$8 = 1", "$9 = 9", "CPU#1"],
    );
    let_go(debuggee);
}

#[test]
fn vector_registers() {
    let has_them = std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| {
        let flags = text.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
        ["avx2", "fma", "f16c"].iter().all(|flag| flags.split_whitespace().any(|word| word == *flag))
    });
    if !has_them {
        eprintln!("the host has no AVX2: nothing to look at");
        return;
    }
    let debuggee = Debuggee::of("stepping", "vectors", "jit", &["-S", "-cpu", "max"]);
    let text = debuggee.gdb(&[
        "break *after_vectors",
        "continue",
        "p/x $ymm5.v4_int64",
        "p/x $xmm5.v2_int64[1]",
        "set $ymm5.v4_int64[3] = 0x99",
        "stepi",
        "p/x $ymm5.v4_int64",
        "delete",
    ]);
    let word = "0x1122334455667788";
    has(
        &text,
        &[
            &format!("$1 = {{{word}, {word}, {word}, {word}}}"),
            &format!("$2 = {word}"),
            &format!("$3 = {{{word}, {word}, {word}, 0x99}}"),
        ],
    );
    let_go(debuggee);
}

#[test]
fn the_monitor_starts_and_ends_the_server() {
    let socket = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gdb-by-monitor");
    let _ = std::fs::remove_file(&socket);
    let mut debuggee = Debuggee::of("debuggee", "started", "jit", &["-S"]);
    let text = debuggee.gdb(&[
        "break work",
        "continue",
        "monitor info status",
        &format!("monitor gdbserver unix:{}", socket.display()),
    ]);
    // The server that was there is gone, with its breakpoints, and its client sees the end of the connection.
    has(&text, &["Breakpoint 1, "]);
    let start = Instant::now();
    while !socket.exists() {
        assert!(start.elapsed() < PATIENCE, "no new server");
        sleep(Duration::from_millis(5));
    }
    assert!(!debuggee.socket.exists());
    debuggee.socket = socket;
    let text = debuggee.gdb(&["p $pc == (long)&work", "break loops", "continue", "monitor gdbserver none"]);
    has(&text, &["$1 = 1", "Breakpoint 1, "]);
    let start = Instant::now();
    while debuggee.socket.exists() {
        assert!(start.elapsed() < PATIENCE, "the server stays");
        sleep(Duration::from_millis(5));
    }
    // Nobody holds the guest: it is as the last client left it.
}
