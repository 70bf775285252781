//! Random bytes for the guest: from the host's own generator, or from a file or device. Nothing here waits.

use crate::cli::config::peripherals::EntropySource;
use crate::io_thread::{FdWatcher, IoHandle};
use anyhow::{Context, Result};
use brolga_devices::services::{Entropy, EntropyClient};
use brolga_devices::wire::locked;
use brolga_jit::Seeded;
use nix::errno::Errno;
use nix::poll::PollFlags;
use rustix::rand::{GetRandomFlags, getrandom};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex, Weak};

/// Where random bytes come from that no source was named for.
pub enum Randomness {
    /// The host's own generator.
    Host,
    /// A generator that gives the same bytes in each run (`-seed`).
    Seeded(Mutex<Seeded>),
}

impl Randomness {
    /// The host's, or one of the sequences from this seed: processors have those from 2 on.
    pub fn new(seed: Option<u64>, sequence: u64) -> Self {
        seed.map_or(Self::Host, |seed| Self::Seeded(Mutex::new(Seeded::new(seed, sequence))))
    }

    /// Fills `bytes`. Fails only before the host itself has gathered randomness, at its start.
    pub fn fill(&self, bytes: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Host => {
                for part in bytes.chunks_mut(HOST_AT_ONCE) {
                    if getrandom(&mut *part, GetRandomFlags::empty())? != part.len() {
                        return Err(io::ErrorKind::Interrupted.into());
                    }
                }
            }
            Self::Seeded(random) => {
                let mut random = locked(random);
                bytes
                    .chunks_mut(8)
                    .for_each(|part| part.copy_from_slice(&random.next_word().to_le_bytes()[..part.len()]));
            }
        }
        Ok(())
    }
}

/// So many bytes the host gives without being interrupted (getrandom(2)).
const HOST_AT_ONCE: usize = 256;

/// Opens `source`; bytes come on the I/O thread. `seed`: what the built-in one starts from, if not from the host's.
pub fn open(source: &EntropySource, seed: Option<u64>, io: &IoHandle) -> Result<Arc<dyn Entropy>> {
    let path = match source {
        EntropySource::Builtin => return Ok(Arc::new(Builtin(io.clone(), Arc::new(Randomness::new(seed, 1))))),
        EntropySource::File(path) => path,
    };
    let name = format!("-object rng-random,filename={}", path.display());
    let file = File::options()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path)
        .with_context(|| format!("{name}: cannot be opened; choose another file"))?;
    if file.metadata().is_ok_and(|data| data.is_dir()) {
        anyhow::bail!("{name}: this is a folder; choose a file or device");
    }
    let source = Arc::new(FromFile { name, file, io: io.clone(), wanted: Mutex::default() });
    io.watch(source.clone());
    Ok(source)
}

/// Bytes of no source in particular.
struct Builtin(IoHandle, Arc<Randomness>);

impl Entropy for Builtin {
    fn request(&self, len: usize, client: Weak<dyn EntropyClient>) {
        let randomness = self.1.clone();
        self.0.post(move || {
            let Some(client) = client.upgrade() else { return };
            let mut bytes = vec![0; len];
            match randomness.fill(&mut bytes) {
                Ok(()) => client.entropy(&bytes),
                Err(error) => tracing::warn!("random bytes: {error}"),
            }
        });
    }
}

/// A file or device, read when it has something.
struct FromFile {
    name: String,
    file: File,
    io: IoHandle,
    wanted: Mutex<Option<(usize, Weak<dyn EntropyClient>)>>,
}

impl Entropy for FromFile {
    fn request(&self, len: usize, client: Weak<dyn EntropyClient>) {
        *locked(&self.wanted) = Some((len, client));
        self.io.wake();
    }
}

impl FdWatcher for FromFile {
    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn interest(&self) -> PollFlags {
        if locked(&self.wanted).is_some() { PollFlags::POLLIN } else { PollFlags::empty() }
    }

    fn ready(&self, _events: PollFlags) -> bool {
        let Some((len, client)) = locked(&self.wanted).take() else { return true };
        let mut bytes = vec![0; len];
        match nix::unistd::read(&self.file, &mut bytes) {
            Ok(n) if n > 0 => {
                if let Some(client) = client.upgrade() {
                    client.entropy(bytes.get(..n).unwrap_or_default());
                }
                true
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {
                *locked(&self.wanted) = Some((len, client));
                true
            }
            end => {
                let why = end.err().map_or("there is no more".to_owned(), |error| error.to_string());
                eprintln!("{}: {why}; the guest waits for random bytes in vain", self.name);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::config::RtcConfig;
    use crate::clock::GuestClock;
    use crate::io_thread::IoThread;
    use crossbeam_channel::{Sender, unbounded};
    use std::io::Write;
    use std::time::Duration;

    struct Client(Sender<Vec<u8>>);

    impl EntropyClient for Client {
        fn entropy(&self, bytes: &[u8]) {
            self.0.send(bytes.to_vec()).unwrap();
        }
    }

    #[test]
    fn a_seed_gives_the_same_bytes_each_time_and_another_one_others() {
        let bytes = |seed| {
            let (randomness, mut bytes) = (Randomness::new(seed, 0), [[0; 13]; 2]);
            bytes.iter_mut().for_each(|bytes| randomness.fill(bytes).unwrap());
            bytes
        };
        let first = bytes(Some(5));
        assert_eq!(first, bytes(Some(5)));
        assert_ne!(first[0], first[1]);
        assert!(first != bytes(Some(6)) && bytes(None) != bytes(None));
    }

    #[test]
    fn both_sources_give_bytes_when_they_have_them() {
        let io = IoThread::spawn(Arc::new(GuestClock::new(RtcConfig::default()))).unwrap();
        let (sender, got) = unbounded();
        let client: Arc<dyn EntropyClient> = Arc::new(Client(sender));
        let source = open(&EntropySource::Builtin, None, &io.handle()).unwrap();
        source.request(32, Arc::downgrade(&client));
        let bytes = got.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(bytes.len() == 32 && bytes != [0; 32]);
        // A file that has nothing at first: a named pipe.
        let path = std::env::temp_dir().join(format!("brolga-entropy-{}", std::process::id()));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut writer = File::options().read(true).write(true).open(&path).unwrap();
        let source = open(&EntropySource::File(path.clone()), None, &io.handle()).unwrap();
        std::fs::remove_file(&path).unwrap();
        source.request(4, Arc::downgrade(&client));
        assert!(got.recv_timeout(Duration::from_millis(50)).is_err());
        writer.write_all(b"abcdef").unwrap();
        assert_eq!(got.recv_timeout(Duration::from_secs(20)).unwrap(), b"abcd");
        assert!(open(&EntropySource::File("/".into()), None, &io.handle()).is_err());
    }
}
