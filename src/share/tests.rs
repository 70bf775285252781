//! The server as clients drive it, and as those do who mean harm.

use super::owner::Model;
use super::session::{Session, kind};
use super::tree::{Rules, Tree};
use super::wire::{HEADER, Reader, Writer};
use rustix::io::Errno;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// A folder that is gone at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("brolga-share-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const MODELS: [Model; 3] = [Model::MappedXattr, Model::MappedFile, Model::None];
const ROOT: u32 = 0;

/// A client whose number 0 is the root.
struct Client {
    folder: Folder,
    session: Session,
}

fn session(folder: &Folder, model: Model, read_only: bool) -> Session {
    let rules = Rules { model, read_only, file_mode: 0o600, folder_mode: 0o700 };
    Session::new(Arc::new(Tree::open(&folder.0, rules).unwrap()), false)
}

type Answer = Result<Vec<u8>, i32>;

impl Client {
    fn new(model: Model) -> Self {
        Self::over(Folder::new(), model, false)
    }

    fn over(folder: Folder, model: Model, read_only: bool) -> Self {
        let mut client = Self { session: session(&folder, model, read_only), folder };
        let answer = client.say(kind::VERSION, |w| _ = w.u32(64 << 10).string(b"9P2000.L")).unwrap();
        assert_eq!(answer[..4], (64u32 << 10).to_le_bytes());
        client.say(kind::ATTACH, |w| _ = w.u32(ROOT).u32(u32::MAX).string(b"").string(b"").u32(1000)).unwrap();
        client
    }

    fn say(&mut self, kind: u8, fill: impl FnOnce(&mut Writer)) -> Answer {
        let mut w = Writer::default();
        fill(&mut w);
        let answer = self.session.handle(&w.message(kind, 77), 1 << 20);
        let mut r = Reader(&answer);
        assert_eq!(r.u32().unwrap() as usize, answer.len());
        let (got, tag) = (r.u8().unwrap(), r.u16().unwrap());
        assert_eq!(tag, 77);
        if got == kind::ERROR {
            return Err(r.u32().unwrap() as i32);
        }
        assert_eq!(got, kind + 1);
        Ok(answer[HEADER..].to_vec())
    }

    fn walk(&mut self, from: u32, to: u32, names: &[&str]) -> Result<usize, i32> {
        let answer = self.say(kind::WALK, |w| {
            w.u32(from).u32(to).u16(names.len() as u16);
            names.iter().for_each(|name| _ = w.string(name.as_bytes()));
        })?;
        Ok(usize::from(u16::from_le_bytes([answer[0], answer[1]])))
    }

    fn clunk(&mut self, fid: u32) -> Answer {
        self.say(kind::CLUNK, |w| _ = w.u32(fid))
    }

    fn open(&mut self, fid: u32, flags: u32) -> Answer {
        self.say(kind::LOPEN, |w| _ = w.u32(fid).u32(flags))
    }

    /// Makes a file in the root, which is open as `fid` then.
    fn create(&mut self, fid: u32, name: &str, mode: u32) -> Answer {
        self.walk(ROOT, fid, &[]).unwrap();
        self.say(kind::LCREATE, |w| _ = w.u32(fid).string(name.as_bytes()).u32(0o302).u32(mode).u32(2000))
    }

    fn write(&mut self, fid: u32, offset: u64, data: &[u8]) -> Answer {
        self.say(kind::WRITE, |w| w.u32(fid).u64(offset).u32(data.len() as u32).0.extend(data))
    }

    fn read(&mut self, fid: u32, offset: u64, count: u32) -> Answer {
        let answer = self.say(kind::READ, |w| _ = w.u32(fid).u64(offset).u32(count))?;
        assert_eq!(u32::from_le_bytes(answer[..4].try_into().unwrap()) as usize, answer.len() - 4);
        Ok(answer[4..].to_vec())
    }

