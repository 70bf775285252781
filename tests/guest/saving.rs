//! A Linux guest at work whose machine is saved, goes on, is brought back, and goes on in another process.

use crate::disks::{Folder, img};
use crate::harness::{BOOT, Boot, COMMAND, Guest};
use crate::qmp::{Client, scratch};
use serde_json::json;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::thread;

/// Lines that a caller sends come back.
fn echo_server() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let port = listener.local_addr().expect("its address").port();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut bytes = [0; 256];
                while let Ok(count @ 1..) = stream.read(&mut bytes) {
                    if stream.write_all(&bytes[..count]).is_err() {
                        break;
                    }
                }
            });
        }
    });
    port
}

/// The work: each step writes its number and the sum of all so far to a sector of its own, and says so.
pub const WORK: &str = "cat >/w.sh <<'END'
n=0; sum=0
while :; do
  n=$((n+1)); sum=$(((sum*31+n)%1000003))
  echo $n $sum | dd of=/dev/vda bs=512 seek=$((n-1)) conv=sync,notrunc 2>/dev/null
  [ $((n%10)) = 0 ] && sync
  echo wo''rk $n $sum
done
END
";

/// The sum that line `n` has.
fn sum(n: u64) -> u64 {
    (1..=n).fold(0, |sum, n| (sum * 31 + n) % 1_000_003)
}

/// The next line of the work's, if it is whole and right.
fn read(guest: &mut Guest) -> Option<u64> {
    guest.expect("work ", COMMAND);
    let line = guest.expect("\n", COMMAND);
    let mut words = line.split_whitespace().map(|word| word.parse::<u64>().ok());
    let (n, found) = (words.next()??, words.next()??);
    (found == sum(n)).then_some(n)
}

/// Waits for the work's next line; it has to be right.
#[track_caller]
pub fn next(guest: &mut Guest) -> u64 {
    read(guest).expect("a line that is right")
}

/// Waits until the work is where it was earlier. The line that it was writing then ends one that was begun later.
fn goes_back(guest: &mut Guest, mut last: u64) -> u64 {
    loop {
        match read(guest) {
            Some(n) if n < last => return n,
            Some(n) => last = n,
            None => {}
        }
    }
}

/// Follows the work until it has come to `n`: where it is.
#[track_caller]
pub fn follow(guest: &mut Guest, n: u64) -> u64 {
    loop {
        let now = next(guest);
        if now >= n {
            return now;
        }
    }
}

/// The disk has what every step so far wrote, and nothing of steps that were undone.
#[track_caller]
pub fn check_disk(guest: &mut Guest, least: u64) {
    guest.send("\x03");
    guest.expect("/ # ", COMMAND);
    guest.run("sync; echo 3 >/proc/sys/vm/drop_caches");
    let read = "dd if=/dev/vda bs=512 count=4000 2>/dev/null | tr -d '\\000'";
    let wrong =
        guest.run(&format!("{read} | awk '{{ s = (s*31+NR)%1000003; if ($1 != NR || $2 != s) print NR, $0 }}'"));
    assert_eq!(wrong, "");
    let lines: u64 = guest.run(&format!("{read} | wc -l")).trim().parse().expect("a number");
    assert!((least..least + 2000).contains(&lines), "{lines} lines, {least} at least");
}

fn saved_and_brought_back(processors: &str) {
    let folder = Folder::new();
    let disk = folder.file("disk.qcow2");
    img(&["create", "-f", "qcow2", &disk, "64M"]);
    let drive = format!("file={disk},format=qcow2,if=virtio,id=d0");
    let socket = scratch(&format!("saving-{processors}"));
    let control = format!("unix:{},server=on,wait=off", socket.display());
    let options =
        ["-no-reboot", "-qmp", &control, "-smp", processors, "-drive", &drive, "-nic", "user,model=virtio-net-pci"];
    let boot = Boot::new("debian").initramfs("drivers-amd64").append("quiet").options(&options);
    let mut guest = boot.to_shell();
    let port = echo_server();
    guest.run("for m in virtio_pci virtio_blk virtio_net; do modprobe $m; done");
    guest.run("udhcpc -i eth0 -n -q -t 10 2>/dev/null");
    // A connection that stays open: what is written to the pipe comes back in the file.
    guest.run(&format!("mkfifo /p; (nc 10.0.2.2 {port} </p >/back &) ; exec 5>/p; echo before >&5"));
    guest.run("until grep -q before /back; do usleep 50000; done");
    guest.send(WORK.replace('\n', "\r").as_str());
    guest.send("sh /w.sh\r");
    follow(&mut guest, 30);
    let mut client = Client::connect(&socket);
    assert_eq!(client.human("savevm one"), "");
    let kept = next(&mut guest);
    let mut last = follow(&mut guest, kept + 30);
    // The connection was not interrupted.
    guest.send("\x03");
    guest.expect("/ # ", COMMAND);
    guest.run("echo after >&5; until grep -q after /back; do usleep 50000; done");
    for again in [false, true] {
        assert_eq!(client.human("loadvm one"), "");
        // It is at work again, where it was.
        // The first time it was stopped: any right line is of the work that came back. How far it was when it was saved is not
        // known, as the guest may be far ahead of what was read.
        let first = match again {
            true => goes_back(&mut guest, last),
            false => (0..3).find_map(|_| read(&mut guest)).expect("a line that is right"),
        };
        last = follow(&mut guest, first + 25);
    }
    check_disk(&mut guest, last);
    guest.kill();
    let more = [&options[..], &["-loadvm", "one"]].concat();
    let mut guest = Boot::new("debian").initramfs("drivers-amd64").append("quiet").options(&more).start();
    guest.expect("work ", BOOT);
    guest.expect("\n", COMMAND);
    let last = follow(&mut guest, kept + 25);
    check_disk(&mut guest, last);
    // The network is there; the old connection's other end is not, so a new one is made.
    guest.run(&format!(
        "echo anew | timeout 20 nc 10.0.2.2 {port} >/anew & sleep 1; grep -q anew /anew || sleep 5; grep anew /anew"
    ));
    guest.send("\r");
    guest.expect("/ # ", COMMAND);
    assert_eq!(guest.run("grep -c processor /proc/cpuinfo"), processors);
    guest.send("poweroff -f\r");
    guest.ends_with(0);
    img(&["check", "-q", &disk]);
}

