//! Control registers and changes of mode, by the instructions a boot path uses.

use crate::fault::vector;
use crate::state::{cr0, cr4, efer, mode, reg};
use super::Guest;
use crate::system::testing::{place::*, sel};
use iced_x86::code_asm::*;

#[test]
fn from_real_mode_to_long_mode_and_back_to_32_bits() {
    // Tables of the long-mode guest, registers of the real-mode one.
    let mut g = Guest::long();
    let real = Guest::real();
    let tables: Vec<u8> = (0..0x5000u64).map(|n| g.read64(PAGING + n) as u8).collect();
    let gdt: Vec<u64> = (0..16).map(|n| g.read64(GDT + 8 * n)).collect();
    let gates: Vec<u64> = (0..512).map(|n| g.read64(IDT + 8 * n)).collect();
    g = real;
    g.bytes(PAGING, &tables);
    for (n, e) in gdt.iter().enumerate() {
        g.write64(GDT + 8 * n as u64, *e);
    }
    for (n, e) in gates.iter().enumerate() {
        g.write64(IDT + 8 * n as u64, *e);
    }
    g.write8(GDT + sel::TSS as u64 + 5, 0x89);
    g.write16(0x500, 0xfff);
    g.write32(0x502, GDT as u32);
    g.write16(0x508, 0xfff);
    g.write32(0x50a, IDT as u32);
    g.code(|a| {
        a.lgdt(qword_ptr(0x500))?;
        a.lidt(qword_ptr(0x508))?;
        a.mov(eax, cr0)?;
        a.or(al, 1)?;
        a.mov(cr0, eax)?;
        // JMP CODE32:USER_CODE with a 32-bit offset
        a.db(&[0x66, 0xea, 0x00, 0x80, 0x01, 0x00, sel::CODE32 as u8, 0])
    });
    let mut a = CodeAssembler::new(32).unwrap();
    a.mov(eax, sel::DATA as u32).unwrap();
    a.mov(ss, eax).unwrap();
    a.mov(ds, eax).unwrap();
    a.mov(esp, STACK0 as u32).unwrap();
    a.mov(eax, cr4).unwrap();
    a.or(eax, cr4::PAE as i32).unwrap();
    a.mov(cr4, eax).unwrap();
    a.mov(eax, PAGING as u32).unwrap();
    a.mov(cr3, eax).unwrap();
    a.mov(ecx, 0xc000_0080u32).unwrap();
    a.rdmsr().unwrap();
    a.or(eax, efer::LME as i32).unwrap();
    a.wrmsr().unwrap();
    a.mov(eax, cr0).unwrap();
    a.or(eax, cr0::PG as u32 as i32).unwrap();
    a.mov(cr0, eax).unwrap();
    a.db(&[0xea, 0x00, 0x90, 0x01, 0x00, sel::CODE64 as u8, 0]).unwrap();
    g.bytes(USER_CODE, &a.assemble(USER_CODE).unwrap());
    let mut a = CodeAssembler::new(64).unwrap();
    a.mov(rbx, 0x1122_3344_5566_7788u64).unwrap();
    a.mov(eax, sel::TSS as u32).unwrap();
    a.ltr(ax).unwrap();
    a.int(0x55).unwrap();
    g.bytes(USER_CODE + 0x1000, &a.assemble(USER_CODE + 0x1000).unwrap());
    g.expect(0x55);
    assert_eq!(g.cpu.gpr(reg::RBX), 0x1122_3344_5566_7788);
    assert_eq!(g.cpu.state.efer & efer::LMA, efer::LMA);
    assert_eq!(g.cpu.state.tr.attributes & 15, 11, "TSS busy");
    assert_eq!(g.frame(0), USER_CODE + 0x1000 + 10 + 5 + 4 + 2);
    // Paging cannot be switched off in 64-bit code.
    g.code(|a| {
        a.mov(rax, cr0)?;
        a.btr(rax, 31)?;
        a.mov(cr0, rax)
    });
    g.expect_gp(0);
}

#[test]
fn unreal_segments_keep_their_limit() {
    let mut g = Guest::protected();
    g.cpu.write_cr0(g.cpu.state.cr0 & !cr0::PE).unwrap();
    assert!(g.cpu.real_mode());
    g.cpu.load_segment(reg::DS, 0x10).unwrap();
    assert_eq!(g.cpu.state.segs[reg::DS].base, 0x100);
    assert_eq!(g.cpu.seg_check(reg::DS, DATA, 4, true), Ok(0x100 + DATA));
}

