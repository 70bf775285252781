//! A VGA card with Bochs' display interface in a PCI slot, as QEMU's standard card is: registers, four planes, the text
//! screen, and modes with all pixels in a row.

mod dispi;
mod memory;
mod picture;
mod registers;
#[cfg(test)]
mod tests;
mod text;

use crate::bus::{AccessSizes, Bus, BusError, Device, RegisterBlock, Registers as Block};
use crate::pci::PciFunction;
use crate::pci::bar::{Bar, BarError, BarKind, Bars, Rom};
use crate::pci::config::{ConfigSpace, Identity};
use crate::pci::endpoint::Endpoint;
use crate::services::DeviceMemory;
use crate::state::{Inspector, StateError, StateValue, from_state, to_state};
use crate::wire::locked;
use dispi::{Dispi, Effect};
use memory::{Memory, SIZE};
pub use picture::Picture;
use registers::{FIRST_PORT, PORTS, Registers};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, Weak};

/// Vendor and device.
const ID: (u16, u16) = (0x1234, 0x1111);
/// The window of the planes.
const WINDOW: u64 = 0xa_0000;
const WINDOW_LEN: u64 = 0x2_0000;
/// Ports of the display interface: index, and data at an odd address.
const DISPI_PORTS: u16 = 0x1ce;
/// Registers in memory: VGA ports from 0x3C0 on, and those of the display interface.
const MMIO_SIZE: u64 = 4096;
const MMIO_VGA: u64 = 0x400;
const MMIO_VGA_LEN: u64 = 0x20;
const MMIO_DISPI: u64 = 0x500;
const MMIO_DISPI_LEN: u64 = 0x16;
/// Bytes of its memory.
pub const MEMORY: u64 = SIZE as u64;

struct State {
    registers: Registers,
    memory: Memory,
    dispi: Dispi,
    /// Low byte of a write to the data port, whose bytes come one by one.
    low: u8,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    config: StateValue,
    registers: Registers,
    dispi: Dispi,
    low: u8,
    latch: u32,
}

/// The card. Locks: `state` is a leaf but for its memory; `placing` before the endpoint's.
pub struct Vga {
    endpoint: Endpoint,
    memory: Arc<dyn DeviceMemory>,
    /// Held while the frame buffer is put where its base address register says.
    placing: Mutex<()>,
    state: Mutex<State>,
}

/// Ways to the card.
#[derive(Clone, Copy)]
enum Way {
    /// VGA ports.
    Ports,
    /// Ports of the display interface.
    Dispi,
    /// The window of the planes.
    Window,
    /// Memory in a row.
    Linear,
    /// Registers in memory.
    Mmio,
}

struct Access(Weak<Vga>, Way);

fn power_on() -> ConfigSpace {
    let (vendor, device) = ID;
    ConfigSpace::new(Identity { vendor, device, class: 0x03_0000, revision: 2, subsystem: (0x1af4, 0x1100) })
}

impl Vga {
    /// A card on `bus` with the code of `rom`, whose ports and window are there at once. Fails if somebody else has them.
    /// Its [`MEMORY`] bytes are in `memory`.
    pub fn new(bus: &Arc<Bus>, rom: Option<Rom>, memory: Arc<dyn DeviceMemory>) -> Result<Arc<Self>, VgaError> {
        let mut failure = None;
        let this = Arc::new_cyclic(|weak: &Weak<Self>| {
            let way = |way| -> Block { Arc::new(Access(weak.clone(), way)) };
            let mut bars = vec![
                Bar {
                    index: 0,
                    kind: BarKind::Memory32 { prefetchable: true },
                    size: SIZE as u64,
                    registers: way(Way::Linear),
                },
                Bar {
                    index: 2,
                    kind: BarKind::Memory32 { prefetchable: false },
                    size: MMIO_SIZE,
                    registers: way(Way::Mmio),
                },
            ];
            bars.extend(rom.map(Rom::bar));
            let endpoint = Endpoint::new(bus, "VGA", bars, power_on()).or_else(|error| {
                failure = Some(error);
                Endpoint::new(bus, "VGA", Vec::new(), power_on())
            });
            let (registers, dispi) = Default::default();
            let state = State { registers, memory: Memory::new(memory.clone()), dispi, low: 0 };
            Self {
                endpoint: endpoint.expect("no registers at all are always possible"),
                memory,
                placing: Mutex::default(),
                state: Mutex::new(state),
            }
        });
        if let Some(error) = failure {
            return Err(error.into());
        }
        let way = |way| -> Block { Arc::new(Access(Arc::downgrade(&this), way)) };
        bus.register_pio(FIRST_PORT, PORTS.into(), "vga", way(Way::Ports))?;
        bus.register_pio(DISPI_PORTS, 3, "vga-dispi", way(Way::Dispi))?;
        bus.register_mmio(WINDOW, WINDOW_LEN, "vga", way(Way::Window))?;
        Ok(this)
    }

