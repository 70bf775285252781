//! Diskettes: firmware starts from one, and a kernel's driver reads and writes them.

use crate::disks::{Folder, power_off};
use crate::harness::{BOOT, Boot, COMMAND, Guest};
use crate::storage::{md5, monitor};
use std::fs;

/// A boot sector that shows a text on the first serial port, then one from a sector of the last track.
fn boot_sector() -> Vec<u8> {
    #[rustfmt::skip]
    let code: &[u8] = &[
        0x31, 0xc0,             // xor ax, ax
        0x8e, 0xd8,             // mov ds, ax
        0x8e, 0xc0,             // mov es, ax
        0xbe, 0x40, 0x7c,       // mov si, 0x7c40
        0xe8, 0x17, 0x00,       // call show
        0xb8, 0x01, 0x02,       // mov ax, 0x0201: read a sector
        0xbb, 0x00, 0x80,       // mov bx, 0x8000
        0xb9, 0x12, 0x4f,       // mov cx, 0x4f12: track 79, sector 18
        0xba, 0x00, 0x01,       // mov dx, 0x0100: side 1 of the first drive
        0xcd, 0x13,             // int 0x13
        0xbe, 0x00, 0x80,       // mov si, 0x8000
        0xe8, 0x03, 0x00,       // call show
        0xf4,                   // hlt
        0xeb, 0xfd,             // jmp to hlt
        // show:
        0xba, 0xf8, 0x03,       // mov dx, 0x3f8
        0xac,                   // lodsb
        0x84, 0xc0,             // test al, al
        0x74, 0x03,             // jz end
        0xee,                   // out dx, al
        0xeb, 0xf8,             // jmp to lodsb
        0xc3,                   // end: ret
    ];
    let mut sector = code.to_vec();
    sector.resize(0x40, 0);
    sector.extend(b"the boot sector runs\r\n\0");
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector
}

#[test]
fn firmware_starts_from_a_diskette() {
    let folder = Folder::new();
    for (kib, track_sectors) in [(1440, 18u8), (2880, 36)] {
        let image = folder.file("boot.img");
        let mut bytes = boot_sector();
        // The last sector of this format.
        let at = bytes.iter().position(|byte| *byte == 0x12).expect("the number of the sector");
        bytes[at] = track_sectors;
        bytes.resize(kib << 10, 0);
        let last = bytes.len() - 512;
        bytes[last..last + 20].copy_from_slice(b"and the last sector\0");
        fs::write(&image, bytes).expect("an image");
        let words = ["-m", "64M", "-nographic", "-fda", &image, "-boot", "a"].map(str::to_owned);
        let mut guest = Guest::start(&words);
        guest.expect("the boot sector runs", BOOT);
        guest.expect("and the last sector", COMMAND);
    }
}

#[test]
fn a_kernel_reads_and_writes_diskettes() {
    let folder = Folder::new();
    let (first, second, other) = (folder.file("a.img"), folder.file("b.img"), folder.file("c.img"));
    let noise =
        |kib: usize, seed: u8| -> Vec<u8> { (0..kib << 10).map(|i| (i / 512 * 7 + i % 251) as u8 ^ seed).collect() };
    fs::write(&first, noise(1440, 1)).expect("an image");
    fs::write(&second, noise(720, 2)).expect("an image");
    fs::write(&other, noise(1440, 3)).expect("an image");
    let drive = format!("if=floppy,index=1,format=raw,file={second}");
    let options = ["-no-reboot", "-fda", &first, "-drive", &drive];
    let mut guest = Boot::new("debian").initramfs("drivers-amd64").append("quiet").options(&options).to_shell();
    guest.run("modprobe floppy");
    assert!(guest.run("dmesg").contains("FDC 0 is a S82078B"));
    let sum = |guest: &mut Guest, disk: &str| {
        let shown = guest.run(&format!("echo 3 > /proc/sys/vm/drop_caches; md5sum {disk}"));
        shown.split_whitespace().next().expect("a sum").to_owned()
    };
    assert_eq!(sum(&mut guest, "/dev/fd0"), md5(first.as_ref()));
    assert_eq!(sum(&mut guest, "/dev/fd1"), md5(second.as_ref()));
    guest.run("dd if=/dev/urandom of=/dev/fd0 bs=512 seek=100 count=900 conv=fsync,notrunc 2>/dev/null");
    let written = sum(&mut guest, "/dev/fd0");
    assert_eq!(written, md5(first.as_ref()));
    let changed = monitor(&mut guest, &format!("change floppy0 {other} raw"));
    assert_eq!(changed, "");
    assert_eq!(sum(&mut guest, "/dev/fd0"), md5(other.as_ref()), "the driver sees that the diskette changed");
    assert_eq!(monitor(&mut guest, "eject floppy1"), "");
    guest.run("! dd if=/dev/fd1 of=/dev/null count=1 2>/dev/null");
    power_off(guest);
    assert_eq!(md5(first.as_ref()), written);
}
