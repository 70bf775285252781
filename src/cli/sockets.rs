//! Sockets as host ends: `tcp:`, `telnet:`, `websocket:`, `unix:` and `udp:` targets, `-chardev socket` and `udp`.

use super::config::{SocketAddress, SocketSpec};
use super::keyval::KeyValues;
use super::values;
use anyhow::{Result, anyhow, bail};
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

/// Where a server without a host listens: other machines are not to get at the guest.
const LOOPBACK: &str = "127.0.0.1";
/// Datagrams may come in at any address: they are taken from the one that is sent to only.
const ANY: &str = "0.0.0.0";

/// A target like `telnet:127.0.0.1:4444,server=on,wait=off`; `what` is the option with its value. `None`: no socket.
pub fn target(what: &str, target: &str) -> Result<Option<SocketSpec>> {
    let (address, options) = target.split_once(',').unwrap_or((target, ""));
    let Some((kind, rest)) = address.split_once(':') else { return Ok(None) };
    let address = match kind {
        "tcp" | "telnet" | "websocket" => host_and_port(what, rest)?,
        "unix" if rest.is_empty() => bail!("{what}: a path is missing; write unix:PATH,server=on,wait=off"),
        "unix" => SocketAddress::Unix(rest.into()),
        _ => return Ok(None),
    };
    // The older forms of the switches.
    let words = options.split(',').filter(|word| !word.is_empty()).map(|word| match word {
        "nowait" => "wait=off",
        "nodelay" => "nodelay=on",
        "server" => "server=on",
        other => other,
    });
    let mut keys = KeyValues::none(what);
    words.into_iter().try_for_each(|word| keys.add(word, None))?;
    let (telnet, websocket) = match kind {
        "telnet" => (true, false),
        "websocket" => (false, true),
        // The long form that any of them has.
        _ => (keys.take_switch("telnet")?.unwrap_or(false), keys.take_switch("websocket")?.unwrap_or(false)),
    };
    let address = of_family(what, address, &mut keys)?;
    let spec = settle(what, address, (telnet, websocket), &mut keys)?;
    keys.finish()?;
    Ok(Some(spec))
}

/// The address of the kind that `ipv4=` and `ipv6=` leave.
fn of_family(what: &str, address: SocketAddress, keys: &mut KeyValues) -> Result<SocketAddress> {
    let (four, six) = (keys.take_switch("ipv4")?, keys.take_switch("ipv6")?);
    // As QEMU reads them: one that is on excludes the other, unless that is on too.
    let [four, six] = match (four, six) {
        (None, None) => return Ok(address),
        (four, None) => [four == Some(true), four == Some(false)],
        (None, six) => [six == Some(false), six == Some(true)],
        (four, six) => [four == Some(true), six == Some(true)],
    };
    let SocketAddress::Tcp { host, port } = &address else {
        bail!("{what}: ipv4= and ipv6= are for host= and port=; leave them away");
    };
    let found = (host.as_str(), *port).to_socket_addrs();
    let found = found.map_err(|e| anyhow!("{what}: {host}: {}; check the name", super::os_reason(&e)))?;
    let fits = |found: &SocketAddr| if found.is_ipv4() { four } else { six };
    match found.into_iter().find(fits) {
        Some(found) => Ok(SocketAddress::Tcp { host: found.ip().to_string(), port: *port }),
        None => bail!("{what}: {host} has no address of the kind that ipv4= and ipv6= leave; change them"),
    }
}

/// `-chardev socket`.
pub fn chardev(what: &str, keys: &mut KeyValues) -> Result<SocketSpec> {
    let (path, host, port) = (keys.take("path")?, keys.take("host")?, keys.take("port")?);
    let fd = keys.take_as("fd", |t| {
        let number = values::number_in(t, 0, i32::MAX as u64);
        number.map_err(|_| format!("'{t}' is no descriptor; give the number of one that this program was started with"))
    })?;
    let address = match (path, port, fd) {
        (None, None, Some(number)) if host.is_none() => SocketAddress::Inherited(number as i32),
        (Some(path), None, None) if host.is_none() && !path.is_empty() => SocketAddress::Unix(path.into()),
        (None, Some(port), None) => host_and_port(what, &format!("{}:{port}", host.unwrap_or_default()))?,
        _ => bail!("{what}: give path=PATH for a Unix socket, host=HOST,port=PORT, or fd=NUMBER"),
    };
    let address = of_family(what, address, keys)?;
    let telnet = keys.take_switch("telnet")?.unwrap_or(false);
    let websocket = keys.take_switch("websocket")?.unwrap_or(false);
    settle(what, address, (telnet, websocket), keys)
}

