//! Host ends of character devices.

use crate::monitor::call::Call;
use crate::monitor::fault::Fault;
use crate::monitor::table::{Command, Outcome, Place, arg, opt};
use crate::monitor::types::{Enum, Object, Ty, member};
use data_encoding::BASE64;
use serde_json::{Value, json};

static CHARDEV: Object = Object::new(
    "ChardevInfo",
    &[member("label", Ty::Str), member("filename", Ty::Str), member("frontend-open", Ty::Bool)],
);
static FORMATS: Enum = Enum { name: "DataFormat", values: &["utf8", "base64"] };
static BACKEND: Object = Object::new("ChardevBackendInfo", &[member("name", Ty::Str)]);

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
    Command::qmp("query-chardev-backends", "kinds of host ends", |call| {
        Ok(call.facts.chars().kinds().iter().map(|kind| json!({ "name": kind })).collect())
    })
    .returns(Ty::Array(&Ty::Object(&BACKEND))),
];

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
