//! `-machine none`: no processors, no memory, no devices. Management programs start it to ask what the program can do.

use crate::background;
use crate::chardev::Chardevs;
use crate::cli::config::{Actions, Config};
use crate::migration::Migration;
use crate::monitor::{
    BlockWork, Commands, Control, DriveInfo, Events, JobSpec, Jobs, MediumChange, Migrating, MonitorHost, PciInfo,
    Plugging, Pointer, Progress, RunState, SnapshotAction, Topic,
};
use anyhow::{Result, bail};
use brolga_devices::services::Reception;
use brolga_devices::vga::Picture;
use brolga_jit::Registers;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use serde_json::{Value, json};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What is done on a machine without anything.
const NOTHING: &str = "this machine has no devices";

/// Something to do, and whom to tell when it is done.
type Asked = (Control, Sender<()>);

struct Empty {
    requests: Sender<Asked>,
    state: Mutex<RunState>,
    actions: Mutex<Actions>,
    events: Arc<Events>,
    jobs: Arc<Jobs>,
    migration: Arc<Migration>,
}

/// Runs the machine to its end: only the user can bring that about.
pub fn run(config: &Config) -> Result<i32> {
    if let Some(tag) = &config.load {
        bail!("-loadvm {tag}: -machine none has no state to go on from; use -machine pc");
    }
    if config.incoming.is_some() {
        bail!("-incoming: -machine none has no state that could arrive; use -machine pc");
    }
    let (requests, asked) = unbounded();
    let events = Arc::<Events>::default();
    let machine = Arc::new(Empty {
        requests,
        state: Mutex::new(RunState::Prelaunch),
        actions: Mutex::new(config.actions),
        jobs: Jobs::new(events.clone()),
        migration: Migration::new(events.clone()),
        events,
    });
    let chardevs = Arc::new(Chardevs::open(config)?);
    let host: Arc<dyn MonitorHost> = machine.clone();
    chardevs.start(config, &host)?;
    background::ready(config)?;
    if !config.start_paused {
        machine.set_state(RunState::Running);
    }
    machine.serve(&asked)
}

impl Empty {
    fn serve(&self, asked: &Receiver<Asked>) -> Result<i32> {
        for (what, done) in asked {
            let reason = match what {
                Control::Quit => Some("host-qmp-quit"),
                Control::Terminate => Some("host-signal"),
                Control::Stop if self.run_state() == RunState::Running => {
                    self.set_state(RunState::Paused);
                    None
                }
                Control::Continue => {
                    self.set_state(RunState::Running);
                    None
                }
                Control::Reset => {
                    self.events.emit("RESET", json!({ "guest": false, "reason": "host-qmp-system-reset" }));
                    None
                }
                Control::PowerButton => {
                    self.events.emit("POWERDOWN", Value::Null);
                    None
                }
                Control::Stop | Control::Nmi => None,
            };
            if let Some(reason) = reason {
                self.events.emit("SHUTDOWN", json!({ "guest": false, "reason": reason }));
            }
            // Fails only if the asker did not wait.
            let _ = done.send(());
            if reason.is_some() {
                return Ok(0);
            }
        }
        bail!("internal error: nothing can control the machine any more")
    }

    fn set_state(&self, state: RunState) {
        let before = std::mem::replace(&mut *self.state.lock().unwrap_or_else(PoisonError::into_inner), state);
        match (before == RunState::Running, state == RunState::Running) {
            (true, false) => self.events.emit("STOP", Value::Null),
            (false, true) => self.events.emit("RESUME", Value::Null),
            _ => {}
        }
    }
}

impl Plugging for Empty {}

impl BlockWork for Empty {}

impl Migrating for Empty {
    fn migration(&self) -> &Arc<Migration> {
        &self.migration
    }
}

impl MonitorHost for Empty {
    fn control(&self, what: Control) {
        let (done, wait) = bounded(1);
        if self.requests.send((what, done)).is_ok() {
            // Fails if the machine ends meanwhile.
            let _ = wait.recv();
        }
    }

