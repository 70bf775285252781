//! The CPU engine: guest bytes are decoded and lifted to IR once; an interpreter runs the IR, Cranelift compiles what
//! is hot. The engine knows nothing of devices: see [`board::Board`] for all it needs from around it.

pub mod board;
pub mod cpuid;
pub mod mmu;
mod vcpu;

pub use vcpu::*;
