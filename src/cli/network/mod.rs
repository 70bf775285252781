//! `-netdev`, `-nic`, `-net`, and network cards in `-device`.

mod cards;
mod host_ends;
mod user;

pub use cards::{RTL8139, VIRTIO, models, place};
pub use user::{host_forward, host_port};

use super::config::network::{NetdevKind, NetdevSpec, NicModel, NicSpec};
use super::config::{BootConfig, DriveSpec};
use super::keyval::KeyValues;
use super::options::Arguments;
use super::{suggest, values};
use anyhow::{Result, anyhow, bail};
use cards::{model, show_mac};
use std::path::PathBuf;

/// Kinds of host ends, with what they are.
const KINDS: &[(&str, &str)] = &[
    ("user", "a network of its own behind address translation; needs no privilege"),
    ("tap", "a TAP interface of the host"),
    ("bridge", "a TAP interface on a bridge of the host's, made by qemu-bridge-helper: br=NAME, helper=PROGRAM"),
    ("socket", "frames over TCP: listen=[HOST]:PORT or connect=HOST:PORT"),
    ("stream", "frames over TCP or a Unix socket: server=on|off,addr.type=inet|unix,..."),
    ("hubport", "a port of a hub, for a card or with netdev= for another host end: hubid=NUMBER"),
    ("dgram", "frames over UDP, multicast groups or Unix datagrams: local.type=inet|unix,..., remote.type=..."),
];
/// Kinds of QEMU's that are not there yet.
const ABSENT: &[&str] = &["l2tpv3", "vde", "vhost-user", "vhost-vdpa", "af-xdp", "netmap"];
/// What QEMU gives the first card.
const FIRST_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];

/// Host ends and cards while they are collected.
#[derive(Clone, Debug, Default)]
pub struct Network {
    /// Host ends.
    pub netdevs: Vec<NetdevSpec>,
    /// Cards, those of `-device` first.
    pub nics: Vec<NicSpec>,
    /// What was given for each card, and is settled when all are known.
    asked: Vec<Asked>,
    /// Where boot ROMs are looked for.
    folders: Vec<PathBuf>,
}

/// What was asked for a card, or left open.
#[derive(Clone, Debug)]
struct Asked {
    mac: Option<[u8; 6]>,
    option: String,
    rom: Option<String>,
    /// The card was taken away.
    gone: bool,
}

/// The host ends of `-netdev`, which the others refer to.
pub fn netdevs(arguments: &Arguments) -> Result<Network> {
    let mut network = Network::default();
    for value in arguments.all("netdev") {
        let mut keys = KeyValues::parse("-netdev", value, Some("type"))?;
        let kind = keys.take("type")?.ok_or_else(|| anyhow!("-netdev {value}: no kind; use -netdev user,id=NAME"))?;
        let id = keys.take("id")?.ok_or_else(|| anyhow!("-netdev {value}: id= is missing; add id=NAME"))?;
        network.add("-netdev", &id, &kind, keys)?;
    }
    Ok(network)
}

/// Kinds as `-netdev help` lists them.
pub fn help() -> String {
    KINDS.iter().map(|(name, about)| format!("{name:<16} {about}\n")).collect()
}

impl Network {
    /// Adds a host end.
    fn add(&mut self, option: &str, id: &str, kind: &str, mut keys: KeyValues) -> Result<usize> {
        if self.netdevs.iter().any(|netdev| netdev.id == id) {
            bail!("{option} {kind},id={id}: there is another host end of that name; choose another id");
        }
        let kind = match kind {
            "user" => NetdevKind::User(Box::new(user::settle(option, &mut keys)?)),
            "tap" => NetdevKind::Tap(host_ends::tap(option, &mut keys)?),
            "bridge" => NetdevKind::Tap(host_ends::bridge(option, &mut keys)?),
            "socket" => host_ends::socket(option, &mut keys)?,
            "stream" => NetdevKind::Stream(host_ends::stream(option, &mut keys)?),
            "dgram" => NetdevKind::Datagram(host_ends::datagram(option, &mut keys)?),
            "hubport" => self.hub_port(option, &mut keys)?,
            _ => return Err(unknown_kind(option, kind)),
        };
        keys.finish()?;
        self.netdevs.push(NetdevSpec { id: id.to_owned(), kind });
        Ok(self.netdevs.len() - 1)
    }

