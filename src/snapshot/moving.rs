//! The state of a machine on its way to another process: memory comes first, while the machine still runs, and what changes
//! meanwhile comes again; all else follows when it stands.

use super::memory;
use super::stream::{Reader, StreamError, Writer};
use super::{CLOCK, DEVICES, MACHINE, Makeup, PROCESSORS, SavedMachine, get, put};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Write};

/// Sections: what is agreed, and what the machine was doing.
const TERMS: [u8; 4] = *b"move";
const STATE: [u8; 4] = *b"runs";

/// What the one who sends tells the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    /// A byte is to come back when the machine has arrived (`return-path`).
    pub answer: bool,
}

/// Begins the stream of a machine that is made so.
pub fn set_out<W: Write>(out: &mut Writer<W>, makeup: &Makeup, terms: Terms) -> Result<(), StreamError> {
    put(out, MACHINE, makeup)?;
    put(out, TERMS, &terms)
}

/// Ends it, memory having gone before; `state` is what the machine was doing.
pub fn depart<W: Write>(mut out: Writer<W>, saved: &SavedMachine, state: &str) -> Result<W, StreamError> {
    saved.write_state(&mut out)?;
    put(&mut out, STATE, &state)?;
    out.finish()
}

/// A machine that arrives.
pub struct Arriving<R> {
    reader: Reader<R>,
    /// What it is made of.
    pub makeup: Makeup,
    /// What is agreed.
    pub terms: Terms,
}

/// A machine that has arrived, but for its memory, which is where it belongs.
pub struct Arrival {
    /// The machine.
    pub saved: SavedMachine,
    /// What it was doing, as `query-status` names it.
    pub state: String,
}

impl<R: Read> Arriving<R> {
    /// Reads what comes first.
    pub fn new(input: R) -> Result<Self, StreamError> {
        let mut reader = Reader::new(input)?;
        let makeup = get(MACHINE, &reader.expect(MACHINE)?)?;
        let terms = get(TERMS, &reader.expect(TERMS)?)?;
        Ok(Self { reader, makeup, terms })
    }

    /// Fills the first `size` bytes of a memory file, and reads all else.
    pub fn receive(self, file: &File, size: u64) -> Result<Arrival, StreamError> {
        let Self { mut reader, makeup, terms: _ } = self;
        let clock = match memory::receive(&mut reader, file, size)? {
            (CLOCK, payload) => get(CLOCK, &payload)?,
            (other, _) => return Err(StreamError::malformed(other, "'cloc' should be there")),
        };
        let processors = get(PROCESSORS, &reader.expect(PROCESSORS)?)?;
        let devices = get(DEVICES, &reader.expect(DEVICES)?)?;
        let state = get(STATE, &reader.expect(STATE)?)?;
        match reader.next()? {
            None => Ok(Arrival { saved: SavedMachine { makeup, clock, processors, devices }, state }),
            Some((kind, _)) => Err(StreamError::malformed(kind, "nothing should follow")),
        }
    }
}
