//! The machine's state: keeping it, going back to it, and what was kept.

use crate::monitor::call::Call;
use crate::monitor::fault::{Class, Fault};
use crate::monitor::host::{DriveInfo, Kept, SnapshotAction};
use crate::monitor::jobs::{self, Verb};
use crate::monitor::table::{Arg, Command, Outcome, Place, arg, opt};
use crate::monitor::types::Ty;
use brolga::words::values::show_size;
use serde_json::Value;

/// What QMP's commands about snapshots take.
const KEPT: &[Arg] = &[
    arg("job-id", Ty::Str, Place::Absent),
    arg("tag", Ty::Str, Place::Absent),
    arg("vmstate", Ty::Str, Place::Absent),
    arg("devices", Ty::Array(&Ty::Str), Place::Absent),
];

pub static TABLE: &[Command] = &[
    Command::hmp(&["savevm"], "save a VM snapshot. If no tag is provided, a new snapshot is created", savevm)
        .args(&[opt("name", Ty::Str, Place::Word)]),
    Command::hmp(&["loadvm"], "restore a VM snapshot from its tag", |call| {
        let tag = call.word("name")?.to_owned();
        run(call, SnapshotAction::Load { tag, place: Kept::default() })
    })
    .args(&[arg("name", Ty::Str, Place::Word)]),
    Command::hmp(&["delvm"], "delete a VM snapshot from its tag", |call| {
        let tag = call.word("name")?.to_owned();
        run(call, SnapshotAction::Delete { tag, place: Kept::default() })
    })
    .args(&[arg("name", Ty::Str, Place::Word)]),
    Command::hmp(&["info snapshots"], "show the currently saved VM snapshots", list),
    Command::qmp("snapshot-save", "keep the machine's state in its disks", |call| {
        let (tag, place) = kept(call)?;
        start(call, SnapshotAction::Save { tag, replace: false, place })
    })
    .args(KEPT),
    Command::qmp("snapshot-load", "go back to a state that was kept", |call| {
        let (tag, place) = kept(call)?;
        start(call, SnapshotAction::Load { tag, place })
    })
    .args(KEPT),
    Command::qmp("snapshot-delete", "forget a state that was kept", |call| {
        let (tag, place) = kept(call)?;
        start(call, SnapshotAction::Delete { tag, place })
    })
    .args(&[
        arg("job-id", Ty::Str, Place::Absent),
        arg("tag", Ty::Str, Place::Absent),
        arg("devices", Ty::Array(&Ty::Str), Place::Absent),
    ]),
    Command::qmp("query-jobs", "work that is under way", |call| Ok(call.host.jobs().list().into()))
        .returns(Ty::Array(&Ty::Object(&jobs::INFO))),
    Command::qmp("job-dismiss", "forget a job that is over", |call| tell(call, Verb::Dismiss)).args(ID),
    Command::qmp("job-cancel", "stop a job", |call| tell(call, Verb::Cancel)).args(ID),
    Command::qmp("job-complete", "end a job that is ready", |call| tell(call, Verb::Complete)).args(ID),
    Command::qmp("job-finalize", "make a job's work permanent", |call| tell(call, Verb::Finalize)).args(ID),
    Command::qmp("job-pause", "have a job wait", |call| tell(call, Verb::Pause)).args(ID),
    Command::qmp("job-resume", "have a job go on", |call| tell(call, Verb::Resume)).args(ID),
    Command::both(
        "block-job-cancel",
        &["block_job_cancel"],
        "stop an active background block operation (use -f to stop it even if it could end)",
        |call| {
            let verb = if call.switch("force") { Verb::Cancel } else { Verb::Leave };
            tell_block(call, verb)
        },
    )
    .args(&[arg("device", Ty::Str, Place::Word), opt("force", Ty::Bool, Place::Flag('f'))]),
    Command::both(
        "block-job-complete",
        &["block_job_complete"],
        "stop an active background block operation that is ready",
        |call| tell_block(call, Verb::Complete),
    )
    .args(DEVICE),
    Command::both("block-job-pause", &["block_job_pause"], "pause an active background block operation", |call| {
        tell_block(call, Verb::Pause)
    })
    .args(DEVICE),
    Command::both("block-job-resume", &["block_job_resume"], "resume a paused background block operation", |call| {
        tell_block(call, Verb::Resume)
    })
    .args(DEVICE),
    Command::qmp("block-job-finalize", "make work on a drive permanent", |call| tell(call, Verb::Finalize)).args(ID),
    Command::qmp("block-job-dismiss", "forget work on a drive that is over", |call| tell(call, Verb::Dismiss)).args(ID),
    Command::both(
        "block-job-set-speed",
        &["block_job_set_speed"],
        "set maximum speed for a background block operation",
        |call| {
            let speed = call.needed("speed")?;
            call.host.jobs().set_speed(call.word("device")?, speed).map_err(|_| not_active(call))?;
            Ok(Value::Null)
        },
    )
    .args(&[arg("device", Ty::Str, Place::Word), arg("speed", Ty::Uint, Place::Size)]),
];

const ID: &[Arg] = &[arg("id", Ty::Str, Place::Absent)];

