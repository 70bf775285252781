//! Memory accesses of the interpreter, the helpers and the processor itself: the slow path behind the TLB.

use super::code_map::granules;
use super::ram::PAGE_SIZE;
use super::tlb::{self, SLOW, SUPERVISOR, SUPERVISOR_SMAP};
use super::walk::{Access, Marks, PagingState};
use crate::cpu::Cpu;
use crate::fault::Fault;
use crate::ir::op::RmwOp;
use crate::ir::{Ty, mem};
use crate::state::{cr0, cr4, efer, mode};
use std::sync::PoisonError;
use std::sync::atomic::{Ordering, fence};

/// A linear address, and its page, that no access gets through to, in any mode: what a segment forbade.
pub const NOWHERE: u64 = 1 << 63;
/// Largest operand that is one access, in bytes.
const OPERAND: u64 = 32;

/// Devices above here stay devices.
const FIRST_DEVICE: u64 = 0x10_0000;

/// Where an access goes after translation.
enum Place {
    /// RAM: the TLB has it now.
    Ram,
    /// Writable RAM with translated code on the page, or ROM: guest-physical address.
    Watched(u64),
    /// Devices, or nothing: guest-physical address.
    Mmio(u64),
}

impl Cpu {
    /// The registers that govern translation.
    pub fn paging(&self) -> PagingState {
        let s = &self.state;
        let lines = self.shared.address_lines();
        PagingState { cr0: s.cr0, cr3: s.cr3, cr4: s.cr4, efer: s.efer, pdptes: self.pdptes, lines }
    }

    /// MMU index of accesses the processor makes on its own behalf (descriptor tables, TSS).
    pub fn system_index(&self) -> usize {
        if self.state.cr4 & cr4::SMAP != 0 { SUPERVISOR_SMAP } else { SUPERVISOR }
    }

    /// Address is canonical, or long mode is off (SDM 1, 3.3.7.1).
    pub fn canonical(&self, linear: u64) -> bool {
        if self.state.efer & efer::LMA == 0 {
            return true;
        }
        let shift = if self.state.cr4 & cr4::LA57 != 0 { 7 } else { 16 };
        ((linear << shift) as i64 >> shift) as u64 == linear
    }

    /// Notes an access for data breakpoints and a debugger's watchpoints, where instructions run alone; elsewhere one to a page
    /// with a watchpoint is refused, so that its instruction is run alone.
    #[inline]
    fn watch(&mut self, linear: u64, bytes: u64, write: bool) -> Result<(), Fault> {
        if self.state.mode & mode::STEP != 0 || self.debugger.watching() {
            self.look_at(linear, bytes, write)
        } else {
            Ok(())
        }
    }

    #[cold]
    fn look_at(&mut self, linear: u64, bytes: u64, write: bool) -> Result<(), Fault> {
        if self.state.mode & mode::STEP != 0 || self.debugger.runs_alone() {
            self.note_data_access(linear, bytes, write);
            return Ok(());
        }
        if self.debugger.watches_page(linear, bytes) { Err(Fault::WATCHED) } else { Ok(()) }
    }

    /// The refusal alone: what is about to be stored to a watched page is not fetched yet, and a port must not be read twice.
    fn refuse_watched(&self, linear: u64, bytes: u64) -> Result<(), Fault> {
        let watched = self.debugger.watching() && self.debugger.watches_page(linear, bytes);
        if watched && !self.runs_alone() { Err(Fault::WATCHED) } else { Ok(()) }
    }

    /// Refuses what a device would be asked for while there are watchpoints: its instruction may touch a watched page as
    /// well, and be run again for that, but a device must be read once.
    #[cold]
    fn refuse_device(&mut self, linear: u64, bytes: u64, flags: u16) -> Result<(), Fault> {
        if self.runs_alone() {
            return Ok(());
        }
        let index = self.state.mmu_index();
        let last = self.wrap_linear(linear.wrapping_add(bytes.max(1) - 1));
        for at in [linear, last] {
            if let Place::Mmio(_) = self.place(index, at, Access::Read, flags)? {
                return Err(Fault::WATCHED);
            }
        }
        Ok(())
    }

