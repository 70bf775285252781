//! `kill -9` of a process that writes: at any moment the image opens, is sound but for leaks, and holds what was
//! flushed.
//!
//! `BROLGA_KILLS=300` in the environment asks for that many kills of each kind; `BROLGA_SEED` for other numbers.

use super::random::{Random, rounds, seed};
use super::{Scratch, model};
use brolga::block::qcow2::{Compression, CreateOptions, Repair, create};
use brolga::block::{BlockBackend, Format, Image, OpenOptions, Preallocation, open};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, UNIX_EPOCH};

const SECTOR: u64 = 512;
const SIZE: u64 = 6 << 20;
/// Threads that write at once own pieces of this size by turns: parts of one cluster, or many of them.
const PIECE: u64 = 16 << 10;

/// What a request does to sectors; its number makes what it writes its own.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Request {
    Write { first: u64, count: u64 },
    Zero { first: u64, count: u64, unmap: bool },
    Discard { first: u64, count: u64 },
    Compressed { first: u64, count: u64 },
    Snapshot(String),
    Delete(String),
    Resize(u64),
    Flush,
}

/// The requests of one thread, the same for who does them and who tells what they must have done.
struct Program {
    random: Random,
    thread: u64,
    threads: u64,
    cluster: u64,
    /// Snapshots and sizes may change: one thread alone, and a format that allows it.
    all: bool,
    size: u64,
    snapshots: Vec<String>,
    number: u64,
}

impl Program {
    fn new(plan: &Plan, thread: u64) -> Program {
        let random = Random::new(plan.seed.wrapping_mul(31).wrapping_add(thread));
        let Plan { threads, cluster, all, size, ref snapshots, .. } = *plan;
        Program { random, thread, threads, cluster, all, size, snapshots: snapshots.clone(), number: 0 }
    }

    /// Sectors that this thread may touch.
    fn place(&mut self) -> (u64, u64) {
        if self.threads == 1 {
            let first = self.random.below(self.size / SECTOR);
            let most = if self.random.below(8) == 0 { 4000 } else { 300 };
            return (first, (1 + self.random.below(most)).min(self.size / SECTOR - first));
        }
        let pieces = SIZE / PIECE / self.threads;
        let piece = self.random.below(pieces) * self.threads + self.thread;
        let first = self.random.below(PIECE / SECTOR);
        (piece * (PIECE / SECTOR) + first, 1 + self.random.below(PIECE / SECTOR - first))
    }

    fn next(&mut self) -> (u64, Request) {
        self.number += 1;
        let (first, count) = self.place();
        let request = match self.random.below(40) {
            0..22 => Request::Write { first, count },
            22..25 => Request::Zero { first, count, unmap: self.random.below(2) == 0 },
            25..28 => Request::Discard { first, count },
            28..30 if self.threads == 1 => {
                let start = first * SECTOR / self.cluster * self.cluster;
                let len = self.cluster.min(self.size - start);
                Request::Compressed { first: start / SECTOR, count: len / SECTOR }
            }
            30 if self.all && self.snapshots.len() < 4 => {
                let name = format!("s{}-{}", self.random.below(1 << 30), self.number);
                self.snapshots.push(name.clone());
                Request::Snapshot(name)
            }
            31 if self.all && !self.snapshots.is_empty() => {
                let index = self.random.below(self.snapshots.len() as u64) as usize;
                Request::Delete(self.snapshots.remove(index))
            }
            32 if self.all => {
                self.size = SIZE + SECTOR * self.random.below(4096);
                Request::Resize(self.size)
            }
            33..38 => Request::Flush,
            _ => Request::Write { first, count },
        };
        (self.number, request)
    }
}

/// The value that request `number` of a thread writes to all words of a sector.
fn value(seed: u64, thread: u64, number: u64) -> u64 {
    (seed << 40 | thread << 32 | number) & !(1 << 63) | 1 << 62
}

fn sectors(word: u64, count: u64) -> Vec<u8> {
    word.to_le_bytes().repeat((count * SECTOR / 8) as usize)
}

