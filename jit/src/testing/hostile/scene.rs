//! A random machine: mode, registers, tables and code, all from one seed.

use super::{Lab, RAM, ROM, code};
use crate::cpu::Cpu;
use crate::state::{HIGH, Segment, TableRegister, attr, cr0, cr4, efer, flag, reg};
use crate::testing::Random;

const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
const STUBS: u64 = 0x4000;
/// Where the paging structures lie.
pub const TABLES: u64 = 0x8000;
/// Their size.
pub const TABLES_SIZE: u64 = 0x4000;
const CODE: u64 = 0x1_0000;
const STACK: u64 = 0x3_0000;

/// Modes of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Real-address mode.
    Real,
    /// Virtual-8086 mode under 32-bit paging.
    Virtual86,
    /// Protected mode with 16-bit segments that are not flat, no paging.
    Protected16,
    /// Flat 32-bit protected mode, no paging.
    Protected32,
    /// Flat 32-bit protected mode with 32-bit paging.
    Paged,
    /// The same with PAE paging.
    Pae,
    /// 64-bit mode.
    Long,
    /// Compatibility mode, 32-bit or 16-bit code.
    Compatibility,
}

const MODES: [Mode; 8] = [
    Mode::Real,
    Mode::Virtual86,
    Mode::Protected16,
    Mode::Protected32,
    Mode::Paged,
    Mode::Pae,
    Mode::Long,
    Mode::Compatibility,
];

/// What happens around the processor in a case.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// Request bits raised before each run.
    pub raise: [u32; 4],
    /// Vectors the interrupt controller gives, in order.
    pub vectors: Vec<u8>,
    /// Runs at most, going on after HLT.
    pub rounds: usize,
}

/// Sets the machine up; what is to happen to it.
pub fn build(lab: &mut Lab, seed: u64) -> Script {
    let mut r = Random::new(seed);
    let mode = r.pick(&MODES);
    let user = mode == Mode::Virtual86 || mode != Mode::Real && r.chance(50);
    let bits = match mode {
        Mode::Real | Mode::Virtual86 | Mode::Protected16 => 16,
        Mode::Compatibility if r.chance(30) => 16,
        Mode::Long => 64,
        _ => 32,
    };
    memory(lab, &mut r, mode, bits);
    lab.cpu.reset();
    registers(&mut lab.cpu, &mut r);
    control(&mut lab.cpu, &mut r, mode);
    segments(&mut lab.cpu, &mut r, mode, user, bits);
    let cpu = &mut lab.cpu;
    let mut flags = r.bits() & (flag::ARITH | flag::IF | flag::DF | flag::IOPL);
    for (bit, percent) in [(flag::AC, 20), (flag::NT, 5), (flag::TF, 5), (flag::RF, 5), (flag::VIF, 5), (flag::ID, 30)]
    {
        if r.chance(percent) {
            flags |= bit;
        }
    }
    if mode == Mode::Virtual86 {
        flags |= flag::VM;
    }
    cpu.set_rflags(flags);
    if cpu.pae_paging() {
        let _ = cpu.load_pdptes();
    }
    cpu.flush_tlb_all();
    script(&mut r)
}

fn script(r: &mut Random) -> Script {
    let mut s = Script { rounds: 1 + r.below(4) as usize, ..Script::default() };
    for bits in &mut s.raise {
        if r.chance(30) {
            // Interrupt, NMI, INIT (rarely), SMI, the engine's own.
            *bits = r.bits() as u32 & 0b11_0011 | (r.chance(3) as u32) << 3;
        }
    }
    s.vectors = (0..r.below(6)).map(|_| r.bits() as u8).collect();
    s
}

