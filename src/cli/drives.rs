//! `-drive`, `-hda` to `-hdd`, `-cdrom`, the image without an option, and the devices they end at.

use super::boot::readable;
use super::config::{Attachment, DriveSpec, ScsiHostSpec};
use super::keyval::KeyValues;
use super::options::Arguments;
use super::{blockdev, flash, floppy, scsi, suggest, values};
use anyhow::{Result, anyhow, bail};
use brolga::block::drive::DriveOptions;
use brolga_devices::fdc::DriveType;
use std::path::PathBuf;

/// Units of an IDE channel, and channels.
const IDE_UNITS: u8 = 2;
const IDE_CHANNELS: u8 = 2;
/// Slots of a PCI bus.
const SLOTS: u64 = 31;

/// Drives while they are collected.
#[derive(Clone, Debug, Default)]
pub struct Drives {
    /// In the order given.
    pub drives: Vec<Pending>,
    /// SCSI hosts, in the order given.
    pub scsi_hosts: Vec<ScsiHostSpec>,
    /// Nodes of `-blockdev` that are below others, and those above.
    pub(super) below: Vec<(String, String)>,
    /// All of `-blockdev`.
    pub(super) nodes: Vec<String>,
}

/// A drive whose place may still be open.
#[derive(Clone, Debug)]
pub struct Pending {
    /// The drive.
    pub spec: DriveSpec,
    pub(super) wants: Wants,
}

/// Where a drive is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wants {
    /// To the IDE place with this number, or to the next that is free.
    Ide(Option<u8>),
    /// To a virtio-blk device of its own.
    Virtio,
    /// In the floppy drive with this number, or in the next that is free.
    Floppy {
        /// `unit=` or `index=`.
        unit: Option<u8>,
        /// `drive-type=`.
        kind: Option<DriveType>,
    },
    /// In this flash chip, or in the next that is free.
    Flash(Option<u8>),
    /// At a SCSI host, at this target, or at the next that is free.
    Scsi {
        /// Index of the host.
        host: usize,
        /// `scsi-id=`.
        target: Option<u8>,
        /// `lun=`.
        lun: u16,
    },
    /// Where a `-device` takes it.
    Device,
    /// Nowhere: its device was taken away.
    Gone,
}

impl Pending {
    /// The place that it was given is its own from now on.
    fn stay(&mut self) {
        self.wants = match (self.wants, self.spec.attachment) {
            (Wants::Ide(_), Some(Attachment::Ide { channel, unit })) => Wants::Ide(Some(channel * IDE_UNITS + unit)),
            (Wants::Floppy { kind, .. }, Some(Attachment::Floppy { unit, .. })) => {
                Wants::Floppy { unit: Some(unit), kind }
            }
            (Wants::Flash(_), Some(Attachment::Flash { unit })) => Wants::Flash(Some(unit)),
            (Wants::Scsi { host, lun, .. }, Some(Attachment::Scsi { target, .. })) => {
                Wants::Scsi { host, target: Some(target), lun }
            }
            (wants, _) => wants,
        };
    }
}

impl Drives {
    /// Everything but `-device`.
    pub fn collect(arguments: &Arguments) -> Result<Self> {
        let mut this = Self::default();
        let snapshot = arguments.flag("snapshot");
        for (index, name) in (0..).zip(["hda", "hdb", "hdc", "hdd"]) {
            if let Some(path) = arguments.one(name) {
                this.image(&format!("-{name} {path}"), path, index, false, snapshot)?;
            }
        }
        for (unit, name) in (0..).zip(["fda", "fdb"]) {
            if let Some(path) = arguments.one(name) {
                let what = format!("-{name} {path}");
                let options = DriveOptions { snapshot, ..DriveOptions::default() };
                let wants = Wants::Floppy { unit: Some(unit), kind: None };
                this.add(&what, DriveSpec::new(&what, Some(PathBuf::from(path)), false, options), wants)?;
            }
        }
        for path in arguments.all("pflash") {
            let what = format!("-pflash {path}");
            let options = DriveOptions { snapshot, ..DriveOptions::default() };
            this.add(&what, DriveSpec::new(&what, Some(PathBuf::from(path)), false, options), Wants::Flash(None))?;
        }
        if let Some(path) = arguments.one("cdrom") {
            this.image(&format!("-cdrom {path}"), path, 2, true, snapshot)?;
        }
        for value in arguments.all("drive") {
            this.drive(value, snapshot)?;
        }
        this.blockdevs(arguments.all("blockdev"), snapshot)?;
        Ok(this)
    }

