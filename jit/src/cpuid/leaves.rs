//! What CPUID returns, leaf by leaf (SDM 2A, CPUID).

use super::features::word;
use super::{CpuModel, Feature, Topology};
use crate::board::TSC_HZ;
use crate::mmu::walk::PHYS_BITS;

/// Crystal clock of leaf 0x15 in Hz; the TSC runs at 40 times it.
const CRYSTAL_HZ: u64 = 25_000_000;
/// Bytes of the legacy region and header of an XSAVE area: x87 and SSE state.
const XSAVE_BASE: u32 = 576;
/// Bytes of AVX state, which follows them in either format.
const XSAVE_AVX: u32 = 256;

/// What CPUID depends on besides the model.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dynamic {
    /// Initial APIC ID.
    pub apic_id: u32,
    /// All processors.
    pub topology: Topology,
    /// CR4.OSXSAVE.
    pub osxsave: bool,
    /// XCR0.
    pub xcr0: u64,
    /// IA32_APIC_BASE bit 11: without it the APIC bit reads 0.
    pub apic_enabled: bool,
}

/// Leaf 7, EBX: the x87 data pointer follows unmasked exceptions only (6), FCS and FDS are deprecated (13). So the
/// engine's x87 works for every model.
const X87_POINTERS: u32 = 1 << 6 | 1 << 13;

impl CpuModel {
    /// EAX, EBX, ECX, EDX.
    pub fn cpuid(&self, leaf: u32, subleaf: u32, d: &Dynamic) -> [u32; 4] {
        let leaf = match leaf {
            0x4000_0000..=0x4fff_ffff if self.has(Feature::HYPERVISOR) => leaf,
            // SDM 2A: a number out of range gives the data of the highest basic leaf.
            0x8000_0000..=0x8000_0008 => leaf,
            n if n <= self.max_leaf() => leaf,
            0x1f if d.topology.dies > 1 => leaf,
            _ => self.max_leaf(),
        };
        match leaf {
            0 => {
                let v = |n: usize| {
                    u32::from_le_bytes([self.vendor[n], self.vendor[n + 1], self.vendor[n + 2], self.vendor[n + 3]])
                };
                [self.max_leaf(), v(0), v(8), v(4)]
            }
            1 => self.leaf1(d),
            2 if self.intel() => [0x00ff_ff01, 0, 0, 0],
            4 if self.intel() => cache(subleaf, d),
            5 if self.has(Feature::MONITOR) => [64, 64, 3, 0],
            6 => [self.words[word::F6_EAX], 0, 0, 0],
            7 if subleaf == 0 => [
                if self.words[word::F7_2_EDX] != 0 { 2 } else { 0 },
                self.words[word::F7_EBX] | X87_POINTERS,
                self.words[word::F7_ECX],
                self.words[word::F7_EDX],
            ],
            7 if subleaf == 2 => [0, 0, 0, self.words[word::F7_2_EDX]],
            0xb => levels(subleaf, d, false),
            0x1f => levels(subleaf, d, true),
            0xd => self.leaf_xsave(subleaf, d),
            0x15 => [1, (TSC_HZ / CRYSTAL_HZ) as u32, CRYSTAL_HZ as u32, 0],
            0x16 => [(TSC_HZ / 1_000_000) as u32, (TSC_HZ / 1_000_000) as u32, 100, 0],
            0x4000_0000..=0x4fff_ffff => hypervisor(leaf),
            0x8000_0000..=0x8000_0008 => self.extended(leaf, d),
            _ => [0; 4],
        }
    }

    fn max_leaf(&self) -> u32 {
        if self.has(Feature::INVTSC) {
            0x16
        } else if self.has(Feature::XSAVE) || self.has(Feature::ARAT) {
            0xd
        } else if self.intel() && self.has(Feature::SSSE3) {
            0xb
        } else {
            7
        }
    }

    fn leaf1(&self, d: &Dynamic) -> [u32; 4] {
        let many = d.topology.per_package() > 1;
        let ids = (1 << d.topology.package_shift()).min(255);
        let ebx = d.apic_id << 24 | ids << 16 | 8 << 8;
        let mut ecx = self.words[word::F1_ECX];
        if d.osxsave {
            ecx |= 1 << 27;
        }
        let mut edx = self.words[word::F1_EDX];
        if !d.apic_enabled {
            edx &= !(1 << 9);
        }
        if many {
            edx |= 1 << 28;
        }
        [self.signature, ebx, ecx, edx]
    }

