//! A table of command lines: both programs end with the same status, and where they print JSON with the same keys.

use super::{Scratch, mixed, model};
use serde_json::Value;

/// What is known of `qemu-img` 10.0: words and status. They run in this order, ours and the model's in directories
/// of their own that hold the same.
const LINES: &[(&str, i32)] = &[
    ("create -f qcow2 new.qcow2 8M", 0),
    ("create -f qcow2 -b a.raw -F raw top.qcow2", 0),
    ("create -f qcow2 -b none.raw -F raw x.qcow2", 1),
    ("create -f qcow2 -b none.raw -F raw -u x.qcow2 1M", 0),
    ("create -f qcow2 -b a.raw x.qcow2", 1),
    ("create -f qcow2 -o extended_l2=on,cluster_size=16k sub.qcow2 4M", 0),
    ("create -f qcow2 -o extended_l2=on,cluster_size=8k bad.qcow2 4M", 1),
    ("create -f qcow2 -o data_file=d.raw,data_file_raw=on ext.qcow2 4M", 0),
    ("create -f nonsense x 1M", 1),
    ("create -f qcow2", 1),
    ("info new.qcow2", 0),
    ("info --output=json new.qcow2", 0),
    ("info --output=json --backing-chain top.qcow2", 0),
    ("info --output=json sub.qcow2", 0),
    ("info --output=json ext.qcow2", 0),
    ("info --output=json a.raw", 0),
    ("info --image-opts driver=qcow2,file.driver=file,file.filename=new.qcow2 --output=json", 0),
    ("info --image-opts driver=qcow2,file.filename=new.qcow2,cache.direct=on --output=json", 0),
    ("info json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"new.qcow2\"}}", 0),
    ("info -f vmdk new.qcow2", 1),
    ("info none.qcow2", 1),
    ("info --output=yaml new.qcow2", 1),
    ("info", 1),
    ("convert -O qcow2 a.raw copy.qcow2", 0),
    ("convert -O qcow2 -c -W -m 4 a.raw packed.qcow2", 0),
    ("convert -O qcow2 -n a.raw new.qcow2", 1),
    ("convert -O qcow2 -n --target-is-zero copy.qcow2 wide.qcow2", 0),
    ("convert -f qcow2 -O raw copy.qcow2 back.raw", 0),
    ("convert -B a.raw -F raw -O qcow2 top.qcow2 over.qcow2", 0),
    ("convert -B a.raw -O qcow2 top.qcow2 x.qcow2", 1),
    ("convert -c -O raw a.raw x.raw", 1),
    ("convert -S 1 a.raw x.raw", 1),
    ("convert -m 17 a.raw x.raw", 1),
    ("convert -r 0x a.raw x.raw", 1),
    ("convert -l none copy.qcow2 x.raw", 1),
    ("convert --target-is-zero a.raw x.raw", 1),
    ("convert none.raw x.raw", 1),
    ("compare a.raw back.raw", 0),
    ("compare -s a.raw copy.qcow2", 1),
    ("compare a.raw new.qcow2", 1),
    ("compare -q a.raw new.qcow2", 1),
    ("compare a.raw none.raw", 2),
    ("compare a.raw", 1),
    ("compare --nonsense a.raw a.raw", 1),
    ("compare -T wrong a.raw a.raw", 2),
    ("check --output=json copy.qcow2", 0),
    ("check --output=json packed.qcow2", 0),
    ("check --output=json sub.qcow2", 0),
    ("check -r all --output=json copy.qcow2", 0),
    ("check -r leaks copy.qcow2", 0),
    ("check leak.qcow2", 3),
    ("check --output=json leak.qcow2", 3),
    ("check hurt.qcow2", 2),
    ("check --output=json hurt.qcow2", 2),
    ("check -r leaks leak.qcow2", 0),
    ("check -r all --output=json hurt.qcow2", 0),
    ("check a.raw", 63),
    ("check none.qcow2", 1),
    ("check -r some copy.qcow2", 1),
    ("map --output=json copy.qcow2", 0),
    ("map --output=json top.qcow2", 0),
    ("map --output=json ext.qcow2", 0),
    ("map packed.qcow2", 1),
    ("map none.raw", 1),
    ("measure --output=json -O qcow2 a.raw", 0),
    ("measure --output=json -O qcow2 copy.qcow2", 0),
    ("measure --output=json -O raw --size 5M", 0),
    ("measure --size 5M a.raw", 1),
    ("measure -O qcow2 -l none copy.qcow2", 1),
    ("snapshot -c one copy.qcow2", 0),
    ("snapshot -l copy.qcow2", 0),
    ("snapshot -a one copy.qcow2", 0),
    ("snapshot -a two copy.qcow2", 1),
    ("snapshot -d two copy.qcow2", 1),
    ("snapshot -c x a.raw", 1),
    ("convert -l one copy.qcow2 back.raw", 0),
    ("snapshot -d one copy.qcow2", 0),
    ("resize copy.qcow2 20M", 0),
    ("resize copy.qcow2 10M", 1),
    ("resize --shrink copy.qcow2 10M", 0),
    ("resize -f raw back.raw +1M", 0),
    ("resize copy.qcow2 +", 1),
    ("resize --preallocation=wrong copy.qcow2 30M", 1),
    ("rebase -u -b back.raw -F raw over.qcow2", 0),
    ("rebase -c -b a.raw -F raw over.qcow2", 0),
    ("rebase -b none.raw -F raw over.qcow2", 1),
    ("rebase -b '' over.qcow2", 0),
    ("rebase -u -b a.raw -F raw a.raw", 1),
    ("commit -d top.qcow2", 0),
    ("commit top.qcow2", 0),
    ("commit copy.qcow2", 1),
    ("commit -b none.raw top.qcow2", 1),
    ("bench -c 10 -f qcow2 copy.qcow2", 0),
    ("bench -c 10 -d 4 -w --flush-interval 2 -f qcow2 copy.qcow2", 1),
    ("dd -f raw -O raw if=a.raw of=part.raw bs=1M count=2", 0),
    ("dd if=a.raw", 1),
    ("dd if=a.raw of=part.raw wrong=3", 1),
    ("amend -f qcow2 -o lazy_refcounts=on copy.qcow2", 0),
    ("amend -f qcow2 copy.qcow2", 1),
    ("bitmap --add copy.qcow2 b", 0),
    ("bitmap --add copy.qcow2 b", 1),
    ("info --output=json copy.qcow2", 0),
    ("bitmap --remove copy.qcow2 b", 0),
    ("nonsense", 1),
    ("", 1),
];

