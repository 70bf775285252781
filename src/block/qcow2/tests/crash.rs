//! Power cuts: what was flushed is there, and nothing is damaged, wherever the power goes.

use super::memory::{Memory, Part, after_cut};
use super::{open, open_tight, small};
use crate::block::qcow2::{BitmapChange, CreateOptions, Qcow2, Repair, create_in};
use crate::block::scratch::{Dice, Scratch, have, run, seeds};
use crate::block::{BlockBackend, OpenOptions, Preallocation, Storage};
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

const SECTOR: u64 = 512;
const SIZE: u64 = 1 << 20;

/// What each sector may hold after a cut: its value at the last flush, and every value since.
struct Expected {
    /// Step number, and the allowed values from there on.
    history: Vec<(usize, Vec<HashSet<u8>>)>,
    now: Vec<u8>,
    allowed: Vec<HashSet<u8>>,
}

impl Expected {
    fn new() -> Expected {
        let sectors = (SIZE / SECTOR) as usize;
        Expected { history: Vec::new(), now: vec![0; sectors], allowed: vec![HashSet::from([0]); sectors] }
    }

    fn set(&mut self, first: u64, count: u64, value: u8) {
        for sector in first as usize..(first + count) as usize {
            self.now[sector] = value;
            self.allowed[sector].insert(value);
        }
    }

    fn flushed(&mut self) {
        self.allowed = self.now.iter().map(|&v| HashSet::from([v])).collect();
    }

    /// From this step of the file on, these values are allowed.
    fn mark(&mut self, step: usize) {
        self.history.push((step, self.allowed.clone()));
    }

    /// What a cut before `step` allows.
    fn at(&self, step: usize) -> &[HashSet<u8>] {
        // The entry in force while a request runs is the one that its values were added to.
        let index = self.history.partition_point(|(s, _)| *s < step).min(self.history.len() - 1);
        &self.history[index].1
    }
}

/// Runs a program on an image in memory and notes what may be found after each step of the file.
/// An image with a data file has no packed clusters and no snapshots.
fn program(dice: &mut Dice, file: &Arc<Memory>, image: &Qcow2, requests: u32) -> Expected {
    let kinds = if image.info().data_file.is_some() { 14 } else { 18 };
    let mut expected = Expected::new();
    expected.mark(file.steps());
    let mut snapshot: Option<Vec<u8>> = None;
    for _ in 0..requests {
        let first = dice.below(SIZE / SECTOR);
        let count = (1 + dice.below(64)).min(SIZE / SECTOR - first);
        let (offset, len) = (first * SECTOR, count * SECTOR);
        match if dice.below(10) == 0 { 19 } else { dice.below(kinds) } {
            0..10 => {
                let value = 1 + dice.below(255) as u8;
                expected.set(first, count, value);
                image.write(offset, &vec![value; len as usize]).unwrap();
            }
            10..12 => {
                expected.set(first, count, 0);
                image.write_zeroes(offset, len, dice.below(2) == 0).unwrap();
            }
            12..14 => {
                image.discard(offset, len).unwrap();
                for sector in first..first + count {
                    let mut buf = [0; SECTOR as usize];
                    image.read(sector * SECTOR, &mut buf).unwrap();
                    expected.set(sector, 1, buf[0]);
                }
            }
            14 => {
                let cluster = image.info().cluster_size;
                let start = offset / cluster * cluster;
                let value = 1 + dice.below(255) as u8;
                expected.set(start / SECTOR, cluster / SECTOR, value);
                image.write_compressed(start, &vec![value; cluster as usize]).unwrap();
            }
            15 if snapshot.is_none() => {
                image.create_snapshot("kept", UNIX_EPOCH).unwrap();
                snapshot = Some(expected.now.clone());
            }
            16 => {
                if let Some(kept) = &snapshot {
                    let kept = kept.clone();
                    for (sector, &value) in kept.iter().enumerate() {
                        expected.set(sector as u64, 1, value);
                    }
                    image.apply_snapshot("kept").unwrap();
                }
            }
            17 => {
                if snapshot.take().is_some() {
                    image.delete_snapshot("kept").unwrap();
                }
            }
            _ => {
                image.flush().unwrap();
                expected.mark(file.steps());
                expected.flushed();
            }
        }
        expected.mark(file.steps());
    }
    expected
}

fn content_as_allowed(image: &Qcow2, allowed: &[HashSet<u8>], told: &str) {
    let mut content = vec![0; SIZE as usize];
    image.read(0, &mut content).unwrap();
    for (sector, bytes) in content.chunks(SECTOR as usize).enumerate() {
        // A torn write leaves whole sectors.
        assert!(bytes.iter().all(|b| *b == bytes[0]), "{told}: sector {sector} is mixed");
        assert!(
            allowed[sector].contains(&bytes[0]),
            "{told}: sector {sector} holds {}, not {:?}",
            bytes[0],
            allowed[sector]
        );
    }
}

