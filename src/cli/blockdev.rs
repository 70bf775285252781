//! `-blockdev`: images in layers with names. A device gets the uppermost one of them; here the layers become what a drive
//! is opened with.

use super::keyval::KeyValues;
use super::{suggest, values};
use anyhow::{Result, anyhow, bail};
use brolga::block::drive::keys::{locking, take_tables, word};
use brolga::block::drive::{Backing, DetectZeroes, DiscardMode, DriveOptions};
use brolga::block::qcow2::TableCaches;
use brolga::block::{Aio, CacheMode, Format, Layer, MAX_CHAIN, OpenOptions};
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

/// Drivers, with what they are.
const DRIVERS: &[(&str, &str)] = &[
    ("file", "a file of the host's"),
    ("host_device", "a disk of the host's"),
    ("raw", "the disk's bytes as they are in file="),
    ("qcow2", "QEMU's format in file="),
    ("vmdk", "VMware's format in file=, for reading"),
    ("vhdx", "Hyper-V's format in file=, for reading"),
];
/// Drivers of QEMU's that are not there.
#[rustfmt::skip]
const ABSENT: &[&str] = &[
    "blkdebug", "blklogwrites", "blkreplay", "blkverify", "bochs", "cloop", "compress", "copy-before-write",
    "copy-on-read", "dmg", "ftp", "ftps", "gluster", "host_cdrom", "http", "https", "io_uring", "iscsi", "luks", "nbd",
    "nfs", "null-aio", "null-co", "nvme", "parallels", "preallocate", "qcow", "qed", "quorum", "rbd", "replication",
    "ssh", "throttle", "vdi", "vpc", "vvfat",
];
/// Longest name of a node.
const LONGEST_NAME: usize = 31;

/// A layer.
#[derive(Debug)]
struct Node {
    name: Option<String>,
    read_only: Option<bool>,
    auto_read_only: bool,
    force_share: bool,
    discard: Option<DiscardMode>,
    detect_zeroes: Option<DetectZeroes>,
    direct: Option<bool>,
    no_flush: Option<bool>,
    kind: Kind,
}

/// What a layer is.
#[derive(Debug)]
enum Kind {
    /// Bytes of the host's.
    Host { path: PathBuf, aio: Aio, lock: bool },
    /// A format, in a layer below.
    Format { format: Format, file: Child, backing: Below, tables: TableCaches },
}

/// The backing file of a layer.
#[derive(Debug)]
enum Below {
    Named,
    None,
    Given(Child),
}

/// A layer below another.
#[derive(Debug)]
enum Child {
    /// With an option of its own.
    Elsewhere(String),
    Here(Box<Node>),
}

/// What a device gets that names a node.
#[derive(Debug)]
pub struct Opened {
    /// `node-name=`.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// How it is opened.
    pub options: DriveOptions,
    /// The node above it, which devices get in its place.
    pub under: Option<String>,
    /// The name of the node below it that is its file.
    pub file_node: Option<String>,
}

/// All that `-blockdev` names.
pub fn collect(values: &[String]) -> Result<Vec<Opened>> {
    let mut nodes = Nodes(Vec::new());
    for value in values {
        let node = node(KeyValues::parse("-blockdev", value, Some("driver"))?)?;
        let Some(name) = node.name.clone() else {
            bail!("-blockdev {value}: node-name= is missing; add node-name=NAME");
        };
        if nodes.0.iter().any(|(other, _)| *other == name) {
            bail!("-blockdev: there are two nodes with node-name={name}; choose another name");
        }
        nodes.0.push((name, node));
    }
    nodes.0.iter().map(|(name, node)| nodes.open(name, node)).collect()
}

/// What `-blockdev help` prints.
pub fn help() -> String {
    DRIVERS.iter().map(|(name, about)| format!("{name:<16} {about}\n")).collect()
}

