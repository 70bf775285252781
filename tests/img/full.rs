//! A host disk that is full: told in one line, nothing is damaged, and all goes on when there is space again.
//!
//! The disk is a small tmpfs, so these tests run as root only.

use super::random::Random;
use super::tree::{differs, open_ours};
use super::{M, Scratch, model};
use std::path::PathBuf;
use std::process::Command;

/// A directory with little space, and one with much beside it.
struct Small {
    dir: Scratch,
    mounted: PathBuf,
}

impl Small {
    /// With so many bytes; none where this user may not mount.
    fn new(bytes: u64) -> Option<Small> {
        let dir = Scratch::new();
        let mounted = dir.path("small");
        std::fs::create_dir(&mounted).unwrap();
        let options = format!("size={bytes}");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&mounted).output();
        if done.is_ok_and(|o| o.status.success()) {
            return Some(Small { dir, mounted });
        }
        eprintln!("no leave to mount a small disk: not tested");
        None
    }

    /// Takes all space that is left but for so many bytes.
    fn fill(&self, left: usize) {
        use std::io::Write;
        let mut file = std::fs::File::create(self.mounted.join("ballast")).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
        let len = file.metadata().unwrap().len();
        file.set_len(len.saturating_sub(left as u64)).unwrap();
    }

    /// Another size for the disk.
    fn grow(&self, size: &str) {
        let done = Command::new("mount").args(["-o", &format!("remount,size={size}")]).arg(&self.mounted).status();
        assert!(done.unwrap().success());
    }

    fn free(&self) {
        std::fs::remove_file(self.mounted.join("ballast")).unwrap();
    }

    /// The one line of a command that fails for want of space.
    fn refused(&self, line: &str) {
        let error = self.dir.bad(line, 1);
        assert!(error.contains("No space left on device"), "{line}: {error}");
    }

    /// No error, perhaps leaks, to both programs.
    fn sound(&self, name: &str, told: &str) {
        let ours = self.dir.ours(&format!("check {name}"));
        assert!(matches!(ours.status, 0 | 3), "{told}: {ours:?}");
        if model() {
            let theirs = self.dir.theirs(&format!("check {name}"));
            assert!(matches!(theirs.status, 0 | 3), "{told}: {theirs:?}");
        }
    }

    fn content(&self, name: &str) -> Vec<u8> {
        let image = open_ours(&self.dir, name, true);
        let mut content = vec![0; image.backend().len() as usize];
        image.backend().read(0, &mut content).unwrap();
        content
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Else the directory could not be removed.
        let _ = Command::new("umount").arg(&self.mounted).status();
    }
}

#[test]
fn a_guest_goes_on_when_there_is_space_again() {
    let Some(small) = Small::new(4 * M) else { return };
    for cluster in ["512", "4k", "64k"] {
        small.dir.good(&format!("create -f qcow2 -o cluster_size={cluster} small/a.qcow2 6M"));
        small.fill(700_000);
        let image = open_ours(&small.dir, "small/a.qcow2", false);
        let disk = image.backend();
        let mut wanted = vec![0; 6 * M as usize];
        let (mut written, mut refused) = (0, 0);
        for round in 0..2 {
            for (number, offset) in (0..6 * M).step_by(37_000).enumerate() {
                let len = 30_000.min(6 * M - offset) as usize;
                let part = offset as usize..offset as usize + len;
                let value = number as u8 | 1;
                match disk.write(offset, &vec![value; len]) {
                    Ok(()) => {
                        wanted[part].fill(value);
                        written += 1;
                    }
                    Err(e) => {
                        assert!(round == 0 && e.is_no_space(), "{cluster}, round {round}: {e}");
                        // What of it arrived is open; what it touches is known by reading.
                        let mut now = vec![0; len];
                        disk.read(offset, &mut now).unwrap();
                        wanted[part].copy_from_slice(&now);
                        refused += 1;
                    }
                }
                if number % 20 == 19 {
                    let _ = disk.flush();
                }
            }
            if round == 0 {
                assert!(written > 5 && refused > 5, "{cluster}: {written} writes done, {refused} refused");
                small.free();
                small.grow("16m");
            }
        }
        disk.flush().unwrap();
        drop((disk, image));
        small.sound("small/a.qcow2", cluster);
        differs(&small.content("small/a.qcow2"), &wanted, cluster);
        std::fs::remove_file(small.mounted.join("a.qcow2")).unwrap();
        small.grow("4m");
    }
}

#[test]
fn commands_tell_and_leave_images_whole() {
    let Some(small) = Small::new(5 * M) else { return };
    let dir = &small.dir;
    std::fs::write(dir.path("base.raw"), vec![1; 3 * M as usize]).unwrap();
    let mut random = Random::new(1);
    let noise: Vec<u8> = (0..8 * M).map(|_| random.below(256) as u8).collect();
    std::fs::write(dir.path("noise.raw"), noise).unwrap();
    for options in ["-O raw", "-O qcow2", "-O qcow2 -c", "-O qcow2 -o preallocation=full", "-O qcow2 -W -m 4"] {
        small.refused(&format!("convert {options} noise.raw small/x"));
        std::fs::remove_file(dir.path("small/x")).unwrap();
    }
    small.refused("create -f qcow2 -o preallocation=falloc small/x 20M");
    small.refused("create -f raw -o preallocation=full small/x 20M");
    std::fs::remove_file(dir.path("small/x")).unwrap();

    dir.good("convert -O qcow2 -o cluster_size=4k base.raw small/base.qcow2");
    dir.good("create -f qcow2 -o cluster_size=4k -b small/base.qcow2 -F qcow2 top.qcow2 8M");
    dir.good("bench -f qcow2 -w -c 900 -d 1 -s 4k -S 8k --pattern 9 top.qcow2");
    let top = small.content("top.qcow2");
    small.fill(0);
    small.refused("commit top.qcow2");
    differs(&small.content("top.qcow2"), &top, "top after a commit that failed");
    for line in [
        "snapshot -c one small/base.qcow2",
        "resize --preallocation=full small/base.qcow2 9M",
        "bench -f qcow2 -w -c 300 -d 4 -s 64k -o 3M small/grown.qcow2",
    ] {
        small.free();
        dir.good("create -q -f qcow2 -o cluster_size=512 small/grown.qcow2 32M");
        small.fill(0);
        let before = small.content("small/base.qcow2");
        small.refused(line);
        small.sound("small/base.qcow2", line);
        small.sound("small/grown.qcow2", line);
        differs(&small.content("small/base.qcow2"), &before, line);
    }
    small.free();
    std::fs::remove_file(dir.path("small/grown.qcow2")).unwrap();
    small.grow("32m");
    dir.good("commit top.qcow2");
    differs(&small.content("small/base.qcow2"), &top, "the base after the commit");
    dir.good("snapshot -c one small/base.qcow2");
    small.sound("small/base.qcow2", "with space again");
}
