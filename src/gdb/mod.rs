//! Remote debugging by gdb (`-gdb`, `-s`): one client at a time, served on a thread of its own.
//!
//! A client that connects stops the guest. One that goes without a word leaves it as it is, without breakpoints; one that
//! detaches lets it run.

mod packets;
mod registers;
mod target;

pub use registers::State;
pub use target::Resume;

use crate::chardev::{held_by, listen_unix};
use crate::cli::config::SocketAddress;
use crate::monitor::{Commands, Control, MonitorHost};
use anyhow::{Context, Result, anyhow};
use brolga_jit::{DebugStop, Watchpoint};
use crossbeam_channel::{Receiver, Sender, unbounded};
use gdbstub::common::{Signal, Tid};
use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{DisconnectReason, GdbStub, MultiThreadStopReason};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use packets::Filter;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use target::{Debuggee, tid, to_gdb};

/// Where a debugger connects (`-gdb`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A socket to listen at.
    Socket(SocketAddress),
    /// Standard input and output.
    Stdio,
}

/// Why the machine stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// What a debugger asked for happened on this vCPU.
    Debug(u32, Option<DebugStop>),
    /// Somebody stopped it.
    Paused,
}

/// The machine as a debugger uses it. vCPUs stand still while registers are read.
pub trait DebugHost: MonitorHost {
    /// All registers of a vCPU.
    fn all_registers(&self, cpu: u32) -> Option<State>;
    /// Sets all registers of a vCPU.
    fn set_all_registers(&self, cpu: u32, state: &State);
    /// Writes guest-physical memory, ROM too; `false` if some of it is neither RAM nor ROM.
    fn write_physical(&self, gpa: u64, bytes: &[u8]) -> bool;
    /// Sets all breakpoints (linear addresses) and watchpoints, for all vCPUs.
    fn set_stops(&self, breakpoints: &[u64], watchpoints: &[Watchpoint]);
    /// Lets the guest go on, each vCPU as its entry says.
    fn go_on(&self, actions: Vec<Resume>);
    /// Says to `listener` from now on why the machine stops.
    fn listen(&self, listener: Listener);
}

/// Hears of stops; an eventfd tells its thread.
#[derive(Clone)]
pub struct Listener {
    sender: Sender<Stop>,
    bell: Arc<EventFd>,
}

impl Listener {
    /// The machine stopped. Never waits.
    pub fn stopped(&self, why: Stop) {
        if self.sender.send(why).is_ok() {
            // Fails only if the counter is full, and then the bell rings already.
            let _ = self.bell.write(1);
        }
    }
}

/// The receiving end of a [`Listener`].
struct Ears {
    stops: Receiver<Stop>,
    bell: Arc<EventFd>,
    /// The server is to stop.
    stop: Arc<EventFd>,
}

/// A server that listens, until it is told to stop.
pub struct Handle {
    stop: Arc<EventFd>,
    thread: JoinHandle<()>,
}

impl Handle {
    /// Ends the server, and its client's connection: nothing of what was set stays.
    pub fn stop(self) {
        // Fails only if the counter is full, and then the bell rings already.
        let _ = self.stop.write(1);
        // Its own client may have asked for that.
        if self.thread.thread().id() != std::thread::current().id() {
            // A panic was reported when it happened.
            let _ = self.thread.join();
        }
    }
}

/// Starts to listen at `endpoint`. A client finds the guest by `host`.
pub fn start(endpoint: &Endpoint, host: Arc<dyn DebugHost>, commands: Commands) -> Result<Handle> {
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let (sender, stops) = unbounded();
    let bell = Arc::new(EventFd::from_flags(flags).context("-gdb")?);
    host.listen(Listener { sender, bell: bell.clone() });
    let stop = Arc::new(EventFd::from_flags(flags).context("-gdb")?);
    let ears = Ears { stops, bell, stop: stop.clone() };
    let mut server = Server { ears, debuggee: Debuggee::new(host.clone(), commands), host };
    let accept = listen(endpoint, stop.clone())?;
    let path = match endpoint {
        Endpoint::Socket(SocketAddress::Unix(path)) => std::path::absolute(path).ok(),
        _ => None,
    };
    let serve = move || {
        loop {
            match accept() {
                Ok(Some(connection)) => server.serve(connection),
                Ok(None) => break,
                Err(error) => tracing::warn!("gdb: {error}"),
            }
        }
        // Somebody may have removed it.
        path.iter().for_each(|path| drop(std::fs::remove_file(path)));
    };
    let thread = std::thread::Builder::new().name("gdb".into()).spawn(serve);
    Ok(Handle { stop, thread: thread.context("-gdb: cannot start its thread")? })
}

