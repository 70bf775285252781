//! `-device` and `-debugcon`.

use super::boot::readable;
use super::bridges::Before;
use super::chars::Chars;
use super::config::network::NicModel;
use super::config::{BridgeSpec, DebugConsole, DebugExit, DeviceSpec, Loader};
use super::drives::Drives;
use super::keyval::KeyValues;
use super::network::Network;
use super::options::Arguments;
use super::peripherals::{self, Collected};
use super::{bridges, sharing, suggest, unsupported, values};
use anyhow::{Result, anyhow, bail};
use brolga_devices::lsi::Chip;
use std::path::PathBuf;

/// A device model for `-device`.
pub struct Model {
    pub name: &'static str,
    /// Another name for it.
    pub alias: Option<&'static str>,
    pub about: &'static str,
    /// Keys with what they mean.
    pub keys: &'static [(&'static str, &'static str)],
    pub add: fn(&mut Devices, KeyValues, &str) -> Result<()>,
}

impl Model {
    /// Whether it has a place on a PCI bus.
    fn is_pci(&self) -> bool {
        // The other one with such a key places things in memory.
        self.name != "loader" && self.keys.iter().any(|(key, _)| *key == "addr")
    }
}

/// Keys for starting over the network.
const ROM_KEYS: [(&str, &str); 3] = [
    ("romfile", "boot ROM (default: iPXE from the package ipxe-qemu, if it is there); empty: none"),
    ("rombar", "0: the ROM goes to firmware by itself and is not on the card"),
    ("bootindex", "place in the order in which firmware tries devices"),
];

const MODELS: &[Model] = &[
    Model {
        name: "e1000",
        alias: None,
        about: "Intel 82540EM gigabit Ethernet card",
        keys: &[
            ("netdev", "its host end: the id of a -netdev"),
            ("mac", "hardware address"),
            ("addr", "PCI device and function, e.g. 4.0"),
            ROM_KEYS[0],
            ROM_KEYS[1],
            ROM_KEYS[2],
        ],
        add: e1000,
    },
    Model {
        name: "rtl8139",
        alias: None,
        about: "Realtek RTL8139C+ fast Ethernet card",
        keys: &[
            ("netdev", "its host end: the id of a -netdev"),
            ("mac", "hardware address"),
            ("addr", "PCI device and function, e.g. 4.0"),
            ("c-plus", "off: the elder RTL8139C, for drivers that know no other (Linux: 8139too)"),
            ROM_KEYS[0],
            ROM_KEYS[1],
            ROM_KEYS[2],
        ],
        add: rtl8139,
    },
    Model {
        name: "virtio-net-pci",
        alias: Some("virtio-net"),
        about: "network card that guests with a virtio driver reach fastest",
        keys: &[
            ("netdev", "its host end: the id of a -netdev"),
            ("mac", "hardware address"),
            ("addr", "PCI device and function, e.g. 4.0"),
            ("queues", "pairs of queues, 1 to 8 (default 1)"),
            ("mq", "on: as many as the host end has"),
            (
                "csum",
                "off: without that; so also guest_csum, gso, host_tso4, host_tso6, host_ecn, host_uso, guest_tso4",
            ),
            (
                "mrg_rxbuf",
                "off: without that; so also guest_tso6, guest_uso4, guest_uso6, guest_announce, status, ctrl_vq, ctrl_rx, ctrl_rx_extra",
            ),
            ("ctrl_vlan", "off: without that; so also ctrl_mac_addr, ctrl_guest_offloads"),
            ROM_KEYS[0],
            ROM_KEYS[1],
            ROM_KEYS[2],
        ],
        add: virtio_net,
    },
    Model {
        name: "isa-debug-exit",
        alias: None,
        about: "a write of V to its port ends the process with status (V << 1) | 1",
        keys: &[("iobase", "first I/O port (default 0x501)"), ("iosize", "number of ports (default 2)")],
        add: debug_exit,
    },
    Model {
        name: "isa-debugcon",
        alias: None,
        about: "bytes written to its port go to a host end",
        keys: &[
            ("iobase", "I/O port"),
            ("readback", "value that a read returns"),
            ("chardev", "where the bytes go: the id of a -chardev"),
        ],
        add: debug_console,
    },
    Model {
        name: "loader",
        alias: None,
        about: "places a file or a value in guest memory, or sets a program counter",
        keys: &[
            ("file", "file to load: ELF by its own addresses, others at addr"),
            ("addr", "guest-physical address, or program counter"),
            ("cpu-num", "processor whose program counter is set to the entry point"),
            ("force-raw", "on: load an ELF file byte for byte"),
            ("data", "value to store instead of a file"),
            ("data-len", "its length: 1, 2, 4 or 8 bytes"),
            ("data-be", "on: store it with the highest byte first"),
        ],
        add: loader,
    },
    Model {
        name: "pci-bridge",
        alias: None,
        about: "PCI bus with slots of its own, for devices with bus=ID",
        keys: bridges::KEYS,
        add: bridges::device,
    },
    Model { name: "ide-hd", alias: None, about: "disk on an IDE channel", keys: IDE_KEYS, add: ide_disk },
    Model {
        name: "ide-cd",
        alias: None,
        about: "CD drive on an IDE channel; empty without drive=",
        keys: IDE_KEYS,
        add: ide_cd,
    },
    Model {
        name: "virtio-blk-pci",
        alias: Some("virtio-blk"),
        about: "disk that guests with a virtio driver reach fastest",
        keys: &[
            ("drive", "the id of a -drive with if=none"),
            ("addr", "PCI slot, in hexadecimal"),
            ("num-queues", "number of queues (default 1)"),
            ("serial", "serial number, up to 20 characters"),
            ("bootindex", "place in the order in which firmware tries devices"),
        ],
        add: virtio_blk,
    },
    Model {
        name: "virtio-scsi-pci",
        alias: Some("virtio-scsi"),
        about: "SCSI host for disks and CD drives (scsi-hd, scsi-cd)",
        keys: &[
            ("id", "name: its bus is called NAME.0"),
            ("addr", "PCI slot, in hexadecimal"),
            ("num_queues", "number of request queues (default 1)"),
        ],
        add: virtio_scsi,
    },
    Model {
        name: "lsi53c895a",
        alias: Some("lsi"),
        about: "Symbios SCSI host for disks and CD drives (scsi-hd, scsi-cd), as -drive if=scsi brings it",
        keys: LSI_KEYS,
        add: lsi_895a,
    },
    Model {
        name: "lsi53c810",
        alias: None,
        about: "older Symbios SCSI host for disks and CD drives (scsi-hd, scsi-cd)",
        keys: LSI_KEYS,
        add: lsi_810,
    },
    Model { name: "floppy", alias: None, about: "floppy drive; empty without drive=", keys: FLOPPY_KEYS, add: floppy },
    Model { name: "scsi-hd", alias: None, about: "disk at a SCSI host", keys: SCSI_KEYS, add: scsi_disk },
    Model {
        name: "scsi-cd",
        alias: None,
        about: "CD drive at a SCSI host; empty without drive=",
        keys: SCSI_KEYS,
        add: scsi_cd,
    },
];

