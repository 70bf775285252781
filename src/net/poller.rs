//! The host sockets of one network, waited for together: the I/O thread watches one descriptor instead of thousands.

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// Events taken in one round, so that other work gets its turn.
const ROUND: usize = 64;

/// What a host socket belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A TCP connection.
    Tcp(u64),
    /// UDP sockets of the guest's.
    Udp(u64),
    /// A forwarded port.
    Forward(u64),
    /// Pings to the outside.
    Ping(u64),
}

/// What happened to a socket.
#[derive(Clone, Copy, Debug)]
pub struct Happening {
    /// Whose socket.
    pub owner: Owner,
    /// There is something to read, an end or an error.
    pub readable: bool,
    /// It takes data, or there is an error.
    pub writable: bool,
}

/// A set of sockets. Changes are reported once (edge-triggered), so that a socket that nobody can serve now wakes nobody.
pub struct Poller {
    epoll: Epoll,
}

impl Poller {
    /// An empty set.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)? })
    }

    /// Adds a socket. It leaves the set when it is closed.
    pub fn add(&self, socket: impl AsFd, owner: Owner) -> io::Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        Ok(self.epoll.add(socket, EpollEvent::new(flags, encode(owner)))?)
    }

    /// What happened since the last call, without waiting; `true` with it: there may be more.
    pub fn take(&self) -> (Vec<Happening>, bool) {
        let mut events = [EpollEvent::empty(); ROUND];
        let count = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
        let bad = EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        let happening = |event: &EpollEvent| Happening {
            owner: decode(event.data()),
            readable: event.events().intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | bad),
            writable: event.events().intersects(EpollFlags::EPOLLOUT | bad),
        };
        (events.iter().take(count).map(happening).collect(), count == ROUND)
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

const KIND_SHIFT: u32 = 56;

fn encode(owner: Owner) -> u64 {
    let (kind, id) = match owner {
        Owner::Tcp(id) => (0, id),
        Owner::Udp(id) => (1, id),
        Owner::Forward(id) => (2, id),
        Owner::Ping(id) => (3, id),
    };
    kind << KIND_SHIFT | id & ((1 << KIND_SHIFT) - 1)
}

fn decode(data: u64) -> Owner {
    let id = data & ((1 << KIND_SHIFT) - 1);
    match data >> KIND_SHIFT {
        0 => Owner::Tcp(id),
        1 => Owner::Udp(id),
        2 => Owner::Forward(id),
        _ => Owner::Ping(id),
    }
}
