//! Devices that come and go.

use crate::cli;
use crate::monitor::call::Call;
use crate::monitor::fault::Fault;
use crate::monitor::table::{Command, Outcome, Place, arg, opt};
use crate::monitor::types::Ty;
use brolga::words::keyval::strings;
use serde_json::{Map, Value};

pub static TABLE: &[Command] = &[
    Command::both("device_add", &["device_add"], "driver[,prop=value][,...]: add device, as -device", add)
        .args(&[
            arg("driver", Ty::Str, Place::Rest),
            opt("bus", Ty::Str, Place::Absent),
            opt("id", Ty::Str, Place::Absent),
        ])
        .open(),
    Command::both(
        "device_del",
        &["device_del"],
        "remove a device: by its id, or by its path in the QOM tree",
        |call| {
            call.host.device_del(call.word("id")?)?;
            Ok(Value::Null)
        },
    )
    .args(&[arg("id", Ty::Str, Place::Rest)]),
    Command::both("netdev_add", &["netdev_add"], "type,id=str[,prop=value][,...]: add host network device", |call| {
        let text = described(call, "type")?;
        call.host.netdev_add(&text)?;
        Ok(Value::Null)
    })
    .args(&[arg("type", Ty::Str, Place::Rest), opt("id", Ty::Str, Place::Absent)])
    .open(),
    Command::both(
        "object-add",
        &["object_add"],
        "[qom-type=]type,id=str[,prop=value][,...]: create QOM object",
        |call| {
            let text = described(call, "qom-type")?;
            call.host.object_add(&text)?;
            Ok(Value::Null)
        },
    )
    .args(&[arg("qom-type", Ty::Str, Place::Rest), opt("id", Ty::Str, Place::Absent)])
    .open(),
    Command::both("object-del", &["object_del"], "destroy QOM object", |call| {
        call.host.object_del(call.word("id")?)?;
        Ok(Value::Null)
    })
    .args(&[arg("id", Ty::Str, Place::Rest)]),
    Command::hmp(&["drive_add"], "[-n] [[domain:]bus:]slot options: add drive, as -drive with if=none", |call| {
        // The place is one for drives of another kind; with -n the options are those of -blockdev.
        let options = call.word("options")?;
        match call.switch("node") {
            true => call.host.node_add(options)?,
            false => call.host.drive_add(options)?,
        }
        Ok("OK\n".into())
    })
    .args(&[
        opt("node", Ty::Bool, Place::Flag('n')),
        arg("place", Ty::Str, Place::Word),
        arg("options", Ty::Str, Place::Rest),
    ]),
    Command::hmp(&["drive_del"], "remove host block device", |call| {
        call.host.drive_del(call.word("id")?)?;
        Ok(Value::Null)
    })
    .args(&[arg("id", Ty::Str, Place::Word)]),
    Command::qmp("blockdev-add", "open an image as a node", |call| {
        call.host.node_add(&Value::Object(call.args.clone()).to_string())?;
        Ok(Value::Null)
    })
    .args(&[arg("driver", Ty::Str, Place::Absent), opt("node-name", Ty::Str, Place::Absent)])
    .open(),
    Command::qmp("blockdev-del", "close a node", |call| {
        call.host.node_del(call.word("node-name")?)?;
        Ok(Value::Null)
    })
    .args(&[arg("node-name", Ty::Str, Place::Absent)]),
    Command::both("block_resize", &["block_resize"], "resize a block image", resize).args(&[
        opt("device", Ty::Str, Place::Word),
        opt("node-name", Ty::Str, Place::Absent),
        opt("size", Ty::Int, Place::Size),
    ]),
    Command::both("netdev_del", &["netdev_del"], "remove host network device", |call| {
        call.host.netdev_del(call.word("id")?)?;
        Ok(Value::Null)
    })
    .args(&[arg("id", Ty::Str, Place::Rest)]),
];

fn resize(call: &mut Call<'_>) -> Outcome {
    let (device, node) = (call.text("device").unwrap_or_default(), call.text("node-name").unwrap_or_default());
    let size = call.get("size").and_then(Value::as_i64).ok_or("Parameter 'size' is missing")?;
    let size = u64::try_from(size).map_err(|_| Fault::new("Parameter 'size' expects a >0 size"))?;
    let name = if node.is_empty() { device } else { node };
    match call.host.resize(name, size) {
        Some(done) => done.map(|()| Value::Null).map_err(Fault::new),
        None => Err(Fault::new(format!("Cannot find device='{device}' nor node-name='{node}'"))),
    }
}

/// What is to be added, in the grammar of options; people write it so.
fn described(call: &Call<'_>, first: &str) -> Result<String, Fault> {
    Ok(if call.people { call.word(first)?.to_owned() } else { option_text(&call.args, first) })
}

fn add(call: &mut Call<'_>) -> Outcome {
    let text = described(call, "driver")?;
    let driver = text.split(',').next().unwrap_or_default();
    if call.people && (matches!(driver, "help" | "?") || text.split(',').skip(1).any(|key| matches!(key, "help" | "?")))
    {
        return cli::device_help(&text).map(Value::from).map_err(|error| Fault::new(error.to_string()));
    }
    if driver.contains('=') {
        return Err("Parameter 'driver' is missing".into());
    }
    if !cli::is_model(driver) && !cli::is_processor(driver) {
        return Err(Fault::new(format!("'{driver}' is not a valid device model name")));
    }
    call.host.device_add(&text)?;
    Ok(Value::Null)
}

/// Arguments in the grammar of options: the value of `first`, then `key=value` for all others. What is inside of objects
/// and lists has keys with dots.
pub fn option_text(args: &Map<String, Value>, first: &str) -> String {
    let mut text = args.get(first).and_then(Value::as_str).unwrap_or_default().replace(',', ",,");
    let others = args.iter().filter(|(key, _)| *key != first);
    others.for_each(|(key, value)| append(&mut text, key, value));
    text
}

fn append(text: &mut String, key: &str, value: &Value) {
    let plain = match value {
        Value::Bool(on) => if *on { "on" } else { "off" }.to_owned(),
        Value::String(string) => string.replace(',', ",,"),
        Value::Null => String::new(),
        Value::Number(number) => number.to_string(),
        Value::Object(inner) => {
            return inner.iter().for_each(|(name, value)| append(text, &format!("{key}.{name}"), value));
        }
        Value::Array(inner) if strings(inner).is_some() => {
            let strings = strings(inner).unwrap_or_default();
            return strings.into_iter().for_each(|string| append(text, key, &string.into()));
        }
        Value::Array(inner) => {
            return inner.iter().enumerate().for_each(|(at, value)| append(text, &format!("{key}.{at}"), value));
        }
    };
    if !text.is_empty() {
        text.push(',');
    }
    *text += &format!("{}={plain}", key.replace(',', ",,"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn arguments_become_options() {
        let args = json!({"driver": "x", "id": "a,b", "on": true, "n": 3, "in": {"a": [1, "z"]}, "none": null, "s": [{"str": "p"}, {"str": "q"}]});
        let text = option_text(args.as_object().unwrap(), "driver");
        assert_eq!(text, "x,id=a,,b,in.a.0=1,in.a.1=z,n=3,none=,on=on,s=p,s=q");
    }
}