    fn image(&mut self, what: &str, path: &str, index: u8, cd: bool, snapshot: bool) -> Result<()> {
        let read_only = cd;
        let options = DriveOptions { read_only, snapshot: snapshot && !cd, ..DriveOptions::default() };
        self.add(what, DriveSpec::new(what, Some(PathBuf::from(path)), cd, options), Wants::Ide(Some(index)))
    }

    fn add(&mut self, what: &str, spec: DriveSpec, wants: Wants) -> Result<()> {
        if let Some(path) = &spec.file {
            readable(what, path)?;
        }
        if let Some(id) = &spec.id
            && self.drives.iter().any(|d| d.spec.id.as_deref() == Some(id))
        {
            bail!("{what}: there is another drive with id={id}; choose another name");
        }
        self.drives.push(Pending { spec, wants });
        Ok(())
    }

    /// `-blockdev`: what no other node stands on is there for devices.
    fn blockdevs(&mut self, values: &[String], snapshot: bool) -> Result<()> {
        if snapshot && !values.is_empty() {
            bail!(
                "-snapshot: it is for -drive and its short forms, and -blockdev would be written; leave one of them out"
            );
        }
        self.nodes = values.to_vec();
        for node in blockdev::collect(values)? {
            let blockdev::Opened { name, path, options, under, file_node } = node;
            if let Some(above) = under {
                self.below.push((name, above));
                continue;
            }
            let what = format!("-blockdev node-name={name}");
            if self.drives.iter().any(|d| d.spec.id.as_deref() == Some(&name)) {
                bail!("{what}: there is a -drive with id={name}; choose another name");
            }
            let mut spec = DriveSpec::new(&what, Some(path), false, options);
            (spec.id, spec.node, spec.file_node) = (Some(name.clone()), Some(name), file_node);
            self.drives.push(Pending { spec, wants: Wants::Device });
        }
        Ok(())
    }

    /// `-drive`.
    pub(super) fn drive(&mut self, value: &str, snapshot: bool) -> Result<()> {
        let what = format!("-drive {value}");
        let mut keys = KeyValues::parse("-drive", value, None)?;
        let file = file_of(&mut keys)?;
        let id = keys.take("id")?;
        let cd = keys.take_as("media", |t| match t {
            "disk" => Ok(false),
            "cdrom" => Ok(true),
            _ => Err(format!("'{t}' is no medium{}", suggest::hint(t, ["disk", "cdrom"]))),
        })?;
        let cd = cd.unwrap_or(false);
        let interface = keys.take("if")?.unwrap_or_else(|| "ide".to_owned());
        let number = |t: &str| values::number_in(t, 0, 255).map(|n| n as u8);
        let (index, bus, unit) =
            (keys.take_as("index", number)?, keys.take_as("bus", number)?, keys.take_as("unit", number)?);
        let serial = keys.take("serial")?;
        let options = options(&mut keys, value, cd, snapshot)?;
        keys.finish()?;
        let wants = match interface.as_str() {
            "ide" => Wants::Ide(ide_place(&what, index, bus, unit)?),
            "virtio" => Wants::Virtio,
            "none" => Wants::Device,
            "scsi" => self.scsi_drive(&what, index, bus, unit)?,
            "floppy" => Wants::Floppy { unit: floppy::unit(&what, index, bus, unit)?, kind: None },
            "pflash" => Wants::Flash(flash::unit(&what, index, bus, unit)?),
            "sd" | "mtd" => {
                bail!("{what}: if={interface} is not supported yet; use if=ide, if=virtio or if=none")
            }
            other => {
                bail!(
                    "{what}: '{other}' is no interface{}",
                    suggest::hint(other, ["ide", "virtio", "scsi", "floppy", "pflash", "none"])
                )
            }
        };
        let placed = !matches!(wants, Wants::Virtio | Wants::Device);
        if !placed && (index.is_some() || bus.is_some() || unit.is_some()) {
            bail!("{what}: index, bus and unit are places of if=ide, if=scsi, if=floppy and if=pflash; leave them out");
        }
        let floppy = matches!(wants, Wants::Floppy { .. });
        if cd && floppy {
            bail!("{what}: a floppy drive takes no CD; leave media=cdrom out, or use if=ide");
        }
        if cd && wants == Wants::Virtio {
            bail!("{what}: a virtio disk is no CD drive; leave media=cdrom out, or use if=ide");
        }
        if file.is_none() && !cd && !floppy {
            bail!("{what}: file= is missing; a disk needs an image");
        }
        let mut spec = DriveSpec::new(&what, file.map(PathBuf::from), cd, options);
        (spec.id, spec.serial) = (id, serial);
        self.add(&what, spec, wants)
    }

