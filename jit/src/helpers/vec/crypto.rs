//! SHA, AES and carry-less multiplication in plain Rust, for hosts without the instructions (SDM 2A and 2B, FIPS 180-4,
//! FIPS 197).

/// Elements from bits 127:96 down.
fn words(v: u128) -> [u32; 4] {
    std::array::from_fn(|n| (v >> (96 - 32 * n)) as u32)
}

fn join(w: [u32; 4]) -> u128 {
    w.iter().fold(0, |v, x| v << 32 | *x as u128)
}

pub fn sha1msg1(a: u128, b: u128, _imm8: u8) -> u128 {
    a ^ (a << 64 | b >> 64)
}

pub fn sha1msg2(a: u128, b: u128, _imm8: u8) -> u128 {
    let (w, x) = (words(a), words(b));
    let w16 = (w[0] ^ x[1]).rotate_left(1);
    join([w16, (w[1] ^ x[2]).rotate_left(1), (w[2] ^ x[3]).rotate_left(1), (w[3] ^ w16).rotate_left(1)])
}

pub fn sha1nexte(a: u128, b: u128, _imm8: u8) -> u128 {
    let mut w = words(b);
    w[0] = w[0].wrapping_add(words(a)[0].rotate_left(30));
    join(w)
}

fn choose(x: u32, y: u32, z: u32) -> u32 {
    x & y ^ !x & z
}

fn majority(x: u32, y: u32, z: u32) -> u32 {
    x & y ^ x & z ^ y & z
}

pub fn sha1rnds4(a: u128, b: u128, imm8: u8) -> u128 {
    let parity = |x: u32, y: u32, z: u32| x ^ y ^ z;
    let (f, k): (fn(u32, u32, u32) -> u32, u32) = match imm8 & 3 {
        0 => (choose, 0x5a82_7999),
        1 => (parity, 0x6ed9_eba1),
        2 => (majority, 0x8f1b_bcdc),
        _ => (parity, 0xca62_c1d6),
    };
    // The first word comes with E added.
    let (message, [mut a, mut b, mut c, mut d], mut e) = (words(b), words(a), 0u32);
    for w in message {
        let next = f(b, c, d).wrapping_add(a.rotate_left(5)).wrapping_add(w).wrapping_add(e).wrapping_add(k);
        (a, b, c, d, e) = (next, a, b.rotate_left(30), c, d);
    }
    join([a, b, c, d])
}

fn small_sigma0(x: u32) -> u32 {
    x.rotate_right(7) ^ x.rotate_right(18) ^ x >> 3
}

fn small_sigma1(x: u32) -> u32 {
    x.rotate_right(17) ^ x.rotate_right(19) ^ x >> 10
}

pub fn sha256msg1(a: u128, b: u128, _imm8: u8) -> u128 {
    let ([w3, w2, w1, w0], w4) = (words(a), b as u32);
    let next = |w: u32, later: u32| w.wrapping_add(small_sigma0(later));
    join([next(w3, w4), next(w2, w3), next(w1, w2), next(w0, w1)])
}

pub fn sha256msg2(a: u128, b: u128, _imm8: u8) -> u128 {
    let ([a3, a2, a1, a0], x) = (words(a), words(b));
    let w16 = a0.wrapping_add(small_sigma1(x[1]));
    let w17 = a1.wrapping_add(small_sigma1(x[0]));
    let w18 = a2.wrapping_add(small_sigma1(w16));
    join([a3.wrapping_add(small_sigma1(w17)), w18, w17, w16])
}

/// `a` holds C, D, G, H, `b` holds A, B, E, F; the low half of `wk` the words with their constants.
pub fn sha256rnds2(a: u128, b: u128, wk: u128) -> u128 {
    let ([mut c, mut d, mut g, mut h], [mut a, mut b, mut e, mut f]) = (words(a), words(b));
    for w in [wk as u32, (wk >> 32) as u32] {
        let sigma1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let sigma0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let t = choose(e, f, g).wrapping_add(sigma1).wrapping_add(w).wrapping_add(h);
        let next = t.wrapping_add(majority(a, b, c)).wrapping_add(sigma0);
        (h, g, f, e) = (g, f, e, t.wrapping_add(d));
        (d, c, b, a) = (c, b, a, next);
    }
    join([a, b, e, f])
}

