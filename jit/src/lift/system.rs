//! Semantics of the system family: privilege checks that the mode word decides, then a helper.
//!
//! What changes the mode, the mappings, or must be noticed by the run loop (HLT) leaves through the dispatcher.

use super::operand::{gpr, seg_base_offset, seg_selector_offset, segment_number};
use super::stack::stack_operand;
use super::{Flow, Lifter};
use crate::helpers::{HelperId, system as helper};
use crate::ir::op::Op;
use crate::ir::{Ty, Val, mem};
use crate::mmu::tlb::SUPERVISOR_SMAP;
use crate::state::{CpuState, Msrs, Segment, TableRegister, mode, reg};
use crate::system::io::StringIo;
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use std::mem::offset_of;

/// Lifts `i` if it belongs to this family.
pub fn lift(l: &mut Lifter, i: &Instruction) -> Option<Flow> {
    flags_and_interrupts(l, i)
        .or_else(|| far_transfers(l, i))
        .or_else(|| segments(l, i))
        .or_else(|| tables(l, i))
        .or_else(|| registers(l, i))
        .or_else(|| caches_and_waits(l, i))
        .or_else(|| counters(l, i))
        .or_else(|| ports(l, i))
}

impl Lifter<'_> {
    /// What clears IF closes a window in which interrupts were possible: one that waits must get in before it, as between
    /// `sti`, `nop` and `cli` (SDM 2B, STI). This value tells its helper whether it is to look for one. If there is one, the
    /// instruction has not begun, and control comes here again after it.
    fn watch(&mut self) -> Val {
        self.b.iconst(self.unwatched.into())
    }

    fn cli(&mut self) -> Flow {
        let watch = self.watch();
        let waiting = self.b.call(helper::CLI, &[watch]);
        if !self.unwatched {
            return Flow::Next;
        }
        self.b.br(waiting, self.rip);
        Flow::End
    }

    fn popf(&mut self, ty: Ty) -> Flow {
        let v = self.peek(ty, 0);
        let bytes = self.b.iconst(ty.bytes() as i64);
        let watch = self.watch();
        let waiting = self.b.call(helper::POPF, &[v, bytes, watch]);
        if !self.unwatched {
            self.move_sp(ty.bytes() as i64);
            return Flow::EndAfter;
        }
        let (nothing, here, next) = (self.b.iconst(0), self.rip_value(self.rip), self.next_rip());
        let delta = self.b.select(Ty::I64, waiting, nothing, bytes);
        self.move_sp(delta);
        let rip = self.b.select(Ty::I64, waiting, here, next);
        self.b.set_state(Ty::I64, offset_of!(CpuState, rip), rip);
        self.b.dispatch();
        Flow::End
    }
}

fn flags_and_interrupts(l: &mut Lifter, i: &Instruction) -> Option<Flow> {
    Some(match i.mnemonic() {
        Mnemonic::Cli => l.cli(),
        Mnemonic::Sti => {
            l.b.call(helper::STI, &[]);
            if l.has(mode::COUNTED) {
                // The shadow ends in the same place whatever block the instruction behind is in.
                return Some(Flow::EndAfter);
            }
            l.shadow = true;
            Flow::Next
        }
        Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => {
            let ty = stack_operand(i);
            let bytes = l.b.iconst(ty.bytes() as i64);
            let v = l.b.call(helper::PUSHF, &[bytes]);
            l.push(ty, v);
            Flow::Next
        }
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => l.popf(stack_operand(i)),
        Mnemonic::Iret => l.transfer_width(helper::IRET, Ty::I16),
        Mnemonic::Iretd => l.transfer_width(helper::IRET, Ty::I32),
        Mnemonic::Iretq => l.transfer_width(helper::IRET, Ty::I64),
        Mnemonic::Int => l.interrupt(helper::INT, i.immediate8()),
        Mnemonic::Int3 => l.interrupt(helper::INT_TRAP, 3),
        Mnemonic::Into => l.interrupt(helper::INT_TRAP, 4),
        Mnemonic::Int1 => {
            let (next, watch) = (l.next_rip(), l.watch());
            l.transfer(helper::INT1, &[next, watch])
        }
        Mnemonic::Syscall => {
            let next = l.next_rip();
            let watch = l.watch();
            l.hot_transfer(helper::SYSCALL, &[next, watch])
        }
        Mnemonic::Sysret => l.transfer_flag(helper::SYSRET, 0),
        Mnemonic::Sysretq => l.transfer_flag(helper::SYSRET, 1),
        Mnemonic::Sysenter => {
            let watch = l.watch();
            l.transfer(helper::SYSENTER, &[watch])
        }
        Mnemonic::Sysexit => l.transfer_flag(helper::SYSEXIT, 0),
        Mnemonic::Sysexitq => l.transfer_flag(helper::SYSEXIT, 1),
        Mnemonic::Stac => l.set_ac(true),
        Mnemonic::Clac => l.set_ac(false),
        _ => return None,
    })
}