    /// Mode, owner, group, links, size.
    fn attributes(&mut self, fid: u32) -> Result<(u32, u32, u32, u64, u64), i32> {
        let answer = self.say(kind::GETATTR, |w| _ = w.u32(fid).u64(0x7ff))?;
        let mut r = Reader(&answer[21..]);
        let (mode, uid, gid) = (r.u32().unwrap(), r.u32().unwrap(), r.u32().unwrap());
        let (links, _) = (r.u64().unwrap(), r.u64().unwrap());
        Ok((mode, uid, gid, links, r.u64().unwrap()))
    }

    /// The names in a folder, `room` bytes at a time.
    fn list(&mut self, fid: u32, room: u32) -> Vec<String> {
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let answer = self.say(kind::READDIR, |w| _ = w.u32(fid).u64(offset).u32(room)).unwrap();
            let mut r = Reader(&answer[4..]);
            if r.0.is_empty() {
                names.sort();
                return names;
            }
            while !r.0.is_empty() {
                r.bytes(13).unwrap();
                offset = r.u64().unwrap();
                r.u8().unwrap();
                names.push(String::from_utf8(r.string().unwrap().to_vec()).unwrap());
            }
        }
    }
}

#[test]
fn files_live_and_die_in_every_model() {
    for model in MODELS {
        let mut c = Client::new(model);
        c.create(1, "a", 0o640).unwrap();
        assert_eq!(c.write(1, 3, b"hello"), Ok(5u32.to_le_bytes().to_vec()));
        assert_eq!(c.read(1, 0, 100).unwrap(), b"\0\0\0hello");
        let (mode, uid, gid, links, size) = c.attributes(1).unwrap();
        assert_eq!((mode, links, size), (0o100_640, 1, 8), "{model:?}");
        if model != Model::None {
            assert_eq!((uid, gid), (1000, 2000), "{model:?}");
            assert_eq!(fs::metadata(c.folder.0.join("a")).unwrap().permissions().mode() & 0o777, 0o600);
        }
        // Folders, moves, and numbers that follow them.
        c.say(kind::MKDIR, |w| _ = w.u32(ROOT).string(b"d").u32(0o750).u32(5)).unwrap();
        c.say(kind::RENAMEAT, |w| _ = w.u32(ROOT).string(b"a").u32(ROOT).string(b"b").u32(0)).unwrap();
        c.walk(ROOT, 2, &["d"]).unwrap();
        c.say(kind::RENAME, |w| _ = w.u32(1).u32(2).string(b"c")).unwrap();
        assert_eq!(c.walk(ROOT, 3, &["d", "c"]), Ok(2));
        assert_eq!(c.attributes(3).unwrap().0, 0o100_640, "{model:?}: notes move too");
        c.say(kind::LINK, |w| _ = w.u32(ROOT).u32(3).string(b"again")).unwrap();
        assert_eq!(c.attributes(3).unwrap().3, 2);
        // Attributes change one by one: permissions, owner, size.
        let set = |c: &mut Client, given: u32, mode: u32, uid: u32, size: u64| {
            c.say(kind::SETATTR, |w| {
                w.u32(3).u32(given).u32(mode).u32(uid).u32(0).u64(size).u64(5).u64(6).u64(7).u64(8);
            })
        };
        set(&mut c, 1, 0o604, 0, 0).unwrap();
        set(&mut c, 8, 0, 0, 4).unwrap();
        set(&mut c, 0x1b0, 0, 0, 0).unwrap();
        let (mode, _, _, _, size) = c.attributes(3).unwrap();
        assert_eq!((mode, size), (0o100_604, 4), "{model:?}");
        assert_eq!(fs::metadata(c.folder.0.join("d/c")).unwrap().mtime(), 7);
        if model != Model::None {
            set(&mut c, 2, 0, 4711, 0).unwrap();
            assert_eq!(c.attributes(3).unwrap().1, 4711);
        }
        // A file without a name can be used as long as it is open.
        c.say(kind::UNLINKAT, |w| _ = w.u32(2).string(b"c").u32(0)).unwrap();
        c.say(kind::UNLINKAT, |w| _ = w.u32(ROOT).string(b"again").u32(0)).unwrap();
        c.write(1, 0, b"still here").unwrap();
        assert_eq!(c.read(1, 0, 100).unwrap(), b"still here");
        assert_eq!(c.attributes(1).unwrap().4, 10);
        c.clunk(1).unwrap();
        assert_eq!(c.attributes(3), Err(Errno::NOENT.raw_os_error()));
        c.say(kind::UNLINKAT, |w| _ = w.u32(ROOT).string(b"d").u32(0x200)).unwrap();
        assert_eq!(c.walk(ROOT, 9, &["d"]), Err(Errno::NOENT.raw_os_error()));
    }
}

