//! Changing persistent bitmaps (qcow2.rst, "Bitmaps extension"): `brolga-img bitmap`.
//!
//! Nothing is changed in place: new data, a new table and a new directory are written, and then the header
//! names the directory, so that a crash leaves the old bitmaps or the new ones.

use super::Qcow2;
use super::bitmaps::{self, AUTO, Bitmap, EXTENSION, IN_USE, MAX_DIRECTORY};
use super::header::{BITMAPS_FIT, be64};
use super::layout::OFFSET;
use super::meta::{FlatTable, Meta};
use crate::block::{BlockBackend, BlockError, Result};

/// Bytes of an entry without extra data and name.
const FIXED: usize = 24;
/// The type of bitmaps that follow writes, the only one there is.
const DIRTY_TRACKING: u8 = 1;
/// Longest name.
const MAX_NAME: usize = 1023;
/// Most bitmaps in one image.
const MAX_BITMAPS: usize = 65535;
/// One bit stands for 512 bytes to 2 GiB.
const GRANULARITY: std::ops::RangeInclusive<u64> = 512..=1 << 31;
/// A bitmap of more bytes is not taken into memory.
const MAX_BYTES: u64 = 1 << 30;
/// Table entry without a cluster: all bits are set.
const ALL_SET: u64 = 1;

/// What is done to a bitmap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BitmapChange {
    /// A new one, empty, that follows writes. One bit stands for so many bytes; if none are told, for a cluster
    /// of 4 to 64 KiB.
    Add(Option<u64>),
    /// It is no more.
    Remove,
    /// All bits are taken back.
    Clear,
    /// It follows writes from now on.
    Enable,
    /// It does not.
    Disable,
    /// It gets the bits of this one too.
    Merge(BitmapContent),
}

/// The bits of a bitmap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BitmapContent {
    /// Bytes of the disk that one bit stands for.
    pub granularity: u64,
    /// Bytes of the disk.
    pub disk: u64,
    /// Bit 0 of byte 0 stands for the beginning of the disk.
    pub bits: Vec<u8>,
}

impl BitmapContent {
    fn is_set(&self, index: u64) -> bool {
        self.bits.get((index / 8) as usize).is_some_and(|byte| byte >> (index % 8) & 1 != 0)
    }

    /// The same with bits for other stretches: a bit is set where any byte of its stretch was marked.
    fn scaled(&self, granularity: u64) -> Vec<u8> {
        let mut bits = vec![0; bit_bytes(self.disk, granularity) as usize];
        for index in (0..self.disk.div_ceil(self.granularity)).filter(|&i| self.is_set(i)) {
            let (start, end) = (index * self.granularity, ((index + 1) * self.granularity).min(self.disk));
            for to in start / granularity..end.div_ceil(granularity) {
                if let Some(byte) = bits.get_mut((to / 8) as usize) {
                    *byte |= 1 << (to % 8);
                }
            }
        }
        bits
    }
}

/// Bytes of a bitmap.
fn bit_bytes(disk: u64, granularity: u64) -> u64 {
    disk.div_ceil(granularity).div_ceil(8)
}

impl Qcow2 {
    fn wrong<T>(&self, what: String) -> Result<T> {
        Err(BlockError::Invalid { what: format!("{}: {what}", self.file.name()) })
    }

    /// The bits of a bitmap that was saved properly.
    pub fn bitmap(&self, name: &str) -> Result<BitmapContent> {
        let disk = self.len();
        let meta = self.meta();
        let (_, bitmaps) = meta.stored_bitmaps()?;
        match bitmaps.iter().find(|b| b.name == name) {
            None => self.wrong(unknown(name, &bitmaps)),
            Some(bitmap) if bitmap.flags & IN_USE != 0 => self.wrong(stale(name)),
            Some(bitmap) => meta.bits(bitmap, disk),
        }
    }

