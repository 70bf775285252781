//! `-device isa-serial`: a serial port in one of the usual places.

use super::devices::Devices;
use super::keyval::KeyValues;
use super::values;
use anyhow::{Result, bail};

/// Ports and interrupts of COM1 to COM4.
const PLACES: [(u64, u64); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];

/// What it is described by.
pub const KEYS: &[(&str, &str)] = &[
    ("chardev", "its host end: the id of a -chardev"),
    ("index", "0 to 3: COM1 to COM4; the first that is free if none"),
    ("iobase", "its first I/O port: 0x3f8, 0x2f8, 0x3e8 or 0x2e8"),
    ("irq", "its interrupt: 4 for the first and third, 3 for the others"),
    ("bus", "isa.0"),
];

/// `-device isa-serial`.
pub fn add(devices: &mut Devices, mut keys: KeyValues, value: &str) -> Result<()> {
    let what = format!("-device {value}");
    let chardev = keys.take("chardev")?;
    let index = keys.take_as("index", |text| values::number_in(text, 0, 3))?.map(|n| n as usize);
    let base = keys.take_as("iobase", |text| {
        let base = values::number(text)?;
        PLACES
            .iter()
            .position(|(usual, _)| *usual == base)
            .ok_or_else(|| format!("a serial port is at 0x3f8, 0x2f8, 0x3e8 or 0x2e8, not at {text}"))
    })?;
    let irq = keys.take_as("irq", |text| values::number_in(text, 0, 15))?;
    if let Some(bus) = keys.take("bus")?.filter(|bus| bus != "isa.0") {
        bail!("{what}: there is no bus {bus} that it fits; leave bus= out");
    }
    keys.finish()?;
    let Some(chardev) = chardev else {
        bail!("{what}: chardev= is missing; add -chardev stdio,id=NAME and chardev=NAME, or use -serial");
    };
    let free = || devices.chars.serials.iter().position(Option::is_none);
    let place = match (index, base) {
        (Some(index), Some(base)) if index != base => {
            bail!("{what}: index= and iobase= name different ports; give one")
        }
        (Some(place), _) | (None, Some(place)) => place,
        (None, None) => match free() {
            Some(place) => place,
            None => bail!("{what}: all four serial ports are there already; leave one out"),
        },
    };
    let Some((base, usual)) = PLACES.get(place).copied() else { bail!("{what}: there is no such port") };
    if irq.is_some_and(|irq| irq != usual) {
        bail!("{what}: the port at {base:#x} has interrupt {usual}; leave irq= out");
    }
    if devices.chars.serials.get(place).is_some_and(Option::is_some) {
        bail!("{what}: the port at {base:#x} is there already; choose another index=, or leave -serial out");
    }
    let chardev = devices.chars.refer(&what, &chardev)?;
    if let Some(port) = devices.chars.serials.get_mut(place) {
        *port = Some(chardev);
    }
    devices.chars.console_seen = true;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::config::CharId;
    use super::super::tests::with;

    fn ports(line: &[&str]) -> Result<Vec<Option<usize>>, String> {
        let ends = ["-chardev", "null,id=a", "-chardev", "null,id=b", "-nodefaults"];
        let config = with(&[&ends, line].concat())?;
        Ok(config.serials.iter().map(|port| port.map(|CharId(at)| at)).collect())
    }

    #[test]
    fn ports_have_their_places() {
        let json = r#"{"driver":"isa-serial","chardev":"a","id":"serial0","index":0}"#;
        assert_eq!(ports(&["-device", json]).unwrap(), [Some(0), None, None, None]);
        let two = ["-device", "isa-serial,chardev=a,iobase=0x2f8,irq=3", "-device", "isa-serial,chardev=b,bus=isa.0"];
        assert_eq!(ports(&two).unwrap(), [Some(1), Some(0), None, None]);
        let err = |device: &str| ports(&["-serial", "null", "-device", device]).unwrap_err();
        assert!(err("isa-serial").contains("chardev= is missing"));
        assert!(err("isa-serial,chardev=a,index=0").contains("there already"));
        assert!(err("isa-serial,chardev=a,index=4").contains("0 to 3"));
        assert!(err("isa-serial,chardev=a,iobase=0x100").contains("not at 0x100"));
        assert!(err("isa-serial,chardev=a,index=1,irq=4").contains("has interrupt 3"));
        assert!(err("isa-serial,chardev=a,index=1,iobase=0x3e8").contains("different ports"));
        assert!(err("isa-serial,chardev=zz").contains("no -chardev with id=zz"));
        assert!(err("isa-serial,chardev=a,bus=pci.0").contains("no PCI device"));
    }
}
