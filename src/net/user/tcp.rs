//! TCP: each connection of the guest's ends in a smoltcp socket and goes on in a host socket. The guest gets an answer
//! to its first segment only when the host has one, so that a refused connection is refused.

use super::outbox::Outbox;
use super::packet::{self, ETHERNET, Ip, MTU, TcpStart};
use crate::cli::config::network::ForwardTarget;
use crate::net::poller::{Happening, Owner, Poller};
use smoltcp::iface::{Config, Interface, PollIngressSingleResult, SocketHandle, SocketSet};
use smoltcp::phy::{self, Checksum, DeviceCapabilities, Medium, PacketMeta};
use smoltcp::socket::tcp::{self, SocketBuffer, State as TcpState};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpListenEndpoint, Ipv4Address, Ipv6Address};
use socket2::{Domain, SockAddr, Socket, Type};
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

/// Buffers of a connection in each direction: the first ones get large buffers, the others small ones, so that all
/// together stay below 320 MiB even if the guest fills every one.
const LARGE_BUFFER: usize = 256 << 10;
const SMALL_BUFFER: usize = 32 << 10;
const LARGE_BUFFERS: usize = 128;
/// Most connections; fewer if the host allows the process fewer descriptors.
const MOST_FLOWS: usize = 4096;
/// How long the other end may be silent before it is asked, and before it counts as gone.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
const GONE: Duration = Duration::from_secs(300);
/// How long the host may take to reach the other end.
const CALLING_NS: u64 = 75_000_000_000;
/// How often all connections are looked at for those that ended by themselves.
const SWEEP_NS: u64 = 5_000_000_000;
/// Packets that smoltcp sends in a row.
const ROUND: usize = 16;
/// Segments that wait for smoltcp.
const INGRESS: usize = 1024;

/// Largest packet.
const LARGEST: Option<NonZeroUsize> = NonZeroUsize::new(u16::MAX as usize);

/// Segments over IPv4 are so long at most.
const LONGEST_V4: u16 = (MTU - 40) as u16;
/// Segments over IPv6 are so long at most, and so long where the guest does not say (RFC 9293 3.7.1).
const LONGEST_V6: u16 = (MTU - 60) as u16;
const USUAL_V6: u16 = 1220;

/// The two ends as the guest sees them: its own and the far one.
type Pair = (SocketAddr, SocketAddr);

/// A packet of smoltcp's, with room before it for an Ethernet header, and how long the segments are that it stands for.
struct Sent {
    frame: Vec<u8>,
    segment: u16,
}

/// smoltcp's network card: packets in memory.
struct Link {
    received: VecDeque<Vec<u8>>,
    sent: VecDeque<Sent>,
    room: usize,
}

struct RxToken(Vec<u8>);

impl phy::RxToken for RxToken {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct TxToken<'a> {
    sent: &'a mut VecDeque<Sent>,
    segment: u16,
}

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; ETHERNET + len];
        let result = f(&mut frame[ETHERNET..]);
        self.sent.push_back(Sent { frame, segment: self.segment });
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment = meta.segmentation_offload_size.map_or(0, |size| size.get());
    }
}

impl phy::Device for Link {
    type RxToken<'a> = RxToken;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _timestamp: Instant) -> Option<(RxToken, TxToken<'_>)> {
        let packet = self.received.pop_front()?;
        Some((RxToken(packet), TxToken { sent: &mut self.sent, segment: 0 }))
    }

    fn transmit(&mut self, _timestamp: Instant) -> Option<TxToken<'_>> {
        (self.sent.len() < self.room).then_some(TxToken { sent: &mut self.sent, segment: 0 })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        // Of what is larger than the guest's network allows, IPv6 packets would be dropped.
        capabilities.max_transmission_unit = u16::MAX.into();
        // The cutting is done where it has to be, and a card whose driver takes large frames spares it altogether.
        capabilities.segmentation.tcpv4 = LARGEST;
        capabilities.segmentation.tcpv6 = LARGEST;
        // Sums are checked before segments come here, and filled in on the way to the guest.
        capabilities.checksum.tcp = Checksum::None;
        capabilities
    }
}