const FLOPPY_KEYS: &[(&str, &str)] = &[
    ("drive", "the id of a -drive with if=none"),
    ("unit", "0 or 1 (default: the next that is free)"),
    ("drive-type", "120, 144, 288 or auto: as the medium wants it"),
    ("bootindex", "place in the order in which firmware tries devices"),
];

const LSI_KEYS: &[(&str, &str)] = &[("id", "name: its bus is called NAME.0"), ("addr", "PCI slot, in hexadecimal")];

const SCSI_KEYS: &[(&str, &str)] = &[
    ("drive", "the id of a -drive with if=none"),
    ("bus", "the host's bus: its id with .0 (default: that of the first)"),
    ("channel", "0"),
    ("scsi-id", "target, 0 to 255, at an lsi host 0 to 6 (default: the next that is free)"),
    ("lun", "logical unit, 0 to 16383, at an lsi host 0 to 7"),
    ("serial", "serial number, up to 36 characters"),
    ("vendor", "vendor, up to 8 characters"),
    ("product", "model, up to 16 characters"),
    ("ver", "firmware version, up to 4 characters"),
    ("device_id", "name in the unit's identification page"),
    ("wwn", "world-wide name, a number of 64 bits"),
    ("bootindex", "place in the order in which firmware tries devices"),
];

const IDE_KEYS: &[(&str, &str)] = &[
    ("drive", "the id of a -drive with if=none"),
    ("bus", "ide.0 or ide.1"),
    ("unit", "0 or 1"),
    ("serial", "serial number, up to 20 characters"),
    ("model", "model, up to 40 characters"),
    ("ver", "firmware version, up to 8 characters"),
    ("bootindex", "place in the order in which firmware tries devices"),
];

/// All models there are.
fn models() -> impl Iterator<Item = &'static Model> + Clone {
    MODELS.iter().chain(peripherals::MODELS)
}

/// Names of all models.
pub fn model_names() -> impl Iterator<Item = &'static str> {
    models().map(|model| model.name)
}

