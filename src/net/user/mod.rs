//! `-netdev user`: a network of its own for the guest, translated to sockets of the host. Nothing on the host changes
//! and no privilege is needed. The guest reaches the host's loopback at the gateway's address, and what the host
//! reaches; it is reached by forwarded ports only.
//!
//! A guest can send whatever it likes: every table, queue and buffer here has a limit, and what is beyond it is lost to
//! that guest alone.

mod dhcp;
mod forward;
mod ipv6;
mod outbox;
mod packet;
mod ping;
mod reassembly;
mod resolver;
mod stack;
mod tcp;
mod tftp;
mod udp;

#[cfg(test)]
mod tests;

use super::Card;
use crate::cli::config::network::{HostForward, UserNetConfig};
use crate::io_thread::FdWatcher;
use crate::net::poller::Poller;
use anyhow::Result;
use brolga_devices::services::{Clock, NetBackend, NetFrontend, Timer, TimerService, TimerTarget};
use nix::poll::PollFlags;
use resolver::Resolver;
use stack::Stack;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// A user-mode network. Everything but its making happens on the I/O thread.
///
/// Locks: `stack` is a leaf; the card is called without it.
pub struct UserNet {
    poller: Arc<Poller>,
    stack: Mutex<Stack>,
    clock: Arc<dyn Clock>,
    timer: OnceLock<Box<dyn Timer>>,
    card: Card,
}

/// A forwarded port that was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenPort {
    /// UDP instead of TCP.
    pub udp: bool,
    /// Where the host listens.
    pub host: SocketAddr,
    /// Where it leads in the guest.
    pub guest: SocketAddr,
    /// The host chose the port.
    pub chosen: bool,
}

impl UserNet {
    /// Makes the network and opens its forwarded ports.
    pub fn open(
        config: &UserNetConfig,
        clock: Arc<dyn Clock>,
        timers: &dyn TimerService,
    ) -> Result<(Arc<Self>, Vec<OpenPort>)> {
        let poller = Arc::new(Poller::new()?);
        let (stack, ports) = Stack::new(config.clone(), poller.clone(), Resolver::of_host())?;
        let this =
            Arc::new(Self { poller, stack: Mutex::new(stack), clock, timer: OnceLock::new(), card: Card::default() });
        let target: Arc<dyn TimerTarget> = this.clone();
        // Just made, so it is empty.
        let _ = this.timer.set(timers.create(Arc::downgrade(&target), 0));
        Ok((this, ports))
    }

    fn stack(&self) -> MutexGuard<'_, Stack> {
        self.stack.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets everything move as far as it can, and sees to it that it goes on.
    fn serve(&self) {
        loop {
            self.stack().serve(self.clock.now_ns());
            if !self.deliver() {
                break;
            }
        }
        let now = self.clock.now_ns();
        let deadline = self.stack().deadline(now);
        if let Some(timer) = self.timer.get() {
            match deadline {
                Some(at) => timer.arm(at),
                None => timer.disarm(),
            }
        }
    }

    /// Gives the card what waits for it; `true`: it took enough for more to be sent.
    fn deliver(&self) -> bool {
        let held_back = !self.stack().has_room();
        let takes = self.card.takes();
        loop {
            let Some(frame) = self.stack().pop(takes) else { return held_back };
            if !self.card.receive_unfinished(&frame.bytes, frame.rest) {
                self.stack().push_back(frame);
                return false;
            }
        }
    }

    /// The card at the other end.
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// Opens a forwarded port while the guest runs.
    pub fn add_forward(&self, forward: &HostForward) -> Result<OpenPort> {
        self.stack().add_forward(forward)
    }

    /// Closes a forwarded port; `false`: there is none.
    pub fn remove_forward(&self, udp: bool, host: SocketAddr) -> bool {
        self.stack().remove_forward(udp, host)
    }

    /// The guest and its time are others from now on: connections are gone, leases and forwarded ports stay.
    pub fn restart(&self) {
        self.stack().restart();
        if let Some(timer) = self.timer.get() {
            timer.disarm();
        }
    }

    /// What `info usernet` shows.
    pub fn describe(&self) -> String {
        self.stack().describe(self.clock.now_ns())
    }
}

impl NetBackend for UserNet {
    fn connect(&self, card: Weak<dyn NetFrontend>) {
        self.card.connect(card);
    }

    fn send(&self, frame: &[u8]) {
        let now = self.clock.now_ns();
        self.stack().guest_frame(frame, now);
    }

    fn longest_frame(&self) -> usize {
        packet::ETHERNET + usize::from(u16::MAX)
    }

    fn sent(&self) {
        self.serve();
    }

    fn receive_ready(&self) {
        self.serve();
    }
}

impl FdWatcher for UserNet {
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

impl TimerTarget for UserNet {
    fn timer_fired(&self, _tag: u32, _now_ns: u64) {
        self.serve();
    }
}
