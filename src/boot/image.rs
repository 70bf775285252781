//! Files that are loaded into the guest. They stay open, so that a reset loads them again even if they were unlinked.
//! What was unpacked from one of them is an image of its own, in memory.

use anyhow::{Context, Result, bail};
use brolga::descriptors::{self, Access};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// An open file and the option that named it.
pub struct Image {
    option: &'static str,
    path: PathBuf,
    content: Content,
}

/// Where an image's bytes are.
enum Content {
    File(File),
    Bytes(Vec<u8>),
}

impl Image {
    /// Opens `path`, which `option` named.
    pub fn open(option: &'static str, path: &Path) -> Result<Self> {
        let file = descriptors::open(path, Access::Read, 0)
            .unwrap_or_else(|| File::open(path))
            .with_context(|| format!("{option} {}: cannot open the file", path.display()))?;
        if !file.metadata().is_ok_and(|m| m.is_file()) {
            bail!("{option} {}: not a regular file; give the path of an image file", path.display());
        }
        Ok(Self { option, path: path.to_owned(), content: Content::File(file) })
    }

    /// What was inside of this image, under the same name.
    pub fn inside(&self, bytes: Vec<u8>) -> Self {
        Self { option: self.option, path: self.path.clone(), content: Content::Bytes(bytes) }
    }

    /// The bytes, if they are in memory.
    pub fn into_bytes(self) -> Option<Vec<u8>> {
        match self.content {
            Content::File(_) => None,
            Content::Bytes(bytes) => Some(bytes),
        }
    }

    /// The path as given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The option and the file, as error lines begin.
    pub fn named(&self) -> String {
        format!("{} {}", self.option, self.path.display())
    }

    /// Its size in bytes now.
    pub fn size(&self) -> Result<u64> {
        match &self.content {
            Content::File(file) => {
                Ok(file.metadata().with_context(|| format!("{}: cannot get the size", self.named()))?.len())
            }
            Content::Bytes(bytes) => Ok(bytes.len() as u64),
        }
    }

    /// Fills `buf` from `offset` on.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let read = match &self.content {
            Content::File(file) => file.read_exact_at(buf, offset),
            Content::Bytes(bytes) => match bytes.get(offset as usize..).and_then(|rest| rest.get(..buf.len())) {
                Some(part) => {
                    buf.copy_from_slice(part);
                    Ok(())
                }
                None => Err(io::ErrorKind::UnexpectedEof.into()),
            },
        };
        read.with_context(|| format!("{}: cannot read the file", self.named()))
    }
}
