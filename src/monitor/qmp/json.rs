//! Messages in a stream of bytes: where one ends and the next begins, and what is no JSON.

use serde_json::Value;

/// Longest message taken, in bytes.
pub const LONGEST: usize = 4 << 20;

/// What came in.
#[derive(Debug, PartialEq)]
pub enum Piece {
    /// A message.
    Message(Value),
    /// Something that is none, and why.
    Broken(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Outside of messages.
    Between,
    /// In a word outside of messages.
    Word,
    /// Inside of brackets, outside of strings.
    Inside,
    /// In a string that this byte ends; after a backslash or not.
    Text { quote: u8, escaped: bool },
    /// What follows an error, to the end of the line.
    Lost,
    /// A message that is too long, up to its end; in a string or not.
    TooLong { text: bool, escaped: bool },
}

/// Cuts a stream into messages.
pub struct Splitter {
    state: State,
    depth: usize,
    message: Vec<u8>,
}

impl Splitter {
    /// At the beginning of a stream.
    pub fn new() -> Self {
        Self { state: State::Between, depth: 0, message: Vec::new() }
    }

    /// One byte; what it completes.
    pub fn push(&mut self, byte: u8) -> Option<Piece> {
        let piece = match self.state {
            State::Between => self.between(byte),
            State::Word => self.word(byte),
            State::Inside => self.inside(byte),
            State::Text { quote, escaped } => self.text(byte, quote, escaped),
            State::Lost => {
                if byte == b'\n' {
                    self.state = State::Between;
                }
                None
            }
            State::TooLong { text, escaped } => {
                self.too_long(byte, text, escaped);
                None
            }
        };
        if self.message.len() > LONGEST {
            let text = matches!(self.state, State::Text { .. });
            self.message = Vec::new();
            self.state = State::TooLong { text, escaped: false };
            return Some(Piece::Broken(format!(
                "JSON token size limit exceeded: a message has at most {LONGEST} bytes"
            )));
        }
        piece
    }

    fn between(&mut self, byte: u8) -> Option<Piece> {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => None,
            b'{' | b'[' => {
                self.state = State::Inside;
                self.depth = 1;
                self.message.push(byte);
                None
            }
            b'"' | b'0'..=b'9' | b'-' | b'a'..=b'z' | b'A'..=b'Z' => {
                self.state = State::Word;
                self.message.push(byte);
                None
            }
            b'}' | b']' | b',' | b':' => Some(self.lost("expecting value")),
            _ => Some(self.lost(&stray(byte))),
        }
    }

    /// Numbers and words that are values by themselves, or no JSON at all.
    fn word(&mut self, byte: u8) -> Option<Piece> {
        let ends = matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | b'{' | b'}' | b'[' | b']' | b',' | b':');
        let in_text = self.message.first() == Some(&b'"');
        let closed = in_text && self.message.len() > 1 && self.message.last() == Some(&b'"');
        if if in_text { !closed && byte >= 0x20 } else { !ends && byte > 0x20 } {
            self.message.push(byte);
            return None;
        }
        let piece = self.complete();
        match piece {
            Piece::Broken(_) if byte != b'\n' => self.state = State::Lost,
            Piece::Broken(_) => {}
            // A bracket begins the next message; anything else adds nothing to what is told already.
            Piece::Message(_) => drop(self.between(byte)),
        }
        Some(piece)
    }

    fn inside(&mut self, byte: u8) -> Option<Piece> {
        match byte {
            b'"' | b'\'' => {
                self.state = State::Text { quote: byte, escaped: false };
                self.message.push(b'"');
            }
            b'{' | b'[' => {
                self.depth += 1;
                self.message.push(byte);
            }
            b'}' | b']' => {
                self.depth -= 1;
                self.message.push(byte);
                if self.depth == 0 {
                    return Some(self.complete());
                }
            }
            b' ' | b'\t' | b'\r' | b'\n' => self.message.push(byte),
            b',' | b':' | b'+' | b'-' | b'.' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => self.message.push(byte),
            _ => return Some(self.lost(&stray(byte))),
        }
        None
    }

    /// Strings may stand in single quotes too, as QEMU has it; serde gets double ones.
    fn text(&mut self, byte: u8, quote: u8, escaped: bool) -> Option<Piece> {
        if byte < 0x20 {
            let piece = self.lost("a string does not end in its line");
            if byte == b'\n' {
                self.state = State::Between;
            }
            return Some(piece);
        }
        if escaped {
            self.message.pop_if(|_| byte == b'\'');
            self.message.push(byte);
            self.state = State::Text { quote, escaped: false };
            return None;
        }
        match byte {
            b'\\' => {
                self.message.push(byte);
                self.state = State::Text { quote, escaped: true };
            }
            _ if byte == quote => {
                self.message.push(b'"');
                self.state = State::Inside;
            }
            b'"' => self.message.extend_from_slice(b"\\\""),
            _ => self.message.push(byte),
        }
        None
    }

    fn too_long(&mut self, byte: u8, text: bool, escaped: bool) {
        match byte {
            _ if escaped => self.state = State::TooLong { text, escaped: false },
            b'\\' if text => self.state = State::TooLong { text, escaped: true },
            b'"' => self.state = State::TooLong { text: !text, escaped: false },
            b'{' | b'[' if !text => self.depth += 1,
            b'}' | b']' if !text => {
                self.depth = self.depth.saturating_sub(1);
                if self.depth == 0 {
                    self.state = State::Between;
                }
            }
            _ => {}
        }
    }

    fn complete(&mut self) -> Piece {
        self.state = State::Between;
        self.depth = 0;
        let message = std::mem::take(&mut self.message);
        match serde_json::from_slice(&message) {
            Ok(value) => Piece::Message(value),
            Err(error) => Piece::Broken(format!("JSON parse error, {error}")),
        }
    }

    fn lost(&mut self, why: &str) -> Piece {
        self.message = Vec::new();
        self.state = State::Lost;
        Piece::Broken(format!("JSON parse error, {why}"))
    }
}

