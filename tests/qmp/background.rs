//! The program as management software starts it: in the background, its number in a file, a machine without a board; and the
//! messages that libvirt 9.0 sends to find out what it can do.

use super::harness::{Client, LONG, Scratch, error};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The process in the background, which nobody else ends if a test fails.
struct Started(i32);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-9", &self.0.to_string()]).stderr(Stdio::null()).status();
    }
}

/// Starts the program under QEMU's name; its output, once it has gone to the background.
fn start(scratch: &Scratch, extra: &[&str]) -> (std::process::Output, String, String) {
    let name = scratch.path("qemu-system-x86_64");
    if !Path::new(&name).exists() {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_brolga"), &name).expect("a link");
    }
    let (qmp, pid) = (scratch.path("qmp"), scratch.path("pid"));
    let out = Command::new(&name)
        .args(["-S", "-no-user-config", "-nodefaults", "-nographic", "-daemonize"])
        .args(["-qmp", &format!("unix:{qmp},server=on,wait=off"), "-pidfile", &pid])
        .args(extra)
        .stdin(Stdio::null())
        .output()
        .expect("it starts");
    (out, qmp, pid)
}

fn number(file: &str) -> i32 {
    std::fs::read_to_string(file).expect("the file is there").trim_end().parse().expect("a number")
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LONG, "{what}");
        sleep(Duration::from_millis(5));
    }
}

#[test]
fn libvirts_questions_are_answered() {
    let scratch = Scratch::new("libvirt");
    let (out, qmp, pid_file) = start(&scratch, &["-machine", "none,accel=kvm:tcg"]);
    assert!(out.status.success() && out.stderr.is_empty(), "{out:?}");
    let pid = Started(number(&pid_file));
    let of = |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", pid.0)).expect("it runs");
    assert!(of("comm").starts_with("qemu-system-x86"), "{}", of("comm"));
    // A session of its own: field 6 of stat, behind the name.
    let stat = of("stat");
    let session = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(3));
    assert_eq!(session, Some(pid.0.to_string().as_str()));
    assert_eq!(std::fs::read_link(format!("/proc/{}/cwd", pid.0)).expect("it runs"), Path::new("/"));
    let mut client = Client::connect(&qmp);
    client.greeting = client.message();
    assert_eq!(client.run("qmp_capabilities", json!({})), Ok(json!({})));
    for query in [
        "query-version",
        "query-target",
        "query-qmp-schema",
        "query-commands",
        "query-kvm",
        "query-machines",
        "query-cpu-definitions",
        "query-tpm-models",
        "query-tpm-types",
        "query-command-line-options",
        "query-migrate-capabilities",
    ] {
        client.run(query, json!({})).unwrap_or_else(|e| panic!("{query}: {e:?}"));
    }
    let types = client.run("qom-list-types", json!({})).expect("types");
    for name in ["tcg-accel", "virtio-blk-pci", "ide-hd", "max-x86_64-cpu", "none-machine"] {
        assert!(types.as_array().expect("a list").iter().any(|ty| ty["name"] == name), "{name}");
    }
    let types = [
        "virtio-blk-pci",
        "virtio-net-pci",
        "virtio-scsi-pci",
        "scsi-hd",
        "ide-hd",
        "virtio-balloon-pci",
        "virtio-net-ccw",
        "PIIX4_PM",
        "kvm-pit",
        "ICH9-LPC",
        "usb-host",
    ];
    for (at, name) in types.into_iter().enumerate() {
        let answer = client.run("device-list-properties", json!({ "typename": name }));
        match answer {
            Ok(list) => assert!(at < 6 && list.as_array().is_some_and(|list| !list.is_empty()), "{name}"),
            Err((class, _)) => assert!(at >= 6 && class == "DeviceNotFound", "{name}: {class}"),
        }
    }
    for name in ["memory-backend-file", "max-x86_64-cpu", "none-machine", "pc-i440fx-10.0-machine"] {
        let list = client.run("qom-list-properties", json!({ "typename": name })).expect(name);
        assert!(list.as_array().is_some_and(|list| !list.is_empty()), "{name}");
    }
    let unknown = client.run("qom-list-properties", json!({ "typename": "nope" })).unwrap_err();
    assert_eq!(unknown, ("DeviceNotFound".to_owned(), "Class 'nope' not found".to_owned()));
    // There is nothing on this machine, and nothing that is asked of it does harm.
    assert_eq!(client.run("query-cpus-fast", json!({})), Ok(json!([])));
    assert_eq!(client.run("query-status", json!({})).expect("a state")["status"], "prelaunch");
    assert_eq!(client.hmp("info registers"), "Error: there is no processor 0\n");
    let of_machine = |client: &mut Client| client.run("qom-get", json!({ "path": "/machine", "property": "type" }));
    assert_eq!(of_machine(&mut client), Ok("none-machine".into()));
    for line in
        ["x /4xb 0", "xp /4xb 0", "nmi", "i /b 0x64", "o /b 0x64 1", "info mem", "info tlb", "info qtree", "info pci"]
    {
        client.hmp(line);
    }
    assert_eq!(client.run("cont", json!({})), Ok(json!({})));
    client.event("RESUME");
    assert_eq!(client.run("system_reset", json!({})), Ok(json!({})));
    client.event("RESET");
    client.send(&format!("{}\n", json!({ "execute": "device_add", "arguments": { "driver": "e1000" } })));
    let answer = client.answer();
    assert!(answer.get("error").is_some(), "{answer}");
    assert!(!error(&answer).1.is_empty());
    assert_eq!(client.run("quit", json!({})), Ok(json!({})));
    wait_until("the file goes with the process", || !Path::new(&pid_file).exists());
}

