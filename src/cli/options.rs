//! The option table: every option there is, whether it takes a value, how often it may come, and its line of help.

use super::suggest;
use super::unsupported;
use anyhow::{Result, anyhow, bail};
use std::collections::HashMap;

/// How often an option may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// No value; repeating it changes nothing.
    Flag,
    /// One value, once.
    Once,
    /// Keys of all occurrences add up, each key once.
    Merge,
    /// A list.
    Many,
}

/// A row of the table.
pub struct OptionRow {
    /// Without dashes.
    pub name: &'static str,
    /// Repetition.
    pub times: Times,
    /// Heading in the help text.
    pub group: &'static str,
    /// Value as the help text shows it.
    pub value: &'static str,
    /// What it does, with an example where the value is not obvious.
    pub help: &'static str,
}

const fn row(
    group: &'static str,
    name: &'static str,
    times: Times,
    value: &'static str,
    help: &'static str,
) -> OptionRow {
    OptionRow { name, times, group, value, help }
}

const BOOT: &str = "What to start";
const MACHINE: &str = "The machine";
const CONSOLE: &str = "Consoles";
const DISKS: &str = "Disks";
const DEVICES: &str = "Devices";
const RUN: &str = "How it runs";
const LOOK: &str = "Looking inside";
const HELP: &str = "Help";

