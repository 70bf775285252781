//! The local APICs of all CPUs and the messages between them (SDM 3A chapter 11).
//!
//! [`LocalApics`] owns one APIC a CPU. Each has its own lock; no two are held at once and none while calling out.
//! What the CPU must be told (an interrupt became deliverable, or none is any more) and the timer's deadline are
//! published by whichever thread changed them, one publisher an APIC at a time, so that the last word said is the
//! current state.

mod message;
mod registers;
mod timer;
mod vectors;

pub use message::{DeliveryMode, Destination, EoiSink, Message, MessageSink};

use crate::bus::Device;
use crate::services::{Clock, CpuSignals, IrqSink, MsiSink, Timer, TimerService, TimerTarget};
use crate::state::{Inspector, StateError, StateValue, from_state, to_state};
use crate::wire::locked;
use crate::{trace, trace_event};
use registers::{Effects, Identity, Lapic, Signal, Volatile};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

const NAME: &str = "apic";

/// IA32_TSC_DEADLINE.
const MSR_TSC_DEADLINE: u32 = 0x6E0;
/// First MSR of the x2APIC register space.
const MSR_X2APIC_FIRST: u32 = 0x800;
/// Last MSR of the x2APIC register space.
const MSR_X2APIC_LAST: u32 = 0x8FF;

/// The input of [`LocalApics`], as an interrupt sink, that is LINT0 of all CPUs: the 8259's INTR output goes here.
pub const PIN_INTR: u32 = 0;
/// The input that is LINT1 of all CPUs: NMI sources of the chipset go here.
pub const PIN_NMI: u32 = 1;

/// What a CPU's local APIC is made from.
pub struct ApicCpu {
    /// Initial APIC ID, as CPUID tells it. CPU 0 is the bootstrap processor.
    pub apic_id: u32,
    /// Where the CPU listens.
    pub signals: Arc<dyn CpuSignals>,
}

/// What all local APICs of a machine have in common; it must agree with CPUID.
#[derive(Clone, Copy, Debug)]
pub struct ApicFeatures {
    /// x2APIC mode exists (CPUID.1:ECX bit 21).
    pub x2apic: bool,
    /// Width of physical addresses (CPUID 8000_0008h EAX bits 7:0): limits the base address.
    pub physical_bits: u32,
}

impl Default for ApicFeatures {
    fn default() -> Self {
        Self { x2apic: true, physical_bits: 40 }
    }
}

/// An APIC and what has been said to the outside about it.
struct Inner {
    apic: Lapic,
    /// What `set_interrupt_pending` was last called with; `None` when it has to be called in any case.
    told_pending: Option<bool>,
    /// The deadline the timer was last armed with.
    armed: Option<u64>,
    /// A thread is telling the outside; it looks again before it is done.
    publishing: bool,
}

/// What is to be told to the outside.
struct News {
    pending: Option<bool>,
    deadline: Option<Option<u64>>,
}

impl Inner {
    /// What differs from what the outside knows; notes it as told.
    fn news(&mut self) -> Option<News> {
        let (pending, deadline) = (self.apic.pending(), self.apic.timer_wake_ns());
        let news = News {
            pending: (self.told_pending != Some(pending)).then_some(pending),
            deadline: (self.armed != deadline).then_some(deadline),
        };
        self.told_pending = Some(pending);
        self.armed = deadline;
        (news.pending.is_some() || news.deadline.is_some()).then_some(news)
    }

    /// Like [`Inner::news`], for a thread that is not publishing yet.
    fn begin_publishing(&mut self) -> Option<News> {
        if self.publishing {
            return None;
        }
        let news = self.news();
        self.publishing = news.is_some();
        news
    }
}

struct Slot {
    inner: Mutex<Inner>,
    signals: Arc<dyn CpuSignals>,
    timer: Box<dyn Timer>,
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        locked(&self.inner)
    }

    /// Tells `news` and whatever becomes news meanwhile.
    fn publish(&self, mut news: Option<News>) {
        while let Some(News { pending, deadline }) = news {
            if let Some(pending) = pending {
                self.signals.set_interrupt_pending(pending);
            }
            match deadline {
                Some(Some(ns)) => self.timer.arm(ns),
                Some(None) => self.timer.disarm(),
                None => {}
            }
            let mut inner = self.lock();
            news = inner.news();
            inner.publishing = news.is_some();
        }
    }
}

