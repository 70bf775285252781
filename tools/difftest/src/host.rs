//! The oracle: one instruction on the host processor, from given registers, with everything read back.
//!
//! Entry and exit go through signal handlers, which see and set the whole register file: a breakpoint enters (its handler
//! loads the test's registers), the breakpoint after the test instruction or the fault it raises leaves (the handler
//! stores the registers and puts the program's own back).

use brolga_jit::testing::{Bits, Outcome, Registers, SEGMENTS_16};
use std::cell::UnsafeCell;
use std::io;

/// First byte of the page that holds the instruction.
pub const CODE: u64 = 0x1000_0000;
/// Bytes of the code page.
pub const CODE_SIZE: u64 = 0x1000;
/// First byte of writable memory; a page before it is not mapped.
pub const DATA: u64 = 0x1001_0000;
/// Writable bytes.
pub const DATA_SIZE: u64 = 0x4000;
/// Read-only bytes after them; the page that follows is not mapped.
pub const READ_ONLY: u64 = 0x1000;

const SIGNAL_STACK: u64 = 0x2b5a_7e39_4000;
const USER_CS_32: i64 = 0x23;
const USER_DS: u32 = 0x2b;
/// Selectors of the LDT's entries, which are numbered as segment registers are.
const LDT_ES: u32 = 0x07;
const LDT_CS: i64 = 0x0f;
const LDT_SS: i64 = 0x17;
const LDT_DS: u32 = 0x1f;

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Idle,
    Enter,
    Running,
}

#[repr(C, align(16))]
#[derive(Clone, Copy)]
struct FxSave([u8; 512]);

/// Vector and x87 state in a signal frame.
#[derive(Clone, Copy)]
struct Frame {
    legacy: FxSave,
    /// XSTATE_BV.
    present: u64,
    /// AVX state: high halves of the YMM registers.
    high: [u8; 256],
}

/// XSTATE_BV's bit of AVX state.
const AVX: u64 = 4;

impl Frame {
    /// # Safety
    /// `at` is the kernel's XSAVE area in a signal frame.
    unsafe fn read(at: *const FxSave) -> Self {
        // SAFETY: the area has the legacy region, the header and, in the standard format, AVX state behind it, if the
        // host has AVX.
        unsafe {
            let present = *(at.add(1) as *const u64);
            let high = if present & AVX != 0 { *(at.byte_add(576) as *const [u8; 256]) } else { [0; 256] };
            Self { legacy: *at, present, high }
        }
    }

    /// # Safety
    /// As [`Frame::read`].
    unsafe fn write(&self, at: *mut FxSave) {
        // SAFETY: as in `read`.
        unsafe {
            *at = self.legacy;
            *(at.add(1) as *mut u64) = self.present;
            if self.present & AVX != 0 {
                *(at.byte_add(576) as *mut [u8; 256]) = self.high;
            }
        }
    }
}

/// What main program and handler share; there is one thread.
struct Shared {
    phase: Phase,
    bits: Bits,
    saved: [i64; 23],
    saved_fp: Frame,
    regs: Registers,
    outcome: Outcome,
}

struct Cell(UnsafeCell<Shared>);

// SAFETY: the program has one thread; the handler runs on it while the main code waits at its breakpoint.
unsafe impl Sync for Cell {}

static SHARED: Cell = Cell(UnsafeCell::new(Shared {
    phase: Phase::Idle,
    bits: Bits::B64,
    saved: [0; 23],
    saved_fp: Frame { legacy: FxSave([0; 512]), present: 0, high: [0; 256] },
    regs: Registers::CLEAR,
    outcome: Outcome::Done,
}));

