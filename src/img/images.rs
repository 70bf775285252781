//! Names of images on the command line, and opening what they name.

use super::arguments::Arguments;
use crate::block::{self, BlockBackend, Format, HostFile, Image, OpenOptions, Storage};
use crate::words::keyval::KeyValues;
use crate::words::suggest;
use anyhow::{Result, anyhow, bail};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Formats that images can have here.
pub const FORMATS: [&str; 2] = ["qcow2", "raw"];

/// What stands before a `:` in names that are no files, for the error.
const PROTOCOLS: [&str; 14] = [
    "nbd", "http", "https", "ftp", "ftps", "ssh", "iscsi", "rbd", "gluster", "nfs", "fat", "blkdebug", "null-co",
    "json",
];

/// How written data is treated by the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// Durable when the command ends.
    Writeback,
    /// Left to the host: fastest, and lost if the host loses power soon after.
    Unsafe,
}

/// The value of `-t` and `-T`.
pub fn cache(text: &str) -> Result<Cache, String> {
    match text {
        "writeback" => Ok(Cache::Writeback),
        "unsafe" => Ok(Cache::Unsafe),
        "none" | "directsync" | "writethrough" => {
            Err(format!("{text} is not supported yet; use writeback, which is durable at the end"))
        }
        _ => Err(format!("no cache mode '{text}'{}", suggest::hint(text, ["writeback", "unsafe"]))),
    }
}

/// The value of `-f`, `-F` and `-O`.
pub fn format(text: &str) -> Result<Format, String> {
    Format::from_name(text).map_err(|_| {
        let hint = suggest::hint(text, FORMATS);
        format!("no image format '{text}'{hint}")
    })
}

/// Which image: a file, and its format if it was told.
#[derive(Debug, Clone)]
pub struct Named {
    /// As it was written, for messages.
    pub shown: String,
    /// The file.
    pub path: PathBuf,
    /// As told.
    pub format: Option<Format>,
    /// Open it whoever else has it open: `-U`.
    pub share: bool,
}

impl Named {
    /// A file by its name on the command line.
    pub fn file(name: &str, format: Option<Format>) -> Result<Named> {
        let path = match name.split_once(':') {
            Some(("file", path)) => path,
            Some((protocol, _)) if PROTOCOLS.contains(&protocol) && !Path::new(name).exists() => {
                bail!("{name}: {protocol}: is not supported; give a file or a block device")
            }
            _ => name,
        };
        if path.is_empty() {
            bail!("the name of an image is empty; give a file or a block device");
        }
        Ok(Named { shown: path.to_owned(), path: path.into(), format, share: false })
    }

    /// From the list that `--image-opts` makes of a name.
    pub fn listed(text: &str) -> Result<Named> {
        let mut list = KeyValues::parse("--image-opts", text, None)?;
        let driver = list.take("driver")?;
        let filename = match list.take("file.filename")? {
            Some(name) => Some(name),
            None => list.take("filename")?,
        };
        match list.take("file.driver")?.as_deref() {
            None | Some("file" | "host_device") => {}
            Some(other) => bail!("--image-opts file.driver={other}: not supported; there are file and host_device"),
        }
        list.finish()?;
        let name = filename.ok_or_else(|| anyhow!("--image-opts {text}: no file; add file.filename=FILE"))?;
        let format = driver.as_deref().map(format).transpose().map_err(|e| anyhow!("--image-opts driver: {e}"))?;
        Ok(Named { shown: name.clone(), path: name.into(), format, share: false })
    }

    /// The image `name` of a command whose format option is `format_option`.
    pub fn from(arguments: &Arguments, name: &str, format_option: &str) -> Result<Named> {
        let format = arguments.parsed(format_option, format)?;
        let share = arguments.has("force-share");
        if !arguments.has("image-opts") {
            return Ok(Named { share, ..Named::file(name, format)? });
        }
        if format.is_some() {
            bail!("--image-opts: cannot stand beside --{format_option}; write driver= in the list");
        }
        Ok(Named { share, ..Named::listed(name)? })
    }

    /// Opens it.
    pub fn open(&self, read_only: bool) -> Result<Opened> {
        self.open_with(OpenOptions { format: self.format, read_only, ..OpenOptions::default() })
    }

    /// Opens it with options of its own.
    pub fn open_with(&self, options: OpenOptions) -> Result<Opened> {
        if self.share && !options.read_only {
            bail!("-U: {} is to be written, so it cannot be shared; leave -U out", self.shown);
        }
        let image = block::open(&self.path, &OpenOptions { lock: !self.share, ..options })?;
        Ok(Opened { named: self.clone(), disk: image.backend(), image })
    }
}

/// An open image.
pub struct Opened {
    /// What it was opened by.
    pub named: Named,
    /// What is there beyond the disk.
    pub image: Image,
    /// Its bytes.
    pub disk: Arc<dyn BlockBackend>,
}

impl Opened {
    /// The image and those below it, itself first.
    pub fn chain(&self) -> Vec<&Image> {
        let mut chain = vec![&self.image];
        while let Some(below) = chain.last().and_then(|image| image.qcow2().ok()).and_then(|q| q.backing()) {
            chain.push(below);
        }
        chain
    }

    /// The file of the image `depth` steps down the chain, for messages.
    pub fn file_at(&self, depth: u32) -> String {
        match self.chain().get(depth as usize) {
            Some(image) if depth > 0 => file_of(image).name().to_owned(),
            _ => self.named.shown.clone(),
        }
    }

    /// Ends writing and tells whether all of it arrived; `durable` asks for power cuts to be outlived. Tables of
    /// qcow2 are still in memory, so these images are always written out.
    pub fn finish(&self, durable: bool) -> Result<()> {
        if durable || self.image.format() != Format::Raw {
            self.disk.flush()?;
        }
        Ok(())
    }
}

/// Fails if another program has the file that is about to be made anew.
pub fn refuse_busy(path: &Path) -> Result<()> {
    match path.exists() {
        true => Ok(HostFile::open(path, true)?.lock(true)?),
        false => Ok(()),
    }
}

/// The host file of an image.
pub fn file_of(image: &Image) -> &dyn Storage {
    match image {
        Image::Raw(raw) => &**raw.file(),
        Image::Qcow2(qcow2) => &**qcow2.file(),
    }
}

/// Bytes that a file takes on the host.
pub fn allocated(path: &Path) -> Result<u64> {
    let status = std::fs::metadata(path).map_err(|e| anyhow!("{}: {e}", path.display()))?;
    Ok(status.blocks() * 512)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_files_and_formats() {
        assert_eq!(Named::file("file:a.raw", None).unwrap().path, Path::new("a.raw"));
        let listed = Named::listed("driver=raw,file.driver=file,file.filename=a,,b").unwrap();
        assert_eq!((listed.path.as_path(), listed.format), (Path::new("a,b"), Some(Format::Raw)));
        for (list, error) in [
            ("driver=raw", "--image-opts driver=raw: no file; add file.filename=FILE"),
            ("driver=qcow3,filename=a", "--image-opts driver: no image format 'qcow3'; did you mean qcow2?"),
            (
                "file.driver=nbd,filename=a",
                "--image-opts file.driver=nbd: not supported; there are file and host_device",
            ),
        ] {
            assert_eq!(Named::listed(list).unwrap_err().to_string(), error);
        }
        let error = Named::file("nbd://host/disk", None).unwrap_err().to_string();
        assert_eq!(error, "nbd://host/disk: nbd: is not supported; give a file or a block device");
        assert_eq!(cache("non").unwrap_err(), "no cache mode 'non'; known: writeback, unsafe");
    }
}
