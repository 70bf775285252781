//! Locks that QEMU understands and takes itself, so that no two programs write one image.
//!
//! QEMU (block/file-posix.c, "raw_check_lock_bytes") locks single bytes of the file, far inside
//! where no data is affected: byte 100 + n says "I use permission n", byte 200 + n "nobody else
//! may". All are shared locks; a conflict shows when an exclusive one would not be given.

use super::{BlockError, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

const USED: i64 = 100;
const NOT_SHARED: i64 = 200;
/// Permissions: reading, writing, and changing the size.
const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

fn byte(kind: i32, at: i64) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: at, l_len: 1, l_pid: 0 }
}

/// How often a busy file is looked at, and the pause between. A file that was just closed stays
/// locked for a moment if some thread was starting a process then, which inherited it.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(10);

/// Locks an image for reading, or for writing too. The locks go when the file is closed.
pub(super) fn lock(file: &File, name: &str, write: bool) -> Result<()> {
    for _ in 0..TRIES {
        if try_lock(file, name, write)? {
            return Ok(());
        }
        std::thread::sleep(PAUSE);
    }
    Err(busy(file, name, write))
}

/// One try; false if somebody else has the file. What was locked stays so until the next try.
fn try_lock(file: &File, name: &str, write: bool) -> Result<bool> {
    let used: &[i64] = if write { &[READ, WRITE, RESIZE] } else { &[READ] };
    let not_shared = &[WRITE, RESIZE];
    let bytes = used.iter().map(|p| USED + p).chain(not_shared.iter().map(|p| NOT_SHARED + p));
    for at in bytes {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&byte(libc::F_RDLCK, at))) {
            Ok(_) => {}
            // A file system without locks: nobody can be told.
            Err(Errno::ENOLCK | Errno::EOPNOTSUPP | Errno::EINVAL) => return Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES) => return Ok(false),
            Err(e) => return Err(failed(name, e)),
        }
    }
    let refused = used.iter().map(|p| NOT_SHARED + p).chain(not_shared.iter().map(|p| USED + p));
    for at in refused {
        let mut test = byte(libc::F_WRLCK, at);
        fcntl(file, FcntlArg::F_OFD_GETLK(&mut test)).map_err(|e| failed(name, e))?;
        if i32::from(test.l_type) != libc::F_UNLCK {
            return Ok(false);
        }
    }
    Ok(true)
}

fn failed(name: &str, e: Errno) -> BlockError {
    BlockError::Io { name: name.to_string(), action: "cannot lock".to_string(), source: e.into() }
}

fn busy(file: &File, name: &str, write: bool) -> BlockError {
    let who = match holders(file) {
        list if list.is_empty() => "another program".to_string(),
        list => list.join(", "),
    };
    let want = if write { "writing" } else { "reading" };
    let what = format!("in use by {who}, so it cannot be opened for {want}; end that first");
    BlockError::Unsupported { name: name.to_string(), what }
}

/// Who has the file open, as "qemu-system-x86 (pid 12)". Open file locks do not tell, so this looks
/// through the processes that we may see.
fn holders(file: &File) -> Vec<String> {
    let Ok(wanted) = file.metadata() else { return Vec::new() };
    let same = |m: std::fs::Metadata| (m.dev(), m.ino()) == (wanted.dev(), wanted.ino());
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let open = std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let holds = open.filter_map(|fd| std::fs::metadata(fd.path()).ok()).any(same);
        if holds && pid != std::process::id() {
            let command = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push(format!("{} (pid {pid})", command.trim()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use crate::block::qcow2::{CreateOptions, create};
    use crate::block::scratch::{Scratch, have};
    use crate::block::{OpenOptions, Preallocation, create_raw, open};
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Command, Stdio};

    fn options(read_only: bool) -> OpenOptions {
        OpenOptions { read_only, lock: true, ..OpenOptions::default() }
    }

    #[test]
    fn one_writer_or_many_readers() {
        let dir = Scratch::new();
        let path = dir.path("disk.raw");
        create_raw(&path, 1 << 20, Preallocation::Off).unwrap();
        let writer = open(&path, &options(false)).unwrap();
        assert!(open(&path, &options(true)).err().expect("busy").to_string().contains("in use by"));
        assert!(open(&path, &options(false)).is_err());
        drop(writer);
        let reader = open(&path, &options(true)).unwrap();
        let second = open(&path, &options(true)).unwrap();
        assert!(open(&path, &options(false)).is_err());
        drop((reader, second));
        open(&path, &options(false)).unwrap();
    }

    #[test]
    fn qemu_and_we_keep_each_other_out() {
        if !have("qemu-io") || !have("qemu-img") {
            return;
        }
        let dir = Scratch::new();
        let path = dir.path("disk.qcow2");
        create(&path, &CreateOptions { size: 1 << 20, ..CreateOptions::default() }).unwrap();
        let ours = open(&path, &options(false)).unwrap();
        let theirs = Command::new("qemu-img").args(["info", "-f", "qcow2"]).arg(&path).output().unwrap();
        assert!(String::from_utf8_lossy(&theirs.stderr).contains("lock"), "{theirs:?}");
        drop(ours);
        let mut qemu = Command::new("qemu-io");
        qemu.args(["-f", "qcow2"]).arg(&path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut qemu = qemu.spawn().unwrap();
        // Its first answer shows that the file is open.
        let mut input = qemu.stdin.take().unwrap();
        input.write_all(b"write 0 512\n").unwrap();
        input.flush().unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(qemu.stdout.take().unwrap());
        while !line.contains("wrote") && output.read_line(&mut line).unwrap() > 0 {}
        let error = open(&path, &options(true)).err().expect("busy").to_string();
        assert!(error.contains("qemu-io") && error.contains(&format!("pid {}", qemu.id())), "{error}");
        drop(input);
        qemu.wait().unwrap();
        open(&path, &options(false)).unwrap();
    }
}
