//! The keys of `-drive` that say what a drive does, whatever device it is for.

use super::{DetectZeroes, DiscardMode, DriveOptions, ErrorAction};
use crate::block::qcow2::TableCaches;
use crate::block::{Aio, CacheMode, Format};
use crate::words::keyval::KeyValues;
use crate::words::values;
use anyhow::{Result, bail};

/// A reader of a word, with the reason alone as its error: the key is told by who calls.
pub fn word<T>(read: impl Fn(&str) -> crate::block::Result<T>) -> impl Fn(&str) -> std::result::Result<T, String> {
    move |text| {
        read(text).map_err(|e| {
            let told = e.to_string();
            told.split_once(": ").map_or(told.clone(), |(_, why)| why.to_string())
        })
    }
}

impl DriveOptions {
    /// Takes from a list of keys what is meant for the image: `format`, `readonly`, `snapshot`, `cache`
    /// and `cache.*`, `aio`, `discard`, `detect-zeroes`, `copy-on-read`, `werror`, `rerror`, the sizes of
    /// caches, and `file.locking`. `file`, `if`, `media` and the like stay for the caller.
    pub fn take(keys: &mut KeyValues) -> Result<DriveOptions> {
        let format = match (keys.take("format")?, keys.take("driver")?) {
            (Some(_), Some(_)) => bail!("format and driver are one option; leave one of them out"),
            (one, other) => one.or(other).map(|name| Format::from_name(&name)).transpose()?,
        };
        let mut options = DriveOptions { format, ..DriveOptions::default() };
        options.read_only = match (keys.take_switch("readonly")?, keys.take_switch("read-only")?) {
            (Some(_), Some(_)) => bail!("readonly and read-only are one option; leave one of them out"),
            (one, other) => one.or(other).unwrap_or(false),
        };
        options.snapshot = keys.take_switch("snapshot")?.unwrap_or(false);
        options.copy_on_read = keys.take_switch("copy-on-read")?.unwrap_or(false);
        options.cache = take_cache(keys)?;
        options.aio = keys.take_as("aio", word(Aio::from_name))?.unwrap_or_default();
        let discard = keys.take_as("discard", word(DiscardMode::from_name))?;
        options.discard = discard.unwrap_or_default();
        let detect = keys.take_as("detect-zeroes", word(DetectZeroes::from_name))?;
        options.detect_zeroes = detect.unwrap_or_default();
        if let Some(action) = keys.take_as("werror", word(ErrorAction::for_writes))? {
            options.write_errors = action;
        }
        if let Some(action) = keys.take_as("rerror", word(ErrorAction::for_reads))? {
            options.read_errors = action;
        }
        options.tables = take_tables(keys)?;
        options.lock = keys.take_as("file.locking", locking)?.unwrap_or(true);
        options.check()?;
        Ok(options)
    }
}

/// `locking=`. `auto` locks where the file system can, which is what `on` does here as well.
pub fn locking(text: &str) -> std::result::Result<bool, String> {
    match text {
        "auto" => Ok(true),
        _ => values::switch(text),
    }
}

/// The sizes of qcow2's caches.
pub fn take_tables(keys: &mut KeyValues) -> Result<TableCaches> {
    let size = |text: &str| values::size(text, 1);
    let l2 = keys.take_as("l2-cache-size", size)?;
    let refcounts = keys.take_as("refcount-cache-size", size)?;
    let both = keys.take_as("cache-size", size)?;
    Ok(TableCaches { l2, refcounts, both })
}

/// `cache=`, and the single switches that count more than it.
fn take_cache(keys: &mut KeyValues) -> Result<CacheMode> {
    let mut cache = keys.take_as("cache", word(CacheMode::from_name))?.unwrap_or_default();
    if let Some(on) = keys.take_switch("cache.writeback")? {
        cache.writeback = on;
    }
    if let Some(on) = keys.take_switch("cache.direct")? {
        cache.direct = on;
    }
    if let Some(on) = keys.take_switch("cache.no-flush")? {
        cache.no_flush = on;
    }
    Ok(cache)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(text: &str) -> Result<DriveOptions> {
        let mut keys = KeyValues::parse("-drive", text, None)?;
        let options = DriveOptions::take(&mut keys)?;
        keys.finish()?;
        Ok(options)
    }

    #[test]
    fn keys_become_options() {
        assert_eq!(take("format=qcow2").unwrap().format, Some(Format::Qcow2));
        let all = "cache=none,discard=unmap,detect-zeroes=unmap,copy-on-read=on,werror=stop,rerror=ignore,snapshot=on,\
                   l2-cache-size=1M,aio=native,file.locking=off";
        let options = take(all).unwrap();
        assert_eq!((options.cache.name(), options.discard), (Some("none"), DiscardMode::Unmap));
        assert_eq!((options.write_errors, options.read_errors), (ErrorAction::Stop, ErrorAction::Ignore));
        assert!(options.copy_on_read && options.snapshot && !options.lock && !options.read_only);
        assert_eq!((options.detect_zeroes, options.tables.l2), (DetectZeroes::Unmap, Some(1 << 20)));
        let options = take("cache=writethrough,cache.direct=on,readonly=on").unwrap();
        assert_eq!((options.cache.name(), options.read_only), (Some("directsync"), true));
    }

    #[test]
    fn wrong_values_are_told() {
        let told = |text: &str| take(text).unwrap_err().to_string();
        assert_eq!(
            told("cache=fast"),
            "-drive cache=fast: there are writeback, none, writethrough, directsync and unsafe"
        );
        assert_eq!(told("rerror=enospc"), "-drive rerror=enospc: there are report, ignore and stop");
        assert!(told("aio=native").contains("cache.direct=on"));
        assert!(told("detect-zeroes=unmap").contains("discard=unmap"));
        assert!(told("format=vhd").contains("there are raw and qcow2"));
        assert!(told("readonly=on,copy-on-read=on").contains("read-only drive"));
        assert!(told("if=ide").contains("'if'"), "left to the caller");
    }
}
