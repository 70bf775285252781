//! Drives as the user sees them: what is in them, and how that changes while the guest runs.

use super::Machine;
use super::disks::Disks;
use crate::cli::config::{Attachment, Config, DeviceSpec, DriveSpec};
use crate::monitor::{DriveInfo, Events, MediumChange};
use brolga::block::Format;
use brolga_devices::services::{Disk, MediumDrive};
use serde_json::json;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

/// How often trays are looked at that the guest moves.
const LOOK: Duration = Duration::from_millis(250);

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
    /// The device in the tree of objects.
    path: String,
    /// Where the tray was when it was last told.
    tray_open: AtomicBool,
    spec: DriveSpec,
    drive: Option<Arc<dyn MediumDrive>>,
    medium: Mutex<Option<Arc<dyn Disk>>>,
    /// The medium is a node, which is there when it has been taken out.
    node: Mutex<Option<DriveSpec>>,
}

/// All drives of a machine. Locks: a slot's medium is held while it changes; drives and disks are called with it held.
pub struct Media {
    slots: RwLock<Vec<Arc<Slot>>>,
    disks: Arc<Disks>,
    events: Arc<Events>,
}

/// What a monitor calls a drive: its `id=`, that of its device, or what QEMU would call it.
fn name(spec: &DriveSpec) -> String {
    if let Some(id) = spec.id.as_ref().or(spec.device.as_ref()) {
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

/// The model of a drive's device.
fn model(spec: &DriveSpec) -> &'static str {
    match (spec.attachment, spec.cd) {
        (Some(Attachment::Ide { .. }), true) => "ide-cd",
        (Some(Attachment::Ide { .. }), false) => "ide-hd",
        (Some(Attachment::Scsi { .. }), true) => "scsi-cd",
        (Some(Attachment::Scsi { .. }), false) => "scsi-hd",
        (Some(Attachment::VirtioBlk { .. }), _) => "virtio-blk-pci",
        (Some(Attachment::Floppy { .. }), _) => "floppy",
        (Some(Attachment::Flash { .. }), _) => "cfi.pflash01",
        (None, _) => "drive",
    }
}

/// The device that a drive of that id was given to, in the tree of objects.
fn path(id: Option<&str>, devices: &[DeviceSpec]) -> Option<String> {
    let uses = |device: &DeviceSpec| device.keys.iter().any(|(key, text)| key == "drive" && Some(text.as_str()) == id);
    let at = devices.iter().position(uses)?;
    let device = &devices[at];
    let place = match &device.id {
        Some(id) => format!("/machine/peripheral/{id}"),
        None => {
            let number = devices[..at].iter().filter(|other| other.id.is_none()).count();
            format!("/machine/peripheral-anon/device[{number}]")
        }
    };
    Some(if device.model.starts_with("virtio-blk") { place + "/virtio-backend" } else { place })
}

impl Media {
    /// The drives that were plugged in, with images from `disks`.
    pub fn new(plugged: Vec<Plugged>, disks: Arc<Disks>, config: &Config, events: Arc<Events>) -> Self {
        let this = Self { slots: RwLock::default(), disks, events };
        plugged.into_iter().for_each(|plugged| this.add(plugged, &config.devices));
        this
    }

    /// One more, which may be that of one of `devices`.
    pub fn add(&self, Plugged { spec, disk, drive }: Plugged, devices: &[DeviceSpec]) {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let mut name = name(&spec);
        // Virtio disks without an id are counted.
        if slots.iter().any(|slot| slot.name == name) || name == "virtio" {
            let count = slots.iter().filter(|slot| slot.name.starts_with(&name)).count();
            name = format!("{name}{count}");
        }
        let given = path(spec.id.as_deref(), devices);
        let path = given.unwrap_or_else(|| format!("/machine/unattached/{name}"));
        if let Some(disk) = &disk {
            self.disks.label(disk, &name, &path);
        }
        let node = Mutex::new(spec.node.is_some().then(|| spec.clone()));
        let (tray_open, medium) = (AtomicBool::new(false), Mutex::new(disk));
        slots.push(Arc::new(Slot { name, path, tray_open, spec, drive, medium, node }));
    }

    /// A drive's device is gone: its image is closed, or goes back to those that no device has.
    pub fn remove(&self, spec: &DriveSpec) -> Result<(), String> {
        let slot = {
            let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
            let at = slots.iter().position(|slot| slot.spec == *spec);
            at.map(|at| slots.remove(at))
        };
        let Some(slot) = slot else { return Ok(()) };
        let medium = slot.medium.lock().unwrap_or_else(PoisonError::into_inner).take();
        let node = slot.node.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (medium, node) {
            // Nodes stay.
            (Some(disk), Some(spec)) => {
                self.disks.put_back(&spec, disk);
                Ok(())
            }
            (medium, _) => medium.map_or(Ok(()), |disk| self.disks.remove(&disk)),
        }
    }

    /// The image that users call `name`: by its drive, its device or its node.
    pub fn image(&self, name: &str) -> Option<Arc<dyn Disk>> {
        let node = |disk: &Arc<dyn Disk>| self.disks.describe(disk).is_some_and(|medium| medium.node == name);
        let in_slot = |slot: Arc<Slot>| {
            let medium = slot.medium.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
            let called = slot.name == name || slot.spec.device.as_deref() == Some(name) || slot.path == name;
            (called || node(&medium)).then_some(medium)
        };
        let free = || self.disks.shelved().into_iter();
        let on_shelf =
            || free().find(|(spec, disk)| spec.id.as_deref() == Some(name) || node(disk)).map(|(_, disk)| disk);
        self.slots().into_iter().find_map(in_slot).or_else(on_shelf)
    }

    fn slots(&self) -> Vec<Arc<Slot>> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The drives as monitors show them.
    pub fn list(&self) -> Vec<DriveInfo> {
        let info = |slot: &Arc<Slot>| {
            let medium = slot.medium.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let (statistics, io_status) =
                medium.as_ref().map_or_else(Default::default, |disk| self.disks.statistics(disk));
            DriveInfo {
                name: slot.name.clone(),
                path: Some(slot.path.clone()),
                by_node: slot.spec.node.is_some(),
                node_only: false,
                model: model(&slot.spec),
                removable: slot.drive.is_some(),
                locked: slot.drive.as_ref().is_some_and(|drive| drive.locked()),
                // A floppy drive has no tray.
                tray_open: slot.drive.as_ref().filter(|_| slot.spec.cd).map(|drive| drive.tray_open()),
                io_status,
                medium: medium.and_then(|disk| self.disks.describe(&disk)),
                statistics,
            }
        };
        let free = self.disks.shelved();
        // Nodes without a device are listed as such alone.
        let unused = free.iter().map(|(spec, disk)| {
            let (statistics, io_status) = self.disks.statistics(disk);
            DriveInfo {
                name: spec.id.clone().unwrap_or_default(),
                model: "drive",
                node_only: spec.node.is_some(),
                io_status,
                medium: self.disks.describe(disk),
                statistics,
                ..DriveInfo::default()
            }
        });
        self.slots().iter().map(info).chain(unused).collect()
    }

    /// Tells of the trays that have moved since this was last called.
    pub fn look(&self) {
        for slot in self.slots() {
            let Some(drive) = slot.drive.as_ref().filter(|_| slot.spec.cd) else { continue };
            let open = drive.tray_open();
            if slot.tray_open.swap(open, Ordering::SeqCst) != open {
                let name = if slot.spec.node.is_some() { "" } else { slot.name.as_str() };
                let data = json!({ "device": name, "id": slot.path, "tray-open": open });
                self.events.emit("DEVICE_TRAY_MOVED", data);
            }
        }
    }

    /// Whether there is a tray.
    fn has_trays(&self) -> bool {
        self.slots().iter().any(|slot| slot.spec.cd && slot.drive.is_some())
    }

    /// The drive called `name`, if its medium can be changed.
    fn find(&self, name: &str) -> Result<(Arc<Slot>, Arc<dyn MediumDrive>), String> {
        let slots = self.slots();
        let removable = || slots.iter().filter_map(|slot| Some((slot, slot.drive.as_ref()?)));
        let called = |slot: &Slot| slot.name == name || slot.spec.device.as_deref() == Some(name);
        if let Some(found) = removable().find(|(slot, _)| called(slot)) {
            return Ok((found.0.clone(), found.1.clone()));
        }
        let names: Vec<&str> = removable().map(|(slot, _)| slot.name.as_str()).collect();
        let there = match names.as_slice() {
            [] => "the machine has no drive with a removable medium".to_owned(),
            names => format!("there are {}", names.join(", ")),
        };
        match slots.iter().any(|slot| slot.name == name) {
            true => Err(format!("the medium of {name} cannot be changed; {there}")),
            false => Err(format!("there is no drive {name}; {there}")),
        }
    }

    /// Takes a medium out, puts another in, or moves the tray.
    pub fn change(&self, change: &MediumChange) -> Result<(), String> {
        let (name, force) = match change {
            MediumChange::Eject { drive, force }
            | MediumChange::OpenTray { drive, force }
            | MediumChange::Insert { drive, force, .. } => (drive, *force),
            // The tray is open, or it closes: the guest's lock is about opening it.
            MediumChange::CloseTray { drive }
            | MediumChange::Remove { drive }
            | MediumChange::InsertNode { drive, .. } => (drive, true),
        };
        let (slot, drive) = self.find(name)?;
        if drive.locked() && !drive.tray_open() && !force {
            drive.ask();
            let how = if matches!(change, MediumChange::Eject { .. }) {
                format!("eject -f {name}")
            } else {
                "force".to_owned()
            };
            return Err(format!(
                "the guest has locked the medium of {name} and was asked to let it go; try again, or use {how}"
            ));
        }
        let done = match change {
            MediumChange::Eject { .. } | MediumChange::Remove { .. } => self.put(&slot, None),
            MediumChange::Insert { file, format, read_only, .. } => {
                self.open(&slot, file, format, *read_only).and_then(|disk| self.put(&slot, Some(disk)))
            }
            MediumChange::InsertNode { node, .. } => self.lay_in(&slot, node),
            MediumChange::OpenTray { .. } | MediumChange::CloseTray { .. } => {
                let open = matches!(change, MediumChange::OpenTray { .. });
                // Without a tray there is nothing to do, as in QEMU.
                drive.set_tray(open);
                Ok(())
            }
        };
        self.look();
        done
    }

    /// Puts a medium in the place of the one that is there.
    fn put(&self, slot: &Slot, new: Option<Arc<dyn Disk>>) -> Result<(), String> {
        let Some(drive) = &slot.drive else { return Ok(()) };
        let mut medium = slot.medium.lock().unwrap_or_else(PoisonError::into_inner);
        drive.change(new.clone());
        let old = std::mem::replace(&mut *medium, new);
        let node = slot.node.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (old, node) {
            // Nodes stay.
            (Some(old), Some(spec)) => {
                self.disks.put_back(&spec, old);
                Ok(())
            }
            (old, _) => old.map_or(Ok(()), |old| self.disks.remove(&old)),
        }
    }

    /// Lays an image that no device has in an open tray.
    fn lay_in(&self, slot: &Slot, node: &str) -> Result<(), String> {
        let Some((spec, disk)) = self.disks.take_down(node) else { return Err(format!("Node '{node}' not found")) };
        self.disks.label(&disk, &slot.name, &slot.path);
        self.put(slot, Some(disk))?;
        *slot.node.lock().unwrap_or_else(PoisonError::into_inner) = Some(spec);
        // Whoever laid it in closes the tray.
        if let Some(drive) = &slot.drive {
            drive.set_tray(true);
        }
        Ok(())
    }

    fn open(
        &self,
        slot: &Slot,
        file: &str,
        format: &Option<String>,
        read_only: Option<bool>,
    ) -> Result<Arc<dyn Disk>, String> {
        let mut spec = slot.spec.clone();
        spec.what.clone_from(&slot.name);
        spec.file = Some(PathBuf::from(file));
        let format = format.as_deref().map(Format::from_name).transpose();
        spec.options.format = format.map_err(|e| e.to_string())?;
        if let Some(read_only) = read_only.filter(|_| !spec.cd) {
            spec.options.read_only = read_only;
        }
        match self.disks.open(&spec) {
            Ok(Some(disk)) => {
                self.disks.label(&disk, &slot.name, &slot.path);
                Ok(disk)
            }
            Ok(None) => Err("name a file".to_owned()),
            Err(error) => Err(format!("{error:#}")),
        }
    }
}

/// Starts the thread that hears of trays moved by the guest, if there are any.
pub fn watch(machine: &Arc<Machine>) -> std::io::Result<()> {
    if !machine.media.has_trays() || machine.config.controls.is_empty() {
        return Ok(());
    }
    let weak = Arc::downgrade(machine);
    let look = move || {
        while let Some(machine) = weak.upgrade() {
            machine.media.look();
            drop(machine);
            std::thread::sleep(LOOK);
        }
    };
    std::thread::Builder::new().name("trays".into()).spawn(look)?;
    Ok(())
}
