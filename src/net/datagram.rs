//! `-netdev dgram`, and `-netdev socket` with `mcast=` or `udp=`: each frame is a datagram.

use super::Card;
use super::descriptor;
use super::holder::by_whom;
use crate::cli::config::network::DatagramConfig;
use crate::io_thread::FdWatcher;
use anyhow::{Context, Result, anyhow};
use brolga_devices::services::{NetBackend, NetFrontend};
use nix::poll::PollFlags;
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Longest frame.
const LONGEST: usize = 0x1_0000;
/// Frames taken in a row before others on the I/O thread get their turn.
const BURST: usize = 256;

/// A socket whose datagrams are frames. Everything but its making happens on the I/O thread.
pub struct DatagramNet {
    socket: Socket,
    /// Where frames go; `None`: the socket is connected.
    remote: Option<SockAddr>,
    group: Option<Group>,
    /// The file of our end, which goes with us.
    path: Option<PathBuf>,
    /// A frame that the card has refused: nothing more is read until it takes it.
    refused: Mutex<Option<Vec<u8>>>,
    card: Card,
}

/// What a multicast group needs beside its socket.
struct Group {
    /// The same socket, which tells who sent.
    receiver: UdpSocket,
    sender: UdpSocket,
    /// Our own frames come back: they are from here.
    own: SocketAddr,
}

impl DatagramNet {
    /// Opens the socket.
    pub fn open(config: &DatagramConfig) -> Result<Arc<Self>> {
        let (refused, card) = Default::default();
        let this = match config {
            DatagramConfig::Inet { local, remote } => {
                let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
                let any = if remote.is_ipv4() { any } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
                let local = local.unwrap_or(SocketAddr::new(any, 0));
                if local.is_ipv4() != remote.is_ipv4() {
                    return Err(anyhow!("{local} and {remote} are of two versions; use addresses of one"));
                }
                let socket = Socket::new(Domain::for_address(local), Type::DGRAM, None)?;
                socket.bind(&local.into()).map_err(|e| taken(local, &e))?;
                Self { socket, remote: Some((*remote).into()), group: None, path: None, refused, card }
            }
            DatagramConfig::Group { group, interface } => {
                let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
                // Everybody on this host who is in the group has its port.
                socket.set_reuse_address(true)?;
                socket.bind(&SocketAddr::V4(*group).into()).map_err(|e| taken(SocketAddr::V4(*group), &e))?;
                let interface = interface.unwrap_or(Ipv4Addr::UNSPECIFIED);
                socket
                    .join_multicast_v4(group.ip(), &interface)
                    .with_context(|| format!("group {} cannot be joined", group.ip()))?;
                // A socket of its own to send from, by which our frames are known when they come back.
                let sender = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
                sender.set_multicast_loop_v4(true)?;
                sender.set_multicast_if_v4(&interface)?;
                sender.connect(&SocketAddr::V4(*group).into())?;
                sender.set_nonblocking(true)?;
                let (receiver, sender) = (UdpSocket::from(socket.try_clone()?), UdpSocket::from(sender));
                let group = Group { receiver, own: sender.local_addr()?, sender };
                Self { socket, remote: None, group: Some(group), path: None, refused, card }
            }
            DatagramConfig::Unix { local, remote } => {
                let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
                let shown = local.display().to_string();
                socket.bind(&SockAddr::unix(local)?).map_err(|e| refusal(&shown, "", &e))?;
                let remote = Some(SockAddr::unix(remote)?);
                Self { socket, remote, group: None, path: Some(local.clone()), refused, card }
            }
            DatagramConfig::Descriptor(number) => {
                let socket = Socket::from(descriptor::inherited(*number).with_context(|| format!("fd {number}"))?);
                Self { socket, remote: None, group: None, path: None, refused, card }
            }
        };
        this.socket.set_nonblocking(true)?;
        // A burst of frames should fit; the host may allow less.
        let _ = this.socket.set_recv_buffer_size(1 << 20);
        Ok(Arc::new(this))
    }

    /// The card at the other end.
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// A frame from the socket; `None`: one that is not for us.
    fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(group) = &self.group else { return (&self.socket).read(buffer).map(Some) };
        let (len, from) = group.receiver.recv_from(buffer)?;
        Ok((from != group.own).then_some(len))
    }

    /// Gives the card frames as long as it takes them.
    fn serve(&self) {
        let mut buffer = vec![0; LONGEST];
        for _ in 0..BURST {
            let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            let frame = match refused.take() {
                Some(frame) => frame,
                None => match self.read(&mut buffer) {
                    Ok(Some(len)) => buffer.get(..len).unwrap_or_default().to_vec(),
                    Ok(None) => continue,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                    // An earlier datagram found nobody; others may be waiting.
                    Err(_) => continue,
                },
            };
            drop(refused);
            if !self.card.receive(&frame) {
                *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(frame);
                return;
            }
        }
    }
}

fn taken(address: SocketAddr, error: &io::Error) -> anyhow::Error {
    let whom = if error.kind() == ErrorKind::AddrInUse { by_whom(true, address.port()) } else { String::new() };
    refusal(&address.to_string(), &whom, error)
}

