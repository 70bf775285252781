//! Having the machine leave for another process, or arrive from one.

use super::backends::ADDRESS_KINDS;
use crate::cli::values;
use crate::migration::{Address, Capability, Migration, Parameter, Status};
use crate::monitor::call::Call;
use crate::monitor::fault::Fault;
use crate::monitor::table::{Command, Outcome, Place, arg, opt};
use crate::monitor::types::{Enum, Object, Ty, member, optional};
use serde_json::{Map, Value, json};
use std::fmt::Write;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// How often who waits for the end of a migration looks.
const LOOK: Duration = Duration::from_millis(50);

static CAPABILITIES: Enum =
    Enum { name: "MigrationCapability", values: &["events", "return-path", "pause-before-switchover"] };
static CAPABILITY: Object = Object::new(
    "MigrationCapabilityStatus",
    &[member("capability", Ty::Enum(&CAPABILITIES)), member("state", Ty::Bool)],
);
static PARAMETERS: Object =
    Object::new("MigrationParameters", &[optional("downtime-limit", Ty::Uint), optional("max-bandwidth", Ty::Uint)]);
static TRANSPORTS: Enum = Enum { name: "MigrationAddressType", values: &["socket", "exec", "file"] };
static SOCKET: Object = Object::new(
    "MigrationSocketAddress",
    &[
        member("type", Ty::Enum(&ADDRESS_KINDS)),
        optional("host", Ty::Str),
        optional("port", Ty::Str),
        optional("path", Ty::Str),
        optional("str", Ty::Str),
    ],
);
static EXEC: Object = Object::new("MigrationExecCommand", &[member("args", Ty::Array(&Ty::Str))]);
static FILE: Object = Object::new("FileMigrationArgs", &[member("filename", Ty::Str), member("offset", Ty::Uint)]);
static ADDRESS: Object = Object::new("MigrationAddress", &[member("transport", Ty::Enum(&TRANSPORTS))])
    .with("transport", &[("socket", &SOCKET), ("exec", &EXEC), ("file", &FILE)]);
static CHANNEL_TYPES: Enum = Enum { name: "MigrationChannelType", values: &["main"] };
static CHANNEL: Object = Object::new(
    "MigrationChannel",
    &[member("channel-type", Ty::Enum(&CHANNEL_TYPES)), member("addr", Ty::Object(&ADDRESS))],
);
/// States of a migration.
pub static STATES: Enum = Enum {
    name: "MigrationStatus",
    values: &["none", "setup", "cancelling", "cancelled", "active", "completed", "failed", "pre-switchover", "device"],
};
static RAM: Object = Object::new(
    "MigrationRAMStats",
    &[
        member("transferred", Ty::Int),
        member("remaining", Ty::Int),
        member("total", Ty::Int),
        member("duplicate", Ty::Int),
        member("normal", Ty::Int),
        member("normal-bytes", Ty::Int),
        member("dirty-pages-rate", Ty::Int),
        member("mbps", Ty::Any),
        member("dirty-sync-count", Ty::Int),
        member("postcopy-requests", Ty::Int),
        member("page-size", Ty::Int),
        member("multifd-bytes", Ty::Uint),
        member("pages-per-second", Ty::Uint),
        member("precopy-bytes", Ty::Uint),
        member("downtime-bytes", Ty::Uint),
        member("postcopy-bytes", Ty::Uint),
        member("dirty-sync-missed-zero-copy", Ty::Uint),
    ],
);
static INFO: Object = Object::new(
    "MigrationInfo",
    &[
        optional("status", Ty::Enum(&STATES)),
        optional("ram", Ty::Object(&RAM)),
        optional("total-time", Ty::Int),
        optional("downtime", Ty::Int),
        optional("setup-time", Ty::Int),
        optional("error-desc", Ty::Str),
        optional("socket-address", Ty::Array(&Ty::Object(&SOCKET))),
    ],
);

