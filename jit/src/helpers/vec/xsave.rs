//! FXSAVE, FXRSTOR and the XSAVE family (SDM 1, 10.5 and chapter 13).

use crate::cpu::Cpu;
use crate::fault::Fault;
use crate::helpers::vec::mxcsr::bit::{DEFAULT, DEFINED};
use crate::ir::Ty;
use crate::state::{HIGH, cr4};

/// x87 state component.
const X87: u64 = 1;
/// SSE state component: XMM registers, and MXCSR with it or AVX.
const SSE: u64 = 2;
/// AVX state component: high halves of the YMM registers.
const AVX: u64 = 4;
/// XCOMP_BV: the format is compacted.
const COMPACT: u64 = 1 << 63;

/// Offset of MXCSR in the legacy region.
const MXCSR: u64 = 24;
/// Offset of the XMM registers.
const XMM: u64 = 160;
/// Offset of the XSAVE header: XSTATE_BV, XCOMP_BV.
const HEADER: u64 = 512;
/// Offset of what follows the header: in either format AVX state, as nothing else comes before it.
const EXTENDED: u64 = 576;
/// Bytes of AVX state.
const AVX_SIZE: u64 = 256;

/// Which instruction of the family, and its operand size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Form {
    /// REX.W: 64-bit FIP and FDP.
    pub wide: bool,
    /// XSAVEC, XSAVES, XRSTORS: the compacted format.
    pub compact: bool,
    /// XSAVEOPT: components in their initial state are not written.
    pub optimised: bool,
    /// XSAVES, XRSTORS.
    pub supervisor: bool,
    /// The area is in the stack segment: #SS where others raise #GP.
    pub stack: bool,
}

impl Form {
    /// As an operand of the helpers.
    pub fn pack(self) -> i64 {
        let bits = [self.wide, self.compact, self.optimised, self.supervisor, self.stack];
        bits.iter().enumerate().map(|(n, b)| (*b as i64) << n).sum()
    }
    fn unpack(word: u64) -> Self {
        let b = |n: u32| word >> n & 1 != 0;
        Self { wide: b(0), compact: b(1), optimised: b(2), supervisor: b(3), stack: b(4) }
    }
}

/// Bytes of the largest area.
const AREA: usize = (EXTENDED + AVX_SIZE) as usize;
/// Most pieces of one: x87 state (two), MXCSR, XMM registers, AVX state, header.
const PIECES: usize = 6;

/// An area to be stored in pieces.
struct Area {
    bytes: [u8; AREA],
    /// Offset and length, in the order in which they are looked at and stored.
    pieces: [(usize, usize); PIECES],
    count: usize,
}

impl Area {
    fn new() -> Self {
        Self { bytes: [0; AREA], pieces: [(0, 0); PIECES], count: 0 }
    }

    /// Adds a piece of `len` bytes at `offset`, which are to be filled in.
    fn piece(&mut self, offset: u64, len: usize) -> &mut [u8] {
        let at = offset as usize;
        self.pieces[self.count] = (at, len);
        self.count += 1;
        &mut self.bytes[at..at + len]
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) {
        self.piece(offset, bytes.len()).copy_from_slice(bytes);
    }

    /// The pieces: offset and bytes.
    fn pieces(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.pieces[..self.count].iter().map(|(at, len)| (*at as u64, &self.bytes[*at..at + len]))
    }
}

impl Cpu {
    /// XMM registers that the current mode reaches.
    fn xmm_count(&self) -> usize {
        if self.state.long64() { 16 } else { 8 }
    }

    /// Puts the halves of the YMM registers, low (`part` 0) or high (1), into an area.
    fn put_xmm(&self, area: &mut Area, offset: u64, part: usize) {
        let registers = &self.state.vecs[part * HIGH..][..self.xmm_count()];
        let (bytes, _) = area.piece(offset, 16 * registers.len()).as_chunks_mut::<16>();
        bytes.iter_mut().zip(registers).for_each(|(b, v)| *b = v.to_le_bytes());
    }

    fn set_xmm_bytes(&mut self, part: usize, bytes: &[u8]) {
        for (n, b) in bytes.as_chunks::<16>().0.iter().enumerate().take(self.xmm_count()) {
            self.state.vecs[part * HIGH + n] = u128::from_le_bytes(*b);
        }
    }

    /// Puts MXCSR and its mask into an area.
    fn put_mxcsr(&self, area: &mut Area) {
        let both = u64::from(self.state.mxcsr) | u64::from(DEFINED) << 32;
        area.put(MXCSR, &both.to_le_bytes());
    }

