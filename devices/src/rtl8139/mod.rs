//! Realtek RTL8139C+ fast Ethernet controller (RTL8139C(L)+ datasheet, revision 1.6; "the datasheet" here), the card that
//! QEMU calls `rtl8139`: registers in I/O and in memory space, four transmit buffers and a receive buffer (C mode), or
//! rings of descriptors with segmentation and checksums (C+ mode). Or its elder, the RTL8139C, which has no C+ mode.
//!
//! The vCPU's thread touches registers only. Frames, buffers and rings are worked on by the I/O thread. Whatever the
//! guest writes to registers and rings, the card reads and writes guest memory only, and each call does a bounded amount
//! of work.

mod phy;
mod receive;
mod registers;
mod tally;
#[cfg(test)]
mod tests;
mod transmit;

use crate::bus::{AccessSizes, Bus, Device, RegisterBlock};
use crate::pci::PciFunction;
use crate::pci::bar::{Bar, BarError, BarKind, Bars, Region, Rom};
use crate::pci::config::{ConfigSpace, Identity, command as pci_command, reg as config_reg};
use crate::services::{
    Clock, Dma, Doorbell, IrqLine, NetBackend, NetFrontend, TimerService, TimerTarget, Unfinished, WorkService,
    WorkTarget,
};
use crate::state::{Inspector, StateError, StateValue, from_state, to_state};
use crate::wire::{TimerSlot, Wire, locked};
use crate::{trace, trace_event};
use receive::{CRC, status};
use registers::{Effect, RING, Registers, cause, command, rcr};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, Weak};
use tally::To;
use transmit::Transmitter;

const TRANSMIT: u32 = 0;
const RECEIVE: u32 = 1;
/// Rings: normal and high priority.
const QUEUES: usize = 2;
/// Bit of the normal ring in TPPoll.
const POLL_NORMAL: u32 = 6;

/// What the card is connected to.
pub struct Surroundings<'a> {
    /// Where its registers appear.
    pub bus: &'a Arc<Bus>,
    /// INTA#.
    pub irq: IrqLine,
    /// Guest memory.
    pub dma: Arc<dyn Dma>,
    /// The other end of the cable, if there is one.
    pub backend: Option<Arc<dyn NetBackend>>,
    /// Guest time.
    pub clock: Arc<dyn Clock>,
    /// Timers.
    pub timers: &'a dyn TimerService,
    /// Doorbells.
    pub work: &'a dyn WorkService,
    /// Its boot code, if it has some.
    pub rom: Option<Rom>,
}

/// The state of sending from rings.
#[derive(Default)]
struct Sender {
    transmitters: [Transmitter; QUEUES],
    /// The reset since which it holds.
    epoch: u64,
}

struct Live {
    registers: Registers,
    /// Counts resets: work on what was given up has no effect on what is new.
    epoch: u64,
}

/// Everything but the configuration space.
///
/// Locks: `sender` before `live`; `live` is a leaf. Guest memory, back end, interrupt and timer are used without
/// `live`; sending holds `sender`, which only the I/O thread, reset and saving take.
struct Core {
    mac: [u8; 6],
    plus: bool,
    /// There is a cable, and it is plugged in.
    cable: AtomicBool,
    dma: Arc<dyn Dma>,
    backend: Option<Arc<dyn NetBackend>>,
    clock: Arc<dyn Clock>,
    irq: Wire,
    timer: TimerSlot,
    transmit_bell: Box<dyn Doorbell>,
    receive_bell: Box<dyn Doorbell>,
    /// A copy of the PCI command register.
    pci_command: AtomicU16,
    sender: Mutex<Sender>,
    live: Mutex<Live>,
}