pub static TABLE: &[Command] = &[
    Command::both(
        "migrate",
        &["migrate"],
        "migrate to URI (using -d to not wait for completion): tcp:HOST:PORT, unix:PATH, fd:NAME, exec:COMMAND or \
         file:PATH[,offset=N]",
        migrate,
    )
    .args(&[
        opt("detach", Ty::Bool, Place::Flag('d')),
        opt("resume", Ty::Bool, Place::Flag('r')),
        opt("uri", Ty::Str, Place::Word),
        opt("channels", Ty::Array(&Ty::Object(&CHANNEL)), Place::Absent),
    ]),
    Command::both("migrate_cancel", &["migrate_cancel"], "cancel the current VM migration", |call| {
        call.host.migration().cancel();
        Ok(Value::Null)
    }),
    Command::both(
        "migrate-continue",
        &["migrate_continue"],
        "Continue migration from the given paused state",
        |call| {
            call.host.migration().go_on(call.word("state")?)?;
            Ok(Value::Null)
        },
    )
    .args(&[arg("state", Ty::Enum(&STATES), Place::Word)]),
    Command::both(
        "migrate-incoming",
        &["migrate_incoming"],
        "Continue an incoming migration from an -incoming defer",
        |call| {
            let exits = call.get("exit-on-error").and_then(Value::as_bool).unwrap_or(true);
            call.host.migrate_incoming(&address(call)?, exits)?;
            Ok(Value::Null)
        },
    )
    .args(&[
        opt("uri", Ty::Str, Place::Word),
        opt("channels", Ty::Array(&Ty::Object(&CHANNEL)), Place::Absent),
        opt("exit-on-error", Ty::Bool, Place::Absent),
    ]),
    Command::both(
        "query-migrate-capabilities",
        &["info migrate_capabilities"],
        "show current migration capabilities",
        |call| {
            let settings = call.host.migration().settings();
            let row = |(name, what)| json!({ "capability": name, "state": settings.has(what) });
            Ok(Capability::ALL.into_iter().map(row).collect())
        },
    )
    .returns(Ty::Array(&Ty::Object(&CAPABILITY)))
    .show(|list| {
        let line = |entry: &Value| {
            let state = if entry["state"] == true { "on" } else { "off" };
            format!("{}: {state}\n", entry["capability"].as_str().unwrap_or_default())
        };
        list.as_array().into_iter().flatten().map(line).collect()
    }),
    Command::qmp("migrate-set-capabilities", "Enable/Disable the usage of capabilities for migration", |call| {
        for entry in call.get("capabilities").and_then(Value::as_array).into_iter().flatten() {
            switch(call.host.migration(), entry["capability"].as_str().unwrap_or_default(), entry["state"] == true)?;
        }
        Ok(Value::Null)
    })
    .args(&[arg("capabilities", Ty::Array(&Ty::Object(&CAPABILITY)), Place::Absent)]),
    Command::hmp(&["migrate_set_capability"], "Enable/Disable the usage of a capability for migration", |call| {
        switch(call.host.migration(), call.word("capability")?, call.switch("state"))?;
        Ok(Value::Null)
    })
    .args(&[arg("capability", Ty::Str, Place::Word), arg("state", Ty::Bool, Place::Switch)]),
    Command::both(
        "query-migrate-parameters",
        &["info migrate_parameters"],
        "show current migration parameters",
        |call| {
            let settings = call.host.migration().settings();
            let row = |(name, what): (&str, Parameter)| (name.to_owned(), settings.number(what).into());
            Ok(Value::Object(Parameter::ALL.into_iter().map(row).collect::<Map<_, _>>()))
        },
    )
    .returns(Ty::Object(&PARAMETERS))
    .show(|map| {
        format!("max-bandwidth: {} bytes/second\ndowntime-limit: {} ms\n", map["max-bandwidth"], map["downtime-limit"])
    }),
    Command::qmp("migrate-set-parameters", "Set parameters for migration", |call| {
        for (name, parameter) in Parameter::ALL {
            if let Some(number) = call.number(name) {
                set(call.host.migration(), name, parameter, number)?;
            }
        }
        Ok(Value::Null)
    })
    .args(&[opt("downtime-limit", Ty::Uint, Place::Absent), opt("max-bandwidth", Ty::Uint, Place::Absent)]),
    Command::hmp(&["migrate_set_parameter"], "Set the parameter for migration", set_for_people)
        .args(&[arg("parameter", Ty::Str, Place::Word), arg("value", Ty::Str, Place::Word)]),
    Command::both("query-migrate", &["info migrate"], "show migration status", |call| {
        Ok(call.host.migration().describe())
    })
    .returns(Ty::Object(&INFO))
    .show(show),
];

