//! Debian 12's own kernel: to a shell, and every way out of it.

use crate::harness::{BOOT, Boot, COMMAND, INIT, PROMPT, kernel_version};

/// Kernel messages that mean that something is wrong with the machine the guest runs on.
const COMPLAINTS: &[&str] = &[
    "BUG:",
    "WARNING:",
    "Call Trace:",
    "Oops",
    "Kernel panic",
    "general protection fault",
    "soft lockup",
    "hung_task",
    "blocked for more than",
    "rcu: INFO",
    "unchecked MSR access",
    "TSC unstable",
    "as unstable",
    "Clocksource tsc skewed",
    "timekeeping watchdog",
    "clock skew",
    "time went backwards",
    "TSC calibration failed",
    "timer doesn't work",
    "MP-BIOS bug",
    "nobody cared",
    "spurious",
    "[Firmware Bug]",
    "ACPI BIOS Error",
    "ACPI Error",
    "too much work for irq",
    "FAULT",
    "segfault",
    "invalid opcode",
];

#[test]
fn a_shell_takes_input_and_poweroff_ends_the_process() {
    let mut guest = Boot::new("debian").to_shell();
    guest.send("echo typed input is echoed\r");
    guest.expect("echo typed input is echoed\r\n", COMMAND);
    guest.expect("typed input is echoed\r\n", COMMAND);
    guest.expect(PROMPT, COMMAND);
    assert_eq!(guest.run("uname -r"), kernel_version("debian"));
    assert_eq!(guest.run("uname -m"), "x86_64");
    assert_eq!(guest.run("expr 6 '*' 7"), "42");
    guest.send("poweroff\r");
    guest.expect("reboot: Power down", COMMAND);
    guest.ends_with(0);
}

#[test]
fn the_kernel_has_no_complaints() {
    let mut guest = Boot::new("debian").to_shell();
    // Long enough for the clock watchdogs to have looked twice.
    guest.run("sleep 3");
    let log = guest.run("dmesg");
    let found: Vec<&str> =
        log.lines().filter(|line| COMPLAINTS.iter().any(|complaint| line.contains(complaint))).collect();
    assert!(found.is_empty(), "dmesg complains:\n{}", found.join("\n"));
    assert!(log.contains("Run /init as init process"), "this is no whole log:\n{log}");
    guest.send("poweroff\r");
    guest.ends_with(0);
}

#[test]
fn reboot_with_no_reboot_ends_the_process() {
    let mut guest = Boot::new("debian").to_shell();
    guest.send("reboot\r");
    guest.expect("reboot: Restarting system", COMMAND);
    guest.ends_with(0);
}

#[test]
fn reboot_starts_the_kernel_again() {
    let mut guest = Boot::new("debian").append("quiet").options(&[]).to_shell();
    guest.send("reboot\r");
    guest.expect(INIT, BOOT);
    guest.expect(PROMPT, COMMAND);
    let up: f64 = guest.run("cut -d' ' -f1 /proc/uptime").parse().expect("an uptime in seconds");
    assert!(up < BOOT.as_secs_f64(), "the clock of the new boot began long ago: {up} s");
    guest.send("poweroff\r");
    guest.ends_with(0);
}

#[test]
fn a_kernel_panic_ends_the_process_with_no_reboot() {
    let mut guest = Boot::new("debian").append("rdinit=/missing init=/missing").start();
    guest.expect("Kernel panic - not syncing", BOOT);
    guest.ends_with(0);
}

#[test]
fn init_may_be_named_on_the_command_line() {
    for words in ["rdinit=/init", "root=/dev/ram rw init=/init"] {
        let mut guest =
            Boot::new("debian").append(words).append("quiet brolga.run=/bin/cat brolga.args=/proc/cmdline").start();
        guest.expect(INIT, BOOT);
        let printed = guest.expect("brolga: run ended with status 0", COMMAND);
        assert!(printed.contains(words), "the guest saw another command line: {printed}");
        guest.ends_with(0);
    }
}

#[test]
fn the_guest_has_the_memory_it_was_given() {
    for (size, mebibytes) in [("128", 128), ("512M", 512), ("3G", 3072), ("4096M", 4096)] {
        let mut guest = Boot::new("debian").memory(size).append("quiet").to_shell();
        let total: u64 = guest.run("awk '/MemTotal/ { print $2 }' /proc/meminfo").parse().expect("a size in KiB");
        let total = total / 1024;
        // The kernel keeps its own image and page descriptors: a fixed part and a share of all memory.
        let least = mebibytes - 64 - mebibytes / 25;
        assert!((least..mebibytes).contains(&total), "-m {size}: MemTotal is {total} MiB");
        guest.send("poweroff\r");
        guest.ends_with(0);
    }
}

#[test]
fn smbios_strings_reach_the_guest() {
    let mut guest = Boot::new("debian")
        .append("quiet")
        .options(&["-no-reboot", "-smbios", "type=1,manufacturer=Brolga Works,product=Wader,serial=B-17"])
        .to_shell();
    let shown = guest.run("cd /sys/class/dmi/id; cat sys_vendor product_name product_serial; cd /");
    assert_eq!(shown.lines().collect::<Vec<_>>(), ["Brolga Works", "Wader", "B-17"]);
    guest.send("poweroff\r");
    guest.ends_with(0);
}
