//! A command at a target, from its selection to its end.

use super::wires::{Phase, Place, message};
use crate::scsi::steps::{self, Next, Step};
use crate::scsi::{Answer, Sense, Unit, luns};
use crate::services::{DiskDone, DiskRequest};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// Bytes of data that a target has at once.
pub(super) const BUFFER: u64 = 256 << 10;
/// Status bytes (SAM-5 5.3).
const GOOD: u8 = 0x00;
const CHECK_CONDITION: u8 = 0x02;
const BUSY: u8 = 0x08;
const TASK_SET_FULL: u8 = 0x28;

/// What comes next, besides messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// The command.
    Command,
    /// Data for the initiator are there.
    DataIn,
    /// Data are expected.
    DataOut {
        /// Bytes in all until something is done with them.
        want: usize,
    },
    /// The disk works.
    Disk,
    /// The status.
    Status,
    /// Nothing.
    Over,
}

/// What follows the last message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Then {
    /// The next phase.
    #[default]
    Stay,
    /// The bus is free, and the command is over.
    Over,
    /// The bus is free, and the target comes back.
    Away,
}

/// Initiator, target, unit and tag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nexus {
    pub target: u8,
    pub lun: u8,
    pub tag: Option<u8>,
    pub stage: Stage,
    /// For the initiator.
    pub messages: VecDeque<u8>,
    pub then: Then,
    pub cdb: Vec<u8>,
    /// The number of the disk request under way.
    pub request: Option<u64>,
    may_disconnect: bool,
    /// Data have moved since the target came last.
    moved: bool,
    /// Data on their way, and how many of them the initiator has got.
    data: Vec<u8>,
    given: usize,
    steps: VecDeque<Step>,
    status: u8,
}

impl Nexus {
    /// A target that was selected just now.
    pub fn new(target: u8) -> Self {
        Self {
            target,
            lun: 0,
            tag: None,
            stage: Stage::Command,
            messages: VecDeque::new(),
            then: Then::Stay,
            cdb: Vec::new(),
            request: None,
            may_disconnect: false,
            moved: false,
            data: Vec::new(),
            given: 0,
            steps: VecDeque::new(),
            status: GOOD,
        }
    }

    /// IDENTIFY.
    pub fn identify(&mut self, byte: u8) {
        self.lun = byte & message::LUN;
        self.may_disconnect = byte & message::MAY_DISCONNECT != 0;
    }

    fn place(&self) -> Place {
        (self.target, self.lun)
    }

