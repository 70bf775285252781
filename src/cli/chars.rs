//! `-chardev`, `-nographic`, `-serial`, `-monitor`, `-mon`, `-debugcon`: which device ends at which host end.

use super::config::{CharId, CharKind, CharSpec, ControlSpec, LogFile};
use super::keyval::KeyValues;
use super::options::Arguments;
use super::{sockets, suggest, values};
use anyhow::{Result, bail};
use std::path::PathBuf;

/// Serial ports of a PC.
const SERIAL_PORTS: usize = 4;
/// Ctrl-A.
const DEFAULT_ESCAPE: u8 = 1;

/// Host ends while they are collected.
#[derive(Clone, Debug)]
pub struct Chars {
    /// All host ends.
    pub chardevs: Vec<CharSpec>,
    /// COM1 to COM4.
    pub serials: [Option<CharId>; SERIAL_PORTS],
    /// Host ends that carry a monitor.
    pub monitors: Vec<CharId>,
    /// Host ends that carry a monitor for programs.
    pub controls: Vec<ControlSpec>,
    /// Escape byte of shared host ends.
    pub mux_escape: u8,
    /// See [`super::config::Config::console_seen`].
    pub console_seen: bool,
    /// Host ends made by `-chardev`.
    named: Vec<Named>,
}

/// A host end made by `-chardev`.
#[derive(Clone, Debug)]
struct Named {
    id: String,
    chardev: CharId,
    /// The options that refer to it.
    users: Vec<String>,
}

/// What a target word means.
enum Target {
    /// `none`: the device does not exist.
    Absent,
    /// A host end, and whether a monitor shares it (`mon:`).
    HostEnd(CharKind, bool),
}

impl Chars {
    /// Adds a host end for `option target`.
    pub fn add(&mut self, option: &str, target: &str, label: String) -> Result<Option<CharId>> {
        if let Some(id) = target.strip_prefix("chardev:") {
            return self.refer(&format!("{option} {target}"), id).map(Some);
        }
        let (kind, mux) = match parse_target(option, target)? {
            Target::Absent => return Ok(None),
            Target::HostEnd(kind, mux) => (kind, mux),
        };
        self.refuse_sharing(&format!("{option} {target}"), &kind)?;
        let id = CharId(self.chardevs.len());
        self.chardevs.push(CharSpec { kind, mux, label, log: None });
        if mux {
            self.monitors.push(id);
        }
        Ok(Some(id))
    }

    /// The host end called `id`, which `what` (an option with its value) wants to use.
    pub fn refer(&mut self, what: &str, id: &str) -> Result<CharId> {
        let Some(named) = self.named.iter_mut().find(|n| n.id == id) else {
            let hint = suggest::hint(id, self.named.iter().map(|n| n.id.as_str()));
            bail!("{what}: there is no -chardev with id={id}{hint}");
        };
        if let Some(user) = named.users.first().filter(|_| !self.chardevs[named.chardev.0].mux) {
            bail!("{what}: {id} is used by {user} already; add mux=on to -chardev to share it")
        }
        named.users.push(what.to_owned());
        Ok(named.chardev)
    }

    /// Whether somebody can add devices.
    pub fn has_monitor(&self) -> bool {
        !(self.monitors.is_empty() && self.controls.is_empty())
    }

    /// A device that used a host end is gone.
    pub fn release(&mut self, chardev: CharId) {
        let of_it = self.named.iter_mut().filter(|named| named.chardev == chardev);
        of_it.for_each(|named| drop(named.users.pop()));
    }

    /// The host end that `info chardev` calls `label`.
    pub fn known(&self, label: &str) -> Option<CharId> {
        self.chardevs.iter().position(|spec| spec.label == label).map(CharId)
    }

    /// Whether a device or monitor uses it.
    pub fn is_used(&self, chardev: CharId) -> bool {
        self.named.iter().find(|named| named.chardev == chardev).is_none_or(|named| !named.users.is_empty())
    }

