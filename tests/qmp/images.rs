//! Images that change while a disk is used: snapshots of several at a moment, copies, chains that grow and shrink. The disk is
//! used by its registers, through the monitor.

use super::harness::{Client, LONG, Machine, Scratch};
use serde_json::{Value, json};
use std::fs;
use std::process::{Command, Stdio};
use std::time::Instant;

const SIZE: usize = 1 << 20;

pub fn img(args: &[&str]) {
    let done = Command::new(env!("CARGO_BIN_EXE_brolga-img")).args(args).stdout(Stdio::null()).status();
    assert!(done.expect("brolga-img").success(), "{args:?}");
}

/// What an image shows, by sectors' first bytes.
pub fn content(scratch: &Scratch, name: &str, sector: usize) -> u8 {
    let (from, to) = (scratch.path(name), scratch.path("content"));
    img(&["convert", "-O", "raw", &from, &to]);
    fs::read(to).expect("the content")[sector * 512]
}

/// A machine with the disk `a` as first IDE disk, named `d`, and its folder.
fn machine(name: &str) -> (Machine, Scratch) {
    let scratch = Scratch::new(&format!("{name}-images"));
    let path = scratch.path("a");
    img(&["create", "-q", "-f", "qcow2", &path, "1M"]);
    let drive = format!("file={path},format=qcow2,id=d,if=ide");
    (Machine::start(name, &["-drive", &drive]), scratch)
}

/// The disk's status without its busy bit, once that is clear.
fn status(client: &mut Client) -> u64 {
    let start = Instant::now();
    loop {
        let text = client.hmp("i 0x1f7");
        let value = text.trim().rsplit("0x").next().and_then(|hex| u64::from_str_radix(hex, 16).ok());
        let value = value.unwrap_or_else(|| panic!("{text}"));
        if value & 0x80 == 0 {
            return value;
        }
        assert!(start.elapsed() < LONG, "the disk stays busy");
    }
}

fn command(client: &mut Client, sector: usize, command: u8) {
    for (port, value) in [(0x1f6, 0xe0), (0x1f2, 1), (0x1f3, sector & 255), (0x1f4, sector >> 8), (0x1f5, 0)] {
        client.hmp(&format!("o {port:#x} {value}"));
    }
    client.hmp(&format!("o 0x1f7 {command}"));
    assert_eq!(status(client) & 0x09, 0x08, "data, and no error");
}

/// Fills a sector with a byte.
pub fn write(client: &mut Client, sector: usize, byte: u8) {
    command(client, sector, 0x30);
    let word = u32::from(byte) * 0x0101_0101;
    for _ in 0..128 {
        client.hmp(&format!("o/w 0x1f0 {word}"));
    }
    assert_eq!(status(client) & 0x09, 0, "written");
}

/// A sector's first byte.
pub fn read(client: &mut Client, sector: usize) -> u8 {
    command(client, sector, 0x20);
    let words: Vec<String> = (0..128).map(|_| client.hmp("i/w 0x1f0")).collect();
    let hex = words[0].trim().rsplit("0x").next().expect("a number").to_owned();
    u32::from_str_radix(&hex, 16).expect("a number") as u8
}

/// The image that the disk has now, and how many are below it.
fn image(client: &mut Client, scratch: &Scratch) -> (String, u64) {
    let drives = client.run("query-block", json!({})).expect("drives");
    let drive =
        drives.as_array().expect("a list").iter().find(|drive| drive["device"] == "d").expect("the drive").clone();
    let file = drive["inserted"]["file"].as_str().expect("a path").to_owned();
    let folder = scratch.path("");
    (
        file.strip_prefix(&folder).unwrap_or(&file).to_owned(),
        drive["inserted"]["backing_file_depth"].as_u64().expect("a number"),
    )
}