/// Keys of the model called `name`, with what they mean.
pub fn model_keys(name: &str) -> Option<&'static [(&'static str, &'static str)]> {
    models().find(|model| model.name == name).map(|model| model.keys)
}

/// Devices while they are collected: before the machine starts, and for those that are added while it runs.
#[derive(Clone, Debug)]
pub struct Devices {
    pub loaders: Vec<Loader>,
    pub debug_exits: Vec<DebugExit>,
    pub debug_consoles: Vec<DebugConsole>,
    pub chars: Chars,
    pub network: Network,
    pub drives: Drives,
    pub peripherals: Collected,
    /// All of them, as they were given.
    pub given: Vec<DeviceSpec>,
    pub bridges: Vec<BridgeSpec>,
    /// `id=` of the device that is looked at.
    pub id: Option<String>,
}

/// The devices asked for.
pub fn settle(arguments: &Arguments, chars: Chars, network: Network, drives: Drives) -> Result<Devices> {
    let (loaders, debug_exits, debug_consoles, given, bridges) = Default::default();
    let peripherals = Collected::begin(arguments)?;
    let id = None;
    let mut devices =
        Devices { loaders, debug_exits, debug_consoles, chars, network, drives, peripherals, given, bridges, id };
    for target in arguments.all("debugcon") {
        let label = format!("debugcon{}", devices.debug_consoles.len());
        match devices.chars.add("-debugcon", target, label)? {
            Some(chardev) => devices.debug_consoles.push(DebugConsole { iobase: 0xe9, readback: 0xe9, chardev }),
            None => bail!("-debugcon {target}: nothing to add; leave the option out"),
        }
    }
    for value in arguments.all("device") {
        devices.add(value)?;
    }
    overlaps(&devices)?;
    sharing::check_tags(&devices.peripherals.wanted.shares)?;
    Ok(devices)
}

impl Devices {
    /// Adds the device that `value`, in the grammar of `-device`, asks for.
    pub fn add(&mut self, value: &str) -> Result<()> {
        let mut keys = KeyValues::parse("-device", value, Some("driver"))?;
        let Some(name) = keys.take("driver")? else { bail!("-device {value}: no model named; use -device MODEL,...") };
        let model = find(&name).ok_or_else(|| unknown(&name))?;
        // Names given by clients that manage devices; few of them are referred to.
        self.id = keys.take("id")?;
        if let Some(id) = &self.id
            && self.given.iter().any(|other| other.id.as_ref() == Some(id))
        {
            bail!("-device {value}: there is another -device with id={id}; choose another name");
        }
        let (id, given) = (self.id.clone(), keys.pairs());
        let given = given.into_iter().map(|(key, text)| (key.to_owned(), text.to_owned())).collect();
        let bus = bridges::take(self, &mut keys)?;
        let before = Before::now(self);
        (model.add)(self, keys, value)?;
        let made = before.made(self, value);
        before.put(self, bus, value, model.is_pci())?;
        if let Some(id) = self.id.take() {
            self.drives.name_device(&format!("-device {value}"), &id);
        }
        self.given.push(DeviceSpec { id, model: model.name, keys: given, made });
        Ok(())
    }
}

/// The model called `name`.
fn find(name: &str) -> Option<&'static Model> {
    models().find(|model| model.name == name || model.alias == Some(name))
}

/// Whether there is a model called `name`.
pub fn is_model(name: &str) -> bool {
    find(name).is_some()
}

fn unknown(name: &str) -> anyhow::Error {
    let names = models().map(|m| m.name);
    if let Some(near) = suggest::nearest(name, names.clone()) {
        return anyhow!("-device {name}: unknown model; did you mean {near}?");
    }
    let cause = if unsupported::is_device(name) { "not supported yet" } else { "unknown model" };
    anyhow!("-device {name}: {cause}; there are {}", names.collect::<Vec<_>>().join(", "))
}

fn port(text: &str) -> Result<u16, values::Refusal> {
    values::number_in(text, 0, 0xffff).map(|n| n as u16)
}

fn virtio_net(devices: &mut Devices, keys: KeyValues, value: &str) -> Result<()> {
    devices.network.device(super::network::VIRTIO, keys, value)
}

fn e1000(devices: &mut Devices, keys: KeyValues, value: &str) -> Result<()> {
    devices.network.device(NicModel::E1000, keys, value)
}

fn rtl8139(devices: &mut Devices, keys: KeyValues, value: &str) -> Result<()> {
    devices.network.device(super::network::RTL8139, keys, value)
}

