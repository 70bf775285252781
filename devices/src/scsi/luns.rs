//! Commands that a target answers for its logical units, or for those that it has not.

use super::{Answer, Cdb, Sense, data};

/// How REPORT LUNS calls a unit (SAM-5 4.7): below 256 by its number alone.
fn listed(lun: u16) -> [u8; 8] {
    [if lun < 256 { 0 } else { (lun >> 8) as u8 | 0x40 }, lun as u8, 0, 0, 0, 0, 0, 0]
}

/// REPORT LUNS (SPC-4 6.33).
pub(crate) fn report(cdb: &[u8], luns: impl Iterator<Item = u16>) -> Answer {
    // All units, only well-known ones, or both.
    let entries: Vec<u8> = match cdb.get(2) {
        Some(0 | 2) => luns.flat_map(listed).collect(),
        Some(1) => Vec::new(),
        _ => return Answer::Check(Sense::BAD_FIELD),
    };
    let mut out = (entries.len() as u32).to_be_bytes().to_vec();
    out.extend([0; 4]);
    out.extend(entries);
    data(out, Cdb(cdb).number(6, 4))
}

/// What is answered for a unit that is not there, at a target that is (SPC-4 6.4.2).
pub(crate) fn absent(cdb: &[u8]) -> Answer {
    let p = Cdb(cdb);
    match p.byte(0) {
        0x12 if p.byte(1) & 1 == 0 => {
            let mut out = vec![0; 36];
            (out[0], out[2], out[3], out[4]) = (0x7f, 5, 2, 31);
            data(out, p.number(3, 2))
        }
        0x03 => data(Sense::NO_UNIT.bytes().to_vec(), p.number(4, 1)),
        _ => Answer::Check(Sense::NO_UNIT),
    }
}