#[test]
fn a_new_image_goes_over_the_present_one_and_back_into_it() {
    let (machine, scratch) = machine("overlay");
    let mut client = machine.client();
    write(&mut client, 1, 0x11);
    write(&mut client, 2, 0x12);
    let overlay = json!({ "device": "d", "snapshot-file": scratch.path("b"), "snapshot-node-name": "over" });
    client.run("blockdev-snapshot-sync", overlay).unwrap();
    assert_eq!(image(&mut client, &scratch), ("b".to_owned(), 1));
    write(&mut client, 1, 0x21);
    assert_eq!([1, 2, 3].map(|sector| read(&mut client, sector)), [0x21, 0x12, 0]);
    let again = json!({ "node-name": "over", "snapshot-file": scratch.path("c") });
    client.run("blockdev-snapshot-sync", again).unwrap();
    write(&mut client, 2, 0x32);
    // What the newest one has goes to the one below, which takes its place once it is told to.
    let (_, why) = client.run("block-commit", json!({ "device": "d", "base": scratch.path("c") })).unwrap_err();
    assert_eq!(why, format!("Can't find '{}' in the backing chain", scratch.path("c")));
    let to = json!({ "device": "d", "job-id": "commit", "base": scratch.path("b") });
    client.run("block-commit", to).unwrap();
    let ready = client.event("BLOCK_JOB_READY");
    assert_eq!((&ready["type"], &ready["device"]), (&json!("commit"), &json!("commit")));
    write(&mut client, 3, 0x33);
    assert_eq!(client.run("query-block-jobs", json!({})).unwrap()[0]["ready"], true);
    client.run("block-job-complete", json!({ "device": "commit" })).unwrap();
    assert!(client.event("BLOCK_JOB_COMPLETED").get("error").is_none());
    assert_eq!(image(&mut client, &scratch), ("b".to_owned(), 1));
    // What is below comes into the image.
    client.run("block-stream", json!({ "device": "d" })).unwrap();
    let done = client.event("BLOCK_JOB_COMPLETED");
    assert_eq!((&done["type"], &done["device"], &done["len"]), (&json!("stream"), &json!("d"), &json!(SIZE)));
    assert_eq!([1, 2, 3].map(|sector| read(&mut client, sector)), [0x21, 0x32, 0x33]);
    assert_eq!(image(&mut client, &scratch), ("b".to_owned(), 0));
    client.run("quit", json!({})).unwrap();
    assert!(machine.ends().success());
    assert_eq!([content(&scratch, "a", 1), content(&scratch, "a", 2)], [0x11, 0x12], "the first one is as it was");
    fs::remove_file(scratch.path("a")).expect("our own file");
    assert_eq!([1, 2, 3].map(|sector| content(&scratch, "b", sector)), [0x21, 0x32, 0x33], "it needs nothing below");
    img(&["check", "-q", &scratch.path("b")]);
}

/// Images in the middle of a chain go down into others, or come up from them to the disk's own.
#[test]
fn chains_are_shortened_in_the_middle() {
    let (machine, scratch) = machine("chain");
    let mut client = machine.client();
    write(&mut client, 1, 0x11);
    for (at, name) in ["b", "c", "e"].into_iter().enumerate() {
        assert_eq!(client.hmp(&format!("snapshot_blkdev d {}", scratch.path(name))), "");
        // Sectors of clusters of their own.
        write(&mut client, 500 * (at + 1), 0x20 + at as u8);
    }
    assert_eq!(image(&mut client, &scratch), ("e".to_owned(), 3));
    let sectors = [1, 500, 1000, 1500];
    let all = [0x11, 0x20, 0x21, 0x22];
    let why = |answer: Result<Value, (String, String)>| answer.unwrap_err().1;
    let told = why(client.run("block-stream", json!({ "device": "d", "base": "zz" })));
    assert_eq!(told, "Can't find 'zz' in the backing chain");
    assert_eq!(why(client.run("block-commit", json!({ "device": "d", "top": "zz" }))), "Top image file zz not found");
    // c goes into b, on which e rests from then on.
    let middle = json!({ "device": "d", "top": scratch.path("c"), "base": scratch.path("b") });
    client.run("block-commit", middle).unwrap();
    assert!(client.event("BLOCK_JOB_COMPLETED").get("error").is_none());
    assert_eq!(image(&mut client, &scratch), ("e".to_owned(), 2));
    assert_eq!(sectors.map(|sector| read(&mut client, sector)), all);
    // What b has comes into e, which rests on a.
    client.run("block-stream", json!({ "device": "d", "base": scratch.path("a") })).unwrap();
    assert!(client.event("BLOCK_JOB_COMPLETED").get("error").is_none());
    assert_eq!(image(&mut client, &scratch), ("e".to_owned(), 1));
    assert_eq!(sectors.map(|sector| read(&mut client, sector)), all);
    client.run("quit", json!({})).unwrap();
    assert!(machine.ends().success());
    assert_eq!([500, 1000, 1500].map(|sector| content(&scratch, "b", sector)), [0x20, 0x21, 0]);
    assert_eq!(content(&scratch, "a", 500), 0);
    fs::remove_file(scratch.path("b")).expect("our own file");
    assert_eq!(sectors.map(|sector| content(&scratch, "e", sector)), all);
    for name in ["a", "e"] {
        img(&["check", "-q", &scratch.path(name)]);
    }
}

