//! Who owns a file in the guest's eyes, with which permissions: as the host has it, or noted aside where the process may not
//! change owners. The notes are QEMU's, so that folders can be used by both.

use rustix::fs::{AtFlags, Mode, OFlags, XattrFlags, lgetxattr, lsetxattr, mkdirat, openat, renameat, unlinkat};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

type Result<T> = std::result::Result<T, Errno>;

/// Where owners are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// Files belong to whom the guest says.
    Passthrough,
    /// The same, as far as this process may.
    None,
    /// In extended attributes.
    MappedXattr,
    /// In files beside.
    MappedFile,
}

/// An owner, or a change of one: what is not given stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// Permissions with the type.
    pub mode: Option<u32>,
    /// Which device it is.
    pub rdev: Option<u64>,
}

/// Extended attributes that hold notes begin with this.
pub const PREFIX: &[u8] = b"user.virtfs.";
const UID: &str = "user.virtfs.uid";
const GID: &str = "user.virtfs.gid";
const MODE: &str = "user.virtfs.mode";
const RDEV: &str = "user.virtfs.rdev";
/// The folder of notes in each folder, and the note of the shared folder itself.
const FOLDER: &str = ".virtfs_metadata";
const ROOT: &str = ".virtfs_metadata_root";
/// A note is shorter than this.
const LONGEST_NOTE: u64 = 1024;

/// Whether a name is one of those that notes have.
pub fn is_metadata(name: &[u8]) -> bool {
    name == FOLDER.as_bytes() || name == ROOT.as_bytes()
}

/// A path to `name` in `folder` for system calls that know no folders.
pub fn proc_path(folder: BorrowedFd, name: &[u8]) -> PathBuf {
    Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(OsStr::from_bytes(name))
}

/// Changes permissions on the host, never those of what a symbolic link leads to.
pub fn chmod(folder: BorrowedFd, name: &[u8], mode: u32) -> Result<()> {
    let path = OsStr::from_bytes(name);
    let file = openat(folder, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    // Through the kernel's list of our descriptors, which leads to this very file; a link itself has no permissions.
    let stat = rustix::fs::fstat(&file)?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Symlink {
        return Err(Errno::OPNOTSUPP);
    }
    let path = Path::new("/proc/self/fd").join(file.as_raw_fd().to_string());
    rustix::fs::chmod(path, Mode::from_raw_mode(mode))
}

fn number<const N: usize>(get: impl Fn(&mut [u8]) -> Result<usize>) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    match get(&mut bytes) {
        Ok(n) if n == N => Some(bytes),
        _ => None,
    }
}

/// What is noted of a file.
pub fn read(model: Model, folder: BorrowedFd, name: &[u8]) -> Owner {
    match model {
        Model::Passthrough | Model::None => Owner::default(),
        Model::MappedXattr => {
            let path = proc_path(folder, name);
            from_attributes(|attribute, value| lgetxattr(&path, attribute, value))
        }
        Model::MappedFile => read_note(folder, name).unwrap_or_default(),
    }
}

/// What is noted of an open file.
pub fn read_open(model: Model, file: BorrowedFd) -> Owner {
    match model {
        Model::MappedXattr => from_attributes(|attribute, value| rustix::fs::fgetxattr(file, attribute, value)),
        // Notes in files have names, which this file may not have any more.
        _ => Owner::default(),
    }
}

fn from_attributes(get: impl Fn(&str, &mut [u8]) -> Result<usize>) -> Owner {
    let word = |attribute: &str| number(|value| get(attribute, value)).map(u32::from_le_bytes);
    let rdev = number(|value| get(RDEV, value)).map(u64::from_le_bytes);
    Owner { uid: word(UID), gid: word(GID), mode: word(MODE), rdev }
}

/// Notes what `change` gives.
pub fn store(model: Model, folder: BorrowedFd, name: &[u8], change: Owner) -> Result<()> {
    let Owner { uid, gid, mode, rdev } = change;
    match model {
        Model::Passthrough | Model::None => Ok(()),
        Model::MappedXattr => {
            let path = proc_path(folder, name);
            for (attribute, value) in [(UID, uid), (GID, gid), (MODE, mode)] {
                if let Some(value) = value {
                    lsetxattr(&path, attribute, &value.to_le_bytes(), XattrFlags::empty())?;
                }
            }
            match rdev {
                Some(rdev) => lsetxattr(&path, RDEV, &rdev.to_le_bytes(), XattrFlags::empty()),
                None => Ok(()),
            }
        }
        Model::MappedFile => {
            let old = read_note(folder, name).unwrap_or_default();
            let note =
                Owner { uid: uid.or(old.uid), gid: gid.or(old.gid), mode: mode.or(old.mode), rdev: rdev.or(old.rdev) };
            write_note(folder, name, note)
        }
    }
}

