//! Persistent bitmaps (qcow2.rst, "Bitmaps extension"). What stands in the file of them; see `bitmap_track` for how they
//! follow writes, and `bitmap_edit` for changing them.

use super::header::{BITMAPS_FIT, Header, be32, be64, corrupt};
use super::layout::OFFSET;
use super::options::BitmapInfo;
use crate::block::{Result, Storage};

pub(super) const EXTENSION: u32 = 0x2385_2875;
/// A larger directory, or more entries in all tables together, is refused.
pub(super) const MAX_DIRECTORY: u64 = 64 << 20;
const MAX_ENTRIES: u64 = 16 << 20;
/// Flags of an entry.
pub(super) const IN_USE: u32 = 1 << 0;
pub(super) const AUTO: u32 = 1 << 1;

/// An entry of the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bitmap {
    pub(super) name: String,
    /// Host offset of the entry.
    pub(super) at: u64,
    pub(super) flags: u32,
    pub(super) kind: u8,
    pub(super) granularity_bits: u8,
    pub(super) table: u64,
    /// Entries of the table.
    pub(super) size: u64,
    /// Kept as it is.
    pub(super) extra: Vec<u8>,
}

/// Host offset, bytes, and entries of a directory.
pub(super) type Directory = (u64, u64, Vec<Bitmap>);

/// The directory: its host offset and length, and its entries. None if no bitmaps are in force.
pub(super) fn directory(file: &dyn Storage, header: &Header) -> Result<Option<Directory>> {
    let extension = header.extensions.iter().find(|(kind, _)| *kind == EXTENSION);
    let Some((_, extension)) = extension.filter(|_| header.autoclear & BITMAPS_FIT != 0) else {
        return Ok(None);
    };
    let bad = |what: &str| corrupt(file.name(), format!("bitmap directory: {what}"));
    let (count, len, offset) = (be32(extension, 0), be64(extension, 8), be64(extension, 16));
    if len > MAX_DIRECTORY || offset >= 1 << 56 {
        return Err(bad("too long"));
    }
    let mut bytes = vec![0; len as usize];
    file.read(offset, &mut bytes)?;
    let (mut bitmaps, mut at, mut entries) = (Vec::new(), 0usize, 0u64);
    for _ in 0..count {
        let entry = bytes.get(at..at + 24).ok_or_else(|| bad("an entry leaves it"))?;
        let (name_len, extra) = (usize::from(u16::from_be_bytes([entry[18], entry[19]])), be32(entry, 20) as usize);
        let name_at = at + 24 + extra;
        let name = bytes.get(name_at..name_at + name_len).ok_or_else(|| bad("a name leaves it"))?;
        let size = u64::from(be32(entry, 8));
        entries += size;
        if entries > MAX_ENTRIES {
            return Err(bad("the tables are too long"));
        }
        bitmaps.push(Bitmap {
            name: String::from_utf8_lossy(name).into_owned(),
            at: offset + at as u64,
            flags: be32(entry, 12),
            kind: entry[16],
            extra: bytes.get(at + 24..name_at).unwrap_or_default().to_vec(),
            granularity_bits: entry[17],
            table: be64(entry, 0),
            size,
        });
        at += (24 + extra + name_len).next_multiple_of(8);
    }
    Ok(Some((offset, len, bitmaps)))
}

/// The ranges of the host file that bitmaps take, if they are in force.
pub(super) fn ranges(file: &dyn Storage, header: &Header) -> Result<Vec<(u64, u64)>> {
    let Some((offset, len, bitmaps)) = directory(file, header)? else { return Ok(Vec::new()) };
    let mut ranges = vec![(offset, len)];
    for bitmap in bitmaps {
        let mut bytes = vec![0; bitmap.size as usize * 8];
        file.read(bitmap.table, &mut bytes)?;
        ranges.push((bitmap.table, bitmap.size * 8));
        let clusters = (0..bitmap.size as usize).map(|i| be64(&bytes, i * 8) & OFFSET).filter(|&c| c != 0);
        ranges.extend(clusters.map(|c| (c, 1 << header.cluster_bits)));
    }
    Ok(ranges)
}

