//! Types of arguments and answers: what is checked when a command comes in, and what `query-qmp-schema` tells.

use super::fault::Fault;
use serde_json::{Map, Value};

/// A type, in the terms of QMP's introspection.
#[derive(Debug)]
pub enum Ty {
    /// A string.
    Str,
    /// A signed integer of 64 bits.
    Int,
    /// An unsigned integer of 64 bits.
    Uint,
    /// A boolean.
    Bool,
    /// Any JSON value.
    Any,
    /// One of these words.
    Enum(&'static Enum),
    /// A list.
    Array(&'static Ty),
    /// An object.
    Object(&'static Object),
}

/// Words.
#[derive(Debug)]
pub struct Enum {
    /// Its name, unique among all types.
    pub name: &'static str,
    /// The words.
    pub values: &'static [&'static str],
}

/// Members with types.
#[derive(Debug)]
pub struct Object {
    /// Its name, unique among all types.
    pub name: &'static str,
    /// The members that it always may have.
    pub members: &'static [Member],
    /// More members, which depend on the value of one of those.
    pub union: Option<Union>,
}

/// Members that depend on another's value.
#[derive(Debug)]
pub struct Union {
    /// The member that decides.
    pub tag: &'static str,
    /// Its values, with what they add; others add nothing.
    pub cases: &'static [(&'static str, &'static Object)],
}

/// A member of an object, or an argument.
#[derive(Debug)]
pub struct Member {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub ty: Ty,
    /// It may be left out.
    pub optional: bool,
}

impl Object {
    /// An object with these members.
    pub const fn new(name: &'static str, members: &'static [Member]) -> Self {
        Self { name, members, union: None }
    }

    /// With more of them, as `tag` says.
    pub const fn with(self, tag: &'static str, cases: &'static [(&'static str, &'static Object)]) -> Self {
        Self { union: Some(Union { tag, cases }), ..self }
    }
}

/// A member that is always there.
pub const fn member(name: &'static str, ty: Ty) -> Member {
    Member { name, ty, optional: false }
}

/// A member that may be left out.
pub const fn optional(name: &'static str, ty: Ty) -> Member {
    Member { name, ty, optional: true }
}

impl Ty {
    /// The JSON type, as error messages call it.
    fn expected(&self) -> &'static str {
        match self {
            Ty::Str | Ty::Enum(_) => "string",
            Ty::Int | Ty::Uint => "integer",
            Ty::Bool => "boolean",
            Ty::Any => "any value",
            Ty::Array(_) => "array",
            Ty::Object(_) => "object",
        }
    }

    /// Whether `value` has the JSON type.
    fn is_kind_of(&self, value: &Value) -> bool {
        match self {
            Ty::Str | Ty::Enum(_) => value.is_string(),
            Ty::Int | Ty::Uint => value.is_i64() || value.is_u64(),
            Ty::Bool => value.is_boolean(),
            Ty::Any => true,
            Ty::Array(_) => value.is_array(),
            Ty::Object(_) => value.is_object(),
        }
    }

    /// Checks that `value`, which errors call `name`, is of this type.
    pub fn check(&self, name: &str, value: &Value) -> Result<(), Fault> {
        if !self.is_kind_of(value) {
            return Err(Fault::new(format!("Invalid parameter type for '{name}', expected: {}", self.expected())));
        }
        match (self, value) {
            (Ty::Uint, Value::Number(number)) if number.as_u64().is_none() => {
                Err(Fault::new(format!("Parameter '{name}' expects uint64")))
            }
            (Ty::Int, Value::Number(number)) if number.as_i64().is_none() => {
                Err(Fault::new(format!("Parameter '{name}' expects int64")))
            }
            (Ty::Enum(words), Value::String(word)) if !words.values.contains(&word.as_str()) => {
                // QEMU leaves the way to it out here, and here only.
                let name = name.rsplit('.').next().unwrap_or(name);
                Err(Fault::new(format!("Parameter '{name}' does not accept value '{word}'")))
            }
            (Ty::Array(of), Value::Array(values)) => {
                let mut numbered = values.iter().enumerate();
                numbered.try_for_each(|(i, value)| of.check(&format!("{name}[{i}]"), value))
            }
            (Ty::Object(object), Value::Object(map)) => object.check(&format!("{name}."), map),
            _ => Ok(()),
        }
    }
}

impl Object {
    /// Checks `map` against the members; errors put `prefix` before their names.
    pub fn check(&self, prefix: &str, map: &Map<String, Value>) -> Result<(), Fault> {
        let more = self.union.as_ref().and_then(|union| {
            let tag = map.get(union.tag)?.as_str()?;
            union.cases.iter().find(|(case, _)| *case == tag).map(|(_, object)| object.members)
        });
        let members = || self.members.iter().chain(more.unwrap_or_default());
        check_members(members, prefix, map)
    }
}

/// Checks `map` against `members`.
pub fn check_members<'a, I: Iterator<Item = &'a Member>>(
    members: impl Fn() -> I,
    prefix: &str,
    map: &Map<String, Value>,
) -> Result<(), Fault> {
    for member in members() {
        match map.get(member.name) {
            Some(value) => member.ty.check(&format!("{prefix}{}", member.name), value)?,
            None if member.optional => {}
            None => return Err(Fault::new(format!("Parameter '{prefix}{}' is missing", member.name))),
        }
    }
    match map.keys().find(|key| members().all(|member| member.name != key.as_str())) {
        Some(key) => Err(Fault::new(format!("Parameter '{prefix}{key}' is unexpected"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    static MODE: Enum = Enum { name: "Mode", values: &["a", "b"] };
    static MORE: Object = Object::new("More", &[member("depth", Ty::Uint)]);
    static THING: Object = Object::new("Thing", &[member("mode", Ty::Enum(&MODE)), optional("on", Ty::Bool)])
        .with("mode", &[("b", &MORE)]);

    fn check(ty: &Ty, value: Value) -> String {
        ty.check("x", &value).map_or_else(|fault| fault.desc, |()| "fine".to_owned())
    }

    #[test]
    fn values_fit_their_types_or_are_refused_by_name() {
        assert_eq!(check(&Ty::Str, json!("s")), "fine");
        assert_eq!(check(&Ty::Str, json!(1)), "Invalid parameter type for 'x', expected: string");
        assert_eq!(check(&Ty::Uint, json!(-1)), "Parameter 'x' expects uint64");
        assert_eq!(check(&Ty::Int, json!(u64::MAX)), "Parameter 'x' expects int64");
        assert_eq!(check(&Ty::Int, json!(1.5)), "Invalid parameter type for 'x', expected: integer");
        assert_eq!(
            check(&Ty::Array(&Ty::Bool), json!([true, 1])),
            "Invalid parameter type for 'x[1]', expected: boolean"
        );
    }

    #[test]
    fn objects_name_what_is_missing_and_what_is_too_much() {
        let thing = Ty::Object(&THING);
        assert_eq!(check(&thing, json!({"mode": "a"})), "fine");
        assert_eq!(check(&thing, json!({"mode": "c"})), "Parameter 'mode' does not accept value 'c'");
        assert_eq!(check(&thing, json!({})), "Parameter 'x.mode' is missing");
        assert_eq!(check(&thing, json!({"mode": "a", "depth": 1})), "Parameter 'x.depth' is unexpected");
        assert_eq!(check(&thing, json!({"mode": "b", "depth": 1, "on": false})), "fine");
        assert_eq!(check(&thing, json!({"mode": "b"})), "Parameter 'x.depth' is missing");
    }
}
