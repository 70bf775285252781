//! Random bytes as code: whatever a guest executes, lifting and the interpreter stand it.

use super::*;
use crate::ir::verify;
use crate::passes;
use crate::state::{flag, mode};

const CODE: u64 = 0x1000_0000;
const PAGES: u64 = 6;

/// An address in the test's pages, a small number, or anything.
fn value(r: &mut Random) -> u64 {
    let v = r.bits();
    match v >> 61 {
        0..=3 => CODE + v % (PAGES << 12),
        4 => v & 0xff,
        5 => 1 << (v & 63),
        _ => v,
    }
}

/// Code with the prefixes and escapes of interesting instructions more often than chance has it.
fn code(r: &mut Random) -> [u8; 16] {
    let mut bytes: [u8; 16] = std::array::from_fn(|_| r.bits() as u8);
    let start: &[u8] = r.pick(&[
        &[],
        &[0x0f],
        &[0x66, 0x0f],
        &[0xf3, 0x0f],
        &[0xf2, 0x0f],
        &[0x48],
        &[0xf0],
        &[0x66, 0x0f, 0x38],
        &[0xc5],
        &[0xc4],
    ]);
    bytes[..start.len()].copy_from_slice(start);
    bytes
}

fn machine() -> Machine {
    let pages: Vec<Page> =
        (0..PAGES).map(|n| Page { linear: CODE + n * PAGE_SIZE, writable: n != PAGES - 1 }).collect();
    Machine::new("max", Bits::B64, &pages)
}

/// Sets one of the modes a guest can be in.
fn set_mode(m: &mut Machine, which: u64) {
    m.set_mode(if which & 1 == 0 { Bits::B64 } else { Bits::B32 });
    let s = &mut m.cpu.state;
    match which {
        2 | 3 => s.segs.iter_mut().for_each(|g| g.attributes &= !(3 << attr::DPL_SHIFT)),
        4 => {
            // Real mode.
            s.cr0 &= !(cr0::PE | cr0::PG);
            s.efer = 0;
            let selector = (CODE >> 4) as u16;
            let attributes = attr::P | attr::S | attr::RW | attr::ACCESSED;
            s.segs = [Segment { base: 0, limit: 0xffff, attributes, selector }; 6];
        }
        5 => {
            // 16-bit protected mode with segments that are not flat.
            s.efer &= !(efer::LMA | efer::LME);
            s.cr0 &= !cr0::PG;
            let attributes = attr::P | attr::S | attr::RW | attr::ACCESSED;
            s.segs = [Segment { base: 0x1_0000, limit: 0x4fff, attributes, selector: 8 }; 6];
            s.segs[reg::CS].attributes |= attr::CODE;
        }
        6 => s.rflags |= flag::TF,
        _ => {}
    }
    m.cpu.update_mode();
    m.cpu.flush_tlb_all();
}

#[test]
fn random_bytes_neither_panic_nor_make_invalid_ir() {
    let mut r = Random::new(11);
    let mut m = machine();
    for n in 0..200_000u64 {
        if n % 16 == 0 {
            set_mode(&mut m, n / 16 % 7);
        }
        let bytes = code(&mut r);
        let mut regs = Registers { rip: CODE + 64, rflags: 2 | r.bits() & 0xcd5, ..Registers::default() };
        regs.gpr.iter_mut().for_each(|v| *v = value(&mut r));
        // Repeated instructions would take long without telling more.
        regs.gpr[1] &= 0xfff;
        let mode_word = m.cpu.state.mode;
        let block = lift::lift_block(&bytes, regs.rip, mode_word, &m.cpu.model, 4);
        let Ok(mut block) = block else { continue };
        verify::check(&block).unwrap_or_else(|e| panic!("{bytes:02x?} in mode {mode_word:#x}: {e}"));
        passes::run(&mut block);
        verify::check(&block).unwrap_or_else(|e| panic!("{bytes:02x?} after the passes: {e}"));
        let keep = regs.rflags;
        m.set_registers(&regs);
        let _ = m.cpu.run_block(&block);
        m.cpu.pending_fault = None;
        if m.cpu.state.mode != mode_word || m.cpu.rflags() & flag::VM != keep & flag::VM {
            set_mode(&mut m, n / 16 % 7);
        }
    }
    assert_eq!(m.cpu.state.mode & mode::VM86, 0);
}
