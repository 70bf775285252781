//! Descriptors that others have handed to this process: by name (`getfd`), and in numbered sets (`add-fd`, `-add-fd`) whose
//! members stand for files called `/dev/fdset/NUMBER`.
//!
//! They are the process's, as file names are: whoever opens a file by its name may come across one.

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What names of members begin with.
const PREFIX: &str = "/dev/fdset/";

/// A member of a set.
struct Member {
    descriptor: OwnedFd,
    /// What the one who handed it over says of it.
    about: Option<String>,
}

/// All of them.
#[derive(Default)]
struct All {
    named: BTreeMap<String, OwnedFd>,
    sets: BTreeMap<u64, Vec<Member>>,
}

static ALL: Mutex<All> = Mutex::new(All { named: BTreeMap::new(), sets: BTreeMap::new() });

fn all() -> MutexGuard<'static, All> {
    ALL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A set as monitors show it: its number, and of each member the number and what was said of it.
pub type Set = (u64, Vec<(i32, Option<String>)>);

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Both.
    Both,
}

impl Access {
    fn mode(self) -> OFlag {
        match self {
            Self::Read => OFlag::O_RDONLY,
            Self::Write => OFlag::O_WRONLY,
            Self::Both => OFlag::O_RDWR,
        }
    }
}

/// Keeps a descriptor under a name; one that had the name before is closed.
pub fn keep(name: &str, descriptor: OwnedFd) {
    all().named.insert(name.to_owned(), descriptor);
}

/// Takes out the descriptor with this name.
pub fn take(name: &str) -> Option<OwnedFd> {
    all().named.remove(name)
}

/// Puts a descriptor into a set, or into a new one; the number of the set, and that of the member.
pub fn put(set: Option<u64>, about: Option<String>, descriptor: OwnedFd) -> (u64, i32) {
    let mut all = all();
    let free = || (0..).find(|number| !all.sets.contains_key(number)).unwrap_or(u64::MAX);
    let set = set.unwrap_or_else(free);
    let number = descriptor.as_raw_fd();
    all.sets.entry(set).or_default().push(Member { descriptor, about });
    (set, number)
}

/// Takes a member out of a set, or the whole set away; `false`: there is none. What is open stays so.
pub fn remove(set: u64, member: Option<i64>) -> bool {
    let mut all = all();
    let Some(members) = all.sets.get_mut(&set) else { return false };
    let before = members.len();
    members.retain(|entry| member.is_some_and(|number| i64::from(entry.descriptor.as_raw_fd()) != number));
    let found = members.len() != before;
    if members.is_empty() {
        all.sets.remove(&set);
    }
    found
}

/// All sets.
pub fn sets() -> Vec<Set> {
    let shown = |member: &Member| (member.descriptor.as_raw_fd(), member.about.clone());
    all().sets.iter().map(|(number, members)| (*number, members.iter().map(shown).collect())).collect()
}

/// The file that a name of a set stands for, with these flags besides (`O_APPEND`, `O_DIRECT`). `None`: it is the name of an
/// ordinary file.
pub fn open(path: &Path, access: Access, flags: i32) -> Option<io::Result<File>> {
    let number = path.to_str()?.strip_prefix(PREFIX)?.parse::<u64>().ok()?;
    Some(of_set(number, access, flags))
}

fn of_set(number: u64, access: Access, flags: i32) -> io::Result<File> {
    let all = all();
    let missing = || io::Error::new(io::ErrorKind::NotFound, format!("Failed to find fdset {PREFIX}{number}"));
    let members = all.sets.get(&number).ok_or_else(missing)?;
    let mode = |member: &Member| {
        let flags = fcntl(member.descriptor.as_fd(), FcntlArg::F_GETFL).unwrap_or(0);
        OFlag::from_bits_truncate(flags) & OFlag::O_ACCMODE
    };
    let exact = members.iter().find(|member| mode(member) == access.mode());
    // One for both does for each.
    let found = exact.or_else(|| members.iter().find(|member| mode(member) == OFlag::O_RDWR));
    let found = found.ok_or_else(|| {
        let why = format!("Failed to find file descriptor with matching flags={:#x}", access.mode().bits());
        io::Error::new(io::ErrorKind::PermissionDenied, why)
    })?;
    let file = File::from(found.descriptor.try_clone()?);
    if flags != 0 {
        let now = OFlag::from_bits_truncate(fcntl(&file, FcntlArg::F_GETFL)?);
        fcntl(&file, FcntlArg::F_SETFL(now | OFlag::from_bits_truncate(flags)))?;
    }
    Ok(file)
}

/// A file to be written from its beginning: a new one, or what a set has.
pub fn create(path: impl AsRef<Path>) -> io::Result<File> {
    open(path.as_ref(), Access::Write, 0).unwrap_or_else(|| File::create(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};

    fn unnamed() -> File {
        let path = std::env::temp_dir().join(format!("brolga-descriptors-{}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file
    }

    // One test: the sets are the process's.
    #[test]
    fn sets_stand_for_files() {
        let (mut file, (reader, writer)) = (unnamed(), io::pipe().unwrap());
        let (set, number) = put(Some(40), Some("rw".into()), file.try_clone().unwrap().into());
        assert_eq!((set, sets().iter().find(|set| set.0 == 40)), (40, Some(&(40, vec![(number, Some("rw".into()))]))));
        let open = |name: &str, access| open(Path::new(name), access, 0);
        for access in [Access::Both, Access::Write, Access::Read] {
            assert!(open("/dev/fdset/40", access).unwrap().is_ok());
        }
        create("/dev/fdset/40").unwrap().write_all(b"through the set").unwrap();
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through the set");
        assert_eq!(open("/dev/fdset/41", Access::Read).unwrap().unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(open("/dev/fdset/x", Access::Read).is_none() && open("/dev/null", Access::Read).is_none());
        put(Some(42), None, reader.into());
        let refused = open("/dev/fdset/42", Access::Both).unwrap().unwrap_err();
        assert!(refused.to_string().contains("matching flags=0x2"), "{refused}");
        let (new, _) = put(None, None, writer.into());
        assert!(open(&format!("/dev/fdset/{new}"), Access::Write).unwrap().is_ok());
        assert!(!remove(40, Some(-1)) && !remove(43, None));
        assert!(remove(40, Some(i64::from(number))) && remove(42, None) && remove(new, None));
        assert!(sets().iter().all(|set| ![40, 42, new].contains(&set.0)));
        keep("a", file.into());
        assert!(take("a").is_some() && take("a").is_none());
    }
}
