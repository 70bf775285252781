//! The log while the machine runs.

use crate::cli;
use crate::log;
use crate::monitor::call::Call;
use crate::monitor::fault::Fault;
use crate::monitor::table::{Command, Outcome, Place, arg, opt};
use crate::monitor::types::Ty;
use serde_json::Value;
use std::path::Path;

pub static TABLE: &[Command] = &[
    Command::hmp(
        &["log"],
        "activate logging of the specified items (none: of nothing; without a list: what is logged)",
        items,
    )
    .args(&[opt("items", Ty::Str, Place::Word)]),
    Command::hmp(&["logfile"], "output logs to 'filename'", file).args(&[arg("filename", Ty::Str, Place::Word)]),
];

fn items(call: &mut Call<'_>) -> Outcome {
    match call.text("items") {
        None => {
            let on = log::enabled_items();
            let list = if on.is_empty() { "none".to_owned() } else { on.join(",") };
            Ok(format!("logged: {list}\n").into())
        }
        Some("none") => {
            log::set_items(&[]);
            Ok(Value::Null)
        }
        Some(list) => {
            log::set_items(&cli::parse_log_items(list)?);
            Ok(Value::Null)
        }
    }
}

fn file(call: &mut Call<'_>) -> Outcome {
    let name = call.word("filename")?;
    let failed = |e: std::io::Error| Fault::new(format!("{name}: cannot be written: {}", cli::os_reason(&e)));
    log::set_file(Path::new(name)).map_err(failed)?;
    Ok(Value::Null)
}
