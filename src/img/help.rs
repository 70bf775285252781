//! What `--help` and `--version` print.

use super::images::FORMATS;
use super::{COMMANDS, Command};
use std::fmt::Write;

/// The version of qemu-img whose command line is followed; clients parse it.
const QEMU_VERSION: &str = "10.0.2";

/// The version; under qemu-img's name its first line has qemu-img's form.
pub fn version(program: &str) -> String {
    let own = env!("CARGO_PKG_VERSION");
    match program {
        "qemu-img" => format!("qemu-img version {QEMU_VERSION} (Brolga {own})\n"),
        _ => format!("brolga-img version {own}\n"),
    }
}

/// All commands.
pub fn all(program: &str) -> String {
    let mut text = version(program);
    let _ = write!(
        text,
        "Makes, looks at, copies and mends disk images.\n\nusage: {program} COMMAND [options]\n\nCommands ({program} \
         COMMAND --help tells more):\n"
    );
    for command in COMMANDS {
        let _ = writeln!(text, "  {:<10} {}", command.name, command.summary);
    }
    // Clients look for "Supported formats:" in this place and form.
    let _ = write!(text, "\nSupported formats: {}\n", FORMATS.join(" "));
    text
}

/// One command.
pub fn one(program: &str, command: &Command) -> String {
    let mut text = format!(
        "{}.\n\nusage: {program} {} [options] {}\n\nOptions:\n",
        command.summary, command.name, command.operands
    );
    let mut line = |left: String, help: &str| {
        let _ = writeln!(text, "  {left:<36} {help}");
    };
    line("-h, --help".to_owned(), "print this");
    for option in command.options.iter().filter(|o| !o.refused) {
        let short = option.short.map_or("    ".to_owned(), |c| format!("-{c}, "));
        let value = option.value.map_or(String::new(), |v| format!(" {v}"));
        line(format!("{short}--{}{value}", option.long), option.help);
    }
    text
}