/// Reads a layer with those inside it.
fn node(mut keys: KeyValues) -> Result<Node> {
    let driver = keys.take("driver")?;
    let name = keys.take_as("node-name", |name| {
        let good = name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
            && name.len() <= LONGEST_NAME;
        let why = || format!("names begin with a letter and have up to {LONGEST_NAME} letters, digits, -, . and _");
        good.then(|| name.to_owned()).ok_or_else(why)
    })?;
    let (read_only, auto) = (keys.take_switch("read-only")?, keys.take_switch("auto-read-only")?);
    let force_share = keys.take_switch("force-share")?.unwrap_or(false);
    let discard = keys.take_as("discard", word(DiscardMode::from_name))?;
    let detect_zeroes = keys.take_as("detect-zeroes", word(DetectZeroes::from_name))?;
    let (direct, no_flush) = (keys.take_switch("cache.direct")?, keys.take_switch("cache.no-flush")?);
    let kind = match driver.as_deref() {
        Some(driver @ ("file" | "host_device")) => host(&mut keys, driver)?,
        Some(driver @ ("raw" | "qcow2" | "vmdk" | "vhdx")) => format(&mut keys, driver)?,
        Some(driver) => {
            let hint = suggest::hint(driver, DRIVERS.iter().map(|(name, _)| *name));
            let cause = if ABSENT.contains(&driver) { "not supported yet" } else { "unknown driver" };
            return Err(keys.error("driver", driver, format_args!("{cause}{hint}")));
        }
        None => return Err(anyhow!("{}: driver= is missing; add driver=file, raw or qcow2", keys.option())),
    };
    keys.finish()?;
    let auto_read_only = auto.unwrap_or(false);
    Ok(Node { name, read_only, auto_read_only, force_share, discard, detect_zeroes, direct, no_flush, kind })
}

fn host(keys: &mut KeyValues, driver: &str) -> Result<Kind> {
    let device = driver == "host_device";
    let Some(filename) = keys.take("filename")? else {
        bail!("{}: filename= is missing; name the image", keys.option());
    };
    let path = PathBuf::from(filename.strip_prefix("file:").unwrap_or(&filename));
    match std::fs::metadata(&path) {
        Ok(found) if found.file_type().is_block_device() != device => {
            let other =
                if device { "no disk of the host's; use driver=file" } else { "a disk; use driver=host_device" };
            return Err(keys.error("filename", &filename, format_args!("it is {other}")));
        }
        Ok(_) if device => {}
        // An image may be yet to be made in it.
        _ => super::boot::there(&format!("{} filename={filename}", keys.option()), &path)?,
    }
    let aio = keys.take_as("aio", word(Aio::from_name))?.unwrap_or_default();
    let lock = keys.take_as("locking", locking)?.unwrap_or(true);
    Ok(Kind::Host { path, aio, lock })
}

fn format(keys: &mut KeyValues, driver: &str) -> Result<Kind> {
    let format = Format::from_name(driver)?;
    let Some(file) = child(keys, "file")? else {
        bail!("{}: file= is missing; name the node below, or write file.driver=file,file.filename=PATH", keys.option());
    };
    let (mut backing, mut tables) = (Below::Named, TableCaches::default());
    if format == Format::Qcow2 {
        tables = take_tables(keys)?;
        // They say how the image forgets what the guest discards, which is done as they have it by default.
        keys.take_fixed("pass-discard-request", true, "discards go on to the file")?;
        keys.take_fixed("lazy-refcounts", false, "reference counts are kept up to date")?;
        backing = match child(keys, "backing")? {
            None => Below::Named,
            Some(Child::Elsewhere(name)) if name.is_empty() => Below::None,
            Some(below) => Below::Given(below),
        };
    }
    Ok(Kind::Format { format, file, backing, tables })
}

/// The layer that `key` names, or that the keys under it make.
fn child(keys: &mut KeyValues, key: &'static str) -> Result<Option<Child>> {
    let named = keys.take(key)?;
    let inner = keys.take_inner(key);
    match (named, inner.is_empty()) {
        (Some(_), false) => bail!("{}: {key}= names a node, {key}.driver= makes one; give either", keys.option()),
        (Some(name), true) => Ok(Some(Child::Elsewhere(name))),
        (None, false) => Ok(Some(Child::Here(Box::new(node(inner)?)))),
        (None, true) => Ok(None),
    }
}

/// The host's end of some layers.
struct Host {
    path: PathBuf,
    format: Format,
    aio: Aio,
    lock: bool,
    cache: CacheMode,
    /// Discards reach the file.
    discard: bool,
    /// Only reading is allowed.
    read_only: bool,
}

struct Nodes(Vec<(String, Node)>);

impl Nodes {
    fn find(&self, name: &str) -> Result<&Node> {
        let names = || self.0.iter().map(|(name, _)| name.as_str());
        let found = self.0.iter().find(|(known, _)| known == name);
        found
            .map(|(_, node)| node)
            .ok_or_else(|| anyhow!("-blockdev: there is no node with node-name={name}{}", suggest::hint(name, names())))
    }

