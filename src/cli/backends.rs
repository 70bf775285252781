//! `-object secret` and `-object memory-backend-ram|file|memfd`.

use super::keyval::KeyValues;
use super::{os_reason, values};
use anyhow::{Result, anyhow, bail};
use data_encoding::BASE64;
use std::fmt;
use std::path::PathBuf;

/// What memory is described by.
pub const MEMORY_KEYS: &[&str] = &["size", "share", "prealloc", "merge", "dump", "mem-path"];
/// What a secret is described by.
pub const SECRET_KEYS: &[&str] = &["data", "file", "format"];

/// Longest secret taken from a file, in bytes.
const LONGEST: u64 = 1 << 20;

/// Properties of an object, as the tree of objects shows them.
pub type Properties = Vec<(&'static str, String)>;

/// Guest memory as an object describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryBackend {
    /// The kind of object.
    pub kind: &'static str,
    /// Bytes.
    pub size: u64,
    /// Others may map it. All guest memory can be shared with other processes; this is what was asked for.
    pub share: bool,
    /// The host's memory is taken at the start.
    pub prealloc: bool,
    /// The file that it lies in.
    pub path: Option<PathBuf>,
}

impl MemoryBackend {
    /// Reads what `keys` say, all but the id.
    pub fn read(what: &str, kind: &'static str, keys: &mut KeyValues) -> Result<Self> {
        let size = keys.take_as("size", |text| values::size(text, 1))?;
        let Some(size) = size.filter(|size| *size != 0) else {
            bail!("{what}: size= is missing; give the number of bytes, e.g. size=512M");
        };
        let share = keys.take_switch("share")?;
        let prealloc = keys.take_switch("prealloc")?.unwrap_or(false);
        keys.take_fixed("merge", false, "merging equal pages is not supported")?;
        keys.take_fixed("dump", false, "guest memory is never part of core dumps")?;
        // How QEMU names memory in streams of migration, which there are none of.
        keys.take_switch("x-use-canonical-path-for-ramblock-id")?;
        let path = match kind {
            "memory-backend-file" => {
                let Some(path) = keys.take("mem-path")?.filter(|path| !path.is_empty()) else {
                    bail!("{what}: mem-path= is missing; name the file");
                };
                if share != Some(true) {
                    bail!("{what}: what the guest writes is in the file then, for all who map it; add share=on");
                }
                Some(PathBuf::from(path))
            }
            "memory-backend-memfd" => {
                keys.take_fixed("seal", true, "its size never changes")?;
                keys.take_fixed("hugetlb", false, "huge pages are the host's own business")?;
                None
            }
            _ => None,
        };
        let share = share.unwrap_or(kind == "memory-backend-memfd");
        Ok(Self { kind, size, share, prealloc, path })
    }

    /// As the tree of objects shows it.
    pub fn properties(&self) -> Properties {
        let on = |on: bool| if on { "on" } else { "off" }.to_owned();
        let mut all = vec![
            ("size", self.size.to_string()),
            ("share", on(self.share)),
            ("prealloc", on(self.prealloc)),
            ("merge", on(false)),
            ("dump", on(false)),
        ];
        all.extend(self.path.iter().map(|path| ("mem-path", path.display().to_string())));
        all
    }
}

/// Something that is not to be shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    bytes: Vec<u8>,
    file: Option<String>,
    base64: bool,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.bytes.len())
    }
}

impl Secret {
    /// Reads what `keys` say, all but the id.
    pub fn read(what: &str, keys: &mut KeyValues) -> Result<Self> {
        let (data, file) = (keys.take("data")?, keys.take("file")?);
        let base64 = keys.take_as("format", |format| match format {
            "raw" => Ok(false),
            "base64" => Ok(true),
            _ => Err(format!("'{format}' is neither raw nor base64")),
        })?;
        if keys.take("keyid")?.is_some() || keys.take("iv")?.is_some() {
            bail!("{what}: secrets that are encrypted themselves are not supported; leave keyid= and iv= out");
        }
        let base64 = base64.unwrap_or(false);
        let bytes = match (data, &file) {
            (Some(data), None) => data.into_bytes(),
            (None, Some(path)) => contents(path).map_err(|why| anyhow!("{what}: {path}: {why}"))?,
            (Some(_), Some(_)) => bail!("{what}: 'file' and 'data' are mutually exclusive; give one of them"),
            (None, None) => bail!("{what}: Must provide 'file' or 'data'; give one of them"),
        };
        let bytes = if base64 { decoded(&bytes).ok_or_else(|| anyhow!("{what}: no base64 text"))? } else { bytes };
        Ok(Self { bytes, file, base64 })
    }

