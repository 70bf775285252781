//! The text screen of the graphics card: firmware, a boot loader and a kernel write on it.

use crate::disks::Folder;
use crate::harness::{BOOT, Boot, COMMAND, Guest, INIT, PROMPT, cached};
use std::thread;
use std::time::{Duration, Instant};

/// What the monitor answers.
fn ask(guest: &mut Guest, command: &str) -> String {
    guest.send("\x01c");
    guest.expect("(brolga) ", COMMAND);
    guest.send(&format!("{command}\r"));
    guest.expect(command, COMMAND);
    let answer = guest.expect("(brolga) ", COMMAND);
    guest.send("\x01c");
    answer
}

/// What the monitor shows of the screen.
fn screen(guest: &mut Guest) -> String {
    let tree = ask(guest, "info qtree");
    tree.lines().map(str::trim).filter(|line| line.starts_with("line ")).map(|line| format!("{line}\n")).collect()
}

/// Waits until the screen shows `text`.
fn shows(guest: &mut Guest, text: &str) {
    let deadline = Instant::now() + BOOT;
    loop {
        let screen = screen(guest);
        if screen.contains(text) {
            return;
        }
        assert!(Instant::now() < deadline, "{text:?} is not on the screen:\n{screen}");
        thread::sleep(Duration::from_millis(300));
    }
}

fn start(arguments: &[&str]) -> Guest {
    let fixed = ["-m", "256M", "-nographic", "-no-reboot"];
    let words: Vec<String> = fixed.iter().chain(arguments).map(|&word| word.to_owned()).collect();
    Guest::start(&words)
}

#[test]
fn firmware_and_a_kernel_write_on_the_screen() {
    let image = cached("disks/grub.img");
    let drive = format!("file={},format=raw,snapshot=on", image.to_str().expect("a path in UTF-8"));
    let mut guest = start(&["-drive", &drive]);
    shows(&mut guest, "SeaBIOS (version");
    shows(&mut guest, "Welcome to GRUB!");
    guest.expect(INIT, BOOT);
    guest.expect(PROMPT, COMMAND);
    // The kernel found the card, and its text console goes on below.
    shows(&mut guest, "Booting from Hard Disk");
    assert!(guest.run("cat /proc/fb /sys/class/vtconsole/vtcon*/name 2>/dev/null").contains("VGA+"));
    guest.run("echo 'a line for the screen' >/dev/tty1; printf '\\033[10;30Hin the middle' >/dev/tty1");
    shows(&mut guest, "a line for the screen");
    shows(&mut guest, "in the middle");
    let class = guest.run("cat /sys/bus/pci/devices/0000:00:02.0/class /sys/bus/pci/devices/0000:00:02.0/boot_vga");
    assert_eq!(class.split_whitespace().collect::<Vec<_>>(), ["0x030000", "1"]);
    // Scrolling, which moves the start of the screen in memory.
    guest.run("for i in $(seq 200); do echo \"row $i\"; done >/dev/tty1");
    shows(&mut guest, "row 200");
    assert!(!screen(&mut guest).contains("a line for the screen"));
    // As a picture: grey letters on black, 25 rows of them.
    let folder = Folder::new();
    let file = folder.file("screen.ppm");
    ask(&mut guest, &format!("screendump {file}"));
    let picture = std::fs::read(&file).expect("a picture");
    let pixels = picture.strip_prefix(b"P6\n720 400\n255\n").expect("a text screen");
    let lit = |row: &[u8]| row.chunks(3).any(|pixel| pixel == [170, 170, 170]);
    let rows = pixels.chunks(720 * 3 * 16).filter(|row| lit(row)).count();
    assert!(pixels.len() == 720 * 400 * 3 && rows >= 20, "{rows} rows have letters");
}

#[test]
fn isolinux_writes_on_the_screen() {
    let cd = cached("disks/isolinux.iso");
    let mut guest = start(&["-cdrom", cd.to_str().expect("a path in UTF-8"), "-boot", "d"]);
    guest.expect("isolinux loads the kernel", BOOT);
    shows(&mut guest, "ISOLINUX");
    guest.expect(INIT, BOOT);
}

#[test]
fn the_frame_buffer_is_memory() {
    let boot = Boot::new("debian").initramfs("peripherals-amd64").append("quiet");
    let mut guest = boot.to_shell();
    let class = guest.run("cat /sys/bus/pci/devices/0000:00:02.0/class; ls /sys/bus/pci/devices");
    assert!(class.contains("0x030000") && class.contains("0000:00:03.0"), "the network card comes after it: {class}");
    let range = guest.run("head -n 1 /sys/bus/pci/devices/0000:00:02.0/resource");
    let start = range.split_whitespace().next().and_then(|word| u64::from_str_radix(&word[2..], 16).ok());
    // The kernel's own driver sets a mode and puts its console there.
    guest.run("modprobe bochs && sleep 2");
    assert!(guest.run("cat /proc/fb").contains("bochs"));
    guest.run("tr '\\000' U </dev/zero | dd of=/dev/fb0 bs=1M count=3 iflag=fullblock 2>/dev/null; sleep 1");
    assert!(ask(&mut guest, "info qtree").contains("bits"), "a graphics mode");
    // Below the cursor's line.
    let shown = ask(&mut guest, &format!("xp /4xw {:#x}", start.expect("an address") + 0x10_0000));
    assert!(shown.contains("0x55555555 0x55555555 0x55555555 0x55555555"), "{shown}");
    guest.send("\r");
    guest.expect(PROMPT, COMMAND);
    assert_eq!(guest.run("dmesg | grep -ciE 'bochs.*(error|fail)' || true"), "0");
}
