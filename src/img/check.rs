//! `check`: whether an image is sound.

use super::arguments::{Arguments, FORCE_SHARE, FORMAT, IMAGE_OPTS, OBJECT, OUTPUT, Opt, QUIET};
use super::images::{self, Named};
use super::{Command, StatusError};
use crate::block::Format;
use crate::block::qcow2::Repair;
use anyhow::{Result, bail};
use std::io::Write;

pub(super) const COMMAND: Command = Command {
    name: "check",
    summary: "Tells whether an image is sound, and mends it",
    operands: "FILENAME",
    options: &[
        QUIET,
        FORMAT,
        IMAGE_OPTS,
        Opt::value(Some('T'), "cache", "writeback|unsafe", "how the image is cached"),
        FORCE_SHARE,
        OUTPUT,
        Opt::value(Some('r'), "repair", "leaks|all", "mend: free what nothing uses, or all that is wrong"),
        OBJECT,
    ],
    error_status: 1,
    run,
};

/// The status for formats that hold nothing to check.
const NOTHING_TO_CHECK: u8 = 63;

fn run(arguments: &Arguments, _: &mut dyn Write) -> Result<u8> {
    arguments.json()?;
    arguments.parsed("cache", images::cache)?;
    let repair = arguments.parsed("repair", |v| match v {
        "leaks" => Ok(Repair::Leaks),
        "all" => Ok(Repair::All),
        _ => Err(format!("there are leaks and all, no '{v}'")),
    })?;
    if repair.is_some() && arguments.has("force-share") {
        bail!("-r: an image that is shared cannot be mended; leave -U out");
    }
    let [name] = arguments.exactly(["FILENAME"])?;
    let opened = Named::from(arguments, name, "format")?.open(repair.is_none())?;
    if opened.image.format() != Format::Raw {
        bail!("{name}: {} images cannot be checked yet", opened.image.format().name());
    }
    let message = format!("{name}: raw images hold nothing that could be checked");
    Err(StatusError { status: NOTHING_TO_CHECK, message }.into())
}
