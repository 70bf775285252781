//! From IR to host code through Cranelift. Only this module and [`crate::runtime`] know Cranelift's types.
//!
//! Shape of a compiled region (why: measured, see the README's notes on the engine): guest registers are SSA values, stored
//! to `CpuState` before anything that may look there ([`Lower::settle`]), so the state is exact wherever an access may
//! fault. The TLB check is a compare and a `trapnz`, which splits no CLIF block; its branch is pointed at a miss stub after compilation
//! ([`crate::runtime::patch`]). Code outside the region is reached by tail calls.

mod alu;
mod carry;
mod divide;
mod exits;
mod flags;
mod memory;
mod share;
mod vector;
mod x87;

use crate::ir::{Block, Inst, Op, Ty, Val};
use crate::mmu::ram::PAGE_SIZE;
use crate::mmu::tlb::MMU_INDEXES;
use crate::passes::dead_flags::{self, AtEntry};
use crate::passes::flag_notes::{Note, Notes};
use crate::state::{CpuState, VALS, VECS};
use cranelift_codegen::ir::{
    self as clif, AbiParam, AliasRegionData, ExtFuncData, ExternalName, FuncRef, InstBuilder, MemFlagsData, Signature,
    SourceLoc, UserExternalName, types::I64,
};
use cranelift_codegen::isa::{CallConv, TargetIsa};
use cranelift_codegen::settings::{self, Configurable};
use cranelift_codegen::{Context, control::ControlPlane};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use std::collections::HashMap;
use std::mem::offset_of;
use std::sync::Arc;

/// Namespace of thunks ([`Thunk`]) in external names.
pub const NS_THUNK: u32 = 0;
/// Namespace of links: index into [`Compiled::links`].
pub const NS_LINK: u32 = 1;
/// Namespace of what a region knows of its pages ([`crate::runtime::pages::PageCheck`]): number of the page.
pub const NS_PAGE: u32 = 3;
/// Low byte of the namespace of code that replaces the call, see [`inline_code`].
const NS_INLINE: u32 = 2;

/// Namespace and index of a name that stands for code.
fn inline_name(code: [u8; 5]) -> (u32, u32) {
    let [a, b, c, d, e] = code;
    (NS_INLINE | (e as u32) << 8, u32::from_le_bytes([a, b, c, d]))
}

/// The code to put in place of a call with this name: it takes an operand in RDI and changes no register.
pub fn inline_code(name: &UserExternalName) -> [u8; 5] {
    let [a, b, c, d] = name.index.to_le_bytes();
    [a, b, c, d, (name.namespace >> 8) as u8]
}

/// Routines at fixed places of the code arena.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Thunk {
    /// Leave: RIP is in the state.
    ExitLookup,
    /// Go on with code that the jump cache knows under another generation or in the other place of its pair, or leave: RIP is
    /// in the state.
    ExitSeek,
    /// Leave: a request is pending, RIP is in the state.
    ExitRequest,
    /// Leave: the helper's fault is pending, RIP is in the state.
    ExitFault,
    /// Leave: the instruction at the state's RIP is to be interpreted.
    ExitInterpret,
    /// Leave: code goes on at the state's RIP, on a page that must be looked at first; what is known of it is in the state.
    ExitPage,
    /// `fn(cpu) -> 0 | 1`: the host's x87 is to be loaded from the image in the state; 0 = it cannot serve.
    LendX87,
    /// `fn(cpu, id, a, b, c) -> 0 | 1`: a helper; result in the state, 1 = fault.
    Helper,
    /// `fn(cpu, id, a, b, c) -> result`: a helper that cannot fault.
    PureHelper,
    /// `fn(cc, cc_op, res, src) -> 0 | 1`.
    Condition,
    /// `fn(cc_op, res, src) -> flags`.
    AllFlags,
    /// `fn(cpu, imm, offset) -> 0 | 1`: segment check, linear address in the state.
    SegAddr,
    /// `fn(cpu, op, d | a << 16 | b << 32 | imm8 << 48)`: vector operation on registers of the state.
    Vec,
    /// `fn(cpu, op, d | a << 16 | b << 32 | c << 48)`: fused multiply-add on registers of the state.
    Fma,
    /// `fn(cpu, op, a | b << 16 | imm8 << 32) -> result`.
    VecToInt,
    /// `fn(cpu, op, d | a << 16 | imm8 << 32, integer)`.
    VecFromInt,
}

