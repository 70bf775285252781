//! Network device (section 5.1): frames through pairs of queues, checksums and segmentation taken off the driver, and a
//! control queue for filters.

mod control;
mod header;
#[cfg(test)]
mod tests;

use super::queue::{Chain, Queues};
use super::{Parts, VirtioDevice};
use crate::offload;
use crate::services::{Dma, Doorbell, NetBackend, NetFrontend, Reception, Takes, Unfinished, WorkService, WorkTarget};
use crate::state::{Inspector, StateError, StateValue, from_state, to_state};
use crate::wire::{Hook, locked};
use control::Filter;
use header::Header;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// Entries of a queue.
const QUEUE_SIZE: u16 = 256;
/// Longest packet: 64 KiB and an Ethernet header with its tag.
const LONGEST: usize = 65_535 + 18;
/// Packets sent before others get their turn.
const BUDGET: usize = 256;
/// Buffers that the driver gave and that wait for a frame: as many as the longest frame takes of the smallest.
const SPARE: usize = QUEUE_SIZE as usize;
const MTU: u16 = 1500;

/// Feature bits (5.1.3).
pub mod feature {
    /// The driver leaves checksums to us.
    pub const CSUM: u64 = 1 << 0;
    /// The driver believes us about checksums.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// The driver can change what it takes of the three kinds beside this bit.
    pub const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
    /// The address is in the configuration space.
    pub const MAC: u64 = 1 << 5;
    /// The driver takes large TCP packets over IPv4.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// The same over IPv6.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// Large TCP packets over IPv4 and IPv6, and such with congestion marks.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// See [`HOST_TSO4`].
    pub const HOST_TSO6: u64 = 1 << 12;
    /// See [`HOST_TSO4`].
    pub const HOST_ECN: u64 = 1 << 13;
    /// A frame may take several buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// The link's state is in the configuration space.
    pub const STATUS: u64 = 1 << 16;
    /// There is a control queue.
    pub const CTRL_VQ: u64 = 1 << 17;
    /// It takes receive modes and address filters.
    pub const CTRL_RX: u64 = 1 << 18;
    /// It takes VLAN filters.
    pub const CTRL_VLAN: u64 = 1 << 19;
    /// More receive modes.
    pub const CTRL_RX_EXTRA: u64 = 1 << 20;
    /// The driver can be asked to tell its network where it is.
    pub const GUEST_ANNOUNCE: u64 = 1 << 21;
    /// Several pairs of queues.
    pub const MQ: u64 = 1 << 22;
    /// The address can be changed.
    pub const CTRL_MAC_ADDR: u64 = 1 << 23;
    /// The driver takes large UDP packets over IPv4.
    pub const GUEST_USO4: u64 = 1 << 54;
    /// The same over IPv6.
    pub const GUEST_USO6: u64 = 1 << 55;
    /// Large UDP packets.
    pub const HOST_USO: u64 = 1 << 56;
    /// What the driver can turn off and on.
    pub const GUEST_OFFLOADS: u64 = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_USO4 | GUEST_USO6;
}

/// Status in the configuration space: the link is up; the driver shall announce itself.
const LINK_UP: u16 = 1;
const ANNOUNCE: u16 = 2;
/// Commands of the control queue that are not about receiving (5.1.6.5.4, 5.1.6.5.6): class and command.
const ANNOUNCED: (u8, u8) = (3, 0);
const SET_OFFLOADS: (u8, u8) = (5, 0);
const TRANSMIT: u32 = 0;
const RECEIVE: u32 = 1;
const CONTROL: u32 = 2;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    features: u64,
    started: bool,
    /// Offloads that the driver takes now.
    offloads: u64,
    /// The driver was asked to announce itself and has not yet.
    announce: bool,
    filter: Filter,
    /// Pairs of queues that the driver uses.
    pairs: usize,
    /// Buffers taken from receive queues, by pair.
    spare: Vec<VecDeque<Chain>>,
    /// A frame was refused for want of buffers.
    starved: bool,
    /// Where answers to what was sent go: the pair by a hash of the connection.
    steering: Vec<u8>,
}

/// Entries of the steering table.
const STEERING: usize = 256;

