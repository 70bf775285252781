//! Runs random guests: random code in random modes over random tables, in the interpreter and in generated code. See
//! `brolga_jit::testing::hostile`.
//!
//! `hostile [--seed N] [--cases N] [--tier interp|both] [--stop N] [--patience MS]`. A seed names a case: `--seed N --cases 1` repeats it.

#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};
use brolga_jit::testing::hostile::{First, Lab, PATIENCE, Verdict};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

struct Options {
    seed: u64,
    cases: u64,
    both: bool,
    stop: u64,
    /// Milliseconds after which a run that loops is ended.
    patience: u64,
    /// We are the child that runs the cases.
    inside: bool,
}

fn parse() -> Result<Options> {
    let mut o = Options { seed: 1, cases: 10_000, both: true, stop: 5, patience: PATIENCE, inside: false };
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        if name == "--inside" {
            o.inside = true;
            continue;
        }
        let value = args.next().with_context(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--seed" => o.seed = value.parse()?,
            "--cases" => o.cases = value.parse()?,
            "--stop" => o.stop = value.parse()?,
            "--patience" => o.patience = value.parse()?,
            "--tier" => {
                o.both = match value.as_str() {
                    "interp" => false,
                    "both" => true,
                    _ => bail!("--tier {value}: use interp or both"),
                }
            }
            _ => bail!("unknown option {name}: use --seed, --cases, --tier, --patience or --stop"),
        }
    }
    Ok(o)
}

/// Runs the cases; the number of differences.
fn run(o: &Options) -> u64 {
    let now = Arc::new(AtomicU64::new(o.seed));
    let hook = std::panic::take_hook();
    let dying = now.clone();
    std::panic::set_hook(Box::new(move |info| {
        eprintln!("seed {}:", dying.load(Ordering::Relaxed));
        hook(info);
    }));
    let mut lab = Lab::new(now, o.patience);
    let (mut different, mut endless, mut unspecified) = (0, 0, 0);
    for seed in o.seed..o.seed.saturating_add(o.cases) {
        if seed % 10_000 == 0 {
            println!("at {seed}: {different} differences");
        }
        if !o.both {
            lab.run(seed, First::Interpreter);
            continue;
        }
        match lab.compare(seed) {
            Verdict::Same => {}
            Verdict::Endless => endless += 1,
            Verdict::Unspecified => unspecified += 1,
            Verdict::Different(text) => {
                println!("seed {seed}:\n{text}");
                different += 1;
            }
        }
        if different >= o.stop {
            break;
        }
    }
    println!(
        "{} cases from seed {}: {different} differences, {endless} endless, {unspecified} left to the processor",
        o.cases, o.seed
    );
    different
}

/// Runs the cases in a child process, so that a crash, too, is reported.
fn main() -> Result<ExitCode> {
    let o = parse()?;
    if o.inside {
        return Ok(if run(&o) == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let me = std::env::current_exe().context("cannot find this program")?;
    let status = Command::new(me).arg("--inside").args(std::env::args().skip(1)).status()?;
    if let Some(signal) = status.signal() {
        println!("ended by signal {signal}: narrow --seed and --cases down to find the case");
    }
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