enum State {
    /// The host is calling; the guest's first segment waits.
    Calling { syn: Vec<u8>, since: u64 },
    /// Both ends are connected, or the guest is being called.
    Open(SocketHandle),
}

struct Flow {
    pair: Pair,
    host: Socket,
    state: State,
    /// The host may have data (or its end) for us.
    readable: bool,
    /// The host may take data.
    writable: bool,
    /// The host has said its last.
    host_ended: bool,
    /// The guest has, and the host was told.
    guest_ended: bool,
    /// How long the guest's segments are over IPv6.
    segment: u16,
}

/// A connection, as people are shown it.
pub struct Connection {
    /// The guest's end.
    pub guest: SocketAddr,
    /// The far end.
    pub far: SocketAddr,
    /// The host's socket.
    pub fd: i32,
    /// The guest's side, in RFC 9293's words.
    pub state: String,
    /// Bytes of the guest's that wait for the host.
    pub received: usize,
    /// Bytes for the guest.
    pub sent: usize,
}

/// All connections of a network.
pub struct TcpFlows {
    interface: Interface,
    sockets: SocketSet<'static>,
    link: Link,
    flows: HashMap<u64, Flow>,
    by_pair: HashMap<Pair, u64>,
    next_id: u64,
    most: usize,
    /// Connections on which something happened.
    touched: HashSet<u64>,
    /// Aborted sockets, whose reset has to be sent before they go.
    dying: Vec<SocketHandle>,
    next_sweep: u64,
    /// Kept for ports that are not free.
    next_port: u16,
}

fn instant(now_ns: u64) -> Instant {
    Instant::from_micros((now_ns / 1000) as i64)
}

/// How many connections the process's descriptors allow: half of them, the rest is for disks and the others.
fn allowance() -> usize {
    use nix::sys::resource::{Resource, getrlimit};
    let soft = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    usize::try_from(soft / 2).unwrap_or(MOST_FLOWS).clamp(16, MOST_FLOWS)
}

