//! What guest memory is made of: a file without a name, or what `-object memory-backend-...` says.

use crate::cli::config::Config;
use anyhow::{Result, anyhow};
use brolga_jit::mmu::ram::{Ram, RamRegion};
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::File;

/// Memory of `size` bytes, of which the guest's RAM comes first, mapped as `regions` say.
pub fn open(config: &Config, size: u64, regions: Vec<RamRegion>) -> Result<Ram> {
    let Some((id, backend)) = &config.memory else {
        return Ram::new(size, regions).map_err(|e| anyhow!("-m: {e}; give the guest less memory"));
    };
    let failed = |why: &dyn std::fmt::Display| anyhow!("-object {},id={id}: {why}", backend.kind);
    let ram = match &backend.path {
        None => Ram::new(size, regions),
        Some(path) => {
            let open = File::options().read(true).write(true).create(true).truncate(false).open(path);
            let shown = path.display();
            let file = open.map_err(|e| {
                failed(&format!("mem-path={shown}: {}; name a file that can be written", crate::cli::os_reason(&e)))
            })?;
            let length = file.metadata().map_or(0, |data| data.len());
            // Guest RAM is its beginning; what comes behind it is ours too.
            if length != 0 && length < config.ram {
                return Err(failed(&format!("mem-path={shown}: it has {length} bytes, and size= is {}", config.ram)));
            }
            Ram::in_file(file, size, regions)
        }
    };
    let ram = ram.map_err(|e| failed(&e))?;
    if backend.prealloc {
        let taken = fallocate(ram.file(), FallocateFlags::empty(), 0, i64::try_from(config.ram).unwrap_or(i64::MAX));
        taken.map_err(|e| failed(&format!("prealloc=on: {}; give the guest less memory", e.desc())))?;
    }
    Ok(ram)
}
