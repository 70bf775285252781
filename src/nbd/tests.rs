//! The server and its protocol, with clients that are right and wrong.

use super::session::{self, Export, Shelf};
use super::*;
use brolga::block::drive::Drive;
use brolga::block::drive::DriveOptions;
use brolga::block::{Format, Preallocation, create_raw};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// A folder that goes with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("brolga-nbd-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left behind is in the temporary folder.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn export(folder: &Folder, name: &str, writable: bool) -> Export {
    let path = folder.0.join(name);
    create_raw(&path, 1 << 20, Preallocation::Off).unwrap();
    let options = DriveOptions { format: Some(Format::Raw), ..DriveOptions::default() };
    let disk = Drive::open(&path, &options).unwrap().backend();
    Export { id: name.into(), node: name.into(), name: name.into(), description: Some("it".into()), disk, writable }
}

struct Fixed(Vec<Export>);

impl Shelf for Fixed {
    fn exports(&self) -> Vec<Export> {
        self.0.clone()
    }
    fn chosen(&self, name: &str) -> bool {
        self.0.iter().any(|export| export.name == name)
    }
}

/// A client.
struct Talk(UnixStream);

impl Talk {
    fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut this = Self(stream);
        assert_eq!(this.take(18), b"NBDMAGICIHAVEOPT\x00\x03");
        this.0.write_all(&[0, 0, 0, 3]).unwrap();
        this
    }

    fn take(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn option(&mut self, option: u32, data: &[u8]) {
        let len = data.len() as u32;
        self.0.write_all(&[b"IHAVEOPT", &option.to_be_bytes()[..], &len.to_be_bytes(), data].concat()).unwrap();
    }

    /// The kind of an answer to an option, and what it says.
    fn answer(&mut self) -> (u32, Vec<u8>) {
        let head = self.take(20);
        assert_eq!(head[..8], 0x0003_e889_0455_65a9_u64.to_be_bytes());
        let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
        (word(12), self.take(word(16) as usize))
    }

    fn go(&mut self, name: &str) -> u32 {
        let len = (name.len() as u32).to_be_bytes();
        self.option(7, &[&len[..], name.as_bytes(), &[0, 1, 0, 3]].concat());
        loop {
            match self.answer() {
                (3, _) => {}
                (kind, _) => return kind,
            }
        }
    }

    /// The error of a request's reply.
    fn ask(&mut self, flags: u16, command: u16, offset: u64, len: u32, data: &[u8]) -> u32 {
        let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
        bytes.extend([flags, command].iter().flat_map(|n| n.to_be_bytes()));
        bytes.extend(b"a cookie");
        bytes.extend(offset.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes.extend(data);
        self.0.write_all(&bytes).unwrap();
        let reply = self.take(16);
        assert_eq!((&reply[..4], &reply[8..]), (&0x6744_6698_u32.to_be_bytes()[..], &b"a cookie"[..]));
        u32::from_be_bytes(reply[4..8].try_into().unwrap())
    }
}

#[test]
fn a_client_reads_and_writes() {
    let folder = Folder::new("session");
    let shelf = Fixed(vec![export(&folder, "a", true), export(&folder, "b", false)]);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || session::serve(theirs, &shelf));
    let mut client = Talk::new(ours);
    client.option(3, &[]);
    assert_eq!(client.answer(), (2, b"\0\0\0\x01ait".to_vec()));
    assert_eq!(client.answer(), (2, b"\0\0\0\x01bit".to_vec()));
    assert_eq!(client.answer(), (1, Vec::new()));
    client.option(8, &[]);
    assert_eq!(client.answer().0, 1 << 31 | 1, "no structured replies");
    client.option(7, &[0, 0, 0, 9, b'a']);
    assert_eq!(client.answer().0, 1 << 31 | 3);
    assert_eq!(client.go("zz"), 1 << 31 | 6);
    assert_eq!(client.go("a"), 1);
    assert_eq!(client.ask(1, 1, 1000, 5, b"hello"), 0);
    assert_eq!(client.ask(0, 0, 999, 7, &[]), 0);
    assert_eq!(client.take(7), b"\0hello\0");
    assert_eq!(client.ask(0, 6, 1000, 2, &[]), 0);
    assert_eq!(client.ask(0, 4, 0, 512, &[]), 0);
    assert_eq!(client.ask(0, 3, 0, 0, &[]), 0);
    assert_eq!(client.ask(0, 0, 1000, 5, &[]), 0);
    assert_eq!(client.take(5), b"\0\0llo");
    assert_eq!(client.ask(0, 0, (1 << 20) - 1, 2, &[]), 22, "beyond the end");
    assert_eq!(client.ask(0, 0, u64::MAX, 2, &[]), 22);
    assert_eq!(client.ask(0, 1, 1 << 20, 1, &[1]), 28);
    assert_eq!(client.ask(0, 77, 0, 1, &[]), 22);
    // Too long to be taken.
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend([0; 20]);
    bytes.extend(u32::MAX.to_be_bytes());
    client.0.write_all(&bytes).unwrap();
    assert!(server.join().unwrap().is_err());
}

