//! A CD or DVD drive as its commands show it (SCSI Primary Commands 3 and Multimedia Commands 4), whatever carries them.

use serde::{Deserialize, Serialize};

/// Bytes of a block.
pub const BLOCK: u64 = 2048;
/// Blocks of the longest CD, 80 minutes; longer media are DVDs.
const CD_BLOCKS: u64 = 80 * 60 * 75;
/// Blocks before the first of a track, in the minutes, seconds and frames of CDs.
const LEAD_IN: u64 = 150;
/// Number that the lead-out has in a table of contents.
const LEAD_OUT: u8 = 0xaa;

/// Why a command failed: sense key, and code with qualifier (SPC-3 4.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sense {
    /// Sense key.
    pub key: u8,
    /// Additional sense code and qualifier.
    pub code: (u8, u8),
}

impl Sense {
    const NO_MEDIUM: Self = Self::new(2, 0x3a, 0x00);
    const TRAY_OPEN: Self = Self::new(2, 0x3a, 0x02);
    /// The medium could not be read.
    pub const UNREADABLE: Self = Self::new(3, 0x11, 0x00);
    const BAD_COMMAND: Self = Self::new(5, 0x20, 0x00);
    const BEYOND_END: Self = Self::new(5, 0x21, 0x00);
    const BAD_FIELD: Self = Self::new(5, 0x24, 0x00);
    const LOCKED: Self = Self::new(5, 0x53, 0x02);
    const CHANGED: Self = Self::new(6, 0x28, 0x00);
    const POWERED_ON: Self = Self::new(6, 0x29, 0x00);

    const fn new(key: u8, code: u8, qualifier: u8) -> Self {
        Self { key, code: (code, qualifier) }
    }
}

/// What the media event notification tells next (MMC-4 6.7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Event {
    #[default]
    None,
    EjectRequested,
    NewMedium,
    Removed,
}

/// The drive's own state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Optical {
    loaded: bool,
    tray_open: bool,
    locked: bool,
    /// What the next command is refused for, once.
    attention: Option<Sense>,
    sense: Sense,
    event: Event,
}

/// What becomes of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done,
    /// These bytes go to the host.
    Data(Vec<u8>),
    /// These blocks go to the host. They exist.
    Read {
        /// First block.
        first: u64,
        /// How many; not 0.
        count: u64,
    },
    /// It failed.
    Check(Sense),
}

/// Big-endian fields of a command.
struct Packet<'a>(&'a [u8]);

impl Packet<'_> {
    fn byte(&self, at: usize) -> u8 {
        self.0.get(at).copied().unwrap_or(0)
    }

    fn number(&self, at: usize, len: usize) -> u64 {
        (at..at + len).fold(0, |acc, i| acc << 8 | u64::from(self.byte(i)))
    }
}

impl Optical {
    /// The drive after power-on, with or without a medium.
    pub fn power_on(loaded: bool) -> Self {
        Self { loaded, attention: Some(Sense::POWERED_ON), ..Self::default() }
    }

    /// The user put a medium in, or took it out.
    pub fn medium_changed(&mut self, loaded: bool) {
        (self.loaded, self.tray_open) = (loaded, false);
        self.event = if loaded { Event::NewMedium } else { Event::Removed };
        if loaded {
            self.attention = Some(Sense::CHANGED);
        }
    }

    /// The user presses the button. `true`: the tray opens; otherwise the guest is asked to open it.
    pub fn eject_requested(&mut self) -> bool {
        if self.locked {
            self.event = Event::EjectRequested;
            return false;
        }
        self.tray_open = true;
        self.event = Event::Removed;
        true
    }

    /// The guest keeps the tray closed.
    pub fn locked(&self) -> bool {
        self.locked
    }

    /// The tray is open.
    pub fn tray_open(&self) -> bool {
        self.tray_open
    }

    /// Carries a command out on a medium of `blocks` blocks.
    pub fn command(&mut self, packet: &[u8], blocks: u64) -> Answer {
        let answer = self.dispatch(&Packet(packet), blocks).unwrap_or_else(Answer::Check);
        let asked = packet.first() == Some(&0x03);
        match answer {
            Answer::Check(sense) => self.sense = sense,
            // What was asked for is told once.
            _ => self.sense = Sense::default(),
        }
        debug_assert!(!asked || !matches!(answer, Answer::Check(_)), "REQUEST SENSE does not fail");
        answer
    }

