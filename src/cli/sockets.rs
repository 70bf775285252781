//! Sockets as host ends: `tcp:`, `telnet:` and `unix:` targets, `-chardev socket`.

use super::config::{SocketAddress, SocketSpec};
use super::keyval::KeyValues;
use super::values;
use anyhow::{Result, bail};
use std::time::Duration;

/// Where a server without a host listens: other machines are not to get at the guest.
const LOOPBACK: &str = "127.0.0.1";

/// A target like `telnet:127.0.0.1:4444,server=on,wait=off`; `what` is the option with its value. `None`: no socket.
pub fn target(what: &str, target: &str) -> Result<Option<SocketSpec>> {
    let (address, options) = target.split_once(',').unwrap_or((target, ""));
    let Some((kind, rest)) = address.split_once(':') else { return Ok(None) };
    let address = match kind {
        "tcp" | "telnet" => host_and_port(what, rest)?,
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
    let spec = settle(what, address, kind == "telnet", &mut keys)?;
    keys.finish()?;
    Ok(Some(spec))
}

/// `-chardev socket`.
pub fn chardev(what: &str, keys: &mut KeyValues) -> Result<SocketSpec> {
    let (path, host, port) = (keys.take("path")?, keys.take("host")?, keys.take("port")?);
    let address = match (path, port) {
        (Some(path), None) if host.is_none() && !path.is_empty() => SocketAddress::Unix(path.into()),
        (None, Some(port)) => host_and_port(what, &format!("{}:{port}", host.unwrap_or_default()))?,
        _ => bail!("{what}: give path=PATH for a Unix socket, or host=HOST,port=PORT"),
    };
    let telnet = keys.take_switch("telnet")?.unwrap_or(false);
    settle(what, address, telnet, keys)
}

/// `HOST:PORT`, the host in brackets or absent.
pub fn host_and_port(what: &str, text: &str) -> Result<SocketAddress> {
    let Some((host, port)) = text.rsplit_once(':') else { bail!("{what}: no port; write tcp:[HOST]:PORT") };
    let Ok(port) = port.parse() else { bail!("{what}: '{port}' is no port number") };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Ok(SocketAddress::Tcp { host: if host.is_empty() { LOOPBACK } else { host }.into(), port })
}

/// The switches that all forms have.
fn settle(what: &str, address: SocketAddress, telnet: bool, keys: &mut KeyValues) -> Result<SocketSpec> {
    let server = keys.take_switch("server")?.unwrap_or(false);
    let wait = keys.take_switch("wait")?;
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
    Ok(SocketSpec { address, server, wait: server && wait.unwrap_or(true), telnet, reconnect })
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
        assert!(parse("tcp::1,sever=on").unwrap_err().contains("did you mean server?"));
    }
}
