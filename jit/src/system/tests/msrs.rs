//! MSRs, counters, system calls.

use crate::fault::{Fault, vector};
use crate::state::{cr4, flag, reg};
use crate::system::msr::msr_no::*;
use super::Guest;
use crate::system::testing::{machine_with_board, place::*, sel};
use iced_x86::code_asm::*;
use std::sync::atomic::Ordering;

#[test]
fn addresses_must_be_canonical() {
    let (mut cpu, _) = machine_with_board();
    for n in [LSTAR, CSTAR, FS_BASE, GS_BASE, KERNEL_GS_BASE, SYSENTER_EIP, SYSENTER_ESP] {
        assert_eq!(cpu.write_msr(n, 1 << 47), Err(Fault::GP0), "{n:#x}");
        cpu.write_msr(n, 0xffff_8000_0000_1234).unwrap();
        assert_eq!(cpu.read_msr(n), Ok(0xffff_8000_0000_1234));
    }
    assert_eq!(cpu.state.segs[reg::FS].base, 0xffff_8000_0000_1234);
}

#[test]
fn values_are_checked() {
    let (mut cpu, _) = machine_with_board();
    let refused = [
        (PAT, 0x0007_0406_0007_0402),
        (0x200, 0x1_0000_0000_0000),
        (0x200, 2),
        (0x201, 1),
        (0x2ff, 0x1000),
        (0x250, 0x0202_0202_0202_0202),
        (SPEC_CTRL, 8),
        (PRED_CMD, 2),
        (MCG_STATUS, 8),
        (0x401, 1),
        (TSC_AUX, 1 << 32),
        (FMASK, 1 << 32),
        (PLATFORM_INFO, 0),
        (FEATURE_CONTROL, 5),
        (ARCH_CAPABILITIES, 0),
        (0x1234_5678, 0),
    ];
    for (n, v) in refused {
        assert_eq!(cpu.write_msr(n, v), Err(Fault::GP0), "{n:#x} = {v:#x}");
    }
    let kept = [
        (PAT, 0x0007_0406_0001_0406),
        (0x200, 0xc000_0006),
        (0x20f, 0xff_ffff_f800),
        (0x2ff, 0xc06),
        (0x26f, 0x0606_0606_0505_0505),
        (SPEC_CTRL, 1),
        (0x400, u64::MAX),
        (SYSENTER_CS, 0x10),
        (STAR, 0x23_0010_0000_0000),
        (TSC_AUX, 77),
    ];
    for (n, v) in kept {
        cpu.write_msr(n, v).unwrap();
        assert_eq!(cpu.read_msr(n), Ok(v), "{n:#x}");
    }
    assert_eq!(cpu.read_msr(PRED_CMD), Err(Fault::GP0), "write only");
    assert_eq!(cpu.read_msr(0xfe), Ok(0x508));
    assert_eq!(cpu.read_msr(FEATURE_CONTROL), Ok(1));
    assert_eq!(cpu.read_msr(0x345), Err(Fault::GP0));
    assert_eq!(cpu.read_msr(0x428), Err(Fault::GP0), "one bank too far");
}

#[test]
fn the_tsc_its_adjustment_and_its_deadline_agree() {
    let (mut cpu, board) = machine_with_board();
    board.tsc.store(1000, Ordering::Relaxed);
    cpu.write_msr(TSC, 5000).unwrap();
    assert_eq!(cpu.read_msr(TSC_ADJUST), Ok(4000));
    cpu.write_msr(TSC_ADJUST, 100).unwrap();
    assert_eq!(cpu.tsc(), 1100);
    cpu.write_msr(TSC_DEADLINE, 2100).unwrap();
    assert_eq!(board.deadline.load(Ordering::Relaxed), 2000);
    assert_eq!(cpu.read_msr(TSC_DEADLINE), Ok(2100));
    cpu.write_msr(TSC_DEADLINE, 50).unwrap();
    assert_eq!(board.deadline.load(Ordering::Relaxed), 1, "long past: at once, not disarmed");
    cpu.write_msr(TSC_DEADLINE, 0).unwrap();
    assert_eq!(cpu.read_msr(TSC_DEADLINE), Ok(0));
}

#[test]
fn rdtsc_obeys_tsd_and_msrs_need_cpl0() {
    let mut g = Guest::long().user();
    g.board.tsc.store(0x1_2345_6789_abcd, Ordering::Relaxed);
    g.cpu.state.msr.tsc_aux = 9;
    g.code(|a| {
        a.rdtscp()?;
        a.ud2()
    });
    g.expect(vector::UD);
    assert_eq!([g.cpu.gpr(reg::RAX), g.cpu.gpr(reg::RDX), g.cpu.gpr(reg::RCX)], [0x6789_abcd, 0x12345, 9]);
    let mut g = Guest::long().user();
    g.cpu.state.cr4 |= cr4::TSD;
    g.code(|a| a.rdtsc());
    g.expect_gp(0);
    let mut g = Guest::long().user();
    g.code(|a| a.rdmsr());
    g.expect_gp(0);
}

