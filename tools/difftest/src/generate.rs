//! Random instructions from iced's opcode table, with registers that make their memory operands meet the test's pages.

use crate::host::{CODE, CODE_SIZE, DATA, DATA_SIZE, READ_ONLY};
use crate::select::Family;
use brolga_jit::testing::{Bits, Random, Registers, SEGMENTS_16};
use iced_x86::{Code, Encoder, Instruction, MemoryOperand, Mnemonic, OpCodeOperandKind as Kind, OpKind, Register};

/// Where instructions are placed: the middle of the code page, so that short branches stay on it.
pub const ENTRY: u64 = CODE + CODE_SIZE / 2;

/// One test: an instruction, or some, and what they start from.
#[derive(Clone)]
pub struct Case {
    /// The decoded instructions.
    pub insns: Vec<Instruction>,
    /// Its encoding.
    pub bytes: Vec<u8>,
    /// Registers before it.
    pub regs: Registers,
    /// Memory that differs from the common contents, by linear address.
    pub patches: Vec<(u64, Vec<u8>)>,
}

/// Makes cases for one code width.
pub struct Generator {
    bits: Bits,
    random: Random,
    /// Memory operands are constant addresses: in sequences, registers change on the way.
    constant_addresses: bool,
}

const GPR8: [Register; 8] =
    [Register::AL, Register::CL, Register::DL, Register::BL, Register::AH, Register::CH, Register::DH, Register::BH];

impl Generator {
    /// The generator of the case with this seed.
    pub fn new(bits: Bits, seed: u64) -> Self {
        Self { bits, random: Random::new(seed), constant_addresses: false }
    }

    fn bitness(&self) -> u32 {
        [16, 32, 64][self.bits as usize]
    }

    /// Offset in the code segment of the place for instructions.
    pub fn entry(&self) -> u64 {
        if self.bits == Bits::B16 { ENTRY - CODE } else { ENTRY }
    }

    /// Base of DS and SS.
    fn data_base(&self) -> u64 {
        if self.bits == Bits::B16 { DATA } else { 0 }
    }

    /// Offset of a linear address in DS and SS.
    fn offset(&self, linear: u64) -> u64 {
        linear.wrapping_sub(self.data_base())
    }

    /// Offset of a linear address in ES.
    fn offset_es(&self, linear: u64) -> u64 {
        let base = if self.bits == Bits::B16 { SEGMENTS_16[0].base as u64 } else { 0 };
        linear.wrapping_sub(base)
    }

    /// An instruction with the given opcode, as decoded, and its encoding; `None` if the choice could not be encoded
    /// (try another seed).
    pub fn instruction(&mut self, code: Code) -> Option<(Instruction, Vec<u8>)> {
        let mut insn = Instruction::default();
        insn.set_code(code);
        let info = code.op_code();
        for n in 0..info.op_count() {
            self.operand(&mut insn, n, info.op_kind(n))?;
        }
        self.prefixes(&mut insn);
        self.encode(insn, self.entry())
    }

    fn encode(&self, insn: Instruction, at: u64) -> Option<(Instruction, Vec<u8>)> {
        let mut encoder = Encoder::new(self.bitness());
        encoder.encode(&insn, at).ok()?;
        let bytes = encoder.take_buffer();
        let mut decoder = iced_x86::Decoder::with_ip(self.bitness(), &bytes, at, 0);
        let insn = decoder.decode();
        // Some encodings mean another opcode without their mandatory registers; test what the bytes say.
        let known = !insn.is_invalid() && insn.len() == bytes.len() && !crate::vendor::foreign(&insn);
        known.then_some((insn, bytes))
    }