/// All options.
#[rustfmt::skip]
pub const OPTIONS: &[OptionRow] = &[
    row(BOOT, "kernel", Times::Once, "FILE", "Linux bzImage, ELF kernel with a PVH note, or multiboot image"),
    row(BOOT, "initrd", Times::Once, "FILE", "initial RAM disk for the kernel"),
    row(BOOT, "append", Times::Once, "TEXT", "kernel command line, e.g. -append \"console=ttyS0\""),
    row(BOOT, "bios", Times::Once, "FILE", "firmware image, mapped below 4 GiB and entered at the reset vector"),
    row(BOOT, "boot", Times::Merge, "[order=]LETTERS,...", "what firmware tries: a floppy, c disk, d CD, n network; keys once, menu, splash, splash-time, reboot-timeout, strict, e.g. -boot order=d,menu=on"),
    row(BOOT, "L", Times::Many, "DIR", "look for firmware images in DIR first (-L help lists the directories)"),
    row(MACHINE, "machine", Times::Merge, "NAME[,KEY=VALUE...]", "board: pc, or none for monitors alone; keys accel, hpet, acpi, unpack-kernel (off: the guest unpacks the bzImage of -kernel by itself), e.g. -machine pc,hpet=off (-machine help)"),
    row(MACHINE, "M", Times::Merge, "NAME[,...]", "the same as -machine"),
    row(MACHINE, "cpu", Times::Once, "MODEL[,+F,-F,F=on|off]", "processor model and features, e.g. -cpu Nehalem,-aes (-cpu help)"),
    row(MACHINE, "m", Times::Merge, "SIZE", "guest memory in MiB, or with k, M, G, T, e.g. -m 2G"),
    row(MACHINE, "smp", Times::Merge, "N", "number of processors; also maxcpus= (more may come), sockets=, dies=, cores=, threads="),
    row(MACHINE, "rtc", Times::Merge, "KEY=VALUE,...", "clock: base=utc|localtime|2006-06-17T16:01:21, clock=host|rt|vm"),
    row(MACHINE, "smbios", Times::Many, "type=N,KEY=VALUE,...", "fields of SMBIOS types 0, 1, 2, 3, 11, e.g. -smbios type=1,serial=A1"),
    row(MACHINE, "acpitable", Times::Many, "KEY=VALUE,...", "one more ACPI table: data=FILE:FILE for its body, with sig, rev, oem_id, oem_table_id, oem_rev, asl_compiler_id, asl_compiler_rev; or file=FILE with its header"),
    row(MACHINE, "fw_cfg", Times::Many, "[name=]NAME,file=FILE|string=TEXT", "a file for firmware and drivers, e.g. -fw_cfg opt/org.example/x,string=hello"),
    row(MACHINE, "name", Times::Once, "NAME", "the machine's name"),
    row(MACHINE, "uuid", Times::Once, "UUID", "the machine's UUID, as SMBIOS shows it"),
    row(CONSOLE, "nographic", Times::Flag, "", "serial port and monitor on this terminal (Ctrl-A h for help, Ctrl-A x ends)"),
    row(CONSOLE, "serial", Times::Many, "TARGET", "serial port to stdio, mon:stdio, pty, tcp:, telnet:, unix:, udp:, file:PATH, pipe:PATH, /dev/TTY, chardev:NAME, null or none; up to four times"),
    row(CONSOLE, "monitor", Times::Many, "TARGET", "monitor on stdio, pty, tcp:, telnet:, unix:, chardev:NAME, or none"),
    row(CONSOLE, "debugcon", Times::Many, "TARGET", "debug console at port 0xE9 to stdio, file:PATH or null"),
    row(CONSOLE, "chardev", Times::Many, "KIND,id=NAME,...", "name a host end (stdio, socket, pty, file, pipe, udp, ringbuf, serial, null) for -serial chardev:NAME, e.g. -chardev stdio,id=c,mux=on,signal=off"),
    row(CONSOLE, "mon", Times::Many, "chardev=NAME[,mode=MODE][,pretty=on]", "monitor on a named host end: mode=readline for people, mode=control for programs (QMP)"),
    row(CONSOLE, "qmp", Times::Many, "TARGET", "monitor for programs (QMP), e.g. -qmp unix:PATH,server=on,wait=off"),
    row(CONSOLE, "qmp-pretty", Times::Many, "TARGET", "the same with answers that people can read"),
    row(CONSOLE, "echr", Times::Once, "CODE", "escape character of mon:stdio by its ASCII code, instead of 1 (Ctrl-A)"),
    row(CONSOLE, "display", Times::Once, "none", "there is no display yet"),
    row(CONSOLE, "vga", Times::Once, "std|none", "graphics card; its text screen is shown by the monitor's info qtree"),
    row(CONSOLE, "parallel", Times::Many, "none", "there is no parallel port"),
    row(DISKS, "hda", Times::Once, "FILE", "disk image on IDE; -hdb, -hdc and -hdd likewise, or just FILE for the first"),
    row(DISKS, "hdb", Times::Once, "FILE", "second disk of the first IDE channel"),
    row(DISKS, "hdc", Times::Once, "FILE", "first disk of the second IDE channel"),
    row(DISKS, "hdd", Times::Once, "FILE", "second disk of the second IDE channel"),
    row(DISKS, "cdrom", Times::Once, "FILE", "CD image on IDE (in the place of -hdc)"),
    row(DISKS, "fda", Times::Once, "FILE", "diskette image in the first floppy drive; -fdb likewise"),
    row(DISKS, "fdb", Times::Once, "FILE", "diskette image in the second floppy drive"),
    row(DISKS, "pflash", Times::Many, "FILE", "flash chip with firmware, e.g. UEFI; a second one lies before it"),
    row(DISKS, "drive", Times::Many, "KEY=VALUE,...", "image and how it is used: file, format, if=ide|virtio|scsi|floppy|pflash|none, media, index, id, readonly, snapshot, cache, discard, ..., e.g. -drive file=disk.qcow2,if=virtio"),
    row(DISKS, "blockdev", Times::Many, "DRIVER,node-name=NAME,...", "image in layers, for -device with drive=NAME, e.g. -blockdev qcow2,node-name=d,file.driver=file,file.filename=disk.qcow2 (-blockdev help)"),
    row(DISKS, "snapshot", Times::Flag, "", "images do not change: writes are gone at the end"),
    row(DEVICES, "device", Times::Many, "MODEL[,KEY=VALUE...]", "add a device, e.g. -device isa-debug-exit,iobase=0xf4 (-device help)"),
    row(DEVICES, "object", Times::Many, "KIND,id=NAME,...", "something that a device refers to, e.g. -object rng-random,id=r,filename=/dev/hwrng (-object help)"),
    row(DEVICES, "virtfs", Times::Many, "local,path=DIR,mount_tag=TAG,security_model=MODEL,...", "share a folder: mapped-xattr, mapped-file, passthrough or none; keys readonly, fmode, dmode, writeout; in the guest: mount -t 9p -o trans=virtio TAG /mnt"),
    row(DEVICES, "fsdev", Times::Many, "local,id=NAME,path=DIR,security_model=MODEL,...", "the same for -device virtio-9p-pci,fsdev=NAME,mount_tag=TAG"),
    row(DEVICES, "nodefaults", Times::Flag, "", "no default serial port, monitor and network card"),
    row(DEVICES, "audiodev", Times::Many, "none,id=NAME", "there is no sound yet"),
    row(DEVICES, "netdev", Times::Many, "KIND,id=NAME,...", "host end of a network card, e.g. -netdev user,id=n,hostfwd=tcp::2222-:22 (-netdev help)"),
    row(DEVICES, "nic", Times::Many, "KIND[,model=MODEL,mac=MAC,...]", "network card with its host end, e.g. -nic user,model=rtl8139; or none"),
    row(DEVICES, "net", Times::Many, "nic[,...]|KIND[,...]", "the same in two options: -net nic -net user; or none"),
    row(RUN, "accel", Times::Many, "NAME[,KEY=VALUE...]", "jit, interp or tcg (= jit), e.g. -accel jit,sync=on,tb-size=128; check=on checks compiled code (-accel help)"),
    row(RUN, "icount", Times::Merge, "[shift=]N|auto[,sleep=off][,align=on]", "guest time follows executed instructions, 2^N ns each, one processor at a time; sleep=off skips the time in which all are halted, align=on waits for the host's time, e.g. -icount shift=2,sleep=off"),
    row(RUN, "seed", Times::Once, "N", "random bytes that the guest gets (a kernel's seed, RDRAND, rng-builtin) are the same in each run with N"),
    row(RUN, "S", Times::Flag, "", "do not start the guest before 'cont' in the monitor"),
    row(RUN, "loadvm", Times::Once, "NAME", "go on from the state that 'savevm NAME' in the monitor kept in the disks"),
    row(RUN, "incoming", Times::Once, "URI|defer", "the machine arrives by 'migrate' of another process: from tcp:HOST:PORT, unix:PATH, fd:NUMBER, exec:COMMAND or file:PATH[,offset=N]"),
    row(LOOK, "perfmap", Times::Flag, "", "write /tmp/perf-PID.map, by which perf(1) names generated code after the guest's"),
    row(LOOK, "profile", Times::Once, "[file=]FILE[,hz=N][,symbols=FILE][,program=FILE...]", "look N times a second (199) at what the guest runs: folded stacks for flame graphs in FILE, hottest functions in 'info jit'; names from the kernel's ELF file or a System.map, of programs from their ELF files"),
    row(LOOK, "gdb", Times::Once, "tcp:[HOST]:PORT|unix:PATH|stdio", "wait for gdb there; with -S nothing runs before it says so"),
    row(LOOK, "s", Times::Flag, "", "the same as -gdb tcp::1234"),
    row(RUN, "add-fd", Times::Many, "fd=N,set=N[,opaque=TEXT]", "put descriptor fd, which this program was started with, into a set: the file name /dev/fdset/N stands for it"),
    row(RUN, "daemonize", Times::Flag, "", "run in the background once the machine stands"),
    row(RUN, "pidfile", Times::Once, "FILE", "write the process's number to FILE, which goes when the process ends"),
    row(RUN, "no-reboot", Times::Flag, "", "end instead of resetting"),
    row(RUN, "no-shutdown", Times::Flag, "", "pause instead of ending at power-off"),
    row(RUN, "action", Times::Merge, "EVENT=ACTION,...", "reboot=reset|shutdown, shutdown=poweroff|pause, panic=shutdown|pause|exit-failure|none, watchdog=reset|shutdown|poweroff|inject-nmi|pause|debug|none"),
    row(RUN, "watchdog-action", Times::Once, "ACTION", "the same as -action watchdog=ACTION"),
    row(RUN, "msg", Times::Many, "timestamp=on|off,guest-name=on|off", "warnings and errors begin with the time, and with the machine's name"),
    row(RUN, "overcommit", Times::Many, "mem-lock=off,cpu-pm=off", "taken for QEMU's sake: the host may swap guest memory anyway"),
    row(RUN, "no-user-config", Times::Flag, "", "taken for QEMU's sake: no configuration file is read anyway"),
    row(LOOK, "d", Times::Once, "ITEM,...", "log items, e.g. -d int,cpu_reset (-d help)"),
    row(LOOK, "trace", Times::Many, "[enable=]PATTERN,events=FILE,file=FILE", "tell of events whose names match, e.g. -trace 'pci_cfg_*' (-trace help); -PATTERN does not"),
    row(LOOK, "D", Times::Once, "FILE", "write the log to FILE instead of standard error (%d becomes the process id)"),
    row(LOOK, "dfilter", Times::Once, "RANGE,...", "limit per-instruction items to addresses, e.g. -dfilter 0x1000..0x1fff,0x8000+0x100"),
    row(HELP, "h", Times::Flag, "", "this text"),
    row(HELP, "help", Times::Flag, "", "this text"),
    row(HELP, "version", Times::Flag, "", "the version"),
];