    fn unit<'a>(&self, units: &'a mut BTreeMap<Place, Unit>) -> Option<&'a mut Unit> {
        units.get_mut(&self.place())
    }

    /// Starts the command.
    pub fn begin(&mut self, units: &mut BTreeMap<Place, Unit>) {
        let answer = if self.cdb.first() == Some(&0xa0) {
            let all = units.range((self.target, 0)..=(self.target, u8::MAX));
            luns::report(&self.cdb, all.map(|((_, lun), _)| (*lun).into()))
        } else {
            let cdb = self.cdb.clone();
            self.unit(units).map_or_else(|| luns::absent(&cdb), |unit| unit.command(&cdb))
        };
        self.answered(answer, units);
    }

    /// There is no room for it.
    pub fn refuse(&mut self) {
        self.end(TASK_SET_FULL);
    }

    fn end(&mut self, status: u8) {
        self.steps.clear();
        self.data.clear();
        (self.stage, self.status, self.given) = (Stage::Status, status, 0);
    }

    /// It failed after it had begun.
    pub fn fail(&mut self, sense: Sense, units: &mut BTreeMap<Place, Unit>) {
        if let Some(unit) = self.unit(units) {
            unit.failed(sense);
        }
        self.request = None;
        self.end(CHECK_CONDITION);
    }

    /// What it was about is not there any more.
    pub fn lost(&mut self) {
        self.request = None;
        self.end(BUSY);
    }

    fn answered(&mut self, answer: Answer, units: &mut BTreeMap<Place, Unit>) {
        match answer {
            Answer::Check(_) => self.end(CHECK_CONDITION),
            Answer::Done => self.end(GOOD),
            Answer::Data(bytes) => (self.data, self.given, self.stage) = (bytes, 0, Stage::DataIn),
            // Lists are shorter than 64 KiB or one block: their lengths are fields of 16 bits.
            Answer::Parameters(len) => self.stage = Stage::DataOut { want: len.min(BUFFER) as usize },
            other => {
                let block = self.unit(units).map_or(1, |unit| unit.block());
                self.steps = steps::of(&other, block).unwrap_or_default().into();
                self.next_step();
            }
        }
    }

    /// What the next step needs first. Data that are there are those for it.
    fn next_step(&mut self) {
        self.stage = match self.steps.front() {
            None => return self.end(GOOD),
            Some(step) => match step.needs(BUFFER) {
                want if want > self.data.len() as u64 => Stage::DataOut { want: want as usize },
                _ => Stage::Disk,
            },
        };
    }

    /// Bytes that it takes now.
    pub fn room(&self) -> usize {
        match self.stage {
            Stage::DataOut { want } => want.saturating_sub(self.data.len()),
            _ => 0,
        }
    }

    /// Takes data.
    pub fn take(&mut self, bytes: &[u8], units: &mut BTreeMap<Place, Unit>) {
        let Stage::DataOut { want } = self.stage else { return };
        self.moved = true;
        self.data.extend_from_slice(bytes);
        if self.data.len() < want {
            return;
        }
        if !self.steps.is_empty() {
            return self.next_step();
        }
        let (cdb, list) = (self.cdb.clone(), std::mem::take(&mut self.data));
        let answer = self.unit(units).map_or(Answer::Check(Sense::NO_UNIT), |unit| unit.parameters(&cdb, &list));
        match answer {
            // One list for one command.
            Answer::Parameters(_) => self.fail(Sense::BAD_PARAMETER, units),
            answer => self.answered(answer, units),
        }
    }

    /// Gives data.
    pub fn give(&mut self, most: usize) -> Vec<u8> {
        if self.stage != Stage::DataIn {
            return Vec::new();
        }
        let bytes: Vec<u8> = self.data.iter().skip(self.given).take(most).copied().collect();
        self.given += bytes.len();
        self.moved = true;
        if self.given >= self.data.len() {
            self.data.clear();
            self.given = 0;
            self.next_step();
        }
        bytes
    }

    /// Gives the status.
    pub fn give_status(&mut self) -> u8 {
        self.stage = Stage::Over;
        self.messages.push_back(message::COMPLETE);
        self.then = Then::Over;
        self.status
    }

    /// What the disk is to do.
    pub fn disk_request(&self) -> Option<DiskRequest> {
        Some(self.steps.front()?.buffered_request(&self.data, BUFFER))
    }

    /// The disk has done it.
    pub fn disk_done(&mut self, done: &DiskDone) -> Next {
        self.request = None;
        let Some(step) = self.steps.front_mut() else { return Next::Over };
        let reads = matches!(step, Step::Read { .. });
        let next = step.buffered_done(done, &self.data, BUFFER);
        match next {
            Next::Failed(_) => return next,
            Next::Over => drop(self.steps.pop_front()),
            Next::Again => {}
        }
        (self.data, self.given) = (Vec::new(), 0);
        if reads && !done.bytes.is_empty() {
            (self.data, self.stage) = (done.bytes.clone(), Stage::DataIn);
        } else {
            self.next_step();
        }
        next
    }

    /// The phase that follows when the disk has done its part, if it does.
    pub fn phase_after_disk(&self) -> Phase {
        match self.steps.front() {
            Some(Step::Read { .. }) => Phase::DataIn,
            Some(step) if step.needs(u64::MAX) > self.data.len() as u64 => Phase::DataOut,
            _ => Phase::Status,
        }
    }

    /// Gives the bus back while the disk works, if that is allowed, and not in the middle of data.
    pub fn leave(&mut self) {
        let more = matches!(self.phase_after_disk(), Phase::DataIn | Phase::DataOut);
        if !self.may_disconnect || (self.moved && more) {
            return;
        }
        if self.moved {
            self.messages.push_back(message::SAVE_POINTERS);
        }
        self.messages.push_back(message::DISCONNECT);
        self.then = Then::Away;
    }

    /// Takes the bus again.
    pub fn come_back(&mut self) {
        self.moved = false;
        self.then = Then::Stay;
        self.messages.clear();
        self.messages.push_back(message::IDENTIFY | self.lun);
        if let Some(tag) = self.tag {
            self.messages.extend([message::SIMPLE_TAG, tag]);
        }
    }
}
