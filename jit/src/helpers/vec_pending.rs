//! Temporary: signatures the interpreter needs until the vector family lands; delete this file then (and name the
//! functions `vec_fn`, `vec_to_int_fn`, `vec_from_int_fn` in `helpers::vec`).
use crate::cpu::Cpu;
use crate::ir::vecop::{VecFromInt, VecOp, VecToInt};

pub fn vec_fn(_: VecOp) -> fn(u128, u128, u8) -> u128 {
    |a, _, _| a
}
pub fn vec_to_int_fn(_: VecToInt) -> fn(u128, u128, u8) -> u64 {
    |a, _, _| a as u64
}
pub fn vec_from_int_fn(_: VecFromInt) -> fn(u128, u64, u8) -> u128 {
    |a, _, _| a
}
impl Cpu {
    pub fn load_mxcsr(&mut self) {}
    pub fn sync_mxcsr(&mut self) {}
}
