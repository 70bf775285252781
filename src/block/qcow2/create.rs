//! New images.

use super::Qcow2;
use super::header::{Header, LAZY_REFCOUNTS};
use super::layout::Layout;
use super::options::{Compression, CreateOptions};
use super::refcount::set_entry;
use crate::block::{BlockBackend, BlockError, HostFile, OpenOptions, Preallocation, Result, Storage};
use std::path::Path;
use std::sync::Arc;

/// Creates a qcow2 image file. The backing file is named in it as given and not opened.
pub fn create(path: &Path, options: &CreateOptions) -> Result<()> {
    check(options)?;
    create_in(Arc::new(HostFile::create(path)?), options)
}

fn check(options: &CreateOptions) -> Result<()> {
    let wrong = |what: String| Err(BlockError::Invalid { what });
    if !options.cluster_size.is_power_of_two() || !(512..=2 << 20).contains(&options.cluster_size) {
        return wrong(format!("cluster_size={}: possible are powers of two from 512 to 2M", options.cluster_size));
    }
    if !options.refcount_bits.is_power_of_two() || options.refcount_bits > 64 {
        return wrong(format!("refcount_bits={}: possible are powers of two up to 64", options.refcount_bits));
    }
    if options.version != 2 && options.version != 3 {
        return wrong(format!("qcow2 version {}: there are 2 (compat=0.10) and 3 (compat=1.1)", options.version));
    }
    if options.version == 2 && options.refcount_bits != 16 {
        return wrong(format!("refcount_bits={}: compat=0.10 has 16 only; use compat=1.1", options.refcount_bits));
    }
    if options.version == 2 && options.lazy_refcounts {
        return wrong("lazy_refcounts=on needs compat=1.1".to_string());
    }
    if options.version == 2 && options.compression != Compression::Zlib {
        return wrong("compression_type=zstd needs compat=1.1".to_string());
    }
    if options.backing.is_some() && options.preallocation != Preallocation::Off {
        return wrong("preallocation hides the backing file; use preallocation=off with it".to_string());
    }
    Ok(())
}

/// Creates a qcow2 image in an empty file of any kind.
pub fn create_in(file: Arc<dyn Storage>, options: &CreateOptions) -> Result<()> {
    check(options)?;
    let bits = options.cluster_size.trailing_zeros();
    let mut header = Header::new(options.version, bits, options.refcount_bits.trailing_zeros(), options.compression);
    if options.lazy_refcounts {
        header.compatible |= LAZY_REFCOUNTS;
    }
    if let Some((name, format)) = &options.backing {
        header.set_backing(Some((name, format.map(|f| f.name()))));
    }
    // Cluster 0: the header. 1: the refcount table. 2: the first refcount block.
    let layout = Layout::of(&header);
    (header.reftable_offset, header.reftable_clusters) = (layout.cluster(), 1);
    let bytes = header.to_bytes(file.name())?;
    let mut block = vec![0; layout.cluster() as usize];
    for index in 0..3 {
        set_entry(&mut block, layout.refcount_order, index, 1);
    }
    let mut table = vec![0; layout.cluster() as usize];
    table[..8].copy_from_slice(&(2 * layout.cluster()).to_be_bytes());
    file.write(2 * layout.cluster(), &block)?;
    file.write(layout.cluster(), &table)?;
    file.write(0, &bytes)?;
    let open = OpenOptions { backing: false, ..OpenOptions::default() };
    let image = Qcow2::open(file, Path::new(""), &open, 0)?;
    image.resize(options.size, options.preallocation)?;
    image.close()
}
