//! Drives: what is in them, what they did, and how their media change.

use crate::monitor::call::Call;
use crate::monitor::fault::{Class, Fault};
use crate::monitor::host::{DriveInfo, DriveStatistics, MediumChange, MediumInfo};
use crate::monitor::jobs;
use crate::monitor::table::{Command, Outcome, Place, arg, opt};
use crate::monitor::types::{Enum, Object, Ty, member, optional};
use brolga::img::shown_size;
use serde_json::{Map, Value, json};

static CACHE: Object = Object::new(
    "BlockdevCacheInfo",
    &[member("writeback", Ty::Bool), member("direct", Ty::Bool), member("no-flush", Ty::Bool)],
);
static DETECT: Enum = Enum { name: "BlockdevDetectZeroesOptions", values: &["off", "on", "unmap"] };
/// What of an image depends on its format is told as `brolga-img info` tells it.
static IMAGE: Object = Object::new(
    "ImageInfo",
    &[
        member("filename", Ty::Str),
        member("format", Ty::Str),
        optional("dirty-flag", Ty::Bool),
        optional("actual-size", Ty::Int),
        member("virtual-size", Ty::Int),
        optional("cluster-size", Ty::Int),
        optional("encrypted", Ty::Bool),
        optional("compressed", Ty::Bool),
        optional("backing-filename", Ty::Str),
        optional("full-backing-filename", Ty::Str),
        optional("backing-filename-format", Ty::Str),
        optional("snapshots", Ty::Array(&Ty::Any)),
        optional("format-specific", Ty::Any),
    ],
);
static INSERTED: Object = Object::new(
    "BlockDeviceInfo",
    &[
        member("file", Ty::Str),
        optional("node-name", Ty::Str),
        member("ro", Ty::Bool),
        member("drv", Ty::Str),
        optional("backing_file", Ty::Str),
        member("backing_file_depth", Ty::Int),
        member("encrypted", Ty::Bool),
        member("detect_zeroes", Ty::Enum(&DETECT)),
        member("bps", Ty::Int),
        member("bps_rd", Ty::Int),
        member("bps_wr", Ty::Int),
        member("iops", Ty::Int),
        member("iops_rd", Ty::Int),
        member("iops_wr", Ty::Int),
        member("image", Ty::Object(&IMAGE)),
        member("cache", Ty::Object(&CACHE)),
        member("write_threshold", Ty::Int),
        member("active", Ty::Bool),
    ],
);
static IO_STATES: Enum = Enum { name: "BlockDeviceIoStatus", values: &["ok", "failed", "nospace"] };
static DRIVE: Object = Object::new(
    "BlockInfo",
    &[
        member("device", Ty::Str),
        optional("qdev", Ty::Str),
        member("type", Ty::Str),
        member("removable", Ty::Bool),
        member("locked", Ty::Bool),
        optional("inserted", Ty::Object(&INSERTED)),
        optional("tray_open", Ty::Bool),
        optional("io-status", Ty::Enum(&IO_STATES)),
    ],
);
static COUNTERS: Object = Object::new(
    "BlockDeviceStats",
    &[
        member("rd_bytes", Ty::Int),
        member("wr_bytes", Ty::Int),
        member("unmap_bytes", Ty::Int),
        member("rd_operations", Ty::Int),
        member("wr_operations", Ty::Int),
        member("flush_operations", Ty::Int),
        member("unmap_operations", Ty::Int),
        member("rd_total_time_ns", Ty::Int),
        member("wr_total_time_ns", Ty::Int),
        member("flush_total_time_ns", Ty::Int),
        member("unmap_total_time_ns", Ty::Int),
        member("wr_highest_offset", Ty::Int),
        member("rd_merged", Ty::Int),
        member("wr_merged", Ty::Int),
        member("unmap_merged", Ty::Int),
        member("failed_rd_operations", Ty::Int),
        member("failed_wr_operations", Ty::Int),
        member("failed_unmap_operations", Ty::Int),
        member("failed_flush_operations", Ty::Int),
        member("invalid_rd_operations", Ty::Int),
        member("invalid_wr_operations", Ty::Int),
        member("invalid_unmap_operations", Ty::Int),
        member("invalid_flush_operations", Ty::Int),
        member("account_invalid", Ty::Bool),
        member("account_failed", Ty::Bool),
        member("timed_stats", Ty::Array(&Ty::Any)),
        optional("idle_time_ns", Ty::Int),
    ],
);
static STATISTICS: Object = Object::new(
    "BlockStats",
    &[
        optional("device", Ty::Str),
        optional("qdev", Ty::Str),
        optional("node-name", Ty::Str),
        member("stats", Ty::Object(&COUNTERS)),
    ],
);
static MODES: Enum = Enum { name: "BlockdevChangeReadOnlyMode", values: &["retain", "read-only", "read-write"] };

