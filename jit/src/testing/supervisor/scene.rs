//! The machines that lines start from, and all of their state that lines can name or must leave alone.

use crate::cpu::Cpu;
use crate::state::{HIGH, Msrs, Segment, TableRegister, X87, reg};
use crate::system::testing::place::*;
use crate::system::testing::{Guest, descriptor, gate, sel};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Physical memory that lines see: tables, code and stacks; then [`DATA`].
const WINDOWS: [(u64, usize); 2] = [(0, 0x5_0000), (DATA, 0x4000)];
/// Code of 16-bit protected mode, below 64 KiB.
const CODE16: u64 = 0x7800;
/// Segment of 16-bit data.
const DATA16: u16 = 0x30;
/// Where gates of the GDT lead.
const GATE_TARGET: u64 = 0x9000;

/// Everything that a line may name or must leave alone.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct State {
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    pub segs: [Segment; 6],
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: TableRegister,
    pub idtr: TableRegister,
    pub cr: [u64; 5],
    pub cr8: u64,
    pub efer: u64,
    pub xcr0: u64,
    pub dr: [u64; 8],
    pub mxcsr: u32,
    pub shadow: u32,
    pub halted: bool,
    pub nmi_blocked: bool,
    pub monitor: Option<u64>,
    pub xmm: [u128; 16],
    pub ymm_high: [u128; 16],
    pub x87: X87,
    pub msr: Msrs,
    pub tsc: u64,
    pub port: u64,
    pub out: Vec<(u16, u8, u32)>,
    pub memory: Memory,
}

/// The contents of [`WINDOWS`].
#[derive(Clone, PartialEq)]
pub(super) struct Memory(Vec<Vec<u8>>);

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("memory")
    }
}

impl Memory {
    /// The bytes at a physical address.
    pub(super) fn at(&mut self, at: u64, len: usize) -> &mut [u8] {
        let window = WINDOWS.iter().position(|(base, size)| at >= *base && at + len as u64 <= base + *size as u64);
        let n = window.unwrap_or_else(|| panic!("memory of a line at {at:#x}"));
        &mut self.0[n][(at - WINDOWS[n].0) as usize..][..len]
    }

    fn difference(&self, found: &Self) -> Option<String> {
        let windows = self.0.iter().zip(&found.0).zip(WINDOWS);
        let all = windows.flat_map(|((a, b), (base, _))| {
            let bytes = a.iter().zip(b).enumerate();
            bytes.filter(|(_, (a, b))| a != b).map(move |(n, (a, b))| (base + n as u64, *a, *b))
        });
        let shown: Vec<String> = all.map(|(at, a, b)| format!("m{at:x}={b:02x} (not {a:02x})")).take(64).collect();
        (!shown.is_empty()).then(|| shown.join(" "))
    }
}

impl State {
    /// `Err` tells what `found` has that this has not; registers named in `any` may differ.
    pub(super) fn difference(&self, found: &Self, any: &[String]) -> Result<(), String> {
        let mut found = found.clone();
        for name in any {
            let n = super::super::cases::NAMES.iter().position(|g| g == name).expect("a general register");
            found.gpr[n] = self.gpr[n];
        }
        if *self == found {
            return Ok(());
        }
        let (wanted, got) = (format!("{self:#x?}"), format!("{found:#x?}"));
        let mut wrong = String::new();
        let mut group = "";
        for (w, g) in wanted.lines().zip(got.lines()) {
            if w.starts_with("    ") && !w.starts_with("     ") {
                group = w.trim().split(':').next().unwrap_or_default();
            }
            if w != g {
                wrong += &format!("{group}: found {} expected {}; ", g.trim(), w.trim());
            }
        }
        wrong += &self.memory.difference(&found.memory).unwrap_or_default();
        Err(wrong)
    }
}

/// A machine and the state in which lines find it.
pub(super) struct Scene {
    pub(super) guest: Guest,
    pub(super) state: State,
}

/// The scenes in use.
#[derive(Default)]
pub(super) struct Scenes(HashMap<String, Scene>);

impl Scenes {
    /// The scene of that name.
    pub(super) fn get(&mut self, name: &str) -> &mut Scene {
        self.0.entry(name.to_string()).or_insert_with(|| Scene::new(name))
    }
}

/// Width of the code of a scene.
pub(super) fn bits(name: &str) -> u32 {
    match name {
        "real" | "vm86" | "protected16" => 16,
        "long" | "long3" => 64,
        _ => 32,
    }
}

fn guest(name: &str) -> Guest {
    match name {
        "real" => Guest::real(),
        "protected" | "protected16" => Guest::protected(),
        "protected3" => Guest::protected().user(),
        "paged" => Guest::paged(),
        "paged3" => Guest::paged().user(),
        "vm86" => Guest::paged().vm86(0),
        "long" | "compat" | "compat3" => Guest::long(),
        "long3" => Guest::long().user(),
        _ => panic!("no scene of the name {name}"),
    }
}