#[test]
fn a_machine_in_the_background() {
    let scratch = Scratch::new("daemon");
    let loader = "-m 16 -device loader,data=0xfdebf4fa,data-len=4,addr=0x1000 -device loader,addr=0x1000,cpu-num=0";
    let loader: Vec<&str> = loader.split_whitespace().collect();
    let (out, qmp, pid_file) = start(&scratch, &loader);
    assert!(out.status.success(), "{out:?}");
    let pid = Started(number(&pid_file));
    // The file is locked: whoever is to use it too is told.
    let second = scratch.path("second");
    let (out, ..) = start(&scratch, &[&loader[..], &["-qmp", &format!("unix:{second},server=on,wait=off")]].concat());
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1), "{text}");
    assert!(text.ends_with("in use by another process; choose another file\n"), "{text}");
    assert_eq!(number(&pid_file), pid.0);
    let mut client = Client::connect(&qmp);
    client.greeting = client.message();
    assert_eq!(client.run("qmp_capabilities", json!({})), Ok(json!({})));
    let status: Value = client.run("query-status", json!({})).expect("a state");
    assert_eq!(status["status"], "prelaunch");
    // A signal ends it in order: the file goes.
    assert!(Command::new("kill").arg(pid.0.to_string()).status().expect("kill").success());
    client.event("SHUTDOWN");
    wait_until("the file goes with the process", || !Path::new(&pid_file).exists());
}

#[test]
fn what_cannot_go_to_the_background() {
    let scratch = Scratch::new("foreground");
    let refused = |extra: &[&str], why: &str| {
        let (out, _, pid) = start(&scratch, extra);
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(1), "{text}");
        assert!(text.contains(why) && text.lines().count() == 1, "{text}");
        assert!(!Path::new(&pid).exists());
    };
    refused(&["-machine", "none", "-serial", "stdio"], "-daemonize: serial0 is on this terminal");
    refused(&["-machine", "none", "-device", "e1000"], "-device: -machine none has no place for it");
    refused(&["-machine", "none", "-s"], "-s: -machine none has no place for it");
    // What goes wrong in the background is told in front.
    let path = scratch.path("nowhere/file");
    refused(&["-machine", "none", "-chardev", &format!("file,id=f,path={path}")], "cannot be written");
}
