//! Raw images.

use super::{M, Outcome, Scratch, mixed, model};
use serde_json::Value;
use std::process::Command;

#[test]
fn create_raw() {
    let dir = Scratch::new();
    for (line, size) in [
        ("create a.raw 10M", 10 * M),
        ("create -f raw a.raw 1000", 1024),
        ("create a.raw 1.5M", 3 * M / 2),
        ("create -f raw -o size=64k a.raw", 65536),
        ("create -fraw -o preallocation=full a.raw 1M", M),
        ("create a.raw 0", 0),
    ] {
        dir.same(line);
        std::fs::remove_file(dir.path("a.raw")).unwrap();
        dir.good(line);
        assert_eq!(std::fs::metadata(dir.path("a.raw")).unwrap().len(), size, "{line}");
    }
    assert_eq!(dir.good("create -q a.raw 1M"), "");
    dir.good("create -o preallocation=falloc a.raw 1M");
    assert!(dir.stored("a.raw") >= M);
}

#[test]
fn create_refuses() {
    let dir = Scratch::new();
    for (line, error) in [
        ("create", "create: FILENAME is missing; write it before SIZE"),
        ("create x", "create: SIZE is missing; write it after FILENAME, like 8G"),
        ("create x 1M 2M", "create: 2M: one argument too many; there are FILENAME and SIZE"),
        ("create -f qcow3 x 1M", "create: -f: no image format 'qcow3'; did you mean qcow2?"),
        ("create x 1Z", "create: SIZE: '1Z' is not a size: write a number with k, M, G or T, like 512M or 2G"),
        ("create -o foo=1 x 1M", "create: -o: unknown or unsupported key 'foo'; known: size, preallocation"),
        ("create -b y -F raw x 1M", "create: -b: raw images cannot have a backing file; use the format qcow2"),
        ("create -F raw x 1M", "create: -F: there is no backing file; add -b FILE"),
        ("create --fromat raw x 1M", "create: --fromat: unknown option; did you mean --format?"),
        ("create -z x 1M", "create: -z: unknown option; --help lists all options"),
        ("create nbd://host/x 1M", "create: nbd://host/x: nbd: is not supported; give a file or a block device"),
    ] {
        assert_eq!(dir.bad(line, 1), error);
        assert!(!dir.path("x").exists(), "{line}: made something");
        if model() && !line.contains("nbd") {
            assert_eq!(dir.theirs(line).status, 1, "{line}");
            let _ = std::fs::remove_file(dir.path("x"));
        }
    }
}

#[test]
fn commands_that_do_not_exist() {
    let dir = Scratch::new();
    assert_eq!(dir.bad("", 1), "no command; --help lists all commands");
    assert_eq!(dir.bad("creaet x 1M", 1), "creaet: unknown command; did you mean create?");
    assert_eq!(dir.bad("frobnicate", 1), "frobnicate: unknown command; --help lists all commands");
    assert_eq!(dir.bad("-T x info", 1), "-T: unknown option before the command; there are --help and --version");
    assert!(dir.bad("amend x", 1).starts_with("amend: -o is missing"));
}

#[test]
fn help_and_version() {
    let dir = Scratch::new();
    assert!(dir.renamed("--version").out.starts_with("qemu-img version 10."));
    assert!(dir.good("--version").starts_with("brolga-img version "));
    let all = dir.good("--help");
    let listed = all.lines().filter_map(|l| l.strip_prefix("  ")).filter_map(|l| l.split_whitespace().next());
    let mut count = 0;
    for command in listed {
        count += 1;
        let help = dir.good(&format!("{command} --help"));
        assert!(help.contains(&format!("brolga-img {command} [options]")), "{help}");
    }
    assert!(count >= 10, "{all}");
}

#[test]
fn info_raw() {
    let dir = Scratch::new();
    mixed(&dir, "a.raw");
    dir.same("info a.raw");
    std::fs::write(dir.path("odd.raw"), [1; 1000]).unwrap();
    dir.same("info odd.raw");
    dir.same("info -f raw a.raw");
    dir.same("info --image-opts driver=raw,file.filename=a.raw");
    dir.same_json("info --output=json a.raw");
    let value = dir.same_json("info -U --backing-chain --output json a.raw");
    assert_eq!(value[0]["virtual-size"], 9 * M + 512);
    assert_eq!(value[0]["format"], "raw");
    assert!(dir.bad("info none.raw", 1).starts_with("info: none.raw: cannot open: No such file"));
    assert_eq!(dir.bad("info --output=xml a.raw", 1), "info: --output: there are human and json, no 'xml'");
    assert_eq!(dir.bad("info a.raw b.raw", 1), "info: b.raw: one argument too many; there are FILENAME");
    assert_eq!(dir.bad("info", 1), "info: FILENAME is missing; write it last");
    let both = dir.bad("info -f raw --image-opts driver=raw,filename=a.raw", 1);
    assert_eq!(both, "info: --image-opts: cannot stand beside --format; write driver= in the list");
}

