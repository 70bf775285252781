//! `-machine`, `-accel`, `-cpu`, `-smp`, `-rtc`, `-action`, `-name`, `-uuid`.

use super::config::*;
use super::keyval::KeyValues;
use super::options::Arguments;
use super::{suggest, unsupported, values};
use anyhow::{Context, Result, anyhow, bail};
use brolga_jit::cpuid::{self, CpuModel};
use brolga_jit::{Check, EngineConfig};

/// The model without `-cpu`.
const DEFAULT_CPU: &str = "max";

/// All occurrences of a mergeable option.
fn merged(arguments: &Arguments, option: &str, implied: Option<&'static str>) -> Result<Option<KeyValues>> {
    let dashed = format!("-{option}");
    let mut merged: Option<KeyValues> = None;
    for value in arguments.all(option) {
        match &mut merged {
            None => merged = Some(KeyValues::parse(&dashed, value, implied)?),
            Some(m) => m.add(value, implied)?,
        }
    }
    Ok(merged)
}

/// The board and the value of its `accel` key.
pub fn board(arguments: &Arguments) -> Result<(MachineConfig, Option<String>)> {
    let mut board = MachineConfig { kind: MachineKind::Pc, hpet: true, acpi: true };
    let Some(mut keys) = merged(arguments, "machine", Some("type"))? else { return Ok((board, None)) };
    if let Some(name) = keys.take("type")? {
        board.kind = board_named(&name)?;
    }
    let accel = keys.take("accel")?;
    board.hpet = keys.take_switch("hpet")?.unwrap_or(true);
    board.acpi = keys.take_switch("acpi")?.unwrap_or(true);
    // Properties of QEMU's boards that scripts spell out although they are so here anyway.
    for (key, only, why) in [
        ("usb", false, "USB is not supported yet"),
        ("vmport", false, "the VMware port is not supported"),
        ("smm", false, "system management mode is not supported by this board yet"),
        ("nvdimm", false, "NVDIMMs are not supported yet"),
        ("graphics", false, "there is no display yet"),
        ("mem-merge", false, "merging equal pages is not supported"),
        ("dump-guest-core", false, "guest memory is never part of core dumps"),
        ("i8042", true, "the keyboard controller is always there"),
        ("pit", true, "the interval timer is always there"),
        ("pic", true, "the interrupt controllers are always there"),
    ] {
        keys.take_fixed(key, only, why)?;
    }
    keys.finish()?;
    Ok((board, accel))
}

fn board_named(name: &str) -> Result<MachineKind> {
    if name == "pc" || name == "pc-i440fx" || name.strip_prefix("pc-i440fx-").is_some_and(is_version) {
        return Ok(MachineKind::Pc);
    }
    if unsupported::is_machine(name) {
        bail!("-machine {name}: this board is not supported yet; use -machine pc");
    }
    bail!("-machine {name}: unknown board{}", suggest::hint(name, ["pc", "pc-i440fx"]))
}

/// `10.0`, `2.12`.
fn is_version(text: &str) -> bool {
    text.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
}

/// How code is executed: the first accelerator named that there is.
pub fn engine(arguments: &Arguments, machine_accel: Option<&str>) -> Result<EngineConfig> {
    let mut options = arguments.all("accel").to_vec();
    let from_machine = machine_accel.is_some();
    if let Some(list) = machine_accel {
        if !options.is_empty() {
            bail!("-accel {}: given together with -machine accel={list}; give one of them", options[0]);
        }
        options = list.split(':').map(str::to_owned).collect();
    }
    if options.is_empty() {
        return Ok(EngineConfig::default());
    }
    let mut refusal = None;
    for value in &options {
        let shown = if from_machine { "-machine accel" } else { "-accel" };
        let mut keys = KeyValues::parse("-accel", value, Some("accel"))?;
        let name = keys.take("accel")?.unwrap_or_default();
        match name.as_str() {
            "jit" | "tcg" | "interp" => return accelerator(&name, keys),
            "kvm" | "xen" | "hvf" | "whpx" | "nvmm" | "mshv" | "hax" => {
                refusal.get_or_insert(anyhow!("{shown} {name}: not supported yet; use -accel jit"));
            }
            _ => {
                let hint = suggest::hint(&name, ["jit", "interp", "tcg"]);
                bail!("{shown} {name}: unknown accelerator{hint}");
            }
        }
    }
    Err(refusal.unwrap_or_else(|| anyhow!("-accel: no accelerator named; use -accel jit")))
}

