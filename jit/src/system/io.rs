//! Port I/O: rights (SDM 1, 18.5), IN, OUT and their string forms.

use crate::cpu::Cpu;
use crate::fault::Fault;
use crate::ir::Ty;
use crate::state::{flag, reg};

/// A string I/O instruction as the lifter describes it.
#[derive(Clone, Copy, Debug)]
pub struct StringIo {
    /// Operand width.
    pub ty: Ty,
    /// Width of index and count registers.
    pub address: Ty,
    /// Segment of the memory operand.
    pub segment: usize,
    /// REP prefix.
    pub rep: bool,
}

impl StringIo {
    /// From the helper operand that [`StringIo::pack`] made.
    pub fn unpack(v: u64) -> Self {
        Self {
            ty: Ty::from_bytes(v as usize & 15),
            address: Ty::from_bytes(v as usize >> 4 & 15),
            segment: (v >> 8) as usize & 7,
            rep: v >> 12 & 1 != 0,
        }
    }

    /// As one helper operand.
    pub fn pack(&self) -> i64 {
        self.ty.bytes() as i64
            | (self.address.bytes() as i64) << 4
            | (self.segment as i64) << 8
            | (self.rep as i64) << 12
    }
}

impl Cpu {
    /// #GP(0) unless `bytes` ports from `port` may be used: CPL <= IOPL, or the I/O permission bitmap says so.
    pub fn check_port(&mut self, port: u16, bytes: u8) -> Result<(), Fault> {
        if self.real_mode() || (self.io_privileged() && !self.vm86()) {
            return Ok(());
        }
        let tr = self.state.tr;
        if !tr.present() || tr.attributes & 8 == 0 || tr.limit < 0x67 {
            return Err(Fault::GP0);
        }
        let base = self.load_system(Ty::I16, self.table_address(tr.base, 0x66))?;
        let offset = base + port as u64 / 8;
        // Two bytes are always read: the bits may straddle.
        if offset + 1 > tr.limit as u64 {
            return Err(Fault::GP0);
        }
        let map = self.load_system(Ty::I16, self.table_address(tr.base, offset))?;
        let mask = (1 << bytes) - 1;
        if map >> (port & 7) & mask != 0 { Err(Fault::GP0) } else { Ok(()) }
    }

    /// IN.
    pub fn port_in(&mut self, port: u16, bytes: u8) -> Result<u64, Fault> {
        self.check_port(port, bytes)?;
        self.note_port_access(port, bytes as u64);
        Ok(self.board.pio_read(self.index, port, bytes) as u64 & Ty::from_bytes(bytes as usize).mask())
    }

    /// OUT.
    pub fn port_out(&mut self, port: u16, bytes: u8, value: u64) -> Result<(), Fault> {
        self.check_port(port, bytes)?;
        self.note_port_access(port, bytes as u64);
        let value = (value & Ty::from_bytes(bytes as usize).mask()) as u32;
        self.board.pio_write(self.index, port, bytes, value);
        Ok(())
    }

    /// INS (`input`) or OUTS with all its repetitions, until something wants attention. Leaves RIP at `next` when done, at
    /// the instruction itself when iterations are left; what a fault interrupts has its registers advanced.
    pub fn string_io(&mut self, io: StringIo, input: bool, next: u64) -> Result<(), Fault> {
        let port = self.gpr(reg::RDX) as u16;
        self.check_port(port, io.ty.bytes())?;
        let count_mask = io.address.mask();
        let single = self.runs_alone();
        loop {
            if io.rep && self.gpr(reg::RCX) & count_mask == 0 {
                break;
            }
            let before = self.blocks.invalidations();
            self.string_io_element(io, input, port)?;
            if !io.rep {
                break;
            }
            // Translated code was dropped, maybe this: what is there now goes on.
            let dropped = self.blocks.invalidations() != before;
            self.advance(reg::RCX, u64::MAX, io.address);
            if self.gpr(reg::RCX) & count_mask == 0 {
                break;
            }
            if single || dropped || self.requested() != 0 {
                return Ok(());
            }
        }
        self.state.rip = next;
        Ok(())
    }

    fn string_io_element(&mut self, io: StringIo, input: bool, port: u16) -> Result<(), Fault> {
        let bytes = io.ty.bytes();
        let index = if input { reg::RDI } else { reg::RSI };
        let offset = self.gpr(index) & io.address.mask();
        let linear = self.seg_check(io.segment, offset, bytes as u32, input)?;
        if input {
            self.probe_write(linear, bytes as u64)?;
            self.note_port_access(port, bytes as u64);
            let v = self.board.pio_read(self.index, port, bytes) as u64;
            self.store(io.ty, linear, v & io.ty.mask())?;
        } else {
            let v = self.load(io.ty, linear)?;
            self.note_port_access(port, bytes as u64);
            self.board.pio_write(self.index, port, bytes, v as u32);
        }
        let step = if self.state.rflags & flag::DF != 0 { (bytes as u64).wrapping_neg() } else { bytes as u64 };
        self.advance(index, step, io.address);
        Ok(())
    }

    /// Adds to a register in the given width, as an instruction with that address size does.
    fn advance(&mut self, n: usize, by: u64, ty: Ty) {
        let old = self.gpr(n);
        let sum = old.wrapping_add(by) & ty.mask();
        self.set_gpr(n, if ty == Ty::I16 { old & !0xffff | sum } else { sum });
    }
}
