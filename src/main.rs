//! Brolga: a full-system x86-64 emulator.
#![forbid(unsafe_code)]

mod background;
mod boot;
mod chardev;
mod cli;
mod clock;
mod display;
mod entropy;
mod events;
mod gdb;
mod io_thread;
mod log;
mod machine;
mod migration;
mod monitor;
mod nbd;
mod net;
mod profile;
mod share;
mod signals;
mod snapshot;
mod vcpu;

use brolga_devices::trace;
use cli::Request;
use cli::config::Config;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut words = Vec::new();
    for word in std::env::args_os() {
        match word.into_string() {
            Ok(word) => words.push(word),
            Err(word) => return fail("brolga", &format!("{}: not valid UTF-8", word.to_string_lossy())),
        }
    }
    trace::add(events::ALL);
    let identity = cli::identify(words.first().map(String::as_str));
    let program = identity.program.clone();
    let config = match cli::parse(identity, words.get(1..).unwrap_or_default()) {
        Ok(Request::Run(config)) => config,
        Ok(Request::Print(text)) => {
            // A reader that closes early (`| head`) has what it wants.
            let _ = std::io::stdout().write_all(text.as_bytes());
            return ExitCode::SUCCESS;
        }
        Err(e) => return fail(&program, &e.to_string()),
    };
    match background::start(&config.identity, &words, &config) {
        Ok(None) => {}
        Ok(Some(status)) => return status,
        Err(e) => return fail(&program, &format!("{e:#}")),
    }
    log::begin_messages(config.messages, config.name.as_deref());
    let ended = run(*config);
    monitor::settle();
    match ended {
        Ok(status) => {
            chardev::finish();
            // Statuses are bytes; `isa-debug-exit` gives 8 bits too.
            ExitCode::from(status as u8)
        }
        Err(e) => {
            chardev::finish();
            fail(&program, &format!("{e:#}"))
        }
    }
}

/// Runs the machine to its end.
fn run(config: Config) -> anyhow::Result<i32> {
    chardev::restore_on_panic();
    signals::start(&config.identity.program)?;
    log::install(&config.log, &config.identity.program)?;
    log::trace(&config.trace)?;
    profile::name_code(&config);
    if !config.console_seen {
        tracing::warn!("nothing of the guest will be seen: there is no display yet; add -nographic or -serial stdio");
    }
    if let Some(path) = &config.pid_file {
        background::write_pid(path)?;
    }
    machine::run(config)
}

/// One line on standard error, whatever the message quotes; status 1.
fn fail(program: &str, message: &str) -> ExitCode {
    let line: String =
        message.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect();
    eprintln!("{}{program}: {line}", log::beginning());
    ExitCode::FAILURE
}
