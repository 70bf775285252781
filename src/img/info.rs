//! `info`: what an image is.

use super::Command;
use super::arguments::{Arguments, FORCE_SHARE, FORMAT, IMAGE_OPTS, OBJECT, OUTPUT, Opt};
use super::images::{Named, Opened, allocated};
use super::show;
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
}

fn facts(opened: &Opened) -> Result<Facts> {
    let path: &Path = &opened.named.path;
    Ok(Facts {
        filename: opened.named.shown.clone(),
        format: opened.image.format().name(),
        virtual_size: opened.disk.len(),
        length: opened.disk.len(),
        actual_size: allocated(path)?,
    })
}

fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<u8> {
    let as_json = arguments.json()?;
    let [name] = arguments.exactly(["FILENAME"])?;
    let opened = Named::from(arguments, name, "format")?.open(true)?;
    let chain = [facts(&opened)?];
    if !as_json {
        for (i, facts) in chain.iter().enumerate() {
            if i > 0 {
                writeln!(out)?;
            }
            human(facts, out)?;
        }
        return Ok(0);
    }
    let mut values: Vec<Value> = chain.iter().map(machine).collect();
    let value = match arguments.has("backing-chain") {
        true => Value::Array(values),
        false => values.swap_remove(0),
    };
    show::json(&value, out)?;
    Ok(0)
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
    json!({
        "children": [{ "name": "file", "info": file }],
        "virtual-size": facts.virtual_size,
        "filename": facts.filename,
        "format": facts.format,
        "actual-size": facts.actual_size,
        "dirty-flag": false,
    })
}

fn human(facts: &Facts, out: &mut dyn Write) -> Result<()> {
    let Facts { filename, format, virtual_size, length, actual_size } = facts;
    writeln!(out, "image: {filename}")?;
    writeln!(out, "file format: {format}")?;
    writeln!(out, "virtual size: {} ({virtual_size} bytes)", show::size(*virtual_size))?;
    writeln!(out, "disk size: {}", show::size(*actual_size))?;
    writeln!(out, "Child node '/file':")?;
    writeln!(out, "    filename: {filename}")?;
    writeln!(out, "    protocol type: file")?;
    writeln!(out, "    file length: {} ({length} bytes)", show::size(*length))?;
    writeln!(out, "    disk size: {}", show::size(*actual_size))?;
    Ok(())
}
