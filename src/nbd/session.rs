//! The server's side of a connection: negotiation in the newstyle, then requests with simple replies. Numbers are big-endian
//! (the protocol's document, "Fixed newstyle negotiation" and "Transmission phase").

use brolga::block::{BlockBackend, BlockError};
use std::io::{self, Read, Write};
use std::sync::Arc;

/// A disk that clients can ask for.
#[derive(Clone)]
pub struct Export {
    /// What users call the offer.
    pub id: String,
    /// The node.
    pub node: String,
    /// What clients ask for.
    pub name: String,
    /// What people are told of it.
    pub description: Option<String>,
    /// The disk.
    pub disk: Arc<dyn BlockBackend>,
    /// Clients may write.
    pub writable: bool,
}

/// Disks as a client finds them, and whether it may go on with one.
pub trait Shelf {
    /// All of them.
    fn exports(&self) -> Vec<Export>;
    /// The client has chosen this one; `false`: it has gone.
    fn chosen(&self, name: &str) -> bool;
}

const GREETING: &[u8; 16] = b"NBDMAGICIHAVEOPT";
const OPTION: &[u8; 8] = b"IHAVEOPT";
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;

/// Handshake flags of both sides: fixed newstyle, no zeroes behind the export.
const FIXED: u16 = 1;
const NO_ZEROES: u16 = 2;

/// Options.
const EXPORT_NAME: u32 = 1;
const ABORT: u32 = 2;
const LIST: u32 = 3;
const INFO: u32 = 6;
const GO: u32 = 7;
/// Longest option that is read: names have up to 4096 bytes.
const LONGEST_OPTION: u32 = 16 << 10;

/// Replies to options.
const ACK: u32 = 1;
const SERVER: u32 = 2;
const INFORMATION: u32 = 3;
const UNSUPPORTED: u32 = 1 << 31 | 1;
const INVALID: u32 = 1 << 31 | 3;
const UNKNOWN: u32 = 1 << 31 | 6;

/// Kinds of information.
const INFO_EXPORT: u16 = 0;
const INFO_NAME: u16 = 1;
const INFO_DESCRIPTION: u16 = 2;
const INFO_BLOCK_SIZE: u16 = 3;

/// Commands.
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;
/// Flags of commands: durable before the reply; no hole.
const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
/// Most bytes in a read or write.
const MOST: u32 = 32 << 20;
/// The size of requests that is best.
const PREFERRED: u32 = 64 << 10;

/// Errors of replies, as Linux numbers them.
const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;

impl Export {
    fn read_only(&self) -> bool {
        !self.writable || self.disk.read_only()
    }

    /// Transmission flags: what the disk can do.
    fn flags(&self) -> u16 {
        const HAS_FLAGS: u16 = 1;
        const READ_ONLY: u16 = 1 << 1;
        const SEND_FLUSH: u16 = 1 << 2;
        const SEND_FUA: u16 = 1 << 3;
        const SEND_TRIM: u16 = 1 << 5;
        const SEND_WRITE_ZEROES: u16 = 1 << 6;
        const MULTI_CONN: u16 = 1 << 8;
        let writes = if self.read_only() { READ_ONLY } else { SEND_TRIM | SEND_WRITE_ZEROES };
        HAS_FLAGS | SEND_FLUSH | SEND_FUA | MULTI_CONN | writes
    }
}

fn number<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Serves a client until it goes.
pub fn serve<S: Read + Write>(mut stream: S, shelf: &dyn Shelf) -> io::Result<()> {
    stream.write_all(GREETING)?;
    stream.write_all(&(FIXED | NO_ZEROES).to_be_bytes())?;
    let flags = u32::from_be_bytes(number(&mut stream)?);
    let zeroes = flags & u32::from(NO_ZEROES) == 0;
    match negotiate(&mut stream, shelf, zeroes)? {
        Some(export) => transmit(&mut stream, &export),
        None => Ok(()),
    }
}

/// Until the client has chosen a disk, or goes.
fn negotiate<S: Read + Write>(stream: &mut S, shelf: &dyn Shelf, zeroes: bool) -> io::Result<Option<Export>> {
    loop {
        if number::<8>(stream)? != *OPTION {
            return Err(wrong("no option where one has to be"));
        }
        let option = u32::from_be_bytes(number(stream)?);
        let len = u32::from_be_bytes(number(stream)?);
        if len > LONGEST_OPTION {
            return Err(wrong("an option that is too long"));
        }
        let mut data = vec![0; len as usize];
        stream.read_exact(&mut data)?;
        let find = |name: &str| shelf.exports().into_iter().find(|export| export.name == name);
        match option {
            EXPORT_NAME => {
                let found = std::str::from_utf8(&data).ok().and_then(find);
                let export = found.filter(|export| shelf.chosen(&export.name));
                let export = export.ok_or_else(|| wrong("an export that is not there"))?;
                let mut answer = export.disk.len().to_be_bytes().to_vec();
                answer.extend(export.flags().to_be_bytes());
                answer.extend(vec![0; if zeroes { 124 } else { 0 }]);
                stream.write_all(&answer)?;
                return Ok(Some(export));
            }
            ABORT => {
                answer(stream, option, ACK, &[])?;
                return Ok(None);
            }
            LIST if data.is_empty() => {
                for export in shelf.exports() {
                    let mut data = (export.name.len() as u32).to_be_bytes().to_vec();
                    data.extend(export.name.as_bytes());
                    data.extend(export.description.unwrap_or_default().as_bytes());
                    answer(stream, option, SERVER, &data)?;
                }
                answer(stream, option, ACK, &[])?;
            }
            INFO | GO => match asked(&data) {
                None => answer(stream, option, INVALID, b"malformed")?,
                Some((name, kinds)) => match find(&name) {
                    Some(export) if option == INFO || shelf.chosen(&name) => {
                        inform(stream, option, &export, &kinds)?;
                        answer(stream, option, ACK, &[])?;
                        if option == GO {
                            return Ok(Some(export));
                        }
                    }
                    _ => answer(stream, option, UNKNOWN, b"there is no such export")?,
                },
            },
            LIST => answer(stream, option, INVALID, b"malformed")?,
            _ => answer(stream, option, UNSUPPORTED, b"not supported")?,
        }
    }
}

