//! A terminal shared by a serial port and the monitor: one escape character (Ctrl-A) and a letter switch between them.

use super::input::{InputSink, Waker};
use super::outlet::Outlet;
use super::plain::Attached;
use brolga_devices::services::{CharBackend, CharFrontend, Line};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

/// Input kept for a device that does not take it; more stays unread.
const KEPT: usize = 64 << 10;

/// A user of the terminal that wants to know when it gets the keyboard.
pub trait FocusListener: Send + Sync {
    /// Input goes to this user from now on.
    fn focused(&self);
    /// Somebody new has connected, who has seen nothing yet.
    fn opened(&self);
}

/// One user of the terminal.
struct Slot {
    device: Attached,
    listener: Option<Weak<dyn FocusListener>>,
    kept: VecDeque<u8>,
}

/// The shared terminal. `state` is a leaf lock: devices and listeners are called without it.
pub struct Mux {
    output: Arc<Outlet>,
    waker: Waker,
    escape: u8,
    /// Ends the process (Ctrl-A x).
    quit: Mutex<Option<Arc<dyn Fn() + Send + Sync>>>,
    state: Mutex<State>,
}

struct State {
    slots: Vec<Arc<Mutex<Slot>>>,
    focus: usize,
    /// The escape character came; the next byte is a command.
    escaped: bool,
    stamps: Stamps,
}

/// Ctrl-A t: the time at the beginning of each line.
#[derive(Default)]
struct Stamps {
    /// When time stamps were switched on: they count from there.
    since: Option<Instant>,
    /// The last byte written ended a line.
    line_start: bool,
}

/// What a byte of input does.
#[derive(Debug, PartialEq, Eq)]
enum Action {
    Nothing,
    Pass(u8),
    Help,
    Quit,
    Break,
    Switch,
    ToggleStamps,
}

fn action(state: &mut State, escape: u8, byte: u8) -> Action {
    if !std::mem::take(&mut state.escaped) {
        if byte == escape {
            state.escaped = true;
            return Action::Nothing;
        }
        return Action::Pass(byte);
    }
    match byte {
        b if b == escape => Action::Pass(escape),
        b'a' => Action::Pass(escape),
        b'h' | b'?' => Action::Help,
        b'x' => Action::Quit,
        b'b' => Action::Break,
        b'c' => Action::Switch,
        b't' => Action::ToggleStamps,
        _ => Action::Nothing,
    }
}

impl Mux {
    /// A shared terminal without users.
    pub fn new(output: Arc<Outlet>, waker: Waker, escape: u8) -> Arc<Self> {
        let state = State { slots: Vec::new(), focus: 0, escaped: false, stamps: Stamps::default() };
        let this = Arc::new(Self { output, waker, escape, quit: Mutex::default(), state: Mutex::new(state) });
        let weak = Arc::downgrade(&this);
        this.output.listen(Arc::new(move || {
            if let Some(mux) = weak.upgrade() {
                mux.devices().iter().for_each(|device| device.output_ready());
            }
        }));
        this
    }

    /// Adds a user. The first one has the keyboard.
    pub fn add(self: &Arc<Self>) -> MuxPort {
        let slot = Arc::new(Mutex::new(Slot { device: Attached::default(), listener: None, kept: VecDeque::new() }));
        self.lock().slots.push(slot.clone());
        MuxPort { mux: self.clone(), slot }
    }

    /// What Ctrl-A x does.
    pub fn on_quit(&self, quit: Arc<dyn Fn() + Send + Sync>) {
        *self.quit.lock().unwrap_or_else(PoisonError::into_inner) = Some(quit);
    }

