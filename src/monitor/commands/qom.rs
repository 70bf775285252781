//! The machine as a tree of objects with properties, as far as clients walk it: devices of the command line with what was
//! given for them, processors with their features, host ends.

use super::about::machine_name;
use super::processors::{self, features};
use crate::cli::config::MachineKind;
use crate::cli::{model_keys, model_names, object_keys, values};
use crate::monitor::call::Call;
use crate::monitor::fault::{Class, Fault};
use crate::monitor::table::{Command, Outcome, Place, arg, opt};
use crate::monitor::types::{Object, Ty, member, optional};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

static PROPERTY: Object = Object::new(
    "ObjectPropertyInfo",
    &[
        member("name", Ty::Str),
        member("type", Ty::Str),
        optional("description", Ty::Str),
        optional("default-value", Ty::Any),
    ],
);
static KIND: Object = Object::new(
    "ObjectTypeInfo",
    &[member("name", Ty::Str), optional("abstract", Ty::Bool), optional("parent", Ty::Str)],
);

pub static TABLE: &[Command] = &[
    Command::both("qom-list", &["qom-list"], "list QOM properties", list)
        .args(&[arg("path", Ty::Str, Place::Word)])
        .returns(Ty::Array(&Ty::Object(&PROPERTY)))
        .show(show_list),
    Command::both("qom-get", &["qom-get"], "print QOM property", get)
        .args(&[arg("path", Ty::Str, Place::Word), arg("property", Ty::Str, Place::Word)])
        .returns(Ty::Any)
        .show(|value| serde_json::to_string_pretty(value).unwrap_or_default() + "\n"),
    Command::qmp("qom-set", "set a property of an object", |call| {
        let value = call.get("value").cloned().unwrap_or_default();
        set(call, &value)
    })
    .args(&[
        arg("path", Ty::Str, Place::Absent),
        arg("property", Ty::Str, Place::Absent),
        arg("value", Ty::Any, Place::Absent),
    ]),
    Command::hmp(&["qom-set"], "set QOM property. -j: the value is specified in json format", set_for_people).args(&[
        opt("json", Ty::Bool, Place::Flag('j')),
        arg("path", Ty::Str, Place::Word),
        arg("property", Ty::Str, Place::Word),
        arg("value", Ty::Str, Place::Rest),
    ]),
    Command::qmp("qom-list-types", "types of objects", list_types)
        .args(&[opt("implements", Ty::Str, Place::Absent), opt("abstract", Ty::Bool, Place::Absent)])
        .returns(Ty::Array(&Ty::Object(&KIND))),
    Command::qmp("device-list-properties", "properties of a type of devices", device_properties)
        .args(&[arg("typename", Ty::Str, Place::Absent)])
        .returns(Ty::Array(&Ty::Object(&PROPERTY))),
    Command::qmp("qom-list-properties", "properties of a type of objects", object_properties)
        .args(&[arg("typename", Ty::Str, Place::Absent)])
        .returns(Ty::Array(&Ty::Object(&PROPERTY))),
    Command::hmp(&["info qom-tree"], "show QOM composition tree", tree).args(&[opt("path", Ty::Str, Place::Word)]),
];

/// What becomes of attempts to set an object's properties.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Nature {
    /// They cannot be set.
    #[default]
    Fixed,
    /// They could be until it was in its place.
    Device,
    /// They could be until it was made.
    Object,
}

/// An object: its type, its properties, and what is in it.
#[derive(Default)]
struct Node {
    kind: String,
    nature: Nature,
    /// Properties that can be set.
    writable: Vec<&'static str>,
    properties: BTreeMap<String, Value>,
    children: Vec<(String, Node)>,
}

impl Node {
    fn of(kind: &str) -> Self {
        Self { kind: kind.to_owned(), ..Self::default() }
    }

    fn child(mut self, name: impl Into<String>, node: Node) -> Self {
        self.children.push((name.into(), node));
        self
    }

    fn with(mut self, properties: impl IntoIterator<Item = (String, Value)>) -> Self {
        self.properties.extend(properties);
        self
    }

    fn find(&self, path: &str) -> Option<&Node> {
        let mut parts = path.split('/').filter(|part| !part.is_empty());
        parts.try_fold(self, |node, part| node.children.iter().find(|(name, _)| name == part).map(|(_, child)| child))
    }

    /// Names and types of all properties.
    fn list(&self) -> Value {
        let own = self.properties.iter().map(|(name, value)| json!({ "name": name, "type": type_of(value) }));
        let children =
            self.children.iter().map(|(name, node)| json!({ "name": name, "type": format!("child<{}>", node.kind) }));
        std::iter::once(json!({ "name": "type", "type": "string" })).chain(own).chain(children).collect()
    }

