//! SCSI disks and CDs at virtio-scsi, media that change, and space that is given back.

use crate::disks::{Folder, boot_loader, img, medium, power_off, text};
use crate::harness::{Boot, COMMAND, Guest};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

const SCSI: &str = "modprobe virtio_pci && modprobe virtio_scsi && modprobe sd_mod && modprobe sr_mod && \
                    modprobe isofs && modprobe crc32c_generic && modprobe ext4 && sleep 1";
const IDE: &str = "modprobe ata_piix && modprobe sd_mod && modprobe sr_mod && modprobe isofs";

/// A kernel with drivers, and these options.
fn linux(options: &[&str]) -> Guest {
    let options: Vec<&str> = ["-no-reboot"].iter().chain(options).copied().collect();
    Boot::new("debian").initramfs("drivers-amd64").append("quiet").options(&options).to_shell()
}

/// Types a command in the monitor; what it shows.
pub fn monitor(guest: &mut Guest, command: &str) -> String {
    guest.send("\x01c");
    guest.expect("(brolga) ", COMMAND);
    guest.send(&format!("{command}\r"));
    guest.expect("\r\n", COMMAND);
    let shown = guest.expect("(brolga) ", COMMAND);
    guest.send("\x01c\r");
    guest.expect("/ # ", COMMAND);
    shown
}

pub fn md5(path: &std::path::Path) -> String {
    let host = Command::new("md5sum").arg(path).output().expect("md5sum");
    String::from_utf8_lossy(&host.stdout).split_whitespace().next().expect("a sum").to_owned()
}

#[test]
fn grub_and_isolinux_start_from_a_scsi_host() {
    let disk = format!("file={},format=raw,snapshot=on,if=none,id=d", text(&medium("grub.img")));
    let cd = format!("file={},format=raw,media=cdrom,if=none,id=c", text(&medium("isolinux.iso")));
    let host = ["-device", "virtio-scsi-pci,id=s", "-drive", &disk, "-drive", &cd];
    let arguments = [&host[..], &["-device", "scsi-hd,drive=d,bootindex=1", "-device", "scsi-cd,drive=c"]].concat();
    drop(boot_loader(&arguments, "GRUB loads the kernel"));
    let arguments = [&host[..], &["-device", "scsi-hd,drive=d", "-device", "scsi-cd,drive=c,bootindex=1"]].concat();
    drop(boot_loader(&arguments, "isolinux loads the kernel"));
}

#[test]
fn scsi_disks_keep_what_is_written() {
    let folder = Folder::new();
    let image = folder.file("disk.qcow2");
    img(&["convert", "-f", "raw", "-O", "qcow2", text(&medium("grub.img")), &image]);
    let disk = format!("file={image},format=qcow2,if=none,id=d,discard=unmap");
    let cd = format!("file={},format=raw,media=cdrom,if=none,id=c", text(&medium("isolinux.iso")));
    let arguments = [
        "-smp",
        "2",
        "-device",
        "virtio-scsi-pci,id=s,num_queues=2",
        "-drive",
        &disk,
        "-drive",
        &cd,
        "-device",
        "scsi-hd,drive=d,bus=s.0,scsi-id=2,lun=1,serial=S-99,vendor=MAKER,product=MODEL,ver=7.1",
        "-device",
        "scsi-cd,drive=c,bus=s.0,scsi-id=5",
    ];
    let mut guest = linux(&arguments);
    guest.run(SCSI);
    let listed = guest.run("cat /sys/block/sda/device/vendor /sys/block/sda/device/model; ls /sys/class/scsi_device");
    assert!(listed.contains("MAKER") && listed.contains("MODEL") && listed.contains("0:0:2:1"), "{listed}");
    assert!(listed.contains("0:0:5:0"), "{listed}");
    let sum = guest.run("md5sum < /dev/sr0");
    assert_eq!(sum.split_whitespace().next(), Some(md5(&medium("isolinux.iso")).as_str()));
    guest.run("mount -t ext4 /dev/sda1 /mnt");
    guest.run("dd if=/dev/urandom of=/mnt/data bs=64k count=300 conv=fsync 2>/dev/null");
    let sum = guest.run("md5sum /mnt/data");
    guest.run("umount /mnt && sync");
    assert!(guest.run("cat /proc/interrupts").contains("virtio0-request"));
    power_off(guest);
    img(&["check", &image]);
    let mut guest = linux(&arguments);
    guest.run(SCSI);
    guest.run("mount -t ext4 /dev/sda1 /mnt");
    assert_eq!(guest.run("md5sum /mnt/data"), sum);
    guest.run("umount /mnt");
    assert_eq!(guest.run("dmesg | grep -ci 'i/o error' || true"), "0");
    power_off(guest);
}

