//! Entering generated code, and what it calls.

#[cfg(test)]
mod seek;
#[cfg(test)]
pub mod steps;

use super::frame::SHARED_FRAME;
use crate::cpu::Cpu;
use crate::fault::Fault;
use crate::helpers::{self, HelperId, effect};
use crate::ir::vecop::{FmaOp, VecFromInt, VecOp, VecToInt};
use crate::ir::{RELATIVE_RIP_BIT, flags};
use crate::lower::Thunk;
use crate::mmu::ram::PAGE_SIZE;
use crate::mmu::tlb;
use crate::mmu::walk::Access;
use crate::passes::flag_notes::Note;
use crate::state::{CpuState, FETCH_ENTRIES, FetchEntry, GENERATION, JUMP_ENTRIES, JumpEntry, VECS};
use std::mem::offset_of;

// SAFETY: the raw pointer in `CpuState` points at the request word that the same `Cpu` keeps alive through an `Arc`; no
// thread-local state is involved.
unsafe impl Send for Cpu {}

/// Why generated code came back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leave {
    /// RIP is in the state: find what is next.
    Lookup,
    /// A request is pending.
    Request,
    /// A fault is pending.
    Fault,
    /// The instruction at RIP is to be interpreted.
    Interpret,
    /// Through a link not yet joined; its number is in the state.
    Link,
    /// At its start: baseline code has run often enough to be compiled better.
    Hot,
    /// At its start: baseline code has seen that a request is pending.
    Entry,
    /// On the way to a page that a region has not come to since translations changed; its [`super::pages::PageCheck`] is in
    /// the state.
    Page,
}

/// Codes in EAX.
pub const LEAVE_LOOKUP: u32 = 0;
/// See [`Leave::Request`].
pub const LEAVE_REQUEST: u32 = 1;
/// See [`Leave::Fault`].
pub const LEAVE_FAULT: u32 = 2;
/// See [`Leave::Interpret`].
pub const LEAVE_INTERPRET: u32 = 3;
/// See [`Leave::Link`].
pub const LEAVE_LINK: u32 = 4;
/// See [`Leave::Hot`].
pub const LEAVE_HOT: u32 = 5;
/// See [`Leave::Entry`].
pub const LEAVE_ENTRY: u32 = 6;
/// See [`Leave::Page`].
pub const LEAVE_PAGE: u32 = 7;

