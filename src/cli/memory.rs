//! `-m`.

use super::config::Identity;
use super::keyval::KeyValues;
use super::options::Arguments;
use super::values;
use anyhow::{Result, bail};

/// QEMU's default.
const DEFAULT_AS_QEMU: u64 = 128 << 20;
/// Our default: an ordinary distribution's kernel and initramfs do not fit into QEMU's.
const DEFAULT: u64 = 512 << 20;
/// The PC's memory map below 1 MiB is fixed.
const SMALLEST: u64 = 1 << 20;
const PAGE: u64 = 4096;

/// Guest memory in bytes; `object` is what the object says that it is made of.
pub fn settle(arguments: &Arguments, identity: &Identity, object: Option<u64>) -> Result<u64> {
    let given = arguments.all("m");
    let mut keys = KeyValues::none("-m");
    for value in given {
        keys.add(value, Some("size"))?;
    }
    let size = keys.take("size")?;
    for key in ["slots", "maxmem"] {
        if let Some(value) = keys.take(key)? {
            return Err(keys.error(key, &value, "memory hot-plug is not supported yet; give -m SIZE only"));
        }
    }
    keys.finish()?;
    let Some(text) = size.or_else(|| object.map(|bytes| format!("{bytes}b"))) else {
        return Ok(if identity.qemu { DEFAULT_AS_QEMU } else { DEFAULT });
    };
    let refuse = |why: String| anyhow::anyhow!("-m {text}: {why}");
    let bytes = values::size(&text, 1 << 20).map_err(refuse)?;
    if bytes < SMALLEST {
        bail!("-m {text}: too little memory: a PC needs at least 1M");
    }
    if let Some(host) = host_memory()
        && bytes > host
    {
        bail!("-m {text}: more than the host's {} of memory and swap; give less", values::show_size(host));
    }
    if let Some(object) = object.filter(|object| *object != bytes) {
        let (wanted, there) = (values::show_size(bytes), values::show_size(object));
        bail!("-m {text}: {wanted}, and the object of -machine memory-backend= has {there}; give both the same size");
    }
    bytes.checked_next_multiple_of(PAGE).ok_or_else(|| refuse("too large".into()))
}

/// Memory and swap of the host, if it tells.
fn host_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|l| l.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    field("MemTotal:")?.checked_add(field("SwapTotal:").unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::super::tests::with;

    fn ram(values: &[&str]) -> Result<u64, String> {
        let line: Vec<&str> = values.iter().flat_map(|v| ["-m", *v]).collect();
        with(&line).map(|c| c.ram)
    }

    #[test]
    fn forms() {
        assert_eq!(ram(&["64"]), Ok(64 << 20));
        assert_eq!(ram(&["0.25G"]), Ok(256 << 20));
        assert_eq!(ram(&["size=64"]), Ok(64 << 20));
        assert_eq!(ram(&["2000000b"]), Ok(2_002_944));
    }

    #[test]
    fn refusals() {
        assert_eq!(ram(&["0"]), Err("-m 0: too little memory: a PC needs at least 1M".into()));
        assert!(ram(&["1000T"]).unwrap_err().starts_with("-m 1000T: more than the host's "));
        assert_eq!(
            ram(&["size=64,slots=4,maxmem=8192"]),
            Err("-m slots=4: memory hot-plug is not supported yet; give -m SIZE only".into())
        );
        assert_eq!(ram(&["64", "65"]), Err("-m: size is given 2 times; give it once".into()));
        assert_eq!(
            ram(&["4x"]),
            Err("-m 4x: '4x' is not a size: write a number with k, M, G or T, like 512M or 2G".into())
        );
        assert_eq!(ram(&["64,sise=3"]), Err("-m: unknown or unsupported key 'sise'; did you mean size?".into()));
    }
}
