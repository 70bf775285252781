//! `-netdev stream` and `-netdev socket`: frames over a connection to another emulator.

use super::Card;
use super::descriptor;
use super::framing::{Incoming, Outgoing};
use super::holder::by_whom;
use super::poller::{Owner, Poller};
use crate::cli::config::network::{StreamAddress, StreamConfig};
use crate::io_thread::FdWatcher;
use anyhow::{Context, Result, anyhow};
use brolga_devices::services::{Clock, NetBackend, NetFrontend, Timer, TimerService, TimerTarget};
use nix::errno::Errno;
use nix::poll::PollFlags;
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

const LISTENER: Owner = Owner::Forward(0);
/// Bytes read in one go, and how often in a row.
const PIECE: usize = 64 << 10;
const PIECES: usize = 16;

struct Peer {
    socket: Socket,
    /// The call has not been answered yet.
    calling: bool,
    readable: bool,
    writable: bool,
    incoming: Incoming,
    outgoing: Outgoing,
    id: u64,
}

#[derive(Default)]
struct State {
    listener: Option<Socket>,
    peer: Option<Peer>,
    next_id: u64,
    /// The card has refused a frame.
    held_back: bool,
}

/// A connection that carries frames. Everything but its making happens on the I/O thread.
///
/// Locks: `state` is a leaf; the card is called without it.
pub struct StreamNet {
    name: String,
    config: StreamConfig,
    poller: Poller,
    state: Mutex<State>,
    clock: Arc<dyn Clock>,
    timer: OnceLock<Box<dyn Timer>>,
    card: Card,
}

impl StreamNet {
    /// Listens or calls; `name` is the host end's, for messages.
    pub fn open(
        name: &str,
        config: &StreamConfig,
        clock: Arc<dyn Clock>,
        timers: &dyn TimerService,
    ) -> Result<Arc<Self>> {
        let this = Arc::new(Self {
            name: name.to_owned(),
            config: config.clone(),
            poller: Poller::new()?,
            state: Mutex::default(),
            clock,
            timer: OnceLock::new(),
            card: Card::default(),
        });
        let target: Arc<dyn TimerTarget> = this.clone();
        // Just made, so it is empty.
        let _ = this.timer.set(timers.create(Arc::downgrade(&target), 0));
        match (&config.address, config.server) {
            (StreamAddress::Descriptor(number), _) => {
                let socket = descriptor::inherited(*number).with_context(|| format!("fd {number}"))?;
                this.adopt(Socket::from(socket), false)?;
            }
            (address, true) => {
                let listener = listen(address).map_err(|e| refusal(address, "listen on", &e))?;
                this.poller.add(&listener, LISTENER)?;
                this.state().listener = Some(listener);
            }
            (address, false) => match call(address, config.reconnect_ms != 0) {
                Ok((socket, calling)) => this.adopt(socket, calling)?,
                Err(_) if config.reconnect_ms != 0 => this.call_later(),
                Err(e) => return Err(refusal(address, "connect to", &e)),
            },
        }
        Ok(this)
    }

    /// The card at the other end.
    pub fn card(&self) -> &Card {
        &self.card
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn adopt(&self, socket: Socket, calling: bool) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        // Not every socket is of TCP.
        let _ = socket.set_tcp_nodelay(true);
        let mut state = self.state();
        state.next_id += 1;
        let id = state.next_id;
        self.poller.add(&socket, Owner::Tcp(id))?;
        let (incoming, outgoing) = (Incoming::default(), Outgoing::default());
        let (readable, writable) = (!calling, !calling);
        state.peer = Some(Peer { socket, calling, readable, writable, incoming, outgoing, id });
        Ok(())
    }

    /// Calls again after a while, if that was asked for.
    fn call_later(&self) {
        if self.config.reconnect_ms != 0
            && let Some(timer) = self.timer.get()
        {
            timer.arm(self.clock.now_ns() + self.config.reconnect_ms * 1_000_000);
        }
    }

