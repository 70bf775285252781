//! The processor's registers and mode. `#[repr(C)]`: generated code reads and writes it by offset.

use crate::counter::Counter;
use crate::mmu::tlb::Tlb;
use serde::{Deserialize, Serialize};
use std::sync::atomic::AtomicU32;
use zerocopy::FromZeros;

/// General registers and instruction-local temporaries share one index space, see [`crate::ir::Val`].
pub const VALS: usize = 64;
/// Vector values, 128 bits each: the low halves of YMM0 to YMM15, their high halves, temporaries in the same order, see
/// [`crate::ir::VVal`]; behind them the places where helpers find operands, see [`crate::helpers::vec`].
pub const VECS: usize = 70;
/// From the low half of a vector to its high half.
pub const HIGH: usize = 16;

/// Register numbers, as the instruction encoding counts them.
pub mod reg {
    #![allow(missing_docs)]
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
    /// Segment registers.
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
}

/// RFLAGS bits (SDM 1, 3.4.3).
pub mod flag {
    #![allow(missing_docs)]
    pub const CF: u64 = 1;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const VIF: u64 = 1 << 19;
    pub const VIP: u64 = 1 << 20;
    pub const ID: u64 = 1 << 21;
    /// The six arithmetic flags, which are kept lazily.
    pub const ARITH: u64 = CF | PF | AF | ZF | SF | OF;
}

/// CR0 bits.
pub mod cr0 {
    #![allow(missing_docs)]
    pub const PE: u64 = 1;
    pub const MP: u64 = 1 << 1;
    pub const EM: u64 = 1 << 2;
    pub const TS: u64 = 1 << 3;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
}

/// CR4 bits.
pub mod cr4 {
    #![allow(missing_docs)]
    pub const VME: u64 = 1;
    pub const PVI: u64 = 1 << 1;
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const MCE: u64 = 1 << 6;
    pub const PGE: u64 = 1 << 7;
    pub const PCE: u64 = 1 << 8;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const UMIP: u64 = 1 << 11;
    pub const LA57: u64 = 1 << 12;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const PCIDE: u64 = 1 << 17;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
    pub const PKE: u64 = 1 << 22;
}

/// IA32_EFER bits.
pub mod efer {
    #![allow(missing_docs)]
    pub const SCE: u64 = 1;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
}

/// A segment register: selector and hidden part.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// Linear base.
    pub base: u64,
    /// Limit in bytes, granularity applied.
    pub limit: u32,
    /// Descriptor bits 40..=55: type 3:0, S 4, DPL 6:5, P 7, AVL 12, L 13, D/B 14, G 15. A null selector clears P.
    pub attributes: u16,
    /// Visible selector.
    pub selector: u16,
}

/// Attribute bits of [`Segment`].
pub mod attr {
    #![allow(missing_docs)]
    pub const ACCESSED: u16 = 1;
    /// Data: writable. Code: readable.
    pub const RW: u16 = 2;
    /// Data: expand-down. Code: conforming.
    pub const EC: u16 = 4;
    pub const CODE: u16 = 8;
    pub const S: u16 = 1 << 4;
    pub const P: u16 = 1 << 7;
    pub const L: u16 = 1 << 13;
    pub const DB: u16 = 1 << 14;
    pub const G: u16 = 1 << 15;
    pub const DPL_SHIFT: u16 = 5;
}

impl Segment {
    /// Descriptor privilege level.
    pub fn dpl(&self) -> u8 {
        (self.attributes >> attr::DPL_SHIFT) as u8 & 3
    }
    /// Present (a null selector is not).
    pub fn present(&self) -> bool {
        self.attributes & attr::P != 0
    }
    /// Base 0, limit 4 GiB, expand-up: accesses need no check beyond the rights.
    pub fn flat(&self) -> bool {
        self.base == 0
            && self.limit == u32::MAX
            && self.present()
            && (self.attributes & attr::CODE != 0 || self.attributes & attr::EC == 0)
    }
}

/// GDTR or IDTR.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableRegister {
    /// Linear base.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// x87 state in XSAVE's terms.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct X87 {
    /// Physical registers R0..R7 (not the stack view): 80-bit values in the low 10 bytes. MMn is the mantissa of Rn.
    pub regs: [u128; 8],
    /// Control word.
    pub fcw: u16,
    /// Status word with TOP in bits 13:11.
    pub fsw: u16,
    /// Abridged tag: bit n set = physical register n not empty.
    pub tags: u8,
    /// Last opcode (11 bits).
    pub fop: u16,
    /// Last instruction pointer.
    pub fip: u64,
    /// Last operand pointer.
    pub fdp: u64,
    /// Selector of the last instruction.
    pub fcs: u16,
    /// Selector of the last operand.
    pub fds: u16,
}

