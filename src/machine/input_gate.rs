//! Input of character devices, which comes on threads of its own: it waits while the machine's state is taken or put back.

use brolga_devices::services::CharFrontend;
use brolga_devices::wire::locked;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

/// The gate of a machine. Locks: `open` is held while a device takes input; it is taken by nothing that a device calls.
#[derive(Default)]
pub struct InputGate {
    open: Arc<RwLock<()>>,
    /// Back ends hold devices weakly.
    devices: Mutex<Vec<Arc<Gated>>>,
}

/// A device behind the gate.
struct Gated {
    open: Arc<RwLock<()>>,
    device: Weak<dyn CharFrontend>,
}

impl InputGate {
    /// What a back end is to call in place of `device`.
    pub fn guard(&self, device: Weak<dyn CharFrontend>) -> Weak<dyn CharFrontend> {
        let gated = Arc::new(Gated { open: self.open.clone(), device });
        let frontend: Arc<dyn CharFrontend> = gated.clone();
        locked(&self.devices).push(gated);
        Arc::downgrade(&frontend)
    }

    /// No device takes input until the result is dropped.
    pub fn close(&self) -> RwLockWriteGuard<'_, ()> {
        self.open.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gated {
    fn pass(&self) -> RwLockReadGuard<'_, ()> {
        self.open.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CharFrontend for Gated {
    fn can_receive(&self) -> usize {
        self.device.upgrade().map_or(0, |device| device.can_receive())
    }

    fn receive(&self, bytes: &[u8]) {
        let _pass = self.pass();
        if let Some(device) = self.device.upgrade() {
            device.receive(bytes);
        }
    }

    fn receive_break(&self) {
        let _pass = self.pass();
        if let Some(device) = self.device.upgrade() {
            device.receive_break();
        }
    }

    fn output_ready(&self) {
        if let Some(device) = self.device.upgrade() {
            device.output_ready();
        }
    }

    fn host_changed(&self) {
        if let Some(device) = self.device.upgrade() {
            device.host_changed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    struct Device(Mutex<Vec<u8>>);

    impl CharFrontend for Device {
        fn can_receive(&self) -> usize {
            3
        }
        fn receive(&self, bytes: &[u8]) {
            locked(&self.0).extend_from_slice(bytes);
        }
    }

    #[test]
    fn input_waits_while_the_gate_is_closed() {
        let (gate, device) = (InputGate::default(), Arc::new(Device(Mutex::default())));
        let strong: Arc<dyn CharFrontend> = device.clone();
        let guarded = gate.guard(Arc::downgrade(&strong)).upgrade().expect("the gate holds it");
        assert_eq!(guarded.can_receive(), 3);
        let closed = gate.close();
        let (tell, told) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                guarded.receive(b"abc");
                tell.send(()).unwrap();
            });
            assert!(told.recv_timeout(Duration::from_millis(30)).is_err());
            assert!(locked(&device.0).is_empty());
            drop(closed);
            told.recv_timeout(Duration::from_secs(60)).unwrap();
        });
        assert_eq!(*locked(&device.0), b"abc");
    }
}
