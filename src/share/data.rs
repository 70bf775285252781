//! Messages about what is in files and folders, their attributes and locks.

use super::fid::Open;
use super::owner::{self, Model};
use super::session::{Answer, READ_OVERHEAD, Session};
use super::wire::{DIRECTORY, Qid, Reader, SYMLINK, Writer};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::{
    FileType, OFlags, RawDir, SeekFrom, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags, fdatasync, fsync,
    ftruncate, lgetxattr, llistxattr, lremovexattr, lsetxattr, seek,
};
use rustix::io::{Errno, pread, pwrite};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

/// What a change of attributes gives (9P2000.L setattr).
mod valid {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const ATIME_SET: u32 = 1 << 7;
    pub const MTIME_SET: u32 = 1 << 8;
}

/// Longest value of an extended attribute, and longest list of names (xattr(7)).
const LONGEST_ATTRIBUTE: usize = 64 << 10;
/// Flag: the attribute is there already.
const REPLACE: u32 = 2;
/// Bytes of a folder's entries read at once.
const ENTRIES: usize = 32 << 10;
/// Bytes of an entry besides its name.
const ENTRY: usize = 24;
/// Results of asking for a lock.
const LOCKED: u8 = 0;
const BLOCKED: u8 = 1;
const LOCK_ERROR: u8 = 2;
const UNLOCK: u8 = 2;

impl Session {
    pub(super) fn read(&mut self, r: &mut Reader, room: u32) -> Answer {
        let (number, offset, count) = (r.u32()?, r.u64()?, r.u32()?);
        let count = count.min(room.saturating_sub(READ_OVERHEAD)) as usize;
        let data = match &self.fids.get(number)?.open {
            Some(Open::File(file, _)) => {
                let mut data = vec![0; count];
                let len = pread(file, &mut data, offset)?;
                data.truncate(len);
                data
            }
            Some(Open::Attribute(value)) => {
                let skip = usize::try_from(offset).unwrap_or(usize::MAX);
                value.iter().skip(skip).take(count).copied().collect()
            }
            _ => return Err(Errno::BADF),
        };
        let mut out = Writer::default();
        out.u32(data.len() as u32).0.extend(data);
        Ok(out)
    }

    pub(super) fn write(&mut self, r: &mut Reader) -> Answer {
        let (number, offset, count) = (r.u32()?, r.u64()?, r.u32()?);
        let data = r.bytes(count as usize)?;
        let (through, read_only) = (self.write_through, self.tree.rules.read_only);
        let written = match &mut self.fids.get(number)?.open {
            Some(Open::File(..)) if read_only => return Err(Errno::ROFS),
            Some(Open::File(file, _)) => {
                let written = pwrite(&*file, data, offset)?;
                if through {
                    fdatasync(&*file)?;
                }
                written
            }
            Some(Open::NewAttribute { value, size, .. }) => {
                let start = usize::try_from(offset).map_err(|_| Errno::NOSPC)?;
                let end = start.checked_add(data.len()).filter(|end| end <= size).ok_or(Errno::NOSPC)?;
                value.resize(value.len().max(end), 0);
                value.get_mut(start..end).ok_or(Errno::NOSPC)?.copy_from_slice(data);
                data.len()
            }
            _ => return Err(Errno::BADF),
        };
        let mut out = Writer::default();
        out.u32(written as u32);
        Ok(out)
    }

    pub(super) fn read_folder(&mut self, r: &mut Reader, room: u32) -> Answer {
        let (number, offset, count) = (r.u32()?, r.u64()?, r.u32()?);
        let room = count.min(room.saturating_sub(READ_OVERHEAD)) as usize;
        let model = self.tree.rules.model;
        let Some(Open::Folder(folder)) = &self.fids.get(number)?.open else { return Err(Errno::BADF) };
        let entries = entries(folder, offset, room, model)?;
        let mut out = Writer::default();
        out.u32(entries.len() as u32).0.extend(entries);
        Ok(out)
    }

    pub(super) fn sync(&mut self, r: &mut Reader) -> Answer {
        let number = r.u32()?;
        // Older clients do not say whether the data is enough.
        let data_only = r.u32().unwrap_or(0) != 0;
        match &self.fids.get(number)?.open {
            Some(Open::File(file, _)) if data_only => fdatasync(file)?,
            Some(Open::File(file, _) | Open::Folder(file)) => fsync(file)?,
            _ => return Err(Errno::BADF),
        }
        Ok(Writer::default())
    }