/// MSRs kept as plain values. Others live where their meaning is (segments, APIC, CR-like fields).
#[repr(C)]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Msrs {
    /// IA32_STAR.
    pub star: u64,
    /// IA32_LSTAR.
    pub lstar: u64,
    /// IA32_CSTAR.
    pub cstar: u64,
    /// IA32_FMASK.
    pub sfmask: u64,
    /// IA32_KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// IA32_TSC_AUX.
    pub tsc_aux: u64,
    /// IA32_SYSENTER_CS.
    pub sysenter_cs: u64,
    /// IA32_SYSENTER_ESP.
    pub sysenter_esp: u64,
    /// IA32_SYSENTER_EIP.
    pub sysenter_eip: u64,
    /// IA32_PAT.
    pub pat: u64,
    /// IA32_MISC_ENABLE.
    pub misc_enable: u64,
    /// Added to the board's counter to give the guest's TSC.
    pub tsc_offset: u64,
    /// IA32_TSC_ADJUST.
    pub tsc_adjust: u64,
    /// IA32_SPEC_CTRL.
    pub spec_ctrl: u64,
    /// IA32_XSS.
    pub xss: u64,
    /// IA32_MTRR_DEF_TYPE.
    pub mtrr_def_type: u64,
    /// Fixed-range MTRRs in MSR order.
    pub mtrr_fixed: [u64; 11],
    /// Variable-range MTRRs: base and mask pairs.
    pub mtrr_variable: [u64; 16],
    /// IA32_MCG_STATUS, IA32_MCG_CTL.
    pub mcg: [u64; 2],
    /// Machine-check banks: CTL, STATUS, ADDR, MISC each.
    pub mc_banks: [[u64; 4]; 10],
}

/// Entries of the jump cache: a compiler's run goes through more than a hundred thousand blocks.
pub const JUMP_ENTRIES: usize = 262_144;

/// The jump cache. Entries lie in pairs, which share a line of the host's caches.
#[repr(C, align(64))]
#[derive(FromZeros)]
pub struct JumpCache {
    entries: [JumpEntry; JUMP_ENTRIES],
}

/// Where generated code for a RIP starts; read by generated code.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromZeros)]
pub struct JumpEntry {
    /// RIP.
    pub rip: u64,
    /// [`CpuState::jump_check`] it is valid under.
    pub check: u64,
    /// Host address.
    pub code: u64,
    /// Guest-physical page of the code, with [`CpuState::code_epoch`]: if `check` has another generation, and RIP's page is
    /// that one now, it is valid still. [`JumpEntry::NOWHERE`]: it lies on two pages.
    pub place: u64,
}

impl JumpEntry {
    /// What is no page.
    pub const NOWHERE: u64 = u64::MAX;
    const NONE: Self = Self { rip: 0, check: 0, code: 0, place: 0 };
}

/// Entries of the cache of pages that code is fetched from.
pub const FETCH_ENTRIES: usize = 4096;

/// A page that code was fetched from; read by generated code's routines.
#[repr(C)]
#[derive(Clone, Copy, FromZeros)]
pub struct FetchEntry {
    /// Linear address.
    pub page: u64,
    /// Guest-physical address.
    pub gpa: u64,
    /// Generation and MMU index that this holds under, as in [`CpuState::jump_check`].
    pub check: u64,
    unused: u64,
}

impl FetchEntry {
    /// Code of the page `page` comes from that at `gpa`, under `check`.
    pub fn new(page: u64, gpa: u64, check: u64) -> Self {
        Self { page, gpa, check, unused: 0 }
    }
}

/// The bits of [`CpuState::jump_check`] that tell what linear addresses mean.
pub const GENERATION: u64 = !0xffff_ffff | mode::MMU as u64;

/// Entry of a linear address in the cache of pages that code is fetched from.
pub const fn fetch_slot(linear: u64) -> usize {
    (linear >> 12) as usize & (FETCH_ENTRIES - 1)
}

/// Counters of runs of baseline code.
pub const HEAT_ENTRIES: usize = 16384;

/// Slot of a RIP in the jump cache.
pub const fn jump_slot(rip: u64) -> usize {
    (rip ^ rip >> 12) as usize & (JUMP_ENTRIES - 1)
}

