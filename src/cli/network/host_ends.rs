//! `-netdev tap`, `socket`, `stream` and `dgram`.

use super::super::config::network::{DatagramConfig, NetdevKind, StreamAddress, StreamConfig, TapConfig, TapInterface};
use super::super::keyval::KeyValues;
use super::super::values::{self, Refusal};
use anyhow::{Result, anyhow, bail};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, ToSocketAddrs};
use std::path::PathBuf;

/// The bridge that is meant unless told otherwise.
const BRIDGE: &str = "br0";
/// What makes interfaces on bridges, where its package puts it.
const HELPER: &str = "/usr/lib/qemu/qemu-bridge-helper";
/// Longest name of an interface (IFNAMSIZ without its end).
const LONGEST_NAME: usize = 15;
/// Most queues of an interface.
const MOST_QUEUES: u64 = 8;
/// What QEMU runs unless told otherwise; here only if it is there.
const IF_UP: &str = "/etc/qemu-ifup";
const IF_DOWN: &str = "/etc/qemu-ifdown";

fn descriptor(text: &str) -> Result<i32, Refusal> {
    values::number_in(text, 0, i32::MAX as u64).map(|n| n as i32)
}

/// `script=PATH|no`.
fn script(keys: &mut KeyValues, key: &'static str, usual: &str) -> Result<Option<PathBuf>> {
    Ok(match keys.take(key)?.as_deref() {
        Some("no" | "") => None,
        Some(path) => {
            let path = PathBuf::from(path);
            if !path.is_file() {
                return Err(keys.error(key, &path.to_string_lossy(), "no such file; use no for none"));
            }
            Some(path)
        }
        None => Some(PathBuf::from(usual)).filter(|path| path.is_file()),
    })
}

/// Keys of `bridge`, and of `tap` with `helper=`: a TAP interface that a program with the right to do so makes.
pub fn bridge(option: &str, keys: &mut KeyValues) -> Result<TapConfig> {
    let bridge = keys.take("br")?.unwrap_or_else(|| BRIDGE.to_owned());
    let helper = PathBuf::from(keys.take("helper")?.unwrap_or_else(|| HELPER.to_owned()));
    if !helper.is_file() {
        let shown = helper.display();
        bail!("{option} helper={shown}: no such file; install the package qemu-system-common, or name another");
    }
    let interface = TapInterface::Bridge { bridge, helper };
    Ok(TapConfig { interface, script: None, down_script: None })
}

/// Keys of a TAP interface.
pub fn tap(option: &str, keys: &mut KeyValues) -> Result<TapConfig> {
    if keys.peek("helper").is_some() || keys.peek("br").is_some() {
        // The other keys are not for it, and refused as unknown.
        return bridge(option, keys);
    }
    let name = keys.take_as("ifname", |name| match name.len() {
        1..=LONGEST_NAME if !name.contains(['/', ' ']) => Ok(name.to_owned()),
        _ => Err(format!("an interface's name has 1 to {LONGEST_NAME} characters")),
    })?;
    let fd = keys.take_as("fd", descriptor)?.map(|fd| vec![fd]);
    let fds = keys.take_as("fds", |text| text.split(':').map(descriptor).collect::<Result<Vec<_>, _>>())?;
    let queues = keys.take_as("queues", |text| values::number_in(text, 1, MOST_QUEUES))?;
    for (key, why) in
        [("vhost", "the host kernel's virtio is not used"), ("vnet_hdr", "frames carry no header of the host's")]
    {
        keys.take_fixed(key, false, why)?;
    }
    if let (Some(_), Some(_)) = (&fd, &fds) {
        bail!("{option} tap: fd= and fds= say the same; give either");
    }
    let given = |key: &str, keys: &mut KeyValues, name: &'static str| match keys.take(name)? {
        Some(value) if value != "no" => {
            Err(anyhow!("{option} tap,{key}=: {name}={value} does not go with it; leave it out"))
        }
        _ => Ok(()),
    };
    if let Some(numbers) = fd.or(fds) {
        let key = if numbers.len() == 1 { "fd" } else { "fds" };
        if name.is_some() || queues.is_some() {
            bail!("{option} tap,{key}=: ifname= and queues= do not go with it; leave them out");
        }
        given(key, keys, "script")?;
        given(key, keys, "downscript")?;
        if numbers.len() as u64 > MOST_QUEUES {
            bail!("{option} tap,fds=: at most {MOST_QUEUES} descriptors");
        }
        return Ok(TapConfig { interface: TapInterface::Descriptors(numbers), script: None, down_script: None });
    }
    let (up, down) = (script(keys, "script", IF_UP)?, script(keys, "downscript", IF_DOWN)?);
    let queues = queues.unwrap_or(1) as u16;
    Ok(TapConfig { interface: TapInterface::Name { name, queues }, script: up, down_script: down })
}