    /// The same, where nothing is watched at the cost of one look.
    #[inline]
    fn spare_device(&mut self, linear: u64, bytes: u64, flags: u16) -> Result<(), Fault> {
        if self.debugger.watching() { self.refuse_device(linear, bytes, flags) } else { Ok(()) }
    }

    /// Loads at the current privilege.
    #[inline]
    pub fn load(&mut self, ty: Ty, linear: u64) -> Result<u64, Fault> {
        self.load_flags(ty, linear, 0)
    }

    /// Loads at the current privilege; `flags` from [`mem`].
    #[inline]
    pub fn load_flags(&mut self, ty: Ty, linear: u64, flags: u16) -> Result<u64, Fault> {
        self.watch(linear, ty.bytes() as u64, false)?;
        let index = self.state.mmu_index();
        if flags & mem::WRITE_INTENT != 0 && !self.tlb_writable(index, linear, ty) {
            self.check_write(index, linear, ty.bytes() as u64, flags)?;
        }
        match self.state.tlb.load(index, linear, ty) {
            Some(v) => Ok(v),
            None => {
                self.spare_device(linear, ty.bytes() as u64, flags)?;
                self.load_slow(index, ty, linear, flags)
            }
        }
    }

    /// Stores at the current privilege.
    #[inline]
    pub fn store(&mut self, ty: Ty, linear: u64, value: u64) -> Result<(), Fault> {
        self.store_flags(ty, linear, value, 0)
    }

    /// Stores at the current privilege; `flags` from [`mem`].
    #[inline]
    pub fn store_flags(&mut self, ty: Ty, linear: u64, value: u64, flags: u16) -> Result<(), Fault> {
        self.watch(linear, ty.bytes() as u64, true)?;
        let index = self.state.mmu_index();
        if self.state.tlb.store(index, linear, ty, value) {
            Ok(())
        } else {
            self.store_slow(index, ty, linear, value, flags)
        }
    }

    /// Loads as the processor itself does (supervisor, whatever the CPL).
    pub fn load_system(&mut self, ty: Ty, linear: u64) -> Result<u64, Fault> {
        let index = self.system_index();
        match self.state.tlb.load(index, linear, ty) {
            Some(v) => Ok(v),
            None => self.load_slow(index, ty, linear, 0),
        }
    }

    /// Stores as the processor itself does.
    pub fn store_system(&mut self, ty: Ty, linear: u64, value: u64) -> Result<(), Fault> {
        let index = self.system_index();
        if self.state.tlb.store(index, linear, ty, value) {
            Ok(())
        } else {
            self.store_slow(index, ty, linear, value, 0)
        }
    }

    /// Loads with an explicit MMU index (interrupt delivery through an inner stack).
    pub fn load_at(&mut self, index: usize, ty: Ty, linear: u64) -> Result<u64, Fault> {
        match self.state.tlb.load(index, linear, ty) {
            Some(v) => Ok(v),
            None => self.load_slow(index, ty, linear, 0),
        }
    }

    /// Stores with an explicit MMU index.
    pub fn store_at(&mut self, index: usize, ty: Ty, linear: u64, value: u64) -> Result<(), Fault> {
        if self.state.tlb.store(index, linear, ty, value) {
            Ok(())
        } else {
            self.store_slow(index, ty, linear, value, 0)
        }
    }

