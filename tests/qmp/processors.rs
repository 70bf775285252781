//! Processors that come and go: what the protocol says of them. The guest is halted, so none is ever given back.

use crate::harness::Machine;
use serde_json::{Value, json};

fn refused(answer: Result<Value, (String, String)>) -> String {
    let (class, desc) = answer.expect_err("it is refused");
    assert_eq!(class, "GenericError", "{desc}");
    desc
}

#[test]
fn processors_come_where_there_is_room() {
    let smp = ["-smp", "1,sockets=2,cores=2,maxcpus=4", "-cpu", "qemu64"];
    let machine = Machine::start("processors", &smp);
    let mut client = machine.client();
    let slots = client.run("query-hotpluggable-cpus", json!({})).unwrap();
    let slots = slots.as_array().unwrap();
    assert_eq!(slots.len(), 4);
    assert_eq!(slots[0]["props"], json!({"socket-id": 1, "core-id": 1, "thread-id": 0}));
    assert_eq!(slots.iter().filter(|slot| slot.get("qom-path").is_some()).count(), 1);
    let mut add = |more: Value| {
        let mut arguments = json!({"driver": "qemu64-x86_64-cpu"});
        arguments.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        client.run("device_add", arguments)
    };
    assert_eq!(refused(add(json!({}))), "CPU socket-id is not set");
    assert_eq!(refused(add(json!({"socket-id": 1}))), "CPU core-id is not set");
    let there =
        |socket: u32, core: u32, id: &str| json!({"socket-id": socket, "core-id": core, "thread-id": 0, "id": id});
    assert_eq!(refused(add(there(2, 0, "c"))), "Invalid CPU socket-id: 2 must be in range 0:1");
    assert_eq!(refused(add(there(0, 0, "c"))), "CPU[0] with APIC ID 0 exists");
    assert!(refused(add(json!({"apic-id": 9}))).starts_with("Invalid CPU apic-id: 9"));
    assert!(refused(add(json!({"apic-id": 1, "socket-id": 1, "core-id": 0, "thread-id": 0}))).contains("different"));
    assert!(refused(add(json!({"apic-id": 1, "colour": "red"}))).contains("'colour'"));
    assert_eq!(add(there(1, 1, "c")), Ok(json!({})));
    assert_eq!(refused(add(there(1, 0, "c"))), "Duplicate device ID 'c'");
    assert_eq!(refused(add(there(1, 1, "d"))), "CPU[3] with APIC ID 3 exists");
    let other = client.run("device_add", json!({"driver": "max-x86_64-cpu", "apic-id": 1}));
    assert_eq!(refused(other), "Invalid CPU type, expected cpu type: 'qemu64-x86_64-cpu'");
    let cpus = client.run("query-cpus-fast", json!({})).unwrap();
    let cpus: Vec<_> = cpus.as_array().unwrap().iter().map(|cpu| (&cpu["cpu-index"], &cpu["qom-path"])).collect();
    let paths = ["/machine/unattached/device[0]", "/machine/peripheral/c"].map(Value::from);
    assert_eq!(cpus, [(&json!(0), &paths[0]), (&json!(3), &paths[1])]);
    assert!(client.hmp("info cpus").contains("CPU #3"));
    assert!(client.hmp("info registers -a").contains("CPU#3"));
    // The guest does not answer; a reset takes it.
    client.run("stop", json!({})).unwrap();
    client.run("cont", json!({})).unwrap();
    assert_eq!(client.run("device_del", json!({"id": "c"})), Ok(json!({})));
    assert_eq!(client.run("query-cpus-fast", json!({})).unwrap().as_array().unwrap().len(), 2);
    client.run("system_reset", json!({})).unwrap();
    assert_eq!(client.event("DEVICE_DELETED"), json!({"device": "c", "path": "/machine/peripheral/c"}));
    assert_eq!(client.run("query-cpus-fast", json!({})).unwrap().as_array().unwrap().len(), 1);
    let again = json!({"driver": "qemu64-x86_64-cpu", "socket-id": 1, "core-id": 1, "thread-id": 0, "id": "c"});
    assert_eq!(client.run("device_add", again), Ok(json!({})));
}

#[test]
fn there_is_no_room_without_maxcpus() {
    let machine = Machine::start("no-room", &["-S", "-smp", "2", "-cpu", "qemu64"]);
    let mut client = machine.client();
    let add = |apic: u32| json!({"driver": "qemu64-x86_64-cpu", "apic-id": apic});
    assert!(refused(client.run("device_add", add(1))).contains("-smp N,maxcpus=M"));
    assert!(refused(client.run("device_add", add(2))).starts_with("Invalid CPU apic-id: 2"));
}
