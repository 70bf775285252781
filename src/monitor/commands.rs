//! The command table.

use super::Facts;
use super::expression::evaluate;
use super::host::{Control, MediumChange, MonitorHost, Topic};
use super::memory::{Format, Reader, show};
use crate::cli::{self, suggest, values};
use brolga_jit::Registers;

/// What a session remembers between commands.
#[derive(Clone, Default)]
pub struct State {
    /// `cpu N`.
    cpu: u32,
    /// The last `x` format.
    format: Format,
}

/// What a command works with.
struct Call<'a> {
    host: &'a dyn MonitorHost,
    facts: &'a Facts,
    state: &'a mut State,
    /// After the slash of `x/FMT`.
    format: &'a str,
    /// The rest of the line.
    rest: &'a str,
}

impl Call<'_> {
    fn registers(&self) -> Option<Registers> {
        self.host.registers(self.state.cpu)
    }
}

/// Output, or what is wrong with the command.
type Outcome = Result<String, String>;

struct Command {
    names: &'static [&'static str],
    args: &'static str,
    help: &'static str,
    run: fn(&mut Call<'_>) -> Outcome,
}

const fn command(
    names: &'static [&'static str],
    args: &'static str,
    help: &'static str,
    run: fn(&mut Call<'_>) -> Outcome,
) -> Command {
    Command { names, args, help, run }
}

#[rustfmt::skip]
const COMMANDS: &[Command] = &[
    command(&["help", "?"], "[COMMAND]", "this list, or one command", help),
    command(&["info"], "[SUBJECT]", "show something about the machine (info lists the subjects)", info),
    command(&["quit", "q"], "", "end the emulator", |c| control(c, Control::Quit)),
    command(&["stop", "s"], "", "pause the guest", |c| control(c, Control::Stop)),
    command(&["cont", "c"], "", "let the guest go on", |c| control(c, Control::Continue)),
    command(&["system_reset"], "", "reset the machine", |c| control(c, Control::Reset)),
    command(&["system_powerdown"], "", "press the power button", |c| control(c, Control::PowerButton)),
    command(&["nmi"], "", "raise a non-maskable interrupt", |c| control(c, Control::Nmi)),
    command(&["cpu"], "N", "use the registers and mappings of processor N", cpu),
    command(&["x"], "/FMT ADDR", "memory at a linear address, e.g. x/4xg $rsp, x/8i $rip", |c| memory(c, false)),
    command(&["xp"], "/FMT ADDR", "memory at a physical address, e.g. xp/64xb 0x7c00", |c| memory(c, true)),
    command(&["print", "p"], "/FMT EXPR", "the value of an expression, e.g. print $rip+4", print),
    command(&["hostfwd_add"], "[ID] [tcp|udp]:[HOST]:PORT-[GUEST]:PORT", "forward a port of the host's to the guest (port 0: a free one)", |c| forward(c, true)),
    command(&["hostfwd_remove"], "[ID] [tcp|udp]:[HOST]:PORT", "end the forwarding of a port", |c| forward(c, false)),
    command(&["set_link"], "NAME on|off", "plug the cable of a network card in, or pull it out", set_link),
    command(&["eject"], "[-f] DRIVE", "take a drive's medium out (-f: even if the guest has locked it); info block lists the drives", eject),
    command(&["change"], "DRIVE FILE [FORMAT [MODE]]", "put another medium in; MODE is retain, read-only or read-write", change),
    command(&["balloon"], "MIB", "ask the guest to make do with so much memory (info balloon)", set_balloon),
    command(&["log"], "ITEM,...|none", "log items as -d does", log),
];

