//! Control messages (5.3.6.2): which ports there are, who has them open, and how large a console is.

use super::{CONTROL_IN, CONTROL_OUT, VirtioSerial};
use crate::guest_error;
use crate::wire::locked;

/// Messages that wait for the driver's buffers; a driver that leaves more unread misses some.
pub const MOST_MESSAGES: usize = 1024;
/// Messages taken before others on the I/O thread have their turn.
const MESSAGES_AT_ONCE: usize = 128;
/// Bytes of a message without what follows.
const HEADER: usize = 8;

/// Events.
mod event {
    pub const DEVICE_READY: u16 = 0;
    pub const PORT_ADD: u16 = 1;
    pub const PORT_REMOVE: u16 = 2;
    pub const PORT_READY: u16 = 3;
    pub const CONSOLE_PORT: u16 = 4;
    pub const RESIZE: u16 = 5;
    pub const PORT_OPEN: u16 = 6;
    pub const PORT_NAME: u16 = 7;
}

fn message(id: u32, event: u16, value: u16, more: &[u8]) -> Vec<u8> {
    [&id.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes(), more].concat()
}

impl VirtioSerial {
    /// Takes what the driver says.
    pub(super) fn take_messages(&self) {
        for _ in 0..MESSAGES_AT_ONCE {
            let Some(chain) = self.queues.pop(CONTROL_OUT) else { return };
            let bytes = chain.gather(&**self.queues.dma(), 0, HEADER);
            self.queues.push(CONTROL_OUT, chain.head, 0);
            match bytes[..] {
                [a, b, c, d, e, f, g, h] => {
                    let (event, value) = (u16::from_le_bytes([e, f]), u16::from_le_bytes([g, h]));
                    self.take_message(u32::from_le_bytes([a, b, c, d]), event, value);
                }
                _ => guest_error!("virtio-serial: a control message of {} bytes", bytes.len()),
            }
        }
        self.kick(CONTROL_OUT);
    }

    fn take_message(&self, id: u32, event: u16, value: u16) {
        if event == event::DEVICE_READY {
            if value != 0 {
                let ports = self.ports();
                self.post(ports.iter().map(|(_, spec)| message(spec.id, event::PORT_ADD, 1, &[])).collect());
            }
            return;
        }
        let Some((port, _)) = self.ports().into_iter().find(|(_, spec)| spec.id == id) else {
            return guest_error!("virtio-serial: there is no port {id}");
        };
        match event {
            event::PORT_READY => self.port_ready(port, value != 0),
            event::PORT_OPEN => {
                let open = value != 0;
                let before =
                    locked(&self.state).ports.get_mut(port).map(|port| std::mem::replace(&mut port.guest_open, open));
                if before == Some(!open) {
                    self.opened.call((id, open));
                }
                if let Some(spec) = self.spec(port).filter(|_| value != 0) {
                    spec.backend.input_ready();
                }
            }
            _ => guest_error!("virtio-serial: control message {event} is not one of the driver's"),
        }
    }

    /// Tells the driver of a port that came or went.
    pub(super) fn announce(&self, id: u32, came: bool) {
        let event = if came { event::PORT_ADD } else { event::PORT_REMOVE };
        self.post(vec![message(id, event, 1, &[])]);
    }

    /// The driver has taken a port, or could not.
    fn port_ready(&self, port: usize, ready: bool) {
        let Some(spec) = self.spec(port) else { return };
        if let Some(port) = locked(&self.state).ports.get_mut(port) {
            port.ready = ready;
            // A console is always open.
            port.guest_open = ready && (spec.console || port.guest_open);
            (port.host_open, port.size) = (false, None);
        }
        if !ready {
            return guest_error!("virtio-serial: the driver does not take port {}", spec.id);
        }
        let mut messages = Vec::new();
        if spec.console {
            messages.push(message(spec.id, event::CONSOLE_PORT, 1, &[]));
        }
        if !spec.name.is_empty() {
            messages.push(message(spec.id, event::PORT_NAME, 1, &[spec.name.as_bytes(), b"\0"].concat()));
        }
        self.post(messages);
        self.look_at_host(port);
        self.deliver_messages();
        spec.backend.input_ready();
    }

    /// Tells the driver what it does not know yet of the host's end of a port.
    pub(super) fn look_at_host(&self, port: usize) {
        let Some(spec) = self.spec(port) else { return };
        let (open, size) = (spec.backend.connected(), spec.backend.size());
        let mut messages = Vec::new();
        {
            let mut state = locked(&self.state);
            let multiport = Self::multiport(&state);
            let Some(port) = state.ports.get_mut(port).filter(|port| port.ready && multiport) else { return };
            // The host's end of a console counts as open, whether somebody looks or not.
            if (open || spec.console) != port.host_open {
                port.host_open = !port.host_open;
                messages.push(message(spec.id, event::PORT_OPEN, port.host_open.into(), &[]));
            }
            if let Some((columns, rows)) = size.filter(|_| spec.console && size != port.size) {
                port.size = size;
                // Linux read the rows first before it was put right in 2025; this is what the specification has.
                let more = [columns.to_le_bytes(), rows.to_le_bytes()].concat();
                messages.push(message(spec.id, event::RESIZE, 0, &more));
            }
        }
        self.post(messages);
    }

    /// Has messages delivered as soon as there are buffers for them.
    fn post(&self, messages: Vec<Vec<u8>>) {
        {
            let mut state = locked(&self.state);
            for message in messages {
                if state.outbox.len() >= MOST_MESSAGES {
                    guest_error!("virtio-serial: the driver reads no control messages");
                    break;
                }
                state.outbox.push_back(message);
            }
        }
        self.deliver_messages();
    }

    /// Delivers messages while there are buffers.
    pub(super) fn deliver_messages(&self) {
        loop {
            let (head, len) = {
                let mut state = locked(&self.state);
                if state.outbox.is_empty() {
                    return;
                }
                let Some(chain) = self.queues.pop(CONTROL_IN) else { return };
                let message = state.outbox.pop_front().unwrap_or_default();
                (chain.head, chain.scatter(&**self.queues.dma(), &message))
            };
            self.queues.push(CONTROL_IN, head, len);
        }
    }
}
