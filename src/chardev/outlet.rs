//! Where a host end's bytes go at the moment: a file or terminal for good, or whoever is connected.

use super::output::Output;
use super::telnet;
use std::sync::{Arc, Mutex, PoisonError};

/// A way out that may come and go. While there is none, bytes are dropped.
pub struct Outlet {
    output: Mutex<Option<Arc<Output>>>,
    telnet: bool,
}

impl Outlet {
    /// One that is open for good, or never.
    pub fn to(output: Option<Arc<Output>>) -> Arc<Self> {
        Arc::new(Self { output: Mutex::new(output), telnet: false })
    }

    /// One that is open while somebody is connected, by telnet or not.
    pub fn to_peers(telnet: bool) -> Arc<Self> {
        Arc::new(Self { output: Mutex::default(), telnet })
    }

    /// From now on bytes go there.
    pub fn set(&self, output: Option<Arc<Output>>) {
        *self.output.lock().unwrap_or_else(PoisonError::into_inner) = output;
    }

    /// Queues `bytes` for whoever is there.
    pub fn write(&self, bytes: &[u8]) {
        // Not locked while the queue is full: the connection may be cut meanwhile.
        let output = self.output.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match output {
            Some(output) if self.telnet => output.write(&telnet::encode(bytes)),
            Some(output) => output.write(bytes),
            None => {}
        }
    }
}
