//! The state of a whole machine as a stream of bytes: sections with their lengths and checksums, in a form that is ours.
//!
//! A stream comes from a file that anybody may have written: what is wrong with it is an error before anything of the
//! machine changes.

mod memory;
mod moving;
mod precopy;
mod stream;

pub use memory::{load_memory, save_memory};
pub use moving::{Arrival, Arriving, Terms, depart, set_out};
pub use precopy::{MemoryCopy, Pass};
pub use stream::{StreamError, Writer};

use crate::vcpu::SavedThread;
use brolga_devices::state::StateValue;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::io::{Read, Write};
use stream::{Reader, pack, unpack};

/// Sections, in their order.
const MACHINE: [u8; 4] = *b"mach";
const CLOCK: [u8; 4] = *b"cloc";
const PROCESSORS: [u8; 4] = *b"cpus";
const DEVICES: [u8; 4] = *b"devs";

/// What has to be the same in the machine that takes the state over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Makeup {
    /// Who saved it.
    pub program: String,
    /// The board.
    pub board: String,
    /// Bytes of RAM (`-m`).
    pub ram: u64,
    /// Bytes of all memory, ROM and frame buffer included.
    pub memory: u64,
    /// Processors.
    pub processors: u32,
    /// What CPUID says of the model's features.
    pub features: Vec<[u32; 4]>,
    /// Devices by their names, with their models.
    pub devices: Vec<(String, String)>,
}

impl Makeup {
    /// Says what a machine that `self` describes would need to take over the state of `saved`.
    pub fn differs(&self, saved: &Self) -> Option<String> {
        let differ = |what: &str, saved: &dyn std::fmt::Display, here: &dyn std::fmt::Display| {
            Some(format!("it is of a machine with {what} {saved}, and this one has {here}"))
        };
        if saved.board != self.board {
            return differ("-machine", &saved.board, &self.board);
        }
        if saved.ram != self.ram {
            let mebibytes = |bytes: u64| format!("{}M", bytes >> 20);
            return differ("-m", &mebibytes(saved.ram), &mebibytes(self.ram));
        }
        if saved.processors != self.processors {
            return differ("-smp", &saved.processors, &self.processors);
        }
        if saved.features != self.features {
            return Some("it is of a machine with another -cpu".to_owned());
        }
        let lacks = |all: &[(String, String)], one: &(String, String)| !all.contains(one);
        if let Some((name, model)) = saved.devices.iter().find(|one| lacks(&self.devices, one)) {
            return Some(format!("it is of a machine with the device {name} ({model}), which is not here"));
        }
        if let Some((name, model)) = self.devices.iter().find(|one| lacks(&saved.devices, one)) {
            return Some(format!("it is of a machine without the device {name} ({model})"));
        }
        (saved.memory != self.memory).then(|| "it is of a machine with other firmware or another -vga".to_owned())
    }
}

/// Time as the guest has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedClock {
    /// Nanoseconds since the machine started.
    pub guest_ns: u64,
}

/// All of a machine but its memory.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedMachine {
    /// What it is made of.
    pub makeup: Makeup,
    /// Its time.
    pub clock: SavedClock,
    /// Its processors, with their numbers.
    pub processors: Vec<(u32, SavedThread)>,
    /// Its devices, by name.
    pub devices: StateValue,
}

fn put<W: Write, T: Serialize>(out: &mut Writer<W>, kind: [u8; 4], value: &T) -> Result<(), StreamError> {
    let text = serde_json::to_vec(value).map_err(|e| StreamError::malformed(kind, &e.to_string()))?;
    out.section(kind, &pack(&text)?)
}

fn get<T: DeserializeOwned>(kind: [u8; 4], payload: &[u8]) -> Result<T, StreamError> {
    serde_json::from_slice(&unpack(kind, payload)?).map_err(|e| StreamError::malformed(kind, &e.to_string()))
}

impl SavedMachine {
    /// Writes it to the beginning of a stream, which memory follows in.
    pub fn write<W: Write>(&self, out: &mut Writer<W>) -> Result<(), StreamError> {
        put(out, MACHINE, &self.makeup)?;
        self.write_state(out)
    }

    /// The same without what it is made of.
    fn write_state<W: Write>(&self, out: &mut Writer<W>) -> Result<(), StreamError> {
        let Self { makeup: _, clock, processors, devices } = self;
        put(out, CLOCK, clock)?;
        put(out, PROCESSORS, processors)?;
        put(out, DEVICES, devices)
    }

    /// Reads and checks a whole stream; memory, of so many bytes, is checked too and forgotten.
    pub fn read(input: impl Read, memory: u64) -> Result<Self, StreamError> {
        let mut reader = Reader::new(input)?;
        let this = Self {
            makeup: get(MACHINE, &reader.expect(MACHINE)?)?,
            clock: get(CLOCK, &reader.expect(CLOCK)?)?,
            processors: get(PROCESSORS, &reader.expect(PROCESSORS)?)?,
            devices: get(DEVICES, &reader.expect(DEVICES)?)?,
        };
        // Another machine's memory is not looked at: what the machines are made of says more of what is wrong.
        if this.makeup.memory == memory {
            memory::each(&mut reader, memory, |_, _| Ok(()))?;
        }
        Ok(this)
    }
}

#[cfg(test)]
mod tests;
