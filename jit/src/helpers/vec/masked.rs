//! Memory accesses of selected elements (SDM 2C: VMASKMOV, VPMASKMOV, VGATHERDPS and on).

use super::{STAGE0, STAGE0_HIGH, STAGE1, STAGE1_HIGH};
use crate::cpu::Cpu;
use crate::fault::{Fault, vector};
use crate::ir::{Ty, mem};
use crate::mmu::ram::PAGE_SIZE;
use crate::state::{HIGH, reg};

/// A masked load or store, packed for the helpers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Masked {
    /// Segment of the operand.
    pub segment: u8,
    /// Elements of 64 bits, else 32.
    pub double: bool,
    /// 256 bits, else 128.
    pub wide: bool,
}

impl Masked {
    /// As an operand of the helpers.
    pub fn pack(self) -> i64 {
        i64::from(self.segment) | i64::from(self.double) << 8 | i64::from(self.wide) << 9
    }

    fn unpack(word: u64) -> Self {
        Self { segment: word as u8 & 7, double: word >> 8 & 1 != 0, wide: word >> 9 & 1 != 0 }
    }

    fn ty(self) -> Ty {
        if self.double { Ty::I64 } else { Ty::I32 }
    }

    /// Numbers of the elements whose sign is set in the mask.
    fn selected(self, mask: &Pair) -> Vec<usize> {
        let ty = self.ty();
        let count = if self.wide { 32 } else { 16 } / usize::from(ty.bytes());
        (0..count).filter(|n| mask.sign(ty, *n)).collect()
    }
}

/// A gather, packed for the helper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gather {
    /// Number of the destination register.
    pub d: u8,
    /// Number of the mask register.
    pub mask: u8,
    /// Number of the register with the indexes.
    pub index: u8,
    /// Segment of the operand.
    pub segment: u8,
    /// Indexes are shifted left by this.
    pub scale: u8,
    /// Elements of 64 bits, else 32.
    pub double: bool,
    /// Indexes of 64 bits, else 32.
    pub wide_index: bool,
    /// Elements.
    pub count: u8,
    /// Addresses are cut to 32 bits.
    pub address32: bool,
    /// The form of 256 bits, of data or indexes.
    pub wide: bool,
}

impl Gather {
    /// As an operand of the helper.
    pub fn pack(self) -> i64 {
        let numbers = [self.d, self.mask, self.index, self.segment, self.scale, self.count];
        let packed = numbers.iter().rev().fold(0, |word, n| word << 4 | i64::from(n & 15));
        packed
            | i64::from(self.double) << 24
            | i64::from(self.wide_index) << 25
            | i64::from(self.address32) << 26
            | i64::from(self.wide) << 27
    }

    fn unpack(word: u64) -> Self {
        let number = |n: u32| (word >> (4 * n)) as u8 & 15;
        let bit = |n: u32| word >> n & 1 != 0;
        Self {
            d: number(0),
            mask: number(1),
            index: number(2),
            segment: number(3),
            scale: number(4) & 3,
            count: number(5),
            double: bit(24),
            wide_index: bit(25),
            address32: bit(26),
            wide: bit(27),
        }
    }

    fn ty(self) -> Ty {
        if self.double { Ty::I64 } else { Ty::I32 }
    }
}

/// 256 bits.
#[derive(Clone, Copy, Default)]
struct Pair([u128; 2]);

impl Pair {
    /// An element, zero-extended; 0 beyond the last.
    fn get(&self, ty: Ty, n: usize) -> u64 {
        let at = n * ty.bits() as usize;
        self.0.get(at / 128).map_or(0, |half| (half >> (at % 128)) as u64 & ty.mask())
    }

    fn set(&mut self, ty: Ty, n: usize, v: u64) {
        let at = n * ty.bits() as usize;
        if let Some(half) = self.0.get_mut(at / 128) {
            let shift = at % 128;
            *half = *half & !(u128::from(ty.mask()) << shift) | u128::from(v & ty.mask()) << shift;
        }
    }

    /// With what lies behind the first `count` elements cleared.
    fn cut(mut self, ty: Ty, count: usize) -> Self {
        (count..8).for_each(|n| self.set(ty, n, 0));
        self
    }

    fn sign(&self, ty: Ty, n: usize) -> bool {
        self.get(ty, n) >> (ty.bits() - 1) != 0
    }
}

impl Cpu {
    fn ymm(&self, n: u8) -> Pair {
        let n = usize::from(n & 15);
        Pair([self.state.vecs[n], self.state.vecs[n + HIGH]])
    }

    fn set_ymm(&mut self, n: u8, v: Pair) {
        let n = usize::from(n & 15);
        [self.state.vecs[n], self.state.vecs[n + HIGH]] = v.0;
    }
}

