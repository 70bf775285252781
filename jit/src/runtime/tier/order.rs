//! The order of the blocks of a region.

use crate::ir::{Block, Op};
use std::collections::HashMap;

/// RIPs that a block goes on to by a direct jump, in relative code offsets: first where it falls through.
pub fn targets(block: &Block) -> [Option<u64>; 2] {
    match block.insts.last() {
        Some(i) if i.op == Op::Jmp => [Some(i.imm as u64), None],
        Some(i) if i.op == Op::Br => [Some(block.end_rip()), Some(i.imm as u64)],
        _ => [None, None],
    }
}

/// Blocks, the first of which is the head, ordered so that those which lead to a block stand before it, except where a loop
/// closes: only there must a region look for requests. Those that the head does not lead to are left out.
pub fn reverse_postorder<T>(items: Vec<T>, block: impl Fn(&T) -> &Block) -> Vec<T> {
    let by_rip: HashMap<u64, usize> = items.iter().enumerate().map(|(n, item)| (block(item).rip, n)).collect();
    let mut seen = vec![false; items.len()];
    let mut postorder = Vec::with_capacity(items.len());
    // Blocks on the way, with how many of their targets were looked at.
    let mut path = Vec::with_capacity(items.len());
    if let Some(head) = seen.first_mut() {
        *head = true;
        path.push((0, 0));
    }
    while let Some((n, looked)) = path.last_mut() {
        // Where it falls through comes last here, thus first behind it.
        let Some(target) = targets(block(&items[*n])).into_iter().rev().nth(*looked) else {
            postorder.push(*n);
            path.pop();
            continue;
        };
        *looked += 1;
        if let Some(to) = target.and_then(|rip| by_rip.get(&rip)).filter(|to| !seen[**to]) {
            seen[*to] = true;
            path.push((*to, 0));
        }
    }
    let mut items: Vec<Option<T>> = items.into_iter().map(Some).collect();
    postorder.into_iter().rev().filter_map(|n| items[n].take()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Inst, Ty};
    use crate::state::mode;

    /// A block of one byte at `rip` that goes on to `to`, and falls through if there is a second target.
    fn block(rip: u64, op: Op, to: u64) -> Block {
        let jump = Inst { op, ty: Ty::I64, d: 0, a: 0, b: 0, c: 0, off: 0, len: 1, imm: to as i64 };
        Block { rip, mode: mode::CS64, len: 1, count: 1, insts: vec![jump] }
    }

    fn order(blocks: Vec<Block>) -> Vec<u64> {
        reverse_postorder(blocks, |b| b).iter().map(|b| b.rip).collect()
    }

    #[test]
    fn a_loop_with_its_head_in_the_middle_closes_once() {
        // 5 -> 6 or 2; 6 -> 2; 2 -> 3 or 9; 3 -> 5.
        let blocks = vec![block(5, Op::Br, 2), block(2, Op::Br, 9), block(6, Op::Jmp, 2), block(3, Op::Jmp, 5)];
        assert_eq!(order(blocks), [5, 6, 2, 3]);
    }

    #[test]
    fn where_ways_meet_comes_behind_all_of_them() {
        // 1 -> 2 or 8; 8 -> 4; 2 -> 4; 4 ends.
        let blocks = vec![block(1, Op::Br, 8), block(2, Op::Jmp, 4), block(8, Op::Jmp, 4), block(4, Op::Dispatch, 0)];
        assert_eq!(order(blocks), [1, 2, 8, 4]);
    }

    #[test]
    fn a_loop_of_one_and_what_is_not_reached() {
        assert_eq!(order(vec![block(1, Op::Br, 1), block(7, Op::Jmp, 1)]), [1]);
        assert!(order(Vec::new()).is_empty());
    }
}
