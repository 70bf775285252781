//! The models of `-cpu`. Each is a set of features; families, models and steppings are those of the real parts.

use super::features::Feature::{self, *};

/// Declaration of a model.
pub struct Template {
    /// Name on the command line.
    pub name: &'static str,
    /// One line for `-cpu help`.
    pub description: &'static str,
    /// Leaf 0 vendor string, 12 bytes.
    pub vendor: &'static [u8; 12],
    /// Family, model, stepping.
    pub signature: (u32, u32, u32),
    /// Brand string, at most 47 bytes.
    pub brand: &'static str,
    /// Lists of features.
    pub features: &'static [&'static [Feature]],
}

const INTEL: &[u8; 12] = b"GenuineIntel";
const AMD: &[u8; 12] = b"AuthenticAMD";

/// A 32-bit processor of the Pentium III kind.
const BASE32: &[Feature] = &[
    FPU, VME, DE, PSE, TSC, MSR, PAE, MCE, CX8, APIC, SEP, MTRR, PGE, MCA, CMOV, PAT, PSE36, CLFLUSH, MMX, FXSR, SSE,
    SSE2, HYPERVISOR,
];
/// The x86-64 baseline (x86-64-v1).
const V1: &[Feature] = &[SYSCALL, NX, LM];
/// x86-64-v2.
const V2: &[Feature] = &[SSE3, SSSE3, SSE4_1, SSE4_2, CX16, POPCNT, LAHF_LM];
/// What the interrupt controller and timers give to any later processor.
const PLATFORM: &[Feature] = &[X2APIC, TSC_DEADLINE, TSC_ADJUST, ARAT];
/// Westmere's additions to Nehalem.
const WESTMERE: &[Feature] = &[AES, PCLMULQDQ, RDTSCP, PCID];
/// What Haswell added to vectors. The engine does them with the host's own, so they take a host that has them.
pub(super) const AVX2_SET: &[Feature] = &[AVX, AVX2, FMA, F16C];
/// AES and carry-less multiplication of 256 bits.
const VECTOR_AES: &[Feature] = &[VAES, VPCLMULQDQ];
/// Beyond Westmere, as far as the engine goes, but for AVX and what follows from it.
const MODERN: &[Feature] = &[
    SS,
    XSAVE,
    XSAVEOPT,
    XSAVEC,
    XGETBV1,
    MOVBE,
    LZCNT,
    PREFETCHW,
    BMI1,
    BMI2,
    ADX,
    SHA_NI,
    RDRAND,
    RDSEED,
    RDPID,
    FSGSBASE,
    SMEP,
    SMAP,
    UMIP,
    ERMS,
    FSRM,
    INVPCID,
    CLFLUSHOPT,
    CLWB,
    PDPE1GB,
    INVTSC,
    SPEC_CTRL,
    STIBP,
    SSBD,
    ARCH_CAPABILITIES,
    MD_CLEAR,
    BHI_CTRL,
    MCDT_NO,
];

/// Haswell's additions to Westmere, but for transactional memory.
const HASWELL: &[Feature] =
    &[XSAVE, XSAVEOPT, AVX, AVX2, FMA, F16C, MOVBE, LZCNT, BMI1, BMI2, RDRAND, FSGSBASE, SMEP, ERMS, INVPCID];

/// All models; the first is the default.
pub static MODELS: &[Template] = &[
    Template {
        name: "brolga",
        description: "the default: x86-64-v2 and what else is emulated",
        vendor: INTEL,
        signature: (6, 106, 6),
        brand: "Brolga Virtual CPU",
        features: &[BASE32, V1, V2, PLATFORM, WESTMERE, MODERN],
    },
    Template {
        name: "max",
        description: "every feature that is emulated, but for MONITOR",
        vendor: INTEL,
        signature: (6, 106, 6),
        brand: "Brolga Virtual CPU (max)",
        features: &[BASE32, V1, V2, PLATFORM, WESTMERE, MODERN, &[XSAVES], AVX2_SET, VECTOR_AES],
    },
    Template {
        name: "qemu64",
        description: "the x86-64 baseline with SSE3 and CX16",
        vendor: AMD,
        signature: (15, 107, 1),
        brand: "QEMU Virtual CPU version 2.5+",
        features: &[BASE32, V1, &[SSE3, CX16, X2APIC, LAHF_LM]],
    },
    Template {
        name: "kvm64",
        description: "the x86-64 baseline with SSE3 and CX16, Intel's numbers",
        vendor: INTEL,
        signature: (15, 6, 1),
        brand: "Common KVM processor",
        features: &[BASE32, V1, &[SSE3, CX16, X2APIC]],
    },
    Template {
        name: "qemu32",
        description: "a 32-bit processor with SSE3",
        vendor: INTEL,
        signature: (6, 6, 3),
        brand: "QEMU Virtual CPU version 2.5+",
        features: &[BASE32, &[SSE3, X2APIC]],
    },
    Template {
        name: "pentium3",
        description: "Pentium III: 32 bits, SSE",
        vendor: INTEL,
        signature: (6, 8, 3),
        brand: "Intel Pentium III",
        features: &[&[
            FPU, VME, DE, PSE, TSC, MSR, PAE, MCE, CX8, APIC, SEP, MTRR, PGE, MCA, CMOV, PAT, PSE36, MMX, FXSR, SSE,
            HYPERVISOR,
        ]],
    },
    Template {
        name: "core2duo",
        description: "Core 2 Duo: SSSE3",
        vendor: INTEL,
        signature: (6, 15, 11),
        brand: "Intel(R) Core(TM)2 Duo CPU     T7700  @ 2.40GHz",
        features: &[BASE32, V1, &[SS, SSE3, SSSE3, CX16, LAHF_LM, X2APIC]],
    },
    Template {
        name: "Nehalem",
        description: "Core i7 9xx (Nehalem): x86-64-v2",
        vendor: INTEL,
        signature: (6, 26, 3),
        brand: "Intel Core i7 9xx (Nehalem Class Core i7)",
        features: &[BASE32, V1, V2, &[X2APIC]],
    },
    Template {
        name: "Westmere",
        description: "Xeon X56xx (Westmere): AES and PCLMULQDQ",
        vendor: INTEL,
        signature: (6, 44, 1),
        brand: "Westmere E56xx/L56xx/X56xx (Nehalem-C)",
        features: &[BASE32, V1, V2, WESTMERE, &[X2APIC, ARAT]],
    },
    Template {
        name: "Haswell-noTSX",
        description: "Haswell without TSX: x86-64-v3",
        vendor: INTEL,
        signature: (6, 60, 1),
        brand: "Intel Core Processor (Haswell, no TSX)",
        features: &[BASE32, V1, V2, WESTMERE, HASWELL, &[X2APIC, TSC_DEADLINE, ARAT]],
    },
    Template {
        name: "Broadwell-noTSX",
        description: "Broadwell without TSX: ADX and SMAP too",
        vendor: INTEL,
        signature: (6, 61, 2),
        brand: "Intel Core Processor (Broadwell, no TSX)",
        features: &[BASE32, V1, V2, WESTMERE, HASWELL, &[X2APIC, TSC_DEADLINE, ARAT, ADX, RDSEED, SMAP, PREFETCHW]],
    },
];