impl TcpFlows {
    /// No connections. `seed` makes sequence numbers hard to guess.
    pub fn new(seed: u64) -> Self {
        let mut link = Link { received: VecDeque::new(), sent: VecDeque::new(), room: 0 };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut link, Instant::ZERO);
        // The far end of a connection may have any address, and so may the guest.
        interface.set_any_ip(true);
        let (gateway4, gateway6) = (Ipv4Address::new(10, 0, 2, 2), Ipv6Address::LOCALHOST);
        // The table has room for both.
        let _ = interface.routes_mut().add_default_ipv4_route(gateway4);
        let _ = interface.routes_mut().add_default_ipv6_route(gateway6);
        Self {
            interface,
            sockets: SocketSet::new(Vec::new()),
            link,
            flows: HashMap::new(),
            by_pair: HashMap::new(),
            next_id: 0,
            most: allowance(),
            touched: HashSet::new(),
            dying: Vec::new(),
            next_sweep: 0,
            next_port: 49152,
        }
    }

    /// Closes all connections. What the poller still tells of them finds nothing.
    pub fn restart(&mut self) {
        let fresh = Self::new(RandomState::new().hash_one(self.next_id));
        *self = Self { next_id: self.next_id, ..fresh };
    }

    /// Number of connections.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// The connections: guest's end, far end, state.
    pub fn list(&self) -> Vec<Connection> {
        let shown = |flow: &Flow| {
            let (state, received, sent) = match &flow.state {
                State::Calling { .. } => ("SYN_SENT".to_owned(), 0, 0),
                State::Open(handle) => {
                    let socket = self.sockets.get::<tcp::Socket>(*handle);
                    (socket.state().to_string().replace('-', "_"), socket.recv_queue(), socket.send_queue())
                }
            };
            let (guest, far) = flow.pair;
            Connection { guest, far, fd: flow.host.as_raw_fd(), state, received, sent }
        };
        self.flows.values().map(shown).collect()
    }

    /// A segment from the guest. `target` is where a new connection goes; `None`: nowhere.
    pub fn segment(
        &mut self,
        ip: &Ip,
        now_ns: u64,
        poller: &Poller,
        outbox: &mut Outbox,
        target: Option<ForwardTarget>,
    ) {
        let Some(start) = TcpStart::parse(ip) else { return };
        if packet::transport_checksum(ip.src, ip.dst, ip.protocol, ip.payload) != 0 {
            return;
        }
        let pair = (SocketAddr::new(ip.src, start.src), SocketAddr::new(ip.dst, start.dst));
        match self.by_pair.get(&pair) {
            Some(id) => {
                let id = *id;
                if matches!(self.flows.get(&id), Some(Flow { state: State::Calling { .. }, .. })) {
                    // The guest repeats its first segment while the host is still calling.
                    return;
                }
                self.touched.insert(id);
                if let (Some(longest), Some(flow)) = (start.longest, self.flows.get_mut(&id)) {
                    flow.segment = longest.clamp(1, LONGEST_V6);
                }
            }
            None if start.opens => {
                if self.flows.len() >= self.most || start.src == 0 || start.dst == 0 {
                    return;
                }
                let Some(target) = target else { return };
                let longest = start.longest.unwrap_or(USUAL_V6);
                self.call(pair, &target, ip, now_ns, poller, outbox);
                if let Some(flow) = self.by_pair.get(&pair).and_then(|id| self.flows.get_mut(id)) {
                    flow.segment = longest.clamp(1, LONGEST_V6);
                }
                return;
            }
            // smoltcp answers with a reset.
            None => {}
        }
        if self.link.received.len() < INGRESS {
            self.link.received.push_back(ip.whole.to_vec());
        }
    }

    /// Calls the host's side of a new connection.
    fn call(&mut self, pair: Pair, target: &ForwardTarget, ip: &Ip, now_ns: u64, poller: &Poller, outbox: &mut Outbox) {
        let connected = connect(target).and_then(|(host, done)| {
            poller.add(&host, Owner::Tcp(self.next_id))?;
            Ok((host, done))
        });
        let (host, done) = match connected {
            Ok(connected) => connected,
            Err(error) => return self.refuse(&error, ip.whole, outbox),
        };
        let id = self.next_id;
        self.next_id += 1;
        let state = State::Calling { syn: ip.whole.to_vec(), since: now_ns };
        let flow = Flow {
            pair,
            host,
            state,
            readable: done,
            writable: done,
            host_ended: false,
            guest_ended: false,
            segment: USUAL_V6,
        };
        self.flows.insert(id, flow);
        self.by_pair.insert(pair, id);
        if done {
            self.touched.insert(id);
        }
    }

    /// Tells the guest that its connection will not be.
    fn refuse(&mut self, error: &io::Error, syn: &[u8], outbox: &mut Outbox) {
        let Some(ip) = Ip::parse(syn) else { return };
        match error.kind() {
            ErrorKind::NetworkUnreachable => outbox.packet(&packet::unreachable(ip.dst, &ip, 0, 0)),
            ErrorKind::HostUnreachable | ErrorKind::TimedOut => {
                outbox.packet(&packet::unreachable(ip.dst, &ip, 1, 3));
            }
            // Nobody listens there, so smoltcp resets it.
            _ => self.link.received.push_back(syn.to_vec()),
        }
    }

    fn new_socket(&self) -> tcp::Socket<'static> {
        let len = if self.flows.len() <= LARGE_BUFFERS { LARGE_BUFFER } else { SMALL_BUFFER };
        let mut socket = tcp::Socket::new(SocketBuffer::new(vec![0; len]), SocketBuffer::new(vec![0; len]));
        socket.set_nagle_enabled(false);
        socket.set_keep_alive(Some(KEEP_ALIVE));
        socket.set_timeout(Some(GONE));
        socket
    }

    /// A connection from the host side, to be passed on to `guest`; `far` is who the guest shall think calls.
    pub fn accepted(&mut self, host: Socket, guest: SocketAddr, far: SocketAddr, poller: &Poller) {
        if self.flows.len() >= self.most {
            return;
        }
        let mut far = far;
        for _ in 0..64 {
            if far.port() != 0 && !self.by_pair.contains_key(&(guest, far)) {
                break;
            }
            far.set_port(self.next_port);
            self.next_port = self.next_port.checked_add(1).unwrap_or(49152);
        }
        let id = self.next_id;
        if self.by_pair.contains_key(&(guest, far)) || poller.add(&host, Owner::Tcp(id)).is_err() {
            return;
        }
        let mut socket = self.new_socket();
        let local = IpListenEndpoint { addr: Some(address(far.ip())), port: far.port() };
        if socket.connect(self.interface.context(), (address(guest.ip()), guest.port()), local).is_err() {
            return;
        }
        self.next_id += 1;
        let state = State::Open(self.sockets.add(socket));
        let pair = (guest, far);
        let flow = Flow {
            pair,
            host,
            state,
            readable: true,
            writable: true,
            host_ended: false,
            guest_ended: false,
            segment: USUAL_V6,
        };
        self.flows.insert(id, flow);
        self.by_pair.insert(pair, id);
    }

    /// Something happened to a host socket.
    pub fn happened(&mut self, id: u64, what: Happening, now_ns: u64, outbox: &mut Outbox) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        flow.readable |= what.readable;
        flow.writable |= what.writable;
        self.touched.insert(id);
        if matches!(flow.state, State::Calling { .. }) && what.writable {
            self.called(id, now_ns, outbox);
        }
    }

    /// The host's call has come to an end: the guest's first segment gets its answer.
    fn called(&mut self, id: u64, now_ns: u64, outbox: &mut Outbox) {
        let socket = self.new_socket();
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let State::Calling { syn, .. } = &mut flow.state else { return };
        let syn = std::mem::take(syn);
        let error = flow.host.take_error().unwrap_or_else(Some);
        let (_, far) = flow.pair;
        if let Some(error) = error {
            self.forget(id);
            return self.refuse(&error, &syn, outbox);
        }
        let handle = self.sockets.add(socket);
        flow.state = State::Open(handle);
        let socket = self.sockets.get_mut::<tcp::Socket>(handle);
        let listening = socket.listen(IpListenEndpoint { addr: Some(address(far.ip())), port: far.port() }).is_ok();
        // Only this socket listens, and only now: the segment finds no other.
        self.link.received.push_front(syn);
        let taken = self.interface.poll_ingress_single(instant(now_ns), &mut self.link, &mut self.sockets);
        let waiting = self.sockets.get::<tcp::Socket>(handle).state() == TcpState::Listen;
        if !listening || waiting || taken == PollIngressSingleResult::None {
            // A segment that smoltcp does not like.
            self.forget(id);
        }
    }

    /// Removes a connection; a socket of it that still has a reset to send stays until then.
    fn forget(&mut self, id: u64) {
        let Some(flow) = self.flows.remove(&id) else { return };
        self.by_pair.remove(&flow.pair);
        if !(flow.host_ended && flow.guest_ended) {
            // The host's peer shall see a reset, not an orderly end. Sockets without one just close.
            let _ = flow.host.set_linger(Some(std::time::Duration::ZERO));
        }
        if let State::Open(handle) = flow.state {
            let socket = self.sockets.get_mut::<tcp::Socket>(handle);
            if socket.state() != TcpState::TimeWait {
                socket.abort();
            }
            self.dying.push(handle);
        }
    }

    /// Moves data and segments as far as they go.
    pub fn serve(&mut self, now_ns: u64, outbox: &mut Outbox) {
        // Connections to local programs are there at once.
        let calling: Vec<u64> = self.touched.iter().copied().filter(|id| self.is_called(*id)).collect();
        calling.into_iter().for_each(|id| self.called(id, now_ns, outbox));
        self.poll(now_ns, outbox);
        if now_ns >= self.next_sweep {
            self.next_sweep = now_ns + SWEEP_NS;
            self.touched.extend(self.flows.keys());
            self.give_up(now_ns, outbox);
        }
        if self.touched.is_empty() {
            return;
        }
        let mut over = Vec::new();
        for id in std::mem::take(&mut self.touched) {
            if let Some(flow) = self.flows.get_mut(&id)
                && let State::Open(handle) = flow.state
                && pump(flow, self.sockets.get_mut::<tcp::Socket>(handle))
            {
                over.push(id);
            }
        }
        over.into_iter().for_each(|id| self.forget(id));
        self.poll(now_ns, outbox);
    }

    /// Ends calls that nobody answers.
    fn give_up(&mut self, now_ns: u64, outbox: &mut Outbox) {
        let late = |flow: &mut Flow| match &mut flow.state {
            State::Calling { syn, since } if now_ns.saturating_sub(*since) >= CALLING_NS => Some(std::mem::take(syn)),
            _ => None,
        };
        let late: Vec<_> = self.flows.iter_mut().filter_map(|(id, flow)| Some((*id, late(flow)?))).collect();
        for (id, syn) in late {
            self.forget(id);
            self.refuse(&ErrorKind::TimedOut.into(), &syn, outbox);
        }
    }

    fn is_called(&self, id: u64) -> bool {
        self.flows.get(&id).is_some_and(|flow| flow.writable && matches!(flow.state, State::Calling { .. }))
    }

    fn poll(&mut self, now_ns: u64, outbox: &mut Outbox) {
        loop {
            self.link.room = if outbox.has_room() { ROUND } else { 0 };
            self.interface.poll(instant(now_ns), &mut self.link, &mut self.sockets);
            let sent = self.link.sent.len();
            for Sent { frame, segment } in self.link.sent.drain(..) {
                let segment = match segment {
                    0 if frame.len() <= ETHERNET + MTU => 0,
                    0 => large(&frame, &self.by_pair, &self.flows),
                    // Guests may take longer segments than their network has.
                    _ => segment.min(LONGEST_V4),
                };
                outbox.tcp(frame, segment);
            }
            if sent < self.link.room.max(1) {
                break;
            }
        }
        if self.link.room != 0 {
            for handle in self.dying.drain(..) {
                self.sockets.remove(handle);
            }
        }
    }

    /// When [`TcpFlows::serve`] has to be called at the latest although nothing happens.
    pub fn deadline(&mut self, now_ns: u64, outbox: &Outbox) -> Option<u64> {
        if self.flows.is_empty() && self.dying.is_empty() {
            return None;
        }
        if !outbox.has_room() {
            // The guest has to take frames first, and that is reported.
            return None;
        }
        let at = self.interface.poll_at(instant(now_ns), &self.sockets);
        // What could be done at once is done; a millisecond keeps a misjudgement from becoming a busy loop.
        let at = at.map(|at| (at.total_micros().max(0) as u64 * 1000).max(now_ns + 1_000_000));
        Some(at.unwrap_or(u64::MAX).min(self.next_sweep.max(now_ns + 1_000_000)))
    }
}

