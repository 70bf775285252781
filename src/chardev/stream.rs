//! Host ends that others connect to: sockets (TCP, Unix, telnet) and pseudo-terminals. Each has a thread that waits for a
//! peer, reads what it sends, and waits for the next one when it has gone.

use super::ForClient;
use super::bridge;
use super::files::option;
use super::input::{self, InputSink, Waker};
use super::mux::FocusListener;
use super::outlet::Outlet;
use super::output::Output;
use super::plain::Plain;
use super::telnet;
use crate::cli::config::{SocketAddress, SocketSpec};
use crate::net::descriptor::inherited;
use crate::net::holder::{by_whom, by_whom_at};
use anyhow::{Context, Result, anyhow};
use crossbeam_channel::{Receiver, bounded};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use rustix::net::AddressFamily;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How often a pseudo-terminal that nobody has open is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How long the last bytes of a connection may take to go out once the peer has closed its side.
const LINGER: Duration = Duration::from_secs(1);

/// Someone who is connected.
pub struct Peer {
    input: OwnedFd,
    output: File,
}

/// Someone who gets what is written.
struct Met {
    input: OwnedFd,
    output: Arc<Output>,
}

/// Where peers come from.
enum Source {
    Tcp(TcpListener),
    Unix(UnixListener),
    /// Connects itself; anew after this time, or not.
    Client(SocketAddress, Option<Duration>),
    Pty(PtyMaster),
    /// Web clients that come from there.
    Web(Box<Source>),
    /// There will be none.
    Nobody,
}

/// Most clients of one server at a time; more wait until one has left.
const MOST_CLIENTS: usize = 64;

/// Counts clients.
#[derive(Default)]
struct Clients {
    count: Mutex<usize>,
    left: Condvar,
}

/// A client's place; it is free again when this is dropped.
struct Seat(Arc<Clients>);

impl Clients {
    /// Waits until there is a place.
    fn wait(&self) {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        while *count >= MOST_CLIENTS {
            count = self.left.wait(count).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn take(self: &Arc<Self>) -> Seat {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Seat(self.clone())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        *self.0.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.left.notify_all();
    }
}

/// A stream to be: open, but nobody is listened to yet.
pub struct Stream {
    label: String,
    source: Source,
    /// Who is there already.
    first: Option<Peer>,
    telnet: bool,
    outlet: Arc<Outlet>,
    waker: Waker,
}

fn tcp(stream: TcpStream) -> io::Result<OwnedFd> {
    // Keystrokes and their echo are not to wait for more.
    stream.set_nodelay(true)?;
    Ok(stream.into())
}

impl Source {
    /// Waits for the next peer; `None`: there will be none.
    fn next(&mut self, waker: &Waker) -> io::Result<Option<Peer>> {
        let socket: OwnedFd = match self {
            Self::Tcp(listener) if waker.wait_for(listener)? => tcp(listener.accept()?.0)?,
            Self::Unix(listener) if waker.wait_for(listener)? => listener.accept()?.0.into(),
            Self::Tcp(_) | Self::Unix(_) => return Ok(None),
            Self::Web(source) => return source.next(waker)?.map(web_peer).transpose(),
            Self::Client(_, None) | Self::Nobody => return Ok(None),
            Self::Client(address, Some(time)) => {
                pause(waker, *time);
                if waker.stopped() {
                    return Ok(None);
                }
                connect(address)?
            }
            Self::Pty(master) => {
                // Nobody has the other side open: hung up.
                while hung_up(master)? {
                    pause(waker, LOOK);
                    if waker.stopped() {
                        return Ok(None);
                    }
                }
                master.as_fd().try_clone_to_owned()?
            }
        };
        Peer::of(socket).map(Some)
    }

    /// Where it listens, if the host chose the port.
    fn local(&self) -> Option<SocketAddress> {
        match self {
            Self::Tcp(listener) => listener
                .local_addr()
                .ok()
                .map(|address| SocketAddress::Tcp { host: address.ip().to_string(), port: address.port() }),
            Self::Web(source) => source.local(),
            _ => None,
        }
    }
}

/// Waits for `time`, or until the host end is taken away.
fn pause(waker: &Waker, time: Duration) {
    let end = Instant::now() + time;
    while !waker.stopped() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        waker.pause(PollTimeout::try_from(left.as_millis().max(1)).unwrap_or(PollTimeout::MAX));
    }
}

impl Source {
    /// Where the next peer knocks, if peers come by themselves.
    fn door(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Tcp(listener) => Some(listener.as_fd()),
            Self::Unix(listener) => Some(listener.as_fd()),
            Self::Web(source) => source.door(),
            Self::Client(..) | Self::Pty(_) | Self::Nobody => None,
        }
    }
}

