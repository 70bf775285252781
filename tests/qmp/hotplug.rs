//! Devices that come and go: what the protocol says of them. The guest is halted, so nothing is ever given back.

use crate::harness::{Machine, Scratch};
use serde_json::{Value, json};

/// An image of 1 MiB.
pub fn image(scratch: &Scratch, name: &str) -> String {
    let path = scratch.path(name);
    std::fs::File::create(&path).and_then(|file| file.set_len(1 << 20)).expect("an image");
    path
}

/// The description of an error.
fn refused(answer: Result<Value, (String, String)>) -> String {
    let (class, desc) = answer.expect_err("it is refused");
    assert_eq!(class, "GenericError", "{desc}");
    desc
}

#[test]
fn devices_are_listed_and_refused_as_in_qemu() {
    let scratch = Scratch::new("hotplug-files");
    let drive = format!("if=none,id=d,format=raw,file={}", image(&scratch, "d"));
    let host_ends = ["-netdev", "user,id=n", "-drive", &drive, "-chardev", "null,id=p"];
    let machine = Machine::start("hotplug", &host_ends);
    let mut client = machine.client();
    let mut add = |arguments: Value| client.run("device_add", arguments);
    assert_eq!(refused(add(json!({}))), "Parameter 'driver' is missing");
    assert_eq!(refused(add(json!({"driver": "nosuch"}))), "'nosuch' is not a valid device model name");
    assert!(refused(add(json!({"driver": "e1000", "netdev": "zz"}))).contains("no -netdev with id=zz"));
    assert!(refused(add(json!({"driver": "e1000", "foo": 1}))).contains("'foo'"));
    assert_eq!(add(json!({"driver": "virtio-rng-pci", "id": "r"})), Ok(json!({})));
    assert_eq!(refused(add(json!({"driver": "virtio-rng-pci", "id": "r"}))), "Duplicate device ID 'r'");
    assert_eq!(refused(add(json!({"driver": "virtio-rng-pci", "bus": "nob"}))), "Bus 'nob' not found");
    assert!(refused(add(json!({"driver": "isa-debug-exit"}))).ends_with("does not support hotplugging"));
    assert!(refused(add(json!({"driver": "ide-cd"}))).ends_with("does not support hotplugging"));
    assert!(refused(add(json!({"driver": "virtserialport"}))).contains("chardev"));
    let lonely = json!({"driver": "virtserialport", "chardev": "p"});
    assert_eq!(refused(add(lonely)), "No 'virtio-serial-bus' bus found for device 'virtserialport'");
    assert!(refused(add(json!({"driver": "scsi-hd", "drive": "d"}))).contains("no SCSI host"));
    assert!(refused(add(json!({"driver": "virtio-blk-pci"}))).contains("drive= is missing"));
    assert_eq!(add(json!({"driver": "virtio-blk-pci", "drive": "d", "id": "v", "addr": "0x1f"})), Ok(json!({})));
    assert!(refused(add(json!({"driver": "virtio-blk-pci", "drive": "d"}))).contains("in use already"));
    assert!(refused(add(json!({"driver": "virtio-rng-pci", "addr": "0x1f"}))).contains("1f.0"));
    assert_eq!(add(json!({"driver": "e1000", "netdev": "n", "id": "e"})), Ok(json!({})));
    assert!(refused(add(json!({"driver": "e1000", "netdev": "n"}))).contains("has a card already"));
    assert_eq!(add(json!({"driver": "virtio-serial-pci", "id": "s"})), Ok(json!({})));
    // A port comes to its bus and goes at once, twice: its number and its host end are free again.
    for _ in 0..2 {
        let port =
            json!({"driver": "virtserialport", "chardev": "p", "id": "port", "bus": "s.0", "nr": 3, "name": "org.x"});
        assert_eq!(client.run("device_add", port.clone()), Ok(json!({})));
        let other = json!({"driver": "virtserialport", "chardev": "p", "id": "other"});
        assert!(refused(client.run("device_add", other)).contains("used by"));
        assert!(client.hmp("info qtree").contains("name = org.x"));
        assert_eq!(client.run("device_del", json!({"id": "port"})), Ok(json!({})));
        assert_eq!(client.event("DEVICE_DELETED")["device"], "port");
        assert!(!client.hmp("info qtree").contains("name = org.x"));
    }
    let pci = client.hmp("info pci");
    for id in ["r", "v", "e", "s"] {
        assert!(pci.contains(&format!("id \"{id}\"")), "{pci}");
    }
    let tree = client.hmp("info qtree");
    assert!(["virtio-rng", "virtio-blk", "e1000", "virtio-serial"].iter().all(|name| tree.contains(name)), "{tree}");
    assert_eq!(client.run("query-block", json!({})).unwrap()[0]["qdev"], "/machine/peripheral/v/virtio-backend");
    let get = |property: &str| json!({"path": "/machine/peripheral/v", "property": property});
    assert_eq!(client.run("qom-get", get("hotplugged")), Ok(json!(true)));
    assert!(client.hmp("info network").contains("e: index=0,type=nic,model=e1000"));
}