/// Name and port.
type Place = (String, u16);

/// A target like `udp:127.0.0.1:4555@:4556`: where datagrams go, and where they come in.
pub fn udp_target(what: &str, rest: &str) -> Result<(Place, Place)> {
    let (to, from) = rest.split_once('@').unwrap_or((rest, ":0"));
    let place = |text: &str, host: &str| -> Result<Place> {
        let Some((name, port)) = text.rsplit_once(':') else {
            bail!("{what}: no port; write udp:[HOST]:PORT[@[ADDRESS]:PORT]")
        };
        udp_place(what, Some(name.trim_start_matches('[').trim_end_matches(']')), Some(port), host)
    };
    Ok((place(to, LOOPBACK)?, place(from, ANY)?))
}

/// `-chardev udp`.
pub fn udp_chardev(what: &str, keys: &mut KeyValues) -> Result<(Place, Place)> {
    let (host, port) = (keys.take("host")?, keys.take("port")?);
    let (address, local) = (keys.take("localaddr")?, keys.take("localport")?);
    if port.is_none() {
        bail!("{what}: port= is missing; use host=HOST,port=PORT");
    }
    let local = local.unwrap_or_else(|| "0".to_owned());
    Ok((
        udp_place(what, host.as_deref(), port.as_deref(), LOOPBACK)?,
        udp_place(what, address.as_deref(), Some(&local), ANY)?,
    ))
}

fn udp_place(what: &str, host: Option<&str>, port: Option<&str>, otherwise: &str) -> Result<Place> {
    let port = port.unwrap_or_default();
    let Ok(number) = port.parse() else { bail!("{what}: '{port}' is no port number") };
    let host = host.filter(|host| !host.is_empty()).unwrap_or(otherwise);
    Ok((host.to_owned(), number))
}

/// `HOST:PORT`, the host in brackets or absent.
pub fn host_and_port(what: &str, text: &str) -> Result<SocketAddress> {
    let Some((host, port)) = text.rsplit_once(':') else { bail!("{what}: no port; write tcp:[HOST]:PORT") };
    let Ok(port) = port.parse() else { bail!("{what}: '{port}' is no port number") };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Ok(SocketAddress::Tcp { host: if host.is_empty() { LOOPBACK } else { host }.into(), port })
}

/// `to=`: up to which port a free one is looked for.
fn last_port(what: &str, address: &SocketAddress, server: bool, keys: &mut KeyValues) -> Result<Option<u16>> {
    let last = keys.take_as("to", |t| t.parse::<u16>().map_err(|_| format!("'{t}' is no port number")))?;
    match (address, last) {
        (_, None) => Ok(None),
        (SocketAddress::Tcp { port, .. }, Some(last)) if server && *port <= last => Ok(Some(last)),
        (SocketAddress::Tcp { port, .. }, Some(last)) if server => {
            bail!("{what}: to={last} lies before port {port}; give a later one")
        }
        _ => bail!("{what}: to= is for a server's port; add server=on, or leave to= away"),
    }
}

/// `abstract=on`: the path of a Unix socket is a name in no file system.
fn named(what: &str, address: SocketAddress, keys: &mut KeyValues) -> Result<SocketAddress> {
    let (on, tight) = (keys.take_switch("abstract")?, keys.take_switch("tight")?);
    match address {
        SocketAddress::Unix(path) if on == Some(true) => {
            Ok(SocketAddress::named(&path.to_string_lossy(), tight.unwrap_or(true)))
        }
        other if on.is_none() && tight.is_none() => Ok(other),
        other @ SocketAddress::Unix(_) => Ok(other),
        _ => bail!("{what}: abstract= and tight= are for Unix sockets; give path=, or leave them away"),
    }
}

