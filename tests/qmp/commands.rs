//! Commands on a machine without an operating system: what they do, and what events tell of it.

use super::harness::{Machine, Scratch, connect};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::process::Command;

#[test]
fn stopping_starting_resetting_and_ending() {
    let machine = Machine::start("power", &[]);
    let mut client = machine.client();
    let status = |client: &mut super::harness::Client| client.run("query-status", json!({})).unwrap();
    assert_eq!(status(&mut client), json!({ "running": true, "status": "running" }));
    client.run("stop", json!({})).unwrap();
    assert_eq!(client.event("STOP"), Value::Null);
    assert_eq!(status(&mut client), json!({ "running": false, "status": "paused" }));
    client.run("cont", json!({})).unwrap();
    assert_eq!(client.event("RESUME"), Value::Null);
    client.run("system_reset", json!({})).unwrap();
    assert_eq!(client.event("RESET"), json!({ "guest": false, "reason": "host-qmp-system-reset" }));
    client.run("system_powerdown", json!({})).unwrap();
    assert_eq!(client.event("POWERDOWN"), Value::Null);
    client.run("inject-nmi", json!({})).unwrap();
    client.run("quit", json!({})).unwrap();
    assert_eq!(client.event("SHUTDOWN")["reason"], "host-qmp-quit");
    assert!(machine.ends().success());
}

#[test]
fn a_guest_that_ends_is_told_of() {
    // mov al, 1; out 0xf4, al
    let program = "loader,data=0xf4e601b0,data-len=4,addr=0x2000";
    let exit = ["-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-device", program];
    let machine = Machine::start("exit", &[&exit[..], &["-S", "-device", "loader,addr=0x2000,cpu-num=0"]].concat());
    let mut client = machine.client();
    client.run("cont", json!({})).unwrap();
    client.event("RESUME");
    assert_eq!(client.event("SHUTDOWN"), json!({ "guest": true, "reason": "guest-shutdown" }));
    assert_eq!(machine.ends().code(), Some(3));
}

/// What a script does that only wants the guest to go down: Nomad writes one line to a plain socket and goes.
#[test]
fn a_line_on_a_plain_socket_presses_the_power_button() {
    let scratch = Scratch::new("nomad-socket");
    let monitor = scratch.path("monitor");
    let target = format!("unix:{monitor},server=on,wait=off");
    let machine = Machine::start("nomad", &["-monitor", &target]);
    let mut client = machine.client();
    connect(&monitor).write_all(b"system_powerdown\n").unwrap();
    client.event("POWERDOWN");
    let mut people = connect(&monitor);
    people.write_all(b"info status\nquit\n").unwrap();
    let mut text = String::new();
    people.read_to_string(&mut text).unwrap();
    assert!(text.contains("VM status: running"), "{text}");
    client.event("SHUTDOWN");
    assert!(machine.ends().success());
}

#[test]
fn people_are_answered_through_it() {
    let machine = Machine::start("human", &["-S", "-smp", "2"]);
    let mut client = machine.client();
    assert_eq!(client.hmp("info status"), "VM status: paused (prelaunch)\n");
    assert!(client.hmp("info registers").contains("CPU#0\nEAX="));
    let both = client.hmp("info registers -a");
    assert!(both.contains("CPU#0") && both.contains("CPU#1"));
    let arguments = json!({ "command-line": "info registers", "cpu-index": 1 });
    assert!(client.run("human-monitor-command", arguments).unwrap().as_str().unwrap().contains("CPU#1"));
    let arguments = json!({ "command-line": "info registers", "cpu-index": 2 });
    assert!(client.run("human-monitor-command", arguments).unwrap_err().1.contains("expects a CPU number"));
    assert_eq!(client.hmp("xp/4xb 0x1000"), "0000000000001000: 0xfa 0xf4 0xeb 0xfd\n");
    assert!(client.hmp("nonsense").starts_with("unknown command: 'nonsense'"));
    for subject in client.hmp("info").lines() {
        let subject = subject.split([' ', '|']).nth(1).expect("a subject");
        let text = client.hmp(&format!("info {subject}"));
        assert!(!text.starts_with("unknown"), "{subject}: {text}");
    }
}