#[test]
fn links_and_nodes() {
    for model in MODELS {
        let mut c = Client::new(model);
        let made = c.say(kind::SYMLINK, |w| _ = w.u32(ROOT).string(b"l").string(b"/etc/passwd").u32(3)).unwrap();
        assert_eq!(made[0], 2, "{model:?}: it is a link");
        c.walk(ROOT, 1, &["l"]).unwrap();
        assert_eq!(c.attributes(1).unwrap().0 & 0o170_000, 0o120_000);
        let target = c.say(kind::READLINK, |w| _ = w.u32(1)).unwrap();
        assert_eq!(&target[2..], b"/etc/passwd");
        assert_eq!(c.open(1, 0), Err(Errno::NXIO.raw_os_error()), "{model:?}: it is not followed");
        assert!(c.walk(1, 2, &["x"]).is_err());
        // A device: none of the host's where owners are noted aside.
        let node = c.say(kind::MKNOD, |w| _ = w.u32(ROOT).string(b"n").u32(0o020_666).u32(1).u32(3).u32(0));
        if model != Model::None {
            node.unwrap();
            assert!(fs::metadata(c.folder.0.join("n")).unwrap().is_file());
            c.walk(ROOT, 3, &["n"]).unwrap();
            let answer = c.say(kind::GETATTR, |w| _ = w.u32(3).u64(0)).unwrap();
            assert_eq!(answer[41..49], rustix::fs::makedev(1, 3).to_le_bytes());
            assert_eq!(c.open(3, 0), Err(Errno::NXIO.raw_os_error()));
        }
        let pipe = c.say(kind::MKNOD, |w| _ = w.u32(ROOT).string(b"p").u32(0o010_600).u32(0).u32(0).u32(0));
        pipe.unwrap();
        c.walk(ROOT, 4, &["p"]).unwrap();
        assert_eq!(c.open(4, 0), Err(Errno::NXIO.raw_os_error()), "it would wait");
    }
}

#[test]
fn notes_are_qemus() {
    let c = {
        let mut c = Client::new(Model::MappedXattr);
        c.create(1, "f", 0o4755).unwrap();
        c
    };
    let file = c.folder.0.join("f");
    let noted = |name: &str| {
        let mut value = [0; 8];
        let len = rustix::fs::lgetxattr(&file, name, &mut value).unwrap();
        value[..len].to_vec()
    };
    assert_eq!(noted("user.virtfs.uid"), 1000u32.to_le_bytes());
    assert_eq!(noted("user.virtfs.gid"), 2000u32.to_le_bytes());
    assert_eq!(noted("user.virtfs.mode"), 0o104_755u32.to_le_bytes());
    let mut c = Client::new(Model::MappedFile);
    c.create(1, "f", 0o755).unwrap();
    let note = fs::read_to_string(c.folder.0.join(".virtfs_metadata/f")).unwrap();
    assert_eq!(note, format!("virtfs.uid=1000\nvirtfs.gid=2000\nvirtfs.mode={}\n", 0o100_755));
    c.walk(ROOT, 2, &[]).unwrap();
    c.open(2, 0o200_000).unwrap();
    assert_eq!(c.list(2, 4096), [".", "..", "f"], "notes are not shown");
    assert_eq!(c.walk(ROOT, 3, &[".virtfs_metadata"]), Err(Errno::INVAL.raw_os_error()));
}

