//! Processors: registers, models, interrupts, page tables.

use super::about::{processor, text};
use crate::monitor::call::Call;
use crate::monitor::fault::{Class, Fault};
use crate::monitor::host::Topic;
use crate::monitor::paging;
use crate::monitor::table::{Command, Outcome, Place, arg, opt};
use crate::monitor::types::{Enum, Object, Ty, member, optional};
use brolga_jit::cpuid::{self, CpuModel, Topology};
use serde_json::{Map, Value, json};

static ARCHES: Enum = Enum { name: "SysEmuTarget-cpu", values: &["x86_64"] };
static PROPS: Object = Object::new(
    "CpuInstanceProperties",
    &[
        optional("node-id", Ty::Int),
        optional("socket-id", Ty::Int),
        optional("die-id", Ty::Int),
        optional("core-id", Ty::Int),
        optional("thread-id", Ty::Int),
    ],
);
static CPU: Object = Object::new(
    "CpuInfoFast",
    &[
        member("cpu-index", Ty::Int),
        member("qom-path", Ty::Str),
        member("thread-id", Ty::Int),
        optional("props", Ty::Object(&PROPS)),
        member("target", Ty::Enum(&ARCHES)),
    ],
);
static SLOT: Object = Object::new(
    "HotpluggableCPU",
    &[
        member("type", Ty::Str),
        member("vcpus-count", Ty::Int),
        member("props", Ty::Object(&PROPS)),
        optional("qom-path", Ty::Str),
    ],
);
static DEFINITION: Object = Object::new(
    "CpuDefinitionInfo",
    &[
        member("name", Ty::Str),
        optional("migration-safe", Ty::Bool),
        member("static", Ty::Bool),
        optional("unavailable-features", Ty::Array(&Ty::Str)),
        member("typename", Ty::Str),
        optional("alias-of", Ty::Str),
        member("deprecated", Ty::Bool),
    ],
);
static MODEL: Object = Object::new("CpuModelInfo", &[member("name", Ty::Str), optional("props", Ty::Any)]);
static EXPANSION: Object = Object::new("CpuModelExpansionInfo", &[member("model", Ty::Object(&MODEL))]);
static EXPANSION_TYPES: Enum = Enum { name: "CpuModelExpansionType", values: &["static", "full"] };

pub static TABLE: &[Command] = &[
    Command::both("query-cpus-fast", &["info cpus"], "show infos for each CPU", query_cpus)
        .returns(Ty::Array(&Ty::Object(&CPU)))
        .show(show_cpus),
    Command::both(
        "query-hotpluggable-cpus",
        &["info hotpluggable-cpus"],
        "show information about hotpluggable CPUs",
        slots,
    )
    .returns(Ty::Array(&Ty::Object(&SLOT)))
    .show(show_slots),
    Command::qmp("query-cpu-definitions", "processor models", definitions).returns(Ty::Array(&Ty::Object(&DEFINITION))),
    Command::qmp("query-cpu-model-expansion", "features of a processor model", expansion)
        .args(&[
            arg("type", Ty::Enum(&EXPANSION_TYPES), Place::Absent),
            arg("model", Ty::Object(&MODEL), Place::Absent),
        ])
        .returns(Ty::Object(&EXPANSION)),
    Command::hmp(&["cpu"], "set the default CPU", set_cpu).args(&[arg("index", Ty::Int, Place::LastNumber)]),
    Command::hmp(&["info registers"], "show the cpu registers (-a: show register info for all cpus)", registers)
        .args(&[opt("all", Ty::Bool, Place::Flag('a')), opt("vcpu", Ty::Int, Place::Number)]),
    Command::hmp(&["info mem"], "show the active virtual memory mappings", |call| mappings(call, paging::areas)),
    Command::hmp(&["info tlb"], "show virtual to physical memory mappings", |call| mappings(call, paging::pages)),
    Command::hmp(&["gva2gpa"], "print the guest physical address corresponding to a guest virtual address", gva2gpa)
        .args(&[arg("addr", Ty::Int, Place::LastNumber)]),
    Command::hmp(&["info jit"], "show dynamic compiler info", |call| text(call, Topic::Jit)),
    Command::hmp(&["info pic"], "show PIC state", |call| text(call, Topic::Pic)),
    Command::hmp(&["info irq"], "show the interrupts statistics (if available)", |call| text(call, Topic::Irq)),
    Command::hmp(
        &["info lapic"],
        "show local apic state (apic-id: local apic to read, default is which of current CPU)",
        lapic,
    )
    .args(&[opt("apic-id", Ty::Int, Place::LastNumber)]),
];

