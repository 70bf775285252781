//! Images that are made, opened as nodes, put over a disk's and copied to, as libvirt does it.

use super::harness::{Client, Machine, Scratch};
use super::images::{content, img, read, write};
use serde_json::{Value, json};

/// A machine whose first IDE disk is the node `n0`, in the file `a`.
fn machine(name: &str) -> (Machine, Scratch) {
    let scratch = Scratch::new(&format!("{name}-nodes"));
    let path = scratch.path("a");
    img(&["create", "-q", "-f", "qcow2", &path, "1M"]);
    let node = format!("driver=qcow2,node-name=n0,file.driver=file,file.filename={path}");
    (Machine::start(name, &["-blockdev", &node, "-device", "ide-hd,drive=n0,id=disk"]), scratch)
}

/// Runs a job to its end: why it failed, if it did.
fn made(client: &mut Client, options: Value) -> Option<String> {
    client.run("blockdev-create", json!({ "job-id": "making", "options": options })).expect("it starts");
    loop {
        let told = client.event("JOB_STATUS_CHANGE");
        if told["id"] == "making" && told["status"] == "concluded" {
            break;
        }
    }
    let jobs = client.run("query-jobs", json!({})).expect("jobs");
    let job = jobs.as_array().expect("a list").iter().find(|job| job["id"] == "making").expect("it waits").clone();
    assert_eq!((&job["type"], &job["status"]), (&json!("create"), &json!("concluded")));
    client.run("job-dismiss", json!({ "id": "making" })).expect("it is over");
    job.get("error").map(|why| why.as_str().expect("text").to_owned())
}

/// The node that the disk is, and how many images are below it.
fn node(client: &mut Client) -> (String, u64) {
    let drives = client.run("query-block", json!({})).expect("drives");
    let of = |drive: &&Value| drive["qdev"].as_str().is_some_and(|path| path.contains("disk"));
    let drive = drives.as_array().expect("a list").iter().find(of).expect("the disk")["inserted"].clone();
    (drive["node-name"].as_str().expect("a name").to_owned(), drive["backing_file_depth"].as_u64().expect("a number"))
}

fn why(answer: Result<Value, (String, String)>) -> String {
    answer.expect_err("it is refused").1
}

/// A new qcow2 image of 1M in `file`, as the node `name`.
fn new_node(client: &mut Client, file: &str, name: &str, backing: Option<&str>) {
    assert_eq!(made(client, json!({ "driver": "file", "filename": file, "size": 0 })), None);
    let storage = json!({ "driver": "file", "node-name": format!("{name}-storage"), "filename": file });
    client.run("blockdev-add", storage).expect("the file is there");
    let mut options = json!({ "driver": "qcow2", "file": format!("{name}-storage"), "size": 1 << 20 });
    if let Some(backing) = backing {
        (options["backing-file"], options["backing-fmt"]) = (backing.into(), "qcow2".into());
    }
    assert_eq!(made(client, options), None);
    let node = json!({ "driver": "qcow2", "node-name": name, "file": format!("{name}-storage"), "backing": null });
    client.run("blockdev-add", node).expect("an image");
}

