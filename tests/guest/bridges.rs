//! Devices behind PCI bridges, one of them behind another.

use crate::disks::{boot_loader, medium, power_off, text};
use crate::harness::{Boot, COMMAND, Guest};

const MODULES: &str = "modprobe virtio_pci && modprobe virtio_blk && modprobe virtio_scsi && modprobe sd_mod && \
                       modprobe e1000 && modprobe 8139cp && modprobe crc32c_generic && modprobe ext4";

/// A disk to start from two bridges deep, a card beside it, and a SCSI host and another card one bridge deep.
fn devices(disk: &str) -> Vec<String> {
    let words = [
        "-device",
        "pci-bridge,id=outer,chassis_nr=1,addr=5",
        "-device",
        "pci-bridge,id=inner,chassis_nr=2,bus=outer,addr=0x1e",
        "-drive",
        disk,
        "-device",
        "virtio-blk-pci,drive=d,bus=inner,addr=3,bootindex=0,serial=DEEP",
        "-netdev",
        "user,id=n0",
        "-device",
        "e1000,netdev=n0,bus=inner,addr=7,mac=52:54:00:00:00:01",
        "-netdev",
        "user,id=n1",
        "-device",
        "rtl8139,netdev=n1,bus=outer,mac=52:54:00:00:00:02",
        "-device",
        "virtio-scsi-pci,id=s,bus=outer",
        "-device",
        "scsi-cd,bus=s.0",
    ];
    words.map(str::to_owned).into()
}

fn disk() -> String {
    format!("file={},format=raw,snapshot=on,if=none,id=d", text(&medium("grub.img")))
}

/// All of them work, by interrupts of both kinds.
fn work(guest: &mut Guest) {
    guest.run(MODULES);
    assert_eq!(guest.run("cat /sys/block/vda/serial"), "DEEP");
    // Two bridges above the disk's slot.
    let path = guest.run("readlink -f /sys/block/vda/device");
    assert!(path.contains("/0000:00:05.0/0000:01:1e.0/0000:02:03.0/"), "{path}");
    guest.run("mount -t ext4 /dev/vda1 /mnt");
    assert_eq!(guest.run("cat /mnt/etc/motd"), "the root file system of grub.img");
    guest.run("dd if=/dev/urandom of=/mnt/data bs=64k count=100 conv=fsync 2>/dev/null && umount /mnt");
    assert_eq!(guest.run("ls -d /sys/bus/scsi/devices/*:*:*:* | wc -l"), "1");
    for (address, bus) in [("52:54:00:00:00:01", "0000:02:07.0"), ("52:54:00:00:00:02", "0000:01:")] {
        let card = guest.run(&format!("grep -l {address} /sys/class/net/*/address | cut -d/ -f5"));
        assert!(guest.run(&format!("readlink -f /sys/class/net/{card}/device")).contains(bus));
        guest.run(&format!("udhcpc -i {card} -n -q -t 10 2>/dev/null && ping -c 2 -W 5 10.0.2.2"));
        guest.run(&format!("ip addr flush dev {card} && ip link set {card} down"));
    }
    assert_eq!(guest.run("dmesg | grep -ci 'nobody cared\\|can.t assign\\|no space for' || true"), "0");
}

#[test]
fn firmware_finds_and_starts_from_a_disk_behind_two_bridges() {
    let words = devices(&disk());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut guest = boot_loader(&words, "GRUB loads the kernel");
    work(&mut guest);
    power_off(guest);
}

#[test]
fn a_kernel_without_firmware_finds_all_behind_bridges() {
    let words = devices(&disk());
    let options: Vec<&str> = ["-no-reboot"].into_iter().chain(words.iter().map(String::as_str)).collect();
    let mut guest = Boot::new("debian").initramfs("drivers-amd64").append("quiet").options(&options).to_shell();
    // Nothing is left for the kernel to put right.
    assert_eq!(guest.run("dmesg | grep -c 'bridge configuration invalid\\|BAR .*: assigned' || true"), "0");
    work(&mut guest);
    guest.send("\x01c");
    guest.expect(") ", COMMAND);
    guest.send("info pci\r");
    let shown = guest.expect("Bus  2, device   7, function 0:", COMMAND);
    assert!(shown.contains("Bus  1, device  30, function 0:\n    PCI bridge"), "{shown}");
    guest.send("info qtree\r");
    let shown = guest.expect("pci-bridge.2", COMMAND);
    assert!(shown.contains("pci-bridge.1"), "{shown}");
    guest.send("quit\r");
    guest.ends_with(0);
}
