//! Commands of both monitors on a machine that is not one.

use super::block_work::BlockWork;
use super::call::{Call, State};
use super::host::*;
use super::migrating::Migrating;
use super::plugging::{DeviceInfo, Plugging};
use super::types::Ty;
use super::{Commands, Events, Facts, Fault, JobSpec, Jobs, hmp, qmp, table};
use crate::cli::config::Actions;
use crate::cli::tests::with;
use crate::migration::{Address, Migration};
use brolga_devices::services::Reception;
use brolga_devices::vga::Picture;
use brolga_jit::Registers;
use serde_json::{Map, Value, json};
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

/// 8 KiB of memory at 0x1000 holding its own addresses' low bytes; linear = physical + 0x10000.
#[derive(Default)]
struct Fake {
    done: Mutex<Vec<Control>>,
    keys: Mutex<Vec<u16>>,
    pointers: Mutex<Vec<Pointer>>,
    ports: Mutex<Vec<(u16, u8, u32)>>,
    actions: Mutex<Actions>,
    order: Mutex<String>,
    events: Arc<Events>,
    jobs: Arc<Jobs>,
    texts: Mutex<Vec<String>>,
    migration: OnceLock<Arc<Migration>>,
}

impl BlockWork for Fake {}

impl Migrating for Fake {
    fn migration(&self) -> &Arc<Migration> {
        self.migration.get_or_init(|| Migration::new(self.events.clone()))
    }
    fn migrate(&self, address: Address) -> Result<(), Fault> {
        Err(Fault::new(format!("{address:?}")))
    }
}

impl Plugging for Fake {
    fn device_add(&self, value: &str) -> Result<(), Fault> {
        self.texts.lock().unwrap().push(value.to_owned());
        Ok(())
    }
    fn device_list(&self) -> Vec<DeviceInfo> {
        let device = |path: &str, model| DeviceInfo { path: path.to_owned(), model, ..DeviceInfo::default() };
        vec![
            device("/machine/peripheral-anon/device[0]", "loader"),
            device("/machine/peripheral/card", "e1000"),
            device("/machine/peripheral-anon/device[1]", "virtio-rng-pci"),
        ]
    }
}

