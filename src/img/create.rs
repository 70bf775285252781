//! `create`: a new image.

use super::Command;
use super::arguments::{Arguments, OBJECT, Opt, QUIET};
use super::format_options::{self, NewImage};
use super::images::{self, Named};
use crate::block::Format;
use crate::words::values;
use anyhow::{Result, anyhow, bail};
use std::io::Write;
use std::path::{Path, PathBuf};

pub(super) const COMMAND: Command = Command {
    name: "create",
    summary: "Makes a new image",
    operands: "FILENAME [SIZE[bkMGTPE]]",
    options: &[
        QUIET,
        Opt::value(Some('f'), "format", "FMT", "format of the new image (raw)"),
        Opt::value(Some('o'), "options", "OPTIONS", "options of the format; -o help lists them"),
        Opt::value(Some('b'), "backing", "FILE", "put the image on top of FILE"),
        Opt::value(Some('F'), "backing-format", "FMT", "format of FILE"),
        Opt::switch(Some('u'), "backing-unsafe", "do not look whether FILE can be opened"),
        OBJECT,
    ],
    error_status: 1,
    run,
};

/// The name of a backing file as seen from where the program runs.
pub(super) fn beside(image: &Path, backing: &str) -> PathBuf {
    image.parent().unwrap_or(Path::new("")).join(backing)
}

fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<u8> {
    let format = arguments.parsed("format", images::format)?.unwrap_or(Format::Raw);
    if arguments.all("options").any(format_options::asks_help) {
        out.write_all(format_options::help(format).as_bytes())?;
        return Ok(0);
    }
    let (name, size) = match arguments.operands.as_slice() {
        [_, _, extra, ..] => bail!("{extra}: one argument too many; there are FILENAME and SIZE"),
        [name, size] => (name, Some(size)),
        [name] => (name, None),
        [] => bail!("FILENAME is missing; write it before SIZE"),
    };
    let named = Named::file(name, None)?;
    let mut new = format_options::read(format, arguments.all("options"))?;
    let asked = match size {
        Some(text) => Some(values::size(text, 1).map_err(|e| anyhow!("SIZE: {e}"))?),
        None => new.size(),
    };
    if let Some(file) = arguments.get("backing") {
        new.set_backing(file, arguments.parsed("backing-format", images::format)?)?;
    } else if arguments.has("backing-format") && new.backing().is_none() {
        bail!("-F: there is no backing file; add -b FILE");
    }
    let asked = match settle_backing(&new, &named, arguments.has("backing-unsafe"), asked)? {
        Some(size) => size,
        None => bail!("SIZE is missing; write it after FILENAME, like 8G"),
    };
    new.set_size(asked)?;
    if !arguments.has("quiet") {
        writeln!(out, "{}", new.describe(name, asked))?;
    }
    new.create(&named.path)?;
    Ok(0)
}

/// Looks at the backing file; gives the size, which may be its.
fn settle_backing(new: &NewImage, named: &Named, trust: bool, asked: Option<u64>) -> Result<Option<u64>> {
    let Some((file, format)) = new.backing() else { return Ok(asked) };
    let Some(format) = format else {
        bail!("-b: the format of {file} must be told, as guessing it is dangerous; add -F qcow2 or -F raw");
    };
    if trust {
        return Ok(asked);
    }
    let path = beside(&named.path, file);
    if path == named.path {
        bail!("-b: {file} is the image itself; give another file");
    }
    let below = Named::at(file, path, Some(format)).open(true)?;
    Ok(Some(asked.unwrap_or(below.disk.len())))
}
