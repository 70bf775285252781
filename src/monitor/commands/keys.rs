//! Keys that are pressed and mice that are moved for the guest.

use crate::monitor::call::Call;
use crate::monitor::fault::Fault;
use crate::monitor::host::Pointer;
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

static BUTTONS: Enum =
    Enum { name: "InputButton", values: &["left", "middle", "right", "wheel-up", "wheel-down", "side", "extra"] };
static AXES: Enum = Enum { name: "InputAxis", values: &["x", "y"] };
static EVENT_KINDS: Enum = Enum { name: "InputEventKind", values: &["key", "btn", "rel", "abs"] };
static KEY_EVENT: Object = Object::new("InputKeyEvent", &[member("key", Ty::Object(&KEY)), member("down", Ty::Bool)]);
static BUTTON_EVENT: Object =
    Object::new("InputBtnEvent", &[member("button", Ty::Enum(&BUTTONS)), member("down", Ty::Bool)]);
static MOVE_EVENT: Object = Object::new("InputMoveEvent", &[member("axis", Ty::Enum(&AXES)), member("value", Ty::Int)]);
static KEY_WRAPPER: Object = Object::new("InputKeyEventWrapper", &[member("data", Ty::Object(&KEY_EVENT))]);
static BUTTON_WRAPPER: Object = Object::new("InputBtnEventWrapper", &[member("data", Ty::Object(&BUTTON_EVENT))]);
static MOVE_WRAPPER: Object = Object::new("InputMoveEventWrapper", &[member("data", Ty::Object(&MOVE_EVENT))]);
static EVENT: Object = Object::new("InputEvent", &[member("type", Ty::Enum(&EVENT_KINDS))])
    .with("type", &[("key", &KEY_WRAPPER), ("btn", &BUTTON_WRAPPER), ("rel", &MOVE_WRAPPER), ("abs", &MOVE_WRAPPER)]);

/// What QEMU calls the mouse of a PC.
const MOUSE_INDEX: u64 = 2;

pub static TABLE: &[Command] = &[
    Command::qmp("input-send-event", "keys, buttons and movements one after the other", send_events).args(&[
        opt("device", Ty::Str, Place::Absent),
        opt("head", Ty::Int, Place::Absent),
        arg("events", Ty::Array(&Ty::Object(&EVENT)), Place::Absent),
    ]),
    Command::hmp(&["mouse_move"], "send mouse move events", mouse_move).args(&[
        // Words: as expressions, 5 -3 would be 2.
        arg("dx", Ty::Str, Place::Word),
        arg("dy", Ty::Str, Place::Word),
        opt("dz", Ty::Str, Place::Word),
    ]),
    Command::hmp(&["mouse_button"], "change mouse button state (1=L, 2=M, 4=R)", mouse_button).args(&[arg(
        "state",
        Ty::Int,
        Place::LastNumber,
    )]),
    Command::qmp("send-key", "press keys together and let them go", send_key)
        .args(&[arg("keys", Ty::Array(&Ty::Object(&KEY)), Place::Absent), opt("hold-time", Ty::Int, Place::Absent)]),
    Command::hmp(&["sendkey"], "send keys to the VM (e.g. 'sendkey ctrl-alt-f1', default hold time=100 ms)", sendkey)
        .args(&[arg("keys", Ty::Str, Place::Word), opt("hold_ms", Ty::Int, Place::Number)]),
    Command::hmp(&["mouse_set"], "set which mouse device receives events", |call| match call.needed("index")? {
        MOUSE_INDEX => Ok(Value::Null),
        other => Err(Fault::new(format!("Mouse at index '{other}' not found"))),
    })
    .args(&[arg("index", Ty::Int, Place::LastNumber)]),
    Command::both("query-mice", &["info mice"], "show which guest mouse is receiving events", |_| {
        Ok(json!([{ "name": "QEMU PS/2 Mouse", "index": MOUSE_INDEX, "current": true, "absolute": false }]))
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

/// The code of a key by its name or number.
fn code_of(key: &Value) -> Result<u16, Fault> {
    let data = &key["data"];
    let code = data.as_str().map_or_else(|| data.as_u64().and_then(qcode::of_number), qcode::find);
    code.ok_or_else(|| Fault::new(format!("there is no key {data} on this keyboard")))
}

fn send_key(call: &mut Call<'_>) -> Outcome {
    let keys = call.get("keys").and_then(Value::as_array).into_iter().flatten();
    let keys = keys.map(code_of).collect::<Result<Vec<u16>, Fault>>()?;
    press(call, keys, call.number("hold-time"))
}

/// Bits of buttons, as the mouse has them: left, right, middle, side, extra.
fn button(name: &str) -> u8 {
    match name {
        "left" => 1,
        "right" => 2,
        "middle" => 4,
        "side" => 8,
        "extra" => 16,
        _ => 0,
    }
}

fn send_events(call: &mut Call<'_>) -> Outcome {
    if let Some(device) = call.text("device") {
        return Err(Fault::new(format!(
            "Device '{device}' not found: events go to the keyboard and mouse without a name"
        )));
    }
    let events = call.get("events").and_then(Value::as_array).cloned().unwrap_or_default();
    // All or nothing: what cannot be sent is found out first.
    let abs = events.iter().any(|event| event["type"] == "abs");
    if abs {
        return Err("Input handler not found for event type abs: there is no tablet".into());
    }
    for event in &events {
        let data = &event["data"];
        let down = data["down"] == true;
        match event["type"].as_str().unwrap_or_default() {
            "key" => call.host.key(code_of(&data["key"])?, down),
            "btn" => {
                let name = data["button"].as_str().unwrap_or_default();
                let pointer = match (name, down) {
                    ("wheel-up", true) => Pointer { wheel: -1, ..Pointer::default() },
                    ("wheel-down", true) => Pointer { wheel: 1, ..Pointer::default() },
                    (_, true) => Pointer { press: button(name), ..Pointer::default() },
                    (_, false) => Pointer { release: button(name), ..Pointer::default() },
                };
                call.host.point(pointer);
            }
            _ => {
                let by = data["value"].as_i64().unwrap_or(0).clamp(i32::MIN.into(), i32::MAX.into()) as i32;
                call.host.point(match data["axis"] == "x" {
                    true => Pointer { right: by, ..Pointer::default() },
                    false => Pointer { down: by, ..Pointer::default() },
                });
            }
        }
    }
    Ok(Value::Null)
}

fn mouse_move(call: &mut Call<'_>) -> Outcome {
    let by = |name: &str| match call.text(name) {
        None => Ok(0),
        Some(text) => text.parse::<i32>().map_err(|_| Fault::new(format!("{name}: '{text}' is not a number of steps"))),
    };
    call.host.point(Pointer { right: by("dx")?, down: by("dy")?, wheel: by("dz")?, ..Pointer::default() });
    Ok(Value::Null)
}

fn mouse_button(call: &mut Call<'_>) -> Outcome {
    let state = call.needed("state")?;
    let pressed = [(1, "left"), (2, "middle"), (4, "right")].into_iter().filter(|(bit, _)| state & bit != 0);
    let press = pressed.fold(0, |bits, (_, name)| bits | button(name));
    call.host.point(Pointer { press, release: !press, ..Pointer::default() });
    Ok(Value::Null)
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
