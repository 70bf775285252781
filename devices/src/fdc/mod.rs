//! Floppy disk controller (Intel 82078 datasheet, order 290475): two drives, DMA channel 2 and interrupt 6 on a PC.
//!
//! Mechanics take no time: a seek ends as it begins. Data come and go as the host's file lets them.

mod commands;
mod geometry;
#[cfg(test)]
mod tests;
mod transfer;

pub use geometry::{DriveType, Geometry};

use crate::bus::{Device, RegisterBlock, Registers};
use crate::isa_dma::{DmaChannel, DmaClient};
use crate::services::{Disk, DiskClient, DiskDone, DiskRequest, IrqLine, MediumDrive};
use crate::state::{Inspector, StateError, StateValue, from_state, to_state};
use crate::wire::{Wire, locked};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, Weak};
use transfer::Transfer;

/// Drives of a controller.
pub const DRIVES: usize = 2;
/// Ports from 0x3F0 on; the seventh of a PC's eight is the disk's, the eighth is apart.
pub const PORTS: u64 = 6;
const SECTOR: u64 = 512;

/// Offsets of registers.
const STATUS_A: u64 = 0;
const STATUS_B: u64 = 1;
const OUTPUT: u64 = 2;
const TAPE: u64 = 3;
const MAIN_STATUS: u64 = 4;
const FIFO: u64 = 5;

/// Digital output register: not in reset, DMA and interrupts on, the first drive's motor.
const RUNS: u8 = 0x04;
const DMA_ON: u8 = 0x08;
const MOTOR: u8 = 0x10;
/// Data rate select register: software reset.
const SOFT_RESET: u8 = 0x80;
/// Main status register: ready for a byte, to the host, data without DMA, a command is under way.
const READY: u8 = 0x80;
const TO_HOST: u8 = 0x40;
const WITHOUT_DMA: u8 = 0x20;
const BUSY: u8 = 0x10;
/// Digital input register: the medium changed.
const CHANGED: u8 = 0x80;

/// A drive's own state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DriveState {
    track: u8,
    /// The medium changed since the head moved last.
    changed: bool,
    /// Perpendicular recording was chosen.
    perpendicular: bool,
    /// The sector that passes the head next.
    passing: u8,
}

impl Default for DriveState {
    fn default() -> Self {
        Self { track: 0, changed: true, perpendicular: false, passing: 1 }
    }
}

/// What the controller does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    /// Bytes of a command come.
    #[default]
    Command,
    /// It moves data, or waits for the disk.
    Execution,
    /// The host takes bytes that tell what became of it.
    Result,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    output: u8,
    tape: u8,
    rate: u8,
    phase: Phase,
    /// The command so far, or what is left of its results, the first last.
    bytes: Vec<u8>,
    interrupt: bool,
    /// Interrupts to be sensed: the first status byte, by drive. Four after a reset.
    sensed: Vec<(u8, u8)>,
    drives: [DriveState; DRIVES],
    /// SPECIFY: step rate and head unload, head load and no DMA.
    timing: [u8; 2],
    /// CONFIGURE: implied seeks, FIFO, polling and threshold; precompensation.
    config: [u8; 2],
    /// The configuration outlives software resets.
    locked: bool,
    perpendicular: u8,
    last_sectors: u8,
    transfer: Option<Transfer>,
    /// Completions with another number are stale.
    token: u64,
}

impl State {
    fn new() -> Self {
        Self {
            output: RUNS | DMA_ON,
            tape: 0,
            rate: 2,
            phase: Phase::Command,
            bytes: Vec::new(),
            interrupt: false,
            sensed: Vec::new(),
            drives: [DriveState::default(); DRIVES],
            timing: [0; 2],
            config: [0x20, 0],
            locked: false,
            perpendicular: 0,
            last_sectors: 0,
            transfer: None,
            token: 0,
        }
    }

    /// Reset by a register (datasheet 6.2): what LOCK keeps stays.
    fn soft_reset(&mut self) {
        (self.phase, self.transfer, self.interrupt) = (Phase::Command, None, false);
        self.token = self.token.wrapping_add(1);
        self.bytes.clear();
        self.sensed.clear();
        if !self.locked {
            self.config = [0x20, 0];
        }
        self.perpendicular = 0;
    }

    /// Out of reset: polling finds all four drives changed.
    fn start(&mut self) {
        self.sensed = (0..4).rev().map(|drive| (0xc0 | drive, 0)).collect();
        self.interrupt = true;
    }

    fn dma(&self) -> bool {
        self.output & DMA_ON != 0 && self.timing[1] & 1 == 0
    }

    /// The drive that the output register selects.
    fn selected(&self) -> usize {
        usize::from(self.output & 3)
    }
}

