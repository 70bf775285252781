//! Firmware configuration device, as QEMU's firmware finds it (QEMU documentation, "QEMU Firmware Configuration
//! (fw_cfg) Device"): numbered items and named files that firmware selects and reads, by port or by DMA.

use crate::bus::{AccessSizes, Device, RegisterBlock};
use crate::guest_error;
use crate::services::Dma;
use crate::state::{Inspector, StateError, StateValue, from_state, to_state};
use crate::wire::locked;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};

/// Ports from 0x510: selector (2), data (1), then the address register of DMA.
pub const PORTS: u32 = 12;
/// Offsets of the registers.
const SELECTOR: u64 = 0;
const DATA: u64 = 1;
const DMA_HIGH: u64 = 4;
const DMA_LOW: u64 = 8;

/// Numbers of items that are not files.
pub mod item {
    /// Something that is handed over in three items: where it belongs (32 bits), its size (32 bits), its bytes.
    #[derive(Clone, Copy, Debug)]
    pub struct Part {
        /// Number of the address.
        pub address: u16,
        /// Number of the size.
        pub size: u16,
        /// Number of the bytes.
        pub data: u16,
    }
    /// A kernel's protected-mode code.
    pub const KERNEL: Part = Part { address: 0x07, size: 0x08, data: 0x11 };
    /// Its initial RAM disk.
    pub const INITRD: Part = Part { address: 0x0a, size: 0x0b, data: 0x12 };
    /// Its command line, with a zero.
    pub const CMDLINE: Part = Part { address: 0x13, size: 0x14, data: 0x15 };
    /// Its real-mode part.
    pub const SETUP: Part = Part { address: 0x16, size: 0x17, data: 0x18 };
    /// Four letters by which firmware knows the device.
    pub const SIGNATURE: u16 = 0x00;
    /// Features, 32 bits.
    pub const ID: u16 = 0x01;
    /// The machine's UUID, 16 bytes.
    pub const UUID: u16 = 0x02;
    /// Bytes of RAM, 64 bits.
    pub const RAM_SIZE: u16 = 0x03;
    /// 1: there is no display, 16 bits.
    pub const NOGRAPHIC: u16 = 0x04;
    /// Processors present, 16 bits.
    pub const PROCESSORS: u16 = 0x05;
    /// NUMA nodes and their memory, 64 bits each.
    pub const NUMA: u16 = 0x0d;
    /// 1: offer the boot menu, 16 bits.
    pub const BOOT_MENU: u16 = 0x0e;
    /// Processors possible, 16 bits.
    pub const MAX_PROCESSORS: u16 = 0x0f;
    /// The list of files.
    pub const FILE_DIRECTORY: u16 = 0x19;
    /// 1: the 8254 is at input 2 of the I/O APIC, 32 bits.
    pub const IRQ0_OVERRIDE: u16 = 0x8002;
}

/// Number of the first file.
const FIRST_FILE: u16 = 0x20;
/// Longest name of a file, without its terminating zero.
const NAME_MAX: usize = 55;
/// Feature bits: selector and data port, and DMA.
const FEATURES: u32 = 0b11;
/// What reading the DMA register gives.
const DMA_SIGNATURE: [u8; 8] = *b"QEMU CFG";
/// Most bytes copied at a time.
const CHUNK: usize = 64 << 10;

/// Control word of a DMA request.
mod control {
    pub const ERROR: u32 = 1 << 0;
    pub const READ: u32 = 1 << 1;
    pub const SKIP: u32 = 1 << 2;
    pub const SELECT: u32 = 1 << 3;
    pub const WRITE: u32 = 1 << 4;
}

/// What firmware can read, put together before the machine runs.
#[derive(Clone, Debug, Default)]
pub struct Items {
    numbered: BTreeMap<u16, Vec<u8>>,
    files: BTreeMap<String, Vec<u8>>,
}

/// A file that cannot be added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ItemError {
    /// The name does not fit into the directory.
    #[error("'{0}' is no name of a firmware file: 1 to 55 ASCII characters are")]
    Name(String),
    /// The name is taken.
    #[error("there is another firmware file called {0}")]
    Twice(String),
    /// Sizes have 32 bits.
    #[error("{0} is too large for a firmware file")]
    Size(String),
}