impl State {
    fn new(mac: [u8; 6], pairs: usize) -> Self {
        Self {
            features: 0,
            started: false,
            offloads: 0,
            announce: false,
            filter: Filter::new(mac),
            pairs: 1,
            spare: vec![VecDeque::new(); pairs],
            starved: false,
            steering: vec![0; STEERING],
        }
    }
}

impl State {
    /// Does a command of the control queue; `most` is how many pairs of queues there are. `false`: it is refused.
    fn command(&mut self, features: u64, bytes: &[u8], most: usize) -> bool {
        let Some(([class, command], data)) = bytes.split_first_chunk::<2>() else { return false };
        match (*class, *command) {
            ANNOUNCED if features & feature::GUEST_ANNOUNCE != 0 => self.announce = false,
            SET_OFFLOADS if features & feature::CTRL_GUEST_OFFLOADS != 0 => {
                let wanted = data.first_chunk().map(|word| u64::from_le_bytes(*word));
                let Some(wanted) = wanted.filter(|w| w & !(features & feature::GUEST_OFFLOADS) == 0) else {
                    return false;
                };
                self.offloads = wanted;
            }
            _ => return self.filter.command(features, bytes, &mut self.pairs, most),
        }
        true
    }

    /// What may be left open in frames for the driver. Large ones come with open sums (5.1.3.1).
    fn takes(&self) -> Takes {
        let on = |bit: u64| self.started && self.offloads & bit != 0 && self.offloads & feature::GUEST_CSUM != 0;
        Takes {
            sums: on(feature::GUEST_CSUM),
            large_v4: on(feature::GUEST_TSO4),
            large_v6: on(feature::GUEST_TSO6),
            datagrams_v4: on(feature::GUEST_USO4),
            datagrams_v6: on(feature::GUEST_USO6),
        }
    }
}

/// The device.
///
/// Locks: `sending` before `state` before those of the queues; back end and doorbells are used without `state`. Frames
/// move on the I/O thread only.
pub struct VirtioNet {
    mac: [u8; 6],
    pairs: usize,
    /// Features that are not offered.
    without: u64,
    queues: Arc<Queues>,
    backend: Option<Arc<dyn NetBackend>>,
    /// The cable is plugged in.
    link: AtomicBool,
    transmit_bell: Box<dyn Doorbell>,
    receive_bell: Box<dyn Doorbell>,
    control_bell: Box<dyn Doorbell>,
    sending: Mutex<()>,
    /// Who hears that the driver wants other frames.
    reception_changed: Hook<()>,
    state: Mutex<State>,
}

impl VirtioNet {
    /// A device with the address `mac` and `pairs` (1 to 8) pairs of queues, at the end of a cable to `backend`. It
    /// offers none of the features `without`, nor those that need them. With it comes the card as a network sees it.
    pub fn parts(
        mac: [u8; 6],
        pairs: u16,
        without: u64,
        dma: Arc<dyn Dma>,
        backend: Option<Arc<dyn NetBackend>>,
        work: &dyn WorkService,
    ) -> (Parts, Arc<dyn NetFrontend>) {
        let pairs = usize::from(pairs.clamp(1, 8));
        // Receive and transmit queues in turn, the control queue last (5.1.2).
        let queues = Queues::new(dma, 2 * pairs + 1, QUEUE_SIZE);
        let device = Arc::new_cyclic(|this: &Weak<Self>| Self {
            mac,
            pairs,
            without,
            queues: queues.clone(),
            link: AtomicBool::new(backend.is_some()),
            backend,
            transmit_bell: work.doorbell(this.clone(), TRANSMIT),
            receive_bell: work.doorbell(this.clone(), RECEIVE),
            control_bell: work.doorbell(this.clone(), CONTROL),
            sending: Mutex::new(()),
            reception_changed: Hook::default(),
            state: Mutex::new(State::new(mac, pairs)),
        });
        let frontend: Arc<dyn NetFrontend> = device.clone();
        if let Some(backend) = &device.backend {
            backend.connect(Arc::downgrade(&frontend));
        }
        (Parts { device, queues }, frontend)
    }

    fn link_up(&self) -> bool {
        self.link.load(Ordering::SeqCst)
    }

    /// Where the control queue is: behind all pairs, or behind the first for a driver that knows of no more (5.1.2).
    fn control_queue(&self, features: u64) -> usize {
        if features & feature::MQ != 0 { 2 * self.pairs } else { 2 }
    }

