//! `commit`: writes what an image holds into the image below it.

use super::Command;
use super::arguments::{Arguments, FORMAT, IMAGE_OPTS, OBJECT, Opt, PROGRESS, QUIET};
use super::copy::PIECE;
use super::create::beside;
use super::images::{self, Named, Opened};
use super::progress::Progress;
use super::rate::{self, Rate};
use crate::block::{BlockBackend, Content, Image, OpenOptions, Preallocation};
use anyhow::{Context, Result, anyhow, bail};
use std::io::Write;
use std::path::Path;

pub(super) const COMMAND: Command = Command {
    name: "commit",
    summary: "Writes what an image holds into its backing file",
    operands: "FILENAME",
    options: &[
        QUIET,
        PROGRESS,
        FORMAT,
        IMAGE_OPTS,
        Opt::value(Some('t'), "cache", images::CACHES, "how images are cached (writeback)"),
        Opt::switch(Some('d'), "drop", "leave FILENAME as it is instead of emptying it"),
        Opt::value(Some('b'), "base", "FILE", "the image of the chain to write to (the one below); implies -d"),
        Opt::value(Some('r'), "rate", "RATE", "write at most that many bytes a second"),
        OBJECT,
    ],
    error_status: 1,
    run,
};

fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<u8> {
    let [name] = arguments.exactly(["FILENAME"])?;
    let cache = arguments.parsed("cache", images::cache)?;
    let rate = arguments.parsed("rate", rate::per_second)?.map(Rate::new);
    let named = Named::from(arguments, name, "format")?.cached(cache);
    // Nobody may write to the image meanwhile. The chain is opened without locks, or it would keep us out of the base.
    let empty = !arguments.has("drop") && !arguments.has("base");
    let options = OpenOptions { format: named.format, read_only: !empty, backing: false, ..OpenOptions::default() };
    let held = named.open_with(options)?;
    let top = Named { share: true, ..named }.open(true)?;
    let depth = match arguments.get("base") {
        Some(base) => find_base(&top, base)?,
        None => 1,
    };
    let chain = top.chain();
    let below =
        chain.get(depth).ok_or_else(|| anyhow!("{name}: has no backing file; there is nothing to commit to"))?;
    if empty && !top.image.qcow2()?.snapshots().is_empty() {
        bail!("{name}: has snapshots, so it is not emptied; delete them, or add -d to leave it as it is");
    }
    let path = images::file_of(below).name().to_owned();
    let base = Named::at(&path, &path, Some(below.format())).cached(cache).open(false)?;
    let len = top.disk.len();
    if base.disk.len() < len {
        base.disk.resize(len, Preallocation::Off)?;
    }
    let progress = Progress::new(arguments.has("progress") && !arguments.has("quiet"), len);
    write_down(&*top.disk, &*base.disk, depth as u32, &progress, rate.as_ref())?;
    base.disk.flush()?;
    progress.finish();
    if empty {
        // All that it held is in the base by now, durably.
        let emptied = held.image.qcow2()?.make_empty();
        emptied.with_context(|| format!("{name}: committed, but could not be emptied"))?;
    }
    if !arguments.has("quiet") {
        writeln!(out, "Image committed.")?;
    }
    Ok(0)
}

/// How far down the chain the image that `-b` names is.
fn find_base(top: &Opened, base: &str) -> Result<usize> {
    let same = |path: &Path, image: &Image| {
        let real = std::fs::canonicalize(path).ok();
        real.is_some() && real == std::fs::canonicalize(images::file_of(image).name()).ok()
    };
    // As backing files are named: from where the image lies, or from where the program runs.
    let chain = top.chain();
    let near = beside(&top.named.path, base);
    let found = chain.iter().skip(1).position(|image| same(&near, image) || same(Path::new(base), image));
    found
        .map(|n| n + 1)
        .ok_or_else(|| anyhow!("-b: {base} is not in the chain of {}; info -b shows it", top.named.shown))
}

/// Writes to `base` what images above it hold.
fn write_down(
    top: &dyn BlockBackend,
    base: &dyn BlockBackend,
    depth: u32,
    progress: &Progress,
    rate: Option<&Rate>,
) -> Result<()> {
    let mut buffer = Vec::new();
    let mut at = 0;
    while at < top.len() {
        let extent = top.map(at, top.len() - at)?;
        let mut len = extent.len;
        if extent.depth < depth {
            match extent.content {
                Content::Data => {
                    len = len.min(PIECE);
                    buffer.resize(len as usize, 0);
                    top.read(at, &mut buffer)?;
                    if let Some(rate) = rate {
                        rate.wait(len);
                    }
                    base.write(at, &buffer)?;
                }
                Content::Zero => base.write_zeroes(at, len, true)?,
                // Reads as zeroes as the images below end before it.
                Content::Hole if !reads_zero(base, at, len)? => base.write_zeroes(at, len, true)?,
                Content::Hole => {}
            }
        }
        progress.add(len);
        at += len;
    }
    Ok(())
}

fn reads_zero(disk: &dyn BlockBackend, mut at: u64, len: u64) -> Result<bool> {
    let end = at + len;
    while at < end {
        let extent = disk.map(at, end - at)?;
        if extent.content == Content::Data {
            return Ok(false);
        }
        at += extent.len;
    }
    Ok(true)
}
