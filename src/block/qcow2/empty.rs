//! Giving up all content: what `commit` leaves of an image whose data went to the file below.

use super::Qcow2;
use super::meta::Meta;
use crate::block::{BlockError, Result};

impl Qcow2 {
    /// Forgets all content, so that everything is read from the backing file, and gives the space back. Until the
    /// end of it a crash leaves an image that reads in each place as before or as the backing file.
    pub fn make_empty(&self) -> Result<()> {
        self.changing()?;
        let _alone = self.alone();
        let mut meta = self.meta();
        if !meta.snapshots.is_empty() {
            let what = format!("{}: has snapshots, which hold on to its content; delete them first", self.file.name());
            return Err(BlockError::Invalid { what });
        }
        meta.cut(0)?;
        if self.layout.data_file {
            self.data.punch(0, self.data.len())?;
        }
        self.file.flush()?;
        let end = meta.used_end()?;
        if end < self.file.len() {
            self.file.set_len(end)?;
        }
        self.file.flush()
    }
}

impl Meta {
    /// Where the last host cluster ends that is in use.
    fn used_end(&mut self) -> Result<u64> {
        let (bits, per_block) = (self.layout.cluster_bits, self.layout.block_entries());
        for index in (0..self.reftable.entries.len() as u64).rev() {
            if self.reftable.get(index as usize) == 0 {
                continue;
            }
            for cluster in (index * per_block..(index + 1) * per_block).rev() {
                if self.refcount(cluster)? > 0 {
                    return Ok((cluster + 1) << bits);
                }
            }
        }
        self.corrupt("no cluster is in use, not even the header's".to_string())
    }
}

#[cfg(test)]
mod tests {
    use crate::block::qcow2::{CreateOptions, Repair, create};
    use crate::block::scratch::{Scratch, have, run};
    use crate::block::{BlockBackend, Format, OpenOptions, open};
    use std::time::UNIX_EPOCH;

    #[test]
    fn an_emptied_image_shows_what_lies_below() {
        let dir = Scratch::new();
        std::fs::write(dir.path("base.raw"), vec![7; 3 << 20]).unwrap();
        let path = dir.path("top.qcow2");
        let backing = Some(("base.raw".to_string(), Some(Format::Raw)));
        create(&path, &CreateOptions { size: 4 << 20, backing, ..CreateOptions::default() }).unwrap();
        let fresh = std::fs::metadata(&path).unwrap().len();
        let image = open(&path, &OpenOptions::default()).unwrap();
        let image = image.qcow2().unwrap();
        image.write(100, &vec![1; 2 << 20]).unwrap();
        image.write_compressed(3 << 20, &[2; 65536]).unwrap();
        image.create_snapshot("held", UNIX_EPOCH).unwrap();
        assert!(image.make_empty().unwrap_err().to_string().contains("delete them first"));
        image.delete_snapshot("held").unwrap();
        image.make_empty().unwrap();
        let mut disk = vec![1; 4 << 20];
        image.read(0, &mut disk).unwrap();
        assert!(disk[..3 << 20].iter().all(|&b| b == 7) && disk[3 << 20..].iter().all(|&b| b == 0));
        let report = image.check(Repair::None).unwrap();
        assert_eq!((report.corruptions, report.leaks), (0, 0), "{:?}", report.messages);
        assert!(std::fs::metadata(&path).unwrap().len() <= fresh + 65536);
        image.write(5, &[9; 9]).unwrap();
        image.close().unwrap();
        if have("qemu-img") {
            run("qemu-img", &["check", "-q", path.to_str().unwrap()]);
        }
    }
}
