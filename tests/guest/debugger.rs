//! Real gdb on Debian's kernel, by its symbols.

use crate::harness::Boot;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn scratch(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("debugger-{name}-{}", std::process::id()))
}

fn tool(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}: run tools/setup"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}:\n{text}");
    text
}

/// An ELF file with the symbols and nothing else, as distributions strip it: names and addresses.
fn symbol_file(symbols: &[(&str, u64)]) -> PathBuf {
    let (source, object, file) = (scratch("empty.S"), scratch("empty.o"), scratch("vmlinux"));
    fs::write(&source, ".text\n.skip 1\n").expect("a file");
    tool(Command::new("as").arg("-o").arg(&object).arg(&source));
    let base = symbols.iter().map(|(_, address)| *address).min().expect("some symbols");
    let mut objcopy = Command::new("objcopy");
    objcopy.arg(format!("--change-section-address=.text={base:#x}"));
    for (name, address) in symbols {
        objcopy.arg(format!("--add-symbol={name}=.text:{:#x},function,global", address - base));
    }
    tool(objcopy.args([&object, &file]));
    for path in [source, object] {
        fs::remove_file(path).expect("our own file");
    }
    file
}

#[test]
fn gdb_on_a_kernel_with_symbols() {
    let socket = scratch("gdb");
    let gdb = format!("unix:{}", socket.display());
    let options = ["-no-reboot", "-smp", "2", "-gdb", &gdb];
    let mut guest = Boot::new("debian").append("quiet nokaslr").options(&options).to_shell();
    let listed = guest.run(
        "mount -t proc proc /proc 2>/dev/null; grep -E ' (do_sys_openat2|vfs_read|vfs_open|vfs_write)$' /proc/kallsyms",
    );
    let symbol = |line: &str| {
        let mut words = line.split_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        Some((words.nth(1)?.to_owned(), address))
    };
    let symbols: Vec<(String, u64)> = listed.lines().filter_map(symbol).collect();
    assert!(symbols.iter().any(|(name, address)| name == "do_sys_openat2" && *address >> 63 == 1), "{listed}");
    let named: Vec<(&str, u64)> = symbols.iter().map(|(name, address)| (name.as_str(), *address)).collect();
    let file = symbol_file(&named);
    guest.run("(while true; do cat /proc/version; done) >/dev/null 2>&1 & echo started");
    let commands = [
        "set pagination off",
        &format!("target remote {}", socket.display()),
        "hbreak do_sys_openat2",
        "continue",
        "p/x $cs",
        "p $pc == (long)do_sys_openat2",
        "info threads",
        "set scheduler-locking on",
        "stepi 20",
        "set scheduler-locking off",
        "continue 30",
        "p $pc == (long)do_sys_openat2",
        "monitor info status",
        "p $cr3 != 0 && $gs_base != 0",
        "delete",
        "detach",
    ];
    let mut run = Command::new("timeout");
    run.args(["120", "gdb", "-batch", "-nx"]).args(commands.iter().flat_map(|command| ["-ex", command])).arg(&file);
    let text = tool(&mut run);
    let mut rest = text.as_str();
    for part in [
        "hit Breakpoint 1, 0x",
        "$1 = 0x10",
        "$2 = 1",
        "CPU#0",
        "CPU#1",
        "hit Breakpoint 1, 0x",
        "$3 = 1",
        "$4 = 1",
        "detached",
    ] {
        let at = rest.find(part).unwrap_or_else(|| panic!("'{part}' is missing in:\n{text}"));
        rest = &rest[at + part.len()..];
    }
    // It runs on as if nobody had looked.
    guest.run("kill $!; echo it goes on");
    guest.send("poweroff -f\r");
    guest.ends_with(0);
    fs::remove_file(file).expect("our own file");
}

/// Time by programs: their names as the kernel has them, which the kernel's symbols lead to.
#[test]
fn a_profile_tells_programs_by_name() {
    let boot = || Boot::new("debian").initramfs("busybox-amd64").append("nokaslr quiet");
    let mut guest = boot().to_shell();
    let symbols = guest.run(
        "mount -t proc proc /proc 2>/dev/null; grep -E ' (init_task|current_task|pcpu_hot|_stext)$' /proc/kallsyms",
    );
    guest.kill();
    let (map, stacks) = (scratch("profile-map"), scratch("profile-stacks"));
    std::fs::write(&map, symbols.replace('\r', "")).expect("a file");
    let profile = format!("{},hz=400,symbols={}", stacks.display(), map.display());
    let mut guest = boot().options(&["-profile", &profile]).to_shell();
    // The name of a task is that of its file; BusyBox takes an applet's name from the next word if its own begins so.
    guest.run("cp $(readlink -f /bin/busybox) /busybox-count");
    guest.run("/busybox-count awk 'BEGIN { while (i < 3000000) i++ }'");
    guest.send("poweroff -f\r");
    guest.ends_with(0);
    let text = std::fs::read_to_string(&stacks).expect("the stacks");
    [&map, &stacks].into_iter().for_each(|file| std::fs::remove_file(file).expect("our own file"));
    let of = |name: &str| {
        let begin = format!("cpu0;user;{name};");
        let counts = text.lines().filter(|line| line.starts_with(&begin));
        counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum::<u64>()
    };
    assert!(of("busybox-count") > 10, "{text}");
}
