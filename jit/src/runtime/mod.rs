//! Caches of translated code, invalidation, compile threads, and the loop that runs a vCPU.

mod arena;
pub mod cache;
pub mod compile;
pub mod compiled;
pub mod contexts;
pub mod crossings;
pub mod debugger;
pub mod exec;
mod frame;
pub mod lockstep;
pub mod pages;
pub mod perf_map;
pub mod place;
mod run;
pub mod sampler;
mod slots;
pub mod tier;
