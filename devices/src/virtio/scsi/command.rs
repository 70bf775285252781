//! Commands on request queues (5.6.6.1).

use super::super::queue::Chain;
use super::{Job, Pending, Place, VirtioScsi, steps};
use crate::ranges;
use crate::scsi::identity::MAX_TRANSFER;
use crate::scsi::{Answer, Sense, luns};
use crate::services::GuestRange;
use crate::wire::locked;

/// Bytes of a request before the command, and of an answer before the sense.
const HEADER: u64 = 19;
const ANSWER: u64 = 12;
/// Most bytes of one request.
const MAX_BYTES: u64 = MAX_TRANSFER as u64 * 2048;
/// SCSI status.
const CHECK_CONDITION: u8 = 2;

/// Answers of the host itself.
pub(super) mod response {
    pub const OK: u8 = 0;
    pub const OVERRUN: u8 = 1;
    pub const ABORTED: u8 = 2;
    pub const BAD_TARGET: u8 = 3;
    pub const RESET: u8 = 4;
    pub const FAILURE: u8 = 9;
    pub const FUNCTION_SUCCEEDED: u8 = 10;
    pub const FUNCTION_REJECTED: u8 = 11;
    pub const INCORRECT_LUN: u8 = 12;
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Good,
    Check(Sense),
    /// It did not get to the unit, or was taken back.
    Response(u8),
}

/// What a driver calls a place: 1, the target, and the unit in flat form. `None` for anything else.
pub(super) fn place(lun: &[u8]) -> Option<Place> {
    match *lun {
        [1, target, high, low, ..] => Some((target, u16::from(high & 0x3f) << 8 | u16::from(low))),
        _ => None,
    }
}

/// What a driver calls a place, see [`place`].
pub(super) fn name((target, lun): Place) -> [u8; 8] {
    // Drivers know units below 256 without the format's mark, as they are listed to them.
    let mark = if lun < 256 { 0 } else { 0x40 };
    [1, target, (lun >> 8) as u8 & 0x3f | mark, lun as u8, 0, 0, 0, 0]
}

impl VirtioScsi {
    /// The driver's room for data, and its data.
    pub(super) fn data_of(&self, chain: &Chain) -> (Vec<GuestRange>, Vec<GuestRange>) {
        let (cdb, sense) = self.sizes();
        (ranges::after(&chain.writable, ANSWER + sense), ranges::after(&chain.readable, HEADER + cdb))
    }

    fn sizes(&self) -> (u64, u64) {
        let state = locked(&self.state);
        (state.cdb_size.into(), state.sense_size.into())
    }

    /// Starts a request.
    pub(super) fn take(&self, queue: usize, chain: Chain) {
        let (cdb_size, sense_size) = self.sizes();
        let header = ranges::load(&**self.queues.dma(), &chain.readable, HEADER + cdb_size);
        let short = ranges::total(&chain.writable) < ANSWER + sense_size;
        let (true, false, Some((header, cdb))) =
            (header.len() as u64 == HEADER + cdb_size, short, header.split_at_checked(HEADER as usize))
        else {
            return self.queues.stop();
        };
        let tag = header.get(8..16).and_then(|tag| tag.try_into().ok()).map_or(0, u64::from_le_bytes);
        let (room, data) = self.data_of(&chain);
        let mut pending = Pending { queue, chain, job: Job { tag, ..Job::default() } };
        let Some(place) = place(header) else {
            return self.finish(&pending, Verdict::Response(response::BAD_TARGET));
        };
        pending.job.place = place;
        // Data go one way.
        let (to, from) = (ranges::total(&room), ranges::total(&data));
        if to != 0 && from != 0 {
            return self.finish(&pending, Verdict::Response(response::FAILURE));
        }
        pending.job.offered = to.max(from);
        match self.answer(place, cdb, &data, &mut pending.job) {
            Err(response) => self.finish(&pending, Verdict::Response(response)),
            Ok(Answer::Check(sense)) => self.finish(&pending, Verdict::Check(sense)),
            Ok(Answer::Data(bytes)) => {
                pending.job.moved = ranges::store(&**self.queues.dma(), &room, &bytes);
                self.finish(&pending, Verdict::Good);
            }
            Ok(_) if pending.job.steps.is_empty() => self.finish(&pending, Verdict::Good),
            Ok(_) => {
                let (gets, gives) = steps::moves(pending.job.steps.make_contiguous());
                if gets > to || gives > from || gets.max(gives) > MAX_BYTES {
                    return self.finish(&pending, Verdict::Response(response::OVERRUN));
                }
                pending.job.moved += gets.max(gives);
                self.go_on(pending);
            }
        }
    }

    /// What the unit says to a command; steps that it needs go to `job`.
    fn answer(&self, place: Place, cdb: &[u8], data: &[GuestRange], job: &mut Job) -> Result<Answer, u8> {
        let mut state = locked(&self.state);
        let (target, lun) = place;
        let mut there = state.units.range((target, 0)..=(target, u16::MAX)).map(|((_, lun), _)| *lun).peekable();
        if there.peek().is_none() {
            return Err(response::BAD_TARGET);
        }
        if cdb.first() == Some(&0xa0) {
            return Ok(luns::report(cdb, there));
        }
        let Some(unit) = state.units.get_mut(&(target, lun)) else { return Ok(luns::absent(cdb)) };
        let mut answer = unit.command(cdb);
        if let Answer::Parameters(len) = answer {
            let list = ranges::load(&**self.queues.dma(), data, len);
            if (list.len() as u64) < len {
                return Err(response::OVERRUN);
            }
            job.moved = len;
            answer = unit.parameters(cdb, &list);
        }
        // A sense goes with its command.
        unit.told();
        (job.steps, job.disk) = (steps::of(&answer, unit.block()).unwrap_or_default().into(), unit.medium().cloned());
        Ok(answer)
    }

    /// Tells the driver how a command ended.
    pub(super) fn finish(&self, pending: &Pending, verdict: Verdict) {
        let Pending { queue, chain, job } = pending;
        let (status, response, sense) = match verdict {
            Verdict::Good => (0, response::OK, Vec::new()),
            Verdict::Check(sense) => (CHECK_CONDITION, response::OK, sense.bytes().to_vec()),
            Verdict::Response(response) => (0, response, Vec::new()),
        };
        let (_, sense_size) = self.sizes();
        let moved = if verdict == Verdict::Good { job.moved } else { 0 };
        let residual = u32::try_from(job.offered.saturating_sub(moved)).unwrap_or(u32::MAX);
        let sense = sense.get(..sense_size.min(sense.len() as u64) as usize).unwrap_or(&[]);
        let mut out = (sense.len() as u32).to_le_bytes().to_vec();
        out.extend(residual.to_le_bytes());
        out.extend([0, 0, status, response]);
        out.extend(sense);
        ranges::store(&**self.queues.dma(), &chain.writable, &out);
        let room = ranges::total(&chain.writable);
        let to_driver = if room > ANSWER + sense_size { moved } else { 0 };
        let len = u32::try_from(ANSWER + sense_size + to_driver).unwrap_or(u32::MAX);
        self.queues.push(*queue, chain.head, len);
    }
}