    /// One more host end while the machine runs.
    pub fn define_later(&mut self, value: &str) -> Result<CharId> {
        let keys = KeyValues::parse("-chardev", value, Some("backend"))?;
        if let Some(id) = keys.peek("id").filter(|id| self.known(id).is_some()) {
            bail!("Chardev with id '{id}' already exists");
        }
        self.define(value)?;
        Ok(CharId(self.chardevs.len() - 1))
    }

    /// Another host end, with the same name, in the place of one.
    pub fn redefine(&mut self, chardev: CharId, value: &str) -> Result<()> {
        let mut others = self.clone();
        others.forget(chardev);
        let at = others.define_later(value)?;
        if let (Some(spec), Some(old)) = (others.chardevs.get(at.0), self.chardevs.get_mut(chardev.0)) {
            *old = spec.clone();
        }
        Ok(())
    }

    /// A host end was taken away: its name and what it had are free again.
    pub fn forget(&mut self, chardev: CharId) {
        self.named.retain(|named| named.chardev != chardev);
        if let Some(spec) = self.chardevs.get_mut(chardev.0) {
            *spec = CharSpec { kind: CharKind::Null, mux: false, label: String::new(), log: None };
        }
    }

    /// `-chardev`.
    fn define(&mut self, value: &str) -> Result<()> {
        let mut keys = KeyValues::parse("-chardev", value, Some("backend"))?;
        let backend = keys.take("backend")?.unwrap_or_default();
        let Some(id) = keys.take("id")? else {
            bail!("-chardev {value}: id= is missing; use -chardev {backend},id=NAME")
        };
        if self.named.iter().any(|n| n.id == id) {
            bail!("-chardev {value}: there is another -chardev with id={id}; choose another name");
        }
        let mux = keys.take_switch("mux")?.unwrap_or(false);
        let what = format!("-chardev {value}");
        let log = log_file(&what, &mut keys)?;
        let kind = match backend.as_str() {
            "null" => CharKind::Null,
            "stdio" => CharKind::Stdio { signal: keys.take_switch("signal")?.unwrap_or(true) },
            "file" => file(&what, &id, &mut keys)?,
            "pipe" => CharKind::Pipe(needed_path(&what, &id, "pipe", &mut keys)?),
            "serial" | "tty" => CharKind::Tty(needed_path(&what, &id, &backend, &mut keys)?),
            "ringbuf" | "memory" => ring(&mut keys)?,
            "udp" => {
                let (to, from) = sockets::udp_chardev(&what, &mut keys)?;
                CharKind::Udp { to, from }
            }
            "socket" => CharKind::Socket(sockets::chardev(&what, &mut keys)?),
            "pty" => CharKind::Pty(keys.take("path")?.filter(|path| !path.is_empty()).map(PathBuf::from)),
            "vc" => bail!("-chardev {value}: {NO_WINDOW}"),
            other if FOREIGN.contains(&other) => {
                bail!("-chardev {value}: {other} is not supported yet; use {}", KINDS.join(", "))
            }
            other => {
                bail!("-chardev {value}: unknown kind '{other}'{}", suggest::hint(other, KINDS.iter().copied()))
            }
        };
        keys.finish()?;
        self.refuse_sharing(&format!("-chardev {value}"), &kind)?;
        let chardev = CharId(self.chardevs.len());
        self.chardevs.push(CharSpec { kind, mux, label: id.clone(), log });
        self.named.push(Named { id, chardev, users: Vec::new() });
        Ok(())
    }

