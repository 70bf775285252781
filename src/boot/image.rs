//! Files that are loaded into the guest. They stay open, so that a reset loads them again even if they were unlinked.

use anyhow::{Context, Result, bail};
use brolga::descriptors::{self, Access};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// An open file and the option that named it.
pub struct Image {
    option: &'static str,
    path: PathBuf,
    file: File,
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
        Ok(Self { option, path: path.to_owned(), file })
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
        Ok(self.file.metadata().with_context(|| format!("{}: cannot get the size", self.named()))?.len())
    }

    /// Fills `buf` from `offset` on.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buf, offset).with_context(|| format!("{}: cannot read the file", self.named()))
    }
}
