//! Random programs on a tree of images: each step done by us or by QEMU's tools, and read by both and by imago.
//!
//! `BROLGA_STEPS=3000` in the environment asks for that many steps, `BROLGA_SEED` for other ones.

use super::random::{Random, rounds, seed};
use super::tree::{Node, Tree, differs, open_ours};
use super::{Outcome, Scratch, model};
use brolga::block::Content;
use std::process::Command;

/// Images at a time.
const MOST: usize = 7;

struct Run {
    dir: Scratch,
    tree: Tree,
    random: Random,
    /// Names and snapshots never come twice.
    number: u64,
    /// Whether QEMU's tools take part.
    theirs: bool,
}

impl Run {
    fn fresh(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    /// One of the two programs does it, and must be able to.
    fn either(&mut self, line: &str) -> Outcome {
        let ours = !self.theirs || self.random.below(2) == 0;
        let outcome = if ours { self.dir.ours(line) } else { self.dir.theirs(line) };
        assert_eq!(outcome.status, 0, "{}: {line}: {outcome:?}", if ours { "ours" } else { "theirs" });
        outcome
    }

    fn options(&mut self, node: &mut Node) -> String {
        node.cluster = self.random.pick(&[512, 1024, 4096, 65536, 65536, 1 << 20, 2 << 20]);
        node.version = self.random.pick(&[2, 3, 3, 3]);
        let mut text = format!("cluster_size={}", node.cluster);
        if node.version == 2 {
            node.refcount_bits = 16;
            return text + ",compat=0.10";
        }
        node.refcount_bits = self.random.pick(&[1, 2, 4, 8, 16, 32, 64]);
        text += &format!(",compat=1.1,refcount_bits={}", node.refcount_bits);
        text += &format!(",compression_type={}", self.random.pick(&["zlib", "zlib", "zstd"]));
        if node.cluster >= 16384 && self.random.below(3) == 0 {
            text += ",extended_l2=on";
        }
        text + self.random.pick(&["", "", ",lazy_refcounts=on"])
    }

    fn size(&mut self) -> u64 {
        512 * (1 + self.random.below(4096))
    }

    /// A new image on nothing or on another one.
    fn create(&mut self, below: Option<usize>) -> String {
        let number = self.fresh();
        let raw = below.is_none() && self.random.below(3) == 0;
        let (format, name) =
            if raw { ("raw", format!("i{number}.raw")) } else { ("qcow2", format!("i{number}.qcow2")) };
        let mut node = Node {
            name: name.clone(),
            format,
            version: 0,
            cluster: 512,
            refcount_bits: 16,
            below: None,
            content: Vec::new(),
            snapshots: Vec::new(),
        };
        let mut line = format!("create -q -f {format}");
        if !raw {
            line += &format!(" -o {}", self.options(&mut node));
        }
        let mut size = self.size();
        if let Some(below) = below {
            let base = &self.tree.nodes[below];
            line += &format!(" -b {} -F {}", base.name, base.format);
            node.below = Some(base.name.clone());
            node.content = base.content.clone();
            if self.random.below(2) == 0 {
                size = base.content.len() as u64;
            }
        }
        node.content.resize(size as usize, 0);
        self.either(&format!("{line} {name} {size}"));
        self.tree.nodes.push(node);
        name
    }

    /// A place on a disk: offset and length.
    fn place(&mut self, size: usize, align: u64) -> (usize, usize) {
        let size = size as u64;
        let most = if self.random.below(6) == 0 { size } else { 150_000 };
        let offset = self.random.below(size) / align * align;
        let len = (1 + self.random.below(most)).next_multiple_of(align).min(size - offset);
        (offset as usize, len as usize)
    }

    /// Requests of a guest of ours.
    fn we_write(&mut self, index: usize) {
        let (name, cluster) = (self.tree.nodes[index].name.clone(), self.tree.nodes[index].cluster as usize);
        let image = open_ours(&self.dir, &name, false);
        let disk = image.backend();
        for _ in 0..1 + self.random.below(8) {
            let size = self.tree.nodes[index].content.len();
            let (offset, len) = self.place(size, 1);
            let (part, at) = (offset..offset + len, offset as u64);
            let content = &mut self.tree.nodes[index].content;
            match self.random.below(9) {
                0..5 => {
                    content[part.clone()].fill(self.random.below(256) as u8);
                    disk.write(at, &content[part]).unwrap();
                }
                5 => {
                    disk.write_zeroes(at, len as u64, self.random.below(2) == 0).unwrap();
                    content[part].fill(0);
                }
                6 => {
                    disk.discard(at, len as u64).unwrap();
                    let mut now = vec![0; len];
                    disk.read(at, &mut now).unwrap();
                    adopt(&mut content[part], &now);
                }
                7 if image.qcow2().is_ok() => {
                    let start = offset / cluster * cluster;
                    let end = (start + cluster).min(content.len());
                    content[start..end].iter_mut().enumerate().for_each(|(i, b)| *b = (i / 90) as u8);
                    image.qcow2().unwrap().write_compressed(start as u64, &content[start..end]).unwrap();
                }
                _ => disk.flush().unwrap(),
            }
        }
    }

    /// A compressed write of QEMU, which does that where the image stores nothing yet.
    fn they_compress(&mut self, index: usize, command: &mut Command) {
        let Node { name, cluster, content, .. } = self.tree.nodes[index].clone();
        let start = self.random.below(content.len() as u64) / cluster * cluster;
        let len = cluster.min(content.len() as u64 - start);
        let image = open_ours(&self.dir, &name, true);
        let extent = image.backend().map(start, len).unwrap();
        // With subclusters a host cluster may be there where nothing is stored.
        let extended = image.qcow2().is_ok_and(|q| q.info().extended_l2);
        if !extended && (extent.depth > 0 || extent.content == Content::Hole) {
            let value = self.random.below(256);
            command.args(["-c", &format!("write -q -c -P {value} {start} {len}")]);
            self.tree.nodes[index].content[start as usize..(start + len) as usize].fill(value as u8);
        }
    }

    /// Requests of QEMU.
    fn they_write(&mut self, index: usize) {
        let node = self.tree.nodes[index].clone();
        let mut command = Command::new("qemu-io");
        command.args(["-d", "unmap", "-f", node.format]).current_dir(&self.dir.0);
        if node.format == "qcow2" {
            self.they_compress(index, &mut command);
        }
        let mut discarded = Vec::new();
        for _ in 0..1 + self.random.below(8) {
            let (offset, len) = self.place(node.content.len(), 512);
            let content = &mut self.tree.nodes[index].content;
            let value = self.random.below(256) as u8;
            let line = match self.random.below(9) {
                0..5 => {
                    content[offset..offset + len].fill(value);
                    format!("write -q -P {value} {offset} {len}")
                }
                5 => {
                    content[offset..offset + len].fill(0);
                    format!("write -q -z {} {offset} {len}", self.random.pick(&["", "-u"]))
                }
                6 => {
                    discarded.push((offset, len));
                    continue;
                }
                _ => "flush".to_owned(),
            };
            command.args(["-c", &line]);
        }
        // Last, as what they leave is known by reading only.
        for (offset, len) in &discarded {
            command.args(["-c", &format!("discard -q {offset} {len}")]);
        }
        let out = command.arg(&node.name).output().unwrap();
        assert!(out.status.success(), "{command:?}: {out:?}");
        let image = open_ours(&self.dir, &node.name, true);
        for (offset, len) in discarded {
            let mut now = vec![0; len];
            image.backend().read(offset as u64, &mut now).unwrap();
            adopt(&mut self.tree.nodes[index].content[offset..offset + len], &now);
        }
    }

    fn snapshot(&mut self, index: usize) {
        let node = &self.tree.nodes[index];
        let (name, count) = (node.name.clone(), node.snapshots.len() as u64);
        // Compressed clusters share host clusters: with snapshots on top, narrow counts overflow.
        let action = if count == 0 { 0 } else { self.random.below(3) };
        if action == 0 && count < 3 && node.refcount_bits >= 16 {
            let tag = format!("s{}", self.fresh());
            self.either(&format!("snapshot -c {tag} {name}"));
            let content = self.tree.nodes[index].content.clone();
            self.tree.nodes[index].snapshots.push((tag, content));
        } else if count > 0 {
            let which = self.random.below(count) as usize;
            let (tag, kept) = self.tree.nodes[index].snapshots[which].clone();
            if action == 1 {
                self.either(&format!("snapshot -a {tag} {name}"));
                self.tree.nodes[index].content = kept;
            } else {
                self.either(&format!("snapshot -d {tag} {name}"));
                self.tree.nodes[index].snapshots.remove(which);
            }
        }
    }

    fn resize(&mut self, index: usize) {
        let node = self.tree.nodes[index].clone();
        // QEMU cannot hide what comes up from below in version 2.
        if node.version == 2 && (!node.snapshots.is_empty() || node.below.is_some()) {
            return;
        }
        let mut size = self.size();
        if let Some(below) = &node.below {
            // Cut into what lies below, and QEMU shows it again when the disk grows.
            size += self.tree.nodes[self.tree.find(below)].content.len() as u64;
        }
        // Whole clusters: QEMU lets old data come back when it cuts one and grows again.
        size = size.next_multiple_of(node.cluster);
        self.either(&format!("resize -q -f {} --shrink {} {size}", node.format, node.name));
        self.tree.nodes[index].content.resize(size as usize, 0);
    }

    /// Down into the image below, which nothing else may lie on.
    fn commit(&mut self, index: usize) {
        let node = self.tree.nodes[index].clone();
        let Some(below) = node.below.as_ref().map(|b| self.tree.find(b)) else { return };
        let base = self.tree.nodes[below].clone();
        let alone = self.tree.nodes.iter().filter(|n| n.below.as_ref() == Some(&base.name)).count() == 1;
        let grows = node.content.len() > base.content.len();
        let fixed = base.version == 2 && !base.snapshots.is_empty();
        // Snapshots lie on what is below as well, and would change.
        if !alone || (grows && fixed) || !node.snapshots.is_empty() {
            return;
        }
        let keep = self.random.below(2) == 0;
        self.either(&format!("commit -q {} {}", if keep { "-d" } else { "" }, node.name));
        let content = &mut self.tree.nodes[below].content;
        content.resize(content.len().max(node.content.len()), 0);
        content[..node.content.len()].copy_from_slice(&node.content);
    }

    /// On another image, or on none.
    fn rebase(&mut self, index: usize) {
        let node = self.tree.nodes[index].clone();
        let others = self.tree.nodes.len() as u64;
        let target = self.random.below(others + 1) as usize;
        let (mut line, mut below) = ("rebase -q -b ''".to_owned(), None);
        if let Some(base) = self.tree.nodes.get(target) {
            let circle = base.name == node.name || self.lies_on(target, &node.name);
            if circle || self.tree.depth(target) > 2 {
                return;
            }
            line = format!("rebase -q -b {} -F {}", base.name, base.format);
            line += self.random.pick(&["", "", " -c"]);
            below = Some(base.name.clone());
        }
        if !node.snapshots.is_empty() {
            return;
        }
        let line = format!("{line} {}", node.name);
        match node.version {
            // QEMU 10.0 forgets to store zeroes in images of version 2: what lies below comes up.
            2 => assert_eq!(self.dir.ours(&line).status, 0, "{line}"),
            _ => drop(self.either(&line)),
        }
        self.tree.nodes[index].below = below;
    }

    fn lies_on(&self, index: usize, name: &str) -> bool {
        let below = &self.tree.nodes[index].below;
        below.as_ref().is_some_and(|b| b == name || self.lies_on(self.tree.find(b), name))
    }

    /// Into a new image, alone or on what it lies on.
    fn convert(&mut self, index: usize) {
        let node = self.tree.nodes[index].clone();
        let number = self.fresh();
        let mut new = Node { name: format!("i{number}.qcow2"), format: "qcow2", snapshots: Vec::new(), ..node.clone() };
        let mut line = format!("convert -q -O qcow2 -o {}", self.options(&mut new));
        line += self.random.pick(&["", " -c", " -c -W", " -m 4 -W", " -S 0", " -S 64k"]);
        new.below = None;
        if let Some(below) = node.below.as_ref().filter(|_| self.random.below(2) == 0) {
            let base = &self.tree.nodes[self.tree.find(below)];
            line += &format!(" -B {} -F {}", base.name, base.format);
            new.below = node.below.clone();
        }
        self.either(&format!("{line} -f {} {} {}", node.format, node.name, new.name));
        self.tree.nodes.push(new);
    }

    fn remove(&mut self, index: usize) {
        let node = self.tree.nodes.remove(index);
        std::fs::remove_file(self.dir.path(&node.name)).unwrap();
    }

    /// Does one thing; gives the images to look at.
    fn step(&mut self) -> Vec<String> {
        let count = self.tree.nodes.len() as u64;
        if count == 0 || (count < 3 && self.random.below(2) == 0) {
            return vec![self.create(None)];
        }
        let index = self.random.below(count) as usize;
        let node = self.tree.nodes[index].clone();
        let room = (count as usize) < MOST;
        if self.random.below(8) == 0 && room && self.tree.depth(index) < 3 {
            return vec![self.create(Some(index))];
        }
        if self.random.below(10) == 0 && room {
            self.convert(index);
            return vec![self.tree.nodes.last().unwrap().name.clone()];
        }
        if !self.tree.is_leaf(index) {
            return vec![node.name];
        }
        let changes = [node.name.clone()].into_iter().chain(node.below.clone()).collect();
        match (self.random.below(14), node.format) {
            (0..5, _) => self.we_write(index),
            (5..7, _) if self.theirs => self.they_write(index),
            (7..9, "qcow2") => self.snapshot(index),
            (9, _) => self.resize(index),
            (10, "qcow2") => self.commit(index),
            (11, "qcow2") => self.rebase(index),
            (12, "qcow2") => drop(self.either(&format!("check -q -r all {}", node.name))),
            (13, _) if !room => {
                self.remove(index);
                return Vec::new();
            }
            _ => self.we_write(index),
        }
        changes
    }
}

/// After a discard each byte is as it was or zero.
fn adopt(content: &mut [u8], now: &[u8]) {
    assert!(now.iter().zip(content.iter()).all(|(n, o)| n == o || *n == 0), "discarded bytes changed");
    content.copy_from_slice(now);
}

#[test]
fn random_programs() {
    let (steps, base) = (rounds("BROLGA_STEPS", 250), seed());
    let theirs = model() && Command::new("qemu-io").arg("--version").output().is_ok_and(|o| o.status.success());
    let mut run = Run { dir: Scratch::new(), tree: Tree::default(), random: Random::new(base), number: 0, theirs };
    for step in 0..steps {
        let told = format!("BROLGA_SEED={base}, step {step}");
        let look = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run.step()));
        let look = look.unwrap_or_else(|e| {
            eprintln!("{told}");
            std::panic::resume_unwind(e)
        });
        for name in look {
            run.tree.agree(&run.dir, run.tree.find(&name), &told);
        }
        if step % 50 == 49 {
            (0..run.tree.nodes.len()).for_each(|index| run.tree.agree(&run.dir, index, &told));
            snapshots_hold(&mut run, &told);
        }
    }
    eprintln!("{steps} steps of seed {base}");
}

/// Snapshots hold what they held when they were taken: seen by going to each in a copy.
fn snapshots_hold(run: &mut Run, told: &str) {
    for node in run.tree.nodes.clone() {
        for (tag, content) in &node.snapshots {
            std::fs::copy(run.dir.path(&node.name), run.dir.path("copy.qcow2")).unwrap();
            // QEMU takes the size of now.
            run.dir.good(&format!("convert -l {tag} -O raw {} copy.raw", node.name));
            differs(&run.dir.bytes("copy.raw"), content, &format!("{told}: -l {tag} of {}", node.name));
            run.either(&format!("snapshot -a {tag} copy.qcow2"));
            let image = open_ours(&run.dir, "copy.qcow2", true);
            let mut found = vec![0; image.backend().len() as usize];
            image.backend().read(0, &mut found).unwrap();
            differs(&found, content, &format!("{told}: snapshot {tag} of {}", node.name));
        }
    }
}
