//! What QEMU has and Brolga does not have yet: known, so that the refusal can say so and name what is near.

/// Options, with the remedy to offer (may be empty).
const OPTIONS: &[(&str, &str)] = &[
    ("alt-grab", ""),
    ("audio", ""),
    ("compat", ""),
    ("ctrl-grab", ""),
    ("curses", CONSOLE),
    ("dtb", "x86 machines have no device tree"),
    ("enable-fips", ""),
    ("enable-kvm", "use -accel jit"),
    ("full-screen", CONSOLE),
    ("g", CONSOLE),
    ("global", "give the property to the device itself with -device or -machine"),
    ("iscsi", DISKS),
    ("k", ""),
    ("mem-path", ""),
    ("mem-prealloc", ""),
    ("mtdblock", DISKS),
    ("no-acpi", "use -machine acpi=off"),
    ("no-fd-bootchk", ""),
    ("no-hpet", "use -machine hpet=off"),
    ("numa", ""),
    ("only-migratable", ""),
    ("option-rom", ""),
    ("plugin", ""),
    ("portrait", CONSOLE),
    ("preconfig", "use -S"),
    ("qtest", ""),
    ("readconfig", ""),
    ("rotate", CONSOLE),
    ("run-with", ""),
    ("runas", ""),
    ("sandbox", ""),
    ("sd", DISKS),
    ("set", "give the property to the device itself with -device or -machine"),
    ("shim", ""),
    ("smb", NETWORK),
    ("spice", CONSOLE),
    ("tpmdev", ""),
    ("usb", ""),
    ("usbdevice", ""),
    ("vnc", CONSOLE),
    ("win2k-hack", ""),
    ("writeconfig", ""),
    ("xen-attach", ""),
    ("xen-domid", ""),
];

const DISKS: &str = "use -drive, -hda or -cdrom";
const NETWORK: &str = "share files by -netdev user,tftp=DIR or over the network";
const CONSOLE: &str = "there is no display yet; use -nographic or -serial stdio";

/// The remedy for an option of QEMU's that is not supported; `None` if the option is unknown altogether.
pub fn option(name: &str) -> Option<&'static str> {
    OPTIONS.iter().find(|(n, _)| *n == name).map(|(_, remedy)| *remedy)
}

/// Boards of QEMU's.
const MACHINES: &[&str] = &["q35", "microvm", "isapc", "xenfv", "xenpv", "x-remote", "nitro-enclave"];

/// Whether QEMU has board `name` and Brolga has not.
pub fn is_machine(name: &str) -> bool {
    MACHINES.contains(&name) || name.starts_with("pc-q35-") || name.starts_with("xenfv-")
}

/// Prefixes or names of QEMU's device models that people use.
const DEVICES: &[&str] = &[
    "virtio-",
    "vhost-",
    "e1000",
    "ne2k_",
    "pcnet",
    "i8255",
    "vmxnet3",
    "ide-",
    "scsi-",
    "ahci",
    "ich9-",
    "nvme",
    "lsi",
    "megasas",
    "pvscsi",
    "usb-",
    "qemu-xhci",
    "nec-usb-xhci",
    "piix3-",
    "piix4-",
    "VGA",
    "vga",
    "bochs-display",
    "ramfb",
    "cirrus-vga",
    "vmware-svga",
    "qxl",
    "isa-serial",
    "isa-parallel",
    "isa-vga",
    "isa-fdc",
    "pci-testdev",
    "pci-serial",
    "pcie-",
    "pc-dimm",
    "ivshmem-",
    "vmcoreinfo",
    "vmgenid",
    "ib700",
    "tpm-",
    "intel-",
    "AC97",
    "ES1370",
    "hda-",
    "sb16",
    "edu",
    "pc-testdev",
    "testdev",
    "vfio-",
    "intel-iommu",
    "amd-iommu",
    "ccid-",
    "sga",
    "smbus-eeprom",
    "guest-loader",
    "generic-sdhci",
    "sd-card",
    "sdhci-pci",
    "kvm-",
    "i82550",
    "tulip",
    "gpio",
    "max-x86_64-cpu",
    "ipmi-",
];

/// Whether `name` looks like one of QEMU's device models that Brolga does not have.
pub fn is_device(name: &str) -> bool {
    DEVICES.iter().any(|d| {
        if d.ends_with(['-', '_']) { name.starts_with(d) } else { name == *d || name.starts_with(&format!("{d}-")) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorted_and_found() {
        assert!(OPTIONS.windows(2).all(|w| w[0].0 < w[1].0));
        assert_eq!(option("no-hpet"), Some("use -machine hpet=off"));
        assert_eq!(option("nonsense"), None);
        assert!(is_device("virtio-blk-pci") && is_device("e1000") && is_device("e1000-82544gc") && !is_device("e100"));
        assert!(is_machine("pc-q35-10.0") && !is_machine("pc"));
    }
}
