//! qcow2 images: ours read by the model, the model's read by us.

use super::{M, Scratch, mixed, model};
use std::os::unix::fs::FileExt;

/// The model finds no fault in the image, and neither do we.
pub fn sound(dir: &Scratch, name: &str) {
    let ours = dir.ours(&format!("check -f qcow2 {name}"));
    assert_eq!(ours.status, 0, "{name}: {ours:?}");
    if model() {
        let theirs = dir.theirs(&format!("check -f qcow2 {name}"));
        assert_eq!(theirs.status, 0, "{name}: {theirs:?}");
    }
}

/// The image reads like the raw one, to both programs.
pub fn reads_like(dir: &Scratch, name: &str, raw: &str) {
    dir.good(&format!("convert -f qcow2 {name} back.raw"));
    assert!(dir.bytes("back.raw") == dir.bytes(raw), "{name} and {raw} differ");
    let line = format!("compare -f qcow2 -F raw {name} {raw}");
    assert_eq!(dir.same(&line).status, 0, "{line}");
}

/// All that is told about an image is the same.
pub fn told_alike(dir: &Scratch, name: &str) {
    dir.same(&format!("info {name}"));
    dir.same_json(&format!("info --output=json --backing-chain {name}"));
    dir.same_json(&format!("map --output=json {name}"));
    dir.same(&format!("map --output=json {name}"));
}

#[test]
fn create_with_options() {
    let dir = Scratch::new();
    for options in [
        "",
        "-o cluster_size=512",
        "-o cluster_size=2M",
        "-o compat=0.10",
        "-o lazy_refcounts=on,refcount_bits=64",
        "-o refcount_bits=1",
        "-o compression_type=zstd",
        "-o preallocation=metadata",
        "-o preallocation=falloc",
        "-o preallocation=full",
    ] {
        for size in ["10M", "0", "12345"] {
            let line = format!("create -f qcow2 {options} a.qcow2 {size}");
            if model() {
                assert_eq!(dir.renamed(&line), dir.theirs(&line), "{line}");
            }
            dir.good(&line);
            sound(&dir, "a.qcow2");
            dir.same("info a.qcow2");
        }
    }
    assert!(dir.bad("create -f qcow2 -o extended_l2=on,cluster_size=4k x 1M", 1).contains("extended_l2=on"));
    assert!(dir.bad("create -f qcow2 -b none.raw -F raw x", 1).contains("none.raw"));
    assert!(dir.bad("create -f qcow2 -b none.raw x 1M", 1).contains("add -F qcow2 or -F raw"));
}

#[test]
fn convert_both_ways() {
    let dir = Scratch::new();
    mixed(&dir, "a.raw");
    for options in [
        "",
        "-m 1",
        "-m 16 -W",
        "-S 0",
        "-o cluster_size=512",
        "-o cluster_size=2M,refcount_bits=8",
        "-o compat=0.10",
        "-o preallocation=metadata",
        "-c",
        "-c -o compression_type=zstd,cluster_size=4k",
        "-c -m 4 -W",
    ] {
        dir.good(&format!("convert -O qcow2 {options} a.raw ours.qcow2"));
        sound(&dir, "ours.qcow2");
        reads_like(&dir, "ours.qcow2", "a.raw");
        // In preallocated images the model also looks for holes of the host file.
        let holes = options.contains("preallocation");
        if !holes {
            told_alike(&dir, "ours.qcow2");
        }
        if model() {
            assert_eq!(dir.theirs(&format!("convert -O qcow2 {options} a.raw theirs.qcow2")).status, 0);
            reads_like(&dir, "theirs.qcow2", "a.raw");
            if !holes {
                told_alike(&dir, "theirs.qcow2");
            }
            dir.same_json("check --output=json theirs.qcow2");
            dir.same("check theirs.qcow2");
        }
    }
    dir.good("convert -O qcow2 -c ours.qcow2 again.qcow2");
    assert!(dir.stored("again.qcow2") < dir.stored("a.raw"), "nothing was compressed");
    assert!(dir.bad("map again.qcow2", 1).contains("use --output=json"));
}

#[test]
fn convert_over_a_backing_file() {
    let dir = Scratch::new();
    mixed(&dir, "a.raw");
    dir.good("create -f qcow2 -b a.raw -F raw top.qcow2");
    dir.good("bench -f qcow2 -w -c 10 -d 1 -s 64k -S 512k -o 1M --pattern 77 top.qcow2");
    dir.good("convert top.qcow2 whole.raw");
    dir.good("convert -O qcow2 -B a.raw -F raw top.qcow2 copy.qcow2");
    sound(&dir, "copy.qcow2");
    reads_like(&dir, "copy.qcow2", "whole.raw");
    assert!(dir.stored("copy.qcow2") < 2 * M, "data of the backing file was copied");
    told_alike(&dir, "copy.qcow2");
}