/// Positions in `mcontext_t.gregs` of the general registers in encoding order.
const GREGS: [usize; 16] = [
    libc::REG_RAX as usize,
    libc::REG_RCX as usize,
    libc::REG_RDX as usize,
    libc::REG_RBX as usize,
    libc::REG_RSP as usize,
    libc::REG_RBP as usize,
    libc::REG_RSI as usize,
    libc::REG_RDI as usize,
    libc::REG_R8 as usize,
    libc::REG_R9 as usize,
    libc::REG_R10 as usize,
    libc::REG_R11 as usize,
    libc::REG_R12 as usize,
    libc::REG_R13 as usize,
    libc::REG_R14 as usize,
    libc::REG_R15 as usize,
];

/// The host processor with the test's pages mapped.
pub struct Host(());

impl Host {
    /// Maps the pages and installs the handlers. One at a time.
    pub fn new(bits: Bits) -> io::Result<Self> {
        map(CODE, CODE_SIZE, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC)?;
        map(DATA, DATA_SIZE + READ_ONLY, libc::PROT_READ | libc::PROT_WRITE)?;
        // Far away from all test addresses: a stack pointer that points into it would count as being on it.
        let stack = map(SIGNAL_STACK, 0x1_0000, libc::PROT_READ | libc::PROT_WRITE)?;
        // SAFETY: the range is the one just mapped; the handler has the signature that SA_SIGINFO asks for.
        unsafe {
            let alternate = libc::stack_t { ss_sp: stack as *mut _, ss_flags: 0, ss_size: 0x1_0000 };
            check(libc::sigaltstack(&alternate, std::ptr::null_mut()))?;
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = difftest_signal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            for signal in [libc::SIGTRAP, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE] {
                check(libc::sigaction(signal, &action, std::ptr::null_mut()))?;
            }
            // Compatibility-mode code needs data segments; 64-bit code does not look at them.
            let (ds, es) = if bits == Bits::B16 { (LDT_DS, LDT_ES) } else { (USER_DS, USER_DS) };
            if bits == Bits::B16 {
                set_ldt()?;
            }
            std::arch::asm!("mov ds, {0:x}", "mov es, {1:x}", in(reg) ds, in(reg) es);
        }
        Ok(Self(()))
    }

    /// Writes code or data memory.
    pub fn write(&mut self, linear: u64, bytes: &[u8]) {
        if let Some(to) = self.slice(linear, bytes.len()) {
            to.copy_from_slice(bytes);
        }
    }

    /// Code or data memory; `None` outside.
    pub fn slice(&mut self, linear: u64, len: usize) -> Option<&mut [u8]> {
        let end = linear.checked_add(len as u64)?;
        let inside = linear >= CODE && end <= CODE + CODE_SIZE || linear >= DATA && end <= DATA + DATA_SIZE + READ_ONLY;
        // SAFETY: the range lies in one of the mappings made by `new`, which stay; nothing else borrows it for longer
        // than `&mut self`.
        inside.then(|| unsafe { std::slice::from_raw_parts_mut(linear as *mut u8, len) })
    }

    /// Forbids or allows writes to the read-only page.
    pub fn protect(&mut self, on: bool) -> io::Result<()> {
        let rights = if on { libc::PROT_READ } else { libc::PROT_READ | libc::PROT_WRITE };
        // SAFETY: the page is one of those mapped by `new`.
        check(unsafe { libc::mprotect((DATA + DATA_SIZE) as *mut _, READ_ONLY as usize, rights) })
    }

    /// Executes the instruction at `regs.rip`; bytes around it must be breakpoints (0xCC).
    pub fn execute(&mut self, regs: &mut Registers, bits: Bits) -> Outcome {
        let shared = SHARED.0.get();
        // SAFETY: one thread; the handler that the breakpoint calls is done with the cell when it returns, and it
        // restores all registers, so the instruction has no effect that the compiler can see.
        unsafe {
            (*shared).regs = regs.clone();
            (*shared).bits = bits;
            (*shared).phase = Phase::Enter;
            std::arch::asm!("int3");
            *regs = (*shared).regs.clone();
            (*shared).outcome
        }
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn map(address: u64, len: u64, rights: libc::c_int) -> io::Result<u64> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: MAP_FIXED_NOREPLACE takes only free address space.
    let at = unsafe { libc::mmap(address as *mut _, len as usize, rights, flags, -1, 0) };
    if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(at as u64) }
}

