//! Which frames the guest wants (datasheet 6.12), and what is stored with them: a header in C mode's buffer (5.1), the
//! status of a descriptor in C+ mode (7.2).

use super::registers::{Registers, plus, rcr};
use super::tally::To;
use crate::offload::{self, be16};

/// Longest frame, with its checksum, that counts as none of the too long.
pub const LONGEST: usize = 4096;
/// Type of a VLAN tag's frame.
const TAGGED: u16 = 0x8100;
/// Shortest frame, without its checksum.
pub const SHORTEST: usize = 60;
/// Bytes of a frame's checksum. What it is nobody computes.
pub const CRC: usize = 4;

/// The packet header of C mode.
mod header {
    pub const ROK: u16 = 1 << 0;
    pub const BROADCAST: u16 = 1 << 13;
    pub const OURS: u16 = 1 << 14;
    pub const GROUP: u16 = 1 << 15;
}

/// A receive descriptor of C+ mode.
pub mod status {
    pub const OWN: u32 = 1 << 31;
    pub const END: u32 = 1 << 30;
    pub const FIRST: u32 = 1 << 29;
    pub const LAST: u32 = 1 << 28;
    pub const GROUP: u32 = 1 << 26;
    pub const OURS: u32 = 1 << 25;
    pub const BROADCAST: u32 = 1 << 24;
    /// Protocol: TCP over IP, UDP over IP, other IP.
    pub const TCP: u32 = 1 << 16;
    pub const UDP: u32 = 2 << 16;
    pub const IP: u32 = 3 << 16;
    pub const IP_WRONG: u32 = 1 << 15;
    pub const UDP_WRONG: u32 = 1 << 14;
    pub const TCP_WRONG: u32 = 1 << 13;
    /// Bytes: of the buffer before, of the frame after.
    pub const LEN: u32 = 0x1fff;
    /// Second word: the frame had a VLAN tag, which is below it.
    pub const VLAN: u32 = 1 << 16;
}

/// The hash by which groups are looked up: the upper six bits of the address's CRC, as 8139s have it.
fn hash(to: &[u8; 6]) -> u32 {
    const POLYNOMIAL: u32 = 0x04c1_1db7;
    let bits = to.iter().flat_map(|byte| (0..8).map(move |bit| u32::from(byte >> bit & 1)));
    bits.fold(u32::MAX, |crc, bit| crc << 1 ^ if crc >> 31 ^ bit != 0 { POLYNOMIAL } else { 0 }) >> 26
}

/// Whom `frame` is for, if the guest wants it.
pub fn accepts(registers: &Registers, frame: &[u8]) -> Option<To> {
    let wants = |bit: u32| registers.rcr & bit != 0;
    let to = frame.first_chunk::<6>()?;
    let (kind, wanted) = match to {
        [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] => (To::All, wants(rcr::BROADCASTS)),
        [first, ..] if first & 1 != 0 => (
            To::Group,
            wants(rcr::GROUPS) && registers.mar.to_le_bytes()[hash(to) as usize >> 3] >> (hash(to) & 7) & 1 != 0,
        ),
        _ => (To::Station, wants(rcr::OURS) && *to == registers.id),
    };
    (wanted || wants(rcr::ALL_STATIONS)).then_some(kind)
}

/// C mode: what stands before a frame that takes `len` bytes with its checksum.
pub fn packet_header(to: To, len: usize) -> [u8; 4] {
    let status = header::ROK
        | match to {
            To::Station => header::OURS,
            To::Group => header::GROUP,
            To::All => header::BROADCAST,
        };
    let ([a, b], [c, d]) = (status.to_le_bytes(), (len as u16).to_le_bytes());
    [a, b, c, d]
}