/// How long the segments are that a large packet stands for where smoltcp does not say it: it does not over IPv6.
fn large(frame: &[u8], by_pair: &HashMap<Pair, u64>, flows: &HashMap<u64, Flow>) -> u16 {
    let pair = frame.get(ETHERNET..).and_then(Ip::parse).filter(|ip| ip.dst.is_ipv6()).and_then(|ip| {
        let start = TcpStart::parse(&ip)?;
        Some((SocketAddr::new(ip.dst, start.dst), SocketAddr::new(ip.src, start.src)))
    });
    match pair.map(|pair| by_pair.get(&pair).and_then(|id| flows.get(id))) {
        Some(flow) => flow.map_or(USUAL_V6, |flow| flow.segment),
        None => LONGEST_V4,
    }
}

/// Moves data between the two sockets of a connection; `true` if it is over.
fn pump(flow: &mut Flow, socket: &mut tcp::Socket) -> bool {
    while flow.writable && socket.can_recv() {
        let host = &mut flow.host;
        let written = socket.recv(|data| match host.write(data) {
            Ok(count) => (count, Ok(())),
            Err(error) => (0, Err(error)),
        });
        match written {
            Ok(Ok(())) => {}
            Ok(Err(error)) if error.kind() == ErrorKind::WouldBlock => flow.writable = false,
            Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
            Ok(Err(_)) => return true,
            Err(_) => break,
        }
    }
    let guest_done = match socket.state() {
        TcpState::SynSent | TcpState::SynReceived | TcpState::Listen => false,
        // After the host's end this is the orderly one; otherwise the guest has reset the connection.
        TcpState::Closed => flow.host_ended && !socket.may_recv(),
        _ => !socket.may_recv(),
    };
    if guest_done && !flow.guest_ended {
        flow.guest_ended = true;
        // Fails if the host's end is gone, which reading shows.
        let _ = flow.host.shutdown(Shutdown::Write);
    }
    if socket.state() == TcpState::SynSent && flow.readable && is_reset(&flow.host) {
        return true;
    }
    while flow.readable && !flow.host_ended && socket.can_send() {
        let host = &mut flow.host;
        let read = socket.send(|space| match host.read(space) {
            Ok(count) => (count, Ok(count)),
            Err(error) => (0, Err(error)),
        });
        match read {
            Ok(Ok(0)) => {
                flow.host_ended = true;
                socket.close();
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) if error.kind() == ErrorKind::WouldBlock => flow.readable = false,
            Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
            Ok(Err(_)) => return true,
            Err(_) => break,
        }
    }
    match socket.state() {
        TcpState::Closed => flow.guest_ended || !flow.host_ended,
        // Waiting for stray segments is for networks where they can be late.
        TcpState::TimeWait => flow.guest_ended,
        _ => false,
    }
}

