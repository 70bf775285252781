//! One-line instruction cases (`tests/insn/*.ins`), written by `difftest --write` from what silicon did. Each is run by the
//! interpreter, on the IR as lifted and after the passes, and as generated code.
//!
//! `BYTES text | name=value .. => name=value ..`: registers before (others have the file's defaults) and those that
//! changed. `mADDRESS=BYTES` is memory, zero elsewhere. `fault=VECTOR:ERROR:ADDRESS` is an exception, `undefined=FLAGS`
//! flags that the manual leaves open. Approximate reciprocals, which differ from processor to processor, may be as far from
//! the line's as the manual lets both be. What user mode cannot reach is in [`super::supervisor`].

use super::*;

pub(super) const CODE: u64 = 0x1000_0000;
pub(super) const DATA: u64 = 0x1001_0000;
const DATA_PAGES: u64 = 5;

/// What both sides of a line say.
#[derive(Default)]
pub(super) struct Side {
    pub(super) memory: Vec<(u64, Vec<u8>)>,
    pub(super) fault: Option<Outcome>,
    undefined: u64,
}

pub(super) fn hex(text: &str) -> u64 {
    u64::from_str_radix(text, 16).unwrap_or_else(|_| panic!("hexadecimal number: {text}"))
}

pub(super) fn wide(text: &str) -> u128 {
    u128::from_str_radix(text, 16).unwrap_or_else(|_| panic!("hexadecimal number: {text}"))
}

pub(super) fn bytes(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|n| hex(&text[2 * n..2 * n + 2]) as u8).collect()
}

/// General registers in encoding order.
pub(super) const NAMES: [&str; 16] =
    ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];

/// Applies `name=value` to registers or to the rest of the side.
pub(super) fn assign(word: &str, r: &mut Registers, side: &mut Side) {
    let (name, value) = word.split_once('=').unwrap_or_else(|| panic!("name=value: {word}"));
    if let Some(n) = NAMES.iter().position(|g| *g == name) {
        r.gpr[n] = hex(value);
        return;
    }
    match name {
        "rip" => r.rip = hex(value),
        "rflags" => r.rflags = hex(value),
        "mxcsr" => r.mxcsr = hex(value) as u32,
        "fcw" => r.fcw = hex(value) as u16,
        "fsw" => r.fsw = hex(value) as u16,
        "tags" => r.tags = hex(value) as u8,
        "fop" => r.fop = hex(value) as u16,
        "fip" => r.fip = hex(value),
        "fdp" => r.fdp = hex(value),
        "undefined" => side.undefined = hex(value),
        "fault" => {
            let mut parts = value.split(':').map(hex);
            let mut next = || parts.next().expect("three parts");
            side.fault = Some(Outcome::Fault { vector: next() as u8, error: next() as u32, address: next() });
        }
        _ if name.starts_with("ymm") => {
            let n = name[3..].strip_suffix("h").expect("ymmNh, a high half");
            r.ymm_high[n.parse::<usize>().expect("a number")] = wide(value);
        }
        _ if name.starts_with("xmm") => r.xmm[name[3..].parse::<usize>().expect("a number")] = wide(value),
        _ if name.starts_with("st") => r.st[name[2..].parse::<usize>().expect("a number")] = wide(value),
        _ if name.starts_with('m') => side.memory.push((hex(&name[1..]), bytes(value))),
        _ => panic!("unknown name: {word}"),
    }
}

