//! The compile threads: regions in, placed code out. vCPUs never wait for them (except in `sync` mode). What has been
//! compiled before, for another processor perhaps, is placed before anything is compiled.

use super::compiled::{Answer, Asked, Content, Heads, Outcome, Store, StoreStats};
use super::place::{CodeMemory, CodePage, Placed, Ready, Unplaced};
use crate::lift;
use crate::lower::{Compiler, Region};
use crate::vcpu::{EngineConfig, EngineError, VcpuHandle, request};
use crossbeam_channel::{Receiver, Sender, bounded, select_biased, unbounded};
use std::sync::Arc;
use std::time::Instant;

/// Regions that may wait for a compiler.
const QUEUE: usize = 256;
/// The part of the code memory of a processor that the store of compiled regions may take.
const STORE_PART: usize = 8;

/// A region to compile.
pub struct Job {
    /// Number the vCPU knows it by.
    pub id: u64,
    /// What to compile.
    pub region: Region,
    /// Where its pages are.
    pub pages: Box<[CodePage]>,
    /// For whom, if other processors may have the same; else it is compiled in any case, and nobody told.
    pub asked: Option<Asked>,
    /// Where the result goes.
    pub reply: Sender<Done>,
    /// Where the code goes.
    pub memory: CodeMemory,
    /// Whom to wake.
    pub handle: VcpuHandle,
}

/// A finished job.
pub struct Done {
    /// Number of the job.
    pub id: u64,
    /// The code, or why there is none.
    pub placed: Result<Placed, Unplaced>,
    /// It was compiled for another processor.
    pub reused: bool,
}

impl Job {
    /// Places what was compiled and tells the processor.
    fn answer(self, outcome: &Outcome, reused: bool) {
        let placed = match outcome {
            Ok(ready) => place(ready, &self.region, &self.pages, &self.memory),
            Err(why) => Err(why.clone()),
        };
        self.reply(placed, reused);
    }

    fn reply(self, placed: Result<Placed, Unplaced>, reused: bool) {
        if self.reply.send(Done { id: self.id, placed, reused }).is_ok() {
            self.handle.raise(request::ENGINE);
        }
    }
}

/// The compilers of an engine.
pub struct CompileService {
    jobs: Option<Sender<Job>>,
    store: Arc<Store<Job>>,
}

impl CompileService {
    /// Starts the compile threads; none in `sync` mode, where [`CompileService::compile_now`] serves.
    pub fn start(config: &EngineConfig) -> Result<Self, EngineError> {
        let host = |e: String| EngineError::Host(e);
        let store = Arc::new(Store::new(config.code_cache / STORE_PART));
        if config.sync {
            return Ok(Self { jobs: None, store });
        }
        let (jobs, queue) = bounded(QUEUE);
        let (todo, left) = unbounded();
        // One vCPU keeps one core busy; the compilers get what is left.
        let cores = std::thread::available_parallelism().map_or(2, |n| n.get());
        for n in 0..(cores - 1).clamp(1, 4) {
            let compiler = Compiler::new().map_err(|e| host(e.to_string()))?;
            let worker = Worker { compiler, store: store.clone(), todo: todo.clone() };
            let (queue, left) = (queue.clone(), left.clone());
            std::thread::Builder::new()
                .name(format!("compile-{n}"))
                .spawn(move || worker.work(&queue, &left))
                .map_err(|e| host(e.to_string()))?;
        }
        Ok(Self { jobs: Some(jobs), store })
    }

    /// Hands a job over; `false` if the queue is full.
    pub fn submit(&self, job: Job) -> bool {
        self.jobs.as_ref().is_some_and(|j| j.try_send(job).is_ok())
    }

    /// Where compiled regions start.
    pub fn heads(&self) -> &Heads {
        &self.store.heads
    }

    /// Counters of what is kept for other processors.
    pub fn statistics(&self) -> StoreStats {
        self.store.statistics()
    }
}

/// A channel for results.
pub fn replies() -> (Sender<Done>, Receiver<Done>) {
    unbounded()
}

/// A job that nothing compiled answers, and what waits in the store for its end.
type ToDo = (Job, Option<Content>);

/// A compile thread.
struct Worker {
    compiler: Compiler,
    store: Arc<Store<Job>>,
    todo: Sender<ToDo>,
}

impl Worker {
    /// Serves until nobody can send jobs any more.
    fn work(mut self, queue: &Receiver<Job>, left: &Receiver<ToDo>) {
        loop {
            // What is known already comes first; the rest is any thread's to compile.
            select_biased! {
                recv(queue) -> job => match job {
                    Ok(job) => self.look(job),
                    Err(_) => return,
                },
                recv(left) -> todo => match todo {
                    Ok(todo) => self.compile(todo),
                    Err(_) => return,
                },
            }
        }
    }

