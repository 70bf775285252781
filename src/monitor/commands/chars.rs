//! Host ends of character devices.

use crate::monitor::call::Call;
use crate::monitor::table::{Command, Outcome};
use crate::monitor::types::{Object, Ty, member};
use serde_json::{Value, json};

static CHARDEV: Object = Object::new(
    "ChardevInfo",
    &[member("label", Ty::Str), member("filename", Ty::Str), member("frontend-open", Ty::Bool)],
);
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
    Command::qmp("query-chardev-backends", "kinds of host ends", |call| {
        Ok(call.facts.chars().kinds().iter().map(|kind| json!({ "name": kind })).collect())
    })
    .returns(Ty::Array(&Ty::Object(&BACKEND))),
];

fn query_chardev(call: &mut Call<'_>) -> Outcome {
    let entry = |info: crate::monitor::CharInfo| json!({ "label": info.label, "filename": info.filename, "frontend-open": info.frontend_open });
    Ok(call.facts.chars().list().into_iter().map(entry).collect())
}

fn show(list: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let line = |info: &Value| format!("{}: filename={}\n", text(&info["label"]), text(&info["filename"]));
    list.as_array().into_iter().flatten().map(line).collect()
}
