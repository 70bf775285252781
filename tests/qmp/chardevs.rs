//! Host ends of character devices that come, go and change while the machine runs.

use super::harness::{Client, LONG, Machine, connect};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

fn add(client: &mut Client, id: &str, backend: Value) -> Result<Value, (String, String)> {
    client.run("chardev-add", json!({ "id": id, "backend": backend }))
}

fn file(path: &str) -> Value {
    json!({ "type": "file", "data": { "out": path } })
}

fn unix(path: &str) -> Value {
    json!({ "type": "socket", "data": { "addr": { "type": "unix", "data": { "path": path } } } })
}

fn refused(answer: Result<Value, (String, String)>) -> String {
    let (class, desc) = answer.expect_err("it is refused");
    assert_eq!(class, "GenericError", "{desc}");
    desc
}

fn filename(client: &mut Client, label: &str) -> Option<String> {
    let all = client.run("query-chardev", json!({})).unwrap();
    let found = all.as_array().unwrap().iter().find(|info| info["label"] == label);
    found.map(|info| info["filename"].as_str().unwrap().to_owned())
}

/// What the guest writes to its first serial port goes there.
fn say(client: &mut Client, text: &str) {
    for byte in text.bytes() {
        client.hmp(&format!("o/b 0x3f8 {byte:#x}"));
    }
}

