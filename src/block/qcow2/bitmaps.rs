//! Where persistent bitmaps stand (qcow2.rst, "Bitmaps extension"), so that a check knows their
//! clusters. Their content is not read: opening for writing declares them out of date.

use super::header::{Header, be32, be64, corrupt};
use super::layout::OFFSET;
use crate::block::{Result, Storage};

const EXTENSION: u32 = 0x2385_2875;
/// Autoclear feature: the bitmaps fit to the content.
const CONSISTENT: u64 = 1 << 0;
/// A larger directory, or more entries in all tables together, is refused.
const MAX_DIRECTORY: u64 = 64 << 20;
const MAX_ENTRIES: u64 = 16 << 20;

/// The ranges of the host file that bitmaps take, if they are in force.
pub(super) fn ranges(file: &dyn Storage, header: &Header) -> Result<Vec<(u64, u64)>> {
    let extension = header.extensions.iter().find(|(kind, _)| *kind == EXTENSION);
    let Some((_, extension)) = extension.filter(|_| header.autoclear & CONSISTENT != 0) else {
        return Ok(Vec::new());
    };
    let bad = |what: &str| corrupt(file.name(), format!("bitmap directory: {what}"));
    let (bitmaps, len, offset) = (be32(extension, 0), be64(extension, 8), be64(extension, 16));
    if len > MAX_DIRECTORY {
        return Err(bad("too long"));
    }
    let mut directory = vec![0; len as usize];
    file.read(offset, &mut directory)?;
    let mut ranges = vec![(offset, len)];
    let (mut at, mut entries) = (0usize, 0u64);
    for _ in 0..bitmaps {
        let entry = directory.get(at..at + 24).ok_or_else(|| bad("an entry leaves it"))?;
        let (table, size) = (be64(entry, 0), u64::from(be32(entry, 8)));
        let name = usize::from(u16::from_be_bytes([entry[18], entry[19]]));
        let extra = be32(entry, 20) as usize;
        entries += size;
        if entries > MAX_ENTRIES {
            return Err(bad("the tables are too long"));
        }
        let mut bytes = vec![0; size as usize * 8];
        file.read(table, &mut bytes)?;
        ranges.push((table, size * 8));
        let clusters = (0..size as usize).map(|i| be64(&bytes, i * 8) & OFFSET).filter(|&c| c != 0);
        ranges.extend(clusters.map(|c| (c, 1 << header.cluster_bits)));
        at += (24 + name + extra).next_multiple_of(8);
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use crate::block::qcow2::{CreateOptions, Repair, create};
    use crate::block::scratch::{Scratch, have, run};
    use crate::block::{OpenOptions, open};

    #[test]
    fn bitmaps_of_qemu_are_no_leaks_until_something_is_written() {
        if !have("qemu-img") {
            return;
        }
        let dir = Scratch::new();
        let path = dir.path("disk.qcow2");
        create(&path, &CreateOptions { size: 1 << 20, ..CreateOptions::default() }).unwrap();
        let text = path.to_str().unwrap();
        run("qemu-img", &["bitmap", "--add", text, "backup"]);
        run("qemu-io", &["-c", "write -q -P 1 0 512k", text]);
        let look = OpenOptions { read_only: true, ..OpenOptions::default() };
        let check = |options: &OpenOptions, repair| {
            let image = open(&path, options).unwrap();
            let report = image.qcow2().unwrap().check(repair).unwrap();
            (report.leaks, report.corruptions)
        };
        assert_eq!(check(&look, Repair::None), (0, 0));
        // Repairing does not take the bitmap's clusters away.
        let repair = OpenOptions { for_check: true, ..OpenOptions::default() };
        assert_eq!(check(&repair, Repair::All), (0, 0));
        assert!(run("qemu-img", &["info", text]).contains("backup"));
        drop(open(&path, &OpenOptions::default()).unwrap());
        assert!(check(&look, Repair::None).0 > 0, "out of date now: its clusters are leaks");
        run("qemu-img", &["check", "-q", "-r", "leaks", text]);
        assert_eq!(check(&look, Repair::None), (0, 0));
    }
}
