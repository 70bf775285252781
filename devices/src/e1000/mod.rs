//! Intel 82540EM gigabit Ethernet controller (PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's
//! Manual, order 317453; "the manual" here), the card that QEMU calls `e1000`: registers in memory and in I/O space,
//! rings of legacy and extended descriptors, segmentation and checksums, filters, statistics.
//!
//! The vCPU's thread touches registers only. Frames and rings are worked on by the I/O thread; the tail registers ring
//! doorbells. Whatever the guest writes to registers and rings, the card reads and writes guest memory only, and each
//! call does a bounded amount of work.

mod eeprom;
mod phy;
mod receive;
mod registers;
mod stats;
#[cfg(test)]
mod tests;
mod transmit;

use crate::bus::{AccessSizes, Bus, Device, RegisterBlock};
use crate::pci::PciFunction;
use crate::pci::bar::{Bar, BarError, BarKind, Bars, Rom};
use crate::pci::config::{ConfigSpace, Identity, command, reg as config_reg};
use crate::services::{
    Clock, Dma, Doorbell, IrqLine, NetBackend, NetFrontend, TimerService, TimerTarget, Unfinished, WorkService,
    WorkTarget,
};
use crate::state::{Inspector, StateError, StateValue, from_state, to_state};
use crate::wire::{TimerSlot, Wire, locked};
use crate::{trace, trace_event};
use receive::{Refusal, status};
use registers::{DESCRIPTOR, Effect, Registers, Ring, cause, ctrl, rctl, tctl};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, Weak};
use transmit::{Setup, Transmitter};

/// Bytes of the registers in memory, and in I/O space.
const MEMORY_LEN: u64 = 0x2_0000;
const IO_LEN: u64 = 0x40;
/// Descriptors sent before others get their turn, and how many are read at a time.
const BUDGET: u32 = 1024;
const BATCH: u32 = 64;
/// Unit of ITR (13.4.18).
const ITR_NS: u64 = 256;
/// TCTL: short frames are filled up.
const PAD_SHORT: u32 = 1 << 3;
const TRANSMIT: u32 = 0;
const RECEIVE: u32 = 1;

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

/// The state of sending.
#[derive(Default)]
struct Sender {
    transmitter: Transmitter,
    /// The reset since which it holds.
    epoch: u64,
}

struct Live {
    registers: Registers,
    /// Counts resets: work on rings that were given up has no effect on the new ones.
    epoch: u64,
}

/// Everything but the configuration space.
///
/// Locks: `sender` before `live`; `live` is a leaf. Guest memory, back end, interrupt and timer are used without
/// `live`; sending holds `sender`, which only the I/O thread, reset and saving take.
struct Core {
    mac: [u8; 6],
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
    command: AtomicU16,
    sender: Mutex<Sender>,
    live: Mutex<Live>,
}

impl Core {
    fn new(mac: [u8; 6], s: Surroundings) -> Arc<Self> {
        let cable = s.backend.is_some();
        Arc::new_cyclic(|this: &Weak<Self>| Self {
            mac,
            cable: AtomicBool::new(cable),
            dma: s.dma,
            backend: s.backend,
            clock: s.clock,
            irq: Wire::new(s.irq),
            timer: TimerSlot::new(s.timers.create(this.clone(), 0)),
            transmit_bell: s.work.doorbell(this.clone(), TRANSMIT),
            receive_bell: s.work.doorbell(this.clone(), RECEIVE),
            command: AtomicU16::new(0),
            sender: Mutex::default(),
            live: Mutex::new(Live { registers: Registers::power_on(mac, cable), epoch: 0 }),
        })
    }

    fn power_on(&self) -> Registers {
        Registers::power_on(self.mac, self.cable.load(Ordering::SeqCst))
    }

    fn may_master(&self) -> bool {
        self.command.load(Ordering::Acquire) & command::BUS_MASTER != 0
    }

