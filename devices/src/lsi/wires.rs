//! The SCSI bus at the chip: which target has it, what that wants of the initiator next, and which others come back later
//! (SCSI-2 clauses 6 and 7: phases, messages).
//!
//! A target gives the bus back while its disk works, if the initiator's IDENTIFY allows it. Data go through buffers of
//! bounded size; a command that moves more keeps the bus in between.

use super::nexus::{Nexus, Stage, Then};
use crate::scsi::steps::Next;
use crate::scsi::{Sense, Unit};
use crate::services::{Disk, DiskDone, DiskRequest};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Commands that are away from the bus. More are told that there is no room.
const MOST_AWAY: usize = 256;
/// Bytes of a command that are looked at.
const LONGEST_COMMAND: usize = 16;

/// Information transfer phases, as the lines MSG, C/D and I/O have them (6.1.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    DataOut = 0,
    DataIn = 1,
    Command = 2,
    Status = 3,
    MessageOut = 6,
    MessageIn = 7,
}

/// Messages (SCSI-2 table 10, SPI-3 table 51).
pub(super) mod message {
    pub const COMPLETE: u8 = 0x00;
    pub const EXTENDED: u8 = 0x01;
    pub const SAVE_POINTERS: u8 = 0x02;
    pub const DISCONNECT: u8 = 0x04;
    pub const ABORT: u8 = 0x06;
    pub const REJECT: u8 = 0x07;
    pub const TARGET_RESET: u8 = 0x0c;
    pub const ABORT_TAG: u8 = 0x0d;
    pub const CLEAR_QUEUE: u8 = 0x0e;
    pub const UNIT_RESET: u8 = 0x17;
    pub const SIMPLE_TAG: u8 = 0x20;
    pub const ORDERED_TAG: u8 = 0x22;
    pub const IGNORE_RESIDUE: u8 = 0x23;
    pub const IDENTIFY: u8 = 0x80;
    /// In IDENTIFY: the target may give the bus back.
    pub const MAY_DISCONNECT: u8 = 0x40;
    pub const LUN: u8 = 0x3f;
}

/// Where a unit is: target and logical unit number.
pub type Place = (u8, u8);

/// What there is to be saved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Traffic {
    /// The command whose target has the bus.
    pub current: Option<Nexus>,
    /// Those that gave it back.
    pub away: Vec<Nexus>,
    /// ATN: the initiator has a message.
    pub attention: bool,
    /// The target takes it.
    message_out: bool,
    /// ACK of the last byte of a message is still there: the target waits.
    held: bool,
    /// The next disk request's number.
    next: u64,
}

/// A request for a disk, and its number.
pub type Order = (Arc<dyn Disk>, DiskRequest, u64);

/// The bus with its targets.
#[derive(Default)]
pub struct Wires {
    pub units: BTreeMap<Place, Unit>,
    pub traffic: Traffic,
    /// What disks are to do.
    pub orders: Vec<Order>,
}

impl Wires {
    /// Whether some target has the bus.
    pub fn connected(&self) -> bool {
        self.traffic.current.is_some()
    }

    /// The phase that the lines show, and whether the target is ready for a byte. `None`: the bus is free.
    pub fn phase(&self) -> Option<(Phase, bool)> {
        let t = &self.traffic;
        let nexus = t.current.as_ref()?;
        Some(match nexus.stage {
            _ if t.message_out => (Phase::MessageOut, true),
            _ if !nexus.messages.is_empty() => (Phase::MessageIn, true),
            _ if t.held => (Phase::MessageIn, false),
            Stage::Command => (Phase::Command, true),
            Stage::DataIn => (Phase::DataIn, true),
            Stage::DataOut { .. } => (Phase::DataOut, true),
            Stage::Disk => (nexus.phase_after_disk(), false),
            Stage::Status | Stage::Over => (Phase::Status, true),
        })
    }

    /// ACK of a message is still there.
    pub fn held(&self) -> bool {
        self.traffic.held
    }

    /// Selects a target. It begins with messages: without ATN some initiators send one all the same, others go on with
    /// the command. `false`: nobody answers.
    pub fn select(&mut self, target: u8, attention: bool) -> bool {
        let there = self.units.range((target, 0)..=(target, u8::MAX)).next().is_some();
        if there {
            let t = &mut self.traffic;
            (t.current, t.attention, t.message_out, t.held) = (Some(Nexus::new(target)), attention, true, false);
        }
        there
    }

