//! One drive: its registers, what it is doing, and how data goes through its buffer.

use super::{SECTOR, device, error, reason, status};
use crate::scsi::Sense;
use crate::scsi::optical::{self, Optical};
use crate::services::{Disk, DiskBuffer, DiskDone, DiskRequest, GuestRange};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Most bytes that one request moves through the drive's buffer.
pub(super) const CHUNK: u64 = 128 << 10;

/// Most blocks of a list of sectors that are needed no longer, and bytes of an entry.
pub(super) const MAX_TRIM: u64 = 8;
const TRIM_ENTRY: usize = 8;

/// What a drive is made from.
pub struct DriveConfig {
    /// The disk, or the medium of a CD drive at start.
    pub disk: Option<Arc<dyn Disk>>,
    /// A CD drive.
    pub cd: bool,
    /// Serial number, up to 20 characters.
    pub serial: String,
    /// Model, up to 40 characters.
    pub model: String,
    /// Firmware version, up to 8 characters.
    pub version: String,
}

/// What a drive does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) enum Task {
    /// Nothing.
    #[default]
    Idle,
    /// The host takes what is in the buffer, and that is all.
    DataIn,
    /// Sectors go to the host through the buffer. `left` counts those that are not in the buffer yet.
    Read { next: u64, left: u64, block: u64 },
    /// Sectors come from the host through the buffer. `left` counts those that are not written yet.
    Write { next: u64, left: u64, block: u64 },
    /// Sectors between disk and guest memory, once the bus master starts.
    Dma { next: u64, count: u64, write: bool },
    /// The disk makes writes durable.
    Flush,
    /// A list of sectors that are needed no longer comes from guest memory, once the bus master starts: 512-byte blocks.
    Trim { blocks: u64 },
    /// The list is in the buffer, carried out up to `at`.
    Trimming,
    /// The drive waits for the 12 bytes of a packet command.
    Packet { dma: bool },
    /// The answer to a packet command is in the buffer.
    PacketData { limit: u16 },
    /// Blocks of a medium go to the host through the buffer. `left` counts those that are not in the buffer yet.
    PacketRead { next: u64, left: u64, limit: u16 },
    /// Blocks of a medium go to guest memory, once the bus master starts.
    PacketDma { next: u64, count: u64 },
    /// The answer to a packet command goes to guest memory, once the bus master starts.
    PacketDmaData,
}

impl Task {
    /// Whether data go to the host through the buffer.
    pub fn gives(&self) -> bool {
        matches!(self, Task::DataIn | Task::Read { .. } | Task::PacketData { .. } | Task::PacketRead { .. })
    }

    /// Whether the numbers of a restored task are such that arithmetic with them holds.
    pub fn is_sane(&self) -> bool {
        const LIMIT: u64 = 1 << 48;
        match *self {
            Task::Read { next, left, block } | Task::Write { next, left, block } => {
                next < LIMIT && left < LIMIT && (1..=255).contains(&block)
            }
            Task::PacketRead { next, left, .. } => next < LIMIT && left < LIMIT,
            Task::Trim { blocks } => blocks <= MAX_TRIM,
            Task::Dma { next, count, .. } | Task::PacketDma { next, count } => next < LIMIT && count < LIMIT,
            _ => true,
        }
    }
}

/// The registers that commands read and write, with the values they held before (48-bit addresses).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TaskFile {
    pub feature: u8,
    pub count: u8,
    pub low: u8,
    pub mid: u8,
    pub high: u8,
    pub device: u8,
    pub old_feature: u8,
    pub old_count: u8,
    pub old_low: u8,
    pub old_mid: u8,
    pub old_high: u8,
    pub error: u8,
    pub status: u8,
}