/// The local APICs of a machine.
pub struct LocalApics {
    slots: Vec<Slot>,
    clock: Arc<dyn Clock>,
    eoi_sink: OnceLock<Weak<dyn EoiSink>>,
    /// Where the search for a receiver of lowest-priority messages starts, so that equals take turns.
    rotor: AtomicUsize,
}

impl LocalApics {
    /// The APIC of processor `cpu` is as after power-on.
    pub fn reset_one(&self, cpu: u32) {
        self.with(cpu, |apic, _, _| apic.reset());
    }

    /// One local APIC for each of `cpus`, in order of their indices.
    pub fn new(
        features: ApicFeatures,
        cpus: Vec<ApicCpu>,
        clock: Arc<dyn Clock>,
        timers: &dyn TimerService,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            let slots = cpus.into_iter().enumerate().map(|(index, cpu)| {
                let target: Weak<dyn TimerTarget> = this.clone();
                let apic = Lapic::new(Identity {
                    index,
                    apic_id: cpu.apic_id,
                    bootstrap: index == 0,
                    x2apic: features.x2apic,
                    physical_bits: features.physical_bits,
                });
                let inner = Inner { apic, told_pending: Some(false), armed: None, publishing: false };
                Slot { inner: Mutex::new(inner), signals: cpu.signals, timer: timers.create(target, index as u32) }
            });
            Self { slots: slots.collect(), clock, eoi_sink: OnceLock::new(), rotor: AtomicUsize::new(0) }
        })
    }

    /// Connects the I/O APIC, which then hears of ends of level-triggered interrupts. The first connection stays.
    pub fn connect_eoi(&self, sink: Weak<dyn EoiSink>) {
        let _first_stays = self.eoi_sink.set(sink);
    }

    /// Reads `size` bytes at `offset` of the APIC page as CPU `cpu` sees it. Registers are 32 bits wide at 16-byte
    /// steps; narrower reads get their part of the register. Without xAPIC mode there is nothing there.
    pub fn mmio_read(&self, cpu: u32, offset: u64, size: u8) -> u64 {
        let value = self.with(cpu, |apic, now, fx| match apic.enabled() && !apic.x2apic() {
            true if offset & 0xC == 0 => apic.mmio_read((offset >> 4) as u32 & 0xFF, now, fx),
            true => 0,
            false => u32::MAX,
        });
        let value = u64::from(value.unwrap_or(u32::MAX)) >> ((offset & 3) * 8);
        trace_event!(trace::APIC_READ, "cpu {cpu} {offset:#x} = {value:#x}");
        match size {
            1 => value & 0xFF,
            2 => value & 0xFFFF,
            _ => value,
        }
    }

    /// Writes `size` bytes at `offset` of the APIC page as CPU `cpu` sees it. Only aligned accesses of 32 bits or
    /// more act (SDM 3A 11.4.1.1).
    pub fn mmio_write(&self, cpu: u32, offset: u64, size: u8, value: u64) {
        if offset & 0xF != 0 || size < 4 {
            return;
        }
        trace_event!(trace::APIC_WRITE, "cpu {cpu} {offset:#x} = {value:#x}");
        self.with(cpu, |apic, now, fx| {
            if apic.enabled() && !apic.x2apic() {
                apic.mmio_write((offset >> 4) as u32 & 0xFF, value as u32, now, fx);
            }
        });
    }

    /// Where CPU `cpu` sees its APIC page, if it is in xAPIC mode.
    pub fn mmio_base(&self, cpu: u32) -> Option<u64> {
        let inner = self.slot(cpu)?.lock();
        let visible = inner.apic.enabled() && !inner.apic.x2apic();
        visible.then_some(inner.apic.state.base & registers::apic_base::ADDRESS)
    }

    /// Reads an x2APIC MSR or IA32_TSC_DEADLINE of CPU `cpu`; `None` is #GP.
    pub fn msr_read(&self, cpu: u32, msr: u32) -> Option<u64> {
        self.with(cpu, |apic, now, _| match msr {
            MSR_TSC_DEADLINE => Some(apic.tsc_deadline()),
            MSR_X2APIC_FIRST..=MSR_X2APIC_LAST if apic.x2apic() => apic.msr_read(msr - MSR_X2APIC_FIRST, now),
            _ => None,
        })?
    }

    /// Writes an x2APIC MSR or IA32_TSC_DEADLINE of CPU `cpu`; `false` is #GP.
    pub fn msr_write(&self, cpu: u32, msr: u32, value: u64) -> bool {
        let written = self.with(cpu, |apic, now, fx| match msr {
            MSR_TSC_DEADLINE => {
                apic.set_tsc_deadline(value, now, fx);
                true
            }
            MSR_X2APIC_FIRST..=MSR_X2APIC_LAST if apic.x2apic() => {
                apic.msr_write(msr - MSR_X2APIC_FIRST, value, now, fx)
            }
            _ => false,
        });
        written.unwrap_or(false)
    }

    /// Tells how far the guest moved CPU `cpu`'s time stamp counter: its value less guest time in nanoseconds,
    /// wrapping. An armed TSC deadline moves along.
    pub fn set_tsc_offset(&self, cpu: u32, offset: u64) {
        self.with(cpu, |apic, now, fx| apic.set_tsc_offset(offset, now, fx));
    }

    /// IA32_APIC_BASE of CPU `cpu`.
    pub fn apic_base(&self, cpu: u32) -> u64 {
        self.slot(cpu).map_or(0, |slot| slot.lock().apic.state.base)
    }

    /// Writes IA32_APIC_BASE of CPU `cpu`; `false` is #GP.
    pub fn set_apic_base(&self, cpu: u32, value: u64) -> bool {
        self.with(cpu, |apic, _, _| apic.set_base(value)).unwrap_or(false)
    }

    /// CR8 of CPU `cpu`: the upper half of its task priority.
    pub fn cr8(&self, cpu: u32) -> u8 {
        self.slot(cpu).map_or(0, |slot| slot.lock().apic.tpr() >> 4)
    }

    /// Sets CR8 of CPU `cpu` (0 to 15).
    pub fn set_cr8(&self, cpu: u32, value: u8) {
        self.with(cpu, |apic, _, _| apic.set_tpr(value << 4));
    }

    /// Interrupt acknowledge of CPU `cpu`: the local APIC's own vector if one is deliverable, else what `pic`, the
    /// acknowledge cycle of the 8259 pair, answers when its interrupts reach this CPU.
    pub fn acknowledge(&self, cpu: u32, pic: &dyn Fn() -> Option<u8>) -> Option<u8> {
        // The CPU took its request back before it asked. A thread that is publishing may have told it before that, so
        // what was told last counts no more: it is told again, or an interrupt that comes next would be no news.
        self.slot(cpu)?.lock().told_pending = None;
        match self.with(cpu, |apic, _, _| apic.acknowledge())? {
            Ok(vector) => Some(vector),
            Err(true) => pic(),
            Err(false) => None,
        }
    }

    fn slot(&self, cpu: u32) -> Option<&Slot> {
        self.slots.get(cpu as usize)
    }

    /// Runs `act` on the APIC of CPU `cpu`, then does what follows from it. `None`: no such CPU.
    fn with<R>(&self, cpu: u32, act: impl FnOnce(&mut Lapic, u64, &mut Effects) -> R) -> Option<R> {
        let slot = self.slot(cpu)?;
        let now_ns = self.clock.now_ns();
        let mut fx = Effects::default();
        let (result, news) = {
            let mut inner = slot.lock();
            let result = act(&mut inner.apic, now_ns, &mut fx);
            (result, inner.begin_publishing())
        };
        slot.publish(news);
        self.perform(slot, fx);
        Some(result)
    }

    fn perform(&self, slot: &Slot, fx: Effects) {
        let Effects { eoi, send, signal } = fx;
        match signal {
            Some(Signal::Nmi) => slot.signals.nmi(),
            Some(Signal::Smi) => slot.signals.smi(),
            Some(Signal::Init) => slot.signals.init(),
            Some(Signal::StartUp(vector)) => slot.signals.start_up(vector),
            None => {}
        }
        if let (Some(vector), Some(sink)) = (eoi, self.eoi_sink.get().and_then(Weak::upgrade)) {
            sink.end_of_interrupt(vector);
        }
        if let Some(message) = send {
            self.deliver(message);
        }
    }

    /// The receiver of a lowest-priority message: lowest processor priority among those that listen.
    fn arbitrate(&self, destination: Destination) -> Option<usize> {
        let count = self.slots.len();
        let start = self.rotor.load(Ordering::Relaxed);
        let candidates = (0..count).map(|step| start.wrapping_add(step) % count).filter_map(|index| {
            let inner = self.slots.get(index)?.lock();
            let apic = &inner.apic;
            let listens = apic.enabled() && apic.software_enabled() && apic.matches(destination);
            listens.then(|| (apic.ppr() >> 4, index))
        });
        let (_, index) = candidates.min_by_key(|&(priority, _)| priority)?;
        self.rotor.store(index + 1, Ordering::Relaxed);
        Some(index)
    }
}