    /// Some instructions after one another.
    pub fn sequence(&mut self, codes: &[Code], length: usize) -> Option<(Vec<Instruction>, Vec<u8>)> {
        let (mut insns, mut bytes) = (Vec::new(), Vec::new());
        self.constant_addresses = true;
        for _ in 0..length * 4 {
            let code = self.random.pick(codes);
            let Some((insn, _)) = self.instruction(code) else { continue };
            let Some((insn, encoded)) = self.encode(insn, self.entry() + bytes.len() as u64) else { continue };
            let indirect =
                insn.is_jmp_near_indirect() || insn.is_call_near_indirect() || insn.mnemonic() == Mnemonic::Ret;
            // What the XSAVE family works on depends on EDX:EAX, which the host has more in than we do.
            let extended = length > 1 && crate::select::extended_save_area(insn.mnemonic());
            if indirect || extended || crate::select::leaves_undefined(&insn) {
                continue;
            }
            insns.push(insn);
            bytes.extend(encoded);
            if insns.len() == length {
                return Some((insns, bytes));
            }
        }
        None
    }

    /// A case of an instruction: registers and memory. `None` if no address can be made to fit.
    pub fn case(&mut self, insns: &[Instruction], bytes: &[u8], family: Family) -> Option<Case> {
        let mut regs = self.registers(family);
        let mut patches = Vec::new();
        for insn in insns {
            self.place_implicit(insn, &mut regs);
            self.place_memory(insn, &mut regs, &mut patches)?;
            self.place_branch(insn, &mut regs, &mut patches)?;
        }
        if self.bits != Bits::B64 {
            regs.gpr.iter_mut().for_each(|v| *v &= 0xffff_ffff);
            regs.gpr[8..].fill(0);
        }
        Some(Case { insns: insns.to_vec(), bytes: bytes.to_vec(), regs, patches })
    }

    fn registers(&mut self, family: Family) -> Registers {
        let (entry, data_base) = (self.entry(), self.data_base());
        let r = &mut self.random;
        let arith = match r.below(4) {
            0 => 0,
            1 => 0x8d5,
            _ => r.bits() & 0x8d5,
        };
        let direction = if r.chance(30) { 0x400 } else { 0 };
        // Alignment checks; those of x87 environments and masked stores are not made yet.
        let alignment = if family == Family::Integer && r.chance(10) { 0x4_0000 } else { 0 };
        let mut regs = Registers { rip: entry, rflags: 2 | arith | direction | alignment, ..Registers::default() };
        regs.gpr.iter_mut().for_each(|v| *v = r.value());
        // A stack in the middle of the data, mostly aligned.
        let misalign = if r.chance(10) { r.below(8) } else { 0 };
        regs.gpr[4] = DATA - data_base + 0x1000 + r.below(0x1000) * 2 / 8 * 8 + misalign;
        crate::floats::fill(r, family, &mut regs);
        regs
    }

    fn prefixes(&mut self, insn: &mut Instruction) {
        let info = insn.code().op_code();
        let to_memory = insn.op_count() > 0 && insn.op0_kind() == OpKind::Memory;
        if to_memory && info.can_use_lock_prefix() && self.random.chance(30) {
            insn.set_has_lock_prefix(true);
        }
        if info.can_use_rep_prefix() && insn.is_string_instruction() && self.random.chance(60) {
            if self.random.chance(50) { insn.set_has_rep_prefix(true) } else { insn.set_has_repne_prefix(true) }
        }
    }

    fn gpr(&mut self, bytes: usize) -> Register {
        let count = if self.bits == Bits::B64 { 16 } else { 8 };
        let n = self.random.below(count) as u32;
        let base = match bytes {
            1 if n < 8 && self.random.chance(60) => return GPR8[n as usize],
            1 => Register::AL,
            2 => Register::AX,
            4 => Register::EAX,
            _ => Register::RAX,
        };
        if bytes == 1 && n >= 4 {
            // SPL..R15L follow BH in iced's order.
            return Register::SPL + (n - 4);
        }
        base + n
    }

