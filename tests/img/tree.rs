//! A tree of images on each other, what each of them must hold, and who reads it: we, QEMU and imago.

use super::{Scratch, model};
use brolga::block::qcow2::{Compression, Repair};
use brolga::block::{Image, OpenOptions, open};
use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate};

/// An image and what it must hold.
#[derive(Debug, Clone)]
pub struct Node {
    /// The file.
    pub name: String,
    /// `raw` or `qcow2`.
    pub format: &'static str,
    /// For qcow2.
    pub version: u32,
    /// For qcow2.
    pub cluster: u64,
    /// For qcow2.
    pub refcount_bits: u32,
    /// The file below.
    pub below: Option<String>,
    /// All bytes.
    pub content: Vec<u8>,
    /// Internal snapshots and what they hold.
    pub snapshots: Vec<(String, Vec<u8>)>,
}

/// All images of a test.
#[derive(Default)]
pub struct Tree {
    /// The parents of a node stand anywhere.
    pub nodes: Vec<Node>,
}

impl Tree {
    /// The node with that name.
    pub fn find(&self, name: &str) -> usize {
        self.nodes.iter().position(|n| n.name == name).expect("a node of that name")
    }

    /// Nothing lies on it, so it may be written.
    pub fn is_leaf(&self, index: usize) -> bool {
        !self.nodes.iter().any(|n| n.below.as_ref() == Some(&self.nodes[index].name))
    }

    /// Images below it.
    pub fn depth(&self, index: usize) -> usize {
        self.nodes[index].below.as_ref().map_or(0, |below| 1 + self.depth(self.find(below)))
    }

    /// Everybody reads the node's content, and nobody finds a fault; not even a leak.
    pub fn agree(&self, dir: &Scratch, index: usize, told: &str) {
        let node = &self.nodes[index];
        let image = open_ours(dir, &node.name, true);
        differs(&read_ours(&image), &node.content, &format!("{told}: we read {}", node.name));
        if let Ok(qcow2) = image.qcow2() {
            let report = qcow2.check(Repair::None).unwrap();
            assert_eq!((report.corruptions, report.leaks), (0, 0), "{told}: {}: {:?}", node.name, report.messages);
            let names: Vec<String> = qcow2.snapshots().into_iter().map(|s| s.name).collect();
            assert!(names.iter().eq(node.snapshots.iter().map(|s| &s.0)), "{told}: {names:?}");
        }
        drop(image);
        if self.imago_reads(index) {
            differs(&read_imago(dir, &node.name), &node.content, &format!("{told}: imago reads {}", node.name));
        }
        if model() {
            std::fs::write(dir.path("content.raw"), &node.content).unwrap();
            let line = format!("compare -f {} -F raw {} content.raw", node.format, node.name);
            let compared = dir.theirs(&line);
            assert!(compared.status == 0 && !compared.out.contains("mismatch"), "{told}: {line}: {compared:?}");
            if node.format == "qcow2" {
                let check = dir.theirs(&format!("check {}", node.name));
                assert_eq!(check.status, 0, "{told}: {check:?}");
            }
        }
    }

    /// imago 0.2.6 finds backing files only beside where the program runs.
    fn imago_reads(&self, index: usize) -> bool {
        let node = &self.nodes[index];
        node.format == "qcow2" && node.below.is_none()
    }
}

/// Opens an image of the tree as a guest would.
pub fn open_ours(dir: &Scratch, name: &str, read_only: bool) -> Image {
    let options = OpenOptions { read_only, lock: true, ..OpenOptions::default() };
    let options = match name.ends_with(".raw") {
        true => OpenOptions { format: Some(brolga::block::Format::Raw), ..options },
        false => options,
    };
    open(&dir.path(name), &options).unwrap_or_else(|e| panic!("{e}"))
}

fn read_ours(image: &Image) -> Vec<u8> {
    let mut content = vec![0; image.backend().len() as usize];
    image.backend().read(0, &mut content).unwrap();
    content
}

fn read_imago(dir: &Scratch, name: &str) -> Vec<u8> {
    let open = imago::qcow2::Qcow2::<imago::file::File>::builder_path(dir.path(name));
    let image = match open.open(PermissiveImplicitOpenGate::default()) {
        Ok(image) => FormatAccess::new(image),
        Err(e) => {
            // These are all things here that it has not.
            let ours = open_ours(dir, name, true);
            let info = ours.qcow2().unwrap().info();
            assert!(info.compression == Compression::Zstd || info.extended_l2 || info.dirty, "imago: {name}: {e}");
            return read_ours(&ours);
        }
    };
    let mut content = vec![0; image.size() as usize];
    image.read(&mut content, 0).unwrap();
    content
}

/// Tells the first difference instead of megabytes.
pub fn differs(found: &[u8], wanted: &[u8], told: &str) {
    let first = found.iter().zip(wanted).position(|(f, w)| f != w);
    let there = first.map(|at| (at, found[at], wanted[at]));
    assert!(first.is_none() && found.len() == wanted.len(), "{told}: {there:?}, {} of {}", found.len(), wanted.len());
}