    pub(super) fn set_attributes(&mut self, r: &mut Reader) -> Answer {
        let (number, given, mode, uid, gid) = (r.u32()?, r.u32()?, r.u32()?, r.u32()?, r.u32()?);
        let (size, atime, mtime) = (r.u64()?, (r.u64()?, r.u64()?), (r.u64()?, r.u64()?));
        let fid = self.fids.get(number)?;
        let tree = self.tree.clone();
        if tree.rules.read_only {
            return Err(Errno::ROFS);
        }
        if given & valid::MODE != 0 {
            tree.set_mode(&fid.path, mode)?;
        }
        if given & (valid::ATIME | valid::MTIME) != 0 {
            let time = |bit, set, (s, ns): (u64, u64)| match (given & bit != 0, given & set != 0) {
                (false, _) => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
                (true, false) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
                (true, true) => Timespec { tv_sec: s as i64, tv_nsec: ns as i64 },
            };
            let last_access = time(valid::ATIME, valid::ATIME_SET, atime);
            let last_modification = time(valid::MTIME, valid::MTIME_SET, mtime);
            tree.set_times(&fid.path, &Timestamps { last_access, last_modification })?;
        }
        if given & (valid::UID | valid::GID) != 0 {
            let uid = (given & valid::UID != 0).then_some(uid);
            tree.set_owner(&fid.path, uid, (given & valid::GID != 0).then_some(gid))?;
        }
        if given & valid::SIZE != 0 {
            match &fid.open {
                Some(Open::File(file, flags)) if flags.intersects(OFlags::WRONLY | OFlags::RDWR) => {
                    ftruncate(file, size)?;
                }
                _ => tree.set_size(&fid.path, size)?,
            }
        }
        Ok(Writer::default())
    }

    pub(super) fn lock(&mut self, r: &mut Reader) -> Answer {
        let number = r.u32()?;
        let (kind, _flags) = (r.u8()?, r.u32()?);
        let (start, length, _process, _client) = (r.u64()?, r.u64()?, r.u32()?, r.string()?);
        let Some(Open::File(file, _)) = &self.fids.get(number)?.open else { return Err(Errno::BADF) };
        let status = match range(kind, start, length) {
            Some(range) => match fcntl(file, FcntlArg::F_OFD_SETLK(&range)) {
                Ok(_) => LOCKED,
                Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => BLOCKED,
                Err(_) => LOCK_ERROR,
            },
            None => LOCK_ERROR,
        };
        let mut out = Writer::default();
        out.u8(status);
        Ok(out)
    }

    pub(super) fn get_lock(&mut self, r: &mut Reader) -> Answer {
        let (number, kind) = (r.u32()?, r.u8()?);
        let (start, length, process, client) = (r.u64()?, r.u64()?, r.u32()?, r.string()?);
        let Some(Open::File(file, _)) = &self.fids.get(number)?.open else { return Err(Errno::BADF) };
        let mut found = range(kind, start, length).ok_or(Errno::INVAL)?;
        fcntl(file, FcntlArg::F_OFD_GETLK(&mut found)).map_err(|e| Errno::from_raw_os_error(e as i32))?;
        let mut out = Writer::default();
        match i32::from(found.l_type) == libc::F_UNLCK {
            true => out.u8(UNLOCK).u64(start).u64(length).u32(process),
            false => out.u8(found.l_type as u8).u64(found.l_start as u64).u64(found.l_len as u64).u32(0),
        };
        out.string(client);
        Ok(out)
    }

    pub(super) fn attribute_walk(&mut self, r: &mut Reader) -> Answer {
        let (from, to, name) = (r.u32()?, r.u32()?, r.string()?);
        let fid = self.fids.get(from)?;
        let (path, user) = (fid.path.clone(), fid.user);
        let model = self.tree.rules.model;
        let value = match name {
            [] => self.tree.with_proc_path(&path, |path| {
                let mut list = vec![0; LONGEST_ATTRIBUTE];
                let len = llistxattr(path, &mut list)?;
                list.truncate(len);
                Ok(shown(model, &list))
            })?,
            name => {
                let name = on_host(model, name)?;
                self.tree.with_proc_path(&path, |path| {
                    let mut value = vec![0; LONGEST_ATTRIBUTE];
                    let len = lgetxattr(path, name.as_slice(), &mut value)?;
                    value.truncate(len);
                    Ok(value)
                })?
            }
        };
        let len = value.len() as u64;
        self.fids.add(to, path, user)?.open = Some(Open::Attribute(value));
        let mut out = Writer::default();
        out.u64(len);
        Ok(out)
    }