#[test]
fn map_raw() {
    let dir = Scratch::new();
    mixed(&dir, "a.raw");
    dir.sparse("hole.raw", 4 * M, &[]);
    for name in ["a.raw", "hole.raw"] {
        for options in ["", "--output=json", "--output=json -s 1M -l 5M", "--start-offset=2M", "--max-length=4k"] {
            dir.same(&format!("map -f raw {options} {name}"));
        }
    }
    let all: Value = serde_json::from_str(&dir.good("map --output=json a.raw")).unwrap();
    let lengths: u64 = all.as_array().unwrap().iter().map(|e| e["length"].as_u64().unwrap()).sum();
    assert_eq!(lengths, 9 * M + 512);
}

#[test]
fn check_raw() {
    let dir = Scratch::new();
    dir.sparse("a.raw", M, &[]);
    assert_eq!(dir.bad("check a.raw", 63), "check: a.raw: raw images hold nothing that could be checked");
    assert_eq!(dir.bad("check none.raw", 1).split(':').nth(1), Some(" none.raw"));
    assert_eq!(dir.bad("check -r most a.raw", 1), "check: -r: there are leaks and all, no 'most'");
    assert!(dir.bad("check -r all -U a.raw", 1).contains("leave -U out"));
    if model() {
        for line in ["check a.raw", "check none.raw", "check -r most a.raw", "check -r all -U a.raw", "check"] {
            assert_eq!(dir.ours(line).status, dir.theirs(line).status, "{line}");
        }
    }
}

#[test]
fn resize_raw() {
    let dir = Scratch::new();
    for (size, expected) in [("3M", 3 * M), ("+1M", 3 * M), ("-- -1M", M), ("-1M", M), ("+0", 2 * M)] {
        let run = |program: &dyn Fn(&str) -> Outcome| {
            dir.sparse("a.raw", 2 * M, &[(0, &[1; 4096])]);
            let outcome = program(&format!("resize -f raw --shrink a.raw {size}"));
            (outcome, dir.bytes("a.raw"))
        };
        let ours = run(&|line| dir.renamed(line));
        assert_eq!((ours.0.status, ours.1.len() as u64), (0, expected), "{size}: {:?}", ours.0);
        assert_eq!(ours.0.out, "Image resized.\n");
        // Above, a warning stands where both say something about shrinking.
        if model() {
            assert!(ours == run(&|line| dir.theirs(line)), "{size}");
        }
    }
    dir.good("resize -f raw --shrink a.raw 1000");
    assert_eq!(std::fs::metadata(dir.path("a.raw")).unwrap().len(), 1024, "disks are whole sectors");
    dir.sparse("a.raw", 2 * M, &[]);
    let refused = dir.bad("resize -f raw a.raw 1M", 1);
    assert!(refused.ends_with("add --shrink to do it"), "{refused}");
    assert!(dir.bad("resize -f raw --shrink a.raw -2M", 1).contains("must lie above 0"));
    assert!(dir.bad("resize -f raw a.raw 1Z", 1).contains("is not a size"));
    assert_eq!(dir.bad("resize a.raw", 1), "resize: SIZE is missing; write it last");
    assert!(dir.bad("resize -f raw --preallocation=metadata a.raw 3M", 1).contains("preallocation=metadata"));
    assert_eq!(std::fs::metadata(dir.path("a.raw")).unwrap().len(), 2 * M, "a refusal changes nothing");
    let guessed = dir.ours("resize a.raw +1M");
    assert!(guessed.status == 0 && guessed.err.contains("say so with -f raw"), "{guessed:?}");
    assert_eq!(dir.good("resize -q -f raw --preallocation=full a.raw +1M"), "");
    assert!(dir.stored("a.raw") >= M);
}

