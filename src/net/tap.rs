//! `-netdev tap`: frames through a TAP interface of the host's, which the host's network configuration connects to
//! others.

use super::Card;
use super::descriptor;
use crate::cli::config::network::{TapConfig, TapInterface};
use crate::io_thread::FdWatcher;
use anyhow::{Context, Result, anyhow, bail};
use brolga_devices::services::{NetBackend, NetFrontend};
use nix::poll::PollFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::fs::File;
use std::io::{self, ErrorKind, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

/// Longest frame that is taken from the interface.
const LONGEST: usize = 65_550;
/// Frames taken in a row before others on the I/O thread get their turn.
const BURST: usize = 256;

enum Interface {
    Made(SyncDevice),
    Given(File),
}

impl Interface {
    fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Made(device) => device.recv(buffer),
            Self::Given(file) => (&mut &*file).read(buffer),
        }
    }

    fn send(&self, frame: &[u8]) -> io::Result<usize> {
        match self {
            Self::Made(device) => device.send(frame),
            Self::Given(file) => (&mut &*file).write(frame),
        }
    }
}

/// A queue of the interface.
struct Queue {
    interface: Interface,
    /// A frame that the card has refused: nothing more is read until it takes it.
    refused: Mutex<Option<Vec<u8>>>,
}

impl Queue {
    fn new(interface: Interface) -> Self {
        Self { interface, refused: Mutex::default() }
    }
}

/// A TAP interface. Everything but its making happens on the I/O thread.
pub struct TapNet {
    queues: Vec<Queue>,
    name: String,
    /// Run at the end, once.
    down_script: Mutex<Option<PathBuf>>,
    card: Card,
}

/// Waits for the frames of one queue.
pub struct TapWatcher {
    net: Arc<TapNet>,
    queue: usize,
}

impl TapNet {
    /// Opens the interface and runs its script.
    pub fn open(config: &TapConfig) -> Result<Arc<Self>> {
        let (queues, name) = match &config.interface {
            TapInterface::Name { name, queues } => make(name.as_deref(), *queues)?,
            TapInterface::Bridge { bridge, helper } => (vec![Queue::new(helped(bridge, helper)?)], String::new()),
            TapInterface::Descriptors(numbers) => {
                let queues = numbers.iter().map(|number| given(*number).map(Queue::new));
                (queues.collect::<Result<Vec<_>>>()?, String::new())
            }
        };
        if let Some(script) = &config.script {
            run(script, &name)?;
        }
        let down_script = Mutex::new(config.down_script.clone());
        Ok(Arc::new(Self { queues, name, down_script, card: Card::default() }))
    }

    /// Those who wait for frames of the host's, one for each queue.
    pub fn watchers(self: &Arc<Self>) -> Vec<Arc<TapWatcher>> {
        (0..self.queues.len()).map(|queue| Arc::new(TapWatcher { net: self.clone(), queue })).collect()
    }

    /// The card at the other end.
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// Runs the script for the end.
    pub fn close(&self) {
        let script = self.down_script.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Err(error)) = script.map(|script| run(&script, &self.name)) {
            tracing::warn!("-netdev tap: {error}");
        }
    }

    /// Gives the card frames of a queue as long as it takes them.
    fn serve(&self, queue: &Queue) {
        let mut buffer = vec![0; LONGEST];
        for _ in 0..BURST {
            let mut refused = queue.refused.lock().unwrap_or_else(PoisonError::into_inner);
            let frame = match refused.take() {
                Some(frame) => frame,
                None => match queue.interface.recv(&mut buffer) {
                    Ok(len) => buffer.get(..len).unwrap_or_default().to_vec(),
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    // Nothing there, or the interface is down for now.
                    Err(_) => return,
                },
            };
            drop(refused);
            if !self.card.receive(&frame) {
                *queue.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(frame);
                return;
            }
        }
    }
}

/// The interface behind descriptor `number`.
fn given(number: i32) -> Result<Interface> {
    never_waiting(descriptor::inherited(number).with_context(|| format!("fd={number}"))?)
}