// The tested instruction's AC flag is still set when the handler starts, and compiled code need not be aligned.
core::arch::global_asm!(
    "difftest_signal:",
    "pushfq",
    "and qword ptr [rsp], {without_ac}",
    "popfq",
    "jmp {handler}",
    without_ac = const !0x4_0000_i32,
    handler = sym on_signal,
);

unsafe extern "C" {
    fn difftest_signal();
}

extern "C" fn on_signal(signal: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a ucontext; the cell is ours while the main code waits at its breakpoint.
    let (uc, shared) = unsafe { (&mut *(context as *mut libc::ucontext_t), &mut *SHARED.0.get()) };
    let gregs = &mut uc.uc_mcontext.gregs;
    let fp = uc.uc_mcontext.fpregs as *mut FxSave;
    match shared.phase {
        Phase::Enter => {
            shared.saved = *gregs;
            // SAFETY: the kernel's frame holds an FXSAVE image there, followed by the XSAVE header.
            unsafe {
                let mut frame = Frame::read(fp);
                shared.saved_fp = frame;
                load_fp(&mut frame, &shared.regs);
                frame.write(fp);
            }
            load(gregs, &shared.regs, shared.bits);
            shared.phase = Phase::Running;
        }
        Phase::Running => {
            store(gregs, &mut shared.regs, shared.bits);
            shared.outcome = outcome(gregs, &mut shared.regs);
            let cr2 = gregs[libc::REG_CR2 as usize];
            *gregs = shared.saved;
            gregs[libc::REG_CR2 as usize] = cr2;
            // SAFETY: as above.
            unsafe {
                store_fp(&Frame::read(fp), &mut shared.regs);
                shared.saved_fp.present |= 3;
                shared.saved_fp.write(fp);
            }
            shared.phase = Phase::Idle;
        }
        // The program's own crash: the default action takes it.
        // SAFETY: plain system call.
        Phase::Idle => unsafe {
            libc::signal(signal, libc::SIG_DFL);
        },
    }
}

/// `struct user_desc` of modify_ldt(2).
#[repr(C)]
struct UserDesc {
    entry: u32,
    base: u32,
    limit: u32,
    /// Bits: 32-bit 0, contents 2:1 (1 expand-down, 2 code), read-only 3, limit in pages 4, not present 5.
    flags: u32,
}

