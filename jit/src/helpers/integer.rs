//! Helpers of the integer family. The decimal adjustments are in [`super::decimal`].

use super::decimal::{aaa, aad, aam, aas, daa, das};
use super::effect::{FAULTS, PURE, READS_FLAGS, SETS_FLAGS};
use crate::cpu::Cpu;
use crate::fault::{Fault, vector};
use crate::ir::{Ty, mem};
use crate::state::{flag, mode, reg};
use std::io::Read;

const RAX: u32 = 1 << reg::RAX;
const RDX: u32 = 1 << reg::RDX;
const RSP_RBP: u32 = 1 << reg::RSP | 1 << reg::RBP;
const DECIMAL: u32 = READS_FLAGS | SETS_FLAGS | RAX;

crate::helper_family! { 0;
    /// Orders all memory accesses before against all after.
    FENCE = fence, 0;
    /// DIV by the operand: rDX:rAX (AX for bytes) to quotient and remainder.
    DIV8 = div8, FAULTS | RAX;
    /// As above, 16 bits.
    DIV16 = div16, FAULTS | RAX | RDX;
    /// As above, 32 bits.
    DIV32 = div32, FAULTS | RAX | RDX;
    /// As above, 64 bits.
    DIV64 = div64, FAULTS | RAX | RDX;
    /// IDIV.
    IDIV8 = idiv8, FAULTS | RAX;
    /// IDIV, 16 bits.
    IDIV16 = idiv16, FAULTS | RAX | RDX;
    /// IDIV, 32 bits.
    IDIV32 = idiv32, FAULTS | RAX | RDX;
    /// IDIV, 64 bits.
    IDIV64 = idiv64, FAULTS | RAX | RDX;
    /// Atomic negation of memory (address, type): the old value.
    LOCK_NEG = lock_neg, FAULTS;
    /// Result of RCL or RCR (value, count | type << 8 | left << 12, flags).
    RC_RESULT = rc_result, PURE;
    /// Flags of the same.
    RC_FLAGS = rc_flags, PURE;
    /// BEXTR (source, control, type).
    BEXTR = bextr, PURE;
    /// PDEP (source, mask).
    PDEP = pdep, PURE;
    /// PEXT (source, mask).
    PEXT = pext, PURE;
    /// CRC32 (crc, data, bytes).
    CRC32 = crc32, PURE;
    /// A random word.
    RANDOM = random, 0;
    /// CMPXCHG8B at a linear address.
    CMPXCHG8B = cmpxchg8b, FAULTS | READS_FLAGS | SETS_FLAGS | RAX | RDX;
    /// CMPXCHG16B at a linear address; the second operand tells that it is on the stack.
    CMPXCHG16B = cmpxchg16b, FAULTS | READS_FLAGS | SETS_FLAGS | RAX | RDX;
    /// #AC if the address (first operand) has bits of the mask (second) set.
    ALIGN = align, FAULTS;
    /// #GP(0) for an address a with any bit of b.
    ALIGN_VECTOR = align_vector, FAULTS;
    /// #BR if the operand is not zero.
    BOUND = bound, FAULTS;
    /// ENTER (operand type | stack type << 4, frame size, nesting level).
    ENTER = enter, FAULTS | RSP_RBP;
    /// AAA.
    AAA = aaa, DECIMAL;
    /// AAS.
    AAS = aas, DECIMAL;
    /// DAA.
    DAA = daa, DECIMAL;
    /// DAS.
    DAS = das, DECIMAL;
    /// AAM by the operand.
    AAM = aam, DECIMAL | FAULTS;
    /// AAD by the operand.
    AAD = aad, DECIMAL;
}

fn fence(_: &mut Cpu, _: u64, _: u64, _: u64) -> Result<u64, Fault> {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    Ok(0)
}

