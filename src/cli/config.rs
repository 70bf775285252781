//! What the command line asks for, checked: plain data that the rest of the program works from.
//!
//! Whoever holds a [`Config`] may rely on it: values are in range, names are known, files named by options existed and
//! could be read when the command line was parsed (they may still change before they are loaded).

mod looking;
pub mod network;
pub mod peripherals;
pub mod sharing;
mod time;

use super::devices::Devices;
use crate::gdb::Endpoint;
use crate::migration::Address;
use brolga::block::drive::DriveOptions;
use brolga_devices::fdc::DriveType;
use brolga_devices::lsi::Chip;
use brolga_jit::EngineConfig;
use brolga_jit::cpuid::{CpuModel, Topology};
pub use looking::{LogConfig, ProfileConfig, TraceConfig};
use network::{NetdevSpec, NicSpec};
use peripherals::Peripherals;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;
pub use time::{IcountConfig, RtcBase, RtcClock, RtcConfig};

/// Everything a machine is made from.
#[derive(Clone, Debug)]
pub struct Config {
    /// How the program was called.
    pub identity: Identity,
    /// `-name`: the machine's name, as `info name` shows it.
    pub name: Option<String>,
    /// `-uuid`: the machine's UUID in text order (RFC 4122 network byte order).
    pub uuid: Option<[u8; 16]>,
    /// `-machine`.
    pub machine: MachineConfig,
    /// `-m`: guest RAM in bytes, a multiple of 4 KiB; 0 only if there is no machine.
    pub ram: u64,
    /// What memory is made of, if an object says so, with its name.
    pub memory: Option<(String, super::backends::MemoryBackend)>,
    /// `-smp`: how many processors may be there, and how they are spread.
    pub topology: Topology,
    /// `-smp`: how many of them are there from the start.
    pub processors: u32,
    /// `-cpu`.
    pub cpu: CpuModel,
    /// `-accel`.
    pub engine: EngineConfig,
    /// `-kernel`, `-initrd`, `-append`, `-bios`, `-L`.
    pub boot: BootConfig,
    /// `-device loader`, in the order given.
    pub loaders: Vec<Loader>,
    /// `-device isa-debug-exit`.
    pub debug_exits: Vec<DebugExit>,
    /// `-debugcon` and `-device isa-debugcon`.
    pub debug_consoles: Vec<DebugConsole>,
    /// Host ends of network cards: `-netdev`, and those in `-nic` and `-net`.
    pub netdevs: Vec<NetdevSpec>,
    /// Network cards, in the order in which they get their places.
    pub nics: Vec<NicSpec>,
    /// `-drive` and its short forms, with the devices they end at.
    pub drives: Vec<DriveSpec>,
    /// SCSI hosts: those of `-drive if=scsi`, then `-device`, in the order given.
    pub scsi_hosts: Vec<ScsiHostSpec>,
    /// `-device pci-bridge`: those that others are behind come first.
    pub bridges: Vec<BridgeSpec>,
    /// Other devices.
    pub peripherals: Peripherals,
    /// `-fw_cfg`.
    pub firmware_files: Vec<FirmwareFile>,
    /// `-acpitable`: whole tables, their lengths and checksums right.
    pub acpi_tables: Vec<Vec<u8>>,
    /// `-smbios`.
    pub smbios: SmbiosConfig,
    /// `-rtc`.
    pub rtc: RtcConfig,
    /// `-seed`: random bytes for the guest are the same in each run.
    pub seed: Option<u64>,
    /// `-icount`.
    pub icount: Option<IcountConfig>,
    /// All host ends of character devices. Others name them by [`CharId`].
    pub chardevs: Vec<CharSpec>,
    /// `-serial`: COM1 to COM4; `None` where the port does not exist.
    pub serials: [Option<CharId>; 4],
    /// Host ends that carry a monitor (`-monitor`, `mon:`).
    pub monitors: Vec<CharId>,
    /// Host ends that carry a monitor for programs (`-qmp`, `-mon mode=control`).
    pub controls: Vec<ControlSpec>,
    /// The devices of `-device`, as they were given.
    pub devices: Vec<DeviceSpec>,
    /// What devices that are added while the machine runs may refer to.
    pub collected: Box<Devices>,
    /// Byte that introduces the escapes of shared consoles (`-echr`, Ctrl-A unless told).
    pub mux_escape: u8,
    /// A console or monitor leads somewhere, or the command line says that none is wanted.
    pub console_seen: bool,
    /// `-action`, `-no-reboot`, `-no-shutdown`.
    pub actions: Actions,
    /// `-nographic`: firmware's texts go to the first serial port.
    pub nographic: bool,
    /// `-daemonize`: runs in the background once the machine stands.
    pub daemonize: bool,
    /// `-pidfile`: a file that says the process's number while it runs.
    pub pid_file: Option<PathBuf>,
    /// `-S`: the vCPUs do not run before `cont`.
    pub start_paused: bool,
    /// `-loadvm`: the state to go on from.
    pub load: Option<String>,
    /// `-incoming`: the machine arrives from another process.
    pub incoming: Option<Incoming>,
    /// Where a debugger connects (`-gdb`).
    pub debugger: Option<Endpoint>,
    /// `-d`, `-D`, `-dfilter`.
    pub log: LogConfig,
    /// `-trace`.
    pub trace: TraceConfig,
    /// `-msg`.
    pub messages: Messages,
    /// `-profile`.
    pub profile: Option<ProfileConfig>,
    /// `-perfmap`: perf(1) is told where generated code lies.
    pub perf_map: bool,
}