    /// Takes note of what happened and moves frames.
    fn serve(&self) {
        let (happenings, _) = self.poller.take();
        for what in happenings {
            if what.owner == LISTENER {
                self.accept();
                continue;
            }
            let mut state = self.state();
            let Some(peer) = state.peer.as_mut().filter(|peer| Owner::Tcp(peer.id) == what.owner) else { continue };
            peer.readable |= what.readable;
            peer.writable |= what.writable;
            if peer.calling && what.writable {
                peer.calling = false;
                let failed = !matches!(peer.socket.take_error(), Ok(None));
                drop(state);
                if failed {
                    self.lost();
                }
            }
        }
        if self.write().and_then(|()| self.read()).is_err() {
            self.lost();
        }
    }

    fn accept(&self) {
        loop {
            let state = self.state();
            // One peer at a time; others wait until it is gone.
            let Some(listener) = state.listener.as_ref().filter(|_| state.peer.is_none()) else { return };
            let Ok((socket, _)) = listener.accept() else { return };
            drop(state);
            if self.adopt(socket, false).is_ok() {
                return;
            }
        }
    }

    /// The connection is over.
    fn lost(&self) {
        let mut state = self.state();
        if state.peer.take().is_none() {
            return;
        }
        state.held_back = false;
        let served = state.listener.is_some();
        drop(state);
        tracing::warn!("-netdev {}: the connection ended", self.name);
        if served {
            // Somebody may be waiting already.
            self.accept();
        } else {
            self.call_later();
        }
    }

