//! What is packed inside of a bzImage: the kernel as an ELF file, with its relocations behind it
//! (Documentation/arch/x86/boot.rst of the Linux kernel, `payload_offset`).

use super::image::Image;
use super::zero_page::SetupHeader;
use sha2::{Digest, Sha256};
use std::io::{self, Read};

/// Most of what an XZ or LZMA reader may take for its dictionary, in KiB: kernels are packed with 32 MiB at most.
const DICTIONARY_MAX: u32 = 256 << 10;
/// Magic number of LZ4's legacy frames, and what a block of one holds at most.
const LZ4_LEGACY: [u8; 4] = [0x02, 0x21, 0x4C, 0x18];
const LZ4_BLOCK: usize = 8 << 20;

/// How a payload is packed, by its magic number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    Gzip,
    Lzma,
    Xz,
    Lz4,
    Zstd,
}

impl Packing {
    /// What the first bytes say. bzip2 and LZO, of old kernels, are left to the kernels themselves.
    fn of(payload: &[u8]) -> Option<Self> {
        match payload {
            [0x1F, 0x8B, ..] => Some(Self::Gzip),
            [0x5D, 0, 0, ..] => Some(Self::Lzma),
            [0xFD, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            [0x28, 0xB5, 0x2F, 0xFD, ..] => Some(Self::Zstd),
            _ => payload.starts_with(&LZ4_LEGACY).then_some(Self::Lz4),
        }
    }

    /// It takes as long as the boot of a small kernel: worth keeping the result.
    fn is_slow(self) -> bool {
        matches!(self, Self::Lzma | Self::Xz)
    }
}

/// A packed kernel.
pub struct Payload {
    packing: Packing,
    bytes: Vec<u8>,
    /// Bytes when unpacked, as the payload's last four say.
    size: u32,
}

impl Payload {
    /// The payload of a bzImage with a 64-bit entry point if it says where it has one, packed in a way that is known here.
    /// What is unpacked has `most` bytes at most.
    pub fn find(image: &Image, header: SetupHeader, most: u64) -> Option<Self> {
        let (offset, length) = header.payload();
        let start = header.setup_size() + offset;
        if length < 8 || image.size().ok()? < start + length {
            return None;
        }
        let mut bytes = vec![0; length as usize];
        image.read_at(start, &mut bytes).ok()?;
        let packing = Packing::of(&bytes)?;
        // gzip ends with the size by itself (RFC 1952 2.3.1), behind the others the kernel's build puts it.
        let size = u32::from_le_bytes(*bytes.last_chunk()?);
        if packing != Packing::Gzip {
            bytes.truncate(bytes.len() - 4);
        }
        (u64::from(size) <= most).then_some(Self { packing, bytes, size })
    }

