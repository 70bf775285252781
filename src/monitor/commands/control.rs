//! Running, stopping, resetting and ending the machine.

use crate::cli::config::{Actions, RebootAction, ShutdownAction};
use crate::cli::{PANIC_ACTIONS, WATCHDOG_ACTIONS};
use crate::monitor::Commands;
use crate::monitor::call::{After, Call};
use crate::monitor::events::WATCHDOG_ACTIONS as WATCHDOG;
use crate::monitor::fault::Fault;
use crate::monitor::host::{Control, RunState};
use crate::monitor::table::{Command, Outcome, Place, arg, opt};
use crate::monitor::types::{Enum, Object, Ty, member};
use serde_json::{Value, json};

static RUN_STATES: Enum = Enum {
    name: "RunState",
    values: &[
        "debug",
        "inmigrate",
        "internal-error",
        "io-error",
        "paused",
        "postmigrate",
        "prelaunch",
        "finish-migrate",
        "restore-vm",
        "running",
        "save-vm",
        "shutdown",
        "suspended",
        "watchdog",
        "guest-panicked",
        "colo",
    ],
};
static STATUS: Object =
    Object::new("StatusInfo", &[member("running", Ty::Bool), member("status", Ty::Enum(&RUN_STATES))]);
static REBOOT: Enum = Enum { name: "RebootAction", values: &["reset", "shutdown"] };
static SHUTDOWN: Enum = Enum { name: "ShutdownAction", values: &["poweroff", "pause"] };
static PANIC: Enum = Enum { name: "PanicAction", values: &["pause", "shutdown", "exit-failure", "none"] };

pub static TABLE: &[Command] = &[
    Command::both("query-status", &["info status"], "show the current VM status (running|paused)", query_status)
        .returns(Ty::Object(&STATUS))
        .show(show_status),
    Command::both("quit", &["quit", "q"], "quit the emulator", |call| {
        call.after = Some(After::Quit);
        Ok(Value::Null)
    }),
    Command::both("stop", &["stop", "s"], "stop emulation", |call| control(call, Control::Stop)),
    Command::both("cont", &["cont", "c"], "resume emulation", cont),
    Command::both("system_reset", &["system_reset"], "reset the system", |call| control(call, Control::Reset)),
    Command::both("system_powerdown", &["system_powerdown"], "send system power down event", |call| {
        control(call, Control::PowerButton)
    }),
    Command::both("system_wakeup", &["system_wakeup"], "wakeup guest from suspend", |_| {
        // The board has no sleeping state that a guest could be in.
        Err("Unable to wake up: guest is not in suspended state".into())
    }),
    Command::both("inject-nmi", &["nmi"], "inject an NMI", |call| control(call, Control::Nmi)),
    Command::qmp("set-action", "what is done at reboots, shutdowns, crashes and when the watchdog bites", set_action)
        .args(&[
            opt("reboot", Ty::Enum(&REBOOT), Place::Absent),
            opt("shutdown", Ty::Enum(&SHUTDOWN), Place::Absent),
            opt("panic", Ty::Enum(&PANIC), Place::Absent),
            opt("watchdog", Ty::Enum(&WATCHDOG), Place::Absent),
        ]),
    Command::both("watchdog-set-action", &["watchdog_action"], "change watchdog action", watchdog).args(&[arg(
        "action",
        Ty::Enum(&WATCHDOG),
        Place::Word,
    )]),
    Command::hmp(&["gdbserver"], "start gdbserver on given device (default 'tcp::1234')", gdbserver).args(&[opt(
        "device",
        Ty::Str,
        Place::Word,
    )]),
    Command::hmp(&["boot_set"], "define new values for the boot device list", boot_set).args(&[arg(
        "bootdevice",
        Ty::Str,
        Place::Word,
    )]),
];

fn control(call: &mut Call<'_>, what: Control) -> Outcome {
    call.host.control(what);
    Ok(Value::Null)
}

fn cont(call: &mut Call<'_>) -> Outcome {
    if call.host.run_state() == RunState::Shutdown {
        return Err("Resetting the Virtual Machine is required".into());
    }
    call.host.cont()?;
    Ok(Value::Null)
}

fn query_status(call: &mut Call<'_>) -> Outcome {
    let state = call.host.run_state();
    Ok(json!({ "status": state.name(), "running": state == RunState::Running }))
}

fn show_status(status: &Value) -> String {
    let name = status["status"].as_str().unwrap_or_default();
    let detail = if matches!(name, "paused" | "running") { String::new() } else { format!(" ({name})") };
    let running = if status["running"] == true { "running" } else { "paused" };
    format!("VM status: {running}{detail}\n")
}

fn named<T: Copy>(known: &[(&str, T)], word: &str) -> Result<T, Fault> {
    let found = known.iter().find(|(name, _)| *name == word).map(|(_, action)| *action);
    found.ok_or_else(|| Fault::new(format!("invalid parameter value: {word}")))
}

fn set_action(call: &mut Call<'_>) -> Outcome {
    let mut actions = call.host.actions();
    let Actions { reboot, shutdown, panic, watchdog } = &mut actions;
    if let Some(word) = call.text("reboot") {
        *reboot = if word == "reset" { RebootAction::Reset } else { RebootAction::Shutdown };
    }
    if let Some(word) = call.text("shutdown") {
        *shutdown = if word == "pause" { ShutdownAction::Pause } else { ShutdownAction::PowerOff };
    }
    if let Some(word) = call.text("panic") {
        *panic = named(PANIC_ACTIONS, word)?;
    }
    if let Some(word) = call.text("watchdog") {
        *watchdog = named(WATCHDOG_ACTIONS, word)?;
    }
    call.host.set_actions(actions);
    Ok(Value::Null)
}

fn watchdog(call: &mut Call<'_>) -> Outcome {
    let watchdog = named(WATCHDOG_ACTIONS, call.word("action")?)?;
    let actions = Actions { watchdog, ..call.host.actions() };
    call.host.set_actions(actions);
    Ok(Value::Null)
}

fn gdbserver(call: &mut Call<'_>) -> Outcome {
    let device = call.text("device").unwrap_or("tcp::1234");
    call.host.start_debugger(device, Commands::new(call.facts.clone()))?;
    Ok(match device {
        "none" => "Disabled gdbserver\n".into(),
        _ => format!("Waiting for gdb connection on device '{device}'\n").into(),
    })
}

fn boot_set(call: &mut Call<'_>) -> Outcome {
    let order = call.word("bootdevice")?;
    if let Some(letter) = order.chars().find(|letter| !matches!(letter, 'a'..='d' | 'n'..='p')) {
        return Err(Fault::new(format!("Invalid boot device '{letter}'")));
    }
    call.host.set_boot_order(order);
    Ok(format!("boot device list now set to {order}\n").into())
}
