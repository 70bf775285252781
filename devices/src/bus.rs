//! The address maps: port I/O and memory-mapped I/O, and the shape of a device.
//!
//! Access sizes are handled here and nowhere else: a device says which sizes it implements
//! ([`AccessSizes`]), the bus splits or widens what the guest does to that.

use crate::state::{Inspector, StateError, StateValue};
use crate::trace::{self, Accesses};
use crate::wire::locked;
use crate::{guest_error, limited_log};
use arc_swap::ArcSwap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// What every device model is. A device synchronises itself: all methods take `&self`.
/// No lock of the device may be held while it calls out (interrupt lines, timers, back ends).
pub trait Device: Send + Sync {
    /// Name as `info qtree` shows it, e.g. `isa-serial`.
    fn name(&self) -> &'static str;
    /// Back to the state after power-on.
    fn reset(&self);
    /// The volatile state, complete.
    fn save(&self) -> StateValue;
    /// Takes over a state that `save` made; refuses what does not fit and then changes nothing.
    fn restore(&self, state: &StateValue) -> Result<(), StateError>;
    /// Shows the state to people (`info qtree`, `info pic`) and tests.
    fn inspect(&self, out: &mut Inspector);
}

/// The access sizes, in bytes, that a device's registers implement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessSizes {
    /// Smallest: 1, 2, 4 or 8. Smaller accesses read the wider register and take part of it; writes are widened with zeros.
    pub min: u8,
    /// Largest: 1, 2, 4 or 8. Larger accesses are split into several, low address first.
    pub max: u8,
}

impl AccessSizes {
    /// Byte registers.
    pub const BYTE: Self = Self { min: 1, max: 1 };
    /// Anything up to 32 bits.
    pub const UP_TO_DWORD: Self = Self { min: 1, max: 4 };
    /// 32-bit registers only.
    pub const DWORD: Self = Self { min: 4, max: 4 };
}

/// Registers in a port or memory range. Offsets count from the range's start. Accesses arrive naturally aligned
/// (relative to the range) and in the sizes implemented; the bus splits and widens what the guest does.
pub trait RegisterBlock: Send + Sync {
    /// Reads `size` bytes at `offset`; `size` is always within [`RegisterBlock::sizes`].
    fn read(&self, offset: u64, size: u8) -> u64;
    /// Writes the low `size` bytes of `value` at `offset`.
    fn write(&self, offset: u64, size: u8, value: u64);
    /// The sizes implemented.
    fn sizes(&self) -> AccessSizes {
        AccessSizes::BYTE
    }
}

/// A range's registers, shared with whoever wires the machine.
pub type Registers = Arc<dyn RegisterBlock>;

/// Which address space a range is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// 16-bit I/O ports.
    Port,
    /// Guest-physical memory.
    Memory,
}

impl Space {
    /// The last address there is.
    fn last(self) -> u64 {
        match self {
            Space::Port => 0xffff,
            Space::Memory => u64::MAX,
        }
    }
}

impl std::fmt::Display for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Space::Port => "I/O port",
            Space::Memory => "memory",
        })
    }
}

/// Why a range was not registered or not unregistered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// Another range has some of the addresses.
    #[error("{space} range {base:#x}..={last:#x} of {name} overlaps {other}")]
    Overlap {
        /// Address space.
        space: Space,
        /// First address asked for.
        base: u64,
        /// Last address asked for.
        last: u64,
        /// Who asked.
        name: String,
        /// Who is there.
        other: String,
    },
    /// The range is empty or passes the end of the address space.
    #[error("{space} range at {base:#x}, {len:#x} bytes long, is empty or passes the end of the address space")]
    BadRange {
        /// Address space.
        space: Space,
        /// First address asked for.
        base: u64,
        /// Length in bytes asked for.
        len: u64,
    },
    /// No range starts there.
    #[error("no {space} range starts at {base:#x}")]
    Unknown {
        /// Address space.
        space: Space,
        /// The address.
        base: u64,
    },
}

/// A registered range, as `info mtree` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeInfo {
    /// Address space.
    pub space: Space,
    /// First address.
    pub base: u64,
    /// Last address.
    pub last: u64,
    /// Who registered it.
    pub name: String,
}

#[derive(Clone)]
struct Range {
    base: u64,
    last: u64,
    name: Arc<str>,
    sizes: AccessSizes,
    registers: Registers,
    accesses: Arc<Accesses>,
}

