//! The host's side of a host end: what was opened, and how it is read and closed again.

use super::input::{self, InputSink, Waker};
use super::outlet::Outlet;
use super::output::Output;
use super::ring::Ring;
use super::stream::Stream;
use super::{ForClient, LAST, files, terminal};
use crate::cli::config::{CharKind, CharSpec, SocketAddress, SocketSpec};
use crate::signals;
use anyhow::{Context, Result};
use crossbeam_channel::Receiver;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// Where input comes from, before somebody reads it.
enum Source {
    File(OwnedFd),
    Stream(Box<Stream>),
    Stdin { signal: bool },
}

/// What was opened.
pub struct Way {
    /// Where bytes go.
    pub outlet: Arc<Outlet>,
    /// Wakes the reader.
    pub waker: Option<Waker>,
    /// Memory that a monitor reads.
    pub ring: Option<Arc<Ring>>,
    /// The pseudo-terminal's name.
    pub pty: Option<String>,
    /// Where it listens by TCP: the host may have chosen the port.
    local: Option<SocketAddress>,
    /// A socket in the file system, which goes with it.
    socket: Option<std::path::PathBuf>,
    source: Option<Source>,
    /// Clients have a monitor each: whether one is there says nothing.
    many: bool,
    /// Ends with the thread that takes peers in.
    running: Option<Receiver<()>>,
}

/// Who hears of peers that come and go, and of the terminal's size.
pub type Changed = Arc<dyn Fn(bool) + Send + Sync>;

impl Way {
    fn new(outlet: Arc<Outlet>) -> Self {
        let (waker, ring, pty, local, socket, source, many, running) = Default::default();
        Self { outlet, waker, ring, pty, local, socket, source, many, running }
    }

    /// Opens what `spec` names; `program` is for messages. Nothing is read and the terminal stays as it is before
    /// [`Self::begin`].
    pub fn open(spec: &CharSpec, program: &str) -> Result<Self> {
        let label = &spec.label;
        let this = match &spec.kind {
            CharKind::Null => Self::new(Outlet::to(None)),
            CharKind::File { path, append, input } => {
                let output = files::open(label, path, *append)?;
                let input = input.as_ref().map(|input| files::open_input(label, input)).transpose()?;
                let outlet = Outlet::to(Some(Output::start(label.clone(), output)?));
                input.map_or_else(|| Ok(Self::new(outlet.clone())), |input| Self::reading(outlet.clone(), input))?
            }
            CharKind::Pipe(path) => Self::both_ways(label, files::open_pipes(label, path)?)?,
            CharKind::Tty(path) => {
                let (input, output) = files::open_tty(label, path)?;
                let line = output.try_clone()?;
                let way = Self::both_ways(label, (input, output))?;
                way.outlet.is_serial(line);
                way
            }
            CharKind::Ring { size } => {
                let ring = Arc::new(Ring::new(*size));
                Self { ring: Some(ring.clone()), ..Self::new(Outlet::to_ring(ring)) }
            }
            CharKind::Udp { to, from } => Self::stream(Stream::udp(label, to, from)?),
            CharKind::Stdio { signal } => {
                let stdout = std::io::stdout().as_fd().try_clone_to_owned().context("standard output")?;
                let output = Output::start("stdout".into(), stdout.into())?;
                let waker = Waker::new().context("standard input")?;
                let source = Some(Source::Stdin { signal: *signal });
                Self { waker: Some(waker), source, ..Self::new(Outlet::to_terminal(output)) }
            }
            CharKind::Socket(socket) => {
                let way = Self::stream(Stream::socket(label, socket, program)?);
                let path = match socket {
                    // One that is in no file system goes by itself.
                    SocketSpec { address: SocketAddress::Unix(path), server: true, .. }
                        if !path.to_string_lossy().starts_with('\0') =>
                    {
                        Some(path.clone())
                    }
                    _ => None,
                };
                Self { socket: path, ..way }
            }
            CharKind::Pty(link) => {
                let (stream, name) = Stream::pty(label)?;
                link.iter().try_for_each(|link| files::link(label, &name, link))?;
                Self { pty: Some(name), ..Self::stream(stream) }
            }
        };
        if let Some(log) = &spec.log {
            this.outlet.log_to(Output::start(format!("{label}-log"), files::open(label, &log.path, log.append)?)?);
        }
        Ok(this)
    }

