//! Disks that the host fails: the guest sees I/O errors or waits, and the user is told in one line.

use crate::harness::{Boot, COMMAND, Guest};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

const VIRTIO: &str = "modprobe virtio_pci && modprobe virtio_blk";
/// For what takes a guest some time.
const LONG: Duration = Duration::from_secs(120);

/// A folder that is gone at the end, its mount with it.
struct Folder {
    path: PathBuf,
    mounted: bool,
}

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("brolga-disk-errors-{name}-{}", std::process::id()));
        fs::create_dir(&path).expect("a temporary folder");
        Self { path, mounted: false }
    }

    /// Mounts a file system of that size here; false where this user may not.
    fn mount(&mut self, size: &str) -> bool {
        let options = format!("{}size={size}", if self.mounted { "remount," } else { "" });
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&self.path).status();
        self.mounted |= done.is_ok_and(|status| status.success());
        self.mounted
    }

    fn file(&self, name: &str) -> String {
        self.path.join(name).to_str().expect("a path in UTF-8").to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left behind is in the temporary folder.
        if self.mounted {
            let _ = Command::new("umount").args(["-l"]).arg(&self.path).status();
        }
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn img(words: &[&str]) -> String {
    let done = Command::new(env!("CARGO_BIN_EXE_brolga-img")).args(words).output().expect("brolga-img");
    assert!(done.status.success(), "brolga-img {words:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

fn boot(drives: &[&str]) -> Boot {
    let mut options = vec!["-no-reboot"];
    drives.iter().for_each(|drive| options.extend(["-drive", drive]));
    Boot::new("debian").initramfs("drivers-amd64").append("quiet").options(&options)
}

fn power_off(mut guest: Guest) {
    guest.send("poweroff -f\r");
    guest.ends_with(0);
}

/// `werror=enospc`, the default: the guest waits until there is space, and knows of nothing.
#[test]
fn a_full_host_disk_stops_the_machine_until_there_is_space() {
    let mut folder = Folder::new("full");
    if !folder.mount("20M") {
        return eprintln!("no leave to mount a small disk: not tested");
    }
    let image = folder.file("disk.qcow2");
    img(&["create", "-q", "-f", "qcow2", &image, "64M"]);
    let mut guest = boot(&[&format!("file={image},format=qcow2,if=virtio")]).to_shell();
    guest.run(VIRTIO);
    guest.run("dd if=/dev/urandom of=/data bs=1M count=32 2>/dev/null");
    guest.send("dd if=/data of=/dev/vda bs=1M conv=fsync; echo 'writ''ten'\r");
    let line = guest.error_line("brolga: ", LONG);
    assert!(line.contains("disk.qcow2: cannot ") && line.contains("No space left on device"), "{line}");
    assert!(line.ends_with("the machine is paused, 'cont' in the monitor tries again"), "{line}");
    guest.send("\x01cinfo status\r");
    guest.expect("VM status: paused", COMMAND);
    // There is none yet: it stops again.
    guest.send("cont\rinfo status\r");
    guest.expect("VM status: ", COMMAND);
    assert!(folder.mount("100M"));
    guest.send("cont\r\x01c");
    guest.expect("written", LONG);
    guest.expect("# ", COMMAND);
    let (wrote, there) = (guest.run("md5sum < /data"), guest.run("head -c 33554432 /dev/vda | md5sum"));
    assert_eq!(wrote, there);
    assert_eq!(guest.run("dmesg | grep -ci 'i/o error' || true"), "0");
    power_off(guest);
    img(&["check", &image]);
    let raw = folder.file("disk.raw");
    img(&["convert", "-O", "raw", &image, &raw]);
    let head = format!("head -c 33554432 '{raw}' | md5sum");
    let sum = Command::new("sh").args(["-c", &head]).output().expect("md5sum");
    assert_eq!(String::from_utf8_lossy(&sum.stdout).split_whitespace().next(), wrote.split_whitespace().next());
}

/// What the host cannot write, and what cannot be read in the chain of an image, are I/O errors in the guest, with one
/// line for the user each; the rest of the disks goes on.
#[test]
fn the_guest_sees_io_errors_and_the_user_one_line() {
    let folder = Folder::new("errors");
    let (limited, base, over) = (folder.file("limited.raw"), folder.file("base.qcow2"), folder.file("over.qcow2"));
    img(&["create", "-q", "-f", "raw", &limited, "8G"]);
    // A backing file with a packed cluster that is damaged: the second one.
    let text: Vec<u8> = (0..1u32 << 20).map(|i| (i / 300) as u8).collect();
    fs::write(folder.file("text.raw"), text).expect("a file");
    img(&["convert", "-c", "-O", "qcow2", &folder.file("text.raw"), &base]);
    let map = img(&["check", "--output=json", &base]);
    assert!(map.contains("compressed-clusters"), "{map}");
    let mut bytes = fs::read(&base).expect("an image");
    // Packed clusters follow each other from the first free cluster on, in zlib's raw form.
    let packed = bytes.len() - 65536;
    bytes[packed + 400..packed + 700].fill(0xff);
    fs::write(&base, bytes).expect("a damaged image");
    img(&["create", "-q", "-f", "qcow2", "-b", &base, "-F", "qcow2", &over]);
    let first = format!("file={limited},format=raw,if=virtio");
    let second = format!("file={over},format=qcow2,if=virtio");
    // Blocks of 512 bytes: nothing is written behind 4 GiB.
    let line = "trap '' XFSZ; ulimit -f 8388608; exec \"$@\" 2>\"$ERRORS\"";
    let errors = folder.file("errors");
    let mut child = Command::new("sh")
        .args(["-c", line, "sh", crate::harness::program().to_str().expect("a path in UTF-8")])
        .args(boot(&[&first, &second]).arguments())
        .env("ERRORS", &errors)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a shell");
    let (input, output) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
    let mut guest = Guest::attached(child, input, output);
    guest.expect(crate::harness::INIT, crate::harness::BOOT);
    guest.expect(crate::harness::PROMPT, COMMAND);
    guest.run(VIRTIO);
    guest.run("dd if=/dev/urandom of=/dev/vda bs=64k count=32 conv=fsync 2>/dev/null");
    guest.run("! dd if=/dev/urandom of=/dev/vda bs=64k seek=81920 count=2 conv=fsync 2>/dev/null");
    guest.run("dd if=/dev/vda of=/dev/null bs=64k count=32 2>/dev/null");
    guest.run("! cat /dev/vdb > /dev/null 2>&1");
    guest.run("dd if=/dev/zero of=/dev/vdb bs=64k seek=10 count=2 conv=fsync 2>/dev/null");
    let seen = guest.run("dmesg | grep -i 'i/o error'");
    assert!(seen.contains("vda") && seen.contains("vdb"), "{seen}");
    power_off(guest);
    let told = fs::read_to_string(&errors).expect("the errors");
    let lines: Vec<&str> = told.lines().filter(|line| line.contains("the guest sees an I/O error")).collect();
    assert_eq!(lines.len(), 2, "{told}");
    assert!(lines[0].contains("limited.raw: cannot write") && lines[0].contains("File too large"), "{told}");
    assert!(lines[1].contains("base.qcow2") && lines[1].contains("damaged image"), "{told}");
}

/// A backing file that is gone is told before the guest starts.
#[test]
fn a_backing_file_that_is_gone_is_told() {
    let folder = Folder::new("gone");
    let (base, over) = (folder.file("base.raw"), folder.file("over.qcow2"));
    img(&["create", "-q", "-f", "raw", &base, "1M"]);
    img(&["create", "-q", "-f", "qcow2", "-b", &base, "-F", "raw", &over]);
    fs::remove_file(&base).expect("a file");
    let words = boot(&[&format!("file={over},format=qcow2,if=virtio")]).arguments();
    let done = Command::new(crate::harness::program()).args(words).output().expect("an emulator");
    let told = String::from_utf8_lossy(&done.stderr);
    assert_eq!((done.status.code(), told.lines().count()), (Some(1), 1), "{told}");
    assert!(told.contains("over.qcow2: backing file: ") && told.contains("base.raw: cannot open"), "{told}");
}
