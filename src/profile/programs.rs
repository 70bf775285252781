//! Programs whose ELF files the user has (`-profile program=`): they are known in the guest by their code, wherever it was
//! loaded, and their functions by the files' symbols.

use super::ReadWord;
use super::symbols::{ELF, Fields, Symbols};
use anyhow::{Result, anyhow};
use std::path::Path;

/// A page: programs are moved by whole ones.
const PAGE: u64 = 4096;
/// Code that is compared, in words of eight bytes. It is aligned, so it does not leave its page.
const WORDS: u64 = 8;

/// One of them.
pub struct Program {
    name: String,
    bytes: Vec<u8>,
    symbols: Symbols,
    /// Code: address, offset in the file, bytes.
    code: Vec<(u64, u64, u64)>,
}

impl Program {
    /// Reads the file that `-profile program=` names.
    pub fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let bytes = std::fs::read(path).map_err(|e| {
            anyhow!("-profile program={shown}: cannot be read: {}; check the path", crate::cli::os_reason(&e))
        })?;
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let this = Self::new(name, bytes);
        match this.code.is_empty() || this.symbols.is_empty() {
            true => {
                Err(anyhow!("-profile program={shown}: no symbols in it; give a 64-bit ELF file that is not stripped"))
            }
            false => Ok(this),
        }
    }

    fn new(name: String, bytes: Vec<u8>) -> Self {
        // System V ABI, chapter 5: program headers.
        const LOAD: u64 = 1;
        const EXECUTE: u64 = 1;
        let f = Fields(&bytes);
        let mut code = Vec::new();
        if bytes.starts_with(ELF) && f.number(4, 1) == 2 {
            let (table, size, count) = (f.number(0x20, 8), f.number(0x36, 2), f.number(0x38, 2));
            for at in (0..count).map(|n| table.wrapping_add(n * size)).filter(|at| *at < u64::MAX / 2) {
                let (offset, address, len) = (f.number(at + 8, 8), f.number(at + 0x10, 8), f.number(at + 0x20, 8));
                let inside = offset.checked_add(len).is_some_and(|end| end <= bytes.len() as u64);
                if f.number(at, 4) == LOAD && f.number(at + 4, 4) & EXECUTE != 0 && inside {
                    code.push((address, offset, len));
                }
            }
        }
        let symbols = Symbols::read(&bytes);
        Self { name, symbols, code, bytes }
    }

    /// What the file is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The function that has the file's address `at`.
    pub fn function(&self, at: u64) -> Option<&str> {
        self.symbols.name(at)
    }

    /// `at` is in the program's code, as an address of the file's.
    pub fn has(&self, at: u64) -> bool {
        self.code.iter().any(|(address, _, len)| at.wrapping_sub(*address) < *len)
    }

    /// How far the program was moved from its file's addresses, if it is what has the instruction at `rip`: its code is there,
    /// and there at one place in the file only.
    pub fn moved(&self, rip: u64, read: ReadWord<'_>) -> Option<u64> {
        let start = rip & !(8 * WORDS - 1);
        let mut here = Vec::with_capacity(8 * WORDS as usize);
        for n in 0..WORDS {
            here.extend(read(start + 8 * n)?.to_le_bytes());
        }
        let mut places = self.code.iter().flat_map(|(address, offset, len)| {
            // The first address of the segment that lies as `start` does in its page.
            let skip = start.wrapping_sub(*address) % PAGE;
            let bytes = &self.bytes;
            let here = &here;
            (skip..*len).step_by(PAGE as usize).filter_map(move |at| {
                let from = (offset + at) as usize;
                (bytes.get(from..from + here.len()) == Some(here.as_slice())).then(|| address.wrapping_add(at))
            })
        });
        let place = places.next()?;
        places.next().is_none().then(|| start.wrapping_sub(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This very program, as if a guest ran it.
    #[test]
    fn a_program_is_found_wherever_it_lies() {
        let path = std::env::current_exe().unwrap();
        let own = Program::open(&path).unwrap();
        assert!(own.name().starts_with("brolga"));
        let (address, offset, len) = *own.code.iter().max_by_key(|(_, _, len)| *len).unwrap();
        let symbol = own.symbols.first_with("a_program_is_found_wherever_it_lies").unwrap();
        assert!(own.has(symbol) && symbol - address < len);
        const MOVED: u64 = 0x5555_1234_5000;
        let read = |at: u64| {
            let from = (at - MOVED - address + offset) as usize;
            Some(u64::from_le_bytes(own.bytes[from..from + 8].try_into().unwrap()))
        };
        assert_eq!(own.moved(symbol + MOVED + 16, &read), Some(MOVED));
        assert!(own.function(symbol + 16).unwrap().contains("a_program_is_found_wherever_it_lies"));
        assert_eq!(own.moved(symbol + MOVED, &|_| Some(0x1234_5678_9abc_def0)), None, "other code");
        assert_eq!(own.moved(symbol + MOVED, &|_| None), None);
        let refused = Program::open(Path::new("/nonexistent/x")).err().unwrap().to_string();
        assert!(refused.contains("program=/nonexistent/x: cannot be read"), "{refused}");
    }

    #[test]
    fn broken_files_do_no_harm() {
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let mut seed = 7u64;
        for _ in 0..200 {
            let mut part = bytes[..4096].to_vec();
            for _ in 0..4 {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                part[32 + (seed >> 33) as usize % 400] = (seed >> 20) as u8;
            }
            let program = Program::new("x".into(), part);
            let _ = program.moved(seed, &|_| Some(seed));
            let _ = program.has(seed);
        }
    }
}