impl MonitorHost for Fake {
    fn control(&self, what: Control) {
        self.done.lock().unwrap().push(what);
    }
    fn screen(&self) -> Option<Picture> {
        None
    }
    fn has_screen(&self, device: &str) -> bool {
        device == "card"
    }
    fn snapshot(&self, action: &SnapshotAction) -> Result<(), String> {
        Err(format!("{} is refused", action.kind()))
    }
    fn start_snapshot(&self, id: &str, action: SnapshotAction) -> Result<(), String> {
        self.jobs.start(JobSpec::plain(id, action.kind()), |_| Ok(()), |_| Ok(()))
    }
    fn jobs(&self) -> &Arc<Jobs> {
        &self.jobs
    }
    fn run_state(&self) -> RunState {
        RunState::Paused
    }
    fn cpus(&self) -> u32 {
        1
    }
    fn registers(&self, cpu: u32) -> Option<Registers> {
        let mut registers = Registers { rip: 0x11000, efer: 0x500, ..Registers::default() };
        registers.segments[1].attributes = 1 << 13;
        (cpu == 0).then_some(registers)
    }
    fn register_dump(&self, cpu: u32) -> Option<String> {
        (cpu == 0).then(|| "RIP=11000".into())
    }
    fn translate(&self, _cpu: u32, linear: u64) -> Option<u64> {
        linear.checked_sub(0x10000)
    }
    fn read_physical(&self, gpa: u64, buf: &mut [u8]) -> bool {
        let inside = (0x1000..0x3000).contains(&gpa) && gpa + buf.len() as u64 <= 0x3000;
        if inside {
            buf.iter_mut().enumerate().for_each(|(i, b)| *b = (gpa as usize + i) as u8);
        }
        inside
    }
    fn forward(&self, open: bool, netdev: Option<&str>, rule: &str) -> Result<String, String> {
        Ok(format!("{open} {netdev:?} {rule}\n"))
    }
    fn set_link(&self, name: &str, up: bool) -> Result<(), String> {
        if name == "n0" && !up { Ok(()) } else { Err("no such card".into()) }
    }
    fn receptions(&self) -> Vec<(String, &'static str, Option<Reception>)> {
        Vec::new()
    }
    fn change_medium(&self, change: &MediumChange) -> Result<(), String> {
        Err(format!("{change:?}"))
    }
    fn set_balloon(&self, bytes: u64) -> bool {
        bytes == 64 << 20
    }
    fn balloon(&self) -> Option<(u64, Vec<(&'static str, u64)>)> {
        Some((128 << 20, vec![("free_memory", 5)]))
    }
    fn events(&self) -> &Arc<Events> {
        &self.events
    }
    fn thread_ids(&self) -> Vec<(u32, i32)> {
        vec![(0, 77)]
    }
    fn actions(&self) -> Actions {
        *self.actions.lock().unwrap()
    }
    fn set_actions(&self, actions: Actions) {
        *self.actions.lock().unwrap() = actions;
    }
    fn set_boot_order(&self, order: &str) {
        *self.order.lock().unwrap() = order.to_owned();
    }
    fn port_read(&self, port: u16, _size: u8) -> u32 {
        u32::from(port) | 0xabcd_0000
    }
    fn port_write(&self, port: u16, size: u8, value: u32) {
        self.ports.lock().unwrap().push((port, size, value));
    }
    fn press(&self, keys: Vec<u16>, _hold: Duration) {
        self.keys.lock().unwrap().extend(keys);
    }
    fn key(&self, key: u16, down: bool) {
        self.keys.lock().unwrap().push(key | if down { 0 } else { 0x8000 });
    }
    fn point(&self, pointer: Pointer) {
        self.pointers.lock().unwrap().push(pointer);
    }
    fn pci(&self) -> Vec<PciInfo> {
        let mut config = vec![0; 64];
        config[..4].copy_from_slice(&[0x86, 0x80, 0x0e, 0x10]);
        (config[0x0b], config[0x3d], config[0x3c]) = (2, 1, 11);
        let region =
            PciRegion { bar: 0, io: false, size: 0x2_0000, address: Some(0xfebc_0000), prefetch: false, wide: false };
        let ports = PciRegion { bar: 1, io: true, size: 64, address: None, ..region };
        vec![PciInfo { bus: 0, slot: 3, function: 0, id: Some("card".into()), config, regions: vec![region, ports] }]
    }
    fn drives(&self) -> Vec<DriveInfo> {
        let cd = DriveInfo {
            name: "cd".into(),
            path: Some("/machine/peripheral/d".into()),
            removable: true,
            tray_open: Some(true),
            ..DriveInfo::default()
        };
        let medium = MediumInfo {
            file: "/x".into(),
            format: "raw",
            node: "#block000".into(),
            detect_zeroes: "off",
            cache: [true, false, false],
            image: json!({ "filename": "/x", "format": "raw", "virtual-size": 512 }),
            ..MediumInfo::default()
        };
        let disk = DriveInfo { name: "hd".into(), io_status: Some("ok"), medium: Some(medium), ..DriveInfo::default() };
        vec![cd, disk]
    }
    fn devices(&self) -> Vec<(String, &'static str)> {
        vec![("pic".into(), "isa-i8259")]
    }
    fn local_apic(&self, cpu: u32) -> Option<String> {
        (cpu == 0).then(|| "lapic".into())
    }
    fn memory_map(&self) -> Vec<Range<u64>> {
        std::iter::once(0x1000..0x3000).collect()
    }
    fn while_paused(&self, work: &mut dyn FnMut() -> Result<u64, String>) -> Result<u64, String> {
        work()
    }
    fn note_dump(&self, _bytes: Option<u64>) {}
    fn last_dump(&self) -> (&'static str, u64) {
        ("none", 0)
    }
    fn start_debugger(&self, endpoint: &str, _commands: Commands) -> Result<(), String> {
        if endpoint == "none" { Ok(()) } else { Err(endpoint.to_owned()) }
    }
    fn inspect(&self, topic: Topic) -> Option<String> {
        (topic == Topic::Pic).then(|| "irr = 0".into())
    }
}

struct Chars;

impl CharHost for Chars {
    fn list(&self) -> Vec<CharInfo> {
        let info = |label: &str, filename: &str| CharInfo {
            label: label.into(),
            filename: filename.into(),
            frontend_open: true,
        };
        vec![info("serial0", "null"), info("monitor0", "stdio")]
    }
    fn kinds(&self) -> &'static [&'static str] {
        &["null"]
    }
    fn ring_write(&self, label: &str, bytes: &[u8]) -> Result<(), String> {
        if label == "ring" && bytes == b"a b" { Ok(()) } else { Err(format!("{label} is not a ringbuf device")) }
    }
    fn ring_read(&self, label: &str, most: usize) -> Result<Vec<u8>, String> {
        if label == "ring" { Ok(b"x\xff\x01\\y\n"[..most.min(6)].to_vec()) } else { Err("Device not found".into()) }
    }
}

