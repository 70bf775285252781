//! Requests that are one read or write of a host file, for the host to carry out on its own.

use super::running::Pass;
use super::{BlockError, HostFile, Result, uring};
use nix::errno::Errno;
use nix::fcntl::copy_file_range;
use std::sync::Arc;

/// Where the whole of a request lies. While this is there, the place stays what it is.
pub struct Transfer {
    pub(super) file: Arc<HostFile>,
    /// First byte in the file.
    pub(super) offset: u64,
    /// What lengths and addresses of the memory must be multiples of.
    pub(super) align: u64,
    pub(super) write: bool,
    /// Keep those out who would give the place to somebody else.
    pub(super) passes: Vec<Pass>,
}

impl Transfer {
    /// Whether the host can move these pieces (address and length) at once.
    pub(super) fn takes(&self, mut parts: impl Iterator<Item = (usize, usize)>) -> bool {
        let align = self.align as usize;
        parts.all(|(at, len)| at.is_multiple_of(align) && len.is_multiple_of(align))
    }

    /// Has the host copy `len` bytes to another place. False if it cannot: they may have been copied in part.
    pub fn copy_to(self, to: Transfer, len: u64) -> bool {
        let place = |t: &Transfer| i64::try_from(t.offset).ok();
        let (Some(mut source), Some(mut target)) = (place(&self), place(&to)) else { return false };
        let mut left = usize::try_from(len).unwrap_or(usize::MAX);
        while left > 0 {
            match copy_file_range(&*self.file, Some(&mut source), &*to.file, Some(&mut target), left) {
                Ok(0) => return false,
                Ok(n) => left = left.saturating_sub(n),
                Err(Errno::EINTR) => {}
                // What is wrong is told by whoever copies instead.
                Err(_) => return false,
            }
        }
        to.done(len);
        true
    }

    /// All `len` bytes were moved.
    pub(super) fn done(self, len: u64) {
        if self.write {
            self.file.grown(self.offset.saturating_add(len));
        }
    }
}

/// `aio=`: how requests reach the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Aio {
    /// What is best here: io_uring where the kernel has it, else threads.
    #[default]
    Best,
    /// A few threads, each with one request.
    Threads,
    /// The kernel's own way for files past the host's cache; threads where it has none.
    Native,
    /// io_uring, and threads for what is more than one read or write of a file.
    Uring,
}

impl Aio {
    /// The way with the name that `aio=` takes, on this host.
    pub fn from_name(name: &str) -> Result<Aio> {
        let wrong = |what: &str| Err(BlockError::Invalid { what: format!("aio={name}: {what}") });
        match name {
            "threads" => Ok(Aio::Threads),
            "native" => Ok(Aio::Native),
            "io_uring" if uring::available() => Ok(Aio::Uring),
            "io_uring" => wrong("this kernel has no io_uring or does not allow it; leave it out, or use threads"),
            _ => wrong("there are threads, native and io_uring"),
        }
    }
}
