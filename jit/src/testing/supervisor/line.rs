//! The text of a case.

use super::super::cases::{NAMES, bytes, hex, wide};
use super::scene::{Scene, State, bits};
use crate::cpu::Cpu;
use crate::fault::Fault;
use crate::state::{Segment, TableRegister, flag, reg};
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};

const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];

/// A line taken apart.
pub(super) struct Line<'a> {
    pub whole: &'a str,
    pub bytes: Vec<u8>,
    pub text: &'a str,
    pub scene: &'a str,
    before: &'a str,
    after: &'a str,
}

/// What a line demands.
pub(super) struct Expected {
    pub state: State,
    pub fault: Option<Fault>,
    /// Registers that may hold anything.
    pub any: Vec<String>,
}

impl<'a> Line<'a> {
    pub(super) fn parse(whole: &'a str) -> Self {
        let parts = || {
            let (code, rest) = whole.split_once(' ')?;
            let (text, states) = rest.split_once(" | ")?;
            let (before, after) = states.split_once("=>")?;
            let before = before.trim();
            let (scene, before) = before.split_once(' ').unwrap_or((before, ""));
            Some(Line { whole, bytes: bytes(code), text, scene, before, after })
        };
        parts().unwrap_or_else(|| panic!("BYTES text | SCENE before => after: {whole}"))
    }

    /// The first instruction as the line's code width has it.
    pub(super) fn instruction(&self) -> Instruction {
        let mut decoder = Decoder::new(bits(self.scene), &self.bytes, DecoderOptions::NONE);
        let i = decoder.decode();
        assert_ne!(decoder.last_error(), DecoderError::NoMoreBytes, "half an instruction: {}", self.whole);
        i
    }

    /// State before and what is demanded after.
    pub(super) fn states(&self, scene: &Scene) -> Result<(State, Expected), String> {
        let mut before = scene.state.clone();
        let mut unused = Expected::new(before.clone());
        assign_all(self.before, &mut before, &mut unused);
        let cs = before.segs[reg::CS];
        let code = if bits(self.scene) == 64 { before.rip } else { cs.base.wrapping_add(before.rip) & 0xffff_ffff };
        before.memory.at(code, self.bytes.len()).copy_from_slice(&self.bytes);
        let mut after = Expected::new(before.clone());
        let mut state = before.clone();
        if !self.after.contains("fault=") {
            state.rip += self.bytes.len() as u64;
        }
        assign_all(self.after, &mut state, &mut after);
        after.state = state;
        Ok((before, after))
    }
}

impl Expected {
    fn new(state: State) -> Self {
        Self { state, fault: None, any: Vec::new() }
    }
}

/// What iced-x86 calls the line's instruction.
pub(super) fn disassembly(line: &Line) -> String {
    let i = line.instruction();
    if i.is_invalid() { "(bad)".to_string() } else { i.to_string() }
}

/// The line with the text that its bytes have.
pub(super) fn with_disassembly(line: &str) -> String {
    if line.starts_with('#') || line.trim().is_empty() {
        return line.to_string();
    }
    let l = Line::parse(line);
    let code = line.split(' ').next().unwrap_or_default();
    let states = line.split_once(" | ").map_or("", |(_, s)| s);
    format!("{code} {} | {states}", disassembly(&l))
}

/// Memory first: hidden parts of segments are taken from it.
fn assign_all(words: &str, state: &mut State, expected: &mut Expected) {
    let is_memory = |w: &str| w.starts_with('m') && w[1..].starts_with(|c: char| c.is_ascii_hexdigit());
    let words: Vec<&str> = words.split_whitespace().collect();
    for word in words.iter().filter(|w| is_memory(w)) {
        let (at, content) = word[1..].split_once('=').expect("mADDRESS=BYTES");
        let content = bytes(content);
        state.memory.at(hex(at), content.len()).copy_from_slice(&content);
    }
    words.iter().filter(|w| !is_memory(w)).for_each(|w| assign(w, state, expected));
}

fn assign(word: &str, state: &mut State, expected: &mut Expected) {
    let (name, value) = word.split_once('=').unwrap_or_else(|| panic!("name=value: {word}"));
    if let Some(field) = field(state, name) {
        *field = match value.split_at_checked(1) {
            Some(("+", bits)) => *field | hex(bits),
            Some(("-", bits)) => *field & !hex(bits),
            _ => hex(value),
        };
        return;
    }
    if assign_segment(name, value, state) || assign_numbered(name, value, state) {
        return;
    }
    match name {
        "gdtr" => state.gdtr = table(value),
        "idtr" => state.idtr = table(value),
        "mxcsr" => state.mxcsr = hex(value) as u32,
        "fcw" => state.x87.fcw = hex(value) as u16,
        "fsw" => state.x87.fsw = hex(value) as u16,
        "tags" => state.x87.tags = hex(value) as u8,
        "fop" => state.x87.fop = hex(value) as u16,
        "fip" => state.x87.fip = hex(value),
        "fdp" => state.x87.fdp = hex(value),
        "shadow" => state.shadow = hex(value) as u32,
        "halted" => state.halted = hex(value) != 0,
        "nmi" => state.nmi_blocked = hex(value) != 0,
        "monitor" => state.monitor = Some(hex(value)),
        "out" => {
            let parts: Vec<u64> = value.split(':').map(hex).collect();
            let [port, size, value] = parts[..] else { panic!("out=PORT:SIZE:VALUE: {word}") };
            state.out.push((port as u16, size as u8, value as u32));
        }
        "any" => expected.any.push(value.to_string()),
        "fault" => {
            let mut parts = value.split(':').map(hex);
            let vector = parts.next().expect("a vector") as u8;
            let error = parts.next().map(|e| e as u32);
            expected.fault = Some(Fault { vector, error, address: parts.next().unwrap_or(0) });
        }
        _ => panic!("unknown name: {word}"),
    }
}