fn accelerator(name: &str, mut keys: KeyValues) -> Result<EngineConfig> {
    let mut engine = EngineConfig { jit: name != "interp", ..EngineConfig::default() };
    if let Some(sync) = keys.take_switch("sync")? {
        if sync && !engine.jit {
            return Err(keys.error("sync", "on", "the interpreter compiles nothing; use -accel jit,sync=on"));
        }
        engine.sync = sync;
    }
    let check = keys.take_as("check", |t| match t {
        "off" => Ok(Check::Off),
        "on" => Ok(Check::Blocks),
        "regions" => Ok(Check::Regions),
        _ => Err(format!("'{t}' is none of on, off, regions")),
    })?;
    if let Some(check) = check {
        if check != Check::Off && !engine.jit {
            return Err(keys.error(
                "check",
                "on",
                "the interpreter is what is checked against; use -accel jit,check=on",
            ));
        }
        engine.check = check;
    }
    // With one vCPU both ways are the same: it has its thread.
    keys.take_as("thread", |t| match t {
        "single" | "multi" => Ok(()),
        _ => Err(format!("'{t}' is neither single nor multi")),
    })?;
    if let Some(mib) = keys.take_as("tb-size", |t| values::number_in(t, 0, 65536))?
        && mib != 0
    {
        engine.code_cache = (mib << 20) as usize;
    }
    for (key, why) in [
        ("split-wx", "compiled code is never writable and executable at once anyway"),
        ("one-insn-per-tb", "not supported; use -accel interp to run instruction by instruction"),
    ] {
        keys.take_fixed(key, key == "split-wx", why)?;
    }
    keys.finish()?;
    Ok(engine)
}

/// `-cpu`.
pub fn cpu(arguments: &Arguments) -> Result<CpuModel> {
    let spec = arguments.one("cpu").unwrap_or(DEFAULT_CPU);
    cpuid::parse(spec).map_err(|e| anyhow!("-cpu {spec}: {e}"))
}

/// `-smp`.
pub fn cpus(arguments: &Arguments) -> Result<u32> {
    let Some(mut keys) = merged(arguments, "smp", Some("cpus"))? else { return Ok(1) };
    let shown = arguments.all("smp").join(" -smp ");
    let mut count = |key| keys.take_as(key, |t| values::number_in(t, 1, 4096));
    let cpus = count("cpus")?;
    let maxcpus = count("maxcpus")?;
    let mut product = 1u64;
    for level in ["drawers", "books", "sockets", "dies", "clusters", "modules", "cores", "threads"] {
        product = product.saturating_mul(count(level)?.unwrap_or(1));
    }
    keys.finish()?;
    let cpus = cpus.unwrap_or(product);
    let limit = maxcpus.unwrap_or(cpus.max(product));
    if cpus > limit || product > limit {
        bail!(
            "-smp {shown}: the parts do not fit together: {cpus} processors, a topology of {product}, at most {limit}"
        );
    }
    if limit > 1 {
        bail!("-smp {shown}: more than one processor is not supported yet; use -smp 1");
    }
    Ok(1)
}

/// `-rtc`.
pub fn rtc(arguments: &Arguments) -> Result<RtcConfig> {
    let mut rtc = RtcConfig::default();
    let Some(mut keys) = merged(arguments, "rtc", None)? else { return Ok(rtc) };
    let base = keys.take_as("base", |t| match t {
        "utc" => Ok(RtcBase::Utc),
        "localtime" => Ok(RtcBase::LocalTime),
        _ => values::date_time(t).map(RtcBase::At),
    })?;
    let clock = keys.take_as("clock", |t| match t {
        "host" => Ok(RtcClock::Host),
        "vm" => Ok(RtcClock::Vm),
        "rt" => Ok(RtcClock::Monotonic),
        _ => Err(format!("'{t}' is not a clock{}", suggest::hint(t, ["host", "vm", "rt"]))),
    })?;
    keys.take_as("driftfix", |t| match t {
        "none" => Ok(()),
        "slew" => Err("re-injecting lost ticks is not supported yet; use driftfix=none".into()),
        _ => Err(format!("'{t}' is neither none nor slew")),
    })?;
    keys.finish()?;
    rtc.base = base.unwrap_or_default();
    rtc.clock = clock.unwrap_or_default();
    Ok(rtc)
}

