//! `-machine`, `-accel`, `-cpu`, `-smp`, `-rtc`, `-action`, `-name`, `-uuid`.

use super::config::*;
use super::keyval::KeyValues;
use super::options::Arguments;
use super::{suggest, unsupported, values};
use crate::gdb::Endpoint;
use crate::migration::Address;
use anyhow::{Context, Result, anyhow, bail};
use brolga_jit::cpuid::{self, CpuModel, Topology};
use brolga_jit::{Check, EngineConfig};
use std::path::PathBuf;

/// The model without `-cpu`.
const DEFAULT_CPU: &str = "max";
/// The highest APIC ID without x2APIC is 254: 255 speaks to all.
const MOST_CPUS: u64 = 255;

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

/// Most that `-icount shift=` takes: an instruction lasts 1024 ns.
const MOST_SHIFT: u64 = 10;
/// Keys that name drives for the flash chips.
const FLASH: [&str; 2] = ["pflash0", "pflash1"];

/// The drives for the flash chips (`pflash0=`, `pflash1=`).
pub fn flash(arguments: &Arguments) -> Result<[Option<String>; 2]> {
    let Some(mut keys) = merged(arguments, "machine", Some("type"))? else { return Ok([None, None]) };
    let [first, second] = FLASH;
    Ok([keys.take(first)?, keys.take(second)?])
}

/// The object that memory is made of.
const MEMORY: &str = "memory-backend";

/// The name of the object that describes memory.
pub fn memory_backend(arguments: &Arguments) -> Result<Option<String>> {
    merged(arguments, "machine", Some("type"))?.map_or(Ok(None), |mut keys| keys.take(MEMORY))
}

/// The board and the value of its `accel` key.
pub fn board(arguments: &Arguments) -> Result<(MachineConfig, Option<String>)> {
    let mut board = MachineConfig { kind: MachineKind::Pc, hpet: true, acpi: true, unpack_kernel: true };
    let Some(mut keys) = merged(arguments, "machine", Some("type"))? else { return Ok((board, None)) };
    if let Some(name) = keys.take("type")? {
        board.kind = board_named(&name)?;
    }
    let accel = keys.take("accel")?;
    for key in FLASH {
        keys.take(key)?;
    }
    keys.take(MEMORY)?;
    board.hpet = keys.take_switch("hpet")?.unwrap_or(true);
    board.acpi = keys.take_switch("acpi")?.unwrap_or(true);
    board.unpack_kernel = keys.take_switch("unpack-kernel")?.unwrap_or(true);
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
    if name == "none" {
        return Ok(MachineKind::None);
    }
    if unsupported::is_machine(name) {
        bail!("-machine {name}: this board is not supported yet; use -machine pc");
    }
    bail!("-machine {name}: unknown board{}", suggest::hint(name, ["pc", "pc-i440fx", "none"]))
}

/// `-pidfile`.
pub fn pid_file(arguments: &Arguments) -> Result<Option<PathBuf>> {
    match arguments.one("pidfile") {
        Some("") => bail!("-pidfile: the file name is empty; use -pidfile FILE"),
        name => Ok(name.map(PathBuf::from)),
    }
}

/// What runs in the background has no terminal.
pub fn check_background(config: &Config) -> Result<()> {
    if let Some(end) = config.chardevs.iter().find(|end| matches!(end.kind, CharKind::Stdio { .. })) {
        bail!(
            "-daemonize: {} is on this terminal, which a process in the background leaves; give it another target, e.g. \
             -display none instead of -nographic",
            end.label
        );
    }
    if config.debugger == Some(Endpoint::Stdio) {
        bail!("-daemonize: -gdb stdio needs this terminal; use -gdb tcp::PORT");
    }
    Ok(())
}

/// Options that need a board.
const OF_BOARDS: &[&str] = &[
    "kernel",
    "initrd",
    "append",
    "bios",
    "device",
    "hda",
    "hdb",
    "hdc",
    "hdd",
    "cdrom",
    "fda",
    "fdb",
    "pflash",
    "virtfs",
    "fw_cfg",
    "acpitable",
    "debugcon",
    "gdb",
    "s",
];