/// The interface that `helper` makes on `bridge`, as QEMU's does it: it sends the descriptor through a socket of which it
/// is told the number. The number is that of its standard input.
fn helped(bridge: &str, helper: &Path) -> Result<Interface> {
    let shown = helper.display();
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = Command::new(helper);
    command.arg("--fd=0").arg(format!("--br={bridge}")).stdin(OwnedFd::from(theirs)).stderr(Stdio::piped());
    let child = command.spawn().with_context(|| format!("helper={shown} does not start"))?;
    // The other end, which the child alone is to hold: without it, nothing comes any more.
    drop(command);
    let descriptor = passed(&ours);
    let done = child.wait_with_output()?;
    match descriptor? {
        Some(descriptor) if done.status.success() => never_waiting(descriptor),
        _ => {
            let said = String::from_utf8_lossy(&done.stderr);
            let said = said.lines().last().unwrap_or("it has said nothing");
            bail!(
                "helper={shown} for br={bridge} failed ({}): {said}; /etc/qemu/bridge.conf must allow it",
                done.status
            )
        }
    }
}

/// A descriptor that comes through a socket.
fn passed(socket: &UnixStream) -> Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    }))
}

fn never_waiting(descriptor: OwnedFd) -> Result<Interface> {
    let file = File::from(descriptor);
    let flags = nix::fcntl::OFlag::from_bits_retain(nix::fcntl::fcntl(&file, nix::fcntl::F_GETFL)?);
    nix::fcntl::fcntl(&file, nix::fcntl::F_SETFL(flags | nix::fcntl::OFlag::O_NONBLOCK))?;
    Ok(Interface::Given(file))
}

fn make(name: Option<&str>, queues: u16) -> Result<(Vec<Queue>, String)> {
    let builder = DeviceBuilder::new().layer(Layer::L2).inherit_enable_state();
    let builder = if queues > 1 { builder.with(|builder| _ = builder.multi_queue(true)) } else { builder };
    let builder = match name {
        Some(name) => builder.name(name),
        None => builder,
    };
    let shown = name.map_or_else(String::new, |name| format!("ifname={name}: "));
    let device = builder.build_sync().map_err(|error| match error.kind() {
        ErrorKind::PermissionDenied => anyhow!(
            "{shown}not permitted; make the interface yours with `ip tuntap add dev {} mode tap user $USER` as root",
            name.unwrap_or("tap0")
        ),
        ErrorKind::NotFound => anyhow!("{shown}the host has no /dev/net/tun; load its module tun"),
        ErrorKind::ResourceBusy => anyhow!("{shown}another process uses this interface; choose another"),
        _ => anyhow!("{shown}{error}"),
    })?;
    device.set_nonblocking(true)?;
    let name = device.name()?;
    let mut all = Vec::new();
    for _ in 1..queues {
        let queue = device.try_clone().with_context(|| format!("{shown}no queue more"))?;
        queue.set_nonblocking(true)?;
        all.push(Queue::new(Interface::Made(queue)));
    }
    all.insert(0, Queue::new(Interface::Made(device)));
    Ok((all, name))
}

fn run(script: &Path, name: &str) -> Result<()> {
    let shown = script.display();
    let status = Command::new(script).arg(name).status().with_context(|| format!("script {shown} does not start"))?;
    if !status.success() {
        bail!("script {shown} for {name} failed: {status}; use script=no for none");
    }
    Ok(())
}

impl NetBackend for TapNet {
    fn connect(&self, card: Weak<dyn NetFrontend>) {
        self.card.connect(card);
    }

    fn send(&self, frame: &[u8]) {
        // What the interface cannot take is lost, as on a real one. All goes by one queue, which keeps it in order.
        let _ = self.queues.first().map(|queue| queue.interface.send(frame));
    }

    fn sent(&self) {}

    fn receive_ready(&self) {
        self.queues.iter().for_each(|queue| self.serve(queue));
    }
}