    fn features_taken(&self) -> u64 {
        locked(&self.state).features
    }

    /// Sends what the driver has put into its queues.
    fn transmit(&self) {
        let sending = locked(&self.sending);
        let mut budget = BUDGET;
        let mut frames = Vec::new();
        let pairs = if self.features_taken() & feature::MQ != 0 { self.pairs } else { 1 };
        for pair in 0..pairs {
            let queue = 2 * pair + 1;
            self.queues.want_notifications(queue, false);
            loop {
                let popped = if budget == 0 { None } else { self.queues.pop(queue) };
                let Some(chain) = popped else {
                    self.queues.want_notifications(queue, true);
                    // What came between the last look and the wish to be told.
                    let Some(chain) = (if budget == 0 { None } else { self.queues.pop(queue) }) else { break };
                    self.queues.want_notifications(queue, false);
                    budget -= 1;
                    self.take(pair, queue, &chain, &mut frames);
                    continue;
                };
                budget -= 1;
                self.take(pair, queue, &chain, &mut frames);
            }
        }
        drop(sending);
        if let Some(backend) = self.backend.as_ref().filter(|_| !frames.is_empty() && self.link_up()) {
            frames.iter().for_each(|frame| backend.send(frame));
            backend.sent();
        }
        if budget == 0 {
            self.transmit_bell.ring();
        }
    }

    /// Takes one packet of the driver's and gives its buffers back.
    fn take(&self, pair: usize, queue: usize, chain: &Chain, frames: &mut Vec<Vec<u8>>) {
        let (features, pairs) = {
            let state = locked(&self.state);
            (state.features, state.pairs)
        };
        let longest = self.backend.as_ref().map_or(0, |backend| backend.longest_frame());
        if let Some(bytes) = self.gather(chain)
            && let Some((header, packet)) = Header::read(&bytes, header::len(features))
        {
            if pairs > 1 {
                self.steer(packet, pair);
            }
            header.frames(packet, longest, frames);
        }
        self.queues.push(queue, chain.head, 0);
    }

    /// What the driver gives, if it is not longer than a packet can be.
    fn gather(&self, chain: &Chain) -> Option<Vec<u8>> {
        let total = chain.readable.iter().fold(0u64, |sum, range| sum.saturating_add(range.len));
        let total = usize::try_from(total).ok().filter(|total| *total <= LONGEST + header::LONG)?;
        let mut bytes = vec![0; total];
        let mut rest = &mut bytes[..];
        for range in &chain.readable {
            let (now, later) = rest.split_at_mut(rest.len().min(range.len as usize));
            self.queues.dma().read(range.gpa, now);
            rest = later;
        }
        Some(bytes)
    }

    /// Notes from which pair a connection sends: its answers go there.
    fn steer(&self, packet: &[u8], pair: usize) {
        if let Some(slot) = locked(&self.state).steering.get_mut(header::connection_hash(packet) % STEERING) {
            *slot = pair as u8;
        }
    }

    /// Gives the driver a frame. `false`: it has no buffers.
    fn store(&self, frame: &[u8], rest: Unfinished) -> bool {
        let mut state = locked(&self.state);
        if !self.link_up() {
            return true;
        }
        if !state.started || frame.len() < 14 || frame.len() > LONGEST || !state.filter.accepts(state.features, frame) {
            return true;
        }
        let pair = match state.pairs {
            0 | 1 => 0,
            pairs => {
                usize::from(state.steering.get(header::connection_hash(frame) % STEERING).copied().unwrap_or(0)) % pairs
            }
        };
        let queue = 2 * pair;
        let header_len = header::len(state.features);
        let mergeable = state.features & feature::MRG_RXBUF != 0;
        let needed = (header_len + frame.len()) as u64;
        let Some(chains) = self.room(&mut state, pair, needed, mergeable) else { return false };
        let believes = state.offloads & feature::GUEST_CSUM != 0 && rest.sum.is_none();
        let right = believes && offload::check_sums(frame).transport == Some(true);
        drop(state);
        if chains.iter().map(size).sum::<u64>() < needed {
            // Without merging a buffer has to hold any frame: one that does not comes back empty.
            chains.iter().for_each(|chain| self.queues.push(queue, chain.head, 0));
            return true;
        }
        let header = match rest.sum {
            Some(_) => Header::unfinished(frame, rest, chains.len() as u16),
            None => Header::received(right, chains.len() as u16),
        };
        let bytes = [&header.write()[..header_len], frame].concat();
        let mut rest = &bytes[..];
        let mut done = Vec::with_capacity(chains.len());
        for chain in &chains {
            let before = rest.len();
            for range in &chain.writable {
                let now = rest.len().min(usize::try_from(range.len).unwrap_or(usize::MAX));
                let (part, later) = rest.split_at(now);
                self.queues.dma().write(range.gpa, part);
                rest = later;
            }
            done.push((chain.head, (before - rest.len()) as u32));
        }
        self.queues.push_all(queue, &done);
        true
    }