    /// The drive called `id`, for `-device`; it may be taken once.
    pub(super) fn take(&mut self, what: &str, id: &str) -> Result<&mut DriveSpec> {
        if let Some((_, above)) = self.below.iter().find(|(name, _)| name == id) {
            bail!("{what}: the node {id} is below {above}; give the device drive={above}");
        }
        let names: Vec<String> = self.drives.iter().filter_map(|d| d.spec.id.clone()).collect();
        let Some(found) = self.drives.iter_mut().find(|d| d.spec.id.as_deref() == Some(id)) else {
            let hint = suggest::hint(id, names.iter().map(String::as_str));
            bail!("{what}: there is no -drive with id={id}, and no -blockdev with that node-name{hint}");
        };
        if found.wants != Wants::Device || found.spec.attachment.is_some() {
            bail!("{what}: the drive {id} is in use already; give a -drive if=none, and to one device only");
        }
        Ok(&mut found.spec)
    }

    /// The drive called `id`, for a `-device` that has it where `wants` says.
    pub(super) fn take_for(&mut self, what: &str, id: &str, wants: Wants) -> Result<&mut DriveSpec> {
        self.take(what, id)?;
        let found = self.drives.iter_mut().find(|d| d.spec.id.as_deref() == Some(id));
        let found = found.ok_or_else(|| anyhow!("internal error: the drive is gone"))?;
        found.wants = wants;
        Ok(&mut found.spec)
    }

    /// The drive that `what` asked for last, if it has a device that can come and go, and whether that is a virtio disk.
    pub fn of(&self, what: &str) -> Option<(usize, bool)> {
        let at = self.drives.iter().rposition(|drive| drive.spec.what == what)?;
        let Pending { spec, wants } = self.drives.get(at)?;
        match (spec.attachment, wants) {
            (Some(Attachment::VirtioBlk { .. }), _) => Some((at, true)),
            (_, Wants::Scsi { .. }) => Some((at, false)),
            _ => None,
        }
    }

    /// The device that `what` asked for is called `id`. Devices without a drive take no notice.
    pub fn name_device(&mut self, what: &str, id: &str) {
        if let Some(found) = self.drives.iter_mut().find(|d| d.spec.what == what && d.spec.device.is_none()) {
            found.spec.device = Some(id.to_owned());
        }
    }

    /// `-device ide-hd` and `-device ide-cd`.
    pub fn ide_device(&mut self, mut keys: KeyValues, value: &str, cd: bool) -> Result<()> {
        let what = format!("-device {value}");
        let drive = keys.take("drive")?;
        let channel = keys.take_as("bus", |t| match t {
            "ide.0" => Ok(0),
            "ide.1" => Ok(1),
            _ => Err(format!("'{t}' is no IDE bus{}", suggest::hint(t, ["ide.0", "ide.1"]))),
        })?;
        let unit = keys.take_as("unit", |t| values::number_in(t, 0, 1).map(|n| n as u8))?;
        let (serial, boot_index) = device_keys(&mut keys)?;
        let write_cache = blockdev::write_cache(&mut keys)?;
        let (model, version) = (keys.take("model")?, keys.take("ver")?);
        keys.finish()?;
        let place = match (channel, unit) {
            (None, None) => None,
            (channel, unit) => Some(channel.unwrap_or(0) * IDE_UNITS + unit.unwrap_or(0)),
        };
        if drive.is_none() {
            if !cd {
                bail!("{what}: drive= is missing; add -drive if=none,id=NAME,file=IMAGE and drive=NAME");
            }
            let empty = DriveSpec::new(&what, None, true, DriveOptions { read_only: true, ..DriveOptions::default() });
            self.drives.push(Pending { spec: empty, wants: Wants::Ide(place) });
        }
        let spec = match drive {
            Some(id) => self.take_for(&what, &id, Wants::Ide(place))?,
            None => &mut self.drives.last_mut().ok_or_else(|| anyhow!("internal error: the drive is gone"))?.spec,
        };
        spec.what = what;
        spec.cd = cd;
        spec.options.read_only |= cd;
        spec.options.cache.writeback = write_cache.unwrap_or(spec.options.cache.writeback);
        spec.serial = serial.or(spec.serial.take());
        (spec.boot_index, spec.model, spec.version) = (boot_index, model, version);
        Ok(())
    }