#[test]
fn attributes_of_the_guests_own() {
    let mut c = Client::new(Model::MappedXattr);
    c.create(1, "f", 0o644).unwrap();
    c.clunk(1).unwrap();
    let set = |c: &mut Client, name: &[u8], value: &[u8], flags: u32| {
        c.walk(ROOT, 5, &["f"]).unwrap();
        let answer = c.say(kind::XATTRCREATE, |w| _ = w.u32(5).string(name).u64(value.len() as u64).u32(flags));
        if answer.is_ok() && !value.is_empty() {
            c.write(5, 0, value).unwrap();
        }
        c.clunk(5).and(answer)
    };
    let get = |c: &mut Client, name: &[u8]| {
        c.walk(ROOT, 6, &["f"]).unwrap();
        let size = c.say(kind::XATTRWALK, |w| _ = w.u32(6).u32(7).string(name));
        let value = size.and_then(|size| {
            let value = c.read(7, 0, 4096)?;
            assert_eq!(size, (value.len() as u64).to_le_bytes());
            c.clunk(7)?;
            Ok(value)
        });
        c.clunk(6).unwrap();
        value
    };
    set(&mut c, b"user.colour", b"green", 0).unwrap();
    assert_eq!(get(&mut c, b"user.colour").unwrap(), b"green");
    assert_eq!(get(&mut c, b"").unwrap(), b"user.colour\0", "the notes are not listed");
    assert_eq!(set(&mut c, b"user.virtfs.uid", b"0000", 0), Err(Errno::ACCESS.raw_os_error()));
    assert_eq!(get(&mut c, b"security.selinux"), Err(Errno::OPNOTSUPP.raw_os_error()));
    set(&mut c, b"user.colour", b"", 2).unwrap();
    assert_eq!(get(&mut c, b"user.colour"), Err(Errno::NODATA.raw_os_error()));
}

#[test]
fn large_folders_are_listed_in_pieces() {
    let mut c = Client::new(Model::None);
    let mut names: Vec<String> = (0..700).map(|n| format!("file-{n:04}-{}", "x".repeat(n % 90))).collect();
    names.iter().for_each(|name| fs::write(c.folder.0.join(name), "").unwrap());
    names.extend([".".to_owned(), "..".to_owned()]);
    names.sort();
    c.walk(ROOT, 1, &[]).unwrap();
    c.open(1, 0).unwrap();
    for room in [300, 4096, 60_000] {
        assert_eq!(c.list(1, room), names, "{room}");
    }
    let none = c.say(kind::READDIR, |w| _ = w.u32(1).u64(0).u32(10));
    assert_eq!(none, Err(Errno::INVAL.raw_os_error()));
}

#[test]
fn locks_hold_between_open_files() {
    let mut c = Client::new(Model::None);
    c.create(1, "f", 0o600).unwrap();
    c.walk(ROOT, 2, &["f"]).unwrap();
    c.open(2, 2).unwrap();
    let lock = |c: &mut Client, fid: u32, kind: u8, start: u64, len: u64| {
        c.say(kind::LOCK, |w| _ = w.u32(fid).u8(kind).u32(0).u64(start).u64(len).u32(9).string(b"me")).unwrap()[0]
    };
    assert_eq!(lock(&mut c, 1, 1, 10, 10), 0);
    assert_eq!(lock(&mut c, 2, 1, 15, 10), 1, "it waits");
    assert_eq!(lock(&mut c, 2, 1, 20, 0), 0);
    let found = c.say(kind::GETLOCK, |w| _ = w.u32(2).u8(0).u64(0).u64(0).u32(9).string(b"me")).unwrap();
    assert_eq!((found[0], &found[1..9]), (1, &10u64.to_le_bytes()[..]));
    assert_eq!(lock(&mut c, 1, 2, 0, 0), 0);
    assert_eq!(lock(&mut c, 2, 1, 15, 10), 0);
    assert_eq!(lock(&mut c, 1, 9, 0, 0), 2);
}

