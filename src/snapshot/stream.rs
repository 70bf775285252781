//! The container: a header, sections, an end. Numbers are little-endian.
//!
//! Header: 16 bytes of magic, the version (32 bits), zero (32 bits). Section: its kind (4 bytes), zero (32 bits), the bytes
//! of its payload (64 bits), the payload, CRC-32 of all that (32 bits). The last section is of the kind `end ` and carries
//! how many came before it (64 bits).

use std::io::{self, Read, Write};

const MAGIC: [u8; 16] = *b"brolga machine\r\n";
const VERSION: u32 = 1;
/// What QEMU's streams begin with.
const QEMU: &[u8] = b"QEVM";
const END: [u8; 4] = *b"end ";
/// A larger section is refused.
const MOST: u64 = 256 << 20;
/// Text that is larger once unpacked is refused.
const MOST_UNPACKED: u64 = 1 << 30;
/// zstd's fastest level but the negative ones.
const LEVEL: i32 = 1;

/// Why a state cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Not ours.
    #[error("it was not saved by Brolga")]
    Foreign,
    /// QEMU's.
    #[error("it is QEMU's, whose form this program does not read; the other side has to be Brolga too")]
    Qemu,
    /// Another version's.
    #[error("it has version {0} of the format, and this program reads version {VERSION}")]
    Version(u32),
    /// The bytes end too early.
    #[error("it ends in the middle")]
    Truncated,
    /// What was read is not what was written.
    #[error("it is damaged: section '{0}'")]
    Damaged(String),
    /// What was written makes no sense.
    #[error("its section '{kind}' does not fit: {reason}")]
    Malformed {
        /// The section.
        kind: String,
        /// What is wrong.
        reason: String,
    },
    /// The host failed.
    #[error("{0}")]
    Host(io::Error),
}

fn name(kind: [u8; 4]) -> String {
    kind.escape_ascii().to_string()
}

impl StreamError {
    pub(super) fn malformed(kind: [u8; 4], reason: &str) -> Self {
        Self::Malformed { kind: name(kind), reason: reason.to_owned() }
    }
}

impl From<io::Error> for StreamError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Truncated } else { Self::Host(error) }
    }
}

/// Makes bytes smaller.
pub(super) fn pack(bytes: &[u8]) -> io::Result<Vec<u8>> {
    zstd::bulk::compress(bytes, LEVEL)
}

/// What [`pack`] was given.
pub(super) fn unpack(kind: [u8; 4], packed: &[u8]) -> Result<Vec<u8>, StreamError> {
    let mut bytes = Vec::new();
    let damaged = |_| StreamError::Damaged(name(kind));
    let decoder = zstd::stream::read::Decoder::new(packed).map_err(damaged)?;
    decoder.take(MOST_UNPACKED + 1).read_to_end(&mut bytes).map_err(damaged)?;
    match bytes.len() as u64 > MOST_UNPACKED {
        true => Err(StreamError::malformed(kind, "it is too large")),
        false => Ok(bytes),
    }
}

/// What is in front of a section's payload.
fn head(kind: [u8; 4], len: u64) -> [u8; 16] {
    let mut head = [0; 16];
    head[..4].copy_from_slice(&kind);
    head[8..].copy_from_slice(&len.to_le_bytes());
    head
}

fn checksum(head: &[u8; 16], payload: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(head);
    crc.update(payload);
    crc.sum()
}

/// A stream that is written.
pub struct Writer<W> {
    out: W,
    sections: u64,
}

impl<W: Write> Writer<W> {
    /// Begins a stream.
    pub fn new(mut out: W) -> Result<Self, StreamError> {
        out.write_all(&MAGIC)?;
        out.write_all(&u64::from(VERSION).to_le_bytes())?;
        Ok(Self { out, sections: 0 })
    }

    /// Adds a section.
    pub fn section(&mut self, kind: [u8; 4], payload: &[u8]) -> Result<(), StreamError> {
        let len = payload.len() as u64;
        if len > MOST {
            return Err(StreamError::malformed(kind, "it is too large"));
        }
        let head = head(kind, len);
        self.out.write_all(&head)?;
        self.out.write_all(payload)?;
        self.out.write_all(&checksum(&head, payload).to_le_bytes())?;
        self.sections += 1;
        Ok(())
    }

    /// What was written is on its way.
    pub fn flush(&mut self) -> Result<(), StreamError> {
        Ok(self.out.flush()?)
    }

    /// Ends the stream.
    pub fn finish(mut self) -> Result<W, StreamError> {
        self.section(END, &self.sections.to_le_bytes())?;
        self.out.flush()?;
        Ok(self.out)
    }
}

/// A section's kind and payload.
pub(super) type Section = ([u8; 4], Vec<u8>);

/// A stream that is read.
pub(super) struct Reader<R> {
    input: R,
    sections: u64,
}

fn array<const N: usize>(input: &mut impl Read) -> Result<[u8; N], StreamError> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}

impl<R: Read> Reader<R> {
    /// Looks at the header.
    pub(super) fn new(mut input: R) -> Result<Self, StreamError> {
        let magic: [u8; 16] = match array(&mut input) {
            Err(StreamError::Truncated) => return Err(StreamError::Foreign),
            other => other?,
        };
        if magic.starts_with(QEMU) {
            return Err(StreamError::Qemu);
        }
        if magic != MAGIC {
            return Err(StreamError::Foreign);
        }
        let version = u64::from_le_bytes(array(&mut input)?);
        if version != u64::from(VERSION) {
            return Err(StreamError::Version(version as u32));
        }
        Ok(Self { input, sections: 0 })
    }

    /// The next section; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Section>, StreamError> {
        let head: [u8; 16] = array(&mut self.input)?;
        let [a, b, c, d, unused @ .., _, _, _, _, _, _, _, _] = head;
        let kind = [a, b, c, d];
        let len = head.last_chunk::<8>().map_or(0, |len| u64::from_le_bytes(*len));
        if len > MOST || unused != [0; 4] {
            return Err(StreamError::Damaged(name(kind)));
        }
        // Grows with what is there: a wrong length costs no memory.
        let mut payload = Vec::new();
        (&mut self.input).take(len).read_to_end(&mut payload)?;
        if payload.len() as u64 != len {
            return Err(StreamError::Truncated);
        }
        if u32::from_le_bytes(array(&mut self.input)?) != checksum(&head, &payload) {
            return Err(StreamError::Damaged(name(kind)));
        }
        if kind != END {
            self.sections += 1;
            return Ok(Some((kind, payload)));
        }
        match payload == self.sections.to_le_bytes() {
            true => Ok(None),
            false => Err(StreamError::Damaged(name(kind))),
        }
    }

    /// The payload of the next section, which has to be of `kind`.
    pub(super) fn expect(&mut self, kind: [u8; 4]) -> Result<Vec<u8>, StreamError> {
        match self.next()? {
            Some((found, payload)) if found == kind => Ok(payload),
            Some((found, _)) => Err(StreamError::malformed(found, &format!("'{}' should be there", name(kind)))),
            None => Err(StreamError::malformed(END, &format!("'{}' should be there", name(kind)))),
        }
    }
}