    /// Puts x87 state into an area.
    fn put_x87(&self, area: &mut Area, form: Form) {
        let (head, registers) = self.state.x87.image(form.wide);
        area.put(0, &head);
        area.put(32, &registers);
    }

    /// An area of `bytes` bytes lies at canonical addresses, the first of them a multiple of `align`.
    fn check_area(&self, base: u64, form: Form, bytes: u64, align: u64) -> Result<(), Fault> {
        let canonical = self.canonical(base) && self.canonical(base.wrapping_add(bytes - 1));
        match (canonical, base & (align - 1)) {
            (true, 0) => Ok(()),
            (false, _) if form.stack => Err(Fault::SS0),
            _ => Err(Fault::GP0),
        }
    }

    /// Stores all pieces, or faults and stores none.
    fn store_area(&mut self, base: u64, area: &Area) -> Result<(), Fault> {
        for (offset, bytes) in area.pieces() {
            self.probe_write(base.wrapping_add(offset), bytes.len() as u64)?;
        }
        for (offset, bytes) in area.pieces() {
            self.store_bytes(base.wrapping_add(offset), bytes)?;
        }
        Ok(())
    }

    /// Components not in their initial state: XINUSE.
    pub fn xinuse(&self) -> u64 {
        let s = &self.state;
        let used = |part: usize| s.vecs[part * HIGH..][..self.xmm_count()].iter().any(|v| *v != 0);
        let mut r = 0;
        if !s.x87.is_initial() {
            r |= X87;
        }
        if used(0) {
            r |= SSE;
        }
        if used(1) {
            r |= AVX;
        }
        r
    }
}

fn u64_at(image: &[u8], at: u64) -> u64 {
    let at = at as usize;
    image.get(at..at + 8).map_or(0, |b| b.iter().rev().fold(0, |v, x| v << 8 | *x as u64))
}

fn mxcsr_of(image: &[u8]) -> Result<u32, Fault> {
    let v = u64_at(image, MXCSR) as u32;
    if v & !DEFINED != 0 { Err(Fault::GP0) } else { Ok(v) }
}

pub(super) fn fxsave(cpu: &mut Cpu, address: u64, form: u64, _: u64) -> Result<u64, Fault> {
    cpu.check_area(address, Form::unpack(form), HEADER, 16)?;
    // The last byte is looked at first (measured).
    cpu.probe_write(address.wrapping_add(HEADER - 1), 1)?;
    let mut area = Area::new();
    cpu.put_x87(&mut area, Form::unpack(form));
    // Without OSFXSR the SSE part is left out (SDM 2A FXSAVE); MXCSR and its mask come along.
    cpu.sync_mxcsr();
    cpu.put_mxcsr(&mut area);
    if cpu.state.cr4 & cr4::OSFXSR != 0 {
        cpu.put_xmm(&mut area, XMM, 0);
    }
    cpu.store_area(address, &area)?;
    Ok(0)
}

pub(super) fn fxrstor(cpu: &mut Cpu, address: u64, form: u64, _: u64) -> Result<u64, Fault> {
    cpu.check_area(address, Form::unpack(form), HEADER, 16)?;
    let mut image = [0; HEADER as usize];
    // The last byte is looked at first (measured).
    cpu.load(Ty::I8, address.wrapping_add(HEADER - 1))?;
    cpu.load_bytes(address, &mut image)?;
    let mxcsr = mxcsr_of(&image)?;
    cpu.state.x87.load_image(&image, Form::unpack(form).wide);
    cpu.update_fpu_error();
    if cpu.state.cr4 & cr4::OSFXSR != 0 {
        cpu.set_xmm_bytes(0, &image[XMM as usize..]);
    }
    cpu.set_mxcsr(mxcsr);
    Ok(0)
}

/// The features an instruction of the family works on.
fn requested(cpu: &Cpu, form: Form, mask: u64) -> u64 {
    let supervisor = if form.supervisor { cpu.state.msr.xss } else { 0 };
    (cpu.state.xcr0 | supervisor) & mask
}

