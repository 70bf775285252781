//! Host ends of character devices.

use super::backends::{self, BACKEND, RETURN};
use crate::monitor::call::Call;
use crate::monitor::fault::Fault;
use crate::monitor::table::{Arg, Command, Outcome, Place, arg, opt};
use crate::monitor::types::{Enum, Object, Ty, member};
use brolga::descriptors;
use data_encoding::BASE64;
use serde_json::{Value, json};
use std::os::fd::{AsRawFd, OwnedFd};

static CHARDEV: Object = Object::new(
    "ChardevInfo",
    &[member("label", Ty::Str), member("filename", Ty::Str), member("frontend-open", Ty::Bool)],
);
static FORMATS: Enum = Enum { name: "DataFormat", values: &["utf8", "base64"] };
static KIND: Object = Object::new("ChardevBackendInfo", &[member("name", Ty::Str)]);

pub static TABLE: &[Command] = &[
    Command::both("query-chardev", &["info chardev"], "show the character devices", query_chardev)
        .returns(Ty::Array(&Ty::Object(&CHARDEV)))
        .show(show),
    Command::hmp(&["info serial"], "show the host ends of serial ports", |call| {
        let all = query_chardev(call)?;
        let serial = |info: &&Value| info["label"].as_str().is_some_and(|label| label.starts_with("serial"));
        Ok(all.as_array().into_iter().flatten().filter(serial).cloned().collect())
    })
    .show(show),
    Command::both("ringbuf-write", &["ringbuf_write"], "write to a ring buffer character device", ring_write).args(&[
        arg("device", Ty::Str, Place::Word),
        arg("data", Ty::Str, Place::Word),
        opt("format", Ty::Enum(&FORMATS), Place::Absent),
    ]),
    Command::both("ringbuf-read", &["ringbuf_read"], "read from a ring buffer character device", ring_read)
        .args(&[
            arg("device", Ty::Str, Place::Word),
            arg("size", Ty::Int, Place::LastNumber),
            opt("format", Ty::Enum(&FORMATS), Place::Absent),
        ])
        .returns(Ty::Str),
    Command::both("chardev-add", &["chardev-add"], "add chardev", |call| {
        let mut held = Vec::new();
        let option = match call.people {
            true => call.word("args")?.to_owned(),
            false => described(call, &mut held).map_err(|why| {
                format!("Failed to add chardev '{}': {}", call.text("id").unwrap_or_default(), why.desc)
            })?,
        };
        Ok(opened(call.host.chardev_add(&option)?))
    })
    .args(&[arg("id", Ty::Str, Place::Absent), arg("backend", Ty::Object(&BACKEND), Place::Absent), ARGS])
    .returns(Ty::Object(&RETURN))
    .show(quiet),
    Command::both("chardev-change", &["chardev-change"], "change chardev", change)
        .args(&[arg("id", Ty::Str, Place::Word), arg("backend", Ty::Object(&BACKEND), Place::Absent), ARGS])
        .returns(Ty::Object(&RETURN))
        .show(quiet),
    Command::both("chardev-remove", &["chardev-remove"], "remove chardev", |call| {
        call.host.chardev_remove(call.word("id")?)?;
        Ok(Value::Null)
    })
    .args(&[arg("id", Ty::Str, Place::Word)]),
    Command::both("chardev-send-break", &["chardev-send-break"], "send a break on chardev", |call| {
        call.host.chardev_break(call.word("id")?)?;
        Ok(Value::Null)
    })
    .args(&[arg("id", Ty::Str, Place::Word)]),
    Command::qmp("query-chardev-backends", "kinds of host ends", |call| {
        Ok(call.facts.chars().kinds().iter().map(|kind| json!({ "name": kind })).collect())
    })
    .returns(Ty::Array(&Ty::Object(&KIND))),
];

/// How people describe one: in the grammar of `-chardev`.
const ARGS: Arg = arg("args", Ty::Str, Place::HmpRest);

fn quiet(_: &Value) -> String {
    String::new()
}

/// What is to be opened, in the grammar of `-chardev`.
/// Descriptors that it names are held, until it has taken its own of them.
fn described(call: &Call<'_>, held: &mut Vec<OwnedFd>) -> Result<String, Fault> {
    let backend = call.get("backend").and_then(Value::as_object).ok_or("Parameter 'backend' is missing")?;
    backends::option(backend, call.word("id")?, &mut |name| {
        if name.starts_with(|c: char| c.is_ascii_digit()) {
            return Ok(name.to_owned());
        }
        let descriptor = descriptors::take(name);
        let descriptor = descriptor.ok_or_else(|| format!("File descriptor named '{name}' has not been found"))?;
        let number = descriptor.as_raw_fd().to_string();
        held.push(descriptor);
        Ok(number)
    })
}

fn opened(pty: Option<String>) -> Value {
    pty.map_or_else(|| json!({}), |pty| json!({ "pty": pty }))
}

fn change(call: &mut Call<'_>) -> Outcome {
    let mut held = Vec::new();
    let option = match call.people {
        true => format!("{},id={}", call.word("args")?, call.word("id")?.replace(',', ",,")),
        false => described(call, &mut held)?,
    };
    Ok(opened(call.host.chardev_change(call.word("id")?, &option)?))
}

fn query_chardev(call: &mut Call<'_>) -> Outcome {
    let entry = |info: crate::monitor::CharInfo| json!({ "label": info.label, "filename": info.filename, "frontend-open": info.frontend_open });
    Ok(call.facts.chars().list().into_iter().map(entry).collect())
}

fn ring_write(call: &mut Call<'_>) -> Outcome {
    let (device, data) = (call.word("device")?, call.word("data")?);
    let bytes = match call.text("format") {
        Some("base64") => BASE64.decode(data.as_bytes()).map_err(|_| Fault::new("Base64 data is not valid"))?,
        _ => data.as_bytes().to_vec(),
    };
    call.facts.chars().ring_write(device, &bytes)?;
    Ok(Value::Null)
}

fn ring_read(call: &mut Call<'_>) -> Outcome {
    let size = call.needed("size")?;
    let most = usize::try_from(size).ok().filter(|size| *size != 0 && size >> 63 == 0);
    let most = most.ok_or("size must be greater than zero")?;
    let bytes = call.facts.chars().ring_read(call.word("device")?, most)?;
    if call.people {
        return Ok((shown(&bytes) + "\n").into());
    }
    Ok(match call.text("format") {
        Some("base64") => BASE64.encode(&bytes),
        _ => String::from_utf8_lossy(&bytes).into_owned(),
    }
    .into())
}

/// Text as it is; what would disturb a terminal, by its number, and backslashes doubled, in the form that QEMU has.
fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\\' => out += "\\\\",
            c if (c < ' ' && c != '\n') || c == '\u{7f}' => out += &format!("\\u{:04X}", u32::from(c)),
            c => out.push(c),
        }
    }
    out
}

fn show(list: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let line = |info: &Value| format!("{}: filename={}\n", text(&info["label"]), text(&info["filename"]));
    list.as_array().into_iter().flatten().map(line).collect()
}
