//! Disks that are offered to others by NBD.

use super::backends::ADDRESS;
use crate::cli::config::SocketAddress;
use crate::monitor::block_work::Offer;
use crate::monitor::call::Call;
use crate::monitor::fault::Fault;
use crate::monitor::table::{Command, Outcome, Place, arg, opt};
use crate::monitor::types::{Enum, Object, Ty, member};
use serde_json::{Map, Value, json};

static KINDS: Enum = Enum { name: "BlockExportType", values: &["nbd"] };
static REMOVAL: Enum = Enum { name: "BlockExportRemoveMode", values: &["safe", "hard"] };
static INFO: Object = Object::new(
    "BlockExportInfo",
    &[
        member("id", Ty::Str),
        member("type", Ty::Enum(&KINDS)),
        member("node-name", Ty::Str),
        member("shutting-down", Ty::Bool),
    ],
);
/// Longest name (the protocol's document, "Values").
const LONGEST: usize = 4096;

pub static TABLE: &[Command] = &[
    Command::qmp("nbd-server-start", "listen for NBD clients", |call| {
        let address = call.get("addr").and_then(Value::as_object).cloned().unwrap_or_default();
        call.host.start_nbd(&place(&address)?)?;
        Ok(Value::Null)
    })
    .args(&[arg("addr", Ty::Object(&ADDRESS), Place::Absent)]),
    Command::qmp("nbd-server-add", "offer a drive to NBD clients", |call| {
        let device = call.word("device")?.to_owned();
        let name = call.text("name").unwrap_or(&device).to_owned();
        let description = call.text("description").map(str::to_owned);
        offer(call, Offer { id: name.clone(), device, name, description, writable: call.switch("writable") })
    })
    .args(&[
        arg("device", Ty::Str, Place::Absent),
        opt("name", Ty::Str, Place::Absent),
        opt("description", Ty::Str, Place::Absent),
        opt("writable", Ty::Bool, Place::Absent),
    ]),
    Command::qmp("block-export-add", "offer a node to others", |call| {
        let device = call.word("node-name")?.to_owned();
        let name = call.text("name").unwrap_or(&device).to_owned();
        let (id, description) = (call.word("id")?.to_owned(), call.text("description").map(str::to_owned));
        offer(call, Offer { id, device, name, description, writable: call.switch("writable") })
    })
    .args(&[
        arg("type", Ty::Enum(&KINDS), Place::Absent),
        arg("id", Ty::Str, Place::Absent),
        arg("node-name", Ty::Str, Place::Absent),
        opt("name", Ty::Str, Place::Absent),
        opt("description", Ty::Str, Place::Absent),
        opt("writable", Ty::Bool, Place::Absent),
    ]),
    Command::qmp("nbd-server-remove", "end an offer to NBD clients", |call| {
        let hard = call.text("mode") == Some("hard");
        call.host.withdraw(call.word("name")?, hard)?;
        Ok(Value::Null)
    })
    .args(&[arg("name", Ty::Str, Place::Absent), opt("mode", Ty::Enum(&REMOVAL), Place::Absent)]),
    Command::qmp("block-export-del", "end an offer", |call| {
        let hard = call.text("mode") == Some("hard");
        call.host.withdraw(call.word("id")?, hard)?;
        Ok(Value::Null)
    })
    .args(&[arg("id", Ty::Str, Place::Absent), opt("mode", Ty::Enum(&REMOVAL), Place::Absent)]),
    Command::qmp("query-block-exports", "what is offered to others", |call| {
        let shown = |offer: Offer| {
            json!({ "id": offer.id, "type": "nbd", "node-name": offer.device, "shutting-down": false })
        };
        Ok(call.host.offers().into_iter().map(shown).collect())
    })
    .returns(Ty::Array(&Ty::Object(&INFO))),
    Command::both("nbd-server-stop", &["nbd_server_stop"], "stop serving block devices using the NBD protocol", |call| {
        call.host.stop_nbd()?;
        Ok(Value::Null)
    }),
    Command::hmp(
        &["nbd_server_start"],
        "[-a] [-w] host:port or unix:path: serve block devices on the given address, with -a all of them, with -w writable",
        start,
    )
    .args(&[
        opt("all", Ty::Bool, Place::Flag('a')),
        opt("writable", Ty::Bool, Place::Flag('w')),
        arg("uri", Ty::Str, Place::Word),
    ]),
    Command::hmp(&["nbd_server_add"], "export a block device via NBD, with -w writable", |call| {
        let device = call.word("device")?.to_owned();
        let name = call.text("name").unwrap_or(&device).to_owned();
        offer(call, Offer { id: name.clone(), device, name, description: None, writable: call.switch("writable") })
    })
    .args(&[
        opt("writable", Ty::Bool, Place::Flag('w')),
        arg("device", Ty::Str, Place::Word),
        opt("name", Ty::Str, Place::Word),
    ]),
    Command::hmp(&["nbd_server_remove"], "remove an export previously exposed via NBD, with -f at once", |call| {
        call.host.withdraw(call.word("name")?, call.switch("force"))?;
        Ok(Value::Null)
    })
    .args(&[opt("force", Ty::Bool, Place::Flag('f')), arg("name", Ty::Str, Place::Word)]),
];

