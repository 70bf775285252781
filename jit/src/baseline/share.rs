//! Which accesses of a block share a TLB check ([`Span`]): those whose addresses come from one value and differ by constants.
//! What may change translations ends a group.

use crate::ir::build::vec_bytes;
use crate::ir::op::Field;
use crate::ir::{Block, Inst, Op, Ty, Val, mem};
use crate::mmu::span::Span;
use crate::state::VALS;

/// Groups that are open at a time; each wants a register.
pub const OPEN: usize = 3;
/// Where constants come from.
const CONSTANT: u32 = 0;

/// Accesses that one check serves.
#[derive(Clone, Copy)]
pub struct Group {
    /// Where the addresses come from.
    from: u32,
    /// What the check covers, from there.
    pub span: Span,
    /// Number of the last access.
    until: usize,
    /// Number of accesses.
    count: u32,
    /// The pseudo-register that its host base goes to.
    pub place: usize,
}

/// An access of a group.
#[derive(Clone, Copy)]
struct Member {
    /// Number of the operation.
    n: usize,
    group: usize,
    /// Distance of its base from where addresses come from.
    distance: i64,
}

/// What an access shares.
#[derive(Clone, Copy)]
pub struct Share {
    pub group: Group,
    /// Number of the group.
    pub number: usize,
    /// Distance of the access's base from where the group's addresses come from.
    pub distance: i64,
    /// No access comes after it.
    pub is_last: bool,
}

/// The groups of a block.
#[derive(Default)]
pub struct Plan {
    groups: Vec<Group>,
    members: Vec<Member>,
    /// The member looked at last.
    at: usize,
    /// While the groups are made: values read from the state, and which groups are open.
    fields: Vec<(i64, u32)>,
    open: Vec<usize>,
}

/// Where integer values come from.
struct Origins {
    of: [(u32, i64); VALS],
    /// Values read from the state.
    fields: Vec<(i64, u32)>,
    next: u32,
}

impl Origins {
    fn new(fields: Vec<(i64, u32)>) -> Self {
        let mut of = [(0, 0); VALS];
        for (n, origin) in of.iter_mut().enumerate() {
            *origin = (1 + n as u32, 0);
        }
        Self { of, fields, next: 1 + VALS as u32 }
    }

    fn fresh(&mut self) -> (u32, i64) {
        self.next += 1;
        (self.next, 0)
    }

    /// Anything may have changed.
    fn forget_all(&mut self) {
        self.fields.clear();
        for n in 0..VALS {
            self.of[n] = self.fresh();
        }
    }

    /// Takes note of what an operation sets.
    fn follow(&mut self, i: &Inst) {
        let constant = i.b == Val::IMM.0;
        let a = |this: &Self| this.of[i.a as usize % VALS];
        let origin = match i.op {
            Op::SetState => {
                self.fields.clear();
                return;
            }
            Op::Mov if i.a == Val::IMM.0 => (CONSTANT, i.imm),
            Op::Mov if i.ty == Ty::I64 => a(self),
            Op::Add if i.ty == Ty::I64 && constant => (a(self).0, a(self).1.wrapping_add(i.imm)),
            Op::Sub if i.ty == Ty::I64 && constant => (a(self).0, a(self).1.wrapping_sub(i.imm)),
            Op::GetState if i.ty == Ty::I64 => match self.fields.iter().find(|(field, _)| *field == i.imm) {
                Some((_, from)) => (*from, 0),
                None => {
                    let fresh = self.fresh();
                    self.fields.push((i.imm, fresh.0));
                    fresh
                }
            },
            _ => self.fresh(),
        };
        if matches!(i.op.info().fields[0], Field::Int | Field::IntOpt) && i.d < VALS as u16 {
            self.of[i.d as usize] = origin;
        }
    }
}

/// What an access that may share a check covers, from its base.
fn access(i: &Inst) -> Option<Span> {
    let aligned = i.c & mem::ALIGNED != 0;
    Some(match i.op {
        Op::Load => Span::of(i.imm, i.ty.bytes() as i64, i.c & mem::WRITE_INTENT != 0, false),
        Op::Store => Span::of(i.imm, i.ty.bytes() as i64, true, false),
        Op::VLoad => Span::of(i.imm, vec_bytes(i.ty) as i64, false, aligned),
        Op::VStore => Span::of(i.imm, vec_bytes(i.ty) as i64, true, aligned),
        _ => return None,
    })
}