    /// Loads 16 bytes at the current privilege.
    #[inline]
    pub fn load128(&mut self, linear: u64, flags: u16) -> Result<u128, Fault> {
        self.watch(linear, 16, false)?;
        if flags & mem::ALIGNED != 0 && linear & 15 != 0 {
            return Err(Fault::GP0);
        }
        let index = self.state.mmu_index();
        if let Some(v) = self.state.tlb.load128(index, linear) {
            return Ok(v);
        }
        self.spare_device(linear, 16, flags)?;
        let low = self.load_slow_checked(index, linear, 16, flags)?;
        Ok(low)
    }

    fn load_slow_checked(&mut self, index: usize, linear: u64, len: u64, flags: u16) -> Result<u128, Fault> {
        let mut buf = [0; 16];
        self.read_pieces(index, linear, &mut buf[..len as usize], flags)?;
        Ok(u128::from_le_bytes(buf))
    }

    /// Stores 16 bytes at the current privilege.
    #[inline]
    pub fn store128(&mut self, linear: u64, value: u128, flags: u16) -> Result<(), Fault> {
        self.watch(linear, 16, true)?;
        if flags & mem::ALIGNED != 0 && linear & 15 != 0 {
            return Err(Fault::GP0);
        }
        let index = self.state.mmu_index();
        if self.state.tlb.store128(index, linear, value) {
            return Ok(());
        }
        self.write_pieces(index, linear, &value.to_le_bytes(), flags)
    }

    /// Loads 32 bytes at the current privilege, low half first.
    pub fn load256(&mut self, linear: u64, flags: u16) -> Result<[u128; 2], Fault> {
        self.watch(linear, 32, false)?;
        if flags & mem::ALIGNED != 0 && linear & 31 != 0 {
            return Err(Fault::GP0);
        }
        let index = self.state.mmu_index();
        let (low, high) =
            (self.state.tlb.load128(index, linear), self.state.tlb.load128(index, linear.wrapping_add(16)));
        if let (Some(low), Some(high)) = (low, high) {
            return Ok([low, high]);
        }
        self.spare_device(linear, 32, flags)?;
        let mut buf = [[0; 16]; 2];
        self.read_pieces(index, linear, buf.as_flattened_mut(), flags)?;
        Ok(buf.map(u128::from_le_bytes))
    }

    /// Stores 32 bytes at the current privilege: all of them, or a fault and none.
    pub fn store256(&mut self, linear: u64, value: [u128; 2], flags: u16) -> Result<(), Fault> {
        self.watch(linear, 32, true)?;
        if flags & mem::ALIGNED != 0 && linear & 31 != 0 {
            return Err(Fault::GP0);
        }
        let index = self.state.mmu_index();
        let inside = linear & (PAGE_SIZE - 1) <= PAGE_SIZE - 32;
        if inside && self.state.tlb.store128(index, linear, value[0]) {
            let hit = self.state.tlb.store128(index, linear.wrapping_add(16), value[1]);
            debug_assert!(hit, "the page was there");
            return Ok(());
        }
        self.write_pieces(index, linear, value.map(u128::to_le_bytes).as_flattened(), flags)
    }

    /// Loads any number of bytes at the current privilege.
    pub fn load_bytes(&mut self, linear: u64, buf: &mut [u8]) -> Result<(), Fault> {
        self.watch(linear, buf.len() as u64, false)?;
        self.spare_device(linear, buf.len() as u64, 0)?;
        self.read_pieces(self.state.mmu_index(), linear, buf, 0)
    }

    /// Stores bytes at the current privilege: all of them, or a fault and none.
    pub fn store_bytes(&mut self, linear: u64, buf: &[u8]) -> Result<(), Fault> {
        self.watch(linear, buf.len() as u64, true)?;
        self.write_pieces(self.state.mmu_index(), linear, buf, 0)
    }

    /// Raises what a store of `len` bytes at `linear` would raise.
    pub fn probe_write(&mut self, linear: u64, len: u64) -> Result<(), Fault> {
        self.refuse_watched(linear, len)?;
        self.check_write(self.state.mmu_index(), linear, len, 0)
    }

