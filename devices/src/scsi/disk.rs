//! A disk (SBC-3): blocks of 512 bytes, a write cache that the host may turn off, thin provisioning.

use super::identity::{MAX_TRANSFER, MAX_UNMAP, MAX_UNMAP_ENTRIES};
use super::mode::{self, Head, Values};
use super::{Answer, Cdb, Identity, Sense, capacity_10, capacity_16, data, within};
use serde::{Deserialize, Serialize};

/// Bytes of a block.
pub const BLOCK: u64 = 512;
/// Bytes before the stretches of an UNMAP list, and of one stretch.
const UNMAP_HEADER: usize = 8;
const UNMAP_ENTRY: usize = 16;

/// The disk's own state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskState {
    /// Writes are durable after a flush only.
    write_cache: bool,
    /// What the next command is refused for, once.
    attention: Option<Sense>,
    sense: Sense,
}

/// What is known of the disk from outside.
pub struct Facts<'a> {
    /// Blocks.
    pub blocks: u64,
    /// Writes fail.
    pub read_only: bool,
    /// There is a write cache.
    pub write_cache: bool,
    /// What it says it is.
    pub identity: &'a Identity,
}

impl DiskState {
    /// The disk after power-on, its write cache as `write_cache`.
    pub fn power_on(write_cache: bool) -> Self {
        Self { write_cache, attention: Some(Sense::POWERED_ON), sense: Sense::default() }
    }

    /// What the next command is refused for.
    pub fn attend(&mut self, sense: Sense) {
        self.attention = Some(sense);
    }

    /// The sense is known to the host already.
    pub fn told(&mut self) {
        self.sense = Sense::default();
    }

    /// A command failed after it had begun.
    pub fn failed(&mut self, sense: Sense) {
        self.sense = sense;
    }

    /// Carries a command out.
    pub fn command(&mut self, bytes: &[u8], facts: &Facts) -> Answer {
        let answer = self.dispatch(Cdb(bytes), facts).unwrap_or_else(Answer::Check);
        self.sense = match answer {
            Answer::Check(sense) => sense,
            _ => Sense::default(),
        };
        answer
    }

    fn dispatch(&mut self, p: Cdb, facts: &Facts) -> Result<Answer, Sense> {
        match p.byte(0) {
            0x03 => {
                let sense = self.attention.take().unwrap_or(self.sense);
                return Ok(data(sense.bytes().to_vec(), p.number(4, 1)));
            }
            0x12 => return Ok(data(facts.identity.inquiry(p)?, p.number(3, 2))),
            _ => {}
        }
        if let Some(sense) = self.attention.take() {
            return Err(sense);
        }
        match p.byte(0) {
            // TEST UNIT READY, SEND DIAGNOSTIC; START STOP UNIT, as nothing turns; locking what does not come out; and
            // reservations, which the only host always gets.
            0x00 | 0x1b | 0x1d | 0x1e | 0x16 | 0x17 | 0x56 | 0x57 => Ok(Answer::Done),
            0x25 => Ok(data(capacity_10(facts.blocks, BLOCK as u32), 8)),
            0x9e if p.byte(1) & 0x1f == 0x10 => Ok(data(capacity(facts), p.number(10, 4))),
            0x08 | 0x28 | 0xa8 | 0x88 => {
                let (first, count) = transfer(p, facts)?;
                Ok(if count == 0 { Answer::Done } else { Answer::Read { first, count } })
            }
            0x0a | 0x2a | 0xaa | 0x8a => self.write(p, facts, false),
            0x2e | 0xae | 0x8e => self.write(p, facts, true),
            0x2f | 0xaf | 0x8f => verify(p, facts),
            0x35 | 0x91 => {
                let (first, count) = p.blocks();
                within(first, count, facts.blocks).map(|()| Answer::Flush)
            }
            0x0b | 0x2b => {
                let block = if p.byte(0) == 0x0b { p.blocks().0 } else { p.number(2, 4) };
                within(block, 1, facts.blocks).map(|()| Answer::Done)
            }
            0x41 | 0x93 => match (facts.read_only, p.byte(1) & 1) {
                (true, _) => Err(Sense::PROTECTED),
                // NDOB: there is no block, it is all zeros.
                (_, 1) if p.byte(0) == 0x93 => self.same(p, facts, &[0; BLOCK as usize]),
                _ => self.check_same(p, facts).map(|_| Answer::Parameters(BLOCK)),
            },
            0x42 => match (facts.read_only, p.number(7, 2)) {
                (true, _) => Err(Sense::PROTECTED),
                // Anchored blocks are kept, which nothing here can.
                _ if p.byte(1) & 1 != 0 => Err(Sense::BAD_FIELD),
                (_, 0) => Ok(Answer::Done),
                (_, len) => Ok(Answer::Parameters(len)),
            },
            0x1a | 0x5a => mode::sense(p, &head(facts), |values| self.pages(values, facts)),
            0x15 | 0x55 => mode::select(p),
            _ => Err(Sense::BAD_COMMAND),
        }
    }

    /// The host's list for a command that asked for it.
    pub fn parameters(&mut self, bytes: &[u8], list: &[u8], facts: &Facts) -> Answer {
        let p = Cdb(bytes);
        let answer = match p.byte(0) {
            0x41 | 0x93 => self.same(p, facts, list),
            0x42 => unmap(list, facts),
            0x15 | 0x55 => mode::chosen(p, list, |values| self.pages(values, facts)).map(|pages| self.select(&pages)),
            _ => Err(Sense::BAD_COMMAND),
        };
        let answer = answer.unwrap_or_else(Answer::Check);
        if let Answer::Check(sense) = answer {
            self.sense = sense;
        }
        answer
    }