fn verify(bytes: Vec<u8>, allowed: &[HashSet<u8>], told: &str) {
    let file = Arc::new(Memory::with(bytes));
    let image = open(file.clone()).unwrap_or_else(|e| panic!("{told}: {e}"));
    sound(&image, told);
    check_as_found(&file.bytes(), told);
    assert!(!image.info().dirty, "{told}: opened for writing, and not repaired");
    content_as_allowed(&image, allowed, told);
}

/// No errors; leaks are allowed.
fn sound(image: &Qcow2, told: &str) {
    let report = image.check(Repair::None).unwrap();
    assert_eq!(report.corruptions, 0, "{told}: {:?}", report.messages.first_chunk::<5>());
}

/// What is found without repair: leaks, but no error, unless the dirty bit says that counts are behind.
fn check_as_found(bytes: &[u8], told: &str) {
    let options = OpenOptions { read_only: true, ..OpenOptions::default() };
    let image = Qcow2::open(Arc::new(Memory::with(bytes.to_vec())), Path::new(""), &options, 0).unwrap();
    if !image.info().dirty {
        sound(&image, told);
    }
}

#[test]
fn power_cuts_lose_nothing_that_was_flushed() {
    let qemu = have("qemu-img");
    let dir = Scratch::new();
    for seed in seeds(0..36) {
        let mut dice = Dice::new(seed);
        let version = if seed % 4 == 0 { 2 } else { 3 };
        let mut options = CreateOptions {
            refcount_bits: [16, 8, 64, 32][seed as usize % 4],
            version,
            lazy_refcounts: version == 3 && seed % 3 == 1,
            extended_l2: version == 3 && seed % 4 == 3,
            ..small(SIZE, [512, 4096, 1024, 65536][(seed as usize / 2) % 4])
        };
        if options.extended_l2 {
            options.cluster_size = options.cluster_size.max(16384);
        }
        let file = Arc::new(Memory::default());
        create_in(file.clone(), &options).unwrap();
        let created = file.steps();
        let image = if seed % 5 < 3 { open(file.clone()) } else { open_tight(file.clone()) }.unwrap();
        let expected = program(&mut dice, &file, &image, 60);
        let steps = file.recorded();
        for cut_number in 0..60 {
            let cut = created + dice.below((steps.len() - created) as u64 + 1) as usize;
            let told = format!("seed {seed}, {cut_number}: cut before step {cut} of {}", steps.len());
            let bytes = after_cut(&steps[..cut], &mut dice);
            check_as_found(&bytes, &told);
            if qemu && cut_number == 0 {
                let path = dir.path("cut.qcow2");
                std::fs::write(&path, &bytes).unwrap();
                let text = path.to_str().unwrap();
                // QEMU too repairs a dirty image; leaks are allowed, so they are repaired first.
                run("qemu-img", &["check", "-q", "-r", "all", text]);
                assert!(!run("qemu-img", &["check", text]).contains("ERROR"), "{told}");
            }
            verify(bytes, expected.at(cut), &told);
        }
    }
}

#[test]
fn power_cuts_while_the_size_changes() {
    const KEPT: u64 = 64 << 10;
    for seed in seeds(0..16) {
        let mut dice = Dice::new(seed);
        let file = Arc::new(Memory::default());
        create_in(file.clone(), &small(256 << 10, [512, 1024, 4096][seed as usize % 3])).unwrap();
        let image = open(file.clone()).unwrap();
        image.write(0, &[0x77; KEPT as usize]).unwrap();
        image.flush().unwrap();
        let start = file.steps();
        for _ in 0..12 {
            image.resize(KEPT + dice.below(24 << 20), Preallocation::Off).unwrap();
            for _ in 0..4 {
                let len = 1 + dice.below(30_000);
                let room = image.len() - KEPT;
                if room > len {
                    let offset = KEPT + dice.below(room - len);
                    image.write(offset, &vec![1; len as usize]).unwrap();
                }
            }
            if dice.below(4) == 0 {
                image.flush().unwrap();
            }
        }
        let steps = file.recorded();
        for _ in 0..40 {
            let cut = start + dice.below((steps.len() - start) as u64 + 1) as usize;
            let told = format!("seed {seed}: cut before step {cut} of {}", steps.len());
            let bytes = after_cut(&steps[..cut], &mut dice);
            check_as_found(&bytes, &told);
            let image = open(Arc::new(Memory::with(bytes))).unwrap_or_else(|e| panic!("{told}: {e}"));
            let mut kept = vec![0; KEPT as usize];
            image.read(0, &mut kept).unwrap();
            assert!(kept.iter().all(|&b| b == 0x77), "{told}: what was flushed is gone");
            // And it can be used on.
            image.write(KEPT - 100, &[3; 100]).unwrap();
            image.resize(1 << 20, Preallocation::Off).unwrap();
            image.flush().unwrap();
            sound(&image, &told);
        }
    }
}

