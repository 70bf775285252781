//! A Debian kernel on the network: a lease, data both ways with a server on the host, and a forwarded port.

use crate::harness::{Boot, COMMAND, Guest, Scratch, cached};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Bytes moved in each direction.
const LENGTH: usize = 3_000_001;
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes that never repeat in step with a buffer's size.
fn data() -> Vec<u8> {
    let mut x = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 32) as u8
    };
    (0..LENGTH).map(|_| next()).collect()
}

/// A server on the loopback that gives one caller [`data`] over HTTP.
fn web_server() -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let port = listener.local_addr().expect("its address").port();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a caller");
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("a request");
            request.push(byte[0]);
        }
        assert!(request.starts_with(b"GET /file "), "{}", String::from_utf8_lossy(&request));
        let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&data())).expect("a caller who listens");
    });
    (port, server)
}

/// A server on the loopback that keeps what one caller sends.
fn sink() -> (u16, JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let port = listener.local_addr().expect("its address").port();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a caller");
        let mut got = Vec::new();
        stream.read_to_end(&mut got).expect("an orderly end");
        got
    });
    (port, server)
}

/// Fetches a page from a port of the host's.
fn get(port: u16, path: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("the forwarded port");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").expect("a server that listens");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    let body = answer.windows(4).position(|w| w == b"\r\n\r\n").expect("a head");
    assert!(answer.starts_with(b"HTTP/1.") && answer[..body].windows(5).any(|w| w == b" 200 "), "not found");
    answer.split_off(body + 4)
}

/// Boots a guest with a card of `model`, whose driver is `module`.
fn guest(model: &str, module: &str) -> Guest {
    let netdev = "user,id=n0,hostname=guest,hostfwd=tcp:127.0.0.1:0-:80";
    let card = format!("{model},netdev=n0,mac=52:54:00:aa:bb:cc");
    let options = ["-no-reboot", "-netdev", netdev, "-device", &card];
    let mut guest = Boot::new("debian").initramfs("drivers-amd64").append("quiet").options(&options).to_shell();
    guest.run(&format!("modprobe {module}"));
    assert_eq!(guest.run("cat /sys/class/net/eth0/address"), "52:54:00:aa:bb:cc");
    let lease = guest.run("udhcpc -i eth0 -n -q -t 10 2>/dev/null");
    assert!(lease.contains("lease: 10.0.2.15/24 router 10.0.2.2 dns 10.0.2.3 hostname guest for 86400 s"), "{lease}");
    guest
}

/// Pings, downloads, uploads, and is called; returns the port that leads to its web server.
fn talks(guest: &mut Guest) -> u16 {
    guest.run("ping -c 3 -W 5 10.0.2.2");
    let (port, server) = web_server();
    guest.run_within(&format!("wget -q -O /tmp/file http://10.0.2.2:{port}/file"), PATIENCE);
    server.join().expect("the server's part");
    let (port, sink) = sink();
    guest.run_within(&format!("nc -w 10 10.0.2.2 {port} </tmp/file"), PATIENCE);
    assert!(sink.join().expect("the sink's part") == data(), "what came back is not what was sent");
    let forwarded = guest.error_line("n0: hostfwd=tcp:127.0.0.1:", COMMAND);
    let port = forwarded.split('-').next().and_then(|port| port.parse().ok()).expect("a port");
    guest.run("httpd -p 80 -h /tmp");
    assert!(get(port, "/file") == data(), "what the guest serves is not what it got");
    // Nobody listens there: the refusal comes at once and not by running out of patience.
    guest.run("! nc -w 20 10.0.2.2 1 </dev/null");
    port
}

