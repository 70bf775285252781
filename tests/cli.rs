//! Bad command lines through the real program: one line on standard error that names option, cause and remedy, status 1,
//! nothing on standard output, nothing started.
#![forbid(unsafe_code)]

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_brolga");

fn call_as(name: &str, args: &[&str]) -> Output {
    Command::new(PROGRAM).arg0(name).args(args).stdin(Stdio::null()).output().expect("the program starts")
}

fn call(args: &[&str]) -> Output {
    call_as("brolga", args)
}

/// The error line without the program's name, after checking all the rest.
fn error(args: &[&str]) -> String {
    let out = call(args);
    let text = String::from_utf8(out.stderr).expect("UTF-8");
    assert_eq!(out.status.code(), Some(1), "{args:?}: {text}");
    assert!(out.stdout.is_empty(), "{args:?}: wrote to standard output");
    let line = text.strip_suffix('\n').expect("a complete line");
    assert!(!line.contains('\n'), "{args:?}: several lines: {text}");
    line.strip_prefix("brolga: ").unwrap_or_else(|| panic!("{args:?}: no name in {line}")).to_owned()
}

/// A directory of this test's own, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cli-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn file(&self, name: &str, content: &[u8]) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn options_that_do_not_exist() {
    assert_eq!(error(&["-kernle", "x"]), "-kernle: unknown option; did you mean -kernel?");
    assert_eq!(error(&["--frobnicate"]), "--frobnicate: unknown option; -help lists all options");
    assert_eq!(error(&["-enable-kvm"]), "-enable-kvm: not supported yet; use -accel jit");
    assert!(error(&["-vnc", "x"]).starts_with("-vnc: not supported yet; "));
    assert_eq!(error(&["-drive", "file=x"]), "-drive file=x: no such file; check the path");
    assert_eq!(error(&["-kernel"]), "-kernel: needs a value: -kernel FILE");
    assert_eq!(error(&["disk.img"]), "-hda disk.img: no such file; check the path");
    assert!(error(&[]).starts_with("nothing to start; give a disk image or -hda FILE, -cdrom FILE, -kernel FILE, "));
}

#[test]
fn networks() {
    let machine = ["-nodefaults", "-device", "loader,addr=0,cpu-num=0"];
    let refused = |extra: &[&str]| error(&[&machine, extra].concat());
    assert_eq!(refused(&["-netdev", "usr,id=n"]), "-netdev usr: unknown kind; did you mean user?");
    assert_eq!(
        refused(&["-netdev", "user,id=net0", "-device", "e1000,netdev=net"]),
        "-device e1000,netdev=net: there is no -netdev with id=net; did you mean net0?"
    );
    assert_eq!(
        refused(&["-netdev", "user,id=n,hostfwd=tcp::2222"]),
        "-netdev hostfwd=tcp::2222: the guest's end is missing; write tcp::2222-:22 for the guest's port 22"
    );
    let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = holder.local_addr().expect("its address").port();
    let line = refused(&["-netdev", &format!("user,id=n,hostfwd=tcp:127.0.0.1:{port}-:22")]);
    let (start, id) = (
        format!("-netdev user,id=n: hostfwd=tcp:127.0.0.1:{port}-10.0.2.15:22: port {port} is taken"),
        std::process::id(),
    );
    assert!(line.starts_with(&format!("{start} by process {id} (")), "{line}");
    assert!(line.ends_with("); end that, or choose another, or 0 for a free one"), "{line}");
    let line = refused(&["-netdev", "stream,id=n,addr.type=unix,addr.path=/does/not/exist"]);
    assert!(
        line.contains("cannot connect to /does/not/exist: no such file or directory; start the other end"),
        "{line}"
    );
}

#[test]
fn files() {
    let dir = Scratch::new("files");
    let kernel = dir.file("kernel", b"text");
    let empty = dir.file("empty", b"");
    assert_eq!(error(&["-kernel", "/no/such"]), "-kernel /no/such: no such file; check the path");
    assert_eq!(error(&["-kernel", "/"]), "-kernel /: is a directory; name a file");
    assert_eq!(error(&["-kernel", &empty]), format!("-kernel {empty}: the file is empty"));
    assert_eq!(error(&["-kernel", "/dev/zero"]), "-kernel /dev/zero: is not a regular file; name a file");
    assert_eq!(error(&["-kernel", &kernel, "-initrd", "/no/such"]), "-initrd /no/such: no such file; check the path");
    assert_eq!(
        error(&["-device", "loader,file=/no/such,addr=0"]),
        "-device loader,file=/no/such: no such file; check the path"
    );
    assert_eq!(error(&["-bios", "/no/such"]), "-bios /no/such: no such file; check the path");
    assert_eq!(
        error(&["-device", "loader,addr=0,cpu-num=0", "-serial", "file:/no/such/dir"]),
        "-serial file:/no/such/dir: cannot be written: no such file or directory; choose another file"
    );
    assert_eq!(
        error(&["-kernel", &kernel, "-D", "/no/such/dir"]),
        "-D /no/such/dir: cannot be written: no such file or directory; choose another file"
    );
    assert_eq!(
        error(&["-kernel", &kernel, "-kernel", &kernel]),
        format!("-kernel {kernel}: given twice (first as {kernel}); give it once")
    );
    assert_eq!(
        error(&["-kernel", &kernel, "-nographic"]),
        format!(
            "-kernel {kernel}: not a kernel; give a Linux bzImage, an ELF kernel with a PVH note, or a multiboot kernel"
        )
    );
    assert_eq!(
        error(&["-kernel", "two\nlines"]),
        "-kernel two\\nlines: no such file; check the path",
        "still one line"
    );
}

