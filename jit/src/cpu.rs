//! One virtual processor's whole context.

use crate::board::Board;
use crate::cpuid::CpuModel;
use crate::fault::Fault;
use crate::mmu::second::SecondTlb;
use crate::mmu::tlb::{self, Tlb};
use crate::runtime::cache::BlockCache;
use crate::runtime::contexts::Contexts;
use crate::runtime::crossings::Crossings;
use crate::runtime::debugger::Debugger;
use crate::runtime::lockstep::Lockstep;
use crate::runtime::sampler::Sampler;
use crate::runtime::tier::Tier;
use crate::seeded::Seeded;
use crate::shared::{Mailbox, Shared};
use crate::state::{
    CpuState, FETCH_ENTRIES, FetchEntry, HEAT_ENTRIES, JumpCache, X87, attr, cr0, cr4, efer, flag, mode, reg,
};
use crate::system::mwait::{Line, Mwait};
use crate::vcpu::{Requests, VcpuHandle};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use zerocopy::FromZeros;

/// A virtual processor. The state comes first: generated code gets a pointer to it and helpers cast it back.
#[repr(C)]
pub struct Cpu {
    /// Registers and mode.
    pub state: CpuState,
    /// Number of this vCPU.
    pub index: u32,
    /// Memory and code maps.
    pub shared: Arc<Shared>,
    /// The machine.
    pub board: Arc<dyn Board>,
    /// Features.
    pub model: Arc<CpuModel>,
    /// The request word ([`crate::request`]).
    pub(crate) requests: Arc<Requests>,
    /// PDPTE registers of PAE paging.
    pub pdptes: [u64; 4],
    /// Translated blocks.
    pub blocks: BlockCache,
    /// Which translations of code addresses hold.
    pub contexts: Contexts,
    /// What page walks found.
    pub(crate) second: SecondTlb,
    /// What other threads left.
    pub mailbox: Arc<Mailbox>,
    /// Promotion of hot blocks to compiled code.
    pub tier: Tier,
    /// PAUSE instructions executed, wrapping.
    pub pauses: u32,
    /// Where RDRAND and RDSEED get their numbers, if not from the host.
    pub random: Option<Seeded>,
    /// MONITOR armed on this guest-physical line.
    pub monitor: Option<u64>,
    /// What the line held then.
    pub monitored: Option<Line>,
    /// What MWAIT waits for, while halted by it.
    pub mwait: Option<Mwait>,
    /// The fault that generated code leaves with.
    pub pending_fault: Option<Fault>,
    /// Why a shutdown (triple fault) happened, once it has.
    pub shutdown: Option<String>,
    /// Debug traps that are due after the current instruction (DR6 bits).
    pub pending_db: u64,
    /// What a debugger wants.
    pub debugger: Debugger,
    /// FERR# is asserted.
    pub fpu_error: bool,
    /// Compares generated code with the interpreter as it runs (`check=on`).
    pub lockstep: Option<Box<Lockstep>>,
    /// Accesses that cross a page.
    pub(crate) crossings: Crossings,
    /// Who tells which code is hot.
    pub(crate) sampler: Option<Arc<Sampler>>,
}

impl Cpu {
    /// One more processor, in an undefined state; call `reset` (in [`crate::system::reset`]) next.
    pub fn new(index: u32, shared: Arc<Shared>, board: Arc<dyn Board>, model: Arc<CpuModel>) -> Box<Self> {
        let requests = Arc::new(Requests::default());
        let mailbox = shared.join(VcpuHandle { requests: requests.clone() });
        let mut state = CpuState::zeroed();
        state.requests = &raw const requests.attention;
        state.counter = shared.counter.as_ref().map_or(std::ptr::null(), Arc::as_ptr);
        Box::new(Self {
            state,
            index,
            shared,
            board,
            model,
            requests,
            pdptes: [0; 4],
            blocks: BlockCache::new(),
            contexts: Contexts::default(),
            second: SecondTlb::default(),
            mailbox,
            tier: Tier::default(),
            pauses: 0,
            random: None,
            monitor: None,
            monitored: None,
            mwait: None,
            pending_fault: None,
            shutdown: None,
            pending_db: 0,
            debugger: Debugger::default(),
            fpu_error: false,
            lockstep: None,
            crossings: Crossings::default(),
            sampler: None,
        })
    }

