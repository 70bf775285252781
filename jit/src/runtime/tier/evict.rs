//! Making room: code goes in the order in which it was placed, a part of the code memory at a time, and what still runs comes
//! back. So the memory never holds less than most of what ran last.
//!
//! Code goes only while the processor is outside of all code, so that no return address and no way back from a helper leads
//! to it. What compilers still work on has no place yet, or one in a part with a number that tells whether it is still there.

use super::{Compiled, Tier};
use crate::cpu::Cpu;

/// Runs after which a block whose code was thrown away has code again. One in the interpreter tells those that run on from
/// those that run once more.
const RUNS_LEFT: u32 = 2;

impl Tier {
    /// The pieces of code in part number `part` of the code memory.
    fn pieces_in(&self, part: u64) -> Vec<u32> {
        let inside = |r: &Option<Compiled>| r.as_ref().is_some_and(|r| r.part == part);
        self.regions.iter().enumerate().filter(|(_, r)| inside(r)).map(|(n, _)| n as u32).collect()
    }
}

impl Cpu {
    /// If there may be no room for the next piece of code, throws the code away that was placed longest ago. No code may be
    /// running.
    pub(super) fn make_room(&mut self) {
        let Some(memory) = self.tier.memory.clone() else { return };
        let Some(part) = memory.lock().to_empty() else { return };
        let runs = self.tier.warm.unwrap_or(0).saturating_sub(RUNS_LEFT);
        let pieces = self.tier.pieces_in(part);
        for index in &pieces {
            for slot in self.tier.kill(*index) {
                self.blocks.region_evicted(slot, *index, runs);
            }
        }
        let bytes = memory.lock().empty(part);
        let stats = &mut self.tier.stats;
        stats.evictions += 1;
        stats.evicted += pieces.len() as u64;
        stats.evicted_bytes += bytes as u64;
        // The jump cache holds host addresses, under any number of guest addresses.
        self.code_gone();
    }
}

#[cfg(test)]
mod tests {
    use super::super::*;
    use crate::state::reg;
    use crate::system::testing::{Guest, place::CODE};
    use iced_x86::code_asm::*;

    type Baseline = Guest<1>;

    /// Where the second block is.
    const SECOND: u64 = CODE + 0x100;

    /// A block that leads to one on the same page.
    fn two_blocks() -> Baseline {
        let mut g = Baseline::long();
        g.code(|a| {
            a.inc(rax)?;
            a.jmp(SECOND)
        });
        g.code_at(SECOND, SECOND, |a| {
            a.inc(rbx)?;
            a.hlt()
        });
        g
    }

    /// Runs it three times: the ways out that were joined on the way.
    fn runs(g: &mut Baseline) -> u64 {
        let links = g.cpu.tier.stats.links;
        for n in 1..4 {
            g.cpu.set_gpr(reg::RAX, 0);
            g.cpu.set_gpr(reg::RBX, n);
            g.cpu.state.rip = CODE;
            g.run();
            assert_eq!((g.cpu.gpr(reg::RAX), g.cpu.gpr(reg::RBX)), (1, n + 1));
        }
        g.cpu.tier.stats.links - links
    }

    fn slot_at(g: &mut Baseline, rip: u64) -> u32 {
        g.cpu.state.rip = rip;
        g.cpu.find_block(false).expect("code")
    }

    /// The code of the block at `rip`.
    fn code_at(g: &mut Baseline, rip: u64) -> u32 {
        let slot = slot_at(g, rip);
        g.cpu.blocks.code(slot).expect("code of the block")
    }

    /// Fills the code memory until part `part` of it has been emptied.
    fn fill_until_gone(g: &mut Baseline, part: u64) {
        let slot = slot_at(g, CODE);
        let block = g.cpu.ir(slot).expect("its IR");
        let memory = g.cpu.tier.memory.clone().expect("code memory");
        let mut emitter = baseline::Emitter::default();
        while memory.lock().holds(part) {
            g.cpu.make_room();
            assert!(memory.lock().place_block(emitter.compile(&block, None)).is_some());
        }
    }

