//! `info`: what an image is.

use super::Command;
use super::arguments::{Arguments, FORCE_SHARE, FORMAT, IMAGE_OPTS, OBJECT, OUTPUT, Opt};
use super::create::beside;
use super::images::{Named, allocated, file_of};
use super::show;
use crate::block::qcow2::{self, SnapshotInfo};
use crate::block::{Image, OpenOptions};
use anyhow::Result;
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

pub(super) const COMMAND: Command = Command {
    name: "info",
    summary: "Tells what an image is",
    operands: "FILENAME",
    options: &[
        FORMAT,
        IMAGE_OPTS,
        Opt::switch(Some('b'), "backing-chain", "also tell about the images below"),
        FORCE_SHARE,
        OUTPUT,
        OBJECT,
    ],
    error_status: 1,
    run,
};

/// All that is told about one image.
struct Facts {
    filename: String,
    format: &'static str,
    virtual_size: u64,
    /// Bytes of the file.
    length: u64,
    /// Bytes it takes on the host.
    actual_size: u64,
    qcow2: Option<Qcow2Facts>,
}

/// What only qcow2 has.
struct Qcow2Facts {
    header: qcow2::Info,
    snapshots: Vec<SnapshotInfo>,
    /// The backing file as seen from where the program runs.
    backing_path: Option<String>,
}

fn facts(filename: String, image: &Image, actual_size: u64) -> Facts {
    let file = file_of(image);
    let qcow2 = image.qcow2().ok().map(|qcow2| {
        let header = qcow2.info();
        let located = |named: &String| match named.starts_with("json:") {
            true => named.clone(),
            false => beside(Path::new(&filename), named.strip_prefix("file:").unwrap_or(named)).display().to_string(),
        };
        Qcow2Facts { backing_path: header.backing_file.as_ref().map(located), header, snapshots: qcow2.snapshots() }
    });
    Facts {
        format: image.format().name(),
        // Sizes are told in whole sectors.
        virtual_size: image.backend().len().next_multiple_of(512),
        length: file.len().next_multiple_of(512),
        actual_size,
        filename,
        qcow2,
    }
}

fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<u8> {
    let as_json = arguments.json()?;
    let [name] = arguments.exactly(["FILENAME"])?;
    let whole = arguments.has("backing-chain");
    let named = Named::from(arguments, name, "format")?;
    // Without the chain an image is told about even if what lies below is gone.
    let options = OpenOptions { format: named.format, read_only: true, backing: whole, ..OpenOptions::default() };
    let opened = named.open_with(options)?;
    let images = opened.chain();
    let told = images.iter().enumerate().map(|(depth, image)| {
        Ok(facts(opened.file_at(depth as u32), image, allocated(Path::new(file_of(image).name()))?))
    });
    let told: Vec<Facts> = told.collect::<Result<_>>()?;
    if !as_json {
        for (i, facts) in told.iter().enumerate() {
            if i > 0 {
                writeln!(out)?;
            }
            human(facts, out)?;
        }
        return Ok(0);
    }
    let mut values: Vec<Value> = told.iter().map(machine).collect();
    let value = if whole { Value::Array(values) } else { values.swap_remove(0) };
    show::json(&value, out)?;
    Ok(0)
}

/// All about an open image, as `info --output=json` tells it.
pub fn describe(filename: &str, image: &Image) -> Value {
    // A temporary image has no name that it could be looked up by.
    let actual_size = allocated(Path::new(file_of(image).name())).unwrap_or(0);
    machine(&facts(filename.to_owned(), image, actual_size))
}

fn machine(facts: &Facts) -> Value {
    let file = json!({
        "children": [],
        "virtual-size": facts.length,
        "filename": facts.filename,
        "format": "file",
        "actual-size": facts.actual_size,
        "format-specific": { "type": "file", "data": {} },
        "dirty-flag": false,
    });
    let mut value = json!({
        "children": [{ "name": "file", "info": file }],
        "virtual-size": facts.virtual_size,
        "filename": facts.filename,
        "format": facts.format,
        "actual-size": facts.actual_size,
        "dirty-flag": facts.qcow2.as_ref().is_some_and(|q| q.header.dirty),
    });
    let Some(Qcow2Facts { header, snapshots, backing_path }) = &facts.qcow2 else { return value };
    value["cluster-size"] = json!(header.cluster_size);
    value["format-specific"] = json!({ "type": "qcow2", "data": specific(header) });
    if !snapshots.is_empty() {
        value["snapshots"] = snapshots.iter().map(show::snapshot_json).collect();
    }
    let named = [
        ("backing-filename", header.backing_file.as_ref()),
        ("backing-filename-format", header.backing_format.as_ref()),
        ("full-backing-filename", backing_path.as_ref()),
    ];
    for (key, text) in named {
        if let Some(text) = text {
            value[key] = json!(text);
        }
    }
    value
}

