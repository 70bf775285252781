//! The two 8237A DMA controllers of an ISA bus, and the page registers that give addresses their upper bits (Intel
//! 8237A datasheet; 82371SB datasheet 2.5.1).
//!
//! Controller 1 has channels 0 to 3 for bytes, controller 2 channels 4 to 7 for words; channel 4 carries the first one.

use crate::bus::{Device, RegisterBlock, Registers};
use crate::services::Dma;
use crate::state::{Inspector, StateError, StateValue, from_state, to_state};
use crate::wire::locked;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, OnceLock, Weak};

/// Ports of the page registers, after the first of their block.
pub const PAGE_PORTS: u64 = 15;
/// Ports of each controller; those of the second lie at every other port.
pub const FIRST_PORTS: u64 = 16;
/// See [`FIRST_PORTS`].
pub const SECOND_PORTS: u64 = 32;
/// Command register: the controller is off.
const DISABLED: u8 = 4;
/// Mode register.
const TO_MEMORY: u8 = 1;
const FROM_MEMORY: u8 = 2;
const AUTO_INITIALIZE: u8 = 0x10;
const DECREMENT: u8 = 0x20;
/// The channel that has no device.
const CASCADE: usize = 4;
const CHANNELS: usize = 8;
/// Page registers by offset from port 0x81: channels 2, 3, 1, then 0, 6, 7, 5. The others are storage.
const PAGES: [(usize, usize); 7] = [(0, 2), (1, 3), (2, 1), (6, 0), (8, 6), (9, 7), (10, 5)];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Channel {
    base_address: u16,
    base_count: u16,
    address: u16,
    /// One less than what is left; all ones once nothing is.
    count: u16,
    mode: u8,
    masked: bool,
    /// Software asks for a transfer.
    requested: bool,
    /// The device asks for one.
    wanted: bool,
    /// The count ran out since the status was read.
    ended: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Controller {
    command: u8,
    /// The next access is to an upper byte.
    upper: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    channels: [Channel; CHANNELS],
    controllers: [Controller; 2],
    pages: [u8; PAGE_PORTS as usize],
}

impl Default for State {
    fn default() -> Self {
        let channel = Channel { masked: true, ..Channel::default() };
        Self { channels: [channel; CHANNELS], controllers: Default::default(), pages: [0; PAGE_PORTS as usize] }
    }
}

impl Controller {
    /// Whether this access is to an upper byte; the next one is to the other.
    fn flip(&mut self) -> bool {
        self.upper = !self.upper;
        !self.upper
    }
}

/// A device that asked for a transfer on a channel that was masked.
pub trait DmaClient: Send + Sync {
    /// The channel may move data now.
    fn dma_ready(&self);
}

/// Both controllers.
///
/// Locks: `state` is a leaf but for guest memory; clients are called without it.
pub struct IsaDma {
    memory: Arc<dyn Dma>,
    state: Mutex<State>,
    clients: [OnceLock<Weak<dyn DmaClient>>; CHANNELS],
}

/// A device's end of a channel.
#[derive(Clone)]
pub struct DmaChannel {
    dma: Arc<IsaDma>,
    number: usize,
}

/// A controller's registers.
struct ControllerPorts(Arc<IsaDma>, usize);
/// The page registers.
struct PagePorts(Arc<IsaDma>);

impl IsaDma {
    /// Controllers that reach `memory`.
    pub fn new(memory: Arc<dyn Dma>) -> Arc<Self> {
        Arc::new(Self { memory, state: Mutex::default(), clients: Default::default() })
    }

    /// The sixteen ports of the first controller.
    pub fn first_ports(self: &Arc<Self>) -> Registers {
        Arc::new(ControllerPorts(self.clone(), 0))
    }

    /// The 32 ports of the second controller.
    pub fn second_ports(self: &Arc<Self>) -> Registers {
        Arc::new(ControllerPorts(self.clone(), 1))
    }

    /// The fifteen page registers from port 0x81 on.
    pub fn page_ports(self: &Arc<Self>) -> Registers {
        Arc::new(PagePorts(self.clone()))
    }

    /// Channel `number`, 0 to 3, for a device that moves bytes. The device hears of the channel's being ready once it
    /// has connected.
    pub fn channel(self: &Arc<Self>, number: usize) -> DmaChannel {
        DmaChannel { dma: self.clone(), number: number & 3 }
    }

    /// Changes the state, then tells devices whose channels may move data now.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let ready: Vec<usize> = {
            let mut state = locked(&self.state);
            let before: Vec<bool> = (0..CHANNELS).map(|n| state.open(n)).collect();
            change(&mut state);
            (0..CHANNELS).filter(|n| !before[*n] && state.open(*n) && state.channels[*n].wanted).collect()
        };
        let clients = ready.into_iter().filter_map(|n| self.clients[n].get()?.upgrade());
        clients.for_each(|client| client.dma_ready());
    }
}

