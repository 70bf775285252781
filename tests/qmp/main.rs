//! QMP through the real program: the protocol, every query's form, events, many and bad clients, clients of others.
#![forbid(unsafe_code)]

mod background;
mod chardevs;
mod clients;
mod commands;
mod descriptors;
mod dumps;
mod harness;
mod hotplug;
mod images;
mod libvirt;
mod migration;
mod nbd;
mod nodes;
mod processors;
mod properties;
mod saving;
mod schema;
mod screen;
mod tracing;

use harness::{Machine, connect, error};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;

#[test]
fn greeting_and_negotiation() {
    let machine = Machine::start("greeting", &["-S"]);
    let mut client = machine.new_client();
    let greeting = &client.greeting["QMP"];
    assert_eq!(greeting["capabilities"], json!(["oob"]));
    assert!(greeting["version"]["qemu"]["major"].is_u64() && greeting["version"]["package"].is_string());
    let (class, desc) = client.run("query-status", json!({})).unwrap_err();
    assert_eq!(
        (class.as_str(), desc.as_str()),
        ("CommandNotFound", "Expecting capabilities negotiation with 'qmp_capabilities'")
    );
    let (_, desc) = client.run("qmp_capabilities", json!({"enable": ["flying"]})).unwrap_err();
    assert!(desc.contains("does not accept value 'flying'"), "{desc}");
    assert_eq!(client.run("qmp_capabilities", json!({"enable": ["oob"]})), Ok(json!({})));
    let (class, _) = client.run("qmp_capabilities", json!({})).unwrap_err();
    assert_eq!(class, "CommandNotFound");
    // Out of band is understood, for commands that allow it: there are none.
    client.send("{\"exec-oob\": \"query-status\", \"id\": 5}\n");
    let answer = client.answer();
    assert_eq!(
        (&answer["id"], error(&answer).1.as_str()),
        (&json!(5), "The command query-status does not support OOB")
    );
    // Who comes next begins anew.
    assert!(machine.new_client().run("query-status", json!({})).is_err());
}

#[test]
fn bad_messages_get_qemus_errors() {
    let machine = Machine::start("errors", &["-S"]);
    let mut client = machine.client();
    let cases = [
        ("[]", "GenericError", "QMP input must be a JSON object"),
        ("5 ", "GenericError", "QMP input must be a JSON object"),
        ("{}", "GenericError", "QMP input lacks member 'execute'"),
        ("{\"execute\": 1}", "GenericError", "QMP input member 'execute' must be a string"),
        ("{\"exec-oob\": \"stop\"}", "GenericError", "QMP input member 'exec-oob' is unexpected"),
        (
            "{\"execute\": \"stop\", \"arguments\": []}",
            "GenericError",
            "QMP input member 'arguments' must be an object",
        ),
        ("{\"execute\": \"nope\"}", "CommandNotFound", "The command nope has not been found"),
        ("{\"execute\": \"device_add\"}", "GenericError", "Parameter 'driver' is missing"),
        ("{\"execute\": \"stop\", \"arguments\": {\"a\": 1}}", "GenericError", "Parameter 'a' is unexpected"),
        ("{\"execute\": \"set_link\"}", "GenericError", "Parameter 'name' is missing"),
        (
            "{\"execute\": \"set_link\", \"arguments\": {\"name\": 5, \"up\": true}}",
            "GenericError",
            "Invalid parameter type for 'name', expected: string",
        ),
        (
            "{\"execute\": \"send-key\", \"arguments\": {\"keys\": [{\"type\": \"qcode\", \"data\": \"zz\"}]}}",
            "GenericError",
            "Parameter 'data' does not accept value 'zz'",
        ),
        ("{\"execute\": \"eject\", \"arguments\": {\"device\": \"x\"}}", "DeviceNotFound", "Device 'x' not found"),
        ("{\"execute\": \"query-balloon\"}", "DeviceNotActive", "No balloon device has been activated"),
        ("}", "GenericError", "JSON parse error, expecting value"),
        ("hello", "GenericError", "JSON parse error, "),
        ("{\"execute\": \"stop\",}", "GenericError", "JSON parse error, "),
        ("{\"execute\": \"st\u{1}op\"}", "GenericError", "JSON parse error, "),
    ];
    for (message, class, desc) in cases {
        client.send(&format!("{message}\n"));
        let answer = client.answer();
        let found = error(&answer);
        assert!(found.0 == class && found.1.starts_with(desc), "{message}: {answer}");
    }
    // The id comes back whatever it is, with errors too; quotes may be single ones.
    client.send("{'execute': 'nope', 'id': {'a': [1.5, null]}}\n");
    assert_eq!(client.answer()["id"], json!({"a": [1.5, null]}));
    client.send("{\"execute\":\"query-status\",\"id\":1}{\"execute\":\"query-name\",\"id\":2}");
    assert_eq!((client.answer()["id"].clone(), client.answer()["id"].clone()), (json!(1), json!(2)));
}

