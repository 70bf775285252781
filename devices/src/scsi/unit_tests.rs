//! Commands to disks, and what all units have in common.

use super::*;
use crate::fakes::{FakeDisk, FakeMemory, Random};
use crate::scsi::Carrier;
use crate::scsi::identity::MAX_UNMAP;

fn identity(cd: bool) -> Identity {
    Identity {
        cd,
        carrier: Carrier::Scsi,
        vendor: "BROLGA".into(),
        product: "HARDDISK".into(),
        revision: "1.0".into(),
        serial: "S-1".into(),
        id: "d0".into(),
        wwn: Some(0x5000_1234_5678_9abc),
    }
}

/// A disk of 100 sectors that has said that power came.
fn disk() -> Unit {
    let disk = FakeDisk::new(100, FakeMemory::new(16));
    let mut unit = Unit::new(identity(false), Some(disk));
    assert_eq!(unit.command(&[0; 6]), Answer::Check(Sense::POWERED_ON));
    assert_eq!(unit.command(&[0; 6]), Answer::Done);
    unit
}

fn bytes(unit: &mut Unit, cdb: &[u8]) -> Vec<u8> {
    match unit.command(cdb) {
        Answer::Data(bytes) => bytes,
        other => panic!("{other:?}"),
    }
}

#[test]
fn inquiry_and_its_pages() {
    let mut unit = disk();
    let standard = bytes(&mut unit, &[0x12, 0, 0, 0, 96, 0]);
    assert_eq!((standard.len(), standard[0], standard[2]), (36, 0, 5));
    assert_eq!(&standard[8..36], b"BROLGA  HARDDISK        1.0 ");
    let page = |unit: &mut Unit, page| bytes(unit, &[0x12, 1, page, 0, 255, 0]);
    assert_eq!(page(&mut unit, 0)[3..], [6, 0, 0x80, 0x83, 0xb0, 0xb1, 0xb2]);
    assert_eq!(&page(&mut unit, 0x80)[4..], b"S-1");
    let names = page(&mut unit, 0x83);
    assert_eq!(&names[4..10], [2, 0, 0, 2, b'd', b'0']);
    assert_eq!(names[10..], [1, 3, 0, 8, 0x50, 0, 0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc]);
    let limits = page(&mut unit, 0xb0);
    assert_eq!((limits.len(), &limits[20..24]), (64, &MAX_UNMAP.to_be_bytes()[..]));
    assert_eq!(page(&mut unit, 0xb1)[4..6], [0, 1]);
    assert_eq!(page(&mut unit, 0xb2)[5], 0xe0);
    assert_eq!(unit.command(&[0x12, 1, 0xb9, 0, 255, 0]), Answer::Check(Sense::BAD_FIELD));
    let sense = bytes(&mut unit, &[3, 0, 0, 0, 18, 0]);
    assert_eq!((sense[2], sense[12]), (5, 0x24));
    let cd = Unit::new(identity(true), None);
    assert_eq!(cd.identity().inquiry(crate::scsi::Cdb(&[0x12, 1, 0, 0, 9])).unwrap(), [5, 0, 0, 3, 0, 0x80, 0x83]);
}

#[test]
fn reads_and_writes_name_blocks_in_four_ways() {
    let mut unit = disk();
    let read = |first, count| Answer::Read { first, count };
    assert_eq!(unit.command(&[0x08, 0, 0, 5, 7, 0]), read(5, 7));
    assert_eq!(unit.command(&[0x08, 0, 0, 0, 0, 0]), Answer::Check(Sense::BEYOND_END), "256 blocks");
    assert_eq!(unit.command(&[0x28, 0, 0, 0, 0, 99, 0, 0, 1, 0]), read(99, 1));
    assert_eq!(unit.command(&[0x28, 0, 0, 0, 0, 99, 0, 0, 2, 0]), Answer::Check(Sense::BEYOND_END));
    assert_eq!(unit.command(&[0xa8, 0, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0]), read(1, 3));
    assert_eq!(unit.command(&[0x88, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 4, 0, 0]), read(9, 4));
    let mut huge = [0xff; 16];
    huge[0] = 0x88;
    huge[1] = 0;
    (huge[10], huge[11], huge[12]) = (0, 0, 0);
    assert_eq!(unit.command(&huge), Answer::Check(Sense::BEYOND_END));
    assert_eq!(unit.command(&[0x28, 0, 0, 0, 0, 1, 0, 0, 0, 0]), Answer::Done);
    let write = |durable, verify| Answer::Write { first: 1, count: 1, durable, verify };
    assert_eq!(unit.command(&[0x2a, 0, 0, 0, 0, 1, 0, 0, 1, 0]), write(false, false));
    assert_eq!(unit.command(&[0x2a, 8, 0, 0, 0, 1, 0, 0, 1, 0]), write(true, false));
    assert_eq!(unit.command(&[0x2e, 0, 0, 0, 0, 1, 0, 0, 1, 0]), write(false, true));
    assert_eq!(unit.command(&[0x2f, 2, 0, 0, 0, 1, 0, 0, 1, 0]), Answer::Compare { first: 1, count: 1 });
    assert_eq!(unit.command(&[0x2f, 0, 0, 0, 0, 1, 0, 0, 1, 0]), Answer::Verify { first: 1, count: 1 });
    assert_eq!(unit.command(&[0x35; 10]), Answer::Check(Sense::BEYOND_END));
    assert_eq!(unit.command(&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Answer::Flush);
    assert_eq!(bytes(&mut unit, &[0x25; 10]), [0, 0, 0, 99, 0, 0, 2, 0]);
    let long = bytes(&mut unit, &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0]);
    assert_eq!((long.len(), long[7], long[14]), (32, 99, 0x80));
}

