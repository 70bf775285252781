//! `-netdev user`.

use super::super::boot::os_reason;
use super::super::config::network::{ForwardTarget, GuestForward, HostForward, UserNetConfig};
use super::super::keyval::KeyValues;
use super::super::values::{self, Refusal};
use anyhow::{Result, bail};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

/// Host parts of the addresses that are not given.
const HOST: u32 = 0x0202;
const DNS: u32 = 0x0203;
const DHCP_START: u32 = 0x020f;
/// Longest text that a DHCP option carries.
const LONGEST_TEXT: usize = 255;
/// Longest boot file name: its field in the message ends with a zero.
const LONGEST_FILE: usize = 127;

/// Reads the keys of a user-mode network.
pub fn settle(option: &str, keys: &mut KeyValues) -> Result<UserNetConfig> {
    let mut config = UserNetConfig::default();
    let only = |text: &str| values::switch(text);
    let (ipv4, ipv6) = (keys.take_as("ipv4", only)?, keys.take_as("ipv6", only)?);
    // Asking for one only is asking for the other not.
    config.ipv4 = ipv4.unwrap_or(ipv6 != Some(true) || ipv4 == Some(true));
    config.ipv6 = ipv6.unwrap_or(ipv4 != Some(true));
    if ipv4.is_none() && ipv6 == Some(true) {
        config.ipv4 = true;
    }
    if !config.ipv4 && !config.ipv6 {
        bail!("{option} ipv4=off,ipv6=off: nothing would be left; keep one of them");
    }
    addresses(option, keys, &mut config)?;
    addresses_v6(option, keys, &mut config)?;
    config.restrict = keys.take_switch("restrict")?.unwrap_or(false);
    let text = |text: &str| bounded(text, LONGEST_TEXT);
    config.hostname = keys.take_as("hostname", text)?;
    config.domain = keys.take_as("domainname", text)?;
    config.tftp_server_name = keys.take_as("tftp-server-name", text)?;
    config.bootfile = keys.take_as("bootfile", |text| bounded(text, LONGEST_FILE))?;
    config.search = keys.take_all("dnssearch");
    if let Some(name) = config.search.iter().find(|name| name.is_empty() || name.split('.').any(|l| l.len() > 63)) {
        bail!("{option} dnssearch={name}: not a domain name");
    }
    config.tftp = keys.take_as("tftp", folder)?;
    for key in ["smb", "smbserver"] {
        if let Some(value) = keys.take(key)? {
            return Err(keys.error(
                key,
                &value,
                "there is no SMB server; share files by tftp= or over ssh with hostfwd=",
            ));
        }
    }
    for value in keys.take_all("hostfwd") {
        config.forwards.push(host_forward(&value).map_err(|e| keys.error("hostfwd", &value, e))?);
    }
    for value in keys.take_all("guestfwd") {
        let forward = guest_forward(&value).map_err(|e| keys.error("guestfwd", &value, e))?;
        if !in_net(&config, forward.guest.ip()) {
            bail!("{option} guestfwd={value}: {} is not in the guest's network", forward.guest.ip());
        }
        config.guest_forwards.push(forward);
    }
    Ok(config)
}

fn bounded(text: &str, longest: usize) -> Result<String, Refusal> {
    match text.len() {
        1.. if text.len() <= longest => Ok(text.to_owned()),
        0 => Err("it is empty; leave the key out".into()),
        _ => Err(format!("longer than {longest} bytes")),
    }
}

fn folder(text: &str) -> Result<PathBuf, Refusal> {
    let path = PathBuf::from(text);
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => Ok(path),
        Ok(_) => Err("not a folder; name the folder whose files are served".into()),
        Err(error) => Err(os_reason(&error)),
    }
}

fn ipv4(text: &str) -> Result<Ipv4Addr, Refusal> {
    text.parse().map_err(|_| format!("'{text}' is not an IPv4 address"))
}