    /// Changes the bitmap of that name. The disk's content is not touched.
    pub fn change_bitmap(&self, name: &str, change: &BitmapChange) -> Result<()> {
        self.writable()?;
        if self.layout.version < 3 {
            return self.wrong("version 2 has no bitmaps; amend -o compat=1.1 makes it version 3".to_string());
        }
        let disk = self.len();
        let _alone = self.alone();
        let mut meta = self.meta();
        let (old, mut bitmaps) = meta.stored_bitmaps()?;
        let found = bitmaps.iter().position(|b| b.name == name);
        if let BitmapChange::Add(granularity) = change {
            if found.is_some() {
                return self.wrong(format!("there is a bitmap '{name}' already; remove it, or take another name"));
            }
            bitmaps.push(self.new_bitmap(name, *granularity, disk, bitmaps.len())?);
            return meta.switch_bitmaps(old, bitmaps, Vec::new());
        }
        let Some(index) = found else { return self.wrong(unknown(name, &bitmaps)) };
        let Some(bitmap) = bitmaps.get_mut(index) else { return Ok(()) };
        if bitmap.flags & IN_USE != 0 && *change != BitmapChange::Remove {
            return self.wrong(stale(name));
        }
        let mut given_up = Vec::new();
        match change {
            BitmapChange::Enable => bitmap.flags |= AUTO,
            BitmapChange::Disable => bitmap.flags &= !AUTO,
            BitmapChange::Merge(from) => {
                if from.disk != disk {
                    return self.wrong(format!("a bitmap of {} bytes cannot be merged into one of {disk}", from.disk));
                }
                let own = meta.bits(bitmap, disk)?;
                let mut bits = from.scaled(own.granularity);
                bits.iter_mut().zip(&own.bits).for_each(|(to, from)| *to |= from);
                given_up = meta.places(bitmap)?;
                (bitmap.table, bitmap.size) = meta.store_bits(&bits)?;
            }
            BitmapChange::Clear => {
                given_up = meta.places(bitmap)?;
                bitmap.table = 0;
            }
            BitmapChange::Remove => {
                given_up = meta.places(bitmap)?;
                bitmaps.remove(index);
            }
            BitmapChange::Add(_) => {}
        }
        meta.switch_bitmaps(old, bitmaps, given_up)
    }

    fn new_bitmap(&self, name: &str, granularity: Option<u64>, disk: u64, there: usize) -> Result<Bitmap> {
        let granularity = granularity.unwrap_or(self.layout.cluster().clamp(4096, 65536));
        if !granularity.is_power_of_two() || !GRANULARITY.contains(&granularity) {
            return self.wrong(format!("a granularity of {granularity}: a power of two from 512 to 2G is needed"));
        }
        if name.is_empty() || name.len() > MAX_NAME {
            return self.wrong(format!("a bitmap name of {} bytes; 1 to {MAX_NAME} are possible", name.len()));
        }
        let bytes = bit_bytes(disk, granularity);
        if there >= MAX_BITMAPS || bytes > MAX_BYTES {
            return self.wrong("too many or too large bitmaps; use a larger granularity".to_string());
        }
        Ok(Bitmap {
            name: name.to_string(),
            at: 0,
            flags: AUTO,
            kind: DIRTY_TRACKING,
            granularity_bits: granularity.trailing_zeros() as u8,
            // Its table is made when the directory is.
            table: 0,
            size: self.layout.clusters(bytes),
            extra: Vec::new(),
        })
    }
}

fn unknown(name: &str, there: &[Bitmap]) -> String {
    let names: Vec<&str> = there.iter().map(|b| b.name.as_str()).collect();
    let there = if names.is_empty() { "there are none".into() } else { format!("there are {}", names.join(", ")) };
    format!("no bitmap '{name}'; {there}")
}

fn stale(name: &str) -> String {
    format!("the bitmap '{name}' is out of date (in use); it can only be removed")
}

impl Meta {
    /// Where the directory stands (offset, bytes; no bytes if there is none) and its entries.
    pub(super) fn stored_bitmaps(&self) -> Result<((u64, u64), Vec<Bitmap>)> {
        let found = bitmaps::directory(&*self.file, &self.header)?;
        Ok(found.map_or(((0, 0), Vec::new()), |(offset, len, all)| ((offset, len), all)))
    }

    fn table_of(&self, bitmap: &Bitmap) -> Result<Vec<u64>> {
        Ok(FlatTable::read(&*self.file, bitmap.table, bitmap.size as usize)?.entries)
    }

    /// The host ranges of a bitmap's table and data.
    pub(super) fn places(&self, bitmap: &Bitmap) -> Result<Vec<(u64, u64)>> {
        let cluster = self.layout.cluster();
        let data = self.table_of(bitmap)?.into_iter().map(|e| e & OFFSET).filter(|&o| o != 0);
        Ok(data.map(|offset| (offset, cluster)).chain([(bitmap.table, bitmap.size * 8)]).collect())
    }

    pub(super) fn bits(&self, bitmap: &Bitmap, disk: u64) -> Result<BitmapContent> {
        let granularity = 1u64.checked_shl(bitmap.granularity_bits.into()).filter(|g| GRANULARITY.contains(g));
        let bytes = granularity.map_or(u64::MAX, |g| bit_bytes(disk, g));
        if bytes > MAX_BYTES || self.layout.clusters(bytes) != bitmap.size || bitmap.kind != DIRTY_TRACKING {
            return self.corrupt(format!("the bitmap '{}' does not fit to the disk", bitmap.name));
        }
        let cluster = self.layout.cluster() as usize;
        let mut bits = vec![0; bitmap.size as usize * cluster];
        for (entry, part) in self.table_of(bitmap)?.into_iter().zip(bits.chunks_mut(cluster)) {
            match entry & OFFSET {
                0 if entry & ALL_SET != 0 => part.fill(0xff),
                0 => {}
                offset => self.file.read(offset, part)?,
            }
        }
        bits.truncate(bytes as usize);
        Ok(BitmapContent { granularity: granularity.unwrap_or(1), disk, bits })
    }

