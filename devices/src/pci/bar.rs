//! Ranges that move as the guest programs them: base address registers (PCI 3.0 6.2.5) and chipset windows.

use super::config::{ConfigSpace, command, reg};
use crate::bus::{AccessSizes, Bus, RegisterBlock, Registers, Space};
use crate::guest_error;
use crate::wire::locked;
use std::sync::{Arc, Mutex, Weak};

/// A range of registers that is on the bus at a changing address, or not at all.
pub struct Window {
    bus: Weak<Bus>,
    space: Space,
    len: u64,
    name: String,
    registers: Registers,
    /// Where it is on the bus. Held while the bus map changes, which orders changes; taken before the device's lock.
    mapped: Mutex<Option<u64>>,
}

impl Window {
    /// A window of `len` bytes that is nowhere yet.
    pub fn new(bus: &Arc<Bus>, space: Space, len: u64, name: &str, registers: Registers) -> Self {
        Self { bus: Arc::downgrade(bus), space, len, name: name.into(), registers, mapped: Mutex::new(None) }
    }

    /// Moves the window to where `wanted` says. Call it without the device's lock; `wanted` may take it.
    pub fn sync(&self, wanted: impl FnOnce() -> Option<u64>) {
        let mut mapped = locked(&self.mapped);
        let wanted = wanted();
        let Some(bus) = self.bus.upgrade().filter(|_| *mapped != wanted) else { return };
        if let Some(base) = mapped.take() {
            // It was registered here and nobody else unregisters it.
            let _ = bus.unregister(self.space, base);
        }
        let Some(base) = wanted else { return };
        match bus.register(self.space, base, self.len, &self.name, self.registers.clone()) {
            Ok(()) => *mapped = Some(base),
            Err(error) => guest_error!("{}: not mapped: {error}", self.name),
        }
    }

    /// Where the window is on the bus.
    pub fn base(&self) -> Option<u64> {
        *locked(&self.mapped)
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.sync(|| None);
    }
}

/// What a base address register maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports, at most 256.
    Io,
    /// Memory below 4 GiB.
    Memory32 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
    /// Memory anywhere; takes two registers.
    Memory64 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
    /// The expansion ROM (6.2.5.2): memory below 4 GiB that has its own enable bit.
    Rom,
}

/// The number of the expansion ROM's register.
pub const ROM_INDEX: u8 = 6;
/// Largest expansion ROM: 24 bits of its register size it.
const LARGEST_ROM: u64 = 16 << 20;
/// The register's lowest bit: the ROM is to be seen.
const ROM_ENABLE: u32 = 1;

/// The code of an expansion ROM.
pub struct Rom {
    bytes: Vec<u8>,
}

impl Rom {
    /// A ROM with `image` at its start; the rest, up to a power of two, reads as all ones. `None`: an image of that size
    /// cannot be.
    pub fn new(image: &[u8]) -> Option<Self> {
        const SMALLEST: u64 = 2048;
        let len = (image.len() as u64).max(SMALLEST).next_power_of_two();
        if image.is_empty() || len > LARGEST_ROM {
            return None;
        }
        let mut bytes = image.to_vec();
        bytes.resize(len as usize, 0xff);
        Some(Self { bytes })
    }

    /// The same ROM for a card with another device id than its code was made for: firmware runs code for its own card
    /// only. The byte that makes the sum of the image right (offset 6, as boot ROMs of iPXE have it) follows.
    pub fn made_for(mut self, vendor: u16, from: u16, to: u16) -> Self {
        let pointer = self.bytes.get(0x18..0x1a).map_or(0, |b| usize::from(u16::from_le_bytes([b[0], b[1]])));
        let wanted = [&b"PCIR"[..], &vendor.to_le_bytes(), &from.to_le_bytes()].concat();
        if self.bytes.get(pointer..pointer + wanted.len()) != Some(&wanted[..]) {
            return self;
        }
        let sum = |id: u16| id.to_le_bytes().iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        self.bytes[pointer + 6..pointer + 8].copy_from_slice(&to.to_le_bytes());
        self.bytes[6] = self.bytes[6].wrapping_add(sum(from)).wrapping_sub(sum(to));
        self
    }

