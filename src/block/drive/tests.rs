//! Drives as a machine has them, and QEMU's view of what they leave.

use super::{DetectZeroes, DiscardMode, Drive, DriveOptions};
use crate::block::qcow2::{CreateOptions, create};
use crate::block::scratch::{Scratch, have, run};
use crate::block::{BlockBackend, CacheMode, Content, Format, Preallocation, create_raw};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

fn qcow2(dir: &Scratch, name: &str, backing: Option<(&str, Format)>) -> PathBuf {
    let backing = backing.map(|(file, format)| (file.to_string(), Some(format)));
    let path = dir.path(name);
    create(&path, &CreateOptions { size: 1 << 20, backing, ..CreateOptions::default() }).unwrap();
    path
}

fn drive(path: &Path, options: DriveOptions) -> Drive {
    Drive::open(path, &options).unwrap()
}

fn bytes(disk: &dyn BlockBackend, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0xee; len];
    disk.read(offset, &mut buf).unwrap();
    buf
}

#[test]
fn snapshot_leaves_the_file_as_it_was() {
    let dir = Scratch::new();
    let raw = dir.path("disk.raw");
    std::fs::write(&raw, vec![5; 1 << 20]).unwrap();
    let over = qcow2(&dir, "over.qcow2", Some(("disk.raw", Format::Raw)));
    for path in [raw, over] {
        let before = std::fs::read(&path).unwrap();
        let disk = drive(&path, DriveOptions { snapshot: true, ..DriveOptions::default() });
        let guest = disk.backend();
        assert!(!guest.read_only());
        guest.write(1000, &[9; 70_000]).unwrap();
        guest.write_zeroes(500_000, 100_000, true).unwrap();
        guest.flush().unwrap();
        assert_eq!(bytes(&*guest, 999, 2), [5, 9]);
        assert_eq!(bytes(&*guest, 499_999, 2), [5, 0]);
        // Two machines may run from one file so.
        let second = drive(&path, DriveOptions { snapshot: true, ..DriveOptions::default() });
        assert_eq!(bytes(&*second.backend(), 999, 2), [5, 5]);
        disk.image().qcow2().unwrap().create_snapshot("kept while it runs", std::time::UNIX_EPOCH).unwrap();
        drop((disk, guest));
        assert!(std::fs::read(&path).unwrap() == before);
    }
}

#[test]
fn zeroes_are_detected_and_space_is_given_back() {
    let dir = Scratch::new();
    for (detect, discard, content) in [
        (DetectZeroes::Off, DiscardMode::Unmap, Content::Data),
        (DetectZeroes::On, DiscardMode::Ignore, Content::Zero),
        (DetectZeroes::Unmap, DiscardMode::Unmap, Content::Zero),
    ] {
        let path = qcow2(&dir, "zeroes.qcow2", None);
        let disk = drive(&path, DriveOptions { detect_zeroes: detect, discard, ..DriveOptions::default() });
        let guest = disk.backend();
        guest.write(0, &[1; 131_072]).unwrap();
        guest.write(0, &[0; 65_536]).unwrap();
        let extent = guest.map(0, 65_536).unwrap();
        assert_eq!((extent.content, extent.host_offset.is_some()), (content, detect != DetectZeroes::Unmap));
        guest.discard(65_536, 65_536).unwrap();
        assert_eq!(guest.map(65_536, 1).unwrap().content == Content::Data, discard == DiscardMode::Ignore);
        assert_eq!(bytes(&*guest, 0, 65_536), [0; 65_536]);
    }
    let wrong = DriveOptions { detect_zeroes: DetectZeroes::Unmap, ..DriveOptions::default() };
    assert!(wrong.check().unwrap_err().to_string().contains("needs discard=unmap"));
}

