//! Translated blocks of one vCPU.

use crate::cpu::Cpu;

/// Lifted blocks by key.
pub struct BlockCache {}

impl BlockCache {
    /// An empty cache.
    pub fn new() -> Self {
        Self {}
    }
    /// Translations of addresses changed: what is keyed by linear address is stale.
    pub fn mappings_changed(&mut self) {}
}

impl Cpu {
    /// Drops translated code that overlaps `len` bytes at guest-physical `gpa`.
    pub fn invalidate_code(&mut self, _gpa: u64, _len: u64) {}
}