    /// A command failed after it had begun.
    pub fn failed(&mut self, sense: Sense) {
        self.sense = sense;
    }

    fn dispatch(&mut self, p: &Packet, blocks: u64) -> Result<Answer, Sense> {
        let data = |bytes: Vec<u8>, allocated: u64| {
            let mut bytes = bytes;
            bytes.truncate(allocated as usize);
            Ok(if bytes.is_empty() { Answer::Done } else { Answer::Data(bytes) })
        };
        match p.byte(0) {
            0x03 => return data(self.request_sense(), p.number(4, 1)),
            0x12 => return data(inquiry(), p.number(3, 2)),
            0x46 => return data(self.configuration(p, blocks)?, p.number(7, 2)),
            0x4a => return data(self.event_status(p)?, p.number(7, 2)),
            _ => {}
        }
        if let Some(sense) = self.attention.take() {
            return Err(sense);
        }
        match p.byte(0) {
            0x00 => self.ready().map(|()| Answer::Done),
            0x1b => self.start_stop(p),
            0x1e => {
                self.locked = p.byte(4) & 1 != 0;
                Ok(Answer::Done)
            }
            0x25 => self.ready().and_then(|()| data(capacity(blocks), 8)),
            0x28 => self.read(p.number(2, 4), p.number(7, 2), blocks),
            0xa8 => self.read(p.number(2, 4), p.number(6, 4), blocks),
            0xbe => self.read_cd(p, blocks),
            0x2b => self.ready().and_then(|()| match p.number(2, 4) < blocks {
                true => Ok(Answer::Done),
                false => Err(Sense::BEYOND_END),
            }),
            0x42 => self.ready().and_then(|()| data(sub_channel(p), p.number(7, 2))),
            0x43 => self.ready().and_then(|()| data(contents(p, blocks)?, p.number(7, 2))),
            0x51 => self.ready().and_then(|()| data(disc_information(p)?, p.number(7, 2))),
            0x5a => data(self.mode_sense(p)?, p.number(7, 2)),
            0xbd => data(vec![0, if self.tray_open { 0x10 } else { 0 }, 0, 0, 0, 1, 0, 0], p.number(8, 2)),
            // The speed is the host's.
            0xbb => Ok(Answer::Done),
            _ => Err(Sense::BAD_COMMAND),
        }
    }

    fn ready(&self) -> Result<(), Sense> {
        match (self.tray_open, self.loaded) {
            (true, _) => Err(Sense::TRAY_OPEN),
            (_, false) => Err(Sense::NO_MEDIUM),
            _ => Ok(()),
        }
    }

    fn read(&self, first: u64, count: u64, blocks: u64) -> Result<Answer, Sense> {
        self.ready()?;
        match (count, first + count <= blocks) {
            (_, false) => Err(Sense::BEYOND_END),
            (0, true) => Ok(Answer::Done),
            _ => Ok(Answer::Read { first, count }),
        }
    }

    /// READ CD (MMC-4 6.20), the user data of data blocks only.
    fn read_cd(&self, p: &Packet, blocks: u64) -> Result<Answer, Sense> {
        let expected = p.byte(1) >> 2 & 7;
        match (expected, p.byte(9) & 0xf8) {
            (_, 0) => self.ready().map(|()| Answer::Done),
            (0 | 2 | 4, 0x10) => self.read(p.number(2, 4), p.number(6, 3), blocks),
            _ => Err(Sense::BAD_FIELD),
        }
    }

    fn start_stop(&mut self, p: &Packet) -> Result<Answer, Sense> {
        let (load_eject, start) = (p.byte(4) & 2 != 0, p.byte(4) & 1 != 0);
        match (load_eject, start) {
            (true, false) if self.locked => return Err(Sense::LOCKED),
            (true, false) => self.tray_open = true,
            (true, true) if self.tray_open => {
                self.tray_open = false;
                if self.loaded {
                    (self.event, self.attention) = (Event::NewMedium, Some(Sense::CHANGED));
                }
            }
            _ => {}
        }
        Ok(Answer::Done)
    }