/// The facts, and what they only refer to.
fn facts() -> (Facts, Arc<dyn CharHost>) {
    let config = with(&["-name", "box", "-device", "e1000,id=card", "-device", "virtio-rng-pci"]).unwrap();
    let chars: Arc<dyn CharHost> = Arc::new(Chars);
    let chardevs: Weak<dyn CharHost> = Arc::downgrade(&chars);
    (Facts { config: Arc::new(config), chardevs }, chars)
}

fn say_to(host: &Fake, line: &str) -> String {
    let (facts, _chars) = facts();
    hmp::run(host, &facts, &mut State::default(), line)
}

fn say(line: &str) -> String {
    say_to(&Fake::default(), line)
}

#[test]
fn controls() {
    let host = Fake::default();
    for line in ["stop", "c", "system_reset", "system_powerdown", "nmi", " q "] {
        assert_eq!(say_to(&host, line), "");
    }
    use Control::*;
    assert_eq!(*host.done.lock().unwrap(), [Stop, Continue, Reset, PowerButton, Nmi, Quit]);
    assert_eq!(say_to(&host, "watchdog_action pause"), "");
    assert_eq!(say_to(&host, "watchdog_action zz"), "Error: invalid parameter value: zz\n");
    assert_eq!(say_to(&host, "boot_set cd"), "boot device list now set to cd\n");
    assert_eq!(say_to(&host, "boot_set z"), "Error: Invalid boot device 'z'\n");
    assert_eq!(*host.order.lock().unwrap(), "cd");
    assert_eq!(say_to(&host, "gdbserver"), "Error: tcp::1234\n");
    assert_eq!(say_to(&host, "gdbserver none"), "Disabled gdbserver\n");
}

#[test]
fn information() {
    assert_eq!(say("info status"), "VM status: paused\n");
    assert_eq!(say("info name"), "box\n");
    assert_eq!(say("info uuid"), "00000000-0000-0000-0000-000000000000\n");
    assert_eq!(say("info registers"), "\nCPU#0\nRIP=11000\n");
    assert_eq!(say("info registers -a"), say("info registers 0"));
    assert_eq!(say("info cpus"), "* CPU #0: thread_id=77\n");
    assert_eq!(say("info serial"), "serial0: filename=null\n");
    assert_eq!(say("info chardev"), "serial0: filename=null\nmonitor0: filename=stdio\n");
    assert_eq!(say("info pic"), "irr = 0\n");
    assert_eq!(say("info jit"), "Error: not available on this machine\n");
    assert_eq!(say("info mem"), "PG disabled\n");
    assert_eq!(say("info version"), format!("10.0.2 (Brolga {})\n", crate::cli::VERSION));
    assert!(say("info").contains("info registers [-a] [vcpu] -- "));
    assert_eq!(say("info statsu"), "unknown command: 'info statsu'; did you mean info status?; 'info' lists all\n");
}

