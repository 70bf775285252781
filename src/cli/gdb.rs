//! `-gdb` and `-s`.

use super::config::SocketAddress;
use super::options::Arguments;
use super::sockets;
use crate::gdb::Endpoint;
use anyhow::{Result, bail};

/// What `-s` stands for.
const SHORT: &str = "tcp::1234";

/// Where a debugger is to connect.
pub fn settle(arguments: &Arguments) -> Result<Option<Endpoint>> {
    let given = arguments.one("gdb");
    if arguments.flag("s") && given.is_some() {
        bail!("-s: the same as -gdb {SHORT}; give one of them");
    }
    match given.or(arguments.flag("s").then_some(SHORT)) {
        None | Some("none") => Ok(None),
        Some(text) => endpoint(text).map(Some),
    }
}

/// The endpoint that `text` names, as `-gdb` takes it.
pub fn endpoint(text: &str) -> Result<Endpoint> {
    let (address, options) = text.split_once(',').unwrap_or((text, ""));
    for option in options.split(',').filter(|o| !o.is_empty()) {
        // What QEMU's sockets take, and what this one is anyway.
        if !["server", "server=on", "nowait", "wait=off", "nodelay", "nodelay=on"].contains(&option) {
            bail!("-gdb {text}: unknown option '{option}'; a socket takes server=on and wait=off");
        }
    }
    match address.split_once(':') {
        None if address == "stdio" => Ok(Endpoint::Stdio),
        Some(("unix", path)) if !path.is_empty() => Ok(Endpoint::Socket(SocketAddress::Unix(path.into()))),
        Some(("tcp", rest)) => sockets::host_and_port(&format!("-gdb {text}"), rest).map(Endpoint::Socket),
        _ => bail!("-gdb {text}: not an endpoint; write tcp:[HOST]:PORT, unix:PATH or stdio, e.g. -gdb {SHORT}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(args: &[&str]) -> Result<Option<Endpoint>> {
        let words: Vec<String> = args.iter().map(|a| a.to_string()).collect();
        settle(&Arguments::read(&words)?)
    }

    #[test]
    fn endpoints() {
        let tcp = |host: &str, port| Some(Endpoint::Socket(SocketAddress::Tcp { host: host.into(), port }));
        assert_eq!(with(&[]).unwrap(), None);
        assert_eq!(with(&["-s"]).unwrap(), tcp("127.0.0.1", 1234));
        assert_eq!(with(&["-gdb", "tcp::9"]).unwrap(), tcp("127.0.0.1", 9));
        assert_eq!(with(&["-gdb", "tcp:0.0.0.0:9,server=on,wait=off"]).unwrap(), tcp("0.0.0.0", 9));
        assert_eq!(with(&["-gdb", "tcp:[::1]:9"]).unwrap(), tcp("::1", 9));
        assert_eq!(
            with(&["-gdb", "unix:/tmp/x"]).unwrap(),
            Some(Endpoint::Socket(SocketAddress::Unix("/tmp/x".into())))
        );
        assert_eq!(with(&["-gdb", "stdio"]).unwrap(), Some(Endpoint::Stdio));
        assert_eq!(with(&["-gdb", "none"]).unwrap(), None);
        let wrong = |text: &str| with(&["-gdb", text]).unwrap_err().to_string();
        assert!(wrong("tcp:1234").contains("no port"));
        assert!(wrong("tcp::x").contains("'x' is no port number"));
        assert!(wrong("com1").contains("not an endpoint"));
        assert!(wrong("tcp::1,reconnect=1").contains("unknown option"));
        assert!(with(&["-s", "-gdb", "tcp::1"]).unwrap_err().to_string().contains("give one of them"));
    }
}
