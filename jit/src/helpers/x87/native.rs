//! The guest's x87 on the host's: generated code executes x87 instructions as they are, on registers loaded from the state
//! before the first of them and saved when the code is left or a helper looks at them. This holds while the guest masks
//! all exceptions; then nothing is ever pending, and the host keeps values, tags, flags and C1 as the guest would see
//! them. FIP is stored by the code. FOP and FDP follow unmasked exceptions only.

use super::insn::{Format, Insn};
use super::{ARITHMETIC, COMPARE, FCMOV, LOAD, STACK, STORE, UNARY, compare_op, host, stack_op, store_op};
use crate::cpu::Cpu;
use crate::helpers::HelperId;
use crate::state::X87;

/// All exceptions, as the control word masks them.
pub const ALL_MASKED: u16 = 0x3f;
/// FNSTSW [RDI].
pub const FNSTSW_RDI: [u8; 5] = two(0xdd, 0x3f);
/// FNCLEX.
pub const FNCLEX: [u8; 5] = two(0xdb, 0xe2);
/// FLDCW [RDI].
pub const FLDCW_RDI: [u8; 5] = two(0xd9, 0x2f);
/// FRSTOR [RDI].
pub const FRSTOR_RDI: [u8; 5] = two(0xdd, 0x27);

/// An instruction of two bytes, filled up with a NOP of three.
const fn two(first: u8, second: u8) -> [u8; 5] {
    [first, second, 0x0f, 0x1f, 0]
}

/// Memory operand of a native instruction, addressed by RDI.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operand {
    /// Bytes read or written.
    pub bytes: u64,
    /// They are written.
    pub write: bool,
}

/// An instruction as host code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Native {
    /// Host code, filled up.
    pub code: [u8; 5],
    /// RFLAGS are stored at RDI.
    pub to_flags: bool,
    /// Memory operand.
    pub memory: Option<Operand>,
}

/// First byte and opcode bits (ModRM 5:3) of an instruction with a memory operand.
fn memory_form(id: HelperId, insn: Insn) -> Option<(u8, u8)> {
    let real = |single: u8, word: u8| match insn.format {
        Format::Single => single,
        Format::Double => single + 4,
        Format::Word => word + 4,
        _ => word,
    };
    let popped = insn.pops != 0;
    Some(match (id, insn.format) {
        (ARITHMETIC, _) => (real(0xd8, 0xda), insn.op & 7),
        (COMPARE, _) => (real(0xd8, 0xda), 2 + insn.pops),
        (LOAD, Format::Extended) => (0xdb, 5),
        (LOAD, Format::Qword) => (0xdf, 5),
        (LOAD, Format::Decimal) => (0xdf, 4),
        (LOAD, _) => (real(0xd9, 0xdb), 0),
        (STORE, Format::Qword) if insn.op == store_op::FISTTP => (0xdd, 1),
        (STORE, _) if insn.op == store_op::FISTTP => (real(0xd9, 0xdb), 1),
        (STORE, Format::Extended) => (0xdb, 7),
        (STORE, Format::Qword) => (0xdf, 7),
        (STORE, Format::Decimal) => (0xdf, 6),
        (STORE, _) => (real(0xd9, 0xdb), 2 + popped as u8),
        _ => return None,
    })
}

