//! `-virtfs`, `-fsdev` and `-device virtio-9p-pci`: folders that the guest mounts.

use super::config::sharing::{Model, ShareSpec};
use super::devices::Devices;
use super::keyval::KeyValues;
use super::options::Arguments;
use super::peripherals::virtio_slot;
use super::{os_reason, suggest};
use anyhow::{Result, anyhow, bail};
use brolga_devices::virtio::ninep::LONGEST_TAG;
use std::path::{Path, PathBuf};

/// Models by their names.
const MODELS: &[(&str, Model)] = &[
    ("passthrough", Model::Passthrough),
    ("none", Model::None),
    ("mapped-xattr", Model::MappedXattr),
    ("mapped", Model::MappedXattr),
    ("mapped-file", Model::MappedFile),
];
/// Permissions of files and folders on the host where owners are noted aside.
const FILE_MODE: u32 = 0o600;
const FOLDER_MODE: u32 = 0o700;

/// Keys of `-device virtio-9p-pci`.
pub const KEYS: &[(&str, &str)] = &[
    ("fsdev", "the folder: the id of an -fsdev"),
    ("mount_tag", "by which the guest mounts it: mount -t 9p -o trans=virtio TAG DIR"),
    super::peripherals::ADDR,
];

/// Folders while they are collected.
#[derive(Clone, Debug, Default)]
pub struct Shares {
    /// `-fsdev`, by `id=`, and whether a device has it.
    named: Vec<(String, ShareSpec, bool)>,
}

impl Shares {
    /// Reads all of `-fsdev`.
    pub fn collect(arguments: &Arguments) -> Result<Self> {
        let mut this = Self::default();
        for value in arguments.all("fsdev") {
            let what = format!("-fsdev {value}");
            let mut keys = KeyValues::parse("-fsdev", value, Some("fsdriver"))?;
            let id = keys.take("id")?;
            let spec = folder(&what, &mut keys)?;
            keys.finish()?;
            let Some(id) = id else { bail!("{what}: id= is missing; use -fsdev local,id=NAME,...") };
            if this.named.iter().any(|(other, ..)| *other == id) {
                bail!("{what}: there is another -fsdev with id={id}; choose another name");
            }
            this.named.push((id, spec, false));
        }
        Ok(this)
    }
}

impl Shares {
    /// A device is gone that had the folder `path`.
    pub fn release(&mut self, path: &Path) {
        self.named.iter_mut().filter(|(_, spec, _)| spec.path == path).for_each(|(.., used)| *used = false);
    }
}

/// All of `-virtfs`: folder and device in one.
pub fn virtfs(arguments: &Arguments) -> Result<Vec<ShareSpec>> {
    let one = |value: &String| {
        let what = format!("-virtfs {value}");
        let mut keys = KeyValues::parse("-virtfs", value, Some("fsdriver"))?;
        // A name for clients; nothing refers to it.
        keys.take("id")?;
        let tag = tag(&what, &mut keys)?;
        let spec = folder(&what, &mut keys)?;
        keys.finish()?;
        Ok(ShareSpec { tag, ..spec })
    };
    arguments.all("virtfs").iter().map(one).collect()
}

/// Tags tell folders apart.
pub fn check_tags(shares: &[ShareSpec]) -> Result<()> {
    for (i, share) in shares.iter().enumerate() {
        // Those without a tag were taken away.
        if !share.tag.is_empty() && shares.iter().take(i).any(|other| other.tag == share.tag) {
            bail!("{}: another folder has mount_tag={}; choose another tag", share.what, share.tag);
        }
    }
    Ok(())
}

/// `-device virtio-9p-pci`.
pub fn device(devices: &mut Devices, mut keys: KeyValues, value: &str) -> Result<()> {
    let what = format!("-device {value}");
    let tag = tag(&what, &mut keys)?;
    let Some(name) = keys.take("fsdev")? else {
        bail!("{what}: fsdev= is missing; add -fsdev local,id=NAME,path=DIR,... and fsdev=NAME");
    };
    let place = virtio_slot(&mut keys, value)?;
    keys.finish()?;
    let shares = &mut devices.peripherals.shares;
    let names: Vec<String> = shares.named.iter().map(|(id, ..)| id.clone()).collect();
    let Some((_, spec, used)) = shares.named.iter_mut().find(|(id, ..)| *id == name) else {
        bail!("{what}: there is no -fsdev with id={name}{}", suggest::hint(&name, names.iter().map(String::as_str)));
    };
    if std::mem::replace(used, true) {
        bail!("{what}: fsdev={name} has a device already; give each device an -fsdev of its own");
    }
    let spec = ShareSpec { what, tag, place, ..spec.clone() };
    devices.peripherals.wanted.shares.push(spec);
    Ok(())
}

fn tag(what: &str, keys: &mut KeyValues) -> Result<String> {
    match keys.take("mount_tag")? {
        Some(tag) if (1..=LONGEST_TAG).contains(&tag.len()) => Ok(tag),
        Some(_) => bail!("{what}: mount_tag= has 1 to {LONGEST_TAG} bytes; choose another one"),
        None => bail!("{what}: mount_tag= is missing; the guest mounts the folder by it"),
    }
}