#[test]
fn convert_raw() {
    let dir = Scratch::new();
    mixed(&dir, "a.raw");
    let content = dir.bytes("a.raw");
    for options in [
        "",
        "-m 1",
        "-m 16 -W",
        "-S 64k",
        "-t writeback",
        "-t writethrough",
        "-t none -T none",
        "-t directsync",
        "-r 100M --salvage",
        "-f raw -O raw",
        "-o size=9437696",
    ] {
        assert_eq!(dir.good(&format!("convert {options} a.raw b.raw")), "");
        assert!(dir.bytes("b.raw") == content, "{options}");
        assert!(dir.stored("b.raw") < M, "{options}: {} bytes stored", dir.stored("b.raw"));
    }
    dir.good("convert -S 0 a.raw b.raw");
    assert!(dir.bytes("b.raw") == content && dir.stored("b.raw") >= 9 * M);
    dir.good("convert -o preallocation=falloc a.raw b.raw");
    assert!(dir.bytes("b.raw") == content && dir.stored("b.raw") >= 9 * M);
    dir.good("convert a.raw a.raw twice.raw");
    assert!(dir.bytes("twice.raw") == [content.clone(), content.clone()].concat());
    if model() {
        dir.theirs("convert a.raw theirs.raw");
        assert_eq!(dir.same("compare b.raw theirs.raw").status, 0);
    }
}

#[test]
fn convert_into_what_is_there() {
    let dir = Scratch::new();
    mixed(&dir, "a.raw");
    let content = dir.bytes("a.raw");
    std::fs::write(dir.path("full.raw"), vec![0xee; 10 * M as usize]).unwrap();
    dir.good("convert -n a.raw full.raw");
    let full = dir.bytes("full.raw");
    assert!(full[..content.len()] == content[..], "zeroes reach a target that had data");
    assert!(full[content.len()..].iter().all(|&b| b == 0xee) && full.len() as u64 == 10 * M);
    dir.sparse("zero.raw", 10 * M, &[]);
    dir.good("convert -n --target-is-zero --target-image-opts a.raw driver=raw,file.filename=zero.raw");
    assert!(dir.bytes("zero.raw")[..content.len()] == content[..]);
    dir.sparse("small.raw", M, &[]);
    assert!(dir.bad("convert -n a.raw small.raw", 1).contains("make it larger"));
    assert!(dir.bad("convert -n a.raw none.raw", 1).contains("none.raw: cannot open"));
}

#[test]
fn convert_refuses() {
    let dir = Scratch::new();
    mixed(&dir, "a.raw");
    let content = dir.bytes("a.raw");
    for (line, part) in [
        ("convert a.raw", "TARGET is missing"),
        ("convert", "SOURCE is missing"),
        ("convert -S 5 a.raw b.raw", "-S: '5' is no multiple of 512"),
        ("convert -m 20 a.raw b.raw", "-m: 20 is out of range: 1 to 16"),
        ("convert -t nonsense a.raw b.raw", "-t: no cache mode 'nonsense'"),
        ("convert -O vmdk a.raw b.raw", "vmdk images cannot be made; there are qcow2 and raw"),
        ("convert --target-is-zero a.raw b.raw", "--target-is-zero: "),
        ("convert -o size=1M a.raw b.raw", "-o size: less than"),
        ("convert -F raw a.raw b.raw", "-F: there is no backing file"),
        ("convert a.raw a.raw", "a.raw: source and target at once"),
        ("convert a.raw ./a.raw", "a.raw: source and target at once"),
        ("convert -r 0 a.raw b.raw", "-r: '0' bytes a second would never end"),
        ("convert -l x a.raw b.raw", "a.raw: raw images have no snapshots"),
        ("convert -l x a.raw a.raw b.raw", "-l: only with one source"),
        ("convert --object secret,id=s a.raw b.raw", "--object: not supported: there are no secrets"),
        ("convert none.raw b.raw", "none.raw: cannot open"),
    ] {
        let error = dir.bad(line, 1);
        assert!(error.contains(part), "{line}: {error}");
        assert!(!dir.path("b.raw").exists(), "{line}: made something");
    }
    assert!(dir.bytes("a.raw") == content);
}

