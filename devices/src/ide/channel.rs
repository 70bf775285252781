//! A channel: two drives behind one set of registers, and one interrupt.

use super::bus_master::{self, BusMaster};
use super::drive::{Drive, DriveConfig, DriveState, Outcome, Task};
use super::{device, error, status};
use crate::bus::{AccessSizes, Device, RegisterBlock, Registers};
use crate::services::{Disk, DiskClient, DiskDone, DiskRequest, Dma, IrqLine, MediumDrive};
use crate::state::{Inspector, StateError, StateValue, from_state, to_state};
use crate::wire::{Wire, locked};
use crate::{trace, trace_event};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, Weak};

/// Device control register: interrupt off, software reset, read back what 48-bit commands wrote before.
const CONTROL_NO_INTERRUPT: u8 = 0x02;
const CONTROL_RESET: u8 = 0x04;
const CONTROL_HIGH_ORDER: u8 = 0x80;
/// Offsets in the command block.
const DATA: u64 = 0;
const ERROR: u64 = 1;
const COUNT: u64 = 2;
const LOW: u64 = 3;
const MID: u64 = 4;
const HIGH: u64 = 5;
const DEVICE: u64 = 6;
const STATUS: u64 = 7;
/// What is on neither a drive nor a channel reads so.
const ABSENT: u8 = 0;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lines {
    /// The second drive is selected.
    second: bool,
    control: u8,
    /// The selected drive asks for an interrupt.
    interrupt: bool,
    master: BusMaster,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    lines: Lines,
    drives: [Option<DriveState>; 2],
}

struct State {
    drives: [Option<Drive>; 2],
    lines: Lines,
}

type Pending = (Arc<dyn Disk>, DiskRequest, u64);

/// A channel.
///
/// Locks: `state` is a leaf but for guest memory; requests are submitted and the interrupt is driven after it is dropped.
pub struct Channel {
    name: String,
    dma: Arc<dyn Dma>,
    irq: Wire,
    this: Weak<Channel>,
    state: Mutex<State>,
}

/// The command block's registers.
struct CommandBlock(Arc<Channel>);
/// The alternate status and device control register.
struct ControlBlock(Arc<Channel>);
/// The bus master's registers.
struct MasterBlock(Arc<Channel>);

impl Channel {
    /// A channel with these drives, the first and the second. `name` tells it apart in listings.
    pub fn new(name: &str, drives: [Option<DriveConfig>; 2], dma: Arc<dyn Dma>, irq: IrqLine) -> Arc<Self> {
        let state = State { drives: drives.map(|drive| drive.map(Drive::new)), lines: Lines::default() };
        let (name, irq) = (name.to_owned(), Wire::new(irq));
        Arc::new_cyclic(|this| Self { name, dma, irq, this: this.clone(), state: Mutex::new(state) })
    }

    /// The eight ports of the command block.
    pub fn command_ports(self: &Arc<Self>) -> Registers {
        Arc::new(CommandBlock(self.clone()))
    }

    /// The port of alternate status and device control.
    pub fn control_port(self: &Arc<Self>) -> Registers {
        Arc::new(ControlBlock(self.clone()))
    }

    /// The eight ports of the bus master.
    pub fn master_ports(self: &Arc<Self>) -> Registers {
        Arc::new(MasterBlock(self.clone()))
    }

    /// Whether there is a drive, the first or the second.
    pub fn has_drive(&self, second: bool) -> bool {
        locked(&self.state).drive(second).is_some()
    }

    /// The CD drive, the first or the second, for the user. `None`: there is no such drive.
    pub fn medium_drive(self: &Arc<Self>, second: bool) -> Option<Arc<dyn MediumDrive>> {
        let cd = locked(&self.state).drive(second).is_some_and(|drive| drive.cd);
        cd.then(|| Arc::new(CdDrive { channel: self.clone(), second }) as Arc<dyn MediumDrive>)
    }

    /// A read of the data register. Within a block it changes nothing that anybody outside hears of.
    fn data_in(&self, size: u8) -> u32 {
        let within = {
            let mut state = locked(&self.state);
            state.selected().and_then(|drive| drive.within_block(size))
        };
        within.unwrap_or_else(|| self.with(|state| state.data_in(&*self.dma, size)))
    }

