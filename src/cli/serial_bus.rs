//! `-device virtio-serial`, `virtconsole` and `virtserialport`.

use super::config::peripherals::{SerialBusSpec, SerialPortSpec};
use super::devices::Devices;
use super::keyval::KeyValues;
use super::peripherals::virtio_slot;
use super::{suggest, values};
use anyhow::{Result, bail};
use brolga_devices::virtio::serial::MOST_PORTS;

/// Longest name of a port.
const LONGEST_NAME: usize = 255;

/// Keys of both kinds of ports.
pub const PORT_KEYS: &[(&str, &str)] = &[
    ("chardev", "its host end: the id of a -chardev"),
    ("name", "by which the guest finds it, e.g. org.example.agent.0"),
    ("nr", "its number on the bus; 0 is for a console"),
    ("bus", "the bus, if there are several: ID.0 for -device virtio-serial,id=ID"),
];

/// `-device virtio-serial`.
pub fn bus(devices: &mut Devices, mut keys: KeyValues, value: &str) -> Result<()> {
    let max_ports = keys.take_as("max_ports", |t| values::number_in(t, 1, MOST_PORTS.into()))?;
    let place = virtio_slot(&mut keys, value)?;
    keys.finish()?;
    let (what, id) = (format!("-device {value}"), devices.id.take());
    let buses = &mut devices.peripherals.wanted.serial_buses;
    if id.is_some() && buses.iter().any(|bus| bus.id == id) {
        bail!("{what}: there is another virtio-serial with this id; choose another name");
    }
    let max_ports = max_ports.map_or(MOST_PORTS, |n| n as u32);
    buses.push(SerialBusSpec { what, id, max_ports, ports: Vec::new(), place, gone: false });
    Ok(())
}

/// `-device virtconsole`.
pub fn console(devices: &mut Devices, keys: KeyValues, value: &str) -> Result<()> {
    add(devices, keys, value, true)
}

/// `-device virtserialport`.
pub fn port(devices: &mut Devices, keys: KeyValues, value: &str) -> Result<()> {
    add(devices, keys, value, false)
}

fn add(devices: &mut Devices, mut keys: KeyValues, value: &str, console: bool) -> Result<()> {
    let what = format!("-device {value}");
    let (chardev, name) = (keys.take("chardev")?, keys.take("name")?.unwrap_or_default());
    let number = keys.take_as("nr", |t| values::number_in(t, 0, u64::from(MOST_PORTS) - 1))?.map(|n| n as u32);
    let bus = keys.take("bus")?;
    keys.finish()?;
    let Some(chardev) = chardev else {
        bail!("{what}: chardev= is missing; add -chardev socket,id=NAME,... and chardev=NAME");
    };
    if name.len() > LONGEST_NAME || name.contains(['/', '\0']) {
        bail!("{what}: name= has at most {LONGEST_NAME} bytes and no slash; choose another name");
    }
    let chardev = devices.chars.refer(&what, &chardev)?;
    let bus = find(&mut devices.peripherals.wanted.serial_buses, bus, &what)?;
    let free = |number: &u32| bus.ports.iter().all(|port| port.number != *number);
    let number = match number {
        Some(0) if !console => bail!("{what}: number 0 is for a console; use nr=1 or more"),
        Some(number) if number >= bus.max_ports => {
            bail!("{what}: the bus has {} ports; use a smaller nr= or a larger max_ports=", bus.max_ports)
        }
        Some(number) if !free(&number) => bail!("{what}: number {number} is taken; choose another nr="),
        Some(number) => number,
        None => match (u32::from(!console)..bus.max_ports).find(free) {
            Some(number) => number,
            None => bail!("{what}: the bus is full; add another -device virtio-serial"),
        },
    };
    bus.ports.push(SerialPortSpec { number, console, name, chardev });
    Ok(())
}

/// The bus of that name; the first one, made if need be, if there is no name.
fn find<'a>(buses: &'a mut Vec<SerialBusSpec>, name: Option<String>, what: &str) -> Result<&'a mut SerialBusSpec> {
    if buses.iter().all(|bus| bus.gone) && name.is_none() {
        let what = "-device virtio-serial".to_owned();
        buses.push(SerialBusSpec {
            what,
            id: None,
            max_ports: MOST_PORTS,
            ports: Vec::new(),
            place: None,
            gone: false,
        });
    }
    let at = match &name {
        None => buses.iter().position(|bus| !bus.gone),
        Some(name) => {
            let id = name.strip_suffix(".0").unwrap_or(name);
            buses.iter().position(|bus| !bus.gone && bus.id.as_deref() == Some(id))
        }
    };
    let names: Vec<String> = buses.iter().filter_map(|bus| bus.id.as_ref().map(|id| format!("{id}.0"))).collect();
    match at.and_then(|at| buses.get_mut(at)) {
        Some(bus) => Ok(bus),
        None => {
            let name = name.unwrap_or_default();
            let hint = suggest::hint(&name, names.iter().map(String::as_str));
            bail!("{what}: there is no bus {name}{hint}; add -device virtio-serial,id={}", name.trim_end_matches(".0"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::with;
    use super::*;

    fn buses(line: &[&str]) -> Result<Vec<SerialBusSpec>, String> {
        with(line).map(|c| c.peripherals.serial_buses)
    }

    const CHARDEVS: [&str; 6] = ["-chardev", "null,id=a", "-chardev", "null,id=b", "-chardev", "null,id=c"];

    fn more<'a>(line: &[&'a str]) -> Vec<&'a str> {
        CHARDEVS.iter().chain(line).copied().collect()
    }

    #[test]
    fn ports_find_their_bus_and_numbers() {
        let line = more(&[
            "-device",
            "virtio-serial-pci,id=vs,max_ports=4,addr=6",
            "-device",
            "virtserialport,bus=vs.0,chardev=a,name=org.a,id=p",
            "-device",
            "virtconsole,chardev=b",
            "-device",
            "virtserialport,chardev=c,nr=3",
        ]);
        let found = buses(&line).unwrap();
        let ports: Vec<_> = found[0].ports.iter().map(|p| (p.number, p.console, p.name.as_str())).collect();
        assert_eq!(ports, [(1, false, "org.a"), (0, true, ""), (3, false, "")]);
        assert_eq!((found.len(), found[0].max_ports, found[0].place), (1, 4, Some((6, 0))));
        // A console alone brings its bus.
        assert_eq!(buses(&more(&["-device", "virtio-console,chardev=a"])).unwrap()[0].ports.len(), 1);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let err = |line: &[&str]| buses(&more(line)).unwrap_err();
        assert!(err(&["-device", "virtconsole"]).contains("chardev= is missing"));
        assert!(err(&["-device", "virtconsole,chardev=x"]).contains("there is no -chardev with id=x"));
        assert!(err(&["-device", "virtserialport,chardev=a,nr=0"]).contains("for a console"));
        assert!(err(&["-device", "virtserialport,chardev=a,bus=vs.0"]).contains("there is no bus vs.0; add"));
        assert!(err(&["-device", "virtio-serial,max_ports=32"]).contains("out of range: 1 to 31"));
        let full = ["-device", "virtio-serial,max_ports=1", "-device", "virtserialport,chardev=a"];
        assert!(err(&full).contains("the bus is full"));
        let taken = ["-device", "virtserialport,chardev=a,nr=2", "-device", "virtserialport,chardev=b,nr=2"];
        assert!(err(&taken).contains("number 2 is taken"));
        assert!(err(&["-device", "virtserialport,chardev=a,name=a/b"]).contains("no slash"));
    }
}
