//! Console device (section 5.3): a bus of ports, each with a byte stream in both directions.
//!
//! Nothing is lost and nobody waits: what the host cannot take stays in the guest's buffers, what the guest has no buffer
//! for stays with the host.

mod control;
mod port;
#[cfg(test)]
mod tests;

pub use port::PortSpec;

use super::queue::Queues;
use super::{Parts, VirtioDevice};
use crate::services::{CharFrontend, Dma, Doorbell, WorkService, WorkTarget};
use crate::state::{Inspector, StateError, StateValue, from_state, to_state};
use crate::wire::{Hook, locked};
use arc_swap::ArcSwap;
use port::{PortEnd, PortState};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

const QUEUE_SIZE: u16 = 128;
/// Most ports: their queues and those for control messages are 64.
pub const MOST_PORTS: u32 = 31;
/// Queues of control messages, to the driver and from it.
const CONTROL_IN: usize = 2;
const CONTROL_OUT: usize = 3;
/// Where in the configuration space the driver writes a character when all else fails.
const EMERGENCY: usize = 8;

/// Feature bits (5.3.3).
mod feature {
    pub const SIZE: u64 = 1 << 0;
    pub const MULTIPORT: u64 = 1 << 1;
    pub const EMERG_WRITE: u64 = 1 << 2;
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    features: u64,
    started: bool,
    /// By the order in which the device was given its ports.
    ports: Vec<PortState>,
    /// Control messages that wait for a buffer.
    outbox: VecDeque<Vec<u8>>,
    /// Counts resets: what began before one is not carried on after it.
    #[serde(skip)]
    life: u64,
}

/// The device.
///
/// Locks: `state` before those of the queues; back ends and doorbell are used without it. Output and control messages move
/// on the I/O thread only, input on the thread that has it.
pub struct VirtioSerial {
    this: Weak<VirtioSerial>,
    /// Those that were taken away leave their place empty.
    specs: ArcSwap<Vec<Option<Arc<PortSpec>>>>,
    ends: RwLock<Vec<Arc<PortEnd>>>,
    max_ports: u32,
    queues: Arc<Queues>,
    doorbell: Box<dyn Doorbell>,
    /// Queues to be looked at, by bit.
    kicked: AtomicU64,
    /// Who hears that a program in the guest opened a port, by its number, or closed it.
    pub opened: Hook<(u32, bool)>,
    state: Mutex<State>,
}

/// The queue of a port's input; that of its output follows.
fn input_queue(id: u32) -> usize {
    if id == 0 { 0 } else { 2 + 2 * id as usize }
}

impl VirtioSerial {
    /// A device with these ports, whose numbers differ and are below `max_ports` (1 to 31).
    pub fn new(specs: Vec<PortSpec>, max_ports: u32, dma: Arc<dyn Dma>, work: &dyn WorkService) -> (Arc<Self>, Parts) {
        let max_ports = max_ports.clamp(1, MOST_PORTS);
        let queues = Queues::new(dma, 2 * max_ports as usize + 2, QUEUE_SIZE);
        let ports = specs.iter().map(|_| PortState::default()).collect();
        let state = State { features: 0, started: false, ports, outbox: VecDeque::new(), life: 0 };
        let device = Arc::new_cyclic(|this: &Weak<Self>| Self {
            this: this.clone(),
            ends: RwLock::new((0..specs.len()).map(|port| Arc::new(PortEnd::new(this.clone(), port))).collect()),
            specs: ArcSwap::from_pointee(specs.into_iter().map(|spec| Some(Arc::new(spec))).collect()),
            max_ports,
            queues: queues.clone(),
            doorbell: work.doorbell(this.clone(), 0),
            kicked: AtomicU64::new(0),
            opened: Hook::default(),
            state: Mutex::new(state),
        });
        let parts = Parts { device: device.clone(), queues };
        (device, parts)
    }

    /// The ends of the ports that back ends give input to, in the order of the ports.
    pub fn frontends(&self) -> Vec<Arc<dyn CharFrontend>> {
        let ends = self.ends.read().unwrap_or_else(PoisonError::into_inner);
        ends.iter().map(|end| end.clone() as Arc<dyn CharFrontend>).collect()
    }

    /// Adds a port, whose number is free; the driver is told. Its end for the back end to give input to. Not for several
    /// threads at once.
    pub fn plug(&self, spec: PortSpec) -> Arc<dyn CharFrontend> {
        let id = spec.id;
        let started = {
            let mut state = locked(&self.state);
            state.ports.push(PortState::default());
            state.started && Self::multiport(&state)
        };
        let mut specs = Vec::clone(&self.specs.load());
        let end = Arc::new(PortEnd::new(self.this.clone(), specs.len()));
        specs.push(Some(Arc::new(spec)));
        self.specs.store(Arc::new(specs));
        self.ends.write().unwrap_or_else(PoisonError::into_inner).push(end.clone());
        if started {
            self.announce(id, true);
        }
        end
    }

    /// Takes the port with this number away; the driver is told. `false`: there is none. Not for several threads at once.
    pub fn unplug(&self, id: u32) -> bool {
        let Some((port, _)) = self.ports().into_iter().find(|(_, spec)| spec.id == id) else { return false };
        let mut specs = Vec::clone(&self.specs.load());
        if let Some(spec) = specs.get_mut(port) {
            *spec = None;
        }
        self.specs.store(Arc::new(specs));
        let started = {
            let mut state = locked(&self.state);
            if let Some(port) = state.ports.get_mut(port) {
                *port = PortState::default();
            }
            state.started && Self::multiport(&state)
        };
        if started {
            self.announce(id, false);
        }
        true
    }

