//! Which blocks baseline code goes on with: those that ran behind the one that gets it, and have none of their own. Most code
//! runs a few times only, and most of that the same way: it takes fewer ways in and out, and fewer pieces of code.

use crate::cpu::Cpu;
use crate::ir::Block;
use crate::mmu::ram::PAGE_SIZE;
use crate::runtime::cache::Key;
use std::sync::Arc;

/// Most blocks of a trace, and operations.
const BLOCKS: usize = 8;
const OPS: usize = 256;

impl Cpu {
    /// The slots of the blocks that baseline code of the one in `slot`, which is `head`, is made of; what they do as one block
    /// goes to `trace`, if there are several.
    pub(super) fn trace(&self, slot: u32, head: &Block, trace: &mut Block) -> Vec<u32> {
        let mut slots = vec![slot];
        if self.compiles_blocks() || self.debugger.breaks() || !self.blocks.within_page(slot) {
            return slots;
        }
        let Some(mut key) = self.blocks.key(slot) else { return slots };
        let mut last = slot;
        while slots.len() < BLOCKS {
            let so_far = if slots.len() > 1 { &*trace } else { head };
            let Some((next, next_key, block)) = self.successor(last, key, so_far) else { break };
            if slots.contains(&next) || so_far.insts.len() + block.insts.len() > OPS {
                break;
            }
            if slots.len() == 1 {
                trace.begin_with(head);
            }
            trace.go_on_with(&block);
            slots.push(next);
            (last, key) = (next, next_key);
        }
        slots
    }

    /// The block that ran behind the one in `slot`, with `key`, if it can be a part of the trace that ends with that: it lies
    /// further on, on the same page, where a direct jump leads.
    fn successor(&self, slot: u32, key: Key, trace: &Block) -> Option<(u32, Key, Arc<Block>)> {
        let (next, next_key, block) = self.blocks.bare_successor(slot)?;
        let by = next_key.rip.wrapping_sub(key.rip);
        let same_page = (key.gpa ^ next_key.gpa | trace.rip ^ block.rip) & !(PAGE_SIZE - 1) == 0;
        let there = Key { gpa: key.gpa.wrapping_add(by), rip: next_key.rip, ..key } == next_key;
        (same_page && there && trace.can_go_on_with(&block)).then_some((next, next_key, block))
    }
}

#[cfg(test)]
mod tests {
    use crate::runtime::tier::First;
    use crate::state::reg;
    use crate::system::testing::{Guest, place::CODE};
    use iced_x86::code_asm::*;

    type Baseline = Guest<1>;

    /// Where the code goes on by a jump, and where it does if RAX is 0.
    const FURTHER: u64 = CODE + 0x40;
    const ELSEWHERE: u64 = CODE + 0x80;

    /// Three blocks that run one behind the other, and one beside them.
    fn guest() -> Baseline {
        let mut g = Baseline::long();
        // The second time, and nothing better.
        (g.cpu.tier.warm, g.cpu.tier.hot) = (Some(2), i32::MAX);
        g.code(|a| {
            a.test(rax, rax)?;
            a.jz(ELSEWHERE)?;
            a.add(rbx, 1)?;
            a.jmp(FURTHER)
        });
        g.code_at(FURTHER, FURTHER, |a| {
            a.add(rcx, 2)?;
            a.hlt()
        });
        g.code_at(ELSEWHERE, ELSEWHERE, |a| {
            a.setz(dl)?;
            a.jmp(FURTHER)
        });
        g
    }

    /// Runs it with RAX: RBX, RCX, RDX afterwards, which begin as 0.
    fn run(g: &mut Baseline, start: u64, value: u64) -> [u64; 3] {
        g.cpu.set_gpr(reg::RAX, value);
        [reg::RBX, reg::RCX, reg::RDX].into_iter().for_each(|n| g.cpu.set_gpr(n, 0));
        g.cpu.state.rip = start;
        g.run();
        [reg::RBX, reg::RCX, reg::RDX].map(|n| g.cpu.gpr(n))
    }

    fn slot_at(g: &mut Baseline, rip: u64) -> u32 {
        g.cpu.state.rip = rip;
        g.cpu.find_block(false).expect("code")
    }