#[test]
fn what_is_for_reading_is_not_written() {
    let folder = Folder::new("reading");
    let shelf = Fixed(vec![export(&folder, "b", false)]);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || session::serve(theirs, &shelf));
    let mut client = Talk::new(ours);
    client.option(1, b"b");
    let told = client.take(10);
    assert_eq!((&told[..8], told[9] & 2), (&(1_u64 << 20).to_be_bytes()[..], 2));
    assert_eq!(client.ask(0, 1, 0, 1, &[1]), 1);
    assert_eq!(client.ask(0, 6, 0, 1, &[]), 1);
    drop(client);
    assert!(server.join().unwrap().is_err(), "it vanished");
}

#[test]
fn servers_let_clients_down_when_told_to() {
    let folder = Folder::new("server");
    let path = folder.0.join("socket");
    let server = Server::start(&SocketAddress::Unix(path.clone())).unwrap();
    let disk = export(&folder, "a", true);
    assert!(server.add(disk.clone()));
    assert!(!server.add(disk), "the name is taken");
    let mut client = Talk::new(UnixStream::connect(&path).unwrap());
    assert_eq!(client.go("a"), 1);
    assert_eq!(server.remove("a", false), Some(false));
    assert_eq!(server.remove("zz", true), None);
    assert_eq!(server.remove("a", true), Some(true));
    assert_eq!(client.0.read(&mut [0]).unwrap(), 0, "the connection has ended");
    let why = Server::start(&SocketAddress::Unix(path.clone())).err().unwrap();
    assert!(why.contains("in use by process"), "{why}");
    let mut other = Talk::new(UnixStream::connect(&path).unwrap());
    drop(server);
    assert_eq!(other.0.read(&mut [0]).unwrap(), 0);
    assert!(!path.exists());
}

#[test]
fn garbage_ends_the_connection_and_nothing_else() {
    let folder = Folder::new("garbage");
    let shelf = Arc::new(Fixed(vec![export(&folder, "a", true)]));
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for round in 0..300 {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let theirs_shelf = shelf.clone();
        let server = thread::spawn(move || session::serve(theirs, &*theirs_shelf));
        let mut bytes = vec![0, 0, 0, 3];
        if round % 3 != 0 {
            bytes.extend(b"IHAVEOPT");
            bytes.extend(((random() % 12) as u32).to_be_bytes());
            bytes.extend(((random() % 40) as u32).to_be_bytes());
        }
        if round % 3 == 2 {
            bytes.truncate(4);
            bytes.extend(b"IHAVEOPT\0\0\0\x01\0\0\0\x01a");
            for _ in 0..8 {
                bytes.extend(0x2560_9513_u32.to_be_bytes());
                bytes.extend([0, random() as u8 & 3, 0, random() as u8 & 7]);
                bytes.extend(random().to_be_bytes());
                bytes.extend((random() >> (random() % 64)).to_be_bytes());
                bytes.extend(((random() % 5000) as u32).to_be_bytes());
            }
        }
        bytes.extend((0..random() % 3000).map(|at| (at as u8).wrapping_mul(37)));
        // It may have closed its end already.
        let _ = ours.write_all(&bytes);
        ours.shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        // An end that is cut off is an end.
        let _ = ours.read_to_end(&mut rest);
        assert!(rest.starts_with(b"NBDMAGIC"));
        drop(server.join().unwrap());
    }
}
