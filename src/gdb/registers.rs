//! Registers in the order and layout that QEMU's 64-bit target gives gdb, with the high halves of YMM registers behind them, and the description gdb reads them by: scripts
//! name `$cr3`, `$gs_base` or `$efer`. The layout is the same in all processor modes.

use brolga_jit::{MoreRegisters, Registers, SegmentRegister};
use gdbstub::arch::{Arch, RegId};
use std::fmt::Write;
use std::num::NonZeroUsize;

/// Order of general registers: RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP, R8 to R15, as indexes of [`Registers::gpr`].
const GPRS: [usize; 16] = [0, 3, 1, 2, 6, 7, 5, 4, 8, 9, 10, 11, 12, 13, 14, 15];
const GPR_NAMES: [&str; 16] =
    ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];
/// Order of segments: CS, SS, DS, ES, FS, GS, as indexes of [`Registers::segments`].
const SEGMENTS: [usize; 6] = [1, 2, 3, 0, 4, 5];
const SEGMENT_NAMES: [&str; 6] = ["cs", "ss", "ds", "es", "fs", "gs"];
const FS: usize = 4;
const GS: usize = 5;
/// x87 control registers: control, status and tag word, then selectors, offsets and opcode.
const X87_NAMES: [&str; 8] = ["fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop"];

/// All registers of a vCPU.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// What the engine calls registers.
    pub main: Registers,
    /// The rest.
    pub more: MoreRegisters,
}

/// One place in the layout.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Register {
    /// By its place in gdb's order.
    Gpr(usize),
    /// RIP.
    Rip,
    /// RFLAGS, its low half.
    Eflags,
    /// By its place in gdb's order.
    Segment(usize),
    /// Base of FS or GS.
    Base(usize),
    /// IA32_KERNEL_GS_BASE.
    KernelGsBase,
    /// CR0, CR2, CR3, CR4, CR8.
    Control(u8),
    /// IA32_EFER.
    Efer,
    /// ST0 to ST7.
    St(usize),
    /// By its place among the x87 control registers.
    X87(usize),
    /// XMM0 to XMM15.
    Xmm(usize),
    /// MXCSR.
    Mxcsr,
    /// The high halves of YMM0 to YMM15, which QEMU does not show.
    YmmHigh(usize),
}

/// All registers in gdb's order.
pub fn layout() -> Vec<Register> {
    let mut all: Vec<Register> = (0..16).map(Register::Gpr).collect();
    all.extend([Register::Rip, Register::Eflags]);
    all.extend((0..6).map(Register::Segment));
    all.extend([Register::Base(FS), Register::Base(GS), Register::KernelGsBase]);
    all.extend([0, 2, 3, 4, 8].map(Register::Control));
    all.push(Register::Efer);
    all.extend((0..8).map(Register::St));
    all.extend((0..8).map(Register::X87));
    all.extend((0..16).map(Register::Xmm));
    all.push(Register::Mxcsr);
    all.extend((0..16).map(Register::YmmHigh));
    all
}

impl Register {
    /// Bytes in gdb's packets.
    pub fn size(self) -> usize {
        match self {
            Self::Eflags | Self::Segment(_) | Self::X87(_) | Self::Mxcsr => 4,
            Self::St(_) => 10,
            Self::Xmm(_) | Self::YmmHigh(_) => 16,
            _ => 8,
        }
    }

    /// Name, type and group in the description.
    fn described(self) -> (String, &'static str, Option<&'static str>) {
        match self {
            Self::Gpr(n @ (6 | 7)) => (GPR_NAMES[n].into(), "data_ptr", None),
            Self::Gpr(n) => (GPR_NAMES[n].into(), "int64", None),
            Self::Rip => ("rip".into(), "code_ptr", None),
            Self::Eflags => ("eflags".into(), "x64_eflags", None),
            Self::Segment(n) => (SEGMENT_NAMES[n].into(), "int32", None),
            Self::Base(FS) => ("fs_base".into(), "int64", None),
            Self::Base(_) => ("gs_base".into(), "int64", None),
            Self::KernelGsBase => ("k_gs_base".into(), "int64", None),
            Self::Control(n) => {
                let kind = match n {
                    0 => "x64_cr0",
                    3 => "x64_cr3",
                    4 => "x64_cr4",
                    _ => "int64",
                };
                (format!("cr{n}"), kind, None)
            }
            Self::Efer => ("efer".into(), "x64_efer", None),
            Self::St(n) => (format!("st{n}"), "i387_ext", None),
            Self::X87(n) => (X87_NAMES[n].into(), "int", Some("float")),
            Self::Xmm(n) => (format!("xmm{n}"), "vec128", None),
            Self::Mxcsr => ("mxcsr".into(), "x64_mxcsr", Some("vector")),
            Self::YmmHigh(n) => (format!("ymm{n}h"), "uint128", None),
        }
    }

