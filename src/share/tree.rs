//! The shared folder on the host. Every access begins at its root and cannot leave it: names are resolved beneath the root
//! without following symbolic links, whatever others on the host or in the guest do meanwhile.

use super::owner::{self, Model, Owner};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, Timestamps, chownat, fstat, linkat, mkdirat, mknodat, openat,
    openat2, readlinkat, renameat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::{Errno, read, write};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

type Result<T> = std::result::Result<T, Errno>;

/// Type bits of a mode.
pub const TYPE: u32 = 0o170_000;
pub const PERMISSIONS: u32 = 0o7777;

/// How a folder is shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Who owns files, and where that is noted.
    pub model: Model,
    /// The guest changes nothing.
    pub read_only: bool,
    /// Permissions on the host of files that the guest makes, where owners are noted aside.
    pub file_mode: u32,
    /// The same for folders.
    pub folder_mode: u32,
}

/// The folder.
pub struct Tree {
    root: OwnedFd,
    device: u64,
    pub rules: Rules,
}

/// A folder that something is done in.
pub enum Folder<'a> {
    Root(BorrowedFd<'a>),
    Beneath(OwnedFd),
}

impl AsFd for Folder<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Root(fd) => *fd,
            Self::Beneath(fd) => fd.as_fd(),
        }
    }
}

/// What the guest sees of a file.
#[derive(Clone, Copy, Debug)]
pub struct Attributes {
    pub stat: Stat,
    /// Which file it is, different for files on different file systems too.
    pub number: u64,
}

/// A name as the host takes it.
fn os(name: &[u8]) -> &OsStr {
    OsStr::from_bytes(name)
}

/// The folder of a path, and the name in it.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
        None if path.is_empty() => (path, b"."),
        None => (&[], path),
    }
}

/// `name` in the folder `path`.
pub fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

impl Tree {
    /// The folder at `path`.
    pub fn open(path: &Path, rules: Rules) -> Result<Self> {
        let root = rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let device = fstat(&root)?.st_dev;
        Ok(Self { root, device, rules })
    }

    /// Opens what `path` names.
    fn beneath(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        if path.is_empty() {
            return openat(&self.root, ".", flags, Mode::empty());
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match openat2(&self.root, os(path), flags, Mode::empty(), resolve) {
            // A kernel or a sandbox that does not have it.
            Err(Errno::NOSYS | Errno::PERM) => self.step_by_step(path, flags),
            done => done,
        }
    }

    /// The same, a name at a time.
    fn step_by_step(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
        let mut names = path.split(|b| *b == b'/').peekable();
        let mut at = openat(&self.root, ".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        while let Some(name) = names.next() {
            let through = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let flags = if names.peek().is_some() { through } else { flags };
            at = openat(&at, os(name), flags, Mode::empty())?;
        }
        Ok(at)
    }

    /// The folder `path`, to do something in it.
    pub fn folder(&self, path: &[u8]) -> Result<Folder<'_>> {
        match path {
            [] => Ok(Folder::Root(self.root.as_fd())),
            _ => self.beneath(path, OFlags::PATH | OFlags::DIRECTORY).map(Folder::Beneath),
        }
    }

