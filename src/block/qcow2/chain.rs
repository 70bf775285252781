//! Finding the backing file.

use crate::block::probe::{MAX_CHAIN, open_at_depth};
use crate::block::{BlockError, Format, Image, Layer, OpenOptions, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Opens the backing file that the image at `overlay` names, which has `depth` images above.
/// It is opened as the overlay was, but only for reading.
pub(super) fn open_backing(
    overlay: &Path,
    named: &str,
    format: Option<&str>,
    depth: u32,
    options: &OpenOptions,
) -> Result<Image> {
    let name = overlay.to_string_lossy().into_owned();
    let opened = locate(overlay, named).and_then(|(path, json_format)| {
        check_depth(&path, depth)?;
        let format = json_format.as_deref().or(format).map(Format::from_name).transpose()?;
        let OpenOptions { lock, cache, .. } = *options;
        let options = OpenOptions { format, read_only: true, lock, cache, ..OpenOptions::default() };
        open_at_depth(&path, &options, depth + 1)
    });
    opened.map_err(|e| BlockError::Backing { name, source: Box::new(e) })
}

/// Opens the backing file that the user gave, see [`open_backing`].
pub(super) fn open_given(overlay: &Path, layer: &Layer, depth: u32) -> Result<Image> {
    let name = overlay.to_string_lossy().into_owned();
    let options = OpenOptions { read_only: true, ..layer.options.clone() };
    let opened = check_depth(&layer.path, depth).and_then(|()| open_at_depth(&layer.path, &options, depth + 1));
    opened.map_err(|e| BlockError::Backing { name, source: Box::new(e) })
}

fn check_depth(path: &Path, depth: u32) -> Result<()> {
    if depth < MAX_CHAIN {
        return Ok(());
    }
    let what = format!("more than {MAX_CHAIN} backing files; is it its own backing file?");
    Err(BlockError::Unsupported { name: path.to_string_lossy().into_owned(), what })
}

/// The path that a backing file name means, and the format if the name itself tells it.
pub(super) fn locate(overlay: &Path, named: &str) -> Result<(PathBuf, Option<String>)> {
    let (file, format) = match named.strip_prefix("json:") {
        Some(json) => read_json(named, json)?,
        None => (named.strip_prefix("file:").unwrap_or(named).to_string(), None),
    };
    // "nbd://host", "rbd:pool": a protocol stands before a colon, and no slash before that.
    let protocol = file.split_once(':').map(|(p, _)| p).filter(|p| !p.is_empty() && !p.contains('/'));
    if let Some(protocol) = protocol.filter(|_| !named.starts_with("file:") && !named.starts_with("json:")) {
        let what = format!("backing files over '{protocol}:' are not supported; copy it to a file and rebase");
        return Err(BlockError::Unsupported { name: named.to_string(), what });
    }
    let path = PathBuf::from(file);
    let directory = overlay.parent().unwrap_or(Path::new(""));
    Ok((if path.is_absolute() { path } else { directory.join(path) }, format))
}

/// `json:{"driver":"qcow2","file":{"driver":"file","filename":"..."}}` and its flat spellings.
fn read_json(named: &str, json: &str) -> Result<(String, Option<String>)> {
    let fail = |what: &str| BlockError::Unsupported { name: named.to_string(), what: what.to_string() };
    let value: Value = serde_json::from_str(json).map_err(|e| fail(&format!("not valid JSON: {e}")))?;
    let text = |v: Option<&Value>| v.and_then(Value::as_str).map(str::to_string);
    let driver = text(value.get("driver"));
    let file = value.get("file");
    let protocol = text(file.and_then(|f| f.get("driver"))).or_else(|| text(value.get("file.driver")));
    if let Some(protocol) = protocol.filter(|p| p != "file" && p != "host_device") {
        return Err(fail(&format!("driver '{protocol}' is not supported for backing files; there is 'file'")));
    }
    let name = text(file.and_then(|f| f.get("filename")))
        .or_else(|| text(value.get("file.filename")))
        .or_else(|| text(value.get("filename")));
    let name = name.ok_or_else(|| fail("no \"filename\" in it"))?;
    let format = driver.filter(|d| d != "file" && d != "host_device");
    Ok((name, format))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_mean_paths() {
        let at = |named: &str| locate(Path::new("/images/over.qcow2"), named).unwrap();
        assert_eq!(at("base.raw"), (PathBuf::from("/images/base.raw"), None));
        assert_eq!(at("/a/b"), (PathBuf::from("/a/b"), None));
        assert_eq!(at("file:x:y"), (PathBuf::from("/images/x:y"), None));
        let json = r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"b.img"}}"#;
        assert_eq!(at(json), (PathBuf::from("/images/b.img"), Some("qcow2".to_string())));
        assert_eq!(at(r#"json:{"driver":"raw","file.filename":"/c"}"#), (PathBuf::from("/c"), Some("raw".to_string())));
        assert!(locate(Path::new("o"), "nbd://host/x").unwrap_err().to_string().contains("nbd:"));
        assert!(locate(Path::new("o"), "json:{}").is_err());
    }
}