    fn operand(&mut self, insn: &mut Instruction, n: u32, kind: Kind) -> Option<()> {
        use Kind::*;
        let memory_chance = self.random.chance(50);
        let register = match kind {
            r8_or_mem if !memory_chance => self.gpr(1),
            r16_or_mem if !memory_chance => self.gpr(2),
            r32_or_mem | r32_or_mem_mpx if !memory_chance => self.gpr(4),
            r64_or_mem | r64_or_mem_mpx if !memory_chance => self.gpr(8),
            xmm_or_mem if !memory_chance => self.xmm(),
            ymm_or_mem if !memory_chance => self.ymm(),
            xmm_vvvv | xmm_is4 => self.xmm(),
            ymm_reg | ymm_rm | ymm_vvvv | ymm_is4 => self.ymm(),
            mm_or_mem if !memory_chance => self.mm(),
            r8_reg | r8_opcode => self.gpr(1),
            r16_reg | r16_rm | r16_opcode => self.gpr(2),
            r32_reg | r32_rm | r32_opcode | r32_vvvv => self.gpr(4),
            r64_reg | r64_rm | r64_opcode | r64_vvvv => self.gpr(8),
            xmm_reg | xmm_rm => self.xmm(),
            mm_reg | mm_rm => self.mm(),
            st0 => Register::ST0,
            sti_opcode => Register::ST0 + self.random.below(8) as u32,
            al => Register::AL,
            cl => Register::CL,
            ax => Register::AX,
            dx => Register::DX,
            eax => Register::EAX,
            rax => Register::RAX,
            _ => return self.other_operand(insn, n, kind),
        };
        insn.set_op_kind(n, OpKind::Register);
        insn.set_op_register(n, register);
        Some(())
    }

    fn xmm(&mut self) -> Register {
        Register::XMM0 + self.random.below(if self.bits == Bits::B64 { 16 } else { 8 }) as u32
    }

    fn ymm(&mut self) -> Register {
        self.xmm() - Register::XMM0 as u32 + Register::YMM0 as u32
    }

    fn mm(&mut self) -> Register {
        Register::MM0 + self.random.below(8) as u32
    }

    /// Memory, immediates, branch targets and implied addresses.
    fn other_operand(&mut self, insn: &mut Instruction, n: u32, kind: Kind) -> Option<()> {
        use Kind::*;
        let value = self.random.value();
        let immediate = match kind {
            mem | mem_mib | r8_or_mem | r16_or_mem | r32_or_mem | r64_or_mem | r32_or_mem_mpx | r64_or_mem_mpx
            | xmm_or_mem | mm_or_mem | ymm_or_mem => {
                return self.memory_operand(insn, n);
            }
            mem_vsib32x | mem_vsib64x | mem_vsib32y | mem_vsib64y => {
                let wide = matches!(kind, mem_vsib32y | mem_vsib64y);
                return self.vsib_operand(insn, n, wide);
            }
            mem_offs => {
                insn.set_op_kind(n, OpKind::Memory);
                insn.set_memory_displ_size([2, 4, 8][self.bits as usize]);
                let at = self.target(8);
                insn.set_memory_displacement64(self.offset(at) & self.address_mask());
                return Some(());
            }
            seg_rSI => self.implied([OpKind::MemorySegSI, OpKind::MemorySegESI, OpKind::MemorySegRSI]),
            es_rDI => self.implied([OpKind::MemoryESDI, OpKind::MemoryESEDI, OpKind::MemoryESRDI]),
            seg_rDI => self.implied([OpKind::MemorySegDI, OpKind::MemorySegEDI, OpKind::MemorySegRDI]),
            seg_rBX_al => {
                insn.set_op_kind(n, OpKind::Memory);
                insn.set_memory_base([Register::BX, Register::EBX, Register::RBX][self.bits as usize]);
                insn.set_memory_index(Register::AL);
                return Some(());
            }
            br16_1 | br32_1 | br64_1 | br16_2 | br32_4 | br64_4 => {
                insn.set_op_kind(
                    n,
                    match kind {
                        br16_1 | br16_2 => OpKind::NearBranch16,
                        br32_1 | br32_4 => OpKind::NearBranch32,
                        _ => OpKind::NearBranch64,
                    },
                );
                let short = matches!(kind, br16_1 | br32_1 | br64_1);
                let distance = if short { self.random.below(80) + 20 } else { self.random.below(1500) + 20 };
                // Out of a sequence, not into its middle.
                let ahead = self.random.chance(50) && !self.constant_addresses;
                let to = if ahead { self.entry() + distance } else { self.entry() - distance };
                insn.set_near_branch64(to);
                return Some(());
            }
            imm8_const_1 => {
                insn.set_immediate8(1);
                OpKind::Immediate8
            }
            imm8 if insn.op_kinds().any(|k| k == OpKind::Immediate16) => {
                insn.set_immediate8_2nd(value as u8);
                OpKind::Immediate8_2nd
            }
            imm8 => {
                let small = if self.random.chance(50) { self.random.below(70) } else { value };
                insn.set_immediate8(small as u8);
                OpKind::Immediate8
            }
            imm8sex16 => {
                insn.set_immediate8to16(value as i8 as i16);
                OpKind::Immediate8to16
            }
            imm8sex32 => {
                insn.set_immediate8to32(value as i8 as i32);
                OpKind::Immediate8to32
            }
            imm8sex64 => {
                insn.set_immediate8to64(value as i8 as i64);
                OpKind::Immediate8to64
            }
            imm16 => {
                insn.set_immediate16(value as u16 & if insn.mnemonic() == Mnemonic::Enter { 0xff8 } else { 0xffff });
                OpKind::Immediate16
            }
            imm32 => {
                insn.set_immediate32(value as u32);
                OpKind::Immediate32
            }
            imm32sex64 => {
                insn.set_immediate32to64(value as i32 as i64);
                OpKind::Immediate32to64
            }
            imm64 => {
                insn.set_immediate64(value);
                OpKind::Immediate64
            }
            _ => return Option::None,
        };
        insn.set_op_kind(n, immediate);
        Some(())
    }