#[test]
fn a_guest_that_does_not_answer_keeps_its_devices_until_it_is_reset() {
    let machine = Machine::start("unplug", &["-device", "virtio-rng-pci,id=cold", "-device", "virtio-rng-pci"]);
    let mut client = machine.client();
    let del = |id: &str| json!({ "id": id });
    let (class, desc) = client.run("device_del", del("nope")).unwrap_err();
    assert_eq!((class.as_str(), desc.as_str()), ("DeviceNotFound", "Device 'nope' not found"));
    assert_eq!(client.hmp("device_del nope"), "Error: Device 'nope' not found\n");
    assert_eq!(client.hmp("device_add nope"), "Error: 'nope' is not a valid device model name\n");
    assert_eq!(client.hmp("device_add virtio-balloon,id=b"), "");
    client.run("stop", json!({})).unwrap();
    assert_eq!(client.run("device_del", del("cold")), Ok(json!({})));
    let twice = refused(client.run("device_del", del("cold")));
    assert_eq!(twice, "Device cold is already in the process of unplug");
    assert_eq!(client.run("device_del", del("/machine/peripheral-anon/device[7]")).unwrap_err().0, "DeviceNotFound");
    // Those before it are the loaders of the guest's program.
    assert!(client.hmp("info qom-tree").contains("/device[2] (virtio-rng-pci)"));
    client.run("device_del", del("/machine/peripheral-anon/device[2]")).unwrap();
    client.run("device_del", del("b")).unwrap();
    assert!(client.hmp("info pci").contains("id \"cold\""), "the guest has it still");
    client.run("system_reset", json!({})).unwrap();
    let mut gone = Vec::new();
    while gone.len() < 3 {
        let data = client.event("DEVICE_DELETED");
        gone.extend(Some(data["path"].as_str().unwrap().to_owned()).filter(|path| !path.ends_with("virtio-backend")));
    }
    gone.sort();
    assert_eq!(gone[1..], ["/machine/peripheral/b".to_owned(), "/machine/peripheral/cold".to_owned()]);
    assert!(!client.hmp("info pci").contains("1af4:1005"));
    // The name is free again.
    assert_eq!(client.run("device_add", json!({"driver": "i6300esb", "id": "cold"})), Ok(json!({})));
    assert_eq!(client.run("device_add", json!({"driver": "virtio-balloon-pci", "id": "b"})), Ok(json!({})));
}

#[test]
fn units_of_a_scsi_host_go_at_once() {
    let scratch = Scratch::new("hotplug-scsi-files");
    let drive = format!("if=none,id=d,format=raw,file={}", image(&scratch, "d"));
    let machine = Machine::start("hotplug-scsi", &["-S", "-device", "virtio-scsi-pci,id=s", "-drive", &drive]);
    let mut client = machine.client();
    for lun in [0, 300] {
        // A drive that was given to a device goes with it, so the second time it is a CD drive without a medium.
        let disk = json!({"driver": "scsi-hd", "drive": "d", "bus": "s.0", "id": "u", "scsi-id": 2, "lun": lun});
        let cd = json!({"driver": "scsi-cd", "bus": "s.0", "id": "u", "scsi-id": 2, "lun": lun});
        assert_eq!(client.run("device_add", if lun == 0 { disk } else { cd }), Ok(json!({})));
        assert_eq!(client.run("query-block", json!({})).unwrap().as_array().unwrap().len(), 1);
        assert_eq!(client.run("device_del", json!({"id": "u"})), Ok(json!({})));
        let gone = client.event("DEVICE_DELETED");
        assert_eq!((&gone["device"], &gone["path"]), (&json!("u"), &json!("/machine/peripheral/u")));
        assert_eq!(client.run("query-block", json!({})), Ok(json!([])));
    }
    let again = refused(client.run("device_add", json!({"driver": "scsi-hd", "drive": "d", "bus": "s.0"})));
    assert!(again.contains("no -drive with id=d"), "{again}");
}