/// The ranges of one address space, sorted; replaced as a whole when one changes.
#[derive(Clone)]
struct Map {
    space: Space,
    ranges: Vec<Range>,
    /// Ports only: for each port 1 + the index of its range, or 0.
    direct: Vec<u16>,
}

impl Map {
    fn new(space: Space) -> Self {
        let direct = match space {
            Space::Port => vec![0; 1 << 16],
            Space::Memory => Vec::new(),
        };
        Self { space, ranges: Vec::new(), direct }
    }

    fn find(&self, address: u64) -> Option<&Range> {
        if self.space == Space::Port {
            let slot = *self.direct.get(usize::try_from(address).ok()?)?;
            return self.ranges.get(usize::from(slot).checked_sub(1)?);
        }
        let after = self.ranges.partition_point(|r| r.base <= address);
        let range = self.ranges.get(after.checked_sub(1)?)?;
        (address <= range.last).then_some(range)
    }

    fn insert(&mut self, range: Range) -> Result<(), BusError> {
        let at = self.ranges.partition_point(|r| r.base < range.base);
        let before = at.checked_sub(1).and_then(|i| self.ranges.get(i)).filter(|r| r.last >= range.base);
        let other = before.or_else(|| self.ranges.get(at).filter(|r| r.base <= range.last));
        if let Some(other) = other {
            return Err(BusError::Overlap {
                space: self.space,
                base: range.base,
                last: range.last,
                name: range.name.to_string(),
                other: other.name.to_string(),
            });
        }
        self.ranges.insert(at, range);
        self.index();
        Ok(())
    }

    fn remove(&mut self, base: u64) -> Result<(), BusError> {
        let at = self.ranges.binary_search_by_key(&base, |r| r.base);
        let at = at.map_err(|_| BusError::Unknown { space: self.space, base })?;
        self.ranges.remove(at);
        self.index();
        Ok(())
    }

    fn index(&mut self) {
        if self.space == Space::Memory {
            return;
        }
        self.direct.fill(0);
        for (slot, range) in (1u16..).zip(&self.ranges) {
            let ports = usize::try_from(range.base).unwrap_or(0)..=usize::try_from(range.last).unwrap_or(0);
            if let Some(entries) = self.direct.get_mut(ports) {
                entries.fill(slot);
            }
        }
    }

    /// Tells of an access to what is not there, in the form that QEMU's log has for memory.
    fn nothing_at(&self, write: bool, address: u64, size: u8) {
        let what = if write { "write" } else { "read" };
        match self.space {
            Space::Memory => limited_log!(
                "invalid_mem",
                "Invalid {what} at addr 0x{address:X}, size {size}, region '(null)', reason: rejected"
            ),
            Space::Port => guest_error!("{size}-byte {what} of {} {address:#x}: nothing there", self.space),
        }
    }

    fn read(&self, address: u64, size: u8) -> u64 {
        match self.find(address) {
            Some(range) if range.holds(address, size) => range.read(address.wrapping_sub(range.base), size),
            None if size == 1 => {
                self.nothing_at(false, address, size);
                0xff
            }
            None if self.free(address, size) => {
                self.nothing_at(false, address, size);
                ones(size)
            }
            // Straddles the end of a range: byte by byte, each byte from whoever has it.
            _ => (0..size).rev().fold(0, |acc, i| acc << 8 | self.read(self.nth(address, i), 1) & 0xff),
        }
    }

    fn write(&self, address: u64, size: u8, value: u64) {
        match self.find(address) {
            Some(range) if range.holds(address, size) => {
                range.write(address.wrapping_sub(range.base), size, value & ones(size));
            }
            None if size == 1 || self.free(address, size) => {
                self.nothing_at(true, address, size);
            }
            _ => (0..size).for_each(|i| self.write(self.nth(address, i), 1, value >> (8 * i) & 0xff)),
        }
    }

    fn free(&self, address: u64, size: u8) -> bool {
        (0..size).all(|i| self.find(self.nth(address, i)).is_none())
    }

    /// Addresses wrap at the end of the space, as the 16-bit port number does on the bus.
    fn nth(&self, address: u64, i: u8) -> u64 {
        address.wrapping_add(u64::from(i)) & self.space.last()
    }
}