    /// Changes the state, then tells the outside.
    fn with<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = locked(&self.state);
        let result = change(&mut state);
        let lines = state.lines;
        self.irq.want(lines.interrupt && lines.control & CONTROL_NO_INTERRUPT == 0);
        let pending: [Option<Pending>; 2] = state.drives.each_mut().map(|drive| {
            let drive = drive.as_mut()?;
            let request = drive.request.take()?;
            Some((drive.disk.clone()?, request, drive.state.token))
        });
        drop(state);
        self.irq.flush();
        for (second, (disk, request, token)) in pending.into_iter().enumerate().filter_map(|(i, p)| p.map(|p| (i, p))) {
            // Tells the drives apart: its lowest bit is the drive's number.
            let client: Weak<dyn DiskClient> = self.this.clone();
            disk.submit(request, token << 1 | second as u64, client);
        }
        result
    }
}

impl State {
    fn drive(&mut self, second: bool) -> Option<&mut Drive> {
        self.drives.get_mut(usize::from(second))?.as_mut()
    }

    fn selected(&mut self) -> Option<&mut Drive> {
        self.drive(self.lines.second)
    }

    fn apply(&mut self, dma: &dyn Dma, outcome: Outcome) {
        if outcome.interrupt {
            self.lines.interrupt = true;
            self.lines.master.interrupt();
        }
        if outcome.dma {
            self.start_dma(dma);
        }
    }

    /// Starts the selected drive's DMA task if the bus master runs too.
    fn start_dma(&mut self, dma: &dyn Dma) {
        let mut master = self.lines.master;
        let Some(drive) = self.selected() else { return };
        let Some((wanted, write)) = drive.dma_wanted().filter(|_| master.started()) else { return };
        if write == master.writes_memory() {
            master.give_up(true);
            self.lines.master = master;
            return;
        }
        let regions = master.regions(dma, wanted);
        let mut outcome = Outcome::NONE;
        if regions.len < wanted {
            // The drive waits for memory that never comes, until the host resets it.
            master.give_up(false);
        } else if matches!(drive.state.task, Task::Trim { .. }) {
            let mut list = Vec::new();
            for range in &regions.ranges {
                let mut piece = vec![0; range.len as usize];
                dma.read(range.gpa, &mut piece);
                list.extend(piece);
            }
            outcome = drive.trim(list);
            master.finish();
        } else if drive.state.task == Task::PacketDmaData {
            let mut bytes = drive.state.buffer.as_slice();
            for range in &regions.ranges {
                let (now, rest) = bytes.split_at(bytes.len().min(range.len as usize));
                dma.write(range.gpa, now);
                bytes = rest;
            }
            outcome = drive.packet_done();
            master.finish();
        } else {
            drive.start_dma(regions.ranges);
        }
        self.lines.master = master;
        self.apply(dma, outcome);
    }

    fn data_in(&mut self, dma: &dyn Dma, size: u8) -> u32 {
        let Some(drive) = self.selected() else { return 0 };
        let (value, outcome) = drive.data_in(size);
        self.apply(dma, outcome);
        value
    }

    fn read(&mut self, offset: u64) -> u8 {
        let high_order = self.lines.control & CONTROL_HIGH_ORDER != 0;
        if offset == STATUS {
            self.lines.interrupt = false;
        }
        let Some(drive) = self.selected() else { return ABSENT };
        let r = &drive.state.regs;
        match (offset, high_order) {
            (ERROR, false) => r.error,
            (ERROR, true) => r.old_feature,
            (COUNT, false) => r.count,
            (COUNT, true) => r.old_count,
            (LOW, false) => r.low,
            (LOW, true) => r.old_low,
            (MID, false) => r.mid,
            (MID, true) => r.old_mid,
            (HIGH, false) => r.high,
            (HIGH, true) => r.old_high,
            (DEVICE, _) => r.device | device::OBSOLETE,
            _ => r.status,
        }
    }

