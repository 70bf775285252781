//! Which program a processor of a Linux guest runs: the name of its current task, as `ps` shows it. Only where the kernel's
//! symbols say where to look; what is found there is believed only if it reads like a name.

use super::ReadWord;
use super::symbols::Symbols;
use std::sync::OnceLock;

/// The kernel's data that are looked for: the first task, and each processor's current one by the names that kernels have
/// had for it (at the start of `pcpu_hot` from 6.2 to 6.14).
pub const WANTED: [&str; 3] = ["init_task", "current_task", "pcpu_hot"];

/// Furthest into a task that its name may lie.
const TASK: u64 = 16 << 10;
/// The first eight bytes of the first task's name, on kernels for one and for several processors.
const FIRST: [&[u8; 8]; 2] = [b"swapper\0", b"swapper/"];
/// Bytes of a task's name (TASK_COMM_LEN), the last one 0.
const NAME: usize = 16;

/// What is known of the kernel.
pub struct Tasks {
    /// The first task.
    first: u64,
    /// Offset of the pointer to the current task in a processor's own data.
    current: u64,
    /// Offset of a task's name, once the first one's was seen.
    name: OnceLock<u64>,
}

impl Tasks {
    /// By the kernel's symbols, if they tell.
    pub fn new(symbols: &Symbols) -> Option<Self> {
        let first = symbols.data("init_task")?;
        let current = symbols.data("current_task").or_else(|| symbols.data("pcpu_hot"))?;
        Some(Self { first, current, name: OnceLock::new() })
    }

    /// The name of the task that runs on a processor whose own data are at `base`.
    pub fn current(&self, base: u64, read: ReadWord<'_>) -> Option<String> {
        let offset = match self.name.get() {
            Some(offset) => *offset,
            None => {
                let is_name = |at: &u64| read(self.first + at).is_some_and(|word| FIRST.contains(&&word.to_le_bytes()));
                let found = (0..TASK).step_by(8).find(is_name)?;
                *self.name.get_or_init(|| found)
            }
        };
        let place = base.wrapping_add(self.current);
        let task = read(place).filter(|task| place.is_multiple_of(8) && task.is_multiple_of(8))?;
        let at = task.wrapping_add(offset);
        let mut bytes = [0; NAME];
        for (n, piece) in (0..).step_by(8).zip(bytes.chunks_mut(8)) {
            piece.copy_from_slice(&read(at.wrapping_add(n))?.to_le_bytes());
        }
        let end = bytes.iter().position(|b| *b == 0)?;
        let name = std::str::from_utf8(&bytes[..end]).ok().filter(|name| !name.is_empty())?;
        // What divides stacks must not be in names.
        let plain = |c: char| if c.is_control() || c == ';' || c == ' ' { '_' } else { c };
        Some(name.chars().map(plain).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn the_current_task_has_a_name() {
        let symbols =
            Symbols::read(b"ffffffff82000000 D init_task\n0000000000021440 D pcpu_hot\nffffffff81000000 T f\n");
        let tasks = Tasks::new(&symbols).unwrap();
        let word = |text: &[u8; 8]| u64::from_le_bytes(*text);
        let (base, task) = (0xffff_8880_3ec0_0000, 0xffff_8880_0400_0000);
        let mut memory = HashMap::from([
            (base + 0x21440, task),
            (task + 0x5c0, word(b"my progr")),
            (task + 0x5c8, word(b"am\0\0\0\0\0\0")),
        ]);
        assert_eq!(tasks.current(base, &|at| memory.get(&at).copied()), None, "the kernel has not started");
        memory.extend((0..0x5c0).step_by(8).map(|at| (0xffff_ffff_8200_0000 + at, at)));
        memory.insert(0xffff_ffff_8200_05c0, word(b"swapper/"));
        assert_eq!(tasks.current(base, &|at| memory.get(&at).copied()).as_deref(), Some("my_program"));
        memory.insert(task + 0x5c8, u64::MAX);
        assert_eq!(tasks.current(base, &|at| memory.get(&at).copied()), None, "a name that does not end");
        assert_eq!(tasks.current(u64::MAX, &|at| memory.get(&at).copied()), None);
        assert!(Tasks::new(&Symbols::read(b"ffffffff82000000 D init_task\n")).is_none());
    }
}
