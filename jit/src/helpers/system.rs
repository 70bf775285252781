//! Helpers of the system family: thin, the work is in [`crate::system`].

use super::effect::{ALL_GPRS, FAULTS, READS_FLAGS, SETS_FLAGS};
use crate::cpu::Cpu;
use crate::cpuid::Dynamic;
use crate::fault::{Fault, vector};
use crate::ir::Ty;
use crate::state::{cr0, cr4, flag, mode, reg, shadow};
use crate::system::io::StringIo;

/// Effects of what leaves the block for another place and may change anything.
const TRANSFER: u32 = FAULTS | READS_FLAGS | SETS_FLAGS | ALL_GPRS;
const CPUID_REGISTERS: u32 = 1 << reg::RAX | 1 << reg::RBX | 1 << reg::RCX | 1 << reg::RDX;
const STRING_REGISTERS: u32 = 1 << reg::RCX | 1 << reg::RSI | 1 << reg::RDI;

crate::helper_family! { 2;
    /// CLI (1: not while a request waits to be looked at). 1 if it was not executed for that.
    CLI = cli, FAULTS;
    /// STI.
    STI = sti, FAULTS;
    /// The word PUSHF pushes (bytes).
    PUSHF = pushf, FAULTS | READS_FLAGS;
    /// POPF (word, bytes, whether to look for requests first): 1 if there are and it is to be done after them.
    POPF = popf, FAULTS | READS_FLAGS | SETS_FLAGS;
    /// IRET (bytes, next RIP, whether to look for requests first: if there are, RIP stays, as for the next four).
    IRET = iret, TRANSFER;
    /// INT n (vector, next RIP, whether to look).
    INT = int, TRANSFER;
    /// INT3 and, if OF is set, INTO (vector, next RIP, whether to look).
    INT_TRAP = int_trap, TRANSFER;
    /// INT1 (next RIP, whether to look).
    INT1 = int1, TRANSFER;
    /// #GP(0) for a branch that is taken (1) to an address (2) that is not canonical.
    CHECK_BRANCH = check_branch, FAULTS;
    /// Far JMP (selector, offset, next RIP).
    FAR_JMP = far_jmp, TRANSFER;
    /// Far CALL (selector | bytes << 16, offset, next RIP).
    FAR_CALL = far_call, TRANSFER;
    /// Far RET (bytes, parameter bytes).
    FAR_RET = far_ret, TRANSFER;
    /// SYSCALL (next RIP, whether to look).
    SYSCALL = syscall, TRANSFER;
    /// SYSRET (1: to 64-bit code).
    SYSRET = sysret, TRANSFER;
    /// SYSENTER (whether to look).
    SYSENTER = sysenter, TRANSFER;
    /// SYSEXIT (1: to 64-bit code).
    SYSEXIT = sysexit, TRANSFER;
    /// Loads segment register (number, selector; 1: events wait for one instruction, as after MOV SS).
    LOAD_SEG = load_seg, FAULTS;
    /// LLDT.
    LLDT = lldt, FAULTS;
    /// LTR.
    LTR = ltr, FAULTS;
    /// LAR (selector, old destination, bytes): the new destination; sets ZF.
    LAR = lar, FAULTS | READS_FLAGS | SETS_FLAGS;
    /// LSL, operands as LAR.
    LSL = lsl, FAULTS | READS_FLAGS | SETS_FLAGS;
    /// VERR (second operand 0) and VERW (1): sets ZF.
    VERIFY = verify, FAULTS | READS_FLAGS | SETS_FLAGS;
    /// ARPL (destination, source): the new destination; sets ZF.
    ARPL = arpl, READS_FLAGS | SETS_FLAGS;
    /// #GP(0) if CR4.UMIP is set (above CPL 0).
    CHECK_UMIP = check_umip, FAULTS;
    /// Loads GDTR (limit, base).
    LGDT = lgdt, FAULTS;
    /// Loads IDTR (limit, base).
    LIDT = lidt, FAULTS;
    /// MOV from control register.
    READ_CR = read_cr, FAULTS;
    /// MOV to control register (number, value).
    WRITE_CR = write_cr, FAULTS;
    /// LMSW.
    LMSW = lmsw, FAULTS;
    /// CLTS.
    CLTS = clts, 0;
    /// MOV from debug register.
    READ_DR = read_dr, FAULTS;
    /// MOV to debug register (number, value).
    WRITE_DR = write_dr, FAULTS;
    /// INVLPG.
    INVLPG = invlpg, 0;
    /// INVPCID (type, descriptor low, descriptor high).
    INVPCID = invpcid, FAULTS;
    /// HLT.
    HLT = hlt, 0;
    /// PAUSE.
    PAUSE = pause, 0;
    /// MONITOR (linear address, RCX).
    MONITOR = monitor, FAULTS;
    /// MWAIT (RCX).
    MWAIT = mwait, FAULTS;
    /// RDMSR.
    RDMSR = rdmsr, FAULTS;
    /// WRMSR (number, EAX, EDX).
    WRMSR = wrmsr, FAULTS;
    /// RDTSC and the first half of RDTSCP.
    RDTSC = rdtsc, FAULTS;
    /// RDPMC (counter).
    RDPMC = rdpmc, FAULTS;
    /// CPUID.
    CPUID = cpuid, CPUID_REGISTERS;
    /// #UD unless CR4.FSGSBASE is set.
    CHECK_FSGSBASE = check_fsgsbase, FAULTS;
    /// WRFSBASE, WRGSBASE (segment, value).
    WRITE_BASE = write_base, FAULTS;
    /// STAC (1), CLAC (0).
    SET_AC = set_ac, 0;
    /// IN (port, bytes).
    IN = port_in, FAULTS;
    /// OUT (port, bytes, value).
    OUT = port_out, FAULTS;
    /// INS (`StringIo`, next RIP).
    INS = ins, FAULTS | STRING_REGISTERS;
    /// OUTS (`StringIo`, next RIP).
    OUTS = outs, FAULTS | STRING_REGISTERS;
    /// XGETBV (register).
    XGETBV = xgetbv, FAULTS;
    /// XSETBV (register, EAX, EDX).
    XSETBV = xsetbv, FAULTS;
}

