//! Names of images on the command line, and opening what they name.

use super::arguments::Arguments;
use crate::block::drive::{DiscardMode, Drive, DriveOptions};
use crate::block::qcow2::SnapshotInfo;
use crate::block::{self, BlockBackend, CacheMode, Format, HostFile, Image, OpenOptions, Storage};
use crate::words::keyval::KeyValues;
use crate::words::suggest;
use anyhow::{Result, anyhow, bail};
use serde_json::Value;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Formats that images can have here.
pub const FORMATS: [&str; 2] = ["qcow2", "raw"];

/// What stands before a `:` in names that are no files, for the error.
const PROTOCOLS: [&str; 13] =
    ["nbd", "http", "https", "ftp", "ftps", "ssh", "iscsi", "rbd", "gluster", "nfs", "fat", "blkdebug", "null-co"];

/// The values of `-t` and `-T`, for the help.
pub const CACHES: &str = "none|writeback|writethrough|directsync|unsafe";

/// The value of `-t` and `-T`.
pub fn cache(text: &str) -> Result<CacheMode, String> {
    let known = CACHES.split('|').collect::<Vec<_>>();
    CacheMode::from_name(text)
        .map_err(|_| format!("no cache mode '{text}'{}", suggest::hint(text, known.iter().copied())))
}

/// The value of `-f`, `-F` and `-O`.
pub fn format(text: &str) -> Result<Format, String> {
    Format::from_name(text).map_err(|_| {
        let hint = suggest::hint(text, FORMATS);
        format!("no image format '{text}'{hint}")
    })
}

/// Which internal snapshot, as `-l` tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// By its id or else its name.
    Any(String),
    /// By what of it is given.
    Told {
        /// `snapshot.id=`.
        id: Option<String>,
        /// `snapshot.name=`.
        name: Option<String>,
    },
}

/// The value of `-l`.
pub fn snapshot(text: &str) -> Result<Wanted, String> {
    if !text.starts_with("snapshot.") {
        return Ok(Wanted::Any(text.to_owned()));
    }
    let read = || {
        let mut list = KeyValues::parse("-l", text, None)?;
        let wanted = Wanted::Told { id: list.take("snapshot.id")?, name: list.take("snapshot.name")? };
        list.finish().map(|()| wanted)
    };
    read().map_err(|e: anyhow::Error| e.to_string().trim_start_matches("-l: ").to_owned())
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
    /// How the host's cache is used.
    pub cache: CacheMode,
}

impl Named {
    /// A file whose place is known.
    pub fn at(shown: &str, path: impl Into<PathBuf>, format: Option<Format>) -> Named {
        Named { shown: shown.to_owned(), path: path.into(), format, share: false, cache: CacheMode::default() }
    }

    /// The same, with the cache used in this way if it was told.
    pub fn cached(self, cache: Option<CacheMode>) -> Named {
        Named { cache: cache.unwrap_or(self.cache), ..self }
    }

    /// A file by its name on the command line.
    pub fn file(name: &str, format: Option<Format>) -> Result<Named> {
        if let Some(text) = name.strip_prefix("json:") {
            let named = Named::json(text)?;
            if format.is_some() && named.format.is_some() && format != named.format {
                bail!("{name}: the format is told twice and differs; leave the option out");
            }
            return Ok(Named { format: named.format.or(format), ..named });
        }
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
        Ok(Named::at(path, path, format))
    }

    /// From the object of a name `json:{...}`: the same keys, nested or with dots.
    fn json(text: &str) -> Result<Named> {
        let value: Value = serde_json::from_str(text).map_err(|e| anyhow!("json:{text}: no JSON: {e}"))?;
        let mut words = Vec::new();
        flatten("", &value, &mut words).map_err(|what| anyhow!("json:{text}: {what}"))?;
        Named::listed(&words.join(","))
    }