    /// The same for an access with `flags` from [`mem`].
    pub fn probe_store(&mut self, linear: u64, len: u64, flags: u16) -> Result<(), Fault> {
        self.refuse_watched(linear, len)?;
        self.check_write(self.state.mmu_index(), linear, len, flags)
    }

    /// Raises what a store of `len` bytes to a stack at `linear` would raise with an explicit MMU index.
    pub fn probe_write_at(&mut self, index: usize, linear: u64, len: u64) -> Result<(), Fault> {
        self.check_write(index, linear, len, mem::STACK)
    }

    /// Atomic read-modify-write at the current privilege: the old value.
    pub fn rmw(&mut self, ty: Ty, linear: u64, op: RmwOp, value: u64) -> Result<u64, Fault> {
        self.watch(linear, ty.bytes() as u64, true)?;
        let index = self.state.mmu_index();
        let atomic = |cpu: &mut Self, tag| cpu.state.tlb.rmw(index, linear, tag, ty, op, value);
        if let Some(old) = self.atomically(index, linear, ty.bytes() as u64, atomic)? {
            return Ok(old);
        }
        self.in_pieces(|cpu| {
            let old = cpu.load_at(index, ty, linear)?;
            cpu.store_at(index, ty, linear, op.apply(old, value) & ty.mask())?;
            Ok(old)
        })
    }

    /// Atomic compare-and-swap at the current privilege: the old value.
    pub fn cas(&mut self, ty: Ty, linear: u64, expected: u64, new: u64) -> Result<u64, Fault> {
        self.watch(linear, ty.bytes() as u64, true)?;
        let index = self.state.mmu_index();
        let atomic = |cpu: &mut Self, tag| cpu.state.tlb.cas(index, linear, tag, ty, expected, new);
        if let Some(old) = self.atomically(index, linear, ty.bytes() as u64, atomic)? {
            return Ok(old);
        }
        self.in_pieces(|cpu| {
            let old = cpu.load_at(index, ty, linear)?;
            let value = if old == expected & ty.mask() { new } else { old };
            cpu.store_at(index, ty, linear, value & ty.mask())?;
            Ok(old)
        })
    }

    /// Atomic compare-and-swap of 16 aligned bytes at the current privilege: the old value.
    pub fn cas128(&mut self, linear: u64, expected: u128, new: u128) -> Result<u128, Fault> {
        self.watch(linear, 16, true)?;
        let index = self.state.mmu_index();
        let atomic = |cpu: &mut Self, tag| cpu.state.tlb.cas128(index, linear, tag, expected, new);
        if let Some(old) = self.atomically(index, linear, 16, atomic)? {
            return Ok(old);
        }
        self.in_pieces(|cpu| {
            let old = cpu.load128(linear, 0)?;
            cpu.store128(linear, if old == expected { new } else { old }, 0)?;
            Ok(old)
        })
    }

    /// Does a locked operation that crosses a page, is a device's or that the host lacks: atomic beside others of that kind.
    fn in_pieces<T>(&mut self, operation: impl FnOnce(&mut Self) -> Result<T, Fault>) -> Result<T, Fault> {
        let shared = self.shared.clone();
        let _alone = shared.page_crossing.lock().unwrap_or_else(PoisonError::into_inner);
        operation(self)
    }

    /// Does `operation` on host memory, on a page with code too. `None`: it is to be done in pieces; no fault is left.
    fn atomically<T>(
        &mut self,
        index: usize,
        linear: u64,
        bytes: u64,
        operation: impl Fn(&mut Self, u64) -> Option<T>,
    ) -> Result<Option<T>, Fault> {
        if let Some(old) = operation(self, 0) {
            return Ok(Some(old));
        }
        self.check_write(index, linear, bytes, 0)?;
        if let Some(old) = operation(self, 0) {
            return Ok(Some(old));
        }
        let done = operation(self, SLOW);
        if done.is_some() {
            let gpa = self.state.tlb.entry(index, linear).meta & !(PAGE_SIZE - 1);
            self.code_changed(gpa | linear & (PAGE_SIZE - 1), bytes);
        }
        Ok(done)
    }