impl Core {
    fn new(mac: [u8; 6], plus: bool, s: Surroundings) -> Arc<Self> {
        let cable = s.backend.is_some();
        Arc::new_cyclic(|this: &Weak<Self>| Self {
            mac,
            plus,
            cable: AtomicBool::new(cable),
            dma: s.dma,
            backend: s.backend,
            clock: s.clock,
            irq: Wire::new(s.irq),
            timer: TimerSlot::new(s.timers.create(this.clone(), 0)),
            transmit_bell: s.work.doorbell(this.clone(), TRANSMIT),
            receive_bell: s.work.doorbell(this.clone(), RECEIVE),
            pci_command: AtomicU16::new(0),
            sender: Mutex::default(),
            live: Mutex::new(Live { registers: Registers::power_on(mac, plus, cable), epoch: 0 }),
        })
    }

    fn may_master(&self) -> bool {
        self.pci_command.load(Ordering::Acquire) & pci_command::BUS_MASTER != 0
    }

    /// Decides about interrupt and timer. Call it with `live` held, then [`Core::flush`] without.
    fn update(&self, registers: &mut Registers) {
        let disabled = self.pci_command.load(Ordering::Acquire) & pci_command::INTX_DISABLE != 0;
        self.timer.want(registers.timer(self.clock.now_ns()));
        self.irq.want(registers.pending() && !disabled);
    }

    fn flush(&self) {
        self.irq.flush();
        self.timer.flush();
    }

    /// Changes registers and delivers what follows for interrupt and timer.
    fn with<R>(&self, change: impl FnOnce(&mut Registers) -> R) -> R {
        let mut live = locked(&self.live);
        let result = change(&mut live.registers);
        self.update(&mut live.registers);
        drop(live);
        self.flush();
        result
    }

    /// As `with`, if the card was not reset since `epoch`.
    fn with_since(&self, epoch: u64, change: impl FnOnce(&mut Registers)) -> bool {
        let mut live = locked(&self.live);
        let same = live.epoch == epoch;
        if same {
            change(&mut live.registers);
            self.update(&mut live.registers);
        }
        drop(live);
        self.flush();
        same
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let now = self.clock.now_ns();
        let mut live = locked(&self.live);
        let effect = live.registers.write(offset as u8, size, value as u32, now);
        if effect.reset {
            live.registers.reset(now);
            live.epoch += 1;
        }
        let tally = effect.dump.map(|address| (address, live.registers.tally.bytes()));
        self.update(&mut live.registers);
        drop(live);
        self.flush();
        if let Some((address, tally)) = tally.filter(|_| self.may_master()) {
            self.dma.write(address, &tally);
        }
        self.follow(effect);
    }

    fn follow(&self, Effect { transmit, receive, reset, dump: _ }: Effect) {
        if transmit {
            self.transmit_bell.ring();
        }
        // After a reset, frames that wait for room are not wanted any more.
        if receive || reset {
            self.receive_bell.ring();
        }
    }

    /// Everything as after power-on.
    fn power_on(&self) {
        let cable = self.cable.load(Ordering::SeqCst);
        let mut live = locked(&self.live);
        live.registers = Registers::power_on(self.mac, self.plus, cable);
        live.epoch += 1;
        self.update(&mut live.registers);
        drop(live);
        self.flush();
        self.receive_bell.ring();
    }

    /// Sends what is ready: at most what was there when the doorbell was rung. What comes after that rings it anew.
    fn transmit(&self) {
        trace_event!(trace::RTL8139_SEND, "slots and rings are looked at");
        let mut sender = locked(&self.sender);
        let mut sent = self.send_slots();
        let polled = std::mem::take(&mut locked(&self.live).registers.polled);
        // High priority first (datasheet 6.30).
        for queue in (0..QUEUES).rev().filter(|queue| u32::from(polled) >> (POLL_NORMAL + *queue as u32) & 1 != 0) {
            sent |= self.send_ring(&mut sender, queue);
        }
        drop(sender);
        if let Some(backend) = self.backend.as_ref().filter(|_| sent) {
            backend.sent();
        }
    }

