//! Transport of 9P messages (as Linux' `net/9p/trans_virtio.c` and QEMU have it; the type is reserved in chapter 5): each
//! request is a message with room for its answer.

use super::queue::{Chain, Queues};
use super::{Parts, VirtioDevice};
use crate::services::{Dma, Doorbell, MessageClient, MessageService, WorkService, WorkTarget};
use crate::state::{Inspector, StateError, StateValue, from_state, to_state};
use crate::wire::locked;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};

const QUEUE_SIZE: u16 = 128;
/// Messages with the server at once: so many of the longest are held in memory.
const AT_ONCE: usize = 16;
/// Bytes of a message's header: length, kind, tag.
const HEADER: usize = 7;
/// Longest name by which the guest mounts a folder.
pub const LONGEST_TAG: usize = 31;
/// Feature: the configuration space has the name.
const MOUNT_TAG: u64 = 1 << 0;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    started: bool,
    next: u64,
    /// With the server.
    pending: BTreeMap<u64, Chain>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    state: State,
    server: StateValue,
}

/// The device. Locks: `state` before those of the queues; the server is used without.
pub struct Virtio9p {
    tag: String,
    longest: u32,
    server: Arc<dyn MessageService>,
    queues: Arc<Queues>,
    doorbell: Box<dyn Doorbell>,
    this: Weak<Virtio9p>,
    state: Mutex<State>,
}

impl Virtio9p {
    /// A device that the guest knows by `tag` (1 to 31 bytes), whose messages of up to `longest` bytes go to `server`.
    pub fn parts(
        tag: &str,
        longest: u32,
        server: Arc<dyn MessageService>,
        dma: Arc<dyn Dma>,
        work: &dyn WorkService,
    ) -> Parts {
        let queues = Queues::new(dma, 1, QUEUE_SIZE);
        let device = Arc::new_cyclic(|this: &Weak<Self>| Self {
            tag: tag.to_owned(),
            longest,
            server,
            queues: queues.clone(),
            doorbell: work.doorbell(this.clone(), 0),
            this: this.clone(),
            state: Mutex::default(),
        });
        Parts { device, queues }
    }

    /// Passes messages on, as many as may be under way.
    fn serve(&self) {
        while let Some((token, message, room)) = self.take() {
            self.server.submit(token, message, room, self.this.clone());
        }
    }

    /// The next message, with its token and the room for the answer.
    fn take(&self) -> Option<(u64, Vec<u8>, usize)> {
        let mut state = locked(&self.state);
        if !state.started || state.pending.len() >= AT_ONCE {
            return None;
        }
        let chain = self.queues.pop(0)?;
        let dma = &**self.queues.dma();
        let length = chain.gather(dma, 0, 4).try_into().map_or(0, u32::from_le_bytes);
        let sound = length as usize >= HEADER && length <= self.longest && u64::from(length) <= chain.given();
        let room = usize::try_from(chain.room()).unwrap_or(usize::MAX);
        // The shortest answer says that something is wrong.
        if !sound || room < HEADER + 4 {
            drop(state);
            self.queues.stop();
            return None;
        }
        let message = chain.gather(dma, 0, length as usize);
        let token = state.next;
        state.next = token.wrapping_add(1);
        state.pending.insert(token, chain);
        Some((token, message, room))
    }
}

impl MessageClient for Virtio9p {
    fn answer(&self, token: u64, answer: Vec<u8>) {
        let done = {
            let mut state = locked(&self.state);
            // What a reset forgot ends here.
            state.pending.remove(&token).map(|chain| (chain.head, chain.scatter(&**self.queues.dma(), &answer)))
        };
        if let Some((head, len)) = done {
            self.queues.push(0, head, len);
            self.doorbell.ring();
        }
    }
}

impl WorkTarget for Virtio9p {
    fn work(&self, _tag: u32) {
        self.serve();
    }
}

impl VirtioDevice for Virtio9p {
    fn name(&self) -> &'static str {
        "virtio-9p-pci"
    }

    fn device_type(&self) -> u16 {
        9
    }

    fn pci_class(&self) -> u32 {
        0x00_0200
    }

    fn features(&self) -> u64 {
        MOUNT_TAG
    }

    fn config(&self) -> Vec<u8> {
        let len = u16::try_from(self.tag.len()).unwrap_or(0);
        [&len.to_le_bytes()[..], self.tag.as_bytes()].concat()
    }

    fn config_write(&self, _offset: usize, _bytes: &[u8]) {}

    fn start(&self, _features: u64) {
        locked(&self.state).started = true;
    }

    fn notify(&self, _index: usize) {
        self.doorbell.ring();
    }

    fn reset(&self) {
        {
            let mut state = locked(&self.state);
            // Numbers go on: a late answer must not be taken for another one.
            *state = State { next: state.next, ..State::default() };
        }
        self.server.reset();
    }

    fn busy(&self) -> bool {
        // Answers are written under the lock that `reset` takes.
        false
    }

    fn save(&self) -> StateValue {
        // Nothing is half done then: a request that makes a file must not be carried out twice.
        self.server.settle();
        let state = locked(&self.state).clone();
        to_state(&Saved { state, server: self.server.save() })
    }

    fn restore(&self, state: &StateValue, check: bool) -> Result<(), StateError> {
        let Saved { state, server } = from_state(self.name(), state)?;
        if !state.pending.is_empty() {
            let reason = "a message was under way".into();
            return Err(StateError::Malformed { device: self.name(), reason });
        }
        self.server.settle();
        self.server.restore(&server, check)?;
        if !check {
            *locked(&self.state) = state;
            self.doorbell.ring();
        }
        Ok(())
    }

    fn inspect(&self, out: &mut Inspector) {
        out.field("mount_tag", &self.tag);
        out.field("messages", locked(&self.state).pending.len());
        out.field("session", self.server.describe());
    }
}

