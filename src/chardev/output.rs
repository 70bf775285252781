//! Output to the host: a queue and a thread that empties it, so that nobody waits for a slow terminal, pipe or disk.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::io::{ErrorKind, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// Beyond this many queued bytes the guest's writes wait for the reader, so that memory stays bounded and nothing is lost;
/// a line with flow control does the same.
const LIMIT: usize = 16 << 20;
/// Beyond this many bytes on their way, those who can keep theirs are told that there is no room.
const ENOUGH: usize = 1 << 20;
/// How long bytes are gathered before they are written: a UART delivers them one by one.
const GATHER: Duration = Duration::from_micros(500);
/// Most bytes in one system call.
const CHUNK: usize = 64 << 10;

/// All outputs, for [`flush_all`].
static OUTPUTS: Mutex<Vec<Weak<Output>>> = Mutex::new(Vec::new());

/// Who hears that there is room again.
pub type Listener = Arc<dyn Fn() + Send + Sync>;

/// A queued way out. Lock order: `state` is a leaf, nothing is called while it is held.
pub struct Output {
    state: Mutex<State>,
    /// Something in `state` changed.
    changed: Condvar,
    /// It is a terminal.
    terminal: bool,
    listener: Mutex<Option<Listener>>,
}

#[derive(Default)]
struct State {
    queue: Vec<u8>,
    /// The writer sleeps until told.
    idle: bool,
    /// The writer has bytes that are not written yet.
    writing: bool,
    /// How many.
    left: usize,
    /// Somebody was told that there is no room.
    full: bool,
    /// Nobody reads any more (or the device failed): bytes are dropped.
    closed: bool,
    /// Bytes written so far.
    written: u64,
    /// What the guest did to the terminal's line wrapping.
    wrap: Wrap,
}

/// Watches for "line wrapping off" (DECAWM, ECMA-48 private mode 7), which firmware and editors leave behind.
#[derive(Default)]
struct Wrap {
    /// Bytes of [`WRAP`] seen in a row.
    matched: usize,
    off: bool,
}

/// What comes before `h` (on) or `l` (off).
const WRAP: &[u8] = b"\x1b[?7";

impl Wrap {
    fn watch(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.matched = match (self.matched, byte) {
                (n, b) if WRAP.get(n) == Some(&b) => n + 1,
                (_, 0x1b) => 1,
                (n, b'h' | b'l') if n == WRAP.len() => {
                    self.off = byte == b'l';
                    0
                }
                _ => 0,
            };
        }
    }
}

