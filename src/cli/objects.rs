//! `-object`: things on the host that devices refer to by name.

use super::backends::{MEMORY_KEYS, MemoryBackend, SECRET_KEYS, Secret};
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
    ("memory-backend-ram", "guest memory for -machine memory-backend=: size=, share=, prealloc="),
    ("memory-backend-memfd", "the same, in a file without a name"),
    ("memory-backend-file", "the same, in the file mem-path=, with share=on"),
    ("secret", "data= or file=, format=raw|base64: something that is not shown"),
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
    "memory-backend-epc",
    "memory-backend-shm",
    "pr-manager-",
    "qtest",
    "rng-egd",
    "secret_keyring",
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
        "secret" => Some(SECRET_KEYS),
        _ if MEMORY.contains(&kind) => Some(MEMORY_KEYS),
        _ => None,
    }
}

/// Kinds of guest memory.
const MEMORY: [&str; 3] = ["memory-backend-ram", "memory-backend-memfd", "memory-backend-file"];

/// An object that no device refers to.
#[derive(Clone, Debug)]
enum Other {
    Memory(MemoryBackend),
    Secret(Secret),
}

/// An object: its name, its kind, and its properties.
pub type Described = (String, &'static str, Vec<(&'static str, String)>);

/// The objects asked for.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    entropy: Vec<(String, EntropySource)>,
    others: Vec<(String, Other)>,
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
        let what = format!("-object {value}");
        let memory = MEMORY.into_iter().find(|memory| *memory == kind);
        let source = match kind.as_str() {
            "secret" => return self.add_other(value, keys, |keys| Secret::read(&what, keys).map(Other::Secret)),
            _ if let Some(memory) = memory => {
                let read = |keys: &mut KeyValues| MemoryBackend::read(&what, memory, keys).map(Other::Memory);
                return self.add_other(value, keys, read);
            }
            "rng-builtin" => EntropySource::Builtin,
            "rng-random" => {
                let path = keys.take("filename")?.unwrap_or_else(|| "/dev/urandom".to_owned());
                source_file(&path)?;
                EntropySource::File(PathBuf::from(path))
            }
            _ if FOREIGN.iter().any(|f| kind == *f || f.ends_with('-') && kind.starts_with(f)) => {
                bail!("-object {value}: {kind} is not supported yet; -object help lists those that are")
            }
            _ => {
                let hint = suggest::hint(&kind, KINDS.iter().map(|(name, _)| *name));
                bail!("-object {value}: unknown kind '{kind}'{hint}")
            }
        };
        let id = self.name(value, keys)?;
        self.entropy.push((id, source));
        Ok(())
    }

    /// The name of a new object; its other keys are taken.
    fn name(&self, value: &str, mut keys: KeyValues) -> Result<String> {
        let Some(id) = keys.take("id")? else { bail!("-object {value}: id= is missing; use -object KIND,id=NAME") };
        keys.finish()?;
        if self.has(&id) {
            bail!("-object {value}: there is another -object with id={id}; choose another name");
        }
        Ok(id)
    }

    fn add_other(
        &mut self,
        value: &str,
        mut keys: KeyValues,
        read: impl FnOnce(&mut KeyValues) -> Result<Other>,
    ) -> Result<()> {
        let other = read(&mut keys)?;
        let id = self.name(value, keys)?;
        self.others.push((id, other));
        Ok(())
    }

    /// The memory called `id`, which `-machine memory-backend=` wants.
    pub fn memory(&self, id: &str) -> Result<MemoryBackend> {
        let all = self.others.iter().filter_map(|(other, object)| match object {
            Other::Memory(memory) => Some((other.as_str(), memory)),
            Other::Secret(_) => None,
        });
        match all.clone().find(|(other, _)| *other == id) {
            Some((_, memory)) => Ok(memory.clone()),
            None => {
                let hint = suggest::hint(id, all.map(|(id, _)| id));
                bail!("-machine memory-backend={id}: there is no -object memory-backend-... with id={id}{hint}")
            }
        }
    }

    /// Whether there is one called `id`.
    pub fn has(&self, id: &str) -> bool {
        self.entropy.iter().any(|(other, _)| other == id) || self.others.iter().any(|(other, _)| other == id)
    }

    /// Takes one away; devices keep what they have of it. `false`: there is none.
    pub fn remove(&mut self, id: &str) -> bool {
        let found = self.has(id);
        self.entropy.retain(|(other, _)| other != id);
        self.others.retain(|(other, _)| other != id);
        found
    }

    /// All of them: names, kinds, and properties.
    pub fn all(&self) -> Vec<Described> {
        let shown = |(id, source): &(String, EntropySource)| match source {
            EntropySource::Builtin => (id.clone(), "rng-builtin", Vec::new()),
            EntropySource::File(path) => (id.clone(), "rng-random", vec![("filename", path.display().to_string())]),
        };
        let other = |(id, object): &(String, Other)| match object {
            Other::Memory(memory) => (id.clone(), memory.kind, memory.properties()),
            Other::Secret(secret) => (id.clone(), "secret", secret.properties()),
        };
        self.entropy.iter().map(shown).chain(self.others.iter().map(other)).collect()
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