#[test]
fn pci_and_objects() {
    let pci = say("info pci");
    assert!(
        pci.starts_with("  Bus  0, device   3, function 0:\n    Ethernet controller: PCI device 8086:100e\n"),
        "{pci}"
    );
    assert!(pci.contains("      IRQ 11, pin A\n      BAR0: 32 bit memory at 0xfebc0000 [0xfebdffff].\n"), "{pci}");
    assert!(pci.contains("      BAR1: I/O (not mapped)\n      id \"card\"\n"), "{pci}");
    assert_eq!(say("qom-get /machine/peripheral/card type"), "\"e1000\"\n");
    assert_eq!(say("qom-get card realized"), "true\n");
    assert!(say("qom-list /machine/peripheral-anon").contains("device[1] (child<virtio-rng-pci>)"));
    assert_eq!(say("qom-get /nope type"), "Error: Device '/nope' not found\n");
    assert!(say("info qom-tree").contains("/peripheral (container)\n    /card (e1000)\n"));
}

#[test]
fn devices_that_come_and_go() {
    let host = Fake::default();
    assert_eq!(say_to(&host, "device_add e1000,netdev=n,id=x"), "");
    assert_eq!(*host.texts.lock().unwrap(), ["e1000,netdev=n,id=x"]);
    assert_eq!(say_to(&host, "device_add e1001"), "Error: 'e1001' is not a valid device model name\n");
    assert_eq!(say_to(&host, "device_del x"), "Error: Device 'x' not found\n");
    assert!(say_to(&host, "netdev_add").starts_with("netdev_add: type expected"));
}

#[test]
fn links_and_media() {
    assert_eq!(say("set_link n0 off"), "");
    assert_eq!(say("set_link n1 on"), "Error: no such card\n");
    assert!(say("set_link n0").starts_with("set_link: up expected\n"));
    assert!(say("set_link n0 maybe").starts_with("set_link: up: "));
    assert_eq!(say("hostfwd_add n0 tcp::0-:22"), "true Some(\"n0\") tcp::0-:22\n");
    assert_eq!(say("eject -f cd"), "Error: Eject { drive: \"cd\", force: true }\n");
    assert_eq!(say("eject"), "Error: name a drive, as info block lists them\n");
    assert_eq!(say("eject hd"), "Error: Device 'hd' is not removable\n");
    assert_eq!(say("eject dc"), "Error: Device 'dc' not found; there are cd\n");
    let inserted = "Error: Insert { drive: \"cd\", file: \"/x y\", format: Some(\"raw\"), read_only: Some(false), force: false }\n";
    assert_eq!(say("change cd \"/x y\" raw read-write"), inserted);
    assert!(say("change cd /x raw rw").contains("'rw' is no mode"));
    let block = say("info block");
    assert!(block.starts_with("cd: [not inserted]\n    Attached to:      /machine/peripheral/d\n"), "{block}");
    assert!(block.contains("\n\nhd (#block000): /x (raw)\n    Cache mode:       writeback\n"), "{block}");
    assert_eq!(say("info snapshots"), "There is no snapshot available.\n");
    assert_eq!(say("savevm x"), "Error: snapshot-save is refused\n");
    assert!(say("info blockstats").starts_with("cd: rd_bytes=0 wr_bytes=0 rd_operations=0 "));
}

