//! Machines that leave one process and go on in another: a program that counts, and writes all over its memory meanwhile,
//! tells every number once.

use super::descriptors::hand;
use super::harness::{Client, LONG, Machine, Scratch};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Every how many numbers the program tells one.
const EVERY: u32 = 0x1000;

/// Counts in EAX, stores each number at the next of sixteen pages, and writes each 4096th to port 0xE9, its low byte first.
const PROGRAM: &[u8] = &[
    0xfa, // cli
    0x66, 0x31, 0xc0, // xor eax, eax
    0xbb, 0x00, 0x20, // mov bx, 0x2000
    0x8e, 0xdb, // mov ds, bx
    0x66, 0x40, // next: inc eax
    0x66, 0x89, 0x05, // mov [di], eax
    0x81, 0xc7, 0x00, 0x10, // add di, 0x1000
    0xa9, 0xff, 0x0f, // test ax, 0xfff
    0x75, 0xf2, // jnz next
    0x66, 0x89, 0xc5, // mov ebp, eax
    0xba, 0xe9, 0x00, // mov dx, 0xe9
    0xb9, 0x04, 0x00, // mov cx, 4
    0xee, // out: out dx, al
    0x66, 0xc1, 0xe8, 0x08, // shr eax, 8
    0xe2, 0xf9, // loop out
    0x66, 0x89, 0xe8, // mov eax, ebp
    0xeb, 0xdd, // jmp next
];

/// What two processes and the way between them need.
struct Stage {
    name: &'static str,
    files: Scratch,
}

impl Stage {
    fn new(name: &'static str) -> Self {
        let files = Scratch::new(&format!("migration-{name}"));
        std::fs::write(files.path("program"), PROGRAM).expect("a file");
        let mut make = Command::new(env!("CARGO_BIN_EXE_brolga-img"));
        let made = make.args(["create", "-q", "-f", "qcow2", &files.path("disk"), "4M"]).status();
        assert!(made.expect("brolga-img").success());
        Self { name, files }
    }

    /// A process whose program tells what it counts in the file `says`.
    fn process(&self, says: &str, more: &[&str]) -> (Machine, Client) {
        let program = self.files.path("program");
        let disk = format!("file={},format=qcow2,if=virtio,id=d0", self.files.path("disk"));
        let loader = format!("loader,file={program},addr=0x1000,force-raw=on");
        let start = ["-device", &loader, "-device", "loader,addr=0x1000,cpu-num=0"];
        let console = format!("file:{}", self.files.path(says));
        let options = [&["-debugcon", &console, "-drive", &disk][..], &start, more].concat();
        let machine = Machine::start_plain(&format!("{}-{says}", self.name), &options);
        let mut client = machine.client();
        let on = json!({ "capabilities": [{ "capability": "events", "state": true }] });
        let set = client.run("migrate-set-capabilities", on);
        // It may be arriving already.
        assert!(set.is_ok() || more.contains(&"-incoming"), "{set:?}");
        (machine, client)
    }

    /// What a process told so far.
    fn told(&self, says: &str) -> Vec<u8> {
        std::fs::read(self.files.path(says)).unwrap_or_default()
    }

    /// Waits until a process has told some more.
    #[track_caller]
    fn goes_on(&self, says: &str) {
        let (before, start) = (self.told(says).len(), Instant::now());
        while self.told(says).len() < before + 40 {
            assert!(start.elapsed() < LONG, "{says} is silent");
            sleep(Duration::from_millis(5));
        }
    }

    /// One after the other they told each number once.
    #[track_caller]
    fn check(&self, all: &[&str]) {
        let bytes: Vec<u8> = all.iter().flat_map(|says| self.told(says)).collect();
        let numbers = bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap()));
        let wrong = numbers.zip(1..).find(|(found, n)| *found != n * EVERY);
        assert_eq!(wrong, None, "the first number that is wrong, and its place");
    }
}

/// Waits for the migration's end: its status.
fn end(client: &mut Client) -> String {
    let start = Instant::now();
    loop {
        let status = client.run("query-migrate", json!({})).expect("it is told")["status"].take();
        match status.as_str() {
            Some("completed" | "failed" | "cancelled") => return status.as_str().unwrap().to_owned(),
            _ => assert!(start.elapsed() < LONG, "{status}"),
        }
        sleep(Duration::from_millis(10));
    }
}

fn state(client: &mut Client) -> Value {
    client.run("query-status", json!({})).expect("it is told")["status"].take()
}