    /// The value, little-endian in the low [`Register::size`] bytes.
    fn get(self, s: &State) -> u128 {
        let (r, m) = (&s.main, &s.more);
        match self {
            Self::Gpr(n) => r.gpr[GPRS[n]].into(),
            Self::Rip => r.rip.into(),
            Self::Eflags => r.rflags.into(),
            Self::Segment(n) => r.segments[SEGMENTS[n]].selector.into(),
            Self::Base(n) => r.segments[n].base.into(),
            Self::KernelGsBase => m.kernel_gs_base.into(),
            Self::Control(n) => u128::from(match n {
                0 => r.cr0,
                2 => r.cr2,
                3 => r.cr3,
                4 => r.cr4,
                _ => m.cr8.into(),
            }),
            Self::Efer => r.efer.into(),
            Self::St(n) => {
                let mut bytes = [0; 16];
                bytes[..10].copy_from_slice(&m.st[n]);
                u128::from_le_bytes(bytes)
            }
            Self::X87(n @ 0..3) => m.x87[n].into(),
            Self::X87(n) => m.x87_pointers[n - 3].into(),
            Self::Xmm(n) => m.xmm[n],
            Self::Mxcsr => m.mxcsr.into(),
            Self::YmmHigh(n) => m.ymm_high[n],
        }
    }

    fn set(self, s: &mut State, value: u128) {
        let (r, m, word) = (&mut s.main, &mut s.more, value as u64);
        match self {
            Self::Gpr(n) => r.gpr[GPRS[n]] = word,
            Self::Rip => r.rip = word,
            Self::Eflags => r.rflags = word,
            Self::Segment(n) => {
                let real = r.cr0 & 1 == 0 || r.rflags & 1 << 17 != 0;
                load(&mut r.segments[SEGMENTS[n]], word as u16, real);
            }
            Self::Base(n) => r.segments[n].base = word,
            Self::KernelGsBase => m.kernel_gs_base = word,
            Self::Control(0) => r.cr0 = word,
            Self::Control(2) => r.cr2 = word,
            Self::Control(3) => r.cr3 = word,
            Self::Control(4) => r.cr4 = word,
            Self::Control(_) => m.cr8 = word as u8,
            Self::Efer => r.efer = word,
            Self::St(n) => m.st[n].copy_from_slice(&value.to_le_bytes()[..10]),
            Self::X87(n @ 0..3) => m.x87[n] = word as u16,
            Self::X87(n) => m.x87_pointers[n - 3] = word,
            Self::Xmm(n) => m.xmm[n] = value,
            Self::Mxcsr => m.mxcsr = word as u32,
            Self::YmmHigh(n) => m.ymm_high[n] = value,
        }
    }

    /// The value as gdb's packets hold it.
    pub fn read(self, s: &State) -> Vec<u8> {
        self.get(s).to_le_bytes()[..self.size()].to_vec()
    }

    /// Sets the value from a packet; one that is the same changes nothing, so that hidden parts stay.
    pub fn write(self, s: &mut State, bytes: &[u8]) {
        if bytes.len() != self.size() || bytes == self.read(s) {
            return;
        }
        let mut whole = [0; 16];
        whole[..bytes.len()].copy_from_slice(bytes);
        self.set(s, u128::from_le_bytes(whole));
    }
}

/// A selector set by hand: in real and virtual-8086 mode the base follows; in protected mode the hidden part stays.
fn load(segment: &mut SegmentRegister, selector: u16, real: bool) {
    segment.selector = selector;
    if real {
        segment.base = u64::from(selector) << 4;
    }
}

impl gdbstub::arch::Registers for State {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.main.rip
    }

    fn gdb_serialize(&self, mut write: impl FnMut(Option<u8>)) {
        layout().iter().flat_map(|r| r.read(self)).for_each(|byte| write(Some(byte)));
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        let mut rest = bytes;
        for r in layout() {
            let (value, after) = rest.split_at_checked(r.size()).ok_or(())?;
            r.write(self, value);
            rest = after;
        }
        Ok(())
    }
}