#[rustfmt::skip]
const SUBJECTS: &[Command] = &[
    command(&["status"], "", "whether the guest runs", |c| Ok(format!("VM status: {}\n", c.host.run_state().text()))),
    command(&["version"], "", "the version", |c| Ok(cli::version(&c.facts.identity))),
    command(&["name"], "", "the machine's name (-name)", |c| Ok(c.facts.name.as_ref().map_or(String::new(), |n| format!("{n}\n")))),
    command(&["uuid"], "", "the machine's UUID (-uuid)", |c| Ok(format!("{}\n", values::show_uuid(&c.facts.uuid.unwrap_or_default())))),
    command(&["registers"], "[-a]", "processor registers (-a: of all processors)", registers),
    command(&["cpus"], "", "the processors", cpus),
    command(&["chardev"], "", "host ends of character devices", |c| Ok(lines(c.facts.chardevs.iter()))),
    command(&["serial"], "", "host ends of serial ports", |c| Ok(lines(c.facts.chardevs.iter().filter(|l| l.starts_with("serial"))))),
    command(&["qtree"], "", "devices and their state", |c| inspect(c, Topic::Qtree)),
    command(&["pic"], "", "interrupt controllers", |c| inspect(c, Topic::Pic)),
    command(&["mtree"], "", "memory and port maps", |c| inspect(c, Topic::Mtree)),
    command(&["roms"], "", "images placed in memory", |c| inspect(c, Topic::Roms)),
    command(&["network"], "", "network cards and their host ends", |c| inspect(c, Topic::Network)),
    command(&["block"], "", "drives and what is in them", |c| inspect(c, Topic::Block)),
    command(&["usernet"], "", "ports, leases and connections of -netdev user", |c| inspect(c, Topic::Usernet)),
    command(&["balloon"], "", "memory that the guest has", balloon),
    command(&["jit"], "", "counters of the code engine", |c| inspect(c, Topic::Jit)),
];

/// Runs one line and returns what to show.
pub fn run(host: &dyn MonitorHost, facts: &Facts, state: &mut State, line: &str) -> String {
    let line = line.trim();
    if line.is_empty() {
        return String::new();
    }
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let (name, format) = word.split_once('/').unwrap_or((word, ""));
    // The format may stand apart: `x /4xg 0x1000`.
    let rest = rest.trim();
    let (format, rest) = match rest.strip_prefix('/').filter(|_| format.is_empty()) {
        Some(apart) => apart.split_once(char::is_whitespace).unwrap_or((apart, "")),
        None => (format, rest),
    };
    let mut call = Call { host, facts, state, format, rest: rest.trim() };
    let outcome = match find(COMMANDS, name) {
        Some(command) => (command.run)(&mut call),
        None => Err(format!("unknown command{}; 'help' lists all", near(COMMANDS, name))),
    };
    outcome.unwrap_or_else(|e| format!("{name}: {e}\n"))
}

fn find(table: &'static [Command], name: &str) -> Option<&'static Command> {
    table.iter().find(|c| c.names.contains(&name))
}

fn near(table: &'static [Command], name: &str) -> String {
    let names = table.iter().map(|c| c.names[0]);
    suggest::nearest(name, names).map_or(String::new(), |n| format!("; did you mean {n}?"))
}

fn lines<'a>(lines: impl Iterator<Item = &'a String>) -> String {
    lines.map(|l| format!("{l}\n")).collect()
}

fn usage(prefix: &str, command: &Command) -> String {
    let left = format!("{prefix}{} {}", command.names.join("|"), command.args);
    format!("{left:<28}{}\n", command.help)
}

fn help(call: &mut Call<'_>) -> Outcome {
    if call.rest.is_empty() {
        return Ok(COMMANDS.iter().map(|c| usage("", c)).collect());
    }
    if call.rest == "info" {
        call.rest = "";
        return info(call);
    }
    match find(COMMANDS, call.rest) {
        Some(command) => Ok(usage("", command)),
        None => Err(format!("no command '{}'{}", call.rest, near(COMMANDS, call.rest))),
    }
}

fn info(call: &mut Call<'_>) -> Outcome {
    let (name, rest) = call.rest.split_once(char::is_whitespace).unwrap_or((call.rest, ""));
    if name.is_empty() {
        return Ok(SUBJECTS.iter().map(|c| usage("info ", c)).collect());
    }
    match find(SUBJECTS, name) {
        Some(subject) => {
            call.rest = rest.trim();
            (subject.run)(call)
        }
        None => Err(format!("nothing known about '{name}'{}; 'info' lists all", near(SUBJECTS, name))),
    }
}

fn control(call: &mut Call<'_>, what: Control) -> Outcome {
    call.host.control(what);
    Ok(String::new())
}

fn forward(call: &mut Call<'_>, open: bool) -> Outcome {
    let words: Vec<&str> = call.rest.split_whitespace().collect();
    match words[..] {
        [rule] => call.host.forward(open, None, rule),
        [netdev, rule] => call.host.forward(open, Some(netdev), rule),
        _ => Err("give a rule, like tcp::2222-:22, and before it the -netdev's id if there are several".into()),
    }
}