fn ide_disk(devices: &mut Devices, keys: KeyValues, value: &str) -> Result<()> {
    devices.drives.ide_device(keys, value, false)
}

fn ide_cd(devices: &mut Devices, keys: KeyValues, value: &str) -> Result<()> {
    devices.drives.ide_device(keys, value, true)
}

fn virtio_blk(devices: &mut Devices, keys: KeyValues, value: &str) -> Result<()> {
    devices.drives.virtio_device(keys, value)
}

fn virtio_scsi(devices: &mut Devices, keys: KeyValues, value: &str) -> Result<()> {
    let id = devices.id.take();
    devices.drives.scsi_host(keys, value, id)
}

fn lsi_895a(devices: &mut Devices, keys: KeyValues, value: &str) -> Result<()> {
    let id = devices.id.take();
    devices.drives.lsi_host(keys, value, id, Chip::C895a)
}

fn lsi_810(devices: &mut Devices, keys: KeyValues, value: &str) -> Result<()> {
    let id = devices.id.take();
    devices.drives.lsi_host(keys, value, id, Chip::C810)
}

fn floppy(devices: &mut Devices, keys: KeyValues, value: &str) -> Result<()> {
    devices.drives.floppy_device(keys, value)
}

fn scsi_disk(devices: &mut Devices, keys: KeyValues, value: &str) -> Result<()> {
    devices.drives.scsi_device(keys, value, false)
}

fn scsi_cd(devices: &mut Devices, keys: KeyValues, value: &str) -> Result<()> {
    devices.drives.scsi_device(keys, value, true)
}

fn debug_exit(devices: &mut Devices, mut keys: KeyValues, value: &str) -> Result<()> {
    let iobase = keys.take_as("iobase", port)?.unwrap_or(0x501);
    let iosize = keys.take_as("iosize", |t| values::number_in(t, 1, 0x100))?.unwrap_or(2) as u16;
    keys.finish()?;
    if u32::from(iobase) + u32::from(iosize) > 0x1_0000 {
        bail!("-device {value}: the ports go beyond 0xffff; choose a lower iobase");
    }
    devices.debug_exits.push(DebugExit { iobase, iosize });
    Ok(())
}

fn debug_console(devices: &mut Devices, mut keys: KeyValues, value: &str) -> Result<()> {
    let iobase = keys.take_as("iobase", port)?.unwrap_or(0xe9);
    let readback = keys.take_as("readback", |t| values::number_in(t, 0, 0xff))?.unwrap_or(0xe9) as u8;
    let chardev = keys.take("chardev")?;
    keys.finish()?;
    let Some(id) = chardev else {
        bail!("-device {value}: chardev= is missing; add -chardev stdio,id=NAME and chardev=NAME, or use -debugcon");
    };
    let chardev = devices.chars.refer(&format!("-device {value}"), &id)?;
    devices.debug_consoles.push(DebugConsole { iobase, readback, chardev });
    Ok(())
}

fn loader(devices: &mut Devices, mut keys: KeyValues, value: &str) -> Result<()> {
    let file = keys.take("file")?;
    let addr = keys.take_as("addr", values::number)?;
    let cpu = keys.take_as("cpu-num", |t| match values::number(t)? {
        0 => Ok(0),
        n => Err(format!("there is no processor {n}; the only one is 0")),
    })?;
    let force_raw = keys.take_switch("force-raw")?.unwrap_or(false);
    let data = keys.take_as("data", values::number)?;
    let data_len = keys.take_as("data-len", |t| match values::number(t)? {
        n @ (1 | 2 | 4 | 8) => Ok(n as usize),
        _ => Err("the length must be 1, 2, 4 or 8".into()),
    })?;
    let big_endian = keys.take_switch("data-be")?.unwrap_or(false);
    keys.finish()?;
    let refuse = |why: &str| anyhow!("-device {value}: {why}");
    let loader = match (file, data) {
        (Some(_), Some(_)) => return Err(refuse("file= and data= exclude each other; use two loaders")),
        (Some(path), None) => {
            readable(&format!("-device loader,file={path}"), &path)?;
            if force_raw && addr.is_none() {
                return Err(refuse("force-raw=on needs addr="));
            }
            Loader::File { path: PathBuf::from(path), addr, cpu, force_raw }
        }
        (None, Some(data)) => {
            let len = data_len.ok_or_else(|| refuse("data= needs data-len=1, 2, 4 or 8"))?;
            let addr = addr.ok_or_else(|| refuse("data= needs addr="))?;
            if len < 8 && data >> (8 * len) != 0 {
                return Err(refuse("the value does not fit into data-len bytes"));
            }
            let mut bytes = data.to_le_bytes()[..len].to_vec();
            if big_endian {
                bytes.reverse();
            }
            Loader::Data { bytes, addr }
        }
        (None, None) => match (addr, cpu) {
            (Some(addr), Some(cpu)) => Loader::ProgramCounter { addr, cpu },
            _ => return Err(refuse("nothing to load; give file=, data= or addr= with cpu-num=")),
        },
    };
    devices.loaders.push(loader);
    Ok(())
}

