//! `snapshot`: internal snapshots of an image.

use super::Command;
use super::arguments::{Arguments, FORCE_SHARE, FORMAT, IMAGE_OPTS, OBJECT, Opt, QUIET};
use super::images::Named;
use super::show;
use crate::block::OpenOptions;
use anyhow::{Result, bail};
use std::io::Write;
use std::time::SystemTime;

pub(super) const COMMAND: Command = Command {
    name: "snapshot",
    summary: "Lists, takes, applies and deletes internal snapshots",
    operands: "FILENAME",
    options: &[
        QUIET,
        FORMAT,
        IMAGE_OPTS,
        FORCE_SHARE,
        Opt::switch(Some('l'), "list", "list all (what is done if nothing is told)"),
        Opt::value(Some('c'), "create", "NAME", "take one"),
        Opt::value(Some('a'), "apply", "NAME|ID", "go back to one: the present content is lost"),
        Opt::value(Some('d'), "delete", "NAME|ID", "delete one"),
        OBJECT,
    ],
    error_status: 1,
    run,
};

fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<u8> {
    let asked: Vec<&str> = arguments.among(&["list", "create", "apply", "delete"]).collect();
    if let [first, second, ..] = asked.as_slice() {
        bail!("--{first} and --{second}: one thing at a time; leave one of them out");
    }
    let [name] = arguments.exactly(["FILENAME"])?;
    let named = Named::from(arguments, name, "format")?;
    let reading = matches!(asked.as_slice(), [] | ["list"]);
    if !reading && arguments.has("force-share") {
        bail!("-U: an image that is shared cannot be changed; leave it out");
    }
    // Snapshots lie in the image alone; what is below may be gone.
    let options = OpenOptions { format: named.format, read_only: reading, backing: false, ..OpenOptions::default() };
    let opened = named.open_with(options)?;
    let Ok(qcow2) = opened.image.qcow2() else {
        if reading {
            return Ok(0);
        }
        bail!("{name}: raw images have no snapshots; make a qcow2 image of it: convert -O qcow2");
    };
    match (asked.first().copied(), asked.first().and_then(|a| arguments.get(a))) {
        (Some("create"), Some(tag)) => {
            qcow2.create_snapshot(tag, SystemTime::now())?;
        }
        (Some("apply"), Some(tag)) => qcow2.apply_snapshot(tag)?,
        (Some("delete"), Some(tag)) => qcow2.delete_snapshot(tag)?,
        _ => {
            let all = qcow2.snapshots();
            if !all.is_empty() {
                show::snapshots(&all, out)?;
            }
            return Ok(0);
        }
    }
    qcow2.close()?;
    Ok(0)
}