    /// General register `n`.
    pub fn gpr(&self, n: usize) -> u64 {
        self.state.vals[n & 15]
    }

    /// Sets general register `n`, all 64 bits.
    pub fn set_gpr(&mut self, n: usize, v: u64) {
        self.state.vals[n & 15] = v;
    }

    /// RFLAGS, complete.
    pub fn rflags(&self) -> u64 {
        let s = &self.state;
        s.rflags & !flag::ARITH | 2 | crate::ir::flags::all(s.cc_op, s.cc_res, s.cc_src)
    }

    /// Sets RFLAGS, complete (reserved bits fixed), and the mode word's share of it.
    pub fn set_rflags(&mut self, v: u64) {
        const DEFINED: u64 = 0x3f_7fd5;
        self.set_arith_flags(v);
        self.state.rflags = v & DEFINED & !flag::ARITH | 2;
        self.update_mode();
    }

    /// Sets the six arithmetic flags from a word in RFLAGS layout.
    pub fn set_arith_flags(&mut self, v: u64) {
        self.state.cc_op = 0;
        self.state.cc_res = 0;
        self.state.cc_src = v & flag::ARITH;
    }

    /// Guest's time stamp counter.
    pub fn tsc(&self) -> u64 {
        self.board.tsc().wrapping_add(self.state.msr.tsc_offset)
    }

    /// Works the mode word out anew. Call after any change of what it holds: CR0, CR4, EFER, RFLAGS.VM/AC/TF/IOPL,
    /// segments, MXCSR masks, XCR0, DR7, CPL. (CPL is SS.DPL; 0 in real mode, 3 in VM86.)
    pub fn update_mode(&mut self) {
        let s = &mut self.state;
        let bit = |cond: bool, b: u32| if cond { b } else { 0 };
        let pe = s.cr0 & cr0::PE != 0;
        let vm86 = pe && s.rflags & flag::VM != 0;
        let lma = s.efer & efer::LMA != 0;
        let cpl = if !pe {
            0
        } else if vm86 {
            3
        } else {
            s.segs[reg::SS].dpl()
        };
        let cs = s.segs[reg::CS].attributes;
        let cs64 = lma && cs & attr::L != 0;
        // 64-bit code looks at no segment but FS and GS, and at their bases only: nothing of the others may tell its
        // mode words apart, or the kernel would be translated once for each way into it.
        let flat = cs64 || flat_segments(&s.segs, pe);
        let fsgs = cs64
            || [reg::FS, reg::GS].iter().all(|n| {
                let g = &s.segs[*n];
                g.present() && g.limit == u32::MAX && g.attributes & (attr::CODE | attr::RW | attr::EC) == attr::RW
            });
        let ac = s.rflags & flag::AC != 0;
        let mmu = if cpl == 3 {
            tlb::USER
        } else if s.cr4 & cr4::SMAP != 0 && !ac {
            tlb::SUPERVISOR_SMAP
        } else {
            tlb::SUPERVISOR
        };
        let unmasked = !(s.mxcsr >> 7) & 0x3f != 0;
        s.mode = bit(cs64, mode::CS64)
            | bit(!cs64 && cs & attr::DB != 0, mode::CS32)
            | bit(!cs64 && s.segs[reg::SS].attributes & attr::DB != 0, mode::SS32)
            | bit(pe, mode::PE)
            | bit(vm86, mode::VM86)
            | bit(lma, mode::LMA)
            | (cpl as u32) << mode::CPL_SHIFT
            | bit(flat, mode::FLAT)
            | bit(fsgs, mode::FSGS_FLAT)
            | bit(s.cr0 & cr0::TS != 0, mode::TS)
            | bit(s.cr0 & cr0::EM != 0, mode::EM)
            | bit(s.cr0 & cr0::MP != 0, mode::MP)
            | bit(s.cr4 & cr4::OSFXSR != 0, mode::OSFXSR)
            | bit(s.cr4 & cr4::OSXSAVE != 0, mode::OSXSAVE)
            | bit(unmasked, mode::FP_UNMASKED)
            | bit(s.cr0 & cr0::AM != 0 && ac && cpl == 3, mode::ALIGN_CHECK)
            | bit(s.rflags & flag::TF != 0, mode::TF)
            | bit(s.dr[7] & 0xff != 0 || self.debugger.alone(), mode::STEP)
            | bit(s.xcr0 & 6 == 6, mode::AVX)
            | bit(self.shared.counter.is_some(), mode::COUNTED)
            | (mmu as u32) << mode::MMU_SHIFT;
        self.update_jump_check();
    }