/// What the process that is killed is told.
#[derive(Debug, Clone)]
struct Plan {
    seed: u64,
    threads: u64,
    cluster: u64,
    all: bool,
    size: u64,
    snapshots: Vec<String>,
}

impl Plan {
    fn text(&self) -> String {
        let Plan { seed, threads, cluster, all, size, snapshots } = self;
        format!("{seed} {threads} {cluster} {} {size} {}", u8::from(*all), snapshots.join(" "))
    }

    fn parse(text: &str) -> Plan {
        let mut words = text.split_whitespace();
        let mut number = || words.next().unwrap().parse::<u64>().unwrap();
        let (seed, threads, cluster, all, size) = (number(), number(), number(), number() == 1, number());
        Plan { seed, threads, cluster, all, size, snapshots: words.map(str::to_owned).collect() }
    }
}

/// The process that is killed: writes for ever, and tells each flush that has ended on standard error.
#[test]
#[ignore = "the other tests here start it"]
fn writer() {
    let Ok(plan) = std::env::var("BROLGA_KILL_PLAN") else { return };
    let plan = Plan::parse(&plan);
    let path = std::env::var("BROLGA_KILL_IMAGE").unwrap();
    let image = open(Path::new(&path), &OpenOptions { lock: true, ..OpenOptions::default() }).unwrap();
    eprintln!("open");
    std::thread::scope(|scope| {
        for thread in 0..plan.threads {
            let (plan, image) = (&plan, image.clone());
            scope.spawn(move || write_for_ever(plan, &image, thread));
        }
    });
}

fn write_for_ever(plan: &Plan, image: &Image, thread: u64) {
    let (disk, qcow2) = (image.backend(), image.qcow2().unwrap());
    let mut program = Program::new(plan, thread);
    loop {
        let (number, request) = program.next();
        let word = value(plan.seed, thread, number);
        match request {
            Request::Write { first, count } => disk.write(first * SECTOR, &sectors(word, count)),
            Request::Zero { first, count, unmap } => disk.write_zeroes(first * SECTOR, count * SECTOR, unmap),
            Request::Discard { first, count } => disk.discard(first * SECTOR, count * SECTOR),
            Request::Compressed { first, count } => qcow2.write_compressed(first * SECTOR, &sectors(word, count)),
            Request::Snapshot(name) => qcow2.create_snapshot(&name, UNIX_EPOCH).map(|_| ()),
            Request::Delete(name) => qcow2.delete_snapshot(&name),
            Request::Resize(len) => disk.resize(len, Preallocation::Off),
            Request::Flush => disk.flush().map(|()| eprintln!("{thread} {number}")),
        }
        .unwrap_or_else(|e| {
            eprintln!("failed: {e}");
            std::process::exit(1)
        });
    }
}

/// What sectors and the list of snapshots may be after the kill.
struct Expected {
    allowed: Vec<Vec<u64>>,
    sizes: Vec<u64>,
    /// Each possible list.
    snapshots: Vec<Vec<String>>,
}

impl Expected {
    fn add(&mut self, first: u64, count: u64, word: u64) {
        for sector in first..first + count {
            let index = sector as usize;
            if self.allowed.len() <= index {
                self.allowed.resize(index + 1, vec![0]);
            }
            if !self.allowed[index].contains(&word) {
                self.allowed[index].push(word);
            }
        }
    }

    /// A request that may have been done, in whole or in part.
    fn maybe(&mut self, request: &Request, word: u64, program: &Program) {
        match request {
            Request::Write { first, count } | Request::Compressed { first, count } => self.add(*first, *count, word),
            Request::Zero { first, count, .. } | Request::Discard { first, count } => self.add(*first, *count, 0),
            Request::Resize(size) => {
                let least = self.sizes.iter().copied().chain([*size]).min().unwrap() / SECTOR;
                self.sizes.push(*size);
                let end = (size / SECTOR).max(self.allowed.len() as u64);
                self.add(least, end - least, 0);
            }
            Request::Snapshot(_) | Request::Delete(_) => self.snapshots.push(program.snapshots.clone()),
            Request::Flush => {}
        }
    }

