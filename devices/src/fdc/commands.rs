//! Commands and their results (82078 datasheet, chapters 5 and 6).

use super::transfer::{Kind, Transfer};
use super::{Inner, Phase};
use crate::isa_dma::DmaChannel;
use crate::unimp;
use crate::{trace, trace_event};

/// First status byte: abnormal end, no such command, seek ended.
pub(super) const ABNORMAL: u8 = 0x40;
const INVALID: u8 = 0x80;
const SEEK_END: u8 = 0x20;
/// Third: write-protected, ready, at track 0, two sides.
const PROTECTED: u8 = 0x40;
const DRIVE_READY: u8 = 0x20;
const TRACK_0: u8 = 0x10;
const TWO_SIDES: u8 = 0x08;
/// Enhanced controller.
const VERSION: u8 = 0x90;
/// Part and stepping.
const PART: u8 = 0x41;
/// CONFIGURE: seeks are implied.
const IMPLIED_SEEK: u8 = 0x40;
/// Options in the operation code: several sides.
const SEVERAL: u8 = 0x80;
/// Tracks that the head can be moved over.
const LAST_TRACK: u8 = 85;

/// Commands, by operation code without their options, with their length; `None`: unknown.
fn length(code: u8) -> Option<usize> {
    Some(match code {
        0x08 | 0x0e | 0x10 | 0x14 | 0x94 | 0x18 | 0x2e => 1,
        0x04 | 0x07 | 0x0a | 0x4a | 0x12 | 0x17 | 0x33 | 0x8e => 2,
        0x03 | 0x0f | 0x8f | 0xcf => 3,
        0x13 => 4,
        0x0d | 0x4d => 6,
        0x02 | 0x22 | 0x42 | 0x62 => 9,
        0x05 | 0x45 | 0x85 | 0xc5 | 0x09 | 0x49 | 0x89 | 0xc9 => 9,
        0x4e => 17,
        _ if matches!(code & 0x1f, 0x06 | 0x0c | 0x16) => 9,
        _ => return None,
    })
}

impl Inner {
    /// A byte of a command.
    pub(super) fn command_byte(&mut self, dma: &DmaChannel, value: u8) {
        self.state.bytes.push(value);
        let code = self.state.bytes.first().copied().unwrap_or(0);
        match length(code) {
            None => {
                unimp!("floppy command {code:#04x}");
                self.result(&[INVALID]);
            }
            // Drives are specified one by one, until a byte says that it was the last.
            Some(_) if code == 0x8e => match value {
                _ if self.state.bytes.len() == 1 => {}
                value if value & 0xc0 == 0xc0 => self.result(&[0; 5]),
                value if value & 0x80 != 0 => self.no_result(),
                _ if self.state.bytes.len() > 5 => self.no_result(),
                _ => {}
            },
            Some(length) if self.state.bytes.len() >= length => {
                let bytes = std::mem::take(&mut self.state.bytes);
                self.execute(dma, &bytes);
            }
            Some(_) => {}
        }
    }

    /// The command has these results.
    pub(super) fn result(&mut self, bytes: &[u8]) {
        self.state.phase = Phase::Result;
        self.state.bytes = bytes.iter().rev().copied().collect();
    }

    fn no_result(&mut self) {
        self.state.phase = Phase::Command;
        self.state.bytes.clear();
    }

    fn execute(&mut self, dma: &DmaChannel, bytes: &[u8]) {
        let at = |i: usize| bytes.get(i).copied().unwrap_or(0);
        let (code, drive, head) = (at(0), usize::from(at(1) & 3), at(1) >> 2 & 1);
        trace_event!(trace::FDC_COMMAND, "drive {drive} cmd {code:#04x}");
        let s = &mut self.state;
        match code {
            0x03 => s.timing = [at(1), at(2)],
            0x04 => {
                let status = self.drive_status(drive, head);
                return self.result(&[status]);
            }
            0x07 => self.seek(drive, 0),
            0x0f => self.seek(drive, at(2)),
            0x8f | 0xcf => {
                let track = s.drives.get(drive).map_or(0, |d| d.track);
                let to = if code == 0xcf { track.saturating_add(at(2)) } else { track.saturating_sub(at(2)) };
                self.seek(drive, to);
            }
            0x08 => {
                s.interrupt = false;
                let sensed = s.sensed.pop();
                return match sensed {
                    Some((status, track)) => self.result(&[status, track]),
                    None => self.result(&[INVALID]),
                };
            }
            0x0e => {
                let out = self.registers();
                return self.result(&out);
            }
            0x10 => return self.result(&[VERSION]),
            0x18 => return self.result(&[PART]),
            0x12 => self.perpendicular(at(1)),
            0x13 => s.config = [at(2) & 0x7f, at(3)],
            0x14 | 0x94 => {
                s.locked = code & 0x80 != 0;
                let locked = u8::from(s.locked) << 4;
                return self.result(&[locked]);
            }
            0x17 => return self.result(&[at(1)]),
            0x2e => {
                let out = self.saved();
                return self.result(&out);
            }
            0x4e => self.take_back(bytes),
            0x33 => {}
            _ if code & 0x1f == 0x0a => return self.read_id(drive, head),
            _ => {
                let transfer = self.transfer(code, bytes);
                self.state.phase = Phase::Execution;
                return self.begin(dma, transfer);
            }
        }
        self.no_result();
    }