    fn update_jump_check(&mut self) {
        let word = self.state.mode;
        self.state.jump_check = (self.contexts.generation(word) as u64) << 32 | word as u64;
    }

    /// Drops all translations of addresses, global ones too (CR0/CR4 changes, INVPCID type 2).
    pub fn flush_tlb_all(&mut self) {
        self.state.tlb.flush_all();
        self.second.flush_all();
        self.mappings_changed();
    }

    /// Drops the current address space's translations that are not global (CR3 write).
    pub fn flush_tlb_non_global(&mut self) {
        self.state.tlb.flush_non_global();
        let counted_on = self.contexts.forget_local();
        self.code_addresses_changed(counted_on);
    }

    /// CR3 was written: from PCID `old` to `new`, whose translations stay if `keep` and there is no other processor.
    ///
    /// That they go where there is one is more than the architecture asks for. Linux 6.1.176 and 6.12.95, for two, read
    /// whether an address space needs a flush some instructions before they tell others that it is about to run: if another
    /// processor unmaps something of it in between, it runs with what it left. Silicon has that moment too (7.2 is mended),
    /// but where processors are threads the host stretches it: `tools/stress` met it within minutes.
    pub fn switch_address_space(&mut self, old: u16, new: u16, keep: bool) {
        self.state.tlb.flush_non_global();
        let keep = keep && !self.shared.several();
        let counted_on = self.contexts.switch(old, new, keep);
        self.code_addresses_changed(counted_on);
    }

    /// Drops the translation of one page (INVLPG).
    pub fn flush_tlb_page(&mut self, linear: u64) {
        self.state.tlb.flush_page(linear);
        self.second.flush_page(linear, self.contexts.address_space());
        if self.contexts.fetched_from(linear) {
            self.mappings_changed();
        } else {
            self.note_once();
        }
    }

    /// Linear addresses may mean other memory now: what was found by them is stale.
    pub fn mappings_changed(&mut self) {
        let counted_on = self.contexts.forget_all();
        self.code_addresses_changed(counted_on);
    }

    /// Code is gone that any linear address may have led to.
    pub fn code_gone(&mut self) {
        self.state.forget_places();
        self.mappings_changed();
    }

    /// What is found by linear address is not what it was. `counted_on`: generations went on; else they started anew, and
    /// nothing may be left that carries an old one.
    fn code_addresses_changed(&mut self, counted_on: bool) {
        self.note_once();
        if !counted_on {
            self.state.forget_jumps();
            self.state.fetches.fill(FetchEntry::new(0, 0, 0));
            self.blocks.forget_addresses();
            self.second.clear();
        }
        self.update_jump_check();
    }

    /// Loads the PDPTE registers from memory at CR3 (PAE paging without long mode, SDM 3A 4.4.1). `false`: a reserved
    /// bit is set, the instruction that asked raises #GP(0).
    pub fn load_pdptes(&mut self) -> bool {
        const RESERVED: u64 = !((1 << crate::mmu::walk::PHYS_BITS) - 1) | 0x1e6;
        let base = self.state.cr3 & 0xffff_ffe0;
        let base = base & self.shared.address_lines();
        let entries: [u64; 4] = std::array::from_fn(|n| self.shared.ram.load_entry(base + 8 * n as u64, 8));
        if entries.iter().any(|e| e & 1 != 0 && e & RESERVED != 0) {
            return false;
        }
        self.pdptes = entries;
        true
    }

