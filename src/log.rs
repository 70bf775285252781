//! The log: `-d` items as `tracing` targets, written as plain lines to standard error or `-D`.
//!
//! An event's target is the item's name (`target: "int"`); level TRACE or DEBUG; a field `pc` is what `-dfilter` looks at.
//! Events of other targets are for the user: from level WARN on they go to standard error as `PROGRAM: warning: TEXT`,
//! whatever `-D` says. What is off costs one load of a cached decision at each place of
//! use: `tracing` asks [`Subscriber::register_callsite`] once and again only when the set of items changes.

use crate::cli::config::{LogConfig, Messages, TraceConfig};
use brolga_devices::trace;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber, span};

/// The items of `-d`, with what they log.
pub const ITEMS: &[(&str, &str)] = &[
    ("in_asm", "guest instructions as they are translated"),
    ("op", "intermediate code of each block"),
    ("op_opt", "intermediate code after optimisation"),
    ("out_asm", "host code of each compiled region"),
    ("int", "interrupts and exceptions"),
    ("exec", "blocks as they are entered"),
    ("mmu", "page walks and TLB flushes"),
    ("cpu_reset", "processor state before resets"),
    ("guest_errors", "what the guest does wrong with devices and registers"),
    ("unimp", "what the guest asks for and Brolga lacks"),
    ("pcall", "far transfers between privilege levels"),
    ("cpu", "registers before each block that is entered"),
    ("fpu", "those of the FPU and the vectors too, with cpu and int"),
    ("invalid_mem", "accesses to memory where nothing is"),
    ("page", "a program's pages; only in user-mode emulation, as in QEMU"),
    ("nochain", "do not link compiled regions, so that exec shows every block"),
];

/// QEMU's other items, and why they are refused.
pub const REFUSED: &[(&str, &str)] = &[
    ("strace", "system calls are logged where programs are emulated; here a whole machine is"),
    ("tid", "there is one log for all threads"),
    ("plugin", "there are no plugins"),
    ("op_plugin", "there are no plugins"),
    ("op_ind", "no pass of that name; op and op_opt show the code before and after optimisation"),
    ("vpu", "x86 has none; fpu shows the vectors"),
];

/// Items that are about instructions, to which `-dfilter` applies.
const FILTERED: &[&str] = &["in_asm", "op", "op_opt", "out_asm", "exec", "cpu"];

/// Set bits are the enabled [`ITEMS`].
static ENABLED: AtomicU32 = AtomicU32::new(0);
static FILTER: OnceLock<Vec<(u64, u64)>> = OnceLock::new();

/// Where log lines go; the monitor changes it.
static OUTPUT: OnceLock<Arc<Mutex<Output>>> = OnceLock::new();

/// A log file's name: `%d` stands for the process's number.
pub fn file_name(template: &str) -> PathBuf {
    PathBuf::from(template.replace("%d", &std::process::id().to_string()))
}

/// Has log lines written to a new file from now on, whose name is made of `template`.
pub fn set_file(template: &str) -> io::Result<()> {
    let file = File::create(file_name(template))?;
    if let Some(output) = OUTPUT.get() {
        *output.lock().unwrap_or_else(PoisonError::into_inner) = Output::File(file);
    }
    Ok(())
}

/// Whether `-d item` is on. For switches that are more than messages (`nochain`).
pub fn enabled(item: &str) -> bool {
    index(item).is_some_and(|i| ENABLED.load(Ordering::Relaxed) >> i & 1 != 0)
}

/// What warnings and errors begin with: `-msg`, and the machine's name.
static BEGIN: OnceLock<(Messages, Option<String>)> = OnceLock::new();

/// Has warnings and errors begin as `messages` says, from now on.
pub fn begin_messages(messages: Messages, name: Option<&str>) {
    BEGIN.get_or_init(|| (messages, name.map(str::to_owned)));
}

/// What a message begins with now.
pub fn beginning() -> String {
    let Some((messages, name)) = BEGIN.get() else { return String::new() };
    let mut text = String::new();
    if messages.timestamp {
        text += &chrono::Utc::now().format("%Y-%m-%dT%H:%M:%S%.6fZ ").to_string();
    }
    if let (true, Some(name)) = (messages.guest_name, name) {
        text += name;
        text.push(' ');
    }
    text
}

/// Names of the enabled items.
pub fn enabled_items() -> Vec<&'static str> {
    ITEMS.iter().map(|(name, _)| *name).filter(|name| enabled(name)).collect()
}

