//! Host ends of character devices: what serial ports, debug consoles and the monitor talk to.
//!
//! Threads: each way out has a writer ([`output`]), standard input has a reader ([`input`]) that calls devices and
//! monitors directly. Nothing here runs on a vCPU's thread but putting bytes into a queue.

mod bridge;
mod files;
mod input;
mod mux;
mod outlet;
mod output;
mod plain;
mod ring;
mod stream;
mod telnet;
pub mod terminal;

pub use mux::FocusListener;
pub use stream::{held_by, listen_unix};

use crate::background;
use crate::cli::config::{CharId, CharKind, CharSpec, Config};
use crate::monitor::{CharHost, CharInfo, Control, Facts, Monitor, MonitorHost, Qmp};
use crate::signals;
use anyhow::{Context, Result};
use brolga_devices::services::{CharBackend, CharFrontend};
use input::{InputSink, Waker};
use mux::{Mux, MuxPort};
use outlet::Outlet;
use output::Output;
use plain::Plain;
use ring::Ring;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;
use stream::Stream;

/// How long an output may make no progress at the end of the process before what is left is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// The same where the process ends for another reason, and for the last datagrams and messages.
const LAST: Duration = Duration::from_secs(1);

/// A host end.
enum HostEnd {
    Plain(Arc<Plain>),
    Mux(Arc<Mux>),
}

/// All host ends of a machine.
pub struct Chardevs {
    ends: Vec<HostEnd>,
    specs: Vec<CharSpec>,
    /// Standard input's reader to be, if a host end has it.
    stdin: Option<(usize, Waker)>,
    /// Files to read, with their host ends and what wakes their readers.
    inputs: Mutex<Vec<(usize, OwnedFd, Waker)>>,
    /// Those in memory.
    rings: BTreeMap<usize, Arc<Ring>>,
    /// Streams that nobody listens to yet, with their host ends.
    streams: Mutex<Vec<(usize, Stream)>>,
    /// Host ends that a device or monitor uses.
    used: BTreeSet<usize>,
    /// Names of pseudo-terminals, by host end.
    ptys: BTreeMap<usize, String>,
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

impl Chardevs {
    /// Opens the host ends that `config` names. Nothing is read and the terminal stays as it is before [`Self::start`].
    pub fn open(config: &Config) -> Result<Self> {
        let mut this = Self {
            ends: Vec::new(),
            specs: config.chardevs.clone(),
            stdin: None,
            inputs: Mutex::default(),
            rings: BTreeMap::new(),
            streams: Mutex::default(),
            used: used(config),
            ptys: BTreeMap::new(),
            monitors: Mutex::default(),
            controls: Mutex::default(),
        };
        for (i, spec) in config.chardevs.iter().enumerate() {
            let end = this.open_one(i, spec, config)?;
            this.ends.push(end);
        }
        Ok(this)
    }

    fn open_one(&mut self, index: usize, spec: &CharSpec, config: &Config) -> Result<HostEnd> {
        let (outlet, waker) = match &spec.kind {
            CharKind::Null => (Outlet::to(None), None),
            CharKind::File { path, append, input } => {
                let output = Output::start(spec.label.clone(), files::open(&spec.label, path, *append)?)?;
                let input = input.as_ref().map(|input| files::open_input(&spec.label, input)).transpose()?;
                let waker = input.map(|input| self.read(index, input.into())).transpose()?;
                (Outlet::to(Some(output)), waker)
            }
            CharKind::Pipe(path) => self.both_ways(index, &spec.label, files::open_pipes(&spec.label, path)?)?,
            CharKind::Tty(path) => self.both_ways(index, &spec.label, files::open_tty(&spec.label, path)?)?,
            CharKind::Ring { size } => {
                let ring = Arc::new(Ring::new(*size));
                self.rings.insert(index, ring.clone());
                (Outlet::to_ring(ring), None)
            }
            CharKind::Udp { to, from } => {
                let stream = Stream::udp(&spec.label, to, from)?;
                self.keep(index, stream)
            }
            CharKind::Stdio { .. } => {
                let stdout = std::io::stdout().as_fd().try_clone_to_owned().context("standard output")?;
                let output = Output::start("stdout".into(), stdout.into())?;
                let waker = Waker::new().context("standard input")?;
                self.stdin = Some((index, waker.clone()));
                (Outlet::to_terminal(output), Some(waker))
            }
            CharKind::Socket(socket) => {
                let stream = Stream::socket(&spec.label, socket, &config.identity.program)?;
                self.keep(index, stream)
            }
            CharKind::Pty => {
                let (stream, name) = Stream::pty(&spec.label)?;
                // Where scripts look for it.
                println!("char device redirected to {name} (label {})", spec.label);
                self.ptys.insert(index, name);
                self.keep(index, stream)
            }
        };
        if let Some(log) = &spec.log {
            let name = format!("{}-log", spec.label);
            outlet.log_to(Output::start(name, files::open(&spec.label, &log.path, log.append)?)?);
        }
        Ok(if spec.mux {
            HostEnd::Mux(Mux::new(outlet, waker.map_or_else(Waker::new, Ok)?, config.mux_escape))
        } else {
            HostEnd::Plain(Plain::new(outlet, waker))
        })
    }