#[test]
fn keys_and_ports() {
    let host = Fake::default();
    assert_eq!(say_to(&host, "sendkey ctrl-alt-f1 50"), "");
    assert_eq!(say_to(&host, "sendkey 0x1e"), "");
    assert_eq!(*host.keys.lock().unwrap(), [0x1d, 0x38, 0x3b, 0x1e]);
    assert_eq!(say_to(&host, "sendkey zzz"), "Error: invalid parameter: zzz\n");
    assert_eq!(say_to(&host, "mouse_move 5 -3") + &say_to(&host, "mouse_button 5"), "");
    let moved = Pointer { right: 5, down: -3, ..Pointer::default() };
    assert_eq!(*host.pointers.lock().unwrap(), [moved, Pointer { press: 3, release: !3, ..Pointer::default() }]);
    assert_eq!(say_to(&host, "i 0x64"), "portb[0x0064] = 0x64\n");
    assert_eq!(say_to(&host, "i /w 0x3f8"), "portl[0x03f8] = 0xabcd03f8\n");
    assert_eq!(say_to(&host, "i 0x70 0x0f"), "portb[0x0070[0x0f]] = 0x71\n");
    assert_eq!(say_to(&host, "o/b 0x80 1+1"), "");
    assert_eq!(*host.ports.lock().unwrap(), [(0x70, 1, 0x0f), (0x80, 1, 2)]);
}

#[test]
fn balloons() {
    assert_eq!(say("balloon 64"), "");
    assert!(say("balloon 65").contains("add -device virtio-balloon-pci"));
    assert!(say("balloon 0").contains("expects a size") && say("balloon x").contains("not a number"));
    assert_eq!(say("info balloon"), "balloon: actual=128\n  free_memory=5\n");
}

#[test]
fn memory_dumps() {
    assert_eq!(say("xp/4xb 0x1000"), "0000000000001000: 0x00 0x01 0x02 0x03\n");
    assert_eq!(
        say("x /5xw $rip+0x10"),
        "0000000000011010: 0x13121110 0x17161514 0x1b1a1918 0x1f1e1d1c\n0000000000011020: 0x23222120\n"
    );
    assert_eq!(say("xp/2xg 0x2ff8"), "0000000000002ff8: 0xfffefdfcfbfaf9f8\nCannot access memory at address 0x3000\n");
    assert_eq!(say("x 0"), "Cannot access memory at address 0x0\n");
    assert_eq!(say("xp/1i 0x1000"), "0x00001000:  00 01                    addb     %al, (%rcx)\n");
    assert_eq!(say("x/z 0"), "Error: 'z' is not a format (x d u o c i) or size (b h w g)\n");
    assert_eq!(say("x"), "x: addr expected\nTry \"help x\" for more information\n");
    assert_eq!(say("gva2gpa 0x11000"), "gpa: 0x1000\n");
    assert_eq!(say("gva2gpa 0"), "Unmapped\n");
    // The sum of 0, 1, 2, 3, rotated as they go.
    assert_eq!(say("sum 0x1000 4"), "16388\n");
}

#[test]
fn memory_is_saved_to_files() {
    let path = std::env::temp_dir().join(format!("brolga-monitor-test-{}", std::process::id()));
    let name = path.to_str().unwrap();
    assert_eq!(say(&format!("pmemsave 0x1000 0x20 {name}")), "");
    assert_eq!(std::fs::read(&path).unwrap(), (0..0x20).collect::<Vec<u8>>());
    assert_eq!(say(&format!("memsave 0x11ff8 16 \"{name}\"")), "");
    assert_eq!(std::fs::read(&path).unwrap()[8..], [0, 1, 2, 3, 4, 5, 6, 7]);
    assert!(say(&format!("memsave 0 16 {name}")).contains("Invalid addr"));
    assert!(say(&format!("pmemsave 0 0xffffffffffffffff {name}")).contains("there is no more memory"));
    assert_eq!(say(&format!("dump-guest-memory {name}")), "");
    let dump = std::fs::read(&path).unwrap();
    assert_eq!(dump[..5], *b"\x7fELF\x02");
    assert_eq!(dump[dump.len() - 0x2000..][..4], [0, 1, 2, 3]);
    std::fs::remove_file(&path).unwrap();
    assert!(say("pmemsave 0 16 /no/such/dir").starts_with("Error: Could not open '/no/such/dir': "));
}

