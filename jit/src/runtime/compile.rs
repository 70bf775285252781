//! The compile threads: regions in, placed code out. vCPUs never wait for them (except in `sync` mode).

use super::place::{CodeMemory, Placed, Unplaced};
use crate::lift;
use crate::lower::{Compiler, Region};
use crate::vcpu::{EngineConfig, EngineError, VcpuHandle, request};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

/// Regions that may wait for a compiler.
const QUEUE: usize = 256;

/// A region to compile.
pub struct Job {
    /// Number the vCPU knows it by.
    pub id: u64,
    /// What to compile.
    pub region: Region,
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
}

/// The compilers of an engine.
pub struct CompileService {
    jobs: Option<Sender<Job>>,
}

impl CompileService {
    /// Starts the compile threads; none in `sync` mode, where [`CompileService::compile_now`] serves.
    pub fn start(config: &EngineConfig) -> Result<Self, EngineError> {
        let host = |e: String| EngineError::Host(e);
        if config.sync {
            return Ok(Self { jobs: None });
        }
        let (jobs, queue) = bounded(QUEUE);
        // One vCPU keeps one core busy; the compilers get what is left.
        let cores = std::thread::available_parallelism().map_or(2, |n| n.get());
        for n in 0..(cores - 1).clamp(1, 4) {
            let compiler = Compiler::new().map_err(|e| host(e.to_string()))?;
            let queue = queue.clone();
            std::thread::Builder::new()
                .name(format!("compile-{n}"))
                .spawn(move || work(compiler, &queue))
                .map_err(|e| host(e.to_string()))?;
        }
        Ok(Self { jobs: Some(jobs) })
    }

    /// Hands a job over; `false` if the queue is full.
    pub fn submit(&self, job: Job) -> bool {
        self.jobs.as_ref().is_some_and(|j| j.try_send(job).is_ok())
    }
}

/// A channel for results.
pub fn replies() -> (Sender<Done>, Receiver<Done>) {
    unbounded()
}

fn work(mut compiler: Compiler, queue: &Receiver<Job>) {
    for job in queue {
        let placed = compile_one(&mut compiler, &job.region, &job.memory);
        if job.reply.send(Done { id: job.id, placed }).is_ok() {
            job.handle.raise(request::ENGINE);
        }
    }
}

/// Generated code at host address `at`, of guest code at `rip`, as `-d out_asm` shows it.
pub fn log_text(code: &[u8], at: u64, rip: u64) -> String {
    let lines = lift::disassemble_host(code, at);
    format!("OUT: [size={}]\n  -- guest addr {rip:#018x}\n{lines}\n", code.len())
}

/// Compiles and places one region.
pub fn compile_one(compiler: &mut Compiler, region: &Region, memory: &CodeMemory) -> Result<Placed, Unplaced> {
    match compiler.compile(region) {
        Ok(compiled) => {
            let rip = region.blocks[0].rip;
            let placed = memory.lock().place(&compiled);
            let at = placed.as_ref().map_or(0, |p| p.entry);
            tracing::trace!(target: "out_asm", pc = rip, "{}", log_text(&compiled.code, at, rip));
            placed
        }
        Err(e) => {
            tracing::warn!("region at {:#x} keeps the code it has: {e}", region.blocks[0].rip);
            Err(Unplaced::Refused)
        }
    }
}