    /// The node that has `name` as its file or backing file.
    fn above(&self, name: &str) -> Option<String> {
        let uses = |child: &Child| matches!(child, Child::Elsewhere(used) if used == name);
        let above = self.0.iter().find(|(_, node)| match &node.kind {
            Kind::Host { .. } => false,
            Kind::Format { file, backing, .. } => uses(file) || matches!(backing, Below::Given(child) if uses(child)),
        });
        above.map(|(name, _)| name.clone())
    }

    fn open(&self, name: &str, node: &Node) -> Result<Opened> {
        let host = self.host(node)?;
        let wants_to_write = !node.read_only.unwrap_or(false);
        let may_write = || nix::unistd::access(&host.path, nix::unistd::AccessFlags::W_OK).is_ok();
        if wants_to_write && host.read_only {
            bail!("-blockdev node-name={name}: what is below it is read-only; add read-only=on here too");
        }
        let read_only = !wants_to_write || node.auto_read_only && !may_write();
        if node.force_share && !read_only {
            bail!("-blockdev node-name={name},force-share=on: others may write only if it is read-only=on");
        }
        let discard = match host.discard && node.discard == Some(DiscardMode::Unmap) {
            true => DiscardMode::Unmap,
            false => DiscardMode::Ignore,
        };
        let (backing, tables) = match &node.kind {
            Kind::Host { .. } => (Backing::Named, TableCaches::default()),
            Kind::Format { backing, tables, .. } => (self.backing(backing, 0)?, *tables),
        };
        let options = DriveOptions {
            format: Some(host.format),
            read_only,
            cache: host.cache,
            discard,
            detect_zeroes: node.detect_zeroes.unwrap_or_default(),
            aio: host.aio,
            tables,
            lock: host.lock && !node.force_share,
            backing,
            ..DriveOptions::default()
        };
        options.check().map_err(|error| anyhow!("-blockdev node-name={name}: {error}"))?;
        let file_node = match &node.kind {
            Kind::Format { file: Child::Elsewhere(name), .. } => Some(name.clone()),
            Kind::Format { file: Child::Here(file), .. } => file.name.clone(),
            Kind::Host { .. } => None,
        };
        Ok(Opened { name: name.to_owned(), path: host.path, options, under: self.above(name), file_node })
    }

    /// What a layer stands on. Layers inside others have some settings from these, as in QEMU.
    fn host(&self, node: &Node) -> Result<Host> {
        let on = |switch: Option<bool>| switch.unwrap_or(false);
        match &node.kind {
            Kind::Host { path, aio, lock } => Ok(Host {
                path: path.clone(),
                format: Format::Raw,
                aio: *aio,
                lock: *lock && !node.force_share,
                cache: CacheMode { writeback: true, direct: on(node.direct), no_flush: on(node.no_flush) },
                discard: node.discard == Some(DiscardMode::Unmap),
                read_only: on(node.read_only) && !node.auto_read_only,
            }),
            Kind::Format { format, file, .. } => {
                let (below, inside) = match file {
                    Child::Elsewhere(name) => (self.find(name)?, false),
                    Child::Here(below) => (&**below, true),
                };
                if !matches!(below.kind, Kind::Host { .. }) {
                    bail!("-blockdev: file= names a layer with a format; it takes driver=file and driver=host_device");
                }
                if below.detect_zeroes.is_some_and(|detect| detect != DetectZeroes::Off) {
                    bail!("-blockdev: detect-zeroes= works in the upper layer only; give it there");
                }
                let mut host = self.host(below)?;
                let passed = |own: Option<bool>, above: Option<bool>| on(if inside { own.or(above) } else { own });
                host.cache.direct = passed(below.direct, node.direct);
                host.cache.no_flush = passed(below.no_flush, node.no_flush);
                // A layer inside gives back what it is told to; qcow2 frees clusters whatever the file does.
                host.discard |= inside && below.discard.is_none() || *format == Format::Qcow2;
                host.format = *format;
                Ok(host)
            }
        }
    }

    fn backing(&self, below: &Below, depth: u32) -> Result<Backing> {
        let child = match below {
            Below::Named => return Ok(Backing::Named),
            Below::None => return Ok(Backing::None),
            Below::Given(child) => child,
        };
        if depth >= MAX_CHAIN {
            bail!("-blockdev: more than {MAX_CHAIN} backing files; a node is below itself");
        }
        let node = match child {
            Child::Elsewhere(name) => self.find(name)?,
            Child::Here(node) => node,
        };
        let Host { path, format, lock, cache, .. } = self.host(node)?;
        let (backing, tables) = match &node.kind {
            Kind::Host { .. } => (Backing::Named, TableCaches::default()),
            Kind::Format { backing, tables, .. } => (self.backing(backing, depth + 1)?, *tables),
        };
        let options = OpenOptions {
            format: Some(format),
            read_only: true,
            lock: lock && !node.force_share,
            cache,
            tables,
            backing: backing != Backing::None,
            over: if let Backing::Given(layer) = backing { Some(layer) } else { None },
            ..OpenOptions::default()
        };
        Ok(Backing::Given(Box::new(Layer { path, options })))
    }
}