#[test]
fn numbers_help_and_errors() {
    assert_eq!(say("print $rip + 1"), "0x11001\n");
    assert_eq!(say("p/d -1"), "-1\n");
    assert_eq!(say("cpu 1"), "Error: invalid CPU index; the last one is 0\n");
    assert_eq!(say("stpo"), "unknown command: 'stpo'; did you mean stop?; 'help' lists all\n");
    assert_eq!(
        say("stop now"),
        "stop: extraneous characters at the end of line: 'now'\nTry \"help stop\" for more information\n"
    );
    assert_eq!(say("eject -z cd"), "eject: unsupported option -z\nTry \"help eject\" for more information\n");
    let listed = table::all().filter(|command| command.hmp.first().is_some_and(|name| !name.starts_with("info ")));
    assert_eq!(say("help").lines().count(), listed.count());
    assert!(say("help xp").starts_with("xp /fmt addr -- "));
    assert!(say("help q").starts_with("quit|q -- "));
    assert!(say("log bogus").contains("not a log item"));
    assert_eq!(say("   ") + &say("# a remark"), "");
    assert!(say("log help").contains("\ncpu_reset "), "{}", say("log help"));
    assert!(say("device_add help").contains("e1000 "), "{}", say("device_add help"));
    assert!(say("device_add e1000,help").contains("netdev="));
    // Switches may stand behind other arguments.
    assert_eq!(say("screendump /x -f gif"), say("screendump -f gif /x"));
    assert!(say("screendump /x -f gif").contains("does not accept value 'gif'"));
    assert_eq!(say("gpa2hva 0"), "Error: No memory is mapped at address 0x0\n");
}

#[test]
fn words_are_completed() {
    assert_eq!(hmp::complete("system_"), ["system_powerdown", "system_reset", "system_wakeup"]);
    assert_eq!(hmp::complete("info chard"), ["chardev"]);
    assert!(hmp::complete("help info us").contains(&"usernet".to_owned()));
    assert!(hmp::complete("x 5").is_empty() && !hmp::complete("").contains(&"info pci".to_owned()));
}

