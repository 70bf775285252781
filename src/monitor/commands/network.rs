//! Network cards, their host ends, forwarded ports.

use super::about::text;
use crate::monitor::call::Call;
use crate::monitor::fault::{Class, Fault};
use crate::monitor::host::Topic;
use crate::monitor::table::{Command, Outcome, Place, arg, opt};
use crate::monitor::types::{Enum, Object, Ty, member};
use brolga_devices::services::{Reception, Wanted};
use serde_json::{Value, json};

static STATES: Enum = Enum { name: "RxState", values: &["normal", "none", "all"] };
static FILTER: Object = Object::new(
    "RxFilterInfo",
    &[
        member("name", Ty::Str),
        member("promiscuous", Ty::Bool),
        member("multicast", Ty::Enum(&STATES)),
        member("unicast", Ty::Enum(&STATES)),
        member("vlan", Ty::Enum(&STATES)),
        member("broadcast-allowed", Ty::Bool),
        member("multicast-overflow", Ty::Bool),
        member("unicast-overflow", Ty::Bool),
        member("main-mac", Ty::Str),
        member("vlan-table", Ty::Array(&Ty::Int)),
        member("unicast-table", Ty::Array(&Ty::Str)),
        member("multicast-table", Ty::Array(&Ty::Str)),
    ],
);

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
    Command::qmp("query-rx-filter", "what the guest wants to receive", rx_filter)
        .args(&[opt("name", Ty::Str, Place::Absent)])
        .returns(Ty::Array(&Ty::Object(&FILTER))),
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

fn rx_filter(call: &mut Call<'_>) -> Outcome {
    let wanted = call.text("name");
    let cards: Vec<_> =
        call.host.receptions().into_iter().filter(|(name, ..)| wanted.is_none_or(|w| w == name)).collect();
    match (wanted, cards.as_slice()) {
        (Some(name), []) => return Err(Fault::of(Class::DeviceNotFound, format!("Device '{name}' not found"))),
        (Some(name), [(_, model, None)]) => {
            return Err(Fault::new(format!("net client({name}) doesn't support rx-filter querying: {model}")));
        }
        _ => {}
    }
    Ok(cards.into_iter().filter_map(|(name, _, reception)| Some(filter(&name, &reception?))).collect())
}

fn filter(name: &str, reception: &Reception) -> Value {
    let state = |wanted: Wanted| match wanted {
        Wanted::Listed => "normal",
        Wanted::None => "none",
        Wanted::All => "all",
    };
    let shown = |mac: &[u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    let table = |macs: &[[u8; 6]]| -> Vec<String> { macs.iter().map(shown).collect() };
    json!({
        "name": name,
        "promiscuous": reception.promiscuous,
        "multicast": state(reception.groups),
        "unicast": state(reception.stations),
        "vlan": state(reception.vlans),
        "broadcast-allowed": reception.broadcasts,
        "multicast-overflow": reception.groups_overflow,
        "unicast-overflow": reception.stations_overflow,
        "main-mac": shown(&reception.mac),
        "vlan-table": reception.vlan_table,
        "unicast-table": table(&reception.station_table),
        "multicast-table": table(&reception.group_table),
    })
}

fn set_link(call: &mut Call<'_>) -> Outcome {
    let name = call.word("name")?;
    match call.host.set_link(name, call.switch("up")) {
        Ok(()) => Ok(Value::Null),
        Err(why) if call.people => Err(why.into()),
        Err(_) => Err(Fault::of(Class::DeviceNotFound, format!("Device '{name}' not found"))),
    }
}
