//! `compare`: whether two disks hold the same bytes.

use super::Command;
use super::arguments::{Arguments, FORCE_SHARE, IMAGE_OPTS, OBJECT, Opt, PROGRESS, QUIET};
use super::buffer::Buffer;
use super::copy::{PIECE, is_zero};
use super::images::{self, Named};
use super::progress::Progress;
use crate::block::{BlockBackend, Content};
use anyhow::Result;
use std::io::Write;

pub(super) const COMMAND: Command = Command {
    name: "compare",
    summary: "Tells whether two disks hold the same bytes",
    operands: "FILENAME1 FILENAME2",
    options: &[
        QUIET,
        PROGRESS,
        Opt::value(Some('f'), "a-format", "FMT", "format of FILENAME1; recognised if not given"),
        Opt::value(Some('F'), "b-format", "FMT", "format of FILENAME2; recognised if not given"),
        IMAGE_OPTS,
        Opt::switch(Some('s'), "strict", "sizes and what is stored must be the same too"),
        Opt::value(Some('T'), "cache", images::CACHES, "how images are cached (writeback)"),
        FORCE_SHARE,
        OBJECT,
    ],
    // 1 says that the images differ.
    error_status: 2,
    run,
};

/// Bytes in a sector: differences are told by sector.
const SECTOR: usize = 512;

/// What was found first.
enum Difference {
    Bytes(u64),
    Status(u64),
}

fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<u8> {
    let [first, second] = arguments.exactly(["FILENAME1", "FILENAME2"]).map_err(super::wrong_words)?;
    let cache = arguments.parsed("cache", images::cache)?;
    let a = Named::from(arguments, first, "a-format")?.cached(cache).open(true)?;
    let b = Named::from(arguments, second, "b-format")?.cached(cache).open(true)?;
    let (quiet, strict) = (arguments.has("quiet"), arguments.has("strict"));
    let mut say = |text: &str| if quiet { Ok(()) } else { writeln!(out, "{text}") };
    let (len_a, len_b) = (a.disk.len(), b.disk.len());
    if strict && len_a != len_b {
        say("Strict mode: Image size mismatch!")?;
        return Ok(1);
    }
    let progress = Progress::new(arguments.has("progress") && !quiet, len_a.max(len_b));
    let shared = len_a.min(len_b);
    let mut found = both(&*a.disk, &*b.disk, shared, strict, &progress)?;
    if found.is_none() && len_a != len_b {
        say("Warning: Image size mismatch!")?;
        let longer = if len_a > len_b { &a } else { &b };
        found = not_zero(&*longer.disk, shared, longer.disk.len(), &progress)?.map(Difference::Bytes);
    }
    let status = match found {
        Some(Difference::Bytes(at)) => {
            say(&format!("Content mismatch at offset {at}!"))?;
            1
        }
        Some(Difference::Status(at)) => {
            say(&format!("Strict mode: Offset {at} block status mismatch!"))?;
            1
        }
        None => {
            progress.finish();
            say("Images are identical.")?;
            0
        }
    };
    Ok(status)
}

/// The first difference before `end`.
fn both(
    a: &dyn BlockBackend,
    b: &dyn BlockBackend,
    end: u64,
    strict: bool,
    progress: &Progress,
) -> Result<Option<Difference>> {
    let (mut left, mut right) = (Buffer::default(), Buffer::default());
    let mut at = 0;
    while at < end {
        let (state_a, state_b) = (a.map(at, end - at)?, b.map(at, end - at)?);
        let len = state_a.len.min(state_b.len);
        if strict && state_a.content != state_b.content {
            return Ok(Some(Difference::Status(at)));
        }
        let stop = at + len;
        let (data_a, data_b) = (state_a.content == Content::Data, state_b.content == Content::Data);
        if !data_a || !data_b {
            let stored = if data_a { Some(a) } else { data_b.then_some(b) };
            let found = stored.map(|disk| not_zero(disk, at, stop, progress)).transpose()?.flatten();
            if let Some(at) = found {
                return Ok(Some(Difference::Bytes(at)));
            }
            if stored.is_none() {
                progress.add(len);
            }
            at = stop;
        }
        while at < stop {
            let len = PIECE.min(stop - at);
            let (left, right) = (left.get(len as usize), right.get(len as usize));
            a.read(at, left)?;
            b.read(at, right)?;
            if left != right {
                let same = left.chunks(SECTOR).zip(right.chunks(SECTOR)).take_while(|(l, r)| l == r).count();
                return Ok(Some(Difference::Bytes(at + (same * SECTOR) as u64)));
            }
            progress.add(len);
            at += len;
        }
    }
    Ok(None)
}

/// The first sector from `at` to `end` that is not all zeroes.
fn not_zero(disk: &dyn BlockBackend, mut at: u64, end: u64, progress: &Progress) -> Result<Option<u64>> {
    let mut buffer = Buffer::default();
    while at < end {
        let extent = disk.map(at, end - at)?;
        if extent.content != Content::Data {
            progress.add(extent.len);
            at += extent.len;
            continue;
        }
        let len = PIECE.min(extent.len);
        let buffer = buffer.get(len as usize);
        disk.read(at, buffer)?;
        if let Some(sector) = buffer.chunks(SECTOR).position(|s| !is_zero(s)) {
            return Ok(Some(at + (sector * SECTOR) as u64));
        }
        progress.add(len);
        at += len;
    }
    Ok(None)
}
