//! Image files that lie: every command ends, with an error or a result, within bounds of time and memory.
//!
//! `BROLGA_HOSTILE=100000` in the environment asks for that many files, `BROLGA_SEED` for other ones.

use super::random::{Random, rounds, seed};
use super::{Scratch, model};
use brolga::block::qcow2::{Compression, CreateOptions, create};
use brolga::block::{BlockBackend, Format, OpenOptions, open};
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, UNIX_EPOCH};

/// Address space of the process that opens the files, in KiB: its caches and threads, and little more.
const MEMORY: u64 = 1 << 20;
/// All commands together on one file. A debug build on a busy machine needs part of a second.
const TIME: Duration = Duration::from_secs(30);
/// Files larger than this are not read whole.
const READABLE: u64 = 64 << 20;

/// Images that have something of everything; two of them lie on `base.raw`.
fn seeds(dir: &Scratch) {
    std::fs::write(dir.path("base.raw"), [5; 70_000]).unwrap();
    let kinds = [
        (512, 16, 3, Compression::Zlib, false),
        (4096, 16, 3, Compression::Zstd, true),
        (4096, 64, 3, Compression::Zlib, false),
        (1024, 16, 2, Compression::Zlib, true),
        (512, 8, 3, Compression::Zlib, false),
    ];
    for (number, (cluster_size, refcount_bits, version, compression, below)) in kinds.into_iter().enumerate() {
        let path = dir.path(format!("seed{number}").as_str());
        let backing = below.then(|| ("base.raw".to_owned(), Some(Format::Raw)));
        let size = 300_032;
        let options =
            CreateOptions { size, cluster_size, refcount_bits, version, compression, backing, ..Default::default() };
        create(&path, &options).unwrap();
        let image = open(&path, &OpenOptions::default()).unwrap();
        let image = image.qcow2().unwrap();
        image.write(3000, &[1; 20_000]).unwrap();
        let text: Vec<u8> = (0..cluster_size).map(|i| (i / 40) as u8).collect();
        image.write_compressed(65536, &text).unwrap();
        image.write_compressed(65536 + cluster_size, &text).unwrap();
        image.create_snapshot("kept", UNIX_EPOCH).unwrap();
        image.write(10_000, &[3; 9000]).unwrap();
        image.write_zeroes(40_960, 8192, false).unwrap();
        image.close().unwrap();
    }
    let theirs = ["", "-o extended_l2=on,cluster_size=16k", "-o data_file=data.raw", "-o preallocation=metadata"];
    for (next, options) in (kinds.len()..).zip(theirs.iter().filter(|_| model())) {
        let name = format!("seed{next}");
        assert_eq!(dir.theirs(&format!("create -q -f qcow2 {options} {name} 200k")).status, 0);
        dir.theirs(&format!("bitmap --add {name} old"));
        dir.theirs(&format!("bitmap --add {name} new"));
    }
}

/// Makes the bytes of an image lie in one to four places.
fn spoil(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..1 + random.below(4) {
        match random.below(10) {
            0..3 => spoil_header(bytes, random),
            3..7 => spoil_entry(bytes, random),
            7 => {
                let at = random.below(bytes.len() as u64) as usize;
                bytes[at] = random.below(256) as u8;
            }
            8 => {
                let at = random.below(bytes.len() as u64) as usize;
                bytes[at] ^= 1 << random.below(8);
            }
            _ if random.below(10) == 0 => bytes.truncate(random.below(bytes.len() as u64) as usize + 1),
            _ => {
                // A piece of the file stands elsewhere too.
                let len = random.pick(&[8, 64, 512, 4096]).min(bytes.len() as u64);
                let from = random.below(bytes.len() as u64 - len + 1) as usize;
                let to = random.below(bytes.len() as u64 - len + 1) as usize;
                bytes.copy_within(from..from + len as usize, to);
            }
        }
    }
}

