//! Disks and CDs: started by firmware through real boot loaders, and used by a kernel's drivers.

use crate::harness::{BOOT, Boot, COMMAND, END, Guest, INIT, PROMPT, cached};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// Modules for disks and CDs on IDE, and for virtio disks.
const IDE: &str = "modprobe ata_piix && modprobe sd_mod && modprobe sr_mod && modprobe isofs \
                   && modprobe crc32c_generic && modprobe ext4";
const VIRTIO: &str = "modprobe virtio_pci && modprobe virtio_blk && modprobe crc32c_generic && modprobe ext4";

/// A file that `tools/guest.py disks` makes.
pub fn medium(name: &str) -> PathBuf {
    cached(&format!("disks/{name}"))
}

/// A folder that is gone at the end of its test.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("brolga-disks-{}-{number}", std::process::id()));
        fs::create_dir(&path).expect("a temporary folder");
        Self(path)
    }

    pub fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("a path in UTF-8").to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left behind is in the temporary folder.
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Starts a guest from firmware and waits until the boot loader and the kernel have spoken.
pub fn boot_loader(arguments: &[&str], says: &str) -> Guest {
    let fixed = ["-m", "256M", "-nographic", "-no-reboot"];
    let words: Vec<String> = fixed.iter().chain(arguments).map(|&word| word.to_owned()).collect();
    let mut guest = Guest::start(&words);
    guest.expect("SeaBIOS", BOOT);
    guest.expect(says, BOOT);
    guest.expect(INIT, BOOT);
    guest.expect(PROMPT, COMMAND);
    guest
}

/// Runs `brolga-img`.
pub fn img(words: &[&str]) {
    let done = Command::new(env!("CARGO_BIN_EXE_brolga-img")).args(words).output().expect("brolga-img");
    assert!(done.status.success(), "brolga-img {words:?}: {}", String::from_utf8_lossy(&done.stderr));
}

pub fn power_off(mut guest: Guest) {
    guest.send("poweroff -f\r");
    let status = guest.wait(END);
    assert!(status.success(), "{status}");
}

#[test]
fn grub_starts_from_an_ide_disk() {
    let drive = format!("file={},format=raw,snapshot=on", text(&medium("grub.img")));
    let mut guest = boot_loader(&["-drive", &drive], "GRUB loads the kernel");
    guest.run(IDE);
    assert!(guest.run("cat /proc/cmdline").contains("booted=grub"));
    guest.run("mount -t ext4 /dev/sda1 /mnt");
    assert_eq!(guest.run("cat /mnt/etc/motd"), "the root file system of grub.img");
    assert!(guest.run("cat /sys/block/sda/device/model").contains("BROLGA HARDDISK"));
}

#[test]
fn grub_starts_from_a_virtio_disk_that_the_boot_order_names() {
    let drive = format!("file={},format=raw,snapshot=on,if=none,id=d", text(&medium("grub.img")));
    let cd = medium("isolinux.iso");
    let device = "virtio-blk-pci,drive=d,serial=S-17,bootindex=0";
    let arguments = ["-drive", drive.as_str(), "-device", device, "-cdrom", text(&cd), "-boot", "d"];
    let mut guest = boot_loader(&arguments, "GRUB loads the kernel");
    guest.run(VIRTIO);
    assert_eq!(guest.run("cat /sys/block/vda/serial"), "S-17");
    guest.run("mount -t ext4 /dev/vda1 /mnt");
    assert_eq!(guest.run("cat /mnt/etc/motd"), "the root file system of grub.img");
    assert!(guest.run("cat /proc/interrupts").contains("virtio0-req.0"), "messages, one for the queue");
}

#[test]
fn firmware_starts_a_kernel_before_it_looks_at_disks() {
    let drive = format!("file={},format=raw,snapshot=on", text(&medium("grub.img")));
    let options = ["-no-reboot", "-bios", "bios-256k.bin", "-boot", "menu=off", "-drive", &drive];
    let boot = Boot::new("debian").initramfs("drivers-amd64").append("quiet handed=over").options(&options);
    let mut guest = boot.start();
    guest.expect("SeaBIOS", BOOT);
    guest.expect(INIT, BOOT);
    guest.expect(PROMPT, COMMAND);
    assert!(guest.run("cat /proc/cmdline").contains("handed=over"));
    // By the BIOS's own memory map, with what it took for itself.
    assert!(guest.run("dmesg | grep BIOS-e820").contains("reserved"));
    guest.run(IDE);
    guest.run("mount -t ext4 /dev/sda1 /mnt");
    assert_eq!(guest.run("cat /mnt/etc/motd"), "the root file system of grub.img");
}

#[test]
fn isolinux_starts_from_a_cd() {
    let cd = medium("isolinux.iso");
    let mut guest = boot_loader(&["-cdrom", text(&cd), "-boot", "d"], "isolinux loads the kernel");
    guest.run(IDE);
    guest.run("mount -t iso9660 -o ro /dev/sr0 /mnt");
    assert_eq!(guest.run("cat /mnt/motd"), "the file system of isolinux.iso");
    let sum = guest.run("md5sum < /dev/sr0");
    let host = Command::new("md5sum").arg(&cd).output().expect("md5sum");
    assert_eq!(sum.split_whitespace().next(), String::from_utf8_lossy(&host.stdout).split_whitespace().next());
}

