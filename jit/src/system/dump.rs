//! The register dump of monitors and of shutdown messages, in the layout that users of QEMU know.

use crate::cpu::Cpu;
use crate::state::{HIGH, Segment, attr, flag, mode};
use std::fmt::Write;

impl Cpu {
    /// All registers, several lines.
    pub fn dump(&self) -> String {
        self.dump_parts(false, true)
    }

    /// The registers as logs have them: those of the FPU only with `-d fpu`, and flags as QEMU keeps them.
    pub fn dump_for_log(&self) -> String {
        self.dump_parts(true, tracing::enabled!(target: "fpu", tracing::Level::TRACE))
    }

    /// The registers before a reset.
    pub fn dump_for_reset(&self) -> String {
        self.dump_parts(true, true)
    }

    fn dump_parts(&self, flags: bool, fpu: bool) -> String {
        let mut out = String::new();
        let s = &self.state;
        self.dump_general(&mut out);
        for (n, name) in ["ES", "CS", "SS", "DS", "FS", "GS"].iter().enumerate() {
            dump_segment(&mut out, name, &s.segs[n], s.mode);
        }
        dump_segment(&mut out, "LDT", &s.ldtr, s.mode);
        dump_segment(&mut out, "TR", &s.tr, s.mode);
        let w = if s.mode & mode::LMA != 0 { 16 } else { 8 };
        let _ = writeln!(out, "GDT=     {:0w$x} {:08x}", s.gdtr.base, s.gdtr.limit);
        let _ = writeln!(out, "IDT=     {:0w$x} {:08x}", s.idtr.base, s.idtr.limit);
        let _ = writeln!(out, "CR0={:08x} CR2={:0w$x} CR3={:0w$x} CR4={:08x}", s.cr0, s.cr2, s.cr3, s.cr4);
        let _ = writeln!(
            out,
            "DR0={:016x} DR1={:016x} DR2={:016x} DR3={:016x}\nDR6={:016x} DR7={:016x}",
            s.dr[0], s.dr[1], s.dr[2], s.dr[3], s.dr[6], s.dr[7]
        );
        if flags {
            // All of them are in the one word.
            const ARITHMETIC: u64 = flag::CF | flag::PF | flag::AF | flag::ZF | flag::SF | flag::OF;
            let w = if s.mode & mode::CS64 != 0 { 16 } else { 8 };
            let _ = writeln!(out, "CCS={:0w$x} CCD={:0w$x} CCO=EFLAGS", self.rflags() & ARITHMETIC, 0);
        }
        let _ = writeln!(out, "EFER={:016x}", s.efer);
        if fpu {
            self.dump_fpu(&mut out);
        }
        out
    }

    fn dump_fpu(&self, out: &mut String) {
        let s = &self.state;
        let _ = writeln!(
            out,
            "FCW={:04x} FSW={:04x} [ST={}] FTW={:02x} MXCSR={:08x}",
            s.x87.fcw,
            s.x87.fsw,
            s.x87.fsw >> 11 & 7,
            !s.x87.tags,
            s.mxcsr
        );
        let end = |n: usize| if n & 1 == 1 { "\n" } else { " " };
        for (n, value) in s.x87.regs.iter().enumerate() {
            let (mantissa, exponent) = (*value as u64, (*value >> 64) as u16);
            let _ = write!(out, "FPR{n}={mantissa:016x} {exponent:04x}{}", end(n));
        }
        let halves = |value: u128| format!("{:016x} {:016x}", (value >> 64) as u64, value as u64);
        for n in 0..if s.mode & mode::CS64 != 0 { 16 } else { 8 } {
            let _ = if s.mode & mode::AVX != 0 {
                writeln!(out, "YMM{n:02}={} {}", halves(s.vecs[HIGH + n]), halves(s.vecs[n]))
            } else {
                write!(out, "XMM{n:02}={}{}", halves(s.vecs[n]), end(n))
            };
        }
    }