/// Tables and code in RAM, over noise.
fn memory(lab: &mut Lab, r: &mut Random, mode: Mode, bits: u32) {
    lab.noise();
    let long = matches!(mode, Mode::Long | Mode::Compatibility);
    let mut gdt: Vec<u64> = (0..32).map(|_| r.bits()).collect();
    for (slot, low) in gdt.iter_mut().zip(descriptors()) {
        *slot = low;
    }
    for slot in &mut gdt {
        if r.chance(5) {
            *slot ^= 1 << r.below(64);
        }
    }
    lab.put64s(GDT, &gdt);
    gates(lab, r, mode, long);
    // Stacks of the rings, and the I/O map.
    let stacks: Vec<u64> = (0..13).map(|_| if r.chance(90) { STACK + r.below(0x100) * 16 } else { r.bits() }).collect();
    let mut tss: Vec<u8> = stacks.iter().flat_map(|v| v.to_le_bytes()).collect();
    if !long {
        for (offset, v) in [(4, STACK as u32), (8, 0x10), (12, STACK as u32), (16, 0x10)] {
            tss[offset..offset + 4].copy_from_slice(&v.to_le_bytes());
        }
    } else {
        // RSP0 starts at an odd doubleword.
        tss.insert(0, 0);
        tss.splice(0..1, [0; 4]);
    }
    tss.truncate(0x66);
    tss.extend([0x68, 0]);
    lab.put(TSS, &tss);
    paging(lab, r, mode);
    let mut bytes = vec![0; 0x2000];
    code::fill(r, bits, &mut bytes);
    lab.put(CODE, &bytes);
}

/// A segment descriptor: `flags` are G, D/B, L, AVL.
fn descriptor(base: u32, limit: u32, access: u64, flags: u64) -> u64 {
    let (b, l) = (u64::from(base), u64::from(limit));
    l & 0xffff | (b & 0xff_ffff) << 16 | access << 40 | (l >> 16 & 15) << 48 | flags << 52 | (b >> 24) << 56
}

/// Flat and narrow segments of both rings, gates' and TSS's in their places.
fn descriptors() -> [u64; 12] {
    use descriptor as d;
    [
        0,
        d(0, 0xfffff, 0x9b, 0xc),
        d(0, 0xfffff, 0x93, 0xc),
        d(0, 0xfffff, 0xfb, 0xc),
        d(0, 0xfffff, 0xf3, 0xc),
        d(CODE as u32, 0xffff, 0x9b, 0),
        d(STACK as u32, 0xffff, 0x93, 0),
        d(0, 0xfffff, 0x9b, 0xa),
        d(0, 0xfffff, 0xfb, 0xa),
        d(TSS as u32, 0x2068, 0x89, 0),
        0,
        d(CODE as u32, 0x3fff, 0xf7, 4),
    ]
}

/// The interrupt table: most gates lead to stubs that halt, some to stubs of noise, some are noise.
fn gates(lab: &mut Lab, r: &mut Random, mode: Mode, long: bool) {
    let code = if long { 0x38 } else { 0x08 };
    for v in 0..256 {
        let target = STUBS + 16 * v;
        let noise = r.chance(10);
        let mut gate = if mode == Mode::Real {
            target & 0xf | (target >> 4) << 16
        } else {
            let kind = r.pick(&[0x8e, 0xee, 0x8f, 0xef]);
            target & 0xffff | code << 16 | kind << 40 | (target >> 16) << 48
        };
        if r.chance(5) {
            gate = r.bits();
        }
        match (mode, long) {
            (Mode::Real, _) => lab.put(4 * v, &(gate as u32).to_le_bytes()),
            (_, true) => lab.put64s(IDT + 16 * v, &[gate, if noise { r.bits() } else { 0 }]),
            _ => lab.put64s(IDT + 8 * v, &[gate]),
        }
        if !noise {
            // HLT, and what may follow it: a return.
            lab.put(target, &[0xf4, 0xcf]);
        }
    }
}

