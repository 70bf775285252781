//! Random chains written by `qemu-io`: what we make of them reads as what `qemu-img` makes of them.

use super::random::Random;
use super::{Scratch, model};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

/// Whether `qemu-io` is there to write with.
fn writer() -> bool {
    model() && Command::new("qemu-io").arg("--version").output().is_ok_and(|o| o.status.success())
}

/// Writes, zeroes and discards at random places of a disk of `size` bytes.
fn scribble(dir: &Scratch, name: &str, format: &str, size: u64, random: &mut Random) {
    let mut command = Command::new("qemu-io");
    command.args(["-f", format]).arg(dir.path(name));
    for _ in 0..random.below(12) {
        let len = (random.below(400_000) + 1).next_multiple_of(random.pick(&[512, 4096, 65536])).min(size);
        let at = random.below(size - len + 1) & !511;
        let pattern = random.below(255) + 1;
        let what = match random.below(6) {
            0 => format!("write -z {at} {len}"),
            1 => format!("write -z -u {at} {len}"),
            2 => format!("discard {at} {len}"),
            _ => format!("write -P {pattern} {at} {len}"),
        };
        command.args(["-c", &what]);
    }
    let out = command.output().unwrap();
    assert!(out.status.success(), "{out:?}");
}

/// Base, middle and top, each with content of its own; `whole.raw` as the model reads it.
fn chain(dir: &Scratch, random: &mut Random) {
    let sizes: Vec<u64> = (0..3).map(|_| (random.below(3 << 20) + (1 << 20)) & !511).collect();
    let clusters: Vec<u64> = (0..3).map(|_| random.pick(&[512, 4096, 65536, 1 << 20])).collect();
    let format = random.pick(&["raw", "qcow2"]);
    let lines = [
        format!("create -q -f {format} base.img {}", sizes[0]),
        format!("create -q -f qcow2 -o cluster_size={} -b base.img -F {format} middle.qcow2 {}", clusters[1], sizes[1]),
        format!("create -q -f qcow2 -o cluster_size={} -b middle.qcow2 -F qcow2 top.qcow2 {}", clusters[2], sizes[2]),
    ];
    for ((line, name), size) in lines.iter().zip(["base.img", "middle.qcow2", "top.qcow2"]).zip(sizes) {
        assert_eq!(dir.theirs(line).status, 0, "{line}");
        scribble(dir, name, if name == "base.img" { format } else { "qcow2" }, size, random);
    }
    assert_eq!(dir.theirs("convert -f qcow2 top.qcow2 whole.raw").status, 0);
}

/// The image is sound, and both read it like `whole.raw` (as far as that goes: images below may be longer).
fn as_whole(dir: &Scratch, image: &str, seed: u64) {
    let check = dir.theirs(&format!("check -q {image}"));
    // 63: raw images are not checked.
    assert!(check.status == 0 || check.status == 63, "seed {seed}: {image}: {check:?}");
    let line = format!("compare -F raw {image} whole.raw");
    for outcome in [dir.ours(&line), dir.theirs(&line)] {
        // The sizes are looked at once what both have was found equal.
        let below = image == "base.img" || image == "middle.qcow2";
        let longer = below && outcome.out.starts_with("Warning: Image size mismatch!");
        assert!(outcome.status == 0 || longer, "seed {seed}: {image}: {outcome:?}");
    }
}

#[test]
fn random_chains() {
    if !writer() {
        return;
    }
    let dir = Scratch::new();
    for seed in 1..=12u64 {
        let mut random = Random::new(seed);
        chain(&dir, &mut random);
        dir.same("map --output=json top.qcow2");
        dir.same("info --backing-chain top.qcow2");
        as_whole(&dir, "top.qcow2", seed);
        let cluster = random.pick(&[512, 4096, 65536]);
        dir.good(&format!("convert -c -O qcow2 -o cluster_size={cluster} top.qcow2 packed.qcow2"));
        as_whole(&dir, "packed.qcow2", seed);
        dir.good("convert -O qcow2 -B middle.qcow2 -F qcow2 top.qcow2 over.qcow2");
        as_whole(&dir, "over.qcow2", seed);
        dir.good(&format!(
            "convert -c -O qcow2 -o cluster_size={cluster} -B middle.qcow2 -F qcow2 top.qcow2 over.qcow2"
        ));
        as_whole(&dir, "over.qcow2", seed);
        match seed % 4 {
            0 => {
                dir.good("commit top.qcow2");
                as_whole(&dir, "middle.qcow2", seed);
            }
            1 => {
                dir.good("commit -b base.img top.qcow2");
                as_whole(&dir, "base.img", seed);
            }
            2 => {
                let format = if dir.bytes("base.img").starts_with(b"QFI\xfb") { "qcow2" } else { "raw" };
                dir.good(&format!("rebase -b base.img -F {format} top.qcow2"));
            }
            _ => {
                dir.good("rebase -b '' top.qcow2");
                std::fs::remove_file(dir.path("middle.qcow2")).unwrap();
            }
        }
        as_whole(&dir, "top.qcow2", seed);
    }
}

/// What `qemu-io` has open is left alone, and told with its process; `-U` looks all the same.
#[test]
fn busy_images() {
    if !writer() {
        return;
    }
    let dir = Scratch::new();
    dir.good("create -f qcow2 a.qcow2 1M");
    dir.good("create -f qcow2 -b a.qcow2 -F qcow2 top.qcow2");
    dir.good("create b.raw 1M");
    let before = dir.bytes("a.qcow2");
    let mut qemu = Command::new("qemu-io")
        .args(["-f", "qcow2", "a.qcow2"])
        .current_dir(&dir.0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = qemu.stdin.take().unwrap();
    input.write_all(b"length\n").unwrap();
    // An answer shows that the file is open. There may be a prompt on its line.
    let mut answer = String::new();
    let mut output = BufReader::new(qemu.stdout.take().unwrap());
    while !answer.contains("1 MiB") && output.read_line(&mut answer).unwrap() > 0 {}
    let holder = format!("qemu-io (pid {})", qemu.id());
    for line in [
        "info a.qcow2",
        "info -b top.qcow2",
        "resize a.qcow2 2M",
        "snapshot -c x a.qcow2",
        "check -r all a.qcow2",
        "commit top.qcow2",
        "create -f qcow2 a.qcow2 2M",
        "convert b.raw a.qcow2",
        "convert a.qcow2 c.raw",
    ] {
        let error = dir.bad(line, 1);
        assert!(error.contains("in use by") && error.contains(&holder), "{line}: {error}");
    }
    assert!(dir.good("info -U a.qcow2").contains("1 MiB"));
    assert!(dir.bad("bench -w -U a.qcow2", 1).contains("leave -U out"));
    drop(input);
    assert!(qemu.wait().unwrap().success());
    assert!(dir.bytes("a.qcow2") == before);
    dir.good("resize a.qcow2 2M");
}