    fn screen(&self) -> Option<Picture> {
        None
    }

    fn has_screen(&self, _device: &str) -> bool {
        false
    }

    fn snapshot(&self, _action: &SnapshotAction) -> Result<(), String> {
        Err("no block device can store vmstate for snapshot".to_owned())
    }

    fn start_snapshot(&self, id: &str, action: SnapshotAction) -> Result<(), String> {
        let work = |_: &Progress| Err("no block device can store vmstate for snapshot".to_owned());
        self.jobs.start(JobSpec::plain(id, action.kind()), work, |_| Ok(()))
    }

    fn jobs(&self) -> &Arc<Jobs> {
        &self.jobs
    }

    fn run_state(&self) -> RunState {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cpus(&self) -> u32 {
        0
    }

    fn registers(&self, _cpu: u32) -> Option<Registers> {
        None
    }

    fn register_dump(&self, _cpu: u32) -> Option<String> {
        None
    }

    fn translate(&self, _cpu: u32, _linear: u64) -> Option<u64> {
        None
    }

    fn read_physical(&self, _gpa: u64, _buf: &mut [u8]) -> bool {
        false
    }

    fn forward(&self, _open: bool, _netdev: Option<&str>, _rule: &str) -> Result<String, String> {
        Err("there is no user-mode network".to_owned())
    }

    fn set_link(&self, name: &str, _up: bool) -> Result<(), String> {
        Err(format!("there is no card or host end {name}"))
    }

    fn receptions(&self) -> Vec<(String, &'static str, Option<Reception>)> {
        Vec::new()
    }

    fn change_medium(&self, _change: &MediumChange) -> Result<(), String> {
        Err(NOTHING.to_owned())
    }

    fn set_balloon(&self, _bytes: u64) -> bool {
        false
    }

    fn balloon(&self) -> Option<(u64, Vec<(&'static str, u64)>)> {
        None
    }

    fn events(&self) -> &Arc<Events> {
        &self.events
    }

    fn thread_ids(&self) -> Vec<(u32, i32)> {
        Vec::new()
    }

    fn actions(&self) -> Actions {
        *self.actions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_actions(&self, actions: Actions) {
        *self.actions.lock().unwrap_or_else(PoisonError::into_inner) = actions;
    }

    // There is no firmware that would try anything.
    fn set_boot_order(&self, _order: &str) {}

    fn port_read(&self, _port: u16, size: u8) -> u32 {
        // What a bus without devices reads as.
        u32::MAX >> (32 - 8 * u32::from(size.clamp(1, 4)))
    }

    fn port_write(&self, _port: u16, _size: u8, _value: u32) {}

    fn press(&self, _keys: Vec<u16>, _hold: Duration) {}

    fn key(&self, _key: u16, _down: bool) {}

    fn point(&self, _pointer: Pointer) {}

    fn pci(&self) -> Vec<PciInfo> {
        Vec::new()
    }

    fn drives(&self) -> Vec<DriveInfo> {
        Vec::new()
    }

    fn devices(&self) -> Vec<(String, &'static str)> {
        Vec::new()
    }

    fn local_apic(&self, _cpu: u32) -> Option<String> {
        None
    }

    fn memory_map(&self) -> Vec<Range<u64>> {
        Vec::new()
    }

    fn while_paused(&self, work: &mut dyn FnMut() -> Result<u64, String>) -> Result<u64, String> {
        work()
    }

    fn note_dump(&self, _bytes: Option<u64>) {}

    fn last_dump(&self) -> (&'static str, u64) {
        ("none", 0)
    }

    fn start_debugger(&self, _endpoint: &str, _commands: Commands) -> Result<(), String> {
        Err("this machine has no processor to debug".to_owned())
    }

    fn inspect(&self, _topic: Topic) -> Option<String> {
        None
    }
}
