//! `brolga-img`: the tool for disk images, with the words, exit statuses and output of `qemu-img`.
//!
//! `arguments` reads the words by the table of a subcommand; each subcommand is a module of its own.

mod amend;
mod arguments;
mod bench;
mod bitmap;
mod buffer;
mod check;
mod commit;
mod compare;
mod convert;
mod copy;
mod create;
mod dd;
mod format_options;
mod help;
mod images;
mod info;
mod map;
mod measure;
mod progress;
mod rate;
mod rebase;
mod resize;
mod show;
mod snapshot;

pub use info::describe;
pub use show::{size as shown_size, snapshot_json};

use crate::words::suggest;
use anyhow::{Result, anyhow};
use arguments::{Arguments, Opt};
use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

/// A subcommand.
pub(crate) struct Command {
    name: &'static str,
    /// One line on what it does.
    summary: &'static str,
    /// The words after the options, for the help.
    operands: &'static str,
    options: &'static [Opt],
    /// Status of errors; `compare` keeps 1 for images that differ.
    error_status: u8,
    /// Does it; gives the exit status. The text goes to standard output.
    run: fn(&Arguments, &mut dyn Write) -> Result<u8>,
}

/// In the order of the help.
const COMMANDS: &[Command] = &[
    amend::COMMAND,
    bench::COMMAND,
    bitmap::COMMAND,
    check::COMMAND,
    commit::COMMAND,
    compare::COMMAND,
    convert::COMMAND,
    create::COMMAND,
    dd::COMMAND,
    info::COMMAND,
    map::COMMAND,
    measure::COMMAND,
    rebase::COMMAND,
    resize::COMMAND,
    snapshot::COMMAND,
];

/// An error that ends the program with a status of its own.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct StatusError {
    status: u8,
    message: String,
}

/// Runs the program with these words, the program's name first.
pub fn main(words: impl Iterator<Item = OsString>) -> ExitCode {
    let mut texts = Vec::new();
    let mut odd = None;
    for word in words {
        texts.push(word.into_string().unwrap_or_else(|word| {
            let text = word.to_string_lossy().into_owned();
            odd.get_or_insert_with(|| text.clone());
            text
        }));
    }
    let name = texts.first().and_then(|p| Path::new(p).file_name()).map(|n| n.to_string_lossy().into_owned());
    let program = name.unwrap_or_else(|| "brolga-img".to_owned());
    let (status, error) = match odd {
        Some(word) => (1, Some(anyhow!("{word}: not valid UTF-8; rename it"))),
        None => {
            // Not locked: the threads of a long command show their progress there.
            let mut out = std::io::stdout();
            match dispatch(&program, texts.get(1..).unwrap_or_default(), &mut out) {
                Ok(status) => match out.flush() {
                    Ok(()) => (status, None),
                    Err(e) => (1, Some(anyhow::Error::from(e).context("standard output"))),
                },
                Err((status, e)) => (status, Some(e)),
            }
        }
    };
    if let Some(error) = error.filter(|e| !closed_early(e)) {
        complain(&program, &told(&error));
    }
    ExitCode::from(status)
}

/// The error and its causes; a cause that the text before it ends with already is not repeated.
fn told(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.ends_with(&cause) {
            text += if text.is_empty() { "" } else { ": " };
            text += &cause;
        }
    }
    text
}

/// A reader that goes early (`| head`) needs no message.
fn closed_early(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|e| e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe))
}

/// One line on standard error, whatever the message quotes.
fn complain(program: &str, message: &str) {
    let line: String =
        message.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect();
    eprintln!("{program}: {line}");
}

/// A line on standard error about something that is done all the same.
fn warn(message: &str) {
    complain("warning", message);
}

type Ending = std::result::Result<u8, (u8, anyhow::Error)>;

fn dispatch(program: &str, words: &[String], out: &mut dyn Write) -> Ending {
    let fail = |e: anyhow::Error| (1, e);
    let Some((first, rest)) = words.split_first() else {
        return Err(fail(anyhow!("no command; --help lists all commands")));
    };
    let print = |out: &mut dyn Write, text: String| {
        out.write_all(text.as_bytes()).map_err(|e| fail(anyhow::Error::from(e).context("standard output")))?;
        Ok(0)
    };
    match first.as_str() {
        "-h" | "--help" => return print(out, help::all(program)),
        "-V" | "--version" => return print(out, help::version(program)),
        option if option.starts_with('-') => {
            return Err(fail(anyhow!("{option}: unknown option before the command; there are --help and --version")));
        }
        _ => {}
    }
    let Some(command) = COMMANDS.iter().find(|c| c.name == first) else {
        return Err(fail(unknown(first)));
    };
    call(program, command, rest, out).map_err(|e| {
        let status = e.downcast_ref::<StatusError>().map_or(command.error_status, |s| s.status);
        (status, e.context(command.name))
    })
}

fn call(program: &str, command: &Command, words: &[String], out: &mut dyn Write) -> Result<u8> {
    let arguments = Arguments::read(command.options, &command.prepared(words)).map_err(wrong_words)?;
    if arguments.help {
        out.write_all(help::one(program, command).as_bytes())?;
        return Ok(0);
    }
    (command.run)(&arguments, out)
}

/// Words that make no sense end all commands with the same status.
fn wrong_words(e: anyhow::Error) -> anyhow::Error {
    StatusError { status: 1, message: format!("{e:#}") }.into()
}

impl Command {
    /// The words as `resize` reads them: its last one is the size, `-1G` included.
    fn prepared(&self, words: &[String]) -> Vec<String> {
        let mut words = words.to_vec();
        let negative = |w: &str| w.strip_prefix('-').is_some_and(|d| d.starts_with(|c: char| c.is_ascii_digit()));
        if self.name == "resize" && words.last().is_some_and(|w| negative(w)) && !words.iter().any(|w| w == "--") {
            words.insert(words.len() - 1, "--".to_owned());
        }
        words
    }
}

fn unknown(name: &str) -> anyhow::Error {
    match suggest::nearest(name, COMMANDS.iter().map(|c| c.name)) {
        Some(near) => anyhow!("{name}: unknown command; did you mean {near}?"),
        None => anyhow!("{name}: unknown command; --help lists all commands"),
    }
}
