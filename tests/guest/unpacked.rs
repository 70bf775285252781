//! Kernels that are taken out of their bzImage before they start, and what a guest can see of it.

use crate::harness::{Boot, COMMAND, kernel_version};

/// Where a kernel's code lies: its virtual address and its physical one, as the kernel tells them.
fn addresses(kernel: &str, append: &str, options: &[&str]) -> (u64, u64) {
    let options = [&["-no-reboot"], options].concat();
    let mut guest = Boot::new(kernel).append("quiet").append(append).options(&options).to_shell();
    assert_eq!(guest.run("uname -r"), kernel_version(kernel));
    let number = |text: String| u64::from_str_radix(text.trim(), 16).expect("a hexadecimal number");
    let linear = number(guest.run("grep ' T _text$' /proc/kallsyms | cut -d ' ' -f 1"));
    let physical = number(guest.run("grep 'Kernel code' /proc/iomem | cut -d - -f 1"));
    guest.send("poweroff\r");
    guest.expect("reboot: ", COMMAND);
    guest.ends_with(0);
    (linear, physical)
}

/// Where kernels are linked to lie.
const LINKED: (u64, u64) = (0xFFFF_FFFF_8100_0000, 0x100_0000);

/// Packed by XZ, by zstd and by LZ4.
#[test]
fn addresses_are_random_unless_the_command_line_says_no() {
    for kernel in ["debian", "backports", "cloud"] {
        assert_eq!(addresses(kernel, "nokaslr", &[]), LINKED, "{kernel}");
        let found = ["1", "2"].map(|seed| addresses(kernel, "", &["-seed", seed]));
        let [first, second] = found;
        assert!(first.0 != second.0 && first.1 != second.1, "{kernel}: {found:x?}");
        for (linear, physical) in found {
            assert!(linear >= LINKED.0 && linear < LINKED.0 + (1 << 30) && linear % (2 << 20) == 0, "{linear:x}");
            assert!((LINKED.1..256 << 20).contains(&physical) && physical % (2 << 20) == 0, "{physical:x}");
        }
    }
}

/// The kernels' own first stage, in compiled code.
#[test]
fn kernels_unpack_themselves_if_they_are_asked_to() {
    for kernel in ["debian", "backports", "cloud"] {
        let off = ["-machine", "pc,unpack-kernel=off"];
        assert_eq!(addresses(kernel, "nokaslr", &off), LINKED, "{kernel}");
    }
    assert_ne!(addresses("cloud", "", &["-machine", "unpack-kernel=off"]), LINKED);
}
