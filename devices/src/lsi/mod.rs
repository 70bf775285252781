//! LSI 53C895A PCI to Ultra2 SCSI controller (LSI53C895A Technical Manual, version 2.2; "the manual" here), and the
//! older 53C810, whose instructions are a part of its: registers, the SCRIPTS processor, and a bus with disks and CD
//! drives.
//!
//! The vCPU's thread touches registers only. Scripts run on the I/O thread, a bounded number of instructions at a time:
//! one that never ends is continued by a timer. Whatever scripts do, they reach guest memory and the chip itself only.

mod nexus;
mod registers;
mod script;
#[cfg(test)]
mod tests;
mod wires;

use crate::bus::{AccessSizes, Bus, Device, RegisterBlock, Registers};
use crate::pci::PciFunction;
use crate::pci::bar::{Bar, BarError, BarKind};
use crate::pci::config::{ConfigSpace, Identity, command, reg as config_reg};
use crate::pci::endpoint::Endpoint;
use crate::scsi::drive::{Drive, Units};
use crate::scsi::{Unit, UnitState};
use crate::services::{
    Clock, DiskClient, DiskDone, Dma, Doorbell, IrqLine, MediumDrive, TimerService, TimerTarget, WorkService,
    WorkTarget,
};
use crate::state::{Inspector, StateError, StateValue, from_state, to_state};
use crate::wire::{TimerSlot, Wire, locked};
use registers::{Effect, power_on, reg};
use script::Run;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, Weak};
use wires::{Order, Place, Traffic, Wires};

/// The highest number of a target: the chip itself is 7.
pub const MAX_TARGET: u8 = 6;
/// The highest number of a unit.
pub const MAX_LUN: u8 = 7;
/// Bytes of registers in I/O space.
const PORTS_LEN: u64 = 256;
/// Bytes of a script that are in the chip (2.2.2).
const RAM_LEN: usize = 8192;
/// Instructions before others get the chip's lock, and before others on the I/O thread get their turn.
const SLICE: u32 = 64;
const BUDGET: u32 = 4096;
/// How long a script rests that has used up its budget.
const REST_NS: u64 = 500_000;
/// What timers are for.
const RESUME: u32 = 0;
const GENERAL: u32 = 1;
/// The general purpose timer with its smallest setting and a clock of 40 MHz; each further one doubles it (4.2, STIME1).
const GENERAL_NS: u64 = 217_000;

/// Which chip it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chip {
    /// 53C895A.
    C895a,
    /// 53C810: without RAM.
    C810,
}

impl Chip {
    /// Name as `info qtree` shows it.
    pub fn name(self) -> &'static str {
        match self {
            Chip::C895a => "lsi53c895a",
            Chip::C810 => "lsi53c810",
        }
    }

    /// Bytes of registers in memory; they repeat.
    fn memory_len(self) -> u64 {
        match self {
            Chip::C895a => 1024,
            Chip::C810 => 256,
        }
    }

    fn ram_len(self) -> usize {
        match self {
            Chip::C895a => RAM_LEN,
            Chip::C810 => 0,
        }
    }

    fn power_on(self) -> ConfigSpace {
        let (device, subsystem) = match self {
            Chip::C895a => (0x0012, (0, 0x1000)),
            Chip::C810 => (0x0001, (0, 0x1000)),
        };
        let mut config =
            ConfigSpace::new(Identity { vendor: 0x1000, device, class: 0x01_0000, revision: 0, subsystem });
        config.set(config_reg::INTERRUPT_PIN, 1, 1);
        // Drivers insist on whole cache lines: their length, the latency timer, and the command bit for it.
        config.allow(0x0c, 2, 0xffff);
        config.allow(config_reg::COMMAND, 2, 0x0557);
        // How urgently it wants the bus, in units of 250 ns.
        config.set(0x3e, 2, 0x4011);
        config
    }
}

/// A block move that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Move {
    /// The phase that the script expects, by its number.
    phase: u8,
    /// Upper bits of the count word.
    upper: u8,
    address: u64,
    left: u32,
    /// Bytes have moved.
    begun: bool,
}

/// What the SCRIPTS processor does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Script {
    Stopped,
    Running,
    /// The instruction at this address waits for the bus.
    Waiting(u32),
    /// A block move waits for the target.
    Moving(Move),
}

