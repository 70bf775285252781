//! Work on images that are in use: snapshots, copies, chains that grow and shrink.

use super::block_nodes;
use crate::monitor::MonitorHost;
use crate::monitor::block_work::{BlockJob, BlockTask, ImageChange};
use crate::monitor::call::Call;
use crate::monitor::fault::Fault;
use crate::monitor::table::{Arg, Command, Outcome, Place, arg, opt};
use crate::monitor::types::{Enum, Object, Ty, member, optional};
use serde_json::{Map, Value};

static MODES: Enum = Enum { name: "NewImageMode", values: &["existing", "absolute-paths"] };
pub static SYNC: Enum = Enum { name: "MirrorSyncMode", values: &["top", "full"] };
static OVERLAY: Object = Object::new(
    "BlockdevSnapshotSync",
    &[
        optional("device", Ty::Str),
        optional("node-name", Ty::Str),
        member("snapshot-file", Ty::Str),
        optional("snapshot-node-name", Ty::Str),
        optional("format", Ty::Str),
        optional("mode", Ty::Enum(&MODES)),
    ],
);
static INTERNAL: Object =
    Object::new("BlockdevSnapshotInternal", &[member("device", Ty::Str), member("name", Ty::Str)]);
static NOTHING: Object = Object::new("Abort", &[]);
static OVERLAY_CASE: Object = Object::new("BlockdevSnapshotSyncWrapper", &[member("data", Ty::Object(&OVERLAY))]);
static INTERNAL_CASE: Object = Object::new("BlockdevSnapshotInternalWrapper", &[member("data", Ty::Object(&INTERNAL))]);
static NOTHING_CASE: Object = Object::new("AbortWrapper", &[member("data", Ty::Object(&NOTHING))]);
static BACKUP: Object = Object::new(
    "DriveBackup",
    &[
        optional("job-id", Ty::Str),
        member("device", Ty::Str),
        member("target", Ty::Str),
        optional("format", Ty::Str),
        member("sync", Ty::Enum(&SYNC)),
        optional("mode", Ty::Enum(&MODES)),
        optional("speed", Ty::Int),
        optional("auto-finalize", Ty::Bool),
        optional("auto-dismiss", Ty::Bool),
    ],
);
static BACKUP_CASE: Object = Object::new("DriveBackupWrapper", &[member("data", Ty::Object(&BACKUP))]);
static OVER_CASE: Object = Object::new("BlockdevSnapshotWrapper", &[member("data", Ty::Object(&block_nodes::OVERLAY))]);
static TO_NODE_CASE: Object = Object::new("BlockdevBackupWrapper", &[member("data", Ty::Object(&block_nodes::BACKUP))]);
static ACTIONS: Enum = Enum {
    name: "TransactionActionKind",
    values: &[
        "abort",
        "blockdev-backup",
        "blockdev-snapshot",
        "blockdev-snapshot-internal-sync",
        "blockdev-snapshot-sync",
        "drive-backup",
    ],
};
static ACTION: Object = Object::new("TransactionAction", &[member("type", Ty::Enum(&ACTIONS))]).with(
    "type",
    &[
        ("abort", &NOTHING_CASE),
        ("blockdev-backup", &TO_NODE_CASE),
        ("blockdev-snapshot", &OVER_CASE),
        ("blockdev-snapshot-internal-sync", &INTERNAL_CASE),
        ("blockdev-snapshot-sync", &OVERLAY_CASE),
        ("drive-backup", &BACKUP_CASE),
    ],
);

const OVERLAY_ARGS: &[Arg] = &[
    opt("device", Ty::Str, Place::Absent),
    opt("node-name", Ty::Str, Place::Absent),
    arg("snapshot-file", Ty::Str, Place::Absent),
    opt("snapshot-node-name", Ty::Str, Place::Absent),
    opt("format", Ty::Str, Place::Absent),
    opt("mode", Ty::Enum(&MODES), Place::Absent),
];
const COPY_ARGS: &[Arg] = &[
    opt("job-id", Ty::Str, Place::Absent),
    arg("device", Ty::Str, Place::Absent),
    arg("target", Ty::Str, Place::Absent),
    opt("format", Ty::Str, Place::Absent),
    arg("sync", Ty::Enum(&SYNC), Place::Absent),
    opt("mode", Ty::Enum(&MODES), Place::Absent),
    opt("node-name", Ty::Str, Place::Absent),
    opt("speed", Ty::Int, Place::Absent),
    opt("auto-finalize", Ty::Bool, Place::Absent),
    opt("auto-dismiss", Ty::Bool, Place::Absent),
];
/// How people copy.
const COPY_PEOPLE: &[Arg] = &[
    opt("reuse", Ty::Bool, Place::Flag('n')),
    opt("full", Ty::Bool, Place::Flag('f')),
    arg("device", Ty::Str, Place::Word),
    arg("target", Ty::Str, Place::Word),
    opt("format", Ty::Str, Place::Word),
];
const CHAIN_ARGS: &[Arg] = &[
    opt("job-id", Ty::Str, Place::Absent),
    arg("device", Ty::Str, Place::Absent),
    opt("base", Ty::Str, Place::Absent),
    opt("base-node", Ty::Str, Place::Absent),
    opt("backing-file", Ty::Str, Place::Absent),
    opt("speed", Ty::Int, Place::Absent),
    opt("auto-finalize", Ty::Bool, Place::Absent),
    opt("auto-dismiss", Ty::Bool, Place::Absent),
];
const COMMIT_ARGS: &[Arg] = &[
    opt("job-id", Ty::Str, Place::Absent),
    arg("device", Ty::Str, Place::Absent),
    opt("base", Ty::Str, Place::Absent),
    opt("base-node", Ty::Str, Place::Absent),
    opt("top", Ty::Str, Place::Absent),
    opt("top-node", Ty::Str, Place::Absent),
    opt("backing-file", Ty::Str, Place::Absent),
    opt("speed", Ty::Int, Place::Absent),
    opt("auto-finalize", Ty::Bool, Place::Absent),
    opt("auto-dismiss", Ty::Bool, Place::Absent),
];