    /// One of the 16-, 32- and 64-bit forms: mostly that of the mode, else the one a prefix gives.
    fn implied(&mut self, forms: [OpKind; 3]) -> OpKind {
        let other = self.random.chance(15);
        match self.bits {
            Bits::B64 if !other => forms[2],
            Bits::B16 if !other => forms[0],
            _ => forms[1],
        }
    }

    fn address_mask(&self) -> u64 {
        [0xffff, 0xffff_ffff, u64::MAX][self.bits as usize]
    }

    /// 16-bit addressing: BX or BP, SI or DI, both, or neither.
    fn memory_operand_16(&mut self, insn: &mut Instruction) {
        let base = self.random.pick(&[Register::None, Register::BX, Register::BP]);
        let index = self.random.pick(&[Register::None, Register::SI, Register::DI]);
        // A lone SI or DI is a base to iced.
        let (base, index) = if base == Register::None { (index, base) } else { (base, index) };
        let displacement = if base == Register::None {
            let at = self.target(8);
            self.offset(at)
        } else {
            self.random.pick(&[0, 5, 0x80, 0xfff0, 0x1234])
        };
        insn.set_memory_base(base);
        insn.set_memory_index(index);
        insn.set_memory_displ_size(2);
        insn.set_memory_displacement64(displacement & 0xffff);
    }

    fn memory_operand(&mut self, insn: &mut Instruction, n: u32) -> Option<()> {
        insn.set_op_kind(n, OpKind::Memory);
        if self.bits == Bits::B16 && (self.constant_addresses || self.random.chance(80)) {
            self.memory_operand_16(insn);
            if self.constant_addresses {
                let at = self.target(8);
                insn.set_memory_base(Register::None);
                insn.set_memory_index(Register::None);
                insn.set_memory_displacement64(self.offset(at) & 0xffff);
            }
            return Some(());
        }
        let wide = self.bits == Bits::B64 && self.random.chance(85);
        let bytes = if wide { 8 } else { 4 };
        let form = if self.constant_addresses { 9 } else { self.random.below(10) };
        let base = if form < 8 { self.gpr(bytes) } else { Register::None };
        let index = if matches!(form, 5..=8) { self.gpr(bytes) } else { Register::None };
        if matches!(index, Register::RSP | Register::ESP) || index != Register::None && index == base {
            return None;
        }
        let displacement = match self.random.below(4) {
            0 => 0,
            1 => self.random.below(256) as i64 - 128,
            _ => self.random.below(0x4000_0000) as i64 - 0x2000_0000,
        };
        let scale = 1 << self.random.below(4);
        if base == Register::None && index == Register::None {
            let at = self.target(8);
            let at = self.offset(at);
            let rip = self.bits == Bits::B64 && self.random.chance(50);
            insn.set_memory_base(if rip { Register::RIP } else { Register::None });
            insn.set_memory_displ_size(if self.bits == Bits::B64 { 8 } else { 4 });
            insn.set_memory_displacement64(at);
            return Some(());
        }
        let m = MemoryOperand::with_base_index_scale_displ_size(base, index, scale, displacement, bytes as u32);
        insn.set_memory_base(m.base);
        insn.set_memory_index(m.index);
        insn.set_memory_index_scale(m.scale);
        insn.set_memory_displ_size(if displacement == 0 { 1 } else { m.displ_size });
        insn.set_memory_displacement64(if wide { displacement as u64 } else { displacement as u32 as u64 });
        Some(())
    }

