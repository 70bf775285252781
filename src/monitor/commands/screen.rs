//! The screen: pictures of it, and how people see it.

use crate::display::{self, ImageFormat};
use crate::monitor::call::Call;
use crate::monitor::fault::{Class, Fault};
use crate::monitor::table::{Command, Outcome, Place, arg, opt};
use crate::monitor::types::{Enum, Object, Ty, member};
use serde_json::{Value, json};

static FORMATS: Enum = Enum { name: "ImageFormat", values: &["ppm", "png"] };
static VNC: Object = Object::new("VncInfo", &[member("enabled", Ty::Bool)]);
static PROTOCOLS: Enum = Enum { name: "DisplayProtocol", values: &["vnc", "spice"] };
static CONNECTED: Enum = Enum { name: "SetPasswordAction", values: &["keep", "fail", "disconnect"] };
static TYPES: Enum = Enum { name: "DisplayType", values: &["none"] };
static OPTIONS: Object = Object::new("DisplayOptions", &[member("type", Ty::Enum(&TYPES))]);

pub static TABLE: &[Command] = &[
    Command::both(
        "screendump",
        &["screendump"],
        "save screen of head 'head' of display device 'device' to image",
        dump,
    )
    .args(&[
        opt("format", Ty::Enum(&FORMATS), Place::Choice('f')),
        arg("filename", Ty::Str, Place::Word),
        opt("device", Ty::Str, Place::Word),
        opt("head", Ty::Int, Place::Number),
    ]),
    Command::both("query-vnc", &["info vnc"], "show the vnc server status", |_| Ok(json!({ "enabled": false })))
        .returns(Ty::Object(&VNC))
        .show(|_| "None\n".to_owned()),
    Command::qmp("change-vnc-password", "another password for those who see the screen by VNC: nobody does", |_| {
        Err("Could not set password".into())
    })
    .args(&[arg("password", Ty::Str, Place::Absent)]),
    Command::both(
        "set_password",
        &["set_password"],
        "set spice/vnc password",
        |_| Err("Could not set password".into()),
    )
    .args(&[
        arg("protocol", Ty::Enum(&PROTOCOLS), Place::Word),
        arg("password", Ty::Str, Place::Word),
        opt("connected", Ty::Enum(&CONNECTED), Place::Word),
    ]),
    Command::both("expire_password", &["expire_password"], "set spice/vnc password expire-time", |_| {
        Err("Could not set password expire time".into())
    })
    .args(&[arg("protocol", Ty::Enum(&PROTOCOLS), Place::Word), arg("time", Ty::Str, Place::Word)]),
    Command::qmp("query-vnc-servers", "VNC servers that people see the screen by", |_| Ok(json!([])))
        .returns(Ty::Array(&Ty::Any)),
    Command::qmp("query-display-options", "how the screen is shown", |_| Ok(json!({ "type": "none" })))
        .returns(Ty::Object(&OPTIONS)),
];

fn dump(call: &mut Call<'_>) -> Outcome {
    let name = call.word("filename")?.to_owned();
    let format = call.text("format").unwrap_or("ppm");
    let format = ImageFormat::from_name(format);
    let format = format.ok_or_else(|| Fault::new("there are the formats ppm and png"))?;
    if let Some(device) = call.text("device") {
        if !call.host.has_screen(device) {
            return Err(Fault::of(Class::DeviceNotFound, format!("Device '{device}' not found")));
        }
    } else if call.number("head").is_some() {
        return Err("'head' must be specified together with 'device'".into());
    }
    if call.number("head").is_some_and(|head| head != 0) {
        return Err("the card has one head: 0".into());
    }
    let picture = call.host.screen().ok_or("There is no console to take a screendump from")?;
    display::save(&picture, &name, format)?;
    Ok(Value::Null)
}
