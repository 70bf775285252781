//! The DHCP server (RFC 2131, options of RFC 2132): sixteen addresses, leases of a day.

use super::packet::{BROADCAST, Mac, be16, be32, udp};
use crate::cli::config::network::UserNetConfig;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Addresses that are leased.
const ADDRESSES: u32 = 16;
/// Length of a lease.
const LEASE_S: u32 = 86_400;
/// How long an offered address is kept for the guest.
const OFFER_S: u32 = 60;
/// An address that a guest found in use stays unused so long.
const DECLINED_S: u32 = 3600;
const NS: u64 = 1_000_000_000;
/// The fixed part of a message, up to the magic cookie.
const FIXED: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// A message that every client takes (RFC 2131 2: 312 bytes of options).
const SHORTEST: usize = 300;
const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;

/// Option codes.
mod option {
    pub const MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const DNS: u8 = 6;
    pub const HOST_NAME: u8 = 12;
    pub const DOMAIN: u8 = 15;
    pub const REQUESTED: u8 = 50;
    pub const LEASE: u8 = 51;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER: u8 = 54;
    pub const TFTP_SERVER: u8 = 66;
    pub const BOOT_FILE: u8 = 67;
    pub const SEARCH: u8 = 119;
}

/// Message types.
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const DECLINE: u8 = 4;
const ACK: u8 = 5;
const NAK: u8 = 6;
const RELEASE: u8 = 7;
const INFORM: u8 = 8;

/// What a lease is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    Client(Mac),
    /// Somebody uses it without a lease.
    Stranger,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    holder: Holder,
    until: u64,
}

/// The server.
pub struct Dhcp {
    leases: Vec<Option<Lease>>,
}

/// A client's message.
struct Message<'a> {
    bytes: &'a [u8],
    kind: u8,
    mac: Mac,
    /// The client's address, if it uses one already.
    ciaddr: Ipv4Addr,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
}

/// The value of an option.
fn option_of(bytes: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut rest = bytes.get(FIXED + COOKIE.len()..)?;
    loop {
        match *rest.first()? {
            0 => rest = rest.get(1..)?,
            255 => return None,
            code => {
                let len = usize::from(*rest.get(1)?);
                let value = rest.get(2..2 + len)?;
                if code == wanted {
                    return Some(value);
                }
                rest = rest.get(2 + len..)?;
            }
        }
    }
}

impl<'a> Message<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        // A request over Ethernet.
        if bytes.get(..3) != Some(&[1, 1, 6]) || bytes.get(FIXED..FIXED + 4) != Some(&COOKIE) {
            return None;
        }
        let address = |code| option_of(bytes, code).and_then(|v| be32(v, 0)).map(Ipv4Addr::from);
        Some(Self {
            bytes,
            // Without the option it is a BOOTP request, which is answered at once and for good.
            kind: option_of(bytes, option::MESSAGE_TYPE).map_or(0, |v| v.first().copied().unwrap_or(0)),
            mac: bytes.get(28..34)?.try_into().ok()?,
            ciaddr: be32(bytes, 12)?.into(),
            requested: address(option::REQUESTED),
            server: address(option::SERVER),
        })
    }
}

impl Dhcp {
    /// Nothing leased.
    pub fn new() -> Self {
        Self { leases: vec![None; ADDRESSES as usize] }
    }

    /// Addresses under lease.
    pub fn leased(&self, config: &UserNetConfig, now_ns: u64) -> Vec<(Ipv4Addr, Mac)> {
        let valid = |lease: &Lease| lease.until > now_ns;
        let held = (0u32..).zip(&self.leases).filter_map(|(i, lease)| Some((i, (*lease).filter(valid)?)));
        held.filter_map(|(i, lease)| match lease.holder {
            Holder::Client(mac) => Some((nth(config, i), mac)),
            Holder::Stranger => None,
        })
        .collect()
    }

