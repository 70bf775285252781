//! Persistent bitmaps while the disk changes: they follow writes in memory, and are stored when the image is closed.
//!
//! From the first change on the file says that they are in use, so that whoever finds them after a crash knows
//! that they are out of date (qcow2.rst, "Bitmaps extension", flag `in_use`). Those too large for memory stay so.

use super::Qcow2;
use super::bitmap_edit::BitmapContent;
use super::bitmaps::{AUTO, Bitmap, IN_USE, directory};
use super::header::{BITMAPS_FIT, DATA_FILE_RAW};
use super::meta::Meta;
use crate::block::{BlockBackend, BlockError, Result};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

/// Bytes of all bitmaps of an image that follow writes. One of 2 MiB covers 1 TiB with bits for 64 KiB.
const MOST_MEMORY: u64 = 64 << 20;

/// Bitmaps in memory.
#[derive(Default)]
pub(super) struct Tracked {
    /// Whether there is any: looked at before each request.
    any: AtomicBool,
    bitmaps: RwLock<Vec<Followed>>,
}

/// A bitmap in memory.
pub(super) struct Followed {
    name: String,
    /// It follows writes; others are here for the disk's new size.
    follows: bool,
    granularity: u64,
    disk: u64,
    /// Bit 0 of the first word stands for the beginning of the disk.
    words: Vec<AtomicU64>,
    /// It is not as the file has it.
    changed: AtomicBool,
}

impl Followed {
    fn new(name: &str, follows: bool, content: &BitmapContent) -> Followed {
        let word = |bytes: &[u8]| {
            let mut all = [0; 8];
            all.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            AtomicU64::new(u64::from_le_bytes(all))
        };
        Followed {
            name: name.to_string(),
            follows,
            granularity: content.granularity,
            disk: content.disk,
            words: content.bits.chunks(8).map(word).collect(),
            changed: false.into(),
        }
    }

    /// Bits that there are.
    fn bits(&self) -> u64 {
        self.disk.div_ceil(self.granularity)
    }

    /// Marks what touches a range.
    fn note(&self, offset: u64, len: u64) {
        let end = offset.saturating_add(len).min(self.disk).div_ceil(self.granularity);
        let mut bit = offset / self.granularity;
        while bit < end {
            let (word, within) = (bit / 64, bit % 64);
            let here = (end - bit).min(64 - within);
            let mask = (u64::MAX >> (64 - here)) << within;
            if let Some(word) = self.words.get(word as usize)
                && word.load(Ordering::Relaxed) & mask != mask
            {
                word.fetch_or(mask, Ordering::Relaxed);
                self.changed.store(true, Ordering::Relaxed);
            }
            bit += here;
        }
    }

    /// Follows the disk to another size; what is added is not marked.
    fn resize(&mut self, disk: u64) {
        self.disk = disk;
        let bits = self.bits();
        self.words.resize_with(bits.div_ceil(64) as usize, AtomicU64::default);
        if let Some(last) = self.words.last_mut().filter(|_| !bits.is_multiple_of(64)) {
            *last.get_mut() &= u64::MAX >> (64 - bits % 64);
        }
        *self.changed.get_mut() = true;
    }

    /// The bytes as the file has them.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.words.iter().flat_map(|w| w.load(Ordering::Relaxed).to_le_bytes()).collect();
        bytes.truncate(self.bits().div_ceil(8) as usize);
        bytes
    }
}

impl Meta {
    /// Before the first change of content: what the header says of it in optional features must
    /// not become wrong. Features that we do not know lose their bit (qcow2.rst, bytes 88-95).
    /// Gives the bitmaps that follow the changes.
    fn content_changes(&mut self, disk: u64) -> Result<Vec<Followed>> {
        let bitmaps = match directory(&*self.file, &self.header) {
            Ok(found) => found.map_or(Vec::new(), |(_, _, bitmaps)| bitmaps),
            Err(_) => Vec::new(),
        };
        let following = |b: &&Bitmap| b.flags & IN_USE == 0 && b.flags & AUTO != 0;
        let followed = self.take_up(bitmaps.iter().filter(following), disk, 0)?;
        let kept = DATA_FILE_RAW | if bitmaps.is_empty() { 0 } else { BITMAPS_FIT };
        let before = self.header.autoclear;
        if before & !kept != 0 {
            self.header.autoclear = before & kept;
            if let Err(e) = self.write_header() {
                self.header.autoclear = before;
                return Err(e);
            }
            self.file.flush()?;
        }
        Ok(followed)
    }

