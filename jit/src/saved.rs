//! A processor's state as it is kept outside of it: all that a guest can notice, and nothing of how it is run.

use crate::cpu::Cpu;
use crate::helpers::vec::mxcsr::bit;
use crate::state::{HIGH, Msrs, Segment, TableRegister, X87, cr0, efer, shadow};
use serde::{Deserialize, Serialize};

/// Vector registers: low halves, then high ones.
const VECTORS: usize = 2 * HIGH;
/// Bits of an x87 register.
const EXTENDED: u128 = (1 << 80) - 1;
/// Bits of the last opcode (SDM 1, 8.1.9).
const OPCODE: u16 = 0x7ff;

/// The state of a processor between two instructions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedVcpu {
    gprs: [u64; 16],
    rip: u64,
    rflags: u64,
    segments: [Segment; 6],
    ldtr: Segment,
    tr: Segment,
    gdtr: TableRegister,
    idtr: TableRegister,
    cr0: u64,
    cr2: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    xcr0: u64,
    dr: [u64; 8],
    pdptes: [u64; 4],
    mxcsr: u32,
    /// In two halves: JSON's numbers have 64 bits.
    vectors: Vec<[u64; 2]>,
    x87: SavedX87,
    msrs: Msrs,
    /// Interrupts are held off for one instruction.
    shadow: u32,
    halted: bool,
    nmi_blocked: bool,
    /// Debug traps that are due.
    pending_db: u64,
    /// The line that MONITOR watches.
    monitor: Option<u64>,
    /// FERR# is asserted.
    fpu_error: bool,
    /// The processor is in shutdown, and why.
    shutdown: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedX87 {
    regs: [[u64; 2]; 8],
    fcw: u16,
    fsw: u16,
    tags: u8,
    fop: u16,
    fip: u64,
    fdp: u64,
    fcs: u16,
    fds: u16,
}

