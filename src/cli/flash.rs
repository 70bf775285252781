//! `-pflash`, `-drive if=pflash` and `-machine pflash0=`: flash with firmware.

use super::config::Attachment;
use super::drives::{Drives, Pending, Wants};
use super::options::Arguments;
use anyhow::{Result, anyhow, bail};

/// Chips that a PC has places for.
const UNITS: usize = 2;

/// The chip that `-drive` names.
pub fn unit(what: &str, index: Option<u8>, bus: Option<u8>, unit: Option<u8>) -> Result<Option<u8>> {
    if bus.is_some_and(|bus| bus != 0) {
        bail!("{what}: flash has no buses; leave bus= out");
    }
    match index.or(unit) {
        Some(unit) if usize::from(unit) >= UNITS => bail!("{what}: there are two flash chips, unit 0 and 1"),
        unit => Ok(unit),
    }
}

impl Drives {
    /// `-machine pflash0=ID,pflash1=ID`: drives with `if=none`.
    pub fn machine_flash(&mut self, names: [Option<String>; UNITS]) -> Result<()> {
        for (unit, name) in (0..).zip(names) {
            let Some(name) = name else { continue };
            self.take_for(&format!("-machine pflash{unit}={name}"), &name, Wants::Flash(Some(unit)))?;
        }
        Ok(())
    }
}

/// Gives flash images their places. Those that name one get it first.
pub fn place(drives: &mut [Pending]) -> Result<()> {
    let mut taken: [Option<String>; UNITS] = Default::default();
    for fixed in [true, false] {
        for Pending { spec, wants } in drives.iter_mut() {
            let Wants::Flash(unit) = *wants else { continue };
            if unit.is_some() != fixed {
                continue;
            }
            let unit = unit.or_else(|| taken.iter().position(Option::is_none).map(|unit| unit as u8));
            let unit = unit.ok_or_else(|| anyhow!("{}: both flash chips are taken; leave it out", spec.what))?;
            let place = &mut taken[usize::from(unit) % UNITS];
            if let Some(other) = place {
                bail!("{}: flash chip {unit} is taken by {other}; give another unit, or none", spec.what);
            }
            *place = Some(spec.what.clone());
            spec.attachment = Some(Attachment::Flash { unit });
        }
    }
    match &taken {
        [None, Some(what)] => bail!("{what}: the second flash chip lies before the first; give unit 0 too"),
        _ => Ok(()),
    }
}

/// Whether firmware is in flash, which then nothing else can be.
pub fn check(arguments: &Arguments, drives: &Drives) -> Result<bool> {
    let Some(flash) = drives.drives.iter().find(|d| matches!(d.wants, Wants::Flash(_))) else { return Ok(false) };
    if let Some(value) = arguments.one("bios") {
        bail!("-bios {value}: the machine starts from flash ({}); leave one of them out", flash.spec.what);
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{parse_line, with};
    use super::*;

    fn places(line: &[&str]) -> Result<Vec<Attachment>, String> {
        let me = std::fs::read_link("/proc/self/exe").unwrap().to_str().unwrap().to_owned();
        let words: Vec<String> = line.iter().map(|w| w.replace("FILE", &me)).collect();
        let config = with(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
        Ok(config.drives.into_iter().map(|d| d.attachment.unwrap()).collect())
    }

    #[test]
    fn chips_in_all_spellings() {
        let at = |unit| Attachment::Flash { unit };
        let line = ["-drive", "if=pflash,file=FILE,readonly=on", "-drive", "if=pflash,file=FILE,unit=1"];
        assert_eq!(places(&line).unwrap(), [at(0), at(1)]);
        assert_eq!(places(&["-pflash", "FILE", "-pflash", "FILE"]).unwrap(), [at(0), at(1)]);
        let line =
            ["-drive", "if=none,id=a,file=FILE", "-drive", "if=none,id=b,file=FILE", "-M", "pc,pflash1=a,pflash0=b"];
        assert_eq!(places(&line).unwrap(), [at(1), at(0)]);
        let me = std::fs::read_link("/proc/self/exe").unwrap();
        let config = parse_line(&["-pflash", me.to_str().unwrap()]).unwrap();
        assert!(config.boot.flash && config.boot.bios.is_none());
    }

    #[test]
    fn wrong_flash() {
        let err = |line: &[&str]| places(line).unwrap_err();
        assert!(err(&["-drive", "if=pflash,file=FILE,unit=1"]).contains("give unit 0 too"));
        assert!(err(&["-pflash", "FILE", "-pflash", "FILE", "-pflash", "FILE"]).contains("both flash chips are taken"));
        assert!(err(&["-drive", "if=pflash,file=FILE,unit=2"]).contains("two flash chips"));
        assert!(err(&["-pflash", "FILE", "-bios", "FILE"]).contains("starts from flash"));
        assert!(err(&["-M", "pflash0=x"]).contains("there is no -drive with id=x"));
        assert!(err(&["-drive", "if=pflash"]).contains("file= is missing"));
    }
}
