//! One local APIC: its registers and what reading and writing them means, without locks and without calls to the
//! outside. What has to happen elsewhere is collected in [`Effects`].

use super::message::{DeliveryMode, Destination, Message, narrow_destination};
use super::timer::{ApicTimer, TimerMode};
use super::vectors::VectorSet;
use crate::{trace, trace_event};
use serde::{Deserialize, Serialize};

/// Bits of IA32_APIC_BASE (SDM 3A figure 11-26).
pub(super) mod apic_base {
    pub const BSP: u64 = 1 << 8;
    pub const X2APIC: u64 = 1 << 10;
    pub const ENABLE: u64 = 1 << 11;
    pub const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;
    pub const DEFAULT_ADDRESS: u64 = 0xFEE0_0000;
}

/// Register numbers: MMIO offset divided by 16, or x2APIC MSR less 0x800 (SDM 3A tables 11-1 and 11-6).
mod reg {
    pub const ID: u32 = 0x02;
    pub const VERSION: u32 = 0x03;
    pub const TPR: u32 = 0x08;
    pub const APR: u32 = 0x09;
    pub const PPR: u32 = 0x0A;
    pub const EOI: u32 = 0x0B;
    pub const REMOTE_READ: u32 = 0x0C;
    pub const LDR: u32 = 0x0D;
    pub const DFR: u32 = 0x0E;
    pub const SVR: u32 = 0x0F;
    pub const ISR: u32 = 0x10;
    pub const ISR_LAST: u32 = 0x17;
    pub const TMR: u32 = 0x18;
    pub const TMR_LAST: u32 = 0x1F;
    pub const IRR: u32 = 0x20;
    pub const IRR_LAST: u32 = 0x27;
    pub const ESR: u32 = 0x28;
    pub const LVT_CMCI: u32 = 0x2F;
    pub const ICR: u32 = 0x30;
    pub const ICR_HIGH: u32 = 0x31;
    pub const LVT_FIRST: u32 = 0x32;
    pub const LVT_LAST: u32 = 0x37;
    pub const TIMER_INITIAL: u32 = 0x38;
    pub const TIMER_CURRENT: u32 = 0x39;
    pub const TIMER_DIVIDE: u32 = 0x3E;
    pub const SELF_IPI: u32 = 0x3F;
}

/// Indices into the local vector table, in register order; CMCI, whose register lies apart, is last.
pub(super) mod lvt {
    pub const TIMER: usize = 0;
    pub const LINT0: usize = 3;
    pub const ERROR: usize = 5;
    pub const CMCI: usize = 6;
    pub const COUNT: usize = 7;
    pub const MASKED: u32 = 1 << 16;
    pub const LEVEL: u32 = 1 << 15;
    pub const REMOTE_IRR: u32 = 1 << 14;
    /// Writable bits of each entry (SDM 3A figure 11-8).
    pub const WRITABLE: [u32; COUNT] = [0x7_00FF, 0x1_07FF, 0x1_07FF, 0x1_A7FF, 0x1_A7FF, 0x1_00FF, 0x1_07FF];
}

const SVR_ENABLE: u32 = 1 << 8;
const SVR_SUPPRESS_EOI: u32 = 1 << 12;
const SVR_WRITABLE: u32 = 0x13FF;

const ESR_SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
const ESR_RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;

/// Integrated APIC, highest LVT entry number 6, suppression of EOI broadcasts (SDM 3A 11.4.8).
const VERSION: u32 = 0x14 | (lvt::COUNT as u32 - 1) << 16 | 1 << 24;

/// Writable bits of the low half of the ICR; bit 12, delivery status, always reads idle.
const ICR_WRITABLE: u32 = 0x000C_CFFF;
const ICR_LEVEL_ASSERT: u32 = 1 << 14;
const ICR_TRIGGER_LEVEL: u32 = 1 << 15;
const ICR_LOGICAL: u32 = 1 << 11;

/// The attention of the CPU that a message or pin asks for besides maskable interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    Nmi,
    Smi,
    Init,
    StartUp(u8),
}

/// What an operation on a local APIC leaves to be done once its lock is released.
#[derive(Debug, Default)]
pub(super) struct Effects {
    /// Tell the I/O APICs about the end of this interrupt.
    pub(super) eoi: Option<u8>,
    /// Send this message.
    pub(super) send: Option<Message>,
    /// Call for the CPU.
    pub(super) signal: Option<Signal>,
}