/// Sets the low `ty` bits of a register as an instruction's result.
pub(super) fn set_reg(cpu: &mut Cpu, n: usize, ty: Ty, v: u64) {
    let old = cpu.gpr(n);
    let value = match ty {
        Ty::I64 => v,
        Ty::I32 => v & ty.mask(),
        _ => old & !ty.mask() | v & ty.mask(),
    };
    cpu.set_gpr(n, value);
}

/// rDX:rAX in the operand's width.
fn dividend(cpu: &Cpu, ty: Ty) -> u128 {
    let m = ty.mask();
    ((cpu.gpr(reg::RDX) & m) as u128) << ty.bits() | (cpu.gpr(reg::RAX) & m) as u128
}

/// Unsigned division. The flags are undefined (SDM 2, DIV); silicon leaves them.
fn divide(cpu: &mut Cpu, ty: Ty, divisor: u64) -> Result<u64, Fault> {
    let n = dividend(cpu, ty);
    let d = (divisor & ty.mask()) as u128;
    let (q, r) = match u64::try_from(n) {
        // The host's 64-bit division is much faster than the 128-bit routine.
        Ok(n) => {
            let d = d as u64;
            (n.checked_div(d).ok_or(Fault::DE)? as u128, n.wrapping_rem(d.max(1)))
        }
        Err(_) => (n.checked_div(d).ok_or(Fault::DE)?, (n % d) as u64),
    };
    if q > ty.mask() as u128 {
        return Err(Fault::DE);
    }
    set_reg(cpu, reg::RAX, ty, q as u64);
    set_reg(cpu, reg::RDX, ty, r);
    Ok(0)
}

/// `v` sign-extended from `bits` bits.
fn sign_extend(v: u128, bits: u32) -> i128 {
    let shift = 128 - bits;
    ((v << shift) as i128) >> shift
}

fn divide_signed(cpu: &mut Cpu, ty: Ty, divisor: u64) -> Result<u64, Fault> {
    let n = sign_extend(dividend(cpu, ty), 2 * ty.bits());
    let d = sign_extend(divisor as u128, ty.bits());
    let (q, r) = match (i64::try_from(n), d as i64) {
        (Ok(n), d) => match (n.checked_div(d), n.checked_rem(d)) {
            (Some(q), Some(r)) => (q as i128, r as i128),
            // By zero, or the one quotient that does not fit.
            _ => return Err(Fault::DE),
        },
        _ => (n.checked_div(d).ok_or(Fault::DE)?, n.checked_rem(d).ok_or(Fault::DE)?),
    };
    if sign_extend(q as u128, ty.bits()) != q {
        return Err(Fault::DE);
    }
    set_reg(cpu, reg::RAX, ty, q as u64);
    set_reg(cpu, reg::RDX, ty, r as u64);
    Ok(0)
}

fn div8(cpu: &mut Cpu, d: u64, _: u64, _: u64) -> Result<u64, Fault> {
    let (n, d) = (cpu.gpr(reg::RAX) & 0xffff, d & 0xff);
    let q = n.checked_div(d).filter(|q| *q <= 0xff).ok_or(Fault::DE)?;
    set_reg(cpu, reg::RAX, Ty::I16, q | (n % d) << 8);
    Ok(0)
}

fn idiv8(cpu: &mut Cpu, d: u64, _: u64, _: u64) -> Result<u64, Fault> {
    let (n, d) = (cpu.gpr(reg::RAX) as i16 as i32, d as i8 as i32);
    let q = n.checked_div(d).filter(|q| *q == *q as i8 as i32).ok_or(Fault::DE)?;
    set_reg(cpu, reg::RAX, Ty::I16, (q as u8 as u64) | ((n % d) as u8 as u64) << 8);
    Ok(0)
}

fn div16(cpu: &mut Cpu, d: u64, _: u64, _: u64) -> Result<u64, Fault> {
    divide(cpu, Ty::I16, d)
}

fn div32(cpu: &mut Cpu, d: u64, _: u64, _: u64) -> Result<u64, Fault> {
    divide(cpu, Ty::I32, d)
}

