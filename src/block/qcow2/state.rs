//! The state of a machine, kept with a snapshot. It stands behind the disk's end, from the first
//! L1 entry on that the disk does not need (qcow2.rst, "Snapshots").

use super::Qcow2;
use super::header::MAX_L1_BYTES;
use crate::block::{BlockBackend, BlockError, Result};
use std::io::{IoSlice, IoSliceMut};

/// What a snapshot with a machine's state says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MachineState {
    /// Bytes written by [`Qcow2::write_state`].
    pub size: u64,
    /// Guest time in nanoseconds.
    pub clock_nsec: u64,
    /// Instructions executed if counted.
    pub icount: Option<u64>,
}

impl Qcow2 {
    /// Where the state begins, as if it were disk.
    pub(super) fn state_base(&self) -> u64 {
        self.len().div_ceil(self.layout.per_l1()) * self.layout.per_l1()
    }

    fn state_range(&self, offset: u64, len: u64) -> Result<(u64, u64)> {
        let end = self.state_base().checked_add(offset).and_then(|start| start.checked_add(len));
        let end = end.filter(|end| end.div_ceil(self.layout.per_l1()) * 8 <= MAX_L1_BYTES);
        let end = end.ok_or_else(|| BlockError::Invalid {
            what: format!("{}: a machine state of this size does not fit; use larger clusters", self.file.name()),
        })?;
        Ok((self.state_base() + offset, end))
    }

    /// Writes a part of the state that the next snapshot keeps. Parts follow each other from 0 on.
    pub fn write_state(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.changing()?;
        self.no_data_file("have snapshots; use an overlay")?;
        let (start, end) = self.state_range(offset, data.len() as u64)?;
        {
            let _alone = self.alone();
            let mut meta = self.meta();
            let entries = end.div_ceil(self.layout.per_l1()) as usize;
            if entries > meta.l1.entries.len() {
                let mut grown = meta.l1.entries.clone();
                grown.resize(entries, 0);
                let size = meta.header.size;
                meta.switch_l1(grown, size)?;
            }
        }
        let _pass = self.running.enter();
        self.write_running(start, &[IoSlice::new(data)], data.len() as u64)
    }

    /// Reads a part of the state of the snapshot that was applied last; zeroes behind its end.
    pub fn read_state(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let (start, _) = self.state_range(offset, buf.len() as u64)?;
        let _pass = self.running.enter();
        self.read_running(start, &mut [IoSliceMut::new(buf)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::qcow2::{CreateOptions, Repair, create};
    use crate::block::scratch::{Scratch, have, run};
    use crate::block::{OpenOptions, Preallocation, open};
    use std::time::UNIX_EPOCH;

    #[test]
    fn states_stay_with_their_snapshots() {
        let dir = Scratch::new();
        let path = dir.path("disk.qcow2");
        create(&path, &CreateOptions { size: 1 << 20, cluster_size: 4096, ..CreateOptions::default() }).unwrap();
        let image = open(&path, &OpenOptions::default()).unwrap();
        let image = image.qcow2().unwrap();
        for (name, value) in [("one", 1u8), ("two", 2)] {
            for part in 0..50 {
                image.write_state(part * 100_000, &vec![value; 100_000]).unwrap();
            }
            let state = MachineState { size: 5_000_000, clock_nsec: 77, icount: None };
            image.create_snapshot_with(name, UNIX_EPOCH, state).unwrap();
        }
        let mut buf = [9; 100];
        image.read_state(4_999_950, &mut buf).unwrap();
        assert_eq!(buf, [0; 100], "the active image keeps none");
        image.apply_snapshot("one").unwrap();
        image.read_state(4_999_950, &mut buf).unwrap();
        assert_eq!(buf, [[1; 50], [0; 50]].concat()[..]);
        image.resize(40 << 20, Preallocation::Off).unwrap();
        let mut disk = vec![9; 40 << 20];
        image.read(0, &mut disk).unwrap();
        assert!(disk.iter().all(|&b| b == 0), "growing does not show the state");
        image.apply_snapshot("two").unwrap();
        image.read_state(0, &mut buf).unwrap();
        assert_eq!((buf, image.len()), ([2; 100], 1 << 20));
        assert_eq!(image.snapshots()[1].vm_state_size, 5_000_000);
        image.close().unwrap();
        let report = image.check(Repair::None).unwrap();
        assert_eq!((report.corruptions, report.leaks), (0, 0), "{:?}", report.messages);
        if have("qemu-img") {
            let text = path.to_str().unwrap();
            run("qemu-img", &["check", "-q", text]);
            assert!(run("qemu-img", &["info", text]).contains("4.77 MiB"));
        }
    }
}
