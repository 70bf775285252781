//! Commands that move data: sectors between disk and DMA channel, or the data port (82078 datasheet 5.1 and 6.1).

use super::commands::ABNORMAL;
use super::{Inner, Phase, READY, SECTOR, TO_HOST, WITHOUT_DMA};
use crate::isa_dma::DmaChannel;
use crate::services::{DiskBuffer, DiskDone, DiskError, DiskRequest};
use serde::{Deserialize, Serialize};

/// Second status byte: end of the track, error in the data, no such sector, write-protected, no address mark.
const END_OF_TRACK: u8 = 0x80;
const DATA_ERROR: u8 = 0x20;
const NO_DATA: u8 = 0x04;
const PROTECTED: u8 = 0x02;
const NO_MARK: u8 = 0x01;
/// Third status byte: another track.
const WRONG_TRACK: u8 = 0x10;
/// Sectors have 512 bytes: two to the power of 7 plus this.
const SIZE_CODE: u8 = 2;
/// Bytes of a sector's address in a list for formatting.
const ADDRESS: u64 = 4;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kind {
    Read,
    Write,
    Verify,
    Format,
}

impl Kind {
    /// What a command's operation code asks for.
    pub fn of(code: u8) -> Self {
        match code & 0x1f {
            0x05 | 0x09 => Kind::Write,
            0x16 => Kind::Verify,
            0x0d => Kind::Format,
            _ => Kind::Read,
        }
    }

    fn to_host(self) -> bool {
        matches!(self, Kind::Read | Kind::Verify)
    }
}

/// A command under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Transfer {
    kind: Kind,
    drive: u8,
    dma: bool,
    /// Cylinder, head, sector and size, as the command has them and the result will.
    pub place: [u8; 4],
    /// Last sector of a track.
    last: u8,
    /// It goes on with the other side.
    pub several: bool,
    /// The head that the second byte of the command names.
    pub select_head: u8,
    pub implied_seek: bool,
    filler: u8,
    /// Data on their way; the host, or the channel, is at `at`.
    buffer: Vec<u8>,
    at: usize,
    /// Sectors in the buffer, or with the disk.
    sectors: u8,
    /// The disk has a request.
    waiting: bool,
    /// The channel's count ran out.
    ended: bool,
    /// Sectors of a track that are to be formatted, the next last.
    marks: Vec<u64>,
}

impl Transfer {
    pub fn new(kind: Kind, drive: u8, dma: bool, place: [u8; 4], last: u8) -> Self {
        Self {
            kind,
            drive,
            dma,
            place,
            last,
            several: false,
            select_head: place[1],
            implied_seek: false,
            filler: 0,
            buffer: Vec::new(),
            at: 0,
            sectors: 0,
            waiting: false,
            ended: false,
            marks: Vec::new(),
        }
    }

    pub fn with_filler(mut self, filler: u8) -> Self {
        self.filler = filler;
        self
    }

    /// Bits of the main status register.
    pub fn main_status(&self) -> u8 {
        let direction = if self.kind.to_host() { TO_HOST } else { 0 };
        match (self.dma, self.waiting || self.kind == Kind::Verify) {
            (true, _) => direction,
            (false, true) => WITHOUT_DMA | direction,
            (false, false) => WITHOUT_DMA | direction | READY,
        }
    }

    /// Whether a restored one could be.
    pub fn is_sane(&self) -> bool {
        self.buffer.len() <= 256 * SECTOR as usize && self.at <= self.buffer.len() && self.marks.len() <= 255
    }

    /// After `self.sectors` sectors (datasheet 6.1.1, table of results).
    fn step(&mut self) {
        let [cylinder, head, sector, _] = &mut self.place;
        let next = u16::from(*sector) + u16::from(std::mem::take(&mut self.sectors));
        if next <= u16::from(self.last) {
            *sector = next as u8;
            return;
        }
        *sector = 1;
        if self.several && *head & 1 == 0 {
            *head |= 1;
        } else {
            *cylinder = cylinder.wrapping_add(1);
            *head &= if self.several { 0xfe } else { 0xff };
        }
    }

    /// Sectors from the present one to the end of its track.
    fn left(&self) -> u8 {
        (u16::from(self.last) + 1).saturating_sub(self.place[2].into()).min(255) as u8
    }
}