    /// The folder that `path` is in, and its name there.
    fn place<'p>(&self, path: &'p [u8]) -> Result<(Folder<'_>, &'p [u8])> {
        let (folder, name) = split(path);
        Ok((self.folder(folder)?, name))
    }

    fn writable(&self) -> Result<()> {
        if self.rules.read_only { Err(Errno::ROFS) } else { Ok(()) }
    }

    /// Whether the name is one that the guest may use.
    pub fn check_name(&self, name: &[u8]) -> Result<()> {
        let sound = !name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/') && !name.contains(&0);
        if !sound || self.rules.model == Model::MappedFile && owner::is_metadata(name) {
            return Err(Errno::INVAL);
        }
        Ok(())
    }

    fn attributes(&self, mut stat: Stat, noted: Owner) -> Attributes {
        stat.st_uid = noted.uid.unwrap_or(stat.st_uid);
        stat.st_gid = noted.gid.unwrap_or(stat.st_gid);
        stat.st_mode = noted.mode.unwrap_or(stat.st_mode);
        stat.st_rdev = noted.rdev.unwrap_or(stat.st_rdev);
        let number = match stat.st_dev {
            device if device == self.device => stat.st_ino,
            // Another file system: its numbers are moved to where none of the first one's are.
            device => stat.st_ino ^ device.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 << 63,
        };
        Attributes { stat, number }
    }

    /// Attributes of what `path` names.
    pub fn stat(&self, path: &[u8]) -> Result<Attributes> {
        let (folder, name) = self.place(path)?;
        self.stat_in(&folder, name)
    }

    fn stat_in(&self, folder: &Folder, name: &[u8]) -> Result<Attributes> {
        let stat = statat(folder, os(name), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(self.attributes(stat, owner::read(self.rules.model, folder.as_fd(), name)))
    }

    /// Attributes of an open file, which had the name `path` and need not have one any more.
    pub fn stat_open(&self, file: BorrowedFd, path: &[u8]) -> Result<Attributes> {
        if self.rules.model == Model::MappedFile {
            // What is noted has the name only.
            match self.stat(path) {
                Err(Errno::NOENT) => {}
                found => return found,
            }
        }
        Ok(self.attributes(fstat(file)?, owner::read_open(self.rules.model, file)))
    }

    /// Opens a file or folder. Nothing else is opened: a device would be the host's.
    pub fn open_file(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
        if flags.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC) {
            self.writable()?;
        }
        let (folder, name) = self.place(path)?;
        let kind = |stat: &Stat| FileType::from_raw_mode(stat.st_mode);
        let openable = |stat: &Stat| matches!(kind(stat), FileType::RegularFile | FileType::Directory);
        let noted = self.stat_in(&folder, name)?;
        if !openable(&statat(&folder, os(name), AtFlags::SYMLINK_NOFOLLOW)?) || !openable(&noted.stat) {
            return Err(Errno::NXIO);
        }
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = openat(&folder, os(name), flags, Mode::empty())?;
        if openable(&fstat(&file)?) { Ok(file) } else { Err(Errno::NXIO) }
    }

    /// Notes the owner of something new, which is taken away again if that fails.
    fn own(&self, folder: &Folder, name: &[u8], owner: Owner, remove: AtFlags) -> Result<()> {
        let done = match self.rules.model {
            Model::MappedXattr | Model::MappedFile => owner::store(self.rules.model, folder.as_fd(), name, owner),
            Model::Passthrough | Model::None => self.give(folder, name, owner),
        };
        done.inspect_err(|_| _ = unlinkat(folder, os(name), remove))
    }

    /// Gives a file of the host's to its owner in earnest.
    fn give(&self, folder: &Folder, name: &[u8], owner: Owner) -> Result<()> {
        let id = |raw: Option<u32>| raw.filter(|raw| *raw != u32::MAX);
        let uid = id(owner.uid).map(rustix::fs::Uid::from_raw);
        let gid = id(owner.gid).map(rustix::fs::Gid::from_raw);
        match chownat(folder, os(name), uid, gid, AtFlags::SYMLINK_NOFOLLOW) {
            // A process without privileges cannot, and `none` says that this is fine.
            Err(Errno::PERM) if self.rules.model == Model::None => {}
            done => done?,
        }
        match owner.mode.filter(|mode| FileType::from_raw_mode(*mode) != FileType::Symlink) {
            Some(mode) => owner::chmod(folder.as_fd(), name, mode & PERMISSIONS),
            None => Ok(()),
        }
    }

    fn mapped(&self) -> bool {
        matches!(self.rules.model, Model::MappedXattr | Model::MappedFile)
    }

    /// Makes a file and opens it.
    pub fn create(&self, path: &[u8], flags: OFlags, owner: Owner) -> Result<OwnedFd> {
        self.writable()?;
        let (folder, name) = self.place(path)?;
        let new = statat(&folder, os(name), AtFlags::SYMLINK_NOFOLLOW).is_err();
        if !new && flags.contains(OFlags::EXCL) {
            return Err(Errno::EXIST);
        }
        if !new {
            return self.open_file(path, flags - OFlags::CREATE);
        }
        let mode = if self.mapped() { self.rules.file_mode } else { owner.mode.unwrap_or(0) & PERMISSIONS };
        let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(&folder, os(name), flags, Mode::from_raw_mode(mode))?;
        let mode = owner.mode.map(|mode| mode & PERMISSIONS | FileType::RegularFile.as_raw_mode());
        self.own(&folder, name, Owner { mode, ..owner }, AtFlags::empty())?;
        Ok(file)
    }

    /// Makes a folder.
    pub fn make_folder(&self, path: &[u8], owner: Owner) -> Result<()> {
        self.writable()?;
        let (folder, name) = self.place(path)?;
        let mode = if self.mapped() { self.rules.folder_mode } else { owner.mode.unwrap_or(0) & PERMISSIONS };
        mkdirat(&folder, os(name), Mode::from_raw_mode(mode))?;
        let mode = owner.mode.map(|mode| mode & PERMISSIONS | FileType::Directory.as_raw_mode());
        self.own(&folder, name, Owner { mode, ..owner }, AtFlags::REMOVEDIR)
    }

    /// Makes a device, pipe or socket; where owners are noted aside it is a file on the host.
    pub fn make_node(&self, path: &[u8], owner: Owner) -> Result<()> {
        self.writable()?;
        let (folder, name) = self.place(path)?;
        let mode = owner.mode.unwrap_or(0);
        if self.mapped() {
            let regular = Mode::from_raw_mode(self.rules.file_mode);
            mknodat(&folder, os(name), FileType::RegularFile, regular, 0)?;
        } else {
            let rdev = owner.rdev.unwrap_or(0);
            mknodat(&folder, os(name), FileType::from_raw_mode(mode), Mode::from_raw_mode(mode & PERMISSIONS), rdev)?;
        }
        self.own(&folder, name, owner, AtFlags::empty())
    }

    /// Makes a symbolic link; where owners are noted aside it is a file on the host that holds the target.
    pub fn make_link(&self, path: &[u8], target: &[u8], owner: Owner) -> Result<()> {
        self.writable()?;
        let (folder, name) = self.place(path)?;
        if self.mapped() {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = openat(&folder, os(name), flags, Mode::from_raw_mode(self.rules.file_mode))?;
            let mut rest = target;
            while !rest.is_empty() {
                rest = rest.get(write(&file, rest)?..).unwrap_or_default();
            }
        } else {
            symlinkat(os(target), &folder, os(name))?;
        }
        let mode = Some(FileType::Symlink.as_raw_mode() | 0o777);
        self.own(&folder, name, Owner { mode, ..owner }, AtFlags::empty())
    }

    /// Where a symbolic link leads, as its text says.
    pub fn read_link(&self, path: &[u8]) -> Result<Vec<u8>> {
        let (folder, name) = self.place(path)?;
        let stat = statat(&folder, os(name), AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            return readlinkat(&folder, os(name), Vec::new()).map(|target| target.into_bytes());
        }
        let noted = self.stat_in(&folder, name)?.stat;
        if FileType::from_raw_mode(noted.st_mode) != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        let file = openat(&folder, os(name), OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let mut target = vec![0; 4096];
        let len = read(&file, &mut target)?;
        target.truncate(len);
        Ok(target)
    }

    /// Gives the file `from` the further name `to`.
    pub fn link(&self, from: &[u8], to: &[u8]) -> Result<()> {
        self.writable()?;
        let ((old, old_name), (new, new_name)) = (self.place(from)?, self.place(to)?);
        linkat(&old, os(old_name), &new, os(new_name), AtFlags::empty())?;
        owner::linked(self.rules.model, (old.as_fd(), old_name), (new.as_fd(), new_name))
    }

    /// Moves a file or folder.
    pub fn rename(&self, from: &[u8], to: &[u8]) -> Result<()> {
        self.writable()?;
        let ((old, old_name), (new, new_name)) = (self.place(from)?, self.place(to)?);
        renameat(&old, os(old_name), &new, os(new_name))?;
        owner::moved(self.rules.model, (old.as_fd(), old_name), (new.as_fd(), new_name))
    }

    /// Takes away a name, of a folder or of something else.
    pub fn remove(&self, path: &[u8], is_folder: bool) -> Result<()> {
        self.writable()?;
        let (folder, name) = self.place(path)?;
        if is_folder && self.rules.model == Model::MappedFile {
            owner::empty_folder(self.folder(path)?.as_fd())?;
        }
        unlinkat(&folder, os(name), if is_folder { AtFlags::REMOVEDIR } else { AtFlags::empty() })?;
        owner::forget(self.rules.model, folder.as_fd(), name);
        Ok(())
    }

    /// Changes permissions.
    pub fn set_mode(&self, path: &[u8], mode: u32) -> Result<()> {
        self.writable()?;
        let (folder, name) = self.place(path)?;
        if !self.mapped() {
            return owner::chmod(folder.as_fd(), name, mode & PERMISSIONS);
        }
        let kind = self.stat_in(&folder, name)?.stat.st_mode & TYPE;
        let change = Owner { mode: Some(mode & PERMISSIONS | kind), ..Owner::default() };
        owner::store(self.rules.model, folder.as_fd(), name, change)
    }

    /// Changes owner and group, each if given.
    pub fn set_owner(&self, path: &[u8], uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        self.writable()?;
        let (folder, name) = self.place(path)?;
        let change = Owner { uid, gid, ..Owner::default() };
        if self.mapped() {
            return owner::store(self.rules.model, folder.as_fd(), name, change);
        }
        self.give(&folder, name, change)
    }

    /// Cuts or extends a file.
    pub fn set_size(&self, path: &[u8], size: u64) -> Result<()> {
        let file = self.open_file(path, OFlags::WRONLY)?;
        rustix::fs::ftruncate(&file, size)
    }

    /// Sets the times of access and change.
    pub fn set_times(&self, path: &[u8], times: &Timestamps) -> Result<()> {
        self.writable()?;
        let (folder, name) = self.place(path)?;
        utimensat(&folder, os(name), times, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Facts about the file system that `path` is on.
    pub fn statfs(&self, path: &[u8]) -> Result<rustix::fs::StatFs> {
        let (folder, _) = self.place(path)?;
        rustix::fs::fstatfs(&folder)
    }

    /// The name through which extended attributes are reached. The kernel's list of our descriptors leads to the folder,
    /// and the last name is not followed.
    pub fn with_proc_path<R>(&self, path: &[u8], f: impl FnOnce(&Path) -> Result<R>) -> Result<R> {
        let (folder, name) = self.place(path)?;
        f(&owner::proc_path(folder.as_fd(), name))
    }
}