    /// Has `source` read from [`Self::start`] on; what wakes the reader.
    fn read(&mut self, index: usize, source: OwnedFd) -> Result<Waker> {
        let waker = Waker::new()?;
        self.inputs.get_mut().unwrap_or_else(PoisonError::into_inner).push((index, source, waker.clone()));
        Ok(waker)
    }

    /// Files that are there for good, one to read and one to write.
    fn both_ways(
        &mut self,
        index: usize,
        label: &str,
        (input, output): (File, File),
    ) -> Result<(Arc<Outlet>, Option<Waker>)> {
        let waker = self.read(index, input.into())?;
        Ok((Outlet::to(Some(Output::start(label.to_owned(), output)?)), Some(waker)))
    }

    /// Keeps a stream until [`Self::start`].
    fn keep(&mut self, index: usize, stream: Stream) -> (Arc<Outlet>, Option<Waker>) {
        let (outlet, waker) = stream.ends();
        self.streams.get_mut().unwrap_or_else(PoisonError::into_inner).push((index, stream));
        (outlet, Some(waker))
    }

    /// The end for one more device at host end `id`. On a shared terminal the first one has the keyboard.
    pub fn port(&self, id: CharId) -> CharPort {
        CharPort(match &self.ends[id.0] {
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
        let many = self.start_controls(config, host);
        let end = |how: Control| -> Arc<dyn Fn() + Send + Sync> {
            let host = Arc::downgrade(host);
            Arc::new(move || match host.upgrade() {
                Some(host) => host.control(how),
                None => leave(0),
            })
        };
        let quit = end(Control::Quit);
        signals::on_termination(end(Control::Terminate));
        self.start_streams(&quit, many)?;
        let inputs = std::mem::take(&mut *self.inputs.lock().unwrap_or_else(PoisonError::into_inner));
        for (index, source, waker) in inputs {
            input::start(source, waker, self.sink(index, &quit))?;
        }
        let Some((index, waker)) = &self.stdin else { return Ok(()) };
        let sink = self.sink(*index, &quit);
        let resized: Arc<dyn Fn() + Send + Sync> = match &self.ends[*index] {
            HostEnd::Plain(plain) => {
                let plain = plain.clone();
                Arc::new(move || plain.host_changed())
            }
            HostEnd::Mux(mux) => {
                let mux = mux.clone();
                Arc::new(move || mux.host_changed())
            }
        };
        signals::on_resize(resized);
        let signal = self.specs[*index].kind == CharKind::Stdio { signal: true };
        terminal::make_raw(signal).context("cannot set up the terminal")?;
        let stdin = std::io::stdin().as_fd().try_clone_to_owned().context("standard input")?;
        input::start(stdin, waker.clone(), sink)?;
        Ok(())
    }

    /// Who takes the input of a host end; `quit` is what Ctrl-A x does there.
    fn sink(&self, index: usize, quit: &Arc<dyn Fn() + Send + Sync>) -> Arc<dyn InputSink> {
        match &self.ends[index] {
            HostEnd::Plain(plain) => plain.clone(),
            HostEnd::Mux(mux) => {
                mux.on_quit(quit.clone());
                mux.clone()
            }
        }
    }

    /// Makes the monitors for programs. Those on servers are made for each client as it comes: what does that, by host end.
    fn start_controls(self: &Arc<Self>, config: &Config, host: &Arc<dyn MonitorHost>) -> BTreeMap<usize, ForClient> {
        let mut many: BTreeMap<usize, ForClient> = BTreeMap::new();
        for control in &config.controls {
            let (spec, facts, pretty) = (&config.chardevs[control.chardev.0], self.facts(config), control.pretty);
            if !spec.mux && matches!(&spec.kind, CharKind::Socket(socket) if socket.server) {
                let host = Arc::downgrade(host);
                let make = move |plain: &Arc<Plain>| {
                    let port = CharPort(Port::Plain(plain.clone()));
                    Some(Qmp::start(&port, &host.upgrade()?, facts.clone(), pretty))
                };
                many.insert(control.chardev.0, Box::new(make));
                continue;
            }
            let qmp = Qmp::start(&self.port(control.chardev), host, facts, pretty);
            if !spec.mux {
                qmp.focused();
            }
            self.controls.lock().unwrap_or_else(PoisonError::into_inner).push(qmp);
        }
        many
    }

    fn start_streams(&self, quit: &Arc<dyn Fn() + Send + Sync>, mut many: BTreeMap<usize, ForClient>) -> Result<()> {
        let streams = std::mem::take(&mut *self.streams.lock().unwrap_or_else(PoisonError::into_inner));
        for (index, stream) in streams {
            if let Some(make) = many.remove(&index) {
                stream.start_many(make)?;
                continue;
            }
            match &self.ends[index] {
                HostEnd::Plain(plain) => {
                    let opened = plain.clone();
                    stream.start(plain.clone(), move |open| {
                        if open {
                            opened.opened();
                        }
                        opened.host_changed();
                    })?;
                }
                HostEnd::Mux(mux) => {
                    mux.on_quit(quit.clone());
                    let opened = mux.clone();
                    stream.start(mux.clone(), move |open| {
                        if open {
                            opened.opened();
                        }
                        opened.host_changed();
                    })?;
                }
            }
        }
        Ok(())
    }

    /// The memory of a host end.
    fn ring(&self, label: &str) -> Result<&Arc<Ring>, String> {
        let index = self.specs.iter().position(|spec| spec.label == label);
        let index = index.ok_or_else(|| format!("Device '{label}' not found"))?;
        self.rings.get(&index).ok_or_else(|| format!("{label} is not a ringbuf device"))
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
        let shown = |i: usize, spec: &CharSpec| match &spec.kind {
            CharKind::Null => "null".to_owned(),
            CharKind::Stdio { .. } => "stdio".to_owned(),
            CharKind::File { path, .. } => format!("file:{}", path.display()),
            CharKind::Socket(s) if s.server => format!("{},server=on", s.address),
            CharKind::Socket(s) => s.address.to_string(),
            CharKind::Pipe(path) => format!("pipe:{}", path.display()),
            CharKind::Tty(path) => path.display().to_string(),
            CharKind::Ring { .. } => "ringbuf".to_owned(),
            CharKind::Udp { to, .. } => format!("udp:{}:{}", to.0, to.1),
            CharKind::Pty => format!("pty:{}", self.ptys.get(&i).map_or("", String::as_str)),
        };
        let mux = |spec: &CharSpec| if spec.mux { "mux, " } else { "" };
        let info = |(i, spec): (usize, &CharSpec)| CharInfo {
            label: spec.label.clone(),
            filename: format!("{}{}", mux(spec), shown(i, spec)),
            frontend_open: self.used.contains(&i),
        };
        self.specs.iter().enumerate().map(info).collect()
    }

    fn ring_write(&self, label: &str, bytes: &[u8]) -> Result<(), String> {
        self.ring(label).map(|ring| ring.write(bytes))
    }

    fn ring_read(&self, label: &str, most: usize) -> Result<Vec<u8>, String> {
        self.ring(label).map(|ring| ring.read(most))
    }
}

/// Host ends that the configuration has a use for.
fn used(config: &Config) -> BTreeSet<usize> {
    let ports = config.peripherals.serial_buses.iter().flat_map(|bus| &bus.ports).map(|port| port.chardev);
    let serials = config.serials.iter().flatten().copied();
    let consoles = config.debug_consoles.iter().map(|console| console.chardev);
    let monitors = config.monitors.iter().copied().chain(config.controls.iter().map(|control| control.chardev));
    ports.chain(serials).chain(consoles).chain(monitors).map(|id| id.0).collect()
}

/// Writes out what is queued and puts the terminal back: the last thing before the process ends.
pub fn finish() {
    output::flush_all(PATIENCE);
    bridge::settle(LAST);
    terminal::restore();
    background::remove_pid();
}

/// Ends the process at once but tidily.
pub fn leave(status: i32) -> ! {
    output::flush_all(LAST);
    bridge::settle(LAST);
    terminal::restore();
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
        background::remove_pid();
        report(info);
        std::process::exit(101);
    }));
}