    fn tlb_writable(&self, index: usize, linear: u64, ty: Ty) -> bool {
        let last = linear.wrapping_add(ty.bytes() as u64 - 1) & !(PAGE_SIZE - 1);
        last == self.state.tlb.entry(index, linear).write
    }

    #[cold]
    fn load_slow(&mut self, index: usize, ty: Ty, linear: u64, flags: u16) -> Result<u64, Fault> {
        let bytes = ty.bytes() as u64;
        if linear & (PAGE_SIZE - 1) > PAGE_SIZE - bytes {
            return Ok(self.load_slow_checked(index, linear, bytes, flags)? as u64);
        }
        match self.place(index, linear, Access::Read, flags)? {
            Place::Mmio(gpa) => Ok(self.board.mmio_read(self.index, gpa, ty.bytes()) & ty.mask()),
            _ => Ok(self.state.tlb.load(index, linear, ty).expect("a mapping just entered hits")),
        }
    }

    #[cold]
    fn store_slow(&mut self, index: usize, ty: Ty, linear: u64, value: u64, flags: u16) -> Result<(), Fault> {
        let bytes = ty.bytes() as u64;
        if linear & (PAGE_SIZE - 1) > PAGE_SIZE - bytes {
            return self.write_pieces(index, linear, &value.to_le_bytes()[..bytes as usize], flags);
        }
        match self.place(index, linear, Access::Write, flags)? {
            Place::Ram => {
                let hit = self.state.tlb.store(index, linear, ty, value);
                debug_assert!(hit, "a mapping just entered hits");
            }
            Place::Watched(gpa) => {
                self.state.tlb.store_tagged(index, linear, SLOW, ty, value);
                self.code_changed(gpa, bytes);
            }
            Place::Mmio(gpa) => self.board.mmio_write(self.index, gpa, ty.bytes(), value & ty.mask()),
        }
        Ok(())
    }

    /// A store to a page with translated code.
    fn store_watched(&mut self, gpa: u64, bytes: &[u8]) {
        self.shared.ram.write(gpa, bytes, false);
        self.code_changed(gpa, bytes.len() as u64);
    }

    /// Drops translated code that was overwritten, and has other processors drop theirs.
    fn code_changed(&mut self, gpa: u64, len: u64) {
        let shared = self.shared.clone();
        // What is marked from here on is lifted from the new bytes.
        fence(Ordering::SeqCst);
        let own = self.mailbox.marks.get(&shared.ram, gpa);
        if own & granules(gpa, len) != 0 {
            self.invalidate_code(gpa, len);
        }
        if shared.code_map.holders(&shared.ram, gpa) > u16::from(own != 0) {
            shared.code_written(gpa, len, Some(&self.mailbox));
        }
    }

    /// Translates an access within one page and enters it in the TLB.
    fn place(&mut self, index: usize, linear: u64, access: Access, flags: u16) -> Result<Place, Fault> {
        self.place_marking(index, linear, access, flags, Marks::Set)
    }