impl Plan {
    /// Makes the groups of `block` in place of those that are there.
    pub fn make(&mut self, block: &Block) {
        self.groups.clear();
        self.members.clear();
        self.at = 0;
        if block.insts.iter().filter(|i| access(i).is_some()).count() < 2 {
            return;
        }
        self.fields.clear();
        self.open.clear();
        let mut origins = Origins::new(std::mem::take(&mut self.fields));
        for (n, i) in block.insts.iter().enumerate() {
            if let Some(span) = access(i) {
                self.place(n, origins.of[i.a as usize % VALS], span);
            }
            if matches!(i.op, Op::Call | Op::SegAddr) {
                self.open.clear();
                origins.forget_all();
            } else {
                origins.follow(i);
            }
        }
        self.fields = origins.fields;
    }

    /// Finds a group for the access of operation `n`, whose base is `distance` away from where it comes from.
    fn place(&mut self, n: usize, (from, distance): (u32, i64), access: Span) {
        let (first, last) = (access.first.wrapping_add(distance), access.last.wrapping_add(distance));
        let access = Span { first, last, ..access };
        let found = self.open.iter().rev().find_map(|g| {
            let group = self.groups[*g];
            let span = (group.from == from).then(|| group.span.with(access, false)).flatten()?;
            Some((*g, Group { span, until: n, count: group.count + 1, ..group }))
        });
        let group = match found {
            Some((g, group)) => {
                self.groups[g] = group;
                g
            }
            None => {
                let taken = |place: &usize| self.open.iter().any(|g| self.groups[*g].place == *place);
                let free = (0..OPEN).find(|place| !taken(place));
                let place = free.unwrap_or_else(|| self.groups[self.open.remove(0)].place);
                self.groups.push(Group { from, span: access, until: n, count: 1, place });
                self.open.push(self.groups.len() - 1);
                self.groups.len() - 1
            }
        };
        self.members.push(Member { n, group, distance });
    }

    /// What the access of operation `n` shares, if anything. `n` never goes back.
    pub fn share(&mut self, n: usize) -> Option<Share> {
        while self.members.get(self.at).is_some_and(|m| m.n < n) {
            self.at += 1;
        }
        let member = self.members.get(self.at).filter(|m| m.n == n)?;
        let group = self.groups[member.group];
        let share = Share { group, number: member.group, distance: member.distance, is_last: group.until == n };
        (group.count > 1).then_some(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lift::{MAX_INSNS, lift_block};
    use crate::state::mode;

    /// The accesses of 64-bit code: number of the group, first and last offset of its check; `None`: one alone.
    fn groups(bytes: &[u8]) -> Vec<Option<(usize, i64, i64)>> {
        let word = mode::CS64 | mode::CS32 | mode::FLAT | mode::CPL;
        let model = crate::cpuid::parse("max").expect("a model");
        let block = lift_block(bytes, 0x1000, word, &model, MAX_INSNS).expect("code");
        let mut plan = Plan::default();
        plan.make(&block);
        let accesses: Vec<usize> = plan.members.iter().map(|m| m.n).collect();
        let member = |n: usize| {
            let group = plan.members.iter().find(|m| m.n == n).expect("the access").group;
            plan.share(n).map(|s| (group, s.group.span.first, s.group.span.last))
        };
        accesses.into_iter().map(member).collect()
    }

    #[test]
    fn what_is_pushed_is_checked_at_once() {
        // push rbx; push rbp; push r12; mov rax, [rsp+8]; mov [rdi], rax
        let code = [0x53, 0x55, 0x41, 0x54, 0x48, 0x8b, 0x44, 0x24, 8, 0x48, 0x89, 7];
        let stack = Some((0, -24, -1));
        assert_eq!(groups(&code), [stack, stack, stack, stack, None]);
    }

    #[test]
    fn a_check_for_reading_does_not_serve_a_store() {
        // mov rax, [rdi]; mov [rdi+8], rax; mov rcx, [rdi+16]; inc dword [rdi+4]
        let code = [0x48, 0x8b, 7, 0x48, 0x89, 0x47, 8, 0x48, 0x8b, 0x4f, 16, 0xff, 0x47, 4];
        let written = Some((1, 4, 23));
        assert_eq!(groups(&code), [None, written, written, written, written]);
    }

    #[test]
    fn other_values_and_far_ones_are_checked_anew() {
        // mov rax, [rdi]; mov rdi, [rdi+8]; mov rcx, [rdi]; mov rdx, [rdi+0x200]
        let code = [0x48, 0x8b, 7, 0x48, 0x8b, 0x7f, 8, 0x48, 0x8b, 0xf, 0x48, 0x8b, 0x97, 0, 2, 0, 0];
        assert_eq!(groups(&code), [Some((0, 0, 15)), Some((0, 0, 15)), None, None]);
    }
}