    fn request_sense(&mut self) -> Vec<u8> {
        let Sense { key, code: (code, qualifier) } = self.attention.take().unwrap_or(self.sense);
        let mut out = vec![0; 18];
        (out[0], out[2], out[7], out[12], out[13]) = (0x70, key, 10, code, qualifier);
        out
    }

    /// GET CONFIGURATION (MMC-4 6.6): profiles, core and removable medium.
    fn configuration(&self, p: &Packet, blocks: u64) -> Result<Vec<u8>, Sense> {
        let (kind, start) = (p.byte(1) & 3, p.number(2, 2));
        if kind == 3 {
            return Err(Sense::BAD_FIELD);
        }
        let (cd, dvd) = (blocks <= CD_BLOCKS, blocks > CD_BLOCKS);
        let (cd, dvd) = if self.ready().is_ok() { (cd, dvd) } else { (false, false) };
        let profile = if cd {
            8u16
        } else if dvd {
            0x10
        } else {
            0
        };
        let features: [(u64, Vec<u8>); 3] = [
            (0, vec![0, 0, 0x03, 8, 0, 0x10, dvd.into(), 0, 0, 8, cd.into(), 0]),
            // Core: the interface is ATAPI.
            (1, vec![0, 1, 0x0b, 8, 0, 0, 0, 2, 1, 0, 0, 0]),
            // Removable medium: a tray, which can be locked, and ejects.
            (3, vec![0, 3, 0x03, 4, 0x39, 0, 0, 0]),
        ];
        let wanted = |number: u64| if kind == 2 { number == start } else { number >= start };
        let body: Vec<u8> = features.into_iter().filter(|(n, _)| wanted(*n)).flat_map(|(_, bytes)| bytes).collect();
        let mut out = (body.len() as u32 + 4).to_be_bytes().to_vec();
        out.extend([0, 0]);
        out.extend(profile.to_be_bytes());
        out.extend(body);
        Ok(out)
    }

    /// GET EVENT STATUS NOTIFICATION (MMC-4 6.7), polled; there are media events.
    fn event_status(&mut self, p: &Packet) -> Result<Vec<u8>, Sense> {
        const MEDIA: u8 = 4;
        if p.byte(1) & 1 == 0 {
            return Err(Sense::BAD_FIELD);
        }
        if p.byte(4) & 1 << MEDIA == 0 {
            return Ok(vec![0, 2, 0x80, 1 << MEDIA]);
        }
        let event = match std::mem::take(&mut self.event) {
            Event::None => 0,
            Event::EjectRequested => 1,
            Event::NewMedium => 2,
            Event::Removed => 3,
        };
        let present = u8::from(self.loaded && !self.tray_open) << 1;
        Ok(vec![0, 6, MEDIA, 1 << MEDIA, event, present | u8::from(self.tray_open), 0, 0])
    }

    /// MODE SENSE: error recovery, audio control and capabilities pages.
    fn mode_sense(&self, p: &Packet) -> Result<Vec<u8>, Sense> {
        let page: Vec<u8> = match (p.byte(2) >> 6, p.byte(2) & 0x3f) {
            (3, _) => return Err(Sense::new(5, 0x39, 0)),
            (_, 0x01) => vec![0x01, 6, 0, 5, 0, 0, 0, 0],
            (_, 0x0e) => vec![0x0e, 0x0e, 4, 0, 0, 0, 0, 0, 1, 0xff, 2, 0xff, 0, 0, 0, 0],
            (_, 0x2a | 0x3f) => {
                let mut page = vec![0; 20];
                // Reads CD-R, CD-RW and DVD-ROM; tray, lock and eject; locked now; 706 kB/s and 2 volume levels.
                (page[0], page[1], page[2]) = (0x2a, 18, 0x3b);
                page[6] = 0x29 | u8::from(self.locked) << 1;
                page[8..10].copy_from_slice(&706u16.to_be_bytes());
                page[11] = 2;
                page[12..14].copy_from_slice(&512u16.to_be_bytes());
                page[14..16].copy_from_slice(&706u16.to_be_bytes());
                page
            }
            _ => return Err(Sense::BAD_FIELD),
        };
        let mut out = (page.len() as u16 + 6).to_be_bytes().to_vec();
        // Medium type: a data CD, no disc, or door open.
        out.push(match (self.tray_open, self.loaded) {
            (true, _) => 0x71,
            (_, false) => 0x70,
            _ => 0x01,
        });
        out.resize(8, 0);
        out.extend(page);
        Ok(out)
    }
}