    /// The lines of the text screen without spaces at their ends; none while it shows graphics.
    pub fn text(&self) -> Option<Vec<String>> {
        let state = locked(&self.state);
        if state.dispi.enabled() { None } else { text::lines(&state.registers, &state.memory) }
    }

    /// What the screen shows; none while it is off.
    pub fn picture(&self) -> Option<Picture> {
        let State { registers, memory, dispi, low: _ } = &*locked(&self.state);
        picture::of(registers, dispi, memory)
    }

    /// The frame buffer goes where its base address register says.
    fn place(&self) {
        let _placing = locked(&self.placing);
        self.memory.place(self.endpoint.base(0));
    }

    fn read(&self, way: Way, offset: u64, size: u8) -> u64 {
        let mut state = locked(&self.state);
        (0..u64::from(size)).rev().fold(0, |value, i| value << 8 | u64::from(state.read(way, offset + i)))
    }

    fn write(&self, way: Way, offset: u64, size: u8, value: u64) {
        let mut state = locked(&self.state);
        for (i, byte) in (0..u64::from(size)).zip(value.to_le_bytes()) {
            state.write(way, offset + i, byte);
        }
    }
}

impl State {
    fn read(&mut self, way: Way, offset: u64) -> u8 {
        let half = |value: u16, high: bool| if high { (value >> 8) as u8 } else { value as u8 };
        match way {
            Way::Ports => self.registers.read(FIRST_PORT.wrapping_add(offset as u16)),
            Way::Dispi if offset == 0 => self.dispi.index() as u8,
            Way::Dispi => half(self.dispi.read(self.dispi.index()), offset == 2),
            Way::Window => self.memory.read(&self.registers, offset as u32, self.dispi.bank_offset()),
            // For those that do not find it as memory.
            Way::Linear => {
                let mut byte = [0];
                self.memory.bytes.read(offset, &mut byte);
                byte[0]
            }
            Way::Mmio => match mmio(offset) {
                Some((Way::Dispi, at)) => half(self.dispi.read(at as u16 / 2), at & 1 != 0),
                Some((_, at)) => self.registers.read(0x3c0u16.wrapping_add(at as u16)),
                None => 0,
            },
        }
    }

    fn write(&mut self, way: Way, offset: u64, value: u8) {
        match way {
            Way::Ports => self.registers.write(FIRST_PORT.wrapping_add(offset as u16), value),
            Way::Dispi if offset == 0 => self.dispi.select(value.into()),
            Way::Dispi => self.dispi_byte(self.dispi.index(), offset == 2, value),
            Way::Window => self.memory.write(&self.registers, offset as u32, self.dispi.bank_offset(), value),
            Way::Linear => self.memory.bytes.write(offset, &[value]),
            Way::Mmio => match mmio(offset) {
                Some((Way::Dispi, at)) => self.dispi_byte(at as u16 / 2, at & 1 != 0, value),
                Some((_, at)) => self.registers.write(0x3c0u16.wrapping_add(at as u16), value),
                None => {}
            },
        }
    }

