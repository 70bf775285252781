//! Keys that are pressed for the guest.

use crate::monitor::call::Call;
use crate::monitor::fault::Fault;
use crate::monitor::qcode;
use crate::monitor::table::{Command, Outcome, Place, arg, opt};
use crate::monitor::types::{Enum, Object, Ty, member};
use serde_json::{Value, json};
use std::time::Duration;

/// How long keys are held unless told.
const HOLD: Duration = Duration::from_millis(100);
/// Nobody holds a key longer.
const LONGEST: u64 = 60_000;

static KEY_KINDS: Enum = Enum { name: "KeyValueKind", values: &["number", "qcode"] };
static NUMBER: Object = Object::new("IntWrapper", &[member("data", Ty::Int)]);
static QCODE: Enum = Enum { name: "QKeyCode", values: qcode::NAMES };
static CODE: Object = Object::new("QKeyCodeWrapper", &[member("data", Ty::Enum(&QCODE))]);
static KEY: Object = Object::new("KeyValue", &[member("type", Ty::Enum(&KEY_KINDS))])
    .with("type", &[("number", &NUMBER), ("qcode", &CODE)]);
static MOUSE: Object = Object::new(
    "MouseInfo",
    &[member("name", Ty::Str), member("index", Ty::Int), member("current", Ty::Bool), member("absolute", Ty::Bool)],
);

pub static TABLE: &[Command] = &[
    Command::qmp("send-key", "press keys together and let them go", send_key)
        .args(&[arg("keys", Ty::Array(&Ty::Object(&KEY)), Place::Absent), opt("hold-time", Ty::Int, Place::Absent)]),
    Command::hmp(&["sendkey"], "send keys to the VM (e.g. 'sendkey ctrl-alt-f1', default hold time=100 ms)", sendkey)
        .args(&[arg("keys", Ty::Str, Place::Word), opt("hold_ms", Ty::Int, Place::Number)]),
    Command::both("query-mice", &["info mice"], "show which guest mouse is receiving events", |_| {
        Ok(json!([{ "name": "QEMU PS/2 Mouse", "index": 2, "current": true, "absolute": false }]))
    })
    .returns(Ty::Array(&Ty::Object(&MOUSE)))
    .show(show_mice),
];

/// Presses the keys in order and lets them go in the opposite one, later.
fn press(call: &Call<'_>, keys: Vec<u16>, hold: Option<u64>) -> Outcome {
    let hold = match hold {
        None => HOLD,
        Some(ms @ 0..=LONGEST) => Duration::from_millis(ms),
        Some(_) => return Err(Fault::new(format!("keys are held {LONGEST} ms at most"))),
    };
    call.host.press(keys, hold);
    Ok(Value::Null)
}

fn send_key(call: &mut Call<'_>) -> Outcome {
    let keys = call.get("keys").and_then(Value::as_array).into_iter().flatten();
    let code = |key: &Value| {
        let data = &key["data"];
        match data.as_str() {
            Some(name) => {
                qcode::find(name).ok_or_else(|| Fault::new(format!("there is no key '{name}' on this keyboard")))
            }
            None => {
                let code = data.as_u64().and_then(qcode::of_number);
                code.ok_or_else(|| Fault::new(format!("there is no key {data} on this keyboard")))
            }
        }
    };
    let keys = keys.map(code).collect::<Result<Vec<u16>, Fault>>()?;
    press(call, keys, call.number("hold-time"))
}

/// Names or numbers with `-` between them; `<` stands for the key itself.
fn sendkey(call: &mut Call<'_>) -> Outcome {
    let text = call.word("keys")?;
    let code = |name: &str| {
        let name = if name == "<" { "less" } else { name };
        let number = name.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
        let code = number.map_or_else(|| qcode::find(name), qcode::of_number);
        code.ok_or_else(|| Fault::new(format!("invalid parameter: {name}")))
    };
    let keys = text.split('-').map(code).collect::<Result<Vec<u16>, Fault>>()?;
    press(call, keys, call.number("hold_ms"))
}

fn show_mice(mice: &Value) -> String {
    let line = |mouse: &Value| {
        let mark = if mouse["current"] == true { '*' } else { ' ' };
        format!("{mark} Mouse #{}: {}\n", mouse["index"], mouse["name"].as_str().unwrap_or_default())
    };
    mice.as_array().into_iter().flatten().map(line).collect()
}