    /// As the tree of objects shows it: without the secret.
    pub fn properties(&self) -> Properties {
        let mut all = vec![("format", if self.base64 { "base64" } else { "raw" }.to_owned())];
        all.extend(self.file.iter().map(|file| ("file", file.clone())));
        all
    }
}

fn contents(path: &str) -> Result<Vec<u8>, String> {
    let read = || {
        let length = std::fs::metadata(path)?.len();
        if length > LONGEST {
            return Ok(None);
        }
        std::fs::read(path).map(Some)
    };
    let bytes = read().map_err(|e: std::io::Error| os_reason(&e))?;
    bytes.ok_or_else(|| format!("a secret has at most {LONGEST} bytes"))
}

fn decoded(text: &[u8]) -> Option<Vec<u8>> {
    let text: Vec<u8> = text.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    BASE64.decode(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::super::tests::with;
    use super::*;

    fn memory(text: &str) -> Result<(u64, Option<MemoryBackend>), String> {
        let object = format!("{text},id=m");
        let config = with(&["-machine", "pc,memory-backend=m", "-object", &object])?;
        Ok((config.ram, config.memory.map(|(_, memory)| memory)))
    }

    #[test]
    fn memory_of_objects() {
        let (ram, backend) = memory("memory-backend-ram,size=64M").unwrap();
        let backend = backend.unwrap();
        assert_eq!((ram, backend.size, backend.share, backend.prealloc), (64 << 20, 64 << 20, false, false));
        let json = r#"{"qom-type":"memory-backend-ram","id":"pc.ram","size":67108864}"#;
        let c = with(&["-machine", "pc,memory-backend=pc.ram", "-m", "64", "-object", json]).unwrap();
        assert_eq!((c.ram, c.memory.unwrap().0.as_str()), (64 << 20, "pc.ram"));
        let (_, backend) = memory("memory-backend-memfd,size=64M,prealloc=on,seal=on").unwrap();
        assert!(backend.is_some_and(|backend| backend.share && backend.prealloc));
        let (_, backend) = memory("memory-backend-file,size=64M,share=on,mem-path=/dev/shm/x").unwrap();
        assert_eq!(backend.unwrap().path, Some("/dev/shm/x".into()));
        let err = |line: &[&str]| with(line).unwrap_err();
        let ram = "memory-backend-ram,size=64M,id=m";
        let other = err(&["-machine", "memory-backend=m", "-m", "32", "-object", ram]);
        assert!(other.contains("64 MiB") && other.contains("32 MiB"), "{other}");
        assert!(err(&["-machine", "memory-backend=x", "-object", ram]).contains("no -object memory-backend-"));
        assert!(memory("memory-backend-ram").unwrap_err().contains("size= is missing"));
        assert!(memory("memory-backend-file,size=1M,share=on").unwrap_err().contains("mem-path= is missing"));
        assert!(memory("memory-backend-file,size=1M,mem-path=/x").unwrap_err().contains("share=on"));
        assert!(memory("memory-backend-ram,size=64M,merge=on").unwrap_err().contains("merge=off"));
        assert!(memory("memory-backend-memfd,size=64M,hugetlb=on").unwrap_err().contains("hugetlb=off"));
        assert!(memory("memory-backend-ram,size=64M,mem-path=/x").unwrap_err().contains("'mem-path'"));
    }

    #[test]
    fn secrets_are_read_and_not_shown() {
        let read = |text: &str| {
            let mut keys = KeyValues::parse("-object", text, None).unwrap();
            Secret::read("-object secret", &mut keys).map_err(|e| e.to_string())
        };
        let secret = read("data=c2VjcmV0,format=base64").unwrap();
        assert_eq!(secret.bytes, b"secret");
        assert_eq!(
            (secret.properties(), format!("{secret:?}").as_str()),
            (vec![("format", "base64".into())], "Secret(6 bytes)")
        );
        assert_eq!(read("data=c2VjcmV0").unwrap().bytes, b"c2VjcmV0");
        assert!(read("data=%,format=base64").unwrap_err().contains("no base64 text"));
        assert!(read("data=a,file=b").unwrap_err().contains("mutually exclusive"));
        assert!(read("format=raw").unwrap_err().contains("Must provide"));
        assert!(read("file=/no/such").unwrap_err().contains("no such file"));
        assert!(read("data=a,keyid=b").unwrap_err().contains("encrypted themselves"));
        assert!(read("data=a,format=hex").unwrap_err().contains("neither raw nor base64"));
        assert!(with(&["-object", "secret,id=s,data=x"]).is_ok());
    }
}
