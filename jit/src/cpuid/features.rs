//! The features a model may have: name on the command line, CPUID bit, and the instruction sets it stands for.

use iced_x86::CpuidFeature as F;

/// CPUID registers that hold feature bits, as indexes of [`super::CpuModel::words`].
pub mod word {
    #![allow(missing_docs)]
    pub const F1_EDX: usize = 0;
    pub const F1_ECX: usize = 1;
    pub const F7_EBX: usize = 2;
    pub const F7_ECX: usize = 3;
    pub const F7_EDX: usize = 4;
    pub const E1_ECX: usize = 5;
    pub const E1_EDX: usize = 6;
    pub const E7_EDX: usize = 7;
    pub const D1_EAX: usize = 8;
    pub const F6_EAX: usize = 9;
    pub const F7_2_EDX: usize = 10;
    pub const COUNT: usize = 11;
}

macro_rules! features {
    ($($id:ident $name:literal $word:ident $bit:literal [$($iced:ident)*];)*) => {
        /// A feature.
        #[allow(non_camel_case_types, missing_docs, clippy::upper_case_acronyms)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Feature { $($id,)* }

        /// All features.
        pub static ALL: &[Info] = &[$(Info {
            id: Feature::$id, name: $name, word: word::$word, bit: $bit, iced: &[$(F::$iced),*],
        },)*];
    };
}

/// Declaration of a feature.
pub struct Info {
    /// The feature.
    pub id: Feature,
    /// Name on the command line.
    pub name: &'static str,
    /// Index of the CPUID register.
    pub word: usize,
    /// Bit in it.
    pub bit: u32,
    /// Instruction sets that come with it.
    pub iced: &'static [F],
}