#[cfg(test)]
mod tests {
    use super::super::bench::{Bench, DATA, Surroundings, fuzz};
    use super::*;
    use crate::fakes::moves_to;

    /// Answers with the message reversed, when told.
    #[derive(Default)]
    struct Server {
        waiting: Mutex<Vec<Waiting>>,
        resets: Mutex<u32>,
    }

    type Waiting = (u64, Vec<u8>, Weak<dyn MessageClient>);

    impl Server {
        fn run(&self) {
            let waiting = std::mem::take(&mut *locked(&self.waiting));
            for (token, mut message, client) in waiting {
                message.reverse();
                client.upgrade().into_iter().for_each(|client| client.answer(token, message.clone()));
            }
        }
    }

    impl MessageService for Server {
        fn submit(&self, token: u64, request: Vec<u8>, room: usize, client: Weak<dyn MessageClient>) {
            assert!(request.len() >= HEADER && room >= HEADER + 4);
            locked(&self.waiting).push((token, request, client));
            assert!(locked(&self.waiting).len() <= AT_ONCE);
        }
        fn reset(&self) {
            *locked(&self.resets) += 1;
        }
        fn settle(&self) {
            self.run();
        }
        fn save(&self) -> StateValue {
            StateValue::from(7)
        }
        fn restore(&self, state: &StateValue, _check: bool) -> Result<(), StateError> {
            from_state::<u32>("virtio-9p-pci", state).map(|_| ())
        }
        fn describe(&self) -> String {
            String::new()
        }
    }

    fn parts(server: &Arc<Server>, s: &Surroundings) -> Parts {
        Virtio9p::parts("share", 4096, server.clone(), s.memory.clone(), &s.work)
    }

    fn bench() -> (Arc<Server>, Bench) {
        let server = Arc::new(Server::default());
        let b = Bench::new(MOUNT_TAG, |s| parts(&server, s));
        (server, b)
    }

    #[test]
    fn messages_go_there_and_back() {
        let (server, mut b) = bench();
        assert_eq!((b.config(0, 2), b.config(2, 4)), (5, u64::from(u32::from_le_bytes(*b"shar"))));
        b.s.memory.write(DATA, &[9, 0, 0, 0, 100, 1, 2, 3, 4, 99]);
        b.queues[0].add(&[(DATA, 3, false), (DATA + 3, 7, false), (DATA + 64, 4, true), (DATA + 80, 60, true)]);
        b.kick(0);
        server.run();
        assert_eq!(b.queues[0].used(), [(0, 9)]);
        assert_eq!((b.bytes(DATA + 64, 4), b.bytes(DATA + 80, 5)), (vec![4, 3, 2, 1], vec![100, 0, 0, 0, 9]));
    }

    #[test]
    fn wrong_lengths_stop_the_device() {
        for (length, given, room) in [(6u32, 7, 64), (8, 7, 64), (4097, 5000, 64), (7, 7, 10)] {
            let (server, mut b) = bench();
            b.s.memory.write(DATA, &length.to_le_bytes());
            b.queues[0].add(&[(DATA, given, false), (DATA + 0x2000, room, true)]);
            b.kick(0);
            assert!(locked(&server.waiting).is_empty());
            assert_ne!(b.bus.mmio_read(super::super::bench::REGISTERS + 0x14, 1) & 64, 0, "{length} {given} {room}");
        }
    }

    #[test]
    fn a_reset_forgets_and_a_saved_state_has_nothing_half_done() {
        let (server, mut b) = bench();
        b.s.memory.write(DATA, &[7]);
        b.queues[0].add(&[(DATA, 7, false), (DATA + 64, 64, true)]);
        b.kick(0);
        let other = Bench::bare(|s| parts(&server, s));
        moves_to(&*b.device, &*other.device);
        assert_eq!(b.queues[0].used(), [(0, 7)]);
        b.queues[0].add(&[(DATA, 7, false), (DATA + 64, 64, true)]);
        b.kick(0);
        crate::bus::Device::reset(&*b.device);
        server.run();
        assert!(b.queues[0].used().is_empty() && *locked(&server.resets) > 0);
    }

    #[test]
    fn random_accesses_and_rings() {
        let server = Arc::new(Server::default());
        fuzz(53, |s| parts(&server, s), |_| server.run());
    }
}