    /// Memory with a vector of indexes.
    fn vsib_operand(&mut self, insn: &mut Instruction, n: u32, wide: bool) -> Option<()> {
        if self.bits == Bits::B16 {
            return None;
        }
        let narrow = self.bits == Bits::B32 || self.random.chance(15);
        let base = if self.random.chance(10) { Register::None } else { self.gpr(if narrow { 4 } else { 8 }) };
        insn.set_op_kind(n, OpKind::Memory);
        insn.set_memory_base(base);
        insn.set_memory_index(if wide { self.ymm() } else { self.xmm() });
        insn.set_memory_index_scale(1 << self.random.below(4));
        let displacement = if base == Register::None {
            let at = self.target(8);
            self.offset(at)
        } else {
            self.random.below(0x1000)
        };
        insn.set_memory_displ_size(if narrow { 4 } else { 8 });
        insn.set_memory_displacement64(displacement);
        Some(())
    }

    /// Indexes that lead to the test's pages, mostly.
    fn place_indexes(&mut self, insn: &Instruction, regs: &mut Registers) {
        let scale = i64::from(insn.memory_index_scale());
        let (at, displacement) = (self.target(8), insn.memory_displacement64());
        let base = insn.memory_base();
        if base != Register::None {
            regs.gpr[base.full_register().number()] = at.wrapping_sub(displacement);
        }
        let wide_index = matches!(
            insn.mnemonic(),
            Mnemonic::Vpgatherqd | Mnemonic::Vpgatherqq | Mnemonic::Vgatherqps | Mnemonic::Vgatherqpd
        );
        let n = insn.memory_index().number();
        for half in [&mut regs.xmm[n], &mut regs.ymm_high[n]] {
            let mut element = || {
                let far = self.random.chance(2);
                let near = self.random.below(0x800) as i64 - 0x400;
                if far { self.random.bits() as i64 } else { near / scale }
            };
            *half = if wide_index {
                u128::from(element() as u64) | u128::from(element() as u64) << 64
            } else {
                (0..4).fold(0, |v, k| v | u128::from(element() as u32) << (32 * k))
            };
        }
    }

    /// An address for an access of up to `bytes` bytes: mostly plain, some on page boundaries and beyond the edges.
    fn target(&mut self, bytes: u64) -> u64 {
        let r = &mut self.random;
        match r.below(100) {
            0..=39 => DATA + r.below(DATA_SIZE / 16) * 16,
            40..=79 => DATA + r.below(DATA_SIZE - 64),
            80..=87 => DATA + (1 + r.below(DATA_SIZE / 0x1000 - 1)) * 0x1000 - r.below(bytes.max(2)),
            88..=92 => DATA + DATA_SIZE - r.below(2 * bytes),
            93..=95 => DATA + DATA_SIZE + READ_ONLY - r.below(2 * bytes),
            _ => DATA - 2 * bytes + r.below(2 * bytes),
        }
    }

