//! What the virtual processors of an engine share, and how they leave messages for one another.

use crate::counter::Counter;
use crate::cpuid::Topology;
use crate::mmu::code_map::{CodeMap, CodeMarks, granules};
use crate::mmu::ram::{PAGE_SIZE, Ram};
use crate::vcpu::{VcpuHandle, request};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

/// What all vCPUs of an engine share.
pub struct Shared {
    /// Guest memory.
    pub ram: Arc<Ram>,
    /// Which pages hold translated code.
    pub code_map: CodeMap,
    /// How the processors are spread.
    pub topology: Topology,
    /// Held by a locked operation that crosses a page: no other one crosses meanwhile.
    pub page_crossing: Mutex<()>,
    /// Counts instructions, in counted execution.
    pub counter: Option<Arc<Counter>>,
    /// How many processors run guest code, and the host's cores.
    pub crowd: Crowd,
    /// Address lines held at zero.
    masked_lines: AtomicU64,
    /// One per processor; complete once the machine runs. Lock order: a mailbox may be locked under it.
    mailboxes: RwLock<Vec<Arc<Mailbox>>>,
}

/// Who wants the host's cores.
pub struct Crowd {
    running: AtomicU32,
    cores: u32,
}

impl Default for Crowd {
    /// As many cores as this process may use.
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        Self { running: 0.into(), cores: u32::try_from(cores).unwrap_or(u32::MAX) }
    }
}

impl Crowd {
    /// One more processor runs guest code.
    pub fn enter(&self) {
        self.running.fetch_add(1, Ordering::Relaxed);
    }

    /// The processor that entered runs guest code no more.
    pub fn leave(&self) {
        self.running.fetch_sub(1, Ordering::Relaxed);
    }

    /// More processors run than the host has cores: one that only waits keeps another from going on.
    pub fn too_many(&self) -> bool {
        self.running.load(Ordering::Relaxed) > self.cores
    }

    /// There is a core for a thread that would wait actively beside the processors that run.
    pub fn has_room(&self) -> bool {
        self.running.load(Ordering::Relaxed) < self.cores
    }
}

/// What other threads leave for a vCPU besides its request word, and what it shows them.
pub struct Mailbox {
    mail: Mutex<Mail>,
    handle: VcpuHandle,
    /// Which RAM holds code that this processor translated.
    pub marks: CodeMarks,
}

/// Messages for a vCPU.
#[derive(Default)]
pub struct Mail {
    /// Guest memory with its code on it that was written by others: (address, length).
    pub written: Vec<(u64, u64)>,
    /// Pages that another processor has code of now: stores to them need a look.
    pub protect: Vec<u64>,
    /// All translations of addresses are to go.
    pub flush: bool,
}

impl Mailbox {
    /// An empty one for the vCPU behind `handle`.
    fn new(handle: VcpuHandle, ram: &Ram) -> Self {
        Self { mail: Mutex::default(), handle, marks: CodeMarks::new(ram) }
    }

    /// Takes all messages.
    pub fn take(&self) -> Mail {
        std::mem::take(&mut *self.mail.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Leaves a message and calls for the processor.
    fn post(&self, write: impl FnOnce(&mut Mail)) {
        write(&mut self.mail.lock().unwrap_or_else(PoisonError::into_inner));
        self.handle.raise(request::ENGINE);
    }

    /// Code that the processor translated was written.
    pub fn post_written(&self, gpa: u64, len: u64) {
        self.post(|mail| mail.written.push((gpa, len)));
    }
}

impl Shared {
    /// What the processors of a machine with this memory share.
    pub fn new(ram: Arc<Ram>, topology: Topology) -> Self {
        let code_map = CodeMap::new(&ram);
        Self {
            ram,
            code_map,
            topology,
            page_crossing: Mutex::default(),
            counter: None,
            crowd: Crowd::default(),
            masked_lines: 0.into(),
            mailboxes: RwLock::default(),
        }
    }

    /// Enters one more processor.
    pub fn join(&self, handle: VcpuHandle) -> Arc<Mailbox> {
        let mailbox = Arc::new(Mailbox::new(handle, &self.ram));
        self.mailboxes.write().unwrap_or_else(PoisonError::into_inner).push(mailbox.clone());
        mailbox
    }

    /// There is more than one processor.
    pub fn several(&self) -> bool {
        self.mailboxes().len() > 1
    }

    fn mailboxes(&self) -> RwLockReadGuard<'_, Vec<Arc<Mailbox>>> {
        self.mailboxes.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Guest memory was written: the processors that have code of it, all but `writer`, are told.
    pub fn code_written(&self, gpa: u64, len: u64, writer: Option<&Mailbox>) {
        let (first, end) = (gpa & !(PAGE_SIZE - 1), gpa.saturating_add(len));
        for page in (first..end).step_by(PAGE_SIZE as usize).filter(|page| self.code_map.has_code(&self.ram, *page)) {
            let from = page.max(gpa);
            let len = (page + PAGE_SIZE).min(end) - from;
            for m in self.mailboxes().iter().filter(|m| writer.is_none_or(|w| !std::ptr::eq(w, &***m))) {
                if m.marks.get(&self.ram, page) & granules(from, len) != 0 {
                    m.post_written(from, len);
                }
            }
        }
    }

    /// `holder` has code of the page at `gpa`: the others are to look at their stores to it. Those that they make before
    /// they read this, they tell of as a write to the whole page.
    pub fn protect_elsewhere(&self, gpa: u64, holder: &Mailbox) {
        for m in self.mailboxes().iter().filter(|m| !std::ptr::eq(holder, &***m)) {
            m.post(|mail| mail.protect.push(gpa));
        }
    }

    /// All processors drop all translations of addresses.
    pub fn flush_translations(&self) {
        self.mailboxes().iter().for_each(|m| m.post(|mail| mail.flush = true));
    }

    /// Address lines that reach memory: all, or all but line 20 while the A20 gate is closed (A20M#).
    pub fn address_lines(&self) -> u64 {
        !self.masked_lines.load(Ordering::Relaxed)
    }

    /// Opens or closes the A20 gate.
    pub fn set_a20(&self, open: bool) {
        tracing::trace!(target: "mmu", "A20 update: a20={}", u8::from(open));
        self.masked_lines.store(if open { 0 } else { 1 << 20 }, Ordering::Relaxed);
        self.flush_translations();
    }
}