fn number(random: &mut Random, bytes: &[u8]) -> u64 {
    let any = random.below(bytes.len() as u64);
    match random.below(8) {
        0 => 0,
        1 => 1 << random.below(64),
        2 => (1 << random.below(64)) - 1,
        3 => u64::MAX - random.below(70_000),
        4 => any & !511,
        5 => any & !4095,
        6 => random.below(200),
        _ => any,
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

/// Fields of the header (qcow2.rst) and what stands behind it.
fn spoil_header(bytes: &mut [u8], random: &mut Random) {
    let value = number(random, bytes);
    match random.below(4) {
        0 => put(bytes, random.pick(&[8, 24, 40, 48, 64, 72, 80, 88]), &value.to_be_bytes()),
        1 => put(bytes, random.pick(&[4, 16, 20, 32, 36, 56, 60, 96, 100]), &(value as u32).to_be_bytes()),
        // Small numbers get further.
        2 => put(bytes, random.pick(&[7, 19, 23, 35, 39, 59, 63, 79, 87, 95, 99, 103, 104]), &[random.below(32) as u8]),
        _ => put(bytes, 104 + 4 * random.below(100) as usize, &(value as u32).to_be_bytes()),
    }
}

/// What looks like an entry of a table gets another value: often that of another one.
fn spoil_entry(bytes: &mut [u8], random: &mut Random) {
    let read = |at: usize| bytes.get(at..at + 8).map_or(0, |b| u64::from_be_bytes(b.try_into().unwrap()));
    let like = |value: u64| {
        let offset = value & 0x00ff_ffff_ffff_fe00;
        offset != 0 && offset < bytes.len() as u64 * 4
    };
    let entries: Vec<usize> = (0..bytes.len() / 8).map(|i| i * 8).filter(|&at| like(read(at))).collect();
    if entries.is_empty() {
        return;
    }
    let at = random.pick(&entries);
    let (old, other) = (read(at), read(random.pick(&entries)));
    let value = match random.below(8) {
        0 => other,
        1 => old ^ 1 << 63,
        2 => old ^ 1 << 62,
        3 => old ^ 1,
        4 => (at as u64 & !511) | 1 << 63,
        5 => old ^ 1 << random.below(64),
        6 => old & 0xc000_0000_0000_0001,
        _ => number(random, bytes),
    };
    put(bytes, at, &value.to_be_bytes());
}

/// The first bytes of other formats, and of qcow2, with anything behind.
fn anything(random: &mut Random) -> Vec<u8> {
    let magic: &[u8] = random.pick(&[
        &b"QFI\xfb\0\0\0\x03"[..],
        b"QFI\xfb\0\0\0\x02",
        b"KDMV",
        b"vhdxfile",
        b"conectix",
        b"LUKS\xba\xbe",
        b"# Disk DescriptorFile",
        b"QED\0",
        b"",
    ]);
    let noise = (0..random.below(3000)).map(|_| if random.below(3) == 0 { random.below(256) as u8 } else { 0 });
    magic.iter().copied().chain(noise.collect::<Vec<_>>()).collect()
}

/// All commands on one file; what they say does not matter here.
fn use_all(dir: &Path) {
    let path = |name: &str| dir.join(name).into_os_string();
    let run = |words: &[&str]| {
        let words = ["brolga-img"].iter().chain(words).map(|word| match *word {
            "FILE" => path("file"),
            "COPY" => path("copy"),
            "OUT" => path("out"),
            word => OsString::from(word),
        });
        brolga::img::main(words)
    };
    for line in [
        "info FILE",
        "info -U --output=json --backing-chain FILE",
        "check FILE",
        "map --output=json -l 1G FILE",
        "snapshot -l FILE",
        "measure -O qcow2 FILE",
    ] {
        run(&line.split(' ').collect::<Vec<_>>());
    }
    let read_only = OpenOptions { read_only: true, ..OpenOptions::default() };
    let size = open(Path::new(&path("file")), &read_only).map_or(u64::MAX, |image| image.backend().len());
    if size <= READABLE {
        run(&["convert", "-O", "qcow2", "FILE", "OUT"]);
        run(&["convert", "-l", "kept", "FILE", "OUT"]);
        run(&["compare", "FILE", "OUT"]);
    }
    for line in [
        "check -r leaks COPY",
        "check -r all COPY",
        "check -r all FILE",
        "snapshot -c new FILE",
        "snapshot -a kept FILE",
        "snapshot -d kept FILE",
        "resize -f qcow2 FILE +1M",
        "bitmap --add -f qcow2 FILE more",
        "bitmap --remove -f qcow2 FILE old",
        "amend -f qcow2 -o lazy_refcounts=on FILE",
        "rebase -u -b base.raw -F raw FILE",
    ] {
        // A table that was said to stand far behind the end may stand there now; that is not copied.
        if std::fs::metadata(path("file")).unwrap().len() > READABLE {
            return;
        }
        std::fs::copy(path("file"), path("copy")).unwrap();
        run(&line.split(' ').collect::<Vec<_>>());
    }
    if let Ok(image) = open(Path::new(&path("copy")), &OpenOptions::default()) {
        let (disk, size) = (image.backend(), image.backend().len());
        let buffer = vec![7; 9000];
        for offset in [0, 30_000, 65_536, size / 2, size.saturating_sub(9000)] {
            let _ = disk.read(offset, &mut buffer.clone());
            let _ = disk.write(offset, &buffer);
        }
        let _ = disk.write_zeroes(10_000, 50_000, true);
        let _ = disk.discard(0, 65_536);
        let _ = image.qcow2().map(|q| q.write_compressed(131_072, &buffer[..512]));
        let _ = disk.flush();
    }
}

/// The process that opens the files: numbers from `BROLGA_HOSTILE_CASES` on, each told before it begins.
#[test]
#[ignore = "the test below starts it"]
fn opener() {
    let Ok(cases) = std::env::var("BROLGA_HOSTILE_CASES") else { return };
    let mut words = cases.splitn(4, ' ');
    let mut number = || words.next().unwrap().parse::<u64>().unwrap();
    let (base, first, count) = (number(), number(), number());
    let dir = Path::new(words.next().unwrap());
    let images: Vec<Vec<u8>> = (0..).map_while(|n| std::fs::read(dir.join(format!("seed{n}"))).ok()).collect();
    for case in first..first + count {
        let mut random = Random::new(base << 32 | case);
        let mut bytes = images[random.below(images.len() as u64) as usize].clone();
        match random.below(30) {
            0 => bytes = anything(&mut random),
            _ => spoil(&mut bytes, &mut random),
        }
        std::fs::write(dir.join("file"), &bytes).unwrap();
        eprintln!("case {case}");
        let start = Instant::now();
        use_all(dir);
        let took = start.elapsed();
        assert!(took < TIME, "case {case} took {took:?}");
    }
    eprintln!("done");
}

#[test]
fn files_that_lie() {
    let dir = Scratch::new();
    seeds(&dir);
    let (count, base) = (rounds("BROLGA_HOSTILE", 300), seed());
    let first = rounds("BROLGA_HOSTILE_FIRST", 0);
    let limited = format!("ulimit -v {MEMORY} && exec \"$0\" \"$@\"");
    let mut child = Command::new("sh")
        .args(["-c", &limited])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "hostile::opener", "--ignored", "--nocapture", "--test-threads=1"])
        .env("BROLGA_HOSTILE_CASES", format!("{base} {first} {count} {}", dir.0.display()))
        .current_dir(&dir.0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let (give, take) = std::sync::mpsc::channel();
    std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| give.send(line)));
    let mut last = Vec::new();
    let ended = loop {
        match take.recv_timeout(2 * TIME) {
            Ok(line) if line == "done" => break true,
            Ok(line) => {
                if line.starts_with("case ") {
                    last.clear();
                }
                last.push(line);
                last.truncate(60);
            }
            Err(_) => break false,
        }
    };
    if !ended {
        let _ = child.kill();
    }
    let status = child.wait().unwrap();
    let told = last.join("\n");
    assert!(ended && status.success(), "BROLGA_SEED={base}, {status}: it died or hung:\n{told}");
    eprintln!("{count} files from {first} of seed {base}");
}
