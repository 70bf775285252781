//! Which frames the guest wants (manual section 3.2.1), and what a receive descriptor says about them (3.2.3).

use super::registers::{ADDRESS_VALID, Registers, ctrl, rctl};
use crate::offload::{self, be16};

/// Longest frame without and with a VLAN tag, without its checksum.
const LONGEST: usize = 1518;
/// Longest frame with RCTL.LPE.
const LONGEST_LARGE: usize = 16_380;
/// Type of a VLAN tag's frame when the guest has told no other.
const TAGGED: usize = 14;

/// Descriptor status (3.2.3.1).
pub mod status {
    pub const DD: u8 = 1 << 0;
    pub const EOP: u8 = 1 << 1;
    /// The frame had a VLAN tag, which is in the descriptor now.
    pub const VP: u8 = 1 << 3;
    pub const TCPCS: u8 = 1 << 5;
    pub const IPCS: u8 = 1 << 6;
}

/// Descriptor errors (3.2.3.2).
pub mod error {
    pub const TCPE: u8 = 1 << 5;
    pub const IPE: u8 = 1 << 6;
}

/// RXCSUM bits (13.4.32).
const IP_OFFLOAD: u32 = 1 << 8;
const TRANSPORT_OFFLOAD: u32 = 1 << 9;

/// What the descriptor of a frame's last part says, but for DD and EOP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Status bits.
    pub status: u8,
    /// Error bits.
    pub errors: u8,
    /// Sum over the packet from RXCSUM.PCSS on.
    pub sum: u16,
    /// VLAN tag.
    pub special: u16,
}

/// Why a frame is not for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Another station's.
    NotOurs,
    /// Longer than allowed.
    TooLong,
}

/// The frame's VLAN tag.
fn tag(registers: &Registers, frame: &[u8]) -> Option<u16> {
    (u32::from(be16(frame, 12)?) == registers.vet).then(|| be16(frame, TAGGED)).flatten()
}

/// Whether the guest wants `frame`, which has a whole header.
pub fn accepts(registers: &Registers, frame: &[u8]) -> Result<(), Refusal> {
    let longest = match tag(registers, frame) {
        _ if registers.rctl & rctl::LPE != 0 => LONGEST_LARGE,
        Some(_) => LONGEST,
        None => LONGEST - 4,
    };
    if frame.len() > longest {
        return Err(Refusal::TooLong);
    }
    let vlan = tag(registers, frame).filter(|_| registers.rctl & rctl::VFE != 0);
    let in_vlan = vlan.is_none_or(|tag| {
        let id = tag & 0xfff;
        registers.vfta.get(usize::from(id >> 5)).is_some_and(|word| word >> (id & 31) & 1 != 0)
    });
    let Some(to) = frame.first_chunk::<6>().filter(|_| in_vlan) else { return Err(Refusal::NotOurs) };
    let wanted = match to {
        [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] => registers.rctl & rctl::BAM != 0 || registers.rctl & rctl::MPE != 0,
        [first, ..] if first & 1 != 0 => registers.rctl & rctl::MPE != 0 || hashed(registers, to),
        _ => registers.rctl & rctl::UPE != 0,
    };
    if wanted || exact(registers, to) { Ok(()) } else { Err(Refusal::NotOurs) }
}

/// One of the receive addresses.
fn exact(registers: &Registers, to: &[u8; 6]) -> bool {
    let low = u32::from_le_bytes([to[0], to[1], to[2], to[3]]);
    let high = u32::from(to[4]) | u32::from(to[5]) << 8;
    let mut pairs = registers.ra.chunks_exact(2);
    pairs.any(|pair| pair[1] & ADDRESS_VALID != 0 && pair[0] == low && pair[1] & 0xffff == high)
}

/// Among the multicast addresses as far as the hash tells (13.5.1): 12 bits of the last two bytes.
fn hashed(registers: &Registers, to: &[u8; 6]) -> bool {
    let shift = [4, 3, 2, 0][(registers.rctl >> 12 & 3) as usize];
    let hash = (u32::from(to[5]) << 8 | u32::from(to[4])) >> shift & 0xfff;
    registers.mta.get((hash >> 5) as usize).is_some_and(|word| word >> (hash & 31) & 1 != 0)
}

/// The size of a receive buffer (13.4.22, BSIZE and BSEX).
pub fn buffer_size(registers: &Registers) -> usize {
    let size = 2048usize >> (registers.rctl >> 16 & 3);
    // 2048 with the extension is reserved.
    if registers.rctl & rctl::BSEX != 0 && size != 2048 { size * 16 } else { size }
}

/// Takes the VLAN tag out of `frame` if the guest wants it in the descriptor, and checks sums.
pub fn examine(registers: &Registers, frame: &mut Vec<u8>) -> Verdict {
    let mut verdict = Verdict::default();
    if registers.ctrl & ctrl::VME != 0
        && let Some(tag) = tag(registers, frame)
    {
        drop(frame.drain(12..16));
        verdict.status |= status::VP;
        verdict.special = tag;
    }
    if let Some(covered) = frame.get((registers.rxcsum & 0xff) as usize..) {
        verdict.sum = !offload::internet_checksum(covered);
    }
    check_sums(registers, frame, &mut verdict);
    verdict
}