/// Descriptors from 0x80 on, each in the room of 16 bytes that system descriptors of long mode take: see
/// tests/insn/system/README.
fn descriptors(long: bool) -> Vec<[u64; 2]> {
    let code = if long { sel::CODE64 } else { sel::CODE32 };
    let target = GATE_TARGET as u32;
    let flat = |access, flags| [descriptor(0, 0xfffff, access, flags), 0];
    let ldt = |access, high| [descriptor(LDT as u32, 0x1f, access, 0), high];
    let tss = |access, high| [descriptor(TSS2 as u32, 0x67, access, 0), high];
    vec![
        flat(0x9f, 0xc),                         // 80: conforming code
        flat(0x99, 0xc),                         // 90: code that cannot be read
        [descriptor(0, 0xffff, 0x91, 4), 0],     // a0: data that cannot be written, 64 KiB
        flat(0x13, 0xc),                         // b0: data not present
        flat(0x1b, 0xc),                         // c0: code not present
        flat(0x92, 0xc),                         // d0: data not accessed yet
        [descriptor(0, 0xfff, 0xf7, 4), 0],      // e0: data of DPL 3, expand-down
        ldt(0x82, 0),                            // f0: LDT
        ldt(0x02, 0),                            // 100: LDT not present
        [gate(code, target, 0xec, 0), 0],        // 110: call gate of DPL 3
        [gate(code, target, 0x6c, 0), 0],        // 120: call gate not present
        [gate(code, target, 0x8c, 0), 0],        // 130: call gate of DPL 0
        tss(0x09, 0),                            // 140: TSS not present
        tss(0x81, 0),                            // 150: 16-bit TSS
        [gate(sel::TSS2, 0, 0xe5, 0), 0],        // 160: task gate
        ldt(0x82, 0x8000),                       // 170: LDT whose base is not canonical
        tss(0x89, 0x8000),                       // 180: TSS whose base is not canonical
        flat(0x9b, 0xe),                         // 190: code with both D and L
        [gate(code, 0, 0xec, 0), 0x8000],        // 1a0: call gate to an offset that is not canonical
        [gate(sel::DATA, target, 0xec, 0), 0],   // 1b0: call gate to data
        [gate(sel::CODE16, target, 0xe4, 0), 0], // 1c0: 16-bit call gate
        [descriptor(0, 0xffff, 0xfb, 4), 0],     // 1d0: code of DPL 3, 64 KiB
        [gate(code, target, 0xec, 2), 0],        // 1e0: call gate of DPL 3 that copies two words
        flat(0xff, 0xc),                         // 1f0: conforming code of DPL 3
    ]
}

/// Fills the tables of protected and long mode further.
fn furnish(g: &mut Guest, long: bool) {
    for (n, [low, high]) in descriptors(long).into_iter().enumerate() {
        let at = GDT + sel::FREE as u64 + 16 * n as u64;
        g.write64(at, low);
        g.write64(at + 8, high);
    }
    // The second selector of the LDT is data, the third data of DPL 3.
    g.write64(LDT + 8, descriptor(0, 0xfffff, 0x93, 0xc));
    g.write64(LDT + 16, descriptor(0, 0xfffff, 0xf3, 0xc));
    let code = if long { sel::CODE64 } else { sel::CODE32 };
    let size = if long { 16 } else { 8 };
    // Users may raise 3, 4, 80 (interrupt gate) and 82 (trap gate); 81 is not present, 83 no gate.
    for (vector, access) in [(3, 0xee), (4, 0xee), (0x80, 0xee), (0x81, 0x6e), (0x82, 0xef), (0x83, 0xe2)] {
        g.write64(IDT + size * vector, gate(code, (STUBS + 16 * vector) as u32, access, 0));
    }
    // A second task, to be complete when it is switched to: 32-bit, at the target of gates.
    g.write32(TSS2 + 0x20, GATE_TARGET as u32);
    g.write32(TSS2 + 0x24, 2);
    g.write32(TSS2 + 0x38, 0x2_c000);
    for (at, selector) in
        [(0x48, sel::DATA), (0x4c, sel::CODE32), (0x50, sel::DATA), (0x54, sel::DATA), (0x58, 0), (0x5c, 0)]
    {
        g.write16(TSS2 + at, selector);
    }
}

/// Accessed and dirty bits are set from the start. After [`DATA`] come a page to read only, one that is not there, and one
/// of the supervisor.
fn mark_pages(g: &mut Guest) {
    if g.cpu.long_active() {
        for n in 0..0xa00 {
            let at = PAGING + 8 * n;
            let entry = g.read64(at);
            g.write64(at, if entry != 0 { entry | 0x60 } else { 0 });
        }
    } else {
        for n in 0..0x800 {
            let at = PAGING + 4 * n;
            let entry = g.read32(at);
            g.write32(at, if entry != 0 { entry | 0x60 } else { 0 });
        }
    }
    g.page(DATA + 0x1000, 0x65);
    g.page(DATA + 0x2000, 0);
    g.page(DATA + 0x3000, 0x63);
}