/// A state that no processor of the model can be in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the state of a processor does not fit: {0}")]
pub struct Unfit(&'static str);

fn halves(v: u128) -> [u64; 2] {
    [v as u64, (v >> 64) as u64]
}

fn whole([low, high]: [u64; 2]) -> u128 {
    u128::from(high) << 64 | u128::from(low)
}

impl SavedX87 {
    fn of(x: &X87) -> Self {
        let X87 { regs, fcw, fsw, tags, fop, fip, fdp, fcs, fds } = *x;
        Self { regs: regs.map(halves), fcw, fsw, tags, fop, fip, fdp, fcs, fds }
    }

    fn to_state(&self) -> X87 {
        let Self { regs, fcw, fsw, tags, fop, fip, fdp, fcs, fds } = *self;
        X87 { regs: regs.map(|r| whole(r) & EXTENDED), fcw, fsw, tags, fop: fop & OPCODE, fip, fdp, fcs, fds }
    }
}

impl SavedVcpu {
    /// The state now. Outside of its run loop a processor has its sticky flags and x87 registers at home.
    pub(crate) fn of(cpu: &Cpu) -> Self {
        let s = &cpu.state;
        Self {
            gprs: std::array::from_fn(|n| cpu.gpr(n)),
            rip: s.rip,
            rflags: cpu.rflags(),
            segments: s.segs,
            ldtr: s.ldtr,
            tr: s.tr,
            gdtr: s.gdtr,
            idtr: s.idtr,
            cr0: s.cr0,
            cr2: s.cr2,
            cr3: s.cr3,
            cr4: s.cr4,
            efer: s.efer,
            xcr0: s.xcr0,
            dr: s.dr,
            pdptes: cpu.pdptes,
            mxcsr: s.mxcsr,
            vectors: s.vecs.iter().take(VECTORS).copied().map(halves).collect(),
            x87: SavedX87::of(&s.x87),
            msrs: s.msr.clone(),
            shadow: s.shadow,
            halted: s.halted,
            nmi_blocked: s.nmi_blocked,
            pending_db: cpu.pending_db,
            monitor: cpu.monitor,
            fpu_error: cpu.fpu_error,
            shutdown: cpu.shutdown.clone(),
        }
    }

    /// What the instructions that set these registers would refuse, the engine does not expect.
    pub(crate) fn check(&self, cpu: &Cpu) -> Result<(), Unfit> {
        let refuse = |wrong: bool, why| if wrong { Err(Unfit(why)) } else { Ok(()) };
        refuse(self.vectors.len() != VECTORS, "another number of vector registers")?;
        refuse(self.mxcsr & !bit::DEFINED != 0, "reserved bits of MXCSR")?;
        let mask = cpu.model.xcr0_mask() | 1;
        let wrong = self.xcr0 & 1 == 0 || self.xcr0 & !mask != 0 || self.xcr0 & 6 == 4;
        refuse(wrong, "XCR0 enables what the model lacks")?;
        let (pe, pg) = (self.cr0 & cr0::PE != 0, self.cr0 & cr0::PG != 0);
        refuse(pg && !pe, "paging without protection")?;
        let (lme, lma) = (self.efer & efer::LME != 0, self.efer & efer::LMA != 0);
        refuse(lma != (lme && pg), "long mode that is half on")?;
        refuse(self.shadow & !(shadow::STI | shadow::MOV_SS) != 0, "an unknown shadow of interrupts")
    }

    /// Makes it the processor's state; it was checked. Everything derived from the old one is dropped.
    pub(crate) fn put(&self, cpu: &mut Cpu) {
        let Self { gprs, rip, rflags, segments, ldtr, tr, gdtr, idtr, cr0, cr2, cr3, cr4, efer, xcr0, dr, .. } = self;
        let Self { pdptes, mxcsr, vectors, x87, msrs, shadow, halted, nmi_blocked, .. } = self;
        let Self { pending_db, monitor, fpu_error, shutdown, .. } = self;
        let s = &mut cpu.state;
        s.vals.fill(0);
        s.vals.iter_mut().zip(gprs).for_each(|(to, from)| *to = *from);
        s.rip = *rip;
        (s.segs, s.ldtr, s.tr, s.gdtr, s.idtr) = (*segments, *ldtr, *tr, *gdtr, *idtr);
        (s.cr0, s.cr2, s.cr3, s.cr4, s.efer, s.xcr0) = (*cr0 | crate::state::cr0::ET, *cr2, *cr3, *cr4, *efer, *xcr0);
        s.dr = *dr;
        s.mxcsr = *mxcsr;
        s.vecs.iter_mut().zip(vectors).for_each(|(to, from)| *to = whole(*from));
        s.x87 = x87.to_state();
        s.msr = msrs.clone();
        (s.shadow, s.halted, s.nmi_blocked) = (*shadow, *halted, *nmi_blocked);
        s.branch_rip = 0;
        cpu.pdptes = *pdptes;
        (cpu.pending_db, cpu.monitor, cpu.fpu_error) = (*pending_db, *monitor, *fpu_error);
        cpu.shutdown.clone_from(shutdown);
        cpu.pending_fault = None;
        cpu.set_rflags(*rflags);
        cpu.flush_tlb_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{flag, reg};
    use crate::system::testing::place::*;
    use crate::system::testing::{Guest, RAM, machine};
    use crate::vcpu::Exit;
    use iced_x86::code_asm::*;

    fn copy_memory(from: &Cpu, to: &Cpu) {
        let mut bytes = vec![0; RAM as usize];
        from.shared.ram.read(0, &mut bytes);
        to.shared.ram.write(0, &bytes, true);
    }

    /// A state as files have it.
    fn through_text(saved: &SavedVcpu) -> SavedVcpu {
        serde_json::from_value(serde_json::to_value(saved).unwrap()).unwrap()
    }

    /// Two halves of a computation in all kinds of registers, with a HLT between them.
    fn program(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
        a.mov(rax, 0x1234_5678_9abc_def0_u64)?;
        a.movq(xmm3, rax)?;
        a.punpcklqdq(xmm3, xmm3)?;
        a.fninit()?;
        a.fldpi()?;
        a.fld1()?;
        a.mov(dword_ptr(DATA), 0x5f80)?;
        a.ldmxcsr(dword_ptr(DATA))?;
        a.mov(rcx, -1i64)?;
        a.add(rcx, 1)?;
        a.std()?;
        a.hlt()?;
        a.pushfq()?;
        a.pop(r8)?;
        a.faddp(st1, st0)?;
        a.fstp(tword_ptr(DATA + 16))?;
        a.movdqu(xmmword_ptr(DATA + 32), xmm3)?;
        a.stmxcsr(dword_ptr(DATA + 8))?;
        a.mov(rdx, rax)?;
        a.hlt()
    }

    fn outcome(g: &Guest<2>) -> Vec<u64> {
        let words = (0..6).map(|n| g.read64(DATA + 8 * n));
        words.chain([reg::RAX, reg::RCX, reg::RDX, 8].map(|n| g.cpu.gpr(n))).collect()
    }

    #[test]
    fn a_computation_goes_on_in_another_processor_and_again_in_its_own() {
        let mut g = Guest::<2>::long();
        g.code(program);
        g.run();
        let saved = SavedVcpu::of(&g.cpu);
        let at_half = machine();
        copy_memory(&g.cpu, &at_half);
        g.run();
        let want = outcome(&g);
        let flags = flag::PF | flag::AF | flag::ZF | flag::CF | flag::DF;
        let left = want[9] & (flag::ARITH | flag::DF);
        assert_eq!((want[4], left), (0x1234_5678_9abc_def0, flags), "the program is what it seems");
        // In another processor that was in another mode, and twice in the one that went on.
        let mut other = Guest::<2>::real();
        other.code(|a| a.hlt());
        other.run();
        for g in [&mut other, &mut g] {
            for _ in 0..2 {
                copy_memory(&at_half, &g.cpu);
                g.cpu.invalidate_code(0, RAM);
                through_text(&saved).put(&mut g.cpu);
                assert_eq!(SavedVcpu::of(&g.cpu), saved);
                g.run();
                assert_eq!(outcome(g), want);
            }
        }
    }

    #[test]
    fn impossible_states_are_refused() {
        let cpu = machine();
        let saved = SavedVcpu::of(&cpu);
        assert_eq!(saved.check(&cpu), Ok(()));
        let bad: [fn(&mut SavedVcpu); 8] = [
            |s| s.vectors.truncate(5),
            |s| s.mxcsr |= 1 << 20,
            |s| s.xcr0 = 0,
            |s| s.xcr0 = 1 << 60 | 1,
            |s| s.cr0 = cr0::PG,
            |s| s.efer = efer::LMA,
            |s| (s.cr0, s.efer) = (cr0::PG | cr0::PE, efer::LME),
            |s| s.shadow = 4,
        ];
        for change in bad {
            let mut saved = saved.clone();
            change(&mut saved);
            assert!(saved.check(&cpu).is_err(), "{saved:?}");
        }
    }

    /// What a file says of a processor may be nonsense: it runs into faults, not into us.
    #[test]
    fn random_states_run() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        let mut ran = 0;
        for _ in 0..400 {
            let mut g = Guest::<1>::long();
            g.code(program);
            let mut value = serde_json::to_value(SavedVcpu::of(&g.cpu)).unwrap();
            let fields = value.as_object_mut().unwrap();
            let names: Vec<String> = fields.keys().cloned().collect();
            for _ in 0..1 + random() % 6 {
                let name = &names[random() as usize % names.len()];
                if let Some(field) = fields.get_mut(name).filter(|field| field.is_u64()) {
                    *field = (random() >> (random() % 64)).into();
                } else if let Some(list) = fields.get_mut(name).and_then(|field| field.as_array_mut()) {
                    let at = random() as usize % list.len();
                    if list[at].is_u64() {
                        list[at] = (random() >> (random() % 64)).into();
                    }
                }
            }
            let Ok(saved) = serde_json::from_value::<SavedVcpu>(value) else { continue };
            if saved.check(&g.cpu).is_ok() {
                saved.put(&mut g.cpu);
                g.cpu.set_single_step(true);
                let steps = (0..50).take_while(|_| g.cpu.run_loop() == Exit::Debug).count();
                ran += usize::from(steps > 0);
            }
        }
        assert!(ran > 100, "{ran}");
    }
}
