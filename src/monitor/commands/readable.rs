//! What people are shown, for programs that show it to people.

use crate::monitor::call::{Call, State};
use crate::monitor::hmp;
use crate::monitor::table::{Command, Outcome};
use crate::monitor::types::{Object, Ty, member};
use serde_json::json;

static TEXT: Object = Object::new("HumanReadableText", &[member("human-readable-text", Ty::Str)]);

pub static TABLE: &[Command] = &[
    Command::hmp(&["info usb"], "show guest USB devices", |_| Err("USB support not enabled".into())),
    Command::hmp(&["info replay"], "show record/replay information", |_| Ok("Record/replay is not active\n".into())),
    Command::qmp("x-query-interrupt-controllers", "info pic as text", |call| shown(call, "info pic"))
        .returns(Ty::Object(&TEXT)),
    Command::qmp("x-query-irq", "info irq as text", |call| shown(call, "info irq")).returns(Ty::Object(&TEXT)),
    Command::qmp("x-query-jit", "info jit as text", |call| shown(call, "info jit")).returns(Ty::Object(&TEXT)),
    Command::qmp("x-query-numa", "info numa as text", |call| shown(call, "info numa")).returns(Ty::Object(&TEXT)),
    Command::qmp("x-query-roms", "info roms as text", |call| shown(call, "info roms")).returns(Ty::Object(&TEXT)),
];

fn shown(call: &mut Call<'_>, line: &str) -> Outcome {
    Ok(json!({ "human-readable-text": hmp::run(call.host, call.facts, &mut State::default(), line) }))
}
