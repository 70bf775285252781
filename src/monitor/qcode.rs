//! Keys by the names that QMP and `sendkey` have for them, with their codes in the keyboard's scan code set 1; those with an
//! 0xe0 prefix have 0xe000 added.

/// Names, in the order of [`CODES`].
pub const NAMES: &[&str] = &[
    "esc",
    "1",
    "2",
    "3",
    "4",
    "5",
    "6",
    "7",
    "8",
    "9",
    "0",
    "minus",
    "equal",
    "backspace",
    "tab",
    "q",
    "w",
    "e",
    "r",
    "t",
    "y",
    "u",
    "i",
    "o",
    "p",
    "bracket_left",
    "bracket_right",
    "ret",
    "ctrl",
    "a",
    "s",
    "d",
    "f",
    "g",
    "h",
    "j",
    "k",
    "l",
    "semicolon",
    "apostrophe",
    "grave_accent",
    "shift",
    "backslash",
    "z",
    "x",
    "c",
    "v",
    "b",
    "n",
    "m",
    "comma",
    "dot",
    "slash",
    "shift_r",
    "asterisk",
    "kp_multiply",
    "alt",
    "spc",
    "caps_lock",
    "f1",
    "f2",
    "f3",
    "f4",
    "f5",
    "f6",
    "f7",
    "f8",
    "f9",
    "f10",
    "num_lock",
    "scroll_lock",
    "kp_7",
    "kp_8",
    "kp_9",
    "kp_subtract",
    "kp_4",
    "kp_5",
    "kp_6",
    "kp_add",
    "kp_1",
    "kp_2",
    "kp_3",
    "kp_0",
    "kp_decimal",
    "sysrq",
    "less",
    "f11",
    "f12",
    "kp_enter",
    "ctrl_r",
    "kp_divide",
    "print",
    "alt_r",
    "pause",
    "home",
    "up",
    "pgup",
    "left",
    "right",
    "end",
    "down",
    "pgdn",
    "insert",
    "delete",
    "meta_l",
    "meta_r",
    "menu",
    "compose",
];

/// Scan codes, in the order of [`NAMES`].
const CODES: &[u16] = &[
    0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f, 0x10, 0x11, 0x12, 0x13,
    0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f, 0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26,
    0x27, 0x28, 0x29, 0x2a, 0x2b, 0x2c, 0x2d, 0x2e, 0x2f, 0x30, 0x31, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37, 0x37, 0x38,
    0x39, 0x3a, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f, 0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x4b,
    0x4c, 0x4d, 0x4e, 0x4f, 0x50, 0x51, 0x52, 0x53, 0x54, 0x56, 0x57, 0x58, 0xe01c, 0xe01d, 0xe035, 0xe037, 0xe038,
    0xe046, 0xe047, 0xe048, 0xe049, 0xe04b, 0xe04d, 0xe04f, 0xe050, 0xe051, 0xe052, 0xe053, 0xe05b, 0xe05c, 0xe05d,
    0xe05d,
];

/// The code of the key called `name`.
pub fn find(name: &str) -> Option<u16> {
    let at = NAMES.iter().position(|known| *known == name)?;
    CODES.get(at).copied()
}

/// The code of a key by number: those above 0x7f stand for an 0xe0 prefix and the code without its highest bit.
pub fn of_number(number: u64) -> Option<u16> {
    let code = match number {
        1..=0x7f => number as u16,
        0x81..=0xff => 0xe000 | number as u16 & 0x7f,
        _ => return None,
    };
    CODES.contains(&code).then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_codes() {
        assert_eq!(NAMES.len(), CODES.len());
        assert_eq!((find("a"), find("ret"), find("delete")), (Some(0x1e), Some(0x1c), Some(0xe053)));
        assert_eq!(find("nonsense"), None);
        assert_eq!(
            (of_number(0x1e), of_number(0xd3), of_number(0), of_number(0x155)),
            (Some(0x1e), Some(0xe053), None, None)
        );
    }
}