/// `write-cache=` of a disk's device: what the guest sees. `None`: as the drive has it.
pub fn write_cache(keys: &mut KeyValues) -> Result<Option<bool>> {
    keys.take_as("write-cache", |text| match text {
        "auto" => Ok(None),
        _ => values::switch(text).map(Some),
    })
    .map(Option::flatten)
}

#[cfg(test)]
mod tests {
    use super::super::tests::with;
    use super::*;

    /// Two files, one of them write-protected by its node only.
    struct Files(PathBuf);

    impl Files {
        fn new(test: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("brolga-blockdev-{test}-{}", std::process::id()));
            std::fs::create_dir_all(&folder).unwrap();
            for name in ["a", "b"] {
                std::fs::write(folder.join(name), [1; 512]).unwrap();
            }
            Self(folder)
        }

        /// The drives of a line in which `DIR` is the folder.
        fn drives(&self, line: &[&str]) -> Result<Vec<(PathBuf, DriveOptions)>, String> {
            let words: Vec<String> = line.iter().map(|word| word.replace("DIR", self.0.to_str().unwrap())).collect();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            with(&words).map(|c| c.drives.into_iter().map(|d| (d.file.unwrap(), d.options)).collect())
        }

        fn one(&self, blockdevs: &[&str], device: &str) -> Result<DriveOptions, String> {
            let mut line: Vec<&str> = blockdevs.iter().flat_map(|value| ["-blockdev", value]).collect();
            line.extend(["-device", device]);
            self.drives(&line).map(|mut drives| drives.remove(0).1)
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            // What is left behind is in the temporary folder.
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn layers_as_libvirt_writes_them() {
        let files = Files::new("libvirt");
        let line = [
            "-blockdev",
            r#"{"driver":"file","filename":"DIR/b","node-name":"libvirt-2-storage","auto-read-only":true,"discard":"unmap"}"#,
            "-blockdev",
            r#"{"node-name":"libvirt-2-format","read-only":true,"driver":"raw","file":"libvirt-2-storage"}"#,
            "-blockdev",
            r#"{"driver":"file","filename":"DIR/a","node-name":"libvirt-1-storage","cache":{"direct":true,"no-flush":false},"auto-read-only":true,"discard":"unmap"}"#,
            "-blockdev",
            r#"{"node-name":"libvirt-1-format","read-only":false,"discard":"unmap","detect-zeroes":"unmap","cache":{"direct":true,"no-flush":false},"driver":"qcow2","file":"libvirt-1-storage","backing":"libvirt-2-format"}"#,
            "-device",
            r#"{"driver":"virtio-blk-pci","addr":"0x4","drive":"libvirt-1-format","id":"virtio-disk0","bootindex":1,"write-cache":"on"}"#,
        ];
        let (path, options) = files.drives(&line).unwrap().remove(0);
        assert_eq!((path, options.format), (files.0.join("a"), Some(Format::Qcow2)));
        assert!(!options.read_only && options.cache.direct && options.cache.writeback && options.lock);
        assert_eq!((options.discard, options.detect_zeroes), (DiscardMode::Unmap, DetectZeroes::Unmap));
        let Backing::Given(layer) = options.backing else { panic!("{:?}", options.backing) };
        assert_eq!((&layer.path, layer.options.format), (&files.0.join("b"), Some(Format::Raw)));
        assert!(layer.options.read_only && !layer.options.cache.direct);
    }

    #[test]
    fn layers_inside_layers() {
        let files = Files::new("inside");
        let device = "virtio-blk-pci,drive=n";
        let nested = "driver=qcow2,node-name=n,file.driver=file,file.filename=DIR/a,discard=unmap,cache.direct=on,file.aio=native,backing=";
        let options = files.one(&[nested], device).unwrap();
        assert_eq!((options.discard, options.aio, options.backing), (DiscardMode::Unmap, Aio::Native, Backing::None));
        assert!(options.cache.direct && options.lock, "the layer inside has it from the one around it");
        let over = "qcow2,node-name=n,file.driver=file,file.filename=DIR/a,backing.driver=qcow2,backing.file.driver=file,\
                    backing.file.filename=DIR/b,backing.file.locking=off,backing.backing=,l2-cache-size=1M";
        let options = files.one(&[over], device).unwrap();
        assert_eq!(options.tables.l2, Some(1 << 20));
        let Backing::Given(layer) = options.backing else { panic!("{:?}", options.backing) };
        assert!(!layer.options.lock && !layer.options.backing && layer.options.over.is_none());
        let raw = ["file,node-name=f,filename=DIR/a,discard=ignore", "raw,node-name=n,file=f,discard=unmap"];
        assert_eq!(files.one(&raw, device).unwrap().discard, DiscardMode::Ignore, "the file is not to change");
        let options = files.one(&["file,node-name=n,filename=DIR/a,read-only=on"], device).unwrap();
        assert_eq!((options.format, options.read_only), (Some(Format::Raw), true));
        let shared = "file,node-name=n,filename=DIR/a,read-only=on,force-share=on";
        assert!(!files.one(&[shared], "virtio-blk-pci,drive=n,write-cache=off").unwrap().lock);
        let mixed = ["-drive", "driver=raw,file.driver=file,file.filename=DIR/a,if=virtio"];
        assert_eq!(files.drives(&mixed).unwrap()[0].1.format, Some(Format::Raw));
    }

    #[test]
    fn refusals() {
        let files = Files::new("refusals");
        let told = |blockdevs: &[&str]| files.one(blockdevs, "virtio-blk-pci,drive=n").unwrap_err();
        let file = "file,node-name=f,filename=DIR/a";
        assert!(told(&["file,filename=DIR/a"]).contains("node-name= is missing"));
        assert!(told(&["nbd,node-name=n"]).contains("driver=nbd: not supported yet"));
        assert!(told(&["qcow,node-name=n"]).contains("did you mean qcow2?"));
        assert!(told(&["node-name=n"]).contains("driver= is missing"));
        assert!(told(&["raw,node-name=n"]).contains("file= is missing"));
        assert!(told(&["file,node-name=n"]).contains("filename= is missing"));
        assert!(told(&["file,node-name=1,filename=DIR/a"]).contains("begin with a letter"));
        assert!(told(&["file,node-name=n,filename=DIR/c"]).contains("no such file"));
        assert!(told(&["file,node-name=n,filename=/dev/null"]).contains("not a regular file"));
        assert!(told(&["host_device,node-name=n,filename=DIR/a"]).contains("use driver=file"));
        assert!(told(&["file,node-name=n,fielname=DIR/a,filename=DIR/a"]).contains("did you mean filename?"));
        assert!(told(&["raw,node-name=n,file=g", file]).contains("no node with node-name=g"));
        assert!(told(&["raw,node-name=n,file=f,file.driver=file", file]).contains("give either"));
        assert!(told(&["raw,node-name=n,file.driver=nbd"]).contains("file driver=nbd"));
        assert!(told(&["raw,node-name=n,file=f,backing=f", file]).contains("'backing'"));
        assert!(told(&["raw,node-name=n,file=m", "raw,node-name=m,file=f", file]).contains("takes driver=file"));
        assert!(told(&[file, file]).contains("two nodes"));
        assert!(told(&["raw,node-name=n,file=f", "file,node-name=f,filename=DIR/a,read-only=on"]).contains("here too"));
        assert!(told(&["file,node-name=n,filename=DIR/a,force-share=on"]).contains("read-only=on"));
        assert!(told(&["file,node-name=n,filename=DIR/a,aio=native"]).contains("cache.direct=on"));
        assert!(told(&["file,node-name=n,filename=DIR/a,detect-zeroes=unmap"]).contains("discard=unmap"));
        let round = ["qcow2,node-name=n,file=f,backing=m", "qcow2,node-name=m,file=f,backing=n", file];
        assert!(told(&round).contains("below itself"));
        let line = ["-blockdev", file, "-blockdev", "raw,node-name=n,file=f", "-device", "virtio-blk-pci,drive=f"];
        assert!(files.drives(&line).unwrap_err().contains("give the device drive=n"));
        assert!(files.drives(&["-blockdev", file]).unwrap_err().contains("no device has this drive"));
        assert!(files.drives(&["-blockdev", file, "-snapshot"]).unwrap_err().starts_with("-snapshot: "));
        let both = ["-drive", "if=none,id=f,file=DIR/b", "-blockdev", file];
        assert!(files.drives(&both).unwrap_err().contains("a -drive with id=f"));
    }
}