    /// Decides about the interrupt. Call it with `live` held, then [`Core::flush`] without.
    fn update_irq(&self, registers: &mut Registers) {
        let disabled = self.command.load(Ordering::Acquire) & command::INTX_DISABLE != 0;
        if !registers.pending() || disabled {
            self.irq.want(false);
            self.timer.want(None);
        } else if !self.irq.level() {
            let now = self.clock.now_ns();
            if now >= registers.quiet_until {
                registers.quiet_until = now + u64::from(registers.itr) * ITR_NS;
                self.irq.want(true);
                self.timer.want(None);
            } else {
                self.timer.want(Some(registers.quiet_until));
            }
        }
    }

    fn flush(&self) {
        self.irq.flush();
        self.timer.flush();
    }

    /// Changes registers and delivers what follows for the interrupt.
    fn with<R>(&self, change: impl FnOnce(&mut Registers) -> R) -> R {
        let mut live = locked(&self.live);
        let result = change(&mut live.registers);
        self.update_irq(&mut live.registers);
        drop(live);
        self.flush();
        result
    }

    fn read(&self, offset: u64) -> u32 {
        match offset as u32 & !3 {
            // Reading it clears it.
            registers::reg::ICR => self.with(|registers| registers.read(offset as u32)),
            // The others have no part in the interrupt.
            _ => locked(&self.live).registers.read(offset as u32),
        }
    }

    fn write(&self, offset: u64, value: u32) {
        let Effect { transmit, receive, reset } = self.with(|registers| registers.write(offset as u32, value));
        if reset {
            self.reset_card();
        }
        if transmit {
            self.transmit_bell.ring();
        }
        if receive {
            self.receive_bell.ring();
        }
    }

    /// CTRL.RST: everything but the configuration space (13.4.1).
    fn reset_card(&self) {
        let mut live = locked(&self.live);
        live.registers = self.power_on();
        live.epoch += 1;
        self.update_irq(&mut live.registers);
        drop(live);
        self.flush();
        // Frames that wait for descriptors are not wanted any more.
        self.receive_bell.ring();
    }

    /// Sends what is in the ring, up to the budget.
    fn transmit(&self) {
        trace_event!(trace::E1000_SEND, "ring is looked at");
        let mut sender = locked(&self.sender);
        let longest = self.backend.as_ref().map_or(0, |backend| backend.longest_frame());
        let mut budget = BUDGET;
        let mut sent_any = false;
        while budget > 0 {
            let live = locked(&self.live);
            let registers = &live.registers;
            let (ring, epoch, loops) = (registers.tx, live.epoch, registers.rctl & rctl::LBM != 0);
            let vlan_type = (registers.ctrl & ctrl::VME != 0).then_some(registers.vet as u16);
            let setup = Setup { vlan_type, pad: registers.tctl & PAD_SHORT != 0, longest };
            let enabled = registers.tctl & tctl::EN != 0 && self.may_master();
            let up = registers.link_up();
            drop(live);
            if sender.epoch != epoch {
                *sender = Sender { epoch, ..Sender::default() };
            }
            let count = ring.ours().min(BATCH).min(ring.count().saturating_sub(ring.head)).min(budget);
            if !enabled || count == 0 {
                break;
            }
            budget -= count;
            let (frames, reports, segmented) = self.gather(&mut sender.transmitter, ring, count, setup);
            let mut live = locked(&self.live);
            if live.epoch != epoch {
                break;
            }
            let registers = &mut live.registers;
            registers.tx.head = ring.after(ring.head + count - 1);
            (0..segmented).for_each(|_| registers.stats.segmented());
            frames.iter().for_each(|frame| registers.stats.sent(frame));
            registers.icr |= if reports { cause::TXDW } else { 0 };
            registers.icr |= if registers.tx.ours() == 0 { cause::TXQE } else { 0 };
            self.update_irq(registers);
            drop(live);
            self.flush();
            for frame in &frames {
                match &self.backend {
                    _ if loops => drop(self.store(frame)),
                    Some(backend) if up => {
                        backend.send(frame);
                        sent_any = true;
                    }
                    _ => {}
                }
            }
        }
        drop(sender);
        if let Some(backend) = self.backend.as_ref().filter(|_| sent_any) {
            backend.sent();
        }
        if budget == 0 {
            self.transmit_bell.ring();
        }
    }

