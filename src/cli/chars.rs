//! `-nographic`, `-serial`, `-monitor`, `-debugcon`: which device ends at which host end.

use super::config::{CharId, CharKind, CharSpec};
use super::options::Arguments;
use super::{suggest, values};
use anyhow::{Result, bail};
use std::path::PathBuf;

/// Serial ports of a PC.
const SERIAL_PORTS: usize = 4;
/// Ctrl-A.
const DEFAULT_ESCAPE: u8 = 1;

/// Host ends while they are collected.
#[derive(Debug)]
pub struct Chars {
    /// All host ends.
    pub chardevs: Vec<CharSpec>,
    /// COM1 to COM4.
    pub serials: [Option<CharId>; SERIAL_PORTS],
    /// Host ends that carry a monitor.
    pub monitors: Vec<CharId>,
    /// Escape byte of shared host ends.
    pub mux_escape: u8,
    /// See [`super::config::Config::console_seen`].
    pub console_seen: bool,
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
        let (kind, mux) = match parse_target(option, target)? {
            Target::Absent => return Ok(None),
            Target::HostEnd(kind, mux) => (kind, mux),
        };
        self.refuse_sharing(option, target, &kind)?;
        let id = CharId(self.chardevs.len());
        self.chardevs.push(CharSpec { kind, mux, label });
        if mux {
            self.monitors.push(id);
        }
        Ok(Some(id))
    }

    /// Two devices on one terminal would steal each other's input, two on one file overwrite each other.
    fn refuse_sharing(&self, option: &str, target: &str, kind: &CharKind) -> Result<()> {
        for other in &self.chardevs {
            match (kind, &other.kind) {
                (CharKind::Stdio { .. }, CharKind::Stdio { .. }) => bail!(
                    "{option} {target}: standard input and output are taken by {}; use -serial mon:stdio to share them \
                     with the monitor, or another target",
                    other.label
                ),
                (CharKind::File(a), CharKind::File(b)) if a == b => {
                    bail!("{option} {target}: {} writes to this file already; use another one", other.label)
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn parse_target(option: &str, target: &str) -> Result<Target> {
    let stdio = |signal| CharKind::Stdio { signal };
    Ok(match target {
        "none" => Target::Absent,
        "null" => Target::HostEnd(CharKind::Null, false),
        "stdio" => Target::HostEnd(stdio(true), false),
        // Ctrl-C belongs to the guest here: Ctrl-A x ends the process.
        "mon:stdio" => Target::HostEnd(stdio(false), true),
        _ => match target.split_once(':') {
            Some(("file", "")) => bail!("{option} {target}: a file name is missing; use file:PATH"),
            Some(("file", path)) => Target::HostEnd(CharKind::File(PathBuf::from(path)), false),
            _ => return Err(bad_target(option, target)),
        },
    })
}

fn bad_target(option: &str, target: &str) -> anyhow::Error {
    let kind = target.split([':', ',']).next().unwrap_or(target);
    let known = ["stdio", "mon:stdio", "file:PATH", "null", "none"];
    if matches!(kind, "vc" | "pty" | "tcp" | "udp" | "telnet" | "websocket" | "unix" | "pipe" | "con" | "chardev")
        || matches!(kind, "mon" | "msmouse" | "braille" | "parport" | "fdset" | "ringbuf")
        || target.starts_with("/dev/")
    {
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
        mux_escape: escape(arguments)?,
        console_seen: false,
    };
    let serials = arguments.all("serial");
    if let Some(extra) = serials.get(SERIAL_PORTS) {
        bail!("-serial {extra}: a PC has {SERIAL_PORTS} serial ports; give -serial at most {SERIAL_PORTS} times");
    }
    for (i, target) in serials.iter().enumerate() {
        chars.serials[i] = chars.add("-serial", target, format!("serial{i}"))?;
    }
    let monitors = arguments.all("monitor");
    for (i, target) in monitors.iter().enumerate() {
        if target == "null" || target.starts_with("mon:") || target.starts_with("file:") {
            bail!("-monitor {target}: a monitor needs input; use -monitor stdio or -monitor none");
        }
        let id = chars.add("-monitor", target, format!("monitor{i}"))?;
        chars.monitors.extend(id);
    }
    let defaults = !arguments.flag("nodefaults");
    let default_serial = serials.is_empty() && defaults;
    let default_monitor = monitors.is_empty() && chars.monitors.is_empty() && defaults;
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
    let told = ["serial", "monitor", "debugcon", "nographic", "nodefaults", "display"];
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
    fn refusals() {
        let err = |line: &[&str]| with(line).unwrap_err();
        assert!(err(&["-serial", "stdio", "-monitor", "stdio"]).contains("taken by serial0; use -serial mon:stdio"));
        assert!(err(&["-serial", "file:a", "-serial", "file:a"]).contains("serial0 writes to this file already"));
        assert_eq!(err(&["-serial", "stido"]), "-serial stido: unknown target; did you mean stdio?");
        assert!(err(&["-serial", "pty"]).contains("not supported yet; use stdio"));
        assert!(err(&["-serial", "file:"]).contains("a file name is missing"));
        assert!(err(&["-monitor", "null"]).contains("needs input"));
        assert_eq!(err(&["-echr", "300"]), "-echr 300: 300 is out of range: 0 to 127");
    }
}
