//! Hosts of other makers than Intel. The engine's processor models announce Intel's features, so the engine does what Intel's
//! silicon does, also where the manual leaves the result open. What other silicon (AMD's, as far as it was tried) does
//! differently there is left out of the comparison on such hosts, and nothing is on Intel's.

use crate::generate::Case;
use crate::host::DATA;
use crate::{After, select};
use brolga_jit::testing::{Bits, Outcome, Registers, SEGMENTS_16};
use iced_x86::{Code, CpuidFeature, Instruction, Mnemonic, OpKind, Register, RflagsBits};

/// The flags of arithmetic.
const ARITHMETIC: u64 = 0x8d5;
/// The status word's top of stack.
const TOP: u16 = 0x3800;

/// Whether the host is an Intel processor.
pub fn intel_host() -> bool {
    static INTEL: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| {
        std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("GenuineIntel"))
    });
    *INTEL
}

/// The host decodes it otherwise: 0F 0D is AMD's opcode (3DNow!'s PREFETCH), which has no register form there (AMD64 manual
/// 3, PREFETCH, #UD), while Intel's register forms are no-operations (SDM 2, appendix A).
pub fn foreign(insn: &Instruction) -> bool {
    use Code::*;
    let code = matches!(insn.code(), Reservednop_rm16_r16_0F0D | Reservednop_rm32_r32_0F0D | Reservednop_rm64_r64_0F0D);
    code && insn.op0_kind() == OpKind::Register && !intel_host()
}

/// The host takes memory operands at any address, where Intel's processors want them aligned (SDM 2, 2.6.4, exception
/// class 4).
pub fn unaligned(insn: &Instruction) -> bool {
    use Mnemonic::*;
    let sha =
        matches!(insn.mnemonic(), Sha1rnds4 | Sha1nexte | Sha1msg1 | Sha1msg2 | Sha256rnds2 | Sha256msg1 | Sha256msg2);
    sha && !intel_host()
}

/// RFLAGS bits that the manual leaves open after an instruction, where other silicon need not be like ours.
pub fn open_flags(insn: &Instruction) -> u64 {
    if intel_host() {
        return 0;
    }
    let places = [
        (RflagsBits::CF, 0x1),
        (RflagsBits::PF, 0x4),
        (RflagsBits::AF, 0x10),
        (RflagsBits::ZF, 0x40),
        (RflagsBits::SF, 0x80),
        (RflagsBits::OF, 0x800),
    ];
    let open = insn.rflags_undefined();
    let open = places.into_iter().filter(|(bit, _)| open & bit != 0).fold(0, |all, (_, flag)| all | flag);
    match insn.mnemonic() {
        // "The OF flag is defined only for the 1-bit rotates" (SDM 2, RCL): counts that come to nothing, 9 of a byte, are
        // others too.
        Mnemonic::Rcl | Mnemonic::Rcr if insn.op1_kind() == OpKind::Immediate8 => {
            open | if matches!(insn.immediate8() & 31, 0 | 1) { 0 } else { 0x800 }
        }
        _ => open,
    }
}

/// SHLD or SHRD of words by a count that may be greater than 16: "If a count is greater than the operand size, the result is
/// undefined", and so are the flags (SDM 2, SHLD).
fn long_double_shift(insn: &Instruction) -> bool {
    let word = insn.op1_register().is_gpr16();
    let long = insn.op2_kind() == OpKind::Register || insn.immediate8() & 31 > 16;
    matches!(insn.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd) && word && long
}

/// The instruction may leave something of the host's own for those after it.
pub fn leaves_open(insn: &Instruction) -> bool {
    let open = open_flags(insn) != 0 || long_double_shift(insn) || narrow_repeat(insn);
    !intel_host() && (open || select::save_area(insn.mnemonic()) || environment(insn).is_some())
}

/// A repeated string instruction of 64-bit mode with addresses of 32 bits.
fn narrow_repeat(insn: &Instruction) -> bool {
    let narrow = insn.op_kinds().any(|k| matches!(k, OpKind::MemorySegESI | OpKind::MemoryESEDI));
    narrow && insn.code_size() == iced_x86::CodeSize::Code64 && repeated(insn)
}

