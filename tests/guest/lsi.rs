//! Disks and CDs at the Symbios SCSI host that `-drive if=scsi` brings, and at its older sibling.

use crate::disks::{Folder, boot_loader, img, medium, power_off, text};
use crate::harness::{Boot, Guest};
use crate::storage::{md5, media_change};

const MODULES: &str = "modprobe sd_mod && modprobe sr_mod && modprobe isofs && modprobe crc32c_generic && modprobe ext4 \
                       && modprobe sym53c8xx && sleep 4";

fn linux(memory: &str, options: &[&str]) -> Guest {
    let options: Vec<&str> = ["-no-reboot"].iter().chain(options).copied().collect();
    Boot::new("debian").initramfs("drivers-amd64").append("quiet").memory(memory).options(&options).to_shell()
}

#[test]
fn grub_and_isolinux_start_from_an_lsi_host() {
    let disk = format!("file={},format=raw,snapshot=on,if=scsi", text(&medium("grub.img")));
    drop(boot_loader(&["-drive", &disk], "GRUB loads the kernel"));
    let cd = format!("file={},format=raw,media=cdrom,if=none,id=c", text(&medium("isolinux.iso")));
    let device = "scsi-cd,drive=c,scsi-id=6,bootindex=0";
    let arguments = ["-drive", &disk, "-drive", &cd, "-device", "lsi", "-device", device];
    drop(boot_loader(&arguments, "isolinux loads the kernel"));
}

#[test]
fn lsi_disks_keep_what_is_written() {
    let folder = Folder::new();
    let image = folder.file("disk.qcow2");
    img(&["convert", "-f", "raw", "-O", "qcow2", text(&medium("grub.img")), &image]);
    let disk = format!("file={image},format=qcow2,if=none,id=d");
    let cd = format!("file={},format=raw,media=cdrom,if=scsi,index=5", text(&medium("isolinux.iso")));
    let device = "scsi-hd,drive=d,bus=scsi.0,scsi-id=2,lun=1,serial=S-99,vendor=MAKER,product=MODEL";
    // Memory above 4 GiB: addresses of 40 bits.
    let arguments = ["-smp", "2", "-drive", &cd, "-drive", &disk, "-device", device];
    let mut guest = linux("5G", &arguments);
    guest.run(MODULES);
    let listed = guest.run("cat /sys/block/sda/device/vendor /sys/block/sda/device/model; ls /sys/class/scsi_device");
    assert!(listed.contains("MAKER") && listed.contains("MODEL") && listed.contains("0:0:2:1"), "{listed}");
    assert!(listed.contains("0:0:5:0"), "{listed}");
    assert!(guest.run("dmesg").contains("tagged command queuing enabled"));
    let sum = guest.run("md5sum < /dev/sr0");
    assert_eq!(sum.split_whitespace().next(), Some(md5(&medium("isolinux.iso")).as_str()));
    guest.run("mount -t ext4 /dev/sda1 /mnt");
    // Several at once: commands leave the bus and come back in another order.
    guest.run(
        "for i in 1 2 3 4; do dd if=/dev/urandom of=/mnt/data$i bs=64k count=80 conv=fsync 2>/dev/null & done; wait",
    );
    let sum = guest.run("cat /mnt/data? | md5sum");
    guest.run("umount /mnt && sync");
    assert!(guest.run("cat /proc/interrupts").contains("sym53c8xx"));
    power_off(guest);
    img(&["check", &image]);
    let mut guest = linux("5G", &arguments);
    guest.run(MODULES);
    guest.run("mount -t ext4 /dev/sda1 /mnt");
    assert_eq!(guest.run("cat /mnt/data? | md5sum"), sum);
    guest.run("umount /mnt");
    assert_eq!(guest.run("dmesg | grep -ciE 'i/o error|abort|reset operation' || true"), "0");
    power_off(guest);
}

#[test]
fn the_older_chip_serves_too() {
    let disk = format!("file={},format=raw,snapshot=on,if=none,id=d", text(&medium("grub.img")));
    let arguments = ["-drive", &disk, "-device", "lsi53c810", "-device", "scsi-hd,drive=d,scsi-id=3"];
    let mut guest = linux("256M", &arguments);
    guest.run(MODULES);
    assert!(guest.run("dmesg").contains("sym0: <810>"));
    guest.run("mount -t ext4 /dev/sda1 /mnt");
    assert_eq!(guest.run("cat /mnt/etc/motd"), "the root file system of grub.img");
    guest.run("dd if=/dev/urandom of=/mnt/data bs=64k count=100 conv=fsync 2>/dev/null; md5sum /mnt/data > /tmp/sum");
    guest.run("umount /mnt && echo 3 > /proc/sys/vm/drop_caches && mount -t ext4 /dev/sda1 /mnt && md5sum -c /tmp/sum");
    assert_eq!(guest.run("dmesg | grep -ciE 'i/o error|abort|reset operation' || true"), "0");
    power_off(guest);
}

#[test]
fn media_of_an_lsi_drive_change() {
    let cd = format!("file={},format=raw,media=cdrom,if=scsi,id=disc", text(&medium("isolinux.iso")));
    media_change(&["-drive", &cd], MODULES, "disc");
}