fn answer(stream: &mut impl Write, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let mut bytes = OPTION_REPLY.to_be_bytes().to_vec();
    bytes.extend([option, kind, data.len() as u32].iter().flat_map(|n| n.to_be_bytes()));
    bytes.extend(data);
    stream.write_all(&bytes)
}

/// The name and the kinds of information of INFO and GO.
fn asked(data: &[u8]) -> Option<(String, Vec<u16>)> {
    let (len, rest) = data.split_first_chunk::<4>()?;
    let (name, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
    let (count, kinds) = rest.split_first_chunk::<2>()?;
    let kinds: Vec<u16> = kinds.chunks(2).map(|kind| kind.iter().fold(0, |n, b| n << 8 | u16::from(*b))).collect();
    let whole = kinds.len() == usize::from(u16::from_be_bytes(*count)) && rest.len() == 2 + 2 * kinds.len();
    whole.then_some((String::from_utf8(name.to_vec()).ok()?, kinds))
}

fn inform(stream: &mut impl Write, option: u32, export: &Export, kinds: &[u16]) -> io::Result<()> {
    let mut tell = |kind: u16, data: &[u8]| answer(stream, option, INFORMATION, &[&kind.to_be_bytes(), data].concat());
    if kinds.contains(&INFO_NAME) {
        tell(INFO_NAME, export.name.as_bytes())?;
    }
    if let Some(description) = export.description.as_ref().filter(|_| kinds.contains(&INFO_DESCRIPTION)) {
        tell(INFO_DESCRIPTION, description.as_bytes())?;
    }
    if kinds.contains(&INFO_BLOCK_SIZE) {
        let sizes: Vec<u8> = [1, PREFERRED, MOST].iter().flat_map(|n: &u32| n.to_be_bytes()).collect();
        tell(INFO_BLOCK_SIZE, &sizes)?;
    }
    tell(INFO_EXPORT, &[&export.disk.len().to_be_bytes()[..], &export.flags().to_be_bytes()].concat())
}

/// A request.
struct Request {
    flags: u16,
    command: u16,
    cookie: [u8; 8],
    offset: u64,
    len: u32,
}

fn transmit<S: Read + Write>(stream: &mut S, export: &Export) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        if u32::from_be_bytes(number(stream)?) != REQUEST {
            return Err(wrong("no request where one has to be"));
        }
        let request = Request {
            flags: u16::from_be_bytes(number(stream)?),
            command: u16::from_be_bytes(number(stream)?),
            cookie: number(stream)?,
            offset: u64::from_be_bytes(number(stream)?),
            len: u32::from_be_bytes(number(stream)?),
        };
        if request.command == DISCONNECT {
            return Ok(());
        }
        let carries = matches!(request.command, READ | WRITE);
        if carries && request.len > MOST {
            return Err(wrong("a request that is too long"));
        }
        buffer.resize(if carries { request.len as usize } else { 0 }, 0);
        if request.command == WRITE {
            stream.read_exact(&mut buffer)?;
        }
        let done = perform(export, &request, &mut buffer);
        let mut reply = REPLY.to_be_bytes().to_vec();
        reply.extend(done.err().unwrap_or(0).to_be_bytes());
        reply.extend(request.cookie);
        stream.write_all(&reply)?;
        if request.command == READ && done.is_ok() {
            stream.write_all(&buffer)?;
        }
    }
}

/// Carries a request out; the error's number if it fails.
fn perform(export: &Export, request: &Request, buffer: &mut [u8]) -> Result<(), u32> {
    let Request { flags, command, offset, len, .. } = *request;
    let len = u64::from(len);
    let changes = matches!(command, WRITE | TRIM | WRITE_ZEROES);
    if changes && export.read_only() {
        return Err(EPERM);
    }
    let inside = offset.checked_add(len).is_some_and(|end| end <= export.disk.len());
    if command != FLUSH && !inside {
        return Err(if matches!(command, WRITE | WRITE_ZEROES) { ENOSPC } else { EINVAL });
    }
    let done = match command {
        READ => export.disk.read(offset, buffer),
        WRITE => export.disk.write(offset, buffer),
        FLUSH => export.disk.flush(),
        TRIM => export.disk.discard(offset, len),
        WRITE_ZEROES => export.disk.write_zeroes(offset, len, flags & NO_HOLE == 0),
        _ => return Err(EINVAL),
    };
    let done = if changes && flags & FUA != 0 { done.and_then(|()| export.disk.flush()) } else { done };
    done.map_err(|error| reason(&error))
}

fn reason(error: &BlockError) -> u32 {
    match error {
        BlockError::OutOfRange { .. } => EINVAL,
        BlockError::ReadOnly { .. } => EPERM,
        error if error.is_no_space() => ENOSPC,
        _ => EIO,
    }
}
