//! What a single image must do.

use super::memory::Memory;
use super::{open, small};
use crate::block::qcow2::{Compression, CreateOptions, Qcow2, Repair, create, create_in};
use crate::block::scratch::Scratch;
use crate::block::{BlockBackend, Content, OpenOptions, Preallocation, create_raw};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

fn image(options: &CreateOptions) -> (Arc<Memory>, Qcow2) {
    let file = Arc::new(Memory::default());
    create_in(file.clone(), options).unwrap();
    let image = open(file.clone()).unwrap();
    (file, image)
}

fn bytes(image: &dyn BlockBackend, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0xee; len];
    image.read(offset, &mut buf).unwrap();
    buf
}

fn clean(image: &Qcow2) {
    image.flush().unwrap();
    let report = image.check(Repair::None).unwrap();
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{:?}", report.messages);
}

#[test]
fn every_geometry_keeps_data() {
    for bits in 9..=21 {
        for refcount_bits in [1, 2, 8, 16, 64] {
            let options = CreateOptions { refcount_bits, ..small(5 << 20, 1 << bits) };
            let (file, image) = image(&options);
            image.write(0, b"begin").unwrap();
            image.write(3_000_001, &[7; 70_000]).unwrap();
            image.write((5 << 20) - 3, b"end").unwrap();
            clean(&image);
            drop(image);
            let image = open(file).unwrap();
            assert_eq!(bytes(&image, 0, 6), b"begin\0");
            assert_eq!(bytes(&image, 3_000_000, 70_002), [&[0][..], &[7; 70_000], &[0]].concat());
            assert_eq!(bytes(&image, (5 << 20) - 4, 4), b"\0end");
            clean(&image);
        }
    }
}

#[test]
fn freed_clusters_are_used_again() {
    let (file, image) = image(&small(1 << 20, 4096));
    for round in 0..20u8 {
        image.write(0, &vec![round; 1 << 20]).unwrap();
        image.discard(0, 1 << 20).unwrap();
        image.flush().unwrap();
        assert_eq!(bytes(&image, 12345, 3), [0; 3]);
    }
    clean(&image);
    assert!(file.bytes().len() < 3 << 20, "{}", file.bytes().len());
}

#[test]
fn zeroes_keep_or_free_clusters() {
    for version in [2, 3] {
        let (_, image) = image(&CreateOptions { version, ..small(1 << 20, 65536) });
        image.write(0, &[5; 3 * 65536]).unwrap();
        image.write_zeroes(1000, 2 * 65536, false).unwrap();
        assert_eq!(bytes(&image, 999, 2 * 65536 + 2), [&[5][..], &[0; 2 * 65536], &[5]].concat());
        let extent = image.map(65536, 65536).unwrap();
        assert_eq!(extent.content, if version == 2 { Content::Hole } else { Content::Zero });
        assert_eq!(extent.host_offset.is_some(), version == 3);
        image.write(65536 + 10, b"x").unwrap();
        assert_eq!(bytes(&image, 65536 + 9, 3), b"\0x\0");
        image.write_zeroes(0, 1 << 20, true).unwrap();
        assert_eq!(bytes(&image, 0, 1 << 20), vec![0; 1 << 20]);
        clean(&image);
        assert_eq!(image.check(Repair::None).unwrap().allocated_clusters, 0);
    }
}

#[test]
fn snapshots_come_and_go() {
    for (cluster, version) in [(512, 3), (4096, 2), (65536, 3)] {
        let (file, image) = image(&CreateOptions { version, ..small(1 << 20, cluster) });
        image.write(0, &[1; 100_000]).unwrap();
        image.create_snapshot("one", UNIX_EPOCH).unwrap();
        clean(&image);
        image.write(50_000, &[2; 100_000]).unwrap();
        image.create_snapshot("two", UNIX_EPOCH).unwrap();
        image.write_zeroes(0, 1 << 20, true).unwrap();
        clean(&image);
        image.apply_snapshot("1").unwrap();
        assert_eq!(bytes(&image, 99_999, 2), [1, 0]);
        clean(&image);
        image.write(0, &[3; 10]).unwrap();
        image.delete_snapshot("one").unwrap();
        assert_eq!(bytes(&image, 9, 2), [3, 1]);
        clean(&image);
        image.apply_snapshot("two").unwrap();
        assert_eq!(bytes(&image, 49_999, 2), [1, 2]);
        drop(image);
        let image = open(file).unwrap();
        assert_eq!(image.snapshots().len(), 1);
        let error = image.apply_snapshot("one").unwrap_err().to_string();
        assert!(error.contains("there are two"), "{error}");
        image.delete_snapshot("2").unwrap();
        clean(&image);
        assert_eq!(bytes(&image, 149_999, 2), [2, 0]);
    }
}

