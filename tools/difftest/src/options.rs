//! The command line.

use crate::select::Family;
use anyhow::{Context, Result, bail};
use brolga_jit::testing::{Bits, Tier};
use std::path::PathBuf;

/// What to test and how.
pub struct Options {
    /// Part of the instruction set.
    pub family: Family,
    /// Code width.
    pub bits: Bits,
    /// Cases to run.
    pub cases: u64,
    /// Where the randomness starts.
    pub seed: u64,
    /// Mnemonic or opcode to restrict the test to.
    pub only: Option<String>,
    /// Mismatches to report in full.
    pub stop: usize,
    /// The seed is that of one instruction.
    pub exact: bool,
    /// Print every case.
    pub show: bool,
    /// What executes the instructions.
    pub tier: Option<Tier>,
    /// Print which flags are not compared, and the manual's words for it.
    pub undefined: bool,
    /// Instructions in a case.
    pub length: usize,
    /// Write one-line cases instead of testing.
    pub write: Option<PathBuf>,
}

/// Reads the command line.
pub fn parse() -> Result<Options> {
    let mut o = Options {
        family: Family::Integer,
        bits: Bits::B64,
        cases: 100_000,
        seed: 1,
        only: None,
        stop: 20,
        exact: false,
        show: false,
        tier: None,
        undefined: false,
        length: 1,
        write: None,
    };
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        if name == "--exact" {
            o.exact = true;
            continue;
        }
        if name == "--undefined" {
            o.undefined = true;
            continue;
        }
        if name == "--show" {
            o.show = true;
            continue;
        }
        let value = args.next().with_context(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--family" => {
                o.family = match value.as_str() {
                    "int" => Family::Integer,
                    "vec" => Family::Vector,
                    "avx" => Family::Avx,
                    "x87" => Family::X87,
                    _ => bail!("--family {value}: use int, vec, avx or x87"),
                }
            }
            "--tier" => {
                o.tier = match value.as_str() {
                    "lifted" => Some(Tier::Lifted),
                    "optimised" => Some(Tier::Optimised),
                    "baseline" => Some(Tier::Baseline),
                    "jit" => Some(Tier::Compiled),
                    _ => bail!("--tier {value}: use lifted, optimised, baseline or jit"),
                }
            }
            "--write" => o.write = Some(value.into()),
            "--bits" => {
                o.bits = match value.as_str() {
                    "16" => Bits::B16,
                    "32" => Bits::B32,
                    "64" => Bits::B64,
                    _ => bail!("--bits {value}: use 16, 32 or 64"),
                }
            }
            "--length" => o.length = value.parse::<usize>()?.clamp(1, 20),
            "--cases" => o.cases = value.parse()?,
            "--seed" => o.seed = value.parse()?,
            "--only" => o.only = Some(value.to_lowercase()),
            "--stop" => o.stop = value.parse()?,
            _ => bail!("unknown option {name}"),
        }
    }
    Ok(o)
}
