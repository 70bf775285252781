//! Host ends of character devices: what serial ports, debug consoles and the monitor talk to.
//!
//! Threads: each way out has a writer ([`output`]), standard input has a reader ([`input`]) that calls devices and
//! monitors directly. Nothing here runs on a vCPU's thread but putting bytes into a queue.

mod bridge;
mod files;
mod input;
mod later;
mod mux;
mod outlet;
mod output;
mod plain;
mod ring;
mod stream;
mod telnet;
pub mod terminal;
mod way;

pub use mux::FocusListener;
pub use stream::{connect_unix, held_by, listen_unix};

use crate::background;
use crate::cli::config::{CharId, CharKind, CharSpec, Config};
use crate::monitor::{CharHost, CharInfo, Control, Facts, Monitor, MonitorHost, Qmp};
use crate::signals;
use anyhow::Result;
use brolga_devices::services::{CharBackend, CharFrontend};
use input::{InputSink, Waker};
use mux::{Mux, MuxPort};
use outlet::Outlet;
use plain::Plain;
use ring::Ring;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::thread;
use std::time::Duration;
use way::{Changed, Way};

/// How long an output may make no progress at the end of the process before what is left is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// The same where the process ends for another reason, and for the last datagrams and messages.
const LAST: Duration = Duration::from_secs(1);

/// A host end's inner side.
enum HostEnd {
    Plain(Arc<Plain>),
    Mux(Arc<Mux>),
}

/// A host end.
struct End {
    spec: CharSpec,
    way: Way,
    host: HostEnd,
    /// A device or monitor uses it.
    used: bool,
}

/// What Ctrl-A x does.
type Quit = Arc<dyn Fn() + Send + Sync>;

/// All host ends of a machine.
pub struct Chardevs {
    /// By [`CharId`]; those that were taken away leave their place empty.
    ends: RwLock<Vec<Option<End>>>,
    program: String,
    escape: u8,
    /// Set when reading starts: host ends that come later start at once.
    quit: OnceLock<Quit>,
    /// Monitors live as long as the host ends.
    monitors: Mutex<Vec<Arc<Monitor>>>,
    /// Those for programs too.
    controls: Mutex<Vec<Arc<Qmp>>>,
}

/// A device's end of a host end.
pub struct CharPort(Port);

enum Port {
    Plain(Arc<Plain>),
    Mux(Arc<MuxPort>),
}

impl CharPort {
    /// What the device writes to.
    pub fn backend(&self) -> Arc<dyn CharBackend> {
        match &self.0 {
            Port::Plain(plain) => plain.clone(),
            Port::Mux(port) => port.clone(),
        }
    }

    /// Makes `device` the receiver of input.
    pub fn connect(&self, device: Weak<dyn CharFrontend>) {
        match &self.0 {
            Port::Plain(plain) => plain.connect(device),
            Port::Mux(port) => port.connect(device),
        }
    }

    /// Tells `listener` when input goes to this port (on a shared terminal).
    pub fn listen(&self, listener: Weak<dyn FocusListener>) {
        match &self.0 {
            Port::Plain(plain) => plain.listen(listener),
            Port::Mux(port) => port.listen(listener),
        }
    }
}

impl HostEnd {
    fn new(way: &Way, spec: &CharSpec, escape: u8) -> Result<Self> {
        let (outlet, waker) = (way.outlet.clone(), way.waker.clone());
        Ok(if spec.mux {
            Self::Mux(Mux::new(outlet, waker.map_or_else(Waker::new, Ok)?, escape))
        } else {
            Self::Plain(Plain::new(outlet, waker))
        })
    }

    /// Who takes the input; `quit` is what Ctrl-A x does there.
    fn sink(&self, quit: &Quit) -> Arc<dyn InputSink> {
        match self {
            Self::Plain(plain) => plain.clone(),
            Self::Mux(mux) => {
                mux.on_quit(quit.clone());
                mux.clone()
            }
        }
    }

