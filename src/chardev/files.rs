//! Files, FIFOs and the host's own character devices as host ends.

use anyhow::{Result, anyhow};
use brolga::descriptors::{self, Access};
use brolga_devices::services::{Line, Parity};
use nix::sys::termios::{BaudRate, ControlFlags, SetArg, cfmakeraw, cfsetspeed, tcgetattr, tcsetattr};
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// What cannot be opened, in the words of the option that asked for it.
fn failed(label: &str, what: &str, path: &Path, how: &str, e: &io::Error) -> anyhow::Error {
    let reason = crate::cli::os_reason(e);
    anyhow!("{} {what}{}: cannot be {how}: {reason}; choose another file", option(label), path.display())
}

/// The option that made a host end: the labels of those that are not `-chardev`'s are its name with a number.
pub fn option(label: &str) -> &'static str {
    match label.trim_end_matches(|c: char| c.is_ascii_digit()) {
        "serial" => "-serial",
        "debugcon" => "-debugcon",
        "monitor" => "-monitor",
        "compat_monitor" => "-qmp",
        _ => "-chardev",
    }
}

/// A file for output.
pub fn open(label: &str, path: &Path, append: bool) -> Result<File> {
    let flags = if append { nix::libc::O_APPEND } else { 0 };
    let open = descriptors::open(path, Access::Write, flags)
        .unwrap_or_else(|| File::options().create(true).write(true).append(append).truncate(!append).open(path));
    open.map_err(|e| failed(label, "file:", path, "written", &e))
}

/// A file for input.
pub fn open_input(label: &str, path: &Path) -> Result<File> {
    let open = descriptors::open(path, Access::Read, 0).unwrap_or_else(|| File::open(path));
    open.map_err(|e| failed(label, "file,input-path=", path, "read", &e))
}

/// Opened for both, FIFOs never end and nobody waits for the other side.
fn open_both(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).custom_flags(nix::libc::O_NOCTTY).open(path)
}

/// The FIFOs PATH.in and PATH.out, or PATH for both.
pub fn open_pipes(label: &str, path: &Path) -> Result<(File, File)> {
    let with = |end: &str| PathBuf::from(format!("{}.{end}", path.display()));
    if let (Ok(input), Ok(output)) = (open_both(&with("in")), open_both(&with("out"))) {
        return Ok((input, output));
    }
    let both = || open_both(path).and_then(|file| Ok((file.try_clone()?, file)));
    both().map_err(|e| {
        let reason = crate::cli::os_reason(&e);
        let shown = path.display();
        anyhow!(
            "{} pipe:{shown}: cannot be opened: {reason}; make FIFOs first: mkfifo {shown}.in {shown}.out",
            option(label)
        )
    })
}

/// A terminal, whose every byte goes through.
pub fn open_tty(label: &str, path: &Path) -> Result<(File, File)> {
    let open = || {
        let file = open_both(path)?;
        if file.is_terminal() {
            let mut settings = tcgetattr(&file)?;
            cfmakeraw(&mut settings);
            tcsetattr(&file, SetArg::TCSANOW, &settings)?;
        }
        Ok((file.try_clone()?, file))
    };
    open().map_err(|e| failed(label, "", path, "opened", &e))
}

/// Has a terminal of the host's send as the guest has set its serial port. What is no serial line takes no notice.
pub fn set_line(terminal: &File, line: Line) {
    let Ok(mut settings) = tcgetattr(terminal) else { return };
    if let Some((_, speed)) = SPEEDS.iter().find(|(baud, _)| *baud == line.baud) {
        // Fails for speeds that the host's termios lack, which are not in the table.
        let _ = cfsetspeed(&mut settings, *speed);
    }
    let flags = &mut settings.control_flags;
    flags.remove(ControlFlags::CSIZE);
    flags.insert(
        [ControlFlags::CS5, ControlFlags::CS6, ControlFlags::CS7, ControlFlags::CS8][usize::from(line.bits - 5) & 3],
    );
    flags.set(ControlFlags::CSTOPB, line.stop == 2);
    flags.set(ControlFlags::PARENB, line.parity != Parity::None);
    flags.set(ControlFlags::PARODD, line.parity == Parity::Odd);
    // A terminal that has gone takes no settings.
    let _ = tcsetattr(terminal, SetArg::TCSADRAIN, &settings);
}