/// Most helpers have no result.
fn done(r: Result<(), Fault>) -> Result<u64, Fault> {
    r.map(|()| 0)
}

fn width(bytes: u64) -> Ty {
    Ty::from_bytes(bytes as usize)
}

/// There is a request that gets in before an instruction that is to `watch` for one.
fn looks(c: &Cpu, watch: u64) -> bool {
    watch != 0 && c.request_waits()
}

fn cli(c: &mut Cpu, watch: u64, _: u64, _: u64) -> Result<u64, Fault> {
    if looks(c, watch) {
        return Ok(1);
    }
    done(c.cli())
}

fn sti(c: &mut Cpu, _: u64, _: u64, _: u64) -> Result<u64, Fault> {
    done(c.sti())
}

fn pushf(c: &mut Cpu, bytes: u64, _: u64, _: u64) -> Result<u64, Fault> {
    c.pushf(width(bytes))
}

fn popf(c: &mut Cpu, v: u64, bytes: u64, watch: u64) -> Result<u64, Fault> {
    if v & flag::IF == 0 && looks(c, watch) {
        return Ok(1);
    }
    done(c.popf(v, width(bytes)))
}

fn check_branch(c: &mut Cpu, taken: u64, target: u64, _: u64) -> Result<u64, Fault> {
    if taken != 0 && !c.canonical(target) { Err(Fault::GP0) } else { Ok(0) }
}

fn iret(c: &mut Cpu, bytes: u64, next: u64, watch: u64) -> Result<u64, Fault> {
    if looks(c, watch) {
        return Ok(0);
    }
    done(c.interrupt_return(width(bytes), next))
}

fn int(c: &mut Cpu, v: u64, next: u64, watch: u64) -> Result<u64, Fault> {
    if looks(c, watch) {
        return Ok(0);
    }
    done(c.software_interrupt(v as u8, next))
}

