//! Which code is hot: a thread looks at each running vCPU up to a thousand times a second, and the block that notices gets a
//! sample. Counters in the code would tell the same, but each is a line of the host's cache that every run of a block
//! touches: with hundreds of thousands of blocks that costs a fifth of the time (measured on cc1).

use crate::vcpu::VcpuHandle;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Thread};
use std::time::Duration;

/// Time between two looks while they meet baseline code; twice as long after each that does not, for what runs there is as
/// good as it gets, up to the second.
const PERIOD: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_millis(4);
/// Looks at halted vCPUs after which the thread sleeps until one runs.
const IDLE: u32 = 3;

#[derive(Default)]
struct Watched {
    vcpus: Mutex<Vec<VcpuHandle>>,
    /// The thread sleeps until a vCPU runs.
    parked: AtomicBool,
    over: AtomicBool,
}

/// The thread.
pub struct Sampler {
    watched: Arc<Watched>,
    thread: Thread,
}

impl Sampler {
    /// Starts the thread; it ends when this is dropped.
    pub fn start() -> std::io::Result<Self> {
        let watched = Arc::new(Watched::default());
        let its = watched.clone();
        let handle = thread::Builder::new().name("sampler".into()).spawn(move || its.work())?;
        Ok(Self { watched, thread: handle.thread().clone() })
    }

    /// Looks at one more vCPU from now on.
    pub fn watch(&self, vcpu: VcpuHandle) {
        self.watched.vcpus.lock().unwrap_or_else(PoisonError::into_inner).push(vcpu);
    }

    /// A vCPU starts to run, and has said so in its request words.
    #[inline]
    pub fn runs(&self) {
        if self.watched.parked.load(Ordering::SeqCst) && self.watched.parked.swap(false, Ordering::SeqCst) {
            self.thread.unpark();
        }
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.watched.over.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

impl Watched {
    fn work(&self) {
        let (mut idle, mut period) = (0, PERIOD);
        while !self.over.load(Ordering::SeqCst) {
            period = if self.met_baseline() { PERIOD } else { LONGEST.min(2 * period) };
            idle = if self.look() { 0 } else { idle + 1 };
            if idle < IDLE {
                thread::sleep(period);
                continue;
            }
            self.parked.store(true, Ordering::SeqCst);
            // One that began to run just before did not see that.
            if !self.any_runs() {
                thread::park();
            }
            self.parked.store(false, Ordering::SeqCst);
            (idle, period) = (0, PERIOD);
        }
    }

    /// Asks every running vCPU to note where it is; whether there was one.
    fn look(&self) -> bool {
        let vcpus = self.vcpus.lock().unwrap_or_else(PoisonError::into_inner);
        vcpus.iter().fold(false, |any, vcpu| vcpu.sample() | any)
    }

    /// Whether a vCPU was in baseline code at the last look.
    fn met_baseline(&self) -> bool {
        let vcpus = self.vcpus.lock().unwrap_or_else(PoisonError::into_inner);
        vcpus.iter().fold(false, |any, vcpu| vcpu.requests.sampled.swap(false, Ordering::Relaxed) | any)
    }

    fn any_runs(&self) -> bool {
        let vcpus = self.vcpus.lock().unwrap_or_else(PoisonError::into_inner);
        vcpus.iter().any(VcpuHandle::runs) || self.over.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vcpu::Requests;

    fn eventually(mut done: impl FnMut() -> bool) {
        let start = std::time::Instant::now();
        while !done() {
            assert!(start.elapsed() < Duration::from_secs(60));
            thread::yield_now();
        }
    }

    #[test]
    fn running_vcpus_are_sampled_and_others_let_sleep() {
        let sampler = Sampler::start().expect("a thread");
        let vcpu = VcpuHandle { requests: Arc::new(Requests::default()) };
        sampler.watch(vcpu.clone());
        eventually(|| sampler.watched.parked.load(Ordering::SeqCst));
        assert!(!vcpu.requests.sample.load(Ordering::SeqCst));
        for _ in 0..3 {
            vcpu.requests.running.store(true, Ordering::SeqCst);
            sampler.runs();
            eventually(|| vcpu.requests.sample.swap(false, Ordering::SeqCst));
            vcpu.requests.running.store(false, Ordering::SeqCst);
            eventually(|| sampler.watched.parked.load(Ordering::SeqCst));
        }
        let watched = Arc::downgrade(&sampler.watched);
        drop(sampler);
        eventually(|| watched.strong_count() == 0);
    }
}