#[test]
fn progress_is_one_line() {
    let dir = Scratch::new();
    mixed(&dir, "a.raw");
    for line in ["convert -p a.raw b.raw", "compare -p a.raw b.raw"] {
        let out = dir.good(line);
        let shown = out.split_once('\n').unwrap().0;
        let steps: Vec<f64> = shown
            .split('\r')
            .map(|s| s.strip_prefix("    (").and_then(|s| s.strip_suffix("/100%)")).expect(s).parse().unwrap())
            .collect();
        assert!(steps.is_sorted() && steps.first() == Some(&0.0) && steps.last() == Some(&100.0), "{line}: {steps:?}");
        assert!(steps.len() > 3, "{line}: {steps:?}");
    }
    assert_eq!(dir.good("convert -q -p a.raw b.raw"), "");
}

#[test]
fn compare_raw() {
    let dir = Scratch::new();
    mixed(&dir, "a.raw");
    let content = dir.bytes("a.raw");
    std::fs::write(dir.path("full.raw"), &content).unwrap();
    let mut other = content.clone();
    other[5_000_000] ^= 1;
    std::fs::write(dir.path("other.raw"), &other).unwrap();
    let longer = |tail: &[u8]| [&content[..], &vec![0; M as usize], tail].concat();
    std::fs::write(dir.path("longer.raw"), longer(&[])).unwrap();
    std::fs::write(dir.path("tail.raw"), longer(&[1; 512])).unwrap();
    dir.sparse("hole.raw", content.len() as u64, &[]);
    for (line, status) in [
        ("compare a.raw a.raw", 0),
        ("compare a.raw full.raw", 0),
        ("compare -s a.raw a.raw", 0),
        ("compare a.raw other.raw", 1),
        ("compare a.raw hole.raw", 1),
        ("compare hole.raw a.raw", 1),
        ("compare a.raw longer.raw", 0),
        ("compare longer.raw a.raw", 0),
        ("compare -s a.raw longer.raw", 1),
        ("compare a.raw tail.raw", 1),
        ("compare tail.raw a.raw", 1),
        ("compare -q a.raw other.raw", 1),
    ] {
        let line = line.replace("compare", "compare -f raw -F raw");
        assert_eq!(dir.same(&line).status, status, "{line}");
    }
    assert!(dir.bad("compare a.raw none.raw", 2).contains("none.raw: cannot open"));
    assert_eq!(dir.bad("compare -T x a.raw a.raw", 2).split(':').nth(1), Some(" -T"));
}

#[test]
fn measure() {
    let dir = Scratch::new();
    mixed(&dir, "a.raw");
    for line in [
        "measure --size 10M",
        "measure --size 1000",
        "measure a.raw",
        "measure -O qcow2 a.raw",
        "measure -O qcow2 --size 0",
        "measure -O qcow2 --size 10G",
        "measure -O qcow2 -o cluster_size=512 --size 1G",
        "measure -O qcow2 -o cluster_size=2M --size 4T",
        "measure -O qcow2 -o refcount_bits=1 --size 100G",
        "measure -O qcow2 -o refcount_bits=64,cluster_size=4k a.raw",
        "measure -O qcow2 -o preallocation=full a.raw",
        "measure -O qcow2 -o preallocation=metadata a.raw",
        "measure -O qcow2 --size 10000001",
    ] {
        assert_eq!(dir.same(line).status, 0, "{line}");
        dir.same_json(&line.replace("measure", "measure --output=json"));
    }
    assert_eq!(dir.bad("measure", 1), "measure: either --size SIZE or one FILENAME is needed");
    assert_eq!(dir.bad("measure --size 1M a.raw", 1), "measure: either --size SIZE or one FILENAME is needed");
}

#[test]
fn dd_raw() {
    let dir = Scratch::new();
    mixed(&dir, "a.raw");
    // With skip= and count= the model takes skipped blocks off the count, against its own manual and dd(1).
    for operands in ["", "bs=1M", "bs=1M count=1", "bs=4k count=700", "skip=18000", "bs=3000 count=5"] {
        let line = |of: &str| format!("dd -f raw if=a.raw of={of} {operands}");
        dir.good(&line("ours.raw"));
        if model() {
            assert_eq!(dir.theirs(&line("theirs.raw")).status, 0, "{operands}");
            assert!(dir.bytes("ours.raw") == dir.bytes("theirs.raw"), "{operands}");
        }
    }
    dir.good("dd if=a.raw of=ours.raw bs=1M skip=3 count=2");
    assert!(dir.bytes("ours.raw") == dir.bytes("a.raw")[3 * M as usize..5 * M as usize]);
    assert!(dir.bad("dd if=a.raw", 1).contains("of= is missing"));
    assert!(dir.bad("dd if=a.raw of=x.raw conut=3", 1).contains("did you mean count?"));
    assert!(dir.bad("dd if=a.raw of=x.raw bs=0", 1).contains("bs=0"));
    assert!(dir.bad("dd if=a.raw of=a.raw", 1).contains("source and target"));
}