impl Scene {
    fn new(name: &str) -> Self {
        let mut g = guest(name);
        g.cpu.model = Arc::new(crate::cpuid::parse("max,+monitor").expect("a processor model"));
        if name != "real" {
            furnish(&mut g, name.starts_with("long") || name.starts_with("compat"));
        }
        if g.cpu.state.cr0 >> 31 != 0 {
            mark_pages(&mut g);
        }
        match name {
            "compat" => g.flat(sel::CODE32, sel::DATA),
            "compat3" => {
                g.flat(sel::USER_CODE32, sel::USER_DATA);
                g.cpu.set_gpr(reg::RSP, STACK3);
                g.cpu.state.rip = USER_CODE;
            }
            "protected16" => {
                g.flat(sel::CODE16, DATA16);
                g.cpu.set_gpr(reg::RSP, 0x7000);
                g.cpu.state.rip = CODE16;
            }
            _ => {}
        }
        for n in (0..16).filter(|n| *n != reg::RSP && (*n < 8 || bits(name) == 64)) {
            g.cpu.set_gpr(n, 0x0101_0101 * (n as u64 + 1));
        }
        g.cpu.state.x87.fcw = 0x37f;
        g.cpu.state.x87.tags = 0;
        let state = capture(&g);
        Self { guest: g, state }
    }

    /// All of the machine's state.
    pub(super) fn capture(&self) -> State {
        capture(&self.guest)
    }

    /// Puts the machine into a state.
    pub(super) fn restore(&mut self, to: &State) {
        let g = &mut self.guest;
        for ((at, _), bytes) in WINDOWS.iter().zip(&to.memory.0) {
            g.bytes(*at, bytes);
        }
        g.board.cr8.store(to.cr8, Ordering::Relaxed);
        g.board.tsc.store(to.tsc, Ordering::Relaxed);
        g.board.port.store(to.port, Ordering::Relaxed);
        *g.board.writes.lock().expect("the writes") = to.out.clone();
        restore_registers(&mut g.cpu, to);
    }
}

fn capture(g: &Guest) -> State {
    let s = &g.cpu.state;
    let memory = WINDOWS.map(|(at, len)| {
        let mut bytes = vec![0; len];
        g.cpu.shared.ram.read(at, &mut bytes);
        bytes
    });
    State {
        gpr: std::array::from_fn(|n| s.vals[n]),
        rip: s.rip,
        rflags: g.cpu.rflags(),
        segs: s.segs,
        ldtr: s.ldtr,
        tr: s.tr,
        gdtr: s.gdtr,
        idtr: s.idtr,
        cr: [s.cr0, 0, s.cr2, s.cr3, s.cr4],
        cr8: g.board.cr8.load(Ordering::Relaxed),
        efer: s.efer,
        xcr0: s.xcr0,
        dr: s.dr,
        mxcsr: s.mxcsr,
        shadow: s.shadow,
        halted: s.halted,
        nmi_blocked: s.nmi_blocked,
        monitor: g.cpu.monitor,
        xmm: std::array::from_fn(|n| s.vecs[n]),
        ymm_high: std::array::from_fn(|n| s.vecs[HIGH + n]),
        x87: s.x87,
        msr: s.msr.clone(),
        tsc: g.board.tsc.load(Ordering::Relaxed),
        port: g.board.port.load(Ordering::Relaxed),
        out: g.board.writes.lock().expect("the writes").clone(),
        memory: Memory(memory.into()),
    }
}

fn restore_registers(cpu: &mut Cpu, to: &State) {
    let s = &mut cpu.state;
    s.vals[..16].copy_from_slice(&to.gpr);
    s.rip = to.rip;
    s.segs = to.segs;
    (s.ldtr, s.tr, s.gdtr, s.idtr) = (to.ldtr, to.tr, to.gdtr, to.idtr);
    (s.cr0, s.cr2, s.cr3, s.cr4) = (to.cr[0], to.cr[2], to.cr[3], to.cr[4]);
    (s.efer, s.xcr0, s.dr, s.mxcsr) = (to.efer, to.xcr0, to.dr, to.mxcsr);
    (s.shadow, s.halted, s.nmi_blocked) = (to.shadow, to.halted, to.nmi_blocked);
    s.vecs[..HIGH].copy_from_slice(&to.xmm);
    s.vecs[HIGH..2 * HIGH].copy_from_slice(&to.ymm_high);
    s.x87 = to.x87;
    s.msr = to.msr.clone();
    cpu.monitor = to.monitor;
    (cpu.monitored, cpu.mwait) = (None, None);
    cpu.pending_db = 0;
    cpu.pending_fault = None;
    if cpu.pae_paging() {
        assert!(cpu.load_pdptes(), "page directory pointers without reserved bits");
    }
    cpu.set_rflags(to.rflags);
    cpu.update_fpu_error();
    cpu.flush_tlb_all();
}
