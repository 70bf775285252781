//! Where a machine goes to, or comes from: `tcp:HOST:PORT`, `unix:PATH`, `fd:NAME`, `exec:COMMAND`, `file:PATH[,offset=N]`, and
//! the same as QMP's `channels` have it.

use crate::cli::config::SocketAddress;
use crate::cli::host_and_port;
use brolga::words::values;
use serde_json::Value;
use std::path::PathBuf;

/// An end of a machine's way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A socket that one side listens at.
    Socket(SocketAddress),
    /// A descriptor: its number in this process, or the name that it was handed over by.
    Descriptor(String),
    /// The standard input or output of a program.
    Program(Vec<String>),
    /// A file, from this offset on.
    File(PathBuf, u64),
}

impl Address {
    /// Reads a URI.
    pub fn parse(uri: &str) -> Result<Self, String> {
        let unknown = || format!("unknown migration protocol: {uri}");
        let (kind, rest) = uri.split_once(':').ok_or_else(unknown)?;
        if rest.is_empty() && matches!(kind, "tcp" | "unix" | "fd" | "exec" | "file") {
            return Err(format!("{uri}: nothing follows the colon; give {}", EXAMPLES));
        }
        match kind {
            "tcp" => host_and_port(uri, rest).map(Self::Socket).map_err(|e| e.to_string()),
            "unix" => Ok(Self::Socket(SocketAddress::Unix(rest.into()))),
            "fd" => Ok(Self::Descriptor(rest.to_owned())),
            "exec" => Ok(Self::Program(["/bin/sh", "-c", rest].map(str::to_owned).to_vec())),
            "file" => file(rest),
            "rdma" | "vsock" => Err(format!("{uri}: {kind} is not supported; use {EXAMPLES}")),
            _ => Err(unknown()),
        }
    }

    /// Reads the one channel of QMP's `channels`, whose types have been checked.
    pub fn of_channels(channels: &Value) -> Result<Self, String> {
        let [channel] = channels.as_array().map_or(&[][..], Vec::as_slice) else {
            return Err("Channel list must have only one entry, for type 'main'".to_owned());
        };
        let address = &channel["addr"];
        let text = |name: &str| address[name].as_str().unwrap_or_default().to_owned();
        match (address["transport"].as_str(), address["type"].as_str()) {
            (Some("socket"), Some("inet")) => {
                let (host, port) = (text("host"), text("port"));
                let port = port.parse().map_err(|_| format!("'{port}' is no port number"))?;
                Ok(Self::Socket(SocketAddress::Tcp { host, port }))
            }
            (Some("socket"), Some("unix")) => Ok(Self::Socket(SocketAddress::Unix(text("path").into()))),
            (Some("socket"), Some("fd")) => Ok(Self::Descriptor(text("str"))),
            (Some("exec"), _) => {
                let words = address["args"].as_array().into_iter().flatten().filter_map(Value::as_str);
                let words: Vec<_> = words.map(str::to_owned).collect();
                if words.is_empty() { Err("'args' names no program".to_owned()) } else { Ok(Self::Program(words)) }
            }
            (Some("file"), _) => Ok(Self::File(text("filename").into(), address["offset"].as_u64().unwrap_or(0))),
            (transport, kind) => Err(format!(
                "{}: there is no such way here; there are inet, unix and fd sockets, exec and file",
                kind.or(transport).unwrap_or_default()
            )),
        }
    }
}

const EXAMPLES: &str = "tcp:HOST:PORT, unix:PATH, fd:NAME, exec:COMMAND or file:PATH";

fn file(rest: &str) -> Result<Address, String> {
    match rest.rsplit_once(",offset=") {
        None => Ok(Address::File(rest.into(), 0)),
        Some((path, offset)) => {
            let offset = values::size(offset, 1).map_err(|_| format!("file URI has bad offset {offset}"))?;
            Ok(Address::File(path.into(), offset))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn uris() {
        let parse = |uri| Address::parse(uri);
        let tcp = |host: &str, port| Ok(Address::Socket(SocketAddress::Tcp { host: host.into(), port }));
        assert_eq!(parse("tcp:[::1]:99"), tcp("::1", 99));
        assert_eq!(parse("tcp::99"), tcp("127.0.0.1", 99));
        assert_eq!(parse("unix:/a"), Ok(Address::Socket(SocketAddress::Unix("/a".into()))));
        assert_eq!(parse("fd:x"), Ok(Address::Descriptor("x".into())));
        assert_eq!(parse("file:/a,b,offset=4k"), Ok(Address::File("/a,b".into(), 4096)));
        let words = ["/bin/sh", "-c", "cat >a:b"].map(str::to_owned).to_vec();
        assert_eq!(parse("exec:cat >a:b"), Ok(Address::Program(words)));
        for (uri, why) in [
            ("bogus:1", "unknown migration protocol: bogus:1"),
            ("tcp", "unknown migration protocol: tcp"),
            ("tcp:99", "no port"),
            ("unix:", "nothing follows the colon"),
            ("rdma:1:2", "not supported"),
            ("file:/a,offset=x", "bad offset x"),
        ] {
            let error = parse(uri).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn channels() {
        let of = |addr: Value| Address::of_channels(&json!([{ "channel-type": "main", "addr": addr }]));
        let unix = json!({"transport": "socket", "type": "unix", "path": "/a"});
        assert_eq!(of(unix), Address::parse("unix:/a"));
        assert_eq!(of(json!({"transport": "file", "filename": "/a", "offset": 7})), Ok(Address::File("/a".into(), 7)));
        let program = of(json!({"transport": "exec", "args": ["/bin/cat"]}));
        assert_eq!(program, Ok(Address::Program(vec!["/bin/cat".into()])));
        assert!(of(json!({"transport": "socket", "type": "vsock", "cid": "1", "port": "2"})).is_err());
        assert!(Address::of_channels(&json!([])).is_err());
    }
}
