//! Who holds a port of the host, for those who wanted it.

use std::fs;
use std::path::Path;

/// The process that listens on a port, as /proc tells (proc_net_tcp(5)): its sockets' inodes are listed by port, and
/// each process's descriptors name their inodes.
pub fn holder(udp: bool, port: u16) -> Option<(u32, String)> {
    let tables = if udp { ["/proc/net/udp", "/proc/net/udp6"] } else { ["/proc/net/tcp", "/proc/net/tcp6"] };
    holder_of(&inodes(&tables, |line| listening(line, udp, port)))
}

/// The process that listens at a path.
fn holder_at(path: &Path) -> Option<(u32, String)> {
    holder_of(&inodes(&["/proc/net/unix"], |line| bound(line, path)))
}

/// The sockets of those lines in which `inode` finds one.
fn inodes(tables: &[&str], inode: impl Fn(&str) -> Option<&str>) -> Vec<String> {
    let tables = tables.iter().filter_map(|table| fs::read_to_string(table).ok());
    let sockets = |table: String| {
        table.lines().skip(1).filter_map(|line| inode(line).map(|i| format!("socket:[{i}]"))).collect::<Vec<_>>()
    };
    tables.flat_map(sockets).collect()
}

fn holder_of(sockets: &[String]) -> Option<(u32, String)> {
    let pids = fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let mut holders = pids.filter(|pid| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut targets = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
        targets.any(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str()))
    });
    let pid = holders.next()?;
    let command = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some((pid, command.trim_end().to_owned()))
}

/// The same as part of a sentence about a port that is taken; empty if nobody is found.
pub fn by_whom(udp: bool, port: u16) -> String {
    holder(udp, port).map_or_else(String::new, |(pid, command)| format!(" by process {pid} ({command})"))
}

/// The same about a path.
pub fn by_whom_at(path: &Path) -> String {
    holder_at(path).map_or_else(String::new, |(pid, command)| format!(" by process {pid} ({command})"))
}

/// The inode in a line of the table of Unix sockets, if it is one that is bound to `path`.
fn bound<'a>(line: &'a str, path: &Path) -> Option<&'a str> {
    let mut fields = line.split_whitespace().skip(6);
    let inode = fields.next()?;
    let (_, name) = line.split_once(&format!(" {inode} "))?;
    (Path::new(name) == path).then_some(inode)
}

/// The inode in a line of the table, if it is a socket that holds `port`.
fn listening(line: &str, udp: bool, port: u16) -> Option<&str> {
    const LISTEN: &str = "0A";
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (_, hex) = fields.get(1)?.rsplit_once(':')?;
    let here = u16::from_str_radix(hex, 16).ok()? == port && (udp || *fields.get(3)? == LISTEN);
    fields.get(9).copied().filter(|_| here)
}