fn ipv6(text: &str) -> Result<Ipv6Addr, Refusal> {
    text.parse().map_err(|_| format!("'{text}' is not an IPv6 address"))
}

fn mask_of(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

fn in_net(config: &UserNetConfig, address: IpAddr) -> bool {
    let mask = mask_of(config.prefix);
    matches!(address, IpAddr::V4(v4) if u32::from(v4) & mask == u32::from(config.net))
}

/// `net=ADDRESS[/PREFIX|/MASK]`; without one, the address's class decides as it does in QEMU.
fn network(text: &str) -> Result<(Ipv4Addr, u8), Refusal> {
    let (address, prefix) = match text.split_once('/') {
        None => {
            let address = ipv4(text)?;
            let class = match address.octets()[0] {
                0..=127 => 8,
                128..=191 => 16,
                _ => 24,
            };
            (address, class)
        }
        Some((address, mask)) if mask.contains('.') => {
            let bits = u32::from(ipv4(mask)?);
            if bits.leading_ones() + bits.trailing_zeros() != 32 {
                return Err(format!("'{mask}' is not a network mask"));
            }
            (ipv4(address)?, bits.leading_ones() as u8)
        }
        Some((address, prefix)) => (ipv4(address)?, values::number_in(prefix, 4, 30)? as u8),
    };
    if !(4..=30).contains(&prefix) {
        return Err("the prefix length must be 4 to 30".into());
    }
    Ok((Ipv4Addr::from(u32::from(address) & mask_of(prefix)), prefix))
}

fn addresses(option: &str, keys: &mut KeyValues, config: &mut UserNetConfig) -> Result<()> {
    if let Some((net, prefix)) = keys.take_as("net", network)? {
        let usual = |host: u32| Ipv4Addr::from(u32::from(net) | host & !mask_of(prefix));
        (config.net, config.prefix) = (net, prefix);
        (config.host, config.dns, config.dhcp_start) = (usual(HOST), usual(DNS), usual(DHCP_START));
    }
    for (key, place) in [("host", &mut config.host), ("dns", &mut config.dns), ("dhcpstart", &mut config.dhcp_start)] {
        if let Some(address) = keys.take_as(key, ipv4)? {
            *place = address;
        }
    }
    let all = [("host", config.host), ("dns", config.dns), ("dhcpstart", config.dhcp_start)];
    for (i, (key, address)) in all.into_iter().enumerate() {
        let (host_part, mask) = (u32::from(address) & !mask_of(config.prefix), mask_of(config.prefix));
        if !in_net(config, address.into()) || host_part == 0 || host_part == !mask {
            bail!("{option} {key}={address}: not an address in {}/{}", config.net, config.prefix);
        }
        if let Some((other, _)) = all[..i].iter().find(|(_, taken)| *taken == address) {
            bail!("{option} {key}={address}: this is the address of {other}; choose another");
        }
    }
    Ok(())
}

fn addresses_v6(option: &str, keys: &mut KeyValues, config: &mut UserNetConfig) -> Result<()> {
    let net = keys.take_as("ipv6-net", |text| {
        let (address, prefix) = text.split_once('/').unwrap_or((text, "64"));
        if prefix != "64" { Err("the prefix length must be 64".to_owned()) } else { ipv6(address) }
    })?;
    let prefix = keys.take_as("ipv6-prefix", ipv6)?;
    keys.take_as("ipv6-prefixlen", |text| values::number_in(text, 64, 64))?;
    let upper = |address: Ipv6Addr| u128::from(address) >> 64;
    if let Some(net) = net.or(prefix) {
        let usual = |host: u128| Ipv6Addr::from(upper(net) << 64 | host);
        (config.net6, config.host6, config.dns6) = (usual(0), usual(2), usual(3));
    }
    for (key, place) in [("ipv6-host", &mut config.host6), ("ipv6-dns", &mut config.dns6)] {
        if let Some(address) = keys.take_as(key, ipv6)? {
            *place = address;
        }
    }
    if upper(config.host6) != upper(config.net6) || upper(config.dns6) != upper(config.net6) {
        bail!("{option} ipv6-net={}/64: ipv6-host and ipv6-dns must be in it", config.net6);
    }
    if config.host6 == config.dns6 {
        bail!("{option} ipv6-dns={}: this is the address of ipv6-host; choose another", config.dns6);
    }
    Ok(())
}

/// `[ADDRESS]:PORT`, with the address as an IPv6 one in brackets, an IPv4 one, or left out.
fn end(text: &str) -> Result<(Option<IpAddr>, u16), Refusal> {
    let bad = || format!("'{text}' is not ADDRESS:PORT");
    let (address, port) = text.rsplit_once(':').ok_or_else(bad)?;
    let port = values::number_in(port, 0, 0xffff)? as u16;
    let address = match address {
        "" => None,
        _ => match address.strip_prefix('[').and_then(|a| a.strip_suffix(']')) {
            Some(inner) => Some(ipv6(inner)?.into()),
            None => Some(ipv4(address)?.into()),
        },
    };
    Ok((address, port))
}

/// The protocol before the first colon; TCP if it is left out.
fn protocol(text: &str) -> Result<(bool, &str), Refusal> {
    let shape = || "write [tcp|udp]:[HOST]:PORT-[GUEST]:PORT, like tcp::2222-:22".to_owned();
    match text.split_once(':').ok_or_else(shape)? {
        ("" | "tcp", rest) => Ok((false, rest)),
        ("udp", rest) => Ok((true, rest)),
        (other, _) => Err(format!("'{other}' is neither tcp nor udp; {}", shape())),
    }
}

/// `[tcp|udp]:[HOST]:PORT-[GUEST]:PORT`.
pub fn host_forward(text: &str) -> Result<HostForward, Refusal> {
    let (udp, rest) = protocol(text)?;
    let (host, guest) = rest
        .split_once('-')
        .ok_or_else(|| "the guest's end is missing; write tcp::2222-:22 for the guest's port 22".to_owned())?;
    let ((host, host_port), (guest, guest_port)) = (end(host)?, end(guest)?);
    if guest_port == 0 {
        return Err("the guest's port must be 1 to 65535".into());
    }
    let host = SocketAddr::new(host.unwrap_or(Ipv4Addr::UNSPECIFIED.into()), host_port);
    Ok(HostForward { udp, host, guest, guest_port })
}

/// The host's end of a forward, `[tcp|udp]:[HOST]:PORT`: whether UDP, and where.
pub fn host_port(text: &str) -> Result<(bool, SocketAddr), Refusal> {
    let (udp, rest) = protocol(text)?;
    let (host, port) = end(rest)?;
    Ok((udp, SocketAddr::new(host.unwrap_or(Ipv4Addr::UNSPECIFIED.into()), port)))
}

/// `[tcp]:ADDRESS:PORT-TARGET`.
fn guest_forward(text: &str) -> Result<GuestForward, Refusal> {
    let (udp, rest) = protocol(text)?;
    let shape = || "write tcp:ADDRESS:PORT-cmd:COMMAND, -tcp:ADDRESS:PORT or -unix:PATH".to_owned();
    if udp {
        return Err("only tcp can be forwarded out of the guest".into());
    }
    let (guest, target) = rest.split_once('-').ok_or_else(shape)?;
    let (Some(address), port @ 1..) = end(guest)? else { return Err(shape()) };
    let target = match target.split_once(':') {
        Some(("cmd", command)) if !command.trim().is_empty() => ForwardTarget::Command(command.to_owned()),
        Some(("unix", path)) if !path.is_empty() => ForwardTarget::Unix(path.into()),
        Some(("tcp", rest)) => match end(rest)? {
            (address, port @ 1..) => {
                ForwardTarget::Tcp(SocketAddr::new(address.unwrap_or(Ipv4Addr::LOCALHOST.into()), port))
            }
            _ => return Err(shape()),
        },
        _ => return Err(shape()),
    };
    Ok(GuestForward { guest: SocketAddr::new(address, port), target })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<UserNetConfig, String> {
        let mut keys = KeyValues::parse("-netdev", text, None).map_err(|e| e.to_string())?;
        let config = settle("-netdev user", &mut keys).map_err(|e| e.to_string())?;
        keys.finish().map_err(|e| e.to_string())?;
        Ok(config)
    }

    #[test]
    fn addresses_follow_the_network() {
        let c = parse("net=192.168.76.0/24").unwrap();
        assert_eq!((c.host, c.dns), (Ipv4Addr::new(192, 168, 76, 2), Ipv4Addr::new(192, 168, 76, 3)));
        assert_eq!(c.dhcp_start, Ipv4Addr::new(192, 168, 76, 15));
        assert_eq!(parse("net=10.0.2.0").unwrap().prefix, 8, "by class");
        assert_eq!(parse("net=172.20.0.0/255.255.0.0,dhcpstart=172.20.0.9").unwrap().prefix, 16);
        assert!(parse("host=10.0.3.2").unwrap_err().contains("not an address in 10.0.2.0/24"));
        assert!(parse("host=10.0.2.3").unwrap_err().contains("this is the address of host"));
        assert!(parse("net=10.0.2.0/31").unwrap_err().contains("out of range: 4 to 30"));
        let c = parse("ipv6-net=fd00:1::/64").unwrap();
        assert_eq!(c.dns6, "fd00:1::3".parse::<Ipv6Addr>().unwrap());
    }

    #[test]
    fn versions() {
        let on = |text| parse(text).map(|c| (c.ipv4, c.ipv6));
        assert_eq!(on(""), Err("-netdev : empty part; write key=value,key=value".into()));
        assert_eq!(on("restrict=off"), Ok((true, true)));
        assert_eq!(on("ipv6=off"), Ok((true, false)));
        assert_eq!(on("ipv4=off"), Ok((false, true)));
        assert!(on("ipv4=off,ipv6=off").is_err());
    }

    #[test]
    fn forwards() {
        let f = host_forward("tcp::2222-:22").unwrap();
        assert_eq!((f.udp, f.host, f.guest, f.guest_port), (false, "0.0.0.0:2222".parse().unwrap(), None, 22));
        let f = host_forward("udp:127.0.0.1:0-10.0.2.20:53").unwrap();
        assert!(f.udp && f.host.port() == 0 && f.guest == Some("10.0.2.20".parse().unwrap()));
        assert_eq!(host_forward(":[::1]:80-:80").unwrap().host, "[::1]:80".parse().unwrap());
        assert_eq!(host_port("udp::53"), Ok((true, "0.0.0.0:53".parse().unwrap())));
        assert!(host_port("tcp:22").is_err());
        assert!(host_forward("tcp::2222").unwrap_err().contains("the guest's end is missing"));
        assert!(host_forward("tcp::2222-:0").unwrap_err().contains("1 to 65535"));
        assert!(host_forward("tcp::99999-:22").unwrap_err().contains("out of range"));
        assert!(host_forward("sctp::1-:1").unwrap_err().contains("neither tcp nor udp"));
        assert!(host_forward("2222-22").unwrap_err().contains("like tcp::2222-:22"));
        let c = parse("guestfwd=tcp:10.0.2.100:80-cmd:cat -u,guestfwd=:10.0.2.101:1-unix:/x").unwrap();
        assert_eq!(c.guest_forwards[0].target, ForwardTarget::Command("cat -u".into()));
        assert_eq!(c.guest_forwards[1].target, ForwardTarget::Unix("/x".into()));
        assert!(parse("guestfwd=tcp:10.0.3.100:80-cmd:cat").unwrap_err().contains("not in the guest's network"));
        assert!(parse("guestfwd=udp:10.0.2.100:80-cmd:cat").is_err());
    }
}
