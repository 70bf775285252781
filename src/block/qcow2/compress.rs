//! Packed clusters (qcow2.rst, "Compressed Clusters").

use super::layout::Entry;
use super::options::Compression;
use super::{InFlight, Qcow2};
use crate::block::{BlockBackend, BlockError, Result, check_range};
use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};
use std::io::Read;

/// Readers of the format unpack with a window of this many bits; a larger one breaks them.
const WINDOW_BITS: u8 = 12;
/// Frames whose window is larger (8 MiB) are refused: no cluster needs one.
const ZSTD_WINDOW_LOG: u32 = 23;

/// Unpacks a cluster of `size` bytes; behind the packed data anything may follow.
pub(super) fn unpack(packed: &[u8], size: usize, kind: Compression) -> std::result::Result<Vec<u8>, String> {
    let mut cluster = vec![0; size];
    match kind {
        Compression::Zlib => {
            let mut inflate = Decompress::new(false);
            loop {
                let (from, to) = (inflate.total_in() as usize, inflate.total_out() as usize);
                let (input, output) = (packed.get(from..).unwrap_or_default(), &mut cluster[to..]);
                let status = inflate.decompress(input, output, FlushDecompress::Finish).map_err(|e| e.to_string())?;
                let (read, made) = (inflate.total_in() as usize, inflate.total_out() as usize);
                if made == size {
                    return Ok(cluster);
                }
                if status == Status::StreamEnd || (read, made) == (from, to) {
                    return Err(format!("only {made} bytes come out"));
                }
            }
        }
        Compression::Zstd => {
            let decoder = zstd::stream::read::Decoder::with_buffer(packed).map_err(|e| e.to_string())?;
            let mut decoder = decoder.single_frame();
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(|e| e.to_string())?;
            decoder.read_exact(&mut cluster).map_err(|e| e.to_string())?;
            Ok(cluster)
        }
    }
}

/// Packs a cluster; none if it does not get smaller.
pub(super) fn pack(cluster: &[u8], kind: Compression) -> Option<Vec<u8>> {
    let mut packed = match kind {
        Compression::Zlib => {
            let mut deflate = Compress::new_with_window_bits(flate2::Compression::default(), false, WINDOW_BITS);
            let mut packed = vec![0; cluster.len()];
            let status = deflate.compress(cluster, &mut packed, FlushCompress::Finish).ok()?;
            packed.truncate(deflate.total_out() as usize);
            (status == Status::StreamEnd).then_some(packed)?
        }
        Compression::Zstd => zstd::bulk::compress(cluster, 0).ok()?,
    };
    packed.shrink_to_fit();
    (packed.len() < cluster.len()).then_some(packed)
}

impl Qcow2 {
    /// Writes one whole cluster packed, or plainly if it does not get smaller. `data` is shorter
    /// than a cluster only at the end of the disk.
    pub fn write_compressed(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.changing()?;
        let (size, len) = (self.layout.cluster(), data.len() as u64);
        check_range(offset, len, self.len())?;
        if self.layout.within(offset) != 0 || len > size || (len < size && offset + len != self.len()) || len == 0 {
            let what = format!("compressed writes are whole clusters of {size} bytes, not {len} bytes at {offset}");
            return Err(BlockError::Invalid { what });
        }
        self.no_data_file("hold compressed clusters; leave -c out")?;
        self.note(offset, len);
        let mut cluster = data.to_vec();
        cluster.resize(size as usize, 0);
        let Some(packed) = pack(&cluster, self.compression) else {
            return self.write(offset, data);
        };
        let _pass = self.running.enter();
        let flight = InFlight { start: offset, end: offset + size };
        let host = {
            let mut meta = self.await_flight(flight);
            meta.own_l2(offset)?;
            let host = meta.allocate_packed(packed.len() as u64)?;
            meta.in_flight.push(flight);
            host
        };
        let written = self.file.write(host, &packed);
        let mut meta = self.meta();
        let linked = written.and_then(|()| {
            let entry = self.layout.compressed_entry(host, packed.len() as u64);
            let entry = entry.ok_or_else(|| BlockError::Invalid {
                what: format!("{}: the file is too large for compressed clusters", self.file.name()),
            })?;
            meta.replace_entry(offset, Entry::of(entry))
        });
        if linked.is_err() {
            let first = self.layout.floor(host);
            let clusters = self.layout.clusters(host + packed.len() as u64 - first);
            meta.undo(first, clusters)?;
        }
        self.land(meta, flight);
        linked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_clusters_come_back() {
        let text: Vec<u8> = (0..65536u32).map(|i| (i / 300) as u8).collect();
        for kind in [Compression::Zlib, Compression::Zstd] {
            let mut packed = pack(&text, kind).expect("smaller");
            packed.extend_from_slice(&[0xaa; 400]);
            assert_eq!(unpack(&packed, text.len(), kind).unwrap(), text);
            assert!(unpack(&packed[..20], text.len(), kind).is_err());
            assert!(unpack(&[0xff; 600], text.len(), kind).is_err());
        }
        let mut state = 1u64;
        let noise = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            (state >> 33) as u8
        });
        let noise: Vec<u8> = noise.take(4096).collect();
        assert_eq!(pack(&noise, Compression::Zlib), None);
    }
}