    /// A request that was done before a flush which has ended.
    fn surely(&mut self, request: &Request, word: u64, program: &Program) {
        match request {
            Request::Write { first, count } | Request::Compressed { first, count } => self.set(*first, *count, word),
            Request::Zero { first, count, .. } => self.set(*first, *count, 0),
            // What was there, or nothing: the format does not promise which.
            Request::Discard { first, count } => self.add(*first, *count, 0),
            Request::Resize(size) => {
                let (old, new) = (self.sizes[0] / SECTOR, size / SECTOR);
                self.allowed.truncate(new.min(old) as usize);
                self.allowed.resize(new as usize, vec![0]);
                self.sizes = vec![*size];
            }
            Request::Snapshot(_) | Request::Delete(_) => self.snapshots = vec![program.snapshots.clone()],
            Request::Flush => {}
        }
    }

    fn set(&mut self, first: u64, count: u64, word: u64) {
        self.allowed[first as usize..(first + count) as usize].fill(vec![word]);
    }
}

/// The words of all sectors; a sector that is not of one word was torn.
fn words(content: &[u8], told: &str) -> Vec<u64> {
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
    let one = |(sector, bytes): (usize, &[u8])| {
        let first = word(&bytes[..8]);
        assert!(bytes.chunks(8).all(|b| word(b) == first), "{told}: sector {sector} is mixed");
        first
    };
    content.chunks(SECTOR as usize).enumerate().map(one).collect()
}

fn read_all(disk: &dyn BlockBackend) -> Vec<u8> {
    let mut content = vec![0; disk.len() as usize];
    disk.read(0, &mut content).unwrap();
    content
}

/// No error, leaks apart, to both programs. A dirty image may be mended first, as every writer does.
fn sound(dir: &Scratch, name: &str, told: &str) {
    let options = OpenOptions { read_only: true, ..OpenOptions::default() };
    let image = open(&dir.path(name), &options).unwrap_or_else(|e| panic!("{told}: {e}"));
    let qcow2 = image.qcow2().unwrap();
    let dirty = qcow2.info().dirty;
    let report = qcow2.check(Repair::None).unwrap();
    assert!(dirty || report.corruptions == 0, "{told}: {name}: {:?}", report.messages);
    drop(image);
    if !model() {
        return;
    }
    if dirty {
        std::fs::copy(dir.path(name), dir.path("mended")).unwrap();
        let mended = dir.theirs("check -r all mended");
        assert_eq!(mended.status, 0, "{told}: {mended:?}");
    } else {
        let check = dir.theirs(&format!("check {name}"));
        assert!(check.status == 0 || check.status == 3, "{told}: {check:?}");
    }
}

/// Starts the writer; its lines arrive as they are told.
fn start(path: &Path, plan: &Plan) -> (Child, Receiver<String>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kill::writer", "--ignored", "--nocapture", "--test-threads=1"])
        .env("BROLGA_KILL_PLAN", plan.text())
        .env("BROLGA_KILL_IMAGE", path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let (give, take) = channel();
    std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| give.send(line)));
    (child, take)
}

/// Lets the writer run for a while and kills it; the number of the last flush of each thread.
fn run_and_kill(path: &Path, plan: &Plan, random: &mut Random, told: &str) -> Vec<u64> {
    let (mut child, lines) = start(path, plan);
    assert_eq!(lines.recv().unwrap(), "open", "{told}");
    // Mostly short: what matters is many different moments.
    let most = if random.below(4) == 0 { 80_000 } else { 9_000 };
    std::thread::sleep(Duration::from_micros(random.below(most)));
    child.kill().unwrap();
    child.wait().unwrap();
    let mut flushed = vec![0; plan.threads as usize];
    for line in lines {
        assert!(!line.starts_with("failed"), "{told}: {line}");
        // A message of the test harness may stand between the lines.
        let Some((thread, number)) = line.split_once(' ') else { continue };
        if let (Ok(thread), Ok(number)) = (thread.parse::<usize>(), number.parse()) {
            flushed[thread] = number;
        }
    }
    flushed
}