    /// Reads `count` descriptors from the ring's head on and what they point to; marks them as done where the guest
    /// wants to know. Returns the frames, whether any was to be reported, and how many packets were cut.
    fn gather(
        &self,
        transmitter: &mut Transmitter,
        ring: Ring,
        count: u32,
        setup: Setup,
    ) -> (Vec<Vec<u8>>, bool, usize) {
        let mut bytes = vec![0; count as usize * DESCRIPTOR as usize];
        self.dma.read(ring.address(ring.head), &mut bytes);
        let (mut frames, mut reports, mut segmented) = (Vec::new(), false, 0);
        for (index, descriptor) in (ring.head..).zip(bytes.as_chunks::<16>().0) {
            let read = |address, to: &mut [u8]| self.dma.read(address, to);
            let done = transmitter.descriptor(descriptor, setup, read, &mut frames);
            segmented += usize::from(done.segmented);
            if done.report {
                reports = true;
                self.dma.write(ring.address(index).wrapping_add(12), &[descriptor[12] | status::DD]);
            }
        }
        (frames, reports, segmented)
    }

    /// Puts a frame into the ring. `false`: there is no room.
    fn store(&self, frame: &[u8]) -> bool {
        let mut live = locked(&self.live);
        let epoch = live.epoch;
        let registers = &mut live.registers;
        let on = registers.rctl & rctl::EN != 0 && self.may_master();
        if !on || frame.len() < 14 {
            return true;
        }
        match receive::accepts(registers, frame) {
            Ok(()) => {}
            Err(Refusal::NotOurs) => return true,
            Err(Refusal::TooLong) => {
                registers.stats.oversized();
                return true;
            }
        }
        let mut data = frame.to_vec();
        let verdict = receive::examine(registers, &mut data);
        data.resize(data.len().max(60), 0);
        // The frame's own checksum follows it unless the guest has it stripped; what it is nobody computes.
        let total = data.len() + if registers.rctl & rctl::SECRC == 0 { 4 } else { 0 };
        let (ring, size) = (registers.rx, receive::buffer_size(registers));
        let needed = total.div_ceil(size) as u32;
        if needed > ring.ours() {
            if needed >= ring.count() {
                // It will never fit.
                registers.stats.missed();
                registers.icr |= cause::RXO;
                self.update_irq(registers);
                drop(live);
                self.flush();
                return true;
            }
            registers.starved = true;
            return false;
        }
        drop(live);
        let mut index = ring.head;
        for part in 0..needed {
            self.store_part(
                ring.address(index),
                &data,
                part as usize * size,
                size.min(total - part as usize * size),
                (part + 1 == needed).then_some(verdict),
            );
            index = ring.after(index);
        }
        self.stored(frame, index, epoch);
        true
    }

    /// A frame is in the ring, up to descriptor `index`; unless the card was reset since `epoch`.
    fn stored(&self, frame: &[u8], index: u32, epoch: u64) {
        let mut live = locked(&self.live);
        if live.epoch == epoch {
            let registers = &mut live.registers;
            registers.rx.head = index;
            registers.stats.received(frame);
            registers.icr |= cause::RXT0;
            // RCTL.RDMTS: a half, a quarter or an eighth of the ring is left.
            if registers.rx.ours() << ((registers.rctl >> 8 & 3) + 1) <= registers.rx.count() {
                registers.icr |= cause::RXDMT0;
            }
            self.update_irq(registers);
        }
        drop(live);
        self.flush();
    }

