//! `-add-fd`: descriptors that the program was started with, as members of sets.

use super::keyval::KeyValues;
use super::options::Arguments;
use super::{os_reason, values};
use crate::net::descriptor::inherited;
use anyhow::{Result, bail};
use brolga::descriptors;
use std::os::fd::OwnedFd;

/// A descriptor for a set.
#[derive(Debug)]
struct Handed {
    descriptor: OwnedFd,
    set: u64,
    about: Option<String>,
}

/// Reads all of `-add-fd`, and puts the descriptors into their sets: the names of images may stand for them.
pub fn settle(arguments: &Arguments) -> Result<()> {
    let all = arguments.all("add-fd").iter().map(|value| parse(value)).collect::<Result<Vec<_>>>()?;
    for handed in all {
        descriptors::put(Some(handed.set), handed.about, handed.descriptor);
    }
    Ok(())
}

fn parse(value: &str) -> Result<Handed> {
    let what = format!("-add-fd {value}");
    let mut keys = KeyValues::parse("-add-fd", value, None)?;
    let number = keys.take_as("fd", |text| values::number_in(text, 0, i32::MAX as u64))?;
    let set = keys.take_as("set", |text| values::number_in(text, 0, i64::MAX as u64))?;
    let about = keys.take("opaque")?;
    keys.finish()?;
    let Some(number) = number else { bail!("{what}: fd= is missing; give the number of an open descriptor") };
    let Some(set) = set else { bail!("{what}: set= is missing; give the number of a set, for /dev/fdset/NUMBER") };
    if number <= 2 {
        bail!("{what}: 0, 1 and 2 are this program's own; hand over another descriptor");
    }
    match inherited(number as i32) {
        Ok(descriptor) => Ok(Handed { descriptor, set, about }),
        Err(e) => bail!("{what}: descriptor {number}: {}; give the number of an open one", os_reason(&e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsRawFd;

    #[test]
    fn open_descriptors_with_a_set() {
        let file = File::open("/dev/null").unwrap();
        let handed = parse(&format!("fd={},set=3,opaque=ro:x", file.as_raw_fd())).unwrap();
        assert_eq!((handed.set, handed.about.as_deref()), (3, Some("ro:x")));
        let refused = |value: &str| parse(value).unwrap_err().to_string();
        assert!(refused("set=3").contains("fd= is missing"));
        assert!(refused(&format!("fd={}", file.as_raw_fd())).contains("set= is missing"));
        assert!(refused("fd=1,set=3").contains("this program's own"));
        assert!(refused("fd=9999,set=3").contains("descriptor 9999"));
        assert!(refused("fd=-1,set=3").contains("-1"));
        assert!(refused("fd=9,set=3,x=1").contains("'x'"));
    }
}