pub static TABLE: &[Command] = &[
    Command::qmp("query-block", "show info of all block devices", query_block).returns(Ty::Array(&Ty::Object(&DRIVE))),
    Command::hmp(
        &["info block"],
        "show info of one block device or all block devices (-n: show named nodes; -v: show details)",
        show_drives,
    )
    .args(&[
        opt("nodes", Ty::Bool, Place::Flag('n')),
        opt("verbose", Ty::Bool, Place::Flag('v')),
        opt("device", Ty::Str, Place::Word),
    ]),
    Command::both("query-blockstats", &["info blockstats"], "show block device statistics", query_statistics)
        .args(&[opt("query-nodes", Ty::Bool, Place::Absent)])
        .returns(Ty::Array(&Ty::Object(&STATISTICS)))
        .show(show_statistics),
    Command::qmp("query-named-block-nodes", "images that are in use", |call| Ok(nodes(call).into()))
        .args(&[opt("flat", Ty::Bool, Place::Absent)])
        .returns(Ty::Array(&Ty::Object(&INSERTED))),
    Command::both(
        "query-block-jobs",
        &["info block-jobs"],
        "show progress of ongoing block device operations",
        |call| Ok(call.host.jobs().list_block().into()),
    )
    .returns(Ty::Array(&Ty::Object(&jobs::BLOCK_INFO)))
    .show(show_jobs),
    Command::both("eject", &["eject"], "eject a removable medium (use -f to force it)", eject).args(&[
        opt("force", Ty::Bool, Place::Flag('f')),
        opt("device", Ty::Str, Place::Word),
        opt("id", Ty::Str, Place::Absent),
    ]),
    Command::both(
        "blockdev-change-medium",
        &["change"],
        "change a removable medium, optional format, use -f to force the operation",
        change,
    )
    .args(&[
        opt("force", Ty::Bool, Place::Flag('f')),
        opt("device", Ty::Str, Place::Word),
        opt("id", Ty::Str, Place::Absent),
        opt("filename", Ty::Str, Place::Word),
        opt("format", Ty::Str, Place::Word),
        opt("read-only-mode", Ty::Enum(&MODES), Place::Word),
    ]),
    Command::qmp(
        "blockdev-open-tray",
        "open a drive's tray; a locked one only asks the guest, unless forced",
        |call| tray(call, true),
    )
    .args(&[
        opt("force", Ty::Bool, Place::Absent),
        opt("device", Ty::Str, Place::Absent),
        opt("id", Ty::Str, Place::Absent),
    ]),
    Command::qmp("blockdev-close-tray", "close a drive's tray", |call| tray(call, false))
        .args(&[opt("device", Ty::Str, Place::Absent), opt("id", Ty::Str, Place::Absent)]),
    Command::qmp("blockdev-insert-medium", "lay a node in an open tray that is empty", |call| {
        let drive = named(call)?;
        let node = call.word("node-name")?.to_owned();
        if drive.tray_open == Some(false) {
            return Err(Fault::new(format!("Tray of the device '{}' is not open", drive.name)));
        }
        if drive.medium.is_some() {
            return Err(Fault::new(format!("There already is a medium in device '{}'", drive.name)));
        }
        call.host.change_medium(&MediumChange::InsertNode { drive: drive.name, node })?;
        Ok(Value::Null)
    })
    .args(&[arg("id", Ty::Str, Place::Absent), arg("node-name", Ty::Str, Place::Absent)]),
    Command::qmp("blockdev-remove-medium", "take the medium out of an open tray", remove).args(&[arg(
        "id",
        Ty::Str,
        Place::Absent,
    )]),
];

fn cache(medium: &MediumInfo) -> Value {
    let [writeback, direct, no_flush] = medium.cache;
    json!({ "writeback": writeback, "direct": direct, "no-flush": no_flush })
}

