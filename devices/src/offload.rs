//! Work on whole packets that network cards take off drivers: checksums, and cutting large packets into segments. What
//! the packets say is the guest's word: fields are changed only where they all lie inside.

/// Most frames of one packet: 64 KiB of the smallest segments that TCP makes.
pub const MOST_SEGMENTS: usize = 4096;

/// The internet checksum (RFC 1071).
pub fn internet_checksum(bytes: &[u8]) -> u16 {
    !folded(partial_sum(bytes))
}

/// The sum of 32-bit words, the last one filled up with zeros. Words are taken in the host's order, as the sum's bytes
/// come out swapped with it and no other way (RFC 1071 2 B): that is what [`folded`] puts right.
pub fn partial_sum(bytes: &[u8]) -> u64 {
    const LANES: usize = 8;
    let (blocks, rest) = bytes.as_chunks::<{ 4 * LANES }>();
    let mut lanes = [0u64; LANES];
    for block in blocks {
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<4>().0) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    let (words, rest) = rest.as_chunks::<4>();
    let mut last = [0; 4];
    last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    let tail: u64 = words.iter().chain([&last]).map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    lanes.iter().sum::<u64>() + tail
}

/// The 16-bit sum, highest byte first, of what [`partial_sum`] gave, or several such together.
pub fn folded(mut sum: u64) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (sum as u16).to_be()
}

/// Where the headers of a large packet are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Start of the IP header.
    pub ip: usize,
    /// It is IPv4; otherwise IPv6.
    pub ipv4: bool,
    /// Start of the TCP or UDP header.
    pub transport: usize,
    /// It is TCP; otherwise UDP.
    pub tcp: bool,
    /// Where the transport's checksum is.
    pub sum: usize,
    /// Bytes of all headers.
    pub len: usize,
}

/// Cuts `packet` into frames of at most `mss` bytes of data each and adapts their headers, all but the checksums, which
/// are left to `finish`. `false`: the packet is not in order, or comes to more than [`MOST_SEGMENTS`].
pub fn segment(packet: &[u8], headers: Headers, mss: usize, mut finish: impl FnMut(Vec<u8>)) -> bool {
    let Some((header, payload)) = packet.split_at_checked(headers.len).filter(|_| mss != 0) else { return false };
    let count = payload.len().div_ceil(mss).max(1);
    if count > MOST_SEGMENTS {
        return false;
    }
    for i in 0..count {
        let at = i * mss;
        let part = payload.get(at..payload.len().min(at + mss)).unwrap_or_default();
        let mut frame = [header, part].concat();
        headers.adapt(&mut frame, i, at, i + 1 == count);
        finish(frame);
    }
    true
}

/// [`segment`] for a packet whose transport checksum is open: the sum over the pseudo header, with the whole length in
/// it, stands in its place. The frames have all their checksums.
pub fn segment_open(packet: &[u8], headers: Headers, mss: usize, mut each: impl FnMut(Vec<u8>)) -> bool {
    let full = packet.len().saturating_sub(headers.transport);
    segment(packet, headers, mss, |mut frame| {
        if headers.ipv4 {
            put(&mut frame, headers.ip + 10, &[0, 0]);
            let end = headers.ip + usize::from(frame.get(headers.ip).copied().unwrap_or(0) & 0xf) * 4;
            put_sum(&mut frame, headers.ip, end, headers.ip + 10);
        }
        // The whole length leaves the sum, and the segment's own comes in.
        let len = frame.len().saturating_sub(headers.transport);
        add_to_sum(&mut frame, headers.sum, len as u32);
        add_to_sum(&mut frame, headers.sum, u32::from(!(full as u16)));
        let end = frame.len();
        put_sum(&mut frame, headers.transport, end, headers.sum);
        each(frame);
    })
}

impl Headers {
    /// Changes the headers of a packet to those of its `index`th segment, which begins at byte `at` of the data.
    fn adapt(&self, frame: &mut [u8], index: usize, at: usize, last: bool) {
        let (total, ip, transport) = (frame.len(), self.ip, self.transport);
        if self.ipv4 {
            put(frame, ip + 2, &(total.saturating_sub(ip) as u16).to_be_bytes());
            let id = be16(frame, ip + 4).unwrap_or(0).wrapping_add(index as u16);
            put(frame, ip + 4, &id.to_be_bytes());
        } else {
            put(frame, ip + 4, &(total.saturating_sub(ip + 40) as u16).to_be_bytes());
        }
        if self.tcp {
            if let Some(seq) = frame.get(transport + 4..transport + 8) {
                let seq = u32::from_be_bytes([seq[0], seq[1], seq[2], seq[3]]).wrapping_add(at as u32);
                put(frame, transport + 4, &seq.to_be_bytes());
            }
            // FIN and PSH belong to the last one.
            if let Some(flags) = frame.get_mut(transport + 13).filter(|_| !last) {
                *flags &= !0x09;
            }
        } else {
            put(frame, transport + 4, &(total.saturating_sub(transport) as u16).to_be_bytes());
        }
    }
}

/// A big-endian 16-bit number.
pub fn be16(frame: &[u8], at: usize) -> Option<u16> {
    frame.get(at..at.checked_add(2)?).map(|b| u16::from_be_bytes([b[0], b[1]]))
}