/// Both bytes of an instruction on registers, ST(i) being ST(0) in the second one.
fn register_form(id: HelperId, insn: Insn) -> Option<(u8, u8)> {
    let popped = insn.pops != 0;
    Some(match id {
        // The forms with destination ST(i) have the bit that reverses the operands the other way round.
        ARITHMETIC if insn.to_sti || popped => {
            let op = if insn.op & 4 != 0 { insn.op ^ 1 } else { insn.op };
            (if popped { 0xde } else { 0xdc }, 0xc0 | (op & 7) << 3)
        }
        ARITHMETIC => (0xd8, 0xc0 | (insn.op & 7) << 3),
        COMPARE => {
            let ordered = insn.op & compare_op::UNORDERED == 0;
            match (insn.op & compare_op::TO_FLAGS != 0, ordered, insn.pops) {
                (true, _, pops) => (if pops == 0 { 0xdb } else { 0xdf }, if ordered { 0xf0 } else { 0xe8 }),
                (false, true, 2) => (0xde, 0xd8),
                (false, false, 2) => (0xda, 0xe8),
                (false, true, pops) => (0xd8, 0xd0 | pops << 3),
                (false, false, pops) => (0xdd, 0xe0 | pops << 3),
            }
        }
        UNARY => (0xd9, insn.op),
        STACK => match insn.op {
            stack_op::FLD => (0xd9, 0xc0),
            stack_op::FST => (0xdd, 0xd0 | (popped as u8) << 3),
            stack_op::FXCH => (0xd9, 0xc8),
            stack_op::FFREE => (if popped { 0xdf } else { 0xdd }, 0xc0),
            stack_op::FINCSTP => (0xd9, 0xf7),
            stack_op::FDECSTP => (0xd9, 0xf6),
            stack_op::FNOP => (0xd9, 0xd0),
            stack_op::FSTPNCE => (0xd9, 0xd8),
            constant => (0xd9, 0xe8 + (constant - stack_op::CONSTANT)),
        },
        _ => return None,
    })
}

fn width(format: Format) -> u64 {
    match format {
        Format::Extended | Format::Decimal => 10,
        format => format.ty().bytes() as u64,
    }
}

/// The host code of an instruction. FCMOV moves if RDI is not zero.
pub fn encode(id: HelperId, insn: Insn) -> Option<Native> {
    let i = insn.i as u8 & 7;
    let plain = |code| Native { code, to_flags: false, memory: None };
    if id == FCMOV {
        // test edi, edi; fcmovne st(0), st(i)
        return Some(plain([0x85, 0xff, 0xdb, 0xc8 | i, 0x90]));
    }
    if insn.format != Format::None {
        let (first, reg) = memory_form(id, insn)?;
        let memory = Some(Operand { bytes: width(insn.format), write: id == STORE });
        return Some(Native { memory, ..plain(two(first, reg << 3 | 7)) });
    }
    let (first, second) = register_form(id, insn)?;
    if id == COMPARE && insn.op & compare_op::TO_FLAGS != 0 {
        // pushfq; pop [rdi]
        return Some(Native { to_flags: true, ..plain([first, second | i, 0x9c, 0x8f, 0x07]) });
    }
    Some(plain(two(first, second | i)))
}

/// Bytes of an FNSAVE image with 32-bit fields.
pub const IMAGE: usize = 108;

impl X87 {
    /// The registers as FRSTOR loads them; no pointers.
    fn to_image(self) -> [u8; IMAGE] {
        let mut image = [0; IMAGE];
        let tag_word = (0..8).filter(|n| self.tags >> n & 1 == 0).fold(0u16, |w, n| w | 3 << (2 * n));
        for (n, field) in [self.fcw, self.fsw, tag_word].into_iter().enumerate() {
            image[4 * n..4 * n + 2].copy_from_slice(&field.to_le_bytes());
        }
        for i in 0..8 {
            let at = 28 + 10 * i;
            image[at..at + 10].copy_from_slice(&self.st(i).to_le_bytes()[..10]);
        }
        image
    }

    /// Takes over what FNSAVE saved, but for control word and pointers.
    fn take_image(&mut self, image: &[u8; IMAGE]) {
        let field = |n: usize| u16::from_le_bytes([image[4 * n], image[4 * n + 1]]);
        self.fsw = field(1);
        for i in 0..8 {
            let at = 28 + 10 * i;
            let mut value = [0; 16];
            value[..10].copy_from_slice(&image[at..at + 10]);
            self.set_st(i, u128::from_le_bytes(value));
        }
        self.set_tag_word(field(2));
    }
}

impl Cpu {
    /// Prepares the image that generated code loads the host's x87 from. `false`: not all exceptions are masked.
    pub fn lend_x87(&mut self) -> bool {
        let s = &mut self.state;
        if s.x87.fcw & ALL_MASKED != ALL_MASKED {
            return false;
        }
        s.x87_image[..IMAGE].copy_from_slice(&s.x87.to_image());
        s.x87_lent = 1;
        true
    }