#[test]
fn bench_raw() {
    let dir = Scratch::new();
    dir.sparse("a.raw", M, &[(0, &[9; 4096])]);
    let head = |text: String| text.lines().filter(|l| !l.starts_with("Run completed")).collect::<Vec<_>>().join("\n");
    for options in ["-c 100 -d 4", "-c 100 -s 64k -S 4k -o 8k", "-w -c 20 -d 2 --flush-interval 5 --pattern 85"] {
        let line = format!("bench -f raw {options} a.raw");
        let ours = dir.good(&line);
        assert!(ours.lines().last().unwrap().starts_with("Run completed in "), "{ours}");
        if model() {
            assert_eq!(head(ours), head(dir.theirs(&line).out), "{line}");
        }
    }
    assert!(dir.bytes("a.raw")[..20 * 4096].iter().all(|&b| b == 85));
    assert!(dir.bytes("a.raw")[20 * 4096..].iter().all(|&b| b == 0));
    assert!(dir.bad("bench -w -d 8 --flush-interval 5 a.raw", 1).contains("not below the depth"));
    assert!(dir.bad("bench --pattern 1 a.raw", 1).contains("add -w"));
    assert!(dir.bad("bench -s 2M a.raw", 1).contains("beyond the end"));
    assert!(dir.bad("bench -s 1G a.raw", 1).contains("make -d or -s smaller"));
    assert!(dir.bad("bench -i uring a.raw", 1).contains("there are threads, native and io_uring"));
    assert!(dir.bad("bench -n a.raw", 1).contains("-n: needs -t none"));
    assert!(dir.bad("bench -i native -t writeback a.raw", 1).contains("-i native: needs -t none"));
    for way in ["-i threads", "-i io_uring", "-i io_uring -t none", "-n -t none", "-i native -t directsync"] {
        let line = format!("bench -w -q -c 64 -d 7 --flush-interval 10 --pattern 33 {way} -f raw a.raw");
        let line = if dir.ours(&format!("bench -q -c 1 {way} -f raw a.raw")).status == 0 { line } else { continue };
        dir.sparse("a.raw", M, &[(0, &[1; 64 * 4096])]);
        dir.good(&line);
        assert!(dir.bytes("a.raw")[..64 * 4096].iter().all(|&b| b == 33), "{way}");
        dir.good(&format!("bench -q -c 500 -d 9 -s 5000 {way} -f raw a.raw"));
    }
}

/// Starts a program for which the kernel has no io_uring (system call 425 answers ENOSYS), by a filter as seccomp(2)
/// takes it: load the number, compare, answer.
const NO_RING: &str = "
import ctypes, os, struct, sys
code = b''.join(struct.pack('HBBI', *line) for line in
                [(0x20, 0, 0, 0), (0x15, 0, 1, 425), (6, 0, 0, 0x50000 | 38), (6, 0, 0, 0x7fff0000)])
class Program(ctypes.Structure):
    _fields_ = [('length', ctypes.c_ushort), ('code', ctypes.c_char_p)]
call = ctypes.CDLL(None).prctl
if call(38, 1, 0, 0, 0) or call(22, 2, ctypes.byref(Program(4, code)), 0, 0):
    sys.exit(99)
os.execv(sys.argv[1], sys.argv[1:])
";

#[test]
fn kernels_without_a_ring_serve_by_threads() {
    let dir = Scratch::new();
    dir.sparse("a.raw", M, &[(0, &[1; 64 * 4096])]);
    let without = |options: &str| {
        let mut python = Command::new("python3");
        python.args(["-c", NO_RING, super::PROGRAM]).args(options.split(' '));
        dir.run(python, "")
    };
    if Command::new("python3").args(["-c", NO_RING, "/bin/true"]).status().map_or(true, |status| !status.success()) {
        return eprintln!("not tested: no python3, or no filters here");
    }
    let refused = without("bench -i io_uring -c 1 -f raw a.raw");
    assert_eq!((refused.status, refused.err.lines().count()), (1, 1), "{refused:?}");
    assert!(refused.err.contains("aio=io_uring: this kernel has no io_uring or does not allow it"), "{refused:?}");
    let served = without("bench -w -q -i native -t none -c 64 -d 7 --pattern 44 -f raw a.raw");
    assert!(served.status == 0 || served.err.contains("cannot do without its cache"), "{served:?}");
    assert!(served.status != 0 || dir.bytes("a.raw")[..64 * 4096].iter().all(|&b| b == 44));
}