    /// Registers that the instruction uses without naming them.
    fn place_implicit(&mut self, insn: &Instruction, regs: &mut Registers) {
        if insn.is_string_instruction() {
            let bytes = insn.memory_size().size() as u64;
            let from = self.target(bytes);
            let near = from.wrapping_add(self.random.below(64)).wrapping_sub(32);
            let to = if self.random.chance(20) { near } else { self.target(bytes) };
            (regs.gpr[6], regs.gpr[7]) = (self.offset(from), self.offset_es(to));
            regs.gpr[1] = match self.random.below(10) {
                0 => self.random.value() << 32,
                1 => self.random.below(8000),
                _ => self.random.below(20),
            };
            let narrow = [OpKind::MemorySegESI, OpKind::MemoryESEDI];
            if self.bits == Bits::B64 && insn.op_kinds().any(|k| narrow.contains(&k)) {
                // The upper halves do not take part.
                for n in [1, 6, 7] {
                    regs.gpr[n] = regs.gpr[n] & 0xffff_ffff | self.random.value() << 32;
                }
            }
        }
        if matches!(insn.op1_kind(), OpKind::MemorySegRDI | OpKind::MemorySegEDI)
            || matches!(insn.op0_kind(), OpKind::MemorySegRDI | OpKind::MemorySegEDI)
        {
            regs.gpr[7] = self.target(16);
        }
        if crate::select::extended_save_area(insn.mnemonic()) {
            // The components whose contents the test knows.
            regs.gpr[0] = self.random.below(8);
            regs.gpr[2] = 0;
        }
        match insn.mnemonic() {
            // Stacks that end in the middle of what is pushed. (POPA that faults there leaves registers half loaded on
            // silicon, which we do not imitate: a fault has no effect, SDM 3A 6.5.)
            Mnemonic::Pusha | Mnemonic::Pushad if self.random.chance(30) => {
                let top = DATA + self.random.below(33);
                regs.gpr[4] = self.offset(top);
            }
            Mnemonic::Leave | Mnemonic::Enter => {
                let frame = self.target(8);
                regs.gpr[5] = self.offset(frame);
            }
            Mnemonic::Div | Mnemonic::Idiv if self.random.chance(60) => self.place_dividend(insn, regs),
            // The bit offset moves the address: keep most of them near.
            Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
                if insn.op0_kind() == OpKind::Memory && insn.op1_kind() == OpKind::Register =>
            {
                let near = self.random.below(4096) as i64 - 2048;
                regs.gpr[insn.op1_register().full_register().number()] = near as u64;
            }
            Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b | Mnemonic::Cmpxchg => {}
            _ => {}
        }
    }

    /// High halves that let quotients fit.
    fn place_dividend(&mut self, insn: &Instruction, regs: &mut Registers) {
        regs.gpr[2] = match (insn.mnemonic(), self.random.below(3)) {
            (Mnemonic::Idiv, 0) => ((regs.gpr[0] as i64) >> 63) as u64,
            (Mnemonic::Idiv, 1) => u64::MAX - self.random.below(3),
            (_, 2) => self.random.below(5),
            _ => 0,
        };
    }

    /// Gives base or index register the value that makes the operand's address a test address.
    fn place_memory(
        &mut self,
        insn: &Instruction,
        regs: &mut Registers,
        patches: &mut Vec<(u64, Vec<u8>)>,
    ) -> Option<()> {
        if !insn.op_kinds().any(|k| k == OpKind::Memory) {
            return Some(());
        }
        if insn.is_vsib() {
            self.place_indexes(insn, regs);
            return Some(());
        }
        let area = crate::select::save_area(insn.mnemonic());
        let holds_features = |r: Register| matches!(r.full_register(), Register::RAX | Register::RDX);
        if crate::select::extended_save_area(insn.mnemonic())
            && (holds_features(insn.memory_base()) || holds_features(insn.memory_index()))
        {
            return None;
        }
        let bytes = if area { 832 } else { (insn.memory_size().size() as u64).max(1) };
        if insn.mnemonic() == Mnemonic::Xlatb {
            let table = self.target(256);
            regs.gpr[3] = self.offset(table);
            return Some(());
        }
        let mut target = self.target(bytes);
        let narrow = insn.memory_base().size() == 4 || insn.memory_index().size() == 4;
        if self.bits == Bits::B64 && !narrow && self.random.chance(2) {
            target |= 0x8000_0000_0000 << self.random.below(16);
        }
        if area && self.random.chance(95) {
            target = target.max(DATA) & !63;
        }
        let target = self.make_address(insn, regs, target)?;
        if crate::vendor::unaligned(insn) && target % 16 != 0 {
            return None;
        }
        if self.random.chance(70) {
            let mut contents = Vec::new();
            while (contents.len() as u64) < bytes {
                contents.extend_from_slice(&self.random.value().to_le_bytes());
            }
            crate::floats::contents(&mut self.random, insn, &mut contents);
            if area {
                crate::floats::save_area(&mut self.random, &mut contents);
            }
            contents.truncate(bytes as usize);
            if matches!(insn.mnemonic(), Mnemonic::Cmpxchg | Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b) {
                self.match_accumulator(bytes, regs, &mut contents);
            }
            patches.push((target, contents));
        }
        Some(())
    }

