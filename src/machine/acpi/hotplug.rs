//! What has the guest notice PCI devices that come and go: an object for each slot, and the event that says to look
//! (ACPI 6.3.1, 6.3.3; names and ports as in QEMU's tables, see `brolga_devices::pci::hotplug`).

use super::AcpiConfig;
use super::dsdt::Encoded;
use acpi_tables::Aml;
use acpi_tables::aml::{
    Acquire, And, Arg, Device, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, If, Local, Method,
    MethodCall, Mutex, Name, Notify, OpRegion, OpRegionSpace, Path, Release, Return, Scope, ShiftLeft, Store, ZERO,
};
use brolga_devices::pci::hotplug;

/// Slots of bus 0.
const SLOTS: u8 = 32;
/// Nobody waits that long for a mutex: without end.
const FOR_EVER: u16 = 0xFFFF;
/// Notifications of devices (5.6.6): look for it, and give it back.
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;

/// Registers of 32 bits as fields of a region of ports.
pub(super) fn registers(region: &str, first: u16, names: &[&[u8; 4]]) -> Encoded {
    let length = names.len() as u8 * 4;
    let fields = names.iter().map(|name| FieldEntry::Named(**name, 32)).collect();
    let rule = FieldUpdateRule::WriteAsZeroes;
    Encoded::of(&[
        &OpRegion::new(region.into(), OpRegionSpace::SystemIO, &first, &length),
        &Field::new(region.into(), FieldAccessType::DWord, FieldLockRule::NoLock, rule, fields),
    ])
}

/// The name of a slot's object.
fn name(slot: u8) -> String {
    format!("S{:02X}_", u32::from(slot) << 3)
}

fn slots(config: &AcpiConfig) -> impl Iterator<Item = u8> {
    let fixed = config.fixed_slots.clone();
    (0..SLOTS).filter(move |slot| !fixed.contains(slot))
}

/// What belongs into the host bridge's object.
pub(super) fn bus(config: &AcpiConfig) -> Encoded {
    if config.fixed_slots.len() >= SLOTS.into() {
        return Encoded::of(&[]);
    }
    let mut all = vec![
        registers("PCST", hotplug::BASE, &[b"PCIU", b"PCID"]),
        registers("SEJ_", hotplug::BASE + 8, &[b"B0EJ"]),
        registers("BNMR", hotplug::BASE + 16, &[b"BNUM"]),
        Encoded::of(&[&Mutex::new("BLCK".into(), 0)]),
        eject(),
    ];
    all.extend(slots(config).map(slot));
    all.push(tell_slots(config));
    let (select, up, down) = (Path::new("BNUM"), Path::new("PCIU"), Path::new("PCID"));
    let (check, request) = (DEVICE_CHECK, EJECT_REQUEST);
    all.push(Encoded::of(&[&Method::new(
        "PCNT".into(),
        0,
        false,
        vec![
            &Store::new(&select, &ZERO),
            &MethodCall::new("DVNT".into(), vec![&up, &check]),
            &MethodCall::new("DVNT".into(), vec![&down, &request]),
        ],
    )]));
    Encoded::of(&all.iter().map(|object| object as &dyn Aml).collect::<Vec<_>>())
}

/// `PCEJ(slot)`: the guest has let go of a slot's device.
fn eject() -> Encoded {
    let (select, ejected) = (Path::new("BNUM"), Path::new("B0EJ"));
    Encoded::of(&[&Method::new(
        "PCEJ".into(),
        1,
        false,
        vec![
            &Acquire::new("BLCK".into(), FOR_EVER),
            &Store::new(&select, &ZERO),
            &ShiftLeft::new(&ejected, &acpi_tables::aml::ONE, &Arg(0)),
            &Release::new("BLCK".into()),
            &Return::new(&ZERO),
        ],
    )])
}

/// A slot: its number, where it is, and how its device is given back.
fn slot(slot: u8) -> Encoded {
    let (number, address) = (Name::new("_SUN".into(), &slot), u32::from(slot) << 16);
    let address = Name::new("_ADR".into(), &address);
    let own = Path::new("_SUN");
    let call = MethodCall::new("PCEJ".into(), vec![&own]);
    let method = Method::new("_EJ0".into(), 1, false, vec![&call]);
    Encoded::of(&[&Device::new(name(slot).as_str().into(), vec![&number, &address, &method])])
}

/// `DVNT(slots, what)`: notifies the objects of the slots whose bits are set.
fn tell_slots(config: &AcpiConfig) -> Encoded {
    let mut body = Vec::new();
    for slot in slots(config) {
        let (bit, object) = (1u32 << slot, Path::new(&name(slot)));
        let (set, notify) = (And::new(&Local(0), &Arg(0), &bit), Notify::new(&object, &Arg(1)));
        set.to_aml_bytes(&mut body);
        If::new(&Local(0), vec![&notify]).to_aml_bytes(&mut body);
    }
    let body = Encoded::ready(body);
    Encoded::of(&[&Method::new("DVNT".into(), 2, false, vec![&body])])
}

/// The events' methods.
pub(super) fn events(config: &AcpiConfig) -> Encoded {
    if config.fixed_slots.len() >= SLOTS.into() {
        return Encoded::of(&[]);
    }
    let lock = || Path::new("\\_SB_.PCI0.BLCK");
    let look = MethodCall::new("\\_SB_.PCI0.PCNT".into(), vec![]);
    let (acquire, release) = (Acquire::new(lock(), FOR_EVER), Release::new(lock()));
    let method = Method::new("_E01".into(), 0, false, vec![&acquire, &look, &release]);
    Encoded::of(&[&Scope::new("\\_GPE".into(), vec![&method])])
}
