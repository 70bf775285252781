//! What the guest's numbers stand for: a path in the tree, and what is open there.

use super::tree::Tree;
use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::os::fd::OwnedFd;

/// Most numbers at once: a guest that takes more has forgotten to give them back.
const MOST: usize = 1 << 18;

/// What is open.
pub enum Open {
    /// A file, with the flags that it was opened with.
    File(OwnedFd, OFlags),
    /// A folder.
    Folder(OwnedFd),
    /// The value of an extended attribute, or the list of their names.
    Attribute(Vec<u8>),
    /// An attribute to be set when the number is given back.
    NewAttribute {
        /// Its name.
        name: Vec<u8>,
        /// What was written so far.
        value: Vec<u8>,
        /// How many bytes it has in the end.
        size: usize,
        /// As in setxattr(2).
        flags: u32,
    },
}

/// What a number stands for.
pub struct Fid {
    /// From the root on, without a slash before it.
    pub path: Vec<u8>,
    /// Whose user's it is.
    pub user: u32,
    /// What is open.
    pub open: Option<Open>,
}

/// All numbers in use.
#[derive(Default)]
pub struct Fids(HashMap<u32, Fid>);

/// A number in a saved state.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedFid {
    number: u32,
    path: Vec<u8>,
    user: u32,
    open: SavedOpen,
}

#[derive(Debug, Serialize, Deserialize)]
enum SavedOpen {
    Closed,
    File(u32),
    Folder,
    Attribute(Vec<u8>),
    NewAttribute { name: Vec<u8>, value: Vec<u8>, size: usize, flags: u32 },
}

impl Fids {
    pub fn get(&mut self, number: u32) -> Result<&mut Fid, Errno> {
        self.0.get_mut(&number).ok_or(Errno::BADF)
    }

    /// The path of `number`.
    pub fn path(&mut self, number: u32) -> Result<Vec<u8>, Errno> {
        self.get(number).map(|fid| fid.path.clone())
    }

    /// Takes `number` into use.
    pub fn add(&mut self, number: u32, path: Vec<u8>, user: u32) -> Result<&mut Fid, Errno> {
        if self.0.len() >= MOST {
            return Err(Errno::NFILE);
        }
        match self.0.entry(number) {
            std::collections::hash_map::Entry::Occupied(_) => Err(Errno::BADF),
            std::collections::hash_map::Entry::Vacant(free) => Ok(free.insert(Fid { path, user, open: None })),
        }
    }

    pub fn remove(&mut self, number: u32) -> Result<Fid, Errno> {
        self.0.remove(&number).ok_or(Errno::BADF)
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// What was at `from` is at `to` now, with all that is in it.
    pub fn moved(&mut self, from: &[u8], to: &[u8]) {
        for fid in self.0.values_mut() {
            match fid.path.strip_prefix(from) {
                Some(rest) if rest.is_empty() || rest.starts_with(b"/") => fid.path = [to, rest].concat(),
                _ => {}
            }
        }
    }

    /// All of them, in the order of their numbers.
    pub fn save(&self) -> Vec<SavedFid> {
        let mut out: Vec<SavedFid> = self.0.iter().map(|(number, fid)| SavedFid::new(*number, fid)).collect();
        out.sort_by_key(|fid| fid.number);
        out
    }

    /// Takes over what `save` gave. What was open is opened anew; what is not there any more is closed then.
    pub fn restore(&mut self, saved: Vec<SavedFid>, tree: &Tree) {
        self.0.clear();
        for SavedFid { number, path, user, open } in saved.into_iter().take(MOST) {
            if path.split(|b| *b == b'/').any(|name| tree.check_name(name).is_err()) && !path.is_empty() {
                continue;
            }
            let open = match open {
                SavedOpen::Closed => None,
                SavedOpen::File(flags) => {
                    let flags = OFlags::from_bits_retain(flags);
                    tree.open_file(&path, flags).ok().map(|file| Open::File(file, flags))
                }
                SavedOpen::Folder => tree.open_file(&path, OFlags::DIRECTORY).ok().map(Open::Folder),
                SavedOpen::Attribute(bytes) => Some(Open::Attribute(bytes)),
                SavedOpen::NewAttribute { name, value, size, flags } => {
                    Some(Open::NewAttribute { name, value, size, flags })
                }
            };
            self.0.insert(number, Fid { path, user, open });
        }
    }
}

impl SavedFid {
    fn new(number: u32, fid: &Fid) -> Self {
        let open = match &fid.open {
            None => SavedOpen::Closed,
            // It is not to be made or emptied again.
            Some(Open::File(_, flags)) => {
                SavedOpen::File((*flags - OFlags::CREATE - OFlags::EXCL - OFlags::TRUNC).bits())
            }
            Some(Open::Folder(_)) => SavedOpen::Folder,
            Some(Open::Attribute(bytes)) => SavedOpen::Attribute(bytes.clone()),
            Some(Open::NewAttribute { name, value, size, flags }) => {
                let (name, value) = (name.clone(), value.clone());
                SavedOpen::NewAttribute { name, value, size: *size, flags: *flags }
            }
        };
        Self { number, path: fid.path.clone(), user: fid.user, open }
    }
}