impl Thunk {
    /// Works on its operands alone, without a look at the state.
    fn is_pure(self) -> bool {
        matches!(self, Self::PureHelper | Self::Condition | Self::AllFlags)
    }

    /// May change what addresses are translated to.
    fn may_remap(self) -> bool {
        matches!(self, Self::Helper | Self::SegAddr)
    }
}

/// Number of thunks.
pub const THUNKS: usize = 16;

/// What a region is compiled from: blocks of one mode and code segment, the head first.
pub struct Region {
    /// The blocks, lifted and run through the passes.
    pub blocks: Vec<Arc<Block>>,
    /// Jumps between the blocks stay in the region. Else the end of each block leaves it.
    pub inner_jumps: bool,
    /// Blocks, one bit each, that check each access alone.
    pub narrow: u32,
    /// Pages that they lie on, as their RIPs have it: first the head's. The way from one to another looks whether it is
    /// mapped as it was.
    pub pages: Vec<u64>,
}

impl Region {
    /// One of blocks on the page of the first.
    #[cfg(any(test, feature = "testing"))]
    pub fn on_a_page(blocks: Vec<Arc<Block>>, inner_jumps: bool, narrow: u32) -> Self {
        let pages = blocks.first().map(|head| head.rip & !(PAGE_SIZE - 1));
        Self { blocks, inner_jumps, narrow, pages: pages.into_iter().collect() }
    }

    /// Number of the page of a RIP.
    fn page_of(&self, rip: u64) -> Option<usize> {
        self.pages.iter().position(|page| *page == rip & !(PAGE_SIZE - 1))
    }

    /// Pages but the head's that a block lies on, one bit each.
    fn needs(&self, block: &Block) -> u32 {
        let bit = |rip: u64| self.page_of(rip).map_or(0, |page| 1 << page);
        (bit(block.rip) | bit(block.end_rip().wrapping_sub(1))) & !1
    }
}

/// A patchable way out to code on a page of the region.
#[derive(Clone, Copy, Debug)]
pub struct LinkTarget {
    /// RIP it leads to, in relative code its offset in the page.
    pub rip: u64,
    /// Number of the page.
    pub page: usize,
}

/// A TLB check in the code.
#[derive(Clone, Copy, Debug)]
pub struct MemSite {
    /// Offset of the `ud2` its branch leads to.
    pub ud2: u32,
    /// Bit 0: write. Bits 2:1: MMU index.
    pub kind: u32,
}

/// A guest instruction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    /// Its RIP as [`Block::written`] has it.
    pub rip: u64,
    /// What misses in it are told of the flags.
    pub note: Note,
}

/// A compiled region, not yet placed.
pub struct Compiled {
    /// Machine code.
    pub code: Vec<u8>,
    /// Calls to fix: offset of the 32-bit displacement, name.
    pub relocs: Vec<(u32, UserExternalName)>,
    /// TLB checks.
    pub sites: Vec<MemSite>,
    /// Guest instructions by start offset in the code, ascending.
    pub places: Vec<(u32, Place)>,
    /// Ways out.
    pub links: Vec<LinkTarget>,
    /// RIPs are offsets from the page that it runs at.
    pub relative: bool,
    /// The region's pages.
    pub pages: Vec<u64>,
}

/// Why a region was not compiled; its blocks keep the code they have.
#[derive(Debug, thiserror::Error)]
pub enum LowerError {
    /// Cranelift refused.
    #[error("code generation: {0}")]
    Cranelift(String),
}

/// What a host has at least, by the levels of the x86-64 psABI.
#[cfg(test)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// Up to SSE4.2 and POPCNT.
    V2,
    /// Up to AVX2, BMI and FMA.
    V3,
}

