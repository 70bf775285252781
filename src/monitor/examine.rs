//! `x`, `xp` and `print`: memory and numbers in a chosen format.

use super::host::MonitorHost;
use brolga_jit::Registers;

/// Most items shown by one command.
const MOST: usize = 65536;
/// Longest x86 instruction.
const LONGEST_INSTRUCTION: usize = 15;

/// `/COUNT FORMAT SIZE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// How many items.
    pub count: usize,
    /// x, d, u, o, c or i.
    pub kind: char,
    /// Bytes of an item: 1, 2, 4 or 8.
    pub size: usize,
}

impl Default for Format {
    fn default() -> Self {
        Self { count: 1, kind: 'x', size: 4 }
    }
}

impl Format {
    /// Parses what follows the slash; what is not said is as in `last`.
    pub fn parse(text: &str, last: Format) -> Result<Self, String> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let mut format = Self { count: 1, ..last };
        if digits > 0 {
            let count = text[..digits].parse::<usize>().ok().filter(|n| (1..=MOST).contains(n));
            format.count = count.ok_or_else(|| format!("the count must be 1 to {MOST}"))?;
        }
        for c in text[digits..].chars() {
            match c {
                'x' | 'd' | 'u' | 'o' | 'i' => format.kind = c,
                'c' => (format.kind, format.size) = (c, 1),
                'b' => format.size = 1,
                'h' => format.size = 2,
                'w' => format.size = 4,
                'g' => format.size = 8,
                _ => return Err(format!("'{c}' is not a format (x d u o c i) or size (b h w g)")),
            }
        }
        Ok(format)
    }
}

/// Columns of a number of `size` bytes.
fn width(kind: char, size: usize) -> usize {
    match kind {
        'o' => (8 * size).div_ceil(3),
        'u' | 'd' => (8 * 10 * size).div_ceil(33),
        _ => 0,
    }
}

/// One number of `size` bytes. Only those of 8 bytes have a sign, as in QEMU.
pub fn show(value: u64, kind: char, size: usize) -> String {
    let bits = 8 * size as u32;
    let value = if bits < 64 { value & ((1 << bits) - 1) } else { value };
    match kind {
        'd' => format!("{}", value as i64),
        'u' => format!("{value}"),
        'o' if value == 0 => "0".to_owned(),
        'o' => format!("0{value:o}"),
        'c' => format!("'{}'", (value as u8).escape_ascii()),
        _ => format!("0x{value:0width$x}", width = 2 * size),
    }
}

/// Reads memory for `x` (linear addresses of `cpu`) or `xp` (physical ones).
pub struct Reader<'a> {
    /// The machine.
    pub host: &'a dyn MonitorHost,
    /// Whose mapping is used.
    pub cpu: u32,
    /// Addresses are physical.
    pub physical: bool,
}

impl Reader<'_> {
    /// Reads `buf.len()` bytes; stops at the first page that is not there and returns how many were read.
    fn read(&self, address: u64, buf: &mut [u8]) -> usize {
        let mut done = 0;
        while done < buf.len() {
            let at = address.wrapping_add(done as u64);
            let n = ((4096 - at % 4096) as usize).min(buf.len() - done);
            let physical = if self.physical { Some(at) } else { self.host.translate(self.cpu, at) };
            if !physical.is_some_and(|p| self.host.read_physical(p, &mut buf[done..done + n])) {
                break;
            }
            done += n;
        }
        done
    }

    /// The text of `x` or `xp`.
    pub fn dump(&self, address: u64, format: Format, registers: Option<&Registers>) -> String {
        if format.kind == 'i' {
            return self.disassemble(address, format.count, registers);
        }
        let mut bytes = vec![0; format.count * format.size];
        let have = self.read(address, &mut bytes) / format.size * format.size;
        let per_line = if format.kind == 'c' { 8 } else { 16 / format.size };
        let width = width(format.kind, format.size);
        let mut out = String::new();
        for (i, line) in bytes[..have].chunks(per_line * format.size).enumerate() {
            let at = address.wrapping_add((i * per_line * format.size) as u64);
            out += &format!("{at:016x}:");
            for item in line.chunks(format.size) {
                let value = item.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b));
                out += &format!(" {:>width$}", show(value, format.kind, format.size));
            }
            out.push('\n');
        }
        if have < bytes.len() {
            let at = address.wrapping_add(have as u64);
            out += &format!("Cannot access memory at address {at:#x}\n");
        }
        out
    }

    fn disassemble(&self, address: u64, count: usize, registers: Option<&Registers>) -> String {
        let mut bytes = vec![0; count * LONGEST_INSTRUCTION];
        let have = self.read(address, &mut bytes);
        let shown = brolga_jit::instructions(bytes.get(..have).unwrap_or_default(), address, bitness(registers), count);
        let mut out = shown.concat();
        if shown.len() < count {
            out += &format!("Cannot access memory at address {:#x}\n", address.wrapping_add(have as u64));
        }
        out
    }
}

/// Code size of the mode that the processor is in (SDM 3A 5.2.1: L and D bits of CS).
fn bitness(registers: Option<&Registers>) -> u32 {
    const LONG_MODE_ACTIVE: u64 = 1 << 10;
    let Some(r) = registers else { return 64 };
    let cs = r.segments[1].attributes;
    match (r.efer & LONG_MODE_ACTIVE != 0 && cs >> 13 & 1 != 0, cs >> 14 & 1 != 0) {
        (true, _) => 64,
        (false, true) => 32,
        (false, false) => 16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        let last = Format::default();
        assert_eq!(Format::parse("64xb", last), Ok(Format { count: 64, kind: 'x', size: 1 }));
        assert_eq!(Format::parse("", last), Ok(last));
        assert_eq!(Format::parse("2i", last).unwrap().kind, 'i');
        assert!(Format::parse("0x", last).is_err() && Format::parse("99999999999x", last).is_err());
        assert!(Format::parse("4z", last).is_err());
    }

    #[test]
    fn numbers() {
        assert_eq!(show(0xfffe, 'd', 2), "65534");
        assert_eq!((show(0, 'o', 2), width('o', 4), width('d', 4), width('u', 8)), ("0".to_owned(), 11, 10, 20));
        assert_eq!(show(0xfffe, 'x', 4), "0x0000fffe");
        assert_eq!(show(u64::MAX, 'd', 8), "-1");
        assert_eq!(show(u64::MAX, 'u', 1), "255");
        assert_eq!(show(8, 'o', 4), "010");
        assert_eq!(show(b'A'.into(), 'c', 1), "'A'");
        assert_eq!(show(0x1b, 'c', 1), "'\\x1b'");
    }
}