    fn write(&self, p: Cdb, facts: &Facts, verify: bool) -> Result<Answer, Sense> {
        if facts.read_only {
            return Err(Sense::PROTECTED);
        }
        let (first, count) = transfer(p, facts)?;
        // FUA; commands of 6 bytes have none, and those that verify have something else there.
        let forced = p.byte(0) >= 0x20 && !verify && p.byte(1) & 8 != 0;
        let durable = forced || !self.write_cache;
        Ok(if count == 0 { Answer::Done } else { Answer::Write { first, count, durable, verify } })
    }

    /// Which blocks WRITE SAME means.
    fn check_same(&self, p: Cdb, facts: &Facts) -> Result<(u64, u64), Sense> {
        let (first, count) = p.blocks();
        // Not to the end of the disk, as the block limits say; nothing of protection, and no old forms of content.
        if count == 0 || count > MAX_UNMAP.into() || p.byte(1) & 0xf6 != 0 {
            return Err(Sense::BAD_FIELD);
        }
        within(first, count, facts.blocks)?;
        Ok((first, count))
    }

    fn same(&self, p: Cdb, facts: &Facts, block: &[u8]) -> Result<Answer, Sense> {
        let (first, count) = self.check_same(p, facts)?;
        if block.len() as u64 != BLOCK {
            return Err(Sense::SHORT_LIST);
        }
        let unmap = p.byte(1) & 8 != 0;
        Ok(match block.iter().all(|byte| *byte == 0) {
            true => Answer::Zero { first, count, unmap },
            false => Answer::Fill { first, count, block: block.to_vec() },
        })
    }

    fn select(&mut self, pages: &[Vec<u8>]) -> Answer {
        let before = self.write_cache;
        for page in pages {
            if let [0x08, _, flags, ..] = page.as_slice() {
                self.write_cache = flags & 4 != 0;
            }
        }
        // What is in a cache that ends.
        if before && !self.write_cache { Answer::Flush } else { Answer::Done }
    }

    /// Error recovery, caching and control.
    fn pages(&self, values: Values, facts: &Facts) -> Vec<Vec<u8>> {
        let page = |code: u8, len: usize| [vec![code, len as u8], vec![0; len]].concat();
        let (mut recovery, mut caching, mut control) = (page(0x01, 10), page(0x08, 18), page(0x0a, 10));
        match values {
            Values::Changeable => caching[2] = if facts.write_cache { 4 } else { 0 },
            _ => {
                // Blocks are written and read where they are; writes are done again elsewhere.
                recovery[2] = 0x80;
                let on = if values == Values::Default { facts.write_cache } else { self.write_cache };
                caching[2] = if on { 4 } else { 0 };
                // Commands may be reordered; busy times have no limit.
                (control[3], control[8], control[9]) = (0x10, 0xff, 0xff);
            }
        }
        vec![recovery, caching, control]
    }
}

fn head(facts: &Facts) -> Head {
    let blocks = u32::try_from(facts.blocks).unwrap_or(u32::MAX).to_be_bytes();
    let size = (BLOCK as u32).to_be_bytes();
    // Forced writes are possible.
    let specific = 0x10 | if facts.read_only { 0x80 } else { 0 };
    Head { medium: 0, specific, descriptor: [blocks, size].concat().try_into().ok() }
}

fn capacity(facts: &Facts) -> Vec<u8> {
    let mut out = capacity_16(facts.blocks, BLOCK as u32);
    // Thin: blocks can be given back. What they read as then is not said.
    out[14] = 0x80;
    out
}

/// Blocks of a command that moves data.
fn transfer(p: Cdb, facts: &Facts) -> Result<(u64, u64), Sense> {
    let (first, count) = p.blocks();
    // Protection information is not kept.
    if p.byte(0) >= 0x20 && p.byte(1) & 0xe0 != 0 || count > MAX_TRANSFER.into() {
        return Err(Sense::BAD_FIELD);
    }
    within(first, count, facts.blocks)?;
    Ok((first, count))
}

/// VERIFY (SBC-3 5.26): blocks can be read, or are what the host gives.
fn verify(p: Cdb, facts: &Facts) -> Result<Answer, Sense> {
    let (first, count) = p.blocks();
    within(first, count, facts.blocks)?;
    match p.byte(1) >> 1 & 3 {
        _ if p.byte(1) & 0xe0 != 0 => Err(Sense::BAD_FIELD),
        _ if count == 0 => Ok(Answer::Done),
        0 => Ok(Answer::Verify { first, count }),
        1 if count <= MAX_TRANSFER.into() => Ok(Answer::Compare { first, count }),
        _ => Err(Sense::BAD_FIELD),
    }
}

/// UNMAP (SBC-3 5.25).
fn unmap(list: &[u8], facts: &Facts) -> Result<Answer, Sense> {
    let header = Cdb(list.get(..UNMAP_HEADER).ok_or(Sense::SHORT_LIST)?);
    let len = header.number(2, 2) as usize;
    let entries = list.get(UNMAP_HEADER..UNMAP_HEADER.saturating_add(len)).ok_or(Sense::SHORT_LIST)?;
    let (mut stretches, mut total) = (Vec::new(), 0);
    for entry in entries.chunks_exact(UNMAP_ENTRY) {
        let (first, count) = (Cdb(entry).number(0, 8), Cdb(entry).number(8, 4));
        within(first, count, facts.blocks)?;
        total += count;
        if count != 0 {
            stretches.push((first, count));
        }
    }
    if total > MAX_UNMAP.into() || stretches.len() > MAX_UNMAP_ENTRIES as usize {
        return Err(Sense::BAD_PARAMETER);
    }
    Ok(if stretches.is_empty() { Answer::Done } else { Answer::Discard(stretches) })
}