    /// Who hears of peers.
    fn changed(&self) -> Changed {
        match self {
            Self::Plain(plain) => {
                let plain = plain.clone();
                Arc::new(move |open| {
                    if open {
                        plain.opened();
                    }
                    plain.host_changed();
                })
            }
            Self::Mux(mux) => {
                let mux = mux.clone();
                Arc::new(move |open| {
                    if open {
                        mux.opened();
                    }
                    mux.host_changed();
                })
            }
        }
    }
}

impl Chardevs {
    /// Opens the host ends that `config` names. Nothing is read and the terminal stays as it is before [`Self::start`].
    pub fn open(config: &Config) -> Result<Self> {
        let this = Self {
            ends: RwLock::default(),
            program: config.identity.program.clone(),
            escape: config.mux_escape,
            quit: OnceLock::new(),
            monitors: Mutex::default(),
            controls: Mutex::default(),
        };
        for (i, spec) in config.chardevs.iter().enumerate() {
            let end = this.open_one(spec)?;
            if let Some(name) = &end.way.pty {
                // Where scripts look for it.
                println!("char device redirected to {name} (label {})", spec.label);
            }
            this.put(CharId(i), end);
        }
        Ok(this)
    }

    fn open_one(&self, spec: &CharSpec) -> Result<End> {
        let way = Way::open(spec, &self.program)?;
        let host = HostEnd::new(&way, spec, self.escape)?;
        Ok(End { spec: spec.clone(), way, host, used: false })
    }

    fn all(&self) -> RwLockReadGuard<'_, Vec<Option<End>>> {
        self.ends.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn all_mut(&self) -> RwLockWriteGuard<'_, Vec<Option<End>>> {
        self.ends.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, id: CharId, end: End) {
        let mut all = self.all_mut();
        if all.len() <= id.0 {
            all.resize_with(id.0 + 1, || None);
        }
        all[id.0] = Some(end);
    }

    /// The end for one more device at host end `id`. On a shared terminal the first one has the keyboard.
    pub fn port(&self, id: CharId) -> CharPort {
        let mut all = self.all_mut();
        let Some(Some(end)) = all.get_mut(id.0) else {
            // Nothing refers to a host end that is not there; it would be one that drops everything.
            return CharPort(Port::Plain(Plain::new(Outlet::to(None), None)));
        };
        end.used = true;
        CharPort(match &end.host {
            HostEnd::Plain(plain) => Port::Plain(plain.clone()),
            HostEnd::Mux(mux) => Port::Mux(Arc::new(mux.add())),
        })
    }

    /// Makes the monitors, takes the terminal and starts reading. Call once, when the devices have their ports.
    pub fn start(self: &Arc<Self>, config: &Config, host: &Arc<dyn MonitorHost>) -> Result<()> {
        let mut monitors = self.monitors.lock().unwrap_or_else(PoisonError::into_inner);
        for &id in &config.monitors {
            let monitor = Monitor::start(self.port(id), host, self.facts(config));
            if !config.chardevs[id.0].mux {
                monitor.focused();
            }
            monitors.push(monitor);
        }
        drop(monitors);
        let mut many = self.start_controls(config, host);
        let end = |how: Control| -> Arc<dyn Fn() + Send + Sync> {
            let host = Arc::downgrade(host);
            Arc::new(move || match host.upgrade() {
                Some(host) => host.control(how),
                None => leave(0),
            })
        };
        let quit = self.quit.get_or_init(|| end(Control::Quit));
        signals::on_termination(end(Control::Terminate));
        // The terminal comes last: until then what is typed is the user's.
        for stdio in [false, true] {
            let mut all = self.all_mut();
            for (i, end) in all.iter_mut().enumerate() {
                let Some(end) = end else { continue };
                if matches!(end.spec.kind, CharKind::Stdio { .. }) != stdio {
                    continue;
                }
                match many.remove(&i) {
                    Some(make) => end.way.begin_many(make)?,
                    None => end.way.begin(end.host.sink(quit), end.host.changed())?,
                }
            }
        }
        Ok(())
    }

    /// Makes the monitors for programs. Those on servers are made for each client as it comes: what does that, by host end.
    fn start_controls(self: &Arc<Self>, config: &Config, host: &Arc<dyn MonitorHost>) -> BTreeMap<usize, ForClient> {
        let mut many: BTreeMap<usize, ForClient> = BTreeMap::new();
        for control in &config.controls {
            let (spec, facts, pretty) = (&config.chardevs[control.chardev.0], self.facts(config), control.pretty);
            let port = self.port(control.chardev);
            if !spec.mux && matches!(&spec.kind, CharKind::Socket(socket) if socket.server) {
                let host = Arc::downgrade(host);
                let make = move |plain: &Arc<Plain>| {
                    let port = CharPort(Port::Plain(plain.clone()));
                    Some(Qmp::start(&port, &host.upgrade()?, facts.clone(), pretty))
                };
                many.insert(control.chardev.0, Box::new(make));
                continue;
            }
            let qmp = Qmp::start(&port, host, facts, pretty);
            if !spec.mux {
                qmp.focused();
            }
            self.controls.lock().unwrap_or_else(PoisonError::into_inner).push(qmp);
        }
        many
    }

    /// The memory of a host end.
    fn ring(&self, label: &str) -> Result<Arc<Ring>, String> {
        let all = self.all();
        let end = all.iter().flatten().find(|end| end.spec.label == label);
        let end = end.ok_or_else(|| format!("Device '{label}' not found"))?;
        end.way.ring.clone().ok_or_else(|| format!("{label} is not a ringbuf device"))
    }

    /// What monitors know.
    pub fn facts(self: &Arc<Self>, config: &Config) -> Facts {
        let chardevs: Arc<dyn CharHost> = self.clone();
        Facts { config: Arc::new(config.clone()), chardevs: Arc::downgrade(&chardevs) }
    }
}

