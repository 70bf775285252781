//! Keyboard controller of the PC/AT and PS/2 (Intel 8042 with IBM's program; IBM PS/2 Hardware Interface Technical
//! Reference, "Keyboard and Auxiliary Device Controller"), with a keyboard and a mouse on it. Ports 0x60 and 0x64.

mod keyboard;
mod mouse;

pub use keyboard::Key;
pub use mouse::MouseMove;

use crate::a20::A20;
use crate::bus::{Device, RegisterBlock, Registers};
use crate::services::{IrqLine, PowerEvent, PowerSink};
use crate::state::{Inspector, StateError, StateValue, from_state, to_state};
use crate::unimp;
use crate::wire::{Wire, locked};
use crate::{trace, trace_event};
use keyboard::{Keyboard, SET_2_TO_1};
use mouse::Mouse;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex};

/// Status register, port 0x64.
mod status {
    pub const OUTPUT_FULL: u8 = 0x01;
    pub const SYSTEM: u8 = 0x04;
    pub const COMMAND: u8 = 0x08;
    pub const UNLOCKED: u8 = 0x10;
    pub const AUX_OUTPUT: u8 = 0x20;
}

/// Command byte, RAM byte 0.
mod command_byte {
    pub const KEYBOARD_IRQ: u8 = 0x01;
    pub const AUX_IRQ: u8 = 0x02;
    pub const SYSTEM: u8 = 0x04;
    pub const KEYBOARD_OFF: u8 = 0x10;
    pub const AUX_OFF: u8 = 0x20;
    pub const TRANSLATE: u8 = 0x40;
}

/// Output port.
mod output_port {
    /// Low resets the machine.
    pub const NO_RESET: u8 = 0x01;
    pub const A20: u8 = 0x02;
    pub const KEYBOARD_IRQ: u8 = 0x10;
    pub const AUX_IRQ: u8 = 0x20;
}

/// Where a byte in the output buffer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Source {
    Keyboard,
    Aux,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Controller {
    /// Internal RAM; byte 0 is the command byte.
    ram: [u8; 32],
    /// What a read of port 0x60 gives.
    output: u8,
    /// The output buffer is full, by whom.
    full: Option<Source>,
    /// The controller's own answer, waiting for the output buffer.
    answer: Option<(u8, Source)>,
    /// The controller command whose parameter comes next at port 0x60.
    command: Option<u8>,
    last_write_was_command: bool,
    /// The keyboard's break prefix came: the next translated code is a release.
    release: bool,
    keyboard: Keyboard,
    mouse: Mouse,
}

/// What an access asks of the world outside, to be done without the lock.
#[derive(Clone, Copy, Debug, Default)]
struct Effects {
    reset: bool,
    a20: Option<bool>,
    /// A byte was taken out of the output buffer: the next one makes a new edge.
    taken: bool,
}

impl Controller {
    fn power_on() -> Self {
        let mut ram = [0; 32];
        // As after firmware's self test, so that systems booted without firmware find a working keyboard.
        ram[0] = command_byte::KEYBOARD_IRQ | command_byte::AUX_IRQ | command_byte::SYSTEM | command_byte::TRANSLATE;
        Self {
            ram,
            output: 0,
            full: None,
            answer: None,
            command: None,
            last_write_was_command: false,
            release: false,
            keyboard: Keyboard::new(),
            mouse: Mouse::new(),
        }
    }

    fn has(&self, bit: u8) -> bool {
        self.ram[0] & bit != 0
    }

    fn status(&self) -> u8 {
        let full = match self.full {
            None => 0,
            Some(Source::Keyboard) => status::OUTPUT_FULL,
            Some(Source::Aux) => status::OUTPUT_FULL | status::AUX_OUTPUT,
        };
        let system = if self.has(command_byte::SYSTEM) { status::SYSTEM } else { 0 };
        let command = if self.last_write_was_command { status::COMMAND } else { 0 };
        full | system | command | status::UNLOCKED
    }

    fn keyboard_irq(&self) -> bool {
        self.full == Some(Source::Keyboard) && self.has(command_byte::KEYBOARD_IRQ)
    }