    /// The same; `marks`: what the walk does about accessed and dirty bits.
    fn place_marking(
        &mut self,
        index: usize,
        linear: u64,
        access: Access,
        flags: u16,
        marks: Marks,
    ) -> Result<Place, Fault> {
        let device = self.state.tlb.device(index, linear, access == Access::Write);
        if let Some(gpa) = device.filter(|_| access != Access::Fetch) {
            return Ok(Place::Mmio(gpa | linear & (PAGE_SIZE - 1)));
        }
        if access == Access::Write {
            let e = self.state.tlb.entry(index, linear);
            if e.write == linear & !(PAGE_SIZE - 1) | SLOW {
                let gpa = e.meta & !(PAGE_SIZE - 1);
                let code = self.shared.code_map.has_code(&self.shared.ram, gpa);
                self.note_store_page(index, linear, gpa, code);
                if !code {
                    self.state.tlb.unprotect(index, linear);
                    return Ok(Place::Ram);
                }
                return Ok(Place::Watched(gpa | linear & (PAGE_SIZE - 1)));
            }
        }
        self.check_canonical(linear, flags)?;
        let m = self.translate(index, linear, access, marks)?;
        let offset = linear & (PAGE_SIZE - 1);
        match self.shared.ram.host(m.gpa) {
            Some((host, _, rom)) => {
                let code = !rom && self.shared.code_map.has_code(&self.shared.ram, m.gpa);
                let writable = tlb::Mapping { write: m.write && !rom, ..m };
                self.state.tlb.fill(index, linear, &writable, host, code || self.lockstep.is_some());
                self.note_fill(index, linear);
                self.debugger.note_entry(linear);
                if access == Access::Write && !rom {
                    self.note_store_page(index, linear, m.gpa, code);
                }
                match access {
                    Access::Write if rom => Ok(Place::Mmio(m.gpa | offset)),
                    Access::Write if code => Ok(Place::Watched(m.gpa | offset)),
                    _ => Ok(Place::Ram),
                }
            }
            None => {
                // What is below 1 MiB may be memory a moment later. Page marks are to be as without the TLB.
                if m.gpa >= FIRST_DEVICE && self.lockstep.is_none() {
                    self.state.tlb.fill_device(index, linear, &m);
                }
                Ok(Place::Mmio(m.gpa | offset))
            }
        }
    }

    /// Translates a data access by the second-level TLB, or by a walk, which is entered there.
    fn translate(&mut self, index: usize, linear: u64, access: Access, marks: Marks) -> Result<tlb::Mapping, Fault> {
        let paging = self.paging();
        // Page marks are compared in lockstep: they are to be as without a TLB.
        let kept = paging.cr0 & cr0::PG != 0 && self.lockstep.is_none();
        let generation = self.contexts.address_space();
        if kept && let Some(m) = self.second.find(index, linear, access, generation) {
            return Ok(tlb::Mapping { gpa: m.gpa & paging.lines, ..m });
        }
        let walk = |from| paging.walk_from(from, &self.shared.ram, linear, access, index, marks);
        let table = if kept { self.second.table(linear, generation) } else { None };
        // What a kept table forbids, those above it may allow by now: a fault is one of a whole walk.
        let found = table.and_then(|table| walk(Some(table)).ok()).map_or_else(|| walk(None), Ok);
        let (m, last) = found.inspect_err(|f| {
            tracing::trace!(target: "mmu", "page fault: linear {:#x} {:?} index {} code {:?}", linear, access, index, f.error);
        })?;
        if kept {
            self.second.enter(index, linear, &m, generation);
            if let (Some(last), None) = (last, table) {
                self.second.enter_table(linear, last, generation);
            }
        }
        Ok(m)
    }

    /// #GP(0), or #SS(0) for the stack, unless the address is canonical and not [`NOWHERE`].
    fn check_canonical(&self, linear: u64, flags: u16) -> Result<(), Fault> {
        match linear & !(PAGE_SIZE - 1) != NOWHERE && self.canonical(linear) {
            true => Ok(()),
            false if flags & mem::STACK != 0 => Err(Fault::SS0),
            false => Err(Fault::GP0),
        }
    }

    /// The same for both ends of one operand, which is looked at before the first page is (measured).
    fn check_ends(&self, linear: u64, len: u64, flags: u16) -> Result<(), Fault> {
        self.check_canonical(linear, flags)?;
        let last = self.wrap_linear(linear.wrapping_add(len.saturating_sub(1)));
        if len > OPERAND { Ok(()) } else { self.check_canonical(last, flags) }
    }

