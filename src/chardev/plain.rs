//! Host ends with one device: null, a file, a terminal that is not shared.

use super::input::{InputSink, Waker};
use super::mux::FocusListener;
use super::outlet::Outlet;
use brolga_devices::services::{CharBackend, CharFrontend, Line};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

/// The device that a host end belongs to, once it is known. Never locked while it is called.
#[derive(Default)]
pub struct Attached(Mutex<Option<Weak<dyn CharFrontend>>>);

impl Attached {
    /// Makes `frontend` the receiver of input.
    pub fn set(&self, frontend: Weak<dyn CharFrontend>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(frontend);
    }

    /// No device any more.
    pub fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The device, if it is there.
    pub fn get(&self) -> Option<Arc<dyn CharFrontend>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.upgrade()
    }
}

/// Where bytes go, and what wakes the thread that reads input, if there is any.
type Way = (Arc<Outlet>, Option<Waker>);

/// A host end with one device.
pub struct Plain {
    /// Where it leads, which may change.
    way: RwLock<Way>,
    device: Attached,
    listener: Mutex<Option<Weak<dyn FocusListener>>>,
}

impl Plain {
    /// Bytes go to `outlet`; `waker` wakes the thread that reads input, if there is any.
    pub fn new(outlet: Arc<Outlet>, waker: Option<Waker>) -> Arc<Self> {
        let way = RwLock::new((outlet.clone(), waker));
        let this = Arc::new(Self { way, device: Attached::default(), listener: Mutex::default() });
        this.heed(&outlet);
        this
    }

    /// The device hears when `outlet` has room again.
    fn heed(self: &Arc<Self>, outlet: &Outlet) {
        let weak = Arc::downgrade(self);
        outlet.listen(Arc::new(move || {
            if let Some(device) = weak.upgrade().and_then(|plain| plain.device.get()) {
                device.output_ready();
            }
        }));
    }

    /// From now on it leads there; the device hears of it.
    pub fn lead(self: &Arc<Self>, outlet: Arc<Outlet>, waker: Option<Waker>) {
        self.heed(&outlet);
        *self.way.write().unwrap_or_else(PoisonError::into_inner) = (outlet, waker);
        self.host_changed();
        if let Some(device) = self.device.get() {
            device.output_ready();
        }
    }

    fn outlet(&self) -> Arc<Outlet> {
        self.way.read().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Whether its device can do with another host end.
    pub fn swaps(&self) -> bool {
        self.device.get().is_some_and(|device| device.swaps())
    }

    /// The device is gone.
    pub fn disconnect(&self) {
        self.device.clear();
    }

    /// Somebody at the other end sends a break.
    pub fn send_break(&self) {
        if let Some(device) = self.device.get() {
            device.receive_break();
        }
    }

    /// Tells `listener` of each peer that connects.
    pub fn listen(&self, listener: Weak<dyn FocusListener>) {
        *self.listener.lock().unwrap_or_else(PoisonError::into_inner) = Some(listener);
    }

    /// A peer has connected.
    pub fn opened(&self) {
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(listener) = listener.and_then(|l| l.upgrade()) {
            listener.opened();
        }
    }

    /// Somebody came or left, or the terminal's size changed.
    pub fn host_changed(&self) {
        if let Some(device) = self.device.get() {
            device.host_changed();
        }
    }

    /// Makes `frontend` the receiver of input.
    pub fn connect(&self, frontend: Weak<dyn CharFrontend>) {
        self.device.set(frontend);
        self.input_ready();
    }
}

impl CharBackend for Plain {
    fn write(&self, bytes: &[u8]) {
        self.outlet().write(bytes);
    }

    fn input_ready(&self) {
        if let Some(waker) = &self.way.read().unwrap_or_else(PoisonError::into_inner).1 {
            waker.wake();
        }
    }

    fn room(&self) -> usize {
        self.outlet().room()
    }

    fn connected(&self) -> bool {
        self.outlet().connected()
    }

    fn size(&self) -> Option<(u16, u16)> {
        self.outlet().size()
    }

    fn set_line(&self, line: Line) {
        self.outlet().set_line(line);
    }
}

impl InputSink for Plain {
    fn pump(&self, input: &mut Vec<u8>) {
        let Some(device) = self.device.get() else { return };
        let mut taken = 0;
        while taken < input.len() {
            let room = device.can_receive().min(input.len() - taken);
            if room == 0 {
                break;
            }
            device.receive(&input[taken..taken + room]);
            taken += room;
        }
        input.drain(..taken);
    }

    fn descriptors(&self, descriptors: Vec<OwnedFd>) {
        if let Some(device) = self.device.get() {
            device.receive_descriptors(descriptors);
        }
    }
}