/// A machine without a board: what would be on it by default is left out, what was asked for cannot be.
pub fn without_board(arguments: &Arguments, mut config: Config) -> Result<Config> {
    if let Some(option) = OF_BOARDS.iter().find(|option| arguments.flag(option)) {
        bail!("-{option}: -machine none has no place for it; use -machine pc");
    }
    let attached = config.drives.iter().any(|drive| drive.attachment.is_some() && drive.file.is_some());
    if attached || !config.peripherals.serial_buses.is_empty() {
        bail!("-drive: -machine none has no place for it; use -machine pc, or if=none");
    }
    config.ram = 0;
    config.serials = [None; 4];
    (config.nics, config.netdevs, config.drives) = (Vec::new(), Vec::new(), Vec::new());
    Ok(config)
}

/// `10.0`, `2.12`.
fn is_version(text: &str) -> bool {
    text.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
}

/// How code of the processors is executed: the first accelerator named that there is.
pub fn engine(
    arguments: &Arguments,
    machine_accel: Option<&str>,
    topology: Topology,
    counted: bool,
) -> Result<EngineConfig> {
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
            "jit" | "tcg" | "interp" => return accelerator(&name, keys, topology.processors(), counted),
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

fn accelerator(name: &str, mut keys: KeyValues, processors: u32, counted: bool) -> Result<EngineConfig> {
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
    keys.take_as("thread", |t| match t {
        "multi" if counted => Err("with -icount one processor runs at a time; use thread=single".to_owned()),
        "single" if processors > 1 && !counted => {
            Err("each of several processors has a thread; use thread=multi".to_owned())
        }
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
pub fn topology(arguments: &Arguments) -> Result<(Topology, u32)> {
    let Some(mut keys) = merged(arguments, "smp", Some("cpus"))? else { return Ok((Topology::default(), 1)) };
    let shown = arguments.all("smp").join(" -smp ");
    let mut count = |key| keys.take_as(key, |t| values::number_in(t, 1, 4096)).map(|n| n.map(|n| n as u32));
    let (cpus, maxcpus) = (count("cpus")?, count("maxcpus")?);
    let (sockets, dies) = (count("sockets")?, count("dies")?.unwrap_or(1));
    let (cores, threads) = (count("cores")?, count("threads")?);
    for level in ["drawers", "books", "clusters", "modules"] {
        if count(level)?.is_some_and(|n| n > 1) {
            bail!("-smp {level}=: a PC has none; use sockets, dies, cores and threads");
        }
    }
    keys.finish()?;
    let topology = spread(maxcpus.or(cpus), sockets, dies, cores, threads);
    let processors = [topology.dies, topology.cores, topology.threads]
        .iter()
        .fold(u64::from(topology.sockets), |product, n| product.saturating_mul(u64::from(*n)));
    let cpus = cpus.map_or(processors, u64::from);
    let limit = maxcpus.map_or(cpus, u64::from);
    if processors != limit || cpus > limit {
        bail!(
            "-smp {shown}: the parts do not fit together: {cpus} processors, a topology of {processors}, at most {limit}"
        );
    }
    if limit > MOST_CPUS || topology.apic_id(limit as u32 - 1) >= MOST_CPUS as u32 {
        bail!("-smp {shown}: more than {MOST_CPUS} processors, or APIC IDs beyond {}; give fewer", MOST_CPUS - 1);
    }
    Ok((topology, cpus as u32))
}

/// What was not said of a topology of `processors`: cores come first, then sockets, then threads.
fn spread(
    processors: Option<u32>,
    sockets: Option<u32>,
    dies: u32,
    cores: Option<u32>,
    threads: Option<u32>,
) -> Topology {
    let rest = |others: u64| processors.map_or(1, |n| (u64::from(n) / others).max(1) as u32);
    let product = |parts: &[u32]| parts.iter().fold(1u64, |product, n| product.saturating_mul(u64::from(*n)));
    let fixed = |n: Option<u32>| n.unwrap_or(1);
    let cores = cores.unwrap_or_else(|| rest(product(&[fixed(sockets), dies, fixed(threads)])));
    let sockets = sockets.unwrap_or_else(|| rest(product(&[dies, cores, fixed(threads)])));
    let threads = threads.unwrap_or_else(|| rest(product(&[sockets, dies, cores])));
    Topology { sockets, dies, cores, threads }
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

/// `-seed`.
pub fn seed(arguments: &Arguments) -> Result<Option<u64>> {
    let Some(text) = arguments.one("seed") else { return Ok(None) };
    values::number(text).map(Some).map_err(|e| anyhow!("-seed {text}: {e}"))
}

/// `-icount`.
pub fn icount(arguments: &Arguments) -> Result<Option<IcountConfig>> {
    let Some(mut keys) = merged(arguments, "icount", Some("shift"))? else { return Ok(None) };
    for key in ["rr", "rrfile", "rrsnapshot"] {
        if let Some(value) = keys.take(key)? {
            return Err(keys.error(
                key,
                &value,
                format_args!("recording and replaying is not supported; leave {key}= out"),
            ));
        }
    }
    let shift = keys.take_as("shift", |t| match t {
        "auto" => Ok(None),
        _ => values::number_in(t, 0, MOST_SHIFT).map(|n| Some(n as u8)).map_err(|e| format!("{e}, or auto")),
    })?;
    let (align, sleep) = (keys.take_switch("align")?, keys.take_switch("sleep")?.unwrap_or(true));
    let Some(shift) = shift else { bail!("-icount: no shift; use shift=auto, or shift=0 to shift={MOST_SHIFT}") };
    keys.finish()?;
    let align = align.unwrap_or(false);
    if align && !sleep {
        bail!("-icount align=on: sleep=off lets guest time run ahead; leave one of them out");
    }
    Ok(Some(IcountConfig { shift, sleep, align }))
}

/// `-incoming`.
pub fn incoming(arguments: &Arguments) -> Result<Option<Incoming>> {
    let Some(value) = arguments.one("incoming") else { return Ok(None) };
    if let Some(tag) = arguments.one("loadvm") {
        bail!("-loadvm {tag}: the machine arrives with -incoming; leave one of them out");
    }
    if value == "defer" {
        return Ok(Some(Incoming::Later));
    }
    let address = match serde_json::from_str::<serde_json::Value>(value) {
        Ok(channel @ serde_json::Value::Object(_)) => Address::of_channels(&serde_json::json!([channel])),
        _ => Address::parse(value),
    };
    address.map(|address| Some(Incoming::From(address))).map_err(|why| anyhow!("-incoming: {why}"))
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
    if let Some(text) = arguments.one("watchdog-action") {
        let action = named(text, WATCHDOG_ACTIONS);
        actions.watchdog = action.map_err(|e| anyhow::anyhow!("-watchdog-action {text}: {e}"))?;
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
    actions.panic = keys.take_as("panic", |t| named(t, PANIC_ACTIONS))?.unwrap_or_default();
    if let Some(action) = keys.take_as("watchdog", |t| named(t, WATCHDOG_ACTIONS))? {
        actions.watchdog = action;
    }
    keys.finish()?;
    Ok(actions)
}

/// Words for what a guest's crash does.
pub const PANIC_ACTIONS: &[(&str, PanicAction)] = &[
    ("shutdown", PanicAction::Shutdown),
    ("pause", PanicAction::Pause),
    ("exit-failure", PanicAction::ExitFailure),
    ("none", PanicAction::None),
];

/// Words for what a watchdog does.
pub const WATCHDOG_ACTIONS: &[(&str, WatchdogAction)] = &[
    ("reset", WatchdogAction::Reset),
    ("shutdown", WatchdogAction::Shutdown),
    ("poweroff", WatchdogAction::PowerOff),
    ("inject-nmi", WatchdogAction::InjectNmi),
    ("pause", WatchdogAction::Pause),
    ("debug", WatchdogAction::Debug),
    ("none", WatchdogAction::None),
];

/// The action of that name.
fn named<T: Copy>(text: &str, known: &'static [(&'static str, T)]) -> Result<T, values::Refusal> {
    match known.iter().find(|(name, _)| *name == text) {
        Some((_, action)) => Ok(*action),
        None => {
            let names = known.iter().map(|(name, _)| *name);
            Err(format!(
                "'{text}' is not an action for this{}; use {}",
                suggest::hint(text, names.clone()),
                names.collect::<Vec<_>>().join(", ")
            ))
        }
    }
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
        assert!(err(&["-accel", "jit,thread=single", "-smp", "2"]).contains("use thread=multi"));
        assert!(err(&["-accel", "jit,check=on", "-smp", "2"]).contains("use -smp 1"));
        assert!(err(&["-accel", "jit,thread=many"]).contains("neither single nor multi"));
        assert!(err(&["-accel", "interp,sync=on"]).starts_with("-accel sync=on: the interpreter compiles nothing"));
        assert!(err(&["-accel", "interp,check=on"]).starts_with("-accel check=on: the interpreter is what is checked"));
        assert!(err(&["-accel", "jit,check=maybe"]).contains("'maybe' is none of on, off, regions"));
        assert!(err(&["-accel", "jit,tb-size=99999999999"]).contains("out of range"));
        assert!(err(&["-accel", "jit", "-M", "accel=jit"]).contains("give one of them"));
    }

    #[test]
    fn processors() {
        let smp = |text: &str| {
            let Topology { sockets, dies, cores, threads } = with(&["-smp", text]).unwrap().topology;
            [sockets, dies, cores, threads]
        };
        assert_eq!(smp("1"), [1; 4]);
        assert_eq!(smp("cpus=1,sockets=1,cores=1,threads=1"), [1; 4]);
        assert_eq!(smp("4"), [1, 1, 4, 1]);
        assert_eq!(smp("8,sockets=2"), [2, 1, 4, 1]);
        assert_eq!(smp("8,threads=2"), [1, 1, 4, 2]);
        assert_eq!(smp("8,cores=2"), [4, 1, 2, 1]);
        assert_eq!(smp("8,sockets=2,cores=2"), [2, 1, 2, 2]);
        assert_eq!(smp("sockets=2,dies=2,cores=3,threads=2"), [2, 2, 3, 2]);
        assert_eq!(smp("4,maxcpus=4"), [1, 1, 4, 1]);
        assert_eq!(err(&["-smp", "256"]), "-smp 256: more than 255 processors, or APIC IDs beyond 254; give fewer");
        assert!(err(&["-smp", "sockets=80,cores=3"]).contains("APIC IDs beyond"));
        assert!(err(&["-smp", "2,sockets=4"]).contains("do not fit together"));
        assert!(err(&["-smp", "7,sockets=2"]).contains("do not fit together"));
        assert!(err(&["-smp", "sockets=4096,cores=4096,threads=4096"]).contains("more than 255"));
        assert!(err(&["-smp", "2,clusters=2"]).contains("a PC has none"));
        let c = with(&["-smp", "1,maxcpus=4"]).unwrap();
        assert_eq!((c.processors, c.topology.processors(), c.topology.cores), (1, 4, 4));
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
        let expected =
            Actions { reboot: RebootAction::Shutdown, shutdown: ShutdownAction::Pause, ..Actions::default() };
        assert_eq!(actions, expected);
        let actions = with(&["-action", "panic=exit-failure", "-watchdog-action", "inject-nmi"]).unwrap().actions;
        assert_eq!((actions.panic, actions.watchdog), (PanicAction::ExitFailure, WatchdogAction::InjectNmi));
        assert!(err(&["-action", "watchdog=rest"]).contains("did you mean reset?"));
        assert!(err(&["-watchdog-action", "explode"]).contains("is not an action for this"));
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
