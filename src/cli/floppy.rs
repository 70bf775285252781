//! `-fda`, `-fdb`, `-drive if=floppy` and `-device floppy`.

use super::config::{Attachment, DriveSpec};
use super::drives::{Drives, Pending, Wants, device_keys};
use super::keyval::KeyValues;
use super::{suggest, values};
use anyhow::{Result, anyhow, bail};
use brolga::block::drive::DriveOptions;
use brolga_devices::fdc::{DRIVES, DriveType};

/// The drive that `-drive` names. There is one controller.
pub fn unit(what: &str, index: Option<u8>, bus: Option<u8>, unit: Option<u8>) -> Result<Option<u8>> {
    if index.is_some() && (bus.is_some() || unit.is_some()) {
        bail!("{what}: index= says the same as bus= and unit=; give either");
    }
    if bus.is_some_and(|bus| bus != 0) {
        bail!("{what}: there is one floppy controller; leave bus= out");
    }
    match index.or(unit) {
        Some(unit) if usize::from(unit) >= DRIVES => {
            bail!("{what}: there are two floppy drives, index 0 and 1; choose one of them")
        }
        unit => Ok(unit),
    }
}

impl Drives {
    /// `-device floppy`.
    pub fn floppy_device(&mut self, mut keys: KeyValues, value: &str) -> Result<()> {
        let what = format!("-device {value}");
        let drive = keys.take("drive")?;
        keys.take_as("bus", |t| match t {
            "floppy-bus.0" => Ok(()),
            _ => Err(format!("'{t}' is no floppy bus; leave it out")),
        })?;
        let unit = keys.take_as("unit", |t| values::number_in(t, 0, 1).map(|n| n as u8))?;
        let kind = keys.take_as("drive-type", |t| match t {
            "120" => Ok(Some(DriveType::Large1200)),
            "144" => Ok(Some(DriveType::Small1440)),
            "288" => Ok(Some(DriveType::Small2880)),
            "auto" => Ok(None),
            _ => Err(format!("'{t}' is no type of drive{}", suggest::hint(t, ["120", "144", "288", "auto"]))),
        })?;
        let (serial, boot_index) = device_keys(&mut keys)?;
        if let Some(serial) = serial {
            return Err(keys.error("serial", &serial, "a floppy drive has none; leave it out"));
        }
        keys.finish()?;
        let wants = Wants::Floppy { unit, kind: kind.flatten() };
        let spec = match drive {
            Some(id) => self.take_for(&what, &id, wants)?,
            None => {
                self.drives.push(Pending { spec: DriveSpec::new(&what, None, false, DriveOptions::default()), wants });
                &mut self.drives.last_mut().ok_or_else(|| anyhow!("internal error: the drive is gone"))?.spec
            }
        };
        if spec.cd {
            bail!("{what}: the drive is a CD (media=cdrom); use -device ide-cd");
        }
        spec.what = what;
        spec.boot_index = boot_index;
        Ok(())
    }
}

/// Gives diskettes their drives. Those that name one get it first.
pub fn place(drives: &mut [Pending]) -> Result<()> {
    let mut taken: [Option<String>; DRIVES] = Default::default();
    for fixed in [true, false] {
        for Pending { spec, wants } in drives.iter_mut() {
            let Wants::Floppy { unit, kind } = *wants else { continue };
            if unit.is_some() != fixed {
                continue;
            }
            let free = || taken.iter().position(Option::is_none).map(|unit| unit as u8);
            let unit = unit.or_else(free);
            let unit = unit.ok_or_else(|| anyhow!("{}: both floppy drives are taken; leave it out", spec.what))?;
            let place = &mut taken[usize::from(unit) % DRIVES];
            if let Some(other) = place {
                bail!("{}: floppy drive {unit} is taken by {other}; give another index, or none", spec.what);
            }
            *place = Some(spec.what.clone());
            spec.attachment = Some(Attachment::Floppy { unit, kind });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::with;
    use super::*;

    fn places(line: &[&str]) -> Result<Vec<Attachment>, String> {
        let me = std::fs::read_link("/proc/self/exe").unwrap().to_str().unwrap().to_owned();
        let words: Vec<String> = line.iter().map(|w| w.replace("FILE", &me)).collect();
        let config = with(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
        Ok(config.drives.into_iter().map(|d| d.attachment.unwrap()).collect())
    }

    #[test]
    fn drives_and_their_types() {
        let at = |unit, kind| Attachment::Floppy { unit, kind };
        assert_eq!(places(&["-fdb", "FILE", "-drive", "if=floppy,file=FILE"]).unwrap(), [at(1, None), at(0, None)]);
        let line = ["-drive", "if=none,id=f,file=FILE", "-device", "floppy,drive=f,unit=1,drive-type=288"];
        let both = [&line[..], &["-device", "floppy"]].concat();
        assert_eq!(places(&both).unwrap(), [at(1, Some(DriveType::Small2880)), at(0, None)]);
    }

    #[test]
    fn wrong_floppies() {
        let err = |line: &[&str]| places(line).unwrap_err();
        let third = ["-fda", "FILE", "-fdb", "FILE", "-drive", "if=floppy,file=FILE"];
        assert!(err(&third).contains("both floppy drives are taken"));
        assert!(err(&["-fda", "FILE", "-drive", "if=floppy,index=0,file=FILE"]).contains("is taken by -fda"));
        assert!(err(&["-drive", "if=floppy,index=2,file=FILE"]).contains("two floppy drives"));
        assert!(err(&["-drive", "if=floppy,media=cdrom,file=FILE"]).contains("takes no CD"));
        assert!(err(&["-device", "floppy,drive-type=360"]).contains("no type of drive"));
        assert!(err(&["-device", "floppy,serial=1"]).contains("has none"));
        assert_eq!(err(&["-fda", "/no/such"]), "-fda /no/such: no such file; check the path");
    }
}
