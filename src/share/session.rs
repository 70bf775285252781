//! A session of 9P2000.L: which answer each message gets. (The protocol is described by the Linux kernel's client and by
//! "9P2000.L Protocol" of the diod project.)

use super::fid::{Fids, Open, SavedFid};
use super::owner::Owner;
use super::tree::{Attributes, TYPE, Tree, join};
use super::wire::{DIRECTORY, HEADER, Qid, Reader, SYMLINK, Writer};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use std::os::fd::AsFd;
use std::sync::Arc;

/// The version spoken.
const VERSION: &[u8] = b"9P2000.L";
/// Most bytes of a message, and fewest that make sense.
pub const MOST: u32 = 1 << 20;
const FEWEST: u32 = 4096;
/// Bytes of an answer before the data of a read.
pub const READ_OVERHEAD: u32 = HEADER as u32 + 4;
/// Most names in one walk.
const MOST_NAMES: u16 = 16;

/// Kinds of messages; the answer's is one more.
pub mod kind {
    pub const ERROR: u8 = 7;
    pub const STATFS: u8 = 8;
    pub const LOPEN: u8 = 12;
    pub const LCREATE: u8 = 14;
    pub const SYMLINK: u8 = 16;
    pub const MKNOD: u8 = 18;
    pub const RENAME: u8 = 20;
    pub const READLINK: u8 = 22;
    pub const GETATTR: u8 = 24;
    pub const SETATTR: u8 = 26;
    pub const XATTRWALK: u8 = 30;
    pub const XATTRCREATE: u8 = 32;
    pub const READDIR: u8 = 40;
    pub const FSYNC: u8 = 50;
    pub const LOCK: u8 = 52;
    pub const GETLOCK: u8 = 54;
    pub const LINK: u8 = 70;
    pub const MKDIR: u8 = 72;
    pub const RENAMEAT: u8 = 74;
    pub const UNLINKAT: u8 = 76;
    pub const VERSION: u8 = 100;
    pub const AUTH: u8 = 102;
    pub const ATTACH: u8 = 104;
    pub const FLUSH: u8 = 108;
    pub const WALK: u8 = 110;
    pub const READ: u8 = 116;
    pub const WRITE: u8 = 118;
    pub const CLUNK: u8 = 120;
    pub const REMOVE: u8 = 122;
}

/// A flag of unlinkat: it is a folder.
const REMOVE_FOLDER: u32 = 0x200;
/// All that getattr gives (P9_STATS_BASIC).
const BASIC: u64 = 0x7ff;

pub type Answer = Result<Writer, Errno>;

/// A session.
pub struct Session {
    pub tree: Arc<Tree>,
    pub fids: Fids,
    /// Longest message agreed on.
    pub longest: u32,
    /// What is written is durable at once.
    pub write_through: bool,
}

/// Which file it is.
pub fn qid(attributes: &Attributes) -> Qid {
    let stat = &attributes.stat;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => DIRECTORY,
        FileType::Symlink => SYMLINK,
        _ => 0,
    };
    let version = (stat.st_mtime as u32).wrapping_mul(31) ^ stat.st_mtime_nsec as u32 ^ (stat.st_size as u32) << 8;
    Qid { kind, version, path: attributes.number }
}

fn answer() -> Writer {
    Writer::default()
}

impl Session {
    /// A session that nothing was said in yet.
    pub fn new(tree: Arc<Tree>, write_through: bool) -> Self {
        Self { tree, fids: Fids::default(), longest: FEWEST, write_through }
    }

    /// The answer to `request`, in at most `room` bytes.
    pub fn handle(&mut self, request: &[u8], room: usize) -> Vec<u8> {
        let mut r = Reader(request);
        let (kind, tag) = match (r.u32(), r.u8(), r.u16()) {
            (Ok(_), Ok(kind), Ok(tag)) => (kind, tag),
            _ => return error(u16::MAX, Errno::PROTO),
        };
        let room = u32::try_from(room).unwrap_or(u32::MAX).min(self.longest);
        match self.dispatch(kind, &mut r, room) {
            Ok(answer) => answer.message(kind.wrapping_add(1), tag),
            Err(errno) => error(tag, errno),
        }
    }

