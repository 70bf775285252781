//! Accesses that cross a page where a region checks several at once ([`crate::mmu::span`]). A check that fails for that
//! alone leaves an instruction to the interpreter; where this happens so often that it costs more than the sharing saves,
//! the region is made again with a check for each access. (Baseline code has both in itself.)

use crate::cpu::Cpu;
use std::time::{Duration, Instant};

/// Places that are counted at a time.
const PLACES: usize = 256;
/// Crossings of a place after which the clock is looked at.
const OFTEN: u32 = 64;
/// So many in less than this are too many: a twentieth of the time would be lost.
const SOON: Duration = Duration::from_micros(64 * 4);

#[derive(Clone, Copy)]
struct Place {
    rip: u64,
    count: u32,
    since: Option<Instant>,
}

/// Where accesses crossed a page of late.
pub struct Crossings {
    /// The miss that generated code just had was for memory that is in the TLB.
    pub just_now: bool,
    places: Box<[Place; PLACES]>,
}

impl Default for Crossings {
    fn default() -> Self {
        Self { just_now: false, places: Box::new([Place { rip: 0, count: 0, since: None }; PLACES]) }
    }
}

impl Crossings {
    /// Counts one at `rip`: whether there were too many.
    fn count(&mut self, rip: u64) -> bool {
        let place = &mut self.places[(rip ^ rip >> 8) as usize % PLACES];
        if place.rip != rip || place.since.is_none() {
            *place = Place { rip, count: 0, since: Some(Instant::now()) };
        }
        place.count += 1;
        if place.count < OFTEN {
            return false;
        }
        place.since.take().is_some_and(|since| since.elapsed() < SOON)
    }
}

impl Cpu {
    /// The instruction at RIP was left to the interpreter because what it or its neighbours access crosses a page.
    #[cold]
    pub(super) fn note_crossing(&mut self) {
        if !self.crossings.count(self.state.rip) {
            return;
        }
        let linear = self.state.linear_rip();
        let Ok(gpa) = self.fetch_address(linear) else { return };
        let (mut regions, mut heads) = (self.blocks.narrow(gpa), Vec::new());
        regions.retain(|region| {
            let head = self.tier.slots(*region).first();
            head.is_some_and(|head| self.blocks.baseline(*head) != Some(*region))
        });
        for region in &regions {
            heads.extend(self.tier.slots(*region).first());
        }
        self.tier.stats.narrowed += heads.len() as u64;
        self.drop_regions(regions);
        for head in heads {
            self.propose_again(head);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_crosses_again_and_again_is_told_once_each_time() {
        let mut crossings = Crossings::default();
        let told = (0..OFTEN).filter(|_| crossings.count(0x1000)).count();
        assert!(told <= 1, "once, if the machine was not held up");
        // Another place with the same entry begins anew.
        (1..OFTEN).for_each(|_| assert!(!crossings.count(0x2000)));
        (1..OFTEN).for_each(|_| assert!(!crossings.count(0x20)));
    }
}
