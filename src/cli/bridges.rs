//! `-device pci-bridge`, and which PCI bus `bus=` names.

use super::config::peripherals::Peripherals;
use super::config::{Attachment, BridgeSpec, Made, PciBusNumber};
use super::devices::Devices;
use super::keyval::KeyValues;
use super::network::place;
use super::values;
use anyhow::{Result, bail};

/// Keys of a bridge.
pub const KEYS: &[(&str, &str)] = &[
    ("id", "name of the bus behind it, for bus= of devices there"),
    ("chassis_nr", "number of its chassis, 1 to 255"),
    ("bus", "the bus that it is on itself (default pci.0)"),
    ("addr", "PCI device and function, e.g. 4.0"),
];

/// `-device pci-bridge`.
pub fn device(devices: &mut Devices, mut keys: KeyValues, value: &str) -> Result<()> {
    let what = format!("-device {value}");
    let chassis = keys.take_as("chassis_nr", |text| values::number_in(text, 1, 255).map(|n| n as u8))?;
    let place = keys.take_as("addr", place)?;
    keys.take_fixed("msi", false, "the bridge has nothing to tell")?;
    keys.take_fixed("shpc", false, "devices behind it stay there")?;
    keys.finish()?;
    let Some(chassis) = chassis else {
        bail!("{what}: chassis_nr= is missing; give each bridge a number of its own, from 1 on");
    };
    if let Some(other) = devices.bridges.iter().find(|other| other.chassis == chassis) {
        bail!("{what}: chassis_nr={chassis} is that of {}; give another number", other.what);
    }
    // As QEMU names the buses of bridges without a name.
    let id = devices.id.take().unwrap_or_else(|| format!("pci.{}", devices.bridges.len() + 1));
    if id == ROOT || devices.bridges.iter().any(|other| other.id == id) {
        bail!("{what}: there is a bus called {id}; choose another id");
    }
    devices.bridges.push(BridgeSpec { what, id, chassis, bus: 0, place });
    Ok(())
}

const ROOT: &str = "pci.0";

/// `bus=` where it names a PCI bus. Other buses are their devices' business.
pub fn take(devices: &Devices, keys: &mut KeyValues) -> Result<Option<PciBusNumber>> {
    let number = |name: &str| match name {
        ROOT => Some(0),
        _ => devices.bridges.iter().position(|bridge| bridge.id == name).map(|at| at + 1),
    };
    let Some(found) = keys.peek("bus").and_then(number) else { return Ok(None) };
    keys.take("bus")?;
    Ok(Some(found))
}

/// What there was before a device was added.
pub struct Before {
    nics: usize,
    hosts: usize,
    bridges: usize,
    peripherals: Peripherals,
}

impl Before {
    /// Now.
    pub fn now(devices: &Devices) -> Self {
        let nics = devices.network.nics.len();
        let (hosts, bridges) = (devices.drives.scsi_hosts.len(), devices.bridges.len());
        Self { nics, hosts, bridges, peripherals: devices.peripherals.wanted.clone() }
    }

    /// What became of the device that was added since.
    pub fn made(&self, devices: &Devices, value: &str) -> Made {
        let (before, now) = (&self.peripherals, &devices.peripherals.wanted);
        let new = |before: usize, now: usize| (now > before).then_some(before);
        if let Some(at) = new(self.nics, devices.network.nics.len()) {
            return Made::Nic(at);
        }
        if let Some(at) = new(self.hosts, devices.drives.scsi_hosts.len()) {
            return Made::ScsiHost(at);
        }
        if let Some((at, disk)) = devices.drives.of(&format!("-device {value}")) {
            return if disk { Made::Disk(at) } else { Made::ScsiUnit(at) };
        }
        let ports = |all: &Peripherals, at: usize| all.serial_buses.get(at).map_or(0, |bus| bus.ports.len());
        for (bus, spec) in now.serial_buses.iter().enumerate() {
            if let Some(port) = spec.ports.get(ports(before, bus)) {
                return Made::SerialPort { bus, number: port.number };
            }
        }
        let lists = [
            new(before.rngs.len(), now.rngs.len()).map(Made::Rng),
            new(before.serial_buses.len(), now.serial_buses.len()).map(Made::SerialBus),
            new(before.shares.len(), now.shares.len()).map(Made::Share),
            new(before.panic_functions.len(), now.panic_functions.len()).map(Made::PanicFunction),
            (before.balloon != now.balloon).then_some(Made::Balloon),
            (before.watchdog != now.watchdog).then_some(Made::Watchdog),
        ];
        lists.into_iter().flatten().next().unwrap_or(Made::Board)
    }

