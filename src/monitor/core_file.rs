//! Guest memory and registers as an ELF core file, for crash and gdb (ELF gABI chapter 5; the notes are laid out as Linux's
//! `elf_prstatus` and as QEMU's `QEMUCPUState`, which crash looks for).

use super::compressed_dump;
use super::host::MonitorHost;
use crate::cli::os_reason;
use brolga::descriptors;
use brolga_jit::{Registers, SegmentRegister};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;

const HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;
const CHUNK: u64 = 1 << 20;
const ET_CORE: u16 = 4;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const NT_PRSTATUS: u32 = 1;
/// Size of `elf_prstatus` on x86-64, and where its registers are.
const PRSTATUS: usize = 336;
const PRSTATUS_REGISTERS: usize = 112;
/// Where the process id is.
const PRSTATUS_PID: usize = 32;

/// Forms of dumps that can be written, by the names that QMP has for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DumpForm {
    /// An ELF core file.
    Elf,
    /// makedumpfile's, flattened.
    Zlib,
    /// makedumpfile's.
    RawZlib,
}

/// Writes physical memory, or `range` of it, to the file `name`. The machine stands still meanwhile.
pub fn write(host: &dyn MonitorHost, name: &str, range: Option<Range<u64>>, form: DumpForm) -> Result<(), String> {
    let pieces = pieces(&host.memory_map(), range);
    if pieces.is_empty() {
        return Err("there is no memory in that range".to_owned());
    }
    let failed = |e: io::Error| format!("dump: could not write '{name}': {}", os_reason(&e));
    let file = match name.strip_prefix("fd:") {
        Some(name) => descriptors::take(name)
            .map(File::from)
            .ok_or_else(|| format!("File descriptor named '{name}' has not been found"))?,
        None => {
            let path = name.strip_prefix("file:").unwrap_or(name);
            descriptors::create(path).map_err(|e| format!("Could not open '{path}': {}", os_reason(&e)))?
        }
    };
    let compressed = |straight| {
        let out = compressed_dump::Form::new(file.try_clone()?, straight)?;
        compressed_dump::write(host, out, &pieces, &notes(host))
    };
    let write = || match form {
        DumpForm::Elf => write_all(host, &file, &pieces),
        DumpForm::Zlib => compressed(false),
        DumpForm::RawZlib => compressed(true),
    };
    let written = host.while_paused(&mut || write().map_err(failed));
    host.note_dump(written.as_ref().ok().copied());
    written.map(drop)
}

/// The parts of memory that are wanted.
fn pieces(map: &[Range<u64>], wanted: Option<Range<u64>>) -> Vec<Range<u64>> {
    let wanted = wanted.unwrap_or(0..u64::MAX);
    let cut = |r: &Range<u64>| r.start.max(wanted.start)..r.end.min(wanted.end);
    map.iter().map(cut).filter(|r| r.start < r.end).collect()
}

/// Of each processor its registers, in the two forms that readers look for.
fn notes(host: &dyn MonitorHost) -> Vec<u8> {
    let mut notes = Vec::new();
    for cpu in 0..host.cpus() {
        if let Some(registers) = host.registers(cpu) {
            note(&mut notes, b"CORE\0", NT_PRSTATUS, &prstatus(cpu, &registers));
            note(&mut notes, b"QEMU\0", 0, &qemu_state(&registers));
        }
    }
    notes
}

fn write_all(host: &dyn MonitorHost, file: &File, pieces: &[Range<u64>]) -> io::Result<u64> {
    let mut out = BufWriter::new(file);
    let notes = notes(host);
    let headers = HEADER + PROGRAM_HEADER * (1 + pieces.len() as u64);
    out.write_all(&elf_header(1 + pieces.len() as u16))?;
    out.write_all(&program_header(PT_NOTE, headers, 0, notes.len() as u64))?;
    let mut offset = headers + notes.len() as u64;
    for piece in pieces {
        let size = piece.end - piece.start;
        out.write_all(&program_header(PT_LOAD, offset, piece.start, size))?;
        offset += size;
    }
    out.write_all(&notes)?;
    for piece in pieces {
        let mut at = piece.start;
        while at < piece.end {
            let mut bytes = vec![0; CHUNK.min(piece.end - at) as usize];
            host.read_physical(at, &mut bytes);
            out.write_all(&bytes)?;
            at += bytes.len() as u64;
        }
    }
    out.flush()?;
    Ok(offset)
}

fn elf_header(program_headers: u16) -> Vec<u8> {
    let mut h = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    h.extend(ET_CORE.to_le_bytes());
    h.extend(EM_X86_64.to_le_bytes());
    h.extend(1u32.to_le_bytes());
    // No entry point; program headers follow; no section headers; no flags.
    h.extend([0u64, HEADER, 0].map(u64::to_le_bytes).concat());
    h.extend(0u32.to_le_bytes());
    for value in [HEADER as u16, PROGRAM_HEADER as u16, program_headers, 0, 0, 0] {
        h.extend(value.to_le_bytes());
    }
    h
}

