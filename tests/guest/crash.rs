//! A guest whose emulator gets `kill -9` while it writes: what it had been told is on the disk must be there.

use crate::harness::{Boot, COMMAND, Guest};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

const DRIVERS: &str = "modprobe virtio_pci && modprobe virtio_blk && modprobe crc32c_generic && modprobe ext4";
/// Moments of the kills after the first report, in milliseconds. `tools/crash` makes many more, on an installed system.
const MOMENTS: [u64; 3] = [300, 1100, 2300];
/// Files of many sizes, each reported with its checksum after fsync has returned, and noise that nobody syncs.
const WORK: &str = "(while :; do dd if=/dev/urandom of=/mnt/noise bs=64k count=40 2>/dev/null; done) & \
    i=0; while :; do i=$((i + 1)); \
    dd if=/dev/urandom of=/mnt/work/$i bs=$((i * 37 % 9000 + 1)) count=3 conv=fsync 2>/dev/null && \
    echo \"@$i $(md5sum </mnt/work/$i)\"; done";

/// A copy of the test disk as qcow2, gone at the end.
struct Image(PathBuf);

impl Image {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("brolga-crash-{}.qcow2", std::process::id()));
        let image = Self(path);
        let original = crate::harness::cached("disks/grub.img");
        let original = original.to_str().expect("a path in UTF-8");
        image.img(&["convert", "-f", "raw", "-O", "qcow2", original, image.name()], &[0]);
        image
    }

    fn name(&self) -> &str {
        self.0.to_str().expect("a path in UTF-8")
    }

    /// Runs `brolga-img`, which must end with one of these statuses.
    fn img(&self, words: &[&str], statuses: &[i32]) {
        let done = Command::new(env!("CARGO_BIN_EXE_brolga-img")).args(words).output().expect("brolga-img");
        let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
        assert!(done.status.code().is_some_and(|code| statuses.contains(&code)), "brolga-img {words:?}: {said}");
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // What is left behind is in the temporary folder.
        let _ = fs::remove_file(&self.0);
    }
}

/// Boots with the disk mounted, which replays its journal.
fn mounted(image: &Image) -> Guest {
    let drive = format!("file={},format=qcow2,if=virtio", image.name());
    let boot = Boot::new("debian").initramfs("drivers-amd64").append("quiet");
    let mut guest = boot.options(&["-no-reboot", "-nic", "none", "-drive", &drive]).to_shell();
    guest.run(DRIVERS);
    guest.run("mount -t ext4 /dev/vda1 /mnt && mkdir -p /mnt/work");
    guest
}

/// The reports whose lines were complete: checksums by number.
fn reports(transcript: &str) -> BTreeMap<u32, String> {
    let whole = transcript.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let report = |line: &str| {
        let (number, sum) = line.strip_prefix('@')?.split_once(' ')?;
        let sum = sum.split_whitespace().next().filter(|sum| sum.len() == 32)?;
        Some((number.parse().ok()?, sum.to_owned()))
    };
    whole.lines().filter_map(report).collect()
}

#[test]
fn what_was_fsynced_is_there_after_a_kill() {
    let image = Image::new();
    for moment in MOMENTS {
        let mut guest = mounted(&image);
        guest.send(&format!("{WORK}\r"));
        guest.expect("\n@1 ", COMMAND);
        thread::sleep(Duration::from_millis(moment));
        let killed = guest.kill();
        let reported = reports(&killed);
        assert!(!reported.is_empty(), "nothing was reported within {moment} ms");
        // Status 3: clusters that nobody refers to, which cost space and nothing else.
        image.img(&["check", image.name()], &[0, 3]);
        let mut guest = mounted(&image);
        for (number, sum) in &reported {
            let found = guest.run(&format!("md5sum </mnt/work/{number}"));
            assert_eq!(found.split_whitespace().next(), Some(sum.as_str()), "file {number} of {}", reported.len());
        }
        assert_eq!(guest.run("dmesg | grep -cE 'EXT4-fs (error|warning)|I/O error' || true"), "0");
        guest.run("rm -r /mnt/work /mnt/noise && umount /mnt");
        drop(guest);
        image.img(&["check", image.name()], &[0, 3]);
    }
}