fn far_transfers(l: &mut Lifter, i: &Instruction) -> Option<Flow> {
    let jump = match i.mnemonic() {
        Mnemonic::Jmp => true,
        Mnemonic::Call => false,
        Mnemonic::Retf => return Some(l.far_return(i)),
        _ => return None,
    };
    let (ty, selector, offset) = match i.op0_kind() {
        OpKind::FarBranch16 | OpKind::FarBranch32 => {
            let wide = i.op0_kind() == OpKind::FarBranch32;
            let offset = if wide { i.far_branch32() as i64 } else { i.far_branch16() as i64 };
            let selector = l.b.iconst(i.far_branch_selector() as i64);
            (if wide { Ty::I32 } else { Ty::I16 }, selector, l.b.iconst(offset))
        }
        OpKind::Memory => {
            let ty = match i.code() {
                Code::Jmp_m1616 | Code::Call_m1616 => Ty::I16,
                Code::Jmp_m1632 | Code::Call_m1632 => Ty::I32,
                Code::Jmp_m1664 | Code::Call_m1664 => Ty::I64,
                _ => return None,
            };
            let (offset, selector) = l.far_pointer(i, ty);
            (ty, selector, offset)
        }
        _ => return None,
    };
    let next = l.next_rip();
    if jump {
        return Some(l.transfer(helper::FAR_JMP, &[selector, offset, next]));
    }
    let a = l.b.op2(Op::Or, Ty::I64, selector, (ty.bytes() as i64) << 16);
    Some(l.transfer(helper::FAR_CALL, &[a, offset, next]))
}

fn segments(l: &mut Lifter, i: &Instruction) -> Option<Flow> {
    let sreg = |n: u32| i.op_kind(n) == OpKind::Register && i.op_register(n).is_segment_register();
    Some(match i.mnemonic() {
        Mnemonic::Mov if i.op_count() == 2 && sreg(0) => {
            let seg = segment_number(i.op0_register());
            if i.op0_register() == Register::CS {
                return Some(l.undefined());
            }
            let v = if i.op1_kind() == OpKind::Memory {
                let m = l.mem(i, 2, false);
                l.load(Ty::I16, m)
            } else {
                l.read_op(i, 1)
            };
            l.load_segment(seg, v, seg == reg::SS);
            l.after_segment(seg)
        }
        Mnemonic::Mov if i.op_count() == 2 && sreg(1) => {
            let seg = segment_number(i.op1_register());
            l.store_word(i, seg_selector_offset(seg));
            Flow::Next
        }
        Mnemonic::Push if sreg(0) => {
            let v = l.b.get_state(Ty::I16, seg_selector_offset(segment_number(i.op0_register())));
            l.push(stack_operand(i), v);
            Flow::Next
        }
        Mnemonic::Pop if sreg(0) => {
            let seg = segment_number(i.op0_register());
            let ty = stack_operand(i);
            let v = l.peek(ty, 0);
            l.load_segment(seg, v, seg == reg::SS);
            l.move_sp(ty.bytes() as i64);
            l.after_segment(seg)
        }
        Mnemonic::Lds => l.load_far(i, reg::DS),
        Mnemonic::Les => l.load_far(i, reg::ES),
        Mnemonic::Lfs => l.load_far(i, reg::FS),
        Mnemonic::Lgs => l.load_far(i, reg::GS),
        Mnemonic::Lss => l.load_far(i, reg::SS),
        Mnemonic::Rdfsbase => l.read_base(i, reg::FS),
        Mnemonic::Rdgsbase => l.read_base(i, reg::GS),
        Mnemonic::Wrfsbase => l.write_base(i, reg::FS),
        Mnemonic::Wrgsbase => l.write_base(i, reg::GS),
        Mnemonic::Swapgs => {
            if l.cpl() != 0 {
                return Some(l.general_protection());
            }
            let kernel = offset_of!(CpuState, msr) + offset_of!(Msrs, kernel_gs_base);
            let a = l.b.get_state(Ty::I64, seg_base_offset(reg::GS));
            let b = l.b.get_state(Ty::I64, kernel);
            l.b.set_state(Ty::I64, seg_base_offset(reg::GS), b);
            l.b.set_state(Ty::I64, kernel, a);
            Flow::Next
        }
        _ => return None,
    })
}