/// Waits for a client at `listener`; `false`: the server is to stop.
fn somebody_comes(listener: &impl AsFd, stop: &EventFd) -> io::Result<bool> {
    loop {
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => other?,
        };
        return Ok(fds[1].revents().is_none_or(|events| events.is_empty()));
    }
}

/// Gives the next client's connection; `None`: there will be no more.
type Accept = Box<dyn Fn() -> io::Result<Option<Wire>> + Send>;

fn listen(endpoint: &Endpoint, stop: Arc<EventFd>) -> Result<Accept> {
    match endpoint {
        Endpoint::Socket(address @ SocketAddress::Tcp { host, port }) => {
            let listener = TcpListener::bind((host.as_str(), *port)).map_err(|e| {
                let reason = crate::cli::os_reason(&e);
                anyhow!("-gdb {address}: {reason}{}; choose another port", held_by(address, &e))
            })?;
            Ok(Box::new(move || {
                if !somebody_comes(&listener, &stop)? {
                    return Ok(None);
                }
                let (stream, _) = listener.accept()?;
                // Packets are short and each waits for its answer.
                stream.set_nodelay(true)?;
                Wire::of(stream.into()).map(Some)
            }))
        }
        Endpoint::Socket(SocketAddress::Unix(path)) => {
            let listener = listen_unix(path).map_err(|e| {
                let (address, reason) = (SocketAddress::Unix(path.clone()), crate::cli::os_reason(&e));
                anyhow!("-gdb {address}: {reason}{}; choose another path", held_by(&address, &e))
            })?;
            Ok(Box::new(move || match somebody_comes(&listener, &stop)? {
                true => Wire::of(listener.accept()?.0.into()).map(Some),
                false => Ok(None),
            }))
        }
        Endpoint::Socket(address @ SocketAddress::Inherited(_)) => {
            Err(anyhow!("-gdb {address}: a descriptor cannot be given; use a port or a path"))
        }
        Endpoint::Stdio => {
            let once = std::sync::atomic::AtomicBool::new(false);
            Ok(Box::new(move || {
                if once.swap(true, std::sync::atomic::Ordering::Relaxed) {
                    return Ok(None);
                }
                let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
                let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
                Ok(Some(Wire { input, output, filter: Filter::default(), arrived: VecDeque::new(), out: Vec::new() }))
            }))
        }
    }
}

/// A connection to a client.
struct Wire {
    input: File,
    output: File,
    filter: Filter,
    /// Bytes for gdbstub.
    arrived: VecDeque<u8>,
    /// Bytes on their way out.
    out: Vec<u8>,
}

impl Wire {
    fn of(socket: OwnedFd) -> io::Result<Self> {
        let input = File::from(socket.try_clone()?);
        let output = File::from(socket);
        Ok(Self { input, output, filter: Filter::default(), arrived: VecDeque::new(), out: Vec::new() })
    }

    /// Reads what is there; `false` at the end.
    fn receive(&mut self) -> io::Result<bool> {
        let mut buf = [0; 4096];
        let n = self.input.read(&mut buf)?;
        self.arrived.extend(&buf[..n]);
        Ok(n != 0)
    }
}

impl Connection for Wire {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.out.push(byte);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.write_all(&std::mem::take(&mut self.out))
    }
}

struct Server {
    ears: Ears,
    host: Arc<dyn DebugHost>,
    debuggee: Debuggee,
}

/// How a session went on.
enum Next {
    /// A byte came.
    Byte(u8),
    /// The machine stopped.
    Stopped(Stop),
}

impl Server {
    fn serve(&mut self, wire: Wire) {
        self.host.control(Control::Stop);
        self.debuggee.physical = false;
        match self.session(wire) {
            Ok(Some(DisconnectReason::Kill)) => self.host.control(Control::Quit),
            Ok(Some(_)) => {
                self.debuggee.clear();
                self.host.control(Control::Continue);
            }
            Ok(None) => self.debuggee.clear(),
            Err(error) => {
                tracing::warn!("gdb: {error:#}; the connection is closed");
                self.debuggee.clear();
            }
        }
    }