    /// `hubport`: a port for a card, or for another host end.
    fn hub_port(&self, option: &str, keys: &mut KeyValues) -> Result<NetdevKind> {
        let Some(hub) = keys.take_as("hubid", |text| values::number_in(text, 0, i32::MAX as u64))? else {
            bail!("{option} hubport: hubid= is missing; ports with the same number are on one hub");
        };
        let Some(name) = keys.take("netdev")? else { return Ok(NetdevKind::HubPort { hub: hub as u32, netdev: None }) };
        let at = self.find(&format!("{option} hubport"), &name)?;
        if self.netdevs.get(at).is_some_and(|netdev| matches!(netdev.kind, NetdevKind::HubPort { .. })) {
            bail!("{option} hubport: netdev={name} is a port itself; hubs are not connected to each other");
        }
        Ok(NetdevKind::HubPort { hub: hub as u32, netdev: Some(at) })
    }

    /// A card of `-device`, whose model is known.
    pub fn device(&mut self, model: NicModel, mut keys: KeyValues, value: &str) -> Result<()> {
        let netdev = match keys.take("netdev")? {
            Some(name) => Some(self.find(&format!("-device {value}"), &name)?),
            None => None,
        };
        let id = KeyValues::parse("-device", value, Some("driver"))?.take("id")?;
        self.card("-device", model, netdev, id, keys)
    }

    fn find(&self, option: &str, name: &str) -> Result<usize> {
        let at = self.netdevs.iter().position(|netdev| netdev.id == name).ok_or_else(|| {
            let names = self.netdevs.iter().map(|netdev| netdev.id.as_str());
            let hint = suggest::hint(name, names);
            anyhow!("{option}: there is no -netdev with id={name}{hint}")
        })?;
        if self.nics.iter().any(|nic| nic.netdev == Some(at)) {
            bail!("{option}: netdev={name} has a card already; give each card a -netdev of its own");
        }
        let at_port =
            |netdev: &&NetdevSpec| matches!(netdev.kind, NetdevKind::HubPort { netdev: Some(end), .. } if end == at);
        if let Some(port) = self.netdevs.iter().find(at_port) {
            bail!("{option}: netdev={name} is at the hub's port {}; give it a port of its own", port.id);
        }
        if self.netdevs.get(at).is_some_and(|netdev| matches!(netdev.kind, NetdevKind::HubPort { netdev: Some(_), .. }))
        {
            bail!("{option}: netdev={name} is a hub's port for another host end; give it a port of its own");
        }
        Ok(at)
    }

    /// Adds a card.
    fn card(
        &mut self,
        option: &str,
        mut model: NicModel,
        netdev: Option<usize>,
        id: Option<String>,
        mut keys: KeyValues,
    ) -> Result<()> {
        if let NicModel::VirtioNet { .. } = model {
            let queues = match netdev.and_then(|at| self.netdevs.get(at)).map(|netdev| &netdev.kind) {
                Some(NetdevKind::Tap(tap)) => tap.queues(),
                _ => 1,
            };
            model = cards::virtio(option, &mut keys, queues)?;
        }
        if let NicModel::Rtl8139 { plus } = &mut model {
            *plus = keys.take_switch("c-plus")?.unwrap_or(*plus);
        }
        let mac = keys.take_as("mac", cards::mac)?;
        let other = keys.take_as("macaddr", cards::mac)?;
        let place = keys.take_as("addr", cards::place)?;
        // A bus behind a bridge was taken by then.
        if let Some(bus) = keys.take("bus")?.filter(|bus| bus != "pci.0") {
            bail!("{option} bus={bus}: there is no such bus; use pci.0, or add -device pci-bridge,id={bus} before it");
        }
        let rom = keys.take("romfile")?;
        let rom_bar = keys.take_as("rombar", |text| match text {
            "0" => Ok(false),
            "1" => Ok(true),
            _ => values::switch(text),
        })?;
        let boot_index = keys.take_as("bootindex", |text| values::number_in(text, 0, i32::MAX as u64))?;
        keys.finish()?;
        // Address and ROM are filled in when all cards are known.
        self.nics.push(NicSpec {
            model,
            id,
            netdev,
            mac: FIRST_MAC,
            pci_bus: 0,
            place,
            rom: None,
            rom_bar: rom_bar.unwrap_or(true),
            boot_index: boot_index.map(|index| index as u32),
        });
        self.asked.push(Asked { mac: mac.or(other), option: option.to_owned(), rom, gone: false });
        Ok(())
    }

