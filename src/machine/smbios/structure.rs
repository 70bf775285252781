//! The form all SMBIOS structures have (DSP0134 6.1): a formatted area and the strings that it refers to by number.

/// A structure in the making.
pub(super) struct Structure {
    formatted: Vec<u8>,
    strings: Vec<Vec<u8>>,
}

impl Structure {
    /// An empty structure of `kind`, referred to by `handle`.
    pub(super) fn new(kind: u8, handle: u16) -> Self {
        let mut formatted = vec![kind, 0];
        formatted.extend(handle.to_le_bytes());
        Self { formatted, strings: Vec::new() }
    }

    pub(super) fn byte(mut self, value: u8) -> Self {
        self.formatted.push(value);
        self
    }

    pub(super) fn word(mut self, value: u16) -> Self {
        self.formatted.extend(value.to_le_bytes());
        self
    }

    pub(super) fn dword(mut self, value: u32) -> Self {
        self.formatted.extend(value.to_le_bytes());
        self
    }

    pub(super) fn qword(mut self, value: u64) -> Self {
        self.formatted.extend(value.to_le_bytes());
        self
    }

    pub(super) fn bytes(mut self, values: &[u8]) -> Self {
        self.formatted.extend(values);
        self
    }

    /// A reference to a string; absent and empty ones are number 0 (6.1.3).
    pub(super) fn string(self, text: Option<&str>) -> Self {
        let number = self.strings.len() as u8 + 1;
        match text.filter(|text| !text.is_empty()) {
            Some(text) => self.unreferenced(text).byte(number),
            None => self.byte(0),
        }
    }

    /// A string that no field refers to (type 11). A NUL would end the string set early: the text ends there.
    pub(super) fn unreferenced(mut self, text: &str) -> Self {
        let text = text.split('\0').next().unwrap_or_default();
        // An empty string would end the set too; a blank one is as near as it gets.
        self.strings.push(if text.is_empty() { b" ".to_vec() } else { text.as_bytes().to_vec() });
        self
    }

    /// The finished structure: formatted area, strings, and the two NULs at the end.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        let Self { formatted: mut out, strings } = self;
        out[1] = out.len() as u8; // all formatted areas are far shorter than 255 bytes
        let none = strings.is_empty();
        for string in strings {
            out.extend(string);
            out.push(0);
        }
        out.extend(if none { &[0, 0][..] } else { &[0] });
        out
    }
}
