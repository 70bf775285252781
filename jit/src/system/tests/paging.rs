//! Page faults for every kind of access, with their error codes.

use crate::fault::vector;
use crate::state::{cr0, cr4, efer, flag, reg};
use super::Guest;
use crate::system::testing::{place::*};
use iced_x86::code_asm::*;
use iced_x86::IcedError;

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const NX: u64 = 1 << 63;

/// Error code bits.
mod e {
    pub const P: u64 = 1;
    pub const W: u64 = 2;
    pub const U: u64 = 4;
    pub const R: u64 = 8;
    pub const I: u64 = 16;
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Do {
    Read,
    Write,
    Fetch,
}

/// Error code of an access to DATA mapped with `flags`, `None` if it goes through.
fn access(user: bool, what: Do, flags: u64, setup: impl Fn(&mut Guest)) -> Option<u64> {
    let mut g = Guest::long();
    // Supervisor pages for the handlers, so that SMEP and SMAP let them work.
    for page in [GDT, IDT, TSS, STUBS, CODE, STACK0 - 0x1000] {
        g.page(page, P | W);
    }
    if user {
        g = g.user();
    }
    setup(&mut g);
    g.cpu.update_mode();
    g.page(DATA, flags);
    g.bytes(DATA, &[0x0f, 0x0b]);
    g.code(|a| match what {
        Do::Read => {
            a.mov(al, byte_ptr(DATA))?;
            a.ud2()
        }
        Do::Write => {
            a.mov(byte_ptr(DATA), 0x0f)?;
            a.ud2()
        }
        Do::Fetch => {
            a.mov(rax, DATA)?;
            a.jmp(rax)
        }
    });
    match g.run_to_handler() {
        vector::PF => {
            assert_eq!(g.cpu.state.cr2, DATA);
            if what == Do::Fetch {
                assert_eq!(g.frame(1), DATA, "the fault is the target's");
            }
            Some(g.frame(0))
        }
        vector::UD => {
            let entry = g.read64(PAGING + 0x3000 + 8 * (DATA >> 12));
            assert_eq!(entry >> 5 & 1, 1, "accessed");
            assert_eq!(entry >> 6 & 1, (what == Do::Write) as u64, "dirty");
            None
        }
        other => panic!("vector {other}"),
    }
}

#[test]
fn user_accesses() {
    let f = |what, flags| access(true, what, flags, |_| ());
    assert_eq!(f(Do::Read, 0), Some(e::U));
    assert_eq!(f(Do::Write, 0), Some(e::U | e::W));
    assert_eq!(f(Do::Fetch, 0), Some(e::U | e::I));
    assert_eq!(f(Do::Read, P | W), Some(e::U | e::P));
    assert_eq!(f(Do::Write, P | W), Some(e::U | e::W | e::P));
    assert_eq!(f(Do::Fetch, P | W), Some(e::U | e::I | e::P));
    assert_eq!(f(Do::Read, P | U), None);
    assert_eq!(f(Do::Write, P | U), Some(e::U | e::W | e::P));
    assert_eq!(f(Do::Write, P | U | W), None);
    assert_eq!(f(Do::Fetch, P | U), None);
    assert_eq!(f(Do::Fetch, P | U | NX), Some(e::U | e::I | e::P));
    assert_eq!(f(Do::Read, P | U | NX), None);
}

#[test]
fn supervisor_accesses() {
    let plain = |what, flags| access(false, what, flags, |_| ());
    assert_eq!(plain(Do::Read, 0), Some(0));
    assert_eq!(plain(Do::Write, P), Some(e::W | e::P));
    assert_eq!(plain(Do::Write, P | U), Some(e::W | e::P));
    assert_eq!(plain(Do::Fetch, P | NX), Some(e::I | e::P));
    assert_eq!(plain(Do::Fetch, P | U), None);
    let no_wp = |g: &mut Guest| g.cpu.state.cr0 &= !cr0::WP;
    assert_eq!(access(false, Do::Write, P, no_wp), None);
    assert_eq!(access(true, Do::Write, P | U, no_wp), Some(e::U | e::W | e::P), "WP is the supervisor's");
}

#[test]
fn smep_and_smap() {
    let smep = |g: &mut Guest| g.cpu.state.cr4 |= cr4::SMEP;
    assert_eq!(access(false, Do::Fetch, P | U, smep), Some(e::I | e::P));
    assert_eq!(access(false, Do::Fetch, P, smep), None);
    assert_eq!(access(true, Do::Fetch, P | U, smep), None);
    let smap = |g: &mut Guest| g.cpu.state.cr4 |= cr4::SMAP;
    assert_eq!(access(false, Do::Read, P | U, smap), Some(e::P));
    assert_eq!(access(false, Do::Write, P | U | W, smap), Some(e::P | e::W));
    assert_eq!(access(true, Do::Read, P | U, smap), None);
    let with_ac = |g: &mut Guest| {
        g.cpu.state.cr4 |= cr4::SMAP;
        g.cpu.set_rflags(flag::AC);
    };
    assert_eq!(access(false, Do::Write, P | U | W, with_ac), None);
}

#[test]
fn reserved_bits_and_nx_without_nxe() {
    assert_eq!(access(false, Do::Read, P | 1 << 45, |_| ()), Some(e::P | e::R));
    let no_nxe = |g: &mut Guest| g.cpu.state.efer &= !efer::NXE;
    assert_eq!(access(false, Do::Read, P | NX, no_nxe), Some(e::P | e::R));
    assert_eq!(access(false, Do::Fetch, 0, no_nxe), Some(0), "no I bit without NXE and SMEP");
}

#[test]
fn accesses_across_pages_fault_at_the_page_that_fails() {
    let mut g = Guest::long();
    g.page(DATA + 0x1000, P);
    g.cpu.set_gpr(reg::RAX, u64::MAX);
    g.code(|a| a.mov(qword_ptr(DATA + 0xffc), rax));
    g.expect(vector::PF);
    assert_eq!(g.cpu.state.cr2, DATA + 0x1000);
    assert_eq!(g.frame(0), e::P | e::W);
    assert_eq!(g.read32(DATA + 0xffc), 0, "nothing was written");
    // Read-modify-write of a read-only page is a write fault, CMPXCHG that does not store too.
    for program in 0..3 {
        let mut g = Guest::long();
        g.page(DATA, P);
        g.cpu.set_gpr(reg::RAX, 1);
        g.code(|a| match program {
            0 => a.inc(dword_ptr(DATA)),
            1 => a.lock().cmpxchg(dword_ptr(DATA), ebx),
            _ => a.xchg(dword_ptr(DATA), ebx),
        });
        g.expect(vector::PF);
        assert_eq!(g.frame(0), e::P | e::W, "program {program}");
    }
}

#[test]
fn an_access_that_faults_at_its_first_page_leaves_no_mark_on_the_second() {
    let marks = |g: &Guest, page: u64| g.read64(PAGING + 0x3000 + 8 * (page >> 12)) >> 5 & 3;
    for store in [true, false] {
        let mut g = Guest::long();
        g.page(DATA, 0);
        g.code(|a| {
            if store {
                return a.mov(qword_ptr(DATA + 0xffc), rax);
            }
            a.mov(rax, qword_ptr(DATA + 0xffc))
        });
        g.expect(vector::PF);
        assert_eq!(g.cpu.state.cr2, DATA + 0xffc);
        assert_eq!(marks(&g, DATA + 0x1000), 0, "store: {store}");
    }
    // One that goes through marks both.
    let mut g = Guest::long();
    g.code(|a| {
        a.mov(qword_ptr(DATA + 0xffc), rax)?;
        a.hlt()
    });
    g.run();
    assert_eq!([marks(&g, DATA), marks(&g, DATA + 0x1000)], [3, 3]);
}

#[test]
fn fetches_across_pages_fault_at_the_second() {
    let mut g = Guest::long();
    g.page(DATA + 0x1000, 0);
    // MOV EAX, imm32 with its last two bytes on the absent page.
    g.bytes(DATA + 0xffd, &[0xb8, 1, 2]);
    g.cpu.state.rip = DATA + 0xffd;
    g.expect(vector::PF);
    assert_eq!(g.cpu.state.cr2, DATA + 0x1000);
    assert_eq!([g.frame(0), g.frame(1)], [e::I, DATA + 0xffd]);
}

#[test]
fn non_canonical_addresses() {
    let mut g = Guest::long();
    g.cpu.set_gpr(reg::RAX, 1 << 47);
    g.code(|a| a.mov(ebx, dword_ptr(rax)));
    g.expect_gp(0);
    let mut g = Guest::long();
    g.cpu.set_gpr(reg::RBP, 1 << 47);
    g.code(|a| a.mov(ebx, dword_ptr(rbp)));
    g.expect(vector::SS);
    assert_eq!(g.frame(0), 0);
}

#[test]
fn an_operand_that_ends_outside_the_canonical_range_faults_before_its_page_does() {
    const LAST: u64 = (1 << 47) - 2;
    for instruction in 0..4 {
        let mut g = Guest::long();
        g.cpu.set_gpr(reg::RBX, LAST);
        g.cpu.set_gpr(reg::RBP, LAST);
        g.code(|a| match instruction {
            0 => a.mov(eax, dword_ptr(rbx)),
            1 => a.mov(qword_ptr(rbx), rax),
            2 => a.movups(xmm0, xmmword_ptr(rbx)),
            _ => a.add(dword_ptr(rbp), eax),
        });
        g.expect(if instruction == 3 { vector::SS } else { vector::GP });
    }
}

#[test]
fn branches_to_addresses_that_are_not_canonical_fault_themselves() {
    const TARGET: u64 = 1 << 47 | 0x123;
    for branch in 0..6 {
        let mut g = Guest::long();
        g.cpu.set_gpr(reg::RAX, TARGET);
        g.write64(DATA, TARGET);
        g.write64(STACK0 - 0x100, TARGET);
        g.cpu.set_gpr(reg::RSP, STACK0 - 0x100);
        g.code(|a| {
            a.nop()?;
            match branch {
                0 => a.jmp(rax),
                1 => a.jmp(qword_ptr(DATA)),
                2 => a.call(rax),
                3 => a.call(qword_ptr(DATA)),
                4 => a.ret(),
                _ => a.ret_1(0x20),
            }
        });
        g.expect_gp(0);
        assert_eq!([g.frame(1), g.frame(4)], [CODE + 1, STACK0 - 0x100], "branch {branch}");
    }
    // RSP itself as the target, and a branch that is not at fault: the fetch is.
    let mut g = Guest::long();
    g.cpu.set_gpr(reg::RSP, TARGET);
    g.write64(TSS + 0x24, IST1);
    g.write8(IDT + 16 * u64::from(vector::GP) + 4, 1);
    g.code(|a| a.jmp(rsp));
    g.expect_gp(0);
    assert_eq!([g.frame(1), g.frame(4)], [CODE, TARGET]);
    let mut g = Guest::long();
    g.cpu.set_gpr(reg::RAX, CODE + 0x40);
    g.code(|a| a.jmp(rax));
    g.bytes(CODE + 0x40, &[0xf4]);
    g.run();
    g.cpu.state.rip = TARGET;
    g.expect_gp(0);
    assert_eq!(g.frame(1), TARGET);
}

/// A guest with the last canonical page of the lower half mapped, and RIP near its end.
fn at_the_edge() -> Guest {
    let mut g = Guest::long();
    // The tables of low memory serve again: the last page is that at 1FF000h.
    for level in 0..3 {
        let index = if level == 0 { 255 } else { 511 };
        g.write64(PAGING + level * 0x1000 + 8 * index, (PAGING + (level + 1) * 0x1000) | 7);
    }
    g.cpu.set_gpr(reg::RCX, 2);
    g.cpu.state.rip = (1 << 47) - 0x100;
    g
}

#[test]
fn direct_branches_across_the_edge_fault_themselves() {
    const EDGE: u64 = 0x1f_ff00;
    let branches: [(&[u8], bool); 8] = [
        (&[0xe9, 0, 1, 0, 0], true),          // jmp
        (&[0xe8, 0, 1, 0, 0], true),          // call
        (&[0x0f, 0x84, 0, 1, 0, 0], true),    // jz
        (&[0x0f, 0x85, 0, 1, 0, 0], false),   // jnz
        (&[0xe2, 0x7e], true),                // loop
        (&[0xe0, 0x7e], false),               // loopne
        (&[0xe3, 0x7e], false),               // jrcxz
        (&[0x67, 0xe2, 0x7e], true),          // loop by ECX
    ];
    for (bytes, taken) in branches {
        let mut g = at_the_edge();
        let start = (1 << 47) - 0x80;
        g.cpu.state.rip = start;
        // XOR EAX, EAX: ZF.
        g.bytes(EDGE + 0x80, &[0x31, 0xc0]);
        g.bytes(EDGE + 0x82, bytes);
        g.bytes(EDGE + 0x82 + bytes.len() as u64, &[0xf4]);
        if !taken {
            g.run();
            assert_eq!(g.cpu.state.rip, start + 3 + bytes.len() as u64, "{bytes:x?}");
            continue;
        }
        g.expect_gp(0);
        assert_eq!([g.frame(1), g.frame(4), g.cpu.gpr(reg::RCX)], [start + 2, STACK0, 2], "{bytes:x?}");
    }
    // What runs off the edge faults at the fetch.
    let mut g = at_the_edge();
    g.cpu.state.rip = (1 << 47) - 1;
    g.bytes(EDGE + 0xff, &[0x90]);
    g.expect_gp(0);
    assert_eq!(g.frame(1), 1 << 47);
}

#[test]
fn the_a20_gate_folds_odd_megabytes_onto_even_ones() {
    let mut g = Guest::real();
    g.write8(0x600, 1);
    g.write8(0x10_0600, 2);
    let read = |g: &mut Guest, closed: bool| {
        g.cpu.shared.set_a20(!closed);
        g.cpu.state.rip = 0;
        g.code(|a| {
            a.mov(ax, 0xffff_u32 as i32)?;
            a.mov(ds, ax)?;
            // FFFF:0610 is 100600h.
            a.mov(bl, byte_ptr(0x610))?;
            a.inc(byte_ptr(0x610))?;
            a.hlt()
        });
        g.run();
        g.cpu.gpr(reg::RBX) as u8
    };
    assert_eq!([read(&mut g, false), read(&mut g, true), read(&mut g, true), read(&mut g, false)], [2, 1, 2, 3]);
    assert_eq!([g.read16(0x600) as u8, g.read16(0x10_0600) as u8], [3, 4]);
    // Code and tables go through the gate as data does.
    let mut g = Guest::long();
    g.code(|a| a.hlt());
    g.write8(0x10_0000 + CODE, 0xcc);
    g.cpu.state.rip = 0x10_0000 + CODE;
    g.expect(vector::BP);
    g.cpu.shared.set_a20(false);
    g.cpu.state.rip = 0x10_0000 + CODE;
    g.cpu.state.cr3 = 0x10_0000 + PAGING;
    g.run();
    assert_eq!(g.cpu.state.rip, 0x10_0000 + CODE + 1);
}

#[test]
fn stale_translations_go_with_invlpg_and_cr3() {
    for how in 0..4 {
        let mut g = Guest::long();
        g.page(DATA, P | W);
        g.write32(DATA, 1);
        g.write32(DATA + 0x1000, 2);
        let entry = (PAGING + 0x3000 + 8 * (DATA >> 12)) as i64;
        g.code(|a| {
            a.mov(eax, dword_ptr(DATA))?;
            a.mov(rcx, (DATA + 0x1000) | P | W)?;
            a.mov(qword_ptr(entry), rcx)?;
            match how {
                0 => a.invlpg(byte_ptr(DATA))?,
                1 => {
                    a.mov(rbx, cr3)?;
                    a.mov(cr3, rbx)?;
                }
                2 => {
                    a.mov(rbx, cr4)?;
                    a.btc(rbx, 7)?;
                    a.mov(cr4, rbx)?;
                }
                _ => {
                    a.mov(ebx, 2)?;
                    a.invpcid(rbx, xmmword_ptr(DATA + 0x2000))?;
                }
            }
            a.mov(edx, dword_ptr(DATA))?;
            a.hlt()
        });
        g.run();
        assert_eq!([g.cpu.gpr(reg::RAX), g.cpu.gpr(reg::RDX)], [1, 2], "way {how}");
    }
}

#[test]
fn legacy_paging_with_large_pages() {
    let mut g = Guest::paged();
    g.cpu.write_cr4(cr4::PSE).unwrap();
    // 4 MiB page at 8 MiB linear to physical 0, read-only.
    g.write32(PAGING + 4 * 2, 0x85);
    g.write32(DATA, 0x1234);
    g.code(|a| {
        a.mov(eax, dword_ptr(0x80_0000 + DATA as u32))?;
        a.mov(dword_ptr(0x80_0000 + DATA as u32), eax)
    });
    g.expect(vector::PF);
    assert_eq!(g.cpu.gpr(reg::RAX), 0x1234);
    assert_eq!(g.frame(0), e::P | e::W);
    assert_eq!(g.read32(PAGING + 8) >> 5 & 3, 1, "accessed, not dirty");
}

/// Flags that a faulting access shows to its handler, and nobody else: ADD overwrites them.
#[test]
fn a_fault_shows_flags_that_nobody_else_reads() {
    type Setter = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let cases: [(Setter, u64); 8] = [
        // -1 + 1, from the registers.
        (|a| a.add(rax, rbx), flag::CF | flag::PF | flag::AF | flag::ZF),
        // The same, and neither result nor source last until the fault.
        (
            |a| {
                a.add(rax, rbx)?;
                a.mov(rax, qword_ptr(DATA + 8))?;
                a.mov(rbx, qword_ptr(DATA + 8))
            },
            flag::CF | flag::PF | flag::AF | flag::ZF,
        ),
        // 3 - 0x12345: a result that no register gets, a constant beyond those in notes.
        (|a| a.cmp(ecx, 0x12345), flag::CF | flag::PF | flag::AF | flag::SF),
        // 3 - 0 in memory.
        (|a| a.cmp(rcx, qword_ptr(DATA + 8)), flag::PF),
        (|a| a.sub(ecx, 4), flag::CF | flag::PF | flag::AF | flag::SF),
        (|a| a.and(rcx, rbx), 0),
        // Overwritten in part if a count is not zero: 0 rotated by 1.
        (
            |a| {
                a.add(rax, rbx)?;
                a.mov(ecx, 1)?;
                a.rol(rdx, cl)
            },
            flag::PF | flag::AF | flag::ZF,
        ),
        (
            |a| {
                a.add(rax, rbx)?;
                a.mov(ecx, 0)?;
                a.rol(rdx, cl)
            },
            flag::CF | flag::PF | flag::AF | flag::ZF,
        ),
    ];
    for (n, (setter, want)) in cases.into_iter().enumerate() {
        let mut g = Guest::long();
        g.page(DATA + 0x1000, 0);
        for (register, v) in [(reg::RAX, u64::MAX), (reg::RBX, 1), (reg::RCX, 3)] {
            g.cpu.set_gpr(register, v);
        }
        g.code(|a| {
            setter(a)?;
            a.mov(rdx, qword_ptr(DATA))?;
            a.mov(rdx, qword_ptr(DATA + 0x1000))?;
            a.add(rsi, rdi)?;
            a.hlt()
        });
        g.expect(vector::PF);
        assert_eq!(g.frame(3) & flag::ARITH, want, "case {n}");
    }
}

/// The same from block to block of a loop: the jumps behind what sets them read them, one way out of the loop needs them,
/// and a load at the start of the third block faults.
#[test]
fn flags_go_from_block_to_block_and_a_fault_or_the_way_out_shows_them() {
    type Setter = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let all = flag::CF | flag::PF | flag::AF | flag::ZF;
    let cases: [(Setter, u64); 6] = [
        (|a| a.add(rax, rbx), all),
        // Neither result nor source is in a register any more.
        (
            |a| {
                a.add(rax, rbx)?;
                a.mov(eax, 7)?;
                a.mov(ebx, 8)
            },
            all,
        ),
        (|a| a.cmp(r9d, 0x12345), flag::CF | flag::PF | flag::AF | flag::SF),
        (|a| a.test(r9, r9), flag::PF),
        // Their kind depends on the carry.
        (
            |a| {
                a.stc()?;
                a.adc(rax, 0)
            },
            all,
        ),
        // Kept.
        (
            |a| {
                a.add(rax, rbx)?;
                a.mov(ecx, 0)?;
                a.shl(rdx, cl)
            },
            all,
        ),
    ];
    for (n, (setter, want)) in cases.into_iter().enumerate() {
        // The loop ends with a fault, or by the jump.
        for leaves in [false, true] {
            let mut g = Guest::long();
            g.page(DATA + 0x1000, 0);
            g.code(|a| {
                let (mut top, mut out, mut never) = (a.create_label(), a.create_label(), a.create_label());
                a.mov(esi, DATA as u32 + 0x1000 - 8 * 60)?;
                a.mov(edi, if leaves { DATA as u32 + 0x1000 - 80 } else { 0 })?;
                a.set_label(&mut top)?;
                a.mov(rax, -1i64)?;
                a.mov(ebx, 1)?;
                a.mov(r9d, 3)?;
                a.mov(r10, rsi)?;
                a.sub(r10, rdi)?;
                setter(a)?;
                a.mov(rcx, r10)?;
                a.jrcxz(out)?;
                a.jo(never)?;
                a.mov(rdx, qword_ptr(rsi))?;
                a.lea(rsi, qword_ptr(rsi + 8))?;
                a.add(rdx, rdx)?;
                a.jmp(top)?;
                a.set_label(&mut out)?;
                a.pushfq()?;
                a.pop(rdx)?;
                a.set_label(&mut never)?;
                a.hlt()
            });
            let shown = if leaves {
                g.run();
                g.cpu.gpr(reg::RDX)
            } else {
                g.expect(vector::PF);
                g.frame(3)
            };
            assert_eq!(shown & flag::ARITH, want, "case {n}, leaves: {leaves}");
        }
    }
}