#[test]
fn pretty_answers_are_the_same_with_lines() {
    let scratch = harness::Scratch::new("pretty-socket");
    let path = scratch.path("pretty");
    let chardev = format!("socket,id=c,path={path},server=on,wait=off");
    let _machine = Machine::start("pretty", &["-S", "-chardev", &chardev, "-mon", "chardev=c,mode=control,pretty=on"]);
    let mut stream = connect(&path);
    stream.write_all(b"{\"execute\": \"qmp_capabilities\"}").unwrap();
    let mut text = String::new();
    let mut bytes = [0; 4096];
    while !text.contains("\"return\"") || !text.ends_with("}\r\n") {
        let n = stream.read(&mut bytes).unwrap();
        assert_ne!(n, 0, "closed after {text}");
        text += std::str::from_utf8(&bytes[..n]).unwrap();
    }
    assert!(text.starts_with("{\n    \"QMP\": {\n        \"capabilities\""), "{text}");
    let values: Vec<Value> = serde_json::Deserializer::from_str(&text).into_iter().map(Result::unwrap).collect();
    assert_eq!(values[1], json!({"return": {}}));
}

/// Garbage and messages without end cost their client an error each, and nobody else anything.
#[test]
fn garbage_and_huge_messages_hurt_nobody() {
    let machine = Machine::start("garbage", &[]);
    let mut good = machine.client();
    let mut bad = machine.client();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let garbage: Vec<u8> = (0..200_000)
        .map(|_| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 24) as u8
        })
        .collect();
    let mut writer = bad.stream.try_clone().unwrap();
    let writing = thread::spawn(move || {
        writer.write_all(&garbage).unwrap();
        // Ends whatever was begun, then a string of 6 MiB.
        writer.write_all(b"\n\n\xff\n{\"execute\": \"").unwrap();
        writer.write_all(&vec![b'x'; 6 << 20]).unwrap();
        writer.write_all(b"\"}{\"execute\": \"query-status\", \"id\": \"after\"}\n").unwrap();
    });
    let mut errors = 0;
    loop {
        let answer = bad.answer();
        if answer.get("id").is_some_and(|id| id == "after") {
            assert_eq!(answer["return"]["running"], true, "{answer}");
            break;
        }
        error(&answer);
        errors += 1;
    }
    writing.join().unwrap();
    assert!(errors > 10, "{errors}");
    assert_eq!(good.run("query-status", json!({})).unwrap()["status"], "running");
    // Nesting without end.
    good.send(&format!("{}\n{}\n", "[".repeat(100_000), "]".repeat(100_000)));
    assert!(error(&good.answer()).1.starts_with("JSON parse error"));
    assert!(good.run("query-status", json!({})).is_ok());
}

#[test]
fn clients_that_vanish_leave_the_guest_alone() {
    let machine = Machine::start("vanish", &[]);
    for i in 0..20 {
        let mut client = machine.client();
        client.send("{\"execute\": \"query-qmp-schema\"}\n{\"execute\": \"query-qm");
        match i % 3 {
            0 => drop(client),
            1 => client.stream.shutdown(Shutdown::Both).unwrap(),
            // Half-open: what was asked is still answered, then the other end closes.
            _ => {
                client.stream.shutdown(Shutdown::Write).unwrap();
                assert!(client.answer()["return"].is_array());
                assert_eq!(client.next(), None);
            }
        }
    }
    assert_eq!(machine.client().run("query-status", json!({})).unwrap()["running"], true);
}

#[test]
fn ten_clients_at_once() {
    let machine = Machine::start("ten", &[]);
    let mut clients: Vec<_> = (0..10).map(|_| machine.client()).collect();
    thread::scope(|scope| {
        for (number, client) in clients.iter_mut().enumerate() {
            scope.spawn(move || {
                for round in 0..30 {
                    let id = json!([number, round]);
                    let commands = ["query-status", "query-pci", "query-block", "query-cpus-fast", "query-chardev"];
                    client.send(&format!("{}\n", json!({ "execute": commands[round % 5], "id": id })));
                    let answer = client.answer();
                    assert!(answer["id"] == id && answer.get("return").is_some(), "{answer}");
                }
            });
        }
    });
    // Everybody hears what one does.
    clients[3].run("stop", json!({})).unwrap();
    for client in &mut clients {
        assert_eq!(client.event("STOP"), Value::Null);
    }
    clients[9].run("quit", json!({})).unwrap();
    for client in &mut clients {
        assert_eq!(client.event("SHUTDOWN"), json!({ "guest": false, "reason": "host-qmp-quit" }));
        assert_eq!(client.next(), None);
    }
    assert!(machine.ends().success());
}

/// A client that reads nothing holds neither the machine nor others up.
#[test]
fn who_does_not_read_is_not_waited_for() {
    let machine = Machine::start("deaf", &[]);
    let mut deaf = machine.client();
    let mut writer = deaf.stream.try_clone().unwrap();
    writer.set_write_timeout(Some(std::time::Duration::from_millis(500))).unwrap();
    let ask = "{\"execute\": \"query-qmp-schema\"}\n".repeat(64);
    // Until it is not read any more.
    while writer.write_all(ask.as_bytes()).is_ok() {}
    let mut good = machine.client();
    for _ in 0..50 {
        good.run("stop", json!({})).unwrap();
        good.run("cont", json!({})).unwrap();
    }
    good.run("quit", json!({})).unwrap();
    drop(deaf.next());
    drop(deaf);
    assert!(machine.ends().success());
}