fn int_trap(c: &mut Cpu, v: u64, next: u64, watch: u64) -> Result<u64, Fault> {
    if looks(c, watch) {
        return Ok(0);
    }
    if v as u8 == vector::OF && c.rflags() & flag::OF == 0 {
        c.state.rip = next;
        return Ok(0);
    }
    done(c.software_event(v as u8, next))
}

fn int1(c: &mut Cpu, next: u64, watch: u64, _: u64) -> Result<u64, Fault> {
    if looks(c, watch) {
        return Ok(0);
    }
    done(c.int1(next))
}

fn far_jmp(c: &mut Cpu, selector: u64, offset: u64, next: u64) -> Result<u64, Fault> {
    done(c.far_jump(selector as u16, offset, next))
}

fn far_call(c: &mut Cpu, a: u64, offset: u64, next: u64) -> Result<u64, Fault> {
    done(c.far_call(a as u16, offset, width(a >> 16), next))
}

fn far_ret(c: &mut Cpu, bytes: u64, release: u64, _: u64) -> Result<u64, Fault> {
    done(c.far_return(width(bytes), release))
}

fn syscall(c: &mut Cpu, next: u64, watch: u64, _: u64) -> Result<u64, Fault> {
    if looks(c, watch) {
        return Ok(0);
    }
    done(c.syscall(next))
}

fn sysret(c: &mut Cpu, wide: u64, _: u64, _: u64) -> Result<u64, Fault> {
    done(c.sysret(wide != 0))
}

fn sysenter(c: &mut Cpu, watch: u64, _: u64, _: u64) -> Result<u64, Fault> {
    if looks(c, watch) {
        return Ok(0);
    }
    done(c.sysenter())
}

fn sysexit(c: &mut Cpu, wide: u64, _: u64, _: u64) -> Result<u64, Fault> {
    done(c.sysexit(wide != 0))
}

fn load_seg(c: &mut Cpu, seg: u64, selector: u64, hold: u64) -> Result<u64, Fault> {
    c.load_segment(seg as usize % 6, selector as u16)?;
    if hold != 0 {
        c.state.shadow |= shadow::MOV_SS;
    }
    Ok(0)
}

fn lldt(c: &mut Cpu, selector: u64, _: u64, _: u64) -> Result<u64, Fault> {
    done(c.load_ldt(selector as u16))
}

fn ltr(c: &mut Cpu, selector: u64, _: u64, _: u64) -> Result<u64, Fault> {
    done(c.load_task_register(selector as u16))
}

fn set_zf(c: &mut Cpu, on: bool) {
    let zf = if on { flag::ZF } else { 0 };
    let flags = c.rflags() & !flag::ZF | zf;
    c.set_arith_flags(flags);
}

/// Result of LAR and LSL: `found` sets ZF and replaces the destination in its width.
fn destination(c: &mut Cpu, found: Option<u64>, old: u64, bytes: u64) -> u64 {
    set_zf(c, found.is_some());
    let Some(v) = found else { return old };
    if bytes == 2 { old & !0xffff | v & 0xffff } else { v }
}

fn lar(c: &mut Cpu, selector: u64, old: u64, bytes: u64) -> Result<u64, Fault> {
    let found = c.access_rights(selector as u16)?;
    Ok(destination(c, found, old, bytes))
}

fn lsl(c: &mut Cpu, selector: u64, old: u64, bytes: u64) -> Result<u64, Fault> {
    let found = c.segment_limit(selector as u16)?;
    Ok(destination(c, found, old, bytes))
}

fn verify(c: &mut Cpu, selector: u64, write: u64, _: u64) -> Result<u64, Fault> {
    let ok = c.verify_segment(selector as u16, write != 0)?;
    set_zf(c, ok);
    Ok(0)
}

fn arpl(c: &mut Cpu, dst: u64, src: u64, _: u64) -> Result<u64, Fault> {
    let lower = dst & 3 < src & 3;
    set_zf(c, lower);
    Ok(if lower { dst & !3 | src & 3 } else { dst } & 0xffff)
}