fn program_header(kind: u32, offset: u64, address: u64, size: u64) -> Vec<u8> {
    let mut h = kind.to_le_bytes().to_vec();
    h.extend(0u32.to_le_bytes());
    // Physical memory has no virtual addresses of its own.
    for value in [offset, 0, address, size, size, 0] {
        h.extend(value.to_le_bytes());
    }
    h
}

fn note(notes: &mut Vec<u8>, name: &[u8], kind: u32, content: &[u8]) {
    for value in [name.len() as u32, content.len() as u32, kind] {
        notes.extend(value.to_le_bytes());
    }
    for part in [name, content] {
        notes.extend(part);
        notes.resize(notes.len().next_multiple_of(4), 0);
    }
}

fn prstatus(cpu: u32, r: &Registers) -> Vec<u8> {
    let mut status = vec![0; PRSTATUS];
    let [ax, cx, dx, bx, sp, bp, si, di, r8, r9, r10, r11, r12, r13, r14, r15] = r.gpr;
    let [es, cs, ss, ds, fs, gs] = r.segments;
    // The order of `user_regs_struct`; the second RAX is the system call's number.
    let registers = [
        r15,
        r14,
        r13,
        r12,
        bp,
        bx,
        r11,
        r10,
        r9,
        r8,
        ax,
        cx,
        dx,
        si,
        di,
        ax,
        r.rip,
        cs.selector.into(),
        r.rflags,
        sp,
        ss.selector.into(),
        fs.base,
        gs.base,
        ds.selector.into(),
        es.selector.into(),
        fs.selector.into(),
        gs.selector.into(),
    ];
    let places = status[PRSTATUS_REGISTERS..].chunks_exact_mut(8);
    places.zip(registers).for_each(|(place, value)| place.copy_from_slice(&u64::to_le_bytes(value)));
    status[PRSTATUS_PID..PRSTATUS_PID + 4].copy_from_slice(&(cpu + 1).to_le_bytes());
    status
}

fn qemu_state(r: &Registers) -> Vec<u8> {
    let [ax, cx, dx, bx, sp, bp, si, di, r8, r9, r10, r11, r12, r13, r14, r15] = r.gpr;
    let [es, cs, ss, ds, fs, gs] = r.segments;
    let mut state = Vec::new();
    let body: Vec<u8> = {
        let mut body = Vec::new();
        let general = [ax, bx, cx, dx, si, di, sp, bp, r8, r9, r10, r11, r12, r13, r14, r15, r.rip, r.rflags];
        general.iter().for_each(|value| body.extend(value.to_le_bytes()));
        let table = |(base, limit): (u64, u16)| SegmentRegister { base, limit: limit.into(), ..Default::default() };
        for segment in [cs, ds, es, fs, gs, ss, r.ldtr, r.tr, table(r.gdtr), table(r.idtr)] {
            let values = [u32::from(segment.selector), segment.limit, u32::from(segment.attributes) << 8, 0];
            values.iter().for_each(|value| body.extend(value.to_le_bytes()));
            body.extend(segment.base.to_le_bytes());
        }
        [r.cr0, 0, r.cr2, r.cr3, r.cr4].iter().for_each(|value| body.extend(value.to_le_bytes()));
        body
    };
    // Version and size come first; the kernel's GS base comes last, in later versions.
    state.extend(1u32.to_le_bytes());
    state.extend((body.len() as u32 + 8).to_le_bytes());
    state.extend(body);
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_cut_to_what_is_wanted() {
        let map = [0..0xa0000, 0x10_0000..0x80_0000];
        assert_eq!(pieces(&map, None), map);
        assert_eq!(pieces(&map, Some(0x9_0000..0x20_0000)), [0x9_0000..0xa_0000, 0x10_0000..0x20_0000]);
        assert!(pieces(&map, Some(0xa0000..0xb0000)).is_empty());
    }

    #[test]
    fn headers_have_their_sizes() {
        assert_eq!(elf_header(3).len() as u64, HEADER);
        assert_eq!(program_header(PT_LOAD, 1, 2, 3).len() as u64, PROGRAM_HEADER);
        let registers = Registers { rip: 0x1234, ..Registers::default() };
        let status = prstatus(0, &registers);
        // RIP is the seventeenth register.
        assert_eq!(status[PRSTATUS_REGISTERS + 16 * 8..][..8], 0x1234u64.to_le_bytes());
        assert_eq!(qemu_state(&registers).len(), 8 + 18 * 8 + 10 * 24 + 5 * 8);
        let mut notes = Vec::new();
        note(&mut notes, b"CORE\0", 1, &[1, 2, 3]);
        assert_eq!(notes.len(), 12 + 8 + 4);
    }
}