features! {
    FPU "fpu" F1_EDX 0 [FPU FPU287 FPU387];
    VME "vme" F1_EDX 1 [];
    DE "de" F1_EDX 2 [];
    PSE "pse" F1_EDX 3 [];
    TSC "tsc" F1_EDX 4 [TSC];
    MSR "msr" F1_EDX 5 [MSR];
    PAE "pae" F1_EDX 6 [];
    MCE "mce" F1_EDX 7 [];
    CX8 "cx8" F1_EDX 8 [CX8];
    APIC "apic" F1_EDX 9 [];
    SEP "sep" F1_EDX 11 [SEP];
    MTRR "mtrr" F1_EDX 12 [];
    PGE "pge" F1_EDX 13 [];
    MCA "mca" F1_EDX 14 [];
    CMOV "cmov" F1_EDX 15 [CMOV];
    PAT "pat" F1_EDX 16 [];
    PSE36 "pse36" F1_EDX 17 [];
    CLFLUSH "clflush" F1_EDX 19 [CLFSH];
    MMX "mmx" F1_EDX 23 [MMX];
    FXSR "fxsr" F1_EDX 24 [FXSR];
    SSE "sse" F1_EDX 25 [SSE];
    SSE2 "sse2" F1_EDX 26 [SSE2];
    SS "ss" F1_EDX 27 [];
    HTT "ht" F1_EDX 28 [];
    SSE3 "sse3" F1_ECX 0 [SSE3];
    PCLMULQDQ "pclmulqdq" F1_ECX 1 [PCLMULQDQ];
    MONITOR "monitor" F1_ECX 3 [MONITOR];
    SSSE3 "ssse3" F1_ECX 9 [SSSE3];
    FMA "fma" F1_ECX 12 [FMA];
    CX16 "cx16" F1_ECX 13 [CMPXCHG16B];
    PCID "pcid" F1_ECX 17 [];
    SSE4_1 "sse4.1" F1_ECX 19 [SSE4_1];
    SSE4_2 "sse4.2" F1_ECX 20 [SSE4_2];
    X2APIC "x2apic" F1_ECX 21 [];
    MOVBE "movbe" F1_ECX 22 [MOVBE];
    POPCNT "popcnt" F1_ECX 23 [POPCNT];
    TSC_DEADLINE "tsc-deadline" F1_ECX 24 [];
    AES "aes" F1_ECX 25 [AES];
    XSAVE "xsave" F1_ECX 26 [XSAVE];
    AVX "avx" F1_ECX 28 [AVX];
    F16C "f16c" F1_ECX 29 [F16C];
    RDRAND "rdrand" F1_ECX 30 [RDRAND];
    HYPERVISOR "hypervisor" F1_ECX 31 [];
    FSGSBASE "fsgsbase" F7_EBX 0 [FSGSBASE];
    TSC_ADJUST "tsc-adjust" F7_EBX 1 [];
    BMI1 "bmi1" F7_EBX 3 [BMI1];
    AVX2 "avx2" F7_EBX 5 [AVX2];
    SMEP "smep" F7_EBX 7 [];
    BMI2 "bmi2" F7_EBX 8 [BMI2];
    ERMS "erms" F7_EBX 9 [];
    INVPCID "invpcid" F7_EBX 10 [INVPCID];
    RDSEED "rdseed" F7_EBX 18 [RDSEED];
    ADX "adx" F7_EBX 19 [ADX];
    SMAP "smap" F7_EBX 20 [SMAP];
    CLFLUSHOPT "clflushopt" F7_EBX 23 [CLFLUSHOPT];
    CLWB "clwb" F7_EBX 24 [CLWB];
    SHA_NI "sha-ni" F7_EBX 29 [SHA];
    UMIP "umip" F7_ECX 2 [];
    VAES "vaes" F7_ECX 9 [VAES];
    VPCLMULQDQ "vpclmulqdq" F7_ECX 10 [VPCLMULQDQ];
    RDPID "rdpid" F7_ECX 22 [RDPID];
    FSRM "fsrm" F7_EDX 4 [];
    MD_CLEAR "md-clear" F7_EDX 10 [];
    SPEC_CTRL "spec-ctrl" F7_EDX 26 [];
    STIBP "stibp" F7_EDX 27 [];
    ARCH_CAPABILITIES "arch-capabilities" F7_EDX 29 [];
    SSBD "ssbd" F7_EDX 31 [];
    BHI_CTRL "bhi-ctrl" F7_2_EDX 4 [];
    MCDT_NO "mcdt-no" F7_2_EDX 5 [];
    LAHF_LM "lahf-lm" E1_ECX 0 [];
    LZCNT "lzcnt" E1_ECX 5 [LZCNT];
    PREFETCHW "prefetchw" E1_ECX 8 [PREFETCHW];
    SYSCALL "syscall" E1_EDX 11 [SYSCALL];
    NX "nx" E1_EDX 20 [];
    PDPE1GB "pdpe1gb" E1_EDX 26 [];
    RDTSCP "rdtscp" E1_EDX 27 [RDTSCP];
    LM "lm" E1_EDX 29 [X64];
    INVTSC "invtsc" E7_EDX 8 [];
    XSAVEOPT "xsaveopt" D1_EAX 0 [XSAVEOPT];
    XSAVEC "xsavec" D1_EAX 1 [XSAVEC];
    XGETBV1 "xgetbv1" D1_EAX 2 [];
    XSAVES "xsaves" D1_EAX 3 [XSAVES];
    ARAT "arat" F6_EAX 2 [];
}

/// Other spellings of names (QEMU accepts `_` for `-` too).
pub const ALIASES: &[(&str, &str)] = &[
    ("sse4_1", "sse4.1"),
    ("sse4-1", "sse4.1"),
    ("sse4_2", "sse4.2"),
    ("sse4-2", "sse4.2"),
    ("pclmuldq", "pclmulqdq"),
    ("pni", "sse3"),
    ("sha", "sha-ni"),
    ("abm", "lzcnt"),
    ("3dnowprefetch", "prefetchw"),
    ("xd", "nx"),
    ("tsc-deadline-timer", "tsc-deadline"),
    ("i64", "lm"),
];

/// Instruction sets that every model has, or that are no-operations without their feature (SDM 2: ENDBR, RDSSP).
pub const ALWAYS: &[F] = &[
    F::INTEL8086,
    F::INTEL186,
    F::INTEL286,
    F::INTEL386,
    F::INTEL486,
    F::CPUID,
    F::MULTIBYTENOP,
    F::PAUSE,
    F::RDPMC,
    F::CET_IBT,
    F::CET_SS,
    F::WBNOINVD,
];

/// The feature with this name, `_` and `-` alike.
pub fn by_name(name: &str) -> Option<&'static Info> {
    let name = name.to_ascii_lowercase();
    let name = ALIASES.iter().find(|(a, _)| *a == name).map_or(name.replace('_', "-"), |(_, n)| (*n).to_owned());
    ALL.iter().find(|i| i.name == name)
}

/// The declaration of a feature.
pub fn info(f: Feature) -> &'static Info {
    &ALL[f as usize]
}
