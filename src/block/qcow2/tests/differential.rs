//! Random programs in turns with QEMU's tools on the same file: whoever writes, both read the same.

use crate::block::qcow2::{Compression, CreateOptions, create};
use crate::block::scratch::{Dice, Scratch, have, run, seeds};
use crate::block::{BlockBackend, BlockError, CacheMode, Format, Image, OpenOptions, Preallocation, open};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// What the disk must hold, and its snapshots.
struct Model {
    disk: Vec<u8>,
    snapshots: Vec<(String, Vec<u8>)>,
    number: u32,
    version: u32,
    /// Data lies in a file of its own: no snapshots, nothing packed.
    data_file: bool,
    /// Length of the backing file: the disk stays longer, QEMU shows it again where it was cut.
    below: u64,
}

impl Model {
    /// Whether the size may change: not in version 2 with snapshots.
    fn resizable(&self) -> bool {
        self.version == 3 || self.snapshots.is_empty()
    }
}

/// A place for a request: offset and length, often at odd bytes.
fn place(dice: &mut Dice, size: u64, align: u64) -> (usize, usize) {
    let offset = dice.below(size) / align * align;
    let most = if dice.below(4) == 0 { size } else { 100_000 };
    let len = (1 + dice.below(most)).next_multiple_of(align).min(size - offset);
    (offset as usize, len as usize)
}

fn our_image(path: &Path) -> Image {
    open(path, &OpenOptions::default()).unwrap()
}

/// Past the host's cache half the time, where the host can.
fn image_of_our_turn(dice: &mut Dice, path: &Path) -> Image {
    let cache = CacheMode { direct: dice.below(2) == 0, ..CacheMode::default() };
    match open(path, &OpenOptions { cache, ..OpenOptions::default() }) {
        Err(BlockError::Unsupported { .. }) if cache.direct => our_image(path),
        opened => opened.unwrap(),
    }
}

/// Requests of ours, checked against the model at once.
fn our_turn(dice: &mut Dice, path: &Path, model: &mut Model) {
    let image = image_of_our_turn(dice, path);
    let disk = image.backend();
    let qcow2 = image.qcow2().unwrap();
    for _ in 0..12 {
        let size = model.disk.len() as u64;
        let (offset, len) = place(dice, size, 1);
        let part = offset..offset + len;
        match dice.below(12) {
            0..6 => {
                let value = dice.next() as u8;
                disk.write(offset as u64, &vec![value; len]).unwrap();
                model.disk[part].fill(value);
            }
            6 => {
                disk.write_zeroes(offset as u64, len as u64, dice.below(2) == 0).unwrap();
                model.disk[part].fill(0);
            }
            7 => {
                disk.discard(offset as u64, len as u64).unwrap();
                adopt(&*disk, model, offset, len);
            }
            8 if !model.data_file => {
                let cluster = qcow2.info().cluster_size as usize;
                let start = offset / cluster * cluster;
                let len = cluster.min(model.disk.len() - start);
                let data: Vec<u8> = (0..len).map(|i| (i / 50) as u8).collect();
                qcow2.write_compressed(start as u64, &data).unwrap();
                model.disk[start..start + len].copy_from_slice(&data);
            }
            9 if !model.data_file => {
                model.number += 1;
                let name = format!("ours{}", model.number);
                qcow2.create_snapshot(&name, UNIX_EPOCH).unwrap();
                model.snapshots.push((name, model.disk.clone()));
            }
            10 if !model.snapshots.is_empty() => {
                let index = dice.below(model.snapshots.len() as u64) as usize;
                if dice.below(2) == 0 {
                    qcow2.apply_snapshot(&model.snapshots[index].0).unwrap();
                    model.disk = model.snapshots[index].1.clone();
                } else {
                    qcow2.delete_snapshot(&model.snapshots.remove(index).0).unwrap();
                }
            }
            11 if model.resizable() => {
                let size = 512 * (1 + dice.below(6000)) + model.below;
                disk.resize(size, Preallocation::Off).unwrap();
                model.disk.resize(size as usize, 0);
            }
            _ => disk.flush().unwrap(),
        }
        assert_eq!(disk.len(), model.disk.len() as u64);
    }
    qcow2.close().unwrap();
}