    /// Adds what `-nic` and `-net` ask for, or the card that a PC has without them, and gives each card an address.
    pub fn finish(&mut self, arguments: &Arguments) -> Result<()> {
        let silent = ["netdev", "nic", "net"].iter().all(|option| arguments.all(option).is_empty());
        if silent && !arguments.flag("nodefaults") {
            self.nic("user", 0)?;
        }
        for (i, value) in arguments.all("nic").iter().enumerate() {
            self.nic(value, i)?;
        }
        self.hub(arguments.all("net"))?;
        self.addresses()?;
        let folders = super::boot::firmware_dirs(arguments);
        self.folders = folders;
        self.roms()
    }

    /// One more host end, in the grammar of `-netdev`; its number.
    pub fn netdev_later(&mut self, value: &str) -> Result<usize> {
        let option = "netdev_add";
        let mut keys = KeyValues::parse(option, value, Some("type"))?;
        let Some(kind) = keys.take("type")? else { bail!("Parameter 'type' is missing") };
        let Some(id) = keys.take("id")? else { bail!("Parameter 'id' is missing") };
        if self.netdevs.iter().any(|netdev| netdev.id == id) {
            bail!("Duplicate ID '{id}'");
        }
        self.add(option, &id, &kind, keys)
    }

    /// A host end was taken away; cards that have it are left without one.
    pub fn forget_netdev(&mut self, number: usize) {
        if let Some(netdev) = self.netdevs.get_mut(number) {
            netdev.id.clear();
        }
        for nic in self.nics.iter_mut().filter(|nic| nic.netdev == Some(number)) {
            nic.netdev = None;
        }
    }

    /// Settles the cards that were added to those that are settled already.
    pub fn settle_later(&mut self) -> Result<()> {
        self.addresses()?;
        self.roms()
    }

    /// A card was taken away; its host end is free again.
    pub fn forget_card(&mut self, at: usize) {
        if let (Some(nic), Some(asked)) = (self.nics.get_mut(at), self.asked.get_mut(at)) {
            (nic.netdev, nic.id, nic.boot_index) = (None, None, None);
            asked.gone = true;
        }
    }

    /// Finds the cards' boot ROMs.
    fn roms(&mut self) -> Result<()> {
        for (nic, asked) in self.nics.iter_mut().zip(&self.asked) {
            nic.rom = cards::rom(&asked.option, asked.rom.as_deref(), nic.model, &self.folders)?;
        }
        Ok(())
    }

    /// `-nic KIND,model=M,mac=...`: card and host end in one.
    fn nic(&mut self, value: &str, index: usize) -> Result<()> {
        if value == "none" {
            return Ok(());
        }
        let mut keys = KeyValues::parse("-nic", value, Some("type"))?;
        let kind = keys.take("type")?.unwrap_or_else(|| "user".to_owned());
        let model = keys.take_as("model", model)?.unwrap_or(NicModel::E1000);
        let id = keys.take("id")?;
        let mut card = KeyValues::none("-nic");
        for key in cards::own_keys() {
            if let Some(value) = keys.take(key)? {
                card.add(&format!("{key}={}", value.replace(',', ",,")), None)?;
            }
        }
        let name = id.unwrap_or_else(|| format!("nic{index}"));
        let netdev = self.add("-nic", &name, &kind, keys)?;
        self.card("-nic", model, Some(netdev), None, card)
    }

