//! Kernels that took long to unpack, kept for the next boot in the user's cache folder
//! (`$XDG_CACHE_HOME/brolga/kernels`, or `~/.cache/...`; XDG Base Directory Specification).
//!
//! Files are named by the hash of what they were unpacked from, written whole or not at all, and the ones that were
//! used last stay. No folder, no room or no right to write: then nothing is kept, and nobody is told.

use super::payload::{self, Payload};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

/// So many kernels are kept.
const KEPT: usize = 8;
/// An unfinished file of this age is nobody's any more.
const ABANDONED: Duration = Duration::from_secs(600);
/// zstd's fastest level: packs a kernel in a tenth of a second to a fifth.
const LEVEL: i32 = 1;

/// The payload unpacked: from the cache if it is there, else by work, and then it is there the next time.
pub fn unpack(payload: &Payload) -> io::Result<Vec<u8>> {
    let folder = if payload.is_slow() { folder() } else { None };
    match folder {
        Some(folder) => Ok(unpack_with(payload, folder)?.0),
        None => payload.unpack(),
    }
}

/// The same with a cache folder; and the thread that keeps what had to be unpacked.
fn unpack_with(payload: &Payload, folder: PathBuf) -> io::Result<(Vec<u8>, Option<JoinHandle<()>>)> {
    let path = folder.join(payload.name() + ".zst");
    if let Ok(bytes) = read(&path, payload.size()) {
        return Ok((bytes, None));
    }
    let bytes = payload.unpack()?;
    let copy = bytes.clone();
    // The guest does not wait for it.
    let thread = thread::Builder::new().name("kernel cache".into()).spawn(move || {
        let kept = make_room(&folder).and_then(|()| keep(&path, &copy));
        if let Err(error) = kept {
            tracing::debug!("{}: not kept: {error}", path.display());
        }
    });
    Ok((bytes, thread.ok()))
}

/// The folder, made if need be. One that belongs to somebody else is not used: its content would run in the guest.
fn folder() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    let folder = base.join("brolga/kernels");
    DirBuilder::new().recursive(true).mode(0o700).create(&folder).ok()?;
    let about = fs::metadata(&folder).ok()?;
    (about.uid() == rustix::process::geteuid().as_raw() && about.mode() & 0o022 == 0).then_some(folder)
}

/// A kernel of `size` bytes that was kept, marked as used now.
fn read(path: &Path, size: usize) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let bytes = payload::exactly(size, zstd::Decoder::new(&file)?)?;
    // Only the order in which kernels are forgotten hangs on it.
    let _ = file.set_modified(SystemTime::now());
    Ok(bytes)
}

/// Writes a kernel under another name first: a file that is there is whole. Where somebody else is at it, it is theirs to
/// finish.
fn keep(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let unfinished = path.with_extension("unfinished");
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    let written = (|| {
        let mut packed = zstd::Encoder::new(file, LEVEL)?;
        packed.include_checksum(true)?;
        packed.write_all(bytes)?;
        packed.finish()?;
        fs::rename(&unfinished, path)
    })();
    written.inspect_err(|_| drop(fs::remove_file(&unfinished)))
}

/// Removes all but the kernels that were used last, so that one more may come, and what others left unfinished.
fn make_room(folder: &Path) -> io::Result<()> {
    let mut kernels = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (path, used) = (entry.path(), entry.metadata()?.modified()?);
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("zst") => kernels.push((used, path)),
            Some("unfinished") if used.elapsed().is_ok_and(|age| age > ABANDONED) => fs::remove_file(path)?,
            _ => {}
        }
    }
    kernels.sort_by(|a, b| b.cmp(a));
    kernels.iter().skip(KEPT - 1).try_for_each(|(_, path)| fs::remove_file(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that is gone at the end of the test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("brolga-kernels-{name}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn names(&self) -> Vec<String> {
            let names = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<_> = names.collect();
            names.sort();
            names
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn age(path: &Path, by: u64) {
        File::open(path).unwrap().set_modified(SystemTime::now() - Duration::from_secs(by)).unwrap();
    }

    #[test]
    fn what_was_unpacked_once_is_read_the_next_time() {
        let folder = Folder::new("again");
        let content: Vec<u8> = (0..300_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let payload = payload::tests::xz(&content);
        let (bytes, thread) = unpack_with(&payload, folder.0.clone()).unwrap();
        assert!(bytes == content);
        thread.unwrap().join().unwrap();
        let name = payload.name() + ".zst";
        assert_eq!(folder.names(), [name.as_str()]);
        let (bytes, thread) = unpack_with(&payload, folder.0.clone()).unwrap();
        assert!(bytes == content && thread.is_none(), "it was unpacked again");

        // What is damaged or cut short is as good as not there.
        let path = folder.0.join(&name);
        let mut kept = fs::read(&path).unwrap();
        let middle = kept.len() / 2;
        kept[middle] ^= 0x10;
        for bad in [&kept[..], &kept[..middle], b""] {
            fs::write(&path, bad).unwrap();
            let (bytes, thread) = unpack_with(&payload, folder.0.clone()).unwrap();
            assert!(bytes == content);
            thread.expect("it was unpacked again").join().unwrap();
            assert!(read(&path, content.len()).is_ok_and(|bytes| bytes == content));
        }
        assert!(read(&path, content.len() - 1).is_err(), "another size than the payload says");
    }

    #[test]
    fn the_kernels_that_were_used_last_stay() {
        let folder = Folder::new("prune");
        for n in 0..KEPT as u64 + 3 {
            let path = folder.0.join(format!("{n}.zst"));
            keep(&path, &[n as u8; 100]).unwrap();
            age(&path, 1000 - n);
        }
        read(&folder.0.join("0.zst"), 100).unwrap();
        for (name, seconds) in [("1.unfinished", 2000), ("2.unfinished", 0), ("other", 5000)] {
            fs::write(folder.0.join(name), b"").unwrap();
            age(&folder.0.join(name), seconds);
        }
        make_room(&folder.0).unwrap();
        let stay = ["0.zst", "10.zst", "2.unfinished", "5.zst", "6.zst", "7.zst", "8.zst", "9.zst", "other"];
        assert_eq!(folder.names(), stay);
        let started = folder.0.join("2.zst");
        assert!(keep(&started, b"of another process").is_err(), "somebody else is at it");
        assert_eq!(fs::read(started.with_extension("unfinished")).unwrap(), b"");
    }

    #[test]
    fn without_room_to_keep_it_a_kernel_is_unpacked_all_the_same() {
        let folder = Folder::new("nowhere");
        let payload = payload::tests::xz(&[1; 5000]);
        let (bytes, thread) = unpack_with(&payload, folder.0.join("not there")).unwrap();
        assert_eq!(bytes, [1; 5000]);
        thread.unwrap().join().unwrap();
        assert_eq!(folder.names(), [""; 0]);
    }
}
