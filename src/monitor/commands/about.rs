//! What the program and the machine are, and what there is to ask.

use crate::cli::{self, values};
use crate::monitor::call::{Call, State};
use crate::monitor::events;
use crate::monitor::fault::Fault;
use crate::monitor::qmp::{self, schema};
use crate::monitor::table::{self, Command, Outcome, Place, arg, opt};
use crate::monitor::types::{Enum, Object, Ty, member, optional};
use crate::monitor::{hmp, host::Topic};
use serde_json::{Value, json};

static TRIPLE: Object =
    Object::new("VersionTriple", &[member("major", Ty::Int), member("minor", Ty::Int), member("micro", Ty::Int)]);
static VERSION: Object = Object::new("VersionInfo", &[member("qemu", Ty::Object(&TRIPLE)), member("package", Ty::Str)]);
static NAME: Object = Object::new("NameInfo", &[optional("name", Ty::Str)]);
static UUID: Object = Object::new("UuidInfo", &[member("UUID", Ty::Str)]);
static KVM: Object = Object::new("KvmInfo", &[member("enabled", Ty::Bool), member("present", Ty::Bool)]);
static ARCHES: Enum = Enum { name: "SysEmuTarget", values: &["x86_64"] };
static TARGET: Object = Object::new("TargetInfo", &[member("arch", Ty::Enum(&ARCHES))]);
static COMMAND: Object = Object::new("CommandInfo", &[member("name", Ty::Str)]);
static EVENT: Object = Object::new("EventInfo", &[member("name", Ty::Str)]);
static MACHINE: Object = Object::new(
    "MachineInfo",
    &[
        member("name", Ty::Str),
        optional("alias", Ty::Str),
        optional("is-default", Ty::Bool),
        member("cpu-max", Ty::Int),
        member("hotpluggable-cpus", Ty::Bool),
        member("numa-mem-supported", Ty::Bool),
        member("deprecated", Ty::Bool),
        optional("default-cpu-type", Ty::Str),
        optional("default-ram-id", Ty::Str),
        member("acpi", Ty::Bool),
    ],
);
static CURRENT: Object = Object::new("CurrentMachineParams", &[member("wakeup-suspend-support", Ty::Bool)]);
static PARAMETER_TYPES: Enum =
    Enum { name: "CommandLineParameterType", values: &["string", "boolean", "number", "size"] };
static PARAMETER: Object = Object::new(
    "CommandLineParameterInfo",
    &[
        member("name", Ty::Str),
        member("type", Ty::Enum(&PARAMETER_TYPES)),
        optional("help", Ty::Str),
        optional("default", Ty::Str),
    ],
);
static OPTION: Object = Object::new(
    "CommandLineOptionInfo",
    &[member("option", Ty::Str), member("parameters", Ty::Array(&Ty::Object(&PARAMETER)))],
);
static SCHEMA_ENTRY: Ty = Ty::Any;

pub static TABLE: &[Command] = &[
    Command::hmp(&["help", "?"], "show the help", show_help).args(&[opt("cmd", Ty::Str, Place::Rest)]),
    Command::hmp(&["info"], "show various information about the system state", |_| Ok(hmp::help(Some("info"))?.into())),
    Command::both("query-version", &["info version"], "show the version", |_| Ok(qmp::version()))
        .returns(Ty::Object(&VERSION))
        .show(show_version),
    Command::both("query-name", &["info name"], "show the current VM name", query_name)
        .returns(Ty::Object(&NAME))
        .show(|answer| answer["name"].as_str().map_or_else(String::new, |name| format!("{name}\n"))),
    Command::both("query-uuid", &["info uuid"], "show the current VM UUID", query_uuid)
        .returns(Ty::Object(&UUID))
        .show(|answer| format!("{}\n", answer["UUID"].as_str().unwrap_or_default())),
    Command::both("query-kvm", &["info kvm"], "show KVM information", |_| {
        Ok(json!({ "enabled": false, "present": false }))
    })
    .returns(Ty::Object(&KVM))
    .show(|_| "kvm support: not compiled\n".to_owned()),
    Command::qmp("query-target", "the guest's architecture", |_| Ok(json!({ "arch": "x86_64" })))
        .returns(Ty::Object(&TARGET)),
    Command::qmp("query-commands", "names of all QMP commands", |_| {
        let names = table::all().filter_map(|command| command.qmp).chain(["qmp_capabilities"]);
        Ok(names.map(|name| json!({ "name": name })).collect())
    })
    .returns(Ty::Array(&Ty::Object(&COMMAND))),
    Command::qmp("query-events", "names of all events", |_| {
        Ok(events::KINDS.iter().map(|kind| json!({ "name": kind.name })).collect())
    })
    .returns(Ty::Array(&Ty::Object(&EVENT))),
    Command::qmp("query-qmp-schema", "types of all commands and events", |_| Ok(schema::schema()))
        .returns(Ty::Array(&SCHEMA_ENTRY)),
    Command::qmp("human-monitor-command", "run a command of the monitor for people", human)
        .args(&[arg("command-line", Ty::Str, Place::Absent), opt("cpu-index", Ty::Int, Place::Absent)])
        .returns(Ty::Str),
    Command::both("query-tpm", &["info tpm"], "show the TPM device", |_| Ok(json!([])))
        .returns(Ty::Array(&Ty::Any))
        .show(nothing),
    Command::qmp("query-tpm-models", "models of security chips that there are", |_| Ok(json!([])))
        .returns(Ty::Array(&Ty::Str)),
    Command::qmp("query-tpm-types", "what security chips may be on the host", |_| Ok(json!([])))
        .returns(Ty::Array(&Ty::Str)),
    Command::both("query-iothreads", &["info iothreads"], "show iothreads", |_| Ok(json!([])))
        .returns(Ty::Array(&Ty::Any))
        .show(nothing),
    Command::both("query-memory-devices", &["info memory-devices"], "show memory devices", |_| Ok(json!([])))
        .returns(Ty::Array(&Ty::Any))
        .show(nothing),
    Command::hmp(&["info numa"], "show NUMA information", |_| Ok("0 nodes\n".into())),
    Command::qmp("query-machines", "boards", query_machines).returns(Ty::Array(&Ty::Object(&MACHINE))),
    Command::qmp("query-current-machine", "what this board can do", |_| Ok(json!({ "wakeup-suspend-support": false })))
        .returns(Ty::Object(&CURRENT)),
    Command::qmp("query-command-line-options", "options of the command line with their keys", query_options)
        .args(&[opt("option", Ty::Str, Place::Absent)])
        .returns(Ty::Array(&Ty::Object(&OPTION))),
    Command::hmp(&["info history"], "show the command line history", history),
    Command::hmp(&["info roms"], "show roms", |call| text(call, Topic::Roms)),
];