/// What `-fsdev` and `-virtfs` have in common.
fn folder(what: &str, keys: &mut KeyValues) -> Result<ShareSpec> {
    match keys.take("fsdriver")?.as_deref() {
        Some("local") => {}
        Some(other @ ("synth" | "proxy")) => bail!("{what}: {other} is not supported; use local"),
        other => bail!("{what}: unknown kind '{}'; use local,path=DIR,...", other.unwrap_or("")),
    }
    let path = keys.take("path")?.ok_or_else(|| anyhow!("{what}: path= is missing; name the folder to share"))?;
    match std::fs::metadata(&path) {
        Ok(data) if data.is_dir() => {}
        Ok(_) => bail!("{what}: {path} is no folder; name one"),
        Err(e) => bail!("{what}: {path}: {}; name a folder", os_reason(&e)),
    }
    let read_only = keys.take_switch("readonly")?.unwrap_or(false);
    let model = keys.take_as("security_model", |text| match MODELS.iter().find(|(name, _)| *name == text) {
        Some((_, model)) => Ok(*model),
        None => {
            let hint = suggest::hint(text, MODELS.iter().map(|(name, _)| *name));
            Err(format!("'{text}' is no security model{hint}"))
        }
    })?;
    let model = match model {
        Some(model) => model,
        None if read_only => Model::None,
        None => bail!(
            "{what}: security_model= is missing; use mapped-xattr (owners are noted aside), passthrough (as root) or none"
        ),
    };
    let mode = |text: &str| match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err(format!("'{text}' are no permissions: write them in octal, like 0644")),
    };
    let (file_mode, folder_mode) = (keys.take_as("fmode", mode)?, keys.take_as("dmode", mode)?);
    if (file_mode.is_some() || folder_mode.is_some()) && !matches!(model, Model::MappedXattr | Model::MappedFile) {
        bail!("{what}: fmode= and dmode= are for security_model=mapped-xattr and mapped-file; leave them out");
    }
    let write_through = keys.take_as("writeout", |text| match text {
        "immediate" => Ok(true),
        _ => Err("the only choice is immediate; leave it out otherwise".to_owned()),
    })?;
    keys.take_as("multidevs", |text| match text {
        // Files on several file systems have different numbers in any case.
        "remap" | "warn" => Ok(()),
        "forbid" => Err("file systems mounted below are shared too; use multidevs=remap".to_owned()),
        _ => Err(format!("'{text}' is none of remap, warn and forbid")),
    })?;
    Ok(ShareSpec {
        what: what.to_owned(),
        tag: String::new(),
        path: PathBuf::from(path),
        model,
        read_only,
        file_mode: file_mode.unwrap_or(FILE_MODE),
        folder_mode: folder_mode.unwrap_or(FOLDER_MODE),
        write_through: write_through.unwrap_or(false),
        place: None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::with;
    use super::*;

    fn shares(line: &[&str]) -> Result<Vec<ShareSpec>, String> {
        with(line).map(|c| c.peripherals.shares)
    }

    #[test]
    fn folders_and_devices() {
        let s = shares(&["-virtfs", "local,path=/tmp,mount_tag=host0,security_model=mapped-xattr,id=fs0"]).unwrap();
        assert_eq!((s[0].tag.as_str(), s[0].model, s[0].read_only), ("host0", Model::MappedXattr, false));
        assert_eq!((s[0].file_mode, s[0].folder_mode), (0o600, 0o700));
        let line = [
            "-device",
            "virtio-9p-pci,fsdev=f,mount_tag=t,addr=8",
            "-fsdev",
            "local,id=f,path=/tmp,security_model=mapped-file,fmode=0644,dmode=755,writeout=immediate",
        ];
        let s = shares(&line).unwrap();
        assert_eq!((s[0].file_mode, s[0].folder_mode, s[0].write_through), (0o644, 0o755, true));
        assert_eq!(s[0].place, Some((8, 0)));
        assert!(shares(&["-virtfs", "local,path=/tmp,mount_tag=t,readonly=on"]).unwrap()[0].read_only);
    }

    #[test]
    fn what_is_missing_or_wrong() {
        let err = |line: &[&str]| shares(line).unwrap_err();
        let virtfs = |value: &str| err(&["-virtfs", value]);
        assert!(virtfs("local,path=/tmp,mount_tag=t").contains("security_model= is missing"));
        assert!(virtfs("local,path=/tmp,security_model=none").contains("mount_tag= is missing"));
        assert!(virtfs("local,mount_tag=t,security_model=none").contains("path= is missing"));
        assert!(virtfs("local,path=/does/not/exist,mount_tag=t,security_model=none").contains("name a folder"));
        assert!(
            virtfs("local,path=/tmp,mount_tag=t,security_model=maped-xattr").contains("did you mean mapped-xattr?")
        );
        assert!(virtfs("synth,mount_tag=t").contains("use local"));
        assert!(virtfs("local,path=/tmp,mount_tag=t,security_model=none,fmode=0644").contains("fmode="));
        assert!(
            virtfs(&format!("local,path=/tmp,mount_tag={},security_model=none", "x".repeat(32))).contains("1 to 31")
        );
        assert!(err(&["-device", "virtio-9p-pci,fsdev=f,mount_tag=t"]).contains("there is no -fsdev with id=f"));
        let same = "local,path=/tmp,mount_tag=t,security_model=none";
        assert!(err(&["-virtfs", same, "-virtfs", same]).contains("another folder has mount_tag=t"));
    }
}
