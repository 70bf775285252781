//! `-vga`: the graphics card.

use super::boot::firmware_dirs;
use super::config::peripherals::VgaSpec;
use super::options::Arguments;
use super::suggest;
use anyhow::{Result, bail};

/// The card's code, from the package `seabios`.
const ROM: &str = "vgabios-stdvga.bin";
/// Cards that QEMU has and Brolga has not.
const FOREIGN: &[&str] = &["cirrus", "vmware", "qxl", "virtio", "xenfb", "tcx", "cg3"];

/// What `-vga help` lists.
pub const CARDS: &[(&str, &str)] = &[
    ("none", "no card (default)"),
    ("std", "VGA with Bochs' display interface; its text screen is shown by info qtree"),
];

/// The card, if one is asked for.
pub fn settle(arguments: &Arguments) -> Result<Option<VgaSpec>> {
    match arguments.one("vga") {
        None | Some("none") => return Ok(None),
        Some("std") => {}
        Some(other) if FOREIGN.contains(&other) => bail!("-vga {other}: this card is not supported yet; use -vga std"),
        Some(other) => {
            let hint = suggest::hint(other, CARDS.iter().map(|(name, _)| *name));
            bail!("-vga {other}: unknown card{hint}; use -vga std or none")
        }
    }
    let rom = firmware_dirs(arguments).into_iter().map(|dir| dir.join(ROM)).find(|path| path.is_file());
    if rom.is_none() && arguments.one("kernel").is_none() {
        bail!("-vga std: {ROM} is missing; install the package seabios, or name its folder with -L");
    }
    Ok(Some(VgaSpec { rom }))
}

#[cfg(test)]
mod tests {
    use super::super::tests::with;

    #[test]
    fn cards() {
        let vga =
            |value: &str| with(&["-kernel", "/proc/self/exe", "-vga", value]).map(|c| c.peripherals.vga.is_some());
        assert_eq!((vga("none"), vga("std")), (Ok(false), Ok(true)));
        assert_eq!(vga("qxl").unwrap_err(), "-vga qxl: this card is not supported yet; use -vga std");
        assert!(vga("sdt").unwrap_err().contains("did you mean std?"));
    }
}