/// After a discard each byte is as it was or zero.
fn adopt(disk: &dyn BlockBackend, model: &mut Model, offset: usize, len: usize) {
    let mut now = vec![0; len];
    disk.read(offset as u64, &mut now).unwrap();
    let old = &mut model.disk[offset..offset + len];
    assert!(now.iter().zip(old.iter()).all(|(n, o)| n == o || *n == 0), "discarded bytes changed");
    old.copy_from_slice(&now);
}

/// Requests of QEMU's tools.
fn qemu_turn(dice: &mut Dice, path: &Path, model: &mut Model) {
    let text = path.to_str().unwrap();
    let mut commands = Vec::new();
    let mut discarded = Vec::new();
    for _ in 0..8 {
        let (offset, len) = place(dice, model.disk.len() as u64, 512);
        let part = offset..offset + len;
        match dice.below(8) {
            0..5 => {
                let value = dice.next() as u8;
                commands.push(format!("write -q -P {value} {offset} {len}"));
                model.disk[part].fill(value);
            }
            5 | 6 => {
                let unmap = if dice.below(2) == 0 { "-u " } else { "" };
                commands.push(format!("write -q -z {unmap}{offset} {len}"));
                model.disk[part].fill(0);
            }
            _ => discarded.push((offset, len)),
        }
    }
    // Discards come last: what they leave is only known by reading.
    commands.extend(discarded.iter().map(|(offset, len)| format!("discard -q {offset} {len}")));
    let mut args = vec!["-f", "qcow2", "-d", "unmap"];
    for command in &commands {
        args.extend(["-c", command]);
    }
    args.push(text);
    run("qemu-io", &args);
    if !discarded.is_empty() {
        let image = our_image(path);
        for (offset, len) in discarded {
            adopt(&*image.backend(), model, offset, len);
        }
    }
    match dice.below(4) {
        0 if !model.data_file => {
            model.number += 1;
            let name = format!("qemu{}", model.number);
            run("qemu-img", &["snapshot", "-c", &name, text]);
            model.snapshots.push((name, model.disk.clone()));
        }
        1 if !model.snapshots.is_empty() => {
            let index = dice.below(model.snapshots.len() as u64) as usize;
            run("qemu-img", &["snapshot", "-a", &model.snapshots[index].0, text]);
            model.disk = model.snapshots[index].1.clone();
        }
        2 if !model.snapshots.is_empty() => {
            let index = dice.below(model.snapshots.len() as u64) as usize;
            run("qemu-img", &["snapshot", "-d", &model.snapshots.remove(index).0, text]);
        }
        _ if model.resizable() => {
            // Whole clusters: QEMU lets old data come back when it cuts one and grows again.
            let size = ((model.below >> 20) + 1 + dice.below(4)) << 20;
            run("qemu-img", &["resize", "-q", "--shrink", text, &size.to_string()]);
            model.disk.resize(size as usize, 0);
        }
        _ => {}
    }
}

/// Both read the model's content, and QEMU finds nothing wrong, leaks included.
fn agree(path: &Path, raw: &PathBuf, model: &Model, told: &str) {
    let mut content = vec![0; model.disk.len()];
    our_image(path).backend().read(0, &mut content).unwrap();
    let differs = content.iter().zip(&model.disk).position(|(a, b)| a != b);
    assert_eq!(differs, None, "{told}: our content differs from the model");
    std::fs::write(raw, &model.disk).unwrap();
    let text = path.to_str().unwrap();
    let check = std::process::Command::new("qemu-img").args(["check", text]).output().unwrap();
    assert!(
        check.status.success(),
        "{told}: {}{}",
        String::from_utf8_lossy(&check.stdout),
        String::from_utf8_lossy(&check.stderr)
    );
    let same = run("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", text, raw.to_str().unwrap()]);
    assert!(!same.contains("mismatch"), "{told}: {same}");
}

/// The same image made by QEMU.
fn qemu_create(path: &Path, options: &CreateOptions) {
    let mut list =
        format!("cluster_size={},compat={}", options.cluster_size, if options.version == 2 { "0.10" } else { "1.1" });
    if options.version == 3 {
        let lazy = if options.lazy_refcounts { "on" } else { "off" };
        let (bits, compression) = (options.refcount_bits, options.compression.name());
        let extended = if options.extended_l2 { "on" } else { "off" };
        list += &format!(",refcount_bits={bits},lazy_refcounts={lazy},compression_type={compression}");
        list += &format!(",extended_l2={extended}");
        if let Some(data) = &options.data_file {
            let raw = if options.data_file_raw { "on" } else { "off" };
            list += &format!(",data_file={data},data_file_raw={raw}");
        }
    }
    if options.backing.is_some() {
        list += ",backing_file=base.raw,backing_fmt=raw";
    }
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &list, path.to_str().unwrap(), "2M"]);
}