#[test]
fn narrow_counts_refuse_a_snapshot_and_stay_right() {
    let (_, image) = image(&CreateOptions { refcount_bits: 1, ..small(1 << 20, 4096) });
    image.write(0, &[1; 100_000]).unwrap();
    let error = image.create_snapshot("no", UNIX_EPOCH).unwrap_err().to_string();
    assert!(error.contains("refcount_bits"), "{error}");
    clean(&image);
    assert!(image.snapshots().is_empty());
}

#[test]
fn packed_clusters_are_read_overwritten_and_freed() {
    for compression in [Compression::Zlib, Compression::Zstd] {
        let (file, image) = image(&CreateOptions { compression, ..small(1 << 20, 65536) });
        let text: Vec<u8> = (0..65536u32).map(|i| (i / 100) as u8).collect();
        for i in 0..16 {
            image.write_compressed(i * 65536, &text).unwrap();
        }
        clean(&image);
        assert!(file.bytes().len() < 800_000);
        drop(image);
        let image = open(file).unwrap();
        assert!(image.map(0, 1).unwrap().compressed);
        image.write(3 * 65536 + 5, b"new").unwrap();
        assert_eq!(bytes(&image, 3 * 65536, 10), [0, 0, 0, 0, 0, b'n', b'e', b'w', 0, 0]);
        assert_eq!(bytes(&image, 4 * 65536, 65536), text);
        assert_eq!(bytes(&image, 3 * 65536 + 65000, 536), text[65000..]);
        image.discard(0, 1 << 20).unwrap();
        clean(&image);
        assert_eq!(image.check(Repair::None).unwrap().compressed_clusters, 0);
    }
}

#[test]
fn sizes_change_and_what_is_added_is_zero() {
    let (_, image) = image(&small(1_000_000, 4096));
    image.write(0, &vec![9; 1_000_000]).unwrap();
    image.resize(600_001, Preallocation::Off).unwrap();
    assert!(image.write(600_001, &[1]).is_err());
    image.resize(90 << 20, Preallocation::Off).unwrap();
    assert_eq!(bytes(&image, 600_000, 2), [9, 0]);
    assert_eq!(bytes(&image, 999_999, 1), [0]);
    image.write((90 << 20) - 1, &[4]).unwrap();
    clean(&image);
}

#[test]
fn preallocated_images_hold_their_space() {
    for version in [2, 3] {
        for preallocation in [Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full] {
            let (file, image) = image(&CreateOptions { version, preallocation, ..small(1 << 20, 512) });
            assert!(file.bytes().len() >= 1 << 20);
            let before = file.bytes().len();
            assert_eq!(bytes(&image, 0, 1 << 20), vec![0; 1 << 20]);
            image.write(0, &vec![1; 1 << 20]).unwrap();
            assert_eq!(bytes(&image, 0, 1 << 20), vec![1; 1 << 20]);
            assert_eq!(file.bytes().len(), before, "nothing new is allocated");
            clean(&image);
        }
    }
}