#[test]
fn power_cuts_with_a_data_file() {
    const ROOM: u64 = 4 << 20;
    let dir = Scratch::new();
    for seed in seeds(0..12) {
        let mut dice = Dice::new(seed);
        let extended_l2 = seed % 2 == 1;
        let data_file = dir.path("data");
        std::fs::write(&data_file, []).unwrap();
        let options = CreateOptions {
            data_file: Some(data_file.to_str().unwrap().to_string()),
            data_file_raw: seed % 3 == 0,
            extended_l2,
            ..small(SIZE, if extended_l2 { 16384 } else { [512, 4096, 65536][seed as usize % 3] })
        };
        let made = Arc::new(Memory::default());
        create_in(made.clone(), &options).unwrap();
        let record = Arc::new(Memory::default());
        let parts = |record: &Arc<Memory>, len| {
            let file = Part::new(record, 0..ROOM, len);
            (Arc::new(file), Arc::new(Part::new(record, ROOM..2 * ROOM, SIZE)))
        };
        let (file, data) = parts(&record, made.bytes().len() as u64);
        file.write(0, &made.bytes()).unwrap();
        file.flush().unwrap();
        let created = record.steps();
        let image = Qcow2::open_with_data(file, data).unwrap();
        let expected = program(&mut dice, &record, &image, 60);
        let steps = record.recorded();
        for _ in 0..40 {
            let cut = created + dice.below((steps.len() - created) as u64 + 1) as usize;
            let told = format!("seed {seed}: cut before step {cut} of {}", steps.len());
            let (file, data) = parts(&Arc::new(Memory::with(after_cut(&steps[..cut], &mut dice))), ROOM);
            let image = Qcow2::open_with_data(file, data).unwrap_or_else(|e| panic!("{told}: {e}"));
            sound(&image, &told);
            content_as_allowed(&image, expected.at(cut), &told);
        }
    }
}

/// Whatever is cut: a bitmap that does not say that it is in use marks all that is not as it was when it was made.
#[test]
fn power_cuts_while_bitmaps_follow_writes() {
    for seed in seeds(0..8) {
        let mut dice = Dice::new(seed);
        let file = Arc::new(Memory::default());
        create_in(file.clone(), &small(SIZE, [512, 4096][seed as usize % 2])).unwrap();
        let image = open(file.clone()).unwrap();
        image.change_bitmap("b", &BitmapChange::Add(Some(512))).unwrap();
        drop(image);
        let created = file.steps();
        for _ in 0..12 {
            let image = open(file.clone()).unwrap();
            for _ in 0..dice.below(5) {
                let (at, len) = (dice.below(SIZE - 20_000), 1 + dice.below(20_000));
                image.write(at, &vec![dice.next() as u8; len as usize]).unwrap();
                if dice.below(3) == 0 {
                    image.flush().unwrap();
                }
            }
            if dice.below(3) == 0 {
                image.set_refcount_bits(1 << (3 + dice.below(4))).unwrap();
            }
        }
        let steps = file.recorded();
        let (mut in_use, mut kept) = (0, 0);
        for cut_number in 0..80 {
            let cut = created + dice.below((steps.len() - created) as u64 + 1) as usize;
            let told = format!("seed {seed}, {cut_number}: cut before step {cut} of {}", steps.len());
            let bytes = after_cut(&steps[..cut], &mut dice);
            check_as_found(&bytes, &told);
            let options = OpenOptions { read_only: true, ..OpenOptions::default() };
            let image = Qcow2::open(Arc::new(Memory::with(bytes)), Path::new(""), &options, 0).unwrap();
            let bitmaps = image.info().bitmaps;
            assert_eq!(bitmaps.len(), 1, "{told}");
            if bitmaps[0].in_use {
                in_use += 1;
                continue;
            }
            kept += 1;
            let (bits, mut disk) = (image.bitmap("b").unwrap().bits, vec![0; SIZE as usize]);
            image.read(0, &mut disk).unwrap();
            for (sector, bytes) in disk.chunks(512).enumerate().filter(|(_, bytes)| bytes.iter().any(|&b| b != 0)) {
                assert!(bits[sector / 8] >> (sector % 8) & 1 != 0, "{told}: sector {sector} holds {}", bytes[0]);
            }
        }
        assert!(in_use > 0 && kept > 0, "seed {seed}: {in_use} and {kept}");
    }
}
