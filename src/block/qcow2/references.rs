//! How often each host cluster is referred to, as tables are read.

use std::cell::Cell;
use std::collections::HashMap;

/// Counts kept together.
const CHUNK: u64 = 4096;

type Chunk = [u32; CHUNK as usize];

/// References found, by host cluster. Only what is referred to takes memory: 4 bytes for each cluster of
/// every 4096 of which one is.
#[derive(Default)]
pub(super) struct References {
    chunks: Vec<Box<Chunk>>,
    /// Where the chunk of such a number stands.
    places: HashMap<u64, usize>,
    /// The chunk that was asked for last: tables mostly name clusters in order.
    last: Cell<Option<(u64, usize)>>,
}

impl References {
    fn place(&self, key: u64) -> Option<usize> {
        if let Some((last, place)) = self.last.get()
            && last == key
        {
            return Some(place);
        }
        let place = self.places.get(&key).copied();
        if let Some(place) = place {
            self.last.set(Some((key, place)));
        }
        place
    }

    fn chunk(&self, key: u64) -> Option<&Chunk> {
        self.place(key).and_then(|place| self.chunks.get(place)).map(|chunk| &**chunk)
    }

    /// How often a cluster is referred to.
    pub(super) fn get(&self, cluster: u64) -> u64 {
        let chunk = self.chunk(cluster / CHUNK);
        chunk.and_then(|c| c.get((cluster % CHUNK) as usize)).map_or(0, |&n| u64::from(n))
    }

    /// Counts one more.
    pub(super) fn add(&mut self, cluster: u64) {
        self.add_all(cluster, 1);
    }

    /// Counts so many more.
    pub(super) fn add_all(&mut self, cluster: u64, more: u32) {
        let key = cluster / CHUNK;
        let place = self.place(key).unwrap_or_else(|| {
            self.chunks.push(Box::new([0; CHUNK as usize]));
            self.places.insert(key, self.chunks.len() - 1);
            self.chunks.len() - 1
        });
        let count = self.chunks.get_mut(place).and_then(|c| c.get_mut((cluster % CHUNK) as usize));
        if let Some(count) = count {
            *count = count.saturating_add(more);
        }
    }

    /// The counts of `first` and at most `most` clusters in all that are kept together: `None` if all are 0. And
    /// how many clusters that tells of.
    pub(super) fn stretch(&self, first: u64, most: u64) -> (Option<&[u32]>, u64) {
        let start = first % CHUNK;
        let there = most.min(CHUNK - start);
        (self.chunk(first / CHUNK).and_then(|c| c.get(start as usize..(start + there) as usize)), there)
    }

    fn keys(&self) -> Vec<u64> {
        let mut keys: Vec<u64> = self.places.keys().copied().collect();
        keys.sort_unstable();
        keys
    }

    /// The numbers of those stretches of `size` clusters in which some cluster is referred to, in order.
    pub(super) fn used(&self, size: u64) -> Vec<u64> {
        let mut used = Vec::new();
        for key in self.keys() {
            let counts = self.chunk(key).into_iter().flatten();
            for cluster in (key * CHUNK..).zip(counts).filter(|(_, count)| **count > 0).map(|(cluster, _)| cluster) {
                if used.last() != Some(&(cluster / size)) {
                    used.push(cluster / size);
                }
            }
        }
        used
    }

    /// Behind the last cluster that is referred to.
    pub(super) fn end(&self) -> u64 {
        let last = |key: u64| {
            let found = self.chunk(key)?.iter().rposition(|&count| count > 0)?;
            Some(key * CHUNK + found as u64 + 1)
        };
        self.keys().into_iter().next_back().and_then(last).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_counted_far_apart() {
        let mut references = References::default();
        assert_eq!((references.end(), references.used(7).len(), references.get(1 << 50)), (0, 0, 0));
        for cluster in [0, 4095, 4096, 4096, 1 << 44, 5] {
            references.add(cluster);
        }
        let all = [0, 5, 4095, 4096, 1 << 44, 6].map(|cluster| references.get(cluster));
        assert_eq!(all, [1, 1, 1, 2, 1, 0]);
        assert_eq!(references.end(), (1 << 44) + 1);
        assert_eq!(references.used(256), [0, 15, 16, 1 << 36]);
        assert_eq!(references.used(1 << 20), [0, 1 << 24]);
        let (counts, there) = references.stretch(4090, 100);
        assert_eq!((counts, there), (Some(&[0, 0, 0, 0, 0, 1][..]), 6));
        let (counts, there) = references.stretch(4096, 3);
        assert_eq!((counts, there), (Some(&[2, 0, 0][..]), 3));
        assert_eq!(references.stretch(8192, 10_000), (None, 4096));
    }
}
