//! Names of guest code: from a kernel's ELF file, or from a System.map.

use super::tasks::WANTED;
use std::collections::BTreeMap;

/// What an ELF file begins with.
pub const ELF: &[u8] = b"\x7fELF";

/// Functions by their addresses.
#[derive(Debug, Default)]
pub struct Symbols {
    by_address: BTreeMap<u64, String>,
    /// Where the data lie that [`super::tasks`] looks for.
    data: BTreeMap<&'static str, u64>,
}

/// Furthest that an address may lie behind a symbol that has no size.
const REACH: u64 = 1 << 20;

/// Little-endian fields of an ELF file, 0 where it ends too early.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    pub(super) fn number(&self, at: u64, len: usize) -> u64 {
        let start = usize::try_from(at).unwrap_or(usize::MAX);
        let field = start.checked_add(len).and_then(|end| self.0.get(start..end)).unwrap_or(&[]);
        field.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
    }

    fn text(&self, at: u64) -> &str {
        let rest = usize::try_from(at).ok().and_then(|at| self.0.get(at..)).unwrap_or(&[]);
        let end = rest.iter().position(|b| *b == 0).unwrap_or(0);
        std::str::from_utf8(&rest[..end]).unwrap_or("")
    }
}

impl Symbols {
    /// Those in `bytes`: an ELF file, or lines of a System.map.
    pub fn read(bytes: &[u8]) -> Self {
        if bytes.starts_with(ELF) { Self::of_elf(bytes) } else { Self::of_map(bytes) }
    }

    /// The symbol table of an ELF file (System V ABI, chapter 4).
    fn of_elf(bytes: &[u8]) -> Self {
        const SYMTAB: u64 = 2;
        const FUNCTION: u64 = 2;
        const NO_TYPE: u64 = 0;
        let f = Fields(bytes);
        let wide = f.number(4, 1) == 2;
        let (sections, entry, count) = match wide {
            true => (f.number(0x28, 8), f.number(0x3a, 2), f.number(0x3c, 2)),
            false => (f.number(0x20, 4), f.number(0x2e, 2), f.number(0x30, 2)),
        };
        let section = |n: u64| sections.wrapping_add(n.wrapping_mul(entry));
        // Offset, size and link of a section.
        let place = |at: u64| match wide {
            true => (f.number(at + 0x18, 8), f.number(at + 0x20, 8), f.number(at + 0x28, 4)),
            false => (f.number(at + 0x10, 4), f.number(at + 0x14, 4), f.number(at + 0x18, 4)),
        };
        let mut this = Self::default();
        for at in (0..count).map(section).filter(|at| *at < u64::MAX / 2 && f.number(at + 4, 4) == SYMTAB) {
            let (table, size, link) = place(at);
            let (names, ..) = place(section(link).min(u64::MAX / 2));
            let step = if wide { 24 } else { 16 };
            let size = size.min(bytes.len() as u64);
            for at in (0..size / step).map(|n| table.wrapping_add(n * step)).filter(|at| *at < u64::MAX / 2) {
                let (info, address, index) = match wide {
                    true => (f.number(at + 4, 1), f.number(at + 8, 8), f.number(at + 6, 2)),
                    false => (f.number(at + 12, 1), f.number(at + 4, 4), f.number(at + 14, 2)),
                };
                let name = f.text(names.wrapping_add(f.number(at, 4)));
                note_data(&mut this.data, address, name);
                // Assemblers give labels no type; section 0 is for what is not here.
                if matches!(info & 15, FUNCTION | NO_TYPE) && index != 0 && !name.is_empty() {
                    this.add(address, name);
                }
            }
        }
        this
    }

    /// Lines of an address, a letter and a name, as nm(1) prints them.
    fn of_map(bytes: &[u8]) -> Self {
        let mut this = Self::default();
        for line in String::from_utf8_lossy(bytes).lines() {
            let mut words = line.split_whitespace();
            let (Some(address), Some(kind), Some(name)) = (words.next(), words.next(), words.next()) else { continue };
            let Ok(address) = u64::from_str_radix(address, 16) else { continue };
            note_data(&mut this.data, address, name);
            if let "t" | "T" | "w" | "W" = kind {
                this.add(address, name);
            }
        }
        this
    }

    fn add(&mut self, address: u64, name: &str) {
        // Of several names, the first: others are aliases.
        self.by_address.entry(address).or_insert_with(|| name.to_owned());
    }

    /// The first symbol whose name has `part`, for tests.
    #[cfg(test)]
    pub fn first_with(&self, part: &str) -> Option<u64> {
        self.by_address.iter().find(|(_, name)| name.contains(part)).map(|(address, _)| *address)
    }

    /// Where one of the kernel's data of [`super::tasks::WANTED`] lies.
    pub fn data(&self, name: &str) -> Option<u64> {
        self.data.get(name).copied()
    }

    /// Whether there are any.
    pub fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }

    /// The function that `address` lies in.
    pub fn name(&self, address: u64) -> Option<&str> {
        let (start, name) = self.by_address.range(..=address).next_back()?;
        (address - start < REACH).then_some(name.as_str())
    }
}

/// Keeps the place of what is looked for by name.
fn note_data(data: &mut BTreeMap<&'static str, u64>, address: u64, name: &str) {
    if let Some(wanted) = WANTED.iter().find(|wanted| **wanted == name) {
        data.insert(wanted, address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map() {
        let map = Symbols::read(
            b"ffffffff81000000 T _text\nffffffff81000100 t do_one\nffffffff81000100 T alias\nbad line\nffffffff82000000 D data\n",
        );
        assert_eq!(map.name(0xffffffff81000050), Some("_text"));
        assert_eq!(map.name(0xffffffff81000100), Some("do_one"));
        assert_eq!(map.name(0xffffffff80000000), None);
        assert_eq!(map.name(0xffffffff82000000), None, "too far behind the last one");
        assert!(Symbols::read(b"\xff\xfe").is_empty());
    }

    #[test]
    fn our_own_file_and_broken_ones() {
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let own = Symbols::read(&bytes);
        assert!(own.by_address.values().any(|name| name.contains("our_own_file_and_broken_ones")));
        // However it is cut or spoilt, there is no panic.
        let mut seed = 1u64;
        for cut in [0, 4, 5, 63, 64, 65, 1000, bytes.len() / 2] {
            let mut part = bytes[..cut.min(bytes.len())].to_vec();
            for _ in 0..20 {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                if let Some(byte) = part.get_mut((seed >> 33) as usize % 64) {
                    *byte = (seed >> 20) as u8;
                }
            }
            let _ = Symbols::read(&part);
        }
    }
}
