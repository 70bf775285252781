//! `-netdev tap`: frames through a TAP interface of the host's, which the host's network configuration connects to
//! others.

use super::Card;
use super::descriptor;
use crate::cli::config::network::{TapConfig, TapInterface};
use crate::io_thread::FdWatcher;
use anyhow::{Context, Result, anyhow, bail};
use brolga_devices::services::{NetBackend, NetFrontend};
use nix::poll::PollFlags;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
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

/// A TAP interface. Everything but its making happens on the I/O thread.
pub struct TapNet {
    interface: Interface,
    name: String,
    /// Run at the end, once.
    down_script: Mutex<Option<PathBuf>>,
    /// A frame that the card has refused: nothing more is read until it takes it.
    refused: Mutex<Option<Vec<u8>>>,
    card: Card,
}

impl TapNet {
    /// Opens the interface and runs its script.
    pub fn open(config: &TapConfig) -> Result<Arc<Self>> {
        let (interface, name) = match &config.interface {
            TapInterface::Name(name) => make(name.as_deref())?,
            TapInterface::Descriptor(number) => {
                let file = File::from(descriptor::inherited(*number).with_context(|| format!("fd={number}"))?);
                let flags = nix::fcntl::OFlag::from_bits_retain(nix::fcntl::fcntl(&file, nix::fcntl::F_GETFL)?);
                nix::fcntl::fcntl(&file, nix::fcntl::F_SETFL(flags | nix::fcntl::OFlag::O_NONBLOCK))?;
                (Interface::Given(file), String::new())
            }
        };
        if let Some(script) = &config.script {
            run(script, &name)?;
        }
        let down_script = Mutex::new(config.down_script.clone());
        let (refused, card) = Default::default();
        Ok(Arc::new(Self { interface, name, down_script, refused, card }))
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

    /// Gives the card frames as long as it takes them.
    fn serve(&self) {
        let mut buffer = vec![0; LONGEST];
        for _ in 0..BURST {
            let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            let frame = match refused.take() {
                Some(frame) => frame,
                None => match self.interface.recv(&mut buffer) {
                    Ok(len) => buffer.get(..len).unwrap_or_default().to_vec(),
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    // Nothing there, or the interface is down for now.
                    Err(_) => return,
                },
            };
            drop(refused);
            if !self.card.receive(&frame) {
                *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(frame);
                return;
            }
        }
    }
}

fn make(name: Option<&str>) -> Result<(Interface, String)> {
    let builder = DeviceBuilder::new().layer(Layer::L2).inherit_enable_state();
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
    Ok((Interface::Made(device), name))
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
        // What the interface cannot take is lost, as on a real one.
        let _ = self.interface.send(frame);
    }

    fn sent(&self) {}

    fn receive_ready(&self) {
        self.serve();
    }
}

impl FdWatcher for TapNet {
    fn fd(&self) -> BorrowedFd<'_> {
        match &self.interface {
            Interface::Made(device) => device.as_fd(),
            Interface::Given(file) => file.as_fd(),
        }
    }

    fn interest(&self) -> PollFlags {
        let full = self.refused.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if full { PollFlags::empty() } else { PollFlags::POLLIN }
    }

    fn ready(&self, events: PollFlags) -> bool {
        self.serve();
        // An interface that was removed stays readable with nothing to read.
        !events.intersects(PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, Instant};

    #[derive(Default)]
    struct Keeper(Mutex<Vec<Vec<u8>>>);

    impl NetFrontend for Keeper {
        fn receive(&self, frame: &[u8]) -> bool {
            self.0.lock().unwrap().push(frame.to_vec());
            true
        }
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
            interface: TapInterface::Name(None),
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
            net.serve();
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