    /// The ports that are there, with their places in the state.
    fn ports(&self) -> Vec<(usize, Arc<PortSpec>)> {
        let specs = self.specs.load();
        specs.iter().enumerate().filter_map(|(port, spec)| Some((port, spec.clone()?))).collect()
    }

    /// The port in that place.
    fn spec(&self, port: usize) -> Option<Arc<PortSpec>> {
        self.specs.load().get(port)?.clone()
    }

    fn multiport(state: &State) -> bool {
        state.features & feature::MULTIPORT != 0
    }

    /// The port that a queue is of, and whether the queue is its output.
    fn port_of(&self, queue: usize) -> Option<(usize, bool)> {
        let of = |spec: &Option<Arc<PortSpec>>| spec.as_ref().is_some_and(|spec| queue & !1 == input_queue(spec.id));
        self.specs.load().iter().position(of).map(|port| (port, queue & 1 != 0))
    }

    fn kick(&self, queue: usize) {
        self.kicked.fetch_or(1u64.checked_shl(queue as u32).unwrap_or(0), Ordering::SeqCst);
        self.doorbell.ring();
    }

    fn serve(&self) {
        let kicked = self.kicked.swap(0, Ordering::SeqCst);
        if !locked(&self.state).started {
            return;
        }
        for queue in (0..self.queues.count()).filter(|queue| kicked >> queue & 1 != 0) {
            match (queue, self.port_of(queue)) {
                (CONTROL_IN, _) => {
                    self.ports().into_iter().for_each(|(port, _)| self.look_at_host(port));
                    self.deliver_messages();
                }
                (CONTROL_OUT, _) => self.take_messages(),
                (_, Some((port, true))) => self.take_output(port),
                (_, Some((port, false))) => self.offer_input(port),
                (_, None) => {}
            }
        }
    }

    /// The console whose size the configuration space has, and to which characters go in an emergency.
    fn first_console(&self) -> Option<Arc<PortSpec>> {
        let specs = self.ports().into_iter().map(|(_, spec)| spec);
        specs.filter(|spec| spec.console).min_by_key(|spec| spec.id)
    }
}

impl WorkTarget for VirtioSerial {
    fn work(&self, _tag: u32) {
        self.serve();
    }
}

impl VirtioDevice for VirtioSerial {
    fn name(&self) -> &'static str {
        "virtio-serial-pci"
    }

    fn device_type(&self) -> u16 {
        3
    }

    fn pci_class(&self) -> u32 {
        0x07_8000
    }

    fn features(&self) -> u64 {
        feature::SIZE | feature::MULTIPORT | feature::EMERG_WRITE
    }

    fn config(&self) -> Vec<u8> {
        let (columns, rows) = self.first_console().and_then(|spec| spec.backend.size()).unwrap_or((0, 0));
        let mut out = [columns.to_le_bytes(), rows.to_le_bytes()].concat();
        out.extend(self.max_ports.to_le_bytes());
        out.extend([0; 4]);
        out
    }

    fn config_write(&self, offset: usize, bytes: &[u8]) {
        // A vCPU must not wait: what there is no room for is lost, as on a serial port.
        if let (EMERGENCY, [byte, ..], Some(console)) = (offset, bytes, self.first_console())
            && console.backend.room() > 0
        {
            console.backend.write(&[*byte]);
        }
    }

    fn start(&self, features: u64) {
        let mut state = locked(&self.state);
        (state.features, state.started) = (features, true);
        if !Self::multiport(&state) {
            // There is one port, and nobody has to say so.
            let first = self.ports().into_iter().find(|(_, spec)| spec.id == 0);
            if let Some(port) = first.and_then(|(port, _)| state.ports.get_mut(port)) {
                (port.ready, port.guest_open) = (true, true);
            }
        }
    }

    fn notify(&self, index: usize) {
        self.kick(index);
    }

    fn reset(&self) {
        self.kicked.store(0, Ordering::SeqCst);
        let mut state = locked(&self.state);
        *state = State {
            features: 0,
            started: false,
            ports: vec![PortState::default(); state.ports.len()],
            outbox: VecDeque::new(),
            life: state.life.wrapping_add(1),
        };
    }

    fn busy(&self) -> bool {
        // Memory is read and written under the lock that `reset` takes.
        false
    }

    fn save(&self) -> StateValue {
        to_state(&*locked(&self.state))
    }

    fn restore(&self, state: &StateValue, check: bool) -> Result<(), StateError> {
        let new: State = from_state(self.name(), state)?;
        if new.ports.len() != self.specs.load().len() || new.outbox.len() > control::MOST_MESSAGES {
            return Err(StateError::Malformed { device: self.name(), reason: "the ports are not these".into() });
        }
        if check {
            return Ok(());
        }
        {
            let mut state = locked(&self.state);
            let life = state.life.wrapping_add(1);
            *state = State { life, ..new };
        }
        // Whatever was waiting, on either side, goes on.
        (0..self.queues.count()).for_each(|queue| self.kick(queue));
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        let state = locked(&self.state).clone();
        out.field("max_ports", self.max_ports);
        let ports = self.ports();
        for (spec, port) in ports.iter().filter_map(|(port, spec)| Some((spec, state.ports.get(*port)?))) {
            let kind = if spec.console { "console" } else { "port" };
            out.group(&format!("{kind} {}", spec.id), |out| {
                out.field("name", &spec.name);
                out.field("guest", if port.guest_open { "open" } else { "closed" });
                out.field("host", if port.host_open { "open" } else { "closed" });
                out.field("waits_for_host", port.output.is_some());
            });
        }
    }
}