fn stray(byte: u8) -> String {
    format!("stray '{}'", byte.escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pieces(text: &[u8]) -> Vec<Piece> {
        let mut splitter = Splitter::new();
        text.iter().filter_map(|byte| splitter.push(*byte)).collect()
    }

    fn message(text: &str) -> Value {
        match pieces(text.as_bytes()).as_slice() {
            [Piece::Message(value)] => value.clone(),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn messages_end_where_their_brackets_do() {
        assert_eq!(message("{\"a\": \"}{\\\"\"}"), json!({"a": "}{\""}));
        assert_eq!(message(" \r\n{\n\t\"a\":[1,{\"b\":null}]\n}"), json!({"a": [1, {"b": null}]}));
        assert_eq!(message("{'it': 'a \"b\" \\'c\\' \\\\'}"), json!({"it": "a \"b\" 'c' \\"}));
        assert_eq!(pieces(b"{}[]{}").len(), 3);
        assert_eq!(message("5\n"), json!(5));
        assert_eq!(message("\"a b\"\n"), json!("a b"));
    }

    #[test]
    fn what_is_broken_costs_a_line_at_most() {
        for broken in ["hello", "{\"a\": \"b", "{@", "}", "{\"a\" 1}", "{]", "\u{ff}", "tru", "{\"a\":\u{1}}"] {
            let text = format!("{broken}\n{{\"ok\":1}}\n");
            let found = pieces(text.as_bytes());
            assert!(matches!(found[0], Piece::Broken(_)), "{broken}");
            assert_eq!(found[1..], [Piece::Message(json!({"ok": 1}))], "{broken}");
        }
        assert_eq!(pieces(b"}\n"), [Piece::Broken("JSON parse error, expecting value".into())]);
        assert_eq!(pieces(b"\xff"), [Piece::Broken("JSON parse error, stray '\\xff'".into())]);
    }

    #[test]
    fn depth_and_length_are_bounded() {
        let deep = [vec![b'['; 10_000], vec![b']'; 10_000]].concat();
        assert!(matches!(pieces(&deep)[..], [Piece::Broken(_)]));
        let mut long = vec![b'x'; LONGEST + 10];
        long[0] = b'{';
        long[1] = b'"';
        long.extend(b"\"}}{\"ok\":1}");
        let mut splitter = Splitter::new();
        let found: Vec<Piece> = long.iter().filter_map(|byte| splitter.push(*byte)).collect();
        assert!(matches!(&found[0], Piece::Broken(why) if why.contains("limit exceeded")));
        assert!(found.contains(&Piece::Message(json!({"ok": 1}))) || found.len() >= 2, "{found:?}");
        assert!(splitter.message.capacity() < LONGEST);
    }

    #[test]
    fn random_bytes_never_break_it() {
        let (mut seed, mut splitter) = (0x9e37_79b9_7f4a_7c15_u64, Splitter::new());
        let alphabet = b"{}[]\"'\\,:0-etruflasn \n\x00\xff%.x";
        let mut count = 0;
        for _ in 0..300_000 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let byte = alphabet[(seed >> 20) as usize % alphabet.len()];
            count += usize::from(splitter.push(byte).is_some());
        }
        assert!(count > 1000);
    }
}
