//! Shadow RAM of a PC: RAM from 0xC0000 to 0xFFFFF that stands before the firmware's ROM when the chipset says so.
//!
//! The processors' mapping stays as it is; what changes is its content. A segment that shows ROM holds a copy of the
//! ROM and is read-only; its RAM is kept here meanwhile.

use brolga_devices::bus::{Device, RegisterBlock};
use brolga_devices::services::{ShadowMode, ShadowRam};
use brolga_devices::state::{Inspector, StateError, StateValue, from_state, to_state};
use brolga_devices::wire::locked;
use brolga_jit::Engine;
use brolga_jit::mmu::ram::{Ram, SHADOW};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock};

/// First address.
pub const BASE: u64 = SHADOW.start;
/// Bytes.
pub const LEN: u64 = SHADOW.end - SHADOW.start;
const SEGMENTS: usize = 13;
const SEGMENT: u64 = 16 << 10;
/// The last segment is larger.
const LAST_SEGMENT: u64 = 0xF_0000;
/// The end of the ROM shows up again below 1 MiB: this much of it at most (82371SB datasheet 2.3.4, XBCS).
const ISA_ROM: u64 = 128 << 10;

/// One segment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Segment {
    read_ram: bool,
    write_ram: bool,
    /// The RAM's content while the guest sees ROM.
    hidden: Vec<u8>,
}

/// The shadow RAM. Locks: `segments` is held while memory's content changes; the engine's locks are inside it.
pub struct Shadow {
    ram: Arc<Ram>,
    /// Bytes of ROM below 4 GiB.
    rom: u64,
    engine: OnceLock<Arc<Engine>>,
    segments: Mutex<Vec<Segment>>,
}

/// The addresses of segment `index`.
fn range(index: usize) -> Range<u64> {
    let start = (BASE + index as u64 * SEGMENT).min(LAST_SEGMENT);
    start..if start == LAST_SEGMENT { SHADOW.end } else { start + SEGMENT }
}

impl Shadow {
    /// Shadow RAM in `ram`, before `rom` bytes of ROM that end at 4 GiB.
    pub fn new(ram: Arc<Ram>, rom: u64) -> Arc<Self> {
        let len = |index| (range(index).end - range(index).start) as usize;
        let segments = (0..SEGMENTS).map(|i| Segment { hidden: vec![0; len(i)], ..Segment::default() }).collect();
        Arc::new(Self { ram, rom, engine: OnceLock::new(), segments: Mutex::new(segments) })
    }

    /// Connects the engine, which has to know of changes; the first one stays.
    pub fn connect(&self, engine: Arc<Engine>) {
        // A second engine would be a mistake of the machine's, which makes one.
        let _ = self.engine.set(engine);
    }

    /// Fills the segments that show ROM: once the ROM has its content.
    pub fn show_rom(&self) {
        for (index, segment) in locked(&self.segments).iter().enumerate() {
            if !segment.read_ram {
                self.show(index, &self.rom_at(range(index)), true);
            }
        }
    }

    /// What lies behind `range`.
    fn rom_at(&self, range: Range<u64>) -> Vec<u8> {
        let mut bytes = vec![0xFF; (range.end - range.start) as usize];
        if range.start >= SHADOW.end - self.rom.min(ISA_ROM) {
            self.ram.read((1 << 32) - SHADOW.end + range.start, &mut bytes);
        }
        bytes
    }

    /// Makes `bytes` what the guest sees.
    fn show(&self, index: usize, bytes: &[u8], read_only: bool) {
        let range = range(index);
        let len = range.end - range.start;
        self.ram.write(range.start, bytes, true);
        if let Some(engine) = self.engine.get() {
            engine.memory_written(range.start, len);
            engine.set_read_only(range, read_only);
        }
    }
}

impl ShadowRam for Shadow {
    fn set_mode(&self, index: usize, mode: ShadowMode) {
        let mut segments = locked(&self.segments);
        let Some(segment) = segments.get_mut(index) else { return };
        let range = range(index);
        let read_only = !(mode.read_ram && mode.write_ram);
        let shown_ram = std::mem::replace(&mut segment.read_ram, mode.read_ram);
        segment.write_ram = mode.write_ram;
        match (shown_ram, mode.read_ram) {
            (true, false) => {
                segment.hidden.resize((range.end - range.start) as usize, 0);
                self.ram.read(range.start, &mut segment.hidden);
                self.show(index, &self.rom_at(range), read_only);
            }
            (false, true) => self.show(index, &std::mem::take(&mut segment.hidden), read_only),
            _ => {
                if let Some(engine) = self.engine.get() {
                    engine.set_read_only(range, read_only);
                }
            }
        }
    }
}

/// Stores to segments that are not plain RAM, and those that a processor sent here just before they became it.
impl RegisterBlock for Shadow {
    fn read(&self, offset: u64, _size: u8) -> u64 {
        let mut byte = [0xFF];
        self.ram.read(BASE + offset, &mut byte);
        byte[0].into()
    }

