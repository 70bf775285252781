//! Conversions between the 80-bit format and integers, packed decimals, single and double precision (exact widening).

use super::state::sw;

/// A value taken apart: sign, biased exponent, significand with explicit integer bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    pub negative: bool,
    pub exponent: u16,
    pub mantissa: u64,
}

/// Bias of the 80-bit format.
const BIAS: i32 = 16383;

impl Parts {
    pub fn new(v: u128) -> Self {
        let head = (v >> 64) as u16;
        Self { negative: head >> 15 != 0, exponent: head & 0x7fff, mantissa: v as u64 }
    }
    pub fn value(self) -> u128 {
        ((self.negative as u128) << 15 | self.exponent as u128) << 64 | self.mantissa as u128
    }
    /// NaN, infinity or an encoding that is no number (SDM 1, 8.2.2): a mantissa without integer bit.
    fn is_no_number(self) -> bool {
        self.exponent == 0x7fff || self.exponent != 0 && self.mantissa >> 63 == 0
    }
}

/// Widens an IEEE value with `fraction` fraction bits and `width` bits: value and exceptions (invalid for signalling NaNs,
/// denormal).
fn widen(v: u64, fraction: u32, width: u32) -> (u128, u16) {
    let exponent_bits = width - 1 - fraction;
    let top = (1u64 << exponent_bits) - 1;
    let negative = v >> (width - 1) & 1 != 0;
    let exponent = v >> fraction & top;
    let f = v & ((1 << fraction) - 1);
    let shifted = f << (63 - fraction);
    let bias = (top >> 1) as i32;
    let part = |exponent: i32, mantissa: u64| Parts { negative, exponent: exponent as u16, mantissa }.value();
    if exponent == top {
        let quiet = 1 << 62;
        let signalling = f != 0 && shifted & quiet == 0;
        let mantissa = 1 << 63 | shifted | if f != 0 { quiet } else { 0 };
        return (part(0x7fff, mantissa), if signalling { sw::IE } else { 0 });
    }
    if exponent != 0 {
        return (part(exponent as i32 - bias + BIAS, 1 << 63 | shifted), 0);
    }
    if f == 0 {
        return (part(0, 0), 0);
    }
    let up = shifted.leading_zeros();
    (part(1 - bias + BIAS - up as i32, shifted << up), sw::DE)
}

/// Widens single precision.
pub fn from_single(v: u32) -> (u128, u16) {
    widen(v as u64, 23, 32)
}

/// Widens double precision.
pub fn from_double(v: u64) -> (u128, u16) {
    widen(v, 52, 64)
}

/// An integer, exactly.
pub fn from_integer(v: i64) -> u128 {
    from_magnitude(v < 0, v.unsigned_abs())
}

fn from_magnitude(negative: bool, magnitude: u64) -> u128 {
    if magnitude == 0 {
        return Parts { negative, exponent: 0, mantissa: 0 }.value();
    }
    let up = magnitude.leading_zeros();
    Parts { negative, exponent: (BIAS + 63 - up as i32) as u16, mantissa: magnitude << up }.value()
}

/// How fractions are dropped: the control word's RC field, or truncation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rounding {
    Nearest,
    Down,
    Up,
    Zero,
}

impl Rounding {
    /// Of a control word.
    pub fn of(fcw: u16) -> Self {
        match fcw >> 10 & 3 {
            0 => Self::Nearest,
            1 => Self::Down,
            2 => Self::Up,
            _ => Self::Zero,
        }
    }
}

/// Magnitude rounded to an integer, whether it was inexact, and whether it was rounded up in magnitude. `None`: no
/// number, or at least 2^64.
fn to_magnitude(p: Parts, rounding: Rounding) -> Option<(u64, bool, bool)> {
    if p.is_no_number() {
        return None;
    }
    // Weight of the mantissa's lowest bit is 2^-shift.
    let shift = BIAS + 63 - (p.exponent.max(1) as i32);
    if shift < 0 {
        return None;
    }
    let (whole, rest, half) = match shift {
        0 => (p.mantissa, false, std::cmp::Ordering::Less),
        1..=63 => {
            let rest = p.mantissa & ((1 << shift) - 1);
            (p.mantissa >> shift, rest != 0, rest.cmp(&(1 << (shift - 1))))
        }
        64 => (0, p.mantissa != 0, p.mantissa.cmp(&(1 << 63))),
        _ => (0, p.mantissa != 0, std::cmp::Ordering::Less),
    };
    let up = rest
        && match rounding {
            Rounding::Nearest => half.is_gt() || half.is_eq() && whole & 1 != 0,
            Rounding::Down => p.negative,
            Rounding::Up => !p.negative,
            Rounding::Zero => false,
        };
    Some((whole.checked_add(up as u64)?, rest, up))
}

/// A conversion's result with its exceptions, and C1 (rounded up).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Converted<T> {
    pub value: T,
    pub sw: u16,
}

fn flags(inexact: bool, up: bool) -> u16 {
    (if inexact { sw::PE } else { 0 }) | if up { sw::C1 } else { 0 }
}

/// To a signed integer of `bits` bits; invalid gives the integer indefinite.
pub fn to_integer(v: u128, bits: u32, rounding: Rounding) -> Converted<u64> {
    let p = Parts::new(v);
    let limit = 1u64 << (bits - 1);
    match to_magnitude(p, rounding) {
        Some((m, inexact, up)) if m < limit || p.negative && m == limit => {
            let value = if p.negative { m.wrapping_neg() } else { m };
            Converted { value, sw: flags(inexact, up) }
        }
        _ => Converted { value: limit, sw: sw::IE },
    }
}

/// Packed decimal indefinite.
pub const DECIMAL_INDEFINITE: [u8; 10] = [0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff];

/// To 18 decimal digits.
pub fn to_decimal(v: u128, rounding: Rounding) -> Converted<[u8; 10]> {
    let p = Parts::new(v);
    match to_magnitude(p, rounding) {
        Some((m, inexact, up)) if m < 1_000_000_000_000_000_000 => {
            let mut value = [0; 10];
            let mut rest = m;
            for byte in &mut value[..9] {
                *byte = (rest % 10) as u8 | ((rest / 10 % 10) as u8) << 4;
                rest /= 100;
            }
            value[9] = (p.negative as u8) << 7;
            Converted { value, sw: flags(inexact, up) }
        }
        _ => Converted { value: DECIMAL_INDEFINITE, sw: sw::IE },
    }
}

/// From 18 decimal digits; digits above 9 count with their value, as silicon does.
pub fn from_decimal(bytes: [u8; 10]) -> u128 {
    let digits = |v: u64, b: &u8| v.wrapping_mul(100).wrapping_add((b >> 4) as u64 * 10 + (b & 15) as u64);
    let magnitude = bytes[..9].iter().rev().fold(0u64, digits);
    from_magnitude(bytes[9] >> 7 != 0, magnitude)
}

/// The quiet NaN indefinite in single precision, double precision.
pub const SINGLE_INDEFINITE: u64 = 0xffc0_0000;
/// See [`SINGLE_INDEFINITE`].
pub const DOUBLE_INDEFINITE: u64 = 0xfff8_0000_0000_0000;