    /// Puts the device that was added since on its bus. `pci`: it is a PCI device.
    pub fn put(self, devices: &mut Devices, bus: Option<PciBusNumber>, value: &str, pci: bool) -> Result<()> {
        let Some(bus) = bus else { return Ok(()) };
        let what = format!("-device {value}");
        let drive = |spec: &super::config::DriveSpec| {
            spec.what == what && matches!(spec.attachment, Some(Attachment::VirtioBlk { .. }))
        };
        if let Some(nic) = devices.network.nics.get_mut(self.nics) {
            nic.pci_bus = bus;
        } else if let Some(host) = devices.drives.scsi_hosts.get_mut(self.hosts) {
            host.pci_bus = bus;
        } else if let Some(bridge) = devices.bridges.get_mut(self.bridges) {
            bridge.bus = bus;
        } else if let Some(disk) = devices.drives.drives.iter_mut().find(|disk| drive(&disk.spec)) {
            disk.spec.pci_bus = bus;
        } else if !pci {
            bail!("{what}: it is no PCI device; leave bus= out");
        } else if bus != 0 {
            bail!("{what}: only disks, SCSI hosts, network cards and bridges can be behind a bridge; use bus=pci.0");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::with;

    #[test]
    fn devices_find_their_buses() {
        let c = with(&[
            "-device",
            "pci-bridge,id=one,chassis_nr=1,addr=4",
            "-device",
            r#"{"driver":"pci-bridge","id":"two","chassis_nr":2,"bus":"one"}"#,
            "-device",
            "e1000,bus=two,addr=1",
            "-device",
            "rtl8139,bus=pci.0",
            "-device",
            "virtio-scsi-pci,bus=one",
            "-drive",
            &format!("if=none,id=d,file={}", std::env::current_exe().unwrap().display()),
            "-device",
            "virtio-blk-pci,drive=d,bus=two,addr=0x2",
            "-device",
            "virtio-rng-pci,bus=pci.0",
        ]);
        let c = c.unwrap();
        let bridges: Vec<_> = c.bridges.iter().map(|b| (b.id.as_str(), b.bus, b.place, b.chassis)).collect();
        assert_eq!(bridges, [("one", 0, Some((4, 0)), 1), ("two", 1, None, 2)]);
        assert_eq!([&c.nics[0], &c.nics[1]].map(|nic| nic.pci_bus), [2, 0]);
        assert_eq!((c.scsi_hosts[0].pci_bus, c.drives[0].pci_bus), (1, 2));
    }

    #[test]
    fn refusals() {
        let err = |line: &[&str]| with(line).unwrap_err();
        assert!(err(&["-device", "pci-bridge,id=b"]).contains("chassis_nr= is missing"));
        assert!(err(&["-device", "pci-bridge,id=b,chassis_nr=0"]).contains("1 to 255"));
        let two = |a: &str, b: &str| err(&["-device", a, "-device", b]);
        let one = "pci-bridge,id=b,chassis_nr=1";
        assert!(two(one, "pci-bridge,id=c,chassis_nr=1").contains("give another number"));
        assert!(two(one, "pci-bridge,id=b,chassis_nr=2").contains("choose another"));
        assert!(two(one, "e1000,bus=c").contains("there is no such bus"));
        assert!(two("e1000,bus=b", one).contains("there is no such bus"), "bridges come first");
        assert!(two(one, "virtio-rng-pci,bus=b").contains("use bus=pci.0"));
        assert!(two(one, "isa-debug-exit,bus=b").contains("no PCI device"));
        assert!(err(&["-device", "loader,data=1,data-len=1,addr=0,bus=pci.0"]).contains("no PCI device"));
        assert!(err(&["-device", "pci-bridge,chassis_nr=1,msi=on"]).contains("use msi=off"));
    }
}