fn turns(seed: u64, rounds: u32) {
    let dir = Scratch::new();
    let mut dice = Dice::new(seed);
    let path = dir.path("disk.qcow2");
    let version = if dice.below(4) == 0 { 2 } else { 3 };
    let mut options = CreateOptions {
        size: 2 << 20,
        version,
        cluster_size: [512, 4096, 65536, 1 << 20][dice.below(4) as usize],
        ..CreateOptions::default()
    };
    if version == 3 {
        options.refcount_bits = [8, 16, 32, 64][dice.below(4) as usize];
        options.compression = [Compression::Zlib, Compression::Zstd][dice.below(2) as usize];
        options.lazy_refcounts = dice.below(3) == 0;
        if dice.below(2) == 0 {
            options.extended_l2 = true;
            options.cluster_size = options.cluster_size.max(1 << 14);
        }
        if dice.below(4) == 0 {
            options.data_file = Some(dir.path("disk.data").to_str().unwrap().to_string());
            options.data_file_raw = dice.below(2) == 0;
        }
    }
    let data_file = options.data_file.is_some();
    let mut model = Model { disk: vec![0; 2 << 20], snapshots: Vec::new(), number: 0, version, data_file, below: 0 };
    if dice.below(3) == 0 && !options.data_file_raw {
        model.below = 1_500_160;
        let below: Vec<u8> = (0..model.below).map(|i| (i / 777) as u8).collect();
        std::fs::write(dir.path("base.raw"), &below).unwrap();
        model.disk[..below.len()].copy_from_slice(&below);
        options.backing = Some(("base.raw".to_string(), Some(Format::Raw)));
    }
    if dice.below(2) == 0 {
        create(&path, &options).unwrap();
    } else {
        qemu_create(&path, &options);
    }
    let raw = dir.path("model.raw");
    for round in 0..rounds {
        let told = format!("seed {seed}, round {round}, {options:?}");
        eprintln!("{told}");
        if round % 2 == 0 {
            our_turn(&mut dice, &path, &mut model);
        } else {
            qemu_turn(&mut dice, &path, &mut model);
        }
        agree(&path, &raw, &model, &told);
        if options.data_file_raw {
            let data = std::fs::read(dir.path("disk.data")).unwrap();
            let differs = data.iter().zip(&model.disk).position(|(a, b)| a != b);
            let lengths = (data.len(), model.disk.len());
            assert!(data == model.disk, "{told}: the data file alone reads otherwise at {differs:?}, {lengths:?}");
        }
    }
}

#[test]
fn both_write_and_both_read_the_same() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    for seed in seeds(1..17) {
        turns(seed, 8);
    }
}

#[test]
fn what_we_create_is_as_qemu_creates() {
    if !have("qemu-img") {
        return;
    }
    let dir = Scratch::new();
    for version in [2, 3] {
        for preallocation in [Preallocation::Off, Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full] {
            for size in [0, 512, 3 << 20, 5_000_192] {
                for (extended_l2, data_file) in
                    [(false, None), (true, None), (true, Some(dir.path("new.data").to_str().unwrap().to_string()))]
                {
                    if version == 2 && extended_l2 {
                        continue;
                    }
                    let path = dir.path("new.qcow2");
                    let data_file_raw = data_file.is_some();
                    let more = CreateOptions { extended_l2, data_file, data_file_raw, ..CreateOptions::default() };
                    create(&path, &CreateOptions { size, version, preallocation, ..more }).unwrap();
                    let text = path.to_str().unwrap();
                    run("qemu-img", &["check", "-q", text]);
                    let info = run("qemu-img", &["info", text]);
                    assert!(info.contains(&format!("({size} bytes)")), "{info}");
                    assert_eq!(info.contains("extended l2: true"), extended_l2, "{info}");
                    assert_eq!(info.contains("data file raw: true"), data_file_raw, "{info}");
                }
            }
        }
    }
}
