//! Where a guest's time goes (`-profile`): the processors are looked at many times a second, and what they were doing is
//! counted by guest functions, for `info jit` and for tools that draw flame graphs.

mod programs;
mod symbols;
mod tasks;

use crate::cli::config::{Config, ProfileConfig};
use anyhow::{Result, anyhow};
use brolga_jit::Registers;
use programs::Program;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use symbols::Symbols;
use tasks::Tasks;

/// Most callers that are looked at.
const DEPTH: usize = 48;
/// Functions that `info jit` shows.
const SHOWN: usize = 20;
/// From here on addresses are the kernel's, in 64-bit mode.
const KERNEL: u64 = 1 << 63;
/// Most different stacks that are kept apart; what comes later counts under its last function alone.
const MOST: usize = 200_000;

/// What one processor was doing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Sample {
    /// It was halted.
    Halted,
    /// It ran: its instruction, then those that it returns to.
    Running(Who, Vec<Place>),
}

/// Whose code ran.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// The kernel's.
    Kernel,
    /// A program's, with its name if that is known.
    Program(Option<String>),
}

/// Where code lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// At a linear address.
    At(u64),
    /// At an address of a program's file: the number of the program among those that were given.
    In(usize, u64),
}

/// A profile that is being taken.
pub struct Profile {
    symbols: Symbols,
    /// Shared with those who look.
    finder: Arc<Finder>,
    file: PathBuf,
    /// Looks a second.
    rate: u64,
    counts: Mutex<HashMap<(u32, Sample), u64>>,
}

/// Has logs name guest code after what `-profile symbols=` names, or the kernel if it is an ELF file: read when the first
/// name is looked for.
pub fn name_code(config: &Config) {
    let given = config.profile.as_ref().and_then(|p| p.symbols.clone());
    let Some(path) = given.clone().or_else(|| config.boot.kernel.clone()) else { return };
    let path = std::path::absolute(&path).unwrap_or(path);
    let read = OnceLock::new();
    brolga_jit::name_code(move |address| {
        let names = read.get_or_init(|| match std::fs::read(&path) {
            Ok(bytes) if given.is_some() || bytes.starts_with(symbols::ELF) => Symbols::read(&bytes),
            _ => Symbols::default(),
        });
        names.name(address).map(str::to_owned)
    });
}

/// What reads eight bytes at a linear address of the processor's.
pub type ReadWord<'a> = &'a dyn Fn(u64) -> Option<u64>;

/// What tells what a processor is doing.
#[derive(Default)]
pub struct Finder {
    /// How the kernel's tasks are found.
    tasks: Option<Tasks>,
    /// `program=`.
    programs: Vec<Program>,
}

impl Finder {
    /// What a running processor with `registers` is doing; `kernel_gs` is the base of GS that SWAPGS would bring.
    pub fn look(&self, registers: &Registers, kernel_gs: u64, read: ReadWord<'_>) -> Sample {
        let (user, stack) = walk(registers, read);
        let at = |stack: Vec<u64>| stack.into_iter().map(Place::At).collect();
        if !user {
            return Sample::Running(Who::Kernel, at(stack));
        }
        let task = self.tasks.as_ref().and_then(|tasks| tasks.current(kernel_gs, read));
        let found = self.programs.iter().enumerate().find_map(|(n, program)| Some((n, program.moved(stack[0], read)?)));
        let Some((number, moved)) = found else { return Sample::Running(Who::Program(task), at(stack)) };
        let program = &self.programs[number];
        let place = |at: u64| match at.wrapping_sub(moved) {
            inside if program.has(inside) => Place::In(number, inside),
            _ => Place::At(at),
        };
        let name = task.unwrap_or_else(|| program.name().to_owned());
        Sample::Running(Who::Program(Some(name)), stack.into_iter().map(place).collect())
    }
}

/// Whether a processor with `registers` runs a program, and the linear addresses of its instruction and of those that it
/// returns to.
fn walk(registers: &Registers, read: ReadWord<'_>) -> (bool, Vec<u64>) {
    const LONG: u64 = 1 << 10;
    const RBP: usize = 5;
    let code = &registers.segments[1];
    let user = code.selector & 3 == 3;
    let wide = registers.efer & LONG != 0 && code.attributes & 1 << 13 != 0;
    let mut stack = vec![if wide { registers.rip } else { code.base.wrapping_add(registers.rip) }];
    let mut frame = registers.gpr[RBP];
    // Frames lie one above the other; code without frame pointers has anything there.
    while wide && stack.len() < DEPTH && frame != 0 && frame.is_multiple_of(8) {
        let (Some(next), Some(back)) = (read(frame), read(frame.wrapping_add(8))) else { break };
        if (back >= KERNEL) == user || back < 0x1000 {
            break;
        }
        stack.push(back);
        if next <= frame || next - frame > 1 << 20 {
            break;
        }
        frame = next;
    }
    (user, stack)
}

