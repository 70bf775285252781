//! Images of other programs, for reading only: VMware's vmdk and Hyper-V's vhdx, by crates.
//!
//! What was looked at and is not used: `vdi` 0.2 takes discarded blocks for data, and memory and divisors from the
//! header as they are; `vhdx` 0.1 is one release of 2023; imago reads only flat vmdk. The two that are used know how large
//! they may get; what they do not see to is done here: logs that were not played, parents, and tables without a bound.

use super::{BlockBackend, BlockError, Content, Extent, Preallocation, Result, Storage, check_range, total_mut};
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of the tables of one image.
const MOST_TABLES: u64 = 256 << 20;
/// A vmdk without a parent says so (Virtual Disk Format 5.0, "parentCID").
const NO_PARENT: u32 = u32::MAX;

trait Disk: Read + Seek + Send {}
impl<T: Read + Seek + Send> Disk for T {}

/// An image in a format of others.
pub struct Foreign {
    file: Arc<dyn Storage>,
    format: &'static str,
    size: u64,
    disk: Mutex<Box<dyn Disk>>,
}

/// A host file with a place to read next.
struct Cursor {
    file: Arc<dyn Storage>,
    at: u64,
}

impl Read for Cursor {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.file.len().saturating_sub(self.at).min(buf.len() as u64) as usize;
        let buf = buf.get_mut(..len).unwrap_or_default();
        self.file.read(self.at, buf).map_err(io::Error::other)?;
        self.at += len as u64;
        Ok(len)
    }
}

impl Seek for Cursor {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let place = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.file.len().checked_add_signed(by),
        };
        self.at = place.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// Formats that can be read.
pub(super) const READABLE: [&str; 2] = ["vmdk", "vhdx"];

impl Foreign {
    /// Opens an image for reading.
    pub(super) fn open(file: Arc<dyn Storage>, path: &Path, format: &'static str) -> Result<Foreign> {
        let opened = guarded(&*file, || match format {
            "vhdx" => open_vhdx(&file),
            _ => open_vmdk(&file, path),
        })?;
        let (size, disk) = opened;
        Ok(Foreign { file, format, size, disk: Mutex::new(disk) })
    }

    /// The host file.
    pub fn file(&self) -> &Arc<dyn Storage> {
        &self.file
    }

    /// The format's name.
    pub fn format(&self) -> &'static str {
        self.format
    }

    fn refuse<T>(&self) -> Result<T> {
        Err(BlockError::ReadOnly { name: self.file.name().to_string() })
    }
}

/// Runs what a crate does with a file. It may be wrong about some file; that is then damaged, and no more.
fn guarded<T>(file: &dyn Storage, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(damaged(file, "its tables make no sense".to_string())))
}

fn damaged(file: &dyn Storage, what: String) -> BlockError {
    BlockError::Corrupt { name: file.name().to_string(), what }
}

fn unsupported<T>(file: &dyn Storage, what: &str) -> Result<T> {
    Err(BlockError::Unsupported { name: file.name().to_string(), what: what.to_string() })
}

fn open_vhdx(file: &Arc<dyn Storage>) -> Result<(u64, Box<dyn Disk>)> {
    /// Headers and region tables (MS-VHDX 2.2).
    const HEAD: usize = 1 << 20;
    let wrong = |e: vhdx::VhdxError| damaged(&**file, e.to_string());
    let mut head = vec![0; HEAD];
    file.read(0, &mut head)?;
    let header = vhdx::header::parse_active_header(&head).map_err(wrong)?;
    if header.log_guid != [0; 16] {
        return unsupported(&**file, "vhdx image that was not closed; repair it first: qemu-img check -r all");
    }
    // The second table is there in case the first is damaged.
    let table = |at: u64| vhdx::region::parse_region_table(&head, at as usize, file.len());
    let regions = table(vhdx::header::REGION_TABLE1_OFFSET).or_else(|_| table(vhdx::header::REGION_TABLE2_OFFSET));
    let regions = regions.map_err(wrong)?;
    if u64::from(regions.bat.length) + u64::from(regions.metadata.length) > MOST_TABLES / 2 {
        return Err(damaged(&**file, "its tables are too long".to_string()));
    }
    let disk = match vhdx::VhdxReader::open_reader(Box::new(Cursor { file: file.clone(), at: 0 })) {
        Err(vhdx::VhdxError::DifferencingNotSupported) => {
            return unsupported(&**file, "vhdx images with a parent are not supported; convert it: qemu-img convert");
        }
        opened => opened.map_err(wrong)?,
    };
    Ok((disk.virtual_disk_size(), Box::new(disk)))
}