#[test]
fn nothing_changes_in_a_folder_that_is_only_read() {
    let folder = Folder::new();
    fs::write(folder.0.join("f"), "text").unwrap();
    let mut c = Client::over(folder, Model::None, true);
    let refused = Err(Errno::ROFS.raw_os_error());
    assert_eq!(c.create(1, "g", 0o600), refused);
    c.walk(ROOT, 2, &["f"]).unwrap();
    assert_eq!(c.open(2, 1), refused);
    assert_eq!(c.open(2, 0o1000), refused);
    c.open(2, 0).unwrap();
    assert_eq!(c.read(2, 0, 9).unwrap(), b"text");
    assert_eq!(c.write(2, 0, b"x"), refused);
    assert_eq!(c.say(kind::UNLINKAT, |w| _ = w.u32(ROOT).string(b"f").u32(0)), refused);
    assert_eq!(c.say(kind::MKDIR, |w| _ = w.u32(ROOT).string(b"d").u32(7).u32(0)), refused);
    let set = c.say(kind::SETATTR, |w| _ = w.u32(2).u32(8).u32(0).u32(0).u32(0).u64(0).u64(0).u64(0).u64(0).u64(0));
    assert_eq!(set, refused);
    assert_eq!(c.say(kind::XATTRCREATE, |w| _ = w.u32(2).string(b"user.x").u64(1).u32(0)), refused);
}

#[test]
fn there_is_no_way_out() {
    let outside = Folder::new();
    fs::write(outside.0.join("secret"), "the secret").unwrap();
    let mut c = Client::new(Model::None);
    symlink(&outside.0, c.folder.0.join("out")).unwrap();
    symlink(outside.0.join("secret"), c.folder.0.join("file")).unwrap();
    fs::create_dir(c.folder.0.join("d")).unwrap();
    assert_eq!(c.walk(ROOT, 1, &["d", "..", "..", "..", "d"]), Ok(5), "up from the root is the root");
    assert!(c.walk(ROOT, 2, &["out", "secret"]) != Ok(2));
    for name in ["a/b", "", "..", ".", "d/../../secret", "a\0b"] {
        assert!(c.create(9, name, 0o600).is_err(), "{name:?}");
        c.clunk(9).unwrap();
        let made = c.say(kind::MKDIR, |w| _ = w.u32(ROOT).string(name.as_bytes()).u32(0o700).u32(0));
        assert!(made.is_err(), "{name:?}");
        if name != ".." {
            assert!(c.walk(ROOT, 9, &[name]).is_err(), "{name:?}");
        } else {
            c.walk(ROOT, 9, &[name]).unwrap();
            c.clunk(9).unwrap();
        }
    }
    c.walk(ROOT, 3, &["file"]).unwrap();
    assert!(c.open(3, 0).is_err() && c.open(3, 0o1002).is_err());
    let grown = c.say(kind::SETATTR, |w| _ = w.u32(3).u32(8).u32(0).u32(0).u32(0).u64(0).u64(0).u64(0).u64(0).u64(0));
    assert!(grown.is_err());
    let chmod = c.say(kind::SETATTR, |w| _ = w.u32(3).u32(1).u32(0).u32(0).u32(0).u64(0).u64(0).u64(0).u64(0).u64(0));
    assert!(chmod.is_err());
    assert_eq!(fs::read_to_string(outside.0.join("secret")).unwrap(), "the secret");
    assert_eq!(c.say(kind::RENAME, |w| _ = w.u32(ROOT).u32(ROOT).string(b"x")), Err(Errno::BUSY.raw_os_error()));
}

/// Somebody on the host turns a folder into a link to the outside and back, all the time.
#[test]
fn no_race_leads_out() {
    let outside = Folder::new();
    fs::write(outside.0.join("f"), "the secret").unwrap();
    let mut c = Client::new(Model::None);
    let (real, link) = (c.folder.0.join("real"), c.folder.0.join("link"));
    fs::create_dir(&real).unwrap();
    fs::write(real.join("f"), "for the guest").unwrap();
    symlink(&outside.0, &link).unwrap();
    let at = c.folder.0.join("d");
    let over = Arc::new(AtomicBool::new(false));
    let end = over.clone();
    let swapper = std::thread::spawn(move || {
        while !end.load(Ordering::SeqCst) {
            let _ = fs::rename(&real, &at);
            std::thread::sleep(std::time::Duration::from_micros(50));
            let _ = fs::rename(&at, &real);
            let _ = fs::rename(&link, &at);
            std::thread::sleep(std::time::Duration::from_micros(50));
            let _ = fs::rename(&at, &link);
        }
    });
    let mut reached = 0;
    for round in 0..40_000u32 {
        let fid = 10 + round;
        if reached >= 50 && round > 4000 {
            break;
        }
        if c.walk(ROOT, fid, &["d", "f"]) != Ok(2) {
            continue;
        }
        if c.open(fid, 2).is_ok() {
            let text = c.read(fid, 0, 100).unwrap();
            assert_eq!(text, b"for the guest");
            reached += 1;
        }
        c.clunk(fid).unwrap();
    }
    over.store(true, Ordering::SeqCst);
    swapper.join().unwrap();
    assert_eq!(fs::read_to_string(outside.0.join("f")).unwrap(), "the secret");
    // Of so many tries some find the folder in its place.
    assert!(reached > 0);
}

