//! What the monitor needs from the machine. `machine` implements it; tests use a fake.

use super::Commands;
use super::block_work::BlockWork;
use super::events::Events;
use super::jobs::Jobs;
use super::migrating::Migrating;
use super::plugging::Plugging;
use crate::cli::config::Actions;
use brolga_devices::services::Reception;
use brolga_devices::vga::Picture;
use brolga_jit::Registers;
use serde_json::Value;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Something to do to the whole machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// End the process with status 0: host files are flushed, the terminal is restored.
    Quit,
    /// The same, as a signal asked for it.
    Terminate,
    /// Pause the guest; when this returns no vCPU runs.
    Stop,
    /// Let the guest go on.
    Continue,
    /// Reset the machine, whatever `-no-reboot` says.
    Reset,
    /// Press the power button (ACPI).
    PowerButton,
    /// Raise the NMI of all vCPUs.
    Nmi,
}

/// Another medium for a drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MediumChange {
    /// The medium is taken out.
    Eject {
        /// What `info block` calls the drive.
        drive: String,
        /// Even where the guest has locked it.
        force: bool,
    },
    /// Another medium is put in.
    Insert {
        /// What `info block` calls the drive.
        drive: String,
        /// The image.
        file: String,
        /// Its format; looked up in its first bytes if none.
        format: Option<String>,
        /// Whether it can be written; as it was for the medium at start if none.
        read_only: Option<bool>,
        /// Even where the guest has locked the old one.
        force: bool,
    },
    /// The tray opens, the medium stays in it.
    OpenTray {
        /// What `info block` calls the drive.
        drive: String,
        /// Even where the guest has locked it.
        force: bool,
    },
    /// The tray closes.
    CloseTray {
        /// What `info block` calls the drive.
        drive: String,
    },
    /// An image that no device has is laid in an open, empty tray, which stays open.
    InsertNode {
        /// What `info block` calls the drive.
        drive: String,
        /// The image's name.
        node: String,
    },
    /// The medium is taken out of an open tray.
    Remove {
        /// What `info block` calls the drive.
        drive: String,
    },
}

/// Where the machine's state is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// The disk that holds what is not disks; the first one if none.
    pub vmstate: Option<String>,
    /// The disks; all that can be written if none.
    pub devices: Option<Vec<String>>,
}

/// What is to be done with the machine's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotAction {
    /// It is kept under a name.
    Save {
        /// The name.
        tag: String,
        /// In place of what was kept under it.
        replace: bool,
        /// Where.
        place: Kept,
    },
    /// The machine becomes what it was.
    Load {
        /// The name.
        tag: String,
        /// Where from.
        place: Kept,
    },
    /// What was kept goes.
    Delete {
        /// The name.
        tag: String,
        /// From where.
        place: Kept,
    },
}

impl SnapshotAction {
    /// What a job that does it is called.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Save { .. } => "snapshot-save",
            Self::Load { .. } => "snapshot-load",
            Self::Delete { .. } => "snapshot-delete",
        }
    }
}

/// What the machine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// vCPUs run.
    Running,
    /// Not started yet (`-S`).
    Prelaunch,
    /// Paused by `stop`.
    Paused,
    /// Stopped by a debugger's breakpoint or step.
    Debug,
    /// Stopped as a disk could not be read or written.
    IoError,
    /// The guest powered off and `-no-shutdown` keeps the machine.
    Shutdown,
    /// The guest reported a crash.
    Panicked,
    /// A watchdog's time ran out.
    Watchdog,
    /// Its state is being kept.
    SaveVm,
    /// Its state is being brought back.
    RestoreVm,
    /// It is to arrive from another process.
    InMigrate,
    /// It stands, to leave for another process.
    FinishMigrate,
    /// It has left for another process.
    PostMigrate,
}

impl RunState {
    /// All of them, by the names of `query-status`.
    const ALL: [(&'static str, Self); 13] = [
        ("running", Self::Running),
        ("prelaunch", Self::Prelaunch),
        ("paused", Self::Paused),
        ("debug", Self::Debug),
        ("io-error", Self::IoError),
        ("shutdown", Self::Shutdown),
        ("guest-panicked", Self::Panicked),
        ("watchdog", Self::Watchdog),
        ("save-vm", Self::SaveVm),
        ("restore-vm", Self::RestoreVm),
        ("inmigrate", Self::InMigrate),
        ("finish-migrate", Self::FinishMigrate),
        ("postmigrate", Self::PostMigrate),
    ];

    /// As `query-status` names it.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, state)| *state == self).map_or("internal-error", |(name, _)| name)
    }

    /// The one that `query-status` names so.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, state)| *state)
    }
}

/// Parts of the machine whose state can be shown as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// The tree of devices with their state.
    Qtree,
    /// Interrupt controllers.
    Pic,
    /// Counters of the code engine.
    Jit,
    /// Images placed in memory.
    Roms,
    /// Memory and port maps.
    Mtree,
    /// The same, each address once.
    FlatMtree,
    /// Pieces of memory, and where they are in this process.
    RamBlocks,
    /// Network cards and their host ends.
    Network,
    /// How often interrupt lines were raised.
    Irq,
    /// Forwarded ports, leases and connections of user-mode networks.
    Usernet,
}