/// What a local APIC is by construction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity {
    pub(super) index: usize,
    pub(super) apic_id: u32,
    pub(super) bootstrap: bool,
    pub(super) x2apic: bool,
    pub(super) physical_bits: u32,
}

/// The volatile state of one local APIC. It is saved as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Volatile {
    pub(super) base: u64,
    /// xAPIC ID register.
    id: u8,
    tpr: u8,
    /// Logical destination register, bits 31:24.
    ldr: u8,
    /// Destination format register, bits 31:28.
    dfr: u8,
    svr: u32,
    isr: VectorSet,
    tmr: VectorSet,
    irr: VectorSet,
    /// What the ESR reads.
    esr: u32,
    /// Errors since the last write to the ESR.
    esr_collected: u32,
    icr: u64,
    lvt: [u32; lvt::COUNT],
    timer: ApicTimer,
    /// Levels of LINT0 and LINT1.
    lint: [bool; 2],
    /// An ExtINT message arrived and was not acknowledged yet.
    ext_int: bool,
    /// Guest time stamp counter less guest time.
    tsc_offset: u64,
}

/// One local APIC.
#[derive(Debug)]
pub(super) struct Lapic {
    pub(super) identity: Identity,
    pub(super) state: Volatile,
}

impl Volatile {
    /// After power-on. The bootstrap processor's LINT0 passes the 8259's interrupts through (virtual wire, SDM 3A
    /// 11.1 and MP specification 3.6.2.2): firmware leaves it so, and programs started without firmware expect it.
    fn power_on(identity: &Identity) -> Self {
        let mut entries = [lvt::MASKED; lvt::COUNT];
        let mut base = apic_base::DEFAULT_ADDRESS | apic_base::ENABLE;
        if identity.bootstrap {
            entries[lvt::LINT0] = 7 << 8;
            base |= apic_base::BSP;
        }
        Self {
            base,
            id: identity.apic_id as u8,
            tpr: 0,
            ldr: 0,
            dfr: 0xF,
            svr: 0xFF,
            isr: VectorSet::default(),
            tmr: VectorSet::default(),
            irr: VectorSet::default(),
            esr: 0,
            esr_collected: 0,
            icr: 0,
            lvt: entries,
            timer: ApicTimer::default(),
            lint: [false; 2],
            ext_int: false,
            tsc_offset: 0,
        }
    }
}

impl Lapic {
    pub(super) fn new(identity: Identity) -> Self {
        Self { identity, state: Volatile::power_on(&identity) }
    }

    /// Power-on reset. The pins keep their levels: they are driven from outside.
    pub(super) fn reset(&mut self) {
        let lint = self.state.lint;
        self.state = Volatile { lint, ..Volatile::power_on(&self.identity) };
    }

    /// INIT reset: all but the base MSR and the APIC ID (SDM 3A 11.4.7.3).
    fn init_reset(&mut self) {
        let Volatile { base, id, lint, tsc_offset, .. } = self.state;
        self.state = Volatile { base, id, lint, tsc_offset, ..Volatile::power_on(&self.identity) };
    }

    pub(super) fn enabled(&self) -> bool {
        self.state.base & apic_base::ENABLE != 0
    }

    pub(super) fn x2apic(&self) -> bool {
        self.state.base & apic_base::X2APIC != 0
    }

    pub(super) fn software_enabled(&self) -> bool {
        self.state.svr & SVR_ENABLE != 0
    }

    fn timer_mode(&self) -> TimerMode {
        TimerMode::from_lvt(self.state.lvt[lvt::TIMER])
    }

    /// Task priority register.
    pub(super) fn tpr(&self) -> u8 {
        self.state.tpr
    }

    pub(super) fn set_tpr(&mut self, tpr: u8) {
        self.state.tpr = tpr;
    }

    /// Processor priority (SDM 3A 11.8.3.1).
    pub(super) fn ppr(&self) -> u8 {
        let in_service = self.state.isr.highest().unwrap_or(0);
        if self.state.tpr >> 4 >= in_service >> 4 { self.state.tpr } else { in_service & 0xF0 }
    }

