//! The baseline tier: one pass from IR to host code. From guest bytes to code it takes a fortieth of the time that Cranelift
//! does (`cargo bench -- compile`), so that a block leaves the interpreter after a few runs; what turns out to be hot is
//! compiled again, in regions, by Cranelift.
//!
//! Blocks that were run one after the other are emitted together ([`crate::ir::trace`]): what one leaves in registers the next
//! finds there, and flags that it overwrites are stored on the ways out only.
//!
//! Shape of the code: RDI holds the CPU, as it does where code leads from block to block; values live in ten host registers
//! and the vector registers within a block, guest registers are written through where somebody may look, and RAX, RCX and
//! RDX are free for each operation. Frame, ways in and out and the TLB check are those of Cranelift's regions
//! ([`crate::lower`]), so both kinds of code lead to each other.

mod asm;
mod calls;
mod exits;
mod flags;
mod integer;
mod memory;
mod regs;
mod share;
mod sse;
mod vector;
mod vregs;
mod x87;

use crate::helpers::vec::host_has_avx2;
use crate::ir::op::{Field, OpInfo, Traits};
use crate::ir::vecop::VecOp;
use crate::ir::{Block, Inst, Op, Ty, Val};
use crate::lower::Thunk;
use crate::passes::dead_flags;
use crate::passes::flag_notes::{Note, Notes};
use crate::state::{CpuState, VALS, mode};
use asm::{Asm, Mem, RDI, Reg};
use regs::Regs;
use std::mem::offset_of;
use vregs::VectorRegs;

/// What a call or jump out of the code leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// A routine that Cranelift's code uses too.
    Thunk(Thunk),
    /// Fills the TLB or abandons the frame.
    Miss,
    /// The same, keeping the vector registers.
    MissVectors,
}

/// A way out to known code on the same page: `jmp rel32`.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// Its offset.
    pub site: u32,
    /// RIP it leads to, in relative code an offset.
    pub rip: u64,
    /// A jump to a higher RIP. No loop consists of such links alone, so they may pass by the look for requests.
    pub forward: bool,
}

/// The host's instruction `xmm0 = op(xmm0, xmm1, imm8)` in five bytes, if it has one of that length.
pub fn inline_vector(op: VecOp, imm8: u8) -> Option<[u8; 5]> {
    let e = host_has_avx2().then(|| sse::vex(op)).flatten()?;
    let mut a = Asm::default();
    a.vex(e.prefix, e.map, e.opcode, e.wide, Reg(0), Reg(0), Reg(1));
    if e.imm {
        a.byte(imm8);
    }
    if a.code.len() == 4 {
        // NOP.
        a.byte(0x90);
    }
    // VCVTPS2PH has its operands the other way round; it has six bytes.
    a.code.try_into().ok()
}

/// The code of one block.
#[derive(Default)]
pub struct Code {
    /// Machine code.
    pub bytes: Vec<u8>,
    /// Displacements to set: offset, target.
    pub fixups: Vec<(u32, Target)>,
    /// Ways out.
    pub links: Vec<Link>,
    /// Where what is seldom reached begins, which is placed elsewhere.
    pub cold: u32,
    /// Branches between the two parts: offset of the displacement, and of the target.
    pub across: Vec<(u32, u32)>,
    /// RIPs are offsets from the page that it runs at.
    pub relative: bool,
    /// Offset of the way in for forward links of other baseline code, behind the look for requests.
    pub forward_entry: u32,
}

/// What is emitted behind the block's code.
enum Cold {
    /// A TLB miss: displacement that leads here, offset of the comparison to repeat, kind, RIP of the instruction, and
    /// whether vector registers hold something.
    Miss { from: usize, again: usize, kind: u32, rip: u64, vectors: bool },
    /// An access whose group crosses a page.
    Alone { from: usize, access: memory::Access, vectors: bool, back: usize },
    /// The check of a group failed.
    Lead(memory::Lead),
    /// Leaves with the pending fault.
    Fault { from: usize },
    /// Leaves for a target that is not in the jump cache; `branch`: RIP of an indirect branch.
    Unknown { from: [usize; 2], branch: Option<u64> },
    /// Leaves before the instruction at `rip`, behind one that was not counted: translated code was dropped.
    Stale { from: usize, rip: u64 },
    /// Leaves before the instruction at `rip` with a code.
    Leave { from: usize, rip: u64, code: u32 },
    /// Calls a helper and goes on.
    Helper { from: usize, back: usize, call: Inst, rip: u64 },
    /// Loads the host's x87 and goes on.
    LendX87 { from: usize, back: usize, rip: u64 },
}