    /// `-mon`.
    fn monitor(&mut self, value: &str) -> Result<()> {
        let mut keys = KeyValues::parse("-mon", value, Some("chardev"))?;
        let Some(id) = keys.take("chardev")? else { bail!("-mon {value}: chardev= is missing; use -mon chardev=ID") };
        // Nobody refers to monitors by their names.
        keys.take("id")?;
        let control = keys.take_as("mode", |mode| match mode {
            "readline" => Ok(false),
            "control" => Ok(true),
            _ => Err(format!("'{mode}' is not a mode{}", suggest::hint(mode, ["readline", "control"]))),
        })?;
        let pretty = keys.take_switch("pretty")?;
        keys.finish()?;
        let control = control.unwrap_or(false);
        if pretty.is_some() && !control {
            bail!("-mon {value}: pretty= is for mode=control; leave it out");
        }
        let chardev = self.refer(&format!("-mon {value}"), &id)?;
        if control {
            self.controls.push(ControlSpec { chardev, pretty: pretty.unwrap_or(false) });
        } else {
            self.monitors.push(chardev);
        }
        Ok(())
    }

    /// Two devices on one terminal would steal each other's input, two on one file overwrite each other. `what` is the
    /// option with its value.
    fn refuse_sharing(&self, what: &str, kind: &CharKind) -> Result<()> {
        for other in &self.chardevs {
            match (kind, &other.kind) {
                (CharKind::Stdio { .. }, CharKind::Stdio { .. }) => bail!(
                    "{what}: standard input and output are taken by {}; use -serial mon:stdio to share them with the \
                     monitor, or another target",
                    other.label
                ),
                (CharKind::File { path: a, .. }, CharKind::File { path: b, .. }) if a == b => {
                    bail!("{what}: {} writes to this file already; use another one", other.label)
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// `logfile=` and `logappend=`.
fn log_file(what: &str, keys: &mut KeyValues) -> Result<Option<LogFile>> {
    let (path, append) = (keys.take("logfile")?, keys.take_switch("logappend")?);
    match path {
        Some(path) if path.is_empty() => bail!("{what}: logfile= is empty; give a file"),
        Some(path) => Ok(Some(LogFile { path: path.into(), append: append.unwrap_or(false) })),
        None if append.is_some() => bail!("{what}: logappend= is for logfile=, which is missing"),
        None => Ok(None),
    }
}

fn needed_path(what: &str, id: &str, kind: &str, keys: &mut KeyValues) -> Result<PathBuf> {
    match keys.take("path")? {
        Some(path) if !path.is_empty() => Ok(path.into()),
        _ => bail!("{what}: path= is missing; use -chardev {kind},id={id},path=FILE"),
    }
}

fn file(what: &str, id: &str, keys: &mut KeyValues) -> Result<CharKind> {
    let append = keys.take_switch("append")?.unwrap_or(false);
    let input = keys.take("input-path")?.map(PathBuf::from);
    Ok(CharKind::File { path: needed_path(what, id, "file", keys)?, append, input })
}

/// Bytes that `ringbuf` keeps unless told.
const RING: u64 = 64 << 10;
/// Most bytes that it may be told to keep.
const MOST: u64 = 1 << 30;

fn ring(keys: &mut KeyValues) -> Result<CharKind> {
    let size = keys.take_as("size", |text| match values::size(text, 1)? {
        size if size.is_power_of_two() && size <= MOST => Ok(size),
        _ => Err(format!("'{text}' is no power of two up to 1G")),
    })?;
    Ok(CharKind::Ring { size: size.unwrap_or(RING) as usize })
}

/// Kinds of host ends.
const KINDS: &[&str] = &["stdio", "socket", "pty", "file", "pipe", "udp", "ringbuf", "serial", "null"];

/// What `-chardev help` prints.
pub fn help() -> String {
    let rows: String = KINDS.iter().map(|kind| format!("  {kind}\n")).collect();
    format!("Available chardev backend types: \n{rows}")
}

/// Why there is no `vc`. Without a display, QEMU draws one that nobody sees.
const NO_WINDOW: &str = "a vc is a console in a window, and there is no display; use pty or a socket to get at it, null to \
                         throw away what it says";

/// Kinds of host ends that QEMU has and Brolga has not.
const FOREIGN: &[&str] = &[
    "con",
    "mon",
    "msmouse",
    "braille",
    "parport",
    "parallel",
    "console",
    "fdset",
    "testdev",
    "wctablet",
    "hub",
    "dbus",
    "spicevmc",
    "spiceport",
    "qemu-vdagent",
];

fn parse_target(option: &str, target: &str) -> Result<Target> {
    let stdio = |signal| CharKind::Stdio { signal };
    Ok(match target {
        "none" => Target::Absent,
        "null" => Target::HostEnd(CharKind::Null, false),
        "stdio" => Target::HostEnd(stdio(true), false),
        // Ctrl-C belongs to the guest here: Ctrl-A x ends the process.
        "mon:stdio" => Target::HostEnd(stdio(false), true),
        "pty" => Target::HostEnd(CharKind::Pty(None), false),
        "mon:pty" => Target::HostEnd(CharKind::Pty(None), true),
        _ => match target.split_once(':') {
            Some(("mon", rest)) if let Some(socket) = sockets::target(&format!("{option} {target}"), rest)? => {
                Target::HostEnd(CharKind::Socket(socket), true)
            }
            Some(("tcp" | "telnet" | "websocket" | "unix", _)) => {
                let socket = sockets::target(&format!("{option} {target}"), target)?;
                Target::HostEnd(socket.map_or(CharKind::Null, CharKind::Socket), false)
            }
            Some(("file", "")) => bail!("{option} {target}: a file name is missing; use file:PATH"),
            Some(("file", path)) => {
                Target::HostEnd(CharKind::File { path: PathBuf::from(path), append: false, input: None }, false)
            }
            Some(("pipe", "")) => bail!("{option} {target}: a path is missing; use pipe:PATH"),
            Some(("pipe", path)) => Target::HostEnd(CharKind::Pipe(path.into()), false),
            Some(("udp", rest)) => Target::HostEnd(udp(option, target, rest)?, false),
            Some(("mon", rest)) if rest.starts_with("udp:") => {
                Target::HostEnd(udp(option, target, rest.trim_start_matches("udp:"))?, true)
            }
            Some(("mon", rest)) if rest.len() > 5 && rest.starts_with("pipe:") => {
                Target::HostEnd(CharKind::Pipe(rest.trim_start_matches("pipe:").into()), true)
            }
            _ if target.starts_with("/dev/") && !target.starts_with("/dev/parport") => {
                Target::HostEnd(CharKind::Tty(target.into()), false)
            }
            _ => return Err(bad_target(option, target)),
        },
    })
}

fn udp(option: &str, target: &str, rest: &str) -> Result<CharKind> {
    let (to, from) = sockets::udp_target(&format!("{option} {target}"), rest)?;
    Ok(CharKind::Udp { to, from })
}

fn bad_target(option: &str, target: &str) -> anyhow::Error {
    let kind = target.trim_start_matches("mon:").split([':', ',']).next().unwrap_or(target);
    if kind == "vc" {
        return anyhow::anyhow!("{option} {target}: {NO_WINDOW}");
    }
    let known = [
        "stdio",
        "mon:stdio",
        "telnet:HOST:PORT,server=on",
        "unix:PATH,server=on",
        "udp:HOST:PORT",
        "pty",
        "pipe:PATH",
        "file:PATH",
        "null",
        "none",
    ];
    if FOREIGN.contains(&kind) || target.starts_with("/dev/") {
        return anyhow::anyhow!("{option} {target}: this target is not supported yet; use {}", known.join(", "));
    }
    match suggest::nearest(target, known) {
        Some(near) => anyhow::anyhow!("{option} {target}: unknown target; did you mean {near}?"),
        None => anyhow::anyhow!("{option} {target}: unknown target; use {}", known.join(", ")),
    }
}

/// Serial ports and monitors, with QEMU's defaults under `-nographic`. The debug consoles are added by `devices`.
pub fn settle(arguments: &Arguments) -> Result<Chars> {
    let mut chars = Chars {
        chardevs: Vec::new(),
        serials: [None; SERIAL_PORTS],
        monitors: Vec::new(),
        controls: Vec::new(),
        mux_escape: escape(arguments)?,
        console_seen: false,
        named: Vec::new(),
    };
    for value in arguments.all("chardev") {
        chars.define(value)?;
    }
    let serials = arguments.all("serial");
    if let Some(extra) = serials.get(SERIAL_PORTS) {
        bail!("-serial {extra}: a PC has {SERIAL_PORTS} serial ports; give -serial at most {SERIAL_PORTS} times");
    }
    for (i, target) in serials.iter().enumerate() {
        chars.serials[i] = chars.add("-serial", target, format!("serial{i}"))?;
    }
    let monitors = arguments.all("monitor");
    for (i, target) in monitors.iter().enumerate() {
        if target == "null" {
            // Nobody can say anything to it.
            continue;
        }
        if target.starts_with("mon:") || target.starts_with("file:") {
            bail!("-monitor {target}: a monitor needs input; use -monitor stdio or -monitor none");
        }
        let id = chars.add("-monitor", target, format!("monitor{i}"))?;
        chars.monitors.extend(id);
    }
    for value in arguments.all("mon") {
        chars.monitor(value)?;
    }
    for (option, pretty) in [("qmp", false), ("qmp-pretty", true)] {
        for target in arguments.all(option) {
            let option = format!("-{option}");
            if ["null", "none"].contains(&target.as_str()) || target.starts_with("mon:") || target.starts_with("file:")
            {
                bail!("{option} {target}: a monitor needs input; use {option} unix:PATH,server=on,wait=off");
            }
            let label = format!("compat_monitor{}", chars.controls.len());
            let chardev = chars.add(&option, target, label)?;
            chars.controls.extend(chardev.map(|chardev| ControlSpec { chardev, pretty }));
        }
    }
    let defaults = !arguments.flag("nodefaults");
    let default_serial = serials.is_empty() && defaults;
    let default_monitor = monitors.is_empty() && chars.monitors.is_empty() && chars.controls.is_empty() && defaults;
    if default_serial {
        let target = match (arguments.flag("nographic"), default_monitor) {
            (true, true) => "mon:stdio",
            (true, false) => "stdio",
            (false, _) => "null",
        };
        chars.serials[0] = chars.add("-nographic", target, "serial0".to_owned())?;
    } else if arguments.flag("nographic") && default_monitor {
        let id = chars.add("-nographic", "stdio", "monitor0".to_owned())?;
        chars.monitors.extend(id);
    }
    let told =
        ["serial", "monitor", "mon", "qmp", "qmp-pretty", "chardev", "debugcon", "nographic", "nodefaults", "display"];
    chars.console_seen = told.iter().any(|o| arguments.flag(o));
    Ok(chars)
}

fn escape(arguments: &Arguments) -> Result<u8> {
    let Some(text) = arguments.one("echr") else { return Ok(DEFAULT_ESCAPE) };
    match values::number_in(text, 0, 0x7f) {
        Ok(code) => Ok(code as u8),
        Err(e) => bail!("-echr {text}: {e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::SocketAddress;
    use super::super::tests::with;
    use super::*;

    const MUX: CharKind = CharKind::Stdio { signal: false };
    const PLAIN: CharKind = CharKind::Stdio { signal: true };

    fn serial0(line: &[&str]) -> Option<(CharKind, bool)> {
        let c = with(line).unwrap();
        c.serials[0].map(|id| (c.chardevs[id.0].kind.clone(), c.chardevs[id.0].mux))
    }

    #[test]
    fn defaults_as_qemu() {
        assert_eq!(serial0(&["-nographic"]), Some((MUX, true)));
        assert_eq!(serial0(&["-nographic", "-monitor", "none"]), Some((PLAIN, false)));
        assert_eq!(serial0(&["-display", "none"]), Some((CharKind::Null, false)));
        assert_eq!(serial0(&["-nographic", "-nodefaults"]), None);
        assert_eq!(serial0(&["-serial", "none", "-nographic"]), None);
        let c = with(&["-nographic", "-serial", "file:x"]).unwrap();
        assert_eq!(c.chardevs[c.monitors[0].0].kind, PLAIN, "the monitor gets the terminal that the port left");
        let c = with(&["-nographic", "-serial", "mon:stdio"]).unwrap();
        assert_eq!((c.chardevs.len(), c.monitors.len()), (1, 1));
    }

    #[test]
    fn several_ports() {
        let c = with(&["-serial", "null", "-serial", "none", "-serial", "file:a", "-serial", "stdio"]).unwrap();
        assert_eq!(c.serials, [Some(CharId(0)), None, Some(CharId(1)), Some(CharId(2))]);
        let five = ["-serial", "null"].repeat(5);
        assert!(with(&five).unwrap_err().contains("4 serial ports"));
    }

    #[test]
    fn named_host_ends() {
        let line = "-chardev stdio,id=con,mux=on,signal=off -serial chardev:con -mon chardev=con,mode=readline \
                    -chardev file,id=log,path=/x,append=on -device isa-debugcon,iobase=0x402,chardev=log -nographic";
        let c = with(&line.split_whitespace().collect::<Vec<_>>()).unwrap();
        assert_eq!(c.serials[0], Some(CharId(0)));
        assert_eq!(c.monitors, [CharId(0)]);
        assert!(c.chardevs[0].mux && c.chardevs[0].kind == MUX);
        assert_eq!(c.chardevs[1].kind, CharKind::File { path: "/x".into(), append: true, input: None });
        assert_eq!((c.debug_consoles[0].iobase, c.debug_consoles[0].chardev), (0x402, CharId(1)));
    }

    #[test]
    fn kinds_and_targets() {
        assert_eq!(serial0(&["-serial", "pipe:/x"]), Some((CharKind::Pipe("/x".into()), false)));
        assert_eq!(serial0(&["-serial", "/dev/ttyS5"]), Some((CharKind::Tty("/dev/ttyS5".into()), false)));
        let udp = CharKind::Udp { to: ("127.0.0.1".into(), 5), from: ("0.0.0.0".into(), 6) };
        assert_eq!(serial0(&["-serial", "udp::5@:6"]), Some((udp.clone(), false)));
        assert_eq!(serial0(&["-serial", "mon:udp::5@:6"]), Some((udp.clone(), true)));
        let kind = |spec: &str| {
            let c =
                with(&["-chardev", &format!("{spec},id=c,logfile=/l,logappend=on"), "-serial", "chardev:c"]).unwrap();
            assert_eq!(c.chardevs[0].log, Some(LogFile { path: "/l".into(), append: true }));
            c.chardevs[0].kind.clone()
        };
        assert_eq!(kind("udp,port=5,localport=6"), udp);
        assert_eq!(kind("pipe,path=/x"), CharKind::Pipe("/x".into()));
        assert_eq!(kind("tty,path=/x"), CharKind::Tty("/x".into()));
        assert_eq!(kind("memory,size=4k"), CharKind::Ring { size: 4096 });
        assert_eq!(kind("pty,path=/x"), CharKind::Pty(Some("/x".into())));
        assert_eq!(kind("ringbuf"), CharKind::Ring { size: 65536 });
        let CharKind::Socket(old) = kind("socket,host=localhost,port=5,server,nowait,nodelay,ipv4") else { panic!() };
        assert!(old.server && !old.wait);
        assert_eq!(old.address, SocketAddress::Tcp { host: "127.0.0.1".into(), port: 5 });
        let file = CharKind::File { path: "/x".into(), append: false, input: Some("/y".into()) };
        assert_eq!(kind("file,path=/x,input-path=/y"), file);
        let CharKind::Socket(socket) = kind("socket,fd=7,server=on,wait=off") else { panic!("a socket") };
        assert_eq!(socket.address, SocketAddress::Inherited(7));
    }

    #[test]
    fn monitors_for_programs() {
        let line =
            "-chardev socket,id=c,path=/x,server=on,wait=off -mon chardev=c,id=m,mode=control,pretty=on -qmp stdio";
        let c = with(&line.split_whitespace().collect::<Vec<_>>()).unwrap();
        let control = |chardev, pretty| ControlSpec { chardev: CharId(chardev), pretty };
        assert_eq!(c.controls, [control(0, true), control(1, false)]);
        assert_eq!(c.chardevs[1].label, "compat_monitor1");
        assert!(c.monitors.is_empty());
    }

    #[test]
    fn refusals() {
        let err = |line: &[&str]| with(line).unwrap_err();
        assert!(err(&["-serial", "stdio", "-monitor", "stdio"]).contains("taken by serial0; use -serial mon:stdio"));
        assert!(err(&["-serial", "file:a", "-serial", "file:a"]).contains("serial0 writes to this file already"));
        assert_eq!(err(&["-serial", "stido"]), "-serial stido: unknown target; did you mean stdio?");
        assert!(err(&["-serial", "chardev:c"]).ends_with("there is no -chardev with id=c"));
        assert!(err(&["-chardev", "stdio"]).contains("id= is missing"));
        assert!(err(&["-chardev", "vc,id=a"]).contains("there is no display; use pty"));
        assert!(err(&["-monitor", "vc"]).starts_with("-monitor vc: a vc is a console in a window"));
        assert!(err(&["-serial", "mon:vc"]).contains("there is no display"));
        assert!(err(&["-parallel", "file:x"]).ends_with("there is no parallel port; use -parallel none"));
        assert!(err(&["-chardev", "ringbuf,id=a,size=100"]).contains("no power of two"));
        assert!(err(&["-chardev", "pipe,id=a"]).contains("path= is missing; use -chardev pipe,id=a,path=FILE"));
        assert!(err(&["-chardev", "udp,id=a"]).contains("port= is missing"));
        assert!(err(&["-chardev", "null,id=a,logappend=on"]).contains("logfile=, which is missing"));
        assert!(err(&["-chardev", "socket,id=a,fd=x"]).contains("is no descriptor"));
        assert!(err(&["-chardev", "socket,id=a,fd=3,path=/x"]).contains("or fd=NUMBER"));
        assert!(err(&["-chardev", "socket,id=a"]).contains("give path=PATH"));
        let family = |keys: &str| err(&["-chardev", &format!("socket,id=a,{keys}")]);
        assert!(family("host=127.0.0.1,port=5,server=on,ipv6=on").contains("127.0.0.1 has no address of the kind"));
        assert!(family("path=/x,server=on,ipv4=on").contains("are for host= and port="));
        assert!(err(&["-chardev", "null,id=a", "-chardev", "null,id=a"]).contains("another -chardev with id=a"));
        assert!(err(&["-chardev", "file,id=a"]).contains("path= is missing"));
        let twice = ["-chardev", "stdio,id=c", "-serial", "chardev:c", "-mon", "chardev=c"];
        assert_eq!(
            err(&twice),
            "-mon chardev=c: c is used by -serial chardev:c already; add mux=on to -chardev to share it"
        );
        assert!(err(&["-mon", "c,mode=contrl"]).contains("did you mean control?"));
        assert!(err(&["-chardev", "stdio,id=c", "-mon", "c,pretty=on"]).contains("is for mode=control"));
        assert!(err(&["-qmp", "null"]).contains("needs input"));
        assert!(err(&["-serial", "vc:80Cx24C"]).contains("there is no display"));
        assert!(err(&["-serial", "msmouse"]).contains("not supported yet; use stdio"));
        assert!(err(&["-serial", "udp:x"]).contains("no port; write udp:"));
        assert!(err(&["-serial", "pipe:"]).contains("a path is missing"));
        assert!(err(&["-serial", "file:"]).contains("a file name is missing"));
        assert!(err(&["-monitor", "file:x"]).contains("needs input"));
        assert!(with(&["-monitor", "null"]).unwrap().monitors.is_empty());
        assert_eq!(err(&["-echr", "300"]), "-echr 300: 300 is out of range: 0 to 127");
    }
}