    /// `-device virtio-blk-pci`.
    pub fn virtio_device(&mut self, mut keys: KeyValues, value: &str) -> Result<()> {
        let what = format!("-device {value}");
        let Some(drive) = keys.take("drive")? else {
            bail!("{what}: drive= is missing; add -drive if=none,id=NAME,file=IMAGE and drive=NAME");
        };
        let slot = pci_slot(&mut keys)?;
        let queues = keys.take_as("num-queues", |t| values::number_in(t, 1, 64).map(|n| n as u16))?;
        keys.take_fixed("disable-legacy", false, "the device is modern and transitional at once")?;
        keys.take_fixed("disable-modern", false, "the device is modern and transitional at once")?;
        let (serial, boot_index) = device_keys(&mut keys)?;
        let write_cache = blockdev::write_cache(&mut keys)?;
        keys.finish()?;
        let spec = self.take(&what, &drive)?;
        if spec.cd {
            bail!("{what}: a virtio disk is no CD drive; leave media=cdrom out, or use -device ide-cd");
        }
        spec.what = what;
        spec.options.cache.writeback = write_cache.unwrap_or(spec.options.cache.writeback);
        spec.serial = serial.or(spec.serial.take());
        spec.boot_index = boot_index;
        spec.attachment = Some(Attachment::VirtioBlk { slot, queues: queues.unwrap_or(1) });
        Ok(())
    }

    /// Gives each drive its place. Those that name one get it first.
    pub fn place(&mut self) -> Result<()> {
        let Self { drives, scsi_hosts, .. } = self;
        scsi::place(drives, scsi_hosts)?;
        floppy::place(drives)?;
        flash::place(drives)?;
        let mut taken: [Option<String>; (IDE_UNITS * IDE_CHANNELS) as usize] = Default::default();
        for fixed in [true, false] {
            for Pending { spec, wants } in &mut *drives {
                let index = match wants {
                    Wants::Ide(Some(index)) if fixed => *index,
                    Wants::Ide(None) if !fixed => {
                        let free = taken.iter().position(Option::is_none);
                        free.ok_or_else(|| anyhow!("{}: all four IDE places are taken; use if=virtio", spec.what))?
                            as u8
                    }
                    _ => continue,
                };
                let place = &mut taken[usize::from(index)];
                if let Some(other) = place {
                    bail!("{}: its IDE place {index} is taken by {other}; give another index, or none", spec.what);
                }
                *place = Some(spec.what.clone());
                if !spec.cd && spec.options.read_only {
                    bail!("{}: an IDE disk cannot be write-protected; use snapshot=on, or if=virtio", spec.what);
                }
                spec.attachment = Some(Attachment::Ide { channel: index / IDE_UNITS, unit: index % IDE_UNITS });
            }
        }
        for Pending { spec, wants } in &mut *drives {
            if *wants == Wants::Virtio {
                spec.attachment = Some(Attachment::VirtioBlk { slot: None, queues: 1 });
            }
        }
        drives.iter_mut().for_each(Pending::stay);
        check_boot_indexes(drives)
    }

    /// A drive that no device has.
    pub fn unused(&self) -> Option<&str> {
        let unused = |drive: &&Pending| drive.wants == Wants::Device && drive.spec.attachment.is_none();
        self.drives.iter().find(unused).map(|drive| drive.spec.what.as_str())
    }
}

/// `file=`, or the same as `file.driver=file,file.filename=`.
fn file_of(keys: &mut KeyValues) -> Result<Option<String>> {
    keys.take_as("file.driver", |driver| match driver {
        "file" | "host_device" => Ok(()),
        _ => Err(format!("there is no driver '{driver}'; use file")),
    })?;
    match (keys.take("file")?, keys.take("file.filename")?) {
        (Some(_), Some(_)) => bail!("{}: file and file.filename are one option; leave one of them out", keys.option()),
        (one, other) => Ok(one.or(other)),
    }
}

/// `addr=`: a PCI slot, in hexadecimal.
pub(super) fn pci_slot(keys: &mut KeyValues) -> Result<Option<u8>> {
    keys.take_as("addr", |t| {
        let number = t.strip_suffix(".0").unwrap_or(t);
        let number = number.strip_prefix("0x").unwrap_or(number);
        let slot = u64::from_str_radix(number, 16).map_err(|_| format!("'{t}' is no PCI slot"))?;
        if (1..=SLOTS).contains(&slot) { Ok(slot as u8) } else { Err("slots go from 1 to 0x1f".to_owned()) }
    })
}

