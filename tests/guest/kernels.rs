//! Kernels of other versions, configurations and widths.

use crate::harness::{Boot, COMMAND, kernel_version};

/// Boot a kernel to the shell, look who it is, and power off.
#[track_caller]
fn boots(name: &str, initramfs: &str, machine: &str) {
    let mut guest = Boot::new(name).initramfs(initramfs).append("quiet").to_shell();
    assert_eq!(guest.run("uname -r"), kernel_version(name));
    assert_eq!(guest.run("uname -m"), machine);
    assert_eq!(
        guest.run("seq 1 1000 | sha256sum"),
        "67d4ff71d43921d5739f387da09746f405e425b07d727e4c69d029461d1f051f  -"
    );
    guest.send("poweroff\r");
    guest.expect("reboot: ", COMMAND);
    guest.ends_with(0);
}

#[test]
fn backports() {
    boots("backports", "busybox-amd64", "x86_64");
}

#[test]
fn cloud_flavour() {
    boots("cloud", "busybox-amd64", "x86_64");
}

#[test]
fn realtime_flavour() {
    boots("rt", "busybox-amd64", "x86_64");
}

#[test]
fn i386_without_pae() {
    boots("686", "busybox-i386", "i686");
}

#[test]
fn i386_with_pae() {
    boots("686-pae", "busybox-i386", "i686");
}

#[test]
fn a_64_bit_kernel_runs_32_bit_programs() {
    boots("debian", "busybox-i386", "x86_64");
}
