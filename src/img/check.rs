//! `check`: whether an image is sound.

use super::arguments::{Arguments, FORCE_SHARE, FORMAT, IMAGE_OPTS, OBJECT, OUTPUT, Opt, QUIET};
use super::images::{self, Named};
use super::show;
use super::{Command, StatusError};
use crate::block::qcow2::{CheckReport, Repair};
use crate::block::{Format, OpenOptions};
use anyhow::{Result, bail};
use serde_json::{Value, json};
use std::io::Write;

pub(super) const COMMAND: Command = Command {
    name: "check",
    summary: "Tells whether an image is sound, and mends it",
    operands: "FILENAME",
    options: &[
        QUIET,
        FORMAT,
        IMAGE_OPTS,
        Opt::value(Some('T'), "cache", images::CACHES, "how the image is cached (writeback)"),
        FORCE_SHARE,
        OUTPUT,
        Opt::value(Some('r'), "repair", "leaks|all", "mend: free what nothing uses, or all that is wrong"),
        OBJECT,
    ],
    error_status: 1,
    run,
};

/// The status for damage, which may cost data.
const DAMAGED: u8 = 2;
/// The status for clusters that nothing uses and nothing else.
const LEAKING: u8 = 3;
/// The status for formats that hold nothing to check.
const NOTHING_TO_CHECK: u8 = 63;

fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<u8> {
    let as_json = arguments.json()?;
    let cache = arguments.parsed("cache", images::cache)?;
    let repair = arguments.parsed("repair", |v| match v {
        "leaks" => Ok(Repair::Leaks),
        "all" => Ok(Repair::All),
        _ => Err(format!("there are leaks and all, no '{v}'")),
    })?;
    if repair.is_some() && arguments.has("force-share") {
        bail!("-r: an image that is shared cannot be mended; leave -U out");
    }
    let [name] = arguments.exactly(["FILENAME"])?;
    let named = Named::from(arguments, name, "format")?.cached(cache);
    // What lies below an image is not part of the check, and may be gone.
    let options = OpenOptions {
        format: named.format,
        read_only: repair.is_none(),
        backing: false,
        for_check: true,
        ..OpenOptions::default()
    };
    let opened = named.open_with(options)?;
    let format = opened.image.format();
    if format != Format::Qcow2 {
        let message = format!("{name}: {} images hold nothing that could be checked", format.name());
        return Err(StatusError { status: NOTHING_TO_CHECK, message }.into());
    }
    let qcow2 = opened.image.qcow2()?;
    let first = qcow2.check(repair.unwrap_or_default())?;
    let mut fixed = (0, 0);
    let mut report = first;
    if report.corruptions_fixed + report.leaks_fixed > 0 {
        fixed = (report.corruptions_fixed, report.leaks_fixed);
        let messages = std::mem::take(&mut report.messages);
        // What stands now is told, not what stood before.
        report = CheckReport { messages, ..qcow2.check(Repair::None)? };
        qcow2.close()?;
    }
    if as_json {
        show::json(&machine(name, &report, fixed), out)?;
    } else if !arguments.has("quiet") {
        human(&report, fixed, out)?;
    }
    Ok(match report {
        CheckReport { corruptions: 1.., .. } => DAMAGED,
        CheckReport { leaks: 1.., .. } => LEAKING,
        _ => 0,
    })
}

fn machine(name: &str, report: &CheckReport, fixed: (u64, u64)) -> Value {
    let mut value = json!({ "filename": name, "format": "qcow2", "check-errors": 0 });
    let counts = [
        ("image-end-offset", report.image_end_offset),
        ("corruptions", report.corruptions),
        ("leaks", report.leaks),
        ("corruptions-fixed", fixed.0),
        ("leaks-fixed", fixed.1),
        ("total-clusters", report.total_clusters),
        ("allocated-clusters", report.allocated_clusters),
        ("fragmented-clusters", report.fragmented_clusters),
        ("compressed-clusters", report.compressed_clusters),
    ];
    for (key, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
        value[key] = json!(count);
    }
    value
}

fn human(report: &CheckReport, fixed: (u64, u64), out: &mut dyn Write) -> Result<()> {
    for message in &report.messages {
        eprintln!("{message}");
    }
    if fixed != (0, 0) {
        writeln!(out, "The following inconsistencies were found and repaired:\n")?;
        writeln!(out, "    {} leaked clusters\n    {} corruptions\n", fixed.1, fixed.0)?;
        writeln!(out, "Double checking the fixed image now...")?;
    }
    if report.corruptions == 0 && report.leaks == 0 {
        writeln!(out, "No errors were found on the image.")?;
    }
    if report.corruptions > 0 {
        writeln!(out, "\n{} errors were found on the image.", report.corruptions)?;
        writeln!(out, "Data may be corrupted, or further writes to the image may corrupt it.")?;
    }
    if report.leaks > 0 {
        writeln!(out, "\n{} leaked clusters were found on the image.", report.leaks)?;
        writeln!(out, "This means waste of disk space, but no harm to data.")?;
    }
    let share = |part: u64, whole: u64| part as f64 * 100.0 / whole as f64;
    if report.total_clusters > 0 && report.allocated_clusters > 0 {
        writeln!(
            out,
            "{}/{} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters",
            report.allocated_clusters,
            report.total_clusters,
            share(report.allocated_clusters, report.total_clusters),
            share(report.fragmented_clusters, report.allocated_clusters),
            share(report.compressed_clusters, report.allocated_clusters)
        )?;
    }
    if report.image_end_offset > 0 {
        writeln!(out, "Image end offset: {}", report.image_end_offset)?;
    }
    Ok(())
}
