//! The way that a machine's state takes: a descriptor, and a program behind it if there is one.

use super::{Address, Control};
use crate::chardev::{connect_unix, held_by, listen_unix};
use crate::cli::config::SocketAddress;
use crate::cli::os_reason;
use crate::net::descriptor::inherited;
use brolga::descriptors::{self, Access};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often those who wait look whether they are to stop.
const LOOK: Duration = Duration::from_millis(50);
/// In which time as much is sent as the limit says.
const SPAN: Duration = Duration::from_millis(100);

/// An open way.
pub struct Channel {
    end: File,
    program: Option<Child>,
    /// What comes back can be read: a socket that this process has opened.
    pub answers: bool,
}

/// Where a machine is waited for.
pub enum Door {
    /// It is there already.
    Open(Channel),
    /// It comes to a TCP port.
    Tcp(TcpListener),
    /// It comes to a Unix socket.
    Unix(UnixListener),
}

fn failed(what: &str, of: &dyn std::fmt::Display, error: &io::Error) -> String {
    format!("Failed to {what} '{of}': {}", os_reason(error))
}

fn descriptor(name: &str) -> Result<File, String> {
    let found = match name.parse() {
        Ok(number) => inherited(number).map_err(|e| failed("use descriptor", &number, &e))?,
        Err(_) => {
            let missing = || format!("File descriptor named '{name}' has not been found");
            descriptors::take(name).ok_or_else(missing)?
        }
    };
    Ok(found.into())
}

fn run(words: &[String], out: bool) -> Result<(Child, OwnedFd), String> {
    let (program, rest) = words.split_first().ok_or("no program is named")?;
    let mut command = Command::new(program);
    command.args(rest).stdin(Stdio::null()).stdout(Stdio::inherit());
    if out {
        command.stdin(Stdio::piped())
    } else {
        command.stdout(Stdio::piped())
    };
    let mut child = command.spawn().map_err(|e| failed("run", program, &e))?;
    let end = match out {
        true => child.stdin.take().map(OwnedFd::from),
        false => child.stdout.take().map(OwnedFd::from),
    };
    end.map(|end| (child, end)).ok_or_else(|| format!("Failed to run '{program}'"))
}

fn file(path: &Path, offset: u64, out: bool) -> Result<File, String> {
    let access = if out { Access::Write } else { Access::Read };
    // What lies before the offset is somebody else's, and stays.
    let open = || File::options().read(!out).write(out).create(out).truncate(false).open(path);
    let opened = descriptors::open(path, access, 0).unwrap_or_else(open).and_then(|mut file| {
        file.seek(SeekFrom::Start(offset))?;
        let regular = file.metadata()?.is_file();
        if out && regular { file.set_len(offset).map(|()| file) } else { Ok(file) }
    });
    opened.map_err(|e| format!("Could not open '{}': {}", path.display(), os_reason(&e)))
}

impl Channel {
    /// Opens the way to `address`.
    pub fn to(address: &Address) -> Result<Self, String> {
        let refused = |at: &SocketAddress, e: io::Error| failed("connect to", at, &e);
        let plain = |end| Self { end, program: None, answers: false };
        match address {
            Address::Socket(at) => {
                let socket: OwnedFd = match at {
                    SocketAddress::Tcp { host, port } => {
                        TcpStream::connect((host.as_str(), *port)).map_err(|e| refused(at, e))?.into()
                    }
                    SocketAddress::Unix(path) => connect_unix(path).map_err(|e| refused(at, e))?.into(),
                    SocketAddress::Inherited(number) => inherited(*number).map_err(|e| refused(at, e))?,
                };
                Ok(Self { answers: true, ..plain(socket.into()) })
            }
            Address::Descriptor(name) => descriptor(name).map(plain),
            Address::Program(words) => {
                let (child, end) = run(words, true)?;
                Ok(Self { program: Some(child), ..plain(end.into()) })
            }
            Address::File(path, offset) => file(path, *offset, true).map(plain),
        }
    }

    /// Whether more can be written, or read (`None`: for the length of a look).
    fn ready(&self, events: PollFlags) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.end.as_fd(), events)];
        Ok(poll(&mut fds, PollTimeout::try_from(LOOK.as_millis()).unwrap_or(PollTimeout::MAX))? != 0)
    }

    /// Closes it; a program has to end well.
    pub fn close(self) -> Result<(), String> {
        let Self { end, program, .. } = self;
        drop(end);
        let Some(mut program) = program else { return Ok(()) };
        match program.wait() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("the program failed: {status}")),
            Err(e) => Err(format!("the program cannot be waited for: {}", os_reason(&e))),
        }
    }

    /// Waits for the other side's word that the machine has arrived.
    pub fn answer(&mut self, control: &Control) -> Result<(), String> {
        while !control.cancelled() {
            let mut byte = [0];
            match self.ready(PollFlags::POLLIN).and_then(|ready| if ready { self.end.read(&mut byte) } else { Ok(2) }) {
                Ok(1) => return Ok(()),
                Ok(0) => return Err("the other side ended before the machine had arrived".to_owned()),
                Ok(_) => {}
                Err(e) => return Err(format!("no answer from the other side: {}", os_reason(&e))),
            }
        }
        Err("it was cancelled".to_owned())
    }

    /// Says that the machine has arrived. Whoever sent it may not listen.
    pub fn say_arrived(&mut self) {
        if let Err(error) = self.end.write_all(&[1]) {
            tracing::debug!("nobody hears that the machine has arrived: {error}");
        }
    }
}