    fn aux_irq(&self) -> bool {
        self.full == Some(Source::Aux) && self.has(command_byte::AUX_IRQ)
    }

    /// Fills the output buffer, if it is free: the controller's answers first, then the keyboard, then the mouse.
    fn fill(&mut self) {
        while self.full.is_none() {
            if let Some((byte, source)) = self.answer.take() {
                (self.output, self.full) = (byte, Some(source));
            } else if !self.has(command_byte::KEYBOARD_OFF) && self.keyboard.has_output() {
                let Some(byte) = self.keyboard.take() else { return };
                if let Some(byte) = self.translated(byte) {
                    (self.output, self.full) = (byte, Some(Source::Keyboard));
                }
            } else if !self.has(command_byte::AUX_OFF) && self.mouse.has_output() {
                let Some(byte) = self.mouse.take() else { return };
                (self.output, self.full) = (byte, Some(Source::Aux));
            } else {
                return;
            }
        }
    }

    /// A keyboard byte as the host sees it; the break prefix disappears into bit 7 of the next code.
    fn translated(&mut self, byte: u8) -> Option<u8> {
        if !self.has(command_byte::TRANSLATE) {
            return Some(byte);
        }
        if byte == 0xf0 {
            self.release = true;
            return None;
        }
        let code = match byte {
            0x83 => 0x41,
            0x84 => 0x54,
            _ => SET_2_TO_1.get(usize::from(byte)).copied().unwrap_or(byte),
        };
        let release = std::mem::take(&mut self.release);
        Some(if release { code | 0x80 } else { code })
    }

    fn read_data(&mut self, effects: &mut Effects) -> u8 {
        effects.taken = self.full.take().is_some();
        self.output
    }

    fn write_data(&mut self, byte: u8, effects: &mut Effects) {
        self.last_write_was_command = false;
        match self.command.take() {
            // To the keyboard. Sending to it switches its clock on again.
            None => {
                self.ram[0] &= !command_byte::KEYBOARD_OFF;
                self.keyboard.command(byte);
            }
            Some(command @ 0x60..=0x7f) => self.ram[usize::from(command & 0x1f)] = byte,
            Some(0xd1) => self.write_output_port(byte, effects),
            Some(0xd2) => self.answer = Some((byte, Source::Keyboard)),
            Some(0xd3) => self.answer = Some((byte, Source::Aux)),
            Some(0xd4) => {
                self.ram[0] &= !command_byte::AUX_OFF;
                self.mouse.command(byte);
            }
            Some(_) => {}
        }
    }

    fn write_output_port(&mut self, byte: u8, effects: &mut Effects) {
        effects.a20 = Some(byte & output_port::A20 != 0);
        effects.reset = byte & output_port::NO_RESET == 0;
    }

    fn output_port(&self, a20: bool) -> u8 {
        output_port::NO_RESET
            | if a20 { output_port::A20 } else { 0 }
            | if self.keyboard_irq() { output_port::KEYBOARD_IRQ } else { 0 }
            | if self.aux_irq() { output_port::AUX_IRQ } else { 0 }
            // Clock and data of the keyboard idle high.
            | 0xc0
    }

    fn write_command(&mut self, byte: u8, a20: bool, effects: &mut Effects) {
        self.last_write_was_command = true;
        self.command = None;
        let answer = match byte {
            0x20..=0x3f => self.ram[usize::from(byte & 0x1f)],
            0x60..=0x7f | 0xd1..=0xd4 => return self.command = Some(byte),
            0xa7 => return self.ram[0] |= command_byte::AUX_OFF,
            0xa8 => return self.ram[0] &= !command_byte::AUX_OFF,
            // Aux and keyboard interface tests: nothing stuck.
            0xa9 | 0xab => 0x00,
            0xaa => {
                self.ram[0] |= command_byte::SYSTEM;
                0x55
            }
            0xad => return self.ram[0] |= command_byte::KEYBOARD_OFF,
            0xae => return self.ram[0] &= !command_byte::KEYBOARD_OFF,
            // Input port: keyboard not locked, colour display, as jumpers once said.
            0xc0 => 0x80,
            0xd0 => self.output_port(a20),
            // A20 commands that clones of the controller have.
            0xdd => return effects.a20 = Some(false),
            0xdf => return effects.a20 = Some(true),
            // Test inputs: both clocks high.
            0xe0 => 0x03,
            // Pulses those low four output lines whose bit is 0; line 0 is the processor's reset.
            0xf0..=0xff => return effects.reset = byte & 1 == 0,
            _ => return unimp!("keyboard controller command {byte:#04x}"),
        };
        self.answer = Some((answer, Source::Keyboard));
    }