    /// The vector that the CPU should take now, if any.
    fn deliverable_vector(&self) -> Option<u8> {
        self.state.irr.highest().filter(|v| self.enabled() && v >> 4 > self.ppr() >> 4)
    }

    /// Whether an interrupt of the 8259 pair should be taken.
    fn external_deliverable(&self) -> bool {
        let [lint0, _] = self.state.lint;
        if !self.enabled() {
            return lint0; // the pin is INTR then, SDM 3A 11.4.3
        }
        let entry = self.state.lvt[lvt::LINT0];
        self.state.ext_int || (lint0 && entry & lvt::MASKED == 0 && entry >> 8 & 7 == 7)
    }

    /// Whether the CPU has an interrupt to take, apart from its own interrupt flag.
    pub(super) fn pending(&self) -> bool {
        self.deliverable_vector().is_some() || self.external_deliverable()
    }

    /// Interrupt acknowledge. `Err(true)`: the vector has to come from the 8259 pair.
    pub(super) fn acknowledge(&mut self) -> Result<u8, bool> {
        if let Some(vector) = self.deliverable_vector() {
            self.state.irr.remove(vector);
            self.state.isr.insert(vector);
            return Ok(vector);
        }
        let external = self.external_deliverable();
        self.state.ext_int = false;
        Err(external)
    }

    /// End of interrupt: the highest in service ends (SDM 3A 11.8.5).
    fn end_of_interrupt(&mut self, fx: &mut Effects) {
        let Some(vector) = self.state.isr.highest() else { return };
        self.state.isr.remove(vector);
        if !self.state.tmr.contains(vector) {
            return;
        }
        if self.state.svr & SVR_SUPPRESS_EOI == 0 {
            fx.eoi = Some(vector);
        }
        for pin in 0..2 {
            let index = lvt::LINT0 + pin;
            let entry = self.state.lvt[index];
            if entry & lvt::REMOTE_IRR != 0 && entry as u8 == vector {
                self.state.lvt[index] &= !lvt::REMOTE_IRR;
                if self.state.lint[pin] {
                    self.fire_lvt(index, fx);
                }
            }
        }
    }