impl DmaChannel {
    /// Makes `client` the device of this channel; the first one stays.
    pub fn connect(&self, client: Weak<dyn DmaClient>) {
        // A second device would be a mistake of the machine's.
        let _ = self.dma.clients[self.number].set(client);
    }

    /// Bytes that the channel moves until its count runs out; `None` while it is masked or off: the device is told when
    /// that changes.
    pub fn ready(&self) -> Option<u64> {
        let mut state = locked(&self.dma.state);
        let open = state.open(self.number);
        let channel = &mut state.channels[self.number];
        channel.wanted = !open;
        open.then_some(u64::from(channel.count) + 1)
    }

    /// The device wants nothing any more.
    pub fn withdraw(&self) {
        locked(&self.dma.state).channels[self.number].wanted = false;
    }

    /// Moves bytes to memory, until the count runs out; whether it did.
    pub fn put(&self, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        self.moves(bytes.len() as u64, |memory, address, len, mode| {
            let (now, later) = rest.split_at(len.min(rest.len()));
            if mode == TO_MEMORY {
                memory.write(address, now);
            }
            rest = later;
        })
    }

    /// Takes up to `len` bytes from memory, until the count runs out; the bytes, and whether it did.
    pub fn get(&self, len: u64) -> (Vec<u8>, bool) {
        let mut bytes = Vec::new();
        let ended = self.moves(len, |memory, address, len, mode| {
            let mut piece = vec![0xff; len];
            if mode == FROM_MEMORY {
                memory.read(address, &mut piece);
            }
            bytes.extend(piece);
        });
        (bytes, ended)
    }

    /// Walks through the channel's memory. Addresses wrap within their page of 64 KiB.
    fn moves(&self, len: u64, mut piece: impl FnMut(&dyn Dma, u64, usize, u8)) -> bool {
        let mut state = locked(&self.dma.state);
        let page = u64::from(state.page(self.number)) << 16;
        if !state.open(self.number) {
            return false;
        }
        let channel = &mut state.channels[self.number];
        let mode = channel.mode >> 2 & 3;
        let mut left = len;
        while left > 0 {
            let whole = u64::from(channel.count) + 1;
            let now = match channel.mode & DECREMENT {
                // Backwards: byte by byte.
                0 => left.min(whole).min(0x1_0000 - u64::from(channel.address)),
                _ => 1,
            };
            piece(&*self.dma.memory, page | u64::from(channel.address), now as usize, mode);
            let step = now as u16;
            channel.address = match channel.mode & DECREMENT {
                0 => channel.address.wrapping_add(step),
                _ => channel.address.wrapping_sub(step),
            };
            channel.count = channel.count.wrapping_sub(step);
            left -= now;
            if now == whole {
                channel.end();
                return true;
            }
        }
        false
    }
}

impl Channel {
    /// The count ran out.
    fn end(&mut self) {
        (self.ended, self.requested, self.wanted) = (true, false, false);
        if self.mode & AUTO_INITIALIZE != 0 {
            (self.address, self.count) = (self.base_address, self.base_count);
        } else {
            self.masked = true;
        }
    }
}

impl State {
    /// Whether the channel may move data.
    fn open(&self, number: usize) -> bool {
        let on = |controller: usize| self.controllers[controller].command & DISABLED == 0;
        let cascade = number >= CASCADE || on(1) && !self.channels[CASCADE].masked;
        !self.channels[number].masked && on(number / 4) && cascade
    }

