//! Fields of 9P messages: little-endian numbers, strings with their length before them.

use rustix::io::Errno;

/// Bytes of a message's header: length, kind, tag.
pub const HEADER: usize = 7;

/// Reads the fields of a message one after the other.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next `len` bytes. A message that ends before them is not understood.
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], Errno> {
        let (now, later) = self.0.split_at_checked(len).ok_or(Errno::PROTO)?;
        self.0 = later;
        Ok(now)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        self.bytes(N)?.try_into().map_err(|_| Errno::PROTO)
    }

    pub fn u8(&mut self) -> Result<u8, Errno> {
        self.array().map(u8::from_le_bytes)
    }

    pub fn u16(&mut self) -> Result<u16, Errno> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, Errno> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, Errno> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn string(&mut self) -> Result<&'a [u8], Errno> {
        let len = self.u16()?;
        self.bytes(len.into())
    }
}

/// What a server knows of a file without a name: what kind it is, its version, and which one it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Qid {
    pub kind: u8,
    pub version: u32,
    pub path: u64,
}

/// Kinds in a [`Qid`].
pub const DIRECTORY: u8 = 0x80;
pub const SYMLINK: u8 = 0x02;

/// Collects the fields of an answer.
#[derive(Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    /// A string; one that is too long to have its length before it is cut.
    pub fn string(&mut self, text: &[u8]) -> &mut Self {
        let len = u16::try_from(text.len()).unwrap_or(u16::MAX);
        self.u16(len).0.extend(text.iter().take(len.into()));
        self
    }

    pub fn qid(&mut self, qid: Qid) -> &mut Self {
        self.u8(qid.kind).u32(qid.version).u64(qid.path)
    }

    /// The message with its header.
    pub fn message(self, kind: u8, tag: u16) -> Vec<u8> {
        let len = u32::try_from(self.0.len() + HEADER).unwrap_or(u32::MAX);
        let mut out = Writer(Vec::with_capacity(self.0.len() + HEADER));
        out.u32(len).u8(kind).u16(tag).0.extend(self.0);
        out.0
    }
}