/// `-incoming`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// `migrate-incoming` in a monitor says where from.
    Later,
    /// From there.
    From(Address),
}

/// A monitor for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlSpec {
    /// Its host end.
    pub chardev: CharId,
    /// Its messages have lines and indentation.
    pub pretty: bool,
}

/// A device as the command line has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSpec {
    /// `id=`.
    pub id: Option<String>,
    /// Its model.
    pub model: &'static str,
    /// All other keys, as they were written.
    pub keys: Vec<(String, String)>,
    /// What became of it.
    pub made: Made,
}

/// Where the device that was asked for is described: indices are those of the lists in [`Config`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// In [`Config::nics`].
    Nic(usize),
    /// A virtio disk, in [`Config::drives`].
    Disk(usize),
    /// In [`Config::scsi_hosts`].
    ScsiHost(usize),
    /// A disk or CD drive at a SCSI host, in [`Config::drives`].
    ScsiUnit(usize),
    /// In [`Peripherals::rngs`].
    Rng(usize),
    /// [`Peripherals::balloon`].
    Balloon,
    /// In [`Peripherals::serial_buses`].
    SerialBus(usize),
    /// A port on such a bus, by its number there.
    SerialPort {
        /// In [`Peripherals::serial_buses`].
        bus: usize,
        /// `nr=`.
        number: u32,
    },
    /// In [`Peripherals::shares`].
    Share(usize),
    /// In [`Peripherals::panic_functions`].
    PanicFunction(usize),
    /// [`Peripherals::watchdog`].
    Watchdog,
    /// The processor with this number.
    Processor(u32),
    /// Something that stays as long as the machine.
    Board,
}

/// How the program was called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// File name of `argv[0]`: error lines begin with it.
    pub program: String,
    /// Called under QEMU's name (`qemu-system-x86_64`): QEMU's defaults and prompt.
    pub qemu: bool,
}

/// `-machine`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineConfig {
    /// The board.
    pub kind: MachineKind,
    /// `hpet=on|off`.
    pub hpet: bool,
    /// `acpi=on|off`.
    pub acpi: bool,
    /// `unpack-kernel=on|off`: `-kernel` unpacks bzImages, not the guest.
    pub unpack_kernel: bool,
}

/// The boards there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineKind {
    /// i440FX and PIIX (`pc`, `pc-i440fx-*`).
    Pc,
    /// Nothing at all: only monitors.
    None,
}

/// What is started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootConfig {
    /// `-kernel`.
    pub kernel: Option<PathBuf>,
    /// `-initrd`. Only with a kernel.
    pub initrd: Option<PathBuf>,
    /// `-append`, empty if not given. Only with a kernel.
    pub append: String,
    /// `-bios`, already looked up in `-L`.
    pub bios: Option<PathBuf>,
    /// Firmware is in flash.
    pub flash: bool,
    /// `-L`: where firmware images are looked for, in order.
    pub firmware_dirs: Vec<PathBuf>,
    /// `-boot`: what firmware tries.
    pub order: BootOrder,
}

impl BootOrder {
    /// Starting over the network was asked for.
    pub fn asks_network(&self) -> bool {
        self.order.contains('n') || self.once.as_deref().is_some_and(|once| once.contains('n'))
    }
}