    fn write(&self, offset: u64, _size: u8, value: u64) {
        let gpa = BASE + offset;
        let index = ((offset / SEGMENT) as usize).min(SEGMENTS - 1);
        let mut segments = locked(&self.segments);
        let Some(segment) = segments.get_mut(index).filter(|s| s.write_ram) else { return };
        if segment.read_ram {
            self.ram.write(gpa, &[value as u8], true);
            if let Some(engine) = self.engine.get() {
                engine.memory_written(gpa, 1);
            }
        } else if let Some(byte) = segment.hidden.get_mut((gpa - range(index).start) as usize) {
            *byte = value as u8;
        }
    }
}

impl Device for Shadow {
    fn name(&self) -> &'static str {
        "shadow-ram"
    }

    /// The chipset tells the modes; the RAM keeps its content.
    fn reset(&self) {}

    fn save(&self) -> StateValue {
        let Self { ram: _, rom: _, engine: _, segments } = self;
        to_state(&*locked(segments))
    }

    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        let Self { ram: _, rom: _, engine, segments } = self;
        let new: Vec<Segment> = from_state(self.name(), state)?;
        let fits = |(i, s): (usize, &Segment)| s.read_ram || s.hidden.len() as u64 == range(i).end - range(i).start;
        if new.len() != SEGMENTS || !new.iter().enumerate().all(fits) {
            let reason = "not 13 segments with their RAM".into();
            return Err(StateError::Malformed { device: self.name(), reason });
        }
        if let Some(engine) = engine.get() {
            for (index, segment) in new.iter().enumerate() {
                engine.set_read_only(range(index), !(segment.read_ram && segment.write_ram));
            }
        }
        *locked(segments) = new;
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        for (index, segment) in locked(&self.segments).iter().enumerate() {
            let Segment { read_ram, write_ram, hidden: _ } = segment;
            let reads = if *read_ram { "RAM" } else { "ROM" };
            let writes = if *write_ram { "RAM" } else { "nowhere" };
            out.field(&format!("{:#07x}", range(index).start), format_args!("reads {reads}, writes {writes}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::layout::Layout;

    const MODE: fn(bool, bool) -> ShadowMode = |read_ram, write_ram| ShadowMode { read_ram, write_ram };

    fn shadow(rom: u64) -> (Arc<Ram>, Arc<Shadow>) {
        let layout = Layout::new(2 << 20, rom).unwrap();
        let ram = Arc::new(Ram::new(layout.file_size(), layout.regions()).unwrap());
        ram.write((1 << 32) - rom, &vec![0xAB; rom as usize], true);
        let shadow = Shadow::new(ram.clone(), rom);
        shadow.show_rom();
        (ram, shadow)
    }

    fn at(ram: &Ram, gpa: u64) -> u8 {
        let mut byte = [0];
        ram.read(gpa, &mut byte);
        byte[0]
    }

    #[test]
    fn rom_shows_until_ram_is_asked_for_and_comes_back() {
        let (ram, shadow) = shadow(256 << 10);
        assert_eq!([0xC_0000, 0xD_FFFF, 0xE_0000, 0xF_FFFF].map(|a| at(&ram, a)), [0xFF, 0xFF, 0xAB, 0xAB]);
        shadow.set_mode(12, MODE(true, true));
        assert_eq!(at(&ram, 0xF_0000), 0);
        ram.write(0xF_1234, &[7], false);
        shadow.set_mode(12, MODE(false, false));
        assert_eq!(at(&ram, 0xF_1234), 0xAB);
        shadow.set_mode(12, MODE(true, false));
        assert_eq!(at(&ram, 0xF_1234), 7);
    }

    #[test]
    fn writes_go_where_the_mode_says() {
        let (ram, shadow) = shadow(64 << 10);
        assert_eq!(at(&ram, 0xE_FFFF), 0xFF, "a small ROM shows up less");
        shadow.write(0x3_0000, 1, 1);
        shadow.set_mode(12, MODE(false, true));
        shadow.write(0x3_0001, 1, 2);
        assert_eq!(at(&ram, 0xF_0001), 0xAB);
        shadow.set_mode(12, MODE(true, true));
        assert_eq!([at(&ram, 0xF_0000), at(&ram, 0xF_0001)], [0, 2]);
        shadow.write(0x3_0000, 1, 3);
        assert_eq!(shadow.read(0x3_0000, 1), 3);
        shadow.set_mode(99, MODE(true, true));
    }

    #[test]
    fn state_keeps_hidden_ram() {
        let (_, a) = shadow(64 << 10);
        a.set_mode(3, MODE(false, true));
        a.write(3 * SEGMENT + 5, 1, 9);
        let (ram, b) = shadow(64 << 10);
        b.restore(&a.save()).unwrap();
        assert_eq!(a.save(), b.save());
        b.set_mode(3, MODE(true, false));
        assert_eq!(at(&ram, 0xC_0000 + 3 * SEGMENT + 5), 9);
        assert!(b.restore(&serde_json::json!([])).is_err());
    }
}
