//! A Linux guest at work that leaves one process and goes on in another, with the disk that it works on.

use crate::disks::{Folder, img};
use crate::harness::{BOOT, Boot, COMMAND};
use crate::qmp::{Client, scratch};
use crate::saving::{WORK, check_disk, follow, next};
use serde_json::{Value, json};
use std::thread::sleep;
use std::time::Duration;

/// Waits for the migration's end.
fn end(client: &mut Client) -> Value {
    loop {
        let told = client.run("query-migrate", json!({}));
        match told["status"].as_str() {
            Some("setup" | "active" | "device" | "cancelling") => sleep(Duration::from_millis(20)),
            _ => return told,
        }
    }
}

fn at_work_in_another_process(processors: &str) {
    let folder = Folder::new();
    let disk = folder.file("disk.qcow2");
    img(&["create", "-f", "qcow2", &disk, "64M"]);
    let drive = format!("file={disk},format=qcow2,if=virtio,id=d0");
    let sockets = [0, 1].map(|n| scratch(&format!("migration-{processors}-{n}")));
    let options = |n: usize, more: &[&str]| {
        let control = format!("unix:{},server=on,wait=off", sockets[n].display());
        let all =
            ["-no-reboot", "-qmp", &control, "-smp", processors, "-drive", &drive, "-nic", "user,model=virtio-net-pci"];
        let words = [&all[..], more].concat();
        Boot::new("debian").initramfs("drivers-amd64").append("quiet").options(&words)
    };
    let mut here = options(0, &[]).to_shell();
    here.run("for m in virtio_pci virtio_blk virtio_net; do modprobe $m; done");
    here.run("udhcpc -i eth0 -n -q -t 10 2>/dev/null");
    here.send(WORK.replace('\n', "\r").as_str());
    here.send("sh /w.sh\r");
    let socket = scratch(&format!("migration-{processors}-way"));
    let way = format!("unix:{}", socket.display());
    let mut there = options(1, &["-incoming", &way]).start();
    let (mut source, mut target) = (Client::connect(&sockets[0]), Client::connect(&sockets[1]));
    follow(&mut here, 30);
    source.run("migrate", json!({ "uri": way }));
    let told = end(&mut source);
    assert_eq!(told["status"], "completed", "{told}");
    assert!(told["downtime"].as_u64().is_some_and(|ms| ms < 20_000), "{told}");
    // The source is done when its last byte is out; the target has still to take it in.
    assert_eq!(end(&mut target)["status"], "completed");
    assert_eq!(target.run("query-status", json!({}))["running"], true);
    there.expect("work ", BOOT);
    there.expect("\n", COMMAND);
    let now = next(&mut there);
    let last = follow(&mut there, now + 25);
    assert_eq!(source.run("query-status", json!({}))["status"], "postmigrate");
    here.kill();
    check_disk(&mut there, last);
    there.run("ping -c 1 -W 10 10.0.2.2");
    assert_eq!(there.run("grep -c processor /proc/cpuinfo"), processors);
    there.send("poweroff -f\r");
    there.ends_with(0);
    img(&["check", "-q", &disk]);
}

#[test]
fn one_processor() {
    at_work_in_another_process("1");
}

#[test]
fn two_processors() {
    at_work_in_another_process("2");
}

/// Memory that the guest writes faster than it can be sent: it goes on until it is called off.
#[test]
fn a_busy_one_goes_on_until_it_is_cancelled() {
    let socket = scratch("migration-busy");
    let control = format!("unix:{},server=on,wait=off", socket.display());
    let boot = Boot::new("debian").initramfs("drivers-amd64").append("quiet");
    let mut guest = boot.options(&["-no-reboot", "-qmp", &control]).to_shell();
    guest.send("while :; do dd if=/dev/urandom of=/x bs=64k count=200 2>/dev/null; echo ro''und; done\r");
    guest.expect("round", COMMAND);
    let mut client = Client::connect(&socket);
    client.run("migrate-set-parameters", json!({ "max-bandwidth": 2 << 20, "downtime-limit": 10 }));
    client.run("migrate", json!({ "uri": "exec:cat >/dev/null" }));
    for _ in 0..3 {
        guest.expect("round", COMMAND);
    }
    let told = client.run("query-migrate", json!({}));
    assert!(told["status"] == "active" && told["ram"]["transferred"].as_u64() > Some(0), "{told}");
    client.run("migrate_cancel", json!({}));
    assert_eq!(end(&mut client)["status"], "cancelled");
    guest.expect("round", COMMAND);
    client.run("migrate-set-parameters", json!({ "max-bandwidth": 0, "downtime-limit": 60_000 }));
    client.run("migrate", json!({ "uri": "exec:cat >/dev/null" }));
    assert_eq!(end(&mut client)["status"], "completed");
}