    /// Fills one buffer with `len` bytes of `data` from `at` on, and its descriptor; `last`: what the frame's last one says.
    fn store_part(&self, descriptor: u64, data: &[u8], at: usize, len: usize, last: Option<receive::Verdict>) {
        let mut address = [0; 8];
        self.dma.read(descriptor, &mut address);
        let buffer = u64::from_le_bytes(address);
        // An empty descriptor has no buffer.
        if let Some(bytes) = data.get(at..data.len().min(at + len)).filter(|_| buffer != 0) {
            self.dma.write(buffer, bytes);
        }
        let verdict = last.unwrap_or_default();
        let end = if last.is_some() { status::EOP } else { 0 };
        let mut written = [0; 8];
        written[..2].copy_from_slice(&(len as u16).to_le_bytes());
        written[2..4].copy_from_slice(&verdict.sum.to_le_bytes());
        written[4] = verdict.status | status::DD | end;
        written[5] = verdict.errors;
        written[6..].copy_from_slice(&verdict.special.to_le_bytes());
        self.dma.write(descriptor.wrapping_add(8), &written);
    }
}

impl NetFrontend for Core {
    fn receive(&self, frame: &[u8], _rest: Unfinished) -> bool {
        trace_event!(trace::E1000_RECEIVE, "{} bytes", frame.len());
        let up = locked(&self.live).registers.link_up();
        !up || self.store(frame)
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

/// The registers in memory space.
struct Memory(Arc<Core>);

impl RegisterBlock for Memory {
    fn read(&self, offset: u64, _size: u8) -> u64 {
        self.0.read(offset).into()
    }

    fn write(&self, offset: u64, _size: u8, value: u64) {
        self.0.write(offset, value as u32);
    }

    fn sizes(&self) -> AccessSizes {
        AccessSizes::DWORD
    }
}

/// The registers in I/O space (13.3.4): an address, and the register there.
struct Io(Arc<Core>);

impl Io {
    const ADDRESS: u64 = 0;
    const DATA: u64 = 4;

    fn address(&self) -> Option<u64> {
        let address = u64::from(locked(&self.0.live).registers.io_address);
        (address < MEMORY_LEN).then_some(address & !3)
    }
}

impl RegisterBlock for Io {
    fn read(&self, offset: u64, _size: u8) -> u64 {
        match offset {
            Self::ADDRESS => locked(&self.0.live).registers.io_address.into(),
            Self::DATA => self.address().map_or(0, |address| self.0.read(address).into()),
            _ => 0,
        }
    }

    fn write(&self, offset: u64, _size: u8, value: u64) {
        match offset {
            Self::ADDRESS => locked(&self.0.live).registers.io_address = value as u32,
            Self::DATA => self.address().into_iter().for_each(|address| self.0.write(address, value as u32)),
            _ => {}
        }
    }

    fn sizes(&self) -> AccessSizes {
        AccessSizes::DWORD
    }
}

/// The card.
///
/// Locks: `config` is a leaf, and none of the core's is taken while it is held.
pub struct E1000 {
    core: Arc<Core>,
    config: Mutex<ConfigSpace>,
    bars: Bars,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    config: StateValue,
    registers: Registers,
    transmitter: Transmitter,
}

fn power_on_config() -> ConfigSpace {
    let subsystem = (0x1af4, 0x1100);
    let identity = Identity { vendor: 0x8086, device: 0x100e, class: 0x02_0000, revision: 3, subsystem };
    let mut config = ConfigSpace::new(identity);
    config.set(config_reg::INTERRUPT_PIN, 1, 1);
    // Minimum grant as the EEPROM of a real card has it.
    config.set(0x3e, 1, 0xff);
    config
}

impl E1000 {
    /// A card with the hardware address `mac`.
    pub fn new(mac: [u8; 6], mut surroundings: Surroundings) -> Result<Arc<Self>, BarError> {
        let bus = surroundings.bus.clone();
        let rom = surroundings.rom.take();
        let core = Core::new(mac, surroundings);
        let mut config = power_on_config();
        let mut list = vec![
            Bar {
                index: 0,
                kind: BarKind::Memory32 { prefetchable: false },
                size: MEMORY_LEN,
                registers: Arc::new(Memory(core.clone())),
            },
            Bar { index: 1, kind: BarKind::Io, size: IO_LEN, registers: Arc::new(Io(core.clone())) },
        ];
        list.extend(rom.map(Rom::bar));
        let bars = Bars::new(&bus, "e1000", list, &mut config)?;
        if let Some(backend) = &core.backend {
            let frontend: Arc<dyn NetFrontend> = core.clone();
            backend.connect(Arc::downgrade(&frontend));
        }
        Ok(Arc::new(Self { core, config: Mutex::new(config), bars }))
    }

    /// The card as a network's other end sees it.
    pub fn frontend(&self) -> Arc<dyn NetFrontend> {
        self.core.clone()
    }

    /// The configuration space after power-on, base address registers included.
    fn fresh_config(&self) -> ConfigSpace {
        let mut config = locked(&self.config).clone();
        for at in [config_reg::COMMAND, config_reg::INTERRUPT_LINE] {
            config.set(at, if at == config_reg::COMMAND { 2 } else { 1 }, 0);
        }
        // Their low bits say what they are.
        config.set(config_reg::BAR0, 4, 0);
        config.set(config_reg::BAR0 + 4, 4, 1);
        config.set(config_reg::ROM, 4, 0);
        config
    }

    /// After a change of the configuration space.
    fn apply(&self) {
        let command = locked(&self.config).command();
        self.core.command.store(command, Ordering::Release);
        self.bars.sync(|| locked(&self.config).clone());
        self.core.with(|_| ());
        if command & command::BUS_MASTER != 0 {
            self.core.transmit_bell.ring();
        }
    }
}

impl PciFunction for E1000 {
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

    fn regions(&self) -> Vec<crate::pci::bar::Region> {
        self.bars.regions()
    }
}

impl Device for E1000 {
    fn name(&self) -> &'static str {
        "e1000"
    }

    fn reset(&self) {
        let Self { core, config, bars: _ } = self;
        let fresh = self.fresh_config();
        *locked(config) = fresh;
        self.apply();
        core.reset_card();
    }

    fn save(&self) -> StateValue {
        let Self { core, config, bars: _ } = self;
        let sender = locked(&core.sender);
        let live = locked(&core.live);
        let registers = live.registers.clone();
        let whole = sender.epoch == live.epoch;
        let transmitter = if whole { sender.transmitter.clone() } else { Transmitter::default() };
        drop((sender, live));
        let config = locked(config).save();
        to_state(&Saved { config, registers, transmitter })
    }

    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        let Self { core, config, bars: _ } = self;
        let Saved { config: saved, registers, transmitter } = from_state(self.name(), state)?;
        if !registers.is_whole() {
            let reason = "a table of registers has not its length".into();
            return Err(StateError::Malformed { device: self.name(), reason });
        }
        let mut new = self.fresh_config();
        new.restore(self.name(), &saved)?;
        let cable = core.cable.load(Ordering::SeqCst);
        let command = new.command();
        *locked(config) = new;
        let mut sender = locked(&core.sender);
        let mut live = locked(&core.live);
        live.epoch += 1;
        *sender = Sender { transmitter, epoch: live.epoch };
        live.registers = Registers { cable, ..registers };
        core.irq.adopt(live.registers.pending() && command & command::INTX_DISABLE == 0);
        drop((sender, live));
        self.apply();
        core.receive_bell.ring();
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        let [a, b, c, d, e, f] = self.core.mac;
        out.field("mac", format_args!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"));
        let live = locked(&self.core.live);
        let registers = &live.registers;
        out.field("link", if registers.link_up() { "up" } else { "down" });
        for (name, value) in [
            ("ctrl", registers.ctrl),
            ("rctl", registers.rctl),
            ("tctl", registers.tctl),
            ("icr", registers.icr),
            ("ims", registers.ims),
        ] {
            out.field(name, format_args!("{value:#010x}"));
        }
        for (name, ring) in [("rx", registers.rx), ("tx", registers.tx)] {
            let Ring { base, len, head, tail } = ring;
            out.field(name, format_args!("base {base:#x}, {len} bytes, head {head}, tail {tail}"));
        }
    }
}