#[test]
fn backing_files_show_through() {
    let dir = Scratch::new();
    create_raw(&dir.path("base.raw"), 300_000, Preallocation::Off).unwrap();
    std::fs::write(dir.path("base.raw"), vec![1; 300_000]).unwrap();
    let over = |name: &str, below: &str, format| {
        let backing = Some((below.to_string(), format));
        create(&dir.path(name), &CreateOptions { backing, ..small(1 << 20, 65536) }).unwrap();
    };
    over("middle.qcow2", "base.raw", Some(crate::block::Format::Raw));
    over("top.qcow2", r#"json:{"driver":"qcow2","file":{"filename":"middle.qcow2"}}"#, None);
    let opened = crate::block::open(&dir.path("middle.qcow2"), &OpenOptions::default()).unwrap();
    opened.backend().write(65536, &[2; 10]).unwrap();
    drop(opened);
    let top = crate::block::open(&dir.path("top.qcow2"), &OpenOptions::default()).unwrap().backend();
    assert_eq!(bytes(&*top, 65535, 12), [1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1]);
    assert_eq!(bytes(&*top, 299_999, 2), [1, 0]);
    let depths: Vec<u32> = [0, 65536, 400_000].map(|o| top.map(o, 1).unwrap().depth).into();
    assert_eq!(depths, [2, 1, 1], "behind the base's end the middle image says so");
    top.write_zeroes(0, 65536 * 2, true).unwrap();
    top.write(200_000, &[3]).unwrap();
    assert_eq!(bytes(&*top, 65536, 10), [0; 10]);
    assert_eq!(bytes(&*top, 199_999, 3), [1, 3, 1]);
    top.resize(250_000, Preallocation::Off).unwrap();
    top.resize(400_000, Preallocation::Off).unwrap();
    assert_eq!(bytes(&*top, 249_999, 2), [1, 0], "growing does not show the backing file");
}

#[test]
fn requests_in_parallel_do_not_mix() {
    let (_, image) = image(&small(4 << 20, 65536));
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let image = &image;
            scope.spawn(move || {
                // Every cluster is shared by all threads, each has its own quarter of it.
                for cluster in 0..64 {
                    image.write(cluster * 65536 + thread * 16384, &[thread as u8 + 1; 16384]).unwrap();
                    if cluster % 16 == 0 {
                        image.flush().unwrap();
                    }
                }
            });
        }
    });
    for cluster in 0..64 {
        for thread in 0..4u64 {
            let part = bytes(&image, cluster * 65536 + thread * 16384, 16384);
            assert!(part.iter().all(|&b| b == thread as u8 + 1), "cluster {cluster}, thread {thread}");
        }
    }
    clean(&image);
}

#[test]
fn readers_see_their_bytes_while_clusters_move() {
    let (file, image) = image(&small(1 << 20, 65536));
    file.delay_reads(Duration::from_micros(300));
    let text: Vec<u8> = (0..65536u32).map(|i| (i / 256) as u8).collect();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Nobody changes the first half of any cluster, whatever happens to the second.
        for start in 0..2u64 {
            let (image, text, stop) = (&image, &text, &stop);
            for cluster in 0..16 {
                image.write_compressed(cluster * 65536, text).unwrap();
            }
            scope.spawn(move || {
                let mut cluster = start;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    assert!(bytes(image, cluster % 16 * 65536, 32768) == text[..32768], "cluster {}", cluster % 16);
                    cluster += 1;
                }
            });
        }
        for round in 0..40u64 {
            for cluster in 0..16 {
                let at = cluster * 65536 + 32768;
                match round % 4 {
                    0 => image.write(at + 100, &[round as u8; 20_000]).unwrap(),
                    1 => image.write_zeroes(at, 32768, true).unwrap(),
                    2 => image.write_compressed(at - 32768, &text).unwrap(),
                    _ => image.discard(at, 32768).unwrap(),
                }
                image.flush().unwrap();
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    clean(&image);
}

#[test]
fn a_full_disk_is_told_and_costs_nothing() {
    for budget in 0..40 {
        let (file, image) = image(&small(1 << 20, 4096));
        image.write(0, &[1; 8192]).unwrap();
        image.flush().unwrap();
        file.fail_after(Some(budget));
        let mut failed = false;
        for i in 0..60 {
            failed |= image.write(i * 9000, &[2; 5000]).is_err_and(|e| e.is_no_space());
            failed |= image.flush().is_err();
        }
        assert!(failed);
        file.fail_after(None);
        image.write(500_000, &[3; 10_000]).unwrap();
        image.flush().unwrap();
        assert_eq!(bytes(&image, 509_999, 1), [3]);
        assert_eq!(bytes(&image, 8191, 1), [1]);
        let report = image.check(Repair::None).unwrap();
        assert_eq!(report.corruptions, 0, "budget {budget}: {:?}", report.messages);
    }
}