    /// Takes bitmaps into memory, of which there are `taken` bytes already, and says in the file that they are in
    /// use. Those that do not fit to the disk, or into memory, are out of date from now on.
    fn take_up<'a>(
        &mut self,
        bitmaps: impl Iterator<Item = &'a Bitmap>,
        disk: u64,
        mut taken: u64,
    ) -> Result<Vec<Followed>> {
        let (mut followed, mut any) = (Vec::new(), false);
        for bitmap in bitmaps {
            let bytes = bitmap.size.saturating_mul(self.layout.cluster());
            let room = taken.saturating_add(bytes) <= MOST_MEMORY;
            match if room && bitmap.extra.is_empty() { self.bits(bitmap, disk).ok() } else { None } {
                Some(content) => {
                    taken += bytes;
                    followed.push(Followed::new(&bitmap.name, bitmap.flags & AUTO != 0, &content));
                }
                None => tracing::warn!("{}: the bitmap '{}' is not kept up to date", self.name(), bitmap.name),
            }
            self.file.write(bitmap.at + 12, &(bitmap.flags | IN_USE).to_be_bytes())?;
            any = true;
        }
        if any {
            self.file.flush()?;
        }
        Ok(followed)
    }
}

impl Qcow2 {
    /// Leave to change the content, or why not.
    pub(super) fn changing(&self) -> Result<()> {
        if self.changed.load(Ordering::Acquire) {
            return Ok(());
        }
        if self.read_only {
            return Err(BlockError::ReadOnly { name: self.file.name().to_string() });
        }
        let mut meta = self.meta();
        if self.changed.load(Ordering::Acquire) {
            return Ok(());
        }
        let followed = meta.content_changes(self.len())?;
        self.tracked.any.store(!followed.is_empty(), Ordering::Release);
        *self.tracked.bitmaps.write().unwrap_or_else(PoisonError::into_inner) = followed;
        self.changed.store(true, Ordering::Release);
        Ok(())
    }

    /// The guest's view of a range changes: bitmaps that follow writes hear of it.
    pub(super) fn note(&self, offset: u64, len: u64) {
        if self.tracked.any.load(Ordering::Acquire) {
            let bitmaps = self.tracked.bitmaps.read().unwrap_or_else(PoisonError::into_inner);
            bitmaps.iter().filter(|b| b.follows).for_each(|b| b.note(offset, len));
        }
    }

    /// Before the disk gets another size: every bitmap must be able to follow.
    pub(super) fn bitmaps_before_resize(&self) -> Result<()> {
        self.changing()?;
        let mut meta = self.meta();
        let (_, bitmaps) = meta.stored_bitmaps()?;
        let mut tracked = self.tracked.bitmaps.write().unwrap_or_else(PoisonError::into_inner);
        let here = |name: &str| tracked.iter().any(|t| t.name == name);
        if let Some(stale) = bitmaps.iter().find(|b| b.flags & IN_USE != 0 && !here(&b.name)) {
            let what = format!("the bitmap '{}' is out of date (in use); remove it before resizing", stale.name);
            return Err(BlockError::Invalid { what: format!("{}: {what}", self.file.name()) });
        }
        let others: Vec<&Bitmap> = bitmaps.iter().filter(|b| !here(&b.name)).collect();
        let taken = tracked.iter().map(|t| t.words.len() as u64 * 8).sum();
        tracked.extend(meta.take_up(others.into_iter(), self.len(), taken)?);
        self.tracked.any.store(!tracked.is_empty(), Ordering::Release);
        Ok(())
    }

    /// The disk has another size now.
    pub(super) fn bitmaps_after_resize(&self) {
        let mut tracked = self.tracked.bitmaps.write().unwrap_or_else(PoisonError::into_inner);
        tracked.iter_mut().filter(|t| t.disk != self.len()).for_each(|t| t.resize(self.len()));
    }

