//! Disks whose images become others while the guest uses them.

use super::nodes::Taken;
use super::{Disks, HostDisk};
use brolga::block::drive::Watcher;
use brolga::block::qcow2::{CreateOptions, Qcow2, create_in};
use brolga::block::{BlockBackend, CacheMode, Format, HostFile, Image, OpenOptions, open};
use brolga_devices::wire::locked;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

/// A disk by its name.
#[derive(Clone)]
pub struct NamedDisk(Arc<HostDisk>);

/// An image that a disk is to become.
pub struct Successor {
    pub(super) image: Image,
    pub(super) path: PathBuf,
    /// Its name among images; one is made up if none.
    pub(super) node: Option<String>,
    /// The name of its file.
    pub(super) file_node: Option<String>,
    /// The node that it was.
    pub(super) taken: Option<Taken>,
}

impl Disks {
    /// The disk of a drive, or of an image, of that name.
    pub fn named(&self, name: &str) -> Option<NamedDisk> {
        let called = self.all().into_iter().find(|disk| disk.is_called(name));
        let free = || self.shelved().into_iter().find(|(spec, _)| spec.id.as_deref() == Some(name));
        called.or_else(|| self.find(&free()?.1)).map(NamedDisk)
    }

    /// All disks.
    pub fn every(&self) -> Vec<NamedDisk> {
        self.all().into_iter().map(NamedDisk).collect()
    }

    /// Runs `work` while none of `disks` has a request under way, and new ones wait.
    pub fn still<R>(&self, disks: &[NamedDisk], work: impl FnOnce() -> R) -> R {
        // In one order, whoever asks; each once.
        let mut all: Vec<&Arc<HostDisk>> = disks.iter().map(|disk| &disk.0).collect();
        all.sort_by_key(|disk| Arc::as_ptr(disk));
        all.dedup_by_key(|disk| Arc::as_ptr(disk));
        let gates: Vec<_> = all.iter().map(|disk| disk.gate.write().unwrap_or_else(PoisonError::into_inner)).collect();
        all.iter().for_each(|disk| disk.queue.drain());
        let result = work();
        drop(gates);
        result
    }

    /// The disk is its successor from now on. It has no request under way.
    pub fn succeed(&self, disk: &NamedDisk, next: Successor) {
        let Successor { image, path, node, file_node, taken } = next;
        disk.0.drive.replace(image);
        {
            let mut names = locked(&disk.0.names);
            names.path = path.display().to_string();
            names.place = super::place(&path);
            names.node = node.unwrap_or_else(|| self.next_name());
            names.file_node = file_node.unwrap_or_else(|| self.next_name());
        }
        if let Some(taken) = taken {
            taken.used();
        }
    }
}

impl NamedDisk {
    /// What jobs on it are called.
    pub fn name(&self) -> String {
        self.0.shown()
    }

    /// How the host's cache is used.
    pub fn cache(&self) -> CacheMode {
        self.0.drive.options().cache
    }

    /// The name of its image.
    pub fn node(&self) -> String {
        locked(&self.0.names).node.clone()
    }

    /// The disk that the guest sees.
    pub fn backend(&self) -> Arc<dyn BlockBackend> {
        self.0.drive.backend()
    }

    /// Its image.
    pub fn image(&self) -> Image {
        self.0.drive.image()
    }

