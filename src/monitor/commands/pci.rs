//! PCI functions, and the tree of devices.

use super::about::text;
use crate::monitor::call::Call;
use crate::monitor::host::{PciInfo, Topic};
use crate::monitor::table::{Command, Outcome};
use crate::monitor::types::{Enum, Object, Ty, member, optional};
use serde_json::{Value, json};
use std::collections::BTreeMap;

static CLASS: Object = Object::new("PciDeviceClass", &[optional("desc", Ty::Str), member("class", Ty::Int)]);
static ID: Object = Object::new(
    "PciDeviceId",
    &[
        member("device", Ty::Int),
        member("vendor", Ty::Int),
        optional("subsystem", Ty::Int),
        optional("subsystem-vendor", Ty::Int),
    ],
);
static REGION_KINDS: Enum = Enum { name: "PciMemoryRegionType", values: &["io", "memory"] };
static REGION: Object = Object::new(
    "PciMemoryRegion",
    &[
        member("bar", Ty::Int),
        member("type", Ty::Enum(&REGION_KINDS)),
        member("address", Ty::Int),
        member("size", Ty::Int),
        optional("prefetch", Ty::Bool),
        optional("mem_type_64", Ty::Bool),
    ],
);
static DEVICE: Object = Object::new(
    "PciDeviceInfo",
    &[
        member("bus", Ty::Int),
        member("slot", Ty::Int),
        member("function", Ty::Int),
        member("class_info", Ty::Object(&CLASS)),
        member("id", Ty::Object(&ID)),
        optional("irq", Ty::Int),
        member("irq_pin", Ty::Int),
        member("qdev_id", Ty::Str),
        member("regions", Ty::Array(&Ty::Object(&REGION))),
    ],
);
static BUS: Object =
    Object::new("PciInfo", &[member("bus", Ty::Int), member("devices", Ty::Array(&Ty::Object(&DEVICE)))]);

/// What classes are called (PCI Code and ID Assignment Specification, appendix D).
const CLASSES: &[(u16, &str)] = &[
    (0x0001, "VGA controller"),
    (0x0100, "SCSI controller"),
    (0x0101, "IDE controller"),
    (0x0102, "Floppy controller"),
    (0x0106, "SATA controller"),
    (0x0107, "SAS controller"),
    (0x0108, "NVMe controller"),
    (0x0180, "Storage controller"),
    (0x0200, "Ethernet controller"),
    (0x0280, "Network controller"),
    (0x0300, "VGA controller"),
    (0x0301, "XGA controller"),
    (0x0380, "Display controller"),
    (0x0401, "Audio controller"),
    (0x0403, "Audio controller"),
    (0x0500, "RAM controller"),
    (0x0580, "Memory controller"),
    (0x0600, "Host bridge"),
    (0x0601, "ISA bridge"),
    (0x0604, "PCI bridge"),
    (0x0680, "Bridge"),
    (0x0780, "Communication controller"),
    (0x0880, "System peripheral"),
    (0x0900, "Keyboard"),
    (0x0902, "Mouse"),
    (0x0c03, "USB controller"),
    (0x0c05, "SMBus"),
];

pub static TABLE: &[Command] = &[
    Command::both("query-pci", &["info pci"], "show PCI info", query_pci)
        .returns(Ty::Array(&Ty::Object(&BUS)))
        .show(show),
    Command::hmp(&["info qtree"], "show device tree", |call| text(call, Topic::Qtree)),
];

fn query_pci(call: &mut Call<'_>) -> Outcome {
    // Each bus by itself, in the order of their numbers, and bus 0 in any case.
    let mut buses: BTreeMap<u8, Vec<Value>> = BTreeMap::from([(0, Vec::new())]);
    call.host.pci().iter().for_each(|info| buses.entry(info.bus).or_default().push(device(info)));
    Ok(buses.into_iter().map(|(bus, devices)| json!({ "bus": bus, "devices": devices })).collect())
}

