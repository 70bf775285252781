//! Counts the instructions that the host executes in generated code: it traps after each (RFLAGS.TF, SDM 3B 18.3.1.4).

use std::arch::asm;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

static BEGIN: AtomicU64 = AtomicU64::new(0);
static END: AtomicU64 = AtomicU64::new(0);
static STEPS: AtomicU64 = AtomicU64::new(0);
/// Held while something is counted.
static COUNTING: Mutex<()> = Mutex::new(());

/// Runs `f`: how many instructions at host addresses in `range` it executed.
pub fn count(range: Range<u64>, f: impl FnOnce()) -> u64 {
    let _alone = COUNTING.lock().unwrap_or_else(PoisonError::into_inner);
    BEGIN.store(range.start, Ordering::Relaxed);
    END.store(range.end, Ordering::Relaxed);
    STEPS.store(0, Ordering::Relaxed);
    let handler = Handler::install();
    // SAFETY: sets the trap flag, whose traps the handler takes until it is cleared below.
    unsafe { asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq") };
    f();
    // SAFETY: clears it.
    unsafe { asm!("pushfq", "and qword ptr [rsp], -0x101", "popfq") };
    drop(handler);
    STEPS.load(Ordering::Relaxed)
}

/// The handler of SIGTRAP, and what it was before.
struct Handler(libc::sigaction);

impl Handler {
    fn install() -> Self {
        // SAFETY: all zero is a valid `sigaction`; both structures live through the call, and the handler touches nothing
        // but its context and atomic variables.
        unsafe {
            let (mut new, mut old): (libc::sigaction, libc::sigaction) = (std::mem::zeroed(), std::mem::zeroed());
            new.sa_sigaction = on_step as *const () as usize;
            new.sa_flags = libc::SA_SIGINFO;
            assert_eq!(libc::sigaction(libc::SIGTRAP, &raw const new, &raw mut old), 0);
            Self(old)
        }
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        // SAFETY: puts back what `install` was given.
        unsafe { libc::sigaction(libc::SIGTRAP, &raw const self.0, std::ptr::null_mut()) };
    }
}

/// # Safety
/// Called by the kernel for a signal, with its context.
unsafe extern "C" fn on_step(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the third argument is the interrupted context.
    let at = unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RIP as usize] } as u64;
    // The next instruction: each is counted before it is executed.
    if (BEGIN.load(Ordering::Relaxed)..END.load(Ordering::Relaxed)).contains(&at) {
        STEPS.fetch_add(1, Ordering::Relaxed);
    }
}