struct State {
    regs: Vec<u8>,
    ram: Vec<u8>,
    script: Script,
    carry: bool,
    /// A target has reselected the chip, and no script knows yet.
    reselected: bool,
    /// Nobody answers the selection.
    unanswered: bool,
    /// When the general purpose timer runs out.
    general: Option<u64>,
    wires: Wires,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    config: StateValue,
    regs: Vec<u8>,
    ram: Vec<u8>,
    script: Script,
    carry: bool,
    reselected: bool,
    unanswered: bool,
    general: Option<u64>,
    traffic: Traffic,
    units: Vec<(Place, UnitState)>,
}

impl State {
    fn new(chip: Chip) -> Self {
        Self {
            regs: power_on(),
            ram: vec![0; chip.ram_len()],
            script: Script::Stopped,
            carry: false,
            reselected: false,
            unanswered: false,
            general: None,
            wires: Wires::default(),
        }
    }

    /// Software reset (4.2, ISTAT0). Targets notice that nobody talks to them any more; RAM stays.
    fn reset_chip(&mut self, chip: &Chip) {
        self.wires.forget();
        let (wires, ram) = (std::mem::take(&mut self.wires), std::mem::take(&mut self.ram));
        *self = Self { wires, ram, ..Self::new(*chip) };
    }
}

/// What the chip is connected to.
pub struct Surroundings<'a> {
    /// Where its registers appear.
    pub bus: &'a Arc<Bus>,
    /// INTA#.
    pub irq: IrqLine,
    /// Guest memory.
    pub dma: Arc<dyn Dma>,
    /// Guest time.
    pub clock: Arc<dyn Clock>,
    /// Timers.
    pub timers: &'a dyn TimerService,
    /// Doorbells.
    pub work: &'a dyn WorkService,
}

/// The chip with its bus.
///
/// Locks: `state` before the endpoint's; guest memory is used with it. Disks, interrupt, timers and doorbell are used
/// without.
pub struct Lsi {
    chip: Chip,
    endpoint: Endpoint,
    irq: Wire,
    dma: Arc<dyn Dma>,
    clock: Arc<dyn Clock>,
    resume: TimerSlot,
    general: TimerSlot,
    doorbell: Box<dyn Doorbell>,
    this: Weak<Lsi>,
    state: Mutex<State>,
}

struct RegisterWindow(Weak<Lsi>);
struct RamWindow(Weak<Lsi>);

impl Lsi {
    /// A chip without units.
    pub fn new(chip: Chip, s: Surroundings) -> Result<Arc<Self>, BarError> {
        let mut failure = None;
        let this = Arc::new_cyclic(|this: &Weak<Self>| {
            let registers: Registers = Arc::new(RegisterWindow(this.clone()));
            let memory = BarKind::Memory32 { prefetchable: false };
            let mut bars = vec![
                Bar { index: 0, kind: BarKind::Io, size: PORTS_LEN, registers: registers.clone() },
                Bar { index: 1, kind: memory, size: chip.memory_len(), registers },
            ];
            if chip.ram_len() != 0 {
                let registers: Registers = Arc::new(RamWindow(this.clone()));
                bars.push(Bar { index: 2, kind: memory, size: chip.ram_len() as u64, registers });
            }
            let endpoint = Endpoint::new(s.bus, chip.name(), bars, chip.power_on()).or_else(|error| {
                failure = Some(error);
                Endpoint::new(s.bus, chip.name(), Vec::new(), chip.power_on())
            });
            Self {
                chip,
                endpoint: endpoint.expect("no registers at all are always possible"),
                irq: Wire::new(s.irq),
                dma: s.dma,
                clock: s.clock,
                resume: TimerSlot::new(s.timers.create(this.clone(), RESUME)),
                general: TimerSlot::new(s.timers.create(this.clone(), GENERAL)),
                doorbell: s.work.doorbell(this.clone(), 0),
                this: this.clone(),
                state: Mutex::new(State::new(chip)),
            }
        });
        failure.map_or(Ok(this), Err)
    }

    /// Adds a unit. `false`: there is one at this place, or there is no such place.
    pub fn plug(&self, target: u8, lun: u8, unit: Unit) -> bool {
        let units = &mut locked(&self.state).wires.units;
        let free = target <= MAX_TARGET && lun <= MAX_LUN && !units.contains_key(&(target, lun));
        if free {
            units.insert((target, lun), unit);
        }
        free
    }

    /// The CD drive at a place, for the user.
    pub fn medium_drive(self: &Arc<Self>, target: u8, lun: u8) -> Arc<dyn MediumDrive> {
        Arc::new(Drive { host: self.clone(), place: (target, lun) })
    }

    /// Notes what outputs should be. Call it with the state's lock held, then [`Lsi::flush`] without.
    fn update(&self, state: &State) {
        let disabled = self.endpoint.read(config_reg::COMMAND, 2) as u16 & command::INTX_DISABLE != 0;
        self.irq.want(state.interrupt() && !disabled);
        self.general.want(state.general);
    }

