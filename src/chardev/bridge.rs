//! Peers whose bytes do not come as a stream: datagrams, and messages of a web socket. A thread carries them to and from a
//! socket pair, whose other end is a peer like any other.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};
use tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tungstenite::http::HeaderValue;
use tungstenite::{Error, HandshakeError, Message, WebSocket, protocol::WebSocketConfig};

/// Bytes that wait for a reader before no more are taken from the writer.
const AHEAD: usize = 64 << 10;
/// Most bytes in one datagram or message to the peer.
const PIECE: usize = 1400;
/// How long a client may take to say what it wants.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Longest message of a web client.
const LONGEST: usize = 16 << 20;

/// A bridge, as long as there is one.
struct Live {
    /// Its end of the socket pair.
    near: UnixStream,
    /// Bytes were taken from there that have not gone out.
    busy: AtomicBool,
}

/// All bridges, for [`settle`].
static LIVE: Mutex<Vec<Weak<Live>>> = Mutex::new(Vec::new());

/// Waits until what was written has gone out, for up to `patience`.
pub fn settle(patience: Duration) {
    let live: Vec<_> = LIVE.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect();
    let since = Instant::now();
    // In this order: what is not there any more was taken by a bridge that is busy then.
    let has_more = |bridge: &Arc<Live>| {
        rustix::io::ioctl_fionread(&bridge.near).is_ok_and(|n| n != 0) || bridge.busy.load(Ordering::SeqCst)
    };
    while live.iter().any(has_more) && since.elapsed() < patience {
        thread::sleep(Duration::from_millis(1));
    }
}

/// The far side.
trait Far: Send {
    /// What to wait on.
    fn fd(&self) -> BorrowedFd<'_>;
    /// Adds what has come to `data`; `false`: the peer is gone.
    fn receive(&mut self, data: &mut Vec<u8>) -> io::Result<bool>;
    /// Sends one piece; `false`: not now.
    fn send(&mut self, piece: &[u8]) -> io::Result<bool>;
    /// Something that was sent is still on its way.
    fn flush(&mut self) -> io::Result<bool>;
    /// Nothing more is sent.
    fn close(&mut self);
}

/// Datagrams from and to one address.
pub fn datagrams(socket: UdpSocket) -> io::Result<OwnedFd> {
    socket.set_nonblocking(true)?;
    start(Datagrams(socket))
}

/// A web client that has connected; it has its say within some seconds, on a thread of its own.
pub fn web_client(stream: TcpStream) -> io::Result<OwnedFd> {
    let (near, far) = UnixStream::pair()?;
    thread::Builder::new().name("websocket".into()).spawn(move || match handshake(stream) {
        Ok(client) => carry(Client { socket: client, flushing: false }, far),
        // `far` closes: the peer is gone.
        Err(e) => tracing::debug!("a web client is refused: {e}"),
    })?;
    Ok(near.into())
}

fn start(peer: impl Far + 'static) -> io::Result<OwnedFd> {
    let (near, far) = UnixStream::pair()?;
    thread::Builder::new().name("bridge".into()).spawn(move || carry(peer, far))?;
    Ok(near.into())
}

struct Datagrams(UdpSocket);

/// Errors of a datagram that was sent earlier, and of waiting.
fn is_passing(e: &io::Error) -> bool {
    let kinds = [ErrorKind::WouldBlock, ErrorKind::Interrupted, ErrorKind::ConnectionRefused];
    kinds.contains(&e.kind()) || matches!(e.raw_os_error(), Some(n) if n == Errno::EHOSTUNREACH as i32)
}

impl Far for Datagrams {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn receive(&mut self, data: &mut Vec<u8>) -> io::Result<bool> {
        let mut buf = [0; 65536];
        match self.0.recv(&mut buf) {
            Ok(n) => data.extend_from_slice(&buf[..n]),
            // Nobody listens at the other end yet: datagrams are lost, not more.
            Err(e) if is_passing(&e) => {}
            Err(e) => return Err(e),
        }
        Ok(true)
    }

    fn send(&mut self, piece: &[u8]) -> io::Result<bool> {
        match self.0.send(piece) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(e) if !is_passing(&e) => Err(e),
            _ => Ok(true),
        }
    }

    fn flush(&mut self) -> io::Result<bool> {
        Ok(false)
    }

    fn close(&mut self) {}
}