fn check_umip(c: &mut Cpu, _: u64, _: u64, _: u64) -> Result<u64, Fault> {
    if c.state.cr4 & cr4::UMIP != 0 && c.state.cpl() > 0 { Err(Fault::GP0) } else { Ok(0) }
}

fn lgdt(c: &mut Cpu, limit: u64, base: u64, _: u64) -> Result<u64, Fault> {
    if !c.canonical(base) {
        return Err(Fault::GP0);
    }
    c.state.gdtr = crate::state::TableRegister { base, limit: limit as u16 };
    Ok(0)
}

fn lidt(c: &mut Cpu, limit: u64, base: u64, _: u64) -> Result<u64, Fault> {
    if !c.canonical(base) {
        return Err(Fault::GP0);
    }
    c.state.idtr = crate::state::TableRegister { base, limit: limit as u16 };
    Ok(0)
}

fn read_cr(c: &mut Cpu, n: u64, _: u64, _: u64) -> Result<u64, Fault> {
    c.read_control(n)
}

fn write_cr(c: &mut Cpu, n: u64, v: u64, _: u64) -> Result<u64, Fault> {
    done(c.write_control(n, v))
}

fn lmsw(c: &mut Cpu, v: u64, _: u64, _: u64) -> Result<u64, Fault> {
    // PE can be set here, never cleared.
    let pe = c.state.cr0 & cr0::PE;
    done(c.load_machine_status(v | pe))
}

fn clts(c: &mut Cpu, _: u64, _: u64, _: u64) -> Result<u64, Fault> {
    c.clear_ts();
    Ok(0)
}

fn read_dr(c: &mut Cpu, n: u64, _: u64, _: u64) -> Result<u64, Fault> {
    c.read_debug(n)
}

fn write_dr(c: &mut Cpu, n: u64, v: u64, _: u64) -> Result<u64, Fault> {
    done(c.write_debug(n, v))
}

fn invlpg(c: &mut Cpu, linear: u64, _: u64, _: u64) -> Result<u64, Fault> {
    c.flush_tlb_page(linear);
    Ok(0)
}

fn invpcid(c: &mut Cpu, kind: u64, low: u64, high: u64) -> Result<u64, Fault> {
    done(c.invalidate_pcid(kind, low as u128 | (high as u128) << 64))
}

fn hlt(c: &mut Cpu, _: u64, _: u64, _: u64) -> Result<u64, Fault> {
    c.state.halted = true;
    Ok(0)
}

/// PAUSEs after which a processor lets other threads of the host go first, while there are more processors than cores.
const PAUSES_CROWDED: u32 = 16;
/// The same while each has a core: only a thread outside the machine can be in the way of who is waited for.
const PAUSES: u32 = 1024;

/// A loop with PAUSE waits for another processor (SDM 2B, PAUSE), which perhaps has no core at the moment.
fn pause(c: &mut Cpu, _: u64, _: u64, _: u64) -> Result<u64, Fault> {
    if let Some(counter) = c.shared.counter.as_ref().filter(|_| c.shared.several()) {
        // The others do not run before this one stops: behind this instruction.
        counter.lower_limit(counter.count().wrapping_add(1));
        return Ok(0);
    }
    c.pauses = c.pauses.wrapping_add(1);
    let due = |every: u32| c.pauses.is_multiple_of(every);
    if due(PAUSES) || due(PAUSES_CROWDED) && c.shared.crowd.too_many() {
        std::thread::yield_now();
    }
    Ok(0)
}

/// Extensions or hints of MONITOR and MWAIT: RCX in 64-bit mode, else ECX (SDM 2B, their 64-bit exceptions).
fn wait_options(c: &Cpu, rcx: u64) -> u64 {
    if c.state.long64() { rcx } else { rcx & 0xffff_ffff }
}

fn monitor(c: &mut Cpu, linear: u64, rcx: u64, _: u64) -> Result<u64, Fault> {
    if wait_options(c, rcx) != 0 {
        return Err(Fault::GP0);
    }
    done(c.arm_monitor(linear))
}