/// How a command ended: the first three status bytes.
type Failure = [u8; 3];

impl Inner {
    /// Starts a command that moves data.
    pub(super) fn begin(&mut self, dma: &DmaChannel, transfer: Transfer) {
        let drive = usize::from(transfer.drive);
        self.state.last_sectors = transfer.last;
        self.state.transfer = Some(transfer.clone());
        if transfer.implied_seek && transfer.kind != Kind::Format {
            self.move_head(drive, transfer.place[0]);
        }
        match self.check(&transfer) {
            Err(failure) => self.finish(dma, failure),
            Ok(()) => self.advance(dma),
        }
    }

    /// Whether the sectors can be there.
    fn check(&self, t: &Transfer) -> Result<(), Failure> {
        let drive = usize::from(t.drive);
        let format = self.geometry(drive).filter(|g| g.rate == self.state.rate);
        let format = format.ok_or([ABNORMAL, NO_MARK, 0])?;
        let changes = matches!(t.kind, Kind::Write | Kind::Format);
        if changes && self.medium(drive).is_none_or(|disk| disk.read_only()) {
            return Err([ABNORMAL, PROTECTED, 0]);
        }
        let [cylinder, head, sector, size] = t.place;
        let track = self.state.drives.get(drive).map_or(0, |d| d.track);
        if t.kind == Kind::Format {
            let fits = head < format.heads && track < format.cylinders && t.last <= format.sectors;
            return if fits && size == SIZE_CODE { Ok(()) } else { Err([ABNORMAL, NO_MARK, 0]) };
        }
        if cylinder != track {
            return Err([ABNORMAL, NO_DATA, WRONG_TRACK]);
        }
        if head != t.select_head || size != SIZE_CODE || format.sector(cylinder, head, sector).is_none() {
            return Err([ABNORMAL, NO_DATA, 0]);
        }
        Ok(())
    }

    /// Does what can be done now: the disk and the channel are idle.
    pub(super) fn advance(&mut self, dma: &DmaChannel) {
        let Some(t) = self.state.transfer.as_ref().filter(|t| !t.waiting) else { return };
        match (t.kind, t.dma) {
            (Kind::Read | Kind::Verify, _) => self.read_next(dma),
            (Kind::Write, true) => self.write_next(dma),
            (Kind::Format, true) => self.format_list(dma),
            (Kind::Write | Kind::Format, false) => self.make_room(dma),
        }
    }

    /// Sectors from the present one that are on this track, at most to the end of it; the first's number.
    fn run(&self, t: &Transfer, wanted: u64) -> Result<(u64, u8), Failure> {
        let [cylinder, head, sector, _] = t.place;
        let format = self.geometry(t.drive.into()).ok_or([ABNORMAL, NO_MARK, 0])?;
        let first = format.sector(cylinder, head, sector).ok_or([ABNORMAL, NO_DATA, 0])?;
        let on_track = (format.sectors + 1).saturating_sub(sector);
        let count = u64::from(t.left().min(on_track)).min(wanted.div_ceil(SECTOR)).max(1);
        Ok((first, count as u8))
    }

    /// Has sectors read, as many as are wanted of this track.
    fn read_next(&mut self, dma: &DmaChannel) {
        let Some(mut t) = self.state.transfer.clone() else { return };
        let wanted = match (t.kind, t.dma) {
            (Kind::Read, true) => match dma.ready() {
                Some(wanted) => wanted,
                // The channel tells.
                None => return,
            },
            _ => u64::MAX,
        };
        match self.run(&t, wanted) {
            Err(failure) => self.finish(dma, failure),
            Ok((first, count)) => {
                (t.sectors, t.waiting, t.at) = (count, true, 0);
                t.buffer = Vec::new();
                let buffer = DiskBuffer::Own(vec![0; usize::from(count) * SECTOR as usize]);
                self.state.transfer = Some(t);
                self.submit(DiskRequest::Read { offset: first * SECTOR, buffer });
            }
        }
    }