    fn dispatch(&mut self, kind: u8, r: &mut Reader, room: u32) -> Answer {
        match kind {
            kind::VERSION => self.version(r),
            kind::ATTACH => self.attach(r),
            kind::WALK => self.walk(r),
            kind::LOPEN => self.open(r),
            kind::LCREATE => self.create(r),
            kind::READ => self.read(r, room),
            kind::WRITE => self.write(r),
            kind::CLUNK => self.clunk(r),
            kind::REMOVE => self.remove(r),
            kind::STATFS => self.statfs(r),
            kind::SYMLINK => self.symlink(r),
            kind::MKNOD => self.mknod(r),
            kind::MKDIR => self.mkdir(r),
            kind::RENAME => self.rename(r),
            kind::RENAMEAT => self.rename_at(r),
            kind::UNLINKAT => self.unlink_at(r),
            kind::LINK => self.link(r),
            kind::READLINK => self.read_link(r),
            kind::GETATTR => self.get_attributes(r),
            kind::SETATTR => self.set_attributes(r),
            kind::READDIR => self.read_folder(r, room),
            kind::FSYNC => self.sync(r),
            kind::LOCK => self.lock(r),
            kind::GETLOCK => self.get_lock(r),
            kind::XATTRWALK => self.attribute_walk(r),
            kind::XATTRCREATE => self.attribute_create(r),
            // Requests are answered in their order: what is to be flushed was answered already.
            kind::FLUSH => Ok(answer()),
            kind::AUTH => Err(Errno::OPNOTSUPP),
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.fids.clear();
        self.longest = FEWEST;
    }

    /// For a saved state.
    pub fn save(&self) -> (u32, Vec<SavedFid>) {
        (self.longest, self.fids.save())
    }

    /// Takes over what `save` gave.
    pub fn restore(&mut self, (longest, fids): (u32, Vec<SavedFid>)) {
        self.longest = longest.clamp(FEWEST, MOST);
        let tree = self.tree.clone();
        self.fids.restore(fids, &tree);
    }

    fn version(&mut self, r: &mut Reader) -> Answer {
        let (longest, version) = (r.u32()?, r.string()?);
        self.reset();
        let mut out = answer();
        if version != VERSION || longest < FEWEST {
            out.u32(longest.min(MOST)).string(b"unknown");
            return Ok(out);
        }
        self.longest = longest.min(MOST);
        out.u32(self.longest).string(VERSION);
        Ok(out)
    }

    fn attach(&mut self, r: &mut Reader) -> Answer {
        let (fid, _auth, _name, _what, user) = (r.u32()?, r.u32()?, r.string()?, r.string()?, r.u32()?);
        let qid = qid(&self.tree.stat(b"")?);
        self.fids.add(fid, Vec::new(), user)?;
        let mut out = answer();
        out.qid(qid);
        Ok(out)
    }

    fn walk(&mut self, r: &mut Reader) -> Answer {
        let (from, to, count) = (r.u32()?, r.u32()?, r.u16()?);
        if count > MOST_NAMES {
            return Err(Errno::INVAL);
        }
        let fid = self.fids.get(from)?;
        if fid.open.is_some() && count > 0 {
            return Err(Errno::INVAL);
        }
        let (mut path, user) = (fid.path.clone(), fid.user);
        let mut qids = Vec::new();
        for _ in 0..count {
            let name = r.string()?;
            match self.step(&mut path, name) {
                Ok(qid) => qids.push(qid),
                Err(errno) if qids.is_empty() => return Err(errno),
                // It got no further; the number it was to end at is not taken.
                Err(_) => break,
            }
        }
        if qids.len() == usize::from(count) {
            if from == to {
                self.fids.get(from)?.path = path;
            } else {
                self.fids.add(to, path, user)?;
            }
        }
        let mut out = answer();
        out.u16(qids.len() as u16);
        qids.into_iter().for_each(|qid| _ = out.qid(qid));
        Ok(out)
    }

    /// One name further. From the root there is no way up.
    fn step(&self, path: &mut Vec<u8>, name: &[u8]) -> Result<Qid, Errno> {
        let next = match name {
            b".." => {
                path.iter().rposition(|b| *b == b'/').map_or(Vec::new(), |at| path.iter().take(at).copied().collect())
            }
            _ => {
                self.tree.check_name(name)?;
                join(path, name)
            }
        };
        let qid = qid(&self.tree.stat(&next)?);
        *path = next;
        Ok(qid)
    }

    /// The path of a name that follows a number in a message.
    pub fn named(&mut self, fid: u32, name: &[u8]) -> Result<Vec<u8>, Errno> {
        self.tree.check_name(name)?;
        self.fids.path(fid).map(|path| join(&path, name))
    }

    /// How the guest's flags open a file here (they are those of Linux on x86).
    fn flags(flags: u32) -> OFlags {
        let kept = OFlags::ACCMODE
            | OFlags::CREATE
            | OFlags::EXCL
            | OFlags::TRUNC
            | OFlags::APPEND
            | OFlags::DIRECTORY
            | OFlags::DSYNC
            | OFlags::SYNC;
        OFlags::from_bits_retain(flags) & kept
    }

    fn open(&mut self, r: &mut Reader) -> Answer {
        let (number, flags) = (r.u32()?, r.u32()?);
        let fid = self.fids.get(number)?;
        if fid.open.is_some() {
            return Err(Errno::INVAL);
        }
        let path = fid.path.clone();
        let attributes = self.tree.stat(&path)?;
        let flags = Self::flags(flags) - OFlags::CREATE - OFlags::EXCL;
        let open = match FileType::from_raw_mode(attributes.stat.st_mode) {
            FileType::Directory => Open::Folder(self.tree.open_file(&path, OFlags::DIRECTORY)?),
            _ => Open::File(self.tree.open_file(&path, flags)?, flags),
        };
        self.fids.get(number)?.open = Some(open);
        let mut out = answer();
        out.qid(qid(&attributes)).u32(self.longest - READ_OVERHEAD);
        Ok(out)
    }

    fn create(&mut self, r: &mut Reader) -> Answer {
        let (number, name, flags, mode, gid) = (r.u32()?, r.string()?, r.u32()?, r.u32()?, r.u32()?);
        let path = self.named(number, name)?;
        let fid = self.fids.get(number)?;
        if fid.open.is_some() {
            return Err(Errno::INVAL);
        }
        let owner = Owner { uid: Some(fid.user), gid: Some(gid), mode: Some(mode), rdev: None };
        let flags = Self::flags(flags) | OFlags::CREATE;
        let file = self.tree.create(&path, flags, owner)?;
        let qid = qid(&self.tree.stat(&path)?);
        let fid = self.fids.get(number)?;
        (fid.path, fid.open) = (path, Some(Open::File(file, flags)));
        let mut out = answer();
        out.qid(qid).u32(self.longest - READ_OVERHEAD);
        Ok(out)
    }

    fn clunk(&mut self, r: &mut Reader) -> Answer {
        let fid = self.fids.remove(r.u32()?)?;
        if let Some(Open::NewAttribute { name, value, size, flags }) = fid.open {
            self.set_attribute(&fid.path, &name, &value, size, flags)?;
        }
        Ok(answer())
    }

    fn remove(&mut self, r: &mut Reader) -> Answer {
        // The number is given back whatever happens.
        let fid = self.fids.remove(r.u32()?)?;
        let folder = self.tree.stat(&fid.path)?.stat.st_mode & TYPE == FileType::Directory.as_raw_mode();
        self.tree.remove(&fid.path, folder)?;
        Ok(answer())
    }

    fn unlink_at(&mut self, r: &mut Reader) -> Answer {
        let (fid, name, flags) = (r.u32()?, r.string()?, r.u32()?);
        let path = self.named(fid, name)?;
        self.tree.remove(&path, flags & REMOVE_FOLDER != 0)?;
        Ok(answer())
    }

    fn symlink(&mut self, r: &mut Reader) -> Answer {
        let (fid, name, target, gid) = (r.u32()?, r.string()?, r.string()?, r.u32()?);
        let owner = Owner { uid: Some(self.fids.get(fid)?.user), gid: Some(gid), mode: None, rdev: None };
        let path = self.named(fid, name)?;
        self.tree.make_link(&path, target, owner)?;
        self.made(&path)
    }

    fn mknod(&mut self, r: &mut Reader) -> Answer {
        let (fid, name, mode) = (r.u32()?, r.string()?, r.u32()?);
        let (major, minor, gid) = (r.u32()?, r.u32()?, r.u32()?);
        let rdev = Some(rustix::fs::makedev(major, minor));
        let owner = Owner { uid: Some(self.fids.get(fid)?.user), gid: Some(gid), mode: Some(mode), rdev };
        let path = self.named(fid, name)?;
        self.tree.make_node(&path, owner)?;
        self.made(&path)
    }

    fn mkdir(&mut self, r: &mut Reader) -> Answer {
        let (fid, name, mode, gid) = (r.u32()?, r.string()?, r.u32()?, r.u32()?);
        let owner = Owner { uid: Some(self.fids.get(fid)?.user), gid: Some(gid), mode: Some(mode), rdev: None };
        let path = self.named(fid, name)?;
        self.tree.make_folder(&path, owner)?;
        self.made(&path)
    }

    fn made(&self, path: &[u8]) -> Answer {
        let mut out = answer();
        out.qid(qid(&self.tree.stat(path)?));
        Ok(out)
    }

    fn link(&mut self, r: &mut Reader) -> Answer {
        let (folder, fid, name) = (r.u32()?, r.u32()?, r.string()?);
        let (from, to) = (self.fids.path(fid)?, self.named(folder, name)?);
        self.tree.link(&from, &to)?;
        Ok(answer())
    }

    fn rename(&mut self, r: &mut Reader) -> Answer {
        let (fid, folder, name) = (r.u32()?, r.u32()?, r.string()?);
        let (from, to) = (self.fids.path(fid)?, self.named(folder, name)?);
        self.move_path(&from, &to)
    }

    fn rename_at(&mut self, r: &mut Reader) -> Answer {
        let (old, old_name, new, new_name) = (r.u32()?, r.string()?, r.u32()?, r.string()?);
        let (from, to) = (self.named(old, old_name)?, self.named(new, new_name)?);
        self.move_path(&from, &to)
    }

    fn move_path(&mut self, from: &[u8], to: &[u8]) -> Answer {
        if from.is_empty() {
            return Err(Errno::BUSY);
        }
        self.tree.rename(from, to)?;
        self.fids.moved(from, to);
        Ok(answer())
    }

    fn read_link(&mut self, r: &mut Reader) -> Answer {
        let path = self.fids.path(r.u32()?)?;
        let mut out = answer();
        out.string(&self.tree.read_link(&path)?);
        Ok(out)
    }

    fn get_attributes(&mut self, r: &mut Reader) -> Answer {
        let fid = self.fids.get(r.u32()?)?;
        let _mask = r.u64()?;
        let (path, open) = (&fid.path, fid.open.as_ref());
        let attributes = match open {
            // It may have no name any more, or another file may have its name.
            Some(Open::File(file, _) | Open::Folder(file)) => self.tree.stat_open(file.as_fd(), path)?,
            _ => self.tree.stat(path)?,
        };
        let stat = &attributes.stat;
        let mut out = answer();
        out.u64(BASIC).qid(qid(&attributes)).u32(stat.st_mode).u32(stat.st_uid).u32(stat.st_gid);
        for value in [stat.st_nlink, stat.st_rdev, stat.st_size as u64, stat.st_blksize as u64, stat.st_blocks as u64] {
            out.u64(value);
        }
        let times = [
            (stat.st_atime, stat.st_atime_nsec),
            (stat.st_mtime, stat.st_mtime_nsec),
            (stat.st_ctime, stat.st_ctime_nsec),
        ];
        times.iter().for_each(|(s, ns)| _ = out.u64(*s as u64).u64(*ns));
        // Time of birth, generation and version of the data: not among what is given.
        (0..4).for_each(|_| _ = out.u64(0));
        Ok(out)
    }

    fn statfs(&mut self, r: &mut Reader) -> Answer {
        let path = self.fids.path(r.u32()?)?;
        let s = self.tree.statfs(&path)?;
        let mut out = answer();
        out.u32(s.f_type as u32).u32(s.f_bsize as u32);
        [s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree].iter().for_each(|value| _ = out.u64(*value));
        // No number of the file system: the guest's own does.
        out.u64(0).u32(s.f_namelen as u32);
        Ok(out)
    }
}

/// The answer that says what went wrong.
pub fn error(tag: u16, errno: Errno) -> Vec<u8> {
    let mut out = answer();
    out.u32(errno.raw_os_error().unsigned_abs());
    out.message(kind::ERROR, tag)
}