    fn dump_general(&self, out: &mut String) {
        let long = self.state.mode & mode::CS64 != 0;
        const NAMES: [&str; 16] =
            ["AX", "CX", "DX", "BX", "SP", "BP", "SI", "DI", "R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15"];
        let order = [0, 3, 1, 2, 6, 7, 5, 4, 8, 9, 10, 11, 12, 13, 14, 15];
        let count = if long { 16 } else { 8 };
        for (i, n) in order.iter().take(count).enumerate() {
            let prefix = match (*n < 8, long) {
                (true, true) => "R",
                (true, false) => "E",
                _ => "",
            };
            let end = if i & 3 == 3 { "\n" } else { " " };
            let name = format!("{prefix}{}", NAMES[*n]);
            let _ = if long {
                write!(out, "{name:3}={:016x}{end}", self.gpr(*n))
            } else {
                write!(out, "{name}={:08x}{end}", self.gpr(*n) & 0xffff_ffff)
            };
        }
        let f = self.rflags();
        let letter = |bit: u64, c: char| if f & bit != 0 { c } else { '-' };
        let letters: String = [
            letter(flag::DF, 'D'),
            letter(flag::OF, 'O'),
            letter(flag::SF, 'S'),
            letter(flag::ZF, 'Z'),
            letter(flag::AF, 'A'),
            letter(flag::PF, 'P'),
            letter(flag::CF, 'C'),
        ]
        .iter()
        .collect();
        let (name, w) = if long { ("RIP", 16) } else { ("EIP", 8) };
        let _ = writeln!(
            out,
            "{name}={:0w$x} {}FL={f:08x} [{letters}] CPL={} II={} A20={} SMM=0 HLT={}",
            self.state.rip,
            &name[..1],
            self.state.cpl(),
            u8::from(self.state.shadow != 0),
            self.shared.address_lines() >> 20 & 1,
            self.state.halted as u8
        );
    }
}

fn dump_segment(out: &mut String, name: &str, s: &Segment, mode_word: u32) {
    let w = if mode_word & mode::CS64 != 0 { 16 } else { 8 };
    let raw = (s.attributes as u32) << 8 | s.limit_bits();
    let _ = write!(out, "{name:3}={:04x} {:0w$x} {:08x} {raw:08x}", s.selector, s.base, s.limit);
    // In real mode there are no descriptors that would mean something.
    if mode_word & mode::PE != 0 && s.present() {
        let _ = write!(out, " DPL={} {}", s.dpl(), kind(s, mode_word & mode::LMA != 0));
    }
    out.push('\n');
}

/// What a descriptor is, in long mode or not (SDM 3A tables 3-1 and 3-2).
fn kind(s: &Segment, long: bool) -> String {
    const SYSTEM: [&str; 16] = [
        "Reserved",
        "TSS16-avl",
        "LDT",
        "TSS16-busy",
        "CallGate16",
        "TaskGate",
        "IntGate16",
        "TrapGate16",
        "Reserved",
        "TSS32-avl",
        "Reserved",
        "TSS32-busy",
        "CallGate32",
        "Reserved",
        "IntGate32",
        "TrapGate32",
    ];
    let a = s.attributes;
    let has = |bit: u16, c: char| if a & bit != 0 { c } else { '-' };
    if a & attr::S == 0 {
        let name = SYSTEM[usize::from(a & 15)];
        return if long { name.replace("32", "64") } else { name.to_owned() };
    }
    if a & attr::CODE != 0 {
        let size = match (a & attr::L != 0, a & attr::DB != 0) {
            (true, _) => "CS64",
            (_, true) => "CS32",
            _ => "CS16",
        };
        format!("{size} [{}{}{}]", has(attr::EC, 'C'), has(attr::RW, 'R'), has(attr::ACCESSED, 'A'))
    } else {
        let size = if long || a & attr::DB != 0 { "DS  " } else { "DS16" };
        format!("{size} [{}{}{}]", has(attr::EC, 'E'), has(attr::RW, 'W'), has(attr::ACCESSED, 'A'))
    }
}

impl Segment {
    /// Bits 19:16 of the limit as the second doubleword of the descriptor holds them.
    fn limit_bits(&self) -> u32 {
        let l = if self.attributes & attr::G != 0 { self.limit >> 12 } else { self.limit };
        l & 0xf_0000
    }
}

#[cfg(test)]
mod tests {
    use crate::system::testing::machine;

    #[test]
    fn a_dump_names_the_reset_state() {
        let cpu = machine();
        let text = cpu.dump();
        assert!(text.contains("EIP=0000fff0 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0"), "{text}");
        assert!(text.contains("CS =f000 ffff0000 0000ffff 00009b00\n"), "{text}");
        assert!(text.contains("CR0=60000010"), "{text}");
        assert!(
            text.contains("FPR0=0000000000000000 0000 FPR1=")
                && text.contains("XMM07=0000000000000000 0000000000000000\n")
        );
    }
}
