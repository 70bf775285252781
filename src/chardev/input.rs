//! Input: a thread that waits for bytes and hands them on as fast as their receiver takes them.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use rustix::net::{AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Most bytes read ahead of the receiver.
const READ_AHEAD: usize = 4096;

/// Where input goes.
pub trait InputSink: Send + Sync {
    /// Takes as much of `input` as it can from its front, and passes on what it kept earlier. Called with new input
    /// and whenever a device can take more (`CharBackend::input_ready`).
    fn pump(&self, input: &mut Vec<u8>);

    /// Descriptors that come with the bytes that are pumped next; who has no use for them closes them.
    fn descriptors(&self, _descriptors: Vec<OwnedFd>) {}
}

/// Wakes the input thread. Waking is cheap when nothing waits for it.
#[derive(Clone)]
pub struct Waker {
    event: Arc<EventFd>,
    /// Input waits for a device to take it.
    stuck: Arc<AtomicBool>,
    /// The host end is taken away.
    stopped: Arc<AtomicBool>,
}

impl Waker {
    /// A waker for a thread to come.
    pub fn new() -> nix::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { event: Arc::new(event), stuck: Arc::default(), stopped: Arc::default() })
    }

    /// The host end is taken away: its threads end.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        let _ = self.event.write(1);
    }

    /// Whether it is.
    pub fn stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// A device can take more.
    pub fn wake(&self) {
        if self.stuck.swap(false, Ordering::SeqCst) {
            // Full counters mean that a wake-up is pending already.
            let _ = self.event.write(1);
        }
    }

    /// Waits until it is woken.
    fn wait(&self) {
        self.pause(PollTimeout::NONE);
    }

    /// Waits for some time, or until it is woken.
    pub fn pause(&self, time: PollTimeout) {
        let _ = poll(&mut [PollFd::new(self.event.as_fd(), PollFlags::POLLIN)], time);
        let _ = self.event.read();
    }

    /// Waits until `source` has something; `false`: the host end is taken away.
    pub fn wait_for(&self, source: &impl AsFd) -> std::io::Result<bool> {
        while !self.stopped() {
            let mut fds = [(self.event.as_fd()), source.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(e) => return Err(e.into()),
            }
            let ready = fds[1].revents().is_some_and(|events| !events.is_empty());
            let _ = self.event.read();
            if ready && !self.stopped() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Says that input waits, so that the next [`Waker::wake`] counts.
    pub fn set_stuck(&self) {
        self.stuck.store(true, Ordering::SeqCst);
    }
}

/// Starts the thread that reads `source` for `sink`. End of input ends the reading, not the thread: what the sink
/// kept still has to be passed on.
pub fn start(source: OwnedFd, waker: Waker, sink: Arc<dyn InputSink>) -> std::io::Result<()> {
    thread::Builder::new().name("input".into()).spawn(move || {
        let mut left = read(&source, None, &waker, &*sink, |bytes, data| data.extend_from_slice(bytes));
        while !waker.stopped() {
            waker.set_stuck();
            sink.pump(&mut left);
            waker.wait();
        }
    })?;
    Ok(())
}

/// Reads `source` for `sink` to its end, on this thread; `decode` adds what it reads of the bytes to the data. What the sink
/// has no room for at the end is lost; so is what it has not taken of a peer that has gone when the next one is at `door`.
pub fn read_to_end(
    source: &OwnedFd,
    door: Option<BorrowedFd<'_>>,
    waker: &Waker,
    sink: &dyn InputSink,
    decode: impl FnMut(&[u8], &mut Vec<u8>),
) {
    read(source, door, waker, sink, decode);
}

/// Reads `source` for `sink` to its end: what the sink has not taken yet.
fn read(
    source: &OwnedFd,
    door: Option<BorrowedFd<'_>>,
    waker: &Waker,
    sink: &dyn InputSink,
    mut decode: impl FnMut(&[u8], &mut Vec<u8>),
) -> Vec<u8> {
    let mut input = Vec::with_capacity(READ_AHEAD);
    let unix = rustix::net::sockopt::socket_domain(source).is_ok_and(|domain| domain == AddressFamily::UNIX);
    let mut gone = false;
    loop {
        // Before looking whether the device has room: room made after that look wakes us again.
        waker.set_stuck();
        sink.pump(&mut input);
        gone &= !input.is_empty();
        let mut fds = vec![PollFd::new(waker.event.as_fd(), PollFlags::POLLIN)];
        match (input.is_empty(), door) {
            (true, _) => fds.push(PollFd::new(source.as_fd(), PollFlags::POLLIN)),
            (false, Some(door)) if gone => fds.push(PollFd::new(door, PollFlags::POLLIN)),
            // Whether it hangs up is told in any case.
            (false, Some(_)) => fds.push(PollFd::new(source.as_fd(), PollFlags::empty())),
            (false, None) => {}
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(e) => {
                tracing::warn!("input: {e}; no more is read");
                return input;
            }
        }
        let ready = fds.get(1).and_then(PollFd::revents).is_some_and(|r| !r.is_empty());
        let _ = waker.event.read();
        if waker.stopped() {
            return input;
        }
        match ready {
            true if gone => return input,
            true if !input.is_empty() => gone = true,
            true => {
                let mut buf = [0; READ_AHEAD];
                let got =
                    if unix { with_descriptors(source, &mut buf, sink) } else { nix::unistd::read(source, &mut buf) };
                match got {
                    Ok(n) if n > 0 => decode(&buf[..n], &mut input),
                    Err(Errno::EINTR | Errno::EAGAIN) => {}
                    // End of file, or the terminal hung up.
                    _ => return input,
                }
            }
            false => {}
        }
    }
}

/// Most descriptors that come with one message.
const MOST: usize = 16;

/// Reads from a Unix socket; descriptors that come along are handed to `sink`.
fn with_descriptors(source: &OwnedFd, buf: &mut [u8], sink: &dyn InputSink) -> nix::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let parts = &mut [IoSliceMut::new(buf)];
    let message = recvmsg(source, parts, &mut control, RecvFlags::CMSG_CLOEXEC);
    let message = message.map_err(|e| Errno::from_raw(e.raw_os_error()))?;
    let mut descriptors = Vec::new();
    for entry in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = entry {
            descriptors.extend(rights);
        }
    }
    if !descriptors.is_empty() {
        sink.descriptors(descriptors);
    }
    Ok(message.bytes)
}

