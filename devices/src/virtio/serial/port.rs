//! A port's data, in both directions.

use super::{State, VirtioSerial, feature, input_queue};
use crate::services::{CharBackend, CharFrontend};
use crate::virtio::queue::Chain;
use crate::wire::locked;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Weak};

/// Most bytes of output moved at once.
const PIECE: usize = 64 << 10;
/// Pieces moved before others on the I/O thread have their turn.
const PIECES_AT_ONCE: usize = 64;

/// What a port is.
pub struct PortSpec {
    /// Its number, 0 to 30.
    pub id: u32,
    /// The guest uses it as a console; otherwise it is a device file.
    pub console: bool,
    /// By which the guest finds it; may be empty.
    pub name: String,
    /// The host's end.
    pub backend: Arc<dyn CharBackend>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortState {
    /// The driver has taken it.
    pub ready: bool,
    /// Somebody in the guest has it open.
    pub guest_open: bool,
    /// What the driver knows of the host's end.
    pub host_open: bool,
    /// Columns and rows, as the driver knows them.
    pub size: Option<(u16, u16)>,
    /// A buffer for input.
    pub input: Option<Chain>,
    /// The host has input and there was no buffer.
    pub hungry: bool,
    /// Output that the host has taken a part of, and how many bytes that is.
    pub output: Option<(Chain, u64)>,
}

/// The end of a port that its back end calls.
pub struct PortEnd {
    device: Weak<VirtioSerial>,
    port: usize,
}

impl PortEnd {
    pub fn new(device: Weak<VirtioSerial>, port: usize) -> Self {
        Self { device, port }
    }
}

impl CharFrontend for PortEnd {
    fn can_receive(&self) -> usize {
        self.device.upgrade().map_or(0, |device| device.input_room(self.port))
    }

    fn receive(&self, bytes: &[u8]) {
        if let Some(device) = self.device.upgrade() {
            device.take_input(self.port, bytes);
        }
    }

    fn output_ready(&self) {
        if let Some(device) = self.device.upgrade() {
            device.host_has_room(self.port);
        }
    }

    fn host_changed(&self) {
        if let Some(device) = self.device.upgrade() {
            device.host_has_changed(self.port);
        }
    }
}

impl VirtioSerial {
    /// Bytes of input that the guest has a buffer for.
    fn input_room(&self, port: usize) -> usize {
        let Some(spec) = self.spec(port) else { return 0 };
        let mut state = locked(&self.state);
        let started = state.started;
        let Some(state) = state.ports.get_mut(port).filter(|port| started && port.ready && port.guest_open) else {
            return 0;
        };
        loop {
            if state.input.is_none() {
                state.input = self.queues.pop(input_queue(spec.id));
            }
            state.hungry = state.input.is_none();
            let Some(chain) = &state.input else { return 0 };
            match usize::try_from(chain.room()).unwrap_or(usize::MAX) {
                // Nothing can be written there.
                0 => {
                    let head = chain.head;
                    state.input = None;
                    self.queues.push(input_queue(spec.id), head, 0);
                }
                room => return room,
            }
        }
    }

    /// Gives the guest input that there is room for.
    fn take_input(&self, port: usize, bytes: &[u8]) {
        let Some(spec) = self.spec(port) else { return };
        let filled = {
            let mut state = locked(&self.state);
            // A reset since it was asked for room leaves nobody to read it.
            let chain = state.ports.get_mut(port).and_then(|port| port.input.take());
            chain.map(|chain| (chain.head, chain.scatter(&**self.queues.dma(), bytes)))
        };
        if let Some((head, len)) = filled {
            self.queues.push(input_queue(spec.id), head, len);
        }
    }

    /// The driver has added buffers for input.
    pub(super) fn offer_input(&self, port: usize) {
        let hungry = locked(&self.state).ports.get_mut(port).is_some_and(|port| std::mem::take(&mut port.hungry));
        if let Some(spec) = self.spec(port).filter(|_| hungry) {
            spec.backend.input_ready();
        }
    }

    fn host_has_room(&self, port: usize) {
        if let Some(spec) = self.spec(port) {
            self.kick(input_queue(spec.id) + 1);
        }
    }

    fn host_has_changed(&self, port: usize) {
        self.kick(super::CONTROL_IN);
        // What waited for somebody who has gone is dropped.
        self.host_has_room(port);
        let alone = self.first_console().map(|spec| spec.id) == self.spec(port).map(|spec| spec.id);
        let by_config = {
            let state = locked(&self.state);
            state.started && state.features & (feature::SIZE | feature::MULTIPORT) == feature::SIZE
        };
        if alone && by_config {
            self.queues.config_changed();
        }
    }

    /// Moves output to the host, as much as it takes.
    pub(super) fn take_output(&self, port: usize) {
        let Some(spec) = self.spec(port) else { return };
        let queue = input_queue(spec.id) + 1;
        for _ in 0..PIECES_AT_ONCE {
            // While nobody is there the bytes go nowhere, and so nothing waits.
            let room = if spec.backend.connected() { spec.backend.room() } else { usize::MAX };
            let (mut chain, mut sent, life) = {
                let mut state = locked(&self.state);
                let life = state.life;
                let held = state.ports.get_mut(port).and_then(|port| port.output.take());
                let Some((chain, sent)) = held.or_else(|| self.queues.pop(queue).map(|chain| (chain, 0))) else {
                    return;
                };
                (chain, sent, life)
            };
            let bytes = match room {
                0 => Vec::new(),
                room => chain.gather(&**self.queues.dma(), sent, room.min(PIECE)),
            };
            if !bytes.is_empty() {
                spec.backend.write(&bytes);
                sent = sent.saturating_add(bytes.len() as u64);
            }
            if sent >= chain.given() {
                self.queues.push(queue, chain.head, 0);
                continue;
            }
            self.keep(port, life, (std::mem::take(&mut chain), sent));
            if room == 0 {
                // The host says when it has room again.
                return;
            }
        }
        self.kick(queue);
    }

    /// Keeps output for later, unless a reset has forgotten it.
    fn keep(&self, port: usize, life: u64, rest: (Chain, u64)) {
        let mut state = locked(&self.state);
        let State { ports, life: now, .. } = &mut *state;
        if let Some(port) = ports.get_mut(port).filter(|_| *now == life) {
            port.output = Some(rest);
        }
    }
}
