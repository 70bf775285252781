//! SCSI hosts (`-device virtio-scsi-pci` and others), and the disks and CD drives at their buses.

use super::config::{Attachment, DriveSpec, ScsiHostModel, ScsiHostSpec};
use super::drives::{Drives, Pending, Wants, device_keys, pci_slot};
use super::keyval::KeyValues;
use super::{blockdev, suggest, values};
use anyhow::{Result, anyhow, bail};
use brolga::block::drive::DriveOptions;
use brolga_devices::lsi::{self, Chip};
use brolga_devices::virtio::scsi::{MAX_LUN, MAX_QUEUES};

/// Hosts that `-drive if=scsi` can bring.
const MOST_HOSTS: u8 = 8;
/// Targets of a host that `-drive if=scsi` brings.
const TARGETS: u8 = lsi::MAX_TARGET + 1;

impl ScsiHostModel {
    /// The highest numbers of targets and units.
    fn limits(self) -> (u8, u16) {
        match self {
            ScsiHostModel::Virtio { .. } => (u8::MAX, MAX_LUN),
            ScsiHostModel::Lsi(_) => (lsi::MAX_TARGET, lsi::MAX_LUN.into()),
        }
    }
}

impl Drives {
    /// `-drive if=scsi`: at a host that comes with it, by `index`, or by `bus` and `unit`.
    pub(super) fn scsi_drive(
        &mut self,
        what: &str,
        index: Option<u8>,
        bus: Option<u8>,
        unit: Option<u8>,
    ) -> Result<Wants> {
        let (host, target) = match (index, bus, unit) {
            (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
                bail!("{what}: index= says the same as bus= and unit=; give either")
            }
            (Some(index), ..) => (index / TARGETS, Some(index % TARGETS)),
            (_, bus, unit) => (bus.unwrap_or(0), unit),
        };
        if target.is_some_and(|target| target >= TARGETS) {
            bail!("{what}: unit= goes from 0 to {} with if=scsi; use another bus", TARGETS - 1);
        }
        if host >= MOST_HOSTS {
            bail!("{what}: there are {MOST_HOSTS} buses with if=scsi; use one of them");
        }
        while self.scsi_hosts.len() <= host.into() {
            let bus = format!("scsi.{}", self.scsi_hosts.len());
            let model = ScsiHostModel::Lsi(Chip::C895a);
            self.scsi_hosts.push(ScsiHostSpec { what: what.to_owned(), bus, slot: None, pci_bus: 0, model });
        }
        Ok(Wants::Scsi { host: host.into(), target, lun: 0 })
    }

    /// `-device lsi53c895a` and `-device lsi53c810`.
    pub fn lsi_host(&mut self, mut keys: KeyValues, value: &str, id: Option<String>, chip: Chip) -> Result<()> {
        let what = format!("-device {value}");
        let slot = pci_slot(&mut keys)?;
        keys.finish()?;
        self.add_scsi_host(what, id, slot, ScsiHostModel::Lsi(chip))
    }

    /// `-device virtio-scsi-pci`.
    pub fn scsi_host(&mut self, mut keys: KeyValues, value: &str, id: Option<String>) -> Result<()> {
        let what = format!("-device {value}");
        let slot = pci_slot(&mut keys)?;
        let queues = keys.take_as("num_queues", |t| values::number_in(t, 1, MAX_QUEUES.into()).map(|n| n as u16))?;
        keys.take_fixed("disable-legacy", false, "the device is modern and transitional at once")?;
        keys.take_fixed("disable-modern", false, "the device is modern and transitional at once")?;
        keys.finish()?;
        self.add_scsi_host(what, id, slot, ScsiHostModel::Virtio { queues: queues.unwrap_or(1) })
    }

    fn add_scsi_host(
        &mut self,
        what: String,
        id: Option<String>,
        slot: Option<u8>,
        model: ScsiHostModel,
    ) -> Result<()> {
        // As QEMU names the buses of devices without a name.
        let bus = id.map_or_else(|| format!("scsi.{}", self.scsi_hosts.len()), |id| format!("{id}.0"));
        if let Some(other) = self.scsi_hosts.iter().find(|host| host.bus == bus) {
            bail!("{what}: its bus {bus} would be that of {}; give another id", other.what);
        }
        self.scsi_hosts.push(ScsiHostSpec { what, bus, slot, pci_bus: 0, model });
        Ok(())
    }

