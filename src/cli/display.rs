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
    ("none", "no card"),
    ("std", "VGA with Bochs' display interface; its text screen is shown by info qtree (default)"),
];

/// The card: there is one unless none is asked for.
pub fn settle(arguments: &Arguments) -> Result<Option<VgaSpec>> {
    let asked = arguments.one("vga");
    match asked {
        None if arguments.flag("nodefaults") => return Ok(None),
        Some("none") => return Ok(None),
        None | Some("std") => {}
        Some(other) if FOREIGN.contains(&other) => bail!("-vga {other}: this card is not supported yet; use -vga std"),
        Some(other) => {
            let hint = suggest::hint(other, CARDS.iter().map(|(name, _)| *name));
            bail!("-vga {other}: unknown card{hint}; use -vga std or none")
        }
    }
    let rom = firmware_dirs(arguments).into_iter().map(|dir| dir.join(ROM)).find(|path| path.is_file());
    // One that nobody asked for does without its code: firmware says more if it needs the same package.
    if rom.is_none() && asked.is_some() && arguments.one("kernel").is_none() {
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
        let plain = |more: &[&str]| {
            let line = [&["-kernel", "/proc/self/exe"], more].concat();
            with(&line).map(|c| c.peripherals.vga.is_some())
        };
        assert_eq!((plain(&[]), plain(&["-nodefaults"])), (Ok(true), Ok(false)));
        assert_eq!(vga("qxl").unwrap_err(), "-vga qxl: this card is not supported yet; use -vga std");
        assert!(vga("sdt").unwrap_err().contains("did you mean std?"));
    }
}