    /// Has sectors written that the channel brings.
    fn write_next(&mut self, dma: &DmaChannel) {
        let Some(mut t) = self.state.transfer.clone() else { return };
        let Some(wanted) = dma.ready() else { return };
        match self.run(&t, wanted) {
            Err(failure) => self.finish(dma, failure),
            Ok((first, count)) => {
                let (mut bytes, ended) = dma.get(u64::from(count) * SECTOR);
                // A sector that the channel leaves unfinished is filled with zeros.
                bytes.resize(usize::from(count) * SECTOR as usize, 0);
                (t.sectors, t.waiting, t.ended, t.at) = (count, true, ended, bytes.len());
                t.buffer = bytes;
                self.state.transfer = Some(t);
                self.write_buffer(first);
            }
        }
    }

    fn write_buffer(&mut self, first: u64) {
        let bytes = self.state.transfer.as_ref().map(|t| t.buffer.clone()).unwrap_or_default();
        self.submit(DiskRequest::Write { offset: first * SECTOR, buffer: DiskBuffer::Own(bytes) });
    }

    /// Room for what the host writes through the data port.
    fn make_room(&mut self, dma: &DmaChannel) {
        let Some(mut t) = self.state.transfer.clone() else { return };
        let len = match t.kind {
            Kind::Format => Ok(u64::from(t.last) * ADDRESS),
            _ => self.run(&t, u64::MAX).map(|(_, count)| {
                t.sectors = count;
                u64::from(count) * SECTOR
            }),
        };
        match len {
            Err(failure) => return self.finish(dma, failure),
            Ok(0) => return self.finish(dma, [ABNORMAL, NO_MARK, 0]),
            Ok(len) => (t.buffer, t.at) = (vec![0; len as usize], 0),
        }
        self.state.transfer = Some(t);
        self.state.interrupt = true;
    }

    /// A byte through the data port to the host.
    pub(super) fn data_in(&mut self, dma: &DmaChannel) -> u8 {
        let Some(t) = self.state.transfer.as_mut() else { return 0 };
        if t.dma || t.waiting || t.kind != Kind::Read {
            return 0;
        }
        let byte = t.buffer.get(t.at).copied().unwrap_or(0);
        t.at += 1;
        if t.at >= t.buffer.len() {
            self.state.interrupt = false;
            self.sectors_done(dma);
        }
        byte
    }

    /// A byte through the data port from the host.
    pub(super) fn data_out(&mut self, dma: &DmaChannel, value: u8) {
        let Some(t) = self.state.transfer.as_mut() else { return };
        if t.dma || t.waiting || t.kind.to_host() {
            return;
        }
        if let Some(byte) = t.buffer.get_mut(t.at) {
            *byte = value;
        }
        t.at += 1;
        if t.at < t.buffer.len() {
            return;
        }
        self.state.interrupt = false;
        let Some(mut t) = self.state.transfer.clone() else { return };
        if t.kind == Kind::Format {
            return self.format(dma, t);
        }
        match self.run(&t, u64::MAX) {
            Err(failure) => self.finish(dma, failure),
            Ok((first, _)) => {
                t.waiting = true;
                self.state.transfer = Some(t);
                self.write_buffer(first);
            }
        }
    }

    /// Takes the addresses of a track that is to be formatted.
    fn format_list(&mut self, dma: &DmaChannel) {
        let Some(mut t) = self.state.transfer.clone() else { return };
        if dma.ready().is_none() {
            return;
        }
        (t.buffer, t.ended) = dma.get(u64::from(t.last) * ADDRESS);
        self.format(dma, t);
    }

    /// Fills the sectors that the list in the buffer names.
    fn format(&mut self, dma: &DmaChannel, mut t: Transfer) {
        let [track, head, ..] = t.place;
        let format = self.geometry(t.drive.into());
        let listed = t.buffer.chunks_exact(ADDRESS as usize).rev();
        t.marks = listed.filter_map(|mark| format?.sector(track, head, *mark.get(2)?)).collect();
        t.buffer = Vec::new();
        t.at = 0;
        self.state.transfer = Some(t);
        self.format_next(dma);
    }

    fn format_next(&mut self, dma: &DmaChannel) {
        let Some(t) = self.state.transfer.as_mut() else { return };
        match t.marks.last() {
            None => self.finish(dma, [0, 0, 0]),
            Some(sector) => {
                let (offset, filler) = (sector * SECTOR, t.filler);
                t.waiting = true;
                self.submit(DiskRequest::Write { offset, buffer: DiskBuffer::Own(vec![filler; SECTOR as usize]) });
            }
        }
    }

