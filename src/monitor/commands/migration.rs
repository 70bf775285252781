//! What clients settle about migration before there is any. There is none yet: what can be settled is whether MIGRATION events
//! were to be sent, which management programs do for every machine that they start.

use crate::monitor::call::Call;
use crate::monitor::fault::Fault;
use crate::monitor::table::{Command, Outcome, Place, arg};
use crate::monitor::types::{Enum, Object, Ty, member, optional};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};

static CAPABILITIES: Enum = Enum { name: "MigrationCapability", values: &["events"] };
static STATUS: Object = Object::new(
    "MigrationCapabilityStatus",
    &[member("capability", Ty::Enum(&CAPABILITIES)), member("state", Ty::Bool)],
);
static INFO: Object = Object::new("MigrationInfo", &[optional("status", Ty::Str)]);

/// The state of `events`, for the machine that this process is.
static EVENTS: AtomicBool = AtomicBool::new(false);

pub static TABLE: &[Command] = &[
    Command::both(
        "query-migrate-capabilities",
        &["info migrate_capabilities"],
        "show current migration capabilities",
        |_| Ok(json!([{ "capability": "events", "state": EVENTS.load(Ordering::SeqCst) }])),
    )
    .returns(Ty::Array(&Ty::Object(&STATUS)))
    .show(|list| {
        let line = |entry: &Value| {
            let state = if entry["state"] == true { "on" } else { "off" };
            format!("{}: {state}\n", entry["capability"].as_str().unwrap_or_default())
        };
        list.as_array().into_iter().flatten().map(line).collect()
    }),
    Command::qmp("migrate-set-capabilities", "whether MIGRATION events were sent, if there were migration", set)
        .args(&[arg("capabilities", Ty::Array(&Ty::Object(&STATUS)), Place::Absent)]),
    Command::hmp(&["migrate_set_capability"], "Enable/Disable the usage of a capability for migration", |call| {
        match call.word("capability")? {
            "events" => EVENTS.store(call.switch("state"), Ordering::SeqCst),
            other => return Err(Fault::new(format!("Parameter 'capability' does not accept value '{other}'"))),
        }
        Ok(Value::Null)
    })
    .args(&[arg("capability", Ty::Str, Place::Word), arg("state", Ty::Bool, Place::Switch)]),
    Command::both("query-migrate", &["info migrate"], "show migration status", |_| Ok(json!({})))
        .returns(Ty::Object(&INFO))
        .show(|_| String::new()),
];

fn set(call: &mut Call<'_>) -> Outcome {
    for entry in call.get("capabilities").and_then(Value::as_array).into_iter().flatten() {
        EVENTS.store(entry["state"] == true, Ordering::SeqCst);
    }
    Ok(Value::Null)
}