    /// From the list that `--image-opts` makes of a name.
    pub fn listed(text: &str) -> Result<Named> {
        let mut list = KeyValues::parse("--image-opts", text, None)?;
        let driver = list.take("driver")?;
        let mut cache = CacheMode::default();
        if let Some(direct) = list.take_switch("cache.direct")? {
            cache.direct = direct;
        }
        if let Some(no_flush) = list.take_switch("cache.no-flush")? {
            cache.no_flush = no_flush;
        }
        let share = list.take_switch("force-share")?.unwrap_or(false);
        let locking = list.take("file.locking")?.unwrap_or_else(|| "auto".to_owned());
        if !["auto", "on"].contains(&locking.as_str()) {
            bail!(
                "--image-opts file.locking={locking}: images are always locked; use -U or force-share=on to look at one"
            );
        }
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
        Ok(Named { share, cache, ..Named::at(&name, &name, format) })
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
        let named = Named::listed(name)?;
        Ok(Named { share: share || named.share, ..named })
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
        let through = !self.cache.writeback && !options.read_only;
        let options = OpenOptions { lock: !self.share, cache: self.cache, ..options };
        let image = block::open(&self.path, &options)?;
        let mut disk = image.backend();
        if through {
            let drive = DriveOptions { cache: self.cache, discard: DiscardMode::Unmap, ..DriveOptions::default() };
            disk = Drive::of(image.clone(), &drive).backend();
        }
        Ok(Opened { named: self.clone(), disk, image })
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
    pub fn chain(&self) -> Vec<Image> {
        let mut chain = vec![self.image.clone()];
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

    /// The file where the image `depth` steps down the chain has its data.
    pub fn data_file_at(&self, depth: u32) -> String {
        let image = self.chain().get(depth as usize).cloned();
        let external = image.and_then(|image| image.qcow2().ok()?.info().data_file);
        external.unwrap_or_else(|| self.file_at(depth))
    }

    /// From now on it reads as the internal snapshot.
    pub fn show(&self, snapshot: &Wanted) -> Result<()> {
        let Ok(qcow2) = self.image.qcow2() else {
            bail!("{}: raw images have no snapshots", self.named.shown);
        };
        let fits = |s: &SnapshotInfo| match snapshot {
            Wanted::Any(text) => s.id == *text || s.name == *text,
            Wanted::Told { id, name } => {
                id.as_ref().is_none_or(|id| s.id == *id) && name.as_ref().is_none_or(|name| s.name == *name)
            }
        };
        let all = qcow2.snapshots();
        // An id counts before a name.
        let by_id = all.iter().find(|s| matches!(snapshot, Wanted::Any(text) if s.id == *text));
        let found = by_id.or_else(|| all.iter().find(|s| fits(s)));
        let found = found.ok_or_else(|| anyhow!("{}: no such snapshot; snapshot -l lists them", self.named.shown))?;
        Ok(qcow2.show_snapshot(&found.id)?)
    }

    /// Ends writing and tells whether all of it arrived; durably, unless the cache mode is `unsafe`.
    pub fn finish(&self) -> Result<()> {
        Ok(self.disk.flush()?)
    }
}

/// The members of a JSON object as words of a list; nested names are joined by dots.
fn flatten(prefix: &str, value: &Value, words: &mut Vec<String>) -> Result<(), String> {
    let text = match value {
        Value::Object(members) => {
            let dot = if prefix.is_empty() { "" } else { "." };
            return members.iter().try_for_each(|(key, value)| flatten(&format!("{prefix}{dot}{key}"), value, words));
        }
        Value::Bool(on) => if *on { "on" } else { "off" }.to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.replace(',', ",,"),
        Value::Null | Value::Array(_) => return Err(format!("{prefix}: neither text nor number nor switch")),
    };
    if prefix.is_empty() {
        return Err("an object is needed, like json:{\"driver\":\"qcow2\",...}".to_owned());
    }
    words.push(format!("{prefix}={text}"));
    Ok(())
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
    &**image.file()
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
        assert_eq!(cache("non").unwrap_err(), "no cache mode 'non'; did you mean none?");
        assert!(cache("directsync").unwrap().direct);
        let nested = r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"a,b"},"cache.direct":true}"#;
        let named = Named::file(nested, None).unwrap();
        assert_eq!((named.path.as_path(), named.format), (Path::new("a,b"), Some(Format::Qcow2)));
        assert!(named.cache.direct);
        for bad in ["json:{", "json:7", r#"json:{"driver":["qcow2"]}"#, r#"json:{"driver":"nbd","filename":"x"}"#] {
            assert!(Named::file(bad, None).is_err(), "{bad}");
        }
    }
}