#[test]
fn unreadable_file() {
    let dir = Scratch::new("unreadable");
    let kernel = dir.file("kernel", b"text");
    std::fs::set_permissions(&kernel, std::fs::Permissions::from_mode(0o0)).unwrap();
    if std::fs::File::open(&kernel).is_ok() {
        return; // The super-user may read everything: there is no such file for us.
    }
    assert_eq!(error(&["-kernel", &kernel]), format!("-kernel {kernel}: permission denied; make the file readable"));
}

#[test]
fn values() {
    let dir = Scratch::new("values");
    let kernel = dir.file("kernel", b"text");
    let with = |args: &[&str]| error(&[&["-kernel", &kernel], args].concat());
    assert_eq!(with(&["-m", "0"]), "-m 0: too little memory: a PC needs at least 1M");
    let huge = with(&["-m", "1000T"]);
    assert!(huge.starts_with("-m 1000T: more than the host's ") && huge.ends_with(" of memory and swap; give less"));
    assert_eq!(with(&["-m", "4", "G"]), "G: stray word after -m 4; sizes are written in one word: -m 4G");
    assert_eq!(
        with(&["-m", "size=2048,slots=4,maxmem=8192"]),
        "-m slots=4: memory hot-plug is not supported yet; give -m SIZE only"
    );
    assert!(with(&["-smp", "256"]).starts_with("-smp 256: more than 255 processors"));
    assert_eq!(with(&["-machine", "q35"]), "-machine q35: this board is not supported yet; use -machine pc");
    assert_eq!(with(&["-accel", "kvm"]), "-accel kvm: not supported yet; use -accel jit");
    assert_eq!(
        with(&["-serial", "stdio", "-debugcon", "stdio"]),
        "-debugcon stdio: standard input and output are taken by serial0; use -serial mon:stdio to share them with \
         the monitor, or another target"
    );
    assert_eq!(with(&["-d", "in_amm"]), "-d in_amm: 'in_amm' is not a log item; did you mean in_asm?");
    assert_eq!(
        with(&["-display", "gtk"]),
        "-display gtk: there is no display yet; use -display none, or -nographic for a console"
    );
    assert_eq!(
        with(&["-device", "isa-debug-exti,iobase=0xf4"]),
        "-device isa-debug-exti: unknown model; did you mean isa-debug-exit?"
    );
    assert_eq!(with(&["-icount", "11"]), "-icount shift=11: 11 is out of range: 0 to 10, or auto");
    assert_eq!(with(&["-icount", "sleep=off"]), "-icount: no shift; use shift=auto, or shift=0 to shift=10");
    assert_eq!(
        with(&["-icount", "shift=1,sleep=off,align=on"]),
        "-icount align=on: sleep=off lets guest time run ahead; leave one of them out"
    );
    assert_eq!(
        with(&["-icount", "shift=1,rr=record,rrfile=x"]),
        "-icount rr=record: recording and replaying is not supported; leave rr= out"
    );
    assert_eq!(
        with(&["-icount", "1", "-accel", "tcg,thread=multi", "-smp", "2"]),
        "-accel thread=multi: with -icount one processor runs at a time; use thread=single"
    );
    assert_eq!(
        with(&["-icount", "1", "-accel", "jit,check=on"]),
        "-icount: code that is checked runs twice; leave -accel check= out"
    );
    assert!(with(&["-seed", "x"]).starts_with("-seed x: "));
    assert_eq!(
        with(&["-global", "x.y=z"]),
        "-global: not supported yet; give the property to the device itself with -device or -machine"
    );
}

#[test]
fn help_and_version() {
    let text = |name, args: &[&str]| {
        let out = call_as(name, args);
        assert!(out.status.success() && out.stderr.is_empty());
        String::from_utf8(out.stdout).unwrap()
    };
    let help = text("brolga", &["-help"]);
    assert_eq!(help, text("brolga", &["--help"]));
    assert_eq!(help, text("brolga", &["-h"]));
    assert!(help.lines().any(|l| l.starts_with("-kernel FILE")));
    assert!(help.lines().any(|l| l.starts_with("-gdb ")));
    assert!(help.lines().all(|l| !l.starts_with("-spice")), "what is listed works");
    assert!(text("brolga", &["--version"]).starts_with("Brolga emulator version "));
    let qemu = text("/usr/bin/qemu-system-x86_64", &["--version"]);
    let version = qemu.strip_prefix("QEMU emulator version ").expect("QEMU's form");
    let numbers: Vec<u32> = version.split(' ').next().unwrap().split('.').map(|p| p.parse().unwrap()).collect();
    assert_eq!(numbers.len(), 3);
    for (option, word) in [("-machine", "pc"), ("-accel", "interp"), ("-device", "loader"), ("-d", "guest_errors")] {
        assert!(text("brolga", &[option, "help"]).contains(word), "{option}");
    }
}

#[test]
fn errors_carry_the_name_that_was_called() {
    let out = call_as("/opt/qemu-system-x86_64", &["-m", "0"]);
    assert!(String::from_utf8(out.stderr).unwrap().starts_with("qemu-system-x86_64: -m 0: "));
}