    /// A datagram for port 67. The result is the answer as a packet, and the station it goes to.
    pub fn received(&mut self, config: &UserNetConfig, data: &[u8], now_ns: u64) -> Option<(Mac, Vec<u8>)> {
        let message = Message::parse(data)?;
        let ours = message.server.is_none_or(|server| server == config.host);
        match message.kind {
            DISCOVER => {
                let address = self.pick(config, &message, now_ns)?;
                self.hold(config, address, message.mac, now_ns, OFFER_S);
                Some(answer(config, &message, OFFER, address))
            }
            0 => {
                let address = self.pick(config, &message, now_ns)?;
                self.hold(config, address, message.mac, now_ns, LEASE_S);
                Some(answer(config, &message, 0, address))
            }
            REQUEST if ours => {
                let wanted = message.requested.unwrap_or(message.ciaddr);
                if !self.may_have(config, wanted, message.mac, now_ns) {
                    return Some(answer(config, &message, NAK, Ipv4Addr::UNSPECIFIED));
                }
                self.hold(config, wanted, message.mac, now_ns, LEASE_S);
                Some(answer(config, &message, ACK, wanted))
            }
            INFORM => Some(answer(config, &message, ACK, Ipv4Addr::UNSPECIFIED)),
            // It asks another server (REQUEST), so what was offered is free; or it gives the address back.
            REQUEST | RELEASE => {
                let theirs = |lease: &Option<Lease>| lease.is_some_and(|l| l.holder == Holder::Client(message.mac));
                self.leases.iter_mut().filter(|lease| theirs(lease)).for_each(|lease| *lease = None);
                None
            }
            DECLINE => {
                let slot = message.requested.and_then(|address| self.slot(config, address))?;
                if let Some(lease) = slot.as_mut().filter(|l| l.holder == Holder::Client(message.mac)) {
                    *lease = Lease { holder: Holder::Stranger, until: now_ns + u64::from(DECLINED_S) * NS };
                }
                None
            }
            _ => None,
        }
    }

    fn slot(&mut self, config: &UserNetConfig, address: Ipv4Addr) -> Option<&mut Option<Lease>> {
        let index = u32::from(address).checked_sub(u32::from(config.dhcp_start))?;
        leasable(config, address).then_some(())?;
        self.leases.get_mut(usize::try_from(index).ok()?)
    }

    /// Whether `mac` may have `address`: nobody else does.
    fn may_have(&mut self, config: &UserNetConfig, address: Ipv4Addr, mac: Mac, now_ns: u64) -> bool {
        let slot = self.slot(config, address);
        slot.is_some_and(|lease| lease.is_none_or(|l| l.holder == Holder::Client(mac) || l.until <= now_ns))
    }

    /// The address to offer: the one the client has, the one it asks for, or the first free one.
    fn pick(&mut self, config: &UserNetConfig, message: &Message, now_ns: u64) -> Option<Ipv4Addr> {
        let mine = |lease: &Option<Lease>| lease.is_some_and(|l| l.holder == Holder::Client(message.mac));
        let had = (0u32..).zip(&self.leases).find(|(_, lease)| mine(lease)).map(|(i, _)| nth(config, i));
        let wishes = had.into_iter().chain(message.requested).chain((0..ADDRESSES).map(|i| nth(config, i)));
        wishes.into_iter().find(|address| self.may_have(config, *address, message.mac, now_ns))
    }

    fn hold(&mut self, config: &UserNetConfig, address: Ipv4Addr, mac: Mac, now_ns: u64, seconds: u32) {
        if let Some(slot) = self.slot(config, address) {
            // A new offer does not cut a lease short.
            let kept = slot.filter(|l| l.holder == Holder::Client(mac)).map_or(0, |l| l.until);
            let until = kept.max(now_ns + u64::from(seconds) * NS);
            *slot = Some(Lease { holder: Holder::Client(mac), until });
        }
    }
}

/// The `index`th address of those that are leased.
fn nth(config: &UserNetConfig, index: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(config.dhcp_start).wrapping_add(index))
}

/// Whether an address can be a guest's.
fn leasable(config: &UserNetConfig, address: Ipv4Addr) -> bool {
    let mask = mask(config);
    let host_part = u32::from(address) & !mask;
    u32::from(address) & mask == u32::from(config.net) & mask
        && host_part != 0
        && host_part != !mask
        && address != config.host
        && address != config.dns
}

/// The network's mask.
pub fn mask(config: &UserNetConfig) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(config.prefix)).unwrap_or(0)
}

fn put(bytes: &mut Vec<u8>, code: u8, value: &[u8]) {
    // Longer values were refused with the command line.
    let len = value.len().min(255);
    bytes.extend_from_slice(&[code, len as u8]);
    bytes.extend_from_slice(&value[..len]);
}

/// Domain names as DNS writes them (RFC 3397), without compression.
fn search_list(names: &[String]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for name in names {
        for label in name.split('.').filter(|label| !label.is_empty()) {
            let label = &label.as_bytes()[..label.len().min(63)];
            bytes.push(label.len() as u8);
            bytes.extend_from_slice(label);
        }
        bytes.push(0);
    }
    bytes
}

