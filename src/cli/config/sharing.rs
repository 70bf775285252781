//! Folders of the host's that the guest mounts, as the command line asks for them.

use super::peripherals::Place;
pub use crate::share::Model;
use std::path::PathBuf;

/// A shared folder and its device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareSpec {
    /// The option that asked for it, for messages.
    pub what: String,
    /// `mount_tag=`, 1 to 31 bytes.
    pub tag: String,
    /// The folder.
    pub path: PathBuf,
    /// `security_model=`.
    pub model: Model,
    /// `readonly=`.
    pub read_only: bool,
    /// `fmode=`: permissions on the host of files that the guest makes, where owners are noted aside.
    pub file_mode: u32,
    /// `dmode=`: the same for folders.
    pub folder_mode: u32,
    /// `writeout=immediate`.
    pub write_through: bool,
    /// `addr=`; the next that is free if none.
    pub place: Option<Place>,
}
