//! Host ends of network cards. A card and its host end are connected one to one; frames move on the I/O thread only.

mod datagram;
mod descriptor;
mod framing;
pub mod holder;
pub mod hub;
mod poller;
mod stream;
mod tap;
pub mod user;

use crate::cli::config::network::{NetdevKind, NetdevSpec};
use crate::io_thread::IoHandle;
use anyhow::{Context, Result, bail};
use brolga_devices::services::{Clock, NetBackend, NetFrontend, Takes, Unfinished};
use datagram::DatagramNet;
use hub::Hub;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use stream::StreamNet;
use tap::TapNet;
use user::{OpenPort, UserNet};

/// The card that a host end is connected to.
#[derive(Default)]
pub struct Card {
    card: Mutex<Option<Weak<dyn NetFrontend>>>,
    /// The machine stands still: nothing reaches the guest's memory.
    held: Arc<AtomicBool>,
}

impl Card {
    fn connect(&self, card: Weak<dyn NetFrontend>) {
        *self.card.lock().unwrap_or_else(PoisonError::into_inner) = Some(card);
    }

    /// Gives the card a frame; `false`: it has no room now. Without a card, frames go nowhere.
    fn receive(&self, frame: &[u8]) -> bool {
        self.receive_unfinished(frame, Unfinished::default())
    }

    /// The same with a frame that has work left, within what [`Card::takes`] says.
    fn receive_unfinished(&self, frame: &[u8], rest: Unfinished) -> bool {
        if self.held.load(Ordering::SeqCst) {
            return false;
        }
        self.frontend().is_none_or(|card| card.receive(frame, rest))
    }

    /// What the card takes over.
    fn takes(&self) -> Takes {
        self.frontend().map_or_else(Takes::default, |card| card.takes())
    }

    fn frontend(&self) -> Option<Arc<dyn NetFrontend>> {
        self.card.lock().unwrap_or_else(PoisonError::into_inner).clone()?.upgrade()
    }
}

/// Opens all host ends, and the hubs between them.
pub fn open_all(specs: &[NetdevSpec], clock: &Arc<dyn Clock>, io: &IoHandle) -> Result<Vec<Netdev>> {
    let mut hubs: BTreeMap<u32, Arc<Hub>> = BTreeMap::new();
    let mut all: Vec<Netdev> = Vec::new();
    for spec in specs {
        let NetdevKind::HubPort { hub, netdev } = spec.kind else {
            all.push(Netdev::open(spec, clock.clone(), io)?);
            continue;
        };
        let port = hubs.entry(hub).or_insert_with(|| Hub::new(io)).port();
        // Those that ports name come before them.
        if let Some(end) = netdev.and_then(|at| all.get(at)) {
            port.attach(end.backend.clone());
        }
        let held = port.card().held.clone();
        all.push(Netdev { id: spec.id.clone(), kind: "hubport", backend: port, user: None, tap: None, held });
    }
    Ok(all)
}

/// A host end, as the machine uses it.
pub struct Netdev {
    /// `id=`.
    pub id: String,
    /// Its kind, as the option names it.
    pub kind: &'static str,
    /// What a card is connected to.
    pub backend: Arc<dyn NetBackend>,
    user: Option<Arc<UserNet>>,
    tap: Option<Arc<TapNet>>,
    held: Arc<AtomicBool>,
}

impl Netdev {
    /// Opens the host end; ports that the host chose are printed.
    fn open(spec: &NetdevSpec, clock: Arc<dyn Clock>, io: &IoHandle) -> Result<Self> {
        let NetdevSpec { id, kind } = spec.clone();
        match kind {
            NetdevKind::User(config) => {
                let opened = UserNet::open(&config, clock, io).with_context(|| format!("-netdev user,id={id}"));
                let (net, ports) = opened?;
                ports.iter().filter(|port| port.chosen).for_each(|port| announce(&id, port));
                io.watch(net.clone());
                let held = net.card().held.clone();
                Ok(Self { id, kind: "user", backend: net.clone(), user: Some(net), tap: None, held })
            }
            NetdevKind::Stream(config) => {
                let opened = StreamNet::open(&id, &config, clock, io);
                let net = opened.with_context(|| format!("-netdev stream,id={id}"))?;
                io.watch(net.clone());
                let held = net.card().held.clone();
                Ok(Self { id, kind: "stream", backend: net, user: None, tap: None, held })
            }
            NetdevKind::Datagram(config) => {
                let net = DatagramNet::open(&config).with_context(|| format!("-netdev dgram,id={id}"))?;
                io.watch(net.clone());
                let held = net.card().held.clone();
                Ok(Self { id, kind: "dgram", backend: net, user: None, tap: None, held })
            }
            NetdevKind::Tap(config) => {
                let net = TapNet::open(&config).with_context(|| format!("-netdev tap,id={id}"))?;
                net.watchers().into_iter().for_each(|queue| io.watch(queue));
                let held = net.card().held.clone();
                Ok(Self { id, kind: "tap", backend: net.clone(), user: None, tap: Some(net), held })
            }
            NetdevKind::HubPort { .. } => bail!("internal error: a hub's port is opened with its hub"),
        }
    }

    /// The user-mode network, if it is one.
    pub fn user(&self) -> Option<&UserNet> {
        self.user.as_deref()
    }

    /// The machine stands still: frames for the guest wait.
    pub fn hold(&self) {
        self.held.store(true, Ordering::SeqCst);
    }

    /// The machine goes on.
    pub fn release(&self, io: &IoHandle) {
        if self.held.swap(false, Ordering::SeqCst) {
            let backend = self.backend.clone();
            io.post(move || backend.receive_ready());
        }
    }

    /// The machine has ended.
    pub fn close(&self) {
        self.tap.iter().for_each(|tap| tap.close());
    }

    /// Forwarded ports, leases and connections of a user-mode network, for people.
    pub fn user_state(&self) -> Option<String> {
        self.user.as_ref().map(|user| user.describe())
    }
}

/// Tells the user, and programs that read it, which port the host chose.
fn announce(id: &str, port: &OpenPort) {
    let kind = if port.udp { "udp" } else { "tcp" };
    eprintln!("{id}: hostfwd={kind}:{}-{}", port.host, port.guest);
}
