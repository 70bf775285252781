//! Images that programs make and put together from nodes.

use super::block_work::{SYNC, job, start_job, text};
use crate::monitor::block_work::{BlockJob, BlockTask, ImageChange, NewImage};
use crate::monitor::fault::Fault;
use crate::monitor::table::{Arg, Command, Outcome, Place, arg, opt};
use crate::monitor::types::{Enum, Object, Ty, member, optional};
use brolga::block::qcow2::{Compression, CreateOptions};
use brolga::block::{Format, Preallocation};
use serde_json::{Map, Value};

static DRIVERS: Enum = Enum { name: "BlockdevDriver", values: &["file", "qcow2"] };
static VERSIONS: Enum = Enum { name: "BlockdevQcow2Version", values: &["v2", "v3"] };
static RESERVED: Enum = Enum { name: "PreallocMode", values: &["off", "metadata", "falloc", "full"] };
static COMPRESSIONS: Enum = Enum { name: "Qcow2CompressionType", values: &["zlib", "zstd"] };
static FORMATS: Enum = Enum { name: "BackingFormat", values: &["raw", "qcow2", "vmdk", "vhdx"] };
static FILE: Object = Object::new(
    "BlockdevCreateOptionsFile",
    &[member("filename", Ty::Str), member("size", Ty::Uint), optional("preallocation", Ty::Enum(&RESERVED))],
);
static QCOW2: Object = Object::new(
    "BlockdevCreateOptionsQcow2",
    &[
        member("file", Ty::Str),
        member("size", Ty::Uint),
        optional("version", Ty::Enum(&VERSIONS)),
        optional("backing-file", Ty::Str),
        optional("backing-fmt", Ty::Enum(&FORMATS)),
        optional("cluster-size", Ty::Uint),
        optional("preallocation", Ty::Enum(&RESERVED)),
        optional("lazy-refcounts", Ty::Bool),
        optional("refcount-bits", Ty::Uint),
        optional("extended-l2", Ty::Bool),
        optional("compression-type", Ty::Enum(&COMPRESSIONS)),
    ],
);
static OPTIONS: Object = Object::new("BlockdevCreateOptions", &[member("driver", Ty::Enum(&DRIVERS))])
    .with("driver", &[("file", &FILE), ("qcow2", &QCOW2)]);
pub static OVERLAY: Object = Object::new("BlockdevSnapshot", &[member("node", Ty::Str), member("overlay", Ty::Str)]);
pub static BACKUP: Object = Object::new(
    "BlockdevBackup",
    &[
        optional("job-id", Ty::Str),
        member("device", Ty::Str),
        member("target", Ty::Str),
        member("sync", Ty::Enum(&SYNC)),
        optional("speed", Ty::Int),
        optional("auto-finalize", Ty::Bool),
        optional("auto-dismiss", Ty::Bool),
    ],
);

const COPY_ARGS: &[Arg] = &[
    opt("job-id", Ty::Str, Place::Absent),
    arg("device", Ty::Str, Place::Absent),
    arg("target", Ty::Str, Place::Absent),
    arg("sync", Ty::Enum(&SYNC), Place::Absent),
    opt("speed", Ty::Int, Place::Absent),
    opt("auto-finalize", Ty::Bool, Place::Absent),
    opt("auto-dismiss", Ty::Bool, Place::Absent),
];

pub static TABLE: &[Command] = &[
    Command::qmp("blockdev-create", "make an image: a file, or a format in a node", |call| {
        let options = call.get("options").and_then(Value::as_object).cloned().unwrap_or_default();
        call.host.create_image(call.word("job-id")?, new_image(&options)?)?;
        Ok(Value::Null)
    })
    .args(&[arg("job-id", Ty::Str, Place::Absent), arg("options", Ty::Object(&OPTIONS), Place::Absent)]),
    Command::qmp("blockdev-snapshot", "put a node over a drive's present image", |call| {
        call.host.change_images(&[overlay(&call.args)])?;
        Ok(Value::Null)
    })
    .args(&[arg("node", Ty::Str, Place::Absent), arg("overlay", Ty::Str, Place::Absent)]),
    Command::qmp("blockdev-backup", "copy what a drive is now to a node, while it is used", |call| {
        copy(call.host, &call.args, BlockTask::Backup)
    })
    .args(COPY_ARGS),
    Command::qmp("blockdev-mirror", "copy a drive to a node and follow it", |call| {
        copy(call.host, &call.args, BlockTask::Mirror)
    })
    .args(COPY_ARGS),
];