    /// Stores the bitmaps in memory, so that they are no longer in use. What they tell of is durable. If that fails
    /// they count as out of date.
    pub(super) fn store_bitmaps(&self) -> Result<()> {
        if !self.tracked.any.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let _alone = self.alone();
        let mut meta = self.meta();
        let tracked = std::mem::take(&mut *self.tracked.bitmaps.write().unwrap_or_else(PoisonError::into_inner));
        // A later change takes them up anew.
        self.changed.store(false, Ordering::Release);
        let (old, mut bitmaps) = meta.stored_bitmaps()?;
        let (mut given_up, mut moved) = (Vec::new(), false);
        for followed in &tracked {
            let Some(bitmap) = bitmaps.iter_mut().find(|b| b.name == followed.name && b.flags & IN_USE != 0) else {
                continue;
            };
            if followed.changed.load(Ordering::Relaxed) {
                given_up.extend(meta.places(bitmap)?);
                (bitmap.table, bitmap.size) = meta.store_bits(&followed.bytes())?;
                moved = true;
            }
            bitmap.flags &= !IN_USE;
        }
        if moved {
            return meta.switch_bitmaps(old, bitmaps, given_up);
        }
        for bitmap in bitmaps.iter().filter(|b| tracked.iter().any(|t| t.name == b.name)) {
            meta.file.write(bitmap.at + 12, &bitmap.flags.to_be_bytes())?;
        }
        meta.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::qcow2::{BitmapChange, BitmapInfo, CreateOptions, Repair, create};
    use crate::block::scratch::{Dice, Scratch, have, run};
    use crate::block::{Image, OpenOptions, Preallocation, open};
    use std::path::Path;

    #[test]
    fn bits_are_noted_and_follow_the_size() {
        let content = BitmapContent { granularity: 512, disk: 100 * 512 + 1, bits: vec![0; 13] };
        let mut bitmap = Followed::new("b", true, &content);
        assert_eq!(bitmap.bits(), 101);
        bitmap.note(511, 2);
        bitmap.note(63 * 512, 513);
        bitmap.note(100 * 512, 1 << 40);
        bitmap.note(u64::MAX - 1, 5);
        let set = |b: &Followed| {
            let bytes = b.bytes();
            (0..b.bits()).filter(|i| bytes[(i / 8) as usize] >> (i % 8) & 1 != 0).collect::<Vec<_>>()
        };
        assert_eq!(set(&bitmap), [0, 1, 63, 64, 100]);
        bitmap.resize(64 * 512);
        assert_eq!((set(&bitmap), bitmap.bytes().len()), (vec![0, 1, 63], 8));
        bitmap.resize(1000 * 512);
        assert_eq!(set(&bitmap), [0, 1, 63], "what is cut off does not come back");
        bitmap.note(0, 1000 * 512);
        assert_eq!(set(&bitmap).len(), 1000);
    }

    fn rw(path: &Path) -> Image {
        open(path, &OpenOptions::default()).unwrap()
    }

    fn image(dir: &Scratch, name: &str) -> std::path::PathBuf {
        let path = dir.path(name);
        create(&path, &CreateOptions { size: 4 << 20, ..CreateOptions::default() }).unwrap();
        let image = rw(&path);
        let image = image.qcow2().unwrap();
        image.change_bitmap("coarse", &BitmapChange::Add(Some(65536))).unwrap();
        image.change_bitmap("fine", &BitmapChange::Add(Some(512))).unwrap();
        image.change_bitmap("off", &BitmapChange::Add(Some(4096))).unwrap();
        image.change_bitmap("off", &BitmapChange::Disable).unwrap();
        path
    }

    fn states(path: &Path) -> Vec<(String, bool)> {
        let look = OpenOptions { read_only: true, ..OpenOptions::default() };
        let image = open(path, &look).unwrap();
        let report = image.qcow2().unwrap().check(Repair::None).unwrap();
        assert_eq!((report.leaks, report.corruptions), (0, 0), "{:?}", report.messages);
        let info: Vec<BitmapInfo> = image.qcow2().unwrap().info().bitmaps;
        info.into_iter().map(|b| (b.name, b.in_use)).collect()
    }

    fn bits(path: &Path, name: &str) -> BitmapContent {
        let look = OpenOptions { read_only: true, ..OpenOptions::default() };
        open(path, &look).unwrap().qcow2().unwrap().bitmap(name).unwrap()
    }

    fn named(states: [(&str, bool); 3]) -> Vec<(String, bool)> {
        states.map(|(name, in_use)| (name.to_string(), in_use)).to_vec()
    }

    #[test]
    fn who_dies_leaves_them_out_of_date() {
        let dir = Scratch::new();
        let path = image(&dir, "disk.qcow2");
        let used = rw(&path);
        used.backend().flush().unwrap();
        assert_eq!(states(&path), named([("coarse", false), ("fine", false), ("off", false)]), "nothing changed yet");
        used.backend().write(100_000, &[1; 1000]).unwrap();
        used.backend().flush().unwrap();
        // What stands in the file now is what a kill leaves.
        assert_eq!(states(&path), named([("coarse", true), ("fine", true), ("off", false)]));
        std::fs::copy(&path, dir.path("killed.qcow2")).unwrap();
        drop(used);
        assert_eq!(states(&path), named([("coarse", false), ("fine", false), ("off", false)]));
        assert_eq!(bits(&path, "coarse").bits[0], 2);
        assert!(bits(&path, "off").bits.iter().all(|&b| b == 0));
        let killed = rw(&dir.path("killed.qcow2"));
        killed.backend().write(0, &[1]).unwrap();
        assert!(killed.backend().resize(8 << 20, Preallocation::Off).unwrap_err().to_string().contains("'coarse'"));
        drop(killed);
        assert_eq!(states(&dir.path("killed.qcow2")), named([("coarse", true), ("fine", true), ("off", false)]));
        if have("qemu-img") {
            let text = dir.path("killed.qcow2");
            assert!(run("qemu-img", &["info", text.to_str().unwrap()]).contains("in-use"));
            run("qemu-img", &["check", "-q", text.to_str().unwrap()]);
        }
    }

    /// The same requests by us and by QEMU make the same bits, and each goes on with the other's.
    #[test]
    fn bits_are_those_of_qemu() {
        if !have("qemu-io") {
            return;
        }
        let dir = Scratch::new();
        let (ours, theirs) = (image(&dir, "ours.qcow2"), image(&dir, "theirs.qcow2"));
        let mut dice = Dice::new(77);
        for round in 0..12 {
            // Each writes into what the other has left.
            let (by_us, by_them) = if round % 2 == 0 { (&ours, &theirs) } else { (&theirs, &ours) };
            let mut disk = Some(rw(by_us));
            let mut words = vec!["-d".to_string(), "unmap".to_string(), by_them.to_str().unwrap().to_string()];
            for _ in 0..dice.below(6) {
                let (offset, len) = (dice.below((4 << 20) - 70_000), 1 + dice.below(70_000));
                let backend = disk.as_ref().unwrap().backend();
                let command = match dice.below(3) {
                    0 => {
                        backend.write(offset, &vec![5; len as usize]).unwrap();
                        format!("write -q -P 5 {offset} {len}")
                    }
                    1 => {
                        backend.write_zeroes(offset, len, false).unwrap();
                        format!("write -q -z {offset} {len}")
                    }
                    _ => {
                        let (offset, len) = (offset & !65535, 65536);
                        backend.discard(offset, len).unwrap();
                        format!("discard -q {offset} {len}")
                    }
                };
                words.splice(0..0, ["-c".to_string(), command]);
            }
            drop(disk.take());
            run("qemu-io", &words.iter().map(String::as_str).collect::<Vec<_>>());
            if round == 7 {
                rw(by_us).backend().resize(6_000_000, Preallocation::Off).unwrap();
                run("qemu-img", &["resize", "-q", by_them.to_str().unwrap(), "6000128"]);
                rw(by_us).backend().resize(6_000_128, Preallocation::Off).unwrap();
            }
            let quiet = named([("coarse", false), ("fine", false), ("off", false)]);
            assert_eq!((states(&ours), states(&theirs)), (quiet.clone(), quiet));
            for name in ["coarse", "fine", "off"] {
                assert_eq!(bits(&ours, name), bits(&theirs, name), "{name} in round {round}: {words:?}");
            }
            for path in [&ours, &theirs] {
                run("qemu-img", &["check", "-q", path.to_str().unwrap()]);
            }
        }
        let marked = bits(&ours, "coarse").bits.iter().map(|b| b.count_ones()).sum::<u32>();
        assert!(marked > 10, "{marked}");
    }

    #[test]
    fn a_snapshot_that_is_applied_changes_everything() {
        let dir = Scratch::new();
        let path = image(&dir, "disk.qcow2");
        let used = rw(&path);
        let image = used.qcow2().unwrap();
        image.create_snapshot("one", std::time::UNIX_EPOCH).unwrap();
        used.backend().resize(5 << 20, Preallocation::Off).unwrap();
        image.apply_snapshot("one").unwrap();
        drop(used);
        assert_eq!(states(&path), named([("coarse", false), ("fine", false), ("off", false)]));
        assert_eq!(bits(&path, "coarse").bits, [0xff; 8]);
        assert!(bits(&path, "off").bits.iter().all(|&b| b == 0));
    }
}