#[test]
fn control_registers_refuse_what_makes_no_sense() {
    let mut g = Guest::long();
    let cr0_now = g.cpu.state.cr0;
    // NW without CD, reserved bits, paging off in 64-bit code, paging without protection.
    for bad in [cr0_now & !cr0::CD | cr0::NW, cr0_now | 1 << 32, cr0_now & !cr0::PG, cr0_now & !cr0::PE] {
        assert_eq!(g.cpu.write_cr0(bad), Err(crate::fault::Fault::GP0), "{bad:#x}");
    }
    let cr4_now = g.cpu.state.cr4;
    for bad in [cr4_now & !cr4::PAE, cr4_now | 1 << 13, cr4_now | cr4::LA57, cr4_now | 1 << 63] {
        assert!(g.cpu.write_cr4(bad).is_err(), "{bad:#x}");
    }
    // PCIDE needs CR3[11:0] = 0 when it is set.
    g.cpu.write_cr3(PAGING | 5).unwrap();
    assert!(g.cpu.write_cr4(cr4_now | cr4::PCIDE).is_err());
    g.cpu.write_cr3(PAGING).unwrap();
    assert!(g.cpu.write_cr3(PAGING | 1 << 63).is_err());
    g.cpu.write_cr4(cr4_now | cr4::PCIDE).unwrap();
    g.cpu.write_cr3(PAGING | 7 | 1 << 63).unwrap();
    assert_eq!(g.cpu.state.cr3, PAGING | 7, "bit 63 is not kept");
    assert!(g.cpu.write_cr3(1 << 40).is_err());
    assert!(g.cpu.write_control(8, 16).is_err());
    g.cpu.write_control(8, 15).unwrap();
    assert_eq!(g.cpu.read_control(8), Ok(15));
    assert_eq!(g.cpu.write_control(1, 0).unwrap_err().vector, vector::UD);
    // LME while paging is on, and reserved bits.
    assert!(g.cpu.write_msr(0xc000_0080, efer::SCE).is_err());
    assert!(g.cpu.write_msr(0xc000_0080, g.cpu.state.efer | 1 << 12).is_err());
    g.cpu.write_msr(0xc000_0080, g.cpu.state.efer & !efer::SCE).unwrap();
}

#[test]
fn long_mode_needs_pae_and_pae_needs_good_pdptes() {
    let mut g = Guest::protected();
    g.cpu.write_msr(0xc000_0080, efer::LME).unwrap();
    assert!(g.cpu.write_cr0(g.cpu.state.cr0 | cr0::PG).is_err());
    let mut g = Guest::protected();
    g.cpu.write_cr4(cr4::PAE).unwrap();
    g.cpu.write_cr3(PAGING + 0x20).unwrap();
    g.write64(PAGING + 0x20, (PAGING + 0x1000) | 1 | 2);
    assert!(g.cpu.write_cr0(g.cpu.state.cr0 | cr0::PG).is_err(), "R/W is reserved in a PDPTE");
    g.write64(PAGING + 0x20, (PAGING + 0x1000) | 1);
    g.write64(PAGING + 0x1000, 0x83);
    g.cpu.write_cr0(g.cpu.state.cr0 | cr0::PG).unwrap();
    assert_eq!(g.cpu.state.efer & efer::LMA, 0);
    g.code(|a| {
        a.mov(eax, dword_ptr(0x1f_0000))?;
        a.mov(eax, dword_ptr(0x4000_0000))
    });
    g.expect(vector::PF);
    assert_eq!(g.cpu.state.cr2, 0x4000_0000);
    assert_eq!(g.frame(0), 0);
}

#[test]
fn machine_status_word() {
    let mut g = Guest::protected();
    g.code(|a| {
        a.mov(eax, 0x2e_u32)?;
        a.lmsw(ax)?;
        a.smsw(ebx)?;
        a.clts()?;
        a.smsw(cx)?;
        a.hlt()
    });
    g.run();
    assert_eq!(g.cpu.gpr(reg::RBX) & 0xf, 0xf, "LMSW cannot clear PE");
    assert_eq!(g.cpu.gpr(reg::RCX) & 0xf, 7);
    assert_eq!(g.cpu.state.mode & (mode::TS | mode::EM | mode::MP), mode::EM | mode::MP);
    // UMIP.
    let mut g = Guest::long().user();
    g.code(|a| {
        a.sgdt(xmmword_ptr(DATA))?;
        a.ud2()
    });
    g.expect(vector::UD);
    assert_eq!(g.read16(DATA), 0xfff);
    assert_eq!(g.read64(DATA + 2), GDT);
    let mut g = Guest::long().user();
    g.cpu.state.cr4 |= cr4::UMIP;
    g.code(|a| a.sgdt(xmmword_ptr(DATA)));
    g.expect_gp(0);
}

#[test]
fn start_up_and_reset_states() {
    let mut g = Guest::long();
    g.cpu.init_start_up(0x9a);
    let s = &g.cpu.state;
    assert_eq!((s.segs[reg::CS].selector, s.segs[reg::CS].base, s.rip), (0x9a00, 0x9a000, 0));
    assert_eq!((s.efer, s.cr4, s.mode & mode::PE), (0, 0, 0));
    g.cpu.reset();
    assert_eq!(g.cpu.state.linear_rip(), 0xffff_fff0);
    assert_eq!(g.cpu.gpr(reg::RDX), g.cpu.model.signature() as u64);
}

#[test]
fn registers_go_out_and_in() {
    let g = Guest::long().user();
    let r = g.cpu.get_registers();
    let mut other = Guest::real();
    other.cpu.set_registers(&r);
    assert_eq!(other.cpu.get_registers(), r);
    assert_eq!(other.cpu.state.mode, g.cpu.state.mode);
    assert_eq!(other.cpu.dump(), g.cpu.dump());
}
