//! The verifier: what every block must satisfy before a tier sees it.

use super::build::vec_bytes;
use super::op::{Field, Traits};
use super::vecop::{FmaOp, VecFromInt, VecOp, VecToInt};
use super::{Block, Inst, Op, VVal, Val};
use crate::helpers;
use crate::state::{HIGH, VALS};

/// Checks a block. The error says which operation breaks which rule.
pub fn check(block: &Block) -> Result<(), String> {
    let mut defined: u64 = 0xffff;
    let mut vec_defined: u64 = 0xffff_ffff;
    let mut off = None;
    let last = block.insts.len().checked_sub(1).ok_or("empty block")?;
    for (n, i) in block.insts.iter().enumerate() {
        let fail = |why: &str| Err(format!("operation {n} ({}): {why}", super::text::print_inst(i)));
        if off != Some(i.off) {
            // Temporaries live within one guest instruction.
            off = Some(i.off);
            defined = 0xffff;
            vec_defined = 0xffff_ffff;
        }
        let info = i.op.info();
        if info.traits.has(Traits::END) != (n == last) {
            return fail("a terminator must be the last operation, and the last a terminator");
        }
        for (field, v) in info.fields[1..].iter().zip([i.a, i.b, i.c]) {
            if let Err(why) = check_use(*field, v, defined, vec_defined) {
                return fail(why);
            }
        }
        let pair = matches!(i.op, Op::VLoad | Op::VStore) && vec_bytes(i.ty) == 32;
        let high = i.b.saturating_add(HIGH as u16);
        if pair && i.op == Op::VStore && check_use(Field::Vec, high, defined, vec_defined).is_err() {
            return fail("the high half is not defined in this guest instruction");
        }
        if let Err(why) = check_constant(i) {
            return fail(why);
        }
        match info.fields[0] {
            Field::No => {}
            Field::IntOpt if i.d == Val::NONE.0 => {}
            Field::Vec if pair && i.d < VVal::END - HIGH as u16 => vec_defined |= (1 << HIGH | 1) << i.d,
            Field::Vec if !pair && i.d < VVal::END => vec_defined |= 1 << i.d,
            Field::Int | Field::IntOpt if (i.d as usize) < VALS => defined |= 1 << i.d,
            _ => return fail("result out of range"),
        }
    }
    Ok(())
}

fn check_use(field: Field, v: u16, ints: u64, vecs: u64) -> Result<(), &'static str> {
    let int = |v: u16| (v as usize) < VALS && ints >> v & 1 != 0;
    let ok = match field {
        Field::No | Field::Const => true,
        Field::Int => int(v),
        Field::IntOrImm => v == Val::IMM.0 || int(v),
        Field::IntOpt => v == Val::NONE.0 || int(v),
        Field::Vec => v < VVal::END && (v < VVal::TEMP0 || vecs >> v & 1 != 0),
    };
    if ok { Ok(()) } else { Err("operand not defined in this guest instruction") }
}

fn check_constant(i: &Inst) -> Result<(), &'static str> {
    let ok = match i.op {
        Op::Call => u16::try_from(i.imm).is_ok_and(helpers::exists),
        Op::Vec => VecOp::from_imm(i.imm).is_some(),
        Op::ClearHigh => u16::try_from(i.imm).is_ok(),
        Op::Fma => FmaOp::from_imm(i.imm).is_some(),
        Op::VecToInt => VecToInt::from_imm(i.imm).is_some(),
        Op::VecFromInt => VecFromInt::from_imm(i.imm).is_some(),
        Op::GetState | Op::SetState | Op::VGetState | Op::VSetState => {
            usize::try_from(i.imm).is_ok_and(|o| o + 16 <= size_of::<crate::state::CpuState>())
        }
        Op::GetCond => i.c < 16,
        Op::Exit => i.c < 2,
        Op::Lea => i.c < 4,
        _ => true,
    };
    if ok { Ok(()) } else { Err("constant out of range") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::parse::parse;

    #[test]
    fn broken_blocks_are_refused() {
        let head = "block 0x0 mode 0 len 1 count 1\n";
        let check_text = |body: &str| check(&parse(&format!("{head}{body}")).unwrap());
        assert!(check_text("0: jmp #0").is_ok());
        assert!(check_text("0: rax = add.i32 rax, t3\n0: jmp #0").unwrap_err().contains("not defined"));
        assert!(check_text("0: jmp #0\n0: jmp #0").unwrap_err().contains("terminator"));
        assert!(check_text("0: rax = mov.i32 rcx").unwrap_err().contains("terminator"));
        assert!(check_text("0: t0 = mov.i32 rcx\n1: rax = mov.i32 t0\n1: jmp #0").unwrap_err().contains("not defined"));
        assert!(check_text("0: t0 = getcond 16\n0: jmp #0").unwrap_err().contains("constant"));
    }
}