// The trampoline pushes the CPU pointer as RBP, so that `[rbp]` finds the CPU without a register of its own, and makes the
// frame that all code runs in (see `frame`): it is entered with RDI = CPU, RBP at the frame, RSP at its low end, and goes
// on to other code with jumps. Who leaves takes the frame down and returns; the return address is always the trampoline's.
core::arch::global_asm!(
    ".globl brolga_enter",
    "brolga_enter:",
    "push rbp",
    "push rbx",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "sub rsp, 8",
    "mov rbp, rdi",
    "mov [rdi + {host_rsp}], rsp",
    "call 6f",
    "2:",
    "add rsp, 8",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbx",
    "pop rbp",
    "ret",
    "6:",
    "push rbp",
    "mov rbp, rsp",
    "sub rsp, {frame}",
    "jmp rsi",
    // Abandons the frame: RAX = RIP of the instruction to interpret, as `Block::written` has it.
    ".globl brolga_abandon",
    "brolga_abandon:",
    "mov rdi, [rbp]",
    "test rax, rax",
    "js 5f",
    "btr rax, {relative}",
    "jnc 5f",
    // The sign is in bit 61.
    "shl rax, 2",
    "sar rax, 2",
    "add rax, [rdi + {code_base}]",
    "5:",
    "mov [rdi + {rip}], rax",
    "mov rsp, [rdi + {host_rsp}]",
    "mov eax, {interpret}",
    "jmp 2b",
    // Looks the RIP in the state up in the jump cache; RDI is the CPU. What is known of it may be in the other entry of the
    // pair. If it is of another generation, it holds as long as the page of the RIP is the one that the code is on: that is
    // known if code was fetched from there since.
    ".globl brolga_seek",
    "brolga_seek:",
    "mov rax, [rdi + {rip}]",
    "mov r8, rax",
    "and r8, {page}",
    "mov r9, rax",
    "shr r9, 12",
    "mov ecx, r9d",
    "xor ecx, eax",
    "and ecx, {jump_mask}",
    "shl ecx, {jump_shift}",
    "mov rsi, [rdi + {jump_cache}]",
    "mov rdx, [rdi + {jump_check}]",
    "cmp [rsi + rcx + {entry_rip}], rax",
    "je 7f",
    "xor ecx, {entry_size}",
    "cmp [rsi + rcx + {entry_rip}], rax",
    "jne 3f",
    "7:",
    "add rsi, rcx",
    "mov rcx, [rsi + {entry_check}]",
    "cmp rcx, rdx",
    "je 8f",
    "cmp ecx, edx",
    "jne 3f",
    "and r9d, {fetch_mask}",
    "shl r9d, {fetch_shift}",
    "add r9, [rdi + {fetches}]",
    "cmp [r9 + {fetch_page}], r8",
    "jne 3f",
    "mov r10, {generation}",
    "and r10, rdx",
    "cmp [r9 + {fetch_check}], r10",
    "jne 3f",
    "mov rcx, [r9 + {fetch_gpa}]",
    "or rcx, [rdi + {code_epoch}]",
    "cmp [rsi + {entry_place}], rcx",
    "jne 3f",
    "mov [rsi + {entry_check}], rdx",
    "8:",
    "mov [rdi + {code_base}], r8",
    "jmp [rsi + {entry_code}]",
    "3:",
    "mov eax, {lookup}",
    "leave",
    "ret",
    // A TLB miss: keeps all registers. On the stack: return address, kind, page.
    ".globl brolga_miss",
    "brolga_miss:",
    "push rax",
    "push rcx",
    "push rdx",
    "push rsi",
    "push rdi",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "push rbp",
    "mov rbp, rsp",
    "mov rdi, [rbp]",
    "mov rdi, [rdi]",
    "mov rsi, [rbp + 96]",
    "mov rdx, [rbp + 88]",
    "and rsp, -16",
    "sub rsp, 256",
    "movups [rsp], xmm0",
    "movups [rsp + 16], xmm1",
    "movups [rsp + 32], xmm2",
    "movups [rsp + 48], xmm3",
    "movups [rsp + 64], xmm4",
    "movups [rsp + 80], xmm5",
    "movups [rsp + 96], xmm6",
    "movups [rsp + 112], xmm7",
    "movups [rsp + 128], xmm8",
    "movups [rsp + 144], xmm9",
    "movups [rsp + 160], xmm10",
    "movups [rsp + 176], xmm11",
    "movups [rsp + 192], xmm12",
    "movups [rsp + 208], xmm13",
    "movups [rsp + 224], xmm14",
    "movups [rsp + 240], xmm15",
    "call {miss}",
    "movups xmm0, [rsp]",
    "movups xmm1, [rsp + 16]",
    "movups xmm2, [rsp + 32]",
    "movups xmm3, [rsp + 48]",
    "movups xmm4, [rsp + 64]",
    "movups xmm5, [rsp + 80]",
    "movups xmm6, [rsp + 96]",
    "movups xmm7, [rsp + 112]",
    "movups xmm8, [rsp + 128]",
    "movups xmm9, [rsp + 144]",
    "movups xmm10, [rsp + 160]",
    "movups xmm11, [rsp + 176]",
    "movups xmm12, [rsp + 192]",
    "movups xmm13, [rsp + 208]",
    "movups xmm14, [rsp + 224]",
    "movups xmm15, [rsp + 240]",
    "mov rsp, rbp",
    "pop rbp",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rdi",
    "pop rsi",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "ret 16",
    // A TLB miss in baseline code: RDI is the CPU, RDX the page, RCX the entry's offset. On the stack: return
    // address, kind. Keeps the registers that values are in; the other entry is for code with values in vector registers.
    // The RIP stands behind the jump at the return address.
    ".globl brolga_fill",
    "brolga_fill:",
    "push rax",
    "push rcx",
    "push rdx",
    "push rsi",
    "push rdi",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "sub rsp, 8",
    "mov rsi, rdx",
    "mov rdx, rcx",
    "mov rcx, [rsp + 88]",
    "call {fill}",
    "add rsp, 8",
    "test eax, eax",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rdi",
    "pop rsi",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "jz 4f",
    "ret 8",
    "4:",
    "mov rax, [rsp]",
    "mov rax, [rax + 5]",
    "jmp brolga_abandon",
    ".globl brolga_fill_vectors",
    "brolga_fill_vectors:",
    "push rax",
    "push rcx",
    "push rdx",
    "push rsi",
    "push rdi",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "sub rsp, 264",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "movups [rsp + 16 * \\n], xmm\\n",
    ".endr",
    "mov rsi, rdx",
    "mov rdx, rcx",
    "mov rcx, [rsp + 344]",
    "call {fill}",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "movups xmm\\n, [rsp + 16 * \\n]",
    ".endr",
    "add rsp, 264",
    "test eax, eax",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rdi",
    "pop rsi",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "jz 4b",
    "ret 8",
    frame = const SHARED_FRAME,
    fill = sym tlb_fill,
    host_rsp = const offset_of!(CpuState, host_rsp),
    rip = const offset_of!(CpuState, rip),
    code_base = const offset_of!(CpuState, code_base),
    relative = const RELATIVE_RIP_BIT,
    page = const -(PAGE_SIZE as i64),
    interpret = const LEAVE_INTERPRET,
    miss = sym tlb_miss,
    jump_mask = const JUMP_ENTRIES - 1,
    jump_shift = const size_of::<JumpEntry>().trailing_zeros(),
    jump_cache = const offset_of!(CpuState, jump_cache),
    jump_check = const offset_of!(CpuState, jump_check),
    entry_rip = const offset_of!(JumpEntry, rip),
    entry_check = const offset_of!(JumpEntry, check),
    entry_code = const offset_of!(JumpEntry, code),
    entry_place = const offset_of!(JumpEntry, place),
    entry_size = const size_of::<JumpEntry>(),
    fetches = const offset_of!(CpuState, fetches),
    fetch_mask = const FETCH_ENTRIES - 1,
    fetch_shift = const size_of::<FetchEntry>().trailing_zeros(),
    fetch_page = const offset_of!(FetchEntry, page),
    fetch_gpa = const offset_of!(FetchEntry, gpa),
    fetch_check = const offset_of!(FetchEntry, check),
    generation = const GENERATION,
    code_epoch = const offset_of!(CpuState, code_epoch),
    lookup = const LEAVE_LOOKUP,
);