    /// Takes the x87 registers back from the host, whose own are as new then.
    #[cold]
    pub fn reclaim_x87(&mut self) {
        self.state.x87.take_image(&host::save());
        self.state.x87_lent = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::mode;

    /// The lifter's helper call of an instruction, and its code natively.
    fn native(bytes: &[u8]) -> Native {
        let model = crate::cpuid::parse("max").expect("a processor model");
        let block = crate::lift::lift_block(bytes, 0x1000, mode::CS64 | mode::PE, &model, 1).expect("an instruction");
        let call = block.insts.iter().rposition(|i| i.op == crate::ir::Op::Call).expect("a call");
        let insn = block.insts[..call].iter().rfind(|i| i.d == block.insts[call].a).expect("its constant");
        encode(HelperId(block.insts[call].imm as u16), Insn::unpack(insn.imm as u64)).expect("native code")
    }

    #[test]
    fn register_instructions_are_their_own_code() {
        let mut seen = 0;
        for first in 0xd8..=0xdf_u8 {
            for second in 0xc0..=0xff_u8 {
                let decoded = iced_x86::Decoder::new(64, &[first, second], iced_x86::DecoderOptions::NONE).decode();
                // Control instructions; FCMOVcc, whose condition is in a register here.
                let control = matches!((first, second), (0xdb, 0xe0..=0xe4) | (0xdf, 0xe0));
                let conditional = matches!((first, second), (0xda | 0xdb, 0xc0..=0xdf));
                if decoded.is_invalid() || control || conditional {
                    continue;
                }
                let found = native(&[first, second]);
                let to_flags = matches!((first, second), (0xdb | 0xdf, 0xe8..=0xf7));
                assert_eq!(found.to_flags, to_flags, "{first:02x} {second:02x}");
                // Old duplicates of FCOM, FCOMP, FXCH and FSTP have the code of these.
                let plain = match (first, second) {
                    (0xdc, 0xd0..=0xdf) | (0xde, 0xd0..=0xd7) => {
                        (0xd8, if first == 0xde { second | 8 } else { second })
                    }
                    (0xdd | 0xdf, 0xc8..=0xcf) => (0xd9, second),
                    (0xdf, 0xd0..=0xdf) => (0xdd, second | 8),
                    // ST(0) and itself.
                    (0xdc, _) if second & 7 == 0 && second & 0x20 != 0 => (0xd8, second ^ 8),
                    (0xdc, _) if second & 7 == 0 => (0xd8, second),
                    other => other,
                };
                assert_eq!(found.code[..2], [plain.0, plain.1], "{first:02x} {second:02x}");
                seen += 1;
            }
        }
        assert!(seen > 250, "{seen} instructions");
    }

    #[test]
    fn memory_instructions_address_rdi() {
        for first in 0xd8..=0xdf_u8 {
            for reg in 0..8_u8 {
                let bytes = [first, reg << 3 | 7];
                let decoded = iced_x86::Decoder::new(64, &bytes, iced_x86::DecoderOptions::NONE).decode();
                let control = matches!((first, reg), (0xd9, 4..=7) | (0xdd, 4 | 6 | 7));
                if decoded.is_invalid() || control {
                    continue;
                }
                let got = native(&bytes);
                assert_eq!(got.code[..2], bytes, "{first:02x} /{reg}");
                let operand = got.memory.expect("a memory operand");
                assert_eq!(operand.bytes, decoded.memory_size().size() as u64, "{first:02x} /{reg}");
            }
        }
    }

    #[test]
    fn images_keep_registers_flags_and_tags() {
        let regs = std::array::from_fn(|n| (0x3fff + n as u128) << 64 | (1 << 63 | n as u128));
        let x = X87 { regs, fcw: 0x37f, fsw: 0x5a21, tags: 0xa5, fop: 1, fip: 2, fdp: 3, fcs: 0, fds: 0 };
        let mut y = X87 { regs: [0; 8], fsw: 0, tags: 0, ..x };
        y.take_image(&x.to_image());
        assert_eq!(x, y);
    }
}