    /// What a command of nine or six bytes is to do.
    fn transfer(&self, code: u8, bytes: &[u8]) -> Transfer {
        let at = |i: usize| bytes.get(i).copied().unwrap_or(0);
        let (kind, drive) = (Kind::of(code), at(1) & 3);
        let dma = self.state.dma() && kind != Kind::Verify;
        let (head, last) = (at(1) >> 2 & 1, at(6));
        match kind {
            Kind::Format => {
                let track = self.state.drives.get(usize::from(drive)).map_or(0, |d| d.track);
                Transfer::new(kind, drive, dma, [track, head, 1, at(2)], at(3)).with_filler(at(5))
            }
            _ => {
                let mut transfer = Transfer::new(kind, drive, dma, [at(2), at(3), at(4), at(5)], last);
                transfer.several = code & SEVERAL != 0 && code & 0x1f != 0x02;
                transfer.select_head = head;
                transfer.implied_seek = self.state.config[0] & IMPLIED_SEEK != 0;
                // READ TRACK begins with the first sector, whatever its number.
                if code & 0x1f == 0x02 {
                    transfer.place[2] = 1;
                }
                transfer
            }
        }
    }

    /// Moves the head; the end is sensed.
    fn seek(&mut self, drive: usize, track: u8) {
        let (there, track) = (self.bays.get(drive).is_some_and(Option::is_some), track.min(LAST_TRACK));
        self.move_head(drive, track);
        let track = self.state.drives.get(drive).map_or(0, |d| d.track);
        let abnormal = if there { 0 } else { ABNORMAL | 0x10 };
        self.state.sensed = vec![(SEEK_END | abnormal | drive as u8, track)];
        self.state.interrupt = true;
    }

    /// Steps: if there is a medium, the drive has seen that it changed.
    pub(super) fn move_head(&mut self, drive: usize, track: u8) {
        let medium = self.medium(drive).is_some();
        if let Some(state) = self.state.drives.get_mut(drive).filter(|d| d.track != track) {
            state.track = track;
            state.changed &= !medium;
        }
    }

    fn drive_status(&self, drive: usize, head: u8) -> u8 {
        let protected = self.medium(drive).is_some_and(|disk| disk.read_only());
        let at_0 = self.state.drives.get(drive).is_some_and(|d| d.track == 0);
        let flag = |on: bool, bit: u8| if on { bit } else { 0 };
        let there = self.bays.get(drive).is_some_and(Option::is_some);
        flag(protected, PROTECTED)
            | flag(there && at_0, TRACK_0)
            | flag(there, DRIVE_READY | TWO_SIDES)
            | head << 2
            | drive as u8
    }

    /// DUMPREG.
    fn registers(&self) -> [u8; 10] {
        let s = &self.state;
        let [a, b] = s.drives.map(|d| d.track);
        let perpendicular = u8::from(s.locked) << 7 | s.perpendicular;
        [a, b, 0, 0, s.timing[0], s.timing[1], s.last_sectors, perpendicular, s.config[0], s.config[1]]
    }

    /// PERPENDICULAR MODE: with the overwrite bit for each drive by itself.
    fn perpendicular(&mut self, value: u8) {
        let s = &mut self.state;
        if value & 0x80 != 0 {
            for (i, drive) in s.drives.iter_mut().enumerate() {
                drive.perpendicular = value >> (2 + i) & 1 != 0;
            }
        }
        s.perpendicular = value & 0x3f;
    }

    /// SAVE: the registers, and where in them the rate is.
    fn saved(&self) -> [u8; 16] {
        let (dump, s) = (self.registers(), &self.state);
        let mut out = [0; 16];
        (out[3], out[4]) = (s.timing[0], s.timing[1]);
        (out[2], out[5]) = (s.rate, s.last_sectors);
        (out[6], out[7], out[8]) = (dump[7], s.config[0], s.config[1]);
        (out[9], out[10]) = (dump[0], dump[1]);
        out
    }

    /// RESTORE of what SAVE gave.
    fn take_back(&mut self, bytes: &[u8]) {
        let at = |i: usize| bytes.get(i + 1).copied().unwrap_or(0);
        let s = &mut self.state;
        s.timing = [at(3), at(4)];
        (s.rate, s.last_sectors) = (at(2) & 3, at(5));
        (s.locked, s.perpendicular) = (at(6) & 0x80 != 0, at(6) & 0x3f);
        s.config = [at(7) & 0x7f, at(8)];
    }

    /// READ ID: what passes the head.
    fn read_id(&mut self, drive: usize, head: u8) {
        let rate = self.state.rate;
        let format = self.geometry(drive).filter(|g| g.rate == rate && head < g.heads);
        let status = head << 2 | drive as u8;
        let state = self.state.drives.get_mut(drive);
        let found = format.zip(state).filter(|(g, state)| state.track < g.cylinders);
        let out = match found {
            // No address mark is found.
            None => [ABNORMAL | status, 0x01, 0, 0, 0, 0, 0],
            Some((g, state)) => {
                let sector = state.passing.clamp(1, g.sectors);
                state.passing = if sector == g.sectors { 1 } else { sector + 1 };
                [status, 0, 0, state.track, head, sector, 2]
            }
        };
        self.result(&out);
        self.state.interrupt = true;
    }
}
