//! What libvirt 9.0 starts a domain with (`virsh start` of a PC with a disk, a serial port and a balloon), and what it asks and
//! does then, recorded there; the guest halts in place of a kernel.

use super::harness::{Client, Machine, Scratch};
use serde_json::{Value, json};
use std::collections::HashSet;

/// The command line, but for what the harness gives itself.
fn domain(name: &str, scratch: &Scratch) -> Machine {
    let disk = scratch.path("disk.raw");
    std::fs::File::create(&disk).and_then(|file| file.set_len(1 << 20)).expect("an image");
    std::fs::write(scratch.path("master-key.aes"), [7; 32]).expect("a key");
    let secret = format!("secret,id=masterKey0,format=raw,file={}", scratch.path("master-key.aes"));
    let storage = json!({
        "driver": "file", "filename": disk, "node-name": "libvirt-1-storage", "auto-read-only": true, "discard": "unmap",
    });
    let format =
        json!({ "node-name": "libvirt-1-format", "read-only": false, "driver": "raw", "file": "libvirt-1-storage" });
    let monitor = format!("socket,id=charmonitor,path={},server=on,wait=off", scratch.path("monitor"));
    let serial = format!("file,id=charserial0,path={}", scratch.path("serial"));
    let (storage, format) = (storage.to_string(), format.to_string());
    let line = "-name guest=box,debug-threads=on -S -object SECRET \
                -machine pc-i440fx-10.0,usb=off,dump-guest-core=off,memory-backend=pc.ram -accel tcg \
                -object memory-backend-ram,id=pc.ram,size=16777216 -overcommit mem-lock=off \
                -smp 1,sockets=1,cores=1,threads=1 -uuid e2c03ecc-4be9-43ba-86bf-a6a713b218ab -no-user-config \
                -chardev MONITOR -mon chardev=charmonitor,id=monitor,mode=control -rtc base=utc -no-shutdown \
                -boot strict=on -blockdev STORAGE -blockdev FORMAT \
                -device virtio-blk-pci,bus=pci.0,addr=0x2,drive=libvirt-1-format,id=virtio-disk0,bootindex=1 \
                -chardev SERIAL -device isa-serial,chardev=charserial0,id=serial0,index=0 -audiodev AUDIO \
                -device virtio-balloon-pci,id=balloon0,bus=pci.0,addr=0x3 -msg timestamp=on";
    let words = line.split_whitespace().map(|word| match word {
        "SECRET" => secret.as_str(),
        "MONITOR" => monitor.as_str(),
        "STORAGE" => storage.as_str(),
        "FORMAT" => format.as_str(),
        "SERIAL" => serial.as_str(),
        "AUDIO" => r#"{"id":"audio1","driver":"none"}"#,
        word => word,
    });
    Machine::start(name, &words.collect::<Vec<_>>())
}

/// Names in a list of objects.
fn names(list: &Value) -> Vec<&str> {
    list.as_array().expect("a list").iter().filter_map(|entry| entry["name"].as_str()).collect()
}