    /// Somebody at the other end sends a break to the user with the keyboard.
    pub fn send_break(&self) {
        self.perform(Action::Break);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn focused(&self) -> Option<Arc<Mutex<Slot>>> {
        let state = self.lock();
        state.slots.get(state.focus).cloned()
    }

    fn put(&self, bytes: &[u8]) {
        let mut state = self.lock();
        let Some(since) = state.stamps.since else {
            drop(state);
            return self.output.write(bytes);
        };
        let mut out = Vec::with_capacity(bytes.len() + 16);
        for &byte in bytes {
            if std::mem::replace(&mut state.stamps.line_start, byte == b'\n') {
                let ms = since.elapsed().as_millis();
                let (h, m, s) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
                out.extend_from_slice(format!("[{h:02}:{m:02}:{s:02}.{:03}] ", ms % 1000).as_bytes());
            }
            out.push(byte);
        }
        drop(state);
        self.output.write(&out);
    }

    fn perform(&self, action: Action) {
        match action {
            Action::Nothing => {}
            Action::Pass(byte) => {
                if let Some(slot) = self.focused() {
                    lock_slot(&slot).kept.push_back(byte);
                }
            }
            Action::Help => self.output.write(help(self.escape).as_bytes()),
            Action::Quit => {
                self.output.write(b"\r\nBrolga: terminated\r\n");
                let quit = self.quit.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if let Some(quit) = quit {
                    quit();
                }
            }
            Action::Break => {
                let device = self.focused().and_then(|slot| lock_slot(&slot).device.get());
                if let Some(device) = device {
                    device.receive_break();
                }
            }
            Action::Switch => self.switch(),
            Action::ToggleStamps => {
                let mut state = self.lock();
                state.stamps = match state.stamps.since {
                    Some(_) => Stamps::default(),
                    None => Stamps { since: Some(Instant::now()), line_start: false },
                };
            }
        }
    }

    fn switch(&self) {
        let slot = {
            let mut state = self.lock();
            if state.slots.is_empty() {
                return;
            }
            state.focus = (state.focus + 1) % state.slots.len();
            state.slots[state.focus].clone()
        };
        let listener = lock_slot(&slot).listener.as_ref().and_then(Weak::upgrade);
        if let Some(listener) = listener {
            listener.focused();
        }
    }

    /// Somebody new has connected: the user with the keyboard hears of it.
    pub fn opened(&self) {
        let listener = self.focused().and_then(|slot| lock_slot(&slot).listener.as_ref().and_then(Weak::upgrade));
        if let Some(listener) = listener {
            listener.opened();
        }
    }

    /// The devices of all users.
    fn devices(&self) -> Vec<Arc<dyn CharFrontend>> {
        let slots = self.lock().slots.clone();
        slots.iter().filter_map(|slot| lock_slot(slot).device.get()).collect()
    }

    /// Somebody came or left, or the terminal's size changed.
    pub fn host_changed(&self) {
        self.devices().iter().for_each(|device| device.host_changed());
    }

    /// Passes kept input on, to whichever users take it.
    fn deliver(&self) {
        let slots = self.lock().slots.clone();
        for slot in slots {
            let device = lock_slot(&slot).device.get();
            let Some(device) = device else { continue };
            loop {
                let room = device.can_receive();
                let bytes: Vec<u8> = {
                    let mut slot = lock_slot(&slot);
                    let n = room.min(slot.kept.len());
                    slot.kept.drain(..n).collect()
                };
                if bytes.is_empty() {
                    break;
                }
                device.receive(&bytes);
            }
        }
    }
}

fn lock_slot(slot: &Mutex<Slot>) -> MutexGuard<'_, Slot> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The text of Ctrl-A h.
fn help(escape: u8) -> String {
    let key = if (1..=26).contains(&escape) {
        format!("C-{}", (escape + b'a' - 1) as char)
    } else {
        format!("\\x{escape:02x}")
    };
    let lines = [
        ("h", "this help"),
        ("x", "end the emulator"),
        ("b", "send a break (magic SysRq)"),
        ("t", "time stamps on or off"),
        ("c", "switch between console and monitor"),
        ("a", "send the escape character itself"),
    ];
    let mut text = String::from("\r\n");
    for (letter, what) in lines {
        text += &format!("{key} {letter}    {what}\r\n");
    }
    text + &format!("{key} {key}  the same as {key} a\r\n")
}

impl InputSink for Mux {
    fn pump(&self, input: &mut Vec<u8>) {
        let mut taken = 0;
        self.deliver();
        for &byte in input.iter() {
            if self.focused().is_some_and(|slot| lock_slot(&slot).kept.len() >= KEPT) {
                break;
            }
            let action = action(&mut self.lock(), self.escape, byte);
            taken += 1;
            // What was typed before a command reaches its user before the command acts.
            if !matches!(action, Action::Nothing | Action::Pass(_)) {
                self.deliver();
            }
            self.perform(action);
        }
        input.drain(..taken);
        self.deliver();
    }
}

/// One user's end of the shared terminal.
pub struct MuxPort {
    mux: Arc<Mux>,
    slot: Arc<Mutex<Slot>>,
}

impl MuxPort {
    /// Makes `device` the receiver of this user's input.
    pub fn connect(&self, device: Weak<dyn CharFrontend>) {
        lock_slot(&self.slot).device.set(device);
        self.mux.waker.wake();
    }

    /// Tells `listener` when this user gets the keyboard.
    pub fn listen(&self, listener: Weak<dyn FocusListener>) {
        lock_slot(&self.slot).listener = Some(listener);
    }
}

impl CharBackend for MuxPort {
    fn write(&self, bytes: &[u8]) {
        self.mux.put(bytes);
    }

    fn input_ready(&self) {
        self.mux.waker.wake();
    }

    fn room(&self) -> usize {
        self.mux.output.room()
    }

    fn connected(&self) -> bool {
        self.mux.output.connected()
    }

    fn size(&self) -> Option<(u16, u16)> {
        self.mux.output.size()
    }

