//! Network cards, their host ends, forwarded ports.

use super::about::text;
use crate::monitor::call::Call;
use crate::monitor::fault::{Class, Fault};
use crate::monitor::host::Topic;
use crate::monitor::table::{Command, Outcome, Place, arg};
use crate::monitor::types::Ty;
use serde_json::Value;

pub static TABLE: &[Command] = &[
    Command::hmp(&["info network"], "show the network state", |call| text(call, Topic::Network)),
    Command::hmp(&["info usernet"], "show user network stack connection states", |call| text(call, Topic::Usernet)),
    Command::hmp(
        &["hostfwd_add"],
        "[netdev_id] [tcp|udp]:[hostaddr]:hostport-[guestaddr]:guestport: redirect TCP or UDP connections from host to guest (port 0: a free one)",
        |call| forward(call, true),
    )
    .args(&[arg("rule", Ty::Str, Place::Rest)]),
    Command::hmp(
        &["hostfwd_remove"],
        "[netdev_id] [tcp|udp]:[hostaddr]:hostport: remove host-to-guest TCP or UDP redirection",
        |call| forward(call, false),
    )
    .args(&[arg("rule", Ty::Str, Place::Rest)]),
    Command::both("set_link", &["set_link"], "change the link status of a network adapter", set_link)
        .args(&[arg("name", Ty::Str, Place::Word), arg("up", Ty::Bool, Place::Switch)]),
];

fn forward(call: &mut Call<'_>, open: bool) -> Outcome {
    let words: Vec<&str> = call.word("rule")?.split_whitespace().collect();
    let answer = match words[..] {
        [rule] => call.host.forward(open, None, rule),
        [netdev, rule] => call.host.forward(open, Some(netdev), rule),
        _ => return Err("give a rule, like tcp::2222-:22, and before it the -netdev's id if there are several".into()),
    };
    Ok(answer?.into())
}

fn set_link(call: &mut Call<'_>) -> Outcome {
    let name = call.word("name")?;
    match call.host.set_link(name, call.switch("up")) {
        Ok(()) => Ok(Value::Null),
        Err(why) if call.people => Err(why.into()),
        Err(_) => Err(Fault::of(Class::DeviceNotFound, format!("Device '{name}' not found"))),
    }
}