    fn write(&mut self, dma: &dyn Dma, offset: u64, value: u8) {
        self.lines.control &= !CONTROL_HIGH_ORDER;
        if offset == STATUS {
            return self.command(dma, value);
        }
        if offset == DEVICE {
            self.lines.second = value & device::SECOND != 0;
        }
        // Both drives have the registers.
        for drive in self.drives.iter_mut().flatten() {
            if drive.state.regs.status & (status::BSY | status::DRQ) != 0 {
                continue;
            }
            let r = &mut drive.state.regs;
            let (now, old) = match offset {
                ERROR => (&mut r.feature, &mut r.old_feature),
                COUNT => (&mut r.count, &mut r.old_count),
                LOW => (&mut r.low, &mut r.old_low),
                MID => (&mut r.mid, &mut r.old_mid),
                HIGH => (&mut r.high, &mut r.old_high),
                _ => {
                    r.device = value;
                    continue;
                }
            };
            *old = std::mem::replace(now, value);
        }
    }

    fn command(&mut self, dma: &dyn Dma, command: u8) {
        /// EXECUTE DEVICE DIAGNOSTIC is for both drives; DEVICE RESET comes through while a drive is busy.
        const DIAGNOSTIC: u8 = 0x90;
        const DEVICE_RESET: u8 = 0x08;
        self.lines.interrupt = false;
        trace_event!(trace::IDE_COMMAND, "drive {} cmd {command:#04x}", u8::from(self.lines.second));
        if command == DIAGNOSTIC {
            self.lines.second = false;
            self.drives.iter_mut().flatten().for_each(Drive::sign);
            return self.apply(dma, Outcome::INTERRUPT);
        }
        let Some(drive) = self.selected() else { return };
        let busy = drive.state.regs.status & (status::BSY | status::DRQ) != 0;
        let outcome = match drive.cd {
            true if !busy || command == DEVICE_RESET => drive.atapi_command(command),
            false if !busy => drive.ata_command(command),
            _ => {
                crate::guest_error!("ATA command {command:#04x} to a busy drive");
                return;
            }
        };
        self.apply(dma, outcome);
    }

    fn control(&mut self, value: u8) {
        let before = std::mem::replace(&mut self.lines.control, value);
        if value & CONTROL_RESET != 0 {
            for drive in self.drives.iter_mut().flatten() {
                drive.forget();
                drive.state.regs.status = status::BSY;
                drive.state.regs.error = error::PASSED;
            }
            self.lines.interrupt = false;
        } else if before & CONTROL_RESET != 0 {
            self.lines.second = false;
            self.drives.iter_mut().flatten().for_each(Drive::sign);
        }
    }
}

impl RegisterBlock for CommandBlock {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let channel = &self.0;
        match (offset, size) {
            (DATA, _) => channel.data_in(size).into(),
            (_, 1) => channel.with(|s| s.read(offset)).into(),
            _ => (0..u64::from(size)).rev().fold(0, |acc, i| acc << 8 | self.read(offset + i, 1)),
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let channel = &self.0;
        channel.with(|s| match (offset, size) {
            (DATA, _) => {
                let Some(drive) = s.selected() else { return };
                let outcome = drive.data_out(size, value as u32);
                s.apply(&*channel.dma, outcome);
            }
            _ => {
                let bytes = value.to_le_bytes();
                (offset..).zip(bytes).take(size.into()).for_each(|(at, byte)| s.write(&*channel.dma, at, byte));
            }
        });
    }

    fn sizes(&self) -> AccessSizes {
        AccessSizes::UP_TO_DWORD
    }
}

impl RegisterBlock for ControlBlock {
    fn read(&self, _offset: u64, _size: u8) -> u64 {
        // The status, without its effect on the interrupt.
        locked(&self.0.state).selected().map_or(ABSENT, |drive| drive.state.regs.status).into()
    }

    fn write(&self, _offset: u64, _size: u8, value: u64) {
        self.0.with(|s| s.control(value as u8));
    }
}

impl RegisterBlock for MasterBlock {
    fn read(&self, offset: u64, _size: u8) -> u64 {
        locked(&self.0.state).lines.master.read(offset % bus_master::PORTS).into()
    }