/// State of a drive that is saved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DriveState {
    pub regs: TaskFile,
    pub task: Task,
    /// Data on its way. The host is at `at`; the present block ends at `end`.
    pub buffer: Vec<u8>,
    pub at: usize,
    pub end: usize,
    /// A disk request is under way; completions with another token are stale.
    pub waiting: bool,
    pub token: u64,
    /// Sectors a block of READ and WRITE MULTIPLE; 0: not set.
    pub multiple: u8,
    /// Heads and sectors of a track, as the host set them.
    pub heads: u8,
    pub sectors: u8,
    /// The write cache is on.
    pub write_cache: bool,
    /// Transfer mode, as SET FEATURES has it.
    pub mode: u8,
    pub optical: Optical,
}

/// What a drive wants from outside once the locks are dropped.
#[derive(Default)]
pub(super) struct Outcome {
    /// The interrupt is to be raised.
    pub interrupt: bool,
    /// A DMA task has begun: the bus master may have been started already.
    pub dma: bool,
}

impl Outcome {
    pub const NONE: Self = Self { interrupt: false, dma: false };
    pub const INTERRUPT: Self = Self { interrupt: true, dma: false };
    pub const DMA: Self = Self { interrupt: false, dma: true };
}

/// A drive.
pub(super) struct Drive {
    pub disk: Option<Arc<dyn Disk>>,
    pub cd: bool,
    pub serial: String,
    pub model: String,
    pub version: String,
    pub state: DriveState,
    /// A request to be submitted once the locks are dropped.
    pub request: Option<DiskRequest>,
}

impl Drive {
    pub fn new(config: DriveConfig) -> Self {
        let DriveConfig { disk, cd, serial, model, version } = config;
        let mut this = Self { disk, cd, serial, model, version, state: DriveState::default(), request: None };
        this.power_on();
        this
    }

    /// As after power-on.
    pub fn power_on(&mut self) {
        let token = self.state.token.wrapping_add(1);
        let write_cache = self.disk.as_ref().is_some_and(|disk| disk.write_cache());
        let optical = Optical::power_on(self.disk.is_some());
        self.state = DriveState { token, write_cache, heads: 16, sectors: 63, optical, ..DriveState::default() };
        self.sign();
    }

    /// Ends what the drive does, and leaves in the registers what tells its kind (ATA/ATAPI-7 volume 1, 5.15).
    pub fn sign(&mut self) {
        self.forget();
        let (mid, high) = if self.cd { (0x14, 0xeb) } else { (0, 0) };
        let status = if self.cd { 0 } else { status::IDLE };
        self.state.regs = TaskFile { count: 1, low: 1, mid, high, error: error::PASSED, status, ..TaskFile::default() };
    }

    /// Drops the present task; what the disk still says about it is stale.
    pub fn forget(&mut self) {
        let s = &mut self.state;
        (s.task, s.waiting, s.token) = (Task::Idle, false, s.token.wrapping_add(1));
        (s.buffer, s.at, s.end) = (Vec::new(), 0, 0);
        self.request = None;
    }

    /// Sectors of the disk.
    pub fn sectors(&self) -> u64 {
        self.disk.as_ref().map_or(0, |disk| disk.len() / SECTOR)
    }

    /// The command ends well.
    pub fn done(&mut self) -> Outcome {
        self.forget();
        self.state.regs.status = status::IDLE;
        self.state.regs.error = 0;
        Outcome::INTERRUPT
    }

    /// The command ends with these error bits.
    pub fn fail(&mut self, bits: u8) -> Outcome {
        self.forget();
        self.state.regs.status = status::IDLE | status::ERR;
        self.state.regs.error = bits;
        Outcome::INTERRUPT
    }

    /// Gives `bytes` to the host in one block.
    pub fn offer(&mut self, bytes: Vec<u8>) -> Outcome {
        let s = &mut self.state;
        (s.task, s.at, s.end) = (Task::DataIn, 0, bytes.len());
        s.buffer = bytes;
        s.regs.status = status::IDLE | status::DRQ;
        s.regs.error = 0;
        Outcome::INTERRUPT
    }

