//! Runs one block on a processor, in the tier that is asked for.

use super::Tier;
use crate::baseline;
use crate::cpu::Cpu;
use crate::fault::Fault;
use crate::ir::Block;
use crate::lift;
use crate::lower::{Compiler, Region};
use crate::passes;
use crate::runtime::compile::compile_one;
use crate::runtime::exec::Leave;
use crate::runtime::place::{CodeMemory, CodePage};
use std::sync::Arc;

/// Lifts, compiles and enters blocks.
#[derive(Default)]
pub(super) struct Executor {
    compiling: Option<Compiling>,
}

impl Executor {
    /// Runs the block that `bytes` start with, which the processor finds at its RIP.
    ///
    /// # Panics
    /// If the bytes end within an instruction.
    pub(super) fn run(&mut self, cpu: &mut Cpu, bytes: &[u8], tier: Tier) -> Result<(), Fault> {
        let (rip, mode) = (cpu.state.rip, cpu.state.mode);
        let mut block =
            lift::lift_block(bytes, rip, mode, &cpu.model, lift::MAX_INSNS).expect("the bytes hold whole instructions");
        if tier != Tier::Lifted {
            passes::run(&mut block);
        }
        match tier {
            Tier::Baseline | Tier::Compiled => self.enter(cpu, &block, bytes, tier),
            _ => cpu.run_block(&block),
        }
    }

    /// Runs the block as generated code, which may leave it to the interpreter (what faults, for one).
    fn enter(&mut self, cpu: &mut Cpu, block: &Block, bytes: &[u8], tier: Tier) -> Result<(), Fault> {
        let Some(entry) = self.compiling().entry(block, tier) else {
            return cpu.run_block(block);
        };
        cpu.state.code_stale = 0;
        cpu.state.heat[0] = i32::MAX;
        match cpu.enter(entry) {
            Leave::Interpret => interpret_one(cpu, block, bytes),
            Leave::Fault => Err(cpu.pending_fault.take().unwrap_or(Fault::UD)),
            _ => Ok(()),
        }
    }

    /// What compiles, made when it is first asked for.
    pub(super) fn compiling(&mut self) -> &mut Compiling {
        self.compiling.get_or_insert_with(Compiling::new)
    }

    /// Blocks for which there was no code so far.
    pub(super) fn refused(&self) -> u64 {
        self.compiling.as_ref().map_or(0, |c| c.refused)
    }
}

/// The instruction at RIP, which generated code of `block` left to the interpreter.
fn interpret_one(cpu: &mut Cpu, block: &Block, bytes: &[u8]) -> Result<(), Fault> {
    let rip = cpu.state.rip;
    let at = rip.wrapping_sub(block.rip) as usize;
    let rest = bytes.get(at..block.len as usize).expect("an instruction of the block");
    let single = lift::lift_block(rest, rip, block.mode, &cpu.model, 1).expect("a whole instruction");
    cpu.run_block(&single)
}

/// The compiling tier of a machine, with the last instruction it compiled.
pub(super) struct Compiling {
    compiler: Compiler,
    emitter: baseline::Emitter,
    memory: CodeMemory,
    last: Option<(Block, Tier, Option<u64>)>,
    /// Blocks for which there was no code; the interpreter ran them, as it would in a machine.
    refused: u64,
}

impl Compiling {
    fn new() -> Self {
        Self {
            compiler: Compiler::new().expect("a host that Cranelift knows"),
            emitter: baseline::Emitter::default(),
            memory: CodeMemory::new(16 << 20).expect("memory for generated code"),
            last: None,
            refused: 0,
        }
    }

    /// Host address of the block's code, if it can be compiled.
    pub(super) fn entry(&mut self, block: &Block, tier: Tier) -> Option<u64> {
        if let Some((_, _, entry)) = self.last.as_ref().filter(|(b, t, _)| b == block && *t == tier) {
            return *entry;
        }
        let entry = self.compile(Arc::new(block.clone()), tier);
        self.refused += entry.is_none() as u64;
        self.last = Some((block.clone(), tier, entry));
        entry
    }

    /// Compiles the block and places its code: where it starts. What was compiled before is dropped when the code memory is
    /// full.
    pub(super) fn compile(&mut self, block: Arc<Block>, tier: Tier) -> Option<u64> {
        {
            let mut space = self.memory.lock();
            if let Some(part) = space.to_empty() {
                space.empty(part);
                self.last = None;
            }
        }
        let placed = if tier == Tier::Baseline {
            self.memory.lock().place_block(self.emitter.compile(&block, Some(0)))
        } else {
            let region = Region::on_a_page(vec![block], true, 0);
            compile_one(&mut self.compiler, &region, &[CodePage::NOWHERE], &self.memory).ok()
        };
        placed.map(|p| p.entry)
    }
}
