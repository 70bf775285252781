//! What a Debian kernel's drivers do, as events and answers of QMP tell it.

use crate::harness::{Boot, COMMAND, Guest, Scratch};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// A path that no other test has.
pub fn scratch(name: &str) -> Scratch {
    Scratch::new(&format!("guest-qmp-{name}"))
}

/// A QMP client.
pub struct Client {
    stream: BufReader<UnixStream>,
    events: Vec<Value>,
}

impl Client {
    pub fn connect(path: &Path) -> Self {
        let deadline = Instant::now() + COMMAND;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "{}: {error}", path.display()),
            }
            thread::sleep(Duration::from_millis(20));
        };
        stream.set_read_timeout(Some(COMMAND)).expect("a timeout");
        let mut this = Self { stream: BufReader::new(stream), events: Vec::new() };
        assert!(this.message().get("QMP").is_some());
        this.run("qmp_capabilities", json!({}));
        this
    }

    fn message(&mut self) -> Value {
        let mut line = String::new();
        assert_ne!(self.stream.read_line(&mut line).expect("a message in time"), 0, "it has ended");
        serde_json::from_str(&line).expect("JSON")
    }

    pub fn run(&mut self, command: &str, arguments: Value) -> Value {
        let message = json!({ "execute": command, "arguments": arguments }).to_string();
        self.stream.get_mut().write_all(message.as_bytes()).expect("it listens");
        loop {
            let mut message = self.message();
            if message.get("event").is_some() {
                self.events.push(message);
                continue;
            }
            assert!(message.get("return").is_some(), "{command}: {message}");
            return message["return"].take();
        }
    }

    pub fn human(&mut self, line: &str) -> String {
        let text = self.run("human-monitor-command", json!({ "command-line": line }));
        text.as_str().expect("text").replace('\r', "")
    }

    /// Waits for an event whose data are like `wanted`, with its other members left open.
    pub fn event(&mut self, name: &str, wanted: &Value) -> Value {
        let fits = |event: &Value| {
            let members = wanted.as_object().expect("an object");
            event["event"] == name && members.iter().all(|(key, value)| event["data"][key] == *value)
        };
        loop {
            if let Some(at) = self.events.iter().position(fits) {
                return self.events.remove(at)["data"].take();
            }
            let event = self.message();
            self.events.push(event);
        }
    }
}

pub fn boot(initramfs: &str, socket: &Path, options: &[&str]) -> Guest {
    let qmp = format!("unix:{},server=on,wait=off", socket.display());
    let options: Vec<&str> = ["-no-reboot", "-qmp", &qmp].iter().chain(options).copied().collect();
    Boot::new("debian").initramfs(initramfs).append("quiet nokaslr").options(&options).to_shell()
}

#[test]
fn drivers_cause_events() {
    let (socket, port) = (scratch("events"), scratch("port"));
    let chardev = format!("socket,id=c,path={},server=on,wait=off", port.display());
    let mut guest = boot(
        "peripherals-amd64",
        &socket,
        &[
            "-device",
            "virtio-balloon-pci",
            "-device",
            "virtio-serial",
            "-chardev",
            &chardev,
            "-device",
            "virtserialport,chardev=c,name=org.brolga.agent,id=agent",
            "-device",
            "pvpanic",
        ],
    );
    let mut client = Client::connect(&socket);
    guest.run("modprobe virtio_pci && modprobe virtio_console && modprobe virtio_balloon");
    client.run("balloon", json!({ "value": 192 << 20 }));
    client.event("BALLOON_CHANGE", &json!({ "actual": 192 << 20 }));
    assert_eq!(client.run("query-balloon", json!({})), json!({ "actual": 192 << 20 }));
    guest.run("for p in /dev/vport*p1; do test -c $p && sleep 2 <$p; done");
    client.event("VSERPORT_CHANGE", &json!({ "id": "agent", "open": true }));
    client.event("VSERPORT_CHANGE", &json!({ "id": "agent", "open": false }));
    guest.run("date -u -s '2030-01-01 00:00:00' && hwclock -w -u");
    let offset = client.event("RTC_CHANGE", &json!({}))["offset"].as_i64().expect("seconds");
    assert!(offset > 10_000_000, "{offset}");
    client.run("stop", json!({}));
    client.event("STOP", &json!({}));
    client.run("cont", json!({}));
    client.event("RESUME", &json!({}));
    guest.run("modprobe pvpanic-mmio 2>/dev/null || modprobe pvpanic");
    guest.send("echo c >/proc/sysrq-trigger\r");
    client.event("GUEST_PANICKED", &json!({ "action": "poweroff" }));
    client.event("SHUTDOWN", &json!({ "guest": true, "reason": "guest-panic" }));
}