/// A compiler with its reusable memory; one per thread.
pub struct Compiler {
    isa: Arc<dyn TargetIsa>,
    context: Context,
    builder: FunctionBuilderContext,
}

impl Compiler {
    /// A compiler for this host.
    pub fn new() -> Result<Self, LowerError> {
        Self::for_host(cranelift_native::builder().map_err(|e| LowerError::Cranelift(e.to_string()))?)
    }

    /// A compiler for any host of a level.
    #[cfg(test)]
    pub fn pinned(level: Level) -> Result<Self, LowerError> {
        let cranelift = |e: String| LowerError::Cranelift(e);
        let mut host = cranelift_native::builder_with_options(false).map_err(|e| cranelift(e.to_string()))?;
        let v3: &[&str] = &["has_avx", "has_avx2", "has_fma", "has_bmi1", "has_bmi2", "has_lzcnt"];
        let v2 = ["has_cmpxchg16b", "has_sse3", "has_ssse3", "has_sse41", "has_sse42", "has_popcnt"];
        for feature in v2.iter().chain(if level == Level::V3 { v3 } else { &[] }) {
            host.enable(feature).map_err(|e| cranelift(e.to_string()))?;
        }
        Self::for_host(host)
    }

    fn for_host(host: cranelift_codegen::isa::Builder) -> Result<Self, LowerError> {
        let mut flags = settings::builder();
        let verify = if cfg!(debug_assertions) { "true" } else { "false" };
        for (name, value) in [
            ("preserve_frame_pointers", "true"),
            ("unwind_info", "false"),
            ("enable_verifier", verify),
            // The lifter and this module leave the optimiser little: "speed" made code that ran no faster (coremark,
            // SHA-256, n-body, SSE matrix product) and took a third more time to compile.
            ("opt_level", "none"),
            ("enable_llvm_abi_extensions", "true"),
        ] {
            flags.set(name, value).map_err(|e| LowerError::Cranelift(e.to_string()))?;
        }
        let isa = host.finish(settings::Flags::new(flags)).map_err(|e| LowerError::Cranelift(e.to_string()))?;
        Ok(Self { isa, context: Context::new(), builder: FunctionBuilderContext::new() })
    }

    /// Compiles a region.
    pub fn compile(&mut self, region: &Region) -> Result<Compiled, LowerError> {
        self.context.clear();
        let func = &mut self.context.func;
        func.signature = tail_signature();
        func.name = clif::UserFuncName::user(2, 0);
        let (places, links) = {
            let mut b = FunctionBuilder::new(func, &mut self.builder);
            let mut lower = Lower::new(&mut b, region);
            lower.region();
            let out = (lower.places, lower.links);
            b.finalize(self.isa.frontend_config());
            out
        };
        tracing::trace!(target: "op_opt", "OP for the compiler:\n{}\n", self.context.func.display());
        let mut control = ControlPlane::default();
        let names = self.context.func.params.user_named_funcs().clone();
        let code = self
            .context
            .compile(&*self.isa, &mut control)
            .map_err(|e| LowerError::Cranelift(format!("{:?}", e.inner)))?;
        let mut relocs = Vec::new();
        for r in code.buffer.relocs() {
            match &r.target {
                cranelift_codegen::FinalizedRelocTarget::ExternalName(ExternalName::User(u))
                    if r.kind == cranelift_codegen::binemit::Reloc::X86CallPCRel4 =>
                {
                    relocs.push((r.offset, names[*u].clone()));
                }
                other => return Err(LowerError::Cranelift(format!("unexpected relocation {:?} {other:?}", r.kind))),
            }
        }
        // Other traps belong to divisions that were checked before.
        let kind = |t: &cranelift_codegen::MachTrap| t.code.as_raw().get() as u32 - 1;
        let sites = code.buffer.traps().iter().filter(|t| kind(t) < 2 * MMU_INDEXES as u32);
        let sites = sites.map(|t| MemSite { ud2: t.offset, kind: kind(t) });
        let starts = code.buffer.get_srclocs_sorted().iter().filter(|l| !l.loc.is_default());
        let place_of = |l: &cranelift_codegen::MachSrcLoc<cranelift_codegen::Final>| {
            (l.start, places.get(l.loc.bits() as usize).copied().unwrap_or_default())
        };
        Ok(Compiled {
            code: code.code_buffer().to_vec(),
            relocs,
            sites: sites.collect(),
            places: starts.map(place_of).collect(),
            links,
            relative: region.blocks[0].is_relative(),
            pages: region.pages.clone(),
        })
    }
}