/// `-action`, `-no-reboot`, `-no-shutdown`.
pub fn actions(arguments: &Arguments) -> Result<Actions> {
    let mut actions = Actions::default();
    if arguments.flag("no-reboot") {
        actions.reboot = RebootAction::Shutdown;
    }
    if arguments.flag("no-shutdown") {
        actions.shutdown = ShutdownAction::Pause;
    }
    let Some(mut keys) = merged(arguments, "action", None)? else { return Ok(actions) };
    let choice = |t: &str, known: [&'static str; 2]| match known.iter().position(|k| *k == t) {
        Some(i) => Ok(i),
        None => Err(format!("'{t}' is not an action for this{}", suggest::hint(t, known))),
    };
    if let Some(i) = keys.take_as("reboot", |t| choice(t, ["reset", "shutdown"]))? {
        actions.reboot = [RebootAction::Reset, RebootAction::Shutdown][i];
    }
    if let Some(i) = keys.take_as("shutdown", |t| choice(t, ["poweroff", "pause"]))? {
        actions.shutdown = [ShutdownAction::PowerOff, ShutdownAction::Pause][i];
    }
    for (key, device) in [("panic", "pvpanic device"), ("watchdog", "watchdog")] {
        if let Some(value) = keys.take(key)? {
            return Err(keys.error(key, &value, format_args!("there is no {device} yet that could report this")));
        }
    }
    keys.finish()?;
    Ok(actions)
}

/// `-name`.
pub fn name(arguments: &Arguments) -> Result<Option<String>> {
    let Some(text) = arguments.one("name") else { return Ok(None) };
    let mut keys = KeyValues::parse("-name", text, Some("guest"))?;
    let name = keys.take("guest")?;
    // Threads always carry names, so both values are fine.
    keys.take_switch("debug-threads")?;
    if let Some(process) = keys.take("process")? {
        return Err(keys.error("process", &process, "changing the process name is not supported"));
    }
    keys.finish()?;
    Ok(name)
}

/// `-uuid`.
pub fn uuid(arguments: &Arguments) -> Result<Option<[u8; 16]>> {
    let Some(text) = arguments.one("uuid") else { return Ok(None) };
    values::uuid(text).map(Some).map_err(anyhow::Error::msg).with_context(|| format!("-uuid {text}"))
}

#[cfg(test)]
mod tests {
    use super::super::tests::with;
    use super::*;

    fn err(line: &[&str]) -> String {
        with(line).unwrap_err()
    }

    #[test]
    fn boards() {
        assert!(!with(&["-M", "pc-i440fx-10.0,hpet=off"]).unwrap().machine.hpet);
        assert!(!with(&["-machine", "pc", "-machine", "acpi=off,usb=off"]).unwrap().machine.acpi);
        assert_eq!(err(&["-M", "q35"]), "-machine q35: this board is not supported yet; use -machine pc");
        assert_eq!(err(&["-M", "pcc"]), "-machine pcc: unknown board; did you mean pc?");
        assert!(err(&["-M", "pc-i440fx-new"]).starts_with("-machine pc-i440fx-new: unknown board"));
        assert_eq!(err(&["-M", "pc,usb=on"]), "-machine usb=on: USB is not supported yet; use usb=off");
        assert_eq!(err(&["-M", "pc,hept=off"]), "-machine: unknown or unsupported key 'hept'; did you mean hpet?");
    }

