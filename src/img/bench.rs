//! `bench`: how long many equal requests take.

use super::Command;
use super::arguments::{Arguments, FORCE_SHARE, FORMAT, IMAGE_OPTS, OBJECT, Opt, QUIET};
use super::buffer::Buffer;
use super::images::{self, Named};
use crate::block::queue::{Operation, Queue, Request, RequestMemory};
use crate::block::{Aio, BlockBackend};
use crate::words::values;
use anyhow::{Result, anyhow, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{IoSlice, IoSliceMut, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Instant;

pub(super) const COMMAND: Command = Command {
    name: "bench",
    summary: "Measures how fast requests to an image are",
    operands: "FILENAME",
    options: &[
        QUIET,
        FORMAT,
        IMAGE_OPTS,
        Opt::value(Some('t'), "cache", images::CACHES, "how the image is cached (writeback)"),
        Opt::value(Some('c'), "count", "COUNT", "number of requests (75000)"),
        Opt::value(Some('d'), "depth", "DEPTH", "requests at a time, each on a thread (64)"),
        Opt::value(Some('o'), "offset", "OFFSET", "where the first one goes (0)"),
        Opt::value(Some('s'), "buffer-size", "SIZE", "bytes of each (4k)"),
        Opt::value(Some('S'), "step-size", "SIZE", "bytes from one to the next (the buffer's)"),
        Opt::value(Some('i'), "aio", "threads|native|io_uring", "how requests reach the host (threads)"),
        Opt::switch(Some('n'), "native", "-i native"),
        Opt::switch(Some('w'), "write", "write instead of reading"),
        Opt::value(None, "pattern", "BYTE", "what is written (0)"),
        Opt::value(None, "flush-interval", "COUNT", "flush after that many requests"),
        Opt::switch(None, "no-drain", "do not wait for requests under way before a flush"),
        FORCE_SHARE,
        OBJECT,
    ],
    error_status: 1,
    run,
};

/// Bytes of all buffers together.
const MOST_MEMORY: u64 = 2 << 30;

/// What is measured.
struct Plan {
    write: bool,
    count: u64,
    depth: u64,
    offset: u64,
    size: u64,
    step: u64,
    pattern: u8,
    flush_interval: u64,
    drain: bool,
    aio: Aio,
}

impl Plan {
    fn read(arguments: &Arguments) -> Result<Plan> {
        let size = |v: &str| values::size(v, 1);
        let at_most = |high| move |v: &str| values::number_in(v, 1, high);
        let buffer = arguments.parsed("buffer-size", size)?.unwrap_or(4096);
        if !(1..=1 << 30).contains(&buffer) {
            bail!("-s: {buffer} is out of range: 1 to 1G");
        }
        let pattern = arguments.parsed("pattern", |v| values::number_in(v, 0, 255))?;
        let flush = arguments.parsed("flush-interval", at_most(u64::from(u32::MAX)))?;
        let plan = Plan {
            write: arguments.has("write"),
            count: arguments.parsed("count", at_most(i32::MAX as u64))?.unwrap_or(75000),
            depth: arguments.parsed("depth", at_most(1024))?.unwrap_or(64),
            offset: arguments.parsed("offset", size)?.unwrap_or(0),
            size: buffer,
            step: arguments.parsed("step-size", size)?.unwrap_or(0),
            pattern: pattern.unwrap_or(0) as u8,
            flush_interval: flush.unwrap_or(0),
            drain: !arguments.has("no-drain"),
            aio: read_aio(arguments)?,
        };
        if let Some(option) = arguments.among(&["pattern", "flush-interval"]).next().filter(|_| !plan.write) {
            bail!("--{option}: only for writes; add -w");
        }
        if flush.is_some_and(|f| f < plan.depth) {
            bail!("--flush-interval: not below the depth, {}; make it larger or set -d", plan.depth);
        }
        if plan.size * plan.depth > MOST_MEMORY {
            bail!(
                "-s: {} buffers of {} bytes are more than 2G of memory; make -d or -s smaller",
                plan.depth,
                plan.size
            );
        }
        if !plan.drain && flush.is_none() {
            bail!("--no-drain: nothing is flushed; add --flush-interval");
        }
        Ok(Plan { step: if plan.step == 0 { plan.size } else { plan.step }, ..plan })
    }

    /// Where request `index` goes on a disk of `len` bytes: around again where the last one begins, so that
    /// aligned requests stay aligned.
    fn place(&self, index: u64, len: u64) -> u64 {
        let room = (len - self.size).max(1);
        ((u128::from(self.offset) + u128::from(index) * u128::from(self.step)) % u128::from(room)) as u64
    }
}

/// `-i`, and `-n`, which only counts where `-i` says nothing else than it does.
fn read_aio(arguments: &Arguments) -> Result<Aio> {
    let told = arguments.parsed("aio", |name| Aio::from_name(name).map_err(|e| e.to_string()))?;
    let native = arguments.has("native");
    let aio = match told {
        Some(Aio::Uring) => Aio::Uring,
        _ if native => Aio::Native,
        told => told.unwrap_or(Aio::Threads),
    };
    let cache = arguments.parsed("cache", images::cache)?;
    if aio == Aio::Native && !cache.is_some_and(|cache| cache.direct) {
        bail!("{}: needs -t none or -t directsync", if native { "-n" } else { "-i native" });
    }
    Ok(aio)
}

fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<u8> {
    let plan = Plan::read(arguments)?;
    let [name] = arguments.exactly(["FILENAME"])?;
    let cache = arguments.parsed("cache", images::cache)?;
    let opened = Named::from(arguments, name, "format")?.cached(cache).open(!plan.write)?;
    let len = opened.disk.len();
    if plan.size > len || plan.offset > len - plan.size {
        bail!(
            "-o: {} bytes at {} lie beyond the end of the disk at {len}; make the image larger",
            plan.size,
            plan.offset
        );
    }
    if !arguments.has("quiet") {
        let (kind, Plan { count, size, depth, offset, step, .. }) = (if plan.write { "write" } else { "read" }, &plan);
        writeln!(
            out,
            "Sending {count} {kind} requests, {size} bytes each, {depth} in parallel (starting at offset {offset}, step \
             size {step})"
        )?;
        if plan.flush_interval > 0 {
            writeln!(out, "Sending flush every {} requests", plan.flush_interval)?;
        }
        out.flush()?;
    }
    let start = Instant::now();
    match plan.aio {
        Aio::Threads => measure(&plan, &*opened.disk)?,
        _ => Queued::new(&plan, opened.disk.clone())?.measure()?,
    }
    if !arguments.has("quiet") {
        writeln!(out, "Run completed in {:.3} seconds.", start.elapsed().as_secs_f64())?;
    }
    Ok(0)
}

/// All requests, on as many threads as run at a time.
fn measure(plan: &Plan, disk: &dyn BlockBackend) -> Result<()> {
    let next = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    let error = Mutex::new(None);
    // Requests hold it to read, a flush that waits for them holds it to write.
    let under_way = RwLock::new(());
    let work = || -> crate::block::Result<()> {
        let mut buffer = Buffer::default();
        let buffer = buffer.get(plan.size as usize);
        buffer.fill(plan.pattern);
        while !failed.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= plan.count {
                break;
            }
            let at = plan.place(index, disk.len());
            {
                let _guard = under_way.read().unwrap_or_else(|e| e.into_inner());
                match plan.write {
                    true => disk.write(at, buffer)?,
                    false => disk.read(at, buffer)?,
                }
            }
            if plan.flush_interval > 0 && (index + 1).is_multiple_of(plan.flush_interval) {
                let _guard = plan.drain.then(|| under_way.write().unwrap_or_else(|e| e.into_inner()));
                disk.flush()?;
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        for _ in 0..plan.depth.min(plan.count) {
            scope.spawn(|| {
                if let Err(e) = work() {
                    failed.store(true, Ordering::Relaxed);
                    error.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(e);
                }
            });
        }
    });
    match error.into_inner().unwrap_or_else(|e| e.into_inner()) {
        Some(e) => Err(anyhow!(e)),
        None => Ok(()),
    }
}

/// Requests as a machine's devices submit them.
struct Queued<'a> {
    plan: &'a Plan,
    queue: Queue,
    len: u64,
    /// Buffers that no request has.
    free: Vec<Box<dyn RequestMemory>>,
    /// Requests submitted so far.
    next: u64,
    /// Requests under way, flushes included.
    under_way: u64,
}

/// A buffer of a request.
struct Memory(Buffer, usize);

impl RequestMemory for Memory {
    fn parts(&self) -> Vec<IoSlice<'_>> {
        vec![IoSlice::new(self.0.bytes())]
    }

    fn parts_mut(&mut self) -> Vec<IoSliceMut<'_>> {
        vec![IoSliceMut::new(self.0.get(self.1))]
    }
}