/// There is none of it.
fn nothing(_: &Value) -> String {
    String::new()
}

/// Text that the machine has about `topic`.
pub fn text(call: &Call<'_>, topic: Topic) -> Outcome {
    Ok(call.host.inspect(topic).ok_or("not available on this machine")?.into())
}

fn show_help(call: &mut Call<'_>) -> Outcome {
    Ok(hmp::help(call.text("cmd"))?.into())
}

fn show_version(version: &Value) -> String {
    let qemu = &version["qemu"];
    let package = version["package"].as_str().unwrap_or_default();
    format!("{}.{}.{} ({package})\n", qemu["major"], qemu["minor"], qemu["micro"])
}

fn query_name(call: &mut Call<'_>) -> Outcome {
    Ok(call.facts.config.name.as_ref().map_or_else(|| json!({}), |name| json!({ "name": name })))
}

fn query_uuid(call: &mut Call<'_>) -> Outcome {
    Ok(json!({ "UUID": values::show_uuid(&call.facts.config.uuid.unwrap_or_default()) }))
}

fn human(call: &mut Call<'_>) -> Outcome {
    let line = call.word("command-line")?;
    let cpu = call.get("cpu-index").map_or(Ok(0), |_| processor(call, "cpu-index"))?;
    let mut state = State { cpu, ..State::default() };
    let text = hmp::run(call.host, call.facts, &mut state, line);
    Ok(text.replace('\n', "\r\n").into())
}

/// The processor that the argument `name` gives the number of.
pub fn processor(call: &Call<'_>, name: &str) -> Result<u32, Fault> {
    let number = call.number(name).and_then(|number| u32::try_from(number).ok());
    let number = number.filter(|number| *number < call.host.cpus());
    number.ok_or_else(|| Fault::new(format!("Parameter '{name}' expects a CPU number")))
}

fn query_machines(call: &mut Call<'_>) -> Outcome {
    // Which processor is the default is left out: libvirt looks for it among the models that it knows, and `max` is none of
    // them.
    let of = |name: &str| {
        json!({
            "name": name,
            "cpu-max": 255,
            "hotpluggable-cpus": name != "none",
            "numa-mem-supported": false,
            "deprecated": false,
            "default-ram-id": "pc.ram",
            "acpi": call.facts.config.machine.acpi,
        })
    };
    let mut pc = of(&machine_name());
    pc["alias"] = "pc".into();
    pc["is-default"] = true.into();
    let mut none = of("none");
    for (key, value) in [("cpu-max", 1.into()), ("acpi", false.into())] {
        none[key] = value;
    }
    if let Some(none) = none.as_object_mut() {
        none.remove("default-ram-id");
    }
    Ok(json!([pc, none]))
}

/// What QEMU calls this board in its present version.
pub fn machine_name() -> String {
    let mut numbers = cli::QEMU_VERSION.split('.');
    let mut next = || numbers.next().unwrap_or("0");
    format!("pc-i440fx-{}.{}", next(), next())
}

/// What QEMU calls an option in its list.
fn listed(name: &'static str) -> &'static str {
    match name {
        "m" => "memory",
        "smp" => "smp-opts",
        "boot" => "boot-opts",
        name => name,
    }
}

fn query_options(call: &mut Call<'_>) -> Outcome {
    let wanted = call.text("option");
    let keys = cli::option_keys();
    let described = |name: &'static str| {
        let kind = |switch: bool| if switch { "boolean" } else { "string" };
        let parameters = keys.get(name).into_iter().flatten();
        let parameters: Value = parameters.map(|(key, switch)| json!({ "name": key, "type": kind(*switch) })).collect();
        (listed(name), parameters)
    };
    let options: Vec<Value> = cli::option_names()
        .map(described)
        .filter(|(name, _)| wanted.is_none_or(|wanted| wanted == *name))
        .map(|(name, parameters)| json!({ "option": name, "parameters": parameters }))
        .collect();
    match wanted {
        Some(wanted) if options.is_empty() => Err(Fault::new(format!("invalid option name: {wanted}"))),
        _ => Ok(options.into()),
    }
}

fn history(call: &mut Call<'_>) -> Outcome {
    let lines = call.state.history.iter().enumerate();
    Ok(lines.map(|(i, line)| format!("{i}: '{line}'\n")).collect::<String>().into())
}
