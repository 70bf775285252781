//! The CPU engine: guest bytes are decoded and lifted to IR once. An interpreter runs the IR of what is cold, a one-pass
//! emitter makes baseline code of what runs again, and Cranelift compiles what is hot. The engine knows nothing of devices: see [`board::Board`] for all it needs from around it.

mod baseline;
pub mod board;
mod counter;
mod cpu;
pub mod cpuid;
mod fault;
mod helpers;
mod interp;
mod ir;
mod lift;
mod lower;
pub mod mmu;
mod names;
mod passes;
mod runtime;
mod saved;
mod seeded;
mod shared;
mod state;
mod system;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod vcpu;

pub use counter::Counter;
pub use lift::instructions;
pub use names::name_code;
pub use saved::{SavedVcpu, Unfit};
pub use seeded::Seeded;
pub use vcpu::*;