    /// What other threads use to get this processor's attention.
    pub fn handle(&self) -> VcpuHandle {
        VcpuHandle { requests: self.requests.clone() }
    }

    /// Something that held requests off was lifted (IF set, NMIs unblocked): generated code is to leave for them.
    pub fn reconsider_requests(&self) {
        if self.requested() != 0 {
            self.requests.attention.store(1, Ordering::Relaxed);
        }
    }

    /// The run loop has something to look at that a closed window would keep out. In counted execution it has looked already,
    /// behind the instruction that opened the window: only so does the count not depend on when others ask.
    pub fn request_waits(&self) -> bool {
        !self.is_counted()
            && self.state.rflags & crate::state::flag::IF != 0
            && self.requests.attention.load(Ordering::Relaxed) != 0
    }

    /// Instructions are counted.
    #[inline(always)]
    pub fn is_counted(&self) -> bool {
        self.state.mode & mode::COUNTED != 0
    }

    /// Counts `instructions`, in counted execution.
    #[inline(always)]
    pub fn count_done(&self, instructions: u64) {
        if let Some(counter) = &self.shared.counter {
            counter.add(instructions);
        }
    }

    /// In counted execution, the run loop is to look around right behind the instruction at hand: it raised a request, or
    /// brought the limit nearer.
    #[inline(always)]
    pub fn is_cut(&self) -> bool {
        self.is_counted()
            && (self.requests.attention.load(Ordering::Relaxed) != 0
                || self.shared.counter.as_ref().is_some_and(|c| c.was_cut()))
    }

    /// Other threads want something of this vCPU.
    pub fn requested(&self) -> u32 {
        self.requests.bits.load(Ordering::Relaxed)
    }
}

/// CS, DS, ES and SS are flat, the data segments writable.
fn flat_segments(segs: &[crate::state::Segment; 6], pe: bool) -> bool {
    let data = [reg::ES, reg::SS, reg::DS].iter().all(|n| {
        let g = &segs[*n];
        g.flat() && (!pe || g.attributes & (attr::CODE | attr::RW) == attr::RW)
    });
    data && segs[reg::CS].flat()
}

impl CpuState {
    /// All zero, pointers null.
    pub fn zeroed() -> Self {
        Self {
            vals: [0; _],
            rip: 0,
            code_base: 0,
            cc_op: 0,
            mode: 0,
            cc_res: 0,
            cc_src: 0,
            rflags: 2,
            helper_result: 0,
            host_rsp: 0,
            requests: std::ptr::null(),
            counter: std::ptr::null(),
            code_stale: 0,
            zero: 0,
            branch_rip: 0,
            exit_link: 0,
            exit_page: 0,
            jump_check: 1 << 32,
            jump_cache: JumpCache::new_box_zeroed().expect("a size that fits, or no memory at all"),
            fetches: <[FetchEntry; FETCH_ENTRIES]>::new_box_zeroed().expect("a size that fits, or no memory at all"),
            code_epoch: 0,
            heat: [0; HEAT_ENTRIES],
            segs: Default::default(),
            ldtr: Default::default(),
            tr: Default::default(),
            gdtr: Default::default(),
            idtr: Default::default(),
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            xcr0: 1,
            dr: [0; 8],
            mxcsr: 0x1f80,
            shadow: 0,
            halted: false,
            nmi_blocked: false,
            vecs: [0; _],
            tlb: Tlb::new(),
            x87: X87 { regs: [0; 8], fcw: 0x40, fsw: 0, tags: 0, fop: 0, fip: 0, fdp: 0, fcs: 0, fds: 0 },
            x87_lent: 0,
            x87_image: [0; 112],
            msr: Default::default(),
        }
    }
}
