//! Descriptors that clients hand over: by name, and in numbered sets that stand for files.

use crate::monitor::call::Call;
use crate::monitor::fault::Fault;
use crate::monitor::table::{Command, Outcome, Place, arg, opt};
use crate::monitor::types::{Object, Ty, member, optional};
use brolga::descriptors;
use serde_json::{Value, json};
use std::os::fd::OwnedFd;

static ADDED: Object = Object::new("AddfdInfo", &[member("fdset-id", Ty::Int), member("fd", Ty::Int)]);
static MEMBER: Object = Object::new("FdsetFdInfo", &[member("fd", Ty::Int), optional("opaque", Ty::Str)]);
static SET: Object =
    Object::new("FdsetInfo", &[member("fdset-id", Ty::Int), member("fds", Ty::Array(&Ty::Object(&MEMBER)))]);

pub static TABLE: &[Command] = &[
    Command::both("getfd", &["getfd"], "receive a file descriptor via SCM rights and assign it a name", get)
        .args(&[arg("fdname", Ty::Str, Place::Word)]),
    Command::both("closefd", &["closefd"], "close a file descriptor previously passed via SCM rights", |call| {
        let name = call.word("fdname")?;
        match descriptors::take(name) {
            Some(_) => Ok(Value::Null),
            None => Err(Fault::new(format!("File descriptor named '{name}' not found"))),
        }
    })
    .args(&[arg("fdname", Ty::Str, Place::Word)]),
    Command::qmp("add-fd", "add a descriptor that came along to a set: /dev/fdset/N stands for its file", add)
        .args(&[opt("fdset-id", Ty::Int, Place::Absent), opt("opaque", Ty::Str, Place::Absent)])
        .returns(Ty::Object(&ADDED)),
    Command::qmp("remove-fd", "take a descriptor out of a set, or the set away", remove)
        .args(&[arg("fdset-id", Ty::Int, Place::Absent), opt("fd", Ty::Int, Place::Absent)]),
    Command::qmp("query-fdsets", "the sets of descriptors", |_| {
        let shown = |(number, about): (i32, Option<String>)| match about {
            Some(about) => json!({ "fd": number, "opaque": about }),
            None => json!({ "fd": number }),
        };
        let set = |(number, members): descriptors::Set| {
            let members: Value = members.into_iter().map(shown).collect();
            json!({ "fdset-id": number, "fds": members })
        };
        Ok(descriptors::sets().into_iter().map(set).collect())
    })
    .returns(Ty::Array(&Ty::Object(&SET))),
];

/// The descriptor that came with the command.
fn handed(call: &Call<'_>) -> Result<OwnedFd, Fault> {
    (call.descriptor)().ok_or_else(|| "No file descriptor supplied via SCM_RIGHTS".into())
}

fn get(call: &mut Call<'_>) -> Outcome {
    let descriptor = handed(call)?;
    let name = call.word("fdname")?;
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err("Parameter 'fdname' expects a name not starting with a digit".into());
    }
    descriptors::keep(name, descriptor);
    Ok(Value::Null)
}

fn add(call: &mut Call<'_>) -> Outcome {
    let descriptor = handed(call)?;
    let set = call.get("fdset-id").and_then(Value::as_i64).map(u64::try_from).transpose();
    let set = set.map_err(|_| Fault::new("Parameter 'fdset-id' expects a non-negative value"))?;
    let (set, number) = descriptors::put(set, call.text("opaque").map(str::to_owned), descriptor);
    Ok(json!({ "fdset-id": set, "fd": number }))
}

fn remove(call: &mut Call<'_>) -> Outcome {
    let of = |name: &str| call.get(name).and_then(Value::as_i64);
    let (set, member) = (of("fdset-id").unwrap_or(-1), of("fd"));
    if u64::try_from(set).is_ok_and(|set| descriptors::remove(set, member)) {
        return Ok(Value::Null);
    }
    let member = member.map_or_else(String::new, |number| format!(", fd:{number}"));
    Err(Fault::new(format!("File descriptor named 'fdset-id:{set}{member}' not found")))
}