/// Descriptor-table registers and instructions that look at descriptors.
fn tables(l: &mut Lifter, i: &Instruction) -> Option<Flow> {
    let gdtr = offset_of!(CpuState, gdtr);
    let idtr = offset_of!(CpuState, idtr);
    let selector = offset_of!(Segment, selector);
    let protected_only = matches!(
        i.mnemonic(),
        Mnemonic::Lldt
            | Mnemonic::Ltr
            | Mnemonic::Sldt
            | Mnemonic::Str
            | Mnemonic::Lar
            | Mnemonic::Lsl
            | Mnemonic::Verr
            | Mnemonic::Verw
            | Mnemonic::Arpl
    );
    if protected_only && (!l.has(mode::PE) || l.has(mode::VM86)) {
        return Some(l.undefined());
    }
    Some(match i.mnemonic() {
        Mnemonic::Lgdt => l.load_table(i, helper::LGDT),
        Mnemonic::Lidt => l.load_table(i, helper::LIDT),
        Mnemonic::Sgdt => l.store_table(i, gdtr),
        Mnemonic::Sidt => l.store_table(i, idtr),
        Mnemonic::Sldt => l.store_guarded(i, offset_of!(CpuState, ldtr) + selector),
        Mnemonic::Str => l.store_guarded(i, offset_of!(CpuState, tr) + selector),
        Mnemonic::Smsw => l.store_guarded(i, offset_of!(CpuState, cr0)),
        Mnemonic::Lldt | Mnemonic::Ltr | Mnemonic::Lmsw => {
            if l.cpl() != 0 {
                return Some(l.general_protection());
            }
            let v = l.word_operand(i, 0);
            let id = match i.mnemonic() {
                Mnemonic::Lldt => helper::LLDT,
                Mnemonic::Ltr => helper::LTR,
                _ => helper::LMSW,
            };
            l.b.call(id, &[v]);
            Flow::EndAfter
        }
        Mnemonic::Lar | Mnemonic::Lsl => {
            let v = l.word_operand(i, 1);
            let Some(g) = gpr(i.op0_register()) else { return Some(l.undefined()) };
            let bytes = l.b.iconst(g.ty.bytes() as i64);
            let id = if i.mnemonic() == Mnemonic::Lar { helper::LAR } else { helper::LSL };
            // The helper gives the whole register: the old one where nothing was found.
            let r = l.b.call(id, &[v, Val::gpr(g.n), bytes]);
            l.b.mov_to(Ty::I64, Val::gpr(g.n), r);
            Flow::Next
        }
        Mnemonic::Verr | Mnemonic::Verw => {
            let v = l.word_operand(i, 0);
            let write = l.b.iconst((i.mnemonic() == Mnemonic::Verw) as i64);
            l.b.call(helper::VERIFY, &[v, write]);
            Flow::Next
        }
        Mnemonic::Arpl => {
            let src = l.read_reg(i.op1_register());
            if i.op0_kind() == OpKind::Memory {
                let m = l.mem(i, 2, true);
                let old = l.load_for_write(Ty::I16, m);
                let new = l.b.call(helper::ARPL, &[old, src]);
                l.store(Ty::I16, m, new);
            } else {
                let old = l.read_reg(i.op0_register());
                let new = l.b.call(helper::ARPL, &[old, src]);
                if let Some(g) = gpr(i.op0_register()) {
                    l.write_gpr(super::operand::Gpr { ty: Ty::I16, ..g }, new);
                }
            }
            Flow::Next
        }
        _ => return None,
    })
}