#[test]
fn a_session_moves_with_its_numbers() {
    let mut c = Client::new(Model::MappedXattr);
    c.create(1, "f", 0o600).unwrap();
    c.write(1, 0, b"kept").unwrap();
    c.walk(ROOT, 2, &[]).unwrap();
    c.open(2, 0).unwrap();
    let saved = serde_json::to_value(c.session.save()).unwrap();
    let mut other = session(&c.folder, Model::MappedXattr, false);
    other.restore(serde_json::from_value(saved.clone()).unwrap());
    assert_eq!(serde_json::to_value(other.save()).unwrap(), saved);
    c.session = other;
    assert_eq!(c.read(1, 0, 9).unwrap(), b"kept");
    c.write(1, 4, b" on").unwrap();
    assert_eq!(c.list(2, 4096), [".", "..", "f"]);
    // A state that names what is outside opens nothing.
    let mut bad = saved;
    bad[1][1]["path"] = serde_json::json!(b"../../etc/passwd".to_vec());
    let mut other = session(&c.folder, Model::MappedXattr, false);
    other.restore(serde_json::from_value(bad).unwrap());
    c.session = other;
    assert_eq!(c.read(1, 0, 9), Err(Errno::BADF.raw_os_error()));
}

/// Messages of random kinds with fields that are nearly right, and others that are noise.
#[test]
fn random_messages_are_answered() {
    let outside = Folder::new();
    fs::write(outside.0.join("f"), "untouched").unwrap();
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 11) % below
    };
    for model in MODELS {
        let mut c = Client::new(model);
        symlink(&outside.0, c.folder.0.join("b")).unwrap();
        let names: [&[u8]; 9] = [b"a", b"b", b"c", b"d", b"..", b".", b"a/b", b"", b"../f"];
        for _ in 0..6000 {
            let kind =
                [8, 12, 14, 16, 18, 20, 22, 24, 26, 30, 32, 40, 50, 52, 54, 70, 72, 74, 76, 110, 116, 118, 120, 122]
                    [random(24) as usize];
            let mut w = Writer::default();
            for _ in 0..random(12) {
                match random(6) {
                    0 | 1 => w.u32(random(6) as u32),
                    2 => w.string(names[random(9) as usize]),
                    3 => w.u64(random(5000)),
                    4 => w.u16(random(3) as u16),
                    _ => w.u32(random(1 << 40) as u32),
                };
            }
            let message = w.message(kind as u8, random(9) as u16);
            let room = 11 + random(9000) as usize;
            let answer = c.session.handle(&message, room);
            assert!(answer.len() >= HEADER && answer.len() <= 64 << 10);
            let noise: Vec<u8> = (0..random(60)).map(|_| random(256) as u8).collect();
            // A new version ends the session, which would make the rest dull.
            if noise.get(4) != Some(&kind::VERSION) {
                c.session.handle(&noise, room);
            }
            if random(50) == 0 {
                let root = |w: &mut Writer| _ = w.u32(ROOT).u32(u32::MAX).string(b"").string(b"").u32(0);
                // It may still be there.
                let _ = c.say(kind::ATTACH, root);
            }
        }
        assert_eq!(fs::read_dir(&outside.0).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(outside.0.join("f")).unwrap(), "untouched");
    }
}
