//! Disks that are offered by NBD, to QEMU's own tools.

use super::harness::{Client, Machine, Scratch};
use super::images::{img, read, write};
use serde_json::{Value, json};
use std::process::Command;

/// A machine with the disks `d`, which the guest has, and `free`, which it has not.
fn machine(name: &str) -> (Machine, Scratch) {
    let scratch = Scratch::new(&format!("{name}-files"));
    let (a, b) = (scratch.path("a"), scratch.path("b"));
    img(&["create", "-q", "-f", "qcow2", &a, "1M"]);
    img(&["create", "-q", "-f", "qcow2", &b, "1M"]);
    let (disk, free) = (format!("file={a},format=qcow2,id=d,if=ide"), format!("file={b},format=qcow2,id=free,if=none"));
    (Machine::start(name, &["-drive", &disk, "-drive", &free]), scratch)
}

fn io(options: &[&str], address: &str, command: &str) -> (bool, String) {
    let out = Command::new("timeout").args(["60", "qemu-io"]).args(options).args(["-c", command, address]).output();
    let out = out.expect("qemu-io: run tools/setup");
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    (out.status.success(), text)
}

fn why(answer: Result<Value, (String, String)>) -> String {
    answer.expect_err("it is refused").1
}

fn offer(client: &mut Client, command: &str, arguments: Value) {
    assert_eq!(client.run(command, arguments), Ok(json!({})));
}

#[test]
fn qemu_uses_a_disk_that_the_guest_uses() {
    let (machine, scratch) = machine("nbd");
    let mut client = machine.client();
    write(&mut client, 1, 0x11);
    assert_eq!(why(client.run("nbd-server-add", json!({ "device": "d" }))), "NBD server not running");
    assert_eq!(why(client.run("nbd-server-stop", json!({}))), "NBD server not running");
    let socket = scratch.path("nbd");
    let address = json!({ "addr": { "type": "unix", "data": { "path": socket } } });
    offer(&mut client, "nbd-server-start", address.clone());
    assert_eq!(why(client.run("nbd-server-start", address.clone())), "NBD server already running");
    let told = why(client.run("nbd-server-add", json!({ "device": "zz" })));
    assert_eq!(told, "Cannot find device='zz' nor node-name='zz'");
    offer(&mut client, "nbd-server-add", json!({ "device": "d", "writable": true }));
    let again = json!({ "type": "nbd", "id": "d", "node-name": "free" });
    assert_eq!(why(client.run("block-export-add", again)), "Block export id 'd' is already in use");
    offer(&mut client, "block-export-add", json!({ "type": "nbd", "id": "x", "node-name": "free", "name": "spare" }));
    let url = |name: &str| format!("nbd+unix:///{name}?socket={socket}");
    let (fine, text) = io(&["-f", "raw"], &url("d"), "read -P 0x11 512 512");
    assert!(fine && !text.contains("verification failed"), "{text}");
    let (fine, text) = io(&["-f", "raw"], &url("d"), "write -P 0x22 1024 512");
    assert!(fine, "{text}");
    assert_eq!([1, 2, 3].map(|sector| read(&mut client, sector)), [0x11, 0x22, 0]);
    let (_, text) = io(&["-f", "raw"], &url("spare"), "write 0 512");
    assert!(text.contains("Permission denied"), "{text}");
    let (fine, text) = io(&["-f", "raw", "-r"], &url("spare"), "read -P 0 0 512");
    assert!(fine && !text.contains("verification failed"), "{text}");
    assert!(!io(&["-f", "raw"], &url("zz"), "read 0 512").0);
    // It is nobody else's meanwhile.
    assert!(client.hmp("drive_del free").contains("offered by NBD as 'spare'"));
    let offers = client.run("query-block-exports", json!({})).unwrap();
    assert_eq!((&offers[0]["id"], &offers[1]["id"], &offers[1]["type"]), (&json!("d"), &json!("x"), &json!("nbd")));
    offer(&mut client, "block-export-del", json!({ "id": "x" }));
    assert_eq!(client.event("BLOCK_EXPORT_DELETED"), json!({ "id": "x" }));
    assert_eq!(why(client.run("nbd-server-remove", json!({ "name": "x" }))), "Export 'x' is not found");
    assert_eq!(client.hmp("drive_del free"), "");
    offer(&mut client, "nbd-server-stop", json!({}));
    assert_eq!(client.event("BLOCK_EXPORT_DELETED"), json!({ "id": "d" }));
    assert!(!std::path::Path::new(&socket).exists());
    // For people; all disks at once.
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|door| door.local_addr()).expect("a port").port();
    assert_eq!(client.hmp(&format!("nbd_server_start -a 127.0.0.1:{port}")), "");
    let (fine, text) = io(&["-f", "raw", "-r"], &format!("nbd://127.0.0.1:{port}/d"), "read -P 0x22 1024 512");
    assert!(fine && !text.contains("verification failed"), "{text}");
    assert_eq!(client.hmp("nbd_server_remove d") + &client.hmp("nbd_server_add -w d e"), "");
    assert!(client.hmp("nbd_server_remove zz").contains("Export 'zz' is not found"));
    assert_eq!(client.hmp("nbd_server_stop"), "");
    // What is left open goes with the machine.
    offer(&mut client, "nbd-server-start", address);
    client.run("quit", json!({})).unwrap();
    assert!(machine.ends().success());
    assert!(!std::path::Path::new(&socket).exists());
    img(&["check", "-q", &scratch.path("a")]);
}