/// All ones in the low `size` bytes.
fn ones(size: u8) -> u64 {
    match size {
        0 => 0,
        1..=7 => (1 << (8 * size)) - 1,
        _ => u64::MAX,
    }
}

impl Range {
    fn holds(&self, address: u64, size: u8) -> bool {
        self.last - address >= u64::from(size).saturating_sub(1)
    }

    /// The next piece of an access: aligned, and as large as device and rest allow.
    fn piece(&self, offset: u64, rest: u8) -> u8 {
        let mut piece = self.sizes.max.min(8);
        while piece > 1 && (piece > rest || offset & (u64::from(piece) - 1) != 0) {
            piece /= 2;
        }
        piece
    }

    fn read(&self, offset: u64, size: u8) -> u64 {
        let value = self.read_pieces(offset, size);
        if trace::any_accesses() {
            self.accesses.tell(false, self.base.wrapping_add(offset), size, value);
        }
        value
    }

    fn read_pieces(&self, offset: u64, size: u8) -> u64 {
        let mut value = 0;
        let mut done = 0;
        while done < size {
            let at = offset.wrapping_add(u64::from(done));
            let piece = self.piece(at, size - done);
            let (part, got) = if piece >= self.sizes.min {
                (self.registers.read(at, piece), piece)
            } else {
                let skip = (at & (u64::from(self.sizes.min) - 1)) as u8;
                let whole = self.registers.read(at - u64::from(skip), self.sizes.min);
                (whole >> (8 * skip), (self.sizes.min - skip).min(size - done))
            };
            value |= (part & ones(got)) << (8 * done);
            done += got;
        }
        value
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        if trace::any_accesses() {
            self.accesses.tell(true, self.base.wrapping_add(offset), size, value);
        }
        let mut done = 0;
        while done < size {
            let at = offset.wrapping_add(u64::from(done));
            let piece = self.piece(at, size - done);
            let rest = value >> (8 * done);
            done += if piece >= self.sizes.min {
                self.registers.write(at, piece, rest & ones(piece));
                piece
            } else {
                let skip = (at & (u64::from(self.sizes.min) - 1)) as u8;
                let part = (self.sizes.min - skip).min(size - done);
                self.registers.write(at - u64::from(skip), self.sizes.min, (rest & ones(part)) << (8 * skip));
                part
            };
        }
    }
}

/// The machine's address maps, and the list of its devices.
///
/// Lookups take no lock (the maps are replaced as a whole, readers keep the one they started with), so any number of
/// vCPU threads read at once. A device may register and unregister ranges from within an access: PCI base address
/// registers do. An access under way on another thread then still reaches the old range.
pub struct Bus {
    ports: ArcSwap<Map>,
    memory: ArcSwap<Map>,
    /// Held while a map is replaced; taken by nothing else.
    edit: Mutex<()>,
    devices: RwLock<Vec<(String, Arc<dyn Device>)>>,
}

impl Default for Bus {
    fn default() -> Self {
        Self::new()
    }
}

impl Bus {
    /// Empty maps.
    pub fn new() -> Self {
        Self {
            ports: ArcSwap::from_pointee(Map::new(Space::Port)),
            memory: ArcSwap::from_pointee(Map::new(Space::Memory)),
            edit: Mutex::new(()),
            devices: RwLock::new(Vec::new()),
        }
    }

    fn map(&self, space: Space) -> &ArcSwap<Map> {
        match space {
            Space::Port => &self.ports,
            Space::Memory => &self.memory,
        }
    }

    /// Gives `len` addresses from `base` to `registers`. `name` says in messages and listings whose they are.
    pub fn register(
        &self,
        space: Space,
        base: u64,
        len: u64,
        name: &str,
        registers: Registers,
    ) -> Result<(), BusError> {
        let last = len.checked_sub(1).and_then(|l| base.checked_add(l)).filter(|l| *l <= space.last());
        let last = last.ok_or(BusError::BadRange { space, base, len })?;
        let sizes = registers.sizes();
        self.replace(space, |map| {
            map.insert(Range { base, last, name: name.into(), sizes, registers, accesses: trace::accesses(name) })
        })
    }

    /// Takes back the range that starts at `base`.
    pub fn unregister(&self, space: Space, base: u64) -> Result<(), BusError> {
        self.replace(space, |map| map.remove(base))
    }

