//! QEMU's copy-on-write format, versions 2 and 3 (QEMU: docs/interop/qcow2.rst).

mod options;

pub use options::{CheckReport, Compression, CreateOptions, Info, Repair, SnapshotInfo};
