//! Numbers in monitor commands: `0x1000`, `$rip`, `$rsp+8`, `(1+2)*4`.

use crate::cli::values;
use brolga_jit::Registers;

/// Deepest nesting of parentheses and signs taken.
const DEEPEST: u32 = 64;

/// The value of `text`; `registers` of the current vCPU. Arithmetic wraps at 64 bits.
pub fn evaluate(text: &str, registers: Option<&Registers>) -> Result<u64, String> {
    let mut parser = Parser { rest: text.trim_start(), registers, depth: 0, path_follows: false };
    let value = parser.sum()?;
    if parser.rest.is_empty() { Ok(value) } else { Err(format!("unexpected '{}'", parser.rest)) }
}

/// The value of the expression that `text` begins with, and what follows it: numbers may stand one after the other. A
/// slash that no number follows begins a path.
pub fn evaluate_first<'a>(text: &'a str, registers: Option<&Registers>) -> Result<(u64, &'a str), String> {
    let mut parser = Parser { rest: text.trim_start(), registers, depth: 0, path_follows: true };
    let value = parser.sum()?;
    Ok((value, parser.rest))
}

struct Parser<'a, 'r> {
    rest: &'a str,
    registers: Option<&'r Registers>,
    depth: u32,
    /// What follows may be a path.
    path_follows: bool,
}

impl Parser<'_, '_> {
    fn operator(&mut self, choices: &[char]) -> Option<char> {
        let c = self.rest.chars().next().filter(|c| choices.contains(c))?;
        self.rest = self.rest[c.len_utf8()..].trim_start();
        Some(c)
    }

    fn sum(&mut self) -> Result<u64, String> {
        let mut value = self.product()?;
        while let Some(op) = self.operator(&['+', '-', '&', '|', '^']) {
            let right = self.product()?;
            value = match op {
                '+' => value.wrapping_add(right),
                '-' => value.wrapping_sub(right),
                '&' => value & right,
                '|' => value | right,
                _ => value ^ right,
            };
        }
        Ok(value)
    }

    fn factor(&mut self) -> Option<char> {
        let number = |c: char| c.is_ascii_digit() || matches!(c, '$' | '(' | '-' | '~' | '+' | ' ');
        match self.rest.strip_prefix('/') {
            Some(after) if self.path_follows && !after.starts_with(number) => None,
            _ => self.operator(&['*', '/', '%']),
        }
    }

    fn product(&mut self) -> Result<u64, String> {
        let mut value = self.unary()?;
        while let Some(op) = self.factor() {
            let right = self.unary()?;
            let result = match op {
                '*' => Some(value.wrapping_mul(right)),
                '/' => value.checked_div(right),
                _ => value.checked_rem(right),
            };
            value = result.ok_or("division by zero")?;
        }
        Ok(value)
    }

    fn unary(&mut self) -> Result<u64, String> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err("nested too deeply".into());
        }
        let value = match self.operator(&['-', '~', '+', '(']) {
            Some('-') => self.unary()?.wrapping_neg(),
            Some('~') => !self.unary()?,
            Some('+') => self.unary()?,
            Some(_) => {
                let value = self.sum()?;
                self.operator(&[')']).ok_or("')' is missing")?;
                value
            }
            None => self.atom()?,
        };
        self.depth -= 1;
        Ok(value)
    }

    fn atom(&mut self) -> Result<u64, String> {
        let dollar = self.rest.starts_with('$');
        let body = &self.rest[usize::from(dollar)..];
        let length = body.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(body.len());
        let word = &body[..length];
        self.rest = body[length..].trim_start();
        if word.is_empty() {
            return Err("a number is missing".into());
        }
        if dollar { self.register(word) } else { values::number(word) }
    }

    fn register(&self, name: &str) -> Result<u64, String> {
        let registers = self.registers.ok_or("registers are not available")?;
        register(registers, &name.to_ascii_lowercase()).ok_or_else(|| format!("unknown register '${name}'"))
    }
}

/// A register by name.
fn register(r: &Registers, name: &str) -> Option<u64> {
    const NAMES: [&str; 16] =
        ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];
    const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];
    if let Some(i) = NAMES.iter().position(|n| *n == name) {
        return Some(r.gpr[i]);
    }
    if let Some(i) = SEGMENTS.iter().position(|n| *n == name) {
        return Some(r.segments[i].selector.into());
    }
    if let Some(i) = name.strip_suffix("_base").and_then(|n| SEGMENTS.iter().position(|s| *s == n)) {
        return Some(r.segments[i].base);
    }
    // 32-bit names are the low halves.
    if let Some(i) = name.strip_prefix('e').and_then(|n| NAMES.iter().position(|full| full[1..] == *n)) {
        return Some(r.gpr[i] & 0xffff_ffff);
    }
    Some(match name {
        "rip" | "pc" => r.rip,
        "eip" => r.rip & 0xffff_ffff,
        "rflags" | "eflags" => r.rflags,
        "cr0" => r.cr0,
        "cr2" => r.cr2,
        "cr3" => r.cr3,
        "cr4" => r.cr4,
        "efer" => r.efer,
        "ldt" => r.ldtr.selector.into(),
        "tr" => r.tr.selector.into(),
        "gdt_base" => r.gdtr.0,
        "idt_base" => r.idtr.0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic() {
        let eval = |t: &str| evaluate(t, None);
        assert_eq!(eval("0x10 + 2*3"), Ok(22));
        assert_eq!(eval("(1+2)*-1"), Ok(u64::MAX - 2));
        assert_eq!(eval("~0 & 0xff"), Ok(0xff));
        for bad in ["", "1+", "(1", "1)", "1/0", "$rip", "1 2", "xyz", "0x"] {
            assert!(eval(bad).is_err(), "{bad}");
        }
        assert!(eval(&"(".repeat(10_000)).is_err());
        assert!(eval(&"-".repeat(10_000)).is_err());
    }

    #[test]
    fn one_after_the_other() {
        assert_eq!(evaluate_first("0x10 32 \"file\"", None), Ok((16, "32 \"file\"")));
        assert_eq!(evaluate_first("1 + 2 (4)", None), Ok((3, "(4)")));
        assert_eq!(evaluate_first("8/2 /tmp/x", None), Ok((4, "/tmp/x")));
    }

    #[test]
    fn registers() {
        let mut r = Registers { rip: 0x1_0000_fff0, ..Registers::default() };
        r.gpr[4] = 0xffff_8000_0000_1000;
        r.gpr[8] = 8;
        r.segments[1].base = 0xffff_0000;
        assert_eq!(evaluate("$rsp+8", Some(&r)), Ok(0xffff_8000_0000_1008));
        assert_eq!(evaluate("$esp", Some(&r)), Ok(0x1000));
        assert_eq!(evaluate("$cs_base + $eip", Some(&r)), Ok(0xffff_fff0));
        assert_eq!(evaluate("$R8", Some(&r)), Ok(8));
        assert_eq!(evaluate("$nope", Some(&r)), Err("unknown register '$nope'".into()));
    }
}