    /// [`Bus::register`] for I/O ports.
    pub fn register_pio(&self, base: u16, len: u32, name: &str, registers: Registers) -> Result<(), BusError> {
        self.register(Space::Port, base.into(), len.into(), name, registers)
    }

    /// [`Bus::register`] for guest-physical memory.
    pub fn register_mmio(&self, base: u64, len: u64, name: &str, registers: Registers) -> Result<(), BusError> {
        self.register(Space::Memory, base, len, name, registers)
    }

    fn replace(&self, space: Space, change: impl FnOnce(&mut Map) -> Result<(), BusError>) -> Result<(), BusError> {
        let _edit = locked(&self.edit);
        let mut map = Map::clone(&self.map(space).load());
        change(&mut map)?;
        self.map(space).store(Arc::new(map));
        Ok(())
    }

    /// Reads `size` (1, 2 or 4) bytes at `port`.
    pub fn pio_read(&self, port: u16, size: u8) -> u32 {
        self.ports.load().read(port.into(), size) as u32
    }

    /// Writes `size` (1, 2 or 4) bytes at `port`.
    pub fn pio_write(&self, port: u16, size: u8, value: u32) {
        self.ports.load().write(port.into(), size, value.into());
    }

    /// Reads `size` (1, 2, 4 or 8) bytes at `gpa`.
    pub fn mmio_read(&self, gpa: u64, size: u8) -> u64 {
        self.memory.load().read(gpa, size)
    }

    /// Writes `size` (1, 2, 4 or 8) bytes at `gpa`.
    pub fn mmio_write(&self, gpa: u64, size: u8, value: u64) {
        self.memory.load().write(gpa, size, value);
    }

    /// Whether some range has `address`.
    pub fn is_claimed(&self, space: Space, address: u64) -> bool {
        self.map(space).load().find(address).is_some()
    }

    /// All ranges, ports first, by address.
    pub fn ranges(&self) -> Vec<RangeInfo> {
        let list = |map: &Map| {
            let info = |r: &Range| RangeInfo { space: map.space, base: r.base, last: r.last, name: r.name.to_string() };
            map.ranges.iter().map(info).collect::<Vec<_>>()
        };
        let mut all = list(&self.ports.load());
        all.extend(list(&self.memory.load()));
        all
    }

    /// Adds a device for reset, saving and inspection. `id` names it in saved states and must not be in use.
    pub fn add_device(&self, id: impl Into<String>, device: Arc<dyn Device>) {
        let id = id.into();
        let mut devices = self.devices.write().unwrap_or_else(PoisonError::into_inner);
        devices.retain(|(other, _)| *other != id);
        devices.push((id, device));
    }

    /// Takes a device off the list (hot-unplug). Its ranges are its own to unregister.
    pub fn remove_device(&self, id: &str) -> Option<Arc<dyn Device>> {
        let mut devices = self.devices.write().unwrap_or_else(PoisonError::into_inner);
        let at = devices.iter().position(|(other, _)| other == id)?;
        Some(devices.remove(at).1)
    }