const DEVICE: &[Arg] = &[arg("device", Ty::Str, Place::Word)];

fn not_active(call: &Call<'_>) -> Fault {
    let device = call.text("device").unwrap_or_default();
    Fault::of(Class::DeviceNotActive, format!("Block job '{device}' not found"))
}

fn tell_block(call: &mut Call<'_>, verb: Verb) -> Outcome {
    let device = call.word("device")?;
    if !call.host.jobs().has_block(device) {
        return Err(not_active(call));
    }
    call.host.jobs().tell(device, verb)?;
    Ok(Value::Null)
}

fn run(call: &Call<'_>, action: SnapshotAction) -> Outcome {
    call.host.snapshot(&action)?;
    Ok(Value::Null)
}

fn savevm(call: &mut Call<'_>) -> Outcome {
    let named = call.text("name").map(str::to_owned);
    let tag = named.unwrap_or_else(|| chrono::Local::now().format("vm-%Y%m%d%H%M%S").to_string());
    run(call, SnapshotAction::Save { tag, replace: true, place: Kept::default() })
}

fn kept(call: &Call<'_>) -> Result<(String, Kept), Fault> {
    let devices = call.get("devices").and_then(Value::as_array).into_iter().flatten();
    let devices = devices.filter_map(Value::as_str).map(str::to_owned).collect();
    let place = Kept { vmstate: call.text("vmstate").map(str::to_owned), devices: Some(devices) };
    Ok((call.word("tag")?.to_owned(), place))
}

fn start(call: &mut Call<'_>, action: SnapshotAction) -> Outcome {
    call.host.start_snapshot(call.word("job-id")?, action)?;
    Ok(Value::Null)
}

fn tell(call: &mut Call<'_>, verb: Verb) -> Outcome {
    call.host.jobs().tell(call.word("id")?, verb)?;
    Ok(Value::Null)
}

/// The snapshots in a drive's image.
fn of(drive: &DriveInfo) -> Vec<Value> {
    let medium = drive.medium.as_ref();
    medium.and_then(|medium| medium.image.get("snapshots")?.as_array().cloned()).unwrap_or_default()
}

fn tag(snapshot: &Value) -> &str {
    snapshot["name"].as_str().unwrap_or_default()
}

/// Those with a machine's state that all disks have, then those that some disk has beside them.
fn list(call: &mut Call<'_>) -> Outcome {
    const TITLE: &str = "ID      TAG               VM_SIZE                DATE        VM_CLOCK     ICOUNT\n";
    let drives = call.host.drives();
    let written: Vec<_> = drives.iter().filter(|drive| drive.medium.as_ref().is_some_and(|m| !m.read_only)).collect();
    let all: Vec<(&DriveInfo, Vec<Value>)> = written.into_iter().map(|drive| (drive, of(drive))).collect();
    if all.is_empty() {
        return Err("no block device supports snapshots".into());
    }
    if all.iter().all(|(_, there)| there.is_empty()) {
        return Ok("There is no snapshot available.\n".into());
    }
    let everywhere = |one: &Value| all.iter().all(|(_, there)| there.iter().any(|other| tag(other) == tag(one)));
    let whole = |one: &&Value| one["vm-state-size"].as_u64().is_some_and(|size| size != 0) && everywhere(one);
    let mut text = "List of snapshots present on all disks:\n".to_owned();
    let mut told: Vec<&str> = Vec::new();
    for snapshot in all.iter().flat_map(|(_, there)| there.iter().filter(whole)) {
        if !told.contains(&tag(snapshot)) {
            text += if told.is_empty() { TITLE } else { "" };
            text += &row(snapshot, "--");
            told.push(tag(snapshot));
        }
    }
    if told.is_empty() {
        text += "None\n";
    }
    for (drive, there) in &all {
        let rest: Vec<&Value> = there.iter().filter(|one| !told.contains(&tag(one))).collect();
        if !rest.is_empty() {
            text += &format!("\nList of partial (non-loadable) snapshots on '{}':\n{TITLE}", drive.name);
            rest.iter().for_each(|one| text += &row(one, one["id"].as_str().unwrap_or_default()));
        }
    }
    Ok(text.into())
}

fn row(snapshot: &Value, id: &str) -> String {
    let number = |key: &str| snapshot[key].as_u64().unwrap_or(0);
    let date = chrono::DateTime::from_timestamp(snapshot["date-sec"].as_i64().unwrap_or(0), 0);
    let date = date.map(|date| date.with_timezone(&chrono::Local).format("%Y-%m-%d %H:%M:%S").to_string());
    let (seconds, millis) = (number("vm-clock-sec"), number("vm-clock-nsec") / 1_000_000);
    let clock = format!("{:04}:{:02}:{:02}.{millis:03}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    let icount = snapshot["icount"].as_u64().map_or("--".to_owned(), |count| count.to_string());
    let (date, size) = (date.unwrap_or_default(), show_size(number("vm-state-size")));
    format!("{id:<7} {:<16} {size:>8} {date:>19} {clock:>15} {icount:>10}\n", tag(snapshot))
}