impl Peer {
    fn of(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self { output: socket.try_clone()?.into(), input: socket })
    }
}

/// What a web client says, as bytes.
fn web_peer(peer: Peer) -> io::Result<Peer> {
    Peer::of(bridge::web_client(TcpStream::from(peer.input))?)
}

/// A socket that somebody else has set up to be listened at.
fn listening(number: i32) -> io::Result<Source> {
    let socket = inherited(number)?;
    if !rustix::net::sockopt::socket_acceptconn(&socket)? {
        return Err(io::Error::new(ErrorKind::InvalidInput, "the descriptor is no listening socket"));
    }
    match rustix::net::sockopt::socket_domain(&socket)? {
        AddressFamily::UNIX => Ok(Source::Unix(socket.into())),
        AddressFamily::INET | AddressFamily::INET6 => Ok(Source::Tcp(socket.into())),
        _ => Err(io::Error::new(ErrorKind::InvalidInput, "the descriptor is no socket of a kind that is known")),
    }
}

fn hung_up(master: &PtyMaster) -> io::Result<bool> {
    let mut fds = [PollFd::new(master.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO)?;
    Ok(fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP)))
}

fn connect(address: &SocketAddress) -> io::Result<OwnedFd> {
    match address {
        SocketAddress::Inherited(number) => inherited(*number),
        SocketAddress::Tcp { host, port } => tcp(TcpStream::connect((host.as_str(), *port))?),
        SocketAddress::Unix(path) => Ok(connect_unix(path)?.into()),
    }
}

/// The name of a socket that is in no file system (unix(7)): its path begins with a zero byte.
fn abstract_name(path: &Path) -> Option<&[u8]> {
    path.as_os_str().as_bytes().strip_prefix(&[0])
}

/// Connects to a path, or to a name.
pub fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    match abstract_name(path) {
        Some(name) => UnixStream::connect_addr(&UnixAddress::from_abstract_name(name)?),
        None => UnixStream::connect(path),
    }
}

/// Who has the address that is taken already.
pub fn held_by(address: &SocketAddress, error: &io::Error) -> String {
    match address {
        _ if error.kind() != ErrorKind::AddrInUse => String::new(),
        SocketAddress::Tcp { port, .. } => by_whom(false, *port),
        SocketAddress::Unix(path) if abstract_name(path).is_none() => by_whom_at(path),
        SocketAddress::Unix(_) => String::new(),
        SocketAddress::Inherited(_) => String::new(),
    }
}

/// Listens at `port`, or the first free one behind it up to `last`.
fn listen_tcp(host: &str, port: u16, last: Option<u16>) -> io::Result<TcpListener> {
    let last = last.unwrap_or(port);
    for port in port..last {
        match TcpListener::bind((host, port)) {
            Err(e) if e.kind() == ErrorKind::AddrInUse => {}
            other => return other,
        }
    }
    TcpListener::bind((host, last))
}

/// Listens at a path; a socket there that nobody listens at any more makes way.
pub fn listen_unix(path: &Path) -> io::Result<UnixListener> {
    if let Some(name) = abstract_name(path) {
        return UnixListener::bind_addr(&UnixAddress::from_abstract_name(name)?);
    }
    if UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) {
        std::fs::remove_file(path)?;
    }
    UnixListener::bind(path)
}

