//! Control flow: within the region, to other code, to the dispatcher; helpers.

use super::{Lower, NS_LINK, NS_PAGE, Thunk, tail_signature};
use crate::counter::Counter;
use crate::helpers::{self, HelperId, effect};
use crate::ir::{Block, Inst, Val};
use crate::mmu::ram::PAGE_SIZE;
use crate::runtime::pages::PageCheck;
use crate::state::{CpuState, JUMP_ENTRIES, JumpEntry, VECS, jump_slot, mode};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{I32, I64};
use cranelift_codegen::ir::{self as clif, BlockArg, InstBuilder, Value};
use std::mem::offset_of;

impl Lower<'_, '_> {
    /// Leaves through a thunk; RIP is in the state.
    pub(super) fn exit(&mut self, t: Thunk) {
        self.settle();
        let f = self.thunk(t);
        self.b.ins().return_call(f, &[self.env]);
    }

    /// Goes on in a cold block if `cond` is not zero; emits there what `cold` does (which must leave the region).
    pub(super) fn cold_exit(&mut self, cond: Value, cold: impl FnOnce(&mut Self)) {
        let (out, on) = (self.b.create_block(), self.b.create_block());
        self.b.set_cold_block(out);
        self.b.ins().brif(cond, out, &[], on, &[]);
        self.b.switch_to_block(out);
        // What is stored there is not stored where the code goes on.
        let (unsettled, unseen) = (self.unsettled, self.unseen);
        cold(self);
        (self.unsettled, self.unseen) = (unsettled, unseen);
        self.b.switch_to_block(on);
    }

    /// Does `cold` in a block of its own if `cond` is not zero, and goes on.
    pub(super) fn beside(&mut self, cond: Value, cold: impl FnOnce(&mut Self)) {
        self.settle();
        let (out, on) = (self.b.create_block(), self.b.create_block());
        self.b.set_cold_block(out);
        self.b.ins().brif(cond, out, &[], on, &[]);
        self.b.switch_to_block(out);
        cold(self);
        self.b.ins().jump(on, &[]);
        self.b.switch_to_block(on);
    }

    /// Leaves with the pending fault if `failed` is not zero.
    pub(super) fn exit_fault_if(&mut self, failed: Value) {
        self.cold_exit(failed, |this| this.exit(Thunk::ExitFault));
    }

    /// Leaves before the instruction at `rip` if translated code was dropped meanwhile (it may be this code); `uncounted`
    /// instructions were done that are not counted.
    pub(super) fn exit_if_stale(&mut self, rip: u64, uncounted: i64) {
        let m = self.state_mem;
        let stale = self.b.ins().load(I32, m, self.env, offset_of!(CpuState, code_stale) as i32);
        self.cold_exit(stale, |this| {
            if this.is_counted() && uncounted != 0 {
                this.count_done(uncounted, None);
            }
            this.set_rip(rip);
            this.store_flags_aside();
            this.exit(Thunk::ExitLookup);
        });
    }

    pub(super) fn is_counted(&self) -> bool {
        self.region.blocks[0].mode & mode::COUNTED != 0
    }

    /// Counts `n` instructions and `more`.
    pub(super) fn count_done(&mut self, n: i64, more: Option<Value>) {
        let m = self.state_mem;
        let counter = self.b.ins().load(I64, m, self.env, offset_of!(CpuState, counter) as i32);
        let count = self.b.ins().load(I64, m, counter, offset_of!(Counter, count) as i32);
        let by = self.iconst(n);
        let count = self.b.ins().iadd(count, by);
        let count = more.map_or(count, |more| self.b.ins().iadd(count, more));
        self.b.ins().store(m, count, counter, offset_of!(Counter, count) as i32);
    }