    /// Takes a message or local interrupt; tells whether it was taken.
    pub(super) fn accept(&mut self, mode: DeliveryMode, vector: u8, level: bool, fx: &mut Effects) -> bool {
        if !self.enabled() {
            return false;
        }
        trace_event!(trace::APIC_ACCEPT, "{mode:?} vector {vector:#04x} {}", if level { "level" } else { "edge" });
        match mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => return self.accept_vector(vector, level, fx),
            DeliveryMode::ExtInt => self.state.ext_int = true,
            DeliveryMode::Smi => fx.signal = Some(Signal::Smi),
            DeliveryMode::Nmi => fx.signal = Some(Signal::Nmi),
            DeliveryMode::Init => {
                self.init_reset();
                fx.signal = Some(Signal::Init);
            }
            DeliveryMode::StartUp => fx.signal = Some(Signal::StartUp(vector)),
        }
        true
    }

    fn accept_vector(&mut self, vector: u8, level: bool, fx: &mut Effects) -> bool {
        if !self.software_enabled() {
            return false;
        }
        if vector < 16 {
            self.error(ESR_RECEIVE_ILLEGAL_VECTOR, fx);
            return true;
        }
        self.state.irr.insert(vector);
        if level {
            self.state.tmr.insert(vector);
        } else {
            self.state.tmr.remove(vector);
        }
        true
    }

    /// Delivers through an LVT entry unless it is masked.
    fn fire_lvt(&mut self, index: usize, fx: &mut Effects) {
        let entry = self.state.lvt[index];
        if entry & lvt::MASKED != 0 {
            return;
        }
        let mode = match index {
            lvt::TIMER | lvt::ERROR => DeliveryMode::Fixed,
            _ => match DeliveryMode::from_bits(entry >> 8) {
                // ExtINT follows the pin's level, see `external_deliverable`; start-up is no LVT mode.
                None | Some(DeliveryMode::ExtInt | DeliveryMode::StartUp | DeliveryMode::LowestPriority) => return,
                Some(mode) => mode,
            },
        };
        let level = entry & lvt::LEVEL != 0 && mode == DeliveryMode::Fixed;
        if level && entry & lvt::REMOTE_IRR != 0 {
            return;
        }
        if self.accept(mode, entry as u8, level, fx) && level {
            self.state.lvt[index] |= lvt::REMOTE_IRR;
        }
    }

    /// Records an error and raises the error interrupt. The entry's own illegal vector must not raise it again.
    fn error(&mut self, bit: u32, fx: &mut Effects) {
        let fresh = self.state.esr_collected & bit == 0;
        self.state.esr_collected |= bit;
        if fresh {
            self.fire_lvt(lvt::ERROR, fx);
        }
    }

    /// Sets the level of LINT0 or LINT1.
    pub(super) fn set_pin(&mut self, pin: usize, level: bool, fx: &mut Effects) {
        let Some(state) = self.state.lint.get_mut(pin) else { return };
        let rising = level && !*state;
        *state = level;
        if !rising {
            return;
        }
        if self.enabled() {
            self.fire_lvt(lvt::LINT0 + pin, fx);
        } else if pin == 1 {
            fx.signal = Some(Signal::Nmi); // the pin is NMI then, SDM 3A 11.4.3
        }
    }

    /// Guest time at which [`Lapic::run_timer`] wants to be called.
    pub(super) fn timer_wake_ns(&self) -> Option<u64> {
        self.state.timer.wake_ns(self.timer_mode())
    }

    /// Lets the timer fire if its time has come.
    pub(super) fn run_timer(&mut self, now_ns: u64, fx: &mut Effects) {
        if self.state.timer.expire(self.timer_mode(), now_ns) {
            self.fire_lvt(lvt::TIMER, fx);
        }
    }

    /// IA32_TSC_DEADLINE.
    pub(super) fn tsc_deadline(&self) -> u64 {
        self.state.timer.tsc_deadline()
    }

    pub(super) fn set_tsc_deadline(&mut self, value: u64, now_ns: u64, fx: &mut Effects) {
        self.state.timer.set_tsc_deadline(self.timer_mode(), value, self.state.tsc_offset, now_ns);
        self.run_timer(now_ns, fx);
    }

    pub(super) fn set_tsc_offset(&mut self, offset: u64, now_ns: u64, fx: &mut Effects) {
        self.state.tsc_offset = offset;
        let deadline = self.state.timer.tsc_deadline();
        if deadline != 0 {
            self.set_tsc_deadline(deadline, now_ns, fx);
        }
    }

    /// Writes IA32_APIC_BASE; `false` is #GP. Transitions as in SDM 3A 11.12.5.
    pub(super) fn set_base(&mut self, value: u64) -> bool {
        use apic_base::{ADDRESS, BSP, ENABLE, X2APIC};
        let physical = 1u64.checked_shl(self.identity.physical_bits).map_or(u64::MAX, |limit| limit - 1);
        let allowed = (ADDRESS & physical) | BSP | ENABLE | if self.identity.x2apic { X2APIC } else { 0 };
        let (old, new) = (self.state.base & (ENABLE | X2APIC), value & (ENABLE | X2APIC));
        let transition = match (old, new) {
            (_, X2APIC) => false,
            (0, both) if both == ENABLE | X2APIC => false,
            (both, ENABLE) if both == ENABLE | X2APIC => false,
            _ => true,
        };
        if value & !allowed != 0 || !transition {
            return false;
        }
        if new == 0 && old != 0 {
            self.init_reset();
            self.state.id = self.identity.apic_id as u8;
        }
        self.state.base = value & !BSP | if self.identity.bootstrap { BSP } else { 0 };
        true
    }

    /// The x2APIC logical ID (SDM 3A 11.12.10.2).
    fn x2apic_logical_id(&self) -> u32 {
        self.identity.apic_id >> 4 << 16 | 1 << (self.identity.apic_id & 15)
    }

    /// Whether a message to `destination` is for this APIC.
    pub(super) fn matches(&self, destination: Destination) -> bool {
        match destination {
            Destination::All => true,
            Destination::AllBut(index) => index != self.identity.index,
            Destination::Only(index) => index == self.identity.index,
            Destination::Physical(id) if self.x2apic() => id == self.identity.apic_id,
            Destination::Physical(id) => id == u32::from(self.state.id),
            Destination::Logical(address) if self.x2apic() => {
                let own = self.x2apic_logical_id();
                address >> 16 == own >> 16 && address & own & 0xFFFF != 0
            }
            Destination::Logical(address) => self.matches_xapic_logical(address),
        }
    }

    fn matches_xapic_logical(&self, address: u32) -> bool {
        let Ok(address) = u8::try_from(address) else { return false };
        let own = self.state.ldr;
        if self.state.dfr == 0xF {
            return address & own != 0; // flat model, SDM 3A 11.6.2.2
        }
        let cluster = address >> 4 == own >> 4 || address >> 4 == 0xF;
        cluster && address & own & 0xF != 0
    }

    /// Reads a register in xAPIC mode.
    pub(super) fn mmio_read(&mut self, number: u32, now_ns: u64, fx: &mut Effects) -> u32 {
        let value = match number {
            reg::ID => Some(u32::from(self.state.id) << 24),
            reg::LDR => Some(u32::from(self.state.ldr) << 24),
            reg::DFR => Some(u32::from(self.state.dfr) << 28 | 0x0FFF_FFFF),
            reg::APR => Some(self.arbitration_priority().into()),
            reg::EOI | reg::REMOTE_READ => Some(0),
            reg::ICR_HIGH => Some((self.state.icr >> 32) as u32),
            _ => self.read_common(number, now_ns),
        };
        value.unwrap_or_else(|| {
            self.error(ESR_ILLEGAL_REGISTER, fx);
            0
        })
    }

    /// Writes a register in xAPIC mode. Reserved bits are ignored.
    pub(super) fn mmio_write(&mut self, number: u32, value: u32, now_ns: u64, fx: &mut Effects) {
        match number {
            reg::ID => self.state.id = (value >> 24) as u8,
            reg::LDR => self.state.ldr = (value >> 24) as u8,
            reg::DFR => self.state.dfr = (value >> 28) as u8,
            reg::TPR => self.state.tpr = value as u8,
            reg::ICR_HIGH => self.state.icr = u64::from(value & 0xFF00_0000) << 32 | self.state.icr & 0xFFFF_FFFF,
            reg::ICR => {
                self.state.icr = self.state.icr >> 32 << 32 | u64::from(value & ICR_WRITABLE);
                let field = (self.state.icr >> 56) as u8;
                self.send_ipi(value, narrow_destination(field, value & ICR_LOGICAL != 0), fx);
            }
            reg::VERSION | reg::APR | reg::PPR | reg::REMOTE_READ | reg::TIMER_CURRENT => {}
            reg::ISR..=reg::IRR_LAST => {}
            _ => {
                if !self.write_common(number, value, now_ns, fx) {
                    self.error(ESR_ILLEGAL_REGISTER, fx);
                }
            }
        }
    }

    /// Reads a register in x2APIC mode; `None` is #GP.
    pub(super) fn msr_read(&self, number: u32, now_ns: u64) -> Option<u64> {
        match number {
            reg::ID => Some(self.identity.apic_id.into()),
            reg::LDR => Some(self.x2apic_logical_id().into()),
            reg::ICR => Some(self.state.icr),
            _ => self.read_common(number, now_ns).map(u64::from),
        }
    }

    /// Writes a register in x2APIC mode; `false` is #GP: no such register, read-only, or a reserved bit set
    /// (SDM 3A 11.12.1.3).
    pub(super) fn msr_write(&mut self, number: u32, value: u64, now_ns: u64, fx: &mut Effects) -> bool {
        if number == reg::ICR {
            return self.write_x2apic_icr(value, fx);
        }
        let Ok(value) = u32::try_from(value) else { return false };
        let allowed = match number {
            reg::TPR | reg::SELF_IPI => 0xFF,
            reg::EOI | reg::ESR => 0,
            reg::SVR => SVR_WRITABLE,
            reg::LVT_CMCI => lvt::WRITABLE[lvt::CMCI] | 1 << 12,
            reg::LVT_FIRST..=reg::LVT_LAST => {
                let entry = lvt::WRITABLE.get((number - reg::LVT_FIRST) as usize).copied().unwrap_or(0);
                entry | 1 << 12 | lvt::REMOTE_IRR // read-only bits may be written back
            }
            reg::TIMER_INITIAL => u32::MAX,
            reg::TIMER_DIVIDE => 0xB,
            _ => return false,
        };
        if value & !allowed != 0 {
            return false;
        }
        match number {
            reg::TPR => self.state.tpr = value as u8,
            reg::SELF_IPI => {
                let destination = Destination::Only(self.identity.index);
                self.send(DeliveryMode::Fixed, value as u8, destination, fx);
            }
            _ => return self.write_common(number, value, now_ns, fx),
        }
        true
    }

    fn write_x2apic_icr(&mut self, value: u64, fx: &mut Effects) -> bool {
        let (low, destination) = (value as u32, (value >> 32) as u32);
        if low & !(ICR_WRITABLE | 1 << 12) != 0 {
            return false;
        }
        self.state.icr = value & !(1 << 12);
        let destination = match (destination, low & ICR_LOGICAL != 0) {
            (u32::MAX, _) => Destination::All,
            (id, false) => Destination::Physical(id),
            (id, true) => Destination::Logical(id),
        };
        self.send_ipi(low, destination, fx);
        true
    }

    fn read_common(&self, number: u32, now_ns: u64) -> Option<u32> {
        Some(match number {
            reg::VERSION => VERSION,
            reg::TPR => self.state.tpr.into(),
            reg::PPR => self.ppr().into(),
            reg::SVR => self.state.svr,
            reg::ISR..=reg::ISR_LAST => self.state.isr.word(number - reg::ISR),
            reg::TMR..=reg::TMR_LAST => self.state.tmr.word(number - reg::TMR),
            reg::IRR..=reg::IRR_LAST => self.state.irr.word(number - reg::IRR),
            reg::ESR => self.state.esr,
            reg::LVT_CMCI => self.state.lvt[lvt::CMCI],
            reg::ICR => self.state.icr as u32,
            reg::LVT_FIRST..=reg::LVT_LAST => *self.state.lvt.get((number - reg::LVT_FIRST) as usize)?,
            reg::TIMER_INITIAL => self.state.timer.initial,
            reg::TIMER_CURRENT => self.state.timer.current(self.timer_mode(), now_ns),
            reg::TIMER_DIVIDE => self.state.timer.divide,
            _ => return None,
        })
    }

    fn write_common(&mut self, number: u32, value: u32, now_ns: u64, fx: &mut Effects) -> bool {
        match number {
            reg::EOI => self.end_of_interrupt(fx),
            reg::SVR => self.set_svr(value),
            reg::ESR => self.state.esr = std::mem::take(&mut self.state.esr_collected),
            reg::LVT_CMCI => self.set_lvt(lvt::CMCI, value, now_ns, fx),
            reg::LVT_FIRST..=reg::LVT_LAST => self.set_lvt((number - reg::LVT_FIRST) as usize, value, now_ns, fx),
            reg::TIMER_INITIAL => self.state.timer.set_initial(self.timer_mode(), value, now_ns),
            reg::TIMER_DIVIDE => self.state.timer.set_divide(self.timer_mode(), value, now_ns),
            _ => return false,
        }
        true
    }

    /// Disabling by software masks the whole local vector table (SDM 3A 11.4.7.2).
    fn set_svr(&mut self, value: u32) {
        let was_enabled = self.software_enabled();
        self.state.svr = value & SVR_WRITABLE;
        if was_enabled && !self.software_enabled() {
            for entry in &mut self.state.lvt {
                *entry |= lvt::MASKED;
            }
        }
    }

    fn set_lvt(&mut self, index: usize, value: u32, now_ns: u64, fx: &mut Effects) {
        let (Some(writable), Some(&old)) = (lvt::WRITABLE.get(index), self.state.lvt.get(index)) else { return };
        let mut new = value & writable | old & lvt::REMOTE_IRR;
        if !self.software_enabled() {
            new |= lvt::MASKED; // SDM 3A 11.4.7.2
        }
        if new & lvt::LEVEL == 0 {
            new &= !lvt::REMOTE_IRR;
        }
        self.state.lvt[index] = new;
        if index == lvt::TIMER {
            self.state.timer.mode_changed(TimerMode::from_lvt(old), TimerMode::from_lvt(new), now_ns);
        }
        let pin = index.wrapping_sub(lvt::LINT0);
        if new & lvt::LEVEL != 0 && self.state.lint.get(pin) == Some(&true) {
            self.fire_lvt(index, fx);
        }
    }

    /// Arbitration priority (SDM 3A 11.6.2.4).
    fn arbitration_priority(&self) -> u8 {
        let requested = self.state.irr.highest().unwrap_or(0);
        let in_service = self.state.isr.highest().unwrap_or(0);
        let highest = requested.max(in_service) & 0xF0;
        if self.state.tpr >> 4 >= highest >> 4 { self.state.tpr } else { highest }
    }

    /// Sends what the low half of the ICR says (SDM 3A 11.6.1).
    fn send_ipi(&mut self, icr: u32, destination: Destination, fx: &mut Effects) {
        let Some(mode) = DeliveryMode::from_bits(icr >> 8) else { return };
        if mode == DeliveryMode::ExtInt {
            return; // reserved in the ICR
        }
        // INIT level de-assert only synchronised arbitration IDs on the APIC bus and does nothing since.
        if mode == DeliveryMode::Init && icr & (ICR_LEVEL_ASSERT | ICR_TRIGGER_LEVEL) == ICR_TRIGGER_LEVEL {
            return;
        }
        let index = self.identity.index;
        let destination = match icr >> 18 & 3 {
            0 => destination,
            // Table 11-3: to oneself only fixed interrupts.
            1 if mode != DeliveryMode::Fixed => return,
            1 => Destination::Only(index),
            2 if mode == DeliveryMode::Fixed => Destination::All,
            2 => return,
            _ => Destination::AllBut(index),
        };
        self.send(mode, icr as u8, destination, fx);
    }

    fn send(&mut self, mode: DeliveryMode, vector: u8, destination: Destination, fx: &mut Effects) {
        if mode.carries_vector() && vector < 16 {
            self.error(ESR_SEND_ILLEGAL_VECTOR, fx);
        } else {
            fx.send = Some(Message { destination, mode, vector, level_triggered: false });
        }
    }

    /// Takes over a saved state, if it is one that can be.
    pub(super) fn check(state: &Volatile, identity: &Identity) -> Result<(), String> {
        let mode = state.base & (apic_base::ENABLE | apic_base::X2APIC);
        if mode == apic_base::X2APIC || (mode != apic_base::ENABLE && mode != 0 && !identity.x2apic) {
            return Err(format!("APIC base {:#x} is no mode this APIC has", state.base));
        }
        Ok(())
    }

    pub(super) fn inspect(&self, now_ns: u64, out: &mut crate::state::Inspector) {
        let Volatile {
            base,
            id,
            tpr,
            ldr,
            dfr,
            svr,
            isr,
            tmr,
            irr,
            esr,
            esr_collected,
            icr,
            lvt,
            timer,
            lint,
            ext_int,
            tsc_offset,
        } = &self.state;
        out.field("apic-id", if self.x2apic() { self.identity.apic_id } else { (*id).into() });
        out.field("base", format_args!("{base:#x}"));
        out.field("tpr", format_args!("{tpr:#04x}"));
        out.field("ppr", format_args!("{:#04x}", self.ppr()));
        out.field("ldr", format_args!("{ldr:#04x}"));
        out.field("dfr", format_args!("{dfr:#x}"));
        out.field("svr", format_args!("{svr:#x}"));
        out.field("isr", isr);
        out.field("tmr", tmr);
        out.field("irr", irr);
        out.field("esr", format_args!("{esr:#x} collected {esr_collected:#x}"));
        out.field("icr", format_args!("{icr:#x}"));
        for (name, entry) in ["timer", "thermal", "perf", "lint0", "lint1", "error", "cmci"].iter().zip(lvt) {
            out.field(&format!("lvt-{name}"), format_args!("{entry:#x}"));
        }
        out.field(
            "timer",
            format_args!("initial {} current {}", timer.initial, timer.current(self.timer_mode(), now_ns)),
        );
        out.field("tsc-deadline", timer.tsc_deadline());
        out.field("tsc-offset", tsc_offset);
        out.field("pins", format_args!("lint0 {} lint1 {} extint {ext_int}", lint[0], lint[1]));
    }
}