/// Whatever is typed, nothing breaks.
#[test]
fn random_lines_are_answered() {
    let words = "x xp print p info help cpu /4xb /3i /8xg /c /o /d registers -a cpus $rip $esp 0x1000 0x2fff \
                 0xffffffffffffffff -1 ( ) + - * / % ~ & 18446744073709551615 é \u{7f} /65536xg status sum i o sendkey - \
                 \" \\ mem tlb qom-get qom-list /machine type eject -f change balloon gva2gpa";
    let words: Vec<&str> = words.split_whitespace().collect();
    let (mut seed, mut state) = (88_172_645_463_325_252_u64, State::default());
    let ((facts, _chars), host) = (facts(), Fake::default());
    for _ in 0..5_000 {
        let mut line = String::new();
        for _ in 0..6 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            line += words[(seed % words.len() as u64) as usize];
            if seed >> 40 & 1 != 0 {
                line.push(' ');
            }
        }
        let text = hmp::run(&host, &facts, &mut state, &line);
        assert!(text.is_empty() || text.ends_with('\n'), "{line}: {text}");
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) as usize % n
    }

    /// Any value.
    fn any(&mut self, depth: usize) -> Value {
        match self.below(if depth == 0 { 6 } else { 8 }) {
            0 => Value::Null,
            1 => (self.below(2) == 0).into(),
            2 => [0, 1, -1, i64::MAX, i64::MIN, 0x1000][self.below(6)].into(),
            3 => [u64::MAX, 1 << 63][self.below(2)].into(),
            4 => 1.5.into(),
            5 => ["", "cd", "card", "/machine", "type", "\u{0}é", "qemu64", "file:/no/such/file"][self.below(8)].into(),
            6 => (0..self.below(4)).map(|_| self.any(depth - 1)).collect(),
            _ => (0..self.below(4)).map(|_| (self.any(0).to_string(), self.any(depth - 1))).collect(),
        }
    }

    /// A value of type `ty`.
    fn of(&mut self, ty: &Ty) -> Value {
        match ty {
            Ty::Str => ["", "cd", "hd", "card", "/machine", "/machine/peripheral/card", "type", "n0", "x-y"]
                [self.below(9)]
            .into(),
            Ty::Int => [0, 1, -1, i64::MAX, i64::MIN, 0x1000][self.below(6)].into(),
            Ty::Uint => [0, 1, u64::MAX, 0x1000][self.below(4)].into(),
            Ty::Bool => (self.below(2) == 0).into(),
            Ty::Any => self.any(2),
            Ty::Enum(words) => words.values[self.below(words.values.len())].into(),
            Ty::Array(of) => (0..self.below(4)).map(|_| self.of(of)).collect(),
            Ty::Object(object) => {
                let mut map = self.members(object.members.iter());
                if let Some(union) = &object.union {
                    let tag = map.get(union.tag).cloned().unwrap_or_default();
                    let case = union.cases.iter().find(|(case, _)| tag == *case);
                    case.into_iter().for_each(|(_, more)| map.extend(self.members(more.members.iter())));
                }
                map.into()
            }
        }
    }

    fn members<'a>(&mut self, members: impl Iterator<Item = &'a super::types::Member>) -> Map<String, Value> {
        let mut map = Map::new();
        for member in members {
            if !member.optional || self.below(2) == 0 {
                map.insert(member.name.to_owned(), self.of(&member.ty));
            }
        }
        map
    }
}

/// Whatever programs send, right types or wrong ones: an answer of the type that the table tells, or an error.
#[test]
fn random_arguments_are_answered() {
    let ((facts, _chars), host, mut random) = (facts(), Fake::default(), Random(0x9e37_79b9_7f4a_7c15));
    // They write files wherever they are told to.
    let apart = ["pmemsave", "memsave", "dump-guest-memory"];
    let commands = table::all().filter(|command| command.qmp.is_some_and(|name| !apart.contains(&name)));
    let (mut answered, mut refused) = (0, 0);
    for command in commands {
        let name = command.qmp.unwrap_or_default();
        for round in 0..200 {
            let mut args =
                random.members(command.args.iter().filter(|arg| qmp::schema::in_qmp(arg)).map(|arg| &arg.member));
            if round % 4 == 0 {
                args.insert(format!("{}", random.below(3)), random.any(2));
            } else if round % 4 == 1 {
                args.values_mut().for_each(|value| *value = random.any(3));
            }
            let checked = qmp::check_arguments(command, &args);
            assert!(round % 4 < 2 || checked.is_ok(), "{name} {args:?}: {checked:?}");
            if checked.is_err() {
                refused += 1;
                continue;
            }
            let mut state = State::default();
            let mut call = Call {
                host: &host,
                facts: &facts,
                state: &mut state,
                args,
                people: false,
                descriptor: &|| None,
                after: None,
            };
            match ((command.run)(&mut call), &command.returns) {
                (Ok(answer), Some(ty)) => assert_eq!(ty.check(name, &answer), Ok(()), "{answer}"),
                (Err(fault), _) => assert!(!fault.desc.is_empty() && !fault.desc.contains('\n'), "{name}: {fault:?}"),
                (Ok(_), None) => {}
            }
            answered += 1;
        }
    }
    assert!(answered > 5_000 && refused > 500, "{answered} {refused}");
}
