//! The command line: QEMU's grammar in, a checked [`config::Config`] out.
//!
//! [`options`] holds the table of options and splits the line, [`keyval`] and [`values`] (of the library) read values, the other modules
//! turn the options of one subject into their part of the configuration. Every error is one line that names the
//! option, the cause and the remedy.

pub mod backends;
mod blockdev;
mod boot;
mod bridges;
mod chars;
pub mod config;
mod devices;
mod display;
mod drives;
mod firmware;
mod flash;
mod floppy;
mod gdb;
mod handed;
mod help;
mod keys;
mod later;
mod logging;
mod machine;
mod manners;
mod memory;
mod network;
mod objects;
mod options;
mod peripherals;
mod processor;
mod scsi;
mod serial_bus;
mod serial_port;
mod sharing;
mod smbios;
mod sockets;
mod traces;
mod unsupported;

pub use boot::os_reason;
pub use brolga::words::{suggest, values};
pub use devices::{Devices, help as device_help, is_model, model_keys, model_names};
pub use gdb::endpoint as gdb_endpoint;
pub use help::{QEMU_VERSION, VERSION};
pub use keys::all as option_keys;
pub use later::Succession;
pub use logging::parse_items as parse_log_items;
pub use machine::{PANIC_ACTIONS, WATCHDOG_ACTIONS};
pub use network::{host_forward, host_port};
pub use objects::keys as object_keys;
pub use options::names as option_names;
pub use processor::{is_processor, later as processor_later};
pub use sockets::host_and_port;
pub use traces::split as split_traces;

use anyhow::{Result, bail};
use brolga::words::keyval;
use brolga_jit::Check;
use config::{Config, Identity, MachineKind};
use drives::Drives;
use options::Arguments;
use std::path::Path;

/// What the command line asks for.
pub enum Request {
    /// Make and run a machine.
    Run(Box<Config>),
    /// Print this on standard output and end with status 0.
    Print(String),
}

/// How the program was called: by its own name or by QEMU's.
pub fn identify(argv0: Option<&str>) -> Identity {
    let program = argv0
        .and_then(|p| Path::new(p).file_name())
        .map_or_else(|| "brolga".to_owned(), |n| n.to_string_lossy().into_owned());
    let qemu = program.starts_with("qemu-system-");
    Identity { program, qemu }
}

/// Reads the command line; `args` are the words after the program's name.
pub fn parse(identity: Identity, args: &[String]) -> Result<Request> {
    let arguments = Arguments::read(args)?;
    if let Some(text) = help::requested(&identity, &arguments)? {
        return Ok(Request::Print(text));
    }
    handed::settle(&arguments)?;
    let (machine, accel) = machine::board(&arguments)?;
    let (topology, processors) = machine::topology(&arguments)?;
    let icount = machine::icount(&arguments)?;
    let engine = machine::engine(&arguments, accel.as_deref(), topology, icount.is_some())?;
    if engine.check != Check::Off && topology.processors() > 1 {
        bail!("-accel check=: compiled code is checked on one processor only; use -smp 1");
    }
    if engine.check != Check::Off && icount.is_some() {
        bail!("-icount: code that is checked runs twice; leave -accel check= out");
    }
    let chars = chars::settle(&arguments)?;
    let mut devices = devices::settle(&arguments, chars, network::netdevs(&arguments)?, Drives::collect(&arguments)?)?;
    devices.network.finish(&arguments)?;
    devices.drives.machine_flash(machine::flash(&arguments)?)?;
    let flash = flash::check(&arguments, &devices.drives)?;
    devices.drives.place()?;
    // With a monitor, a device may come for it later.
    if let Some(what) = devices.drives.unused().filter(|_| !devices.chars.has_monitor()) {
        bail!("{what}: no device has this drive; add -device with drive=, or use if=virtio");
    }
    let from_network = devices.network.nics.iter().any(|nic| nic.boot_index.is_some());
    let drives: Vec<_> = devices.drives.drives.iter().map(|drive| drive.spec.clone()).collect();
    let memory = machine::memory_backend(&arguments)?;
    let memory = memory.map(|id| devices.peripherals.objects.memory(&id).map(|memory| (id, memory))).transpose()?;
    let config = Config {
        name: machine::name(&arguments)?,
        uuid: machine::uuid(&arguments)?,
        machine,
        ram: memory::settle(&arguments, &identity, memory.as_ref().map(|(_, memory)| memory.size))?,
        memory,
        topology,
        processors,
        cpu: machine::cpu(&arguments)?,
        engine,
        boot: boot::settle(&arguments, !drives.is_empty() || from_network, flash)?,
        loaders: devices.loaders.clone(),
        debug_exits: devices.debug_exits.clone(),
        debug_consoles: devices.debug_consoles.clone(),
        netdevs: devices.network.netdevs.clone(),
        nics: devices.network.nics.clone(),
        drives,
        scsi_hosts: devices.drives.scsi_hosts.clone(),
        bridges: devices.bridges.clone(),
        peripherals: devices.peripherals.wanted.clone(),
        firmware_files: firmware::files(&arguments)?,
        acpi_tables: firmware::acpi_tables(&arguments)?,
        smbios: smbios::settle(&arguments)?,
        rtc: machine::rtc(&arguments)?,
        seed: machine::seed(&arguments)?,
        icount,
        chardevs: devices.chars.chardevs.clone(),
        serials: devices.chars.serials,
        monitors: devices.chars.monitors.clone(),
        controls: devices.chars.controls.clone(),
        devices: devices.given.clone(),
        mux_escape: devices.chars.mux_escape,
        console_seen: devices.chars.console_seen,
        actions: machine::actions(&arguments)?,
        nographic: arguments.flag("nographic"),
        daemonize: arguments.flag("daemonize"),
        pid_file: machine::pid_file(&arguments)?,
        start_paused: arguments.flag("S"),
        load: arguments.one("loadvm").map(str::to_owned),
        incoming: machine::incoming(&arguments)?,
        debugger: gdb::settle(&arguments)?,
        log: logging::settle(&arguments)?,
        trace: traces::settle(&arguments)?,
        messages: manners::messages(&arguments)?,
        profile: logging::profile(&arguments)?,
        perf_map: arguments.flag("perfmap"),
        identity,
        collected: Box::new(devices),
    };
    if config.daemonize {
        machine::check_background(&config)?;
    }
    if config.machine.kind == MachineKind::None {
        absent(&arguments)?;
        return machine::without_board(&arguments, config).map(|config| Request::Run(Box::new(config)));
    }
    network::check_boot(&config.nics, &config.drives, &config.boot)?;
    absent(&arguments)?;
    if config.boot.kernel.is_none() && config.boot.bios.is_none() && !flash && config.loaders.is_empty() {
        bail!(
            "nothing to start; give a disk image or -hda FILE, -cdrom FILE, -kernel FILE, -bios FILE or -device \
             loader,file=FILE (-help lists all options)"
        );
    }
    Ok(Request::Run(Box::new(config)))
}