    /// `-device scsi-hd` and `-device scsi-cd`.
    pub fn scsi_device(&mut self, mut keys: KeyValues, value: &str, cd: bool) -> Result<()> {
        let what = format!("-device {value}");
        let host = self.scsi_bus(&what, keys.take("bus")?)?;
        let drive = keys.take("drive")?;
        keys.take_as("channel", |t| values::number_in(t, 0, 0))?;
        let model = self.scsi_hosts.get(host).map_or(ScsiHostModel::Virtio { queues: 1 }, |host| host.model);
        let (last_target, last_lun) = model.limits();
        let target = keys.take_as("scsi-id", |t| values::number_in(t, 0, last_target.into()).map(|n| n as u8))?;
        let lun = keys.take_as("lun", |t| values::number_in(t, 0, last_lun.into()).map(|n| n as u16))?;
        let text = |longest: usize| {
            move |t: &str| match t.is_ascii() && t.len() <= longest {
                true => Ok(t.to_owned()),
                false => Err(format!("it has up to {longest} ASCII characters")),
            }
        };
        let serial = keys.take_as("serial", text(36))?;
        let (vendor, model) = (keys.take_as("vendor", text(8))?, keys.take_as("product", text(16))?);
        let (version, device_id) = (keys.take_as("ver", text(4))?, keys.take_as("device_id", text(20))?);
        let wwn = keys.take_as("wwn", values::number)?;
        let (_, boot_index) = device_keys(&mut keys)?;
        let write_cache = blockdev::write_cache(&mut keys)?;
        keys.finish()?;
        let wants = Wants::Scsi { host, target, lun: lun.unwrap_or(0) };
        let spec = match drive {
            Some(id) => self.take_for(&what, &id, wants)?,
            None if cd => {
                let options = DriveOptions { read_only: true, ..DriveOptions::default() };
                self.drives.push(Pending { spec: DriveSpec::new(&what, None, true, options), wants });
                &mut self.drives.last_mut().ok_or_else(|| anyhow!("internal error: the drive is gone"))?.spec
            }
            None => bail!("{what}: drive= is missing; add -drive if=none,id=NAME,file=IMAGE and drive=NAME"),
        };
        if !cd && spec.cd {
            bail!("{what}: the drive is a CD (media=cdrom); use -device scsi-cd");
        }
        spec.what = what;
        spec.cd = cd;
        spec.options.read_only |= cd;
        spec.options.cache.writeback = write_cache.unwrap_or(spec.options.cache.writeback);
        spec.serial = serial.or(spec.serial.take());
        (spec.vendor, spec.model, spec.version, spec.device_id, spec.wwn) = (vendor, model, version, device_id, wwn);
        spec.boot_index = boot_index;
        Ok(())
    }

    /// The host that `bus=` names, or the first.
    fn scsi_bus(&self, what: &str, bus: Option<String>) -> Result<usize> {
        let names = || self.scsi_hosts.iter().map(|host| host.bus.as_str()).filter(|name| !name.is_empty());
        let at = |bus: &str| self.scsi_hosts.iter().position(|host| host.bus == bus);
        match bus {
            _ if names().next().is_none() => {
                bail!("{what}: there is no SCSI host; add -device virtio-scsi-pci before it")
            }
            None => Ok(names().next().and_then(at).unwrap_or(0)),
            Some(bus) => at(&bus).ok_or_else(|| {
                let near = suggest::nearest(&bus, names()).or(names().next()).unwrap_or_default();
                anyhow!("{what}: there is no SCSI bus {bus}; did you mean {near}?")
            }),
        }
    }
}