fn refusal(address: &str, whom: &str, error: &io::Error) -> anyhow::Error {
    let remedy = match error.kind() {
        ErrorKind::AddrInUse => "; choose another address, or remove what a program that ended has left",
        _ => "",
    };
    let reason = error.to_string();
    let reason = reason.split(" (os error").next().unwrap_or_default().to_lowercase();
    anyhow!("cannot receive at {address}: {reason}{whom}{remedy}")
}

impl NetBackend for DatagramNet {
    fn connect(&self, card: Weak<dyn NetFrontend>) {
        self.card.connect(card);
    }

    fn send(&self, frame: &[u8]) {
        // What the host cannot take is lost, as is what nobody waits for.
        let _ = match (&self.remote, &self.group) {
            (Some(remote), _) => self.socket.send_to(frame, remote),
            (None, Some(group)) => group.sender.send(frame),
            (None, None) => self.socket.send(frame),
        };
    }

    fn sent(&self) {}

    fn receive_ready(&self) {
        self.serve();
    }
}

impl FdWatcher for DatagramNet {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn interest(&self) -> PollFlags {
        let full = self.refused.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if full { PollFlags::empty() } else { PollFlags::POLLIN }
    }

    fn ready(&self, events: PollFlags) -> bool {
        self.serve();
        !events.contains(PollFlags::POLLNVAL)
    }
}

impl Drop for DatagramNet {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Somebody may have removed it already.
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use brolga_devices::services::Unfinished;
    use std::time::{Duration, Instant};

    #[derive(Default)]
    struct Keeper(Mutex<Vec<Vec<u8>>>);

    impl NetFrontend for Keeper {
        fn receive(&self, frame: &[u8], _rest: Unfinished) -> bool {
            self.0.lock().unwrap().push(frame.to_vec());
            true
        }

        fn set_link(&self, _up: bool) {}
    }

    fn plugged(config: &DatagramConfig) -> (Arc<DatagramNet>, Arc<Keeper>) {
        let (net, keeper) = (DatagramNet::open(config).unwrap(), Arc::new(Keeper::default()));
        let card: Arc<dyn NetFrontend> = keeper.clone();
        net.connect(Arc::downgrade(&card));
        (net, keeper)
    }

    /// What arrives within a second, `count` frames at least.
    fn wait(net: &DatagramNet, keeper: &Keeper, count: usize) -> Vec<Vec<u8>> {
        let start = Instant::now();
        while keeper.0.lock().unwrap().len() < count && start.elapsed() < Duration::from_secs(5) {
            net.serve();
            std::thread::sleep(Duration::from_millis(5));
        }
        std::mem::take(&mut *keeper.0.lock().unwrap())
    }

    #[test]
    fn frames_go_over_udp_and_unix_sockets() {
        let free = || std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (a, b) = (free(), free());
        let folder = std::env::temp_dir().join(format!("brolga-dgram-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (left, right) = (folder.join("left"), folder.join("right"));
        for (one, other) in [
            (DatagramConfig::Inet { local: Some(a), remote: b }, DatagramConfig::Inet { local: Some(b), remote: a }),
            (
                DatagramConfig::Unix { local: left.clone(), remote: right.clone() },
                DatagramConfig::Unix { local: right.clone(), remote: left.clone() },
            ),
        ] {
            let (one, ones) = plugged(&one);
            one.send(b"lost, as nobody is there");
            let (other, others) = plugged(&other);
            one.send(&[7; 1514]);
            one.send(b"x");
            assert_eq!(wait(&other, &others, 2), [vec![7; 1514], b"x".to_vec()]);
            other.send(&[9; 60]);
            assert_eq!(wait(&one, &ones, 1), [vec![9; 60]]);
        }
        assert!(!left.exists() && !right.exists());
        let holder = std::net::UdpSocket::bind(a).unwrap();
        let error = DatagramNet::open(&DatagramConfig::Inet { local: Some(a), remote: b }).err().unwrap().to_string();
        assert!(error.contains(&format!(" by process {} (", std::process::id())), "{error}");
        drop(holder);
        std::fs::write(&left, "").unwrap();
        let taken = DatagramConfig::Unix { local: left.clone(), remote: right };
        let error = DatagramNet::open(&taken).err().unwrap().to_string();
        assert!(error.contains("cannot receive at") && error.contains("choose another address"), "{error}");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_group_hears_everybody_but_oneself() {
        let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let group = std::net::SocketAddrV4::new(Ipv4Addr::new(239, 12, 34, 56), port);
        let config = DatagramConfig::Group { group, interface: Some(Ipv4Addr::LOCALHOST) };
        let ((one, ones), (other, others)) = (plugged(&config), plugged(&config));
        one.send(b"from one");
        other.send(b"from the other");
        assert_eq!(wait(&other, &others, 1), [b"from one"]);
        assert_eq!(wait(&one, &ones, 1), [b"from the other"]);
        one.serve();
        assert!(ones.0.lock().unwrap().is_empty(), "one's own frames");
    }
}