/// Where a processor is.
fn props(topology: Topology, cpu: u32) -> Value {
    let Topology { dies, cores, threads, .. } = topology;
    let (thread, core) = (cpu % threads, cpu / threads % cores);
    let (die, socket) = (cpu / threads / cores % dies, cpu / threads / cores / dies);
    let mut props = json!({ "socket-id": socket, "core-id": core, "thread-id": thread });
    if dies > 1 {
        props["die-id"] = die.into();
    }
    props
}

/// Where the object tree has a processor.
pub fn path(cpu: u32) -> String {
    format!("/machine/unattached/device[{cpu}]")
}

fn typename(name: &str) -> String {
    format!("{name}-x86_64-cpu")
}

fn query_cpus(call: &mut Call<'_>) -> Outcome {
    let topology = call.facts.config.topology;
    let threads = call.host.thread_ids();
    // The processor that the session looks at is marked in HMP.
    let chosen = call.state.cpu;
    let cpu = |(cpu, thread): (u32, i32)| {
        let mut info = json!({
            "cpu-index": cpu, "qom-path": call.host.processor_path(cpu).unwrap_or_else(|| path(cpu)), "thread-id": thread, "props": props(topology, cpu), "target": "x86_64",
        });
        if call.people {
            info["current"] = (cpu == chosen).into();
        }
        info
    };
    Ok(threads.into_iter().map(cpu).collect())
}

fn show_cpus(cpus: &Value) -> String {
    let line = |cpu: &Value| {
        let mark = if cpu["current"] == true { '*' } else { ' ' };
        format!("{mark} CPU #{}: thread_id={}\n", cpu["cpu-index"], cpu["thread-id"])
    };
    cpus.as_array().map_or_else(String::new, |cpus| cpus.iter().map(line).collect())
}

fn slots(call: &mut Call<'_>) -> Outcome {
    let config = &call.facts.config;
    let there: Vec<u32> = call.host.thread_ids().into_iter().map(|(cpu, _)| cpu).collect();
    let slot = |cpu: u32| {
        let mut slot = json!({
            "type": typename(&config.cpu.name), "vcpus-count": 1, "props": props(config.topology, cpu),
        });
        if there.contains(&cpu) {
            slot["qom-path"] = call.host.processor_path(cpu).unwrap_or_else(|| path(cpu)).into();
        }
        slot
    };
    let most = config.topology.processors().min(if there.is_empty() { 0 } else { u32::MAX });
    // The last one first, as QEMU has it.
    Ok((0..most).rev().map(slot).collect())
}

fn show_slots(slots: &Value) -> String {
    let mut text = String::from("Hotpluggable CPUs:\n");
    for slot in slots.as_array().into_iter().flatten() {
        text += &format!("  type: {}\n  vcpus_count: \"{}\"\n", slot["type"], slot["vcpus-count"]);
        if let Some(path) = slot.get("qom-path") {
            text += &format!("  qom_path: {path}\n");
        }
        text += "  CPUInstance Properties:\n";
        for key in ["socket-id", "die-id", "core-id", "thread-id"] {
            if let Some(value) = slot["props"].get(key) {
                text += &format!("    {key}: \"{value}\"\n");
            }
        }
    }
    text
}

fn definitions(_: &mut Call<'_>) -> Outcome {
    let definition = |name| {
        json!({
            "name": name,
            "typename": typename(name),
            "unavailable-features": [],
            "static": false,
            "migration-safe": true,
            "deprecated": false,
        })
    };
    Ok(cpuid::model_names().map(definition).collect())
}