/// C+ mode: takes the VLAN tag out of `frame` if the guest wants that, and checks sums. What the descriptor's two words
/// say, but for its length and place.
pub fn examine(registers: &Registers, to: To, frame: &mut Vec<u8>) -> (u32, u32) {
    let mut first = match to {
        To::Station => status::OURS,
        To::Group => status::GROUP,
        To::All => status::BROADCAST,
    };
    let mut second = 0;
    if registers.cpcr & plus::UNTAG != 0
        && let (Some(TAGGED), Some(tag)) = (be16(frame, 12), be16(frame, 14))
    {
        drop(frame.drain(12..16));
        // The bytes as they were on the line.
        second = status::VLAN | u32::from(tag.swap_bytes());
    }
    if registers.cpcr & plus::CHECK_SUMS != 0 {
        first |= verdict(frame);
    }
    (first, second)
}

fn verdict(frame: &[u8]) -> u32 {
    const UDP: u8 = 17;
    let check = offload::check_sums(frame);
    let Some(ip) = check.ip else { return 0 };
    let wrong = |right: bool, bit: u32| if right { 0 } else { bit };
    let protocol = match check.transport {
        None => status::IP,
        Some(right) if frame.get(23) == Some(&UDP) => status::UDP | wrong(right, status::UDP_WRONG),
        Some(right) => status::TCP | wrong(right, status::TCP_WRONG),
    };
    protocol | wrong(ip, status::IP_WRONG)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

    fn to(mac: [u8; 6]) -> Vec<u8> {
        [&mac[..], &[2; 6], &[8, 0], &[0; 46]].concat()
    }

    #[test]
    fn addresses() {
        let mut r = Registers::power_on(MAC, true, true);
        let (other, group) = ([0x52, 0x54, 0, 0x12, 0x34, 0x57], [1, 0, 0x5e, 0, 0, 1]);
        let got = |r: &Registers| [MAC, other, group, [0xff; 6]].map(|mac| accepts(r, &to(mac)).is_some());
        assert_eq!(got(&r), [false; 4]);
        r.rcr = rcr::OURS | rcr::BROADCASTS;
        assert_eq!(got(&r), [true, false, false, true]);
        r.rcr = rcr::GROUPS;
        assert_eq!(got(&r), [false; 4]);
        // 01:00:5e:00:00:01, the group of all systems, is bit 31 of the table on every card of this kind.
        assert_eq!(hash(&group), 31);
        r.mar = 1 << 31;
        assert_eq!(got(&r), [false, false, true, false]);
        r.mar = !r.mar;
        assert_eq!(got(&r), [false; 4]);
        r.rcr = rcr::ALL_STATIONS;
        assert_eq!(got(&r), [true; 4]);
        assert_eq!(packet_header(To::Group, 0x123), [0x01, 0x80, 0x23, 0x01]);
    }

    #[test]
    fn tags_and_sums() {
        let mut r = Registers::power_on(MAC, true, true);
        r.cpcr = plus::CHECK_SUMS | plus::UNTAG;
        let mut frame = to(MAC);
        frame.truncate(14);
        frame.extend([0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 2, 2, 10, 0, 2, 15]);
        frame.extend([0, 53, 0, 99, 0, 8, 0, 0]);
        offload::fill_sums(&mut frame, true, true);
        assert_eq!(examine(&r, To::Station, &mut frame.clone()), (status::OURS | status::UDP, 0));
        frame[41] ^= 1;
        let wrong = status::UDP | status::UDP_WRONG;
        assert_eq!(examine(&r, To::Station, &mut frame.clone()).0, status::OURS | wrong);
        frame[22] ^= 1;
        assert_eq!(examine(&r, To::All, &mut frame.clone()).0, status::BROADCAST | wrong | status::IP_WRONG);
        frame.splice(12..12, [0x81, 0, 0x20, 0x25]);
        let before = frame.len();
        assert_eq!(examine(&r, To::Group, &mut frame).1, status::VLAN | 0x2520);
        assert_eq!(frame.len(), before - 4);
        r.cpcr = 0;
        assert_eq!(examine(&r, To::Group, &mut frame), (status::GROUP, 0));
    }
}