/// Everything generated code touches. What it touches most comes first, within reach of short displacements.
#[repr(C)]
pub struct CpuState {
    /// The request word that other threads set ([`crate::request`]).
    pub requests: *const AtomicU32,
    /// Lazy flags: what made them, see [`crate::ir::flags::CcOp`].
    pub cc_op: u32,
    /// The mode word: all that lift reads of the mode, see [`mode`].
    pub mode: u32,
    /// Lazy flags: result.
    pub cc_res: u64,
    /// Lazy flags: source.
    pub cc_src: u64,
    /// General registers 0..=15, then temporaries of the current instruction.
    pub vals: [u64; VALS],
    /// RIP/EIP/IP: offset in CS of the instruction being executed (at block ends: of the next).
    pub rip: u64,
    /// Page that RIPs of relative code count from ([`mode::RELATIVE`]): linear address of the page RIP was on at the start of
    /// the block. Who goes from block to block sets it, except on one page.
    pub code_base: u64,
    /// RFLAGS without the six arithmetic flags (bit 1 set).
    pub rflags: u64,
    /// Result slot of helpers called from generated code.
    pub helper_result: u64,
    /// Host stack pointer of the entry trampoline, for exits that abandon a frame.
    pub host_rsp: u64,
    /// The counter of counted execution ([`mode::COUNTED`]); else null.
    pub counter: *const Counter,
    /// The request bits were seen by generated code, or translated code was dropped: leave at the next boundary.
    pub code_stale: u32,
    /// Always 0: what generated code adds to a constant to hide it from the optimiser.
    pub zero: u64,
    /// RIP of the last indirect branch of 64-bit code that came to the dispatcher; 0: of none.
    pub branch_rip: u64,
    /// Number of the link that generated code left through.
    pub exit_link: u32,
    /// Address of the [`crate::runtime::pages::PageCheck`] that generated code left by.
    pub exit_page: u64,
    /// What entries of the jump cache must carry to be valid now: generation of the mappings and the mode word.
    pub jump_check: u64,
    /// Generated code by RIP. Apart from the state: of its pages only those are there that a guest's code needs.
    pub jump_cache: Box<JumpCache>,
    /// Pages that code is fetched from.
    pub fetches: Box<[FetchEntry; FETCH_ENTRIES]>,
    /// Counts the times that entries of the jump cache became invalid whatever is mapped, in the bits of
    /// [`JumpEntry::place`] that no address of a page has.
    pub code_epoch: u64,
    /// Runs that baseline code has left before it asks to be compiled better; blocks share them by number.
    pub heat: [i32; HEAT_ENTRIES],
    /// ES, CS, SS, DS, FS, GS.
    pub segs: [Segment; 6],
    /// LDTR.
    pub ldtr: Segment,
    /// TR.
    pub tr: Segment,
    /// GDTR.
    pub gdtr: TableRegister,
    /// IDTR.
    pub idtr: TableRegister,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// XCR0.
    pub xcr0: u64,
    /// DR0..DR3, (4, 5 unused), DR6, DR7.
    pub dr: [u64; 8],
    /// The guest's MXCSR (control bits and sticky flags as last read back).
    pub mxcsr: u32,
    /// Interrupts are held off for one instruction (STI, MOV SS): [`shadow`] bits.
    pub shadow: u32,
    /// HLT executed, waiting for an interrupt.
    pub halted: bool,
    /// NMI being handled: blocked until IRET.
    pub nmi_blocked: bool,
    /// Vector registers, then vector temporaries.
    pub vecs: [u128; VECS],
    /// Softmmu TLB.
    pub tlb: Tlb,
    /// x87 and MMX.
    pub x87: X87,
    /// Not 0: the host's x87 holds the registers, and [`CpuState::x87`] only control word and pointers. So it is in
    /// generated code alone.
    pub x87_lent: u32,
    /// What generated code loads the host's x87 from, as FRSTOR reads it.
    pub x87_image: [u8; 112],
    /// MSRs.
    pub msr: Msrs,
}

/// Bits of [`CpuState::shadow`].
pub mod shadow {
    /// After STI: maskable interrupts wait for one instruction.
    pub const STI: u32 = 1;
    /// After MOV SS or POP SS: interrupts, NMIs and debug traps wait for one instruction.
    pub const MOV_SS: u32 = 2;
}

