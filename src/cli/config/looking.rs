//! What is wanted to be known of the guest: logs, traces, a profile.

use std::path::PathBuf;

/// `-profile`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProfileConfig {
    /// `file=`: where the stacks go.
    pub file: PathBuf,
    /// `hz=`: looks a second.
    pub rate: u64,
    /// `symbols=`: names of the guest's functions; the kernel's own if not given.
    pub symbols: Option<PathBuf>,
    /// `program=`: ELF files of programs that may run in the guest.
    pub programs: Vec<PathBuf>,
}

/// `-trace`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceConfig {
    /// Patterns of events' names, in order, and whether they are switched on.
    pub patterns: Vec<(String, bool)>,
    /// `file=`: where events are told, the log if not given.
    pub file: Option<PathBuf>,
}

/// `-d`, `-D`, `-dfilter`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogConfig {
    /// Items to log, as named in `crate::log`.
    pub items: Vec<&'static str>,
    /// `-D`: the file, standard error if not given.
    pub file: Option<PathBuf>,
    /// `-dfilter`: guest addresses (inclusive ranges) to which per-instruction items are limited; empty: no limit.
    pub filter: Vec<(u64, u64)>,
}
