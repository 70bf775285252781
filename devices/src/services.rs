//! What devices consume. The program (`src/`) implements these traits; tests use fakes.

use crate::state::{StateError, StateValue};
use std::sync::{Arc, Weak};

/// Guest time. It stops while the machine is paused; devices see no other clock.
pub trait Clock: Send + Sync {
    /// Nanoseconds of guest time since the machine started.
    fn now_ns(&self) -> u64;
    /// Seconds since the Unix epoch as the guest's wall clock (RTC) should see them, with nanoseconds.
    fn wall_clock(&self) -> (i64, u32);
}

/// Something with interrupt input pins: a PIC, an IOAPIC, the ISA interrupt fan-out.
pub trait IrqSink: Send + Sync {
    /// Sets the level of input `pin`. Edge-triggered inputs act on the rising edge.
    fn set_irq(&self, pin: u32, level: bool);
}

/// One wire from a device to an interrupt controller. Devices never see IRQ numbers.
#[derive(Clone)]
pub struct IrqLine {
    sink: Arc<dyn IrqSink>,
    pin: u32,
}

impl IrqLine {
    /// A wire to `pin` of `sink`.
    pub fn new(sink: Arc<dyn IrqSink>, pin: u32) -> Self {
        Self { sink, pin }
    }

    /// A wire that ends nowhere.
    pub fn unconnected() -> Self {
        struct Nowhere;
        impl IrqSink for Nowhere {
            fn set_irq(&self, _pin: u32, _level: bool) {}
        }
        Self::new(Arc::new(Nowhere), 0)
    }

    /// Sets the wire's level.
    pub fn set(&self, level: bool) {
        self.sink.set_irq(self.pin, level);
    }

    /// A short pulse: assert, then deassert.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

/// Receiver of message-signalled interrupts (the local APICs).
pub trait MsiSink: Send + Sync {
    /// A 32-bit write of `data` to `address` in the 0xFEEx_xxxx window.
    fn send_msi(&self, address: u64, data: u32);
}

/// A timer that a device owns; dropping it cancels it.
pub trait Timer: Send + Sync {
    /// Fires once when guest time reaches `deadline_ns`; replaces an earlier deadline.
    fn arm(&self, deadline_ns: u64);
    /// Takes the deadline back.
    fn disarm(&self);
}

/// What a timer calls when it fires (on the I/O thread).
pub trait TimerTarget: Send + Sync {
    /// The deadline has passed; `now_ns` is the guest time. `tag` tells a device's timers apart.
    fn timer_fired(&self, tag: u32, now_ns: u64);
}

/// Maker of timers.
pub trait TimerService: Send + Sync {
    /// A timer, not yet armed, that calls `target` with `tag`.
    fn create(&self, target: Weak<dyn TimerTarget>, tag: u32) -> Box<dyn Timer>;
}

/// The host side of a character device. Never blocks: what the host cannot take yet is queued.
pub trait CharBackend: Send + Sync {
    /// Sends bytes that the guest wrote.
    fn write(&self, bytes: &[u8]);
    /// The device can take input again (its FIFO was drained).
    fn input_ready(&self);
    /// How many bytes it takes now without queueing more than is sensible. Who was told 0 is called when there is room
    /// again ([`CharFrontend::output_ready`]).
    fn room(&self) -> usize {
        usize::MAX
    }
    /// Whether somebody is at the other end. What is written otherwise is lost.
    fn connected(&self) -> bool {
        true
    }
    /// Columns and rows, if it is a terminal.
    fn size(&self) -> Option<(u16, u16)> {
        None
    }
    /// The guest has set how characters go over the line. What is no serial line takes no notice.
    fn set_line(&self, _line: Line) {}
}

/// How characters go over a serial line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Bits a second.
    pub baud: u32,
    /// Data bits of a character: 5 to 8.
    pub bits: u8,
    /// Stop bits: 1 or 2.
    pub stop: u8,
    /// What follows the data bits.
    pub parity: Parity,
}

/// A character's parity bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parity {
    /// There is none.
    None,
    /// Makes the number of ones odd.
    Odd,
    /// Makes the number of ones even.
    Even,
}