impl Read for Channel {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.end.read(bytes)
    }
}

impl Door {
    /// Opens the way from `address`, or listens there.
    pub fn at(address: &Address) -> Result<Self, String> {
        let taken = |at: &SocketAddress, e: io::Error| format!("{}{}", failed("listen at", at, &e), held_by(at, &e));
        let plain = |end| Self::Open(Channel { end, program: None, answers: false });
        Ok(match address {
            Address::Socket(at) => match at {
                SocketAddress::Tcp { host, port } => {
                    Self::Tcp(TcpListener::bind((host.as_str(), *port)).map_err(|e| taken(at, e))?)
                }
                SocketAddress::Unix(path) => Self::Unix(listen_unix(path).map_err(|e| taken(at, e))?),
                SocketAddress::Inherited(number) => plain(inherited(*number).map_err(|e| taken(at, e))?.into()),
            },
            Address::Descriptor(name) => plain(descriptor(name)?),
            Address::Program(words) => {
                let (child, end) = run(words, false)?;
                Self::Open(Channel { end: end.into(), program: Some(child), answers: false })
            }
            Address::File(path, offset) => plain(file(path, *offset, false)?),
        })
    }

    /// Where a machine can come to, if it comes by a socket.
    pub fn local(&self) -> Option<SocketAddress> {
        match self {
            Self::Open(_) => None,
            Self::Tcp(listener) => {
                let at = listener.local_addr().ok()?;
                Some(SocketAddress::Tcp { host: at.ip().to_string(), port: at.port() })
            }
            Self::Unix(listener) => Some(SocketAddress::Unix(listener.local_addr().ok()?.as_pathname()?.to_path_buf())),
        }
    }

    /// Waits for the machine.
    pub fn wait(self) -> io::Result<Channel> {
        let socket = |end: OwnedFd| Channel { end: end.into(), program: None, answers: true };
        match self {
            Self::Open(channel) => Ok(channel),
            Self::Tcp(listener) => Ok(socket(listener.accept()?.0.into())),
            Self::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                if let Some(path) = listener.local_addr()?.as_pathname() {
                    // Its name leads nowhere any more.
                    let _ = std::fs::remove_file(path);
                }
                Ok(socket(stream.into()))
            }
        }
    }
}

/// Writes to a channel no faster than the user wants, and no longer.
pub struct Sender {
    channel: Channel,
    control: Arc<Control>,
    /// When the present span began, and what was sent in it.
    since: Instant,
    in_span: u64,
}

impl Sender {
    /// A way that `control` has a say in.
    pub fn new(channel: Channel, control: Arc<Control>) -> io::Result<Self> {
        // A write that waits could not be called off.
        rustix::io::ioctl_fionbio(&channel.end, true)?;
        Ok(Self { channel, control, since: Instant::now(), in_span: 0 })
    }

    /// The channel, all of it written.
    pub fn into_channel(self) -> Channel {
        self.channel
    }

    /// Waits if more was sent than the limit says.
    fn hold_back(&mut self) -> io::Result<()> {
        let limit = self.control.bytes_per_second();
        let allowed = limit / u64::from((Duration::from_secs(1).as_millis() / SPAN.as_millis()) as u32);
        while limit != 0 && self.in_span > allowed.max(1) {
            self.look()?;
            match SPAN.checked_sub(self.since.elapsed()) {
                Some(left) => std::thread::sleep(left.min(LOOK)),
                None => {
                    self.in_span -= allowed.max(1).min(self.in_span);
                    self.since = Instant::now();
                }
            }
        }
        Ok(())
    }

    fn look(&self) -> io::Result<()> {
        match self.control.cancelled() {
            true => Err(io::Error::new(io::ErrorKind::TimedOut, "it was cancelled")),
            false => Ok(()),
        }
    }
}

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hold_back()?;
        loop {
            self.look()?;
            if !self.channel.ready(PollFlags::POLLOUT)? {
                continue;
            }
            match self.channel.end.write(bytes) {
                Ok(count) => {
                    self.in_span += count as u64;
                    self.control.note_sent(count as u64);
                    return Ok(count);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.channel.end.flush()
    }
}
