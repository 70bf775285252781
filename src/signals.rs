//! Signals that end or stop the process, taken by a thread of their own so that they can act in order: the machine is
//! asked to end, output is written out, the terminal is put back.

use crate::chardev::{self, terminal};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::getpid;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Signals that ask for the end.
const TERMINATING: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];
/// How long the machine may take to end in order.
const GRACE: Duration = Duration::from_secs(5);

type Quit = Arc<dyn Fn() + Send + Sync>;

static QUIT: Mutex<Option<Quit>> = Mutex::new(None);
/// Who hears that the terminal has another size.
static RESIZED: Mutex<Option<Quit>> = Mutex::new(None);

/// Has `resized` called when the terminal's size changes.
pub fn on_resize(resized: Arc<dyn Fn() + Send + Sync>) {
    *RESIZED.lock().unwrap_or_else(PoisonError::into_inner) = Some(resized);
}

/// What asks the machine to end. Without one, the process ends at once.
pub fn on_termination(quit: Quit) {
    *QUIT.lock().unwrap_or_else(PoisonError::into_inner) = Some(quit);
}

/// Starts taking signals. Call before any other thread is started: threads inherit that these signals are blocked.
pub fn start(program: &str) -> anyhow::Result<()> {
    let mut set = SigSet::empty();
    let ignored = ignored_signals();
    let others = [Signal::SIGTSTP, Signal::SIGCONT, Signal::SIGWINCH];
    for signal in TERMINATING.into_iter().chain(others) {
        // `nohup` and shells' background jobs rely on these staying ignored; blocking them would revive them.
        if ignored >> (signal as u32 - 1) & 1 == 0 {
            set.add(signal);
        }
    }
    set.thread_block()?;
    let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC)?;
    let program = program.to_owned();
    thread::Builder::new().name("signals".into()).spawn(move || run(&signals, &program))?;
    Ok(())
}

/// The mask of ignored signals: bit N-1 for signal N.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|l| l.strip_prefix("SigIgn:"));
    mask.and_then(|m| u64::from_str_radix(m.trim(), 16).ok()).unwrap_or(0)
}

fn run(signals: &SignalFd, program: &str) {
    let mut ending = false;
    loop {
        let Ok(Some(info)) = signals.read_signal() else { continue };
        match Signal::try_from(info.ssi_signo as i32) {
            Ok(Signal::SIGTSTP) => {
                terminal::lend();
                // Stops here; the terminal is taken back at SIGCONT.
                let _ = kill(getpid(), Signal::SIGSTOP);
            }
            Ok(Signal::SIGCONT) => terminal::take_back(),
            Ok(Signal::SIGWINCH) => {
                let resized = RESIZED.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if let Some(resized) = resized {
                    resized();
                }
            }
            Ok(signal) => {
                if ending {
                    chardev::leave(1);
                }
                ending = true;
                let sender = match info.ssi_pid {
                    0 => String::new(),
                    pid => format!(" from pid {pid}"),
                };
                eprintln!("{program}: terminating on signal {}{sender}", signal as i32);
                terminate();
            }
            Err(_) => {}
        }
    }
}

/// Asks the machine to end, and ends the process if that takes too long.
fn terminate() {
    let quit = QUIT.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let Some(quit) = quit else { chardev::leave(0) };
    let watchdog = thread::Builder::new().name("grace".into()).spawn(|| {
        thread::sleep(GRACE);
        chardev::leave(0);
    });
    if watchdog.is_err() {
        chardev::leave(0);
    }
    quit();
}
