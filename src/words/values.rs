//! Values of options: numbers, sizes, switches, UUIDs, times. Errors say what is wrong, without the option's name.

use chrono::NaiveDate;

/// Why a value was refused.
pub type Refusal = String;

/// `on|off|yes|no|true|false`.
pub fn switch(text: &str) -> Result<bool, Refusal> {
    match text {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(format!("'{text}' is neither on nor off")),
    }
}

/// An unsigned number, decimal, `0x` hexadecimal or `0` octal as in C.
pub fn number(text: &str) -> Result<u64, Refusal> {
    let digits = |d: &str, radix| {
        if d.is_empty() || d.starts_with('+') {
            return Err(format!("'{text}' is not a number"));
        }
        u64::from_str_radix(d, radix).map_err(|e| match e.kind() {
            std::num::IntErrorKind::PosOverflow => format!("{text} is too large"),
            _ => format!("'{text}' is not a number"),
        })
    };
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        digits(hex, 16)
    } else if text.len() > 1 && text.starts_with('0') {
        digits(&text[1..], 8)
    } else {
        digits(text, 10)
    }
}

/// A number between `low` and `high`.
pub fn number_in(text: &str, low: u64, high: u64) -> Result<u64, Refusal> {
    let n = number(text)?;
    if (low..=high).contains(&n) {
        Ok(n)
    } else if high > 0xffff {
        Err(format!("{text} is out of range: {low:#x} to {high:#x}"))
    } else {
        Err(format!("{text} is out of range: {low} to {high}"))
    }
}

/// A size in bytes: a number, possibly with a fraction, with a suffix (b, k, M, G, T, P, E) or in units of `unit` bytes.
pub fn size(text: &str, unit: u64) -> Result<u64, Refusal> {
    let bad = || format!("'{text}' is not a size: write a number with k, M, G or T, like 512M or 2G");
    let (digits, scale) = match text.chars().last() {
        Some(c) if c.is_ascii_alphabetic() && !text.starts_with("0x") => {
            let power = match c.to_ascii_lowercase() {
                'b' => 0,
                'k' => 1,
                'm' => 2,
                'g' => 3,
                't' => 4,
                'p' => 5,
                'e' => 6,
                _ => return Err(bad()),
            };
            (&text[..text.len() - 1], 1u64 << (10 * power))
        }
        _ => (text, unit),
    };
    let large = || format!("{text} is too large");
    match digits.split_once('.') {
        None if digits.starts_with("0x") => number(digits).map_err(|_| bad())?.checked_mul(scale).ok_or_else(large),
        None => {
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return Err(bad());
            }
            digits.parse::<u64>().ok().and_then(|n| n.checked_mul(scale)).ok_or_else(large)
        }
        Some((whole, fraction)) => {
            let decimal = |s: &str| !s.is_empty() && s.len() < 16 && s.bytes().all(|b| b.is_ascii_digit());
            if !decimal(whole) || !decimal(fraction) || scale == 1 {
                return Err(bad());
            }
            let whole: u64 = whole.parse().map_err(|_| bad())?;
            let numerator: u128 = fraction.parse().map_err(|_| bad())?;
            let part = numerator * u128::from(scale) / 10u128.pow(fraction.len() as u32);
            whole.checked_mul(scale).and_then(|n| n.checked_add(part as u64)).ok_or_else(large)
        }
    }
}

/// A size as people read it: `512 MiB`, `23.5 GiB`.
pub fn show_size(bytes: u64) -> String {
    for (name, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        if bytes >> shift > 0 {
            let tenths = (u128::from(bytes) * 10) >> shift;
            return match tenths % 10 {
                0 => format!("{} {name}", tenths / 10),
                fraction => format!("{}.{fraction} {name}", tenths / 10),
            };
        }
    }
    format!("{bytes} bytes")
}

