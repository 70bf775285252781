//! Single stages of the engine, for benchmarks (`jit/benches/`).

use super::{Machine, Tier};
use crate::ir::{Block, Ty, parse, verify};
use crate::lift;
use crate::passes;
use std::sync::Arc;

/// IR to interpret, from its text form.
pub struct Program {
    block: Block,
}

impl Program {
    /// Reads and verifies the text form of a block. The error names the line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let block = parse::parse(text)?;
        verify::check(&block)?;
        Ok(Self { block })
    }

    /// Number of operations.
    pub fn len(&self) -> usize {
        self.block.insts.len()
    }

    /// Has no operation.
    pub fn is_empty(&self) -> bool {
        self.block.insts.is_empty()
    }
}

/// Generated code that stays in place while its machine lives and compiles nothing else.
#[derive(Clone, Copy, Debug)]
pub struct Code {
    entry: u64,
    rip: u64,
}

impl Machine {
    /// Decodes and lifts one block from `bytes` at RIP: its guest instructions and the IR operations they became.
    ///
    /// # Panics
    /// If the bytes end within the first instruction.
    pub fn lift(&self, bytes: &[u8]) -> (usize, usize) {
        let block = self.block(bytes);
        (block.count.into(), block.insts.len())
    }

    /// The block at RIP, as lifted.
    fn block(&self, bytes: &[u8]) -> Block {
        let (rip, mode) = (self.cpu.state.rip, self.cpu.state.mode);
        lift::lift_block(bytes, rip, mode, &self.cpu.model, lift::MAX_INSNS).expect("the bytes hold whole instructions")
    }

    /// Interprets the program once; `false` if it faulted.
    pub fn interpret(&mut self, program: &Program) -> bool {
        self.cpu.run_block(&program.block).is_ok()
    }

    /// Lifts, optimises, compiles and places the block at RIP, dropping what was compiled long before when the code
    /// memory is full. `tier`: baseline or Cranelift's code.
    ///
    /// # Panics
    /// If the bytes end within the first instruction.
    pub fn compile(&mut self, bytes: &[u8], tier: Tier) -> Option<Code> {
        let rip = self.cpu.state.rip;
        let mut block = self.block(bytes);
        passes::run(&mut block);
        let entry = self.executor.compiling().compile(Arc::new(block), tier)?;
        Some(Code { entry, rip })
    }

    /// Enters generated code at its beginning and comes back when it leaves.
    pub fn enter_code(&mut self, code: Code) {
        self.cpu.state.rip = code.rip;
        self.cpu.state.code_stale = 0;
        self.cpu.enter(code.entry);
    }

    /// Loads eight bytes as a helper does; `None` if that faults.
    pub fn load(&mut self, linear: u64) -> Option<u64> {
        self.cpu.load(Ty::I64, linear).ok()
    }

    /// Empties the TLB.
    pub fn flush_tlb(&mut self) {
        self.cpu.flush_tlb_all();
    }
}