/// Kills a writer once more; gives what the disk and its list of snapshots are now.
fn kill_once(dir: &Scratch, plan: &Plan, before: Vec<u64>, random: &mut Random, told: &str) -> (Vec<u64>, Vec<String>) {
    let path = dir.path("disk.qcow2");
    let flushed = run_and_kill(&path, plan, random, told);
    let mut expected = Expected {
        allowed: before.into_iter().map(|word| vec![word]).collect(),
        sizes: vec![plan.size],
        snapshots: vec![plan.snapshots.clone()],
    };
    for (thread, &last) in flushed.iter().enumerate() {
        let mut program = Program::new(plan, thread as u64);
        loop {
            let (number, request) = program.next();
            let word = value(plan.seed, thread as u64, number);
            if number <= last {
                expected.surely(&request, word, &program);
            } else if request == Request::Flush {
                break;
            } else {
                expected.maybe(&request, word, &program);
            }
        }
    }
    let told = format!("{told}, flushed {flushed:?}");
    sound(dir, "disk.qcow2", &told);
    let image = open(&path, &OpenOptions { read_only: true, ..OpenOptions::default() }).unwrap();
    let names: Vec<String> = image.qcow2().unwrap().snapshots().into_iter().map(|s| s.name).collect();
    assert!(expected.snapshots.contains(&names), "{told}: snapshots {names:?}, not one of {:?}", expected.snapshots);
    let content = read_all(&*image.backend());
    assert!(expected.sizes.contains(&(content.len() as u64)), "{told}: {} bytes", content.len());
    let now = words(&content, &told);
    for (sector, word) in now.iter().enumerate() {
        let allowed = &expected.allowed[sector];
        assert!(allowed.contains(word), "{told}: sector {sector} holds {word:#x}, not one of {allowed:x?}");
    }
    (now, names)
}

/// A new image of some kind, and what it holds.
fn fresh(dir: &Scratch, random: &mut Random) -> (CreateOptions, Vec<u64>) {
    let version = if random.below(4) == 0 { 2 } else { 3 };
    let mut options = CreateOptions {
        size: SIZE,
        version,
        cluster_size: random.pick(&[512, 4096, 65536, 65536, 2 << 20]),
        ..CreateOptions::default()
    };
    if version == 3 {
        options.refcount_bits = random.pick(&[1, 2, 8, 16, 32, 64]);
        options.lazy_refcounts = random.below(3) == 0;
        options.compression = random.pick(&[Compression::Zlib, Compression::Zstd]);
    }
    let mut content = vec![0; (SIZE / SECTOR) as usize];
    if random.below(3) == 0 {
        // Shorter than the disk, and not up to the end of a cluster.
        let below = (SIZE - 100 * SECTOR) / SECTOR;
        content[..below as usize].iter_mut().enumerate().for_each(|(i, word)| *word = i as u64 + 1);
        let bytes: Vec<u8> = content[..below as usize].iter().flat_map(|&word| sectors(word, 1)).collect();
        std::fs::write(dir.path("base.raw"), bytes).unwrap();
        options.backing = Some(("base.raw".to_owned(), Some(Format::Raw)));
    }
    create(&dir.path("disk.qcow2"), &options).unwrap();
    (options, content)
}

#[test]
fn writers_are_killed() {
    let dir = Scratch::new();
    let (mut done, wanted, base) = (0, rounds("BROLGA_KILLS", 24), seed());
    let mut random = Random::new(base);
    while done < wanted {
        let (options, mut content) = fresh(&dir, &mut random);
        let mut snapshots = Vec::new();
        // The same image goes on after a kill: damage of several would add up.
        for _ in 0..6 {
            let threads = random.pick(&[1, 1, 4]);
            let plan = Plan {
                seed: done + 1,
                threads,
                cluster: options.cluster_size,
                all: threads == 1 && options.version == 3 && options.refcount_bits > 3 && options.backing.is_none(),
                size: content.len() as u64 * SECTOR,
                snapshots,
            };
            let told = format!("BROLGA_SEED={base}, kill {done}, {plan:?}, {options:?}");
            (content, snapshots) = kill_once(&dir, &plan, content, &mut random, &told);
            done += 1;
        }
        std::fs::remove_file(dir.path("disk.qcow2")).unwrap();
    }
    eprintln!("{done} writers killed");
}