    /// Its base address register.
    pub fn bar(self) -> Bar {
        let size = self.bytes.len() as u64;
        Bar { index: ROM_INDEX, kind: BarKind::Rom, size, registers: Arc::new(self) }
    }
}

impl RegisterBlock for Rom {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let bytes = self.bytes.iter().skip(offset as usize).take(size.into());
        bytes.rev().fold(0, |acc, byte| acc << 8 | u64::from(*byte))
    }

    fn write(&self, _offset: u64, _size: u8, _value: u64) {}

    fn sizes(&self) -> AccessSizes {
        AccessSizes { min: 1, max: 8 }
    }
}

/// A base address register that a device has.
pub struct Bar {
    /// Register number, 0 to 5 (0 to 4 for 64 bits), [`ROM_INDEX`] for the expansion ROM.
    pub index: u8,
    /// What it maps.
    pub kind: BarKind,
    /// Bytes: a power of two, at least 4 for ports and 16 for memory.
    pub size: u64,
    /// The registers behind it.
    pub registers: Registers,
}

/// A range that a function decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Register number, [`ROM_INDEX`] for the expansion ROM.
    pub index: u8,
    /// What is mapped.
    pub kind: BarKind,
    /// Bytes.
    pub size: u64,
    /// Where it is on the bus, if it is.
    pub address: Option<u64>,
}

/// Why a set of base address registers was refused: a mistake in the device model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BarError {
    /// The number is out of range or used twice.
    #[error("base address register {0} does not exist or is used twice")]
    Index(u8),
    /// The size cannot be expressed.
    #[error("base address register {0} cannot have {1:#x} bytes")]
    Size(u8, u64),
}

struct Placed {
    index: u8,
    kind: BarKind,
    size: u64,
    window: Window,
}

/// The base address registers of a function: they size, decode and move as the specification says.
pub struct Bars {
    bars: Vec<Placed>,
}

impl Bars {
    /// Sets the registers up in `config`, at address 0, and prepares their windows on `bus`.
    pub fn new(bus: &Arc<Bus>, name: &str, bars: Vec<Bar>, config: &mut ConfigSpace) -> Result<Self, BarError> {
        let mut used = 0u8;
        let mut placed = Vec::new();
        for Bar { index, kind, size, registers } in bars {
            let registers_taken = if matches!(kind, BarKind::Memory64 { .. }) { 3u8 } else { 1 };
            // The ROM's bit lies above those of the others.
            let limit = if kind == BarKind::Rom { 0x80 } else { 0x40 };
            let bits = registers_taken.checked_shl(index.into()).filter(|b| *b < limit && *b & used == 0);
            let fits = (index == ROM_INDEX) == (kind == BarKind::Rom);
            used |= bits.filter(|_| fits).ok_or(BarError::Index(index))?;
            set_up(config, index, kind, size)?;
            let space = if kind == BarKind::Io { Space::Port } else { Space::Memory };
            let window = Window::new(bus, space, size, &format!("{name} BAR {index}"), registers);
            placed.push(Placed { index, kind, size, window });
        }
        Ok(Self { bars: placed })
    }

    /// Moves the windows to where the configuration space says. Call it after each configuration write, reset and
    /// restore, without the device's lock; `read` gives a copy of the present configuration space.
    pub fn sync(&self, read: impl Fn() -> ConfigSpace) {
        for bar in &self.bars {
            bar.window.sync(|| bar.address(&read()));
        }
    }

    /// Whether the register at `offset` decides about a window.
    pub fn concerns(offset: u8) -> bool {
        (reg::COMMAND..reg::STATUS).contains(&offset)
            || (reg::BAR0..reg::BAR0 + 24).contains(&offset)
            || (reg::ROM..reg::ROM + 4).contains(&offset)
    }