    /// The first target that wants the bus back gets it, if it is free; who that is.
    pub fn reselect(&mut self) -> Option<u8> {
        let t = &mut self.traffic;
        if t.current.is_some() {
            return None;
        }
        let index = t.away.iter().position(|nexus| nexus.stage != Stage::Disk)?;
        let mut nexus = t.away.remove(index);
        nexus.come_back();
        let target = nexus.target;
        (t.current, t.attention, t.message_out, t.held) = (Some(nexus), false, false, false);
        Some(target)
    }

    /// The initiator takes ACK back: the target goes on.
    pub fn release(&mut self) {
        let t = &mut self.traffic;
        let held = std::mem::take(&mut t.held);
        let Some(nexus) = &mut t.current else { return };
        if t.attention {
            t.message_out = true;
            return;
        }
        if !held || !nexus.messages.is_empty() {
            return;
        }
        match std::mem::replace(&mut nexus.then, Then::Stay) {
            Then::Stay => {}
            Then::Over => t.current = None,
            Then::Away => t.away.extend(t.current.take()),
        }
    }

    /// What an initiator does that expects the next phase, or the end of the connection: it has taken ACK back.
    pub fn settle(&mut self) {
        let through = self.traffic.current.as_ref().is_some_and(|nexus| nexus.messages.is_empty());
        if self.traffic.held && through {
            self.release();
        }
    }

    /// The initiator has left: what had the bus is gone.
    pub fn abandon(&mut self) {
        self.traffic.current = None;
    }

    /// Everything under way is gone.
    pub fn forget(&mut self) {
        self.traffic = Traffic { next: self.traffic.next, ..Traffic::default() };
    }

    /// RST: the same, and all units are as after power-on.
    pub fn reset(&mut self) {
        self.forget();
        for unit in self.units.values_mut() {
            unit.reset();
            unit.attend(Sense::POWERED_ON);
        }
    }

    /// Whether a target that was selected just now would also take a command.
    pub fn takes_command(&self) -> bool {
        let t = &self.traffic;
        t.message_out && !t.attention && t.current.as_ref().is_some_and(|nexus| nexus.stage == Stage::Command)
    }

    /// All of a message phase.
    pub fn message_out(&mut self, bytes: &[u8]) {
        (self.traffic.attention, self.traffic.message_out) = (false, false);
        let mut bytes = bytes.iter().copied();
        while let Some(byte) = bytes.next() {
            let Some(nexus) = &mut self.traffic.current else { return };
            match byte {
                message::IDENTIFY.. => nexus.identify(byte),
                message::SIMPLE_TAG..=message::ORDERED_TAG => nexus.tag = bytes.next(),
                message::IGNORE_RESIDUE => drop(bytes.next()),
                // Transfers stay asynchronous and narrow (SCSI-2 6.6.21: who rejects agrees to that).
                message::EXTENDED => {
                    let len = bytes.next().map_or(0, usize::from);
                    bytes.by_ref().take(if len == 0 { 256 } else { len }).for_each(drop);
                    nexus.messages.push_back(message::REJECT);
                }
                _ => self.manage(byte),
            }
        }
    }

    /// Messages that end commands; the bus is free after them.
    fn manage(&mut self, byte: u8) {
        let Some(Nexus { target, lun, tag, .. }) = self.traffic.current.clone() else { return };
        let one = |nexus: &Nexus| nexus.target == target && nexus.lun == lun;
        let concerned = |nexus: &Nexus| match byte {
            message::ABORT_TAG => one(nexus) && nexus.tag == tag,
            message::TARGET_RESET => nexus.target == target,
            _ => one(nexus),
        };
        match byte {
            message::ABORT | message::CLEAR_QUEUE | message::ABORT_TAG => {}
            message::TARGET_RESET | message::UNIT_RESET => {
                let all = self.units.range_mut((target, 0)..=(target, u8::MAX));
                all.filter(|((_, l), _)| byte == message::TARGET_RESET || *l == lun).for_each(|(_, unit)| {
                    unit.reset();
                    unit.attend(Sense::POWERED_ON);
                });
            }
            // No operation, and what tells the target of something that it need not know.
            _ => return,
        }
        self.traffic.away.retain(|nexus| !concerned(nexus));
        self.traffic.current = None;
    }

