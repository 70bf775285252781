//! Temporary: signatures the run loop needs until the system side lands; delete this file then.
use crate::cpu::Cpu;
use crate::fault::Fault;
use crate::vcpu::Registers;

impl Cpu {
    pub fn reset(&mut self) {}
    pub fn init_start_up(&mut self, _vector: u8) {}
    pub fn deliver_fault(&mut self, f: Fault) -> Result<(), String> {
        Err(format!("{f:?}"))
    }
    pub fn deliver_interrupt(&mut self, _vector: u8) -> Result<(), String> {
        Ok(())
    }
    pub fn deliver_nmi(&mut self) -> Result<(), String> {
        Ok(())
    }
    pub fn check_code_breakpoints(&mut self) -> Result<(), Fault> {
        Ok(())
    }
    pub fn post_step(&mut self, _single_step: bool) -> Result<(), Fault> {
        Ok(())
    }
    pub fn dump(&self) -> String {
        String::new()
    }
    pub fn get_registers(&self) -> Registers {
        Registers::default()
    }
    pub fn set_registers(&mut self, _r: &Registers) {}
    pub fn seg_check(&self, _seg: usize, offset: u64, _bytes: u32, _write: bool) -> Result<u64, Fault> {
        Ok(offset)
    }
}