/// The device side of a character device: what a back end calls with input, on the I/O thread.
pub trait CharFrontend: Send + Sync {
    /// How many bytes the device can take now.
    fn can_receive(&self) -> usize;
    /// Input from the host, at most `can_receive` bytes.
    fn receive(&self, bytes: &[u8]);
    /// A break condition from the host.
    fn receive_break(&self) {}
    /// There is room for output again. On any thread; returns at once.
    fn output_ready(&self) {}
    /// Somebody came to the other end or left it, or its size changed. On any thread; returns at once.
    fn host_changed(&self) {}
    /// Descriptors of the host's that come with the bytes that are received next; most have no use for them.
    fn receive_descriptors(&self, _descriptors: Vec<std::os::fd::OwnedFd>) {}
    /// Whether another host end may take the place of its own: it keeps nothing that belongs to who is there.
    fn swaps(&self) -> bool {
        true
    }
}

/// Why the machine is asked to stop or start anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerEvent {
    /// Reset of the whole machine (keyboard controller, port 0x92, port 0xCF9, ACPI).
    Reset,
    /// Power off (ACPI S5).
    PowerOff,
    /// End the process with this status (`isa-debug-exit`).
    Exit(i32),
    /// Suspend to RAM asked for (ACPI S3).
    Suspend,
    /// The guest's kernel says that it crashed (pvpanic).
    GuestPanicked,
    /// The guest's kernel crashed, and another one that it had ready takes over (pvpanic).
    CrashLoaded,
    /// A watchdog was not fed in time.
    Watchdog,
}

/// Receiver of power events.
pub trait PowerSink: Send + Sync {
    /// Asks for `event`; returns at once, the machine acts on it soon.
    fn request(&self, event: PowerEvent);
}

/// Access to guest memory by bus-mastering devices.
pub trait Dma: Send + Sync {
    /// Reads guest-physical memory; what is not RAM reads as all ones.
    fn read(&self, gpa: u64, buf: &mut [u8]);
    /// Writes guest-physical memory; what is not RAM is left alone.
    fn write(&self, gpa: u64, buf: &[u8]);
}

/// Memory of a device that processors and bus masters reach without the device: a frame buffer.
pub trait DeviceMemory: Send + Sync {
    /// Bytes from `offset` on; those beyond the end read as all ones.
    fn read(&self, offset: u64, buf: &mut [u8]);
    /// Stores bytes from `offset` on, but for those beyond the end.
    fn write(&self, offset: u64, bytes: &[u8]);
    /// The first `len` bytes become zero.
    fn clear(&self, len: u64);
    /// From now on the guest finds it at `gpa`, or nowhere.
    fn place(&self, gpa: Option<u64>);
}

/// The processor side of a local APIC: how it gets the CPU's attention.
pub trait CpuSignals: Send + Sync {
    /// An interrupt may be deliverable (`true`), or none is any more.
    fn set_interrupt_pending(&self, pending: bool);
    /// Non-maskable interrupt.
    fn nmi(&self);
    /// System management interrupt.
    fn smi(&self);
    /// INIT: the CPU resets and waits for a start-up message (application processors).
    fn init(&self);
    /// Start-up message: start at `vector << 12` in real mode.
    fn start_up(&self, vector: u8);
}

/// What the guest sees of a piece of memory that can stand before ROM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShadowMode {
    /// Reads give RAM; otherwise what lies on the bus behind it: ROM, or nothing.
    pub read_ram: bool,
    /// Writes go to RAM; otherwise nowhere.
    pub write_ram: bool,
}

/// RAM in the place of ROM, from 0xC0000 to 0xFFFFF.
pub trait ShadowRam: Send + Sync {
    /// How the guest sees segment 0 to 12: twelve of 16 KiB from 0xC0000 on, then 0xF0000 to 0xFFFFF.
    fn set_mode(&self, segment: usize, mode: ShadowMode);
}

/// A piece of guest memory that a request reads from or writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct GuestRange {
    /// First guest-physical address.
    pub gpa: u64,
    /// Bytes.
    pub len: u64,
}

/// Where a disk request's bytes come from or go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskBuffer {
    /// Guest memory, piece by piece. What is not RAM reads as all ones and takes nothing.
    Guest(Vec<GuestRange>),
    /// The device's own buffer, which comes back with the completion.
    Own(Vec<u8>),
}

