//! `-kernel`, `-initrd`, `-append`, `-bios`, `-L`. Files are looked at before anything is started.

use super::config::{BootConfig, BootOrder};
use super::keyval::KeyValues;
use super::options::Arguments;
use super::values;
use anyhow::{Result, anyhow, bail};
use brolga::descriptors::{self, Access};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// Disks, then CDs, then diskettes.
const DEFAULT_ORDER: &str = "cad";
/// SeaBIOS as its package names it.
const DEFAULT_FIRMWARE: &str = "bios-256k.bin";

/// Refuses a file that cannot be read; `what` is how the command line named it.
pub fn readable(what: &str, path: impl AsRef<Path>) -> Result<()> {
    there(what, &path)?;
    match std::fs::metadata(&path).is_ok_and(|found| found.len() == 0) {
        true => bail!("{what}: the file is empty"),
        false => Ok(()),
    }
}

/// The same for a file that may be empty.
pub fn there(what: &str, path: impl AsRef<Path>) -> Result<()> {
    let reason = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => anyhow!("{what}: no such file; check the path"),
        io::ErrorKind::PermissionDenied => anyhow!("{what}: permission denied; make the file readable"),
        _ => anyhow!("{what}: cannot be read: {}", os_reason(&e)),
    };
    if let Some(handed) = descriptors::open(path.as_ref(), Access::Read, 0) {
        return match handed {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                bail!("{what}: Failed to find fdset {}; give -add-fd with set=", path.as_ref().display())
            }
            // What it is good for shows when it is opened for what it is wanted for.
            _ => Ok(()),
        };
    }
    // Opening a FIFO would wait for a writer: look first.
    let metadata = std::fs::metadata(&path).map_err(reason)?;
    if metadata.is_dir() {
        bail!("{what}: is a directory; name a file");
    }
    if !metadata.is_file() {
        bail!("{what}: is not a regular file; name a file");
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

/// What is started. `disks`: there is a disk or a card that firmware could start from. `flash`: it is in flash.
pub fn settle(arguments: &Arguments, disks: bool, flash: bool) -> Result<BootConfig> {
    let order = order(arguments)?;
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
    let bios = match arguments.one("bios") {
        Some(name) => Some(firmware(name, &firmware_dirs)?),
        None if kernel.is_none() && !flash && (disks || order.asks_network()) => {
            Some(default_firmware(&firmware_dirs)?)
        }
        None => None,
    };
    Ok(BootConfig {
        kernel,
        initrd: modules.map(PathBuf::from).map_or_else(|| file("initrd"), |list| Ok(Some(list)))?,
        append: arguments.one("append").unwrap_or("").to_owned(),
        bios,
        flash,
        firmware_dirs,
        order,
    })
}

/// `-boot`.
fn order(arguments: &Arguments) -> Result<BootOrder> {
    let mut keys = KeyValues::none("-boot");
    for value in arguments.all("boot") {
        keys.add(value, Some("order"))?;
    }
    let splash = keys.take("splash")?;
    if let Some(file) = &splash {
        readable(&format!("-boot splash={file}"), file)?;
    }
    let order = BootOrder {
        order: keys.take_as("order", letters)?.unwrap_or_else(|| DEFAULT_ORDER.to_owned()),
        once: keys.take_as("once", letters)?,
        menu: keys.take_switch("menu")?.unwrap_or(false),
        splash: splash.map(PathBuf::from),
        menu_wait: keys.take_as("splash-time", milliseconds)?,
        retry_wait: keys
            .take_as("reboot-timeout", |t| if t == "-1" { Ok(None) } else { milliseconds(t).map(Some) })?
            .flatten(),
        strict: keys.take_switch("strict")?.unwrap_or(false),
    };
    keys.finish()?;
    Ok(order)
}

fn milliseconds(text: &str) -> Result<u16, values::Refusal> {
    values::number_in(text, 0, 0xffff).map(|n| n as u16)
}

/// Letters of kinds of boot devices.
fn letters(text: &str) -> Result<String, values::Refusal> {
    for (i, letter) in text.chars().enumerate() {
        if !"abcdn".contains(letter) {
            return Err(format!(
                "'{letter}' is no boot device; there are a (floppy), c (disk), d (CD) and n (network)"
            ));
        }
        if text.chars().take(i).any(|earlier| earlier == letter) {
            return Err(format!("'{letter}' is given twice; give it once"));
        }
    }
    Ok(text.to_owned())
}

/// The image of the firmware that starts where none is named, from the package that provides it.
pub fn default_firmware(dirs: &[PathBuf]) -> Result<PathBuf> {
    dirs.iter().map(|dir| dir.join(DEFAULT_FIRMWARE)).find(|path| path.exists()).ok_or_else(|| {
        anyhow!(
            "{DEFAULT_FIRMWARE}: no firmware found to start from a disk; install the package seabios, or name an image \
             with -bios FILE or its directory with -L DIR"
        )
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
    fn boot_order_and_its_keys() {
        let order = |value: &str| super::order(&super::Arguments::read(&["-boot".into(), value.into()]).unwrap());
        let o = order("order=dc,once=n,menu=on,splash-time=500,reboot-timeout=-1,strict=on").unwrap();
        assert_eq!((o.order.as_str(), o.once.as_deref(), o.menu, o.menu_wait), ("dc", Some("n"), true, Some(500)));
        assert_eq!((o.retry_wait, o.strict), (None, true));
        assert_eq!(order("d").unwrap().order, "d");
        assert_eq!(order("menu=off").unwrap().order, "cad");
        let err = |value: &str| order(value).unwrap_err().to_string();
        assert!(err("x").starts_with("-boot order=x: 'x' is no boot device"));
        assert!(err("order=cc").contains("given twice"));
        assert!(err("once=d,mneu=on").contains("did you mean menu?"));
        assert!(err("splash-time=70000").contains("out of range"));
        assert_eq!(err("splash=/no.bmp"), "-boot splash=/no.bmp: no such file; check the path");
    }

    #[test]
    fn missing_firmware_names_the_package() {
        let error = super::default_firmware(&["/no/such/dir".into()]).unwrap_err().to_string();
        assert!(error.contains("install the package seabios") && error.contains("-bios"), "{error}");
    }

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