pub static TABLE: &[Command] = &[
    Command::qmp("transaction", "changes of images at one moment, or none of them", |call| {
        let actions = call.get("actions").and_then(Value::as_array).cloned().unwrap_or_default();
        let changes = actions.iter().map(action).collect::<Result<Vec<_>, _>>()?;
        call.host.change_images(&changes)?;
        Ok(Value::Null)
    })
    .args(&[arg("actions", Ty::Array(&Ty::Object(&ACTION)), Place::Absent)]),
    Command::qmp("blockdev-snapshot-sync", "a new image over a drive's present one", |call| {
        call.host.change_images(&[overlay(&call.args)?])?;
        Ok(Value::Null)
    })
    .args(OVERLAY_ARGS),
    Command::both(
        "blockdev-snapshot-internal-sync",
        &["snapshot_blkdev_internal"],
        "take an internal snapshot of device",
        |call| {
            call.host.change_images(&[internal(&call.args)])?;
            Ok(Value::Null)
        },
    )
    .args(&[arg("device", Ty::Str, Place::Word), arg("name", Ty::Str, Place::Word)]),
    Command::qmp("blockdev-snapshot-delete-internal-sync", "delete a snapshot in a drive's image", |call| {
        if call.text("id").is_none() && call.text("name").is_none() {
            return Err("Name or id must be provided".into());
        }
        call.host.delete_internal(call.word("device")?, call.text("id"), call.text("name"))
    })
    .args(&[
        arg("device", Ty::Str, Place::Absent),
        opt("id", Ty::Str, Place::Absent),
        opt("name", Ty::Str, Place::Absent),
    ])
    .returns(Ty::Any),
    Command::hmp(&["snapshot_delete_blkdev_internal"], "delete an internal snapshot of device", |call| {
        call.host.delete_internal(call.word("device")?, call.text("id"), call.text("name"))?;
        Ok(Value::Null)
    })
    .args(&[
        arg("device", Ty::Str, Place::Word),
        arg("name", Ty::Str, Place::Word),
        opt("id", Ty::Str, Place::Word),
    ]),
    Command::qmp("drive-backup", "copy what a drive is now, while it is used", |call| start(call, BlockTask::Backup))
        .args(COPY_ARGS),
    Command::qmp("drive-mirror", "copy a drive and follow it", |call| start(call, BlockTask::Mirror)).args(COPY_ARGS),
    Command::qmp("block-stream", "copy what a drive has from below into its image", |call| {
        start(call, BlockTask::Stream)
    })
    .args(CHAIN_ARGS),
    Command::hmp(&["block_stream"], "copy data from a backing file into a block device", |call| {
        start(call, BlockTask::Stream)
    })
    .args(&[
        arg("device", Ty::Str, Place::Word),
        opt("speed", Ty::Int, Place::Size),
        opt("base", Ty::Str, Place::Word),
    ]),
    Command::hmp(
        &["drive_backup"],
        "copy what a device is now to a new image file (-n: one that is there, -f: with what is below it)",
        |call| copy(call, BlockTask::Backup),
    )
    .args(COPY_PEOPLE),
    Command::hmp(
        &["drive_mirror"],
        "copy a device to a new image file and follow it (-n: one that is there, -f: with what is below it)",
        |call| copy(call, BlockTask::Mirror),
    )
    .args(COPY_PEOPLE),
    Command::hmp(&["commit"], "commit changes to the disk images (if -snapshot is used) or backing files", |call| {
        call.host.commit(call.word("device")?)?;
        Ok(Value::Null)
    })
    .args(&[arg("device", Ty::Str, Place::Word)]),
    Command::hmp(&["snapshot_blkdev"], "a new image over a device's present one (-n: one that is there)", |call| {
        let Some(file) = call.text("snapshot-file") else {
            return Err("Parameter 'snapshot-file' is missing".into());
        };
        let mut data = Map::from_iter([
            ("device".to_owned(), call.word("device")?.into()),
            ("snapshot-file".to_owned(), file.into()),
            ("mode".to_owned(), if call.switch("reuse") { "existing" } else { "absolute-paths" }.into()),
        ]);
        data.extend(call.text("format").map(|format| ("format".to_owned(), format.into())));
        call.host.change_images(&[overlay(&data)?])?;
        Ok(Value::Null)
    })
    .args(&[
        opt("reuse", Ty::Bool, Place::Flag('n')),
        arg("device", Ty::Str, Place::Word),
        opt("snapshot-file", Ty::Str, Place::Word),
        opt("format", Ty::Str, Place::Word),
    ]),
    Command::qmp("block-commit", "write images of a drive's chain to the one below, which takes their place", |call| {
        start(call, BlockTask::Commit)
    })
    .args(COMMIT_ARGS),
];