#[test]
fn without_acpi_nothing_is_plugged() {
    let machine = Machine::start("hotplug-no-acpi", &["-S", "-machine", "acpi=off", "-device", "virtio-rng-pci,id=r"]);
    let mut client = machine.client();
    let add = client.run("device_add", json!({"driver": "virtio-rng-pci"}));
    assert_eq!(refused(add), "Bus 'pci.0' does not support hotplugging");
    assert_eq!(refused(client.run("device_del", json!({"id": "r"}))), "Bus 'pci.0' does not support hotplugging");
}

#[test]
fn host_ends_of_cards_come_and_go() {
    let machine = Machine::start("netdevs", &["-S"]);
    let mut client = machine.client();
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
    let rule = format!("tcp:127.0.0.1:{port}-:22");
    let user = json!({"type": "user", "id": "n", "hostfwd": [{"str": rule}]});
    let (class, desc) = client.run("netdev_add", json!({"type": "user"})).unwrap_err();
    assert_eq!((class.as_str(), desc.as_str()), ("GenericError", "Parameter 'id' is missing"));
    assert_eq!(client.run("netdev_add", user.clone()), Ok(json!({})));
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok(), "the port is open");
    assert_eq!(refused(client.run("netdev_add", user.clone())), "Duplicate ID 'n'");
    assert!(refused(client.run("netdev_add", json!({"type": "zz", "id": "x"}))).contains("unknown kind"));
    assert!(refused(client.run("netdev_add", json!({"type": "user", "id": "x", "foo": 1}))).contains("'foo'"));
    assert_eq!(client.run("netdev_del", json!({"id": "zz"})).unwrap_err().0, "DeviceNotFound");
    let card = |id: &str| json!({"driver": "virtio-net-pci", "netdev": "n", "id": id});
    assert_eq!(client.run("device_add", card("c")), Ok(json!({})));
    assert_eq!(client.hmp("netdev_del n"), "");
    let start = std::time::Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
        assert!(start.elapsed() < crate::harness::LONG, "the port stays open");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(client.hmp("info network").ends_with("macaddr=52:54:00:12:34:56\n"));
    // Name, port and host end are free again; the card without a host end is no obstacle.
    assert_eq!(client.run("netdev_add", user), Ok(json!({})));
    assert_eq!(client.run("device_add", card("d")), Ok(json!({})));
    assert_eq!(client.hmp("netdev_add hubport,id=h,hubid=0"), "");
}

#[test]
fn objects_come_and_go() {
    let machine = Machine::start("objects", &["-S"]);
    let mut client = machine.client();
    let random = json!({"qom-type": "rng-random", "id": "o", "filename": "/dev/zero"});
    assert_eq!(client.run("object-add", random.clone()), Ok(json!({})));
    let twice = refused(client.run("object-add", random.clone()));
    assert_eq!(twice, "attempt to add duplicate property 'o' to object (type 'container')");
    assert!(refused(client.run("object-add", json!({"qom-type": "zz", "id": "x"}))).contains("unknown kind 'zz'"));
    let missing = json!({"qom-type": "rng-random", "id": "x", "filename": "/does/not/exist"});
    assert!(refused(client.run("object-add", missing)).contains("no such file"));
    let get = |property: &str| json!({"path": "/objects/o", "property": property});
    assert_eq!(client.run("qom-get", get("type")), Ok(json!("rng-random")));
    assert_eq!(client.run("qom-get", get("filename")), Ok(json!("/dev/zero")));
    assert_eq!(client.run("device_add", json!({"driver": "virtio-rng-pci", "rng": "o"})), Ok(json!({})));
    assert!(refused(client.run("device_add", json!({"driver": "virtio-rng-pci", "rng": "p"}))).contains("id=p"));
    assert_eq!(client.run("object-del", json!({"id": "o"})), Ok(json!({})));
    assert_eq!(refused(client.run("object-del", json!({"id": "o"}))), "object 'o' not found");
    assert_eq!(client.hmp("object_add rng-builtin,id=o"), "");
    assert_eq!(client.hmp("object_del o"), "");
    assert_eq!(client.hmp("object_del o"), "Error: object 'o' not found\n");
}