/// Multiplication by x in AES's field.
const fn double(v: u8) -> u8 {
    v << 1 ^ if v & 0x80 != 0 { 0x1b } else { 0 }
}

const fn times(mut a: u8, mut b: u8) -> u8 {
    let mut r = 0;
    while b != 0 {
        if b & 1 != 0 {
            r ^= a;
        }
        a = double(a);
        b >>= 1;
    }
    r
}

/// The substitution box: the affine map of the inverse (FIPS 197, 5.1.1).
const SBOX: [u8; 256] = {
    let mut table = [0x63; 256];
    // 3 generates the field, 0xf6 is its inverse.
    let (mut v, mut inverse) = (1u8, 1u8);
    let mut n = 0;
    while n < 255 {
        let i = inverse;
        table[v as usize] = i ^ i.rotate_left(1) ^ i.rotate_left(2) ^ i.rotate_left(3) ^ i.rotate_left(4) ^ 0x63;
        v = times(v, 3);
        inverse = times(inverse, 0xf6);
        n += 1;
    }
    table
};

const INVERSE_SBOX: [u8; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        table[SBOX[n] as usize] = n as u8;
        n += 1;
    }
    table
};

/// SubBytes after ShiftRows by `step` columns a row (1, or 3 for the inverse).
fn substitute(v: u128, table: &[u8; 256], step: usize) -> u128 {
    let s = v.to_le_bytes();
    u128::from_le_bytes(std::array::from_fn(|n| table[s[(n + 4 * step * (n % 4)) % 16] as usize]))
}

/// Columns times the circulant matrix with this first row.
fn mix(v: u128, row: [u8; 4]) -> u128 {
    let s = v.to_le_bytes();
    let byte = |n: usize| (0..4).fold(0, |r, k| r ^ times(s[n / 4 * 4 + k], row[(k + 4 - n % 4) % 4]));
    u128::from_le_bytes(std::array::from_fn(byte))
}

pub fn aesenc(a: u128, b: u128, _imm8: u8) -> u128 {
    mix(substitute(a, &SBOX, 1), [2, 3, 1, 1]) ^ b
}

pub fn aesenclast(a: u128, b: u128, _imm8: u8) -> u128 {
    substitute(a, &SBOX, 1) ^ b
}

pub fn aesdec(a: u128, b: u128, _imm8: u8) -> u128 {
    aesimc(0, substitute(a, &INVERSE_SBOX, 3), 0) ^ b
}

pub fn aesdeclast(a: u128, b: u128, _imm8: u8) -> u128 {
    substitute(a, &INVERSE_SBOX, 3) ^ b
}

pub fn aesimc(_a: u128, b: u128, _imm8: u8) -> u128 {
    mix(b, [14, 11, 13, 9])
}

pub fn aeskeygenassist(_a: u128, b: u128, imm8: u8) -> u128 {
    let [x3, _, x1, _] = words(b).map(|w| u32::from_le_bytes(w.to_le_bytes().map(|s| SBOX[s as usize])));
    let rotated = |w: u32| w.rotate_right(8) ^ imm8 as u32;
    join([rotated(x3), x3, rotated(x1), x1])
}

pub fn pclmulqdq(a: u128, b: u128, imm8: u8) -> u128 {
    let x = if imm8 & 1 != 0 { a >> 64 } else { a as u64 as u128 };
    let y = if imm8 & 0x10 != 0 { b >> 64 } else { b };
    (0..64).filter(|n| y >> n & 1 != 0).fold(0, |r, n| r ^ x << n)
}