/// Changes the set of items while running (the monitor's `log`).
pub fn set_items(items: &[&'static str]) {
    let bits = items.iter().filter_map(|item| index(item)).fold(0, |bits, i| bits | 1 << i);
    ENABLED.store(bits, Ordering::Relaxed);
    tracing::callsite::rebuild_interest_cache();
}

fn index(item: &str) -> Option<usize> {
    ITEMS.iter().position(|(name, _)| *name == item)
}

/// Installs the log as `config` says. `program` begins warnings. Fails if the file cannot be made.
pub fn install(config: &LogConfig, program: &str) -> anyhow::Result<()> {
    let output = match &config.file {
        None => Output::Stderr,
        Some(path) => Output::File(File::create(path).map_err(|e| {
            let reason = crate::cli::os_reason(&e);
            anyhow::anyhow!("-D {}: cannot be written: {reason}; choose another file", path.display())
        })?),
    };
    FILTER.get_or_init(|| config.filter.clone());
    let output = Arc::new(Mutex::new(output));
    OUTPUT.get_or_init(|| output.clone());
    let log = Log { program: program.to_owned(), output, last: Mutex::default() };
    // A second installation (only tests do that) keeps the first.
    let _ = tracing::subscriber::set_global_default(log);
    set_items(&config.items);
    Ok(())
}

/// Where trace events go, if not to the log.
static TRACES: OnceLock<Mutex<Output>> = OnceLock::new();

/// Has trace events told as `config` says. Fails if their file cannot be made.
pub fn trace(config: &TraceConfig) -> anyhow::Result<()> {
    if let Some(path) = &config.file {
        let file = File::create(path).map_err(|e| {
            let reason = crate::cli::os_reason(&e);
            anyhow::anyhow!("-trace file={}: cannot be written: {reason}; choose another file", path.display())
        })?;
        TRACES.get_or_init(|| Mutex::new(Output::File(file)));
    }
    trace::tell_to(tell);
    for (pattern, on) in &config.patterns {
        let plain = !pattern.contains(['*', '?']);
        // Which ranges there will be is not known yet.
        let of_range = pattern.ends_with("_read") || pattern.ends_with("_write");
        if trace::switch(pattern, *on) == 0 && plain && !of_range {
            tracing::warn!("-trace {pattern}: there is no such event; -trace help lists them");
        }
    }
    Ok(())
}

/// Writes a trace event.
fn tell(name: &str, text: fmt::Arguments<'_>) {
    let line = format!("{name} {text}\n");
    let write = |output: &Mutex<Output>| {
        // A full disk or a closed pipe loses lines; there is nowhere to report that.
        let _ = output.lock().unwrap_or_else(PoisonError::into_inner).write(line.as_bytes());
    };
    match (TRACES.get(), OUTPUT.get()) {
        (Some(output), _) => write(output),
        (None, Some(output)) => write(output),
        (None, None) => {}
    }
}

impl Output {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Self::Stderr => io::stderr().write_all(line),
            Self::File(file) => file.write_all(line),
        }
    }
}

enum Output {
    Stderr,
    File(File),
}

/// The subscriber. One lock around whole lines; it is never held while calling out.
struct Log {
    program: String,
    output: Arc<Mutex<Output>>,
    /// The last warning: said once, not on and on.
    last: Mutex<String>,
}

impl Log {
    fn warn(&self, level: &str, text: String) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != text {
            let _ = io::stderr().write_all(format!("{}{}: {level}: {text}", beginning(), self.program).as_bytes());
            *last = text;
        }
    }

    fn wants(metadata: &Metadata<'_>) -> bool {
        match index(metadata.target()) {
            Some(i) => ENABLED.load(Ordering::Relaxed) >> i & 1 != 0,
            None => *metadata.level() <= Level::WARN,
        }
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Events and the hints of `tracing::enabled!`.
        !metadata.is_span() && Self::wants(metadata)
    }

    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) { Interest::always() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(if ENABLED.load(Ordering::Relaxed) == 0 { LevelFilter::WARN } else { LevelFilter::TRACE })
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let metadata = event.metadata();
        if FILTERED.contains(&metadata.target()) && !line.passes(FILTER.get().map_or(&[], Vec::as_slice)) {
            return;
        }
        // What is more than one line may end with an empty one.
        line.text.truncate(line.text.strip_suffix('\n').unwrap_or(&line.text).len());
        line.text.push_str(&line.fields);
        line.text.push('\n');
        if index(metadata.target()).is_none() {
            let level = if *metadata.level() == Level::ERROR { "error" } else { "warning" };
            return self.warn(level, line.text);
        }
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        // A full disk or a closed pipe loses log lines; there is nowhere to report that.
        let _ = output.write(line.text.as_bytes());
    }

    // Spans are not used: their methods must exist.
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// An event's message, its other fields, and the address that `-dfilter` looks at (field `pc`).
#[derive(Default)]
struct Line {
    text: String,
    fields: String,
    pc: Option<u64>,
}

impl Line {
    fn passes(&self, filter: &[(u64, u64)]) -> bool {
        match self.pc {
            Some(pc) => filter.is_empty() || filter.iter().any(|&(low, high)| (low..=high).contains(&pc)),
            None => true,
        }
    }
}

impl Visit for Line {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "pc" {
            self.pc = Some(value);
        } else {
            self.record_debug(field, &format_args!("{value:#x}"));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.text, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::subscriber::with_default;

    fn emit() {
        tracing::trace!(target: "int", "vector {:#x}", 14);
        tracing::trace!(target: "in_asm", pc = 0x1000u64, "nop");
        tracing::trace!(target: "in_asm", pc = 0x2000u64, "hlt");
        tracing::warn!(target: "guest_errors", held_back = 3u64, "bad port");
        tracing::debug!("not for users");
        tracing::warn!("careful");
    }

    /// One test: the set of items is global.
    #[test]
    fn items_filter_and_format() {
        let path = std::env::temp_dir().join(format!("brolga-log-test-{}", std::process::id()));
        let log = Log {
            program: "brolga".into(),
            output: Arc::new(Mutex::new(Output::File(File::create(&path).unwrap()))),
            last: Mutex::default(),
        };
        FILTER.get_or_init(|| vec![(0x1800, 0x2fff)]);
        with_default(log, || {
            emit();
            set_items(&["int", "in_asm", "guest_errors"]);
            assert!(enabled("int") && !enabled("exec") && !enabled("nonsense"));
            assert_eq!(enabled_items(), ["in_asm", "int", "guest_errors"]);
            assert!(tracing::enabled!(target: "guest_errors", Level::WARN));
            assert!(!tracing::enabled!(target: "unimp", Level::WARN));
            emit();
            set_items(&[]);
            emit();
        });
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(text, "vector 0xe\nhlt\nbad port held_back=0x3\n", "warnings are not for the file");
    }
}