impl Profile {
    /// As `config` says; names come from its file, or from the kernel that is started.
    pub fn new(config: &ProfileConfig, kernel: Option<&Path>) -> Result<Self> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|e| {
                let reason = crate::cli::os_reason(&e);
                anyhow!("-profile symbols={}: cannot be read: {reason}; check the path", path.display())
            })
        };
        let symbols = match (&config.symbols, kernel) {
            (Some(path), _) => {
                let symbols = Symbols::read(&read(path)?);
                if symbols.is_empty() {
                    let shown = path.display();
                    return Err(anyhow!(
                        "-profile symbols={shown}: no symbols in it; give a System.map or an ELF file"
                    ));
                }
                symbols
            }
            (None, Some(kernel)) => read(kernel).map(|bytes| Symbols::read(&bytes)).unwrap_or_default(),
            (None, None) => Symbols::default(),
        };
        // Early, while somebody is looking.
        File::create(&config.file).map_err(|e| {
            let reason = crate::cli::os_reason(&e);
            anyhow!("-profile {}: cannot be written: {reason}; choose another file", config.file.display())
        })?;
        let file = std::path::absolute(&config.file).unwrap_or_else(|_| config.file.clone());
        let programs = config.programs.iter().map(|path| Program::open(path)).collect::<Result<_>>()?;
        let finder = Arc::new(Finder { tasks: Tasks::new(&symbols), programs });
        Ok(Self { symbols, finder, file, rate: config.rate, counts: Mutex::default() })
    }

    /// What tells what a processor is doing.
    pub fn finder(&self) -> Arc<Finder> {
        self.finder.clone()
    }

    /// Looks a second.
    pub fn rate(&self) -> u64 {
        self.rate
    }

    /// Counts what processor `cpu` was doing.
    pub fn count(&self, cpu: u32, mut sample: Sample) {
        if let Sample::Running(_, stack) = &mut sample {
            // Where there are names, an address within a function says no more than its name, and an address that is in none
            // was not a caller.
            let known = stack.iter().skip(1).take_while(|at| match at {
                Place::At(at) => self.symbols.is_empty() || *at < KERNEL || self.symbols.name(*at).is_some(),
                Place::In(..) => true,
            });
            let depth = 1 + known.count();
            stack.truncate(depth);
        }
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() >= MOST
            && let Sample::Running(_, stack) = &mut sample
        {
            stack.truncate(1);
        }
        *counts.entry((cpu, sample)).or_default() += 1;
    }

    /// What a frame is called.
    fn frame(&self, user: bool, place: Place) -> String {
        match place {
            Place::In(program, at) => match self.finder.programs.get(program).and_then(|p| p.function(at)) {
                Some(name) => name.to_owned(),
                None => format!("[{:#x}]", at & !0xff),
            },
            // Programs whose files were not given have no names here: by pages, so that there are not too many.
            Place::At(at) if user => format!("[user {:#x}]", at & !0xfff),
            Place::At(at) => match self.symbols.name(at) {
                Some(name) => name.to_owned(),
                None => format!("[{:#x}]", at & !0xff),
            },
        }
    }

    /// One line for each stack, outermost first, with its count: what tools that draw flame graphs read.
    fn folded(&self) -> BTreeMap<String, u64> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lines = BTreeMap::new();
        for ((cpu, sample), count) in counts.iter() {
            let mut line = format!("cpu{cpu}");
            match sample {
                Sample::Halted => line += ";[halted]",
                Sample::Running(who, stack) => {
                    line += match who {
                        Who::Kernel => ";kernel",
                        Who::Program(_) => ";user",
                    };
                    if let Who::Program(Some(name)) = who {
                        let _ = write!(line, ";{name}");
                    }
                    for place in stack.iter().rev() {
                        let _ = write!(line, ";{}", self.frame(*who != Who::Kernel, *place));
                    }
                }
            }
            *lines.entry(line).or_default() += count;
        }
        lines
    }

    /// The hottest functions, for people.
    pub fn show(&self) -> String {
        let lines = self.folded();
        let all: u64 = lines.values().sum();
        let row =
            |(name, count): (&str, u64)| format!("  {:5.1} %  {name}\n", 100.0 * count as f64 / all.max(1) as f64);
        let functions = ranked(lines.iter().map(|(line, count)| (line.rsplit(';').next().unwrap_or_default(), *count)));
        let mut text = format!("Hottest guest code ({all} looks, {} a second)\n", self.rate);
        text.extend(functions.into_iter().map(row));
        let programs = self.programs();
        if !programs.is_empty() {
            text += "Programs\n";
            text.extend(ranked(programs.iter().map(|(name, count)| (name.as_str(), *count))).into_iter().map(row));
        }
        text
    }

    /// How often each program was seen that has a name.
    fn programs(&self) -> Vec<(String, u64)> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let name = |sample: &Sample| match sample {
            Sample::Running(Who::Program(name), _) => name.clone(),
            _ => None,
        };
        counts.iter().filter_map(|((_, sample), count)| Some((name(sample)?, *count))).collect()
    }

    /// Writes the file.
    pub fn save(&self) -> Result<()> {
        let text: String = self.folded().into_iter().map(|(line, count)| format!("{line} {count}\n")).collect();
        let write = || File::create(&self.file)?.write_all(text.as_bytes());
        write().map_err(|e: std::io::Error| {
            anyhow!("-profile {}: cannot be written: {}", self.file.display(), crate::cli::os_reason(&e))
        })
    }
}

