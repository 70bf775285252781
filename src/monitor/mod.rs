//! The monitor: commands that people and scripts type to look at and steer the machine.

mod commands;
mod expression;
mod host;
mod line;
mod memory;

pub use host::{Control, MediumChange, MonitorHost, RunState, Topic};

use crate::chardev::{CharPort, FocusListener};
use crate::cli::config::Identity;
use brolga_devices::services::{CharBackend, CharFrontend};
use line::LineEditor;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// What the monitor knows without asking the machine.
pub struct Facts {
    /// How the program was called: its name and whether QEMU's prompt is expected.
    pub identity: Identity,
    /// `-name`.
    pub name: Option<String>,
    /// `-uuid`.
    pub uuid: Option<[u8; 16]>,
    /// Lines of `info chardev`.
    pub chardevs: Vec<String>,
}

/// The monitor's commands for those who have a way of their own to type them.
pub struct Commands {
    facts: Facts,
    state: commands::State,
}

impl Commands {
    /// With what the monitor is to know.
    pub fn new(facts: Facts) -> Self {
        Self { facts, state: commands::State::default() }
    }

    /// Runs one command line: what it shows.
    pub fn run(&mut self, host: &dyn MonitorHost, line: &str) -> String {
        commands::run(host, &self.facts, &mut self.state, line)
    }
}

/// A monitor on a character device. Commands run on the thread that brings input.
pub struct Monitor {
    backend: Arc<dyn CharBackend>,
    host: Weak<dyn MonitorHost>,
    facts: Facts,
    /// Not held while a command runs.
    session: Mutex<Session>,
}

struct Session {
    editor: LineEditor,
    /// The greeting was shown.
    greeted: bool,
    state: commands::State,
}

impl Monitor {
    /// A monitor at `port`. It greets when it first gets the keyboard ([`FocusListener::focused`]).
    pub fn start(port: CharPort, host: &Arc<dyn MonitorHost>, facts: Facts) -> Arc<Self> {
        let session = Session { editor: LineEditor::new(), greeted: false, state: commands::State::default() };
        let this =
            Arc::new(Self { backend: port.backend(), host: Arc::downgrade(host), facts, session: Mutex::new(session) });
        port.connect(Arc::downgrade(&this) as Weak<dyn CharFrontend>);
        port.listen(Arc::downgrade(&this) as Weak<dyn FocusListener>);
        this
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn prompt(&self) -> &'static str {
        if self.facts.identity.qemu { "(qemu) " } else { "(brolga) " }
    }

    /// Runs one command line and shows its output.
    fn run(&self, line: &str) {
        let Some(host) = self.host.upgrade() else { return };
        let mut state = self.session().state.clone();
        let text = commands::run(&*host, &self.facts, &mut state, line);
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
    fn can_receive(&self) -> usize {
        // A line's worth: commands run at once.
        256
    }

    fn receive(&self, bytes: &[u8]) {
        for &byte in bytes {
            let mut echo = Vec::new();
            let line = self.session().editor.input(byte, &mut echo);
            self.backend.write(&echo);
            if let Some(line) = line {
                self.run(&line);
                self.show(self.prompt());
            }
        }
    }
}