fn open_vmdk(file: &Arc<dyn Storage>, path: &Path) -> Result<(u64, Box<dyn Disk>)> {
    let wrong = |e: vmdk::VmdkError| damaged(&**file, e.to_string());
    let mut head = [0; 512];
    file.read(0, &mut head)?;
    if head.starts_with(b"#") {
        // A list of other files, which the crate opens itself.
        let disk = vmdk::VmdkFileReader::open_path(path).map_err(wrong)?;
        return checked_vmdk(file, disk);
    }
    checked_vmdk(file, vmdk::VmdkReader::open(Cursor { file: file.clone(), at: 0 }).map_err(wrong)?)
}

fn checked_vmdk<R: Disk + 'static>(file: &Arc<dyn Storage>, disk: vmdk::VmdkReader<R>) -> Result<(u64, Box<dyn Disk>)> {
    if disk.parent_cid() != NO_PARENT {
        return unsupported(&**file, "vmdk images with a parent are not supported; convert it: qemu-img convert");
    }
    let (size, grain) = (disk.virtual_disk_size(), disk.info().grain_size_bytes);
    // Tables are kept as they are read, 4 bytes for a grain.
    if grain > 0 && size / grain > MOST_TABLES / 4 {
        return unsupported(&**file, "its tables would take more than 256 MiB; convert it: qemu-img convert");
    }
    Ok((size, Box::new(disk)))
}

impl BlockBackend for Foreign {
    fn len(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        true
    }