/// A way out of a trace before its end.
struct Exit {
    /// The branch that leads there.
    from: usize,
    /// RIP that it leads to.
    rip: u64,
    /// What the state does not have of the flags.
    note: Note,
}

/// What the host's flags are: those of an operation that made a value.
#[derive(Clone, Copy)]
struct HostFlags {
    value: u16,
    ty: Ty,
    kind: crate::ir::flags::CcKind,
}

/// Emits one block.
struct Emit<'a> {
    a: Asm,
    block: &'a Block,
    regs: Regs,
    vectors: VectorRegs,
    /// Which accesses share a TLB check.
    plan: share::Plan,
    /// Whose host base is in each of the pseudo-registers for them.
    shared: [Option<usize>; share::OPEN],
    /// Number of the operation at hand.
    at: usize,
    /// The host has AVX2.
    avx: bool,
    /// What the host's flags stand for now.
    host: Option<HostFlags>,
    /// The host's flags are the guest's.
    fused: bool,
    /// Kind and width of the guest's flags, if known; they are in the state or in the host's flags.
    flags: Option<(crate::ir::flags::CcKind, Ty)>,
    /// For operations whose flags only a miss shows, what it is to be told.
    notes: Notes,
    /// What misses are told now, and from the next instruction on.
    note: Note,
    next_note: Note,
    /// What becomes of each operation's values.
    fates: Vec<Fate>,
    fixups: Vec<(u32, Target)>,
    links: Vec<Link>,
    exits: Vec<Exit>,
    cold: Vec<Cold>,
    /// RIP of the instruction at hand.
    rip: u64,
    mmu: usize,
    /// A helper may have dropped this code.
    wrote_behind: bool,
    /// The host's x87 is sure to hold the guest's registers.
    x87_lent: bool,
}

/// Emits blocks, one after the other: the memory of its lists serves all.
#[derive(Default)]
pub struct Emitter {
    code: Code,
    exits: Vec<Exit>,
    cold: Vec<Cold>,
    plan: share::Plan,
    notes: Notes,
    visible: Vec<bool>,
    fates: Vec<Fate>,
}

impl Emitter {
    /// Emits the code of a block. `heat`: index of its counter in [`CpuState::heat`], if it counts.
    pub fn compile(&mut self, block: &Block, heat: Option<usize>) -> &Code {
        let mut e = Emit::new(block, self);
        let forward_entry = e.entry(heat);
        let visible = dead_flags::visible(block, true, std::mem::take(&mut self.visible));
        e.notes.make(block, &visible, true);
        e.body(&visible);
        e.side_exits();
        let cold = e.a.here();
        e.a.cold = Some(cold);
        e.cold();
        self.visible = visible;
        self.code = Code {
            bytes: e.a.code,
            cold: cold as u32,
            across: e.a.across,
            fixups: e.fixups,
            links: e.links,
            relative: block.is_relative(),
            forward_entry,
        };
        (self.exits, self.cold, self.plan, self.notes, self.fates) = (e.exits, e.cold, e.plan, e.notes, e.fates);
        &self.code
    }
}

/// An empty list in the memory of another.
fn emptied<T>(list: &mut Vec<T>) -> Vec<T> {
    list.clear();
    std::mem::take(list)
}

/// What becomes of an operation's values.
#[derive(Clone, Copy, Default)]
struct Fate {
    /// Its operand `a` is a temporary that nothing reads after it.
    dies: bool,
    /// Its result is a guest register that is overwritten before anybody may look for it in the state.
    passing: bool,
}

/// The fates of each operation's values. `room`: memory for the answer.
fn fates(block: &Block, room: Vec<Fate>) -> Vec<Fate> {
    let mut out = room;
    out.clear();
    out.resize(block.insts.len(), Fate::default());
    let (mut read, mut off) = (0u64, None);
    // Guest registers that are overwritten further on.
    let mut overwritten = 0u64;
    for (n, i) in block.insts.iter().enumerate().rev() {
        if off != Some(i.off) {
            (read, off) = (0, Some(i.off));
            // Behind a helper code may be left.
            let mut of_insn = block.insts[..=n].iter().rev().take_while(|other| other.off == i.off);
            if of_insn.any(|i| i.op == Op::Call) {
                overwritten = 0;
            }
        }
        let OpInfo { fields, traits, .. } = i.op.info();
        if matches!(fields[0], Field::Int | Field::IntOpt) && i.d < VALS as u16 {
            read &= !(1 << i.d);
            out[n].passing = i.d < Val::TEMP0 && overwritten >> i.d & 1 != 0;
            overwritten |= 1 << i.d;
        }
        if traits.has(Traits::FAULT) || traits.has(Traits::EFFECT) || traits.has(Traits::END) {
            overwritten = 0;
        }
        let is_temp = (Val::TEMP0..VALS as u16).contains(&i.a);
        out[n].dies = is_temp && read >> i.a & 1 == 0 && i.b != i.a && i.c != i.a;
        for (field, v) in fields[1..].iter().zip([i.a, i.b, i.c]) {
            if matches!(field, Field::Int | Field::IntOrImm | Field::IntOpt) && v < VALS as u16 {
                read |= 1 << v;
            }
        }
    }
    out
}