/// The bitmaps in force; none if their directory is damaged.
pub(super) fn list(file: &dyn Storage, header: &Header) -> Vec<BitmapInfo> {
    let bitmaps = directory(file, header).ok().flatten().map(|(_, _, bitmaps)| bitmaps);
    let info = |b: Bitmap| BitmapInfo {
        name: b.name,
        granularity: 1u64.checked_shl(b.granularity_bits.into()).unwrap_or(0),
        in_use: b.flags & IN_USE != 0,
        auto: b.flags & AUTO != 0,
    };
    bitmaps.unwrap_or_default().into_iter().map(info).collect()
}

#[cfg(test)]
mod tests {
    use crate::block::qcow2::{BitmapInfo, CreateOptions, Repair, create};
    use crate::block::scratch::{Scratch, have, run};
    use crate::block::{OpenOptions, open};

    #[test]
    fn bitmaps_of_qemu_are_kept() {
        if !have("qemu-img") {
            return;
        }
        let dir = Scratch::new();
        let path = dir.path("disk.qcow2");
        create(&path, &CreateOptions { size: 1 << 20, ..CreateOptions::default() }).unwrap();
        let text = path.to_str().unwrap();
        run("qemu-img", &["bitmap", "--add", "-g", "65536", text, "backup"]);
        run("qemu-img", &["bitmap", "--add", "--disable", text, "old"]);
        run("qemu-io", &["-c", "write -q -P 1 0 512k", text]);
        let look = OpenOptions { read_only: true, ..OpenOptions::default() };
        let check = |options: &OpenOptions, repair| {
            let image = open(&path, options).unwrap();
            let report = image.qcow2().unwrap().check(repair).unwrap();
            (report.leaks, report.corruptions, image.qcow2().unwrap().info().bitmaps)
        };
        let bitmap = |name: &str, in_use, auto| BitmapInfo { name: name.into(), granularity: 65536, in_use, auto };
        let kept = vec![bitmap("backup", false, true), bitmap("old", false, false)];
        assert_eq!(check(&look, Repair::None), (0, 0, kept.clone()));
        // Neither repairing nor opening and flushing changes content.
        let repair = OpenOptions { for_check: true, ..OpenOptions::default() };
        assert_eq!(check(&repair, Repair::All), (0, 0, kept.clone()));
        let image = open(&path, &OpenOptions::default()).unwrap();
        image.backend().flush().unwrap();
        drop(image);
        assert_eq!(check(&look, Repair::None), (0, 0, kept));
        assert!(!run("qemu-img", &["info", text]).contains("in-use"));
        // The one that follows writes does.
        let image = open(&path, &OpenOptions::default()).unwrap();
        image.backend().write(700_000, &[1; 10]).unwrap();
        let used = vec![bitmap("backup", true, true), bitmap("old", false, false)];
        assert_eq!(check(&look, Repair::None), (0, 0, used));
        image.backend().flush().unwrap();
        drop(image);
        let kept = vec![bitmap("backup", false, true), bitmap("old", false, false)];
        assert_eq!(check(&look, Repair::None), (0, 0, kept));
        run("qemu-img", &["check", "-q", text]);
        assert!(!run("qemu-img", &["info", text]).contains("in-use"));
        let image = open(&path, &look).unwrap();
        assert_eq!(image.qcow2().unwrap().bitmap("backup").unwrap().bits, [0xff, 0b100]);
        drop(image);
        run("qemu-img", &["bitmap", "--remove", text, "backup"]);
        run("qemu-img", &["bitmap", "--remove", text, "old"]);
        run("qemu-img", &["check", "-q", text]);
        assert_eq!(check(&look, Repair::None), (0, 0, Vec::new()));
    }
}