    fn inspect(&self, out: &mut Inspector) {
        let Self { ram, output, full, answer, command, last_write_was_command: _, release: _, keyboard, mouse } = self;
        out.field("status", format_args!("{:#04x}", self.status()));
        out.field("command_byte", format_args!("{:#04x}", ram[0]));
        out.field("output", format_args!("{output:#04x}"));
        out.field("full", format_args!("{full:?}"));
        out.field("answer", format_args!("{answer:02x?}"));
        out.field("command", format_args!("{command:02x?}"));
        out.group("keyboard", |out| keyboard.inspect(out));
        out.group("mouse", |out| mouse.inspect(out));
    }
}

/// The controller with its keyboard and mouse.
///
/// Locks: `controller` is a leaf; interrupts, A20 gate and power sink are called after it is dropped.
pub struct I8042 {
    keyboard_irq: Wire,
    aux_irq: Wire,
    a20: Arc<A20>,
    power: Arc<dyn PowerSink>,
    controller: Mutex<Controller>,
}

impl I8042 {
    /// A controller with interrupts `keyboard_irq` (ISA IRQ 1) and `aux_irq` (ISA IRQ 12).
    pub fn new(keyboard_irq: IrqLine, aux_irq: IrqLine, a20: Arc<A20>, power: Arc<dyn PowerSink>) -> Arc<Self> {
        Arc::new(Self {
            keyboard_irq: Wire::new(keyboard_irq),
            aux_irq: Wire::new(aux_irq),
            a20,
            power,
            controller: Mutex::new(Controller::power_on()),
        })
    }

    /// Port 0x60 (one byte).
    pub fn data_port(self: &Arc<Self>) -> Registers {
        Arc::new(DataPort(self.clone()))
    }

    /// Port 0x64 (one byte).
    pub fn command_port(self: &Arc<Self>) -> Registers {
        Arc::new(CommandPort(self.clone()))
    }

    /// The user presses or releases a key.
    pub fn key(&self, key: Key, pressed: bool) {
        trace_event!(trace::KEY, "key {:#x} {}", key.0, if pressed { "down" } else { "up" });
        self.with(|controller, _| controller.keyboard.key(key, pressed));
    }

    /// The user moves the mouse or its buttons.
    pub fn mouse(&self, movement: MouseMove) {
        trace_event!(trace::MOUSE, "{movement:?}");
        self.with(|controller, _| controller.mouse.moved(movement));
    }

    /// The keyboard's lights: bits 0 to 2 are scroll, num and caps lock.
    pub fn leds(&self) -> u8 {
        locked(&self.controller).keyboard.leds()
    }

    fn with<R>(&self, change: impl FnOnce(&mut Controller, &mut Effects) -> R) -> R {
        let mut effects = Effects::default();
        let mut controller = locked(&self.controller);
        let result = change(&mut controller, &mut effects);
        controller.fill();
        self.keyboard_irq.want(controller.keyboard_irq());
        self.aux_irq.want(controller.aux_irq());
        drop(controller);
        for wire in [&self.keyboard_irq, &self.aux_irq] {
            if effects.taken { wire.flush_with_edge() } else { wire.flush() }
        }
        if let Some(enabled) = effects.a20 {
            self.a20.set(enabled);
        }
        if effects.reset {
            self.power.request(PowerEvent::Reset);
        }
        result
    }
}

