//! `convert`: copies images into a new one, of another format or with other options.

use super::arguments::{Arguments, FORCE_SHARE, IMAGE_OPTS, OBJECT, Opt, PROGRESS, QUIET};
use super::copy::{Copy, Salvage, Source};
use super::create::beside;
use super::format_options;
use super::images::{self, Named, Opened};
use super::progress::Progress;
use super::rate::{self, Rate};
use super::{Command, bitmap};
use crate::block::{CacheMode, Format, Preallocation};
use crate::words::values;
use anyhow::{Result, bail};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

pub(super) const COMMAND: Command = Command {
    name: "convert",
    summary: "Copies images into a new one, also of another format",
    operands: "SOURCE [SOURCE2 ...] TARGET",
    options: &[
        QUIET,
        PROGRESS,
        Opt::value(Some('f'), "source-format", "FMT", "format of the sources; recognised if not given"),
        IMAGE_OPTS,
        Opt::refused(None, "source-image-opts", None, "write --image-opts"),
        Opt::value(
            Some('l'),
            "source-snapshot",
            "SNAPSHOT",
            "take what the sources held then: name, id, or snapshot.name=",
        ),
        Opt::value(Some('T'), "source-cache", images::CACHES, "how sources are cached (writeback)"),
        Opt::value(Some('O'), "target-format", "FMT", "format of the target (raw)"),
        Opt::switch(None, "target-image-opts", "TARGET is a list, as with --image-opts; needs -n"),
        Opt::value(Some('o'), "target-options", "OPTIONS", "options of the target's format; -o help lists them"),
        Opt::switch(Some('c'), "compress", "store clusters compressed (qcow2)"),
        Opt::value(Some('t'), "target-cache", images::CACHES, "how the target is cached (unsafe)"),
        Opt::value(Some('B'), "backing", "FILE", "put the target on FILE; copy only what differs"),
        Opt::value(Some('F'), "backing-format", "FMT", "format of FILE"),
        Opt::switch(Some('n'), "no-create", "write into the TARGET that is there"),
        Opt::switch(None, "target-is-zero", "the TARGET that is there holds zeroes only"),
        Opt::value(Some('S'), "sparse-size", "SIZE", "zeroes of that length stay unwritten (4k); 0: write all"),
        Opt::switch(None, "bitmaps", "copy persistent bitmaps too"),
        Opt::switch(None, "skip-broken-bitmaps", "leave out those that are out of date"),
        FORCE_SHARE,
        Opt::value(Some('r'), "rate", "RATE", "write at most that many bytes a second"),
        Opt::value(Some('m'), "parallel", "NUMBER", "threads, 1 to 16 (8)"),
        Opt::switch(Some('C'), "copy-range-offloading", "have the host copy where it can (no zeroes are looked for)"),
        Opt::switch(None, "salvage", "go on after read errors: what cannot be read becomes zeroes"),
        Opt::switch(Some('W'), "oob-writes", "write pieces in any order"),
        OBJECT,
    ],
    error_status: 1,
    run,
};

/// Largest value of `-S`.
const MOST_SPARSE: u64 = 16 << 20;

/// The value of `-S`.
fn sparse_size(text: &str) -> Result<u64, String> {
    match values::size(text, 1)? {
        n if n <= MOST_SPARSE && n.is_multiple_of(512) => Ok(n),
        _ => Err(format!("'{text}' is no multiple of 512 up to 16M; 0 writes everything")),
    }
}

fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<u8> {
    let format = arguments.parsed("target-format", images::format)?.unwrap_or(Format::Raw);
    if arguments.all("target-options").any(format_options::asks_help) {
        out.write_all(format_options::help(format).as_bytes())?;
        return Ok(0);
    }
    let Some((target, sources)) = arguments.operands.split_last().filter(|(_, s)| !s.is_empty()) else {
        bail!(
            "{} is missing; write sources, then the target",
            if arguments.operands.is_empty() { "SOURCE" } else { "TARGET" }
        );
    };
    let sparse = arguments.parsed("sparse-size", sparse_size)?.unwrap_or(4096);
    let threads = arguments.parsed("parallel", |v| values::number_in(v, 1, 16))?.unwrap_or(8);
    let target_cache = arguments.parsed("target-cache", images::cache)?.unwrap_or(CacheMode::UNSAFE);
    let source_cache = arguments.parsed("source-cache", images::cache)?;
    let rate = arguments.parsed("rate", rate::per_second)?;
    check_options(arguments, format)?;
    let opened: Vec<Opened> = sources.iter().map(|s| source(arguments, s, source_cache)).collect::<Result<_>>()?;
    let sources: Vec<Source> =
        opened.iter().map(|o| Source { disk: o.disk.clone(), start: 0, len: o.disk.len() }).collect();
    let total = sources.iter().map(|s| s.len).sum();
    let target = settle_target(arguments, target, format)?.cached(Some(target_cache));
    refuse_own_source(&opened, &target.path)?;
    let made = match arguments.has("no-create") {
        true => Made { zero: arguments.has("target-is-zero"), over_backing: false },
        false => make(arguments, &target, format, total, opened.len())?,
    };
    let target = target.open(false)?;
    if target.disk.len() < total {
        bail!(
            "{}: {} bytes, but {total} are to be copied; make it larger: resize",
            target.named.shown,
            target.disk.len()
        );
    }
    let progress = Progress::new(arguments.has("progress") && !arguments.has("quiet"), total);
    let compressed = match arguments.has("compress") {
        true => Some(&**target.image.qcow2()?),
        false => None,
    };
    let cluster = compressed.map_or(1, |image| image.info().cluster_size);
    if sources.split_last().is_some_and(|(_, others)| others.iter().any(|s| s.len % cluster != 0)) {
        bail!("-c: sources before the last one must be whole clusters of {cluster} bytes; leave it out");
    }
    let copy = Copy {
        compressed,
        sources: &sources,
        target: &*target.disk,
        sparse,
        target_is_zero: made.zero,
        over_backing: made.over_backing,
        threads: threads as usize,
        ordered: !arguments.has("oob-writes"),
        rate: rate.map(Rate::new),
        offload: arguments.has("copy-range-offloading"),
        salvage: arguments.has("salvage").then(|| Salvage { quiet: arguments.has("quiet") }),
    };
    copy.run(&progress)?;
    if let (true, Some(source)) = (arguments.has("bitmaps"), opened.first()) {
        bitmap::copy(source.image.qcow2()?, target.image.qcow2()?, arguments.has("skip-broken-bitmaps"))?;
    }
    target.finish()?;
    progress.finish();
    Ok(0)
}