    /// All of them, with where they are on the bus now.
    pub fn regions(&self) -> Vec<Region> {
        let region =
            |bar: &Placed| Region { index: bar.index, kind: bar.kind, size: bar.size, address: bar.window.base() };
        self.bars.iter().map(region).collect()
    }

    /// Where register `index` is on the bus now.
    pub fn base(&self, index: u8) -> Option<u64> {
        self.bars.iter().find(|bar| bar.index == index)?.window.base()
    }
}

/// The register's fixed low bits (PCI 3.0 figures 6-5 and 6-6).
fn flags(kind: BarKind) -> u32 {
    match kind {
        BarKind::Io => 1,
        BarKind::Rom => 0,
        BarKind::Memory32 { prefetchable } => u32::from(prefetchable) << 3,
        BarKind::Memory64 { prefetchable } => 4 | u32::from(prefetchable) << 3,
    }
}

/// Offset of the register with number `index`.
fn offset(index: u8) -> u8 {
    if index == ROM_INDEX { reg::ROM } else { reg::BAR0 + 4 * index }
}

fn set_up(config: &mut ConfigSpace, index: u8, kind: BarKind, size: u64) -> Result<(), BarError> {
    let range = match kind {
        BarKind::Io => 4..=256,
        BarKind::Memory32 { .. } => 16..=1 << 31,
        BarKind::Memory64 { .. } => 16..=1 << 46,
        BarKind::Rom => 2048..=LARGEST_ROM,
    };
    if !size.is_power_of_two() || !range.contains(&size) {
        return Err(BarError::Size(index, size));
    }
    let (at, mask) = (offset(index), !(size - 1));
    config.set(at, 4, flags(kind));
    config.allow(at, 4, mask as u32 | if kind == BarKind::Rom { ROM_ENABLE } else { 0 });
    if let BarKind::Memory64 { .. } = kind {
        config.set(at + 4, 4, 0);
        config.allow(at + 4, 4, (mask >> 32) as u32);
    }
    Ok(())
}