unsafe extern "C" {
    fn brolga_enter(cpu: *mut std::ffi::c_void, code: u64) -> u32;
    fn brolga_abandon();
    fn brolga_miss();
    fn brolga_seek();
    fn brolga_fill();
    fn brolga_fill_vectors();
}

impl Cpu {
    /// Runs generated code at host address `code` until it leaves.
    pub fn enter(&mut self, code: u64) -> Leave {
        // SAFETY: `code` is the entry of a region in the arena, which the tier keeps; regions access memory through
        // checked TLB entries and the state only, and return by the trampoline's frame.
        let left = unsafe { brolga_enter(std::ptr::from_mut(self).cast(), code) };
        if self.state.x87_lent != 0 {
            self.reclaim_x87();
        }
        match left {
            LEAVE_REQUEST => Leave::Request,
            LEAVE_FAULT => Leave::Fault,
            LEAVE_INTERPRET => Leave::Interpret,
            LEAVE_LINK => Leave::Link,
            LEAVE_HOT => Leave::Hot,
            LEAVE_ENTRY => Leave::Entry,
            LEAVE_PAGE => Leave::Page,
            _ => Leave::Lookup,
        }
    }
}

/// Routines that stubs jump to: for a TLB miss, to abandon a frame, to look in the jump cache; for a TLB miss in baseline
/// code, without and with values in vector registers.
pub fn stub_targets() -> [u64; 5] {
    [brolga_miss, brolga_abandon, brolga_seek, brolga_fill, brolga_fill_vectors].map(|f| f as *const () as u64)
}

/// What a thunk does: a jump to a routine, or leaving with a code.
pub enum ThunkBody {
    /// Jump to this address.
    Jump(u64),
    /// `mov eax, code; leave; ret`.
    Leave(u32),
}

