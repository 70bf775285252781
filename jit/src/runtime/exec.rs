//! Entering generated code.

use crate::cpu::Cpu;

// SAFETY: the raw pointers in `CpuState` point into structures that the same `Cpu` owns or shares through an `Arc` (TLB
// tables, jump cache, request word); they move with it and no thread-local state is involved.
unsafe impl Send for Cpu {}