#[test]
fn system_calls_go_in_and_out() {
    let mut g = Guest::long();
    g.write8(DATA, 0);
    g.cpu.state.msr.star = (sel::CODE64 as u64) << 32 | ((sel::USER_CODE64 as u64 - 16) << 48);
    g.cpu.state.msr.lstar = USER_CODE + 0x100;
    g.cpu.state.msr.sfmask = flag::IF | flag::DF;
    g.code_at(USER_CODE, USER_CODE, |a| {
        a.std()?;
        a.syscall()?;
        a.ud2()
    });
    g.code_at(USER_CODE + 0x100, USER_CODE + 0x100, |a| {
        a.swapgs()?;
        a.mov(qword_ptr(8).gs(), rsp)?;
        a.pushfq()?;
        a.pop(rbx)?;
        a.swapgs()?;
        a.sysretq()
    });
    g.cpu.state.msr.kernel_gs_base = DATA;
    g.cpu.state.segs[reg::GS].base = 0x55_0000;
    g.cpu.set_gpr(reg::RCX, USER_CODE);
    g.cpu.set_gpr(11, flag::IF | flag::CF);
    g.code(|a| a.sysretq());
    g.expect(vector::UD);
    assert_eq!(g.frame(0), USER_CODE + 3);
    assert_eq!(g.frame(1), sel::USER_CODE64 as u64 & 0xff);
    assert_eq!(g.frame(2) & !flag::RF, flag::IF | flag::DF | flag::CF | 2);
    assert_eq!(g.cpu.gpr(reg::RBX), flag::CF | 2, "FMASK");
    assert_eq!(g.cpu.gpr(reg::RCX), USER_CODE + 3);
    assert_eq!(g.read64(DATA + 8), STACK0);
    assert_eq!(g.cpu.state.segs[reg::GS].base, 0x55_0000);
    // Without SCE, and in compatibility mode: #UD.
    let mut g = Guest::long();
    g.cpu.state.efer &= !1;
    g.code(|a| a.syscall());
    g.expect(vector::UD);
    let mut g = Guest::protected();
    g.cpu.state.efer |= 1;
    g.bytes(CODE, &[0x0f, 0x05]);
    g.expect(vector::UD);
    let mut g = Guest::long();
    g.cpu.set_gpr(reg::RCX, 1 << 63);
    g.code(|a| a.sysretq());
    g.expect_gp(0);
    assert_eq!(g.cpu.state.cpl(), 0);
}

#[test]
fn sysenter_and_sysexit() {
    for long in [false, true] {
        let mut g = if long { Guest::long() } else { Guest::protected() };
        g.cpu.write_msr(SYSENTER_CS, 0).unwrap();
        g.code(|a| a.sysenter());
        g.expect_gp(0);
        // GDT order for SYSENTER: CS, SS, user CS, user SS.
        let mut g = if long { Guest::long() } else { Guest::protected() };
        g.cpu.write_msr(SYSENTER_CS, sel::FREE as u64).unwrap();
        g.cpu.write_msr(SYSENTER_ESP, STACK1).unwrap();
        g.cpu.write_msr(SYSENTER_EIP, STUBS + 16 * 150).unwrap();
        g.cpu.set_rflags(flag::IF);
        g.code(|a| a.sysenter());
        g.expect(150);
        assert_eq!(g.cpu.gpr(reg::RSP), STACK1);
        assert_eq!(g.cpu.rflags() & flag::IF, 0);
        assert_eq!(g.cpu.state.segs[reg::SS].selector, sel::FREE + 8);
        g.cpu.set_gpr(reg::RDX, USER_CODE);
        g.cpu.set_gpr(reg::RCX, STACK3);
        g.code(|a| a.sysexit());
        g.bytes(USER_CODE, &[0x0f, 0x0b]);
        g.expect(vector::UD);
        assert_eq!(g.frame(1), sel::FREE as u64 + 16 + 3);
        assert_eq!(g.frame(3), STACK3);
    }
}

#[test]
fn base_instructions_need_cr4_and_canonical_values() {
    let mut g = Guest::long().user();
    g.cpu.set_gpr(reg::RAX, 0x7fff_0000_1000);
    g.code(|a| {
        a.wrfsbase(rax)?;
        a.rdfsbase(rbx)?;
        a.wrgsbase(ebx)?;
        a.rdgsbase(rcx)?;
        a.bts(rax, 60)?;
        a.wrgsbase(rax)
    });
    g.expect_gp(0);
    assert_eq!([g.cpu.gpr(reg::RBX), g.cpu.gpr(reg::RCX)], [0x7fff_0000_1000, 0x1000]);
    let mut g = Guest::long();
    g.cpu.state.cr4 &= !cr4::FSGSBASE;
    g.code(|a| a.rdfsbase(rbx));
    g.expect(vector::UD);
}

#[test]
fn cpuid_follows_the_state() {
    let mut g = Guest::long();
    g.cpu.state.cr4 |= cr4::OSXSAVE;
    g.code(|a| {
        a.mov(eax, 1)?;
        a.cpuid()?;
        a.mov(esi, ecx)?;
        a.xor(ecx, ecx)?;
        a.xgetbv()?;
        a.hlt()
    });
    g.run();
    assert_eq!(g.cpu.gpr(reg::RSI) >> 27 & 1, 1);
    assert_eq!(g.cpu.gpr(reg::RAX), 1);
    for (value, ok) in [(3, true), (2, false), (7, false), (1, true)] {
        assert_eq!(g.cpu.write_xcr(0, value).is_ok(), ok, "XCR0 = {value}");
    }
    assert!(g.cpu.write_xcr(1, 1).is_err());
    g.cpu.state.cr4 &= !cr4::OSXSAVE;
    assert_eq!(g.cpu.read_xcr(0).unwrap_err().vector, vector::UD);
}
