//! The page walk (SDM 3A chapter 4): one walker for all paging modes, setting accessed and dirty bits atomically.

use super::ram::Ram;
use super::tlb::{Mapping, SUPERVISOR_SMAP, USER};
use crate::fault::Fault;
use crate::state::{cr0, cr4, efer};

/// Sizes of pages that there are, as shifts: 4 KiB, 2 MiB, 4 MiB without PAE, 1 GiB (SDM 3A 4.3 to 4.5).
pub const PAGE_SHIFTS: [u32; 4] = [12, 21, 22, 30];

/// Physical address width that CPUID announces.
pub const PHYS_BITS: u32 = 40;

/// What an access does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Data load.
    Read,
    /// Data store.
    Write,
    /// Instruction fetch.
    Fetch,
}

/// What a walk does about accessed and dirty bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Marks {
    /// Sets them, as an access does.
    Set,
    /// Leaves them alone (debuggers, monitors).
    Leave,
    /// Finds no mapping where it would have to set one.
    Present,
}

/// The registers that govern translation.
#[derive(Clone, Copy, Debug)]
pub struct PagingState {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// The four PDPTE registers of PAE paging (SDM 3A 4.4.1).
    pub pdptes: [u64; 4],
    /// Address lines that reach memory (those of the shared state, with the A20 gate).
    pub lines: u64,
}

/// What became of an entry's accessed and dirty bits.
enum Marked {
    /// They are as the walk wants them.
    Done,
    /// They are not, and the walk may not set them.
    Missing,
    /// Somebody changed the entry meanwhile: look again.
    Raced,
}

const P: u64 = 1;
const RW: u64 = 1 << 1;
const US: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const G: u64 = 1 << 8;
const NX: u64 = 1 << 63;

/// Page-fault error code bits (SDM 3A 4.7).
mod code {
    pub const P: u32 = 1;
    pub const W: u32 = 2;
    pub const U: u32 = 4;
    pub const RSVD: u32 = 8;
    pub const I: u32 = 16;
}

/// Rights gathered on the way down.
#[derive(Clone, Copy, Debug)]
struct Rights {
    write: bool,
    user: bool,
    exec: bool,
}

/// A table of the last level, where a walk for any page in its 2 MiB may begin (SDM 3A 4.10.3). Entries have 8 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    address: u64,
    rights: Rights,
}

impl PagingState {
    fn nxe(&self) -> bool {
        self.efer & efer::NXE != 0
    }

    /// Translates `linear`.
    pub fn walk(&self, ram: &Ram, linear: u64, access: Access, index: usize, marks: Marks) -> Result<Mapping, Fault> {
        self.walk_from(None, ram, linear, access, index, marks).map(|(mapping, _)| mapping)
    }

    /// The same, from `table` on, if there is one; and the table of the last level that it led to.
    pub fn walk_from(
        &self,
        from: Option<Table>,
        ram: &Ram,
        linear: u64,
        access: Access,
        index: usize,
        marks: Marks,
    ) -> Result<(Mapping, Option<Table>), Fault> {
        if self.cr0 & cr0::PG == 0 {
            let gpa = linear & 0xffff_f000 & self.lines;
            return Ok((Mapping { gpa, read: true, write: true, global: false, page_mask: !0xfff }, None));
        }
        let fault = |bits: u32| Err(Fault::page(linear, bits | self.access_code(access, index)));
        let again = || self.walk_from(from, ram, linear, access, index, marks);
        let (mut table, mut level, entry_bytes) =
            match from.map_or_else(|| self.root(linear), |t| Ok((t.address, 1, 8))) {
                Ok(root) => root,
                Err(bits) => return fault(bits),
            };
        let mut rights = from.map_or(Rights { write: true, user: true, exec: true }, |t| t.rights);
        loop {
            let above = Table { address: table, rights };
            let shift = if entry_bytes == 4 { 12 + 10 * (level - 1) } else { 12 + 9 * (level - 1) };
            let index_mask = if entry_bytes == 4 { 0x3ff } else { 0x1ff };
            let at = (table + ((linear >> shift) & index_mask) * entry_bytes) & self.lines;
            let entry = ram.load_entry(at, entry_bytes);
            if entry & P == 0 {
                return fault(0);
            }
            let leaf = level == 1 || (entry & PS != 0 && self.large_allowed(level, entry_bytes));
            if self.reserved(entry, level, leaf, entry_bytes) {
                return fault(code::P | code::RSVD);
            }
            rights.write &= entry & RW != 0;
            rights.user &= entry & US != 0;
            rights.exec &= entry & NX == 0 || entry_bytes == 4 || !self.nxe();
            if !leaf {
                match self.mark(ram, marks, at, entry_bytes, entry, entry | A) {
                    Marked::Done => {}
                    Marked::Missing => return fault(0),
                    Marked::Raced => return again(),
                }
                table = entry & self.address_mask(entry_bytes);
                level -= 1;
                continue;
            }
            if !self.allowed(rights, access, index) {
                return fault(code::P);
            }
            let dirty = if access == Access::Write { D } else { 0 };
            let want = entry | A | dirty;
            match self.mark(ram, marks, at, entry_bytes, entry, want) {
                Marked::Done => {}
                Marked::Missing => return fault(0),
                Marked::Raced => return again(),
            }
            let last = (level == 1 && entry_bytes == 8).then_some(above);
            return Ok((self.mapping(linear, entry, want, shift, entry_bytes, rights, index), last));
        }
    }

