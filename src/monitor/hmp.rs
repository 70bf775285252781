//! HMP: a line that somebody typed, carried out by the table's commands.

use super::Facts;
use super::call::{After, Call, State};
use super::expression::{evaluate, evaluate_first};
use super::host::{Control, MonitorHost};
use super::table::{self, Arg, Command, Place};
use crate::cli::{suggest, values};
use crate::events;
use brolga_devices::trace_event;
use brolga_jit::Registers;
use serde_json::{Map, Value};
use std::os::fd::OwnedFd;

/// Runs one line and returns what to show.
pub fn run(host: &dyn MonitorHost, facts: &Facts, state: &mut State, line: &str) -> String {
    run_with(host, facts, state, line, &|| None)
}

/// The same, with descriptors that came along.
pub fn run_with(
    host: &dyn MonitorHost,
    facts: &Facts,
    state: &mut State,
    line: &str,
    descriptor: &dyn Fn() -> Option<OwnedFd>,
) -> String {
    trace_event!(events::HMP, "{line:?}");
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return String::new();
    }
    let (command, format, rest) = match find(line) {
        Ok(found) => found,
        Err(why) => return why,
    };
    let parsed = {
        let registers = || host.registers(state.cpu);
        parse(command, format, rest, &registers)
    };
    let args = match parsed {
        Ok(args) => args,
        Err(why) => {
            let name = command.hmp[0];
            return format!("{name}: {why}\nTry \"help {name}\" for more information\n");
        }
    };
    let mut call = Call { host, facts, state, args, people: true, descriptor, after: None };
    let outcome = (command.run)(&mut call);
    if call.after == Some(After::Quit) {
        host.control(Control::Quit);
    }
    match outcome {
        Ok(answer) => {
            let text = (command.show)(&answer);
            if text.is_empty() || text.ends_with('\n') { text } else { text + "\n" }
        }
        Err(fault) => format!("Error: {}\n", fault.desc),
    }
}

/// The command of a line, what follows the slash of `x/FMT`, and the rest.
fn find(line: &str) -> Result<(&'static Command, &str, &str), String> {
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let (name, format) = word.split_once('/').unwrap_or((word, ""));
    let rest = rest.trim_start();
    if name == "info" && !rest.is_empty() {
        let (subject, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let name = format!("info {subject}");
        return match table::of_hmp(&name) {
            Some(command) => Ok((command, "", rest.trim_start())),
            None => Err(format!("unknown command: 'info {subject}'{}; 'info' lists all\n", near(&name))),
        };
    }
    let Some(command) = table::of_hmp(name) else {
        return Err(format!("unknown command: '{name}'{}; 'help' lists all\n", near(name)));
    };
    // The format may stand apart: `x /4xg 0x1000`.
    let takes_format = command.args.iter().any(|arg| arg.place == Place::Format);
    Ok(match rest.strip_prefix('/').filter(|_| takes_format && format.is_empty()) {
        Some(apart) => {
            let (format, rest) = apart.split_once(char::is_whitespace).unwrap_or((apart, ""));
            (command, format, rest.trim_start())
        }
        None => (command, format, rest),
    })
}

fn near(name: &str) -> String {
    let names = table::all().flat_map(|command| command.hmp.iter().copied());
    let names = names.filter(|other| other.starts_with("info ") == name.starts_with("info "));
    suggest::nearest(name, names).map_or(String::new(), |near| format!("; did you mean {near}?"))
}

/// Arguments by name, as the table has them.
fn parse(
    command: &Command,
    format: &str,
    rest: &str,
    registers: &dyn Fn() -> Option<Registers>,
) -> Result<Map<String, Value>, String> {
    let mut args = Map::new();
    let mut rest = flags(command, rest, &mut args)?;
    for arg in command.args {
        let name = arg.member.name;
        if arg.place == Place::Format {
            args.insert(name.to_owned(), format.into());
            continue;
        }
        if matches!(arg.place, Place::Absent | Place::Flag(_) | Place::Choice(_)) {
            continue;
        }
        if arg.place == Place::Word && begins_with_flag(command, rest) {
            rest = flags(command, rest, &mut args)?;
        }
        if rest.is_empty() {
            if arg.member.optional {
                continue;
            }
            return Err(format!("{name} expected"));
        }
        let (value, left) = take(arg, rest, registers).map_err(|why| format!("{name}: {why}"))?;
        args.insert(name.to_owned(), value);
        rest = left.trim_start();
    }
    if begins_with_flag(command, rest) {
        rest = flags(command, rest, &mut args)?;
    }
    match rest {
        "" => Ok(args),
        extraneous => Err(format!("extraneous characters at the end of line: '{extraneous}'")),
    }
}

/// Whether the command's switches go on here: QEMU has some behind other arguments.
fn begins_with_flag(command: &Command, rest: &str) -> bool {
    let word = rest.split_whitespace().next().unwrap_or_default();
    let of = |letter: char| {
        command.args.iter().any(|arg| arg.place == Place::Flag(letter) || arg.place == Place::Choice(letter))
    };
    word.strip_prefix('-').is_some_and(|letters| !letters.is_empty() && letters.chars().all(of))
}

/// Takes the switches that a line begins with.
fn flags<'a>(command: &Command, line: &'a str, args: &mut Map<String, Value>) -> Result<&'a str, String> {
    let mut rest = line;
    loop {
        let (word, left) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let Some(letters) = word.strip_prefix('-').filter(|l| !l.is_empty() && l.chars().all(char::is_alphabetic))
        else {
            return Ok(rest);
        };
        let choice = command.args.iter().find(|arg| matches!(arg.place, Place::Choice(c) if letters == c.to_string()));
        if let Some(choice) = choice {
            let (value, left) = take(choice, left.trim_start(), &|| None)?;
            choice.member.ty.check(choice.member.name, &value).map_err(|fault| fault.desc)?;
            args.insert(choice.member.name.to_owned(), value);
            rest = left.trim_start();
            continue;
        }
        for letter in letters.chars() {
            let flag = command.args.iter().find(|arg| arg.place == Place::Flag(letter));
            let flag = flag.ok_or_else(|| format!("unsupported option -{letter}"))?;
            args.insert(flag.member.name.to_owned(), true.into());
        }
        rest = left.trim_start();
    }
}

