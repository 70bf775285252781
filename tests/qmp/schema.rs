//! Introspection: it resolves, and what queries answer is what it says. Their members are those of QEMU's answers.

use super::harness::{Client, Machine};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

type Schema = BTreeMap<String, Value>;

fn schema(client: &mut Client) -> Schema {
    let entries = client.run("query-qmp-schema", json!({})).expect("a schema");
    let entries = entries.as_array().expect("a list").clone();
    let count = entries.len();
    let by_name: Schema = entries.into_iter().map(|e| (e["name"].as_str().expect("a name").to_owned(), e)).collect();
    assert_eq!(by_name.len(), count, "names are unique");
    by_name
}

/// Checks `value` against the type called `name`; `at` is where it came from.
fn check(schema: &Schema, name: &str, value: &Value, at: &str) {
    let ty = schema.get(name).unwrap_or_else(|| panic!("{at}: no type {name}"));
    let fits = match (ty["meta-type"].as_str().expect("a kind"), ty["json-type"].as_str()) {
        ("builtin", Some("string")) => value.is_string(),
        ("builtin", Some("int")) => value.is_i64() || value.is_u64(),
        ("builtin", Some("boolean")) => value.is_boolean(),
        ("builtin", Some("value")) => true,
        ("enum", _) => ty["values"].as_array().expect("values").contains(value),
        ("array", _) => {
            let of = ty["element-type"].as_str().expect("a type");
            let items = value.as_array().unwrap_or_else(|| panic!("{at}: {value}"));
            items.iter().enumerate().for_each(|(i, item)| check(schema, of, item, &format!("{at}[{i}]")));
            true
        }
        ("object", _) => {
            let members = ty["members"].as_array().expect("members");
            let map = value.as_object().unwrap_or_else(|| panic!("{at}: {value}"));
            for member in members {
                let (key, of) = (member["name"].as_str().expect("a name"), member["type"].as_str().expect("a type"));
                match map.get(key) {
                    Some(value) => check(schema, of, value, &format!("{at}.{key}")),
                    None => assert!(member.get("default").is_some(), "{at}.{key} is missing"),
                }
            }
            let known = |key: &str| members.iter().any(|member| member["name"] == key);
            map.keys().for_each(|key| assert!(known(key), "{at}.{key} is not in the schema"));
            true
        }
        (other, json) => panic!("{at}: {other} {json:?}"),
    };
    assert!(fits, "{at}: {value} is no {ty}");
}

fn resolve(schema: &Schema, name: &str, seen: &mut BTreeSet<String>) {
    if !seen.insert(name.to_owned()) {
        return;
    }
    let entry = schema.get(name).unwrap_or_else(|| panic!("no type {name}"));
    for key in ["arg-type", "ret-type", "element-type"] {
        entry[key].as_str().into_iter().for_each(|name| resolve(schema, name, seen));
    }
    for key in ["members", "variants"] {
        let types = entry[key].as_array().into_iter().flatten().filter_map(|member| member["type"].as_str());
        types.for_each(|name| resolve(schema, name, seen));
    }
}

/// A machine with something of everything.
fn furnished(name: &str) -> Machine {
    let devices = "-netdev user,id=n0 -device e1000,netdev=n0,id=card -device virtio-balloon-pci -device virtio-rng-pci,id=r0 \
                   -device ide-cd -serial null -smp 2 -name box";
    let arguments: Vec<&str> = devices.split_whitespace().collect();
    let disk = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("qmp-{name}.img"));
    std::fs::write(&disk, vec![0; 1 << 20]).expect("an image");
    let drive = format!("file={},if=virtio,id=hd0,format=raw", disk.display());
    Machine::start(name, &[&["-S", "-drive", &drive], &arguments[..]].concat())
}