/// Options that can only say that there is none of something.
fn absent(arguments: &Arguments) -> Result<()> {
    const ABSENT: &[(&str, &str)] = &[
        ("display", "there is no display yet; use -display none, or -nographic for a console"),
        ("parallel", "there is no parallel port; use -parallel none"),
    ];
    manners::check(arguments)?;
    for (name, why) in ABSENT {
        if let Some(value) = arguments.all(name).iter().find(|v| *v != "none") {
            bail!("-{name} {value}: {why}");
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Parses a command line under our own name.
    pub fn parse_line(line: &[&str]) -> Result<Config, String> {
        parse_as("brolga", line)
    }

    /// Parses a command line under a given name.
    pub fn parse_as(program: &str, line: &[&str]) -> Result<Config, String> {
        let args: Vec<String> = line.iter().map(|s| s.to_string()).collect();
        match parse(identify(Some(program)), &args) {
            Ok(Request::Run(config)) => Ok(*config),
            Ok(Request::Print(text)) => Err(format!("printed: {text}")),
            Err(e) => Err(e.to_string()),
        }
    }

    /// A line that only lacks what is under test: the loader needs no file.
    pub fn with(extra: &[&str]) -> Result<Config, String> {
        let mut line = vec!["-device", "loader,data=1,data-len=1,addr=0"];
        line.extend(extra);
        parse_line(&line)
    }

    #[test]
    fn names() {
        assert!(!identify(Some("/usr/bin/brolga")).qemu);
        assert!(identify(Some("/x/qemu-system-x86_64")).qemu);
        assert_eq!(identify(None).program, "brolga");
    }

    #[test]
    fn defaults_depend_on_the_name() {
        let line = ["-device", "loader,data=1,data-len=1,addr=0"];
        assert_eq!(parse_as("qemu-system-x86_64", &line).unwrap().ram, 128 << 20);
        assert_eq!(parse_as("brolga", &line).unwrap().ram, 512 << 20);
    }

    #[test]
    fn something_must_be_started() {
        assert!(parse_line(&["-nographic"]).unwrap_err().starts_with("nothing to start; give a disk image"));
    }

    #[test]
    fn absent_hardware() {
        assert!(with(&["-display", "none", "-vga", "none", "-net", "none", "-parallel", "none"]).is_ok());
        assert!(with(&["-display", "gtk"]).unwrap_err().starts_with("-display gtk: there is no display yet"));
    }

    /// Whatever is typed, the answer is a configuration, a text or one line of error.
    #[test]
    fn random_lines_are_answered() {
        let words: Vec<String> = {
            let options = options::OPTIONS.iter().map(|o| format!("-{}", o.name));
            let values = "1 0 -1 help ? , ,, = a=b a,b=c on off {} {\"a\":1} 0x 9999999999999999999999 1.5G 1e9 - -- stdio \
                          mon:stdio file: file:/x null none chardev:c stdio,id=c,mux=on type=1,serial=x type=11,value=é \
                          pc,accel=jit cpus=2,cores=3 base=2020-02-30 loader,addr=1 loader,data=1,data-len=8,addr=0 \
                          isa-debug-exit,iobase=0xffff user,id=n e1000,netdev=n nic user,hostfwd=tcp::0-:1 /dev/null int,exec 1..2 5+6 3-9 é \u{1F600}\u{7f} qemu64,+x,-y";
            options.chain(values.split_whitespace().map(str::to_owned)).collect()
        };
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = |below: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed % below as u64) as usize
        };
        let (mut good, mut bad) = (0, 0);
        for _ in 0..20_000 {
            let mut line = vec!["-device".to_owned(), "loader,addr=0,cpu-num=0".to_owned()];
            for _ in 0..random(5) {
                let mut word = words[random(words.len())].clone();
                if random(8) == 0 {
                    let at = random(word.len() + 1);
                    if word.is_char_boundary(at) {
                        word.insert_str(at, &words[random(words.len())]);
                    }
                }
                line.push(word);
            }
            match parse(identify(Some("brolga")), &line) {
                Ok(_) => good += 1,
                Err(e) => {
                    bad += 1;
                    assert!(!e.to_string().is_empty() && !e.to_string().contains('\n'), "{line:?}: {e}");
                }
            }
        }
        assert!(good > 1000 && bad > 1000, "{good} {bad}");
    }
}