/// Takes one argument from the front of `rest`: its value, and what is left.
fn take<'a>(arg: &Arg, rest: &'a str, registers: &dyn Fn() -> Option<Registers>) -> Result<(Value, &'a str), String> {
    Ok(match arg.place {
        Place::Rest | Place::HmpRest => (rest.into(), ""),
        Place::LastNumber => (evaluate(rest, registers().as_ref())?.into(), ""),
        Place::Number => {
            let (value, left) = evaluate_first(rest, registers().as_ref())?;
            (value.into(), left)
        }
        Place::Mebibytes => {
            let (word, left) = word(rest)?;
            let mebibytes = values::number(&word)?;
            let bytes = mebibytes.checked_mul(1 << 20).filter(|bytes| i64::try_from(*bytes).is_ok());
            (bytes.ok_or_else(|| format!("{mebibytes} MiB are out of range"))?.into(), left)
        }
        Place::Size => {
            let (word, left) = word(rest)?;
            let bytes = values::size(&word, 1 << 20)?;
            (i64::try_from(bytes).map_err(|_| format!("{word} is out of range"))?.into(), left)
        }
        Place::Switch => {
            let (word, left) = word(rest)?;
            (values::switch(&word)?.into(), left)
        }
        Place::Word | Place::Absent | Place::Flag(_) | Place::Choice(_) | Place::Format => {
            let (word, left) = word(rest)?;
            (word.into(), left)
        }
    })
}

/// A word, or text in double quotes with backslashes.
fn word(text: &str) -> Result<(String, &str), String> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(char::is_whitespace).unwrap_or(text.len());
        return Ok((text[..end].to_owned(), &text[end..]));
    };
    let mut word = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((word, &quoted[at + 1..])),
            '\\' => match chars.next() {
                Some((_, 'n')) => word.push('\n'),
                Some((_, 'r')) => word.push('\r'),
                Some((_, c @ ('\\' | '\'' | '"'))) => word.push(c),
                Some((_, c)) => return Err(format!("unsupported escape code: '\\{c}'")),
                None => break,
            },
            c => word.push(c),
        }
    }
    Err("unterminated string".to_owned())
}

/// How a command is written.
fn usage(command: &Command) -> String {
    let mut names = command.hmp[0].to_owned();
    for alias in &command.hmp[1..] {
        names += &format!("|{}", alias.strip_prefix("info ").unwrap_or(alias));
    }
    let mut text = names;
    for arg in command.args {
        let name = arg.member.name;
        let shown = match arg.place {
            Place::Absent => continue,
            Place::Format => "/fmt".to_owned(),
            Place::Flag(letter) => format!("[-{letter}]"),
            Place::Choice(letter) => format!("[-{letter} {name}]"),
            Place::Switch if arg.member.optional => "[on|off]".to_owned(),
            Place::Switch => "on|off".to_owned(),
            _ if arg.member.optional => format!("[{name}]"),
            _ => name.to_owned(),
        };
        text += &format!(" {shown}");
    }
    text
}

/// `help`: all commands, one of them, or the subjects of `info`.
pub fn help(name: Option<&str>) -> Result<String, String> {
    let line = |command: &Command| format!("{} -- {}\n", usage(command), command.help);
    let of_info = |command: &Command| command.hmp.first().is_some_and(|name| name.starts_with("info "));
    let known = table::all().filter(|command| !command.hmp.is_empty());
    match name.map(str::trim) {
        None | Some("") => Ok(known.filter(|command| !of_info(command)).map(line).collect()),
        Some("info") => Ok(known.filter(|command| of_info(command)).map(line).collect()),
        Some(name) => match table::of_hmp(name) {
            Some(command) => Ok(line(command)),
            None => Err(format!("unknown command: '{name}'{}", near(name))),
        },
    }
}

/// What a line that was begun may go on to be: all words that fit at its end.
pub fn complete(line: &str) -> Vec<String> {
    let line = line.trim_start();
    let (prefix, typed) = match line.rsplit_once(' ') {
        None => ("", line),
        Some((before, typed)) => match before.trim() {
            "info" | "help info" | "? info" => ("info ", typed),
            "help" | "?" => ("", typed),
            _ => return Vec::new(),
        },
    };
    let names = table::all().flat_map(|command| command.hmp.iter().copied());
    let mut words: Vec<String> = names
        .filter(|name| !prefix.is_empty() || !name.starts_with("info "))
        .filter_map(|name| name.strip_prefix(prefix))
        .filter(|name| name.starts_with(typed))
        .map(str::to_owned)
        .collect();
    words.sort_unstable();
    words
}