#[test]
fn a_domain_starts_and_is_looked_after() {
    let scratch = Scratch::new("libvirt-files");
    let _machine = domain("libvirt", &scratch);
    let mut client = Client::connect(&scratch.path("monitor"));
    client.greeting = client.message();
    let mut run = |command: &str, arguments: Value| {
        client.run(command, arguments).unwrap_or_else(|error| panic!("{command}: {error:?}"))
    };
    run("qmp_capabilities", json!({}));
    let capabilities = run("query-migrate-capabilities", json!({}));
    assert_eq!(capabilities[0], json!({ "capability": "events", "state": false }));
    run("migrate-set-capabilities", json!({ "capabilities": [{ "capability": "events", "state": true }] }));
    assert_eq!(run("query-migrate-capabilities", json!({}))[0]["state"], true);
    let ends = run("query-chardev", json!({}));
    let serial = ends.as_array().unwrap().iter().find(|end| end["label"] == "charserial0").expect("the port's end");
    assert_eq!(serial["frontend-open"], true);
    run("query-hotpluggable-cpus", json!({}));
    run("query-cpus-fast", json!({}));
    let processor = run("qom-list", json!({ "path": "/machine/unattached/device[0]" }));
    assert!(names(&processor).contains(&"sse2"), "{processor}");
    run("balloon", json!({ "value": 16 << 20 }));
    assert_eq!(run("query-balloon", json!({}))["actual"], 16 << 20);
    run("query-named-block-nodes", json!({ "flat": true }));
    let devices = run("qom-list", json!({ "path": "/machine/peripheral" }));
    assert!(["virtio-disk0", "serial0", "balloon0"].iter().all(|name| names(&devices).contains(name)), "{devices}");
    let interval =
        json!({ "path": "/machine/peripheral/balloon0", "property": "guest-stats-polling-interval", "value": 2 });
    run("qom-set", interval);
    // Drives that came as nodes are known by their devices.
    let drive = &run("query-block", json!({}))[0];
    assert_eq!((&drive["device"], &drive["inserted"]["node-name"]), (&json!(""), &json!("libvirt-1-format")));
    assert_eq!(drive["qdev"], "/machine/peripheral/virtio-disk0/virtio-backend");
    for nodes in [false, true] {
        let mut seen = HashSet::new();
        for entry in run("query-blockstats", json!({ "query-nodes": nodes })).as_array().unwrap() {
            for key in ["device", "qdev", "node-name"] {
                let name = entry[key].as_str().filter(|name| !name.is_empty());
                assert!(name.is_none_or(|name| seen.insert(name.to_owned())), "{entry}");
            }
        }
    }
    run("cont", json!({}));
    run("block_resize", json!({ "node-name": "libvirt-1-format", "size": 2 << 20 }));
    assert_eq!(run("query-stats", json!({ "target": "vcpu" })), json!([]));
    assert_eq!(run("query-migrate", json!({})), json!({}));
    // A dump that libvirt does not wait for.
    let dump = format!("file:{}", scratch.path("core"));
    run("dump-guest-memory", json!({ "paging": false, "protocol": dump, "detach": true, "format": "elf" }));
    let told = client.event("DUMP_COMPLETED");
    assert!(told["result"]["status"] == "completed" && told.get("error").is_none(), "{told}");
    assert_eq!(client.hmp("info dump"), "Status: completed\n");
    let text = client.hmp("info block");
    assert!(text.starts_with("libvirt-1-format: "), "{text}");
    let memory = client.run("query-memdev", json!({})).unwrap();
    assert_eq!((&memory[0]["id"], &memory[0]["size"]), (&json!("pc.ram"), &json!(16 << 20)));
    let size = json!({ "path": "/objects/pc.ram", "property": "size" });
    assert_eq!(client.run("qom-get", size), Ok(json!(16 << 20)));
    assert!(client.hmp("info memdev").starts_with("memory backend: pc.ram\n  size:  16777216\n"));
}

/// Guest memory in a file: others see what the guest writes, and the guest what they do.
#[test]
fn memory_lies_in_a_file() {
    let scratch = Scratch::new("memory-files");
    let path = scratch.path("ram");
    let object = format!("memory-backend-file,id=m,size=16M,share=on,prealloc=on,mem-path={path}");
    let machine = Machine::start("memory-file", &["-S", "-machine", "pc,memory-backend=m", "-object", &object]);
    let mut client = machine.client();
    let memory = std::fs::read(&path).expect("the file");
    assert_eq!(memory[0x1000..0x1004], [0xfa, 0xf4, 0xeb, 0xfd]);
    use std::os::unix::fs::FileExt;
    std::fs::File::options().write(true).open(&path).unwrap().write_all_at(b"\x01\x02\x03\x04", 0x2000).unwrap();
    assert_eq!(client.hmp("xp/4xb 0x2000"), "0000000000002000: 0x01 0x02 0x03 0x04\n");
}