    /// Buffers with room for `needed` bytes together; `None`: there are not enough yet.
    fn room(&self, state: &mut State, pair: usize, needed: u64, mergeable: bool) -> Option<Vec<Chain>> {
        let spare = state.spare.get_mut(pair)?;
        let (mut count, mut have) = (0, 0u64);
        while have < needed {
            if count == spare.len() {
                let popped = if spare.len() < SPARE { self.pop_buffer(2 * pair) } else { None };
                let Some(chain) = popped else {
                    // What waits can never hold it: the driver breaks its word, and the frame is lost.
                    if spare.len() >= SPARE {
                        return Some(Vec::new());
                    }
                    state.starved = true;
                    return None;
                };
                spare.push_back(chain);
            }
            have = have.saturating_add(spare.get(count).map_or(0, size));
            count += 1;
            if !mergeable {
                break;
            }
        }
        Some(spare.drain(..count).collect())
    }

    fn pop_buffer(&self, queue: usize) -> Option<Chain> {
        if let Some(chain) = self.queues.pop(queue) {
            return Some(chain);
        }
        // Tell us when there are more, and look again.
        self.queues.want_notifications(queue, true);
        self.queues.pop(queue)
    }

    /// Does what the driver asks for in the control queue (5.1.6.5).
    fn control(&self) {
        let features = self.features_taken();
        if features & feature::CTRL_VQ == 0 {
            return;
        }
        let queue = self.control_queue(features);
        for _ in 0..BUDGET {
            let Some(chain) = self.queues.pop(queue) else { return };
            let (done, changed) = self.gather(&chain).map_or((false, false), |bytes| {
                let mut state = locked(&self.state);
                let before = state.filter.clone();
                (state.command(features, &bytes, self.pairs), state.filter != before)
            });
            if changed {
                self.reception_changed.call(());
            }
            let mut written = 0;
            if let Some(range) = chain.writable.iter().find(|range| range.len > 0) {
                self.queues.dma().write(range.gpa, &[u8::from(!done)]);
                written = 1;
            }
            self.queues.push(queue, chain.head, written);
        }
        self.control_bell.ring();
    }
}

/// Bytes that a buffer holds.
fn size(chain: &Chain) -> u64 {
    chain.writable.iter().fold(0u64, |sum, range| sum.saturating_add(range.len)).min(u32::MAX.into())
}

impl NetFrontend for VirtioNet {
    fn receive(&self, frame: &[u8], rest: Unfinished) -> bool {
        self.store(frame, rest)
    }

    fn takes(&self) -> Takes {
        locked(&self.state).takes()
    }

    fn set_link(&self, up: bool) {
        let up = up && self.backend.is_some();
        if self.link.swap(up, Ordering::SeqCst) != up {
            self.queues.config_changed();
            // Frames that wait are not wanted any more, or can be taken again.
            self.receive_bell.ring();
        }
    }

    fn reception(&self) -> Option<Reception> {
        let state = locked(&self.state);
        Some(state.filter.reception(state.features))
    }

    fn on_reception(&self, changed: Box<dyn Fn(()) + Send + Sync>) {
        self.reception_changed.set(changed);
    }
}

impl WorkTarget for VirtioNet {
    fn work(&self, tag: u32) {
        match tag {
            TRANSMIT => self.transmit(),
            CONTROL => self.control(),
            _ => self.backend.iter().for_each(|backend| backend.receive_ready()),
        }
    }
}