    fn leaf_xsave(&self, subleaf: u32, d: &Dynamic) -> [u32; 4] {
        if !self.has(Feature::XSAVE) {
            return [0; 4];
        }
        let size = |components: u64| XSAVE_BASE + if components & 4 != 0 { XSAVE_AVX } else { 0 };
        match subleaf {
            0 => [self.xcr0_mask() as u32, size(d.xcr0), size(self.xcr0_mask()), 0],
            1 => {
                let compact = self.has(Feature::XSAVEC) || self.has(Feature::XSAVES);
                [self.words[word::D1_EAX], if compact { size(d.xcr0) } else { 0 }, 0, 0]
            }
            2 if self.has(Feature::AVX) => [XSAVE_AVX, XSAVE_BASE, 0, 0],
            _ => [0; 4],
        }
    }

    fn extended(&self, leaf: u32, d: &Dynamic) -> [u32; 4] {
        match leaf {
            0x8000_0000 => {
                let v = self.cpuid(0, 0, d);
                let max = 0x8000_0008;
                if self.intel() { [max, 0, 0, 0] } else { [max, v[1], v[2], v[3]] }
            }
            0x8000_0001 => {
                let mut edx = self.words[word::E1_EDX];
                if !self.intel() {
                    // AMD repeats leaf 1's bits here.
                    edx |= self.leaf1(d)[3] & 0x0183_f3ff;
                }
                [if self.intel() { 0 } else { self.signature }, 0, self.words[word::E1_ECX], edx]
            }
            0x8000_0002..=0x8000_0004 => self.brand(leaf - 0x8000_0002),
            0x8000_0005 if !self.intel() => [0x01ff_01ff, 0x01ff_01ff, 0x4002_0140, 0x4002_0140],
            0x8000_0006 => [0, if self.intel() { 0 } else { 0x4200_4200 }, 0x0100_8040 | 0x0000_2100, 0],
            0x8000_0007 => [0, 0, 0, self.words[word::E7_EDX]],
            0x8000_0008 => {
                let linear = if self.has(Feature::LM) { 48 << 8 } else { 32 << 8 };
                let t = d.topology;
                let package = t.package_shift() << 12 | (t.per_package() - 1).min(255);
                [PHYS_BITS | linear, 0, if self.intel() { 0 } else { package }, 0]
            }
            _ => [0; 4],
        }
    }

    fn brand(&self, part: u32) -> [u32; 4] {
        let mut text = [0u8; 48];
        let n = self.brand.len().min(47);
        text[..n].copy_from_slice(&self.brand.as_bytes()[..n]);
        std::array::from_fn(|i| {
            let at = part as usize % 3 * 16 + i * 4;
            u32::from_le_bytes([text[at], text[at + 1], text[at + 2], text[at + 3]])
        })
    }
}

/// Leaf 4: 32 KiB L1 data and code and 1 MiB L2 of each core, 16 MiB L3 of each die.
fn cache(subleaf: u32, d: &Dynamic) -> [u32; 4] {
    let core = 1 << d.topology.thread_bits();
    let (kind, level, ways, sets, shared) = match subleaf {
        0 => (1, 1, 8, 64, core),
        1 => (2, 1, 8, 64, core),
        2 => (3, 2, 16, 1024, core),
        3 => (3, 3, 16, 16384, 1 << d.topology.die_shift()),
        _ => return [0; 4],
    };
    let cores = (1 << (d.topology.package_shift() - d.topology.thread_bits()).min(6)) - 1;
    let eax = kind | level << 5 | 1 << 8 | (shared - 1).min(0xfff) << 14 | cores << 26;
    [eax, (ways - 1) << 22 | 63, sets - 1, 0]
}

/// Leaf 0xB, and with `dies` leaf 0x1F: for each level the width of its part of the APIC ID, and its processors.
fn levels(subleaf: u32, d: &Dynamic, dies: bool) -> [u32; 4] {
    // Level types (SDM 2A, CPUID, leaf 1FH).
    const THREAD: u32 = 1;
    const CORE: u32 = 2;
    const DIE: u32 = 5;
    let t = &d.topology;
    let (shift, processors, kind) = match subleaf {
        0 => (t.thread_bits(), t.threads, THREAD),
        1 if dies => (t.die_shift(), t.cores * t.threads, CORE),
        1 => (t.package_shift(), t.per_package(), CORE),
        2 if dies => (t.package_shift(), t.per_package(), DIE),
        _ => (0, 0, 0),
    };
    [shift, processors, kind << 8 | subleaf & 0xff, d.apic_id]
}

/// Leaves 0x40000000 on: signature, and TSC and APIC bus frequency in kHz (the layout VMware and KVM share).
fn hypervisor(leaf: u32) -> [u32; 4] {
    let v = |s: &[u8; 4]| u32::from_le_bytes(*s);
    match leaf {
        0x4000_0000 => [0x4000_0010, v(b"Brol"), v(b"gaBr"), v(b"olga")],
        0x4000_0010 => [(TSC_HZ / 1000) as u32, 1_000_000, 0, 0],
        _ => [0; 4],
    }
}
