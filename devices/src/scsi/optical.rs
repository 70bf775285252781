//! A CD or DVD drive as its commands show it (SCSI Primary Commands 3 and Multimedia Commands 4), whatever carries them.

use super::mode::{self, Head, Values};
use super::{Answer, Cdb, Identity, Sense, capacity_10, capacity_16, data, within};
use serde::{Deserialize, Serialize};

/// Bytes of a block.
pub const BLOCK: u64 = 2048;
/// Blocks of the longest CD, 80 minutes; longer media are DVDs.
const CD_BLOCKS: u64 = 80 * 60 * 75;
/// Blocks before the first of a track, in the minutes, seconds and frames of CDs.
const LEAD_IN: u64 = 150;
/// Number that the lead-out has in a table of contents.
const LEAD_OUT: u8 = 0xaa;

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

/// What is known of the drive from outside.
pub struct Facts<'a> {
    /// Blocks of the medium.
    pub blocks: u64,
    /// What it says it is.
    pub identity: &'a Identity,
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

    /// The medium was taken out, and the tray is open.
    pub fn medium_taken(&mut self) {
        (self.loaded, self.tray_open, self.event) = (false, true, Event::Removed);
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

    /// The user opens or closes the tray, the medium in it.
    pub fn move_tray(&mut self, open: bool) {
        if self.tray_open == open {
            return;
        }
        self.tray_open = open;
        self.event = if open { Event::Removed } else { Event::NewMedium };
        if !open && self.loaded {
            self.attention = Some(Sense::CHANGED);
        }
    }

    /// The guest keeps the tray closed.
    pub fn locked(&self) -> bool {
        self.locked
    }

    /// The tray is open.
    pub fn tray_open(&self) -> bool {
        self.tray_open
    }

    /// What the next command is refused for.
    pub fn attend(&mut self, sense: Sense) {
        self.attention = Some(sense);
    }

    /// Carries a command out.
    pub fn command(&mut self, packet: &[u8], facts: &Facts) -> Answer {
        let answer = self.dispatch(Cdb(packet), facts).unwrap_or_else(Answer::Check);
        match answer {
            Answer::Check(sense) => self.sense = sense,
            // What was asked for is told once.
            _ => self.sense = Sense::default(),
        }
        answer
    }

    /// The host's list for a command that asked for it: MODE SELECT.
    pub fn parameters(&mut self, packet: &[u8], list: &[u8]) -> Answer {
        match mode::chosen(Cdb(packet), list, |values| self.pages(values)) {
            Ok(_) => Answer::Done,
            Err(sense) => {
                self.sense = sense;
                Answer::Check(sense)
            }
        }
    }

    /// A command failed after it had begun.
    pub fn failed(&mut self, sense: Sense) {
        self.sense = sense;
    }

    fn dispatch(&mut self, p: Cdb, facts: &Facts) -> Result<Answer, Sense> {
        let blocks = facts.blocks;
        match p.byte(0) {
            0x03 => return Ok(data(self.attention.take().unwrap_or(self.sense).bytes().to_vec(), p.number(4, 1))),
            0x12 => return Ok(data(facts.identity.inquiry(p)?, p.number(3, 2))),
            0x46 => return Ok(data(self.configuration(p, blocks)?, p.number(7, 2))),
            0x4a => return Ok(data(self.event_status(p)?, p.number(7, 2))),
            _ => {}
        }
        if let Some(sense) = self.attention.take() {
            return Err(sense);
        }
        match p.byte(0) {
            0x1b => return self.start_stop(p),
            0x1e => {
                self.locked = p.byte(4) & 1 != 0;
                return Ok(Answer::Done);
            }
            0x1a | 0x5a => {
                // Medium type: a data CD, no disc, or door open.
                let medium = match (self.tray_open, self.loaded) {
                    (true, _) => 0x71,
                    (_, false) => 0x70,
                    _ => 0x01,
                };
                let head = Head { medium, specific: 0, descriptor: None };
                return mode::sense(p, &head, |values| self.pages(values));
            }
            0x15 | 0x55 => return mode::select(p),
            0xbd => return Ok(data(vec![0, if self.tray_open { 0x10 } else { 0 }, 0, 0, 0, 1, 0, 0], p.number(8, 2))),
            // The speed is the host's; and the only host always gets its reservation.
            0xbb | 0x16 | 0x17 | 0x1d => return Ok(Answer::Done),
            _ => {}
        }
        self.medium_command(p, blocks)
    }

    /// Commands that a medium is needed for.
    fn medium_command(&self, p: Cdb, blocks: u64) -> Result<Answer, Sense> {
        let known = [0x00, 0x08, 0x25, 0x28, 0x2b, 0x2f, 0x35, 0x42, 0x43, 0x51, 0x52, 0x88, 0x9e, 0xa8, 0xad, 0xbe];
        if !known.contains(&p.byte(0)) {
            return Err(Sense::BAD_COMMAND);
        }
        self.ready()?;
        match p.byte(0) {
            0x25 => Ok(data(capacity_10(blocks, BLOCK as u32), 8)),
            0x9e if p.byte(1) & 0x1f == 0x10 => Ok(data(capacity_16(blocks, BLOCK as u32), p.number(10, 4))),
            0x9e => Err(Sense::BAD_FIELD),
            0x08 | 0x28 | 0xa8 | 0x88 => {
                let (first, count) = p.blocks();
                read(first, count, blocks)
            }
            0xbe => read_cd(p, blocks),
            0x2b => within(p.number(2, 4), 1, blocks).map(|()| Answer::Done),
            0x2f => {
                let (first, count) = p.blocks();
                within(first, count, blocks)?;
                Ok(if count == 0 { Answer::Done } else { Answer::Verify { first, count } })
            }
            0x42 => Ok(data(sub_channel(p), p.number(7, 2))),
            0x43 => Ok(data(contents(p, blocks)?, p.number(7, 2))),
            0x51 => Ok(data(disc_information(p)?, p.number(7, 2))),
            0x52 => Ok(data(track_information(p, blocks)?, p.number(7, 2))),
            0xad => Ok(data(dvd_structure(p, blocks)?, p.number(8, 2))),
            // TEST UNIT READY, and SYNCHRONIZE CACHE of what is never written.
            _ => Ok(Answer::Done),
        }
    }

    fn ready(&self) -> Result<(), Sense> {
        match (self.tray_open, self.loaded) {
            (true, _) => Err(Sense::TRAY_OPEN),
            (_, false) => Err(Sense::NO_MEDIUM),
            _ => Ok(()),
        }
    }

    fn start_stop(&mut self, p: Cdb) -> Result<Answer, Sense> {
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

    /// GET CONFIGURATION (MMC-4 6.6): profiles, core and removable medium.
    fn configuration(&self, p: Cdb, blocks: u64) -> Result<Vec<u8>, Sense> {
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
    fn event_status(&mut self, p: Cdb) -> Result<Vec<u8>, Sense> {
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

    /// Error recovery, audio control and capabilities pages.
    fn pages(&self, values: Values) -> Vec<Vec<u8>> {
        if values == Values::Changeable {
            let page = |code: u8, len: usize| [vec![code, len as u8], vec![0; len]].concat();
            return vec![page(0x01, 6), page(0x0e, 14), page(0x2a, 18)];
        }
        let recovery = vec![0x01, 6, 0, 5, 0, 0, 0, 0];
        let audio = vec![0x0e, 0x0e, 4, 0, 0, 0, 0, 0, 1, 0xff, 2, 0xff, 0, 0, 0, 0];
        let mut page = vec![0; 20];
        // Reads CD-R, CD-RW and DVD-ROM; tray, lock and eject; locked now; 706 kB/s and 2 volume levels.
        (page[0], page[1], page[2]) = (0x2a, 18, 0x3b);
        page[6] = 0x29 | u8::from(self.locked) << 1;
        page[8..10].copy_from_slice(&706u16.to_be_bytes());
        page[11] = 2;
        page[12..14].copy_from_slice(&512u16.to_be_bytes());
        page[14..16].copy_from_slice(&706u16.to_be_bytes());
        vec![recovery, audio, page]
    }
}

fn read(first: u64, count: u64, blocks: u64) -> Result<Answer, Sense> {
    within(first, count, blocks)?;
    Ok(if count == 0 { Answer::Done } else { Answer::Read { first, count } })
}

/// READ CD (MMC-4 6.20), the user data of data blocks only.
fn read_cd(p: Cdb, blocks: u64) -> Result<Answer, Sense> {
    let expected = p.byte(1) >> 2 & 7;
    match (expected, p.byte(9) & 0xf8) {
        (_, 0) => Ok(Answer::Done),
        (0 | 2 | 4, 0x10) => read(p.number(2, 4), p.number(6, 3), blocks),
        _ => Err(Sense::BAD_FIELD),
    }
}

/// READ TRACK INFORMATION (MMC-4 6.33): there is one track.
fn track_information(p: Cdb, blocks: u64) -> Result<Vec<u8>, Sense> {
    let number = p.number(2, 4);
    match p.byte(1) & 3 {
        0 => within(number, 1, blocks)?,
        1 | 2 if number == 1 => {}
        _ => return Err(Sense::BAD_FIELD),
    }
    let mut out = vec![0; 36];
    // Its length, track and session; data, recorded at once, mode 1.
    (out[1], out[2], out[3], out[5], out[6]) = (34, 1, 1, 4, 1);
    out[24..28].copy_from_slice(&(blocks.min(u32::MAX.into()) as u32).to_be_bytes());
    Ok(out)
}

/// READ DVD STRUCTURE (MMC-4 6.22): physical format, and that nothing is protected.
fn dvd_structure(p: Cdb, blocks: u64) -> Result<Vec<u8>, Sense> {
    if blocks <= CD_BLOCKS {
        return Err(Sense::WRONG_MEDIUM);
    }
    let last = (blocks - 1).min(0xff_ffff) as u32;
    let body = match (p.byte(6), p.byte(7)) {
        (0, 0x00) => {
            // DVD-ROM of 120 mm, one layer; from the first block to the last.
            let mut body = vec![0; 2048];
            (body[0], body[1], body[2]) = (0x01, 0x0f, 0x01);
            body[8..12].copy_from_slice(&last.to_be_bytes());
            body
        }
        (_, 0x01) => vec![0; 4],
        _ => return Err(Sense::BAD_FIELD),
    };
    let mut out = ((body.len() + 2) as u16).to_be_bytes().to_vec();
    out.extend([0, 0]);
    out.extend(body);
    Ok(out)
}

/// READ SUB-CHANNEL: no audio plays.
fn sub_channel(p: Cdb) -> Vec<u8> {
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
fn contents(p: Cdb, blocks: u64) -> Result<Vec<u8>, Sense> {
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
fn disc_information(p: Cdb) -> Result<Vec<u8>, Sense> {
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

    fn identity() -> Identity {
        let text = String::new;
        let (vendor, product, revision) = ("BROLGA".into(), "BROLGA DVD-ROM".into(), "1.0".into());
        let carrier = crate::scsi::Carrier::Atapi;
        Identity { cd: true, carrier, vendor, product, revision, serial: text(), id: text(), wwn: None }
    }

    fn run(drive: &mut Optical, packet: &[u8], blocks: u64) -> Answer {
        drive.command(packet, &Facts { blocks, identity: &identity() })
    }

    fn ready() -> Optical {
        let mut drive = Optical::power_on(true);
        assert_eq!(run(&mut drive, &[0; 12], 1000), Answer::Check(Sense::POWERED_ON));
        assert_eq!(run(&mut drive, &[0; 12], 1000), Answer::Done);
        drive
    }

    fn packet(bytes: &[u8]) -> [u8; 12] {
        let mut packet = [0; 12];
        packet[..bytes.len()].copy_from_slice(bytes);
        packet
    }

    fn data(drive: &mut Optical, bytes: &[u8]) -> Vec<u8> {
        match run(drive, &packet(bytes), 1000) {
            Answer::Data(bytes) => bytes,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn reads_within_the_medium() {
        let mut d = ready();
        let read =
            |d: &mut Optical, first: u8, count: u8| run(d, &packet(&[0x28, 0, 0, 0, 3, first, 0, 0, count]), 1000);
        assert_eq!(read(&mut d, 0xe7, 1), Answer::Read { first: 999, count: 1 });
        assert_eq!(read(&mut d, 0xe7, 2), Answer::Check(Sense::BEYOND_END));
        assert_eq!(data(&mut d, &[0x03, 0, 0, 0, 18])[12], 0x21);
        assert_eq!(data(&mut d, &[0x03, 0, 0, 0, 18])[2], 0, "told once");
        assert_eq!(read(&mut d, 0, 0), Answer::Done);
        let all = [0xff; 12];
        let mut huge = packet(&[0xa8]);
        huge[2..10].copy_from_slice(&all[..8]);
        assert_eq!(run(&mut d, &huge, 1000), Answer::Check(Sense::BEYOND_END));
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
        run(&mut d, &packet(&[0x1e, 0, 0, 0, 1]), 1000);
        assert_eq!(run(&mut d, &packet(&[0x1b, 0, 0, 0, 2]), 1000), Answer::Check(Sense::LOCKED));
        assert!(!d.eject_requested());
        assert_eq!(data(&mut d, &[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8])[4..6], [1, 2]);
        run(&mut d, &packet(&[0x1e]), 1000);
        assert_eq!(run(&mut d, &packet(&[0x1b, 0, 0, 0, 2]), 1000), Answer::Done);
        assert_eq!(run(&mut d, &[0; 12], 1000), Answer::Check(Sense::TRAY_OPEN));
        d.medium_changed(false);
        assert_eq!(run(&mut d, &[0; 12], 0), Answer::Check(Sense::NO_MEDIUM));
        d.medium_changed(true);
        assert_eq!(data(&mut d, &[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8])[4..6], [2, 2]);
        assert_eq!(run(&mut d, &[0; 12], 5), Answer::Check(Sense::CHANGED));
        assert_eq!(run(&mut d, &[0; 12], 5), Answer::Done);
    }

    #[test]
    fn configuration_tells_cd_from_dvd() {
        let mut d = ready();
        let profile = |d: &mut Optical, blocks| match run(d, &packet(&[0x46, 0, 0, 0, 0, 0, 0, 0, 8]), blocks) {
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
            match run(&mut d, &bytes, random.next()) {
                Answer::Data(bytes) => assert!(!bytes.is_empty() && bytes.len() <= 2052),
                Answer::Read { count, .. } | Answer::Verify { count, .. } => assert!(count > 0),
                Answer::Parameters(len) => {
                    let list: Vec<u8> = (0..len.min(64)).map(|_| random.next() as u8 & 0x3f).collect();
                    assert!(matches!(d.parameters(&bytes, &list), Answer::Done | Answer::Check(_)));
                }
                Answer::Done | Answer::Check(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}