    fn flush(&self) {
        self.irq.flush();
        self.general.flush();
        self.resume.flush();
    }

    fn submit(&self, orders: Vec<Order>) {
        for (disk, request, number) in orders {
            let client: Weak<dyn DiskClient> = self.this.clone();
            disk.submit(request, number, client);
        }
    }

    /// Where a memory window is now.
    fn window(&self, index: u8) -> Option<u64> {
        let on = self.endpoint.read(config_reg::COMMAND, 2) as u16 & command::MEMORY != 0;
        let base = self.endpoint.read(config_reg::BAR0 + 4 * index, 4) & !0xf;
        (on && base != 0).then_some(base.into())
    }

    /// Sets the general purpose timer.
    fn set_timer(&self, state: &mut State, effect: Effect) {
        match effect.timer {
            None => {}
            Some(0) => state.general = None,
            Some(n) => state.general = Some(self.clock.now_ns().saturating_add(GENERAL_NS << (n - 1))),
        }
    }

    /// Runs the script, if there is one to run.
    fn run(&self) {
        for _ in 0..BUDGET / SLICE {
            let (more, orders) = {
                let mut state = locked(&self.state);
                let mut run = Run {
                    state: &mut state,
                    dma: &*self.dma,
                    chip: &self.chip,
                    registers_at: self.window(1),
                    ram_at: if self.chip.ram_len() != 0 { self.window(2) } else { None },
                    effect: Effect::default(),
                    budget: SLICE,
                };
                run.run();
                let effect = run.effect;
                self.set_timer(&mut state, effect);
                self.update(&state);
                (state.script == Script::Running, std::mem::take(&mut state.wires.orders))
            };
            self.flush();
            self.submit(orders);
            if !more {
                return;
            }
        }
        {
            let _state = locked(&self.state);
            self.resume.want(Some(self.clock.now_ns().saturating_add(REST_NS)));
        }
        self.flush();
    }

    fn read(&self, offset: u64, size: u8) -> u64 {
        let value = {
            let mut state = locked(&self.state);
            let bytes = (0..u64::from(size)).map(|i| state.read(offset.wrapping_add(i) as u8)).enumerate();
            let value = bytes.fold(0, |value, (i, byte)| value | u64::from(byte) << (8 * i));
            self.update(&state);
            value
        };
        self.flush();
        value
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let mut run = false;
        {
            let mut state = locked(&self.state);
            for (i, byte) in (0..size).zip(value.to_le_bytes()) {
                let effect = state.write(offset.wrapping_add(i.into()) as u8, byte, &self.chip);
                run |= effect.run;
                self.set_timer(&mut state, effect);
            }
            self.update(&state);
        }
        self.flush();
        if run {
            self.doorbell.ring();
        }
    }
}

impl Units<Place> for Lsi {
    fn reach(&self, place: Place, f: &mut dyn FnMut(&mut Unit)) {
        locked(&self.state).wires.units.get_mut(&place).map(f);
    }
}

impl WorkTarget for Lsi {
    fn work(&self, _tag: u32) {
        self.run();
    }
}

impl DiskClient for Lsi {
    fn disk_done(&self, done: DiskDone) {
        if locked(&self.state).wires.disk_done(&done) {
            self.run();
        }
    }
}

impl TimerTarget for Lsi {
    fn timer_fired(&self, tag: u32, now_ns: u64) {
        if tag == RESUME {
            self.resume.fired();
            {
                let _state = locked(&self.state);
                self.resume.want(None);
            }
            return self.run();
        }
        self.general.fired();
        {
            let mut state = locked(&self.state);
            if state.general.is_some_and(|at| now_ns >= at) {
                state.general = None;
                state.scsi_interrupt(0, registers::bit::GENERAL);
            }
            self.update(&state);
        }
        self.flush();
    }
}

impl RegisterBlock for RegisterWindow {
    fn read(&self, offset: u64, size: u8) -> u64 {
        self.0.upgrade().map_or(u64::MAX, |chip| chip.read(offset, size))
    }
    fn write(&self, offset: u64, size: u8, value: u64) {
        if let Some(chip) = self.0.upgrade() {
            chip.write(offset, size, value);
        }
    }
    fn sizes(&self) -> AccessSizes {
        AccessSizes::UP_TO_DWORD
    }
}