/// The sums of IPv4, and of TCP and UDP over it, where the guest wants them checked.
fn check_sums(registers: &Registers, frame: &[u8], verdict: &mut Verdict) {
    let wanted = |bit: u32| registers.rxcsum & bit != 0;
    if !wanted(IP_OFFLOAD | TRANSPORT_OFFLOAD) {
        return;
    }
    let check = offload::check_sums(frame);
    if let Some(right) = check.ip.filter(|_| wanted(IP_OFFLOAD)) {
        verdict.status |= status::IPCS;
        verdict.errors |= if right { 0 } else { error::IPE };
    }
    if let Some(right) = check.transport.filter(|_| wanted(TRANSPORT_OFFLOAD)) {
        verdict.status |= status::TCPCS;
        verdict.errors |= if right { 0 } else { error::TCPE };
    }
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
        let mut r = Registers::power_on(MAC, true);
        let ok = |r: &Registers, mac| accepts(r, &to(mac)).is_ok();
        assert!(ok(&r, MAC));
        let (other, group) = ([0x52, 0x54, 0, 0x12, 0x34, 0x57], [1, 0, 0x5e, 0x12, 0x34, 0x56]);
        assert!(!ok(&r, other) && !ok(&r, group) && !ok(&r, [0xff; 6]));
        r.rctl = rctl::BAM;
        assert!(ok(&r, [0xff; 6]));
        r.rctl = rctl::UPE;
        assert!(ok(&r, other) && !ok(&r, group));
        r.rctl = rctl::MPE;
        assert!(ok(&r, group));
        for (offset, shift) in [(0, 4), (1, 3), (2, 2), (3, 0)] {
            r.rctl = offset << 12;
            let hash = (0x5634u32 >> shift & 0xfff) as usize;
            r.mta.fill(0);
            r.mta[hash >> 5] = 1 << (hash & 31);
            assert!(ok(&r, group), "{offset}");
            r.mta[hash >> 5] = !(1 << (hash & 31));
            assert!(!ok(&r, group));
        }
    }

    #[test]
    fn lengths_and_vlans() {
        let mut r = Registers::power_on(MAC, true);
        let mut frame = to(MAC);
        frame.resize(1514, 0);
        assert!(accepts(&r, &frame).is_ok());
        frame.push(0);
        assert_eq!(accepts(&r, &frame), Err(Refusal::TooLong));
        r.rctl = rctl::LPE;
        assert!(accepts(&r, &frame).is_ok());
        r.rctl = rctl::VFE;
        frame[12..16].copy_from_slice(&[0x81, 0, 0x20, 0x25]);
        assert_eq!(accepts(&r, &frame), Err(Refusal::NotOurs));
        r.vfta[1] = 1 << 5;
        assert!(accepts(&r, &frame).is_ok());
        r.ctrl |= ctrl::VME;
        let verdict = examine(&r, &mut frame);
        assert_eq!((verdict.status & status::VP, verdict.special, frame.len()), (status::VP, 0x2025, 1511));
    }

    #[test]
    fn sizes_of_buffers() {
        let mut r = Registers::power_on(MAC, true);
        let sizes: Vec<_> = [0, 1, 2, 3, 0x201, 0x202, 0x203]
            .map(|bits: u32| {
                r.rctl = bits << 16;
                buffer_size(&r)
            })
            .into();
        assert_eq!(sizes, [2048, 1024, 512, 256, 16384, 8192, 4096]);
    }

    #[test]
    fn sums_are_checked() {
        let mut r = Registers::power_on(MAC, true);
        r.rxcsum = IP_OFFLOAD | TRANSPORT_OFFLOAD;
        let mut frame = to(MAC);
        frame[14..34].copy_from_slice(&[0x45, 0, 0, 31, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 2, 2, 10, 0, 2, 15]);
        let sum = offload::internet_checksum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame[34..45].copy_from_slice(&[0, 53, 0, 99, 0, 11, 0, 0, b'a', b'b', b'c']);
        let pseudo = [10, 0, 2, 2, 10, 0, 2, 15, 0, 17, 0, 11, 0, 53, 0, 99, 0, 11, 0, 0, b'a', b'b', b'c'];
        let sum = offload::internet_checksum(&pseudo);
        frame[40..42].copy_from_slice(&sum.to_be_bytes());
        let good = examine(&r, &mut frame);
        assert_eq!((good.status, good.errors), (status::IPCS | status::TCPCS, 0));
        frame[44] ^= 1;
        assert_eq!(examine(&r, &mut frame).errors, error::TCPE);
        frame[20] ^= 0x80;
        assert_eq!(examine(&r, &mut frame).errors, error::TCPE | error::IPE);
    }
}
