//! NOR flash of a PC's firmware with Intel's command set (Common Flash Interface, JEDEC JESD68.01; Intel AP-646): one
//! chip of 8 bits with blocks of 4 KiB.
//!
//! The guest executes and reads the flash as memory, which has its content. While the chip shows something else, its
//! status for one, the block that was written to last holds that instead. No guest looks elsewhere then.

use crate::bus::{Device, RegisterBlock};
use crate::services::{Disk, DiskBuffer, DiskClient, DiskDone, DiskRequest};
use crate::state::{Inspector, StateError, StateValue, from_state, to_state};
use crate::wire::locked;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, Weak};

/// Bytes of a block.
pub const BLOCK: usize = 4096;
/// Status register: ready, and failures of erasing and of programming; both mean a wrong sequence.
const READY: u8 = 0x80;
const ERASE_FAILED: u8 = 0x20;
const PROGRAM_FAILED: u8 = 0x10;
/// Confirms a command.
const CONFIRM: u8 = 0xd0;
/// Manufacturer and device.
const IDENTIFIERS: [u8; 2] = [0x89, 0x18];
/// Bytes that one command programs, as a power of two.
const BUFFER_LOG: u8 = 11;

/// Memory in which the guest sees the flash.
pub trait FlashWindow: Send + Sync {
    /// Makes `bytes` what the guest sees from `offset` on.
    fn show(&self, offset: u64, bytes: &[u8]);
}

/// What the chip shows, and what the next write means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Mode {
    /// The content; a command.
    #[default]
    Array,
    /// The status register; a command.
    Status,
    /// Manufacturer and device; a command.
    Identifiers,
    /// The table that describes the chip; a command.
    Query,
    /// The status; the byte to be programmed.
    Program,
    /// The status; confirmation that a block is erased.
    Erase,
    /// The status; what is done to a block's lock.
    Lock,
    /// The status; how many bytes follow.
    Count,
    /// The status; bytes.
    Buffer,
    /// The status; confirmation that they are programmed.
    BufferEnd,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    mode: Mode,
    status: u8,
    /// The content of a chip that can be written.
    content: Vec<u8>,
    /// Bytes of a buffer that still come, and those that came.
    left: u16,
    buffer: Vec<(u64, u8)>,
    /// The block that shows something else than its content.
    covered: Option<u64>,
    /// Blocks that the image does not have yet.
    dirty: BTreeSet<u64>,
}

struct Inner {
    state: State,
    /// What covers the block.
    shown: Option<(u64, Cover)>,
    /// Writes of blocks that are with the disk.
    writing: usize,
    failed: bool,
}

/// What a block shows instead of its content.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cover {
    Status(u8),
    Identifiers,
    Query,
}

/// A flash chip.
///
/// Locks: `inner` is held while the window changes; the disk is asked without it.
pub struct Flash {
    window: Arc<dyn FlashWindow>,
    disk: Arc<dyn Disk>,
    /// The image's content at start.
    original: Vec<u8>,
    this: Weak<Flash>,
    inner: Mutex<Inner>,
}

/// Something to be done by the disk.
type Write = (u64, Vec<u8>);

impl Flash {
    /// A chip with `content`, whole blocks, which `disk` has too; it can be written if the disk can. The guest sees it
    /// through `window`.
    pub fn new(content: Vec<u8>, disk: Arc<dyn Disk>, window: Arc<dyn FlashWindow>) -> Arc<Self> {
        window.show(0, &content);
        let state = State { status: READY, content: content.clone(), ..State::default() };
        let inner = Inner { state, shown: None, writing: 0, failed: false };
        Arc::new_cyclic(|this| Self { window, disk, original: content, this: this.clone(), inner: Mutex::new(inner) })
    }

    /// Changes the state, then has the disk write what it has to.
    fn with(&self, change: impl FnOnce(&mut Inner)) {
        let writes = {
            let mut inner = locked(&self.inner);
            change(&mut inner);
            inner.cover(&*self.window);
            inner.writes()
        };
        for (offset, bytes) in writes {
            let client: Weak<dyn DiskClient> = self.this.clone();
            self.disk.submit(DiskRequest::Write { offset, buffer: DiskBuffer::Own(bytes) }, 0, client);
        }
    }
}