    fn readv(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<()> {
        check_range(offset, total_mut(bufs), self.size)?;
        let mut disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        guarded(&*self.file, || {
            let moved =
                disk.seek(SeekFrom::Start(offset)).and_then(|_| bufs.iter_mut().try_for_each(|b| disk.read_exact(b)));
            moved.map_err(|e| match e.downcast::<BlockError>() {
                Ok(host) => host,
                Err(e) => damaged(&*self.file, e.to_string()),
            })
        })
    }

    fn writev(&self, _offset: u64, _bufs: &[IoSlice<'_>]) -> Result<()> {
        self.refuse()
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        self.refuse()
    }

    fn write_zeroes(&self, _offset: u64, _len: u64, _unmap: bool) -> Result<()> {
        self.refuse()
    }

    fn map(&self, offset: u64, len: u64) -> Result<Extent> {
        check_range(offset, len, self.size)?;
        let (content, compressed, sparse) = (Content::Data, false, false);
        Ok(Extent { offset, len: len.max(1), content, depth: 0, host_offset: None, compressed, sparse })
    }

    fn resize(&self, _len: u64, _preallocation: Preallocation) -> Result<()> {
        self.refuse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::scratch::{Dice, Scratch, have, run};
    use crate::block::{Format, Image, OpenOptions, create_raw, open};

    fn read(path: &Path) -> Result<Image> {
        open(path, &OpenOptions { read_only: true, ..OpenOptions::default() })
    }

    /// A raw disk of 40 MiB with data here and there, and what each format makes of it.
    fn images(dir: &Scratch) -> Vec<std::path::PathBuf> {
        let raw = dir.path("disk.raw");
        create_raw(&raw, 40 << 20, Preallocation::Off).unwrap();
        let disk = open(&raw, &OpenOptions { format: Some(Format::Raw), ..OpenOptions::default() }).unwrap().backend();
        let mut dice = Dice::new(5);
        for _ in 0..40 {
            let (at, len) = (dice.below((40 << 20) - 300_000), 1 + dice.below(300_000));
            disk.write(at, &vec![dice.below(256) as u8; len as usize]).unwrap();
        }
        let kinds = [
            ("vmdk", "subformat=monolithicSparse"),
            ("vmdk", "subformat=streamOptimized"),
            ("vmdk", "subformat=monolithicFlat"),
            ("vmdk", "subformat=twoGbMaxExtentSparse"),
            ("vmdk", "subformat=twoGbMaxExtentFlat"),
            ("vhdx", "subformat=dynamic,block_size=1M"),
            ("vhdx", "subformat=fixed"),
        ];
        let convert = |(number, (format, options)): (usize, (&str, &str))| {
            let path = dir.path(format!("disk{number}.{format}"));
            let (from, to) = (raw.to_str().unwrap(), path.to_str().unwrap());
            run("qemu-img", &["convert", "-f", "raw", "-O", format, "-o", options, from, to]);
            path
        };
        kinds.into_iter().enumerate().map(convert).collect()
    }

    #[test]
    fn images_of_qemu_read_as_they_were_made() {
        if !have("qemu-img") {
            return;
        }
        let dir = Scratch::new();
        let mut wanted = vec![0; 40 << 20];
        for path in images(&dir) {
            let raw = std::fs::read(dir.path("disk.raw")).unwrap();
            let image = read(&path).unwrap();
            let disk = image.backend();
            assert!(matches!(&image, Image::Foreign(_)) && disk.read_only(), "{path:?}");
            assert_eq!(disk.len(), 40 << 20, "{path:?}");
            disk.read(0, &mut wanted).unwrap();
            assert!(wanted == raw, "{path:?}");
            let mut dice = Dice::new(6);
            for _ in 0..200 {
                let at = dice.below((40 << 20) - 100_000);
                let (mut one, mut two) = (vec![1; dice.below(90_000) as usize], vec![1; 10_000]);
                disk.readv(at, &mut [IoSliceMut::new(&mut one), IoSliceMut::new(&mut two)]).unwrap();
                let there = &raw[at as usize..at as usize + one.len() + two.len()];
                assert!([one, two].concat() == there, "{path:?} at {at}");
            }
            assert!(disk.write(0, &[1]).is_err() && disk.read((40 << 20) - 1, &mut [0; 2]).is_err());
            let error = open(&path, &OpenOptions::default()).err().expect("no writing").to_string();
            assert!(error.contains("can only be read") && error.contains("convert"), "{error}");
        }
    }

    #[test]
    fn children_and_open_logs_are_refused() {
        if !have("qemu-img") {
            return;
        }
        let dir = Scratch::new();
        let path = |name: &str| dir.path(name).to_str().unwrap().to_string();
        run("qemu-img", &["create", "-q", "-f", "vmdk", &path("base.vmdk"), "10M"]);
        run("qemu-img", &["create", "-q", "-f", "vmdk", "-b", &path("base.vmdk"), "-F", "vmdk", &path("top.vmdk")]);
        assert!(read(&dir.path("top.vmdk")).err().unwrap().to_string().contains("with a parent"));
        run("qemu-img", &["create", "-q", "-f", "vhdx", &path("open.vhdx"), "10M"]);
        let mut bytes = std::fs::read(dir.path("open.vhdx")).unwrap();
        for at in [0x10000, 0x20000] {
            bytes[at + 48] = 7;
            bytes[at + 4..at + 8].fill(0);
            let sum = vhdx::header::crc32c(&bytes[at..at + 4096]);
            bytes[at + 4..at + 8].copy_from_slice(&sum.to_le_bytes());
        }
        std::fs::write(dir.path("open.vhdx"), bytes).unwrap();
        assert!(read(&dir.path("open.vhdx")).err().unwrap().to_string().contains("not closed"));
    }

    /// Files that lie give errors or bytes, and no more.
    #[test]
    fn damage_is_an_error() {
        if !have("qemu-img") {
            return;
        }
        let dir = Scratch::new();
        let images: Vec<Vec<u8>> = images(&dir).iter().map(|path| std::fs::read(path).unwrap()).collect();
        let mut dice = Dice::new(8);
        for round in 0..200 {
            let mut bytes = images[round % images.len()].clone();
            for _ in 0..1 + dice.below(4) {
                // Most of what counts stands at the beginning.
                let most = (bytes.len() as u64).min([600, 70_000, 1 << 20, 4 << 20][dice.below(4) as usize]);
                let at = dice.below(most - 8) as usize;
                match dice.below(3) {
                    0 => bytes[at] ^= 1 << dice.below(8),
                    1 => bytes[at..at + 8].fill(0xff),
                    _ => bytes[at..at + 4].copy_from_slice(&(dice.below(1 << 32) as u32).to_le_bytes()),
                }
            }
            if dice.below(8) == 0 {
                bytes.truncate(dice.below(bytes.len() as u64) as usize);
            }
            let path = dir.path("lies");
            std::fs::write(&path, bytes).unwrap();
            let Ok(image) = read(&path) else { continue };
            let disk = image.backend();
            let mut buf = vec![0; 100_000];
            for _ in 0..50 {
                let len = disk.len().min(buf.len() as u64);
                let _ = disk.read(dice.below(disk.len().saturating_sub(len).max(1)), &mut buf[..len as usize]);
            }
        }
    }
}