impl Placed {
    /// Where the register maps to, if anywhere. Address 0 counts as not programmed, and the top of the space is what
    /// a guest that sizes with decoding on leaves there for a moment.
    fn address(&self, config: &ConfigSpace) -> Option<u64> {
        let at = offset(self.index);
        let low = u64::from(config.read(at, 4)) & !(self.size - 1);
        let (enable, base, limit) = match self.kind {
            BarKind::Io => (command::IO, low & 0xffff_fffc, 0x1_0000),
            BarKind::Memory32 { .. } => (command::MEMORY, low, 1 << 32),
            BarKind::Rom if config.read(at, 4) & ROM_ENABLE == 0 => return None,
            BarKind::Rom => (command::MEMORY, low, 1 << 32),
            BarKind::Memory64 { .. } => (command::MEMORY, low | u64::from(config.read(at + 4, 4)) << 32, u64::MAX),
        };
        let end = base.checked_add(self.size)?;
        let inside = if self.kind == BarKind::Io { end <= limit } else { end < limit };
        (config.command() & enable != 0 && base != 0 && inside).then_some(base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::RegisterBlock;
    use crate::pci::config::Identity;

    struct Byte(u64);
    impl RegisterBlock for Byte {
        fn read(&self, _offset: u64, _size: u8) -> u64 {
            self.0
        }
        fn write(&self, _offset: u64, _size: u8, _value: u64) {}
    }

    struct Bench {
        bus: Arc<Bus>,
        config: Mutex<ConfigSpace>,
        bars: Bars,
    }

    impl Bench {
        fn new() -> Self {
            let bus = Arc::new(Bus::new());
            let identity = Identity { vendor: 1, device: 2, class: 0, revision: 0, subsystem: (0, 0) };
            let mut config = ConfigSpace::new(identity);
            let bar = |index, kind, size, byte| Bar { index, kind, size, registers: Arc::new(Byte(byte)) };
            let list = vec![
                bar(0, BarKind::Io, 16, 0x10),
                bar(1, BarKind::Memory32 { prefetchable: false }, 0x1000, 0x20),
                bar(4, BarKind::Memory64 { prefetchable: true }, 0x10_0000, 0x30),
            ];
            let bars = Bars::new(&bus, "test", list, &mut config).unwrap();
            Self { bus, config: Mutex::new(config), bars }
        }
        fn write(&self, offset: u8, size: u8, value: u32) {
            locked(&self.config).write(offset, size, value);
            if Bars::concerns(offset) {
                self.bars.sync(|| locked(&self.config).clone());
            }
        }
        fn read(&self, offset: u8) -> u32 {
            locked(&self.config).read(offset, 4)
        }
    }

    #[test]
    fn sizing_as_the_specification_has_it() {
        let b = Bench::new();
        (0x10..0x28).step_by(4).for_each(|at| b.write(at, 4, u32::MAX));
        let sizes = [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24].map(|at| b.read(at));
        assert_eq!(sizes, [0xffff_fff1, 0xffff_f000, 0, 0, 0xfff0_000c, 0xffff_ffff]);
    }

    #[test]
    fn decoding_follows_the_command_register() {
        let b = Bench::new();
        b.write(0x10, 4, 0xc000);
        b.write(0x14, 4, 0xfebf_0000);
        b.write(0x20, 4, 0x0000_0000);
        b.write(0x24, 4, 0x0000_0080);
        assert_eq!(b.bus.pio_read(0xc000, 1), 0xff);
        b.write(4, 2, 1);
        assert_eq!(b.bus.pio_read(0xc00f, 1), 0x10);
        assert_eq!(b.bus.mmio_read(0xfebf_0000, 1), 0xff);
        b.write(4, 2, 3);
        assert_eq!(b.bus.mmio_read(0xfebf_0fff, 1), 0x20);
        assert_eq!(b.bus.mmio_read(0x80_0000_0000, 1), 0x30);
        b.write(0x14, 4, 0xe000_0000);
        assert_eq!(b.bus.mmio_read(0xfebf_0000, 1), 0xff);
        assert_eq!(b.bus.mmio_read(0xe000_0000, 1), 0x20);
        assert_eq!(b.bars.base(1), Some(0xe000_0000));
        b.write(4, 2, 0);
        assert!(b.bus.ranges().is_empty());
    }

    #[test]
    fn sizing_with_decoding_on_and_collisions_are_harmless() {
        let b = Bench::new();
        b.write(4, 2, 3);
        b.write(0x10, 4, 0xffff_ffff);
        b.write(0x14, 4, 0xffff_ffff);
        b.write(0x20, 4, 0xffff_ffff);
        b.write(0x24, 4, 0xffff_ffff);
        assert!(b.bus.ranges().is_empty());
        b.bus.register_mmio(0xfec0_0000, 0x1000, "ioapic", Arc::new(Byte(0x99))).unwrap();
        b.write(0x14, 4, 0xfec0_0000);
        assert_eq!(b.bus.mmio_read(0xfec0_0000, 1), 0x99);
        assert_eq!(b.bars.base(1), None);
        b.write(0x14, 4, 0xfed0_0000);
        assert_eq!(b.bars.base(1), Some(0xfed0_0000));
    }

    #[test]
    fn a_rom_is_read_where_its_register_and_the_command_say() {
        let bus = Arc::new(Bus::new());
        let identity = Identity { vendor: 1, device: 2, class: 0, revision: 0, subsystem: (0, 0) };
        let mut config = ConfigSpace::new(identity);
        let image: Vec<u8> = (0..3000u32).map(|i| (i % 251) as u8).collect();
        let bars = Bars::new(&bus, "test", vec![Rom::new(&image).unwrap().bar()], &mut config).unwrap();
        let config = Mutex::new(config);
        let write = |offset, value| {
            locked(&config).write(offset, 4, value);
            assert!(Bars::concerns(offset));
            bars.sync(|| locked(&config).clone());
        };
        write(reg::ROM, 0xffff_fffe);
        assert_eq!(locked(&config).read(reg::ROM, 4), 0xffff_f000, "4 KiB, not to be seen");
        write(reg::ROM, 0xfeb0_0000);
        write(reg::COMMAND, 2);
        assert!(bus.ranges().is_empty());
        write(reg::ROM, 0xfeb0_0001);
        assert_eq!(bus.mmio_read(0xfeb0_0000, 4), 0x0302_0100);
        bus.mmio_write(0xfeb0_0000, 4, 0);
        assert_eq!(bus.mmio_read(0xfeb0_0bb0, 8), u64::from_le_bytes(image[0xbb0..0xbb8].try_into().unwrap()));
        assert_eq!(bus.mmio_read(0xfeb0_0fff, 1), 0xff);
        write(reg::COMMAND, 0);
        assert!(bus.ranges().is_empty());
        let mut code = vec![0; 2048];
        code[0x18] = 0x20;
        code[0x20..0x28].copy_from_slice(b"PCIR\xf4\x1a\x41\x10");
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        let rom = Rom::new(&code).unwrap().made_for(0x1af4, 0x1041, 0x1000);
        assert_eq!((&rom.bytes[0x24..0x28], sum(&rom.bytes)), (&[0xf4, 0x1a, 0, 0x10][..], sum(&code)));
        assert_eq!(Rom::new(&code).unwrap().made_for(0x1af4, 0x1000, 0x1041).bytes, code, "for another card");
        assert!(Rom::new(&[]).is_none() && Rom::new(&vec![0; (16 << 20) + 1]).is_none());
    }

    #[test]
    fn a_device_that_goes_leaves_the_bus() {
        let b = Bench::new();
        b.write(0x10, 4, 0xc000);
        b.write(4, 2, 1);
        let Bench { bus, config: _, bars } = b;
        assert_eq!(bus.ranges().len(), 1);
        drop(bars);
        assert!(bus.ranges().is_empty());
    }

    #[test]
    fn impossible_registers_are_refused() {
        let bus = Arc::new(Bus::new());
        let identity = Identity { vendor: 1, device: 2, class: 0, revision: 0, subsystem: (0, 0) };
        let attempt = |list: &[(u8, BarKind, u64)]| {
            let bar = |(index, kind, size)| Bar { index, kind, size, registers: Arc::new(Byte(0)) };
            let list = list.iter().copied().map(bar).collect();
            Bars::new(&bus, "x", list, &mut ConfigSpace::new(identity)).err()
        };
        let wide = BarKind::Memory64 { prefetchable: false };
        assert_eq!(attempt(&[(6, BarKind::Io, 16)]), Some(BarError::Index(6)));
        assert_eq!(attempt(&[(0, BarKind::Rom, 2048)]), Some(BarError::Index(0)));
        assert_eq!(attempt(&[(6, BarKind::Rom, 1024)]), Some(BarError::Size(6, 1024)));
        assert_eq!(attempt(&[(200, BarKind::Io, 16)]), Some(BarError::Index(200)));
        assert_eq!(attempt(&[(5, wide, 16)]), Some(BarError::Index(5)));
        assert_eq!(attempt(&[(0, wide, 16), (1, BarKind::Io, 16)]), Some(BarError::Index(1)));
        assert_eq!(attempt(&[(0, BarKind::Io, 24)]), Some(BarError::Size(0, 24)));
        assert_eq!(attempt(&[(0, BarKind::Io, 512)]), Some(BarError::Size(0, 512)));
        assert_eq!(attempt(&[(4, wide, 1 << 33)]), None);
    }
}