/// An identity mapping of low memory with random rights; some entries lead elsewhere, some are noise.
fn paging(lab: &mut Lab, r: &mut Random, mode: Mode) {
    let odd = r.chance(50);
    let entry = |r: &mut Random, good: u64, wide: bool| {
        if !odd || r.chance(90) {
            return good;
        }
        match r.below(6) {
            0 => good & !1,
            1 => good & !2,
            2 => good & !4,
            3 if wide => good | 1 << 63,
            4 => r.below(RAM >> 12) << 12 | good & 0xfff,
            5 => r.bits(),
            _ => good | 0x80,
        }
    };
    let wide = !matches!(mode, Mode::Paged | Mode::Virtual86);
    // Page tables of 2 MiB each in `wide`, else of 4 MiB; RAM ends far below.
    let pages = if wide { 512 } else { 1024 };
    let accessed = if r.chance(70) { 0x67 } else { 7 };
    let table: Vec<u64> = (0..pages).map(|n| entry(r, n << 12 | accessed, wide)).collect();
    let put = |lab: &mut Lab, at: u64, entries: &[u64]| {
        if wide {
            lab.put64s(at, entries);
        } else {
            let bytes: Vec<u8> = entries.iter().flat_map(|e| (*e as u32).to_le_bytes()).collect();
            lab.put(at, &bytes);
        }
    };
    put(lab, TABLES + 0x3000, &table);
    let mut directory: Vec<u64> = (0..8).map(|n| entry(r, n << 21 | 0x80 | accessed, wide)).collect();
    directory[0] = entry(r, (TABLES + 0x3000) | 7, wide);
    match mode {
        Mode::Paged | Mode::Virtual86 => {
            directory[1] = TABLES | 7;
            put(lab, TABLES, &directory);
        }
        Mode::Pae => {
            put(lab, TABLES, &[(TABLES + 0x2000) | 1, TABLES | 1, (TABLES + 0x3000) | 1, 0]);
            put(lab, TABLES + 0x2000, &directory);
        }
        _ => {
            let (pdpt, self_map) = ((TABLES + 0x1000) | 7, TABLES | 7);
            put(lab, TABLES, &[pdpt, self_map]);
            let pd = entry(r, (TABLES + 0x2000) | 7, true);
            put(lab, TABLES + 0x1000, &[pd, 0x4000_0087]);
            put(lab, TABLES + 0x2000, &directory);
        }
    }
}

fn registers(cpu: &mut Cpu, r: &mut Random) {
    for n in 0..16 {
        let v = r.register();
        cpu.set_gpr(n, v);
    }
    // Counts of repeated instructions.
    if r.chance(80) {
        cpu.set_gpr(reg::RCX, r.below(0x200));
    }
    let s = &mut cpu.state;
    for v in &mut s.vecs[..2 * HIGH] {
        *v = match r.below(3) {
            0 => u128::from(r.bits()) << 64 | u128::from(r.bits()),
            1 => u128::from((r.below(100) as f64).to_bits()) * (1 + (1 << 64)),
            _ => u128::from((r.below(100) as f32 / 3.0).to_bits()) * 0x1_0000_0001_0000_0001_0000_0001,
        };
    }
    if r.chance(20) {
        s.mxcsr = r.bits() as u32 & 0xffff;
    }
    if r.chance(70) {
        s.x87.fcw = if r.chance(80) { 0x37f } else { r.bits() as u16 & 0xf3f | 0x40 };
        s.x87.fsw = r.bits() as u16 & 0x7f7f;
        s.x87.tags = r.bits() as u8;
        for v in &mut s.x87.regs {
            *v = (u128::from(r.bits()) | u128::from(r.bits() as u16) << 64) | 1 << 63;
        }
    }
}

fn control(cpu: &mut Cpu, r: &mut Random, mode: Mode) {
    let s = &mut cpu.state;
    s.cr0 = cr0::ET;
    for (bit, percent) in [(cr0::MP, 50), (cr0::EM, 5), (cr0::TS, 8), (cr0::NE, 80), (cr0::WP, 70), (cr0::AM, 40)] {
        if r.chance(percent) {
            s.cr0 |= bit;
        }
    }
    let any = [cr4::VME, cr4::PVI, cr4::TSD, cr4::DE, cr4::PSE, cr4::PGE, cr4::PCE, cr4::UMIP, cr4::SMEP, cr4::SMAP];
    for bit in any {
        if r.chance(25) {
            s.cr4 |= bit;
        }
    }
    if r.chance(90) {
        s.cr4 |= cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE;
        s.xcr0 = if r.chance(80) { cpu.model.xcr0_mask() } else { 3 };
    }
    if mode != Mode::Real {
        s.cr0 |= cr0::PE;
    }
    if matches!(mode, Mode::Virtual86 | Mode::Paged | Mode::Pae | Mode::Long | Mode::Compatibility) {
        s.cr0 |= cr0::PG;
        s.cr3 = TABLES;
    }
    s.efer = r.bits() & (efer::SCE | efer::NXE);
    match mode {
        Mode::Pae => s.cr4 |= cr4::PAE,
        Mode::Long | Mode::Compatibility => {
            s.cr4 |= cr4::PAE | r.bits() & (cr4::FSGSBASE | cr4::PCIDE);
            s.efer |= efer::LME | efer::LMA;
        }
        _ => s.cr4 &= !cr4::PAE,
    }
    if r.chance(5) {
        s.dr[7] |= r.bits() & 0xffff_03ff;
        s.dr[..4].fill_with(|| CODE + r.below(0x40));
    }
    s.gdtr = TableRegister { base: GDT, limit: 0xff };
    s.idtr = TableRegister { base: IDT, limit: 0xfff };
    s.tr = Segment { base: TSS, limit: 0x2068, attributes: attr::P | 11, selector: 0x48 };
    if mode == Mode::Real {
        s.idtr = TableRegister { base: 0, limit: 0x3ff };
    }
    let m = &mut s.msr;
    (m.lstar, m.cstar, m.star) = (STUBS, STUBS, 0x0033_0008 << 32);
    (m.sysenter_cs, m.sysenter_esp, m.sysenter_eip) = (8, STACK, STUBS);
    (m.kernel_gs_base, m.sfmask) = (r.address(), r.bits() & 0x3f_7fd5);
}