impl RegisterBlock for RamWindow {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let Some(chip) = self.0.upgrade() else { return u64::MAX };
        let state = locked(&chip.state);
        let bytes = state.ram.iter().skip(offset as usize).take(size.into());
        bytes.rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }
    fn write(&self, offset: u64, size: u8, value: u64) {
        let Some(chip) = self.0.upgrade() else { return };
        let mut state = locked(&chip.state);
        let bytes = state.ram.iter_mut().skip(offset as usize).take(size.into());
        bytes.zip(value.to_le_bytes()).for_each(|(to, byte)| *to = byte);
    }
    fn sizes(&self) -> AccessSizes {
        AccessSizes { min: 1, max: 8 }
    }
}

impl PciFunction for Lsi {
    fn config_read(&self, offset: u8, size: u8) -> u32 {
        self.endpoint.read(offset, size)
    }
    fn config_write(&self, offset: u8, size: u8, value: u32) {
        self.endpoint.write(offset, size, value);
        self.update(&locked(&self.state));
        self.flush();
    }

    fn regions(&self) -> Vec<crate::pci::bar::Region> {
        self.endpoint.regions()
    }
}

impl Device for Lsi {
    fn name(&self) -> &'static str {
        self.chip.name()
    }

    fn reset(&self) {
        {
            let mut state = locked(&self.state);
            let mut wires = std::mem::take(&mut state.wires);
            wires.reset();
            *state = State { wires, ..State::new(self.chip) };
            self.resume.want(None);
        }
        self.endpoint.reset();
        self.update(&locked(&self.state));
        self.flush();
    }

    fn save(&self) -> StateValue {
        let state = locked(&self.state);
        let State { regs, ram, script, carry, reselected, unanswered, general, wires } = &*state;
        to_state(&Saved {
            config: self.endpoint.save(),
            regs: regs.clone(),
            ram: ram.clone(),
            script: *script,
            carry: *carry,
            reselected: *reselected,
            unanswered: *unanswered,
            general: *general,
            traffic: wires.traffic.clone(),
            units: wires.units.iter().map(|(place, unit)| (*place, unit.save())).collect(),
        })
    }

    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        let new: Saved = from_state(self.name(), state)?;
        let config = self.endpoint.check(self.name(), &new.config)?;
        let malformed = |reason: &str| StateError::Malformed { device: self.name(), reason: reason.into() };
        if new.regs.len() != power_on().len() || new.ram.len() != self.chip.ram_len() {
            return Err(malformed("the registers are not those of this chip"));
        }
        let orders = {
            let mut live = locked(&self.state);
            let same = |((a, unit), (b, state)): ((&Place, &Unit), &(Place, UnitState))| a == b && unit.fits(state);
            let units = &mut live.wires.units;
            if units.len() != new.units.len() || !units.iter().zip(&new.units).all(same) {
                return Err(malformed("the units are not those of this bus"));
            }
            units.values_mut().zip(new.units).for_each(|(unit, (_, state))| unit.restore(state));
            let mut wires = std::mem::take(&mut live.wires);
            wires.traffic = new.traffic;
            // What was under way begins anew.
            wires.orders.clear();
            wires.resume();
            let orders = std::mem::take(&mut wires.orders);
            *live = State {
                regs: new.regs,
                ram: new.ram,
                script: new.script,
                carry: new.carry,
                reselected: new.reselected,
                unanswered: new.unanswered,
                general: new.general,
                wires,
            };
            let running = live.script == Script::Running;
            self.resume.want(running.then(|| self.clock.now_ns()));
            orders
        };
        self.endpoint.adopt(config);
        {
            let live = locked(&self.state);
            self.update(&live);
            self.irq.adopt(self.irq.level());
        }
        self.flush();
        self.submit(orders);
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        let state = locked(&self.state);
        out.field("script", format_args!("{:?} at {:#x}", state.script, state.word(reg::DSP)));
        out.field("dsa", format_args!("{:#x}", state.word(reg::DSA)));
        let status = [reg::ISTAT0, reg::DSTAT, reg::SIST0, reg::SIST1].map(|at| state.byte(at));
        out.field("status", format_args!("{status:02x?}"));
        match (&state.wires.traffic.current, state.wires.phase()) {
            (Some(nexus), Some((phase, _))) => out.field("bus", format_args!("target {}, {phase:?}", nexus.target)),
            _ => out.field("bus", "free"),
        }
        out.field("disconnected", state.wires.traffic.away.len());
        for ((target, lun), unit) in &state.wires.units {
            let kind = if unit.identity().cd { "scsi-cd" } else { "scsi-hd" };
            out.group(&format!("{kind} scsi-id={target} lun={lun}"), |out| unit.inspect(out));
        }
    }
}
