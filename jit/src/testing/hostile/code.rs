//! Random machine code: instructions that decode more often than chance has it, and sheer noise.

use crate::testing::Random;
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction};

/// Instructions that what a guest may do wrong is about, in places where all modes have them.
const SYSTEM: &[&[u8]] = &[
    &[0xfb],                         // STI
    &[0xfa],                         // CLI
    &[0x9d],                         // POPF
    &[0x9c],                         // PUSHF
    &[0xcf],                         // IRET
    &[0xcb],                         // RETF
    &[0xcc],                         // INT3
    &[0xcd, 0x80],                   // INT 80h
    &[0x8e, 0xd0],                   // MOV SS, AX
    &[0x8e, 0xd9],                   // MOV DS, CX
    &[0x0f, 0xb2, 0x23],             // LSS
    &[0x0f, 0x20, 0xc0],             // MOV EAX, CR0
    &[0x0f, 0x22, 0xc0],             // MOV CR0, EAX
    &[0x0f, 0x22, 0xd8],             // MOV CR3, EAX
    &[0x0f, 0x22, 0xe0],             // MOV CR4, EAX
    &[0x0f, 0x23, 0xf8],             // MOV DR7, EAX
    &[0x0f, 0x01, 0x13],             // LGDT
    &[0x0f, 0x01, 0x1b],             // LIDT
    &[0x0f, 0x01, 0x3b],             // INVLPG
    &[0x0f, 0x00, 0xd8],             // LTR AX
    &[0x0f, 0x00, 0xd0],             // LLDT AX
    &[0x0f, 0x30],                   // WRMSR
    &[0x0f, 0x32],                   // RDMSR
    &[0x0f, 0x05],                   // SYSCALL
    &[0x0f, 0x07],                   // SYSRET
    &[0x0f, 0x34],                   // SYSENTER
    &[0x0f, 0x35],                   // SYSEXIT
    &[0x0f, 0x01, 0xd1],             // XSETBV
    &[0xc5, 0xf8, 0x77],             // VZEROUPPER
    &[0xc5, 0xfe, 0x6f, 0x03],       // VMOVDQU YMM0, memory
    &[0xc5, 0xfe, 0x7f, 0x0b],       // VMOVDQU memory, YMM1
    &[0x0f, 0xae, 0x2b],             // XRSTOR
    &[0x0f, 0xae, 0x0b],             // FXRSTOR
    &[0x0f, 0xae, 0x13],             // LDMXCSR
    &[0xf3, 0xa4],                   // REP MOVSB
    &[0xf3, 0xab],                   // REP STOSD
    &[0xf3, 0x6e],                   // REP OUTSB
    &[0xf3, 0x6c],                   // REP INSB
    &[0xf4],                         // HLT
    &[0x0f, 0x01, 0xf8],             // SWAPGS
    &[0xc8, 0x08, 0x00, 0x03],       // ENTER
    &[0xc9],                         // LEAVE
    &[0xe2, 0xfc],                   // LOOP, backwards
    &[0xe2, 0xd0],                   // LOOP, further backwards
    &[0x83, 0xe9, 0x01, 0x75, 0xe0], // SUB ECX, 1; JNE, backwards
    &[0x83, 0xe9, 0x03, 0x73, 0xc0], // SUB ECX, 3; JAE, backwards
    &[0xeb, 0x02],                   // JMP, forwards
    &[0x74, 0xf4],                   // JE, backwards
    &[0x48, 0xcf],                   // IRETQ (DEC EAX; IRET)
    &[0xf1],                         // INT1
    &[0xce],                         // INTO
    &[0x17],                         // POP SS
    &[0x0f, 0xa1],                   // POP FS
    &[0xff, 0x2b],                   // JMP m16:16/32
    &[0xff, 0x1b],                   // CALL m16:16/32
    &[0xff, 0xe0],                   // JMP EAX
    &[0xff, 0xd3],                   // CALL EBX
    &[0xc3],                         // RET
    &[0xc2, 0x08, 0x00],             // RET 8
    &[0x61],                         // POPA
    &[0x0f, 0x06],                   // CLTS
    &[0x0f, 0x01, 0xf0],             // LMSW AX
    &[0x0f, 0x01, 0xcb],             // STAC
    &[0x0f, 0x01, 0xca],             // CLAC
    &[0x66, 0x0f, 0x38, 0x82, 0x03], // INVPCID
    &[0xd9, 0x23],                   // FLDENV
    &[0xd9, 0x33],                   // FNSTENV
    &[0xd9, 0x2b],                   // FLDCW
    &[0xdd, 0x23],                   // FRSTOR
    &[0xdd, 0x33],                   // FNSAVE
    &[0x9b],                         // WAIT
    &[0xdb, 0xe2],                   // FNCLEX
    &[0x66, 0x0f, 0x2e, 0xc1],       // UCOMISD
    &[0x66, 0x0f, 0xf7, 0xc1],       // MASKMOVDQU
    &[0x0f, 0xae, 0x23],             // XSAVE
    &[0xf3, 0xa6],                   // REPE CMPSB
    &[0xf2, 0xae],                   // REPNE SCASB
    &[0x48, 0x0f, 0xc7, 0x0b],       // CMPXCHG16B
    &[0x0f, 0xb4, 0x23],             // LFS
    &[0xc6, 0x05, 0, 0, 0, 0, 0x90], // a store near the code, in 64-bit mode
];

