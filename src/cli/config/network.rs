//! What `-netdev`, `-nic` and `-net` ask for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;

/// A host end of network cards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetdevSpec {
    /// `id=`, by which `-device ...,netdev=` names it.
    pub id: String,
    /// What it is on the host.
    pub kind: NetdevKind,
}

/// Kinds of host ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetdevKind {
    /// A network of its own behind address translation.
    User(Box<UserNetConfig>),
    /// A connection that carries frames.
    Stream(StreamConfig),
    /// Datagrams that are frames.
    Datagram(DatagramConfig),
    /// A TAP interface.
    Tap(TapConfig),
    /// A port of a hub.
    HubPort {
        /// `hubid=`: ports with the same number are on one hub.
        hub: u32,
        /// Index of the host end that is at the port; `None`: a card.
        netdev: Option<usize>,
    },
}

/// `-netdev user`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserNetConfig {
    /// `ipv4=on|off`.
    pub ipv4: bool,
    /// `net=ADDRESS/PREFIX`: the network's address.
    pub net: Ipv4Addr,
    /// Its prefix length, 8 to 30.
    pub prefix: u8,
    /// `host=`: the guest's gateway, which stands for the host.
    pub host: Ipv4Addr,
    /// `dns=`: the name server that the guest sees.
    pub dns: Ipv4Addr,
    /// `dhcpstart=`: the first address leased.
    pub dhcp_start: Ipv4Addr,
    /// `ipv6=on|off`.
    pub ipv6: bool,
    /// `ipv6-net=PREFIX/64`.
    pub net6: Ipv6Addr,
    /// `ipv6-host=`.
    pub host6: Ipv6Addr,
    /// `ipv6-dns=`.
    pub dns6: Ipv6Addr,
    /// `restrict=on`: the guest reaches nothing but what is forwarded.
    pub restrict: bool,
    /// `hostname=`: the name that DHCP tells the guest.
    pub hostname: Option<String>,
    /// `domainname=`.
    pub domain: Option<String>,
    /// `dnssearch=`, repeated.
    pub search: Vec<String>,
    /// `tftp=`: folder that the TFTP server reads.
    pub tftp: Option<PathBuf>,
    /// `tftp-server-name=`.
    pub tftp_server_name: Option<String>,
    /// `bootfile=`.
    pub bootfile: Option<String>,
    /// `hostfwd=`.
    pub forwards: Vec<HostForward>,
    /// `guestfwd=`.
    pub guest_forwards: Vec<GuestForward>,
}

impl Default for UserNetConfig {
    fn default() -> Self {
        Self {
            ipv4: true,
            net: Ipv4Addr::new(10, 0, 2, 0),
            prefix: 24,
            host: Ipv4Addr::new(10, 0, 2, 2),
            dns: Ipv4Addr::new(10, 0, 2, 3),
            dhcp_start: Ipv4Addr::new(10, 0, 2, 15),
            ipv6: true,
            net6: Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0),
            host6: Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 2),
            dns6: Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 3),
            restrict: false,
            hostname: None,
            domain: None,
            search: Vec::new(),
            tftp: None,
            tftp_server_name: None,
            bootfile: None,
            forwards: Vec::new(),
            guest_forwards: Vec::new(),
        }
    }
}

/// `hostfwd=[tcp|udp]:[ADDRESS]:PORT-[ADDRESS]:PORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostForward {
    /// UDP instead of TCP.
    pub udp: bool,
    /// Where the host listens; port 0 lets the host choose.
    pub host: SocketAddr,
    /// The guest's address, the first one leased if not given.
    pub guest: Option<IpAddr>,
    /// The guest's port.
    pub guest_port: u16,
}

/// `guestfwd=[tcp]:ADDRESS:PORT-TARGET`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestForward {
    /// The address and port to which the guest connects.
    pub guest: SocketAddr,
    /// Where its connections go.
    pub target: ForwardTarget,
}

/// Where a forwarded connection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForwardTarget {
    /// `tcp:ADDRESS:PORT`.
    Tcp(SocketAddr),
    /// `unix:PATH`.
    Unix(PathBuf),
    /// `cmd:COMMAND`: its standard input and output, one process for each connection.
    Command(String),
}

