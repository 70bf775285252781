//! `-netdev`, `-nic`, `-net`, and network cards in `-device`.

mod host_ends;
mod user;

pub use user::{host_forward, host_port};

use super::config::network::{NetdevKind, NetdevSpec, NicModel, NicSpec};
use super::keyval::KeyValues;
use super::options::Arguments;
use super::{suggest, values};
use anyhow::{Result, anyhow, bail};

/// Kinds of host ends, with what they are.
const KINDS: &[(&str, &str)] = &[
    ("user", "a network of its own behind address translation; needs no privilege"),
    ("tap", "a TAP interface of the host"),
    ("socket", "frames over TCP: listen=[HOST]:PORT or connect=HOST:PORT"),
    ("stream", "frames over TCP or a Unix socket: server=on|off,addr.type=inet|unix,..."),
];
/// Kinds of QEMU's that are not there yet.
const ABSENT: &[&str] =
    &["bridge", "dgram", "hubport", "l2tpv3", "vde", "vhost-user", "vhost-vdpa", "af-xdp", "netmap"];
/// Card models, with other names of theirs.
const MODELS: &[(&str, NicModel)] = &[
    ("e1000", NicModel::E1000),
    ("e1000-82540em", NicModel::E1000),
    ("virtio-net-pci", VIRTIO),
    ("virtio-net", VIRTIO),
    ("virtio", VIRTIO),
];
const VIRTIO: NicModel = NicModel::VirtioNet { pairs: 1 };
/// Most pairs of queues.
const MOST_PAIRS: u64 = 8;
/// What QEMU gives the first card.
const FIRST_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];

/// Host ends and cards while they are collected.
#[derive(Debug, Default)]
pub struct Network {
    /// Host ends.
    pub netdevs: Vec<NetdevSpec>,
    /// Cards, those of `-device` first.
    pub nics: Vec<NicSpec>,
    /// Addresses given, by card; the others are chosen at the end.
    macs: Vec<Option<[u8; 6]>>,
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

/// Models as `-nic model=help` lists them.
pub fn models() -> String {
    let rows = [("e1000", "Intel 82540EM gigabit Ethernet"), ("virtio-net-pci", "virtio network device (also virtio)")];
    rows.map(|(name, about)| format!("{name:<16} {about}\n")).concat()
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
            "socket" => NetdevKind::Stream(host_ends::socket(option, &mut keys)?),
            "stream" => NetdevKind::Stream(host_ends::stream(option, &mut keys)?),
            _ => return Err(unknown_kind(option, kind)),
        };
        keys.finish()?;
        self.netdevs.push(NetdevSpec { id: id.to_owned(), kind });
        Ok(self.netdevs.len() - 1)
    }

    /// A card of `-device`, whose model is known.
    pub fn device(&mut self, model: NicModel, mut keys: KeyValues, value: &str) -> Result<()> {
        let netdev = match keys.take("netdev")? {
            Some(name) => Some(self.find(&format!("-device {value}"), &name)?),
            None => None,
        };
        self.card("-device", model, netdev, keys)
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
        Ok(at)
    }

    /// Adds a card.
    fn card(&mut self, option: &str, mut model: NicModel, netdev: Option<usize>, mut keys: KeyValues) -> Result<()> {
        if let NicModel::VirtioNet { pairs } = &mut model {
            let queues = keys.take_as("queues", |text| values::number_in(text, 1, MOST_PAIRS))?;
            *pairs = queues.map_or(1, |queues| queues as u16);
        }
        let mac = keys.take_as("mac", mac)?;
        let other = keys.take_as("macaddr", self::mac)?;
        let place = keys.take_as("addr", place)?;
        if let Some(bus) = keys.take("bus")?.filter(|bus| bus != "pci.0") {
            bail!("{option} bus={bus}: there is no such bus; use pci.0");
        }
        if let Some(rom) = keys.take("romfile")?.filter(|rom| !rom.is_empty()) {
            bail!("{option} romfile={rom}: cards have no boot ROM yet; use romfile=");
        }
        keys.finish()?;
        // Filled in when all cards are known.
        self.nics.push(NicSpec { model, netdev, mac: FIRST_MAC, place });
        self.macs.push(mac.or(other));
        Ok(())
    }

    /// Adds what `-nic` and `-net` ask for, or the card that a PC has without them, and gives each card an address.
    pub fn finish(mut self, arguments: &Arguments) -> Result<Self> {
        let silent = ["netdev", "nic", "net"].iter().all(|option| arguments.all(option).is_empty());
        if silent && !arguments.flag("nodefaults") {
            self.nic("user", 0)?;
        }
        for (i, value) in arguments.all("nic").iter().enumerate() {
            self.nic(value, i)?;
        }
        self.hub(arguments.all("net"))?;
        self.addresses()?;
        Ok(self)
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
        for key in ["mac", "macaddr", "addr", "romfile", "queues"] {
            if let Some(value) = keys.take(key)? {
                card.add(&format!("{key}={}", value.replace(',', ",,")), None)?;
            }
        }
        let name = id.clone().unwrap_or_else(|| format!("nic{index}"));
        let netdev = self.add("-nic", &name, &kind, keys)?;
        self.card("-nic", model, Some(netdev), card)
    }

    /// `-net nic` and `-net KIND` on one hub: a card and a host end, or cards each with its own.
    fn hub(&mut self, values: &[String]) -> Result<()> {
        let (cards, ends): (Vec<_>, Vec<_>) =
            values.iter().filter(|value| *value != "none").partition(|value| value.split(',').next() == Some("nic"));
        if cards.len() > 1 && !ends.is_empty() || ends.len() > 1 {
            bail!(
                "-net {}: more than one card and one host end on a hub are not supported; use -nic or -netdev",
                values[0]
            );
        }
        let mut end = None;
        for value in ends {
            let mut keys = KeyValues::parse("-net", value, Some("type"))?;
            let kind = keys.take("type")?.unwrap_or_default();
            let id = keys.take("id")?.or(keys.take("name")?).unwrap_or_else(|| "net0".to_owned());
            end = Some(self.add("-net", &id, &kind, keys)?);
        }
        for value in cards {
            let mut keys = KeyValues::parse("-net", value, Some("type"))?;
            keys.take("type")?;
            let model = keys.take_as("model", model)?.unwrap_or(NicModel::E1000);
            // Names given by clients; nothing refers to them.
            keys.take("id")?;
            keys.take("name")?;
            let netdev = match keys.take("netdev")? {
                Some(name) => Some(self.find(&format!("-net {value}"), &name)?),
                None => end.take(),
            };
            self.card("-net", model, netdev, keys)?;
        }
        match end.and_then(|at| self.netdevs.get(at)) {
            Some(NetdevSpec { id, .. }) => bail!("-net: host end {id} has no card; add -net nic"),
            None => Ok(()),
        }
    }

    /// Gives the cards that were given no address the next free ones, as QEMU does.
    fn addresses(&mut self) -> Result<()> {
        let given: Vec<[u8; 6]> = self.macs.iter().flatten().copied().collect();
        for (i, mac) in given.iter().enumerate() {
            if given[..i].contains(mac) {
                bail!("mac={}: two cards have this address; change one", show_mac(*mac));
            }
        }
        let mut next = (0..=u8::MAX).map(|i| {
            let [a, b, c, d, e, f] = FIRST_MAC;
            [a, b, c, d, e, f.wrapping_add(i)]
        });
        for (nic, mac) in self.nics.iter_mut().zip(&self.macs) {
            let free = || next.find(|mac| !given.contains(mac));
            nic.mac = mac.or_else(free).ok_or_else(|| anyhow!("more than 256 network cards; leave some out"))?;
        }
        Ok(())
    }
}