/// What a command may leave, given what the image held before.
enum Outcome {
    /// The same content.
    Same,
    /// That, or the content of this image.
    Or(&'static str),
    /// The same, cut or longer with zeroes behind; up to here all of it.
    Until(u64),
}

/// Commands that are killed, and what `top.qcow2` may hold afterwards.
const COMMANDS: &[(&str, Outcome)] = &[
    ("snapshot -c new top.qcow2", Outcome::Same),
    ("snapshot -d first top.qcow2", Outcome::Same),
    ("snapshot -a first top.qcow2", Outcome::Or("first.qcow2")),
    ("resize top.qcow2 60M", Outcome::Until(u64::MAX)),
    ("resize --shrink top.qcow2 3000000", Outcome::Until(3_000_320)),
    ("commit -d top.qcow2", Outcome::Same),
    ("commit plain.qcow2", Outcome::Same),
    ("rebase -b other.qcow2 -F qcow2 plain.qcow2", Outcome::Same),
    ("rebase -b '' plain.qcow2", Outcome::Same),
    ("rebase -u -b same.raw -F raw plain.qcow2", Outcome::Same),
    ("bitmap --add marked.qcow2 new", Outcome::Same),
    ("bitmap --remove marked.qcow2 old", Outcome::Same),
    ("bitmap --merge kept marked.qcow2 old", Outcome::Same),
    ("amend -o lazy_refcounts=on marked.qcow2", Outcome::Same),
    ("amend -o compat=0.10 marked.qcow2", Outcome::Same),
    ("check -r all hurt.qcow2", Outcome::Same),
    ("check -r leaks hurt.qcow2", Outcome::Same),
];

/// Images for the commands: `top` and `plain` lie on `base`, `hurt` has wrong counts, `marked` has bitmaps and
/// zero clusters.
fn images(dir: &Scratch) {
    let fill = |name: &str, step: usize, word: u64| {
        let image = open(&dir.path(name), &OpenOptions::default()).unwrap();
        for place in (0..6000).step_by(step) {
            image.backend().write((place as u64) * SECTOR, &sectors(word + place as u64, 5)).unwrap();
        }
    };
    std::fs::write(dir.path("base.raw"), sectors(1, 9000)).unwrap();
    dir.good("convert -O qcow2 -o cluster_size=4k base.raw base.qcow2");
    std::fs::copy(dir.path("base.raw"), dir.path("same.raw")).unwrap();
    dir.good("create -f qcow2 other.qcow2 5M");
    fill("other.qcow2", 7, 1 << 20);
    for name in ["top.qcow2", "plain.qcow2"] {
        dir.good(&format!("create -f qcow2 -o cluster_size=4k -b base.qcow2 -F qcow2 {name} 5M"));
        fill(name, 17, 1 << 30);
    }
    std::fs::copy(dir.path("plain.qcow2"), dir.path("first.qcow2")).unwrap();
    dir.good("snapshot -c first top.qcow2");
    fill("top.qcow2", 29, 1 << 40);
    std::fs::copy(dir.path("plain.qcow2"), dir.path("hurt.qcow2")).unwrap();
    std::fs::copy(dir.path("plain.qcow2"), dir.path("marked.qcow2")).unwrap();
    let marked = open(&dir.path("marked.qcow2"), &OpenOptions::default()).unwrap();
    marked.backend().write_zeroes(100 * SECTOR, 2000 * SECTOR, true).unwrap();
    drop(marked);
    dir.good("bitmap --add marked.qcow2 old");
    dir.good("bitmap --add -g 512 marked.qcow2 kept");
    let file = std::fs::File::options().read(true).write(true).open(dir.path("hurt.qcow2")).unwrap();
    let number = |at: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    };
    // The refcount table's offset stands at byte 48; its first entry is that of the first block (qcow2.rst).
    let block = number(number(48));
    for (cluster, count) in [(10, 0u16), (20, 0), (30, 5), (1500, 1)] {
        file.write_all_at(&count.to_be_bytes(), block + 2 * cluster).unwrap();
    }
}

