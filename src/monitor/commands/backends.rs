//! Host ends of character devices as programs describe them: their types, and the same in the grammar of `-chardev`.

use crate::monitor::fault::Fault;
use crate::monitor::types::{Enum, Member, Object, Ty, member, optional};
use serde_json::{Map, Value};

/// Kinds, and what each is described by.
static KINDS: Enum = Enum {
    name: "ChardevBackendKind",
    values: &["file", "memory", "null", "pipe", "pty", "ringbuf", "serial", "socket", "stdio", "udp"],
};
pub static BACKEND: Object = Object::new("ChardevBackend", &[member("type", Ty::Enum(&KINDS))]).with(
    "type",
    &[
        ("file", &FILE_WRAPPER),
        ("memory", &RING_WRAPPER),
        ("null", &COMMON_WRAPPER),
        ("pipe", &DEVICE_WRAPPER),
        ("pty", &COMMON_WRAPPER),
        ("ringbuf", &RING_WRAPPER),
        ("serial", &DEVICE_WRAPPER),
        ("socket", &SOCKET_WRAPPER),
        ("stdio", &STDIO_WRAPPER),
        ("udp", &UDP_WRAPPER),
    ],
);
/// What comes of it.
pub static RETURN: Object = Object::new("ChardevReturn", &[optional("pty", Ty::Str)]);

const LOG: Member = optional("logfile", Ty::Str);
const APPEND: Member = optional("logappend", Ty::Bool);
static COMMON: Object = Object::new("ChardevCommon", &[LOG, APPEND]);
static FILE: Object = Object::new(
    "ChardevFile",
    &[optional("in", Ty::Str), member("out", Ty::Str), optional("append", Ty::Bool), LOG, APPEND],
);
static DEVICE: Object = Object::new("ChardevHostdev", &[member("device", Ty::Str), LOG, APPEND]);
static STDIO: Object = Object::new("ChardevStdio", &[optional("signal", Ty::Bool), LOG, APPEND]);
static RING: Object = Object::new("ChardevRingbuf", &[optional("size", Ty::Int), LOG, APPEND]);
static SOCKET: Object = Object::new(
    "ChardevSocket",
    &[
        member("addr", Ty::Object(&ADDRESS)),
        optional("server", Ty::Bool),
        optional("wait", Ty::Bool),
        optional("nodelay", Ty::Bool),
        optional("telnet", Ty::Bool),
        optional("websocket", Ty::Bool),
        optional("reconnect", Ty::Int),
        optional("reconnect-ms", Ty::Int),
        LOG,
        APPEND,
    ],
);
static UDP: Object = Object::new(
    "ChardevUdp",
    &[member("remote", Ty::Object(&ADDRESS)), optional("local", Ty::Object(&ADDRESS)), LOG, APPEND],
);
static COMMON_WRAPPER: Object = Object::new("ChardevCommonWrapper", &[member("data", Ty::Object(&COMMON))]);
static FILE_WRAPPER: Object = Object::new("ChardevFileWrapper", &[member("data", Ty::Object(&FILE))]);
static DEVICE_WRAPPER: Object = Object::new("ChardevHostdevWrapper", &[member("data", Ty::Object(&DEVICE))]);
static STDIO_WRAPPER: Object = Object::new("ChardevStdioWrapper", &[member("data", Ty::Object(&STDIO))]);
static RING_WRAPPER: Object = Object::new("ChardevRingbufWrapper", &[member("data", Ty::Object(&RING))]);
static SOCKET_WRAPPER: Object = Object::new("ChardevSocketWrapper", &[member("data", Ty::Object(&SOCKET))]);
static UDP_WRAPPER: Object = Object::new("ChardevUdpWrapper", &[member("data", Ty::Object(&UDP))]);

/// Kinds of sockets.
pub static ADDRESS_KINDS: Enum = Enum { name: "SocketAddressType", values: &["inet", "unix", "fd"] };
pub static ADDRESS: Object = Object::new("SocketAddressLegacy", &[member("type", Ty::Enum(&ADDRESS_KINDS))])
    .with("type", &[("inet", &INET_WRAPPER), ("unix", &UNIX_WRAPPER), ("fd", &FD_WRAPPER)]);