/// Bodies of all [`Thunk`]s in order.
pub fn thunk_bodies() -> [ThunkBody; crate::lower::THUNKS] {
    let jump = |f: *const ()| ThunkBody::Jump(f as u64);
    let mut out: [ThunkBody; crate::lower::THUNKS] = std::array::from_fn(|_| ThunkBody::Leave(LEAVE_LOOKUP));
    out[Thunk::ExitSeek as usize] = jump(brolga_seek as *const ());
    out[Thunk::ExitRequest as usize] = ThunkBody::Leave(LEAVE_REQUEST);
    out[Thunk::ExitFault as usize] = ThunkBody::Leave(LEAVE_FAULT);
    out[Thunk::ExitPage as usize] = ThunkBody::Leave(LEAVE_PAGE);
    out[Thunk::ExitInterpret as usize] = ThunkBody::Leave(LEAVE_INTERPRET);
    out[Thunk::LendX87 as usize] = jump(lend_x87 as *const ());
    out[Thunk::Helper as usize] = jump(call_helper as *const ());
    out[Thunk::PureHelper as usize] = jump(call_pure as *const ());
    out[Thunk::Condition as usize] = jump(condition as *const ());
    out[Thunk::AllFlags as usize] = jump(all_flags as *const ());
    out[Thunk::SegAddr as usize] = jump(seg_addr as *const ());
    out[Thunk::Vec as usize] = jump(vec_op as *const ());
    out[Thunk::Fma as usize] = jump(fma as *const ());
    out[Thunk::VecToInt as usize] = jump(vec_to_int as *const ());
    out[Thunk::VecFromInt as usize] = jump(vec_from_int as *const ());
    out
}

/// # Safety
/// Called by generated code with the pointer that `enter` was given.
unsafe extern "C" fn tlb_miss(cpu: *mut Cpu, page: u64, kind: u64) {
    // SAFETY: `enter` holds the only reference and waits for generated code; nothing else uses it meanwhile.
    let cpu = unsafe { &mut *cpu };
    let (note, kind) = Note::split(kind as u32);
    note.carry_out(&mut cpu.state);
    if page & 0xfff != 0 {
        return;
    }
    let (index, access) = ((kind >> 1) as usize, if kind & 1 != 0 { Access::Write } else { Access::Read });
    let e = cpu.state.tlb.entry(index, page);
    // What hits was looked for in the entry of the page before it.
    cpu.crossings.just_now = page == if access == Access::Write { e.write } else { e.read };
    if !cpu.crossings.just_now {
        cpu.fill_quietly(index, page, access);
    }
}

/// Fills the TLB entry at byte offset `entry` of its table with the translation of `page`: 1 if the access hits now.
///
/// # Safety
/// As [`tlb_miss`].
unsafe extern "C" fn tlb_fill(cpu: *mut Cpu, page: u64, entry: u64, kind: u64) -> u64 {
    // SAFETY: as in `tlb_miss`.
    let cpu = unsafe { &mut *cpu };
    let (note, kind) = Note::split(kind as u32);
    note.carry_out(&mut cpu.state);
    // A misaligned atomic access, or one whose last byte lies on another page than its first.
    let (index, access) = ((kind >> 1) as usize, if kind & 1 != 0 { Access::Write } else { Access::Read });
    if page & (PAGE_SIZE - 1) != 0 || tlb::entry_offset(index, page) != entry {
        return 0;
    }
    cpu.fill_for(index, page, access) as u64
}

impl Cpu {
    fn leave_with(&mut self, result: Result<u64, Fault>) -> u64 {
        match result {
            Ok(v) => {
                self.state.helper_result = v;
                0
            }
            Err(fault) => {
                self.pending_fault = Some(fault);
                1
            }
        }
    }
}

/// # Safety
/// As [`tlb_miss`]. `id` -1: raise the exception that `a` encodes, see [`crate::ir::Op::Raise`].
unsafe extern "C" fn call_helper(cpu: *mut Cpu, id: u64, a: u64, b: u64, c: u64) -> u64 {
    // SAFETY: as in `tlb_miss`.
    let cpu = unsafe { &mut *cpu };
    if id == u64::MAX {
        let error = (a & 0x100 != 0).then_some((a >> 16) as u32);
        return cpu.leave_with(Err(Fault { vector: a as u8, error, address: 0 }));
    }
    let helper = helpers::helper(HelperId(id as u16));
    if helper.effects & effect::X87 != 0 && cpu.state.x87_lent != 0 {
        cpu.reclaim_x87();
    }
    let result = (helper.call)(cpu, a, b, c);
    if cpu.debugger.entered() {
        cpu.drop_watched();
    }
    if cpu.is_cut() {
        cpu.state.code_stale = 1;
    }
    cpu.leave_with(result)
}

