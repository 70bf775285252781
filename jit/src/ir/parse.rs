//! Reads the text form of the IR, which [`super::text`] writes: for tests and benchmarks.

use super::op::{self, Field, Op};
use super::text::{GPRS, state_field, ty_name};
use super::vecop::{FmaOp, VecFromInt, VecOp, VecToInt};
use super::{Block, Inst, Ty, VVal, Val};
use crate::helpers;

/// Parses what [`super::text::print`] writes. The error names the line.
pub fn parse(text: &str) -> Result<Block, String> {
    let mut lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with(';'));
    let header = lines.next().ok_or("empty text")?;
    let words: Vec<&str> = header.split_whitespace().collect();
    let number = |key: &str| -> Result<u64, String> {
        let at = words.iter().position(|w| *w == key).ok_or(format!("header lacks {key}: {header}"))?;
        integer(words.get(at + 1).copied().unwrap_or("")).map(|v| v as u64)
    };
    let mut block = Block {
        rip: number("block")?,
        mode: number("mode")? as u32,
        len: number("len")? as u16,
        count: number("count")? as u16,
        insts: Vec::new(),
    };
    for line in lines {
        block.insts.push(parse_inst(line).map_err(|e| format!("{e}: {line}"))?);
    }
    Ok(block)
}

fn integer(s: &str) -> Result<i64, String> {
    let (neg, digits) = s.strip_prefix('-').map_or((false, s), |d| (true, d));
    let v = match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => digits.parse::<u64>(),
    };
    let v = v.map_err(|_| format!("not a number: {s}"))?;
    Ok(if neg { (v as i64).wrapping_neg() } else { v as i64 })
}

fn parse_inst(line: &str) -> Result<Inst, String> {
    let (off, rest) = line.split_once(':').ok_or("no offset")?;
    let off = integer(off.trim())? as u16;
    let (dest, rest) = match rest.split_once(" = ") {
        Some((d, r)) => (Some(d.trim()), r.trim()),
        None => (None, rest.trim()),
    };
    let (rest, imm) = match rest.split_once(['#', '@']) {
        Some((r, place)) if rest[r.len()..].starts_with('@') => (r.trim_end_matches([' ', ',']), state_offset(place)?),
        Some((r, i)) => (r.trim(), integer(i.trim())?),
        None => (rest, 0),
    };
    let (mnemonic, mut args) = rest.split_once(' ').unwrap_or((rest, ""));
    let (name, ty) = match mnemonic.split_once('.') {
        Some((n, t)) => (n, parse_ty(t)?),
        None => (mnemonic, Ty::I64),
    };
    let op = op::ALL.iter().copied().find(|o| o.info().name == name).ok_or(format!("unknown operation {name}"))?;
    let mut inst = Inst { op, ty, d: 0, a: 0, b: 0, c: 0, off, len: 0, imm };
    if matches!(op, Op::Vec | Op::Fma | Op::VecToInt | Op::VecFromInt | Op::Call) {
        let (sub, rest) = args.trim().split_once(' ').unwrap_or((args.trim(), ""));
        inst.imm = sub_number(op, sub).ok_or(format!("unknown sub-operation {sub}"))?;
        args = rest;
    }
    let fields = op.info().fields;
    let mut words = args.split(',').map(str::trim).filter(|w| !w.is_empty());
    let mut next = |field: Field| match field {
        Field::No => Ok(Val::NONE.0),
        f => parse_operand(f, words.next().ok_or("operand missing")?),
    };
    inst.a = next(fields[1])?;
    inst.b = next(fields[2])?;
    inst.c = next(fields[3])?;
    inst.d = match (fields[0], dest) {
        (Field::No, None) | (Field::IntOpt, None) => Val::NONE.0,
        (Field::No, Some(_)) => return Err("operation has no result".into()),
        (f, Some(d)) => parse_operand(f, d)?,
        (_, None) => return Err("result missing".into()),
    };
    Ok(inst)
}

/// `FIELD` or `FIELD+BYTES`.
fn state_offset(place: &str) -> Result<i64, String> {
    let (name, bytes) = place.split_once('+').unwrap_or((place, "0"));
    let start = state_field(name.trim()).ok_or(format!("unknown field {name}"))?;
    Ok(start + integer(bytes.trim())?)
}

fn parse_ty(t: &str) -> Result<Ty, String> {
    [Ty::I8, Ty::I16, Ty::I32, Ty::I64].into_iter().find(|ty| ty_name(*ty) == t).ok_or(format!("unknown type {t}"))
}

fn sub_number(op: Op, name: &str) -> Option<i64> {
    match op {
        Op::Vec => VecOp::ALL.iter().find(|o| o.name() == name).map(|o| *o as i64),
        Op::Fma => FmaOp::ALL.iter().find(|o| o.name() == name).map(|o| *o as i64),
        Op::VecToInt => VecToInt::ALL.iter().find(|o| o.name() == name).map(|o| *o as i64),
        Op::VecFromInt => VecFromInt::ALL.iter().find(|o| o.name() == name).map(|o| *o as i64),
        _ => helpers::by_name(name).map(|id| id.0 as i64),
    }
}

fn parse_operand(field: Field, word: &str) -> Result<u16, String> {
    let bad = || format!("bad operand {word}");
    match field {
        Field::Const => integer(word).map(|v| v as u16),
        Field::Vec => match word.split_at_checked(1) {
            Some(("x", n)) => n.parse().map_err(|_| bad()),
            Some(("w", n)) => n.parse::<u16>().map(|n| n + VVal::TEMP0).map_err(|_| bad()),
            _ => Err(bad()),
        },
        _ if word == "imm" => Ok(Val::IMM.0),
        _ if word == "none" => Ok(Val::NONE.0),
        _ => {
            if let Some(n) = GPRS.iter().position(|g| *g == word) {
                return Ok(n as u16);
            }
            let n = word.strip_prefix('t').ok_or_else(bad)?;
            n.parse::<u16>().map(|n| n + Val::TEMP0).map_err(|_| bad())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::flags::CcKind;
    use crate::ir::text::print;
    use crate::ir::{Builder, verify};

    #[test]
    fn what_is_printed_parses_back() {
        let mut b = Builder::default();
        b.start_insn(0);
        let v = b.load(Ty::I16, Val::gpr(3), -8, 1);
        b.op2_to(Op::Add, Ty::I32, Val::gpr(0), v, 5);
        b.set_flags(CcKind::Add, Ty::I32, Val::gpr(0), 5);
        b.lea_to(Ty::I64, Val::gpr(1), None, Some(v), 3, 0x1234);
        let field = b.get_state(Ty::I32, std::mem::offset_of!(crate::state::CpuState, rflags) + 4);
        b.set_state(Ty::I64, std::mem::offset_of!(crate::state::CpuState, rip), field);
        b.start_insn(4);
        let w = b.vtemp();
        b.vload(w, 16, Val::gpr(2), 16, 4);
        b.vec(VecOp::ALL[0], VVal(1), VVal(1), w, 7);
        let c = b.get_cond(5);
        b.br(c, 0xffff_ffff_8000_0000);
        let block = Block { rip: 0x1000, mode: 9, len: 6, count: 2, insts: b.finish() };
        verify::check(&block).unwrap();
        let text = print(&block);
        assert_eq!(parse(&text).unwrap(), block, "{text}");
        assert!(parse(&text.replace("load", "lode")).is_err());
    }
}