impl MessageSink for LocalApics {
    fn deliver(&self, message: Message) -> bool {
        let Message { destination, mode, vector, level_triggered } = message;
        let destination = match mode {
            DeliveryMode::LowestPriority => match self.arbitrate(destination) {
                Some(index) => Destination::Only(index),
                None => return false,
            },
            _ => destination,
        };
        let mut taken = false;
        for (cpu, slot) in (0..).zip(&self.slots) {
            // Most messages are for one of many: the others' timers need no look.
            if !slot.lock().apic.matches(destination) {
                continue;
            }
            taken |= self
                .with(cpu, |apic, _, fx| apic.matches(destination) && apic.accept(mode, vector, level_triggered, fx))
                .unwrap_or(false);
        }
        taken
    }
}

impl MsiSink for LocalApics {
    fn send_msi(&self, address: u64, data: u32) {
        trace_event!(trace::MSI, "address {address:#x} data {data:#x}");
        if let Some(message) = Message::from_msi(address, data) {
            self.deliver(message);
        }
    }
}

impl IrqSink for LocalApics {
    /// `pin` is [`PIN_INTR`] or [`PIN_NMI`].
    fn set_irq(&self, pin: u32, level: bool) {
        for cpu in 0..self.slots.len() as u32 {
            self.with(cpu, |apic, _, fx| apic.set_pin(pin as usize, level, fx));
        }
    }
}

