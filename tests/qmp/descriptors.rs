//! Descriptors that clients hand over through the socket, and files that sets of them stand for.

use super::harness::{Client, Machine, Scratch};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{IoSlice, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

type Answer = Result<Value, (String, String)>;

/// Runs a command that a descriptor comes along with.
pub fn hand(client: &mut Client, command: &str, arguments: Value, descriptor: &impl AsFd) -> Answer {
    let message = format!("{}\n", json!({ "execute": command, "arguments": arguments, "id": command }));
    let descriptors = [descriptor.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    let parts = [IoSlice::new(message.as_bytes())];
    let sent = sendmsg(&client.stream, &parts, &mut control, SendFlags::empty()).expect("the program listens");
    assert_eq!(sent, message.len());
    let answer = client.answer();
    match answer.get("return") {
        Some(value) => Ok(value.clone()),
        None => Err(super::harness::error(&answer)),
    }
}

fn refused(answer: Answer) -> String {
    let (class, desc) = answer.expect_err("it is refused");
    assert_eq!(class, "GenericError", "{desc}");
    desc
}

fn file(scratch: &Scratch, name: &str) -> File {
    File::options().read(true).write(true).create(true).truncate(true).open(scratch.path(name)).expect("a file")
}

fn text(file: &mut File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("it can be read");
    bytes
}

#[test]
fn descriptors_are_kept_by_name() {
    let scratch = Scratch::new("getfd-files");
    let machine = Machine::start("getfd", &["-S"]);
    let mut client = machine.client();
    let mut dump = file(&scratch, "dump");
    let name = |name: &str| json!({ "fdname": name });
    assert_eq!(refused(client.run("getfd", name("a"))), "No file descriptor supplied via SCM_RIGHTS");
    let told = refused(hand(&mut client, "getfd", name("1a"), &dump));
    assert_eq!(told, "Parameter 'fdname' expects a name not starting with a digit");
    // One that came with a command that has no use for it is gone.
    assert!(hand(&mut client, "query-status", json!({}), &dump).is_ok());
    assert!(client.run("query-status", json!({})).is_ok());
    assert_eq!(hand(&mut client, "getfd", name("a"), &dump), Ok(json!({})));
    assert_eq!(client.run("closefd", name("a")), Ok(json!({})));
    assert_eq!(refused(client.run("closefd", name("a"))), "File descriptor named 'a' not found");
    assert_eq!(client.hmp("closefd a"), "Error: File descriptor named 'a' not found\n");
    assert!(client.hmp("getfd a").contains("No file descriptor supplied"));
    hand(&mut client, "getfd", name("d"), &dump).unwrap();
    let protocol = json!({ "paging": false, "protocol": "fd:d" });
    client.run("dump-guest-memory", protocol.clone()).unwrap();
    assert!(text(&mut dump).starts_with(b"\x7fELF"));
    assert_eq!(refused(client.run("dump-guest-memory", protocol)), "File descriptor named 'd' has not been found");
    // A connection that somebody else has made.
    let (near, mut far) = UnixStream::pair().unwrap();
    far.set_read_timeout(Some(super::harness::LONG)).unwrap();
    hand(&mut client, "getfd", name("s"), &near).unwrap();
    drop(near);
    let address = json!({ "type": "fd", "data": { "str": "s" } });
    let backend = json!({ "type": "socket", "data": { "addr": address, "server": false } });
    let add = json!({ "id": "c", "backend": backend });
    client.run("chardev-add", add.clone()).unwrap();
    let told = refused(client.run("chardev-add", json!({ "id": "c2", "backend": backend })));
    assert_eq!(told, "Failed to add chardev 'c2': File descriptor named 's' has not been found");
    client.run("chardev-remove", json!({ "id": "c" })).unwrap();
    assert_eq!(far.read(&mut [0]).unwrap(), 0, "it is closed with the host end");
}

#[test]
fn sets_stand_for_files() {
    let scratch = Scratch::new("fdset-files");
    let machine = Machine::start("fdset", &["-S", "-vga", "std"]);
    let mut client = machine.client();
    let mut saved = file(&scratch, "saved");
    assert_eq!(refused(client.run("add-fd", json!({}))), "No file descriptor supplied via SCM_RIGHTS");
    let first = hand(&mut client, "add-fd", json!({}), &saved).unwrap();
    assert_eq!(first["fdset-id"], 0);
    let told = refused(hand(&mut client, "add-fd", json!({ "fdset-id": -5 }), &saved));
    assert_eq!(told, "Parameter 'fdset-id' expects a non-negative value");
    let readable = File::open(scratch.path("saved")).unwrap();
    let only = hand(&mut client, "add-fd", json!({ "fdset-id": 7, "opaque": "ro" }), &readable).unwrap();
    let sets = client.run("query-fdsets", json!({})).unwrap();
    let expected = json!([
        { "fdset-id": 0, "fds": [{ "fd": first["fd"] }] },
        { "fdset-id": 7, "fds": [{ "fd": only["fd"], "opaque": "ro" }] },
    ]);
    assert_eq!(sets, expected);
    let save = |name: &str| json!({ "val": 0x1000, "size": 4, "filename": name });
    client.run("pmemsave", save("/dev/fdset/0")).unwrap();
    assert_eq!(text(&mut saved), [0xfa, 0xf4, 0xeb, 0xfd]);
    assert!(refused(client.run("pmemsave", save("/dev/fdset/7"))).contains("/dev/fdset/7"));
    assert!(refused(client.run("pmemsave", save("/dev/fdset/9"))).contains("/dev/fdset/9"));
    let mut picture = file(&scratch, "picture");
    hand(&mut client, "add-fd", json!({ "fdset-id": 3 }), &picture).unwrap();
    client.run("screendump", json!({ "filename": "/dev/fdset/3", "format": "png" })).unwrap();
    assert!(text(&mut picture).starts_with(b"\x89PNG"));
    // An image, whose name nobody knows.
    let disk = file(&scratch, "disk");
    disk.set_len(1 << 20).unwrap();
    std::fs::remove_file(scratch.path("disk")).unwrap();
    hand(&mut client, "add-fd", json!({ "fdset-id": 4 }), &disk).unwrap();
    let node = |set: u32| {
        let filename = format!("/dev/fdset/{set}");
        json!({ "driver": "raw", "node-name": "n", "file": { "driver": "file", "filename": filename } })
    };
    assert!(refused(client.run("blockdev-add", node(7))).contains("matching flags=0x2"));
    assert!(refused(client.run("blockdev-add", node(9))).contains("ailed to find fdset /dev/fdset/9"));
    client.run("blockdev-add", node(4)).unwrap();
    let nodes = client.run("query-named-block-nodes", json!({})).unwrap();
    let found = nodes.as_array().unwrap().iter().find(|node| node["node-name"] == "n").expect("the node");
    assert_eq!(found["image"]["virtual-size"], 1 << 20);
    // What is open stays so when the set goes.
    client.run("remove-fd", json!({ "fdset-id": 4 })).unwrap();
    client.run("blockdev-del", json!({ "node-name": "n" })).unwrap();
    assert!(client.run("blockdev-add", node(4)).is_err());
    let mut output = file(&scratch, "output");
    hand(&mut client, "add-fd", json!({ "fdset-id": 5 }), &output).unwrap();
    let backend = json!({ "type": "file", "data": { "out": "/dev/fdset/5" } });
    client.run("chardev-add", json!({ "id": "c", "backend": backend })).unwrap();
    client.run("device_add", json!({ "driver": "virtio-serial-pci" })).unwrap();
    assert!(text(&mut output).is_empty());
    let gone = |set: i64, fd: Option<i64>| match fd {
        Some(fd) => json!({ "fdset-id": set, "fd": fd }),
        None => json!({ "fdset-id": set }),
    };
    let told = refused(client.run("remove-fd", gone(99, None)));
    assert_eq!(told, "File descriptor named 'fdset-id:99' not found");
    let told = refused(client.run("remove-fd", gone(5, Some(9999))));
    assert_eq!(told, "File descriptor named 'fdset-id:5, fd:9999' not found");
    client.run("remove-fd", gone(7, only["fd"].as_i64())).unwrap();
    let left = client.run("query-fdsets", json!({})).unwrap();
    assert!(left.as_array().unwrap().iter().all(|set| set["fdset-id"] != 7 && set["fdset-id"] != 4), "{left}");
}

/// Descriptors that the program is started with, for its images and its serial port.
#[test]
fn the_command_line_has_sets_too() {
    let scratch = Scratch::new("add-fd-files");
    let (disk, mut output) = (file(&scratch, "disk"), file(&scratch, "output"));
    disk.set_len(1 << 20).unwrap();
    let mut input = String::new();
    for (file, set) in [(&disk, 1), (&output, 2)] {
        rustix::io::fcntl_setfd(file, rustix::io::FdFlags::empty()).unwrap();
        input += &format!("fd={},set={set} ", file.as_raw_fd());
    }
    let sets: Vec<&str> = input.split_whitespace().collect();
    let child = Command::new(env!("CARGO_BIN_EXE_brolga"))
        .args(["-m", "16", "-display", "none", "-nodefaults", "-S", "-monitor", "stdio"])
        .args(["-add-fd", sets[0], "-add-fd", sets[1]])
        .args(["-drive", "file=/dev/fdset/1,format=raw,if=virtio,id=d", "-serial", "file:/dev/fdset/2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = child.expect("it starts");
    let mut typed = child.stdin.take().expect("a pipe");
    typed.write_all(b"info block\no/b 0x3f8 0x78\nquit\n").unwrap();
    let answered = child.wait_with_output().expect("it ends");
    let shown = String::from_utf8_lossy(&answered.stdout);
    assert!(answered.status.success() && shown.contains("d (#") && shown.contains("/dev/fdset/1"), "{shown}");
    assert_eq!(text(&mut output), b"x");
}