    /// Starts a disk request.
    pub fn submit(&mut self, request: DiskRequest) -> Outcome {
        self.state.waiting = true;
        self.state.token = self.state.token.wrapping_add(1);
        self.state.regs.status = status::DRDY | status::BSY;
        self.request = Some(request);
        Outcome::NONE
    }

    /// The request that the present task waits for, as it was submitted: for a restored state.
    pub fn repeat(&mut self) {
        if !self.state.waiting {
            return;
        }
        let own = |len: u64| DiskBuffer::Own(vec![0; len as usize]);
        let request = match self.state.task {
            Task::Read { next, left, .. } => {
                let len = (left * SECTOR).min(CHUNK);
                Some(DiskRequest::Read { offset: next * SECTOR, buffer: own(len) })
            }
            Task::Write { next, .. } => {
                Some(DiskRequest::Write { offset: next * SECTOR, buffer: DiskBuffer::Own(self.state.buffer.clone()) })
            }
            Task::PacketRead { next, left, .. } => Some(self.packet_request(next, left)),
            Task::Flush => Some(DiskRequest::Flush),
            Task::Trimming => self.trimmed(self.state.at.saturating_sub(TRIM_ENTRY)),
            // The bus master finds its list again.
            _ => None,
        };
        match request {
            Some(request) => self.request = Some(request),
            None => self.state.waiting = false,
        }
    }

    /// A read of the data register that does not end a block.
    pub fn within_block(&mut self, size: u8) -> Option<u32> {
        let s = &mut self.state;
        let next = s.at + usize::from(size);
        if next >= s.end || s.regs.status & status::DRQ == 0 || !s.task.gives() {
            return None;
        }
        let bytes = s.buffer.get(s.at..next)?;
        s.at = next;
        Some(bytes.iter().rev().fold(0, |acc, byte| acc << 8 | u32::from(*byte)))
    }

    /// Reads of the data register.
    pub fn data_in(&mut self, size: u8) -> (u32, Outcome) {
        let s = &mut self.state;
        if !s.task.gives() || s.regs.status & status::DRQ == 0 {
            return (u32::MAX, Outcome::NONE);
        }
        let rest = s.buffer.get(s.at..s.end).unwrap_or(&[]);
        let value = rest.iter().take(size.into()).rev().fold(0, |acc, byte| acc << 8 | u32::from(*byte));
        s.at = s.at.saturating_add(size.into()).min(s.end);
        let outcome = if s.at == s.end { self.block_taken() } else { Outcome::NONE };
        (value, outcome)
    }

    /// Writes of the data register.
    pub fn data_out(&mut self, size: u8, value: u32) -> Outcome {
        let s = &mut self.state;
        if !matches!(s.task, Task::Write { .. } | Task::Packet { .. }) || s.regs.status & status::DRQ == 0 {
            return Outcome::NONE;
        }
        let end = s.end;
        let room = s.buffer.get_mut(s.at..end).unwrap_or(&mut []);
        room.iter_mut().zip(value.to_le_bytes()).take(size.into()).for_each(|(to, from)| *to = from);
        s.at = s.at.saturating_add(size.into()).min(end);
        if s.at == end { self.block_given() } else { Outcome::NONE }
    }

    /// The host took the last byte of a block.
    fn block_taken(&mut self) -> Outcome {
        let more = self.state.at < self.state.buffer.len();
        match self.state.task {
            Task::Read { block, .. } if more => self.next_block(block),
            Task::Read { next, left, .. } if left > 0 => self.fetch(next, left),
            Task::PacketData { limit } | Task::PacketRead { limit, .. } if more => self.packet_block(limit),
            Task::PacketRead { next, left, .. } if left > 0 => {
                let request = self.packet_request(next, left);
                self.submit(request)
            }
            Task::PacketData { .. } | Task::PacketRead { .. } => self.packet_done(),
            _ => {
                // The end of data to the host is no event of its own.
                self.done();
                Outcome::NONE
            }
        }
    }