    /// C mode: sends the buffers that are ready. Whether there was one.
    fn send_slots(&self) -> bool {
        let mut any = false;
        for _ in 0..4 {
            let live = locked(&self.live);
            let (slot, epoch, back) = (live.registers.next_slot(), live.epoch, live.registers.loops_back());
            drop(live);
            let Some(slot) = slot.filter(|_| self.may_master()) else { break };
            let mut frame = vec![0; slot.len];
            self.dma.read(slot.address, &mut frame);
            frame.resize(frame.len().max(transmit::SHORTEST), 0);
            if !self.with_since(epoch, |registers| registers.slot_done(slot)) {
                break;
            }
            self.out(&frame, back);
            any = true;
        }
        any
    }

    /// C+ mode: sends what is in a ring. Whether there was something.
    fn send_ring(&self, sender: &mut Sender, queue: usize) -> bool {
        let longest = self.backend.as_ref().map_or(0, |backend| backend.longest_frame());
        let mut any = false;
        for _ in 0..RING {
            let live = locked(&self.live);
            let (epoch, back) = (live.epoch, live.registers.loops_back());
            let on = live.registers.sends_from_rings() && self.may_master();
            let address = live.registers.tx_descriptor(queue);
            drop(live);
            if sender.epoch != epoch {
                *sender = Sender { epoch, ..Sender::default() };
            }
            let mut words = [0; 16];
            if on {
                self.dma.read(address, &mut words);
            }
            let [first, second] = [0, 4].map(|at| le32(&words, at));
            if first & transmit::command::OWN == 0 {
                if on && any {
                    self.with_since(epoch, |registers| registers.isr |= cause::TDU);
                }
                break;
            }
            any = true;
            let buffer = u64::from(le32(&words, 8)) | u64::from(le32(&words, 12)) << 32;
            let read = |to: &mut [u8]| self.dma.read(buffer, to);
            let mut frames = Vec::new();
            sender.transmitters[queue & 1].descriptor((first, second), longest, read, &mut frames);
            let report = first & !(transmit::command::OWN | transmit::command::REPORT);
            self.dma.write(address, &report.to_le_bytes());
            let done = self.with_since(epoch, |registers| {
                registers.tx_advance(queue, first & transmit::command::END != 0);
                registers.isr |= if first & transmit::command::LAST != 0 { cause::TOK } else { 0 };
                frames.iter().for_each(|_| registers.tally.sent());
            });
            if !done {
                break;
            }
            frames.iter().for_each(|frame| self.out(frame, back));
        }
        any
    }

    /// A frame leaves the chip, or goes back into it.
    fn out(&self, frame: &[u8], back: bool) {
        match &self.backend {
            _ if back => drop(self.store(frame)),
            Some(backend) if self.cable.load(Ordering::SeqCst) => backend.send(frame),
            _ => {}
        }
    }

    /// Stores a frame for the guest. `false`: there is no room.
    fn store(&self, frame: &[u8]) -> bool {
        let live = locked(&self.live);
        let on = live.registers.command & command::RECEIVE != 0 && self.may_master();
        let to = receive::accepts(&live.registers, frame).filter(|_| on && frame.len() >= 14);
        let (epoch, ring) = (live.epoch, live.registers.receives_to_ring());
        drop(live);
        let Some(to) = to else { return true };
        if frame.len() + CRC > receive::LONGEST {
            self.with_since(epoch, |registers| registers.tally.bad());
            return true;
        }
        if ring { self.store_in_ring(frame, to, epoch) } else { self.store_in_buffer(frame, to, epoch) }
    }

