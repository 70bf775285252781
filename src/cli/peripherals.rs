//! `-device` for entropy, balloon, crash reports and watchdog.

use super::config::peripherals::{BalloonSpec, EntropySource, PanicSpec, Peripherals, Place, RngSpec, WatchdogSpec};
use super::devices::{Devices, Model};
use super::keyval::KeyValues;
use super::network::place;
use super::objects::Objects;
use super::options::Arguments;
use super::sharing::{self, Shares};
use super::{display, serial_bus, serial_port, values};
use anyhow::{Result, bail};

/// Period of the entropy device's rate in milliseconds, unless told.
const PERIOD_MS: u32 = 1 << 16;
/// The usual port for crash reports.
const PANIC_PORT: u16 = 0x505;

pub const ADDR: (&str, &str) = ("addr", "PCI device and function, e.g. 4.0");

/// What can be asked for.
pub const MODELS: &[Model] = &[
    Model {
        name: "virtio-rng-pci",
        alias: Some("virtio-rng"),
        about: "random numbers for the guest",
        keys: &[
            ("rng", "the id of an -object (default: the host's own generator)"),
            ("max-bytes", "most bytes in each period"),
            ("period", "its length in milliseconds (default 65536)"),
            ADDR,
        ],
        add: rng,
    },
    Model {
        name: "virtio-balloon-pci",
        alias: Some("virtio-balloon"),
        about: "takes memory from the guest when told, and what it reports as free",
        keys: &[
            ("deflate-on-oom", "on: the guest takes memory back when it has no more"),
            ("free-page-reporting", "on: what the guest does not use goes back to the host"),
            ("guest-stats-polling-interval", "seconds between reports of the guest's memory (default 0: none)"),
            ADDR,
        ],
        add: balloon,
    },
    Model {
        name: "virtio-serial-pci",
        alias: Some("virtio-serial"),
        about: "bus of ports: virtconsole and virtserialport",
        keys: &[("max_ports", "ports have numbers below this, up to 31 (default)"), ADDR],
        add: serial_bus::bus,
    },
    Model {
        name: "virtconsole",
        alias: Some("virtio-console"),
        about: "console of the guest's (hvc0) on a virtio-serial bus",
        keys: serial_bus::PORT_KEYS,
        add: serial_bus::console,
    },
    Model {
        name: "virtserialport",
        alias: None,
        about: "stream of bytes between guest and host on a virtio-serial bus",
        keys: serial_bus::PORT_KEYS,
        add: serial_bus::port,
    },
    Model {
        name: "virtio-9p-pci",
        alias: Some("virtio-9p"),
        about: "folder of the host's that the guest mounts (in one option: -virtfs)",
        keys: sharing::KEYS,
        add: sharing::device,
    },
    Model {
        name: "pvpanic",
        alias: None,
        about: "port through which the guest's kernel reports a crash (see -action panic=)",
        keys: &[("ioport", "its I/O port (default 0x505)")],
        add: panic_port,
    },
    Model { name: "pvpanic-pci", alias: None, about: "the same in a PCI slot", keys: &[ADDR], add: panic_function },
    Model {
        name: "i6300esb",
        alias: None,
        about: "watchdog: a guest that stops feeding it is reset (see -action watchdog=)",
        keys: &[ADDR],
        add: watchdog,
    },
    Model {
        name: "isa-serial",
        alias: None,
        about: "serial port, as -serial makes them",
        keys: serial_port::KEYS,
        add: serial_port::add,
    },
];

/// Devices while they are collected.
#[derive(Clone, Debug, Default)]
pub struct Collected {
    pub wanted: Peripherals,
    /// `-fsdev`.
    pub shares: Shares,
    /// `-object`.
    pub objects: Objects,
}

impl Collected {
    /// Nothing yet but what devices refer to.
    pub fn begin(arguments: &Arguments) -> Result<Self> {
        let (shares, vga) = (sharing::virtfs(arguments)?, display::settle(arguments)?);
        let wanted = Peripherals { shares, vga, ..Peripherals::default() };
        Ok(Self { wanted, shares: Shares::collect(arguments)?, objects: Objects::collect(arguments)? })
    }
}

/// Takes what all PCI devices have.
fn slot(keys: &mut KeyValues, value: &str) -> Result<Option<Place>> {
    if let Some(bus) = keys.take("bus")?.filter(|bus| bus != "pci.0") {
        bail!("-device {value}: there is no bus {bus}; use bus=pci.0");
    }
    keys.take_as("addr", place)
}

/// Takes what all virtio devices have.
pub fn virtio_slot(keys: &mut KeyValues, value: &str) -> Result<Option<Place>> {
    keys.take_fixed("disable-legacy", false, "the device is modern and transitional at once")?;
    keys.take_fixed("disable-modern", false, "the device is modern and transitional at once")?;
    slot(keys, value)
}

fn rng(devices: &mut Devices, mut keys: KeyValues, value: &str) -> Result<()> {
    let what = format!("-device {value}");
    let source = match keys.take("rng")? {
        Some(id) => devices.peripherals.objects.entropy(&what, &id)?,
        None => EntropySource::Builtin,
    };
    let max_bytes = keys.take_as("max-bytes", |t| values::number_in(t, 1, i64::MAX as u64))?;
    let period = keys.take_as("period", |t| values::number_in(t, 1, u32::MAX.into()))?;
    let place = virtio_slot(&mut keys, value)?;
    keys.finish()?;
    let period_ms = period.map_or(PERIOD_MS, |ms| ms as u32);
    devices.peripherals.wanted.rngs.push(RngSpec { what, source, max_bytes, period_ms, place });
    Ok(())
}

