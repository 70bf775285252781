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
use port::{PortEnd, PortState};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

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
    specs: Vec<PortSpec>,
    ends: Vec<Arc<PortEnd>>,
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
            ends: (0..specs.len()).map(|port| Arc::new(PortEnd::new(this.clone(), port))).collect(),
            specs,
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
        self.ends.iter().map(|end| end.clone() as Arc<dyn CharFrontend>).collect()
    }

    fn multiport(state: &State) -> bool {
        state.features & feature::MULTIPORT != 0
    }

    /// The port that a queue is of, and whether the queue is its output.
    fn port_of(&self, queue: usize) -> Option<(usize, bool)> {
        let of = |spec: &PortSpec| queue & !1 == input_queue(spec.id);
        self.specs.iter().position(of).map(|port| (port, queue & 1 != 0))
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
                    (0..self.specs.len()).for_each(|port| self.look_at_host(port));
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
    fn first_console(&self) -> Option<&PortSpec> {
        self.specs.iter().filter(|spec| spec.console).min_by_key(|spec| spec.id)
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
            for (port, _) in state.ports.iter_mut().zip(&self.specs).filter(|(_, spec)| spec.id == 0) {
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
            ports: self.specs.iter().map(|_| PortState::default()).collect(),
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
        if new.ports.len() != self.specs.len() || new.outbox.len() > control::MOST_MESSAGES {
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
        for (spec, port) in self.specs.iter().zip(&state.ports) {
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