/// `fn(cpu)`: regions and exit thunks.
fn tail_signature() -> Signature {
    let mut s = Signature::new(CallConv::Tail);
    s.params.push(AbiParam::new(I64));
    s
}

/// What is known of a temporary or register inside a guest block.
#[derive(Clone, Copy, Default)]
struct Known {
    /// Its value, 64 bits.
    value: Option<clif::Value>,
    /// If it is a comparison's result: the comparison itself (8 bits).
    truth: Option<clif::Value>,
    /// If it is a difference: width and the two operands.
    difference: Option<(Ty, clif::Value, clif::Value)>,
    /// If it is the flags of a floating-point comparison: the operands.
    floats: Option<(clif::Value, clif::Value)>,
}

/// Registers whose values are not in the state yet, one bit each. Their values are known.
#[derive(Clone, Copy, Default)]
struct Unsettled {
    ints: u64,
    vecs: u128,
}

const _: () = assert!(VALS <= 64 && VECS <= 128);

/// Translates one region.
struct Lower<'a, 'f> {
    b: &'a mut FunctionBuilder<'f>,
    region: &'a Region,
    env: clif::Value,
    state_mem: MemFlagsData,
    tlb_mem: MemFlagsData,
    guest_mem: MemFlagsData,
    known: [Known; VALS],
    vecs: [Option<clif::Value>; VECS],
    /// Registers whose values are not in the state yet.
    unsettled: Unsettled,
    /// Floating-point results in registers whose stores nothing has looked at yet, see [`vector::sticky`].
    unseen: [Option<clif::Value>; VECS],
    flags: Option<flags::Live>,
    checks: share::Checks,
    thunks: [Option<FuncRef>; THUNKS],
    /// CLIF block of each guest block, and the guest block by RIP.
    blocks: Vec<clif::Block>,
    by_rip: HashMap<u64, usize>,
    /// Pages that each block lies on, see [`Region::needs`].
    needs_pages: Vec<u32>,
    /// Registers that each block takes as parameters.
    taken: Vec<carry::Registers>,
    /// Blocks before which the flags must be in the state.
    needs_flags: Vec<bool>,
    current: usize,
    mmu: usize,
    /// A helper ran in this guest instruction, which may have changed translated code, this too.
    wrote_behind: bool,
    /// The host's x87 is sure to hold the guest's registers.
    x87_lent: bool,
    places: Vec<Place>,
    /// For operations of the block whose flags only a miss shows, what it is to be told.
    notes: Notes,
    /// What misses are told from the next instruction on.
    note: Note,
    links: Vec<LinkTarget>,
}