fn balloon(devices: &mut Devices, mut keys: KeyValues, value: &str) -> Result<()> {
    let what = format!("-device {value}");
    let deflate_on_oom = keys.take_switch("deflate-on-oom")?.unwrap_or(false);
    let reporting = keys.take_switch("free-page-reporting")?.unwrap_or(false);
    keys.take_fixed("free-page-hint", false, "it serves QEMU's migration, and this program's has no use for it")?;
    let polling =
        keys.take_as("guest-stats-polling-interval", |t| values::number_in(t, 0, u32::MAX.into()))?.unwrap_or(0);
    let place = virtio_slot(&mut keys, value)?;
    keys.finish()?;
    if devices.peripherals.wanted.balloon.is_some() {
        bail!("{what}: there is another balloon; one is enough for all memory");
    }
    let spec = BalloonSpec { what, deflate_on_oom, reporting, polling_s: polling as u32, place };
    devices.peripherals.wanted.balloon = Some(spec);
    Ok(())
}

fn panic_port(devices: &mut Devices, mut keys: KeyValues, value: &str) -> Result<()> {
    let port = keys.take_as("ioport", |t| values::number_in(t, 0, 0xffff))?.map_or(PANIC_PORT, |port| port as u16);
    keys.finish()?;
    match devices.peripherals.wanted.panic_port.replace(port) {
        Some(_) => bail!("-device {value}: there is another pvpanic; leave one out"),
        None => Ok(()),
    }
}

fn panic_function(devices: &mut Devices, mut keys: KeyValues, value: &str) -> Result<()> {
    let place = slot(&mut keys, value)?;
    keys.finish()?;
    devices.peripherals.wanted.panic_functions.push(PanicSpec { what: format!("-device {value}"), place });
    Ok(())
}

fn watchdog(devices: &mut Devices, mut keys: KeyValues, value: &str) -> Result<()> {
    let place = slot(&mut keys, value)?;
    keys.finish()?;
    match devices.peripherals.wanted.watchdog.replace(WatchdogSpec { what: format!("-device {value}"), place }) {
        Some(_) => bail!("-device {value}: there is another watchdog; leave one out"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::with;
    use super::*;

    fn wanted(line: &[&str]) -> Result<Peripherals, String> {
        with(line).map(|c| c.peripherals)
    }

    #[test]
    fn entropy_devices_and_their_sources() {
        let p = wanted(&["-device", "virtio-rng-pci", "-device", "virtio-rng,max-bytes=1024,period=1000,addr=7"]);
        let p = p.unwrap();
        assert_eq!((&p.rngs[0].source, p.rngs[0].max_bytes), (&EntropySource::Builtin, None));
        assert_eq!((p.rngs[1].max_bytes, p.rngs[1].period_ms, p.rngs[1].place), (Some(1024), 1000, Some((7, 0))));
        let object = ["-object", "rng-random,id=r,filename=/dev/zero", "-device", "virtio-rng-pci,rng=r"];
        assert_eq!(wanted(&object).unwrap().rngs[0].source, EntropySource::File("/dev/zero".into()));
        let err = |line: &[&str]| wanted(line).unwrap_err();
        assert_eq!(
            err(&["-object", "rng-builtin,id=rng0", "-device", "virtio-rng,rng=rng1"]),
            "-device virtio-rng,rng=rng1: there is no -object rng-... with id=rng1; did you mean rng0?"
        );
        assert!(err(&["-object", "rng-builtin"]).contains("id= is missing"));
        assert!(err(&["-object", "rng-randm,id=x"]).contains("did you mean rng-random?"));
        assert!(err(&["-object", "iothread,id=x"]).contains("not supported yet"));
        assert!(err(&["-object", "rng-builtin,id=x", "-object", "rng-builtin,id=x"]).contains("another -object"));
        assert!(err(&["-object", "rng-random,id=x,filename=/does/not/exist"]).contains("no such file"));
        assert!(err(&["-device", "virtio-rng,max-bytes=0"]).contains("out of range"));
        assert!(err(&["-device", "virtio-rng,bus=pci.1"]).contains("use bus=pci.0"));
    }

    #[test]
    fn one_balloon() {
        let line = "virtio-balloon,deflate-on-oom=on,free-page-reporting=on,guest-stats-polling-interval=2";
        let balloon = wanted(&["-device", line]).unwrap().balloon.unwrap();
        assert!(balloon.deflate_on_oom && balloon.reporting && balloon.polling_s == 2);
        let twice = ["-device", "virtio-balloon", "-device", "virtio-balloon-pci"];
        assert!(wanted(&twice).unwrap_err().contains("another balloon"));
        assert!(wanted(&["-device", "virtio-balloon,free-page-hint=on"]).unwrap_err().contains("migration"));
    }

    #[test]
    fn crash_reports_and_watchdog() {
        let p = wanted(&["-device", "pvpanic", "-device", "pvpanic-pci,addr=9", "-device", "i6300esb"]).unwrap();
        assert_eq!(p.panic_port, Some(0x505));
        assert_eq!(p.panic_functions[0].place, Some((9, 0)));
        assert!(p.watchdog.is_some());
        assert_eq!(wanted(&["-device", "pvpanic,ioport=0x600"]).unwrap().panic_port, Some(0x600));
        let twice = ["-device", "i6300esb", "-device", "i6300esb"];
        assert!(wanted(&twice).unwrap_err().contains("another watchdog"));
    }
}
