//! Text form of the IR, for logs and tests. One operation a line; see `print`.

use super::op::{Field, Op};
use super::vecop::{FmaOp, VecFromInt, VecOp, VecToInt};
use super::{Block, Inst, Ty, VVal, Val};
use crate::helpers::{self, HelperId};
use crate::state::CpuState;
use std::fmt::Write;
use std::mem::offset_of;

pub(super) const GPRS: [&str; 16] =
    ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];

/// The whole block: a header line, then `OFF: d = op.ty a, b, c #imm` lines.
pub fn print(block: &Block) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "block {:#x} mode {:#x} len {} count {}", block.rip, block.mode, block.len, block.count);
    for i in &block.insts {
        let _ = writeln!(out, "  {:3}: {}", i.off, print_inst(i));
    }
    out
}

/// One operation.
pub fn print_inst(i: &Inst) -> String {
    let info = i.op.info();
    let mut out = String::new();
    let [d, a, b, c] = info.fields;
    if d != Field::No && !(d == Field::IntOpt && i.d == Val::NONE.0) {
        let _ = write!(out, "{} = ", operand(d, i.d));
    }
    out.push_str(info.name);
    if info.typed {
        let _ = write!(out, ".{}", ty_name(i.ty));
    }
    if let Some(sub) = sub_name(i) {
        let _ = write!(out, " {sub}");
    }
    let mut sep = " ";
    for (field, n) in [(a, i.a), (b, i.b), (c, i.c)] {
        if field != Field::No {
            let _ = write!(out, "{sep}{}", operand(field, n));
            sep = ", ";
        }
    }
    if matches!(i.op, Op::GetState | Op::SetState | Op::VGetState | Op::VSetState) {
        let _ = write!(out, "{sep}{}", state_place(i.imm));
    } else if sub_name(i).is_none() && (info.imm || i.a == Val::IMM.0 || i.b == Val::IMM.0) {
        let _ = write!(out, " #{}", i.imm);
    }
    out
}

pub(super) fn ty_name(ty: Ty) -> &'static str {
    ["i8", "i16", "i32", "i64"][ty as usize]
}

/// Name behind `imm`, for operations whose constant is a sub-operation or a helper.
fn sub_name(i: &Inst) -> Option<&'static str> {
    match i.op {
        Op::Vec => VecOp::from_imm(i.imm).map(VecOp::name),
        Op::Fma => FmaOp::from_imm(i.imm).map(FmaOp::name),
        Op::VecToInt => VecToInt::from_imm(i.imm).map(VecToInt::name),
        Op::VecFromInt => VecFromInt::from_imm(i.imm).map(VecFromInt::name),
        Op::Call => helpers::exists(i.imm as u16).then(|| helpers::helper(HelperId(i.imm as u16)).name),
        _ => None,
    }
}

fn operand(field: Field, n: u16) -> String {
    match field {
        Field::Const => format!("{n}"),
        Field::Vec if n < VVal::TEMP0 => format!("x{n}"),
        Field::Vec => format!("w{}", n - VVal::TEMP0),
        _ if n == Val::IMM.0 => "imm".into(),
        _ if n == Val::NONE.0 => "none".into(),
        _ if n < 16 => GPRS[n as usize].into(),
        _ => format!("t{}", n - Val::TEMP0),
    }
}

macro_rules! fields {
    ($($name:ident),*) => { &[$((stringify!($name), offset_of!(CpuState, $name)),)*] };
}

/// Fields of the state by name and offset.
const FIELDS: &[(&str, usize)] = fields![
    vals,
    rip,
    code_base,
    cc_op,
    mode,
    cc_res,
    cc_src,
    rflags,
    helper_result,
    branch_rip,
    segs,
    ldtr,
    tr,
    gdtr,
    idtr,
    cr0,
    cr2,
    cr3,
    cr4,
    efer,
    xcr0,
    dr,
    mxcsr,
    shadow,
    halted,
    nmi_blocked,
    vecs,
    x87,
    msr
];

/// `@FIELD` or `@FIELD+BYTES`.
fn state_place(offset: i64) -> String {
    let at = |f: &(&str, usize)| f.1 as i64;
    let inside = (0..size_of::<CpuState>() as i64).contains(&offset);
    match FIELDS.iter().filter(|f| inside && at(f) <= offset).max_by_key(|f| at(f)) {
        Some(f) if at(f) == offset => format!("@{}", f.0),
        Some(f) => format!("@{}+{}", f.0, offset - at(f)),
        None => format!("#{offset}"),
    }
}

/// Offset of a field of the state by name.
#[cfg(any(test, feature = "testing"))]
pub(super) fn state_field(name: &str) -> Option<i64> {
    FIELDS.iter().find(|f| f.0 == name).map(|f| f.1 as i64)
}