    /// C mode (datasheet 5.1): a header, the frame and its checksum, up to a multiple of 4.
    fn store_in_buffer(&self, frame: &[u8], to: To, epoch: u64) -> bool {
        let len = frame.len().max(receive::SHORTEST) + CRC;
        let mut bytes = receive::packet_header(to, len).to_vec();
        bytes.extend_from_slice(frame);
        bytes.resize((4 + len).next_multiple_of(4), 0);
        let mut live = locked(&self.live);
        let registers = &mut live.registers;
        let size = registers.rx_size();
        // A buffer that is full would look like an empty one.
        if bytes.len() as u32 >= registers.rx_room() {
            registers.starved = true;
            // Nothing is lost, so this is no overflow. But a driver that has acknowledged what came and left some of it
            // for later must come back.
            registers.isr |= cause::ROK;
            self.update(registers);
            drop(live);
            self.flush();
            return false;
        }
        registers.starved = false;
        let (base, at) = (u64::from(registers.rx_buffer), registers.rx_write);
        let wraps = registers.rcr & rcr::NO_WRAP == 0 || size > 0x8000;
        drop(live);
        let before_end = if wraps { (size - at) as usize } else { bytes.len() };
        let (now, over) = bytes.split_at(before_end.min(bytes.len()));
        self.dma.write(base + u64::from(at), now);
        self.dma.write(base, over);
        self.with_since(epoch, |registers| {
            registers.rx_write = (at + bytes.len() as u32) & (registers.rx_size() - 1);
            registers.tally.received(to);
            registers.isr |= cause::ROK;
        });
        true
    }

    /// C+ mode (datasheet 7.2): as many descriptors as it takes.
    fn store_in_ring(&self, frame: &[u8], to: To, epoch: u64) -> bool {
        let live = locked(&self.live);
        let first = live.registers.rx_index;
        let mut data = frame.to_vec();
        let verdict = receive::examine(&live.registers, to, &mut data);
        let places = (0..RING).map(|index| live.registers.rx_descriptor(index)).collect::<Vec<_>>();
        drop(live);
        data.resize(data.len().max(receive::SHORTEST), 0);
        let total = data.len() + CRC;
        let mut parts = Vec::new();
        let (mut index, mut room) = (first % RING, 0);
        while room < total {
            let place = places.get(usize::from(index)).copied().unwrap_or_default();
            let mut words = [0; 16];
            self.dma.read(place, &mut words);
            let before = le32(&words, 0);
            if before & status::OWN == 0 {
                self.with_since(epoch, |registers| {
                    registers.starved = true;
                    registers.isr |= cause::RDU;
                });
                return false;
            }
            if parts.len() == usize::from(RING) {
                // It will never fit.
                self.with_since(epoch, Registers::miss);
                return true;
            }
            let buffer = u64::from(le32(&words, 8)) | u64::from(le32(&words, 12)) << 32;
            parts.push(Part { place, before, buffer });
            room += (before & status::LEN) as usize;
            index = if before & status::END != 0 { 0 } else { (index + 1) % RING };
        }
        self.fill(&parts, &data, total, verdict);
        self.with_since(epoch, |registers| {
            registers.rx_index = index;
            registers.starved = false;
            registers.tally.received(to);
            registers.isr |= cause::ROK;
        });
        true
    }

    /// Fills buffers and hands their descriptors over, the first one last: a driver that looks at it finds all of them.
    fn fill(&self, parts: &[Part], data: &[u8], total: usize, (first, second): (u32, u32)) {
        let mut at = 0;
        let mut written = Vec::new();
        for (i, part) in parts.iter().enumerate() {
            let len = ((part.before & status::LEN) as usize).min(total - at);
            if let Some(bytes) = data.get(at..data.len().min(at + len)) {
                self.dma.write(part.buffer, bytes);
            }
            at += len;
            let last = i + 1 == parts.len();
            let mut word = part.before & status::END | first;
            word |= if i == 0 { status::FIRST } else { 0 };
            // The last one has the length of all.
            word |= if last { status::LAST | total as u32 } else { len as u32 };
            let words = [word.to_le_bytes(), second.to_le_bytes()].concat();
            written.push((part.place, words));
        }
        for (place, words) in written.iter().rev() {
            self.dma.write(place.wrapping_add(4), &words[4..]);
            self.dma.write(*place, &words[..4]);
        }
    }
}

/// A receive descriptor that takes part of a frame.
struct Part {
    place: u64,
    before: u32,
    buffer: u64,
}

