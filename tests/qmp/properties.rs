//! Properties of objects: what can be set while the machine runs, and what QEMU says of the rest.

use super::harness::{Client, Machine};
use serde_json::{Value, json};

fn set(client: &mut Client, path: &str, property: &str, value: Value) -> Result<Value, (String, String)> {
    client.run("qom-set", json!({ "path": path, "property": property, "value": value }))
}

fn get(client: &mut Client, path: &str, property: &str) -> Value {
    client.run("qom-get", json!({ "path": path, "property": property })).expect("it is there")
}

#[test]
fn what_lives_can_be_set_and_the_rest_is_refused_in_qemus_words() {
    let devices = "-netdev user,id=n -device e1000,netdev=n,id=card,bootindex=2 -netdev user,id=n2 \
                   -device e1000,netdev=n2,id=other,bootindex=4 -device virtio-balloon-pci,id=b \
                   -object rng-random,id=ro,filename=/dev/urandom -device virtio-rng-pci,rng=ro";
    let arguments: Vec<&str> = devices.split_whitespace().collect();
    let machine = Machine::start("properties", &arguments);
    let mut client = machine.client();
    let (balloon, card, interval) =
        ("/machine/peripheral/b", "/machine/peripheral/card", "guest-stats-polling-interval");
    assert_eq!(get(&mut client, balloon, interval), 0);
    assert_eq!(set(&mut client, balloon, interval, json!(2)), Ok(json!({})));
    assert_eq!(get(&mut client, "b", interval), 2);
    let statistics = get(&mut client, balloon, "guest-stats");
    assert_eq!(statistics["last-update"], 0);
    assert_eq!(statistics["stats"].as_object().unwrap().len(), 16);
    assert_eq!(statistics["stats"]["stat-free-memory"], u64::MAX);
    assert_eq!(set(&mut client, card, "bootindex", json!(3)), Ok(json!({})));
    assert_eq!(get(&mut client, card, "bootindex"), 3);
    client.run("system_reset", json!({})).unwrap();
    let rng = "/machine/peripheral-anon/device[2]";
    let cases = [
        ("/nope", "x", json!(1), "Device '/nope' not found"),
        (card, "nosuch", json!(1), "Property 'e1000.nosuch' not found"),
        (card, "type", json!("x"), "Property 'e1000.type' is not writable"),
        (card, "hotplugged", json!(true), "Property 'e1000.hotplugged' is not writable"),
        (card, "realized", json!(5), "Invalid parameter type for 'realized', expected: boolean"),
        (card, "bootindex", json!(4), "The bootindex 4 has already been used"),
        (
            card,
            "netdev",
            json!("x"),
            "Attempt to set property 'netdev' on device 'card' (type 'e1000') after it was realized",
        ),
        (
            card,
            "mac",
            json!("x"),
            "Attempt to set property 'mac' on device 'card' (type 'e1000') after it was realized",
        ),
        (
            rng,
            "rng",
            json!("x"),
            "Attempt to set property 'rng' on anonymous device (type 'virtio-rng-pci') after it was realized",
        ),
        (
            "/machine/unattached/device[0]",
            "sse2",
            json!(false),
            "Attempt to set property 'sse2' on anonymous device (type 'max-x86_64-cpu') after it was realized",
        ),
        (balloon, interval, json!("x"), "Invalid parameter type for 'guest-stats-polling-interval', expected: integer"),
        (balloon, interval, json!(-1), "timer value must be greater than zero"),
        (balloon, "guest-stats", json!(1), "Property 'virtio-balloon-pci.guest-stats' is not writable"),
        ("/objects/ro", "filename", json!("/dev/zero"), "Property 'filename' can no longer be set"),
        ("/machine", "kernel", json!("x"), "Property 'pc-i440fx-10.0-machine.kernel' is not writable"),
    ];
    for (path, property, value, expected) in cases {
        let (class, desc) = set(&mut client, path, property, value).unwrap_err();
        let expected_class = if path == "/nope" { "DeviceNotFound" } else { "GenericError" };
        assert_eq!((class.as_str(), desc.as_str()), (expected_class, expected), "{path} {property}");
    }
    assert_eq!(set(&mut client, card, "realized", json!(true)), Ok(json!({})));
    // People write text, which is of the type that the property has.
    assert_eq!(client.hmp(&format!("qom-set {balloon} {interval} 5")), "");
    assert_eq!(client.hmp(&format!("qom-set -j {balloon} {interval} 7")), "");
    assert_eq!(client.hmp(&format!("qom-get {balloon} {interval}")), "7\n");
    let told = client.hmp(&format!("qom-set {balloon} {interval} x"));
    assert_eq!(told, "Error: Parameter 'guest-stats-polling-interval' expects int64\n");
    assert!(client.hmp(&format!("qom-set -j {balloon} {interval} [")).starts_with("Error: JSON parse error"));
    assert_eq!(client.hmp("qom-set /nope a 5"), "Error: Device '/nope' not found\n");
}