impl<'a> Queued<'a> {
    fn new(plan: &'a Plan, disk: Arc<dyn BlockBackend>) -> Result<Queued<'a>> {
        /// What the kernel does not take waits for so many threads.
        const THREADS: usize = 16;
        let len = disk.len();
        let queue = Queue::new(disk, THREADS.min(plan.depth as usize), plan.aio)?;
        let memory = |_| {
            let mut buffer = Buffer::default();
            buffer.get(plan.size as usize).fill(plan.pattern);
            Box::new(Memory(buffer, plan.size as usize)) as Box<dyn RequestMemory>
        };
        let free = (0..plan.depth.min(plan.count)).map(memory).collect();
        Ok(Queued { plan, queue, len, free, next: 0, under_way: 0 })
    }

    fn measure(mut self) -> Result<()> {
        while self.next < self.plan.count {
            let until = self.plan.count.min(self.next + self.free.len() as u64);
            let stop =
                self.next.checked_div(self.plan.flush_interval).map(|done| (done + 1) * self.plan.flush_interval);
            self.submit(stop.map_or(until, |stop| until.min(stop)));
            if stop == Some(self.next) {
                if self.plan.drain {
                    self.collect_until(0)?;
                }
                self.queue.submit(Request { tag: 0, offset: 0, operation: Operation::Flush });
                self.under_way += 1;
                if self.plan.drain {
                    self.collect_until(0)?;
                }
            }
            while self.free.is_empty() {
                self.collect()?;
            }
        }
        self.collect_until(0)
    }

    fn submit(&mut self, until: u64) {
        let mut requests = Vec::new();
        while self.next < until
            && let Some(memory) = self.free.pop()
        {
            let offset = self.plan.place(self.next, self.len);
            let operation = match self.plan.write {
                true => Operation::Write { memory, fua: false },
                false => Operation::Read(memory),
            };
            requests.push(Request { tag: self.next, offset, operation });
            self.next += 1;
        }
        self.under_way += requests.len() as u64;
        self.queue.submit_all(requests);
    }

    fn collect_until(&mut self, left: u64) -> Result<()> {
        while self.under_way > left {
            self.collect()?;
        }
        Ok(())
    }

    /// Waits for something to end.
    fn collect(&mut self) -> Result<()> {
        let mut fds = [PollFd::new(self.queue.as_fd(), PollFlags::POLLIN)];
        if let Err(e) = poll(&mut fds, PollTimeout::NONE)
            && e != Errno::EINTR
        {
            return Err(e.into());
        }
        for completed in self.queue.completed() {
            completed.result?;
            self.under_way -= 1;
            if let Operation::Read(memory) | Operation::Write { memory, .. } = completed.request.operation {
                self.free.push(memory);
            }
        }
        Ok(())
    }
}