fn repeated(insn: &Instruction) -> bool {
    insn.is_string_instruction() && (insn.has_rep_prefix() || insn.has_repne_prefix())
}

/// The x87 environment that the instruction stores, or begins with: offsets of its pointers.
fn environment(insn: &Instruction) -> Option<std::ops::Range<u64>> {
    use Code::*;
    match insn.code() {
        Fnstenv_m14byte | Fstenv_m14byte | Fnsave_m94byte | Fsave_m94byte => Some(6..14),
        Fnstenv_m28byte | Fstenv_m28byte | Fnsave_m108byte | Fsave_m108byte => Some(12..26),
        _ => None,
    }
}

/// The case cannot be compared on this host.
///
/// It used what only the host has: AMD's misaligned SSE mode, bit 17 of MXCSR (AMD64 manual 1, 4.2.2; reserved in SDM 1,
/// 10.2.3). Or the address of a store faulted that an unmasked exception of its conversion prevents: which comes first is the
/// processor's choice (SDM 3A, 6.9). Or a MOVSXD of a word faulted, which reads 32 bits of memory there and 16 on Intel's
/// (SDM 2, MOVSXD). Or elements of a masked move went on at the segment's start, where ours leave the segment.
pub fn beyond(case: &Case, native: &After, ours: &After) -> bool {
    let further = native.regs.rip != ours.regs.rip;
    let suppressed = |insn: &Instruction| {
        // Instructions that follow may have dealt with it.
        let pending = case.insns.len() > 1 || error_pending(&ours.regs);
        let raised = x87(insn) && further && pending && !error_pending(&native.regs);
        let converted =
            insn.mnemonic() == Mnemonic::Vcvtps2ph && matches!(ours.outcome, Outcome::Fault { vector: 19, .. });
        insn.op0_kind() == OpKind::Memory && (raised || converted && !further)
    };
    let wider = |insn: &Instruction| insn.code() == Code::Movsxd_r16_rm16;
    let otherwise = fault_of(case, native).is_some_and(|insn| suppressed(insn) || wider(insn));
    let otherwise = otherwise || fault_of(case, ours).is_some_and(|insn| further && elements_wrap(case, insn));
    !intel_host() && (otherwise || native.regs.mxcsr & 1 << 17 != 0)
}

/// A masked move with an address of 16 bits that goes over the end of 64 KiB.
fn elements_wrap(case: &Case, insn: &Instruction) -> bool {
    let size = insn.memory_size().size() as u64;
    let crosses = |at: u64| at < 1 << 16 && at + size > 1 << 16;
    masked_move(insn) && offset(case, insn).is_some_and(crosses)
}

fn masked_move(insn: &Instruction) -> bool {
    matches!(insn.mnemonic(), Mnemonic::Vmaskmovps | Mnemonic::Vmaskmovpd | Mnemonic::Vpmaskmovd | Mnemonic::Vpmaskmovq)
}

fn x87(insn: &Instruction) -> bool {
    use CpuidFeature::*;
    insn.cpuid_features().iter().any(|f| matches!(f, FPU | FPU287 | FPU387 | FPU387SL_ONLY))
}

/// The instruction at which a case ended before its time.
fn fault_of<'a>(case: &'a Case, after: &After) -> Option<&'a Instruction> {
    let faulted = matches!(after.outcome, Outcome::Fault { .. });
    case.insns.iter().find(|i| faulted && i.ip() == after.regs.rip)
}