#[test]
fn memory_goes_to_files() {
    let machine = Machine::start("memory", &["-S"]);
    let mut client = machine.client();
    let file = machine.scratch.path("saved");
    client.run("pmemsave", json!({ "val": 0x1000, "size": 4, "filename": file })).unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), [0xfa, 0xf4, 0xeb, 0xfd]);
    client.run("memsave", json!({ "val": 0x1001, "size": 2, "filename": file, "cpu-index": 0 })).unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), [0xf4, 0xeb]);
    let all = json!({ "val": 0, "size": u64::MAX, "filename": file });
    assert!(client.run("pmemsave", all).unwrap_err().1.contains("there is no more memory"));
    let nowhere = json!({ "val": 0, "size": 1, "filename": "/no/such/file" });
    assert!(client.run("pmemsave", nowhere).unwrap_err().1.contains("Could not open '/no/such/file'"));
    client.run("dump-guest-memory", json!({ "paging": false, "protocol": format!("file:{file}") })).unwrap();
    assert_eq!(client.run("query-dump", json!({})).unwrap()["status"], "completed");
    let read = Command::new("readelf").args(["-h", "-l", "-n", &file]).output().expect("binutils: run tools/setup");
    let text = String::from_utf8_lossy(&read.stdout);
    assert!(text.contains("CORE (Core file)") && text.contains("NT_PRSTATUS") && text.contains("LOAD"), "{text}");
    assert!(read.stderr.is_empty(), "{}", String::from_utf8_lossy(&read.stderr));
}

#[test]
fn drives_and_their_media() {
    let scratch = Scratch::new("media-files");
    let (disc, other) = (scratch.path("disc"), scratch.path("other"));
    for (path, byte) in [(&disc, 1), (&other, 2)] {
        std::fs::write(path, vec![byte; 1 << 20]).unwrap();
    }
    let drive = format!("if=none,id=hd,file={disc},format=raw,readonly=on");
    let machine = Machine::start(
        "media",
        &["-S", "-cdrom", &disc, "-drive", &drive, "-device", "virtio-blk-pci,drive=hd,id=disk"],
    );
    let mut client = machine.client();
    let find = |client: &mut super::harness::Client, name: &str| {
        let drives = client.run("query-block", json!({})).unwrap();
        drives.as_array().unwrap().iter().find(|drive| drive["device"] == name).expect("the drive").clone()
    };
    let cd = find(&mut client, "ide1-cd0");
    assert_eq!(cd["inserted"]["file"], json!(disc));
    assert_eq!(
        (&cd["removable"], &cd["tray_open"], &cd["inserted"]["ro"]),
        (&json!(true), &json!(false), &json!(true))
    );
    assert_eq!(find(&mut client, "hd")["qdev"], "/machine/peripheral/disk/virtio-backend");
    client.run("eject", json!({ "device": "ide1-cd0" })).unwrap();
    assert_eq!(client.event("DEVICE_TRAY_MOVED")["tray-open"], true);
    assert!(find(&mut client, "ide1-cd0").get("inserted").is_none());
    let change = json!({ "device": "ide1-cd0", "filename": other, "format": "raw" });
    client.run("blockdev-change-medium", change).unwrap();
    assert_eq!(client.event("DEVICE_TRAY_MOVED")["tray-open"], false);
    assert_eq!(find(&mut client, "ide1-cd0")["inserted"]["image"]["virtual-size"], 1 << 20);
    client.run("blockdev-open-tray", json!({ "device": "ide1-cd0" })).unwrap();
    assert_eq!(find(&mut client, "ide1-cd0")["tray_open"], true);
    client.run("blockdev-close-tray", json!({ "device": "ide1-cd0" })).unwrap();
    assert_eq!(find(&mut client, "ide1-cd0")["inserted"]["file"], json!(other));
    assert!(client.run("eject", json!({ "device": "hd" })).unwrap_err().1.contains("is not removable"));
    let gone = json!({ "device": "ide1-cd0", "filename": "/no/such" });
    assert!(client.run("blockdev-change-medium", gone).unwrap_err().1.contains("/no/such"));
}