    fn set_line(&self, line: Line) {
        self.mux.output.set_line(line);
    }
}

#[cfg(test)]
mod tests {
    use super::super::output::Output;
    use super::*;
    use std::fs::File;
    use std::io::Read;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    #[derive(Default)]
    struct Device {
        room: AtomicUsize,
        got: Mutex<Vec<u8>>,
        breaks: AtomicUsize,
        focus: AtomicUsize,
    }

    impl CharFrontend for Device {
        fn can_receive(&self) -> usize {
            self.room.load(Ordering::SeqCst)
        }
        fn receive(&self, bytes: &[u8]) {
            self.room.fetch_sub(bytes.len(), Ordering::SeqCst);
            self.got.lock().unwrap().extend_from_slice(bytes);
        }
        fn receive_break(&self) {
            self.breaks.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl FocusListener for Device {
        fn focused(&self) {
            self.focus.fetch_add(1, Ordering::SeqCst);
        }
        fn opened(&self) {}
    }

    struct Rig {
        mux: Arc<Mux>,
        ports: Vec<MuxPort>,
        devices: Vec<Arc<Device>>,
        screen: File,
        output: Arc<Output>,
    }

    fn rig() -> Rig {
        let (r, w) = nix::unistd::pipe().unwrap();
        let output = Output::start("mux".into(), w.into()).unwrap();
        let mux = Mux::new(Outlet::to(Some(output.clone())), Waker::new().unwrap(), 1);
        let mut rig = Rig { output, mux, ports: Vec::new(), devices: Vec::new(), screen: r.into() };
        for _ in 0..2 {
            let device = Arc::new(Device::default());
            device.room.store(100, Ordering::SeqCst);
            let port = rig.mux.add();
            port.connect(Arc::downgrade(&device) as Weak<dyn CharFrontend>);
            port.listen(Arc::downgrade(&device) as Weak<dyn FocusListener>);
            rig.ports.push(port);
            rig.devices.push(device);
        }
        rig
    }

    impl Rig {
        fn type_in(&self, bytes: &[u8]) -> usize {
            let mut input = bytes.to_vec();
            self.mux.pump(&mut input);
            input.len()
        }

        fn got(&self, i: usize) -> Vec<u8> {
            std::mem::take(&mut *self.devices[i].got.lock().unwrap())
        }

        fn shown(&mut self) -> String {
            self.output.flush(Duration::from_secs(5));
            let mut buf = [0; 4096];
            let n = self.screen.read(&mut buf).unwrap();
            String::from_utf8(buf[..n].to_vec()).unwrap()
        }
    }

    #[test]
    fn switches_and_escapes() {
        let rig = rig();
        rig.type_in(b"one\x01ctwo\x01\x01\x01a\x01cthree\x03");
        assert_eq!(rig.got(0), b"onethree\x03", "Ctrl-C is the guest's");
        assert_eq!(rig.got(1), b"two\x01\x01");
        assert_eq!(rig.devices[1].focus.load(Ordering::SeqCst), 1);
        rig.type_in(b"\x01");
        rig.type_in(b"b");
        assert_eq!(rig.devices[0].breaks.load(Ordering::SeqCst), 1, "an escape may come in two pieces");
        assert!(rig.got(0).is_empty());
    }

    #[test]
    fn escapes_work_while_the_guest_takes_nothing() {
        let mut rig = rig();
        rig.devices[0].room.store(2, Ordering::SeqCst);
        let quits = Arc::new(AtomicUsize::new(0));
        let count = quits.clone();
        rig.mux.on_quit(Arc::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        }));
        assert_eq!(rig.type_in(b"abcdef\x01x"), 0);
        assert_eq!(rig.got(0), b"ab");
        assert_eq!(quits.load(Ordering::SeqCst), 1);
        assert!(rig.shown().contains("terminated"));
        rig.devices[0].room.store(100, Ordering::SeqCst);
        rig.type_in(b"");
        assert_eq!(rig.got(0), b"cdef");
    }

    #[test]
    fn a_flood_stays_unread() {
        let rig = rig();
        rig.devices[0].room.store(0, Ordering::SeqCst);
        assert_eq!(rig.type_in(&vec![b'x'; KEPT + 10]), 10);
    }

    #[test]
    fn help_and_time_stamps() {
        let mut rig = rig();
        rig.type_in(b"\x01h");
        let help = rig.shown();
        assert!(help.contains("C-a x    end the emulator\r\n") && help.contains("C-a C-a"));
        rig.type_in(b"\x01t");
        rig.ports[0].write(b"tail\nline\n");
        let text = rig.shown();
        assert!(text.starts_with("tail\n[00:00:0") && text.ends_with("] line\n"), "{text}");
        rig.type_in(b"\x01t");
        rig.ports[1].write(b"plain\n");
        assert_eq!(rig.shown(), "plain\n");
    }
}