    fn show(&self, name: &str, depth: usize, out: &mut String) {
        *out += &format!("{:indent$}/{name} ({})\n", "", self.kind, indent = 2 * depth);
        self.children.iter().for_each(|(name, child)| child.show(name, depth + 1, out));
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Bool(_) => "bool",
        Value::Number(_) => "int",
        Value::String(_) => "str",
        Value::Object(_) => "struct",
        _ => "any",
    }
}

/// What every device has.
fn device(kind: &str, properties: Map<String, Value>) -> Node {
    let common = [("realized", true), ("hotplugged", false), ("hotpluggable", false)];
    let node = Node::of(kind).with(common.map(|(name, on)| (name.to_owned(), on.into()))).with(properties);
    Node { nature: Nature::Device, ..node }
}

/// A value as it was written: on and off are switches, numbers numbers.
fn value(text: &str) -> Value {
    match text {
        "on" | "true" | "yes" => true.into(),
        "off" | "false" | "no" => false.into(),
        _ => text.parse::<i64>().map_or_else(|_| text.into(), Value::from),
    }
}

/// The whole tree.
fn root(call: &Call<'_>) -> Node {
    let config = &call.facts.config;
    let (mut named, mut nameless, mut own) = (Node::of("container"), Node::of("container"), Node::of("container"));
    for spec in call.host.device_list() {
        let properties = spec.keys.iter().map(|(key, text)| (key.clone(), value(text))).collect();
        let moves = [("hotplugged".to_owned(), spec.late.into()), ("hotpluggable".to_owned(), spec.movable.into())];
        let live = call.host.live_properties(&spec.path);
        let mut node = device(spec.model, properties).with(moves);
        node.writable = live.iter().filter(|live| live.writable).map(|live| live.name).collect();
        let node = node.with(live.into_iter().map(|live| (live.name.to_owned(), live.value)));
        if let Some(id) = spec.path.strip_prefix("/machine/peripheral/") {
            named = named.child(id, node);
        } else if let Some(name) = spec.path.strip_prefix("/machine/peripheral-anon/") {
            nameless = nameless.child(name, node);
        }
    }
    let own_processors = call.host.thread_ids().into_iter().filter(|(cpu, _)| call.host.processor_path(*cpu).is_none());
    for _ in own_processors {
        let name = format!("device[{}]", own.children.len());
        own = own.child(name, device(&format!("{}-x86_64-cpu", config.cpu.name), features(&config.cpu)));
    }
    for (_, model) in call.host.devices() {
        let name = format!("device[{}]", own.children.len());
        own = own.child(name, device(model, Map::new()));
    }
    for drive in call.host.drives() {
        let path = drive.path.unwrap_or_default();
        if let Some(name) = path.strip_prefix("/machine/unattached/") {
            let properties = Map::from_iter([("drive".to_owned(), drive.name.into())]);
            own = own.child(name, device(drive.model, properties));
        }
    }
    let board = match config.machine.kind {
        MachineKind::Pc => machine_name(),
        MachineKind::None => "none".to_owned(),
    };
    let machine =
        machine(call, &board).child("peripheral", named).child("peripheral-anon", nameless).child("unattached", own);
    let chardevs = call.facts.chars().list().into_iter().fold(Node::of("container"), |node, info| {
        let filename = ("filename".to_owned(), info.filename.into());
        node.child(info.label, Node::of("chardev").with([filename]))
    });
    let mut objects = Node::of("container");
    if config.memory.is_none() {
        objects = objects.child("pc.ram", guest_memory(call));
    }
    for (id, kind, properties) in call.host.object_list() {
        let properties = properties.into_iter().map(|(key, text)| (key.to_owned(), value(&text)));
        objects = objects.child(id, Node { nature: Nature::Object, ..Node::of(kind).with(properties) });
    }
    Node::of("container").child("machine", machine).child("objects", objects).child("chardevs", chardevs)
}

