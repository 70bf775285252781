//! Host ends of network cards. A card and its host end are connected one to one; frames move on the I/O thread only.

mod datagram;
pub mod descriptor;
mod framing;
pub mod holder;
pub mod hub;
mod poller;
mod stream;
mod tap;
pub mod user;

use crate::cli::config::network::{NetdevKind, NetdevSpec};
use crate::io_thread::{FdWatcher, IoHandle};
use anyhow::{Context, Result, bail};
use brolga_devices::services::{Clock, NetBackend, NetFrontend, Takes, Unfinished};
use datagram::DatagramNet;
use hub::Hub;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
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

/// All host ends by their numbers, and the hubs between them. Locks: `all` is a leaf; `hubs` is held while one is opened.
pub struct Netdevs {
    clock: Arc<dyn Clock>,
    io: IoHandle,
    hubs: Mutex<BTreeMap<u32, Arc<Hub>>>,
    all: Mutex<Vec<Option<Arc<Netdev>>>>,
}

impl Netdevs {
    /// Opens those of `specs`.
    pub fn open(specs: &[NetdevSpec], clock: Arc<dyn Clock>, io: IoHandle) -> Result<Arc<Self>> {
        let this = Self { clock, io, hubs: Mutex::default(), all: Mutex::default() };
        specs.iter().try_for_each(|spec| this.add(spec))?;
        Ok(Arc::new(this))
    }

    /// Opens one more, with the next number.
    pub fn add(&self, spec: &NetdevSpec) -> Result<()> {
        let mut hubs = self.hubs.lock().unwrap_or_else(PoisonError::into_inner);
        let netdev = match spec.kind {
            NetdevKind::HubPort { hub, netdev } => {
                let port = hubs.entry(hub).or_insert_with(|| Hub::new(&self.io)).port();
                // Those that ports name come before them.
                if let Some(end) = netdev.and_then(|at| self.get(at)) {
                    port.attach(end.backend.clone());
                }
                let held = port.card().held.clone();
                Netdev::new(spec, "hubport", port, held)
            }
            _ => Netdev::open(spec, self.clock.clone(), &self.io)?,
        };
        self.lock().push(Some(Arc::new(netdev)));
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<Arc<Netdev>>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one with this number.
    pub fn get(&self, number: usize) -> Option<Arc<Netdev>> {
        self.lock().get(number).cloned().flatten()
    }

    /// All of them with their numbers.
    pub fn all(&self) -> Vec<(usize, Arc<Netdev>)> {
        self.lock().iter().enumerate().filter_map(|(number, netdev)| Some((number, netdev.clone()?))).collect()
    }

    /// Takes one away. Its number is not used again.
    pub fn remove(&self, number: usize) -> Option<Arc<Netdev>> {
        let netdev = self.lock().get_mut(number)?.take()?;
        netdev.close();
        netdev.watchers.iter().for_each(|watcher| self.io.unwatch(watcher));
        netdev.cable.cut();
        Some(netdev)
    }
}

/// What leads from a card to its host end: it stays in the card when the host end is taken away.
struct Cable(RwLock<Option<Arc<dyn NetBackend>>>);

impl Cable {
    fn end(&self) -> Option<Arc<dyn NetBackend>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on it leads nowhere.
    fn cut(&self) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl NetBackend for Cable {
    fn connect(&self, card: Weak<dyn NetFrontend>) {
        self.end().iter().for_each(|end| end.connect(card.clone()));
    }

    fn send(&self, frame: &[u8]) {
        self.end().iter().for_each(|end| end.send(frame));
    }

    fn longest_frame(&self) -> usize {
        // Whoever could send longer ones goes on with it, to nowhere.
        self.end().map_or(1518, |end| end.longest_frame())
    }

    fn sent(&self) {
        self.end().iter().for_each(|end| end.sent());
    }

    fn receive_ready(&self) {
        self.end().iter().for_each(|end| end.receive_ready());
    }
}

/// A host end, as the machine uses it.
pub struct Netdev {
    /// `id=`.
    pub id: String,
    /// Its kind, as the option names it.
    pub kind: &'static str,
    /// What a card is connected to.
    pub backend: Arc<dyn NetBackend>,
    cable: Arc<Cable>,
    /// What the I/O thread looks after for it.
    watchers: Vec<Arc<dyn FdWatcher>>,
    user: Option<Arc<UserNet>>,
    tap: Option<Arc<TapNet>>,
    held: Arc<AtomicBool>,
    /// What was asked for.
    pub spec: NetdevSpec,
}

impl Netdev {
    fn new(spec: &NetdevSpec, kind: &'static str, end: Arc<dyn NetBackend>, held: Arc<AtomicBool>) -> Self {
        let cable = Arc::new(Cable(RwLock::new(Some(end))));
        let (id, spec, backend) = (spec.id.clone(), spec.clone(), cable.clone());
        Self { id, kind, backend, cable, watchers: Vec::new(), user: None, tap: None, held, spec }
    }

    /// With what the I/O thread is to look after.
    fn watched(mut self, io: &IoHandle, watchers: Vec<Arc<dyn FdWatcher>>) -> Self {
        watchers.iter().for_each(|watcher| io.watch(watcher.clone()));
        self.watchers = watchers;
        self
    }

    /// Opens the host end; ports that the host chose are printed.
    fn open(spec: &NetdevSpec, clock: Arc<dyn Clock>, io: &IoHandle) -> Result<Self> {
        let id = &spec.id;
        match &spec.kind {
            NetdevKind::User(config) => {
                let opened = UserNet::open(config, clock, io).with_context(|| format!("-netdev user,id={id}"));
                let (net, ports) = opened?;
                ports.iter().filter(|port| port.chosen).for_each(|port| announce(id, port));
                let this = Self::new(spec, "user", net.clone(), net.card().held.clone());
                Ok(Self { user: Some(net.clone()), ..this.watched(io, vec![net]) })
            }
            NetdevKind::Stream(config) => {
                let opened = StreamNet::open(id, config, clock, io);
                let net = opened.with_context(|| format!("-netdev stream,id={id}"))?;
                Ok(Self::new(spec, "stream", net.clone(), net.card().held.clone()).watched(io, vec![net]))
            }
            NetdevKind::Datagram(config) => {
                let net = DatagramNet::open(config).with_context(|| format!("-netdev dgram,id={id}"))?;
                Ok(Self::new(spec, "dgram", net.clone(), net.card().held.clone()).watched(io, vec![net]))
            }
            NetdevKind::Tap(config) => {
                let net = TapNet::open(config).with_context(|| format!("-netdev tap,id={id}"))?;
                let watchers = net.watchers().into_iter().map(|queue| queue as Arc<dyn FdWatcher>).collect();
                let this = Self::new(spec, "tap", net.clone(), net.card().held.clone());
                Ok(Self { tap: Some(net), ..this.watched(io, watchers) })
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

    /// The guest is another one from now on, or an earlier one. On the I/O thread.
    pub fn restart(&self) {
        self.user.iter().for_each(|user| user.restart());
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
