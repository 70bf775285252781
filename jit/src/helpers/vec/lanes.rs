//! Vector operations that only move elements, in plain Rust.

/// The operand as 32-bit elements.
fn dwords(v: u128) -> [u32; 4] {
    std::array::from_fn(|n| (v >> (32 * n)) as u32)
}

fn from_dwords(e: [u32; 4]) -> u128 {
    e.iter().rev().fold(0, |v, d| v << 32 | *d as u128)
}

fn words(v: u64) -> [u16; 4] {
    std::array::from_fn(|n| (v >> (16 * n)) as u16)
}

fn from_words(e: [u16; 4]) -> u64 {
    e.iter().rev().fold(0, |v, d| v << 16 | *d as u64)
}

/// Element number in bits 2n+1:2n of an immediate.
fn pick(imm8: u8, n: usize) -> usize {
    (imm8 >> (2 * n)) as usize & 3
}

pub fn pslldq(a: u128, _b: u128, imm8: u8) -> u128 {
    if imm8 > 15 { 0 } else { a << (8 * imm8) }
}

pub fn psrldq(a: u128, _b: u128, imm8: u8) -> u128 {
    if imm8 > 15 { 0 } else { a >> (8 * imm8) }
}

pub fn pshufd(_a: u128, b: u128, imm8: u8) -> u128 {
    let e = dwords(b);
    from_dwords(std::array::from_fn(|n| e[pick(imm8, n)]))
}

fn shuffle_words(v: u64, imm8: u8) -> u64 {
    let e = words(v);
    from_words(std::array::from_fn(|n| e[pick(imm8, n)]))
}

pub fn pshuflw(_a: u128, b: u128, imm8: u8) -> u128 {
    b >> 64 << 64 | shuffle_words(b as u64, imm8) as u128
}

pub fn pshufhw(_a: u128, b: u128, imm8: u8) -> u128 {
    b as u64 as u128 | (shuffle_words((b >> 64) as u64, imm8) as u128) << 64
}

pub fn shufps(a: u128, b: u128, imm8: u8) -> u128 {
    let (x, y) = (dwords(a), dwords(b));
    from_dwords([x[pick(imm8, 0)], x[pick(imm8, 1)], y[pick(imm8, 2)], y[pick(imm8, 3)]])
}

pub fn shufpd(a: u128, b: u128, imm8: u8) -> u128 {
    let low = (a >> (64 * (imm8 & 1))) as u64;
    let high = (b >> (64 * (imm8 >> 1 & 1))) as u64;
    low as u128 | (high as u128) << 64
}

pub fn palignr(a: u128, b: u128, imm8: u8) -> u128 {
    match imm8 {
        0 => b,
        1..=15 => b >> (8 * imm8) | a << (128 - 8 * imm8 as u32),
        16..=31 => a >> (8 * (imm8 - 16)),
        _ => 0,
    }
}

pub fn palignr64(a: u128, b: u128, imm8: u8) -> u128 {
    let both = a << 64 | b as u64 as u128;
    if imm8 > 15 { 0 } else { (both >> (8 * imm8)) as u64 as u128 }
}

/// PSHUFB of MMX: three bits select.
pub fn pshufb64(a: u128, b: u128, _imm8: u8) -> u128 {
    let source = (a as u64).to_le_bytes();
    let r = (b as u64).to_le_bytes().map(|s| if s & 0x80 != 0 { 0 } else { source[s as usize & 7] });
    u64::from_le_bytes(r) as u128
}

/// `a` with the elements of `bits` bits that the immediate selects taken from `b`.
fn blend(a: u128, b: u128, imm8: u8, bits: u32) -> u128 {
    let one = (1u128 << bits) - 1;
    let mask = (0..(128 / bits)).filter(|n| imm8 >> n & 1 != 0).fold(0, |m, n| m | one << (bits * n));
    a & !mask | b & mask
}

pub fn pblendw(a: u128, b: u128, imm8: u8) -> u128 {
    blend(a, b, imm8, 16)
}

pub fn blendps(a: u128, b: u128, imm8: u8) -> u128 {
    blend(a, b, imm8, 32)
}

pub fn blendpd(a: u128, b: u128, imm8: u8) -> u128 {
    blend(a, b, imm8, 64)
}

/// INSERTPS: source element in bits 7:6 (the lifter has 0 there for memory), destination in 5:4, zeros in 3:0.
pub fn insertps(a: u128, b: u128, imm8: u8) -> u128 {
    let mut e = dwords(a);
    e[pick(imm8, 2)] = dwords(b)[pick(imm8, 3)];
    for (n, d) in e.iter_mut().enumerate() {
        if imm8 >> n & 1 != 0 {
            *d = 0;
        }
    }
    from_dwords(e)
}

pub fn movss(a: u128, b: u128, _imm8: u8) -> u128 {
    blend(a, b, 1, 32)
}

pub fn movsd(a: u128, b: u128, _imm8: u8) -> u128 {
    blend(a, b, 1, 64)
}

pub fn movq(_a: u128, b: u128, _imm8: u8) -> u128 {
    b as u64 as u128
}

pub fn pextrb(a: u128, _b: u128, imm8: u8) -> u64 {
    (a >> (8 * (imm8 & 15))) as u8 as u64
}

pub fn pextrw(a: u128, _b: u128, imm8: u8) -> u64 {
    (a >> (16 * (imm8 & 7))) as u16 as u64
}

pub fn pextrd(a: u128, _b: u128, imm8: u8) -> u64 {
    (a >> (32 * (imm8 & 3))) as u32 as u64
}

pub fn pextrq(a: u128, _b: u128, imm8: u8) -> u64 {
    (a >> (64 * (imm8 & 1))) as u64
}

pub fn zext32(_a: u128, b: u64, _imm8: u8) -> u128 {
    b as u32 as u128
}

pub fn zext64(_a: u128, b: u64, _imm8: u8) -> u128 {
    b as u128
}

fn insert(a: u128, b: u64, n: u8, bits: u32) -> u128 {
    let mask = (1u128 << bits) - 1;
    let at = n as u32 * bits;
    a & !(mask << at) | (b as u128 & mask) << at
}

pub fn pinsrb(a: u128, b: u64, imm8: u8) -> u128 {
    insert(a, b, imm8 & 15, 8)
}

pub fn pinsrw(a: u128, b: u64, imm8: u8) -> u128 {
    insert(a, b, imm8 & 7, 16)
}

pub fn pinsrd(a: u128, b: u64, imm8: u8) -> u128 {
    insert(a, b, imm8 & 3, 32)
}

pub fn pinsrq(a: u128, b: u64, imm8: u8) -> u128 {
    insert(a, b, imm8 & 1, 64)
}
