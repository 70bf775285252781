//! How fast a drive's requests are by threads, by io_uring, and as they are if nothing is said.
//!
//! `cargo bench --bench queue [-- DIRECTORY]`: seconds, the least of five rounds, for a file that the host's cache
//! has; with the name of a directory on a real disk also past that cache.

use brolga::block::queue::{Operation, Queue, Request, RequestMemory};
use brolga::block::{Aio, BlockBackend, CacheMode, HostFile, Raw};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

const DISK: u64 = 512 << 20;
const WAYS: [(&str, Aio); 3] = [("threads", Aio::Threads), ("io_uring", Aio::Uring), ("default", Aio::Best)];
const PAGE: usize = 4096;

/// Bytes at the beginning of a page.
struct Pages(Vec<u8>, usize);

impl Pages {
    fn new(len: usize) -> Pages {
        let bytes = vec![5; len + PAGE];
        let start = bytes.as_ptr().align_offset(PAGE);
        Pages(bytes, start)
    }
}

impl RequestMemory for Pages {
    fn parts(&self) -> Vec<IoSlice<'_>> {
        vec![IoSlice::new(&self.0[self.1..self.1 + self.0.len() - PAGE])]
    }
    fn parts_mut(&mut self) -> Vec<IoSliceMut<'_>> {
        let len = self.0.len() - PAGE;
        vec![IoSliceMut::new(&mut self.0[self.1..self.1 + len])]
    }
}

/// Seconds for `count` requests of `size` bytes, `depth` at a time.
fn measure(disk: &Arc<Raw>, aio: Aio, write: bool, size: u64, count: u64, depth: u64) -> f64 {
    // As many threads as a machine's drive has.
    let queue = Queue::new(disk.clone(), 4, aio).expect("a queue");
    let mut free: Vec<Box<dyn RequestMemory>> =
        (0..depth).map(|_| Box::new(Pages::new(size as usize)) as Box<dyn RequestMemory>).collect();
    let (mut next, mut ended, begun) = (0, 0, Instant::now());
    while ended < count {
        let mut requests = Vec::new();
        while next < count
            && let Some(memory) = free.pop()
        {
            let operation = if write { Operation::Write { memory, fua: false } } else { Operation::Read(memory) };
            // Every place once before one comes again, in no order that the host reads ahead.
            requests.push(Request { tag: next, offset: next * 1021 % (DISK / size) * size, operation });
            next += 1;
        }
        queue.submit_all(requests);
        poll(&mut [PollFd::new(queue.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE).expect("a bell");
        for completed in queue.completed() {
            completed.result.expect("a good disk");
            ended += 1;
            if let Operation::Read(memory) | Operation::Write { memory, .. } = completed.request.operation {
                free.push(memory);
            }
        }
    }
    begun.elapsed().as_secs_f64()
}

fn main() {
    let told = std::env::args().skip(1).find(|word| !word.starts_with('-'));
    let directory = told.map_or_else(std::env::temp_dir, PathBuf::from);
    let path = directory.join(format!("brolga-bench-{}.raw", std::process::id()));
    let bytes = vec![1; 1 << 20];
    let file = HostFile::create(&path).expect("a file");
    let disk = Raw::new(Arc::new(file), false);
    disk.resize(DISK, brolga::block::Preallocation::Off).expect("room");
    (0..DISK >> 20).for_each(|i| disk.write(i << 20, &bytes).expect("room"));
    disk.flush().expect("room");
    println!("{:32}{:>10}{:>10}{:>10}", "", WAYS[0].0, WAYS[1].0, WAYS[2].0);
    for cache in ["writeback", "none"] {
        let mode = CacheMode::from_name(cache).expect("a mode");
        let Ok(file) = HostFile::open_with(&path, true, mode) else {
            println!("cache={cache}: not here");
            continue;
        };
        let disk = Arc::new(Raw::new(Arc::new(file), false));
        for (write, size, count) in [false, true].into_iter().flat_map(|w| {
            let divisor = if cache == "none" { 8 } else { 1 };
            [(4 << 10, 40_000), (16 << 10, 20_000), (64 << 10, 8_000), (1 << 20, 600)].map(|(s, c)| (w, s, c / divisor))
        }) {
            for depth in [1, 16] {
                let mut least = [f64::MAX; 3];
                for _ in 0..5 {
                    for (least, (_, aio)) in least.iter_mut().zip(WAYS) {
                        *least = least.min(measure(&disk, aio, write, size, count, depth));
                    }
                }
                let kind = if write { "writes" } else { "reads" };
                let name = format!("{cache}: {kind} of {}k, {depth} at a time", size >> 10);
                println!("{name:32}{:10.3}{:10.3}{:10.3}", least[0], least[1], least[2]);
            }
        }
    }
    std::fs::remove_file(&path).expect("our file");
}