/// A node that goes over a drive's image.
pub fn overlay(data: &Map<String, Value>) -> ImageChange {
    let [device, overlay] = ["node", "overlay"].map(|key| text(data, key).unwrap_or_default());
    ImageChange::Over { device, overlay }
}

/// A copy to a node.
pub fn to_node(data: &Map<String, Value>, task: BlockTask) -> Result<BlockJob, Fault> {
    Ok(BlockJob { to_node: true, ..job(data, task)? })
}

fn copy(host: &dyn crate::monitor::MonitorHost, data: &Map<String, Value>, task: BlockTask) -> Outcome {
    start_job(host, to_node(data, task)?)
}

fn new_image(data: &Map<String, Value>) -> Result<NewImage, Fault> {
    let number = |key: &str| data.get(key).and_then(Value::as_u64);
    let on = |key: &str| data.get(key).and_then(Value::as_bool).unwrap_or(false);
    let size = number("size").unwrap_or(0);
    let reserved = text(data, "preallocation").map_or(Ok(Preallocation::Off), |name| Preallocation::from_name(&name));
    let preallocation = reserved.map_err(|error| Fault::new(error.to_string()))?;
    if let Some(path) = text(data, "filename") {
        return Ok(NewImage::File { path, size, preallocation });
    }
    if !size.is_multiple_of(512) {
        return Err("The image size must be a multiple of 512 bytes".into());
    }
    let defaults = CreateOptions::default();
    let format = text(data, "backing-fmt").map(|name| Format::from_name(&name)).transpose();
    let format = format.map_err(|error| Fault::new(error.to_string()))?;
    if format.is_some() && !data.contains_key("backing-file") {
        return Err("Backing format cannot be used without backing file".into());
    }
    let options = CreateOptions {
        size,
        cluster_size: number("cluster-size").unwrap_or(defaults.cluster_size),
        refcount_bits: number("refcount-bits").map_or(defaults.refcount_bits, |bits| bits.min(u32::MAX.into()) as u32),
        version: if text(data, "version").as_deref() == Some("v2") { 2 } else { 3 },
        lazy_refcounts: on("lazy-refcounts"),
        preallocation,
        compression: match text(data, "compression-type").as_deref() {
            Some("zstd") => Compression::Zstd,
            _ => Compression::Zlib,
        },
        backing: text(data, "backing-file").map(|file| (file, format)),
        extended_l2: on("extended-l2"),
        ..defaults
    };
    Ok(NewImage::Qcow2 { node: text(data, "file").unwrap_or_default(), options: Box::new(options) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn images_are_described() {
        let read = |value: Value| new_image(value.as_object().unwrap());
        let file = read(json!({"driver": "file", "filename": "/x", "size": 5, "preallocation": "full"}));
        assert!(matches!(file, Ok(NewImage::File { size: 5, preallocation: Preallocation::Full, .. })));
        let image = json!({"driver": "qcow2", "file": "n", "size": 1024, "version": "v2", "backing-file": "b",
                           "backing-fmt": "raw", "cluster-size": 4096});
        let Ok(NewImage::Qcow2 { node, options }) = read(image) else { panic!("an image") };
        assert_eq!((node.as_str(), options.size, options.version, options.cluster_size), ("n", 1024, 2, 4096));
        assert_eq!(options.backing, Some(("b".to_owned(), Some(Format::Raw))));
        let why = |value: Value| read(value).unwrap_err().to_json()["desc"].as_str().unwrap().to_owned();
        assert!(why(json!({"file": "n", "size": 5})).contains("multiple of 512"));
        assert!(why(json!({"file": "n", "size": 512, "backing-fmt": "raw"})).contains("without backing file"));
    }
}