/// Two devices at one port would leave the second without accesses.
fn overlaps(devices: &Devices) -> Result<()> {
    let mut ranges: Vec<(u32, u32)> =
        devices.debug_exits.iter().map(|d| (d.iobase.into(), u32::from(d.iobase) + u32::from(d.iosize))).collect();
    ranges.extend(devices.debug_consoles.iter().map(|d| (u32::from(d.iobase), u32::from(d.iobase) + 1)));
    ranges.sort_unstable();
    match ranges.windows(2).find(|w| w[0].1 > w[1].0) {
        Some(w) => bail!("-device: two devices share I/O port {:#x}; move one with iobase=", w[1].0),
        None => Ok(()),
    }
}

/// Text of `-device help`, or of `-device MODEL,help`.
pub fn help(value: &str) -> Result<String> {
    let name = value.split(',').next().unwrap_or(value);
    let mut out = String::new();
    if name == "help" || name == "?" {
        for model in models() {
            out += &format!("{:<18} {}\n", model.name, model.about);
        }
        return Ok(out);
    }
    let model = find(name).ok_or_else(|| unknown(name))?;
    out += &format!("{}: {}\n", model.name, model.about);
    for (key, about) in model.keys {
        out += &format!("  {:<12} {about}\n", format!("{key}="));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{parse_line, with};
    use super::*;

    fn err(value: &str) -> String {
        with(&["-device", value]).unwrap_err()
    }

    #[test]
    fn debug_devices() {
        let c = with(&["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04", "-debugcon", "null"]).unwrap();
        assert_eq!(c.debug_exits, [DebugExit { iobase: 0xf4, iosize: 4 }]);
        assert_eq!(c.debug_consoles.len(), 1);
        assert!(err("isa-debug-exit,iobase=0x10000").contains("out of range: 0 to 65535"));
        assert!(err("isa-debug-exit,iobase=0xffff,iosize=2").contains("beyond 0xffff"));
        assert!(err("isa-debugcon").contains("chardev= is missing"));
        let two = ["-device", "isa-debug-exit,iobase=0xf4", "-device", "isa-debug-exit,iobase=0xf5"];
        assert_eq!(with(&two).unwrap_err(), "-device: two devices share I/O port 0xf5; move one with iobase=");
    }

    #[test]
    fn loaders() {
        let one = |value| parse_line(&["-device", value]).map(|c| c.loaders[0].clone());
        assert_eq!(
            one("loader,data=0x1234,data-len=4,addr=0x1000"),
            Ok(Loader::Data { bytes: vec![0x34, 0x12, 0, 0], addr: 0x1000 })
        );
        assert_eq!(
            one("loader,data=0x1234,data-len=2,data-be=on,addr=0"),
            Ok(Loader::Data { bytes: vec![0x12, 0x34], addr: 0 })
        );
        assert_eq!(one("loader,addr=0x7c00,cpu-num=0"), Ok(Loader::ProgramCounter { addr: 0x7c00, cpu: 0 }));
        assert!(one("loader,data=0x1ff,data-len=1,addr=0").unwrap_err().contains("does not fit"));
        assert!(one("loader,data=1,addr=0").unwrap_err().contains("needs data-len"));
        assert!(one("loader").unwrap_err().contains("nothing to load"));
        assert!(one("loader,addr=0,cpu-num=1").unwrap_err().contains("no processor 1"));
        assert_eq!(
            one("loader,file=/does/not/exist,addr=0").unwrap_err(),
            "-device loader,file=/does/not/exist: no such file; check the path"
        );
    }

    #[test]
    fn strangers() {
        assert_eq!(err("isa-debug-exti"), "-device isa-debug-exti: unknown model; did you mean isa-debug-exit?");
        assert!(err("usb-tablet").starts_with("-device usb-tablet: not supported yet; there are "));
        assert!(err("frobnicator").starts_with("-device frobnicator: unknown model"));
        assert!(err("loader,fiel=x").contains("did you mean file?"));
        assert!(help("help").unwrap().contains("isa-debug-exit"));
        assert!(help("loader,help").unwrap().contains("data-len="));
        assert!(help("loadr,help").is_err());
    }
}
