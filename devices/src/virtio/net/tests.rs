//! The device as a driver sees it, behind its queues.

use super::super::queue::Queues;
use super::*;
use crate::fakes::{FakeMemory, FakeNet, FakeWork, Random};
use crate::virtio::blk::tests::Driver;

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const RECEIVE_QUEUE: u64 = 0x1_0000;
const TRANSMIT_QUEUE: u64 = 0x2_0000;
const CONTROL_QUEUE: u64 = 0x3_0000;
const BUFFERS: u64 = 0x4_0000;
const MODERN: u64 = super::super::feature::VERSION_1;

struct Bench {
    device: Arc<dyn VirtioDevice>,
    queues: Arc<Queues>,
    memory: Arc<FakeMemory>,
    host: Arc<FakeNet>,
    work: FakeWork,
    receive: Driver,
    transmit: Driver,
    control: Driver,
    card: Arc<dyn NetFrontend>,
}

impl Bench {
    fn new(features: u64) -> Self {
        let (memory, host, work) = (FakeMemory::new(1 << 20), Arc::new(FakeNet::default()), FakeWork::default());
        let (Parts { device, queues }, card) = VirtioNet::parts(MAC, 1, 0, memory.clone(), Some(host.clone()), &work);
        let driver = |base| Driver::new(memory.clone(), base, 64);
        for (index, base) in [RECEIVE_QUEUE, TRANSMIT_QUEUE, CONTROL_QUEUE].into_iter().enumerate() {
            queues.with(index, |queue| {
                queue.set_up(|state| {
                    (state.size, state.descriptors, state.available, state.used) =
                        (64, base, base + 0x1000, base + 0x2000);
                });
            });
            queues.enable(index);
        }
        queues.set_features(features);
        device.start(features);
        let (receive, transmit, control) = (driver(RECEIVE_QUEUE), driver(TRANSMIT_QUEUE), driver(CONTROL_QUEUE));
        Self { device, queues, memory, host, work, receive, transmit, control, card }
    }

    fn send(&mut self, header: &[u8], packet: &[u8]) -> Vec<Vec<u8>> {
        self.memory.write(BUFFERS, header);
        self.memory.write(BUFFERS + 0x100, packet);
        let head =
            self.transmit.add(&[(BUFFERS, header.len() as u32, false), (BUFFERS + 0x100, packet.len() as u32, false)]);
        self.device.notify(1);
        self.work.run();
        assert_eq!(self.transmit.used(), [(head.into(), 0)]);
        std::mem::take(&mut *locked(&self.host.frames))
    }

    /// A command of the control queue; whether it was done.
    fn command(&mut self, bytes: &[u8]) -> bool {
        self.memory.write(BUFFERS, bytes);
        self.memory.write(BUFFERS + 0x1000, &[0xaa]);
        self.control.add(&[(BUFFERS, bytes.len() as u32, false), (BUFFERS + 0x1000, 1, true)]);
        self.device.notify(2);
        self.work.run();
        assert_eq!(self.control.used().len(), 1);
        self.read(BUFFERS + 0x1000, 1) == [0]
    }

    fn read(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(gpa, &mut bytes);
        bytes
    }
}

fn frame(to: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame = [&to[..], &[2; 6], &[0x88, 0xb5]].concat();
    frame.extend((frame.len()..len).map(|i| i as u8));
    frame
}

#[test]
fn frames_go_out_with_their_sums() {
    let mut b = Bench::new(MODERN);
    let plain = frame([0xff; 6], 100);
    assert_eq!(b.send(&[0; 12], &plain), std::slice::from_ref(&plain));
    let mut header = [0; 12];
    (header[0], header[6], header[8]) = (1, 34, 6);
    let mut open = plain.clone();
    open[40..42].fill(0);
    let sent = b.send(&header, &open);
    assert_eq!(offload::internet_checksum(&sent[0][34..]), 0);
    // What the field held counts: drivers leave the sum over the pseudo header there.
    open[40..42].copy_from_slice(&[0x12, 0x34]);
    let again = b.send(&header, &open);
    let (before, after) = (offload::be16(&sent[0], 40), offload::be16(&again[0], 40));
    assert_ne!(before, after);
    assert_eq!(b.send(&[0; 12], &plain[..10]), Vec::<Vec<u8>>::new(), "no frame");
    let mut b = Bench::new(0);
    assert_eq!(b.send(&[0; 10], &plain), [plain], "a legacy header is shorter");
}