/// The switches that all forms have.
fn settle(
    what: &str,
    address: SocketAddress,
    (telnet, websocket): (bool, bool),
    keys: &mut KeyValues,
) -> Result<SocketSpec> {
    let address = named(what, address, keys)?;
    let server = keys.take_switch("server")?.unwrap_or(false);
    // `nowait` is an older form.
    let wait = keys.take_switch("wait")?.or(keys.take_switch("nowait")?.map(|not| !not));
    // Small pieces are never held back, whatever this says.
    keys.take_switch("nodelay")?;
    let seconds = keys.take_as("reconnect", |t| values::number_in(t, 0, 1 << 20))?;
    let milliseconds = keys.take_as("reconnect-ms", |t| values::number_in(t, 0, 1 << 30))?;
    let reconnect = milliseconds.or(seconds.map(|s| s * 1000)).filter(|ms| *ms != 0).map(Duration::from_millis);
    if server && reconnect.is_some() {
        bail!("{what}: a server does not reconnect; leave reconnect= away");
    }
    if !server && wait == Some(true) {
        bail!("{what}: only a server waits; add server=on or leave wait= away");
    }
    if websocket && (!server || telnet) {
        bail!("{what}: web clients come to a server without telnet; add server=on and leave telnet= away");
    }
    if websocket && matches!(address, SocketAddress::Unix(_)) {
        bail!("{what}: web clients come by TCP; give host= and port= instead of a path");
    }
    if matches!(address, SocketAddress::Inherited(_)) && reconnect.is_some() {
        bail!("{what}: what was connected by somebody else cannot be connected anew; leave reconnect= away");
    }
    let to = last_port(what, &address, server, keys)?;
    Ok(SocketSpec { address, to, server, wait: server && wait.unwrap_or(true), telnet, websocket, reconnect })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<SocketSpec, String> {
        target(&format!("-serial {text}"), text).map_err(|e| e.to_string()).map(|s| s.expect("a socket"))
    }

    #[test]
    fn targets() {
        let s = parse("telnet:127.0.0.1:4444,server,nowait").unwrap();
        assert_eq!(
            (s.server, s.wait, s.telnet, s.address.to_string().as_str()),
            (true, false, true, "tcp:127.0.0.1:4444")
        );
        let s = parse("unix:/tmp/x,server=on").unwrap();
        assert_eq!((s.server, s.wait, s.address), (true, true, SocketAddress::Unix("/tmp/x".into())));
        let s = parse("tcp::99,reconnect=2").unwrap();
        assert_eq!((s.server, s.wait, s.reconnect), (false, false, Some(Duration::from_secs(2))));
        assert_eq!(target("-serial null", "null").unwrap(), None);
        assert!(parse("tcp:99").unwrap_err().contains("no port"));
        assert!(parse("tcp::x").unwrap_err().contains("no port number"));
        assert!(parse("unix:").unwrap_err().contains("a path is missing"));
        assert!(parse("tcp::1,wait=on").unwrap_err().contains("only a server waits"));
        assert!(parse("tcp::1,server=on,reconnect=1").unwrap_err().contains("does not reconnect"));
        let s = parse("websocket::80,server=on,wait=off").unwrap();
        assert!(s.websocket && s.server && !s.telnet);
        assert!(parse("tcp::80,server=on,websocket=on").unwrap().websocket);
        assert!(parse("websocket::80").unwrap_err().contains("add server=on"));
        assert!(parse("unix:/x,server=on,websocket=on").unwrap_err().contains("web clients come by TCP"));
        let place = |host: &str, port| (host.to_owned(), port);
        let udp = |text| udp_target("-serial udp", text).map_err(|e| e.to_string());
        assert_eq!(udp(":4555"), Ok((place("127.0.0.1", 4555), place("0.0.0.0", 0))));
        assert_eq!(udp("[::1]:5@10.0.0.1:6"), Ok((place("::1", 5), place("10.0.0.1", 6))));
        assert!(udp("4555").unwrap_err().contains("no port"));
        assert!(udp(":x").unwrap_err().contains("no port number"));
        assert_eq!(parse("tcp::5,to=9,server=on").unwrap().to, Some(9));
        assert!(parse("tcp::5,to=4,server=on").unwrap_err().ends_with("to=4 lies before port 5; give a later one"));
        assert!(parse("tcp::5,to=9").unwrap_err().contains("add server=on"));
        assert!(parse("unix:/x,server=on,to=9").unwrap_err().contains("is for a server's port"));
        assert!(parse("tcp::5,to=x,server=on").unwrap_err().contains("'x' is no port number"));
        let s = parse("unix:n,abstract=on,server=on").unwrap();
        assert_eq!(
            (s.address.to_string(), &s.address),
            ("unix:n,abstract,tight".into(), &SocketAddress::named("n", true))
        );
        let s = parse("unix:n,abstract=on,tight=off").unwrap();
        assert_eq!(s.address.to_string(), "unix:n,abstract");
        assert!(matches!(s.address, SocketAddress::Unix(path) if path.as_os_str().len() == 108));
        assert!(parse("tcp::1,abstract=on").unwrap_err().contains("for Unix sockets"));
        assert!(parse("tcp::1,sever=on").unwrap_err().contains("did you mean server?"));
    }
}