#[test]
fn a_node_goes_over_a_disk_and_back_into_it() {
    let (machine, scratch) = machine("over");
    let mut client = machine.client();
    write(&mut client, 1, 0x11);
    write(&mut client, 2, 0x12);
    let (a, b) = (scratch.path("a"), scratch.path("b"));
    new_node(&mut client, &b, "n1", Some(&a));
    let over = json!({ "type": "blockdev-snapshot", "data": { "node": "n0", "overlay": "n1" } });
    client.run("transaction", json!({ "actions": [over] })).unwrap();
    assert_eq!(node(&mut client), ("n1".to_owned(), 1));
    write(&mut client, 1, 0x21);
    assert_eq!([1, 2, 3].map(|sector| read(&mut client, sector)), [0x21, 0x12, 0]);
    // Both are in use.
    let again = json!({ "node": "n1", "overlay": "n1" });
    assert_eq!(why(client.run("blockdev-snapshot", again)), "Node 'n1' is in use");
    let none = json!({ "node": "n1", "overlay": "zz" });
    assert_eq!(why(client.run("blockdev-snapshot", none)), "Cannot find device='' nor node-name='zz'");
    for name in ["n0", "n1"] {
        assert!(why(client.run("blockdev-del", json!({ "node-name": name }))).contains("is "), "{name}");
    }
    // What is refused leaves the node as it was.
    let raw = scratch.path("raw");
    assert_eq!(made(&mut client, json!({ "driver": "file", "filename": raw, "size": 1 << 20 })), None);
    client.run("blockdev-add", json!({ "driver": "file", "node-name": "r", "filename": raw })).unwrap();
    let refused = why(client.run("blockdev-snapshot", json!({ "node": "n1", "overlay": "r" })));
    assert_eq!(refused, "Overlay does not support backing images");
    client.run("blockdev-del", json!({ "node-name": "r" })).unwrap();
    // Down again, and the names are free.
    let down = json!({ "job-id": "down", "device": "n1", "top-node": "n1", "base-node": "n0" });
    client.run("block-commit", down).unwrap();
    client.event("BLOCK_JOB_READY");
    client.run("job-complete", json!({ "id": "down" })).unwrap();
    assert!(client.event("BLOCK_JOB_COMPLETED").get("error").is_none());
    assert_eq!(node(&mut client), ("n0".to_owned(), 0));
    assert_eq!([1, 2, 3].map(|sector| read(&mut client, sector)), [0x21, 0x12, 0]);
    new_node(&mut client, &b, "n1", Some(&a));
    client.run("blockdev-snapshot", json!({ "node": "n0", "overlay": "n1" })).unwrap();
    write(&mut client, 3, 0x33);
    client.run("quit", json!({})).unwrap();
    assert!(machine.ends().success());
    assert_eq!([1, 2, 3].map(|sector| content(&scratch, "a", sector)), [0x21, 0x12, 0]);
    assert_eq!([1, 2, 3].map(|sector| content(&scratch, "b", sector)), [0x21, 0x12, 0x33]);
    img(&["check", "-q", &b]);
}

#[test]
fn disks_are_copied_to_nodes() {
    let (machine, scratch) = machine("copies");
    let mut client = machine.client();
    write(&mut client, 1, 0x11);
    new_node(&mut client, &scratch.path("b"), "n1", None);
    new_node(&mut client, &scratch.path("c"), "n2", None);
    let to = |target: &str| json!({ "job-id": "copy", "device": "n0", "target": target, "sync": "full" });
    for (target, expected) in [
        ("zz", "Cannot find device='' nor node-name='zz'"),
        ("n0", "Node 'n0' is in use"),
        ("n1-storage", "Cannot find device='' nor node-name='n1-storage'"),
    ] {
        assert_eq!(why(client.run("blockdev-backup", to(target))), expected);
    }
    client.run("blockdev-backup", to("n1")).unwrap();
    assert!(client.event("BLOCK_JOB_COMPLETED").get("error").is_none());
    // It is free again.
    for name in ["n1", "n1-storage"] {
        client.run("blockdev-del", json!({ "node-name": name })).unwrap();
    }
    assert_eq!(content(&scratch, "b", 1), 0x11);
    client.run("blockdev-mirror", to("n2")).unwrap();
    client.event("BLOCK_JOB_READY");
    assert!(why(client.run("blockdev-del", json!({ "node-name": "n2" }))).contains("in use"));
    write(&mut client, 2, 0x22);
    client.run("job-complete", json!({ "id": "copy" })).unwrap();
    assert!(client.event("BLOCK_JOB_COMPLETED").get("error").is_none());
    assert_eq!(node(&mut client), ("n2".to_owned(), 0));
    write(&mut client, 3, 0x33);
    // The old one is nobody's now.
    client.run("blockdev-del", json!({ "node-name": "n0" })).unwrap();
    client.run("quit", json!({})).unwrap();
    assert!(machine.ends().success());
    assert_eq!([1, 2, 3].map(|sector| content(&scratch, "a", sector)), [0x11, 0x22, 0]);
    assert_eq!([1, 2, 3].map(|sector| content(&scratch, "c", sector)), [0x11, 0x22, 0x33]);
}