fn mwait(c: &mut Cpu, rcx: u64, _: u64, _: u64) -> Result<u64, Fault> {
    if wait_options(c, rcx) & !1 != 0 {
        return Err(Fault::GP0);
    }
    c.wait_for_store(rcx & 1 != 0);
    Ok(0)
}

fn rdmsr(c: &mut Cpu, n: u64, _: u64, _: u64) -> Result<u64, Fault> {
    c.read_msr(n as u32)
}

fn wrmsr(c: &mut Cpu, n: u64, eax: u64, edx: u64) -> Result<u64, Fault> {
    done(c.write_msr(n as u32, eax & 0xffff_ffff | edx << 32))
}

fn rdtsc(c: &mut Cpu, _: u64, _: u64, _: u64) -> Result<u64, Fault> {
    if c.state.cr4 & cr4::TSD != 0 && c.state.cpl() != 0 {
        return Err(Fault::GP0);
    }
    Ok(c.tsc())
}

/// There are no performance counters: every number is out of range.
fn rdpmc(_: &mut Cpu, _: u64, _: u64, _: u64) -> Result<u64, Fault> {
    Err(Fault::GP0)
}

fn cpuid(c: &mut Cpu, leaf: u64, subleaf: u64, _: u64) -> Result<u64, Fault> {
    let d = Dynamic {
        apic_id: c.shared.topology.apic_id(c.index),
        topology: c.shared.topology,
        osxsave: c.state.cr4 & cr4::OSXSAVE != 0,
        xcr0: c.state.xcr0,
        apic_enabled: c.board.apic_base(c.index) & 1 << 11 != 0,
    };
    let [a, b, cx, dx] = c.model.cpuid(leaf as u32, subleaf as u32, &d);
    for (n, v) in [(reg::RAX, a), (reg::RBX, b), (reg::RCX, cx), (reg::RDX, dx)] {
        c.set_gpr(n, v as u64);
    }
    Ok(0)
}

fn check_fsgsbase(c: &mut Cpu, _: u64, _: u64, _: u64) -> Result<u64, Fault> {
    if c.state.cr4 & cr4::FSGSBASE == 0 { Err(Fault::UD) } else { Ok(0) }
}

fn write_base(c: &mut Cpu, seg: u64, v: u64, _: u64) -> Result<u64, Fault> {
    if c.state.cr4 & cr4::FSGSBASE == 0 {
        return Err(Fault::UD);
    }
    if c.set_base(seg as usize % 6, v) { Ok(0) } else { Err(Fault::GP0) }
}

fn set_ac(c: &mut Cpu, on: u64, _: u64, _: u64) -> Result<u64, Fault> {
    let ac = if on != 0 { flag::AC } else { 0 };
    if (c.state.rflags ^ ac) & flag::AC != 0 {
        c.state.rflags ^= flag::AC;
        if c.state.cr4 & cr4::SMAP != 0 || c.state.mode & mode::CPL != 0 {
            c.update_mode();
        }
    }
    Ok(0)
}

fn port_in(c: &mut Cpu, port: u64, bytes: u64, _: u64) -> Result<u64, Fault> {
    c.port_in(port as u16, bytes as u8)
}

fn port_out(c: &mut Cpu, port: u64, bytes: u64, v: u64) -> Result<u64, Fault> {
    done(c.port_out(port as u16, bytes as u8, v))
}

fn ins(c: &mut Cpu, io: u64, next: u64, _: u64) -> Result<u64, Fault> {
    done(c.string_io(StringIo::unpack(io), true, next))
}

fn outs(c: &mut Cpu, io: u64, next: u64, _: u64) -> Result<u64, Fault> {
    done(c.string_io(StringIo::unpack(io), false, next))
}

fn xgetbv(c: &mut Cpu, n: u64, _: u64, _: u64) -> Result<u64, Fault> {
    c.read_xcr(n as u32)
}

fn xsetbv(c: &mut Cpu, n: u64, eax: u64, edx: u64) -> Result<u64, Fault> {
    done(c.write_xcr(n as u32, eax & 0xffff_ffff | edx << 32))
}
