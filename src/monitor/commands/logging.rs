//! The log while the machine runs.

use crate::cli;
use crate::log;
use crate::monitor::call::Call;
use crate::monitor::fault::Fault;
use crate::monitor::table::{Command, Outcome, Place, arg, opt};
use crate::monitor::types::{Enum, Object, Ty, member};
use brolga_devices::trace;
use serde_json::{Value, json};

static STATES: Enum = Enum { name: "TraceEventState", values: &["unavailable", "disabled", "enabled"] };
static EVENT: Object = Object::new("TraceEventInfo", &[member("name", Ty::Str), member("state", Ty::Enum(&STATES))]);

pub static TABLE: &[Command] = &[
    Command::hmp(
        &["log"],
        "activate logging of the specified items (none: of nothing; without a list: what is logged)",
        items,
    )
    .args(&[opt("items", Ty::Str, Place::Word)]),
    Command::hmp(&["trace-event"], "changes status of a specific trace event", trace_event)
        .args(&[arg("name", Ty::Str, Place::Word), arg("option", Ty::Bool, Place::Switch)]),
    Command::hmp(&["info trace-events"], "show available trace-events & their state", |call| {
        let states = trace::states(call.text("name").unwrap_or("*"));
        Ok(states.into_iter().map(|(name, on)| format!("{name} : state {}\n", u8::from(on))).collect::<String>().into())
    })
    .args(&[opt("name", Ty::Str, Place::Word)]),
    Command::qmp("trace-event-get-state", "whether trace events are told", get_states)
        .args(&[arg("name", Ty::Str, Place::Absent)])
        .returns(Ty::Array(&Ty::Object(&EVENT))),
    Command::qmp("trace-event-set-state", "switches trace events on or off", set_states).args(&[
        arg("name", Ty::Str, Place::Absent),
        arg("enable", Ty::Bool, Place::Absent),
        opt("ignore-unavailable", Ty::Bool, Place::Absent),
    ]),
    Command::hmp(&["logfile"], "output logs to 'filename'", file).args(&[arg("filename", Ty::Str, Place::Word)]),
];

fn items(call: &mut Call<'_>) -> Outcome {
    match call.text("items") {
        None => {
            let on = log::enabled_items();
            let list = if on.is_empty() { "none".to_owned() } else { on.join(",") };
            Ok(format!("logged: {list}\n").into())
        }
        Some("help" | "?") => {
            let row = |(name, about): &(&str, &str)| format!("{name:<15} {about}\n");
            let rows: String = log::ITEMS.iter().map(row).collect();
            Ok(format!("Log items (comma separated):\n{:<15} remove all logs\n{rows}", "none").into())
        }
        Some("none") => {
            log::set_items(&[]);
            Ok(Value::Null)
        }
        Some(list) => {
            let (patterns, rest) = cli::split_traces(list);
            let items = cli::parse_log_items(&rest)?;
            for (pattern, on) in patterns {
                switch(&pattern, on)?;
            }
            log::set_items(&items);
            Ok(Value::Null)
        }
    }
}

fn unknown(name: &str) -> Fault {
    Fault::new(format!("unknown event \"{name}\""))
}

/// A name that is no pattern has to be one of an event.
fn switch(pattern: &str, on: bool) -> Result<(), Fault> {
    match trace::states(pattern).is_empty() && !pattern.contains(['*', '?']) {
        true => Err(unknown(pattern)),
        false => {
            trace::switch(pattern, on);
            Ok(())
        }
    }
}

fn trace_event(call: &mut Call<'_>) -> Outcome {
    switch(call.word("name")?, call.switch("option"))?;
    Ok(Value::Null)
}

fn get_states(call: &mut Call<'_>) -> Outcome {
    let name = call.word("name")?;
    let states = trace::states(name);
    if states.is_empty() && !name.contains(['*', '?']) {
        return Err(unknown(name));
    }
    let state = |(name, on)| json!({ "name": name, "state": if on { "enabled" } else { "disabled" } });
    Ok(states.into_iter().map(state).collect())
}

fn set_states(call: &mut Call<'_>) -> Outcome {
    switch(call.word("name")?, call.switch("enable"))?;
    Ok(Value::Null)
}

fn file(call: &mut Call<'_>) -> Outcome {
    let name = call.word("filename")?;
    let failed = |e: std::io::Error| Fault::new(format!("{name}: cannot be written: {}", cli::os_reason(&e)));
    log::set_file(name).map_err(failed)?;
    Ok(Value::Null)
}