#[cfg(test)]
mod tests {
    use super::super::outlet::Outlet;
    use super::super::plain::Plain;
    use super::*;
    use brolga_devices::services::{CharBackend, CharFrontend};
    use std::io::Write;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::sync::{Mutex, Weak};
    use std::time::{Duration, Instant};

    /// A device with a FIFO of one byte that the test empties.
    #[derive(Default)]
    struct Fifo {
        full: AtomicBool,
        got: Mutex<Vec<u8>>,
    }

    impl CharFrontend for Fifo {
        fn can_receive(&self) -> usize {
            usize::from(!self.full.load(Ordering::SeqCst))
        }
        fn receive(&self, bytes: &[u8]) {
            assert_eq!(bytes.len(), 1);
            assert!(!self.full.swap(true, Ordering::SeqCst), "received without room");
            self.got.lock().unwrap().extend_from_slice(bytes);
        }
    }

    #[test]
    fn input_waits_for_the_device_and_survives_end_of_file() {
        let (r, w) = nix::unistd::pipe().unwrap();
        let waker = Waker::new().unwrap();
        let plain = Plain::new(Outlet::to(None), Some(waker.clone()));
        start(r, waker, plain.clone()).unwrap();
        let mut w = std::fs::File::from(w);
        w.write_all(b"hello, guest").unwrap();
        drop(w);
        let fifo = Arc::new(Fifo::default());
        let weak: Weak<dyn CharFrontend> = Arc::downgrade(&(fifo.clone() as Arc<dyn CharFrontend>));
        plain.connect(weak);
        let deadline = Instant::now() + Duration::from_secs(20);
        while fifo.got.lock().unwrap().len() < 12 {
            assert!(Instant::now() < deadline, "got only {:?}", fifo.got.lock().unwrap());
            if fifo.full.swap(false, Ordering::SeqCst) {
                plain.input_ready();
            }
            std::thread::yield_now();
        }
        assert_eq!(*fifo.got.lock().unwrap(), b"hello, guest");
    }

    /// A guest that takes nothing does not keep the next peer out.
    #[test]
    fn what_is_left_of_a_peer_makes_way_for_the_next() {
        let path = std::env::temp_dir().join(format!("brolga-input-{}", std::process::id()));
        let door = UnixListener::bind(&path).unwrap();
        let mut first = UnixStream::connect(&path).unwrap();
        let (source, _) = door.accept().unwrap();
        first.write_all(b"nobody wants this").unwrap();
        drop(first);
        let waker = Waker::new().unwrap();
        let plain = Plain::new(Outlet::to(None), Some(waker.clone()));
        let second = path.clone();
        let comes = thread::spawn(move || UnixStream::connect(second).unwrap());
        read_to_end(&source.into(), Some(door.as_fd()), &waker, &*plain, |bytes, data| data.extend_from_slice(bytes));
        door.accept().unwrap();
        comes.join().unwrap();
        std::fs::remove_file(&path).unwrap();
    }
}