/// The segments of 16-bit tests.
fn set_ldt() -> io::Result<()> {
    for (n, s) in SEGMENTS_16.iter().enumerate() {
        let contents = if n == 1 { 2 } else { s.expand_down as u32 };
        let entry = UserDesc { entry: n as u32, base: s.base, limit: s.limit, flags: contents << 1 };
        const WRITE: libc::c_long = 0x11;
        // SAFETY: the structure is what the call reads, and as long as it says.
        let r = unsafe { libc::syscall(libc::SYS_modify_ldt, WRITE, &entry, size_of::<UserDesc>()) };
        if r as libc::c_int != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn load(gregs: &mut [i64; 23], r: &Registers, bits: Bits) {
    for (at, v) in GREGS.iter().zip(r.gpr) {
        gregs[*at] = v as i64;
    }
    gregs[libc::REG_RIP as usize] = r.rip as i64;
    gregs[libc::REG_EFL as usize] = r.rflags as i64 | 0x200;
    let selectors = &mut gregs[libc::REG_CSGSFS as usize];
    match bits {
        Bits::B64 => {}
        Bits::B32 => *selectors = *selectors & !0xffff | USER_CS_32,
        Bits::B16 => *selectors = *selectors & 0xffff_ffff_0000 | LDT_CS | LDT_SS << 48,
    }
}

fn store(gregs: &[i64; 23], r: &mut Registers, bits: Bits) {
    for (at, v) in GREGS.iter().zip(&mut r.gpr) {
        *v = gregs[*at] as u64;
    }
    if bits == Bits::B16 {
        // The upper half is not the test's: an IRET to a stack segment of 16 bits leaves the kernel's there, and AMD's
        // processors push it with the next exception.
        r.gpr[4] &= 0xffff_ffff;
    }
    r.rip = gregs[libc::REG_RIP as usize] as u64;
    // Without IF, which user code cannot change, and RF, which is the frame's.
    r.rflags = gregs[libc::REG_EFL as usize] as u64 & !0x1_0200;
}

/// The final breakpoint, or the fault that came before it.
fn outcome(gregs: &[i64; 23], r: &mut Registers) -> Outcome {
    let vector = gregs[libc::REG_TRAPNO as usize] as u8;
    match vector {
        3 => {
            r.rip = r.rip.wrapping_sub(1);
            Outcome::Done
        }
        14 => {
            let address = gregs[libc::REG_CR2 as usize] as u64;
            // Elsewhere the host's process has pages of its own; the engine's test machine has none.
            let ours = (CODE..DATA + DATA_SIZE + READ_ONLY + 0x1000).contains(&address);
            let present = if ours { 0 } else { 1 };
            Outcome::Fault { vector, error: gregs[libc::REG_ERR as usize] as u32 & !present, address }
        }
        _ => Outcome::Fault { vector, error: gregs[libc::REG_ERR as usize] as u32, address: 0 },
    }
}

fn load_fp(frame: &mut Frame, r: &Registers) {
    frame.present |= 3;
    if is_x86_feature_detected!("avx") {
        frame.present |= AVX;
        for (to, v) in frame.high.as_chunks_mut::<16>().0.iter_mut().zip(r.ymm_high) {
            *to = v.to_le_bytes();
        }
    }
    let fx = &mut frame.legacy;
    let mut put = |at: usize, bytes: &[u8]| fx.0[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &r.fcw.to_le_bytes());
    put(2, &r.fsw.to_le_bytes());
    put(4, &[r.tags, 0]);
    put(6, &r.fop.to_le_bytes());
    put(8, &r.fip.to_le_bytes());
    put(16, &r.fdp.to_le_bytes());
    put(24, &r.mxcsr.to_le_bytes());
    for (n, v) in r.st.iter().enumerate() {
        put(32 + 16 * n, &v.to_le_bytes()[..10]);
    }
    for (n, v) in r.xmm.iter().enumerate() {
        put(160 + 16 * n, &v.to_le_bytes());
    }
}

fn store_fp(frame: &Frame, r: &mut Registers) {
    for (from, v) in frame.high.as_chunks::<16>().0.iter().zip(&mut r.ymm_high) {
        *v = u128::from_le_bytes(*from);
    }
    let fx = &frame.legacy;
    let word = |at: usize| u16::from_le_bytes([fx.0[at], fx.0[at + 1]]);
    r.fcw = word(0);
    r.fsw = word(2);
    r.tags = fx.0[4];
    r.mxcsr = word(24) as u32 | (word(26) as u32) << 16;
    let wide = |at: usize, len: usize| {
        let mut bytes = [0; 16];
        bytes[..len].copy_from_slice(&fx.0[at..at + len]);
        u128::from_le_bytes(bytes)
    };
    r.fop = word(6);
    r.fip = wide(8, 8) as u64;
    r.fdp = wide(16, 8) as u64;
    for (n, v) in r.st.iter_mut().enumerate() {
        *v = wide(32 + 16 * n, 10);
    }
    for (n, v) in r.xmm.iter_mut().enumerate() {
        *v = wide(160 + 16 * n, 16);
    }
}