fn content(dir: &Scratch, name: &str) -> Vec<u8> {
    let options = OpenOptions { read_only: true, ..OpenOptions::default() };
    let image = open(&dir.path(name), &options).unwrap_or_else(|e| panic!("{name}: {e}"));
    read_all(&*image.backend())
}

fn command(dir: &Scratch, line: &str) -> Command {
    let mut command = Command::new(super::PROGRAM);
    let words = line.split_whitespace().map(|w| w.trim_matches('\''));
    command.args(words).current_dir(&dir.0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn kill_command(dir: &Scratch, line: &str, outcome: &Outcome, delay: Duration, told: &str) {
    let name = line.split_whitespace().find(|w| w.ends_with(".qcow2") && !w.starts_with("other")).unwrap();
    let before = content(dir, name);
    let mut child = command(dir, line).spawn().unwrap();
    std::thread::sleep(delay);
    child.kill().unwrap();
    child.wait().unwrap();
    if line.starts_with("check") {
        // Whatever it left, it can be run again.
        assert_eq!(dir.ours("check -r all hurt.qcow2").status, 0, "{told}");
    }
    sound(dir, name, told);
    sound(dir, "base.qcow2", told);
    let now = content(dir, name);
    let good = match outcome {
        Outcome::Same => now == before,
        Outcome::Or(other) => now == before || now == content(dir, other),
        Outcome::Until(end) => {
            let end = (*end as usize).min(before.len());
            let behind = before[end..].iter().zip(now.get(end..).unwrap_or_default());
            now.len() >= end
                && now[..end] == before[..end]
                && behind.into_iter().all(|(b, n)| b == n || *n == 0)
                && now.iter().skip(before.len()).all(|&n| n == 0)
        }
    };
    assert!(good, "{told}: the content is neither the old nor the new one");
    // And the image is of use: the same command does its work now, unless it had done so already.
    let again = dir.ours(line);
    let done = [
        ("snapshot -d", "no snapshot"),
        ("bitmap --add", "there is a bitmap 'new' already"),
        ("bitmap --remove", "no bitmap 'old'"),
    ];
    let done = done.iter().any(|(begin, error)| line.starts_with(begin) && again.err.contains(error));
    assert!(again.status == 0 || done, "{told}: {again:?}");
    sound(dir, name, told);
}

#[test]
fn commands_are_killed() {
    let (model_images, dir) = (Scratch::new(), Scratch::new());
    images(&model_images);
    let (wanted, base) = (rounds("BROLGA_KILLS", 24), seed());
    let mut random = Random::new(base ^ 77);
    let restore = || {
        for entry in std::fs::read_dir(&model_images.0).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), dir.path(entry.file_name().to_str().unwrap())).unwrap();
        }
    };
    let mut times = Vec::new();
    for (line, _) in COMMANDS {
        restore();
        let start = std::time::Instant::now();
        let status = command(&dir, line).status().unwrap().code().unwrap();
        assert_eq!(status, if line.starts_with("check -r leaks") { 2 } else { 0 }, "{line}");
        times.push(start.elapsed());
    }
    for number in 0..wanted {
        let index = number as usize % COMMANDS.len();
        let (line, outcome) = &COMMANDS[index];
        restore();
        let delay = Duration::from_micros(random.below(times[index].as_micros() as u64 + 1));
        let told = format!("BROLGA_SEED={base}, {line} killed after {delay:?} (kill {number})");
        kill_command(&dir, line, outcome, delay, &told);
    }
    eprintln!("{wanted} commands killed");
}