/// MOV to and from control and debug registers, CLTS, XGETBV, XSETBV.
fn registers(l: &mut Lifter, i: &Instruction) -> Option<Flow> {
    let special = |r: Register| r.is_cr() || r.is_dr() || r.is_tr();
    match i.mnemonic() {
        Mnemonic::Mov if i.op0_kind() == OpKind::Register && special(i.op0_register()) => Some(l.write_special(i)),
        Mnemonic::Mov if i.op1_kind() == OpKind::Register && special(i.op1_register()) => Some(l.read_special(i)),
        Mnemonic::Clts => Some(l.privileged(helper::CLTS, &[])),
        Mnemonic::Xgetbv => {
            let v = l.b.call(helper::XGETBV, &[Val::gpr(reg::RCX)]);
            l.write_edx_eax(v);
            Some(Flow::Next)
        }
        Mnemonic::Xsetbv if !l.has(mode::OSXSAVE) => Some(l.undefined()),
        Mnemonic::Xsetbv => {
            let r = [Val::gpr(reg::RCX), Val::gpr(reg::RAX), Val::gpr(reg::RDX)];
            Some(l.privileged(helper::XSETBV, &r))
        }
        _ => None,
    }
}

/// TLB and cache maintenance, HLT, MONITOR, MWAIT.
fn caches_and_waits(l: &mut Lifter, i: &Instruction) -> Option<Flow> {
    let privileged = matches!(
        i.mnemonic(),
        Mnemonic::Invlpg | Mnemonic::Invpcid | Mnemonic::Invd | Mnemonic::Wbinvd | Mnemonic::Wbnoinvd | Mnemonic::Hlt
    );
    if privileged && l.cpl() != 0 {
        return Some(l.general_protection());
    }
    Some(match i.mnemonic() {
        Mnemonic::Invlpg => {
            let m = l.mem(i, 1, false);
            let address = l.flat_address(m);
            l.b.call(helper::INVLPG, &[address]);
            Flow::EndAfter
        }
        Mnemonic::Invpcid => {
            let kind = l.read_op(i, 0);
            let kind = if l.long64() { kind } else { l.b.op1(Op::Mov, Ty::I32, kind) };
            let m = l.mem(i, 16, false);
            let low = l.load(Ty::I64, m);
            let high = l.b.load(Ty::I64, m.addr, m.disp.wrapping_add(8), m.flags);
            l.b.call(helper::INVPCID, &[kind, low, high]);
            Flow::EndAfter
        }
        Mnemonic::Invd | Mnemonic::Wbinvd | Mnemonic::Wbnoinvd => Flow::Next,
        Mnemonic::Hlt => {
            l.b.call(helper::HLT, &[]);
            Flow::EndAfter
        }
        Mnemonic::Monitor | Mnemonic::Mwait if l.cpl() != 0 => l.undefined(),
        Mnemonic::Monitor => {
            let ty = match i.code() {
                Code::Monitorw => Ty::I16,
                Code::Monitord => Ty::I32,
                _ => Ty::I64,
            };
            let offset = l.b.op1(Op::Mov, ty, Val::gpr(reg::RAX));
            let seg = if i.segment_prefix() == Register::None { reg::DS } else { segment_number(i.segment_prefix()) };
            let address = l.segmented(seg, offset, 1, false);
            l.b.call(helper::MONITOR, &[address, Val::gpr(reg::RCX)]);
            Flow::Next
        }
        Mnemonic::Mwait => {
            l.b.call(helper::MWAIT, &[Val::gpr(reg::RCX)]);
            Flow::EndAfter
        }
        _ => return None,
    })
}

/// MSRs, counters, CPUID.
fn counters(l: &mut Lifter, i: &Instruction) -> Option<Flow> {
    let (rax, rcx, rdx) = (Val::gpr(reg::RAX), Val::gpr(reg::RCX), Val::gpr(reg::RDX));
    Some(match i.mnemonic() {
        Mnemonic::Rdmsr | Mnemonic::Wrmsr if l.cpl() != 0 => l.general_protection(),
        Mnemonic::Rdmsr => {
            let v = l.b.call(helper::RDMSR, &[rcx]);
            l.write_edx_eax(v);
            Flow::Next
        }
        Mnemonic::Wrmsr => {
            l.b.call(helper::WRMSR, &[rcx, rax, rdx]);
            Flow::EndAfter
        }
        Mnemonic::Rdtsc | Mnemonic::Rdtscp => {
            let v = l.b.call(helper::RDTSC, &[]);
            l.write_edx_eax(v);
            if i.mnemonic() == Mnemonic::Rdtscp {
                let aux = l.b.get_state(Ty::I32, offset_of!(CpuState, msr) + offset_of!(Msrs, tsc_aux));
                l.b.mov_to(Ty::I32, rcx, aux);
            }
            Flow::Next
        }
        Mnemonic::Rdpid => {
            let aux = l.b.get_state(Ty::I64, offset_of!(CpuState, msr) + offset_of!(Msrs, tsc_aux));
            l.write_reg(i.op0_register(), aux);
            Flow::Next
        }
        Mnemonic::Rdpmc => {
            let v = l.b.call(helper::RDPMC, &[rcx]);
            l.write_edx_eax(v);
            Flow::Next
        }
        Mnemonic::Cpuid => {
            l.b.call(helper::CPUID, &[rax, rcx]);
            Flow::EndAfter
        }
        _ => return None,
    })
}