fn inquiry() -> Vec<u8> {
    let mut out = vec![0x05, 0x80, 0x00, 0x21, 31, 0, 0, 0];
    out.extend(b"BROLGA  BROLGA DVD-ROM  1.0 ");
    out
}

/// READ CAPACITY: the last block, and their size.
fn capacity(blocks: u64) -> Vec<u8> {
    let last = blocks.saturating_sub(1).min(u32::MAX.into()) as u32;
    [last.to_be_bytes(), (BLOCK as u32).to_be_bytes()].concat()
}

/// READ SUB-CHANNEL: no audio plays.
fn sub_channel(p: &Packet) -> Vec<u8> {
    match p.byte(2) & 0x40 {
        0 => vec![0, 0x15, 0, 0],
        _ => [vec![0, 0x15, 0, 20], vec![0; 20]].concat(),
    }
}

/// A block's address, in the form that `msf` asks for.
fn address(block: u64, msf: bool) -> [u8; 4] {
    if !msf {
        return (block.min(u32::MAX.into()) as u32).to_be_bytes();
    }
    let frames = block.saturating_add(LEAD_IN);
    [0, (frames / 75 / 60).min(255) as u8, (frames / 75 % 60) as u8, (frames % 75) as u8]
}

/// READ TOC (MMC-4 6.30): one data track and the lead-out.
fn contents(p: &Packet, blocks: u64) -> Result<Vec<u8>, Sense> {
    let msf = p.byte(1) & 2 != 0;
    // Old drivers have the format in the control byte.
    let format = match p.byte(2) & 0xf {
        0 => p.byte(9) >> 6,
        format => format,
    };
    let start = p.byte(6);
    let mut out = vec![0, 0, 1, 1];
    let mut track = |number: u8, block: u64| {
        out.extend([0, 0x14, number, 0]);
        out.extend(address(block, msf));
    };
    match format {
        0 if start > 1 && start != LEAD_OUT => return Err(Sense::BAD_FIELD),
        0 => {
            if start <= 1 {
                track(1, 0);
            }
            track(LEAD_OUT, blocks);
        }
        1 => track(1, 0),
        2 => {
            let [_, m, s, f] = address(blocks, true);
            for (point, place) in [(0xa0, [1, 0, 0]), (0xa1, [1, 0, 0]), (0xa2, [m, s, f]), (1, [0, 2, 0])] {
                out.extend([1, 0x14, 0, point, 0, 0, 0, 0]);
                out.extend(place);
            }
        }
        _ => return Err(Sense::BAD_FIELD),
    }
    let len = (out.len() as u16 - 2).to_be_bytes();
    out[..2].copy_from_slice(&len);
    Ok(out)
}

