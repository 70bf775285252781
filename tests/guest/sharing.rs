//! Folders of the host's, mounted over 9P by a Debian kernel's client.

use crate::harness::{Boot, Guest};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A folder that is gone at the end of its test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("brolga-sharing-{}-{name}", std::process::id()));
        fs::create_dir(&path).expect("a temporary folder");
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left behind is in the temporary folder.
        let _ = fs::remove_dir_all(&self.0);
    }
}

const LONG: Duration = Duration::from_secs(240);

/// Boots and mounts `tag` on /mnt.
fn mounted(options: &[&str], tag: &str) -> Guest {
    let options: Vec<&str> = ["-no-reboot"].iter().chain(options).copied().collect();
    let mut guest = Boot::new("debian").initramfs("peripherals-amd64").append("quiet").options(&options).to_shell();
    guest.run("modprobe virtio_pci && modprobe 9pnet_virtio && modprobe 9p");
    guest.run(&format!("mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=none {tag} /mnt"));
    guest
}

fn md5(path: &Path) -> String {
    let done = Command::new("md5sum").stdin(fs::File::open(path).expect("a file")).output().expect("md5sum");
    String::from_utf8_lossy(&done.stdout).split_whitespace().next().expect("a sum").to_owned()
}

/// What a file system must bear; each line a step that must succeed.
const EXERCISE: &str = "set -e
cd /mnt
mkdir -p tree/a/b/c tree/many
for i in $(seq 300); do echo $i >tree/many/file-$i; done
test $(ls tree/many | wc -l) = 300
cat tree/many/* | md5sum >/tmp/sums
for i in $(seq 1 2 300); do mv tree/many/file-$i tree/many/odd-$i; done
for i in $(seq 2 20 300); do rm tree/many/file-$i; done
test $(ls tree/many | wc -l) = 285
echo one >tree/a/one; echo more >>tree/a/one; test $(wc -l <tree/a/one) = 2
ln tree/a/one tree/a/b/hard; test $(stat -c %h tree/a/one) = 2
ln -s ../one tree/a/b/soft; test $(readlink tree/a/b/soft) = ../one; grep -q more tree/a/b/soft
chmod 4751 tree/a/one; test $(stat -c %a tree/a/one) = 4751
chown 12:34 tree/a/one; test $(stat -c %u:%g tree/a/one) = 12:34
touch -d '2001-02-03 04:05:06' tree/a/one; test \"$(stat -c %Y tree/a/one)\" = 981173106
mkfifo tree/a/pipe; test -p tree/a/pipe
mknod tree/a/null c 1 3; test -c tree/a/null; echo nothing >tree/a/null
mv tree/a/b tree/moved; test -e tree/moved/hard
dd if=/dev/zero of=tree/sparse bs=1 count=1 seek=5000000 2>/dev/null; test $(wc -c <tree/sparse) = 5000001
truncate -s 1234 tree/sparse; test $(wc -c <tree/sparse) = 1234
exec 5<>tree/unlinked; echo kept >&5; rm tree/unlinked; test ! -e tree/unlinked; echo kept >&5; exec 5>&-
if rmdir tree/moved 2>/dev/null; then exit 1; fi
rm -r tree/a/c 2>/dev/null || rm -r tree/moved/c
cp -a tree copy; (cd tree; find . -type f | sort | xargs md5sum) >/tmp/one; (cd copy; find . -type f | sort | xargs md5sum) >/tmp/two
cmp /tmp/one /tmp/two
rm -r copy; test ! -e copy
sync; cd /; echo all is well
";

fn exercise(guest: &mut Guest, folder: &Folder) {
    fs::write(folder.file("exercise"), EXERCISE).expect("a script");
    let said = guest.run_within("sh /mnt/exercise 2>&1", LONG);
    assert!(said.ends_with("all is well"), "{said}");
    assert_eq!(
        fs::read_dir(folder.file("tree/many"))
            .expect("the folder")
            .filter(|entry| { entry.as_ref().is_ok_and(|entry| entry.file_name() != ".virtfs_metadata") })
            .count(),
        285
    );
    assert_eq!(fs::read_to_string(folder.file("tree/many/odd-7")).expect("a file"), "7\n");
    assert_eq!(fs::metadata(folder.file("tree/sparse")).expect("a file").len(), 1234);
    assert_eq!(fs::metadata(folder.file("tree/a/one")).expect("a file").nlink(), 2);
}

#[test]
fn a_folder_with_owners_in_attributes() {
    let folder = Folder::new("xattr");
    fs::write(folder.file("from-host"), "written on the host\n").expect("a file");
    let virtfs = format!("local,path={},mount_tag=host0,security_model=mapped-xattr", folder.0.display());
    let mut guest = mounted(&["-virtfs", &virtfs], "host0");
    assert_eq!(guest.run("cat /mnt/from-host"), "written on the host");
    exercise(&mut guest, &folder);
    // On the host everything is the user's, and nothing is a device, a link or set-user-ID.
    let one = fs::metadata(folder.file("tree/a/one")).expect("a file");
    assert_eq!(one.mode() & 0o7777, 0o600);
    assert_eq!(one.uid(), fs::metadata(folder.file("from-host")).expect("a file").uid());
    for name in ["tree/a/null", "tree/a/pipe", "tree/moved/soft"] {
        assert!(fs::symlink_metadata(folder.file(name)).expect("a file").is_file(), "{name}");
    }
    // Large files, both ways.
    guest.run_within("head -c 30000001 /dev/urandom >/mnt/large", LONG);
    assert_eq!(guest.run("md5sum </mnt/large").split_whitespace().next(), Some(md5(&folder.file("large")).as_str()));
    let file = fs::File::options().write(true).open(folder.file("large")).expect("the file");
    file.write_at(b"changed on the host", 12_345_678).expect("a write");
    assert_eq!(guest.run("dd if=/mnt/large bs=1 skip=12345678 count=19 2>/dev/null"), "changed on the host");
    assert_eq!(guest.run("md5sum </mnt/large").split_whitespace().next(), Some(md5(&folder.file("large")).as_str()));
    assert!(guest.run("df /mnt | tail -1").starts_with("host0"));
    // What the next guest mounts is what this one left.
    guest.send("poweroff -f\r");
    guest.ends_with(0);
    let mut guest = mounted(&["-virtfs", &virtfs], "host0");
    assert_eq!(guest.run("stat -c '%u:%g %a %h' /mnt/tree/a/one"), "12:34 751 2");
    assert_eq!(guest.run("stat -c '%F %t %T' /mnt/tree/a/null"), "character special file 1 3");
    assert_eq!(guest.run("readlink /mnt/tree/moved/soft"), "../one");
}

#[test]
fn a_folder_with_owners_in_files_and_one_that_is_only_read() {
    let (folder, other) = (Folder::new("file"), Folder::new("only"));
    fs::write(other.file("text"), "for reading\n").expect("a file");
    let fsdev = format!("local,id=f,path={},security_model=mapped-file", folder.0.display());
    let virtfs = format!("local,path={},mount_tag=only,readonly=on", other.0.display());
    let options = ["-fsdev", &fsdev, "-device", "virtio-9p-pci,fsdev=f,mount_tag=files", "-virtfs", &virtfs];
    let mut guest = mounted(&options, "files");
    exercise(&mut guest, &folder);
    assert_eq!(guest.run("ls -A /mnt/tree/a").split_whitespace().collect::<Vec<_>>(), ["null", "one", "pipe"]);
    guest.run("umount /mnt && mount -t 9p -o trans=virtio,version=9p2000.L only /mnt");
    assert_eq!(guest.run("cat /mnt/text"), "for reading");
    guest.run("! rm /mnt/text 2>/dev/null; ! touch /mnt/new 2>/dev/null; ! sh -c 'echo x >>/mnt/text' 2>/dev/null");
    assert_eq!(fs::read_to_string(other.file("text")).expect("the file"), "for reading\n");
}

#[test]
fn a_link_to_the_outside_leads_nowhere() {
    let (folder, outside) = (Folder::new("none"), Folder::new("outside"));
    fs::write(outside.file("secret"), "the secret").expect("a file");
    symlink(outside.file("secret"), folder.file("link")).expect("a link");
    symlink(&outside.0, folder.file("door")).expect("a link");
    let virtfs = format!("local,path={},mount_tag=t,security_model=none", folder.0.display());
    let mut guest = mounted(&["-virtfs", &virtfs], "t");
    // The guest follows links in its own tree, where there is nothing of that name.
    guest.run("! cat /mnt/link 2>/dev/null; ! ls /mnt/door/ 2>/dev/null; ! cat /mnt/door/secret 2>/dev/null");
    guest.run("cat /mnt/../mnt/link 2>&1 | grep -q 'No such file'");
    guest.run("ln -s /etc/passwd /mnt/other; test $(readlink /mnt/other) = /etc/passwd");
    assert_eq!(fs::read_link(folder.file("other")).expect("a link"), Path::new("/etc/passwd"));
    assert_eq!(guest.run("ls /mnt/.. | grep -c outside || true"), "0");
    assert!(!guest.transcript().contains("the secret"));
}