struct DataPort(Arc<I8042>);

impl RegisterBlock for DataPort {
    fn read(&self, _offset: u64, _size: u8) -> u64 {
        self.0.with(Controller::read_data).into()
    }
    fn write(&self, _offset: u64, _size: u8, value: u64) {
        self.0.with(|controller, effects| controller.write_data(value as u8, effects));
    }
}

struct CommandPort(Arc<I8042>);

impl RegisterBlock for CommandPort {
    fn read(&self, _offset: u64, _size: u8) -> u64 {
        locked(&self.0.controller).status().into()
    }
    fn write(&self, _offset: u64, _size: u8, value: u64) {
        let a20 = self.0.a20.enabled();
        self.0.with(|controller, effects| controller.write_command(value as u8, a20, effects));
    }
}

impl Device for I8042 {
    fn name(&self) -> &'static str {
        "i8042"
    }

    /// The A20 gate resets with port 0x92, which saves it too.
    fn reset(&self) {
        let Self { keyboard_irq: _, aux_irq: _, a20: _, power: _, controller: _ } = self;
        self.with(|controller, _| *controller = Controller::power_on());
    }

    fn save(&self) -> StateValue {
        to_state(&*locked(&self.controller))
    }

    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        let Self { keyboard_irq, aux_irq, a20: _, power: _, controller } = self;
        let new: Controller = from_state(self.name(), state)?;
        if !new.keyboard.is_sane() || !new.mouse.is_sane() {
            let reason = "keyboard or mouse queue too long, or no such scan code set".into();
            return Err(StateError::Malformed { device: self.name(), reason });
        }
        let mut controller = locked(controller);
        keyboard_irq.adopt(new.keyboard_irq());
        aux_irq.adopt(new.aux_irq());
        *controller = new;
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        locked(&self.controller).inspect(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::{FakeIrq, FakePower, FakeTime, fuzz, moves_to};

    struct Bench {
        irq: Arc<FakeIrq>,
        a20: Arc<A20>,
        power: Arc<FakePower>,
        kbc: Arc<I8042>,
        data: Registers,
        command: Registers,
    }

    impl Bench {
        fn new() -> Self {
            let (irq, a20, power) = (FakeIrq::new(), A20::new(), Arc::new(FakePower::default()));
            let kbc = I8042::new(irq.line(1), irq.line(12), a20.clone(), power.clone());
            Self { data: kbc.data_port(), command: kbc.command_port(), irq, a20, power, kbc }
        }
        fn cmd(&self, byte: u64) -> &Self {
            self.command.write(0, 1, byte);
            self
        }
        fn put(&self, byte: u64) -> &Self {
            self.data.write(0, 1, byte);
            self
        }
        fn status(&self) -> u64 {
            self.command.read(0, 1)
        }
        /// All bytes that wait, with whether each is the mouse's.
        fn drain(&self) -> Vec<(u64, bool)> {
            let next = || {
                let status = self.status();
                (status & 1 != 0).then(|| (self.data.read(0, 1), status & 0x20 != 0))
            };
            std::iter::from_fn(next).collect()
        }
        fn bytes(&self) -> Vec<u64> {
            self.drain().into_iter().map(|(byte, _)| byte).collect()
        }
    }

    #[test]
    fn self_tests_and_command_byte() {
        let b = Bench::new();
        assert_eq!(b.cmd(0xaa).bytes(), [0x55]);
        assert_eq!(b.cmd(0xab).bytes(), [0]);
        assert_eq!(b.cmd(0xa9).bytes(), [0]);
        assert_eq!(b.cmd(0x20).bytes(), [0x47]);
        b.cmd(0x60).put(0x74);
        assert_eq!(b.cmd(0x20).bytes(), [0x74]);
        assert_eq!(b.status() & 0x1c, 0x1c);
        b.cmd(0x65).put(0x99);
        assert_eq!(b.cmd(0x25).bytes(), [0x99]);
    }

    #[test]
    fn translated_keys_interrupt_byte_by_byte() {
        let b = Bench::new();
        b.kbc.key(Key(0x1e), true);
        assert!(b.irq.level(1));
        b.kbc.key(Key(0x1e), false);
        b.kbc.key(Key(0xe048), false);
        assert_eq!(b.bytes(), [0x1e, 0x9e, 0xe0, 0xc8]);
        assert_eq!(b.irq.rises(1), 4, "an edge for each byte");
        assert!(!b.irq.level(1));
        b.cmd(0x60).put(0x05);
        b.kbc.key(Key(0x1e), false);
        assert_eq!(b.bytes(), [0xf0, 0x1c]);
    }

    #[test]
    fn keyboard_commands_as_linux_and_firmware_send_them() {
        let b = Bench::new();
        assert_eq!(b.put(0xff).bytes(), [0xfa, 0xaa]);
        assert_eq!(b.put(0xf2).bytes(), [0xfa, 0xab, 0x41], "the id is translated too");
        assert_eq!(b.put(0xed).put(2).bytes(), [0xfa, 0xfa]);
        assert_eq!(b.kbc.leds(), 2);
    }

    #[test]
    fn disabled_ports_wait() {
        let b = Bench::new();
        b.cmd(0xad);
        b.kbc.key(Key(0x02), true);
        assert_eq!(b.status() & 1, 0);
        b.cmd(0xae);
        assert_eq!(b.bytes(), [0x02]);
        b.cmd(0xad).put(0xee);
        assert_eq!(b.bytes(), [0xee], "writing to the keyboard enables it");
    }

    #[test]
    fn mouse_answers_on_the_aux_port() {
        let b = Bench::new();
        b.cmd(0xd4).put(0xf2);
        assert!(b.irq.level(12));
        assert!(!b.irq.level(1));
        assert_eq!(b.drain(), [(0xfa, true), (0, true)]);
        b.cmd(0xd4).put(0xf4);
        b.drain();
        b.cmd(0xa7);
        b.kbc.mouse(MouseMove { dx: 1, ..MouseMove::default() });
        assert_eq!(b.status() & 1, 0);
        b.cmd(0xa8);
        assert_eq!(b.drain(), [(0x08, true), (1, true), (0, true)]);
        // Linux's AUX loop test.
        b.cmd(0xd3).put(0x5a);
        assert_eq!(b.drain(), [(0x5a, true)]);
        b.cmd(0xd2).put(0xa5);
        assert_eq!(b.drain(), [(0xa5, false)]);
    }

    #[test]
    fn controller_answers_come_before_devices() {
        let b = Bench::new();
        b.kbc.key(Key(0x02), true);
        b.kbc.key(Key(0x03), true);
        b.cmd(0xaa);
        assert_eq!(b.bytes(), [0x02, 0x55, 0x03]);
    }

    #[test]
    fn resets_and_a20() {
        let b = Bench::new();
        b.cmd(0xff);
        b.cmd(0xd1).put(0xdd);
        assert!(!b.a20.enabled());
        assert_eq!(b.cmd(0xd0).bytes()[0] & 3, 1);
        b.cmd(0xdf);
        assert!(b.a20.enabled());
        assert!(b.power.events().is_empty());
        b.cmd(0xfe);
        b.cmd(0xd1).put(0x02);
        assert_eq!(b.power.events(), [PowerEvent::Reset; 2]);
    }

    #[test]
    fn reset_equals_new_and_state_moves() {
        let b = Bench::new();
        b.cmd(0x60).put(0x03);
        b.kbc.key(Key::PAUSE, true);
        b.cmd(0xd4);
        let other = Bench::new();
        moves_to(&*b.kbc, &*other.kbc);
        other.put(0xeb);
        assert_eq!(other.bytes()[..3], [0xe1, 0x14, 0x77]);
        b.kbc.reset();
        assert_eq!(b.kbc.save(), Bench::new().kbc.save());
        assert!(!b.irq.level(1));
    }

    #[test]
    fn random_accesses() {
        let b = Bench::new();
        fuzz(&*b.kbc, &[(&*b.data, 1), (&*b.command, 1)], &FakeTime::new(), 8);
    }
}
