//! Tests of whole images: by themselves, against QEMU's tools, and under power cuts.

mod basics;
mod crash;
mod differential;
mod faults;
mod hostile;
mod memory;
mod parallel;

use super::{CreateOptions, Qcow2, TableCaches};
use crate::block::{OpenOptions, Storage};
use std::path::Path;
use std::sync::Arc;

/// Opens an image in a storage of the tests.
fn open(file: Arc<dyn Storage>) -> crate::block::Result<Qcow2> {
    Qcow2::open(file, Path::new(""), &OpenOptions::default(), 0)
}

/// Opens an image with as little memory for tables as there can be, so that they leave it in the
/// midst of everything.
fn open_tight(file: Arc<dyn Storage>) -> crate::block::Result<Qcow2> {
    let tables = TableCaches { l2: Some(0), refcounts: Some(0), both: None };
    Qcow2::open(file, Path::new(""), &OpenOptions { tables, ..OpenOptions::default() }, 0)
}

/// Small clusters, so that short programs meet every kind of table growth.
fn small(size: u64, cluster_size: u64) -> CreateOptions {
    CreateOptions { size, cluster_size, ..CreateOptions::default() }
}