    fn page(&self, number: usize) -> u8 {
        PAGES.iter().find(|(_, channel)| *channel == number).map_or(0, |(at, _)| self.pages[*at])
    }

    fn read(&mut self, which: usize, register: u64) -> u8 {
        let first = 4 * which;
        match register {
            0..=7 => {
                let upper = self.controllers[which].flip();
                let channel = &self.channels[first + (register >> 1) as usize];
                let value = if register & 1 == 0 { channel.address } else { channel.count };
                (if upper { value >> 8 } else { value }) as u8
            }
            8 => (0..4).fold(0, |bits, n| {
                let channel = &mut self.channels[first + n];
                let ended = std::mem::take(&mut channel.ended);
                bits | u8::from(ended) << n | u8::from(channel.requested || channel.wanted) << (4 + n)
            }),
            // The masks, as later chips have them.
            0xf => (0..4).fold(0xf0, |bits, n| bits | u8::from(self.channels[first + n].masked) << n),
            _ => 0,
        }
    }

    fn write(&mut self, which: usize, register: u64, value: u8) {
        let first = 4 * which;
        let channel = &mut self.channels[first + usize::from(value & 3)];
        match register {
            0..=7 => {
                let upper = self.controllers[which].flip();
                let channel = &mut self.channels[first + (register >> 1) as usize];
                let (base, current) = match register & 1 {
                    0 => (&mut channel.base_address, &mut channel.address),
                    _ => (&mut channel.base_count, &mut channel.count),
                };
                *base = match upper {
                    true => *base & 0x00ff | u16::from(value) << 8,
                    false => *base & 0xff00 | u16::from(value),
                };
                *current = *base;
            }
            8 => self.controllers[which].command = value,
            9 => channel.requested = value & 4 != 0,
            0xa => channel.masked = value & 4 != 0,
            0xb => channel.mode = value & 0xfc,
            0xc => self.controllers[which].upper = false,
            0xd => {
                self.controllers[which] = Controller::default();
                for channel in &mut self.channels[first..first + 4] {
                    (channel.masked, channel.requested, channel.ended) = (true, false, false);
                }
            }
            0xe => self.channels[first..first + 4].iter_mut().for_each(|channel| channel.masked = false),
            _ => {
                for (n, channel) in self.channels[first..first + 4].iter_mut().enumerate() {
                    channel.masked = value >> n & 1 != 0;
                }
            }
        }
    }
}

impl RegisterBlock for ControllerPorts {
    fn read(&self, offset: u64, _size: u8) -> u64 {
        let Self(dma, which) = self;
        locked(&dma.state).read(*which, (offset >> which) & 0xf).into()
    }

    fn write(&self, offset: u64, _size: u8, value: u64) {
        let Self(dma, which) = self;
        dma.change(|state| state.write(*which, (offset >> which) & 0xf, value as u8));
    }
}

impl RegisterBlock for PagePorts {
    fn read(&self, offset: u64, _size: u8) -> u64 {
        locked(&self.0.state).pages.get(offset as usize).copied().unwrap_or(0xff).into()
    }

    fn write(&self, offset: u64, _size: u8, value: u64) {
        if let Some(page) = locked(&self.0.state).pages.get_mut(offset as usize) {
            *page = value as u8;
        }
    }
}

