//! States that are kept in disks: jobs and their events, what is refused, damaged ones.

use super::harness::{Client, LONG, Machine, Scratch};
use serde_json::{Value, json};
use std::fs;
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

fn create(scratch: &Scratch, name: &str, format: &str) -> String {
    let path = scratch.path(name);
    let mut img = Command::new(env!("CARGO_BIN_EXE_brolga-img"));
    let made = img.args(["create", "-q", "-f", format, &path, "1M"]).stdout(Stdio::null()).status();
    assert!(made.expect("brolga-img").success());
    path
}

/// A machine with qcow2 disks `a` and `b`, and the arguments that make it.
fn with_disks(name: &str, more: &[&str]) -> (Machine, Scratch, Vec<String>) {
    let scratch = Scratch::new(&format!("{name}-disks"));
    let drive = |id: &str| format!("file={},format=qcow2,id={id},if=virtio", create(&scratch, id, "qcow2"));
    let words = ["-drive".to_owned(), drive("a"), "-drive".to_owned(), drive("b")];
    let args: Vec<&str> = words.iter().map(String::as_str).chain(more.iter().copied()).collect();
    (Machine::start(name, &args), scratch, words.to_vec())
}

/// The states of job `id` from now on until it is in the last one of them.
fn states(client: &mut Client, id: &str, last: &str) -> Vec<String> {
    let mut states = Vec::new();
    while states.last().is_none_or(|state| state != last) {
        let event = client.event("JOB_STATUS_CHANGE");
        if event["id"] == id {
            states.push(event["status"].as_str().expect("a word").to_owned());
        }
    }
    states
}

fn job(client: &mut Client, id: &str) -> Value {
    let jobs = client.run("query-jobs", json!({})).unwrap();
    let all = jobs.as_array().expect("a list").clone();
    all.into_iter().find(|job| job["id"] == id).expect("the job")
}

const WELL: [&str; 5] = ["created", "running", "waiting", "pending", "concluded"];
const BADLY: [&str; 4] = ["created", "running", "aborting", "concluded"];

#[test]
fn jobs_keep_states_go_back_to_them_and_forget_them() {
    let (machine, _scratch, _) = with_disks("jobs", &[]);
    let mut client = machine.client();
    let both = |id: &str, tag: &str| json!({ "job-id": id, "tag": tag, "vmstate": "a", "devices": ["a", "b"] });
    client.run("snapshot-save", both("j1", "one")).unwrap();
    assert_eq!(states(&mut client, "j1", "concluded"), WELL);
    client.event("STOP");
    client.event("RESUME");
    let done = json!({ "id": "j1", "type": "snapshot-save", "status": "concluded", "current-progress": 1, "total-progress": 1 });
    assert_eq!(job(&mut client, "j1"), done);
    let (_, why) = client.run("snapshot-save", both("j1", "two")).unwrap_err();
    assert_eq!(why, "Job ID 'j1' already in use");
    client.run("job-dismiss", json!({ "id": "j1" })).unwrap();
    assert_eq!(states(&mut client, "j1", "null"), ["null"]);
    let (_, why) = client.run("job-dismiss", json!({ "id": "j1" })).unwrap_err();
    assert_eq!(why, "Job not found");
    for (command, arguments, error) in [
        ("snapshot-save", both("f1", "one"), "Snapshot 'one' already exists in one or more devices"),
        ("snapshot-load", both("f2", "none"), "Snapshot 'none' does not exist in one or more devices"),
        (
            "snapshot-load",
            json!({ "job-id": "f3", "tag": "one", "vmstate": "zz", "devices": ["a"] }),
            "vmstate block device 'zz' does not exist",
        ),
        (
            "snapshot-delete",
            json!({ "job-id": "f4", "tag": "one", "devices": ["a", "zz"] }),
            "No block device node 'zz'",
        ),
    ] {
        let id = arguments["job-id"].as_str().unwrap().to_owned();
        client.run(command, arguments).unwrap();
        assert_eq!(states(&mut client, &id, "concluded"), BADLY);
        assert_eq!(job(&mut client, &id)["error"], error);
    }
    client.run("stop", json!({})).unwrap();
    client.run("snapshot-load", both("j2", "one")).unwrap();
    assert_eq!(states(&mut client, "j2", "concluded"), WELL);
    let status = client.run("query-status", json!({})).unwrap();
    assert_eq!(status, json!({ "running": false, "status": "paused" }), "it does not go on by itself");
    client.run("cont", json!({})).unwrap();
    client.run("snapshot-delete", json!({ "job-id": "j3", "tag": "one", "devices": ["a", "b"] })).unwrap();
    assert_eq!(states(&mut client, "j3", "concluded"), WELL);
    assert_eq!(client.hmp("info snapshots"), "There is no snapshot available.\n");
}