/// What the format has of its own; version 2 has less of it.
fn specific(header: &qcow2::Info) -> Value {
    let mut data = json!({
        "compat": if header.version == 2 { "0.10" } else { "1.1" },
        "compression-type": header.compression.name(),
        "refcount-bits": header.refcount_bits,
    });
    if header.version > 2 {
        data["lazy-refcounts"] = json!(header.lazy_refcounts);
        data["corrupt"] = json!(header.corrupt);
        data["extended-l2"] = json!(header.extended_l2);
        if let Some(file) = &header.data_file {
            data["data-file"] = json!(file);
            data["data-file-raw"] = json!(header.data_file_raw);
        }
        if !header.bitmaps.is_empty() {
            data["bitmaps"] = header.bitmaps.iter().map(bitmap_json).collect();
        }
    }
    data
}

fn bitmap_flags(bitmap: &qcow2::BitmapInfo) -> Vec<&'static str> {
    let flags = [("in-use", bitmap.in_use), ("auto", bitmap.auto)];
    flags.into_iter().filter(|(_, is)| *is).map(|(name, _)| name).collect()
}

fn bitmap_json(bitmap: &qcow2::BitmapInfo) -> Value {
    json!({ "flags": bitmap_flags(bitmap), "name": bitmap.name, "granularity": bitmap.granularity })
}

fn human(facts: &Facts, out: &mut dyn Write) -> Result<()> {
    let Facts { filename, format, virtual_size, length, actual_size, qcow2 } = facts;
    writeln!(out, "image: {filename}")?;
    writeln!(out, "file format: {format}")?;
    writeln!(out, "virtual size: {} ({virtual_size} bytes)", show::size(*virtual_size))?;
    writeln!(out, "disk size: {}", show::size(*actual_size))?;
    if let Some(qcow2) = qcow2 {
        human_qcow2(qcow2, out)?;
    }
    writeln!(out, "Child node '/file':")?;
    writeln!(out, "    filename: {filename}")?;
    writeln!(out, "    protocol type: file")?;
    writeln!(out, "    file length: {} ({length} bytes)", show::size(*length))?;
    writeln!(out, "    disk size: {}", show::size(*actual_size))?;
    Ok(())
}

fn human_qcow2(facts: &Qcow2Facts, out: &mut dyn Write) -> Result<()> {
    let Qcow2Facts { header, snapshots, backing_path } = facts;
    if header.dirty {
        writeln!(out, "cleanly shut down: no")?;
    }
    writeln!(out, "cluster_size: {}", header.cluster_size)?;
    if let (Some(named), Some(path)) = (&header.backing_file, backing_path) {
        let actual = if named == path { String::new() } else { format!(" (actual path: {path})") };
        writeln!(out, "backing file: {named}{actual}")?;
    }
    if let Some(format) = &header.backing_format {
        writeln!(out, "backing file format: {format}")?;
    }
    if !snapshots.is_empty() {
        show::snapshots(snapshots, out)?;
    }
    writeln!(out, "Format specific information:")?;
    let version = if header.version == 2 { "0.10" } else { "1.1" };
    writeln!(out, "    compat: {version}")?;
    writeln!(out, "    compression type: {}", header.compression.name())?;
    if header.version > 2 {
        writeln!(out, "    lazy refcounts: {}", header.lazy_refcounts)?;
    }
    if !header.bitmaps.is_empty() {
        writeln!(out, "    bitmaps:")?;
    }
    for (i, bitmap) in header.bitmaps.iter().enumerate() {
        let flags: String =
            bitmap_flags(bitmap).iter().enumerate().map(|(i, f)| format!("\n                [{i}]: {f}")).collect();
        let (name, granularity) = (&bitmap.name, bitmap.granularity);
        writeln!(out, "        [{i}]:\n            flags:{flags}")?;
        writeln!(out, "            name: {name}\n            granularity: {granularity}")?;
    }
    writeln!(out, "    refcount bits: {}", header.refcount_bits)?;
    if let Some(file) = &header.data_file {
        writeln!(out, "    data file: {file}\n    data file raw: {}", header.data_file_raw)?;
    }
    if header.version > 2 {
        writeln!(out, "    corrupt: {}\n    extended l2: {}", header.corrupt, header.extended_l2)?;
    }
    Ok(())
}