    fn write(&self, offset: u64, _size: u8, value: u64) {
        let channel = &self.0;
        channel.with(|s| {
            if s.lines.master.write(offset % bus_master::PORTS, value as u8) {
                s.start_dma(&*channel.dma);
            }
        });
    }
}

/// A CD drive as the user reaches it.
struct CdDrive {
    channel: Arc<Channel>,
    second: bool,
}

impl CdDrive {
    fn with<R: Default>(&self, f: impl FnOnce(&mut Drive) -> R) -> R {
        self.channel.with(|state| state.drive(self.second).map(f)).unwrap_or_default()
    }
}

impl MediumDrive for CdDrive {
    fn change(&self, medium: Option<Arc<dyn Disk>>) {
        let dma = &*self.channel.dma;
        self.channel.with(|state| {
            let Some(drive) = state.drive(self.second) else { return };
            let outcome = drive.change_medium(medium);
            state.apply(dma, outcome);
        });
    }

    fn locked(&self) -> bool {
        self.with(|drive| drive.state.optical.locked())
    }

    fn tray_open(&self) -> bool {
        self.with(|drive| drive.state.optical.tray_open())
    }

    fn ask(&self) {
        self.with(|drive| drive.state.optical.eject_requested());
    }

    fn set_tray(&self, open: bool) -> bool {
        self.with(|drive| drive.state.optical.move_tray(open));
        true
    }
}

impl DiskClient for Channel {
    fn disk_done(&self, mut done: DiskDone) {
        let second = done.token & 1 != 0;
        done.token >>= 1;
        self.with(|s| {
            let Some((outcome, dma)) = s.drive(second).map(|drive| drive.completed(done)) else { return };
            if dma {
                s.lines.master.finish();
            }
            s.apply(&*self.dma, outcome);
        });
    }
}

impl Device for Channel {
    fn name(&self) -> &'static str {
        "ide-channel"
    }

    fn reset(&self) {
        let Self { name: _, dma: _, irq: _, this: _, state: _ } = self;
        self.with(|state| {
            state.lines = Lines::default();
            state.drives.iter_mut().flatten().for_each(Drive::power_on);
        });
    }

    fn save(&self) -> StateValue {
        let State { drives, lines } = &*locked(&self.state);
        to_state(&Saved { lines: *lines, drives: drives.each_ref().map(|d| d.as_ref().map(|d| d.state.clone())) })
    }

    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        let Saved { lines, drives } = from_state(self.name(), state)?;
        let malformed = |reason: &str| StateError::Malformed { device: self.name(), reason: reason.into() };
        let mut live = locked(&self.state);
        if live.drives.iter().zip(&drives).any(|(live, saved)| live.is_some() != saved.is_some()) {
            return Err(malformed("the drives are not those of this channel"));
        }
        if drives.iter().flatten().any(|d| d.at > d.end || d.end > d.buffer.len() || !d.task.is_sane()) {
            return Err(malformed("the data of a drive do not fit"));
        }
        live.lines = lines;
        self.irq.adopt(lines.interrupt && lines.control & CONTROL_NO_INTERRUPT == 0);
        for (drive, saved) in live.drives.iter_mut().zip(drives) {
            if let (Some(drive), Some(saved)) = (drive, saved) {
                drive.state = saved;
                drive.request = None;
                drive.repeat();
            }
        }
        drop(live);
        // What was under way begins anew.
        self.with(|s| s.start_dma(&*self.dma));
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        let state = locked(&self.state);
        out.field("channel", &self.name);
        out.field("selected", u8::from(state.lines.second));
        for (number, drive) in state.drives.iter().enumerate() {
            let Some(drive) = drive else { continue };
            out.group(&format!("drive {number} ({})", if drive.cd { "ide-cd" } else { "ide-hd" }), |out| {
                out.field("serial", &drive.serial);
                out.field("sectors", drive.sectors());
                out.field("status", format_args!("{:#04x}", drive.state.regs.status));
                out.field("task", format_args!("{:?}", drive.state.task));
            });
        }
    }
}