/// Page tables, memory by virtual and physical address, registers and interrupts of a running kernel.
#[test]
fn a_kernel_is_looked_into() {
    let (socket, file) = (scratch("look"), scratch("saved"));
    let mut guest = boot("drivers-amd64", &socket, &[]);
    let mut client = Client::connect(&socket);
    let banner = guest.run("cat /proc/version");
    let symbol = guest.run("grep ' linux_banner$' /proc/kallsyms");
    let address = symbol.split_whitespace().next().expect("an address").to_owned();
    client.run("stop", json!({}));
    // Some words of the banner by the kernel's own address, then by the physical one.
    let saved =
        json!({ "val": u64::from_str_radix(&address, 16).expect("hexadecimal"), "size": 24, "filename": text(&file) });
    client.run("memsave", saved);
    let start = fs::read(&file).expect("it was saved");
    assert_eq!(String::from_utf8_lossy(&start), banner[..24]);
    let gpa = client.human(&format!("gva2gpa 0x{address}"));
    let gpa = gpa.trim().strip_prefix("gpa: 0x").expect("it is mapped").to_owned();
    let gpa = u64::from_str_radix(&gpa, 16).expect("hexadecimal");
    client.run("pmemsave", json!({ "val": gpa, "size": 24, "filename": text(&file) }));
    assert_eq!(fs::read(&file).expect("it was saved"), start);
    let page = address[..address.len() - 3].to_owned();
    let tlb = client.human("info tlb");
    assert!(tlb.lines().count() > 100);
    let large = &address[..address.len() - 6];
    assert!(tlb.contains(&page) || tlb.lines().any(|line| line.starts_with(large)), "{page} is not in the page tables");
    assert!(client.human("info mem").lines().any(|line| line.ends_with("-r-")), "read-only data of the kernel");
    assert!(client.human("info registers").contains("RAX="));
    assert!(client.human("info lapic").contains("APIC enabled"));
    let irq = client.human("info irq");
    assert!(irq.lines().any(|line| line.trim_start().starts_with("4: ")), "the console's interrupts: {irq}");
    assert!(client.human("x/3i $rip").starts_with("0x"));
    client.run("cont", json!({}));
}

/// What a guest reads is counted, and the power button is heard of.
#[test]
fn reading_is_counted() {
    let (socket, disc) = (scratch("eject"), scratch("disc"));
    fs::write(&disc, vec![0x5a; 1 << 20]).expect("an image");
    let mut guest = boot("drivers-amd64", &socket, &["-cdrom", text(&disc)]);
    let mut client = Client::connect(&socket);
    guest.run("modprobe ata_piix && modprobe sd_mod && modprobe sr_mod && sleep 1 && test -e /dev/sr0");
    guest.run("dd if=/dev/sr0 of=/dev/null bs=2048 count=1 2>/dev/null");
    let stats = client.run("query-blockstats", json!({}));
    assert!(stats[0]["stats"]["rd_bytes"].as_u64().expect("a number") >= 2048, "{stats}");
    client.run("system_powerdown", json!({}));
    client.event("POWERDOWN", &json!({}));
    guest.send("poweroff -f\r");
    client.event("SHUTDOWN", &json!({ "guest": true, "reason": "guest-shutdown" }));
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}