/// The names with the highest sums, in their order.
fn ranked<'a>(counts: impl Iterator<Item = (&'a str, u64)>) -> Vec<(&'a str, u64)> {
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    counts.for_each(|(name, count)| *sums.entry(name).or_default() += count);
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), *name));
    sums.truncate(SHOWN);
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(map: &str) -> Profile {
        let file = std::env::temp_dir().join(format!("brolga-profile-{}-{}", std::process::id(), map.len()));
        let (symbols, finder) = (Symbols::read(map.as_bytes()), Arc::default());
        Profile { symbols, finder, file, rate: 100, counts: Mutex::default() }
    }

    /// At addresses.
    fn running(who: Who, stack: &[u64]) -> Sample {
        Sample::Running(who, stack.iter().map(|at| Place::At(*at)).collect())
    }

    const MAP: &str = "ffffffff81000000 T outer\nffffffff81001000 T inner\nffffffff81002000 T leaf\n";

    fn kernel_registers(rbp: u64) -> Registers {
        let mut r = Registers { rip: 0xffffffff81002010, efer: 0x500, ..Registers::default() };
        r.segments[1].attributes = 1 << 13;
        r.gpr[5] = rbp;
        r
    }

    #[test]
    fn frames_are_followed_as_far_as_they_make_sense() {
        const STACK: u64 = 0xffff888000001000;
        let words = HashMap::from([
            (STACK, STACK + 0x40),
            (STACK + 8, 0xffffffff81001020),
            (STACK + 0x40, 0x33),
            (STACK + 0x48, 0xffffffff81000020),
        ]);
        let read = |at: u64| words.get(&at).copied();
        let look = |r: &Registers| Finder::default().look(r, 0, &read);
        let expected = [0xffffffff81002010, 0xffffffff81001020, 0xffffffff81000020];
        assert_eq!(look(&kernel_registers(STACK)), running(Who::Kernel, &expected));
        // No frame there: the function alone.
        for rbp in [0, 3, STACK + 0x100] {
            assert_eq!(look(&kernel_registers(rbp)), running(Who::Kernel, &[0xffffffff81002010]));
        }
        // 16-bit code by its linear address.
        let mut r = Registers { rip: 0x20, ..Registers::default() };
        r.segments[1].base = 0x8000;
        assert_eq!(look(&r), running(Who::Kernel, &[0x8020]));
        // A program, of which nothing is known.
        r.segments[1].selector = 0x33;
        assert_eq!(look(&r), running(Who::Program(None), &[0x8020]));
    }

    #[test]
    fn stacks_are_folded_and_functions_ranked() {
        let p = profile(MAP);
        for _ in 0..3 {
            p.count(0, running(Who::Kernel, &[0xffffffff81002010, 0xffffffff81001020, 0xffffffff81000020]));
        }
        p.count(0, running(Who::Kernel, &[0xffffffff81001020, 0xffffffff99999999, 0xffffffff81000020]));
        p.count(1, running(Who::Program(Some("sh".into())), &[0x401234, 0x402000]));
        p.count(1, Sample::Halted);
        p.save().unwrap();
        let text = std::fs::read_to_string(&p.file).unwrap();
        std::fs::remove_file(&p.file).unwrap();
        assert_eq!(
            text,
            "cpu0;kernel;inner 1\ncpu0;kernel;outer;inner;leaf 3\ncpu1;[halted] 1\ncpu1;user;sh;[user 0x402000];[user 0x401000] 1\n"
        );
        let shown = p.show();
        assert!(
            shown.starts_with("Hottest guest code (6 looks, 100 a second)\n   50.0 %  leaf\n   16.7 %  "),
            "{shown}"
        );
        assert!(shown.ends_with("Programs\n   16.7 %  sh\n"), "{shown}");
    }
}
