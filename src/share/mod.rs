//! Folders of the host's that the guest mounts: a server of 9P2000.L messages.
//!
//! Each folder has a thread that carries requests out one after the other: a slow disk delays this folder and nothing else.

mod data;
mod fid;
mod owner;
mod session;
#[cfg(test)]
mod tests;
mod tree;
mod wire;

pub use owner::Model;
pub use session::MOST;

use crate::cli::config::sharing::ShareSpec;
use anyhow::{Context, Result, anyhow};
use brolga_devices::services::{MessageClient, MessageService};
use brolga_devices::state::{StateError, StateValue, from_state, to_state};
use brolga_devices::wire::locked;
use crossbeam_channel::{Receiver, Sender, unbounded};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use session::Session;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread;
use tree::{Rules, Tree};

/// What the thread is asked to do.
enum Order {
    Answer { token: u64, request: Vec<u8>, room: usize, client: Weak<dyn MessageClient> },
    Reset,
}

/// A shared folder. Locks: `session` is held while a request is carried out, `waiting` is a leaf.
pub struct Share {
    orders: Sender<Order>,
    session: Mutex<Session>,
    /// Orders that are not carried out yet.
    waiting: Mutex<usize>,
    done: Condvar,
}

/// Opens the folder of `spec` and starts its thread.
pub fn open(spec: &ShareSpec) -> Result<Arc<dyn MessageService>> {
    let rules = Rules {
        model: spec.model,
        read_only: spec.read_only,
        file_mode: spec.file_mode,
        folder_mode: spec.folder_mode,
    };
    let tree = Tree::open(&spec.path, rules).map_err(|errno| {
        anyhow!("{} path={}: {}; name a folder", spec.what, spec.path.display(), crate::cli::os_reason(&errno.into()))
    })?;
    more_descriptors();
    let (orders, receiver) = unbounded();
    let share = Arc::new(Share {
        orders,
        session: Mutex::new(Session::new(Arc::new(tree), spec.write_through)),
        waiting: Mutex::new(0),
        done: Condvar::new(),
    });
    let worker = Arc::downgrade(&share);
    thread::Builder::new()
        .name(format!("9p-{}", spec.tag))
        .spawn(move || run(&worker, &receiver))
        .with_context(|| format!("{}: no thread", spec.what))?;
    Ok(share)
}

/// Files that the guest has open are open here: as many as the host allows.
fn more_descriptors() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        // What the limit was is enough for less; a guest that needs more gets an error then.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

fn run(share: &Weak<Share>, orders: &Receiver<Order>) {
    for order in orders {
        let Some(share) = share.upgrade() else { return };
        match order {
            Order::Answer { token, request, room, client } => {
                let answer = locked(&share.session).handle(&request, room);
                if let Some(client) = client.upgrade() {
                    client.answer(token, answer);
                }
            }
            Order::Reset => locked(&share.session).reset(),
        }
        *locked(&share.waiting) -= 1;
        share.done.notify_all();
    }
}

impl Share {
    fn order(&self, order: Order) {
        *locked(&self.waiting) += 1;
        // The thread lives as long as this does.
        let _ = self.orders.send(order);
    }
}

impl MessageService for Share {
    fn submit(&self, token: u64, request: Vec<u8>, room: usize, client: Weak<dyn MessageClient>) {
        self.order(Order::Answer { token, request, room, client });
    }

    fn reset(&self) {
        self.order(Order::Reset);
    }

    fn settle(&self) {
        let mut waiting = locked(&self.waiting);
        while *waiting > 0 {
            waiting = self.done.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn save(&self) -> StateValue {
        to_state(&locked(&self.session).save())
    }

    fn restore(&self, state: &StateValue, check: bool) -> std::result::Result<(), StateError> {
        let saved = from_state("virtio-9p-pci", state)?;
        if !check {
            locked(&self.session).restore(saved);
        }
        Ok(())
    }

    fn describe(&self) -> String {
        let session = locked(&self.session);
        format!("{} fids, messages of up to {} bytes", session.fids.len(), session.longest)
    }
}
