//! Puts images and tables into guest memory, and remembers where, so that nothing overlaps unnoticed.

use super::image::Image;
use anyhow::{Result, bail};
use brolga_jit::mmu::ram::Ram;
use std::ops::Range;

/// Bytes copied at a time.
const CHUNK: u64 = 1 << 20;

/// Something that was put into guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// What it is, in words that fit into an error line.
    pub what: String,
    /// Where it lies.
    pub range: Range<u64>,
}

/// Guest memory being filled before the guest runs.
pub struct Placement<'a> {
    ram: &'a Ram,
    placed: Vec<Placed>,
}

impl<'a> Placement<'a> {
    /// Nothing placed yet in `ram`.
    pub fn new(ram: &'a Ram) -> Self {
        Self { ram, placed: Vec::new() }
    }

    /// Puts `bytes` at `gpa`.
    pub fn put(&mut self, what: &str, gpa: u64, bytes: &[u8]) -> Result<()> {
        self.claim(what, gpa, bytes.len() as u64)?;
        self.store(what, gpa, bytes)
    }

    /// Puts `bytes` at `gpa`, where they may have been put before by the same name: processors share start-up tables.
    pub fn put_shared(&mut self, what: &str, gpa: u64, bytes: &[u8]) -> Result<()> {
        let range = gpa..gpa.saturating_add(bytes.len() as u64);
        if self.placed.iter().any(|p| p.what == what && p.range == range) {
            return self.store(what, gpa, bytes);
        }
        self.put(what, gpa, bytes)
    }

    /// Puts `len` bytes of a file, from `offset` on, at `gpa`, and then zeros up to `total` bytes.
    pub fn put_file(&mut self, image: &Image, offset: u64, len: u64, total: u64, gpa: u64) -> Result<()> {
        let what = image.named();
        self.claim(&what, gpa, total)?;
        let mut buf = vec![0; CHUNK.min(total) as usize];
        let mut done = 0;
        while done < total {
            let end = if done < len { len } else { total };
            let n = CHUNK.min(end - done) as usize;
            match done < len {
                true => image.read_at(offset + done, &mut buf[..n])?,
                false => buf[..n].fill(0),
            }
            self.store(&what, gpa + done, &buf[..n])?;
            done += n as u64;
        }
        Ok(())
    }

    /// What was placed, in the order of placing.
    pub fn into_placed(self) -> Vec<Placed> {
        self.placed
    }

    /// First address after everything placed within `within`; its start if nothing was.
    pub fn end_within(&self, within: &Range<u64>) -> u64 {
        let ends = self.placed.iter().map(|p| p.range.end).filter(|e| within.contains(&(e - 1)));
        ends.max().unwrap_or(within.start)
    }

    /// Where the first thing lies that was placed within `within`; its end if nothing was.
    pub fn start_within(&self, within: &Range<u64>) -> u64 {
        let starts = self.placed.iter().map(|p| p.range.start).filter(|start| within.contains(start));
        starts.min().unwrap_or(within.end)
    }

    /// Takes a range: it must hold nothing yet and lie below the end of addresses.
    fn claim(&mut self, what: &str, gpa: u64, len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let Some(end) = gpa.checked_add(len) else {
            bail!("{what}: {len} bytes at {gpa:#x} reach past the end of memory; give another address");
        };
        if let Some(other) = self.placed.iter().find(|p| p.range.start < end && gpa < p.range.end) {
            bail!(
                "{what}: its place {gpa:#x} to {:#x} overlaps {} at {:#x} to {:#x}; load one of them elsewhere",
                end - 1,
                other.what,
                other.range.start,
                other.range.end - 1
            );
        }
        self.placed.push(Placed { what: what.to_owned(), range: gpa..end });
        Ok(())
    }

    fn store(&self, what: &str, gpa: u64, bytes: &[u8]) -> Result<()> {
        if !self.ram.write(gpa, bytes, true) {
            bail!(
                "{what}: {} bytes at {gpa:#x} are not all in the guest's memory; give more with -m or load it elsewhere",
                bytes.len()
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use brolga_jit::mmu::ram::RamRegion;
    use std::io::Write;

    fn ram(size: u64) -> Ram {
        Ram::new(size, vec![RamRegion { gpa: 0, size, offset: 0, rom: false }]).unwrap()
    }

    #[test]
    fn overlaps_and_places_outside_memory_are_refused_by_name() {
        let ram = ram(0x4000);
        let mut p = Placement::new(&ram);
        p.put("the kernel", 0x1000, &[1; 0x1000]).unwrap();
        p.put("behind it", 0x2000, &[2]).unwrap();
        p.put("nothing at all", 0x1800, &[]).unwrap();
        let error = p.put("the table", 0x1fff, &[3; 4]).unwrap_err().to_string();
        assert!(error.contains("the table") && error.contains("the kernel"), "{error}");
        assert!(p.put("too high", 0x3fff, &[0; 2]).unwrap_err().to_string().contains("-m"));
        assert!(p.put("wraps", u64::MAX, &[0; 2]).is_err());
        assert_eq!(p.end_within(&(0x800..0x2000)), 0x2000);
        assert_eq!(p.end_within(&(0x8000..0x9000)), 0x8000);
        assert_eq!(p.start_within(&(0x800..0x4000)), 0x1000);
        assert_eq!(p.start_within(&(0x2800..0x3000)), 0x3000);
        let mut seen = [0; 3];
        ram.read(0x1ffe, &mut seen);
        assert_eq!(seen, [1, 1, 2]);
    }

    #[test]
    fn files_are_copied_in_pieces_and_followed_by_zeros() {
        let path = std::env::temp_dir().join(format!("brolga-placement-{}", std::process::id()));
        let content: Vec<u8> = (0..CHUNK + 5).map(|i| (i % 251) as u8 + 1).collect();
        std::fs::File::create(&path).unwrap().write_all(&content).unwrap();
        let image = Image::open("-initrd", &path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let ram = ram(4 * CHUNK);
        ram.write(CHUNK, &[0xEE; 64], false);
        ram.write(2 * CHUNK, &[0xEE; 64], false);
        let mut p = Placement::new(&ram);
        p.put_file(&image, 3, CHUNK + 2, CHUNK + 40, 16).unwrap();
        let mut seen = vec![0; CHUNK as usize + 48];
        ram.read(16, &mut seen);
        assert_eq!(seen[..CHUNK as usize + 2], content[3..]);
        assert!(seen[CHUNK as usize + 2..CHUNK as usize + 40].iter().all(|&b| b == 0));
        assert_eq!(seen[CHUNK as usize + 40], 0xEE, "nothing past the end is touched");
        assert!(p.put_file(&image, 10, CHUNK, CHUNK, 2 * CHUNK).is_err(), "the file is shorter");
        assert_eq!(p.into_placed()[0].range, 16..CHUNK + 56);
    }
}