/// Gives SCSI drives their targets. Those that name one get it first.
pub fn place(drives: &mut [Pending], hosts: &[ScsiHostSpec]) -> Result<()> {
    let mut taken: Vec<(usize, u8, u16, String)> = Vec::new();
    for fixed in [true, false] {
        for Pending { spec, wants } in drives.iter_mut() {
            let Wants::Scsi { host, target, lun } = *wants else { continue };
            if target.is_some() != fixed {
                continue;
            }
            let free = |t: &u8| !taken.iter().any(|(h, other, ..)| *h == host && other == t);
            let last = hosts.get(host).map_or(u8::MAX, |host| host.model.limits().0);
            let target = target.or_else(|| (0..=last).find(free));
            let target = target.ok_or_else(|| anyhow!("{}: all targets are taken; use another host", spec.what))?;
            if let Some((.., other)) = taken.iter().find(|(h, t, l, _)| (*h, *t, *l) == (host, target, lun)) {
                bail!("{}: scsi-id={target} with lun={lun} is taken by {other}; give another", spec.what);
            }
            taken.push((host, target, lun, spec.what.clone()));
            spec.attachment = Some(Attachment::Scsi { host, target, lun });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::with;
    use super::*;

    const DRIVE: &[&str] = &["-drive", "if=none,id=d,file=FILE,format=raw"];

    fn drives(line: &[&str]) -> Result<Vec<(Attachment, Option<String>)>, String> {
        let me = std::fs::read_link("/proc/self/exe").unwrap().to_str().unwrap().to_owned();
        let words: Vec<String> = DRIVE.iter().chain(line).map(|w| w.replace("FILE", &me)).collect();
        let config = with(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
        Ok(config.drives.into_iter().map(|d| (d.attachment.unwrap(), d.vendor)).collect())
    }

    #[test]
    fn hosts_and_their_drives() {
        let line = [
            "-device",
            "virtio-scsi-pci,id=s,num_queues=4",
            "-device",
            "virtio-scsi",
            "-device",
            "scsi-cd",
            "-device",
            "scsi-hd,drive=d,bus=s.0,scsi-id=0,lun=2,vendor=ME,wwn=0x5000",
            "-device",
            "scsi-cd,bus=scsi.1",
        ];
        let at = |host, target, lun| Attachment::Scsi { host, target, lun };
        let me = Some("ME".to_owned());
        assert_eq!(drives(&line).unwrap(), [(at(0, 0, 2), me), (at(0, 1, 0), None), (at(1, 0, 0), None)]);
    }

    #[test]
    fn wrong_scsi_devices() {
        let err = |line: &[&str]| drives(line).unwrap_err();
        assert!(err(&["-device", "scsi-hd,drive=d"]).contains("no SCSI host; add -device virtio-scsi-pci"));
        let host = ["-device", "virtio-scsi-pci"];
        let with_host = |device: &str| err(&[&host[..], &["-device", device]].concat());
        assert!(with_host("scsi-hd,drive=d,bus=scsi.7").contains("did you mean scsi.0?"));
        assert!(with_host("scsi-hd").contains("drive= is missing"));
        assert!(with_host("scsi-hd,drive=d,vendor=MUCHTOOLONG").contains("up to 8 ASCII"));
        assert!(with_host("scsi-hd,drive=d,scsi-id=256").contains("out of range"));
        let twice = [&host[..], &["-device", "scsi-hd,drive=d,scsi-id=3", "-device", "scsi-cd,scsi-id=3"]].concat();
        assert!(err(&twice).contains("is taken by -device scsi-hd,drive=d,scsi-id=3"));
    }

    #[test]
    fn old_hosts_come_with_their_drives() {
        let at = |host, target, lun| (Attachment::Scsi { host, target, lun }, None);
        let line = ["-drive", "if=scsi,file=FILE", "-drive", "if=scsi,index=8,file=FILE", "-device", "lsi,id=x"];
        let more = ["-device", "scsi-hd,drive=d,bus=x.0,scsi-id=6,lun=7", "-drive", "if=scsi,unit=0,file=FILE"];
        let all = drives(&[&line[..], &more].concat()).unwrap();
        assert_eq!(all, [at(2, 6, 7), at(0, 1, 0), at(1, 1, 0), at(0, 0, 0)]);
        let err = |line: &[&str]| drives(line).unwrap_err();
        assert!(err(&["-drive", "if=scsi,unit=7,file=FILE"]).contains("unit= goes from 0 to 6"));
        assert!(err(&["-drive", "if=scsi,bus=8,file=FILE"]).contains("8 buses"));
        assert!(err(&["-drive", "if=scsi,bus=1,index=8,file=FILE"]).contains("give either"));
        let host = ["-device", "lsi53c810"];
        assert!(err(&[&host[..], &["-device", "scsi-hd,drive=d,scsi-id=7"]].concat()).contains("out of range"));
        let eight = [&host[..], &["-device", "scsi-cd"].repeat(8)].concat();
        assert!(err(&eight).contains("all targets are taken"));
    }
}