impl FdWatcher for TapWatcher {
    fn fd(&self) -> BorrowedFd<'_> {
        match &self.net.queues[self.queue].interface {
            Interface::Made(device) => device.as_fd(),
            Interface::Given(file) => file.as_fd(),
        }
    }

    fn interest(&self) -> PollFlags {
        let full = self.net.queues[self.queue].refused.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if full { PollFlags::empty() } else { PollFlags::POLLIN }
    }

    fn ready(&self, events: PollFlags) -> bool {
        self.net.serve(&self.net.queues[self.queue]);
        // An interface that was removed stays readable with nothing to read.
        !events.intersects(PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use brolga_devices::services::Unfinished;
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, Instant};

    #[derive(Default)]
    struct Keeper(Mutex<Vec<Vec<u8>>>);

    impl NetFrontend for Keeper {
        fn receive(&self, frame: &[u8], _rest: Unfinished) -> bool {
            self.0.lock().unwrap().push(frame.to_vec());
            true
        }

        fn set_link(&self, _up: bool) {}
    }

    /// Passes on a socket in place of an interface: what goes through it arrives at the path that stands for the bridge.
    const HELPER: &str = r#"#!/usr/bin/env python3
import array, socket, sys
told = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:])
tap = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
tap.bind(told["br"] + ".tap")
tap.connect(told["br"])
control = socket.socket(fileno=int(told["fd"]))
control.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [tap.fileno()]))])
"#;

    #[test]
    fn a_helper_connects_to_a_bridge() {
        let folder = std::env::temp_dir().join(format!("brolga-bridge-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let program = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        let bridge = folder.join("bridge").to_str().unwrap().to_owned();
        let config = |helper| {
            let interface = TapInterface::Bridge { bridge: bridge.clone(), helper };
            TapConfig { interface, script: None, down_script: None }
        };
        let far = std::os::unix::net::UnixDatagram::bind(&bridge).unwrap();
        let net = TapNet::open(&config(program("helper", HELPER))).unwrap();
        let keeper = Arc::new(Keeper::default());
        let card: Arc<dyn NetFrontend> = keeper.clone();
        net.connect(Arc::downgrade(&card));
        net.receive_ready();
        assert!(keeper.0.lock().unwrap().is_empty(), "nothing there, and nobody waits for it");
        net.send(&[7; 60]);
        let mut frame = [0; 100];
        assert_eq!(far.recv(&mut frame).unwrap(), 60);
        far.send_to(&[9; 70], format!("{bridge}.tap")).unwrap();
        net.receive_ready();
        assert_eq!(*keeper.0.lock().unwrap(), [vec![9; 70]]);
        let failing = program("failing", "#!/bin/sh\necho br9 is not allowed >&2\nexit 1\n");
        let error = TapNet::open(&config(failing)).err().expect("a refusal").to_string();
        assert!(error.contains("br9 is not allowed; /etc/qemu/bridge.conf"), "{error}");
        std::fs::remove_dir_all(folder).unwrap();
    }

    /// Needs the right to make interfaces; without it, the refusal has to say what helps.
    #[test]
    fn frames_of_the_host_arrive_and_scripts_run() {
        let folder = std::env::temp_dir().join(format!("brolga-tap-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let script = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            Some(path)
        };
        let mark = folder.join("down-was-here");
        let config = TapConfig {
            interface: TapInterface::Name { name: None, queues: 2 },
            script: script("up", "exec ip link set \"$1\" up"),
            down_script: script("down", &format!("echo \"$1\" >{}", mark.display())),
        };
        let net = match TapNet::open(&config) {
            Ok(net) => net,
            Err(error) => {
                let text = error.to_string();
                assert!(
                    text.contains("ip tuntap add") || text.contains("/dev/net/tun") || text.contains("script"),
                    "{text}"
                );
                return;
            }
        };
        let keeper = Arc::new(Keeper::default());
        let card: Arc<dyn NetFrontend> = keeper.clone();
        net.connect(Arc::downgrade(&card));
        // An interface that comes up looks for IPv6 routers and neighbours, or is silent where there is no IPv6; a
        // packet to a broadcast address is sent in any case.
        let start = Instant::now();
        while keeper.0.lock().unwrap().is_empty() && start.elapsed() < Duration::from_secs(10) {
            net.receive_ready();
            std::thread::sleep(Duration::from_millis(10));
        }
        let ipv6 = Path::new("/proc/net/if_inet6").exists();
        let frames = keeper.0.lock().unwrap().clone();
        assert!(!ipv6 || frames.iter().all(|frame| frame.len() >= 14) && !frames.is_empty());
        net.send(&[0xff; 60]);
        net.close();
        net.close();
        assert_eq!(std::fs::read_to_string(&mark).unwrap(), format!("{}\n", net.name));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
