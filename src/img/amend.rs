//! `amend`: other options for an image that is there.

use super::Command;
use super::arguments::{Arguments, FORMAT, IMAGE_OPTS, OBJECT, Opt, PROGRESS, QUIET};
use super::format_options;
use super::images::{self, Named, Opened};
use super::progress::Progress;
use crate::block::Preallocation;
use crate::block::qcow2::{Info, Qcow2};
use crate::words::keyval::KeyValues;
use crate::words::values;
use anyhow::{Result, anyhow, bail};
use std::io::Write;

pub(super) const COMMAND: Command = Command {
    name: "amend",
    summary: "Changes options of an image",
    operands: "FILENAME",
    options: &[
        QUIET,
        PROGRESS,
        FORMAT,
        IMAGE_OPTS,
        Opt::value(Some('t'), "cache", images::CACHES, "how the image is cached (writeback)"),
        Opt::value(Some('o'), "options", "OPTIONS", "what to change; -o help lists it"),
        Opt::refused(None, "force", None, "it is for encrypted images, which are not supported; leave it out"),
        OBJECT,
    ],
    error_status: 1,
    run,
};

/// What can be changed.
const HELP: &str = "Amend options for 'qcow2':
  compat=<str>           - version: v2 (0.10) or v3 (1.1)
  lazy_refcounts=<on|off> - write reference counts late
  refcount_bits=<num>    - bits of a reference count: 1, 2, 4, 8, 16, 32 or 64
  size=<size>            - size of the disk
";

/// Options that an image keeps: each with what it has now.
fn kept(info: &Info) -> [(&'static str, String); 6] {
    let switch = |on: bool| if on { "on" } else { "off" }.to_owned();
    [
        ("cluster_size", info.cluster_size.to_string()),
        ("compression_type", info.compression.name().to_owned()),
        ("extended_l2", switch(info.extended_l2)),
        ("data_file", info.data_file.clone().unwrap_or_default()),
        ("data_file_raw", switch(info.data_file_raw)),
        ("preallocation", "off".to_owned()),
    ]
}

/// What is asked for.
struct Wanted {
    version: Option<u32>,
    lazy: Option<bool>,
    size: Option<u64>,
    refcount_bits: Option<u32>,
}

fn read(arguments: &Arguments, info: &Info) -> Result<Wanted> {
    let mut list = KeyValues::none("-o");
    for text in arguments.all("options") {
        list.add(text, None)?;
    }
    for (key, now) in kept(info) {
        if let Some(asked) = list.take(key)? {
            let same = asked == now || values::size(&asked, 1).is_ok_and(|n| n.to_string() == now);
            if !same {
                return Err(list.error(key, &asked, "an image keeps it; make a new one: convert -O qcow2 -o"));
            }
        }
    }
    let version = list.take_as("compat", |v| match v {
        "1.1" | "v3" => Ok(3),
        "0.10" | "v2" => Ok(2),
        _ => Err("there are 0.10 (v2) and 1.1 (v3)".to_owned()),
    })?;
    let size = list.take_as("size", |v| values::size(v, 1))?;
    let refcount_bits = list.take_as("refcount_bits", |v| match v.parse() {
        Ok(bits @ (1 | 2 | 4 | 8 | 16 | 32 | 64)) => Ok(bits),
        _ => Err("there are 1, 2, 4, 8, 16, 32 and 64".to_owned()),
    })?;
    let lazy = list.take_switch("lazy_refcounts")?;
    for key in ["backing_file", "backing_fmt"] {
        if let Some(asked) = list.take(key)? {
            return Err(list.error(key, &asked, "not here; use rebase -b, with -u if the content is the same"));
        }
    }
    list.finish()?;
    if lazy == Some(true) && version.unwrap_or(info.version) == 2 {
        bail!("-o lazy_refcounts=on: not in version 2; use compat=1.1");
    }
    if refcount_bits.is_some_and(|bits| bits != 16) && version.unwrap_or(info.version) == 2 {
        bail!("-o refcount_bits: version 2 has 16 bits; use compat=1.1");
    }
    Ok(Wanted { version, lazy, size, refcount_bits })
}

fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<u8> {
    let cache = arguments.parsed("cache", images::cache)?;
    if !arguments.has("options") {
        bail!("-o is missing; -o help lists what can be changed");
    }
    if arguments.all("options").any(format_options::asks_help) {
        out.write_all(HELP.as_bytes())?;
        return Ok(0);
    }
    let [name] = arguments.exactly(["FILENAME"])?;
    let opened = Named::from(arguments, name, "format")?.cached(cache).open(false)?;
    let image = opened.image.qcow2().map_err(|_| anyhow!("{name}: raw images have no options; nothing to change"))?;
    let info = image.info();
    let wanted = read(arguments, &info)?;
    let progress = Progress::new(arguments.has("progress") && !arguments.has("quiet"), 1);
    change(&opened, image, &info, &wanted)?;
    image.close()?;
    progress.finish();
    Ok(0)
}

/// Changes what is another one than now, what version 3 brings first and what only version 2 lacks last.
fn change(opened: &Opened, image: &Qcow2, info: &Info, wanted: &Wanted) -> Result<()> {
    if let Some(size) = wanted.size {
        let size = size.next_multiple_of(512);
        if size < opened.disk.len() {
            bail!("-o size={size}: smaller than the {} bytes there are; use resize --shrink", opened.disk.len());
        }
        opened.disk.resize(size, Preallocation::Off)?;
    }
    let version = wanted.version.filter(|v| *v != info.version);
    if version == Some(3) {
        image.set_version(3)?;
    }
    if let Some(bits) = wanted.refcount_bits.filter(|bits| *bits != info.refcount_bits) {
        image.set_refcount_bits(bits)?;
    }
    if let Some(lazy) = wanted.lazy.filter(|l| *l != info.lazy_refcounts) {
        image.set_lazy_refcounts(lazy)?;
    }
    if version == Some(2) {
        image.set_lazy_refcounts(false)?;
        image.set_version(2)?;
    }
    Ok(())
}
