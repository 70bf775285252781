//! Line editing for the monitor: as much as a person expects, on any character device.

use std::mem;

/// Longest line taken; more is refused with a bell.
const LONGEST: usize = 4095;
/// Lines remembered.
const HISTORY: usize = 100;
const BELL: &[u8] = b"\x07";

/// Part of an escape sequence seen so far.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Escape {
    None,
    /// ESC.
    Started,
    /// ESC [ or ESC O.
    Sequence,
}

/// The line being typed.
pub struct LineEditor {
    line: Vec<u8>,
    escape: Escape,
    history: Vec<Vec<u8>>,
    /// Position in the history while going through it.
    at: usize,
    /// The last byte was CR: an LF after it is not another line.
    after_cr: bool,
}

impl LineEditor {
    /// An empty line.
    pub fn new() -> Self {
        Self { line: Vec::new(), escape: Escape::None, history: Vec::new(), at: 0, after_cr: false }
    }

    /// One byte of input. Appends what the terminal shall show to `echo`; returns the line when it is complete.
    pub fn input(&mut self, byte: u8, echo: &mut Vec<u8>) -> Option<String> {
        let after_cr = mem::replace(&mut self.after_cr, byte == b'\r');
        match (mem::replace(&mut self.escape, Escape::None), byte) {
            (Escape::Started, b'[' | b'O') => self.escape = Escape::Sequence,
            (Escape::Started, _) => {}
            // Parameters go on until a final byte (ECMA-48 5.4).
            (Escape::Sequence, 0x20..=0x3f) => self.escape = Escape::Sequence,
            (Escape::Sequence, b'A') => self.recall(self.at.checked_sub(1), echo),
            (Escape::Sequence, b'B') => self.recall(Some(self.at + 1), echo),
            (Escape::Sequence, _) => {}
            (Escape::None, 0x1b) => self.escape = Escape::Started,
            (Escape::None, b'\n') if after_cr => {}
            (Escape::None, b'\r' | b'\n') => return Some(self.complete(echo)),
            (Escape::None, 0x08 | 0x7f) => self.erase(1, echo),
            (Escape::None, 0x10) => self.recall(self.at.checked_sub(1), echo),
            (Escape::None, 0x0e) => self.recall(Some(self.at + 1), echo),
            // Ctrl-U, Ctrl-C: the whole line; Ctrl-W: a word.
            (Escape::None, 0x15 | 0x03) => self.erase(usize::MAX, echo),
            (Escape::None, 0x17) => self.erase_word(echo),
            (Escape::None, 0x20..) if self.line.len() < LONGEST => {
                self.line.push(byte);
                echo.push(byte);
            }
            (Escape::None, _) => echo.extend_from_slice(BELL),
        }
        None
    }

    /// The line as typed so far, to show it again.
    pub fn typed(&self) -> &[u8] {
        &self.line
    }

    fn complete(&mut self, echo: &mut Vec<u8>) -> String {
        echo.extend_from_slice(b"\r\n");
        let line = mem::take(&mut self.line);
        if !line.is_empty() && self.history.last() != Some(&line) {
            self.history.push(line.clone());
            if self.history.len() > HISTORY {
                self.history.remove(0);
            }
        }
        self.at = self.history.len();
        String::from_utf8_lossy(&line).into_owned()
    }

    /// Removes up to `count` characters from the end.
    fn erase(&mut self, count: usize, echo: &mut Vec<u8>) {
        for _ in 0..count {
            // Continuation bytes of UTF-8 belong to the character before them.
            while self.line.last().is_some_and(|b| b & 0xc0 == 0x80) {
                self.line.pop();
            }
            if self.line.pop().is_none() {
                break;
            }
            echo.extend_from_slice(b"\x08 \x08");
        }
    }

    fn erase_word(&mut self, echo: &mut Vec<u8>) {
        while self.line.last() == Some(&b' ') {
            self.erase(1, echo);
        }
        while self.line.last().is_some_and(|b| *b != b' ') {
            self.erase(1, echo);
        }
    }

    fn recall(&mut self, at: Option<usize>, echo: &mut Vec<u8>) {
        let Some(at) = at.filter(|at| *at <= self.history.len()) else {
            echo.extend_from_slice(BELL);
            return;
        };
        self.erase(usize::MAX, echo);
        self.at = at;
        if let Some(line) = self.history.get(at) {
            self.line.clone_from(line);
            echo.extend_from_slice(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(editor: &mut LineEditor, bytes: &[u8]) -> (Vec<String>, String) {
        let mut echo = Vec::new();
        let lines = bytes.iter().filter_map(|b| editor.input(*b, &mut echo)).collect();
        (lines, String::from_utf8(echo).unwrap())
    }

    #[test]
    fn echo_and_line_ends() {
        let mut e = LineEditor::new();
        assert_eq!(feed(&mut e, b"stop\r\ncont\n"), (vec!["stop".into(), "cont".into()], "stop\r\ncont\r\n".into()));
        assert_eq!(feed(&mut e, b"\n\n").0, ["", ""]);
    }

    #[test]
    fn erasing() {
        let mut e = LineEditor::new();
        assert_eq!(feed(&mut e, b"ab\x7f\x08\x08c\r"), (vec!["c".into()], "ab\x08 \x08\x08 \x08c\r\n".into()));
        assert_eq!(feed(&mut e, "xé\x7fy\r".as_bytes()).0, ["xy"]);
        assert_eq!(feed(&mut e, b"info foo \x17bar\r").0, ["info bar"]);
        assert_eq!(feed(&mut e, b"garbage\x15quit\r").0, ["quit"]);
    }

    #[test]
    fn history_and_foreign_keys() {
        let mut e = LineEditor::new();
        feed(&mut e, b"one\rtwo\r");
        assert_eq!(feed(&mut e, b"\x1b[A\x1b[A\r").0, ["one"]);
        assert_eq!(feed(&mut e, b"\x1b[A\x1b[B!\r").0, ["!"]);
        assert_eq!(feed(&mut e, b"\x1b[1;5Ca\x1b[3~b\x1bOPc\r").0, ["abc"]);
    }

    #[test]
    fn length_is_bounded() {
        let mut e = LineEditor::new();
        feed(&mut e, &[b'x'; 10_000]);
        assert_eq!(e.typed().len(), LONGEST);
    }
}