    /// `-net nic` and `-net KIND`, which all are on one hub: a card and a host end do without.
    fn hub(&mut self, values: &[String]) -> Result<()> {
        let (cards, ends): (Vec<_>, Vec<_>) =
            values.iter().filter(|value| *value != "none").partition(|value| value.split(',').next() == Some("nic"));
        let hub = cards.len() > 1 && !ends.is_empty() || ends.len() > 1;
        let mut end = None;
        for (number, value) in ends.into_iter().enumerate() {
            let mut keys = KeyValues::parse("-net", value, Some("type"))?;
            let kind = keys.take("type")?.unwrap_or_default();
            let id = keys.take("id")?.or(keys.take("name")?).unwrap_or_else(|| format!("net{number}"));
            let at = self.add("-net", &id, &kind, keys)?;
            match hub {
                true => drop(self.port(Some(at))?),
                false => end = Some(at),
            }
        }
        for value in cards {
            let mut keys = KeyValues::parse("-net", value, Some("type"))?;
            keys.take("type")?;
            let model = keys.take_as("model", model)?.unwrap_or(NicModel::E1000);
            let id = keys.take("id")?.or(keys.take("name")?);
            let netdev = match keys.take("netdev")? {
                Some(name) => Some(self.find(&format!("-net {value}"), &name)?),
                None if hub => Some(self.port(None)?),
                None => end.take(),
            };
            self.card("-net", model, netdev, id, keys)?;
        }
        match end.and_then(|at| self.netdevs.get(at)) {
            Some(NetdevSpec { id, .. }) => bail!("-net: host end {id} has no card; add -net nic"),
            None => Ok(()),
        }
    }

    /// A port of the hub that `-net` means, which QEMU gives the number 0.
    fn port(&mut self, netdev: Option<usize>) -> Result<usize> {
        let ports = self.netdevs.iter().filter(|netdev| matches!(netdev.kind, NetdevKind::HubPort { hub: 0, .. }));
        let id = format!("hub0port{}", ports.count());
        if self.netdevs.iter().any(|netdev| netdev.id == id) {
            bail!("-net: there is a host end called {id}; choose another id for it");
        }
        self.netdevs.push(NetdevSpec { id, kind: NetdevKind::HubPort { hub: 0, netdev } });
        Ok(self.netdevs.len() - 1)
    }

    /// Gives the cards that were given no address the next free ones, as QEMU does.
    fn addresses(&mut self) -> Result<()> {
        let given: Vec<[u8; 6]> = self.asked.iter().filter(|asked| !asked.gone).filter_map(|asked| asked.mac).collect();
        for (i, mac) in given.iter().enumerate() {
            if given[..i].contains(mac) {
                bail!("mac={}: two cards have this address; change one", show_mac(*mac));
            }
        }
        let mut next = (0..=u8::MAX).map(|i| {
            let [a, b, c, d, e, f] = FIRST_MAC;
            [a, b, c, d, e, f.wrapping_add(i)]
        });
        for (nic, asked) in self.nics.iter_mut().zip(&mut self.asked).filter(|(_, asked)| !asked.gone) {
            let free = || next.find(|mac| !given.contains(mac));
            nic.mac = asked.mac.or_else(free).ok_or_else(|| anyhow!("more than 256 network cards; leave some out"))?;
            // It keeps its address when others come.
            asked.mac = Some(nic.mac);
        }
        Ok(())
    }
}

/// Whether firmware has a card to start from; those that are to be tried need a boot ROM, and a place of their own in
/// the order of `drives`.
pub fn check_boot(nics: &[NicSpec], drives: &[DriveSpec], boot: &BootConfig) -> Result<()> {
    for (i, nic) in nics.iter().enumerate() {
        let Some(index) = nic.boot_index else { continue };
        let drive = drives.iter().find(|drive| drive.boot_index == Some(index)).map(|drive| drive.what.as_str());
        let card = nics[..i].iter().any(|other| other.boot_index == Some(index)).then_some("another card");
        if let Some(other) = drive.or(card) {
            bail!("-device ...,bootindex={index}: it is taken by {other}; give another number");
        }
        if nic.rom.is_none() {
            return Err(cards::no_rom(nic.model));
        }
    }
    match nics.first() {
        Some(nic) if boot.order.asks_network() && nics.iter().all(|nic| nic.rom.is_none()) => {
            Err(cards::no_rom(nic.model))
        }
        _ => Ok(()),
    }
}

fn unknown_kind(option: &str, kind: &str) -> anyhow::Error {
    let hint = suggest::hint(kind, KINDS.iter().map(|(name, _)| *name));
    let cause = if ABSENT.contains(&kind) { "not supported yet" } else { "unknown kind" };
    anyhow!("{option} {kind}: {cause}{hint}")
}

