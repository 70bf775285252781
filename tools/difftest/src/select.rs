//! Which opcodes are tested, and what the manual leaves open about them.

use crate::generate::Case;
use crate::vendor;
use iced_x86::{Code, CpuidFeature, EncodingKind, Instruction, Mnemonic, OpCodeOperandKind as Kind, OpKind};

/// Part of the instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// General registers, flags, memory, strings, near branches.
    Integer,
    /// MMX and SSE.
    Vector,
    /// AVX, AVX2, FMA, F16C.
    Avx,
    /// x87.
    X87,
}

impl Family {
    /// Works on vector registers.
    pub fn has_vectors(self) -> bool {
        matches!(self, Self::Vector | Self::Avx)
    }
}

/// Opcodes of a family that user code can run and whose results a host process can show.
pub fn opcodes(family: Family, bitness: u32) -> Vec<Code> {
    Code::values().filter(|code| testable(*code, bitness) && family_of(*code) == family).collect()
}

fn family_of(code: Code) -> Family {
    let info = code.op_code();
    let vector = info.op_kinds().iter().any(|k| {
        matches!(k, Kind::xmm_reg | Kind::xmm_rm | Kind::xmm_or_mem | Kind::mm_reg | Kind::mm_rm | Kind::mm_or_mem)
    });
    if info.encoding() == EncodingKind::VEX && !code.cpuid_features().iter().any(vex_integer) {
        Family::Avx
    } else if vector
        || save_area(code.mnemonic())
        || matches!(code.mnemonic(), Mnemonic::Emms | Mnemonic::Ldmxcsr | Mnemonic::Stmxcsr)
    {
        Family::Vector
    } else if code.cpuid_features().iter().any(|f| {
        matches!(f, CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387 | CpuidFeature::FPU387SL_ONLY)
    }) || format!("{:?}", code.mnemonic()).starts_with("Fcmov")
        || matches!(
            code.mnemonic(),
            Mnemonic::Wait
                | Mnemonic::Fisttp
                | Mnemonic::Fcomi
                | Mnemonic::Fcomip
                | Mnemonic::Fucomi
                | Mnemonic::Fucomip
        )
    {
        Family::X87
    } else {
        Family::Integer
    }
}

fn testable(code: Code, bitness: u32) -> bool {
    let info = code.op_code();
    let right_mode = match bitness {
        64 => info.mode64(),
        32 => info.mode32(),
        _ => info.mode16(),
    };
    info.is_instruction()
        && right_mode
        && info.cpl3()
        && info.intel_decoder64() | info.intel_decoder32()
        && !info.is_privileged()
        && matches!(info.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        && code.cpuid_features().iter().all(|f| host_has(*f))
        && !excluded(code.mnemonic())
        && !info.op_kinds().iter().any(|k| matches!(k, Kind::seg_reg | Kind::cr_reg | Kind::dr_reg | Kind::tr_reg))
        && !info.op_kinds().iter().any(|k| matches!(k, Kind::es | Kind::cs | Kind::ss | Kind::ds | Kind::fs | Kind::gs))
        && (bitness == 16 || !sixteen_bit_branch(code))
        && !far_branch(code)
}

fn vex_integer(f: &CpuidFeature) -> bool {
    matches!(f, CpuidFeature::BMI1 | CpuidFeature::BMI2)
}

/// Near branches of 16 bits leave the code page.
fn sixteen_bit_branch(code: Code) -> bool {
    let info = code.op_code();
    let branch = info.op_kinds().iter().any(|k| matches!(k, Kind::br16_1 | Kind::br16_2));
    branch || matches!(code, Code::Retnw | Code::Retnw_imm16 | Code::Call_rm16 | Code::Jmp_rm16)
}

fn far_branch(code: Code) -> bool {
    code.is_jmp_far() || code.is_jmp_far_indirect() || code.is_call_far() || code.is_call_far_indirect()
}

/// What needs the system, changes the process beyond registers and test memory, or shows the time.
fn excluded(m: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        m,
        Int | Int1
            | Int3
            | Into
            | Syscall
            | Sysenter
            | Sysexit
            | Sysret
            | Iret
            | Iretd
            | Iretq
            | Retf
            | Hlt
            | In
            | Out
            | Insb
            | Insw
            | Insd
            | Outsb
            | Outsw
            | Outsd
            | Cli
            | Sti
            | Popf
            | Popfd
            | Popfq
            | Pushf
            | Pushfd
            | Pushfq
            | Cpuid
            | Rdtsc
            | Rdtscp
            | Rdpmc
            | Rdrand
            | Rdseed
            | Rdpid
            | Rdpkru
            | Wrpkru
            | Rdfsbase
            | Rdgsbase
            | Wrfsbase
            | Wrgsbase
            | Lds
            | Les
            | Lfs
            | Lgs
            | Lss
            | Lar
            | Lsl
            | Verr
            | Verw
            | Arpl
            | Sgdt
            | Sidt
            | Sldt
            | Str
            | Smsw
            | Lmsw
            | Clts
            | Monitor
            | Mwait
            | Umonitor
            | Umwait
            | Tpause
            | Xbegin
            | Xend
            | Xabort
            | Xtest
            | Xsusldtrk
            | Xresldtrk
            | Xsaves
            | Xrstors
            | Xgetbv
            | Xsetbv
            | Enqcmd
            | Clui
            | Stui
            | Testui
            | Uiret
            | Senduipi
            | Ud0
            | Ud1
            | Ud2
            | Movdir64b
            | Serialize
            | Ptwrite
            | Loadall
            | Cl1invmb
            | Zero_bytes
    )
}

