//! `resize`: another size for an image.

use super::arguments::{Arguments, FORMAT, IMAGE_OPTS, OBJECT, Opt, QUIET};
use super::images::Named;
use super::{Command, warn};
use crate::block::{Format, Preallocation};
use crate::words::values;
use anyhow::{Result, anyhow, bail};
use std::io::Write;

pub(super) const COMMAND: Command = Command {
    name: "resize",
    summary: "Gives an image another size",
    operands: "FILENAME [+-]SIZE[bkMGTPE]",
    options: &[
        QUIET,
        FORMAT,
        IMAGE_OPTS,
        Opt::switch(None, "shrink", "allow a smaller size: what lies beyond the new end is lost"),
        Opt::value(None, "preallocation", "off|metadata|falloc|full", "what to reserve for what is added"),
        OBJECT,
    ],
    error_status: 1,
    run,
};

/// What `[+-]SIZE` makes of `old`.
fn target(text: &str, old: u64) -> Result<u64> {
    let read = |digits: &str| values::size(digits, 1).map_err(|e| anyhow!("SIZE: {e}"));
    let new = if let Some(more) = text.strip_prefix('+') {
        old.checked_add(read(more)?)
    } else if let Some(less) = text.strip_prefix('-') {
        old.checked_sub(read(less)?).filter(|&n| n > 0)
    } else {
        Some(read(text)?)
    };
    new.filter(|&n| n <= i64::MAX as u64)
        .ok_or_else(|| anyhow!("SIZE {text}: the disk has {old} bytes; the new size must lie above 0 and below 8E"))
}

fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<u8> {
    let [name, size] = arguments.exactly(["FILENAME", "SIZE"])?;
    let preallocation = |v: &str| {
        Preallocation::from_name(v).map_err(|_| format!("no mode '{v}'; there are off, metadata, falloc and full"))
    };
    let preallocation = arguments.parsed("preallocation", preallocation)?.unwrap_or_default();
    // A wrong size is told before the image is touched.
    target(size, i64::MAX as u64 / 2)?;
    let named = Named::from(arguments, name, "format")?;
    let opened = named.open(false)?;
    if named.format.is_none() && opened.image.format() == Format::Raw {
        warn(&format!("{name}: no known format, taken as raw; say so with -f raw"));
    }
    let old = opened.disk.len();
    let new = target(size, old)?.next_multiple_of(512);
    if new < old && !arguments.has("shrink") {
        bail!(
            "SIZE {size}: smaller than the {old} bytes there are: what lies beyond would be lost; add --shrink to do it"
        );
    }
    if preallocation == Preallocation::Metadata && opened.image.format() == Format::Raw {
        bail!("--preallocation=metadata: raw images have no metadata; there are off, falloc and full");
    }
    if new < old && preallocation != Preallocation::Off {
        bail!("--preallocation: nothing is added when an image gets smaller; leave it out");
    }
    opened.disk.resize(new, preallocation)?;
    opened.disk.flush()?;
    if !arguments.has("quiet") {
        writeln!(out, "Image resized.")?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::target;

    #[test]
    fn sizes_absolute_and_relative() {
        assert_eq!(target("2M", 1).unwrap(), 2 << 20);
        assert_eq!(target("+1k", 1024).unwrap(), 2048);
        assert_eq!(target("-1k", 4096).unwrap(), 3072);
        for bad in ["-1M", "-4096", "+8E", "9E", "1Z", "+", "", "+-1"] {
            assert!(target(bad, 4096).is_err(), "{bad}");
        }
    }
}