fn run_line(m: &mut Machine, line: &str, bits: Bits, tier: Tier) {
    let (code, rest) = line.split_once(' ').expect("bytes first");
    let (text, states) = rest.split_once(" | ").expect("a bar");
    let (before, after) = states.split_once("=>").expect("an arrow");
    let code = bytes(code);
    let base = if bits == Bits::B16 { SEGMENTS_16[reg::CS].base as u64 } else { 0 };
    let mut regs = Registers { rip: CODE - base + 0x800, ..Registers::default() };
    regs.gpr = std::array::from_fn(|n| 0x0101_0101 * (n as u64 + 1));
    let mut given = Side::default();
    before.split_whitespace().for_each(|w| assign(w, &mut regs, &mut given));
    m.write(DATA, &[0; (DATA_PAGES * PAGE_SIZE) as usize]);
    for (at, b) in &given.memory {
        m.write(*at, b);
    }
    m.set_registers(&regs);
    let outcome = m.execute(&code, tier);
    let mut wanted = Side::default();
    if !after.contains("fault=") {
        regs.rip += code.len() as u64;
    }
    after.split_whitespace().for_each(|w| assign(w, &mut regs, &mut wanted));
    let mut got = m.registers();
    got.rflags = got.rflags & !wanted.undefined | regs.rflags & wanted.undefined;
    if ["rcp", "rsqrt"].iter().any(|name| text.trim_start_matches('v').starts_with(name)) {
        for (got, wanted) in [(&mut got.xmm, &regs.xmm), (&mut got.ymm_high, &regs.ymm_high)] {
            got.iter_mut().zip(wanted).for_each(|(got, wanted)| *got = take_approximation(*got, *wanted));
        }
    }
    assert_eq!(outcome, wanted.fault.unwrap_or(Outcome::Done), "{tier:?}: {line}");
    assert_eq!(got, regs, "{tier:?}: {line}");
    for (at, b) in &wanted.memory {
        let mut found = vec![0; b.len()];
        m.read(*at, &mut found);
        assert_eq!(&found, b, "memory at {at:#x}, {tier:?}: {line}");
    }
}

/// `got`, with the lanes of `wanted` in place of those that are as near to it as two approximations are: each has a relative
/// error of 1.5 * 2^-12 at most (SDM 2, RCPPS and RSQRTPS).
fn take_approximation(got: u128, wanted: u128) -> u128 {
    let take = |lane: u32| {
        let [g, w] = [got, wanted].map(|v| f32::from_bits((v >> lane) as u32));
        let near = g.is_normal() && w.is_normal() && (g - w).abs() <= w.abs() * (3.0 / 4096.0);
        u128::from(if near { w } else { g }.to_bits()) << lane
    };
    [0, 32, 64, 96].into_iter().map(take).sum()
}

fn run_file(text: &str, bits: Bits) {
    let mut pages = vec![Page { linear: CODE, writable: true }];
    pages.extend((0..DATA_PAGES).map(|n| Page { linear: DATA + n * PAGE_SIZE, writable: n + 1 < DATA_PAGES }));
    let mut m = Machine::new("max", bits, &pages);
    let lines: Vec<&str> = text.lines().filter(|l| !l.starts_with('#') && !l.is_empty()).collect();
    assert!(lines.len() > 10, "the file has its cases");
    for tier in [Tier::Lifted, Tier::Optimised, Tier::Baseline, Tier::Compiled] {
        lines.iter().for_each(|l| run_line(&mut m, l, bits, tier));
    }
    assert_eq!(m.refused(), 0, "all of them compile");
}

/// The files, and the width of their code.
pub(super) const FILES: &[(&str, u32)] =
    &[(INTEGER_64, 64), (INTEGER_32, 32), (INTEGER_16, 16), (VECTOR_64, 64), (AVX_64, 64), (X87, 64)];
const INTEGER_64: &str = include_str!("../../../tests/insn/integer64.ins");
const INTEGER_32: &str = include_str!("../../../tests/insn/integer32.ins");
const INTEGER_16: &str = include_str!("../../../tests/insn/integer16.ins");
const VECTOR_64: &str = include_str!("../../../tests/insn/vector64.ins");
const AVX_64: &str = include_str!("../../../tests/insn/avx64.ins");
const X87: &str = include_str!("../../../tests/insn/x87.ins");

#[test]
fn integer_64_bit() {
    run_file(INTEGER_64, Bits::B64);
}

#[test]
fn integer_32_bit() {
    run_file(INTEGER_32, Bits::B32);
}

#[test]
fn integer_16_bit() {
    run_file(INTEGER_16, Bits::B16);
}

#[test]
fn vector_64_bit() {
    run_file(VECTOR_64, Bits::B64);
}

#[test]
fn avx_64_bit() {
    if crate::helpers::vec::host_has_avx2() {
        run_file(AVX_64, Bits::B64);
    }
}

#[test]
fn x87_64_bit() {
    run_file(X87, Bits::B64);
}
