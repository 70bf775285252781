//! `cache=`: when writes count as done, and whether the host's page cache lies between.

use super::{BlockError, Result};

/// How a drive uses the host's cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheMode {
    /// The guest sees a disk with a write cache and flushes it itself. Without, every write is
    /// durable before it ends.
    pub writeback: bool,
    /// Past the host's page cache (`O_DIRECT`).
    pub direct: bool,
    /// Flushes reach the host's page cache only: a power cut may cost the image.
    pub no_flush: bool,
}

/// The names and what they set (QEMU: docs/system/qemu-block-drivers, "cache modes").
const MODES: [(&str, CacheMode); 5] = [
    ("writeback", CacheMode { writeback: true, direct: false, no_flush: false }),
    ("none", CacheMode { writeback: true, direct: true, no_flush: false }),
    ("writethrough", CacheMode { writeback: false, direct: false, no_flush: false }),
    ("directsync", CacheMode { writeback: false, direct: true, no_flush: false }),
    ("unsafe", CacheMode { writeback: true, direct: false, no_flush: true }),
];

impl CacheMode {
    /// Writes may stay in memory until a flush, and nothing is done on the way out.
    pub const UNSAFE: CacheMode = MODES[4].1;

    /// The mode with the name that `cache=` takes.
    pub fn from_name(name: &str) -> Result<CacheMode> {
        let found = MODES.iter().find(|(known, _)| *known == name);
        found.map(|(_, mode)| *mode).ok_or_else(|| BlockError::Invalid {
            what: format!("cache={name}: there are writeback, none, writethrough, directsync and unsafe"),
        })
    }

    /// The name if there is one: the single switches allow more than the names do.
    pub fn name(self) -> Option<&'static str> {
        MODES.iter().find(|(_, mode)| *mode == self).map(|(name, _)| *name)
    }
}

impl Default for CacheMode {
    fn default() -> Self {
        MODES[0].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        for (name, mode) in MODES {
            assert_eq!(CacheMode::from_name(name).unwrap(), mode);
            assert_eq!(mode.name(), Some(name));
        }
        assert_eq!(CacheMode::default().name(), Some("writeback"));
        assert_eq!(CacheMode { no_flush: true, ..CacheMode::from_name("none").unwrap() }.name(), None);
        assert!(CacheMode::from_name("fast").unwrap_err().to_string().contains("directsync"));
    }
}
