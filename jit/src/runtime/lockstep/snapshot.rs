//! The architectural state of a processor, without what only speeds it up (TLB, caches).

use crate::cpu::Cpu;
use crate::state::{HIGH, Msrs, Segment, TableRegister, X87};
use crate::system::mwait::{Line, Mwait};

/// Guest-visible vector registers.
const VECTORS: usize = 2 * HIGH;
const GPRS: [&str; 16] =
    ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];

/// A processor's state. Compared by meaning: flags as RFLAGS has them, however they are kept.
#[derive(Clone)]
pub struct Snapshot {
    gprs: [u64; 16],
    rip: u64,
    /// RFLAGS, complete.
    rflags: u64,
    lazy: (u32, u64, u64),
    stored_flags: u64,
    mode: u32,
    jump_check: u64,
    segs: [Segment; 6],
    tables: ([Segment; 2], [TableRegister; 2]),
    /// CR0, CR2, CR3, CR4, EFER, XCR0.
    control: [u64; 6],
    dr: [u64; 8],
    mxcsr: u32,
    shadow: u32,
    halted: bool,
    nmi_blocked: bool,
    vecs: [u128; VECTORS],
    x87: X87,
    msr: Msrs,
    pending_db: u64,
    monitor: (Option<u64>, Option<Line>, Option<Mwait>),
}

impl Snapshot {
    /// The state now.
    pub fn take(cpu: &mut Cpu) -> Box<Self> {
        cpu.sync_mxcsr();
        let s = &cpu.state;
        Box::new(Self {
            gprs: std::array::from_fn(|n| s.vals[n]),
            rip: s.rip,
            rflags: cpu.rflags(),
            lazy: (s.cc_op, s.cc_res, s.cc_src),
            stored_flags: s.rflags,
            mode: s.mode,
            jump_check: s.jump_check,
            segs: s.segs,
            tables: ([s.ldtr, s.tr], [s.gdtr, s.idtr]),
            control: [s.cr0, s.cr2, s.cr3, s.cr4, s.efer, s.xcr0],
            dr: s.dr,
            mxcsr: s.mxcsr,
            shadow: s.shadow,
            halted: s.halted,
            nmi_blocked: s.nmi_blocked,
            vecs: std::array::from_fn(|n| s.vecs[n]),
            x87: s.x87,
            msr: s.msr.clone(),
            pending_db: cpu.pending_db,
            monitor: (cpu.monitor, cpu.monitored, cpu.mwait),
        })
    }

    /// Puts the state back. Mappings must not have changed since.
    pub fn restore(&self, cpu: &mut Cpu) {
        let s = &mut cpu.state;
        s.vals[..16].copy_from_slice(&self.gprs);
        s.rip = self.rip;
        (s.cc_op, s.cc_res, s.cc_src) = self.lazy;
        s.rflags = self.stored_flags;
        s.mode = self.mode;
        s.jump_check = self.jump_check;
        s.segs = self.segs;
        ([s.ldtr, s.tr], [s.gdtr, s.idtr]) = self.tables;
        [s.cr0, s.cr2, s.cr3, s.cr4, s.efer, s.xcr0] = self.control;
        s.dr = self.dr;
        s.mxcsr = self.mxcsr;
        s.shadow = self.shadow;
        s.halted = self.halted;
        s.nmi_blocked = self.nmi_blocked;
        s.vecs[..VECTORS].copy_from_slice(&self.vecs);
        s.x87 = self.x87;
        s.msr = self.msr.clone();
        cpu.pending_db = self.pending_db;
        (cpu.monitor, cpu.monitored, cpu.mwait) = self.monitor;
        cpu.load_mxcsr();
    }

    /// What differs: name, value here, value there.
    pub fn differences(&self, other: &Self) -> Vec<(String, String, String)> {
        let mut out = Vec::new();
        let mut field = |name: String, a: &dyn std::fmt::Debug, b: &dyn std::fmt::Debug| {
            let (a, b) = (format!("{a:#x?}"), format!("{b:#x?}"));
            if a != b {
                out.push((name, one_line(&a), one_line(&b)));
            }
        };
        for (n, name) in GPRS.iter().enumerate() {
            field((*name).into(), &self.gprs[n], &other.gprs[n]);
        }
        field("rip".into(), &self.rip, &other.rip);
        field("rflags".into(), &self.rflags, &other.rflags);
        field("mode".into(), &self.mode, &other.mode);
        for (n, name) in ["es", "cs", "ss", "ds", "fs", "gs"].iter().enumerate() {
            field((*name).into(), &self.segs[n], &other.segs[n]);
        }
        field("ldtr, tr, gdtr, idtr".into(), &self.tables, &other.tables);
        for (n, name) in ["cr0", "cr2", "cr3", "cr4", "efer", "xcr0"].iter().enumerate() {
            field((*name).into(), &self.control[n], &other.control[n]);
        }
        field("dr".into(), &self.dr, &other.dr);
        field("mxcsr".into(), &self.mxcsr, &other.mxcsr);
        field("interrupt shadow".into(), &self.shadow, &other.shadow);
        field("halted".into(), &self.halted, &other.halted);
        field("NMIs blocked".into(), &self.nmi_blocked, &other.nmi_blocked);
        for n in 0..VECTORS {
            let name = if n < HIGH { format!("xmm{n}") } else { format!("ymm{} high", n - HIGH) };
            field(name, &self.vecs[n], &other.vecs[n]);
        }
        field("x87".into(), &self.x87, &other.x87);
        field("MSRs".into(), &self.msr, &other.msr);
        field("pending #DB".into(), &self.pending_db, &other.pending_db);
        field("monitored line".into(), &self.monitor, &other.monitor);
        out
    }

    /// The general registers and flags, for reports.
    pub fn registers(&self) -> String {
        let named = GPRS.iter().zip(self.gprs).map(|(name, v)| format!("{name}={v:#x}"));
        let rest = [format!("rflags={:#x}", self.rflags), format!("mxcsr={:#x}", self.mxcsr)];
        named.chain(rest).collect::<Vec<_>>().join(" ")
    }
}

impl PartialEq for Snapshot {
    /// Without the fields that only hold the same in another way.
    fn eq(&self, o: &Self) -> bool {
        self.gprs == o.gprs
            && (self.rip, self.rflags, self.mode, self.mxcsr) == (o.rip, o.rflags, o.mode, o.mxcsr)
            && (self.segs, self.tables, self.control, self.dr) == (o.segs, o.tables, o.control, o.dr)
            && (self.shadow, self.halted, self.nmi_blocked) == (o.shadow, o.halted, o.nmi_blocked)
            && (self.pending_db, self.monitor) == (o.pending_db, o.monitor)
            && self.vecs == o.vecs
            && self.x87 == o.x87
            && self.msr == o.msr
    }
}

/// Pretty printing over several lines, on one.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
