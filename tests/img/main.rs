//! `brolga-img` beside `qemu-img`: the same words on equal images give the same output, statuses and contents.
//!
//! Where `qemu-img` is not installed these tests check against what is known of it.
#![forbid(unsafe_code)]

mod amend;
mod chains;
mod full;
mod hostile;
mod kill;
mod programs;
mod qcow2;
mod random;
mod raw;
mod table;
mod tree;

use serde_json::Value;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

const PROGRAM: &str = env!("CARGO_BIN_EXE_brolga-img");

/// What a program did.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Outcome {
    status: i32,
    out: String,
    err: String,
}

/// Whether there is a `qemu-img` of version 10, whose options and output are followed.
fn model() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let out = Command::new("qemu-img").arg("--version").output();
        let found = out.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).starts_with("qemu-img version 10."));
        if !found {
            eprintln!("no qemu-img 10 here: nothing is compared with it");
        }
        found
    })
}

/// A directory of this test's own, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        // Long runs are faster in memory: BROLGA_SCRATCH=/dev/shm.
        let base = std::env::var_os("BROLGA_SCRATCH").unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into());
        let dir = Path::new(&base).join(format!("img-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Scratch(dir)
    }

    fn run(&self, mut command: Command, line: &str) -> Outcome {
        let words = line.split_whitespace().map(|w| w.trim_matches('\''));
        let out = command.args(words).current_dir(&self.0).stdin(Stdio::null()).output().expect("the program starts");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        Outcome { status: out.status.code().expect("no signal"), out: text(out.stdout), err: text(out.stderr) }
    }

    fn ours(&self, line: &str) -> Outcome {
        self.run(Command::new(PROGRAM), line)
    }

    /// Ours, under the name of the model, so that messages begin alike.
    fn renamed(&self, line: &str) -> Outcome {
        let mut command = Command::new(PROGRAM);
        command.arg0("/usr/bin/qemu-img");
        self.run(command, line)
    }

    fn theirs(&self, line: &str) -> Outcome {
        self.run(Command::new("qemu-img"), line)
    }

    fn good(&self, line: &str) -> String {
        let outcome = self.ours(line);
        assert_eq!((outcome.status, outcome.err.as_str()), (0, ""), "{line}");
        outcome.out
    }

    /// The one line of error, without the names of program and command.
    fn bad(&self, line: &str, status: i32) -> String {
        let outcome = self.ours(line);
        assert_eq!(outcome.status, status, "{line}: {outcome:?}");
        let text = outcome.err.strip_suffix('\n').unwrap_or_else(|| panic!("{line}: {outcome:?}"));
        assert!(!text.contains('\n'), "{line}: several lines: {text}");
        text.strip_prefix("brolga-img: ").unwrap_or_else(|| panic!("{line}: no name in {text}")).to_owned()
    }

    /// Both programs answer alike.
    fn same(&self, line: &str) -> Outcome {
        let mut ours = self.renamed(line);
        if model() {
            let mut theirs = self.theirs(line);
            // The host gives space to files when it writes them out, which may happen between the two.
            for _ in 0..5 {
                if ours == theirs || !line.starts_with("info") {
                    break;
                }
                (ours, theirs) = (self.renamed(line), self.theirs(line));
            }
            assert_eq!(ours, theirs, "{line}");
        }
        ours
    }

    /// Both programs answer with equal JSON and status.
    fn same_json(&self, line: &str) -> Value {
        self.same_json_but(line, None)
    }

    /// The same, a key of the object apart.
    fn same_json_but(&self, line: &str, apart: Option<&str>) -> Value {
        let read = |o: &Outcome| {
            let mut value: Value = serde_json::from_str(&o.out).unwrap_or_else(|e| panic!("{line}: {e}: {o:?}"));
            if let (Some(object), Some(key)) = (value.as_object_mut(), apart) {
                object.remove(key);
            }
            value
        };
        let look = |outcome: Outcome| (read(&outcome), outcome.status);
        let mut ours = look(self.renamed(line));
        if model() {
            let mut theirs = look(self.theirs(line));
            // As above: a file's size on the host is one of the values.
            for _ in 0..5 {
                if ours == theirs || !line.starts_with("info") {
                    break;
                }
                (ours, theirs) = (look(self.renamed(line)), look(self.theirs(line)));
            }
            assert_eq!(ours, theirs, "{line}");
        }
        ours.0
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    /// A sparse file of `size` bytes with pieces of data.
    fn sparse(&self, name: &str, size: u64, pieces: &[(u64, &[u8])]) {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::create(self.path(name)).unwrap();
        file.set_len(size).unwrap();
        for (at, bytes) in pieces {
            file.write_all_at(bytes, *at).unwrap();
        }
    }

    /// Bytes the file takes.
    fn stored(&self, name: &str) -> u64 {
        std::fs::metadata(self.path(name)).unwrap().blocks() * 512
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const M: u64 = 1 << 20;

/// A disk with data, stored zeroes and holes.
fn mixed(dir: &Scratch, name: &str) {
    let noise: Vec<u8> = (0..300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8 | 1).collect();
    dir.sparse(name, 9 * M + 512, &[(0, &noise), (3 * M, &[0; 65536]), (5 * M - 700, &noise), (9 * M, &[7; 512])]);
}