fn answer(config: &UserNetConfig, message: &Message, kind: u8, address: Ipv4Addr) -> (Mac, Vec<u8>) {
    let mut bytes = vec![0u8; FIXED];
    bytes[..4].copy_from_slice(&[2, 1, 6, 0]);
    // Transaction, flags and relay come back as they are.
    for range in [4..8, 10..12, 24..44] {
        if let (Some(to), Some(from)) = (bytes.get_mut(range.clone()), message.bytes.get(range)) {
            to.copy_from_slice(from);
        }
    }
    if kind == ACK {
        bytes[12..16].copy_from_slice(&message.ciaddr.octets());
    }
    bytes[16..20].copy_from_slice(&address.octets());
    if kind != NAK {
        bytes[20..24].copy_from_slice(&config.host.octets());
        if let Some(file) = &config.bootfile {
            let len = file.len().min(127);
            bytes[108..108 + len].copy_from_slice(&file.as_bytes()[..len]);
        }
    }
    bytes.extend_from_slice(&COOKIE);
    if kind != 0 {
        put(&mut bytes, option::MESSAGE_TYPE, &[kind]);
        put(&mut bytes, option::SERVER, &config.host.octets());
    }
    if kind != NAK {
        if kind != 0 && !address.is_unspecified() {
            put(&mut bytes, option::LEASE, &LEASE_S.to_be_bytes());
        }
        put(&mut bytes, option::MASK, &mask(config).to_be_bytes());
        if !config.restrict {
            put(&mut bytes, option::ROUTER, &config.host.octets());
            put(&mut bytes, option::DNS, &config.dns.octets());
        }
        let texts = [
            (option::HOST_NAME, &config.hostname),
            (option::DOMAIN, &config.domain),
            (option::TFTP_SERVER, &config.tftp_server_name),
            (option::BOOT_FILE, &config.bootfile),
        ];
        for (code, text) in texts {
            text.iter().for_each(|text| put(&mut bytes, code, text.as_bytes()));
        }
        // RFC 3396: a value may go on in another option of the same code.
        search_list(&config.search).chunks(255).for_each(|part| put(&mut bytes, option::SEARCH, part));
    }
    bytes.push(255);
    bytes.resize(bytes.len().max(SHORTEST), 0);
    address_answer(config, message, kind, address, &bytes)
}

