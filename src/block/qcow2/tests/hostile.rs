//! Files that lie: an error or some content, never a panic, a hang or much memory.

use super::memory::Memory;
use super::{open, small};
use crate::block::qcow2::{CreateOptions, Qcow2, Repair, create_in};
use crate::block::scratch::{Dice, seeds};
use crate::block::{BlockBackend, OpenOptions};
use std::path::Path;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

/// An image with everything in it.
fn rich(extended_l2: bool) -> Vec<u8> {
    let file = Arc::new(Memory::default());
    let cluster = if extended_l2 { 16384 } else { 4096 };
    create_in(file.clone(), &CreateOptions { extended_l2, ..small(1 << 20, cluster) }).unwrap();
    let image = open(file.clone()).unwrap();
    image.write(0, &[1; 50_000]).unwrap();
    image.write_compressed(65536, &vec![2; cluster as usize]).unwrap();
    image.create_snapshot("kept", UNIX_EPOCH).unwrap();
    image.write(20_000, &[3; 10_000]).unwrap();
    image.write_zeroes(40_000, 8192, false).unwrap();
    image.close().unwrap();
    file.bytes()
}

/// Does everything to an image that may be broken; only returning matters.
fn use_it(bytes: Vec<u8>) {
    let Ok(image) = open(Arc::new(Memory::with(bytes.clone()))) else { return };
    let size = image.len();
    let mut buf = vec![0; 100_000];
    for offset in [0, 30_000, 65536, 900_000, size.saturating_sub(100_000)] {
        let _ = image.read(offset, &mut buf);
        let _ = image.map(offset, 1000);
        let _ = image.write(offset, &buf[..9000]);
    }
    let _ = image.write_zeroes(10_000, 50_000, true);
    let _ = image.discard(0, 65536);
    let _ = image.create_snapshot("new", UNIX_EPOCH);
    let _ = image.apply_snapshot("kept");
    let _ = image.delete_snapshot("kept");
    let _ = image.flush();
    drop(image);
    let options = OpenOptions { for_check: true, ..OpenOptions::default() };
    if let Ok(image) = Qcow2::open(Arc::new(Memory::with(bytes)), Path::new(""), &options, 0) {
        let _ = image.check(Repair::All);
    }
}

#[test]
fn changed_bytes_do_no_harm() {
    let images = [rich(false), rich(true)];
    let mut dice = Dice::new(seeds(11..12).start);
    for round in 0..2000 {
        let mut bytes = images[round % 2].clone();
        for _ in 0..1 + dice.below(3) {
            // Half of the changes hit the header, the others any table.
            let end = if dice.below(2) == 0 { 112 } else { bytes.len() as u64 };
            let at = dice.below(end) as usize;
            bytes[at] = if dice.below(2) == 0 { dice.next() as u8 } else { bytes[at] ^ 1 << dice.below(8) };
        }
        if round % 50 == 0 {
            bytes.truncate(dice.below(bytes.len() as u64) as usize);
        }
        use_it(bytes);
    }
}

#[test]
fn metadata_is_not_overwritten() {
    let file = Arc::new(Memory::default());
    create_in(file.clone(), &small(1 << 20, 65536)).unwrap();
    let image = open(file.clone()).unwrap();
    image.write(0, &[1; 65536]).unwrap();
    image.close().unwrap();
    let host = image.map(0, 1).unwrap().host_offset.unwrap();
    drop(image);
    // The data cluster's entry is pointed at the refcount table.
    let mut bytes = file.bytes();
    let entry = (host | 1 << 63).to_be_bytes();
    let at = bytes.windows(8).position(|w| w == entry).unwrap();
    bytes[at..at + 8].copy_from_slice(&(65536u64 | 1 << 63).to_be_bytes());
    let file = Arc::new(Memory::with(bytes));
    let image = open(file.clone()).unwrap();
    let error = image.write(0, &[9; 512]).unwrap_err().to_string();
    assert!(error.contains("would overwrite the refcount table"), "{error}");
    assert!(image.info().corrupt);
    drop(image);
    let error = open(file.clone()).err().expect("corrupt").to_string();
    assert!(error.contains("check -r all"), "{error}");
}