/// A folder that is gone at the end of its test.
struct Folder(std::path::PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left behind is in the temporary folder.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A folder for the TFTP server, with a file.
fn served_folder(name: &str) -> Folder {
    let folder = std::env::temp_dir().join(format!("brolga-guest-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join("boot"), &data()[..70_000]).expect("a file");
    Folder(folder)
}

#[test]
fn tftp_ipv6_and_forwarded_programs() {
    let folder = served_folder("tftp");
    let netdev = format!("user,id=n0,tftp={},guestfwd=tcp:10.0.2.100:7-cmd:cat", folder.0.display());
    let options = ["-no-reboot", "-netdev", &netdev, "-device", "virtio-net-pci,netdev=n0,queues=2", "-smp", "2"];
    let boot = Boot::new("debian").initramfs("drivers-amd64").append("quiet").options(&options);
    let mut guest = boot.to_shell();
    guest.run("modprobe virtio_pci && modprobe virtio_net");
    guest.run("udhcpc -i eth0 -n -q -t 10 2>/dev/null");
    assert_eq!(guest.run("ls -d /sys/class/net/eth0/queues/tx-* | wc -l"), "2", "a pair for each processor");
    guest.run_within("tftp -g -r boot -l /tmp/boot 10.0.2.2", PATIENCE);
    let (port, sink) = sink();
    guest.run_within(&format!("nc -w 10 10.0.2.2 {port} </tmp/boot"), PATIENCE);
    assert!(sink.join().expect("the sink's part") == data()[..70_000], "TFTP changed the file");
    assert_eq!(guest.run("echo over there and back | nc -w 10 10.0.2.100 7"), "over there and back");
    // The address comes by router advertisement, once it was found to be nobody else's.
    guest.run("for i in 1 2 3 4 5 6 7 8 9; do ip -6 addr show eth0 | grep -q 'fec0::5054.* scope site dynamic' && break; sleep 1; done");
    guest.run("sleep 2; ping6 -c 2 -W 5 fec0::2");
}

/// Starts a guest over the network from a folder with a kernel; `bootfile` is what the card's boot ROM loads.
fn starts_over_the_network(card: &str, bootfile: &str, says: &str) {
    let folder = served_folder(&format!("pxe-{}-{bootfile}", card.replace([',', '='], "-")));
    let put = |name: &str, from: std::path::PathBuf| std::fs::copy(from, folder.0.join(name)).expect("a copy");
    put("vmlinuz", crate::harness::kernel("debian"));
    put("initrd.gz", cached("initramfs/drivers-amd64.cpio.gz"));
    put("grub.pxe", cached("network/grub.pxe"));
    let append = "console=ttyS0 panic=-1 quiet";
    let script = format!(
        "#!ipxe\necho iPXE loads the kernel\nkernel vmlinuz initrd=initrd.gz {append} booted=ipxe\ninitrd initrd.gz\nboot\n"
    );
    std::fs::write(folder.0.join("boot.ipxe"), script).expect("a script");
    std::fs::create_dir(folder.0.join("grub")).expect("a folder");
    let config =
        format!("echo \"GRUB loads the kernel\"\nlinux /vmlinuz {append} booted=grub\ninitrd /initrd.gz\nboot\n");
    std::fs::write(folder.0.join("grub/grub.cfg"), config).expect("a configuration");
    let netdev = format!("user,id=n0,tftp={},bootfile={bootfile}", folder.0.display());
    let device = format!("{card},netdev=n0");
    let words = ["-m", "256M", "-nographic", "-no-reboot", "-netdev", &netdev, "-device", &device, "-boot", "n"];
    let mut guest = Guest::start(&words.map(str::to_owned));
    guest.expect("iPXE", crate::harness::BOOT);
    guest.expect(says, crate::harness::BOOT);
    guest.expect(crate::harness::INIT, crate::harness::BOOT);
    guest.expect(crate::harness::PROMPT, COMMAND);
    let booted = if bootfile == "grub.pxe" { "booted=grub" } else { "booted=ipxe" };
    assert!(guest.run("cat /proc/cmdline").contains(booted));
    guest.run("modprobe virtio_pci && modprobe virtio_net; modprobe e1000; modprobe 8139cp; modprobe 8139too");
    guest.run("udhcpc -i eth0 -n -q -t 10 2>/dev/null");
    guest.run("ping -c 1 -W 5 10.0.2.2");
}

#[test]
fn ipxe_on_an_e1000_starts_a_kernel_over_tftp() {
    starts_over_the_network("e1000", "boot.ipxe", "iPXE loads the kernel");
}

#[test]
fn ipxe_on_an_rtl8139_starts_a_kernel_over_tftp() {
    starts_over_the_network("rtl8139", "boot.ipxe", "iPXE loads the kernel");
}

#[test]
fn ipxe_on_an_rtl8139_without_descriptor_rings_starts_grub() {
    starts_over_the_network("rtl8139,c-plus=off", "grub.pxe", "GRUB loads the kernel");
}

#[test]
fn ipxe_on_a_virtio_card_starts_a_kernel_over_tftp() {
    starts_over_the_network("virtio-net-pci", "boot.ipxe", "iPXE loads the kernel");
}

#[test]
fn grub_starts_a_kernel_through_the_boot_rom_of_a_card() {
    starts_over_the_network("e1000", "grub.pxe", "GRUB loads the kernel");
}

#[test]
fn a_cable_pulled_out_and_plugged_in_is_seen_by_drivers() {
    let cards = [
        ("e1000", "e1000"),
        ("rtl8139", "8139cp"),
        ("rtl8139,c-plus=off", "8139too"),
        ("virtio-net-pci", "virtio_pci && modprobe virtio_net"),
    ];
    for (model, module) in cards {
        let mut guest = guest(model, module);
        for (state, carrier) in [("off", "0"), ("on", "1")] {
            guest.send("\x01c");
            guest.expect(") ", COMMAND);
            guest.send(&format!("set_link n0 {state}\r"));
            guest.expect(") ", COMMAND);
            guest.send("\x01c");
            guest.send("\r");
            guest.expect(crate::harness::PROMPT, COMMAND);
            guest.run(&format!(
                "for i in 1 2 3 4 5 6 7 8 9; do [ $(cat /sys/class/net/eth0/carrier) = {carrier} ] && break; sleep 1; done; \
                 [ $(cat /sys/class/net/eth0/carrier) = {carrier} ]"
            ));
            guest.run(if state == "on" { "ping -c 2 -W 5 10.0.2.2" } else { "! ping -c 1 -W 2 10.0.2.2" });
        }
    }
}

#[test]
fn cards_and_host_ends_meet_on_a_hub() {
    // Two cards of one guest and the user network; what they say to each other goes through the hub too.
    let options = ["-no-reboot", "-net", "nic,macaddr=52:54:00:00:00:01", "-net", "nic,model=rtl8139", "-net", "user"];
    let boot = Boot::new("debian").initramfs("drivers-amd64").append("quiet net.ifnames=0").options(&options);
    let mut guest = boot.to_shell();
    guest.run("modprobe e1000 && modprobe 8139cp");
    for card in ["eth0", "eth1"] {
        let lease = guest.run(&format!("udhcpc -i {card} -n -q -t 10 2>/dev/null"));
        assert!(lease.contains("lease: 10.0.2.1"), "{lease}");
        guest.run("ping -c 2 -W 5 10.0.2.2");
        let (port, server) = web_server();
        guest.run_within(&format!("wget -q -O /tmp/file http://10.0.2.2:{port}/file"), PATIENCE);
        server.join().expect("the server's part");
        let (port, sink) = sink();
        guest.run_within(&format!("nc -w 10 10.0.2.2 {port} </tmp/file"), PATIENCE);
        assert!(sink.join().expect("the sink's part") == data(), "what came back is not what was sent");
        guest.run(&format!("ip addr flush dev {card}"));
    }
    // What one card sends to nobody in particular, the other one hears.
    guest.run("ip link set eth0 promisc on; ip link set eth0 up");
    let before: u64 = guest.run("cat /sys/class/net/eth0/statistics/rx_packets").parse().expect("a number");
    guest.run("ip addr add 192.168.9.1/24 dev eth1; ping -c 3 -W 1 192.168.9.9 || true");
    let after: u64 = guest.run("cat /sys/class/net/eth0/statistics/rx_packets").parse().expect("a number");
    assert!(after >= before + 3, "{before} {after}");
}

#[test]
fn two_guests_reach_each_other_over_a_socket() {
    let at = Scratch::new("guest-stream");
    let start = |server: &str, address: &str| {
        let netdev = format!("stream,id=n0,server={server},addr.type=unix,addr.path={}", at.display());
        let options = ["-no-reboot", "-netdev", &netdev, "-device", "e1000,netdev=n0"];
        let mut guest = Boot::new("debian").initramfs("drivers-amd64").append("quiet").options(&options).start();
        // Before it is up, the other one may already call.
        guest.expect(crate::harness::INIT, crate::harness::BOOT);
        guest.expect(crate::harness::PROMPT, COMMAND);
        guest.run(&format!("modprobe e1000 && ip addr add {address}/24 dev eth0 && ip link set eth0 up"));
        guest
    };
    let (mut one, mut two) = (start("on", "192.168.7.1"), start("off", "192.168.7.2"));
    one.run("ping -c 3 -W 5 192.168.7.2");
    one.run("mkdir /tmp/www && dd if=/dev/urandom of=/tmp/www/file bs=1000 count=1500 2>/dev/null && httpd -p 80 -h /tmp/www");
    two.run_within("wget -q -O /tmp/file http://192.168.7.1/file", PATIENCE);
    assert_eq!(one.run("md5sum </tmp/www/file"), two.run("md5sum </tmp/file"));
}

/// Passes datagrams on between two ports, and makes of one in `trouble` what networks do: it is lost, comes twice, or
/// comes after the next. Ends with the process.
fn bad_wire(a: (UdpSocket, SocketAddr), b: (UdpSocket, SocketAddr), trouble: u64) {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut one_way = move |from: UdpSocket, to: UdpSocket, end: SocketAddr| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let mut x = seed;
        thread::spawn(move || {
            let (mut buffer, mut late) = (vec![0; 65536], None::<Vec<u8>>);
            while let Ok((len, _)) = from.recv_from(&mut buffer) {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                let frame = &buffer[..len];
                // A guest that has ended takes nothing.
                let send = |frame: &[u8]| drop(to.send_to(frame, end));
                match (x >> 20) % trouble {
                    0 => {}
                    1 => (0..2).for_each(|_| send(frame)),
                    2 => late = Some(frame.to_vec()),
                    _ => {
                        send(frame);
                        late.take().iter().for_each(|late| send(late));
                    }
                }
            }
        });
    };
    let again = |socket: &UdpSocket| socket.try_clone().expect("a second handle");
    one_way(again(&a.0), again(&b.0), b.1);
    one_way(b.0, a.0, a.1);
}

#[test]
fn a_bad_wire_between_two_guests_changes_no_data() {
    let socket = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = |socket: &UdpSocket| socket.local_addr().expect("its address");
    let start = |card: &str, module: &str, wire: SocketAddr, own: &str| {
        // Free now, and nobody else asks for it by number.
        let local = address(&socket());
        let netdev = format!(
            "dgram,id=n0,local.type=inet,local.host=127.0.0.1,local.port={},remote.type=inet,remote.host=127.0.0.1,remote.port={}",
            local.port(),
            wire.port()
        );
        let mac = if own.ends_with('1') { "52:54:00:00:00:01" } else { "52:54:00:00:00:02" };
        let card = format!("{card},netdev=n0,mac={mac}");
        let options = ["-no-reboot", "-netdev", &netdev, "-device", &card];
        let boot = Boot::new("debian").initramfs("drivers-amd64").append("quiet").options(&options);
        let mut guest = boot.to_shell();
        guest.run(&format!("modprobe {module} && ip addr add {own}/24 dev eth0 && ip link set eth0 up"));
        (guest, local)
    };
    let (left, right) = (socket(), socket());
    let (mut one, one_at) = start("e1000", "e1000", address(&left), "192.168.7.1");
    let (mut two, two_at) =
        start("virtio-net-pci", "virtio_pci && modprobe virtio_net", address(&right), "192.168.7.2");
    bad_wire((left, one_at), (right, two_at), 60);
    one.run("mkdir /tmp/www && dd if=/dev/urandom of=/tmp/www/file bs=1000 count=1500 2>/dev/null && httpd -p 80 -h /tmp/www");
    two.run_within("for i in 1 2 3 4 5; do ping -c 1 -W 2 192.168.7.1 && break; done", PATIENCE);
    two.run_within("wget -q -O /tmp/file http://192.168.7.1/file", 4 * PATIENCE);
    assert_eq!(one.run("md5sum </tmp/www/file"), two.run("md5sum </tmp/file"));
    two.run("mkdir /tmp/www && cat /tmp/file /tmp/file >/tmp/www/back && httpd -p 80 -h /tmp/www");
    one.run_within("wget -q -O /tmp/back http://192.168.7.2/back", 4 * PATIENCE);
    assert_eq!(two.run("md5sum </tmp/www/back"), one.run("md5sum </tmp/back"));
}

/// Descriptors and resident KiB of the emulator.
fn held(guest: &Guest) -> (usize, usize) {
    let process = format!("/proc/{}", guest.id());
    let descriptors = std::fs::read_dir(format!("{process}/fd")).expect("its descriptors").count();
    let status = std::fs::read_to_string(format!("{process}/status")).expect("its status");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    (descriptors, resident.trim().trim_end_matches(" kB").parse().expect("a number"))
}

#[test]
fn a_thousand_connections_leave_nothing_behind() {
    let mut guest = guest("virtio-net-pci", "virtio_pci && modprobe virtio_net");
    guest.run("mkdir /tmp/www && echo all is well >/tmp/www/page && httpd -p 80 -h /tmp/www");
    let forwarded = guest.error_line("n0: hostfwd=tcp:127.0.0.1:", COMMAND);
    let port: u16 = forwarded.split('-').next().and_then(|port| port.parse().ok()).expect("a port");
    let visit = move |count: usize| {
        let callers: Vec<_> = (0..5)
            .map(|_| thread::spawn(move || (0..count).for_each(|_| assert_eq!(get(port, "/page"), b"all is well\n"))))
            .collect();
        callers.into_iter().for_each(|caller| caller.join().expect("a caller's part"));
    };
    visit(20);
    let before = held(&guest);
    visit(200);
    // Connections that no page was asked for, and such that are reset.
    for i in 0..200 {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("the forwarded port");
        if i % 2 == 0 {
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a reset at the end");
        }
    }
    // The guest's server lets few wait for it; the others are called again after 1, 3, 7, 15, 31, 63 and 127 seconds.
    let deadline = std::time::Instant::now() + 4 * PATIENCE;
    while held(&guest).0 > before.0 {
        assert!(std::time::Instant::now() < deadline, "descriptors stay open: {:?}, before {before:?}", held(&guest));
        thread::sleep(Duration::from_millis(200));
    }
    let after = held(&guest);
    assert!(after.1 < before.1 + 48 * 1024, "resident KiB: {after:?}, before {before:?}");
    guest.send("\x01c");
    guest.expect(") ", COMMAND);
    guest.send("info usernet\r");
    let shown = guest.expect(") ", COMMAND);
    assert!(shown.contains("TCP[HOST_FORWARD]") && !shown.contains("TCP[ESTABLISHED]"), "{shown}");
}

#[test]
fn a_guest_that_floods_harms_only_itself() {
    let cards = [
        ("e1000", "e1000"),
        ("rtl8139", "8139cp"),
        ("rtl8139,c-plus=off", "8139too"),
        ("virtio-net-pci", "virtio_pci && modprobe virtio_net"),
    ];
    for (model, module) in cards {
        let mut guest = guest(model, module);
        let before = held(&guest);
        let to = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = to.local_addr().expect("its address").port();
        // To a port where nobody reads, to addresses that do not exist, to names, and frames of no kind.
        guest.run(&format!(
            "for to in '10.0.2.2 {port}' '10.0.2.77 9' '10.0.2.3 53' '10.255.0.1 9'; do \
             timeout 2 nc -u $to </dev/zero >/dev/null 2>&1; done; true"
        ));
        guest.run("for i in $(seq 300); do nc -w 1 10.0.2.2 1 </dev/null; done 2>/dev/null; true");
        let after = held(&guest);
        assert!(after.0 < before.0 + 600 && after.1 < before.1 + 100 * 1024, "{before:?}, then {after:?}");
        guest.run("ping -c 1 -W 10 10.0.2.2");
    }
}

#[test]
fn virtio_net_leases_fetches_and_serves() {
    let mut guest = guest("virtio-net-pci", "virtio_pci && modprobe virtio_net");
    assert_eq!(guest.run("readlink /sys/class/net/eth0/device/driver").rsplit('/').next(), Some("virtio_net"));
    talks(&mut guest);
    guest.run("rmmod virtio_net && modprobe virtio_net");
    guest.run("udhcpc -i eth0 -n -q -t 10 2>/dev/null");
    guest.run("ping -c 1 -W 5 10.0.2.2");
    guest.run("grep -q virtio /proc/interrupts");
}

/// A Realtek card with its driver: everything, and again after the driver was loaded anew.
fn rtl8139_leases_fetches_and_serves(card: &str, module: &str) {
    let mut guest = guest(card, module);
    assert_eq!(guest.run("readlink /sys/class/net/eth0/device/driver").rsplit('/').next(), Some(module));
    talks(&mut guest);
    guest.run(&format!("rmmod {module} && modprobe {module}"));
    guest.run("udhcpc -i eth0 -n -q -t 10 2>/dev/null");
    guest.run("ping -c 1 -W 5 -s 1400 10.0.2.2");
    for errors in ["rx_errors", "tx_errors", "rx_dropped"] {
        assert_eq!(guest.run(&format!("cat /sys/class/net/eth0/statistics/{errors}")), "0", "{errors}");
    }
}

#[test]
fn rtl8139_with_descriptor_rings_leases_fetches_and_serves() {
    rtl8139_leases_fetches_and_serves("rtl8139", "8139cp");
}

#[test]
fn rtl8139_without_descriptor_rings_leases_fetches_and_serves() {
    rtl8139_leases_fetches_and_serves("rtl8139,c-plus=off", "8139too");
}

#[test]
fn e1000_leases_fetches_and_serves() {
    let mut guest = guest("e1000", "e1000");
    let port = talks(&mut guest);
    // The driver gives up its rings and starts anew.
    guest.run("rmmod e1000 && modprobe e1000");
    guest.run("udhcpc -i eth0 -n -q -t 10 2>/dev/null");
    guest.run("ping -c 1 -W 5 10.0.2.2");
    let seen = guest.run("cat /proc/net/dev | grep eth0; cat /sys/class/net/eth0/statistics/rx_errors");
    assert!(seen.ends_with('0'), "{seen}");
    guest.send("\x01c");
    guest.expect(") ", COMMAND);
    guest.send("info usernet\r");
    guest.expect("DHCP lease 10.0.2.15 52:54:00:aa:bb:cc", COMMAND);
    // A machine that stands still takes nothing, and loses nothing either.
    guest.send("stop\r");
    guest.expect("stop", COMMAND);
    guest.expect(") ", COMMAND);
    let called = thread::spawn(move || get(port, "/file"));
    thread::sleep(Duration::from_millis(500));
    assert!(!called.is_finished(), "a guest that stands still has answered");
    guest.send("cont\r");
    assert!(called.join().expect("the caller's part") == data(), "the answer after a pause is not the file");
    guest.send("hostfwd_remove tcp:127.0.0.1:9\r");
    guest.expect("not found", COMMAND);
    guest.send("hostfwd_add n0 tcp:127.0.0.1:0-:80\r");
    guest.expect("n0: hostfwd=tcp:127.0.0.1:", COMMAND);
    let port = guest.expect("-10.0.2.15:80", COMMAND).parse().expect("a port");
    assert!(get(port, "/file") == data(), "what the guest serves through the new port is not what it got");
    guest.send("quit\r");
    guest.ends_with(0);
}
