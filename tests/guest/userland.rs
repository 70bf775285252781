//! Debian's own programs print in the guest what they print on the host, byte for byte.

use std::fs::metadata;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::Duration;

use crate::harness::{BOOT, Boot, INIT, cached};

/// The commands of `tools/guestkit/files/userland.sh` take some seconds natively.
const RUN: Duration = Duration::from_secs(900);
/// The last line of that script.
const LAST: &str = "== end\n";

/// What the script prints when the same files run on the host.
fn on_the_host() -> String {
    let root = cached("userland/root");
    let mut command = Command::new("chroot");
    if metadata("/proc/self").expect("proc").uid() != 0 {
        command = Command::new("unshare");
        command.args(["--map-root-user", "chroot"]);
    }
    let output = command
        .arg(root)
        .arg("/userland/run")
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .expect("chroot");
    assert!(output.status.success(), "the host's run failed: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn debian_programs_print_what_they_print_on_the_host() {
    let expected = on_the_host();
    assert!(expected.starts_with("== corpus\n") && expected.ends_with(LAST), "the host's run is cut:\n{expected}");
    assert!(!expected.contains("command not found"), "a program is missing:\n{expected}");

    let mut guest = Boot::new("debian")
        .image("userland/image.cpio")
        .memory("1G")
        .append("quiet loglevel=0 brolga.run=/userland/run")
        .start();
    guest.expect(INIT, BOOT);
    guest.expect("s\r\n", BOOT);
    let printed = guest.expect("brolga: run ended with status ", RUN);
    for (theirs, ours) in sections(&expected).zip(sections(&printed)) {
        assert_eq!(ours, theirs, "the guest's section differs from the host's");
    }
    assert_eq!(printed, expected);
    guest.ends_with(0);
}

/// The sections of the script's output, each with its title.
fn sections(text: &str) -> impl Iterator<Item = &str> {
    text.split("\n== ")
}
