//! Mode parameters: a header, block descriptors and pages (SPC-4 6.11 and 7.5).

use super::{Answer, Cdb, Sense, data};

/// Which values of a page are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    /// As they are.
    Current,
    /// Ones where the host may change something.
    Changeable,
    /// As after power-on.
    Default,
}

/// What the header says.
pub struct Head {
    /// Medium type.
    pub medium: u8,
    /// Device-specific parameter.
    pub specific: u8,
    /// Block descriptor.
    pub descriptor: Option<[u8; 8]>,
}

/// Whether a command is one of 10 bytes.
fn long(p: Cdb) -> bool {
    p.byte(0) >= 0x20
}

/// MODE SENSE. `pages` gives the pages there are, each with its code and length.
pub fn sense(p: Cdb, head: &Head, pages: impl Fn(Values) -> Vec<Vec<u8>>) -> Result<Answer, Sense> {
    let (wanted, sub_page) = (p.byte(2) & 0x3f, p.byte(3));
    let values = match p.byte(2) >> 6 {
        0 => Values::Current,
        1 => Values::Changeable,
        2 => Values::Default,
        _ => return Err(Sense::NOT_SAVED),
    };
    let body: Vec<u8> = pages(values)
        .into_iter()
        .filter(|page| wanted == 0x3f || page.first().is_some_and(|code| *code == wanted))
        .flatten()
        .collect();
    if body.is_empty() || !(sub_page == 0 || sub_page == 0xff && wanted == 0x3f) {
        return Err(Sense::BAD_FIELD);
    }
    let descriptor = head.descriptor.filter(|_| p.byte(1) & 8 == 0);
    let descriptor = descriptor.as_ref().map_or(&[][..], |d| d);
    let mut out = Vec::new();
    match long(p) {
        true => {
            out.extend(((6 + descriptor.len() + body.len()) as u16).to_be_bytes());
            out.extend([head.medium, head.specific, 0, 0, 0, descriptor.len() as u8]);
        }
        false => {
            let len = (3 + descriptor.len() + body.len()).min(255);
            out.extend([len as u8, head.medium, head.specific, descriptor.len() as u8]);
        }
    }
    out.extend(descriptor);
    out.extend(body);
    Ok(data(out, if long(p) { p.number(7, 2) } else { p.number(4, 1) }))
}

/// MODE SELECT: how much the host has to give.
pub fn select(p: Cdb) -> Result<Answer, Sense> {
    // Pages as the standard has them, and nothing is kept beyond power-off.
    if p.byte(1) & 0x11 != 0x10 {
        return Err(Sense::BAD_FIELD);
    }
    match if long(p) { p.number(7, 2) } else { p.number(4, 1) } {
        0 => Ok(Answer::Done),
        len => Ok(Answer::Parameters(len)),
    }
}

/// The pages in a list that MODE SELECT brings. Each has the length of the page there is, and differs from it only
/// where it may.
pub fn chosen(p: Cdb, list: &[u8], pages: impl Fn(Values) -> Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, Sense> {
    let (current, changeable) = (pages(Values::Current), pages(Values::Changeable));
    let header = if long(p) { 8 } else { 4 };
    let descriptors = match (long(p), list) {
        (true, [_, _, _, _, _, _, a, b, ..]) => usize::from(*a) << 8 | usize::from(*b),
        (false, [_, _, _, a, ..]) => usize::from(*a),
        _ => return Err(Sense::SHORT_LIST),
    };
    if descriptors != 0 && descriptors != 8 {
        return Err(Sense::BAD_PARAMETER);
    }
    let mut rest = list.get(header + descriptors..).ok_or(Sense::SHORT_LIST)?;
    let mut found = Vec::new();
    while let [code, len, ..] = rest {
        let len = usize::from(*len) + 2;
        let page = rest.get(..len).ok_or(Sense::SHORT_LIST)?;
        let same = |other: &&Vec<u8>| other.len() == len && other.first() == Some(&(code & 0x3f));
        let (old, mask) = current.iter().find(same).zip(changeable.iter().find(same)).ok_or(Sense::BAD_PARAMETER)?;
        let kept = page.iter().zip(old).zip(mask).skip(2).all(|((new, old), mask)| (new ^ old) & !mask == 0);
        if code & 0x40 != 0 || !kept {
            return Err(Sense::BAD_PARAMETER);
        }
        found.push(page.to_vec());
        rest = rest.get(len..).unwrap_or(&[]);
    }
    if rest.is_empty() { Ok(found) } else { Err(Sense::SHORT_LIST) }
}