/// `[HOST]:PORT`; without a host, all addresses (`listen`) or this machine (`connect`).
fn inet(text: &str, listen: bool) -> Result<SocketAddr, Refusal> {
    let (host, port) = text.rsplit_once(':').ok_or_else(|| format!("'{text}' is not HOST:PORT"))?;
    inet_parts(host.trim_start_matches('[').trim_end_matches(']'), port, listen)
}

fn inet_parts(host: &str, port: &str, listen: bool) -> Result<SocketAddr, Refusal> {
    let port = values::number_in(port, 1, 0xffff)? as u16;
    match host {
        "" if listen => Ok((Ipv4Addr::UNSPECIFIED, port).into()),
        "" => Ok((Ipv4Addr::LOCALHOST, port).into()),
        _ => {
            let found =
                (host, port).to_socket_addrs().map_err(|e| format!("the address of {host} is not known: {e}"))?;
            found.into_iter().next().ok_or_else(|| format!("{host} has no address"))
        }
    }
}

/// Keys of `socket`: one of `listen=`, `connect=`, `fd=`, `mcast=`, `udp=`.
pub fn socket(option: &str, keys: &mut KeyValues) -> Result<NetdevKind> {
    let listen = keys.take_as("listen", |text| inet(text, true))?;
    let connect = keys.take_as("connect", |text| inet(text, false))?;
    let fd = keys.take_as("fd", descriptor)?;
    let group = keys.take_as("mcast", |text| inet(text, false).and_then(group))?;
    let udp = keys.take_as("udp", |text| inet(text, false))?;
    let local = keys.take("localaddr")?;
    let stream = |server, address| Ok(NetdevKind::Stream(StreamConfig { server, address, reconnect_ms: 0 }));
    if let (Some(local), None, None) = (&local, group, udp) {
        bail!("{option} socket,localaddr={local}: it goes with mcast= or udp=; leave it out");
    }
    match (listen, connect, fd, group, udp) {
        (Some(at), None, None, None, None) => stream(true, StreamAddress::Inet(at)),
        (None, Some(at), None, None, None) => stream(false, StreamAddress::Inet(at)),
        (None, None, Some(fd), None, None) => stream(false, StreamAddress::Descriptor(fd)),
        (None, None, None, Some(group), None) => {
            let interface = local.as_deref().map(|text| interface(text).map_err(|e| keys.error("localaddr", text, e)));
            Ok(NetdevKind::Datagram(DatagramConfig::Group { group, interface: interface.transpose()? }))
        }
        (None, None, None, None, Some(remote)) => {
            let Some(local) = local else {
                bail!("{option} socket,udp={remote}: localaddr=HOST:PORT is missing: where frames are received");
            };
            let local = Some(inet(&local, true).map_err(|e| keys.error("localaddr", &local, e))?);
            Ok(NetdevKind::Datagram(DatagramConfig::Inet { local, remote }))
        }
        _ => bail!(
            "{option} socket: give one of listen=[HOST]:PORT, connect=HOST:PORT, mcast=GROUP:PORT, udp=HOST:PORT and fd=N"
        ),
    }
}

fn group(address: SocketAddr) -> Result<SocketAddrV4, Refusal> {
    match address {
        SocketAddr::V4(group) if group.ip().is_multicast() => Ok(group),
        _ => Err(format!("{} is no multicast group; they are 224.0.0.0 to 239.255.255.255", address.ip())),
    }
}

fn interface(text: &str) -> Result<Ipv4Addr, Refusal> {
    text.parse().map_err(|_| format!("'{text}' is not the IPv4 address of an interface"))
}