    /// Answers a job if nothing need be compiled for it.
    fn look(&self, job: Job) {
        let Some(asked) = job.asked else { return self.put_off((job, None)) };
        match self.store.ask(Content::of(&job.region, &job.pages), &asked, job) {
            Answer::Known(job, outcome) => job.answer(&outcome, true),
            Answer::Waits => {}
            Answer::Larger(job, shape) => job.reply(Err(Unplaced::Larger(shape)), false),
            Answer::Unknown(job) => job.reply(Err(Unplaced::Unknown), false),
            Answer::Compile(job, content) => self.put_off((job, Some(content))),
        }
    }

    fn put_off(&self, todo: ToDo) {
        // This thread has the other end.
        let _ = self.todo.send(todo);
    }

    fn compile(&mut self, (job, content): ToDo) {
        let began = Instant::now();
        let outcome = compile(&mut self.compiler, &job.region);
        let others = content.map(|content| self.store.finish(&content, &outcome, began.elapsed()));
        job.answer(&outcome, false);
        others.into_iter().flatten().for_each(|other| other.answer(&outcome, true));
    }
}

/// Generated code at host address `at`, of guest code at `rip`, as `-d out_asm` shows it.
pub fn log_text(code: &[u8], at: u64, rip: u64) -> String {
    let lines = lift::disassemble_host(code, at);
    format!("OUT: [size={}]\n  -- guest addr {rip:#018x}\n{lines}\n", code.len())
}

/// Compiles a region.
fn compile(compiler: &mut Compiler, region: &Region) -> Outcome {
    match compiler.compile(region) {
        Ok(compiled) => Ready::new(compiled).map(Arc::new),
        Err(e) => {
            tracing::warn!("region at {:#x} keeps the code it has: {e}", region.blocks[0].rip);
            Err(Unplaced::Refused)
        }
    }
}

/// Places what `region` was compiled to.
fn place(ready: &Ready, region: &Region, pages: &[CodePage], memory: &CodeMemory) -> Result<Placed, Unplaced> {
    let rip = region.blocks[0].rip;
    let placed = memory.lock().place(ready, pages);
    let at = placed.as_ref().map_or(0, |p| p.entry);
    tracing::trace!(target: "out_asm", pc = rip, "{}", log_text(ready.code(), at, rip));
    placed
}

/// Compiles and places one region.
pub fn compile_one(
    compiler: &mut Compiler,
    region: &Region,
    pages: &[CodePage],
    memory: &CodeMemory,
) -> Result<Placed, Unplaced> {
    place(&*compile(compiler, region)?, region, pages, memory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::compiled::tests::{head, region};
    use std::time::Duration;

    #[test]
    fn processors_with_the_same_code_have_it_compiled_once() {
        let service = CompileService::start(&EngineConfig::default()).expect("compile threads");
        let memories = [(); 3].map(|()| CodeMemory::new(1 << 20).expect("memory for code"));
        let (replies, handle) = (replies(), VcpuHandle { requests: Default::default() });
        let asked = Asked { head: head(1), or_larger: true, if_known: false };
        let submit = |id, region, asked| {
            let (reply, memory) = (replies.0.clone(), memories[id as usize % 3].clone());
            assert!(service.submit(Job {
                id,
                region,
                pages: [CodePage::NOWHERE].into(),
                asked,
                reply,
                memory,
                handle: handle.clone()
            }));
        };
        let next = || replies.1.recv_timeout(Duration::from_secs(120)).expect("an answer");
        for id in 0..30 {
            submit(id, region(0x1000, 5), Some(asked));
        }
        let done: Vec<Done> = (0..30).map(|_| next()).collect();
        assert_eq!(done.iter().filter(|d| !d.reused).count(), 1);
        for Done { id, placed, .. } in done {
            let entry = placed.expect("code").entry;
            assert!(memories[id as usize % 3].lock().addresses().contains(&entry), "in its own memory");
        }
        assert_ne!(handle.pending() & request::ENGINE, 0);
        let counts = || (service.statistics().compiled, service.statistics().reused);
        assert_eq!(counts(), (1, 29));
        submit(30, region(0x1000, 6), Some(Asked { if_known: true, ..asked }));
        assert_eq!(next().placed.err(), Some(Unplaced::Unknown));
        submit(31, region(0x1000, 5), None);
        let done = next();
        assert!(done.placed.is_ok() && !done.reused);
        assert_eq!(counts(), (1, 29), "nobody is told");
    }
}
