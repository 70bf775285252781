//! Disks whose content is kept with the machine's state.

use super::{Disks, HostDisk};
use brolga::block::BlockBackend;
use brolga::block::qcow2::{MachineState, Qcow2, SnapshotInfo};
use brolga_devices::wire::locked;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::SystemTime;

/// A disk that can keep its content.
#[derive(Clone)]
pub struct Keeper {
    /// What `info block` calls it.
    pub name: String,
    image: Arc<Qcow2>,
}

impl HostDisk {
    /// What the user calls it.
    pub(super) fn shown(&self) -> String {
        locked(&self.label).as_ref().map_or_else(|| locked(&self.names).node.clone(), |(name, _)| name.clone())
    }

    pub(super) fn is_called(&self, name: &str) -> bool {
        locked(&self.names).node == name || locked(&self.label).as_ref().is_some_and(|(label, _)| label == name)
    }

    /// The disk, if its image keeps content.
    fn keeper(&self) -> Result<Keeper, String> {
        let name = self.shown();
        match self.drive.image().qcow2() {
            Ok(image) if image.info().data_file.is_none() => Ok(Keeper { name, image: image.clone() }),
            _ => Err(format!(
                "Device '{name}' is writable but does not support snapshots; convert {} to qcow2 (brolga-img convert -O \
                 qcow2), or give it snapshot=on or readonly=on",
                locked(&self.names).path
            )),
        }
    }
}

impl Disks {
    /// The disks that make up the machine's content: all that can be written, or those named.
    pub fn keepers(&self, named: Option<&[String]>) -> Result<Vec<Keeper>, String> {
        let disks = self.all();
        let Some(names) = named else {
            return disks.iter().filter(|disk| !disk.drive.backend().read_only()).map(|disk| disk.keeper()).collect();
        };
        let find = |name: &String| {
            let found = disks.iter().find(|disk| disk.is_called(name));
            let found = found.ok_or_else(|| format!("No block device node '{name}'"))?;
            match found.drive.backend().read_only() {
                true => Err(format!("Node '{name}' is read-only: it has no snapshots")),
                false => found.keeper(),
            }
        };
        names.iter().map(find).collect()
    }

    /// The disk called `name`, which is to hold the machine's state.
    pub fn keeper(&self, name: &str) -> Result<Keeper, String> {
        let disks = self.all();
        let found = disks.iter().find(|disk| disk.is_called(name) && !disk.drive.backend().read_only());
        found.ok_or_else(|| format!("vmstate block device '{name}' does not exist"))?.keeper()
    }

    /// A request of some disk failed and waits for the machine to go on.
    pub fn holds_back(&self) -> Option<String> {
        self.all().iter().find(|disk| !locked(&disk.state).held.is_empty()).map(|disk| disk.shown())
    }

    /// No request is with the host.
    pub fn is_quiet(&self) -> bool {
        self.all().iter().all(|disk| disk.queue.outstanding() == 0)
    }
}

impl Keeper {
    /// It is the disk `other`.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.image, &other.image)
    }

    /// The snapshot of that name or id.
    pub fn find(&self, tag: &str) -> Option<SnapshotInfo> {
        let all = self.image.snapshots();
        all.iter().find(|s| s.name == tag).or_else(|| all.iter().find(|s| s.id == tag)).cloned()
    }

    /// What is in it is kept as `tag`, with the machine's state that was written before.
    pub fn keep(&self, tag: &str, when: SystemTime, state: MachineState) -> Result<(), String> {
        self.image.create_snapshot_with(tag, when, state).map(drop).map_err(|e| format!("{}: {e}", self.name))
    }

    /// What it was comes back.
    pub fn go_back(&self, snapshot: &SnapshotInfo) -> Result<(), String> {
        self.image.apply_snapshot(&snapshot.id).map_err(|e| format!("{}: {e}", self.name))
    }

    /// A snapshot goes.
    pub fn forget(&self, snapshot: &SnapshotInfo) -> Result<(), String> {
        self.image.delete_snapshot(&snapshot.id).map_err(|e| format!("{}: {e}", self.name))
    }

    /// Where the machine's state is written for the next [`Keeper::keep`].
    pub fn state_writer(&self) -> StateWriter {
        StateWriter { image: self.image.clone(), at: 0 }
    }

    /// The machine's state that is kept with a snapshot, while disks stay as they are.
    pub fn state_view(&self, snapshot: &SnapshotInfo) -> Result<StateView, String> {
        let view = self.image.view_of_snapshot(&snapshot.id).map_err(|e| format!("{}: {e}", self.name))?;
        Ok(StateView { view: Arc::new(view), len: snapshot.vm_state_size })
    }
}

/// Writes a machine's state to an image, in order.
pub struct StateWriter {
    image: Arc<Qcow2>,
    at: u64,
}

impl StateWriter {
    /// Bytes written.
    pub fn written(&self) -> u64 {
        self.at
    }
}

impl Write for StateWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.image.write_state(self.at, bytes).map_err(io::Error::other)?;
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.image.flush().map_err(io::Error::other)
    }
}

/// The machine's state in a snapshot.
#[derive(Clone)]
pub struct StateView {
    view: Arc<Qcow2>,
    len: u64,
}

impl StateView {
    /// Reads it from its beginning.
    pub fn reader(&self) -> StateReader {
        StateReader { view: self.view.clone(), at: 0, len: self.len }
    }
}

/// Reads a machine's state.
pub struct StateReader {
    view: Arc<Qcow2>,
    at: u64,
    len: u64,
}

impl Read for StateReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = (buf.len() as u64).min(self.len.saturating_sub(self.at)) as usize;
        let Some(part) = buf.get_mut(..count).filter(|part| !part.is_empty()) else { return Ok(0) };
        self.view.read_state(self.at, part).map_err(io::Error::other)?;
        self.at += count as u64;
        Ok(count)
    }
}