/// The board with its properties, without what is on it.
fn machine(call: &Call<'_>, board: &str) -> Node {
    let config = &call.facts.config;
    let text = |path: &Option<std::path::PathBuf>| path.as_ref().map_or_else(String::new, |p| p.display().to_string());
    Node::of(&format!("{board}-machine")).with([
        ("kernel".to_owned(), text(&config.boot.kernel).into()),
        ("initrd".to_owned(), text(&config.boot.initrd).into()),
        ("append".to_owned(), config.boot.append.as_str().into()),
        ("firmware".to_owned(), text(&config.boot.bios).into()),
        ("hpet".to_owned(), config.machine.hpet.into()),
        ("acpi".to_owned(), if config.machine.acpi { "on" } else { "off" }.into()),
        ("unpack-kernel".to_owned(), config.machine.unpack_kernel.into()),
        ("graphics".to_owned(), (!config.nographic).into()),
        ("memory".to_owned(), json!({ "size": config.ram, "max-size": config.ram, "slots": 0 })),
        ("smp".to_owned(), topology(call)),
    ])
}

/// Kinds of memory that clients ask about. libvirt 9.0 dereferences a null pointer where the first is not known.
const MEMORY: [&str; 3] = ["memory-backend-file", "memory-backend-memfd", "memory-backend-ram"];

/// The guest's memory.
fn guest_memory(call: &Call<'_>) -> Node {
    let size = call.facts.config.ram;
    Node::of("memory-backend-memfd").with([("size".to_owned(), size.into()), ("share".to_owned(), true.into())])
}

fn topology(call: &Call<'_>) -> Value {
    let topology = call.facts.config.topology;
    let processors = topology.processors();
    json!({
        "cpus": call.facts.config.processors, "sockets": topology.sockets, "dies": topology.dies, "cores": topology.cores,
        "threads": topology.threads, "maxcpus": processors,
    })
}

fn not_found(path: &str) -> Fault {
    Fault::of(Class::DeviceNotFound, format!("Device '{path}' not found"))
}

/// The object at `path`: from the root, or the name of a device, as in QEMU.
fn resolve<'a>(root: &'a Node, path: &str) -> Result<&'a Node, Fault> {
    let found = match path.starts_with('/') {
        true => root.find(path),
        false => root.find("machine/peripheral").and_then(|devices| devices.find(path)).or_else(|| root.find(path)),
    };
    found.ok_or_else(|| not_found(path))
}

fn list(call: &mut Call<'_>) -> Outcome {
    let root = root(call);
    Ok(resolve(&root, call.word("path")?)?.list())
}

fn show_list(list: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let line = |entry: &Value| format!("{} ({})\n", text(&entry["name"]), text(&entry["type"]));
    list.as_array().into_iter().flatten().map(line).collect()
}

fn get(call: &mut Call<'_>) -> Outcome {
    let root = root(call);
    let path = call.word("path")?;
    let (node, property) = (resolve(&root, path)?, call.word("property")?);
    if property == "type" {
        return Ok(node.kind.as_str().into());
    }
    if node.children.iter().any(|(name, _)| name == property) {
        return Ok(format!("{}/{property}", path.trim_end_matches('/')).into());
    }
    let value = node.properties.get(property).cloned();
    value.ok_or_else(|| Fault::new(format!("Property '{}.{property}' not found", node.kind)))
}

fn invalid(property: &str, expected: &str) -> Fault {
    Fault::new(format!("Invalid parameter type for '{property}', expected: {expected}"))
}

/// Sets a property, or says in QEMU's words why it cannot be.
fn set(call: &mut Call<'_>, value: &Value) -> Outcome {
    let root = root(call);
    let (path, property) = (call.word("path")?, call.word("property")?);
    let node = resolve(&root, path)?;
    let kind = &node.kind;
    let fixed = || Fault::new(format!("Property '{kind}.{property}' is not writable"));
    if node.writable.contains(&property) {
        // Devices are known by their names too.
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/machine/peripheral/{path}") };
        call.host.set_property(path.trim_end_matches('/'), property, value)?;
        return Ok(Value::Null);
    }
    let known = node.properties.contains_key(property);
    let child = node.children.iter().any(|(name, _)| name == property);
    let key = || model_keys(kind).is_some_and(|keys| keys.iter().any(|(key, _)| *key == property));
    match (property, node.nature) {
        ("realized", Nature::Device) => match value.as_bool() {
            Some(true) => Ok(Value::Null),
            Some(false) => Err(format!("'{path}' stays realized: take it away with device_del").into()),
            None => Err(invalid(property, "boolean")),
        },
        ("type" | "hotplugged" | "hotpluggable" | "guest-stats", _) if known || property == "type" => Err(fixed()),
        (_, Nature::Device) if !child && (known || key()) => {
            let name = path.rsplit('/').next().unwrap_or_default();
            let named = !path.starts_with('/') || path.starts_with("/machine/peripheral/");
            let device = if named { format!("device '{name}'") } else { "anonymous device".to_owned() };
            Err(format!("Attempt to set property '{property}' on {device} (type '{kind}') after it was realized")
                .into())
        }
        (_, Nature::Object) if known => Err(Fault::new(format!("Property '{property}' can no longer be set"))),
        _ if known || child => Err(fixed()),
        _ => Err(Fault::new(format!("Property '{kind}.{property}' not found"))),
    }
}

