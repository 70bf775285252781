//! `measure`: the size a file will need.

use super::Command;
use super::arguments::{Arguments, FORCE_SHARE, FORMAT, IMAGE_OPTS, OBJECT, OUTPUT, Opt};
use super::format_options::{self, NewImage};
use super::images::{self, Named};
use super::show;
use crate::block::qcow2::{self, CreateOptions};
use crate::block::{BlockBackend, Content, Format, Preallocation};
use crate::words::values;
use anyhow::{Result, anyhow, bail};
use serde_json::json;
use std::io::Write;

pub(super) const COMMAND: Command = Command {
    name: "measure",
    summary: "Tells the size a new file will have",
    operands: "(--size SIZE | FILENAME)",
    options: &[
        Opt::value(Some('O'), "target-format", "FMT", "format of the new file (raw)"),
        Opt::value(Some('o'), "target-options", "OPTIONS", "options of that format; -o help lists them"),
        Opt::value(Some('s'), "size", "SIZE", "for a new disk of SIZE bytes"),
        FORMAT,
        IMAGE_OPTS,
        Opt::value(Some('l'), "snapshot", "SNAPSHOT", "for what FILENAME held then: name, id, or snapshot.name="),
        OUTPUT,
        FORCE_SHARE,
        OBJECT,
    ],
    error_status: 1,
    run,
};

/// Bytes in an entry of the tables of a qcow2 image (QEMU: docs/interop/qcow2.rst).
const ENTRY: u64 = 8;

fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<u8> {
    let format = arguments.parsed("target-format", images::format)?.unwrap_or(Format::Raw);
    if arguments.all("target-options").any(format_options::asks_help) {
        out.write_all(format_options::help(format).as_bytes())?;
        return Ok(0);
    }
    let json = arguments.json()?;
    let mut new = format_options::read(format, arguments.all("target-options"))?;
    let size = arguments.parsed("size", |v| values::size(v, 1))?;
    let source = match (size, arguments.operands.as_slice()) {
        (None, [_]) => Some(Named::from(arguments, arguments.exactly(["FILENAME"])?[0], "format")?.open(true)?),
        (Some(_), []) => None,
        _ => bail!("either --size SIZE or one FILENAME is needed"),
    };
    if let Some(wanted) = arguments.parsed("snapshot", images::snapshot)? {
        let source = source.as_ref().ok_or_else(|| anyhow!("-l: a new disk has no snapshots; leave it out"))?;
        source.show(&wanted)?;
    }
    if size.is_some() && (arguments.has("image-opts") || arguments.has("format")) {
        bail!("--size: without a file there is no format; leave -f and --image-opts out");
    }
    new.set_size(size.or_else(|| source.as_ref().map(|s| s.disk.len())).unwrap_or(0))?;
    let bytes = new.size().unwrap_or(0);
    let (required, full) = match &new {
        NewImage::Raw { .. } => (bytes, bytes),
        NewImage::Qcow2 { options, .. } => {
            let disk = source.as_ref().map(|s| &*s.disk);
            let stored = match options.preallocation {
                Preallocation::Falloc | Preallocation::Full => bytes.next_multiple_of(options.cluster_size),
                _ => disk.map_or(Ok(0), |d| stored_clusters(d, options))? * options.cluster_size,
            };
            let tables = metadata(options).ok_or_else(|| anyhow!("{bytes} bytes are more than an image can have"))?;
            (tables + stored, tables + bytes.next_multiple_of(options.cluster_size))
        }
    };
    // Told of sources that could have bitmaps, for targets that can.
    let bitmaps = match (&new, source.as_ref().and_then(|s| s.image.qcow2().ok()).map(|q| q.info())) {
        (NewImage::Qcow2 { options, .. }, Some(info)) if info.version > 2 => Some(bitmap_bytes(&info, bytes, options)),
        _ => None,
    };
    if json {
        let mut value = json!({ "required": required, "fully-allocated": full });
        if let Some(bitmaps) = bitmaps {
            value["bitmaps"] = json!(bitmaps);
        }
        show::json(&value, out)?;
        return Ok(0);
    }
    write!(out, "required size: {required}\nfully allocated size: {full}\n")?;
    if let Some(bitmaps) = bitmaps {
        writeln!(out, "bitmaps size: {bitmaps}")?;
    }
    Ok(0)
}

/// Bytes that the bitmaps of an image of `size` bytes take in a new one (qcow2.rst, "Bitmaps extension").
fn bitmap_bytes(info: &qcow2::Info, size: u64, options: &CreateOptions) -> u64 {
    /// An entry of the directory without its name.
    const FIXED: u64 = 24;
    let cluster = options.cluster_size;
    let mut directory = 0;
    let mut clusters = 0;
    for bitmap in &info.bitmaps {
        let data = size.div_ceil(bitmap.granularity.max(1)).div_ceil(8).div_ceil(cluster);
        clusters += data + (data * ENTRY).div_ceil(cluster);
        directory += (FIXED + bitmap.name.len() as u64).next_multiple_of(8);
    }
    (clusters + directory.div_ceil(cluster)) * cluster
}

/// Clusters of the new image that hold data of `disk`.
fn stored_clusters(disk: &dyn BlockBackend, options: &CreateOptions) -> Result<u64> {
    let mut at = 0;
    // The first cluster that is not counted yet.
    let (mut clusters, mut next) = (0, 0);
    while at < disk.len() {
        let extent = disk.map(at, disk.len() - at)?;
        let end = at + extent.len;
        let inherited = options.backing.is_some() && extent.depth > 0;
        if extent.content == Content::Data && !inherited {
            let first = (at / options.cluster_size).max(next);
            let past = end.div_ceil(options.cluster_size);
            clusters += past.saturating_sub(first);
            next = next.max(past);
        }
        at = end;
    }
    Ok(clusters)
}

/// Bytes of everything but data in an image whose clusters are all stored; none if no image can be so large.
fn metadata(options: &CreateOptions) -> Option<u64> {
    let cluster = options.cluster_size;
    let per_table = cluster / ENTRY;
    let data = options.size.div_ceil(cluster);
    let l2_entry = if options.extended_l2 { 2 * ENTRY } else { ENTRY };
    let l2 = data.div_ceil(cluster / l2_entry);
    let l1 = l2.div_ceil(per_table);
    let others = data.checked_add(l2)?.checked_add(l1)?.checked_add(1)?;
    // Reference counts count their own blocks and the table of these, so look for the number that fits.
    let per_block = cluster.checked_mul(8)? / u64::from(options.refcount_bits);
    let mut counts = 0u64;
    loop {
        let blocks = others.checked_add(counts)?.div_ceil(per_block);
        let needed = blocks + blocks.div_ceil(per_table);
        if needed == counts {
            break;
        }
        counts = needed;
    }
    (1 + l1 + l2 + counts).checked_mul(cluster)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What qemu-img 10.0 measures, less the data.
    #[test]
    fn metadata_of_known_sizes() {
        let with = |size, cluster_size| CreateOptions { size, cluster_size, ..CreateOptions::default() };
        assert_eq!(metadata(&with(10 << 30, 65536)), Some(1_900_544));
        assert_eq!(metadata(&with(10 << 20, 65536)), Some(327_680));
        assert_eq!(metadata(&with(u64::MAX, 512)), Some(metadata(&with(u64::MAX, 512)).unwrap()));
    }
}