fn device(info: &PciInfo) -> Value {
    let byte = |at: usize| info.config.get(at).copied().unwrap_or(0);
    let word = |at: usize| u16::from(byte(at)) | u16::from(byte(at + 1)) << 8;
    let class = word(0x0a);
    let regions = info.regions.iter().map(|region| {
        // QEMU's word for one that lies nowhere.
        let address = region.address.map_or(json!(-1), Value::from);
        let mut entry = json!({ "bar": region.bar, "size": region.size, "address": address });
        entry["type"] = if region.io { "io" } else { "memory" }.into();
        if !region.io {
            entry["prefetch"] = region.prefetch.into();
            entry["mem_type_64"] = region.wide.into();
        }
        entry
    });
    let mut entry = json!({
        "bus": info.bus,
        "slot": info.slot,
        "function": info.function,
        "class_info": { "class": class },
        "id": { "vendor": word(0), "device": word(2) },
        "irq_pin": byte(0x3d),
        "qdev_id": info.id.as_deref().unwrap_or_default(),
        "regions": regions.collect::<Vec<_>>(),
    });
    if let Some((_, desc)) = CLASSES.iter().find(|(known, _)| *known == class) {
        entry["class_info"]["desc"] = (*desc).into();
    }
    // A header of type 0 has a subsystem.
    if byte(0x0e) & 0x7f == 0 {
        entry["id"]["subsystem-vendor"] = word(0x2c).into();
        entry["id"]["subsystem"] = word(0x2e).into();
    }
    if byte(0x3d) != 0 {
        entry["irq"] = byte(0x3c).into();
    }
    entry
}

fn show(buses: &Value) -> String {
    let mut text = String::new();
    for device in buses.as_array().into_iter().flatten().filter_map(|bus| bus["devices"].as_array()).flatten() {
        text += &show_device(device);
    }
    text
}

fn show_device(device: &Value) -> String {
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let (bus, slot, function) = (number(&device["bus"]), number(&device["slot"]), number(&device["function"]));
    let mut text = format!("  Bus {bus:2}, device {slot:3}, function {function}:\n");
    let (class, id) = (&device["class_info"], &device["id"]);
    match class["desc"].as_str() {
        Some(desc) => text += &format!("    {desc}"),
        None => text += &format!("    Class {:04}", number(&class["class"])),
    }
    text += &format!(": PCI device {:04x}:{:04x}\n", number(&id["vendor"]), number(&id["device"]));
    if let Some(vendor) = id["subsystem-vendor"].as_u64() {
        text += &format!("      PCI subsystem {vendor:04x}:{:04x}\n", number(&id["subsystem"]));
    }
    if let Some(irq) = device["irq"].as_u64() {
        let pin = (b'A' + (number(&device["irq_pin"]) as u8).wrapping_sub(1) % 4) as char;
        text += &format!("      IRQ {irq}, pin {pin}\n");
    }
    for region in device["regions"].as_array().into_iter().flatten() {
        let kind = match (region["type"] == "io", region["mem_type_64"] == true, region["prefetch"] == true) {
            (true, ..) => "I/O".to_owned(),
            (false, wide, prefetch) => {
                format!("{} bit{} memory", if wide { 64 } else { 32 }, if prefetch { " prefetchable" } else { "" })
            }
        };
        let place = match region["address"].as_u64() {
            None => "(not mapped)".to_owned(),
            Some(at) => {
                let last = at.wrapping_add(number(&region["size"])).wrapping_sub(1);
                match region["type"] == "io" {
                    true => format!("at {at:#06x} [{last:#06x}]"),
                    false => format!("at {at:#010x} [{last:#010x}]"),
                }
            }
        };
        let place = if place.starts_with("at ") { place + "." } else { place };
        text += &format!("      BAR{}: {kind} {place}\n", region["bar"]);
    }
    text + &format!("      id \"{}\"\n", device["qdev_id"].as_str().unwrap_or_default())
}
