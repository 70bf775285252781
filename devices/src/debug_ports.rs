//! Small ports for firmware, boot loaders and kernel developers: POST codes (0x80), the debug console, the exit
//! device of test kernels, and the PS/2 system control port A (0x92).

use crate::a20::A20;
use crate::bus::{AccessSizes, Device, RegisterBlock};
use crate::services::{CharBackend, PowerEvent, PowerSink};
use crate::state::{Inspector, StateError, StateValue, from_state, to_state};
use crate::wire::locked;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

/// Port 0x80: keeps the last power-on self test code. Linux also writes it to pass about a microsecond.
#[derive(Default)]
pub struct PostPort {
    code: AtomicU8,
}

impl PostPort {
    /// Code 0.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// The last code written.
    pub fn code(&self) -> u8 {
        self.code.load(Ordering::Relaxed)
    }
}

impl RegisterBlock for PostPort {
    fn read(&self, _offset: u64, _size: u8) -> u64 {
        self.code().into()
    }
    fn write(&self, _offset: u64, _size: u8, value: u64) {
        self.code.store(value as u8, Ordering::Relaxed);
    }
}

impl Device for PostPort {
    fn name(&self) -> &'static str {
        "post-port"
    }
    fn reset(&self) {
        let Self { code } = self;
        code.store(0, Ordering::Relaxed);
    }
    fn save(&self) -> StateValue {
        let Self { code } = self;
        to_state(&code.load(Ordering::Relaxed))
    }
    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        let Self { code } = self;
        code.store(from_state(self.name(), state)?, Ordering::Relaxed);
        Ok(())
    }
    fn inspect(&self, out: &mut Inspector) {
        let Self { code } = self;
        out.field("code", format_args!("{:#04x}", code.load(Ordering::Relaxed)));
    }
}

/// The debug console: bytes written go to the back end. A read gives 0xe9, by which guests find it.
pub struct DebugConsole {
    readback: u8,
    backend: Arc<dyn CharBackend>,
}

impl DebugConsole {
    /// What a read gives unless configured otherwise.
    pub const READBACK: u8 = 0xe9;

    /// A console that writes to `backend` and reads as `readback`.
    pub fn new(backend: Arc<dyn CharBackend>, readback: u8) -> Arc<Self> {
        Arc::new(Self { readback, backend })
    }
}

impl RegisterBlock for DebugConsole {
    fn read(&self, _offset: u64, _size: u8) -> u64 {
        self.readback.into()
    }
    fn write(&self, _offset: u64, _size: u8, value: u64) {
        self.backend.write(&[value as u8]);
    }
}

impl Device for DebugConsole {
    fn name(&self) -> &'static str {
        "isa-debugcon"
    }
    fn reset(&self) {}
    fn save(&self) -> StateValue {
        StateValue::Null
    }
    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        from_state(self.name(), state)
    }
    fn inspect(&self, out: &mut Inspector) {
        let Self { readback, backend: _ } = self;
        out.field("readback", format_args!("{readback:#04x}"));
    }
}

/// `isa-debug-exit`: a write ends the process with status `(value << 1) | 1`.
pub struct DebugExit {
    power: Arc<dyn PowerSink>,
}

impl DebugExit {
    /// An exit device that tells `power`. Register it at `iobase` with `iosize` ports (1 to 4).
    pub fn new(power: Arc<dyn PowerSink>) -> Arc<Self> {
        Arc::new(Self { power })
    }
}

impl RegisterBlock for DebugExit {
    fn read(&self, _offset: u64, _size: u8) -> u64 {
        0
    }
    fn write(&self, _offset: u64, _size: u8, value: u64) {
        let status = (value as u32) << 1 | 1;
        self.power.request(PowerEvent::Exit(status as i32));
    }
    fn sizes(&self) -> AccessSizes {
        AccessSizes::UP_TO_DWORD
    }
}

impl Device for DebugExit {
    fn name(&self) -> &'static str {
        "isa-debug-exit"
    }
    fn reset(&self) {}
    fn save(&self) -> StateValue {
        StateValue::Null
    }
    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        from_state(self.name(), state)
    }
    fn inspect(&self, _out: &mut Inspector) {
        let Self { power: _ } = self;
    }
}

/// What port 0x92 keeps besides the A20 gate, and the gate itself for saving.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Port92State {
    /// Bits 7:2 as last written: no function here.
    other: u8,
    /// Bit 0 as last written: a reset comes with its rising edge.
    fast_reset: bool,
    /// The gate; kept here only in saved states.
    a20: bool,
}