    /// A name for the content.
    pub fn name(&self) -> String {
        Sha256::digest(&self.bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Unpacking takes long.
    pub fn is_slow(&self) -> bool {
        self.packing.is_slow()
    }

    /// Bytes when unpacked.
    pub fn size(&self) -> usize {
        self.size as usize
    }

    /// Unpacks it. What does not unpack to the size that it says is an error.
    pub fn unpack(&self) -> io::Result<Vec<u8>> {
        let bytes = &self.bytes[..];
        match self.packing {
            Packing::Gzip => exactly(self.size(), flate2::read::GzDecoder::new(bytes)),
            Packing::Lzma => exactly(self.size(), lzma_rust2::LzmaReader::new_mem_limit(bytes, DICTIONARY_MAX, None)?),
            Packing::Xz => exactly(self.size(), lzma_rust2::XzReader::new_mem_limit(bytes, false, DICTIONARY_MAX)),
            Packing::Zstd => exactly(self.size(), zstd::Decoder::with_buffer(bytes)?),
            Packing::Lz4 => unpack_lz4(self.size(), &bytes[LZ4_LEGACY.len()..]),
        }
    }
}

/// All that `from` gives, which must be `size` bytes.
pub fn exactly(size: usize, from: impl Read) -> io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(size);
    from.take(size as u64 + 1).read_to_end(&mut out)?;
    if out.len() == size { Ok(out) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// LZ4's legacy frame behind its magic number: blocks, each after its length.
fn unpack_lz4(size: usize, mut from: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = vec![0; size];
    let mut done = 0;
    while let Some((length, rest)) = from.split_first_chunk() {
        let (block, rest) =
            rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or(io::ErrorKind::InvalidData)?;
        let room = &mut out[done..];
        let room_len = room.len().min(LZ4_BLOCK);
        done += lz4_flex::block::decompress_into(block, &mut room[..room_len])
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        from = rest;
    }
    if done == size { Ok(out) } else { Err(io::ErrorKind::InvalidData.into()) }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::io::Write;

    /// A payload of XZ, as kernels have it: with the filter for x86's branches.
    pub fn xz(content: &[u8]) -> Payload {
        let mut options = lzma_rust2::XzOptions::with_preset(1);
        options.prepend_pre_filter(lzma_rust2::FilterType::BcjX86, 0);
        let mut writer = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
        writer.write_all(content).unwrap();
        Payload { packing: Packing::Xz, bytes: writer.finish().unwrap(), size: content.len() as u32 }
    }

    fn lzma(content: &[u8]) -> Payload {
        let options = lzma_rust2::LzmaOptions::with_preset(1);
        let mut writer = lzma_rust2::LzmaWriter::new_use_header(Vec::new(), &options, None).unwrap();
        writer.write_all(content).unwrap();
        Payload { packing: Packing::Lzma, bytes: writer.finish().unwrap(), size: content.len() as u32 }
    }

    fn gzip(content: &[u8]) -> Payload {
        let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        writer.write_all(content).unwrap();
        Payload { packing: Packing::Gzip, bytes: writer.finish().unwrap(), size: content.len() as u32 }
    }

    fn zstd(content: &[u8]) -> Payload {
        let bytes = zstd::encode_all(content, 1).unwrap();
        Payload { packing: Packing::Zstd, bytes, size: content.len() as u32 }
    }

    fn lz4(content: &[u8]) -> Payload {
        let mut bytes = LZ4_LEGACY.to_vec();
        for block in content.chunks(LZ4_BLOCK) {
            let packed = lz4_flex::block::compress(block);
            bytes.extend((packed.len() as u32).to_le_bytes());
            bytes.extend(packed);
        }
        Payload { packing: Packing::Lz4, bytes, size: content.len() as u32 }
    }

    #[test]
    fn each_packing_is_known_by_its_beginning_and_unpacked() {
        let content: Vec<u8> = (0..LZ4_BLOCK as u32 / 2).flat_map(|n| (n / 5).to_le_bytes()).collect();
        for payload in [gzip(&content), lzma(&content), xz(&content), lz4(&content), zstd(&content)] {
            assert_eq!(Packing::of(&payload.bytes), Some(payload.packing));
            assert!(payload.unpack().unwrap() == content, "{:?}", payload.packing);
        }
        for unknown in [&b"BZh9"[..], b"\x89LZO", b"\x7FELF", b""] {
            assert_eq!(Packing::of(unknown), None);
        }
    }

    #[test]
    fn what_is_damaged_or_of_another_size_is_an_error() {
        let content = [0x5A; 5000];
        for make in [gzip, lzma, xz, lz4, zstd] {
            let good = make(&content);
            for size in [0, 4999, 5001] {
                let Payload { packing, ref bytes, .. } = good;
                assert!(Payload { packing, bytes: bytes.clone(), size }.unpack().is_err(), "{packing:?} {size}");
            }
            for cut in 4..good.bytes.len() {
                let Payload { packing, ref bytes, size } = good;
                let cut = Payload { packing, bytes: bytes[..cut].to_vec(), size }.unpack();
                assert!(cut.is_err() || cut.is_ok_and(|bytes| bytes == content), "{packing:?}");
            }
        }
    }

    #[test]
    fn a_dictionary_that_no_kernel_has_is_refused() {
        let mut payload = lzma(&[7; 100]);
        // The dictionary's size stands behind the properties.
        payload.bytes[1..5].copy_from_slice(&0x8000_0000u32.to_le_bytes());
        assert!(payload.unpack().is_err());
    }
}