impl Inner {
    /// Makes the guest see what the chip shows.
    fn cover(&mut self, window: &dyn FlashWindow) {
        let block = self.state.covered;
        let wanted = match self.state.mode {
            Mode::Array => None,
            Mode::Identifiers => block.map(|block| (block, Cover::Identifiers)),
            Mode::Query => block.map(|block| (block, Cover::Query)),
            _ => block.map(|block| (block, Cover::Status(self.state.status))),
        };
        if wanted == self.shown {
            return;
        }
        if let Some((old, _)) = self.shown.filter(|(old, _)| wanted.is_none_or(|(new, _)| new != *old)) {
            self.uncover(window, old);
        }
        if let Some((block, cover)) = wanted {
            let page: Vec<u8> = match cover {
                Cover::Status(status) => vec![status; BLOCK],
                Cover::Identifiers => (0..BLOCK).map(|i| IDENTIFIERS.get(i & 0xff).copied().unwrap_or(0)).collect(),
                Cover::Query => query(self.state.content.len()).into_iter().cycle().take(BLOCK).collect(),
            };
            window.show(block * BLOCK as u64, &page);
        }
        self.shown = wanted;
    }

    fn uncover(&self, window: &dyn FlashWindow, block: u64) {
        let start = block as usize * BLOCK;
        window.show(start as u64, self.state.content.get(start..start + BLOCK).unwrap_or(&[]));
    }

    /// Blocks for the disk: once the chip rests, and the disk has what it was given before.
    fn writes(&mut self) -> Vec<Write> {
        if self.state.mode != Mode::Array || self.writing != 0 {
            return Vec::new();
        }
        let content = &self.state.content;
        let dirty = std::mem::take(&mut self.state.dirty);
        let block = |block: u64| {
            let start = block as usize * BLOCK;
            Some((start as u64, content.get(start..start + BLOCK)?.to_vec()))
        };
        let writes: Vec<Write> = dirty.into_iter().filter_map(block).collect();
        self.writing = writes.len();
        writes
    }

    /// A write by the guest.
    fn write(&mut self, offset: u64, value: u8, writable: bool) {
        let s = &mut self.state;
        let block = offset / BLOCK as u64;
        // Within a sequence the block that it began with stays covered.
        if matches!(s.mode, Mode::Array | Mode::Status | Mode::Identifiers | Mode::Query) {
            s.covered = Some(block);
        }
        match s.mode {
            Mode::Array | Mode::Status | Mode::Identifiers | Mode::Query => s.command(value),
            Mode::Program => {
                s.covered = Some(block);
                s.program(&[(offset, value)], writable);
            }
            Mode::Erase => match value {
                CONFIRM => s.erase(block, writable),
                0xff => s.mode = Mode::Array,
                _ => s.wrong(),
            },
            // Blocks are not locked; what would change that is done.
            Mode::Lock => match value {
                CONFIRM | 0x01 | 0x2f => (s.status, s.mode) = (s.status | READY, Mode::Status),
                0xff => s.mode = Mode::Array,
                _ => s.wrong(),
            },
            Mode::Count => {
                s.buffer.clear();
                (s.left, s.mode) = (u16::from(value) + 1, Mode::Buffer);
            }
            Mode::Buffer => {
                s.buffer.push((offset, value));
                s.left = s.left.saturating_sub(1);
                if s.left == 0 {
                    s.mode = Mode::BufferEnd;
                }
            }
            Mode::BufferEnd => {
                let buffer = std::mem::take(&mut s.buffer);
                let within = buffer.iter().all(|(offset, _)| Some(offset / BLOCK as u64) == s.covered);
                match value {
                    CONFIRM if within => s.program(&buffer, writable),
                    _ => s.wrong(),
                }
            }
        }
    }
}

impl State {
    fn command(&mut self, value: u8) {
        self.mode = match value {
            0x10 | 0x40 => Mode::Program,
            0x20 => Mode::Erase,
            0x50 => {
                self.status = 0;
                Mode::Array
            }
            0x60 => Mode::Lock,
            0x70 | CONFIRM | 0xb0 => Mode::Status,
            0x90 => Mode::Identifiers,
            0x98 => Mode::Query,
            0xe8 => {
                self.status |= READY;
                Mode::Count
            }
            _ => Mode::Array,
        };
    }

    fn wrong(&mut self) {
        self.status |= READY | ERASE_FAILED | PROGRAM_FAILED;
        self.mode = Mode::Status;
    }

    fn program(&mut self, bytes: &[(u64, u8)], writable: bool) {
        (self.status, self.mode) = (self.status | READY, Mode::Status);
        if !writable {
            self.status |= PROGRAM_FAILED;
            return;
        }
        for (offset, value) in bytes {
            if let Some(byte) = self.content.get_mut(*offset as usize) {
                *byte = *value;
                self.dirty.insert(offset / BLOCK as u64);
            }
        }
    }

    fn erase(&mut self, block: u64, writable: bool) {
        (self.status, self.mode, self.covered) = (self.status | READY, Mode::Status, Some(block));
        if !writable {
            self.status |= ERASE_FAILED;
            return;
        }
        let start = block as usize * BLOCK;
        if let Some(content) = self.content.get_mut(start..start + BLOCK) {
            content.fill(0xff);
            self.dirty.insert(block);
        }
    }
}