/// Keys that all disk devices have: serial number and place in the boot order.
pub(super) fn device_keys(keys: &mut KeyValues) -> Result<(Option<String>, Option<u32>)> {
    let serial = keys.take_as("serial", |t| match t.len() {
        0..=20 if t.is_ascii() => Ok(t.to_owned()),
        _ => Err("a serial number has up to 20 ASCII characters".to_owned()),
    })?;
    let boot_index = keys.take_as("bootindex", |t| values::number_in(t, 0, i32::MAX as u64).map(|n| n as u32))?;
    Ok((serial, boot_index))
}

fn check_boot_indexes(drives: &[Pending]) -> Result<()> {
    let mut seen: Vec<(u32, &str)> = Vec::new();
    for Pending { spec, .. } in drives {
        let Some(index) = spec.boot_index else { continue };
        if let Some((_, other)) = seen.iter().find(|(i, _)| *i == index) {
            bail!("{}: bootindex={index} is taken by {other}; give another number", spec.what);
        }
        seen.push((index, &spec.what));
    }
    Ok(())
}

/// The IDE place that `index`, or `bus` and `unit`, name.
fn ide_place(what: &str, index: Option<u8>, bus: Option<u8>, unit: Option<u8>) -> Result<Option<u8>> {
    let place = match (index, bus, unit) {
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
            bail!("{what}: index= says the same as bus= and unit=; give either")
        }
        (Some(index), None, None) => Some(index),
        (None, None, None) => None,
        (None, bus, unit) => {
            let (bus, unit) = (bus.unwrap_or(0), unit.unwrap_or(0));
            if unit >= IDE_UNITS {
                bail!("{what}: unit={unit} does not exist; an IDE bus has units 0 and 1");
            }
            Some(bus.saturating_mul(IDE_UNITS).saturating_add(unit))
        }
    };
    match place {
        Some(place) if place >= IDE_UNITS * IDE_CHANNELS => {
            bail!("{what}: there are four IDE places, index 0 to 3; choose one of them, or if=virtio")
        }
        place => Ok(place),
    }
}