/// `-boot`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootOrder {
    /// `order=`: kinds of devices by their letters, the first to be tried first.
    pub order: String,
    /// `once=`: the same, for the first start only.
    pub once: Option<String>,
    /// `menu=`: firmware offers a choice.
    pub menu: bool,
    /// `splash=`: the picture that it shows meanwhile, a JPEG or BMP file.
    pub splash: Option<PathBuf>,
    /// `splash-time=`: how long it waits for that, in milliseconds.
    pub menu_wait: Option<u16>,
    /// `reboot-timeout=`: how long firmware waits before it tries anew, in milliseconds; never if not given.
    pub retry_wait: Option<u16>,
    /// `strict=`: nothing is tried that has no place in the order.
    pub strict: bool,
}

/// `-fw_cfg`: a file for firmware and drivers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirmwareFile {
    /// The option that gave it, for messages.
    pub what: String,
    /// `name=`.
    pub name: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// `-device loader`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loader {
    /// `file=PATH[,addr=A][,cpu-num=N][,force-raw=on]`.
    File {
        /// The file.
        path: PathBuf,
        /// Where it goes: required for raw files, ignored addresses of ELF files stay.
        addr: Option<u64>,
        /// The vCPU whose program counter is set to the entry point.
        cpu: Option<u32>,
        /// Load an ELF file byte for byte.
        force_raw: bool,
    },
    /// `data=D,data-len=L,addr=A[,data-be=on][,cpu-num=N]`: the bytes to store, already in memory order.
    Data {
        /// 1 to 8 bytes.
        bytes: Vec<u8>,
        /// Where they go.
        addr: u64,
    },
    /// `addr=A,cpu-num=N`: only sets the program counter.
    ProgramCounter {
        /// The program counter.
        addr: u64,
        /// The vCPU.
        cpu: u32,
    },
}

/// `-device isa-debug-exit`: a write of `v` ends the process with status `(v << 1) | 1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DebugExit {
    /// First I/O port.
    pub iobase: u16,
    /// Number of ports: 1, 2 or 4 as QEMU's users give it.
    pub iosize: u16,
}

/// `-debugcon`, `-device isa-debugcon`: a port whose bytes go to a host end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DebugConsole {
    /// The I/O port (0xE9 unless told).
    pub iobase: u16,
    /// What a read of the port returns (0xE9 unless told).
    pub readback: u8,
    /// Where the bytes go.
    pub chardev: CharId,
}

/// Which PCI bus: 0 is `pci.0`, n the one behind the nth of [`Config::bridges`].
pub type PciBusNumber = usize;

/// `-device pci-bridge`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeSpec {
    /// The option that asked for it, for messages.
    pub what: String,
    /// `id=`: what `bus=` calls the bus behind it.
    pub id: String,
    /// `chassis_nr=`.
    pub chassis: u8,
    /// The bus that it is on.
    pub bus: PciBusNumber,
    /// `addr=`: device and function; one that is free if none.
    pub place: Option<(u8, u8)>,
}

/// A drive and the device that it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriveSpec {
    /// The option that asked for it, for messages.
    pub what: String,
    /// `id=`.
    pub id: Option<String>,
    /// `id=` of its device, by which monitors know it too.
    pub device: Option<String>,
    /// `node-name=`, if it is a node of `-blockdev`.
    pub node: Option<String>,
    /// `node-name=` of the file below it, if that has one.
    pub file_node: Option<String>,
    /// The image; a CD drive may be empty.
    pub file: Option<PathBuf>,
    /// A CD drive.
    pub cd: bool,
    /// How the image is used.
    pub options: DriveOptions,
    /// `serial=`.
    pub serial: Option<String>,
    /// `model=`.
    pub model: Option<String>,
    /// `ver=`.
    pub version: Option<String>,
    /// `vendor=`.
    pub vendor: Option<String>,
    /// `device_id=`.
    pub device_id: Option<String>,
    /// `wwn=`.
    pub wwn: Option<u64>,
    /// `bootindex=`: place in the order in which firmware tries devices.
    pub boot_index: Option<u32>,
    /// The PCI bus of its device, if that is its own.
    pub pci_bus: PciBusNumber,
    /// Where it is. Always given once the command line was read.
    pub attachment: Option<Attachment>,
}

impl DriveSpec {
    /// A drive without a place.
    pub fn new(what: &str, file: Option<PathBuf>, cd: bool, options: DriveOptions) -> Self {
        let what = what.to_owned();
        let (id, device, node, file_node, serial, model, version, vendor, device_id, wwn) = Default::default();
        let (boot_index, pci_bus, attachment) = (None, 0, None);
        Self {
            what,
            id,
            device,
            node,
            file_node,
            file,
            cd,
            options,
            serial,
            model,
            version,
            vendor,
            device_id,
            wwn,
            boot_index,
            pci_bus,
            attachment,
        }
    }
}

