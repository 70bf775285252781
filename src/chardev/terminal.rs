//! The user's terminal: raw while the guest has it, as it was before on every way out.
//!
//! The state is global because the ways out are: the end of `main`, a panic, a signal.

use nix::sys::termios::{self, InputFlags, LocalFlags, OutputFlags, SetArg, SpecialCharacterIndices, Termios};
use nix::unistd::{getpgrp, tcgetpgrp};
use std::io::{IsTerminal, stdin};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The settings found at the start, and the raw ones.
struct Settings {
    before: Termios,
    raw: Termios,
}

static TERMINAL: Mutex<Option<Settings>> = Mutex::new(None);

fn settings() -> MutexGuard<'static, Option<Settings>> {
    TERMINAL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives the terminal to the guest: no echo, no line editing, every byte as typed. With `signal`, Ctrl-C, Ctrl-\ and Ctrl-Z
/// still act on this process. Does nothing if standard input is no terminal.
pub fn make_raw(signal: bool) -> nix::Result<()> {
    if !stdin().is_terminal() {
        return Ok(());
    }
    let before = termios::tcgetattr(stdin())?;
    let mut raw = before.clone();
    raw.input_flags.remove(
        InputFlags::IGNBRK
            | InputFlags::BRKINT
            | InputFlags::PARMRK
            | InputFlags::ISTRIP
            | InputFlags::INLCR
            | InputFlags::IGNCR
            | InputFlags::ICRNL
            | InputFlags::IXON,
    );
    // Output processing stays on: messages of this program end in a bare newline.
    raw.output_flags.insert(OutputFlags::OPOST);
    raw.local_flags.remove(LocalFlags::ECHO | LocalFlags::ECHONL | LocalFlags::ICANON | LocalFlags::IEXTEN);
    raw.local_flags.set(LocalFlags::ISIG, signal);
    raw.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
    raw.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
    let mut settings = settings();
    let before = settings.take().map_or(before, |s| s.before);
    termios::tcsetattr(stdin(), SetArg::TCSANOW, &raw)?;
    *settings = Some(Settings { before, raw });
    Ok(())
}

/// Columns and rows, if standard output is a terminal that knows them.
pub fn size() -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// Puts the terminal back as it was found. May be called at any time, any number of times.
pub fn restore() {
    if let Some(settings) = settings().take() {
        set(&settings.before);
    }
}

/// Puts the terminal back for a while (the process is about to be stopped).
pub fn lend() {
    if let Some(settings) = &*settings() {
        set(&settings.before);
    }
}

/// Takes it again, unless another process has the foreground: it will be taken when we do.
pub fn take_back() {
    if let Some(settings) = &*settings() {
        set(&settings.raw);
    }
}

/// A background process must leave the foreground's terminal alone. A terminal that hung up cannot be set any more;
/// there is nothing left to restore then.
fn set(to: &Termios) {
    let background = tcgetpgrp(stdin()).is_ok_and(|foreground| foreground != getpgrp());
    if !background {
        let _ = termios::tcsetattr(stdin(), SetArg::TCSANOW, to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::pty::openpty;
    use std::process::{Command, Stdio};

    const TOLD: &str = "BROLGA_TEST_PANIC";

    /// Run by the test below in a process of its own.
    #[test]
    fn panics_when_told() {
        if std::env::var_os(TOLD).is_some() {
            crate::chardev::restore_on_panic();
            make_raw(false).unwrap();
            assert!(!termios::tcgetattr(stdin()).unwrap().local_flags.contains(LocalFlags::ECHO));
            panic!("as told");
        }
    }

    #[test]
    fn a_panic_restores_the_terminal() {
        let pty = openpty(None, None).unwrap();
        let before = termios::tcgetattr(&pty.slave).unwrap();
        let out = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "chardev::terminal::tests::panics_when_told", "--nocapture"])
            .env(TOLD, "1")
            .stdin(Stdio::from(pty.slave.try_clone().unwrap()))
            .output()
            .unwrap();
        assert_eq!(out.status.code(), Some(101));
        assert!(String::from_utf8_lossy(&out.stderr).contains("as told"));
        assert_eq!(termios::tcgetattr(&pty.slave).unwrap(), before);
    }
}
