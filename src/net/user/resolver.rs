//! Which name server the host asks.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::SystemTime;

/// Port of name servers.
pub const PORT: u16 = 53;
/// How long what was read counts, in guest time.
const FRESH_NS: u64 = 5_000_000_000;

/// Where queries of the guest's go.
pub enum Resolver {
    /// To the name server of a file like `/etc/resolv.conf`, which may change.
    File {
        /// The file.
        path: PathBuf,
        /// When it was looked at, and what it was then.
        read: Option<(u64, Option<SystemTime>)>,
        /// What it said.
        server: Option<SocketAddr>,
    },
    /// To this one.
    #[cfg(test)]
    Fixed(SocketAddr),
}

impl Resolver {
    /// The host's.
    pub fn of_host() -> Self {
        Self::File { path: "/etc/resolv.conf".into(), read: None, server: None }
    }

    /// The server to ask now; `None` if the host has none.
    pub fn server(&mut self, now_ns: u64) -> Option<SocketAddr> {
        match self {
            Self::File { path, read, server } => {
                let fresh = read.is_some_and(|(at, _)| now_ns.saturating_sub(at) < FRESH_NS);
                if !fresh {
                    let changed = fs::metadata(&path).and_then(|m| m.modified()).ok();
                    if read.is_none_or(|(_, before)| before != changed) {
                        *server = fs::read_to_string(&path).ok().and_then(|text| first_server(&text));
                    }
                    *read = Some((now_ns, changed));
                }
                *server
            }
            #[cfg(test)]
            Self::Fixed(server) => Some(*server),
        }
    }
}

/// The first name server in a text like resolv.conf(5).
fn first_server(text: &str) -> Option<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()).flatten()
    });
    let mut addresses = servers.filter_map(|word| word.parse::<IpAddr>().ok());
    addresses.next().map(|address| SocketAddr::new(address, PORT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_server_that_can_be_read_counts() {
        let text = "# nameserver 9.9.9.9\nsearch x\nnameserver fe80::1%eth0\n nameserver\t10.0.0.1\nnameserver ::1\n";
        assert_eq!(first_server(text), Some("10.0.0.1:53".parse().unwrap()));
        assert_eq!(first_server("nothing"), None);
    }
}