    /// Writes bits to new clusters, and a table of them: its offset and entries.
    pub(super) fn store_bits(&mut self, bits: &[u8]) -> Result<(u64, u64)> {
        let cluster = self.layout.cluster() as usize;
        let mut entries = Vec::new();
        for part in bits.chunks(cluster) {
            if part.iter().all(|&b| b == 0) {
                entries.push(0);
                continue;
            }
            let host = self.allocate_exactly(1)?;
            let mut whole = part.to_vec();
            whole.resize(cluster, 0);
            self.file.write(host, &whole)?;
            entries.push(host);
        }
        Ok((self.store_table(entries)?, bits.len().div_ceil(cluster) as u64))
    }

    fn store_table(&mut self, entries: Vec<u64>) -> Result<u64> {
        let clusters = self.layout.clusters(entries.len() as u64 * 8);
        if clusters == 0 {
            return Ok(0);
        }
        let host = self.allocate_exactly(clusters)?;
        let table = FlatTable::new(entries);
        let mut bytes = table.bytes(0..table.entries.len());
        bytes.resize((clusters << self.layout.cluster_bits) as usize, 0);
        self.file.write(host, &bytes)?;
        Ok(host)
    }

    /// Names other bitmaps in the header, and gives the old directory and `given_up` free.
    pub(super) fn switch_bitmaps(
        &mut self,
        old: (u64, u64),
        mut all: Vec<Bitmap>,
        given_up: Vec<(u64, u64)>,
    ) -> Result<()> {
        for bitmap in all.iter_mut().filter(|b| b.table == 0) {
            bitmap.table = self.store_table(vec![0; bitmap.size as usize])?;
        }
        let bytes: Vec<u8> = all.iter().flat_map(entry_bytes).collect();
        if bytes.len() as u64 > MAX_DIRECTORY {
            let what = format!("{}: too many bitmaps; remove some", self.name());
            return Err(BlockError::Invalid { what });
        }
        let mut host = 0;
        if !bytes.is_empty() {
            host = self.allocate_exactly(self.layout.clusters(bytes.len() as u64))?;
            self.file.write(host, &bytes)?;
        }
        self.settle()?;
        self.write_blocks()?;
        self.file.flush()?;
        let before = self.header.clone();
        self.header.extensions.retain(|(kind, _)| *kind != EXTENSION);
        self.header.autoclear &= !BITMAPS_FIT;
        if !bytes.is_empty() {
            self.header.autoclear |= BITMAPS_FIT;
            let mut content = (all.len() as u32).to_be_bytes().to_vec();
            content.extend_from_slice(&[0; 4]);
            content.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
            content.extend_from_slice(&host.to_be_bytes());
            self.header.extensions.push((EXTENSION, content));
        }
        if let Err(e) = self.write_header() {
            self.header = before;
            return Err(e);
        }
        self.file.flush()?;
        for (offset, len) in given_up.into_iter().chain([old]).filter(|&(_, len)| len > 0) {
            self.release(offset, len);
        }
        self.counts_follow()
    }
}

/// An entry of the directory as it stands in the file.
fn entry_bytes(bitmap: &Bitmap) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FIXED + bitmap.extra.len() + bitmap.name.len());
    bytes.extend_from_slice(&bitmap.table.to_be_bytes());
    bytes.extend_from_slice(&(bitmap.size as u32).to_be_bytes());
    bytes.extend_from_slice(&bitmap.flags.to_be_bytes());
    bytes.extend_from_slice(&[bitmap.kind, bitmap.granularity_bits]);
    bytes.extend_from_slice(&(bitmap.name.len() as u16).to_be_bytes());
    bytes.extend_from_slice(&(bitmap.extra.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&bitmap.extra);
    bytes.extend_from_slice(bitmap.name.as_bytes());
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    debug_assert_eq!(be64(&bytes, 0), bitmap.table);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_scaled_both_ways() {
        let fine = BitmapContent { granularity: 512, disk: 20_000, bits: vec![0b1000_0001, 0, 0, 0, 0b100] };
        assert_eq!(fine.scaled(4096), [0b0001_0001], "512-byte blocks 0, 7 and 34 of 40");
        let coarse = BitmapContent { granularity: 4096, disk: 20_000, bits: vec![0b0001_0010] };
        assert_eq!(coarse.scaled(512), [0, 0xff, 0, 0, 0xff]);
        assert_eq!(coarse.scaled(4096), coarse.bits);
    }
}
