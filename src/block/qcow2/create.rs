//! New images.

use super::Qcow2;
use super::data_file;
use super::header::{EXTENDED_L2, Header, LAZY_REFCOUNTS, LEAST_EXTENDED_BITS};
use super::layout::Layout;
use super::options::{Compression, CreateOptions};
use super::refcount::set_entry;
use crate::block::{BlockBackend, BlockError, HostFile, OpenOptions, Preallocation, Result, Storage};
use std::path::Path;
use std::sync::Arc;

/// Creates a qcow2 image file. The backing file is named in it as given and not opened.
pub fn create(path: &Path, options: &CreateOptions) -> Result<()> {
    check(options)?;
    data_file::create(path, options)?;
    create_at(Arc::new(HostFile::create(path)?), path, options)
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
    if options.version == 2 && (options.extended_l2 || options.data_file.is_some()) {
        return wrong("extended_l2=on and data_file need compat=1.1".to_string());
    }
    if options.extended_l2 && options.cluster_size < 1 << LEAST_EXTENDED_BITS {
        return wrong(format!("extended_l2=on: needs a cluster_size of 16k at least, not {}", options.cluster_size));
    }
    if options.data_file_raw && options.data_file.is_none() {
        return wrong("data_file_raw=on needs a data_file".to_string());
    }
    if options.data_file_raw && options.backing.is_some() {
        return wrong("data_file_raw=on: a raw data file has no backing file; leave one of them out".to_string());
    }
    if options.backing.is_some() && options.preallocation != Preallocation::Off {
        return wrong("preallocation hides the backing file; use preallocation=off with it".to_string());
    }
    Ok(())
}

/// Creates a qcow2 image in an empty file of any kind. A data file is looked for where relative
/// paths begin, and must be there.
pub fn create_in(file: Arc<dyn Storage>, options: &CreateOptions) -> Result<()> {
    create_at(file, Path::new(""), options)
}

fn create_at(file: Arc<dyn Storage>, path: &Path, options: &CreateOptions) -> Result<()> {
    check(options)?;
    let bits = options.cluster_size.trailing_zeros();
    let mut header = Header::new(options.version, bits, options.refcount_bits.trailing_zeros(), options.compression);
    if options.lazy_refcounts {
        header.compatible |= LAZY_REFCOUNTS;
    }
    if options.extended_l2 {
        header.incompatible |= EXTENDED_L2;
    }
    if let Some(name) = &options.data_file {
        header.set_data_file(name, options.data_file_raw);
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
    let image = Qcow2::open(file, path, &open, 0)?;
    // A raw data file may get content from elsewhere: every cluster is mapped to it.
    let preallocation = match options.preallocation {
        Preallocation::Off if options.data_file_raw => Preallocation::Metadata,
        other => other,
    };
    image.resize(options.size, preallocation)?;
    image.close()
}
