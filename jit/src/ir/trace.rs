//! Traces: blocks that ran one after the other, as one block that may be left where it branches.

use super::{Block, Inst, Op};
use crate::mmu::ram::PAGE_SIZE;
use crate::state::mode;

impl Block {
    /// The RIPs that the block goes on to by a direct jump that may become part of a trace: where it falls through, or where it
    /// jumps to; and where a branch leads that is taken.
    pub fn ways_on(&self) -> [Option<u64>; 2] {
        let Some(last) = self.insts.last().filter(|_| self.mode & mode::COUNTED == 0) else { return [None; 2] };
        // Behind a helper code looks whether it is still there, by the RIP that follows.
        let mut of_last = self.insts.iter().rev().take_while(|i| i.off == last.off);
        match last.op {
            _ if of_last.any(|i| i.op == Op::Call) || self.ends_with_call() => [None; 2],
            Op::Jmp => [Some(last.imm as u64), None],
            Op::Br => [Some(self.end_rip()), Some(last.imm as u64)],
            _ => [None; 2],
        }
    }

    /// Becomes `head`, in the memory that it has.
    pub fn begin_with(&mut self, head: &Block) {
        let mut insts = std::mem::take(&mut self.insts);
        insts.clear();
        insts.extend_from_slice(&head.insts);
        *self = Self { insts, ..*head };
    }

    /// Whether a trace can go on with `next`, on the same page: a direct jump leads there, and it does not lie before this
    /// block's end, which at the end of the address space is 0.
    pub fn can_go_on_with(&self, next: &Block) -> bool {
        let ahead = next.rip.wrapping_sub(self.rip);
        (u64::from(self.len)..PAGE_SIZE).contains(&ahead) && self.ways_on().contains(&Some(next.rip))
    }

    /// Goes on with `next`, as [`Block::can_go_on_with`] allows.
    pub fn go_on_with(&mut self, next: &Block) {
        let shift = next.rip.wrapping_sub(self.rip) as u16;
        let end = self.end_rip();
        if let Some(last) = self.insts.pop()
            && last.op == Op::Br
        {
            let taken = next.rip != end;
            let out = if taken { end as i64 } else { last.imm };
            self.insts.push(Inst { op: Op::Exit, c: taken.into(), imm: out, ..last });
        }
        self.insts.extend(next.insts.iter().map(|i| Inst { off: i.off + shift, ..*i }));
        self.len = shift + next.len;
        self.count += next.count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::verify;
    use crate::lift::{MAX_INSNS, lift_block};

    fn block(rip: u64, bytes: &[u8]) -> Block {
        let model = crate::cpuid::parse("max").expect("a model");
        lift_block(bytes, rip, mode::CS64 | mode::CS32 | mode::FLAT, &model, MAX_INSNS).expect("code")
    }

    fn last(block: &Block) -> Inst {
        *block.insts.last().expect("an operation")
    }

    fn exits(block: &Block) -> Vec<(u16, i64, u16)> {
        block.insts.iter().filter(|i| i.op == Op::Exit).map(|i| (i.c, i.imm, i.off)).collect()
    }

    #[test]
    fn a_branch_is_an_exit_to_the_other_side() {
        // test eax, eax; jz 0x1020.
        let head = block(0x1000, &[0x85, 0xc0, 0x74, 0x1c]);
        assert_eq!(head.ways_on(), [Some(0x1004), Some(0x1020)]);
        // inc eax; jmp 0x1010. And jz 0x1002.
        let (next, taken) = (block(0x1004, &[0xff, 0xc0, 0xeb, 8]), block(0x1020, &[0x74, 0xe0]));
        for (way, out) in [(&next, (0, 0x1020, 2)), (&taken, (1, 0x1004, 2))] {
            let mut trace = Block::default();
            trace.begin_with(&head);
            trace.go_on_with(way);
            assert_eq!((exits(&trace), verify::check(&trace)), (vec![out], Ok(())));
            assert_eq!((trace.end_rip(), last(&trace).op), (way.end_rip(), last(way).op));
            assert_eq!(trace.rip.wrapping_add(last(&trace).off.into()), way.rip.wrapping_add(last(way).off.into()));
            assert_eq!((trace.count, trace.ways_on()), (head.count + way.count, way.ways_on()));
        }
        let mut trace = head.clone();
        trace.go_on_with(&next);
        // nop; ret.
        trace.go_on_with(&block(0x1010, &[0x90, 0xc3]));
        assert_eq!((exits(&trace).len(), last(&trace).op, trace.len), (1, Op::JmpInd, 0x12));
        assert!(trace.insts.iter().all(|i| i.op != Op::Jmp));
    }

    #[test]
    fn a_trace_goes_forward_up_to_the_end_of_the_address_space() {
        // test eax, eax; jz 32 bytes back, from where the address space ends; nop; ret.
        let head = block(0xffff_ffff_ffff_fffc, &[0x85, 0xc0, 0x74, 0xe0]);
        assert_eq!((head.end_rip(), head.ways_on()[1]), (0, Some(0xffff_ffff_ffff_ffe0)));
        assert!(!head.can_go_on_with(&block(0xffff_ffff_ffff_ffe0, &[0x90, 0xc3])));
        // The same where it goes forward.
        let head = block(0x1000, &[0x85, 0xc0, 0x74, 0x20]);
        assert!([0x1004, 0x1024].iter().all(|rip| head.can_go_on_with(&block(*rip, &[0x90, 0xc3]))));
        assert!(!head.can_go_on_with(&block(0x1023, &[0x90, 0xc3])));
    }

    #[test]
    fn calls_and_what_helpers_decide_end_a_trace() {
        // call 0x1010; ret; syscall; jmp to itself through a helper that looks where it leads.
        for (rip, bytes) in [
            (0x1000, &[0xe8, 0xb, 0, 0, 0][..]),
            (0x1000, &[0xc3][..]),
            (0x1000, &[0x0f, 5][..]),
            (0x7fff_ffff_fff0, &[0xeb, 0x20][..]),
        ] {
            assert_eq!(block(rip, bytes).ways_on(), [None; 2], "{bytes:x?}");
        }
        let counted = Block { mode: mode::COUNTED, ..block(0x1000, &[0xeb, 0]) };
        assert_eq!(counted.ways_on(), [None; 2]);
    }
}