#[test]
fn devices_links_keys_and_actions() {
    let nic = ["-netdev", "user,id=n0", "-device", "e1000,netdev=n0,id=card,addr=7"];
    let balloon = ["-device", "virtio-balloon-pci,id=b"];
    let machine = Machine::start("devices", &[&["-S"], &nic[..], &balloon].concat());
    let mut client = machine.client();
    let get = |client: &mut super::harness::Client, path: &str, property: &str| {
        client.run("qom-get", json!({ "path": path, "property": property }))
    };
    assert_eq!(get(&mut client, "/machine/peripheral/card", "type"), Ok(json!("e1000")));
    assert_eq!(get(&mut client, "/machine/peripheral/card", "netdev"), Ok(json!("n0")));
    assert_eq!(get(&mut client, "/machine/unattached/device[0]", "sse2"), Ok(json!(true)));
    assert_eq!(get(&mut client, "/machine/peripheral/card", "mac"), Ok(json!("52:54:00:12:34:56")));
    assert_eq!(get(&mut client, "/nope", "type").unwrap_err().0, "DeviceNotFound");
    let pci = client.run("query-pci", json!({})).unwrap();
    let card = pci[0]["devices"].as_array().unwrap().iter().find(|d| d["qdev_id"] == "card").expect("by its place");
    assert_eq!((&card["slot"], &card["id"]["device"]), (&json!(7), &json!(0x100e)));
    client.run("set_link", json!({ "name": "card", "up": false })).unwrap();
    let missing = client.run("set_link", json!({ "name": "nope", "up": false })).unwrap_err();
    assert_eq!(missing, ("DeviceNotFound".to_owned(), "Device 'nope' not found".to_owned()));
    let keys =
        json!({ "keys": [{ "type": "qcode", "data": "ctrl" }, { "type": "number", "data": 0x1e }], "hold-time": 1 });
    client.run("send-key", keys).unwrap();
    client.run("set-action", json!({ "shutdown": "pause", "watchdog": "none" })).unwrap();
    client.run("balloon", json!({ "value": 8 << 20 })).unwrap();
    assert_eq!(client.run("query-balloon", json!({})), Ok(json!({ "actual": 16 << 20 })));
}

/// Others read guest memory where the monitor says that it is.
#[test]
fn guest_memory_has_an_address_in_the_process() {
    use std::os::unix::fs::FileExt;
    let machine = Machine::start("addresses", &["-S"]);
    let mut client = machine.client();
    let told = client.hmp("gpa2hva 0x1000");
    let address = told.trim().strip_prefix("Host virtual address for 0x1000 (pc.ram) is 0x").expect("an address");
    let address = u64::from_str_radix(address, 16).expect("a number");
    let memory = std::fs::File::open(format!("/proc/{}/mem", machine.pid())).expect("our own child's memory");
    let mut bytes = [0; 4];
    memory.read_exact_at(&mut bytes, address).expect("it is mapped");
    assert_eq!(bytes, [0xfa, 0xf4, 0xeb, 0xfd]);
    assert_eq!(client.hmp("gpa2hva 0xd0000000"), "Error: No memory is mapped at address 0xd0000000\n");
    // Who may not see the host's own addresses is told so.
    let told = client.hmp("gpa2hpa 0x1000");
    assert!(told.starts_with("Host physical address for 0x1000 (pc.ram) is 0x") || told.contains("root"), "{told}");
}
