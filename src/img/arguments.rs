//! Words of a subcommand, read as getopt_long does: `-f raw`, `-fraw`, `-qp`, `--format raw`, `--format=raw`, any
//! unique beginning of a long name, operands anywhere, `--` before operands that begin with a dash.

use crate::words::suggest;
use anyhow::{Result, anyhow, bail};

/// One option of a subcommand.
#[derive(Debug, Clone, Copy)]
pub struct Opt {
    /// The letter after one dash.
    pub short: Option<char>,
    /// The name after two dashes; also the key under which its values are found.
    pub long: &'static str,
    /// What stands for the value in the help; none for a switch.
    pub value: Option<&'static str>,
    /// One line of help, or for an option that is known but refused, why and what to do.
    pub help: &'static str,
    /// Whether it is refused.
    pub refused: bool,
}

impl Opt {
    /// A switch.
    pub const fn switch(short: Option<char>, long: &'static str, help: &'static str) -> Opt {
        Opt { short, long, value: None, help, refused: false }
    }

    /// An option with a value.
    pub const fn value(short: Option<char>, long: &'static str, value: &'static str, help: &'static str) -> Opt {
        Opt { short, long, value: Some(value), help, refused: false }
    }

    /// One that is not there: `help` says why and what to do instead.
    pub const fn refused(
        short: Option<char>,
        long: &'static str,
        value: Option<&'static str>,
        help: &'static str,
    ) -> Opt {
        Opt { short, long, value, help, refused: true }
    }

    /// As errors name it.
    fn shown(&self) -> String {
        self.short.map_or_else(|| format!("--{}", self.long), |c| format!("-{c}"))
    }
}

/// `-q`.
pub const QUIET: Opt = Opt::switch(Some('q'), "quiet", "print nothing but errors");
/// `-p`.
pub const PROGRESS: Opt = Opt::switch(Some('p'), "progress", "show how far the work is");
/// `-f`.
pub const FORMAT: Opt = Opt::value(Some('f'), "format", "FMT", "format of FILENAME; recognised if not given");
/// `--image-opts`.
pub const IMAGE_OPTS: Opt =
    Opt::switch(None, "image-opts", "FILENAME is a list: driver=qcow2,file.filename=disk.qcow2");
/// `-U`.
pub const FORCE_SHARE: Opt = Opt::switch(Some('U'), "force-share", "open also what another process is using");
/// `--object`.
pub const OBJECT: Opt =
    Opt::refused(None, "object", Some("OBJDEF"), "there are no secrets: encrypted images are not supported");
/// `--output`.
pub const OUTPUT: Opt = Opt::value(None, "output", "human|json", "for people (default) or for programs");

/// What was given.
#[derive(Debug, Default)]
pub struct Arguments {
    given: Vec<(&'static Opt, String)>,
    /// Words that are no options, in order.
    pub operands: Vec<String>,
    /// Whether `-h` or `--help` was given.
    pub help: bool,
}

impl Arguments {
    /// Reads `words` by the table `options`.
    pub fn read(options: &'static [Opt], words: &[String]) -> Result<Arguments> {
        let mut this = Arguments::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if word == "--" {
                this.operands.extend(words.cloned());
                break;
            } else if let Some(long) = word.strip_prefix("--") {
                this.long(options, long, &mut words)?;
            } else if let Some(letters) = word.strip_prefix('-').filter(|l| !l.is_empty()) {
                this.letters(options, letters, &mut words)?;
            } else {
                this.operands.push(word.clone());
            }
        }
        Ok(this)
    }

    fn long(&mut self, options: &'static [Opt], word: &str, rest: &mut std::slice::Iter<'_, String>) -> Result<()> {
        let (name, value) = word.split_once('=').map_or((word, None), |(n, v)| (n, Some(v.to_owned())));
        if name == "help" {
            self.help = true;
            return Ok(());
        }
        let option = find_long(options, name)?;
        let value = match (option.value, value) {
            (Some(_), Some(value)) => value,
            (Some(shown), None) => {
                rest.next().cloned().ok_or_else(|| anyhow!("--{}: needs a value: {shown}", option.long))?
            }
            (None, None) => String::new(),
            (None, Some(_)) => bail!("--{}: takes no value; write it alone", option.long),
        };
        self.add(option, value)
    }

    fn letters(
        &mut self,
        options: &'static [Opt],
        letters: &str,
        rest: &mut std::slice::Iter<'_, String>,
    ) -> Result<()> {
        let mut letters = letters.chars();
        while let Some(letter) = letters.next() {
            if letter == 'h' {
                self.help = true;
                continue;
            }
            let Some(option) = options.iter().find(|o| o.short == Some(letter)) else {
                bail!("-{letter}: unknown option; --help lists all options");
            };
            let Some(shown) = option.value else {
                self.add(option, String::new())?;
                continue;
            };
            let attached: String = letters.by_ref().collect();
            let value = match attached.is_empty() {
                false => attached,
                true => rest.next().cloned().ok_or_else(|| anyhow!("-{letter}: needs a value: {shown}"))?,
            };
            self.add(option, value)?;
        }
        Ok(())
    }

    fn add(&mut self, option: &'static Opt, value: String) -> Result<()> {
        if option.refused {
            bail!("{}: not supported: {}", option.shown(), option.help);
        }
        self.given.push((option, value));
        Ok(())
    }

    /// Whether the option is there.
    pub fn has(&self, long: &str) -> bool {
        self.given.iter().any(|(o, _)| o.long == long)
    }

    /// Every value of the option, in order.
    pub fn all<'a>(&'a self, long: &'a str) -> impl Iterator<Item = &'a str> {
        self.given.iter().filter(move |(o, _)| o.long == long).map(|(_, v)| v.as_str())
    }