    fn submit(&mut self, request: DiskRequest) {
        let drive = self.state.transfer.as_ref().map_or(0, |t| usize::from(t.drive));
        self.state.token = self.state.token.wrapping_add(1);
        self.request = self.medium(drive).cloned().map(|disk| (disk, request));
    }

    /// The medium of a drive was changed: a command that is about it ends.
    pub(super) fn medium_gone(&mut self, drive: usize) {
        let concerned = self.state.transfer.as_ref().is_some_and(|t| usize::from(t.drive) == drive);
        if concerned {
            self.state.token = self.state.token.wrapping_add(1);
            self.end([ABNORMAL, NO_MARK, 0]);
        }
    }

    /// The disk has done its part.
    pub(super) fn completed(&mut self, dma: &DmaChannel, done: DiskDone) {
        let Some(t) = self.state.transfer.as_mut().filter(|t| t.waiting) else { return };
        t.waiting = false;
        if let Err(error) = done.result {
            let second = match error {
                DiskError::ReadOnly => PROTECTED,
                DiskError::OutOfRange => NO_DATA,
                DiskError::Host => DATA_ERROR,
            };
            return self.finish(dma, [ABNORMAL, second, if error == DiskError::Host { DATA_ERROR } else { 0 }]);
        }
        match (t.kind, t.dma) {
            (Kind::Read, true) => {
                t.ended = dma.put(&done.bytes);
                self.sectors_done(dma);
            }
            (Kind::Read, false) => {
                (t.buffer, t.at) = (done.bytes, 0);
                self.state.interrupt = true;
            }
            (Kind::Format, _) => {
                t.marks.pop();
                self.format_next(dma);
            }
            (Kind::Write | Kind::Verify, _) => self.sectors_done(dma),
        }
    }

    /// Sectors are through: ends the command, or goes on.
    fn sectors_done(&mut self, dma: &DmaChannel) {
        let Some(t) = self.state.transfer.as_mut() else { return };
        // The last sector of the last side.
        let over =
            u16::from(t.place[2]) + u16::from(t.sectors) > u16::from(t.last) && !(t.several && t.place[1] & 1 == 0);
        t.step();
        (t.buffer, t.at) = (Vec::new(), 0);
        match (t.ended, over, t.kind) {
            (true, ..) | (_, true, Kind::Verify) => self.finish(dma, [0, 0, 0]),
            // Nobody said that it was enough.
            (false, true, _) => self.finish(dma, [ABNORMAL, END_OF_TRACK, 0]),
            (false, false, _) => self.advance(dma),
        }
    }

    /// Ends the command.
    fn finish(&mut self, dma: &DmaChannel, failure: Failure) {
        dma.withdraw();
        self.end(failure);
    }

    fn end(&mut self, [first, second, third]: Failure) {
        let Some(t) = self.state.transfer.take() else { return };
        let [cylinder, head, sector, size] = t.place;
        let status = first | (t.place[1] & 1) << 2 | t.drive;
        debug_assert_eq!(self.state.phase, Phase::Execution);
        self.result(&[status, second, third, cylinder, head, sector, size]);
        self.state.interrupt = true;
    }

    /// Asks the disk anew for what a restored command waits for.
    pub(super) fn repeat(&mut self) {
        let Some(mut t) = self.state.transfer.clone().filter(|t| t.waiting) else { return };
        let failure = match (t.kind, self.run(&t, u64::from(t.sectors) * SECTOR)) {
            (Kind::Format, _) => match t.marks.last() {
                Some(sector) => {
                    let buffer = DiskBuffer::Own(vec![t.filler; SECTOR as usize]);
                    return self.submit(DiskRequest::Write { offset: sector * SECTOR, buffer });
                }
                None => [ABNORMAL, NO_MARK, 0],
            },
            (_, Err(failure)) => failure,
            (Kind::Write, Ok((first, _))) => return self.write_buffer(first),
            (Kind::Read | Kind::Verify, Ok((first, count))) => {
                t.sectors = count;
                self.state.transfer = Some(t);
                let buffer = DiskBuffer::Own(vec![0; usize::from(count) * SECTOR as usize]);
                return self.submit(DiskRequest::Read { offset: first * SECTOR, buffer });
            }
        };
        self.end(failure);
    }
}
