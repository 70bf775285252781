//! Descriptors that the process was started with, by number.

use std::io;
use std::os::fd::OwnedFd;

/// A descriptor of our own for what descriptor `number` of this process refers to. The number stays open: whoever
/// started the process knows it.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
    // The kernel looks the number up, so that one that is not open is an error and not somebody else's.
    let this = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(pidfd_getfd(&this, number, PidfdGetfdFlags::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;

    #[test]
    fn numbers_lead_to_open_descriptors_only() {
        let (mut reader, writer) = io::pipe().unwrap();
        let copy = inherited(writer.as_raw_fd()).unwrap();
        assert_ne!(copy.as_raw_fd(), writer.as_raw_fd());
        drop(writer);
        std::fs::File::from(copy).write_all(b"x").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
        assert!(inherited(1_000_000).is_err());
    }
}