fn inserted(medium: &MediumInfo) -> Value {
    let mut image = medium.image.clone();
    if let Some(members) = image.as_object_mut() {
        // Told as an image of its own.
        members.remove("children");
    }
    let mut info = json!({
        "file": medium.file,
        "node-name": medium.node,
        "ro": medium.read_only,
        "drv": medium.format,
        "backing_file_depth": medium.depth,
        "encrypted": false,
        "detect_zeroes": medium.detect_zeroes,
        "bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0,
        "image": image,
        "cache": cache(medium),
        "write_threshold": 0,
        "active": true,
    });
    if let Some(backing) = medium.image.get("full-backing-filename") {
        info["backing_file"] = backing.clone();
    }
    info
}

/// The file that an image lies in, as an image of its own.
fn file(medium: &MediumInfo) -> Option<Value> {
    let image = medium.image.get("children")?.get(0)?.get("info")?.clone();
    let below = MediumInfo { image, format: "file", node: medium.file_node.clone(), depth: 0, ..medium.clone() };
    Some(inserted(&below))
}

fn query_block(call: &mut Call<'_>) -> Outcome {
    let wanted = call.text("device");
    let drives = call.host.drives();
    let shown = |d: &&DriveInfo| !d.node_only && wanted.is_none_or(|w| w == d.name);
    let found: Vec<Value> = drives.iter().filter(shown).map(drive).collect();
    match wanted {
        Some(name) if found.is_empty() => Err(not_found(name)),
        _ => Ok(found.into()),
    }
}

fn drive(info: &DriveInfo) -> Value {
    let mut entry = json!({
        "device": if info.by_node { "" } else { info.name.as_str() },
        "type": "unknown",
        "removable": info.removable,
        "locked": info.locked,
    });
    if let Some(path) = &info.path {
        entry["qdev"] = path.as_str().into();
    }
    if let Some(open) = info.tray_open {
        entry["tray_open"] = open.into();
    }
    if let Some(state) = info.io_status {
        entry["io-status"] = state.into();
    }
    if let Some(medium) = &info.medium {
        entry["inserted"] = inserted(medium);
    }
    entry
}

/// Images, and the files that they lie in.
fn nodes(call: &Call<'_>) -> Vec<Value> {
    let drives = call.host.drives();
    let media = drives.iter().filter_map(|drive| drive.medium.as_ref());
    media.flat_map(|medium| std::iter::once(inserted(medium)).chain(file(medium))).collect()
}

fn show_drives(call: &mut Call<'_>) -> Outcome {
    let drives = match call.switch("nodes") {
        false => query_block(call)?,
        true => {
            let wanted = call.text("device");
            let of = |node: Value| json!({ "device": "", "inserted": node });
            let chosen = |node: &Value| wanted.is_none_or(|wanted| node["node-name"] == wanted);
            nodes(call).into_iter().filter(chosen).map(of).collect()
        }
    };
    Ok(drives_text(&drives, call.switch("verbose")).into())
}

/// What `brolga-img info` tells of an image, in short.
fn image_text(image: &Value) -> String {
    let word = |key: &str| image[key].as_str().unwrap_or_default();
    let size = |key: &str| shown_size(image[key].as_u64().unwrap_or(0));
    let mut text = format!("\nImages:\nimage: {}\nfile format: {}\n", word("filename"), word("format"));
    text += &format!("virtual size: {} ({} bytes)\n", size("virtual-size"), image["virtual-size"]);
    text += &format!("disk size: {}\n", size("actual-size"));
    if let Some(cluster) = image.get("cluster-size") {
        text += &format!("cluster_size: {cluster}\n");
    }
    for (key, about) in [("backing-filename", "backing file"), ("backing-filename-format", "backing file format")] {
        if image.get(key).is_some() {
            text += &format!("{about}: {}\n", word(key));
        }
    }
    let specific = image.pointer("/format-specific/data").and_then(Value::as_object);
    if let Some(members) = specific.filter(|members| !members.is_empty()) {
        text += "Format specific information:\n";
        for (key, value) in members.iter().filter(|(_, value)| !value.is_array()) {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            text += &format!("    {}: {value}\n", key.replace('-', " "));
        }
    }
    text
}

