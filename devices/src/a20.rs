//! The A20 gate: whether address line 20 reaches memory. The keyboard controller and port 0x92 both move it; whoever
//! writes last decides. It is open after power-on, as on every PC made since firmware stopped closing it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// What the program does when the gate moves (`true`: line 20 passes).
pub type A20Listener = Box<dyn Fn(bool) + Send + Sync>;

/// The state of the gate, shared by the devices that move it and the program that applies it.
pub struct A20 {
    enabled: AtomicBool,
    listener: OnceLock<A20Listener>,
}

impl A20 {
    /// An open gate.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { enabled: AtomicBool::new(true), listener: OnceLock::new() })
    }

    /// Sets what is called with the new state after each change. Only the first call counts; `false` if it was not.
    pub fn on_change(&self, listener: A20Listener) -> bool {
        self.listener.set(listener).is_ok()
    }

    /// Whether address line 20 passes.
    pub fn enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// Opens or closes the gate. Devices call it without holding a lock.
    pub fn set(&self, enabled: bool) {
        if self.enabled.swap(enabled, Ordering::AcqRel) != enabled
            && let Some(listener) = self.listener.get()
        {
            listener(enabled);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::locked;
    use std::sync::Mutex;

    #[test]
    fn listeners_hear_changes_only() {
        let a20 = A20::new();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ears = heard.clone();
        assert!(a20.on_change(Box::new(move |on| locked(&ears).push(on))));
        assert!(!a20.on_change(Box::new(|_| ())));
        a20.set(true);
        a20.set(false);
        a20.set(false);
        assert!(!a20.enabled());
        a20.set(true);
        assert_eq!(*locked(&heard), [false, true]);
    }
}
