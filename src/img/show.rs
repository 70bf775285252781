//! Sizes and JSON as qemu-img prints them.

use anyhow::Result;
use serde_json::Value;
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