fn address(call: &Call<'_>) -> Result<Address, Fault> {
    match (call.text("uri"), call.get("channels")) {
        (Some(uri), None) => Ok(Address::parse(uri)?),
        (None, Some(channels)) => Ok(Address::of_channels(channels)?),
        _ => Err("need either 'uri' or 'channels' argument".into()),
    }
}

fn migrate(call: &mut Call<'_>) -> Outcome {
    if call.switch("resume") {
        // Only one that goes on after the machine has left can be paused.
        return Err("Cannot resume if there is no paused migration".into());
    }
    call.host.migrate(address(call)?)?;
    if !call.people || call.switch("detach") {
        return Ok(Value::Null);
    }
    let migration = call.host.migration();
    while migration.status().under_way() {
        thread::sleep(LOOK);
    }
    match migration.error() {
        Some(why) => Err(Fault::new(why)),
        None => Ok(Value::Null),
    }
}

/// Nothing but rates changes while a machine moves.
fn idle(migration: &Migration) -> Result<(), Fault> {
    match migration.status().under_way() && migration.status() != Status::Setup {
        true => Err("There's a migration process in progress".into()),
        false => Ok(()),
    }
}

fn switch(migration: &Arc<Migration>, name: &str, on: bool) -> Result<(), Fault> {
    let found = Capability::ALL.into_iter().find(|(known, _)| *known == name);
    let (_, capability) = found.ok_or_else(|| Fault::new(format!("invalid parameter value: {name}")))?;
    idle(migration)?;
    migration.settle(|settings| settings.switch(capability, on));
    Ok(())
}

fn set(migration: &Arc<Migration>, name: &str, parameter: Parameter, number: u64) -> Result<(), Fault> {
    if number > parameter.most() {
        let most = parameter.most();
        return Err(Fault::new(format!("Parameter '{name}' expects an integer in the range of 0 to {most}")));
    }
    migration.settle(|settings| settings.set(parameter, number));
    Ok(())
}

fn set_for_people(call: &mut Call<'_>) -> Outcome {
    let (name, value) = (call.word("parameter")?, call.word("value")?);
    let found = Parameter::ALL.into_iter().find(|(known, _)| *known == name);
    let (name, parameter) = found.ok_or_else(|| Fault::new(format!("invalid parameter value: {name}")))?;
    let number = match parameter {
        Parameter::DowntimeLimit => value.parse().map_err(|_| Fault::new("Parameter 'value' expects uint64"))?,
        // Mebibytes, if nothing else is said.
        Parameter::MaxBandwidth => {
            values::size(value, 1 << 20).map_err(|_| Fault::new(format!("Invalid size {value}")))?
        }
    };
    set(call.host.migration(), name, parameter, number)?;
    Ok(Value::Null)
}

fn show(info: &Value) -> String {
    let mut text = String::new();
    let Some(status) = info["status"].as_str() else { return text };
    let why = info["error-desc"].as_str().map_or_else(String::new, |why| format!(" ({why})"));
    let _ = writeln!(text, "Migration status: {status}{why}");
    for (name, what) in [("total-time", "total time"), ("downtime", "downtime"), ("setup-time", "setup")] {
        if let Some(millis) = info[name].as_u64() {
            let _ = writeln!(text, "{what}: {millis} ms");
        }
    }
    let ram = &info["ram"];
    if ram.is_object() {
        let number = |name: &str| ram[name].as_u64().unwrap_or(0);
        let kib = |name: &str| number(name) >> 10;
        let _ = writeln!(text, "transferred ram: {} kbytes", kib("transferred"));
        let _ = writeln!(text, "throughput: {:.2} mbps", ram["mbps"].as_f64().unwrap_or(0.0));
        let _ = writeln!(text, "remaining ram: {} kbytes", kib("remaining"));
        let _ = writeln!(text, "total ram: {} kbytes", kib("total"));
        let _ = writeln!(text, "duplicate: {} pages", number("duplicate"));
        let _ = writeln!(text, "normal: {} pages", number("normal"));
        let _ = writeln!(text, "normal bytes: {} kbytes", kib("normal-bytes"));
        let _ = writeln!(text, "dirty sync count: {}", number("dirty-sync-count"));
        let _ = writeln!(text, "page size: {} kbytes", kib("page-size"));
        let _ = writeln!(text, "multifd bytes: 0 kbytes");
        let _ = writeln!(text, "pages-per-second: {}", number("pages-per-second"));
        let _ = writeln!(text, "precopy ram: {} kbytes", kib("precopy-bytes"));
    }
    text
}