    /// Enters the mapping of `linear`'s page in the TLB for generated code, if there is one without a fault and without a
    /// mark in the page tables. The page may be the second of an access whose first page faults, which then must not show
    /// as accessed or dirty (SDM 3A 4.8): marks are for the interpreter to set, which does the access whole.
    pub fn fill_quietly(&mut self, index: usize, linear: u64, access: Access) {
        if self.debugger.watches_page(linear, 1) {
            return;
        }
        let _ = self.place_marking(index, linear, access, 0, Marks::Present);
    }

    /// Enters the mapping of `linear`'s page in the TLB for an access whose first byte lies there: whether it hits now.
    pub fn fill_for(&mut self, index: usize, linear: u64, access: Access) -> bool {
        if self.debugger.watches_page(linear, 1) {
            return false;
        }
        let _ = self.place_marking(index, linear, access, 0, Marks::Set);
        let e = self.state.tlb.entry(index, linear);
        linear & !(PAGE_SIZE - 1) == if access == Access::Write { e.write } else { e.read }
    }

    /// Raises what a store would raise, page by page.
    fn check_write(&mut self, index: usize, linear: u64, len: u64, flags: u16) -> Result<(), Fault> {
        self.check_ends(linear, len, flags)?;
        let mut at = 0;
        while at < len {
            let here = self.wrap_linear(linear.wrapping_add(at));
            self.place(index, here, Access::Write, flags)?;
            at += PAGE_SIZE - (here & (PAGE_SIZE - 1));
        }
        Ok(())
    }

    /// Linear addresses are 32 bits wide outside 64-bit mode.
    pub fn wrap_linear(&self, linear: u64) -> u64 {
        if self.state.efer & efer::LMA != 0 { linear } else { linear & 0xffff_ffff }
    }

    fn read_pieces(&mut self, index: usize, linear: u64, buf: &mut [u8], flags: u16) -> Result<(), Fault> {
        self.check_ends(linear, buf.len() as u64, flags)?;
        let mut at = 0;
        while at < buf.len() {
            let here = self.wrap_linear(linear.wrapping_add(at as u64));
            let n = ((PAGE_SIZE - (here & (PAGE_SIZE - 1))) as usize).min(buf.len() - at);
            match self.place(index, here, Access::Read, flags)? {
                Place::Mmio(gpa) => self.mmio_read_bytes(gpa, &mut buf[at..at + n]),
                _ => {
                    let hit = self.state.tlb.read_bytes(index, here, &mut buf[at..at + n]);
                    debug_assert!(hit, "a mapping just entered hits");
                }
            }
            at += n;
        }
        Ok(())
    }

    fn write_pieces(&mut self, index: usize, linear: u64, buf: &[u8], flags: u16) -> Result<(), Fault> {
        self.check_write(index, linear, buf.len() as u64, flags)?;
        let mut at = 0;
        while at < buf.len() {
            let here = self.wrap_linear(linear.wrapping_add(at as u64));
            let n = ((PAGE_SIZE - (here & (PAGE_SIZE - 1))) as usize).min(buf.len() - at);
            let piece = &buf[at..at + n];
            match self.place(index, here, Access::Write, flags)? {
                Place::Ram => {
                    let e = self.state.tlb.entry(index, here);
                    let gpa = e.meta & !(PAGE_SIZE - 1) | here & (PAGE_SIZE - 1);
                    self.shared.ram.write(gpa, piece, false);
                }
                Place::Watched(gpa) => self.store_watched(gpa, piece),
                Place::Mmio(gpa) => self.mmio_write_bytes(gpa, piece),
            }
            at += n;
        }
        Ok(())
    }

    /// Device reads of odd lengths, in naturally aligned pieces.
    fn mmio_read_bytes(&mut self, gpa: u64, buf: &mut [u8]) {
        let mut at = 0;
        while at < buf.len() {
            let n = natural_piece(gpa + at as u64, buf.len() - at);
            let v = self.board.mmio_read(self.index, gpa + at as u64, n as u8);
            buf[at..at + n].copy_from_slice(&v.to_le_bytes()[..n]);
            at += n;
        }
    }