/// Makes the monitor of a client that has come; `None`: the machine is ending.
pub type ForClient = Box<dyn Fn(&Arc<Plain>) -> Option<Arc<Qmp>> + Send>;

impl CharHost for Chardevs {
    fn kinds(&self) -> &'static [&'static str] {
        &["file", "memory", "mux", "null", "pipe", "pty", "ringbuf", "serial", "socket", "stdio", "udp"]
    }

    fn list(&self) -> Vec<CharInfo> {
        let info = |end: &End| CharInfo {
            label: end.spec.label.clone(),
            filename: end.way.shown(&end.spec),
            frontend_open: end.used,
        };
        self.all().iter().flatten().map(info).collect()
    }

    fn ring_write(&self, label: &str, bytes: &[u8]) -> Result<(), String> {
        self.ring(label).map(|ring| ring.write(bytes))
    }

    fn ring_read(&self, label: &str, most: usize) -> Result<Vec<u8>, String> {
        self.ring(label).map(|ring| ring.read(most))
    }
}

/// Writes out what is queued and puts the terminal back: the last thing before the process ends.
pub fn finish() {
    output::flush_all(PATIENCE);
    bridge::settle(LAST);
    terminal::restore();
    files::remove_links();
    background::remove_pid();
}

/// Ends the process at once but tidily.
pub fn leave(status: i32) -> ! {
    output::flush_all(LAST);
    bridge::settle(LAST);
    terminal::restore();
    files::remove_links();
    background::remove_pid();
    std::process::exit(status)
}

/// Puts the terminal back before a panic's message is shown, and ends the process: a machine that lost a thread cannot go
/// on. Threads that compile code may fail alone: their panics are caught where they are started.
pub fn restore_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let caught = thread::current().name().is_some_and(|name| name.starts_with("jit"));
        if caught {
            return report(info);
        }
        output::flush_all(Duration::from_secs(1));
        terminal::restore();
        files::remove_links();
        background::remove_pid();
        report(info);
        std::process::exit(101);
    }));
}