/// The table that describes the chip (JESD68.01 4.3): 256 bytes.
fn query(len: usize) -> Vec<u8> {
    let mut out = vec![0; 256];
    let mut put = |at: usize, bytes: &[u8]| out.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
    put(0x10, b"QRY");
    // Intel's extended command set, whose own table is at 0x31; no other.
    put(0x13, &[1, 0, 0x31, 0]);
    // 4.5 to 5.5 volts; times as powers of two: a byte, a buffer, a block; no more than twice that much.
    put(0x1b, &[0x45, 0x55, 0, 0, 7, 7, 10, 0, 4, 4, 4, 0]);
    put(0x27, &[len.next_power_of_two().trailing_zeros() as u8]);
    // Eight bits; the buffer; one region of blocks.
    put(0x28, &[0, 0, BUFFER_LOG, 0, 1]);
    let blocks = (len / BLOCK).saturating_sub(1) as u16;
    put(0x2d, &blocks.to_le_bytes());
    put(0x2f, &((BLOCK >> 8) as u16).to_le_bytes());
    put(0x31, b"PRI10");
    out
}

impl RegisterBlock for Flash {
    /// Reads come here only where the guest's memory does not have the content.
    fn read(&self, offset: u64, _size: u8) -> u64 {
        let inner = locked(&self.inner);
        let s = &inner.state;
        match s.mode {
            Mode::Array => s.content.get(offset as usize).copied().unwrap_or(0xff).into(),
            Mode::Identifiers => IDENTIFIERS.get(offset as usize & 0xff).copied().unwrap_or(0).into(),
            Mode::Query => query(s.content.len()).get(offset as usize & 0xff).copied().unwrap_or(0).into(),
            _ => s.status.into(),
        }
    }

    fn write(&self, offset: u64, _size: u8, value: u64) {
        let writable = !self.disk.read_only();
        self.with(|inner| inner.write(offset, value as u8, writable));
    }
}

impl DiskClient for Flash {
    fn disk_done(&self, done: DiskDone) {
        self.with(|inner| {
            inner.writing = inner.writing.saturating_sub(1);
            inner.failed |= done.result.is_err();
        });
    }
}

