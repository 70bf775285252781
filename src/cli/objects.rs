//! `-object`: things on the host that devices refer to by name.

use super::config::peripherals::EntropySource;
use super::keyval::KeyValues;
use super::options::Arguments;
use super::{os_reason, suggest};
use anyhow::{Result, anyhow, bail};
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// Kinds there are, with what they are.
const KINDS: &[(&str, &str)] = &[
    ("rng-builtin", "random bytes from the host's own generator"),
    ("rng-random", "random bytes from a file or device: filename= (default /dev/urandom)"),
];

/// Kinds that QEMU has and Brolga has not.
const FOREIGN: &[&str] = &[
    "authz-",
    "can-",
    "colo-",
    "cryptodev-",
    "dbus-",
    "filter-",
    "input-",
    "iommufd",
    "iothread",
    "main-loop",
    "memory-backend-",
    "pr-manager-",
    "qtest",
    "rng-egd",
    "secret",
    "sev-",
    "sgx-",
    "thread-context",
    "throttle-group",
    "tls-",
    "x-",
];

/// The keys of a kind of objects.
pub fn keys(kind: &str) -> Option<&'static [&'static str]> {
    match kind {
        "rng-builtin" => Some(&[]),
        "rng-random" => Some(&["filename"]),
        _ => None,
    }
}

/// An object: its name, its kind, and its properties.
pub type Described = (String, &'static str, Vec<(&'static str, String)>);

/// The objects asked for.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    entropy: Vec<(String, EntropySource)>,
}

impl Objects {
    /// Reads all of `-object`.
    pub fn collect(arguments: &Arguments) -> Result<Self> {
        let mut this = Self::default();
        arguments.all("object").iter().try_for_each(|value| this.add(value))?;
        Ok(this)
    }

    /// Adds what `value`, in the grammar of `-object`, asks for.
    pub fn add(&mut self, value: &str) -> Result<()> {
        let mut keys = KeyValues::parse("-object", value, Some("qom-type"))?;
        let kind = keys.take("qom-type")?.unwrap_or_default();
        let source = match kind.as_str() {
            "rng-builtin" => EntropySource::Builtin,
            "rng-random" => {
                let path = keys.take("filename")?.unwrap_or_else(|| "/dev/urandom".to_owned());
                source_file(&path)?;
                EntropySource::File(PathBuf::from(path))
            }
            _ if FOREIGN.iter().any(|f| kind == *f || f.ends_with('-') && kind.starts_with(f)) => {
                bail!("-object {value}: {kind} is not supported yet; there are rng-builtin and rng-random")
            }
            _ => {
                let hint = suggest::hint(&kind, KINDS.iter().map(|(name, _)| *name));
                bail!("-object {value}: unknown kind '{kind}'{hint}")
            }
        };
        let Some(id) = keys.take("id")? else { bail!("-object {value}: id= is missing; use -object {kind},id=NAME") };
        keys.finish()?;
        if self.has(&id) {
            bail!("-object {value}: there is another -object with id={id}; choose another name");
        }
        self.entropy.push((id, source));
        Ok(())
    }

    /// Whether there is one called `id`.
    pub fn has(&self, id: &str) -> bool {
        self.entropy.iter().any(|(other, _)| other == id)
    }

    /// Takes one away; devices keep what they have of it. `false`: there is none.
    pub fn remove(&mut self, id: &str) -> bool {
        let found = self.has(id);
        self.entropy.retain(|(other, _)| other != id);
        found
    }

    /// All of them: names, kinds, and properties.
    pub fn all(&self) -> Vec<Described> {
        let shown = |(id, source): &(String, EntropySource)| match source {
            EntropySource::Builtin => (id.clone(), "rng-builtin", Vec::new()),
            EntropySource::File(path) => (id.clone(), "rng-random", vec![("filename", path.display().to_string())]),
        };
        self.entropy.iter().map(shown).collect()
    }

    /// The source called `id`, which `what` (an option with its value) wants.
    pub fn entropy(&self, what: &str, id: &str) -> Result<EntropySource> {
        match self.entropy.iter().find(|(other, _)| other == id) {
            Some((_, source)) => Ok(source.clone()),
            None => {
                let hint = suggest::hint(id, self.entropy.iter().map(|(id, _)| id.as_str()));
                bail!("{what}: there is no -object rng-... with id={id}{hint}")
            }
        }
    }
}

/// A file or device that can be read; a named pipe nobody writes to yet is one.
fn source_file(path: &str) -> Result<()> {
    let what = format!("-object rng-random,filename={path}");
    let file = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
    let data = file.and_then(|file| file.metadata());
    match data {
        Ok(data) if data.is_dir() => bail!("{what}: is a directory; name a file or device"),
        Ok(_) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(anyhow!("{what}: no such file; check the path")),
        Err(e) => Err(anyhow!("{what}: cannot be read: {}; choose another file", os_reason(&e))),
    }
}

/// Text of `-object help`.
pub fn help() -> String {
    KINDS.iter().map(|(name, about)| format!("{name:<16} {about}\n")).collect()
}