#[test]
fn large_packets_are_cut() {
    let mut b = Bench::new(MODERN);
    let mut p = vec![0x11; 12];
    p.extend([8, 0]);
    p.extend([0x45, 0, 0, 0, 0, 9, 0x40, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]);
    p.extend([0, 80, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x18, 0, 0, 0, 0, 0, 0]);
    p.extend((0..5000).map(|i| i as u8));
    // The sum over the pseudo header with the whole length in it.
    let mut pseudo = vec![10, 0, 2, 15, 10, 0, 2, 2, 0, 6];
    pseudo.extend(5020u16.to_be_bytes());
    let sum = !offload::internet_checksum(&pseudo);
    p[50..52].copy_from_slice(&sum.to_be_bytes());
    let mut header = [0; 12];
    (header[0], header[1], header[2], header[6], header[8]) = (1, 1, 54, 34, 16);
    header[4..6].copy_from_slice(&1460u16.to_le_bytes());
    let frames = b.send(&header, &p);
    assert_eq!(frames.iter().map(Vec::len).collect::<Vec<_>>(), [1514, 1514, 1514, 674]);
    let mut data = Vec::new();
    for frame in &frames {
        let check = offload::check_sums(frame);
        assert_eq!((check.ip, check.transport), (Some(true), Some(true)));
        data.extend_from_slice(&frame[54..]);
    }
    assert!(data == p[54..]);
}

