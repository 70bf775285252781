//! `amend` and `bitmap`: what they change, seen by both programs.

use super::qcow2::{reads_like, sound, told_alike};
use super::{Scratch, mixed, model};

/// Ours and the model's image after the same words.
fn both(dir: &Scratch, line: &str) {
    dir.good(&line.replace("IMAGE", "ours.qcow2"));
    sound(dir, "ours.qcow2");
    if model() {
        let theirs = dir.theirs(&line.replace("IMAGE", "theirs.qcow2"));
        assert_eq!(theirs.status, 0, "{line}: {theirs:?}");
        let specific = |name: &str| {
            let mut value = dir.same_json(&format!("info --output=json {name}"));
            // When bitmaps are changed here, they are listed in the same order.
            let data = value["format-specific"]["data"].take();
            (data, value["virtual-size"].take(), value.get("backing-filename").cloned())
        };
        assert_eq!(specific("ours.qcow2"), specific("theirs.qcow2"), "{line}");
    }
}

#[test]
fn versions_and_options_change() {
    let dir = Scratch::new();
    mixed(&dir, "a.raw");
    for name in ["ours.qcow2", "theirs.qcow2"] {
        dir.good(&format!("convert -O qcow2 -o compat=0.10 a.raw {name}"));
    }
    for options in ["compat=1.1", "lazy_refcounts=on", "compat=v3", "lazy_refcounts=off", "compat=0.10", "compat=v2"] {
        both(&dir, &format!("amend -o {options} IMAGE"));
        reads_like(&dir, "ours.qcow2", "a.raw");
    }
    both(&dir, "amend -p -o compat=1.1,lazy_refcounts=on -f qcow2 IMAGE");
    both(&dir, "amend -q -o compat=0.10 IMAGE");
    both(&dir, "amend -o compat=1.1,refcount_bits=16 IMAGE");
    for bits in [1, 64, 2, 32, 4, 8] {
        both(&dir, &format!("amend -o refcount_bits={bits} IMAGE"));
        reads_like(&dir, "ours.qcow2", "a.raw");
        dir.good("bench -q -f qcow2 -w -c 3 -d 1 -s 100k --pattern 5 ours.qcow2");
        dir.good("convert -n -O qcow2 a.raw ours.qcow2");
    }
    dir.good("snapshot -c one ours.qcow2");
    assert!(dir.bad("amend -o refcount_bits=1 ours.qcow2", 1).contains("too many for refcount_bits=1"));
    assert!(dir.bad("amend -o refcount_bits=3 ours.qcow2", 1).contains("there are 1, 2, 4"));
    dir.good("snapshot -d one ours.qcow2");
    both(&dir, "amend -o refcount_bits=16 IMAGE");
    dir.good("amend -o cluster_size=64k,compression_type=zlib ours.qcow2");
    both(&dir, "amend -o size=12M IMAGE");
}

/// Version 2 has no zero clusters: they must go, and what lies below must not come up.
#[test]
fn zero_clusters_are_expanded() {
    let dir = Scratch::new();
    mixed(&dir, "a.raw");
    dir.good("create -f qcow2 -b a.raw -F raw top.qcow2 12M");
    dir.good("convert -n -O qcow2 a.raw top.qcow2");
    dir.sparse("zero.raw", 12 << 20, &[]);
    dir.good("convert -n -O qcow2 zero.raw top.qcow2");
    dir.good("bench -f qcow2 -w -c 10 -d 1 -s 48k -S 512k -o 4M --pattern 77 top.qcow2");
    dir.good("convert top.qcow2 whole.raw");
    assert!(dir.good("map --output=json top.qcow2").contains("\"depth\": 0, \"present\": true, \"zero\": true"));
    dir.good("amend -o compat=0.10 top.qcow2");
    sound(&dir, "top.qcow2");
    reads_like(&dir, "top.qcow2", "whole.raw");
    told_alike(&dir, "top.qcow2");
}