#[test]
fn chains_are_told() {
    let dir = Scratch::new();
    mixed(&dir, "a.raw");
    std::fs::create_dir(dir.path("sub")).unwrap();
    dir.good("create -f qcow2 -b ../a.raw -F raw sub/mid.qcow2");
    dir.good("create -f qcow2 -b sub/mid.qcow2 -F qcow2 top.qcow2 12M");
    for name in ["sub/mid.qcow2", "top.qcow2"] {
        told_alike(&dir, name);
        dir.same(&format!("info --backing-chain {name}"));
        dir.same(&format!("map {name}"));
    }
    std::fs::remove_file(dir.path("a.raw")).unwrap();
    dir.same("info top.qcow2");
    assert!(dir.bad("info --backing-chain top.qcow2", 1).contains("a.raw"));
}

#[test]
fn snapshots() {
    let dir = Scratch::new();
    mixed(&dir, "a.raw");
    dir.good("convert -O qcow2 a.raw a.qcow2");
    dir.good("snapshot -c first a.qcow2");
    dir.good("bench -f qcow2 -w -c 4 -d 1 -s 64k --pattern 77 a.qcow2");
    dir.good("snapshot -c second a.qcow2");
    sound(&dir, "a.qcow2");
    let list = dir.same("snapshot -l a.qcow2");
    assert!(list.out.contains("first") && list.out.contains("second"), "{}", list.out);
    told_alike(&dir, "a.qcow2");
    dir.good("snapshot -a first a.qcow2");
    reads_like(&dir, "a.qcow2", "a.raw");
    dir.good("snapshot -d second a.qcow2");
    dir.good("snapshot -d 1 a.qcow2");
    sound(&dir, "a.qcow2");
    assert_eq!(dir.same("snapshot -l a.qcow2").out, "");
    if model() {
        dir.theirs("snapshot -c theirs a.qcow2");
        assert!(dir.same("snapshot a.qcow2").out.contains("theirs"));
        dir.good("snapshot -a theirs a.qcow2");
        sound(&dir, "a.qcow2");
    }
    assert!(dir.bad("snapshot -d none a.qcow2", 1).contains("none"));
    assert!(dir.bad("snapshot -c x -l a.qcow2", 1).contains("one thing at a time"));
    assert!(dir.bad("snapshot -c x a.raw", 1).contains("raw images have no snapshots"));
}

/// What an image held when a snapshot was taken, its size included.
#[test]
fn snapshots_are_sources() {
    let dir = Scratch::new();
    mixed(&dir, "a.raw");
    dir.good("convert -O qcow2 a.raw a.qcow2");
    dir.good("snapshot -c first a.qcow2");
    dir.good("resize -q a.qcow2 12M");
    dir.good("bench -f qcow2 -w -c 9 -d 1 -s 64k -S 1M --pattern 77 a.qcow2");
    dir.good("snapshot -c second a.qcow2");
    dir.good("bench -f qcow2 -w -c 9 -d 1 -s 64k -S 1M --pattern 78 a.qcow2");
    let before = dir.bytes("a.qcow2");
    for wanted in ["first", "1", "snapshot.name=first", "snapshot.id=1", "snapshot.id=1,snapshot.name=first"] {
        dir.good(&format!("convert -l {wanted} a.qcow2 old.raw"));
        assert!(dir.bytes("old.raw") == dir.bytes("a.raw"), "{wanted}");
    }
    // The model takes the size of now for a snapshot of another size.
    dir.same("measure -O qcow2 -l second a.qcow2");
    dir.same_json("measure --output=json -O qcow2 -l second a.qcow2");
    dir.same("measure -O qcow2 a.qcow2");
    dir.same("measure -O raw a.qcow2");
    dir.good("create -f qcow2 -o compat=0.10 old.qcow2 1G");
    dir.same("measure -O qcow2 old.qcow2");
    if model() {
        dir.theirs("create -q -f qcow2 marked.qcow2 1G");
        for bitmap in ["-g 512 fine", "-g 1M coarse", "usual"] {
            let (options, name) = bitmap.rsplit_once(' ').unwrap_or(("", bitmap));
            assert_eq!(dir.theirs(&format!("bitmap --add {options} marked.qcow2 {name}")).status, 0);
            dir.same("measure -O qcow2 marked.qcow2");
            dir.same_json("measure --output=json -O qcow2 -o cluster_size=4k marked.qcow2");
            told_alike(&dir, "marked.qcow2");
        }
    }
    dir.good("convert -O qcow2 -c -l second a.qcow2 old.qcow2");
    sound(&dir, "old.qcow2");
    if model() {
        assert_eq!(dir.theirs("convert -l second a.qcow2 theirs.raw").status, 0);
        assert_eq!(dir.same("compare old.qcow2 theirs.raw").status, 0);
    }
    for bad in ["third", "snapshot.name=1", "snapshot.id=first", "snapshot.id=2,snapshot.name=first"] {
        assert!(dir.bad(&format!("convert -l {bad} a.qcow2 x.raw"), 1).contains("no such snapshot"), "{bad}");
        if model() {
            assert_eq!(dir.theirs(&format!("convert -l {bad} a.qcow2 x.raw")).status, 1);
        }
    }
    assert!(dir.bad("convert -l snapshot.nam=x a.qcow2 x.raw", 1).contains("snapshot.nam"));
    assert!(dir.bytes("a.qcow2") == before, "looking changed the image");
}