#[test]
fn a_transaction_is_whole_or_nothing() {
    let (machine, scratch) = machine("transaction");
    let mut client = machine.client();
    let internal =
        |name: &str| json!({ "type": "blockdev-snapshot-internal-sync", "data": { "device": "d", "name": name } });
    let overlay =
        json!({ "type": "blockdev-snapshot-sync", "data": { "device": "d", "snapshot-file": scratch.path("b") } });
    write(&mut client, 1, 0x11);
    let abort = json!({ "actions": [internal("s0"), { "type": "abort", "data": {} }] });
    let (_, why) = client.run("transaction", abort).unwrap_err();
    assert_eq!(why, "Transaction aborted using Abort action");
    client.run("transaction", json!({ "actions": [internal("s1"), overlay] })).unwrap();
    write(&mut client, 1, 0x21);
    assert_eq!(image(&mut client, &scratch), ("b".to_owned(), 1));
    client.run("blockdev-snapshot-internal-sync", json!({ "device": "d", "name": "s2" })).unwrap();
    let (_, why) = client.run("blockdev-snapshot-internal-sync", json!({ "device": "d", "name": "s2" })).unwrap_err();
    assert_eq!(why, "Snapshot with name 's2' already exists on device 'd'");
    let gone = client.run("blockdev-snapshot-delete-internal-sync", json!({ "device": "d", "name": "s2" })).unwrap();
    assert_eq!(gone["name"], "s2");
    for (arguments, says) in [
        (json!({ "device": "zz", "snapshot-file": "/dev/null" }), "Cannot find device='zz'"),
        (json!({ "snapshot-file": "/dev/null" }), "Need exactly one of 'device' and 'node-name'"),
        (json!({ "device": "d", "snapshot-file": scratch.path("b") }), "cannot be over itself"),
        (json!({ "device": "d", "snapshot-file": "/nowhere/x" }), "/nowhere/x"),
        (json!({ "device": "d", "snapshot-file": "/dev/null", "format": "raw" }), "use qcow2"),
    ] {
        let (_, why) = client.run("blockdev-snapshot-sync", arguments).unwrap_err();
        assert!(why.contains(says), "{why}");
    }
    // A backup begins with the others, or not at all.
    let backup = |name: &str| {
        let data = json!({ "device": "d", "target": scratch.path(name), "sync": "full", "job-id": "backup" });
        json!({ "type": "drive-backup", "data": data })
    };
    let aborted = json!({ "actions": [backup("k1"), { "type": "abort", "data": {} }] });
    assert_eq!(client.run("transaction", aborted).unwrap_err().1, "Transaction aborted using Abort action");
    assert_eq!(client.run("query-jobs", json!({})), Ok(json!([])));
    client.run("transaction", json!({ "actions": [internal("s3"), backup("k2")] })).unwrap();
    write(&mut client, 1, 0x31);
    let done = client.event("BLOCK_JOB_COMPLETED");
    assert!(done["type"] == "backup" && done.get("error").is_none(), "{done}");
    assert_eq!(client.hmp("block_job_cancel zz"), "Error: Block job 'zz' not found\n");
    client.run("quit", json!({})).unwrap();
    assert!(machine.ends().success());
    assert_eq!(content(&scratch, "k2", 1), 0x21);
    let list = Command::new(env!("CARGO_BIN_EXE_brolga-img")).args(["snapshot", "-l", &scratch.path("a")]).output();
    let list = String::from_utf8(list.expect("brolga-img").stdout).expect("UTF-8");
    assert!(list.contains(" s1 ") && !list.contains(" s0 "), "{list}");
    assert_eq!((content(&scratch, "a", 1), content(&scratch, "b", 1)), (0x11, 0x31));
}