/// A field of the state.
fn state(offset: usize) -> Mem {
    Mem::at(RDI, offset as i32)
}

/// Place of an integer value in the state.
fn val(n: usize) -> Mem {
    state(offset_of!(CpuState, vals) + 8 * n)
}

impl<'a> Emit<'a> {
    fn new(block: &'a Block, room: &mut Emitter) -> Self {
        let mut plan = std::mem::take(&mut room.plan);
        plan.make(block);
        let code = &mut room.code;
        Self {
            a: Asm { code: emptied(&mut code.bytes), cold: None, across: emptied(&mut code.across) },
            block,
            regs: Regs::new(),
            vectors: VectorRegs::new(),
            plan,
            shared: [None; share::OPEN],
            at: 0,
            avx: host_has_avx2(),
            host: None,
            fused: false,
            flags: None,
            notes: std::mem::take(&mut room.notes),
            note: Note::NONE,
            next_note: Note::NONE,
            fates: fates(block, std::mem::take(&mut room.fates)),
            fixups: emptied(&mut code.fixups),
            links: emptied(&mut code.links),
            exits: emptied(&mut room.exits),
            cold: emptied(&mut room.cold),
            rip: block.rip,
            mmu: ((block.mode & mode::MMU) >> mode::MMU_SHIFT) as usize,
            wrote_behind: false,
            x87_lent: false,
        }
    }
}

