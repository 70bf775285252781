//! Input: a thread that waits for bytes and hands them on as fast as their receiver takes them.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::{AsFd, OwnedFd};
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
}

/// Wakes the input thread. Waking is cheap when nothing waits for it.
#[derive(Clone)]
pub struct Waker {
    event: Arc<EventFd>,
    /// Input waits for a device to take it.
    stuck: Arc<AtomicBool>,
}

impl Waker {
    /// A waker for a thread to come.
    pub fn new() -> nix::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { event: Arc::new(event), stuck: Arc::default() })
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
        let _ = poll(&mut [PollFd::new(self.event.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE);
        let _ = self.event.read();
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
        let mut left = read(source, &waker, &*sink, |bytes, data| data.extend_from_slice(bytes));
        loop {
            waker.set_stuck();
            sink.pump(&mut left);
            waker.wait();
        }
    })?;
    Ok(())
}

/// Reads `source` for `sink` to its end, on this thread; `decode` adds what it reads of the bytes to the data. What the sink
/// has no room for at the end is lost.
pub fn read_to_end(source: OwnedFd, waker: &Waker, sink: &dyn InputSink, decode: impl FnMut(&[u8], &mut Vec<u8>)) {
    read(source, waker, sink, decode);
}

/// Reads `source` for `sink` to its end: what the sink has not taken yet.
fn read(source: OwnedFd, waker: &Waker, sink: &dyn InputSink, mut decode: impl FnMut(&[u8], &mut Vec<u8>)) -> Vec<u8> {
    let mut input = Vec::with_capacity(READ_AHEAD);
    loop {
        // Before looking whether the device has room: room made after that look wakes us again.
        waker.set_stuck();
        sink.pump(&mut input);
        let mut fds = vec![PollFd::new(waker.event.as_fd(), PollFlags::POLLIN)];
        if input.is_empty() {
            fds.push(PollFd::new(source.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(e) => {
                tracing::warn!("input: {e}; no more is read");
                return input;
            }
        }
        let readable = fds.get(1).and_then(PollFd::revents).is_some_and(|r| !r.is_empty());
        let _ = waker.event.read();
        if readable {
            let mut buf = [0; READ_AHEAD];
            match nix::unistd::read(&source, &mut buf) {
                Ok(n) if n > 0 => decode(&buf[..n], &mut input),
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                // End of file, or the terminal hung up.
                _ => return input,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::outlet::Outlet;
    use super::super::plain::Plain;
    use super::*;
    use brolga_devices::services::{CharBackend, CharFrontend};
    use std::io::Write;
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
}