    #[test]
    fn accelerators() {
        let engine = |line: &[&str]| with(line).map(|c| (c.engine.jit, c.engine.sync));
        assert_eq!(engine(&[]), Ok((true, false)));
        assert_eq!(engine(&["-accel", "interp"]), Ok((false, false)));
        assert_eq!(engine(&["-accel", "jit,sync=on"]), Ok((true, true)));
        let check = |line: &[&str]| with(line).map(|c| c.engine.check);
        assert_eq!(check(&["-accel", "jit,check=on"]), Ok(Check::Blocks));
        assert_eq!(check(&["-accel", "jit,check=regions"]), Ok(Check::Regions));
        assert_eq!(check(&["-accel", "jit,check=off"]), Ok(Check::Off));
        assert_eq!(check(&["-accel", "interp,check=off"]), Ok(Check::Off));
        assert_eq!(engine(&["-accel", "tcg,thread=single"]), Ok((true, false)));
        assert_eq!(engine(&["-M", "pc,accel=kvm:tcg"]), Ok((true, false)));
        assert_eq!(engine(&["-accel", "kvm", "-accel", "interp"]), Ok((false, false)));
        assert_eq!(with(&["-accel", "jit,tb-size=64"]).unwrap().engine.code_cache, 64 << 20);
        assert_eq!(err(&["-accel", "kvm"]), "-accel kvm: not supported yet; use -accel jit");
        assert_eq!(err(&["-accel", "jti"]), "-accel jti: unknown accelerator; did you mean jit?");
        assert!(err(&["-accel", "jit,thread=many"]).contains("neither single nor multi"));
        assert!(err(&["-accel", "interp,sync=on"]).starts_with("-accel sync=on: the interpreter compiles nothing"));
        assert!(err(&["-accel", "interp,check=on"]).starts_with("-accel check=on: the interpreter is what is checked"));
        assert!(err(&["-accel", "jit,check=maybe"]).contains("'maybe' is none of on, off, regions"));
        assert!(err(&["-accel", "jit,tb-size=99999999999"]).contains("out of range"));
        assert!(err(&["-accel", "jit", "-M", "accel=jit"]).contains("give one of them"));
    }

    #[test]
    fn processors() {
        assert_eq!(with(&["-smp", "1"]).unwrap().cpus, 1);
        assert_eq!(with(&["-smp", "cpus=1,sockets=1,cores=1,threads=1"]).unwrap().cpus, 1);
        assert_eq!(err(&["-smp", "2"]), "-smp 2: more than one processor is not supported yet; use -smp 1");
        assert!(err(&["-smp", "1,maxcpus=4"]).contains("not supported yet"));
        assert!(err(&["-smp", "4,maxcpus=2"]).contains("do not fit together"));
        assert_eq!(err(&["-smp", "0"]), "-smp cpus=0: 0 is out of range: 1 to 4096");
        assert!(err(&["-smp", "cors=2"]).contains("did you mean cores?"));
    }

    #[test]
    fn clocks_and_actions() {
        let rtc = with(&["-rtc", "base=2006-06-17T16:01:21,clock=vm"]).unwrap().rtc;
        assert_eq!(rtc, RtcConfig { base: RtcBase::At(1150560081), clock: RtcClock::Vm });
        assert!(err(&["-rtc", "base=now"]).starts_with("-rtc base=now: 'now' is not a time"));
        let actions = with(&["-no-reboot", "-action", "shutdown=pause"]).unwrap().actions;
        assert_eq!(actions, Actions { reboot: RebootAction::Shutdown, shutdown: ShutdownAction::Pause });
        assert!(err(&["-action", "panic=none"]).contains("pvpanic"));
        assert_eq!(
            err(&["-action", "reboot=halt"]),
            "-action reboot=halt: 'halt' is not an action for this; known: reset, shutdown"
        );
    }

    #[test]
    fn identities() {
        let c =
            with(&["-name", "guest=a,,b,debug-threads=on", "-uuid", "00112233-4455-6677-8899-aabbccddeeff"]).unwrap();
        assert_eq!(c.name.as_deref(), Some("a,b"));
        assert_eq!(c.uuid.unwrap()[15], 0xff);
        assert!(with(&["-uuid", "1"]).is_err());
    }
}