    fn write(&self) -> io::Result<()> {
        let mut state = self.state();
        let Some(peer) = state.peer.as_mut().filter(|peer| !peer.calling) else { return Ok(()) };
        while peer.writable && !peer.outgoing.front().is_empty() {
            match peer.socket.write(peer.outgoing.front()) {
                Ok(count) => peer.outgoing.sent(count),
                Err(e) if e.kind() == ErrorKind::WouldBlock => peer.writable = false,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn read(&self) -> io::Result<()> {
        let mut buffer = vec![0; PIECE];
        for _ in 0..PIECES {
            self.deliver()?;
            let mut state = self.state();
            if state.held_back {
                return Ok(());
            }
            let Some(peer) = state.peer.as_mut().filter(|peer| peer.readable && !peer.calling) else { return Ok(()) };
            match peer.socket.read(&mut buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(len) => peer.incoming.add(buffer.get(..len).unwrap_or_default()),
                Err(e) if e.kind() == ErrorKind::WouldBlock => peer.readable = false,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.deliver()?;
        // There may be more: the others on the I/O thread first.
        if let Some(timer) = self.timer.get() {
            timer.arm(self.clock.now_ns());
        }
        Ok(())
    }

    /// Gives the card the frames that are whole.
    fn deliver(&self) -> io::Result<()> {
        loop {
            let state = self.state();
            let Some(peer) = &state.peer else { return Ok(()) };
            let frame = peer.incoming.next().map_err(|_| {
                tracing::warn!("-netdev {}: the other end does not send frames", self.name);
                io::Error::from(ErrorKind::InvalidData)
            })?;
            let Some(frame) = frame.map(<[u8]>::to_vec) else { return Ok(()) };
            drop(state);
            let taken = self.card.receive(&frame);
            let mut state = self.state();
            state.held_back = !taken;
            match &mut state.peer {
                Some(peer) if taken => peer.incoming.taken(),
                _ => return Ok(()),
            }
        }
    }
}

impl NetBackend for StreamNet {
    fn connect(&self, card: Weak<dyn NetFrontend>) {
        self.card.connect(card);
    }

    fn send(&self, frame: &[u8]) {
        if let Some(peer) = &mut self.state().peer {
            peer.outgoing.add(frame);
        }
    }

    fn sent(&self) {
        self.serve();
    }

    fn receive_ready(&self) {
        self.state().held_back = false;
        self.serve();
    }
}

impl FdWatcher for StreamNet {
    fn fd(&self) -> BorrowedFd<'_> {
        self.poller.as_fd()
    }

    fn interest(&self) -> PollFlags {
        PollFlags::POLLIN
    }

    fn ready(&self, _events: PollFlags) -> bool {
        self.serve();
        true
    }
}

impl TimerTarget for StreamNet {
    fn timer_fired(&self, _tag: u32, _now_ns: u64) {
        if self.state().peer.is_none() && !self.config.server {
            let called = call(&self.config.address, true).and_then(|(socket, calling)| self.adopt(socket, calling));
            if called.is_err() {
                self.call_later();
            }
        }
        self.serve();
    }
}

fn show(address: &StreamAddress) -> String {
    match address {
        StreamAddress::Inet(address) => address.to_string(),
        StreamAddress::Unix(path) => path.display().to_string(),
        StreamAddress::Descriptor(number) => format!("fd {number}"),
    }
}

fn refusal(address: &StreamAddress, what: &str, error: &io::Error) -> anyhow::Error {
    let remedy = match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::NotFound => "; start the other end first, or add reconnect-ms=1000",
        ErrorKind::AddrInUse => "; choose another address",
        _ => "",
    };
    let whom = match (error.kind(), address) {
        (ErrorKind::AddrInUse, StreamAddress::Inet(address)) => by_whom(false, address.port()),
        _ => String::new(),
    };
    let reason = error.to_string();
    let reason = reason.split(" (os error").next().unwrap_or_default().to_lowercase();
    anyhow!("cannot {what} {}: {reason}{whom}{remedy}", show(address))
}

fn new_socket(address: &StreamAddress) -> io::Result<(Socket, SockAddr)> {
    match address {
        StreamAddress::Inet(address) => {
            Ok((Socket::new(Domain::for_address(*address), Type::STREAM, None)?, (*address).into()))
        }
        StreamAddress::Unix(path) => Ok((Socket::new(Domain::UNIX, Type::STREAM, None)?, SockAddr::unix(path)?)),
        StreamAddress::Descriptor(_) => Err(ErrorKind::InvalidInput.into()),
    }
}

fn listen(address: &StreamAddress) -> io::Result<Socket> {
    if let StreamAddress::Unix(path) = address {
        remove_stale(path);
    }
    let (socket, address) = new_socket(address)?;
    socket.set_nonblocking(true)?;
    if address.is_ipv4() || address.is_ipv6() {
        socket.set_reuse_address(true)?;
    }
    socket.bind(&address)?;
    socket.listen(1)?;
    Ok(socket)
}

/// Removes a socket that an earlier process left; one that somebody listens on stays.
fn remove_stale(path: &Path) {
    let is_socket = path.symlink_metadata().is_ok_and(|m| m.file_type().is_socket());
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err() {
        // If it cannot go, binding says so.
        let _ = std::fs::remove_file(path);
    }
}

/// Calls the other end; `true` with the socket: its answer comes later.
fn call(address: &StreamAddress, later: bool) -> io::Result<(Socket, bool)> {
    let (socket, address) = new_socket(address)?;
    socket.set_nonblocking(later)?;
    match socket.connect(&address) {
        Ok(()) => Ok((socket, false)),
        Err(e) if e.raw_os_error() == Some(Errno::EINPROGRESS as i32) => Ok((socket, true)),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::config::RtcConfig;
    use crate::clock::GuestClock;
    use crate::io_thread::IoThread;
    use brolga_devices::services::Unfinished;
    use std::time::{Duration, Instant};

    /// A card that keeps what it gets, up to a limit.
    #[derive(Default)]
    struct Keeper(Mutex<(Vec<Vec<u8>>, usize)>);

    impl NetFrontend for Keeper {
        fn set_link(&self, _up: bool) {}

        fn receive(&self, frame: &[u8], _rest: Unfinished) -> bool {
            let (frames, room) = &mut *self.0.lock().unwrap();
            if *room == 0 {
                return false;
            }
            *room -= 1;
            frames.push(frame.to_vec());
            true
        }
    }

    struct End {
        net: Arc<StreamNet>,
        card: Arc<Keeper>,
        io: IoThread,
    }

    impl End {
        fn new(config: StreamConfig) -> Self {
            let clock = Arc::new(GuestClock::new(RtcConfig::default()));
            clock.resume();
            let io = IoThread::spawn(clock.clone()).unwrap();
            let net = StreamNet::open("n", &config, clock, &io.handle()).unwrap();
            let card = Arc::new(Keeper::default());
            card.0.lock().unwrap().1 = usize::MAX;
            let as_card: Arc<dyn NetFrontend> = card.clone();
            net.connect(Arc::downgrade(&as_card));
            io.handle().watch(net.clone());
            Self { net, card, io }
        }

        fn send(&self, frames: Vec<Vec<u8>>) {
            let net = self.net.clone();
            self.io.handle().post(move || {
                frames.iter().for_each(|frame| net.send(frame));
                net.sent();
            });
        }

        #[track_caller]
        fn has(&self, count: usize) -> Vec<Vec<u8>> {
            let start = Instant::now();
            loop {
                let frames = self.card.0.lock().unwrap().0.clone();
                if frames.len() >= count {
                    return frames;
                }
                assert!(start.elapsed() < Duration::from_secs(30), "{} frames of {count}", frames.len());
                std::thread::sleep(Duration::from_millis(2));
            }
        }

        fn connected(&self) {
            let start = Instant::now();
            while self.net.state().peer.as_ref().is_none_or(|peer| peer.calling) {
                assert!(start.elapsed() < Duration::from_secs(30), "no connection");
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }

    fn path(name: &str) -> StreamAddress {
        StreamAddress::Unix(std::env::temp_dir().join(format!("brolga-{name}-{}", std::process::id())))
    }

    fn config(server: bool, address: &StreamAddress) -> StreamConfig {
        StreamConfig { server, address: address.clone(), reconnect_ms: if server { 0 } else { 20 } }
    }

    #[test]
    fn frames_go_both_ways_and_the_ends_find_each_other_again() {
        let address = path("stream");
        // The caller is there before the listener.
        let b = End::new(config(false, &address));
        let a = End::new(config(true, &address));
        a.connected();
        b.connected();
        let frames: Vec<_> = (0..200usize).map(|i| vec![i as u8; 60 + i * 7]).collect();
        a.send(frames.clone());
        assert!(b.has(200) == frames);
        b.send(frames.clone());
        assert!(a.has(200) == frames);
        drop(a);
        let a = End::new(config(true, &address));
        a.connected();
        b.send(vec![vec![7; 60]]);
        a.has(1);
    }

    #[test]
    fn a_card_without_room_stops_the_stream() {
        let address = path("room");
        let (a, b) = (End::new(config(true, &address)), End::new(config(false, &address)));
        a.connected();
        b.connected();
        b.card.0.lock().unwrap().1 = 3;
        a.send((0..10).map(|i| vec![i; 100]).collect());
        b.has(3);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(b.has(3).len(), 3);
        b.card.0.lock().unwrap().1 = usize::MAX;
        let net = b.net.clone();
        b.io.handle().post(move || net.receive_ready());
        assert!(b.has(10) == (0..10).map(|i| vec![i; 100]).collect::<Vec<_>>());
    }

    #[test]
    fn nobody_there_is_one_line() {
        let clock = Arc::new(GuestClock::new(RtcConfig::default()));
        let io = IoThread::spawn(clock.clone()).unwrap();
        let config = StreamConfig { server: false, address: path("absent"), reconnect_ms: 0 };
        let error = StreamNet::open("n", &config, clock, &io.handle()).err().unwrap().to_string();
        assert!(
            error.ends_with("no such file or directory; start the other end first, or add reconnect-ms=1000"),
            "{error}"
        );
    }
}
