//! Guest memory: RAM, softmmu TLB, page walk, accesses of instructions and of the processor itself, code-page tracking.

pub mod access;
pub mod code_map;
pub mod ram;
pub mod ram_buffer;
pub mod second;
pub mod span;
pub mod tlb;
pub mod walk;
