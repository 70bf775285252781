//! Where generated code lies and what it was made from, as perf(1) reads it from `/tmp/perf-PID.map`: lines of a start and
//! a length in hexadecimal digits, and a name.

use std::fmt;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

/// Who made a piece of code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Maker {
    /// One pass over a block.
    Baseline,
    /// Cranelift, from a region of blocks.
    Cranelift,
}

/// The list, written as code is placed. Code that was dropped stays in it: what is placed there later comes later.
#[derive(Clone)]
pub struct PerfMap(Arc<Mutex<Box<dyn Write + Send>>>);

impl PerfMap {
    /// A list that is written to `out`, a line at a time.
    pub fn new(out: impl Write + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Box::new(out))))
    }

    /// Code of `len` bytes at `start` stands for the guest code at `rip`.
    pub(crate) fn tell(&self, maker: Maker, start: u64, len: usize, rip: u64) {
        let maker = match maker {
            Maker::Baseline => "baseline",
            Maker::Cranelift => "region",
        };
        let line = format!("{start:x} {len:x} guest-{rip:#x}-{maker}\n");
        let mut out = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(e) = out.write_all(line.as_bytes()) {
            tracing::warn!("the perf map is incomplete: {e}");
        }
    }
}

impl fmt::Debug for PerfMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PerfMap")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no panic").write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_what_perf_reads() {
        let out = Shared::default();
        let map = PerfMap::new(out.clone());
        map.tell(Maker::Baseline, 0x7f00_0000_1000, 0x40, 0xffff_ffff_8100_0000);
        map.tell(Maker::Cranelift, 0x7f00_0000_2000, 300, 0x40_1000);
        let text = String::from_utf8(out.0.lock().expect("no panic").clone()).expect("text");
        assert_eq!(text, "7f0000001000 40 guest-0xffffffff81000000-baseline\n7f0000002000 12c guest-0x401000-region\n");
    }
}