fn div64(cpu: &mut Cpu, d: u64, _: u64, _: u64) -> Result<u64, Fault> {
    divide(cpu, Ty::I64, d)
}

fn idiv16(cpu: &mut Cpu, d: u64, _: u64, _: u64) -> Result<u64, Fault> {
    divide_signed(cpu, Ty::I16, d)
}

fn idiv32(cpu: &mut Cpu, d: u64, _: u64, _: u64) -> Result<u64, Fault> {
    divide_signed(cpu, Ty::I32, d)
}

fn idiv64(cpu: &mut Cpu, d: u64, _: u64, _: u64) -> Result<u64, Fault> {
    divide_signed(cpu, Ty::I64, d)
}

/// The type whose number is in the low two bits.
pub(super) fn ty_of(n: u64) -> Ty {
    match n & 3 {
        0 => Ty::I8,
        1 => Ty::I16,
        2 => Ty::I32,
        _ => Ty::I64,
    }
}

/// Most attempts of LOCK NEG to swap its result in: RAM settles at once unless processors fight for it, a device's
/// register may read as something else for ever.
const SWAPS: u32 = 1000;

fn lock_neg(cpu: &mut Cpu, addr: u64, ty: u64, _: u64) -> Result<u64, Fault> {
    let ty = ty_of(ty);
    let mut old = cpu.load_flags(ty, addr, mem::WRITE_INTENT)?;
    for _ in 0..SWAPS {
        let seen = cpu.cas(ty, addr, old, old.wrapping_neg() & ty.mask())?;
        if seen == old {
            return Ok(old);
        }
        old = seen;
    }
    cpu.store(ty, addr, old.wrapping_neg() & ty.mask())?;
    Ok(old)
}

/// RCL or RCR: result, and CF and OF in place. A count of 0 modulo the width + 1 changes neither.
fn rotate_carry(v: u64, how: u64, flags: u64) -> (u64, u64) {
    let ty = ty_of(how >> 8);
    let (bits, left) = (ty.bits() as u64, how >> 12 & 1 != 0);
    let count = (how & 0x3f) % (bits + 1);
    let wide = (v & ty.mask()) as u128 | ((flags & 1) as u128) << bits;
    let left_by = if left { count } else { (bits + 1 - count) % (bits + 1) } as u32;
    let mask = (1u128 << (bits + 1)) - 1;
    let turned = (wide << left_by | wide >> (bits as u32 + 1 - left_by)) & mask;
    let res = turned as u64 & ty.mask();
    let carry = (turned >> bits) as u64 & 1;
    // OF is defined for a count of 1 (SDM 2, RCL); for others silicon has it as after the first step.
    let msb = v >> (bits - 1);
    let overflow = (if left { msb ^ v >> (bits - 2) } else { msb ^ flags }) & 1;
    (res, carry | overflow << 11)
}

fn rc_result(_: &mut Cpu, v: u64, how: u64, flags: u64) -> Result<u64, Fault> {
    Ok(rotate_carry(v, how, flags).0)
}

fn rc_flags(_: &mut Cpu, v: u64, how: u64, flags: u64) -> Result<u64, Fault> {
    if (how & 0x3f).is_multiple_of(ty_of(how >> 8).bits() as u64 + 1) {
        return Ok(flags);
    }
    Ok(flags & !(flag::CF | flag::OF) | rotate_carry(v, how, flags).1)
}

fn bextr(_: &mut Cpu, v: u64, control: u64, ty: u64) -> Result<u64, Fault> {
    let (start, len) = (control as u8 as u32, (control >> 8) as u8 as u32);
    let v = (v & ty_of(ty).mask()).checked_shr(start).unwrap_or(0);
    Ok(v & !u64::MAX.checked_shl(len).unwrap_or(0))
}

fn pdep(_: &mut Cpu, v: u64, mask: u64, _: u64) -> Result<u64, Fault> {
    let (mut res, mut left, mut v) = (0, mask, v);
    while left != 0 {
        let bit = left & left.wrapping_neg();
        if v & 1 != 0 {
            res |= bit;
        }
        v >>= 1;
        left ^= bit;
    }
    Ok(res)
}