impl TimerTarget for LocalApics {
    fn timer_fired(&self, tag: u32, now_ns: u64) {
        if let Some(slot) = self.slot(tag) {
            slot.lock().armed = None; // it fires once: what follows has to arm it again
        }
        self.with(tag, |apic, clock_ns, fx| apic.run_timer(now_ns.max(clock_ns), fx));
    }
}

impl Device for LocalApics {
    fn name(&self) -> &'static str {
        NAME
    }

    fn reset(&self) {
        (0..self.slots.len() as u32).for_each(|cpu| self.reset_one(cpu));
    }

    fn save(&self) -> StateValue {
        let states: Vec<Volatile> = self.slots.iter().map(|slot| slot.lock().apic.state.clone()).collect();
        to_state(&states)
    }

    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        let states: Vec<Volatile> = from_state(NAME, state)?;
        let malformed = |reason| StateError::Malformed { device: NAME, reason };
        if states.len() != self.slots.len() {
            return Err(malformed(format!("{} CPUs saved, {} present", states.len(), self.slots.len())));
        }
        for (slot, state) in self.slots.iter().zip(&states) {
            Lapic::check(state, &slot.lock().apic.identity).map_err(malformed)?;
        }
        for (slot, state) in self.slots.iter().zip(states) {
            let news = {
                let mut inner = slot.lock();
                inner.apic.state = state;
                // What the CPU and the timer service know belongs to the time before.
                inner.told_pending = None;
                inner.armed = None;
                inner.begin_publishing()
            };
            if news.as_ref().is_some_and(|news| news.deadline.is_none()) {
                slot.timer.disarm();
            }
            slot.publish(news);
        }
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        let now_ns = self.clock.now_ns();
        for (index, slot) in self.slots.iter().enumerate() {
            let inner = slot.lock();
            out.group(&format!("cpu {index}"), |out| inner.apic.inspect(now_ns, out));
        }
    }
}

#[cfg(test)]
mod tests;
