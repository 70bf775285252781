//! The frame that Cranelift gives a region, and that is not needed: [`super::exec`] makes one that is large enough for all
//! code, before it enters any. So a region is entered behind its prologue and left before its epilogues, and what they
//! would save for a caller is not saved: the one caller there is keeps its registers itself.

use iced_x86::{Decoder, DecoderOptions, Mnemonic, OpKind, Register};

/// Bytes of the frame that all code shares: multiple of 16.
pub const SHARED_FRAME: usize = 16 << 10;

/// `push rbp; mov rbp, rsp`.
const START: [u8; 4] = [0x55, 0x48, 0x89, 0xe5];
/// `mov rsp, rbp; pop rbp`.
const END: [u8; 4] = [0x48, 0x89, 0xec, 0x5d];
/// Registers that functions preserve.
const PRESERVED: [Register; 5] = [Register::RBX, Register::R12, Register::R13, Register::R14, Register::R15];
/// Opcodes of stores and loads of general registers, behind the REX prefix.
const STORE: u8 = 0x89;
const LOAD: u8 = 0x8b;

/// How a region sets its frame up and takes it down.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    /// Bytes of the prologue.
    prologue: usize,
    /// What stands before each jump out of the region.
    epilogue: Vec<u8>,
}

impl Frame {
    /// The frame of a region. `None`: it is not of the expected shape, or larger than the shared one.
    pub fn of(code: &[u8]) -> Option<Self> {
        let mut rest = code.strip_prefix(&START)?;
        let (mut size, mut take_down) = (0, Vec::new());
        let mut epilogue = Vec::new();
        loop {
            let i = Decoder::with_ip(64, rest, 0, DecoderOptions::NONE).decode();
            let (bytes, behind) = rest.split_at_checked(i.len())?;
            let of_stack = i.op0_kind() == OpKind::Register && i.op0_register() == Register::RSP;
            if i.mnemonic() == Mnemonic::Sub && of_stack && take_down.is_empty() {
                size = usize::try_from(i.immediate(1) as i64).ok()?;
                // `add` has another operation in the ModRM byte (SDM 2A 2.1.5, 2D table A-6).
                take_down = bytes.to_vec();
                *take_down.get_mut(2)? ^= 5 << 3;
            } else if is_save(&i) {
                let mut load = bytes.to_vec();
                *load.get_mut(1).filter(|opcode| **opcode == STORE)? = LOAD;
                epilogue.extend(load);
            } else {
                break;
            }
            rest = behind;
        }
        epilogue.extend(take_down);
        epilogue.extend(END);
        (size <= SHARED_FRAME).then(|| Self { prologue: code.len() - rest.len(), epilogue })
    }

    /// Offset of what the region does.
    pub fn start(&self) -> usize {
        self.prologue
    }

    /// Where the epilogue before the jump at `jump` begins, if that leads out of the region: at least four bytes before it.
    pub fn way_out(&self, code: &[u8], jump: usize) -> Option<usize> {
        let start = jump.checked_sub(self.epilogue.len())?;
        (code.get(start..jump)? == self.epilogue).then_some(start)
    }
}

/// `mov [rsp + n], r` of a register that functions preserve.
fn is_save(i: &iced_x86::Instruction) -> bool {
    i.mnemonic() == Mnemonic::Mov
        && i.op0_kind() == OpKind::Memory
        && i.memory_base() == Register::RSP
        && i.memory_index() == Register::None
        && PRESERVED.contains(&i.op1_register())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// push rbp; mov rbp, rsp; sub rsp, 0x60; mov [rsp+0x30], rbx; mov [rsp+0x38], r12; mov r11, [rdi+0x28]
    const CODE: [u8; 22] = [
        0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 0x60, 0x48, 0x89, 0x5c, 0x24, 0x30, 0x4c, 0x89, 0x64, 0x24, 0x38,
        0x4c, 0x8b, 0x5f, 0x28,
    ];
    /// mov rbx, [rsp+0x30]; mov r12, [rsp+0x38]; add rsp, 0x60; mov rsp, rbp; pop rbp
    const BACK: [u8; 18] =
        [0x48, 0x8b, 0x5c, 0x24, 0x30, 0x4c, 0x8b, 0x64, 0x24, 0x38, 0x48, 0x83, 0xc4, 0x60, 0x48, 0x89, 0xec, 0x5d];

    #[test]
    fn the_way_out_mirrors_the_way_in() {
        let frame = Frame::of(&CODE).expect("the expected shape");
        assert_eq!((frame.start(), &frame.epilogue[..]), (18, &BACK[..]));
        let mut code = CODE.to_vec();
        code.extend(BACK);
        assert_eq!(frame.way_out(&code, 40), Some(22));
        assert_eq!(frame.way_out(&code, 39), None);
        assert_eq!(frame.way_out(&code, 4), None);
    }

    #[test]
    fn a_frame_without_room() {
        let frame = Frame::of(&[0x55, 0x48, 0x89, 0xe5, 0x48, 0x8b, 0x07]).expect("the expected shape");
        assert_eq!((frame.start(), &frame.epilogue[..]), (4, &END[..]));
    }

    #[test]
    fn other_shapes_and_larger_frames_are_refused() {
        assert_eq!(Frame::of(&CODE[1..]), None);
        // sub rsp, 0x4000; ret: as large as the shared one.
        let mut code = [0x55, 0x48, 0x89, 0xe5, 0x48, 0x81, 0xec, 0, 0x40, 0, 0, 0xc3];
        assert!(Frame::of(&code).is_some_and(|f| f.epilogue[..7] == [0x48, 0x81, 0xc4, 0, 0x40, 0, 0]));
        code[7] = 16;
        assert_eq!(Frame::of(&code), None);
    }
}