pub(super) fn xsave(cpu: &mut Cpu, address: u64, form: u64, mask: u64) -> Result<u64, Fault> {
    let form = Form::unpack(form);
    cpu.check_area(address, form, EXTENDED, 64)?;
    let rfbm = requested(cpu, form, mask);
    // The last byte of header or AVX state is looked at first (measured).
    let size = if rfbm & AVX != 0 { EXTENDED + AVX_SIZE } else { EXTENDED };
    cpu.probe_write(address.wrapping_add(size - 1), 1)?;
    cpu.sync_mxcsr();
    let mut in_use = cpu.xinuse() & rfbm;
    // SDM 1, 13.7 to 13.11: MXCSR counts as SSE state in the forms that leave out initial components.
    let skips = form.compact || form.optimised;
    if skips && rfbm & SSE != 0 && cpu.state.mxcsr != DEFAULT {
        in_use |= SSE;
    }
    let written = if skips { in_use } else { rfbm };
    let mut area = Area::new();
    if written & X87 != 0 {
        cpu.put_x87(&mut area, form);
    }
    let mxcsr = if form.compact { written & SSE } else { rfbm & (SSE | AVX) };
    if mxcsr != 0 {
        cpu.put_mxcsr(&mut area);
    }
    if written & SSE != 0 {
        cpu.put_xmm(&mut area, XMM, 0);
    }
    if written & AVX != 0 {
        cpu.put_xmm(&mut area, EXTENDED, 1);
    }
    if form.compact {
        let header = u128::from(in_use) | u128::from(rfbm | COMPACT) << 64;
        area.put(HEADER, &header.to_le_bytes());
    } else {
        let mut old = [0; 8];
        cpu.load_bytes(address.wrapping_add(HEADER), &mut old)?;
        let bv = u64::from_le_bytes(old) & !rfbm | in_use;
        area.put(HEADER, &bv.to_le_bytes());
    }
    cpu.store_area(address, &area)?;
    Ok(0)
}

/// XSTATE_BV if the header is one that XRSTOR takes (SDM 1, 13.8 and 13.12), and whether it is compacted.
fn check_header(cpu: &Cpu, header: &[u8; 64], form: Form) -> Result<(u64, bool), Fault> {
    let (bv, comp) = (u64_at(header, 0), u64_at(header, 8));
    let enabled = requested(cpu, form, u64::MAX);
    let compact = comp & COMPACT != 0;
    let zero_from = if compact { 16 } else { 8 };
    let zero_to = if compact { 64 } else { 24 };
    let good = header[zero_from..zero_to].iter().all(|b| *b == 0)
        && bv & !enabled == 0
        && (compact || !form.supervisor)
        && (!compact || comp & !COMPACT & !enabled == 0 && bv & !comp == 0);
    if good { Ok((bv, compact)) } else { Err(Fault::GP0) }
}

pub(super) fn xrstor(cpu: &mut Cpu, address: u64, form: u64, mask: u64) -> Result<u64, Fault> {
    let form = Form::unpack(form);
    cpu.check_area(address, form, EXTENDED, 64)?;
    let rfbm = requested(cpu, form, mask);
    let mut header = [0; 64];
    // XCOMP_BV is looked at first, then the last byte of AVX state where that takes part (measured).
    let layout = cpu.load(Ty::I64, address.wrapping_add(HEADER + 8))?;
    if rfbm & AVX != 0 && (layout & COMPACT == 0 || layout & AVX != 0) {
        cpu.load(Ty::I8, address.wrapping_add(EXTENDED + AVX_SIZE - 1))?;
    }
    cpu.load_bytes(address.wrapping_add(HEADER), &mut header)?;
    let (bv, compact) = check_header(cpu, &header, form)?;
    let restored = rfbm & bv;
    let mut image = [0; AREA];
    if restored & (X87 | SSE) != 0 || !compact {
        cpu.load_bytes(address, &mut image[..HEADER as usize])?;
    }
    if restored & AVX != 0 {
        let upper = EXTENDED as usize..EXTENDED as usize + 16 * cpu.xmm_count();
        cpu.load_bytes(address.wrapping_add(EXTENDED), &mut image[upper])?;
    }
    // The standard form loads MXCSR whatever XSTATE_BV says; in the compacted one it belongs to SSE state.
    let mxcsr = match (compact, rfbm & (SSE | AVX) != 0) {
        (false, true) => Some(mxcsr_of(&image)?),
        (true, _) if rfbm & SSE != 0 => Some(if bv & SSE != 0 { mxcsr_of(&image)? } else { DEFAULT }),
        _ => None,
    };
    if rfbm & X87 != 0 {
        if bv & X87 != 0 {
            cpu.state.x87.load_image(&image, form.wide)
        } else {
            cpu.state.x87.initialise()
        }
        cpu.update_fpu_error();
    }
    for (component, part, at) in [(SSE, 0, XMM), (AVX, 1, EXTENDED)] {
        if rfbm & component != 0 {
            let initial = [0; 16 * HIGH];
            cpu.set_xmm_bytes(part, if bv & component != 0 { &image[at as usize..] } else { &initial });
        }
    }
    if let Some(v) = mxcsr {
        cpu.set_mxcsr(v);
    }
    Ok(0)
}
