//! Input from standard input: one thread that waits for bytes and hands them on as fast as their receiver takes them.

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

    /// Says that input waits, so that the next [`Waker::wake`] counts.
    pub fn set_stuck(&self) {
        self.stuck.store(true, Ordering::SeqCst);
    }
}

/// Starts the thread that reads `source` for `sink`. End of input ends the reading, not the thread: what the sink
/// kept still has to be passed on.
pub fn start(source: OwnedFd, waker: Waker, sink: Arc<dyn InputSink>) -> std::io::Result<()> {
    thread::Builder::new().name("input".into()).spawn(move || run(source, &waker, &*sink))?;
    Ok(())
}

fn run(source: OwnedFd, waker: &Waker, sink: &dyn InputSink) {
    let mut source = Some(source);
    let mut input = Vec::with_capacity(READ_AHEAD);
    loop {
        // Before looking whether the device has room: room made after that look wakes us again.
        waker.set_stuck();
        sink.pump(&mut input);
        let mut fds = vec![PollFd::new(waker.event.as_fd(), PollFlags::POLLIN)];
        if let Some(source) = source.as_ref().filter(|_| input.is_empty()) {
            fds.push(PollFd::new(source.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(e) => {
                tracing::warn!("standard input: {e}; no more input is read");
                return;
            }
        }
        let readable = fds.get(1).and_then(PollFd::revents).is_some_and(|r| !r.is_empty());
        let _ = waker.event.read();
        if readable {
            let mut buf = [0; READ_AHEAD];
            match source.as_ref().map(|s| nix::unistd::read(s, &mut buf)) {
                Some(Ok(n)) if n > 0 => input.extend_from_slice(&buf[..n]),
                Some(Err(Errno::EINTR | Errno::EAGAIN)) => {}
                // End of file, or the terminal hung up.
                _ => source = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
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
        let plain = Plain::new(None, Some(waker.clone()));
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