fn unknown_kind(option: &str, kind: &str) -> anyhow::Error {
    let hint = suggest::hint(kind, KINDS.iter().map(|(name, _)| *name));
    let cause = if ABSENT.contains(&kind) { "not supported yet" } else { "unknown kind" };
    anyhow!("{option} {kind}: {cause}{hint}")
}

/// The card model of that name.
pub fn model(name: &str) -> Result<NicModel, values::Refusal> {
    MODELS.iter().find(|(known, _)| *known == name).map(|(_, model)| *model).ok_or_else(|| {
        let hint = suggest::hint(name, MODELS.iter().map(|(known, _)| *known));
        format!("unknown or unsupported card model '{name}'{hint}")
    })
}

/// Six bytes in hexadecimal, with colons.
fn mac(text: &str) -> Result<[u8; 6], values::Refusal> {
    let parts: Vec<&str> = text.split([':', '-']).collect();
    let byte = |part: &&str| (1..=2).contains(&part.len()).then(|| u8::from_str_radix(part, 16).ok()).flatten();
    let bytes: Option<Vec<u8>> = parts.iter().map(byte).collect();
    let bytes = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
    let bytes = bytes.ok_or_else(|| format!("'{text}' is not a hardware address: write 52:54:00:12:34:56"))?;
    if bytes[0] & 1 != 0 {
        return Err(format!("{text} is a group's address; the first byte of a card's is even"));
    }
    Ok(bytes)
}

fn show_mac([a, b, c, d, e, f]: [u8; 6]) -> String {
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

/// A PCI place: `DEVICE[.FUNCTION]`, hexadecimal as QEMU has it.
fn place(text: &str) -> Result<(u8, u8), values::Refusal> {
    let bad = || format!("'{text}' is no PCI place: write a device from 1 to 1f, like 4 or 4.0");
    let (device, function) = text.split_once('.').unwrap_or((text, "0"));
    let device = u8::from_str_radix(device.trim_start_matches("0x"), 16).map_err(|_| bad())?;
    let function = u8::from_str_radix(function, 16).map_err(|_| bad())?;
    if (1..32).contains(&device) && function < 8 { Ok((device, function)) } else { Err(bad()) }
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
        assert_eq!(models, [NicModel::VirtioNet { pairs: 1 }, NicModel::VirtioNet { pairs: 2 }]);
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
    fn refusals_name_the_nearest() {
        assert_eq!(err(&["-netdev", "usr,id=n"]), "-netdev usr: unknown kind; did you mean user?");
        assert!(err(&["-netdev", "bridge,id=n"]).starts_with("-netdev bridge: not supported yet"));
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
