//! `-kernel`, `-initrd`, `-append`, `-bios`, `-L`. Files are looked at before anything is started.

use super::config::BootConfig;
use super::options::Arguments;
use anyhow::{Result, anyhow, bail};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// Refuses a file that cannot be read; `what` is how the command line named it.
pub fn readable(what: &str, path: impl AsRef<Path>) -> Result<()> {
    let reason = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => anyhow!("{what}: no such file; check the path"),
        io::ErrorKind::PermissionDenied => anyhow!("{what}: permission denied; make the file readable"),
        _ => anyhow!("{what}: cannot be read: {}", os_reason(&e)),
    };
    // Opening a FIFO would wait for a writer: look first.
    let metadata = std::fs::metadata(&path).map_err(reason)?;
    if metadata.is_dir() {
        bail!("{what}: is a directory; name a file");
    }
    if !metadata.is_file() {
        bail!("{what}: is not a regular file; name a file");
    }
    if metadata.len() == 0 {
        bail!("{what}: the file is empty");
    }
    File::open(&path).map_err(reason)?;
    Ok(())
}

/// The reason without Rust's "(os error N)".
pub fn os_reason(e: &io::Error) -> String {
    let text = e.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

/// Directories for firmware images: those of `-L`, then where packages put them.
pub fn firmware_dirs(arguments: &Arguments) -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = arguments.all("L").iter().map(PathBuf::from).collect();
    if let Ok(program) = std::env::current_exe()
        && let Some(prefix) = program.parent().and_then(Path::parent)
    {
        dirs.push(prefix.join("share/brolga"));
    }
    dirs.extend(["/usr/share/brolga", "/usr/share/seabios", "/usr/share/qemu"].map(PathBuf::from));
    dirs
}

/// What is started.
pub fn settle(arguments: &Arguments) -> Result<BootConfig> {
    let file = |name: &str| -> Result<Option<PathBuf>> {
        let Some(path) = arguments.one(name) else { return Ok(None) };
        readable(&format!("-{name} {path}"), path)?;
        Ok(Some(PathBuf::from(path)))
    };
    let kernel = file("kernel")?;
    if kernel.is_none() {
        for name in ["initrd", "append"] {
            if let Some(value) = arguments.one(name) {
                bail!("-{name} {value}: only has a meaning with a kernel; add -kernel FILE");
            }
        }
    }
    let firmware_dirs = firmware_dirs(arguments);
    // A multiboot kernel's modules are a list, with arguments: its files are looked at when the kernel's kind is known.
    let modules = arguments.one("initrd").filter(|list| list.contains([',', ' ']) && !Path::new(list).exists());
    Ok(BootConfig {
        kernel,
        initrd: modules.map(PathBuf::from).map_or_else(|| file("initrd"), |list| Ok(Some(list)))?,
        append: arguments.one("append").unwrap_or("").to_owned(),
        bios: arguments.one("bios").map(|name| firmware(name, &firmware_dirs)).transpose()?,
        firmware_dirs,
    })
}

/// A firmware image as named, or in one of `dirs`.
fn firmware(name: &str, dirs: &[PathBuf]) -> Result<PathBuf> {
    let here = PathBuf::from(name);
    let found = if here.exists() || name.contains('/') {
        here
    } else {
        dirs.iter().map(|d| d.join(name)).find(|p| p.exists()).unwrap_or(here)
    };
    readable(&format!("-bios {name}"), &found)?;
    let size = std::fs::metadata(&found)?.len();
    // The image ends at 4 GiB and must leave the local APIC's page at 0xFEE00000 free.
    if size % 65536 != 0 || size > 16 << 20 {
        bail!("-bios {name}: {size} bytes is no firmware image; its size is a multiple of 64 KiB, up to 16 MiB");
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::tests::parse_line;

    #[test]
    fn files_are_checked_up_front() {
        let err = |line: &[&str]| parse_line(line).unwrap_err();
        assert_eq!(err(&["-kernel", "/no/such"]), "-kernel /no/such: no such file; check the path");
        assert_eq!(err(&["-kernel", "/"]), "-kernel /: is a directory; name a file");
        assert_eq!(err(&["-kernel", "/dev/null"]), "-kernel /dev/null: is not a regular file; name a file");
        assert_eq!(err(&["-append", "quiet"]), "-append quiet: only has a meaning with a kernel; add -kernel FILE");
        let me = std::env::current_exe().unwrap();
        let me = me.to_str().unwrap();
        let c = parse_line(&["-kernel", me, "-initrd", me, "-append", "a=b c"]).unwrap();
        assert_eq!((c.boot.append.as_str(), c.boot.initrd.is_some()), ("a=b c", true));
        assert_eq!(err(&["-kernel", me, "-initrd", "/no"]), "-initrd /no: no such file; check the path");
        assert_eq!(err(&["-bios", "no-such-bios.bin"]), "-bios no-such-bios.bin: no such file; check the path");
        assert!(err(&["-bios", "/proc/self/exe"]).contains("is no firmware image"));
    }
}