    #[test]
    fn what_led_to_code_that_goes_leads_to_its_successor() {
        let mut g = two_blocks();
        assert_eq!(runs(&mut g), 1);
        assert_eq!(runs(&mut g), 0, "joined");
        let (first, second) = (code_at(&mut g, CODE), code_at(&mut g, SECOND));
        assert_eq!(g.cpu.tier.regions[second as usize].as_ref().map(|r| r.incoming.len()), Some(1));
        // Only the second goes: as if it had been placed before the first, in another part.
        for slot in g.cpu.tier.kill(second) {
            g.cpu.blocks.region_evicted(slot, second, 0);
        }
        g.cpu.code_gone();
        assert_eq!(runs(&mut g), 1, "joined once more");
        assert_eq!(code_at(&mut g, CODE), first, "it stayed");
        for slot in g.cpu.tier.kill(first) {
            g.cpu.blocks.region_evicted(slot, first, 0);
        }
        g.cpu.code_gone();
        let second = code_at(&mut g, SECOND);
        assert_eq!(g.cpu.tier.regions[second as usize].as_ref().map(|r| r.incoming.len()), Some(0));
        assert_eq!(runs(&mut g), 1);
    }

    #[test]
    fn a_full_memory_loses_what_was_placed_first() {
        let mut g = two_blocks();
        runs(&mut g);
        fill_until_gone(&mut g, 0);
        let stats = g.cpu.tier.stats;
        assert_eq!((stats.evictions, stats.evicted, stats.dropped), (1, 2, 0), "the rest was never entered");
        let slot = slot_at(&mut g, CODE);
        assert_eq!(g.cpu.blocks.code(slot), None);
        runs(&mut g);
        assert_eq!(g.cpu.blocks.len(), 2, "the blocks stayed");
        assert!(g.cpu.blocks.code(slot).is_some());
    }

    #[test]
    fn baseline_code_and_the_region_over_it_go_one_by_one() {
        for baseline_first in [true, false] {
            let mut g = two_blocks();
            g.cpu.tier.set_first(First::EachInTurn);
            for _ in 0..4 {
                runs(&mut g);
            }
            let (above, slot) = (code_at(&mut g, CODE), slot_at(&mut g, CODE));
            let below = g.cpu.blocks.baseline(slot).expect("baseline code");
            assert_ne!(above, below);
            let goes = if baseline_first { below } else { above };
            let slots = g.cpu.tier.kill(goes);
            slots.iter().for_each(|slot| g.cpu.blocks.region_evicted(*slot, goes, 0));
            g.cpu.code_gone();
            let at = |n: u32| g.cpu.tier.regions[n as usize].as_ref();
            match baseline_first {
                true => assert!(at(below).is_none() && at(above).is_some_and(|r| r.over.is_none())),
                false => assert!(at(above).is_none() && at(below).is_some_and(|r| r.under.is_none())),
            }
            assert_eq!(g.cpu.blocks.code(slot), Some(if baseline_first { above } else { below }));
            for _ in 0..4 {
                runs(&mut g);
            }
        }
    }

    #[test]
    fn code_finished_after_its_part_was_emptied_is_not_entered() {
        for late in [true, false] {
            let mut g = two_blocks();
            g.cpu.tier.set_first(First::Interpreter);
            let slot = slot_at(&mut g, CODE);
            let (serial, block) = (g.cpu.blocks.serial(slot), g.cpu.ir(slot).expect("its IR"));
            let memory = g.cpu.tier.memory.clone().expect("code memory");
            let region = Region::on_a_page(vec![block], true, 0);
            let compiler = g.cpu.tier.sync.as_mut().expect("a compiler");
            let placed = compile_one(compiler, &region, &[CodePage::NOWHERE], &memory);
            assert_eq!(placed.as_ref().map(|p| p.part).ok(), Some(0));
            if late {
                fill_until_gone(&mut g, 0);
            }
            g.cpu.blocks.set_requested(slot, true);
            g.cpu.tier.pending.insert(
                77,
                Pending { slots: vec![(slot, serial)], bases: Box::default(), pages: Box::default(), if_known: false },
            );
            g.cpu.install(Done { id: 77, placed, reused: false });
            assert_eq!(g.cpu.blocks.code(slot).is_none(), late);
            assert_eq!(g.cpu.blocks.waits(slot, serial), late, "it may be asked for again");
            runs(&mut g);
        }
    }
}
