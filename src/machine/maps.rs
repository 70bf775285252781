//! Memory and port maps as people see them.

use super::Machine;
use brolga_devices::bus::Space;
use std::fmt::Write;

/// A stretch of addresses: first, last, and what is there.
type Stretch = (u64, u64, String);

/// `over` on top of `under`, both ascending: each address once.
fn laid_over(over: Vec<Stretch>, under: Vec<Stretch>, cut: impl Fn(&Stretch, u64) -> String) -> Vec<Stretch> {
    let mut all = Vec::new();
    for stretch in &under {
        let mut at = Some(stretch.0);
        for (first, last, _) in over.iter().filter(|o| o.0 <= stretch.1 && o.1 >= stretch.0) {
            let Some(from) = at else { break };
            if *first > from {
                all.push((from, first - 1, cut(stretch, from)));
            }
            at = last.checked_add(1).filter(|next| *next <= stretch.1);
        }
        if let Some(from) = at {
            all.push((from, stretch.1, cut(stretch, from)));
        }
    }
    all.extend(over);
    all.sort_unstable();
    all
}

/// Where in it something begins, unless that is its beginning.
fn offset(at: u64) -> String {
    if at == 0 { String::new() } else { format!(" @{at:016x}") }
}

impl Machine {
    /// Memory and ports (`info mtree`).
    pub(super) fn map(&self) -> String {
        let mut rows: Vec<_> = self.ram.regions().iter().map(|r| (r.gpa, r.gpa + (r.size - 1), kind(r.rom))).collect();
        let ranges = self.pc.bus.ranges();
        let memory = ranges.iter().filter(|r| r.space == Space::Memory);
        rows.extend(memory.map(|r| (r.base, r.last, r.name.as_str())));
        rows.sort_unstable();
        let mut text =
            String::from("address-space: memory\n  0000000000000000-ffffffffffffffff (prio 0, i/o): system\n");
        for (first, last, name) in rows {
            let kind = if matches!(name, "ram" | "rom") { name } else { "i/o" };
            let _ = writeln!(text, "    {first:016x}-{last:016x} (prio 0, {kind}): {name}");
        }
        text.push_str("\naddress-space: I/O\n  0000000000000000-000000000000ffff (prio 0, i/o): io\n");
        for r in ranges.iter().filter(|r| r.space == Space::Port) {
            let _ = writeln!(text, "    {:016x}-{:016x} (prio 0, i/o): {}", r.base, r.last, r.name);
        }
        text
    }

    /// What lies where, each address once (`info mtree -f`).
    pub(super) fn flat_map(&self) -> String {
        let ranges = self.pc.bus.ranges();
        let of = |space: Space| {
            let there = ranges.iter().filter(move |r| r.space == space);
            let mut all: Vec<Stretch> = there.map(|r| (r.base, r.last, format!("(prio 0, i/o): {}", r.name))).collect();
            all.sort_unstable();
            all
        };
        let regions = self.ram.regions().iter().copied().chain(self.ram.window());
        let mut memory: Vec<Stretch> = regions
            .map(|r| {
                let (name, within) = (self.block_at(r.gpa), offset(r.offset - self.block_start(r.gpa)));
                (r.gpa, r.gpa + (r.size - 1), format!("(prio 0, {}): {name}{within}", kind(r.rom)))
            })
            .collect();
        memory.sort_unstable();
        // Memory comes first where both are: a chip set's shadow is asked only for what memory does not take.
        let memory = laid_over(memory, of(Space::Memory), |stretch, at| stretch.2.clone() + &offset(at - stretch.0));
        let ports = vec![(0, 0xffff, "(prio 0, i/o): io".to_owned())];
        let ports = laid_over(of(Space::Port), ports, |stretch, at| stretch.2.clone() + &offset(at));
        let spaces = self.vcpus.numbered().into_iter().map(|(n, _)| format!("cpu-memory-{n}"));
        let names: Vec<_> = std::iter::once("memory".to_owned()).chain(spaces).collect();
        flat_view(0, &names, "system", &memory) + "\n" + &flat_view(1, &["I/O".to_owned()], "io", &ports) + "\n"
    }

    /// The name of the piece of memory that has `gpa`.
    pub(super) fn block_at(&self, gpa: u64) -> &'static str {
        let Some(region) = self.ram.region_of(gpa) else { return "" };
        match (region.rom, self.ram.window().is_some_and(|window| window.gpa == region.gpa)) {
            (true, _) => "pc.bios",
            (_, true) => "vga.vram",
            _ => "pc.ram",
        }
    }

    /// Where that piece begins in the memory file: RAM above 4 GiB goes on where that below ends.
    fn block_start(&self, gpa: u64) -> u64 {
        let name = self.block_at(gpa);
        let regions = self.ram.regions().iter().copied().chain(self.ram.window());
        regions.filter(|r| self.block_at(r.gpa) == name).map(|r| r.offset).min().unwrap_or(0)
    }

    /// Pieces of memory (`info ramblock`).
    pub(super) fn memory_blocks(&self) -> String {
        let columns = ["PSize", "Offset", "Used", "Total", "HVA", "RO"];
        let [page, at, used, total, host, read_only] = columns;
        let mut text =
            format!("{:>24} {page:>8}  {at:>18} {used:>18} {total:>18} {host:>18} {read_only:>3}\n", "Block Name");
        for name in ["pc.ram", "pc.bios", "vga.vram"] {
            let regions = self.ram.regions().iter().copied().chain(self.ram.window());
            let of: Vec<_> = regions.filter(|r| self.block_at(r.gpa) == name).collect();
            let Some(first) = of.iter().min_by_key(|r| r.offset) else { continue };
            let size: u64 = of.iter().map(|r| r.size).sum();
            let host = self.ram.host_address(first.gpa).unwrap_or(0);
            let access = if first.rom { "ro" } else { "rw" };
            let _ = writeln!(
                text,
                "{name:>24} {:>8}  {:#018x} {size:#018x} {size:#018x} {host:#018x} {access:>3}",
                "4 KiB", first.offset
            );
        }
        text
    }
}

fn flat_view(number: u32, spaces: &[String], root: &str, stretches: &[Stretch]) -> String {
    let mut text = format!("FlatView #{number}\n");
    for name in spaces {
        let _ = writeln!(text, " AS \"{name}\", root: {root}");
    }
    let _ = writeln!(text, " Root memory region: {root}");
    for (first, last, what) in stretches {
        let _ = writeln!(text, "  {first:016x}-{last:016x} {what}");
    }
    text
}

fn kind(rom: bool) -> &'static str {
    if rom { "rom" } else { "ram" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_top_cuts_what_is_below() {
        let of = |first, last, name: &str| (first, last, name.to_owned());
        let cut = |stretch: &Stretch, at: u64| format!("{}{}", stretch.2, if at == stretch.0 { "" } else { "+" });
        let over = vec![of(2, 3, "a"), of(4, 4, "b"), of(9, 12, "c")];
        let flat = laid_over(over, vec![of(0, 9, "ram"), of(20, u64::MAX, "rom")], cut);
        let want = [of(0, 1, "ram"), of(2, 3, "a"), of(4, 4, "b"), of(5, 8, "ram+"), of(9, 12, "c")];
        assert_eq!(flat, [&want[..], &[of(20, u64::MAX, "rom")]].concat());
        let flat = laid_over(vec![of(0, u64::MAX, "all")], vec![of(5, 6, "ram")], cut);
        assert_eq!(flat, [of(0, u64::MAX, "all")]);
    }
}