#[test]
fn images_are_opened_for_devices_to_come() {
    let scratch = Scratch::new("images-files");
    let (first, second) = (image(&scratch, "first"), image(&scratch, "second"));
    let machine = Machine::start("images", &["-S"]);
    let mut client = machine.client();
    let names = |client: &mut crate::harness::Client| -> Vec<String> {
        let nodes = client.run("query-named-block-nodes", json!({})).unwrap();
        nodes.as_array().unwrap().iter().map(|node| node["node-name"].as_str().unwrap().to_owned()).collect()
    };
    // A drive that nobody has: listed without a device, taken by one, gone with it.
    assert_eq!(client.hmp(&format!("drive_add 0 if=none,id=d,format=raw,file={first}")), "OK\n");
    assert!(
        client.hmp(&format!("drive_add 0 if=none,id=d,format=raw,file={first}")).contains("another drive with id=d")
    );
    assert!(client.hmp(&format!("drive_add 0 if=ide,format=raw,file={second}")).contains("use if=none"));
    let drives = client.run("query-block", json!({})).unwrap();
    assert_eq!((&drives[0]["device"], drives[0].get("qdev")), (&json!("d"), None));
    assert_eq!(client.hmp("drive_del d"), "");
    assert_eq!(client.hmp("drive_del d"), "Error: Device 'd' not found\n");
    assert_eq!(client.run("query-block", json!({})), Ok(json!([])));
    // Nodes: one in another, which has it for itself.
    let file = json!({"driver": "file", "node-name": "low", "filename": first});
    assert_eq!(client.run("blockdev-add", file.clone()), Ok(json!({})));
    assert_eq!(names(&mut client)[0], "low");
    assert_eq!(refused(client.run("blockdev-add", file)), "Duplicate nodes with node-name='low'");
    let raw = json!({"driver": "raw", "node-name": "top", "file": "low"});
    assert_eq!(client.run("blockdev-add", raw), Ok(json!({})));
    assert_eq!(names(&mut client), ["top", "low"]);
    assert_eq!(client.run("query-block", json!({})), Ok(json!([])), "nodes are no drives");
    assert!(refused(client.run("blockdev-del", json!({"node-name": "low"}))).contains("used as 'file' of 'top'"));
    assert_eq!(
        refused(client.run("blockdev-del", json!({"node-name": "zz"}))),
        "Failed to find node with node-name='zz'"
    );
    assert!(refused(client.run("blockdev-add", json!({"driver": "raw", "file": "low"}))).contains("'node-name' must"));
    assert!(refused(client.run("blockdev-add", json!({"driver": "zz", "node-name": "x"}))).contains("unknown driver"));
    let other = json!({"driver": "raw", "node-name": "x", "file": {"driver": "file", "filename": "/does/not/exist"}});
    assert!(refused(client.run("blockdev-add", other)).contains("no such file"));
    // A device has it, gives it back, and it is there still.
    let disk = json!({"driver": "virtio-scsi-pci", "id": "s"});
    assert_eq!(client.run("device_add", disk), Ok(json!({})));
    for _ in 0..2 {
        let unit = json!({"driver": "scsi-hd", "drive": "top", "bus": "s.0", "id": "u", "serial": "S"});
        assert_eq!(client.run("device_add", unit), Ok(json!({})));
        assert_eq!(refused(client.run("blockdev-del", json!({"node-name": "top"}))), "Node top is in use");
        let drives = client.run("query-block", json!({})).unwrap();
        assert_eq!(drives[0]["inserted"]["node-name"], "top");
        assert_eq!(drives[0]["qdev"], "/machine/peripheral/u");
        assert_eq!(client.run("device_del", json!({"id": "u"})), Ok(json!({})));
        assert_eq!(names(&mut client), ["top", "low"]);
    }
    assert_eq!(client.run("blockdev-del", json!({"node-name": "top"})), Ok(json!({})));
    assert_eq!(names(&mut client)[0], "low");
    assert_eq!(client.run("blockdev-del", json!({"node-name": "low"})), Ok(json!({})));
    assert!(names(&mut client).is_empty());
}

