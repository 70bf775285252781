//! What the monitor needs from the machine. `machine` implements it; tests use a fake.

use brolga_jit::Registers;

/// Something to do to the whole machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// End the process with status 0: host files are flushed, the terminal is restored.
    Quit,
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
    },
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
    /// The guest powered off and `-no-shutdown` keeps the machine.
    Shutdown,
    /// The guest reported a crash.
    Panicked,
    /// A watchdog's time ran out.
    Watchdog,
}

impl RunState {
    /// As `info status` shows it.
    pub fn text(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Prelaunch => "paused (prelaunch)",
            Self::Paused => "paused",
            Self::Debug => "paused (debug)",
            Self::Shutdown => "paused (shutdown)",
            Self::Panicked => "paused (guest-panicked)",
            Self::Watchdog => "paused (watchdog)",
        }
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
    /// Network cards and their host ends.
    Network,
    /// Drives and what is in them.
    Block,
    /// Forwarded ports, leases and connections of user-mode networks.
    Usernet,
}

/// The machine as a monitor sees it. Methods may wait for vCPUs to reach a safe point, never for the guest.
pub trait MonitorHost: Send + Sync {
    /// Does `what`.
    fn control(&self, what: Control);
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
    /// Opens a forwarded port of `netdev` (the first user-mode network if it is not named), or closes one; the answer or
    /// what is wrong.
    fn forward(&self, open: bool, netdev: Option<&str>, rule: &str) -> Result<String, String>;
    /// Plugs the cable of a card in or pulls it out; the card, or its host end, by its id.
    fn set_link(&self, name: &str, up: bool) -> Result<(), String>;
    /// Changes a drive's medium, or says why not.
    fn change_medium(&self, change: &MediumChange) -> Result<(), String>;
    /// Asks the guest to make do with `bytes` of memory; `false` if there is no balloon.
    fn set_balloon(&self, bytes: u64) -> bool;
    /// Bytes of memory that the guest has, and what it told last of it by name; `None` if there is no balloon.
    fn balloon(&self) -> Option<(u64, Vec<(&'static str, u64)>)>;
    /// Lines about `topic`; `None` if the machine has nothing to say about it.
    fn inspect(&self, topic: Topic) -> Option<String>;
}