impl Device for Flash {
    fn name(&self) -> &'static str {
        "cfi.pflash01"
    }

    fn reset(&self) {
        self.with(|inner| {
            let (content, dirty) = (std::mem::take(&mut inner.state.content), std::mem::take(&mut inner.state.dirty));
            inner.state = State { status: READY, content, dirty, ..State::default() };
        });
    }

    fn save(&self) -> StateValue {
        let Inner { state, shown: _, writing: _, failed: _ } = &*locked(&self.inner);
        let mut saved = state.clone();
        // What cannot be written is in the image.
        if self.disk.read_only() {
            saved.content = Vec::new();
        }
        to_state(&saved)
    }

    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        let mut new: State = from_state(self.name(), state)?;
        if self.disk.read_only() {
            new.content.clone_from(&self.original);
        }
        let blocks = (self.original.len() / BLOCK) as u64;
        let inside = |block: &u64| *block < blocks;
        let fits = new.content.len() == self.original.len() && new.covered.iter().chain(&new.dirty).all(inside);
        if !fits || new.buffer.len() > 256 {
            let reason = "not the content of this flash".into();
            return Err(StateError::Malformed { device: self.name(), reason });
        }
        self.with(|inner| {
            let old = std::mem::replace(&mut inner.state, new);
            // The image gets what differs.
            for block in 0..blocks {
                let range = block as usize * BLOCK..(block as usize + 1) * BLOCK;
                if old.content.get(range.clone()) != inner.state.content.get(range) {
                    inner.state.dirty.insert(block);
                }
            }
            self.window.show(0, &inner.state.content);
            inner.shown = None;
        });
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        let inner = locked(&self.inner);
        out.field("bytes", inner.state.content.len());
        out.field("writable", !self.disk.read_only());
        out.field("mode", format_args!("{:?}", inner.state.mode));
        out.field("status", format_args!("{:#04x}", inner.state.status));
        if inner.failed {
            out.field("image", "a write failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::{FakeDisk, FakeMemory, FakeTime, fuzz, moves_to};
    use crate::services::Dma;

    struct Window(Arc<FakeMemory>);
    impl FlashWindow for Window {
        fn show(&self, offset: u64, bytes: &[u8]) {
            self.0.write(offset, bytes);
        }
    }

    struct ReadOnly(Arc<FakeDisk>);
    impl Disk for ReadOnly {
        fn len(&self) -> u64 {
            self.0.len()
        }
        fn read_only(&self) -> bool {
            true
        }
        fn write_cache(&self) -> bool {
            false
        }
        fn submit(&self, request: DiskRequest, token: u64, client: Weak<dyn DiskClient>) {
            self.0.submit(request, token, client);
        }
    }

    /// Four blocks; the first byte of each sector is its number.
    fn flash() -> (Arc<Flash>, Arc<FakeMemory>, Arc<FakeDisk>) {
        let memory = FakeMemory::new(4 * BLOCK);
        let disk = FakeDisk::new(32, memory.clone());
        let content = locked(&disk.bytes).clone();
        (Flash::new(content, disk.clone(), Arc::new(Window(memory.clone()))), memory, disk)
    }

    fn at(memory: &FakeMemory, gpa: u64) -> u8 {
        let mut byte = [0];
        memory.read(gpa, &mut byte);
        byte[0]
    }

    #[test]
    fn firmware_detects_it_and_programs_bytes() {
        let (flash, memory, disk) = flash();
        assert_eq!(at(&memory, 0x1200), 9);
        flash.write(0x1200, 1, 0x50);
        assert_eq!(at(&memory, 0x1200), 9);
        flash.write(0x1200, 1, 0x70);
        assert_eq!((at(&memory, 0x1200), at(&memory, 0x2200)), (0, 17), "the status, where it was asked for");
        for (offset, value) in [(0x1200u64, 0xabu64), (0x1201, 0xcd)] {
            flash.write(offset, 1, 0x10);
            flash.write(offset, 1, value);
            assert_eq!(at(&memory, offset), 0x80);
        }
        flash.write(0x1201, 1, 0xff);
        assert_eq!([at(&memory, 0x1200), at(&memory, 0x1201), at(&memory, 0x1202)], [0xab, 0xcd, 9]);
        disk.run();
        assert_eq!(locked(&disk.bytes)[0x1200..0x1203], [0xab, 0xcd, 9]);
        assert_eq!(locked(&disk.log).len(), 1, "one write for the block");
    }

    #[test]
    fn blocks_are_erased_and_buffers_programmed() {
        let (flash, memory, disk) = flash();
        flash.write(0x2010, 1, 0x20);
        flash.write(0x2010, 1, 0xd0);
        assert_eq!(at(&memory, 0x2010), 0x80);
        flash.write(0x2000, 1, 0xe8);
        flash.write(0x2000, 1, 1);
        flash.write(0x2004, 1, 4);
        flash.write(0x2005, 1, 5);
        flash.write(0x2000, 1, 0xd0);
        flash.write(0x2000, 1, 0xff);
        assert_eq!([0x1fff, 0x2000, 0x2004, 0x2005, 0x2fff, 0x3000].map(|a| at(&memory, a)), [15, 255, 4, 5, 255, 24]);
        disk.run();
        assert_eq!(locked(&disk.bytes)[0x2003..0x2006], [255, 4, 5]);
        flash.write(0, 1, 0x20);
        flash.write(0, 1, 0x11);
        assert_eq!(at(&memory, 0), 0xb0, "a wrong sequence");
        flash.write(0, 1, 0x98);
        assert_eq!([0x10, 0x11, 0x12].map(|a| at(&memory, a)), *b"QRY");
        flash.write(0, 1, 0x90);
        assert_eq!([at(&memory, 0), at(&memory, 1)], [0x89, 0x18]);
        flash.reset();
        assert_eq!(at(&memory, 0x2004), 4);
        assert_eq!(at(&memory, 0), 0);
    }

    #[test]
    fn what_is_read_only_stays() {
        let memory = FakeMemory::new(4 * BLOCK);
        let disk = FakeDisk::new(32, memory.clone());
        let content = locked(&disk.bytes).clone();
        let flash = Flash::new(content, Arc::new(ReadOnly(disk.clone())), Arc::new(Window(memory.clone())));
        for (offset, value) in [(5, 0x50), (5, 0x40), (5, 0xee), (5, 0x70)] {
            flash.write(offset, 1, value);
        }
        assert_eq!(at(&memory, 5), 0x90);
        flash.write(5, 1, 0xff);
        assert_eq!(at(&memory, 5), 0);
        assert!(locked(&disk.log).is_empty());
        assert!(flash.save()["content"].as_array().unwrap().is_empty());
        crate::fakes::same_after_restore(&*flash);
    }

    #[test]
    fn state_moves_and_the_image_follows() {
        let (a, ..) = flash();
        a.write(0x10, 1, 0x40);
        a.write(0x10, 1, 0x77);
        let (b, memory, disk) = flash();
        moves_to(&*a, &*b);
        assert_eq!(at(&memory, 0x10), 0x80);
        b.write(0x10, 1, 0xff);
        assert_eq!(at(&memory, 0x10), 0x77);
        disk.run();
        assert_eq!(locked(&disk.bytes)[0x10], 0x77);
        fuzz(&*b, &[(&*b, 4 * BLOCK as u64)], &FakeTime::new(), 83);
    }
}
