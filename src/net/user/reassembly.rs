//! Fragmented IPv4 packets from the guest put together (RFC 791 3.2), with bounded memory.

use super::packet::Ip;
use std::collections::VecDeque;
use std::net::IpAddr;

/// Packets put together at a time; the oldest goes first.
const PACKETS: usize = 16;
/// Fragments of one packet: 64 KiB in pieces of what the smallest link carries.
const PARTS: usize = 128;
/// Largest payload.
const LONGEST: usize = 0xffff - 20;

#[derive(PartialEq, Eq)]
struct Key {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    id: u16,
}

struct Partial {
    key: Key,
    parts: Vec<(usize, Vec<u8>)>,
    len: Option<usize>,
}

/// Packets of which parts have come.
#[derive(Default)]
pub struct Reassembly {
    partial: VecDeque<Partial>,
}

impl Reassembly {
    /// Takes in a fragment; the whole payload if it was the last one missing. What overlaps is dropped as a whole
    /// (RFC 5722 has the reasons).
    pub fn add(&mut self, ip: &Ip) -> Option<Vec<u8>> {
        let place = ip.fragment?;
        let end = place.offset.checked_add(ip.payload.len()).filter(|end| *end <= LONGEST)?;
        if place.more && (ip.payload.is_empty() || !ip.payload.len().is_multiple_of(8)) {
            return None;
        }
        let key = Key { src: ip.src, dst: ip.dst, protocol: ip.protocol, id: place.id };
        let at = self.partial.iter().position(|partial| partial.key == key).unwrap_or_else(|| {
            if self.partial.len() >= PACKETS {
                self.partial.pop_front();
            }
            self.partial.push_back(Partial { key, parts: Vec::new(), len: None });
            self.partial.len() - 1
        });
        let partial = self.partial.get_mut(at)?;
        let overlaps = partial.parts.iter().any(|(offset, part)| *offset < end && place.offset < offset + part.len());
        let conflict = !place.more && partial.len.is_some_and(|len| len != end);
        if overlaps || conflict || partial.parts.len() >= PARTS {
            self.partial.remove(at);
            return None;
        }
        partial.parts.push((place.offset, ip.payload.to_vec()));
        if !place.more {
            partial.len = Some(end);
        }
        let have: usize = partial.parts.iter().map(|(_, part)| part.len()).sum();
        if partial.len != Some(have) {
            return None;
        }
        let mut done = self.partial.remove(at)?;
        done.parts.sort_unstable_by_key(|(offset, _)| *offset);
        Some(done.parts.into_iter().flat_map(|(_, part)| part).collect())
    }

    /// Packets of which parts are missing.
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.partial.len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::packet;
    use super::*;

    fn parts(id: u16, len: usize) -> (Vec<u8>, Vec<Vec<u8>>) {
        let data: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
        let (src, dst) = ("10.0.2.15:1".parse().unwrap(), "1.2.3.4:2".parse().unwrap());
        (data.clone(), packet::udp(src, dst, id, &data))
    }

    #[test]
    fn any_order() {
        let (data, packets) = parts(1, 10_000);
        let mut r = Reassembly::default();
        let mut done = None;
        for packet in packets.iter().rev() {
            assert!(done.is_none());
            done = r.add(&Ip::parse(packet).unwrap());
        }
        assert_eq!(&done.unwrap()[8..], data);
        assert_eq!(r.waiting(), 0);
    }

    #[test]
    fn overlaps_and_floods_cost_nothing() {
        let (_, packets) = parts(1, 4000);
        let mut r = Reassembly::default();
        let first = Ip::parse(&packets[0]).unwrap();
        assert!(r.add(&first).is_none());
        assert!(r.add(&first).is_none());
        assert_eq!(r.waiting(), 0, "a repeated part drops the packet");
        for id in 0..1000 {
            let (_, packets) = parts(id, 4000);
            assert!(r.add(&Ip::parse(&packets[0]).unwrap()).is_none());
        }
        assert_eq!(r.waiting(), PACKETS);
    }
}