fn ports(l: &mut Lifter, i: &Instruction) -> Option<Flow> {
    Some(match i.mnemonic() {
        Mnemonic::In => {
            let Some(g) = gpr(i.op0_register()) else { return Some(l.undefined()) };
            let port = l.port(i, 1);
            let bytes = l.b.iconst(g.ty.bytes() as i64);
            let v = l.b.call(helper::IN, &[port, bytes]);
            l.write_gpr(g, v);
            Flow::EndAfter
        }
        Mnemonic::Out => {
            let Some(g) = gpr(i.op1_register()) else { return Some(l.undefined()) };
            let port = l.port(i, 0);
            let bytes = l.b.iconst(g.ty.bytes() as i64);
            l.b.call(helper::OUT, &[port, bytes, Val::gpr(g.n)]);
            Flow::EndAfter
        }
        Mnemonic::Insb => l.string_io(i, Ty::I8, true),
        Mnemonic::Insw => l.string_io(i, Ty::I16, true),
        Mnemonic::Insd => l.string_io(i, Ty::I32, true),
        Mnemonic::Outsb => l.string_io(i, Ty::I8, false),
        Mnemonic::Outsw => l.string_io(i, Ty::I16, false),
        Mnemonic::Outsd => l.string_io(i, Ty::I32, false),
        _ => return None,
    })
}