/// `convert -C`: the host copies what it can, and the rest is read.
#[test]
fn copies_by_the_host() {
    let dir = Scratch::new();
    mixed(&dir, "a.raw");
    dir.good("convert -O qcow2 a.raw a.qcow2");
    dir.good("convert -c -O qcow2 a.raw c.qcow2");
    dir.good("create -f qcow2 -b a.raw -F raw over.qcow2");
    for source in ["a.raw", "a.qcow2", "c.qcow2", "over.qcow2"] {
        for options in ["-C", "-C -W -m 16", "-C -m 1 -p", "-C -O qcow2", "-C -t none", "-C -r 1G"] {
            dir.good(&format!("convert {options} {source} b.img"));
            dir.good("compare a.raw b.img");
        }
        // Into what is there: qcow2 has places then.
        dir.good("convert -S 0 -O qcow2 a.raw there.qcow2");
        dir.good(&format!("convert -n -C -O qcow2 {source} there.qcow2"));
        dir.good("compare a.raw there.qcow2");
        dir.good("check there.qcow2");
    }
    assert!(dir.bad("convert -C -S 4k a.raw b.img", 1).contains("-C: the host copies what is there, so --sparse-size"));
    assert!(dir.bad("convert -C -c -O qcow2 a.raw b.img", 1).contains("--compress"));
    if model() {
        assert_eq!(dir.theirs("convert -C -S 4k a.raw b.img").status, 1);
        assert_eq!(dir.theirs("convert -C -c -O qcow2 a.raw b.img").status, 1);
    }
}

/// Images of others: read, and never written.
#[test]
fn formats_of_others_are_read() {
    if !model() {
        return;
    }
    let dir = Scratch::new();
    mixed(&dir, "a.raw");
    for format in ["vmdk", "vhdx"] {
        let name = format!("a.{format}");
        assert_eq!(dir.theirs(&format!("convert -f raw -O {format} a.raw {name}")).status, 0);
        for options in ["-O qcow2", &format!("-f {format} -O raw"), "-c -O qcow2"] {
            dir.good(&format!("convert {options} {name} b.img"));
            dir.good("compare a.raw b.img");
        }
        dir.good(&format!("compare -f {format} {name} a.raw"));
        assert!(dir.good(&format!("info {name}")).contains(&format!("file format: {format}")));
        dir.good(&format!("create -f qcow2 -b {name} -F {format} over.qcow2"));
        dir.good("compare over.qcow2 a.raw");
        assert!(dir.bad(&format!("resize {name} 1G"), 1).contains("can only be read"));
        assert!(dir.bad(&format!("check {name}"), 63).contains("nothing that could be checked"));
        assert!(dir.bad(&format!("create -f {format} x 1M"), 1).contains("cannot be made"));
        assert!(dir.bad(&format!("snapshot -c one {name}"), 1).contains("can only be read"));
    }
    assert_eq!(dir.theirs("convert -f raw -O vdi a.raw a.vdi").status, 0);
    assert!(dir.bad("convert a.vdi b.raw", 1).contains("convert it: qemu-img convert -f vdi -O qcow2"));
}

/// A host that takes no more: the copy ends with one line, whatever its threads were doing.
#[test]
fn full_disk() {
    let dir = Scratch::new();
    mixed(&dir, "a.raw");
    for options in ["", "-m 16 -W", "-m 1", "-S 0 -m 16", "-O qcow2", "-O qcow2 -W -m 16", "-O qcow2 -S 0"] {
        let line = format!("trap '' XFSZ; ulimit -f 600; exec {} convert {options} a.raw b.img", super::PROGRAM);
        let mut shell = Command::new("sh");
        shell.args(["-c", &line]);
        let outcome = dir.run(shell, "");
        assert_eq!(outcome.status, 1, "{options}: {outcome:?}");
        assert!(outcome.err.starts_with("brolga-img: convert: b.img: cannot "), "{options}: {outcome:?}");
        assert_eq!(outcome.err.lines().count(), 1, "{options}: {outcome:?}");
    }
}