/// What cannot be read becomes zeroes, all else is copied.
#[test]
fn salvage_goes_on() {
    let dir = Scratch::new();
    mixed(&dir, "a.raw");
    dir.good("convert -c -O qcow2 a.raw a.qcow2");
    // The L2 entry of the first cluster, which is compressed, is pointed behind the end of the file.
    let file = std::fs::File::options().read(true).write(true).open(dir.path("a.qcow2")).unwrap();
    let l2 = number(&file, number(&file, 40)) & 0x00ff_ffff_ffff_fe00;
    let entry = number(&file, l2);
    file.write_all_at(&(entry & !0x3f_ffff_ffff | 0x3_ffff_0000).to_be_bytes(), l2).unwrap();
    assert!(dir.bad("convert a.qcow2 x.raw", 1).contains("damaged image"));
    let outcome = dir.ours("convert --salvage a.qcow2 saved.raw");
    assert!(outcome.status == 0 && outcome.err.contains("zeroes stand there now"), "{}", outcome.status);
    assert_eq!(dir.good("convert -q --salvage a.qcow2 saved.raw"), "");
    let (saved, whole) = (dir.bytes("saved.raw"), dir.bytes("a.raw"));
    assert!(saved[..65536].iter().all(|&b| b == 0) && saved[65536..] == whole[65536..]);
    if model() {
        assert_eq!(dir.theirs("convert --salvage a.qcow2 theirs.raw").status, 0);
        assert!(dir.bytes("theirs.raw") == saved);
    }
}

#[test]
fn rates_are_kept() {
    let dir = Scratch::new();
    mixed(&dir, "a.raw");
    for line in ["convert -r 1M a.raw b.raw", "convert -r 1M -m 8 -W -O qcow2 a.raw b.qcow2"] {
        let start = std::time::Instant::now();
        dir.good(line);
        // About 600 KB of data, of which the first piece passes at once.
        assert!(start.elapsed() > std::time::Duration::from_millis(250), "{line}: {:?}", start.elapsed());
        assert!(start.elapsed() < std::time::Duration::from_secs(20), "{line}: {:?}", start.elapsed());
    }
    assert_eq!(dir.same("compare b.raw b.qcow2").status, 0);
}

#[test]
fn resize_both_ways() {
    let dir = Scratch::new();
    mixed(&dir, "a.raw");
    dir.good("convert -O qcow2 a.raw a.qcow2");
    for (size, bytes) in [("+7M", 16 * M + 512), ("20M", 20 * M), ("-15M", 5 * M), ("+4G", 5 * M + (4 << 30))] {
        dir.good(&format!("resize --shrink a.qcow2 {size}"));
        sound(&dir, "a.qcow2");
        assert_eq!(dir.same_json("info --output=json a.qcow2")["virtual-size"], bytes);
    }
    dir.good("resize --shrink a.qcow2 5M");
    std::fs::write(dir.path("cut.raw"), &dir.bytes("a.raw")[..5 * M as usize]).unwrap();
    reads_like(&dir, "a.qcow2", "cut.raw");
    assert!(dir.bad("resize a.qcow2 1M", 1).contains("--shrink"));
}

/// An overlay with data of its own on a base, its content as `whole.raw`.
fn overlay(dir: &Scratch) {
    mixed(dir, "a.raw");
    dir.good("convert -O qcow2 a.raw base.qcow2");
    dir.good("create -f qcow2 -b base.qcow2 -F qcow2 top.qcow2 11M");
    dir.good("bench -f qcow2 -w -c 10 -d 1 -s 48k -S 512k -o 4M --pattern 77 top.qcow2");
    dir.good("convert top.qcow2 whole.raw");
}

