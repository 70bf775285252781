//! UEFI firmware from Debian's package `ovmf` in flash.

use crate::disks::Folder;
use crate::harness::{BOOT, Boot, COMMAND, Guest, INIT, PROMPT};
use std::fs;
use std::path::Path;

const CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

#[test]
fn the_shell_starts_and_variables_are_kept() {
    assert!(Path::new(CODE).exists(), "{CODE} is missing: install the package ovmf");
    let folder = Folder::new();
    let variables = folder.file("vars.fd");
    fs::copy(VARIABLES, &variables).expect("a copy");
    let code = format!("if=pflash,format=raw,readonly=on,file={CODE}");
    let drive = format!("if=pflash,format=raw,file={variables}");
    let words = ["-m", "256M", "-nographic", "-net", "none", "-drive", &code, "-drive", &drive].map(str::to_owned);
    let mut guest = Guest::start(&words);
    guest.expect("Shell>", BOOT);
    guest.send("set kept here\r");
    guest.expect("Shell>", COMMAND);
    guest.send("reset -s\r");
    assert!(guest.wait(BOOT).success());
    assert!(fs::read(&variables).expect("the variables") != fs::read(VARIABLES).expect("the original"));
    let mut guest = Guest::start(&words);
    guest.expect("Shell>", BOOT);
    guest.send("set kept\r");
    guest.expect("here", COMMAND);
}

#[test]
fn a_kernel_is_started_by_its_uefi_stub() {
    assert!(Path::new(CODE).exists(), "{CODE} is missing: install the package ovmf");
    let code = format!("if=pflash,format=raw,readonly=on,file={CODE}");
    let variables = format!("if=pflash,format=raw,snapshot=on,file={VARIABLES}");
    let options = ["-no-reboot", "-net", "none", "-drive", &code, "-drive", &variables];
    let boot = Boot::new("debian").initramfs("busybox-amd64").append("quiet handed=over").options(&options);
    let mut guest = boot.start();
    guest.expect(INIT, BOOT);
    guest.expect(PROMPT, COMMAND);
    assert!(guest.run("cat /proc/cmdline").contains("handed=over"));
    assert_eq!(guest.run("ls -d /sys/firmware/efi"), "/sys/firmware/efi");
}