/// How the image is used. A CD is read-only, and `-snapshot` is for all disks that do not say otherwise.
fn options(keys: &mut KeyValues, value: &str, cd: bool, snapshot: bool) -> Result<DriveOptions> {
    let mut asked = KeyValues::parse("-drive", value, None)?;
    let told = asked.take("snapshot")?.is_some();
    let writable = asked.take_switch("readonly")?.or(asked.take_switch("read-only")?) == Some(false);
    let mut options = DriveOptions::take(keys)?;
    if cd && writable {
        return Err(keys.error("readonly", "off", "a CD cannot be written; leave it out"));
    }
    options.read_only |= cd;
    if !told {
        options.snapshot = snapshot && !options.read_only;
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{parse_line, with};
    use super::*;
    use brolga::block::Format;
    use brolga::block::drive::ErrorAction;

    /// A file that exists and is readable: what it holds is looked at later.
    const FILE: &str = "/proc/self/exe";

    fn me() -> String {
        std::fs::read_link(FILE).unwrap().to_str().unwrap().to_owned()
    }

    fn drives(line: &[&str]) -> Result<Vec<DriveSpec>, String> {
        let (me, mut words) = (me(), Vec::new());
        words.extend(line.iter().map(|w| w.replace("FILE", &me)));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        with(&words).map(|c| c.drives)
    }

    fn places(line: &[&str]) -> Vec<Attachment> {
        drives(line).unwrap().into_iter().map(|d| d.attachment.unwrap()).collect()
    }

    fn ide(channel: u8, unit: u8) -> Attachment {
        Attachment::Ide { channel, unit }
    }

    #[test]
    fn short_options_have_fixed_places() {
        assert_eq!(places(&["-hda", "FILE", "-hdd", "FILE", "-cdrom", "FILE"]), [ide(0, 0), ide(1, 1), ide(1, 0)]);
        assert_eq!(places(&["FILE", "-hdb", "FILE"]), [ide(0, 0), ide(0, 1)]);
        let d = drives(&["-cdrom", "FILE", "-snapshot", "-hda", "FILE"]).unwrap();
        assert!(d[1].cd && d[1].options.read_only && !d[1].options.snapshot && d[0].options.snapshot);
        let error = drives(&["-hdc", "FILE", "-cdrom", "FILE"]).unwrap_err();
        assert!(error.contains("-cdrom") && error.contains("taken by -hdc"), "{error}");
        let line = parse_line(&["-hda", "/no/such"]).unwrap_err();
        assert_eq!(line, "-hda /no/such: no such file; check the path");
    }

    #[test]
    fn drives_find_places() {
        assert_eq!(
            places(&[
                "-drive",
                "file=FILE",
                "-drive",
                "file=FILE,media=cdrom,index=2",
                "-drive",
                "file=FILE,if=virtio"
            ]),
            [ide(0, 0), ide(1, 0), Attachment::VirtioBlk { slot: None, queues: 1 }]
        );
        assert_eq!(places(&["-drive", "file=FILE,bus=1,unit=1", "-drive", "file=FILE"]), [ide(1, 1), ide(0, 0)]);
        let five = ["-drive", "file=FILE"].repeat(5);
        assert!(drives(&five).unwrap_err().contains("all four IDE places"));
        assert!(drives(&["-drive", "file=FILE,index=4"]).unwrap_err().contains("index 0 to 3"));
        assert!(drives(&["-drive", "file=FILE,index=1,bus=0"]).unwrap_err().contains("give either"));
        assert!(drives(&["-drive", "file=FILE,if=virtio,index=1"]).unwrap_err().contains("leave them out"));
    }

    #[test]
    fn drives_and_devices_meet_by_name() {
        let line =
            ["-drive", "if=none,id=a,file=FILE", "-device", "virtio-blk-pci,drive=a,addr=5,serial=S1,bootindex=2"];
        let d = drives(&line).unwrap().remove(0);
        assert_eq!(d.attachment, Some(Attachment::VirtioBlk { slot: Some(5), queues: 1 }));
        assert_eq!((d.serial.as_deref(), d.boot_index), (Some("S1"), Some(2)));
        let line = ["-drive", "if=none,id=a,file=FILE", "-device", "ide-hd,drive=a,bus=ide.1"];
        assert_eq!(places(&line), [ide(1, 0)]);
        assert_eq!(places(&["-device", "ide-cd"]), [ide(0, 0)]);
        let named = drives(&["-device", "ide-cd,id=a", "-device", "ide-cd"]).unwrap();
        assert_eq!((named[0].device.as_deref(), named[1].device.as_deref()), (Some("a"), None));
        let err = |line: &[&str]| drives(line).unwrap_err();
        assert!(err(&["-drive", "if=none,id=a,file=FILE"]).contains("no device has this drive"));
        assert!(err(&["-device", "virtio-blk,drive=a"]).contains("there is no -drive with id=a, and no -blockdev"));
        assert!(err(&["-device", "ide-hd"]).contains("drive= is missing"));
        let twice = ["-drive", "if=none,id=a,file=FILE", "-device", "ide-hd,drive=a", "-device", "virtio-blk,drive=a"];
        assert!(err(&twice).contains("in use already"));
        let same = ["-drive", "id=a,file=FILE", "-drive", "id=a,file=FILE"];
        assert!(err(&same).contains("another drive with id=a"));
        assert!(
            err(&["-device", "ide-cd,bootindex=1", "-device", "ide-cd,bootindex=1"]).contains("bootindex=1 is taken")
        );
    }

    #[test]
    fn keys_are_checked() {
        let d =
            drives(&["-drive", "file=FILE,format=raw,cache=none,discard=unmap,werror=stop,detect-zeroes=on"]).unwrap();
        let o = &d[0].options;
        assert_eq!((o.format, o.cache.direct, o.write_errors), (Some(Format::Raw), true, ErrorAction::Stop));
        let err = |value: &str| drives(&["-drive", value]).unwrap_err();
        assert_eq!(
            err("file=FILE,formta=raw").split(": ").nth(1),
            Some("unknown or unsupported key 'formta'; did you mean format?")
        );
        assert!(err("file=FILE,if=virtoi").contains("did you mean virtio?"));
        assert!(err("file=FILE,if=sd").contains("not supported yet"));
        assert!(err("file=FILE,cache=wroteback").contains("there are writeback"));
        assert!(err("file=FILE,readonly=on").contains("cannot be write-protected"));
        assert!(err("file=FILE,media=cdrom,readonly=off").contains("cannot be written"));
        assert!(err("file=FILE,aio=native").contains("needs cache.direct=on"));
        assert!(err("if=ide").contains("file= is missing"));
        assert!(err("file=FILE,detect-zeroes=unmap").contains("discard=unmap"));
    }
}
