//! Who holds a port of the host, for those who wanted it.

use std::fs;

/// The process that listens on a port, as /proc tells (proc_net_tcp(5)): its sockets' inodes are listed by port, and
/// each process's descriptors name their inodes.
pub fn holder(udp: bool, port: u16) -> Option<(u32, String)> {
    let tables = if udp { ["/proc/net/udp", "/proc/net/udp6"] } else { ["/proc/net/tcp", "/proc/net/tcp6"] };
    let inodes: Vec<String> = tables
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| {
            let inodes = table.lines().skip(1).filter_map(|line| listening(line, udp, port));
            inodes.map(|inode| format!("socket:[{inode}]")).collect::<Vec<_>>()
        })
        .collect();
    let pids = fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let mut holders = pids.filter(|pid| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut targets = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
        targets.any(|target| inodes.iter().any(|inode| target.as_os_str() == inode.as_str()))
    });
    let pid = holders.next()?;
    let command = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some((pid, command.trim_end().to_owned()))
}

/// The same as part of a sentence about a port that is taken; empty if nobody is found.
pub fn by_whom(udp: bool, port: u16) -> String {
    holder(udp, port).map_or_else(String::new, |(pid, command)| format!(" by process {pid} ({command})"))
}

/// The inode in a line of the table, if it is a socket that holds `port`.
fn listening(line: &str, udp: bool, port: u16) -> Option<&str> {
    const LISTEN: &str = "0A";
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (_, hex) = fields.get(1)?.rsplit_once(':')?;
    let here = u16::from_str_radix(hex, 16).ok()? == port && (udp || *fields.get(3)? == LISTEN);
    fields.get(9).copied().filter(|_| here)
}