/// The features of `model` by name.
pub fn features(model: &CpuModel) -> Map<String, Value> {
    cpuid::feature_names().map(|(name, feature)| (name.to_owned(), model.has(feature).into())).collect()
}

fn expansion(call: &mut Call<'_>) -> Outcome {
    let model = call.get("model").and_then(Value::as_object).cloned().unwrap_or_default();
    let name = model.get("name").and_then(Value::as_str).unwrap_or_default();
    let mut spec = name.to_owned();
    if cpuid::plain_model(name).is_none() {
        let why = format!("The CPU type '{}' is not a recognized CPU type", typename(name));
        return Err(Fault::of(Class::GenericError, why));
    }
    for (feature, value) in model.get("props").and_then(Value::as_object).into_iter().flatten() {
        let on = match value {
            Value::Bool(on) => *on,
            _ => {
                return Err(Fault::new(format!(
                    "Invalid parameter type for 'model.props.{feature}', expected: boolean"
                )));
            }
        };
        spec += &format!(",{feature}={}", if on { "on" } else { "off" });
    }
    let expanded = cpuid::parse(&spec)?;
    let mut props = features(&expanded);
    let signature = expanded.signature();
    let (family, extended) = (signature >> 8 & 15, signature >> 20 & 0xff);
    props.insert("family".into(), (if family == 15 { family + extended } else { family }).into());
    props.insert("model".into(), (signature >> 4 & 15 | signature >> 12 & 0xf0).into());
    props.insert("stepping".into(), (signature & 15).into());
    props.insert("vendor".into(), expanded.vendor().into());
    props.insert("model-id".into(), expanded.brand_name().into());
    Ok(json!({ "model": { "name": name, "props": props } }))
}

fn set_cpu(call: &mut Call<'_>) -> Outcome {
    let cpu = processor(call, "index").map_err(|_| {
        let last = call.host.cpus().saturating_sub(1);
        Fault::new(format!("invalid CPU index; the last one is {last}"))
    })?;
    call.state.cpu = cpu;
    Ok(Value::Null)
}

fn registers(call: &mut Call<'_>) -> Outcome {
    let which = match (call.switch("all"), call.number("vcpu")) {
        (true, _) => call.host.thread_ids().into_iter().map(|(cpu, _)| cpu).collect(),
        (false, Some(_)) => vec![processor(call, "vcpu")?],
        (false, None) => vec![call.state.cpu],
    };
    let mut out = String::new();
    for cpu in which {
        let dump = call.host.register_dump(cpu).ok_or_else(|| format!("there is no processor {cpu}"))?;
        out += &format!("\nCPU#{cpu}\n{}\n", dump.trim_end());
    }
    Ok(out.into())
}

fn mappings(call: &mut Call<'_>, show: fn(&paging::Tables<'_>) -> String) -> Outcome {
    let registers = call.registers().ok_or("there is no such processor")?;
    let read = |gpa: u64, entry: &mut [u8]| call.host.read_physical(gpa, entry);
    Ok(show(&paging::Tables { registers: &registers, read: &read }).into())
}

fn gva2gpa(call: &mut Call<'_>) -> Outcome {
    let linear = call.needed("addr")?;
    Ok(match call.host.translate(call.state.cpu, linear) {
        Some(gpa) => format!("gpa: {gpa:#x}\n").into(),
        None => "Unmapped\n".into(),
    })
}

fn lapic(call: &mut Call<'_>) -> Outcome {
    let cpu = match call.number("apic-id") {
        None => call.state.cpu,
        Some(id) => {
            let topology = call.facts.config.topology;
            let cpu = (0..call.host.cpus()).find(|cpu| u64::from(topology.apic_id(*cpu)) == id);
            cpu.ok_or_else(|| Fault::new(format!("No local APIC with ID {id}")))?
        }
    };
    Ok(call.host.local_apic(cpu).ok_or("there is no such processor")?.into())
}