// The form is tungstenite's.
#[allow(clippy::result_large_err)]
/// QEMU's clients ask for this subprotocol; noVNC and others too.
fn agree(request: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
    let offered = request.headers().get("Sec-WebSocket-Protocol").and_then(|value| value.to_str().ok());
    if offered.is_some_and(|list| list.split(',').any(|name| name.trim() == "binary")) {
        response.headers_mut().append("Sec-WebSocket-Protocol", HeaderValue::from_static("binary"));
    }
    Ok(response)
}

fn handshake(stream: TcpStream) -> io::Result<WebSocket<TcpStream>> {
    stream.set_nonblocking(true)?;
    let config = WebSocketConfig::default().max_message_size(Some(LONGEST)).max_frame_size(Some(LONGEST));
    let since = Instant::now();
    let mut state = tungstenite::accept_hdr_with_config(stream, agree, Some(config));
    loop {
        match state {
            Ok(client) => return Ok(client),
            Err(HandshakeError::Failure(e)) => return Err(io::Error::other(e)),
            Err(HandshakeError::Interrupted(half)) => {
                let left = HANDSHAKE.checked_sub(since.elapsed()).ok_or(ErrorKind::TimedOut)?;
                let wait = PollTimeout::try_from(left.as_millis().min(1000)).unwrap_or(PollTimeout::ZERO);
                poll(&mut [PollFd::new(half.get_ref().get_ref().as_fd(), PollFlags::POLLIN)], wait)?;
                state = half.handshake();
            }
        }
    }
}

struct Client {
    socket: WebSocket<TcpStream>,
    flushing: bool,
}

/// An error of the socket that only means "later" is `None`.
fn later(error: Error) -> io::Result<()> {
    match error {
        Error::Io(e) if e.kind() == ErrorKind::WouldBlock => Ok(()),
        Error::Io(e) => Err(e),
        other => Err(io::Error::other(other)),
    }
}

impl Far for Client {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }

    fn receive(&mut self, data: &mut Vec<u8>) -> io::Result<bool> {
        while data.len() < AHEAD {
            match self.socket.read() {
                Ok(message @ (Message::Binary(_) | Message::Text(_))) => data.extend_from_slice(&message.into_data()),
                // Pings are answered and closing is settled with the next write or flush.
                Ok(_) => self.flushing = true,
                Err(Error::ConnectionClosed | Error::AlreadyClosed) => return Ok(false),
                Err(e) => return later(e).map(|()| true),
            }
        }
        Ok(true)
    }

    fn send(&mut self, piece: &[u8]) -> io::Result<bool> {
        if self.flush()? {
            return Ok(false);
        }
        match self.socket.write(Message::binary(piece.to_vec())) {
            Ok(()) => self.flushing = true,
            // It is kept there.
            Err(e) => {
                later(e)?;
                self.flushing = true;
            }
        }
        self.flush().map(|_| true)
    }

    fn flush(&mut self) -> io::Result<bool> {
        if self.flushing {
            match self.socket.flush() {
                Ok(()) | Err(Error::ConnectionClosed | Error::AlreadyClosed) => self.flushing = false,
                Err(e) => later(e)?,
            }
        }
        Ok(self.flushing)
    }

    fn close(&mut self) {
        // The client may be gone.
        let _ = self.socket.close(None);
        let _ = self.socket.flush();
    }
}

/// Carries bytes both ways until one side is gone.
fn carry(mut far: impl Far, near: UnixStream) {
    let live = Arc::new(Live { near, busy: AtomicBool::new(false) });
    {
        let mut all = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|bridge| bridge.strong_count() != 0);
        all.push(Arc::downgrade(&live));
    }
    if let Err(e) = live.near.set_nonblocking(true).and_then(|()| run(&mut far, &live)) {
        tracing::debug!("a connection ends: {e}");
    }
    live.busy.store(false, Ordering::SeqCst);
    far.close();
    // `settle` may hold the rest, and the other side is to see the end.
    let _ = live.near.shutdown(Shutdown::Both);
}