/// A guest that discards a whole disk gives its space back.
fn gives_space_back(arguments: &[&str], modules: &str) {
    let folder = Folder::new();
    let image = folder.file("full.img");
    fs::write(&image, vec![0x5a; 8 << 20]).expect("an image");
    let arguments: Vec<String> = arguments.iter().map(|word| word.replace("IMAGE", &image)).collect();
    let mut guest = linux(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    guest.run(modules);
    guest.run("blkdiscard -o 4194304 -l 4194304 /dev/sda");
    guest.run("sync");
    assert_eq!(guest.run("dd if=/dev/sda bs=1M skip=4 2>/dev/null | tr -d '\\000' | wc -c"), "0");
    assert_eq!(guest.run("dd if=/dev/sda bs=1M count=4 2>/dev/null | tr -d Z | wc -c"), "0");
    power_off(guest);
    let taken = fs::metadata(&image).expect("the image").blocks() * 512;
    assert!((4 << 20..5 << 20).contains(&taken), "{taken} bytes are taken");
}

#[test]
fn scsi_disks_give_space_back() {
    let drive = "file=IMAGE,format=raw,if=none,id=d,discard=unmap";
    gives_space_back(&["-drive", drive, "-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=d"], SCSI);
}

#[test]
fn ide_disks_give_space_back() {
    gives_space_back(&["-drive", "file=IMAGE,format=raw,if=ide,discard=unmap"], IDE);
}

/// A CD is ejected, changed, locked by a mounted file system, and taken out all the same.
pub fn media_change(arguments: &[&str], modules: &str, drive: &str) {
    let folder = Folder::new();
    let other = folder.file("other.iso");
    fs::write(&other, vec![0xab; 1 << 20]).expect("an image");
    let mut guest = linux(arguments);
    guest.run(modules);
    let shown = monitor(&mut guest, "info block");
    assert!(
        shown.contains(&format!("{drive} (#block000): {} (raw, read-only)", text(&medium("isolinux.iso")))),
        "{shown}"
    );
    guest.run("mount -t iso9660 -o ro /dev/sr0 /mnt");
    let refused = monitor(&mut guest, &format!("eject {drive}"));
    assert!(refused.contains("has locked the medium"), "{refused}");
    assert!(monitor(&mut guest, "info block").contains("Removable device: locked, tray closed"));
    guest.run("umount /mnt");
    assert_eq!(monitor(&mut guest, &format!("eject {drive}")), "");
    assert!(monitor(&mut guest, "info block").contains("[not inserted]"));
    guest.run("! dd if=/dev/sr0 of=/dev/null bs=2048 count=1 2>/dev/null");
    assert_eq!(monitor(&mut guest, &format!("change {drive} {other}")), "");
    let sum = guest.run("md5sum < /dev/sr0");
    assert_eq!(sum.split_whitespace().next(), Some(md5(other.as_ref()).as_str()));
    assert!(monitor(&mut guest, &format!("change {drive} /no/such")).contains("/no/such"));
    guest.run("exec 9< /dev/sr0");
    assert_eq!(monitor(&mut guest, &format!("eject -f {drive}")), "");
    guest.run("! dd if=/dev/sr0 of=/dev/null bs=2048 count=1 2>/dev/null");
    assert!(monitor(&mut guest, "eject nothing").contains(&format!("there are {drive}")));
    power_off(guest);
}

#[test]
fn media_of_an_ide_drive_change() {
    media_change(&["-cdrom", text(&medium("isolinux.iso"))], IDE, "ide1-cd0");
}

#[test]
fn media_of_a_scsi_drive_change() {
    let cd = format!("file={},format=raw,media=cdrom,if=none,id=disc", text(&medium("isolinux.iso")));
    let arguments = ["-device", "virtio-scsi-pci", "-drive", &cd, "-device", "scsi-cd,drive=disc,id=unit"];
    media_change(&arguments, SCSI, "disc");
}

#[test]
fn drives_are_known_by_their_devices() {
    let cd = format!("file={},format=raw,media=cdrom,if=none,id=disc", text(&medium("isolinux.iso")));
    let mut guest = linux(&["-device", "ide-cd,id=cd0", "-drive", &cd, "-device", "ide-cd,drive=disc,id=cd1"]);
    assert!(monitor(&mut guest, "info block").contains("cd0: [not inserted]"));
    assert_eq!(monitor(&mut guest, &format!("change cd0 {}", text(&medium("isolinux.iso")))), "");
    assert_eq!(monitor(&mut guest, "eject cd1"), "");
    let shown = monitor(&mut guest, "info block");
    assert!(shown.contains("disc: [not inserted]") && !shown.contains("cd0: [not inserted]"), "{shown}");
    power_off(guest);
}
