//! `rebase`: puts an image on another backing file, or on none.

use super::Command;
use super::arguments::{Arguments, FORCE_SHARE, FORMAT, IMAGE_OPTS, OBJECT, Opt, PROGRESS, QUIET};
use super::copy::PIECE;
use super::create::beside;
use super::images::{self, Named, Opened};
use super::progress::Progress;
use crate::block::qcow2::Qcow2;
use crate::block::{BlockBackend, Content, OpenOptions};
use anyhow::{Result, anyhow, bail};
use std::io::Write;

pub(super) const COMMAND: Command = Command {
    name: "rebase",
    summary: "Puts an image on another backing file",
    operands: "FILENAME",
    options: &[
        QUIET,
        PROGRESS,
        FORMAT,
        IMAGE_OPTS,
        Opt::value(Some('b'), "backing", "FILE", "the new backing file; \"\" for none"),
        Opt::value(Some('F'), "backing-format", "FMT", "format of FILE"),
        Opt::switch(Some('u'), "backing-unsafe", "change the name only: FILE must hold what the old one held"),
        Opt::value(Some('t'), "cache", images::CACHES, "how the image is cached (writeback)"),
        Opt::value(Some('T'), "backing-cache", images::CACHES, "how the new backing files are cached (writeback)"),
        Opt::switch(Some('c'), "compress", "store compressed what has to be kept"),
        FORCE_SHARE,
        OBJECT,
    ],
    error_status: 1,
    run,
};

fn run(arguments: &Arguments, _: &mut dyn Write) -> Result<u8> {
    let [name] = arguments.exactly(["FILENAME"])?;
    let cache = arguments.parsed("cache", images::cache)?;
    let backing_cache = arguments.parsed("backing-cache", images::cache)?;
    let file = arguments.get("backing").ok_or_else(|| anyhow!("-b is missing; write -b FILE, or -b \"\" for none"))?;
    let format = arguments.parsed("backing-format", images::format)?;
    if !file.is_empty() && format.is_none() {
        bail!("-b: the format of {file} must be told, as guessing it is dangerous; add -F qcow2 or -F raw");
    }
    let trust = arguments.has("backing-unsafe");
    let named = Named::from(arguments, name, "format")?.cached(cache);
    let new = Named::at(file, beside(&named.path, file), format).cached(backing_cache);
    let new = (!file.is_empty()).then_some(new);
    if let Some(new) = new.as_ref().filter(|_| !trust) {
        refuse_circle(&named, new)?;
    }
    let options = OpenOptions { format: named.format, backing: !trust, ..OpenOptions::default() };
    let opened = named.open_with(options)?;
    let qcow2 =
        opened.image.qcow2().map_err(|_| anyhow!("{name}: raw images have no backing file; nothing to change"))?;
    if !trust {
        let below = new.map(|new| new.open(true)).transpose()?;
        let progress = Progress::new(arguments.has("progress") && !arguments.has("quiet"), opened.disk.len());
        let keep = Keep { image: &opened, qcow2, compress: arguments.has("compress") };
        keep.content(below.as_ref().map(|b| &*b.disk), &progress)?;
        // The image must hold what it needs before it lets go of the old file.
        opened.disk.flush()?;
        progress.finish();
    }
    qcow2.set_backing((!file.is_empty()).then_some((file, format)))?;
    qcow2.close()?;
    Ok(0)
}

/// The new backing file must not lie on the image.
fn refuse_circle(image: &Named, new: &Named) -> Result<()> {
    let below = Named { share: true, ..new.clone() }.open(true)?;
    let own = std::fs::canonicalize(&image.path).ok();
    let circle = below.chain().iter().any(|i| std::fs::canonicalize(images::file_of(i).name()).ok() == own);
    if own.is_some() && circle {
        bail!("-b: {} lies on {}, which would lie on itself; give another file", new.shown, image.shown);
    }
    Ok(())
}

/// Stores in an image what it has from below and would read differently on a new file.
struct Keep<'a> {
    image: &'a Opened,
    qcow2: &'a Qcow2,
    /// Store it packed.
    compress: bool,
}

impl Keep<'_> {
    fn content(&self, new: Option<&dyn BlockBackend>, progress: &Progress) -> Result<()> {
        let disk = &*self.image.disk;
        let stacked = self.image.chain().len() > 1;
        let (mut old_bytes, mut new_bytes) = (Vec::new(), Vec::new());
        let mut at = 0;
        while at < disk.len() {
            let extent = disk.map(at, disk.len() - at)?;
            // Only what the image does not decide itself can change.
            let own = extent.depth == 0 && (extent.content != Content::Hole || (!stacked && new.is_none()));
            if own {
                progress.add(extent.len);
                at += extent.len;
                continue;
            }
            let len = PIECE.min(extent.len);
            old_bytes.resize(len as usize, 0);
            disk.read(at, &mut old_bytes)?;
            new_bytes.clear();
            new_bytes.resize(len as usize, 0);
            if let Some(new) = new.filter(|n| at < n.len()) {
                let shared = len.min(new.len() - at) as usize;
                new.read(at, new_bytes.get_mut(..shared).unwrap_or_default())?;
            }
            self.differing(at, &old_bytes, &new_bytes)?;
            progress.add(len);
            at += len;
        }
        Ok(())
    }

    /// Writes the clusters of `old` that are not as in `new`.
    fn differing(&self, at: u64, old: &[u8], new: &[u8]) -> Result<()> {
        let cluster = self.qcow2.info().cluster_size;
        let mut done = 0;
        while done < old.len() {
            let place = at + done as u64;
            let end = (done + (cluster - place % cluster) as usize).min(old.len());
            let (was, is) = (old.get(done..end).unwrap_or_default(), new.get(done..end).unwrap_or_default());
            if was != is && self.compress {
                self.packed(place - place % cluster, cluster)?;
            } else if was != is {
                self.image.disk.write(place, was)?;
            }
            done = end;
        }
        Ok(())
    }

    /// Stores a whole cluster packed, with all that is read there now.
    fn packed(&self, start: u64, cluster: u64) -> Result<()> {
        let disk = &*self.image.disk;
        let mut bytes = vec![0; cluster.min(disk.len() - start) as usize];
        disk.read(start, &mut bytes)?;
        Ok(self.qcow2.write_compressed(start, &bytes)?)
    }
}
