//! Where a host end's bytes go at the moment: a file or terminal for good, or whoever is connected.

use super::LAST;
use super::output::{Listener, Output};
use super::ring::Ring;
use super::{files, telnet, terminal};
use crate::events;
use brolga_devices::services::Line;
use brolga_devices::trace_event;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// A way out that may come and go. While there is none, bytes are dropped. Locks: `output` before `listener`.
pub struct Outlet {
    output: Mutex<Option<Arc<Output>>>,
    listener: Mutex<Option<Listener>>,
    kind: Kind,
    /// Keeps what is written in memory.
    ring: Option<Arc<Ring>>,
    /// Gets all that is written too, whoever is there (`logfile=`).
    log: OnceLock<Arc<Output>>,
    /// The host's serial line that this leads to.
    serial: OnceLock<File>,
}

/// What is at the other end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Something that is there for good, or nothing.
    Fixed,
    /// The user's terminal.
    Terminal,
    /// Peers who come and go, by telnet or not.
    Peers { telnet: bool },
}

impl Outlet {
    fn new(output: Option<Arc<Output>>, kind: Kind) -> Arc<Self> {
        let (output, log, serial) = (Mutex::new(output), OnceLock::new(), OnceLock::new());
        Arc::new(Self { output, listener: Mutex::default(), kind, ring: None, log, serial })
    }

    /// One that leads to memory.
    pub fn to_ring(ring: Arc<Ring>) -> Arc<Self> {
        let (output, listener, log) = (Mutex::default(), Mutex::default(), OnceLock::new());
        Arc::new(Self { output, listener, kind: Kind::Fixed, ring: Some(ring), log, serial: OnceLock::new() })
    }

    /// Has all that is written go to `log` too.
    pub fn log_to(&self, log: Arc<Output>) {
        // It is told once, when the host end is made.
        let _ = self.log.set(log);
    }

    /// What is written goes to this terminal of the host's, whose speed the guest sets.
    pub fn is_serial(&self, terminal: File) {
        // It is told once, when the host end is made.
        let _ = self.serial.set(terminal);
    }

    /// The guest has set its serial port so.
    pub fn set_line(&self, line: Line) {
        self.serial.get().into_iter().for_each(|terminal| files::set_line(terminal, line));
    }

    /// One that is open for good, or never.
    pub fn to(output: Option<Arc<Output>>) -> Arc<Self> {
        Self::new(output, Kind::Fixed)
    }

    /// One that leads to the user's terminal.
    pub fn to_terminal(output: Arc<Output>) -> Arc<Self> {
        Self::new(Some(output), Kind::Terminal)
    }

    /// One that is open while somebody is connected, by telnet or not.
    pub fn to_peers(telnet: bool) -> Arc<Self> {
        Self::new(None, Kind::Peers { telnet })
    }

    fn output(&self) -> MutexGuard<'_, Option<Arc<Output>>> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listener(&self) -> Option<Listener> {
        self.listener.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has `listener` called when there is room after there was none.
    pub fn listen(&self, listener: Listener) {
        *self.listener.lock().unwrap_or_else(PoisonError::into_inner) = Some(listener.clone());
        if let Some(output) = &*self.output() {
            output.listen(Some(listener));
        }
    }

    /// From now on bytes go there.
    pub fn set(&self, output: Option<Arc<Output>>) {
        let listener = self.listener();
        output.iter().for_each(|output| output.listen(listener.clone()));
        *self.output() = output;
    }

    fn telnet(&self) -> bool {
        self.kind == Kind::Peers { telnet: true }
    }

    /// Queues `bytes` for whoever is there.
    pub fn write(&self, bytes: &[u8]) {
        trace_event!(events::CHAR_WRITE, "{} bytes: {:02x?}", bytes.len(), bytes.get(..16).unwrap_or(bytes));
        if let Some(log) = self.log.get() {
            log.write(bytes);
        }
        if let Some(ring) = &self.ring {
            return ring.write(bytes);
        }
        // Not locked while the queue is full: the connection may be cut meanwhile.
        let output = self.output().clone();
        match output {
            Some(output) if self.telnet() => output.write(&telnet::encode(bytes)),
            Some(output) => output.write(bytes),
            None => {}
        }
    }

    /// Bytes that may be written now by those who can keep them.
    pub fn room(&self) -> usize {
        let output = self.output().clone();
        output.map_or(usize::MAX, |output| output.room())
    }

    /// Nothing is written to it any more: what is queued goes out, and its files are closed.
    pub fn end(&self) {
        let output = self.output().take();
        for output in output.iter().chain(self.log.get()) {
            output.listen(None);
            output.flush(LAST);
            output.close();
        }
    }

    /// Whether somebody is there.
    pub fn connected(&self) -> bool {
        !matches!(self.kind, Kind::Peers { .. }) || self.output().is_some()
    }

    /// Columns and rows, if it leads to the user's terminal.
    pub fn size(&self) -> Option<(u16, u16)> {
        if self.kind == Kind::Terminal { terminal::size() } else { None }
    }
}
