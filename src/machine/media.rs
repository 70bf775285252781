//! Drives as the user sees them: what is in them, and how that changes while the guest runs.

use super::disks::Disks;
use crate::cli::config::{Attachment, DriveSpec};
use crate::monitor::MediumChange;
use brolga::block::Format;
use brolga_devices::services::{Disk, MediumDrive};
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// A drive in its place.
pub struct Plugged {
    /// What was asked for.
    pub spec: DriveSpec,
    /// The image at start.
    pub disk: Option<Arc<dyn Disk>>,
    /// The drive, if its medium can be changed.
    pub drive: Option<Arc<dyn MediumDrive>>,
}

struct Slot {
    name: String,
    spec: DriveSpec,
    drive: Option<Arc<dyn MediumDrive>>,
    medium: Mutex<Option<Arc<dyn Disk>>>,
}

/// All drives of a machine. Locks: a slot's medium is held while it changes; drives and disks are called with it held.
pub struct Media {
    slots: Vec<Slot>,
    disks: Arc<Disks>,
}

/// What a monitor calls a drive: its `id=`, or what QEMU would call it.
fn name(spec: &DriveSpec) -> String {
    if let Some(id) = &spec.id {
        return id.clone();
    }
    let kind = if spec.cd { "cd" } else { "hd" };
    match spec.attachment {
        Some(Attachment::Ide { channel, unit }) => format!("ide{channel}-{kind}{unit}"),
        Some(Attachment::Flash { unit }) => format!("pflash{unit}"),
        Some(Attachment::Floppy { unit, .. }) => format!("floppy{unit}"),
        Some(Attachment::Scsi { host, target, .. }) => format!("scsi{host}-{kind}{target}"),
        Some(Attachment::VirtioBlk { .. }) => "virtio".to_owned(),
        None => "none".to_owned(),
    }
}

impl Media {
    /// The drives that were plugged in, with images from `disks`.
    pub fn new(plugged: Vec<Plugged>, disks: Arc<Disks>) -> Self {
        let mut slots: Vec<Slot> = Vec::new();
        for Plugged { spec, disk, drive } in plugged {
            let mut name = name(&spec);
            // Virtio disks without an id are counted.
            if slots.iter().any(|slot| slot.name == name) || name == "virtio" {
                let count = slots.iter().filter(|slot| slot.name.starts_with(&name)).count();
                name = format!("{name}{count}");
            }
            slots.push(Slot { name, spec, drive, medium: Mutex::new(disk) });
        }
        Self { slots, disks }
    }

    /// Lines of `info block`.
    pub fn show(&self) -> String {
        let mut text = String::new();
        for slot in &self.slots {
            let medium = slot.medium.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let medium = medium.and_then(|disk| self.disks.describe(&disk));
            let _ = writeln!(text, "{}: {}", slot.name, medium.as_deref().unwrap_or("[not inserted]"));
            let _ = writeln!(text, "    Attached to:      {}", slot.spec.what);
            if let Some(drive) = &slot.drive {
                let locked = if drive.locked() { "" } else { "not " };
                let tray = if drive.tray_open() { "open" } else { "closed" };
                let _ = writeln!(text, "    Removable device: {locked}locked, tray {tray}");
            }
        }
        text
    }

    /// The drive called `name`, if its medium can be changed.
    fn find(&self, name: &str) -> Result<(&Slot, &Arc<dyn MediumDrive>), String> {
        let removable = || self.slots.iter().filter_map(|slot| Some((slot, slot.drive.as_ref()?)));
        if let Some(found) = removable().find(|(slot, _)| slot.name == name) {
            return Ok(found);
        }
        let names: Vec<&str> = removable().map(|(slot, _)| slot.name.as_str()).collect();
        let there = match names.as_slice() {
            [] => "the machine has no drive with a removable medium".to_owned(),
            names => format!("there are {}", names.join(", ")),
        };
        match self.slots.iter().any(|slot| slot.name == name) {
            true => Err(format!("the medium of {name} cannot be changed; {there}")),
            false => Err(format!("there is no drive {name}; {there}")),
        }
    }

    /// Takes a medium out, or puts another in.
    pub fn change(&self, change: &MediumChange) -> Result<(), String> {
        let (name, force) = match change {
            MediumChange::Eject { drive, force } => (drive, *force),
            MediumChange::Insert { drive, .. } => (drive, false),
        };
        let (slot, drive) = self.find(name)?;
        if drive.locked() && !drive.tray_open() && !force {
            drive.ask();
            return Err(format!(
                "the guest has locked the medium of {name} and was asked to let it go; try again, or use eject -f {name}"
            ));
        }
        let new = match change {
            MediumChange::Eject { .. } => None,
            MediumChange::Insert { file, format, read_only, .. } => Some(self.open(slot, file, format, *read_only)?),
        };
        let mut medium = slot.medium.lock().unwrap_or_else(PoisonError::into_inner);
        drive.change(new.clone());
        let old = std::mem::replace(&mut *medium, new);
        old.map_or(Ok(()), |old| self.disks.remove(&old))
    }

    fn open(
        &self,
        slot: &Slot,
        file: &str,
        format: &Option<String>,
        read_only: Option<bool>,
    ) -> Result<Arc<dyn Disk>, String> {
        let mut spec = slot.spec.clone();
        spec.what = format!("{}: {file}", slot.name);
        spec.file = Some(PathBuf::from(file));
        let format = format.as_deref().map(Format::from_name).transpose();
        spec.options.format = format.map_err(|e| e.to_string())?;
        if let Some(read_only) = read_only.filter(|_| !spec.cd) {
            spec.options.read_only = read_only;
        }
        match self.disks.open(&spec) {
            Ok(Some(disk)) => Ok(disk),
            Ok(None) => Err("name a file".to_owned()),
            Err(error) => Err(format!("{error:#}")),
        }
    }
}
