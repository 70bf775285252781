//! Introspection: what `query-qmp-schema` tells, made from the tables that commands and events come from.

use crate::monitor::events;
use crate::monitor::table::{self, Arg, Command, Place};
use crate::monitor::types::{Enum, Member, Object, Ty, optional};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

static CAPABILITY: Enum = Enum { name: "QMPCapability", values: &["oob"] };

/// Arguments of `qmp_capabilities`.
pub static CAPABILITIES: Object =
    Object::new("qmp_capabilities-arg", &[optional("enable", Ty::Array(&Ty::Enum(&CAPABILITY)))]);

/// Whether QMP has the argument: all but those whose form only makes sense on a line.
pub fn in_qmp(arg: &Arg) -> bool {
    !matches!(arg.place, Place::Format | Place::HmpRest)
}

/// Types by their names, numbered as they come up.
#[derive(Default)]
struct Schema {
    entries: Vec<Value>,
    names: BTreeMap<String, String>,
}

impl Schema {
    /// The number of the type called `name`, and whether it is new.
    fn number(&mut self, name: &str) -> (String, bool) {
        if let Some(known) = self.names.get(name) {
            return (known.clone(), false);
        }
        let number = self.names.len().to_string();
        self.names.insert(name.to_owned(), number.clone());
        (number, true)
    }

    fn builtin(&mut self, name: &str, json_type: &str) -> String {
        if self.names.insert(name.to_owned(), name.to_owned()).is_none() {
            self.entries.push(json!({ "name": name, "meta-type": "builtin", "json-type": json_type }));
        }
        name.to_owned()
    }

    fn ty(&mut self, ty: &Ty) -> String {
        match ty {
            Ty::Str => self.builtin("str", "string"),
            Ty::Int | Ty::Uint => self.builtin("int", "int"),
            Ty::Bool => self.builtin("bool", "boolean"),
            Ty::Any => self.builtin("any", "value"),
            Ty::Enum(words) => self.words(words),
            Ty::Array(of) => {
                let of = self.ty(of);
                let name = format!("[{of}]");
                if self.names.insert(name.clone(), name.clone()).is_none() {
                    self.entries.push(json!({ "name": name, "meta-type": "array", "element-type": of }));
                }
                name
            }
            Ty::Object(object) => self.object(object.name, object.members.iter(), Some(object)),
        }
    }

    fn words(&mut self, words: &Enum) -> String {
        let (name, new) = self.number(words.name);
        if new {
            let members: Vec<Value> = words.values.iter().map(|value| json!({ "name": value })).collect();
            self.entries.push(json!({ "name": name, "meta-type": "enum", "values": words.values, "members": members }));
        }
        name
    }

    fn object<'a>(&mut self, name: &str, members: impl Iterator<Item = &'a Member>, object: Option<&Object>) -> String {
        let (name, new) = self.number(name);
        if !new {
            return name;
        }
        let members: Vec<Value> = members
            .map(|member| {
                let mut entry = Map::new();
                entry.insert("name".into(), member.name.into());
                entry.insert("type".into(), self.ty(&member.ty).into());
                if member.optional {
                    entry.insert("default".into(), Value::Null);
                }
                Value::Object(entry)
            })
            .collect();
        let mut entry = json!({ "name": name, "meta-type": "object", "members": members });
        if let Some(union) = object.and_then(|object| object.union.as_ref()) {
            let case = |schema: &mut Self, case: &str, object: &Object| json!({ "case": case, "type": schema.object(object.name, object.members.iter(), Some(object)) });
            let variants: Vec<Value> = union.cases.iter().map(|(name, object)| case(self, name, object)).collect();
            entry["tag"] = union.tag.into();
            entry["variants"] = variants.into();
        }
        self.entries.push(entry);
        name
    }

    fn empty(&mut self) -> String {
        self.object("q_empty", [].into_iter(), None)
    }

    fn command(&mut self, name: &str, arguments: String, command: Option<&Command>) {
        let returns = match command.and_then(|command| command.returns.as_ref()) {
            Some(ty) => self.ty(ty),
            None => self.empty(),
        };
        let entry = json!({
            "name": name, "meta-type": "command", "arg-type": arguments, "ret-type": returns, "allow-oob": false,
        });
        self.entries.push(entry);
    }
}

/// The whole answer.
pub fn schema() -> Value {
    let mut schema = Schema::default();
    let arguments = schema.object(CAPABILITIES.name, CAPABILITIES.members.iter(), None);
    schema.command("qmp_capabilities", arguments, None);
    for command in table::all() {
        let Some(name) = command.qmp else { continue };
        let mut members = command.args.iter().filter(|arg| in_qmp(arg)).map(|arg| &arg.member).peekable();
        let arguments = match members.peek() {
            None => schema.empty(),
            Some(_) => schema.object(&format!("{name}-arg"), members, None),
        };
        schema.command(name, arguments, Some(command));
    }
    for kind in events::KINDS {
        let data = match kind.data {
            Some(object) => schema.object(object.name, object.members.iter(), Some(object)),
            None => schema.empty(),
        };
        schema.entries.push(json!({ "name": kind.name, "meta-type": "event", "arg-type": data }));
    }
    Value::Array(schema.entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// Every name that an entry refers to.
    fn references(entry: &Value) -> Vec<&str> {
        let direct = ["element-type", "arg-type", "ret-type"].into_iter().filter_map(|key| entry[key].as_str());
        let lists = ["members", "variants"].into_iter().filter_map(|key| entry[key].as_array()).flatten();
        direct.chain(lists.filter_map(|member| member["type"].as_str())).collect()
    }

    #[test]
    fn every_name_resolves_and_is_declared_once() {
        let schema = schema();
        let entries = schema.as_array().unwrap();
        let names: Vec<&str> = entries.iter().map(|entry| entry["name"].as_str().unwrap()).collect();
        let unique: HashSet<&str> = names.iter().copied().collect();
        assert_eq!(names.len(), unique.len());
        for entry in entries {
            for name in references(entry) {
                assert!(unique.contains(name), "{entry} refers to {name}");
            }
        }
        let commands = entries.iter().filter(|entry| entry["meta-type"] == "command").count();
        assert_eq!(commands, 1 + table::all().filter(|command| command.qmp.is_some()).count());
    }

    #[test]
    fn two_types_never_share_a_name() {
        fn visit(ty: &Ty, seen: &mut BTreeMap<&'static str, *const ()>) {
            match ty {
                Ty::Array(of) => visit(of, seen),
                Ty::Object(object) => visit_object(object, seen),
                Ty::Enum(words) => {
                    let at = std::ptr::from_ref(*words).cast();
                    assert_eq!(*seen.entry(words.name).or_insert(at), at, "{}", words.name);
                }
                _ => {}
            }
        }
        fn visit_object(object: &'static Object, seen: &mut BTreeMap<&'static str, *const ()>) {
            let at = std::ptr::from_ref(object).cast();
            if let Some(known) = seen.insert(object.name, at) {
                assert_eq!(known, at, "{}", object.name);
                return;
            }
            object.members.iter().for_each(|member| visit(&member.ty, seen));
            let cases = object.union.iter().flat_map(|union| union.cases);
            cases.for_each(|(_, object)| visit_object(object, seen));
        }
        let mut seen = BTreeMap::new();
        for command in table::all() {
            command.args.iter().for_each(|arg| visit(&arg.member.ty, &mut seen));
            command.returns.iter().for_each(|ty| visit(ty, &mut seen));
        }
    }
}
