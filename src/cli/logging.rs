//! `-d`, `-D`, `-dfilter`.

use super::config::{LogConfig, ProfileConfig};
use super::keyval::KeyValues;
use super::options::Arguments;
use super::{suggest, values};
use crate::log::{ITEMS, REFUSED};
use anyhow::{Result, anyhow, bail};
use std::path::PathBuf;

/// What is logged, and where.
pub fn settle(arguments: &Arguments) -> Result<LogConfig> {
    let mut items = Vec::new();
    if let Some(list) = arguments.one("d") {
        let (_, rest) = super::traces::split(list);
        items = parse_items(&rest).map_err(|e| anyhow!("-d {list}: {e}"))?;
    }
    let filter = match arguments.one("dfilter") {
        Some(list) => {
            list.split(',').map(range).collect::<Result<_, _>>().map_err(|e| anyhow!("-dfilter {list}: {e}"))?
        }
        None => Vec::new(),
    };
    let file = match arguments.one("D") {
        Some("") => bail!("-D: the file name is empty; use -D FILE"),
        Some(name) => Some(crate::log::file_name(name)),
        None => None,
    };
    Ok(LogConfig { items, file, filter })
}

/// Looks a second of a profile unless told: no multiple of what guests' timers do.
const RATE: u64 = 199;

/// `-profile`.
pub fn profile(arguments: &Arguments) -> Result<Option<ProfileConfig>> {
    let Some(value) = arguments.one("profile") else { return Ok(None) };
    let mut keys = KeyValues::parse("-profile", value, Some("file"))?;
    let file = match keys.take("file")? {
        Some(file) if !file.is_empty() => PathBuf::from(file),
        _ => bail!("-profile {value}: file= is missing; use -profile FILE"),
    };
    let rate = keys.take_as("hz", |text| values::number_in(text, 1, 10_000))?.unwrap_or(RATE);
    let symbols = keys.take("symbols")?.map(PathBuf::from);
    let programs = keys.take_all("program").into_iter().map(PathBuf::from).collect();
    keys.finish()?;
    Ok(Some(ProfileConfig { file, rate, symbols, programs }))
}

/// A comma-separated list of item names, sorted, each once. Also used by the monitor's `log`.
pub fn parse_items(list: &str) -> Result<Vec<&'static str>, String> {
    let mut items = Vec::new();
    for name in list.split(',').filter(|_| !list.is_empty()) {
        match ITEMS.iter().find(|(item, _)| *item == name) {
            Some((item, _)) => items.push(*item),
            None if name == "all" => items.extend(ITEMS.iter().map(|(item, _)| *item)),
            None => {
                if let Some((_, why)) = REFUSED.iter().find(|(item, _)| *item == name) {
                    return Err(format!("'{name}' is not logged: {why}; leave it out"));
                }
                let hint = match suggest::nearest(name, ITEMS.iter().map(|(n, _)| *n)) {
                    Some(near) => format!("did you mean {near}?"),
                    None => "-d help lists them".to_owned(),
                };
                return Err(format!("'{name}' is not a log item; {hint}"));
            }
        }
    }
    items.sort_unstable();
    items.dedup();
    Ok(items)
}

/// `START..END` (inclusive), `START+LENGTH`, `START-LENGTH` (the bytes up to START).
fn range(text: &str) -> Result<(u64, u64), String> {
    let bad = || format!("'{text}' is not a range; write 0x1000..0x1fff or 0x1000+0x200");
    if let Some((start, end)) = text.split_once("..") {
        let (start, end) = (values::number(start)?, values::number(end)?);
        return if start <= end { Ok((start, end)) } else { Err(format!("'{text}' ends before it starts")) };
    }
    let (start, length, down) = match (text.split_once('+'), text.split_once('-')) {
        (Some((s, l)), _) => (s, l, false),
        (None, Some((s, l))) => (s, l, true),
        (None, None) => return Err(bad()),
    };
    let (start, length) = (values::number(start)?, values::number(length)?);
    let span = length.checked_sub(1).ok_or_else(bad)?;
    if down { Ok((start.saturating_sub(span), start)) } else { Ok((start, start.saturating_add(span))) }
}

#[cfg(test)]
mod tests {
    use super::super::tests::with;
    use std::path::Path;

    #[test]
    fn items_and_ranges() {
        let log = with(&["-d", "int,cpu_reset,int", "-D", "x-%d.log", "-dfilter", "0x10..0x1f,0x100+16"]).unwrap().log;
        assert_eq!(log.items, ["cpu_reset", "int"]);
        assert_eq!(log.filter, [(0x10, 0x1f), (0x100, 0x10f)]);
        assert_eq!(log.file.unwrap().to_str().unwrap(), format!("x-{}.log", std::process::id()));
        let err = |l: &[&str]| with(l).unwrap_err();
        assert_eq!(err(&["-d", "in_amm"]), "-d in_amm: 'in_amm' is not a log item; did you mean in_asm?");
        assert!(err(&["-d", "bogus"]).ends_with("-d help lists them"));
        assert!(err(&["-d", "int,strace"]).contains("'strace' is not logged: system calls"));
        assert!(err(&["-d", "tid"]).ends_with("; leave it out"));
        assert_eq!(with(&["-d", "all"]).unwrap().log.items.len(), crate::log::ITEMS.len());
        assert!(err(&["-dfilter", "5"]).contains("is not a range"));
        assert!(err(&["-dfilter", "9..5"]).contains("ends before it starts"));
        let p = with(&["-profile", "out,hz=50,symbols=/x,program=/a,program=/b"]).unwrap().profile.unwrap();
        assert_eq!((p.file.to_str(), p.rate, p.symbols.is_some()), (Some("out"), 50, true));
        assert_eq!(p.programs, [Path::new("/a"), Path::new("/b")]);
        assert!(err(&["-profile", "hz=5"]).contains("file= is missing"));
        assert!(err(&["-profile", "x,hz=0"]).contains("out of range"));
        assert!(err(&["-dfilter", "0x10+0"]).contains("is not a range"));
    }
}