/// Flags of an access through a segment.
fn access_flags(segment: u8) -> u16 {
    if usize::from(segment) == reg::SS { mem::STACK } else { 0 }
}

/// Element numbers and linear addresses of what stage 1 selects of memory at `offset`. Limits come before pages, for all
/// elements (measured).
fn places(cpu: &mut Cpu, what: Masked, offset: u64, write: bool) -> Result<Vec<(usize, u64)>, Fault> {
    let mask = Pair([cpu.state.vecs[STAGE1], cpu.state.vecs[STAGE1_HIGH]]);
    let bytes = what.ty().bytes();
    let width = if cpu.state.long64() { u64::MAX } else { u32::MAX.into() };
    let place = |n: usize| {
        let at = offset.wrapping_add(n as u64 * u64::from(bytes)) & width;
        Ok((n, cpu.seg_check(what.segment.into(), at, bytes.into(), write)?))
    };
    what.selected(&mask).into_iter().map(place).collect()
}

/// Stage 0 = the elements of memory at offset b that stage 1 selects, zero elsewhere.
pub(super) fn masked_load(cpu: &mut Cpu, what: u64, offset: u64, _: u64) -> Result<u64, Fault> {
    let what = Masked::unpack(what);
    let mut result = Pair::default();
    for (n, linear) in places(cpu, what, offset, false)? {
        result.set(what.ty(), n, cpu.load_flags(what.ty(), linear, access_flags(what.segment))?);
    }
    [cpu.state.vecs[STAGE0], cpu.state.vecs[STAGE0_HIGH]] = result.0;
    Ok(0)
}

/// Memory at offset b = the elements of stage 0 that stage 1 selects: all of them, or a fault and none.
pub(super) fn masked_store(cpu: &mut Cpu, what: u64, offset: u64, _: u64) -> Result<u64, Fault> {
    let what = Masked::unpack(what);
    let (ty, flags) = (what.ty(), access_flags(what.segment));
    let data = Pair([cpu.state.vecs[STAGE0], cpu.state.vecs[STAGE0_HIGH]]);
    let places = places(cpu, what, offset, true)?;
    let (Some((_, first)), Some((_, last))) = (places.first(), places.last()) else { return Ok(0) };
    let (first, last) = (*first, last.wrapping_add(u64::from(ty.bytes()) - 1));
    for (_, linear) in &places {
        if let Err(fault) = cpu.probe_store(*linear, ty.bytes().into(), flags) {
            // On the second page it is the last byte that is named (measured).
            let second = fault.vector == vector::PF && (fault.address ^ first) >= PAGE_SIZE;
            return Err(if second { Fault { address: last, ..fault } } else { fault });
        }
    }
    for (n, linear) in places {
        cpu.store_flags(ty, linear, data.get(ty, n), flags)?;
    }
    Ok(0)
}

/// Loads what the mask selects, element by element; b is what base and displacement give. Each element that is loaded
/// clears its part of the mask, so that the instruction goes on behind it after a fault.
pub(super) fn gather(cpu: &mut Cpu, what: u64, base: u64, _: u64) -> Result<u64, Fault> {
    let what = Gather::unpack(what);
    let (ty, flags) = (what.ty(), access_flags(what.segment));
    let index_ty = if what.wide_index { Ty::I64 } else { Ty::I32 };
    let (indexes, mut result, before) = (cpu.ymm(what.index), cpu.ymm(what.d), cpu.ymm(what.mask));
    let (mut mask, count) = (Pair::default(), usize::from(what.count));
    // The signs are spread first, in the whole register, and a fault shows that (measured).
    let width = if what.wide { 32 } else { 16 } / usize::from(ty.bytes());
    (0..width).filter(|n| before.sign(ty, *n)).for_each(|n| mask.set(ty, n, u64::MAX));
    let mut loaded = false;
    for n in (0..count).filter(|n| before.sign(ty, *n)) {
        let index = indexes.get(index_ty, n);
        let index = if what.wide_index { index } else { index as i32 as u64 };
        let offset = base.wrapping_add(index << what.scale);
        let offset = if what.address32 { offset & 0xffff_ffff } else { offset };
        let linear = cpu.seg_check(what.segment.into(), offset, ty.bytes().into(), false);
        match linear.and_then(|linear| cpu.load_flags(ty, linear, flags)) {
            Ok(v) => {
                result.set(ty, n, v);
                mask.set(ty, n, 0);
                loaded = true;
            }
            Err(fault) => {
                if loaded && !what.wide {
                    result.0[1] = 0;
                }
                cpu.set_ymm(what.d, result);
                cpu.set_ymm(what.mask, mask);
                return Err(fault);
            }
        }
    }
    cpu.set_ymm(what.d, result.cut(ty, count));
    cpu.set_ymm(what.mask, Pair::default());
    Ok(0)
}