#[cfg(test)]
mod tests {
    use super::super::tests::with;
    use super::*;

    fn err(line: &[&str]) -> String {
        with(line).unwrap_err()
    }

    #[test]
    fn cards_and_their_ends() {
        let c = with(&["-netdev", "user,id=n0,hostfwd=tcp::2222-:22", "-device", "e1000,netdev=n0,id=c0,addr=0x5"])
            .unwrap();
        assert_eq!((c.netdevs.len(), c.nics.len()), (1, 1));
        assert_eq!((c.nics[0].netdev, c.nics[0].mac, c.nics[0].place), (Some(0), FIRST_MAC, Some((5, 0))));
        let c = with(&["-nic", "user,model=e1000,mac=52:54:0:0:0:1", "-nic", "user,id=b", "-nic", "none"]).unwrap();
        assert_eq!(c.nics.iter().map(|n| n.mac[5]).collect::<Vec<_>>(), [1, 0x56]);
        assert_eq!(c.netdevs[1].id, "b");
        let c = with(&[
            "-nic",
            "user,model=virtio-net-pci,queues=2",
            "-netdev",
            "user,id=x",
            "-device",
            "virtio-net,netdev=x",
        ]);
        let models: Vec<_> = c.unwrap().nics.iter().map(|n| n.model).collect();
        assert_eq!(models, [VIRTIO, NicModel::VirtioNet { pairs: 2, without: 0 }]);
        let c = with(&["-nic", "user,model=rtl8139", "-device", "rtl8139,c-plus=off"]).unwrap();
        let models: Vec<_> = c.nics.iter().map(|n| n.model).collect();
        assert_eq!(models, [NicModel::Rtl8139 { plus: false }, RTL8139]);
        assert!(err(&["-device", "e1000,c-plus=off"]).contains("'c-plus'"));
        let c = with(&["-net", "nic,macaddr=52:54:00:00:00:09", "-net", "user,hostname=x"]).unwrap();
        assert_eq!((c.nics[0].netdev, c.nics[0].mac[5]), (Some(0), 9));
        let c = with(&["-nodefaults", "-device", "e1000", "-device", "e1000,mac=52:54:00:12:34:56"]).unwrap();
        assert_eq!(c.nics.iter().map(|n| (n.netdev, n.mac[5])).collect::<Vec<_>>(), [(None, 0x57), (None, 0x56)]);
    }

    #[test]
    fn a_pc_has_a_card_unless_told_otherwise() {
        let cards = |line: &[&str]| with(line).unwrap().nics.len();
        assert_eq!(cards(&[]), 1);
        let none: [&[&str]; 4] = [&["-nodefaults"], &["-nic", "none"], &["-net", "none"], &["-netdev", "user,id=n"]];
        assert!(none.iter().all(|line| cards(line) == 0));
    }

    #[test]
    fn features_and_queues_of_virtio_cards() {
        let model = |keys: &str| with(&["-device", &format!("virtio-net-pci{keys}")]).map(|c| c.nics[0].model);
        let without = |without| Ok(NicModel::VirtioNet { pairs: 1, without });
        assert_eq!(model(",mq=on,vectors=4,csum=on"), without(0));
        use brolga_devices::virtio::net::feature::{CSUM, CTRL_VQ};
        assert_eq!(model(",csum=off,ctrl_vq=off"), without(CSUM | CTRL_VQ));
        assert!(model(",queues=2,mq=off").unwrap_err().contains("need mq=on"));
        assert!(model(",queues=2,vectors=4").unwrap_err().contains("there are 6"));
        let tap = ["-netdev", "tap,id=t,fds=3:4:5,vhost=off", "-device", "virtio-net-pci,netdev=t,mq=on"];
        assert_eq!(with(&tap).unwrap().nics[0].model, NicModel::VirtioNet { pairs: 3, without: 0 });
    }

