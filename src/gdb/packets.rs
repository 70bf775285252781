//! QEMU's own packets, which gdbstub does not know: they are answered before it sees them.

/// Longest packet of QEMU's that there is.
const LONGEST: usize = 64;
/// What single steps leave out: the bits' names and values, which scripts ask for.
const STEP_BITS: &str = "ENABLE=1,NOIRQ=2,NOTIMER=4";
/// Steps are steps, and take no interrupts.
const STEP: u8 = 7;

/// What becomes of a byte.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is for gdbstub.
    Pass(u8),
    /// It may be part of a packet of QEMU's.
    Held,
    /// It is not, nor are those before it: all of them are for gdbstub.
    Release(Vec<u8>),
    /// It ended one: the answer to send.
    Answer(Vec<u8>),
}

/// Picks QEMU's packets out of what a client sends.
#[derive(Default)]
pub struct Filter {
    held: Vec<u8>,
    /// Bytes that were released and come again.
    pass: usize,
}

impl Filter {
    /// Takes the next byte; `physical` is what `PhyMemMode` sets.
    pub fn take(&mut self, byte: u8, physical: &mut bool) -> Taken {
        if self.pass > 0 {
            self.pass -= 1;
            return Taken::Pass(byte);
        }
        if self.held.is_empty() && byte != b'$' {
            return Taken::Pass(byte);
        }
        self.held.push(byte);
        let body = &self.held[1..];
        let may_be = [&b"qqemu."[..], b"Qqemu."].iter().any(|start| {
            let n = start.len().min(body.len());
            start[..n] == body[..n]
        });
        if !may_be || self.held.len() > LONGEST {
            // A dollar amid a packet starts another one.
            let again = byte == b'$' && self.held.len() > 1;
            self.pass = self.held.len() - usize::from(again);
            return Taken::Release(std::mem::take(&mut self.held));
        }
        // The packet ends with '#' and two digits of its sum.
        let Some(end) = body.iter().position(|b| *b == b'#').filter(|end| body.len() == end + 3) else {
            return Taken::Held;
        };
        let sum = u8::from_str_radix(&String::from_utf8_lossy(&body[end + 1..]), 16);
        let answer = match sum == Ok(checksum(&body[..end])) {
            true => reply(&answer(&String::from_utf8_lossy(&body[..end]), physical)),
            false => b"-".to_vec(),
        };
        self.held.clear();
        Taken::Answer(answer)
    }
}

fn checksum(body: &[u8]) -> u8 {
    body.iter().fold(0, |sum, b| sum.wrapping_add(*b))
}

fn reply(text: &str) -> Vec<u8> {
    format!("+${text}#{:02x}", checksum(text.as_bytes())).into_bytes()
}

/// The answer to a packet of QEMU's; an empty one for a packet that nobody knows.
fn answer(packet: &str, physical: &mut bool) -> String {
    match packet {
        "qqemu.sstepbits" => STEP_BITS.into(),
        "qqemu.sstep" => format!("0x{STEP:x}"),
        "qqemu.PhyMemMode" => u8::from(*physical).to_string(),
        "qqemu.Supported" => "sstepbits;sstep;PhyMemMode".into(),
        _ => match packet.strip_prefix("Qqemu.") {
            Some("PhyMemMode:0" | "PhyMemMode:1") => {
                *physical = packet.ends_with('1');
                "OK".into()
            }
            Some(set) if set.strip_prefix("sstep=").and_then(number) == Some(STEP) => "OK".into(),
            Some(set) if set.starts_with("sstep=") || set.starts_with("PhyMemMode:") => "E16".into(),
            _ => String::new(),
        },
    }
}

/// A number as QEMU takes it: decimal, or hexadecimal with 0x.
fn number(text: &str) -> Option<u8> {
    match text.strip_prefix("0x") {
        Some(hex) => u8::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What gdbstub and the client get of `bytes`.
    fn feed(filter: &mut Filter, bytes: &[u8], physical: &mut bool) -> (String, String) {
        let (mut passed, mut sent) = (Vec::new(), Vec::new());
        let mut queue: std::collections::VecDeque<u8> = bytes.iter().copied().collect();
        while let Some(byte) = queue.pop_front() {
            match filter.take(byte, physical) {
                Taken::Pass(b) => passed.push(b),
                Taken::Held => {}
                Taken::Release(all) => all.into_iter().rev().for_each(|b| queue.push_front(b)),
                Taken::Answer(text) => sent.extend(text),
            }
        }
        (String::from_utf8(passed).unwrap(), String::from_utf8(sent).unwrap())
    }

    fn packet(text: &str) -> Vec<u8> {
        format!("${text}#{:02x}", checksum(text.as_bytes())).into_bytes()
    }

    #[test]
    fn qemus_packets_are_answered_and_others_pass() {
        let (mut filter, mut physical) = (Filter::default(), false);
        let mut ask = |text: &str| feed(&mut filter, &packet(text), &mut physical);
        assert_eq!(ask("qqemu.sstepbits").1, "+$ENABLE=1,NOIRQ=2,NOTIMER=4#f4");
        assert_eq!(ask("qqemu.PhyMemMode").1, "+$0#30");
        assert_eq!(ask("Qqemu.PhyMemMode:1").1, "+$OK#9a");
        assert_eq!(ask("qqemu.PhyMemMode").1, "+$1#31");
        assert_eq!(ask("Qqemu.sstep=0x7").1, "+$OK#9a");
        assert_eq!(ask("Qqemu.sstep=1").1, "+$E16#ac");
        assert_eq!(ask("Qqemu.nonsense").1, "+$#00");
        for other in ["qSupported:xmlRegisters=i386", "QStartNoAckMode", "g"] {
            assert_eq!(ask(other), (String::from_utf8(packet(other)).unwrap(), String::new()));
        }
        assert!(physical);
    }

    #[test]
    fn anything_else_goes_through_unchanged() {
        let (mut filter, mut physical) = (Filter::default(), false);
        let odd = b"+\x03$$q$qqem$qqemu.sstep#zz+".to_vec();
        let (passed, sent) = feed(&mut filter, &odd, &mut physical);
        assert_eq!((passed.as_str(), sent.as_str()), ("+\u{3}$$q$qqem+", "-"));
        let long = [b"$qqemu.".to_vec(), vec![b'x'; 100]].concat();
        assert_eq!(feed(&mut filter, &long, &mut physical).0.as_bytes(), long);
    }
}