fn wait_for(path: &str, text: &str) {
    let start = Instant::now();
    while std::fs::read_to_string(path).unwrap_or_default() != text {
        assert!(start.elapsed() < LONG, "{:?}", std::fs::read_to_string(path));
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn each_kind_comes_and_goes() {
    let machine = Machine::start("chardevs", &["-S", "-serial", "null"]);
    let mut client = machine.client();
    let path = |name: &str| machine.scratch.path(name);
    nix_fifo(&path("fifo"));
    let inet = |port: &str| json!({ "type": "inet", "data": { "host": "127.0.0.1", "port": port } });
    let kinds = [
        ("null", json!({ "type": "null", "data": { "logfile": path("log") } })),
        ("file", json!({ "type": "file", "data": { "out": path("out"), "append": true } })),
        ("pipe", json!({ "type": "pipe", "data": { "device": path("fifo") } })),
        ("serial", json!({ "type": "serial", "data": { "device": "/dev/null" } })),
        ("ring", json!({ "type": "ringbuf", "data": { "size": 64 } })),
        ("memory", json!({ "type": "memory", "data": {} })),
        ("udp", json!({ "type": "udp", "data": { "remote": inet("9") } })),
        ("stdio", json!({ "type": "stdio", "data": {} })),
        ("unix", unix(&path("socket"))),
        ("tcp", json!({ "type": "socket", "data": { "addr": inet("0"), "telnet": true } })),
        ("web", json!({ "type": "socket", "data": { "addr": inet("0"), "websocket": true } })),
    ];
    // Twice: what they had is free again.
    for round in 0..2 {
        for (id, backend) in &kinds {
            assert_eq!(add(&mut client, id, backend.clone()), Ok(json!({})), "{id} {round}");
        }
        let pty = add(&mut client, "pty", json!({ "type": "pty", "data": {} })).unwrap();
        let name = pty["pty"].as_str().expect("a name").to_owned();
        assert_eq!(filename(&mut client, "pty"), Some(format!("pty:{name}")));
        client.run("ringbuf-write", json!({ "device": "ring", "data": "kept" })).unwrap();
        assert_eq!(client.run("ringbuf-read", json!({ "device": "ring", "size": 9 })), Ok(json!("kept")));
        let told = filename(&mut client, "tcp").unwrap();
        let port = told.strip_prefix("disconnected:tcp:127.0.0.1:").and_then(|t| t.strip_suffix(",server=on"));
        let port: u16 = port.unwrap_or_else(|| panic!("{told}")).parse().unwrap();
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let peer = connect(&path("socket"));
        for (id, _) in &kinds {
            assert_eq!(client.run("chardev-remove", json!({ "id": id })), Ok(json!({})), "{id} {round}");
        }
        client.run("chardev-remove", json!({ "id": "pty" })).unwrap();
        drop((stream, peer));
        assert!(!std::path::Path::new(&path("socket")).exists());
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
        let left = client.run("query-chardev", json!({})).unwrap();
        assert_eq!(left.as_array().unwrap().len(), 2, "{left}");
    }
}

fn nix_fifo(path: &str) {
    for end in ["in", "out"] {
        let made = std::process::Command::new("mkfifo").arg(format!("{path}.{end}")).status().expect("coreutils");
        assert!(made.success());
    }
}

#[test]
fn errors_are_qemus() {
    let machine = Machine::start("chardev-errors", &["-S", "-serial", "null"]);
    let mut client = machine.client();
    let mut add =
        |id: &str, backend: Value| refused(client.run("chardev-add", json!({ "id": id, "backend": backend })));
    let null = json!({ "type": "null", "data": {} });
    assert_eq!(add("serial0", null.clone()), "Chardev with id 'serial0' already exists");
    assert_eq!(add("a", json!({ "type": "x", "data": {} })), "Parameter 'type' does not accept value 'x'");
    assert_eq!(add("a", json!({ "type": "null" })), "Parameter 'backend.data' is missing");
    assert_eq!(add("a", json!({ "data": {} })), "Parameter 'backend.type' is missing");
    assert_eq!(add("a", json!({ "type": "file", "data": {} })), "Parameter 'backend.data.out' is missing");
    let more = json!({ "type": "file", "data": { "out": "x", "foo": 1 } });
    assert_eq!(add("a", more), "Parameter 'backend.data.foo' is unexpected");
    let told = add("a", file("/no/such/file"));
    assert!(told.starts_with("Failed to add chardev 'a': ") && told.contains("no such file"), "{told}");
    assert!(add("a", json!({ "type": "ringbuf", "data": { "size": 100 } })).contains("power of two"));
    let mut run = |command: &str, arguments: Value| client.run(command, arguments);
    for command in ["chardev-remove", "chardev-send-break"] {
        assert_eq!(refused(run(command, json!({ "id": "zz" }))), "Chardev 'zz' not found");
    }
    assert_eq!(refused(run("chardev-remove", json!({ "id": "serial0" }))), "Chardev 'serial0' is busy");
    let change = |id: &str| json!({ "id": id, "backend": { "type": "null", "data": {} } });
    assert_eq!(refused(run("chardev-change", change("zz"))), "Chardev 'zz' does not exist");
    let told = refused(run("chardev-change", change("compat_monitor0")));
    assert_eq!(told, "Chardev user does not support chardev hotswap");
    assert_eq!(client.hmp("chardev-remove zz"), "Error: Chardev 'zz' not found\n");
    assert!(client.hmp("chardev-add").starts_with("chardev-add: args expected"));
    assert_eq!(client.hmp("chardev-add null,id=x"), "");
    assert!(client.hmp("chardev-add null,id=x").contains("already exists"));
    assert!(client.hmp("info chardev").contains("x: filename=null"));
    assert_eq!(client.hmp("chardev-remove x"), "");
}

/// A serial port's other end changes under it, the guest writes on; input comes from there.
#[test]
fn a_port_gets_another_end() {
    let (one, two) = ("one", "two");
    let machine = Machine::start("chardev-change", &["-serial", "null"]);
    let mut client = machine.client();
    let path = |name: &str| machine.scratch.path(name);
    let change = |backend: Value| json!({ "id": "serial0", "backend": backend });
    client.run("chardev-change", change(file(&path(one)))).unwrap();
    say(&mut client, "first");
    wait_for(&path(one), "first");
    let told = refused(client.run("chardev-change", change(file("/no/such/file"))));
    assert!(told.contains("no such file"), "{told}");
    say(&mut client, "!");
    wait_for(&path(one), "first!");
    client.run("chardev-change", change(unix(&path("socket")))).unwrap();
    let mut peer = connect(&path("socket"));
    // Somebody is there when the port says so: bytes before that are nobody's.
    let start = Instant::now();
    while filename(&mut client, "serial0").is_some_and(|name| name.starts_with("disconnected")) {
        assert!(start.elapsed() < LONG);
    }
    say(&mut client, "to the peer");
    let mut text = [0; 11];
    peer.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"to the peer");
    peer.write_all(b"Z").unwrap();
    let start = Instant::now();
    while client.hmp("i/b 0x3fd").trim_end() != "portb[0x03fd] = 0x61" {
        assert!(start.elapsed() < LONG, "{}", client.hmp("i/b 0x3fd"));
    }
    assert_eq!(client.hmp("i/b 0x3f8").trim_end(), "portb[0x03f8] = 0x5a");
    // A break is a byte of zeros with a mark of its own (16550, LSR bit 4).
    client.run("chardev-send-break", json!({ "id": "serial0" })).unwrap();
    assert_eq!(client.hmp("i/b 0x3fd").trim_end(), "portb[0x03fd] = 0x71");
    assert_eq!(client.hmp(&format!("chardev-change serial0 file,path={}", path(two))), "");
    assert_eq!(peer.read(&mut [0]).unwrap(), 0, "the old end is closed");
    say(&mut client, "second");
    wait_for(&path(two), "second");
    wait_for(&path(one), "first!");
}

/// A port of a guest's serial bus has a host end that came later, and lets go of it.
#[test]
fn ports_have_ends_that_came_later() {
    let machine = Machine::start("chardev-port", &["-device", "virtio-serial-pci,id=s"]);
    let mut client = machine.client();
    let port = json!({ "driver": "virtserialport", "chardev": "c", "id": "port", "bus": "s.0" });
    for _ in 0..2 {
        add(&mut client, "c", unix(&machine.scratch.path("socket"))).unwrap();
        client.run("device_add", port.clone()).unwrap();
        assert_eq!(refused(client.run("chardev-remove", json!({ "id": "c" }))), "Chardev 'c' is busy");
        client.run("device_del", json!({ "id": "port" })).unwrap();
        assert_eq!(client.event("DEVICE_DELETED")["device"], "port");
        let all = client.run("query-chardev", json!({})).unwrap();
        let info = all.as_array().unwrap().iter().find(|info| info["label"] == "c").expect("it is there");
        assert_eq!(info["frontend-open"], false);
        client.run("chardev-remove", json!({ "id": "c" })).unwrap();
        assert!(refused(client.run("device_add", port.clone())).contains("no -chardev with id=c"));
    }
}