impl VirtioDevice for VirtioNet {
    fn name(&self) -> &'static str {
        "virtio-net-pci"
    }

    fn device_type(&self) -> u16 {
        1
    }

    fn pci_class(&self) -> u32 {
        0x02_0000
    }

    fn features(&self) -> u64 {
        use feature::*;
        let several = if self.pairs > 1 { MQ } else { 0 };
        let control = CTRL_VQ | CTRL_RX | CTRL_VLAN | CTRL_RX_EXTRA | CTRL_MAC_ADDR | GUEST_ANNOUNCE;
        let offloads = CSUM | GUEST_OFFLOADS | CTRL_GUEST_OFFLOADS | HOST_TSO4 | HOST_TSO6 | HOST_ECN | HOST_USO;
        let mut all = (MAC | STATUS | MRG_RXBUF | control | offloads | several) & !self.without;
        // What a feature needs (5.1.3.1).
        for (needed, by) in [
            (CSUM, HOST_TSO4 | HOST_TSO6 | HOST_ECN | HOST_USO),
            (GUEST_CSUM, GUEST_TSO4 | GUEST_TSO6 | GUEST_USO4 | GUEST_USO6),
            (CTRL_VQ, control | MQ | CTRL_GUEST_OFFLOADS),
            (STATUS, GUEST_ANNOUNCE),
        ] {
            all &= if all & needed == 0 { !by } else { u64::MAX };
        }
        all
    }

    fn config(&self) -> Vec<u8> {
        let state = locked(&self.state);
        let announce = if state.announce { ANNOUNCE } else { 0 };
        let status = announce | if self.link_up() { LINK_UP } else { 0 };
        let mac = state.filter.mac();
        drop(state);
        let mut bytes = mac.to_vec();
        bytes.extend_from_slice(&status.to_le_bytes());
        bytes.extend_from_slice(&(self.pairs as u16).to_le_bytes());
        bytes.extend_from_slice(&MTU.to_le_bytes());
        bytes
    }

    fn config_write(&self, offset: usize, bytes: &[u8]) {
        // Only legacy drivers write here: their address, byte by byte.
        let mut state = locked(&self.state);
        if state.features & super::feature::VERSION_1 == 0 {
            state.filter.set_mac_bytes(offset, bytes);
        }
    }

    fn start(&self, features: u64) {
        let mut state = locked(&self.state);
        (state.features, state.started) = (features, true);
        state.offloads = features & feature::GUEST_OFFLOADS;
    }

    fn notify(&self, index: usize) {
        let features = self.features_taken();
        if index == self.control_queue(features) {
            self.control_bell.ring();
        } else if index % 2 == 1 {
            self.transmit_bell.ring();
        } else if std::mem::take(&mut locked(&self.state).starved) {
            self.receive_bell.ring();
        }
    }

    fn reset(&self) {
        let _sending = locked(&self.sending);
        *locked(&self.state) = State::new(self.mac, self.pairs);
        // Frames that wait for buffers are not wanted any more.
        self.receive_bell.ring();
    }

    fn busy(&self) -> bool {
        false
    }

    fn save(&self) -> StateValue {
        let _sending = locked(&self.sending);
        to_state(&*locked(&self.state))
    }

    fn restore(&self, state: &StateValue, check: bool) -> Result<(), StateError> {
        let new: State = from_state(self.name(), state)?;
        let sound = new.spare.len() == self.pairs
            && new.spare.iter().all(|spare| spare.len() <= SPARE)
            && (1..=self.pairs).contains(&new.pairs)
            && new.steering.len() == STEERING
            && new.filter.is_sound();
        if !sound {
            let reason = "not a state of this device".into();
            return Err(StateError::Malformed { device: self.name(), reason });
        }
        if !check {
            // Whoever talks to the guest may not know where it is now.
            let announce = new.started && new.features & feature::GUEST_ANNOUNCE != 0;
            let sending = locked(&self.sending);
            *locked(&self.state) = State { announce: announce || new.announce, ..new };
            drop(sending);
            if announce {
                self.queues.config_changed();
            }
            self.transmit_bell.ring();
            self.receive_bell.ring();
        }
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        let state = locked(&self.state);
        let [a, b, c, d, e, f] = state.filter.mac();
        out.field("mac", format_args!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"));
        out.field("link", if self.link_up() { "up" } else { "down" });
        out.field("features", format_args!("{:#x}", state.features));
        out.field("pairs", format_args!("{} of {}", state.pairs, self.pairs));
    }
}