fn set_link(call: &mut Call<'_>) -> Outcome {
    let words: Vec<&str> = call.rest.split_whitespace().collect();
    let [name, state] = words[..] else {
        return Err("give a card or host end, as info network lists them, and on or off".into());
    };
    call.host.set_link(name, values::switch(state)?)?;
    Ok(String::new())
}

fn eject(call: &mut Call<'_>) -> Outcome {
    let words: Vec<&str> = call.rest.split_whitespace().collect();
    let (force, drive) = match words[..] {
        [drive] if drive != "-f" => (false, drive),
        ["-f", drive] => (true, drive),
        _ => return Err("name a drive, as info block lists them".into()),
    };
    call.host.change_medium(&MediumChange::Eject { drive: drive.to_owned(), force })?;
    Ok(String::new())
}

fn change(call: &mut Call<'_>) -> Outcome {
    let words: Vec<&str> = call.rest.split_whitespace().collect();
    let (drive, file, format, mode) = match words[..] {
        [drive, file] => (drive, file, None, None),
        [drive, file, format] => (drive, file, Some(format), None),
        [drive, file, format, mode] => (drive, file, Some(format), Some(mode)),
        _ => return Err("name a drive, as info block lists them, and a file".into()),
    };
    let read_only = match mode {
        None | Some("retain") => None,
        Some("read-only") => Some(true),
        Some("read-write") => Some(false),
        Some(other) => return Err(format!("'{other}' is no mode; there are retain, read-only and read-write")),
    };
    let (drive, file, format) = (drive.to_owned(), file.to_owned(), format.map(str::to_owned));
    call.host.change_medium(&MediumChange::Insert { drive, file, format, read_only })?;
    Ok(String::new())
}

/// Why nothing can be said about a balloon.
const NO_BALLOON: &str = "there is no balloon; add -device virtio-balloon-pci";

fn set_balloon(call: &mut Call<'_>) -> Outcome {
    let mib = values::number(call.rest)?;
    let bytes = mib.checked_mul(1 << 20).filter(|bytes| *bytes > 0);
    let bytes = bytes.ok_or_else(|| format!("{mib} MiB are out of range"))?;
    if call.host.set_balloon(bytes) { Ok(String::new()) } else { Err(NO_BALLOON.into()) }
}

fn balloon(call: &mut Call<'_>) -> Outcome {
    let (actual, statistics) = call.host.balloon().ok_or(NO_BALLOON)?;
    let mut out = format!("balloon: actual={}\n", actual >> 20);
    for (name, value) in statistics {
        out += &format!("  {name}={value}\n");
    }
    Ok(out)
}

fn inspect(call: &mut Call<'_>, topic: Topic) -> Outcome {
    let text = call.host.inspect(topic).ok_or("not available on this machine")?;
    Ok(if text.is_empty() || text.ends_with('\n') { text } else { text + "\n" })
}

fn registers(call: &mut Call<'_>) -> Outcome {
    let which = match call.rest {
        "" => call.state.cpu..call.state.cpu + 1,
        "-a" => 0..call.host.cpus(),
        other => return Err(format!("'{other}' is not understood; use info registers or info registers -a")),
    };
    let mut out = String::new();
    for cpu in which {
        let dump = call.host.register_dump(cpu).ok_or_else(|| format!("there is no processor {cpu}"))?;
        out += &format!("\nCPU#{cpu}\n{}\n", dump.trim_end());
    }
    Ok(out)
}

fn cpus(call: &mut Call<'_>) -> Outcome {
    let mark = |cpu| if cpu == call.state.cpu { '*' } else { ' ' };
    Ok((0..call.host.cpus())
        .map(|cpu| match call.host.registers(cpu) {
            Some(r) => format!("{} CPU #{cpu}: rip={:#018x}\n", mark(cpu), r.rip),
            None => format!("{} CPU #{cpu}\n", mark(cpu)),
        })
        .collect())
}

fn cpu(call: &mut Call<'_>) -> Outcome {
    let n = values::number(call.rest)?;
    let count = call.host.cpus();
    if n >= u64::from(count) {
        return Err(format!("there is no processor {n}; the last one is {}", count.saturating_sub(1)));
    }
    call.state.cpu = n as u32;
    Ok(String::new())
}

fn memory(call: &mut Call<'_>, physical: bool) -> Outcome {
    let format = Format::parse(call.format, call.state.format)?;
    let registers = call.registers();
    let address = evaluate(call.rest, registers.as_ref())?;
    call.state.format = Format { count: 1, ..format };
    let reader = Reader { host: call.host, cpu: call.state.cpu, physical };
    Ok(reader.dump(address, format, registers.as_ref()))
}