impl RegId for Register {
    fn from_raw_id(id: usize) -> Option<(Self, Option<NonZeroUsize>)> {
        let r = *layout().get(id)?;
        Some((r, NonZeroUsize::new(r.size())))
    }
}

/// The processor as gdb knows it.
#[derive(Debug)]
pub enum X86 {}

impl Arch for X86 {
    type Usize = u64;
    type Registers = State;
    type BreakpointKind = usize;
    type RegId = Register;
}

/// Flag registers: type, bytes, and the name, first and last bit of each field.
type Flags = (&'static str, u32, &'static [(&'static str, u32, u32)]);

const FLAGS: &[Flags] = &[
    (
        "x64_eflags",
        4,
        &[
            ("ID", 21, 21),
            ("VIP", 20, 20),
            ("VIF", 19, 19),
            ("AC", 18, 18),
            ("VM", 17, 17),
            ("RF", 16, 16),
            ("NT", 14, 14),
            ("IOPL", 12, 13),
            ("OF", 11, 11),
            ("DF", 10, 10),
            ("IF", 9, 9),
            ("TF", 8, 8),
            ("SF", 7, 7),
            ("ZF", 6, 6),
            ("AF", 4, 4),
            ("PF", 2, 2),
            ("CF", 0, 0),
        ],
    ),
    (
        "x64_cr0",
        8,
        &[
            ("PG", 31, 31),
            ("CD", 30, 30),
            ("NW", 29, 29),
            ("AM", 18, 18),
            ("WP", 16, 16),
            ("NE", 5, 5),
            ("ET", 4, 4),
            ("TS", 3, 3),
            ("EM", 2, 2),
            ("MP", 1, 1),
            ("PE", 0, 0),
        ],
    ),
    ("x64_cr3", 8, &[("PDBR", 12, 63), ("PCID", 0, 11)]),
    (
        "x64_cr4",
        8,
        &[
            ("PKE", 22, 22),
            ("SMAP", 21, 21),
            ("SMEP", 20, 20),
            ("OSXSAVE", 18, 18),
            ("PCIDE", 17, 17),
            ("FSGSBASE", 16, 16),
            ("LA57", 12, 12),
            ("UMIP", 11, 11),
            ("OSXMMEXCPT", 10, 10),
            ("OSFXSR", 9, 9),
            ("PCE", 8, 8),
            ("PGE", 7, 7),
            ("MCE", 6, 6),
            ("PAE", 5, 5),
            ("PSE", 4, 4),
            ("DE", 3, 3),
            ("TSD", 2, 2),
            ("PVI", 1, 1),
            ("VME", 0, 0),
        ],
    ),
    ("x64_efer", 8, &[("NXE", 11, 11), ("LMA", 10, 10), ("LME", 8, 8), ("SCE", 0, 0)]),
    (
        "x64_mxcsr",
        4,
        &[
            ("IE", 0, 0),
            ("DE", 1, 1),
            ("ZE", 2, 2),
            ("OE", 3, 3),
            ("UE", 4, 4),
            ("PE", 5, 5),
            ("DAZ", 6, 6),
            ("IM", 7, 7),
            ("DM", 8, 8),
            ("ZM", 9, 9),
            ("OM", 10, 10),
            ("UM", 11, 11),
            ("PM", 12, 12),
            ("FZ", 15, 15),
        ],
    ),
];

/// Ways to look at a vector register: name, element type and count.
const VECTORS: [(&str, &str, u32); 6] = [
    ("v4_float", "ieee_single", 4),
    ("v2_double", "ieee_double", 2),
    ("v16_int8", "int8", 16),
    ("v8_int16", "int16", 8),
    ("v4_int32", "int32", 4),
    ("v2_int64", "int64", 2),
];

/// The description of all registers (GDB manual, appendix G).
pub fn description() -> String {
    let mut xml = String::from(
        "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\">\
         <target><architecture>i386:x86-64</architecture><feature name=\"org.gnu.gdb.i386.core\">",
    );
    let vector = |r: Register| matches!(r, Register::Xmm(_) | Register::Mxcsr);
    let high = |r: Register| matches!(r, Register::YmmHigh(_));
    describe(&mut xml, |r| !vector(r) && !high(r));
    xml += "</feature><feature name=\"org.gnu.gdb.i386.sse\">";
    for (name, kind, count) in VECTORS {
        let _ = write!(xml, "<vector id=\"{name}_t\" type=\"{kind}\" count=\"{count}\"/>");
    }
    xml += "<union id=\"vec128\">";
    for (name, ..) in VECTORS {
        let _ = write!(xml, "<field name=\"{name}\" type=\"{name}_t\"/>");
    }
    xml += "<field name=\"uint128\" type=\"uint128\"/></union>";
    describe(&mut xml, vector);
    xml += "</feature><feature name=\"org.gnu.gdb.i386.avx\">";
    describe(&mut xml, high);
    xml += "</feature></target>";
    xml
}

/// The registers that `belongs` takes, with their flag types before them.
fn describe(xml: &mut String, belongs: impl Fn(Register) -> bool) {
    let registers: Vec<(usize, Register)> = layout().into_iter().enumerate().filter(|(_, r)| belongs(*r)).collect();
    for (id, size, fields) in FLAGS {
        if registers.iter().any(|(_, r)| r.described().1 == *id) {
            let _ = write!(xml, "<flags id=\"{id}\" size=\"{size}\">");
            for (name, start, end) in *fields {
                let _ = write!(xml, "<field name=\"{name}\" start=\"{start}\" end=\"{end}\"/>");
            }
            *xml += "</flags>";
        }
    }
    for (number, r) in registers {
        let ((name, kind, group), bits) = (r.described(), 8 * r.size());
        let _ = write!(xml, "<reg name=\"{name}\" bitsize=\"{bits}\" type=\"{kind}\" regnum=\"{number}\"");
        if let Some(group) = group {
            let _ = write!(xml, " group=\"{group}\"");
        }
        *xml += "/>";
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gdbstub::arch::Registers as _;

    /// Bytes of the registers that QEMU shows.
    const QEMUS: usize = 608;

    fn bytes(s: &State) -> Vec<u8> {
        let mut out = Vec::new();
        s.gdb_serialize(|b| out.push(b.expect("every register is known")));
        out
    }

    #[test]
    fn the_packet_has_qemus_layout() {
        let mut s = State::default();
        s.main.gpr = std::array::from_fn(|n| n as u64 + 1);
        s.main.rip = 0x1122;
        s.main.cr3 = 0x5000;
        s.more.mxcsr = 0x1f80;
        let packet = bytes(&s);
        assert_eq!(packet.len(), QEMUS + 256);
        // RAX, RBX, RCX, RDX are numbers 0, 3, 1, 2 of the processor's.
        assert_eq!([packet[0], packet[8], packet[16], packet[24]], [1, 4, 2, 3]);
        assert_eq!(packet[128..130], [0x22, 0x11]);
        // 16 * 8 + 8 + 4 + 6 * 4 = 164: fs_base; cr0 at 188, cr3 at 204.
        assert_eq!(packet[204..206], [0, 0x50]);
        assert_eq!(packet[604..QEMUS], [0x80, 0x1f, 0, 0]);
    }

    #[test]
    fn what_gdb_writes_comes_back() {
        let mut s = State::default();
        let all: Vec<u8> = (0..QEMUS + 256).map(|n| (n * 7) as u8).collect();
        s.main.cr0 = 1;
        s.gdb_deserialize(&all).expect("enough bytes");
        let mut back = bytes(&s);
        // Parts that have no place: the high halves of 16-bit registers, and of CR8.
        for (at, byte) in back.iter_mut().enumerate() {
            if *byte == 0 {
                *byte = all[at];
            }
        }
        assert_eq!(back, all);
        assert_eq!(s.gdb_deserialize(&all[1..]), Err(()));
        let mut real = State::default();
        Register::Segment(0).write(&mut real, &[0, 0x12, 0, 0]);
        assert_eq!(real.main.segments[1].base, 0x1_2000);
    }

    #[test]
    fn the_description_names_every_register_once() {
        let xml = description();
        for (number, r) in layout().into_iter().enumerate() {
            let name = format!("<reg name=\"{}\" bitsize=\"{}\"", r.described().0, 8 * r.size());
            assert_eq!(xml.matches(&name).count(), 1, "{name}");
            assert!(xml.contains(&format!("regnum=\"{number}\"")));
            assert_eq!(Register::from_raw_id(number).unwrap().0, r);
        }
        assert_eq!(layout().iter().map(|r| r.size()).sum::<usize>(), QEMUS + 256);
    }
}
