//! The monitor: commands that people type (HMP) and programs send (QMP) to look at and steer the machine. Both come from one
//! [`table`]: names, arguments with types, handlers; `help` and QMP's introspection are made from it.

mod block_work;
mod call;
mod commands;
mod compressed_dump;
mod core_file;
pub(crate) mod events;
mod examine;
mod expression;
mod fault;
mod hmp;
mod host;
mod jobs;
mod line;
mod migrating;
mod paging;
mod plugging;
mod qcode;
mod qmp;
mod table;
#[cfg(test)]
mod tests;
mod types;

pub use block_work::{BlockJob, BlockTask, BlockWork, ImageChange, NewImage, Offer};
pub use events::Events;
pub use fault::{Class, Fault};
pub use host::{
    CharHost, CharInfo, Control, Counter, DriveInfo, DriveStatistics, Kept, MediumChange, MediumInfo, MonitorHost,
    PciInfo, PciRegion, Pointer, RunState, SnapshotAction, Topic,
};
pub use jobs::{Busy, JobSpec, Jobs, Progress, Word};
pub use migrating::Migrating;
pub use plugging::{DeviceInfo, LiveProperty, ObjectInfo, Plugging};
pub use qmp::{Qmp, settle};

use crate::chardev::{CharPort, FocusListener};
use crate::cli::config::Config;
use brolga_devices::services::{CharBackend, CharFrontend};
use call::State;
use line::LineEditor;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// What the monitor knows without asking the machine.
#[derive(Clone)]
pub struct Facts {
    /// What the machine was made from.
    pub config: Arc<Config>,
    /// Host ends of character devices.
    pub chardevs: Weak<dyn CharHost>,
}

/// No host ends: the process is ending.
struct NoChars;

impl CharHost for NoChars {
    fn list(&self) -> Vec<CharInfo> {
        Vec::new()
    }

    fn kinds(&self) -> &'static [&'static str] {
        &[]
    }

    fn ring_write(&self, label: &str, _bytes: &[u8]) -> Result<(), String> {
        Err(format!("Device '{label}' not found"))
    }

    fn ring_read(&self, label: &str, _most: usize) -> Result<Vec<u8>, String> {
        Err(format!("Device '{label}' not found"))
    }
}

impl Facts {
    /// Host ends of character devices.
    fn chars(&self) -> Arc<dyn CharHost> {
        self.chardevs.upgrade().unwrap_or_else(|| Arc::new(NoChars))
    }
}

/// The monitor's commands for those who have a way of their own to type them.
pub struct Commands {
    facts: Facts,
    state: State,
}

impl Commands {
    /// With what the monitor is to know.
    pub fn new(facts: Facts) -> Self {
        Self { facts, state: State::default() }
    }

    /// Runs one command line: what it shows.
    pub fn run(&mut self, host: &dyn MonitorHost, line: &str) -> String {
        hmp::run(host, &self.facts, &mut self.state, line)
    }
}

/// A monitor on a character device. Commands run on the thread that brings input.
pub struct Monitor {
    backend: Arc<dyn CharBackend>,
    host: Weak<dyn MonitorHost>,
    facts: Facts,
    /// Not held while a command runs.
    session: Mutex<Session>,
    /// Those that came with the last bytes, the first at the end.
    descriptors: Mutex<Vec<OwnedFd>>,
}

struct Session {
    editor: LineEditor,
    /// The greeting was shown.
    greeted: bool,
    state: State,
}

impl Monitor {
    /// A monitor at `port`. It greets when it first gets the keyboard ([`FocusListener::focused`]).
    pub fn start(port: CharPort, host: &Arc<dyn MonitorHost>, facts: Facts) -> Arc<Self> {
        let session = Session { editor: LineEditor::new(), greeted: false, state: State::default() };
        let this = Arc::new(Self {
            backend: port.backend(),
            host: Arc::downgrade(host),
            facts,
            session: Mutex::new(session),
            descriptors: Mutex::default(),
        });
        port.connect(Arc::downgrade(&this) as Weak<dyn CharFrontend>);
        port.listen(Arc::downgrade(&this) as Weak<dyn FocusListener>);
        this
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn prompt(&self) -> &'static str {
        if self.facts.config.identity.qemu { "(qemu) " } else { "(brolga) " }
    }

    /// Runs one command line and shows its output.
    fn run(&self, line: &str) {
        let Some(host) = self.host.upgrade() else { return };
        let mut state = {
            let session = self.session();
            State { history: session.editor.history(), ..session.state.clone() }
        };
        let descriptor = || self.descriptors.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let text = hmp::run_with(&*host, &self.facts, &mut state, line, &descriptor);
        self.session().state = state;
        self.show(&text);
    }

    fn show(&self, text: &str) {
        self.backend.write(text.replace('\n', "\r\n").as_bytes());
    }
}

impl FocusListener for Monitor {
    fn opened(&self) {
        {
            let mut session = self.session();
            (session.greeted, session.editor) = (false, LineEditor::new());
        }
        self.focused();
    }

    fn focused(&self) {
        let mut text = String::new();
        let mut session = self.session();
        if !std::mem::replace(&mut session.greeted, true) {
            let version = crate::cli::VERSION;
            text += &format!("Brolga {version} monitor - type 'help' for more information");
        }
        text += "\n";
        text += self.prompt();
        text += &String::from_utf8_lossy(session.editor.typed());
        drop(session);
        self.show(&text);
    }
}

impl CharFrontend for Monitor {
    fn swaps(&self) -> bool {
        // What was begun would go on with somebody else.
        false
    }

    fn receive_descriptors(&self, mut descriptors: Vec<OwnedFd>) {
        descriptors.reverse();
        *self.descriptors.lock().unwrap_or_else(PoisonError::into_inner) = descriptors;
    }

    fn can_receive(&self) -> usize {
        // A line's worth: commands run at once.
        256
    }

    fn receive(&self, bytes: &[u8]) {
        for &byte in bytes {
            let mut echo = Vec::new();
            let line = self.session().editor.input(byte, &mut echo, &hmp::complete);
            self.backend.write(&echo);
            if let Some(line) = line {
                self.run(&line);
                self.show(self.prompt());
            }
        }
    }
}