/// What a mouse does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pointer {
    /// Movement to the right.
    pub right: i32,
    /// Movement downwards.
    pub down: i32,
    /// Wheel, towards the user.
    pub wheel: i32,
    /// Buttons that are pressed: bits 0 to 4 are left, right, middle, side, extra.
    pub press: u8,
    /// Buttons that are let go.
    pub release: u8,
}

/// A drive.
#[derive(Clone, Debug, Default)]
pub struct DriveInfo {
    /// What `info block` calls it.
    pub name: String,
    /// Its device in the tree of objects.
    pub path: Option<String>,
    /// It came by the name of a node: as a drive it has no name.
    pub by_node: bool,
    /// It is a node that no device has, and no drive.
    pub node_only: bool,
    /// The model of that device.
    pub model: &'static str,
    /// Its medium can be changed.
    pub removable: bool,
    /// The guest keeps the medium in.
    pub locked: bool,
    /// Where its tray is, if it has one.
    pub tray_open: Option<bool>,
    /// How its last requests went, if `werror=` or `rerror=` may stop the machine for them.
    pub io_status: Option<&'static str>,
    /// What is in it.
    pub medium: Option<MediumInfo>,
    /// What was done with it.
    pub statistics: DriveStatistics,
}

/// A medium.
#[derive(Clone, Debug, Default)]
pub struct MediumInfo {
    /// The image's file.
    pub file: String,
    /// Its format.
    pub format: &'static str,
    /// Its name among the images that are in use.
    pub node: String,
    /// That of the file that it lies in.
    pub file_node: String,
    /// It cannot be written.
    pub read_only: bool,
    /// Images below it.
    pub depth: usize,
    /// Whether writes of zeros are looked for: off, on or unmap.
    pub detect_zeroes: &'static str,
    /// The guest's writes may stay in a cache; they go past the host's; flushes are left out.
    pub cache: [bool; 3],
    /// All about the image, as `brolga-img info` tells it.
    pub image: Value,
}

/// What was done with a drive since the machine started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DriveStatistics {
    /// Reads.
    pub reads: Counter,
    /// Writes.
    pub writes: Counter,
    /// Discards.
    pub discards: Counter,
    /// Flushes.
    pub flushes: Counter,
    /// End of the last byte written.
    pub highest_written: u64,
    /// Time since the last request, in nanoseconds.
    pub idle_ns: Option<u64>,
}

/// What was done of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Requests carried out.
    pub operations: u64,
    /// Bytes.
    pub bytes: u64,
    /// Time that they took together.
    pub time_ns: u64,
    /// Requests that the host failed.
    pub failed: u64,
    /// Requests that made no sense.
    pub invalid: u64,
}

/// A PCI function.
#[derive(Clone, Debug)]
pub struct PciInfo {
    /// Number of its bus.
    pub bus: u8,
    /// Device number.
    pub slot: u8,
    /// Function number.
    pub function: u8,
    /// `id=` of its device.
    pub id: Option<String>,
    /// Its header: the first 64 bytes of configuration space.
    pub config: Vec<u8>,
    /// What it decodes.
    pub regions: Vec<PciRegion>,
}

/// A range of addresses that a PCI function decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciRegion {
    /// Base address register; 6 is the ROM's.
    pub bar: u8,
    /// Ports; otherwise memory.
    pub io: bool,
    /// Bytes.
    pub size: u64,
    /// Where it lies, if it is switched on.
    pub address: Option<u64>,
    /// Reads have no side effects.
    pub prefetch: bool,
    /// 64 bits wide.
    pub wide: bool,
}

/// A host end of a character device.
#[derive(Clone, Debug)]
pub struct CharInfo {
    /// Its name.
    pub label: String,
    /// What it is, in the form that `info chardev` has.
    pub filename: String,
    /// A device or monitor uses it.
    pub frontend_open: bool,
}

/// Host ends of character devices as a monitor sees them.
pub trait CharHost: Send + Sync {
    /// All of them.
    fn list(&self) -> Vec<CharInfo>;
    /// Kinds of them.
    fn kinds(&self) -> &'static [&'static str];
    /// Adds to what a host end in memory holds, or says why not.
    fn ring_write(&self, label: &str, bytes: &[u8]) -> Result<(), String>;
    /// Takes up to `most` bytes out of a host end in memory.
    fn ring_read(&self, label: &str, most: usize) -> Result<Vec<u8>, String>;
}