/// The folder of notes in `folder`, and the name of a note in it.
fn notes<'n>(folder: BorrowedFd, name: &'n [u8], make: bool) -> Result<(OwnedFd, &'n [u8])> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if name == b"." {
        return Ok((openat(folder, ".", flags, Mode::empty())?, ROOT.as_bytes()));
    }
    if make {
        match mkdirat(folder, FOLDER, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
    }
    Ok((openat(folder, FOLDER, flags, Mode::empty())?, name))
}

fn read_note(folder: BorrowedFd, name: &[u8]) -> Option<Owner> {
    let (notes, name) = notes(folder, name, false).ok()?;
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(&notes, OsStr::from_bytes(name), flags, Mode::empty()).ok()?;
    let mut text = String::new();
    File::from(file).take(LONGEST_NOTE).read_to_string(&mut text).ok()?;
    let mut owner = Owner::default();
    for line in text.lines() {
        let Some((key, value)) = line.split_once('=') else { continue };
        // QEMU writes signed numbers.
        let Ok(value) = value.trim().parse::<i64>() else { continue };
        match key {
            "virtfs.uid" => owner.uid = Some(value as u32),
            "virtfs.gid" => owner.gid = Some(value as u32),
            "virtfs.mode" => owner.mode = Some(value as u32),
            "virtfs.rdev" => owner.rdev = Some(value as u64),
            _ => {}
        }
    }
    Some(owner)
}

fn write_note(folder: BorrowedFd, name: &[u8], owner: Owner) -> Result<()> {
    let (notes, name) = notes(folder, name, true)?;
    let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(&notes, OsStr::from_bytes(name), flags, Mode::RUSR | Mode::WUSR)?;
    let mut text = String::new();
    let Owner { uid, gid, mode, rdev } = owner;
    let fields =
        [("uid", uid.map(u64::from)), ("gid", gid.map(u64::from)), ("mode", mode.map(u64::from)), ("rdev", rdev)];
    for (key, value) in fields {
        if let Some(value) = value {
            text += &format!("virtfs.{key}={value}\n");
        }
    }
    File::from(file).write_all(text.as_bytes()).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
}

/// A file was removed, and its note goes too.
pub fn forget(model: Model, folder: BorrowedFd, name: &[u8]) {
    if model == Model::MappedFile
        && let Ok((notes, name)) = notes(folder, name, false)
    {
        // There need not be one.
        let _ = unlinkat(&notes, OsStr::from_bytes(name), AtFlags::empty());
    }
}

/// A folder is about to be removed: its own notes must not keep it.
pub fn empty_folder(folder: BorrowedFd) -> Result<()> {
    match unlinkat(folder, FOLDER, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

/// A file was moved.
pub fn moved(model: Model, from: (BorrowedFd, &[u8]), to: (BorrowedFd, &[u8])) -> Result<()> {
    both(model, from, to, |old, old_name, new, new_name| renameat(old, old_name, new, new_name))
}

/// A file has a further name.
pub fn linked(model: Model, from: (BorrowedFd, &[u8]), to: (BorrowedFd, &[u8])) -> Result<()> {
    both(model, from, to, |old, old_name, new, new_name| {
        rustix::fs::linkat(old, old_name, new, new_name, AtFlags::empty())
    })
}

/// Does to the note of one name what was done to the file; what the other name had before is gone.
fn both(
    model: Model,
    (from, old): (BorrowedFd, &[u8]),
    (to, new): (BorrowedFd, &[u8]),
    act: impl Fn(BorrowedFd, &OsStr, BorrowedFd, &OsStr) -> Result<()>,
) -> Result<()> {
    if model != Model::MappedFile {
        return Ok(());
    }
    let Ok((old_notes, old)) = notes(from, old, false) else {
        forget(model, to, new);
        return Ok(());
    };
    let (new_notes, new) = notes(to, new, true)?;
    match act(old_notes.as_fd(), OsStr::from_bytes(old), new_notes.as_fd(), OsStr::from_bytes(new)) {
        Err(Errno::NOENT) => {
            let _ = unlinkat(&new_notes, OsStr::from_bytes(new), AtFlags::empty());
            Ok(())
        }
        done => done,
    }
}