pub fn text(data: &Map<String, Value>, key: &str) -> Option<String> {
    data.get(key).and_then(Value::as_str).map(str::to_owned)
}

fn overlay(data: &Map<String, Value>) -> Result<ImageChange, Fault> {
    let device = match (text(data, "device"), text(data, "node-name")) {
        (Some(device), None) | (None, Some(device)) => device,
        _ => return Err("Need exactly one of 'device' and 'node-name'".into()),
    };
    if let Some(format) = text(data, "format").filter(|format| format != "qcow2") {
        return Err(Fault::new(format!("'{format}' images cannot be over others; use qcow2")));
    }
    Ok(ImageChange::Overlay {
        device,
        file: text(data, "snapshot-file").unwrap_or_default(),
        existing: text(data, "mode").as_deref() == Some("existing"),
        node: text(data, "snapshot-node-name"),
    })
}

fn internal(data: &Map<String, Value>) -> ImageChange {
    let [device, name] = ["device", "name"].map(|key| text(data, key).unwrap_or_default());
    ImageChange::Internal { device, name }
}

fn action(action: &Value) -> Result<ImageChange, Fault> {
    let data = action["data"].as_object().cloned().unwrap_or_default();
    match action["type"].as_str() {
        Some("blockdev-snapshot-sync") => overlay(&data),
        Some("blockdev-snapshot-internal-sync") => Ok(internal(&data)),
        Some("blockdev-snapshot") => Ok(block_nodes::overlay(&data)),
        Some("blockdev-backup") => Ok(ImageChange::Backup(block_nodes::to_node(&data, BlockTask::Backup)?)),
        Some("drive-backup") => Ok(ImageChange::Backup(job(&data, BlockTask::Backup)?)),
        _ => Ok(ImageChange::Abort),
    }
}

/// A copy as people ask for it.
fn copy(call: &mut Call<'_>, task: BlockTask) -> Outcome {
    let mode = if call.switch("reuse") { "existing" } else { "absolute-paths" };
    let sync = if call.switch("full") { "full" } else { "top" };
    call.args.extend([("mode", mode), ("sync", sync)].map(|(key, word)| (key.to_owned(), word.into())));
    start(call, task)
}

/// The job that arguments describe.
pub fn job(data: &Map<String, Value>, task: BlockTask) -> Result<BlockJob, Fault> {
    let on = |key: &str| data.get(key).and_then(Value::as_bool).unwrap_or(true);
    let speed = data.get("speed").map_or(Some(0), Value::as_u64);
    let by_nodes = data.contains_key("base-node") || data.contains_key("top-node");
    let [base, top] = if by_nodes { ["base-node", "top-node"] } else { ["base", "top"] };
    if by_nodes && (data.contains_key("base") || data.contains_key("top")) {
        return Err("'base' and 'top' are files, 'base-node' and 'top-node' nodes: give one kind".into());
    }
    Ok(BlockJob {
        task,
        id: text(data, "job-id"),
        device: text(data, "device").ok_or("Parameter 'device' is missing")?,
        target: text(data, "target").unwrap_or_default(),
        to_node: false,
        format: text(data, "format").unwrap_or_else(|| "qcow2".to_owned()),
        existing: text(data, "mode").as_deref() == Some("existing"),
        top: text(data, "sync").as_deref() == Some("top"),
        base: text(data, base),
        from: text(data, top),
        by_nodes,
        backing: text(data, "backing-file"),
        node: text(data, "node-name"),
        speed: speed.ok_or("Invalid parameter 'speed'")?,
        auto_finalize: on("auto-finalize"),
        auto_dismiss: on("auto-dismiss"),
    })
}

fn start(call: &mut Call<'_>, task: BlockTask) -> Outcome {
    start_job(call.host, job(&call.args, task)?)
}

/// Starts it.
pub fn start_job(host: &dyn MonitorHost, job: BlockJob) -> Outcome {
    host.start_block_job(job)?;
    Ok(Value::Null)
}