impl Items {
    /// The items that every machine has.
    pub fn new() -> Self {
        let mut this = Self::default();
        this.set(item::SIGNATURE, b"QEMU");
        this.set(item::ID, &FEATURES.to_le_bytes());
        this
    }

    /// Sets a numbered item.
    pub fn set(&mut self, number: u16, bytes: &[u8]) {
        self.numbered.insert(number, bytes.to_vec());
    }

    /// Adds a file, e.g. `etc/e820`.
    pub fn add_file(&mut self, name: &str, bytes: Vec<u8>) -> Result<(), ItemError> {
        if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(ItemError::Name(name.to_owned()));
        }
        if u32::try_from(bytes.len()).is_err() {
            return Err(ItemError::Size(name.to_owned()));
        }
        if self.files.contains_key(name) {
            return Err(ItemError::Twice(name.to_owned()));
        }
        self.files.insert(name.to_owned(), bytes);
        Ok(())
    }

    /// The directory: files by name, with consecutive numbers.
    fn directory(&self) -> Vec<u8> {
        let mut out = (self.files.len() as u32).to_be_bytes().to_vec();
        for (number, (name, bytes)) in (FIRST_FILE..).zip(&self.files) {
            out.extend((bytes.len() as u32).to_be_bytes());
            out.extend(number.to_be_bytes());
            out.extend([0; 2]);
            let mut field = [0; NAME_MAX + 1];
            field.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
            out.extend(field);
        }
        out
    }

    /// All items by number.
    fn numbered(self) -> BTreeMap<u16, Vec<u8>> {
        let directory = self.directory();
        let mut all = self.numbered;
        all.insert(item::FILE_DIRECTORY, directory);
        all.extend((FIRST_FILE..).zip(self.files.into_values()));
        all
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Position {
    selected: u16,
    offset: u32,
    /// High half of the address of the next DMA request.
    dma_high: u32,
}

/// The device. What there is to read can be replaced while the machine is reset; the state is only the position.
///
/// Locks: `items` and `position` are leaves; guest memory is accessed without them.
pub struct FwCfg {
    items: Mutex<Arc<BTreeMap<u16, Vec<u8>>>>,
    dma: Arc<dyn Dma>,
    position: Mutex<Position>,
    /// Called before the directory's files are read.
    before: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl FwCfg {
    /// A device without items.
    pub fn new(dma: Arc<dyn Dma>) -> Arc<Self> {
        Arc::new(Self { items: Mutex::default(), dma, position: Mutex::default(), before: OnceLock::new() })
    }

    /// Puts `items` in the place of what there was.
    pub fn provide(&self, items: Items) {
        *locked(&self.items) = Arc::new(items.numbered());
    }

    /// Has `before` called when firmware turns to a file: the last chance to [provide](Self::provide) another content. The
    /// first one stays.
    pub fn before_files(&self, before: Box<dyn Fn() + Send + Sync>) {
        // A second one would be a mistake of the machine's.
        let _ = self.before.set(before);
    }

    fn select(&self, number: u16) {
        if let Some(before) = self.before.get().filter(|_| number >= FIRST_FILE) {
            before();
        }
        let mut position = locked(&self.position);
        position.selected = number;
        position.offset = 0;
    }

    /// Moves on by `len` bytes; the item and where they begin.
    fn advance(&self, len: u32) -> (u16, u32) {
        let mut position = locked(&self.position);
        let start = position.offset;
        position.offset = start.saturating_add(len);
        (position.selected, start)
    }

    fn next_byte(&self) -> u8 {
        let (selected, offset) = self.advance(1);
        let items = locked(&self.items);
        items.get(&selected).and_then(|item| item.get(offset as usize)).copied().unwrap_or(0)
    }

    /// Carries out the request at `address`: control, length and address, in network byte order.
    fn transfer(&self, address: u64) {
        let mut request = [0; 16];
        self.dma.read(address, &mut request);
        let [c0, c1, c2, c3, l0, l1, l2, l3, buffer @ ..] = request;
        let (word, len) = (u32::from_be_bytes([c0, c1, c2, c3]), u32::from_be_bytes([l0, l1, l2, l3]));
        if word & control::SELECT != 0 {
            self.select((word >> 16) as u16);
        }
        let mut result = 0;
        if word & control::READ != 0 {
            self.copy_out(u64::from_be_bytes(buffer), len);
        } else if word & control::WRITE != 0 {
            let (selected, _) = self.advance(len);
            guest_error!("fw_cfg: write to item {selected:#x}, which is read-only");
            result = control::ERROR;
        } else if word & control::SKIP != 0 {
            self.advance(len);
        }
        self.dma.write(address, &result.to_be_bytes());
    }

    /// Copies the next `len` bytes of the item to guest memory; beyond its end there are zeros.
    fn copy_out(&self, to: u64, len: u32) {
        let (selected, start) = self.advance(len);
        let items = locked(&self.items).clone();
        let item = items.get(&selected).and_then(|item| item.get(start as usize..)).unwrap_or(&[]);
        let len = len as usize;
        let data = item.get(..len).unwrap_or(item);
        self.dma.write(to, data);
        let zeros = [0; CHUNK];
        let mut done = data.len();
        while done < len {
            let n = CHUNK.min(len - done);
            self.dma.write(to.wrapping_add(done as u64), zeros.get(..n).unwrap_or(&zeros));
            done += n;
        }
    }
}

impl RegisterBlock for FwCfg {
    fn read(&self, offset: u64, size: u8) -> u64 {
        match offset {
            DATA => self.next_byte().into(),
            DMA_HIGH.. => {
                let bytes = DMA_SIGNATURE.iter().skip((offset - DMA_HIGH) as usize).take(size.into());
                bytes.rev().fold(0, |acc, byte| acc << 8 | u64::from(*byte))
            }
            _ => 0,
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        match (offset, size) {
            (SELECTOR, 2) => self.select(value as u16),
            (DMA_HIGH, 4) => locked(&self.position).dma_high = (value as u32).swap_bytes(),
            (DMA_LOW, 4) => {
                let high = std::mem::take(&mut locked(&self.position).dma_high);
                self.transfer(u64::from(high) << 32 | u64::from((value as u32).swap_bytes()));
            }
            _ => guest_error!("fw_cfg: {size}-byte write at offset {offset}"),
        }
    }

    fn sizes(&self) -> AccessSizes {
        AccessSizes::UP_TO_DWORD
    }
}

impl Device for FwCfg {
    fn name(&self) -> &'static str {
        "fw_cfg"
    }

    fn reset(&self) {
        let Self { items: _, dma: _, position, before: _ } = self;
        *locked(position) = Position::default();
    }

    fn save(&self) -> StateValue {
        let Self { items: _, dma: _, position, before: _ } = self;
        to_state(&*locked(position))
    }

    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        let Self { items: _, dma: _, position, before: _ } = self;
        *locked(position) = from_state(self.name(), state)?;
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        let Position { selected, offset, dma_high: _ } = *locked(&self.position);
        out.field("selected", format_args!("{selected:#06x}"));
        out.field("offset", offset);
        out.field("items", locked(&self.items).len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::{FakeMemory, FakeTime, fuzz, moves_to};

    fn device() -> (Arc<FwCfg>, Arc<FakeMemory>) {
        let memory = FakeMemory::new(0x1000);
        let device = FwCfg::new(memory.clone());
        let mut items = Items::new();
        items.set(item::PROCESSORS, &2u16.to_le_bytes());
        items.add_file("etc/b", b"world".to_vec()).unwrap();
        items.add_file("etc/a", b"hello".to_vec()).unwrap();
        device.provide(items);
        (device, memory)
    }

    fn read_item(device: &FwCfg, number: u16, len: usize) -> Vec<u8> {
        device.write(0, 2, number.into());
        (0..len).map(|_| device.read(1, 1) as u8).collect()
    }

    fn request(memory: &FakeMemory, device: &FwCfg, control: u32, len: u32, to: u64) -> u32 {
        let words = [&control.to_be_bytes()[..], &len.to_be_bytes(), &to.to_be_bytes()].concat();
        memory.write(0x100, &words);
        device.write(4, 4, 0);
        device.write(8, 4, u64::from(0x100u32.swap_bytes()));
        let mut result = [0; 4];
        memory.read(0x100, &mut result);
        u32::from_be_bytes(result)
    }

    #[test]
    fn files_may_change_until_they_are_read() {
        let (device, _) = device();
        let weak = Arc::downgrade(&device);
        device.before_files(Box::new(move || {
            let mut items = Items::new();
            items.add_file("etc/a", b"other".to_vec()).expect("a name");
            weak.upgrade().into_iter().for_each(|device| device.provide(items.clone()));
        }));
        assert_eq!(read_item(&device, item::PROCESSORS, 1), [2], "numbered items are none");
        assert_eq!(read_item(&device, FIRST_FILE, 5), b"other");
    }

    #[test]
    fn items_and_the_directory_by_port() {
        let (device, _) = device();
        assert_eq!(read_item(&device, item::SIGNATURE, 4), b"QEMU");
        assert_eq!(read_item(&device, item::PROCESSORS, 4), [2, 0, 0, 0], "zeros beyond the end");
        let directory = read_item(&device, item::FILE_DIRECTORY, 4 + 2 * 64);
        assert_eq!(directory[..4], [0, 0, 0, 2]);
        assert_eq!(directory[4..12], [0, 0, 0, 5, 0, 0x20, 0, 0]);
        assert_eq!(&directory[12..18], b"etc/a\0");
        assert_eq!(read_item(&device, 0x21, 5), b"world");
        assert_eq!(read_item(&device, 0x7777, 2), [0, 0]);
        assert_eq!(device.read(4, 4), u64::from(u32::from_le_bytes(*b"QEMU")));
    }

    #[test]
    fn dma_selects_skips_reads_and_fills_up() {
        let (device, memory) = device();
        memory.write(0x200, &[0xee; 8]);
        assert_eq!(request(&memory, &device, 0x20 << 16 | control::SELECT | control::SKIP, 1, 0), 0);
        assert_eq!(request(&memory, &device, control::READ, 6, 0x200), 0);
        let mut seen = [0; 8];
        memory.read(0x200, &mut seen);
        assert_eq!(&seen, b"ello\0\0\xee\xee");
        assert_eq!(request(&memory, &device, control::WRITE, 1, 0x200), control::ERROR);
        assert_eq!(request(&memory, &device, control::SELECT | 0x21 << 16, 0, 0), 0);
        assert_eq!(device.read(1, 1), u64::from(b'w'));
    }

    #[test]
    fn hostile_requests() {
        let (device, memory) = device();
        assert_eq!(request(&memory, &device, control::READ, u32::MAX >> 8, u64::MAX - 3), 0);
        assert_eq!(request(&memory, &device, control::SKIP, u32::MAX, 0), 0);
        assert_eq!(request(&memory, &device, control::SKIP, u32::MAX, 0), 0);
        assert_eq!(device.read(1, 1), 0);
        device.write(8, 4, u64::from(u32::MAX));
        fuzz(&*device, &[(&*device, 12)], &FakeTime::new(), 3);
    }

    #[test]
    fn names_and_state() {
        let mut items = Items::new();
        assert!(items.add_file("", vec![]).is_err() && items.add_file(&"x".repeat(56), vec![]).is_err());
        items.add_file(&"x".repeat(55), vec![]).unwrap();
        assert_eq!(items.add_file(&"x".repeat(55), vec![]), Err(ItemError::Twice("x".repeat(55))));
        let (a, _) = device();
        a.write(0, 2, 0x20);
        a.read(1, 1);
        let (b, _) = device();
        moves_to(&*a, &*b);
        assert_eq!(b.read(1, 1), u64::from(b'e'));
        a.reset();
        assert_eq!(a.save(), device().0.save());
    }
}