/// Whether a caller has gone for good while the guest has not even answered: it may have too many calls to.
fn is_reset(host: &Socket) -> bool {
    match host.peek(&mut [MaybeUninit::uninit()]) {
        Ok(_) => false,
        Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
    }
}

/// Calls `target`; `true` with the socket: it is connected already.
fn connect(target: &ForwardTarget) -> io::Result<(Socket, bool)> {
    match target {
        ForwardTarget::Tcp(address) => {
            let socket = Socket::new(Domain::for_address(*address), Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            socket.set_tcp_nodelay(true)?;
            call(socket, &SockAddr::from(*address))
        }
        ForwardTarget::Unix(path) => {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            call(socket, &SockAddr::unix(path)?)
        }
        ForwardTarget::Command(command) => {
            let (ours, theirs) = UnixStream::pair()?;
            ours.set_nonblocking(true)?;
            let input = OwnedFd::from(theirs.try_clone()?);
            let mut words = command.split_whitespace();
            let mut child = Command::new(words.next().unwrap_or_default())
                .args(words)
                .stdin(Stdio::from(input))
                .stdout(Stdio::from(OwnedFd::from(theirs)))
                .spawn()?;
            // Somebody has to take note of its end.
            std::thread::Builder::new().name("guestfwd".into()).spawn(move || child.wait())?;
            Ok((Socket::from(OwnedFd::from(ours)), true))
        }
    }
}

fn call(socket: Socket, address: &SockAddr) -> io::Result<(Socket, bool)> {
    match socket.connect(address) {
        Ok(()) => Ok((socket, true)),
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EINPROGRESS as i32) => Ok((socket, false)),
        Err(error) => Err(error),
    }
}

fn address(address: IpAddr) -> IpAddress {
    match address {
        IpAddr::V4(v4) => IpAddress::Ipv4(v4),
        IpAddr::V6(v6) => IpAddress::Ipv6(v6),
    }
}