#[test]
fn images_change_their_size() {
    let scratch = Scratch::new("resize-files");
    let path = image(&scratch, "d");
    let drive = format!("if=none,id=d,format=raw,file={path}");
    let machine = Machine::start("resize", &["-S", "-drive", &drive, "-device", "virtio-blk-pci,drive=d,id=v"]);
    let mut client = machine.client();
    assert_eq!(client.run("block_resize", json!({"device": "d", "size": 3 << 20})), Ok(json!({})));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 3 << 20);
    let size = |client: &mut crate::harness::Client| {
        client.run("query-block", json!({})).unwrap()[0]["inserted"]["image"]["virtual-size"].clone()
    };
    assert_eq!(size(&mut client), 3 << 20);
    assert_eq!(client.hmp("block_resize d 5"), "");
    assert_eq!(size(&mut client), 5 << 20);
    assert_eq!(client.hmp("block_resize v 2048k"), "");
    assert_eq!(size(&mut client), 2 << 20);
    let missing = refused(client.run("block_resize", json!({"device": "zz", "size": 512})));
    assert_eq!(missing, "Cannot find device='zz' nor node-name=''");
    assert!(refused(client.run("block_resize", json!({"device": "d", "size": -1}))).contains(">0 size"));
}

#[test]
fn nodes_are_media() {
    let scratch = Scratch::new("media-files");
    let path = image(&scratch, "cd");
    let machine = Machine::start("media", &["-S", "-device", "ide-cd,id=cd"]);
    let mut client = machine.client();
    let node = json!({"driver": "raw", "node-name": "m", "read-only": true,
        "file": {"driver": "file", "filename": path, "node-name": "f", "read-only": true}});
    assert_eq!(client.run("blockdev-add", node), Ok(json!({})));
    let insert = json!({"id": "cd", "node-name": "m"});
    assert!(refused(client.run("blockdev-insert-medium", insert.clone())).starts_with("Tray of the device"));
    for _ in 0..2 {
        assert_eq!(client.run("blockdev-open-tray", json!({"id": "cd"})), Ok(json!({})));
        let missing = json!({"id": "cd", "node-name": "zz"});
        assert_eq!(refused(client.run("blockdev-insert-medium", missing)), "Node 'zz' not found");
        assert_eq!(client.run("blockdev-insert-medium", insert.clone()), Ok(json!({})));
        assert!(refused(client.run("blockdev-insert-medium", insert.clone())).starts_with("There already is a medium"));
        assert_eq!(client.run("blockdev-close-tray", json!({"id": "cd"})), Ok(json!({})));
        let drives = client.run("query-block", json!({})).unwrap();
        assert_eq!((&drives[0]["inserted"]["node-name"], &drives[0]["tray_open"]), (&json!("m"), &json!(false)));
        assert_eq!(refused(client.run("blockdev-del", json!({"node-name": "m"}))), "Node m is in use");
        assert_eq!(client.run("blockdev-open-tray", json!({"id": "cd"})), Ok(json!({})));
        assert_eq!(client.run("blockdev-remove-medium", json!({"id": "cd"})), Ok(json!({})));
        assert_eq!(client.run("query-block", json!({})).unwrap()[0].get("inserted"), None);
        assert_eq!(client.run("blockdev-close-tray", json!({"id": "cd"})), Ok(json!({})));
    }
    assert_eq!(client.run("blockdev-del", json!({"node-name": "m"})), Ok(json!({})));
}