    /// Makes the entry at `at` `want`, if `marks` asks for it.
    fn mark(&self, ram: &Ram, marks: Marks, at: u64, entry_bytes: u64, entry: u64, want: u64) -> Marked {
        match marks {
            _ if want == entry => Marked::Done,
            Marks::Leave => Marked::Done,
            Marks::Present => Marked::Missing,
            Marks::Set if ram.cas_entry(at, entry_bytes, entry, want) => Marked::Done,
            Marks::Set => Marked::Raced,
        }
    }

    /// Table address, level and entry size to start with; `Err` = page-fault bits.
    fn root(&self, linear: u64) -> Result<(u64, u32, u64), u32> {
        if self.efer & efer::LMA != 0 {
            let levels = if self.cr4 & cr4::LA57 != 0 { 5 } else { 4 };
            return Ok((self.cr3 & self.address_mask(8), levels, 8));
        }
        if self.cr4 & cr4::PAE == 0 {
            return Ok((self.cr3 & 0xffff_f000, 2, 4));
        }
        let pdpte = self.pdptes[(linear >> 30) as usize & 3];
        if pdpte & P == 0 {
            return Err(0);
        }
        Ok((pdpte & self.address_mask(8), 2, 8))
    }

    fn address_mask(&self, entry_bytes: u64) -> u64 {
        if entry_bytes == 4 { 0xffff_f000 } else { ((1 << PHYS_BITS) - 1) & !0xfff }
    }

    fn large_allowed(&self, level: u32, entry_bytes: u64) -> bool {
        if entry_bytes == 4 { self.cr4 & cr4::PSE != 0 } else { level == 2 || level == 3 }
    }

    /// Reserved bits set (SDM 3A 4.3 to 4.5).
    fn reserved(&self, entry: u64, level: u32, leaf: bool, entry_bytes: u64) -> bool {
        if entry_bytes == 4 {
            // PSE-36: bits 20:13 of a 4 MiB page give address bits 39:32; bit 21 is reserved.
            return leaf && level == 2 && entry & 1 << 21 != 0;
        }
        // Without LMA (PAE paging) bits 62:52 are reserved too; with it they are ignored.
        let top = if self.efer & efer::LMA != 0 { 52 } else { 63 };
        let mut mask = ((1u64 << top) - 1) & !((1 << PHYS_BITS) - 1);
        if !self.nxe() {
            mask |= NX;
        }
        if level >= 4 {
            mask |= PS;
        }
        if leaf && level > 1 {
            mask |= ((1 << (12 + 9 * (level - 1))) - 1) & !0x1fff;
        }
        entry & mask != 0
    }

    fn allowed(&self, r: Rights, access: Access, index: usize) -> bool {
        if index == USER {
            return r.user
                && match access {
                    Access::Read => true,
                    Access::Write => r.write,
                    Access::Fetch => r.exec,
                };
        }
        match access {
            Access::Fetch => r.exec && !(r.user && self.cr4 & cr4::SMEP != 0),
            _ if r.user && index == SUPERVISOR_SMAP => false,
            Access::Read => true,
            Access::Write => r.write || self.cr0 & cr0::WP == 0,
        }
    }

    fn access_code(&self, access: Access, index: usize) -> u32 {
        let user = if index == USER { code::U } else { 0 };
        user | match access {
            Access::Read => 0,
            Access::Write => code::W,
            // SDM 3A 4.7: the I/D flag is set only if NX (with PAE) or SMEP is in use.
            Access::Fetch if self.nxe() && self.cr4 & cr4::PAE != 0 || self.cr4 & cr4::SMEP != 0 => code::I,
            Access::Fetch => 0,
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn mapping(&self, linear: u64, entry: u64, want: u64, shift: u32, bytes: u64, r: Rights, index: usize) -> Mapping {
        let page_mask = u64::MAX << shift;
        let mut base = entry & self.address_mask(bytes);
        if bytes == 4 && shift == 22 {
            base = (entry & 0xffc0_0000) | (entry >> 13 & 0xff) << 32;
        }
        let gpa = ((base & page_mask) | (linear & !page_mask)) & !0xfff & self.lines;
        Mapping {
            gpa,
            read: self.allowed(r, Access::Read, index),
            write: want & D != 0 && self.allowed(r, Access::Write, index),
            global: entry & G != 0 && self.cr4 & cr4::PGE != 0,
            page_mask,
        }
    }
}