#[test]
fn the_write_cache_is_turned_off_by_a_mode_page() {
    let mut unit = disk();
    let all = bytes(&mut unit, &[0x5a, 0, 0x3f, 0, 0, 0, 0, 0, 255, 0]);
    assert_eq!((all[0], usize::from(all[1]) + 2, all[3], all[7]), (0, all.len(), 0x10, 8));
    let caching = bytes(&mut unit, &[0x1a, 8, 8, 0, 255, 0]);
    assert_eq!((caching[4], caching[5], caching[6]), (8, 18, 4));
    assert_eq!(bytes(&mut unit, &[0x1a, 8, 0x48, 0, 255, 0])[6], 4, "it may change");
    let select = [0x15, 0x10, 0, 0, 24, 0];
    assert_eq!(unit.command(&select), Answer::Parameters(24));
    let mut list = caching.clone();
    list[6] = 0;
    assert_eq!(unit.parameters(&select, &list), Answer::Flush);
    let written = unit.command(&[0x2a, 0, 0, 0, 0, 1, 0, 0, 1, 0]);
    assert_eq!(written, Answer::Write { first: 1, count: 1, durable: true, verify: false });
    list[7] = 1;
    assert_eq!(unit.parameters(&select, &list), Answer::Check(Sense::BAD_PARAMETER));
    assert_eq!(unit.parameters(&select, &list[..20]), Answer::Check(Sense::SHORT_LIST));
    assert_eq!(unit.command(&[0x1a, 8, 0xc8, 0, 255, 0]), Answer::Check(Sense::NOT_SAVED));
}

#[test]
fn space_is_given_back() {
    let mut unit = disk();
    let unmap = [0x42, 0, 0, 0, 0, 0, 0, 0, 40, 0];
    assert_eq!(unit.command(&unmap), Answer::Parameters(40));
    let mut list = vec![0, 38, 0, 32, 0, 0, 0, 0];
    for (first, count) in [(3u64, 5u32), (50, 50)] {
        list.extend(first.to_be_bytes());
        list.extend(count.to_be_bytes());
        list.extend([0; 4]);
    }
    assert_eq!(unit.parameters(&unmap, &list), Answer::Discard(vec![(3, 5), (50, 50)]));
    list[35] = 51;
    assert_eq!(unit.parameters(&unmap, &list), Answer::Check(Sense::BEYOND_END));
    let same = [0x93, 8, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 9, 0, 0];
    assert_eq!(unit.command(&same), Answer::Parameters(512));
    assert_eq!(unit.parameters(&same, &[0; 512]), Answer::Zero { first: 2, count: 9, unmap: true });
    let filled = unit.parameters(&same, &[7; 512]);
    assert_eq!(filled, Answer::Fill { first: 2, count: 9, block: vec![7; 512] });
    assert_eq!(unit.parameters(&same, &[7; 511]), Answer::Check(Sense::SHORT_LIST));
    let without = [0x93, 9, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 9, 0, 0];
    assert_eq!(unit.command(&without), Answer::Zero { first: 2, count: 9, unmap: true });
}

#[test]
fn any_command_gets_an_answer() {
    let mut random = Random::new(4711);
    for cd in [false, true] {
        let disk: Arc<dyn Disk> = FakeDisk::new(4000, FakeMemory::new(16));
        let blocks = if cd { 1000 } else { 4000 };
        let mut unit = Unit::new(identity(cd), Some(disk.clone()));
        for round in 0..100_000 {
            let mut cdb = [0u8; 16];
            cdb.chunks_mut(8).for_each(|part| part.copy_from_slice(&random.next().to_be_bytes()));
            // Small numbers make sense more often.
            cdb.iter_mut().skip(1).for_each(|b| *b = if random.below(3) == 0 { *b } else { 0 });
            let mut answer = unit.command(&cdb);
            if let Answer::Parameters(len) = answer {
                assert!((1..=0xffff).contains(&len));
                let list: Vec<u8> = (0..random.below(len + 1)).map(|_| random.next() as u8 & 0x1f).collect();
                answer = unit.parameters(&cdb, &list);
            }
            match answer {
                Answer::Read { first, count }
                | Answer::Write { first, count, .. }
                | Answer::Verify { first, count }
                | Answer::Compare { first, count }
                | Answer::Zero { first, count, .. }
                | Answer::Fill { first, count, .. } => assert!(count > 0 && first + count <= blocks),
                Answer::Discard(list) => assert!(list.iter().all(|(first, count)| first + count <= blocks)),
                Answer::Parameters(_) => panic!("a list leads to no other list"),
                Answer::Done | Answer::Data(_) | Answer::Flush | Answer::Check(_) => {}
            }
            if cd && round % 1000 == 0 {
                unit.change_medium((round % 3000 != 0).then(|| disk.clone()));
            }
        }
        let state = unit.save();
        assert!(unit.fits(&state) && !Unit::new(identity(!cd), None).fits(&state));
    }
}