/// A SCSI host: `-device virtio-scsi-pci` and others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScsiHostSpec {
    /// The option that asked for it, for messages.
    pub what: String,
    /// What `bus=` calls its bus.
    pub bus: String,
    /// PCI slot; the next that is free if none.
    pub slot: Option<u8>,
    /// PCI bus.
    pub pci_bus: PciBusNumber,
    /// Which host.
    pub model: ScsiHostModel,
}

/// The SCSI hosts there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScsiHostModel {
    /// `virtio-scsi-pci`.
    Virtio {
        /// Number of request queues.
        queues: u16,
    },
    /// `lsi53c895a` and `lsi53c810`.
    Lsi(Chip),
}

/// Where a drive is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// On an IDE channel.
    Ide {
        /// 0 or 1.
        channel: u8,
        /// 0 or 1.
        unit: u8,
    },
    /// In a virtio-blk device.
    VirtioBlk {
        /// PCI slot; the next that is free if none.
        slot: Option<u8>,
        /// Number of queues.
        queues: u16,
    },
    /// In a floppy drive.
    Floppy {
        /// 0 or 1.
        unit: u8,
        /// What kind of drive it is; as the medium wants it if none.
        kind: Option<DriveType>,
    },
    /// In a flash chip with firmware.
    Flash {
        /// 0 or 1: the one that ends at 4 GiB, or the one before.
        unit: u8,
    },
    /// At a SCSI host.
    Scsi {
        /// Index in [`Config::scsi_hosts`].
        host: usize,
        /// `scsi-id=`.
        target: u8,
        /// `lun=`.
        lun: u16,
    },
}

/// `-smbios`: fields that override the tables' defaults. Repeated types add to each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SmbiosConfig {
    /// Type 0: firmware.
    pub bios: SmbiosBios,
    /// Type 1: system.
    pub system: SmbiosSystem,
    /// Type 2: base board.
    pub board: SmbiosBoard,
    /// Type 3: chassis.
    pub chassis: SmbiosChassis,
    /// Type 11: OEM strings (`value=` and the contents of `path=`), in order.
    pub oem_strings: Vec<String>,
}

/// SMBIOS type 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SmbiosBios {
    /// `vendor=`.
    pub vendor: Option<String>,
    /// `version=`.
    pub version: Option<String>,
    /// `date=`.
    pub date: Option<String>,
    /// `release=MAJOR.MINOR`.
    pub release: Option<(u8, u8)>,
    /// `uefi=on|off`.
    pub uefi: Option<bool>,
}

/// SMBIOS type 1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SmbiosSystem {
    /// `manufacturer=`.
    pub manufacturer: Option<String>,
    /// `product=`.
    pub product: Option<String>,
    /// `version=`.
    pub version: Option<String>,
    /// `serial=`.
    pub serial: Option<String>,
    /// `uuid=`, in text order; `-uuid` applies where this is not given.
    pub uuid: Option<[u8; 16]>,
    /// `sku=`.
    pub sku: Option<String>,
    /// `family=`.
    pub family: Option<String>,
}

/// SMBIOS type 2.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SmbiosBoard {
    /// `manufacturer=`.
    pub manufacturer: Option<String>,
    /// `product=`.
    pub product: Option<String>,
    /// `version=`.
    pub version: Option<String>,
    /// `serial=`.
    pub serial: Option<String>,
    /// `asset=`.
    pub asset: Option<String>,
    /// `location=`.
    pub location: Option<String>,
}

/// SMBIOS type 3.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SmbiosChassis {
    /// `manufacturer=`.
    pub manufacturer: Option<String>,
    /// `version=`.
    pub version: Option<String>,
    /// `serial=`.
    pub serial: Option<String>,
    /// `asset=`.
    pub asset: Option<String>,
    /// `sku=`.
    pub sku: Option<String>,
}

/// Index of a host end in [`Config::chardevs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CharId(pub usize);

/// A host end of character devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CharSpec {
    /// What it is on the host.
    pub kind: CharKind,
    /// Several devices share it, told apart by Ctrl-A escapes (`mon:`, `mux=on`).
    pub mux: bool,
    /// Name shown by `info chardev`: `serial0`, `monitor0`, `debugcon0`, or the `id=` of `-chardev`.
    pub label: String,
    /// `logfile=`: gets all that is written, too.
    pub log: Option<LogFile>,
}

/// A file that gets what is written to a host end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFile {
    /// The file.
    pub path: PathBuf,
    /// `logappend=`: keep what it holds and write behind it.
    pub append: bool,
}