/// Takes over from the host what is open after the case.
pub fn take_over(case: &Case, bits: Bits, native: &After, ours: &mut After) {
    if intel_host() {
        return;
    }
    pointers(case, native, ours);
    if let Some(insn) = fault_of(case, native) {
        let same_place = native.regs.rip == ours.regs.rip;
        let several = several_accesses(insn) || wraps(bits, native.outcome, ours.outcome);
        if same_place && several && [native.outcome, ours.outcome].into_iter().all(of_an_operand) {
            ours.outcome = native.outcome;
        }
        faulted(insn, native, ours);
    }
    let [insn] = &case.insns[..] else { return };
    if narrow_repeat(insn) {
        upper_halves(case, native, ours);
    }
    if long_double_shift(insn) && select::shift_count(case) > 16 {
        result(case, insn, bits, native, ours);
    }
    let Some(at) = address(case, insn, bits) else { return };
    if select::save_area(insn.mnemonic()) {
        // FOP, FIP and FDP as in the register file; MXCSR_MASK is the processor's.
        let pointers = if error_pending(&native.regs) { 23..24 } else { 6..24 };
        copy(native, ours, at, pointers);
        copy(native, ours, at, 28..32);
    }
    if let Some(pointers) = environment(insn)
        && !error_pending(&case.regs)
    {
        copy(native, ours, at, pointers);
    }
}

/// AMD's processors save the last instruction's pointers only with an exception pending, zeros otherwise (AMD64 manual 2,
/// 11.4.4; CPUID 8000_0008 EBX bit 2), and a signal's frame is saved so. Zeros it also is for what the case does not set, if
/// the host's kernel puts the program aside between a start with none pending and the exception.
///
/// FOP and FDP change with every instruction there, while Intel's change with unmasked exceptions alone (SDM 1, 8.1.8 and
/// 8.1.9.1), which shows in sequences. Of an operand's address AMD's keep 57 bits.
fn pointers(case: &Case, native: &After, ours: &mut After) {
    let (from, to) = (&native.regs, &mut ours.regs);
    let unsaved = |value: u64| !error_pending(from) || value == 0 && !error_pending(&case.regs);
    let earlier = case.insns.len() > 1 && case.insns.iter().any(x87);
    if unsaved(from.fop.into()) || earlier {
        to.fop = from.fop;
    }
    if unsaved(from.fip) {
        to.fip = from.fip;
    }
    if unsaved(from.fdp) || earlier || from.fdp == ((to.fdp << 7) as i64 >> 7) as u64 {
        to.fdp = from.fdp;
    }
}

/// The status word's ES.
fn error_pending(regs: &Registers) -> bool {
    regs.fsw & 0x80 != 0
}

/// #BR, #SS, #GP, #PF or #AC.
fn of_an_operand(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Fault { vector: 5 | 12 | 13 | 14 | 17, .. })
}

/// The access went over the end of a segment of 4 GiB, which the processor may or may not object to (SDM 3A, 5.3): the
/// engine goes on to the page, or to the alignment.
fn wraps(bits: Bits, native: Outcome, ours: Outcome) -> bool {
    const LONGEST: u64 = 32;
    let objects = matches!(native, Outcome::Fault { vector: 12 | 13, error: 0, .. });
    let goes_on = match ours {
        Outcome::Fault { vector: 14, address, .. } => address > (1 << 32) - LONGEST,
        Outcome::Fault { vector: 17, .. } => true,
        _ => false,
    };
    bits == Bits::B32 && objects && goes_on
}

/// Makes several accesses to memory or checks besides them: which of its faults comes first, and with which address, is the
/// processor's choice (SDM 3A, 6.9: "exceptions within each class are implementation-dependent").
fn several_accesses(insn: &Instruction) -> bool {
    use Mnemonic::*;
    let compare = matches!(insn.mnemonic(), Cmpsb | Cmpsw | Cmpsd | Cmpsq) && insn.is_string_instruction();
    let bytes = matches!(insn.mnemonic(), Maskmovq | Maskmovdqu | Vmaskmovdqu);
    compare
        || bytes
        || masked_move(insn)
        || matches!(insn.mnemonic(), Bound | Popa | Popad)
        || select::in_pieces(insn.mnemonic())
}

