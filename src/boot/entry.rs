//! Register states that boot protocols ask for, with the descriptor table and page tables they rest on.

use super::placement::Placement;
use anyhow::Result;
use brolga_jit::{Registers, SegmentRegister};

/// Where the identity page tables go: PML4, PDPT and four page directories.
const PAGE_TABLES: u64 = 0x3_0000;
/// Where the descriptor tables for 32-bit and for 64-bit code go.
const GDT32: u64 = 0x3_7000;
const GDT64: u64 = 0x3_7100;
/// Selector of the flat code segment (`__BOOT_CS` of the Linux protocol).
const CODE: u16 = 0x10;
/// Selector of the flat data segment (`__BOOT_DS`).
const DATA: u16 = 0x18;

// Attributes in the layout of [`SegmentRegister::attributes`] (SDM 3A 3.4.5): present, S, type, and G, D/B, L.
const CODE32: u16 = 0xC09B;
const CODE64: u16 = 0xA09B;
const DATA32: u16 = 0xC093;
const CODE16: u16 = 0x009B;
const DATA16: u16 = 0x0093;
const LDT: u16 = 0x0082;
const BUSY_TSS: u16 = 0x008B;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS bit 1 always reads as one.
const RFLAGS_FIXED: u64 = 2;

/// Indices into [`Registers::gpr`].
pub mod gpr {
    /// EAX.
    pub const RAX: usize = 0;
    /// EBX.
    pub const RBX: usize = 3;
    /// ESI.
    pub const RSI: usize = 6;
}

/// Places a flat descriptor table with code segments of type `code` at `gdt`.
fn place_gdt(placement: &mut Placement, gdt: u64, code: u16) -> Result<(u64, u16)> {
    let entries = [0, 0, descriptor(code), descriptor(DATA32)];
    let bytes: Vec<u8> = entries.iter().flat_map(|e| e.to_le_bytes()).collect();
    placement.put_shared("the boot descriptor table", gdt, &bytes)?;
    Ok((gdt, bytes.len() as u16 - 1))
}

/// A descriptor of base 0 and limit 4 GiB (SDM 3A figure 3-8).
fn descriptor(attributes: u16) -> u64 {
    u64::from(attributes) << 40 | 0xF << 48 | 0xFFFF
}

/// The system segments that the processor has after reset (SDM 3A table 10-1).
fn reset_system_segment(attributes: u16) -> SegmentRegister {
    SegmentRegister { selector: 0, base: 0, limit: 0xFFFF, attributes }
}

fn flat(code: u16) -> [SegmentRegister; 6] {
    let segment = |selector, attributes| SegmentRegister { selector, base: 0, limit: u32::MAX, attributes };
    let data = segment(DATA, DATA32);
    [data, segment(CODE, code), data, data, data, data]
}

fn common(rip: u64) -> Registers {
    Registers {
        rip,
        rflags: RFLAGS_FIXED,
        ldtr: reset_system_segment(LDT),
        tr: reset_system_segment(BUSY_TSS),
        ..Registers::default()
    }
}

/// 32-bit protected mode with flat segments, paging and interrupts off: the 32-bit Linux protocol, PVH and multiboot.
pub fn protected(placement: &mut Placement, eip: u32) -> Result<Registers> {
    let gdtr = place_gdt(placement, GDT32, CODE32)?;
    Ok(Registers { segments: flat(CODE32), gdtr, cr0: CR0_PE | CR0_ET, ..common(eip.into()) })
}

/// 64-bit mode with the first 4 GiB mapped one to one by 2 MiB pages, interrupts off: the 64-bit Linux protocol.
pub fn long(placement: &mut Placement, rip: u64) -> Result<Registers> {
    let gdtr = place_gdt(placement, GDT64, CODE64)?;
    placement.put_shared("the boot page tables", PAGE_TABLES, &identity_page_tables())?;
    Ok(Registers {
        segments: flat(CODE64),
        gdtr,
        cr0: CR0_PE | CR0_ET | CR0_PG,
        cr3: PAGE_TABLES,
        cr4: CR4_PAE,
        efer: EFER_LME | EFER_LMA,
        ..common(rip)
    })
}