/// READ DISC INFORMATION (MMC-4 6.25): finalized, one session of one track.
fn disc_information(p: &Packet) -> Result<Vec<u8>, Sense> {
    if p.byte(1) & 7 != 0 {
        return Err(Sense::BAD_FIELD);
    }
    let mut out = vec![0; 34];
    (out[1], out[2], out[3], out[4], out[5], out[6], out[7]) = (32, 0x0e, 1, 1, 1, 1, 0x20);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::Random;

    fn ready() -> Optical {
        let mut drive = Optical::power_on(true);
        assert_eq!(drive.command(&[0; 12], 1000), Answer::Check(Sense::POWERED_ON));
        assert_eq!(drive.command(&[0; 12], 1000), Answer::Done);
        drive
    }

    fn packet(bytes: &[u8]) -> [u8; 12] {
        let mut packet = [0; 12];
        packet[..bytes.len()].copy_from_slice(bytes);
        packet
    }

    fn data(drive: &mut Optical, bytes: &[u8]) -> Vec<u8> {
        match drive.command(&packet(bytes), 1000) {
            Answer::Data(bytes) => bytes,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn reads_within_the_medium() {
        let mut d = ready();
        let read =
            |d: &mut Optical, first: u8, count: u8| d.command(&packet(&[0x28, 0, 0, 0, 3, first, 0, 0, count]), 1000);
        assert_eq!(read(&mut d, 0xe7, 1), Answer::Read { first: 999, count: 1 });
        assert_eq!(read(&mut d, 0xe7, 2), Answer::Check(Sense::BEYOND_END));
        assert_eq!(data(&mut d, &[0x03, 0, 0, 0, 18])[12], 0x21);
        assert_eq!(data(&mut d, &[0x03, 0, 0, 0, 18])[2], 0, "told once");
        assert_eq!(read(&mut d, 0, 0), Answer::Done);
        let all = [0xff; 12];
        let mut huge = packet(&[0xa8]);
        huge[2..10].copy_from_slice(&all[..8]);
        assert_eq!(d.command(&huge, 1000), Answer::Check(Sense::BEYOND_END));
        assert_eq!(data(&mut d, &[0x25]), [0, 0, 3, 0xe7, 0, 0, 8, 0]);
    }

    #[test]
    fn contents_in_blocks_and_in_minutes() {
        let mut d = ready();
        let toc = data(&mut d, &[0x43, 0, 0, 0, 0, 0, 0, 0, 100]);
        assert_eq!(toc, [0, 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0, 0, 0x14, 0xaa, 0, 0, 0, 3, 0xe8]);
        let toc = data(&mut d, &[0x43, 2, 0, 0, 0, 0, 0xaa, 0, 100]);
        assert_eq!(toc, [0, 10, 1, 1, 0, 0x14, 0xaa, 0, 0, 0, 15, 25]);
        assert_eq!(data(&mut d, &[0x43, 0, 1, 0, 0, 0, 0, 0, 12])[..4], [0, 10, 1, 1]);
        assert_eq!(data(&mut d, &[0x43, 0, 0, 0, 0, 0, 0, 0, 2]), [0, 18], "as much as there is room for");
    }

    #[test]
    fn trays_locks_and_media() {
        let mut d = ready();
        d.command(&packet(&[0x1e, 0, 0, 0, 1]), 1000);
        assert_eq!(d.command(&packet(&[0x1b, 0, 0, 0, 2]), 1000), Answer::Check(Sense::LOCKED));
        assert!(!d.eject_requested());
        assert_eq!(data(&mut d, &[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8])[4..6], [1, 2]);
        d.command(&packet(&[0x1e]), 1000);
        assert_eq!(d.command(&packet(&[0x1b, 0, 0, 0, 2]), 1000), Answer::Done);
        assert_eq!(d.command(&[0; 12], 1000), Answer::Check(Sense::TRAY_OPEN));
        d.medium_changed(false);
        assert_eq!(d.command(&[0; 12], 0), Answer::Check(Sense::NO_MEDIUM));
        d.medium_changed(true);
        assert_eq!(data(&mut d, &[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8])[4..6], [2, 2]);
        assert_eq!(d.command(&[0; 12], 5), Answer::Check(Sense::CHANGED));
        assert_eq!(d.command(&[0; 12], 5), Answer::Done);
    }

    #[test]
    fn configuration_tells_cd_from_dvd() {
        let mut d = ready();
        let profile = |d: &mut Optical, blocks| match d.command(&packet(&[0x46, 0, 0, 0, 0, 0, 0, 0, 8]), blocks) {
            Answer::Data(bytes) => bytes[7],
            other => panic!("{other:?}"),
        };
        assert_eq!((profile(&mut d, 1000), profile(&mut d, 2_000_000)), (8, 0x10));
    }

    #[test]
    fn any_packet_gets_an_answer() {
        let (mut d, mut random) = (ready(), Random::new(77));
        for _ in 0..100_000 {
            let mut bytes = [0; 12];
            bytes[..8].copy_from_slice(&random.next().to_le_bytes());
            bytes[8..].copy_from_slice(&random.next().to_le_bytes()[..4]);
            match d.command(&bytes, random.next()) {
                Answer::Data(bytes) => assert!(!bytes.is_empty() && bytes.len() < 200),
                Answer::Read { count, .. } => assert!(count > 0),
                Answer::Done | Answer::Check(_) => {}
            }
        }
    }
}
