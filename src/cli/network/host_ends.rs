//! `-netdev tap`, `socket` and `stream`.

use super::super::config::network::{StreamAddress, StreamConfig, TapConfig, TapInterface};
use super::super::keyval::KeyValues;
use super::super::values::{self, Refusal};
use anyhow::{Result, anyhow, bail};
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

/// Longest name of an interface (IFNAMSIZ without its end).
const LONGEST_NAME: usize = 15;
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

/// Keys of a TAP interface.
pub fn tap(option: &str, keys: &mut KeyValues) -> Result<TapConfig> {
    let name = keys.take_as("ifname", |name| match name.len() {
        1..=LONGEST_NAME if !name.contains(['/', ' ']) => Ok(name.to_owned()),
        _ => Err(format!("an interface's name has 1 to {LONGEST_NAME} characters")),
    })?;
    let fd = keys.take_as("fd", descriptor)?;
    for (key, why) in
        [("vhost", "the host kernel's virtio is not used"), ("vnet_hdr", "frames carry no header of the host's")]
    {
        keys.take_fixed(key, false, why)?;
    }
    if let Some(fd) = fd {
        let scripts = [keys.take("script")?, keys.take("downscript")?];
        if name.is_some() || scripts.iter().flatten().any(|script| script != "no") {
            bail!("{option} tap,fd={fd}: ifname=, script= and downscript= do not go with fd=; leave them out");
        }
        return Ok(TapConfig { interface: TapInterface::Descriptor(fd), script: None, down_script: None });
    }
    let (up, down) = (script(keys, "script", IF_UP)?, script(keys, "downscript", IF_DOWN)?);
    Ok(TapConfig { interface: TapInterface::Name(name), script: up, down_script: down })
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

/// Keys of `socket`: one of `listen=`, `connect=`, `fd=`.
pub fn socket(option: &str, keys: &mut KeyValues) -> Result<StreamConfig> {
    let listen = keys.take_as("listen", |text| inet(text, true))?;
    let connect = keys.take_as("connect", |text| inet(text, false))?;
    let fd = keys.take_as("fd", descriptor)?;
    for key in ["mcast", "udp", "localaddr"] {
        if let Some(value) = keys.take(key)? {
            bail!("{option} socket,{key}={value}: only connections are supported yet; use listen= or connect=");
        }
    }
    let (server, address) = match (listen, connect, fd) {
        (Some(at), None, None) => (true, StreamAddress::Inet(at)),
        (None, Some(at), None) => (false, StreamAddress::Inet(at)),
        (None, None, Some(fd)) => (false, StreamAddress::Descriptor(fd)),
        _ => bail!("{option} socket: give one of listen=[HOST]:PORT, connect=HOST:PORT and fd=N"),
    };
    Ok(StreamConfig { server, address, reconnect_ms: 0 })
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
        let c = parse(socket, "listen=:1234").unwrap();
        assert!(c.server && c.address == StreamAddress::Inet("0.0.0.0:1234".parse().unwrap()));
        let c = parse(socket, "connect=127.0.0.1:1234").unwrap();
        assert!(!c.server && c.address == StreamAddress::Inet("127.0.0.1:1234".parse().unwrap()));
        assert!(parse(socket, "listen=:1,connect=:2").unwrap_err().contains("give one of"));
        assert!(parse(socket, "mcast=230.0.0.1:1234").unwrap_err().contains("only connections"));
        let c = parse(stream, "server=on,addr.type=unix,addr.path=/tmp/x").unwrap();
        assert!(c.server && c.address == StreamAddress::Unix("/tmp/x".into()));
        let c = parse(stream, "addr.type=inet,addr.host=127.0.0.1,addr.port=99,reconnect=2").unwrap();
        assert_eq!(c.reconnect_ms, 2000);
        assert!(parse(stream, "addr.type=unix,addr.path=/x,addr.port=1").unwrap_err().contains("another type"));
        assert!(parse(stream, "addr.type=vsock").unwrap_err().contains("unknown type"));
    }

    #[test]
    fn taps() {
        let c = parse(tap, "ifname=tap0,script=no,downscript=no").unwrap();
        assert_eq!(c.interface, TapInterface::Name(Some("tap0".into())));
        assert_eq!((c.script, c.down_script), (None, None));
        assert_eq!(parse(tap, "fd=3").unwrap().interface, TapInterface::Descriptor(3));
        assert!(parse(tap, "fd=3,ifname=x").unwrap_err().contains("do not go with fd="));
        assert!(parse(tap, "ifname=muchtoolongforaname").unwrap_err().contains("1 to 15"));
        assert!(parse(tap, "script=/does/not/exist").unwrap_err().contains("no such file"));
        assert!(parse(tap, "vhost=on").unwrap_err().contains("use vhost=off"));
    }
}