impl<'a, 'f> Lower<'a, 'f> {
    fn new(b: &'a mut FunctionBuilder<'f>, region: &'a Region) -> Self {
        let mut alias = |id: u32, name: &'static str| {
            b.func.dfg.alias_regions.insert(AliasRegionData { user_id: id, description: name.into() })
        };
        let (state, tlb, guest) = (alias(1, "state"), alias(2, "tlb"), alias(3, "guest"));
        let mode = region.blocks[0].mode;
        let entry = b.create_block();
        b.append_block_params_for_function_params(entry);
        b.switch_to_block(entry);
        let env = b.block_params(entry)[0];
        let blocks = region.blocks.iter().map(|_| b.create_block()).collect();
        let inside = region.blocks.iter().enumerate().rev().filter(|_| region.inner_jumps);
        let by_rip = inside.map(|(n, g)| (g.rip, n)).collect();
        Self {
            b,
            region,
            env,
            state_mem: MemFlagsData::trusted().with_alias_region(Some(state)),
            tlb_mem: MemFlagsData::trusted().with_alias_region(Some(tlb)),
            guest_mem: MemFlagsData::new().with_notrap().with_alias_region(Some(guest)),
            known: [Known::default(); VALS],
            vecs: [None; VECS],
            unsettled: Unsettled::default(),
            unseen: [None; VECS],
            flags: None,
            checks: share::Checks::default(),
            thunks: [None; THUNKS],
            blocks,
            by_rip,
            needs_pages: region.blocks.iter().map(|block| region.needs(block)).collect(),
            taken: Vec::new(),
            needs_flags: Vec::new(),
            current: 0,
            mmu: ((mode & crate::state::mode::MMU) >> crate::state::mode::MMU_SHIFT) as usize,
            wrote_behind: false,
            x87_lent: false,
            places: Vec::new(),
            notes: Notes::default(),
            note: Note::NONE,
            links: Vec::new(),
        }
    }

    fn region(&mut self) {
        let region = self.region;
        let next: Vec<_> = region.blocks.iter().map(|block| self.next_blocks(block)).collect();
        let sole = sole_predecessors(&next);
        // Who alone leads to a block can hand it what is not in the state.
        let needs = |(block, sole): (&std::sync::Arc<Block>, &Option<usize>)| match AtEntry::of(block) {
            AtEntry::Dead => false,
            AtEntry::AtHand => sole.is_none(),
            AtEntry::InState => true,
        };
        self.needs_flags = region.blocks.iter().zip(&sole).map(needs).collect();
        self.taken = carry::taken(&region.blocks, &sole, &next);
        self.declare_parameters();
        self.enter_checked(0);
        let mut after: Vec<(carry::Values, Option<flags::Live>, share::Holding)> =
            Vec::with_capacity(region.blocks.len());
        for (n, block) in region.blocks.iter().enumerate() {
            self.b.switch_to_block(self.blocks[n]);
            self.current = n;
            self.x87_lent = false;
            // Values of a block dominate a block that is reached from it alone.
            match sole[n].and_then(|p| after.get(p)) {
                Some((values, flags, holding)) => {
                    self.resume(values);
                    self.flags = flags.map(|f| f.stored_if(self.needs_flags[n]));
                    self.checks.set_holding(holding.clone());
                }
                None => {
                    self.take_parameters(n);
                    self.flags = None;
                    self.checks.set_holding(Vec::new());
                }
            }
            let out = self.flags_live_out(block);
            let visible = dead_flags::visible(block, out, Vec::new());
            self.notes.make(block, &visible, out);
            self.note = Note::NONE;
            self.note_flags_at_hand(block);
            self.block(block, &visible);
            self.wrote_behind = false;
            after.push((self.values(), self.flags, self.checks.holding()));
        }
        self.b.seal_all_blocks();
    }

    /// The blocks of the region that `block` goes on to.
    fn next_blocks(&self, block: &Block) -> [Option<usize>; 2] {
        let number = |rip: u64| self.by_rip.get(&rip).copied();
        match block.insts.last() {
            Some(i) if i.op == Op::Jmp => [number(i.imm as u64), None],
            Some(i) if i.op == Op::Br => [number(i.imm as u64), number(block.end_rip())],
            _ => [None, None],
        }
    }

    /// Whether flags must be in the state wherever `block` goes on. Where only one of two ways needs them, that one stores
    /// them.
    fn flags_live_out(&self, block: &Block) -> bool {
        match block.insts.last() {
            Some(i) if i.op == Op::Jmp => self.needs_flags_at(i.imm as u64),
            Some(i) if i.op == Op::Br => self.needs_flags_at(i.imm as u64) && self.needs_flags_at(block.end_rip()),
            _ => true,
        }
    }

    /// Whether flags must be in the state where a block goes on at `rip`.
    fn needs_flags_at(&self, rip: u64) -> bool {
        self.by_rip.get(&rip).is_none_or(|n| self.needs_flags[*n])
    }

    fn block(&mut self, block: &Block, visible: &[bool]) {
        let mut off = None;
        for (n, i) in block.insts.iter().enumerate() {
            if off != Some(i.off) {
                off = Some(i.off);
                self.start_insn(block, n);
            }
            if dead_flags::overwrites(i) {
                self.note = Note::NONE;
            }
            let note = self.notes.get(n);
            self.inst(block, i, visible[n], note);
            self.keep_comparison(block, visible, n);
        }
    }

    /// Starts the guest instruction of operation `n`.
    fn start_insn(&mut self, block: &Block, n: usize) {
        let rip = self.rip_of(block, &block.insts[n]);
        if std::mem::take(&mut self.wrote_behind) {
            self.exit_if_stale(n.checked_sub(1).map_or(rip, |before| block.rip_after(before)), 1);
        }
        self.places.push(Place { rip: block.written(rip), note: self.note });
        self.b.set_srcloc(SourceLoc::new(self.places.len() as u32 - 1));
        for k in &mut self.known[Val::TEMP0 as usize..] {
            *k = Known::default();
        }
        self.drop_vector_temporaries();
    }

    fn rip_of(&self, block: &Block, i: &Inst) -> u64 {
        block.wrap(block.rip.wrapping_add(i.off as u64))
    }

    fn inst(&mut self, block: &Block, i: &Inst, visible: bool, note: Option<Note>) {
        match i.op {
            Op::Load | Op::Store | Op::Rmw | Op::Cas => self.memory_op(i),
            Op::SetFlags | Op::SetFlagsCarry | Op::SetFlagsIf | Op::GetCond | Op::GetFlags => {
                self.flag_op(i, visible, note)
            }
            op if op.is_vector() => self.vector_op(i),
            Op::GetState | Op::SetState => self.state_op(i),
            Op::SegAddr => self.seg_addr(block, i),
            Op::Call => self.helper(block, i),
            Op::Raise => self.raise(block, i),
            Op::Jmp => self.jump_to(i.imm as u64),
            Op::JmpInd => self.jump_indirect(block, i),
            Op::Br => self.branch(block, i),
            Op::Dispatch => self.exit(Thunk::ExitLookup),
            Op::Count => {
                let more = (i.a != Val::NONE.0).then(|| self.int(i.a));
                self.count_done(i.imm, more);
            }
            _ => self.alu_op(i),
        }
    }

    /// Value of an integer, 64 bits.
    fn int(&mut self, n: u16) -> clif::Value {
        let n = n as usize % VALS;
        if let Some(v) = self.known[n].value {
            return v;
        }
        let v = self.b.ins().load(I64, self.state_mem, self.env, val_offset(n));
        self.known[n].value = Some(v);
        v
    }

    /// Second operand: value or constant.
    fn src(&mut self, i: &Inst) -> clif::Value {
        if i.b == Val::IMM.0 { self.b.ins().iconst(I64, i.imm) } else { self.int(i.b) }
    }

    /// Optional operand: value or zero.
    fn opt(&mut self, n: u16) -> clif::Value {
        if n == Val::NONE.0 { self.b.ins().iconst(I64, 0) } else { self.int(n) }
    }

    /// Sets an integer, 64 clean bits.
    fn set(&mut self, n: u16, v: clif::Value) {
        if n == Val::NONE.0 {
            return;
        }
        let n = n as usize % VALS;
        self.known[n] = Known { value: Some(v), ..Known::default() };
        if n < Val::TEMP0 as usize {
            self.unsettled.ints |= 1 << n;
        }
    }

    /// Brings the state up to date: stores the registers that were set since the last time.
    fn settle(&mut self) {
        let Unsettled { mut ints, mut vecs } = std::mem::take(&mut self.unsettled);
        while ints != 0 {
            let n = ints.trailing_zeros() as usize;
            ints &= ints - 1;
            if let Some(v) = self.known[n].value {
                self.b.ins().store(self.state_mem, v, self.env, val_offset(n));
            }
        }
        while vecs != 0 {
            let n = vecs.trailing_zeros() as usize;
            vecs &= vecs - 1;
            if let Some(v) = self.vecs[n] {
                self.b.ins().store(self.state_mem, v, self.env, vector::vec_offset(n as u16));
            }
        }
        self.unseen = [None; VECS];
    }

    /// A known RIP, 64 bits.
    fn rip_value(&mut self, rip: u64) -> clif::Value {
        let v = self.b.ins().iconst(I64, rip as i64);
        let block = &self.region.blocks[0];
        if !block.is_relative() {
            return v;
        }
        let cut = block.wrap(u64::MAX);
        let base = self.b.ins().load(I64, self.state_mem, self.env, offset_of!(CpuState, code_base) as i32);
        let v = self.b.ins().iadd(base, v);
        self.masked(v, cut)
    }

    /// The bits of `v` that are set in `mask`.
    fn masked(&mut self, v: clif::Value, mask: u64) -> clif::Value {
        if mask == u64::MAX {
            return v;
        }
        let mask = self.b.ins().iconst(I64, mask as i64);
        self.b.ins().band(v, mask)
    }

    /// Stores a known RIP to the state.
    fn set_rip(&mut self, rip: u64) {
        let v = self.rip_value(rip);
        self.b.ins().store(self.state_mem, v, self.env, offset_of!(CpuState, rip) as i32);
    }

    fn thunk(&mut self, t: Thunk) -> FuncRef {
        if let Some(f) = self.thunks[t as usize] {
            return f;
        }
        let (params, returns) = match t {
            Thunk::ExitLookup
            | Thunk::ExitSeek
            | Thunk::ExitRequest
            | Thunk::ExitFault
            | Thunk::ExitInterpret
            | Thunk::ExitPage => {
                let f = self.import(NS_THUNK, t as u32, tail_signature());
                self.thunks[t as usize] = Some(f);
                return f;
            }
            Thunk::LendX87 => (1, 1),
            Thunk::Helper | Thunk::PureHelper => (5, 1),
            Thunk::Condition => (4, 1),
            Thunk::AllFlags | Thunk::SegAddr => (3, 1),
            Thunk::Vec | Thunk::Fma => (3, 0),
            Thunk::VecToInt => (3, 1),
            Thunk::VecFromInt => (4, 0),
        };
        let mut s = Signature::new(CallConv::SystemV);
        s.params.extend((0..params).map(|_| AbiParam::new(I64)));
        s.returns.extend((0..returns).map(|_| AbiParam::new(I64)));
        let f = self.import(NS_THUNK, t as u32, s);
        self.thunks[t as usize] = Some(f);
        f
    }

    fn import(&mut self, namespace: u32, index: u32, signature: Signature) -> FuncRef {
        let name = self.b.func.declare_imported_user_function(UserExternalName { namespace, index });
        let signature = self.b.import_signature(signature);
        let name = ExternalName::User(name);
        self.b.import_function(ExtFuncData { name, signature, colocated: true, patchable: false })
    }

    fn call(&mut self, t: Thunk, args: &[clif::Value]) -> Option<clif::Value> {
        if !t.is_pure() {
            self.settle();
        }
        if t.may_remap() {
            self.checks.set_holding(Vec::new());
        }
        let f = self.thunk(t);
        let call = self.b.ins().call(f, args);
        self.b.inst_results(call).first().copied()
    }
}

/// For each block but the head, the block before it in the region from which alone it is reached, if there is one; given the
/// blocks that each goes on to.
fn sole_predecessors(next: &[[Option<usize>; 2]]) -> Vec<Option<usize>> {
    let mut from = vec![Vec::new(); next.len()];
    for (n, next) in next.iter().enumerate() {
        next.iter().flatten().for_each(|to| from[*to].push(n));
    }
    let sole = |(n, from): (usize, &Vec<usize>)| match from[..] {
        [p] if n != 0 && p < n => Some(p),
        _ => None,
    };
    from.iter().enumerate().map(sole).collect()
}

/// Offset of an integer value in the state.
fn val_offset(n: usize) -> i32 {
    (offset_of!(CpuState, vals) + 8 * n) as i32
}