fn print(call: &mut Call<'_>) -> Outcome {
    let value = evaluate(call.rest, call.registers().as_ref())?;
    let kind = match call.format {
        "" => 'x',
        "x" | "d" | "u" | "o" | "c" => call.format.chars().next().unwrap_or('x'),
        other => return Err(format!("'{other}' is not a format; use x, d, u, o or c")),
    };
    Ok(match kind {
        'x' => format!("{value:#x}\n"),
        kind => format!("{}\n", show(value, kind, 8)),
    })
}

fn log(call: &mut Call<'_>) -> Outcome {
    match call.rest {
        "" => {
            let on = crate::log::enabled_items();
            let list = if on.is_empty() { "none".to_owned() } else { on.join(",") };
            Ok(format!("logged: {list}\n"))
        }
        "none" => {
            crate::log::set_items(&[]);
            Ok(String::new())
        }
        list => {
            crate::log::set_items(&cli::parse_log_items(list)?);
            Ok(String::new())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::host::RunState;
    use super::*;
    use crate::cli::identify;
    use std::sync::Mutex;

    /// 8 KiB of memory at 0x1000 holding its own addresses' low bytes; linear = physical + 0x10000.
    #[derive(Default)]
    struct Fake(Mutex<Vec<Control>>);

    impl MonitorHost for Fake {
        fn control(&self, what: Control) {
            self.0.lock().unwrap().push(what);
        }
        fn run_state(&self) -> RunState {
            RunState::Paused
        }
        fn cpus(&self) -> u32 {
            1
        }
        fn registers(&self, cpu: u32) -> Option<Registers> {
            let mut registers = Registers { rip: 0x11000, efer: 0x500, ..Registers::default() };
            registers.segments[1].attributes = 1 << 13;
            (cpu == 0).then_some(registers)
        }
        fn register_dump(&self, cpu: u32) -> Option<String> {
            (cpu == 0).then(|| "RIP=11000".into())
        }
        fn translate(&self, _cpu: u32, linear: u64) -> Option<u64> {
            linear.checked_sub(0x10000)
        }
        fn read_physical(&self, gpa: u64, buf: &mut [u8]) -> bool {
            let inside = (0x1000..0x3000).contains(&gpa) && gpa + buf.len() as u64 <= 0x3000;
            if inside {
                buf.iter_mut().enumerate().for_each(|(i, b)| *b = (gpa as usize + i) as u8);
            }
            inside
        }
        fn forward(&self, open: bool, netdev: Option<&str>, rule: &str) -> Result<String, String> {
            Ok(format!("{open} {netdev:?} {rule}\n"))
        }
        fn set_link(&self, name: &str, up: bool) -> Result<(), String> {
            if name == "n0" && !up { Ok(()) } else { Err("no such card".into()) }
        }
        fn change_medium(&self, change: &MediumChange) -> Result<(), String> {
            Err(format!("{change:?}"))
        }
        fn set_balloon(&self, bytes: u64) -> bool {
            bytes == 64 << 20
        }
        fn balloon(&self) -> Option<(u64, Vec<(&'static str, u64)>)> {
            Some((128 << 20, vec![("free_memory", 5)]))
        }
        fn inspect(&self, topic: Topic) -> Option<String> {
            (topic == Topic::Pic).then(|| "irr = 0".into())
        }
    }

    fn facts() -> Facts {
        let chardevs = vec!["serial0: filename=null".into(), "monitor0: filename=stdio".into()];
        Facts { identity: identify(None), name: Some("box".into()), uuid: None, chardevs }
    }

    fn say(line: &str) -> String {
        run(&Fake::default(), &facts(), &mut State::default(), line)
    }

    #[test]
    fn controls() {
        let host = Fake::default();
        for line in ["stop", "c", "system_reset", "system_powerdown", "nmi", " q "] {
            assert_eq!(run(&host, &facts(), &mut State::default(), line), "");
        }
        use Control::*;
        assert_eq!(*host.0.lock().unwrap(), [Stop, Continue, Reset, PowerButton, Nmi, Quit]);
    }

    #[test]
    fn information() {
        assert_eq!(say("info status"), "VM status: paused\n");
        assert_eq!(say("info name"), "box\n");
        assert_eq!(say("info uuid"), "00000000-0000-0000-0000-000000000000\n");
        assert_eq!(say("info registers"), "\nCPU#0\nRIP=11000\n");
        assert_eq!(say("info cpus"), "* CPU #0: rip=0x0000000000011000\n");
        assert_eq!(say("info serial"), "serial0: filename=null\n");
        assert_eq!(say("info pic"), "irr = 0\n");
        assert_eq!(say("info jit"), "info: not available on this machine\n");
        assert_eq!(say("set_link n0 off"), "");
        assert_eq!(say("set_link n1 on"), "set_link: no such card\n");
        assert!(say("set_link n0").contains("on or off") && say("set_link n0 maybe").starts_with("set_link: "));
        assert!(say("info version").starts_with("Brolga emulator version"));
        assert!(say("info").contains("info registers [-a]"));
        assert_eq!(say("info statsu"), "info: nothing known about 'statsu'; did you mean status?; 'info' lists all\n");
    }

    #[test]
    fn media() {
        assert_eq!(say("eject -f cd"), "eject: Eject { drive: \"cd\", force: true }\n");
        assert_eq!(say("eject"), "eject: name a drive, as info block lists them\n");
        let inserted =
            "change: Insert { drive: \"cd\", file: \"/x\", format: Some(\"raw\"), read_only: Some(false) }\n";
        assert_eq!(say("change cd /x raw read-write"), inserted);
        assert!(say("change cd /x raw rw").contains("'rw' is no mode"));
        assert!(say("change cd").contains("and a file"));
    }

    #[test]
    fn balloons() {
        assert_eq!(say("balloon 64"), "");
        assert!(say("balloon 65").contains("there is no balloon"));
        assert!(say("balloon 0").contains("out of range") && say("balloon x").contains("not a number"));
        assert_eq!(say("info balloon"), "balloon: actual=128\n  free_memory=5\n");
    }

    #[test]
    fn memory_dumps() {
        assert_eq!(say("xp/4xb 0x1000"), "0000000000001000: 0x00 0x01 0x02 0x03\n");
        assert_eq!(
            say("x/5xw $rip+0x10"),
            "0000000000011010: 0x13121110 0x17161514 0x1b1a1918 0x1f1e1d1c\n0000000000011020: 0x23222120\n"
        );
        assert_eq!(
            say("xp/2xg 0x2ff8"),
            "0000000000002ff8: 0xfffefdfcfbfaf9f8\nCannot access memory at address 0x3000\n"
        );
        assert_eq!(say("x 0"), "Cannot access memory at address 0x0\n");
        assert_eq!(say("xp/1i 0x1000"), "0x0000000000001000:  add [rcx], al\n");
        assert_eq!(say("x/z 0"), "x: 'z' is not a format (x d u o c i) or size (b h w g)\n");
        assert_eq!(say("x"), "x: a number is missing\n");
    }

    #[test]
    fn numbers_help_and_errors() {
        assert_eq!(say("print $rip + 1"), "0x11001\n");
        assert_eq!(say("p/d -1"), "-1\n");
        assert_eq!(say("cpu 1"), "cpu: there is no processor 1; the last one is 0\n");
        assert_eq!(say("stpo"), "stpo: unknown command; did you mean stop?; 'help' lists all\n");
        assert!(say("help").lines().count() == COMMANDS.len());
        assert!(say("help xp").starts_with("xp /FMT ADDR"));
        assert!(say("log bogus").contains("not a log item"));
        assert_eq!(say("   "), "");
    }

    /// Whatever is typed, nothing breaks.
    #[test]
    fn random_lines_are_answered() {
        let words = "x xp print p info help cpu /4xb /3i /8xg /c /o /d registers -a cpus $rip $esp 0x1000 0x2fff 0xffffffffffffffff \
                     -1 ( ) + - * / % ~ & 18446744073709551615 é \u{7f} /65536xg status";
        let words: Vec<&str> = words.split_whitespace().collect();
        let (mut seed, mut state) = (88172645463325252_u64, State::default());
        for _ in 0..5_000 {
            let mut line = String::new();
            for _ in 0..6 {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                line += words[(seed % words.len() as u64) as usize];
                if seed >> 40 & 1 != 0 {
                    line.push(' ');
                }
            }
            let text = run(&Fake::default(), &facts(), &mut state, &line);
            assert!(text.is_empty() || text.ends_with('\n'), "{line}: {text}");
        }
    }
}