fn drives_text(drives: &Value, verbose: bool) -> String {
    let one = |drive: &Value| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut out = text(&drive["device"]);
        match drive.get("inserted") {
            Some(medium) => {
                let read_only = if medium["ro"] == true { ", read-only" } else { "" };
                let (node, file, format) = (text(&medium["node-name"]), text(&medium["file"]), text(&medium["drv"]));
                out += &match out.is_empty() {
                    true => format!("{node}: {file} ({format}{read_only})\n"),
                    false => format!(" ({node}): {file} ({format}{read_only})\n"),
                };
            }
            None => out += ": [not inserted]\n",
        }
        if let Some(path) = drive["qdev"].as_str() {
            out += &format!("    Attached to:      {path}\n");
        }
        if drive["removable"] == true {
            let locked = if drive["locked"] == true { "" } else { "not " };
            let tray = if drive["tray_open"] == true { "open" } else { "closed" };
            out += &format!("    Removable device: {locked}locked, tray {tray}\n");
        }
        if let Some(medium) = drive.get("inserted") {
            let on = |key: &str, word: &str| if medium["cache"][key] == true { word.to_owned() } else { String::new() };
            let mode = if medium["cache"]["writeback"] == true { "writeback" } else { "writethrough" };
            out += &format!(
                "    Cache mode:       {mode}{}{}\n",
                on("direct", ", direct"),
                on("no-flush", ", ignore flushes")
            );
            if let Some(backing) = medium["backing_file"].as_str() {
                out += &format!("    Backing file:     {backing} (chain depth: {})\n", medium["backing_file_depth"]);
            }
            if medium["detect_zeroes"] != "off" {
                out += &format!("    Detect zeroes:    {}\n", text(&medium["detect_zeroes"]));
            }
            if verbose {
                out += &image_text(&medium["image"]);
            }
        }
        out
    };
    drives.as_array().into_iter().flatten().map(one).collect::<Vec<_>>().join("\n")
}

fn counters(s: &DriveStatistics) -> Value {
    let mut map = Map::new();
    for (name, kind) in [("rd", &s.reads), ("wr", &s.writes), ("unmap", &s.discards), ("flush", &s.flushes)] {
        map.insert(format!("{name}_operations"), kind.operations.into());
        map.insert(format!("{name}_total_time_ns"), kind.time_ns.into());
        map.insert(format!("failed_{name}_operations"), kind.failed.into());
        map.insert(format!("invalid_{name}_operations"), kind.invalid.into());
        if name != "flush" {
            map.insert(format!("{name}_bytes"), kind.bytes.into());
            map.insert(format!("{name}_merged"), 0.into());
        }
    }
    map.insert("wr_highest_offset".into(), s.highest_written.into());
    map.insert("account_invalid".into(), true.into());
    map.insert("account_failed".into(), true.into());
    map.insert("timed_stats".into(), json!([]));
    if let Some(idle) = s.idle_ns {
        map.insert("idle_time_ns".into(), idle.into());
    }
    map.into()
}

fn query_statistics(call: &mut Call<'_>) -> Outcome {
    let nodes = call.switch("query-nodes");
    let entry = |drive: DriveInfo| {
        let mut entry = json!({ "stats": counters(&drive.statistics) });
        if let Some(medium) = &drive.medium {
            entry["node-name"] = medium.node.as_str().into();
        } else if nodes {
            return None;
        }
        if !nodes {
            entry["device"] = if drive.by_node { String::new() } else { drive.name }.into();
            if let Some(path) = drive.path {
                entry["qdev"] = path.into();
            }
        }
        Some(entry)
    };
    let drives = call.host.drives().into_iter().filter(|drive| nodes || !drive.node_only);
    Ok(drives.filter_map(entry).collect())
}

fn show_statistics(list: &Value) -> String {
    const SHOWN: [&str; 10] = [
        "rd_bytes",
        "wr_bytes",
        "rd_operations",
        "wr_operations",
        "flush_operations",
        "wr_total_time_ns",
        "rd_total_time_ns",
        "flush_total_time_ns",
        "rd_merged",
        "wr_merged",
    ];
    let line = |entry: &Value| {
        let stats = &entry["stats"];
        let shown: Vec<String> = SHOWN.iter().map(|key| format!("{key}={}", stats[key])).collect();
        let idle = stats.get("idle_time_ns").map_or(0, |idle| idle.as_u64().unwrap_or(0));
        format!("{}: {} idle_time_ns={idle}\n", entry["device"].as_str().unwrap_or_default(), shown.join(" "))
    };
    list.as_array().into_iter().flatten().map(line).collect()
}

