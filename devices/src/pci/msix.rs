//! MSI-X (PCI 3.0, 6.8.2): a capability, and a table of messages in a base address register.

use super::config::ConfigSpace;
use crate::bus::{AccessSizes, RegisterBlock};
use crate::services::MsiSink;
use crate::wire::locked;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex};

/// Capability id.
const ID: u32 = 0x11;
/// Length of the capability.
pub const CAPABILITY: u8 = 12;
/// Message control, in the capability: enable, and mask all.
const CONTROL: u8 = 2;
const ENABLE: u32 = 1 << 15;
const MASK_ALL: u32 = 1 << 14;
/// Bytes of a vector in the table, and where the pending bits lie.
const ENTRY: u64 = 16;
/// Bytes of the register that holds table and pending bits.
pub const BAR_SIZE: u64 = 4096;
const PENDING: u64 = 2048;
/// Most vectors that fit before the pending bits.
pub const MAX_VECTORS: u16 = (PENDING / ENTRY) as u16;
const MASKED: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    address: u64,
    data: u32,
    control: u32,
    pending: bool,
}

const FRESH: Entry = Entry { address: 0, data: 0, control: MASKED, pending: false };

/// What is saved of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MsixState {
    entries: Vec<Entry>,
    enabled: bool,
    masked: bool,
}

/// A function's message table.
///
/// Locks: `state` is a leaf; messages are sent after it is dropped.
pub struct Msix {
    sink: Arc<dyn MsiSink>,
    state: Mutex<MsixState>,
}

/// Puts the capability for `vectors` vectors at `at`, before the one at `next`; the table is in register `bar`.
pub fn set_up(config: &mut ConfigSpace, at: u8, next: u8, vectors: u16, bar: u8) {
    let size = u32::from(vectors.clamp(1, MAX_VECTORS) - 1);
    config.set(at, 4, ID | u32::from(next) << 8 | size << 16);
    config.set(at + 4, 4, bar.into());
    config.set(at + 8, 4, PENDING as u32 | u32::from(bar));
    config.allow(at + CONTROL, 2, ENABLE | MASK_ALL);
}

impl Msix {
    /// A table of `vectors` messages.
    pub fn new(vectors: u16, sink: Arc<dyn MsiSink>) -> Arc<Self> {
        let entries = vec![FRESH; vectors.clamp(1, MAX_VECTORS).into()];
        Arc::new(Self { sink, state: Mutex::new(MsixState { entries, enabled: false, masked: false }) })
    }

    /// Takes note of the capability at `at`: call it after each write to the configuration space.
    pub fn follow(&self, config: &ConfigSpace, at: u8) {
        let control = config.read(at + CONTROL, 2);
        self.change(|state| {
            (state.enabled, state.masked) = (control & ENABLE != 0, control & MASK_ALL != 0);
        });
    }

    /// Messages are on: INTx is not used.
    pub fn enabled(&self) -> bool {
        locked(&self.state).enabled
    }

    /// How many vectors there are.
    pub fn vectors(&self) -> u16 {
        locked(&self.state).entries.len() as u16
    }

    /// Sends message `vector`, or notes it while it is masked.
    pub fn send(&self, vector: u16) {
        self.change(|state| {
            if let Some(entry) = state.entries.get_mut(usize::from(vector)).filter(|_| state.enabled) {
                entry.pending = true;
            }
        });
    }

    /// As after power-on.
    pub fn reset(&self) {
        self.change(|state| {
            state.entries.fill(FRESH);
            (state.enabled, state.masked) = (false, false);
        });
    }

    /// The state.
    pub fn save(&self) -> MsixState {
        locked(&self.state).clone()
    }

    /// Whether a state could have come from this table.
    pub fn fits(&self, state: &MsixState) -> bool {
        state.entries.len() == locked(&self.state).entries.len()
    }

    /// Takes over a state that fits.
    pub fn restore(&self, state: MsixState) {
        *locked(&self.state) = state;
    }

    /// Changes the state, then sends what is pending and not masked.
    fn change(&self, change: impl FnOnce(&mut MsixState)) {
        let due: Vec<(u64, u32)> = {
            let mut state = locked(&self.state);
            change(&mut state);
            if !state.enabled || state.masked {
                return;
            }
            let due = state.entries.iter_mut().filter(|e| e.pending && e.control & MASKED == 0);
            due.map(|e| {
                e.pending = false;
                (e.address, e.data)
            })
            .collect()
        };
        due.into_iter().for_each(|(address, data)| self.sink.send_msi(address, data));
    }
}

impl RegisterBlock for Msix {
    fn read(&self, offset: u64, _size: u8) -> u64 {
        let state = locked(&self.state);
        if offset >= PENDING {
            let first = (offset - PENDING) * 8;
            let bits = state.entries.iter().skip(first as usize).take(32).enumerate();
            return bits.fold(0, |bits, (i, e)| bits | u64::from(e.pending) << i);
        }
        let Some(entry) = state.entries.get((offset / ENTRY) as usize) else { return 0 };
        match offset % ENTRY {
            0 => entry.address & 0xffff_ffff,
            4 => entry.address >> 32,
            8 => entry.data.into(),
            _ => entry.control.into(),
        }
    }

    fn write(&self, offset: u64, _size: u8, value: u64) {
        self.change(|state| {
            let Some(entry) = state.entries.get_mut((offset / ENTRY) as usize).filter(|_| offset < PENDING) else {
                return;
            };
            match offset % ENTRY {
                0 => entry.address = entry.address & !0xffff_ffff | value & 0xffff_fffc,
                4 => entry.address = entry.address & 0xffff_ffff | value << 32,
                8 => entry.data = value as u32,
                _ => entry.control = value as u32 & MASKED,
            }
        });
    }

    fn sizes(&self) -> AccessSizes {
        AccessSizes::DWORD
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::FakeMsi;
    use crate::pci::config::Identity;

    #[test]
    fn messages_wait_while_masked() {
        let sink = Arc::new(FakeMsi::default());
        let msix = Msix::new(3, sink.clone());
        let mut config = ConfigSpace::new(Identity { vendor: 1, device: 2, class: 0, revision: 0, subsystem: (0, 0) });
        set_up(&mut config, 0x98, 0, 3, 1);
        assert_eq!(config.read(0x98, 4), 0x0002_0011);
        let take = || std::mem::take(&mut *locked(&sink.0));
        msix.write(16, 4, 0xfee0_1000);
        msix.write(24, 4, 0x41);
        msix.send(1);
        assert_eq!(msix.read(PENDING, 4), 0, "off: nothing is noted");
        config.write(0x9a, 2, 0xc000);
        msix.follow(&config, 0x98);
        msix.write(28, 4, 0);
        msix.send(1);
        msix.send(9);
        assert_eq!((take(), msix.read(PENDING, 4)), (vec![], 2));
        config.write(0x9a, 2, 0x8000);
        msix.follow(&config, 0x98);
        assert_eq!(take(), [(0xfee0_1000, 0x41)]);
        msix.write(28, 4, 1);
        msix.send(1);
        assert!(take().is_empty());
        let saved = msix.save();
        msix.write(28, 4, 0);
        assert_eq!(take().len(), 1);
        assert!(msix.fits(&saved));
        msix.restore(saved);
        msix.write(28, 4, 0);
        assert_eq!(take().len(), 1, "pending came back with the state");
    }
}
