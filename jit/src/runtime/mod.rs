//! Caches of translated code, invalidation, and the loop that runs a vCPU.

pub mod cache;
mod exec;
mod run;
pub mod tier;