/// As `info block-jobs` has it.
fn show_jobs(list: &Value) -> String {
    let jobs = list.as_array().map_or(&[][..], Vec::as_slice);
    let line = |job: &Value| {
        let text = |key: &str| job[key].as_str().unwrap_or_default();
        let count = |key: &str| job[key].as_u64().unwrap_or(0);
        let (done, all, speed) = (count("offset"), count("len"), count("speed"));
        let (kind, device) = (text("type"), text("device"));
        format!("Type {kind}, device {device}: Completed {done} of {all} bytes, speed limit {speed} bytes/s\n")
    };
    if jobs.is_empty() { "No active jobs\n".to_owned() } else { jobs.iter().map(line).collect() }
}

fn not_found(name: &str) -> Fault {
    Fault::of(Class::DeviceNotFound, format!("Device '{name}' not found"))
}

/// The drive that the arguments name, by `device` or by the device's own `id`.
fn named(call: &Call<'_>) -> Result<DriveInfo, Fault> {
    let (name, by_id) = match (call.text("device"), call.text("id")) {
        (Some(name), None) => (name, false),
        (None, Some(id)) => (id, true),
        (Some(_), Some(_)) => return Err("Need exactly one of 'device' and 'id'".into()),
        (None, None) if call.people => return Err("name a drive, as info block lists them".into()),
        (None, None) => return Err("Need exactly one of 'device' and 'id'".into()),
    };
    let is = |drive: &DriveInfo| {
        let path = drive.path.as_deref().map(|path| path.trim_end_matches("/virtio-backend"));
        let of_id = |path: &str| path == name || path.strip_prefix("/machine/peripheral/") == Some(name);
        drive.name == name || (by_id || call.people) && path.is_some_and(of_id)
    };
    let drives = call.host.drives();
    let Some(drive) = drives.iter().find(|drive| is(drive)).cloned() else {
        let there: Vec<&str> = drives.iter().filter(|d| d.removable).map(|d| d.name.as_str()).collect();
        let mut fault = not_found(name);
        if call.people && !there.is_empty() {
            fault.desc += &format!("; there are {}", there.join(", "));
        }
        return Err(fault);
    };
    if !drive.removable {
        return Err(Fault::new(format!("Device '{name}' is not removable")));
    }
    Ok(drive)
}

fn eject(call: &mut Call<'_>) -> Outcome {
    let drive = named(call)?;
    call.host.change_medium(&MediumChange::Eject { drive: drive.name, force: call.switch("force") })?;
    Ok(Value::Null)
}

fn change(call: &mut Call<'_>) -> Outcome {
    let drive = named(call)?.name;
    let Some(file) = call.text("filename").map(str::to_owned) else {
        return Err(if call.people { "and a file, please".into() } else { "Parameter 'filename' is missing".into() });
    };
    let read_only = match call.text("read-only-mode") {
        None | Some("retain") => None,
        Some("read-only") => Some(true),
        Some("read-write") => Some(false),
        Some(other) => {
            return Err(format!("'{other}' is no mode; there are retain, read-only and read-write").into());
        }
    };
    let format = call.text("format").map(str::to_owned);
    let force = call.switch("force");
    call.host.change_medium(&MediumChange::Insert { drive, file, format, read_only, force })?;
    Ok(Value::Null)
}

fn tray(call: &mut Call<'_>, open: bool) -> Outcome {
    let drive = named(call)?;
    let change = match open {
        true => MediumChange::OpenTray { drive: drive.name, force: call.switch("force") },
        false => MediumChange::CloseTray { drive: drive.name },
    };
    call.host.change_medium(&change)?;
    Ok(Value::Null)
}

fn remove(call: &mut Call<'_>) -> Outcome {
    let drive = named(call)?;
    if drive.tray_open == Some(false) {
        return Err(Fault::new(format!("Tray of device '{}' is not open", drive.name)));
    }
    call.host.change_medium(&MediumChange::Remove { drive: drive.name })?;
    Ok(Value::Null)
}