/// One end in `dgram`: what `local.` or `remote.` says.
enum End {
    Inet(String, Option<String>),
    Unix(PathBuf),
    Descriptor(i32),
}

/// The names of an end's keys: type, host, port, path, descriptor.
const LOCAL: [&str; 5] = ["local.type", "local.host", "local.port", "local.path", "local.str"];
const REMOTE: [&str; 5] = ["remote.type", "remote.host", "remote.port", "remote.path", "remote.str"];

fn end(option: &str, keys: &mut KeyValues, names: [&'static str; 5]) -> Result<Option<End>> {
    let [kind, host, port, path, number] = names;
    let mut values = Vec::new();
    for name in names {
        values.push(keys.take(name)?);
    }
    let mut values = values.into_iter();
    let [asked, at_host, at_port, at_path, at_number] = [(); 5].map(|()| values.next().flatten());
    let unused = |given: bool, key: &str| match given {
        true => Err(anyhow!("{option} dgram,{key}=: it does not go with this {kind}; leave it out")),
        false => Ok(()),
    };
    let end = match asked.as_deref() {
        None => {
            unused(at_host.is_some() || at_port.is_some() || at_path.is_some() || at_number.is_some(), kind)?;
            return Ok(None);
        }
        Some("inet") => {
            let Some(at_host) = at_host else { bail!("{option} dgram: {host}= is missing") };
            unused(at_path.is_some(), path)?;
            unused(at_number.is_some(), number)?;
            return Ok(Some(End::Inet(at_host, at_port)));
        }
        Some("unix") => {
            let Some(at_path) = at_path else { bail!("{option} dgram: {path}= is missing") };
            unused(at_number.is_some(), number)?;
            End::Unix(at_path.into())
        }
        Some("fd") => {
            let Some(at_number) = at_number else { bail!("{option} dgram: {number}= is missing") };
            unused(at_path.is_some(), path)?;
            End::Descriptor(descriptor(&at_number).map_err(|e| keys.error(number, &at_number, e))?)
        }
        Some(other) => bail!("{option} dgram,{kind}={other}: unknown type; use inet, unix or fd"),
    };
    unused(at_host.is_some(), host)?;
    unused(at_port.is_some(), port)?;
    Ok(Some(end))
}

/// Keys of `dgram`.
pub fn datagram(option: &str, keys: &mut KeyValues) -> Result<DatagramConfig> {
    let (local, remote) = (end(option, keys, LOCAL)?, end(option, keys, REMOTE)?);
    let at = |host: &str, port: &Option<String>, what: &str, listen| {
        let Some(port) = port else { bail!("{option} dgram: {what}.port= is missing") };
        inet_parts(host, port, listen).map_err(|e| anyhow!("{option} dgram,{what}.host={host},{what}.port={port}: {e}"))
    };
    match (local, remote) {
        (local, Some(End::Inet(host, port))) => {
            let remote = at(&host, &port, "remote", false)?;
            match (remote, local) {
                (SocketAddr::V4(group), local) if group.ip().is_multicast() => {
                    let interface = match local {
                        None => None,
                        Some(End::Inet(host, None)) => {
                            Some(interface(&host).map_err(|e| anyhow!("{option} dgram,local.host={host}: {e}"))?)
                        }
                        Some(_) => bail!("{option} dgram: for a multicast group only local.host= can be given"),
                    };
                    Ok(DatagramConfig::Group { group, interface })
                }
                (remote, Some(End::Inet(host, port))) => {
                    Ok(DatagramConfig::Inet { local: Some(at(&host, &port, "local", true)?), remote })
                }
                (remote, None) => Ok(DatagramConfig::Inet { local: None, remote }),
                (_, Some(_)) => bail!("{option} dgram: local.type= and remote.type= differ; use the same"),
            }
        }
        (Some(End::Unix(local)), Some(End::Unix(remote))) => Ok(DatagramConfig::Unix { local, remote }),
        (Some(End::Descriptor(number)), None) => Ok(DatagramConfig::Descriptor(number)),
        (Some(End::Descriptor(_)), Some(_)) => {
            bail!("{option} dgram,local.type=fd: the descriptor is connected to its other end; leave remote. out")
        }
        (Some(_), None) => bail!("{option} dgram: remote.type= is missing: where frames go"),
        (None, None) => bail!("{option} dgram: local.type= and remote.type= are missing; use inet, unix or fd"),
        _ => bail!("{option} dgram: local.type= and remote.type= differ; use the same"),
    }
}

/// Keys of `stream`.
pub fn stream(option: &str, keys: &mut KeyValues) -> Result<StreamConfig> {
    let server = keys.take_switch("server")?.unwrap_or(false);
    let need = |value: Option<String>, key: &str| value.ok_or_else(|| anyhow!("{option} stream: {key}= is missing"));
    let (host, port) = (keys.take("addr.host")?, keys.take("addr.port")?);
    let (path, fd) = (keys.take("addr.path")?, keys.take("addr.str")?);
    for key in ["addr.ipv4", "addr.ipv6", "addr.abstract", "addr.tight"] {
        if let Some(value) = keys.take(key)? {
            bail!("{option} stream,{key}={value}: not supported yet; leave it out");
        }
    }
    let kind = keys.take("addr.type")?;
    let address = match kind.as_deref() {
        Some("inet") => {
            let (host, port) = (need(host.clone(), "addr.host")?, need(port.clone(), "addr.port")?);
            let at = inet_parts(&host, &port, server);
            StreamAddress::Inet(at.map_err(|e| anyhow!("{option} stream,addr.host={host},addr.port={port}: {e}"))?)
        }
        Some("unix") => StreamAddress::Unix(need(path.clone(), "addr.path")?.into()),
        Some("fd") => {
            let fd = need(fd.clone(), "addr.str")?;
            StreamAddress::Descriptor(descriptor(&fd).map_err(|e| keys.error("addr.str", &fd, e))?)
        }
        Some(other) => bail!("{option} stream,addr.type={other}: unknown type; use inet, unix or fd"),
        None => bail!("{option} stream: addr.type= is missing; use inet, unix or fd"),
    };
    let unused = [(host.is_some() || port.is_some(), "inet"), (path.is_some(), "unix"), (fd.is_some(), "fd")];
    if let Some((_, other)) = unused.iter().find(|(given, of)| *given && kind.as_deref() != Some(*of)) {
        bail!("{option} stream: keys of addr.type={other} are given with another type; leave them out");
    }
    let milliseconds = keys.take_as("reconnect-ms", |text| values::number_in(text, 0, 3_600_000))?;
    let seconds = keys.take_as("reconnect", |text| values::number_in(text, 0, 3600))?;
    let reconnect_ms = milliseconds.or(seconds.map(|s| s * 1000)).unwrap_or(0);
    if server && reconnect_ms != 0 {
        bail!("{option} stream,server=on: reconnect-ms= is for the end that calls; leave it out");
    }
    Ok(StreamConfig { server, address, reconnect_ms })
}

#[cfg(test)]
mod tests {
    use super::*;

    type Settle<T> = fn(&str, &mut KeyValues) -> Result<T>;

    fn parse<T>(settle: Settle<T>, text: &str) -> Result<T, String> {
        let mut keys = KeyValues::parse("-netdev", text, None).map_err(|e| e.to_string())?;
        let config = settle("-netdev", &mut keys).map_err(|e| e.to_string())?;
        keys.finish().map_err(|e| e.to_string())?;
        Ok(config)
    }

    #[test]
    fn streams() {
        let stream_to = |server, at: &str| {
            let address = StreamAddress::Inet(at.parse().unwrap());
            Ok(NetdevKind::Stream(StreamConfig { server, address, reconnect_ms: 0 }))
        };
        assert_eq!(parse(socket, "listen=:1234"), stream_to(true, "0.0.0.0:1234"));
        assert_eq!(parse(socket, "connect=127.0.0.1:1234"), stream_to(false, "127.0.0.1:1234"));
        assert!(parse(socket, "listen=:1,connect=:2").unwrap_err().contains("give one of"));
        let c = parse(stream, "server=on,addr.type=unix,addr.path=/tmp/x").unwrap();
        assert!(c.server && c.address == StreamAddress::Unix("/tmp/x".into()));
        let c = parse(stream, "addr.type=inet,addr.host=127.0.0.1,addr.port=99,reconnect=2").unwrap();
        assert_eq!(c.reconnect_ms, 2000);
        assert!(parse(stream, "addr.type=unix,addr.path=/x,addr.port=1").unwrap_err().contains("another type"));
        assert!(parse(stream, "addr.type=vsock").unwrap_err().contains("unknown type"));
    }

    #[test]
    fn datagrams() {
        let group = |interface| DatagramConfig::Group { group: "230.0.0.1:1234".parse().unwrap(), interface };
        let here = Some(Ipv4Addr::LOCALHOST);
        let inet =
            DatagramConfig::Inet { local: Some("0.0.0.0:1".parse().unwrap()), remote: "127.0.0.1:2".parse().unwrap() };
        let kind = |text| parse(socket, text);
        assert_eq!(kind("mcast=230.0.0.1:1234"), Ok(NetdevKind::Datagram(group(None))));
        assert_eq!(kind("mcast=230.0.0.1:1234,localaddr=127.0.0.1"), Ok(NetdevKind::Datagram(group(here))));
        assert_eq!(kind("udp=127.0.0.1:2,localaddr=:1"), Ok(NetdevKind::Datagram(inet.clone())));
        assert!(kind("udp=127.0.0.1:2").unwrap_err().contains("localaddr=HOST:PORT is missing"));
        assert!(kind("listen=:1,localaddr=:2").unwrap_err().contains("goes with mcast="));
        assert!(kind("mcast=10.0.0.1:1234").unwrap_err().contains("no multicast group"));
        let two =
            "local.type=inet,local.host=0.0.0.0,local.port=1,remote.type=inet,remote.host=127.0.0.1,remote.port=2";
        assert_eq!(parse(datagram, two), Ok(inet));
        let to_group = "remote.type=inet,remote.host=230.0.0.1,remote.port=1234";
        assert_eq!(parse(datagram, to_group), Ok(group(None)));
        assert_eq!(parse(datagram, &format!("{to_group},local.type=inet,local.host=127.0.0.1")), Ok(group(here)));
        let paths = parse(datagram, "local.type=unix,local.path=/a,remote.type=unix,remote.path=/b").unwrap();
        assert_eq!(paths, DatagramConfig::Unix { local: "/a".into(), remote: "/b".into() });
        assert_eq!(parse(datagram, "local.type=fd,local.str=7"), Ok(DatagramConfig::Descriptor(7)));
        let err = |text| parse(datagram, text).unwrap_err();
        assert!(err("local.type=unix,local.path=/a").contains("remote.type= is missing"));
        assert!(err("local.type=unix,local.path=/a,remote.type=inet,remote.host=::1,remote.port=1").contains("differ"));
        assert!(err("local.type=unix,local.path=/a,local.port=1").contains("does not go with"));
        assert!(err("remote.type=vsock").contains("unknown type"));
        assert!(err("local.path=/a").contains("does not go with"));
    }

    #[test]
    fn taps() {
        let c = parse(tap, "ifname=tap0,script=no,downscript=no").unwrap();
        assert_eq!(c.interface, TapInterface::Name { name: Some("tap0".into()), queues: 1 });
        assert_eq!((c.script, c.down_script), (None, None));
        assert_eq!(parse(tap, "fd=3").unwrap().interface, TapInterface::Descriptors(vec![3]));
        assert_eq!(parse(tap, "fds=3:4,script=no").unwrap().interface, TapInterface::Descriptors(vec![3, 4]));
        assert_eq!(parse(tap, "queues=2,script=no,downscript=no").unwrap().queues(), 2);
        assert!(parse(tap, "fd=3,ifname=x").unwrap_err().contains("do not go with it"));
        assert!(parse(tap, "fd=3,script=/bin/true").unwrap_err().contains("does not go with it"));
        assert!(parse(tap, "fd=3,fds=4").unwrap_err().contains("give either"));
        assert!(parse(tap, "fds=3:x").is_err());
        assert!(parse(tap, "ifname=muchtoolongforaname").unwrap_err().contains("1 to 15"));
        assert!(parse(tap, "script=/does/not/exist").unwrap_err().contains("no such file"));
        assert!(parse(tap, "vhost=on").unwrap_err().contains("use vhost=off"));
    }
}