    /// Where its image is.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(locked(&self.0.names).path.clone())
    }

    /// Whoever has to know of changes. It has no request under way.
    pub fn watch(&self, watcher: Option<Arc<dyn Watcher>>) {
        self.0.drive.watch(watcher);
    }

    /// That it can be written and has a file that others can name.
    pub fn check(&self) -> Result<(), String> {
        let name = self.name();
        if self.backend().read_only() {
            return Err(format!("Device '{name}' is read only"));
        }
        match self.0.drive.options().snapshot {
            true => Err(format!("Device '{name}' has snapshot=on: its writes are gone at the end anyway")),
            false => Ok(()),
        }
    }

    /// A new image over the present one, or one that is there and made for it (`existing`).
    pub fn overlay(&self, file: &str, existing: bool, node: Option<String>) -> Result<Successor, String> {
        self.check()?;
        let (path, old) = (PathBuf::from(file), self.image());
        let below = std::fs::canonicalize(self.path()).map_err(|e| format!("{}: {e}", self.path().display()))?;
        if path.exists() && std::fs::canonicalize(&path).is_ok_and(|path| path == below) {
            return Err(format!("{file}: the disk's own image cannot be over itself"));
        }
        if !existing {
            let new = HostFile::create(&path).map_err(|e| e.to_string())?;
            new.lock(true).map_err(|e| e.to_string())?;
            let below = below.to_str().ok_or("the image's path is not UTF-8")?.to_owned();
            let size = self.backend().len();
            let options =
                CreateOptions { size, backing: Some((below, Some(old.format()))), ..CreateOptions::default() };
            create_in(Arc::new(new), &options).map_err(|e| e.to_string())?;
        }
        let opened = HostFile::open_with(&path, true, self.0.drive.options().cache).map_err(|e| e.to_string())?;
        opened.lock(true).map_err(|e| e.to_string())?;
        let image = Qcow2::open_over(Arc::new(opened), old).map_err(|e| e.to_string())?;
        if image.len() < self.backend().len() {
            return Err(format!("{file}: it is smaller than the disk"));
        }
        Ok(Successor { image: Image::Qcow2(Arc::new(image)), path, node, file_node: None, taken: None })
    }

    /// Whether a node can go over the present image.
    pub fn may_have_over(&self, next: &Successor) -> Result<(), String> {
        self.check()?;
        match next.image.qcow2() {
            Err(_) => Err("Overlay does not support backing images".to_owned()),
            Ok(image) if image.backing().is_some() => Err("The overlay already has a backing image".to_owned()),
            Ok(image) if image.len() < self.backend().len() => {
                Err(format!("{}: it is smaller than the disk", next.path.display()))
            }
            Ok(_) => Ok(()),
        }
    }

    /// Its image and those below it, itself first.
    pub fn chain(&self) -> Vec<Image> {
        let below = |image: &Image| image.qcow2().ok()?.backing();
        std::iter::successors(Some(self.image()), below).collect()
    }

    /// How far down the image is that lies in the file `name`; itself is 0.
    pub fn depth_of(&self, name: &str) -> Option<usize> {
        let wanted = std::fs::canonicalize(name).ok();
        let same = |image: &Image| {
            let file = image.file().name().to_owned();
            file == name || (wanted.is_some() && std::fs::canonicalize(file).ok() == wanted)
        };
        self.chain().iter().position(same)
    }

    /// The image `depth` steps below, if it is one that can be written: the disk was it before.
    pub fn below(&self, depth: usize) -> Result<Successor, String> {
        let below = self.chain().into_iter().nth(depth).filter(|_| depth != 0);
        let below = below.ok_or_else(|| format!("Device '{}' has no backing file", self.name()))?;
        if below.backend().read_only() {
            return Err(format!(
                "{}: it is open for reading only; end the machine and use brolga-img commit",
                below.file().name()
            ));
        }
        let path = PathBuf::from(below.file().name());
        Ok(Successor { image: below, path, node: None, file_node: None, taken: None })
    }
}

/// Whether one of the first `depth` images of a chain holds something at `offset`, and not only what is below them.
pub fn holds(backend: &dyn BlockBackend, offset: u64, len: u64, depth: u32) -> bool {
    let (mut at, end) = (offset, offset.saturating_add(len).min(backend.len()));
    while at < end {
        // What cannot be looked up is copied, which then says why.
        let Ok(extent) = backend.map(at, end - at) else { return true };
        if extent.depth < depth && extent.content != brolga::block::Content::Hole {
            return true;
        }
        at = extent.offset.saturating_add(extent.len).max(at + 1);
    }
    false
}

impl Successor {
    /// A file that a disk of `len` bytes is copied to: a new one, or one that is there.
    pub fn target(file: &str, format: &str, existing: bool, len: u64, node: Option<String>) -> Result<Self, String> {
        let (path, format) = (PathBuf::from(file), Format::from_name(format).map_err(|e| e.to_string())?);
        if !existing {
            create(&path, format, len)?;
        }
        let options = OpenOptions { format: Some(format), lock: true, ..OpenOptions::default() };
        let image = open(&path, &options).map_err(|e| e.to_string())?;
        match image.backend().len() {
            found if found < len => Err(format!("{file}: it has {found} bytes, and the disk has {len}")),
            _ => Ok(Self { image, path, node, file_node: None, taken: None }),
        }
    }

    /// It goes over the present image of `disk`, which has no request under way.
    pub fn rest_on(&self, disk: &NamedDisk) {
        if let Ok(image) = self.image.qcow2() {
            image.rest_on(Some(disk.image()));
        }
    }

    /// It has another name among images.
    pub fn called(self, node: Option<String>) -> Self {
        Self { node, ..self }
    }

    /// Its name among images, if it has one.
    pub fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }

    /// The disk that it is.
    pub fn backend(&self) -> Arc<dyn BlockBackend> {
        self.image.backend()
    }

    /// Makes all of it durable.
    pub fn settle(&self) -> Result<(), String> {
        self.backend().flush().map_err(|e| e.to_string())
    }
}

fn create(path: &Path, format: Format, len: u64) -> Result<(), String> {
    let made = match format {
        Format::Qcow2 => {
            let file = HostFile::create(path).and_then(|file| file.lock(true).map(|()| file));
            file.and_then(|file| create_in(Arc::new(file), &CreateOptions { size: len, ..CreateOptions::default() }))
        }
        Format::Raw => HostFile::create(path).and_then(|file| brolga::block::Storage::set_len(&file, len)),
        Format::Foreign(name) => return Err(format!("{name} images cannot be written; there are raw and qcow2")),
    };
    made.map_err(|e| e.to_string())
}
