//! The host fails: no space, errors of the medium. The guest is told, nothing is damaged, and it
//! can go on when the host can.

use super::memory::Memory;
use super::{open, open_tight, small};
use crate::block::drive::{DriveOptions, ErrorAction, Verdict};
use crate::block::qcow2::{CreateOptions, Qcow2, Repair, create_in};
use crate::block::scratch::{Dice, seeds};
use crate::block::{BlockBackend, BlockError};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

const SIZE: u64 = 1 << 20;
const SECTOR: u64 = 512;

fn sound(image: &Qcow2, told: &str) {
    let report = image.check(Repair::None).unwrap();
    assert_eq!(report.corruptions, 0, "{told}: {:?}", report.messages.first());
}

/// What each sector may hold: a request that failed may have reached any part of it.
struct Model(Vec<Vec<u8>>);

impl Model {
    fn apply(&mut self, first: u64, count: u64, value: u8, done: bool) {
        for values in &mut self.0[first as usize..(first + count) as usize] {
            if done {
                values.clear();
            }
            values.push(value);
        }
    }

    fn check(&self, image: &dyn BlockBackend, told: &str) {
        let mut content = vec![0; SIZE as usize];
        image.read(0, &mut content).unwrap();
        for (sector, (bytes, allowed)) in content.chunks(SECTOR as usize).zip(&self.0).enumerate() {
            assert!(allowed.contains(&bytes[0]), "{told}: sector {sector} holds {}, not {allowed:?}", bytes[0]);
        }
    }
}

/// One random request; whether it was done.
fn request(dice: &mut Dice, image: &Qcow2, model: &mut Model) -> Result<(), BlockError> {
    let first = dice.below(SIZE / SECTOR);
    let count = (1 + dice.below(100)).min(SIZE / SECTOR - first);
    let (offset, len) = (first * SECTOR, count * SECTOR);
    let value = 1 + dice.below(255) as u8;
    match dice.below(10) {
        0..5 => {
            let result = image.write(offset, &vec![value; len as usize]);
            model.apply(first, count, value, result.is_ok());
            result
        }
        5 | 6 => {
            let result = image.write_zeroes(offset, len, dice.below(2) == 0);
            model.apply(first, count, 0, result.is_ok());
            result
        }
        7 => {
            let cluster = image.info().cluster_size;
            let start = offset / cluster * cluster;
            let result = image.write_compressed(start, &vec![value; cluster as usize]);
            model.apply(start / SECTOR, cluster / SECTOR, value, result.is_ok());
            result
        }
        8 => image.create_snapshot("s", UNIX_EPOCH).and_then(|_| image.delete_snapshot("s")),
        _ => image.flush(),
    }
}

#[test]
fn a_host_disk_that_fills_again_and_again() {
    for seed in seeds(0..30) {
        let mut dice = Dice::new(seed);
        let file = Arc::new(Memory::default());
        let lazy_refcounts = seed % 4 == 3;
        let version = if seed % 4 == 1 { 2 } else { 3 };
        let extended_l2 = version == 3 && seed % 5 == 4;
        let cluster = if extended_l2 { 16384 } else { [512, 4096, 65536][seed as usize % 3] };
        let options = CreateOptions { version, lazy_refcounts, extended_l2, ..small(SIZE, cluster) };
        create_in(file.clone(), &options).unwrap();
        let image = if seed % 2 == 0 { open(file.clone()) } else { open_tight(file.clone()) }.unwrap();
        let mut model = Model(vec![vec![0]; (SIZE / SECTOR) as usize]);
        let mut failures = 0;
        for round in 0..12 {
            let told = format!("seed {seed}, round {round}");
            file.fail_after(Some(dice.below(60)));
            for _ in 0..25 {
                if let Err(e) = request(&mut dice, &image, &mut model) {
                    assert!(e.is_no_space(), "{told}: {e}");
                    failures += 1;
                }
            }
            // Space is back.
            file.fail_after(None);
            model.check(&image, &told);
            if let Ok(index) = image.snapshots().iter().map(|s| s.id.clone()).next().ok_or(()) {
                image.delete_snapshot(&index).unwrap();
            }
            image.write(round * 5000, &[7; 512]).unwrap();
            let first = round * 5000 / SECTOR;
            model.apply(first, 2, 7, false);
            // A change of snapshots that was broken off is mended at the latest when the image is closed.
            image.close().unwrap();
            assert!(!image.info().dirty, "{told}");
            sound(&image, &told);
        }
        assert!(failures > 0);
        image.close().unwrap();
        drop(image);
        let image = open(Arc::new(Memory::with(file.bytes()))).unwrap();
        model.check(&image, &format!("seed {seed}: opened again"));
        sound(&image, "opened again");
    }
}

#[test]
fn a_medium_that_cannot_flush() {
    let file = Arc::new(Memory::default());
    create_in(file.clone(), &small(SIZE, 4096)).unwrap();
    let image = open(file.clone()).unwrap();
    image.write(0, &[1; 10_000]).unwrap();
    file.fail_flushes(true);
    let error = image.flush().unwrap_err();
    assert_eq!(error.os_error(), Some(libc::EIO));
    let stop = DriveOptions { write_errors: ErrorAction::Stop, ..DriveOptions::default() };
    assert_eq!(stop.write_errors.verdict(&error), Verdict::Stop);
    image.write(20_000, &[2; 10_000]).unwrap();
    image.discard(0, 4096).unwrap();
    assert!(image.flush().is_err());
    file.fail_flushes(false);
    image.flush().unwrap();
    let image = open(Arc::new(Memory::with(file.bytes()))).unwrap();
    let mut buf = [0; 2];
    image.read(29_999, &mut buf).unwrap();
    assert_eq!(buf, [2, 0]);
    let report = image.check(Repair::None).unwrap();
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{:?}", report.messages);
}
