//! Files, FIFOs and the host's own character devices as host ends.

use anyhow::{Result, anyhow};
use brolga::descriptors::{self, Access};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What cannot be opened, in the words of the option that asked for it.
fn failed(label: &str, what: &str, path: &Path, how: &str, e: &io::Error) -> anyhow::Error {
    let reason = crate::cli::os_reason(e);
    let target = format!("{what}{}", path.display());
    // Labels of host ends that an option made are its name with a number.
    let option = match label.trim_end_matches(|c: char| c.is_ascii_digit()) {
        name @ ("serial" | "debugcon") => format!("-{name} {target}"),
        _ => format!("-chardev {target}"),
    };
    anyhow!("{option}: cannot be {how}: {reason}; choose another file")
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
        anyhow!("{label}: pipe:{shown}: cannot be opened: {reason}; make FIFOs first: mkfifo {shown}.in {shown}.out")
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
        assert!(refused.starts_with("serial0: pipe:") && refused.contains("mkfifo"), "{refused}");
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