/// Links that lead to pseudo-terminals of this process.
static LINKS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Makes a link to the pseudo-terminal `name`; it goes with the process.
pub fn link(label: &str, name: &str, link: &Path) -> Result<()> {
    std::os::unix::fs::symlink(name, link).map_err(|e| {
        let reason = crate::cli::os_reason(&e);
        anyhow!("{} pty,path={}: cannot be made: {reason}; choose another path", option(label), link.display())
    })?;
    let link = std::path::absolute(link).unwrap_or_else(|_| link.to_owned());
    LINKS.lock().unwrap_or_else(PoisonError::into_inner).push(link);
    Ok(())
}

/// The pseudo-terminal that `link` leads to is gone.
pub fn remove_link(link: &Path) {
    let link = std::path::absolute(link).unwrap_or_else(|_| link.to_owned());
    LINKS.lock().unwrap_or_else(PoisonError::into_inner).retain(|other| *other != link);
    // Somebody may have removed it.
    let _ = std::fs::remove_file(link);
}

/// The process ends, and its pseudo-terminals with it.
pub fn remove_links() {
    for link in LINKS.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        // Somebody may have removed it.
        let _ = std::fs::remove_file(link);
    }
}

/// Speeds that terminals of the host's have, by their number.
const SPEEDS: &[(u32, BaudRate)] = &[
    (50, BaudRate::B50),
    (75, BaudRate::B75),
    (110, BaudRate::B110),
    (134, BaudRate::B134),
    (150, BaudRate::B150),
    (200, BaudRate::B200),
    (300, BaudRate::B300),
    (600, BaudRate::B600),
    (1200, BaudRate::B1200),
    (1800, BaudRate::B1800),
    (2400, BaudRate::B2400),
    (4800, BaudRate::B4800),
    (9600, BaudRate::B9600),
    (19200, BaudRate::B19200),
    (38400, BaudRate::B38400),
    (57600, BaudRate::B57600),
    (115_200, BaudRate::B115200),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn fifos_and_files() {
        let dir = std::env::temp_dir().join(format!("brolga-files-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let base = dir.join("p");
        let refused = open_pipes("serial0", &base).unwrap_err().to_string();
        assert!(refused.starts_with("-serial pipe:") && refused.contains("mkfifo"), "{refused}");
        for end in ["in", "out"] {
            nix::unistd::mkfifo(&dir.join(format!("p.{end}")), nix::sys::stat::Mode::S_IRWXU).unwrap();
        }
        let (mut input, mut output) = open_pipes("serial0", &base).unwrap();
        open_both(&dir.join("p.in")).unwrap().write_all(b"typed").unwrap();
        let mut buf = [0; 5];
        input.read_exact(&mut buf).unwrap();
        assert_eq!(&buf, b"typed");
        output.write_all(b"shown").unwrap();
        open_both(&dir.join("p.out")).unwrap().read_exact(&mut buf).unwrap();
        assert_eq!(&buf, b"shown");
        open("c", &dir.join("f"), false).unwrap().write_all(b"one").unwrap();
        open("c", &dir.join("f"), true).unwrap().write_all(b"two").unwrap();
        assert_eq!(std::fs::read(dir.join("f")).unwrap(), b"onetwo");
        let refused = open("serial0", &dir.join("no/f"), false).unwrap_err().to_string();
        assert!(refused.starts_with("-serial file:") && refused.contains("cannot be written"), "{refused}");
        assert!(open_tty("c", &dir.join("no")).unwrap_err().to_string().contains("cannot be opened"));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