    /// The host gave the last byte of a block.
    fn block_given(&mut self) -> Outcome {
        match self.state.task {
            Task::Packet { dma } => self.packet(dma),
            Task::Write { block, .. } if self.state.at < self.state.buffer.len() => self.next_block(block),
            Task::Write { next, .. } => {
                let buffer = DiskBuffer::Own(self.state.buffer.clone());
                self.submit(DiskRequest::Write { offset: next * SECTOR, buffer })
            }
            _ => Outcome::NONE,
        }
    }

    /// The next block of what is in the buffer.
    pub fn next_block(&mut self, block: u64) -> Outcome {
        let s = &mut self.state;
        s.end = s.at.saturating_add((block * SECTOR) as usize).min(s.buffer.len());
        s.regs.status = status::IDLE | status::DRQ;
        Outcome::INTERRUPT
    }

    /// Gets the next sectors into the buffer.
    pub fn fetch(&mut self, next: u64, left: u64) -> Outcome {
        let len = (left * SECTOR).min(CHUNK);
        self.submit(DiskRequest::Read { offset: next * SECTOR, buffer: DiskBuffer::Own(vec![0; len as usize]) })
    }

    /// What the DMA task moves: bytes, and whether they go to the disk.
    pub fn dma_wanted(&self) -> Option<(u64, bool)> {
        match self.state.task {
            _ if self.state.waiting => None,
            Task::Dma { count, write, .. } => Some((count * SECTOR, write)),
            Task::PacketDma { count, .. } => Some((count * optical::BLOCK, false)),
            Task::Trim { blocks } => Some((blocks * SECTOR, true)),
            Task::PacketDmaData => Some((self.state.buffer.len() as u64, false)),
            _ => None,
        }
    }

    /// Starts the DMA task over `ranges` of guest memory.
    pub fn start_dma(&mut self, ranges: Vec<GuestRange>) {
        let buffer = DiskBuffer::Guest(ranges);
        match self.state.task {
            Task::Dma { next, write: false, .. } => {
                self.submit(DiskRequest::Read { offset: next * SECTOR, buffer });
            }
            Task::Dma { next, write: true, .. } => {
                self.submit(DiskRequest::Write { offset: next * SECTOR, buffer });
            }
            Task::PacketDma { next, .. } => {
                self.submit(DiskRequest::Read { offset: next * optical::BLOCK, buffer });
            }
            _ => {}
        }
    }

    /// Carries a list of sectors out that are needed no longer (ATA8-ACS 7.10.3.1): 48 bits of address, 16 of length.
    pub fn trim(&mut self, list: Vec<u8>) -> Outcome {
        (self.state.task, self.state.at, self.state.end) = (Task::Trimming, 0, list.len());
        self.state.buffer = list;
        self.next_trim()
    }

    /// What the entry at `at` of the list says; `None` if it names no sectors, or those that do not exist.
    fn trimmed(&self, at: usize) -> Option<DiskRequest> {
        let entry = self.state.buffer.get(at..at.checked_add(TRIM_ENTRY)?)?;
        let entry = u64::from_le_bytes(entry.try_into().ok()?);
        let (first, count) = (entry & 0xffff_ffff_ffff, entry >> 48);
        let there = count != 0 && first + count <= self.sectors();
        there.then(|| DiskRequest::Discard { offset: first * SECTOR, len: count * SECTOR })
    }

    fn next_trim(&mut self) -> Outcome {
        while self.state.at + TRIM_ENTRY <= self.state.end {
            let request = self.trimmed(self.state.at);
            self.state.at += TRIM_ENTRY;
            if let Some(request) = request {
                return self.submit(request);
            }
        }
        self.done()
    }