fn le32(bytes: &[u8; 16], at: usize) -> u32 {
    u32::from_le_bytes([0, 1, 2, 3].map(|i| bytes[(at + i) & 15]))
}

impl NetFrontend for Core {
    fn receive(&self, frame: &[u8], _rest: Unfinished) -> bool {
        trace_event!(trace::RTL8139_RECEIVE, "{} bytes", frame.len());
        !self.cable.load(Ordering::SeqCst) || self.store(frame)
    }

    fn set_link(&self, up: bool) {
        let up = up && self.backend.is_some();
        self.cable.store(up, Ordering::SeqCst);
        self.with(|registers| registers.set_cable(up));
        // Frames that wait are not wanted any more, or can be taken again.
        self.receive_bell.ring();
    }
}

impl WorkTarget for Core {
    fn work(&self, tag: u32) {
        match tag {
            TRANSMIT => self.transmit(),
            _ => self.backend.iter().for_each(|backend| backend.receive_ready()),
        }
    }
}

impl TimerTarget for Core {
    fn timer_fired(&self, _tag: u32, _now_ns: u64) {
        self.timer.fired();
        self.with(|_| ());
    }
}

/// The registers, the same in I/O and in memory space.
struct Window(Arc<Core>);

impl RegisterBlock for Window {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let now = self.0.clock.now_ns();
        self.0.with(|registers| registers.read(offset as u8, size, now)).into()
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        self.0.write(offset, size, value);
    }

    fn sizes(&self) -> AccessSizes {
        AccessSizes::UP_TO_DWORD
    }
}

/// The card.
///
/// Locks: `config` is a leaf, and none of the core's is taken while it is held.
pub struct Rtl8139 {
    core: Arc<Core>,
    config: Mutex<ConfigSpace>,
    /// The configuration space after power-on.
    fresh: ConfigSpace,
    bars: Bars,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    config: StateValue,
    registers: Registers,
    transmitters: [Transmitter; QUEUES],
}

fn power_on_config(plus: bool) -> ConfigSpace {
    let subsystem = (0x1af4, 0x1100);
    let revision = if plus { 0x20 } else { 0x10 };
    let mut config =
        ConfigSpace::new(Identity { vendor: 0x10ec, device: 0x8139, class: 0x02_0000, revision, subsystem });
    config.set(config_reg::INTERRUPT_PIN, 1, 1);
    // Linux turns memory write and invalidate on, and gives up where the size of a cache line does not stay.
    config.allow(config_reg::COMMAND, 2, 0x0557);
    config.allow(config_reg::CACHE_LINE, 2, 0xffff);
    config
}

impl Rtl8139 {
    /// A card with the hardware address `mac`; `plus`: the RTL8139C+, otherwise the RTL8139C.
    pub fn new(mac: [u8; 6], plus: bool, mut surroundings: Surroundings) -> Result<Arc<Self>, BarError> {
        let bus = surroundings.bus.clone();
        let rom = surroundings.rom.take();
        let core = Core::new(mac, plus, surroundings);
        let mut config = power_on_config(plus);
        let registers = Arc::new(Window(core.clone()));
        let memory = BarKind::Memory32 { prefetchable: false };
        let mut list = vec![
            Bar { index: 0, kind: BarKind::Io, size: registers::LEN, registers: registers.clone() },
            Bar { index: 1, kind: memory, size: registers::LEN, registers },
        ];
        list.extend(rom.map(Rom::bar));
        let bars = Bars::new(&bus, "rtl8139", list, &mut config)?;
        if let Some(backend) = &core.backend {
            let frontend: Arc<dyn NetFrontend> = core.clone();
            backend.connect(Arc::downgrade(&frontend));
        }
        Ok(Arc::new(Self { core, config: Mutex::new(config.clone()), fresh: config, bars }))
    }

    /// The card as a network's other end sees it.
    pub fn frontend(&self) -> Arc<dyn NetFrontend> {
        self.core.clone()
    }

