//! `-kernel` with `root=` on a disk: the way of an installed system, its initramfs handing over to the disk.

use crate::harness::{BOOT, Boot, COMMAND, PROMPT, cached};
use std::fs;

/// Boots with a shell as the first program, which does what a distribution's initramfs does; the image must not change.
fn root_on(interface: &str, device: &str, modules: &str) {
    let image = cached("disks/grub.img");
    let before = fs::read(&image).expect("the image");
    let drive = format!("file={},format=raw,if={interface}", image.to_str().expect("a path in UTF-8"));
    let options = ["-no-reboot", "-nic", "none", "-snapshot", "-drive", &drive];
    let append = format!("quiet rdinit=/bin/sh root={device} rootfstype=ext4");
    let mut guest = Boot::new("debian").initramfs("drivers-amd64").append(&append).options(&options).start();
    guest.expect(PROMPT, BOOT);
    guest.run("mount -t proc proc /proc && mount -t sysfs sys /sys && mount -t devtmpfs dev /dev");
    guest.run(&format!("modprobe crc32c_generic && modprobe ext4 && {modules}"));
    guest.run("mount -t ext4 $(sed 's/.* root=//; s/ .*//' /proc/cmdline) /mnt");
    guest.run("for folder in proc sys dev; do mount -o move /$folder /mnt/$folder; done");
    guest.send("exec /mnt/bin/busybox switch_root /mnt /bin/sh\r");
    guest.expect(PROMPT, COMMAND);
    assert_eq!(guest.run("cat /etc/motd"), "the root file system of grub.img");
    assert!(guest.run("mount").contains(&format!("{device} on / type ext4 (rw")), "another root");
    guest.run("rm /etc/motd && dd if=/dev/urandom of=/noise bs=64k count=64 conv=fsync 2>/dev/null");
    guest.send("mount -o remount,ro /; echo o >/proc/sysrq-trigger\r");
    guest.ends_with(0);
    assert!(fs::read(&image).expect("the image") == before, "-snapshot has let a write through");
}

#[test]
fn the_root_is_a_virtio_disk() {
    root_on("virtio", "/dev/vda1", "modprobe virtio_pci && modprobe virtio_blk");
}

#[test]
fn the_root_is_an_ide_disk() {
    root_on("ide", "/dev/sda1", "modprobe ata_piix && modprobe sd_mod");
}
