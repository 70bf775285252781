//! A PS/2 mouse, with the wheel and five-button extensions (IBM PS/2 technical reference, "Mouse"; Microsoft's
//! IntelliMouse knocking sequences).

use crate::state::Inspector;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Bytes kept for a host that does not read; movement beyond that accumulates.
const QUEUE: usize = 16;
const QUEUE_WITH_REPLIES: usize = QUEUE + 8;

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;

/// Movement and buttons since the last report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MouseMove {
    /// To the right.
    pub dx: i32,
    /// Upwards.
    pub dy: i32,
    /// Wheel, towards the user.
    pub dz: i32,
    /// Bits 0 to 4: left, right, middle, side, extra.
    pub buttons: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mouse {
    queue: VecDeque<u8>,
    command: Option<u8>,
    reporting: bool,
    /// Reports only on request.
    remote: bool,
    /// Echoes all bytes.
    wrap: bool,
    scaling_2_1: bool,
    resolution: u8,
    rate: u8,
    /// The last three sample rates: the knock for extensions.
    rates: [u8; 3],
    /// 0, 3 (wheel) or 4 (wheel and five buttons).
    id: u8,
    buttons: u8,
    reported_buttons: u8,
    moved: [i32; 3],
    last_sent: u8,
}

impl Mouse {
    pub(super) fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            command: None,
            reporting: false,
            remote: false,
            wrap: false,
            scaling_2_1: false,
            resolution: 2,
            rate: 100,
            rates: [0; 3],
            id: 0,
            buttons: 0,
            reported_buttons: 0,
            moved: [0; 3],
            last_sent: 0,
        }
    }

    pub(super) fn is_sane(&self) -> bool {
        self.queue.len() <= QUEUE_WITH_REPLIES
    }

    pub(super) fn has_output(&self) -> bool {
        !self.queue.is_empty()
    }

    pub(super) fn take(&mut self) -> Option<u8> {
        let byte = self.queue.pop_front()?;
        self.last_sent = byte;
        self.report_movement();
        Some(byte)
    }

    fn reply(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if self.queue.len() < QUEUE_WITH_REPLIES {
                self.queue.push_back(*byte);
            }
        }
    }

    fn defaults(&mut self) {
        let buttons = self.buttons;
        let (id, last_sent) = (self.id, self.last_sent);
        *self = Self { buttons, reported_buttons: buttons, id, last_sent, ..Self::new() };
    }

    /// A byte from the host.
    pub(super) fn command(&mut self, byte: u8) {
        if self.wrap && !matches!(byte, 0xec | 0xff) {
            return self.reply(&[byte]);
        }
        if let Some(command) = self.command.take() {
            return self.parameter(command, byte);
        }
        match byte {
            0xe6 | 0xe7 => self.scaling_2_1 = byte == 0xe7,
            0xe8 | 0xf3 => self.command = Some(byte),
            0xe9 => {
                let flags =
                    u8::from(self.remote) << 6 | u8::from(self.reporting) << 5 | u8::from(self.scaling_2_1) << 4;
                // The status has the left button in bit 2, the right one in bit 0.
                let buttons = (self.buttons & 1) << 2 | (self.buttons & 4) >> 1 | (self.buttons & 2) >> 1;
                return self.reply(&[ACK, flags | buttons, self.resolution, self.rate]);
            }
            0xea => self.remote = false,
            0xeb => {
                self.reply(&[ACK]);
                let packet = self.packet();
                return self.reply(&packet);
            }
            0xec => self.wrap = false,
            0xee => self.wrap = true,
            0xf0 => self.remote = true,
            0xf2 => return self.reply(&[ACK, self.id]),
            0xf4 => self.reporting = true,
            0xf5 => self.reporting = false,
            0xf6 => self.defaults(),
            0xfe => {
                self.queue.push_front(self.last_sent);
                return self.queue.truncate(QUEUE_WITH_REPLIES);
            }
            0xff => {
                self.defaults();
                self.id = 0;
                return self.reply(&[ACK, 0xaa, 0x00]);
            }
            _ => return self.reply(&[RESEND]),
        }
        self.reply(&[ACK]);
    }

    fn parameter(&mut self, command: u8, byte: u8) {
        if command == 0xe8 {
            self.resolution = byte & 3;
        } else {
            self.rate = byte;
            self.rates = [self.rates[1], self.rates[2], byte];
            match self.rates {
                [200, 100, 80] => self.id = 3,
                [200, 200, 80] if self.id == 3 => self.id = 4,
                _ => {}
            }
        }
        self.reply(&[ACK]);
    }

    /// The user moves the mouse or its buttons.
    pub(super) fn moved(&mut self, movement: MouseMove) {
        let MouseMove { dx, dy, dz, buttons } = movement;
        for (sum, step) in self.moved.iter_mut().zip([dx, dy, dz]) {
            *sum = sum.saturating_add(step);
        }
        self.buttons = buttons & 0x1f;
        self.report_movement();
    }

    fn report_movement(&mut self) {
        if !self.reporting || self.remote || self.wrap {
            self.moved = [0; 3];
            return;
        }
        while (self.moved != [0; 3] || self.buttons != self.reported_buttons) && self.queue.len() + 4 <= QUEUE {
            let packet = self.packet();
            self.queue.extend(packet);
            // Without a wheel its movement goes nowhere.
            if self.id == 0 {
                self.moved[2] = 0;
            }
        }
    }

    /// One report of at most 255 counts in each direction; the rest stays for the next.
    fn packet(&mut self) -> Vec<u8> {
        let [dx, dy, dz] = self.moved;
        let (x, y) = (dx.clamp(-255, 255), dy.clamp(-255, 255));
        let z = if self.id == 0 { 0 } else { dz.clamp(-8, 7) };
        self.moved = [dx.wrapping_sub(x), dy.wrapping_sub(y), dz.wrapping_sub(z)];
        self.reported_buttons = self.buttons;
        let signs = u8::from(y < 0) << 5 | u8::from(x < 0) << 4;
        let mut packet = vec![signs | 0x08 | self.buttons & 7, x as u8, y as u8];
        match self.id {
            3 => packet.push(z as u8),
            4 => packet.push(z as u8 & 0x0f | (self.buttons & 0x18) << 1),
            _ => {}
        }
        packet
    }

    pub(super) fn inspect(&self, out: &mut Inspector) {
        let Self {
            queue,
            command,
            reporting,
            remote,
            wrap,
            scaling_2_1,
            resolution,
            rate,
            rates: _,
            id,
            buttons,
            reported_buttons: _,
            moved,
            last_sent: _,
        } = self;
        out.field("queue", format_args!("{queue:02x?}"));
        out.field("command", format_args!("{command:02x?}"));
        for (key, value) in [("reporting", reporting), ("remote", remote), ("wrap", wrap), ("scaling_2_1", scaling_2_1)]
        {
            out.field(key, value);
        }
        for (key, value) in [("resolution", resolution), ("rate", rate), ("id", id), ("buttons", buttons)] {
            out.field(key, value);
        }
        out.field("moved", format_args!("{moved:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(mouse: &mut Mouse, bytes: &[u8]) -> Vec<u8> {
        bytes.iter().for_each(|b| mouse.command(*b));
        std::iter::from_fn(|| mouse.take()).collect()
    }

    #[test]
    fn commands_are_answered() {
        let mut m = Mouse::new();
        assert_eq!(ask(&mut m, &[0xff]), [0xfa, 0xaa, 0]);
        assert_eq!(ask(&mut m, &[0xf2]), [0xfa, 0]);
        assert_eq!(ask(&mut m, &[0xe8, 3, 0xe7, 0xf4]), [0xfa; 4]);
        assert_eq!(ask(&mut m, &[0xe9]), [0xfa, 0x30, 3, 100]);
        assert_eq!(ask(&mut m, &[0xee, 0x55, 0xf2, 0xec]), [0xfa, 0x55, 0xf2, 0xfa]);
        assert_eq!(ask(&mut m, &[0x01]), [0xfe]);
        assert_eq!(ask(&mut m, &[0xf6, 0xe9]), [0xfa, 0xfa, 0, 2, 100]);
    }

    #[test]
    fn wheel_and_five_buttons_after_the_knock() {
        let mut m = Mouse::new();
        ask(&mut m, &[0xf3, 200, 0xf3, 100, 0xf3, 80]);
        assert_eq!(ask(&mut m, &[0xf2]), [0xfa, 3]);
        ask(&mut m, &[0xf3, 200, 0xf3, 200, 0xf3, 80, 0xf4]);
        assert_eq!(ask(&mut m, &[0xf2]), [0xfa, 4]);
        m.moved(MouseMove { dx: 3, dy: -2, dz: -1, buttons: 0x11 });
        assert_eq!(ask(&mut m, &[]), [0x29, 3, 0xfe, 0x2f]);
    }

    #[test]
    fn movement_is_reported_in_pieces_and_on_request() {
        let mut m = Mouse::new();
        m.moved(MouseMove { dx: 5, ..MouseMove::default() });
        assert!(!m.has_output(), "off until told");
        ask(&mut m, &[0xf4]);
        m.moved(MouseMove { dx: -300, dy: 1, ..MouseMove::default() });
        assert_eq!(ask(&mut m, &[]), [0x18, 1, 1, 0x18, 0xd3, 0]);
        ask(&mut m, &[0xf0]);
        m.moved(MouseMove { buttons: 2, ..MouseMove::default() });
        assert_eq!(ask(&mut m, &[0xeb]), [0xfa, 0x0a, 0, 0]);
    }

    #[test]
    fn a_flood_of_movement_is_summed_up() {
        let mut m = Mouse::new();
        ask(&mut m, &[0xf4]);
        for _ in 0..1000 {
            m.moved(MouseMove { dx: 1, ..MouseMove::default() });
        }
        let bytes = ask(&mut m, &[]);
        let total: u32 = bytes.chunks(3).map(|p| u32::from(p[1])).sum();
        assert_eq!(total, 1000);
    }
}
