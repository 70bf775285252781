//! Hubs: what comes in at a port goes out at all others. At a port there is a card, or another host end.

use super::Card;
use brolga_devices::services::{Doorbell, NetBackend, NetFrontend, Unfinished, WorkService, WorkTarget};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Frames that wait at a port, at most. A host end keeps what comes after; what a card sends is lost.
const MOST_WAITING: usize = 256;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A hub. Frames wait at its ports until its own turn on the I/O thread, so that no host end is called from within
/// another.
pub struct Hub {
    bell: Box<dyn Doorbell>,
    /// Grows only, while the machine is built.
    ports: Mutex<Vec<Weak<Port>>>,
}

/// A port of a hub: what a card is connected to, or what a host end takes for a card.
pub struct Port {
    hub: Arc<Hub>,
    /// The card, where there is one.
    card: Card,
    /// The host end, where there is one.
    end: Mutex<Option<Arc<dyn NetBackend>>>,
    /// Frames that leave the hub here.
    waiting: Mutex<VecDeque<Vec<u8>>>,
    /// The host end keeps a frame, as another port was full.
    refused: AtomicBool,
}

impl Hub {
    /// A hub without ports.
    pub fn new(work: &dyn WorkService) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| Self { bell: work.doorbell(this.clone(), 0), ports: Mutex::default() })
    }

    /// A port more.
    pub fn port(self: &Arc<Self>) -> Arc<Port> {
        let port = Arc::new(Port {
            hub: self.clone(),
            card: Card::default(),
            end: Mutex::default(),
            waiting: Mutex::default(),
            refused: AtomicBool::new(false),
        });
        locked(&self.ports).push(Arc::downgrade(&port));
        port
    }

    fn ports(&self) -> Vec<Arc<Port>> {
        locked(&self.ports).iter().filter_map(Weak::upgrade).collect()
    }

    /// Passes a frame on that came in at `from`. `keeps`: whoever it is from keeps it if there is no room. Whether it was
    /// passed on.
    fn pass(&self, from: &Port, frame: &[u8], keeps: bool) -> bool {
        let others: Vec<_> = self.ports().into_iter().filter(|port| !std::ptr::eq(&**port, from)).collect();
        if keeps && others.iter().any(|port| locked(&port.waiting).len() >= MOST_WAITING) {
            from.refused.store(true, Ordering::SeqCst);
            return false;
        }
        for port in others {
            let mut waiting = locked(&port.waiting);
            if waiting.len() < MOST_WAITING {
                waiting.push_back(frame.to_vec());
            }
        }
        self.bell.ring();
        true
    }
}

impl WorkTarget for Hub {
    fn work(&self, _tag: u32) {
        let ports = self.ports();
        ports.iter().for_each(|port| port.drain());
        let full = |port: &Arc<Port>| locked(&port.waiting).len() >= MOST_WAITING;
        if ports.iter().any(full) {
            return;
        }
        for port in ports.iter().filter(|port| port.refused.swap(false, Ordering::SeqCst)) {
            let end = locked(&port.end).clone();
            end.iter().for_each(|end| end.receive_ready());
        }
    }
}

impl Port {
    /// Connects a host end in place of a card.
    pub fn attach(self: &Arc<Self>, end: Arc<dyn NetBackend>) {
        let frontend: Arc<dyn NetFrontend> = self.clone();
        end.connect(Arc::downgrade(&frontend));
        *locked(&self.end) = Some(end);
    }

    /// The card at this port.
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// Hands out what waits, as far as there is room.
    fn drain(&self) {
        let end = locked(&self.end).clone();
        let mut sent = false;
        while let Some(frame) = self.next() {
            match &end {
                Some(end) => {
                    end.send(&frame);
                    sent = true;
                }
                None if self.card.receive(&frame) => {}
                None => {
                    locked(&self.waiting).push_front(frame);
                    break;
                }
            }
        }
        if let Some(end) = end.filter(|_| sent) {
            end.sent();
        }
    }

    fn next(&self) -> Option<Vec<u8>> {
        locked(&self.waiting).pop_front()
    }
}

impl NetBackend for Port {
    fn connect(&self, card: Weak<dyn NetFrontend>) {
        self.card.connect(card);
    }

    fn send(&self, frame: &[u8]) {
        // A card keeps nothing: what finds no room is lost, as on any network.
        let _ = self.hub.pass(self, frame, false);
    }