    /// Serves a client to its end. `None`: it vanished.
    fn session(&mut self, wire: Wire) -> Result<Option<DisconnectReason>> {
        let stub = GdbStub::builder(wire).packet_buffer_size(64 << 10).build()?;
        let mut gdb = stub.run_state_machine(&mut self.debuggee)?;
        loop {
            gdb = match gdb {
                GdbStubStateMachine::Idle(mut inner) => {
                    // What stopped the machine while the client knew that it stands is no news.
                    while self.ears.stops.try_recv().is_ok() {}
                    match self.next(inner.borrow_conn(), false)? {
                        Some(Next::Byte(byte)) => inner.incoming_data(&mut self.debuggee, byte)?,
                        _ => return Ok(None),
                    }
                }
                GdbStubStateMachine::Running(mut inner) => match self.next(inner.borrow_conn(), true)? {
                    Some(Next::Byte(byte)) => inner.incoming_data(&mut self.debuggee, byte)?,
                    Some(Next::Stopped(why)) => {
                        let why = self.reason(why);
                        inner.report_stop(&mut self.debuggee, why)?
                    }
                    None => return Ok(None),
                },
                GdbStubStateMachine::CtrlCInterrupt(inner) => {
                    self.host.control(Control::Stop);
                    let why = self.reason(Stop::Paused);
                    inner.interrupt_handled(&mut self.debuggee, Some(why))?
                }
                GdbStubStateMachine::Disconnected(inner) => return Ok(Some(inner.get_reason())),
            };
        }
    }

    /// Waits for a byte of the client's or, if it is `running`, for the machine to stop. `None`: the client is gone.
    fn next(&mut self, wire: &mut Wire, running: bool) -> Result<Option<Next>> {
        loop {
            if running && let Ok(why) = self.ears.stops.try_recv() {
                return Ok(Some(Next::Stopped(why)));
            }
            if let Some(byte) = wire.arrived.pop_front() {
                match wire.filter.take(byte, &mut self.debuggee.physical) {
                    packets::Taken::Pass(byte) => return Ok(Some(Next::Byte(byte))),
                    packets::Taken::Held => {}
                    packets::Taken::Release(bytes) => bytes.into_iter().rev().for_each(|b| wire.arrived.push_front(b)),
                    packets::Taken::Answer(answer) => wire.output.write_all(&answer)?,
                }
                continue;
            }
            let (from_client, stop, from_machine) = {
                let mut fds = [
                    PollFd::new(wire.input.as_fd(), PollFlags::POLLIN),
                    PollFd::new(self.ears.stop.as_fd(), PollFlags::POLLIN),
                    PollFd::new(self.ears.bell.as_fd(), PollFlags::POLLIN),
                ];
                match poll(&mut fds[..if running { 3 } else { 2 }], PollTimeout::NONE) {
                    Err(nix::errno::Errno::EINTR) => continue,
                    other => other.context("waiting for the client")?,
                };
                let ready = |n: usize| fds[n].revents().is_some_and(|events| !events.is_empty());
                (ready(0), ready(1), running && ready(2))
            };
            if stop {
                return Ok(None);
            }
            if from_machine {
                // Only there to wake this thread.
                let _ = self.ears.bell.read();
            }
            if from_client && !wire.receive().unwrap_or(false) {
                return Ok(None);
            }
        }
    }

    /// A stop in gdb's words.
    fn reason(&self, stop: Stop) -> MultiThreadStopReason<u64> {
        let first: Tid = tid(0);
        match stop {
            Stop::Debug(cpu, Some(DebugStop::Breakpoint(linear))) if self.is_at(cpu, linear) => {
                MultiThreadStopReason::SwBreak(tid(cpu))
            }
            Stop::Debug(cpu, Some(DebugStop::Watchpoint(w))) => {
                MultiThreadStopReason::Watch { tid: tid(cpu), kind: to_gdb(w.kind), addr: w.address }
            }
            // Where the code segment has a base, gdb has no breakpoint at the program counter; told of one all the same, it would
            // take it for one that it has removed, and go on.
            Stop::Debug(cpu, _) => MultiThreadStopReason::SignalWithThread { tid: tid(cpu), signal: Signal::SIGTRAP },
            Stop::Paused => MultiThreadStopReason::SignalWithThread { tid: first, signal: Signal::SIGINT },
        }
    }

    /// Whether a processor's program counter, as gdb sees it, is this linear address.
    fn is_at(&self, cpu: u32, linear: u64) -> bool {
        self.host.all_registers(cpu).is_some_and(|state| state.main.rip == linear)
    }
}