    fn mmio_write_bytes(&mut self, gpa: u64, buf: &[u8]) {
        let mut at = 0;
        while at < buf.len() {
            let n = natural_piece(gpa + at as u64, buf.len() - at);
            let mut v = [0; 8];
            v[..n].copy_from_slice(&buf[at..at + n]);
            self.board.mmio_write(self.index, gpa + at as u64, n as u8, u64::from_le_bytes(v));
            at += n;
        }
    }

    /// Copies up to `len` bytes (a multiple of `unit`) for REP MOVS, forward, as far as one page of each side goes;
    /// returns the bytes done. 0: the next element needs the element-wise path (page crossing, device, code page).
    pub fn copy_run(&mut self, dst: u64, src: u64, len: u64, unit: u64) -> Result<u64, Fault> {
        let room = |a: u64| PAGE_SIZE - (a & (PAGE_SIZE - 1));
        let n = len.min(room(dst)).min(room(src)) / unit * unit;
        if n == 0 || self.state.mode & mode::STEP != 0 || self.debugger.watches_page(dst, n) {
            return Ok(0);
        }
        if self.debugger.watches_page(src, n) {
            return Ok(0);
        }
        let index = self.state.mmu_index();
        if self.state.tlb.copy(index, dst, src, n as usize, unit as usize) {
            return Ok(n);
        }
        self.place(index, src, Access::Read, 0)?;
        self.place(index, dst, Access::Write, 0)?;
        Ok(if self.state.tlb.copy(index, dst, src, n as usize, unit as usize) { n } else { 0 })
    }

    /// The same for REP STOS: fills with the low `unit` bytes of `value`.
    pub fn fill_run(&mut self, dst: u64, len: u64, value: u64, unit: u64) -> Result<u64, Fault> {
        let n = len.min(PAGE_SIZE - (dst & (PAGE_SIZE - 1))) / unit * unit;
        if n == 0 || self.state.mode & mode::STEP != 0 || self.debugger.watches_page(dst, n) {
            return Ok(0);
        }
        let index = self.state.mmu_index();
        if self.state.tlb.fill_bytes(index, dst, n as usize, value, unit as usize) {
            return Ok(n);
        }
        self.place(index, dst, Access::Write, 0)?;
        Ok(if self.state.tlb.fill_bytes(index, dst, n as usize, value, unit as usize) { n } else { 0 })
    }

    /// The mapping of an instruction fetch.
    pub fn translate_fetch(&mut self, linear: u64) -> Result<tlb::Mapping, Fault> {
        if !self.canonical(linear) {
            if linear == self.state.rip {
                self.take_branch_back();
            }
            return Err(Fault::GP0);
        }
        let index = self.state.mmu_index();
        let m = self.paging().walk(&self.shared.ram, linear, Access::Fetch, index, Marks::Set)?;
        self.contexts.note_fetch(linear, &m, index != tlb::USER);
        Ok(m)
    }

    /// Guest-physical address of `linear` for debuggers: no faults, no accessed bits.
    pub fn translate_debug(&self, linear: u64) -> Option<u64> {
        if !self.canonical(linear) {
            return None;
        }
        let m = self.paging().walk(&self.shared.ram, linear, Access::Read, SUPERVISOR, Marks::Leave).ok()?;
        Some(m.gpa | linear & (PAGE_SIZE - 1))
    }
}

/// Largest naturally aligned piece (1, 2, 4, 8 bytes) at `gpa` within `left` bytes.
fn natural_piece(gpa: u64, left: usize) -> usize {
    [8usize, 4, 2].into_iter().find(|n| gpa.is_multiple_of(*n as u64) && *n <= left).unwrap_or(1)
}