static INET: Object = Object::new("InetSocketAddress", &[member("host", Ty::Str), member("port", Ty::Str)]);
static UNIX: Object = Object::new("UnixSocketAddress", &[member("path", Ty::Str)]);
static FD: Object = Object::new("FdSocketAddress", &[member("str", Ty::Str)]);
static INET_WRAPPER: Object = Object::new("InetSocketAddressWrapper", &[member("data", Ty::Object(&INET))]);
static UNIX_WRAPPER: Object = Object::new("UnixSocketAddressWrapper", &[member("data", Ty::Object(&UNIX))]);
static FD_WRAPPER: Object = Object::new("FdSocketAddressWrapper", &[member("data", Ty::Object(&FD))]);

/// The same in the grammar of `-chardev`, for a host end called `id`. `descriptor` turns the name of a descriptor into its
/// number.
pub fn option(
    backend: &Map<String, Value>,
    id: &str,
    descriptor: &mut dyn FnMut(&str) -> Result<String, Fault>,
) -> Result<String, Fault> {
    let kind = text(backend.get("type"));
    let nothing = Map::new();
    let data = backend.get("data").and_then(Value::as_object).unwrap_or(&nothing);
    let mut option = kind.clone();
    put(&mut option, "id", id);
    if kind == "socket" {
        // Sockets of programs listen unless told otherwise, and nobody waits for them.
        let server = data.get("server").and_then(Value::as_bool).unwrap_or(true);
        put(&mut option, "server", if server { "on" } else { "off" });
        if server && data.get("wait").is_none() {
            put(&mut option, "wait", "off");
        }
    }
    for (key, value) in data {
        match (key.as_str(), value) {
            ("server", _) => {}
            ("addr" | "remote", Value::Object(address)) => {
                place(&mut option, address, ["host", "port"], descriptor)?;
            }
            ("local", Value::Object(address)) => place(&mut option, address, ["localaddr", "localport"], descriptor)?,
            ("in", value) => put(&mut option, "input-path", &text(Some(value))),
            ("out" | "device", value) => put(&mut option, "path", &text(Some(value))),
            (key, value) => put(&mut option, key, &text(Some(value))),
        }
    }
    Ok(option)
}

/// The address of a socket.
fn place(
    option: &mut String,
    address: &Map<String, Value>,
    [host, port]: [&str; 2],
    descriptor: &mut dyn FnMut(&str) -> Result<String, Fault>,
) -> Result<(), Fault> {
    let of = |key: &str| text(address.get("data").and_then(|data| data.get(key)));
    match address.get("type").and_then(Value::as_str) {
        Some("unix") => put(option, "path", &of("path")),
        Some("fd") => put(option, "fd", &descriptor(&of("str"))?),
        _ => {
            put(option, host, &of("host"));
            put(option, port, &of("port"));
        }
    }
    Ok(())
}

fn text(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(on)) => if *on { "on" } else { "off" }.to_owned(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

fn put(option: &mut String, key: &str, value: &str) {
    *option += &format!(",{key}={}", value.replace(',', ",,"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(backend: Value) -> String {
        let mut descriptor = |name: &str| if name == "n" { Ok("7".to_owned()) } else { Err(Fault::new("no")) };
        BACKEND.check("", backend.as_object().unwrap()).unwrap();
        option(backend.as_object().unwrap(), "x,y", &mut descriptor).unwrap()
    }

    #[test]
    fn descriptions_become_options() {
        assert_eq!(of(json!({"type": "null", "data": {}})), "null,id=x,,y");
        let file = json!({"type": "file", "data": {"out": "a,b", "in": "c", "append": true, "logfile": "l"}});
        assert_eq!(of(file), "file,id=x,,y,append=on,input-path=c,logfile=l,path=a,,b");
        let unix = json!({"type": "unix", "data": {"path": "/p"}});
        let socket = |more: Value| {
            let mut data = json!({ "addr": unix });
            data.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            of(json!({"type": "socket", "data": data}))
        };
        assert_eq!(socket(json!({})), "socket,id=x,,y,server=on,wait=off,path=/p");
        let client = json!({"server": false, "reconnect": 2});
        assert_eq!(socket(client), "socket,id=x,,y,server=off,path=/p,reconnect=2");
        let address = |port: &str| json!({"type": "inet", "data": {"host": "h", "port": port}});
        let udp = json!({"type": "udp", "data": {"remote": address("1"), "local": address("2")}});
        assert_eq!(of(udp), "udp,id=x,,y,localaddr=h,localport=2,host=h,port=1");
        let fd = json!({"type": "fd", "data": {"str": "n"}});
        let given = json!({"type": "socket", "data": {"addr": fd, "server": false}});
        assert_eq!(of(given), "socket,id=x,,y,server=off,fd=7");
    }
}