#[test]
fn one_processor() {
    saved_and_brought_back("1");
}

#[test]
fn two_processors() {
    saved_and_brought_back("2");
}

/// What the disk has at its beginning, read anew.
fn first_word(guest: &mut Guest) -> String {
    guest.run("sync; echo 3 >/proc/sys/vm/drop_caches");
    guest.run("dd if=/dev/vda bs=512 count=1 2>/dev/null | tr -d '\\000'")
}

/// A disk and a card that came while the machine ran are in its state. Who takes it over has to have them.
#[test]
fn with_devices_that_were_plugged() {
    const CARD: &str = "virtio-net-pci,netdev=n1,id=card,addr=0x11,mac=52:54:00:00:00:77";
    let folder = Folder::new();
    let disk = folder.file("disk.qcow2");
    img(&["create", "-q", "-f", "qcow2", &disk, "8M"]);
    let drive = format!("if=none,file={disk},format=qcow2,id=d1");
    let socket = scratch("saving-plugged");
    let control = format!("unix:{},server=on,wait=off", socket.display());
    let options = ["-no-reboot", "-qmp", &control, "-nic", "none", "-drive", &drive, "-netdev", "user,id=n1"];
    let boot = |more: &[&str]| {
        let words = [&options[..], more].concat();
        Boot::new("debian").initramfs("drivers-amd64").append("quiet").options(&words)
    };
    let mut guest = boot(&[]).to_shell();
    let mut client = Client::connect(&socket);
    guest.run("for m in virtio_pci virtio_blk virtio_net; do modprobe $m; done");
    assert_eq!(client.human("device_add virtio-blk-pci,drive=d1,id=disk,addr=0x10"), "");
    assert_eq!(client.human(&format!("device_add {CARD}")), "");
    let there = "test -b /dev/vda && test -e /sys/class/net/eth0";
    guest.run(&format!("for i in $(seq 1 300); do {there} && break; sleep 0.2; done; {there}"));
    guest.run("udhcpc -i eth0 -n -q -t 10 >/dev/null 2>&1");
    guest.run("echo kept | dd of=/dev/vda conv=sync bs=512 2>/dev/null; sync");
    assert_eq!(client.human("savevm plugged"), "");
    guest.run("echo later | dd of=/dev/vda conv=sync bs=512 2>/dev/null; sync; touch /later");
    assert_eq!(first_word(&mut guest), "later");
    // In the same process.
    assert_eq!(client.human("loadvm plugged"), "");
    assert_eq!(guest.run("test ! -e /later && echo back"), "back");
    assert_eq!(first_word(&mut guest), "kept");
    guest.run("ping -c 1 -W 10 10.0.2.2");
    // Without one of them it is another machine.
    client.run("device_del", json!({ "id": "card" }));
    client.event("DEVICE_DELETED", &json!({ "device": "card" }));
    let answer = client.human("loadvm plugged");
    assert!(answer.contains("it is of a machine with the device ") && answer.lines().count() == 1, "{answer}");
    assert_eq!(first_word(&mut guest), "kept", "it goes on as it was");
    guest.kill();
    // In a process that has them from the beginning.
    let disk_here = ["-device", "virtio-blk-pci,drive=d1,id=disk,addr=0x10"];
    let without = boot(&[&disk_here[..], &["-loadvm", "plugged"]].concat()).start();
    let line = without.error_line("brolga: -loadvm plugged", COMMAND);
    assert!(line.contains("it is of a machine with the device ") && line.contains("(virtio-net-pci)"), "{line}");
    let mut guest = boot(&[&disk_here[..], &["-device", CARD, "-loadvm", "plugged"]].concat()).start();
    guest.send("\r");
    guest.expect("/ # ", BOOT);
    assert_eq!(first_word(&mut guest), "kept");
    assert_eq!(guest.run("cat /sys/class/net/eth0/address"), "52:54:00:00:00:77");
    guest.run("ping -c 1 -W 10 10.0.2.2");
    // They are as those that were plugged: they can go.
    let mut client = Client::connect(&socket);
    for id in ["card", "disk"] {
        client.run("device_del", json!({ "id": id }));
        client.event("DEVICE_DELETED", &json!({ "device": id }));
    }
    guest.send("poweroff -f\r");
    guest.ends_with(0);
    img(&["check", "-q", &disk]);
}
