//! `-p`: how far the work is, on one line of standard output that is written over and over.

use std::io::Write;
use std::sync::Mutex;

/// The line, or nothing if it was not asked for. Threads may report in any order.
pub struct Progress {
    total: u64,
    /// Bytes done, and the hundredths of a percent shown last.
    state: Option<Mutex<(u64, u64)>>,
}

/// Steps of the line: a percent, in hundredths of it.
const STEP: u64 = 100;

impl Progress {
    /// Work of `total` units; shown if `on`.
    pub fn new(on: bool, total: u64) -> Progress {
        if on {
            show(0, "\r");
        }
        Progress { total, state: on.then(|| Mutex::new((0, 0))) }
    }

    /// `units` more are done.
    pub fn add(&self, units: u64) {
        let Some(state) = &self.state else { return };
        let mut state = state.lock().unwrap_or_else(|e| e.into_inner());
        state.0 = state.0.saturating_add(units).min(self.total);
        let share = (u128::from(state.0) * 10_000 / u128::from(self.total.max(1))) as u64;
        if share >= state.1 + STEP && share < 10_000 {
            state.1 = share;
            show(share, "\r");
        }
    }

    /// All is done.
    pub fn finish(&self) {
        if self.state.is_some() {
            show(10_000, "\n");
        }
    }
}

/// The work goes on if nobody can see how far it is.
fn show(share: u64, end: &str) {
    let mut out = std::io::stdout();
    let _ = write!(out, "    ({}.{:02}/100%){end}", share / 100, share % 100);
    let _ = out.flush();
}