#[test]
fn what_is_read_is_copied() {
    let dir = Scratch::new();
    std::fs::write(dir.path("base.raw"), vec![7; 300_000]).unwrap();
    let path = qcow2(&dir, "over.qcow2", Some(("base.raw", Format::Raw)));
    let disk = drive(&path, DriveOptions { copy_on_read: true, ..DriveOptions::default() });
    let guest = disk.backend();
    assert_eq!(bytes(&*guest, 70_000, 10), [7; 10]);
    let depths = |at: u64| guest.map(at, 1).unwrap().depth;
    assert_eq!([0, 65_536, 131_072].map(depths), [1, 0, 1]);
    assert_eq!(bytes(&*guest, 290_000, 20_000), [[7; 10_000], [0; 10_000]].concat());
    assert_eq!(guest.map(400_000, 1).unwrap().content, Content::Hole, "nothing below, nothing copied");
    // The guest's own writes win over copies of their clusters that run at the same time.
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                bytes(&*guest, 0, 300_000);
            }
        });
        for at in 0..290u64 {
            guest.write(at * 1000, &[8; 500]).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    for at in 0..290u64 {
        assert_eq!(bytes(&*guest, at * 1000, 1000), [[8; 500], [7; 500]].concat(), "{at}");
    }
    drop((disk, guest));
    if have("qemu-img") {
        run("qemu-img", &["check", "-q", path.to_str().unwrap()]);
    }
    let wrong = DriveOptions { copy_on_read: true, read_only: true, ..DriveOptions::default() };
    assert!(Drive::open(&path, &wrong).is_err());
}

#[test]
fn every_cache_mode_keeps_data() {
    let dir = Scratch::new();
    for mode in ["writeback", "none", "writethrough", "directsync", "unsafe"] {
        let cache = CacheMode::from_name(mode).unwrap();
        let raw = dir.path("cache.raw");
        create_raw(&raw, (1 << 20) + 512, Preallocation::Off).unwrap();
        for path in [raw, qcow2(&dir, "cache.qcow2", None)] {
            let disk = match Drive::open(&path, &DriveOptions { cache, ..DriveOptions::default() }) {
                Ok(disk) => disk,
                Err(e) if cache.direct => return eprintln!("not tested: {e}"),
                Err(e) => panic!("{e}"),
            };
            assert_eq!(disk.has_write_cache(), !mode.contains("through") && mode != "directsync");
            let guest = disk.backend();
            for at in [0u64, 512, 5000, 65_000, (1 << 20) - 700] {
                guest.write(at, &[at as u8 | 1; 700]).unwrap();
                assert_eq!(bytes(&*guest, at, 700), [at as u8 | 1; 700], "{mode}");
            }
            let size = guest.len();
            guest.flush().unwrap();
            drop((guest, disk));
            if have("qemu-io") {
                let format = if path.extension().unwrap() == "raw" { "raw" } else { "qcow2" };
                let text = path.to_str().unwrap();
                let told = run("qemu-io", &["-f", format, "-c", "read -P 0x89 5000 700", text]);
                assert!(told.contains("read 700/700"), "{mode}: {told}");
                assert!(format == "qcow2" || std::fs::metadata(&path).unwrap().len() == size);
            }
        }
    }
}

/// A write through is in the file at once, tables included: the file is copied while it is open.
#[test]
fn writethrough_needs_no_flush() {
    let dir = Scratch::new();
    for (mode, there) in [("writethrough", true), ("writeback", false)] {
        let path = qcow2(&dir, "through.qcow2", None);
        let cache = CacheMode::from_name(mode).unwrap();
        let disk = drive(&path, DriveOptions { cache, ..DriveOptions::default() });
        disk.backend().write(100, b"durable").unwrap();
        let copy = dir.path("copy.qcow2");
        std::fs::copy(&path, &copy).unwrap();
        let found = bytes(&*drive(&copy, DriveOptions::default()).backend(), 100, 7) == b"durable";
        assert_eq!(found, there, "{mode}");
    }
}