/// Bits of the mode word ([`CpuState::mode`]). Part of the key of translated code.
pub mod mode {
    /// Code segment is 64-bit.
    pub const CS64: u32 = 1;
    /// Code segment's D bit: 32-bit default sizes.
    pub const CS32: u32 = 1 << 1;
    /// Stack segment's B bit: ESP rather than SP (in 64-bit mode: ignored, RSP).
    pub const SS32: u32 = 1 << 2;
    /// Protected mode (CR0.PE).
    pub const PE: u32 = 1 << 3;
    /// Virtual-8086 mode.
    pub const VM86: u32 = 1 << 4;
    /// Long mode active (EFER.LMA): compatibility mode when CS64 is clear.
    pub const LMA: u32 = 1 << 5;
    /// Privilege level, two bits.
    pub const CPL_SHIFT: u32 = 6;
    /// Both bits of the privilege level.
    pub const CPL: u32 = 3 << CPL_SHIFT;
    /// DS, ES and SS are flat and writable, CS flat: no segmentation work for them.
    pub const FLAT: u32 = 1 << 8;
    /// CR0.TS.
    pub const TS: u32 = 1 << 9;
    /// CR0.EM.
    pub const EM: u32 = 1 << 10;
    /// CR0.MP.
    pub const MP: u32 = 1 << 11;
    /// CR4.OSFXSR.
    pub const OSFXSR: u32 = 1 << 12;
    /// CR4.OSXSAVE.
    pub const OSXSAVE: u32 = 1 << 13;
    /// Some SIMD floating-point exception is unmasked in MXCSR: vector FP ops go through the checking path.
    pub const FP_UNMASKED: u32 = 1 << 14;
    /// Alignment checks are on (CR0.AM, EFLAGS.AC, CPL 3).
    pub const ALIGN_CHECK: u32 = 1 << 15;
    /// RFLAGS.TF: one instruction a block.
    pub const TF: u32 = 1 << 16;
    /// MMU index, two bits, see [`crate::mmu::tlb`].
    pub const MMU_SHIFT: u32 = 17;
    /// Both bits of the MMU index.
    pub const MMU: u32 = 3 << MMU_SHIFT;
    /// XCR0 enables SSE and AVX state.
    pub const AVX: u32 = 1 << 19;
    /// An instruction breakpoint is armed in DR7 or by the debugger: one instruction a block.
    pub const STEP: u32 = 1 << 20;
    /// Segments FS and GS are usable without checks (64-bit mode, or flat limit and writable).
    pub const FSGS_FLAT: u32 = 1 << 21;
    /// Instructions are counted ([`crate::counter`]); the same all the time.
    pub const COUNTED: u32 = 1 << 22;
    /// Of translated code only, not of the state: its RIPs are offsets from the page it runs at, [`super::CpuState::code_base`],
    /// so that it serves wherever its page is mapped.
    pub const RELATIVE: u32 = 1 << 30;
}

impl CpuState {
    /// Generated code for the RIP starts at `code`, on the guest-physical page `page` unless it crosses into a second. What
    /// was known in its place moves to the other of the pair.
    pub fn note_jump(&mut self, code: u64, page: Option<u64>) {
        let slot = jump_slot(self.rip);
        let entries = &mut self.jump_cache.entries;
        let place = page.map_or(JumpEntry::NOWHERE, |page| page | self.code_epoch);
        let old =
            std::mem::replace(&mut entries[slot], JumpEntry { rip: self.rip, check: self.jump_check, code, place });
        if old.rip != self.rip && old.check == self.jump_check {
            entries[slot ^ 1] = old;
        }
    }
    /// Nothing is known of generated code for `rip` any more.
    pub fn forget_jump(&mut self, rip: u64) {
        for slot in [jump_slot(rip), jump_slot(rip) ^ 1] {
            let e = &mut self.jump_cache.entries[slot];
            if e.rip == rip {
                *e = JumpEntry::NONE;
            }
        }
    }
    /// Nothing is known of generated code any more.
    pub fn forget_jumps(&mut self) {
        self.jump_cache.entries.fill(JumpEntry::NONE);
    }
    /// What is known of generated code under another generation counts for nothing, whatever is mapped.
    pub fn forget_places(&mut self) {
        // The 24 bits that addresses of pages do not have (SDM 3A 4.1.4: at most 52 of them).
        const LOW: u64 = 0xfff;
        let count = (self.code_epoch & LOW | self.code_epoch >> 40) + 1;
        self.code_epoch = count & LOW | count >> 12 << 52;
        if self.code_epoch == 0 {
            self.forget_jumps();
        }
    }
    /// Current privilege level.
    pub fn cpl(&self) -> u8 {
        ((self.mode & mode::CPL) >> mode::CPL_SHIFT) as u8
    }
    /// MMU index of data accesses.
    pub fn mmu_index(&self) -> usize {
        ((self.mode & mode::MMU) >> mode::MMU_SHIFT) as usize
    }
    /// 64-bit mode (not compatibility mode).
    pub fn long64(&self) -> bool {
        self.mode & mode::CS64 != 0
    }
    /// Linear address of the current instruction.
    pub fn linear_rip(&self) -> u64 {
        if self.long64() { self.rip } else { self.segs[reg::CS].base.wrapping_add(self.rip) & 0xffff_ffff }
    }
}