impl Output {
    /// Starts a writer thread for `file`; `name` is for messages.
    pub fn start(name: String, file: File) -> std::io::Result<Arc<Self>> {
        let this = Arc::new(Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            terminal: file.is_terminal(),
            listener: Mutex::default(),
        });
        let writer = this.clone();
        thread::Builder::new().name(format!("out-{name}")).spawn(move || writer.run(&name, file))?;
        let mut outputs = OUTPUTS.lock().unwrap_or_else(PoisonError::into_inner);
        // Those of clients that have left.
        outputs.retain(|output| output.strong_count() != 0);
        outputs.push(Arc::downgrade(&this));
        drop(outputs);
        Ok(this)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues `bytes`.
    pub fn write(&self, bytes: &[u8]) {
        let mut state = self.lock();
        while state.queue.len() >= LIMIT && !state.closed {
            state = self.wait(state);
        }
        if state.closed {
            return;
        }
        state.queue.extend_from_slice(bytes);
        state.wrap.watch(bytes);
        if state.idle {
            state.idle = false;
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Has `listener` called when there is room after there was none.
    pub fn listen(&self, listener: Option<Listener>) {
        *self.listener.lock().unwrap_or_else(PoisonError::into_inner) = listener;
    }

    /// Bytes that may be written now by those who can keep them.
    pub fn room(&self) -> usize {
        let mut state = self.lock();
        if state.closed {
            return usize::MAX;
        }
        let room = ENOUGH.saturating_sub(state.queue.len() + state.left);
        state.full |= room == 0;
        room
    }

    /// Tells who waits for room, if there is enough now.
    fn tell(&self) {
        let tell = {
            let mut state = self.lock();
            let room = state.closed || state.queue.len() + state.left <= ENOUGH / 2;
            room && std::mem::take(&mut state.full)
        };
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(listener) = listener.filter(|_| tell) {
            listener();
        }
    }

    /// Nobody reads any more: what is queued is dropped, and the writer ends.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
        self.tell();
    }

    /// Waits until all is written; gives up after `patience` without progress. Returns whether all was written.
    pub fn flush(&self, patience: Duration) -> bool {
        let mut state = self.lock();
        let (mut written, mut since) = (state.written, Instant::now());
        while !state.closed && (state.writing || !state.queue.is_empty()) {
            if state.written != written {
                (written, since) = (state.written, Instant::now());
            }
            let Some(left) = patience.checked_sub(since.elapsed()) else { return false };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn run(&self, name: &str, mut file: File) {
        loop {
            let mut state = self.lock();
            if state.queue.is_empty() {
                while state.queue.is_empty() {
                    if state.closed {
                        return;
                    }
                    state.idle = true;
                    state = self.wait(state);
                }
                state.idle = false;
                drop(state);
                thread::sleep(GATHER);
                state = self.lock();
            }
            if state.closed {
                return;
            }
            let batch = std::mem::take(&mut state.queue);
            (state.writing, state.left) = (true, batch.len());
            drop(state);
            self.changed.notify_all();
            let result = self.write_out(&mut file, &batch);
            let mut state = self.lock();
            (state.writing, state.left) = (false, 0);
            state.closed |= result.is_err();
            drop(state);
            self.changed.notify_all();
            self.tell();
            if let Err(e) = result {
                // A reader that went away is no surprise; a full disk is.
                if e.kind() != ErrorKind::BrokenPipe {
                    tracing::warn!("{name}: output fails from here on: {e}");
                }
                return;
            }
        }
    }

    fn write_out(&self, file: &mut File, mut bytes: &[u8]) -> std::io::Result<()> {
        while !bytes.is_empty() {
            match file.write(&bytes[..bytes.len().min(CHUNK)]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => {
                    bytes = &bytes[n..];
                    let mut state = self.lock();
                    state.written += n as u64;
                    state.left = bytes.len();
                    drop(state);
                    self.changed.notify_all();
                    self.tell();
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // Somebody who shares the terminal made it non-blocking.
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    let _ = poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE);
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// Flushes every output; see [`Output::flush`]. A guest that left line wrapping off does not leave it so.
pub fn flush_all(patience: Duration) {
    let outputs: Vec<_> =
        OUTPUTS.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect();
    for output in outputs {
        if output.terminal && output.lock().wrap.off {
            output.write(b"\x1b[?7h");
        }
        output.flush(patience);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn pipe() -> (File, File) {
        let (r, w) = nix::unistd::pipe().unwrap();
        (r.into(), w.into())
    }

    #[test]
    fn a_slow_pipe_loses_nothing_and_blocks_nobody() {
        let (mut reader, writer) = pipe();
        let output = Output::start("test".into(), writer).unwrap();
        let sent: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
        let begin = Instant::now();
        sent.chunks(7).for_each(|c| output.write(c));
        assert!(begin.elapsed() < Duration::from_secs(2), "nobody has read yet, and write returned");
        assert!(!output.flush(Duration::from_millis(20)), "the pipe is full");
        let mut got = vec![0; sent.len()];
        for piece in got.chunks_mut(9973) {
            reader.read_exact(piece).unwrap();
        }
        assert!(got == sent);
        assert!(output.flush(Duration::from_secs(5)));
    }

    #[test]
    fn those_who_can_wait_are_told_when_to_go_on() {
        let (mut reader, writer) = pipe();
        let output = Output::start("test".into(), writer).unwrap();
        let (sender, told) = std::sync::mpsc::channel();
        output.listen(Some(Arc::new(move || _ = sender.send(()))));
        let mut sent = 0;
        while output.room() > 0 {
            let piece = output.room().min(50_000);
            output.write(&vec![1; piece]);
            sent += piece;
        }
        assert!(sent >= ENOUGH && output.lock().queue.len() <= ENOUGH);
        assert!(told.try_recv().is_err());
        let mut got = vec![0; sent];
        reader.read_exact(&mut got).unwrap();
        told.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(output.room() > 0);
        output.close();
        assert_eq!(output.room(), usize::MAX);
    }

    #[test]
    fn line_wrapping_is_watched() {
        let off = |pieces: &[&str]| {
            let mut wrap = Wrap::default();
            pieces.iter().for_each(|p| wrap.watch(p.as_bytes()));
            wrap.off
        };
        assert!(off(&["x\x1b[?7lx"]));
        assert!(off(&["\x1b\x1b[", "?7", "l", "\x1b[?25h"]));
        assert!(!off(&["\x1b[?7l", "\x1b[?7h"]));
        assert!(!off(&["\x1b[?77l", "[?7l", "\x1b[7l"]));
    }

    #[test]
    fn a_full_queue_waits_for_the_reader() {
        let (mut reader, writer) = pipe();
        let output = Output::start("test".into(), writer).unwrap();
        let filler = output.clone();
        let total = LIMIT + (4 << 20);
        let thread = thread::spawn(move || {
            for _ in 0..total / 65536 {
                filler.write(&[7; 65536]);
            }
            filler.write(b"!");
        });
        let mut count = 0;
        let mut buf = vec![0; 1 << 20];
        while count < total + 1 {
            assert!(output.lock().queue.len() <= LIMIT + 65536);
            count += reader.read(&mut buf).unwrap();
        }
        thread.join().unwrap();
        assert_eq!(count, total + 1);
    }

    #[test]
    fn a_reader_that_left_stops_nobody() {
        let (reader, writer) = pipe();
        drop(reader);
        let output = Output::start("test".into(), writer).unwrap();
        output.write(b"x");
        assert!(output.flush(Duration::from_secs(5)));
        for _ in 0..100 {
            output.write(&[0; 1 << 20]);
        }
        assert!(output.lock().queue.len() <= 1 << 20, "dropped, not kept");
    }
}
