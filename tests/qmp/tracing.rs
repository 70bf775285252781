//! Trace events and log items through the real program.

use super::harness::{LONG, Machine, Scratch, error};
use serde_json::json;
use std::process::Command;
use std::time::Instant;

/// Reads the file until `done` says that all is there.
fn wait_for(path: &str, done: impl Fn(&str) -> bool) -> String {
    let start = Instant::now();
    loop {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        if done(&text) {
            return text;
        }
        assert!(start.elapsed() < LONG, "{text}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn events_are_switched_and_told() {
    let scratch = Scratch::new("trace-files");
    let (list, out) = (scratch.path("list"), scratch.path("out"));
    std::fs::write(&list, "# registers\nserial0_*\n-serial0_read\n").expect("a file");
    let events = format!("events={list},file={out}");
    let options = ["-S", "-serial", "null", "-trace", "pci_cfg_write", "-trace", &events, "-d", "trace:runstate_set"];
    let machine = Machine::start("trace", &options);
    let mut client = machine.client();
    let state = |client: &mut super::harness::Client, name: &str| {
        let answer = client.run("trace-event-get-state", json!({ "name": name })).expect("states");
        answer.as_array().expect("a list").iter().filter(|event| event["state"] == "enabled").count()
    };
    assert_eq!([state(&mut client, "serial0_read"), state(&mut client, "serial0_write")], [0, 1]);
    assert_eq!(state(&mut client, "*"), 3);
    client.hmp("o /b 0x3ff 0x77");
    client.hmp("i /b 0x3ff");
    client.hmp("o /w 0xcf8 0x80000004");
    let text = wait_for(&out, |text| text.contains("value 0x77"));
    // Before it, what the board does to its bridges as it starts.
    assert!(
        text.ends_with("\nserial0_write addr 0x3ff value 0x77 size 1\n") && !text.contains("serial0_read"),
        "{text}"
    );
    // The address is latched as 32 bits only; then the write of a function's register is told.
    client.hmp("o /l 0xcf8 0x80000004");
    client.hmp("o /w 0xcfc 0x107");
    wait_for(&out, |text| text.contains("\npci_cfg_write 00.0 @0x4 <- 0x107\n"));
    assert_eq!(client.hmp("trace-event serial0_* off"), "");
    assert_eq!(client.hmp("trace-event handle_hmp_command on"), "");
    assert_eq!(client.hmp("info trace-events serial0_*"), "serial0_read : state 0\nserial0_write : state 0\n");
    wait_for(&out, |text| text.ends_with("handle_hmp_command \"info trace-events serial0_*\"\n"));
    let set = json!({ "name": "pci_*", "enable": false });
    assert_eq!(client.run("trace-event-set-state", set), Ok(json!({})));
    assert_eq!(state(&mut client, "pci_*"), 0);
    client.run("cont", json!({})).expect("it goes on");
    wait_for(&out, |text| text.contains("runstate_set prelaunch -> running\n"));
    assert_eq!(client.hmp("log trace:serial0_write"), "");
    assert_eq!(state(&mut client, "serial0_write"), 1);
    assert_eq!(client.hmp("trace-event nope on"), "Error: unknown event \"nope\"\n");
    client.send("{\"execute\": \"trace-event-get-state\", \"arguments\": {\"name\": \"nope\"}}\n");
    assert_eq!(error(&client.answer()).1, "unknown event \"nope\"");
}

#[test]
fn events_are_listed() {
    let run = |words: &[&str]| {
        let out = Command::new(env!("CARGO_BIN_EXE_brolga")).args(words).output().expect("it starts");
        assert!(out.status.success());
        String::from_utf8(out.stdout).expect("text")
    };
    for words in [["-trace", "help"], ["-trace", "?"]] {
        let text = run(&words);
        for name in ["pci_cfg_read ", "virtio_queue_notify ", "handle_qmp_command ", "NAME_read, NAME_write"] {
            assert!(text.lines().any(|line| line.starts_with(name)), "{name}: {text}");
        }
    }
    assert!(run(&["-d", "help"]).contains("\ncpu "));
}