fn pext(_: &mut Cpu, v: u64, mask: u64, _: u64) -> Result<u64, Fault> {
    let (mut res, mut left, mut n) = (0, mask, 0);
    while left != 0 {
        let bit = left & left.wrapping_neg();
        res |= ((v & bit != 0) as u64) << n;
        n += 1;
        left ^= bit;
    }
    Ok(res)
}

/// CRC-32C table for one byte, reflected polynomial 0x82F63B78 (SDM 2, CRC32).
static CRC32C: [u32; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let (mut c, mut k) = (n as u32, 0);
        while k < 8 {
            c = if c & 1 != 0 { c >> 1 ^ 0x82f6_3b78 } else { c >> 1 };
            k += 1;
        }
        table[n] = c;
        n += 1;
    }
    table
};

fn crc32(_: &mut Cpu, crc: u64, data: u64, bytes: u64) -> Result<u64, Fault> {
    let mut crc = crc as u32;
    for byte in data.to_le_bytes().iter().take(bytes as usize) {
        crc = crc >> 8 ^ CRC32C[(crc as u8 ^ byte) as usize];
    }
    Ok(crc as u64)
}

fn random(cpu: &mut Cpu, _: u64, _: u64, _: u64) -> Result<u64, Fault> {
    // The next call gives another word.
    cpu.note_once();
    if let Some(random) = &mut cpu.random {
        return Ok(random.next_word());
    }
    thread_local! {
        static POOL: std::cell::RefCell<Pool> = const { std::cell::RefCell::new(Pool { words: [0; 64], left: 0 }) };
    }
    Ok(POOL.with_borrow_mut(Pool::next))
}

/// Random words from the host, fetched some at a time.
struct Pool {
    words: [u64; 64],
    left: usize,
}

impl Pool {
    fn next(&mut self) -> u64 {
        if self.left == 0 {
            let mut bytes = [0; 512];
            let filled = std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes));
            if let Err(e) = filled {
                tracing::error!("no random numbers from the host: {e}");
                return std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), self.left);
            }
            for (word, chunk) in self.words.iter_mut().zip(bytes.chunks_exact(8)) {
                *word = u64::from_le_bytes(chunk.try_into().unwrap_or_default());
            }
            self.left = self.words.len();
        }
        self.left -= 1;
        self.words.get(self.left).copied().unwrap_or(0)
    }
}

fn set_zf(cpu: &mut Cpu, set: bool) {
    let flags = cpu.rflags() & flag::ARITH & !flag::ZF;
    cpu.set_arith_flags(flags | if set { flag::ZF } else { 0 });
}

/// EDX:EAX or ECX:EBX.
fn pair(cpu: &Cpu, high: usize, low: usize) -> u64 {
    cpu.gpr(high) << 32 | cpu.gpr(low) & 0xffff_ffff
}

fn cmpxchg8b(cpu: &mut Cpu, addr: u64, _: u64, _: u64) -> Result<u64, Fault> {
    let expected = pair(cpu, reg::RDX, reg::RAX);
    let old = cpu.cas(Ty::I64, addr, expected, pair(cpu, reg::RCX, reg::RBX))?;
    if old != expected {
        set_reg(cpu, reg::RAX, Ty::I32, old);
        set_reg(cpu, reg::RDX, Ty::I32, old >> 32);
    }
    set_zf(cpu, old == expected);
    Ok(0)
}