#[test]
fn amend_refuses() {
    let dir = Scratch::new();
    dir.good("create -f qcow2 -o refcount_bits=8 a.qcow2 1M");
    dir.good("create -f qcow2 -o compression_type=zstd z.qcow2 1M");
    dir.good("create -f qcow2 s.qcow2 1M");
    dir.good("snapshot -c one s.qcow2");
    dir.good("create -f qcow2 -o compat=0.10 old.qcow2 1M");
    dir.sparse("a.raw", 1 << 20, &[]);
    let before = dir.bytes("a.qcow2");
    for (line, part) in [
        ("amend a.qcow2", "-o is missing"),
        ("amend -o cluster_size=4k a.qcow2", "-o cluster_size=4k: an image keeps it"),
        ("amend -o compression_type=zstd a.qcow2", "compression_type=zstd: an image keeps it"),
        ("amend -o compat=0.10 a.qcow2", "refcounts of 16 bits"),
        ("amend -o compat=0.10 z.qcow2", "features that compat=0.10 has not"),
        ("amend -o compat=0.10 s.qcow2", "delete them first"),
        ("amend -o refcount_bits=8 old.qcow2", "version 2 has 16 bits"),
        ("amend -o compat=4 a.qcow2", "there are 0.10 (v2) and 1.1 (v3)"),
        ("amend -o lazy_refcounts=on old.qcow2", "not in version 2"),
        ("amend -o backing_file=a.raw a.qcow2", "use rebase -b"),
        ("amend -o foo=1 a.qcow2", "'foo'"),
        ("amend -o size=64k a.qcow2", "use resize --shrink"),
        ("amend -o compat=1.1 a.raw", "raw images have no options"),
        ("amend --force -o compat=1.1 a.qcow2", "--force: not supported"),
        ("bitmap a.qcow2 b", "nothing to do"),
        ("bitmap --add a.qcow2", "BITMAP is missing"),
        ("bitmap --add -g 5k a.qcow2 b", "-g: '5k' is no power of two"),
        ("bitmap --clear -g 4k a.qcow2 b", "-g: only with --add"),
        ("bitmap --clear -b s.qcow2 a.qcow2 b", "-b: only with --merge"),
        ("bitmap --merge x -F raw a.qcow2 b", "-F: there is no source file"),
        ("bitmap --remove a.qcow2 b", "no bitmap 'b'; there are none"),
        ("bitmap --add old.qcow2 b", "version 2 has no bitmaps"),
        ("bitmap --add a.raw b", "raw images have no bitmaps"),
        ("convert --skip-broken-bitmaps a.qcow2 x", "only with --bitmaps"),
    ] {
        let error = dir.bad(line, 1);
        assert!(error.contains(part), "{line}: {error}");
        assert!(dir.bytes("a.qcow2") == before, "{line}: a refusal changes nothing");
        // The model cuts disks, makes images of version 2 with clusters that it has not, and expands snapshots.
        let model_does =
            ["size=64k", "z.qcow2", "compat=0.10 s.qcow2", "--force"].iter().any(|part| line.contains(part));
        if model() && !model_does {
            assert_eq!(dir.theirs(line).status, 1, "{line}");
            std::fs::write(dir.path("a.qcow2"), &before).unwrap();
        }
    }
}

#[test]
fn bitmaps_change() {
    let dir = Scratch::new();
    mixed(&dir, "a.raw");
    for cluster in ["4k", "64k"] {
        for name in ["ours.qcow2", "theirs.qcow2"] {
            dir.good(&format!("convert -O qcow2 -o cluster_size={cluster} a.raw {name}"));
        }
        for words in [
            "--add IMAGE first",
            "--add -g 512 IMAGE fine",
            "--add --disable -g 1M IMAGE coarse",
            "--disable IMAGE first",
            "--enable IMAGE first",
            "--merge fine --clear IMAGE coarse",
            "--remove IMAGE first",
            "--add -g 32k IMAGE usual",
        ] {
            both(&dir, &format!("bitmap {words}"));
            reads_like(&dir, "ours.qcow2", "a.raw");
        }
        assert!(dir.bad("bitmap --add ours.qcow2 fine", 1).contains("there is a bitmap 'fine' already"));
        both(&dir, "bitmap --remove IMAGE usual");
        both(&dir, "bitmap --remove IMAGE fine");
        both(&dir, "bitmap --remove IMAGE coarse");
        dir.good("convert -O qcow2 ours.qcow2 ours.qcow2.copy");
        if model() {
            assert!(dir.theirs("check -q ours.qcow2").status == 0, "no cluster of the bitmaps stays behind");
        }
    }
}