/// What an instruction has done when it faults on its way.
fn faulted(insn: &Instruction, native: &After, ours: &mut After) {
    let (from, to) = (&native.regs, &mut ours.regs);
    let compares = insn.rflags_modified() & RflagsBits::ZF != 0;
    if repeated(insn) && compares {
        // Intel's processors put the flags back ("the EFLAGS value is restored", SDM 2, REP), AMD's show the last comparison.
        to.rflags = to.rflags & !ARITHMETIC | from.rflags & ARITHMETIC;
    }
    if insn.is_vsib() {
        gather_faulted(insn, from, to);
    }
    if insn.mnemonic() == Mnemonic::Vcvtps2ph && to.mxcsr & from.mxcsr == from.mxcsr {
        // Intel's processors have worked out the result, and raised its flags, when the store faults.
        to.mxcsr = from.mxcsr;
    }
    let mmx = (0..insn.op_count()).any(|n| insn.op_register(n).is_mm());
    if mmx && to.fsw == from.fsw & !TOP {
        // Intel's processors have made TOP 0 for MMX when the access faults.
        to.fsw = from.fsw;
        to.st.rotate_left((from.fsw >> 11 & 7).into());
    }
}

/// Bits of a gather's mask other than the signs mean nothing. Before they begin, Intel's processors spread the signs and, in
/// forms of 128 bits, clear the upper halves.
fn gather_faulted(insn: &Instruction, from: &Registers, to: &mut Registers) {
    let (values, mask) = (insn.op0_register(), insn.op2_register().number());
    for n in [values.number(), mask] {
        if values.is_xmm() && to.ymm_high[n] == 0 {
            to.ymm_high[n] = from.ymm_high[n];
        }
    }
    let signs = match insn.memory_size().element_size() {
        4 => (u128::MAX / 0xffff_ffff) << 31,
        _ => (u128::MAX / 0xffff_ffff_ffff_ffff) << 63,
    };
    for (from, to) in [(from.xmm[mask], &mut to.xmm[mask]), (from.ymm_high[mask], &mut to.ymm_high[mask])] {
        if (from ^ *to) & signs == 0 {
            *to = from;
        }
    }
}

/// An iteration that is not reached writes no register on AMD's processors; Intel's clear upper halves all the same.
fn upper_halves(case: &Case, native: &After, ours: &mut After) {
    for n in [1, 6, 7] {
        let (before, now) = (case.regs.gpr[n], native.regs.gpr[n]);
        if now == before && ours.regs.gpr[n] == now & 0xffff_ffff {
            ours.regs.gpr[n] = now;
        }
    }
}

/// The word that an instruction leaves in its first operand, and its flags.
fn result(case: &Case, insn: &Instruction, bits: Bits, native: &After, ours: &mut After) {
    ours.regs.rflags = ours.regs.rflags & !ARITHMETIC | native.regs.rflags & ARITHMETIC;
    if insn.op0_kind() == OpKind::Register {
        let n = insn.op0_register().full_register().number();
        ours.regs.gpr[n] = ours.regs.gpr[n] & !0xffff | native.regs.gpr[n] & 0xffff;
    } else if let Some(at) = address(case, insn, bits) {
        copy(native, ours, at, 0..2);
    }
}

/// Linear address of the memory operand.
fn address(case: &Case, insn: &Instruction, bits: Bits) -> Option<u64> {
    let n = insn.memory_segment() as usize - Register::ES as usize;
    let base = if bits == Bits::B16 { SEGMENTS_16.get(n)?.base.into() } else { 0 };
    Some(offset(case, insn)?.wrapping_add(base))
}

/// The memory operand's place in its segment.
fn offset(case: &Case, insn: &Instruction) -> Option<u64> {
    let memory = (0..insn.op_count()).find(|n| insn.op_kind(*n) == OpKind::Memory)?;
    insn.virtual_address(memory, 0, |register, _, _| {
        if register.is_segment_register() {
            return Some(0);
        }
        let width = 8 * register.size() as u32;
        Some(case.regs.gpr[register.full_register().number()] & u64::MAX >> (64 - width))
    })
}

/// Takes over bytes of the writable data: offsets from an address.
fn copy(native: &After, ours: &mut After, at: u64, bytes: std::ops::Range<u64>) {
    let at = at.wrapping_sub(DATA);
    for n in bytes {
        let n = at.wrapping_add(n) as usize;
        if let (Some(from), Some(to)) = (native.memory.get(n), ours.memory.get_mut(n)) {
            *to = *from;
        }
    }
}
