//! A set of interrupt vectors: the shape of IRR, ISR and TMR.

use serde::{Deserialize, Serialize};
use std::fmt;

/// 256 bits, one a vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct VectorSet([u32; 8]);

impl VectorSet {
    pub(super) fn insert(&mut self, vector: u8) {
        self.0[usize::from(vector >> 5)] |= 1 << (vector & 31);
    }

    pub(super) fn remove(&mut self, vector: u8) {
        self.0[usize::from(vector >> 5)] &= !(1 << (vector & 31));
    }

    pub(super) fn contains(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 5)] >> (vector & 31) & 1 != 0
    }

    /// The vector of highest priority.
    pub(super) fn highest(&self) -> Option<u8> {
        let index = self.0.iter().rposition(|&word| word != 0)?;
        Some((index as u32 * 32 + 31 - self.0[index].leading_zeros()) as u8)
    }

    /// The 32 vectors from `32 * index`, as the registers show them.
    pub(super) fn word(&self, index: u32) -> u32 {
        self.0.get(index as usize).copied().unwrap_or(0)
    }
}

impl fmt::Display for VectorSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for vector in (0..=255).filter(|&v| self.contains(v)) {
            write!(f, "{separator}{vector:#04x}")?;
            separator = " ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn highest_and_membership() {
        let mut set = VectorSet::default();
        assert_eq!(set.highest(), None);
        set.insert(0x31);
        set.insert(0xEF);
        assert_eq!((set.highest(), set.contains(0x31), set.contains(0x30)), (Some(0xEF), true, false));
        assert_eq!((set.word(1), set.word(7), set.word(8)), (1 << 17, 1 << 15, 0));
        assert_eq!(set.to_string(), "0x31 0xef");
        set.remove(0xEF);
        assert_eq!(set.highest(), Some(0x31));
    }
}