    /// Its value; the last one counts, as in qemu-img.
    pub fn get<'a>(&'a self, long: &'a str) -> Option<&'a str> {
        self.all(long).last()
    }

    /// The options given among `names`, by their long names, in order.
    pub fn among<'a>(&'a self, names: &'a [&str]) -> impl Iterator<Item = &'static str> + 'a {
        self.given.iter().map(|(o, _)| o.long).filter(|l| names.contains(l))
    }

    /// The same with their values.
    pub fn valued<'a>(&'a self, names: &'a [&str]) -> impl Iterator<Item = (&'static str, &'a str)> {
        self.given.iter().map(|(o, v)| (o.long, v.as_str())).filter(|(l, _)| names.contains(l))
    }

    /// The value of the option read by `read`, whose refusal gets the option's name.
    pub fn parsed<T>(&self, long: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>> {
        let Some((option, value)) = self.given.iter().rev().find(|(o, _)| o.long == long) else {
            return Ok(None);
        };
        read(value).map(Some).map_err(|e| anyhow!("{}: {e}", option.shown()))
    }

    /// All operands, which must be as many as `names` tells.
    pub fn exactly<const N: usize>(&self, names: [&str; N]) -> Result<[&str; N]> {
        if let Some(extra) = self.operands.get(N) {
            bail!("{extra}: one argument too many; there are {}", names.join(" "));
        }
        let found: Vec<&str> = self.operands.iter().map(String::as_str).collect();
        found.try_into().map_err(|found: Vec<&str>| {
            anyhow!("{} is missing; write it last", names.get(found.len()).copied().unwrap_or("FILENAME"))
        })
    }

    /// Whether `--output=json` is asked for.
    pub fn json(&self) -> Result<bool> {
        let read = |v: &str| match v {
            "human" => Ok(false),
            "json" => Ok(true),
            _ => Err(format!("there are human and json, no '{v}'")),
        };
        Ok(self.parsed("output", read)?.unwrap_or(false))
    }
}

/// The option with that name or the only one whose name begins so.
fn find_long(options: &'static [Opt], name: &str) -> Result<&'static Opt> {
    if let Some(option) = options.iter().find(|o| o.long == name) {
        return Ok(option);
    }
    let begun: Vec<&Opt> = options.iter().filter(|o| !name.is_empty() && o.long.starts_with(name)).collect();
    match begun.as_slice() {
        [one] => Ok(one),
        [] => {
            let near = suggest::nearest(name, options.iter().map(|o| o.long));
            let near = near.map_or("--help lists all options".to_owned(), |n| format!("did you mean --{n}?"));
            bail!("--{name}: unknown option; {near}")
        }
        several => {
            let names: Vec<String> = several.iter().map(|o| format!("--{}", o.long)).collect();
            bail!("--{name}: could be {}; write more of it", names.join(" or "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[Opt] = &[
        QUIET,
        PROGRESS,
        FORMAT,
        OBJECT,
        OUTPUT,
        Opt::value(Some('b'), "backing", "FILE", "below"),
        Opt::value(Some('F'), "backing-format", "FMT", "of it"),
    ];

    fn read(words: &[&str]) -> Result<Arguments, String> {
        let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        Arguments::read(TABLE, &words).map_err(|e| e.to_string())
    }

    #[test]
    fn all_ways_to_write_an_option() {
        for words in [
            &["-q", "-f", "raw", "a", "b"][..],
            &["-qfraw", "a", "b"],
            &["a", "--format=raw", "-q", "b"],
            &["a", "--form", "raw", "--qui", "--", "b"],
        ] {
            let read = read(words).unwrap();
            assert_eq!((read.get("format"), read.has("quiet")), (Some("raw"), true), "{words:?}");
            assert_eq!(read.operands, ["a", "b"], "{words:?}");
        }
        let last = read(&["-f", "raw", "-f", "qcow2", "-"]).unwrap();
        assert_eq!((last.get("format"), last.operands.as_slice()), (Some("qcow2"), &["-".to_owned()][..]));
        assert_eq!(read(&["--backing", "x"]).unwrap().get("backing"), Some("x"), "whole names go before beginnings");
        assert!(read(&["-h"]).unwrap().help && read(&["--help"]).unwrap().help);
    }

    #[test]
    fn errors_name_the_option_and_the_way_out() {
        for (words, message) in [
            (&["-z"][..], "-z: unknown option; --help lists all options"),
            (&["--fromat", "raw"], "--fromat: unknown option; did you mean --format?"),
            (&["--back=x"], "--back: could be --backing or --backing-format; write more of it"),
            (&["-f"], "-f: needs a value: FMT"),
            (&["--format"], "--format: needs a value: FMT"),
            (&["--quiet=1"], "--quiet: takes no value; write it alone"),
            (&["--object", "x"], "--object: not supported: there are no secrets: encrypted images are not supported"),
        ] {
            assert_eq!(read(words).err().as_deref(), Some(message));
        }
        let two = read(&["a", "b", "--output=xml"]).unwrap();
        assert_eq!(two.exactly(["FILENAME"]).unwrap_err().to_string(), "b: one argument too many; there are FILENAME");
        let missing = two.exactly(["A", "B", "SIZE"]).unwrap_err().to_string();
        assert_eq!(missing, "SIZE is missing; write it last");
        assert_eq!(two.exactly(["A", "B"]).unwrap(), ["a", "b"]);
        assert_eq!(two.json().unwrap_err().to_string(), "--output: there are human and json, no 'xml'");
    }
}