/// FXSAVE, XSAVE and their like.
pub fn save_area(m: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(m, Fxsave | Fxsave64 | Fxrstor | Fxrstor64) || extended_save_area(m)
}

/// The XSAVE family.
pub fn extended_save_area(m: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(m, Xsave | Xsave64 | Xsavec | Xsavec64 | Xsaveopt | Xsaveopt64 | Xrstor | Xrstor64)
}

/// Memory accesses of an odd size that silicon makes in pieces.
pub fn in_pieces(m: Mnemonic) -> bool {
    save_area(m) || matches!(m, Mnemonic::Fstp | Mnemonic::Fbstp | Mnemonic::Fnstenv | Mnemonic::Fldenv)
}

/// The host has the feature (and so the comparison means something).
fn host_has(f: CpuidFeature) -> bool {
    use CpuidFeature::*;
    match f {
        INTEL8086 | INTEL8086_ONLY | INTEL186 | INTEL286 | INTEL386 | INTEL486 | X64 | CMOV | CX8 | FPU | FPU287
        | FPU387 | MMX | SSE | SSE2 | MULTIBYTENOP | PAUSE | CLFSH | PREFETCHW | CET_IBT => true,
        SSE3 => is_x86_feature_detected!("sse3"),
        SSSE3 => is_x86_feature_detected!("ssse3"),
        SSE4_1 => is_x86_feature_detected!("sse4.1"),
        SSE4_2 => is_x86_feature_detected!("sse4.2"),
        AES => is_x86_feature_detected!("aes"),
        PCLMULQDQ => is_x86_feature_detected!("pclmulqdq"),
        AVX => is_x86_feature_detected!("avx"),
        AVX2 => is_x86_feature_detected!("avx2"),
        FMA => is_x86_feature_detected!("fma"),
        F16C => is_x86_feature_detected!("f16c"),
        VAES => is_x86_feature_detected!("vaes"),
        VPCLMULQDQ => is_x86_feature_detected!("vpclmulqdq"),
        SHA => is_x86_feature_detected!("sha"),
        POPCNT => is_x86_feature_detected!("popcnt"),
        LZCNT => is_x86_feature_detected!("lzcnt"),
        BMI1 => is_x86_feature_detected!("bmi1"),
        BMI2 => is_x86_feature_detected!("bmi2"),
        ADX => is_x86_feature_detected!("adx"),
        MOVBE => is_x86_feature_detected!("movbe"),
        FXSR => true,
        XSAVE => is_x86_feature_detected!("xsave"),
        XSAVEC => is_x86_feature_detected!("xsavec"),
        XSAVEOPT => is_x86_feature_detected!("xsaveopt"),
        CMPXCHG16B => is_x86_feature_detected!("cmpxchg16b"),
        _ => false,
    }
}

/// Flags the SDM calls undefined after an instruction and that silicon does not set by the rule we follow.
pub struct Undefined {
    /// The instructions.
    pub mnemonics: &'static [Mnemonic],
    /// RFLAGS bits.
    pub flags: u64,
    /// Whether a case is concerned.
    pub when: fn(&Case) -> bool,
    /// The manual's words (SDM 2).
    pub sdm: &'static str,
}

/// All of them; what is not listed is compared.
pub const UNDEFINED: &[Undefined] = &[Undefined {
    mnemonics: &[Mnemonic::Shl, Mnemonic::Sal, Mnemonic::Shr, Mnemonic::Shld, Mnemonic::Shrd],
    flags: 0x800,
    when: |case| shift_count(case) != 1,
    sdm: "The OF flag is affected only for 1-bit shifts; otherwise, it is undefined. (SHLD, SHRD: For shifts greater than \
          1 bit, the OF flag is undefined.)",
}];

/// Flags to leave out of the comparison.
pub fn undefined_flags(case: &Case) -> u64 {
    let [insn] = &case.insns[..] else { return 0 };
    let mnemonic = insn.mnemonic();
    let listed = UNDEFINED.iter().filter(|u| u.mnemonics.contains(&mnemonic) && (u.when)(case));
    listed.fold(vendor::open_flags(insn), |all, u| all | u.flags)
}

/// The instruction may leave something undefined: no place for it in a sequence, where others may look at them.
pub fn leaves_undefined(insn: &Instruction) -> bool {
    vendor::leaves_open(insn) || UNDEFINED.iter().any(|u| u.mnemonics.contains(&insn.mnemonic()))
}

/// The masked count of a shift.
pub fn shift_count(case: &Case) -> u64 {
    let Some(i) = case.insns.first() else { return 1 };
    let last = i.op_count() - 1;
    let wide = i.op0_register().is_gpr64() || i.memory_size().size() == 8;
    let count = match i.op_kind(last) {
        OpKind::Register => case.regs.gpr[1],
        _ => i.immediate(last),
    };
    count & if wide { 63 } else { 31 }
}