fn cmpxchg16b(cpu: &mut Cpu, addr: u64, stack: u64, _: u64) -> Result<u64, Fault> {
    let wide = |cpu: &Cpu, high, low| (cpu.gpr(high) as u128) << 64 | cpu.gpr(low) as u128;
    if addr & 15 != 0 {
        return Err(Fault::GP0);
    }
    if !cpu.canonical(addr) {
        return Err(if stack != 0 { Fault::SS0 } else { Fault::GP0 });
    }
    let expected = wide(cpu, reg::RDX, reg::RAX);
    let old = cpu.cas128(addr, expected, wide(cpu, reg::RCX, reg::RBX))?;
    if old != expected {
        cpu.set_gpr(reg::RAX, old as u64);
        cpu.set_gpr(reg::RDX, (old >> 64) as u64);
    }
    set_zf(cpu, old == expected);
    Ok(0)
}

/// An address that is not canonical is left to the access: its fault comes first.
fn align(cpu: &mut Cpu, addr: u64, mask: u64, _: u64) -> Result<u64, Fault> {
    if addr & mask != 0 && cpu.canonical(addr) { Err(Fault::with_code(vector::AC, 0)) } else { Ok(0) }
}

fn align_vector(_: &mut Cpu, addr: u64, mask: u64, _: u64) -> Result<u64, Fault> {
    if addr & mask != 0 { Err(Fault::GP0) } else { Ok(0) }
}

/// #AC for a helper's own access if alignment checks are on.
pub(super) fn check_alignment(cpu: &Cpu, linear: u64, bytes: u64) -> Result<u64, Fault> {
    if cpu.state.mode & mode::ALIGN_CHECK != 0 && linear & (bytes - 1) != 0 && cpu.canonical(linear) {
        return Err(Fault::with_code(vector::AC, 0));
    }
    Ok(linear)
}

fn bound(_: &mut Cpu, outside: u64, _: u64, _: u64) -> Result<u64, Fault> {
    if outside != 0 { Err(Fault::new(vector::BR)) } else { Ok(0) }
}

/// Linear address of a stack offset, checked for an access of `ty` in legacy modes.
fn stack_address(cpu: &mut Cpu, offset: u64, ty: Ty, write: bool) -> Result<u64, Fault> {
    let linear = if cpu.state.mode & (mode::CS64 | mode::FLAT) != 0 {
        offset
    } else {
        cpu.seg_check(reg::SS, offset, ty.bytes() as u32, write)?
    };
    check_alignment(cpu, linear, ty.bytes() as u64)
}

/// ENTER (SDM 2, ENTER): nothing but memory changes before the last access that can fault.
fn enter(cpu: &mut Cpu, how: u64, size: u64, level: u64) -> Result<u64, Fault> {
    let (ty, stack) = (ty_of(how), ty_of(how >> 4));
    let (bytes, m) = (ty.bytes() as u64, stack.mask());
    let mut sp = cpu.gpr(reg::RSP).wrapping_sub(bytes) & m;
    let at = stack_address(cpu, sp, ty, true)?;
    cpu.store_flags(ty, at, cpu.gpr(reg::RBP), mem::STACK)?;
    let frame = cpu.gpr(reg::RSP) & !m | sp;
    let mut bp = cpu.gpr(reg::RBP) & m;
    for _ in 1..level {
        bp = bp.wrapping_sub(bytes) & m;
        let from = stack_address(cpu, bp, ty, false)?;
        let v = cpu.load_flags(ty, from, mem::STACK)?;
        sp = sp.wrapping_sub(bytes) & m;
        let to = stack_address(cpu, sp, ty, true)?;
        cpu.store_flags(ty, to, v, mem::STACK)?;
    }
    if level > 0 {
        sp = sp.wrapping_sub(bytes) & m;
        let to = stack_address(cpu, sp, ty, true)?;
        cpu.store_flags(ty, to, frame, mem::STACK)?;
    }
    let end = sp.wrapping_sub(size) & m;
    let last = stack_address(cpu, end, ty, true)?;
    cpu.load_flags(ty, last, mem::STACK | mem::WRITE_INTENT)?;
    set_reg(cpu, reg::RBP, ty, frame);
    let old = cpu.gpr(reg::RSP);
    cpu.set_gpr(reg::RSP, if stack == Ty::I16 { old & !m | end } else { end });
    Ok(0)
}
