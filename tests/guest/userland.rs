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
    in_root(&["/userland/run"])
}

/// What a command prints in the root that the guest has, on the host.
fn in_root(words: &[&str]) -> String {
    let root = cached("userland/root");
    let mut command = Command::new("chroot");
    if metadata("/proc/self").expect("proc").uid() != 0 {
        command = Command::new("unshare");
        command.args(["--map-root-user", "chroot"]);
    }
    let output = command
        .arg(root)
        .args(words)
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

/// Programs that choose their code by the processor's features, with all features that both sides have: AVX2 and FMA in the C
/// library, more in OpenSSL.
#[test]
fn wide_vectors_compute_what_they_compute_on_the_host() {
    if !is_x86_feature_detected!("avx2") || !is_x86_feature_detected!("fma") {
        eprintln!("skipped: the host has no AVX2 and FMA");
        return;
    }
    // The sections that AVX has no part in take most of the time.
    let left_out = r"/^section \(python-[ie]\|luajit\|node\|cc1\|sqlite\|shell\)/d";
    let script = format!("sed -e /GLIBC_TUNABLES/d -e '{left_out}' /userland/run");
    let host = in_root(&["/bin/bash", "-c", &format!("{script} | bash")]);
    assert!(host.contains("== openssl\n") && host.ends_with(LAST), "the host's run is cut:\n{host}");

    let boot = Boot::new("debian").image("userland/image.cpio").memory("1G").options(&["-no-reboot", "-cpu", "max"]);
    let mut guest = boot.append("quiet loglevel=0").start();
    guest.expect(INIT, BOOT);
    guest.expect("# ", BOOT);
    // The prompt that the harness waits for.
    guest.send("PS1=/\\ #\\ \r");
    guest.expect("\n/ # ", BOOT);
    let flags = guest.run("grep -m1 ^flags /proc/cpuinfo");
    for flag in ["avx", "avx2", "fma", "f16c", "vaes", "vpclmulqdq", "xsaves"] {
        assert!(flags.split_whitespace().any(|f| f == flag), "no {flag} among {flags}");
    }
    let printed = guest.run_within(&format!("{script} >/tmp/run; bash /tmp/run"), RUN);
    for (theirs, ours) in sections(&host).zip(sections(&printed)) {
        assert_eq!(ours.trim_end(), theirs.trim_end(), "the guest's section differs from the host's");
    }
    assert_eq!(printed.trim_end(), host.trim_end());
}

/// The sections of the script's output, each with its title.
fn sections(text: &str) -> impl Iterator<Item = &str> {
    text.split("\n== ")
}