/// Kinds of host ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CharKind {
    /// Output is dropped, no input comes.
    Null,
    /// Standard input and output.
    Stdio {
        /// Ctrl-C and Ctrl-Z act on this process; otherwise the guest gets them.
        signal: bool,
    },
    /// Output goes to a file.
    File {
        /// The file.
        path: PathBuf,
        /// Keep what it holds and write behind it; otherwise it is emptied first.
        append: bool,
        /// Where input comes from, if there is any.
        input: Option<PathBuf>,
    },
    /// Two FIFOs of this name with `.in` and `.out`, or one file for both.
    Pipe(PathBuf),
    /// A terminal or another character device of the host's.
    Tty(PathBuf),
    /// Memory that a monitor reads.
    Ring {
        /// Bytes kept: a power of two.
        size: usize,
    },
    /// Datagrams.
    Udp {
        /// Whom they go to: name and port.
        to: (String, u16),
        /// Where they come in: address and port.
        from: (String, u16),
    },
    /// A socket.
    Socket(SocketSpec),
    /// A pseudo-terminal, and where a link leads to it.
    Pty(Option<PathBuf>),
}

/// A socket as a host end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketSpec {
    /// Where.
    pub address: SocketAddress,
    /// `to=`: the last port that is tried, if the one of `address` is taken.
    pub to: Option<u16>,
    /// Listens there; otherwise it connects.
    pub server: bool,
    /// The machine is not made before somebody has connected.
    pub wait: bool,
    /// Speaks telnet.
    pub telnet: bool,
    /// Speaks with web clients (RFC 6455).
    pub websocket: bool,
    /// Time after which a lost connection is made anew.
    pub reconnect: Option<Duration>,
}

/// Where a socket is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketAddress {
    /// On a network.
    Tcp {
        /// Name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// In the file system; one whose path begins with a zero byte is a name in none, see [`SocketAddress::named`].
    Unix(PathBuf),
    /// A descriptor that the program was started with.
    Inherited(i32),
}

/// Bytes of a Unix socket's name, but the first one (unix(7)).
const MOST_NAME: usize = 107;

impl SocketAddress {
    /// A socket that is in no file system (`abstract=on`); unless it is `tight`, its name fills up all there is.
    pub fn named(name: &str, tight: bool) -> Self {
        let mut path = format!("\0{name}");
        let missing = if tight { 0 } else { (1 + MOST_NAME).saturating_sub(path.len()) };
        path.extend(std::iter::repeat_n('\0', missing));
        Self::Unix(path.into())
    }
}

impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
            Self::Unix(path) => match path.to_str().and_then(|path| path.strip_prefix('\0')) {
                Some(name) if name.ends_with('\0') => write!(f, "unix:{},abstract", name.trim_end_matches('\0')),
                Some(name) => write!(f, "unix:{name},abstract,tight"),
                None => write!(f, "unix:{}", path.display()),
            },
            Self::Inherited(number) => write!(f, "fd:{number}"),
        }
    }
}

/// What happens at power events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Actions {
    /// `reboot=`, `-no-reboot`.
    pub reboot: RebootAction,
    /// `shutdown=`, `-no-shutdown`.
    pub shutdown: ShutdownAction,
    /// `panic=`.
    pub panic: PanicAction,
    /// `watchdog=`, `-watchdog-action`.
    pub watchdog: WatchdogAction,
}

/// What a guest's reset does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RebootAction {
    /// The machine resets.
    #[default]
    Reset,
    /// The reset counts as a power-off (`-no-reboot`).
    Shutdown,
}

/// What a guest's power-off does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShutdownAction {
    /// The process ends with status 0.
    #[default]
    PowerOff,
    /// The machine pauses and can be looked at (`-no-shutdown`).
    Pause,
}

/// What a guest's crash does that it reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PanicAction {
    /// The process ends as at power-off.
    #[default]
    Shutdown,
    /// The machine pauses and can be looked at.
    Pause,
    /// The process ends with status 1.
    ExitFailure,
    /// The guest goes on.
    None,
}

/// What a watchdog does that was not fed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WatchdogAction {
    /// The machine resets.
    #[default]
    Reset,
    /// The power button is pressed.
    Shutdown,
    /// The process ends.
    PowerOff,
    /// All processors get a non-maskable interrupt.
    InjectNmi,
    /// The machine pauses.
    Pause,
    /// The user is told and the guest goes on.
    Debug,
    /// The guest goes on.
    None,
}

/// `-msg`: what warnings and errors begin with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Messages {
    /// The time.
    pub timestamp: bool,
    /// The machine's name.
    pub guest_name: bool,
}