impl OptionRow {
    /// Whether it takes a value.
    pub fn takes_value(&self) -> bool {
        self.times != Times::Flag
    }
}

/// Names of the options that take a value.
pub fn names() -> impl Iterator<Item = &'static str> {
    OPTIONS.iter().filter(|row| row.takes_value()).map(|row| row.name)
}

/// The row of `name` (without dashes).
fn find(name: &str) -> Option<&'static OptionRow> {
    OPTIONS.iter().find(|o| o.name == name)
}

/// The options as given, checked against the table's grammar.
#[derive(Debug, Default)]
pub struct Arguments {
    given: HashMap<&'static str, Vec<String>>,
}

impl Arguments {
    /// Reads the command line (without the program's name).
    pub fn read(args: &[String]) -> Result<Self> {
        let mut this = Self::default();
        let mut rest = args.iter();
        let mut before: Option<(&'static OptionRow, &str)> = None;
        while let Some(word) = rest.next() {
            let Some(name) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')).filter(|n| !n.is_empty())
            else {
                if let Some(error) = stray(word, before) {
                    return Err(error);
                }
                this.put(find("hda").expect("the table has it"), Some(word))?;
                before = None;
                continue;
            };
            let Some(row) = find(name) else { return Err(unknown(word, name)) };
            let value = if row.takes_value() { Some(Self::value_of(word, row, rest.next())?) } else { None };
            this.put(row, value)?;
            before = value.map(|v| (row, v));
        }
        Ok(this)
    }

    /// The value that follows an option.
    fn value_of<'a>(word: &str, row: &OptionRow, next: Option<&'a String>) -> Result<&'a str> {
        let Some(value) = next else { bail!("{word}: needs a value: {word} {}", row.value) };
        let as_option = value.strip_prefix('-').map(|n| n.strip_prefix('-').unwrap_or(n));
        // A kernel command line or a name may look like anything.
        if !matches!(row.name, "append" | "name") && as_option.is_some_and(|n| find(n).is_some()) {
            bail!("{word}: needs a value, but the option {value} follows: {word} {}", row.value);
        }
        Ok(value)
    }

    fn put(&mut self, row: &'static OptionRow, value: Option<&str>) -> Result<()> {
        let name = if row.name == "M" { "machine" } else { row.name };
        let values = self.given.entry(name).or_default();
        if row.times == Times::Once && !values.is_empty() {
            bail!("-{} {}: given twice (first as {}); give it once", row.name, value.unwrap_or(""), values[0]);
        }
        values.push(value.unwrap_or("").to_owned());
        Ok(())
    }

    /// Whether the flag `name` was given.
    pub fn flag(&self, name: &str) -> bool {
        self.given.contains_key(name)
    }

    /// The value of an option that may come once.
    pub fn one(&self, name: &str) -> Option<&str> {
        self.given.get(name).and_then(|v| v.first()).map(String::as_str)
    }

    /// All values of an option.
    pub fn all(&self, name: &str) -> &[String] {
        self.given.get(name).map_or(&[], Vec::as_slice)
    }
}