    fn sent(&self) {}

    fn receive_ready(&self) {
        self.hub.bell.ring();
    }
}

impl NetFrontend for Port {
    fn receive(&self, frame: &[u8], _rest: Unfinished) -> bool {
        self.hub.pass(self, frame, true)
    }

    fn set_link(&self, _up: bool) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    /// Does the work when told.
    #[derive(Default)]
    struct Bells(Arc<Mutex<Vec<Weak<dyn WorkTarget>>>>);
    struct Bell(Arc<Mutex<Vec<Weak<dyn WorkTarget>>>>, Weak<dyn WorkTarget>);
    impl Doorbell for Bell {
        fn ring(&self) {
            locked(&self.0).push(self.1.clone());
        }
    }
    impl WorkService for Bells {
        fn doorbell(&self, target: Weak<dyn WorkTarget>, _tag: u32) -> Box<dyn Doorbell> {
            Box::new(Bell(self.0.clone(), target))
        }
    }
    impl Bells {
        fn run(&self) {
            let rung = std::mem::take(&mut *locked(&self.0));
            rung.iter().filter_map(Weak::upgrade).for_each(|target| target.work(0));
        }
    }

    /// A card with room for so many frames, or a host end.
    #[derive(Default)]
    struct Station {
        frames: Mutex<Vec<Vec<u8>>>,
        room: AtomicUsize,
        ready: AtomicUsize,
        peer: Mutex<Option<Weak<dyn NetFrontend>>>,
    }
    impl NetFrontend for Station {
        fn receive(&self, frame: &[u8], _rest: Unfinished) -> bool {
            let room = self.room.load(Ordering::SeqCst) > 0;
            if room {
                self.room.fetch_sub(1, Ordering::SeqCst);
                locked(&self.frames).push(frame.to_vec());
            }
            room
        }
        fn set_link(&self, _up: bool) {}
    }
    impl NetBackend for Station {
        fn connect(&self, card: Weak<dyn NetFrontend>) {
            *locked(&self.peer) = Some(card);
        }
        fn send(&self, frame: &[u8]) {
            locked(&self.frames).push(frame.to_vec());
        }
        fn sent(&self) {}
        fn receive_ready(&self) {
            self.ready.fetch_add(1, Ordering::SeqCst);
        }
    }
    impl Station {
        fn deliver(&self, frame: &[u8]) -> bool {
            let peer = locked(&self.peer).clone().and_then(|peer| peer.upgrade());
            peer.expect("a port").receive(frame, Unfinished::default())
        }
        fn got(&self) -> usize {
            locked(&self.frames).len()
        }
    }

    #[test]
    fn frames_go_to_all_others_and_wait_for_room() {
        let bells = Bells::default();
        let hub = Hub::new(&bells);
        let [one, two, up] = [hub.port(), hub.port(), hub.port()];
        let [left, right, end] = [(); 3].map(|()| Arc::new(Station::default()));
        for (port, card) in [(&one, &left), (&two, &right)] {
            let frontend: Arc<dyn NetFrontend> = card.clone();
            port.connect(Arc::downgrade(&frontend));
            card.room.store(1000, Ordering::SeqCst);
        }
        up.attach(end.clone());
        one.send(b"from the left");
        assert_eq!([left.got(), right.got(), end.got()], [0; 3], "not from within");
        bells.run();
        assert_eq!([left.got(), right.got(), end.got()], [0, 1, 1]);
        assert!(end.deliver(b"from above"));
        bells.run();
        assert_eq!([left.got(), right.got(), end.got()], [1, 2, 1]);
        right.room.store(0, Ordering::SeqCst);
        let taken = (0..1000).take_while(|_| end.deliver(b"many")).count();
        bells.run();
        assert_eq!((taken, left.got()), (MOST_WAITING, 1 + MOST_WAITING));
        assert_eq!(end.ready.load(Ordering::SeqCst), 0);
        right.room.store(10, Ordering::SeqCst);
        two.receive_ready();
        bells.run();
        assert_eq!((right.got(), end.ready.load(Ordering::SeqCst)), (12, 1), "there is room for what was kept");
        (0..10_000).for_each(|_| one.send(b"a flood"));
        bells.run();
        assert!(locked(&two.waiting).len() <= MOST_WAITING);
    }
}