    /// After a change of the configuration space.
    fn apply(&self) {
        let command = locked(&self.config).command();
        self.core.pci_command.store(command, Ordering::Release);
        self.bars.sync(|| locked(&self.config).clone());
        self.core.with(|_| ());
        if command & pci_command::BUS_MASTER != 0 {
            self.core.transmit_bell.ring();
        }
    }
}

impl PciFunction for Rtl8139 {
    fn config_read(&self, offset: u8, size: u8) -> u32 {
        const INTERRUPT_STATUS: u32 = 1 << 3;
        let mut config = locked(&self.config).clone();
        let pending = if self.core.irq.level() { INTERRUPT_STATUS } else { 0 };
        let status = config.read(config_reg::STATUS, 2) & !INTERRUPT_STATUS;
        config.set(config_reg::STATUS, 2, status | pending);
        config.read(offset, size)
    }

    fn config_write(&self, offset: u8, size: u8, value: u32) {
        locked(&self.config).write(offset, size, value);
        if Bars::concerns(offset) {
            self.apply();
        }
    }

    fn regions(&self) -> Vec<Region> {
        self.bars.regions()
    }
}

impl Device for Rtl8139 {
    fn name(&self) -> &'static str {
        "rtl8139"
    }

    fn reset(&self) {
        let Self { core, config, fresh, bars: _ } = self;
        *locked(config) = fresh.clone();
        self.apply();
        core.power_on();
    }

    fn save(&self) -> StateValue {
        let Self { core, config, fresh: _, bars: _ } = self;
        let sender = locked(&core.sender);
        let live = locked(&core.live);
        let registers = live.registers.clone();
        let whole = sender.epoch == live.epoch;
        let transmitters = if whole { sender.transmitters.clone() } else { Default::default() };
        drop((sender, live));
        let config = locked(config).save();
        to_state(&Saved { config, registers, transmitters })
    }

    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        let Self { core, config, fresh, bars: _ } = self;
        let Saved { config: saved, mut registers, transmitters } = from_state(self.name(), state)?;
        if !registers.is_whole() {
            let reason = "a register has a value that cannot be".into();
            return Err(StateError::Malformed { device: self.name(), reason });
        }
        let mut new = fresh.clone();
        new.restore(self.name(), &saved)?;
        let command = new.command();
        *locked(config) = new;
        let mut sender = locked(&core.sender);
        let mut live = locked(&core.live);
        live.epoch += 1;
        *sender = Sender { transmitters, epoch: live.epoch };
        let cable = core.cable.load(Ordering::SeqCst);
        (registers.plus, registers.cable) = (core.plus, cable);
        live.registers = registers;
        core.irq.adopt(live.registers.pending() && command & pci_command::INTX_DISABLE == 0);
        drop((sender, live));
        self.apply();
        core.transmit_bell.ring();
        core.receive_bell.ring();
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        let [a, b, c, d, e, f] = self.core.mac;
        out.field("mac", format_args!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"));
        out.field("link", if self.core.cable.load(Ordering::SeqCst) { "up" } else { "down" });
        let now = self.core.clock.now_ns();
        // A copy: looking must not take back what reading takes back.
        let mut registers = locked(&self.core.live).registers.clone();
        out.field("mode", if registers.cpcr & 3 != 0 { "C+" } else { "C" });
        for (name, offset, size) in
            [("command", 0x37, 1), ("imr", 0x3c, 2), ("isr", 0x3e, 2), ("tcr", 0x40, 4), ("rcr", 0x44, 4)]
        {
            out.field(name, format_args!("{:#x}", registers.read(offset, size, now)));
        }
        out.field("rx", format_args!("{:#x}, at {:#x}", registers.rx_buffer, registers.rx_write));
        for (name, queue) in [("tx", 0), ("tx_high", 1)] {
            out.field(name, format_args!("next descriptor at {:#x}", registers.tx_descriptor(queue)));
        }
        let rx = registers.rx_descriptor(registers.rx_index);
        out.field("rx_ring", format_args!("next descriptor at {rx:#x}"));
    }
}
