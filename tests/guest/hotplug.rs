//! Devices that come and go while a Debian kernel uses them.

use crate::disks::Folder;
use crate::harness::Guest;
use crate::qmp::{Client, boot, scratch};
use serde_json::json;
use std::fs::File;

/// Waits in the guest until `condition` is true.
fn until(guest: &mut Guest, condition: &str) {
    guest.run(&format!("for i in $(seq 1 300); do {condition} && break; sleep 0.2; done; {condition}"));
}

/// The guest gives a device back.
fn leaves(client: &mut Client, id: &str) {
    client.run("device_del", json!({ "id": id }));
    client.event("DEVICE_DELETED", &json!({ "device": id }));
}

#[test]
fn disks_and_cards_come_and_go() {
    let (socket, folder) = (scratch("hotplug"), Folder::new());
    let [first, second] = ["first", "second"].map(|name| folder.file(name));
    File::create(&first).and_then(|file| file.set_len(8 << 20)).expect("an image");
    File::create(&second).and_then(|file| file.set_len(16 << 20)).expect("an image");
    let [first, second] = [("d1", first), ("d2", second)].map(|(id, f)| format!("if=none,id={id},format=raw,file={f}"));
    let options =
        ["-nic", "none", "-drive", &first, "-drive", &second, "-netdev", "user,id=n1", "-netdev", "user,id=n2"];
    let mut guest = boot("drivers-amd64", &socket, &options);
    let mut client = Client::connect(&socket);
    guest.run("modprobe virtio_pci && modprobe virtio_blk && modprobe virtio_scsi && modprobe sd_mod");
    guest.run("modprobe virtio_net && modprobe e1000");
    // A disk, twice in the same slot: it works, and its name and its bytes are those of the image.
    client.run("device_add", json!({"driver": "virtio-blk-pci", "drive": "d1", "id": "v", "serial": "S-9"}));
    until(&mut guest, "test -b /dev/vda");
    assert_eq!(guest.run("cat /sys/block/vda/serial /sys/block/vda/size").replace('\r', ""), "S-916384");
    guest.run("echo hello | dd of=/dev/vda bs=512 seek=100 conv=sync 2>/dev/null && sync");
    assert!(client.human("info pci").contains("id \"v\""));
    // It grows under the driver's eyes.
    client.run("block_resize", json!({"device": "d1", "size": 12 << 20}));
    until(&mut guest, "test $(cat /sys/block/vda/size) = 24576");
    leaves(&mut client, "v");
    until(&mut guest, "test ! -e /dev/vda");
    let drives = client.run("query-block", json!({}));
    assert!(
        drives.as_array().unwrap().iter().all(|drive| drive["device"] != "d1"),
        "it went with its device: {drives}"
    );
    let mut image = vec![0; 5];
    use std::os::unix::fs::FileExt;
    File::open(folder.file("first")).and_then(|f| f.read_exact_at(&mut image, 51_200)).expect("the image");
    assert_eq!(image, b"hello");
    // Cards, which get a lease each from their host ends.
    client.run(
        "device_add",
        json!({"driver": "e1000", "netdev": "n1", "id": "c1", "mac": "52:54:00:00:00:99", "addr": "0x1c"}),
    );
    until(&mut guest, "test -e /sys/class/net/eth0");
    client.run("device_add", json!({"driver": "virtio-net-pci", "netdev": "n2", "id": "c2"}));
    until(&mut guest, "test -e /sys/class/net/eth1");
    assert_eq!(guest.run("cat /sys/class/net/eth0/address"), "52:54:00:00:00:99");
    guest.run("ip link set eth0 up && ip link set eth1 up");
    guest.run("udhcpc -i eth0 -n -q -t 10 >/dev/null && udhcpc -i eth1 -n -q -t 10 >/dev/null");
    leaves(&mut client, "c1");
    leaves(&mut client, "c2");
    assert_eq!(guest.run("ls /sys/class/net"), "lo");
    // The host end is free for another card.
    client.run("device_add", json!({"driver": "virtio-net-pci", "netdev": "n1", "id": "c1"}));
    until(&mut guest, "test -e /sys/class/net/eth0");
    guest.run("ip link set eth0 up && udhcpc -i eth0 -n -q -t 10 >/dev/null");
    // A SCSI host comes, a disk at it, and both go.
    client.run("device_add", json!({"driver": "virtio-scsi-pci", "id": "s"}));
    until(&mut guest, "ls /sys/class/scsi_host | grep -q host");
    client.run("device_add", json!({"driver": "scsi-hd", "drive": "d2", "bus": "s.0", "id": "u"}));
    until(&mut guest, "test -b /dev/sda");
    assert_eq!(guest.run("cat /sys/block/sda/size"), "32768");
    leaves(&mut client, "u");
    until(&mut guest, "test ! -e /dev/sda");
    leaves(&mut client, "s");
    // The guest itself gives a card back.
    let slot = guest.run("basename $(readlink -f /sys/class/net/eth0/device/..) | cut -d: -f3 | cut -d. -f1");
    guest.run(&format!("echo 0 > /sys/bus/pci/slots/$((0x{slot}))/power"));
    client.event("DEVICE_DELETED", &json!({ "device": "c1" }));
    assert!(!guest.run("dmesg").contains("ACPI Error"));
    guest.send("poweroff -f\r");
    guest.ends_with(0);
}

