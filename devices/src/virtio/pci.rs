//! Virtio over PCI (section 4.1), for modern and for legacy drivers (transitional).

use super::queue::{QueueEvents, QueueState};
use super::{Parts, VirtioDevice, feature};
use crate::bus::{AccessSizes, Bus, Device, RegisterBlock, Registers};
use crate::pci::PciFunction;
use crate::pci::bar::{Bar, BarError, BarKind, Bars, Rom};
use crate::pci::config::{ConfigSpace, Identity, command, reg};
use crate::pci::msix::{self, Msix, MsixState};
use crate::services::{IrqLine, MsiSink};
use crate::state::{Inspector, StateError, StateValue, from_state, to_state};
use crate::wire::{Wire, locked};
use crate::{trace, trace_event};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, Weak};

const VENDOR: u16 = 0x1af4;
/// Device ids of legacy drivers, by type: network, block, balloon, console, SCSI, entropy, 9P.
const LEGACY_IDS: [(u16, u16); 7] =
    [(1, 0x1000), (2, 0x1001), (5, 0x1002), (3, 0x1003), (8, 0x1004), (4, 0x1005), (9, 0x1009)];
/// Device ids of those that have no legacy form count from here.
const MODERN_IDS: u16 = 0x1040;

/// Base address registers: legacy ports, messages, modern registers.
const LEGACY_BAR: u8 = 0;
const MSIX_BAR: u8 = 1;
const MODERN_BAR: u8 = 4;
const LEGACY_SIZE: u64 = 128;
/// The modern registers, each in a page of its own.
const PAGE: u64 = 0x1000;
const MODERN_SIZE: u64 = 4 * PAGE;
/// Bytes between the notification addresses of queues.
const NOTIFY_STEP: u64 = 4;
/// Capabilities: one for each page, the window into them, and messages.
const CAPABILITIES: u8 = 0x40;
const WINDOW: u8 = 0x84;
const MSIX_CAPABILITY: u8 = 0x98;
/// The window's fields (4.1.4.9): register, offset, length, data.
const WINDOW_BAR: u8 = WINDOW + 4;
const WINDOW_DATA: u8 = WINDOW + 16;
/// No message.
const NO_VECTOR: u16 = 0xffff;

/// Bits of the device status.
mod status {
    pub const DRIVER_OK: u8 = 4;
    pub const FEATURES_OK: u8 = 8;
    pub const NEEDS_RESET: u8 = 64;
}

/// Interrupt status bits.
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Common {
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    config_vector: u16,
    queue_vectors: Vec<u16>,
    queue_select: u16,
    status: u8,
    /// What the status was before a reset that is not over yet.
    old_status: u8,
    isr: u8,
}