#[test]
fn people_keep_states_by_name() {
    let (machine, _scratch, _) = with_disks("people", &[]);
    let mut client = machine.client();
    assert_eq!(client.hmp("savevm first"), "");
    assert_eq!(client.hmp("savevm"), "");
    assert_eq!(client.hmp("savevm first"), "", "it takes the place of the one before");
    let list = client.hmp("info snapshots");
    let lines: Vec<&str> = list.lines().collect();
    assert_eq!(lines[0], "List of snapshots present on all disks:");
    assert_eq!(lines[1], "ID      TAG               VM_SIZE                DATE        VM_CLOCK     ICOUNT");
    assert!(
        lines.len() == 4 && lines[2].starts_with("--      vm-2") && lines[3].starts_with("--      first "),
        "{list}"
    );
    assert_eq!(client.hmp("loadvm first"), "");
    assert_eq!(client.hmp("delvm first"), "");
    assert_eq!(client.hmp("loadvm first"), "Error: Snapshot 'first' does not exist in one or more devices\n");
    assert!(client.hmp("loadvm").starts_with("loadvm: name expected"));
    // Only on one disk: it can be seen, and not be gone back to.
    client.run("snapshot-save", json!({ "job-id": "j", "tag": "half", "vmstate": "a", "devices": ["a"] })).unwrap();
    assert_eq!(states(&mut client, "j", "concluded"), WELL);
    assert!(client.hmp("info snapshots").contains("List of partial (non-loadable) snapshots on 'a':\n"));
    assert!(client.hmp("loadvm half").contains("does not exist in one or more devices"));
}

#[test]
fn what_keeps_no_states_is_named() {
    let machine = Machine::start("no-disk", &["-S"]);
    let mut client = machine.client();
    assert_eq!(client.hmp("savevm x"), "Error: no block device can store vmstate for snapshot\n");
    assert!(client.hmp("info snapshots").contains("no block device supports snapshots"));
    let scratch = Scratch::new("raw-disks");
    let raw = format!("file={},format=raw,id=plain", create(&scratch, "raw", "raw"));
    let good = format!("file={},format=qcow2,id=good", create(&scratch, "good", "qcow2"));
    let machine = Machine::start("raw", &["-drive", &good, "-drive", &raw]);
    let mut client = machine.client();
    let answer = client.hmp("savevm x");
    assert!(
        answer.starts_with("Error: Device 'plain' is writable but does not support snapshots; convert "),
        "{answer}"
    );
    assert_eq!(client.run("query-status", json!({})).unwrap()["status"], "running");
    // One that cannot be written does not matter.
    drop((client, machine));
    let machine = Machine::start("raw2", &["-drive", &good, "-drive", &format!("{raw},snapshot=on")]);
    assert_eq!(machine.client().hmp("savevm x"), "");
}

/// Starts a machine that has to give up: its one line of error.
fn refused(args: &[String], more: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_brolga"));
    let mut child = command
        .args(["-display", "none", "-nodefaults", "-device", "loader,data=0xfdebf4fa,data-len=4,addr=0x1000"])
        .args(["-device", "loader,addr=0x1000,cpu-num=0"])
        .args(args)
        .args(more)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let start = Instant::now();
    while child.try_wait().expect("our own child").is_none() {
        if start.elapsed() > LONG {
            let _ = child.kill();
        }
        sleep(Duration::from_millis(5));
    }
    let Output { status, stderr, .. } = child.wait_with_output().expect("its output");
    let text = String::from_utf8(stderr).expect("UTF-8");
    assert!(status.code() == Some(1) && text.lines().count() == 1, "{status}: {text}");
    text
}

#[test]
fn states_of_other_machines_and_damaged_ones_change_nothing() {
    let (machine, scratch, drives) = with_disks("damaged", &[]);
    let mut client = machine.client();
    assert_eq!(client.hmp("savevm good"), "");
    assert_eq!(client.hmp("savevm bad"), "");
    // A state's first bytes are its magic and version; the second state is damaged behind them.
    let path = scratch.path("a");
    let mut bytes = fs::read(&path).expect("the image");
    let magic = b"brolga machine\r\n";
    let places: Vec<usize> = (0..bytes.len()).step_by(512).filter(|at| bytes[*at..].starts_with(magic)).collect();
    assert_eq!(places.len(), 2, "{places:?}");
    let written = |bytes: &[u8]| fs::write(&path, bytes).expect("the image");
    bytes[places[1] + 300] ^= 0x10;
    written(&bytes);
    let answer = client.hmp("loadvm bad");
    assert!(answer.starts_with("Error: 'bad' on a: it is damaged: section 'mach'"), "{answer}");
    bytes[places[1]] = b'X';
    written(&bytes);
    assert_eq!(client.hmp("loadvm bad"), "Error: 'bad' on a: it was not saved by Brolga\n");
    assert_eq!(client.run("query-status", json!({})).unwrap()["status"], "running");
    assert_eq!(client.hmp("loadvm good"), "");
    client.run("quit", json!({})).unwrap();
    assert!(machine.ends().success());
    let one = |more: &[&str], says: &str| {
        let line = refused(&drives, more);
        assert!(line.starts_with("brolga: -loadvm ") && line.contains(says), "{line}");
    };
    one(&["-m", "16", "-loadvm", "none"], "Snapshot 'none' does not exist in one or more devices");
    one(&["-m", "16", "-loadvm", "bad"], "not saved by Brolga");
    one(&["-m", "32", "-loadvm", "good"], "a machine with -m 16M, and this one has 32M");
    one(&["-m", "16", "-smp", "2", "-loadvm", "good"], "-smp 1, and this one has 2");
    one(&["-m", "16", "-cpu", "qemu64", "-loadvm", "good"], "another -cpu");
    one(&["-m", "16", "-device", "virtio-rng-pci", "-loadvm", "good"], "a machine without the device ");
}