/// The images that are there at first.
fn images(dir: &Scratch) {
    use std::os::unix::fs::FileExt;
    mixed(dir, "a.raw");
    dir.good("create -q -f qcow2 wide.qcow2 32M");
    for (name, count, cluster) in [("leak.qcow2", 1u16, 40), ("hurt.qcow2", 0, 4)] {
        dir.good(&format!("convert -O qcow2 a.raw {name}"));
        let file = std::fs::File::options().read(true).write(true).open(dir.path(name)).unwrap();
        file.set_len(64 << 16).unwrap();
        // Cluster 2 is the first refcount block of a new image; counts have 16 bits.
        file.write_all_at(&count.to_be_bytes(), (2 << 16) + 2 * cluster).unwrap();
    }
}

/// The names of all members, nested ones by their path.
fn keys(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                found.push(format!("{path}.{key}"));
                keys(value, &format!("{path}.{key}"), found);
            }
        }
        Value::Array(all) => all.iter().for_each(|value| keys(value, &format!("{path}[]"), found)),
        _ => {}
    }
}

fn keys_of(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    if let Ok(value) = serde_json::from_str(text) {
        keys(&value, "", &mut found);
    }
    found.sort();
    found.dedup();
    found
}

#[test]
fn statuses_and_keys() {
    let (ours, theirs) = (Scratch::new(), Scratch::new());
    images(&ours);
    images(&theirs);
    let mut wrong = Vec::new();
    for (line, status) in LINES {
        let outcome = ours.ours(line);
        if outcome.status != *status {
            wrong.push(format!("{line}: {outcome:?}, not {status}"));
        }
        let failed = outcome.status == 1 && !line.starts_with("compare") && !line.starts_with("check");
        if failed && outcome.err.lines().count() != 1 {
            wrong.push(format!("{line}: not one line: {}", outcome.err));
        }
        if !model() {
            continue;
        }
        let other = theirs.theirs(line);
        if other.status != *status {
            wrong.push(format!("the model: {line}: {other:?}, not {status}"));
        }
        let (our_keys, their_keys) = (keys_of(&outcome.out), keys_of(&other.out));
        if our_keys != their_keys {
            wrong.push(format!("{line}: keys {our_keys:?}, not {their_keys:?}"));
        }
        if line.contains("json") && *status == 0 && line.contains("--output") && our_keys.is_empty() {
            wrong.push(format!("{line}: no JSON: {}", outcome.out));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
