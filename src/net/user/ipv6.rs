//! Neighbours and routers of IPv6 (RFC 4861): who has which address, and the prefix for guests to make theirs from.

use super::outbox::Outbox;
use super::packet::{self, Ip, Mac};
use crate::cli::config::network::UserNetConfig;
use std::net::Ipv6Addr;

/// Message types.
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Option types.
const SOURCE_MAC: u8 = 1;
const TARGET_MAC: u8 = 2;
const PREFIX: u8 = 3;
const RDNSS: u8 = 25;
/// All nodes on the link.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Advertisements hold for a day; nobody takes them back.
const LIFETIME_S: u32 = 86_400;

/// Our link-local address, from which routers speak (RFC 4861 4.2): fe80:: with the host part of ours.
pub fn link_local(config: &UserNetConfig) -> Ipv6Addr {
    let [.., a, b, c, d] = config.host6.segments();
    Ipv6Addr::new(0xfe80, 0, 0, 0, a, b, c, d)
}

/// Whether an address is one of ours.
pub fn ours(config: &UserNetConfig, address: Ipv6Addr) -> bool {
    address == config.host6 || address == config.dns6 || address == link_local(config)
}

/// An ICMPv6 message that is no echo request.
pub fn received(config: &UserNetConfig, ip: &Ip, from: Mac, outbox: &mut Outbox) {
    // RFC 4861 6.1 and 7.1: only what comes from this link counts.
    if ip.ttl != 255 || packet::transport_checksum(ip.src, ip.dst, ip.protocol, ip.payload) != 0 {
        return;
    }
    match ip.payload.first() {
        Some(&ROUTER_SOLICITATION) => outbox.packet_to(packet_mac(ALL_NODES), &advertisement(config, outbox.mac())),
        Some(&NEIGHBOUR_SOLICITATION) => {
            let target = ip.payload.get(8..24).and_then(|t| <[u8; 16]>::try_from(t).ok()).map(Ipv6Addr::from);
            let Some(target) = target.filter(|target| ours(config, *target)) else { return };
            neighbour(target, ip, from, outbox);
        }
        _ => {}
    }
}

/// Says that `target` is ours.
fn neighbour(target: Ipv6Addr, ip: &Ip, from: Mac, outbox: &mut Outbox) {
    let probing = ip.src.is_unspecified();
    // Router, solicited (unless the asker has no address yet), override.
    let flags = if probing { 0xa0 } else { 0xe0 };
    let mut message = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0];
    message.extend_from_slice(&target.octets());
    message.extend_from_slice(&[TARGET_MAC, 1]);
    message.extend_from_slice(&outbox.mac());
    let (to, mac) = if probing { (ALL_NODES.into(), packet_mac(ALL_NODES)) } else { (ip.src, from) };
    outbox.packet_to(mac, &packet::icmpv6(target.into(), to, &message));
}

/// The Ethernet group of an IPv6 group (RFC 2464 section 7).
fn packet_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

/// A router advertisement with the prefix and the name server (RFC 8106).
fn advertisement(config: &UserNetConfig, mac: Mac) -> Vec<u8> {
    let lifetime = LIFETIME_S.to_be_bytes();
    // Not the default router of a guest that is to reach nothing.
    let router: u16 = if config.restrict { 0 } else { 1800 };
    let mut message = vec![ROUTER_ADVERTISEMENT, 0, 0, 0, 64, 0];
    message.extend_from_slice(&router.to_be_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[SOURCE_MAC, 1]);
    message.extend_from_slice(&mac);
    // 64 bits, on this link, addresses may be made from it.
    message.extend_from_slice(&[PREFIX, 4, 64, 0xc0]);
    message.extend_from_slice(&lifetime);
    message.extend_from_slice(&lifetime);
    message.extend_from_slice(&[0; 4]);
    message.extend_from_slice(&config.net6.octets());
    if !config.restrict {
        message.extend_from_slice(&[RDNSS, 3, 0, 0]);
        message.extend_from_slice(&lifetime);
        message.extend_from_slice(&config.dns6.octets());
    }
    packet::icmpv6(link_local(config).into(), ALL_NODES.into(), &message)
}