/// A drive, with what is in it.
pub struct DriveConfig {
    /// What kind of drive it is.
    pub drive: DriveType,
    /// The diskette.
    pub medium: Option<Arc<dyn Disk>>,
}

struct Inner {
    state: State,
    bays: [Option<DriveConfig>; DRIVES],
    /// A disk request to be submitted once the lock is dropped.
    request: Option<(Arc<dyn Disk>, DiskRequest)>,
}

/// The controller.
///
/// Locks: `inner` is a leaf but for the DMA channel and guest memory; requests are submitted and the interrupt is driven
/// after it is dropped.
pub struct Fdc {
    irq: Wire,
    dma: DmaChannel,
    this: Weak<Fdc>,
    inner: Mutex<Inner>,
}

/// The ports from 0x3F0 on.
struct Block(Arc<Fdc>);
/// The port 0x3F7: digital input, and configuration control.
struct InputPort(Arc<Fdc>);

/// A drive as the user reaches it.
struct Slot(Arc<Fdc>, usize);

impl Fdc {
    /// A controller with these drives: the first and the second.
    pub fn new(drives: [Option<DriveConfig>; DRIVES], dma: DmaChannel, irq: IrqLine) -> Arc<Self> {
        let bays = drives;
        let inner = Inner { state: State::new(), bays, request: None };
        let this = Arc::new_cyclic(|this: &Weak<Self>| Self {
            irq: Wire::new(irq),
            dma,
            this: this.clone(),
            inner: Mutex::new(inner),
        });
        let client: Weak<dyn DmaClient> = this.this.clone();
        this.dma.connect(client);
        this
    }

    /// The six ports from 0x3F0 on.
    pub fn ports(self: &Arc<Self>) -> Registers {
        Arc::new(Block(self.clone()))
    }

    /// The port 0x3F7.
    pub fn input_port(self: &Arc<Self>) -> Registers {
        Arc::new(InputPort(self.clone()))
    }

    /// Drive `number` for the user.
    pub fn medium_drive(self: &Arc<Self>, number: usize) -> Arc<dyn MediumDrive> {
        Arc::new(Slot(self.clone(), number))
    }

    /// Changes the state, then tells the outside.
    fn with<R>(&self, change: impl FnOnce(&mut Inner, &DmaChannel) -> R) -> R {
        let mut inner = locked(&self.inner);
        let result = change(&mut inner, &self.dma);
        // Interrupts leave the chip while DMA is on.
        self.irq.want(inner.state.interrupt && inner.state.output & DMA_ON != 0);
        let request = inner.request.take();
        let token = inner.state.token;
        drop(inner);
        self.irq.flush();
        if let Some((disk, request)) = request {
            let client: Weak<dyn DiskClient> = self.this.clone();
            disk.submit(request, token, client);
        }
        result
    }
}

impl Inner {
    fn medium(&self, drive: usize) -> Option<&Arc<dyn Disk>> {
        self.bays.get(drive)?.as_ref()?.medium.as_ref()
    }

    fn geometry(&self, drive: usize) -> Option<Geometry> {
        self.medium(drive).map(|disk| Geometry::of(disk.len() / SECTOR))
    }

    fn read(&mut self, dma: &DmaChannel, offset: u64) -> u8 {
        let s = &self.state;
        match offset {
            STATUS_A => u8::from(s.interrupt) << 7 | 0x40,
            STATUS_B => 0xc0 | (s.output & 1) << 5 | s.output >> 4 & 3,
            OUTPUT => s.output,
            TAPE => s.tape,
            MAIN_STATUS => self.main_status(),
            FIFO => self.fifo_read(dma),
            _ => 0xff,
        }
    }

    fn main_status(&self) -> u8 {
        let s = &self.state;
        if s.output & RUNS == 0 {
            return 0;
        }
        match &s.phase {
            Phase::Command if s.bytes.is_empty() => READY,
            Phase::Command => READY | BUSY,
            Phase::Result => READY | TO_HOST | BUSY,
            Phase::Execution => BUSY | s.transfer.as_ref().map_or(0, Transfer::main_status),
        }
    }

    fn fifo_read(&mut self, dma: &DmaChannel) -> u8 {
        match self.state.phase {
            Phase::Result => {
                // The interrupt ends as its reason is read.
                self.state.interrupt = false;
                let byte = self.state.bytes.pop().unwrap_or(0);
                if self.state.bytes.is_empty() {
                    self.state.phase = Phase::Command;
                }
                byte
            }
            Phase::Execution => self.data_in(dma),
            Phase::Command => 0,
        }
    }