impl DiskBuffer {
    /// Bytes.
    pub fn len(&self) -> u64 {
        match self {
            DiskBuffer::Guest(ranges) => ranges.iter().fold(0, |sum, range| sum.saturating_add(range.len)),
            DiskBuffer::Own(bytes) => bytes.len() as u64,
        }
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a disk is to do. Offsets and lengths are in bytes; those beyond the end of the disk fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskRequest {
    /// Fill the buffer from `offset` on.
    Read {
        /// First byte on the disk.
        offset: u64,
        /// Where the bytes go.
        buffer: DiskBuffer,
    },
    /// Store the buffer at `offset`.
    Write {
        /// First byte on the disk.
        offset: u64,
        /// What is stored.
        buffer: DiskBuffer,
    },
    /// Make all that was written before durable.
    Flush,
    /// The bytes are needed no longer.
    Discard {
        /// First byte on the disk.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// The bytes are to read as zero.
    WriteZeroes {
        /// First byte on the disk.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Their space may be given back.
        unmap: bool,
    },
}

/// Why a disk request failed, as far as a guest can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// The host could not carry it out.
    #[error("the host failed the request")]
    Host,
    /// The disk is write-protected.
    #[error("the disk is write-protected")]
    ReadOnly,
    /// The request reaches beyond the end.
    #[error("the request reaches beyond the end of the disk")]
    OutOfRange,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskDone {
    /// What the device gave with the request.
    pub token: u64,
    /// Whether it was carried out.
    pub result: Result<(), DiskError>,
    /// The device's own buffer, filled by a read; empty for guest memory.
    pub bytes: Vec<u8>,
}

/// The device side of a disk: who hears of completions, on an I/O thread.
pub trait DiskClient: Send + Sync {
    /// A request ended. Requests may end in another order than they were submitted in.
    fn disk_done(&self, done: DiskDone);
    /// The disk has another size ([`Disk::watch_size`]). On any thread.
    fn disk_resized(&self) {}
}

/// A disk image. Requests return at once; their completion comes later, never from within `submit`.
pub trait Disk: Send + Sync {
    /// Bytes.
    fn len(&self) -> u64;
    /// Whether it has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Whether writes fail.
    fn read_only(&self) -> bool;
    /// Whether the guest is to see a write cache, and flush it.
    fn write_cache(&self) -> bool;
    /// Has `client` told when the disk gets another size.
    fn watch_size(&self, _client: Weak<dyn DiskClient>) {}
    /// Starts `request`; `client` hears of its end with `token`.
    fn submit(&self, request: DiskRequest, token: u64, client: Weak<dyn DiskClient>);
}

/// A drive whose medium the user changes.
pub trait MediumDrive: Send + Sync {
    /// Puts another medium in; the tray, if there is one, ends up closed. `None`: takes the medium out, and the tray is
    /// open. The guest is not asked.
    fn change(&self, medium: Option<Arc<dyn Disk>>);
    /// The guest wants the medium to stay.
    fn locked(&self) -> bool;
    /// The tray is open.
    fn tray_open(&self) -> bool;
    /// Tells the guest that the user would like to have the medium.
    fn ask(&self);
    /// Opens or closes the tray, the medium in it; the guest is not asked. `false`: there is no tray.
    fn set_tray(&self, _open: bool) -> bool {
        false
    }
}

/// Work of a device that does not belong on a vCPU's thread: what a doorbell calls, on the I/O thread.
pub trait WorkTarget: Send + Sync {
    /// The doorbell was rung at least once since the last call. `tag` tells a device's doorbells apart.
    fn work(&self, tag: u32);
}

/// A doorbell that a device owns.
pub trait Doorbell: Send + Sync {
    /// Has [`WorkTarget::work`] called soon. Returns at once; ringing it again before that adds nothing.
    fn ring(&self);
}

/// Maker of doorbells.
pub trait WorkService: Send + Sync {
    /// A doorbell for `target` with `tag`.
    fn doorbell(&self, target: Weak<dyn WorkTarget>, tag: u32) -> Box<dyn Doorbell>;
}

/// The host side of a network card. All methods but `connect` are called on the I/O thread, without the card's locks.
pub trait NetBackend: Send + Sync {
    /// Makes `card` the receiver of frames.
    fn connect(&self, card: Weak<dyn NetFrontend>);
    /// Sends an Ethernet frame, without its checksum. What the host cannot take is lost, as on any network.
    fn send(&self, frame: &[u8]);
    /// Longest frame that `send` takes. Where it is longer than the guest's network has frames, a TCP segment as long as
    /// the guest's own sends may be sent whole, which spares both sides work.
    fn longest_frame(&self) -> usize {
        1518
    }
    /// That was the last frame for now: work that serves several at once is done here.
    fn sent(&self);
    /// The card has room for frames again after it had refused one.
    fn receive_ready(&self);
}

/// Work on a frame for the guest that a host side may leave to a card that takes it over ([`NetFrontend::takes`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unfinished {
    /// Where the TCP or UDP header starts, if its checksum is open: the sum over the pseudo header stands in its place.
    pub sum: Option<u16>,
    /// Bytes of data of each of the TCP segments, or datagrams, that the frame stands for; 0: it is one.
    pub segment: u16,
    /// It is UDP; otherwise TCP.
    pub udp: bool,
}

/// What unfinished frames a card takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Takes {
    /// TCP and UDP checksums may be open.
    pub sums: bool,
    /// Large frames of TCP over IPv4, their sums open.
    pub large_v4: bool,
    /// The same over IPv6.
    pub large_v6: bool,
    /// Datagrams of a kind in one frame, its sum open: UDP over IPv4.
    pub datagrams_v4: bool,
    /// The same over IPv6.
    pub datagrams_v6: bool,
}

impl Takes {
    /// Whether datagrams may come together, over IPv4 or IPv6.
    pub fn datagrams(self, v4: bool) -> bool {
        if v4 { self.datagrams_v4 } else { self.datagrams_v6 }
    }
}

/// Which frames of a kind a guest wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// Those in a table.
    #[default]
    Listed,
    /// None.
    None,
    /// All.
    All,
}