/// Port 0x92, system control port A: bit 1 is the A20 gate, a rising bit 0 resets the machine.
pub struct Port92 {
    a20: Arc<A20>,
    power: Arc<dyn PowerSink>,
    bits: Mutex<(u8, bool)>,
}

impl Port92 {
    /// The port; it also saves the A20 gate's state and opens the gate on reset.
    pub fn new(a20: Arc<A20>, power: Arc<dyn PowerSink>) -> Arc<Self> {
        Arc::new(Self { a20, power, bits: Mutex::new((0, false)) })
    }
}

impl RegisterBlock for Port92 {
    fn read(&self, _offset: u64, _size: u8) -> u64 {
        let (other, fast_reset) = *locked(&self.bits);
        u64::from(other) | u64::from(self.a20.enabled()) << 1 | u64::from(fast_reset)
    }

    fn write(&self, _offset: u64, _size: u8, value: u64) {
        let fast_reset = value & 1 != 0;
        let (_, was) = std::mem::replace(&mut *locked(&self.bits), (value as u8 & 0xfc, fast_reset));
        self.a20.set(value & 2 != 0);
        if fast_reset && !was {
            self.power.request(PowerEvent::Reset);
        }
    }
}

impl Device for Port92 {
    fn name(&self) -> &'static str {
        "port92"
    }

    fn reset(&self) {
        let Self { a20, power: _, bits } = self;
        *locked(bits) = (0, false);
        a20.set(true);
    }

    fn save(&self) -> StateValue {
        let Self { a20, power: _, bits } = self;
        let (other, fast_reset) = *locked(bits);
        to_state(&Port92State { other, fast_reset, a20: a20.enabled() })
    }

    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        let Self { a20, power: _, bits } = self;
        let Port92State { other, fast_reset, a20: enabled } = from_state(self.name(), state)?;
        *locked(bits) = (other & 0xfc, fast_reset);
        a20.set(enabled);
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        let Self { a20, power: _, bits } = self;
        let (other, fast_reset) = *locked(bits);
        out.field("a20", a20.enabled());
        out.field("fast_reset", fast_reset);
        out.field("other", format_args!("{other:#04x}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::{FakeChar, FakePower, FakeTime, fuzz, moves_to};

    #[test]
    fn post_port_keeps_the_code() {
        let port = PostPort::new();
        port.write(0, 1, 0x31);
        assert_eq!((port.read(0, 1), port.code()), (0x31, 0x31));
        moves_to(&*port, &*PostPort::new());
        port.reset();
        assert_eq!(port.save(), PostPort::new().save());
        fuzz(&*port, &[(&*port, 1)], &FakeTime::new(), 4);
    }

    #[test]
    fn debug_console_writes_and_answers() {
        let host = Arc::new(FakeChar::default());
        let console = DebugConsole::new(host.clone(), DebugConsole::READBACK);
        b"hi\n".iter().for_each(|b| console.write(0, 1, (*b).into()));
        assert_eq!(*locked(&host.output), b"hi\n");
        assert_eq!(console.read(0, 1), 0xe9);
        moves_to(&*console, &*DebugConsole::new(host, 0));
    }

    #[test]
    fn exit_status_is_odd() {
        let power = Arc::new(FakePower::default());
        let exit = DebugExit::new(power.clone());
        exit.write(0, 4, 0x10);
        exit.write(0, 1, 0);
        exit.write(0, 4, 0xffff_ffff);
        assert_eq!(power.events(), [PowerEvent::Exit(0x21), PowerEvent::Exit(1), PowerEvent::Exit(-1)]);
    }

    #[test]
    fn port_92_moves_a20_and_resets_on_the_edge() {
        let (a20, power) = (A20::new(), Arc::new(FakePower::default()));
        let port = Port92::new(a20.clone(), power.clone());
        assert_eq!(port.read(0, 1), 2);
        port.write(0, 1, 0x24);
        assert!(!a20.enabled());
        assert_eq!(port.read(0, 1), 0x24);
        moves_to(&*port, &*Port92::new(A20::new(), power.clone()));
        port.write(0, 1, 3);
        port.write(0, 1, 3);
        assert_eq!(power.events(), [PowerEvent::Reset]);
        port.write(0, 1, 0);
        port.reset();
        assert!(a20.enabled());
        assert_eq!(port.save(), Port92::new(A20::new(), power).save());
        fuzz(&*port, &[(&*port, 1)], &FakeTime::new(), 5);
    }
}
