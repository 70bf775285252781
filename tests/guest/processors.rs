//! Guests with several processors.

use crate::harness::{Boot, COMMAND};
use std::time::Duration;

/// Boot with `-smp smp`, let all processors work at once, and power off.
#[track_caller]
fn boots(name: &str, initramfs: &str, smp: &str, processors: &str) {
    let mut guest = Boot::new(name).initramfs(initramfs).append("quiet").options(&["-smp", smp]).to_shell();
    assert_eq!(guest.run("nproc"), processors);
    // Work that starts, moves and ends processes all the time, with results known in advance.
    let sum = "67d4ff71d43921d5739f387da09746f405e425b07d727e4c69d029461d1f051f";
    let work = format!(
        "for i in $(seq 1 8); do (for j in $(seq 1 5); do seq 1 1000 | sha256sum | grep -q {sum} || echo wrong; done) & \
         done; wait; echo finished"
    );
    let printed = guest.run_within(&work, 6 * COMMAND);
    assert!(printed.contains("finished") && !printed.contains("wrong"), "{printed}");
    let complaints = guest.run("dmesg | grep -iE 'BUG:|WARNING:|stall|unstable|tsc: Marking' | wc -l");
    assert_eq!(complaints, "0", "{}", guest.run("dmesg | tail -40"));
    guest.send("poweroff\r");
    guest.expect("reboot: ", COMMAND);
    guest.ends_with(0);
}

#[test]
fn two() {
    boots("debian", "busybox-amd64", "2", "2");
}

#[test]
fn more_than_the_host_has() {
    boots("debian", "busybox-amd64", "8,sockets=2,threads=2", "8");
}

#[test]
fn of_a_32_bit_kernel() {
    boots("686-pae", "busybox-i386", "2", "2");
}

#[test]
fn reset_starts_all_of_them_again() {
    let mut guest = Boot::new("debian").initramfs("busybox-amd64").append("quiet").options(&["-smp", "3"]).to_shell();
    assert_eq!(guest.run("nproc"), "3");
    guest.send("reboot -f\r");
    guest.expect("/ # ", 4 * COMMAND);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(guest.run("nproc"), "3");
    guest.send("poweroff\r");
    guest.ends_with(0);
}