/// The data of all `MIGRATION` events up to one that says `last`.
fn statuses(client: &mut Client, last: &str) -> Vec<String> {
    let mut seen = Vec::new();
    while seen.last().is_none_or(|status| status != last) {
        seen.push(client.event("MIGRATION")["status"].as_str().expect("text").to_owned());
    }
    seen
}

/// Of what else the machine has.
const MORE: &[&str] = &[
    "-smp",
    "2",
    "-device",
    "virtio-serial-pci",
    "-device",
    "virtio-balloon-pci",
    "-device",
    "virtio-rng-pci",
    "-nic",
    "user,model=e1000",
];

/// From one process to another that listens at `uri`.
fn over(name: &'static str, incoming: &str, capability: Option<&str>) {
    let stage = Stage::new(name);
    let uri = |uri: &str| uri.replace("DIR", &stage.files.path("socket"));
    let (_one, mut here) = stage.process("one", MORE);
    let (two, mut there) = stage.process("two", &[MORE, &["-incoming", "defer"]].concat());
    stage.goes_on("one");
    assert_eq!(state(&mut there), "inmigrate");
    there.run("migrate-incoming", json!({ "uri": uri(incoming) })).expect("it listens");
    let at = there.run("query-migrate", json!({})).expect("it is told")["socket-address"][0].take();
    let to = match at["type"].as_str() {
        Some("inet") => format!("tcp:127.0.0.1:{}", at["port"].as_str().expect("a port")),
        _ => uri(incoming),
    };
    if let Some(name) = capability {
        let on = json!({ "capabilities": [{ "capability": name, "state": true }] });
        here.run("migrate-set-capabilities", on).expect("it is known");
    }
    here.run("migrate", json!({ "uri": to })).expect("it begins");
    if capability == Some("pause-before-switchover") {
        while here.event("MIGRATION")["status"] != "pre-switchover" {}
        assert_eq!(state(&mut here), "finish-migrate");
        assert!(here.run("cont", json!({})).unwrap_err().1.contains("not finalized"));
        here.run("migrate-continue", json!({ "state": "pre-switchover" })).expect("it waits for that");
        assert_eq!(statuses(&mut here, "completed"), ["device", "completed"]);
    } else {
        assert_eq!(statuses(&mut here, "completed"), ["setup", "active", "device", "completed"]);
    }
    here.event("STOP");
    there.event("RESUME");
    assert_eq!(statuses(&mut there, "completed"), ["setup", "active", "completed"]);
    assert_eq!((state(&mut here), state(&mut there)), (json!("postmigrate"), json!("running")));
    stage.goes_on("two");
    let ram = here.run("query-migrate", json!({})).unwrap()["ram"].take();
    assert!(ram["transferred"].as_u64() > Some(1000) && ram["normal"].as_u64() >= Some(16), "{ram}");
    assert_eq!(ram["remaining"], 0);
    // The disk is the other one's: it cannot go on here.
    let (_, why) = here.run("cont", json!({})).unwrap_err();
    assert!(why.contains("in use by brolga") && why.contains(&two.pid().to_string()), "{why}");
    let (_, why) = here.run("migrate", json!({ "uri": to })).unwrap_err();
    assert!(why.contains("paused due to previous migration"), "{why}");
    assert!(here.hmp("savevm x").contains("another process's"));
    there.run("stop", json!({})).expect("it stops");
    assert_eq!(there.hmp("savevm arrived"), "", "its disk can be written");
    stage.check(&["one", "two"]);
    // Once the other has ended, this one could go on.
    drop(two);
    here.run("cont", json!({})).expect("the disk is free");
    assert_eq!(state(&mut here), "running");
}

#[test]
fn by_a_unix_socket() {
    over("unix", "unix:DIR", None);
}

#[test]
fn by_tcp_when_the_other_side_has_answered() {
    over("tcp", "tcp:127.0.0.1:0", Some("return-path"));
}

#[test]
fn when_it_is_told_to_go() {
    over("pause", "unix:DIR", Some("pause-before-switchover"));
}