impl Emit<'_> {
    fn body(&mut self, visible: &[bool]) {
        let block = self.block;
        let mut off = None;
        let mut n = 0;
        while let Some(i) = block.insts.get(n) {
            if off != Some(i.off) {
                off = Some(i.off);
                self.start_insn(n);
            }
            self.regs.unlock();
            self.vectors.unlock();
            self.at = n;
            n += self.inst(n, i, visible[n]);
        }
    }

    /// Starts the guest instruction of operation `n`.
    fn start_insn(&mut self, n: usize) {
        let off = self.block.insts[n].off;
        self.rip = self.block.wrap(self.block.rip.wrapping_add(off as u64));
        self.note = self.next_note;
        self.regs.forget_temporaries();
        self.vectors.forget_temporaries();
        if std::mem::take(&mut self.wrote_behind) {
            self.leave_if_stale(n.checked_sub(1).map_or(self.rip, |before| self.block.rip_after(before)));
        }
    }

    /// Emits the operation at `n`; how many were done.
    fn inst(&mut self, n: usize, i: &Inst, visible: bool) -> usize {
        if !flags::leaves_host_flags(i.op) {
            self.flags_clobbered();
        }
        if dead_flags::overwrites(i) {
            self.next_note = Note::NONE;
        }
        match i.op {
            Op::Load | Op::Store | Op::Rmw | Op::Cas => self.memory_op(i),
            Op::SetFlags | Op::SetFlagsCarry | Op::SetFlagsIf | Op::GetFlags => self.flag_op(n, i, visible),
            Op::GetCond => return self.get_cond(n, i),
            op if op.is_vector() => return self.vector_op(n, i),
            Op::GetState | Op::SetState => self.state_op(i),
            Op::SegAddr => self.seg_addr(i),
            Op::Call => self.helper(i),
            Op::Raise => self.raise(i),
            Op::Jmp => self.jump_to(i.imm as u64),
            Op::JmpInd => self.jump_indirect(i),
            Op::Br => self.branch_if_set(i),
            Op::Exit => self.exit_if_set(i),
            Op::Dispatch => self.leave_with(exits::LOOKUP),
            Op::Count => self.count_done(i.imm as i32, i.a),
            _ => self.alu_op(n, i),
        }
        1
    }

    /// The host's flags are no longer what they were.
    fn flags_clobbered(&mut self) {
        self.host = None;
        self.fused = false;
    }

    /// A register that holds integer value `n`.
    fn int(&mut self, n: u16) -> Reg {
        let n = n as usize % VALS;
        if let Some(r) = self.regs.find(n) {
            return r;
        }
        let r = self.scratch();
        self.a.load(Ty::I64, r, val(n));
        self.regs.bind(n, r, false);
        r
    }

    /// A register with nothing in it, for a result.
    fn scratch(&mut self) -> Reg {
        let (r, spill) = self.regs.take();
        if let Some(n) = spill {
            self.a.store(Ty::I64, val(n), r);
        }
        r
    }

    /// `r` is integer `n` from now on, 64 clean bits; guest registers are written through, unless they are in passing.
    fn set(&mut self, n: u16, r: Reg) {
        if n == Val::NONE.0 {
            return;
        }
        if self.host.is_some_and(|h| h.value == n) {
            self.host = None;
        }
        let n = n as usize % VALS;
        // Of what is done with the operation at hand this may be another's result.
        let passing = self.fates[self.at].passing && self.block.insts[self.at].d as usize == n;
        self.regs.bind(n, r, n >= 16 || passing);
        if n < 16 && !passing {
            self.a.store(Ty::I64, val(n), r);
        }
    }

    /// A register with a copy of integer `i.a` that may be changed: its own if the value is not needed any more.
    fn copy_of_a(&mut self, n: usize, i: &Inst) -> Reg {
        let r = self.int(i.a);
        if self.fates[n].dies || i.a == i.d && i.b != i.a && i.c != i.a {
            self.regs.forget(i.a as usize % VALS);
            return r;
        }
        let copy = self.scratch();
        self.a.mov(copy, r);
        copy
    }

    /// Writes temporaries that are in registers only to the state, and forgets what a call overwrites.
    fn before_call(&mut self) {
        for (n, r) in self.regs.clean() {
            self.a.store(Ty::I64, val(n), r);
        }
        self.regs.called();
        for (n, r) in self.vectors.called() {
            self.store_vector(n, r);
        }
        self.flags_clobbered();
    }

    /// RAX = a known RIP.
    fn rip_to_rax(&mut self, rip: u64) {
        if !self.block.is_relative() {
            return self.a.mov_imm(asm::RAX, rip);
        }
        self.a.load(Ty::I64, asm::RAX, state(offset_of!(CpuState, code_base)));
        let ty = if self.block.mode & mode::CS64 != 0 { Ty::I64 } else { Ty::I32 };
        // Offsets are at most 2 GiB and a page away, those of 32-bit code as good as negative.
        match i32::try_from(rip as i64).or_else(|_| if ty == Ty::I32 { Ok(rip as i32) } else { Err(()) }) {
            Ok(offset) => self.a.lea(ty, asm::RAX, Mem::at(asm::RAX, offset)),
            Err(()) => {
                self.a.mov_imm(asm::RDX, rip);
                self.a.alu(asm::Alu::Add, ty, asm::RAX, asm::RDX);
            }
        }
    }

    /// Stores a known RIP to the state's field at `offset`; changes RAX at most.
    fn store_rip(&mut self, offset: usize, rip: u64) {
        if self.block.is_relative() {
            self.rip_to_rax(rip);
            return self.a.store(Ty::I64, state(offset), asm::RAX);
        }
        self.store_const(state(offset), rip);
    }

    /// Stores a known RIP to the state's; changes RAX at most.
    fn set_rip(&mut self, rip: u64) {
        self.store_rip(offset_of!(CpuState, rip), rip);
    }

    /// Stores 64 bits; changes RAX at most.
    fn store_const(&mut self, m: Mem, v: u64) {
        match i32::try_from(v as i64) {
            Ok(v) => self.a.store_imm(Ty::I64, m, v),
            Err(_) => {
                self.a.mov_imm(asm::RAX, v);
                self.a.store(Ty::I64, m, asm::RAX);
            }
        }
    }

    fn fixup(&mut self, at: usize, target: Target) {
        self.fixups.push((at as u32, target));
    }

    fn state_op(&mut self, i: &Inst) {
        let m = state(i.imm as usize);
        if i.op == Op::GetState {
            let r = self.scratch();
            self.a.load(i.ty, r, m);
            self.set(i.d, r);
        } else {
            let r = self.int(i.a);
            self.a.store(i.ty, m, r);
        }
    }
}