fn offer(call: &Call<'_>, offer: Offer) -> Outcome {
    if offer.name.len() > LONGEST {
        return Err(Fault::new(format!("export name '{}' too long", offer.name)));
    }
    call.host.offer(offer)?;
    Ok(Value::Null)
}

/// Where to listen.
fn place(address: &Map<String, Value>) -> Result<SocketAddress, Fault> {
    let of = |key: &str| address.get("data").and_then(|data| data.get(key)).and_then(Value::as_str).unwrap_or_default();
    match address.get("type").and_then(Value::as_str) {
        Some("unix") => Ok(SocketAddress::Unix(of("path").into())),
        Some("inet") => tcp(of("host"), of("port")),
        _ => Err("a descriptor cannot be listened at here; use inet or unix".into()),
    }
}

fn tcp(host: &str, port: &str) -> Result<SocketAddress, Fault> {
    // On this machine only, unless told otherwise.
    let host = if host.is_empty() { "127.0.0.1" } else { host }.to_owned();
    let number = || Fault::new(format!("can't convert to a number: {port}"));
    Ok(SocketAddress::Tcp { host, port: port.parse().map_err(|_| number())? })
}

fn start(call: &mut Call<'_>) -> Outcome {
    let (uri, writable) = (call.word("uri")?, call.switch("writable"));
    let address = match uri.strip_prefix("unix:") {
        Some(path) => SocketAddress::Unix(path.into()),
        None => {
            let (host, port) = uri.rsplit_once(':').ok_or("error parsing address; write host:port or unix:path")?;
            tcp(host.trim_start_matches('[').trim_end_matches(']'), port)?
        }
    };
    if writable && !call.switch("all") {
        return Err("-w only valid together with -a".into());
    }
    call.host.start_nbd(&address)?;
    if call.switch("all") {
        for drive in call.host.drives().into_iter().filter(|drive| !drive.node_only && drive.medium.is_some()) {
            let (id, name, device) = (drive.name.clone(), drive.name.clone(), drive.name);
            if let Err(fault) = call.host.offer(Offer { id, device, name, description: None, writable }) {
                call.host.stop_nbd()?;
                return Err(fault);
            }
        }
    }
    Ok(Value::Null)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let read = |value: Value| place(value.as_object().unwrap());
        let inet = |host: &str, port: &str| json!({"type": "inet", "data": {"host": host, "port": port}});
        let Ok(SocketAddress::Tcp { host, port }) = read(inet("", "10809")) else { panic!("an address") };
        assert_eq!((host.as_str(), port), ("127.0.0.1", 10809), "nobody else unless they are meant");
        assert!(read(inet("h", "x")).is_err() && read(inet("h", "70000")).is_err());
        assert!(matches!(read(json!({"type": "unix", "data": {"path": "/x"}})), Ok(SocketAddress::Unix(_))));
        assert!(read(json!({"type": "fd", "data": {"str": "x"}})).is_err());
    }
}