#[test]
fn received_frames_fill_one_buffer_or_several() {
    let mut b = Bench::new(MODERN);
    assert!(!b.host.deliver(&frame(MAC, 100)), "no buffers");
    let head = b.receive.add(&[(BUFFERS, 12, true), (BUFFERS + 0x100, 1514, true)]);
    b.device.notify(0);
    b.work.run();
    assert_eq!(*locked(&b.host.ready), 1);
    assert!(b.host.deliver(&frame(MAC, 100)));
    assert_eq!(b.receive.used(), [(head.into(), 112)]);
    assert_eq!(b.read(BUFFERS, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(b.read(BUFFERS + 0x100, 100), frame(MAC, 100));

    let mut b = Bench::new(MODERN | feature::MRG_RXBUF);
    let heads: Vec<_> = (0..3).map(|i| b.receive.add(&[(BUFFERS + i * 0x1000, 600, true)])).collect();
    assert!(!b.host.deliver(&frame(MAC, 2000)), "1800 bytes are not enough");
    assert!(b.receive.used().is_empty());
    b.receive.add(&[(BUFFERS + 0x3000, 600, true)]);
    b.device.notify(0);
    b.work.run();
    assert_eq!(*locked(&b.host.ready), 1);
    assert!(b.host.deliver(&frame(MAC, 2000)));
    let used = b.receive.used();
    assert_eq!(used.iter().map(|(_, len)| *len).collect::<Vec<_>>(), [600, 600, 600, 212]);
    assert_eq!(used[0].0, u32::from(heads[0]));
    assert_eq!(b.read(BUFFERS + 10, 2), [4, 0], "number of buffers");
}

#[test]
fn filters() {
    let group = [1, 0, 0x5e, 0, 0, 1];
    let features = MODERN | feature::CTRL_VQ | feature::CTRL_RX | feature::CTRL_MAC_ADDR | feature::CTRL_VLAN;
    let mut b = Bench::new(features);
    let took = |b: &mut Bench, frame: &[u8]| {
        b.receive.add(&[(BUFFERS + 0x8000, 2000, true)]);
        assert!(b.host.deliver(frame));
        !b.receive.used().is_empty()
    };
    let other = [2, 0, 0, 0, 0, 7];
    let changes = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = changes.clone();
    b.card.on_reception(Box::new(move |()| {
        counted.fetch_add(1, Ordering::SeqCst);
    }));
    assert!(b.card.reception().unwrap().promiscuous);
    assert!(took(&mut b, &frame(other, 60)), "everything at first");
    assert!(b.command(&[0, 0, 0]), "not promiscuous");
    assert!(!took(&mut b, &frame(other, 60)) && !took(&mut b, &frame(group, 60)));
    assert!(took(&mut b, &frame(MAC, 60)) && took(&mut b, &frame([0xff; 6], 60)));
    let table = [&[1, 0, 1, 0, 0, 0][..], &other, &[1, 0, 0, 0], &group].concat();
    assert!(b.command(&table));
    assert!(took(&mut b, &frame(other, 60)) && took(&mut b, &frame(group, 60)));
    assert!(b.command(&[1, 1, 2, 0, 0, 0, 0, 9]));
    assert_eq!(b.device.config()[..6], [2, 0, 0, 0, 0, 9]);
    let mut tagged = frame([2, 0, 0, 0, 0, 9], 60);
    tagged[12..16].copy_from_slice(&[0x81, 0, 0, 5]);
    assert!(!took(&mut b, &tagged));
    assert!(b.command(&[2, 0, 5, 0]));
    assert!(took(&mut b, &tagged));
    let reception = b.card.reception().unwrap();
    assert_eq!((reception.mac, reception.promiscuous, reception.broadcasts), ([2, 0, 0, 0, 0, 9], false, true));
    assert_eq!(
        (reception.station_table, reception.group_table, reception.vlan_table),
        (vec![other], vec![group], vec![5])
    );
    assert_eq!(changes.load(Ordering::SeqCst), 4);
    for refused in [&[1, 0, 0xff, 0xff, 0xff, 0xff][..], &[4, 0, 2, 0], &[9, 9], &[0, 2, 1], &[]] {
        assert!(!b.command(refused), "{refused:?}");
    }
}

#[test]
fn state_and_reset() {
    let mut b = Bench::new(MODERN | feature::MRG_RXBUF);
    b.receive.add(&[(BUFFERS, 100, true)]);
    assert!(!b.host.deliver(&frame(MAC, 500)));
    let saved = b.device.save();
    let other = Bench::new(0);
    other.device.restore(&saved, true).unwrap();
    other.device.restore(&saved, false).unwrap();
    assert_eq!(other.device.save(), saved);
    other.device.restore(&serde_json::json!({ "nonsense": 1 }), false).unwrap_err();
    b.device.reset();
    b.work.run();
    assert_eq!(*locked(&b.host.ready), 1);
    assert!(b.host.deliver(&frame(MAC, 500)), "lost, not kept");
    assert_eq!(b.queues.count(), 3);
}

#[test]
fn drivers_take_large_frames_with_open_sums_as_long_as_they_want() {
    let offloads = feature::GUEST_OFFLOADS | feature::CTRL_GUEST_OFFLOADS | feature::CTRL_VQ;
    let mut b = Bench::new(MODERN | feature::MRG_RXBUF | offloads);
    let card = b.host.card();
    let datagrams = Takes { datagrams_v4: true, datagrams_v6: true, ..Takes::default() };
    assert_eq!(card.takes(), Takes { sums: true, large_v4: true, large_v6: true, ..datagrams });
    let mut large = frame(MAC, 4000);
    large[12..14].copy_from_slice(&[8, 0]);
    large[34 + 12] = 0x80;
    b.receive.add(&[(BUFFERS, 5000, true)]);
    assert!(card.receive(&large, Unfinished { sum: Some(34), segment: 1448, udp: false }));
    assert_eq!(b.receive.used().iter().map(|(_, len)| *len).collect::<Vec<_>>(), [4012]);
    assert_eq!(b.read(BUFFERS, 12), [1, 1, 66, 0, 0xa8, 5, 34, 0, 16, 0, 1, 0], "TCP over IPv4, 66 bytes of headers");
    large[12..14].copy_from_slice(&[0x86, 0xdd]);
    b.receive.add(&[(BUFFERS, 5000, true)]);
    assert!(card.receive(&large, Unfinished { sum: Some(54), segment: 1440, udp: false }));
    assert_eq!(b.read(BUFFERS, 2), [1, 4]);
    b.receive.add(&[(BUFFERS, 5000, true)]);
    assert!(card.receive(&large, Unfinished { sum: Some(54), segment: 0, udp: false }));
    assert_eq!(b.read(BUFFERS, 10), [1, 0, 0, 0, 0, 0, 54, 0, 16, 0], "one segment");
    assert!(b.command(&[5, 0, 2, 0, 0, 0, 0, 0, 0, 0]));
    assert_eq!(card.takes(), Takes { sums: true, ..Takes::default() });
    assert!(b.command(&[5, 0, 2, 0, 0, 0, 0, 0, 0x40, 0]));
    assert_eq!(card.takes(), Takes { sums: true, datagrams_v4: true, ..Takes::default() });
    b.receive.add(&[(BUFFERS, 5000, true)]);
    assert!(card.receive(&large, Unfinished { sum: Some(54), segment: 1000, udp: true }));
    assert_eq!(b.read(BUFFERS, 10), [1, 5, 62, 0, 0xe8, 3, 54, 0, 6, 0], "UDP, 62 bytes of headers");
    assert!(!b.command(&[5, 0, 0xff, 0, 0, 0, 0, 0, 0, 0]) && !b.command(&[5, 0, 2]));
    assert_eq!(Bench::new(MODERN).host.card().takes(), Takes::default());
}

#[test]
fn the_cable_can_be_pulled_out_and_guests_announce_themselves() {
    let mut b = Bench::new(MODERN | feature::CTRL_VQ | feature::GUEST_ANNOUNCE);
    assert_eq!(b.device.config()[6], 1);
    b.host.card().set_link(false);
    assert_eq!(b.device.config()[6], 0);
    assert_eq!(b.send(&[0; 12], &frame([0xff; 6], 100)), Vec::<Vec<u8>>::new());
    b.receive.add(&[(BUFFERS + 0x800, 1600, true)]);
    assert!(b.host.deliver(&frame(MAC, 100)) && b.receive.used().is_empty(), "lost");
    b.host.card().set_link(true);
    assert_eq!(b.send(&[0; 12], &frame([0xff; 6], 100)).len(), 1);
    let saved = b.device.save();
    b.device.restore(&saved, false).unwrap();
    assert_eq!(b.device.config()[6], 3, "the driver is asked");
    assert!(b.command(&[3, 0]));
    assert_eq!(b.device.config()[6], 1);
}

/// Headers, packets and commands of random bytes, buffers of random sizes.
#[test]
fn hostile_drivers_harm_nobody() {
    let mut random = Random::new(77);
    for features in [0, MODERN, u64::MAX, MODERN | feature::MRG_RXBUF] {
        let off = super::super::feature::EVENT_IDX | super::super::feature::INDIRECT;
        let mut b = Bench::new(features & !off);
        for _ in 0..1500 {
            let noise: Vec<u8> = (0..200).map(|_| random.next() as u8 & random.next() as u8).collect();
            b.memory.write(BUFFERS + random.below(0x4000), &noise);
            let piece = |random: &mut Random, write| {
                let bits = random.below(17);
                (BUFFERS + random.below(0x5000), random.below(1 << bits) as u32, write)
            };
            let (one, two) = (piece(&mut random, false), piece(&mut random, false));
            match random.below(5) {
                4 => {
                    let (sum, segment) = (Some(random.next() as u16), random.next() as u16);
                    let rest = Unfinished { sum, segment, udp: random.below(2) == 0 };
                    b.host.card().receive(&frame(MAC, random.below(3000) as usize), rest);
                }
                0 => drop(b.receive.add(&[piece(&mut random, true)])),
                1 => drop(b.transmit.add(&[one, two])),
                2 => drop(b.control.add(&[one, piece(&mut random, true)])),
                _ => drop(b.host.deliver(&frame(MAC, random.below(3000) as usize))),
            }
            (0..3).for_each(|index| b.device.notify(index));
            b.work.run();
            let longest = locked(&b.host.frames).drain(..).map(|f| f.len()).max().unwrap_or(0);
            assert!(longest <= LONGEST + header::LONG, "{longest}");
        }
    }
}
