//! The process as others manage it: in the background (`-daemonize`), with its number in a file (`-pidfile`).
//!
//! `-daemonize` starts the program anew, in a session of its own, and ends when that one says that its machine stands:
//! descriptors that were passed to the program stay open in it, and what goes wrong before is told on the terminal.

use crate::cli::config::{Config, Identity};
use anyhow::{Context, Result, anyhow};
use rustix::fs::{FlockOperation, fcntl_lock};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};

/// Tells the second process which one waits for it.
const WAITS: &str = "BROLGA_DAEMONIZED_BY";
/// What it says when the machine stands.
const READY: u8 = b'+';
/// Others may read what it makes, the world may not (as in QEMU).
const MASK: u32 = 0o027;

/// The file that says our number, locked as long as we run.
static PID_FILE: Mutex<Option<(PathBuf, File)>> = Mutex::new(None);

/// Whether this is the process that `-daemonize` started.
fn is_started() -> bool {
    let parent = std::os::unix::process::parent_id().to_string();
    std::env::var(WAITS).is_ok_and(|waiting| waiting == parent)
}

/// Starts the program in the background if that is asked for and not done yet; the status to end with then.
pub fn start(identity: &Identity, words: &[String], config: &Config) -> Result<Option<ExitCode>> {
    if !config.daemonize {
        return Ok(None);
    }
    if is_started() {
        rustix::process::setsid().context("-daemonize: cannot leave the terminal")?;
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(MASK));
        // Only for lists of processes, where it would be called after the link that it was started by.
        let _ = std::fs::write("/proc/self/comm", &identity.program);
        return Ok(None);
    }
    let (mut ours, theirs) = UnixStream::pair().context("-daemonize")?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0(words.first().map_or("brolga", String::as_str)).args(words.get(1..).unwrap_or_default());
    command.env(WAITS, std::process::id().to_string()).stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)));
    let mut child = command.spawn().context("-daemonize: cannot start a process for the background")?;
    // It holds the other end of the socket; here it must not stay open.
    drop(command);
    let mut word = [0];
    if matches!(ours.read(&mut word), Ok(1)) && word == [READY] {
        return Ok(Some(ExitCode::SUCCESS));
    }
    // It has told why.
    let status = child.wait().ok().and_then(|status| status.code()).unwrap_or(1);
    Ok(Some(ExitCode::from(if status == 0 { 1 } else { status as u8 })))
}

/// The machine stands: whoever started the program in the background need not wait any more.
pub fn ready(config: &Config) -> Result<()> {
    if !config.daemonize {
        return Ok(());
    }
    let told = rustix::io::dup(rustix::stdio::stdin()).context("-daemonize")?;
    std::env::set_current_dir("/").context("-daemonize")?;
    let null = File::options().read(true).write(true).open("/dev/null").context("-daemonize: /dev/null")?;
    rustix::stdio::dup2_stdin(&null).context("-daemonize")?;
    rustix::stdio::dup2_stdout(&null).context("-daemonize")?;
    // With a log file, warnings still go where the user looks.
    if config.log.file.is_none() {
        rustix::stdio::dup2_stderr(&null).context("-daemonize")?;
    }
    // Nobody may be waiting any more.
    let _ = File::from(told).write_all(&[READY]);
    Ok(())
}

/// Writes our number to the file of `-pidfile`, which goes when we do.
pub fn write_pid(path: &Path) -> Result<()> {
    let failed = |e: &io::Error, remedy: &str| {
        anyhow!("-pidfile {}: cannot be written: {}; {remedy}", path.display(), crate::cli::os_reason(e))
    };
    let open = File::options().create(true).truncate(false).write(true).mode(0o600).open(path);
    let mut file = open.map_err(|e| failed(&e, "choose another file"))?;
    fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| anyhow!("-pidfile {}: in use by another process; choose another file", path.display()))?;
    let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(|e| failed(&e, "choose another file"))?;
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    *PID_FILE.lock().unwrap_or_else(PoisonError::into_inner) = Some((path, file));
    Ok(())
}

/// The process ends: the file that says its number goes.
pub fn remove_pid() {
    if let Some((path, _file)) = PID_FILE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // Somebody may have removed it.
        let _ = std::fs::remove_file(path);
    }
}