/// A register of 64 bits by its name.
fn field<'a>(s: &'a mut State, name: &str) -> Option<&'a mut u64> {
    if let Some(n) = NAMES.iter().position(|g| *g == name) {
        return Some(&mut s.gpr[n]);
    }
    if let Some(number) = name.strip_prefix("msr") {
        return Some(msr(s, hex(number)));
    }
    Some(match name {
        "rip" => &mut s.rip,
        "rflags" => &mut s.rflags,
        "cr0" => &mut s.cr[0],
        "cr2" => &mut s.cr[2],
        "cr3" => &mut s.cr[3],
        "cr4" => &mut s.cr[4],
        "cr8" => &mut s.cr8,
        "efer" => &mut s.efer,
        "xcr0" => &mut s.xcr0,
        "tsc" => &mut s.tsc,
        "in" => &mut s.port,
        _ => {
            let n = name.strip_prefix("dr")?.parse::<usize>().ok()?;
            s.dr.get_mut(n)?
        }
    })
}

fn msr(s: &mut State, number: u64) -> &mut u64 {
    let m = &mut s.msr;
    match number {
        0x3b => &mut m.tsc_adjust,
        0x48 => &mut m.spec_ctrl,
        0x174 => &mut m.sysenter_cs,
        0x175 => &mut m.sysenter_esp,
        0x176 => &mut m.sysenter_eip,
        0x277 => &mut m.pat,
        0xda0 => &mut m.xss,
        0xc000_0081 => &mut m.star,
        0xc000_0082 => &mut m.lstar,
        0xc000_0083 => &mut m.cstar,
        0xc000_0084 => &mut m.sfmask,
        0xc000_0100 => &mut s.segs[reg::FS].base,
        0xc000_0101 => &mut s.segs[reg::GS].base,
        0xc000_0102 => &mut m.kernel_gs_base,
        0xc000_0103 => &mut m.tsc_aux,
        _ => panic!("no line needs MSR {number:#x} yet"),
    }
}

/// `xmm3`, `ymm3h` (the high half), `st1`.
fn assign_numbered(name: &str, value: &str, s: &mut State) -> bool {
    let number = |prefix: &str| name.strip_prefix(prefix)?.parse::<usize>().ok();
    let high = name.strip_suffix('h').and_then(|n| n.strip_prefix("ymm")?.parse::<usize>().ok());
    if let Some(n) = high {
        s.ymm_high[n] = wide(value);
    } else if let Some(n) = number("xmm") {
        s.xmm[n] = wide(value);
    } else if let Some(n) = number("st") {
        let top = (s.x87.fsw >> 11 & 7) as usize;
        s.x87.regs[(top + n) & 7] = wide(value);
    } else {
        return false;
    }
    true
}

fn table(value: &str) -> TableRegister {
    let (base, limit) = value.split_once(':').expect("BASE:LIMIT");
    TableRegister { base: hex(base), limit: hex(limit) as u16 }
}

fn assign_segment(name: &str, value: &str, s: &mut State) -> bool {
    let slot = SEGMENTS.iter().position(|n| *n == name);
    let old = match (slot, name) {
        (Some(n), _) => s.segs[n],
        (_, "ldtr") => s.ldtr,
        (_, "tr") => s.tr,
        _ => return false,
    };
    let parts: Vec<u64> = value.split(':').map(hex).collect();
    let new = match parts[..] {
        [selector, base, limit, attributes] => {
            Segment { selector: selector as u16, base, limit: limit as u32, attributes: attributes as u16 }
        }
        [selector] => hidden(s, old, selector as u16, slot.is_none()),
        _ => panic!("SELECTOR or SELECTOR:BASE:LIMIT:ATTRIBUTES: {name}={value}"),
    };
    match (slot, name) {
        (Some(n), _) => s.segs[n] = new,
        (_, "ldtr") => s.ldtr = new,
        _ => s.tr = new,
    }
    true
}

/// The register that a load of `selector` gives.
fn hidden(s: &mut State, old: Segment, selector: u16, system: bool) -> Segment {
    if s.rflags & flag::VM != 0 && !system {
        return Cpu::vm86_segment(selector);
    }
    if s.cr[0] & 1 == 0 {
        return Segment { selector, base: (selector as u64) << 4, ..old };
    }
    if selector & !3 == 0 {
        return Segment { selector, ..Segment::default() };
    }
    let table = if selector & 4 == 0 { s.gdtr.base } else { s.ldtr.base };
    let at = table + (selector & !7) as u64;
    let mut word = |at: u64| s.memory.at(at, 8).iter().rev().fold(0, |v, b| v << 8 | *b as u64);
    let raw = word(at);
    let high = if system { word(at + 8) << 32 } else { 0 };
    let limit = (raw & 0xffff | raw >> 32 & 0xf_0000) as u32;
    Segment {
        selector,
        base: raw >> 16 & 0xff_ffff | raw >> 32 & 0xff00_0000 | if s.efer >> 10 & 1 != 0 { high } else { 0 },
        limit: if raw >> 55 & 1 != 0 { limit << 12 | 0xfff } else { limit },
        attributes: (raw >> 40) as u16 & 0xf0ff,
    }
}