    /// How many blocks the baseline code of the one at `rip` is made of; 0: it has none.
    fn blocks_at(g: &mut Baseline, rip: u64) -> usize {
        let slot = slot_at(g, rip);
        g.cpu.blocks.baseline(slot).map_or(0, |code| g.cpu.tier.slots(code).len())
    }

    #[test]
    fn what_ran_one_behind_the_other_is_one_piece_of_code() {
        let mut g = guest();
        for n in 1..5 {
            assert_eq!(run(&mut g, CODE, n), [1, 2, 0]);
        }
        assert_eq!([CODE, FURTHER, ELSEWHERE].map(|rip| blocks_at(&mut g, rip)), [3, 0, 0]);
        assert_eq!(g.cpu.tier.stats.baseline, 1);
        // By the exit, with the flags. The way back from there is no part of a trace.
        for _ in 0..3 {
            assert_eq!(run(&mut g, CODE, 0), [0, 2, 1]);
        }
        assert_eq!([CODE, FURTHER, ELSEWHERE].map(|rip| blocks_at(&mut g, rip)), [3, 1, 1]);
        assert_eq!(run(&mut g, CODE, 7), [1, 2, 0]);
        // A way that ran first by the branch is taken there.
        let mut g = guest();
        (0..3).for_each(|_| assert_eq!(run(&mut g, CODE, 0), [0, 2, 1]));
        assert_eq!([CODE, ELSEWHERE].map(|rip| blocks_at(&mut g, rip)), [2, 0]);
        (0..3).for_each(|_| assert_eq!(run(&mut g, CODE, 1), [1, 2, 0]));
    }

    #[test]
    fn a_block_that_goes_takes_the_code_of_others_with_it() {
        for at in [CODE, CODE + 5, FURTHER] {
            let mut g = guest();
            (0..3).for_each(|_| assert_eq!(run(&mut g, CODE, 1), [1, 2, 0]));
            g.cpu.invalidate_code(at, 1);
            assert_eq!(blocks_at(&mut g, CODE), 0, "{at:#x}");
            if at == FURTHER {
                g.code_at(FURTHER, FURTHER, |a| {
                    a.add(rcx, 9)?;
                    a.hlt()
                });
            }
            let added = if at == FURTHER { 9 } else { 2 };
            (0..3).for_each(|_| assert_eq!(run(&mut g, CODE, 1), [1, added, 0]));
            assert!(blocks_at(&mut g, CODE) > 0);
        }
    }

    #[test]
    fn code_that_is_thrown_away_comes_back() {
        let mut g = guest();
        (0..3).for_each(|_| assert_eq!(run(&mut g, CODE, 1), [1, 2, 0]));
        let slot = slot_at(&mut g, CODE);
        let code = g.cpu.blocks.baseline(slot).expect("baseline code");
        for slot in g.cpu.tier.kill(code) {
            g.cpu.blocks.region_evicted(slot, code, 0);
        }
        g.cpu.code_gone();
        assert_eq!(blocks_at(&mut g, CODE), 0);
        (0..3).for_each(|_| assert_eq!(run(&mut g, CODE, 1), [1, 2, 0]));
        assert_eq!(blocks_at(&mut g, CODE), 3);
    }

    #[test]
    fn regions_are_made_of_its_blocks() {
        let mut g = guest();
        g.cpu.tier.set_first(First::EachInTurn);
        for n in [1, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0] {
            assert_eq!(run(&mut g, CODE, n), if n == 0 { [0, 2, 1] } else { [1, 2, 0] });
        }
        let slot = slot_at(&mut g, CODE);
        assert_ne!(g.cpu.blocks.code(slot), g.cpu.blocks.baseline(slot));
    }

    #[test]
    fn with_breakpoints_blocks_stay_alone() {
        let mut g = guest();
        g.cpu.set_breakpoints(&[ELSEWHERE]);
        (0..3).for_each(|_| assert_eq!(run(&mut g, CODE, 1), [1, 2, 0]));
        assert!(blocks_at(&mut g, CODE) <= 1);
    }
}
