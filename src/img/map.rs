//! `map`: which parts of a disk are stored, and where.

use super::Command;
use super::arguments::{Arguments, FORCE_SHARE, FORMAT, IMAGE_OPTS, OBJECT, OUTPUT, Opt};
use super::images::{Named, Opened};
use crate::block::{Content, Extent};
use crate::words::values;
use anyhow::{Result, bail};
use std::io::Write;

pub(super) const COMMAND: Command = Command {
    name: "map",
    summary: "Shows which parts of a disk are stored, and where",
    operands: "FILENAME",
    options: &[
        FORMAT,
        IMAGE_OPTS,
        OUTPUT,
        Opt::value(Some('s'), "start-offset", "OFFSET", "begin there"),
        Opt::value(Some('l'), "max-length", "LENGTH", "show that many bytes"),
        FORCE_SHARE,
        OBJECT,
    ],
    error_status: 1,
    run,
};

/// All stretches from `start` to `end`, neighbours of one kind joined.
pub(super) fn extents(opened: &Opened, start: u64, end: u64) -> Result<Vec<Extent>> {
    let mut all: Vec<Extent> = Vec::new();
    let mut at = start;
    while at < end {
        let next = opened.disk.map(at, end - at)?;
        at = next.offset + next.len;
        match all.last_mut() {
            Some(last) if joins(last, &next) => last.len += next.len,
            _ => all.push(next),
        }
    }
    Ok(all)
}

fn joins(a: &Extent, b: &Extent) -> bool {
    (a.content, a.sparse) == (b.content, b.sparse)
        && a.depth == b.depth
        && a.compressed == b.compressed
        && a.host_offset.and_then(|h| h.checked_add(a.len)) == b.host_offset
        && a.host_offset.is_some() == b.host_offset.is_some()
}

fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<u8> {
    let json = arguments.json()?;
    let size = |v: &str| values::size(v, 1);
    let start = arguments.parsed("start-offset", size)?.unwrap_or(0);
    let length = arguments.parsed("max-length", size)?.unwrap_or(u64::MAX);
    let [name] = arguments.exactly(["FILENAME"])?;
    let opened = Named::from(arguments, name, "format")?.open(true)?;
    let end = start.saturating_add(length).min(opened.disk.len());
    let all = extents(&opened, start, end)?;
    match json {
        true => as_json(&all, out)?,
        false => as_table(&opened, &all, out)?,
    }
    Ok(0)
}

/// One stretch a line, as qemu-img does.
fn as_json(all: &[Extent], out: &mut dyn Write) -> Result<()> {
    for (i, extent) in all.iter().enumerate() {
        let open = if i == 0 { "[" } else { ",\n" };
        let (data, zero) = (extent.content == Content::Data, extent.content != Content::Data || extent.sparse);
        let present = extent.content != Content::Hole;
        write!(
            out,
            "{open}{{ \"start\": {}, \"length\": {}, \"depth\": {}, \"present\": {present}, \"zero\": {zero}, \"data\": \
             {data}, \"compressed\": {}",
            extent.offset, extent.len, extent.depth, extent.compressed
        )?;
        if let Some(offset) = extent.host_offset {
            write!(out, ", \"offset\": {offset}")?;
        }
        write!(out, "}}")?;
    }
    let empty = if all.is_empty() { "[" } else { "" };
    Ok(writeln!(out, "{empty}]")?)
}

/// A table of what is stored in files as it is.
fn as_table(opened: &Opened, all: &[Extent], out: &mut dyn Write) -> Result<()> {
    writeln!(out, "{:<16}{:<16}{:<16}File", "Offset", "Length", "Mapped to")?;
    let hex = |n: u64| if n == 0 { "0".to_owned() } else { format!("{n:#x}") };
    for extent in all.iter().filter(|e| e.content == Content::Data && !e.sparse) {
        let Some(host) = extent.host_offset.filter(|_| !extent.compressed) else {
            bail!(
                "{}: has compressed clusters, which stand nowhere as they are; use --output=json",
                opened.named.shown
            );
        };
        let file = opened.data_file_at(extent.depth);
        writeln!(out, "{:<16}{:<16}{:<16}{file}", hex(extent.offset), hex(extent.len), hex(host))?;
    }
    Ok(())
}