/// Fills `out` with code for segments of `bits`.
pub fn fill(r: &mut Random, bits: u32, out: &mut [u8]) {
    let noise = r.chance(10);
    let mut at = 0;
    while at < out.len() {
        let mut one = [0; 15];
        one.fill_with(|| r.bits() as u8);
        let len = if noise { 15 } else { instruction(r, bits, &mut one) };
        for (to, from) in out[at..].iter_mut().zip(&one[..len]) {
            *to = *from;
        }
        at += len;
    }
}

/// One instruction; its length.
fn instruction(r: &mut Random, bits: u32, out: &mut [u8; 15]) -> usize {
    if r.chance(12) {
        let s = r.pick(SYSTEM);
        out[..s.len()].copy_from_slice(s);
        return s.len();
    }
    for _ in 0..20 {
        shape(r, bits, out);
        let i = Decoder::new(bits, out, DecoderOptions::NONE).decode();
        if r.chance(1) || acceptable(r, &i) {
            return i.len().max(1);
        }
        out.fill_with(|| r.bits() as u8);
    }
    out[0] = 0x90;
    1
}

/// Prefixes, opcode map and addressing in likely proportions; the rest of the bytes stays as it is.
fn shape(r: &mut Random, bits: u32, out: &mut [u8; 15]) {
    let mut at = 0;
    let mut put = |b: u8, at: &mut usize| {
        out[*at] = b;
        *at += 1;
    };
    if r.chance(15) {
        put(r.pick(&[0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x2e, 0x36, 0x64, 0x65]), &mut at);
    }
    if r.chance(15) {
        put(r.pick(&[0x66, 0xf3, 0xf2]), &mut at);
    }
    if r.chance(12) {
        // VEX of three bytes. Outside 64-bit mode two bits of it tell it from LES.
        let registers = if bits == 64 { r.bits() as u8 & 0xe0 } else { 0xe0 };
        put(0xc4, &mut at);
        put(registers | r.pick(&[1, 1, 2, 2, 3]), &mut at);
        put(r.bits() as u8, &mut at);
        put(r.bits() as u8, &mut at);
        return;
    }
    if bits == 64 && r.chance(40) {
        put(0x40 | r.bits() as u8 & 15, &mut at);
    }
    match r.below(20) {
        0..=7 => put(0x0f, &mut at),
        8 => {
            put(0x0f, &mut at);
            put(r.pick(&[0x38, 0x3a]), &mut at);
        }
        _ => {}
    }
    put(r.bits() as u8, &mut at);
    let modrm = r.bits() as u8;
    match r.below(10) {
        0..=4 => put(modrm | 0xc0, &mut at),
        5..=7 => put(modrm & 0x3f | 0x40, &mut at),
        _ => {}
    }
}

fn acceptable(r: &mut Random, i: &Instruction) -> bool {
    if i.code() == Code::INVALID {
        return false;
    }
    match i.flow_control() {
        FlowControl::Next => i.code() != Code::Hlt,
        FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch => {
            // Most branches stay near.
            r.chance(if i.len() <= 2 { 60 } else { 10 })
        }
        _ => r.chance(15),
    }
}