/// Where the answer goes (RFC 2131 4.1): to the address in use, to everybody if asked, else to the new address.
fn address_answer(
    config: &UserNetConfig,
    message: &Message,
    kind: u8,
    address: Ipv4Addr,
    bytes: &[u8],
) -> (Mac, Vec<u8>) {
    let broadcast = be16(message.bytes, 10).is_some_and(|flags| flags & 0x8000 != 0);
    let to_all = kind == NAK || broadcast && message.ciaddr.is_unspecified();
    let (mac, to) = match () {
        () if to_all => (BROADCAST, Ipv4Addr::BROADCAST),
        () if !message.ciaddr.is_unspecified() => (message.mac, message.ciaddr),
        () if address.is_unspecified() => (BROADCAST, Ipv4Addr::BROADCAST),
        () => (message.mac, address),
    };
    let from = SocketAddr::new(IpAddr::V4(config.host), SERVER_PORT);
    let packet = udp(from, SocketAddr::new(to.into(), CLIENT_PORT), 0, bytes).into_iter().next();
    (mac, packet.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::super::packet::{Ip, Udp};
    use super::*;

    const MAC: Mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
    const OTHER: Mac = [0x52, 0x54, 0, 0x12, 0x34, 0x57];

    fn request(kind: u8, mac: Mac, ciaddr: [u8; 4], options: &[(u8, [u8; 4])]) -> Vec<u8> {
        let mut bytes = vec![0; FIXED];
        bytes[..8].copy_from_slice(&[1, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef]);
        bytes[12..16].copy_from_slice(&ciaddr);
        bytes[28..34].copy_from_slice(&mac);
        bytes.extend_from_slice(&COOKIE);
        bytes.extend_from_slice(&[0, option::MESSAGE_TYPE, 1, kind]);
        options.iter().for_each(|(code, value)| put(&mut bytes, *code, value));
        bytes.push(255);
        bytes
    }

    /// The answer's type, address, and its options' bytes.
    fn ask(dhcp: &mut Dhcp, config: &UserNetConfig, bytes: &[u8], now: u64) -> Option<(u8, Ipv4Addr, Vec<u8>)> {
        let (_, packet) = dhcp.received(config, bytes, now)?;
        let ip = Ip::parse(&packet).unwrap();
        let data = Udp::parse(&ip).unwrap().payload.to_vec();
        assert_eq!(data[4..8], [0xde, 0xad, 0xbe, 0xef]);
        Some((option_of(&data, option::MESSAGE_TYPE).unwrap()[0], be32(&data, 16).unwrap().into(), data))
    }

    #[test]
    fn a_lease_is_offered_taken_renewed_for_a_day_and_expires() {
        let config = UserNetConfig { hostname: Some("guest".into()), ..UserNetConfig::default() };
        let mut dhcp = Dhcp::new();
        let first = Ipv4Addr::new(10, 0, 2, 15);
        let (kind, address, data) = ask(&mut dhcp, &config, &request(DISCOVER, MAC, [0; 4], &[]), 0).unwrap();
        assert_eq!((kind, address), (OFFER, first));
        assert_eq!(option_of(&data, option::ROUTER), Some(&[10, 0, 2, 2][..]));
        assert_eq!(option_of(&data, option::DNS), Some(&[10, 0, 2, 3][..]));
        assert_eq!(option_of(&data, option::MASK), Some(&[255, 255, 255, 0][..]));
        assert_eq!(option_of(&data, option::HOST_NAME), Some(&b"guest"[..]));
        let chosen = [(option::REQUESTED, first.octets()), (option::SERVER, config.host.octets())];
        assert_eq!(ask(&mut dhcp, &config, &request(REQUEST, MAC, [0; 4], &chosen), 0).unwrap().0, ACK);
        // Renewals at half time, a day and more on end.
        let mut now = 0;
        for _ in 0..100 {
            now += u64::from(LEASE_S) / 2 * NS;
            let (kind, address, _) = ask(&mut dhcp, &config, &request(REQUEST, MAC, first.octets(), &[]), now).unwrap();
            assert_eq!((kind, address), (ACK, first));
            let (_, other, _) = ask(&mut dhcp, &config, &request(DISCOVER, OTHER, [0; 4], &[]), now).unwrap();
            assert_eq!(other, Ipv4Addr::new(10, 0, 2, 16), "the first address is held");
        }
        let wants = [(option::REQUESTED, first.octets())];
        assert_eq!(ask(&mut dhcp, &config, &request(REQUEST, OTHER, [0; 4], &wants), now).unwrap().0, NAK);
        now += u64::from(LEASE_S) * NS;
        assert!(dhcp.leased(&config, now).iter().all(|(_, mac)| *mac != MAC));
        assert_eq!(ask(&mut dhcp, &config, &request(REQUEST, OTHER, [0; 4], &wants), now).unwrap().0, ACK);
    }

    #[test]
    fn sixteen_guests_and_no_more() {
        let config = UserNetConfig::default();
        let mut dhcp = Dhcp::new();
        for i in 0..20u8 {
            let mac = [2, 0, 0, 0, 0, i];
            let offer = ask(&mut dhcp, &config, &request(DISCOVER, mac, [0; 4], &[]), 0);
            assert_eq!(offer.map(|o| o.1), (i < 16).then(|| Ipv4Addr::new(10, 0, 2, 15 + i)));
        }
        let release = request(RELEASE, [2, 0, 0, 0, 0, 3], [10, 0, 2, 18], &[]);
        assert!(dhcp.received(&config, &release, 0).is_none());
        let offer = ask(&mut dhcp, &config, &request(DISCOVER, MAC, [0; 4], &[]), 0).unwrap();
        assert_eq!(offer.1, Ipv4Addr::new(10, 0, 2, 18));
    }

    #[test]
    fn addresses_outside_and_declined_ones_are_not_given() {
        let config = UserNetConfig::default();
        let mut dhcp = Dhcp::new();
        for address in [[10, 0, 2, 2], [10, 0, 2, 3], [10, 0, 2, 255], [192, 168, 1, 1], [10, 0, 2, 40]] {
            let wants = [(option::REQUESTED, address)];
            assert_eq!(ask(&mut dhcp, &config, &request(REQUEST, MAC, [0; 4], &wants), 0).unwrap().0, NAK);
        }
        assert_eq!(ask(&mut dhcp, &config, &request(DISCOVER, MAC, [0; 4], &[]), 0).unwrap().1.octets()[3], 15);
        let wants = [(option::REQUESTED, [10, 0, 2, 15])];
        assert!(dhcp.received(&config, &request(DECLINE, MAC, [0; 4], &wants), 0).is_none());
        assert_eq!(ask(&mut dhcp, &config, &request(DISCOVER, MAC, [0; 4], &[]), 0).unwrap().1.octets()[3], 16);
    }

    #[test]
    fn cut_and_random_messages_do_no_harm() {
        let config = UserNetConfig::default();
        let mut dhcp = Dhcp::new();
        let whole = request(REQUEST, MAC, [0; 4], &[(option::REQUESTED, [10, 0, 2, 15])]);
        for len in 0..whole.len() {
            dhcp.received(&config, &whole[..len], 0);
        }
        let mut seed = 88172645463325252u64;
        for _ in 0..20_000 {
            let mut bytes = whole.clone();
            for _ in 0..4 {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                let at = seed as usize % bytes.len();
                bytes[at] = (seed >> 32) as u8;
            }
            dhcp.received(&config, &bytes, seed >> 20);
        }
        assert_eq!(dhcp.leases.len(), 16);
    }
}