    /// Another medium is in the drive, or none. What reads the old one ends.
    pub fn change_medium(&mut self, medium: Option<Arc<dyn Disk>>) -> Outcome {
        match medium {
            Some(_) => self.state.optical.medium_changed(true),
            None => self.state.optical.medium_taken(),
        }
        self.disk = medium;
        match self.state.task {
            Task::PacketRead { .. } | Task::PacketDma { .. } => self.packet_failed(Sense::NO_MEDIUM),
            _ => Outcome::NONE,
        }
    }

    /// A disk request ended. `true` with it: the bus master's part is over.
    pub fn completed(&mut self, done: DiskDone) -> (Outcome, bool) {
        if !self.state.waiting || done.token != self.state.token {
            return (Outcome::NONE, false);
        }
        self.state.waiting = false;
        let dma = matches!(self.state.task, Task::Dma { .. } | Task::PacketDma { .. });
        let outcome = match done.result {
            Ok(()) => self.carried_out(done.bytes),
            Err(_) => self.refused(),
        };
        (outcome, dma)
    }

    fn carried_out(&mut self, bytes: Vec<u8>) -> Outcome {
        let fetched = bytes.len() as u64;
        match &mut self.state.task {
            Task::Read { next, left, block } => {
                let (sectors, block) = (fetched / SECTOR, *block);
                (*next, *left) = (next.saturating_add(sectors), left.saturating_sub(sectors));
                (self.state.buffer, self.state.at) = (bytes, 0);
                self.next_block(block)
            }
            Task::Write { next, left, .. } => {
                let sectors = self.state.buffer.len() as u64 / SECTOR;
                (*next, *left) = (next.saturating_add(sectors), left.saturating_sub(sectors));
                match *left {
                    0 => self.done(),
                    _ => self.collect(true),
                }
            }
            Task::PacketRead { next, left, limit } => {
                let (blocks, limit) = (fetched / optical::BLOCK, *limit);
                (*next, *left) = (next.saturating_add(blocks), left.saturating_sub(blocks));
                (self.state.buffer, self.state.at) = (bytes, 0);
                self.packet_block(limit)
            }
            Task::PacketDma { .. } => self.packet_done(),
            Task::Trimming => self.next_trim(),
            _ => self.done(),
        }
    }

    /// The disk failed the request of the present task.
    fn refused(&mut self) -> Outcome {
        match self.state.task {
            Task::PacketRead { .. } | Task::PacketDma { .. } => self.packet_failed(Sense::UNREADABLE),
            Task::Read { next, .. } | Task::Dma { next, write: false, .. } => {
                self.set_address(next);
                self.fail(error::UNC)
            }
            Task::Write { next, .. } | Task::Dma { next, write: true, .. } => {
                self.set_address(next);
                let outcome = self.fail(error::ABRT);
                self.state.regs.status |= status::DF;
                outcome
            }
            _ => {
                let outcome = self.fail(error::ABRT);
                self.state.regs.status |= status::DF;
                outcome
            }
        }
    }

    /// Makes room for the next sectors from the host. The first block of a command comes without an interrupt.
    pub fn collect(&mut self, interrupt: bool) -> Outcome {
        let Task::Write { left, block, .. } = self.state.task else { return Outcome::NONE };
        let len = (left * SECTOR).min(CHUNK);
        (self.state.buffer, self.state.at) = (vec![0; len as usize], 0);
        self.next_block(block);
        Outcome { interrupt, dma: false }
    }

    /// Tells the host the sector at which a command ended.
    fn set_address(&mut self, sector: u64) {
        let r = &mut self.state.regs;
        let [low, mid, high, fourth, fifth, sixth, ..] = sector.to_le_bytes();
        (r.low, r.mid, r.high) = (low, mid, high);
        (r.old_low, r.old_mid, r.old_high) = (fourth, fifth, sixth);
        if r.device & device::LBA != 0 && sector >> 28 == 0 {
            r.device = r.device & 0xf0 | fourth & 0x0f;
        }
    }

    /// Marks the end of a packet command in the interrupt reason.
    pub fn packet_reason(&mut self) {
        self.state.regs.count = reason::IO | reason::COD;
    }
}