#[test]
fn wrong_counts_are_found_and_repaired() {
    let file = Arc::new(Memory::default());
    create_in(file.clone(), &CreateOptions { refcount_bits: 8, ..small(1 << 20, 4096) }).unwrap();
    let image = open(file.clone()).unwrap();
    image.write(0, &[1; 40960]).unwrap();
    image.close().unwrap();
    let host = image.map(4096, 1).unwrap().host_offset.unwrap();
    drop(image);
    let mut bytes = file.bytes();
    bytes[8192 + (host >> 12) as usize] = 0;
    bytes[8192 + (host >> 12) as usize + 1] = 3;
    bytes[8192 + 200] = 1;
    let open_it =
        || Qcow2::open(Arc::new(Memory::with(bytes.clone())), Path::new(""), &OpenOptions::default(), 0).unwrap();
    let report = open_it().check(Repair::None).unwrap();
    assert_eq!(report.leaks, 2, "{:?}", report.messages);
    assert!(report.corruptions >= 1 && report.leaks_fixed == 0, "{:?}", report.messages);
    let image = open_it();
    let report = image.check(Repair::Leaks).unwrap();
    assert_eq!((report.leaks_fixed, report.corruptions_fixed), (2, 0));
    let report = image.check(Repair::All).unwrap();
    assert_eq!(report.corruptions, report.corruptions_fixed);
    let report = image.check(Repair::None).unwrap();
    assert_eq!((report.leaks, report.corruptions), (0, 0), "{:?}", report.messages);
}

#[test]
fn what_is_not_supported_is_named() {
    let with = |bytes: &[(usize, u8)]| {
        let mut image = rich(false);
        for &(at, value) in bytes {
            image[at] = value;
        }
        open(Arc::new(Memory::with(image))).err().expect("refused").to_string()
    };
    assert!(with(&[(79, 4)]).contains("names no data file"));
    assert!(with(&[(79, 32)]).contains("incompatible feature bit 5"));
    assert!(with(&[(72, 0x80)]).contains("incompatible feature bit 63"));
    assert!(with(&[(35, 2)]).contains("encrypted"));
    assert!(with(&[(7, 4)]).contains("version 4"));
    assert!(with(&[(23, 30)]).contains("cluster_bits"));
}

/// A refcount table that is nowhere, or in other tables, gets a place where the file ends: it does not get long for it.
#[test]
fn a_refcount_table_that_is_nowhere_is_made_anew() {
    let good = rich(false);
    let table = u64::from_be_bytes(good[48..56].try_into().unwrap());
    let l1 = u64::from_be_bytes(good[40..48].try_into().unwrap());
    for place in [1 << 40, 1 << 54, good.len() as u64, l1] {
        let mut bytes = good.clone();
        bytes[48..56].copy_from_slice(&place.to_be_bytes());
        assert_ne!(place, table);
        let file = Arc::new(Memory::with(bytes));
        let options = OpenOptions { for_check: true, ..OpenOptions::default() };
        let Ok(image) = Qcow2::open(file.clone(), Path::new(""), &options, 0) else {
            assert_eq!(place, 1 << 54, "only what is no offset is refused at once");
            continue;
        };
        let report = image.check(Repair::All).unwrap();
        assert_eq!(report.corruptions, report.corruptions_fixed, "{place:#x}: {:?}", report.messages);
        assert!(report.corruptions > 0);
        drop(image);
        assert!(file.bytes().len() < good.len() + 16 * 4096, "{place:#x}: {} bytes", file.bytes().len());
        let image = open(file.clone()).unwrap();
        let report = image.check(Repair::None).unwrap();
        assert_eq!((report.corruptions, report.leaks), (0, 0), "{place:#x}: {:?}", report.messages);
        let mut buf = [0; 20_000];
        image.read(0, &mut buf).unwrap();
        assert!(buf == [1; 20_000], "{place:#x}");
        image.write(500_000, &[9; 100_000]).unwrap();
        image.close().unwrap();
        let report = open(file).unwrap().check(Repair::None).unwrap();
        assert_eq!((report.corruptions, report.leaks), (0, 0), "{place:#x}: {:?}", report.messages);
    }
}