/// What a guest wants to receive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reception {
    /// The station's address.
    pub mac: [u8; 6],
    /// Everything.
    pub promiscuous: bool,
    /// Frames to stations.
    pub stations: Wanted,
    /// Frames to groups.
    pub groups: Wanted,
    /// Frames of virtual networks.
    pub vlans: Wanted,
    /// Frames to everybody.
    pub broadcasts: bool,
    /// The stations in the table, besides the own address.
    pub station_table: Vec<[u8; 6]>,
    /// The groups in the table.
    pub group_table: Vec<[u8; 6]>,
    /// Numbers of the virtual networks in the table.
    pub vlan_table: Vec<u16>,
    /// The guest has more stations than the table.
    pub stations_overflow: bool,
    /// The guest has more groups than the table.
    pub groups_overflow: bool,
}

/// The card's side: what a host side calls with frames, on the I/O thread, without its locks.
pub trait NetFrontend: Send + Sync {
    /// An Ethernet frame for the guest, without its checksum. `false`: no room; the host side keeps it until
    /// [`NetBackend::receive_ready`]. A frame that the guest does not want counts as taken. Must not call the back end.
    /// `rest` is within what the card last said it takes.
    fn receive(&self, frame: &[u8], rest: Unfinished) -> bool;
    /// What the card takes now.
    fn takes(&self) -> Takes {
        Takes::default()
    }
    /// The cable is plugged in, or pulled out: then no frame comes or goes.
    fn set_link(&self, up: bool);
    /// What the guest wants to receive, if the card tells.
    fn reception(&self) -> Option<Reception> {
        None
    }
    /// Has `changed` called whenever that changes, on any thread, without the card's locks.
    fn on_reception(&self, _changed: Box<dyn Fn(()) + Send + Sync>) {}
}

/// A source of random bytes.
pub trait Entropy: Send + Sync {
    /// Asks for `len` bytes, at least 1. `client` gets one to `len` of them later, on the I/O thread, never from within.
    /// The asker waits for them before it asks again.
    fn request(&self, len: usize, client: Weak<dyn EntropyClient>);
}

/// Who asked for random bytes.
pub trait EntropyClient: Send + Sync {
    /// Here they are.
    fn entropy(&self, bytes: &[u8]);
}

/// Who takes back memory that the guest does without.
pub trait MemoryReturn: Send + Sync {
    /// The whole pages in these ranges go back to the host; they read as zeros when they are used again. What is not RAM is
    /// left alone.
    fn give_back(&self, ranges: &[GuestRange]);
}

/// A server of messages that the guest sends and that mean nothing to the device (9P). Nothing here waits but `settle`.
pub trait MessageService: Send + Sync {
    /// Takes a request; `client` gets the answer, of at most `room` bytes, later and on any thread, with `token`.
    fn submit(&self, token: u64, request: Vec<u8>, room: usize, client: Weak<dyn MessageClient>);
    /// The guest begins anew: what it had open is closed, after the requests so far.
    fn reset(&self);
    /// Waits until every request so far is answered.
    fn settle(&self);
    /// The state, when nothing is under way.
    fn save(&self) -> StateValue;
    /// Takes over a state that `save` made. `check`: only says whether it would.
    fn restore(&self, state: &StateValue, check: bool) -> Result<(), StateError>;
    /// A line about the state, for people.
    fn describe(&self) -> String;
}

/// Who sends such messages.
pub trait MessageClient: Send + Sync {
    /// The answer to the request with `token`.
    fn answer(&self, token: u64, answer: Vec<u8>);
}