/// `-netdev stream` and `-netdev socket`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamConfig {
    /// Wait for the peer instead of calling it.
    pub server: bool,
    /// Where.
    pub address: StreamAddress,
    /// `reconnect-ms=`: call again that long after the connection ended; 0: never.
    pub reconnect_ms: u64,
}

/// The two ends' meeting point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamAddress {
    /// TCP.
    Inet(SocketAddr),
    /// A socket in the file system.
    Unix(PathBuf),
    /// A descriptor that the process was started with.
    Descriptor(i32),
}

/// `-netdev dgram`, and `-netdev socket` with `mcast=` or `udp=`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatagramConfig {
    /// UDP.
    Inet {
        /// Where datagrams are received; the host chooses if not given.
        local: Option<SocketAddr>,
        /// Where frames go.
        remote: SocketAddr,
    },
    /// A multicast group that everybody on it sends to and receives from.
    Group {
        /// The group.
        group: SocketAddrV4,
        /// The interface by its address; the host chooses if not given.
        interface: Option<Ipv4Addr>,
    },
    /// Sockets in the file system.
    Unix {
        /// Where datagrams are received.
        local: PathBuf,
        /// Where frames go.
        remote: PathBuf,
    },
    /// A descriptor that the process was started with, connected to its other end.
    Descriptor(i32),
}

/// `-netdev tap`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapConfig {
    /// How the interface is found.
    pub interface: TapInterface,
    /// `script=`: run with the interface's name before the guest starts.
    pub script: Option<PathBuf>,
    /// `downscript=`: run with the interface's name at the end.
    pub down_script: Option<PathBuf>,
}

/// A TAP interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TapInterface {
    /// `ifname=`: made if it does not exist; the host chooses a name if none is given.
    Name {
        /// Its name.
        name: Option<String>,
        /// `queues=`.
        queues: u16,
    },
    /// `-netdev bridge`, `helper=`: a program that makes one and connects it to a bridge of the host's.
    Bridge {
        /// `br=`.
        bridge: String,
        /// The program.
        helper: PathBuf,
    },
    /// `fd=`, `fds=`: descriptors that the process was started with, one for each queue.
    Descriptors(Vec<i32>),
}

impl TapConfig {
    /// Queues that the interface has.
    pub fn queues(&self) -> u16 {
        match &self.interface {
            TapInterface::Name { queues, .. } => *queues,
            TapInterface::Bridge { .. } => 1,
            TapInterface::Descriptors(numbers) => numbers.len() as u16,
        }
    }
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicSpec {
    /// Its model.
    pub model: NicModel,
    /// `id=`, by which the monitor names it.
    pub id: Option<String>,
    /// Index of its host end in the list of them; `None`: no cable.
    pub netdev: Option<usize>,
    /// `mac=`.
    pub mac: [u8; 6],
    /// `bus=`: the PCI bus.
    pub pci_bus: super::PciBusNumber,
    /// `addr=`: PCI device and function; the first free device if not given.
    pub place: Option<(u8, u8)>,
    /// `romfile=`, or the usual one if it is there: its boot ROM.
    pub rom: Option<PathBuf>,
    /// `rombar=`: the ROM is on the card; otherwise firmware gets it by itself.
    pub rom_bar: bool,
    /// `bootindex=`: place in the order in which firmware tries devices.
    pub boot_index: Option<u32>,
}

/// Models of network cards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NicModel {
    /// Intel 82540EM.
    E1000,
    /// Realtek RTL8139.
    Rtl8139 {
        /// The RTL8139C+; otherwise the RTL8139C, which has no rings of descriptors.
        plus: bool,
    },
    /// A virtio device.
    VirtioNet {
        /// Pairs of queues.
        pairs: u16,
        /// Features turned off, by their bits.
        without: u64,
    },
}

impl NicModel {
    /// As `-device` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::E1000 => "e1000",
            Self::Rtl8139 { .. } => "rtl8139",
            Self::VirtioNet { .. } => "virtio-net-pci",
        }
    }
}
