//! Reading, and telling what is where.

use super::layout::Mapping;
use super::{Qcow2, compress};
use crate::block::vectors::{fill_zero, scatter};
use crate::block::{Content, Extent, Result, slice_mut, total_mut};
use std::io::IoSliceMut;

impl Qcow2 {
    /// Reads, with the caller holding a pass: no cluster that is found here can be given away.
    pub(super) fn read_running(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<()> {
        let len = total_mut(bufs);
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let run = self.run(at, len - done)?;
            let within = at & (self.layout.cluster() - 1);
            let step = run.len;
            match run.mapping {
                Mapping::Zero { .. } => fill_zero(&mut slice_mut(bufs, done, step)),
                Mapping::Unallocated { .. } => self.read_below(at, &mut slice_mut(bufs, done, step))?,
                Mapping::Data { host, .. } => self.data.readv(host + within, &mut slice_mut(bufs, done, step))?,
                Mapping::Compressed { host, len } => {
                    let cluster = self.unpacked(host, len)?;
                    let part = cluster.get(within as usize..(within + step) as usize).unwrap_or_default();
                    scatter(&mut slice_mut(bufs, done, step), part);
                }
            }
            done += step;
        }
        Ok(())
    }

    /// Reads from the backing file, zeroes where it ends.
    fn read_below(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<()> {
        let Some(backing) = self.backing() else {
            fill_zero(bufs);
            return Ok(());
        };
        let (below, len) = (backing.backend(), total_mut(bufs));
        let there = below.len().saturating_sub(offset).min(len);
        if there > 0 {
            below.readv(offset, &mut slice_mut(bufs, 0, there))?;
        }
        fill_zero(&mut slice_mut(bufs, there, len - there));
        Ok(())
    }

    /// The content of a compressed cluster.
    fn unpacked(&self, host: u64, len: u64) -> Result<Vec<u8>> {
        let mut packed = vec![0; len as usize];
        self.file.read(host, &mut packed)?;
        let size = self.layout.cluster() as usize;
        compress::unpack(&packed, size, self.compression).map_err(|what| {
            super::header::corrupt(self.file.name(), format!("compressed cluster at {host:#x}: {what}"))
        })
    }

    /// [`BlockBackend::map`] with the range checked. Clusters that have a place but lie in a hole of
    /// the host file are told of only if many are so, as QEMU does: asking the host takes time.
    pub(super) fn map_files(&self, offset: u64, len: u64) -> Result<Extent> {
        let mut extent = self.map_tables(offset, len)?;
        let Some(host) = extent.host_offset.filter(|_| extent.depth == 0 && extent.content == Content::Data) else {
            return Ok(extent);
        };
        if !self.is_sparse()? {
            return Ok(extent);
        }
        let (data, end) = self.data.data_at(host)?;
        extent.sparse = !data;
        if host < self.data.len() {
            extent.len = extent.len.min(end.saturating_sub(host)).max(1);
        }
        Ok(extent)
    }

    /// Whether clearly more clusters are counted as used than the host has space taken for. Found
    /// out once (QEMU: qcow2_detect_metadata_preallocation).
    fn is_sparse(&self) -> Result<bool> {
        if let Some(&known) = self.sparse.get() {
            return Ok(known);
        }
        let stored = self.file.allocated()? / self.layout.cluster();
        let enough = (stored * 10 / 9).max(stored + 2);
        let (mut used, mut meta) = (0, self.meta());
        for cluster in 0..self.file.len() / self.layout.cluster() {
            used += u64::from(meta.refcount(cluster)? > 0);
            if used >= enough {
                break;
            }
        }
        Ok(*self.sparse.get_or_init(|| used >= enough))
    }

    /// What the tables say of a range.
    pub(super) fn map_tables(&self, offset: u64, len: u64) -> Result<Extent> {
        let run = self.run(offset, len)?;
        let within = offset & (self.layout.cluster() - 1);
        let (content, len) = (Content::Data, run.len);
        let mut extent = Extent { offset, len, content, depth: 0, host_offset: None, compressed: false, sparse: false };
        match run.mapping {
            Mapping::Data { host, .. } => extent.host_offset = Some(host + within),
            Mapping::Zero { host, .. } => {
                extent.content = Content::Zero;
                extent.host_offset = host.map(|h| h + within);
            }
            Mapping::Compressed { .. } => extent.compressed = true,
            Mapping::Unallocated { host, .. } => {
                let below = self.backing().map(|b| b.backend());
                match below.filter(|b| offset < b.len()) {
                    Some(below) => {
                        extent = below.map(offset, run.len.min(below.len() - offset))?;
                        extent.depth += 1;
                    }
                    None => {
                        extent.content = Content::Hole;
                        extent.host_offset = host.map(|h| h + within);
                    }
                }
            }
        }
        Ok(extent)
    }

    /// Whether `offset..offset + len` surely reads as zeroes without looking at data.
    pub(super) fn known_zero(&self, offset: u64, len: u64) -> Result<bool> {
        let mut at = offset;
        while at < offset + len {
            let extent = self.map_tables(at, offset + len - at)?;
            if extent.content == Content::Data {
                return Ok(false);
            }
            at += extent.len;
        }
        Ok(true)
    }
}