    fn write(&mut self, dma: &DmaChannel, offset: u64, value: u8) {
        match offset {
            OUTPUT => {
                let before = std::mem::replace(&mut self.state.output, value);
                match (before & RUNS, value & RUNS) {
                    (RUNS, 0) => {
                        self.state.soft_reset();
                        dma.withdraw();
                    }
                    (0, RUNS) => self.state.start(),
                    _ => {}
                }
            }
            TAPE => self.state.tape = value & 3,
            MAIN_STATUS => {
                self.state.rate = value & 3;
                if value & SOFT_RESET != 0 {
                    self.state.soft_reset();
                    dma.withdraw();
                    self.state.start();
                }
            }
            FIFO if self.state.output & RUNS != 0 => match self.state.phase {
                Phase::Command => self.command_byte(dma, value),
                Phase::Execution => self.data_out(dma, value),
                Phase::Result => crate::guest_error!("floppy: a command while results wait"),
            },
            _ => {}
        }
    }
}

impl RegisterBlock for Block {
    fn read(&self, offset: u64, _size: u8) -> u64 {
        self.0.with(|inner, dma| inner.read(dma, offset)).into()
    }

    fn write(&self, offset: u64, _size: u8, value: u64) {
        self.0.with(|inner, dma| inner.write(dma, offset, value as u8));
    }
}

impl RegisterBlock for InputPort {
    fn read(&self, _offset: u64, _size: u8) -> u64 {
        let inner = locked(&self.0.inner);
        let drive = inner.state.selected();
        let motor = inner.state.output & MOTOR.checked_shl(drive as u32).unwrap_or(0) != 0;
        let changed = inner.state.drives.get(drive).is_some_and(|d| d.changed) || inner.medium(drive).is_none();
        let there = inner.bays.get(drive).is_some_and(Option::is_some);
        // The other bits belong to the disk's port at the same place, which is gone.
        if motor && there && changed { CHANGED.into() } else { 0 }
    }

    fn write(&self, _offset: u64, _size: u8, value: u64) {
        locked(&self.0.inner).state.rate = value as u8 & 3;
    }
}

impl DmaClient for Fdc {
    fn dma_ready(&self) {
        self.with(|inner, dma| inner.advance(dma));
    }
}

impl DiskClient for Fdc {
    fn disk_done(&self, done: DiskDone) {
        self.with(|inner, dma| {
            if done.token == inner.state.token {
                inner.completed(dma, done);
            }
        });
    }
}

impl MediumDrive for Slot {
    fn change(&self, medium: Option<Arc<dyn Disk>>) {
        let Self(fdc, number) = self;
        fdc.with(|inner, _| {
            if let (Some(Some(bay)), Some(drive)) = (inner.bays.get_mut(*number), inner.state.drives.get_mut(*number)) {
                (bay.medium, drive.changed) = (medium, true);
            }
            // What is under way finds no sectors any more.
            inner.medium_gone(*number);
        });
    }

    fn locked(&self) -> bool {
        false
    }

    fn tray_open(&self) -> bool {
        false
    }

    fn ask(&self) {}
}

impl Device for Fdc {
    fn name(&self) -> &'static str {
        "isa-fdc"
    }

    fn reset(&self) {
        let Self { irq: _, dma, this: _, inner: _ } = self;
        self.with(|inner, _| {
            let token = inner.state.token.wrapping_add(1);
            inner.state = State { token, ..State::new() };
        });
        dma.withdraw();
    }

    fn save(&self) -> StateValue {
        let Inner { state, bays: _, request: _ } = &*locked(&self.inner);
        to_state(state)
    }

    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        let new: State = from_state(self.name(), state)?;
        if !new.transfer.as_ref().is_none_or(Transfer::is_sane) || new.bytes.len() > 16 || new.sensed.len() > 4 {
            let reason = "a transfer is not one of this controller".into();
            return Err(StateError::Malformed { device: self.name(), reason });
        }
        let mut inner = locked(&self.inner);
        self.irq.adopt(new.interrupt && new.output & DMA_ON != 0);
        inner.state = new;
        drop(inner);
        // What was with the disk is asked for anew.
        self.with(|inner, _| inner.repeat());
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        let inner = locked(&self.inner);
        out.field("output", format_args!("{:#04x}", inner.state.output));
        out.field("phase", format_args!("{:?}", inner.state.phase));
        for (number, (bay, state)) in inner.bays.iter().zip(&inner.state.drives).enumerate() {
            let Some(bay) = bay else { continue };
            out.group(&format!("drive {number}"), |out| {
                out.field("type", format_args!("{:?}", bay.drive));
                match inner.geometry(number) {
                    Some(Geometry { cylinders, heads, sectors, .. }) => {
                        out.field("format", format_args!("{cylinders} tracks, {heads} sides, {sectors} sectors"));
                    }
                    None => out.field("format", "no medium"),
                }
                out.field("track", state.track);
                out.field("changed", state.changed);
            });
        }
    }
}