impl Stream {
    /// A socket as `spec` says. With `wait`, somebody is connected when this returns.
    pub fn socket(label: &str, spec: &SocketSpec, program: &str) -> Result<Self> {
        let failed = |e: io::Error| {
            let remedy = if spec.server { "choose another address" } else { "start the other side first" };
            let (option, shown, reason) = (option(label), &spec.address, crate::cli::os_reason(&e));
            let last = spec.to.map_or(String::new(), |to| format!(" to {to}"));
            anyhow!("{option} {shown}{last}: {reason}{}; {remedy}", held_by(shown, &e))
        };
        let mut first = None;
        let mut source = match (&spec.address, spec.server) {
            (SocketAddress::Tcp { host, port }, true) => Source::Tcp(listen_tcp(host, *port, spec.to).map_err(failed)?),
            (SocketAddress::Unix(path), true) => Source::Unix(listen_unix(path).map_err(failed)?),
            (SocketAddress::Inherited(number), true) => listening(*number).map_err(failed)?,
            (address, false) => {
                match connect(address).and_then(Peer::of) {
                    Ok(peer) => first = Some(peer),
                    // It is tried again.
                    Err(_) if spec.reconnect.is_some() => {}
                    Err(e) => return Err(failed(e)),
                }
                Source::Client(address.clone(), spec.reconnect)
            }
        };
        if spec.server && spec.wait {
            let shown = source.local().unwrap_or_else(|| spec.address.clone());
            eprintln!("{program}: {label} waits for a connection at {shown}");
            first = source.next(&Waker::new()?).map_err(failed)?;
        }
        if spec.websocket {
            (first, source) = (first.map(web_peer).transpose()?, Source::Web(Box::new(source)));
        }
        Ok(Self::over(label, source, first, spec.telnet)?)
    }

    /// Datagrams.
    pub fn udp(label: &str, to: &(String, u16), from: &(String, u16)) -> Result<Self> {
        let open = || {
            let socket = UdpSocket::bind((from.0.as_str(), from.1))?;
            socket.connect((to.0.as_str(), to.1))?;
            Peer::of(bridge::datagrams(socket)?)
        };
        let peer = open().map_err(|e| {
            let (option, reason) = (option(label), crate::cli::os_reason(&e));
            let whom = if e.kind() == ErrorKind::AddrInUse { by_whom(true, from.1) } else { String::new() };
            anyhow!(
                "{option} udp from {}:{} to {}:{}: {reason}{whom}; choose other addresses",
                from.0,
                from.1,
                to.0,
                to.1
            )
        })?;
        Ok(Self::over(label, Source::Nobody, Some(peer), false)?)
    }

    /// A pseudo-terminal, with its name.
    pub fn pty(label: &str) -> Result<(Self, String)> {
        let open = || -> nix::Result<(PtyMaster, String)> {
            let master = posix_openpt(nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_NOCTTY)?;
            grantpt(&master)?;
            unlockpt(&master)?;
            let name = ptsname_r(&master)?;
            // The guest echoes and edits, not the terminal's line discipline.
            let mut settings = tcgetattr(&master)?;
            cfmakeraw(&mut settings);
            tcsetattr(&master, SetArg::TCSANOW, &settings)?;
            // Opened and closed once, it shows from now on whether somebody has it open.
            drop(File::options().read(true).write(true).open(&name));
            Ok((master, name))
        };
        let (master, name) = open().with_context(|| format!("{label}: no pseudo-terminal"))?;
        Ok((Self::over(label, Source::Pty(master), None, false)?, name))
    }

    fn over(label: &str, source: Source, first: Option<Peer>, telnet: bool) -> io::Result<Self> {
        Ok(Self { label: label.into(), source, first, telnet, outlet: Outlet::to_peers(telnet), waker: Waker::new()? })
    }

    /// Where it listens by TCP.
    pub fn local(&self) -> Option<SocketAddress> {
        self.source.local()
    }

    /// Where bytes for whoever is connected go, and what wakes the reader.
    pub fn ends(&self) -> (Arc<Outlet>, Waker) {
        (self.outlet.clone(), self.waker.clone())
    }