/// A guest that writes to a disk, then another that finds it there.
fn keeps_what_is_written(interface: &str, modules: &str, partition: &str) {
    let folder = Folder::new();
    let image = folder.file("disk.qcow2");
    img(&["convert", "-f", "raw", "-O", "qcow2", text(&medium("grub.img")), &image]);
    let drive = format!("file={image},format=qcow2,if={interface}");
    let boot =
        Boot::new("debian").initramfs("drivers-amd64").append("quiet").options(&["-no-reboot", "-drive", &drive]);
    let mut guest = boot.to_shell();
    guest.run(modules);
    guest.run(&format!("mount -t ext4 {partition} /mnt"));
    guest.run("dd if=/dev/urandom of=/mnt/data bs=64k count=300 conv=fsync 2>/dev/null");
    let sum = guest.run("md5sum /mnt/data");
    guest.run("umount /mnt && sync");
    power_off(guest);
    img(&["check", &image]);
    let mut guest = boot.to_shell();
    guest.run(modules);
    guest.run(&format!("mount -t ext4 {partition} /mnt"));
    assert_eq!(guest.run("md5sum /mnt/data"), sum);
    assert_eq!(guest.run("dmesg | grep -ci 'i/o error' || true"), "0");
    power_off(guest);
}

#[test]
fn a_virtio_disk_keeps_what_is_written() {
    keeps_what_is_written("virtio", VIRTIO, "/dev/vda1");
}

#[test]
fn an_ide_disk_keeps_what_is_written() {
    keeps_what_is_written("ide", IDE, "/dev/sda1");
}

#[test]
fn a_snapshot_leaves_the_image_as_it_was() {
    let folder = Folder::new();
    let image = folder.file("disk.img");
    fs::copy(medium("grub.img"), &image).expect("a copy");
    let options = ["-no-reboot", "-snapshot", "-hda", &image];
    let boot = Boot::new("debian").initramfs("drivers-amd64").append("quiet").options(&options);
    let mut guest = boot.to_shell();
    guest.run(IDE);
    guest.run("mount -t ext4 /dev/sda1 /mnt");
    guest.run("echo changed > /mnt/etc/motd && sync && umount /mnt");
    guest.run("mount -t ext4 /dev/sda1 /mnt");
    assert_eq!(guest.run("cat /mnt/etc/motd"), "changed");
    guest.run("umount /mnt");
    power_off(guest);
    assert!(fs::read(&image).expect("the image") == fs::read(medium("grub.img")).expect("the original"));
}

#[test]
fn layers_by_name_are_disks_and_cds() {
    let folder = Folder::new();
    let (base, over) = (folder.file("base.img"), folder.file("over.qcow2"));
    fs::copy(medium("grub.img"), &base).expect("a copy");
    let size = fs::metadata(&base).expect("its size").len().to_string();
    // It names no backing file: the command line does.
    img(&["create", "-q", "-f", "qcow2", &over, &size]);
    let lower = format!(r#"{{"driver":"file","filename":"{base}","node-name":"base-file","auto-read-only":true}}"#);
    let upper = format!(
        "qcow2,node-name=disk,backing=base,discard=unmap,cache.direct=off,file.driver=file,file.filename={over}"
    );
    let cd = format!("raw,node-name=cd,read-only=on,file.driver=file,file.filename={}", text(&medium("isolinux.iso")));
    let arguments = [
        "-blockdev",
        &lower,
        "-blockdev",
        r#"{"node-name":"base","driver":"raw","read-only":true,"file":"base-file"}"#,
        "-blockdev",
        &upper,
        "-device",
        r#"{"driver":"virtio-blk-pci","drive":"disk","id":"d0","bootindex":1,"write-cache":"on"}"#,
        "-blockdev",
        &cd,
        "-device",
        "ide-cd,drive=cd",
    ];
    let mut guest = boot_loader(&arguments, "GRUB loads the kernel");
    guest.run(IDE);
    guest.run(VIRTIO);
    assert_eq!(guest.run("cat /sys/block/vda/queue/write_cache"), "write back");
    guest.run("mount -t ext4 /dev/vda1 /mnt");
    guest.run("echo changed > /mnt/etc/motd && umount /mnt && sync");
    guest.run("mount -t iso9660 -o ro /dev/sr0 /mnt");
    assert_eq!(guest.run("cat /mnt/motd"), "the file system of isolinux.iso");
    power_off(guest);
    img(&["check", &over]);
    assert!(fs::read(&base).expect("the base") == fs::read(medium("grub.img")).expect("the original"));
    // Without what is below it there is only what was written.
    let alone = format!("qcow2,node-name=disk,backing=,read-only=on,file.driver=file,file.filename={over}");
    let boot = Boot::new("debian").initramfs("drivers-amd64").append("quiet");
    let options = ["-no-reboot", "-blockdev", &alone, "-device", "virtio-blk-pci,drive=disk"];
    let mut guest = boot.options(&options).to_shell();
    guest.run(VIRTIO);
    assert_eq!(guest.run("cat /sys/block/vda/ro"), "1");
    assert_eq!(guest.run("grep -c changed /dev/vda"), "1");
    assert_eq!(guest.run("head -c 512 /dev/vda | md5sum"), guest.run("head -c 512 /dev/zero | md5sum"));
}