/// The machine as a monitor sees it. Methods may wait for vCPUs to reach a safe point, never for the guest.
pub trait MonitorHost: Plugging + BlockWork + Migrating {
    /// Does `what`.
    fn control(&self, what: Control);
    /// Lets the guest go on, or says why it cannot.
    fn cont(&self) -> Result<(), String> {
        self.control(Control::Continue);
        Ok(())
    }
    /// Keeps the machine's state, brings it back or forgets it; or says why not.
    fn snapshot(&self, action: &SnapshotAction) -> Result<(), String>;
    /// The same, as a job called `id`.
    fn start_snapshot(&self, id: &str, action: SnapshotAction) -> Result<(), String>;
    /// Long work that is under way.
    fn jobs(&self) -> &Arc<Jobs>;
    /// What the machine is doing.
    fn run_state(&self) -> RunState;
    /// Number of vCPUs.
    fn cpus(&self) -> u32;
    /// Registers of a vCPU (a running one is stopped briefly); `None` if there is no such vCPU.
    fn registers(&self, cpu: u32) -> Option<Registers>;
    /// The vCPU's register dump for `info registers`.
    fn register_dump(&self, cpu: u32) -> Option<String>;
    /// Guest-physical address of a linear address as the vCPU maps it now.
    fn translate(&self, cpu: u32, linear: u64) -> Option<u64>;
    /// Reads guest-physical memory; `false` if some of it is neither RAM nor ROM.
    fn read_physical(&self, gpa: u64, buf: &mut [u8]) -> bool;
    /// The memory that has the byte at `gpa`, and where in this process.
    fn host_address(&self, _gpa: u64) -> Option<(&'static str, u64)> {
        None
    }
    /// Opens a forwarded port of `netdev` (the first user-mode network if it is not named), or closes one; the answer or
    /// what is wrong.
    fn forward(&self, open: bool, netdev: Option<&str>, rule: &str) -> Result<String, String>;
    /// Plugs the cable of a card in or pulls it out; the card, or its host end, by its id.
    fn set_link(&self, name: &str, up: bool) -> Result<(), String>;
    /// What the guest wants to receive by each card, with the card's name and model; none where the card does not tell. Changes are
    /// told of once from now on.
    fn receptions(&self) -> Vec<(String, &'static str, Option<Reception>)>;
    /// Changes a drive's medium, or says why not.
    fn change_medium(&self, change: &MediumChange) -> Result<(), String>;
    /// Asks the guest to make do with `bytes` of memory; `false` if there is no balloon.
    fn set_balloon(&self, bytes: u64) -> bool;
    /// Bytes of memory that the guest has, and what it told last of it by name; `None` if there is no balloon.
    fn balloon(&self) -> Option<(u64, Vec<(&'static str, u64)>)>;
    /// Where events are told.
    fn events(&self) -> &Arc<Events>;
    /// Numbers of the vCPUs that are there, with their host threads.
    fn thread_ids(&self) -> Vec<(u32, i32)>;
    /// What is done at power events.
    fn actions(&self) -> Actions;
    /// Changes what is done at power events.
    fn set_actions(&self, actions: Actions);
    /// What firmware tries from the next reset on, by letters as in `-boot`.
    fn set_boot_order(&self, order: &str);
    /// Reads a port as the guest would: this may have side effects.
    fn port_read(&self, port: u16, size: u8) -> u32;
    /// Writes a port as the guest would.
    fn port_write(&self, port: u16, size: u8, value: u32);
    /// Presses keys (set 1 codes) in order and lets them go in the opposite one after `hold`. Returns at once.
    fn press(&self, keys: Vec<u16>, hold: Duration);
    /// Presses a key (set 1 code) or lets it go.
    fn key(&self, key: u16, down: bool);
    /// Moves the mouse and its buttons.
    fn point(&self, pointer: Pointer);
    /// PCI functions.
    fn pci(&self) -> Vec<PciInfo>;
    /// Drives.
    fn drives(&self) -> Vec<DriveInfo>;
    /// Devices, by the names that the board has for them, with their models.
    fn devices(&self) -> Vec<(String, &'static str)>;
    /// The state of a vCPU's local APIC, in lines.
    fn local_apic(&self, cpu: u32) -> Option<String>;
    /// Guest-physical addresses of RAM.
    fn memory_map(&self) -> Vec<Range<u64>>;
    /// Does `work` while no vCPU runs.
    fn while_paused(&self, work: &mut dyn FnMut() -> Result<u64, String>) -> Result<u64, String>;
    /// A dump was made, of so many bytes; `None`: it failed.
    fn note_dump(&self, bytes: Option<u64>);
    /// How the last dump went (none, completed or failed), and its bytes.
    fn last_dump(&self) -> (&'static str, u64);
    /// Waits for gdb at `endpoint`, as `-gdb` does, and no more where it waited before; `none`: nowhere. `commands` are what it
    /// may type.
    fn start_debugger(&self, endpoint: &str, commands: Commands) -> Result<(), String>;
    /// What the screen shows; `None` if there is no graphics card.
    fn screen(&self) -> Option<Picture>;
    /// Whether there is a graphics card that is called so.
    fn has_screen(&self, device: &str) -> bool;
    /// Lines about `topic`; `None` if the machine has nothing to say about it.
    fn inspect(&self, topic: Topic) -> Option<String>;
}