/// Through a program, and through a file with something before it.
#[test]
fn by_programs_and_files() {
    let stage = Stage::new("files");
    let kept = stage.files.path("kept");
    let ways = [
        (format!("exec:gzip -c >{kept}"), format!("exec:gzip -dc {kept}")),
        (format!("file:{kept},offset=4k"), format!("file:{kept},offset=0x1000")),
    ];
    let (mut last, mut names) = (stage.process("p0", &[]), vec!["p0".to_owned()]);
    for (n, (out, back)) in ways.into_iter().enumerate() {
        File::create(&kept).and_then(|mut file| file.write_all(b"somebody else's")).expect("a file");
        stage.goes_on(&names[n]);
        assert_eq!(last.1.hmp(&format!("migrate -d \"{out}\"")), "");
        assert_eq!(end(&mut last.1), "completed", "{out}");
        assert!(last.1.hmp("info migrate").contains("Migration status: completed"));
        drop(last);
        let name = format!("p{}", n + 1);
        // It is loaded, and waits.
        last = stage.process(&name, &["-incoming", &back, "-S"]);
        assert_eq!(end(&mut last.1), "completed");
        assert_eq!(state(&mut last.1), "paused");
        assert_eq!(stage.told(&name).len(), 0);
        last.1.run("cont", json!({})).expect("it can run");
        names.push(name);
    }
    assert!(std::fs::read(&kept).expect("it is there").starts_with(b"somebody else's"));
    stage.goes_on(&names[2]);
    last.1.run("stop", json!({})).expect("it stops");
    // Nothing is told twice, and nothing left out.
    stage.check(&names.iter().map(String::as_str).collect::<Vec<_>>());
}

/// As libvirt saves and restores a domain: through descriptors that it hands over, the machine stopped before.
#[test]
fn by_descriptors_that_were_handed_over() {
    let stage = Stage::new("descriptors");
    let (one, mut here) = stage.process("one", &[]);
    stage.goes_on("one");
    here.run("stop", json!({})).expect("it stops");
    let file = File::create(stage.files.path("kept")).expect("a file");
    hand(&mut here, "getfd", json!({ "fdname": "migrate" }), &file).expect("it is kept");
    let save = json!({ "uri": "fd:migrate", "detach": true, "resume": false });
    here.run("migrate", save).expect("it begins");
    assert_eq!(end(&mut here), "completed");
    drop((one, here));
    let (_two, mut there) = stage.process("two", &["-incoming", "defer", "-S"]);
    let file = File::open(stage.files.path("kept")).expect("it is there");
    hand(&mut there, "getfd", json!({ "fdname": "back" }), &file).expect("it is kept");
    let address = json!({ "transport": "socket", "type": "fd", "str": "back" });
    let channels = json!({ "channels": [{ "channel-type": "main", "addr": address }] });
    there.run("migrate-incoming", channels).expect("it begins");
    assert_eq!(end(&mut there), "completed");
    // It stood when it left, and stands here.
    assert_eq!(state(&mut there), "paused");
    there.run("cont", json!({})).expect("it can run");
    stage.goes_on("two");
    stage.check(&["one", "two"]);
}

/// What was given up, or went wrong, leaves the machine as it was.
#[test]
fn it_stays_when_it_cannot_go() {
    let stage = Stage::new("stays");
    let (_one, mut here) = stage.process("one", &[]);
    stage.goes_on("one");
    let mut refused = |uri: &str, word: &str| {
        here.run("migrate", json!({ "uri": uri })).expect("it begins");
        assert_eq!(end(&mut here), "failed", "{uri}");
        let why = here.run("query-migrate", json!({})).unwrap()["error-desc"].take();
        assert!(why.as_str().is_some_and(|why| why.contains(word)), "{uri}: {why}");
        assert_eq!(state(&mut here), "running");
        stage.goes_on("one");
    };
    refused(&format!("unix:{}", stage.files.path("nobody")), "Failed to connect");
    refused("fd:nothing", "has not been found");
    refused("exec:head -c 10000 >/dev/null", "roken pipe");
    refused("exec:cat >/dev/null; exit 3", "exit status: 3");
    refused("file:/dev/full", "o space left");
    // Nobody reads; then nobody is there any more.
    let listener = UnixListener::bind(stage.files.path("deaf")).expect("a socket");
    let slow = json!({ "max-bandwidth": 4096 });
    here.run("migrate-set-parameters", slow).expect("it is known");
    here.run("migrate", json!({ "uri": format!("unix:{}", stage.files.path("deaf")) })).expect("it begins");
    let mut peer = listener.accept().expect("it comes").0;
    let again = here.run("migrate", json!({ "uri": "exec:cat" })).unwrap_err().1;
    assert!(again.contains("in progress"), "{again}");
    peer.read_exact(&mut [0; 100]).expect("it sends");
    // A guest that got no time meanwhile has changed nothing: then what is not memory moves already.
    let status = here.run("query-migrate", json!({})).unwrap()["status"].take();
    assert!(status == "active" || status == "device", "{status}");
    here.run("migrate_cancel", json!({})).expect("it can be cancelled");
    assert_eq!(end(&mut here), "cancelled");
    assert!(statuses(&mut here, "cancelled").ends_with(&["cancelling".into(), "cancelled".into()]));
    stage.goes_on("one");
    here.run("migrate-set-parameters", json!({ "max-bandwidth": 0 })).expect("it is known");
    let again = here.hmp("savevm still-here");
    assert_eq!(again, "", "its disk is its own");
    stage.check(&["one"]);
}

