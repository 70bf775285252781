//! Every mnemonic that the lift accepts has a line. The mnemonics are found by decoding all that can be encoded, in every
//! code width, and asking the lift.

use super::super::cases::{self, bytes};
use super::line::Line;
use crate::cpuid::CpuModel;
use crate::lift;
use crate::state::mode;
use iced_x86::{Code, Decoder, Instruction, Mnemonic};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Mode words of CPL 0 under which nothing is refused for the mode alone: real mode, 32-bit, 64-bit.
fn modes() -> [u32; 4] {
    let on = mode::OSFXSR | mode::OSXSAVE | mode::AVX;
    let protected = on | mode::PE;
    [on, protected, protected | mode::CS32, protected | mode::LMA | mode::CS64]
}

/// Prefixes that choose between instructions, legacy and VEX.
fn openings() -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    for mandatory in [None, Some(0x66), Some(0xf2), Some(0xf3)] {
        for address in [None, Some(0x67)] {
            for rex in [None, Some(0x48)] {
                for map in [&[][..], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]] {
                    let prefixes = address.iter().chain(mandatory.iter()).chain(rex.iter()).copied();
                    out.push(prefixes.chain(map.iter().copied()).collect());
                }
            }
        }
    }
    for map in 1..=3 {
        for rest in 0..32u8 {
            // W, then vvvv = 1111 or 1110 (the register counts nowhere), L, pp.
            let (w, vvvv, l, pp) = (rest >> 4, rest >> 3 & 1, rest >> 2 & 1, rest & 3);
            out.push(vec![0xc4, 0xe0 | map, w << 7 | (15 - vvvv) << 3 | l << 2 | pp]);
        }
    }
    out
}

/// The ModRM bytes that tell instructions apart: all of them for x87 and the groups that use every one, else a memory and
/// a register form of each extension, and memory with an index for VEX forms, which it may have to be.
fn modrms(opening: &[u8], opcode: u8) -> Vec<u8> {
    let dense = match opening.last() {
        Some(0x0f) => matches!(opcode, 0x00 | 0x01 | 0x1e | 0xae | 0xc7),
        _ => (0xd8..=0xdf).contains(&opcode),
    };
    if dense {
        return (0..=255).collect();
    }
    let forms: &[u8] = if opening.first() == Some(&0xc4) { &[0, 0xc1, 4] } else { &[0, 0xc1] };
    forms.iter().flat_map(|form| (0..8).map(move |n| n << 3 | form)).collect()
}

/// Codes that can be decoded under the mode word, each with an instruction.
fn decodable(mode_word: u32, model: &CpuModel) -> BTreeMap<usize, Instruction> {
    let bits = lift::bitness(mode_word);
    let mut found = BTreeMap::new();
    for opening in openings() {
        for opcode in 0..=255 {
            for modrm in modrms(&opening, opcode) {
                let mut code = opening.clone();
                code.extend([opcode, modrm, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
                let mut decoder = Decoder::with_ip(bits, &code, 0x1000, model.decoder_options());
                let i = decoder.decode();
                if !i.is_invalid() {
                    found.entry(i.code() as usize).or_insert(i);
                }
            }
        }
    }
    found
}

/// The first instruction of a line of user mode.
fn user_line(bits: u32, line: &str) -> Instruction {
    let code = bytes(line.split(' ').next().unwrap_or_default());
    Decoder::new(bits, &code, 0).decode()
}

/// Mnemonics that lines execute.
fn with_lines() -> HashSet<Mnemonic> {
    let mut found: HashSet<Mnemonic> = HashSet::new();
    for (text, bits) in cases::FILES {
        found.extend(super::cases(text).map(|l| user_line(*bits, l).mnemonic()));
    }
    for (_, text) in super::files() {
        found.extend(super::cases(&text).map(|l| Line::parse(l).instruction().mnemonic()));
    }
    found
}

#[test]
fn every_mnemonic_that_is_lifted_has_a_line() {
    let model = crate::cpuid::parse("max,+monitor").expect("a processor model");
    let (lines, mut lifted) = (with_lines(), BTreeSet::new());
    for mode_word in modes() {
        let decodable = decodable(mode_word, &model);
        lifted
            .extend(decodable.values().filter(|i| lift::accepts(i, mode_word, &model)).map(|i| i.mnemonic() as usize));
    }
    assert!(lifted.len() > 600, "the search finds what there is, not {}", lifted.len());
    let missing: Vec<Mnemonic> =
        Mnemonic::values().filter(|m| lifted.contains(&(*m as usize)) && !lines.contains(m)).collect();
    assert!(missing.is_empty(), "no line of tests/insn executes these {}: {missing:?}", missing.len());
}

#[test]
fn the_search_finds_every_code_of_the_model() {
    let model = crate::cpuid::parse("max,+monitor").expect("a processor model");
    let found: HashSet<usize> = modes().iter().flat_map(|m| decodable(*m, &model).into_keys()).collect();
    // What WAIT makes of x87 instructions is two instructions to a decoder; some exist on other processors only.
    let decoded_so = |c: &Code| {
        let o = c.op_code();
        let intel = o.intel_decoder16() || o.intel_decoder32() || o.intel_decoder64();
        o.is_instruction() && !o.fwait() && o.decoder_option() == 0 && intel
    };
    let supported = |c: &Code| {
        let mut i = Instruction::default();
        i.set_code(*c);
        model.supports(&i)
    };
    let expected = Code::values().filter(|c| decoded_so(c) && supported(c));
    let missing: Vec<Code> = expected.filter(|c| !found.contains(&(*c as usize))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
