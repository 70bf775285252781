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
    /// ESC [ or ESC O, and the first parameter.
    Sequence(u8),
}

/// What completion asks for the words that fit at the end of what was typed.
pub type Completer = dyn Fn(&str) -> Vec<String>;

/// The line being typed.
pub struct LineEditor {
    line: Vec<u8>,
    /// Where the next byte goes.
    cursor: usize,
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
        Self { line: Vec::new(), cursor: 0, escape: Escape::None, history: Vec::new(), at: 0, after_cr: false }
    }

    /// One byte of input. Appends what the terminal shall show to `echo`; returns the line when it is complete.
    pub fn input(&mut self, byte: u8, echo: &mut Vec<u8>, completer: &Completer) -> Option<String> {
        let after_cr = mem::replace(&mut self.after_cr, byte == b'\r');
        match (mem::replace(&mut self.escape, Escape::None), byte) {
            (Escape::Started, b'[' | b'O') => self.escape = Escape::Sequence(0),
            (Escape::Started, _) => {}
            // Parameters go on until a final byte (ECMA-48 5.4).
            (Escape::Sequence(0), b'0'..=b'9') => self.escape = Escape::Sequence(byte),
            (Escape::Sequence(first), 0x20..=0x3f) => self.escape = Escape::Sequence(first),
            (Escape::Sequence(first), last) => self.key(first, last, echo),
            (Escape::None, 0x1b) => self.escape = Escape::Started,
            (Escape::None, b'\n') if after_cr => {}
            (Escape::None, b'\r' | b'\n') => return Some(self.complete(echo)),
            (Escape::None, b'\t') => self.complete_word(echo, completer),
            (Escape::None, control @ (0..=0x1f | 0x7f)) => self.control(control, echo),
            (Escape::None, byte) => self.insert(&[byte], echo),
        }
        None
    }

    /// A key that sends a sequence: its first parameter's first digit, and its final byte.
    fn key(&mut self, first: u8, last: u8, echo: &mut Vec<u8>) {
        match (first, last) {
            (_, b'A') => self.recall(self.at.checked_sub(1), echo),
            (_, b'B') => self.recall(Some(self.at + 1), echo),
            // With a modifier: by words, which nobody has asked for.
            (0, b'C') => self.right(echo),
            (0, b'D') => self.left(echo),
            (0, b'H') | (b'1' | b'7', b'~') => self.home(echo),
            (0, b'F') | (b'4' | b'8', b'~') => self.end(echo),
            (b'3', b'~') => self.delete(echo),
            _ => {}
        }
    }

    fn control(&mut self, byte: u8, echo: &mut Vec<u8>) {
        match byte {
            0x08 | 0x7f => self.erase(1, echo),
            // Ctrl-P, Ctrl-N.
            0x10 => self.recall(self.at.checked_sub(1), echo),
            0x0e => self.recall(Some(self.at + 1), echo),
            // Ctrl-U, Ctrl-C: the whole line; Ctrl-K: what follows; Ctrl-W: a word.
            0x15 | 0x03 => self.replace(&[], echo),
            0x0b => {
                self.line.truncate(self.cursor);
                echo.extend_from_slice(b"\x1b[K");
            }
            0x17 => self.erase_word(echo),
            // Ctrl-A (where nobody else wants it), Ctrl-E, Ctrl-B, Ctrl-F, Ctrl-D.
            0x01 => self.home(echo),
            0x05 => self.end(echo),
            0x02 => self.left(echo),
            0x06 => self.right(echo),
            0x04 => self.delete(echo),
            _ => echo.extend_from_slice(BELL),
        }
    }

    /// The line as typed so far, to show it again.
    pub fn typed(&self) -> &[u8] {
        &self.line
    }

    /// The lines remembered, the oldest first.
    pub fn history(&self) -> Vec<String> {
        self.history.iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect()
    }

    fn complete(&mut self, echo: &mut Vec<u8>) -> String {
        echo.extend_from_slice(b"\r\n");
        let line = mem::take(&mut self.line);
        self.cursor = 0;
        if !line.is_empty() && self.history.last() != Some(&line) {
            self.history.push(line.clone());
            if self.history.len() > HISTORY {
                self.history.remove(0);
            }
        }
        self.at = self.history.len();
        String::from_utf8_lossy(&line).into_owned()
    }

    /// Characters in a piece of the line: continuation bytes of UTF-8 belong to the character before them.
    fn width(bytes: &[u8]) -> usize {
        bytes.iter().filter(|b| *b & 0xc0 != 0x80).count()
    }

    /// Shows what follows the cursor anew, and leaves the cursor where it is.
    fn show_rest(&self, echo: &mut Vec<u8>) {
        let rest = &self.line[self.cursor..];
        if rest.is_empty() {
            return;
        }
        echo.extend_from_slice(rest);
        echo.extend(std::iter::repeat_n(0x08, Self::width(rest)));
    }

    fn insert(&mut self, bytes: &[u8], echo: &mut Vec<u8>) {
        if self.line.len() + bytes.len() > LONGEST {
            return echo.extend_from_slice(BELL);
        }
        self.line.splice(self.cursor..self.cursor, bytes.iter().copied());
        self.cursor += bytes.len();
        echo.extend_from_slice(bytes);
        self.show_rest(echo);
    }

    /// Removes up to `count` characters before the cursor.
    fn erase(&mut self, count: usize, echo: &mut Vec<u8>) {
        for _ in 0..count {
            let Some(start) = self.before() else { break };
            self.line.drain(start..self.cursor);
            self.cursor = start;
            echo.push(0x08);
            self.wipe(echo);
        }
    }

    /// Shows the rest of the line after a character at the cursor has gone.
    fn wipe(&self, echo: &mut Vec<u8>) {
        let rest = &self.line[self.cursor..];
        echo.extend_from_slice(rest);
        echo.push(b' ');
        echo.extend(std::iter::repeat_n(0x08, Self::width(rest) + 1));
    }

    /// Where the character before the cursor starts.
    fn before(&self) -> Option<usize> {
        let bytes = self.line.get(..self.cursor)?;
        bytes.iter().rposition(|b| b & 0xc0 != 0x80).or((!bytes.is_empty()).then_some(0))
    }

    /// Where the character at the cursor ends.
    fn after(&self) -> Option<usize> {
        let rest = self.line.get(self.cursor + 1..)?;
        Some(rest.iter().position(|b| b & 0xc0 != 0x80).map_or(self.line.len(), |n| self.cursor + 1 + n))
    }

    fn left(&mut self, echo: &mut Vec<u8>) {
        if let Some(start) = self.before() {
            self.cursor = start;
            echo.push(0x08);
        }
    }

    fn right(&mut self, echo: &mut Vec<u8>) {
        if let Some(end) = self.after() {
            echo.extend_from_slice(&self.line[self.cursor..end]);
            self.cursor = end;
        }
    }

    fn home(&mut self, echo: &mut Vec<u8>) {
        echo.extend(std::iter::repeat_n(0x08, Self::width(&self.line[..self.cursor])));
        self.cursor = 0;
    }

    fn end(&mut self, echo: &mut Vec<u8>) {
        echo.extend_from_slice(&self.line[self.cursor..]);
        self.cursor = self.line.len();
    }

    fn delete(&mut self, echo: &mut Vec<u8>) {
        if let Some(end) = self.after() {
            self.line.drain(self.cursor..end);
            self.wipe(echo);
        }
    }

    fn erase_word(&mut self, echo: &mut Vec<u8>) {
        while self.cursor > 0 && self.line[self.cursor - 1] == b' ' {
            self.erase(1, echo);
        }
        while self.cursor > 0 && self.line[self.cursor - 1] != b' ' {
            self.erase(1, echo);
        }
    }

    /// Puts `line` in the place of what was typed.
    fn replace(&mut self, line: &[u8], echo: &mut Vec<u8>) {
        self.end(echo);
        self.erase(usize::MAX, echo);
        self.line = line.to_vec();
        self.cursor = self.line.len();
        echo.extend_from_slice(line);
    }

    fn recall(&mut self, at: Option<usize>, echo: &mut Vec<u8>) {
        let Some(at) = at.filter(|at| *at <= self.history.len()) else {
            echo.extend_from_slice(BELL);
            return;
        };
        self.at = at;
        let line = self.history.get(at).cloned().unwrap_or_default();
        self.replace(&line, echo);
    }

    /// Completes the word before the cursor as far as there is one way to; shows the choices where there are several.
    fn complete_word(&mut self, echo: &mut Vec<u8>, completer: &Completer) {
        let before = String::from_utf8_lossy(&self.line[..self.cursor]).into_owned();
        let typed = before.rsplit(' ').next().unwrap_or_default().len();
        let words = completer(&before);
        let Some(first) = words.first() else { return echo.extend_from_slice(BELL) };
        let common = words.iter().fold(first.as_str(), |common, word| {
            let same = common.bytes().zip(word.bytes()).take_while(|(a, b)| a == b).count();
            common.get(..same).unwrap_or_default()
        });
        let more = common.get(typed..).unwrap_or_default().to_owned();
        if words.len() == 1 {
            self.insert(format!("{more} ").as_bytes(), echo);
        } else if !more.is_empty() {
            self.insert(more.as_bytes(), echo);
        } else {
            echo.extend_from_slice(b"\r\n");
            echo.extend_from_slice(words.join("  ").as_bytes());
            echo.extend_from_slice(b"\r\n");
            echo.extend_from_slice(&self.line[..self.cursor]);
            self.show_rest(echo);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        let typed = line.rsplit(' ').next().unwrap_or_default();
        ["stop", "system_reset", "system_powerdown"]
            .iter()
            .filter(|w| w.starts_with(typed))
            .map(|w| w.to_string())
            .collect()
    }

    fn feed(editor: &mut LineEditor, bytes: &[u8]) -> (Vec<String>, String) {
        let mut echo = Vec::new();
        let lines = bytes.iter().filter_map(|b| editor.input(*b, &mut echo, &words)).collect();
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
    fn editing_in_the_middle() {
        let mut e = LineEditor::new();
        assert_eq!(feed(&mut e, b"ac\x1b[Db\r"), (vec!["abc".into()], "ac\x08bc\x08\r\n".into()));
        assert_eq!(feed(&mut e, b"bcd\x1b[Ha\x1b[F!\r").0, ["abcd!"]);
        assert_eq!(feed(&mut e, b"abc\x1b[D\x1b[D\x1b[3~\r").0, ["ac"]);
        assert_eq!(feed(&mut e, b"abc\x01\x06\x0b\x05d\r").0, ["ad"]);
        assert_eq!(feed(&mut e, "aéb\x1b[D\x7fx\r".as_bytes()).0, ["axb"]);
        assert_eq!(feed(&mut e, b"\x1b[D\x1b[C\x04\x17ok\r").0, ["ok"]);
    }

    #[test]
    fn history_and_foreign_keys() {
        let mut e = LineEditor::new();
        feed(&mut e, b"one\rtwo\r");
        assert_eq!(feed(&mut e, b"\x1b[A\x1b[A\r").0, ["one"]);
        assert_eq!(feed(&mut e, b"\x1b[A\x1b[B!\r").0, ["!"]);
        assert_eq!(feed(&mut e, b"\x1b[1;5Ca\x1b[6~b\x1bOPc\r").0, ["abc"]);
        assert_eq!(e.history()[..2], ["one", "two"]);
    }

    #[test]
    fn completion() {
        let mut e = LineEditor::new();
        assert_eq!(feed(&mut e, b"st\t\r").0, ["stop "]);
        assert_eq!(feed(&mut e, b"sy\tr\t\r").0, ["system_reset "]);
        let (lines, echo) = feed(&mut e, b"s\t\r");
        assert_eq!(lines, ["s"]);
        assert!(echo.contains("stop  system_reset  system_powerdown\r\ns"), "{echo}");
        assert_eq!(feed(&mut e, b"x\t"), (vec![], "x\x07".into()));
    }

    #[test]
    fn length_is_bounded() {
        let mut e = LineEditor::new();
        feed(&mut e, &[b'x'; 10_000]);
        assert_eq!(e.typed().len(), LONGEST);
    }

    #[test]
    fn random_keys_never_break_it() {
        let (mut seed, mut e, mut echo) = (88_172_645_463_325_252_u64, LineEditor::new(), Vec::new());
        let keys: &[&[u8]] = &[
            b"\x1b[A", b"\x1b[B", b"\x1b[C", b"\x1b[D", b"\x1b[3~", b"\t", b"\r", b"\x7f", b"\x17", b"\xc3", b"\xa9",
            b"s", b" ", b"\x0b", b"\x01", b"\x05",
        ];
        for _ in 0..100_000 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            for byte in keys[(seed >> 30) as usize % keys.len()] {
                e.input(*byte, &mut echo, &words);
            }
            assert!(e.cursor <= e.line.len());
            echo.clear();
        }
    }
}