/// Options that contradict each other.
fn check_options(arguments: &Arguments, format: Format) -> Result<()> {
    if arguments.has("compress") && format == Format::Raw && !arguments.has("target-image-opts") {
        bail!("-c: raw images are never compressed; use -O qcow2 or leave it out");
    }
    if arguments.has("compress") && arguments.all("target-options").any(|o| o.contains("preallocation=")) {
        bail!("-c: compressed clusters are never preallocated; leave -o preallocation out");
    }
    if let Some(other) = arguments.among(&["compress", "sparse-size"]).next()
        && arguments.has("copy-range-offloading")
    {
        bail!("-C: the host copies what is there, so --{other} is not possible; leave one of them out");
    }
    let keep = arguments.has("no-create");
    if keep && arguments.has("target-options") {
        bail!("-o: the target is not made with -n; leave one of them out");
    }
    if keep && arguments.has("backing") {
        bail!("-B: the target is not made with -n; leave one of them out");
    }
    if !keep && arguments.has("target-is-zero") {
        bail!("--target-is-zero: a target that is made is known to be; leave it out or add -n");
    }
    if !keep && arguments.has("target-image-opts") {
        bail!("--target-image-opts: only for a target that is there; add -n");
    }
    if arguments.has("target-image-opts") && arguments.has("target-format") {
        bail!("-O: cannot stand beside --target-image-opts; write driver= in the list");
    }
    if arguments.has("bitmaps") && arguments.operands.len() > 2 {
        bail!("--bitmaps: only with one source");
    }
    if arguments.has("skip-broken-bitmaps") && !arguments.has("bitmaps") {
        bail!("--skip-broken-bitmaps: only with --bitmaps");
    }
    if arguments.has("source-snapshot") && arguments.operands.len() > 2 {
        bail!("-l: only with one source");
    }
    if arguments.has("backing-format") && !arguments.has("backing") {
        bail!("-F: there is no backing file; add -B FILE");
    }
    Ok(())
}

/// Opens a source, as it is or as it was.
fn source(arguments: &Arguments, name: &str, cache: Option<CacheMode>) -> Result<Opened> {
    let opened = Named::from(arguments, name, "source-format")?.cached(cache).open(true)?;
    if let Some(wanted) = arguments.parsed("source-snapshot", images::snapshot)? {
        opened.show(&wanted)?;
    }
    Ok(opened)
}

fn settle_target(arguments: &Arguments, name: &str, format: Format) -> Result<Named> {
    match arguments.has("target-image-opts") {
        true => Named::listed(name),
        false => Named::file(name, Some(format)),
    }
}

/// A target that is a source would be emptied before it is read.
pub(super) fn refuse_own_source(sources: &[Opened], target: &Path) -> Result<()> {
    let identity = |p: &Path| std::fs::metadata(p).ok().map(|m| (m.dev(), m.ino()));
    match sources.iter().find(|s| identity(&s.named.path).is_some_and(|i| Some(i) == identity(target))) {
        Some(same) => bail!("{}: source and target at once; give the target another name", same.named.shown),
        None => Ok(()),
    }
}

/// What is known of a target.
struct Made {
    /// It reads as zeroes.
    zero: bool,
    /// It lies on a backing file.
    over_backing: bool,
}

fn make(arguments: &Arguments, target: &Named, format: Format, total: u64, sources: usize) -> Result<Made> {
    let mut new = format_options::read(format, arguments.all("target-options"))?;
    if let Some(file) = arguments.get("backing") {
        new.set_backing(file, arguments.parsed("backing-format", images::format)?)?;
    }
    if new.size().is_some_and(|s| s < total) {
        bail!("-o size: less than the {total} bytes to be copied; leave it out");
    }
    if new.size().is_none() {
        new.set_size(total)?;
    }
    if let Some((file, below)) = new.backing() {
        if sources > 1 {
            bail!("-B: only with one source");
        }
        if below.is_none() {
            bail!("-B: the format of {file} must be told, as guessing it is dangerous; add -F qcow2 or -F raw");
        }
        if new.preallocation() != Preallocation::Off {
            bail!("-o preallocation: not with a backing file; leave it out");
        }
        Named::at(file, beside(&target.path, file), below).open(true)?;
    }
    new.create(&target.path)?;
    let device = std::fs::metadata(&target.path).is_ok_and(|m| m.file_type().is_block_device());
    // What was on a block device stays there.
    Ok(Made { zero: !device || new.format() != Format::Raw, over_backing: new.backing().is_some() })
}

#[cfg(test)]
mod tests {
    use super::sparse_size;

    #[test]
    fn sparse_sizes_are_sectors() {
        assert_eq!(sparse_size("4k"), Ok(4096));
        assert_eq!(sparse_size("0"), Ok(0));
        for bad in ["5", "17M", "x"] {
            assert!(sparse_size(bad).is_err(), "{bad}");
        }
    }
}