impl Lifter<'_> {
    /// RIP of the next instruction as a value.
    fn next_rip(&mut self) -> Val {
        self.rip_value(self.next)
    }

    /// A helper that sets RIP.
    fn transfer(&mut self, id: HelperId, args: &[Val]) -> Flow {
        self.b.call(id, args);
        self.b.dispatch();
        Flow::End
    }

    /// As [`Lifter::transfer`] where the way is hot: on through the jump cache, which knows modes apart.
    fn hot_transfer(&mut self, id: HelperId, args: &[Val]) -> Flow {
        if !self.long64() {
            return self.transfer(id, args);
        }
        self.b.call(id, args);
        let rip = self.b.get_state(Ty::I64, offset_of!(CpuState, rip));
        self.b.jmp_ind(rip);
        Flow::End
    }

    /// STAC and CLAC: only with SMAP do they change how memory is accessed.
    fn set_ac(&mut self, on: bool) -> Flow {
        if self.cpl() != 0 {
            return self.undefined();
        }
        let value = self.b.iconst(on as i64);
        self.b.call(helper::SET_AC, &[value]);
        let smap = (self.mode & mode::MMU) >> mode::MMU_SHIFT == SUPERVISOR_SMAP as u32;
        if smap != on {
            return Flow::Next;
        }
        let next = self.next_rip();
        self.b.jmp_ind(next);
        Flow::End
    }

    fn transfer_width(&mut self, id: HelperId, ty: Ty) -> Flow {
        let bytes = self.b.iconst(ty.bytes() as i64);
        let (next, watch) = (self.next_rip(), self.watch());
        self.hot_transfer(id, &[bytes, next, watch])
    }

    fn transfer_flag(&mut self, id: HelperId, flag: i64) -> Flow {
        let flag = self.b.iconst(flag);
        self.hot_transfer(id, &[flag])
    }

    fn interrupt(&mut self, id: HelperId, vector: u8) -> Flow {
        let vector = self.b.iconst(vector as i64);
        let (next, watch) = (self.next_rip(), self.watch());
        self.transfer(id, &[vector, next, watch])
    }

    /// A helper that CPL 0 alone may call, with effect on the mode.
    fn privileged(&mut self, id: HelperId, args: &[Val]) -> Flow {
        if self.cpl() != 0 {
            return self.general_protection();
        }
        self.b.call(id, args);
        Flow::EndAfter
    }

    fn far_return(&mut self, i: &Instruction) -> Flow {
        let ty = match i.code() {
            Code::Retfw | Code::Retfw_imm16 => Ty::I16,
            Code::Retfd | Code::Retfd_imm16 => Ty::I32,
            _ => Ty::I64,
        };
        let release = if i.op_count() > 0 { i.immediate16() as i64 } else { 0 };
        let bytes = self.b.iconst(ty.bytes() as i64);
        let release = self.b.iconst(release);
        self.transfer(helper::FAR_RET, &[bytes, release])
    }

    /// Offset (`ty` wide) and selector of the far pointer in memory.
    fn far_pointer(&mut self, i: &Instruction, ty: Ty) -> (Val, Val) {
        let bytes = ty.bytes() as i64;
        let m = self.mem(i, bytes as usize + 2, false);
        let offset = self.load(ty, m);
        let selector = self.b.load(Ty::I16, m.addr, m.disp.wrapping_add(bytes), m.flags);
        (offset, selector)
    }

    fn load_far(&mut self, i: &Instruction, seg: usize) -> Flow {
        let Some(g) = gpr(i.op0_register()) else { return self.undefined() };
        let (offset, selector) = self.far_pointer(i, g.ty);
        // SDM 3A 6.8.3: only MOV and POP to SS hold events off.
        self.load_segment(seg, selector, false);
        self.write_gpr(g, offset);
        self.after_segment(seg)
    }

    /// `hold`: events wait for one instruction.
    fn load_segment(&mut self, seg: usize, selector: Val, hold: bool) {
        let (n, hold) = (self.b.iconst(seg as i64), self.b.iconst(hold as i64));
        self.b.call(helper::LOAD_SEG, &[n, selector, hold]);
    }

    /// In 64-bit mode only SS matters to the mode word.
    fn after_segment(&mut self, seg: usize) -> Flow {
        if self.long64() && seg != reg::SS { Flow::Next } else { Flow::EndAfter }
    }

    /// Selector-sized operand `n`.
    fn word_operand(&mut self, i: &Instruction, n: u32) -> Val {
        if i.op_kind(n) == OpKind::Memory {
            let m = self.mem(i, 2, false);
            return self.load(Ty::I16, m);
        }
        self.read_op(i, n)
    }

    /// Stores a field of the state to operand 0: 16 bits to memory, register-wide (zero-extended) to a register.
    fn store_word(&mut self, i: &Instruction, offset: usize) {
        let v = self.b.get_state(Ty::I16, offset);
        match gpr(i.op0_register()) {
            Some(g) if i.op0_kind() == OpKind::Register => self.write_gpr(g, v),
            _ => {
                let m = self.mem(i, 2, true);
                self.store(Ty::I16, m, v);
            }
        }
    }

    fn check_umip(&mut self) {
        if self.cpl() != 0 {
            self.b.call(helper::CHECK_UMIP, &[]);
        }
    }

    /// SLDT, STR, SMSW.
    fn store_guarded(&mut self, i: &Instruction, offset: usize) -> Flow {
        self.check_umip();
        let whole = i.mnemonic() == Mnemonic::Smsw && i.op0_kind() == OpKind::Register;
        if let (true, Some(g)) = (whole, gpr(i.op0_register())) {
            let v = self.b.get_state(g.ty, offset);
            self.write_gpr(g, v);
        } else {
            self.store_word(i, offset);
        }
        Flow::Next
    }

    fn load_table(&mut self, i: &Instruction, id: HelperId) -> Flow {
        if self.cpl() != 0 {
            return self.general_protection();
        }
        let ty = if self.long64() { Ty::I64 } else { Ty::I32 };
        let m = self.mem(i, ty.bytes() as usize + 2, false);
        let limit = self.load(Ty::I16, m);
        let mut base = self.b.load(ty, m.addr, m.disp.wrapping_add(2), m.flags);
        if matches!(i.code(), Code::Lgdt_m1632_16 | Code::Lidt_m1632_16) {
            // SDM 2A, LGDT: a 16-bit operand size takes 24 bits of base.
            base = self.b.op2(Op::And, Ty::I32, base, 0xff_ffff);
        }
        self.b.call(id, &[limit, base]);
        Flow::Next
    }

    fn store_table(&mut self, i: &Instruction, offset: usize) -> Flow {
        self.check_umip();
        let ty = if self.long64() { Ty::I64 } else { Ty::I32 };
        let m = self.mem(i, ty.bytes() as usize + 2, true);
        let limit = self.b.get_state(Ty::I16, offset + offset_of!(TableRegister, limit));
        let base = self.b.get_state(ty, offset + offset_of!(TableRegister, base));
        // Both stores are checked before the first.
        self.load_for_write(Ty::I16, m);
        self.b.load(ty, m.addr, m.disp.wrapping_add(2), m.flags | mem::WRITE_INTENT);
        self.store(Ty::I16, m, limit);
        self.b.store(ty, m.addr, m.disp.wrapping_add(2), base, m.flags);
        Flow::Next
    }

    fn write_special(&mut self, i: &Instruction) -> Flow {
        let r = i.op0_register();
        if r.is_tr() || (r.is_cr() && !matches!(r.number(), 0 | 2 | 3 | 4 | 8)) || r.number() > 8 {
            return self.undefined();
        }
        if self.cpl() != 0 {
            return self.general_protection();
        }
        let ty = if self.long64() { Ty::I64 } else { Ty::I32 };
        let v = self.read_reg(i.op1_register());
        let v = self.b.op1(Op::Mov, ty, v);
        let n = self.b.iconst(r.number() as i64);
        self.b.call(if r.is_cr() { helper::WRITE_CR } else { helper::WRITE_DR }, &[n, v]);
        Flow::EndAfter
    }

    fn read_special(&mut self, i: &Instruction) -> Flow {
        let r = i.op1_register();
        if r.is_tr() || (r.is_cr() && !matches!(r.number(), 0 | 2 | 3 | 4 | 8)) || r.number() > 8 {
            return self.undefined();
        }
        if self.cpl() != 0 {
            return self.general_protection();
        }
        let field = match r.number() {
            0 => offset_of!(CpuState, cr0),
            2 => offset_of!(CpuState, cr2),
            3 => offset_of!(CpuState, cr3),
            _ => offset_of!(CpuState, cr4),
        };
        let v = if r.is_cr() && r.number() != 8 {
            self.b.get_state(Ty::I64, field)
        } else {
            let n = self.b.iconst(r.number() as i64);
            self.b.call(if r.is_cr() { helper::READ_CR } else { helper::READ_DR }, &[n])
        };
        self.write_reg(i.op0_register(), v);
        Flow::Next
    }

    fn read_base(&mut self, i: &Instruction, seg: usize) -> Flow {
        self.b.call(helper::CHECK_FSGSBASE, &[]);
        let v = self.b.get_state(Ty::I64, seg_base_offset(seg));
        self.write_reg(i.op0_register(), v);
        Flow::Next
    }

    fn write_base(&mut self, i: &Instruction, seg: usize) -> Flow {
        let Some(g) = gpr(i.op0_register()) else { return self.undefined() };
        let v = self.b.op1(Op::Mov, g.ty, Val::gpr(g.n));
        let n = self.b.iconst(seg as i64);
        self.b.call(helper::WRITE_BASE, &[n, v]);
        Flow::Next
    }

    /// Splits a 64-bit result into EDX:EAX.
    fn write_edx_eax(&mut self, v: Val) {
        let high = self.b.op2(Op::Shr, Ty::I64, v, 32);
        self.b.mov_to(Ty::I32, Val::gpr(reg::RAX), v);
        self.b.mov_to(Ty::I32, Val::gpr(reg::RDX), high);
    }

    /// Port number: DX or an immediate byte.
    fn port(&mut self, i: &Instruction, n: u32) -> Val {
        if i.op_kind(n) == OpKind::Register {
            self.b.op1(Op::Mov, Ty::I16, Val::gpr(reg::RDX))
        } else {
            self.b.iconst(i.immediate8() as i64)
        }
    }

    fn string_io(&mut self, i: &Instruction, ty: Ty, input: bool) -> Flow {
        let kind = if input { i.op0_kind() } else { i.op1_kind() };
        let address = match kind {
            OpKind::MemoryESDI | OpKind::MemorySegSI => Ty::I16,
            OpKind::MemoryESEDI | OpKind::MemorySegESI => Ty::I32,
            _ => Ty::I64,
        };
        let segment = if input { reg::ES } else { segment_number(i.memory_segment()) };
        let io = StringIo { ty, address, segment, rep: i.has_rep_prefix() || i.has_repne_prefix() };
        let io = self.b.iconst(io.pack());
        let next = self.next_rip();
        self.transfer(if input { helper::INS } else { helper::OUTS }, &[io, next])
    }
}