impl Common {
    fn new(queues: usize) -> Self {
        Self {
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            config_vector: NO_VECTOR,
            queue_vectors: vec![NO_VECTOR; queues],
            queue_select: 0,
            status: 0,
            old_status: 0,
            isr: 0,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    config: StateValue,
    common: Common,
    msix: MsixState,
    features: u64,
    queues: Vec<QueueState>,
    device: StateValue,
}

/// A virtio device in a PCI slot.
///
/// Locks: `config` and `common` are leaves, never held together; queues, device and bus are called without them.
pub struct VirtioPci {
    parts: Parts,
    msix: Arc<Msix>,
    irq: Wire,
    bars: Bars,
    config: Mutex<ConfigSpace>,
    /// The configuration space after power-on.
    fresh: ConfigSpace,
    common: Mutex<Common>,
}

/// The pages of modern registers.
struct Modern(Weak<VirtioPci>);
/// The legacy ports.
struct Legacy(Weak<VirtioPci>);

fn identity(device: &dyn VirtioDevice) -> Identity {
    let kind = device.device_type();
    let legacy = LEGACY_IDS.iter().find(|(k, _)| *k == kind).map(|(_, id)| *id);
    Identity {
        vendor: VENDOR,
        device: legacy.unwrap_or(MODERN_IDS + kind),
        class: device.pci_class(),
        revision: if legacy.is_some() { 0 } else { 1 },
        subsystem: (VENDOR, kind),
    }
}

/// Writes a capability (4.1.4): where structure `kind` is.
fn capability(config: &mut ConfigSpace, at: u8, next: u8, kind: u8, len: u8, page: u64) {
    config.set(at, 4, 0x09 | u32::from(next) << 8 | u32::from(len) << 16 | u32::from(kind) << 24);
    config.set(at + 4, 4, MODERN_BAR.into());
    config.set(at + 8, 4, (page * PAGE) as u32);
    config.set(at + 12, 4, PAGE as u32);
}

fn power_on(device: &dyn VirtioDevice, vectors: u16) -> ConfigSpace {
    let mut config = ConfigSpace::new(identity(device));
    config.set(reg::STATUS, 2, 0x0010);
    config.set(reg::INTERRUPT_PIN, 1, 1);
    config.set(reg::CAPABILITIES, 1, CAPABILITIES.into());
    // Common configuration, interrupt status, device configuration, notifications.
    capability(&mut config, 0x40, 0x50, 1, 16, 0);
    capability(&mut config, 0x50, 0x60, 3, 16, 1);
    capability(&mut config, 0x60, 0x70, 4, 16, 2);
    capability(&mut config, 0x70, WINDOW, 2, 20, 3);
    config.set(0x80, 4, NOTIFY_STEP as u32);
    config.set(WINDOW, 4, 0x09 | u32::from(MSIX_CAPABILITY) << 8 | 20 << 16 | 5 << 24);
    config.allow(WINDOW_BAR, 1, 0xff);
    config.allow(WINDOW + 8, 4, u32::MAX);
    config.allow(WINDOW + 12, 4, u32::MAX);
    config.allow(WINDOW_DATA, 4, u32::MAX);
    msix::set_up(&mut config, MSIX_CAPABILITY, 0, vectors, MSIX_BAR);
    config
}

impl VirtioPci {
    /// The function of `parts` on `bus`, with interrupt pin `intx` and messages to `msi`.
    pub fn new(bus: &Arc<Bus>, parts: Parts, intx: IrqLine, msi: Arc<dyn MsiSink>) -> Result<Arc<Self>, BarError> {
        Self::with_rom(bus, parts, intx, msi, None)
    }

    /// The same, with an expansion ROM.
    pub fn with_rom(
        bus: &Arc<Bus>,
        parts: Parts,
        intx: IrqLine,
        msi: Arc<dyn MsiSink>,
        rom: Option<Rom>,
    ) -> Result<Arc<Self>, BarError> {
        let count = parts.queues.count();
        // One for each queue, one for the configuration.
        let vectors = u16::try_from(count + 1).unwrap_or(u16::MAX).min(msix::MAX_VECTORS);
        let msix = Msix::new(vectors, msi);
        let mut config = power_on(&*parts.device, vectors);
        let mut failure = None;
        let this = Arc::new_cyclic(|weak: &Weak<Self>| {
            let (modern, legacy): (Registers, Registers) =
                (Arc::new(Modern(weak.clone())), Arc::new(Legacy(weak.clone())));
            let memory = BarKind::Memory64 { prefetchable: true };
            let mut list = vec![
                Bar { index: LEGACY_BAR, kind: BarKind::Io, size: LEGACY_SIZE, registers: legacy },
                Bar {
                    index: MSIX_BAR,
                    kind: BarKind::Memory32 { prefetchable: false },
                    size: msix::BAR_SIZE,
                    registers: msix.clone(),
                },
                Bar { index: MODERN_BAR, kind: memory, size: MODERN_SIZE, registers: modern },
            ];
            list.extend(rom.map(Rom::bar));
            let bars = Bars::new(bus, parts.device.name(), list, &mut config).or_else(|error| {
                failure = Some(error);
                Bars::new(bus, parts.device.name(), Vec::new(), &mut config)
            });
            Self {
                bars: bars.expect("no registers at all are always possible"),
                parts,
                msix,
                irq: Wire::new(intx),
                config: Mutex::new(config.clone()),
                fresh: config,
                common: Mutex::new(Common::new(count)),
            }
        });
        if let Some(error) = failure {
            return Err(error);
        }
        let events: Arc<dyn QueueEvents> = this.clone();
        this.parts.queues.connect(Arc::downgrade(&events));
        Ok(this)
    }

    fn sync(&self) {
        self.bars.sync(|| locked(&self.config).clone());
    }

    /// Raises the interrupt for queue `index`, or for a change of configuration.
    fn interrupt(&self, queue: Option<usize>) {
        match queue {
            Some(queue) => trace_event!(trace::VIRTIO_IRQ, "device {} queue {queue}", self.name()),
            None => trace_event!(trace::VIRTIO_IRQ, "device {} configuration", self.name()),
        }
        if self.msix.enabled() {
            let vector = {
                let common = locked(&self.common);
                match queue {
                    Some(index) => common.queue_vectors.get(index).copied().unwrap_or(NO_VECTOR),
                    None => common.config_vector,
                }
            };
            if vector != NO_VECTOR {
                self.msix.send(vector);
            }
            return;
        }
        self.set_isr(|isr| isr | if queue.is_some() { ISR_QUEUE } else { ISR_CONFIG });
    }

    fn set_isr(&self, change: impl FnOnce(u8) -> u8) -> u8 {
        let disabled = locked(&self.config).command() & command::INTX_DISABLE != 0;
        let before = {
            let mut common = locked(&self.common);
            let before = common.isr;
            common.isr = change(before);
            self.irq.want(common.isr != 0 && !disabled);
            before
        };
        self.irq.flush();
        before
    }

    /// Reading the interrupt status clears it.
    fn take_isr(&self) -> u8 {
        self.set_isr(|_| 0)
    }

    /// The device changed its configuration space.
    pub fn config_changed(&self) {
        if locked(&self.common).status & status::DRIVER_OK != 0 {
            self.interrupt(None);
        }
    }

    fn offered(&self) -> u64 {
        self.parts.device.features() | feature::INDIRECT | feature::EVENT_IDX | feature::VERSION_1
    }

    fn reset_device(&self) {
        self.parts.queues.reset();
        self.parts.device.reset();
        {
            let mut common = locked(&self.common);
            let old_status = common.status;
            *common = Common { old_status, ..Common::new(common.queue_vectors.len()) };
        }
        self.set_isr(|_| 0);
    }

    fn status(&self) -> u8 {
        // A reset is over when nothing is under way any more.
        let busy = self.parts.device.busy();
        let common = locked(&self.common);
        if common.status == 0 && busy { common.old_status } else { common.status }
    }

    fn set_status(&self, value: u8, legacy: bool) {
        if value == 0 {
            return self.reset_device();
        }
        let offered = self.offered();
        let (started, features) = {
            let mut common = locked(&self.common);
            let before = common.status;
            let mut new = value | before & status::NEEDS_RESET;
            let unsound = common.driver_features & !offered != 0 || common.driver_features & feature::VERSION_1 == 0;
            if !legacy && new & status::FEATURES_OK != 0 && unsound {
                new &= !status::FEATURES_OK;
            }
            common.status = new;
            (new & status::DRIVER_OK != 0 && before & status::DRIVER_OK == 0, common.driver_features)
        };
        if started {
            self.parts.queues.set_features(features);
            self.parts.device.start(features);
            // What a driver made available before it said that it is ready.
            (0..self.parts.queues.count()).for_each(|index| self.parts.device.notify(index));
        }
    }

    fn selected(&self) -> usize {
        locked(&self.common).queue_select.into()
    }

    fn queue(&self) -> Option<QueueState> {
        self.parts.queues.with(self.selected(), |queue| queue.state())
    }

    fn vector(&self, value: u16) -> u16 {
        if value < self.msix.vectors() { value } else { NO_VECTOR }
    }

    fn notify(&self, index: u64) {
        trace_event!(trace::VIRTIO_KICK, "device {} queue {index}", self.name());
        if locked(&self.common).status & status::DRIVER_OK != 0 && index < self.parts.queues.count() as u64 {
            self.parts.device.notify(index as usize);
        }
    }

    fn set_queue_vector(&self, value: u16) {
        let value = self.vector(value);
        let mut common = locked(&self.common);
        let select = usize::from(common.queue_select);
        if let Some(vector) = common.queue_vectors.get_mut(select) {
            *vector = value;
        }
    }

    fn queue_vector(&self) -> u16 {
        let common = locked(&self.common);
        common.queue_vectors.get(usize::from(common.queue_select)).copied().unwrap_or(NO_VECTOR)
    }

    fn common_read(&self, offset: u64) -> u64 {
        let half = |value: u64, select: u32| match select {
            0 => value & 0xffff_ffff,
            1 => value >> 32,
            _ => 0,
        };
        let queue = self.queue();
        let of = |f: fn(QueueState) -> u64| queue.map_or(0, f);
        match offset {
            0x00 => locked(&self.common).device_feature_select.into(),
            0x04 => half(self.offered(), locked(&self.common).device_feature_select),
            0x08 => locked(&self.common).driver_feature_select.into(),
            0x0c => {
                let common = locked(&self.common);
                half(common.driver_features, common.driver_feature_select)
            }
            0x10 => u64::from(locked(&self.common).config_vector) | (self.parts.queues.count() as u64) << 16,
            0x14 => u64::from(self.status()) | (self.selected() as u64) << 16,
            0x18 => of(|q| q.size.into()) | u64::from(self.queue_vector()) << 16,
            0x1c => of(|q| q.ready.into()) | (self.selected() as u64) << 16,
            0x20 => of(|q| q.descriptors & 0xffff_ffff),
            0x24 => of(|q| q.descriptors >> 32),
            0x28 => of(|q| q.available & 0xffff_ffff),
            0x2c => of(|q| q.available >> 32),
            0x30 => of(|q| q.used & 0xffff_ffff),
            0x34 => of(|q| q.used >> 32),
            _ => 0,
        }
    }

    fn common_write(&self, offset: u64, size: u8, value: u64) {
        let low = |old: u64| old & !0xffff_ffff | value & 0xffff_ffff;
        let high = |old: u64| old & 0xffff_ffff | value << 32;
        let queue = |change: &dyn Fn(&mut QueueState)| {
            self.parts.queues.with(self.selected(), |queue| queue.set_up(|state| change(state)));
        };
        match (offset, size) {
            (0x00, 4) => locked(&self.common).device_feature_select = value as u32,
            (0x08, 4) => locked(&self.common).driver_feature_select = value as u32,
            (0x0c, 4) => {
                let mut common = locked(&self.common);
                // Features are settled once the driver has said so.
                if common.status & status::FEATURES_OK == 0 {
                    common.driver_features = match common.driver_feature_select {
                        0 => low(common.driver_features),
                        1 => high(common.driver_features),
                        _ => common.driver_features,
                    };
                }
            }
            (0x10, 2) => {
                let vector = self.vector(value as u16);
                locked(&self.common).config_vector = vector;
            }
            (0x14, 1) => self.set_status(value as u8, false),
            (0x16, 2) => locked(&self.common).queue_select = value as u16,
            (0x18, 2) => queue(&|q| q.size = value as u16),
            (0x1a, 2) => self.set_queue_vector(value as u16),
            (0x1c, 2) if value == 1 => self.parts.queues.enable(self.selected()),
            (0x20, 4) => queue(&|q| q.descriptors = low(q.descriptors)),
            (0x24, 4) => queue(&|q| q.descriptors = high(q.descriptors)),
            (0x28, 4) => queue(&|q| q.available = low(q.available)),
            (0x2c, 4) => queue(&|q| q.available = high(q.available)),
            (0x30, 4) => queue(&|q| q.used = low(q.used)),
            (0x34, 4) => queue(&|q| q.used = high(q.used)),
            _ => {}
        }
    }

    /// A read of the modern registers.
    fn modern_read(&self, offset: u64, size: u8) -> u64 {
        match (offset / PAGE, offset % PAGE) {
            (0, at) => self.common_read(at & !3) >> (8 * (at & 3)),
            (1, 0) => self.take_isr().into(),
            (2, at) => self.device_config(at, size),
            _ => 0,
        }
    }

    /// A write of the modern registers.
    fn modern_write(&self, offset: u64, size: u8, value: u64) {
        match (offset / PAGE, offset % PAGE) {
            (0, at) => self.common_write(at, size, value),
            (2, at) => self.set_device_config(at, size, value),
            (3, at) => self.notify(at / NOTIFY_STEP),
            _ => {}
        }
    }

    fn device_config(&self, at: u64, size: u8) -> u64 {
        let bytes = self.parts.device.config();
        bytes.iter().skip(at as usize).take(size.into()).rev().fold(0, |acc, byte| acc << 8 | u64::from(*byte))
    }

    fn set_device_config(&self, at: u64, size: u8, value: u64) {
        let bytes = value.to_le_bytes();
        self.parts.device.config_write(at as usize, bytes.get(..size.into()).unwrap_or(&bytes));
    }

    /// Where the device configuration begins among the legacy ports.
    fn legacy_config(&self) -> u64 {
        if self.msix.enabled() { 24 } else { 20 }
    }

    fn legacy_read(&self, offset: u64, size: u8) -> u64 {
        let config = self.legacy_config();
        if offset >= config {
            return self.device_config(offset - config, size);
        }
        let queue = self.selected();
        let word = match offset & !3 {
            0 => self.offered() & 0xffff_ffff,
            4 => locked(&self.common).driver_features & 0xffff_ffff,
            8 => self.parts.queues.with(queue, |q| q.page()).unwrap_or(0).into(),
            12 => u64::from(self.parts.queues.with(queue, |q| q.max()).unwrap_or(0)) | (queue as u64) << 16,
            16 => {
                let isr = if offset == 19 { self.take_isr() } else { 0 };
                u64::from(self.status()) << 16 | u64::from(isr) << 24
            }
            _ => u64::from(locked(&self.common).config_vector) | u64::from(self.queue_vector()) << 16,
        };
        word >> (8 * (offset & 3))
    }

    fn legacy_write(&self, offset: u64, size: u8, value: u64) {
        let config = self.legacy_config();
        match (offset, size) {
            (4, 4) => locked(&self.common).driver_features = value & self.offered() & !feature::VERSION_1,
            (8, 4) => _ = self.parts.queues.with(self.selected(), |queue| queue.set_page(value as u32)),
            (14, 2) => locked(&self.common).queue_select = value as u16,
            (16, 2) => self.notify(value),
            (18, 1) => self.set_status(value as u8, true),
            (20, 2) if config == 24 => {
                let vector = self.vector(value as u16);
                locked(&self.common).config_vector = vector;
            }
            (22, 2) if config == 24 => self.set_queue_vector(value as u16),
            _ if offset >= config => self.set_device_config(offset - config, size, value),
            _ => {}
        }
    }

    /// What the window shows: offset and length, if they are sound.
    fn window(&self) -> Option<(u64, u8)> {
        let config = locked(&self.config);
        let (bar, offset, len) = (config.read(WINDOW_BAR, 1), config.read(WINDOW + 8, 4), config.read(WINDOW + 12, 4));
        let sound = bar == u32::from(MODERN_BAR) && matches!(len, 1 | 2 | 4) && offset % len == 0;
        (sound && u64::from(offset) < MODERN_SIZE).then_some((offset.into(), len as u8))
    }
}

impl QueueEvents for VirtioPci {
    fn used(&self, index: usize) {
        self.interrupt(Some(index));
    }

    fn broken(&self) {
        locked(&self.common).status |= status::NEEDS_RESET;
        VirtioPci::config_changed(self);
    }

    fn config_changed(&self) {
        VirtioPci::config_changed(self);
    }
}

impl RegisterBlock for Modern {
    fn read(&self, offset: u64, size: u8) -> u64 {
        self.0.upgrade().map_or(u64::MAX, |device| device.modern_read(offset, size))
    }
    fn write(&self, offset: u64, size: u8, value: u64) {
        if let Some(device) = self.0.upgrade() {
            device.modern_write(offset, size, value);
        }
    }
    fn sizes(&self) -> AccessSizes {
        AccessSizes::UP_TO_DWORD
    }
}

impl RegisterBlock for Legacy {
    fn read(&self, offset: u64, size: u8) -> u64 {
        self.0.upgrade().map_or(u64::MAX, |device| device.legacy_read(offset, size))
    }
    fn write(&self, offset: u64, size: u8, value: u64) {
        if let Some(device) = self.0.upgrade() {
            device.legacy_write(offset, size, value);
        }
    }
    fn sizes(&self) -> AccessSizes {
        AccessSizes::UP_TO_DWORD
    }
}

impl PciFunction for VirtioPci {
    fn config_read(&self, offset: u8, size: u8) -> u32 {
        if offset & !3 == WINDOW_DATA
            && let Some((at, len)) = self.window()
        {
            return (self.modern_read(at, len) as u32).wrapping_shr(8 * u32::from(offset & 3));
        }
        locked(&self.config).read(offset, size)
    }

    fn config_write(&self, offset: u8, size: u8, value: u32) {
        if offset & !3 == WINDOW_DATA {
            if let Some((at, len)) = self.window() {
                self.modern_write(at, len, value.into());
            }
            return;
        }
        let config = {
            let mut config = locked(&self.config);
            config.write(offset, size, value);
            config.clone()
        };
        if Bars::concerns(offset) {
            self.sync();
            // INTx may have been turned off or on.
            self.set_isr(|isr| isr);
        }
        if (MSIX_CAPABILITY..MSIX_CAPABILITY + msix::CAPABILITY).contains(&offset) {
            self.msix.follow(&config, MSIX_CAPABILITY);
        }
    }

    fn regions(&self) -> Vec<crate::pci::bar::Region> {
        self.bars.regions()
    }
}

impl Device for VirtioPci {
    fn name(&self) -> &'static str {
        self.parts.device.name()
    }

    fn reset(&self) {
        self.reset_device();
        locked(&self.common).old_status = 0;
        self.msix.reset();
        *locked(&self.config) = self.fresh.clone();
        self.sync();
    }

    fn save(&self) -> StateValue {
        // First, and without our locks: a device may bring what is under way to its end, and interrupt.
        let device = self.parts.device.save();
        let (features, queues) = self.parts.queues.save();
        let (config, common) = (locked(&self.config).save(), locked(&self.common).clone());
        to_state(&Saved { config, common, msix: self.msix.save(), features, queues, device })
    }

    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        let Saved { config, common, msix, features, queues, device } = from_state(self.name(), state)?;
        let mut new = self.fresh.clone();
        new.restore(self.name(), &config)?;
        let malformed = |reason: &str| StateError::Malformed { device: self.name(), reason: reason.into() };
        if common.queue_vectors.len() != self.parts.queues.count() || !self.parts.queues.fits(&queues) {
            return Err(malformed("the queues are not those of this device"));
        }
        if !self.msix.fits(&msix) {
            return Err(malformed("the messages are not those of this device"));
        }
        self.parts.device.restore(&device, true)?;
        let asserted = common.isr != 0 && new.command() & command::INTX_DISABLE == 0;
        *locked(&self.config) = new;
        *locked(&self.common) = common;
        self.irq.adopt(asserted);
        self.msix.restore(msix);
        self.parts.queues.restore(features, &queues);
        self.sync();
        self.parts.device.restore(&device, false)
    }

    fn inspect(&self, out: &mut Inspector) {
        {
            let common = locked(&self.common);
            out.field("status", format_args!("{:#04x}", common.status));
            out.field("features", format_args!("{:#x}", common.driver_features));
        }
        out.field("msix", self.msix.enabled());
        self.parts.device.inspect(out);
    }
}