#[test]
fn commit_moves_content_down() {
    let dir = Scratch::new();
    for option in ["", "-d", "-b base.qcow2"] {
        overlay(&dir);
        assert_eq!(dir.good(&format!("commit {option} top.qcow2")), "Image committed.\n");
        sound(&dir, "base.qcow2");
        sound(&dir, "top.qcow2");
        reads_like(&dir, "base.qcow2", "whole.raw");
        reads_like(&dir, "top.qcow2", "whole.raw");
        assert_eq!(dir.stored("top.qcow2") < M / 2, option.is_empty(), "{option}: emptied unless told not to");
        told_alike(&dir, "top.qcow2");
    }
    assert!(dir.bad("commit base.qcow2", 1).contains("no backing file"));
    assert!(dir.bad("commit -b whole.raw top.qcow2", 1).contains("not in the chain"));
}

#[test]
fn rebase_keeps_content() {
    let dir = Scratch::new();
    for (target, backing) in [
        ("-b other.qcow2 -F qcow2", Some("other.qcow2")),
        ("-b ''", None),
        ("-c -b other.qcow2 -F qcow2", Some("other.qcow2")),
        ("-c -t writethrough -T unsafe -b ''", None),
    ] {
        overlay(&dir);
        dir.good("create -f qcow2 other.qcow2 3M");
        dir.good("bench -f qcow2 -w -c 20 -d 1 -s 64k --pattern 9 other.qcow2");
        dir.good(&format!("rebase {target} top.qcow2"));
        sound(&dir, "top.qcow2");
        reads_like(&dir, "top.qcow2", "whole.raw");
        let info = dir.same_json("info --output=json top.qcow2");
        assert_eq!(info.get("backing-filename").and_then(|b| b.as_str()), backing);
        let packed = dir.good("check --output=json top.qcow2").contains("compressed-clusters");
        assert_eq!(packed, target.contains("-c"), "{target}");
    }
    overlay(&dir);
    dir.good("convert -O qcow2 a.raw moved.qcow2");
    std::fs::remove_file(dir.path("base.qcow2")).unwrap();
    dir.good("rebase -u -b moved.qcow2 -F qcow2 top.qcow2");
    reads_like(&dir, "top.qcow2", "whole.raw");
    assert!(dir.bad("rebase -b moved.qcow2 top.qcow2", 1).contains("add -F"));
    assert!(dir.bad("rebase -b top.qcow2 -F qcow2 top.qcow2", 1).contains("would lie on itself"));
    assert!(dir.bad("rebase top.qcow2", 1).contains("-b is missing"));
}

/// Big-endian number in a file.
fn number(file: &std::fs::File, at: u64) -> u64 {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, at).unwrap();
    u64::from_be_bytes(bytes)
}

#[test]
fn damage_is_found_and_mended() {
    let dir = Scratch::new();
    mixed(&dir, "a.raw");
    // Cluster 0 is the header, which is used; nothing uses the cluster behind the end.
    for (leak, status) in [(true, 3), (false, 2)] {
        dir.good("convert -O qcow2 a.raw a.qcow2");
        let file = std::fs::File::options().read(true).write(true).open(dir.path("a.qcow2")).unwrap();
        // The offset of the refcount table stands at byte 48; refcounts have 16 bits (qcow2.rst).
        let block = number(&file, number(&file, 48));
        let behind = file.metadata().unwrap().len().div_ceil(65536);
        let (cluster, count) = if leak { (behind, 1u16) } else { (0, 0) };
        file.write_all_at(&count.to_be_bytes(), block + 2 * cluster).unwrap();
        if leak {
            file.set_len((behind + 1) * 65536).unwrap();
        }
        drop(file);
        let found = dir.ours("check a.qcow2");
        assert_eq!(found.status, status, "{found:?}");
        // Whether a leaked cluster belongs to the image, the two do not agree.
        let counted = dir.same_json_but("check --output=json a.qcow2", leak.then_some("image-end-offset"));
        assert_eq!(counted[if leak { "leaks" } else { "corruptions" }], 1);
        std::fs::copy(dir.path("a.qcow2"), dir.path("b.qcow2")).unwrap();
        let mended = dir.ours("check -r all a.qcow2");
        assert_eq!(mended.status, 0, "{mended:?}");
        if model() {
            let theirs = dir.theirs("check -r all b.qcow2");
            // The model mends counts by writing all of them anew, behind the end.
            let told = |out: &str| out.lines().filter(|l| !l.starts_with("Image end")).collect::<Vec<_>>().join("\n");
            assert_eq!((told(&mended.out), mended.status), (told(&theirs.out), theirs.status));
        }
        sound(&dir, "a.qcow2");
        reads_like(&dir, "a.qcow2", "a.raw");
    }
}