/// Overwrites bytes, if they all are there.
pub fn put(frame: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(to) = at.checked_add(bytes.len()).and_then(|end| frame.get_mut(at..end)) {
        to.copy_from_slice(bytes);
    }
}

/// Adds `value` to the sum at `at`, as ones' complement has it.
pub fn add_to_sum(frame: &mut [u8], at: usize, value: u32) {
    let sum = u32::from(be16(frame, at).unwrap_or(0)) + (value & 0xffff) + (value >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    put(frame, at, &(((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
}

/// Fills in the checksum over `start..end` at `place`; nothing happens if that is outside.
pub fn put_sum(frame: &mut [u8], start: usize, end: usize, place: usize) {
    let Some(covered) = frame.get(start..end.min(frame.len())) else { return };
    let value = internet_checksum(covered);
    put(frame, place, &value.to_be_bytes());
}

/// What the checksums of a received frame are worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SumCheck {
    /// The IPv4 header's sum is right; `None`: there is none.
    pub ip: Option<bool>,
    /// The TCP or UDP sum is right; `None`: there is none, or only a fragment.
    pub transport: Option<bool>,
}

/// An IPv4 packet in a frame.
struct Ipv4 {
    /// Its header.
    header: std::ops::Range<usize>,
    /// The message in it; `None`: only a fragment, cut short, or neither TCP nor UDP.
    message: Option<std::ops::Range<usize>>,
    protocol: u8,
}

const UDP: u8 = 17;

impl Ipv4 {
    fn find(frame: &[u8]) -> Option<Self> {
        const TYPE: u16 = 0x0800;
        const ETHERNET: usize = 14;
        let ip = frame.get(ETHERNET..).filter(|_| be16(frame, 12) == Some(TYPE))?;
        let header_len = usize::from(ip.first()? & 0xf) * 4;
        let header = ip.get(..header_len).filter(|header| header.len() >= 20)?;
        let total = usize::from(be16(ip, 2)?);
        let fragment = be16(header, 6).is_none_or(|flags| flags & 0x3fff != 0);
        let whole = !fragment && matches!(header[9], 6 | UDP) && (header_len..=ip.len()).contains(&total);
        let message = whole.then_some(ETHERNET + header_len..ETHERNET + total);
        Some(Self { header: ETHERNET..ETHERNET + header_len, message, protocol: header[9] })
    }

    /// The sum over the pseudo header (RFC 9293 3.1, RFC 768).
    fn pseudo_sum(&self, frame: &[u8], len: usize) -> u64 {
        let mut pseudo = [0; 12];
        if let Some(addresses) = frame.get(self.header.start + 12..self.header.start + 20) {
            pseudo[..8].copy_from_slice(addresses);
        }
        pseudo[9] = self.protocol;
        pseudo[10..].copy_from_slice(&(len as u16).to_be_bytes());
        partial_sum(&pseudo)
    }
}

/// Checks the sums of IPv4, and of TCP and UDP over it.
pub fn check_sums(frame: &[u8]) -> SumCheck {
    let Some(ip) = Ipv4::find(frame) else { return SumCheck::default() };
    let right = internet_checksum(&frame[ip.header.clone()]) == 0;
    let mut check = SumCheck { ip: Some(right), transport: None };
    let Some(message) = ip.message.clone().map(|range| &frame[range]) else { return check };
    // UDP may go without (RFC 768).
    if ip.protocol != UDP || be16(message, 6) != Some(0) {
        check.transport = Some(folded(ip.pseudo_sum(frame, message.len()) + partial_sum(message)) == 0xffff);
    }
    check
}

/// Fills in the sums of IPv4, and of TCP or UDP over it, as far as wanted and as there are such.
pub fn fill_sums(frame: &mut [u8], ip: bool, transport: bool) {
    let Some(packet) = Ipv4::find(frame) else { return };
    if ip {
        put(frame, packet.header.start + 10, &[0, 0]);
        put_sum(frame, packet.header.start, packet.header.end, packet.header.start + 10);
    }
    let Some(message) = packet.message.clone().filter(|_| transport) else { return };
    let place = if packet.protocol == UDP { 6 } else { 16 };
    // The place has to be inside: what follows the packet is not touched.
    if message.len() < place + 2 {
        return;
    }
    put(frame, message.start + place, &[0, 0]);
    let sum = !folded(packet.pseudo_sum(frame, message.len()) + partial_sum(&frame[message.clone()]));
    // UDP's 0 says that there is none.
    let sum = if sum == 0 && packet.protocol == UDP { 0xffff } else { sum };
    put(frame, message.start + place, &sum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_rfc_at_every_length() {
        // RFC 1071 section 3.
        assert_eq!(internet_checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        let bytes: Vec<u8> = (0..300u32).map(|i| (i * 37 % 251) as u8).collect();
        for len in 0..bytes.len() {
            let words =
                bytes[..len].chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w.get(1).copied().unwrap_or(0)));
            let sum: u32 = words.sum();
            let sum = (sum & 0xffff) + (sum >> 16);
            assert_eq!(internet_checksum(&bytes[..len]), !((sum & 0xffff) + (sum >> 16)) as u16, "{len} bytes");
        }
        assert_eq!(internet_checksum(&[0xff; 65_000]), 0);
    }
}