    /// Not zero if guest block `n` does not fit below the limit of counted execution (32 bits).
    fn beyond_limit(&mut self, n: usize) -> Value {
        let m = self.state_mem;
        let counter = self.b.ins().load(I64, m, self.env, offset_of!(CpuState, counter) as i32);
        let count = self.b.ins().load(I64, m, counter, offset_of!(Counter, count) as i32);
        let offset = self.iconst(offset_of!(Counter, limit) as i64);
        let place = self.b.ins().iadd(counter, offset);
        // Atomic: others lower it at any time.
        let limit = self.b.ins().atomic_load(I64, m, place);
        let by = self.iconst(self.region.blocks[n].count.into());
        let end = self.b.ins().iadd(count, by);
        let beyond = self.b.ins().icmp(IntCC::UnsignedGreaterThan, end, limit);
        self.b.ins().uextend(I32, beyond)
    }

    /// Enters guest block `n` unless a request is pending: at the region's entry and on back edges. In counted execution all
    /// ways into a block come here.
    pub(super) fn enter_checked(&mut self, n: usize) {
        let rip = self.region.blocks[n].rip;
        let arguments = self.arguments(n);
        let m = self.state_mem;
        let word = self.b.ins().load(I64, m, self.env, offset_of!(CpuState, requests) as i32);
        let mut pending = self.b.ins().atomic_load(I32, m, word);
        if self.is_counted() {
            let beyond = self.beyond_limit(n);
            pending = self.b.ins().bor(pending, beyond);
        }
        self.cold_exit(pending, |this| {
            this.set_rip(rip);
            this.store_flags_aside();
            this.exit(Thunk::ExitRequest);
        });
        let target = self.blocks[n];
        self.b.ins().jump(target, &arguments);
    }

    /// Goes to a known RIP.
    pub(super) fn jump_to(&mut self, rip: u64) {
        self.settle();
        if self.needs_flags_at(rip) {
            self.store_flags_aside();
        }
        if let Some(n) = self.by_rip.get(&rip).copied() {
            if self.wrote_behind {
                self.exit_if_stale(rip, 0);
            }
            self.look_at_pages(n);
            if n <= self.current || self.is_counted() {
                self.enter_checked(n);
            } else {
                let (target, arguments) = (self.blocks[n], self.arguments(n));
                self.b.ins().jump(target, &arguments);
            }
            return;
        }
        if let Some(page) = self.region.page_of(rip).filter(|page| self.sure_of() >> page & 1 != 0) {
            return self.leave_through_link(rip, page);
        }
        let v = self.rip_value(rip);
        let entry = match self.region.blocks[0].is_relative() {
            true => self.cache_entry(v),
            false => self.iconst((jump_slot(rip) * size_of::<JumpEntry>()) as i64),
        };
        self.jump_through_cache(v, entry, None);
    }

    /// Pages, one bit each, that are mapped as they were when the region came to be wherever the current block runs: the
    /// head's, and those it lies on. Nothing in a region changes the mappings and goes on.
    fn sure_of(&self) -> u32 {
        self.needs_pages[self.current] | 1
    }

    /// Leaves before block `n` unless the pages that it lies on are known to be mapped as they were.
    fn look_at_pages(&mut self, n: usize) {
        let (m, relative) = (self.state_mem, self.region.blocks[0].is_relative());
        let rip = self.region.blocks[n].rip;
        let mut missing = self.needs_pages[n] & !self.sure_of();
        while missing != 0 {
            let f = self.import(NS_PAGE, missing.trailing_zeros(), tail_signature());
            missing &= missing - 1;
            let known = self.b.ins().func_addr(I64, f);
            let mut differs = |field: usize, known_field: usize| {
                let now = self.b.ins().load(I64, m, self.env, field as i32);
                let then = self.b.ins().load(I64, m, known, known_field as i32);
                self.b.ins().bxor(now, then)
            };
            let mut changed = differs(offset_of!(CpuState, jump_check), offset_of!(PageCheck, check));
            if relative {
                let base = differs(offset_of!(CpuState, code_base), offset_of!(PageCheck, base));
                changed = self.b.ins().bor(changed, base);
            }
            self.cold_exit(changed, |this| {
                this.set_rip(rip);
                this.b.ins().store(m, known, this.env, offset_of!(CpuState, exit_page) as i32);
                this.store_flags_aside();
                this.exit(Thunk::ExitPage);
            });
        }
    }

