//! `dd`: copies blocks from one image into a new one.

use super::Command;
use super::arguments::{Arguments, FORCE_SHARE, IMAGE_OPTS, OBJECT, Opt};
use super::copy::{Copy, Source};
use super::format_options;
use super::images::{self, Named};
use super::progress::Progress;
use crate::block::Format;
use crate::words::{suggest, values};
use anyhow::{Result, anyhow, bail};
use std::io::Write;

pub(super) const COMMAND: Command = Command {
    name: "dd",
    summary: "Copies blocks of an image into a new one",
    operands: "[bs=SIZE] [count=BLOCKS] [skip=BLOCKS] if=INPUT of=OUTPUT",
    options: &[
        Opt::value(Some('f'), "format", "FMT", "format of INPUT; recognised if not given"),
        IMAGE_OPTS,
        Opt::value(Some('O'), "output-format", "FMT", "format of OUTPUT (raw)"),
        FORCE_SHARE,
        OBJECT,
    ],
    error_status: 1,
    run,
};

/// What may stand before the `=` of an operand.
const KEYS: [&str; 5] = ["bs", "count", "if", "of", "skip"];

/// The last operand `key=value`.
fn operand<'a>(arguments: &'a Arguments, key: &str) -> Option<&'a str> {
    arguments.operands.iter().rev().find_map(|o| o.split_once('=').filter(|(k, _)| *k == key)).map(|(_, v)| v)
}

fn size(arguments: &Arguments, key: &str) -> Result<Option<u64>> {
    operand(arguments, key).map(|v| values::size(v, 1).map_err(|e| anyhow!("{key}={v}: {e}"))).transpose()
}

fn run(arguments: &Arguments, _: &mut dyn Write) -> Result<u8> {
    for given in &arguments.operands {
        let key = given.split_once('=').map_or(given.as_str(), |(k, _)| k);
        if !KEYS.contains(&key) || !given.contains('=') {
            bail!("{given}: unknown operand{}", suggest::hint(key, KEYS));
        }
    }
    let missing = |key: &'static str| anyhow!("{key}= is missing; both if=INPUT and of=OUTPUT are needed");
    let input = operand(arguments, "if").ok_or_else(|| missing("if"))?;
    let output = operand(arguments, "of").ok_or_else(|| missing("of"))?;
    let block = size(arguments, "bs")?.unwrap_or(512);
    if !(1..=i32::MAX as u64).contains(&block) {
        bail!("bs={block}: out of range: 1 to 2G less one");
    }
    let bytes = |key| Ok::<_, anyhow::Error>(size(arguments, key)?.map(|n| n.saturating_mul(block)));
    let (count, skip) = (bytes("count")?.unwrap_or(u64::MAX), bytes("skip")?.unwrap_or(0));
    let format = arguments.parsed("output-format", images::format)?.unwrap_or(Format::Raw);
    let source = Named::from(arguments, input, "format")?.open(true)?;
    let target = Named::file(output, Some(format))?;
    super::convert::refuse_own_source(std::slice::from_ref(&source), &target.path)?;
    let rest = source.disk.len().checked_sub(skip);
    let rest = rest.ok_or_else(|| anyhow!("skip=: {skip} bytes are more than {input} has"))?;
    let part = Source { disk: source.disk.clone(), start: skip, len: rest.min(count) };
    let mut new = format_options::read(format, std::iter::empty())?;
    new.set_size(part.len)?;
    new.create(&target.path)?;
    let target = target.open(false)?;
    let copy = Copy {
        compressed: None,
        sources: &[part],
        target: &*target.disk,
        sparse: 4096,
        target_is_zero: true,
        over_backing: false,
        threads: 1,
        ordered: true,
        rate: None,
        offload: false,
        salvage: None,
    };
    copy.run(&Progress::new(false, 0))?;
    target.finish()?;
    Ok(0)
}
