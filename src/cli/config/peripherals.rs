//! Devices besides disks, network cards and serial ports, as the command line asks for them.

use super::CharId;
use super::sharing::ShareSpec;
use std::path::PathBuf;

/// A PCI place: device and function.
pub type Place = (u8, u8);

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peripherals {
    /// `-vga std`.
    pub vga: Option<VgaSpec>,
    /// `-device virtio-rng-pci`.
    pub rngs: Vec<RngSpec>,
    /// `-device virtio-balloon-pci`.
    pub balloon: Option<BalloonSpec>,
    /// `-device virtio-serial-pci`, with the ports on them.
    pub serial_buses: Vec<SerialBusSpec>,
    /// `-virtfs`, and `-device virtio-9p-pci` with their `-fsdev`.
    pub shares: Vec<ShareSpec>,
    /// `-device pvpanic`: its port.
    pub panic_port: Option<u16>,
    /// `-device pvpanic-pci`.
    pub panic_functions: Vec<PanicSpec>,
    /// `-device i6300esb`.
    pub watchdog: Option<WatchdogSpec>,
}

impl Peripherals {
    /// The places that are asked for.
    pub fn places(&self) -> impl Iterator<Item = Place> {
        let rngs = self.rngs.iter().map(|spec| spec.place);
        let buses = self.serial_buses.iter().map(|spec| spec.place);
        let shares = self.shares.iter().map(|spec| spec.place);
        let panics = self.panic_functions.iter().map(|spec| spec.place);
        let single =
            [self.balloon.as_ref().and_then(|spec| spec.place), self.watchdog.as_ref().and_then(|spec| spec.place)];
        rngs.chain(buses).chain(shares).chain(panics).chain(single).flatten()
    }
}

/// A graphics card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VgaSpec {
    /// Its code, which firmware runs. A kernel that is started without firmware needs none.
    pub rom: Option<PathBuf>,
}

/// An entropy device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RngSpec {
    /// The option that asked for it, for messages.
    pub what: String,
    /// Where its bytes come from.
    pub source: EntropySource,
    /// `max-bytes=` in each period.
    pub max_bytes: Option<u64>,
    /// `period=` in milliseconds, at least 1.
    pub period_ms: u32,
    /// `addr=`; the next that is free if none.
    pub place: Option<Place>,
}

/// Where random bytes come from (`-object`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntropySource {
    /// The host's own generator (`rng-builtin`).
    Builtin,
    /// A file or device (`rng-random`).
    File(PathBuf),
}

/// A memory balloon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BalloonSpec {
    /// The option that asked for it, for messages.
    pub what: String,
    /// `deflate-on-oom=`.
    pub deflate_on_oom: bool,
    /// `free-page-reporting=`.
    pub reporting: bool,
    /// `guest-stats-polling-interval=` in seconds; 0: never.
    pub polling_s: u32,
    /// `addr=`; the next that is free if none.
    pub place: Option<Place>,
}

/// A bus of serial ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SerialBusSpec {
    /// The option that asked for it, for messages.
    pub what: String,
    /// `id=`.
    pub id: Option<String>,
    /// `max_ports=`: ports have numbers below this.
    pub max_ports: u32,
    /// Its ports, whose numbers differ.
    pub ports: Vec<SerialPortSpec>,
    /// `addr=`; the next that is free if none.
    pub place: Option<Place>,
    /// It was taken away.
    pub gone: bool,
}

/// A port on such a bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SerialPortSpec {
    /// `nr=`.
    pub number: u32,
    /// `virtconsole`; otherwise `virtserialport`.
    pub console: bool,
    /// `name=`, empty if not given.
    pub name: String,
    /// `chardev=`.
    pub chardev: CharId,
}

/// A PCI function through which the guest reports its crash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PanicSpec {
    /// The option that asked for it, for messages.
    pub what: String,
    /// `addr=`; the next that is free if none.
    pub place: Option<Place>,
}

/// A watchdog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchdogSpec {
    /// The option that asked for it, for messages.
    pub what: String,
    /// `addr=`; the next that is free if none.
    pub place: Option<Place>,
}