    #[test]
    fn boot_roms() {
        let file = std::env::temp_dir().join(format!("brolga-rom-{}", std::process::id()));
        std::fs::write(&file, [0x55, 0xaa]).unwrap();
        let named = format!("e1000,romfile={},rombar=0,bootindex=3", file.display());
        let c = with(&["-device", &named]).unwrap();
        assert_eq!((&c.nics[0].rom, c.nics[0].rom_bar, c.nics[0].boot_index), (&Some(file.clone()), false, Some(3)));
        std::fs::remove_file(&file).unwrap();
        assert!(with(&["-device", "e1000,romfile="]).unwrap().nics[0].rom.is_none());
        assert!(err(&["-device", "e1000,romfile=/does/not/exist"]).contains("no such file"));
        assert!(err(&["-device", "e1000,romfile=,bootindex=1"]).contains("install the package ipxe-qemu"));
        assert!(err(&["-nic", "user,romfile=", "-boot", "n"]).contains("install the package ipxe-qemu"));
    }

    #[test]
    fn hubs() {
        let line =
            ["-netdev", "user,id=u", "-netdev", "hubport,id=a,hubid=3,netdev=u", "-netdev", "hubport,id=b,hubid=3"];
        let c = with(&[&line[..], &["-device", "e1000,netdev=b"]].concat()).unwrap();
        let port = |netdev| NetdevKind::HubPort { hub: 3, netdev };
        assert_eq!((&c.netdevs[1].kind, &c.netdevs[2].kind, c.nics[0].netdev), (&port(Some(0)), &port(None), Some(2)));
        let c = with(&["-net", "nic", "-net", "nic,model=rtl8139", "-net", "user"]).unwrap();
        let kinds: Vec<_> = c.netdevs[1..].iter().map(|netdev| netdev.kind.clone()).collect();
        let port = |netdev| NetdevKind::HubPort { hub: 0, netdev };
        assert_eq!(kinds, [port(Some(0)), port(None), port(None)]);
        assert_eq!(c.nics.iter().map(|nic| nic.netdev).collect::<Vec<_>>(), [Some(2), Some(3)]);
        assert_eq!(with(&["-net", "nic", "-net", "user", "-net", "user"]).unwrap().netdevs.len(), 5);
        let told = |more: &[&str]| err(&[&line[..], more].concat());
        assert!(told(&["-device", "e1000,netdev=u"]).contains("at the hub's port a"));
        assert!(told(&["-device", "e1000,netdev=a"]).contains("port for another host end"));
        assert!(told(&["-netdev", "hubport,id=c,hubid=4,netdev=b"]).contains("port itself"));
        assert!(err(&["-netdev", "hubport,id=c"]).contains("hubid= is missing"));
    }

    #[test]
    fn refusals_name_the_nearest() {
        assert_eq!(err(&["-netdev", "usr,id=n"]), "-netdev usr: unknown kind; did you mean user?");
        assert!(err(&["-netdev", "vde,id=n"]).starts_with("-netdev vde: not supported yet"));
        assert!(
            err(&["-netdev", "bridge,id=n,helper=/does/not/exist"]).contains("install the package qemu-system-common")
        );
        assert!(err(&["-netdev", "tap,id=n,br=br1,helper=/proc/self/exe,ifname=x"]).contains("'ifname'"));
        assert_eq!(err(&["-netdev", "user"]), "-netdev user: id= is missing; add id=NAME");
        assert!(err(&["-netdev", "user,id=n,hotsfwd=x"]).contains("did you mean hostfwd?"));
        assert_eq!(
            err(&["-netdev", "user,id=net0", "-device", "e1000,netdev=net"]),
            "-device e1000,netdev=net: there is no -netdev with id=net; did you mean net0?"
        );
        let two = ["-netdev", "user,id=a", "-device", "e1000,netdev=a", "-device", "e1000,netdev=a"];
        assert!(err(&two).contains("netdev=a has a card already"));
        assert!(err(&["-nic", "user,model=e1001"]).contains("did you mean e1000?"));
        assert!(err(&["-device", "e1000,mac=53:54:00:12:34:56"]).contains("group's address"));
        assert!(err(&["-device", "e1000,mac=52:54"]).contains("not a hardware address"));
        assert!(err(&["-net", "user"]).contains("has no card; add -net nic"));
        assert!(err(&["-device", "e1000,addr=20"]).contains("no PCI place"));
        let same = ["-device", "e1000,mac=52:54:00:00:00:01", "-device", "e1000,mac=52:54:00:00:00:01"];
        assert!(err(&same).contains("two cards have this address"));
    }
}