fn run(far: &mut impl Far, live: &Live) -> io::Result<()> {
    let mut near = &live.near;
    let (mut inward, mut outward) = (Vec::new(), Vec::new());
    let mut flushing = false;
    loop {
        wait(far, near, &inward, &outward, flushing)?;
        if inward.len() < AHEAD && !far.receive(&mut inward)? {
            // What has come is still for the guest.
            near.set_nonblocking(false)?;
            return near.write_all(&inward);
        }
        if !inward.is_empty() {
            match near.write(&inward) {
                Ok(n) => drop(inward.drain(..n)),
                Err(e) if is_passing(&e) => {}
                Err(e) => return Err(e),
            }
        }
        if outward.len() < AHEAD {
            let mut buf = [0; 16 << 10];
            live.busy.store(true, Ordering::SeqCst);
            match near.read(&mut buf) {
                Ok(0) => return Ok(()),
                Ok(n) => outward.extend_from_slice(&buf[..n]),
                Err(e) if is_passing(&e) => {}
                Err(e) => return Err(e),
            }
        }
        while !outward.is_empty() {
            let n = outward.len().min(PIECE);
            if !far.send(&outward[..n])? {
                break;
            }
            outward.drain(..n);
        }
        flushing = far.flush()?;
        live.busy.store(flushing || !outward.is_empty(), Ordering::SeqCst);
    }
}

/// Waits until there is something to do.
fn wait(far: &impl Far, near: &UnixStream, inward: &[u8], outward: &[u8], flushing: bool) -> io::Result<()> {
    let when = |on: bool, flag: PollFlags| if on { flag } else { PollFlags::empty() };
    let far_events =
        when(inward.len() < AHEAD, PollFlags::POLLIN) | when(flushing || !outward.is_empty(), PollFlags::POLLOUT);
    let near_events = when(outward.len() < AHEAD, PollFlags::POLLIN) | when(!inward.is_empty(), PollFlags::POLLOUT);
    let mut fds = [PollFd::new(far.fd(), far_events), PollFd::new(near.as_fd(), near_events)];
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn read_exactly(mut from: impl Read, n: usize) -> Vec<u8> {
        let mut buf = vec![0; n];
        from.read_exact(&mut buf).unwrap();
        buf
    }

    #[test]
    fn datagrams_become_bytes_and_bytes_datagrams() {
        let there = UdpSocket::bind("127.0.0.1:0").unwrap();
        there.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let here = UdpSocket::bind("127.0.0.1:0").unwrap();
        here.connect(there.local_addr().unwrap()).unwrap();
        there.connect(here.local_addr().unwrap()).unwrap();
        let mut stream = UnixStream::from(datagrams(here).unwrap());
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        there.send(b"hello").unwrap();
        // An empty one is not the end.
        there.send(b"").unwrap();
        there.send(b", guest").unwrap();
        assert_eq!(read_exactly(&stream, 12), b"hello, guest");
        stream.write_all(b"yes?").unwrap();
        let mut buf = [0; 100];
        let n = there.recv(&mut buf).unwrap();
        assert_eq!(&buf[..n], b"yes?");
        // Nobody there: what is sent is lost, and later datagrams arrive.
        let address = there.local_addr().unwrap();
        drop(there);
        stream.write_all(b"lost").unwrap();
        let there = UdpSocket::bind(address).unwrap();
        there.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let since = Instant::now();
        loop {
            stream.write_all(b"again").unwrap();
            if there.recv(&mut buf).is_ok_and(|n| buf[..n].ends_with(b"again")) {
                break;
            }
            assert!(since.elapsed() < Duration::from_secs(60));
        }
    }

    #[test]
    fn web_clients_are_peers() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client = thread::spawn(move || {
            let stream = TcpStream::connect(address).unwrap();
            let (mut socket, _) = tungstenite::client(format!("ws://{address}/"), stream).unwrap();
            socket.send(Message::text("login")).unwrap();
            socket.send(Message::Ping(Vec::new().into())).unwrap();
            socket.send(Message::binary(vec![7; 100_000])).unwrap();
            let mut got = Vec::new();
            while got.len() < 50_000 {
                match socket.read().unwrap() {
                    message @ Message::Binary(_) => got.extend_from_slice(&message.into_data()),
                    other => assert!(other.is_pong(), "{other:?}"),
                }
            }
            socket.close(None).unwrap();
            while socket.read().is_ok() {}
            got
        });
        let mut stream = UnixStream::from(web_client(listener.accept().unwrap().0).unwrap());
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        assert_eq!(read_exactly(&stream, 5), b"login");
        assert_eq!(read_exactly(&stream, 100_000), vec![7; 100_000]);
        stream.write_all(&vec![9; 50_000]).unwrap();
        assert_eq!(client.join().unwrap(), vec![9; 50_000]);
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the client closed");
    }

    #[test]
    fn who_does_not_speak_http_is_gone() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.write_all(b"GARBAGE\r\n\r\n\xff\xff\xff\r\n").unwrap();
        let mut stream = UnixStream::from(web_client(listener.accept().unwrap().0).unwrap());
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
}
