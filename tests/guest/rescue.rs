//! Programs that know no operating system, from the CDs that `tools/guest.py rescue` makes: GRUB's rescue CD,
//! memtest86+, and MEMDISK, whose real-mode code stays resident under what it starts.

use crate::harness::{BOOT, COMMAND, Guest, cached};
use std::time::Duration;

/// How long memtest86+ may take over a few MiB.
const PASS: Duration = Duration::from_secs(300);

/// Starts a CD by firmware.
fn start(cd: &str, memory: &str, processors: &str) -> Guest {
    let cd = cached(&format!("rescue/{cd}"));
    let cd = cd.to_str().expect("a path in UTF-8");
    let machine = ["-m", memory, "-smp", processors, "-nographic", "-no-reboot", "-nic", "none"];
    let words = [&machine[..], &["-cdrom", cd, "-boot", "d"]].concat();
    let words: Vec<String> = words.into_iter().map(str::to_owned).collect();
    let mut guest = Guest::start(&words);
    guest.expect("SeaBIOS", BOOT);
    guest
}

#[test]
fn grubs_rescue_cd_comes_to_a_prompt() {
    let mut guest = start("grub.iso", "64M", "1");
    guest.expect("grub> ", BOOT);
    guest.send("ls\r");
    guest.expect("(cd)", COMMAND);
    guest.expect("grub> ", COMMAND);
    // Modules come from the CD when they are asked for.
    guest.send("cat (cd)/motd\r");
    guest.expect("the file system of grub.iso", COMMAND);
    guest.expect("grub> ", COMMAND);
    guest.send("insmod hashsum\r");
    guest.expect("grub> ", COMMAND);
    guest.send("md5sum (cd)/motd\r");
    guest.expect("40550881f472f710f3c37b10582353c3", COMMAND);
    guest.expect("grub> ", COMMAND);
    guest.send("halt\r");
    guest.ends_with(0);
}

#[test]
fn memdisk_starts_a_floppy_image_in_memory() {
    let mut guest = start("tools.iso", "64M", "1");
    guest.expect("boot:", BOOT);
    guest.send("floppy\r");
    guest.expect("MEMDISK", BOOT);
    guest.expect("1440 K, C/H/S = 80/2/18", COMMAND);
    // GRUB reads its own image through MEMDISK's INT 13h.
    guest.expect("GRUB speaks from a floppy in memory", COMMAND);
    guest.expect("> ", COMMAND);
    guest.send("ls\r");
    guest.expect("(fd0)", COMMAND);
}

#[test]
fn memtest_finishes_a_pass_on_two_processors() {
    let mut guest = start("tools.iso", "16M", "2");
    guest.expect("boot:", BOOT);
    guest.send("memtest\r");
    // Both processors test, at a time.
    guest.expect("SMP: 2T (PAR)", BOOT);
    guest.expect("Errors: 0", BOOT);
    // Menus: test selection, remove one test: the last waits for bits to fade, minutes by the clock.
    for (keys, shows) in [("1", "Test selection"), ("1", "Remove one test"), ("2", "Enter test #")] {
        guest.send(keys);
        guest.expect(shows, COMMAND);
    }
    guest.send("10\r");
    guest.expect("*.********.", COMMAND);
    for (keys, shows) in [("0", "Test selection"), ("0", "Status: Testing")] {
        guest.send(keys);
        guest.expect(shows, COMMAND);
    }
    guest.expect("Pass:  1 ", PASS);
    let transcript = guest.transcript();
    let errors = transcript.rsplit("Errors: ").next().map(str::trim_start).unwrap_or_default();
    assert!(errors.is_empty() || errors.starts_with('0'), "memtest86+ has found errors: {errors}");
    assert!(!transcript.contains("Errors: 1"), "memtest86+ has found errors");
}