/// Real mode at a linear address below 1 MiB.
pub fn real(linear: u32) -> Registers {
    let segment = |selector: u16, attributes| SegmentRegister {
        selector,
        base: u64::from(selector) << 4,
        limit: 0xFFFF,
        attributes,
    };
    let data = segment(0, DATA16);
    let code = segment((linear >> 4) as u16, CODE16);
    Registers {
        segments: [data, code, data, data, data, data],
        idtr: (0, 0xFFFF),
        gdtr: (0, 0xFFFF),
        cr0: CR0_ET | CR0_NW | CR0_CD,
        ..common(u64::from(linear & 0xF))
    }
}

/// Six pages: PML4, PDPT, four page directories (SDM 3A 4.5).
fn identity_page_tables() -> Vec<u8> {
    const TABLE: u64 = 0x3; // present, writable
    const LARGE: u64 = 0x83; // and a 2 MiB page
    let mut entries = vec![0u64; 6 * 512];
    entries[0] = (PAGE_TABLES + 0x1000) | TABLE;
    for i in 0..4 {
        entries[512 + i] = (PAGE_TABLES + 0x2000 + 0x1000 * i as u64) | TABLE;
    }
    for (i, entry) in entries[1024..].iter_mut().enumerate() {
        *entry = (i as u64) << 21 | LARGE;
    }
    entries.iter().flat_map(|e| e.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use brolga_jit::mmu::ram::{Ram, RamRegion};

    fn ram() -> Ram {
        let size = 0x4_0000;
        Ram::new(size, vec![RamRegion { gpa: 0, size, offset: 0, rom: false }]).unwrap()
    }

    fn word(ram: &Ram, gpa: u64) -> u64 {
        let mut bytes = [0; 8];
        assert!(ram.read(gpa, &mut bytes));
        u64::from_le_bytes(bytes)
    }

    /// Attributes, base and limit as a processor would load them from the table.
    fn load(ram: &Ram, gdtr: (u64, u16), selector: u16) -> (u16, u64, u32) {
        assert!(selector + 7 <= gdtr.1);
        let d = word(ram, gdtr.0 + u64::from(selector));
        let limit = (d & 0xFFFF | d >> 32 & 0xF_0000) as u32;
        let base = d >> 16 & 0xFF_FFFF | d >> 32 & 0xFF00_0000;
        let limit = if d >> 55 & 1 == 1 { limit << 12 | 0xFFF } else { limit };
        ((d >> 40) as u16 & 0xF0FF, base, limit)
    }

    #[test]
    fn segments_are_what_the_descriptor_table_says() {
        for wide in [false, true] {
            let ram = ram();
            let mut p = Placement::new(&ram);
            let r = if wide { long(&mut p, 0x10_0200) } else { protected(&mut p, 0x10_0000) }.unwrap();
            for s in r.segments {
                assert_eq!(load(&ram, r.gdtr, s.selector), (s.attributes, s.base, s.limit));
            }
            assert_eq!((r.segments[1].selector, r.segments[3].selector), (0x10, 0x18));
            let (l, d) = (r.segments[1].attributes >> 13 & 1, r.segments[1].attributes >> 14 & 1);
            assert_eq!((l, d), if wide { (1, 0) } else { (0, 1) });
            assert_eq!(r.rflags, 2);
        }
    }

    #[test]
    fn long_mode_maps_4_gib_one_to_one() {
        let ram = ram();
        let r = long(&mut Placement::new(&ram), 0).unwrap();
        assert_eq!((r.cr0 >> 31 & 1, r.cr4 >> 5 & 1, r.efer & 0x500), (1, 1, 0x500));
        for linear in [0, 0x10_0000, 0x7FFF_FFFF, 0xFFFF_FFFF_u64] {
            let mut table = r.cr3;
            for shift in [39, 30] {
                let entry = word(&ram, table + (linear >> shift & 511) * 8);
                assert_eq!(entry & 0x83, 3, "present, writable, not large");
                table = entry & !0xFFF;
            }
            let entry = word(&ram, table + (linear >> 21 & 511) * 8);
            assert_eq!(entry & 0x83, 0x83);
            assert_eq!(entry & !0xFFF, linear & !0x1F_FFFF);
        }
        assert_eq!(word(&ram, r.cr3 + 8), 0);
    }

    #[test]
    fn real_mode_reaches_the_address() {
        let r = real(0x1_2345);
        assert_eq!(r.segments[1].base + r.rip, 0x1_2345);
        assert_eq!(r.segments[1].base, u64::from(r.segments[1].selector) << 4);
        assert_eq!(r.cr0 & 1, 0);
    }
}