    /// Leaves for a known RIP outside the region, on a page of the region that is mapped as it was: the physical target is
    /// known.
    fn leave_through_link(&mut self, rip: u64, page: usize) {
        let (at, relative) = (self.region.pages[page], self.region.blocks[0].is_relative());
        if relative && page != 0 {
            let base = self.rip_value(at);
            self.b.ins().store(self.state_mem, base, self.env, offset_of!(CpuState, code_base) as i32);
        }
        let n = self.links.len() as u32;
        let rip = if relative { rip.wrapping_sub(at) } else { rip };
        self.links.push(super::LinkTarget { rip, page });
        let f = self.import(NS_LINK, n, tail_signature());
        self.b.ins().return_call(f, &[self.env]);
    }

    pub(super) fn jump_indirect(&mut self, block: &Block, i: &Inst) {
        let rip = self.int(i.a);
        let rip = self.masked(rip, block.wrap(u64::MAX));
        let entry = self.cache_entry(rip);
        let from = (block.mode & mode::CS64 != 0).then(|| self.rip_of(block, i));
        self.jump_through_cache(rip, entry, from);
    }

    /// Byte offset of a RIP's entry in the jump cache.
    fn cache_entry(&mut self, rip: Value) -> Value {
        let twelve = self.iconst(12);
        let high = self.b.ins().ushr(rip, twelve);
        let mixed = self.b.ins().bxor(rip, high);
        let m = self.iconst(JUMP_ENTRIES as i64 - 1);
        let slot = self.b.ins().band(mixed, m);
        let shift = self.iconst(size_of::<JumpEntry>().trailing_zeros() as i64);
        self.b.ins().ishl(slot, shift)
    }

    /// Goes to `rip` through the entry of the jump cache at byte offset `entry`, or to the dispatcher, which is told that
    /// the branch is `from`.
    fn jump_through_cache(&mut self, rip: Value, entry: Value, from: Option<u64>) {
        self.settle();
        let m = self.state_mem;
        // Only flat code segments are entered in the cache: others are told apart by their base, which it lacks.
        if self.region.blocks[0].mode & mode::FLAT == 0 {
            self.b.ins().store(m, rip, self.env, offset_of!(CpuState, rip) as i32);
            return self.exit(Thunk::ExitLookup);
        }
        let cache = self.b.ins().load(I64, m, self.env, offset_of!(CpuState, jump_cache) as i32);
        let at = self.b.ins().iadd(cache, entry);
        let tag = self.b.ins().load(I64, m, at, offset_of!(JumpEntry, rip) as i32);
        let hit = self.b.ins().icmp(IntCC::Equal, rip, tag);
        let (maybe, out, on) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
        self.b.set_cold_block(out);
        self.b.ins().brif(hit, maybe, &[], out, &[]);
        self.b.switch_to_block(maybe);
        let check = self.b.ins().load(I64, m, at, offset_of!(JumpEntry, check) as i32);
        let now = self.b.ins().load(I64, m, self.env, offset_of!(CpuState, jump_check) as i32);
        let valid = self.b.ins().icmp(IntCC::Equal, now, check);
        self.b.ins().brif(valid, on, &[], out, &[]);
        self.b.switch_to_block(on);
        self.set_code_base(rip, from.is_some());
        let code = self.b.ins().load(I64, m, at, offset_of!(JumpEntry, code) as i32);
        let signature = self.b.import_signature(tail_signature());
        self.b.ins().return_call_indirect(signature, code, &[self.env]);
        self.b.switch_to_block(out);
        self.b.ins().store(m, rip, self.env, offset_of!(CpuState, rip) as i32);
        if let Some(from) = from {
            let from = self.rip_value(from);
            self.b.ins().store(m, from, self.env, offset_of!(CpuState, branch_rip) as i32);
        }
        self.exit(Thunk::ExitSeek);
    }