impl Device for IsaDma {
    fn name(&self) -> &'static str {
        "isa-dma"
    }

    fn reset(&self) {
        *locked(&self.state) = State::default();
    }

    fn save(&self) -> StateValue {
        let Self { memory: _, state, clients: _ } = self;
        to_state(&*locked(state))
    }

    fn restore(&self, state: &StateValue) -> Result<(), StateError> {
        *locked(&self.state) = from_state(self.name(), state)?;
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        let state = locked(&self.state);
        for (n, channel) in state.channels.iter().enumerate().filter(|(n, _)| *n != CASCADE) {
            let page = state.page(n);
            let Channel { address, count, mode, masked, .. } = channel;
            let masked = if *masked { ", masked" } else { "" };
            let value = format_args!("{page:#04x}{address:04x} count {count:#x} mode {mode:#04x}{masked}");
            out.field(&format!("channel{n}"), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::{FakeMemory, FakeTime, fuzz};
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn set_up(dma: &Arc<IsaDma>, address: u32, count: u16, mode: u8) {
        let ports = dma.first_ports();
        dma.second_ports().write(0x14, 1, 0);
        ports.write(0xc, 1, 0);
        for (register, value) in [(4, address as u16), (5, count)] {
            ports.write(register, 1, (value & 0xff).into());
            ports.write(register, 1, (value >> 8).into());
        }
        dma.page_ports().write(0, 1, (address >> 16).into());
        ports.write(0xb, 1, u64::from(mode) | 2);
        ports.write(0xa, 1, 2);
    }

    #[test]
    fn bytes_move_until_the_count_runs_out() {
        let memory = FakeMemory::new(0x3_0000);
        let dma = IsaDma::new(memory.clone());
        let channel = dma.channel(2);
        assert_eq!(channel.ready(), None);
        set_up(&dma, 0x1_fffe, 7, 0x44);
        assert_eq!(channel.ready(), Some(8));
        assert!(!channel.put(b"abc"));
        assert!(channel.put(b"defghi"), "one too many");
        let mut bytes = [0; 3];
        memory.read(0x1_fffe, &mut bytes);
        assert_eq!(&bytes, b"ab\0");
        memory.read(0x1_0000, &mut bytes);
        assert_eq!(&bytes, b"cde", "within the page");
        assert_eq!(dma.first_ports().read(8, 1), 4, "the count ran out");
        assert_eq!((channel.ready(), dma.first_ports().read(8, 1)), (None, 0x40), "masked, and asked for");
        set_up(&dma, 0x1_0000, 3, 0x58);
        assert_eq!(channel.get(9), (b"cdef".to_vec(), true));
        assert_eq!(channel.get(2), (b"cd".to_vec(), false), "it began anew");
        set_up(&dma, 0x1_0002, 2, 0x68);
        assert_eq!(channel.get(3), (b"edc".to_vec(), true));
        set_up(&dma, 0x1_0000, 0, 0x40);
        channel.put(b"z");
        memory.read(0x1_0000, &mut bytes);
        assert_eq!(&bytes, b"cde", "verifying changes nothing");
    }

    #[test]
    fn devices_are_told_when_their_channel_opens() {
        struct Client(AtomicUsize);
        impl DmaClient for Client {
            fn dma_ready(&self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let dma = IsaDma::new(FakeMemory::new(16));
        let (channel, client) = (dma.channel(2), Arc::new(Client(AtomicUsize::new(0))));
        let weak: Weak<dyn DmaClient> = Arc::downgrade(&client) as Weak<dyn DmaClient>;
        channel.connect(weak);
        set_up(&dma, 0, 0, 0x44);
        assert_eq!(client.0.load(Ordering::SeqCst), 0, "nobody asked");
        dma.first_ports().write(0xa, 1, 6);
        assert_eq!(channel.ready(), None);
        dma.first_ports().write(0xe, 1, 0);
        assert_eq!(client.0.load(Ordering::SeqCst), 1);
        dma.reset();
        assert_eq!(dma.save(), IsaDma::new(FakeMemory::new(16)).save());
    }

    #[test]
    fn registers_keep_what_is_written() {
        let dma = IsaDma::new(FakeMemory::new(16));
        let second = dma.second_ports();
        second.write(0x18, 1, 0);
        second.write(0x04, 1, 0x34);
        second.write(0x04, 1, 0x12);
        assert_eq!((second.read(0x04, 1), second.read(0x04, 1)), (0x34, 0x12));
        second.write(0x1e, 1, 0x5);
        assert_eq!(second.read(0x1e, 1), 0xf5);
        dma.page_ports().write(3, 1, 0x77);
        assert_eq!(dma.page_ports().read(3, 1), 0x77, "storage");
        let (first, pages) = (dma.first_ports(), dma.page_ports());
        fuzz(&*dma, &[(&*first, 16), (&*second, 32), (&*pages, 15)], &FakeTime::new(), 61);
    }
}
