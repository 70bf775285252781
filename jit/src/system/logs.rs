//! What the processor logs (`-d`), in the forms that tools look for in QEMU's logs.

use super::interrupt::{Event, Origin};
use crate::cpu::Cpu;
use crate::fault::vector;
use crate::names;
use crate::state::{cr4, flag, mode, reg};
use std::sync::atomic::{AtomicU64, Ordering};
use tracing::Level;
use tracing::level_filters::LevelFilter;

/// Events logged so far.
static LOGGED: AtomicU64 = AtomicU64::new(0);

/// What QEMU calls a translation's cflags: no cluster.
const CFLAGS: u32 = 0xff00_0000;
/// In those: it is not linked to others.
const UNLINKED: u32 = 1 << 9;

/// Some item is logged. Costs one load where none is.
#[inline]
fn anything() -> bool {
    LevelFilter::current() == LevelFilter::TRACE
}

impl Cpu {
    /// A block is entered, whose code is at host address `code`.
    #[inline]
    pub(crate) fn log_entry(&self, code: u64) {
        if anything() {
            self.log_entry_now(code);
        }
    }

    #[cold]
    fn log_entry_now(&self, code: u64) {
        let s = &self.state;
        let linear = s.linear_rip();
        if tracing::enabled!(target: "exec", Level::TRACE) {
            let base = if s.mode & mode::CS64 != 0 { 0 } else { s.segs[reg::CS].base };
            let unlinked = tracing::enabled!(target: "nochain", Level::TRACE);
            tracing::trace!(
                target: "exec",
                pc = linear,
                "Trace {}: {code:#x} [{base:08x}/{linear:016x}/{:08x}/{:08x}] {}",
                self.index,
                self.log_flags(),
                CFLAGS | if unlinked { UNLINKED } else { 0 },
                names::of(linear)
            );
        }
        tracing::trace!(target: "cpu", pc = linear, "{}", self.dump_for_log());
    }

    /// The mode as one word, by the places that the bits have in QEMU's flags of a translation.
    fn log_flags(&self) -> u32 {
        let s = &self.state;
        let word = |bit: u32, at: u32| u32::from(s.mode & bit != 0) << at;
        let control = |bit: u64, at: u32| u32::from(s.cr4 & bit != 0) << at;
        let wide = s.mode & mode::CS64 != 0;
        let flat = [reg::DS, reg::ES, reg::SS].iter().all(|n| s.segs[*n].base == 0);
        let protected = s.mode & mode::PE != 0 && s.mode & mode::VM86 == 0 && s.mode & mode::CS32 != 0;
        let bases = !(wide || protected && flat);
        let own = (self.rflags() & (flag::TF | flag::IOPL | flag::RF | flag::VM | flag::AC)) as u32;
        u32::from(s.cpl())
            | u32::from(s.shadow != 0) << 3
            | u32::from(wide || s.mode & mode::CS32 != 0) << 4
            | u32::from(wide || s.mode & mode::SS32 != 0) << 5
            | u32::from(bases) << 6
            | word(mode::PE, 7)
            | word(mode::MP, 9)
            | word(mode::EM, 10)
            | word(mode::TS, 11)
            | word(mode::LMA, 14)
            | u32::from(wide) << 15
            | word(mode::OSFXSR, 22)
            | control(cr4::SMAP, 23)
            | control(cr4::UMIP, 27)
            | word(mode::AVX, 28)
            | own
    }

    /// An exception comes up; `old`: the one that was being delivered, if they may make a double fault.
    pub(super) fn log_exception(&self, old: Option<u8>, new: u8) {
        let old = old.map_or(u32::MAX, u32::from);
        tracing::trace!(target: "int", "check_exception old: {old:#x} new {new:#x}");
    }

    /// An event is delivered.
    #[inline]
    pub(super) fn log_event(&self, ev: &Event) {
        if tracing::enabled!(target: "int", Level::TRACE) {
            self.log_event_now(ev);
        }
    }

    #[cold]
    fn log_event_now(&self, ev: &Event) {
        let (s, number) = (&self.state, LOGGED.fetch_add(1, Ordering::Relaxed));
        let more = match ev.vector {
            vector::PF => format!("CR2={:016x}", s.cr2),
            _ => format!("env->regs[R_EAX]={:016x}", self.gpr(reg::RAX)),
        };
        tracing::trace!(
            target: "int",
            "{number:6}: v={:02x} e={:04x} i={} cpl={} IP={:04x}:{:016x} pc={:016x} SP={:04x}:{:016x} {more}\n{}",
            ev.vector,
            ev.error.unwrap_or(0),
            u8::from(matches!(ev.origin, Origin::Software)),
            s.cpl(),
            s.segs[reg::CS].selector,
            s.rip,
            s.linear_rip(),
            s.segs[reg::SS].selector,
            self.gpr(reg::RSP),
            self.dump_for_log()
        );
    }
}

#[cfg(test)]
mod tests {
    use crate::state::{cr0, cr4, efer, mode};
    use crate::system::testing::machine;

    /// What QEMU says of the same: the first block after reset, and 64-bit code.
    #[test]
    fn flags_have_their_places() {
        let mut cpu = machine();
        assert_eq!(cpu.log_flags(), 0x40);
        let s = &mut cpu.state;
        (s.cr0, s.cr4, s.efer) = (cr0::PG | cr0::PE | cr0::MP | cr0::NE, 0x620, efer::LME | efer::LMA);
        s.segs[1].attributes = 0xa09b;
        s.segs[2].attributes = 0xc093;
        cpu.update_mode();
        assert_ne!(cpu.state.mode & mode::CS64, 0);
        assert_eq!(cpu.log_flags(), 0x0040_c2b0);
        cpu.state.cr4 |= cr4::SMAP;
        cpu.state.shadow = 1;
        assert_eq!(cpu.log_flags(), 0x00c0_c2b8);
    }
}