/// The same; what people write is of the type that the property has.
fn set_for_people(call: &mut Call<'_>) -> Outcome {
    let text = call.word("value")?.to_owned();
    if call.switch("json") {
        let value = serde_json::from_str(&text).map_err(|error| Fault::new(format!("JSON parse error, {error}")))?;
        return set(call, &value);
    }
    let property = call.word("property")?.to_owned();
    let now = resolve(&root(call), call.word("path")?)?.properties.get(&property).cloned();
    let value = match now {
        Some(Value::Number(_)) => {
            let number = text.parse::<i64>();
            number.map_err(|_| Fault::new(format!("Parameter '{property}' expects int64")))?.into()
        }
        Some(Value::Bool(_)) => {
            let on = values::switch(&text);
            on.map_err(|_| Fault::new(format!("Parameter '{property}' expects 'on' or 'off'")))?.into()
        }
        _ => Value::from(text),
    };
    set(call, &value)
}

fn list_types(call: &mut Call<'_>) -> Outcome {
    // Types with what they are kinds of.
    let devices = model_names().map(|name| (name.to_owned(), "device"));
    let processors = brolga_jit::cpuid::model_names().map(|name| (format!("{name}-x86_64-cpu"), "x86_64-cpu"));
    let machines = [(format!("{}-machine", machine_name()), "machine"), ("none-machine".to_owned(), "machine")];
    // What QEMU calls running code by translation: `-accel tcg` is taken too.
    let accelerator = ("tcg-accel".to_owned(), "accel");
    let implements: &[&str] = match call.text("implements") {
        None | Some("object") => &["device", "x86_64-cpu", "machine", "accel"],
        Some("device") => &["device", "x86_64-cpu"],
        Some("cpu" | "x86_64-cpu") => &["x86_64-cpu"],
        Some("machine") => &["machine"],
        Some("accel") => &["accel"],
        Some(other) => {
            return Ok(if model_names().any(|n| n == other) {
                json!([{ "name": other, "parent": "device" }])
            } else {
                json!([])
            });
        }
    };
    let all = devices.chain(processors).chain(machines).chain([accelerator]);
    let wanted = all.filter(|(_, parent)| implements.contains(parent));
    Ok(wanted.map(|(name, parent)| json!({ "name": name, "parent": parent })).collect())
}

fn device_properties(call: &mut Call<'_>) -> Outcome {
    let name = call.word("typename")?;
    if let Some(cpu) = name.strip_suffix("-x86_64-cpu") {
        let model = brolga_jit::cpuid::plain_model(cpu).ok_or_else(|| not_found(name))?;
        let property = |(name, on): (String, Value)| json!({ "name": name, "type": "bool", "default-value": on });
        return Ok(processors::features(&model).into_iter().map(property).collect());
    }
    let keys = model_keys(name).ok_or_else(|| not_found(name))?;
    let property = |(key, about): &(&str, &str)| json!({ "name": key, "type": "str", "description": about });
    Ok(keys.iter().map(property).collect())
}

fn object_properties(call: &mut Call<'_>) -> Outcome {
    let name = call.word("typename")?.to_owned();
    if let Some(board) = name.strip_suffix("-machine")
        && (board == machine_name() || board == "none")
    {
        let kind = |(name, value): (&String, &Value)| json!({ "name": name, "type": type_of(value) });
        return Ok(machine(call, board).properties.iter().map(kind).collect());
    }
    if MEMORY.contains(&name.as_str()) {
        let memory = guest_memory(call);
        let kind = |(name, value): (&String, &Value)| json!({ "name": name, "type": type_of(value) });
        return Ok(memory.properties.iter().map(kind).collect());
    }
    if let Some(keys) = object_keys(&name) {
        return Ok(keys.iter().map(|key| json!({ "name": key, "type": "str" })).collect());
    }
    let unknown = |_| Fault::of(Class::DeviceNotFound, format!("Class '{name}' not found"));
    device_properties(call).map_err(unknown)
}

fn tree(call: &mut Call<'_>) -> Outcome {
    let root = root(call);
    let path = call.text("path").unwrap_or("/machine");
    let node = resolve(&root, path)?;
    let mut text = String::new();
    node.show(path.trim_matches('/'), 0, &mut text);
    Ok(text.into())
}