    fn reading(outlet: Arc<Outlet>, input: File) -> Result<Self> {
        Ok(Self { waker: Some(Waker::new()?), source: Some(Source::File(input.into())), ..Self::new(outlet) })
    }

    /// Files that are there for good, one to read and one to write.
    fn both_ways(label: &str, (input, output): (File, File)) -> Result<Self> {
        Self::reading(Outlet::to(Some(Output::start(label.to_owned(), output)?)), input)
    }

    fn stream(stream: Stream) -> Self {
        let (outlet, waker) = stream.ends();
        let local = stream.local();
        Self { waker: Some(waker), local, source: Some(Source::Stream(Box::new(stream))), ..Self::new(outlet) }
    }

    /// Starts to read for `sink`; `changed` hears of peers.
    pub fn begin(&mut self, sink: Arc<dyn InputSink>, changed: Changed) -> Result<()> {
        let waker = self.waker.clone();
        match (self.source.take(), waker) {
            (Some(Source::Stream(stream)), _) => self.running = Some(stream.start(sink, move |open| changed(open))?),
            (Some(Source::File(input)), Some(waker)) => input::start(input, waker, sink)?,
            (Some(Source::Stdin { signal }), Some(waker)) => {
                signals::on_resize(Arc::new(move || changed(false)));
                terminal::make_raw(signal).context("cannot set up the terminal")?;
                let stdin = std::io::stdin().as_fd().try_clone_to_owned().context("standard input")?;
                input::start(stdin, waker, sink)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Starts to take in clients, each with a monitor of its own that `make` makes.
    pub fn begin_many(&mut self, make: ForClient) -> Result<()> {
        if let Some(Source::Stream(stream)) = self.source.take() {
            stream.start_many(make)?;
            self.many = true;
        }
        Ok(())
    }

    /// Ends its threads and closes its files. What was written before goes out, if somebody takes it.
    pub fn end(&self, spec: &CharSpec) {
        self.waker.iter().for_each(Waker::stop);
        if let Some(path) = &self.socket {
            // Somebody may have removed it.
            let _ = std::fs::remove_file(path);
        }
        if let CharKind::Pty(Some(link)) = &spec.kind {
            files::remove_link(link);
        }
        self.outlet.end();
        // Its port is free when this returns, unless the thread is busy with something that takes long.
        if let Some(running) = &self.running {
            let _ = running.recv_timeout(LAST);
        }
        if matches!(spec.kind, CharKind::Stdio { .. }) {
            terminal::restore();
        }
    }

    /// What it is, in the form that `info chardev` has.
    pub fn shown(&self, spec: &CharSpec) -> String {
        let away = || if self.many || self.outlet.connected() { "" } else { "disconnected:" };
        let text = match &spec.kind {
            CharKind::Null => "null".to_owned(),
            CharKind::Stdio { .. } => "stdio".to_owned(),
            CharKind::File { path, .. } => format!("file:{}", path.display()),
            CharKind::Socket(s) if s.server => {
                format!("{}{},server=on", away(), self.local.as_ref().unwrap_or(&s.address))
            }
            CharKind::Socket(s) => format!("{}{}", away(), s.address),
            CharKind::Pipe(path) => format!("pipe:{}", path.display()),
            CharKind::Tty(path) => path.display().to_string(),
            CharKind::Ring { .. } => "ringbuf".to_owned(),
            CharKind::Udp { to, .. } => format!("udp:{}:{}", to.0, to.1),
            CharKind::Pty(_) => format!("pty:{}", self.pty.as_deref().unwrap_or_default()),
        };
        format!("{}{text}", if spec.mux { "mux, " } else { "" })
    }
}