    /// Sets base or index register so that the memory operand lies at linear address `target`, or as near as it gets.
    /// Returns where it lies.
    fn make_address(&mut self, insn: &Instruction, regs: &mut Registers, target: u64) -> Option<u64> {
        let (base, index) = (insn.memory_base(), insn.memory_index());
        let displacement = insn.memory_displacement64();
        let wanted = self.offset(target).wrapping_sub(displacement);
        if matches!(base, Register::RIP | Register::EIP) || base == Register::None && index == Register::None {
            return Some(displacement.wrapping_add(self.data_base()));
        }
        if base == Register::None {
            let scale = insn.memory_index_scale() as u64;
            if wanted >> 63 != 0 && scale > 1 {
                return None;
            }
            regs.gpr[index.full_register().number()] = wanted / scale;
            return Some(target.wrapping_sub(wanted % scale));
        }
        let mut scaled = 0;
        if index != Register::None {
            let value = &mut regs.gpr[index.full_register().number()];
            if self.random.chance(70) {
                *value = self.random.below(0x1000);
            }
            scaled = value.wrapping_mul(insn.memory_index_scale() as u64);
        }
        let value = wanted.wrapping_sub(scaled);
        // The upper parts of narrower address registers do not count.
        let counts = [0, 0, 0xffff, 0, 0xffff_ffff].get(base.size()).copied().unwrap_or(u64::MAX);
        let other =
            if base.full_register() == Register::RSP && self.bits == Bits::B16 { 0 } else { self.random.bits() };
        regs.gpr[base.full_register().number()] = value & counts | other & !counts;
        Some(target)
    }

    /// Half of the comparisons of CMPXCHG* succeed.
    fn match_accumulator(&mut self, bytes: u64, regs: &Registers, contents: &mut [u8]) {
        if !self.random.chance(50) {
            return;
        }
        let pair = match bytes {
            16 => regs.gpr[0] as u128 | (regs.gpr[2] as u128) << 64,
            _ => (regs.gpr[0] & 0xffff_ffff) as u128 | (regs.gpr[2] as u128) << 32,
        };
        let value = if contents.len() < 8 || self.random.chance(50) { pair } else { regs.gpr[0] as u128 };
        let len = contents.len().min(16);
        contents[..len].copy_from_slice(&value.to_le_bytes()[..len]);
    }

    /// Indirect branches and returns get a target on the code page; `None` if they would read one from memory that
    /// cannot be given contents.
    fn place_branch(
        &mut self,
        insn: &Instruction,
        regs: &mut Registers,
        patches: &mut Vec<(u64, Vec<u8>)>,
    ) -> Option<()> {
        let to = self.entry() + 20 + self.random.below(1500);
        let indirect = insn.is_jmp_near_indirect() || insn.is_call_near_indirect();
        if indirect && insn.op0_kind() == OpKind::Register {
            regs.gpr[insn.op0_register().full_register().number()] = to;
        } else if indirect {
            let (at, bytes) = patches.first_mut()?;
            if *at + bytes.len() as u64 > DATA + DATA_SIZE && *at < DATA + DATA_SIZE + READ_ONLY {
                return None;
            }
            let len = bytes.len().min(8);
            bytes[..len].copy_from_slice(&to.to_le_bytes()[..len]);
        } else if insn.mnemonic() == Mnemonic::Ret {
            patches.push((regs.gpr[4].wrapping_add(self.data_base()), to.to_le_bytes().to_vec()));
        }
        Some(())
    }
}
