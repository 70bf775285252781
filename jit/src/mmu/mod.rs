//! Guest memory: RAM, TLB, page walk, code-page tracking.
pub mod ram;