/// The other side ends after all has been sent, and before it has answered.
#[test]
fn it_stays_when_nobody_answers() {
    let stage = Stage::new("answers");
    let (_one, mut here) = stage.process("one", &[]);
    stage.goes_on("one");
    let on = json!({ "capabilities": [{ "capability": "return-path", "state": true }] });
    here.run("migrate-set-capabilities", on).expect("it is known");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its address").port();
    here.run("migrate", json!({ "uri": format!("tcp:127.0.0.1:{port}") })).expect("it begins");
    let mut peer = listener.accept().expect("it comes").0;
    peer.set_read_timeout(Some(Duration::from_millis(500))).expect("a socket");
    let mut all = Vec::new();
    // It ends with the silence of who waits for an answer.
    assert!(peer.read_to_end(&mut all).is_err() && all.len() > 10_000);
    assert_eq!(state(&mut here), "finish-migrate");
    drop(peer);
    assert_eq!(end(&mut here), "failed");
    assert_eq!(state(&mut here), "running");
    stage.goes_on("one");
    stage.check(&["one"]);
    assert_eq!(here.hmp("savevm still-here"), "");
}

/// What arrives is no machine, or not all of one, or another one: one line, status 1.
#[test]
fn what_does_not_arrive_whole_ends_the_process() {
    let stage = Stage::new("bad");
    let (one, mut here) = stage.process("one", &[]);
    let good = stage.files.path("good");
    here.run("migrate", json!({ "uri": format!("file:{good}") })).expect("it begins");
    assert_eq!(end(&mut here), "completed");
    drop((here, one));
    let bytes = std::fs::read(&good).expect("it is there");
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 4;
    let cases: [(&[u8], &[&str], &str); 7] = [
        (b"", &[], "it was not saved by Brolga"),
        (b"garbage that is long enough to be a header", &[], "it was not saved by Brolga"),
        (b"QEVM\0\0\0\x03\x07\0\0\0\x0cpc-i440fx-10.0", &[], "it is QEMU's"),
        (&bytes[..bytes.len() - 9], &[], "it ends in the middle"),
        (&bytes[..bytes.len() / 3], &[], "it ends in the middle"),
        (&flipped, &[], "it is damaged"),
        (&bytes, &["-device", "virtio-rng-pci"], "without the device"),
    ];
    let bad = stage.files.path("bad");
    for (bytes, more, word) in cases {
        std::fs::write(&bad, bytes).expect("a file");
        let uri = format!("file:{bad}");
        let options = [&["-incoming", &uri][..], more].concat();
        let disk = format!("file={},format=qcow2,if=virtio,id=d0", stage.files.path("disk"));
        let output = Command::new("timeout")
            .args(["60", env!("CARGO_BIN_EXE_brolga"), "-m", "16", "-display", "none", "-nodefaults", "-drive", &disk])
            .args(["-debugcon", "null", "-device", "loader,addr=0x1000,cpu-num=0"])
            .args(options)
            .output()
            .expect("it starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{word}: {errors}");
        assert!(errors.starts_with("brolga: incoming migration: ") && errors.lines().count() == 1, "{errors}");
        assert!(errors.contains(word), "{errors}");
    }
    // With exit-on-error=false it is told, and the next one may come.
    let (_two, mut there) = stage.process("two", &["-incoming", "defer"]);
    let from = |path: &str| json!({ "uri": format!("file:{path}"), "exit-on-error": false });
    std::fs::write(&bad, b"garbage").expect("a file");
    there.run("migrate-incoming", from(&bad)).expect("it begins");
    assert_eq!(end(&mut there), "failed");
    assert_eq!(state(&mut there), "inmigrate");
    there.run("migrate-incoming", from(&good)).expect("it begins");
    assert_eq!(end(&mut there), "completed");
    stage.goes_on("two");
    stage.check(&["one", "two"]);
}
