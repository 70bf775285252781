//! A Debian system on a disk, used over the network: ssh into it, and apt from a mirror on the host's loopback.

use crate::harness::{Boot, COMMAND, Guest, cached};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(240);

/// A web server of a folder on the loopback, as plain as can be; it ends with this.
struct Mirror {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
    over: Arc<AtomicBool>,
}

impl Mirror {
    fn new(folder: PathBuf) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let (asked, over) = (Arc::new(Mutex::default()), Arc::new(AtomicBool::new(false)));
        let this = Self { port, asked: Arc::clone(&asked), over: Arc::clone(&over) };
        thread::spawn(move || {
            for caller in listener.incoming().map_while(Result::ok) {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let (folder, asked) = (folder.clone(), Arc::clone(&asked));
                thread::spawn(move || serve(caller, &folder, &asked));
            }
        });
        this
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // Wakes the listener, so that it sees that it is over.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

/// Answers the requests of one connection, which stays open between them.
fn serve(mut caller: TcpStream, folder: &Path, asked: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(caller.try_clone().expect("a second handle"));
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match reader.read_until(b'\n', &mut head) {
                Ok(1..) => {}
                _ => return,
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let path = head.split(' ').nth(1).unwrap_or("").to_owned();
        asked.lock().expect("the list's lock").push(path.clone());
        let name = path.trim_start_matches("/./").trim_start_matches('/').to_owned();
        let body = if name.contains("..") { None } else { std::fs::read(folder.join(name)).ok() };
        let (status, body) = body.map_or(("404 Not Found", Vec::new()), |body| ("200 OK", body));
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
        if caller.write_all(head.as_bytes()).and_then(|()| caller.write_all(&body)).is_err() {
            return;
        }
    }
}

/// Boots the system with a card of `model` on a disk that forgets.
fn system(model: &str, module: &str) -> Guest {
    let drive = format!("file={},format=raw,if=virtio,snapshot=on", cached("network/system.img").display());
    let netdev = "user,id=n0,hostfwd=tcp:127.0.0.1:0-:22";
    let card = format!("{model},netdev=n0");
    let options = ["-no-reboot", "-drive", &drive, "-netdev", netdev, "-device", &card];
    let boot = Boot::new("debian").initramfs("drivers-amd64").append("quiet").options(&options).memory("512M");
    let mut guest = boot.to_shell();
    guest.run(&format!(
        "modprobe virtio_pci && modprobe virtio_blk && modprobe crc32c_generic && modprobe ext4 && modprobe {module}"
    ));
    guest.run("mount -t ext4 /dev/vda /mnt && for d in dev proc sys; do mount --bind /$d /mnt/$d; done");
    guest.run("mkdir -p /mnt/dev/pts && mount --bind /dev/pts /mnt/dev/pts");
    guest.run("udhcpc -i eth0 -n -q -t 10 2>/dev/null");
    guest
}

/// Runs `command` by ssh in the guest, through a port of the host's.
fn ssh(port: &str, command: &str) -> Output {
    let key = cached("network/key");
    let options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "ConnectTimeout=60", "BatchMode=yes"];
    let mut words = Command::new("timeout");
    words.args(["120", "ssh", "-F", "none", "-q", "-p", port, "-i"]).arg(key);
    words.args(options.iter().flat_map(|option| ["-o", option]));
    words.args(["root@127.0.0.1", command]).output().expect("ssh")
}

fn ssh_runs_commands(model: &str, module: &str) {
    let mut guest = system(model, module);
    guest.run_within("chroot /mnt dropbear -R -E -s -p 22 2>/mnt/tmp/dropbear.log", PATIENCE);
    let forwarded = guest.error_line("n0: hostfwd=tcp:127.0.0.1:", COMMAND);
    let port = forwarded.split('-').next().expect("a port");
    let done = ssh(port, "uname -r; exit 7");
    let said = String::from_utf8_lossy(&done.stdout);
    let why = || String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(said.trim(), crate::harness::kernel_version("debian"), "{}", why());
    assert_eq!(done.status.code(), Some(7), "{}", why());
    // Much in both directions, encrypted and summed.
    let done = ssh(port, "head -c 3000000 /dev/zero | tr '\\0' x");
    assert!(done.stdout.len() == 3_000_000 && done.stdout.iter().all(|byte| *byte == b'x'), "{}", why());
    let several: Vec<_> = (0..4)
        .map(|i| {
            let port = port.to_owned();
            thread::spawn(move || {
                String::from_utf8_lossy(&ssh(&port, &format!("echo $(({i} * 11))")).stdout).into_owned()
            })
        })
        .collect();
    let said: Vec<_> = several.into_iter().map(|call| call.join().expect("an answer")).collect();
    assert_eq!(said, ["0\n", "11\n", "22\n", "33\n"]);
}

#[test]
fn ssh_through_a_forwarded_port_on_an_e1000() {
    ssh_runs_commands("e1000", "e1000");
}

#[test]
fn ssh_through_a_forwarded_port_on_a_virtio_card() {
    ssh_runs_commands("virtio-net-pci", "virtio_net");
}

#[test]
fn apt_installs_from_a_mirror_on_the_hosts_loopback() {
    let mirror = Mirror::new(cached("network/mirror"));
    let mut guest = system("virtio-net-pci", "virtio_net");
    let source = format!("deb [trusted=yes] http://10.0.2.2:{}/ ./", mirror.port);
    guest.run(&format!("echo '{source}' >/mnt/etc/apt/sources.list"));
    guest.run_within("chroot /mnt apt-get -q update", PATIENCE);
    guest.run_within("chroot /mnt apt-get -q -y install hello tree", PATIENCE);
    assert_eq!(guest.run("chroot /mnt hello"), "Hello, world!");
    assert_eq!(guest.run("chroot /mnt dpkg-query -W -f '${Status}' tree"), "install ok installed");
    assert_eq!(guest.run("chroot /mnt /usr/bin/dpkg -V hello tree"), "");
    let asked = mirror.asked.lock().expect("the list's lock");
    assert!(asked.iter().any(|path| path.ends_with("hello.deb")), "{asked:?}");
}