#[test]
fn processors_come_and_go() {
    let socket = scratch("processors");
    let mut guest = boot("busybox-amd64", &socket, &["-smp", "1,maxcpus=3", "-cpu", "qemu64"]);
    let mut client = Client::connect(&socket);
    let online = "cat /sys/devices/system/cpu/online";
    assert_eq!(guest.run("cat /sys/devices/system/cpu/possible"), "0-2");
    for (core, id) in [(1, "c1"), (2, "c2")] {
        let place = json!({"driver": "qemu64-x86_64-cpu", "socket-id": 0, "core-id": core, "thread-id": 0, "id": id});
        client.run("device_add", place);
        until(&mut guest, &format!("test -e /sys/devices/system/cpu/cpu{core}"));
        guest.run(&format!("echo 1 > /sys/devices/system/cpu/cpu{core}/online"));
        assert_eq!(guest.run(online), format!("0-{core}"));
        // It works.
        let sum = "67d4ff71d43921d5739f387da09746f405e425b07d727e4c69d029461d1f051f";
        assert!(
            guest.run(&format!("taskset {:x} seq 1 1000 | taskset {:x} sha256sum", 1 << core, 1 << core)).contains(sum)
        );
    }
    leaves(&mut client, "c1");
    assert_eq!(guest.run(online), "0,2");
    assert_eq!(client.run("query-cpus-fast", json!({})).as_array().unwrap().len(), 2);
    client.run("stop", json!({}));
    client.run("cont", json!({}));
    let again = json!({"driver": "qemu64-x86_64-cpu", "apic-id": 1, "id": "c3"});
    client.run("device_add", again);
    until(&mut guest, "test -e /sys/devices/system/cpu/cpu1");
    guest.run("echo 1 > /sys/devices/system/cpu/cpu1/online");
    assert_eq!(guest.run(online), "0-2");
    assert!(!guest.run("dmesg").contains("ACPI Error"));
    guest.send("poweroff -f\r");
    guest.ends_with(0);
}

#[test]
fn serial_ports_come_and_go() {
    let (socket, folder) = (scratch("ports"), Folder::new());
    let file = folder.file("out");
    let chardev = format!("file,id=f,path={file}");
    let mut guest = boot("peripherals-amd64", &socket, &["-chardev", &chardev, "-object", "rng-builtin,id=o"]);
    let mut client = Client::connect(&socket);
    guest.run("modprobe virtio_pci && modprobe virtio_console && modprobe virtio_rng");
    client.run("device_add", json!({"driver": "virtio-serial-pci", "id": "s"}));
    for round in 0..2 {
        let name = format!("org.round.{round}");
        let port = json!({"driver": "virtserialport", "chardev": "f", "id": "p", "bus": "s.0", "nr": 5, "name": name});
        client.run("device_add", port);
        until(&mut guest, &format!("grep -q {name} /sys/class/virtio-ports/*/name"));
        guest.run(&format!(
            "echo round {round} > /dev/$(basename $(dirname $(grep -l {name} /sys/class/virtio-ports/*/name)))"
        ));
        client.event("VSERPORT_CHANGE", &json!({ "id": "p", "open": false }));
        leaves(&mut client, "p");
        until(&mut guest, "test -z \"$(ls /sys/class/virtio-ports)\"");
    }
    client.run("device_add", json!({"driver": "virtio-rng-pci", "rng": "o", "id": "r"}));
    until(&mut guest, "grep -q virtio_rng /sys/class/misc/hw_random/rng_current");
    leaves(&mut client, "r");
    leaves(&mut client, "s");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "round 0\nround 1\n");
    guest.send("poweroff -f\r");
    guest.ends_with(0);
}