/// The bits that the model made come through merging and copying: it tells them as what is "dirty".
#[test]
fn bits_are_kept() {
    if !model() {
        return;
    }
    let dir = Scratch::new();
    dir.good("create -f qcow2 a.qcow2 16M");
    for (name, granularity) in [("fine", "512"), ("usual", "64k"), ("coarse", "1M")] {
        dir.good(&format!("bitmap --add -g {granularity} a.qcow2 {name}"));
    }
    // QEMU follows these writes in all of them.
    let io = std::process::Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write -P 1 1000k 3k", "-c", "write -P 2 9M 300k", "a.qcow2"])
        .current_dir(&dir.0)
        .output();
    if !io.is_ok_and(|o| o.status.success()) {
        return;
    }
    dir.good("convert -O qcow2 --bitmaps a.qcow2 ours.qcow2");
    assert_eq!(dir.theirs("convert -O qcow2 --bitmaps a.qcow2 theirs.qcow2").status, 0);
    sound(&dir, "ours.qcow2");
    for name in ["merged-fine", "merged-coarse"] {
        let granularity = if name.ends_with("fine") { "4k" } else { "2M" };
        for image in ["ours.qcow2", "theirs.qcow2"] {
            dir.good(&format!("bitmap --add -g {granularity} {image} {name}"));
        }
        for source in ["fine", "coarse"] {
            dir.good(&format!("bitmap --merge {source} ours.qcow2 {name}"));
            assert_eq!(dir.theirs(&format!("bitmap --merge {source} theirs.qcow2 {name}")).status, 0);
        }
    }
    dir.good("bitmap --add ours.qcow2 other");
    dir.good("bitmap --merge usual -b a.qcow2 -F qcow2 ours.qcow2 other");
    sound(&dir, "ours.qcow2");
    let ours = brolga::block::open(&dir.path("ours.qcow2"), &Default::default()).unwrap();
    let theirs = brolga::block::open(&dir.path("theirs.qcow2"), &Default::default()).unwrap();
    let (ours, theirs) = (ours.qcow2().unwrap(), theirs.qcow2().unwrap());
    for name in ["fine", "usual", "coarse", "merged-fine", "merged-coarse"] {
        let bits = ours.bitmap(name).unwrap();
        assert!(bits.bits.iter().any(|&b| b != 0), "{name} is empty");
        assert_eq!(bits, theirs.bitmap(name).unwrap(), "{name}");
    }
    assert_eq!(ours.bitmap("other").unwrap(), ours.bitmap("usual").unwrap());
}

/// A bitmap that a crash left out of date can only be removed.
#[test]
fn stale_bitmaps_are_left_out() {
    let dir = Scratch::new();
    dir.good("create -f qcow2 a.qcow2 1M");
    dir.good("bitmap --add a.qcow2 old");
    dir.good("bench -f qcow2 -w -c 1 -d 1 a.qcow2");
    dir.same("info a.qcow2");
    assert!(!dir.good("info a.qcow2").contains("in-use"), "it followed the write");
    // As a program leaves it that died: the flag is the lowest bit of the word 12 bytes before the name.
    let mut bytes = dir.bytes("a.qcow2");
    let name = bytes.windows(3).rposition(|w| w == b"old").unwrap();
    bytes[name - 9] |= 1;
    std::fs::write(dir.path("a.qcow2"), bytes).unwrap();
    dir.same("info a.qcow2");
    dir.good("bitmap --add a.qcow2 new");
    for line in ["bitmap --clear a.qcow2 old", "bitmap --merge old a.qcow2 new"] {
        assert!(dir.bad(line, 1).contains("it can only be removed"), "{line}");
        if model() {
            assert_eq!(dir.theirs(line).status, 1, "{line}");
        }
    }
    assert!(dir.bad("convert -O qcow2 --bitmaps a.qcow2 b.qcow2", 1).contains("--skip-broken-bitmaps"));
    dir.good("convert -O qcow2 --bitmaps --skip-broken-bitmaps a.qcow2 b.qcow2");
    let info = dir.same_json("info --output=json b.qcow2");
    assert_eq!(info["format-specific"]["data"]["bitmaps"].as_array().map(Vec::len), Some(1));
    dir.good("bitmap --remove a.qcow2 old");
    sound(&dir, "a.qcow2");
}