#[test]
fn everything_resolves_and_answers_are_as_told() {
    let machine = furnished("schema");
    let mut client = machine.client();
    let schema = schema(&mut client);
    let mut seen = BTreeSet::new();
    schema.keys().for_each(|name| resolve(&schema, name, &mut seen));
    assert_eq!(seen.len(), schema.len());
    let commands = client.run("query-commands", json!({})).unwrap();
    let mut asked = 0;
    for command in commands.as_array().expect("a list") {
        let name = command["name"].as_str().expect("a name");
        let entry = &schema[name];
        assert_eq!(entry["meta-type"], "command", "{name}");
        let arguments = &schema[entry["arg-type"].as_str().expect("a type")];
        let all_optional = arguments["members"].as_array().expect("members").iter().all(|m| m.get("default").is_some());
        if name.starts_with("query-") && all_optional {
            let answer = client.run(name, json!({})).unwrap_or_else(|e| panic!("{name}: {e:?}"));
            check(&schema, entry["ret-type"].as_str().expect("a type"), &answer, name);
            asked += 1;
        }
    }
    assert!(asked > 30, "{asked}");
    let with_arguments = [
        ("qom-list", json!({ "path": "/machine" })),
        ("device-list-properties", json!({ "typename": "e1000" })),
        ("query-cpu-model-expansion", json!({ "type": "full", "model": { "name": "qemu64" } })),
        ("query-command-line-options", json!({ "option": "drive" })),
        ("human-monitor-command", json!({ "command-line": "info version" })),
    ];
    for (name, arguments) in with_arguments {
        let entry = &schema[name];
        check(&schema, entry["arg-type"].as_str().expect("a type"), &arguments, name);
        let answer = client.run(name, arguments).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        check(&schema, entry["ret-type"].as_str().expect("a type"), &answer, name);
    }
    for event in client.run("query-events", json!({})).unwrap().as_array().expect("a list") {
        assert_eq!(schema[event["name"].as_str().expect("a name")]["meta-type"], "event");
    }
}

/// Paths of all members in `value`.
fn members(value: &Value, at: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            let path = format!("{at}.{key}");
            members(value, &path, found);
            found.insert(path);
        }),
        Value::Array(items) => items.iter().for_each(|item| members(item, &format!("{at}[]"), found)),
        _ => {}
    }
}

/// The members that QEMU 10.0.2 answers with on such a machine, recorded in `qemu-members.txt`, a query in each line.
#[test]
fn answers_have_qemus_members() {
    let machine = furnished("members");
    let mut client = machine.client();
    let mut compared = 0;
    for line in include_str!("qemu-members.txt").lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split_whitespace().map(str::to_owned);
        let query = words.next().expect("a query");
        let expected: BTreeSet<String> = words.collect();
        let answer = client.run(&query, json!({})).unwrap_or_else(|e| panic!("{query}: {e:?}"));
        let mut found = BTreeSet::new();
        members(&answer, "", &mut found);
        assert_eq!(found, expected, "{query}");
        compared += 1;
    }
    assert!(compared > 20);
}

#[test]
fn options_tell_their_keys() {
    let machine = Machine::start("options", &["-S"]);
    let mut client = machine.client();
    let mut keys = |option: &str| {
        let answer = client.run("query-command-line-options", json!({ "option": option })).expect("an option");
        assert_eq!(answer[0]["option"], option);
        answer[0]["parameters"].as_array().expect("a list").clone()
    };
    let has = |keys: &[Value], name: &str, kind: &str| keys.contains(&json!({ "name": name, "type": kind }));
    assert!(has(&keys("chardev"), "server", "boolean") && has(&keys("chardev"), "logfile", "string"));
    assert!(has(&keys("machine"), "memory-backend", "string") && has(&keys("smp-opts"), "cores", "string"));
    assert!(has(&keys("boot-opts"), "strict", "boolean") && keys("kernel").is_empty());
    let unknown = client.run("query-command-line-options", json!({ "option": "zz" })).unwrap_err();
    assert_eq!(unknown.1, "invalid option name: zz");
}
