//! Disks for programs elsewhere: a server of the NBD protocol, as `nbd-server-start` starts it. Each client has a thread.

mod session;
#[cfg(test)]
mod tests;

pub use session::Export;

use crate::chardev::{held_by, listen_unix};
use crate::cli::config::SocketAddress;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use rustix::net::Shutdown;
use session::Shelf;
use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

/// Most clients at a time; those that come then are let down.
const MOST_CLIENTS: usize = 64;

/// A client that is connected.
struct Client {
    number: u64,
    /// The export that it has chosen.
    export: Option<String>,
    socket: OwnedFd,
}

/// What clients and users share. A leaf: nothing is called while it is locked.
#[derive(Default)]
struct Shared {
    exports: Vec<Export>,
    clients: Vec<Client>,
    /// Clients so far.
    count: u64,
}

/// A server. It ends with this.
pub struct Server {
    shared: Arc<Mutex<Shared>>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
    /// The socket's place in the file system, which goes with it.
    path: Option<PathBuf>,
}

enum Door {
    Tcp(TcpListener),
    Unix(UnixListener),
}

fn locked(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Door {
    fn open(address: &SocketAddress) -> io::Result<Self> {
        match address {
            SocketAddress::Tcp { host, port } => TcpListener::bind((host.as_str(), *port)).map(Self::Tcp),
            SocketAddress::Unix(path) => listen_unix(path).map(Self::Unix),
            SocketAddress::Inherited(_) => {
                Err(io::Error::new(io::ErrorKind::Unsupported, "a descriptor cannot be listened at here"))
            }
        }
    }

    /// The next client; `None`: the server is to stop.
    fn next(&self, stop: &EventFd) -> io::Result<Option<OwnedFd>> {
        let door = match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        };
        let mut fds = [PollFd::new(door, PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        while let Err(error) = poll(&mut fds, PollTimeout::NONE) {
            if error != nix::errno::Errno::EINTR {
                return Err(error.into());
            }
        }
        if fds[1].revents().is_none_or(|events| !events.is_empty()) {
            return Ok(None);
        }
        Ok(Some(match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                // Each request waits for its reply.
                stream.set_nodelay(true)?;
                stream.into()
            }
            Self::Unix(listener) => listener.accept()?.0.into(),
        }))
    }
}

impl Server {
    /// Starts to listen at `address`.
    pub fn start(address: &SocketAddress) -> Result<Self, String> {
        let failed = |e: io::Error| {
            format!("{address}: {}{}; choose another address", crate::cli::os_reason(&e), held_by(address, &e))
        };
        let door = Door::open(address).map_err(failed)?;
        let path = match address {
            SocketAddress::Unix(path) => std::path::absolute(path).ok(),
            _ => None,
        };
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC).map_err(|e| failed(e.into()))?);
        let shared = Arc::<Mutex<Shared>>::default();
        let (theirs, ends) = (shared.clone(), stop.clone());
        let accept = move || {
            loop {
                match door.next(&ends) {
                    Ok(Some(socket)) => take_in(&theirs, socket),
                    Ok(None) => return,
                    Err(error) => {
                        tracing::warn!("NBD: {error}");
                        // Out of descriptors, perhaps: some may be free soon.
                        thread::sleep(std::time::Duration::from_millis(100));
                    }
                }
            }
        };
        let thread = thread::Builder::new().name("nbd".into()).spawn(accept).map_err(failed)?;
        Ok(Self { shared, stop, thread: Some(thread), path })
    }

    /// One more disk; `false`: there is one of that name or id.
    pub fn add(&self, export: Export) -> bool {
        let mut shared = locked(&self.shared);
        let fresh = shared.exports.iter().all(|other| other.name != export.name && other.id != export.id);
        if fresh {
            shared.exports.push(export);
        }
        fresh
    }

    /// Takes a disk away, from its clients too if that is wanted. `None`: there is none with that id; `false`: it has clients.
    pub fn remove(&self, id: &str, with_clients: bool) -> Option<bool> {
        let mut shared = locked(&self.shared);
        let at = shared.exports.iter().position(|export| export.id == id)?;
        let name = shared.exports[at].name.clone();
        let of = |client: &&Client| client.export.as_ref() == Some(&name);
        if !with_clients && shared.clients.iter().any(|client| of(&client)) {
            return Some(false);
        }
        shared.exports.remove(at);
        shared.clients.iter().filter(of).for_each(let_down);
        Some(true)
    }

    /// The disks.
    pub fn exports(&self) -> Vec<Export> {
        locked(&self.shared).exports.clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails only if the counter is full, and then it is told already.
        let _ = self.stop.write(1);
        // A panic was reported when it happened.
        self.thread.take().into_iter().for_each(|thread| drop(thread.join()));
        let mut shared = locked(&self.shared);
        shared.exports.clear();
        shared.clients.iter().for_each(let_down);
        // Somebody may have removed it.
        self.path.iter().for_each(|path| drop(std::fs::remove_file(path)));
    }
}

fn let_down(client: &Client) {
    // It may have gone by itself.
    let _ = rustix::net::shutdown(&client.socket, Shutdown::Both);
}

/// A client among others.
struct Seat {
    shared: Arc<Mutex<Shared>>,
    number: u64,
}

impl Shelf for Seat {
    fn exports(&self) -> Vec<Export> {
        locked(&self.shared).exports.clone()
    }

    fn chosen(&self, name: &str) -> bool {
        let mut shared = locked(&self.shared);
        let there = shared.exports.iter().any(|export| export.name == name);
        let number = self.number;
        if let Some(client) = shared.clients.iter_mut().find(|client| client.number == number).filter(|_| there) {
            client.export = Some(name.to_owned());
        }
        there
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        locked(&self.shared).clients.retain(|client| client.number != self.number);
    }
}

/// Starts a client's thread.
fn take_in(shared: &Arc<Mutex<Shared>>, socket: OwnedFd) {
    let start = || -> io::Result<()> {
        let stream = File::from(socket.try_clone()?);
        let seat = {
            let mut all = locked(shared);
            if all.clients.len() >= MOST_CLIENTS {
                tracing::warn!("NBD: there are {MOST_CLIENTS} clients already; one more is let down");
                return Ok(());
            }
            all.count += 1;
            let number = all.count;
            all.clients.push(Client { number, export: None, socket });
            Seat { shared: shared.clone(), number }
        };
        let serve = move || {
            let seat = seat;
            if let Err(error) = session::serve(stream, &seat)
                && error.kind() == io::ErrorKind::InvalidData
            {
                tracing::warn!("NBD: {error}; the connection is closed");
            }
        };
        thread::Builder::new().name("nbd-client".into()).spawn(serve).map(drop)
    };
    if let Err(error) = start() {
        tracing::warn!("NBD: {error}");
    }
}