    /// A byte of a write to register `index` of the display interface: it counts when both are there.
    fn dispi_byte(&mut self, index: u16, high: bool, value: u8) {
        if !high {
            self.low = value;
            return;
        }
        let value = u16::from(value) << 8 | u16::from(self.low);
        if let Effect::Begins { clear } = self.dispi.write(index, value) {
            self.registers.show_linear();
            self.memory.bytes.clear(clear as u64);
        }
    }
}

/// What lies at an offset of the registers in memory.
fn mmio(offset: u64) -> Option<(Way, u64)> {
    let within = |start: u64, len: u64| offset.checked_sub(start).filter(|at| *at < len);
    within(MMIO_VGA, MMIO_VGA_LEN)
        .map(|at| (Way::Ports, at))
        .or_else(|| within(MMIO_DISPI, MMIO_DISPI_LEN).map(|at| (Way::Dispi, at)))
}

/// Why there is no card.
#[derive(Debug, thiserror::Error)]
pub enum VgaError {
    /// A mistake in the model.
    #[error(transparent)]
    Bar(#[from] BarError),
    /// Its ports or its window are taken.
    #[error(transparent)]
    Bus(#[from] BusError),
}

impl RegisterBlock for Access {
    fn read(&self, offset: u64, size: u8) -> u64 {
        self.0.upgrade().map_or(u64::MAX, |card| card.read(self.1, offset, size))
    }
    fn write(&self, offset: u64, size: u8, value: u64) {
        if let Some(card) = self.0.upgrade() {
            card.write(self.1, offset, size, value);
        }
    }
    fn sizes(&self) -> AccessSizes {
        match self.1 {
            // A wide access to ports is one to each of them.
            Way::Ports | Way::Dispi => AccessSizes::BYTE,
            Way::Window | Way::Linear | Way::Mmio => AccessSizes { min: 1, max: 8 },
        }
    }
}

impl PciFunction for Vga {
    fn config_read(&self, offset: u8, size: u8) -> u32 {
        self.endpoint.read(offset, size)
    }
    fn config_write(&self, offset: u8, size: u8, value: u32) {
        self.endpoint.write(offset, size, value);
        if Bars::concerns(offset) {
            self.place();
        }
    }

    fn regions(&self) -> Vec<crate::pci::bar::Region> {
        self.endpoint.regions()
    }
}

impl Device for Vga {
    fn name(&self) -> &'static str {
        "VGA"
    }

    fn reset(&self) {
        {
            let mut state = locked(&self.state);
            let State { registers, memory, dispi, low } = &mut *state;
            (*registers, *dispi, *low, memory.latch) = (Registers::default(), Dispi::default(), 0, 0);
            memory.bytes.clear(MEMORY);
        }
        self.endpoint.reset();
        self.place();
    }

    /// Its memory is part of the machine's, which keeps it with all other memory.
    fn save(&self) -> StateValue {
        let state = locked(&self.state);
        let saved = Saved {
            config: self.endpoint.save(),
            registers: state.registers.clone(),
            dispi: state.dispi.clone(),
            low: state.low,
            latch: state.memory.latch,
        };
        to_state(&saved)
    }

    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        let Saved { config, registers, dispi, low, latch } = from_state(self.name(), state)?;
        let config = self.endpoint.check(self.name(), &config)?;
        if !registers.sound() {
            return Err(StateError::Malformed { device: self.name(), reason: "not of this card's size".into() });
        }
        self.endpoint.adopt(config);
        self.place();
        let mut now = locked(&self.state);
        now.memory.latch = latch;
        (now.registers, now.dispi, now.low) = (registers, dispi, low);
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        let dispi = locked(&self.state).dispi.clone();
        if dispi.enabled() {
            let (width, height, depth) = dispi.mode();
            out.field("mode", format_args!("{width}x{height}, {depth} bits"));
        }
        for (row, line) in self.text().unwrap_or_default().iter().enumerate().filter(|(_, line)| !line.is_empty()) {
            out.field(&format!("line {row:2}"), line);
        }
    }
}
