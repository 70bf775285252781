//! Network cards: models, their keys, and their boot ROMs.

use super::super::config::network::NicModel;
use super::super::keyval::KeyValues;
use super::super::{suggest, values};
use anyhow::{Result, anyhow, bail};
use brolga_devices::virtio::net::feature;
use std::path::{Path, PathBuf};

/// Card models, with other names of theirs.
const MODELS: &[(&str, NicModel)] = &[
    ("e1000", NicModel::E1000),
    ("e1000-82540em", NicModel::E1000),
    ("rtl8139", RTL8139),
    ("virtio-net-pci", VIRTIO),
    ("virtio-net", VIRTIO),
    ("virtio", VIRTIO),
];
/// A virtio card before its keys are read.
pub const VIRTIO: NicModel = NicModel::VirtioNet { pairs: 1, without: 0 };
/// A Realtek card before its keys are read.
pub const RTL8139: NicModel = NicModel::Rtl8139 { plus: true };
/// Most pairs of queues.
const MOST_PAIRS: u64 = 8;
/// Where the package of boot ROMs puts them.
const ROM_FOLDERS: [&str; 2] = ["/usr/lib/ipxe/qemu", "/usr/share/ipxe/qemu"];

/// Features of a virtio card that can be turned off.
const FEATURES: &[(&str, u64)] = &[
    ("csum", feature::CSUM),
    ("guest_csum", feature::GUEST_CSUM),
    ("gso", feature::HOST_TSO4 | feature::HOST_TSO6 | feature::HOST_ECN | feature::HOST_USO),
    ("host_tso4", feature::HOST_TSO4),
    ("host_tso6", feature::HOST_TSO6),
    ("host_ecn", feature::HOST_ECN),
    ("host_uso", feature::HOST_USO),
    ("guest_tso4", feature::GUEST_TSO4),
    ("guest_tso6", feature::GUEST_TSO6),
    ("guest_uso4", feature::GUEST_USO4),
    ("guest_uso6", feature::GUEST_USO6),
    ("guest_announce", feature::GUEST_ANNOUNCE),
    ("mrg_rxbuf", feature::MRG_RXBUF),
    ("status", feature::STATUS),
    ("ctrl_vq", feature::CTRL_VQ),
    ("ctrl_rx", feature::CTRL_RX),
    ("ctrl_rx_extra", feature::CTRL_RX_EXTRA),
    ("ctrl_vlan", feature::CTRL_VLAN),
    ("ctrl_mac_addr", feature::CTRL_MAC_ADDR),
    ("ctrl_guest_offloads", feature::CTRL_GUEST_OFFLOADS),
];

/// Models as `-nic model=help` lists them.
pub fn models() -> String {
    let rows = [
        ("e1000", "Intel 82540EM gigabit Ethernet"),
        ("rtl8139", "Realtek RTL8139C+ fast Ethernet"),
        ("virtio-net-pci", "virtio network device (also virtio)"),
    ];
    rows.map(|(name, about)| format!("{name:<16} {about}\n")).concat()
}

/// The card model of that name.
pub fn model(name: &str) -> Result<NicModel, values::Refusal> {
    MODELS.iter().find(|(known, _)| *known == name).map(|(_, model)| *model).ok_or_else(|| {
        let hint = suggest::hint(name, MODELS.iter().map(|(known, _)| *known));
        format!("unknown or unsupported card model '{name}'{hint}")
    })
}

/// Keys of cards that `-nic` passes on.
pub fn own_keys() -> impl Iterator<Item = &'static str> {
    let fixed = ["mac", "macaddr", "addr", "romfile", "rombar", "bootindex", "queues", "mq", "vectors", "c-plus"];
    fixed.into_iter().chain(FEATURES.iter().map(|(key, _)| *key))
}

/// The keys that only virtio cards have. `queues`: pairs that the host end has.
pub fn virtio(option: &str, keys: &mut KeyValues, queues: u16) -> Result<NicModel> {
    let told = keys.take_as("queues", |text| values::number_in(text, 1, MOST_PAIRS))?.map(|n| n as u16);
    let mq = keys.take_switch("mq")?;
    let pairs = match (told, mq) {
        (Some(pairs @ 2..), Some(false)) => bail!("{option} queues={pairs},mq=off: several queues need mq=on"),
        (Some(pairs), _) => pairs,
        (None, Some(true)) => queues.min(MOST_PAIRS as u16),
        (None, _) => 1,
    };
    let needed = 2 * u64::from(pairs) + 2;
    keys.take_as("vectors", |text| match values::number_in(text, 0, 2048)? {
        enough if enough >= needed => Ok(()),
        _ => Err(format!("with {pairs} pairs of queues there are {needed}; leave it out")),
    })?;
    let mut without = 0;
    for (key, bits) in FEATURES {
        if keys.take_switch(key)? == Some(false) {
            without |= bits;
        }
    }
    Ok(NicModel::VirtioNet { pairs, without })
}

/// The boot ROM that cards of `model` have unless told otherwise.
fn usual_rom(model: NicModel) -> &'static str {
    match model {
        NicModel::E1000 => "efi-e1000.rom",
        NicModel::Rtl8139 { .. } => "efi-rtl8139.rom",
        NicModel::VirtioNet { .. } => "efi-virtio.rom",
    }
}

/// A boot ROM: the one named, or the usual one if its package is there. `Some("")` asks for none.
pub fn rom(option: &str, named: Option<&str>, model: NicModel, folders: &[PathBuf]) -> Result<Option<PathBuf>> {
    let mut folders = folders.iter().map(PathBuf::as_path).chain(ROM_FOLDERS.map(Path::new));
    match named {
        Some("") => Ok(None),
        Some(name) => {
            let here = PathBuf::from(name);
            let found = if here.exists() || name.contains('/') {
                Some(here)
            } else {
                folders.find(|folder| folder.join(name).exists()).map(|folder| folder.join(name))
            };
            let found = found.ok_or_else(|| {
                anyhow!("{option} romfile={name}: no such file; check the path, or name its folder with -L DIR")
            })?;
            super::super::boot::readable(&format!("{option} romfile={name}"), &found)?;
            Ok(Some(found))
        }
        None => {
            let name = usual_rom(model);
            Ok(folders.find(|folder| folder.join(name).exists()).map(|folder| folder.join(name)))
        }
    }
}

/// What is missing where a card is to be started from that has no boot ROM.
pub fn no_rom(model: NicModel) -> anyhow::Error {
    anyhow!(
        "{}: no boot ROM found to start over the network; install the package ipxe-qemu, or name one with romfile=FILE",
        usual_rom(model)
    )
}

/// Six bytes in hexadecimal, with colons.
pub fn mac(text: &str) -> Result<[u8; 6], values::Refusal> {
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

/// A hardware address as users write it.
pub fn show_mac([a, b, c, d, e, f]: [u8; 6]) -> String {
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

/// A PCI place: `DEVICE[.FUNCTION]`, hexadecimal as QEMU has it.
pub fn place(text: &str) -> Result<(u8, u8), values::Refusal> {
    let bad = || format!("'{text}' is no PCI place: write a device from 1 to 1f, like 4 or 4.0");
    let (device, function) = text.split_once('.').unwrap_or((text, "0"));
    let device = u8::from_str_radix(device.trim_start_matches("0x"), 16).map_err(|_| bad())?;
    let function = u8::from_str_radix(function, 16).map_err(|_| bad())?;
    if (1..32).contains(&device) && function < 8 { Ok((device, function)) } else { Err(bad()) }
}
