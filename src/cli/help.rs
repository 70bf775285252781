//! What `-help`, `-version` and the `help` values print.

use super::config::Identity;
use super::options::{Arguments, OPTIONS};
use super::{blockdev, boot, chars, devices, display, network, objects, traces};
use crate::log::ITEMS;
use anyhow::Result;

/// The version of QEMU whose command line is followed; clients parse it.
pub const QEMU_VERSION: &str = "10.0.2";
/// Our version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The text to print, if the command line asks for one.
pub fn requested(identity: &Identity, arguments: &Arguments) -> Result<Option<String>> {
    let is_help = |v: &str| v == "help" || v == "?";
    if arguments.flag("h") || arguments.flag("help") {
        return Ok(Some(options(identity)));
    }
    if arguments.flag("version") {
        return Ok(Some(version(identity)));
    }
    for name in ["cpu", "machine", "accel", "d", "display", "vga"] {
        if arguments.all(name).iter().any(|v| is_help(v)) {
            return Ok(Some(values_of(name)));
        }
    }
    if arguments.all("L").iter().any(|v| is_help(v)) {
        let dirs = boot::firmware_dirs(arguments);
        let shown = dirs.iter().filter(|d| d.as_os_str() != "help").map(|d| format!("{}\n", d.display()));
        return Ok(Some(shown.collect()));
    }
    let of_log = |v: &String| v.split(',').any(|item| item.strip_prefix("trace:").is_some_and(is_help));
    if arguments.all("trace").iter().any(|v| is_help(v)) || arguments.all("d").iter().any(of_log) {
        return Ok(Some(traces::help()));
    }
    if arguments.all("netdev").iter().any(|v| is_help(v)) {
        return Ok(Some(network::help()));
    }
    if arguments.all("blockdev").iter().any(|v| is_help(v)) {
        return Ok(Some(blockdev::help()));
    }
    if arguments.all("chardev").iter().any(|v| is_help(v)) {
        return Ok(Some(chars::help()));
    }
    if arguments.all("object").iter().any(|v| is_help(v)) {
        return Ok(Some(objects::help()));
    }
    let of_nic =
        |v: &String| v.split(',').any(|part| part.strip_prefix("model=").is_some_and(is_help) || is_help(part));
    if arguments.all("nic").iter().chain(arguments.all("net")).any(of_nic) {
        return Ok(Some(network::models()));
    }
    for value in arguments.all("device") {
        if value.split(',').any(is_help) {
            return devices::help(value).map(Some);
        }
    }
    Ok(None)
}

/// The version; under QEMU's name its first line has QEMU's form.
pub fn version(identity: &Identity) -> String {
    if identity.qemu {
        format!("QEMU emulator version {QEMU_VERSION} (Brolga {VERSION})\nBrolga emulator version {VERSION}\n")
    } else {
        format!("Brolga emulator version {VERSION}\n")
    }
}

/// All options by group.
fn options(identity: &Identity) -> String {
    let mut out = version(identity);
    let program = &identity.program;
    out += &format!("usage: {program} [options]\n\nA full-system x86-64 emulator. For example:\n");
    out += &format!("  {program} -kernel bzImage -initrd initramfs.cpio.gz -append \"console=ttyS0\" -nographic\n");
    let mut group = "";
    for row in OPTIONS {
        if row.group != group {
            group = row.group;
            out += &format!("\n{group}:\n");
        }
        let left = format!("-{} {}", row.name, row.value);
        // An option begins its line: scripts look for `^-name`.
        if left.len() > 27 {
            out += &format!("{left}\n{:28}{}\n", "", row.help);
        } else {
            out += &format!("{left:<28}{}\n", row.help);
        }
    }
    out += "\nOptions may also be written with two dashes. In KEY=VALUE lists ,, stands for a comma.\n";
    if !identity.qemu {
        out += "Called as qemu-system-x86_64, the defaults are QEMU's: 128 MiB of memory instead of 512.\n";
    }
    out
}

/// The values of one option.
fn values_of(option: &str) -> String {
    let list =
        |rows: &[(&str, &str)]| rows.iter().map(|(name, help)| format!("{name:<16} {help}\n")).collect::<String>();
    match option {
        "cpu" => brolga_jit::cpuid::help(),
        "machine" => list(&[
            ("pc", "i440FX and PIIX board (default)"),
            ("pc-i440fx-N.N", "the same: versions of QEMU's board are not told apart"),
            ("none", "no board at all: only monitors"),
        ]),
        "accel" => list(&[
            ("jit", "compile what runs often (default); keys sync=on, tb-size=MiB, thread=single|multi, and"),
            (
                "",
                "check=on: hold compiled code against the interpreter, block by block; end with status 1 if they differ (slow)",
            ),
            ("interp", "interpret everything"),
            ("tcg", "another name of jit"),
        ]),
        "d" => list(ITEMS),
        "vga" => list(display::CARDS),
        _ => list(&[("none", "the only choice so far")]),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{parse_as, parse_line};
    use super::*;

    fn printed(line: &[&str]) -> String {
        parse_line(line).unwrap_err().strip_prefix("printed: ").expect("printed").to_owned()
    }

    #[test]
    fn every_option_begins_a_line() {
        let text = printed(&["-help"]);
        for row in OPTIONS {
            let start = format!("\n-{} ", row.name);
            assert!(text.contains(&start), "{}", row.name);
        }
        assert!(!text.contains("\n-spice"), "only what works");
    }

    #[test]
    fn versions() {
        assert!(printed(&["--version"]).starts_with("Brolga emulator version "));
        let qemu = parse_as("qemu-system-x86_64", &["-version"]).unwrap_err();
        assert!(qemu.starts_with("printed: QEMU emulator version 10.0.2 (Brolga "));
    }

    #[test]
    fn value_lists() {
        assert!(printed(&["-d", "help"]).contains("guest_errors"));
        assert!(printed(&["-accel", "help"]).starts_with("jit"));
        assert!(printed(&["-machine", "help"]).starts_with("pc "));
        assert!(printed(&["-device", "loader,help"]).contains("addr="));
        assert!(printed(&["-chardev", "help"]).contains("\n  socket\n"));
        assert!(printed(&["-d", "trace:help"]).contains("pci_cfg_read"));
        assert!(printed(&["-blockdev", "help"]).contains("qcow2 "));
        assert!(printed(&["-netdev", "help"]).starts_with("user "));
        assert!(printed(&["-nic", "user,model=help"]).starts_with("e1000 "));
        assert!(printed(&["-L", "/a/b", "-L", "help"]).starts_with("/a/b\n"));
    }
}