fn segments(cpu: &mut Cpu, r: &mut Random, mode: Mode, user: bool, bits: u32) {
    let s = &mut cpu.state;
    let dpl = if user { 3 << attr::DPL_SHIFT } else { 0 };
    let data = attr::P | attr::S | attr::RW | attr::ACCESSED | dpl;
    let flat = Segment { base: 0, limit: u32::MAX, attributes: data | attr::G | attr::DB, selector: 0x10 };
    s.segs = [Segment { selector: if user { 0x23 } else { 0x10 }, ..flat }; 6];
    let start = CODE + r.below(0x800);
    s.rip = start;
    match mode {
        Mode::Real | Mode::Virtual86 => {
            for g in &mut s.segs {
                let selector = (r.below(RAM) >> 4) as u16;
                let attributes = if mode == Mode::Real { data } else { data | 3 << attr::DPL_SHIFT };
                *g = Segment { base: u64::from(selector) << 4, limit: 0xffff, attributes, selector };
                if mode == Mode::Real && r.chance(10) {
                    // "Unreal" mode.
                    g.limit = u32::MAX;
                }
            }
            let cs = &mut s.segs[reg::CS];
            (cs.selector, cs.base) = ((CODE >> 4) as u16, CODE);
            s.rip = start - CODE;
            s.segs[reg::SS].base = STACK;
            s.segs[reg::SS].selector = (STACK >> 4) as u16;
        }
        Mode::Protected16 => {
            for g in &mut s.segs {
                let down = if r.chance(20) { attr::EC } else { 0 };
                let limit = if r.chance(70) { 0xffff } else { r.below(0x1_0000) as u32 };
                *g = Segment { base: r.below(RAM), limit, attributes: data | down, selector: g.selector };
            }
            s.segs[reg::CS].base = CODE;
            s.rip = start - CODE;
            s.segs[reg::CS].limit = 0xffff;
            s.segs[reg::SS] = Segment { base: STACK, limit: 0xffff, attributes: data, selector: 0x30 | dpl >> 5 };
        }
        _ => {}
    }
    let cs = &mut s.segs[reg::CS];
    if !matches!(mode, Mode::Real | Mode::Virtual86) {
        cs.attributes = cs.attributes & !(attr::EC | attr::DB) | attr::CODE;
        cs.selector = if user { 0x1b } else { 0x08 };
        cs.attributes |= if bits == 32 { attr::DB } else { 0 };
        if bits == 64 {
            cs.attributes |= attr::L;
            cs.selector = if user { 0x43 } else { 0x38 };
        }
    }
    if mode == Mode::Long {
        s.segs[reg::FS].base = r.address();
        s.segs[reg::GS].base = r.address();
    }
    if r.chance(95) {
        s.vals[reg::RSP] = if bits == 16 { 0x800 + r.below(0x800) } else { STACK + r.below(0x1000) };
    }
    if r.chance(5) {
        // Near the end of the address space's or segment's code.
        s.rip = if bits == 16 { 0xfff0 + r.below(16) } else { ROM + 0xff0 + r.below(16) };
    }
}