/// # Safety
/// As [`tlb_miss`]. Result: the caller must load the host's x87 from the image in the state.
unsafe extern "C" fn lend_x87(cpu: *mut Cpu) -> u64 {
    // SAFETY: as in `tlb_miss`.
    unsafe { &mut *cpu }.lend_x87().into()
}

/// # Safety
/// As [`tlb_miss`].
unsafe extern "C" fn call_pure(cpu: *mut Cpu, id: u64, a: u64, b: u64, c: u64) -> u64 {
    // SAFETY: as in `tlb_miss`.
    let cpu = unsafe { &mut *cpu };
    (helpers::helper(HelperId(id as u16)).call)(cpu, a, b, c).unwrap_or(0)
}

extern "C" fn condition(cc: u64, cc_op: u64, res: u64, src: u64) -> u64 {
    flags::condition(cc as u16, cc_op as u32, res, src) as u64
}

extern "C" fn all_flags(cc_op: u64, res: u64, src: u64) -> u64 {
    flags::all(cc_op as u32, res, src)
}

/// # Safety
/// As [`tlb_miss`].
unsafe extern "C" fn seg_addr(cpu: *mut Cpu, imm: u64, offset: u64) -> u64 {
    // SAFETY: as in `tlb_miss`.
    let cpu = unsafe { &mut *cpu };
    let result = cpu.seg_addr(imm, offset);
    cpu.leave_with(result)
}

/// # Safety
/// As [`tlb_miss`].
unsafe extern "C" fn vec_op(cpu: *mut Cpu, op: u64, words: u64) {
    // SAFETY: as in `tlb_miss`.
    let state = unsafe { &mut (*cpu).state };
    let reg = |n: u64| (n & 0xffff) as usize % VECS;
    let Some(op) = VecOp::from_imm(op as i64) else { return };
    let (a, b) = (state.vecs[reg(words >> 16)], state.vecs[reg(words >> 32)]);
    state.vecs[reg(words)] = helpers::vec::vec_fn(op)(a, b, (words >> 48) as u8);
}

/// # Safety
/// As [`tlb_miss`].
unsafe extern "C" fn fma(cpu: *mut Cpu, op: u64, words: u64) {
    // SAFETY: as in `tlb_miss`.
    let state = unsafe { &mut (*cpu).state };
    let reg = |n: u32| (words >> (16 * n) & 0xffff) as usize % VECS;
    let Some(op) = FmaOp::from_imm(op as i64) else { return };
    let (a, b, c) = (state.vecs[reg(1)], state.vecs[reg(2)], state.vecs[reg(3)]);
    state.vecs[reg(0)] = helpers::vec::fma_fn(op)(a, b, c);
}

/// # Safety
/// As [`tlb_miss`].
unsafe extern "C" fn vec_to_int(cpu: *mut Cpu, op: u64, words: u64) -> u64 {
    // SAFETY: as in `tlb_miss`.
    let state = unsafe { &mut (*cpu).state };
    let reg = |n: u64| (n & 0xffff) as usize % VECS;
    let Some(op) = VecToInt::from_imm(op as i64) else { return 0 };
    let (a, b) = (state.vecs[reg(words)], state.vecs[reg(words >> 16)]);
    helpers::vec::vec_to_int_fn(op)(a, b, (words >> 32) as u8)
}

/// # Safety
/// As [`tlb_miss`].
unsafe extern "C" fn vec_from_int(cpu: *mut Cpu, op: u64, words: u64, b: u64) {
    // SAFETY: as in `tlb_miss`.
    let state = unsafe { &mut (*cpu).state };
    let reg = |n: u64| (n & 0xffff) as usize % VECS;
    let Some(op) = VecFromInt::from_imm(op as i64) else { return };
    let a = state.vecs[reg(words >> 16)];
    state.vecs[reg(words)] = helpers::vec::vec_from_int_fn(op)(a, b, (words >> 32) as u8);
}
