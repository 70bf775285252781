//! Host ends with one device: null, a file, a terminal that is not shared.

use super::input::{InputSink, Waker};
use super::mux::FocusListener;
use super::outlet::Outlet;
use brolga_devices::services::{CharBackend, CharFrontend};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The device that a host end belongs to, once it is known. Never locked while it is called.
#[derive(Default)]
pub struct Attached(Mutex<Option<Weak<dyn CharFrontend>>>);

impl Attached {
    /// Makes `frontend` the receiver of input.
    pub fn set(&self, frontend: Weak<dyn CharFrontend>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(frontend);
    }

    /// The device, if it is there.
    pub fn get(&self) -> Option<Arc<dyn CharFrontend>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.upgrade()
    }
}

/// A host end with one device.
pub struct Plain {
    outlet: Arc<Outlet>,
    waker: Option<Waker>,
    device: Attached,
    listener: Mutex<Option<Weak<dyn FocusListener>>>,
}

impl Plain {
    /// Bytes go to `outlet`; `waker` wakes the thread that reads input, if there is any.
    pub fn new(outlet: Arc<Outlet>, waker: Option<Waker>) -> Arc<Self> {
        let this = Arc::new(Self { outlet, waker, device: Attached::default(), listener: Mutex::default() });
        let weak = Arc::downgrade(&this);
        this.outlet.listen(Arc::new(move || {
            if let Some(device) = weak.upgrade().and_then(|plain| plain.device.get()) {
                device.output_ready();
            }
        }));
        this
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
        self.outlet.write(bytes);
    }

    fn input_ready(&self) {
        if let Some(waker) = &self.waker {
            waker.wake();
        }
    }

    fn room(&self) -> usize {
        self.outlet.room()
    }

    fn connected(&self) -> bool {
        self.outlet.connected()
    }

    fn size(&self) -> Option<(u16, u16)> {
        self.outlet.size()
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
}
