//! FNSTENV, FLDENV, FNSAVE, FRSTOR: environments of 14 and 28 bytes in protected and real format (SDM 1, 8.1.10).

use super::control::pending;
use crate::cpu::Cpu;
use crate::fault::Fault;
use crate::state::{X87, mode};

/// Layout of an environment.
#[derive(Clone, Copy)]
struct Layout {
    /// 32-bit operand size: 28 bytes.
    wide: bool,
    /// Protected mode (not virtual-8086).
    protected: bool,
}

impl Layout {
    fn new(cpu: &Cpu, bytes: u64) -> Self {
        let m = cpu.state.mode;
        Self { wide: bytes == 28 || bytes == 108, protected: m & mode::PE != 0 && m & mode::VM86 == 0 }
    }
    fn len(self) -> usize {
        if self.wide { 28 } else { 14 }
    }
    /// The seven fields; the halves that are reserved in the wide one read as ones or hold more.
    fn fields(self, x: &X87) -> [u32; 7] {
        let (fip, fdp, fop) = (x.fip as u32, x.fdp as u32, x.fop as u32);
        let high = 0xffff_0000;
        let [ip, op, dp, ds] = match (self.protected, self.wide) {
            (true, true) => [fip, x.fcs as u32 | fop << 16, fdp, high | x.fds as u32],
            (true, false) => [fip, x.fcs as u32, fdp, x.fds as u32],
            (false, true) => [high | fip & 0xffff, fip >> 16 << 12 | fop, high | fdp & 0xffff, fdp >> 16 << 12],
            (false, false) => [fip, fip >> 16 << 12 | fop, fdp, fdp >> 16 << 12],
        };
        [high | x.fcw as u32, high | x.fsw as u32, high | x.tag_word() as u32, ip, op, dp, ds]
    }
    fn bytes(self, x: &X87) -> Vec<u8> {
        let fields = self.fields(x);
        if self.wide {
            fields.iter().flat_map(|f| f.to_le_bytes()).collect()
        } else {
            fields.iter().flat_map(|f| (*f as u16).to_le_bytes()).collect()
        }
    }
    fn load(self, x: &mut X87, bytes: &[u8]) {
        let size = if self.wide { 4 } else { 2 };
        let field = |n: usize| -> u32 {
            bytes.get(n * size..(n + 1) * size).map_or(0, |b| b.iter().rev().fold(0, |v, x| v << 8 | *x as u32))
        };
        x.fsw = field(1) as u16;
        x.set_tag_word(field(2) as u16);
        let join = |low: u32, high: u32| ((low & 0xffff) | (high >> 12 & 0xffff) << 16) as u64;
        if self.protected {
            (x.fip, x.fdp) = (field(3) as u64, field(5) as u64);
            x.fop = if self.wide { (field(4) >> 16) as u16 & 0x7ff } else { 0 };
        } else {
            (x.fip, x.fdp) = (join(field(3), field(4)), join(field(5), field(6)));
            x.fop = field(4) as u16 & 0x7ff;
        }
        x.set_fcw(field(0) as u16);
    }
}

/// The segment of an image, for a helper's operand: to be joined with the offset in the segment, of 32 bits.
pub fn segmented_place(seg: usize) -> i64 {
    (seg as i64 + 1) << 32
}

/// Checks the limit for each piece of an image at `place` ([`segmented_place`], or 0), the first one excepted. Silicon goes
/// piece by piece: page faults before the piece that is beyond the limit come first (measured).
fn check_pieces(cpu: &mut Cpu, layout: Layout, linear: u64, bytes: u64, place: u64, write: bool) -> Result<(), Fault> {
    let Some(seg) = (place >> 32).checked_sub(1) else { return Ok(()) };
    let (offset, field) = (place & 0xffff_ffff, if layout.wide { 4 } else { 2 });
    let fields = (0..layout.len() as u64).step_by(field as usize).map(|at| (at, field));
    let registers = (layout.len() as u64..bytes).step_by(10).map(|at| (at, 10));
    for (at, len) in fields.chain(registers).skip(1) {
        let Err(fault) = cpu.seg_check(seg as usize, offset + at, len, write) else { continue };
        if write {
            cpu.probe_write(linear, at)?;
        } else {
            cpu.load_bytes(linear, &mut [0; 108][..at as usize])?;
        }
        return Err(fault);
    }
    Ok(())
}

/// FNSTENV (14 or 28 bytes) or FNSAVE (94 or 108) to a linear address.
pub(super) fn save(cpu: &mut Cpu, address: u64, bytes: u64, place: u64) -> Result<u64, Fault> {
    let layout = Layout::new(cpu, bytes);
    check_pieces(cpu, layout, address, bytes, place, true)?;
    let whole = bytes > 28;
    let mut image = layout.bytes(&cpu.state.x87);
    if whole {
        for i in 0..8 {
            image.extend_from_slice(&cpu.state.x87.st(i).to_le_bytes()[..10]);
        }
    }
    cpu.store_bytes(address, &image)?;
    if whole {
        cpu.state.x87.finit();
    } else {
        // All exceptions are masked once the environment is saved.
        let fcw = cpu.state.x87.fcw;
        cpu.state.x87.set_fcw(fcw | 0x3f);
    }
    cpu.update_fpu_error();
    Ok(0)
}

/// FLDENV or FRSTOR from a linear address.
pub(super) fn restore(cpu: &mut Cpu, address: u64, bytes: u64, place: u64) -> Result<u64, Fault> {
    pending(cpu)?;
    let layout = Layout::new(cpu, bytes);
    check_pieces(cpu, layout, address, bytes, place, false)?;
    let mut image = [0; 108];
    let len = (bytes as usize).min(108);
    cpu.load_bytes(address, &mut image[..len])?;
    let x = &mut cpu.state.x87;
    layout.load(x, &image[..layout.len()]);
    if bytes > 28 {
        let tags = x.tags;
        for i in 0..8 {
            let at = layout.len() + 10 * i;
            let v = image[at..at + 10].iter().rev().fold(0u128, |v, b| v << 8 | *b as u128);
            x.set_st(i, v);
        }
        x.tags = tags;
    }
    cpu.update_fpu_error();
    Ok(0)
}