#[test]
fn a_backup_is_of_its_moment_and_a_mirror_follows() {
    let (machine, scratch) = machine("copies");
    let mut client = machine.client();
    let last = SIZE / 512 - 1;
    write(&mut client, 1, 0x11);
    write(&mut client, last, 0x12);
    let copy = |id: &str, target: &str| json!({ "job-id": id, "device": "d", "target": scratch.path(target), "sync": "full", "speed": 1 });
    client.run("drive-backup", copy("backup", "k")).unwrap();
    // It is slow, and does not come to the end before that changes.
    write(&mut client, last, 0x22);
    let (_, why) = client.run("drive-mirror", copy("mirror", "m")).unwrap_err();
    assert_eq!(why, "Device 'd' is in use by another job");
    assert!(client.hmp("info block-jobs").starts_with("Type backup, device backup: Completed "));
    client.run("block-job-set-speed", json!({ "device": "backup", "speed": 0 })).unwrap();
    let done = client.event("BLOCK_JOB_COMPLETED");
    assert!(done["type"] == "backup" && done["len"] == SIZE && done.get("error").is_none(), "{done}");
    let raw = json!({ "job-id": "m", "device": "d", "target": scratch.path("m"), "sync": "full", "format": "raw" });
    client.run("drive-mirror", raw).unwrap();
    client.event("BLOCK_JOB_READY");
    write(&mut client, 5, 0x55);
    let (class, _) = client.run("block-job-complete", json!({ "device": "zz" })).unwrap_err();
    assert_eq!(class, "DeviceNotActive");
    client.run("block-job-complete", json!({ "device": "m" })).unwrap();
    client.event("BLOCK_JOB_COMPLETED");
    assert_eq!(image(&mut client, &scratch), ("m".to_owned(), 0));
    write(&mut client, 6, 0x66);
    // One that is cancelled when it is ready leaves a copy, and the disk as it is; one before that is nothing.
    let qcow2 = json!({ "job-id": "n", "device": "d", "target": scratch.path("n"), "sync": "full" });
    client.run("drive-mirror", qcow2).unwrap();
    client.event("BLOCK_JOB_READY");
    client.run("block-job-cancel", json!({ "device": "n" })).unwrap();
    client.event("BLOCK_JOB_COMPLETED");
    assert_eq!(image(&mut client, &scratch).0, "m");
    client.run("drive-backup", copy("slow", "o")).unwrap();
    client.run("block-job-cancel", json!({ "device": "slow" })).unwrap();
    client.event("BLOCK_JOB_CANCELLED");
    client.run("quit", json!({})).unwrap();
    assert!(machine.ends().success());
    assert_eq!([1, last, 5].map(|sector| content(&scratch, "k", sector)), [0x11, 0x12, 0]);
    assert_eq!([1, last, 5, 6].map(|sector| content(&scratch, "n", sector)), [0x11, 0x22, 0x55, 0x66]);
    let mirror = fs::read(scratch.path("m")).expect("the mirror");
    assert_eq!([1, last, 5, 6].map(|sector| mirror[sector * 512]), [0x11, 0x22, 0x55, 0x66]);
    assert_eq!(content(&scratch, "a", 6), 0, "the disk was another one then");
}

/// What was written to a disk with `-snapshot`, or to an image over another, is kept after all.
#[test]
fn changes_are_committed_to_the_image_below() {
    let scratch = Scratch::new("committed-images");
    let [base, over, raw] = ["a", "b", "raw"].map(|name| scratch.path(name));
    img(&["create", "-q", "-f", "qcow2", &base, "1M"]);
    img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &base, &over]);
    fs::write(&raw, vec![0x77; SIZE]).expect("an image");
    let disk = format!("file={over},format=qcow2,id=d,if=ide");
    let other = format!("file={raw},format=raw,id=r,if=none,snapshot=on");
    let machine = Machine::start("committed", &["-drive", &disk, "-drive", &other]);
    let mut client = machine.client();
    write(&mut client, 1, 0x11);
    write(&mut client, 900, 0x12);
    assert_eq!(client.hmp("commit zz"), "Error: Device 'zz' not found\n");
    // Somebody else reads the image below.
    let reader = fs::File::open(&base).expect("the image");
    let lock = |kind: i32| nix::libc::flock {
        l_type: kind as i16,
        l_whence: nix::libc::SEEK_SET as i16,
        l_start: 201,
        l_len: 1,
        l_pid: 0,
    };
    nix::fcntl::fcntl(&reader, nix::fcntl::FcntlArg::F_OFD_SETLK(&lock(nix::libc::F_RDLCK))).expect("a lock");
    let told = client.hmp("commit d");
    assert!(told.starts_with("Error: 'commit' error for 'd': ") && told.contains("in use"), "{told}");
    assert_eq!([1, 900].map(|sector| read(&mut client, sector)), [0x11, 0x12]);
    // It is open for reading as before.
    assert!(client.hmp("commit d").contains("in use"));
    drop(reader);
    assert_eq!(client.hmp("commit all") + &client.hmp("commit r"), "");
    assert_eq!([1, 2, 900].map(|sector| read(&mut client, sector)), [0x11, 0, 0x12]);
    write(&mut client, 2, 0x21);
    assert_eq!(client.hmp("commit d"), "");
    write(&mut client, 3, 0x31);
    client.run("quit", json!({})).unwrap();
    assert!(machine.ends().success());
    assert_eq!([1, 2, 3, 900].map(|sector| content(&scratch, "a", sector)), [0x11, 0x21, 0, 0x12]);
    assert_eq!([1, 2, 3, 900].map(|sector| content(&scratch, "b", sector)), [0x11, 0x21, 0x31, 0x12]);
    assert_eq!(fs::read(&raw).expect("the image"), vec![0x77; SIZE]);
    [base, over].iter().for_each(|path| img(&["check", "-q", path]));
}