/// A UUID in text order.
pub fn uuid(text: &str) -> Result<[u8; 16], Refusal> {
    let bad = || format!("'{text}' is not a UUID: write 8-4-4-4-12 hexadecimal digits");
    let groups: Vec<&str> = text.split('-').collect();
    if groups.iter().map(|g| g.len()).ne([8, 4, 4, 4, 12]) || !text.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit())
    {
        return Err(bad());
    }
    let value = u128::from_str_radix(&groups.concat(), 16).map_err(|_| bad())?;
    Ok(value.to_be_bytes())
}

/// A UUID as text.
pub fn show_uuid(uuid: &[u8; 16]) -> String {
    let hex = format!("{:032x}", u128::from_be_bytes(*uuid));
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// A date or date and time (`2006-06-17T16:01:21`, `2006-06-17`) as seconds since 1970.
pub fn date_time(text: &str) -> Result<i64, Refusal> {
    let bad = || format!("'{text}' is not a time: write utc, localtime, 2006-06-17 or 2006-06-17T16:01:21");
    let (date, time) = text.split_once('T').unwrap_or((text, "0:0:0"));
    let parts = |s: &str, by: char, signed_max: u32| -> Option<[u32; 3]> {
        let v: Vec<u32> = s.split(by).map(|p| p.parse().ok()).collect::<Option<_>>()?;
        let v: [u32; 3] = v.try_into().ok()?;
        (v[0] <= signed_max).then_some(v)
    };
    let [year, month, day] = parts(date, '-', 9999).ok_or_else(bad)?;
    let [hour, minute, second] = parts(time, ':', 23).ok_or_else(bad)?;
    let day = NaiveDate::from_ymd_opt(year as i32, month, day).ok_or_else(bad)?;
    Ok(day.and_hms_opt(hour, minute, second).ok_or_else(bad)?.and_utc().timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(number("0x10"), Ok(16));
        assert_eq!(number("010"), Ok(8));
        assert_eq!(number("0"), Ok(0));
        for bad in ["", "0x", "+1", "-1", "1x", "09", "0x+1"] {
            assert!(number(bad).is_err(), "{bad}");
        }
        assert_eq!(number("99999999999999999999"), Err("99999999999999999999 is too large".into()));
        assert_eq!(number_in("300", 0, 255), Err("300 is out of range: 0 to 255".into()));
    }

    #[test]
    fn sizes() {
        assert_eq!(size("2048", 1 << 20), Ok(2 << 30));
        assert_eq!(size("2G", 1 << 20), Ok(2 << 30));
        assert_eq!(size("2g", 1), Ok(2 << 30));
        assert_eq!(size("1.5G", 1), Ok(3 << 29));
        assert_eq!(size("512k", 1), Ok(512 << 10));
        assert_eq!(size("1E", 1), Ok(1 << 60));
        assert_eq!(size("4096b", 1 << 20), Ok(4096));
        assert_eq!(size("0x100", 1 << 20), Ok(256 << 20));
        for bad in ["", "G", "1.G", ".5G", "1.5", "4 G", "-1", "1Q", "1GG", "0xG", "é"] {
            assert!(size(bad, 1).is_err(), "{bad}");
        }
        assert_eq!(size("18446744073709551615G", 1), Err("18446744073709551615G is too large".into()));
        assert_eq!(show_size(3 << 29), "1.5 GiB");
        assert_eq!(show_size(1 << 40), "1 TiB");
    }

    #[test]
    fn uuids_and_times() {
        let text = "a1b2c3d4-0000-1111-2222-333344445555";
        assert_eq!(show_uuid(&uuid(text).unwrap()), text);
        assert!(uuid("a1b2c3d4-0000-1111-2222-33334444555").is_err());
        assert!(uuid("a1b2c3d4-0000-1111-2222-3333444455zz").is_err());
        assert_eq!(date_time("1970-01-02"), Ok(86400));
        assert_eq!(date_time("2006-06-17T16:01:21"), Ok(1150560081));
        for bad in ["2006-13-01", "2006-06-17T25:00:00", "yesterday", "2006-06", "2006-06-17T"] {
            assert!(date_time(bad).is_err(), "{bad}");
        }
    }
}
