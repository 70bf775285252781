//! `bitmap`: the persistent bitmaps of an image.

use super::Command;
use super::arguments::{Arguments, FORMAT, IMAGE_OPTS, OBJECT, Opt};
use super::images::{self, Named};
use crate::block::OpenOptions;
use crate::block::qcow2::{BitmapChange, BitmapContent, Qcow2};
use crate::words::values;
use anyhow::{Result, anyhow, bail};
use std::io::Write;

pub(super) const COMMAND: Command = Command {
    name: "bitmap",
    summary: "Makes, changes and removes persistent bitmaps",
    operands: "FILENAME BITMAP",
    options: &[
        FORMAT,
        IMAGE_OPTS,
        Opt::switch(None, "add", "make BITMAP, empty and following writes"),
        Opt::switch(None, "remove", "remove it"),
        Opt::switch(None, "clear", "take all bits back"),
        Opt::switch(None, "enable", "have it follow writes"),
        Opt::switch(None, "disable", "have it stay as it is"),
        Opt::value(None, "merge", "SOURCE", "give it the bits of the bitmap SOURCE too"),
        Opt::value(Some('g'), "granularity", "SIZE", "bytes for a bit, with --add: 512 to 2G (a cluster, 4k to 64k)"),
        Opt::value(Some('b'), "source-file", "FILE", "the image of SOURCE (FILENAME)"),
        Opt::value(Some('F'), "source-format", "FMT", "format of FILE"),
        OBJECT,
    ],
    error_status: 1,
    run,
};

const ACTIONS: [&str; 6] = ["add", "remove", "clear", "enable", "disable", "merge"];

/// The value of `-g`.
fn granularity(text: &str) -> Result<u64, String> {
    match values::size(text, 1)? {
        n if n.is_power_of_two() && (512..=1 << 31).contains(&n) => Ok(n),
        _ => Err(format!("'{text}' is no power of two from 512 to 2G")),
    }
}

fn run(arguments: &Arguments, _: &mut dyn Write) -> Result<u8> {
    let actions: Vec<(&str, &str)> = arguments.valued(&ACTIONS).collect();
    let has = |action: &str| actions.iter().any(|(a, _)| *a == action);
    if actions.is_empty() {
        bail!("nothing to do; add --add, --remove, --clear, --enable, --disable or --merge SOURCE");
    }
    let granularity = arguments.parsed("granularity", granularity)?;
    if granularity.is_some() && !has("add") {
        bail!("-g: only with --add");
    }
    if arguments.has("source-file") && !has("merge") {
        bail!("-b: only with --merge");
    }
    if arguments.has("source-format") && !arguments.has("source-file") {
        bail!("-F: there is no source file; add -b FILE");
    }
    let [file, name] = arguments.exactly(["FILENAME", "BITMAP"])?;
    // Bitmaps lie in the image alone; what is below may be gone.
    let alone = |named: &Named, read_only| OpenOptions {
        format: named.format,
        backing: false,
        read_only,
        ..OpenOptions::default()
    };
    let source = match arguments.get("source-file") {
        Some(source) => {
            let named = Named::file(source, arguments.parsed("source-format", images::format)?)?;
            Some(named.open_with(alone(&named, true))?)
        }
        None => None,
    };
    let named = Named::from(arguments, file, "format")?;
    let opened = named.open_with(alone(&named, false))?;
    let image = opened.image.qcow2().map_err(|_| anyhow!("{file}: raw images have no bitmaps; use qcow2"))?;
    for (action, value) in actions {
        let change = match action {
            "add" => BitmapChange::Add(granularity),
            "remove" => BitmapChange::Remove,
            "clear" => BitmapChange::Clear,
            "enable" => BitmapChange::Enable,
            "disable" => BitmapChange::Disable,
            _ => BitmapChange::Merge(match &source {
                Some(source) => source.image.qcow2()?.bitmap(value)?,
                None => image.bitmap(value)?,
            }),
        };
        image.change_bitmap(name, &change)?;
    }
    image.close()?;
    Ok(0)
}

/// Copies all bitmaps of an image into another one of the same size: `convert --bitmaps`.
pub(super) fn copy(from: &Qcow2, to: &Qcow2, skip_broken: bool) -> Result<()> {
    let all = from.info().bitmaps;
    if let Some(broken) = all.iter().find(|b| b.in_use && !skip_broken) {
        bail!("--bitmaps: '{}' is out of date (in use); remove it, or add --skip-broken-bitmaps", broken.name);
    }
    for bitmap in all.iter().filter(|b| !b.in_use) {
        let content: BitmapContent = from.bitmap(&bitmap.name)?;
        to.change_bitmap(&bitmap.name, &BitmapChange::Add(Some(bitmap.granularity)))?;
        to.change_bitmap(&bitmap.name, &BitmapChange::Merge(content))?;
        if !bitmap.auto {
            to.change_bitmap(&bitmap.name, &BitmapChange::Disable)?;
        }
    }
    Ok(())
}
