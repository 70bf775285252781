//! What the command line gives firmware and the guest's drivers to read: files, ACPI tables, a picture.

use crate::disks::{Folder, power_off};
use crate::harness::{BOOT, Boot, COMMAND, Guest};
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// The kernel's own driver finds the file, and its ACPI code the table.
fn files_and_tables(more: &[&str]) {
    let folder = Folder::new();
    let (body, file) = (folder.file("body"), folder.file("file"));
    fs::write(&body, "the body of a table").expect("a file");
    fs::write(&file, "from a file").expect("a file");
    let (table, given) =
        (format!("sig=TEST,oem_id=MAKER,data={body}"), format!("name=opt/org.example/file,file={file}"));
    let text = "opt/org.example/text,string=hello,, guest";
    let options = [&["-no-reboot", "-fw_cfg", text, "-fw_cfg", &given, "-acpitable", &table], more].concat();
    let mut guest = Boot::new("debian").initramfs("peripherals-amd64").append("quiet").options(&options).to_shell();
    guest.run("modprobe qemu_fw_cfg");
    let names = "/sys/firmware/qemu_fw_cfg/by_name/opt/org.example";
    assert_eq!(guest.run(&format!("cat {names}/text/raw; echo; cat {names}/file/raw")), "hello, guest\nfrom a file");
    assert_eq!(guest.run("tail -c +37 /sys/firmware/acpi/tables/TEST"), "the body of a table");
    assert!(guest.run("dmesg | grep 'ACPI: TEST'").contains("MAKER"));
    power_off(guest);
}

#[test]
fn a_kernel_without_firmware_finds_them() {
    files_and_tables(&[]);
}

#[test]
fn firmware_hands_them_on() {
    files_and_tables(&["-bios", "bios-256k.bin"]);
}

#[test]
fn firmware_shows_a_picture() {
    let folder = Folder::new();
    let picture = folder.file("splash.bmp");
    // A bitmap of 640 by 480 pixels of 24 bits, from the bottom up.
    let (width, height) = (640u32, 480u32);
    let mut bytes = b"BM".to_vec();
    for word in [54 + width * height * 3, 0, 54, 40, width, height, 24 << 16 | 1, 0, width * height * 3, 0, 0, 0, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.resize(54 + (width * height * 3) as usize, 0x55);
    fs::write(&picture, bytes).expect("a file");
    let boot = format!("menu=on,splash={picture},splash-time=30000");
    let words = ["-m", "128M", "-nographic", "-no-reboot", "-net", "none", "-boot", &boot, "-device", "ide-cd"];
    let mut guest = Guest::start(&words.map(str::to_owned));
    guest.expect("SeaBIOS", BOOT);
    let deadline = Instant::now() + BOOT;
    loop {
        guest.send("\x01c");
        guest.expect("(brolga) ", COMMAND);
        guest.send("info qtree\r");
        guest.expect("info qtree", COMMAND);
        let tree = guest.expect("(brolga) ", COMMAND);
        guest.send("\x01c");
        if tree.contains("mode = 640x480") {
            return;
        }
        assert!(Instant::now() < deadline, "no picture:\n{tree}");
        thread::sleep(Duration::from_millis(300));
    }
}