    pub(super) fn attribute_create(&mut self, r: &mut Reader) -> Answer {
        let (number, name, size, flags) = (r.u32()?, r.string()?, r.u64()?, r.u32()?);
        if self.tree.rules.read_only {
            return Err(Errno::ROFS);
        }
        let name = on_host(self.tree.rules.model, name)?;
        let size = usize::try_from(size).ok().filter(|size| *size <= LONGEST_ATTRIBUTE).ok_or(Errno::TOOBIG)?;
        let fid = self.fids.get(number)?;
        if fid.open.is_some() {
            return Err(Errno::INVAL);
        }
        fid.open = Some(Open::NewAttribute { name, value: Vec::new(), size, flags });
        Ok(Writer::default())
    }

    /// Sets an attribute whose value has come, or removes one that has none.
    pub(super) fn set_attribute(
        &self,
        path: &[u8],
        name: &[u8],
        value: &[u8],
        size: usize,
        flags: u32,
    ) -> Result<(), Errno> {
        if value.len() != size {
            return Err(Errno::INVAL);
        }
        self.tree.with_proc_path(path, |path| match (size, flags) {
            (0, REPLACE) => lremovexattr(path, name),
            _ => lsetxattr(path, name, value, XattrFlags::from_bits_truncate(flags)),
        })
    }
}

/// A range to lock.
fn range(kind: u8, start: u64, length: u64) -> Option<libc::flock> {
    // Kinds are those of fcntl(2) on Linux.
    if kind > UNLOCK {
        return None;
    }
    let (l_start, l_len) = (i64::try_from(start).ok()?, i64::try_from(length).ok()?);
    Some(libc::flock { l_type: kind.into(), l_whence: libc::SEEK_SET as i16, l_start, l_len, l_pid: 0 })
}

/// Entries of a folder from `offset` on, which is what the entry before had as its own, in at most `room` bytes.
fn entries(folder: &OwnedFd, offset: u64, room: usize, model: Model) -> Result<Vec<u8>, Errno> {
    seek(folder, SeekFrom::Start(offset))?;
    let mut buffer = vec![MaybeUninit::uninit(); ENTRIES];
    let mut reader = RawDir::new(folder, &mut buffer);
    let mut out = Writer::default();
    while let Some(entry) = reader.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if model == Model::MappedFile && owner::is_metadata(name) {
            continue;
        }
        if out.0.len() + ENTRY + name.len() > room {
            // None at all would look like the end.
            return if out.0.is_empty() { Err(Errno::INVAL) } else { Ok(out.0) };
        }
        let (kind, number) = match (entry.file_type(), model) {
            // The host's type need not be the guest's.
            (_, Model::MappedXattr | Model::MappedFile) => (0, 0),
            (FileType::Directory, _) => (DIRECTORY, libc::DT_DIR),
            (FileType::Symlink, _) => (SYMLINK, libc::DT_LNK),
            (FileType::RegularFile, _) => (0, libc::DT_REG),
            (FileType::Fifo, _) => (0, libc::DT_FIFO),
            (FileType::Socket, _) => (0, libc::DT_SOCK),
            (FileType::CharacterDevice, _) => (0, libc::DT_CHR),
            (FileType::BlockDevice, _) => (0, libc::DT_BLK),
            _ => (0, libc::DT_UNKNOWN),
        };
        out.qid(Qid { kind, version: 0, path: entry.ino() });
        out.u64(entry.next_entry_cookie()).u8(number).string(name);
    }
    Ok(out.0)
}

/// Access control lists, which notes in attributes keep aside as well.
const LISTS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];

/// What the guest's attribute `name` is called on the host.
fn on_host(model: Model, name: &[u8]) -> Result<Vec<u8>, Errno> {
    if name.contains(&0) {
        return Err(Errno::INVAL);
    }
    match (model, LISTS.contains(&name)) {
        (Model::MappedXattr, true) => Ok([owner::PREFIX, name].concat()),
        (_, true) => Ok(name.to_vec()),
        (Model::MappedXattr, false) if name.starts_with(owner::PREFIX) => Err(Errno::ACCESS),
        (_, false) if name.starts_with(b"user.") => Ok(name.to_vec()),
        _ => Err(Errno::OPNOTSUPP),
    }
}

/// Of a list of attributes on the host, those that the guest sees.
fn shown(model: Model, list: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for name in list.split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let name = match name.strip_prefix(owner::PREFIX) {
            Some(list) if model == Model::MappedXattr => Some(list).filter(|list| LISTS.contains(list)),
            _ => Some(name).filter(|name| on_host(model, name).is_ok()),
        };
        if let Some(name) = name {
            out.extend_from_slice(name);
            out.push(0);
        }
    }
    out
}