    /// What is at `rip` may be relative: after relative code, and after a change of privilege, which indirect jumps end
    /// with.
    fn set_code_base(&mut self, rip: Value, indirect: bool) {
        if indirect || self.region.blocks[0].is_relative() {
            let page = self.masked(rip, !(PAGE_SIZE - 1));
            self.b.ins().store(self.state_mem, page, self.env, offset_of!(CpuState, code_base) as i32);
        }
    }

    pub(super) fn branch(&mut self, block: &Block, i: &Inst) {
        let cond = self.truth(i.a);
        self.settle();
        let (taken, other) = (i.imm as u64, block.end_rip());
        if self.needs_flags_at(taken) && self.needs_flags_at(other) {
            self.store_flags();
        }
        let at_hand = self.flags.is_some_and(|f| !f.is_stored());
        let forward = |this: &mut Self, rip: u64| {
            let n = this
                .by_rip
                .get(&rip)
                .copied()
                .filter(|n| *n > this.current && !this.wrote_behind && !this.is_counted())
                .filter(|n| !at_hand || !this.needs_flags[*n])
                .filter(|n| this.needs_pages[*n] & !this.sure_of() == 0)?;
            Some((this.blocks[n], this.arguments(n)))
        };
        let (to_taken, to_other) = (forward(self, taken), forward(self, other));
        // A way that needs more than a jump has it in a block of its own.
        let way = |this: &mut Self, to: &Option<(clif::Block, Vec<BlockArg>)>| match to {
            Some(to) => to.clone(),
            None => (this.b.create_block(), Vec::new()),
        };
        let (taken_block, taken_arguments) = way(self, &to_taken);
        let (other_block, other_arguments) = way(self, &to_other);
        self.b.ins().brif(cond, taken_block, &taken_arguments, other_block, &other_arguments);
        let values = self.values();
        for (to, block, rip) in [(to_taken, taken_block, taken), (to_other, other_block, other)] {
            if to.is_none() {
                self.b.switch_to_block(block);
                self.jump_to(rip);
                self.resume(&values);
            }
        }
    }

    /// Raises an exception known at translation: the interpreter's way is as good, and rare.
    pub(super) fn raise(&mut self, block: &Block, i: &Inst) {
        let rip = self.rip_of(block, i);
        self.set_rip(rip);
        let imm = self.iconst(i.imm);
        let id = self.iconst(-1);
        let zero = self.iconst(0);
        self.call(Thunk::Helper, &[self.env, id, imm, zero, zero]);
        self.exit(Thunk::ExitFault);
    }

    pub(super) fn helper(&mut self, block: &Block, i: &Inst) {
        if self.division(block, i) || self.x87(block, i) {
            return;
        }
        let h = helpers::helper(HelperId(i.imm as u16));
        let (a, b, c) = (self.opt(i.a), self.opt(i.b), self.opt(i.c));
        let id = self.iconst(i.imm & 0xffff);
        if h.effects & effect::PURE != 0 && h.effects & effect::FAULTS == 0 {
            let v = self.call(Thunk::PureHelper, &[self.env, id, a, b, c]).expect("thunk has a result");
            return self.set(i.d, v);
        }
        let rip = self.rip_of(block, i);
        self.set_rip(rip);
        let failed = self.call(Thunk::Helper, &[self.env, id, a, b, c]).expect("thunk has a result");
        if h.effects & effect::FAULTS != 0 {
            self.exit_fault_if(failed);
        }
        for n in 0..16 {
            if h.effects >> n & 1 != 0 {
                self.known[n] = Default::default();
            }
        }
        self.vecs = [None; VECS];
        if h.effects & effect::X87 != 0 {
            self.x87_lent = false;
        }
        if h.effects & effect::SETS_FLAGS != 0 {
            self.forget_flags();
        }
        self.wrote_behind = true;
        if i.d != Val::NONE.0 {
            let m = self.state_mem;
            let v = self.b.ins().load(I64, m, self.env, offset_of!(CpuState, helper_result) as i32);
            self.set(i.d, v);
        }
    }
}
