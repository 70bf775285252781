//! Sizes and JSON as qemu-img prints them.

use crate::block::qcow2::SnapshotInfo;
use anyhow::Result;
use chrono::{Local, TimeZone};
use serde_json::{Value, json};
use std::io::Write;

/// A size with three digits that count: `10 MiB`, `1.95 GiB`, `196 KiB`, `512 B`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    // From 1000 of a unit on the next one is used, so that there are never four digits.
    let mut unit = 0;
    while unit + 1 < UNITS.len() && u128::from(bytes) >= 1000 << (10 * unit) {
        unit += 1;
    }
    let value = bytes as f64 / (1u64 << (10 * unit)) as f64;
    format!("{} {}B", three_digits(value), UNITS.get(unit).copied().unwrap_or_default())
}

/// `%0.3g` of C for numbers below 1000.
fn three_digits(value: f64) -> String {
    let whole = format!("{value:.0}");
    if value >= 99.95 {
        return whole;
    }
    let decimals = match value {
        v if v >= 9.995 => 1,
        v if v >= 0.9995 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// JSON over several lines, indented by four.
pub fn json(value: &Value, out: &mut dyn Write) -> Result<()> {
    for line in serde_json::to_string_pretty(value)?.lines() {
        // The printer indents by two, and strings hold no line ends.
        let indent = line.len() - line.trim_start().len();
        writeln!(out, "{:indent$}{line}", "")?;
    }
    Ok(())
}

/// A table of internal snapshots.
pub fn snapshots(all: &[SnapshotInfo], out: &mut dyn Write) -> Result<()> {
    writeln!(out, "Snapshot list:")?;
    let row = |out: &mut dyn Write, c: [&str; 6]| {
        writeln!(out, "{:<7} {:<16} {:>8} {:>19} {:>15} {:>10}", c[0], c[1], c[2], c[3], c[4], c[5])
    };
    row(out, ["ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT"])?;
    for snapshot in all {
        let date = Local.timestamp_opt(i64::from(snapshot.date_sec), 0).single();
        let date = date.map_or(String::new(), |d| d.format("%Y-%m-%d %H:%M:%S").to_string());
        let seconds = snapshot.vm_clock_nsec / 1_000_000_000;
        let millis = snapshot.vm_clock_nsec / 1_000_000 % 1000;
        let clock = format!("{:04}:{:02}:{:02}.{millis:03}", seconds / 3600, seconds / 60 % 60, seconds % 60);
        let icount = snapshot.icount.map_or("--".to_owned(), |n| n.to_string());
        row(out, [&snapshot.id, &snapshot.name, &size(snapshot.vm_state_size), &date, &clock, &icount])?;
    }
    Ok(())
}

/// One internal snapshot.
pub fn snapshot_json(snapshot: &SnapshotInfo) -> Value {
    let mut value = json!({
        "id": snapshot.id,
        "name": snapshot.name,
        "vm-state-size": snapshot.vm_state_size,
        "date-sec": snapshot.date_sec,
        "date-nsec": snapshot.date_nsec,
        "vm-clock-sec": snapshot.vm_clock_nsec / 1_000_000_000,
        "vm-clock-nsec": snapshot.vm_clock_nsec % 1_000_000_000,
    });
    if let Some(icount) = snapshot.icount {
        value["icount"] = json!(icount);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (999, "999 B"),
            (1000, "0.977 KiB"),
            (1024, "1 KiB"),
            (197_120, "192 KiB"),
            (1 << 20, "1 MiB"),
            (1536 << 10, "1.5 MiB"),
            (1023 << 20, "0.999 GiB"),
            (12_345_678, "11.8 MiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
