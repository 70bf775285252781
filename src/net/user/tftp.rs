//! The TFTP server (RFC 1350, with the options of RFC 2347 to 2349): reads files of one folder.

use super::outbox::Outbox;
use super::packet::{be16, udp};
use std::collections::HashMap;
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

/// Operations.
const READ: u16 = 1;
const WRITE: u16 = 2;
const DATA: u16 = 3;
const ACK: u16 = 4;
const ERROR: u16 = 5;
const OPTIONS: u16 = 6;
/// Error codes.
const NOT_FOUND: u16 = 1;
const NOT_ALLOWED: u16 = 2;
const ILLEGAL: u16 = 4;
/// Block size without the option.
const BLOCK: u16 = 512;
/// Largest block: it fits into a frame.
const LARGEST_BLOCK: u16 = 1428;
/// Reads at a time; the oldest goes first.
const READS: usize = 16;
/// Guests repeat what got lost; a read without a sign of life is over.
const SILENCE_NS: u64 = 60_000_000_000;

struct Read {
    file: File,
    len: u64,
    block: u16,
    /// Number of the block sent last, without the wrap at 16 bits; 0: none yet.
    sent: u64,
    used_at: u64,
}

/// The server.
pub struct Tftp {
    folder: PathBuf,
    reads: HashMap<SocketAddr, Read>,
    fragment_id: u16,
}

/// What to send to the guest.
type Answer = Vec<u8>;

fn error(code: u16, text: &str) -> Answer {
    [&ERROR.to_be_bytes()[..], &code.to_be_bytes(), text.as_bytes(), &[0]].concat()
}

impl Tftp {
    /// A server of `folder`.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), reads: HashMap::new(), fragment_id: 0 }
    }

    /// A datagram from `guest` to the server's address `server`.
    pub fn received(&mut self, guest: SocketAddr, server: SocketAddr, data: &[u8], now_ns: u64, outbox: &mut Outbox) {
        let answer = match be16(data, 0) {
            Some(READ) => Some(self.open(guest, data.get(2..).unwrap_or_default(), now_ns)),
            Some(WRITE) => Some(error(NOT_ALLOWED, "this server is for reading")),
            Some(ACK) => be16(data, 2).and_then(|block| self.acknowledged(guest, block, now_ns)),
            Some(ERROR) => {
                self.reads.remove(&guest);
                None
            }
            _ => Some(error(ILLEGAL, "unknown operation")),
        };
        if let Some(answer) = answer {
            self.fragment_id = self.fragment_id.wrapping_add(1);
            outbox.packets(udp(server, guest, self.fragment_id, &answer));
        }
    }

    fn open(&mut self, guest: SocketAddr, request: &[u8], now_ns: u64) -> Answer {
        self.reads.retain(|_, read| now_ns.saturating_sub(read.used_at) < SILENCE_NS);
        let mut words = request.split(|byte| *byte == 0).map(|word| std::str::from_utf8(word).unwrap_or(""));
        let (name, mode) = (words.next().unwrap_or(""), words.next().unwrap_or("").to_ascii_lowercase());
        if mode != "octet" && mode != "netascii" {
            return error(ILLEGAL, "unknown mode");
        }
        let Some((file, len)) = self.find(name) else { return error(NOT_FOUND, "no such file") };
        let mut read = Read { file, len, block: BLOCK, sent: 0, used_at: now_ns };
        let mut accepted = Vec::new();
        // RFC 2347: pairs of name and value; what is not known is not answered.
        while let (Some(key), Some(value)) = (words.next(), words.next()) {
            let granted = match (key.to_ascii_lowercase().as_str(), value.parse::<u32>()) {
                ("tsize", Ok(_)) => len,
                ("blksize", Ok(asked)) if asked >= 8 => {
                    read.block = asked.min(LARGEST_BLOCK.into()) as u16;
                    read.block.into()
                }
                ("timeout", Ok(seconds @ 1..=255)) => seconds.into(),
                _ => continue,
            };
            accepted.extend_from_slice(key.as_bytes());
            accepted.push(0);
            accepted.extend_from_slice(granted.to_string().as_bytes());
            accepted.push(0);
        }
        let answer = match accepted.is_empty() {
            true => send_block(&mut read, 1),
            false => [&OPTIONS.to_be_bytes()[..], &accepted].concat(),
        };
        if self.reads.len() >= READS {
            let oldest = self.reads.iter().min_by_key(|(_, read)| read.used_at).map(|(guest, _)| *guest);
            oldest.into_iter().for_each(|guest| drop(self.reads.remove(&guest)));
        }
        self.reads.insert(guest, read);
        answer
    }

    /// The file of that name, if it lies in the folder after all links are followed.
    fn find(&self, name: &str) -> Option<(File, u64)> {
        let relative = Path::new(name.trim_start_matches('/'));
        if name.is_empty()
            || relative.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir))
        {
            return None;
        }
        let folder = self.folder.canonicalize().ok()?;
        let path = folder.join(relative).canonicalize().ok().filter(|path| path.starts_with(&folder))?;
        if !path.metadata().ok()?.is_file() {
            return None;
        }
        let file = File::open(path).ok()?;
        let len = file.metadata().ok()?.len();
        Some((file, len))
    }

    fn acknowledged(&mut self, guest: SocketAddr, block: u16, now_ns: u64) -> Option<Answer> {
        let read = self.reads.get_mut(&guest)?;
        read.used_at = now_ns;
        if block != read.sent as u16 {
            // An old acknowledgement: answering it too would double all traffic from here on.
            return None;
        }
        // A block that is not full was the last one; a file of whole blocks ends with an empty one.
        if read.sent > 0 && read.len < read.sent * u64::from(read.block) {
            self.reads.remove(&guest);
            return None;
        }
        let next = read.sent + 1;
        Some(send_block(read, next))
    }
}

/// Block `number`, counted from 1.
fn send_block(read: &mut Read, number: u64) -> Answer {
    let mut data = vec![0; read.block.into()];
    let at = (number - 1) * u64::from(read.block);
    let len = usize::from(read.block).min(usize::try_from(read.len.saturating_sub(at)).unwrap_or(usize::MAX));
    data.truncate(len);
    if read.file.read_exact_at(&mut data, at).is_err() {
        return error(0, "the file cannot be read");
    }
    read.sent = number;
    [&DATA.to_be_bytes()[..], &(number as u16).to_be_bytes(), &data].concat()
}