    /// Starts the thread: input goes to `sink`, and `changed` hears when a peer comes (`true`) or leaves. What ends with it.
    ///
    /// Who has been waited for is there when this returns: the first byte is for them.
    pub fn start(
        mut self,
        sink: Arc<dyn InputSink>,
        changed: impl Fn(bool) + Send + 'static,
    ) -> io::Result<Receiver<()>> {
        let first = self.first.take().map(|peer| self.meet(peer)).transpose()?;
        let (running, end) = bounded(0);
        thread::Builder::new().name(format!("in-{}", self.label)).spawn(move || {
            self.run(first, &*sink, changed);
            drop(running);
        })?;
        Ok(end)
    }

    fn run(mut self, first: Option<Met>, sink: &dyn InputSink, changed: impl Fn(bool)) {
        if let Some(met) = first {
            self.serve(met, sink, &changed);
        }
        while !self.waker.stopped() {
            let next = match self.source.next(&self.waker) {
                Ok(Some(peer)) => self.meet(peer),
                Ok(None) => return,
                Err(e) => Err(e),
            };
            match next {
                Ok(met) => self.serve(met, sink, &changed),
                Err(e) => {
                    tracing::warn!("{}: {e}", self.label);
                    pause(&self.waker, LOOK);
                }
            }
        }
    }

    /// Starts the thread that takes in clients, each with a monitor of its own that `make` makes.
    pub fn start_many(self, make: ForClient) -> io::Result<()> {
        thread::Builder::new().name(format!("in-{}", self.label)).spawn(move || self.run_many(&make))?;
        Ok(())
    }

    fn run_many(mut self, make: &ForClient) {
        let clients = Arc::new(Clients::default());
        loop {
            clients.wait();
            let next = match self.first.take() {
                Some(peer) => Ok(Some(peer)),
                None => self.source.next(&self.waker),
            };
            let started = match next {
                Ok(Some(peer)) => self.start_one(peer, make, &clients),
                Ok(None) => return,
                Err(e) => Err(e),
            };
            if let Err(e) = started {
                tracing::warn!("{}: {e}", self.label);
                thread::sleep(LOOK);
            }
        }
    }

    /// Serves one of many clients, on a thread of its own.
    fn start_one(&self, peer: Peer, make: &ForClient, clients: &Arc<Clients>) -> io::Result<()> {
        let one = Self::over(&self.label, Source::Nobody, None, self.telnet)?;
        let plain = Plain::new(one.outlet.clone(), Some(one.waker.clone()));
        let Some(monitor) = make(&plain) else { return Ok(()) };
        let seat = clients.take();
        let serve = move || {
            let _seat = seat;
            let greeted = monitor.clone();
            let changed = move |open| {
                if open {
                    greeted.opened();
                }
            };
            match one.meet(peer) {
                Ok(met) => one.serve(met, &*plain, &changed),
                Err(e) => tracing::warn!("{}: {e}", one.label),
            }
        };
        thread::Builder::new().name(format!("in-{}", self.label)).spawn(serve)?;
        Ok(())
    }

    /// What is written goes to `peer` from now on.
    fn meet(&self, peer: Peer) -> io::Result<Met> {
        let output = Output::start(self.label.clone(), peer.output)?;
        if self.telnet {
            output.write(&telnet::GREETING);
        }
        self.outlet.set(Some(output.clone()));
        Ok(Met { input: peer.input, output })
    }

    /// Takes what someone sends until they leave.
    fn serve(&self, Met { input, output }: Met, sink: &dyn InputSink, changed: &impl Fn(bool)) {
        changed(true);
        let mut decoder = telnet::Decoder::default();
        input::read_to_end(&input, self.source.door(), &self.waker, sink, |bytes, data| match self.telnet {
            true => decoder.decode(bytes, data),
            false => data.extend_from_slice(bytes),
        });
        self.outlet.set(None);
        changed(false);
        output.flush(LINGER);
        output.close();
    }
}
