//! `-trace`, and what `-d trace:` and the monitor take of it.

use super::config::TraceConfig;
use super::keyval::KeyValues;
use super::options::Arguments;
use super::os_reason;
use anyhow::{Result, bail};
use brolga_devices::trace;
use std::path::PathBuf;

/// What begins items of `-d` that are trace events.
const ITEM: &str = "trace:";

/// What is traced, and where to.
pub fn settle(arguments: &Arguments) -> Result<TraceConfig> {
    let mut config = TraceConfig::default();
    for value in arguments.all("trace") {
        let mut keys = KeyValues::parse("-trace", value, Some("enable"))?;
        for pattern in keys.take_all("enable") {
            config.patterns.push(switched(&pattern));
        }
        for file in keys.take_all("events") {
            let text = std::fs::read_to_string(&file)
                .or_else(|e| bail!("-trace events={file}: cannot be read: {}; check the path", os_reason(&e)))?;
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            config.patterns.extend(lines.map(switched));
        }
        if let Some(file) = keys.take("file")? {
            if config.file.is_some() {
                bail!("-trace file={file}: another file was given already; give one");
            }
            config.file = Some(PathBuf::from(file));
        }
        keys.finish()?;
    }
    let (patterns, _) = split(arguments.one("d").unwrap_or_default());
    config.patterns.extend(patterns);
    if let Some((pattern, _)) = config.patterns.iter().find(|(pattern, _)| pattern.is_empty()) {
        bail!("-trace {pattern}: the name of an event is missing; -trace help lists them");
    }
    Ok(config)
}

/// A pattern, and whether it switches on: `-name` switches off.
fn switched(pattern: &str) -> (String, bool) {
    match pattern.strip_prefix('-') {
        Some(off) => (off.to_owned(), false),
        None => (pattern.to_owned(), true),
    }
}

/// Takes trace events out of a list of log items: patterns, and the rest of the list.
pub fn split(list: &str) -> (Vec<(String, bool)>, String) {
    let (events, items): (Vec<&str>, Vec<&str>) = list.split(',').partition(|item| item.starts_with(ITEM));
    let patterns = events.into_iter().filter_map(|item| item.strip_prefix(ITEM)).map(switched).collect();
    (patterns, items.join(","))
}

/// All events, for `-trace help`.
pub fn help() -> String {
    let row = |(name, about): (&str, &str)| format!("{name:<24} {about}\n");
    let mut rows: Vec<String> = trace::declared().into_iter().map(row).collect();
    rows.sort();
    rows.push(row((
        "NAME_read, NAME_write",
        "accesses to the registers that 'info mtree' calls NAME, e.g. serial0_read",
    )));
    rows.concat()
}

#[cfg(test)]
mod tests {
    use super::super::tests::with;

    #[test]
    fn patterns_and_files() {
        let path = std::env::temp_dir().join(format!("brolga-trace-test-{}", std::process::id()));
        std::fs::write(&path, "# PCI\npci_cfg_*\n\n-pci_cfg_read\n").unwrap();
        let events = format!("events={},file=/x", path.display());
        let c = with(&["-trace", "pic_*", "-trace", &events, "-d", "int,trace:ps2_*"]).unwrap();
        let of = |name: &str, on| (name.to_owned(), on);
        let expected = [of("pic_*", true), of("pci_cfg_*", true), of("pci_cfg_read", false), of("ps2_*", true)];
        assert_eq!(c.trace.patterns, expected);
        assert_eq!((c.trace.file.unwrap().to_str(), c.log.items.as_slice()), (Some("/x"), &["int"][..]));
        std::fs::remove_file(&path).unwrap();
        let err = |l: &[&str]| with(l).unwrap_err();
        assert!(err(&["-trace", &events]).contains("cannot be read: no such file"));
        assert!(err(&["-trace", "enable="]).contains("name of an event is missing"));
        assert!(err(&["-trace", "file=a", "-trace", "file=b"]).contains("give one"));
        assert!(err(&["-trace", "a,event=b"]).contains("did you mean events?"));
        assert_eq!(with(&["-d", "trace:a"]).unwrap().log.items, [""; 0]);
    }
}