/// Why a word that is no option is no disk image either.
fn stray(word: &str, before: Option<(&'static OptionRow, &str)>) -> Option<anyhow::Error> {
    let error = match before {
        Some((row, value)) if matches!(row.name, "m") && word.len() <= 3 => {
            anyhow!("{word}: stray word after -m {value}; sizes are written in one word: -m {value}{word}")
        }
        Some((row, _)) if row.name == "append" => {
            anyhow!("{word}: stray word after -append; put the whole kernel command line in quotes")
        }
        _ if word == "-" => anyhow!("-: not an option; a disk image is named by its path"),
        _ => return None,
    };
    Some(error)
}

/// An option that is not in the table.
fn unknown(word: &str, name: &str) -> anyhow::Error {
    if let Some(remedy) = unsupported::option(name) {
        return anyhow!("{word}: not supported yet{}{remedy}", if remedy.is_empty() { "" } else { "; " });
    }
    let names = OPTIONS.iter().map(|o| o.name).filter(|n| n.len() > 1);
    match suggest::nearest(name, names) {
        Some(near) => anyhow!("{word}: unknown option; did you mean -{near}?"),
        None => anyhow!("{word}: unknown option; -help lists all options"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &[&str]) -> Result<Arguments, String> {
        Arguments::read(&line.iter().map(|s| s.to_string()).collect::<Vec<_>>()).map_err(|e| e.to_string())
    }

    #[test]
    fn both_dash_forms_lists_and_flags() {
        let a = read(&["-kernel", "k", "--append", "-S x", "-serial", "null", "--serial", "none", "-S", "-S"]).unwrap();
        assert_eq!(a.one("kernel"), Some("k"));
        assert_eq!(a.one("append"), Some("-S x"));
        assert_eq!(a.all("serial"), ["null", "none"]);
        assert!(a.flag("S") && !a.flag("nographic"));
        assert_eq!(read(&["-M", "pc", "-machine", "acpi=on"]).unwrap().all("machine"), ["pc", "acpi=on"]);
    }

    #[test]
    fn bad_lines() {
        let err = |line: &[&str]| read(line).unwrap_err();
        assert_eq!(err(&["-kernle", "x"]), "-kernle: unknown option; did you mean -kernel?");
        assert_eq!(err(&["--zzzzzz"]), "--zzzzzz: unknown option; -help lists all options");
        assert_eq!(err(&["-kernel"]), "-kernel: needs a value: -kernel FILE");
        assert_eq!(
            err(&["-kernel", "-initrd", "x"]),
            "-kernel: needs a value, but the option -initrd follows: -kernel FILE"
        );
        assert_eq!(err(&["-kernel", "a", "-kernel", "b"]), "-kernel b: given twice (first as a); give it once");
        assert_eq!(err(&["-m", "4", "G"]), "G: stray word after -m 4; sizes are written in one word: -m 4G");
        assert!(err(&["-append", "a", "b"]).contains("quotes"));
        assert_eq!(read(&["disk.img"]).unwrap().one("hda"), Some("disk.img"));
        assert!(err(&["a.img", "b.img"]).contains("given twice"));
        assert!(err(&["-"]).starts_with("-: not an option"));
        assert!(err(&["-mtdblock", "x"]).starts_with("-mtdblock: not supported yet"));
    }

    #[test]
    fn table_is_consistent() {
        for (i, row) in OPTIONS.iter().enumerate() {
            assert!(OPTIONS[..i].iter().all(|o| o.name != row.name), "{} twice", row.name);
            assert!(unsupported::option(row.name).is_none(), "{} both supported and not", row.name);
            assert_eq!(row.takes_value(), !row.value.is_empty(), "{}", row.name);
            assert!(!row.help.is_empty());
        }
    }
}