    /// All of a command phase.
    pub fn command(&mut self, bytes: &[u8]) {
        let t = &mut self.traffic;
        t.message_out = false;
        let Some(mut nexus) = t.current.take() else { return };
        nexus.cdb = bytes.iter().copied().take(LONGEST_COMMAND).collect();
        // Two commands cannot have one name; the older one is given up.
        t.away.retain(|other| (other.target, other.lun, other.tag) != (nexus.target, nexus.lun, nexus.tag));
        match t.away.len() >= MOST_AWAY {
            true => nexus.refuse(),
            false => nexus.begin(&mut self.units),
        }
        self.go_on(nexus, true);
    }

    /// Has the disk do what the command needs next. `here`: it has the bus.
    fn go_on(&mut self, mut nexus: Nexus, here: bool) {
        if nexus.stage == Stage::Disk && nexus.request.is_none() {
            let disk = self.units.get(&(nexus.target, nexus.lun)).and_then(|unit| unit.medium().cloned());
            match (disk, nexus.disk_request()) {
                (Some(disk), Some(request)) => {
                    let number = self.traffic.next;
                    self.traffic.next = number.wrapping_add(1);
                    nexus.request = Some(number);
                    self.orders.push((disk, request, number));
                    if here {
                        nexus.leave();
                    }
                }
                _ => nexus.fail(Sense::NO_MEDIUM, &mut self.units),
            }
        }
        match here {
            true => self.traffic.current = Some(nexus),
            false => self.traffic.away.push(nexus),
        }
        if here && self.traffic.attention {
            self.traffic.message_out = true;
        }
    }

    /// How many bytes the target takes now.
    pub fn room(&self) -> usize {
        self.traffic.current.as_ref().map_or(0, Nexus::room)
    }

    /// Data for the target, no more than it takes.
    pub fn data_out(&mut self, bytes: &[u8]) {
        if let Some(mut nexus) = self.traffic.current.take() {
            nexus.take(bytes, &mut self.units);
            self.go_on(nexus, true);
        }
    }

    /// Data of the target, up to `most` bytes.
    pub fn data_in(&mut self, most: usize) -> Vec<u8> {
        let Some(mut nexus) = self.traffic.current.take() else { return Vec::new() };
        let bytes = nexus.give(most);
        self.go_on(nexus, true);
        bytes
    }

    /// The status byte.
    pub fn status_in(&mut self) -> u8 {
        let status = self.traffic.current.as_mut().map_or(0xff, Nexus::give_status);
        self.traffic.message_out |= self.traffic.attention;
        status
    }

    /// Bytes of messages, up to `most`.
    pub fn message_in(&mut self, most: usize) -> Vec<u8> {
        let Some(nexus) = &mut self.traffic.current else { return Vec::new() };
        let count = most.min(nexus.messages.len());
        self.traffic.held = true;
        nexus.messages.drain(..count).collect()
    }

    /// A disk has done its part. `false`: nobody waits for it any more.
    pub fn disk_done(&mut self, done: &DiskDone) -> bool {
        let waits = |nexus: &Nexus| nexus.request == Some(done.token);
        let here = self.traffic.current.as_ref().is_some_and(waits);
        let found = match here {
            true => self.traffic.current.take(),
            false => self.traffic.away.iter().position(waits).map(|index| self.traffic.away.remove(index)),
        };
        let Some(mut nexus) = found else { return false };
        match nexus.disk_done(done) {
            Next::Failed(sense) => nexus.fail(sense, &mut self.units),
            Next::Again | Next::Over => {}
        }
        self.go_on(nexus, here);
        true
    }

    /// After a state was restored: what disks were doing begins anew.
    pub fn resume(&mut self) {
        let all = self.traffic.current.iter_mut().chain(&mut self.traffic.away);
        for nexus in all.filter(|nexus| nexus.stage == Stage::Disk) {
            let disk = self.units.get(&(nexus.target, nexus.lun)).and_then(|unit| unit.medium().cloned());
            match (disk, nexus.disk_request(), nexus.request) {
                (Some(disk), Some(request), Some(number)) => self.orders.push((disk, request, number)),
                _ => nexus.lost(),
            }
        }
    }
}