    /// All devices with their ids, in the order they were added.
    pub fn devices(&self) -> Vec<(String, Arc<dyn Device>)> {
        self.devices.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Resets all devices, in the order they were added.
    pub fn reset(&self) {
        self.devices().iter().for_each(|(_, device)| device.reset());
    }

    /// The state of all devices, by id.
    pub fn save(&self) -> StateValue {
        self.devices().iter().map(|(id, device)| (id.clone(), device.save())).collect::<serde_json::Map<_, _>>().into()
    }

    /// Takes over the state of all devices. If one refuses, those before it are put back as they were.
    pub fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        let devices = self.devices();
        let mut done = Vec::new();
        for (id, device) in &devices {
            let before = device.save();
            let missing = || StateError::Malformed { device: device.name(), reason: format!("no state of '{id}'") };
            match state.get(id).ok_or_else(missing).and_then(|s| device.restore(s)) {
                Ok(()) => done.push((device, before)),
                Err(error) => {
                    for (device, before) in done {
                        // A device takes the state it has just saved: that is part of its contract.
                        let _ = device.restore(&before);
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Shows all devices.
    pub fn inspect(&self, out: &mut Inspector) {
        for (id, device) in self.devices() {
            out.group(&format!("{id} ({})", device.name()), |out| device.inspect(out));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Remembers accesses; each byte reads as its offset plus 0x10.
    struct Probe {
        sizes: AccessSizes,
        log: Mutex<Vec<(char, u64, u8, u64)>>,
    }

    impl Probe {
        fn new(min: u8, max: u8) -> Arc<Self> {
            Arc::new(Self { sizes: AccessSizes { min, max }, log: Mutex::default() })
        }
        fn take(&self) -> Vec<(char, u64, u8, u64)> {
            std::mem::take(&mut *locked(&self.log))
        }
    }

    impl RegisterBlock for Probe {
        fn read(&self, offset: u64, size: u8) -> u64 {
            locked(&self.log).push(('r', offset, size, 0));
            (0..size).rev().fold(0, |acc, i| acc << 8 | ((offset + u64::from(i) + 0x10) & 0xff))
        }
        fn write(&self, offset: u64, size: u8, value: u64) {
            locked(&self.log).push(('w', offset, size, value));
        }
        fn sizes(&self) -> AccessSizes {
            self.sizes
        }
    }

    #[test]
    fn unclaimed_reads_are_all_ones() {
        let bus = Bus::new();
        assert_eq!(bus.pio_read(0x123, 1), 0xff);
        assert_eq!(bus.pio_read(0x123, 4), 0xffff_ffff);
        assert_eq!(bus.mmio_read(0xf000_0000, 8), u64::MAX);
        bus.pio_write(0xffff, 4, 1);
        bus.mmio_write(u64::MAX, 8, 1);
    }

    #[test]
    fn overlap_is_refused_and_ranges_can_go() {
        let bus = Bus::new();
        let probe = Probe::new(1, 4);
        bus.register_pio(0x3f8, 8, "serial0", probe.clone()).unwrap();
        let error = bus.register_pio(0x3ff, 1, "x", probe.clone()).unwrap_err();
        assert_eq!(error.to_string(), "I/O port range 0x3ff..=0x3ff of x overlaps serial0");
        assert!(bus.register_pio(0x3f0, 9, "x", probe.clone()).is_err());
        assert!(bus.register_pio(0x3f0, 0x100, "x", probe.clone()).is_err());
        bus.register_pio(0x3f0, 8, "fdc", probe.clone()).unwrap();
        bus.register_pio(0x400, 1, "y", probe.clone()).unwrap();
        assert!(matches!(bus.register_pio(0xfff0, 0x11, "x", probe.clone()), Err(BusError::BadRange { .. })));
        assert!(matches!(bus.register_mmio(0, 0, "x", probe.clone()), Err(BusError::BadRange { .. })));
        bus.unregister(Space::Port, 0x3f8).unwrap();
        assert_eq!(bus.unregister(Space::Port, 0x3f8), Err(BusError::Unknown { space: Space::Port, base: 0x3f8 }));
        assert_eq!(bus.pio_read(0x3f8, 1), 0xff);
        assert_eq!(bus.pio_read(0x3f1, 1), 0x11);
        assert_eq!(bus.ranges().len(), 2);
    }

    #[test]
    fn large_accesses_are_split_low_address_first() {
        let bus = Bus::new();
        let probe = Probe::new(1, 1);
        bus.register_pio(0x70, 4, "p", probe.clone()).unwrap();
        assert_eq!(bus.pio_read(0x70, 4), 0x1312_1110);
        assert_eq!(probe.take().iter().map(|e| (e.1, e.2)).collect::<Vec<_>>(), [(0, 1), (1, 1), (2, 1), (3, 1)]);
        bus.pio_write(0x70, 2, 0xbbaa);
        assert_eq!(probe.take(), [('w', 0, 1, 0xaa), ('w', 1, 1, 0xbb)]);
    }

    #[test]
    fn small_accesses_are_widened() {
        let bus = Bus::new();
        let probe = Probe::new(4, 4);
        bus.register_mmio(0x1000, 0x100, "p", probe.clone()).unwrap();
        assert_eq!(bus.mmio_read(0x1006, 1), 0x16);
        assert_eq!(probe.take(), [('r', 4, 4, 0)]);
        bus.mmio_write(0x1006, 2, 0xffff_abcd);
        assert_eq!(probe.take(), [('w', 4, 4, 0xabcd_0000)]);
        assert_eq!(bus.mmio_read(0x1008, 8), 0x1f1e_1d1c_1b1a_1918);
        assert_eq!(probe.take(), [('r', 8, 4, 0), ('r', 12, 4, 0)]);
        assert_eq!(bus.mmio_read(0x1002, 4), 0x1514_1312, "misaligned: parts of two registers");
        assert_eq!(probe.take(), [('r', 0, 4, 0), ('r', 4, 4, 0)]);
    }

    #[test]
    fn accesses_are_naturally_aligned_for_the_device() {
        let bus = Bus::new();
        let probe = Probe::new(1, 4);
        bus.register_pio(0xcfc, 4, "p", probe.clone()).unwrap();
        assert_eq!(bus.pio_read(0xcfd, 2), 0x1211);
        assert_eq!(probe.take(), [('r', 1, 1, 0), ('r', 2, 1, 0)]);
        bus.pio_read(0xcfe, 2);
        assert_eq!(probe.take(), [('r', 2, 2, 0)]);
    }

    #[test]
    fn straddling_accesses_reach_each_range() {
        let bus = Bus::new();
        let (a, b) = (Probe::new(1, 4), Probe::new(1, 4));
        bus.register_pio(0x60, 2, "a", a.clone()).unwrap();
        bus.register_pio(0x63, 1, "b", b.clone()).unwrap();
        assert_eq!(bus.pio_read(0x60, 4), 0x10ff_1110);
        assert_eq!(bus.pio_read(0x5e, 4), 0x1110_ffff);
        bus.pio_write(0x61, 4, 0x0403_0201);
        assert_eq!(a.take().pop(), Some(('w', 1, 1, 1)));
        assert_eq!(b.take().pop(), Some(('w', 0, 1, 3)));
    }

    #[test]
    fn a_range_may_end_at_the_end_of_the_space() {
        let bus = Bus::new();
        let probe = Probe::new(1, 8);
        bus.register_mmio(u64::MAX - 7, 8, "top", probe.clone()).unwrap();
        assert_eq!(bus.mmio_read(u64::MAX, 1), 0x17);
        bus.register_pio(0xfffe, 2, "top", probe.clone()).unwrap();
        assert_eq!(bus.pio_read(0xfffe, 4), 0xffff_1110);
    }

    #[test]
    fn readers_and_editors_run_at_once() {
        let bus = Bus::new();
        bus.register_pio(0x80, 1, "fixed", Probe::new(1, 1)).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..2000).for_each(|_| assert_eq!(bus.pio_read(0x80, 1), 0x10)));
            }
            for _ in 0..200 {
                bus.register_pio(0x90, 4, "moving", Probe::new(1, 1)).unwrap();
                bus.unregister(Space::Port, 0x90).unwrap();
            }
        });
    }

    struct Counter(Mutex<u32>);
    impl Device for Counter {
        fn name(&self) -> &'static str {
            "counter"
        }
        fn reset(&self) {
            *locked(&self.0) = 0;
        }
        fn save(&self) -> StateValue {
            crate::state::to_state(&*locked(&self.0))
        }
        fn restore(&self, state: &StateValue) -> Result<(), StateError> {
            *locked(&self.0) = crate::state::from_state(self.name(), state)?;
            Ok(())
        }
        fn inspect(&self, out: &mut Inspector) {
            out.field("count", *locked(&self.0));
        }
    }

    #[test]
    fn a_refused_restore_leaves_all_devices_as_they_were() {
        let bus = Bus::new();
        let (a, b) = (Arc::new(Counter(Mutex::new(1))), Arc::new(Counter(Mutex::new(2))));
        bus.add_device("a", a.clone());
        bus.add_device("b", b.clone());
        let saved = bus.save();
        assert_eq!(saved, serde_json::json!({ "a": 1, "b": 2 }));
        assert!(bus.restore(&serde_json::json!({ "a": 5, "b": "x" })).is_err());
        assert_eq!(bus.save(), saved);
        assert!(bus.restore(&serde_json::json!({ "a": 5 })).is_err());
        assert_eq!(bus.save(), saved);
        bus.restore(&serde_json::json!({ "a": 5, "b": 6 })).unwrap();
        assert_eq!(*locked(&b.0), 6);
        bus.reset();
        assert_eq!(*locked(&a.0), 0);
        let mut out = Inspector::new();
        bus.inspect(&mut out);
        assert_eq!(out.lines(), ["a (counter)", "  count = 0", "b (counter)", "  count = 0"]);
    }
}