#[test]
fn images_that_cannot_be_made() {
    let (machine, scratch) = machine("unmade");
    let mut client = machine.client();
    let file = json!({ "driver": "file", "filename": scratch.path("none/x"), "size": 512 });
    assert!(made(&mut client, file).unwrap().contains("none/x"));
    let own = json!({ "driver": "file", "filename": scratch.path("a"), "size": 512 });
    assert!(made(&mut client, own).unwrap().contains("in use"), "the disk's own file");
    let image = |more: Value| {
        let mut options = json!({ "driver": "qcow2", "file": "zz", "size": 512 });
        options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        options
    };
    assert!(made(&mut client, image(json!({}))).unwrap().contains("Cannot find device"));
    new_node(&mut client, &scratch.path("b"), "n1", None);
    client.run("blockdev-del", json!({ "node-name": "n1" })).unwrap();
    let clusters = image(json!({ "file": "n1-storage", "cluster-size": 5 }));
    assert!(made(&mut client, clusters).unwrap().contains("cluster_size=5"));
    let mut run = |options: Value| why(client.run("blockdev-create", json!({ "job-id": "j", "options": options })));
    assert!(run(image(json!({ "size": 5 }))).contains("multiple of 512"));
    assert!(run(json!({ "driver": "nbd" })).contains("does not accept value 'nbd'"));
    assert!(run(image(json!({ "zz": 1 }))).contains("options.zz' is unexpected"));
    client.run("quit", json!({})).unwrap();
    assert!(machine.ends().success());
    assert_eq!(content(&scratch, "a", 1), 0);
}

/// Nodes that a job has taken out of a disk's chain are gone, their names and files free; the others are not.
#[test]
fn nodes_leave_a_chain() {
    let (machine, scratch) = machine("chain-of");
    let mut client = machine.client();
    for (n, (file, below)) in [("b", "a"), ("c", "b"), ("e", "c")].into_iter().enumerate() {
        // Sectors of clusters of their own.
        write(&mut client, 500 * n + 1, 0x10 + n as u8);
        let [old, new] = [n, n + 1].map(|n| format!("n{n}"));
        new_node(&mut client, &scratch.path(file), &new, Some(&scratch.path(below)));
        client.run("blockdev-snapshot", json!({ "node": old, "overlay": new })).unwrap();
    }
    assert_eq!(node(&mut client), ("n3".to_owned(), 3));
    let names = ["n0", "n1", "n1-storage", "n2", "n2-storage", "n3"];
    let gone = |client: &mut Client| {
        names.map(|name| {
            why(client.run("blockdev-del", json!({ "node-name": name }))).starts_with("Failed to find node")
        })
    };
    let done = |client: &mut Client| loop {
        let told = client.event("JOB_STATUS_CHANGE");
        if told["id"] == "j" && told["status"] == "null" {
            break;
        }
    };
    let middle = json!({ "job-id": "j", "device": "n3", "top-node": "n2", "base-node": "n1" });
    client.run("block-commit", middle).unwrap();
    done(&mut client);
    assert_eq!(node(&mut client), ("n3".to_owned(), 2));
    assert_eq!(gone(&mut client), [false, false, false, true, true, false]);
    client.run("block-stream", json!({ "job-id": "j", "device": "n3", "base-node": "n0" })).unwrap();
    done(&mut client);
    assert_eq!(node(&mut client), ("n3".to_owned(), 1));
    assert_eq!(gone(&mut client), [false, true, true, true, true, false]);
    let sectors = [1, 501, 1001];
    assert_eq!(sectors.map(|sector| read(&mut client, sector)), [0x10, 0x11, 0x12]);
    new_node(&mut client, &scratch.path("c"), "n1", None);
    client.run("quit", json!({})).unwrap();
    assert!(machine.ends().success());
    assert_eq!(sectors.map(|sector| content(&scratch, "e", sector)), [0x10, 0x11, 0x12]);
}
